//! Layout of a directory's blocks: the header, slotted leaves, inner nodes, free nodes.
//!
//! Layer: inside `cairn-wafl-dir`, below the tree. The block layer's checksum guards the bytes;
//! a node adds its own identity (directory, place, level), so that a whole but misplaced block is
//! found out. Everything read from a block is checked before it is used as an offset.
//!
//! A node fills its block, except for the root, which lies behind the header in block 0. Offsets
//! count from the node's first byte. A leaf has slots (key and offset) growing up in key order
//! and entries growing down from the end; removing leaves a hole that the next rebuild closes.

use cairn_sys::{Block, BlockMut};
use cairn_units::{BLOCK_BYTES, Fbn, Generation, InodeNo};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::keys::{Key, Keying};
use crate::{Damage, DirError, DirId, EntryKind, FOLD_VERSION, Found, HEIGHT_MAX, check_name};

/// First bytes of block 0.
const HEADER_MAGIC: [u8; 4] = *b"CDIR";
/// First bytes of a node.
const NODE_MAGIC: [u8; 4] = *b"CDNO";
/// Version of nodes.
const FORMAT_VERSION: u8 = 1;
/// Versions of the header, which tell how names became keys.
const HEADER_WHOLE: u8 = 1;
const HEADER_GROUPED: u8 = 2;
/// Level of a node in the free list.
pub(crate) const LEVEL_FREE: u8 = 0xff;
/// Level of leaves.
pub(crate) const LEVEL_LEAF: u8 = 0;

/// Start of block 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct DirHeader {
    magic: [u8; 4],
    version: u8,
    fold: u8,
    reserved_a: U16,
    inode: U64,
    generation: U32,
    /// First block that was never used.
    pub(crate) next_unused: U32,
    /// First node of the free list, 0 for none.
    pub(crate) free_head: U32,
    /// Nodes in the free list.
    pub(crate) free_count: U32,
    /// Entries in the directory.
    pub(crate) entries: U64,
    key_check: U64,
    reserved_b: [u8; 48],
}
const _: () = assert!(size_of::<DirHeader>() == HEADER_BYTES);
pub(crate) const HEADER_BYTES: usize = 96;

impl DirHeader {
    /// How the names of the directory became keys.
    pub(crate) fn keying(&self) -> Keying {
        if self.version == HEADER_WHOLE { Keying::Whole } else { Keying::Grouped }
    }
}

/// Start of a node.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct NodeHeader {
    magic: [u8; 4],
    version: u8,
    level: u8,
    count: U16,
    at: U32,
    /// Next free node, in a free node.
    next_free: U32,
    inode: U64,
    generation: U32,
    /// Lowest offset of an entry.
    heap: U16,
    /// Bytes of holes between the entries.
    holes: U16,
    reserved: U64,
}
const _: () = assert!(size_of::<NodeHeader>() == NODE_BYTES);
const NODE_BYTES: usize = 40;

/// One slot of a leaf.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct LeafSlot {
    key: U64,
    offset: U16,
}
const _: () = assert!(size_of::<LeafSlot>() == LEAF_SLOT_BYTES);
const LEAF_SLOT_BYTES: usize = 10;

/// One child of an inner node.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct InnerSlot {
    key: U64,
    child: U32,
}
const _: () = assert!(size_of::<InnerSlot>() == INNER_SLOT_BYTES);
const INNER_SLOT_BYTES: usize = 12;

/// What precedes a name in the heap of a leaf.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct EntryHead {
    inode: U64,
    generation: U32,
    kind: u8,
    name_bytes: u8,
}
const _: () = assert!(size_of::<EntryHead>() == ENTRY_HEAD_BYTES);
const ENTRY_HEAD_BYTES: usize = 14;

/// Bytes that the largest entry takes in a leaf.
pub(crate) const ENTRY_BYTES_MAX: usize = LEAF_SLOT_BYTES + ENTRY_HEAD_BYTES + 255;
// A node that overflows by one entry always splits into two that fit, and so does the overfull
// sum of a full node and a quarter-full one.
const _: () = assert!(ENTRY_BYTES_MAX * 8 < BLOCK_BYTES - HEADER_BYTES - NODE_BYTES);

