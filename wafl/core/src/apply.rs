//! Applying a resolved change to a volume: `ready` checks that everything is in memory (and may
//! stop), `apply` changes memory and cannot fail.
//!
//! Layer: volumes; runs under the volume's lock, live and in replay with the same code.
//!
//! # Invariants
//! - `apply` is called under the same lock hold as the `ready` that allowed it.
//! - After `apply` every object that lost its last name is free or a zombie, and every block that
//!   nothing names is in `freed`, exactly once.

use std::collections::BTreeMap;

use cairn_op::{Name, Status};
use cairn_sys::{Block, Payload};
use cairn_units::{BLOCK_BYTES, BLOCK_BYTES_U64, Fbn, Generation, InodeNo, WallTime};
use cairn_wafl_dir::{Dir, DirError, DirFault, DirWrite, EntryKind, NewEntry, Overlay};
use cairn_wafl_format::{DIRECT_POINTERS, INLINE_BYTES_MAX, Inode, InodeKind, inode_flags};

use crate::change::{Change, MakeChange, NewInode, Setting};
use crate::freed::Freed;
use crate::sums::Balance;
use crate::tree::{Dropped, Key, Reaped, Tree};
use crate::volume::{DirSink, DirView, File, FileId, Miss, Stop, VolState, miss};

/// Blocks of metadata that one change may dirty beside its data: tree paths of two directories
/// and a file, inode blocks, map blocks.
pub(crate) const CHANGE_METADATA_BLOCKS: u64 = 48;

/// What a change needs that its plan already worked out.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    dirs: Vec<DirWrites>,
    /// The inode that loses a name.
    victim: Option<InodeNo>,
    /// The inode that is renamed.
    moved: Option<InodeNo>,
}

#[derive(Debug)]
pub(crate) struct DirWrites {
    dir: InodeNo,
    writes: BTreeMap<Fbn, Block>,
    file_blocks: u64,
    /// Change of the number of entries.
    entries: i64,
}

/// The parts of a write, block by block: index, range within the block.
pub(crate) fn pieces(offset: u64, bytes: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + bytes;
    let mut at = offset;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let index = at / BLOCK_BYTES_U64;
        let base = index * BLOCK_BYTES_U64;
        let stop = end.min(base + BLOCK_BYTES_U64);
        let within = |x: u64| usize::try_from(x - base).unwrap_or(BLOCK_BYTES);
        let piece = (index, within(at), within(stop));
        at = stop;
        Some(piece)
    })
}

fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES_U64)
}

