//! Resolved changes: what an operation does to a volume once everything about it is decided, and
//! the body of its log record.
//!
//! Layer: message handlers. A [`Change`] holds every number, time and generation that was chosen,
//! so that applying it twice to the same state gives the same state: live and in replay.
//! Invariant: `decode(encode(c)) == c`; decoding never panics.

use cairn_op::Name;
use cairn_units::{
    Generation, Gid, InodeNo, LINK_TARGET_BYTES_MAX, NAME_BYTES_MAX, ObjectId, Uid, WallTime,
};
use cairn_wafl_format::InodeKind;

/// Version of the record bodies; part of every body.
const BODY_VERSION: u8 = 1;
/// Longest body: a symlink with the longest name and target, or an extended attribute's head.
pub(crate) const BODY_BYTES_MAX: usize = 6144;

/// A number that an operation took for a new inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewInode {
    pub ino: InodeNo,
    pub generation: Generation,
}

/// Attributes to set, all decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Setting {
    pub mode: Option<u32>,
    pub uid: Option<Uid>,
    pub gid: Option<Gid>,
    pub size: Option<u64>,
    pub atime: Option<WallTime>,
    pub mtime: Option<WallTime>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MakeChange {
    pub dir: InodeNo,
    pub name: Name,
    pub new: NewInode,
    pub kind: InodeKind,
    pub mode: u32,
    pub uid: Uid,
    pub gid: Gid,
    pub size: u64,
    pub device: (u32, u32),
    /// Verifier of an exclusive create.
    pub verifier: Option<[u8; 8]>,
    pub object: ObjectId,
    pub atime: WallTime,
    pub mtime: WallTime,
    pub target: Vec<u8>,
}

/// One change of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// `bytes` bytes of the payload to `offset`; `mode` is what the mode becomes.
    Write {
        ino: InodeNo,
        offset: u64,
        bytes: u32,
        mode: u32,
    },
    Set {
        ino: InodeNo,
        set: Setting,
        zombie: Option<NewInode>,
    },
    Make(Box<MakeChange>),
    Remove {
        dir: InodeNo,
        name: Name,
    },
    Rename {
        from_dir: InodeNo,
        from_name: Name,
        to_dir: InodeNo,
        to_name: Name,
    },
    Link {
        ino: InodeNo,
        dir: InodeNo,
        name: Name,
    },
    Punch {
        ino: InodeNo,
        offset: u64,
        end: u64,
        mode: u32,
    },
    /// Extended attributes as a whole: the serialized set is the payload (`bytes` long).
    Xattrs {
        ino: InodeNo,
        bytes: u32,
        new: Option<NewInode>,
    },
}

impl Change {
    /// Kind of the log record.
    pub fn kind(&self) -> u16 {
        match self {
            Change::Write { .. } => 1,
            Change::Set { .. } => 2,
            Change::Make(_) => 3,
            Change::Remove { .. } => 4,
            Change::Rename { .. } => 5,
            Change::Link { .. } => 6,
            Change::Punch { .. } => 7,
            Change::Xattrs { .. } => 8,
        }
    }

