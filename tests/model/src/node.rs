//! The node: several volumes of inodes behind one lock.
//!
//! Layer: top of the model; implements [`DModule`]. Every operation runs to its end at once and
//! is as durable as the process.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use cairn_cf::{DModule, Manage, ManageError, Managed, VolumeStatus};
use cairn_op::{
    Failure, FileKind, Name, ObjectRef, Op, OpCtx, OpResult, ReadOnly, Reply, Status, Submitted,
    Verifier,
};
use cairn_sys::{BoxFuture, World};
use cairn_units::{BLOCK_BYTES_U64, Fsid, Generation, Gid, InodeNo, SnapId, Uid, WallTime};

use crate::ROOT_INO;
use crate::inode::{Body, Directory, Inode};

/// One volume.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) fsid: Fsid,
    name: String,
    pub(crate) size_bytes: u64,
    pub(crate) inodes: BTreeMap<InodeNo, Inode>,
    /// Freed numbers with the generation that the next file there gets.
    freed: Vec<(InodeNo, Generation)>,
    next_ino: InodeNo,
}

/// The reference implementation of a D-module, in memory.
pub struct ModelNode {
    world: World,
    verifier: Verifier,
    volumes: Mutex<BTreeMap<Fsid, Volume>>,
}

/// What one operation works with.
pub(crate) struct Call<'a> {
    pub(crate) ctx: &'a OpCtx,
    pub(crate) now: WallTime,
    pub(crate) verifier: Verifier,
}

impl ModelNode {
    /// A node without volumes.
    pub fn new(world: World) -> Self {
        let verifier = Verifier(world.entropy.next_u64().to_le_bytes());
        Self { world, verifier, volumes: Mutex::new(BTreeMap::new()) }
    }