/// A change of one directory.
pub(crate) enum Edit<'n> {
    Insert(&'n Name, NewEntry),
    Replace(&'n Name, NewEntry),
    Remove(&'n Name),
}

impl VolState {
    /// Whether `change` can be applied now.
    pub fn ready(&mut self, change: &Change) -> Result<Ready, Stop> {
        match change {
            Change::Write { ino, offset, bytes, .. } => self.ready_write(*ino, *offset, *bytes),
            Change::Set { ino, set, zombie } => self.ready_set(*ino, set, *zombie),
            Change::Make(make) => self.ready_make(make),
            Change::Remove { dir, name } => self.ready_remove(*dir, name),
            Change::Rename { from_dir, from_name, to_dir, to_name } => {
                self.ready_rename((*from_dir, from_name), (*to_dir, to_name))
            }
            Change::Link { ino, dir, name } => self.ready_link(*ino, *dir, name),
            Change::Punch { ino, offset, end, .. } => self.ready_punch(*ino, *offset, *end),
            Change::Xattrs { ino, bytes, new } => self.ready_xattrs(*ino, *bytes, *new),
        }
    }

    /// Applies `change` at `time`. Cannot fail.
    pub fn apply(&mut self, change: &Change, payload: &Payload, ready: Ready, time: WallTime) {
        match change {
            Change::Write { ino, offset, mode, .. } => {
                self.apply_write(*ino, *offset, payload, *mode, time);
            }
            Change::Set { ino, set, zombie } => self.apply_set(*ino, set, *zombie, time),
            Change::Make(make) => self.apply_make(make, ready, time),
            Change::Remove { dir, .. } => self.apply_remove(*dir, ready, time),
            Change::Rename { from_dir, to_dir, .. } => {
                self.apply_rename(*from_dir, *to_dir, ready, time);
            }
            Change::Link { ino, dir, .. } => self.apply_link(*ino, *dir, ready, time),
            Change::Punch { ino, offset, end, mode } => {
                self.apply_punch(*ino, *offset, *end, *mode, time);
            }
            Change::Xattrs { ino, new, .. } => self.apply_xattrs(*ino, payload, *new, time),
        }
    }

    // ---- data ----

    fn ready_write(&mut self, ino: InodeNo, offset: u64, bytes: u32) -> Result<Ready, Stop> {
        self.load_inode(ino)?;
        self.inode_ready(ino)?;
        let tree = &self.file(ino).tree;
        let mut misses = Vec::new();
        // Neighbours have the same ancestors.
        let mut reached = None;
        for (index, from, to) in pieces(offset, u64::from(bytes)) {
            let key = Key::data(index);
            let whole = from == 0 && to == BLOCK_BYTES;
            let found = if whole {
                if reached == Some(key.parent()) {
                    continue;
                }
                tree.reachable(key).inspect(|()| reached = Some(key.parent()))
            } else {
                tree.reachable(key).and_then(|()| tree.get(key).map(|_| ()))
            };
            if let Err(at) = found {
                let at = Miss { file: FileId::Inode(ino), key: at.key, ptr: at.ptr };
                if misses.last() != Some(&at) {
                    misses.push(at);
                }
            }
        }
        if misses.is_empty() { Ok(Ready::default()) } else { Err(Stop::Miss(misses)) }
    }

    fn apply_write(
        &mut self,
        ino: InodeNo,
        offset: u64,
        payload: &Payload,
        mode: u32,
        time: WallTime,
    ) {
        let bytes = u64::from(payload.len());
        let file = self.file_mut(ino);
        let mut dirtied = crate::tree::Dirtied::default();
        let blocks = payload.blocks();
        // Between a first and a last block that may be written in part there are only whole ones.
        let (whole, end) = (blocks_of(offset), (offset + bytes) / BLOCK_BYTES_U64);
        if whole < end {
            let at = |index: u64| usize::try_from(index - offset / BLOCK_BYTES_U64);
            let run = at(whole).ok().zip(at(end).ok()).and_then(|(a, b)| blocks.get(a..b));
            let Some(run) = run else { panic!("{bytes} bytes in {} blocks", blocks.len()) };
            dirtied += file.tree.put_all(whole, run);
        }
        for ((index, from, to), block) in pieces(offset, bytes).zip(blocks) {
            if from > 0 || to < BLOCK_BYTES {
                dirtied +=
                    file.tree.edit(index, |old| old[from..to].copy_from_slice(&block[from..to]));
            }
        }
        file.inode.size = file.inode.size.max(offset + bytes);
        file.inode.mode = mode;
        file.data_changed(time);
        self.account(dirtied, Dropped::default());
        self.touch(ino);
    }

    fn ready_punch(&mut self, ino: InodeNo, offset: u64, end: u64) -> Result<Ready, Stop> {
        self.load_inode(ino)?;
        self.inode_ready(ino)?;
        let (first, last) = whole_blocks(offset, end, self.file(ino).inode.size);
        let tree = &self.file(ino).tree;
        let at_inode = |at| miss(FileId::Inode(ino), at);
        if first < last {
            tree.punch_reachable(first, last).map_err(at_inode)?;
        }
        for edge in [offset / BLOCK_BYTES_U64, (end - 1) / BLOCK_BYTES_U64] {
            tree.reachable(Key::data(edge)).map_err(at_inode)?;
            tree.get(Key::data(edge)).map_err(at_inode)?;
        }
        Ok(Ready::default())
    }

    fn apply_punch(&mut self, ino: InodeNo, offset: u64, end: u64, mode: u32, time: WallTime) {
        let size = self.file(ino).inode.size;
        let (first, last) = whole_blocks(offset, end, size);
        let mut freed = Freed::default();
        let file = self.file_mut(ino);
        let (mut dirtied, mut dropped) = (Default::default(), Dropped::default());
        if first < last {
            (dirtied, dropped) = file.tree.punch(first, last, &mut freed);
        }
        // Only the first and the last block of the range can be partial.
        let head = pieces(offset, end - offset).next();
        let start = offset.max((end - 1) / BLOCK_BYTES_U64 * BLOCK_BYTES_U64);
        let tail = pieces(start, end - start).next();
        for (index, from, to) in head.into_iter().chain(tail) {
            let inside = first <= index && index < last;
            if !inside && matches!(file.tree.peek(Key::data(index)), Ok(Some(_))) {
                dirtied += file.tree.edit(index, |block| block[from..to].fill(0));
            }
        }
        file.inode.mode = mode;
        file.data_changed(time);
        self.freed.append(&mut freed);
        self.account(dirtied, dropped);
        self.touch(ino);
    }

    fn ready_set(
        &mut self,
        ino: InodeNo,
        set: &Setting,
        zombie: Option<NewInode>,
    ) -> Result<Ready, Stop> {
        self.load_inode(ino)?;
        self.inode_ready(ino)?;
        if let Some(size) = set.size
            && size < self.file(ino).inode.size
        {
            let tree = &self.file(ino).tree;
            let at_inode = |at| miss(FileId::Inode(ino), at);
            if size % BLOCK_BYTES_U64 != 0 {
                let edge = Key::data(size / BLOCK_BYTES_U64);
                tree.reachable(edge).map_err(at_inode)?;
                tree.get(edge).map_err(at_inode)?;
            }
            tree.cut_reachable(blocks_of(size)).map_err(at_inode)?;
        }
        if let Some(zombie) = zombie {
            self.load_inode(zombie.ino)?;
            self.inode_ready(zombie.ino)?;
            self.inode_bit_ready(zombie.ino)?;
        }
        Ok(Ready::default())
    }

    /// Whether cutting the file to `size` leaves a tail too large to be freed at once.
    pub fn cut_needs_zombie(&self, ino: InodeNo, size: u64) -> bool {
        let file = self.file(ino);
        size < file.inode.size && file.tree.height() > 0
    }

    fn apply_set(&mut self, ino: InodeNo, set: &Setting, zombie: Option<NewInode>, time: WallTime) {
        if let Some(size) = set.size {
            self.set_size(ino, size, zombie, time);
        }
        let file = self.file_mut(ino);
        let inode = &mut file.inode;
        inode.mode = set.mode.unwrap_or(inode.mode);
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        inode.atime = set.atime.unwrap_or(inode.atime);
        inode.mtime = set.mtime.unwrap_or(inode.mtime);
        file.changed(time);
        self.touch(ino);
    }

    fn set_size(&mut self, ino: InodeNo, size: u64, zombie: Option<NewInode>, time: WallTime) {
        let file = self.file_mut(ino);
        let shrinks = size < file.inode.size;
        file.inode.size = size;
        file.inode.mtime = time;
        if !shrinks {
            return;
        }
        let keep = blocks_of(size);
        let (tail, mut dirtied, dropped) = file.tree.cut(keep);
        drop(file.unlogged.split_off(&keep));
        if !size.is_multiple_of(BLOCK_BYTES_U64) {
            let from = usize::try_from(size % BLOCK_BYTES_U64).unwrap_or_default();
            let edge = size / BLOCK_BYTES_U64;
            if matches!(file.tree.peek(Key::data(edge)), Ok(Some(_))) {
                dirtied += file.tree.edit(edge, |block| block[from..].fill(0));
            }
        }
        self.account(dirtied, dropped);
        self.free_tail(ino, tail, zombie, time);
    }

    /// Frees a tree that was cut off: at once when it has no indirect blocks, else as a zombie.
    fn free_tail(&mut self, ino: InodeNo, tail: Tree, zombie: Option<NewInode>, time: WallTime) {
        if tail.height() == 0 {
            self.free_roots(&tail);
            return;
        }
        let Some(new) = zombie else {
            assert!(
                tail.resident() == 0 && tail.roots().iter().all(|p| p.is_hole()),
                "a tail with indirect blocks needs a zombie"
            );
            return;
        };
        let mut inode = Inode::free(new.ino, new.generation);
        inode.kind = InodeKind::Internal;
        inode.ctime = time;
        inode.parent = ino;
        inode.verifier[..4].copy_from_slice(&self.file(ino).inode.generation.get().to_le_bytes());
        self.take_number(new, File { tree: tail, ..File::new(inode) });
        self.push_zombie(new.ino);
    }

    /// Frees the blocks of a tree without indirect blocks.
    fn free_roots(&mut self, tree: &Tree) {
        let before = self.freed.blocks();
        self.freed.extend(tree.roots().iter().filter(|p| !p.is_hole()));
        let freed = i64::try_from(self.freed.blocks() - before).unwrap_or(i64::MAX);
        self.sums.residue += tree.blocks() - freed;
    }

    /// The file that a zombie was cut from, if it still is that file and in memory.
    fn cut_from(&mut self, zombie: InodeNo) -> Result<Option<InodeNo>, Stop> {
        let inode = &self.file(zombie).inode;
        let mut generation = [0; 4];
        generation.copy_from_slice(&inode.verifier[..4]);
        let (origin, generation) = (inode.parent, Generation::new(u32::from_le_bytes(generation)));
        if inode.kind != InodeKind::Internal || origin.get() == 0 || generation.get() == 0 {
            return Ok(None);
        }
        let found = &self.load_inode(origin)?.inode;
        if found.kind == InodeKind::Free || found.generation != generation {
            return Ok(None);
        }
        self.inode_ready(origin)?;
        Ok(Some(origin))
    }

    // ---- numbers ----

    /// Gives a free number to `file`. It must be ready.
    fn take_number(&mut self, new: NewInode, file: File) {
        self.set_inode_bit(new.ino, true);
        self.inode_end = self.inode_end.max(new.ino.get() + 1);
        self.inode_hint = new.ino.get() + 1;
        if !self.in_core.contains_key(&new.ino) {
            self.arrived.push(new.ino);
        }
        self.in_core.insert(new.ino, file);
        self.touch(new.ino);
    }

    /// Takes the number of an inode whose blocks are all freed.
    fn free_number(&mut self, ino: InodeNo) {
        let generation = self.file(ino).inode.generation;
        self.set_inode_bit(ino, false);
        self.inodes_freed.insert(ino);
        self.in_core.insert(ino, File::new(Inode::free(ino, generation)));
        self.touch(ino);
    }

    fn ready_free(&mut self, ino: InodeNo) -> Result<(), Stop> {
        self.load_inode(ino)?;
        self.inode_ready(ino)?;
        self.inode_bit_ready(ino)?;
        let xattr = self.file(ino).inode.xattr;
        if xattr.get() != 0 {
            self.load_inode(xattr)?;
            self.inode_ready(xattr)?;
            self.inode_bit_ready(xattr)?;
        }
        Ok(())
    }

    /// Frees an inode that lost its last name.
    fn free_inode(&mut self, ino: InodeNo) {
        let xattr = core::mem::take(&mut self.file_mut(ino).inode.xattr);
        if xattr.get() != 0 {
            self.free_blocks_and_number(xattr);
        }
        self.files = self.files.saturating_sub(1);
        self.free_blocks_and_number(ino);
    }

    fn free_blocks_and_number(&mut self, ino: InodeNo) {
        let file = self.file_mut(ino);
        if file.tree.height() > 0 {
            let (whole, dirtied, dropped) = file.tree.cut(0);
            file.tree = whole;
            self.account(dirtied, dropped);
            self.push_zombie(ino);
            return;
        }
        let (tail, dirtied, dropped) = file.tree.cut(0);
        self.free_roots(&tail);
        self.account(dirtied, dropped);
        self.free_number(ino);
    }

    /// One step of freeing the zombie at the head of the list; `false` when there is none.
    pub fn reap_step(&mut self) -> Result<bool, Stop> {
        let ino = self.zombie_head;
        if ino.get() == 0 {
            return Ok(false);
        }
        self.load_inode(ino)?;
        self.inode_ready(ino)?;
        self.inode_bit_ready(ino)?;
        let origin = self.cut_from(ino)?;
        let mut freed = Freed::default();
        let file = self.file_mut(ino);
        let (step, dirtied, dropped) =
            file.tree.reap(&mut freed).map_err(|at| miss(FileId::Inode(ino), at))?;
        self.account(dirtied, dropped);
        self.freed.append(&mut freed);
        match step {
            Reaped::More => self.touch(ino),
            Reaped::Empty => {
                // What the cut gave to the wrong side is known now.
                let rest = self.file(ino).tree.blocks();
                match origin {
                    Some(origin) if rest != 0 => {
                        self.file_mut(origin).tree.correct_blocks(rest);
                        self.touch(origin);
                    }
                    _ => self.sums.residue += rest,
                }
                self.zombie_head = self.file(ino).inode.next_zombie;
                self.free_number(ino);
            }
        }
        Ok(true)
    }

    // ---- directories ----

    pub(crate) fn plan_edits(&self, dir: InodeNo, edits: &[Edit<'_>]) -> Result<DirWrites, Stop> {
        let file = self.file(dir);
        let view = DirView(&file.tree);
        let mut overlay = Overlay::new(&view);
        let mut file_blocks = 0;
        let before = match DirFault::split(Dir::new(&view, file.dir_id(), self.dir_keys()).size()) {
            Ok(Ok((entries, _))) => entries,
            Ok(Err(error)) => return Err(self.dir_failed(dir, error)),
            Err(at) => return Err(miss(FileId::Inode(dir), at)),
        };
        let mut after = before;
        for edit in edits {
            let at = Dir::new(&overlay, file.dir_id(), self.dir_keys());
            let plan = match edit {
                Edit::Insert(name, new) => at.plan_insert(name.as_bytes(), *new),
                Edit::Replace(name, new) => at.plan_replace(name.as_bytes(), *new),
                Edit::Remove(name) => at.plan_remove(name.as_bytes()),
            };
            let plan = match DirFault::split(plan) {
                Ok(Ok(plan)) => plan,
                Ok(Err(error)) => return Err(self.dir_failed(dir, error)),
                Err(at) => return Err(miss(FileId::Inode(dir), at)),
            };
            file_blocks = plan.file_blocks().get();
            after = plan.entries();
            plan.apply(&mut overlay);
        }
        let writes = overlay.into_writes();
        for at in writes.keys() {
            let found = file.tree.reachable(Key::data(at.get()));
            found.map_err(|at| miss(FileId::Inode(dir), at))?;
        }
        let entries =
            i64::try_from(after).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX);
        Ok(DirWrites { dir, writes, file_blocks, entries })
    }

    pub(crate) fn dir_failed(&self, dir: InodeNo, error: DirError) -> Stop {
        match error {
            DirError::Exists(_) => Status::Exists.into(),
            DirError::NotFound => Status::NotFound.into(),
            DirError::BadName { .. } => Status::Invalid.into(),
            DirError::RunFull { .. } | DirError::Full { .. } => Status::NoSpace.into(),
            DirError::Damaged { .. } => {
                tracing::error!(fsid = self.fsid.get(), dir = dir.get(), "{error}");
                Status::Io.into()
            }
        }
    }

    fn ready_dir(&mut self, dir: InodeNo) -> Result<(), Stop> {
        if !self.load_inode(dir)?.is_dir() {
            return Err(Status::NotDirectory.into());
        }
        self.inode_ready(dir)
    }

    pub(crate) fn write_dir(&mut self, writes: DirWrites, time: WallTime) {
        let file = self.file_mut(writes.dir);
        let mut sink = DirSink { tree: &mut file.tree, dirtied: Default::default() };
        for (at, block) in writes.writes {
            sink.put(at, block);
        }
        let dirtied = sink.dirtied;
        file.inode.size = writes.file_blocks * BLOCK_BYTES_U64;
        file.data_changed(time);
        self.sums.names += writes.entries;
        self.account(dirtied, Dropped::default());
        self.touch(writes.dir);
    }

    pub(crate) fn entry_for(&self, ino: InodeNo) -> NewEntry {
        let inode = &self.file(ino).inode;
        NewEntry {
            inode: ino,
            generation: inode.generation,
            kind: EntryKind::new(inode.kind as u8),
        }
    }

    fn ready_make(&mut self, make: &MakeChange) -> Result<Ready, Stop> {
        self.ready_dir(make.dir)?;
        self.load_inode(make.new.ino)?;
        self.inode_ready(make.new.ino)?;
        self.inode_bit_ready(make.new.ino)?;
        let entry = NewEntry {
            inode: make.new.ino,
            generation: make.new.generation,
            kind: EntryKind::new(make.kind as u8),
        };
        let dirs = vec![self.plan_edits(make.dir, &[Edit::Insert(&make.name, entry)])?];
        Ok(Ready { dirs, ..Ready::default() })
    }

    fn apply_make(&mut self, make: &MakeChange, ready: Ready, time: WallTime) {
        let mut inode = Inode::free(make.new.ino, make.new.generation);
        inode.kind = make.kind;
        inode.mode = make.mode;
        inode.uid = make.uid;
        inode.gid = make.gid;
        inode.size = make.size;
        inode.device = make.device;
        if let Some(verifier) = make.verifier {
            inode.verifier = verifier;
            inode.flags |= inode_flags::EXCLUSIVE;
        }
        inode.object = make.object;
        inode.parent = make.dir;
        inode.links = if make.kind == InodeKind::Directory { 2 } else { 1 };
        (inode.atime, inode.mtime, inode.birth) = (make.atime, make.mtime, time);
        if make.kind == InodeKind::Symlink {
            inode.size = make.target.len() as u64;
            if make.target.len() <= INLINE_BYTES_MAX {
                inode.flags |= inode_flags::INLINE;
                inode.inline = make.target.clone();
            }
        }
        let mut file = File::new(inode);
        file.changed(time);
        let mut dirtied = Default::default();
        if make.kind == InodeKind::Directory {
            dirtied = file.tree.put(0, Dir::empty(file.dir_id(), &self.dir_keys()));
            file.inode.size = BLOCK_BYTES_U64;
        } else if make.kind == InodeKind::Symlink && !file.inode.is_inline() {
            dirtied = file.tree.put(0, cairn_sys::BlockMut::copy_of(&make.target).freeze());
        }
        self.take_number(make.new, file);
        self.account(dirtied, Dropped::default());
        self.files += 1;
        self.object_next += 1;
        for writes in ready.dirs {
            self.write_dir(writes, time);
        }
        if make.kind == InodeKind::Directory {
            self.file_mut(make.dir).inode.links += 1;
        }
    }

    /// The inode behind a name, loaded and fit to lose it.
    fn ready_victim(&mut self, dir: InodeNo, name: &Name) -> Result<InodeNo, Stop> {
        let found = self.dir(dir, |d| d.lookup(name.as_bytes()))?;
        match found {
            Ok(Some(found)) => {
                self.ready_free(found.inode)?;
                Ok(found.inode)
            }
            Ok(None) => Err(Status::NotFound.into()),
            Err(error) => Err(self.dir_failed(dir, error)),
        }
    }

    fn ready_remove(&mut self, dir: InodeNo, name: &Name) -> Result<Ready, Stop> {
        self.ready_dir(dir)?;
        let victim = Some(self.ready_victim(dir, name)?);
        let dirs = vec![self.plan_edits(dir, &[Edit::Remove(name)])?];
        Ok(Ready { dirs, victim, moved: None })
    }

    fn apply_remove(&mut self, dir: InodeNo, ready: Ready, time: WallTime) {
        for writes in ready.dirs {
            self.write_dir(writes, time);
        }
        if let Some(victim) = ready.victim {
            self.lose_name(dir, victim, time);
        }
    }

    fn lose_name(&mut self, dir: InodeNo, victim: InodeNo, time: WallTime) {
        if self.file(victim).is_dir() {
            self.file_mut(dir).inode.links -= 1;
            self.free_inode(victim);
            return;
        }
        let file = self.file_mut(victim);
        file.inode.links = file.inode.links.saturating_sub(1);
        file.changed(time);
        let gone = file.inode.links == 0;
        self.touch(victim);
        if gone {
            self.free_inode(victim);
        }
    }

    fn ready_rename(
        &mut self,
        (from_dir, from_name): (InodeNo, &Name),
        (to_dir, to_name): (InodeNo, &Name),
    ) -> Result<Ready, Stop> {
        self.ready_dir(from_dir)?;
        self.ready_dir(to_dir)?;
        let moved = match self.dir(from_dir, |d| d.lookup(from_name.as_bytes()))? {
            Ok(Some(found)) => found.inode,
            Ok(None) => return Err(Status::NotFound.into()),
            Err(error) => return Err(self.dir_failed(from_dir, error)),
        };
        self.load_inode(moved)?;
        self.inode_ready(moved)?;
        let victim = match self.ready_victim(to_dir, to_name) {
            Ok(ino) => Some(ino),
            Err(Stop::Fail(f)) if f.status == Status::NotFound => None,
            Err(stop) => return Err(stop),
        };
        let entry = self.entry_for(moved);
        let put = match victim {
            Some(_) => Edit::Replace(to_name, entry),
            None => Edit::Insert(to_name, entry),
        };
        let dirs = if from_dir == to_dir {
            vec![self.plan_edits(to_dir, &[put, Edit::Remove(from_name)])?]
        } else {
            vec![
                self.plan_edits(to_dir, &[put])?,
                self.plan_edits(from_dir, &[Edit::Remove(from_name)])?,
            ]
        };
        Ok(Ready { dirs, victim, moved: Some(moved) })
    }

    fn apply_rename(&mut self, from_dir: InodeNo, to_dir: InodeNo, ready: Ready, time: WallTime) {
        for writes in ready.dirs {
            self.write_dir(writes, time);
        }
        if let Some(victim) = ready.victim {
            self.lose_name(to_dir, victim, time);
        }
        let Some(moved) = ready.moved else { unreachable!("a rename moves something") };
        let file = self.file_mut(moved);
        file.inode.parent = to_dir;
        file.changed(time);
        let is_dir = file.is_dir();
        self.touch(moved);
        if is_dir && from_dir != to_dir {
            self.file_mut(from_dir).inode.links -= 1;
            self.file_mut(to_dir).inode.links += 1;
        }
    }

    fn ready_link(&mut self, ino: InodeNo, dir: InodeNo, name: &Name) -> Result<Ready, Stop> {
        self.ready_dir(dir)?;
        self.load_inode(ino)?;
        self.inode_ready(ino)?;
        let entry = self.entry_for(ino);
        let dirs = vec![self.plan_edits(dir, &[Edit::Insert(name, entry)])?];
        Ok(Ready { dirs, ..Ready::default() })
    }

    fn apply_link(&mut self, ino: InodeNo, dir: InodeNo, ready: Ready, time: WallTime) {
        for writes in ready.dirs {
            self.write_dir(writes, time);
        }
        let file = self.file_mut(ino);
        file.inode.links += 1;
        file.inode.parent = dir;
        file.changed(time);
        self.touch(ino);
    }

    // ---- extended attributes ----

    fn ready_xattrs(
        &mut self,
        ino: InodeNo,
        bytes: u32,
        new: Option<NewInode>,
    ) -> Result<Ready, Stop> {
        self.load_inode(ino)?;
        self.inode_ready(ino)?;
        let store = match new {
            Some(new) => {
                self.inode_bit_ready(new.ino)?;
                new.ino
            }
            None => self.file(ino).inode.xattr,
        };
        self.load_inode(store)?;
        self.inode_ready(store)?;
        let tree = &self.file(store).tree;
        for index in 0..blocks_of(u64::from(bytes)) {
            tree.reachable(Key::data(index)).map_err(|at| miss(FileId::Inode(store), at))?;
        }
        Ok(Ready::default())
    }

    fn apply_xattrs(
        &mut self,
        ino: InodeNo,
        payload: &Payload,
        new: Option<NewInode>,
        time: WallTime,
    ) {
        let store = match new {
            Some(new) => {
                let mut inode = Inode::free(new.ino, new.generation);
                inode.kind = InodeKind::Internal;
                inode.parent = ino;
                inode.links = 1;
                self.take_number(new, File::new(inode));
                self.file_mut(ino).inode.xattr = new.ino;
                new.ino
            }
            None => self.file(ino).inode.xattr,
        };
        let file = self.file_mut(store);
        let mut dirtied = crate::tree::Dirtied::default();
        for (index, block) in payload.blocks().iter().enumerate() {
            dirtied += file.tree.put(index as u64, block.clone());
        }
        file.inode.size = u64::from(payload.len());
        self.account(dirtied, Dropped::default());
        self.touch(store);
        self.file_mut(ino).changed(time);
        self.touch(ino);
    }

    // ---- a new volume ----

    /// Makes the root directory of an empty volume.
    pub fn make_root(&mut self, time: WallTime) {
        let ino = crate::volume::ROOT_INO;
        let mut inode = Inode::free(ino, Generation::new(1));
        inode.kind = InodeKind::Directory;
        inode.mode = 0o755;
        inode.links = 2;
        inode.parent = ino;
        inode.size = BLOCK_BYTES_U64;
        (inode.atime, inode.mtime, inode.ctime, inode.birth) = (time, time, time, time);
        inode.change = 1;
        let mut file = File::new(inode);
        let dirtied = file.tree.put(0, Dir::empty(file.dir_id(), &self.dir_keys()));
        self.account(dirtied, Dropped::default());
        self.take_number(NewInode { ino, generation: Generation::new(1) }, file);
        for reserved in (0..crate::volume::FIRST_INO).filter(|n| *n != ino.get()) {
            self.set_inode_bit(InodeNo::new(reserved), true);
        }
        self.files = 1;
        self.balance = Balance::default();
        self.inode_hint = crate::volume::FIRST_INO;
        self.inode_end = crate::volume::FIRST_INO;
    }
}

/// The whole blocks of a range; the last block of the file counts as whole when the range covers
/// its bytes.
fn whole_blocks(offset: u64, end: u64, size: u64) -> (u64, u64) {
    let first = blocks_of(offset);
    let last = if end >= size { blocks_of(size) } else { end / BLOCK_BYTES_U64 };
    (first, last)
}

const _: () = assert!(DIRECT_POINTERS as u64 <= CHANGE_METADATA_BLOCKS);
