//! nfsserve's file system trait on a volume of a D-module.
//!
//! Layer: benchmarks. nfsserve names files by one number; the generation that our references carry
//! beside it is remembered from the answer that first named the file.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_cf::DModule;
use cairn_op::{
    Attrs, ClientAddr, CreateHow, Credential, FileKind, LinkTarget, ListLimits, Name, ObjectRef,
    Op, OpCtx, ReadOnly, Reply, SetAttrs, SetTime, Stability, Status, Verifier, WithFiles,
};
use cairn_sys::Payload;
use cairn_units::{Cookie, Generation, Gid, InodeNo, OpNo, Uid, VserverId, WallTime};
use nfsserve::nfs::{
    fattr3, fileid3, filename3, ftype3, nfspath3, nfsstat3, nfstime3, sattr3, set_atime, set_gid3,
    set_mode3, set_mtime, set_size3, set_uid3, specdata3,
};
use nfsserve::vfs::{DirEntry, NFSFileSystem, ReadDirResult, VFSCapabilities};

/// One volume.
pub(crate) struct Volume {
    node: Arc<dyn DModule>,
    root: ObjectRef,
    generations: Mutex<BTreeMap<InodeNo, Generation>>,
    /// Cookie behind each listed entry, since nfsserve resumes behind a file number.
    cookies: Mutex<BTreeMap<(fileid3, fileid3), Cookie>>,
}

type Answer<T> = Result<T, nfsstat3>;

fn wire(status: Status) -> nfsstat3 {
    match status {
        Status::NotOwner => nfsstat3::NFS3ERR_PERM,
        Status::NotFound => nfsstat3::NFS3ERR_NOENT,
        Status::AccessDenied => nfsstat3::NFS3ERR_ACCES,
        Status::Exists => nfsstat3::NFS3ERR_EXIST,
        Status::NotDirectory => nfsstat3::NFS3ERR_NOTDIR,
        Status::IsDirectory => nfsstat3::NFS3ERR_ISDIR,
        Status::Invalid => nfsstat3::NFS3ERR_INVAL,
        Status::FileTooBig => nfsstat3::NFS3ERR_FBIG,
        Status::NoSpace => nfsstat3::NFS3ERR_NOSPC,
        Status::NotEmpty => nfsstat3::NFS3ERR_NOTEMPTY,
        Status::NameTooLong => nfsstat3::NFS3ERR_NAMETOOLONG,
        Status::Stale => nfsstat3::NFS3ERR_STALE,
        _ => nfsstat3::NFS3ERR_IO,
    }
}

fn name(bytes: &filename3) -> Answer<Name> {
    Name::new(Bytes::copy_from_slice(bytes.as_ref())).map_err(wire)
}

fn time(at: WallTime) -> nfstime3 {
    let (seconds, nseconds) = at.split();
    nfstime3 { seconds: u32::try_from(seconds).unwrap_or(0), nseconds }
}

fn attributes(attrs: &Attrs) -> fattr3 {
    fattr3 {
        ftype: match attrs.kind {
            FileKind::Regular => ftype3::NF3REG,
            FileKind::Directory => ftype3::NF3DIR,
            FileKind::Symlink => ftype3::NF3LNK,
            FileKind::BlockDevice => ftype3::NF3BLK,
            FileKind::CharDevice => ftype3::NF3CHR,
            FileKind::Fifo => ftype3::NF3FIFO,
            FileKind::Socket => ftype3::NF3SOCK,
        },
        mode: attrs.mode,
        nlink: attrs.links,
        uid: attrs.uid.get(),
        gid: attrs.gid.get(),
        size: attrs.size,
        used: attrs.used,
        rdev: specdata3 { specdata1: attrs.device.major, specdata2: attrs.device.minor },
        fsid: attrs.fsid.get(),
        fileid: attrs.ino.get(),
        atime: time(attrs.atime),
        mtime: time(attrs.mtime),
        ctime: time(attrs.ctime),
    }
}

fn wall(at: nfstime3) -> SetTime {
    SetTime::To(WallTime::from_parts(i64::from(at.seconds), at.nseconds))
}

