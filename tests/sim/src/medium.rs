//! The medium of a simulated disk: what is durable, what is only accepted, and its faults.
//!
//! Layer: simulator, below [`crate::SimDisk`]. Outlives power cuts and handles.
//!
//! ```text
//! write: start ─→ inflight ─(latency)─→ unflushed + visible ─flush done─→ durable
//! stable write: start ─→ inflight ─(latency)─→ durable + visible; others stay unflushed
//! power_cut:      inflight and unflushed: kept, dropped, torn or reordered ─→ durable = visible
//! ```
//! Invariant: `current` is `durable` with `unflushed` applied in order of completion (but for
//! rot, which strikes both).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use cairn_raid_disk::{DiskCounters, DiskError, DiskInfo};
use cairn_sys::{Block, BlockMut};
use cairn_units::{BLOCK_BYTES, Blocks, Dbn};

use crate::disk::{CutPolicy, DiskImage, SimDiskConfig};
use crate::exec::{Event, Inner, lock};
use crate::rng::Rng;

/// What a torn write is torn at.
const SECTOR_BYTES: usize = 512;

/// A write that the medium may lose.
#[derive(Clone)]
pub(crate) struct PendingWrite {
    pub(crate) at: u64,
    pub(crate) blocks: Vec<Block>,
    /// Order of completion; 0 while in flight.
    done_seq: u64,
}

/// What is wrong with the disk.
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) bad_reads: BTreeSet<u64>,
    pub(crate) bad_writes: BTreeSet<u64>,
    pub(crate) lost_writes: BTreeSet<u64>,
    pub(crate) misdirected: BTreeMap<u64, u64>,
    pub(crate) fail_at: BTreeMap<u64, DiskError>,
    pub(crate) slow_factor: u64,
    pub(crate) hung: bool,
    pub(crate) dead: bool,
    pub(crate) fenced: bool,
    pub(crate) host_full_at: Option<u64>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) generation: u64,
    current: BTreeMap<u64, Block>,
    durable: BTreeMap<u64, Block>,
    unflushed: Vec<PendingWrite>,
    inflight: BTreeMap<u64, PendingWrite>,
    /// Flush request → completions that it makes durable.
    flushing: BTreeMap<u64, u64>,
    next_request: u64,
    done_seq: u64,
    pub(crate) requests: u64,
    pub(crate) faults: Faults,
    pub(crate) counters: DiskCounters,
}

pub(crate) struct Medium {
    pub(crate) config: SimDiskConfig,
    pub(crate) world: Arc<Inner>,
    pub(crate) state: Mutex<State>,
}

impl Medium {
    pub(crate) fn new(config: SimDiskConfig, world: Arc<Inner>) -> Self {
        Self { config, world, state: Mutex::new(State::default()) }
    }

    pub(crate) fn info(&self) -> DiskInfo {
        DiskInfo {
            location: self.config.location.clone(),
            class: cairn_raid_disk::DiskClass::Simulated,
            blocks: self.config.blocks,
        }
    }

    /// The end of the power supply: settles every unflushed write and voids old handles.
    pub(crate) fn power_cut(&self, policy: &CutPolicy) {
        let mut state = lock(&self.state);
        state.generation += 1;
        let world = self.world.clone();
        world.with_rng(|rng| state.settle(policy, rng));
        for (at, block) in &state.durable {
            self.world.event(Event::Kept, *at, u64::from(crc32fast::hash(&block[..])));
        }
    }

    /// The end of the program: requests under way happen or not, nothing is flushed by it.
    pub(crate) fn process_death(&self) {
        let mut state = lock(&self.state);
        state.generation += 1;
        state.flushing.clear();
        let mut under_way: Vec<u64> = state.inflight.keys().copied().collect();
        self.world.with_rng(|rng| {
            rng.shuffle(&mut under_way);
            under_way.retain(|_| !rng.one_in(3));
        });
        for request in under_way {
            state.finish_write(request);
        }
        state.inflight.clear();
        state.faults.hung = false;
    }

