//! The NV log's areas on the disks.
//!
//! Layer: over members. Every member and every log disk has an area of the same size. What is in
//! them is the log's business. Invariant: `Ok` from a write means stable on that disk.

use std::sync::Arc;

use cairn_raid_api::{LogAreaError, LogAreaId, LogStore};
use cairn_raid_disk::{DiskError, REQUEST_BLOCKS_MAX};
use cairn_sys::{Block, BoxFuture, mutant};
use cairn_units::{Blocks, Dbn};

use crate::core::Core;
use crate::member::Member;
use crate::view::Slot;

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
            out.extend(group.slots.iter().rev().filter_map(Slot::writable).cloned());
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
        let member = view.members.get(&area.0).filter(|m| !m.is_dead());
        let member = member.ok_or(LogAreaError::Gone(area))?.clone();
        let at = Dbn::new(member.layout.log_at + at);
        Ok((member, at))
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
        let place = self.place(area, at, blocks.len());
        let core = self.core.clone();
        Box::pin(async move {
            let (member, mut to) = place?;
            let mut rest = blocks;
            let mut result = Ok(());
            while !rest.is_empty() && result.is_ok() {
                let behind = rest.split_off(rest.len().min(REQUEST_BLOCKS_MAX));
                let n = rest.len() as u64;
                let (dbn, blocks) = (to.get(), rest.len());
                tracing::trace!(disk = %member.uuid, dbn, blocks, "log write");
                result = member.disk.write(to, rest).await;
                to = to.plus(n);
                rest = behind;
            }
            if result.is_ok() && !mutant("log-write-not-flushed") {
                result = member.disk.flush().await;
                if result.is_err() {
                    // Nobody knows which of the disk's writes a failed flush lost.
                    core.kill(&member);
                }
            }
            match result {
                Ok(()) => Ok(()),
                Err(error) => {
                    core.fault(&member, &error);
                    core.settle_soon();
                    Err(error_of(area, at, &error))
                }
            }
        })
    }
}
