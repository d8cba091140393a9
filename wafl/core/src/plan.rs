//! From an operation to its answer, or to the change that it makes: everything is decided here
//! (permission, numbers, times), nothing is changed.
//!
//! Layer: message handlers; runs under the volume's lock. May stop for a block that is not in
//! memory; then it is run again from the start. The order of the checks is the one of the
//! reference model in the tests.

use core::ops::{ControlFlow, Range};

use bytes::Bytes;
use cairn_op::{
    AccessMask, Attrs, Before, CreateHow, Entry, FsStat, LinkTarget, ListLimits, Name, NodeKind,
    ObjectRef, Op, OpCtx, ReadOnly, Reply, SetAttrs, SetTime, Stability, Status, Verifier,
    WithFiles, XattrHow,
};
use cairn_sys::{Block, Payload};
use cairn_units::{
    BLOCK_BYTES, BLOCK_BYTES_U64, Cookie, FILE_BYTES_MAX, Generation, InodeNo, WallTime,
};
use cairn_wafl_dir::{Found, ListEnd};
use cairn_wafl_format::{InodeKind, inode_flags};

use crate::apply::pieces;
use crate::change::{Change, MakeChange, NewInode, Setting};
use crate::perm::{self, Judge, Right};
use crate::streams::READ_AHEAD_BLOCKS;
use crate::tree::Key;
use crate::volume::{FileId, Miss, ROOT_INO, Stop, VolState, file_kind, miss};
use crate::xattr;

/// Names that a file may have.
const LINKS_MAX: u32 = 65_000;
/// Cookies of the two entries that are not stored.
const COOKIE_DOT: u64 = 1;
const COOKIE_DOTDOT: u64 = 2;
/// Directory levels that a rename walks up to look for a loop.
const DEPTH_MAX: usize = 100_000;

/// What planning found.
#[derive(Debug)]
pub(crate) enum Planned {
    /// The answer; nothing changes.
    Answer(Box<Reply<ObjectRef>>),
    /// Apply this, then answer.
    Apply { change: Change, payload: Payload, answer: Answer },
    /// Make the file's unstable writes stable, then answer.
    Commit { ino: InodeNo, before: Before },
}

/// The answer to give once the change is applied and as durable as asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    Changed { ino: InodeNo, before: Before },
    Written { ino: InodeNo, before: Before, count: u32, stability: Stability },
    Made { ino: InodeNo, dir: InodeNo, before: Before },
    Removed { dir: InodeNo, before: Before },
    Renamed { from: InodeNo, to: InodeNo, from_before: Before, to_before: Before },
    Linked { ino: InodeNo, dir: InodeNo, before: Before },
}

/// What goes with every plan.
pub(crate) struct Call<'c> {
    pub ctx: &'c OpCtx,
    pub now: WallTime,
    /// Free blocks of the aggregate that an ordinary caller may still use.
    pub free_blocks: u64,
    pub verifier: Verifier,
}

type Plan = Result<Planned, Stop>;

fn answer(reply: Reply<ObjectRef>) -> Plan {
    Ok(Planned::Answer(Box::new(reply)))
}

fn change(change: Change, answer: Answer) -> Plan {
    Ok(Planned::Apply { change, payload: Payload::default(), answer })
}

/// What is to be made in a directory.
struct New {
    kind: InodeKind,
    set: SetAttrs,
    default_mode: u32,
    device: (u32, u32),
    verifier: Option<[u8; 8]>,
    target: Vec<u8>,
}

impl New {
    fn of(kind: InodeKind, set: SetAttrs, default_mode: u32) -> Self {
        Self { kind, set, default_mode, device: (0, 0), verifier: None, target: Vec::new() }
    }
}

