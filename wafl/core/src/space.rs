//! The aggregate's space: which PVBNs are in use, where the next blocks go, and the stripes that
//! are being put together.
//!
//! Layer: allocation; owned by the consistency point, which is the only one to change it. Does no
//! I/O: map blocks that are not in memory are a [`TreeMiss`].
//!
//! # Invariants
//! - A block freed in a consistency point keeps counting as used for allocation until that point
//!   is committed (`freed`).
//! - Every PVBN that [`Space::take`] gave out is filled by exactly one [`Space::put`] before the
//!   root is written.
//! - `used` changes by exactly what the map's bits change by; [`Space::check`] recounts the map
//!   blocks that were touched.
//!
//! Areas: a group's stripes are cut into areas of `area_stripes`; the emptiest area is filled
//! first, a tetris at a time, column by column, so that files lie in runs on one disk and most
//! stripes are written whole. A tetris ends with a region of RAID's, or before.

use cairn_sys::lock::atomic::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use cairn_raid_api::{
    AHEAD_STRIPES_MAX, BlockTag, ColumnState, DataColumn, Geometry, GroupGeometry, StripeWrite,
    Tetris, WriteBlock,
};
use cairn_sys::{Block, mutant};
use cairn_units::{Crc, Pvbn};
use cairn_wafl_format::{AREA_COUNTS_PER_BLOCK, AggregateRoot, BITS_PER_BLOCK, Inode};

use crate::bits::{bit_place, flip_run};
use crate::block_set::{BlockSet, WORD_BLOCKS};
use crate::check::Progress;
use crate::cp::TetrisNo;
use crate::tree::{Key, Tree, TreeMiss};

/// Stripes of a tetris at the most.
pub(crate) const TETRIS_STRIPES_MAX: u64 = 128;
/// The same for one that clients should hardly notice: half a region of RAID's checksums, so that it
/// takes two to write a block of them.
const GENTLE_STRIPES: u64 = 63;
/// Stripes that RAID is told of at once before they are written.
const AHEAD_STRIPES: u64 = 384;
const _: () = assert!(AHEAD_STRIPES <= AHEAD_STRIPES_MAX as u64);
/// Stripes of an allocation area in new aggregates.
pub(crate) const AREA_STRIPES: u32 = 1024;
/// Clean map blocks that stay in memory between consistency points.
const MAP_BLOCKS_KEPT: usize = 16_384;

/// Why no block could be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoBlock {
    /// Load this block of the map first.
    Miss(SpaceFile, TreeMiss),
    /// Nothing is free.
    Full,
}

/// Which file of the aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SpaceFile {
    Map,
    Counts,
    Volumes,
}

#[derive(Debug)]
struct Area {
    group: usize,
    next_stripe: u64,
    end_stripe: u64,
    /// Blocks of it that can still be given out.
    left: u64,
    /// Whole free stripes that RAID was told of, and where that ends.
    ahead: Arc<[u64]>,
    ahead_end: u64,
}

impl Area {
    fn new(group: usize, next_stripe: u64, end_stripe: u64, left: u64) -> Self {
        Self { group, next_stripe, end_stripe, left, ahead: Arc::default(), ahead_end: 0 }
    }
}

#[derive(Debug)]
struct OpenTetris {
    group: usize,
    given: u64,
    filled: u64,
    /// The window has moved on: nothing more is given out from it.
    closed: bool,
    /// One behind the other, from the first on, each with whether a block of it was given out.
    stripes: Vec<(StripeWrite, bool)>,
    blocks: Vec<WriteBlock>,
    ahead: Arc<[u64]>,
}

/// Neighbouring places of one column that can be given out, the first of them in `stripe`.
#[derive(Clone, Copy, Debug)]
struct Free {
    at: Pvbn,
    stripe: u64,
    count: u64,
}

/// Neighbouring places that were given out together: all of them are filled by
/// [`Space::put_run`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Run {
    at: Pvbn,
    count: u64,
    tetris: TetrisNo,
}

impl Run {
    /// The first of them.
    pub fn at(&self) -> Pvbn {
        self.at
    }
    pub fn count(&self) -> u64 {
        self.count
    }
    /// The tetris with which they go.
    pub fn tetris(&self) -> TetrisNo {
        self.tetris
    }
}

