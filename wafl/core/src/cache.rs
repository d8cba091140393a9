//! The buffer cache's clock: which clean blocks and in-core inodes are in memory, and which go
//! when memory is short.
//!
//! Layer: core. The blocks themselves live in their volumes' trees, so a hit costs one lookup
//! there; this is only the order in which they are offered for removal. An entry that was used
//! since the clock came by gets another round (its tree keeps the note), so one scan over a large
//! file does not drive out what is used again and again.
//!
//! What is dirty counts as well (it has no entry, and is bounded by the manager): clean blocks make
//! room for it, so that both together are as large as the cache was configured. In-core inodes have
//! a bound of their own, a seventh of what blocks may take: pages that were blocks once never become
//! memory for inodes.
//!
//! Invariant: every clean block of a volume in memory has at most one entry, and new ones get one
//! when they are loaded or placed.

use std::collections::VecDeque;

use cairn_sys::lock::atomic::{AtomicUsize, Ordering};
use cairn_sys::lock::{Guard, Mutex, Rank};
use cairn_units::{BLOCK_BYTES_U64, Fsid, InodeNo};

use crate::bufs::Bufs;
use crate::cp::TetrisNo;
use crate::tree::{Evicted, Key};
use crate::volume::FileId;

/// In-core inodes that take what a block takes: one is half a KiB with what belongs to it, and 1.3 with
/// the tables of a tree that has several blocks in memory (few have).
const INODES_PER_BLOCK: usize = 6;
/// Of eight parts of the memory for blocks and in-core inodes, those for blocks: what is in core is
/// in a block as well, in a third of the space.
const BLOCK_SHARE: usize = 7;
/// Clean blocks of a file in memory that go with its in-core inode.
pub(crate) const BLOCKS_WITH_INODE_MAX: usize = 16;
// Files with more blocks than that keep their inodes: never so many that their bound is full of them.
const _: () = assert!((BLOCKS_WITH_INODE_MAX + 1) * INODES_PER_BLOCK >= 4 * BLOCK_SHARE);
/// The part of a ring that is offered in one go, at the most.
const BATCH_PART: usize = 8;
/// In-core inodes that a cache of any size may hold.
const INODES_MIN: usize = 128;
/// Clean blocks that dirty ones never drive out: whatever one operation needs has room.
const CLEAN_BLOCKS_MIN: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheEntry {
    Block { fsid: Fsid, file: FileId, key: Key },
    Inode { fsid: Fsid, ino: InodeNo },
}

impl CacheEntry {
    pub fn fsid(&self) -> Fsid {
        match self {
            CacheEntry::Block { fsid, .. } | CacheEntry::Inode { fsid, .. } => *fsid,
        }
    }
    /// Whether `next` is the block behind this one in the same file, and may be looked at with it
    /// ([`Bufs::run_max`]).
    pub fn is_before(&self, next: &Self) -> bool {
        match (self, next) {
            (
                CacheEntry::Block { fsid, file, key },
                CacheEntry::Block { fsid: next_fsid, file: next_file, key: next },
            ) => {
                let behind = Key { index: key.index + 1, ..*key };
                (fsid, file, &behind) == (next_fsid, next_file, next) && Bufs::run_max(*key) > 1
            }
            _ => false,
        }
    }
}

/// The entries of one kind.
#[derive(Default)]
struct Ring {
    entries: VecDeque<CacheEntry>,
    /// Those that must stay until a consistency point is committed; they are not offered.
    parked: Vec<CacheEntry>,
    /// Those that must stay until their tetris is on the disks; they are not offered either.
    placed: VecDeque<(TetrisNo, CacheEntry)>,
    /// Offered one after the other in vain, since the last consistency point or since one could go.
    vain: usize,
}

#[derive(Default)]
struct Clock {
    blocks: Ring,
    inodes: Ring,
}

/// What of each ring one caller may still be offered: no entry twice, so that what it has just loaded is
/// there when it looks again, however small the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sweep {
    blocks: usize,
    inodes: usize,
}

/// What became of the entries of one kind that were offered.
#[derive(Default)]
struct Tally {
    /// Offered again the next time round.
    back: Vec<CacheEntry>,
    /// Not before a consistency point is committed.
    parked: Vec<CacheEntry>,
    /// Of those offered: must stay until fewer blocks of the file are in memory.
    full: usize,
    /// Of those offered: gone, parked, or will go the next time.
    moved: usize,
}

/// What became of entries that were offered.
#[derive(Default)]
pub(crate) struct Outcome {
    blocks: Tally,
    inodes: Tally,
    /// Not in memory any more.
    pub gone: u64,
}

