//! Inodes: 512 bytes, eight to a block of the inode file.

use cairn_units::{Generation, Gid, InodeNo, ObjectId, Uid, WallTime};
use zerocopy::byteorder::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{BlockPtr, FORMAT_VERSION, FormatError, RawPtr};

const STRUCTURE: &str = "inode";
/// Bytes of an inode.
pub const INODE_BYTES: usize = 512;
/// Inodes in a block.
pub const INODES_PER_BLOCK: u64 = 8;
/// Pointers in an inode: with height 0 they point to data, with height h to indirect blocks of
/// level h.
pub const DIRECT_POINTERS: usize = 16;
/// Bytes that may lie in the inode in place of the pointers.
pub const INLINE_BYTES_MAX: usize = 256;

/// Bits of [`Inode::flags`].
pub mod inode_flags {
    /// The pointer area holds `inline_bytes` bytes of the file itself.
    pub const INLINE: u32 = 1;
    /// A removed file or cut-off tail whose blocks are still being freed.
    pub const ZOMBIE: u32 = 2;
    /// `verifier` is that of the exclusive create that made the file.
    pub const EXCLUSIVE: u32 = 4;
}

/// An inode on disk.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawInode {
    version: U16,
    kind: u8,
    height: u8,
    mode: U32,
    ino: U64,
    generation: U32,
    links: U32,
    uid: U32,
    gid: U32,
    size: U64,
    blocks: I64,
    atime: I64,
    mtime: I64,
    ctime: I64,
    birth: I64,
    change: U64,
    device_major: U32,
    device_minor: U32,
    object: [u8; 16],
    parent: U64,
    verifier: [u8; 8],
    dos_attributes: U32,
    project: U32,
    acl: U64,
    xattr: U64,
    streams: U64,
    flags: U32,
    inline_bytes: U16,
    reserved_a: U16,
    next_zombie: U64,
    quota_tree: U32,
    reserved_b: U32,
    reserved_c: [u8; 72],
    area: [u8; INLINE_BYTES_MAX],
}
const _: () = assert!(size_of::<RawInode>() == INODE_BYTES);
const _: () = assert!(INLINE_BYTES_MAX == DIRECT_POINTERS * size_of::<RawPtr>());

/// What one inode adds to the sums of its volume: the few fields that the running digests need,
/// read without decoding the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InodeShare {
    /// In use, and neither internal nor a zombie: it has names.
    pub live: bool,
    /// Directory.
    pub directory: bool,
    /// Names, and for a directory `.` and the `..` of its children.
    pub links: i64,
    /// Blocks, whatever the inode is.
    pub blocks: i64,
}

impl InodeShare {
    /// Share of the inode in `bytes`; nothing for bytes that are no inode of this version.
    pub fn of(bytes: &[u8]) -> Self {
        let Ok(raw) = RawInode::ref_from_bytes(bytes) else { return Self::default() };
        let kind = InodeKind::from_raw(raw.kind).unwrap_or(InodeKind::Free);
        if kind == InodeKind::Free {
            return Self::default();
        }
        let live = kind != InodeKind::Internal && raw.flags.get() & inode_flags::ZOMBIE == 0;
        Self {
            live,
            directory: kind == InodeKind::Directory,
            links: i64::from(raw.links.get()),
            blocks: raw.blocks.get(),
        }
    }
}

/// Kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum InodeKind {
    /// Not in use; the generation of the next use is kept.
    Free = 0,
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Block device.
    BlockDevice = 4,
    /// Character device.
    CharDevice = 5,
    /// FIFO.
    Fifo = 6,
    /// Socket.
    Socket = 7,
    /// File of the storage manager itself (maps, tables, extended attributes).
    Internal = 8,
}

impl InodeKind {
    fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::Free,
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::Symlink,
            4 => Self::BlockDevice,
            5 => Self::CharDevice,
            6 => Self::Fifo,
            7 => Self::Socket,
            8 => Self::Internal,
            _ => return None,
        })
    }
}

/// The [`DIRECT_POINTERS`] pointers of an inode. Those behind the last that is no hole take no
/// memory: most files have one block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pointers(Vec<BlockPtr>);