    /// An independent node with the same content (for "what if" in tests).
    #[must_use]
    pub fn fork(&self) -> Self {
        let volumes = Mutex::new(self.lock().clone());
        Self { world: self.world.clone(), verifier: self.verifier, volumes }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Fsid, Volume>> {
        self.volumes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Blocks of a file that hold data, for comparisons that skip holes; empty for other kinds.
    pub fn allocated(&self, obj: &ObjectRef) -> Vec<cairn_units::Fbn> {
        let volumes = self.lock();
        let inode = volumes.get(&obj.fsid).and_then(|v| v.get(obj).ok());
        match inode.map(|i| &i.body) {
            Some(Body::Data(blocks)) => blocks.keys().copied().collect(),
            _ => Vec::new(),
        }
    }

    /// Runs one operation.
    pub fn run(&self, ctx: &OpCtx, op: Op<ObjectRef>) -> OpResult<ObjectRef> {
        let (first, second) = objects(&op);
        let call = Call { ctx, now: self.world.clock.wall(), verifier: self.verifier };
        let mut volumes = self.lock();
        if second.is_some_and(|s| s.fsid != first.fsid) {
            return Err(Status::CrossVolume.into());
        }
        let Some(volume) = volumes.get_mut(&first.fsid) else {
            return Err(Status::Stale.into());
        };
        let admitted = volume.admit(ctx, &op, &first, second.as_ref());
        let done = admitted.and_then(|()| volume.dispatch(&call, op));
        done.map_err(|status| Failure {
            status,
            attrs: volume.get(&first).ok().map(Inode::attrs),
            second: second.and_then(|s| volume.get(&s).ok().map(Inode::attrs)),
        })
    }

    fn manage_now(&self, request: Manage) -> Result<Managed, ManageError> {
        let mut volumes = self.lock();
        let find = |volumes: &BTreeMap<Fsid, Volume>, fsid: Fsid| {
            volumes.get(&fsid).cloned().ok_or(ManageError::NoSuchVolume(fsid))
        };
        match request {
            Manage::VolumeCreate { fsid, name, size_bytes } => {
                check_volume_name(&name)?;
                let taken = volumes.values().any(|v| (v.name == name) != (v.fsid == fsid));
                if taken {
                    return Err(ManageError::NameTaken(name));
                }
                let now = self.world.clock.wall();
                volumes.entry(fsid).or_insert_with(|| Volume::new(fsid, name, size_bytes, now));
                Ok(Managed::Done)
            }
            Manage::VolumeDelete { fsid } => {
                volumes.remove(&fsid);
                Ok(Managed::Done)
            }
            Manage::VolumeResize { fsid, size_bytes } => {
                find(&volumes, fsid)?;
                volumes.entry(fsid).and_modify(|v| v.size_bytes = size_bytes);
                Ok(Managed::Done)
            }
            Manage::VolumeRename { fsid, name } => {
                find(&volumes, fsid)?;
                check_volume_name(&name)?;
                if volumes.values().any(|v| v.name == name && v.fsid != fsid) {
                    return Err(ManageError::NameTaken(name));
                }
                volumes.entry(fsid).and_modify(|v| v.name = name);
                Ok(Managed::Done)
            }
            Manage::VolumeList => {
                Ok(Managed::Volumes(volumes.values().map(Volume::status).collect()))
            }
            Manage::VolumeRoot { fsid } => {
                let volume = find(&volumes, fsid)?;
                let root = volume.inodes.get(&InodeNo::new(ROOT_INO));
                root.map(|r| Managed::Root(r.object())).ok_or(ManageError::NoSuchObject)
            }
            Manage::ConsistencyPoint => Ok(Managed::Done),
            Manage::Counters => Ok(Managed::Counters(Vec::new())),
            Manage::AggregateStatus
            | Manage::DiskList
            | Manage::DiskAdd { .. }
            | Manage::DiskFail { .. }
            | Manage::DiskReplace { .. }
            | Manage::GroupKind { .. }
            | Manage::GroupGrow { .. }
            | Manage::GroupAdd { .. }
            | Manage::ScrubStart
            | Manage::ScrubStatus
            | Manage::CheckStart { .. }
            | Manage::CheckStatus
            | Manage::Explain { .. } => {
                Err(ManageError::Refused("the reference model has no disks".to_owned()))
            }
        }
    }
}

fn check_volume_name(name: &str) -> Result<(), ManageError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if (1..=64).contains(&name.len()) && name.chars().all(good) {
        Ok(())
    } else {
        Err(ManageError::BadName(name.to_owned()))
    }
}

impl DModule for ModelNode {
    fn file(&self, ctx: OpCtx, op: Op<ObjectRef>) -> Submitted<OpResult<ObjectRef>> {
        Submitted::Ready(self.run(&ctx, op))
    }
    fn manage(&self, request: Manage) -> BoxFuture<Result<Managed, ManageError>> {
        let done = self.manage_now(request);
        Box::pin(async move { done })
    }
    fn verifier(&self) -> Verifier {
        self.verifier
    }
}

/// The object or objects that an operation names, in the order of its fields.
fn objects(op: &Op<ObjectRef>) -> (ObjectRef, Option<ObjectRef>) {
    match op {
        Op::GetAttr { obj }
        | Op::SetAttr { obj, .. }
        | Op::Access { obj, .. }
        | Op::ReadLink { obj }
        | Op::Read { obj, .. }
        | Op::Write { obj, .. }
        | Op::FsStat { obj }
        | Op::Commit { obj, .. }
        | Op::Punch { obj, .. }
        | Op::GetXattr { obj, .. }
        | Op::SetXattr { obj, .. }
        | Op::RemoveXattr { obj, .. }
        | Op::ListXattr { obj } => (*obj, None),
        Op::Lookup { dir, .. }
        | Op::Create { dir, .. }
        | Op::MakeDir { dir, .. }
        | Op::Symlink { dir, .. }
        | Op::MakeNode { dir, .. }
        | Op::Remove { dir, .. }
        | Op::RemoveDir { dir, .. }
        | Op::ReadDir { dir, .. } => (*dir, None),
        Op::Rename { from_dir, to_dir, .. } => (*from_dir, Some(*to_dir)),
        Op::Link { obj, dir, .. } => (*obj, Some(*dir)),
    }
}

impl Volume {
    fn new(fsid: Fsid, name: String, size_bytes: u64, now: WallTime) -> Self {
        let root = InodeNo::new(ROOT_INO);
        let mut volume = Self {
            fsid,
            name,
            size_bytes,
            inodes: BTreeMap::new(),
            freed: Vec::new(),
            next_ino: root,
        };
        let made = volume.make(FileKind::Directory, Body::Dir(Directory::new(root)), now);
        volume.inodes.entry(made).and_modify(|i| i.mode = 0o755);
        volume
    }

    fn status(&self) -> VolumeStatus {
        VolumeStatus {
            fsid: self.fsid,
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            used_bytes: self.used_bytes(),
            files: self.inodes.len() as u64,
            online: true,
        }
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.inodes.values().map(Inode::used_blocks).sum::<u64>() * BLOCK_BYTES_U64
    }

