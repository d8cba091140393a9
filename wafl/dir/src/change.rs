//! Planning changes: insert, remove, replace; splits, merges and the free list.
//!
//! Layer: inside `cairn-wafl-dir`, above reading. A plan reads all it needs (and may miss), then
//! holds whole new blocks; applying it cannot fail. Nodes are checked in full before they are
//! changed, so that damage is reported and not spread.
//!
//! A node that falls below a quarter of its room is merged with a neighbour when both fit into
//! one, else the two share evenly. So every node but the root stays about a quarter full at
//! least, and a change that follows a split or merge has far to go to the next one.

use core::ops::ControlFlow;
use std::collections::BTreeMap;

use cairn_sys::Block;
use cairn_units::{Blocks, Cookie, Fbn, Generation, InodeNo};

use crate::keys::{Key, Keying};
use crate::node::{
    Child, Content, DirHeader, Entry, LEVEL_FREE, LEVEL_LEAF, Node, NodeNo, free_node, new_header,
    new_node, new_root, put_header,
};
use crate::tree::{Dir, Path, Step, empty};
use crate::{
    Damage, DirError, DirFault, DirRead, DirWrite, EntryKind, Found, HASH_RUN_MAX, HEIGHT_MAX,
    check_name,
};

/// A node whose content takes less than this part of its room is merged or filled up.
const UNDERFLOW_DIVISOR: usize = 4;

/// What a new entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// The file.
    pub inode: InodeNo,
    /// Generation of its inode number.
    pub generation: Generation,
    /// Its kind.
    pub kind: EntryKind,
}

/// A change that is ready to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    writes: Vec<(Fbn, Block)>,
    cookie: Cookie,
    previous: Option<Found>,
    file_blocks: Blocks,
    shrinks: bool,
    entries: u64,
}

impl Plan {
    /// Makes the change. Reads nothing, cannot fail.
    pub fn apply(self, to: &mut impl DirWrite) {
        for (at, block) in self.writes {
            to.put(at, block);
        }
    }
    /// Blocks that it writes; at most [`crate::change_blocks_max`].
    pub fn blocks(&self) -> usize {
        self.writes.len()
    }
    /// Which blocks it writes.
    pub fn places(&self) -> impl Iterator<Item = Fbn> {
        self.writes.iter().map(|(at, _)| *at)
    }
    /// Cookie of the entry that is added, changed or removed.
    pub fn cookie(&self) -> Cookie {
        self.cookie
    }
    /// What the name led to before; `None` for an insert.
    pub fn previous(&self) -> Option<Found> {
        self.previous
    }
    /// Length of the directory file after the change.
    pub fn file_blocks(&self) -> Blocks {
        self.file_blocks
    }
    /// Whether the change frees all blocks from [`Self::file_blocks`] on (the last entry went).
    /// They may be cut off then or later; what they hold is never read again.
    pub fn shrinks(&self) -> bool {
        self.shrinks
    }
    /// Entries in the directory after the change.
    pub fn entries(&self) -> u64 {
        self.entries
    }
}

