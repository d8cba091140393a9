//! What can be saved of a damaged directory: the entries of every leaf that can still be read, and
//! a new directory made of them.
//!
//! Layer: inside `cairn-wafl-dir`, above the node layout. Pure.

use std::collections::BTreeMap;
use std::convert::Infallible;

use cairn_sys::Block;
use cairn_units::{Fbn, Generation, InodeNo};

use crate::keys::DirKeys;
use crate::node::{Content, LEVEL_LEAF, Node, NodeNo};
use crate::tree::Dir;
use crate::{DirId, DirRead, DirWrite, EntryKind, NewEntry};

/// An entry that was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its exact bytes.
    pub name: Vec<u8>,
    /// The file.
    pub inode: InodeNo,
    /// Generation of its inode number.
    pub generation: Generation,
    /// Its kind.
    pub kind: EntryKind,
}

/// Entries of the leaf in block `at` of the directory `id`; none when the block is no leaf of it
/// or is damaged.
pub fn salvage_leaf(at: Fbn, block: &Block, id: DirId) -> Vec<Saved> {
    let Ok(number) = u32::try_from(at.get()) else { return Vec::new() };
    let Ok(node) = Node::open(NodeNo(number), block.clone(), id, Some(LEVEL_LEAF)) else {
        return Vec::new();
    };
    let Ok(Content::Leaf(entries)) = node.content() else { return Vec::new() };
    let saved = |e: &crate::node::Entry<'_>| {
        let found = e.found();
        Saved {
            name: e.name.to_vec(),
            inode: found.inode,
            generation: found.generation,
            kind: found.kind,
        }
    };
    entries.iter().map(saved).collect()
}

/// A directory in memory.
struct Fresh(BTreeMap<Fbn, Block>);

impl DirRead for Fresh {
    type Miss = Infallible;
    fn block(&self, at: Fbn) -> Result<Block, Infallible> {
        Ok(self.0.get(&at).cloned().unwrap_or_else(Block::zero))
    }
}

impl DirWrite for Fresh {
    fn put(&mut self, at: Fbn, block: Block) {
        self.0.insert(at, block);
    }
}

/// The blocks of a new directory `id` with these entries; of two with one name the first counts.
/// Names that cannot be stored are left out.
pub fn rebuild(id: DirId, keys: DirKeys, entries: &[Saved]) -> BTreeMap<Fbn, Block> {
    let mut fresh = Fresh(BTreeMap::new());
    fresh.put(NodeNo::ROOT.fbn(), Dir::empty(id, &keys));
    for e in entries {
        let new = NewEntry { inode: e.inode, generation: e.generation, kind: e.kind };
        let plan = Dir::new(&fresh, id, keys).plan_insert(&e.name, new);
        if let Ok(plan) = plan {
            plan.apply(&mut fresh);
        }
    }
    fresh.0
}