/// Number of a node: its block in the directory file. 0 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeNo(pub(crate) u32);

impl NodeNo {
    pub(crate) const ROOT: Self = Self(0);

    pub(crate) fn fbn(self) -> Fbn {
        Fbn::new(u64::from(self.0))
    }
    fn base(self) -> usize {
        if self == Self::ROOT { HEADER_BYTES } else { 0 }
    }
    pub(crate) fn damaged(self, what: Damage) -> DirError {
        DirError::Damaged { fbn: self.fbn(), what }
    }
    /// Bytes for slots and entries in the node with this number.
    pub(crate) fn capacity(self) -> usize {
        BLOCK_BYTES - NODE_BYTES - self.base()
    }
}

/// One entry of a leaf; the name lies in the leaf or with the caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) key: Key,
    pub(crate) inode: InodeNo,
    pub(crate) generation: Generation,
    pub(crate) kind: EntryKind,
    pub(crate) name: &'a [u8],
}

impl Entry<'_> {
    pub(crate) fn bytes(&self) -> usize {
        LEAF_SLOT_BYTES + ENTRY_HEAD_BYTES + self.name.len()
    }
    pub(crate) fn found(&self) -> Found {
        Found {
            cookie: self.key.cookie(),
            inode: self.inode,
            generation: self.generation,
            kind: self.kind,
        }
    }
    fn write(&self, to: &mut [u8]) {
        let head = EntryHead {
            inode: self.inode.get().into(),
            generation: self.generation.get().into(),
            kind: self.kind.get(),
            name_bytes: u8::try_from(self.name.len()).unwrap_or(u8::MAX),
        };
        to[..ENTRY_HEAD_BYTES].copy_from_slice(head.as_bytes());
        to[ENTRY_HEAD_BYTES..].copy_from_slice(self.name);
    }
}

/// One child of an inner node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) key: Key,
    pub(crate) node: NodeNo,
}

/// What a node holds, for rebuilding it.
#[derive(Clone)]
pub(crate) enum Content<'a> {
    Leaf(Vec<Entry<'a>>),
    Inner(Vec<Child>),
}

impl Content<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.iter().map(Entry::bytes).sum(),
            Self::Inner(children) => children.len() * INNER_SLOT_BYTES,
        }
    }
    pub(crate) fn first_key(&self) -> Option<Key> {
        match self {
            Self::Leaf(entries) => entries.first().map(|e| e.key),
            Self::Inner(children) => children.first().map(|c| c.key),
        }
    }
    /// Cuts the content where both parts take about the same room, neither of them empty.
    pub(crate) fn halve(mut self) -> (Self, Self) {
        let half = self.bytes() / 2;
        let last = self.len().saturating_sub(1);
        let right = match &mut self {
            Self::Leaf(entries) => {
                let mut sum = 0;
                let fits = entries.iter().take_while(|e| {
                    sum += e.bytes();
                    sum <= half
                });
                let at = fits.count().clamp(1, last.max(1));
                Self::Leaf(entries.split_off(at.min(entries.len())))
            }
            Self::Inner(children) => {
                let at = children.len().div_ceil(2);
                Self::Inner(children.split_off(at))
            }
        };
        (self, right)
    }
    /// Appends what follows; `separator` is the parent's key of it.
    pub(crate) fn append(&mut self, separator: Key, right: Self) -> Result<(), Damage> {
        match (self, right) {
            (Self::Leaf(left), Self::Leaf(mut right)) => left.append(&mut right),
            (Self::Inner(left), Self::Inner(mut right)) => {
                if let Some(first) = right.first_mut() {
                    first.key = separator;
                }
                left.append(&mut right);
            }
            _ => return Err(Damage::WrongLevel),
        }
        Ok(())
    }
}