/// A place that was given out alone: its tetris.
type Given = (Pvbn, TetrisNo);

/// Blocks held back at the most (they take memory): 32 GiB of data.
#[cfg(not(test))]
const HELD_BLOCKS_MAX: u64 = 8 << 20;
#[cfg(test)]
const HELD_BLOCKS_MAX: u64 = 10_000;

/// Blocks that a committed root reaches and a later one does not, while somebody walks the first.
#[derive(Debug)]
struct Held {
    walk: Arc<Progress>,
    blocks: BlockSet,
}

#[derive(Debug)]
pub(crate) struct Space {
    geometry: Arc<Geometry>,
    /// Version of the geometry that `counts` were read for.
    counts_version: Option<u64>,
    /// Whether blocks are given out on missing columns too, where they exist in parity alone.
    /// Only when the others may not have room enough; it changes between consistency points.
    use_missing: bool,
    area_stripes: u64,
    /// Stripes of a tetris at the most.
    pub tetris_stripes: u64,
    /// Tetrises are to be small: clients' requests must not wait long behind one.
    pub gentle: bool,
    pvbn_end: u64,
    /// Free blocks of each area, by group.
    counts: Vec<Vec<u32>>,
    pub map: Tree,
    pub counts_file: Tree,
    pub volumes: Tree,
    used: u64,
    /// Areas chosen, the one in use first; their map blocks are in memory.
    areas: VecDeque<Area>,
    /// The area that the last consistency point left unfinished.
    resume: Option<Area>,
    window: VecDeque<Free>,
    /// The one that blocks are given out from.
    last_tetris: TetrisNo,
    tetrises: BTreeMap<TetrisNo, OpenTetris>,
    /// Where a given block belongs: the one given last, which is mostly filled next, and others.
    given_last: Option<Given>,
    given: BTreeMap<Pvbn, TetrisNo>,
    /// Blocks given out and not filled.
    unfilled: u64,
    /// Freed in this consistency point.
    freed: BlockSet,
    /// Freed by earlier points and held back for a check, which is told when that ends.
    held: Option<Held>,
    /// Blocks still to be placed, for the depth of the next tetris.
    pub expected: u64,
    done: Vec<(TetrisNo, Tetris)>,
    /// Blocks filled since somebody asked.
    filled: i64,
    /// Bits set in each touched map block before the first change, and the change so far.
    touched: BTreeMap<u64, u64>,
    taken: u64,
    released: u64,
}

fn tree_of(inode: &Inode) -> Tree {
    Tree::new(inode.height, inode.pointers.clone(), inode.blocks)
}

impl Space {
    /// The space of an aggregate that has no root yet.
    pub fn new(geometry: Arc<Geometry>) -> Self {
        Self::with(geometry, AREA_STRIPES, 0, 0, [Tree::empty(), Tree::empty(), Tree::empty()])
    }

    /// The space that a root describes; the counts file must be read next ([`Self::read_counts`]).
    pub fn from_root(geometry: Arc<Geometry>, root: &AggregateRoot) -> Self {
        let trees =
            [tree_of(&root.active_map), tree_of(&root.area_counts), tree_of(&root.volume_table)];
        Self::with(geometry, root.area_stripes, root.pvbn_end, root.used_blocks, trees)
    }

    fn with(
        geometry: Arc<Geometry>,
        area_stripes: u32,
        pvbn_end: u64,
        used: u64,
        [map, counts_file, volumes]: [Tree; 3],
    ) -> Self {
        Self {
            geometry,
            counts_version: None,
            use_missing: false,
            area_stripes: u64::from(area_stripes),
            tetris_stripes: TETRIS_STRIPES_MAX,
            gentle: false,
            pvbn_end,
            counts: Vec::new(),
            map,
            counts_file,
            volumes,
            used,
            areas: VecDeque::new(),
            resume: None,
            window: VecDeque::new(),
            last_tetris: TetrisNo::NONE,
            tetrises: BTreeMap::new(),
            given_last: None,
            given: BTreeMap::new(),
            unfilled: 0,
            freed: BlockSet::default(),
            held: None,
            expected: 0,
            done: Vec::new(),
            filled: 0,
            touched: BTreeMap::new(),
            taken: 0,
            released: 0,
        }
    }

