//! Writing stripes: choose what to read, compute parity, log, write.
//!
//! Layer: over stripes and the stripe log. A write runs in a task of its own, so that a caller
//! who goes away leaves no half-written stripe. Invariants: nothing of a stripe is overwritten
//! before its record is stable; parity is computed from verified blocks only; a disk that missed
//! a write is out, stably, before the write is acknowledged.

use cairn_sys::lock::atomic::Ordering;
use std::sync::Arc;

use cairn_raid_api::{AHEAD_STRIPES_MAX, ReadError, StripeWrite, Tetris, WriteError};
use cairn_raid_parity::{Bytes, Column};
use cairn_sys::{Block, mutant};
use cairn_units::{GroupNo, Pvbn};

use crate::code::{Code, Parity, Spare};
use crate::core::{Core, Interval, Purpose, Writes, count};
use crate::grid::Grid;
use crate::layout::STRIPE_LOG_BLOCKS_MIN;
use crate::member::Member;
use crate::ondisk::{ENTRY_RECORDS_MAX, REGION_STRIPES, crc_of};
use crate::stamps::{StampKind, stamp_parity, stamp_written};
use crate::stripe::{Solved, StampSet, StripeCells, parity_slots, solve};
use crate::stripe_log::{DiskMark, Record, Rest, TwinRecord, has_bit, log_blocks, set_bit};
use crate::view::{GroupView, View};

/// Stripes handled at once, and stripe log blocks that they may take.
const CHUNK_STRIPES_MAX: usize = 256;
const CHUNK_LOG_BLOCKS_MAX: u64 = 128;
const _: () = assert!(
    CHUNK_LOG_BLOCKS_MAX
        + (CHUNK_STRIPES_MAX + AHEAD_STRIPES_MAX).div_ceil(ENTRY_RECORDS_MAX) as u64
        <= STRIPE_LOG_BLOCKS_MIN
);

/// How the new parity of a stripe is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// Everything in the stripe is new, or free.
    Full,
    /// Read the blocks that stay.
    Keep,
    /// Read the blocks that go, and parity.
    Delta,
    /// Read everything, because something is lost.
    All,
}

/// What the jobs of a chunk are about.
#[derive(Clone, Copy)]
struct Chunk<'c> {
    group: &'c GroupView,
    stamps: &'c StampSet,
    /// The new blocks.
    new: &'c Grid,
}

/// One stripe under way.
struct Job {
    stripe: u64,
    /// Its row in the grid of new blocks.
    row: usize,
    /// Slots modified earlier in this flush interval.
    before: [u64; 4],
    path: Path,
    /// The unmodified columns are all zeros.
    rest_zero: bool,
}

/// What a job comes to.
struct Outcome {
    parity: Parity,
    rest: Rest,
    /// The whole stripe as it was, when it had to be solved: bad blocks that stay are rewritten.
    old: Option<Solved>,
}

impl Core {
    pub(crate) async fn write_tetris(self: &Arc<Self>, tetris: Tetris) -> Result<(), WriteError> {
        let Tetris { group, stripes, blocks, ahead } = tetris;
        let mut new = Grid::new(self.view().groups.get(&group), &stripes, blocks)?;
        let (mut from, mut log) = (0, 1);
        for (row, stripe) in stripes.iter().enumerate() {
            let more = if stripe.rest_is_free { 0 } else { 2 };
            if row - from >= CHUNK_STRIPES_MAX || log + more > CHUNK_LOG_BLOCKS_MAX {
                self.write_chunk(group, (&stripes[from..row], from), &mut new, &ahead).await?;
                (from, log) = (row, 1);
            }
            log += more;
        }
        self.write_chunk(group, (&stripes[from..], from), &mut new, &ahead).await
    }

