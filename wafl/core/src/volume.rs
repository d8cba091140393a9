//! One volume in memory: in-core inodes with their block trees, the volume's own map files, and
//! the bookkeeping of what is dirty.
//!
//! Layer: volumes. Everything here runs under the volume's lock, synchronously, without I/O. What
//! is not in memory stops an operation with [`Stop::Miss`]; the manager loads it and runs the
//! operation again from the start.
//!
//! # Invariants
//! - Operations change only files' trees, in-core inodes and the inode map; the active map and
//!   the container map belong to the consistency point.
//! - While an in-core inode is dirty, the block of the inode file that it lives in is in memory
//!   and dirty, so a consistency point can write it without reading.
//! - An inode number that was freed is not given out before the consistency point that freed it
//!   is committed: replay never meets a number in two roles.

use std::collections::BTreeSet;

use cairn_op::{Attrs, DeviceNo, Failure, FileKind, ObjectRef, Status};
use cairn_sys::{Block, mutant};
use cairn_units::{
    BLOCK_BYTES_U64, CpCount, Fbn, Fsid, Generation, InodeNo, Lsn, ObjectId, SnapId, WallTime,
};
use cairn_wafl_dir::{Dir, DirError, DirFault, DirId, DirKeys, DirRead, DirWrite};
use cairn_wafl_format::{
    BITS_PER_BLOCK, BlockPtr, FormatError, INODE_BYTES, INODES_PER_BLOCK, Inode, InodeKind,
    VolumeRecord, VolumeSums, inode_flags,
};

use cairn_wafl_nvlog::HalfToken;

use crate::bits::{bit_place, first_clear_bit};
use crate::freed::Freed;
use crate::in_core::InCore;
use crate::streams::Streams;
use crate::sums::Balance;
use crate::tree::{Dirtied, Dropped, Key, Tree, TreeMiss};

/// Inode number of a volume's root directory.
pub(crate) const ROOT_INO: InodeNo = InodeNo::new(2);
/// First inode number for ordinary files.
pub(crate) const FIRST_INO: u64 = 16;
/// Files that a volume may have.
pub(crate) const INODES_MAX: u64 = 1 << 40;
/// Unstable blocks of one file that are remembered one by one; a file with more is made stable by
/// a consistency point instead of the log.
pub(crate) const UNLOGGED_BLOCKS_MAX: usize = 1024;
/// With more than this it joins a consistency point that was asked for anyway: the log would write them once
/// more.
pub(crate) const UNLOGGED_BLOCKS_FEW: usize = 256;
const _: () = assert!(UNLOGGED_BLOCKS_FEW < UNLOGGED_BLOCKS_MAX);

/// Which tree of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FileId {
    Inode(InodeNo),
    InodeFile,
    InodeMap,
    ActiveMap,
    ContainerMap,
}

/// A block that must be loaded first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Miss {
    pub file: FileId,
    pub key: Key,
    pub ptr: BlockPtr,
}

/// Why an operation did not run to its end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Load these blocks and run it again.
    Miss(Vec<Miss>),
    /// It failed.
    Fail(Failure),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Stop::Fail(status.into())
    }
}

pub(crate) fn miss(file: FileId, at: TreeMiss) -> Stop {
    Stop::Miss(vec![Miss { file, key: at.key, ptr: at.ptr }])
}

/// Where an inode was found.
pub(crate) enum Seen<'a> {
    InCore(&'a File),
    /// Its bytes in the inode file; none in a hole of that.
    Stored(Option<&'a [u8]>),
}

impl Seen<'_> {
    /// Reads a word of each cache line that attributes are made of.
    pub fn warm(&self) -> u64 {
        match self {
            Seen::InCore(file) => {
                let words = [u64::from(file.inode.mode), file.inode.birth.get().cast_unsigned()];
                let blocks = file.tree.blocks().cast_unsigned();
                words.into_iter().fold(blocks, u64::wrapping_add)
            }
            Seen::Stored(bytes) => {
                let Some(bytes) = bytes else { return 0 };
                // All fields before the pointers lie in the first three lines.
                [0, 64, 128].into_iter().fold(0, |sum, at| sum.wrapping_add(bytes[at].into()))
            }
        }
    }
}

