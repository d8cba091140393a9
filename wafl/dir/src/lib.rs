//! Directories: a B+tree in the blocks of a directory file.
//!
//! Layer: above `cairn-units` and the block buffers, below the storage manager's core. Pure and
//! synchronous: no I/O, no clock, no chance. It sees a directory as numbered blocks ([`DirRead`],
//! [`DirWrite`]) and must not know inodes, volumes or the cache.
//!
//! # How it is used
//! ```text
//! Dir::empty ──► block 0 of a new directory
//! Dir::new ──► lookup · lookup_folded · list            (reads; may miss, then load and retry)
//!         └──► plan_insert · plan_remove · plan_replace ──► Plan ──► Plan::apply ──► DirWrite::put
//! ```
//! A plan does all reads of an operation and holds the changed blocks; applying it reads nothing
//! and cannot fail. A plan is valid until the directory changes: plan and apply under one lock.
//! Several changes of one directory at once (rename within it) are planned one after the other on
//! an [`Overlay`].
//!
//! # Invariants
//! - Block 0 holds the [header](node::DirHeader) and the root node. The root never moves.
//! - A key is `hash47(fold(name)) << 16 | disambiguator`; names that a counter tells apart share the
//!   upper 27 bits of the hash and so lie together (decision 0005). It is unique in its directory,
//!   kept on disk, stable for the life of the entry, at least 65536 and below 2^63; it is the cookie.
//! - Every key of child `i` lies in `[key i, key i+1)` of its parent; levels fall by one per step,
//!   so that even a damaged tree has no cycle.
//! - Every node but the root is at least about a quarter full; empty nodes are chained in the free
//!   list and used again; an empty directory is one block.
//! - A change writes at most [`CHANGE_BLOCKS_MAX`] blocks, [`change_blocks_max`] for a height.
//! - Damaged blocks give [`DirError::Damaged`]; nothing here panics for what a block holds.
//!
//! Source: B+tree with prefix-free hashed keys (the idea of hashed directory trees in ext4 and
//! XFS); SipHash-1-3 (Aumasson, Bernstein 2012). Format: `docs/formats-wafl-dir.md`.

mod change;
mod check;
mod keys;
mod node;
mod salvage;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use cairn_sys::Block;
use cairn_units::{Blocks, Cookie, Fbn, Generation, InodeNo, NAME_BYTES_MAX};

pub use change::{NewEntry, Plan};
pub use check::{Checker, FINDINGS_MAX, Finding, Progress};
pub use keys::{DirKeys, FOLD_VERSION};
pub use salvage::{Saved, rebuild, salvage_leaf};
pub use tree::{Dir, ListEnd};

/// Levels of nodes that a directory may have, the root included.
pub const HEIGHT_MAX: usize = 8;
/// Blocks that one change of a directory of [`HEIGHT_MAX`] levels may write.
pub const CHANGE_BLOCKS_MAX: usize = 2 * HEIGHT_MAX;
/// Entries that may share one hash: names that differ only in case, and now and then two others.
pub const HASH_RUN_MAX: usize = 4096;

/// Blocks that one change of a directory with `height` levels of nodes may write: block 0, and
/// two nodes on each level below the root (one level more when the root splits).
pub const fn change_blocks_max(height: usize) -> usize {
    2 * height + 1
}
const _: () = assert!(change_blocks_max(HEIGHT_MAX - 1) <= CHANGE_BLOCKS_MAX);
const _: () = assert!(HASH_RUN_MAX <= 1 << keys::DISAMBIGUATOR_BITS);

/// Which directory: written into each of its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirId {
    /// Its inode number.
    pub inode: InodeNo,
    /// The generation of that number.
    pub generation: Generation,
}

/// Kind of file that an entry names, opaque here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryKind(u8);

impl EntryKind {
    /// Wraps the storage manager's number.
    pub const fn new(raw: u8) -> Self {
        Self(raw)
    }
    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// What an entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Place of the entry in a listing.
    pub cookie: Cookie,
    /// The file.
    pub inode: InodeNo,
    /// Generation of its inode number.
    pub generation: Generation,
    /// Its kind.
    pub kind: EntryKind,
}

/// An entry that was found by a name which may differ from its own in case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundName {
    /// What it leads to.
    pub found: Found,
    /// Its exact bytes.
    pub name: Vec<u8>,
}

/// One entry of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// Its exact bytes.
    pub name: &'a [u8],
    /// What it leads to.
    pub found: Found,
}

/// The blocks of one directory file, as they are in memory.
pub trait DirRead {
    /// What is needed to load a block that is not in memory.
    type Miss;
    /// The block at `at`.
    ///
    /// # Errors
    /// The block is not in memory: load it and run the whole operation again.
    fn block(&self, at: Fbn) -> Result<Block, Self::Miss>;
}

