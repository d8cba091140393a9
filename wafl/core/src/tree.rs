//! The block tree of one file: pointers in the inode, indirect blocks, and the buffers in memory.
//!
//! Layer: core of the storage manager; does no I/O. A read that needs a block that is not in
//! memory answers with a [`TreeMiss`]; the caller loads the block, gives it to
//! [`Tree::insert_loaded`] and tries again.
//!
//! A block is named by [`Key`]: level 0 is data, block `i` of level `l` holds the pointers to
//! blocks `256 i .. 256 i + 255` of level `l - 1`; the inode's 16 pointers lead to level `height`.
//!
//! # Invariants
//! - Every ancestor of a dirty block is in memory and dirty: a consistency point places blocks
//!   bottom up and never has to read to do it.
//! - A block that was placed by a consistency point stays in memory until the tetris that it went
//!   with is on the disks: it cannot be read back before.
//! - A pointer is changed only by [`Tree::place`] (consistency point), by cutting and by punching;
//!   a block that a pointer no longer names is handed to the caller to be freed, exactly once.

use std::cell::Cell;

use cairn_sys::{Block, BlockMut, mutant};
use cairn_wafl_format::{
    BlockPtr, DIRECT_POINTERS, POINTERS_PER_BLOCK, POINTERS_SHIFT, Pointers, pointer_at,
    set_pointer_at,
};

use crate::bufs::{Buf, Bufs};
use crate::cp::TetrisNo;
use crate::freed::Freed;

/// Levels of indirect blocks at the most: 16 * 256^6 blocks are 2^64 bytes and more.
pub(crate) const HEIGHT_MAX: u8 = 6;

/// A block of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub level: u8,
    pub index: u64,
}

impl Key {
    pub const fn data(index: u64) -> Self {
        Self { level: 0, index }
    }
    pub const fn parent(self) -> Self {
        Self { level: self.level + 1, index: self.index >> POINTERS_SHIFT }
    }
    /// It and those behind it.
    pub fn behind(self) -> impl Iterator<Item = Self> {
        (self.index..).map(move |index| Self { index, ..self })
    }
    #[expect(clippy::cast_possible_truncation, reason = "masked to 8 bits")]
    const fn slot(self) -> usize {
        (self.index & (POINTERS_PER_BLOCK as u64 - 1)) as usize
    }
}

/// A block that must be loaded first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TreeMiss {
    pub key: Key,
    pub ptr: BlockPtr,
}

/// What one change made dirty, for space reservation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dirtied {
    /// Blocks that were clean or absent and are dirty now: each needs a place at the next CP.
    pub blocks: u64,
    /// Of these, blocks that have no place yet: the file grows by them.
    pub fresh: u64,
}

impl core::ops::AddAssign for Dirtied {
    fn add_assign(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.fresh += other.fresh;
    }
}

/// What dropping blocks released: dirty buffers that need no place any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub dirty: u64,
    pub fresh: u64,
}

#[derive(Debug)]
pub(crate) struct Tree {
    height: u8,
    roots: Pointers,
    bufs: Bufs,
    /// Blocks of the file: placed ones and dirty ones without a place. An estimate between a cut
    /// through holes and the end of the cut-off tail ([`Self::correct_blocks`]).
    blocks: i64,
}

/// One step of [`Tree::reap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaped {
    More,
    Empty,
}

const fn capacity(height: u8) -> u64 {
    (DIRECT_POINTERS as u64) << (POINTERS_SHIFT * height as u32)
}

const fn span_mask(level: u8) -> u64 {
    (1 << (POINTERS_SHIFT * level as u32)) - 1
}

impl Tree {
    pub fn new(height: u8, roots: Pointers, blocks: i64) -> Self {
        assert!(height <= HEIGHT_MAX, "tree of height {height}");
        Self { height, roots, bufs: Bufs::default(), blocks }
    }

    pub fn empty() -> Self {
        Self::new(0, Pointers::default(), 0)
    }