/// Splits and copies `header` out of block 0.
pub(crate) fn open_header(
    block: &Block,
    dir: DirId,
    key_check: u64,
) -> Result<DirHeader, DirError> {
    let damaged = |what| NodeNo::ROOT.damaged(what);
    let (header, _) =
        DirHeader::read_from_prefix(&block[..]).map_err(|_| damaged(Damage::Layout))?;
    if header.magic != HEADER_MAGIC {
        return Err(damaged(Damage::HeaderMagic));
    }
    let known = matches!(header.version, HEADER_WHOLE | HEADER_GROUPED);
    if !known || header.fold != FOLD_VERSION {
        return Err(damaged(Damage::Version));
    }
    if header.inode.get() != dir.inode.get() || header.generation.get() != dir.generation.get() {
        return Err(damaged(Damage::WrongDirectory));
    }
    if header.key_check.get() != key_check {
        return Err(damaged(Damage::WrongHashKey));
    }
    let (next, head) = (header.next_unused.get(), header.free_head.get());
    if next == 0 || head >= next || (head == 0) != (header.free_count.get() == 0) {
        return Err(damaged(Damage::Pointer));
    }
    Ok(header)
}

/// The header of a directory without entries.
pub(crate) fn new_header(dir: DirId, key_check: u64, keying: Keying) -> DirHeader {
    let version = match keying {
        Keying::Whole => HEADER_WHOLE,
        Keying::Grouped => HEADER_GROUPED,
    };
    DirHeader {
        magic: HEADER_MAGIC,
        version,
        fold: FOLD_VERSION,
        reserved_a: U16::ZERO,
        inode: dir.inode.get().into(),
        generation: dir.generation.get().into(),
        next_unused: U32::new(1),
        free_head: U32::ZERO,
        free_count: U32::ZERO,
        entries: U64::ZERO,
        key_check: key_check.into(),
        reserved_b: [0; 48],
    }
}

/// Puts `header` into block 0, in place when nobody else holds the block.
pub(crate) fn put_header(block: &mut Block, header: &DirHeader) {
    block.make_mut()[..HEADER_BYTES].copy_from_slice(header.as_bytes());
}

/// A node whose header was checked.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) at: NodeNo,
    block: Block,
    level: u8,
    count: usize,
}

impl Node {
    /// Checks the header of a node. `level` is what the parent says; `None` for the root.
    pub(crate) fn open(
        at: NodeNo,
        block: Block,
        dir: DirId,
        level: Option<u8>,
    ) -> Result<Self, DirError> {
        let page = &block[at.base()..];
        let header = node_header(at, page)?;
        if header.magic != NODE_MAGIC {
            return Err(at.damaged(Damage::NodeMagic));
        }
        if header.version != FORMAT_VERSION {
            return Err(at.damaged(Damage::Version));
        }
        let same_dir = header.inode.get() == dir.inode.get()
            && header.generation.get() == dir.generation.get();
        if !same_dir {
            return Err(at.damaged(Damage::WrongDirectory));
        }
        if header.at.get() != at.0 {
            return Err(at.damaged(Damage::WrongPlace));
        }
        let level_fits = match level {
            Some(level) => header.level == level,
            None => usize::from(header.level) < HEIGHT_MAX,
        };
        if !level_fits {
            return Err(at.damaged(Damage::WrongLevel));
        }
        let (level, count) = (header.level, usize::from(header.count.get()));
        let (slot_bytes, heap_fits) = match level {
            LEVEL_LEAF => (LEAF_SLOT_BYTES, true),
            LEVEL_FREE => (0, usize::from(header.heap.get()) == page.len()),
            _ => (INNER_SLOT_BYTES, usize::from(header.heap.get()) == page.len()),
        };
        let heap = usize::from(header.heap.get());
        let slots_end = NODE_BYTES + slot_bytes * count;
        let empty = count == 0 && level != LEVEL_FREE && (level != LEVEL_LEAF || at.0 != 0);
        if !heap_fits || slots_end > heap || heap > page.len() || empty {
            return Err(at.damaged(Damage::Layout));
        }
        Ok(Self { at, block, level, count })
    }

    /// The same node after a change that this module made to its block.
    pub(crate) fn changed(&self, block: Block) -> Result<Self, DirError> {
        let header = node_header(self.at, &block[self.at.base()..])?;
        let (level, count) = (header.level, usize::from(header.count.get()));
        Ok(Self { at: self.at, block, level, count })
    }