    /// Writes some stripes of a tetris, the first of which has row `first_row` of `new`.
    async fn write_chunk(
        self: &Arc<Self>,
        group: GroupNo,
        (stripes, first_row): (&[StripeWrite], usize),
        new: &mut Grid,
        ahead: &[u64],
    ) -> Result<(), WriteError> {
        let Some(first) = stripes.first().map(|s| s.stripe) else { return Ok(()) };
        let ahead = &ahead[ahead.partition_point(|s| *s < first)..];
        let ahead = &ahead[..ahead.len().min(AHEAD_STRIPES_MAX)];
        let partial = stripes.iter().filter(|s| !s.rest_is_free).count();
        let room = log_blocks(stripes.len() + ahead.len(), 2 * partial);
        let interval = loop {
            let shared = self.interval.read().await;
            if !self.stamps_full() && self.log.reserve(room) {
                break shared;
            }
            drop(shared);
            self.flush_interval().await?;
        };
        let mut regions: Vec<u64> = stripes.iter().map(|s| s.stripe / REGION_STRIPES).collect();
        regions.dedup();
        let _held = self.locks.acquire(group, regions.iter().copied()).await;
        let view = self.view();
        let Some(group) = view.groups.get(&group) else {
            return Err(WriteError::GroupFailed { group, lost: 0, parity: 0 });
        };
        self.check_group(group)?;
        if !new.fits(group) {
            let at = group.slots.first().map_or(Pvbn::new(0), |slot| slot.pvbn_base.plus(first));
            return Err(WriteError::BadAddress { at });
        }
        let mut stamps = self.load_stamps(group, &regions).await;
        self.drop_mute_disks(group, &mut stamps, &regions);

        let chunk = Chunk { group, stamps: &stamps, new };
        let mut jobs: Vec<Job> = {
            let marks = interval.marks.lock();
            let mut marks = marks.from(group.group, first);
            let rows = stripes.iter().zip(first_row..);
            rows.map(|(s, row)| Job::new(chunk, *s, row, marks.mask(s.stripe))).collect()
        };
        let computed = self.compute(chunk, &mut jobs).await;
        if computed.is_err() {
            // Disks that died just now explain more than the stripe that missed them.
            self.settle().await?;
        }
        let (cells, mut outcomes) = computed?;
        let mut fresh = FreshOf::new(group, &stamps);
        let records: Vec<Record> = jobs
            .iter()
            .zip(&mut outcomes)
            .map(|(job, outcome)| {
                let rest = core::mem::replace(&mut outcome.rest, Rest::None);
                job.record(chunk, fresh.of(job.stripe), rest)
            })
            .collect();
        self.log_stripes(&interval, group, records, ahead, room).await?;
        let mut writes = Writes::default();
        self.stage_jobs((group, &stamps), new, (&jobs, outcomes, cells), &mut writes);
        self.seal_stamps(&stamps, &mut writes);
        self.write_many(writes, Purpose::NewData).await;
        self.settle().await?;
        drop(interval);
        let view: Arc<View> = self.view();
        view.groups.get(&group.group).map_or(Ok(()), |g| self.check_group(g))
    }

    /// Makes records of stripes stable that are not yet, and with them those of stripes that are
    /// to be written soon. `room` blocks of the log were set aside.
    async fn log_stripes(
        self: &Arc<Self>,
        interval: &Interval,
        group: &GroupView,
        mut records: Vec<Record>,
        ahead: &[u64],
        room: u64,
    ) -> Result<(), WriteError> {
        let mut taken = 0;
        let logged = self.log_new(interval, group, &mut records, ahead, &mut taken).await;
        self.log.give_back(room.saturating_sub(taken));
        logged
    }

