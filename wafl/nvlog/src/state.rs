//! The log's state machine: numbers, room, halves, rounds. Pure: no I/O, no waiting.
//!
//! Layer: inside `cairn-wafl-nvlog`, below the writer task, which takes a [`Round`] from
//! [`State::next_round`], writes it, and gives the results to [`State::complete`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cairn_raid_api::{LogAreaError, LogAreaId, Spread};
use cairn_sys::mutant;
use cairn_units::{Blocks, Lsn};

use crate::format::{BatchHead, Columns, OtherHalf, batch_blocks, record_bytes};
use crate::{
    BATCH_BLOCKS_MAX, BATCH_RECORDS_MAX, HalfToken, LogError, LogPosition, RECORDS_BLOCKS_MIN,
    Record, ReserveError, SWITCH_PERCENT, SwitchError, record_blocks,
};

/// Blocks of a half that no record may use: its opening batch, and the note of its successor.
const OVERHEAD_BLOCKS: u64 = 2;

/// Why the storage manager should start a consistency point and switch halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SwitchReason {
    /// More than [`SWITCH_PERCENT`] of the half is used or reserved, or somebody waits for more
    /// than is left of it.
    Filling,
    /// A copy failed; the next half is put on healthy areas.
    CopyLost,
}

/// One half, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HalfStatus {
    /// Its number.
    pub half: HalfToken,
    /// Areas that hold it and work.
    pub copies: Vec<LogAreaId>,
    /// Areas that were dropped, and why.
    pub lost: Vec<(LogAreaId, LogAreaError)>,
    /// Blocks written.
    pub written: Blocks,
    /// Blocks that records wait to be written to, at worst.
    pub pending: Blocks,
    /// Whether records may still be appended to it.
    pub open: bool,
}

/// What the log has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounters {
    /// Records made stable.
    pub records: u64,
    /// Rounds: device writes as a waiting client sees them.
    pub rounds: u64,
    /// Batches, each once however many copies it has.
    pub batches: u64,
    /// Blocks in them, each once.
    pub blocks: u64,
    /// Blocks written to the areas: all copies, parity of what is spread.
    pub area_blocks: u64,
    /// Batches whose payload was spread.
    pub spread_batches: u64,
}

/// The log, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogStatus {
    /// Halves in use, the older first.
    pub halves: Vec<HalfStatus>,
    /// Blocks that records may use in a half.
    pub capacity: Blocks,
    /// Blocks reserved and not yet appended.
    pub reserved: Blocks,
    /// All records up to this one are stable.
    pub durable: Lsn,
    /// The last record appended.
    pub appended: Lsn,
    /// Why the log stopped, if it did.
    pub failed: Option<LogError>,
    /// Counters.
    pub counters: LogCounters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Its opening batch is not written.
    Unopened,
    /// The opening batch is stable; the predecessor has not named it yet.
    Opened,
    /// The predecessor (or a root record) names it.
    Announced,
}

struct Half {
    phase: Phase,
    closed: bool,
    copies: Vec<LogAreaId>,
    lost: Vec<(LogAreaId, LogAreaError)>,
    spread: Option<SpreadHalf>,
    next_block: u32,
    /// Blocks that what was given out would take if nothing were spread: what a recovery has to keep.
    records_blocks: u64,
    next_batch: u32,
    named_successor: bool,
    /// Worst-case blocks of records queued or being written.
    pending: u64,
    pending_records: u64,
}

/// What large batches of a half are spread over.
struct SpreadHalf {
    /// Data columns, then parity; the first ones have the chain too.
    areas: Vec<LogAreaId>,
    columns: Columns,
    from_blocks: usize,
    /// Areas that failed. With one of them nothing more is spread.
    lost: usize,
    /// Something was spread: it needs all columns but as many as there are of parity.
    used: bool,
}