    fn page(&self) -> &[u8] {
        &self.block[self.at.base()..]
    }
    fn header(&self) -> Result<&NodeHeader, DirError> {
        node_header(self.at, self.page())
    }
    pub(crate) fn level(&self) -> u8 {
        self.level
    }
    pub(crate) fn count(&self) -> usize {
        self.count
    }
    pub(crate) fn block(&self) -> &Block {
        &self.block
    }
    pub(crate) fn next_free(&self) -> Result<NodeNo, DirError> {
        Ok(NodeNo(self.header()?.next_free.get()))
    }

    fn leaf_slots(&self) -> Result<&[LeafSlot], DirError> {
        let bytes = &self.page()[NODE_BYTES..NODE_BYTES + LEAF_SLOT_BYTES * self.count];
        <[LeafSlot]>::ref_from_bytes(bytes).map_err(|_| self.at.damaged(Damage::Layout))
    }
    fn inner_slots(&self) -> Result<&[InnerSlot], DirError> {
        let bytes = &self.page()[NODE_BYTES..NODE_BYTES + INNER_SLOT_BYTES * self.count];
        <[InnerSlot]>::ref_from_bytes(bytes).map_err(|_| self.at.damaged(Damage::Layout))
    }

    /// The entry at `index` of a leaf.
    pub(crate) fn entry(&self, index: usize) -> Result<Entry<'_>, DirError> {
        let damaged = || self.at.damaged(Damage::Layout);
        let slot = self.leaf_slots()?.get(index).ok_or_else(damaged)?;
        let heap = usize::from(self.header()?.heap.get());
        let offset = usize::from(slot.offset.get());
        if offset < heap {
            return Err(damaged());
        }
        let bytes = self.page().get(offset..).ok_or_else(damaged)?;
        let (head, rest) = EntryHead::ref_from_prefix(bytes).map_err(|_| damaged())?;
        let name = rest.get(..usize::from(head.name_bytes)).ok_or_else(damaged)?;
        check_name(name).map_err(|_| self.at.damaged(Damage::Name))?;
        Ok(Entry {
            key: Key(slot.key.get()),
            inode: InodeNo::new(head.inode.get()),
            generation: Generation::new(head.generation.get()),
            kind: EntryKind::new(head.kind),
            name,
        })
    }

    /// Index of the first entry of a leaf whose key is at least `key`.
    pub(crate) fn lower_bound(&self, key: Key) -> Result<usize, DirError> {
        Ok(self.leaf_slots()?.partition_point(|slot| slot.key.get() < key.0))
    }
    /// Index of the child of an inner node whose range holds `key`.
    pub(crate) fn child_index(&self, key: Key) -> Result<usize, DirError> {
        let after = self.inner_slots()?.partition_point(|slot| slot.key.get() <= key.0);
        Ok(after.saturating_sub(1))
    }
    /// The child at `index` of an inner node.
    pub(crate) fn child(&self, index: usize) -> Result<Option<Child>, DirError> {
        Ok(self
            .inner_slots()?
            .get(index)
            .map(|slot| Child { key: Key(slot.key.get()), node: NodeNo(slot.child.get()) }))
    }

    /// Bytes that slots and entries take, holes not counted.
    pub(crate) fn used(&self) -> Result<usize, DirError> {
        if self.level != LEVEL_LEAF {
            return Ok(self.count * INNER_SLOT_BYTES);
        }
        let header = self.header()?;
        let heap_bytes = self.page().len() - usize::from(header.heap.get());
        heap_bytes
            .checked_sub(usize::from(header.holes.get()))
            .map(|live| live + self.count * LEAF_SLOT_BYTES)
            .ok_or_else(|| self.at.damaged(Damage::Layout))
    }

    /// Everything in the node, checked: keys ascend, and entries take exactly the room that the
    /// header says. Whoever changes a node reads it through this.
    pub(crate) fn content(&self) -> Result<Content<'_>, DirError> {
        if self.level != LEVEL_LEAF {
            let children: Vec<Child> = self
                .inner_slots()?
                .iter()
                .map(|s| Child { key: Key(s.key.get()), node: NodeNo(s.child.get()) })
                .collect();
            return if children.is_sorted_by(|a, b| a.key < b.key) {
                Ok(Content::Inner(children))
            } else {
                Err(self.at.damaged(Damage::KeyOrder))
            };
        }
        let mut entries = Vec::with_capacity(self.count + 1);
        for index in 0..self.count {
            entries.push(self.entry(index)?);
        }
        if !entries.is_sorted_by(|a, b| a.key < b.key) {
            return Err(self.at.damaged(Damage::KeyOrder));
        }
        let content = Content::Leaf(entries);
        if content.bytes() != self.used()? {
            return Err(self.at.damaged(Damage::Layout));
        }
        Ok(content)
    }

    /// This leaf with `entry` at `index`, or `None` when it does not fit.
    pub(crate) fn with_entry(
        &self,
        dir: DirId,
        index: usize,
        entry: &Entry<'_>,
    ) -> Result<Option<Block>, DirError> {
        let content = self.content()?;
        if content.bytes() + entry.bytes() > self.at.capacity() {
            return Ok(None);
        }
        let header = *self.header()?;
        let slots_end = NODE_BYTES + LEAF_SLOT_BYTES * self.count;
        let heap = usize::from(header.heap.get());
        if heap - slots_end < entry.bytes() {
            let Content::Leaf(mut entries) = content else {
                return Err(self.at.damaged(Damage::WrongLevel));
            };
            entries.insert(index.min(self.count), *entry);
            return Ok(Some(self.rebuilt(dir, &Content::Leaf(entries))));
        }
        let mut block = self.block.clone();
        let page = &mut block.make_mut()[self.at.base()..];
        let at = heap - (entry.bytes() - LEAF_SLOT_BYTES);
        entry.write(&mut page[at..heap]);
        let slot_at = NODE_BYTES + LEAF_SLOT_BYTES * index.min(self.count);
        page.copy_within(slot_at..slots_end, slot_at + LEAF_SLOT_BYTES);
        let slot = LeafSlot { key: entry.key.0.into(), offset: small(at) };
        page[slot_at..slot_at + LEAF_SLOT_BYTES].copy_from_slice(slot.as_bytes());
        let header = NodeHeader { count: small(self.count + 1), heap: small(at), ..header };
        page[..NODE_BYTES].copy_from_slice(header.as_bytes());
        Ok(Some(block))
    }

    /// This leaf without the entry at `index`.
    pub(crate) fn without_entry(&self, index: usize) -> Result<Block, DirError> {
        let content = self.content()?;
        let Content::Leaf(entries) = content else {
            return Err(self.at.damaged(Damage::WrongLevel));
        };
        let gone = entries.get(index).ok_or_else(|| self.at.damaged(Damage::Layout))?;
        let heap_bytes = gone.bytes() - LEAF_SLOT_BYTES;
        let header = *self.header()?;
        let holes = usize::from(header.holes.get()) + heap_bytes;
        let mut block = self.block.clone();
        let page = &mut block.make_mut()[self.at.base()..];
        let slots_end = NODE_BYTES + LEAF_SLOT_BYTES * self.count;
        let slot_at = NODE_BYTES + LEAF_SLOT_BYTES * index;
        page.copy_within(slot_at + LEAF_SLOT_BYTES..slots_end, slot_at);
        page[slots_end - LEAF_SLOT_BYTES..slots_end].fill(0);
        let header = NodeHeader { count: small(self.count - 1), holes: small(holes), ..header };
        page[..NODE_BYTES].copy_from_slice(header.as_bytes());
        Ok(block)
    }

    /// This leaf with another file behind the entry at `index`.
    pub(crate) fn with_target(&self, index: usize, to: &Entry<'_>) -> Result<Block, DirError> {
        let damaged = || self.at.damaged(Damage::Layout);
        self.entry(index)?;
        let slot = self.leaf_slots()?.get(index).ok_or_else(damaged)?;
        let offset = usize::from(slot.offset.get());
        let mut block = self.block.clone();
        let page = &mut block.make_mut()[self.at.base()..];
        let end = offset + ENTRY_HEAD_BYTES + to.name.len();
        to.write(page.get_mut(offset..end).ok_or_else(damaged)?);
        Ok(block)
    }

    /// A block with this node's number that holds `content` instead; in block 0 the header stays.
    pub(crate) fn rebuilt(&self, dir: DirId, content: &Content<'_>) -> Block {
        let mut block = BlockMut::zeroed();
        let base = self.at.base();
        block[..base].copy_from_slice(&self.block[..base]);
        let level = match content {
            Content::Leaf(_) => LEVEL_LEAF,
            Content::Inner(_) => self.level,
        };
        write_node(&mut block, self.at, level, dir, content);
        block.freeze()
    }
}