impl Outcome {
    pub fn add(&mut self, entry: CacheEntry, became: Evicted) {
        let tally = match entry {
            CacheEntry::Block { .. } => &mut self.blocks,
            CacheEntry::Inode { .. } => &mut self.inodes,
        };
        match became {
            Evicted::Full => tally.full += 1,
            _ => tally.moved += 1,
        }
        match became {
            Evicted::Busy => tally.parked.push(entry),
            Evicted::Full | Evicted::Used => tally.back.push(entry),
            Evicted::Gone | Evicted::Removed => self.gone += 1,
        }
    }
}

impl Ring {
    fn len(&self) -> usize {
        self.entries.len() + self.parked.len() + self.placed.len()
    }
    /// While there are more entries than `room`, up to `count` of them and as many as `left` allows:
    /// more than are above it, so that not every load searches.
    fn over(&mut self, room: usize, count: usize, left: &mut usize, into: &mut Vec<CacheEntry>) {
        if self.offered() <= room {
            return;
        }
        let over = count.min(room / BATCH_PART).min(self.entries.len()).min(*left);
        *left -= over;
        into.extend(self.entries.drain(..over));
    }
    /// Entries; none while none of them can go.
    fn offered(&self) -> usize {
        if self.vain >= self.entries.len() { 0 } else { self.len() }
    }
    fn settle(&mut self, tally: Tally) {
        self.vain = if tally.moved > 0 { 0 } else { self.vain + tally.full };
        self.entries.extend(tally.back);
        self.parked.extend(tally.parked);
    }
    /// All tetrises before this one are on the disks.
    fn written(&mut self, end: TetrisNo) {
        while let Some((_, entry)) = self.placed.pop_front_if(|(tetris, _)| *tetris < end) {
            self.entries.push_back(entry);
        }
    }
    fn committed(&mut self) {
        self.entries.extend(self.parked.drain(..));
        self.entries.extend(self.placed.drain(..).map(|(_, entry)| entry));
        self.vain = 0;
    }
}

pub(crate) struct Cache {
    blocks_max: usize,
    inodes_max: usize,
    /// Entries that may be offered, for those who only ask whether there are too many.
    blocks: AtomicUsize,
    inodes: AtomicUsize,
    clock: Mutex<Clock>,
}

/// The blocks that a cache of so many bytes has, beside its in-core inodes.
pub fn cache_blocks(bytes: u64) -> usize {
    let blocks = usize::try_from(bytes / BLOCK_BYTES_U64).unwrap_or(usize::MAX);
    blocks / (BLOCK_SHARE + 1) * BLOCK_SHARE
}

