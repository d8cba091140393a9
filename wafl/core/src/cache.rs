//! The buffer cache's clock: which clean blocks and in-core inodes are in memory, and which go
//! when memory is short.
//!
//! Layer: core. The blocks themselves live in their volumes' trees, so a hit costs one lookup
//! there; this is only the order in which they are offered for removal. An entry that was used
//! since the clock came by gets another round (its tree keeps the note), so one scan over a large
//! file does not drive out what is used again and again.
//!
//! What is dirty counts as well (it has no entry, and is bounded by the manager): clean blocks make
//! room for it, so that both together are as large as the cache was configured.
//!
//! Invariant: every clean block of a volume in memory has at most one entry, and new ones get one
//! when they are loaded or placed.

use std::collections::VecDeque;

use cairn_sys::lock::atomic::{AtomicUsize, Ordering};
use cairn_sys::lock::{Guard, Mutex, Rank};
use cairn_units::{Fsid, InodeNo};

use crate::tree::Key;
use crate::volume::FileId;

/// In-core inodes that count as one block of the cache: one takes 1 KiB, with the tables of a tree
/// that has a block in memory up to 2.5.
const INODES_PER_CACHE_BLOCK: usize = 2;
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

#[derive(Default)]
struct Clock {
    blocks: VecDeque<CacheEntry>,
    inodes: VecDeque<CacheEntry>,
}

impl Clock {
    fn used(&self) -> usize {
        self.blocks.len() + self.inodes.len() / INODES_PER_CACHE_BLOCK
    }
}

pub(crate) struct Cache {
    blocks_max: usize,
    /// As the clock says, for those who only ask whether there is too much.
    used: AtomicUsize,
    clock: Mutex<Clock>,
}

impl Cache {
    pub fn new(blocks_max: usize) -> Self {
        let clock = Mutex::new(Rank::CacheClock, Clock::default());
        Self { blocks_max, used: AtomicUsize::new(0), clock }
    }
    fn lock(&self) -> Guard<'_, Clock> {
        // A push or pop cannot leave it half done.
        self.clock.lock()
    }
    pub fn push(&self, entry: CacheEntry) {
        let mut clock = self.lock();
        match entry {
            CacheEntry::Block { .. } => clock.blocks.push_back(entry),
            CacheEntry::Inode { .. } => clock.inodes.push_back(entry),
        }
        self.used.store(clock.used(), Ordering::Relaxed);
    }
    /// Clean blocks that there is room for beside so many dirty ones: half of the cache at least.
    fn room(&self, dirty: usize) -> usize {
        self.blocks_max.saturating_sub(dirty).max(self.blocks_max / 2).max(CLEAN_BLOCKS_MIN)
    }
    /// Whether memory is short beside so many dirty blocks.
    pub fn is_over(&self, dirty: usize) -> bool {
        self.used.load(Ordering::Relaxed) > self.room(dirty)
    }
    /// Entries to offer for removal now, at most `count`; empty when memory is not short beside so
    /// many dirty blocks.
    pub fn over(&self, dirty: usize, count: usize) -> Vec<CacheEntry> {
        let mut clock = self.lock();
        let over = clock.used().saturating_sub(self.room(dirty));
        if over == 0 {
            return Vec::new();
        }
        let many_inodes = clock.inodes.len() / INODES_PER_CACHE_BLOCK > self.blocks_max / 4;
        let from = if many_inodes || clock.blocks.is_empty() {
            &mut clock.inodes
        } else {
            &mut clock.blocks
        };
        let n = over.min(count).min(from.len());
        let offered = from.drain(..n).collect();
        self.used.store(clock.used(), Ordering::Relaxed);
        offered
    }
    pub fn resident(&self) -> (usize, usize) {
        let clock = self.lock();
        (clock.blocks.len(), clock.inodes.len())
    }
    pub fn blocks_max(&self) -> usize {
        self.blocks_max
    }
}
