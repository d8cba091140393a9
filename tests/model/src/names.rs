//! Operations on directories: finding, making, removing, renaming, linking, listing.
//!
//! Layer: model, below `node`. Rule: everything that can fail comes before the first change; the
//! order of the checks is the one in the crate's documentation.

use std::collections::BTreeMap;

use cairn_op::{
    Before, CreateHow, DeviceNo, Entry, FileKind, LinkTarget, ListLimits, Name, NodeKind,
    ObjectRef, Reply, SetAttrs, Status, WithFiles,
};
use cairn_units::{Cookie, FILE_BYTES_MAX, InodeNo};

use crate::inode::{Body, Directory, Inode};
use crate::node::{Call, Volume};
use crate::rules::{SET_GID, Want};
use crate::{LINKS_MAX, ROOT_INO};

type Done = Result<Reply<ObjectRef>, Status>;

/// What is made, and how.
struct New {
    kind: FileKind,
    body: Body,
    set: SetAttrs,
    /// Mode when none was asked for: nothing is granted that nobody asked for.
    default_mode: u32,
    device: DeviceNo,
}

impl New {
    fn file(set: SetAttrs) -> Self {
        let body = Body::Data(BTreeMap::new());
        let device = DeviceNo::default();
        Self { kind: FileKind::Regular, body, set, default_mode: 0o600, device }
    }
}

impl Volume {
    /// Entry `name` of `dir`, with `.` and `..`; `None` when there is none.
    fn entry(&self, dir: &Inode, name: &Name) -> Result<Option<InodeNo>, Status> {
        let entries = dir.dir()?;
        Ok(match name.as_bytes() {
            b"." => Some(dir.ino),
            b".." if dir.ino == InodeNo::new(ROOT_INO) => Some(dir.ino),
            b".." => Some(entries.parent),
            _ => entries.get(name),
        })
    }

    pub(crate) fn lookup(&self, call: &Call<'_>, dir: &ObjectRef, name: &Name) -> Done {
        let dir = self.get(dir)?;
        dir.dir()?;
        dir.check(&call.ctx.cred, Want::Execute)?;
        let ino = self.entry(dir, name)?.ok_or(Status::NotFound)?;
        let found = self.at(ino)?;
        Ok(Reply::Found { obj: found.object(), attrs: found.attrs(), dir: dir.attrs() })
    }

    /// The checks of everything that makes a name, up to the question whether it is there.
    fn name_to_make(
        &self,
        call: &Call<'_>,
        dir: &ObjectRef,
        name: &Name,
    ) -> Result<Option<InodeNo>, Status> {
        let dir = self.get(dir)?;
        dir.dir()?;
        if name.is_dot_or_dotdot() {
            return Err(Status::Exists);
        }
        dir.check(&call.ctx.cred, Want::Execute)?;
        self.entry(dir, name)
    }

    pub(crate) fn create(
        &mut self,
        call: &Call<'_>,
        dir: &ObjectRef,
        name: Name,
        how: CreateHow,
    ) -> Done {
        match (self.name_to_make(call, dir, &name)?, how) {
            (None, CreateHow::Unchecked(set) | CreateHow::Guarded(set)) => {
                self.make_in(call, dir, name, New::file(set))
            }
            (None, CreateHow::Exclusive(verifier)) => {
                let set = SetAttrs { mode: Some(0), ..SetAttrs::default() };
                let made = self.make_in(call, dir, name, New::file(set))?;
                if let Reply::Made { obj, .. } = &made {
                    self.get_mut(obj)?.created_by = Some(verifier);
                }
                Ok(made)
            }
            (Some(_), CreateHow::Guarded(_)) => Err(Status::Exists),
            (Some(ino), CreateHow::Unchecked(set)) => {
                if self.at(ino)?.kind != FileKind::Regular {
                    return Err(Status::Exists);
                }
                let obj = self.at(ino)?.object();
                if set.size.is_some() {
                    let only_size = SetAttrs { size: set.size, ..SetAttrs::default() };
                    self.set_attr(call, &obj, &only_size, None)?;
                }
                self.opened(dir, ino)
            }
            (Some(ino), CreateHow::Exclusive(verifier)) => {
                if self.at(ino)?.created_by != Some(verifier) {
                    return Err(Status::Exists);
                }
                self.opened(dir, ino)
            }
        }
    }

