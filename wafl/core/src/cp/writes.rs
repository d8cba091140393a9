//! Tetrises on their way to RAID, and which of them lie on the disks.
//!
//! Layer: beside the consistency point. What lies on the disks can be read back, so it may leave
//! memory long before the root that makes it part of the aggregate; a point may therefore write
//! more than memory holds, and a stream need not wait for its end.
//!
//! # Invariants
//! - `end` is at or before the first tetris that is not on the disks, whole; it only grows.
//! - A tetris that failed never counts as written: its blocks stay in memory, and the node stops.

use std::collections::BTreeSet;
use std::sync::Arc;

use cairn_raid_api::{Tetris, WriteError};
use cairn_sys::lock::atomic::{AtomicI64, AtomicU64, Ordering};
use cairn_sys::lock::{Mutex, Rank};
use cairn_sys::mutant;
use tokio::sync::{Notify, Semaphore};

use super::CpError;
use crate::manager::Inner;

/// Blocks on their way to RAID at once: 24 MiB. More is faster for who writes, and keeps readers and the
/// log waiting behind a longer queue.
const BLOCKS_IN_FLIGHT: u32 = 6144;
/// What a small tetris counts as: its requests and its task cost as much.
const TETRIS_BLOCKS_MIN: u32 = 256;

/// A tetris, counted from 1 since the storage manager was opened, in the order in which their first
/// blocks are given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TetrisNo(pub u64);

impl TetrisNo {
    /// That of blocks that came from the disks: before all others.
    pub const NONE: Self = Self(0);
    pub const FIRST: Self = Self(1);

    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Which blocks that were given places lie on the disks.
pub(crate) struct Placed {
    /// All tetrises before this one do.
    end: AtomicU64,
    /// Those behind it that do.
    early: Mutex<BTreeSet<TetrisNo>>,
    /// Blocks that do not: they must stay in memory.
    pinned: AtomicI64,
    /// Dirty blocks were placed, or placed ones written: who waits because there were too many of
    /// them may look again.
    pub drained: Notify,
}

impl Placed {
    pub fn new() -> Self {
        Self {
            end: AtomicU64::new(TetrisNo::FIRST.0),
            early: Mutex::new(Rank::TetrisesWritten, BTreeSet::new()),
            pinned: AtomicI64::new(0),
            drained: Notify::new(),
        }
    }
    /// Blocks of all tetrises before this one may leave memory.
    pub fn end(&self) -> TetrisNo {
        if mutant("placed-counts-as-written") {
            return TetrisNo(u64::MAX);
        }
        TetrisNo(self.end.load(Ordering::Acquire))
    }
    /// Blocks that have places and are not on the disks.
    pub fn pinned(&self) -> i64 {
        self.pinned.load(Ordering::Acquire)
    }
    /// So many blocks were given their places.
    pub fn add(&self, blocks: i64) {
        self.pinned.fetch_add(blocks, Ordering::AcqRel);
    }
    /// A tetris of so many blocks is on the disks.
    fn written(&self, tetris: TetrisNo, blocks: i64) {
        let mut early = self.early.lock();
        let new = early.insert(tetris);
        let mut end = TetrisNo(self.end.load(Ordering::Acquire));
        assert!(new && tetris >= end, "{tetris:?} is written once");
        while early.remove(&end) {
            end = end.next();
        }
        self.end.store(end.0, Ordering::Release);
        drop(early);
        self.pinned.fetch_sub(blocks, Ordering::AcqRel);
        self.drained.notify_waiters();
    }
}

/// Tetrises on their way.
pub(super) struct Writes {
    room: Arc<Semaphore>,
    failed: Arc<Mutex<Option<WriteError>>>,
}

impl Writes {
    pub fn new() -> Self {
        Self {
            room: Arc::new(Semaphore::new(BLOCKS_IN_FLIGHT as usize)),
            failed: Arc::new(Mutex::new(Rank::PointFailure, None)),
        }
    }
    /// Sends tetrises off when there is room for them on the way.
    pub async fn send(
        &self,
        inner: &Inner,
        tetrises: Vec<(TetrisNo, Tetris)>,
    ) -> Result<(), CpError> {
        for (no, tetris) in tetrises {
            let blocks: usize = tetris.stripes.iter().map(|s| s.blocks.len()).sum();
            let weight = u32::try_from(blocks).unwrap_or(u32::MAX);
            let weight = weight.clamp(TETRIS_BLOCKS_MIN, BLOCKS_IN_FLIGHT);
            let permit = self.room.clone().acquire_many_owned(weight).await;
            self.check()?;
            let (write, failed) = (inner.aggr.write(tetris), self.failed.clone());
            let (placed, blocks) = (inner.placed.clone(), i64::try_from(blocks).unwrap_or(0));
            inner.world.spawn.spawn(
                "tetris",
                Box::pin(async move {
                    match write.await {
                        Ok(()) => placed.written(no, blocks),
                        Err(error) => drop(failed.lock().get_or_insert(error)),
                    }
                    drop(permit);
                }),
            );
        }
        Ok(())
    }
    fn check(&self) -> Result<(), CpError> {
        let failed = self.failed.lock().clone();
        failed.map_or(Ok(()), |e| Err(e.into()))
    }
    /// Waits until all of them are on the disks.
    pub async fn drain(&self) -> Result<(), CpError> {
        let permits = self.room.acquire_many(BLOCKS_IN_FLIGHT).await;
        drop(permits);
        self.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_stays_before_the_first_tetris_that_is_not_on_the_disks() {
        let placed = Placed::new();
        placed.add(60);
        let ends = [(2, 1), (3, 1), (1, 4), (5, 4), (4, 6)];
        for (tetris, end) in ends {
            placed.written(TetrisNo(tetris), 10);
            assert_eq!(placed.end(), TetrisNo(end), "after {tetris}");
        }
        assert_eq!(placed.pinned(), 10);
    }
}