    pub fn height(&self) -> u8 {
        self.height
    }
    pub fn roots(&self) -> &Pointers {
        &self.roots
    }
    pub fn blocks(&self) -> i64 {
        self.blocks
    }
    /// Adds what the tail of an earlier cut was given wrongly.
    pub fn correct_blocks(&mut self, by: i64) {
        self.blocks += by;
    }
    pub fn dirty_blocks(&self) -> u64 {
        self.bufs.dirty_count()
    }
    pub fn is_clean(&self) -> bool {
        self.bufs.dirty_count() == 0
    }
    pub fn resident(&self) -> usize {
        self.bufs.len()
    }
    pub fn is_resident(&self, key: Key) -> bool {
        self.bufs.contains(key)
    }
    fn index_end(&self, level: u8) -> u64 {
        if level > self.height { 0 } else { capacity(self.height - level) }
    }

    /// The pointer to a block; a hole beyond the tree.
    pub fn ptr(&self, key: Key) -> Result<BlockPtr, TreeMiss> {
        if key.index >= self.index_end(key.level) {
            return Ok(BlockPtr::HOLE);
        }
        if key.level == self.height {
            return Ok(usize::try_from(key.index).map_or(BlockPtr::HOLE, |i| self.roots.get(i)));
        }
        let parent = key.parent();
        if let Some(buf) = self.bufs.get(parent) {
            return Ok(pointer_at(&buf.block, key.slot()));
        }
        let ptr = self.ptr(parent)?;
        if ptr.is_hole() { Ok(BlockPtr::HOLE) } else { Err(TreeMiss { key: parent, ptr }) }
    }

    /// The block in memory, `None` for a hole.
    pub fn get(&self, key: Key) -> Result<Option<Block>, TreeMiss> {
        self.look(key).map(|block| block.cloned())
    }

    /// [`Self::get`] for a glance.
    pub fn look(&self, key: Key) -> Result<Option<&Block>, TreeMiss> {
        if let Some(buf) = self.bufs.get(key) {
            buf.hot.set(true);
            return Ok(Some(&buf.block));
        }
        let ptr = self.ptr(key)?;
        if ptr.is_hole() { Ok(None) } else { Err(TreeMiss { key, ptr }) }
    }

    /// Like [`Self::get`], without the note that the block was used.
    pub fn peek(&self, key: Key) -> Result<Option<&Block>, TreeMiss> {
        if let Some(buf) = self.bufs.get(key) {
            return Ok(Some(&buf.block));
        }
        let ptr = self.ptr(key)?;
        if ptr.is_hole() { Ok(None) } else { Err(TreeMiss { key, ptr }) }
    }

