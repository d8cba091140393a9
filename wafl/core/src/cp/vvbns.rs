//! Virtual block numbers in a consistency point: which are given out, and where they lie.
//!
//! Layer: consistency points. What marks the active map and the container map of a volume.

use std::collections::{BTreeMap, VecDeque};

use cairn_sys::Block;
use cairn_units::{Pvbn, Vvbn};
use cairn_wafl_format::{BITS_PER_BLOCK, CONTAINER_ENTRIES_PER_BLOCK};

use crate::bits::{clear_run, first_clear_bit, flip_run};
use crate::block_set::BlockSet;
use crate::space::ones;
use crate::tree::{Key, TreeMiss};
use crate::volume::{FileId, Miss, VolState};

/// VVBNs of one volume that are marked used and wait for a block.
#[derive(Default)]
pub(super) struct Vvbns {
    /// Neighbours with one block of the container map: the first of them, and how many.
    ready: VecDeque<(Vvbn, u64)>,
    ready_count: u64,
    /// Bits set in each touched map block before its first change.
    touched: BTreeMap<u64, u64>,
    pub(super) taken: u64,
    pub(super) released: u64,
    /// Freed in this point: not to be given out in it.
    freed: BlockSet,
}

/// Entry of the container map.
pub(crate) fn container_entry(block: &Block, vvbn: u64) -> Pvbn {
    let at = usize::try_from(vvbn % CONTAINER_ENTRIES_PER_BLOCK).unwrap_or_default() * 8;
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[at..at + 8]);
    Pvbn::new(u64::from_le_bytes(bytes))
}

pub(crate) fn set_container(st: &mut VolState, vvbn: Vvbn, pvbn: Pvbn) {
    set_container_run(st, vvbn, pvbn, 1);
}

/// Notes where `count` neighbours with one block of the container map lie: side by side.
pub(super) fn set_container_run(st: &mut VolState, vvbn: Vvbn, pvbn: Pvbn, count: u64) {
    let first = usize::try_from(vvbn.get() % CONTAINER_ENTRIES_PER_BLOCK).unwrap_or_default() * 8;
    let end = first + usize::try_from(count).unwrap_or(usize::MAX / 8) * 8;
    st.container_map.edit(vvbn.get() / CONTAINER_ENTRIES_PER_BLOCK, |block| {
        for (entry, at) in block[first..end].chunks_exact_mut(8).zip(pvbn.get()..) {
            entry.copy_from_slice(&at.to_le_bytes());
        }
    });
}

impl Vvbns {
    /// VVBNs that wait for a block.
    pub(super) fn ready(&self) -> u64 {
        self.ready_count
    }
    /// Neighbours that [`Self::take_run`] can give at once.
    pub(super) fn ready_run(&self) -> u64 {
        self.ready.front().map_or(0, |(_, count)| *count)
    }
    /// The first `count` of those.
    pub(super) fn take_run(&mut self, count: u64) -> Option<Vvbn> {
        let (first, left) = self.ready.front_mut().filter(|(_, left)| *left >= count)?;
        let taken = *first;
        (*first, *left) = (first.plus(count), *left - count);
        if *left == 0 {
            self.ready.pop_front();
        }
        self.ready_count -= count;
        Some(taken)
    }

    pub(super) fn is_untouched(&self) -> bool {
        self.touched.is_empty()
    }

    fn note(&mut self, st: &VolState, index: u64) {
        let map = &st.active_map;
        self.touched.entry(index).or_insert_with(|| match map.peek(Key::data(index)) {
            Ok(block) => block.map_or(0, ones),
            Err(_) => panic!("block {index} of the active map must be in memory"),
        });
    }