impl VolState {
    /// Plans one operation.
    pub fn plan(&mut self, call: &Call<'_>, op: &Op<ObjectRef>) -> Plan {
        match op {
            Op::GetAttr { obj } => {
                let ino = self.object(*obj)?;
                answer(Reply::Attrs(self.attrs(ino)))
            }
            Op::SetAttr { obj, set, guard } => self.plan_set(call, *obj, set, *guard),
            Op::Lookup { dir, name } => self.plan_lookup(call, *dir, name),
            Op::Access { obj, want } => self.plan_access(call, *obj, *want),
            Op::ReadLink { obj } => self.plan_read_link(*obj),
            Op::Read { obj, offset, count } => self.plan_read(call, *obj, *offset, *count),
            Op::Write { obj, offset, data, stability } => {
                self.plan_write(call, *obj, *offset, data, *stability)
            }
            Op::Create { dir, name, how } => self.plan_create(call, *dir, name, *how),
            Op::MakeDir { dir, name, set } => {
                let new = New::of(InodeKind::Directory, *set, 0o700);
                self.plan_make_new(call, *dir, name, new)
            }
            Op::Symlink { dir, name, target, set } => {
                let set = SetAttrs { mode: Some(0o777), ..*set };
                let mut new = New::of(InodeKind::Symlink, set, 0o777);
                new.target = target.as_bytes().to_vec();
                self.plan_make_new(call, *dir, name, new)
            }
            Op::MakeNode { dir, name, kind, set } => {
                self.plan_make_node(call, *dir, name, *kind, set)
            }
            Op::Remove { dir, name } => self.plan_remove(call, *dir, name, false),
            Op::RemoveDir { dir, name } => self.plan_remove(call, *dir, name, true),
            Op::Rename { from_dir, from_name, to_dir, to_name } => {
                self.plan_rename(call, (*from_dir, from_name), (*to_dir, to_name))
            }
            Op::Link { obj, dir, name } => self.plan_link(call, *obj, *dir, name),
            Op::ReadDir { dir, cookie, limits } => self.plan_list(call, *dir, *cookie, *limits),
            Op::FsStat { obj } => self.plan_fs_stat(call, *obj),
            Op::Commit { obj, .. } => self.plan_commit(*obj),
            Op::Punch { obj, offset, count } => self.plan_punch(call, *obj, *offset, *count),
            Op::GetXattr { obj, name } => {
                let ino = self.object(*obj)?;
                self.judge(call, ino).need(Right::Read)?;
                let set = self.xattrs(ino)?;
                match set.into_iter().find(|(n, _)| n == name) {
                    Some((_, value)) => answer(Reply::Xattr { value }),
                    None => Err(Status::NoXattr.into()),
                }
            }
            Op::ListXattr { obj } => {
                let ino = self.object(*obj)?;
                let names = self.xattrs(ino)?.into_iter().map(|(n, _)| n).collect();
                answer(Reply::XattrNames { names })
            }
            Op::SetXattr { obj, name, value, how } => {
                self.plan_set_xattr(call, *obj, name, value, *how)
            }
            Op::RemoveXattr { obj, name } => {
                let ino = self.object(*obj)?;
                self.judge(call, ino).need(Right::Write)?;
                let mut set = self.xattrs(ino)?;
                let count = set.len();
                set.retain(|(n, _)| n != name);
                if set.len() == count {
                    return Err(Status::NoXattr.into());
                }
                self.change_xattrs(ino, &set)
            }
        }
    }

    fn judge<'c>(&self, call: &'c Call<'_>, ino: InodeNo) -> Judge<'c> {
        let inode = &self.file(ino).inode;
        Judge {
            cred: &call.ctx.cred,
            kind: file_kind(inode.kind),
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
        }
    }

    fn before(&self, ino: InodeNo) -> Before {
        self.attrs(ino).as_before()
    }

    fn directory(&mut self, dir: ObjectRef) -> Result<InodeNo, Stop> {
        let ino = self.object(dir)?;
        if self.file(ino).is_dir() { Ok(ino) } else { Err(Status::NotDirectory.into()) }
    }

    fn regular(&mut self, obj: ObjectRef) -> Result<InodeNo, Stop> {
        let ino = self.object(obj)?;
        match self.file(ino).inode.kind {
            InodeKind::Regular => Ok(ino),
            InodeKind::Directory => Err(Status::IsDirectory.into()),
            _ => Err(Status::Invalid.into()),
        }
    }

    /// The file behind a name, `None` when there is none. `.` and `..` are understood.
    fn entry(&mut self, dir: InodeNo, name: &Name) -> Result<Option<InodeNo>, Stop> {
        let ino = match name.as_bytes() {
            b"." => dir,
            b".." if dir == ROOT_INO => dir,
            b".." => self.file(dir).inode.parent,
            bytes => match self.dir(dir, |d| d.lookup(bytes))? {
                Ok(Some(Found { inode, generation, .. })) => {
                    if self.load_inode(inode)?.inode.generation != generation {
                        tracing::error!(dir = dir.get(), ino = inode.get(), "stale entry");
                        return Err(Status::Io.into());
                    }
                    inode
                }
                Ok(None) => return Ok(None),
                Err(_) => return Err(Status::Io.into()),
            },
        };
        self.load_inode(ino)?;
        Ok(Some(ino))
    }

    fn obj(&self, ino: InodeNo) -> ObjectRef {
        self.object_ref(ino, self.file(ino).inode.generation)
    }

    fn plan_lookup(&mut self, call: &Call<'_>, dir: ObjectRef, name: &Name) -> Plan {
        let dir = self.directory(dir)?;
        self.judge(call, dir).need(Right::Execute)?;
        let Some(ino) = self.entry(dir, name)? else { return Err(Status::NotFound.into()) };
        answer(Reply::Found { obj: self.obj(ino), attrs: self.attrs(ino), dir: self.attrs(dir) })
    }