fn set_attrs(set: &sattr3) -> SetAttrs {
    SetAttrs {
        mode: match set.mode {
            set_mode3::mode(mode) => Some(mode & 0o7777),
            set_mode3::Void => None,
        },
        uid: match set.uid {
            set_uid3::uid(uid) => Some(Uid::new(uid)),
            set_uid3::Void => None,
        },
        gid: match set.gid {
            set_gid3::gid(gid) => Some(Gid::new(gid)),
            set_gid3::Void => None,
        },
        size: match set.size {
            set_size3::size(size) => Some(size),
            set_size3::Void => None,
        },
        atime: match set.atime {
            set_atime::DONT_CHANGE => SetTime::Keep,
            set_atime::SET_TO_SERVER_TIME => SetTime::Now,
            set_atime::SET_TO_CLIENT_TIME(at) => wall(at),
        },
        mtime: match set.mtime {
            set_mtime::DONT_CHANGE => SetTime::Keep,
            set_mtime::SET_TO_SERVER_TIME => SetTime::Now,
            set_mtime::SET_TO_CLIENT_TIME(at) => wall(at),
        },
    }
}

impl Volume {
    /// The volume below `root`.
    pub(crate) fn new(node: Arc<dyn DModule>, root: ObjectRef) -> Self {
        let generations = Mutex::new(BTreeMap::from([(root.ino, root.generation)]));
        Self { node, root, generations, cookies: Mutex::new(BTreeMap::new()) }
    }

    fn object(&self, id: fileid3) -> Answer<ObjectRef> {
        let ino = InodeNo::new(id);
        let known = self.generations.lock().unwrap_or_else(|e| e.into_inner());
        let generation = *known.get(&ino).ok_or(nfsstat3::NFS3ERR_STALE)?;
        Ok(ObjectRef { ino, generation, ..self.root })
    }

    fn remember(&self, obj: &ObjectRef) -> fileid3 {
        let mut known = self.generations.lock().unwrap_or_else(|e| e.into_inner());
        known.insert(obj.ino, obj.generation);
        obj.ino.get()
    }

    async fn ask(&self, op: Op<ObjectRef>) -> Answer<Reply<ObjectRef>> {
        let ctx = OpCtx {
            vserver: VserverId::new(1),
            cred: Credential::root(),
            client: ClientAddr { ip: std::net::Ipv4Addr::LOCALHOST.into(), port: 1 },
            op_no: OpNo::new(0),
            deadline: None,
            read_only: ReadOnly::No,
        };
        self.node.file(ctx, op).wait().await.map_err(|failure| wire(failure.status))
    }

    fn made(&self, reply: Reply<ObjectRef>) -> Answer<(fileid3, fattr3)> {
        match reply {
            Reply::Made { obj, attrs, .. } => Ok((self.remember(&obj), attributes(&attrs))),
            _ => Err(nfsstat3::NFS3ERR_SERVERFAULT),
        }
    }
}

#[async_trait]
impl NFSFileSystem for Volume {
    fn capabilities(&self) -> VFSCapabilities {
        VFSCapabilities::ReadWrite
    }

    fn root_dir(&self) -> fileid3 {
        self.root.ino.get()
    }

    async fn lookup(&self, dirid: fileid3, filename: &filename3) -> Answer<fileid3> {
        let op = Op::Lookup { dir: self.object(dirid)?, name: name(filename)? };
        match self.ask(op).await? {
            Reply::Found { obj, .. } => Ok(self.remember(&obj)),
            _ => Err(nfsstat3::NFS3ERR_SERVERFAULT),
        }
    }

    async fn getattr(&self, id: fileid3) -> Answer<fattr3> {
        match self.ask(Op::GetAttr { obj: self.object(id)? }).await? {
            Reply::Attrs(attrs) => Ok(attributes(&attrs)),
            _ => Err(nfsstat3::NFS3ERR_SERVERFAULT),
        }
    }

    async fn setattr(&self, id: fileid3, setattr: sattr3) -> Answer<fattr3> {
        let op = Op::SetAttr { obj: self.object(id)?, set: set_attrs(&setattr), guard: None };
        match self.ask(op).await? {
            Reply::Changed { after, .. } => Ok(attributes(&after)),
            _ => Err(nfsstat3::NFS3ERR_SERVERFAULT),
        }
    }

    async fn read(&self, id: fileid3, offset: u64, count: u32) -> Answer<(Vec<u8>, bool)> {
        match self.ask(Op::Read { obj: self.object(id)?, offset, count }).await? {
            Reply::Read { data, eof, .. } => Ok((data.to_vec(), eof)),
            _ => Err(nfsstat3::NFS3ERR_SERVERFAULT),
        }
    }