/// The root of a directory with `content` and `level`, the header copied from `block`.
pub(crate) fn new_root(block: &Block, level: u8, dir: DirId, content: &Content<'_>) -> Block {
    let mut new = BlockMut::zeroed();
    new[..HEADER_BYTES].copy_from_slice(&block[..HEADER_BYTES]);
    write_node(&mut new, NodeNo::ROOT, level, dir, content);
    new.freeze()
}

/// A new node.
pub(crate) fn new_node(at: NodeNo, level: u8, dir: DirId, content: &Content<'_>) -> Block {
    let mut block = BlockMut::zeroed();
    write_node(&mut block, at, level, dir, content);
    block.freeze()
}

/// A node of the free list.
pub(crate) fn free_node(at: NodeNo, next: NodeNo, dir: DirId) -> Block {
    let mut block = BlockMut::zeroed();
    write_node(&mut block, at, LEVEL_FREE, dir, &Content::Inner(Vec::new()));
    let mut header = base_header(at, LEVEL_FREE, dir, BLOCK_BYTES);
    header.next_free = next.0.into();
    block[..NODE_BYTES].copy_from_slice(header.as_bytes());
    block.freeze()
}

fn base_header(at: NodeNo, level: u8, dir: DirId, page_bytes: usize) -> NodeHeader {
    NodeHeader {
        magic: NODE_MAGIC,
        version: FORMAT_VERSION,
        level,
        count: U16::ZERO,
        at: at.0.into(),
        next_free: U32::ZERO,
        inode: dir.inode.get().into(),
        generation: dir.generation.get().into(),
        heap: small(page_bytes),
        holes: U16::ZERO,
        reserved: U64::ZERO,
    }
}

