//! The NV log's areas on the disks.
//!
//! Layer: over members. Every member and every log disk has an area of the same size. What is in
//! them is the log's business. Invariant: `Ok` from a write means stable on that disk.

use std::sync::Arc;

use cairn_raid_api::{LogAreaError, LogAreaId, LogStore, SPREAD_DATA_MAX, Spread};
use cairn_raid_disk::{DiskError, REQUEST_BLOCKS_MAX};
use cairn_sys::{Block, BoxFuture, mutant};
use cairn_units::{Blocks, Dbn};

use crate::core::Core;
use crate::log_spread::{self, SPREAD_DATA_MIN, code_of};
use crate::member::Member;
use crate::tools::join_all;
use crate::view::{GroupView, Slot};

/// Blocks of an area copied at once, while the log waits.
const COPY_BLOCKS: u64 = 128;
/// Blocks of one piece from which it is spread over the areas: five more requests then cost less than what is
/// not written.
const SPREAD_FROM_BLOCKS: u64 = 64;
/// The same on a small log, where spreading makes room: this part of a half.
const SPREAD_FROM_PART: u64 = 64;
/// But not less than this.
const SPREAD_FROM_BLOCKS_MIN: u64 = 4;

/// See the module.
pub(crate) struct LogAreas {
    core: Arc<Core>,
    blocks: Blocks,
}

impl LogAreas {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let view = core.view();
        let blocks = view.members.values().map(|m| m.layout.log_blocks).min().unwrap_or(0);
        Self { core, blocks: Blocks::new(blocks) }
    }

    /// Disks with an area, best first: log disks, then parity disks (data disks also serve
    /// reads), then data disks, group by group.
    fn ranked(&self) -> Vec<Arc<Member>> {
        let view = self.core.view();
        let mut out: Vec<Arc<Member>> = view
            .config
            .log_disks
            .iter()
            .filter_map(|d| view.members.get(d).cloned())
            .filter(|m| !m.is_dead())
            .collect();
        for group in view.groups.values() {
            out.extend(ranked_of(group));
        }
        out
    }

    fn place(
        &self,
        area: LogAreaId,
        at: u64,
        count: usize,
    ) -> Result<(Arc<Member>, Dbn), LogAreaError> {
        let end = at.checked_add(count as u64).ok_or(LogAreaError::OutOfRange)?;
        if end > self.blocks.get() {
            return Err(LogAreaError::OutOfRange);
        }
        let view = self.core.view();
        let mut disk = area.0;
        while let Some(by) = self.core.replaced.lock().get(&disk) {
            disk = *by;
        }
        let member = view.members.get(&disk).filter(|m| !m.is_dead());
        let member = member.ok_or(LogAreaError::Gone(area))?.clone();
        let at = Dbn::new(member.layout.log_at + at);
        Ok((member, at))
    }
}

/// The disks of a group that take writes, best first.
fn ranked_of(group: &GroupView) -> impl Iterator<Item = Arc<Member>> {
    group.slots.iter().rev().filter_map(Slot::writable).cloned()
}

/// What of a write to an area failed.
enum AreaFault {
    Write(DiskError),
    Flush(DiskError),
}

/// Writes blocks from block `at` of a disk's area on.
async fn write_area(member: &Member, at: u64, blocks: Vec<Block>) -> Result<(), DiskError> {
    let (mut to, mut rest) = (Dbn::new(member.layout.log_at + at), blocks);
    while !rest.is_empty() {
        let behind = rest.split_off(rest.len().min(REQUEST_BLOCKS_MAX));
        let n = rest.len() as u64;
        let (dbn, blocks) = (to.get(), rest.len());
        tracing::trace!(disk = %member.uuid, dbn, blocks, "log write");
        member.disk.write(to, rest).await?;
        to = to.plus(n);
        rest = behind;
    }
    Ok(())
}

impl Core {
    /// Copies the NV log area of a disk to its twin, which takes the log's writes as well.
    ///
    /// # Errors
    /// What the twin says; blocks that cannot be read are not copied.
    pub(crate) async fn copy_log_area(&self, from: &Member, to: &Member) -> Result<(), DiskError> {
        let blocks = from.layout.log_blocks.min(to.layout.log_blocks);
        let mut at = 0;
        while at < blocks && !self.is_stopped() && !from.is_dead() {
            // A write that is under way would reach only one of them, or be overwritten.
            let held = self.log_areas.write().await;
            let n = (blocks - at).min(COPY_BLOCKS);
            let run = from.read(Dbn::new(from.layout.log_at + at), usize::try_from(n).unwrap_or(1));
            if let Ok(run) = run.await {
                write_area(to, at, run).await?;
            } else {
                for at in at..at + n {
                    if let Ok(one) = from.read(Dbn::new(from.layout.log_at + at), 1).await {
                        write_area(to, at, one).await?;
                    }
                }
            }
            drop(held);
            at += n;
        }
        to.mark_dirty();
        Ok(())
    }
}

fn error_of(area: LogAreaId, at: u64, error: &DiskError) -> LogAreaError {
    match error {
        DiskError::Medium { .. } => LogAreaError::Medium { area, at },
        DiskError::Fenced => LogAreaError::Fenced,
        DiskError::OutOfRange { .. } => LogAreaError::OutOfRange,
        DiskError::TimedOut { .. } | DiskError::Gone { .. } => LogAreaError::Gone(area),
    }
}