impl Pointers {
    /// The pointer in `slot`.
    pub fn get(&self, slot: usize) -> BlockPtr {
        self.0.get(slot).copied().unwrap_or(BlockPtr::HOLE)
    }
    /// Puts a pointer into `slot`.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn set(&mut self, slot: usize, ptr: BlockPtr) {
        assert!(slot < DIRECT_POINTERS, "slot {slot} of an inode");
        if let Some(old) = self.0.get_mut(slot) {
            *old = ptr;
        } else if ptr != BlockPtr::HOLE {
            self.0.reserve_exact(slot + 1 - self.0.len());
            self.0.resize(slot, BlockPtr::HOLE);
            self.0.push(ptr);
        }
        self.trim();
    }
    /// The pointers in their order, those behind the last that is no hole left out.
    pub fn iter(&self) -> impl Iterator<Item = BlockPtr> + use<'_> {
        self.0.iter().copied()
    }
    /// Keeps the pointers before `slot` and gives away the others, in their slots.
    pub fn split_off(&mut self, slot: usize) -> Self {
        let mut right = Self::default();
        for (at, ptr) in self.0.iter_mut().enumerate().skip(slot).rev() {
            right.set(at, core::mem::take(ptr));
        }
        self.trim();
        right
    }
    fn trim(&mut self) {
        while self.0.last() == Some(&BlockPtr::HOLE) {
            self.0.pop();
        }
    }
    fn decode(area: &[u8; INLINE_BYTES_MAX]) -> Self {
        const POINTER_BYTES: usize = size_of::<RawPtr>();
        let (all, _) = area.as_chunks::<POINTER_BYTES>();
        let used = all.iter().rposition(|p| *p != [0; POINTER_BYTES]).map_or(0, |at| at + 1);
        let decode = |bytes: &[u8; POINTER_BYTES]| {
            let raw: RawPtr = zerocopy::transmute!(*bytes);
            raw.into()
        };
        Self(all[..used].iter().map(decode).collect())
    }
}

/// An inode in memory, without its block tree's buffers. In the order of declaration: what
/// attributes are made of takes two cache lines, not one field of each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Inode {
    /// Kind.
    pub kind: InodeKind,
    /// Levels of indirect blocks below the pointers.
    pub height: u8,
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// Its own number.
    pub ino: InodeNo,
    /// Generation.
    pub generation: Generation,
    /// Names.
    pub links: u32,
    /// Owner.
    pub uid: Uid,
    /// Group.
    pub gid: Gid,
    /// Size in bytes.
    pub size: u64,
    /// Blocks on disk: data and indirect. Of a file with holes that was cut, what is known so far:
    /// it is corrected when the cut-off tail is freed, and may be negative in a zombie till then.
    pub blocks: i64,
    /// Last read.
    pub atime: WallTime,
    /// Last change of data.
    pub mtime: WallTime,
    /// Last change of anything.
    pub ctime: WallTime,
    /// Birth.
    pub birth: WallTime,
    /// Change counter.
    pub change: u64,
    /// Device number.
    pub device: (u32, u32),
    /// Global object id.
    pub object: ObjectId,
    /// Directory: its parent. Else: a directory it was linked into.
    pub parent: InodeNo,
    /// Verifier of an exclusive create.
    pub verifier: [u8; 8],
    /// DOS attributes.
    pub dos_attributes: u32,
    /// Project or qtree id.
    pub project: u32,
    /// Inode of the access control list, 0 for none.
    pub acl: InodeNo,
    /// Inode of the extended attributes, 0 for none.
    pub xattr: InodeNo,
    /// Inode of the named streams, 0 for none.
    pub streams: InodeNo,
    /// See [`inode_flags`].
    pub flags: u32,
    /// Next inode in the volume's list of zombies, 0 at the end.
    pub next_zombie: InodeNo,
    /// Qtree.
    pub quota_tree: u32,
    /// Pointers, unless the file is inline.
    pub pointers: Pointers,
    /// The file itself, if it is inline.
    pub inline: Vec<u8>,
}

impl Inode {
    /// A free inode: all zero but its number and generation.
    pub fn free(ino: InodeNo, generation: Generation) -> Self {
        Self {
            kind: InodeKind::Free,
            height: 0,
            mode: 0,
            ino,
            generation,
            links: 0,
            uid: Uid::new(0),
            gid: Gid::new(0),
            size: 0,
            blocks: 0,
            atime: WallTime::new(0),
            mtime: WallTime::new(0),
            ctime: WallTime::new(0),
            birth: WallTime::new(0),
            change: 0,
            device: (0, 0),
            object: ObjectId::default(),
            parent: InodeNo::new(0),
            verifier: [0; 8],
            dos_attributes: 0,
            project: 0,
            acl: InodeNo::new(0),
            xattr: InodeNo::new(0),
            streams: InodeNo::new(0),
            flags: 0,
            next_zombie: InodeNo::new(0),
            quota_tree: 0,
            pointers: Pointers::default(),
            inline: Vec::new(),
        }
    }