/// An in-core inode. In the order of declaration, so that what a listing reads lies together.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct File {
    /// All but height, pointers and block count, which `tree` owns.
    pub inode: Inode,
    pub tree: Tree,
    /// The inode must be written by the next consistency point.
    pub dirty: bool,
    /// Used since the cache's clock came by.
    pub hot: bool,
    /// Blocks with bytes that no log record holds.
    pub unlogged: BTreeSet<u64>,
    /// There are more of them than `unlogged` remembers.
    pub unlogged_many: bool,
    /// Consistency point that makes stable what was unlogged at its freeze.
    pub frozen_cp: CpCount,
    /// Where it is read.
    pub streams: Streams,
}

impl File {
    pub fn new(mut inode: Inode) -> Self {
        let tree = if inode.is_inline() {
            Tree::empty()
        } else {
            Tree::new(inode.height, core::mem::take(&mut inode.pointers), inode.blocks)
        };
        Self {
            inode,
            tree,
            dirty: false,
            hot: true,
            unlogged: BTreeSet::new(),
            unlogged_many: false,
            frozen_cp: CpCount::new(0),
            streams: Streams::default(),
        }
    }
    pub fn is_dir(&self) -> bool {
        self.inode.kind == InodeKind::Directory
    }
    pub fn has_unlogged(&self) -> bool {
        self.unlogged_many || !self.unlogged.is_empty()
    }
    /// The inode as it goes to disk.
    pub fn to_disk(&self) -> Inode {
        let mut inode = self.inode.clone();
        if !inode.is_inline() {
            inode.height = self.tree.height();
            inode.pointers = self.tree.roots().clone();
        }
        inode.blocks = self.tree.blocks();
        inode
    }
    pub fn dir_id(&self) -> DirId {
        DirId { inode: self.inode.ino, generation: self.inode.generation }
    }
    /// Notes a change at `time`.
    pub fn changed(&mut self, time: WallTime) {
        self.inode.ctime = time;
        self.inode.change =
            (self.inode.change + 1).max(u64::try_from(time.get()).unwrap_or_default());
    }
    /// Notes a change of data at `time`.
    pub fn data_changed(&mut self, time: WallTime) {
        self.inode.mtime = time;
        self.changed(time);
    }
}

pub(crate) fn file_kind(kind: InodeKind) -> FileKind {
    match kind {
        InodeKind::Regular | InodeKind::Free | InodeKind::Internal => FileKind::Regular,
        InodeKind::Directory => FileKind::Directory,
        InodeKind::Symlink => FileKind::Symlink,
        InodeKind::BlockDevice => FileKind::BlockDevice,
        InodeKind::CharDevice => FileKind::CharDevice,
        InodeKind::Fifo => FileKind::Fifo,
        InodeKind::Socket => FileKind::Socket,
    }
}

/// The blocks of a directory file, for the directory code.
pub(crate) struct DirView<'t>(pub &'t Tree);

impl DirRead for DirView<'_> {
    type Miss = TreeMiss;
    fn block(&self, at: Fbn) -> Result<Block, TreeMiss> {
        Ok(self.0.get(Key::data(at.get()))?.unwrap_or_else(Block::zero))
    }
}

/// Takes the changed blocks of a directory.
pub(crate) struct DirSink<'t> {
    pub tree: &'t mut Tree,
    pub dirtied: Dirtied,
}

impl DirWrite for DirSink<'_> {
    fn put(&mut self, at: Fbn, block: Block) {
        self.dirtied += self.tree.put(at.get(), block);
    }
}