    /// Marks free VVBNs used, from the volume's cursor on, until there are `blocks` of them or a
    /// map block must be loaded.
    pub(super) fn fill(
        &mut self,
        st: &mut VolState,
        blocks: u64,
        wraps: &mut u32,
    ) -> Result<(), Miss> {
        // Blocks of the two maps that the last VVBN showed to be in memory and noted.
        let mut sure = None;
        while self.ready_count < blocks {
            if st.vvbn_cursor >= st.vvbn_end || st.vvbn_cursor == 0 {
                *wraps += u32::from(st.vvbn_cursor != 0);
                st.vvbn_cursor = 1;
                if *wraps > 2 {
                    return Ok(());
                }
            }
            let (index, bit) = (st.vvbn_cursor / BITS_PER_BLOCK, st.vvbn_cursor % BITS_PER_BLOCK);
            let key = Key::data(index);
            let at_map = |at: TreeMiss| Miss { file: FileId::ActiveMap, key: at.key, ptr: at.ptr };
            st.active_map.reachable(key).map_err(at_map)?;
            let block = st.active_map.peek(key).map_err(at_map)?;
            let Some(free) = block.map_or(Some(bit), |block| first_clear_bit(block, bit)) else {
                st.vvbn_cursor = (index + 1) * BITS_PER_BLOCK;
                continue;
            };
            let vvbn = index * BITS_PER_BLOCK + free;
            if vvbn >= st.vvbn_end || self.freed.contains(vvbn) {
                st.vvbn_cursor = vvbn + 1;
                continue;
            }
            let entry = Key::data(vvbn / CONTAINER_ENTRIES_PER_BLOCK);
            if sure != Some((index, entry.index)) {
                let at_map =
                    |at: TreeMiss| Miss { file: FileId::ContainerMap, key: at.key, ptr: at.ptr };
                st.container_map.reachable(entry).map_err(at_map)?;
                st.container_map.get(entry).map_err(at_map)?;
                self.note(st, index);
                st.container_map.edit(entry.index, |_| ());
                sure = Some((index, entry.index));
            }
            let most = (blocks - self.ready_count)
                .min((entry.index + 1) * CONTAINER_ENTRIES_PER_BLOCK - vvbn)
                .min(st.vvbn_end - vvbn)
                .min(BITS_PER_BLOCK - free);
            let map = st.active_map.peek(key).map_err(at_map)?;
            let most = map.map_or(most, |map| clear_run(map, free, most));
            let count = self.freed.gap(vvbn, most);
            flip_many(st, vvbn, count, true);
            self.taken += count;
            self.ready.push_back((Vvbn::new(vvbn), count));
            self.ready_count += count;
            st.vvbn_cursor = vvbn + count;
        }
        Ok(())
    }

    /// Marks up to `most` VVBNs free, those with one block of the map; says how many.
    pub(super) fn release(
        &mut self,
        st: &mut VolState,
        vvbn: Vvbn,
        most: u64,
    ) -> Result<u64, Miss> {
        let key = Key::data(vvbn.get() / BITS_PER_BLOCK);
        let at_map = |at: TreeMiss| Miss { file: FileId::ActiveMap, key: at.key, ptr: at.ptr };
        st.active_map.reachable(key).map_err(at_map)?;
        st.active_map.peek(key).map_err(at_map)?;
        self.note(st, key.index);
        let count = most.min(BITS_PER_BLOCK - vvbn.get() % BITS_PER_BLOCK);
        flip_many(st, vvbn.get(), count, false);
        self.released += count;
        self.freed.insert_run(vvbn.get(), count);
        Ok(count)
    }

    /// Marks what was not needed free again; the map blocks are dirty already.
    pub(super) fn give_back(&mut self, st: &mut VolState) {
        for (first, count) in core::mem::take(&mut self.ready) {
            flip_many(st, first.get(), count, false);
            self.taken -= count;
        }
        self.ready_count = 0;
    }

    pub(super) fn check(&self, st: &VolState) -> Result<(), (u64, u64)> {
        let mut now = 0;
        for index in self.touched.keys() {
            now += match st.active_map.peek(Key::data(*index)) {
                Ok(block) => block.map_or(0, ones),
                Err(_) => 0,
            };
        }
        let before: u64 = self.touched.values().sum();
        if now + self.released == before + self.taken { Ok(()) } else { Err((before, now)) }
    }
}

pub(crate) fn flip(st: &mut VolState, vvbn: u64, used: bool) {
    flip_many(st, vvbn, 1, used);
}

/// Marks neighbours with one block of the active map.
fn flip_many(st: &mut VolState, first: u64, count: u64, used: bool) {
    let map = &mut st.active_map;
    map.edit(first / BITS_PER_BLOCK, |block| flip_run(block, first % BITS_PER_BLOCK, count, used));
}