/// Takes the blocks that a change wrote.
pub trait DirWrite {
    /// Block `at` of the directory file is `block` from now on; `at` may lie past the end.
    fn put(&mut self, at: Fbn, block: Block);
}

/// A directory's blocks with changes on top that are not applied yet: for several changes of one
/// directory that must become visible together.
pub struct Overlay<'v, V> {
    base: &'v V,
    writes: BTreeMap<Fbn, Block>,
}

impl<'v, V: DirRead> Overlay<'v, V> {
    /// No changes on top of `base` yet.
    pub fn new(base: &'v V) -> Self {
        Self { base, writes: BTreeMap::new() }
    }
    /// Blocks changed so far.
    pub fn len(&self) -> usize {
        self.writes.len()
    }
    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
    /// The changed blocks, by place.
    pub fn into_writes(self) -> BTreeMap<Fbn, Block> {
        self.writes
    }
}

impl<V: DirRead> DirRead for Overlay<'_, V> {
    type Miss = V::Miss;
    fn block(&self, at: Fbn) -> Result<Block, V::Miss> {
        match self.writes.get(&at) {
            Some(block) => Ok(block.clone()),
            None => self.base.block(at),
        }
    }
}

impl<V> DirWrite for Overlay<'_, V> {
    fn put(&mut self, at: Fbn, block: Block) {
        self.writes.insert(at, block);
    }
}

/// What is wrong with a block of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// Block 0 is not a directory header.
    HeaderMagic,
    /// The directory was written by a newer program, or its names are folded in another way.
    Version,
    /// The block belongs to another directory.
    WrongDirectory,
    /// The directory was hashed with another key.
    WrongHashKey,
    /// The block is not a node.
    NodeMagic,
    /// The block is a node that belongs elsewhere in the file.
    WrongPlace,
    /// The node is of another level than its parent says.
    WrongLevel,
    /// Counts or offsets in the node do not fit its size.
    Layout,
    /// A name is empty, too long, or holds '/' or NUL.
    Name,
    /// Keys are out of order or outside the range of the parent.
    KeyOrder,
    /// A child pointer or the free list points outside the directory.
    Pointer,
    /// The free list holds a node that is not free.
    FreeList,
    /// The number of entries or free nodes in the header cannot be right.
    Count,
    /// More entries share one hash than may.
    LongRun,
}

/// Why an operation on a directory was refused or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirError {
    /// The name is taken.
    #[error("the name exists: {0:?}")]
    Exists(Found),
    /// There is no such name.
    #[error("no such name")]
    NotFound,
    /// Not a name: empty, too long, "." or "..", or it holds '/' or NUL.
    #[error("not a file name ({bytes} bytes)")]
    BadName {
        /// Its length.
        bytes: usize,
    },
    /// As many names as may differ only in case exist already.
    #[error("{run} names differ only in case")]
    RunFull {
        /// How many there are.
        run: usize,
    },
    /// The directory has as many blocks or levels as it may have.
    #[error("the directory is full ({blocks} blocks)")]
    Full {
        /// Blocks in use.
        blocks: Blocks,
    },
    /// A block is damaged.
    #[error("directory block {fbn:?} is damaged: {what:?}")]
    Damaged {
        /// Which block.
        fbn: Fbn,
        /// What is wrong.
        what: Damage,
    },
}

/// Why an operation did not give a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirFault<M> {
    /// A block is not in memory: load it and run the whole operation again.
    Miss(M),
    /// The operation was refused or failed.
    Error(DirError),
}

impl<M> From<DirError> for DirFault<M> {
    fn from(error: DirError) -> Self {
        Self::Error(error)
    }
}

impl<M> DirFault<M> {
    /// Separates the miss from the error, for callers that treat them on different paths.
    ///
    /// # Errors
    /// The miss.
    pub fn split<T>(result: Result<T, Self>) -> Result<Result<T, DirError>, M> {
        match result {
            Ok(value) => Ok(Ok(value)),
            Err(Self::Error(error)) => Ok(Err(error)),
            Err(Self::Miss(miss)) => Err(miss),
        }
    }
}

/// Whether `name` may be stored. "." and ".." are the caller's.
///
/// # Errors
/// [`DirError::BadName`].
pub fn check_name(name: &[u8]) -> Result<(), DirError> {
    // Without an early end, so that many bytes are compared at once.
    let forbidden = name.iter().fold(false, |bad, b| bad | matches!(b, 0 | b'/'));
    let bad = forbidden
        || name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name == b"."
        || name == b"..";
    if bad { Err(DirError::BadName { bytes: name.len() }) } else { Ok(()) }
}