    pub fn file(&mut self, file: SpaceFile) -> &mut Tree {
        match file {
            SpaceFile::Map => &mut self.map,
            SpaceFile::Counts => &mut self.counts_file,
            SpaceFile::Volumes => &mut self.volumes,
        }
    }

    pub fn used(&self) -> u64 {
        self.used
    }
    pub fn pvbn_end(&self) -> u64 {
        self.pvbn_end
    }
    pub fn area_stripes(&self) -> u64 {
        self.area_stripes
    }

    /// Blocks that can surely be given out: where the used ones lie is not known here, so that all
    /// free ones may be on columns that are left out.
    pub fn free_blocks(&self) -> u64 {
        let free = self.all_free_blocks();
        if self.use_missing { free } else { free.saturating_sub(self.missing_blocks()) }
    }

    /// Free blocks of all columns, but for those that are held back.
    fn all_free_blocks(&self) -> u64 {
        let held = self.held.as_ref().map_or(0, |h| h.blocks.len());
        self.geometry.data_blocks().get().saturating_sub(self.used + held)
    }

    fn missing_blocks(&self) -> u64 {
        let missing = |g: &GroupGeometry| {
            let columns = g.data.iter().filter(|c| c.state == ColumnState::Missing).count();
            g.stripes.get() * columns as u64
        };
        self.geometry.groups.iter().map(missing).sum()
    }

    fn is_used(&self, column: &DataColumn) -> bool {
        self.use_missing || column.state != ColumnState::Missing
    }

    /// Reads the free counts of all areas; the file's blocks must be in memory. Columns that are
    /// new since the root was written are added.
    pub fn read_counts(&mut self) -> Result<(), TreeMiss> {
        let mut counts = Vec::new();
        let mut slot = 0u64;
        for group in &self.geometry.groups {
            let areas = group.stripes.get().div_ceil(self.area_stripes);
            let mut of_group = Vec::new();
            for area in 0..areas {
                let stripes = self.stripes_in(group, area);
                let new_columns =
                    group.data.iter().filter(|c| c.pvbn_base.get() >= self.pvbn_end).count();
                let block = self.counts_file.get(Key::data(slot / AREA_COUNTS_PER_BLOCK))?;
                let known = block.map_or(0, |b| count_at(&b, slot % AREA_COUNTS_PER_BLOCK));
                let fresh = u32::try_from(stripes * new_columns as u64).unwrap_or(u32::MAX);
                of_group.push(known + fresh);
                slot += 1;
            }
            counts.push(of_group);
        }
        self.counts = counts;
        self.counts_version = Some(self.geometry.version);
        let end = self.geometry.pvbn_end.get();
        if core::mem::replace(&mut self.pvbn_end, end) != end {
            for block in 0..slot.div_ceil(AREA_COUNTS_PER_BLOCK) {
                self.counts_file.edit(block, |_| ());
            }
        }
        Ok(())
    }

    fn stripes_in(&self, group: &GroupGeometry, area: u64) -> u64 {
        (group.stripes.get() - area * self.area_stripes).min(self.area_stripes)
    }

    /// Takes note of disks that were added, lost or replaced. Between consistency points only.
    pub fn set_geometry(&mut self, geometry: Arc<Geometry>) -> Result<(), TreeMiss> {
        let changed = geometry.version != self.geometry.version;
        self.geometry = geometry;
        let use_missing = self.missing_blocks() > self.all_free_blocks() / 2;
        if changed || use_missing != self.use_missing {
            self.use_missing = use_missing;
            self.areas.clear();
            self.resume = None;
            self.window.clear();
        }
        if self.counts_version == Some(self.geometry.version) {
            return Ok(());
        }
        // The counts file is written with every consistency point, so reading it again gives the
        // present counts; new columns are added on top.
        self.read_counts()
    }

    // ---- choosing ----