    /// Whether the block may be made dirty now: all its ancestors are in memory or are holes.
    ///
    /// Up to the top, not up to the first one in memory: a node may be in memory while its own
    /// parent, clean, was driven out.
    pub fn reachable(&self, key: Key) -> Result<(), TreeMiss> {
        let mut at = key;
        if at.index >= self.index_end(at.level) {
            return Ok(());
        }
        while at.level < self.height {
            at = at.parent();
            // The ancestors of a dirty block are dirty, so in memory.
            if self.bufs.is_dirty(at) {
                return Ok(());
            }
            match self.bufs.get(at) {
                Some(_) => {}
                None => {
                    let ptr = self.ptr(at)?;
                    if !ptr.is_hole() {
                        return Err(TreeMiss { key: at, ptr });
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes a block that was read for `ptr`; ignored when the tree has moved on since.
    pub fn insert_loaded(&mut self, key: Key, ptr: BlockPtr, block: Block) -> bool {
        let moved_on = self.bufs.contains(key) || self.ptr(key) != Ok(ptr);
        if moved_on && !mutant("stale-load-taken") {
            return false;
        }
        self.bufs.remove(key);
        let tetris = TetrisNo::NONE;
        self.bufs.insert(key, Buf { block, hot: Cell::new(true), tetris, queued: true });
        true
    }

    fn grow_for(&mut self, index: u64, dirtied: &mut Dirtied) {
        while index >= capacity(self.height) {
            assert!(self.height < HEIGHT_MAX, "block {index} is beyond any file");
            let old = core::mem::take(&mut self.roots);
            self.height += 1;
            if self.bufs.is_empty() && old.iter().all(|p| p.is_hole()) {
                continue;
            }
            let mut block = BlockMut::zeroed();
            for (slot, ptr) in old.iter().enumerate() {
                set_pointer_at(&mut block, slot, ptr);
            }
            self.add_dirty(Key { level: self.height, index: 0 }, block.freeze(), dirtied);
        }
    }

    fn add_dirty(&mut self, key: Key, block: Block, dirtied: &mut Dirtied) {
        let tetris = TetrisNo::NONE;
        self.bufs.insert(key, Buf { block, hot: Cell::new(true), tetris, queued: false });
        self.bufs.set_dirty(key, true);
        self.blocks += 1;
        dirtied.blocks += 1;
        dirtied.fresh += 1;
    }

    /// Makes the ancestors of `key` present and dirty. They must be reachable.
    fn dirty_ancestors(&mut self, key: Key, dirtied: &mut Dirtied) {
        let mut at = key;
        while at.level < self.height {
            at = at.parent();
            if self.bufs.contains(at) {
                if self.bufs.set_dirty(at, true) {
                    return;
                }
                dirtied.blocks += 1;
            } else {
                assert!(
                    self.ptr(at).is_ok_and(|p| p.is_hole()),
                    "{at:?} must be loaded before its children change"
                );
                self.add_dirty(at, Block::zero(), dirtied);
            }
        }
    }

    /// Puts a whole new block at `index` of the data level. It must be [`Self::reachable`].
    pub fn put(&mut self, index: u64, block: Block) -> Dirtied {
        self.put_all(index, &[block])
    }

    /// Puts whole new blocks from `index` of the data level on. They must be [`Self::reachable`].
    pub fn put_all(&mut self, index: u64, mut blocks: &[Block]) -> Dirtied {
        let mut dirtied = Dirtied::default();
        let mut key = Key::data(index);
        while !blocks.is_empty() {
            let run;
            (run, blocks) = blocks.split_at(blocks.len().min(Bufs::run_max(key)));
            self.grow_for(key.index + run.len() as u64 - 1, &mut dirtied);
            let put = self.bufs.put_run(key, run);
            // A run has one parent.
            let node = self.bufs.get(key.parent()).filter(|_| self.height > 0);
            let is_hole = |place: usize| match node {
                Some(node) => pointer_at(&node.block, key.slot() + place).is_hole(),
                None => {
                    let at = Key { index: key.index + place as u64, ..key };
                    self.ptr(at).is_ok_and(|ptr| ptr.is_hole())
                }
            };
            let fresh = put.places().filter(|place| is_hole(*place)).count();
            dirtied.blocks += put.dirtied;
            dirtied.fresh += fresh as u64;
            self.blocks += i64::try_from(fresh).unwrap_or(i64::MAX);
            if put.dirtied > 0 {
                self.dirty_ancestors(key, &mut dirtied);
            }
            key.index += run.len() as u64;
        }
        dirtied
    }

    /// Changes a data block in place: it must be in memory, or a hole (then it starts as zeros).
    pub fn edit(&mut self, index: u64, change: impl FnOnce(&mut [u8; 4096])) -> Dirtied {
        let key = Key::data(index);
        let mut dirtied = Dirtied::default();
        self.grow_for(index, &mut dirtied);
        if !self.bufs.contains(key) {
            assert!(
                self.ptr(key).is_ok_and(|p| p.is_hole()),
                "{key:?} must be loaded before it is changed in place"
            );
            self.add_dirty(key, Block::zero(), &mut dirtied);
            self.dirty_ancestors(key, &mut dirtied);
        }
        if let Some(buf) = self.bufs.get_mut(key) {
            change(buf.block.make_mut());
            buf.hot.set(true);
            if !self.bufs.set_dirty(key, true) {
                dirtied.blocks += 1;
                self.dirty_ancestors(key, &mut dirtied);
            }
        }
        dirtied
    }

    /// The lowest dirty key: the next one that a consistency point has to place.
    pub fn first_dirty(&self) -> Option<Key> {
        self.dirty_keys().next()
    }
    /// The lowest dirty key at or behind `from`.
    pub fn dirty_from(&self, from: Key) -> Option<Key> {
        self.bufs.dirty_from(from).next()
    }
    /// The lowest dirty key, and how many dirty ones lie side by side from there on, as far as
    /// [`Self::clean_run`] takes them.
    pub fn first_dirty_run(&self) -> Option<(Key, u64)> {
        self.bufs.first_dirty_run()
    }
    /// All dirty keys, lowest level first.
    pub fn dirty_keys(&self) -> impl Iterator<Item = Key> {
        self.bufs.dirty_from(Key::data(0))
    }

    /// A dirty block's content and the pointer it replaces.
    pub fn dirty_block(&self, key: Key) -> (Block, BlockPtr) {
        let Some(buf) = self.bufs.get(key) else { panic!("{key:?} is dirty, so in memory") };
        assert!(self.bufs.is_dirty(key), "{key:?} must be dirty to be placed");
        let Ok(old) = self.ptr(key) else { panic!("the parent of dirty {key:?} is in memory") };
        (buf.block.clone(), old)
    }

    /// Gives a dirty block its new place; it is clean from now on, and pinned until `tetris` is on
    /// the disks. Answers whether the cache's clock must be told of it.
    pub fn place(&mut self, key: Key, new: BlockPtr, tetris: TetrisNo) -> bool {
        assert!(self.bufs.set_dirty(key, false), "{key:?} must be dirty to be placed");
        let Some(buf) = self.bufs.get_mut(key) else { panic!("{key:?} is dirty, so in memory") };
        let tell = buf.placed(tetris);
        self.set_ptr(key, new);
        tell
    }

    /// The same for `count` blocks of one run ([`Self::first_dirty_run`]), in two steps. First: they are
    /// clean from now on, and pinned until `tetris` is on the disks. Adds them to `blocks`, each
    /// with whether the cache's clock must be told of it.
    pub fn clean_run(
        &mut self,
        first: Key,
        count: u64,
        tetris: TetrisNo,
        blocks: &mut Vec<(Block, bool)>,
    ) {
        self.bufs.clean_run(first, count, |buf| {
            let tell = buf.placed(tetris);
            blocks.push((buf.block.clone(), tell));
        });
    }

    /// Second: they are given their places. Adds those that they had to `old`, but for holes.
    pub fn set_run(&mut self, first: Key, new: &[BlockPtr], old: &mut Freed) {
        let mut freed = |ptr: BlockPtr| old.extend((!ptr.is_hole()).then_some(ptr));
        if first.level == self.height {
            for (key, ptr) in first.behind().zip(new) {
                freed(usize::try_from(key.index).map_or(BlockPtr::HOLE, |at| self.roots.get(at)));
                self.set_ptr(key, *ptr);
            }
            return;
        }
        let Some(parent) = self.bufs.dirty_mut(first.parent()) else {
            panic!("the parent of {first:?} must be dirty")
        };
        let node = parent.block.make_mut();
        for (slot, ptr) in (first.slot()..).zip(new) {
            freed(pointer_at(node, slot));
            set_pointer_at(node, slot, *ptr);
        }
    }

    /// Drops clean blocks that are on the disks (all before `written` are), for trees that no clock
    /// watches.
    pub fn trim(&mut self, keep: usize, written: TetrisNo) {
        if self.bufs.len() > keep {
            let clean = |k: &Key| {
                let written = self.bufs.get(*k).is_some_and(|b| b.tetris < written);
                written && !self.bufs.is_dirty(*k)
            };
            let clean: Vec<Key> = self.bufs.keys().filter(clean).collect();
            for key in clean {
                self.bufs.remove(key);
            }
        }
    }

    fn set_ptr(&mut self, key: Key, ptr: BlockPtr) {
        if key.level == self.height {
            match usize::try_from(key.index) {
                Ok(slot) => self.roots.set(slot, ptr),
                Err(_) => panic!("{key:?} is beyond the tree"),
            }
            return;
        }
        match self.bufs.dirty_mut(key.parent()) {
            Some(buf) => set_pointer_at(buf.block.make_mut(), key.slot(), ptr),
            None => panic!("the parent of {key:?} must be dirty"),
        }
    }

    /// Whether [`Self::cut`] at `first` may run: the blocks on the cut's edge are in memory.
    pub fn cut_reachable(&self, first: u64) -> Result<(), TreeMiss> {
        for level in (1..=self.height).rev() {
            if first & span_mask(level) == 0 {
                continue;
            }
            let key = Key { level, index: first >> (POINTERS_SHIFT * u32::from(level)) };
            if key.index < self.index_end(level) {
                self.peek(key)?;
            }
        }
        Ok(())
    }

    /// Cuts off every block from data block `first` on into a tree of its own.
    ///
    /// Data blocks in memory behind the cut are dropped. [`Self::cut_reachable`] must hold.
    pub fn cut(&mut self, first: u64) -> (Tree, Dirtied, Dropped) {
        let (mut dirtied, mut dropped) = (Dirtied::default(), Dropped::default());
        let mut right = Tree { height: self.height, ..Tree::empty() };
        let height = self.height;
        if first >= capacity(height) {
            return (right, dirtied, dropped);
        }
        self.cut_roots(first, &mut right);
        for level in (1..=height).rev() {
            if first & span_mask(level) != 0 {
                self.cut_node(first, level, &mut right, &mut dirtied);
            }
        }
        for level in (0..=height).rev() {
            let edge = first >> (POINTERS_SHIFT * u32::from(level));
            let start = if first & span_mask(level) == 0 { edge } else { edge + 1 };
            let keys: Vec<Key> = self.bufs.keys_from(level, start).collect();
            for key in keys {
                self.move_or_drop(key, &mut right, &mut dropped);
            }
        }
        let gone = i64::try_from(dropped.fresh).unwrap_or(i64::MAX);
        let total = self.blocks + right.blocks - gone;
        let keep = self.kept_by_cut(first).min(total);
        right.blocks = total - keep;
        self.blocks = keep;
        (right, dirtied, dropped)
    }

    /// Blocks that stay when the tree has been cut at `first`: exact without indirect blocks and
    /// for a file without holes, else an upper bound that the end of the tail corrects.
    fn kept_by_cut(&self, first: u64) -> i64 {
        if first == 0 {
            return 0;
        }
        if self.height == 0 {
            let at =
                |i: &usize| !self.roots.get(*i).is_hole() || self.is_resident(Key::data(*i as u64));
            return i64::try_from((0..DIRECT_POINTERS).filter(at).count()).unwrap_or(i64::MAX);
        }
        let mut most = 0;
        for level in 0..=self.height {
            most += first.div_ceil(span_mask(level) + 1);
        }
        i64::try_from(most).unwrap_or(i64::MAX)
    }

    fn cut_roots(&mut self, first: u64, right: &mut Tree) {
        let edge = first >> (POINTERS_SHIFT * u32::from(self.height));
        let straddles = first & span_mask(self.height) != 0;
        let slot = usize::try_from(edge + u64::from(straddles)).unwrap_or(usize::MAX);
        right.roots = self.roots.split_off(slot);
    }

    fn cut_node(&mut self, first: u64, level: u8, right: &mut Tree, dirtied: &mut Dirtied) {
        let key = Key { level, index: first >> (POINTERS_SHIFT * u32::from(level)) };
        if !self.bufs.contains(key) {
            assert!(self.ptr(key).is_ok_and(|p| p.is_hole()), "{key:?} lies on the cut");
            return;
        }
        let child =
            Key { level: level - 1, index: first >> (POINTERS_SHIFT * u32::from(level - 1)) };
        let child_straddles = first & span_mask(level - 1) != 0;
        let from = child.slot() + usize::from(child_straddles);
        self.dirty_ancestors(key, dirtied);
        dirtied.blocks += u64::from(!self.bufs.set_dirty(key, true));
        let Some(buf) = self.bufs.get_mut(key) else { unreachable!("checked above") };
        let mut cut_off = BlockMut::zeroed();
        let left = buf.block.make_mut();
        cut_off[from * 16..].copy_from_slice(&left[from * 16..]);
        left[from * 16..].fill(0);
        right.add_dirty(key, cut_off.freeze(), dirtied);
    }

    fn move_or_drop(&mut self, key: Key, right: &mut Tree, dropped: &mut Dropped) {
        let Some((mut buf, was_dirty)) = self.bufs.remove(key) else { return };
        buf.queued = false;
        if key.level == 0 {
            if was_dirty {
                dropped.dirty += 1;
                let placed = match right.ptr(key) {
                    Ok(ptr) => !ptr.is_hole(),
                    Err(_) => true,
                };
                dropped.fresh += u64::from(!placed);
            }
            return;
        }
        right.bufs.insert(key, buf);
        right.bufs.set_dirty(key, was_dirty);
    }

    /// Whether the children of a node exist: by pointer or in memory.
    fn last_child(&self, key: Key) -> Result<Option<Key>, TreeMiss> {
        let Some(block) = self.peek(key)? else { return Ok(None) };
        let base = key.index << POINTERS_SHIFT;
        for slot in (0..POINTERS_PER_BLOCK).rev() {
            let child = Key { level: key.level - 1, index: base + slot as u64 };
            if !pointer_at(block, slot).is_hole() || self.bufs.contains(child) {
                return Ok(Some(child));
            }
        }
        Ok(None)
    }

    /// Frees the last part of a tree that nobody reads any more: one bottom node and its data
    /// blocks, into `freed`.
    pub fn reap(&mut self, freed: &mut Freed) -> Result<(Reaped, Dirtied, Dropped), TreeMiss> {
        let already = freed.blocks();
        let (mut dirtied, mut dropped) = (Dirtied::default(), Dropped::default());
        let top = (0..DIRECT_POINTERS).rev().map(|i| Key { level: self.height, index: i as u64 });
        let mut found = None;
        for key in top {
            if !self.ptr(key)?.is_hole() || self.bufs.contains(key) {
                found = Some(key);
                break;
            }
        }
        let Some(mut key) = found else {
            return Ok((Reaped::Empty, dirtied, dropped));
        };
        while key.level > 1 {
            match self.last_child(key)? {
                Some(child) => key = child,
                None => break,
            }
        }
        if key.level == 1 {
            if let Some(block) = self.peek(key)? {
                let children = (0..POINTERS_PER_BLOCK).map(|s| pointer_at(block, s));
                freed.extend(children.filter(|p| !p.is_hole()));
            }
            let base = key.index << POINTERS_SHIFT;
            let end = base + POINTERS_PER_BLOCK as u64;
            let held = self.bufs.keys_from(0, base).take_while(|key| key.index < end);
            for key in held.collect::<Vec<_>>() {
                self.drop_buf(key, &mut dropped);
            }
        }
        let own = self.ptr(key)?;
        if !own.is_hole() {
            freed.push(own);
        }
        self.drop_buf(key, &mut dropped);
        self.dirty_ancestors(key, &mut dirtied);
        if key.level == self.height || self.bufs.contains(key.parent()) {
            self.set_ptr(key, BlockPtr::HOLE);
        }
        let gone = freed.blocks() - already + dropped.fresh;
        self.blocks -= i64::try_from(gone).unwrap_or(i64::MAX);
        Ok((Reaped::More, dirtied, dropped))
    }

    fn drop_buf(&mut self, key: Key, dropped: &mut Dropped) {
        if self.bufs.remove(key).is_some_and(|(_, dirty)| dirty) {
            dropped.dirty += 1;
            let placed = !matches!(self.ptr(key), Ok(p) if p.is_hole());
            dropped.fresh += u64::from(!placed);
        }
    }

    /// Whether [`Self::punch`] may run on data blocks `first..end`.
    pub fn punch_reachable(&self, first: u64, end: u64) -> Result<(), TreeMiss> {
        let end = end.min(capacity(self.height));
        let mut at = first;
        while at < end {
            self.reachable(Key::data(at))?;
            at = (at | span_mask(1)) + 1;
        }
        Ok(())
    }

    /// Makes data blocks `first..end` holes.
    pub fn punch(&mut self, first: u64, end: u64, freed: &mut Freed) -> (Dirtied, Dropped) {
        let (mut dirtied, mut dropped) = (Dirtied::default(), Dropped::default());
        let end = end.min(capacity(self.height));
        for index in first..end {
            let key = Key::data(index);
            let Ok(ptr) = self.ptr(key) else { panic!("{key:?} must be reachable to be punched") };
            let before = dropped.fresh;
            self.drop_buf(key, &mut dropped);
            self.blocks -= i64::from(dropped.fresh != before);
            if !ptr.is_hole() {
                self.dirty_ancestors(key, &mut dirtied);
                self.set_ptr(key, BlockPtr::HOLE);
                freed.push(ptr);
                self.blocks -= 1;
            }
        }
        (dirtied, dropped)
    }

    /// Drops those of `count` blocks that lie side by side, up to [`Bufs::run_max`], that are clean, on the
    /// disks (all before `written` are) and were not used since this was asked last. `became` hears
    /// what became of each, in order.
    pub fn evict_run(
        &mut self,
        first: Key,
        count: usize,
        written: TetrisNo,
        became: impl FnMut(Evicted),
    ) {
        let judge = |buf: &Buf, dirty: bool| match buf {
            _ if dirty || buf.tetris >= written => Some(Evicted::Busy),
            _ => buf.hot.replace(false).then_some(Evicted::Used),
        };
        self.bufs.evict_run(first, count, judge, became);
    }

    /// Drops all blocks, if there are at most `count` and every one can go; `Removed` when none is
    /// left.
    pub fn evict_all(&mut self, count: usize, written: TetrisNo) -> Evicted {
        if self.bufs.is_empty() {
            return Evicted::Removed;
        }
        let pinned = |key: Key| {
            self.bufs.is_dirty(key) || self.bufs.get(key).is_some_and(|b| b.tetris >= written)
        };
        if self.bufs.len() > count {
            return Evicted::Full;
        }
        if self.bufs.keys().any(pinned) {
            return Evicted::Busy;
        }
        let hot = |key: Key| self.bufs.get(key).is_some_and(|b| b.hot.replace(false));
        // All of them are looked at.
        if self.bufs.keys().filter(|key| hot(*key)).count() > 0 {
            return Evicted::Used;
        }
        self.bufs = Bufs::default();
        Evicted::Removed
    }
}

/// Answer of [`Tree::evict`] and [`Tree::evict_all`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evicted {
    /// It is not in memory any more.
    Gone,
    /// It must stay until a consistency point is committed.
    Busy,
    /// It must stay while so many blocks belong to it.
    Full,
    /// It was used lately, and goes the next time unless it is used again.
    Used,
    /// It was removed now.
    Removed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use cairn_units::{Crc, Pvbn, Vvbn};

    /// Places everything that is dirty, as a consistency point does.
    fn place_all(tree: &mut Tree, next: &mut u64) {
        while let Some(key) = tree.first_dirty() {
            *next += 1;
            let ptr = BlockPtr { vvbn: Vvbn::new(*next), pvbn: Pvbn::new(*next), crc: Crc::new(1) };
            tree.place(key, ptr, TetrisNo::FIRST);
        }
    }

    fn evict(tree: &mut Tree, key: Key) {
        let mut became = Evicted::Used;
        while became == Evicted::Used {
            tree.evict_run(key, 1, TetrisNo::FIRST.next(), |e| became = e);
        }
    }

    #[test]
    fn what_was_only_written_goes_when_the_clock_comes_by_and_what_was_used_gets_another_round() {
        let mut tree = Tree::empty();
        tree.put_all(0, &[Block::zero(), Block::zero(), Block::zero()]);
        let offered = |tree: &mut Tree| {
            let mut became = Vec::new();
            tree.evict_run(Key::data(0), 3, TetrisNo::FIRST.next(), |e| became.push(e));
            became
        };
        assert_eq!(offered(&mut tree), [Evicted::Busy; 3], "they have no places");
        place_all(&mut tree, &mut 0);
        assert!(tree.look(Key::data(1)).is_ok_and(|block| block.is_some()));
        assert_eq!(offered(&mut tree), [Evicted::Removed, Evicted::Used, Evicted::Removed]);
        assert_eq!(offered(&mut tree), [Evicted::Gone, Evicted::Removed, Evicted::Gone]);
    }

    #[test]
    fn a_node_whose_parent_was_evicted_is_not_reachable() {
        let mut tree = Tree::empty();
        let far = 70_000;
        tree.put(far, Block::zero());
        let mut next = 0;
        place_all(&mut tree, &mut next);
        assert_eq!(tree.height(), 2);
        evict(&mut tree, Key { level: 2, index: 1 });
        assert!(tree.is_resident(Key { level: 1, index: far >> 8 }));
        let miss = tree.reachable(Key::data(far)).expect_err("its grandparent is not in memory");
        assert_eq!(miss.key, Key { level: 2, index: 1 });
        assert!(tree.insert_loaded(miss.key, miss.ptr, Block::zero()));
        assert_eq!(tree.reachable(Key::data(far)), Ok(()));
    }

    #[test]
    fn a_cut_gives_each_placed_block_to_one_side() {
        let mut tree = Tree::empty();
        let mut next = 0;
        let all: Vec<u64> = (0..600).chain(65_530..65_800).collect();
        for index in &all {
            tree.put(*index, Block::zero());
        }
        place_all(&mut tree, &mut next);
        let placed = next;
        for first in [300, 256, 65_536, 65_600, 16] {
            let mut left = Tree::new(tree.height(), tree.roots().clone(), tree.blocks());
            for key in tree.bufs.keys().filter(|k| k.level > 0) {
                let Some(buf) = tree.bufs.get(key) else { panic!("{key:?} is there") };
                let (block, tetris) = (buf.block.clone(), TetrisNo::NONE);
                let buf = Buf { block, hot: Cell::new(false), tetris, queued: true };
                left.bufs.insert(key, buf);
            }
            let (mut right, _, _) = left.cut(first);
            let mut freed = Freed::default();
            while right.reap(&mut freed).unwrap().0 == Reaped::More {}
            let kept = all.iter().filter(|i| **i < first);
            assert!(kept.clone().all(|i| left.ptr(Key::data(*i)).is_ok_and(|p| !p.is_hole())));
            assert!(
                all.iter()
                    .filter(|i| **i >= first)
                    .all(|i| left.ptr(Key::data(*i)) == Ok(BlockPtr::HOLE))
            );
            let (mut whole, _, _) = left.cut(0);
            while whole.reap(&mut freed).unwrap().0 == Reaped::More {}
            let runs = freed.runs().iter().map(|r| r.pvbn.get()..r.pvbn.get() + r.count);
            let distinct: BTreeSet<u64> = runs.flatten().collect();
            let freed = freed.blocks();
            assert_eq!(distinct.len() as u64, freed, "no block is freed twice (cut at {first})");
            assert_eq!(distinct.len() as u64, placed, "every block is freed (cut at {first})");
        }
    }
}
