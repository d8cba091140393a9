//! The buffers of one tree: which blocks are in memory, and which of them are dirty.
//!
//! Layer: under [`crate::tree`]; knows no pointers. Neighbours share a chunk of 16, so that a run of blocks costs one
//! look-up and one node of the ordered map for all 16; the chunk found last at each level is remembered, so
//! that going through a file in order costs no look-up at all.
//!
//! # Invariants
//! - A chunk in the map holds at least one buffer; `dirty` of a chunk names only buffers that it has.
//! - `dirty` of the whole has exactly the chunks with a dirty buffer, `dirty_count` counts those.
//! - A remembered chunk is in the map.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use crate::cp::TetrisNo;
use crate::tree::{HEIGHT_MAX, Key};
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

/// See the module. Most files that are in core have no buffer at all: nothing is allocated for them.
#[derive(Debug, Default)]
pub(crate) struct Bufs(Option<Box<Held>>);

#[derive(Debug, Default)]
struct Held {
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
}

impl Bufs {
    fn chunk(&self, id: ChunkId) -> Option<&Chunk> {
        self.0.as_ref()?.chunk(id)
    }
    fn chunk_mut(&mut self, id: ChunkId) -> Option<&mut Chunk> {
        self.0.as_mut()?.chunk_mut(id)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.resident)
    }
    pub fn dirty_count(&self) -> u64 {
        self.0.as_ref().map_or(0, |held| held.dirty_count)
    }

    pub fn contains(&self, key: Key) -> bool {
        self.get(key).is_some()
    }
    pub fn get(&self, key: Key) -> Option<&Buf> {
        let (id, within) = ChunkId::of(key);
        self.chunk(id)?.bufs[within].as_ref()
    }
    pub fn get_mut(&mut self, key: Key) -> Option<&mut Buf> {
        let (id, within) = ChunkId::of(key);
        self.chunk_mut(id)?.bufs[within].as_mut()
    }
    /// The buffer, if it is there and dirty.
    pub fn dirty_mut(&mut self, key: Key) -> Option<&mut Buf> {
        let (id, within) = ChunkId::of(key);
        let chunk = self.chunk_mut(id)?;
        if chunk.dirty & (1 << within) == 0 {
            return None;
        }
        chunk.bufs[within].as_mut()
    }
    pub fn is_dirty(&self, key: Key) -> bool {
        let (id, within) = ChunkId::of(key);
        self.chunk(id).is_some_and(|c| c.dirty & (1 << within) != 0)
    }

    /// Adds a buffer that is not there, clean.
    pub fn insert(&mut self, key: Key, buf: Buf) {
        let (id, within) = ChunkId::of(key);
        let held = self.0.get_or_insert_default();
        let at = held.place(id);
        held.resident += 1;
        let Some(chunk) = &mut held.chunks[at as usize] else { unreachable!("made above") };
        assert!(chunk.bufs[within].is_none(), "{key:?} is already in memory");
        chunk.bufs[within] = Some(buf);
        chunk.present |= 1 << within;
    }

    /// Takes a buffer out, with whether it was dirty.
    pub fn remove(&mut self, key: Key) -> Option<(Buf, bool)> {
        let dirty = self.set_dirty(key, false);
        let (id, within) = ChunkId::of(key);
        let held = self.0.as_mut()?;
        let chunk = held.chunk_mut(id)?;
        let buf = chunk.bufs[within].take()?;
        chunk.present &= !(1 << within);
        if chunk.present == 0 {
            held.drop_chunk(id);
        }
        held.resident -= 1;
        if held.resident == 0 {
            self.0 = None;
        }
        Some((buf, dirty))
    }

    /// Marks a buffer dirty or clean; whether it was dirty before. Nothing happens without one.
    pub fn set_dirty(&mut self, key: Key, dirty: bool) -> bool {
        let (id, within) = ChunkId::of(key);
        let Some(held) = self.0.as_mut() else { return false };
        let Some(chunk) = held.chunk_mut(id) else { return false };
        let (bit, others) = (1 << within, chunk.dirty & !(1 << within));
        let was = chunk.dirty & bit != 0;
        if was == dirty || chunk.present & bit == 0 {
            return was;
        }
        chunk.dirty ^= bit;
        match dirty {
            true => held.dirty_count += 1,
            false => held.dirty_count -= 1,
        }
        if others == 0 {
            let changed = if dirty { held.dirty.insert(id) } else { held.dirty.remove(&id) };
            assert!(changed, "the set of dirty chunks is right");
        }
        was
    }

    /// Dirty keys at or behind `from`, in order.
    pub fn dirty_from(&self, from: Key) -> impl Iterator<Item = Key> {
        let (first, _) = ChunkId::of(from);
        let keys = self.0.iter().flat_map(move |held| {
            held.dirty.range(first..).flat_map(|id| {
                let dirty = held.chunk(*id).map_or(0, |c| c.dirty);
                ones(dirty).map(|within| id.key(within))
            })
        });
        keys.skip_while(move |key| *key < from)
    }

    /// Keys in memory of one level at or behind an index, in order.
    pub fn keys_from(&self, level: u8, index: u64) -> impl Iterator<Item = Key> {
        let (first, _) = ChunkId::of(Key { level, index });
        let (end, _) = ChunkId::of(Key { level: level + 1, index: 0 });
        let keys = self.0.iter().flat_map(move |held| {
            held.map.range(first..end).flat_map(|(id, at)| {
                let present = held.chunks[*at as usize].as_ref().map_or(0, |c| c.present);
                ones(present).map(|within| id.key(within))
            })
        });
        keys.skip_while(move |key| key.index < index)
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
        /// The same as an ordered map of keys to "is dirty".
        #[test]
        fn chunks_are_a_map_of_keys(
            steps in prop::collection::vec((0u8..5, 0u8..3, 0u64..70), 1..200),
        ) {
            let (mut bufs, mut twin) = (Bufs::default(), BTreeMap::new());
            for (what, level, index) in steps {
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