#[derive(Debug)]
pub(crate) struct VolState {
    pub fsid: Fsid,
    pub name: String,
    pub size_blocks: u64,
    pub vvbn_end: u64,
    /// VVBNs in use by the last frozen consistency point.
    pub used_blocks: u64,
    pub files: u64,
    /// What inodes and directories add up to: the inodes as of the last freeze, the rest as of now.
    pub sums: VolumeSums,
    /// How far the sums were out when the volume was opened or repaired: all zero unless damaged.
    pub balance: Balance,
    /// Repaired: the next consistency point sets a new `balance`.
    pub rebalance: bool,
    /// Newest log record applied.
    pub lsn: Lsn,
    pub zombie_head: InodeNo,
    pub object_next: u64,
    pub relocations: u64,
    pub hash_key: [u8; 16],
    pub inode_end: u64,
    pub vvbn_cursor: u64,
    pub in_core: InCore,
    /// In-core inodes that are dirty or have dirty blocks.
    pub dirty_files: BTreeSet<InodeNo>,
    /// How many of them the manager counts.
    pub dirty_files_told: usize,
    pub inode_file: Tree,
    pub inode_map: Tree,
    pub active_map: Tree,
    pub container_map: Tree,
    /// Blocks that nothing names any more since the last freeze.
    pub freed: Freed,
    /// Inode numbers freed since the last freeze, and in the consistency point under way.
    pub inodes_freed: BTreeSet<InodeNo>,
    pub inodes_freed_in_cp: BTreeSet<InodeNo>,
    /// Dirty since the last freeze.
    pub dirtied: Dirtied,
    /// Blocks of large unstable writes since the last freeze.
    pub streamed: u64,
    /// Change of the aggregate's dirty count that the manager has not taken yet.
    pub dirty_delta: i64,
    /// Where the search for a free inode number goes on.
    pub inode_hint: u64,
    /// The search may start over at the lowest number.
    pub inode_wrap: bool,
    /// In-core inodes that came into memory and are not yet known to the cache's clock.
    pub arrived: Vec<InodeNo>,
    /// Half of the log that this volume's records go to; none before the log has begun.
    pub half: Option<HalfToken>,
}

impl VolState {
    pub fn from_record(r: &VolumeRecord) -> Self {
        let tree = |i: &Inode| Tree::new(i.height, i.pointers.clone(), i.blocks);
        Self {
            fsid: r.fsid,
            name: r.name.clone(),
            size_blocks: r.size_blocks,
            vvbn_end: r.vvbn_end,
            used_blocks: r.used_blocks,
            files: r.files,
            sums: r.sums,
            balance: Balance::of(r),
            rebalance: false,
            lsn: r.lsn,
            zombie_head: r.zombie_head,
            object_next: r.object_next,
            relocations: r.relocations,
            hash_key: r.hash_key,
            inode_end: r.inode_end,
            vvbn_cursor: r.vvbn_cursor,
            in_core: InCore::default(),
            dirty_files: BTreeSet::new(),
            dirty_files_told: 0,
            inode_file: tree(&r.inode_file),
            inode_map: tree(&r.inode_map),
            active_map: tree(&r.active_map),
            container_map: tree(&r.container_map),
            freed: Freed::default(),
            inodes_freed: BTreeSet::new(),
            inodes_freed_in_cp: BTreeSet::new(),
            dirtied: Dirtied::default(),
            streamed: 0,
            dirty_delta: 0,
            inode_hint: FIRST_INO,
            inode_wrap: true,
            arrived: Vec::new(),
            half: None,
        }
    }

    pub fn dir_keys(&self) -> DirKeys {
        DirKeys::new(self.hash_key)
    }

    pub fn tree(&self, id: FileId) -> Option<&Tree> {
        Some(match id {
            FileId::Inode(ino) => &self.in_core.get(&ino)?.tree,
            FileId::InodeFile => &self.inode_file,
            FileId::InodeMap => &self.inode_map,
            FileId::ActiveMap => &self.active_map,
            FileId::ContainerMap => &self.container_map,
        })
    }

    pub fn tree_mut(&mut self, id: FileId) -> Option<&mut Tree> {
        Some(match id {
            FileId::Inode(ino) => &mut self.in_core.get_mut(&ino)?.tree,
            FileId::InodeFile => &mut self.inode_file,
            FileId::InodeMap => &mut self.inode_map,
            FileId::ActiveMap => &mut self.active_map,
            FileId::ContainerMap => &mut self.container_map,
        })
    }

