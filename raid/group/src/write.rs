//! Writing stripes: choose what to read, compute parity, log, write.
//!
//! Layer: over stripes and the stripe log. A write runs in a task of its own, so that a caller
//! who goes away leaves no half-written stripe. Invariants: nothing of a stripe is overwritten
//! before its record is stable; parity is computed from verified blocks only; a disk that missed
//! a write is out, stably, before the write is acknowledged.

use cairn_sys::lock::atomic::Ordering;
use std::sync::Arc;

use cairn_raid_api::{AHEAD_STRIPES_MAX, ReadError, StripeWrite, Tetris, WriteBlock, WriteError};
use cairn_raid_parity::Bytes;
use cairn_sys::{Block, mutant};
use cairn_units::GroupNo;

use crate::code::{Parity, Spare};
use crate::core::{Core, Interval, Mark, Purpose, Writes, count};
use crate::layout::STRIPE_LOG_BLOCKS_MIN;
use crate::member::Member;
use crate::ondisk::{ENTRY_RECORDS_MAX, REGION_STRIPES, crc_of};
use crate::stamps::{StampKind, stamp_parity, stamp_written};
use crate::stripe::{Cell, Solved, StampSet, StripeCells, parity_slots, solve};
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

/// One stripe under way.
struct Job {
    stripe: u64,
    /// New blocks, by data slot.
    new: Vec<Option<WriteBlock>>,
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
        self.check_tetris(&tetris)?;
        let (mut chunk, mut blocks) = (Vec::new(), 1);
        let ahead = &tetris.ahead;
        for stripe in tetris.stripes {
            let more = if stripe.rest_is_free { 0 } else { 2 };
            if chunk.len() >= CHUNK_STRIPES_MAX || blocks + more > CHUNK_LOG_BLOCKS_MAX {
                self.write_chunk(tetris.group, std::mem::take(&mut chunk), ahead).await?;
                blocks = 1;
            }
            chunk.push(stripe);
            blocks += more;
        }
        self.write_chunk(tetris.group, chunk, ahead).await
    }

    fn check_tetris(&self, tetris: &Tetris) -> Result<(), WriteError> {
        let view = self.view();
        let group = view.groups.get(&tetris.group);
        let mut last = None;
        for stripe in &tetris.stripes {
            let mut columns = [0; 4];
            for block in &stripe.blocks {
                let slot = group.and_then(|g| g.data_slot(block.at, stripe.stripe));
                let fine = slot.is_some_and(|slot| {
                    let column = slot.column.get();
                    let again = has_bit(&columns, column);
                    set_bit(&mut columns, column);
                    !again
                });
                if !fine || last.is_some_and(|l| l >= stripe.stripe) {
                    return Err(WriteError::BadAddress { at: block.at });
                }
            }
            last = Some(stripe.stripe);
        }
        Ok(())
    }

    async fn write_chunk(
        self: &Arc<Self>,
        group: GroupNo,
        stripes: Vec<StripeWrite>,
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
        let mut stamps = self.load_stamps(group, &regions).await;
        self.drop_mute_disks(group, &mut stamps, &regions);

        let mut jobs: Vec<Job> = stripes
            .into_iter()
            .map(|stripe| {
                let mark = interval.marks.lock().get(&(group.group, stripe.stripe)).copied();
                Job::new(group, &stamps, stripe, mark.unwrap_or_default().mask)
            })
            .collect();
        let computed = self.compute(group, &stamps, &mut jobs).await;
        if computed.is_err() {
            // Disks that died just now explain more than the stripe that missed them.
            self.settle().await?;
        }
        let (mut cells, outcomes) = computed?;
        let records: Vec<Record> = jobs
            .iter()
            .zip(&outcomes)
            .map(|(job, outcome)| job.record(group, &stamps, outcome.rest.clone()))
            .collect();
        self.log_stripes(&interval, group, records, ahead, room).await?;
        let mut writes = Writes::default();
        for ((job, outcome), cells) in jobs.iter().zip(&outcomes).zip(&mut cells) {
            self.stage_job(group, &stamps, job, outcome, cells, &mut writes);
        }
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
        let is_new = |record: &Record| {
            let marks = interval.marks.lock();
            let mark = marks.get(&(record.group, record.stripe)).and_then(|m| m.stable);
            mark.is_none() || mark != record.bare()
        };
        records.retain(is_new);
        let mut _held = None;
        if !records.is_empty() && !ahead.is_empty() {
            // Who waited here finds most of its stripes logged by the one it waited for.
            _held = Some(interval.ahead.lock().await);
            records.retain(is_new);
            if !records.is_empty() {
                records.extend(self.records_ahead(group, ahead, records).await);
                records.retain(is_new);
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        {
            let mut marks = interval.marks.lock();
            for record in records.iter() {
                let early = mutant("ahead-believed-before-stable");
                let stable = record.bare().filter(|_| early);
                let mark = Mark { mask: record.mask, stable };
                marks.insert((record.group, record.stripe), mark);
            }
        }
        let payload: usize = records.iter().map(Record::payload_blocks).sum();
        *taken = log_blocks(records.len(), payload);
        let stable: Vec<_> = records.iter().map(|r| (r.group, r.stripe, r.bare())).collect();
        self.log_append(std::mem::take(records)).await?;
        let mut marks = interval.marks.lock();
        for (group, stripe, bare) in stable {
            if let Some(mark) = marks.get_mut(&(group, stripe)) {
                mark.stable = bare;
            }
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
        let record = |stripe: u64| {
            let empty = StripeWrite { stripe, blocks: Vec::new(), rest_is_free: true };
            let job = Job::new(group, &stamps, empty, Default::default());
            job.record(group, &stamps, Rest::None)
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

    /// Reads what the jobs need and computes their parity.
    async fn compute(
        self: &Arc<Self>,
        group: &GroupView,
        stamps: &StampSet,
        jobs: &mut [Job],
    ) -> Result<(Vec<StripeCells>, Vec<Outcome>), WriteError> {
        let slots = group.slots.len();
        let mut cells: Vec<StripeCells> =
            jobs.iter().map(|job| StripeCells::new(job.stripe, slots)).collect();
        let mut asked =
            self.read_cells(group, stamps, &mut cells, |i, slot| jobs[i].needs(group, slot)).await;
        let mut again = false;
        for (job, cells) in jobs.iter_mut().zip(&cells) {
            let complete = (0..slots)
                .all(|slot| !job.needs(group, slot) || cells.cells[slot].good().is_some());
            if !complete {
                job.path = Path::All;
                again = true;
            }
        }
        if again {
            let all = |i: usize, _slot: usize| jobs[i].path == Path::All;
            asked += self.read_cells(group, stamps, &mut cells, all).await;
        }
        count(&self.counters.parity_read_blocks, asked);
        let mut outcomes = Vec::with_capacity(jobs.len());
        let mut spare = Spare::new(group.code, jobs.len());
        for (i, (job, cells)) in jobs.iter().zip(&cells).enumerate() {
            let next = jobs.get(i + 1).map_or(Vec::new(), Job::new_blocks);
            outcomes.push(job.outcome(group, cells, &next, &mut spare)?);
        }
        Ok((cells, outcomes))
    }

    /// Stages everything that a job writes.
    fn stage_job(
        &self,
        group: &GroupView,
        stamps: &StampSet,
        job: &Job,
        outcome: &Outcome,
        cells: &mut StripeCells,
        writes: &mut Writes,
    ) {
        let width = group.width();
        for i in 0..width {
            let Some(entry) = stamps.entry(i, job.stripe) else { continue };
            match &job.new[i] {
                Some(block) => {
                    writes.put(i, job.stripe, block.data.clone());
                    entry.lock().set(job.stripe, stamp_written(block.crc, block.tag));
                    count(&self.counters.data_blocks, 1);
                    // Not to be mended below.
                    cells.cells[i] = Cell::Unread;
                }
                None if job.path == Path::Full => {
                    if entry.lock().get(job.stripe).is_zero() {
                        continue;
                    }
                    entry.lock().set(job.stripe, Default::default());
                    writes.touch(i, job.stripe);
                    count(&self.counters.fill_blocks, 1);
                }
                None => {}
            }
        }
        for (i, diagonal) in parity_slots(group) {
            cells.cells[i] = Cell::Unread;
            let block =
                if diagonal { outcome.parity.diagonal.as_ref() } else { Some(&outcome.parity.row) };
            if diagonal && mutant("diagonal-parity-stale") {
                continue;
            }
            let (Some(entry), Some(block)) = (stamps.entry(i, job.stripe), block) else { continue };
            entry.lock().set(job.stripe, stamp_parity(crc_of(block)));
            writes.put(i, job.stripe, block.clone());
            count(&self.counters.parity_blocks, 1);
        }
        if let Some(old) = &outcome.old {
            let repaired = self.stage_repairs(group, stamps, cells, old, writes);
            count(&self.counters.repaired_blocks, repaired);
        }
        let full = job.path == Path::Full;
        let counter =
            if full { &self.counters.full_stripes } else { &self.counters.partial_stripes };
        count(counter, 1);
    }
}

impl Job {
    fn new(group: &GroupView, stamps: &StampSet, stripe: StripeWrite, before: [u64; 4]) -> Self {
        let width = group.width();
        let mut new: Vec<Option<WriteBlock>> = vec![None; width];
        let free = stripe.rest_is_free;
        for block in stripe.blocks {
            let slot = group
                .slots
                .iter()
                .take(width)
                .position(|s| block.at.since(s.pvbn_base) == Some(stripe.stripe));
            if let Some(slot) = slot {
                new[slot] = Some(block);
            }
        }
        let path = if free || new.iter().all(Option::is_some) { Path::Full } else { Path::Keep };
        let mut job = Self { stripe: stripe.stripe, new, before, path, rest_zero: false };
        if path != Path::Full {
            let zero = |i: usize| {
                group.slots[i].readable(job.stripe).is_some() && stamps.is_zero(i, job.stripe)
            };
            job.rest_zero = (0..width).filter(|i| job.unmodified(group, *i)).all(zero);
            job.path = job.cheaper(group, stamps);
        }
        job
    }

    /// Whether the data slot stays, and held the same at the last flush.
    fn unmodified(&self, group: &GroupView, slot: usize) -> bool {
        self.new[slot].is_none() && !has_bit(&self.before, group.slots[slot].column.get())
    }

    fn any_unmodified(&self, group: &GroupView) -> bool {
        (0..self.new.len()).any(|i| self.unmodified(group, i))
    }

    /// The cheaper way that has everything it needs.
    fn cheaper(&self, group: &GroupView, stamps: &StampSet) -> Path {
        let cost = |path: Path| -> Option<usize> {
            let mut blocks = 0;
            for (i, slot) in group.slots.iter().enumerate() {
                if self.needs_for(path, group, i) {
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

    fn needs(&self, group: &GroupView, slot: usize) -> bool {
        self.needs_for(self.path, group, slot)
    }

    fn needs_for(&self, path: Path, group: &GroupView, slot: usize) -> bool {
        let data = slot < self.new.len();
        match path {
            Path::Full => false,
            Path::Keep => data && self.new[slot].is_none(),
            Path::Delta => {
                let modified = data && self.new[slot].is_none() && !self.unmodified(group, slot);
                !data
                    || self.new[slot].is_some()
                    || (modified && !self.rest_zero && self.any_unmodified(group))
            }
            Path::All => true,
        }
    }

    /// The blocks that come.
    fn new_blocks(&self) -> Vec<&Bytes> {
        self.new.iter().flatten().map(|block| &*block.data).collect()
    }

    /// Computes parity, while the blocks `next` come from memory.
    fn outcome(
        &self,
        group: &GroupView,
        cells: &StripeCells,
        next: &[&Bytes],
        spare: &mut Spare,
    ) -> Result<Outcome, WriteError> {
        let width = self.new.len();
        let column = |i: usize| group.slots[i].column.get();
        if self.path == Path::Delta {
            return self.delta(group, cells);
        }
        let mut old = None;
        let mut kept: Vec<Option<Block>> =
            (0..width).map(|i| cells.cells[i].good().cloned()).collect();
        let missing = (0..width).any(|i| self.new[i].is_none() && kept[i].is_none());
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
        let value = |i: usize| -> Option<&Block> {
            match &self.new[i] {
                Some(block) => Some(&block.data),
                None if self.path == Path::Full => None,
                None => kept[i].as_ref(),
            }
        };
        let values = (0..width).filter_map(|i| value(i).map(|b| (column(i), b)));
        let parity = group.code.encode_ahead(values, next, spare);
        warm_crcs(&parity);
        let rest = if self.path == Path::Full || !self.any_unmodified(group) {
            Rest::None
        } else if self.rest_zero {
            Rest::Zero
        } else {
            let unmodified = (0..width).filter(|i| self.unmodified(group, *i));
            let partial = group
                .code
                .encode(unmodified.filter_map(|i| kept[i].as_ref().map(|b| (column(i), b))));
            Rest::Partial(core::iter::once(partial.row).chain(partial.diagonal).collect())
        };
        let rest = if mutant("partial-parity-not-logged") { Rest::Zero } else { rest };
        Ok(Outcome { parity, rest, old })
    }

    /// Read-modify-write: what goes and what comes, applied to the old parity.
    fn delta(&self, group: &GroupView, cells: &StripeCells) -> Result<Outcome, WriteError> {
        let width = self.new.len();
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
            match (&self.new[i], old) {
                (Some(block), Some(old)) => {
                    changes.extend([(column(i), old), (column(i), &block.data)]);
                    going.push((column(i), old));
                }
                (None, Some(old)) => going.push((column(i), old)),
                _ => {}
            }
        }
        let rest = if !self.any_unmodified(group) {
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

    fn record(&self, group: &GroupView, stamps: &StampSet, rest: Rest) -> Record {
        let mut mask = self.before;
        let mut fresh = [0; 5];
        let is_fresh = |slot: usize, disk: &Option<&Arc<Member>>| {
            let entry = disk.and_then(|m| stamps.of(slot, self.stripe, m.uuid));
            entry.is_some_and(|e| e.lock().is_fresh())
        };
        let mut twin = None;
        for (i, slot) in group.slots.iter().enumerate() {
            let data = i < self.new.len();
            if data && (self.path == Path::Full || self.new[i].is_some()) {
                set_bit(&mut mask, slot.column.get());
            }
            if is_fresh(i, &slot.member.as_ref()) {
                set_bit(&mut fresh, slot.column.get());
            }
            if let Some(t) = &slot.twin {
                let fresh = is_fresh(i, &Some(&t.member));
                twin = Some(TwinRecord { disk: DiskMark::of(t.member.uuid), fresh });
            }
        }
        Record { group: group.group, stripe: self.stripe, mask, fresh, twin, rest }
    }
}

/// Takes the checksums that the stamps will need while the blocks are in the cache; they keep them.
fn warm_crcs(parity: &Parity) {
    for block in core::iter::once(&parity.row).chain(&parity.diagonal) {
        crc_of(block);
    }
}