    /// The answer to a create that found its file.
    fn opened(&self, dir: &ObjectRef, ino: InodeNo) -> Done {
        let (dir, found) = (self.get(dir)?.attrs(), self.at(ino)?);
        Ok(Reply::Made {
            obj: found.object(),
            attrs: found.attrs(),
            dir_before: dir.as_before(),
            dir_after: dir,
        })
    }

    pub(crate) fn make_dir(
        &mut self,
        call: &Call<'_>,
        dir: &ObjectRef,
        name: Name,
        set: &SetAttrs,
    ) -> Done {
        self.must_not_exist(call, dir, &name)?;
        let new = New {
            kind: FileKind::Directory,
            body: Body::Dir(Directory::new(dir.ino)),
            set: *set,
            default_mode: 0o700,
            device: DeviceNo::default(),
        };
        self.make_in(call, dir, name, new)
    }

    pub(crate) fn symlink(
        &mut self,
        call: &Call<'_>,
        dir: &ObjectRef,
        name: Name,
        target: LinkTarget,
        set: &SetAttrs,
    ) -> Done {
        self.must_not_exist(call, dir, &name)?;
        let new = New {
            kind: FileKind::Symlink,
            body: Body::Link(target),
            set: SetAttrs { mode: Some(0o777), ..*set },
            default_mode: 0o777,
            device: DeviceNo::default(),
        };
        self.make_in(call, dir, name, new)
    }

    pub(crate) fn make_node(
        &mut self,
        call: &Call<'_>,
        dir: &ObjectRef,
        name: Name,
        kind: NodeKind,
        set: &SetAttrs,
    ) -> Done {
        self.must_not_exist(call, dir, &name)?;
        let (kind, device) = match kind {
            NodeKind::BlockDevice(device) => (FileKind::BlockDevice, device),
            NodeKind::CharDevice(device) => (FileKind::CharDevice, device),
            NodeKind::Fifo => (FileKind::Fifo, DeviceNo::default()),
            NodeKind::Socket => (FileKind::Socket, DeviceNo::default()),
        };
        let is_device = matches!(kind, FileKind::BlockDevice | FileKind::CharDevice);
        if is_device && call.ctx.cred.uid.get() != 0 {
            return Err(Status::NotOwner);
        }
        let new = New { kind, body: Body::Node, set: *set, default_mode: 0o600, device };
        self.make_in(call, dir, name, new)
    }

    fn must_not_exist(&self, call: &Call<'_>, dir: &ObjectRef, name: &Name) -> Result<(), Status> {
        match self.name_to_make(call, dir, name)? {
            Some(_) => Err(Status::Exists),
            None => Ok(()),
        }
    }

    /// Makes `new` as `name`, which is free. Owner: the caller, or whom the superuser names.
    /// Group: as asked by the superuser or a member; else the directory's when that is set-gid,
    /// else the caller's. Owners and groups that the caller may not give are not an error.
    fn make_in(&mut self, call: &Call<'_>, dir: &ObjectRef, name: Name, new: New) -> Done {
        let cred = &call.ctx.cred;
        let parent = self.get(dir)?;
        parent.check(cred, Want::Write)?;
        let New { kind, body, mut set, default_mode, device } = new;
        if kind != FileKind::Regular {
            set.size = None;
        }
        if set.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return Err(Status::FileTooBig);
        }
        let root = cred.uid.get() == 0;
        let inherits = parent.mode & SET_GID != 0;
        let own_gid = if inherits { parent.gid } else { cred.gid };
        let uid = set.uid.filter(|_| root).unwrap_or(cred.uid);
        let gid = set.gid.filter(|gid| root || cred.in_group(*gid)).unwrap_or(own_gid);

