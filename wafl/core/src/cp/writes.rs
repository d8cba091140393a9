//! Tetrises on their way to RAID, and which of them lie on the disks.
//!
//! Layer: beside the consistency point. What lies on the disks can be read back, so it may leave
//! memory long before the root that makes it part of the aggregate; a point may therefore write
//! more than memory holds, and a stream need not wait for its end.
//!
//! # Invariants
//! - `end` is at or before the first tetris that is not on the disks, whole; it only grows.
//! - A tetris that failed never counts as written: its blocks stay in memory, and the node stops.

use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use cairn_raid_api::{Tetris, WriteError};
use cairn_sys::lock::atomic::{AtomicI64, AtomicU64, Ordering};
use cairn_sys::lock::{Mutex, Rank};
use cairn_sys::mutant;
use cairn_units::{Blocks, CpCount, MonoTime};
use tokio::sync::{Notify, Semaphore};

use super::CpError;
use crate::manager::{Inner, first_of};

/// Blocks on their way to RAID at once: 24 MiB. More is faster for who writes, and keeps readers and the
/// log waiting behind a longer queue.
const BLOCKS_IN_FLIGHT: u32 = 6144;
/// Part of the log's room that may go while a point writes: the next one begins soon after.
const ROOM_PERCENT: u64 = 55;
/// Percent of its tetrises by which a point may be behind without hurrying.
const BEHIND_PERCENT: u64 = 15;
/// How many times as long as it writes a point rests that is not behind.
const REST_PARTS: u64 = 4;
/// Nanoseconds of a rest, at most.
const REST_MAX: u64 = 40_000_000;
/// Nanoseconds after which a rest looks whether somebody waits for the point by now.
const REST_STEP: u64 = 2_000_000;
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

/// How fast a point goes. While nobody waits for it, its tetrises go one by one, spread over the time
/// in which the log fills: requests of clients must not stand behind them in the disks' queues, and
/// a flush of the log's must not find many of their blocks to flush. When the log fills slowly or
/// not at all, it rests after each for several times as long as that took. A point that falls
/// behind goes at full speed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub cp: CpCount,
    /// Room that the log had at the point's begin, and again when it had switched its halves.
    pub room: Blocks,
}

impl Pace {
    /// Percent of its tetrises that a point ought to have sent with so much of the room left.
    fn percent(self, left: Blocks) -> u64 {
        let gone = self.room.get().saturating_sub(left.get());
        (gone * 100 * 100).checked_div(self.room.get() * ROOM_PERCENT).map_or(100, |p| p.min(100))
    }

    /// Nanoseconds until the next tetris may go, with so much of the room left; `u64::MAX`: when those
    /// before it are there.
    fn wait(self, progress: Progress, left: Blocks) -> u64 {
        let Progress { all, gone, on_way, took, rested } = progress;
        let wanted = self.percent(left);
        if wanted >= 100 || gone * 100 + all * BEHIND_PERCENT < all * wanted {
            return 0;
        }
        if on_way {
            return u64::MAX;
        }
        if gone * 100 < all * wanted {
            return 0;
        }
        (took.saturating_mul(REST_PARTS)).min(REST_MAX).saturating_sub(rested)
    }
}

/// How far a point is with its tetrises.
#[derive(Clone, Copy, Debug)]
struct Progress {
    all: u64,
    /// Sent off.
    gone: u64,
    /// One of them is not there yet.
    on_way: bool,
    /// Nanoseconds that the last one took, and since then.
    took: u64,
    rested: u64,
}

/// What became of the tetrises that were sent off.
#[derive(Debug, Default)]
struct Sent {
    /// When the last of them was sent.
    from: MonoTime,
    /// When one of them was there last.
    to: MonoTime,
    failed: Option<WriteError>,
}

/// The tetrises of a point that are not on the disks.
pub(super) struct Writes {
    /// Those that are not on their way. Their blocks count as pinned: who makes more than there may be
    /// of those makes the point hurry ([`Inner::must_drain`]).
    waiting: VecDeque<(TetrisNo, Tetris)>,
    /// For those that are.
    room: Arc<Semaphore>,
    /// How many there were and are; how many of them were sent off.
    all: u64,
    gone: u64,
    sent: Arc<Mutex<Sent>>,
    /// One of them is there.
    ended: Arc<Notify>,
}