    fn plan_access(&mut self, call: &Call<'_>, obj: ObjectRef, want: AccessMask) -> Plan {
        let ino = self.object(obj)?;
        let mut granted = self.judge(call, ino).access(want);
        if call.ctx.read_only == ReadOnly::Yes {
            granted.0 &= !(AccessMask::MODIFY | AccessMask::EXTEND | AccessMask::DELETE);
        }
        answer(Reply::Access { granted, attrs: self.attrs(ino) })
    }

    fn plan_read_link(&mut self, obj: ObjectRef) -> Plan {
        let ino = self.object(obj)?;
        let file = self.file(ino);
        if file.inode.kind != InodeKind::Symlink {
            return Err(Status::Invalid.into());
        }
        let target = if file.inode.is_inline() {
            file.inode.inline.clone()
        } else {
            let block = file.tree.get(Key::data(0)).map_err(|m| miss(FileId::Inode(ino), m))?;
            let len = usize::try_from(file.inode.size).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
            block.unwrap_or_else(Block::zero)[..len].to_vec()
        };
        let target = LinkTarget::new(target.into()).map_err(|_| Stop::from(Status::Io))?;
        answer(Reply::LinkTarget { target, attrs: self.attrs(ino) })
    }

    fn plan_read(&mut self, call: &Call<'_>, obj: ObjectRef, offset: u64, count: u32) -> Plan {
        let ino = self.regular(obj)?;
        self.judge(call, ino).need_read_data()?;
        let size = self.file(ino).inode.size;
        let left = size.saturating_sub(offset);
        let count = u32::try_from(left.min(u64::from(count))).unwrap_or(count);
        let tree = &self.file(ino).tree;
        let mut blocks = Vec::with_capacity(count as usize / BLOCK_BYTES + 2);
        let mut misses: Vec<Miss> = Vec::new();
        for (index, _, _) in pieces(offset, u64::from(count)) {
            match tree.get(Key::data(index)) {
                Ok(block) => blocks.push(block.unwrap_or_else(Block::zero)),
                Err(at) => {
                    let at = Miss { file: FileId::Inode(ino), key: at.key, ptr: at.ptr };
                    if misses.last() != Some(&at) {
                        misses.push(at);
                    }
                }
            }
        }
        if !misses.is_empty() {
            self.read_ahead(ino, offset, u64::from(count), &mut misses);
            return Err(Stop::Miss(misses));
        }
        let skip = u32::try_from(offset % BLOCK_BYTES_U64).unwrap_or_default();
        let data = if count == 0 { Payload::default() } else { Payload::new(skip, count, blocks) };
        self.note_read(ino, call.now);
        answer(Reply::Read { data, eof: u64::from(count) == left, attrs: self.attrs(ino) })
    }