impl Half {
    /// Drops an area that failed.
    fn lose(&mut self, number: u64, area: LogAreaId, error: &LogAreaError) -> Result<(), LogError> {
        let last = || LogError::CopiesLost { half: number, last: error.clone() };
        let copy = self.copies.contains(&area);
        self.copies.retain(|copy| *copy != area);
        let mut needed = copy;
        if let Some(spread) = &mut self.spread
            && let Some(at) = spread.areas.iter().position(|of| *of == area)
        {
            spread.areas.remove(at);
            spread.lost += 1;
            needed |= spread.used && !mutant("log-column-loss-unnoticed");
            if spread.used && spread.lost > usize::from(spread.columns.parity) {
                return Err(last());
            }
        }
        if needed {
            self.lost.push((area, error.clone()));
        }
        if self.copies.is_empty() { Err(last()) } else { Ok(()) }
    }

    /// The columns for a batch with so much payload, if it is to be spread.
    fn spread_for(&mut self, payload_blocks: usize) -> Option<&mut SpreadHalf> {
        let spread = self.spread.as_mut()?;
        let large = payload_blocks >= spread.from_blocks;
        let whole = spread.lost == 0 || mutant("log-spread-goes-on");
        (whole && large).then_some(spread)
    }
}

struct Queued {
    lsn: Lsn,
    half: u64,
    record: Record,
}

/// One batch of a round.
pub(crate) struct RoundBatch {
    pub(crate) head: BatchHead,
    /// Block in each area.
    pub(crate) area_block: u64,
    /// The areas that have the chain or, of an opening batch and of one that is spread, all columns.
    pub(crate) areas: Vec<LogAreaId>,
    pub(crate) records: Vec<(Lsn, Record)>,
    /// With the whole payload, once.
    blocks: u64,
    /// In all areas together.
    area_blocks: u64,
}

/// What is written together.
pub(crate) struct Round {
    pub(crate) batches: Vec<RoundBatch>,
    pub(crate) last: Lsn,
}

impl Round {
    /// Newest record in it.
    pub(crate) fn last(&self) -> Lsn {
        self.last
    }
    pub(crate) fn records(&self) -> usize {
        self.batches.iter().map(|b| b.records.len()).sum()
    }
}

/// How the copies of one batch took it, in the order of its areas.
pub(crate) type CopyResults = Vec<Result<(), LogAreaError>>;

pub(crate) struct State {
    epoch: u64,
    half_blocks: u64,
    next_lsn: Lsn,
    durable: Lsn,
    begun: bool,
    newest: u64,
    halves: BTreeMap<u64, Half>,
    queue: VecDeque<Queued>,
    reserved: u64,
    /// Somebody asked for more than is left of the newest half.
    refused: bool,
    round: u64,
    /// A round was given out and is not completed.
    under_way: bool,
    failed: Option<LogError>,
    counters: LogCounters,
}

impl State {
    /// A log whose first half will be `first`, and whose next record is `next_lsn`.
    pub(crate) fn new(epoch: u64, area_blocks: Blocks, first: u64, next_lsn: Lsn) -> Self {
        let half_blocks = (area_blocks.get() / 2).min(u64::from(u32::MAX));
        let durable = Lsn::new(next_lsn.get().saturating_sub(1));
        Self {
            epoch,
            half_blocks,
            next_lsn,
            durable,
            begun: false,
            newest: first,
            halves: BTreeMap::new(),
            queue: VecDeque::new(),
            reserved: 0,
            refused: false,
            round: 0,
            failed: None,
            under_way: false,
            counters: LogCounters::default(),
        }
    }

