//! Reading a directory: descent, runs of equal hashes, lookup, listing.
//!
//! Layer: inside `cairn-wafl-dir`, above the node layout. Changes nothing. Every function may
//! stop at a block that is not in memory ([`DirFault::Miss`]).

use core::ops::ControlFlow;

use cairn_sys::{Block, mutant};
use cairn_units::{Blocks, Cookie};

use crate::keys::{DirKeys, Folded, Key, Keying};
use crate::node::{
    Content, DirHeader, Entry, LEVEL_LEAF, Node, NodeNo, new_header, new_root, open_header,
    put_header,
};
use crate::{
    Damage, DirError, DirFault, DirId, DirRead, Found, FoundName, HASH_RUN_MAX, HEIGHT_MAX, Listed,
    check_name,
};

/// A directory to look at or to plan changes of.
pub struct Dir<'v, V> {
    pub(crate) view: &'v V,
    pub(crate) id: DirId,
    pub(crate) keys: DirKeys,
}

/// How a listing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListEnd {
    /// The visitor had enough.
    Stopped,
    /// There are no more entries.
    End,
}

/// One node on the way from the root, and the slot that was taken in it.
pub(crate) struct Step {
    pub(crate) node: Node,
    pub(crate) index: usize,
}

/// The way from the root to a place in a leaf; the last step is the leaf.
pub(crate) struct Path {
    pub(crate) steps: Vec<Step>,
}

impl Path {
    /// The first key behind the range of the leaf; `None` at the right edge.
    fn upper(&self) -> Result<Option<Key>, DirError> {
        for step in self.steps.iter().rev() {
            if step.node.level() != LEVEL_LEAF
                && let Some(next) = step.node.child(step.index + 1)?
            {
                return Ok(Some(next.key));
            }
        }
        Ok(None)
    }
    fn leaf(&self) -> Result<(&Node, usize), DirError> {
        match self.steps.last() {
            Some(step) => Ok((&step.node, step.index)),
            None => Err(NodeNo::ROOT.damaged(Damage::Layout)),
        }
    }
}

/// Where the walk of a run ended.
pub(crate) struct RunEnd {
    /// Whether the path still leads to the leaf where the run begins.
    pub(crate) same_leaf: bool,
}

impl<'v, V: DirRead> Dir<'v, V> {
    /// The directory `id` in the blocks of `view`, hashed with `keys`.
    pub fn new(view: &'v V, id: DirId, keys: DirKeys) -> Self {
        Self { view, id, keys }
    }

    /// Number of entries and height in levels of nodes.
    ///
    /// # Errors
    /// A miss, or damage to block 0.
    pub fn size(&self) -> Result<(u64, usize), DirFault<V::Miss>> {
        let (header, root) = self.open()?;
        Ok((header.entries.get(), usize::from(root.level()) + 1))
    }

    /// Blocks of the directory file that are in use or free for use again.
    ///
    /// # Errors
    /// A miss, or damage to block 0.
    pub fn file_blocks(&self) -> Result<Blocks, DirFault<V::Miss>> {
        let (header, _) = self.open()?;
        Ok(Blocks::new(u64::from(header.next_unused.get())))
    }