    pub(crate) fn image(&self) -> DiskImage {
        let state = lock(&self.state);
        DiskImage { current: state.current.clone(), durable: state.durable.clone() }
    }

    /// Replaces the contents; unflushed writes and requests under way are forgotten.
    pub(crate) fn restore(&self, image: &DiskImage) {
        let mut state = lock(&self.state);
        state.generation += 1;
        state.unflushed.clear();
        state.inflight.clear();
        state.flushing.clear();
        state.current = image.durable.clone();
        state.durable = image.durable.clone();
    }

    pub(crate) fn unflushed(&self) -> Vec<(Dbn, Blocks)> {
        let state = lock(&self.state);
        let all = state.unflushed.iter().chain(state.inflight.values());
        all.map(|w| (Dbn::new(w.at), Blocks::new(w.blocks.len() as u64))).collect()
    }
}

impl State {
    /// Registers a request that may change the medium; its number.
    pub(crate) fn start_request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }
    pub(crate) fn start_write(&mut self, request: u64, at: u64, blocks: Vec<Block>) {
        self.inflight.insert(request, PendingWrite { at, blocks, done_seq: 0 });
    }
    pub(crate) fn start_flush(&mut self, request: u64) {
        self.flushing.insert(request, self.done_seq);
    }
    /// The device has taken the write: visible, not durable.
    pub(crate) fn finish_write(&mut self, request: u64) {
        let Some(mut write) = self.inflight.remove(&request) else { return };
        let range = write.at..write.at + write.blocks.len() as u64;
        if let Some(lost) = first_in(&self.faults.lost_writes, &range) {
            self.faults.lost_writes.remove(&lost);
            return;
        }
        let struck = self.faults.misdirected.range(range.clone()).next().map(|(k, v)| (*k, *v));
        if let Some((asked, landed)) = struck {
            self.faults.misdirected.remove(&asked);
            write.at = landed;
        } else {
            self.faults.bad_reads.retain(|at| !range.contains(at));
        }
        self.done_seq += 1;
        write.done_seq = self.done_seq;
        for (at, block) in (write.at..).zip(&write.blocks) {
            self.current.insert(at, block.clone());
        }
        self.unflushed.push(write);
    }

    /// The device has taken the write and made it durable: this one, and what of the others it
    /// overwrites.
    pub(crate) fn finish_stable(&mut self, request: u64) {
        let before = self.done_seq;
        self.finish_write(request);
        if self.done_seq == before {
            return;
        }
        let Some(stable) = self.unflushed.pop() else { return };
        let end = |w: &PendingWrite| w.at + w.blocks.len() as u64;
        let overlaps = |w: &mut PendingWrite| w.at < end(&stable) && stable.at < end(w);
        // What lay below it in the cache cannot come back over it.
        let below: Vec<PendingWrite> = self.unflushed.extract_if(.., overlaps).collect();
        for write in below.into_iter().chain([stable]) {
            self.keep(write);
        }
    }

    pub(crate) fn finish_flush(&mut self, request: u64) {
        let Some(upto) = self.flushing.remove(&request) else { return };
        self.make_durable(upto);
    }

    fn make_durable(&mut self, upto: u64) {
        let split = self.unflushed.partition_point(|w| w.done_seq <= upto);
        for write in self.unflushed.drain(..split) {
            for (at, block) in (write.at..).zip(write.blocks) {
                self.durable.insert(at, block);
            }
        }
    }

    pub(crate) fn read_into(&self, at: u64, bufs: &mut [BlockMut]) {
        for (at, buf) in (at..).zip(bufs) {
            match self.current.get(&at) {
                Some(block) => buf.copy_from_slice(&block[..]),
                None => buf.fill(0),
            }
        }
    }

    /// Blocks of the range that hold something: what a discard may turn into zeros.
    pub(crate) fn held(&self, at: u64, count: u64) -> Vec<u64> {
        self.current.range(at..at + count).map(|(at, _)| *at).collect()
    }

    /// Blocks that are not yet allocated among those that a write covers.
    pub(crate) fn would_allocate(&self, at: u64, count: u64) -> u64 {
        count - self.current.range(at..at + count).count() as u64
    }
    pub(crate) fn allocated(&self) -> u64 {
        self.current.len() as u64
    }

    /// Flips one bit, durably and silently.
    pub(crate) fn rot(&mut self, at: u64, bit: u64) {
        let byte = usize::try_from(bit / 8).unwrap_or(0) % BLOCK_BYTES;
        let mask = 1u8 << (bit % 8);
        for map in [&mut self.current, &mut self.durable] {
            let block = map.entry(at).or_insert_with(Block::zero);
            block.make_mut()[byte] ^= mask;
        }
        // A flush still to come must not heal it.
        for write in &mut self.unflushed {
            let index = at.checked_sub(write.at).and_then(|i| usize::try_from(i).ok());
            if let Some(block) = index.and_then(|i| write.blocks.get_mut(i)) {
                block.make_mut()[byte] ^= mask;
            }
        }
    }

    pub(crate) fn settle(&mut self, policy: &CutPolicy, rng: &mut Rng) {
        self.counters = DiskCounters::default();
        self.faults.hung = false;
        let flushes: Vec<u64> = core::mem::take(&mut self.flushing).into_values().collect();
        let mut pending;
        match policy {
            CutPolicy::Seeded => {
                for upto in flushes {
                    if rng.one_in(2) {
                        self.make_durable(upto);
                    }
                }
                pending = self.take_pending();
                if rng.one_in(2) {
                    rng.shuffle(&mut pending);
                }
                // Sometimes the cache was written back whole, sometimes not at all.
                let mood = rng.below(4);
                for write in pending {
                    match mood {
                        0 => {}
                        1 => self.keep(write),
                        _ => self.seeded_fate(write, rng),
                    }
                }
            }
            CutPolicy::DropAll => drop(self.take_pending()),
            CutPolicy::KeepAll => {
                for write in self.take_pending() {
                    self.keep(write);
                }
            }
            CutPolicy::Keep(indices) => {
                for (i, write) in self.take_pending().into_iter().enumerate() {
                    if indices.contains(&i) {
                        self.keep(write);
                    }
                }
            }
        }
        self.current = self.durable.clone();
    }

    fn take_pending(&mut self) -> Vec<PendingWrite> {
        let mut pending = core::mem::take(&mut self.unflushed);
        pending.extend(core::mem::take(&mut self.inflight).into_values());
        pending
    }

    fn keep(&mut self, write: PendingWrite) {
        for (at, block) in (write.at..).zip(write.blocks) {
            self.durable.insert(at, block);
        }
    }

    fn seeded_fate(&mut self, write: PendingWrite, rng: &mut Rng) {
        match rng.below(4) {
            0 => {}
            1 => self.keep(write),
            2 => {
                // A front part arrived, up to a sector.
                let sectors = write.blocks.len() * (BLOCK_BYTES / SECTOR_BYTES);
                let cut = rng.index(sectors + 1);
                self.tear(&write, |sector| sector < cut);
            }
            _ => self.tear(&write, |_| rng.one_in(2)),
        }
    }

    /// Keeps the sectors (counted from the start of the write) that `kept` names.
    fn tear(&mut self, write: &PendingWrite, mut kept: impl FnMut(usize) -> bool) {
        let per_block = BLOCK_BYTES / SECTOR_BYTES;
        for (i, (at, new)) in (write.at..).zip(&write.blocks).enumerate() {
            let fates: Vec<bool> = (0..per_block).map(|s| kept(i * per_block + s)).collect();
            if fates.iter().all(|k| !k) {
                continue;
            }
            let old = self.durable.entry(at).or_insert_with(Block::zero);
            let bytes = old.make_mut();
            for (s, _) in fates.iter().enumerate().filter(|(_, k)| **k) {
                let range = s * SECTOR_BYTES..(s + 1) * SECTOR_BYTES;
                bytes[range.clone()].copy_from_slice(&new[range]);
            }
        }
    }
}

pub(crate) fn first_in(set: &BTreeSet<u64>, range: &core::ops::Range<u64>) -> Option<u64> {
    set.range(range.clone()).next().copied()
}
