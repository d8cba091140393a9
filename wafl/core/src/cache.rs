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

use crate::tree::Key;
use crate::volume::FileId;

/// In-core inodes that take what a block takes: one is 1 KiB, with the tables of a tree that has a
/// block in memory up to 2.5.
const INODES_PER_BLOCK: usize = 2;
/// Of eight parts of the memory for blocks and in-core inodes, those for blocks: what is in core is
/// in a block as well, in a third of the space.
const BLOCK_SHARE: usize = 7;
/// Clean blocks of a file in memory that go with its in-core inode.
pub(crate) const BLOCKS_WITH_INODE_MAX: usize = 16;
// Files with more blocks than that keep their inodes: never so many that a ring full of them is taken
// for one that waits for a consistency point ([`Ring::offered`]).
const _: () = assert!((BLOCKS_WITH_INODE_MAX + 1) * INODES_PER_BLOCK >= VAIN_PART * BLOCK_SHARE);
/// The part of a ring that is offered in vain before the next consistency point is waited for.
const VAIN_PART: usize = 4;
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
}

/// The entries of one kind.
#[derive(Default)]
struct Ring {
    entries: VecDeque<CacheEntry>,
    /// Offered one after the other in vain, since the last consistency point or since one could go.
    vain: usize,
}

#[derive(Default)]
struct Clock {
    blocks: Ring,
    inodes: Ring,
}

/// What became of entries that were offered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Must stay: until a consistency point is committed, or until fewer blocks of the file are in
    /// memory.
    pub pinned: usize,
    /// Gone, or will go the next time.
    pub moved: usize,
}

impl Ring {
    /// Up to `count` entries of those above `room`. Until the next consistency point is committed
    /// what it places or has not placed yet must stay: nobody searches there all the time.
    fn over(&mut self, room: usize, count: usize, into: &mut Vec<CacheEntry>) {
        let over = self.offered().saturating_sub(room).min(count);
        into.extend(self.entries.drain(..over));
    }
    /// Entries; none when enough were offered in vain.
    fn offered(&self) -> usize {
        if self.vain > self.entries.len() / VAIN_PART { 0 } else { self.entries.len() }
    }
    fn tally(&mut self, tally: Tally) {
        self.vain = if tally.moved > 0 { 0 } else { self.vain + tally.pinned };
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
    /// Clean blocks that there is room for beside so many dirty ones: half of the cache at least.
    fn room(&self, dirty: usize) -> usize {
        self.blocks_max.saturating_sub(dirty).max(self.blocks_max / 2).max(CLEAN_BLOCKS_MIN)
    }
    /// Whether memory is short beside so many dirty blocks, and something may go.
    pub fn is_over(&self, dirty: usize) -> bool {
        self.blocks.load(Ordering::Relaxed) > self.room(dirty)
            || self.inodes.load(Ordering::Relaxed) > self.inodes_max
    }
    /// Entries to offer for removal now, at most `count` of each kind; empty when memory is not
    /// short beside so many dirty blocks. [`Self::tally`] is told what became of them.
    pub fn over(&self, dirty: usize, count: usize) -> Vec<CacheEntry> {
        let mut clock = self.lock();
        let mut offered = Vec::new();
        clock.blocks.over(self.room(dirty), count, &mut offered);
        clock.inodes.over(self.inodes_max, count, &mut offered);
        self.note(&clock);
        offered
    }
    /// What became of the blocks and of the inodes that were offered.
    pub fn tally(&self, blocks: Tally, inodes: Tally) {
        let mut clock = self.lock();
        clock.blocks.tally(blocks);
        clock.inodes.tally(inodes);
        self.note(&clock);
    }
    /// A consistency point was committed: what it wrote may go.
    pub fn committed(&self) {
        let mut clock = self.lock();
        (clock.blocks.vain, clock.inodes.vain) = (0, 0);
        self.note(&clock);
    }
    /// In-core inodes that there are at the most, those beside that must stay.
    pub fn inodes_max(&self) -> usize {
        self.inodes_max
    }
    pub fn resident(&self) -> (usize, usize) {
        let clock = self.lock();
        (clock.blocks.entries.len(), clock.inodes.entries.len())
    }
    pub fn blocks_max(&self) -> usize {
        self.blocks_max
    }
}
