//! One file in memory.
//!
//! Layer: model, below `node`. Invariant: `body` fits `kind`; the two maps of a directory hold the
//! same entries.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_op::{
    Attrs, Credential, DeviceNo, FileKind, LinkTarget, Name, ObjectRef, SetAttrs, SetTime, Status,
    Verifier,
};
use cairn_sys::Block;
use cairn_units::{
    BLOCK_BYTES, BLOCK_BYTES_U64, Fbn, Fsid, Generation, Gid, InodeNo, ObjectId, SnapId, Uid,
    WallTime,
};

use crate::rules::{self, Guarded, Want};

/// A file of any kind.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) fsid: Fsid,
    pub(crate) ino: InodeNo,
    pub(crate) generation: Generation,
    pub(crate) kind: FileKind,
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) size: u64,
    pub(crate) device: DeviceNo,
    pub(crate) atime: WallTime,
    pub(crate) mtime: WallTime,
    pub(crate) ctime: WallTime,
    pub(crate) birth: WallTime,
    pub(crate) change: u64,
    pub(crate) created_by: Option<Verifier>,
    pub(crate) xattrs: BTreeMap<Name, Vec<u8>>,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Data(BTreeMap<Fbn, Block>),
    Dir(Directory),
    Link(LinkTarget),
    Node,
}

/// Entries by name and by cookie; cookies are given in order and never twice.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    pub(crate) parent: InodeNo,
    names: BTreeMap<Name, (InodeNo, u64)>,
    cookies: BTreeMap<u64, Name>,
    next_cookie: u64,
}

/// Cookie of `.`.
pub(crate) const COOKIE_DOT: u64 = 1;
/// Cookie of `..`.
pub(crate) const COOKIE_DOTDOT: u64 = 2;

impl Directory {
    pub(crate) fn new(parent: InodeNo) -> Self {
        let next_cookie = COOKIE_DOTDOT + 1;
        Self { parent, names: BTreeMap::new(), cookies: BTreeMap::new(), next_cookie }
    }
    pub(crate) fn get(&self, name: &Name) -> Option<InodeNo> {
        self.names.get(name).map(|(ino, _)| *ino)
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
    pub(crate) fn insert(&mut self, name: Name, ino: InodeNo) {
        self.remove(&name);
        self.names.insert(name.clone(), (ino, self.next_cookie));
        self.cookies.insert(self.next_cookie, name);
        self.next_cookie += 1;
    }
    pub(crate) fn remove(&mut self, name: &Name) {
        if let Some((_, cookie)) = self.names.remove(name) {
            self.cookies.remove(&cookie);
        }
    }
    /// Entries behind `cookie`, in the order of cookies, with `.` and `..` of directory `own`.
    pub(crate) fn behind(
        &self,
        own: InodeNo,
        cookie: u64,
    ) -> impl Iterator<Item = (Name, InodeNo, u64)> + '_ {
        let dots = [(&b"."[..], own, COOKIE_DOT), (&b".."[..], self.parent, COOKIE_DOTDOT)];
        let dots = dots.into_iter().filter_map(|(name, ino, at)| {
            Some((Name::new(Bytes::from_static(name)).ok()?, ino, at))
        });
        let rest = self.cookies.iter().filter_map(|(at, name)| {
            self.names.get(name).map(|(ino, _)| (name.clone(), *ino, *at))
        });
        dots.chain(rest).filter(move |(_, _, at)| *at > cookie)
    }
}

impl Inode {
    pub(crate) fn object(&self) -> ObjectRef {
        ObjectRef {
            fsid: self.fsid,
            snap: SnapId::new(0),
            ino: self.ino,
            generation: self.generation,
        }
    }

    pub(crate) fn attrs(&self) -> Attrs {
        let mut object = [0; 16];
        object[..8].copy_from_slice(&self.ino.get().to_le_bytes());
        object[8..12].copy_from_slice(&self.generation.get().to_le_bytes());
        Attrs {
            kind: self.kind,
            mode: self.mode,
            links: self.links,
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            used: self.used_blocks() * BLOCK_BYTES_U64,
            device: self.device,
            fsid: self.fsid,
            ino: self.ino,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            birth: self.birth,
            change: self.change,
            object: ObjectId::new(object),
        }
    }