    async fn write(&self, id: fileid3, offset: u64, data: &[u8]) -> Answer<fattr3> {
        let data = Payload::copy_from(offset, data);
        let obj = self.object(id)?;
        let op = Op::Write { obj, offset, data, stability: Stability::FileSync };
        match self.ask(op).await? {
            Reply::Written { after, .. } => Ok(attributes(&after)),
            _ => Err(nfsstat3::NFS3ERR_SERVERFAULT),
        }
    }

    async fn create(
        &self,
        dirid: fileid3,
        filename: &filename3,
        attr: sattr3,
    ) -> Answer<(fileid3, fattr3)> {
        let how = CreateHow::Unchecked(set_attrs(&attr));
        let op = Op::Create { dir: self.object(dirid)?, name: name(filename)?, how };
        self.made(self.ask(op).await?)
    }

    async fn create_exclusive(&self, dirid: fileid3, filename: &filename3) -> Answer<fileid3> {
        let how = CreateHow::Exclusive(Verifier::default());
        let op = Op::Create { dir: self.object(dirid)?, name: name(filename)?, how };
        Ok(self.made(self.ask(op).await?)?.0)
    }

    async fn mkdir(&self, dirid: fileid3, dirname: &filename3) -> Answer<(fileid3, fattr3)> {
        let set = SetAttrs { mode: Some(0o755), ..SetAttrs::default() };
        let op = Op::MakeDir { dir: self.object(dirid)?, name: name(dirname)?, set };
        self.made(self.ask(op).await?)
    }

    async fn remove(&self, dirid: fileid3, filename: &filename3) -> Answer<()> {
        let (dir, name) = (self.object(dirid)?, name(filename)?);
        match self.ask(Op::Remove { dir, name: name.clone() }).await {
            Err(nfsstat3::NFS3ERR_ISDIR) => self.ask(Op::RemoveDir { dir, name }).await.map(drop),
            done => done.map(drop),
        }
    }

    async fn rename(
        &self,
        from_dirid: fileid3,
        from_filename: &filename3,
        to_dirid: fileid3,
        to_filename: &filename3,
    ) -> Answer<()> {
        let op = Op::Rename {
            from_dir: self.object(from_dirid)?,
            from_name: name(from_filename)?,
            to_dir: self.object(to_dirid)?,
            to_name: name(to_filename)?,
        };
        self.ask(op).await.map(drop)
    }

    async fn readdir(
        &self,
        dirid: fileid3,
        start_after: fileid3,
        max_entries: usize,
    ) -> Answer<ReadDirResult> {
        let known = |id| {
            let cookies = self.cookies.lock().unwrap_or_else(|e| e.into_inner());
            cookies.get(&(dirid, id)).copied()
        };
        let cookie = known(start_after).unwrap_or_default();
        let limits = ListLimits {
            entries_max: u32::try_from(max_entries).unwrap_or(u32::MAX),
            bytes_max: 1 << 20,
            entry_bytes: 200,
            with_files: WithFiles::Yes,
        };
        let op = Op::ReadDir { dir: self.object(dirid)?, cookie, limits };
        let Reply::Listing { entries, eof, .. } = self.ask(op).await? else {
            return Err(nfsstat3::NFS3ERR_SERVERFAULT);
        };
        let mut out = ReadDirResult { entries: Vec::new(), end: eof };
        for entry in entries.into_iter().filter(|e| !e.name.is_dot_or_dotdot()) {
            let Some((obj, attrs)) = entry.file else { continue };
            let fileid = self.remember(&obj);
            let mut cookies = self.cookies.lock().unwrap_or_else(|e| e.into_inner());
            cookies.insert((dirid, fileid), entry.cookie);
            out.entries.push(DirEntry {
                fileid,
                name: entry.name.as_bytes().into(),
                attr: attributes(&attrs),
            });
        }
        Ok(out)
    }

    async fn symlink(
        &self,
        dirid: fileid3,
        linkname: &filename3,
        symlink: &nfspath3,
        attr: &sattr3,
    ) -> Answer<(fileid3, fattr3)> {
        let target = LinkTarget::new(Bytes::copy_from_slice(symlink.as_ref())).map_err(wire)?;
        let (dir, name, set) = (self.object(dirid)?, name(linkname)?, set_attrs(attr));
        self.made(self.ask(Op::Symlink { dir, name, target, set }).await?)
    }

    async fn readlink(&self, id: fileid3) -> Answer<nfspath3> {
        match self.ask(Op::ReadLink { obj: self.object(id)? }).await? {
            Reply::LinkTarget { target, .. } => Ok(target.as_bytes().into()),
            _ => Err(nfsstat3::NFS3ERR_SERVERFAULT),
        }
    }
}