    /// A new inode without a name: owner and mode are still to be set.
    pub(crate) fn make(&mut self, kind: FileKind, body: Body, now: WallTime) -> InodeNo {
        let (ino, generation) = self.freed.pop().unwrap_or_else(|| {
            let ino = self.next_ino;
            self.next_ino = ino.plus(1);
            (ino, Generation::new(1))
        });
        let links = if kind == FileKind::Directory { 2 } else { 1 };
        let size = match &body {
            Body::Link(target) => target.as_bytes().len() as u64,
            Body::Data(_) | Body::Dir(_) | Body::Node => 0,
        };
        let inode = Inode {
            fsid: self.fsid,
            ino,
            generation,
            kind,
            mode: 0,
            links,
            uid: Uid::new(0),
            gid: Gid::new(0),
            size,
            device: cairn_op::DeviceNo::default(),
            atime: now,
            mtime: now,
            ctime: now,
            birth: now,
            change: 1,
            created_by: None,
            xattrs: BTreeMap::new(),
            body,
        };
        self.inodes.insert(ino, inode);
        ino
    }

    /// Frees an inode that has no name left.
    pub(crate) fn free(&mut self, ino: InodeNo) {
        if let Some(gone) = self.inodes.remove(&ino) {
            self.freed.push((ino, gone.generation.plus(1)));
        }
    }

    pub(crate) fn get(&self, obj: &ObjectRef) -> Result<&Inode, Status> {
        let inode = self.inodes.get(&obj.ino).ok_or(Status::Stale)?;
        let here = inode.generation == obj.generation && obj.snap == SnapId::new(0);
        if here { Ok(inode) } else { Err(Status::Stale) }
    }

    pub(crate) fn get_mut(&mut self, obj: &ObjectRef) -> Result<&mut Inode, Status> {
        self.get(obj)?;
        self.inodes.get_mut(&obj.ino).ok_or(Status::Stale)
    }

    /// An inode that a directory entry names.
    pub(crate) fn at(&self, ino: InodeNo) -> Result<&Inode, Status> {
        self.inodes.get(&ino).ok_or(Status::ServerFault)
    }

    /// An inode that a directory entry names.
    pub(crate) fn at_mut(&mut self, ino: InodeNo) -> Result<&mut Inode, Status> {
        self.inodes.get_mut(&ino).ok_or(Status::ServerFault)
    }

    /// Checks 2 and 3 of the order in the crate's documentation.
    fn admit(
        &self,
        ctx: &OpCtx,
        op: &Op<ObjectRef>,
        first: &ObjectRef,
        second: Option<&ObjectRef>,
    ) -> Result<(), Status> {
        self.get(first)?;
        if let Some(second) = second {
            self.get(second)?;
        }
        if op.changes() && ctx.read_only == ReadOnly::Yes {
            return Err(Status::ReadOnlyFs);
        }
        Ok(())
    }

    fn dispatch(&mut self, call: &Call<'_>, op: Op<ObjectRef>) -> Result<Reply<ObjectRef>, Status> {
        match op {
            Op::GetAttr { obj } => Ok(Reply::Attrs(self.get(&obj)?.attrs())),
            Op::SetAttr { obj, set, guard } => self.set_attr(call, &obj, &set, guard),
            Op::Lookup { dir, name } => self.lookup(call, &dir, &name),
            Op::Access { obj, want } => self.access(call, &obj, want),
            Op::ReadLink { obj } => self.read_link(&obj),
            Op::Read { obj, offset, count } => self.read(call, &obj, offset, count),
            Op::Write { obj, offset, data, stability } => {
                self.write(call, &obj, offset, &data, stability)
            }
            Op::Create { dir, name, how } => self.create(call, &dir, name, how),
            Op::MakeDir { dir, name, set } => self.make_dir(call, &dir, name, &set),
            Op::Symlink { dir, name, target, set } => self.symlink(call, &dir, name, target, &set),
            Op::MakeNode { dir, name, kind, set } => self.make_node(call, &dir, name, kind, &set),
            Op::Remove { dir, name } => self.remove(call, &dir, &name),
            Op::RemoveDir { dir, name } => self.remove_dir(call, &dir, &name),
            Op::Rename { from_dir, from_name, to_dir, to_name } => {
                self.rename(call, (&from_dir, &from_name), (&to_dir, to_name))
            }
            Op::Link { obj, dir, name } => self.link(call, &obj, &dir, name),
            Op::ReadDir { dir, cookie, limits } => self.read_dir(call, &dir, cookie, limits),
            Op::FsStat { obj } => self.fs_stat(&obj),
            Op::Commit { obj, .. } => self.commit(call, &obj),
            Op::Punch { obj, offset, count } => self.punch(call, &obj, offset, count),
            Op::GetXattr { obj, name } => self.get_xattr(call, &obj, &name),
            Op::SetXattr { obj, name, value, how } => self.set_xattr(call, &obj, name, value, how),
            Op::RemoveXattr { obj, name } => self.remove_xattr(call, &obj, &name),
            Op::ListXattr { obj } => {
                let names: Vec<Name> = self.get(&obj)?.xattrs.keys().cloned().collect();
                Ok(Reply::XattrNames { names })
            }
        }
    }
}