    /// The same; `taken` becomes what it took of the room.
    async fn log_new(
        self: &Arc<Self>,
        interval: &Interval,
        group: &GroupView,
        records: &mut Vec<Record>,
        ahead: &[u64],
        taken: &mut u64,
    ) -> Result<(), WriteError> {
        // The records are in the order of their stripes.
        let leave_new = |records: &mut Vec<Record>| {
            let Some(first) = records.first().map(|r| r.stripe) else { return };
            let marks = interval.marks.lock();
            let mut marks = marks.from(group.group, first);
            records.retain(|record| !marks.has(record));
        };
        leave_new(records);
        let mut _held = None;
        if !records.is_empty() && !ahead.is_empty() {
            // Who waited here finds most of its stripes logged by the one it waited for.
            _held = Some(interval.ahead.lock().await);
            leave_new(records);
            if !records.is_empty() {
                let mut more = self.records_ahead(group, ahead, records).await;
                leave_new(&mut more);
                records.append(&mut more);
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let begun: Vec<_> = {
            let mut marks = interval.marks.lock();
            records.iter().map(|record| (record.stripe, marks.begin(record))).collect()
        };
        let payload: usize = records.iter().map(Record::payload_blocks).sum();
        *taken = log_blocks(records.len(), payload);
        self.log_append(std::mem::take(records)).await?;
        let mut marks = interval.marks.lock();
        for (stripe, bare) in begun {
            marks.believe(group.group, stripe, bare);
        }
        Ok(())
    }

    /// Records of stripes that nothing lies in, but for those that have one already.
    async fn records_ahead(
        self: &Arc<Self>,
        group: &GroupView,
        ahead: &[u64],
        records: &[Record],
    ) -> Vec<Record> {
        let own = |stripe: u64| records.binary_search_by_key(&stripe, |r| r.stripe).is_ok();
        let others = ahead.iter().copied().filter(|s| *s < group.stripes && !own(*s));
        let others: Vec<u64> = others.collect();
        let mut regions: Vec<u64> = others.iter().map(|s| s / REGION_STRIPES).collect();
        regions.dedup();
        let stamps = self.load_stamps(group, &regions).await;
        let mut fresh = FreshOf::new(group, &stamps);
        let mut mask = [0; 4];
        for slot in group.slots.iter().take(group.width()) {
            set_bit(&mut mask, slot.column.get());
        }
        let record = |stripe: u64| {
            let Freshness { fresh, twin } = fresh.of(stripe);
            Record { group: group.group, stripe, mask, fresh, twin, rest: Rest::None }
        };
        others.into_iter().map(record).collect()
    }

    /// Whether so many checksum blocks changed that they must be flushed first.
    fn stamps_full(&self) -> bool {
        self.stamps.dirty_regions() > crate::DIRTY_REGIONS_MAX
    }

    pub(crate) fn check_group(&self, group: &GroupView) -> Result<(), WriteError> {
        if self.fenced.load(Ordering::Acquire) {
            return Err(WriteError::Fenced);
        }
        if group.failed() {
            let (lost, parity) = (group.lost(), group.parity());
            return Err(WriteError::GroupFailed { group: group.group, lost, parity });
        }
        Ok(())
    }

    /// A disk whose stamps cannot be read cannot take part in a write: it would miss it.
    pub(crate) fn drop_mute_disks(
        &self,
        group: &GroupView,
        stamps: &mut StampSet,
        regions: &[u64],
    ) {
        for (i, slot) in group.slots.iter().enumerate() {
            let mute =
                |member: &&Arc<Member>| regions.iter().any(|r| !stamps.has(i, *r, member.uuid));
            let disk = slot.writable().filter(mute);
            let twin = slot.twin().map(|t| &t.member).filter(mute);
            for member in disk.into_iter().chain(twin) {
                self.kill(member);
            }
            if disk.is_some() {
                stamps.leave_to_twin(i);
            }
        }
    }

    /// Reads what the jobs need and computes their parity. There are no cells when they need nothing.
    async fn compute(
        self: &Arc<Self>,
        chunk: Chunk<'_>,
        jobs: &mut [Job],
    ) -> Result<(Vec<StripeCells>, Vec<Outcome>), WriteError> {
        let mut cells = Vec::new();
        if jobs.iter().any(|job| job.path != Path::Full) {
            let slots = chunk.group.slots.len();
            let of = |job: &Job| if job.path == Path::Full { 0 } else { slots };
            cells.extend(jobs.iter().map(|job| StripeCells::new(job.stripe, of(job))));
            self.read_needed(chunk, jobs, &mut cells).await;
        }
        let none = StripeCells::new(0, 0);
        let mut outcomes = Vec::with_capacity(jobs.len());
        let mut work = Work::new(chunk.group.code, jobs.len());
        for (i, job) in jobs.iter().enumerate() {
            work.next.clear();
            let next = jobs.get(i + 1).into_iter().flat_map(|next| chunk.new.row(next.row));
            work.next.extend(next.map(|(_, block)| &*block.data));
            outcomes.push(job.outcome(chunk, cells.get(i).unwrap_or(&none), &mut work)?);
        }
        Ok((cells, outcomes))
    }

    /// Reads what the jobs need into their cells; a job that does not get it is to be solved.
    async fn read_needed(
        self: &Arc<Self>,
        chunk: Chunk<'_>,
        jobs: &mut [Job],
        cells: &mut [StripeCells],
    ) {
        let Chunk { group, stamps, .. } = chunk;
        let needs = |i: usize, slot: usize| jobs[i].needs(chunk, slot);
        let mut asked = self.read_cells(group, stamps, cells, needs).await;
        let mut again = false;
        for (job, cells) in jobs.iter_mut().zip(&*cells) {
            let mut slots = cells.cells.iter().enumerate();
            if !slots.all(|(slot, cell)| !job.needs(chunk, slot) || cell.good().is_some()) {
                job.path = Path::All;
                again = true;
            }
        }
        if again {
            let all = |i: usize, _slot: usize| jobs[i].path == Path::All;
            asked += self.read_cells(group, stamps, cells, all).await;
        }
        count(&self.counters.parity_read_blocks, asked);
    }

    /// Stages everything that the jobs write: slot by slot, since those of one disk's region share
    /// their stamps.
    fn stage_jobs(
        &self,
        (group, stamps): (&GroupView, &StampSet),
        new: &mut Grid,
        (jobs, outcomes, mut cells): (&[Job], Vec<Outcome>, Vec<StripeCells>),
        writes: &mut Writes,
    ) {
        let (mut data, mut fill, mut parity, mut repaired) = (0, 0, 0, 0);
        for (job, cells) in jobs.iter().zip(&mut cells) {
            new.row(job.row).for_each(|(slot, _)| cells.settle(slot));
        }
        let same_region = |a: &Job, b: &Job| a.region() == b.region();
        let (mut outcomes, mut cells) = (&outcomes[..], &mut cells[..]);
        for jobs in jobs.chunk_by(same_region) {
            let (region, cells_here) = (jobs[0].region(), jobs.len().min(cells.len()));
            let (outcomes, cells) = (
                outcomes.split_off(..jobs.len()).unwrap_or_default(),
                cells.split_off_mut(..cells_here).unwrap_or_default(),
            );
            for i in 0..group.width() {
                let Some(entry) = stamps.of_region(i, region) else { continue };
                let (mut entry, slot) = (entry.lock(), writes.slot(i, jobs.len()));
                for job in jobs {
                    let stripe = job.stripe;
                    if let Some(block) = new.take(i, job.row) {
                        entry.set(stripe, stamp_written(block.crc, block.tag));
                        slot.put(stripe, block.data);
                        data += 1;
                    } else if job.path == Path::Full && !entry.get(stripe).is_zero() {
                        entry.set(stripe, Default::default());
                        slot.touch(stripe);
                        fill += 1;
                    }
                }
            }
            for (i, diagonal) in parity_slots(group) {
                cells.iter_mut().for_each(|cells| cells.settle(i));
                let entry = stamps.of_region(i, region);
                let Some(entry) = entry.filter(|_| !(diagonal && mutant("diagonal-parity-stale")))
                else {
                    continue;
                };
                let (mut entry, slot) = (entry.lock(), writes.slot(i, jobs.len()));
                for (job, outcome) in jobs.iter().zip(outcomes) {
                    let of = &outcome.parity;
                    let Some(block) = (if diagonal { of.diagonal.as_ref() } else { Some(&of.row) })
                    else {
                        continue;
                    };
                    entry.set(job.stripe, stamp_parity(crc_of(block)));
                    slot.put(job.stripe, block.clone());
                    parity += 1;
                }
            }
            for (outcome, cells) in outcomes.iter().zip(&*cells) {
                if let Some(old) = &outcome.old {
                    repaired += self.stage_repairs(group, stamps, cells, old, writes);
                }
            }
        }
        let full = jobs.iter().filter(|job| job.path == Path::Full).count();
        count(&self.counters.data_blocks, data);
        count(&self.counters.fill_blocks, fill);
        count(&self.counters.parity_blocks, parity);
        count(&self.counters.repaired_blocks, repaired);
        count(&self.counters.full_stripes, full);
        count(&self.counters.partial_stripes, jobs.len() - full);
    }
}

/// What computing parity of one stripe after the other needs, and keeps.
struct Work<'c> {
    columns: Vec<Column<'c>>,
    next: Vec<&'c Bytes>,
    spare: Spare,
}

impl Work<'_> {
    fn new(code: Code, stripes: usize) -> Self {
        Self { columns: Vec::new(), next: Vec::new(), spare: Spare::new(code, stripes) }
    }
}