        let dir_before = parent.attrs().as_before();
        let ino = self.make(kind, body, call.now);
        let inode = self.at_mut(ino)?;
        (inode.uid, inode.gid, inode.device) = (uid, gid, device);
        let mut mode = inode.guarded(cred).chmod(set.mode.unwrap_or(default_mode), gid);
        if kind == FileKind::Directory && inherits {
            mode |= SET_GID;
        }
        let rest = SetAttrs { mode: None, uid: None, gid: None, ..set };
        inode.apply(cred, &rest, call.now);
        inode.mode = mode;
        let (obj, attrs) = (inode.object(), inode.attrs());
        let parent = self.get_mut(dir)?;
        parent.dir_mut()?.insert(name, ino);
        parent.links += u32::from(kind == FileKind::Directory);
        parent.touch_mtime(call.now);
        Ok(Reply::Made { obj, attrs, dir_before, dir_after: parent.attrs() })
    }

    /// The checks of everything that takes a name away, up to the sticky bit.
    fn name_to_take(
        &self,
        call: &Call<'_>,
        dir: &ObjectRef,
        name: &Name,
    ) -> Result<InodeNo, Status> {
        let dir = self.get(dir)?;
        dir.dir()?;
        if name.is_dot_or_dotdot() {
            return Err(Status::Invalid);
        }
        dir.check(&call.ctx.cred, Want::Execute)?;
        self.entry(dir, name)?.ok_or(Status::NotFound)
    }

    /// Write permission and the sticky bit.
    fn may_take(&self, call: &Call<'_>, dir: &ObjectRef, ino: InodeNo) -> Result<(), Status> {
        let dir = self.get(dir)?;
        dir.check(&call.ctx.cred, Want::Write)?;
        dir.guarded(&call.ctx.cred).check_sticky(self.at(ino)?.uid)
    }

    pub(crate) fn remove(&mut self, call: &Call<'_>, dir: &ObjectRef, name: &Name) -> Done {
        let ino = self.name_to_take(call, dir, name)?;
        self.may_take(call, dir, ino)?;
        if self.at(ino)?.kind == FileKind::Directory {
            return Err(Status::IsDirectory);
        }
        self.take(call, dir, name, ino)
    }

    pub(crate) fn remove_dir(&mut self, call: &Call<'_>, dir: &ObjectRef, name: &Name) -> Done {
        let ino = self.name_to_take(call, dir, name)?;
        self.may_take(call, dir, ino)?;
        if !self.at(ino)?.dir()?.is_empty() {
            return Err(Status::NotEmpty);
        }
        self.take(call, dir, name, ino)
    }

    fn take(&mut self, call: &Call<'_>, dir: &ObjectRef, name: &Name, ino: InodeNo) -> Done {
        let parent = self.get_mut(dir)?;
        let dir_before = parent.attrs().as_before();
        parent.dir_mut()?.remove(name);
        parent.touch_mtime(call.now);
        self.lost_name(call, dir, ino)?;
        Ok(Reply::Removed { dir_before, dir_after: self.get(dir)?.attrs() })
    }

    /// `ino` lost the name it had in `dir`.
    fn lost_name(&mut self, call: &Call<'_>, dir: &ObjectRef, ino: InodeNo) -> Result<(), Status> {
        let inode = self.at_mut(ino)?;
        if inode.kind == FileKind::Directory {
            self.free(ino);
            self.get_mut(dir)?.links -= 1;
            return Ok(());
        }
        inode.links -= 1;
        inode.touch_ctime(call.now);
        if inode.links == 0 {
            self.free(ino);
        }
        Ok(())
    }

    /// Whether `below` is `above` or lies under it.
    fn is_under(&self, below: InodeNo, above: InodeNo) -> Result<bool, Status> {
        let mut at = below;
        loop {
            if at == above {
                return Ok(true);
            }
            if at == InodeNo::new(ROOT_INO) {
                return Ok(false);
            }
            at = self.at(at)?.dir()?.parent;
        }
    }

    pub(crate) fn rename(
        &mut self,
        call: &Call<'_>,
        (from_dir, from_name): (&ObjectRef, &Name),
        (to_dir, to_name): (&ObjectRef, Name),
    ) -> Done {
        let cred = &call.ctx.cred;
        let (from, to) = (self.get(from_dir)?, self.get(to_dir)?);
        from.dir()?;
        to.dir()?;
        if from_name.is_dot_or_dotdot() || to_name.is_dot_or_dotdot() {
            return Err(Status::Invalid);
        }
        from.check(cred, Want::Execute)?;
        to.check(cred, Want::Execute)?;
        let ino = self.entry(from, from_name)?.ok_or(Status::NotFound)?;
        let replaced = self.entry(to, &to_name)?;
        let (from_before, to_before) = (from.attrs().as_before(), to.attrs().as_before());
        if replaced == Some(ino) {
            return self.renamed(from_dir, to_dir, from_before, to_before);
        }
        let is_dir = self.at(ino)?.kind == FileKind::Directory;
        if is_dir && self.is_under(to.ino, ino)? {
            return Err(Status::Invalid);
        }
        self.may_take(call, from_dir, ino)?;
        self.get(to_dir)?.check(cred, Want::Write)?;
        if let Some(replaced) = replaced {
            self.may_take(call, to_dir, replaced)?;
            match (is_dir, self.at(replaced)?.dir()) {
                (true, Err(_)) => return Err(Status::NotDirectory),
                (false, Ok(_)) => return Err(Status::IsDirectory),
                (true, Ok(_)) | (false, Err(_)) => {}
            }
        }
        if is_dir && from_dir.ino != to_dir.ino {
            self.at(ino)?.check(cred, Want::Write)?; // its `..` changes
        }
        if let Some(replaced) = replaced
            && let Ok(dir) = self.at(replaced)?.dir()
            && !dir.is_empty()
        {
            return Err(Status::NotEmpty);
        }

        self.get_mut(from_dir)?.dir_mut()?.remove(from_name);
        if let Some(replaced) = replaced {
            self.get_mut(to_dir)?.dir_mut()?.remove(&to_name);
            self.lost_name(call, to_dir, replaced)?;
        }
        self.get_mut(to_dir)?.dir_mut()?.insert(to_name, ino);
        if is_dir && from_dir.ino != to_dir.ino {
            self.at_mut(ino)?.dir_mut()?.parent = to_dir.ino;
            self.get_mut(from_dir)?.links -= 1;
            self.get_mut(to_dir)?.links += 1;
        }
        self.at_mut(ino)?.touch_ctime(call.now);
        self.get_mut(from_dir)?.touch_mtime(call.now);
        if from_dir.ino != to_dir.ino {
            self.get_mut(to_dir)?.touch_mtime(call.now);
        }
        self.renamed(from_dir, to_dir, from_before, to_before)
    }

    fn renamed(
        &self,
        from_dir: &ObjectRef,
        to_dir: &ObjectRef,
        from_before: Before,
        to_before: Before,
    ) -> Done {
        let from_after = self.get(from_dir)?.attrs();
        let to_after = self.get(to_dir)?.attrs();
        Ok(Reply::Renamed { from_before, from_after, to_before, to_after })
    }

    pub(crate) fn link(
        &mut self,
        call: &Call<'_>,
        obj: &ObjectRef,
        dir: &ObjectRef,
        name: Name,
    ) -> Done {
        self.get(dir)?.dir()?;
        if name.is_dot_or_dotdot() {
            return Err(Status::Exists);
        }
        if self.get(obj)?.kind == FileKind::Directory {
            return Err(Status::NotOwner);
        }
        self.must_not_exist(call, dir, &name)?;
        self.get(dir)?.check(&call.ctx.cred, Want::Write)?;
        if self.get(obj)?.links >= LINKS_MAX {
            return Err(Status::TooManyLinks);
        }
        let dir_before = self.get(dir)?.attrs().as_before();
        let inode = self.get_mut(obj)?;
        inode.links += 1;
        inode.touch_ctime(call.now);
        let attrs = inode.attrs();
        let dir = self.get_mut(dir)?;
        dir.dir_mut()?.insert(name, obj.ino);
        dir.touch_mtime(call.now);
        Ok(Reply::Linked { attrs, dir_before, dir_after: dir.attrs() })
    }

    /// Entries behind `cookie`. Handles and attributes only for who may search the directory.
    /// When not even the first entry fits the limits, the listing is empty and not at its end.
    pub(crate) fn read_dir(
        &mut self,
        call: &Call<'_>,
        dir: &ObjectRef,
        cookie: Cookie,
        limits: ListLimits,
    ) -> Done {
        let inode = self.get(dir)?;
        let directory = inode.dir()?;
        inode.check(&call.ctx.cred, Want::Read)?;
        let searchable = inode.guarded(&call.ctx.cred).allows(Want::Execute);
        let with_files = limits.with_files == WithFiles::Yes && searchable;
        let (mut entries, mut bytes, mut eof) = (Vec::new(), 0u64, true);
        for (name, ino, at) in directory.behind(inode.ino, cookie.get()) {
            let padded = name.as_bytes().len().next_multiple_of(4) as u64;
            bytes += u64::from(limits.entry_bytes) + padded;
            let full = entries.len() as u64 >= u64::from(limits.entries_max);
            if full || bytes > u64::from(limits.bytes_max) {
                eof = false;
                break;
            }
            let found = self.at(ino)?;
            let file = with_files.then(|| (found.object(), found.attrs()));
            entries.push(Entry { ino, cookie: Cookie::new(at), name, file });
        }
        let inode = self.get_mut(dir)?;
        inode.touch_atime(call.now);
        Ok(Reply::Listing { entries, eof, dir: inode.attrs() })
    }
}