    /// Adds the blocks that follow those of a read that missed some, as far as their pointers are in
    /// memory, when it goes on where others were.
    fn read_ahead(&mut self, ino: InodeNo, offset: u64, count: u64, misses: &mut Vec<Miss>) {
        let (begin, first) = (offset / BLOCK_BYTES_U64, (offset + count).div_ceil(BLOCK_BYTES_U64));
        // What lacks pointers runs once more, and is noted then.
        if misses.iter().any(|m| m.key.level > 0)
            || !self.file_mut(ino).streams.goes_on(begin, first)
        {
            return;
        }
        let file = self.file(ino);
        let last = file.inode.size.div_ceil(BLOCK_BYTES_U64).min(first + READ_AHEAD_BLOCKS);
        for index in first..last {
            let key = Key::data(index);
            match file.tree.ptr(key) {
                Ok(ptr) if !ptr.is_hole() && !file.tree.is_resident(key) => {
                    misses.push(Miss { file: FileId::Inode(ino), key, ptr });
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Moves the access time, if it lies before the last change or a day back. It is not logged:
    /// a crash may lose it.
    fn note_read(&mut self, ino: InodeNo, now: WallTime) {
        const DAY_NS: i64 = 86_400_000_000_000;
        let inode = &self.file(ino).inode;
        let old = now.get().saturating_sub(inode.atime.get()) >= DAY_NS;
        let stale = inode.atime <= inode.mtime || inode.atime <= inode.ctime || old;
        if stale && self.inode_ready(ino).is_ok() {
            self.file_mut(ino).inode.atime = now;
            self.touch(ino);
        }
    }

    fn plan_write(
        &mut self,
        call: &Call<'_>,
        obj: ObjectRef,
        offset: u64,
        data: &Payload,
        stability: Stability,
    ) -> Plan {
        let ino = self.regular(obj)?;
        self.judge(call, ino).need_write_data()?;
        let end = offset.checked_add(u64::from(data.len())).filter(|e| *e <= FILE_BYTES_MAX);
        if end.is_none() {
            return Err(Status::FileTooBig.into());
        }
        if u64::from(data.skip()) != offset % BLOCK_BYTES_U64 && !data.is_empty() {
            return Err(Status::Invalid.into());
        }
        let mode = perm::mode_after_write(&call.ctx.cred, self.file(ino).inode.mode);
        let before = self.before(ino);
        if data.is_empty() {
            let (after, verifier) = (self.attrs(ino), call.verifier);
            return answer(Reply::Written { count: 0, stability, verifier, before, after });
        }
        Ok(Planned::Apply {
            change: Change::Write { ino, offset, bytes: data.len(), mode },
            payload: data.clone(),
            answer: Answer::Written { ino, before, count: data.len(), stability },
        })
    }

    fn plan_set(
        &mut self,
        call: &Call<'_>,
        obj: ObjectRef,
        set: &SetAttrs,
        guard: Option<WallTime>,
    ) -> Plan {
        let ino = if set.size.is_some() { self.regular(obj)? } else { self.object(obj)? };
        let before = self.before(ino);
        if guard.is_some_and(|ctime| ctime != before.ctime) {
            return Err(Status::NotSync.into());
        }
        self.judge(call, ino).need_set(set)?;
        if set.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return Err(Status::FileTooBig.into());
        }
        if *set == SetAttrs::default() {
            return answer(Reply::Changed { before, after: self.attrs(ino) });
        }
        let (setting, zombie) = self.decide(call, ino, set)?;
        change(Change::Set { ino, set: setting, zombie }, Answer::Changed { ino, before })
    }

    /// Works out what `set` comes to for this caller.
    fn decide(
        &mut self,
        call: &Call<'_>,
        ino: InodeNo,
        set: &SetAttrs,
    ) -> Result<(Setting, Option<NewInode>), Stop> {
        let judge = self.judge(call, ino);
        let gid = set.gid.unwrap_or(judge.gid);
        let mut mode = judge.mode;
        if let Some(to) = set.mode {
            mode = judge.chmod(to, gid);
        }
        if set.uid.is_some() || set.gid.is_some() {
            mode = perm::mode_after_chown(judge.kind, mode);
        }
        if set.size.is_some() {
            mode = perm::mode_after_write(&call.ctx.cred, mode);
        }
        let time = |to: SetTime| match to {
            SetTime::Keep => None,
            SetTime::Now => Some(call.now),
            SetTime::To(at) => Some(at),
        };
        let mut mtime = time(set.mtime);
        if set.size.is_some() && mtime.is_none() {
            mtime = Some(call.now);
        }
        let zombie = match set.size {
            Some(size) if self.cut_needs_zombie(ino, size) => {
                let (ino, generation) = self.find_free_inode(None)?;
                Some(NewInode { ino, generation })
            }
            _ => None,
        };
        let setting = Setting {
            mode: Some(mode),
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: time(set.atime),
            mtime,
        };
        Ok((setting, zombie))
    }

    /// The directory and what a name in it leads to, for a caller who wants to make the name.
    fn name_to_make(
        &mut self,
        call: &Call<'_>,
        dir: ObjectRef,
        name: &Name,
    ) -> Result<(InodeNo, Option<InodeNo>), Stop> {
        let dir = self.directory(dir)?;
        if name.is_dot_or_dotdot() {
            return Err(Status::Exists.into());
        }
        self.judge(call, dir).need(Right::Execute)?;
        let found = self.entry(dir, name)?;
        Ok((dir, found))
    }

    fn plan_create(
        &mut self,
        call: &Call<'_>,
        dir: ObjectRef,
        name: &Name,
        how: CreateHow,
    ) -> Plan {
        let (dir, found) = self.name_to_make(call, dir, name)?;
        match (found, how) {
            (None, CreateHow::Unchecked(set) | CreateHow::Guarded(set)) => {
                self.plan_make(call, dir, name, New::of(InodeKind::Regular, set, 0o600))
            }
            (None, CreateHow::Exclusive(verifier)) => {
                let set = SetAttrs { mode: Some(0), ..SetAttrs::default() };
                let mut new = New::of(InodeKind::Regular, set, 0);
                new.verifier = Some(verifier.0);
                self.plan_make(call, dir, name, new)
            }
            (Some(_), CreateHow::Guarded(_)) => Err(Status::Exists.into()),
            (Some(ino), CreateHow::Unchecked(set)) => {
                if self.file(ino).inode.kind != InodeKind::Regular {
                    return Err(Status::Exists.into());
                }
                let before = self.before(dir);
                if set.size.is_none() {
                    return self.opened(dir, ino);
                }
                let only_size = SetAttrs { size: set.size, ..SetAttrs::default() };
                self.judge(call, ino).need_set(&only_size)?;
                if set.size.is_some_and(|size| size > FILE_BYTES_MAX) {
                    return Err(Status::FileTooBig.into());
                }
                let (set, zombie) = self.decide(call, ino, &only_size)?;
                change(Change::Set { ino, set, zombie }, Answer::Made { ino, dir, before })
            }
            (Some(ino), CreateHow::Exclusive(verifier)) => {
                let inode = &self.file(ino).inode;
                let exclusive = inode.flags & inode_flags::EXCLUSIVE != 0;
                if !exclusive || inode.verifier != verifier.0 {
                    return Err(Status::Exists.into());
                }
                self.opened(dir, ino)
            }
        }
    }

    fn opened(&self, dir: InodeNo, ino: InodeNo) -> Plan {
        let dir = self.attrs(dir);
        answer(Reply::Made {
            obj: self.obj(ino),
            attrs: self.attrs(ino),
            dir_before: dir.as_before(),
            dir_after: dir,
        })
    }

    fn plan_make_node(
        &mut self,
        call: &Call<'_>,
        dir: ObjectRef,
        name: &Name,
        kind: NodeKind,
        set: &SetAttrs,
    ) -> Plan {
        let (kind, device) = match kind {
            NodeKind::BlockDevice(d) => (InodeKind::BlockDevice, (d.major, d.minor)),
            NodeKind::CharDevice(d) => (InodeKind::CharDevice, (d.major, d.minor)),
            NodeKind::Fifo => (InodeKind::Fifo, (0, 0)),
            NodeKind::Socket => (InodeKind::Socket, (0, 0)),
        };
        let new = New { device, ..New::of(kind, *set, 0o600) };
        self.plan_make_new(call, dir, name, new)
    }

    fn plan_make_new(&mut self, call: &Call<'_>, dir: ObjectRef, name: &Name, new: New) -> Plan {
        let (dir, found) = self.name_to_make(call, dir, name)?;
        if found.is_some() {
            return Err(Status::Exists.into());
        }
        let device = matches!(new.kind, InodeKind::BlockDevice | InodeKind::CharDevice);
        if device && call.ctx.cred.uid.get() != 0 {
            return Err(Status::NotOwner.into());
        }
        self.plan_make(call, dir, name, new)
    }

    fn plan_make(&mut self, call: &Call<'_>, dir: InodeNo, name: &Name, new: New) -> Plan {
        let cred = &call.ctx.cred;
        let parent = self.judge(call, dir);
        parent.need(Right::Write)?;
        let mut set = new.set;
        if new.kind != InodeKind::Regular {
            set.size = None;
        }
        if set.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return Err(Status::FileTooBig.into());
        }
        if new.kind == InodeKind::Directory && self.file(dir).inode.links >= LINKS_MAX {
            return Err(Status::TooManyLinks.into());
        }
        let superuser = cred.uid.get() == 0;
        let inherits = parent.mode & perm::SET_GID != 0;
        let own_gid = if inherits { parent.gid } else { cred.gid };
        let uid = set.uid.filter(|_| superuser).unwrap_or(cred.uid);
        let gid = set.gid.filter(|g| superuser || cred.in_group(*g)).unwrap_or(own_gid);
        let judge = Judge { cred, kind: file_kind(new.kind), mode: 0, uid, gid };
        let mut mode = judge.chmod(set.mode.unwrap_or(new.default_mode), gid);
        if new.kind == InodeKind::Directory && inherits {
            mode |= perm::SET_GID;
        }
        let time = |to: SetTime| match to {
            SetTime::To(at) => at,
            SetTime::Keep | SetTime::Now => call.now,
        };
        let (ino, generation) = self.find_free_inode(None)?;
        let make = MakeChange {
            dir,
            name: name.clone(),
            new: NewInode { ino, generation },
            kind: new.kind,
            mode,
            uid,
            gid,
            size: set.size.unwrap_or(0),
            device: new.device,
            verifier: new.verifier,
            object: self.next_object(),
            atime: time(set.atime),
            mtime: time(set.mtime),
            target: new.target,
        };
        let before = self.before(dir);
        change(Change::Make(Box::new(make)), Answer::Made { ino, dir, before })
    }

    fn plan_remove(
        &mut self,
        call: &Call<'_>,
        dir: ObjectRef,
        name: &Name,
        want_dir: bool,
    ) -> Plan {
        let dir = self.directory(dir)?;
        if name.is_dot_or_dotdot() {
            return Err(Status::Invalid.into());
        }
        self.judge(call, dir).need(Right::Execute)?;
        let Some(ino) = self.entry(dir, name)? else { return Err(Status::NotFound.into()) };
        self.judge(call, dir).need_take(self.file(ino).inode.uid)?;
        match (self.file(ino).is_dir(), want_dir) {
            (true, false) => return Err(Status::IsDirectory.into()),
            (false, true) => return Err(Status::NotDirectory.into()),
            (true, true) => self.need_empty(ino)?,
            (false, false) => {}
        }
        let before = self.before(dir);
        change(Change::Remove { dir, name: name.clone() }, Answer::Removed { dir, before })
    }

    fn need_empty(&self, dir: InodeNo) -> Result<(), Stop> {
        match self.dir(dir, |d| d.size())? {
            Ok((0, _)) => Ok(()),
            Ok(_) => Err(Status::NotEmpty.into()),
            Err(_) => Err(Status::Io.into()),
        }
    }

    /// Whether `below` is `above` or lies under it.
    fn lies_under(&mut self, below: InodeNo, above: InodeNo) -> Result<bool, Stop> {
        let mut at = below;
        for _ in 0..DEPTH_MAX {
            if at == above {
                return Ok(true);
            }
            if at == ROOT_INO {
                return Ok(false);
            }
            at = self.load_inode(at)?.inode.parent;
            self.load_inode(at)?;
        }
        tracing::error!(fsid = self.fsid.get(), dir = below.get(), "directories in a loop");
        Err(Status::Io.into())
    }

    fn plan_rename(
        &mut self,
        call: &Call<'_>,
        (from_dir, from_name): (ObjectRef, &Name),
        (to_dir, to_name): (ObjectRef, &Name),
    ) -> Plan {
        self.object(from_dir)?;
        self.object(to_dir)?;
        let (from, to) = (self.directory(from_dir)?, self.directory(to_dir)?);
        if from_name.is_dot_or_dotdot() || to_name.is_dot_or_dotdot() {
            return Err(Status::Invalid.into());
        }
        self.judge(call, from).need(Right::Execute)?;
        self.judge(call, to).need(Right::Execute)?;
        let Some(ino) = self.entry(from, from_name)? else { return Err(Status::NotFound.into()) };
        let replaced = self.entry(to, to_name)?;
        let (from_before, to_before) = (self.before(from), self.before(to));
        if replaced == Some(ino) {
            let (from_after, to_after) = (self.attrs(from), self.attrs(to));
            return answer(Reply::Renamed { from_before, from_after, to_before, to_after });
        }
        let is_dir = self.file(ino).is_dir();
        if is_dir && self.lies_under(to, ino)? {
            return Err(Status::Invalid.into());
        }
        self.judge(call, from).need_take(self.file(ino).inode.uid)?;
        self.judge(call, to).need(Right::Write)?;
        if let Some(old) = replaced {
            self.judge(call, to).need_take(self.file(old).inode.uid)?;
            match (is_dir, self.file(old).is_dir()) {
                (true, false) => return Err(Status::NotDirectory.into()),
                (false, true) => return Err(Status::IsDirectory.into()),
                (true, true) | (false, false) => {}
            }
        }
        if is_dir && from != to {
            // Its `..` changes.
            self.judge(call, ino).need(Right::Write)?;
            if self.file(to).inode.links >= LINKS_MAX {
                return Err(Status::TooManyLinks.into());
            }
        }
        if let Some(old) = replaced
            && self.file(old).is_dir()
        {
            self.need_empty(old)?;
        }
        let rename = Change::Rename {
            from_dir: from,
            from_name: from_name.clone(),
            to_dir: to,
            to_name: to_name.clone(),
        };
        change(rename, Answer::Renamed { from, to, from_before, to_before })
    }

    fn plan_link(&mut self, call: &Call<'_>, obj: ObjectRef, dir: ObjectRef, name: &Name) -> Plan {
        let ino = self.object(obj)?;
        self.directory(dir)?;
        if name.is_dot_or_dotdot() {
            return Err(Status::Exists.into());
        }
        if self.file(ino).is_dir() {
            return Err(Status::NotOwner.into());
        }
        let (dir, found) = self.name_to_make(call, dir, name)?;
        if found.is_some() {
            return Err(Status::Exists.into());
        }
        self.judge(call, dir).need(Right::Write)?;
        if self.file(ino).inode.links >= LINKS_MAX {
            return Err(Status::TooManyLinks.into());
        }
        let before = self.before(dir);
        let link = Change::Link { ino, dir, name: name.clone() };
        change(link, Answer::Linked { ino, dir, before })
    }

    fn plan_list(
        &mut self,
        call: &Call<'_>,
        dir: ObjectRef,
        cookie: Cookie,
        limits: ListLimits,
    ) -> Plan {
        let dir = self.directory(dir)?;
        let judge = self.judge(call, dir);
        judge.need(Right::Read)?;
        let with_files = limits.with_files == WithFiles::Yes && judge.may(Right::Execute);
        let mut page = Page::new(limits);
        let mut eof = true;
        let parent = self.file(dir).inode.parent;
        let dots = [(&b"."[..], dir, COOKIE_DOT), (&b".."[..], parent, COOKIE_DOTDOT)];
        for (name, ino, at) in dots.into_iter().filter(|(_, _, at)| *at > cookie.get()) {
            eof = eof && page.take(name, ino, None, Cookie::new(at));
        }
        if eof {
            let after = Cookie::new(cookie.get().max(COOKIE_DOTDOT));
            let end = self.dir(dir, |d| {
                d.list(after, |entry| {
                    let e = entry.found;
                    match page.take(entry.name, e.inode, Some(e.generation), e.cookie) {
                        true => ControlFlow::Continue(()),
                        false => ControlFlow::Break(()),
                    }
                })
            })?;
            match end {
                Ok(ListEnd::End) => {}
                Ok(ListEnd::Stopped) => eof = false,
                Err(_) => return Err(Status::Io.into()),
            }
        }
        let entries = self.listed(page, with_files)?;
        self.note_read(dir, call.now);
        answer(Reply::Listing { entries, eof, dir: self.attrs(dir) })
    }

    /// Adds references and attributes to the entries of a listing.
    fn listed(&self, page: Page, with_files: bool) -> Result<Vec<Entry<ObjectRef>>, Stop> {
        let mut files = Vec::new();
        if with_files {
            files = self.listed_files(&page.found)?;
        }
        let mut files = files.into_iter();
        let mut entries = Vec::with_capacity(page.found.len());
        let names = Bytes::from(page.names);
        for PageEntry { name, ino, cookie, .. } in page.found {
            let name = Name::new(names.slice(name)).map_err(|_| Stop::from(Status::Io))?;
            entries.push(Entry { ino, cookie, name, file: files.next().flatten() });
        }
        Ok(entries)
    }

    /// References and attributes of the listed files, none for a stale entry; or all the blocks
    /// that must be loaded for them.
    fn listed_files(&self, entries: &[PageEntry]) -> Result<Vec<Option<(ObjectRef, Attrs)>>, Stop> {
        let mut misses: Vec<Miss> = Vec::new();
        let mut seen = Vec::with_capacity(entries.len());
        for entry in entries {
            match self.see(entry.ino) {
                Ok(inode) => seen.push(inode),
                Err(Stop::Miss(more)) => {
                    for miss in more {
                        if misses.last() != Some(&miss) {
                            misses.push(miss);
                        }
                    }
                }
                Err(stop) => return Err(stop),
            }
        }
        if !misses.is_empty() {
            return Err(Stop::Miss(misses));
        }
        // In a large directory each inode is a cache miss or two. Touched in a loop that does
        // nothing else, many of them are fetched at once.
        let warm = seen.iter().fold(0u64, |sum, inode| sum.wrapping_add(inode.warm()));
        core::hint::black_box(warm);
        let mut files = Vec::with_capacity(entries.len());
        for (entry, inode) in entries.iter().zip(&seen) {
            let (generation, attrs) = self.seen(entry.ino, inode)?;
            let stale = entry.generation.is_some_and(|g| g != generation);
            if stale {
                tracing::error!(fsid = self.fsid.get(), ino = entry.ino.get(), "stale entry");
            }
            files.push((!stale).then(|| (self.object_ref(entry.ino, generation), attrs)));
        }
        Ok(files)
    }

    fn plan_fs_stat(&mut self, call: &Call<'_>, obj: ObjectRef) -> Plan {
        let ino = self.object(obj)?;
        let used = self.used_blocks + self.dirtied.fresh;
        let free = self.size_blocks.saturating_sub(used).min(call.free_blocks);
        let free_files = (free.saturating_mul(8)).min(crate::volume::INODES_MAX);
        let stat = FsStat {
            total_bytes: self.size_blocks.saturating_mul(BLOCK_BYTES_U64),
            free_bytes: free * BLOCK_BYTES_U64,
            available_bytes: free * BLOCK_BYTES_U64,
            total_files: free_files + self.files,
            free_files,
        };
        answer(Reply::FsStat { stat, attrs: self.attrs(ino) })
    }

    fn plan_commit(&mut self, obj: ObjectRef) -> Plan {
        let ino = self.regular(obj)?;
        Ok(Planned::Commit { ino, before: self.before(ino) })
    }

    fn plan_punch(&mut self, call: &Call<'_>, obj: ObjectRef, offset: u64, count: u64) -> Plan {
        let ino = self.regular(obj)?;
        self.judge(call, ino).need_write_data()?;
        let before = self.before(ino);
        let end = offset.saturating_add(count).min(self.file(ino).inode.size);
        if offset >= end {
            return answer(Reply::Changed { before, after: self.attrs(ino) });
        }
        let mode = perm::mode_after_write(&call.ctx.cred, self.file(ino).inode.mode);
        change(Change::Punch { ino, offset, end, mode }, Answer::Changed { ino, before })
    }

    // ---- extended attributes ----

    fn xattrs(&mut self, ino: InodeNo) -> Result<xattr::Set, Stop> {
        let store = self.file(ino).inode.xattr;
        if store.get() == 0 {
            return Ok(Vec::new());
        }
        self.load_inode(store)?;
        let file = self.file(store);
        let mut bytes = Vec::new();
        for (index, from, to) in pieces(0, file.inode.size) {
            let block =
                file.tree.get(Key::data(index)).map_err(|m| miss(FileId::Inode(store), m))?;
            bytes.extend_from_slice(&block.unwrap_or_else(Block::zero)[from..to]);
        }
        xattr::decode(&bytes).ok_or_else(|| {
            tracing::error!(fsid = self.fsid.get(), ino = ino.get(), "damaged attribute store");
            Status::Io.into()
        })
    }

    fn plan_set_xattr(
        &mut self,
        call: &Call<'_>,
        obj: ObjectRef,
        name: &Name,
        value: &[u8],
        how: XattrHow,
    ) -> Plan {
        let ino = self.object(obj)?;
        self.judge(call, ino).need(Right::Write)?;
        if value.len() > xattr::VALUE_BYTES_MAX {
            return Err(Status::XattrTooBig.into());
        }
        let mut set = self.xattrs(ino)?;
        let old = set.iter_mut().find(|(n, _)| n == name);
        match (old, how) {
            (Some(_), XattrHow::Create) => return Err(Status::Exists.into()),
            (None, XattrHow::Replace) => return Err(Status::NoXattr.into()),
            (Some((_, v)), _) => *v = value.to_vec(),
            (None, _) => set.push((name.clone(), value.to_vec())),
        }
        set.sort();
        self.change_xattrs(ino, &set)
    }

    fn change_xattrs(&mut self, ino: InodeNo, set: &xattr::Set) -> Plan {
        let bytes = xattr::encode(set);
        if bytes.len() > xattr::SET_BYTES_MAX {
            return Err(Status::XattrTooBig.into());
        }
        let payload = Payload::copy_from(0, &bytes);
        let new = if self.file(ino).inode.xattr.get() == 0 {
            let (ino, generation) = self.find_free_inode(None)?;
            Some(NewInode { ino, generation })
        } else {
            None
        };
        let before = self.before(ino);
        Ok(Planned::Apply {
            change: Change::Xattrs { ino, bytes: payload.len(), new },
            payload,
            answer: Answer::Changed { ino, before },
        })
    }

    /// The reply to a change that was applied.
    pub fn answer(&self, answer: Answer, verifier: Verifier) -> Reply<ObjectRef> {
        match answer {
            Answer::Changed { ino, before } => Reply::Changed { before, after: self.attrs(ino) },
            Answer::Written { ino, before, count, stability } => {
                Reply::Written { count, stability, verifier, before, after: self.attrs(ino) }
            }
            Answer::Made { ino, dir, before } => Reply::Made {
                obj: self.obj(ino),
                attrs: self.attrs(ino),
                dir_before: before,
                dir_after: self.attrs(dir),
            },
            Answer::Removed { dir, before } => {
                Reply::Removed { dir_before: before, dir_after: self.attrs(dir) }
            }
            Answer::Renamed { from, to, from_before, to_before } => Reply::Renamed {
                from_before,
                from_after: self.attrs(from),
                to_before,
                to_after: self.attrs(to),
            },
            Answer::Linked { ino, dir, before } => Reply::Linked {
                attrs: self.attrs(ino),
                dir_before: before,
                dir_after: self.attrs(dir),
            },
        }
    }

    /// Attributes for a failure's reply, if the object is in memory.
    pub fn attrs_if_known(&self, obj: ObjectRef) -> Option<Attrs> {
        let file = self.in_core.get(&obj.ino)?;
        let live = file.inode.generation == obj.generation
            && !file.inode.is_zombie()
            && !matches!(file.inode.kind, InodeKind::Free | InodeKind::Internal);
        live.then(|| self.attrs(obj.ino))
    }
}

/// Entries of one listing: their names lie one behind the other in one buffer.
struct Page {
    room: Room,
    names: Vec<u8>,
    found: Vec<PageEntry>,
}

struct PageEntry {
    name: Range<usize>,
    ino: InodeNo,
    /// What the entry says; none for `.` and `..`, which are not stored.
    generation: Option<Generation>,
    cookie: Cookie,
}

impl Page {
    fn new(limits: ListLimits) -> Self {
        let room = Room { limits, entries: 0, bytes: 0 };
        Self { room, names: Vec::new(), found: Vec::new() }
    }

    /// Adds an entry; `false` when it does not fit.
    fn take(
        &mut self,
        name: &[u8],
        ino: InodeNo,
        generation: Option<Generation>,
        cookie: Cookie,
    ) -> bool {
        let fits = self.room.take(name);
        if fits {
            let from = self.names.len();
            self.names.extend_from_slice(name);
            let name = from..self.names.len();
            self.found.push(PageEntry { name, ino, generation, cookie });
        }
        fits
    }
}

/// How much of a listing still fits.
struct Room {
    limits: ListLimits,
    entries: u32,
    bytes: u64,
}

impl Room {
    fn take(&mut self, name: &[u8]) -> bool {
        let bytes = u64::from(self.limits.entry_bytes) + name.len().next_multiple_of(4) as u64;
        let fits = self.entries < self.limits.entries_max
            && self.bytes + bytes <= u64::from(self.limits.bytes_max);
        if fits {
            self.entries += 1;
            self.bytes += bytes;
        }
        fits
    }
}