/// What the records of a region's stripes say of its disks.
#[derive(Clone, Copy)]
struct Freshness {
    fresh: [u64; 5],
    twin: Option<TwinRecord>,
}

/// The same for one stripe after the other; most are of the region of the one before.
struct FreshOf<'s> {
    group: &'s GroupView,
    stamps: &'s StampSet,
    last: Option<(u64, Freshness)>,
}

impl<'s> FreshOf<'s> {
    fn new(group: &'s GroupView, stamps: &'s StampSet) -> Self {
        Self { group, stamps, last: None }
    }

    fn of(&mut self, stripe: u64) -> Freshness {
        let region = stripe / REGION_STRIPES;
        match self.last {
            Some((last, found)) if last == region => found,
            _ => self.last.insert((region, self.look(stripe))).1,
        }
    }

    fn look(&self, stripe: u64) -> Freshness {
        let is_fresh = |slot: usize, disk: &Option<&Arc<Member>>| {
            let entry = disk.and_then(|m| self.stamps.of(slot, stripe, m.uuid));
            entry.is_some_and(|e| e.lock().is_fresh())
        };
        let mut found = Freshness { fresh: [0; 5], twin: None };
        for (i, slot) in self.group.slots.iter().enumerate() {
            if is_fresh(i, &slot.member.as_ref()) {
                set_bit(&mut found.fresh, slot.column.get());
            }
            if let Some(t) = &slot.twin {
                let fresh = is_fresh(i, &Some(&t.member));
                found.twin = Some(TwinRecord { disk: DiskMark::of(t.member.uuid), fresh });
            }
        }
        found
    }
}