    fn emptiest(&self) -> Option<(usize, u64)> {
        let chosen: Vec<(usize, u64)> =
            self.areas.iter().map(|a| (a.group, (a.end_stripe - 1) / self.area_stripes)).collect();
        let mut best: Option<(u32, usize, u64)> = None;
        for (group, areas) in self.counts.iter().enumerate() {
            for (area, count) in (0u64..).zip(areas) {
                let better = best.is_none_or(|(most, _, _)| *count > most);
                if *count > 0 && better && !chosen.contains(&(group, area)) {
                    best = Some((*count, group, area));
                }
            }
        }
        best.map(|(_, group, area)| (group, area))
    }

    /// Makes sure that `blocks` blocks can be given out without a miss.
    pub fn prepare(&mut self, blocks: u64) -> Result<(), NoBlock> {
        let mut skipped = BTreeSet::new();
        loop {
            let window = self.window.iter().map(|free| free.count);
            let ready: u64 = window.chain(self.areas.iter().map(|a| a.left)).sum();
            if ready >= blocks {
                return Ok(());
            }
            if let Some(area) = &self.resume {
                let (group, next, end) = (area.group, area.next_stripe, area.end_stripe);
                let left = self.count_free(group, next, end)?;
                self.areas.push_back(Area::new(group, next, end, left));
                self.resume = None;
                continue;
            }
            let Some((group, area)) = self.emptiest().filter(|at| skipped.insert(*at)) else {
                if self.give_up_hold() {
                    skipped.clear();
                    continue;
                }
                return Err(NoBlock::Full);
            };
            let first = area * self.area_stripes;
            let end = first + self.stripes_in(&self.geometry.groups[group], area);
            let left = self.count_free(group, first, end)?;
            self.areas.push_back(Area::new(group, first, end, left));
        }
    }

    /// Whether each of `count` blocks from `from` on may be given out.
    fn free_bits(&self, from: Pvbn, count: u64) -> Result<Vec<bool>, TreeMiss> {
        let mut out = Vec::with_capacity(usize::try_from(count).unwrap_or_default());
        let (mut at, end) = (from.get(), from.get() + count);
        while at < end {
            let key = Key::data(at / BITS_PER_BLOCK);
            self.map.reachable(key)?;
            let block = self.map.peek(key)?;
            let stop = end.min((key.index + 1) * BITS_PER_BLOCK);
            while at < stop {
                let word = at / WORD_BLOCKS;
                let kept = self.kept_word(word);
                for n in at..stop.min((word + 1) * WORD_BLOCKS) {
                    let (byte, mask) = bit_place(n % BITS_PER_BLOCK);
                    let free = block.is_none_or(|b| b[byte] & mask == 0);
                    out.push(free && n != 0 && kept >> (n % WORD_BLOCKS) & 1 == 0);
                }
                at = stop.min((word + 1) * WORD_BLOCKS);
            }
        }
        Ok(out)
    }

    /// Which free blocks of a word must not be given out yet.
    fn kept_word(&self, word: u64) -> u64 {
        self.freed.word(word) | self.held.as_ref().map_or(0, |h| h.blocks.word(word))
    }

    /// From now on blocks that points free are not given out, until [`Self::release`] or until
    /// space runs short, of which `walk` is told.
    pub fn hold(&mut self, walk: Arc<Progress>) {
        self.held = Some(Held { walk, blocks: BlockSet::default() });
    }

    /// Ends a hold.
    pub fn release(&mut self) {
        self.held = None;
    }

    /// Gives a hold up when its walk was told to stop.
    pub fn drop_stopped_hold(&mut self) {
        if self.held.as_ref().is_some_and(|h| h.walk.stop.load(Ordering::Relaxed)) {
            self.give_up_hold();
        }
    }

    fn give_up_hold(&mut self) -> bool {
        let Some(held) = self.held.take() else { return false };
        held.walk.stop.store(true, Ordering::Relaxed);
        // Areas were counted without the held blocks.
        self.areas.clear();
        self.resume = None;
        true
    }

    /// Blocks of an area that may be given out; asks for its map blocks on the way.
    fn count_free(&self, group: usize, first: u64, end: u64) -> Result<u64, NoBlock> {
        let mut free = 0;
        for column in &self.geometry.groups[group].data {
            // The map of a missing column too: the window looks at it to know whole stripes.
            let run = self.free_bits(column.pvbn_base.plus(first), end - first);
            let run = run.map_err(|m| NoBlock::Miss(SpaceFile::Map, m))?;
            if self.is_used(column) {
                free += run.iter().filter(|f| **f).count() as u64;
            }
        }
        Ok(free)
    }