    /// Finds `name` by its exact bytes.
    ///
    /// # Errors
    /// A miss or damage. A name that cannot be stored is simply not there.
    pub fn lookup(&self, name: &[u8]) -> Result<Option<Found>, DirFault<V::Miss>> {
        if check_name(name).is_err() {
            return Ok(None);
        }
        let (header, root) = self.open()?;
        let first = self.keys.run_of(name, header.keying());
        let mut path = self.descend(root, first)?;
        let mut found = None;
        self.walk_run(&mut path, first, |entry, _| {
            if entry.name == name {
                found = Some(entry.found());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Finds a name that equals `name` but for case, and gives its exact bytes. The exact name is
    /// preferred; else it is the first in the order of the listing.
    ///
    /// # Errors
    /// A miss or damage.
    pub fn lookup_folded(&self, name: &[u8]) -> Result<Option<FoundName>, DirFault<V::Miss>> {
        if check_name(name).is_err() {
            return Ok(None);
        }
        let (header, root) = self.open()?;
        let first = self.keys.run_of(name, header.keying());
        let folded = Folded::of(name);
        let mut path = self.descend(root, first)?;
        let mut found = None;
        self.walk_run(&mut path, first, |entry, _| {
            if entry.name == name {
                found = Some(FoundName { found: entry.found(), name: entry.name.to_vec() });
                return ControlFlow::Break(());
            }
            if found.is_none() && Folded::of(entry.name).bytes() == folded.bytes() {
                found = Some(FoundName { found: entry.found(), name: entry.name.to_vec() });
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Visits the entries behind `after` in order of their cookies, each once; `Cookie(0)` begins
    /// at the first. `after` need not exist (any more).
    ///
    /// # Errors
    /// A miss or damage. Entries visited before the miss are not visited again when the caller
    /// goes on behind the cookie of the last one.
    pub fn list(
        &self,
        after: Cookie,
        mut visit: impl FnMut(Listed<'_>) -> ControlFlow<()>,
    ) -> Result<ListEnd, DirFault<V::Miss>> {
        let Some(from) = after.get().checked_add(1) else { return Ok(ListEnd::End) };
        let (_, root) = self.open()?;
        let mut path = self.descend(root, Key(from))?;
        let mut least = from;
        let mut skip = usize::from(from > 1 && mutant("cookie-skips-a-name"));
        loop {
            let (leaf, start) = path.leaf()?;
            let start = start + core::mem::take(&mut skip);
            for index in start..leaf.count() {
                let entry = leaf.entry(index)?;
                if entry.key.0 < least || entry.key.0 == u64::MAX {
                    return Err(leaf.at.damaged(Damage::KeyOrder).into());
                }
                least = entry.key.0 + 1;
                if visit(Listed { name: entry.name, found: entry.found() }).is_break() {
                    return Ok(ListEnd::Stopped);
                }
            }
            if !self.next_leaf(&mut path)? || mutant("listing-ends-at-leaf") {
                return Ok(ListEnd::End);
            }
        }
    }

    /// Reads block 0.
    pub(crate) fn open(&self) -> Result<(DirHeader, Node), DirFault<V::Miss>> {
        let block = self.block(NodeNo::ROOT)?;
        let header = open_header(&block, self.id, self.keys.check_value())?;
        Ok((header, Node::open(NodeNo::ROOT, block, self.id, None)?))
    }

    pub(crate) fn block(&self, at: NodeNo) -> Result<Block, DirFault<V::Miss>> {
        self.view.block(at.fbn()).map_err(DirFault::Miss)
    }

    /// Reads the child at `index` of an inner node.
    pub(crate) fn child(&self, of: &Node, index: usize) -> Result<Node, DirFault<V::Miss>> {
        let child = of.child(index)?.ok_or_else(|| of.at.damaged(Damage::Layout))?;
        if child.node == NodeNo::ROOT {
            return Err(of.at.damaged(Damage::Pointer).into());
        }
        let level = of.level().checked_sub(1).ok_or_else(|| of.at.damaged(Damage::WrongLevel))?;
        Ok(Node::open(child.node, self.block(child.node)?, self.id, Some(level))?)
    }

    /// The way to the first entry whose key is at least `key`, within the leaf that covers `key`
    /// (one past its last entry, perhaps).
    pub(crate) fn descend(&self, root: Node, key: Key) -> Result<Path, DirFault<V::Miss>> {
        let mut steps = Vec::with_capacity(HEIGHT_MAX);
        let mut node = root;
        while node.level() != LEVEL_LEAF {
            let index = node.child_index(key)?;
            let child = self.child(&node, index)?;
            steps.push(Step { node, index });
            node = child;
        }
        let index = node.lower_bound(key)?;
        steps.push(Step { node, index });
        Ok(Path { steps })
    }

    /// Moves to the first entry of the next leaf; `false` at the end.
    fn next_leaf(&self, path: &mut Path) -> Result<bool, DirFault<V::Miss>> {
        let Some(at) = next_turn(path)? else { return Ok(false) };
        path.steps.truncate(at + 1);
        path.steps[at].index += 1;
        while let Some(step) = path.steps.last()
            && step.node.level() != LEVEL_LEAF
        {
            let node = self.child(&step.node, step.index)?;
            path.steps.push(Step { node, index: 0 });
        }
        Ok(true)
    }

    /// Visits the entries of the run that begins at `first`, in order, with the index of each in
    /// its leaf. `path` leads to `first`, and at the end to the leaf of the last visited entry.
    pub(crate) fn walk_run(
        &self,
        path: &mut Path,
        first: Key,
        mut visit: impl FnMut(&Entry<'_>, usize) -> ControlFlow<()>,
    ) -> Result<RunEnd, DirFault<V::Miss>> {
        let last = first.run_last();
        let mut end = RunEnd { same_leaf: true };
        let mut seen = 0;
        loop {
            let (leaf, start) = path.leaf()?;
            for index in start..leaf.count() {
                let entry = leaf.entry(index)?;
                if entry.key > last {
                    return Ok(end);
                }
                seen += 1;
                if seen > HASH_RUN_MAX || entry.key < first {
                    let what = if entry.key < first { Damage::KeyOrder } else { Damage::LongRun };
                    return Err(leaf.at.damaged(what).into());
                }
                if visit(&entry, index).is_break() {
                    if let Some(step) = path.steps.last_mut() {
                        step.index = index;
                    }
                    return Ok(end);
                }
            }
            if path.upper()?.is_none_or(|upper| upper > last) || !self.next_leaf(path)? {
                return Ok(end);
            }
            end.same_leaf = false;
        }
    }
}

/// Block 0 of a directory without entries.
pub(crate) fn empty(id: DirId, keys: &DirKeys, keying: Keying) -> Block {
    let content = Content::Leaf(Vec::new());
    let mut block = new_root(&Block::zero(), LEVEL_LEAF, id, &content);
    put_header(&mut block, &new_header(id, keys.check_value(), keying));
    block
}

impl Dir<'_, ()> {
    /// Block 0 of a directory without entries; its file is one block long.
    pub fn empty(id: DirId, keys: &DirKeys) -> Block {
        empty(id, keys, Keying::Grouped)
    }
}

/// The deepest inner step that has another child to the right.
fn next_turn(path: &Path) -> Result<Option<usize>, DirError> {
    for (at, step) in path.steps.iter().enumerate().rev() {
        if step.node.level() != LEVEL_LEAF && step.index + 1 < step.node.count() {
            return Ok(Some(at));
        }
    }
    Ok(None)
}