impl Job {
    fn new(chunk: Chunk<'_>, stripe: StripeWrite, row: usize, before: [u64; 4]) -> Self {
        let Chunk { group, stamps, new } = chunk;
        let (width, stripe, free) = (group.width(), stripe.stripe, stripe.rest_is_free);
        let whole = free || (0..width).all(|slot| new.get(slot, row).is_some());
        let path = if whole { Path::Full } else { Path::Keep };
        let mut job = Self { stripe, row, before, path, rest_zero: false };
        if path != Path::Full {
            let zero = |i: usize| {
                group.slots[i].readable(job.stripe).is_some() && stamps.is_zero(i, job.stripe)
            };
            job.rest_zero = (0..width).filter(|i| job.unmodified(chunk, *i)).all(zero);
            job.path = job.cheaper(chunk);
        }
        job
    }

    /// The new block of a data slot.
    fn new_block<'c>(&self, chunk: Chunk<'c>, slot: usize) -> Option<&'c Block> {
        chunk.new.get(slot, self.row).map(|block| &block.data)
    }
    fn is_new(&self, chunk: Chunk<'_>, slot: usize) -> bool {
        self.new_block(chunk, slot).is_some()
    }

    /// Whether the data slot stays, and held the same at the last flush.
    fn unmodified(&self, chunk: Chunk<'_>, slot: usize) -> bool {
        let column = chunk.group.slots[slot].column.get();
        !self.is_new(chunk, slot) && !has_bit(&self.before, column)
    }

    fn any_unmodified(&self, chunk: Chunk<'_>) -> bool {
        (0..chunk.group.width()).any(|i| self.unmodified(chunk, i))
    }

    /// The cheaper way that has everything it needs.
    fn cheaper(&self, chunk: Chunk<'_>) -> Path {
        let Chunk { group, stamps, .. } = chunk;
        let cost = |path: Path| -> Option<usize> {
            let mut blocks = 0;
            for (i, slot) in group.slots.iter().enumerate() {
                if self.needs_for(path, chunk, i) {
                    slot.readable(self.stripe)?;
                    let stamp = stamps.get(i, self.stripe)?;
                    match stamp.kind() {
                        _ if stamp.is_doubtful() => return None,
                        StampKind::Zero => {}
                        StampKind::Written(_) => blocks += 1,
                        StampKind::Unknown => return None,
                    }
                }
            }
            Some(blocks)
        };
        match (cost(Path::Keep), cost(Path::Delta)) {
            (Some(keep), Some(delta)) if delta < keep => Path::Delta,
            (Some(_), _) => Path::Keep,
            (None, Some(_)) => Path::Delta,
            (None, None) => Path::All,
        }
    }

    fn needs(&self, chunk: Chunk<'_>, slot: usize) -> bool {
        self.needs_for(self.path, chunk, slot)
    }

    fn needs_for(&self, path: Path, chunk: Chunk<'_>, slot: usize) -> bool {
        let data = slot < chunk.group.width();
        match path {
            Path::Full => false,
            Path::Keep => data && !self.is_new(chunk, slot),
            Path::Delta => {
                let is_new = data && self.is_new(chunk, slot);
                let modified = data && !is_new && !self.unmodified(chunk, slot);
                !data || is_new || (modified && !self.rest_zero && self.any_unmodified(chunk))
            }
            Path::All => true,
        }
    }

    /// Computes parity, while the blocks `work.next` come from memory.
    fn outcome<'c>(
        &self,
        chunk: Chunk<'c>,
        cells: &StripeCells,
        work: &mut Work<'c>,
    ) -> Result<Outcome, WriteError> {
        let Chunk { group, new, .. } = chunk;
        let width = group.width();
        let column = |i: usize| group.slots[i].column.get();
        let Work { columns, next, spare } = work;
        match self.path {
            Path::Delta => return self.delta(chunk, cells),
            Path::Full => {
                let new = new.row(self.row);
                columns.clear();
                columns.extend(new.filter_map(|(i, b)| group.code.column(column(i), &b.data)));
                let parity = group.code.encode_ahead(columns, next, spare);
                warm_crcs(&parity);
                return Ok(Outcome { parity, rest: Rest::None, old: None });
            }
            Path::Keep | Path::All => {}
        }
        let mut old = None;
        let mut kept: Vec<Option<Block>> =
            (0..width).map(|i| cells.cells[i].good().cloned()).collect();
        let missing = (0..width).any(|i| !self.is_new(chunk, i) && kept[i].is_none());
        if self.path == Path::All {
            match solve(group, cells) {
                Ok(solved) => {
                    kept = solved.blocks.iter().take(width).cloned().map(Some).collect();
                    // From here on parity is that of what was believed.
                    old = Some(Solved { believed: false, ..solved });
                }
                Err(lost) if missing => return Err(self.lost(group, lost.0)),
                // What is lost is overwritten anyway.
                Err(_) => {}
            }
        }
        let value = |i: usize| self.new_block(chunk, i).or(kept[i].as_ref());
        let values = (0..width).filter_map(|i| group.code.column(column(i), value(i)?));
        let parity = group.code.encode_ahead(&values.collect::<Vec<_>>(), next, spare);
        warm_crcs(&parity);
        let rest = if !self.any_unmodified(chunk) {
            Rest::None
        } else if self.rest_zero {
            Rest::Zero
        } else {
            let unmodified = (0..width).filter(|i| self.unmodified(chunk, *i));
            let partial = group
                .code
                .encode(unmodified.filter_map(|i| kept[i].as_ref().map(|b| (column(i), b))));
            Rest::Partial(core::iter::once(partial.row).chain(partial.diagonal).collect())
        };
        let rest = if mutant("partial-parity-not-logged") { Rest::Zero } else { rest };
        Ok(Outcome { parity, rest, old })
    }

    /// Read-modify-write: what goes and what comes, applied to the old parity.
    fn delta(&self, chunk: Chunk<'_>, cells: &StripeCells) -> Result<Outcome, WriteError> {
        let group = chunk.group;
        let width = group.width();
        let column = |i: usize| group.slots[i].column.get();
        let (mut row, mut diagonal) = (None, None);
        for (i, is_diagonal) in parity_slots(group) {
            let block = cells.cells[i].good().cloned();
            if is_diagonal {
                diagonal = block;
            } else {
                row = block;
            }
        }
        let Some(row) = row else { return Err(self.lost(group, 1)) };
        let base = Parity { row, diagonal };
        let apply =
            |blocks: &[(u16, &Block)]| base.changed_by(&group.code.encode(blocks.iter().copied()));
        let mut changes = Vec::new();
        let mut going = Vec::new();
        for i in 0..width {
            let old = cells.cells[i].good();
            match (self.new_block(chunk, i), old) {
                (Some(block), Some(old)) => {
                    changes.extend([(column(i), old), (column(i), block)]);
                    going.push((column(i), old));
                }
                (None, Some(old)) => going.push((column(i), old)),
                _ => {}
            }
        }
        let rest = if !self.any_unmodified(chunk) {
            Rest::None
        } else if self.rest_zero {
            Rest::Zero
        } else {
            let partial = apply(&going);
            Rest::Partial(core::iter::once(partial.row).chain(partial.diagonal).collect())
        };
        let parity = apply(&changes);
        warm_crcs(&parity);
        Ok(Outcome { parity, rest, old: None })
    }

    fn lost(&self, group: &GroupView, lost: u16) -> WriteError {
        let at = group.slots[0].pvbn_base.plus(self.stripe);
        ReadError::TooManyLost { at, lost, parity: group.parity() }.into()
    }

    fn record(&self, chunk: Chunk<'_>, of: Freshness, rest: Rest) -> Record {
        let group = chunk.group;
        let mut mask = self.before;
        for (i, slot) in group.slots.iter().enumerate().take(group.width()) {
            if self.path == Path::Full || self.is_new(chunk, i) {
                set_bit(&mut mask, slot.column.get());
            }
        }
        let Freshness { fresh, twin } = of;
        Record { group: group.group, stripe: self.stripe, mask, fresh, twin, rest }
    }

    fn region(&self) -> u64 {
        self.stripe / REGION_STRIPES
    }
}

/// Takes the checksums that the stamps will need while the blocks are in the cache; they keep them.
fn warm_crcs(parity: &Parity) {
    for block in core::iter::once(&parity.row).chain(&parity.diagonal) {
        crc_of(block);
    }
}