    /// Opens the next tetris of the area in use.
    fn open_tetris(&mut self) -> Result<(), NoBlock> {
        if let Some(open) = self.tetrises.get_mut(&self.last_tetris) {
            open.closed = true;
            self.finish(self.last_tetris);
        }
        loop {
            let Some(area) = self.areas.front() else { return Err(NoBlock::Full) };
            if area.next_stripe >= area.end_stripe || area.left == 0 {
                self.areas.pop_front();
                continue;
            }
            let (group, first, area_end) = (area.group, area.next_stripe, area.end_stripe);
            let columns = self.geometry.groups[group].data.len().max(1) as u64;
            let region = self.geometry.groups[group].region_stripes.max(1);
            let wanted = self.expected.div_ceil(columns).max(1);
            let region_end = (first / region + 1) * region;
            let gentle = if self.gentle { GENTLE_STRIPES } else { u64::MAX };
            let depth = wanted.min(self.tetris_stripes).min(gentle);
            let end = area_end.min(region_end).min(first + depth);
            let at_map = |m| NoBlock::Miss(SpaceFile::Map, m);
            let told = (end > area.ahead_end).then(|| {
                let end = area_end.min(first + wanted.min(AHEAD_STRIPES));
                self.whole_stripes(group, first, end).map(|ahead| (ahead, end))
            });
            let told = told.transpose().map_err(at_map)?;
            let (window, stripes) = self.window_of(group, first, end).map_err(at_map)?;
            let Some(area) = self.areas.front_mut() else { unreachable!("it was there") };
            area.next_stripe = end;
            area.left -= window.iter().map(|free| free.count).sum::<u64>().min(area.left);
            if let Some(told) = told {
                (area.ahead, area.ahead_end) = told;
            }
            let ahead = area.ahead.clone();
            if window.is_empty() {
                continue;
            }
            self.last_tetris = self.last_tetris.next();
            self.window = window;
            let room = self.window.iter().map(|free| free.count).sum::<u64>();
            let blocks = Vec::with_capacity(usize::try_from(room).unwrap_or_default());
            let (given, filled, closed) = (0, 0, false);
            self.tetrises.insert(
                self.last_tetris,
                OpenTetris { group, given, filled, closed, stripes, blocks, ahead },
            );
            return Ok(());
        }
    }

    /// Stripes of which no block is in use, or was when the committed root was written.
    fn whole_stripes(&self, group: usize, first: u64, end: u64) -> Result<Arc<[u64]>, TreeMiss> {
        let mut whole = vec![true; usize::try_from(end - first).unwrap_or(0)];
        for column in &self.geometry.groups[group].data {
            let run = self.free_bits(column.pvbn_base.plus(first), end - first)?;
            let used = |free: bool| !free && !mutant("stripe-in-use-told-ahead");
            whole.iter_mut().zip(run).for_each(|(whole, free)| *whole &= !used(free));
        }
        Ok((first..end).zip(whole).filter_map(|(stripe, whole)| whole.then_some(stripe)).collect())
    }

    #[expect(clippy::type_complexity, reason = "two halves of one thing, used once")]
    fn window_of(
        &self,
        group: usize,
        first: u64,
        end: u64,
    ) -> Result<(VecDeque<Free>, Vec<(StripeWrite, bool)>), TreeMiss> {
        let mut window = VecDeque::<Free>::new();
        let whole = |stripe| (StripeWrite { stripe, rest_is_free: true }, false);
        let mut stripes: Vec<_> = (first..end).map(whole).collect();
        for column in &self.geometry.groups[group].data {
            let run = self.free_bits(column.pvbn_base.plus(first), end - first)?;
            for ((stripe, free), row) in (first..end).zip(run).zip(&mut stripes) {
                let at = column.pvbn_base.plus(stripe);
                if !free {
                    row.0.rest_is_free = false;
                } else if self.is_used(column) {
                    match window.back_mut() {
                        // Of one column: those of another have other places in the same stripes.
                        Some(run)
                            if run.at.plus(run.count) == at && run.stripe + run.count == stripe =>
                        {
                            run.count += 1;
                        }
                        _ => window.push_back(Free { at, stripe, count: 1 }),
                    }
                }
            }
        }
        Ok((window, stripes))
    }

