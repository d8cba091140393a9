//! The buffers of one tree: which blocks are in memory, and which of them are dirty.
//!
//! Layer: under [`crate::tree`]; knows no pointers. Neighbours share a chunk of 16, so that a run of blocks costs one
//! look-up and one node of the ordered map for all 16; the chunk found last at each level is remembered, so
//! that going through a file in order costs no look-up at all. A file with one block in memory, as most have that
//! are in core, needs none of these tables: they are 0.8 KiB in up to five allocations.
//!
//! # Invariants
//! - A chunk in the map holds at least one buffer; `dirty` of a chunk names only buffers that it has.
//! - `dirty` of the whole has exactly the chunks with a dirty buffer, `dirty_count` counts those.
//! - A remembered chunk is in the map.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use crate::cp::TetrisNo;
use crate::tree::{Evicted, HEIGHT_MAX, Key};
use cairn_sys::Block;

const CHUNK_SHIFT: u32 = 4;
const CHUNK: usize = 1 << CHUNK_SHIFT;
const LEVEL_SHIFT: u32 = 56;

/// A block in memory.
#[derive(Debug)]
pub(crate) struct Buf {
    pub block: Block,
    pub hot: Cell<bool>,
    /// It lies on the disks when this one does.
    pub tetris: TetrisNo,
    /// The cache's clock knows of it.
    pub queued: bool,
}

impl Buf {
    /// New content that has no place yet. Nobody has used it: when the clock comes by first, it
    /// goes, so that a stream of them does not drive out what is used.
    pub fn written(block: Block) -> Self {
        Self { block, hot: Cell::new(false), tetris: TetrisNo::NONE, queued: false }
    }

    /// It was given a place, and lies on the disks when `tetris` does. Whether the cache's clock must be
    /// told of it.
    pub fn placed(&mut self, tetris: TetrisNo) -> bool {
        self.tetris = tetris;
        !core::mem::replace(&mut self.queued, true)
    }
}

/// What [`Bufs::put_run`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PutRun {
    new: u16,
    /// Buffers that were clean or not there.
    pub dirtied: u64,
}

impl PutRun {
    /// Which buffers were not there: their places in the run.
    pub fn places(self) -> impl Iterator<Item = usize> {
        ones(self.new).map(|place| place as usize)
    }
}

#[derive(Debug, Default)]
struct Chunk {
    bufs: [Option<Buf>; CHUNK],
    present: u16,
    dirty: u16,
}

/// Level and number of a chunk, ordered like the keys in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ChunkId(u64);

impl ChunkId {
    fn of(key: Key) -> (Self, usize) {
        let within = key.index & (CHUNK as u64 - 1);
        let id = Self(u64::from(key.level) << LEVEL_SHIFT | key.index >> CHUNK_SHIFT);
        (id, usize::try_from(within).unwrap_or(0))
    }
    fn level(self) -> u8 {
        u8::try_from(self.0 >> LEVEL_SHIFT).unwrap_or(u8::MAX)
    }
    fn key(self, within: u32) -> Key {
        let number = self.0 & ((1 << LEVEL_SHIFT) - 1);
        Key { level: self.level(), index: number << CHUNK_SHIFT | u64::from(within) }
    }
}

/// The set bits of a mask, lowest first.
fn ones(mut mask: u16) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros())?;
        mask &= mask - 1;
        Some(bit)
    })
}

/// See the module. Many files that are in core have no buffer at all: nothing is allocated for them.
#[derive(Debug, Default)]
pub(crate) enum Bufs {
    #[default]
    Empty,
    One(Box<One>),
    /// At least one; there were several since it was empty.
    Many(Box<Held>),
}

/// The only block in memory.
#[derive(Debug)]
pub(crate) struct One {
    key: Key,
    dirty: bool,
    buf: Buf,
}

#[derive(Debug, Default)]
pub(crate) struct Held {
    map: BTreeMap<ChunkId, u32>,
    chunks: Vec<Option<Box<Chunk>>>,
    /// Places in `chunks` that are empty.
    unused: Vec<u32>,
    /// Of data, of nodes.
    found: [Cell<Option<(ChunkId, u32)>>; 2],
    resident: usize,
    dirty: BTreeSet<ChunkId>,
    dirty_count: u64,
}