    /// Makes an inode in-core, whatever it is.
    pub fn load_inode(&mut self, ino: InodeNo) -> Result<&mut File, Stop> {
        if !self.in_core.contains_key(&ino) {
            let inode = self.read_inode(ino)?;
            self.arrived.push(ino);
            self.in_core.insert(ino, File::new(inode));
        }
        let file = self.file_mut(ino);
        file.hot = true;
        Ok(file)
    }

    /// An inode as it lies in the inode file.
    fn read_inode(&self, ino: InodeNo) -> Result<Inode, Stop> {
        self.decode_inode(ino, self.inode_bytes(ino)?, Inode::decode)
    }

    /// The bytes of an inode in the inode file; none where that has a hole.
    fn inode_bytes(&self, ino: InodeNo) -> Result<Option<&[u8]>, Stop> {
        let at = Key::data(ino.get() / INODES_PER_BLOCK);
        let block = self.inode_file.look(at).map_err(|m| miss(FileId::InodeFile, m))?;
        let from = inode_offset(ino);
        Ok(block.map(|block| &block[from..from + INODE_BYTES]))
    }

    fn decode_inode(
        &self,
        ino: InodeNo,
        bytes: Option<&[u8]>,
        decode: fn(&[u8]) -> Result<Inode, FormatError>,
    ) -> Result<Inode, Stop> {
        let mut inode = match bytes {
            None => Inode::free(ino, Generation::new(0)),
            Some(bytes) => decode(bytes).map_err(|e| {
                tracing::error!(fsid = self.fsid.get(), ino = ino.get(), "{e}");
                Stop::from(Status::Io)
            })?,
        };
        if inode.kind == InodeKind::Free {
            inode.ino = ino;
        } else if inode.ino != ino {
            tracing::error!(fsid = self.fsid.get(), ino = ino.get(), "inode of another number");
            return Err(Status::Io.into());
        }
        Ok(inode)
    }

    /// An in-core inode that a plan has already loaded.
    pub fn file(&self, ino: InodeNo) -> &File {
        match self.in_core.get(&ino) {
            Some(file) => file,
            None => panic!("{ino:?} must be in core here"),
        }
    }
    pub fn file_mut(&mut self, ino: InodeNo) -> &mut File {
        match self.in_core.get_mut(&ino) {
            Some(file) => file,
            None => panic!("{ino:?} must be in core here"),
        }
    }

    /// The live object behind a reference.
    pub fn object(&mut self, obj: ObjectRef) -> Result<InodeNo, Stop> {
        if obj.snap != SnapId::new(0) || obj.ino.get() == 0 || obj.ino.get() >= self.inode_end {
            return Err(Status::Stale.into());
        }
        let file = self.load_inode(obj.ino)?;
        let live = !matches!(file.inode.kind, InodeKind::Free | InodeKind::Internal)
            && (file.inode.generation == obj.generation || mutant("stale-generation-accepted"))
            && !file.inode.is_zombie();
        if live { Ok(obj.ino) } else { Err(Status::Stale.into()) }
    }

    pub fn object_ref(&self, ino: InodeNo, generation: Generation) -> ObjectRef {
        ObjectRef { fsid: self.fsid, snap: SnapId::new(0), ino, generation }
    }

    /// The inode can be marked dirty: its block in the inode file is in memory or a hole.
    pub fn inode_ready(&self, ino: InodeNo) -> Result<(), Stop> {
        let key = Key::data(ino.get() / INODES_PER_BLOCK);
        self.inode_file.reachable(key).map_err(|m| miss(FileId::InodeFile, m))?;
        self.inode_file.get(key).map_err(|m| miss(FileId::InodeFile, m))?;
        Ok(())
    }

    /// The inode's bit in the inode map can be changed.
    pub fn inode_bit_ready(&self, ino: InodeNo) -> Result<(), Stop> {
        let key = Key::data(ino.get() / BITS_PER_BLOCK);
        self.inode_map.reachable(key).map_err(|m| miss(FileId::InodeMap, m))?;
        self.inode_map.get(key).map_err(|m| miss(FileId::InodeMap, m))?;
        Ok(())
    }