    pub(crate) fn failed(&self) -> Option<&LogError> {
        self.failed.as_ref()
    }
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }
    pub(crate) fn durable(&self) -> Lsn {
        self.durable
    }
    pub(crate) fn current(&self) -> HalfToken {
        HalfToken(self.newest)
    }
    pub(crate) fn capacity(&self) -> Blocks {
        Blocks::new(self.half_blocks.saturating_sub(OVERHEAD_BLOCKS))
    }
    pub(crate) fn appended(&self) -> Lsn {
        Lsn::new(self.next_lsn.get().saturating_sub(1))
    }

    /// What a root record says that is committed now.
    pub(crate) fn position(&self) -> LogPosition {
        let opened = self.halves.get(&self.newest).is_some_and(|half| half.phase > Phase::Unopened);
        LogPosition { epoch: self.epoch, half: self.newest, opened }
    }

    /// Stops for good; the first reason stays.
    pub(crate) fn fail(&mut self, error: LogError) {
        if self.failed.is_none() {
            self.failed = Some(error);
        }
        self.queue.clear();
    }

    /// Blocks that the records of a half may have if they are spread.
    fn records_blocks_max(&self) -> u64 {
        self.half_blocks.max(RECORDS_BLOCKS_MIN)
    }

    /// Blocks left in a half's areas, and of what its records may have.
    fn left(&self, half: &Half) -> (u64, u64) {
        let opening = u64::from(half.next_batch == 0);
        let note = u64::from(!half.named_successor);
        let more = half.pending + opening + note;
        let records = self.records_blocks_max().saturating_sub(half.records_blocks + more);
        (self.half_blocks.saturating_sub(u64::from(half.next_block) + more), records)
    }

    fn free(&self, half: &Half) -> u64 {
        let (room, records) = self.left(half);
        room.min(records)
    }

    /// Worst-case blocks that can be reserved now.
    pub(crate) fn room(&self) -> Blocks {
        let announced = self.halves.values().any(|half| half.phase == Phase::Announced);
        if self.failed.is_some() || !announced {
            return Blocks::new(0);
        }
        let free = self.halves.values().filter(|half| !half.closed).map(|half| self.free(half));
        Blocks::new(free.min().unwrap_or(0).saturating_sub(self.reserved))
    }

    /// Sets room aside; `false` when there is too little now.
    pub(crate) fn reserve(&mut self, blocks: Blocks) -> Result<bool, ReserveError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone().into());
        }
        let capacity = self.capacity();
        if blocks > capacity {
            return Err(ReserveError::TooLarge { blocks, capacity });
        }
        let granted = blocks <= self.room();
        if granted {
            self.reserved += blocks.get();
        } else {
            self.refused |= self.newest_alone();
        }
        Ok(granted)
    }

    /// Whether the newest half takes records and no other one does: what there is no room for now
    /// has to wait for a switch.
    fn newest_alone(&self) -> bool {
        let mut open = self.halves.iter().filter(|(_, half)| !half.closed);
        let newest = open
            .next()
            .is_some_and(|(no, half)| *no == self.newest && half.phase == Phase::Announced);
        newest && open.next().is_none()
    }

    /// Gives back what was reserved.
    pub(crate) fn unreserve(&mut self, blocks: Blocks) {
        assert!(self.reserved >= blocks.get(), "reservations add up");
        self.reserved -= blocks.get();
    }

    /// Whether a switch is due.
    pub(crate) fn wants_switch(&self) -> Option<SwitchReason> {
        let half = self.halves.get(&self.newest)?;
        if self.failed.is_some() || half.closed {
            return None;
        }
        if !half.lost.is_empty() {
            return Some(SwitchReason::CopyLost);
        }
        // A switch makes room only if there is something in the half.
        let waited_for = self.refused && (half.next_batch > 1 || half.pending > 0);
        let low = |left: u64, of: u64| {
            left.saturating_sub(self.reserved) * 100 <= of * (100 - SWITCH_PERCENT)
        };
        let (room, records) = self.left(half);
        let full = low(room, self.half_blocks) || low(records, self.records_blocks_max());
        let filling = full || waited_for;
        filling.then_some(SwitchReason::Filling)
    }

    /// Takes a record in; `reserved` is what is left of its reservation.
    pub(crate) fn append(&mut self, half: HalfToken, reserved: &mut Blocks, record: Record) -> Lsn {
        let cost = record_blocks(record.body.len(), record.payload.len());
        assert!(cost <= *reserved, "a record of {cost} blocks needs more than {reserved} reserved");
        *reserved = Blocks::new(reserved.get() - cost.get());
        self.unreserve(cost);
        let lsn = self.next_lsn;
        self.next_lsn = lsn.plus(1);
        if self.failed.is_some() {
            // Nothing is acknowledged any more; the number is all that the caller gets.
            return lsn;
        }
        let Some(target) = self.halves.get_mut(&half.0) else {
            panic!("record for half {}, which is not in use", half.0);
        };
        assert!(!target.closed, "record for half {}, which is closed", half.0);
        target.pending += cost.get();
        target.pending_records += 1;
        self.queue.push_back(Queued { lsn, half: half.0, record });
        lsn
    }

    /// Whether the next half may be opened.
    pub(crate) fn may_switch(&self) -> Result<(), SwitchError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone().into());
        }
        match self.halves.first_key_value() {
            Some((oldest, _)) if self.halves.len() > 1 => Err(SwitchError::OtherHalfInUse(*oldest)),
            _ => Ok(()),
        }
    }

    /// Opens the next half (the first one, to begin with) on `copies`, and large batches on `spread`.
    pub(crate) fn open_half(
        &mut self,
        copies: Vec<LogAreaId>,
        spread: Option<Spread>,
    ) -> HalfToken {
        assert!(self.halves.len() < 2, "there are two slots");
        if self.begun {
            self.newest += 1;
        }
        self.begun = true;
        self.refused = false;
        let spread = spread.filter(|spread| spread.areas.starts_with(&copies)).and_then(|spread| {
            let data = u8::try_from(spread.areas.len().checked_sub(spread.parity)?).ok()?;
            let columns = Columns::new(data, u8::try_from(spread.parity).ok()?)?;
            let Spread { areas, from_blocks, .. } = spread;
            let from_blocks = from_blocks.max(1);
            Some(SpreadHalf { areas, columns, from_blocks, lost: 0, used: false })
        });
        let half = Half {
            phase: Phase::Unopened,
            closed: false,
            copies,
            lost: Vec::new(),
            spread,
            next_block: 0,
            records_blocks: 0,
            next_batch: 0,
            named_successor: false,
            pending: 0,
            pending_records: 0,
        };
        self.halves.insert(self.newest, half);
        HalfToken(self.newest)
    }

    /// No more records for `half`.
    pub(crate) fn close_half(&mut self, half: HalfToken) {
        assert!(half.0 < self.newest, "the newest half stays open");
        match self.halves.get_mut(&half.0) {
            Some(half) => half.closed = true,
            None => panic!("half {} is not in use", half.0),
        }
    }

    /// Whether all records of `half` are stable and its successor can be found from it.
    pub(crate) fn is_settled(&self, half: HalfToken) -> bool {
        let settled = self.halves.get(&half.0).is_none_or(|half| half.pending_records == 0);
        let successor = self.halves.get(&(half.0 + 1));
        settled && successor.is_none_or(|next| next.phase == Phase::Announced)
    }

    /// Whether the newest half can take acknowledged records.
    pub(crate) fn is_announced(&self) -> bool {
        self.halves.get(&self.newest).is_some_and(|half| half.phase == Phase::Announced)
    }

    /// Gives the slot of `half` free: a root record that does not need it is committed.
    pub(crate) fn release_half(&mut self, half: HalfToken) {
        let closed = self.halves.get(&half.0).is_some_and(|half| half.closed);
        assert!(closed, "half {} is released before it was closed", half.0);
        if self.failed.is_none() {
            assert!(self.is_settled(half), "half {} is released before it was settled", half.0);
        }
        self.halves.remove(&half.0);
    }

    /// The next round, or `None` when there is nothing to write, or the last one is not completed:
    /// whoever completes it asks again.
    pub(crate) fn next_round(&mut self) -> Option<Round> {
        if self.failed.is_some() || (self.under_way && !mutant("log-rounds-side-by-side")) {
            return None;
        }
        let mut last = self.durable;
        let mut taken: BTreeMap<u64, Taken> = BTreeMap::new();
        while let Some(next) = self.queue.front() {
            let opened = self.halves.get(&next.half).is_some_and(|h| h.phase > Phase::Unopened);
            let batch = taken.entry(next.half).or_default();
            if !opened || !batch.fits(&next.record) {
                break;
            }
            let Some(Queued { lsn, record, .. }) = self.queue.pop_front() else { break };
            last = lsn;
            batch.add(lsn, record);
        }
        taken.retain(|_, batch| !batch.records.is_empty());
        for (number, half) in &self.halves {
            let successor = self.halves.get(&(number + 1));
            let note = successor.is_some_and(|next| next.phase == Phase::Opened);
            if half.phase == Phase::Unopened || note {
                taken.entry(*number).or_default().note = note;
            }
        }
        if taken.is_empty() {
            return None;
        }
        self.round += 1;
        self.under_way = true;
        let before: BTreeMap<u64, u32> =
            self.halves.iter().map(|(number, half)| (*number, half.next_batch)).collect();
        // An opening batch is on its own: a peer of it would need it to be found.
        let joint = taken.len() == 2 && taken.keys().all(|n| before.get(n).is_some_and(|b| *b > 0));
        let mut batches = Vec::with_capacity(taken.len());
        for (number, batch) in taken {
            let other = before.iter().find(|(other, _)| **other != number);
            let other = other.map(|(half, batches)| OtherHalf {
                half: *half,
                batches: *batches,
                peer: joint,
            });
            batches.push(self.place(number, batch, other));
        }
        Some(Round { batches, last })
    }

    /// Gives a batch its place in its half.
    fn place(&mut self, number: u64, batch: Taken, other: Option<OtherHalf>) -> RoundBatch {
        let half_base = slot_of(number) * self.half_blocks;
        let half_blocks = self.half_blocks;
        let Some(half) = self.halves.get_mut(&number) else {
            unreachable!("a round is made of halves in use");
        };
        let copied = batch_blocks(batch.descriptor_bytes, batch.payload_blocks);
        let (mut blocks, copies) = (copied, half.copies.len() as u64);
        let (mut areas, mut columns) = (half.copies.clone(), None);
        let mut area_blocks = copied * copies;
        if let Some(spread) = half.spread_for(batch.payload_blocks) {
            spread.used = true;
            let rows = spread.columns.rows(batch.payload_blocks);
            blocks = batch_blocks(batch.descriptor_bytes, rows);
            (areas, columns) = (spread.areas.clone(), Some(spread.columns));
            let parity = rows * usize::from(spread.columns.parity);
            area_blocks = (blocks - rows as u64) * copies + (batch.payload_blocks + parity) as u64;
        } else if half.next_batch == 0
            && let Some(spread) = half.spread.as_ref().filter(|spread| spread.lost == 0)
        {
            (areas, columns) = (spread.areas.clone(), Some(spread.columns));
            area_blocks = spread.columns.count() as u64;
        }
        let head = BatchHead {
            half: number,
            batch: half.next_batch,
            at: half.next_block,
            round: self.round,
            successor: batch.note,
            copies: u32::try_from(half.copies.len()).unwrap_or(u32::MAX),
            other,
            spread: columns,
            column: None,
        };
        let Some(end) = u32::try_from(blocks).ok().and_then(|n| half.next_block.checked_add(n))
        else {
            unreachable!("a half has less than 2^32 blocks");
        };
        assert!(u64::from(end) <= half_blocks, "the room of a half was reserved");
        half.next_block = end - u32::from(mutant("log-ring-one-short"));
        half.records_blocks += copied;
        half.next_batch += 1;
        half.named_successor |= batch.note;
        RoundBatch {
            area_block: half_base + u64::from(head.at),
            head,
            areas,
            records: batch.records,
            blocks: copied,
            area_blocks,
        }
    }

    /// Takes the results of a round's writes; `records` of each batch are given back as counts.
    pub(crate) fn complete(&mut self, round: &Round, results: &[CopyResults]) {
        self.under_way = false;
        for (batch, copies) in round.batches.iter().zip(results) {
            if let Err(error) = self.complete_copies(batch, copies) {
                self.fail(error);
            }
        }
        if self.failed.is_some() {
            return;
        }
        self.counters.rounds += 1;
        for batch in &round.batches {
            self.counters.batches += 1;
            self.counters.blocks += batch.blocks;
            self.counters.area_blocks += batch.area_blocks;
            let spread = batch.head.spread.is_some() && !batch.records.is_empty();
            self.counters.spread_batches += u64::from(spread);
            self.counters.records += batch.records.len() as u64;
            if let Some(half) = self.halves.get_mut(&batch.head.half) {
                for (_, record) in &batch.records {
                    let cost = record_blocks(record.body.len(), record.payload.len());
                    half.pending -= cost.get();
                    half.pending_records -= 1;
                }
                if half.phase == Phase::Unopened {
                    half.phase = Phase::Opened;
                }
            }
            if batch.head.successor
                && let Some(next) = self.halves.get_mut(&(batch.head.half + 1))
            {
                next.phase = Phase::Announced;
            }
        }
        // The first half is named by the root record that was committed before it was opened.
        if (self.halves.len() == 1 || mutant("log-half-not-announced"))
            && let Some(only) = self.halves.get_mut(&self.newest)
            && only.phase == Phase::Opened
        {
            only.phase = Phase::Announced;
        }
        self.durable = round.last;
    }

    /// Drops the copies that lie in none of `areas`, as if a write to them had failed.
    pub(crate) fn keep_areas(&mut self, areas: &[LogAreaId]) {
        let mut failed = None;
        for (number, half) in &mut self.halves {
            let spread = half.spread.iter().flat_map(|spread| &spread.areas);
            let gone: BTreeSet<LogAreaId> =
                half.copies.iter().chain(spread).filter(|a| !areas.contains(a)).copied().collect();
            for area in gone {
                failed = failed.or(half.lose(*number, area, &LogAreaError::Gone(area)).err());
            }
        }
        if let Some(error) = failed {
            self.fail(error);
        }
    }

    fn complete_copies(
        &mut self,
        batch: &RoundBatch,
        results: &[Result<(), LogAreaError>],
    ) -> Result<(), LogError> {
        let Some(half) = self.halves.get_mut(&batch.head.half) else { return Ok(()) };
        for (area, result) in batch.areas.iter().zip(results) {
            let Err(error) = result else { continue };
            if matches!(error, LogAreaError::Fenced) {
                return Err(LogError::Fenced { area: *area });
            }
            half.lose(batch.head.half, *area, error)?;
        }
        Ok(())
    }

    pub(crate) fn status(&self) -> LogStatus {
        let halves = self.halves.iter().map(|(number, half)| HalfStatus {
            half: HalfToken(*number),
            copies: half.copies.clone(),
            lost: half.lost.clone(),
            written: Blocks::new(u64::from(half.next_block)),
            pending: Blocks::new(half.pending),
            open: !half.closed,
        });
        LogStatus {
            halves: halves.collect(),
            capacity: self.capacity(),
            reserved: Blocks::new(self.reserved),
            durable: self.durable,
            appended: self.appended(),
            failed: self.failed.clone(),
            counters: self.counters,
        }
    }
}

/// Which slot of its areas a half lies in: not the one of its predecessor, which is still needed.
pub(crate) fn slot_of(half: u64) -> u64 {
    if mutant("log-half-cleared-early") { 0 } else { half % 2 }
}

/// Records taken for one batch.
#[derive(Default)]
struct Taken {
    records: Vec<(Lsn, Record)>,
    descriptor_bytes: usize,
    payload_blocks: usize,
    note: bool,
}

impl Taken {
    fn fits(&self, record: &Record) -> bool {
        let bytes = self.descriptor_bytes + record_bytes(record.body.len(), record.payload.len());
        let blocks = batch_blocks(bytes, self.payload_blocks + record.payload.len());
        self.records.len() < BATCH_RECORDS_MAX && blocks <= BATCH_BLOCKS_MAX as u64
    }
    fn add(&mut self, lsn: Lsn, record: Record) {
        self.descriptor_bytes += record_bytes(record.body.len(), record.payload.len());
        self.payload_blocks += record.payload.len();
        self.records.push((lsn, record));
    }
}