impl Held {
    fn last(&self, id: ChunkId) -> &Cell<Option<(ChunkId, u32)>> {
        &self.found[usize::from(id.level() > 0)]
    }
    fn find(&self, id: ChunkId) -> Option<u32> {
        let last = self.last(id);
        if let Some((known, at)) = last.get()
            && known == id
        {
            return Some(at);
        }
        let at = *self.map.get(&id)?;
        last.set(Some((id, at)));
        Some(at)
    }
    fn chunk(&self, id: ChunkId) -> Option<&Chunk> {
        self.chunks[self.find(id)? as usize].as_deref()
    }
    fn chunk_mut(&mut self, id: ChunkId) -> Option<&mut Chunk> {
        let at = self.find(id)?;
        self.chunks[at as usize].as_deref_mut()
    }
    /// The chunk's place, made if there is none.
    fn place(&mut self, id: ChunkId) -> u32 {
        if let Some(at) = self.find(id) {
            return at;
        }
        let at = self.unused.pop().unwrap_or_else(|| {
            self.chunks.push(None);
            let at = u32::try_from(self.chunks.len() - 1);
            let Ok(at) = at else { panic!("more chunks than memory holds") };
            at
        });
        self.chunks[at as usize] = Some(Box::default());
        self.map.insert(id, at);
        self.last(id).set(Some((id, at)));
        at
    }
    fn drop_chunk(&mut self, id: ChunkId) {
        if let Some(at) = self.map.remove(&id) {
            self.chunks[at as usize] = None;
            self.unused.push(at);
            self.last(id).set(None);
        }
    }