    /// Gives out a block, and says which tetris it goes with.
    pub fn take(&mut self) -> Result<(Pvbn, TetrisNo), NoBlock> {
        let Run { at, tetris, .. } = self.take_run(1)?;
        self.given.extend(self.given_last.replace((at, tetris)));
        Ok((at, tetris))
    }

    /// Gives out up to `most` blocks that lie side by side, at least one.
    pub fn take_run(&mut self, most: u64) -> Result<Run, NoBlock> {
        while self.window.is_empty() {
            self.prepare(1)?;
            self.open_tetris()?;
        }
        let Some(free) = self.window.front_mut() else { unreachable!("just filled") };
        let (at, stripe, count) = (free.at, free.stripe, free.count.min(most.max(1)));
        *free = Free { at: at.plus(count), stripe: stripe + count, count: free.count - count };
        if free.count == 0 {
            self.window.pop_front();
        }
        let tetris = self.last_tetris;
        let Some(open) = self.tetrises.get_mut(&tetris) else { panic!("the window has a tetris") };
        open.given += count;
        let row = |stripe: u64| usize::try_from(stripe - open.stripes[0].0.stripe);
        let (Ok(first), Ok(end)) = (row(stripe), row(stripe + count)) else {
            panic!("{at:?} has no stripe")
        };
        open.stripes[first..end].iter_mut().for_each(|(_, has)| *has = true);
        let group = open.group;
        self.set_bits_in((at, count), (group, stripe), true);
        self.used += count;
        self.taken += count;
        self.unfilled += count;
        self.expected = self.expected.saturating_sub(count);
        Ok(Run { at, count, tetris })
    }

    fn set_bit(&mut self, at: Pvbn, used: bool) {
        let Some((group, _, stripe)) = self.geometry.locate(at) else {
            panic!("{at:?} is outside the aggregate")
        };
        self.set_bits_in((at, 1), (group, stripe), used);
    }

    /// [`Self::set_bit`] for who knows where the block lies, and so many behind it in the same area:
    /// group and stripe.
    fn set_bits_in(&mut self, (at, count): (Pvbn, u64), (group, stripe): (usize, u64), used: bool) {
        let (mut from, end) = (at.get(), at.get() + count);
        while from < end {
            let stop = end.min((from / BITS_PER_BLOCK + 1) * BITS_PER_BLOCK);
            self.flip_map(from, stop - from, used);
            from = stop;
        }
        let area = stripe / self.area_stripes;
        assert_eq!((stripe + count - 1) / self.area_stripes, area, "one area");
        let slot = usize::try_from(area).unwrap_or(usize::MAX);
        let by = u32::try_from(count).unwrap_or(u32::MAX);
        let left = &mut self.counts[group][slot];
        *left = if used { *left - by } else { *left + by };
        let before: u64 = self.counts[..group].iter().map(|g| g.len() as u64).sum();
        self.counts_file.edit((before + area) / AREA_COUNTS_PER_BLOCK, |_| ());
    }

    /// Marks neighbours with one block of the map.
    fn flip_map(&mut self, first: u64, count: u64, used: bool) {
        let index = first / BITS_PER_BLOCK;
        if !self.touched.contains_key(&index) {
            let before = match self.map.peek(Key::data(index)) {
                Ok(block) => block.map_or(0, ones),
                Err(_) => panic!("map block {index} must be in memory"),
            };
            self.touched.insert(index, before);
        }
        self.map.edit(index, |block| flip_run(block, first % BITS_PER_BLOCK, count, used));
    }

    /// Whether the map block of `at` is in memory, so that [`Self::free`] may run.
    pub fn free_ready(&self, at: Pvbn) -> Result<(), TreeMiss> {
        let key = Key::data(at.get() / BITS_PER_BLOCK);
        self.map.reachable(key)?;
        self.map.peek(key).map(|_| ())
    }

    /// Marks a block free; it is given out again after this consistency point.
    pub fn free(&mut self, at: Pvbn) {
        self.free_run(at, 1);
    }