/// Writes a node into a zeroed block; the content fits, or this panics (a broken invariant).
fn write_node(block: &mut BlockMut, at: NodeNo, level: u8, dir: DirId, content: &Content<'_>) {
    assert!(content.bytes() <= at.capacity(), "a node is never overfilled");
    let page = &mut block[at.base()..];
    let mut header = base_header(at, level, dir, page.len());
    header.count = small(content.len());
    match content {
        Content::Leaf(entries) => {
            let mut heap = page.len();
            for (index, entry) in entries.iter().enumerate() {
                let end = heap;
                heap -= entry.bytes() - LEAF_SLOT_BYTES;
                entry.write(&mut page[heap..end]);
                let slot = LeafSlot { key: entry.key.0.into(), offset: small(heap) };
                let slot_at = NODE_BYTES + LEAF_SLOT_BYTES * index;
                page[slot_at..slot_at + LEAF_SLOT_BYTES].copy_from_slice(slot.as_bytes());
            }
            header.heap = small(heap);
        }
        Content::Inner(children) => {
            for (index, child) in children.iter().enumerate() {
                let slot = InnerSlot { key: child.key.0.into(), child: child.node.0.into() };
                let slot_at = NODE_BYTES + INNER_SLOT_BYTES * index;
                page[slot_at..slot_at + INNER_SLOT_BYTES].copy_from_slice(slot.as_bytes());
            }
        }
    }
    page[..NODE_BYTES].copy_from_slice(header.as_bytes());
}

fn node_header(at: NodeNo, page: &[u8]) -> Result<&NodeHeader, DirError> {
    match NodeHeader::ref_from_prefix(page) {
        Ok((header, _)) => Ok(header),
        Err(_) => Err(at.damaged(Damage::Layout)),
    }
}

/// A number below the size of a block as it is stored.
fn small(number: usize) -> U16 {
    match u16::try_from(number) {
        Ok(number) => U16::new(number),
        Err(_) => unreachable!("offsets and counts are at most a block's size"),
    }
}