    fn get(&self, key: Key) -> Option<&Buf> {
        let (id, within) = ChunkId::of(key);
        self.chunk(id)?.bufs[within].as_ref()
    }
    fn get_mut(&mut self, key: Key) -> Option<&mut Buf> {
        let (id, within) = ChunkId::of(key);
        self.chunk_mut(id)?.bufs[within].as_mut()
    }
    fn is_dirty(&self, key: Key) -> bool {
        let (id, within) = ChunkId::of(key);
        self.chunk(id).is_some_and(|c| c.dirty & (1 << within) != 0)
    }
    fn insert(&mut self, key: Key, buf: Buf) {
        let (id, within) = ChunkId::of(key);
        let at = self.place(id);
        self.resident += 1;
        let Some(chunk) = &mut self.chunks[at as usize] else { unreachable!("made above") };
        assert!(chunk.bufs[within].is_none(), "{key:?} is already in memory");
        chunk.bufs[within] = Some(buf);
        chunk.present |= 1 << within;
    }
    fn put_run(&mut self, first: Key, blocks: &[Block]) -> PutRun {
        let (id, within) = ChunkId::of(first);
        let end = within + blocks.len();
        assert!(end <= CHUNK && !blocks.is_empty(), "blocks from {first:?} on are not one run");
        let run = u16::MAX << within & u16::MAX >> (CHUNK - end);
        let at = self.place(id);
        let Some(chunk) = &mut self.chunks[at as usize] else { unreachable!("made above") };
        for (buf, block) in chunk.bufs[within..end].iter_mut().zip(blocks) {
            match buf {
                Some(buf) => {
                    buf.block = block.clone();
                    buf.hot.set(true);
                }
                None => *buf = Some(Buf::written(block.clone())),
            }
        }
        let (new, dirtied) = (run & !chunk.present, run & !chunk.dirty);
        let was_clean = chunk.dirty == 0;
        chunk.present |= run;
        chunk.dirty |= run;
        self.resident += new.count_ones() as usize;
        self.dirty_count += u64::from(dirtied.count_ones());
        if was_clean {
            assert!(self.dirty.insert(id), "the set of dirty chunks is right");
        }
        PutRun { new: new >> within, dirtied: dirtied.count_ones().into() }
    }
    fn remove(&mut self, key: Key) -> Option<(Buf, bool)> {
        let dirty = self.set_dirty(key, false);
        let (id, within) = ChunkId::of(key);
        let chunk = self.chunk_mut(id)?;
        let buf = chunk.bufs[within].take()?;
        chunk.present &= !(1 << within);
        if chunk.present == 0 {
            self.drop_chunk(id);
        }
        self.resident -= 1;
        Some((buf, dirty))
    }
    fn evict_run(
        &mut self,
        first: Key,
        count: usize,
        mut judge: impl FnMut(&Buf, bool) -> Option<Evicted>,
        mut became: impl FnMut(Evicted),
    ) {
        let (id, within) = ChunkId::of(first);
        let Some(chunk) = self.chunk_mut(id) else {
            return (0..count).for_each(|_| became(Evicted::Gone));
        };
        let mut removed = 0;
        for at in within..within + count {
            let dirty = chunk.dirty & (1 << at) != 0;
            became(match chunk.bufs[at].as_ref().map(|buf| judge(buf, dirty)) {
                None => Evicted::Gone,
                Some(Some(stays)) => stays,
                Some(None) => {
                    assert!(!dirty, "{id:?} {at}: what is dirty stays");
                    chunk.bufs[at] = None;
                    chunk.present &= !(1 << at);
                    removed += 1;
                    Evicted::Removed
                }
            });
        }
        if chunk.present == 0 {
            self.drop_chunk(id);
        }
        self.resident -= removed;
    }
    fn set_dirty(&mut self, key: Key, dirty: bool) -> bool {
        let (id, within) = ChunkId::of(key);
        let Some(chunk) = self.chunk_mut(id) else { return false };
        let (bit, others) = (1 << within, chunk.dirty & !(1 << within));
        let was = chunk.dirty & bit != 0;
        if was == dirty || chunk.present & bit == 0 {
            return was;
        }
        chunk.dirty ^= bit;
        match dirty {
            true => self.dirty_count += 1,
            false => self.dirty_count -= 1,
        }
        if others == 0 {
            let changed = if dirty { self.dirty.insert(id) } else { self.dirty.remove(&id) };
            assert!(changed, "the set of dirty chunks is right");
        }
        was
    }
    fn first_dirty_run(&self) -> Option<(Key, u64)> {
        let id = *self.dirty.first()?;
        let dirty = self.chunk(id).map_or(0, |c| c.dirty);
        let first = dirty.trailing_zeros();
        Some((id.key(first), u64::from((!(dirty >> first)).trailing_zeros())))
    }
    fn clean_run(&mut self, first: Key, count: u64, mut each: impl FnMut(&mut Buf)) {
        let (id, within) = ChunkId::of(first);
        let end = usize::try_from(count).map_or(usize::MAX, |count| within.saturating_add(count));
        let Some(chunk) = self.chunk_mut(id).filter(|_| end <= CHUNK) else {
            panic!("{count} blocks from {first:?} on are not one run")
        };
        let run = u16::MAX << within & u16::MAX >> (CHUNK - end);
        assert!(chunk.dirty & run == run, "{count} blocks from {first:?} on must be dirty");
        chunk.bufs[within..end].iter_mut().flatten().for_each(&mut each);
        chunk.dirty ^= run;
        let none_left = chunk.dirty == 0;
        self.dirty_count -= count;
        if none_left {
            assert!(self.dirty.remove(&id), "the set of dirty chunks is right");
        }
    }
    fn dirty_from(&self, from: Key) -> impl Iterator<Item = Key> {
        let (first, _) = ChunkId::of(from);
        self.dirty.range(first..).flat_map(|id| {
            let dirty = self.chunk(*id).map_or(0, |c| c.dirty);
            ones(dirty).map(|within| id.key(within))
        })
    }
    fn keys_from(&self, level: u8, index: u64) -> impl Iterator<Item = Key> {
        let (first, _) = ChunkId::of(Key { level, index });
        let (end, _) = ChunkId::of(Key { level: level + 1, index: 0 });
        self.map.range(first..end).flat_map(|(id, at)| {
            let present = self.chunks[*at as usize].as_ref().map_or(0, |c| c.present);
            ones(present).map(|within| id.key(within))
        })
    }
}

impl One {
    fn is(&self, key: Key) -> bool {
        self.key == key
    }
}

