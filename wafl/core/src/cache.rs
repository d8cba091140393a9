//! The buffer cache's clock: which clean blocks and in-core inodes are in memory, and which go
//! when memory is short.
//!
//! Layer: core. The blocks themselves live in their volumes' trees, so a hit costs one lookup
//! there; this is only the order in which they are offered for removal. An entry that was used
//! since the clock came by gets another round (its tree keeps the note), so one scan over a large
//! file does not drive out what is used again and again.
//!
//! Invariant: every clean block of a volume in memory has at most one entry, and new ones get one
//! when they are loaded or placed; dirty blocks are bounded by the manager instead.

use std::collections::VecDeque;

use cairn_sys::lock::{Guard, Mutex, Rank};
use cairn_units::{Fsid, InodeNo};

use crate::tree::Key;
use crate::volume::FileId;

/// In-core inodes that count as one block of the cache.
const INODES_PER_CACHE_BLOCK: usize = 4;

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

pub(crate) struct Cache {
    blocks_max: usize,
    clock: Mutex<Clock>,
}

impl Cache {
    pub fn new(blocks_max: usize) -> Self {
        Self { blocks_max, clock: Mutex::new(Rank::CacheClock, Clock::default()) }
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
    }
    /// Entries to offer for removal now, at most `count`; empty when memory is not short.
    pub fn over(&self, count: usize) -> Vec<CacheEntry> {
        let mut clock = self.lock();
        let used = clock.blocks.len() + clock.inodes.len() / INODES_PER_CACHE_BLOCK;
        let Some(over) = used.checked_sub(self.blocks_max).filter(|o| *o > 0) else {
            return Vec::new();
        };
        let many_inodes = clock.inodes.len() / INODES_PER_CACHE_BLOCK > self.blocks_max / 4;
        let from = if many_inodes || clock.blocks.is_empty() {
            &mut clock.inodes
        } else {
            &mut clock.blocks
        };
        let n = over.min(count).min(from.len());
        from.drain(..n).collect()
    }
    pub fn resident(&self) -> (usize, usize) {
        let clock = self.lock();
        (clock.blocks.len(), clock.inodes.len())
    }
    pub fn blocks_max(&self) -> usize {
        self.blocks_max
    }
}