impl<V: DirRead> Dir<'_, V> {
    /// Plans to add `name`.
    ///
    /// # Errors
    /// A miss; the name exists or is none; too many names that differ only in case; the directory
    /// is full; damage.
    pub fn plan_insert(&self, name: &[u8], new: NewEntry) -> Result<Plan, DirFault<V::Miss>> {
        check_name(name)?;
        let (header, root) = self.open()?;
        let first = self.keys.run_of(name, header.keying());
        let mut path = self.descend(root.clone(), first)?;
        let (mut run, mut free, mut exists) = (0, first, None);
        let end = self.walk_run(&mut path, first, |entry, _| {
            run += 1;
            if entry.name == name {
                exists = Some(entry.found());
                return ControlFlow::Break(());
            }
            if entry.key == free {
                free = Key(free.0 + 1);
            }
            ControlFlow::Continue(())
        })?;
        if let Some(found) = exists {
            return Err(DirError::Exists(found).into());
        }
        if run >= HASH_RUN_MAX {
            return Err(DirError::RunFull { run }.into());
        }
        if !end.same_leaf {
            path = self.descend(root.clone(), free)?;
        }
        let NewEntry { inode, generation, kind } = new;
        let entry = Entry { key: free, inode, generation, kind, name };
        let mut draft = Draft::new(self, header, &root);
        let entries = header.entries.get().checked_add(1);
        let entries = entries.ok_or_else(|| NodeNo::ROOT.damaged(Damage::Count))?;
        draft.header.entries = entries.into();
        draft.insert(path, &entry)?;
        Ok(draft.finish(free.cookie(), None))
    }

    /// Plans to remove `name`.
    ///
    /// # Errors
    /// A miss; there is no such name; damage.
    pub fn plan_remove(&self, name: &[u8]) -> Result<Plan, DirFault<V::Miss>> {
        let (header, root) = self.open()?;
        let (mut path, found) = self.path_to(&header, &root, name)?;
        let mut draft = Draft::new(self, header, &root);
        let entries = header.entries.get().checked_sub(1);
        let entries = entries.ok_or_else(|| NodeNo::ROOT.damaged(Damage::Count))?;
        draft.header.entries = entries.into();
        let Some(leaf) = path.steps.pop() else {
            return Err(NodeNo::ROOT.damaged(Damage::Layout).into());
        };
        if entries == 0 {
            if leaf.node.at != NodeNo::ROOT || leaf.node.count() != 1 {
                return Err(NodeNo::ROOT.damaged(Damage::Count).into());
            }
            draft.reset();
        } else {
            let left = leaf.node.without_entry(leaf.index)?;
            draft.shrink(path.steps, leaf.node.changed(left)?)?;
        }
        Ok(draft.finish(found.cookie, Some(found)))
    }

    /// Plans to let `name` lead to another file. The entry keeps its bytes and its cookie.
    ///
    /// # Errors
    /// A miss; there is no such name; damage.
    pub fn plan_replace(&self, name: &[u8], new: NewEntry) -> Result<Plan, DirFault<V::Miss>> {
        let (header, root) = self.open()?;
        let (path, found) = self.path_to(&header, &root, name)?;
        let Some(Step { node, index }) = path.steps.last() else {
            return Err(NodeNo::ROOT.damaged(Damage::Layout).into());
        };
        let NewEntry { inode, generation, kind } = new;
        let entry = Entry { inode, generation, kind, ..node.entry(*index)? };
        let block = node.with_target(*index, &entry)?;
        Ok(Plan {
            writes: vec![(node.at.fbn(), block)],
            cookie: found.cookie,
            previous: Some(found),
            file_blocks: Blocks::new(u64::from(header.next_unused.get())),
            shrinks: false,
            entries: header.entries.get(),
        })
    }

    /// The way to the entry `name`.
    fn path_to(
        &self,
        header: &DirHeader,
        root: &Node,
        name: &[u8],
    ) -> Result<(Path, Found), DirFault<V::Miss>> {
        check_name(name).map_err(|_| DirError::NotFound)?;
        let first = self.keys.run_of(name, header.keying());
        let mut path = self.descend(root.clone(), first)?;
        let mut found = None;
        self.walk_run(&mut path, first, |entry, _| {
            if entry.name == name {
                found = Some(entry.found());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        match found {
            Some(found) => Ok((path, found)),
            None => Err(DirError::NotFound.into()),
        }
    }
}

/// A change in the making.
struct Draft<'d, 'v, V> {
    dir: &'d Dir<'v, V>,
    header: DirHeader,
    root: Block,
    writes: BTreeMap<NodeNo, Block>,
    shrinks: bool,
}

impl<'d, 'v, V: DirRead> Draft<'d, 'v, V> {
    fn new(dir: &'d Dir<'v, V>, header: DirHeader, root: &Node) -> Self {
        let root = root.block().clone();
        Self { dir, header, root, writes: BTreeMap::new(), shrinks: false }
    }

    /// Block 0 is written by every insert and remove: it holds the number of entries.
    fn finish(mut self, cookie: Cookie, previous: Option<Found>) -> Plan {
        let mut root = self.writes.remove(&NodeNo::ROOT).unwrap_or(self.root);
        put_header(&mut root, &self.header);
        let mut writes = vec![(NodeNo::ROOT.fbn(), root)];
        writes.extend(self.writes.into_iter().map(|(at, block)| (at.fbn(), block)));
        Plan {
            writes,
            cookie,
            previous,
            file_blocks: Blocks::new(u64::from(self.header.next_unused.get())),
            shrinks: self.shrinks,
            entries: self.header.entries.get(),
        }
    }

    fn insert(&mut self, mut path: Path, entry: &Entry<'_>) -> Result<(), DirFault<V::Miss>> {
        let Some(Step { node: leaf, .. }) = path.steps.pop() else {
            return Err(NodeNo::ROOT.damaged(Damage::Layout).into());
        };
        let index = leaf.lower_bound(entry.key)?;
        if let Some(block) = leaf.with_entry(self.dir.id, index, entry)? {
            self.writes.insert(leaf.at, block);
            return Ok(());
        }
        let mut content = leaf.content()?;
        if let Content::Leaf(entries) = &mut content {
            entries.insert(index, *entry);
        }
        let mut carry = self.split(&leaf, content)?;
        while let (Some(new), Some(step)) = (carry, path.steps.pop()) {
            let Content::Inner(mut children) = step.node.content()? else {
                return Err(step.node.at.damaged(Damage::WrongLevel).into());
            };
            children.insert(step.index + 1, new);
            if !children.is_sorted_by(|a, b| a.key < b.key) {
                return Err(step.node.at.damaged(Damage::KeyOrder).into());
            }
            let content = Content::Inner(children);
            carry = if content.bytes() <= step.node.at.capacity() {
                self.writes.insert(step.node.at, step.node.rebuilt(self.dir.id, &content));
                None
            } else {
                self.split(&step.node, content)?
            };
        }
        Ok(())
    }

    /// Distributes `content`, too large for `node`, over two nodes; gives what the parent has to
    /// take in. A root keeps its place: both halves move out and it becomes their parent.
    fn split(
        &mut self,
        node: &Node,
        content: Content<'_>,
    ) -> Result<Option<Child>, DirFault<V::Miss>> {
        let id = self.dir.id;
        let level = node.level();
        let (left, right) = content.halve();
        let Some(key) = right.first_key() else {
            return Err(node.at.damaged(Damage::Layout).into());
        };
        if node.at != NodeNo::ROOT {
            let new = self.allocate()?;
            self.writes.insert(node.at, node.rebuilt(id, &left));
            self.writes.insert(new, new_node(new, level, id, &right));
            return Ok(Some(Child { key, node: new }));
        }
        if usize::from(level) + 1 >= HEIGHT_MAX {
            let blocks = Blocks::new(u64::from(self.header.next_unused.get()));
            return Err(DirError::Full { blocks }.into());
        }
        let (a, b) = (self.allocate()?, self.allocate()?);
        self.writes.insert(a, new_node(a, level, id, &left));
        self.writes.insert(b, new_node(b, level, id, &right));
        let children = vec![Child { key: Key(0), node: a }, Child { key, node: b }];
        let root = new_root(node.block(), level + 1, id, &Content::Inner(children));
        self.writes.insert(NodeNo::ROOT, root);
        Ok(None)
    }

    /// Puts `node`, from which something was removed, back under the parents in `steps`.
    fn shrink(&mut self, mut steps: Vec<Step>, node: Node) -> Result<(), DirFault<V::Miss>> {
        let mut node = node;
        while node.used()? < node.at.capacity() / UNDERFLOW_DIVISOR
            && let Some(parent) = steps.pop()
        {
            if parent.node.count() == 1 {
                // Only the root may have an only child (one that is too large for its place).
                if parent.node.at != NodeNo::ROOT {
                    return Err(parent.node.at.damaged(Damage::Layout).into());
                }
                self.writes.insert(node.at, node.block().clone());
                return self.collapse(parent.node);
            }
            node = self.join(parent, node)?;
        }
        self.writes.insert(node.at, node.block().clone());
        if node.at == NodeNo::ROOT { self.collapse(node) } else { Ok(()) }
    }

    /// Merges `node` with a neighbour, or lets the two share evenly; gives the changed parent.
    fn join(&mut self, parent: Step, node: Node) -> Result<Node, DirFault<V::Miss>> {
        let id = self.dir.id;
        let (left, right, left_index) = if parent.index > 0 {
            (self.dir.child(&parent.node, parent.index - 1)?, node, parent.index - 1)
        } else {
            (node, self.dir.child(&parent.node, 1)?, 0)
        };
        let Content::Inner(mut children) = parent.node.content()? else {
            return Err(parent.node.at.damaged(Damage::WrongLevel).into());
        };
        let mut content = left.content()?;
        let separator = children[left_index + 1].key;
        content.append(separator, right.content()?).map_err(|what| right.at.damaged(what))?;
        if content.bytes() <= left.at.capacity() {
            self.writes.insert(left.at, left.rebuilt(id, &content));
            self.free(right.at)?;
            children.remove(left_index + 1);
        } else {
            let (first, second) = content.halve();
            let Some(key) = second.first_key() else {
                return Err(right.at.damaged(Damage::Layout).into());
            };
            self.writes.insert(left.at, left.rebuilt(id, &first));
            self.writes.insert(right.at, right.rebuilt(id, &second));
            children[left_index + 1].key = key;
        }
        if !children.is_sorted_by(|a, b| a.key < b.key) {
            return Err(parent.node.at.damaged(Damage::KeyOrder).into());
        }
        let block = parent.node.rebuilt(id, &Content::Inner(children));
        Ok(parent.node.changed(block)?)
    }

    /// Takes an only child into the root when it fits there.
    fn collapse(&mut self, root: Node) -> Result<(), DirFault<V::Miss>> {
        let mut root = root;
        while root.level() != LEVEL_LEAF && root.count() == 1 {
            let only = root.child(0)?.ok_or_else(|| root.at.damaged(Damage::Layout))?.node;
            let child = match self.writes.get(&only) {
                Some(block) => {
                    let level = root.level().checked_sub(1);
                    Node::open(only, block.clone(), self.dir.id, level)?
                }
                None => self.dir.child(&root, 0)?,
            };
            let content = child.content()?;
            if content.bytes() > NodeNo::ROOT.capacity() {
                break;
            }
            let block = new_root(&self.root, child.level(), self.dir.id, &content);
            self.free(child.at)?;
            root = root.changed(block)?;
            self.writes.insert(NodeNo::ROOT, root.block().clone());
        }
        Ok(())
    }

    /// The directory is empty: back to one block.
    /// Without entries it is as a new directory is, also one of an older version.
    fn reset(&mut self) {
        let (id, keys) = (self.dir.id, &self.dir.keys);
        self.shrinks = self.header.next_unused.get() > 1;
        self.header = new_header(id, keys.check_value(), Keying::Grouped);
        self.writes.insert(NodeNo::ROOT, empty(id, keys, Keying::Grouped));
    }

    fn allocate(&mut self) -> Result<NodeNo, DirFault<V::Miss>> {
        let next = self.header.next_unused.get();
        let head = NodeNo(self.header.free_head.get());
        if head == NodeNo::ROOT {
            let Some(after) = next.checked_add(1) else {
                return Err(DirError::Full { blocks: Blocks::new(u64::from(next)) }.into());
            };
            self.header.next_unused = after.into();
            return Ok(NodeNo(next));
        }
        let bad = || head.damaged(Damage::FreeList);
        let block = self.dir.block(head)?;
        let node = Node::open(head, block, self.dir.id, Some(LEVEL_FREE)).map_err(|_| bad())?;
        let after = node.next_free()?;
        let count = self.header.free_count.get().checked_sub(1).ok_or_else(bad)?;
        if after.0 >= next || after == head || (after == NodeNo::ROOT) != (count == 0) {
            return Err(bad().into());
        }
        self.header.free_head = after.0.into();
        self.header.free_count = count.into();
        Ok(head)
    }

    fn free(&mut self, node: NodeNo) -> Result<(), DirFault<V::Miss>> {
        let next = NodeNo(self.header.free_head.get());
        let count = self.header.free_count.get().checked_add(1);
        let count = count.ok_or_else(|| NodeNo::ROOT.damaged(Damage::Count))?;
        if node.0 >= self.header.next_unused.get() || node == next {
            return Err(node.damaged(Damage::Pointer).into());
        }
        self.writes.insert(node, free_node(node, next, self.dir.id));
        self.header.free_head = node.0.into();
        self.header.free_count = count.into();
        Ok(())
    }
}