    pub fn account(&mut self, dirtied: Dirtied, dropped: Dropped) {
        let delta = |a: u64, b: u64| {
            i64::try_from(a).unwrap_or(i64::MAX) - i64::try_from(b).unwrap_or(i64::MAX)
        };
        self.dirty_delta += delta(dirtied.blocks, dropped.dirty);
        self.dirtied.blocks = (self.dirtied.blocks + dirtied.blocks).saturating_sub(dropped.dirty);
        self.dirtied.fresh = (self.dirtied.fresh + dirtied.fresh).saturating_sub(dropped.fresh);
    }

    /// Marks an in-core inode dirty. [`Self::inode_ready`] must hold.
    pub fn touch(&mut self, ino: InodeNo) {
        let block = ino.get() / INODES_PER_BLOCK;
        let dirtied = self.inode_file.edit(block, |_| ());
        self.account(dirtied, Dropped::default());
        self.dirty_files.insert(ino);
        self.file_mut(ino).dirty = true;
    }

    pub fn set_inode_bit(&mut self, ino: InodeNo, used: bool) {
        let bit = ino.get() % BITS_PER_BLOCK;
        let dirtied = self.inode_map.edit(ino.get() / BITS_PER_BLOCK, |block| {
            let (byte, mask) = bit_place(bit);
            assert!((block[byte] & mask != 0) != used, "inode {ino} is marked already");
            block[byte] ^= mask;
        });
        self.account(dirtied, Dropped::default());
    }

    /// Whether the inode's bit is set; its map block is in memory.
    pub fn inode_bit(&self, ino: InodeNo) -> bool {
        let (byte, mask) = bit_place(ino.get() % BITS_PER_BLOCK);
        match self.inode_map.get(Key::data(ino.get() / BITS_PER_BLOCK)) {
            Ok(block) => block.is_some_and(|b| b[byte] & mask != 0),
            Err(_) => panic!("the map block of {ino:?} must be in memory"),
        }
    }

    /// Finds a free inode number, and the generation it will have. Changes nothing.
    pub fn find_free_inode(&mut self, not: Option<InodeNo>) -> Result<(InodeNo, Generation), Stop> {
        let mut ino = self.inode_hint.max(FIRST_INO);
        loop {
            if ino >= INODES_MAX {
                return Err(Status::NoSpace.into());
            }
            if ino >= self.inode_end && self.inode_wrap {
                // Past every number used so far: look through the freed ones below, once for each
                // consistency point (only a point makes freed numbers usable), and only if there
                // are enough of them to be worth the search.
                self.inode_wrap = false;
                let recent = (self.inodes_freed.len() + self.inodes_freed_in_cp.len()) as u64;
                if self.files + recent + self.inode_end / 16 + 64 < self.inode_end {
                    ino = FIRST_INO;
                    self.inode_hint = FIRST_INO;
                    continue;
                }
            }
            let candidate = InodeNo::new(ino);
            self.inode_bit_ready(candidate)?;
            match self.free_bit_from(ino) {
                Some(free) => {
                    let candidate = InodeNo::new(free);
                    let recent = self.inodes_freed.contains(&candidate)
                        || self.inodes_freed_in_cp.contains(&candidate);
                    if recent || not == Some(candidate) {
                        ino = free + 1;
                        continue;
                    }
                    self.inode_ready(candidate)?;
                    let generation = self.load_inode(candidate)?.inode.generation;
                    let next = generation.checked_add(1).unwrap_or(Generation::new(1));
                    return Ok((candidate, next));
                }
                None => ino = (ino / BITS_PER_BLOCK + 1) * BITS_PER_BLOCK,
            }
        }
    }

    fn free_bit_from(&self, ino: u64) -> Option<u64> {
        let index = ino / BITS_PER_BLOCK;
        let block = match self.inode_map.get(Key::data(index)) {
            Ok(Some(block)) => block,
            _ => return Some(ino),
        };
        first_clear_bit(&block, ino % BITS_PER_BLOCK).map(|bit| index * BITS_PER_BLOCK + bit)
    }