impl Cache {
    pub fn new(blocks_max: usize) -> Self {
        let clock = Mutex::new(Rank::CacheClock, Clock::default());
        let inodes_max = (blocks_max / BLOCK_SHARE * INODES_PER_BLOCK).max(INODES_MIN);
        let (blocks, inodes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { blocks_max, inodes_max, blocks, inodes, clock }
    }
    fn lock(&self) -> Guard<'_, Clock> {
        // A push or pop cannot leave it half done.
        self.clock.lock()
    }
    fn note(&self, clock: &Clock) {
        self.blocks.store(clock.blocks.offered(), Ordering::Relaxed);
        self.inodes.store(clock.inodes.offered(), Ordering::Relaxed);
    }
    pub fn push(&self, entry: CacheEntry) {
        let mut clock = self.lock();
        match entry {
            CacheEntry::Block { .. } => clock.blocks.entries.push_back(entry),
            CacheEntry::Inode { .. } => clock.inodes.entries.push_back(entry),
        }
        self.note(&clock);
    }
    /// Adds blocks.
    pub fn push_all(&self, blocks: Vec<CacheEntry>) {
        let mut clock = self.lock();
        clock.blocks.entries.extend(blocks);
        self.note(&clock);
    }
    /// Adds a block that must stay until a tetris is on the disks.
    pub fn park(&self, block: CacheEntry, tetris: TetrisNo) {
        self.park_all(core::iter::once(block), tetris);
    }
    /// Adds blocks that must stay until a tetris is on the disks.
    pub fn park_all(&self, blocks: impl Iterator<Item = CacheEntry>, tetris: TetrisNo) {
        let mut clock = self.lock();
        clock.blocks.placed.extend(blocks.map(|block| (tetris, block)));
        self.note(&clock);
    }
    /// All tetrises before this one are on the disks: their blocks may go.
    pub fn written(&self, end: TetrisNo) {
        let mut clock = self.lock();
        clock.blocks.written(end);
        self.note(&clock);
    }
    /// Clean blocks that there is room for beside so many dirty ones: half of the cache at least.
    fn room(&self, dirty: usize) -> usize {
        self.blocks_max.saturating_sub(dirty).max(self.blocks_max / 2).max(CLEAN_BLOCKS_MIN)
    }
    /// Whether memory is short beside so many dirty blocks, and something may go.
    pub fn is_over(&self, dirty: usize) -> bool {
        self.blocks.load(Ordering::Relaxed) > self.room(dirty)
            || self.inodes.load(Ordering::Relaxed) > self.inodes_max
    }
    /// Once round the clock from now on.
    pub fn sweep(&self) -> Sweep {
        let clock = self.lock();
        Sweep { blocks: clock.blocks.entries.len(), inodes: clock.inodes.entries.len() }
    }
    /// Entries to offer for removal now, at most `count` of each kind; empty when memory is not
    /// short beside so many dirty blocks, or at the end of the sweep. [`Self::settle`] is told what
    /// became of them.
    pub fn over(&self, dirty: usize, count: usize, sweep: &mut Sweep) -> Vec<CacheEntry> {
        let mut clock = self.lock();
        let mut offered = Vec::new();
        clock.blocks.over(self.room(dirty), count, &mut sweep.blocks, &mut offered);
        clock.inodes.over(self.inodes_max, count, &mut sweep.inodes, &mut offered);
        self.note(&clock);
        offered
    }
    /// Takes back what was offered and stays.
    pub fn settle(&self, outcome: Outcome) {
        let mut clock = self.lock();
        clock.blocks.settle(outcome.blocks);
        clock.inodes.settle(outcome.inodes);
        self.note(&clock);
    }
    /// A consistency point was committed: what it wrote may go.
    pub fn committed(&self) {
        let mut clock = self.lock();
        clock.blocks.committed();
        clock.inodes.committed();
        self.note(&clock);
    }
    /// In-core inodes that there are at the most, those beside that must stay.
    pub fn inodes_max(&self) -> usize {
        self.inodes_max
    }
    pub fn resident(&self) -> (usize, usize) {
        let clock = self.lock();
        (clock.blocks.len(), clock.inodes.len())
    }
    pub fn blocks_max(&self) -> usize {
        self.blocks_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(n: u64) -> CacheEntry {
        CacheEntry::Block { fsid: Fsid::new(1), file: FileId::ActiveMap, key: Key::data(n) }
    }

    fn full(blocks: usize) -> Cache {
        let cache = Cache::new(blocks);
        cache.push_all((0..blocks as u64).map(block).collect());
        assert!(!cache.is_over(0));
        cache
    }

    #[test]
    fn who_is_above_the_bound_makes_room_for_those_that_come_after() {
        let cache = full(2048);
        cache.push(block(5000));
        let offered = cache.over(0, 64, &mut cache.sweep());
        assert_eq!(offered, (0..64).map(block).collect::<Vec<_>>());
        let mut outcome = Outcome::default();
        offered.into_iter().for_each(|entry| outcome.add(entry, Evicted::Removed));
        cache.settle(outcome);
        cache.push_all((6000..6063).map(block).collect());
        assert!(!cache.is_over(0), "63 loads that do not search");
        cache.push(block(7000));
        assert!(cache.is_over(0));
    }

    /// What one sweep is offered when nothing may go.
    fn sweep(cache: &Cache) -> Vec<CacheEntry> {
        let (mut sweep, mut offered) = (cache.sweep(), Vec::new());
        loop {
            let some = cache.over(0, 64, &mut sweep);
            if some.is_empty() {
                return offered;
            }
            let mut outcome = Outcome::default();
            some.iter().for_each(|entry| outcome.add(*entry, Evicted::Used));
            cache.settle(outcome);
            offered.extend(some);
        }
    }

    #[test]
    fn what_must_stay_is_counted_and_offered_after_the_commit() {
        let cache = full(256);
        (0..10).for_each(|n| cache.park(block(9000 + n), TetrisNo(n / 5 + 1)));
        assert_eq!(cache.resident().0, 266);
        assert_eq!(
            sweep(&cache),
            (0..256).map(block).collect::<Vec<_>>(),
            "once round, none twice"
        );
        cache.written(TetrisNo(2));
        let first: Vec<_> = (9000..9005).map(block).collect();
        assert_eq!(sweep(&cache)[256..], first, "the tetris of these is on the disks");
        cache.committed();
        assert_eq!(sweep(&cache)[261..], (9005..9010).map(block).collect::<Vec<_>>());
    }
}