    pub(crate) fn used_blocks(&self) -> u64 {
        match &self.body {
            Body::Data(blocks) => blocks.len() as u64,
            Body::Dir(_) => 1,
            Body::Link(_) | Body::Node => 0,
        }
    }

    pub(crate) fn guarded<'a>(&self, cred: &'a Credential) -> Guarded<'a> {
        Guarded { kind: self.kind, mode: self.mode, uid: self.uid, gid: self.gid, cred }
    }

    pub(crate) fn check(&self, cred: &Credential, want: Want) -> Result<(), Status> {
        self.guarded(cred).check(want)
    }

    pub(crate) fn dir(&self) -> Result<&Directory, Status> {
        match &self.body {
            Body::Dir(dir) => Ok(dir),
            Body::Data(_) | Body::Link(_) | Body::Node => Err(Status::NotDirectory),
        }
    }

    pub(crate) fn dir_mut(&mut self) -> Result<&mut Directory, Status> {
        match &mut self.body {
            Body::Dir(dir) => Ok(dir),
            Body::Data(_) | Body::Link(_) | Body::Node => Err(Status::NotDirectory),
        }
    }

    pub(crate) fn data(&self) -> Result<&BTreeMap<Fbn, Block>, Status> {
        match &self.body {
            Body::Data(blocks) => Ok(blocks),
            Body::Dir(_) => Err(Status::IsDirectory),
            Body::Link(_) | Body::Node => Err(Status::Invalid),
        }
    }

    pub(crate) fn data_mut(&mut self) -> Result<&mut BTreeMap<Fbn, Block>, Status> {
        match &mut self.body {
            Body::Data(blocks) => Ok(blocks),
            Body::Dir(_) => Err(Status::IsDirectory),
            Body::Link(_) | Body::Node => Err(Status::Invalid),
        }
    }

    /// Something about the file (not its data or names) changed.
    pub(crate) fn touch_ctime(&mut self, now: WallTime) {
        self.ctime = now;
        self.change += 1;
    }

    /// Its data or names changed.
    pub(crate) fn touch_mtime(&mut self, now: WallTime) {
        self.mtime = now;
        self.touch_ctime(now);
    }

    /// It was read: the access time moves only when it lies before the last change, or a day ago.
    pub(crate) fn touch_atime(&mut self, now: WallTime) {
        const DAY_NS: i64 = 86_400_000_000_000;
        let old = now.get().saturating_sub(self.atime.get()) >= DAY_NS;
        if self.atime <= self.mtime || self.atime <= self.ctime || old {
            self.atime = now;
        }
    }

    /// Applies what [`Guarded::check_set`] allowed.
    pub(crate) fn apply(&mut self, cred: &Credential, set: &SetAttrs, now: WallTime) {
        if *set == SetAttrs::default() {
            return;
        }
        let guarded = self.guarded(cred);
        let gid = set.gid.unwrap_or(self.gid);
        if let Some(mode) = set.mode {
            self.mode = guarded.chmod(mode, gid);
        }
        if set.uid.is_some() || set.gid.is_some() {
            self.mode = rules::mode_after_chown(self.kind, self.mode);
        }
        self.uid = set.uid.unwrap_or(self.uid);
        self.gid = gid;
        if let Some(size) = set.size {
            self.set_size(size);
            self.mode = rules::mode_after_write(cred, self.mode);
            self.mtime = now;
        }
        for (time, to) in [(&mut self.atime, set.atime), (&mut self.mtime, set.mtime)] {
            match to {
                SetTime::Keep => {}
                SetTime::Now => *time = now,
                SetTime::To(at) => *time = at,
            }
        }
        self.touch_ctime(now);
    }

    /// Cuts off or extends with a hole.
    pub(crate) fn set_size(&mut self, size: u64) {
        if let Body::Data(blocks) = &mut self.body {
            let keep = Fbn::new(size.div_ceil(BLOCK_BYTES_U64));
            drop(blocks.split_off(&keep));
            let tail = usize::try_from(size % BLOCK_BYTES_U64).unwrap_or(0);
            if tail != 0
                && let Some(block) = blocks.get_mut(&Fbn::of_offset(size))
            {
                block.make_mut()[tail..BLOCK_BYTES].fill(0);
            }
            self.size = size;
        }
    }
}