    pub fn next_object(&mut self) -> ObjectId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.fsid.get().to_be_bytes());
        id[8..].copy_from_slice(&self.object_next.to_be_bytes());
        ObjectId::new(id)
    }

    pub fn attrs(&self, ino: InodeNo) -> Attrs {
        self.attrs_of(self.file(ino))
    }

    pub fn attrs_of(&self, file: &File) -> Attrs {
        self.attrs_in(&file.inode, file.tree.blocks())
    }

    /// An inode wherever it is, without making it in core: a listing looks at many files that
    /// nobody opens.
    pub fn see(&self, ino: InodeNo) -> Result<Seen<'_>, Stop> {
        match self.in_core.get(&ino) {
            Some(file) => Ok(Seen::InCore(file)),
            None => self.inode_bytes(ino).map(Seen::Stored),
        }
    }

    /// Generation and attributes of an inode that [`Self::see`] found.
    pub fn seen(&self, ino: InodeNo, seen: &Seen<'_>) -> Result<(Generation, Attrs), Stop> {
        match seen {
            Seen::InCore(file) => Ok((file.inode.generation, self.attrs_of(file))),
            Seen::Stored(bytes) => {
                let inode = self.decode_inode(ino, *bytes, Inode::decode_attributes)?;
                Ok((inode.generation, self.attrs_in(&inode, inode.blocks)))
            }
        }
    }

    fn attrs_in(&self, i: &Inode, blocks: i64) -> Attrs {
        Attrs {
            kind: file_kind(i.kind),
            mode: i.mode,
            links: i.links,
            uid: i.uid,
            gid: i.gid,
            size: i.size,
            used: u64::try_from(blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES_U64),
            device: DeviceNo { major: i.device.0, minor: i.device.1 },
            fsid: self.fsid,
            ino: i.ino,
            atime: i.atime,
            mtime: i.mtime,
            ctime: i.ctime,
            birth: i.birth,
            change: i.change,
            object: i.object,
        }
    }

    /// Runs `look` on a directory's tree; a miss or damage stops the operation.
    pub fn dir<T>(
        &self,
        ino: InodeNo,
        look: impl FnOnce(&Dir<'_, DirView<'_>>) -> Result<T, DirFault<TreeMiss>>,
    ) -> Result<Result<T, DirError>, Stop> {
        let file = self.file(ino);
        let view = DirView(&file.tree);
        let dir = Dir::new(&view, file.dir_id(), self.dir_keys());
        match DirFault::split(look(&dir)) {
            Ok(Ok(value)) => Ok(Ok(value)),
            Ok(Err(error @ DirError::Damaged { .. })) => {
                tracing::error!(fsid = self.fsid.get(), dir = ino.get(), "{error}");
                Err(Status::Io.into())
            }
            Ok(Err(error)) => Ok(Err(error)),
            Err(at) => Err(miss(FileId::Inode(ino), at)),
        }
    }

    /// Whether a zombie inode is to be reaped.
    pub fn has_zombies(&self) -> bool {
        self.zombie_head.get() != 0
    }

    /// Puts an in-core inode at the head of the zombie list. It must be ready.
    pub fn push_zombie(&mut self, ino: InodeNo) {
        let next = self.zombie_head;
        let file = self.file_mut(ino);
        file.inode.flags |= inode_flags::ZOMBIE;
        file.inode.next_zombie = next;
        file.inode.links = 0;
        file.unlogged.clear();
        file.unlogged_many = false;
        self.zombie_head = ino;
        self.touch(ino);
        self.dirty_files.insert(ino);
    }

    /// Blocks that the next freeze has to place, without the maps.
    pub fn to_place(&self) -> u64 {
        let files: u64 = self
            .dirty_files
            .iter()
            .filter_map(|ino| self.in_core.get(ino))
            .map(|f| f.tree.dirty_blocks())
            .sum();
        files + self.inode_file.dirty_blocks() + self.inode_map.dirty_blocks()
    }

    /// Whether a consistency point has anything to write here.
    pub fn is_dirty(&self) -> bool {
        !self.dirty_files.is_empty()
            || !self.freed.is_empty()
            || !self.inode_map.is_clean()
            || !self.inode_file.is_clean()
            || !self.inodes_freed.is_empty()
    }
}

pub(crate) fn inode_offset(ino: InodeNo) -> usize {
    usize::try_from(ino.get() % INODES_PER_BLOCK).unwrap_or_default() * INODE_BYTES
}