impl Bufs {
    fn one(&self) -> Option<&One> {
        if let Bufs::One(one) = self { Some(one) } else { None }
    }
    fn many(&self) -> Option<&Held> {
        if let Bufs::Many(held) = self { Some(held) } else { None }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Bufs::Empty)
    }
    pub fn len(&self) -> usize {
        match self {
            Bufs::Empty => 0,
            Bufs::One(_) => 1,
            Bufs::Many(held) => held.resident,
        }
    }
    pub fn dirty_count(&self) -> u64 {
        match self {
            Bufs::Empty => 0,
            Bufs::One(one) => one.dirty.into(),
            Bufs::Many(held) => held.dirty_count,
        }
    }

    pub fn contains(&self, key: Key) -> bool {
        self.get(key).is_some()
    }
    pub fn get(&self, key: Key) -> Option<&Buf> {
        match self {
            Bufs::Empty => None,
            Bufs::One(one) => one.is(key).then_some(&one.buf),
            Bufs::Many(held) => held.get(key),
        }
    }
    pub fn get_mut(&mut self, key: Key) -> Option<&mut Buf> {
        match self {
            Bufs::Empty => None,
            Bufs::One(one) => one.is(key).then_some(&mut one.buf),
            Bufs::Many(held) => held.get_mut(key),
        }
    }
    /// The buffer, if it is there and dirty.
    pub fn dirty_mut(&mut self, key: Key) -> Option<&mut Buf> {
        if self.is_dirty(key) { self.get_mut(key) } else { None }
    }
    pub fn is_dirty(&self, key: Key) -> bool {
        match self {
            Bufs::Empty => false,
            Bufs::One(one) => one.is(key) && one.dirty,
            Bufs::Many(held) => held.is_dirty(key),
        }
    }

    /// Adds a buffer that is not there, clean.
    pub fn insert(&mut self, key: Key, buf: Buf) {
        *self = match core::mem::take(self) {
            Bufs::Empty => Bufs::One(Box::new(One { key, dirty: false, buf })),
            Bufs::One(one) => {
                let mut held = Box::<Held>::default();
                held.insert(one.key, one.buf);
                held.set_dirty(one.key, one.dirty);
                held.insert(key, buf);
                Bufs::Many(held)
            }
            Bufs::Many(mut held) => {
                held.insert(key, buf);
                Bufs::Many(held)
            }
        };
    }

    /// Blocks from `key` on that [`Self::put_run`] can take at once.
    pub fn run_max(key: Key) -> usize {
        CHUNK - ChunkId::of(key).1
    }

    /// Puts new content into buffers that lie side by side, up to [`Self::run_max`]; those that are
    /// not there are added. All of them are dirty then.
    ///
    /// # Panics
    /// When there are none, or more than that.
    pub fn put_run(&mut self, first: Key, blocks: &[Block]) -> PutRun {
        if let Bufs::Many(held) = self {
            return held.put_run(first, blocks);
        }
        if let [block] = blocks {
            let there = self.get_mut(first).map(|buf| {
                buf.block = block.clone();
                buf.hot.set(true);
            });
            if there.is_none() {
                self.insert(first, Buf::written(block.clone()));
            }
            let dirtied = u64::from(!self.set_dirty(first, true));
            return PutRun { new: u16::from(there.is_none()), dirtied };
        }
        let mut held = Box::<Held>::default();
        if let Bufs::One(one) = core::mem::take(self) {
            held.insert(one.key, one.buf);
            held.set_dirty(one.key, one.dirty);
        }
        let put = held.put_run(first, blocks);
        *self = Bufs::Many(held);
        put
    }

    /// Takes a buffer out, with whether it was dirty.
    pub fn remove(&mut self, key: Key) -> Option<(Buf, bool)> {
        let removed = match self {
            Bufs::Many(held) => held.remove(key)?,
            Bufs::One(one) if one.is(key) => match core::mem::take(self) {
                Bufs::One(one) => return Some((one.buf, one.dirty)),
                _ => unreachable!("looked at above"),
            },
            _ => return None,
        };
        if let Bufs::Many(held) = self
            && held.resident == 0
        {
            *self = Bufs::Empty;
        }
        Some(removed)
    }

    /// Removes those of `count` buffers that lie side by side, up to [`Self::run_max`], for which `judge`
    /// has no answer; it is shown each, with whether it is dirty. `became` hears of all of them, in
    /// order.
    ///
    /// # Panics
    /// When a dirty one is to go.
    pub fn evict_run(
        &mut self,
        first: Key,
        count: usize,
        mut judge: impl FnMut(&Buf, bool) -> Option<Evicted>,
        mut became: impl FnMut(Evicted),
    ) {
        if let Bufs::Many(held) = self {
            held.evict_run(first, count, judge, became);
            if held.resident == 0 {
                *self = Bufs::Empty;
            }
            return;
        }
        for key in first.behind().take(count) {
            became(match self.get(key).map(|buf| judge(buf, self.is_dirty(key))) {
                None => Evicted::Gone,
                Some(Some(stays)) => stays,
                Some(None) => {
                    let removed = self.remove(key);
                    assert!(removed.is_some_and(|(_, dirty)| !dirty), "what is dirty stays");
                    Evicted::Removed
                }
            });
        }
    }

    /// Marks a buffer dirty or clean; whether it was dirty before. Nothing happens without one.
    pub fn set_dirty(&mut self, key: Key, dirty: bool) -> bool {
        match self {
            Bufs::One(one) if one.is(key) => core::mem::replace(&mut one.dirty, dirty),
            Bufs::Many(held) => held.set_dirty(key, dirty),
            _ => false,
        }
    }

    /// The lowest dirty key, and how many dirty ones there are from it on, one behind the other: a run for
    /// [`Self::clean_run`].
    pub fn first_dirty_run(&self) -> Option<(Key, u64)> {
        match self {
            Bufs::Empty => None,
            Bufs::One(one) => one.dirty.then_some((one.key, 1)),
            Bufs::Many(held) => held.first_dirty_run(),
        }
    }

    /// Marks buffers clean: the first ones of [`Self::first_dirty_run`]. `each` is shown them, in order.
    ///
    /// # Panics
    /// When one of them is not dirty, or they are none of such a run.
    pub fn clean_run(&mut self, first: Key, count: u64, mut each: impl FnMut(&mut Buf)) {
        match self {
            Bufs::Many(held) => held.clean_run(first, count, each),
            Bufs::One(one) if one.is(first) && count == 1 && one.dirty => {
                one.dirty = false;
                each(&mut one.buf);
            }
            _ => panic!("{count} blocks from {first:?} on must be dirty"),
        }
    }

    /// Dirty keys at or behind `from`, in order.
    pub fn dirty_from(&self, from: Key) -> impl Iterator<Item = Key> {
        let one = self.one().filter(|one| one.dirty).map(|one| one.key);
        let many = self.many().into_iter().flat_map(move |held| held.dirty_from(from));
        one.into_iter().chain(many).skip_while(move |key| *key < from)
    }

    /// Keys in memory of one level at or behind an index, in order.
    pub fn keys_from(&self, level: u8, index: u64) -> impl Iterator<Item = Key> {
        let one = self.one().map(|one| one.key).filter(|key| key.level == level);
        let many = self.many().into_iter().flat_map(move |held| held.keys_from(level, index));
        one.into_iter().chain(many).skip_while(move |key| key.index < index)
    }

    /// All keys in memory, in order.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        (0..=HEIGHT_MAX).flat_map(|level| self.keys_from(level, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buf() -> Buf {
        let hot = Cell::new(false);
        Buf { block: Block::zero(), hot, tetris: TetrisNo::NONE, queued: false }
    }

    proptest! {
        /// The same as an ordered map of keys to "is dirty". Two keys come often: with one of them
        /// alone, and with both, there are other tables than with many.
        #[test]
        fn chunks_are_a_map_of_keys(
            steps in prop::collection::vec(
                (0u8..8, prop_oneof![Just((0u8, 1u64)), Just((0, 2)), (0u8..3, 0u64..70)]),
                1..200,
            ),
        ) {
            let (mut bufs, mut twin) = (Bufs::default(), BTreeMap::new());
            for (what, (level, index)) in steps {
                let key = Key { level, index: index * index };
                match what {
                    0 if !twin.contains_key(&key) => {
                        bufs.insert(key, buf());
                        twin.insert(key, false);
                    }
                    1 => prop_assert_eq!(bufs.remove(key).map(|(_, d)| d), twin.remove(&key)),
                    2 | 3 => {
                        let was = bufs.set_dirty(key, what == 2);
                        let old = twin.get_mut(&key).map(|d| std::mem::replace(d, what == 2));
                        prop_assert_eq!(was, old.unwrap_or(false));
                    }
                    4 => {
                        let dirty = twin.iter().filter(|(_, d)| **d).map(|(k, _)| *k);
                        let first = dirty.clone().next();
                        prop_assert_eq!(bufs.first_dirty_run().map(|(key, _)| key), first);
                        if let Some((first, count)) = bufs.first_dirty_run() {
                            let run: Vec<Key> =
                                (first.index..).map(|index| Key { index, ..first }).take(16).collect();
                            let side_by_side =
                                dirty.zip(&run).take_while(|(is, of)| is == *of).count() as u64;
                            let in_chunk = 16 - first.index % 16;
                            prop_assert_eq!(count, side_by_side.min(in_chunk));
                            let count = 1 + key.index % count;
                            let mut seen = 0usize;
                            bufs.clean_run(first, count, |_| seen += 1);
                            prop_assert_eq!(seen as u64, count);
                            for key in run.iter().take(seen) {
                                twin.insert(*key, false);
                            }
                        }
                    }
                    5 => {
                        let count = (1 + usize::from(level)).min(Bufs::run_max(key));
                        let run: Vec<Key> = key.behind().take(count).collect();
                        let is_new = |place: &usize| !twin.contains_key(&run[*place]);
                        let new: Vec<usize> = (0..count).filter(is_new).collect();
                        let dirtied = run.iter().filter(|k| twin.get(*k) != Some(&true)).count();
                        let put = bufs.put_run(key, &vec![Block::zero(); count]);
                        prop_assert_eq!(put.places().collect::<Vec<_>>(), new);
                        prop_assert_eq!(put.dirtied, dirtied as u64);
                        twin.extend(run.into_iter().map(|k| (k, true)));
                    }
                    6 => {
                        let count = (1 + 3 * usize::from(level)).min(Bufs::run_max(key));
                        let mut became = Vec::new();
                        // Clean ones go; of these, every third is said to be in use.
                        let mut seen = 0;
                        let judge = |_: &Buf, dirty: bool| {
                            seen += 1;
                            match dirty {
                                true => Some(Evicted::Busy),
                                false => (seen % 3 == 0).then_some(Evicted::Used),
                            }
                        };
                        bufs.evict_run(key, count, judge, |e| became.push(e));
                        let mut seen = 0;
                        for (key, became) in key.behind().zip(&became) {
                            let there = twin.get(&key).copied();
                            seen += usize::from(there.is_some());
                            let want = match there {
                                None => Evicted::Gone,
                                Some(true) => Evicted::Busy,
                                Some(false) if seen % 3 == 0 => Evicted::Used,
                                Some(false) => Evicted::Removed,
                            };
                            prop_assert_eq!(*became, want);
                            if want == Evicted::Removed {
                                twin.remove(&key);
                            }
                        }
                        prop_assert_eq!(became.len(), count);
                    }
                    _ => prop_assert_eq!(bufs.contains(key), twin.contains_key(&key)),
                }
                prop_assert_eq!(bufs.get_mut(key).is_some(), twin.contains_key(&key));
                prop_assert_eq!(bufs.dirty_mut(key).is_some(), twin.get(&key) == Some(&true));
                prop_assert_eq!(bufs.is_dirty(key), twin.get(&key) == Some(&true));
                let dirty: Vec<Key> = twin.iter().filter(|(_, d)| **d).map(|(k, _)| *k).collect();
                prop_assert_eq!(bufs.dirty_count(), dirty.len() as u64);
                let behind: Vec<Key> = dirty.iter().copied().filter(|k| *k >= key).collect();
                prop_assert_eq!(bufs.dirty_from(key).collect::<Vec<_>>(), behind);
                let of_level = twin.keys().copied().filter(|k| k.level == level && *k >= key);
                let there: Vec<Key> = bufs.keys_from(level, key.index).collect();
                prop_assert_eq!(there, of_level.collect::<Vec<_>>());
                prop_assert_eq!(bufs.keys().collect::<Vec<_>>(), twin.keys().copied().collect::<Vec<_>>());
                prop_assert_eq!((bufs.len(), bufs.is_empty()), (twin.len(), twin.is_empty()));
            }
        }
    }
}