impl LogStore for LogAreas {
    fn area_blocks(&self) -> Blocks {
        self.blocks
    }

    fn areas(&self) -> Vec<LogAreaId> {
        self.ranked().iter().map(|m| LogAreaId(m.uuid)).collect()
    }

    fn choose(&self, copies: usize) -> Vec<LogAreaId> {
        self.ranked().iter().take(copies).map(|m| LogAreaId(m.uuid)).collect()
    }

    fn spread(&self, copies: usize) -> Option<Spread> {
        let view = self.core.view();
        if !view.config.log_disks.is_empty() {
            // They were given because they are quick; the others need not be.
            return None;
        }
        // One group: what may be lost of it may be lost of the log.
        let group = view.groups.values().next()?;
        let parity = copies.checked_sub(1)?.max(group.code.kind.parity().into());
        let _has_one = code_of(parity)?;
        let members = ranked_of(group);
        let areas: Vec<LogAreaId> =
            members.take(SPREAD_DATA_MAX + parity).map(|m| LogAreaId(m.uuid)).collect();
        let from = self.blocks.get() / 2 / SPREAD_FROM_PART;
        let from = from.clamp(SPREAD_FROM_BLOCKS_MIN, SPREAD_FROM_BLOCKS);
        let from_blocks = usize::try_from(from).unwrap_or(usize::MAX);
        (areas.len() >= SPREAD_DATA_MIN + parity).then_some(Spread { areas, parity, from_blocks })
    }

    fn spread_parity(&self, data: &[&[Block]], parity: usize) -> Vec<Vec<Block>> {
        log_spread::parity(data, parity)
    }

    fn spread_restore(&self, row: &mut [Option<Block>], parity: usize) -> bool {
        log_spread::restore(row, parity)
    }

    fn loss_after(&self, seen: u64) -> BoxFuture<u64> {
        let mut deaths = self.core.deaths.subscribe();
        Box::pin(async move {
            let reached = deaths.wait_for(|n| *n > seen).await.map(|n| *n);
            match reached {
                Ok(n) => n,
                // The store is gone: nothing is lost any more.
                Err(_) => core::future::pending().await,
            }
        })
    }

    fn read(
        &self,
        area: LogAreaId,
        at: u64,
        count: usize,
    ) -> BoxFuture<Result<Vec<Block>, LogAreaError>> {
        let place = self.place(area, at, count);
        let core = self.core.clone();
        Box::pin(async move {
            let (member, mut from) = place?;
            let mut out = Vec::with_capacity(count.min(REQUEST_BLOCKS_MAX));
            while out.len() < count {
                let n = (count - out.len()).min(REQUEST_BLOCKS_MAX);
                match member.read(from, n).await {
                    Ok(blocks) => out.extend(blocks),
                    Err(error) => {
                        core.fault(&member, &error);
                        core.settle_soon();
                        return Err(error_of(area, at + out.len() as u64, &error));
                    }
                }
                from = from.plus(n as u64);
            }
            Ok(out)
        })
    }

    fn write_stable(
        &self,
        area: LogAreaId,
        at: u64,
        blocks: Vec<Block>,
    ) -> BoxFuture<Result<(), LogAreaError>> {
        let outside = self.place(area, at, blocks.len()).err();
        let (core, log) =
            (self.core.clone(), Self { core: self.core.clone(), blocks: self.blocks });
        Box::pin(async move {
            if let Some(error) = outside {
                return Err(error);
            }
            let _held = core.log_areas.read().await;
            let (member, _) = log.place(area, at, blocks.len())?;
            let twin = core.view().twin_of(member.uuid);
            let both = core::iter::once(&member).chain(&twin);
            let writes: Vec<BoxFuture<Result<(), AreaFault>>> = both
                .map(|member| {
                    let (member, blocks) = (member.clone(), blocks.clone());
                    let write: BoxFuture<_> = Box::pin(async move {
                        if blocks.len() <= REQUEST_BLOCKS_MAX && !mutant("log-write-not-flushed") {
                            let to = Dbn::new(member.layout.log_at + at);
                            let (dbn, n) = (to.get(), blocks.len());
                            tracing::trace!(disk = %member.uuid, dbn, blocks = n, "log write");
                            let done = member.disk.write_stable(to, blocks);
                            return done.await.map_err(AreaFault::Write);
                        }
                        write_area(&member, at, blocks).await.map_err(AreaFault::Write)?;
                        if mutant("log-write-not-flushed") {
                            return Ok(());
                        }
                        member.disk.flush().await.map_err(AreaFault::Flush)
                    });
                    write
                })
                .collect();
            let mut results = join_all(writes).await.into_iter();
            let result = results.next().unwrap_or(Ok(()));
            if let (Some(twin), Some(Err(AreaFault::Write(error) | AreaFault::Flush(error)))) =
                (twin, results.next())
            {
                // It missed a write; the log's copy is the other disk.
                core.fault(&twin, &error);
                core.kill(&twin);
                core.settle_soon();
            }
            let error = match result {
                Ok(()) => return Ok(()),
                Err(AreaFault::Write(error)) => error,
                Err(AreaFault::Flush(error)) => {
                    // Nobody knows which of the disk's writes a failed flush lost.
                    core.kill(&member);
                    error
                }
            };
            core.fault(&member, &error);
            core.settle_soon();
            Err(error_of(area, at, &error))
        })
    }
}