    /// Body of the log record.
    pub fn encode(&self, time: WallTime) -> Vec<u8> {
        let mut w = Writer(vec![BODY_VERSION]);
        w.i64(time.get());
        match self {
            Change::Write { ino, offset, bytes, mode } => {
                w.u64(ino.get());
                w.u64(*offset);
                w.u32(*bytes);
                w.u32(*mode);
            }
            Change::Set { ino, set, zombie } => {
                w.u64(ino.get());
                w.opt(set.mode, Writer::u32);
                w.opt(set.uid.map(Uid::get), Writer::u32);
                w.opt(set.gid.map(Gid::get), Writer::u32);
                w.opt(set.size, Writer::u64);
                w.opt(set.atime.map(WallTime::get), Writer::i64);
                w.opt(set.mtime.map(WallTime::get), Writer::i64);
                w.opt(*zombie, Writer::inode);
            }
            Change::Make(m) => {
                w.u64(m.dir.get());
                w.name(&m.name);
                w.inode(m.new);
                w.0.push(m.kind as u8);
                w.u32(m.mode);
                w.u32(m.uid.get());
                w.u32(m.gid.get());
                w.u64(m.size);
                w.u32(m.device.0);
                w.u32(m.device.1);
                w.opt(m.verifier, |w, v| w.0.extend_from_slice(&v));
                w.0.extend_from_slice(&m.object.bytes());
                w.i64(m.atime.get());
                w.i64(m.mtime.get());
                w.bytes(&m.target);
            }
            Change::Remove { dir, name } => {
                w.u64(dir.get());
                w.name(name);
            }
            Change::Rename { from_dir, from_name, to_dir, to_name } => {
                w.u64(from_dir.get());
                w.name(from_name);
                w.u64(to_dir.get());
                w.name(to_name);
            }
            Change::Link { ino, dir, name } => {
                w.u64(ino.get());
                w.u64(dir.get());
                w.name(name);
            }
            Change::Punch { ino, offset, end, mode } => {
                w.u64(ino.get());
                w.u64(*offset);
                w.u64(*end);
                w.u32(*mode);
            }
            Change::Xattrs { ino, bytes, new } => {
                w.u64(ino.get());
                w.u32(*bytes);
                w.opt(*new, Writer::inode);
            }
        }
        assert!(w.0.len() <= BODY_BYTES_MAX, "log body of {} bytes", w.0.len());
        w.0
    }

    /// Reads a body; `None` when it cannot be one.
    pub fn decode(kind: u16, body: &[u8]) -> Option<(Self, WallTime)> {
        let mut r = Reader(body);
        if r.u8()? != BODY_VERSION {
            return None;
        }
        let time = WallTime::new(r.i64()?);
        let change = match kind {
            1 => Change::Write {
                ino: InodeNo::new(r.u64()?),
                offset: r.u64()?,
                bytes: r.u32()?,
                mode: r.u32()?,
            },
            2 => Change::Set {
                ino: InodeNo::new(r.u64()?),
                set: Setting {
                    mode: r.opt(Reader::u32)?,
                    uid: r.opt(Reader::u32)?.map(Uid::new),
                    gid: r.opt(Reader::u32)?.map(Gid::new),
                    size: r.opt(Reader::u64)?,
                    atime: r.opt(Reader::i64)?.map(WallTime::new),
                    mtime: r.opt(Reader::i64)?.map(WallTime::new),
                },
                zombie: r.opt(Reader::inode)?,
            },
            3 => Change::Make(Box::new(MakeChange {
                dir: InodeNo::new(r.u64()?),
                name: r.name()?,
                new: r.inode()?,
                kind: kind_of(r.u8()?)?,
                mode: r.u32()?,
                uid: Uid::new(r.u32()?),
                gid: Gid::new(r.u32()?),
                size: r.u64()?,
                device: (r.u32()?, r.u32()?),
                verifier: r.opt(Reader::array)?,
                object: ObjectId::new(r.array()?),
                atime: WallTime::new(r.i64()?),
                mtime: WallTime::new(r.i64()?),
                target: r.bytes().filter(|t| t.len() <= LINK_TARGET_BYTES_MAX)?.to_vec(),
            })),
            4 => Change::Remove { dir: InodeNo::new(r.u64()?), name: r.name()? },
            5 => Change::Rename {
                from_dir: InodeNo::new(r.u64()?),
                from_name: r.name()?,
                to_dir: InodeNo::new(r.u64()?),
                to_name: r.name()?,
            },
            6 => Change::Link {
                ino: InodeNo::new(r.u64()?),
                dir: InodeNo::new(r.u64()?),
                name: r.name()?,
            },
            7 => Change::Punch {
                ino: InodeNo::new(r.u64()?),
                offset: r.u64()?,
                end: r.u64()?,
                mode: r.u32()?,
            },
            8 => Change::Xattrs {
                ino: InodeNo::new(r.u64()?),
                bytes: r.u32()?,
                new: r.opt(Reader::inode)?,
            },
            _ => return None,
        };
        r.0.is_empty().then_some((change, time))
    }
}