    /// The same for up to `most` that lie side by side, those with one block of the map and in one area;
    /// says how many.
    pub fn free_run(&mut self, at: Pvbn, most: u64) -> u64 {
        let Some((group, _, stripe)) = self.geometry.locate(at) else {
            panic!("{at:?} is outside the aggregate")
        };
        let area_end = (stripe / self.area_stripes + 1) * self.area_stripes;
        let stripes = self.geometry.groups[group].stripes.get();
        let in_map = BITS_PER_BLOCK - at.get() % BITS_PER_BLOCK;
        let count = most.min(area_end.min(stripes) - stripe).min(in_map);
        self.set_bits_in((at, count), (group, stripe), false);
        self.used -= count;
        self.released += count;
        if !mutant("block-reused-one-cp-early") {
            self.freed.insert_run(at.get(), count);
        }
        // A window computed before never holds them: they were in use then.
        count
    }

    /// Marks block 0 as used, which no pointer can name, if the aggregate has it.
    pub fn reserve_zero(&mut self) {
        if self.geometry.locate(Pvbn::new(0)).is_none() {
            return;
        }
        self.set_bit(Pvbn::new(0), true);
        self.used += 1;
        self.taken += 1;
    }

    // ---- repairs, between consistency points ----

    /// Marks a block the other way, if the map still says `marked`. Its map block is in memory.
    pub fn correct_mark(&mut self, at: Pvbn, marked: bool) -> bool {
        let Ok(block) = self.map.peek(Key::data(at.get() / BITS_PER_BLOCK)) else { return false };
        let (byte, mask) = bit_place(at.get() % BITS_PER_BLOCK);
        let now = block.is_some_and(|b| b[byte] & mask != 0);
        if now != marked || self.geometry.locate(at).is_none() {
            return false;
        }
        if marked {
            self.free(at);
        } else {
            self.set_bit(at, true);
            self.used += 1;
            self.taken += 1;
        }
        // Windows and areas were chosen by the map as it was.
        self.areas.clear();
        self.resume = None;
        true
    }

    /// Adds to the free count of an area, by its number over all groups.
    pub fn correct_area(&mut self, area: u64, by: i64) -> bool {
        let Some(at) = usize::try_from(area).ok() else { return false };
        let Some(count) = self.counts.iter_mut().flatten().nth(at) else { return false };
        let right = i64::from(*count) + by;
        *count = u32::try_from(right).unwrap_or(0);
        self.counts_file.edit(area / AREA_COUNTS_PER_BLOCK, |_| ());
        true
    }

    /// Adds to the count of blocks in use.
    pub fn correct_used(&mut self, by: i64) {
        self.used = self.used.saturating_add_signed(by);
    }

    /// Fills a block that was given out.
    pub fn put(&mut self, at: Pvbn, data: Block, crc: Crc, tag: BlockTag) {
        let last = self.given_last.take_if(|(last, _)| *last == at).map(|(_, tetris)| tetris);
        let Some(tetris) = last.or_else(|| self.given.remove(&at)) else {
            panic!("{at:?} was not given out")
        };
        self.put_run(Run { at, count: 1, tetris }, [(data, crc, tag)].into_iter());
    }

    /// Fills blocks that were given out together.
    ///
    /// # Panics
    /// When there are not as many of them.
    pub fn put_run(&mut self, run: Run, blocks: impl Iterator<Item = (Block, Crc, BlockTag)>) {
        let Run { at, count, tetris } = run;
        let Some(open) = self.tetrises.get_mut(&tetris) else { panic!("{at:?} has no tetris") };
        let before = open.blocks.len();
        let block = |(n, (data, crc, tag))| WriteBlock { at: at.plus(n), data, crc, tag };
        open.blocks.extend((0..).zip(blocks).map(block));
        assert_eq!((open.blocks.len() - before) as u64, count, "blocks from {at:?} on");
        open.filled += count;
        self.unfilled -= count;
        self.filled += i64::try_from(count).unwrap_or(i64::MAX);
        self.finish(tetris);
    }