    /// Whether the file lies in the inode itself.
    pub fn is_inline(&self) -> bool {
        self.flags & inode_flags::INLINE != 0
    }

    /// Whether this is a removed file or tail that is still being freed.
    pub fn is_zombie(&self) -> bool {
        self.flags & inode_flags::ZOMBIE != 0
    }

    /// Reads an inode. All-zero bytes are a free inode with generation 0.
    ///
    /// # Errors
    /// [`FormatError`] for another version or impossible fields.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (mut inode, raw) = Self::decode_fields(bytes)?;
        if inode.is_inline() {
            let inline = raw.area.get(..usize::from(raw.inline_bytes.get()));
            let field = FormatError::Field { structure: STRUCTURE, field: "inline_bytes" };
            inode.inline.extend_from_slice(inline.ok_or(field)?);
        } else {
            inode.pointers = Pointers::decode(&raw.area);
        }
        Ok(inode)
    }

    /// Reads an inode for its attributes alone: its pointers, or the file in it, are left out.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_attributes(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::decode_fields(bytes).map(|(inode, _)| inode)
    }

    fn decode_fields(bytes: &[u8]) -> Result<(Self, &RawInode), FormatError> {
        const S: &str = STRUCTURE;
        let raw =
            RawInode::ref_from_bytes(bytes).map_err(|_| FormatError::NotThis { structure: S })?;
        if raw.version.get() == 0 && bytes.iter().all(|b| *b == 0) {
            return Ok((Self::free(InodeNo::new(0), Generation::new(0)), raw));
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(FormatError::Version {
                structure: S,
                found: raw.version.get(),
                known: FORMAT_VERSION,
            });
        }
        let field = |field| FormatError::Field { structure: S, field };
        let kind = InodeKind::from_raw(raw.kind).ok_or(field("kind"))?;
        if raw.height > 6 {
            return Err(field("height"));
        }
        if raw.size.get() > cairn_units::FILE_BYTES_MAX {
            return Err(field("size"));
        }
        let inode = Self {
            kind,
            height: raw.height,
            mode: raw.mode.get(),
            ino: InodeNo::new(raw.ino.get()),
            generation: Generation::new(raw.generation.get()),
            links: raw.links.get(),
            uid: Uid::new(raw.uid.get()),
            gid: Gid::new(raw.gid.get()),
            size: raw.size.get(),
            blocks: raw.blocks.get(),
            atime: WallTime::new(raw.atime.get()),
            mtime: WallTime::new(raw.mtime.get()),
            ctime: WallTime::new(raw.ctime.get()),
            birth: WallTime::new(raw.birth.get()),
            change: raw.change.get(),
            device: (raw.device_major.get(), raw.device_minor.get()),
            object: ObjectId::new(raw.object),
            parent: InodeNo::new(raw.parent.get()),
            verifier: raw.verifier,
            dos_attributes: raw.dos_attributes.get(),
            project: raw.project.get(),
            acl: InodeNo::new(raw.acl.get()),
            xattr: InodeNo::new(raw.xattr.get()),
            streams: InodeNo::new(raw.streams.get()),
            flags: raw.flags.get(),
            next_zombie: InodeNo::new(raw.next_zombie.get()),
            quota_tree: raw.quota_tree.get(),
            pointers: Pointers::default(),
            inline: Vec::new(),
        };
        Ok((inode, raw))
    }

    /// Writes the inode.
    ///
    /// # Panics
    /// When `inline` is longer than [`INLINE_BYTES_MAX`]: a broken invariant.
    pub fn encode(&self) -> [u8; INODE_BYTES] {
        let mut area = [0; INLINE_BYTES_MAX];
        if self.is_inline() {
            area[..self.inline.len()].copy_from_slice(&self.inline);
        } else {
            for (bytes, p) in area.chunks_exact_mut(16).zip(self.pointers.iter()) {
                bytes.copy_from_slice(RawPtr::from(p).as_bytes());
            }
        }
        let raw = RawInode {
            version: FORMAT_VERSION.into(),
            kind: self.kind as u8,
            height: self.height,
            mode: self.mode.into(),
            ino: self.ino.get().into(),
            generation: self.generation.get().into(),
            links: self.links.into(),
            uid: self.uid.get().into(),
            gid: self.gid.get().into(),
            size: self.size.into(),
            blocks: self.blocks.into(),
            atime: self.atime.get().into(),
            mtime: self.mtime.get().into(),
            ctime: self.ctime.get().into(),
            birth: self.birth.get().into(),
            change: self.change.into(),
            device_major: self.device.0.into(),
            device_minor: self.device.1.into(),
            object: self.object.bytes(),
            parent: self.parent.get().into(),
            verifier: self.verifier,
            dos_attributes: self.dos_attributes.into(),
            project: self.project.into(),
            acl: self.acl.get().into(),
            xattr: self.xattr.get().into(),
            streams: self.streams.get().into(),
            flags: self.flags.into(),
            inline_bytes: match u16::try_from(self.inline.len()) {
                Ok(n) => n.into(),
                Err(_) => panic!("inline data is at most {INLINE_BYTES_MAX} bytes"),
            },
            reserved_a: 0.into(),
            next_zombie: self.next_zombie.get().into(),
            quota_tree: self.quota_tree.into(),
            reserved_b: 0.into(),
            reserved_c: [0; 72],
            area,
        };
        let mut out = [0; INODE_BYTES];
        out.copy_from_slice(raw.as_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_round_trips_with_pointers_and_inline() {
        let mut inode = Inode::free(InodeNo::new(77), Generation::new(3));
        inode.kind = InodeKind::Regular;
        inode.size = cairn_units::FILE_BYTES_MAX;
        inode.pointers.set(15, pointer(9));
        assert_eq!(Inode::decode(&inode.encode()), Ok(inode.clone()));
        inode.pointers = Pointers::default();
        inode.flags = inode_flags::INLINE;
        inode.inline = vec![1; INLINE_BYTES_MAX];
        assert_eq!(Inode::decode(&inode.encode()), Ok(inode.clone()));
        inode.inline.clear();
        assert_eq!(Inode::decode_attributes(&inode.encode()), Ok(inode));
    }

    /// Beside an array: what takes no memory reads as a hole, and equal pointers are equal.
    #[test]
    fn pointers_are_an_array_of_sixteen() {
        let mut random = 1u64;
        let mut next = |end: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from((random >> 33) % end).unwrap()
        };
        let (mut pointers, mut twin) = (Pointers::default(), [BlockPtr::HOLE; DIRECT_POINTERS]);
        let all = |p: &Pointers| core::array::from_fn(|slot| p.get(slot));
        let of = |twin: [BlockPtr; DIRECT_POINTERS]| {
            let mut pointers = Pointers::default();
            (0..DIRECT_POINTERS).rev().for_each(|slot| pointers.set(slot, twin[slot]));
            pointers
        };
        for step in 0..2000 {
            let slot = next(DIRECT_POINTERS as u64);
            let ptr = if next(2) == 0 { BlockPtr::HOLE } else { pointer(step) };
            pointers.set(slot, ptr);
            twin[slot] = ptr;
            assert_eq!(all(&pointers), twin);
            assert_eq!(pointers, of(twin), "whatever was set before");
            let kept = twin.iter().rposition(|p| *p != BlockPtr::HOLE).map_or(0, |at| at + 1);
            assert_eq!(pointers.iter().collect::<Vec<_>>(), twin[..kept]);
            let (mut left, at) = (pointers.clone(), next(DIRECT_POINTERS as u64 + 2));
            let right = left.split_off(at);
            let part = |from: usize, to: usize| {
                core::array::from_fn(|s| if s >= from && s < to { twin[s] } else { BlockPtr::HOLE })
            };
            assert_eq!((&left, &right), (&of(part(0, at)), &of(part(at, DIRECT_POINTERS))));
        }
    }

    fn pointer(at: u64) -> BlockPtr {
        BlockPtr {
            vvbn: cairn_units::Vvbn::new(at + 1),
            pvbn: cairn_units::Pvbn::new(at + 2),
            crc: cairn_units::Crc::new(7),
        }
    }

    #[test]
    fn inode_with_unknown_version_or_kind_is_refused() {
        let mut bytes = Inode::free(InodeNo::new(1), Generation::new(0)).encode();
        bytes[0] = 9;
        assert!(matches!(Inode::decode(&bytes), Err(FormatError::Version { found: 9, .. })));
        bytes[0] = 1;
        bytes[2] = 200;
        assert!(matches!(Inode::decode(&bytes), Err(FormatError::Field { .. })));
        assert!(matches!(Inode::decode(&bytes[1..]), Err(FormatError::NotThis { .. })));
    }
}
