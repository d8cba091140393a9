//! Changes of names that only a repair makes: a file adopted, an entry dropped, a directory put
//! together again.
//!
//! Layer: inside the check; runs under the volume's lock like any change, but is not logged.

use bytes::Bytes;
use cairn_op::Name;
use cairn_sys::Block;
use cairn_units::{BLOCK_BYTES_U64, Fbn, Gid, InodeNo, Uid, WallTime};
use cairn_wafl_dir::{EntryKind, rebuild, salvage_leaf};
use cairn_wafl_format::InodeKind;

use crate::apply::Edit;
use crate::change::{Change, MakeChange, NewInode};
use crate::tree::{Dropped, Key};
use crate::volume::{FileId, Miss, ROOT_INO, Stop, VolState, miss};

/// Directory in the root for files that lost their names.
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Blocks of a directory that are loaded at once.
const LOAD_BLOCKS: usize = 256;

fn name(bytes: &[u8]) -> Result<Name, Stop> {
    Name::new(Bytes::copy_from_slice(bytes)).map_err(Stop::from)
}

impl VolState {
    /// Gives a file without a name the name `#` and its number in `lost+found`.
    pub(super) fn adopt(&mut self, ino: InodeNo, time: WallTime) -> Result<bool, Stop> {
        let dir = self.lost_and_found(time)?;
        let text = name(format!("#{ino}").as_bytes())?;
        let there = self.dir(dir, |d| d.lookup(text.as_bytes()))?;
        if !matches!(there, Ok(None)) {
            return Ok(false);
        }
        self.inode_ready(ino)?;
        self.inode_ready(dir)?;
        let entry = self.entry_for(ino);
        let writes = self.plan_edits(dir, &[Edit::Insert(&text, entry)])?;
        self.write_dir(writes, time);
        let is_dir = self.file(ino).is_dir();
        let file = self.file_mut(ino);
        file.inode.links += if is_dir { 2 } else { 1 };
        file.inode.parent = dir;
        file.changed(time);
        self.touch(ino);
        if is_dir {
            self.file_mut(dir).inode.links += 1;
            self.touch(dir);
        }
        Ok(true)
    }

    fn lost_and_found(&mut self, time: WallTime) -> Result<InodeNo, Stop> {
        self.load_inode(ROOT_INO)?;
        let found = match self.dir(ROOT_INO, |d| d.lookup(LOST_AND_FOUND))? {
            Ok(found) => found,
            Err(error) => return Err(self.dir_failed(ROOT_INO, error)),
        };
        if let Some(found) = found {
            if !self.load_inode(found.inode)?.is_dir() {
                return Err(cairn_op::Status::NotDirectory.into());
            }
            return Ok(found.inode);
        }
        let (ino, generation) = self.find_free_inode(None)?;
        let make = Change::Make(Box::new(MakeChange {
            dir: ROOT_INO,
            name: name(LOST_AND_FOUND)?,
            new: NewInode { ino, generation },
            kind: InodeKind::Directory,
            mode: 0o700,
            uid: Uid::new(0),
            gid: Gid::new(0),
            size: 0,
            device: (0, 0),
            verifier: None,
            object: self.next_object(),
            atime: time,
            mtime: time,
            target: Vec::new(),
        }));
        let ready = self.ready(&make)?;
        self.apply(&make, &cairn_sys::Payload::copy_from(0, &[]), ready, time);
        Ok(ino)
    }

    /// Removes an entry that leads to `child` and nothing else of it.
    pub(super) fn remove_entry(
        &mut self,
        dir: InodeNo,
        bytes: &[u8],
        child: InodeNo,
        time: WallTime,
    ) -> Result<bool, Stop> {
        let text = name(bytes)?;
        match self.dir(dir, |d| d.lookup(text.as_bytes()))? {
            Ok(Some(found)) if found.inode == child => {}
            _ => return Ok(false),
        }
        let writes = self.plan_edits(dir, &[Edit::Remove(&text)])?;
        self.write_dir(writes, time);
        Ok(true)
    }

    /// Blocks of a directory that are not in memory, some of them.
    pub(super) fn missing_blocks(&self, dir: InodeNo) -> Result<Vec<Miss>, Stop> {
        let file = self.file(dir);
        let blocks = file.inode.size.div_ceil(BLOCK_BYTES_U64);
        let mut out = Vec::new();
        for index in 0..blocks {
            let key = Key::data(index);
            if file.tree.is_resident(key) {
                continue;
            }
            let ptr = file.tree.ptr(key).map_err(|at| miss(FileId::Inode(dir), at))?;
            if !ptr.is_hole() {
                out.push(Miss { file: FileId::Inode(dir), key, ptr });
            }
            if out.len() >= LOAD_BLOCKS {
                break;
            }
        }
        Ok(out)
    }

    /// Puts zeros in the place of a block of a directory that cannot be read.
    pub(super) fn give_up_block(&mut self, at: Miss) -> Result<bool, Stop> {
        let FileId::Inode(dir) = at.file else { return Ok(false) };
        self.load_inode(dir)?;
        self.inode_ready(dir)?;
        let file = self.file_mut(dir);
        if file.tree.ptr(at.key) != Ok(at.ptr) || file.tree.is_resident(at.key) {
            return Ok(false);
        }
        file.tree.reachable(at.key).map_err(|m| miss(FileId::Inode(dir), m))?;
        let dirtied = file.tree.put(at.key.index, Block::zero());
        self.account(dirtied, Dropped::default());
        self.touch(dir);
        Ok(true)
    }

    /// Makes a directory anew of the entries of all its leaves that can be read.
    pub(super) fn rebuild_directory(&mut self, dir: InodeNo, time: WallTime) -> Result<bool, Stop> {
        let missing = self.missing_blocks(dir)?;
        if !missing.is_empty() {
            return Err(Stop::Miss(missing));
        }
        let (id, keys) = (self.file(dir).dir_id(), self.dir_keys());
        let blocks = self.file(dir).inode.size.div_ceil(BLOCK_BYTES_U64);
        let tree = &self.file(dir).tree;
        let mut saved = Vec::new();
        for index in 0..blocks {
            tree.reachable(Key::data(index)).map_err(|at| miss(FileId::Inode(dir), at))?;
            if let Ok(Some(block)) = tree.get(Key::data(index)) {
                saved.extend(salvage_leaf(Fbn::new(index), &block, id));
            }
        }
        saved.retain(|e| e.kind != EntryKind::new(InodeKind::Free as u8));
        let fresh = rebuild(id, keys, &saved);
        let end = fresh.keys().last().map_or(1, |last| last.get() + 1);
        let mut freed = crate::freed::Freed::default();
        let file = self.file_mut(dir);
        file.tree.punch_reachable(end, blocks).map_err(|at| miss(FileId::Inode(dir), at))?;
        let (mut dirtied, dropped) = file.tree.punch(end, blocks.max(end), &mut freed);
        for (at, block) in fresh {
            dirtied += file.tree.put(at.get(), block);
        }
        file.inode.size = end * BLOCK_BYTES_U64;
        file.data_changed(time);
        self.freed.append(&mut freed);
        self.account(dirtied, dropped);
        self.touch(dir);
        Ok(true)
    }
}