fn kind_of(raw: u8) -> Option<InodeKind> {
    Some(match raw {
        1 => InodeKind::Regular,
        2 => InodeKind::Directory,
        3 => InodeKind::Symlink,
        4 => InodeKind::BlockDevice,
        5 => InodeKind::CharDevice,
        6 => InodeKind::Fifo,
        7 => InodeKind::Socket,
        _ => return None,
    })
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    fn i64(&mut self, v: i64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    fn inode(&mut self, v: NewInode) {
        self.u64(v.ino.get());
        self.u32(v.generation.get());
    }
    fn bytes(&mut self, v: &[u8]) {
        let Ok(len) = u16::try_from(v.len()) else { panic!("{} bytes in a log body", v.len()) };
        self.0.extend_from_slice(&len.to_le_bytes());
        self.0.extend_from_slice(v);
    }
    fn name(&mut self, v: &Name) {
        self.bytes(v.as_bytes());
    }
    fn opt<T>(&mut self, v: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.0.push(u8::from(v.is_some()));
        if let Some(v) = v {
            put(self, v);
        }
    }
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, n: usize) -> Option<&'b [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
    fn inode(&mut self) -> Option<NewInode> {
        Some(NewInode { ino: InodeNo::new(self.u64()?), generation: Generation::new(self.u32()?) })
    }
    fn bytes(&mut self) -> Option<&'b [u8]> {
        let len = u16::from_le_bytes(self.array()?);
        self.take(usize::from(len))
    }
    fn name(&mut self) -> Option<Name> {
        let bytes = self.bytes()?;
        if bytes.len() > NAME_BYTES_MAX {
            return None;
        }
        Name::new(bytes::Bytes::copy_from_slice(bytes)).ok()
    }
    fn opt<T>(&mut self, get: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.u8()? {
            0 => Some(None),
            1 => Some(Some(get(self)?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &'static [u8]) -> Name {
        Name::new(bytes::Bytes::from_static(text)).unwrap()
    }

    #[test]
    fn every_change_round_trips_through_its_record_and_no_prefix_does() {
        let new = NewInode { ino: InodeNo::new(9), generation: Generation::new(2) };
        let time = WallTime::new(-77);
        let set = Setting { mode: Some(1), mtime: Some(time), size: Some(4), ..Setting::default() };
        let changes = [
            Change::Write { ino: new.ino, offset: 1 << 62, bytes: 5, mode: 0o644 },
            Change::Set { ino: new.ino, set, zombie: Some(new) },
            Change::Make(Box::new(MakeChange {
                dir: InodeNo::new(2),
                name: name(b"x"),
                new,
                kind: InodeKind::Symlink,
                mode: 0o777,
                uid: Uid::new(1),
                gid: Gid::new(2),
                size: 3,
                device: (4, 5),
                verifier: Some([6; 8]),
                object: ObjectId::new([7; 16]),
                atime: time,
                mtime: time,
                target: vec![8; 4096],
            })),
            Change::Remove { dir: new.ino, name: name(b"y") },
            Change::Rename {
                from_dir: new.ino,
                from_name: name(b"a"),
                to_dir: InodeNo::new(1),
                to_name: name(b"\xff"),
            },
            Change::Link { ino: new.ino, dir: InodeNo::new(3), name: name(b"l") },
            Change::Punch { ino: new.ino, offset: 1, end: 2, mode: 3 },
            Change::Xattrs { ino: new.ino, bytes: 9, new: None },
        ];
        for change in changes {
            let body = change.encode(time);
            assert_eq!(Change::decode(change.kind(), &body), Some((change.clone(), time)));
            for cut in 0..body.len() {
                assert_eq!(Change::decode(change.kind(), &body[..cut]), None, "{change:?} {cut}");
            }
        }
    }
}