impl Writes {
    pub fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            room: Arc::new(Semaphore::new(BLOCKS_IN_FLIGHT as usize)),
            all: 0,
            gone: 0,
            sent: Arc::new(Mutex::new(Rank::PointWrites, Sent::default())),
            ended: Arc::default(),
        }
    }

    pub fn push(&mut self, tetrises: Vec<(TetrisNo, Tetris)>) {
        self.all += tetrises.len() as u64;
        self.waiting.extend(tetrises);
    }

    pub fn is_any_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends off what it is time for. When somebody waits for the point that is all of it, however
    /// long there is no room for it on the way.
    pub async fn send_due(&mut self, inner: &Inner, pace: Pace) -> Result<(), CpError> {
        while self.is_any_waiting() && self.wait_left(inner, pace) == 0 {
            self.send_first(inner).await?;
        }
        self.check()
    }

    /// Sends the next one off when it is time.
    pub async fn send_next(&mut self, inner: &Inner, pace: Pace) -> Result<(), CpError> {
        self.wait_due(inner, pace).await;
        self.send_first(inner).await
    }

    async fn wait_due(&self, inner: &Inner, pace: Pace) {
        loop {
            let mut ended = Box::pin(self.ended.notified());
            ended.as_mut().enable();
            match self.wait_left(inner, pace) {
                0 => return,
                // Somebody may wait for the point by then.
                nanos => {
                    let step = Duration::from_nanos(nanos.min(REST_STEP));
                    first_of(inner.world.clock.sleep(step), ended).await;
                }
            }
        }
    }

    /// Nanoseconds until the next one may go.
    fn wait_left(&self, inner: &Inner, pace: Pace) -> u64 {
        if inner.is_hurried(pace.cp) {
            return 0;
        }
        let sent = self.sent.lock();
        let now = inner.world.clock.monotonic();
        let progress = Progress {
            all: self.all,
            gone: self.gone,
            on_way: self.room.available_permits() < BLOCKS_IN_FLIGHT as usize,
            took: sent.to.since(sent.from).unwrap_or(0),
            rested: now.since(sent.to).unwrap_or(0),
        };
        drop(sent);
        pace.wait(progress, inner.log.room())
    }

    async fn send_first(&mut self, inner: &Inner) -> Result<(), CpError> {
        let Some((no, tetris)) = self.waiting.pop_front() else { return Ok(()) };
        let blocks = tetris.blocks.len();
        let weight = u32::try_from(blocks).unwrap_or(u32::MAX);
        let weight = weight.clamp(TETRIS_BLOCKS_MIN, BLOCKS_IN_FLIGHT);
        let permit = self.room.clone().acquire_many_owned(weight).await;
        self.check()?;
        self.gone += 1;
        let clock = inner.world.clock.clone();
        self.sent.lock().from = clock.monotonic();
        let (write, sent, ended) =
            (inner.aggr.write(tetris), self.sent.clone(), self.ended.clone());
        let (placed, blocks) = (inner.placed.clone(), i64::try_from(blocks).unwrap_or(0));
        inner.world.spawn.spawn(
            "tetris",
            Box::pin(async move {
                let written = write.await;
                sent.lock().to = clock.monotonic();
                match written {
                    Ok(()) => placed.written(no, blocks),
                    Err(error) => drop(sent.lock().failed.get_or_insert(error)),
                }
                drop(permit);
                ended.notify_waiters();
            }),
        );
        Ok(())
    }

    fn check(&self) -> Result<(), CpError> {
        let failed = self.sent.lock().failed.clone();
        failed.map_or(Ok(()), |e| Err(e.into()))
    }

    /// Waits until all that were sent off are on the disks.
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

    #[test]
    fn a_point_ought_to_be_done_when_half_of_the_room_is_gone() {
        let pace = Pace { cp: CpCount::new(1), room: Blocks::new(1000) };
        let wanted = [(1000, 0), (1200, 0), (945, 10), (725, 50), (450, 100), (0, 100)];
        for (left, percent) in wanted {
            assert_eq!(pace.percent(Blocks::new(left)), percent, "{left} of 1000 left");
        }
        let none = Pace { room: Blocks::new(0), ..pace };
        assert_eq!(none.percent(Blocks::new(0)), 100, "a log without room cannot wait");
    }

    #[test]
    fn a_tetris_waits_for_those_before_it_and_a_rest_unless_the_point_is_behind() {
        let pace = Pace { cp: CpCount::new(1), room: Blocks::new(1000) };
        let at = |gone, on_way, rested| Progress { all: 100, gone, on_way, took: 1000, rested };
        let (full, tenth, done) = (Blocks::new(1000), Blocks::new(945), Blocks::new(450));
        // In time, or ahead: one by one, with a rest of four times as long.
        assert_eq!(pace.wait(at(1, true, 0), full), u64::MAX);
        assert_eq!(pace.wait(at(1, false, 0), full), 4000);
        assert_eq!(pace.wait(at(10, false, 1500), tenth), 2500);
        assert_eq!(pace.wait(at(50, false, 4000), tenth), 0);
        let slow = Progress { took: u64::MAX / 8, ..at(1, false, 0) };
        assert_eq!(pace.wait(slow, full), REST_MAX);
        // Behind: no rest; far behind, or with the room gone: no waiting either.
        assert_eq!(pace.wait(at(9, false, 0), tenth), 0);
        assert_eq!(pace.wait(at(9, true, 0), tenth), u64::MAX);
        assert_eq!(pace.wait(at(30, true, 0), Blocks::new(725)), 0);
        assert_eq!(pace.wait(at(99, true, 0), done), 0);
    }
}