    fn finish(&mut self, id: TetrisNo) {
        let ready = self.tetrises.get(&id).is_some_and(|o| o.closed && o.filled == o.given);
        if ready && let Some(open) = self.tetrises.remove(&id) {
            let has_blocks = |(stripe, has): (StripeWrite, bool)| has.then_some(stripe);
            let stripes: Vec<StripeWrite> =
                open.stripes.into_iter().filter_map(has_blocks).collect();
            assert!(
                !stripes.is_empty(),
                "a tetris is opened for a block that is given out at once"
            );
            let (blocks, ahead) = (open.blocks, open.ahead);
            let group = self.geometry.groups[open.group].group;
            self.done.push((id, Tetris { group, stripes, blocks, ahead }));
        }
    }

    /// Tetrises that are complete.
    pub fn take_done(&mut self) -> Vec<(TetrisNo, Tetris)> {
        core::mem::take(&mut self.done)
    }

    /// Blocks filled since this was asked last.
    pub fn take_filled(&mut self) -> i64 {
        core::mem::take(&mut self.filled)
    }

    /// Ends the consistency point's allocation: everything given out must have been filled.
    pub fn close(&mut self) {
        self.given.extend(self.given_last.take());
        assert!(self.unfilled == 0, "{} blocks were given out and not filled", self.unfilled);
        self.window.clear();
        let ids: Vec<TetrisNo> = self.tetrises.keys().copied().collect();
        for id in ids {
            if let Some(open) = self.tetrises.get_mut(&id) {
                open.closed = true;
            }
            self.finish(id);
        }
    }

    /// Recounts the map blocks that this consistency point touched: whether they changed by what
    /// was taken and released.
    pub fn check(&self) -> Result<(), (u64, u64)> {
        let mut now = 0;
        for index in self.touched.keys() {
            now += match self.map.peek(Key::data(*index)) {
                Ok(block) => block.map_or(0, ones),
                Err(_) => 0,
            };
        }
        let before: u64 = self.touched.values().sum();
        if now + self.released == before + self.taken { Ok(()) } else { Err((before, now)) }
    }

    /// Memory rots: a bit of a map block that this consistency point touched is another.
    #[cfg(test)]
    pub fn rot(&mut self) {
        let at = self.pvbn_end - 1;
        let index = at / BITS_PER_BLOCK;
        let before = self.map.peek(Key::data(index)).map_or(0, |b| b.map_or(0, ones));
        self.touched.entry(index).or_insert(before);
        self.map.edit(index, |block| block[bit_place(at % BITS_PER_BLOCK).0] ^= 1);
    }

    /// Content of a block of the counts file.
    pub fn counts_block(&self, index: u64) -> Block {
        let mut block = cairn_sys::BlockMut::zeroed();
        let from = usize::try_from(index * AREA_COUNTS_PER_BLOCK).unwrap_or(usize::MAX);
        let all = self.counts.iter().flatten().skip(from);
        for (bytes, count) in block.chunks_exact_mut(4).zip(all) {
            bytes.copy_from_slice(&count.to_le_bytes());
        }
        block.freeze()
    }

    /// The point is committed: what it freed may be given out.
    pub fn committed(&mut self) {
        match &mut self.held {
            Some(held) if !mutant("held-blocks-given-out") => held.blocks.append(&mut self.freed),
            _ => self.freed.clear(),
        }
        if self.held.as_ref().is_some_and(|h| h.blocks.len() > HELD_BLOCKS_MAX) {
            self.give_up_hold();
        }
        self.touched.clear();
        self.taken = 0;
        self.released = 0;
        // Areas were chosen by their counts then; choose afresh, the one in use excepted.
        self.resume = self.areas.pop_front().filter(|a| a.next_stripe < a.end_stripe);
        self.areas.clear();
        let written = self.last_tetris.next();
        self.map.trim(MAP_BLOCKS_KEPT, written);
        self.volumes.trim(0, written);
    }
}

/// Entry of a block of the counts file.
pub(crate) fn count_at(block: &Block, slot: u64) -> u32 {
    let at = usize::try_from(slot).unwrap_or_default() * 4;
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&block[at..at + 4]);
    u32::from_le_bytes(bytes)
}

/// Bits set in a map block.
pub(crate) fn ones(block: &Block) -> u64 {
    block
        .chunks_exact(8)
        .map(|c| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(c);
            u64::from(u64::from_le_bytes(bytes).count_ones())
        })
        .sum()
}
