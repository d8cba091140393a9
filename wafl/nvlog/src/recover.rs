//! Recovery: reads back what the log holds after a start, from whichever copies there are.
//!
//! Layer: inside `cairn-wafl-nvlog`, above the format. Writes nothing; may be run any number of
//! times with the same result. It reads what the chains hold and a fixed number of blocks behind
//! their ends, however large the log is. Memory: the records of two halves at most.
//!
//! A chain of batches is read for the half that the root record names, and for its successor when
//! the chain names one or one is there. It is read ahead from all copies in turn, a piece of each
//! ([`PIECE_BLOCKS`]), so that a start waits for each disk for its part of the log only; where what
//! comes is not whole, each batch, and each block of it, is taken from whichever copy is whole. Where no
//! copy is, the blocks in which the next batch would begin are searched for a later one of the same
//! half: without one it is the torn tail, with one it is damage and recovery fails.
//! One round is under way at a time, so one batch of a half can be torn; one that was stable was
//! followed without a gap. Rejected: searching to the end of the half. It also finds out when all
//! batches of the next 4 MiB are damaged in every copy, and costs every start the size of the log.

use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use cairn_raid_api::{LogAreaError, LogAreaId, LogStore};
use cairn_sys::{Block, mutant};
use cairn_units::{AggregateUuid, Crc, Lsn};

use crate::format::{
    BatchHead, Columns, Decoded, Descriptor, LogId, decode_descriptors, decode_header,
};
use crate::join::JoinAll;
use crate::state::slot_of;
use crate::{BATCH_BLOCKS_MAX, COPIES_MAX, LogPosition, RecoveredRecord};

/// Blocks behind a batch that counts nowhere in which the next one would begin.
const SEARCH_BLOCKS: u64 = BATCH_BLOCKS_MAX as u64;
/// Blocks that are fetched ahead of a chain at first; twice as many each time, up to
/// [`AHEAD_BLOCKS_MAX`].
const AHEAD_BLOCKS_MIN: u64 = 16;
/// 16 MiB: enough requests under way for a quick disk, no more than what was read before.
const AHEAD_BLOCKS_MAX: u64 = 4096;
/// Blocks that are read of one copy before the next one's turn comes (4 MiB): a disk with heads passes over the
/// pieces of the others in a fraction of the time that it reads its own.
const PIECE_BLOCKS: u64 = 1024;
/// Blocks of one request; the requests of one read are under way together.
const READ_BLOCKS: u64 = 256;
/// Findings that are kept.
const FINDINGS_MAX: usize = 1000;

/// Something that recovery noticed and coped with; for the administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFinding {
    /// Part of an area could not be read.
    Unreadable(LogAreaError),
    /// A batch was damaged in one copy and taken from another.
    Mended {
        /// Which half.
        half: u64,
        /// Which batch.
        batch: u32,
        /// The damaged copy.
        area: LogAreaId,
    },
    /// A batch that was never acknowledged was left out: the normal end after a crash.
    TornTail {
        /// Which half.
        half: u64,
        /// Which batch.
        batch: u32,
    },
    /// Fewer copies of a half were found than were written last. If another copy lived longer
    /// than these, records that only it held are missing.
    CopyMissing {
        /// Which half.
        half: u64,
        /// Copies that the last batch was written to.
        written: u32,
        /// Copies found.
        found: u32,
    },
    /// Fewer columns of a half were found than its large batches are spread over; parity had to do.
    ColumnsMissing {
        /// Which half.
        half: u64,
        /// Columns that it was opened with.
        written: usize,
        /// Columns found.
        found: usize,
    },
}

/// Why the log could not be recovered. Starting without it would lose acknowledged operations.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// A half that holds, or may hold, acknowledged records is on no area that can be read.
    #[error("NV log: half {half} is missing on all {areas} areas that can be read")]
    HalfMissing {
        /// Which half.
        half: u64,
        /// Areas that were looked at.
        areas: usize,
    },
    /// A batch that was stable is damaged in every copy.
    #[error("NV log: batch {batch} of half {half} is damaged in every copy")]
    Damaged {
        /// Which half.
        half: u64,
        /// First batch that is damaged.
        batch: u32,
    },
    /// The records of a checked log contradict each other.
    #[error("NV log: record {0:?} is there twice")]
    Order(Lsn),
}

/// What recovery found.
#[derive(Debug)]
pub struct Recovered {
    /// Records in order. The caller leaves out those that a volume's root already contains.
    pub records: Vec<RecoveredRecord>,
    /// What was noticed on the way.
    pub findings: Vec<LogFinding>,
    next_half: u64,
}

impl Recovered {
    /// The first number above all recovered records.
    pub fn next_lsn(&self) -> Lsn {
        self.records.last().map_or(Lsn::new(1), |last| last.lsn.plus(1))
    }
    pub(crate) fn next_half(&self) -> u64 {
        self.next_half
    }
}

/// Reads the log back. `position` is what the committed root record says; `None` on an aggregate
/// without one, where nothing was ever acknowledged.
///
/// # Errors
/// The log holds, or must have held, records that cannot be read: see [`RecoverError`].
pub async fn recover(
    store: Arc<dyn LogStore>,
    aggregate: AggregateUuid,
    position: Option<LogPosition>,
) -> Result<Recovered, RecoverError> {
    let Some(position) = position else {
        return Ok(Recovered { records: Vec::new(), findings: Vec::new(), next_half: 1 });
    };
    let log = LogId { aggregate, epoch: position.epoch };
    let half_blocks = (store.area_blocks().get() / 2).min(u64::from(u32::MAX));
    let areas = store.areas();
    let mut reader =
        Reader { store, log, areas, half_blocks, findings: Vec::new(), ahead: Ahead::default() };
    let mut chains = BTreeMap::new();
    let first = reader.chain(position.half).await?;
    if first.batches.is_empty() && position.opened {
        return Err(reader.missing(position.half));
    }
    let named = first.batches.iter().any(|batch| batch.head.successor);
    chains.insert(position.half, first);
    let mut last_half = position.half;
    let successor = position.half.saturating_add(1);
    // One that is there without being named was just being opened, or the note of it is lost: the
    // chains are checked against each other below.
    if named || reader.has_begun(successor).await {
        last_half = successor;
        let second = reader.chain(last_half).await?;
        if second.batches.is_empty() {
            return Err(reader.missing(last_half));
        }
        chains.insert(last_half, second);
    }
    reader.drop_torn_round(&mut chains)?;
    let mut records: Vec<RecoveredRecord> = chains
        .into_values()
        .flat_map(|chain| chain.batches)
        .flat_map(|batch| batch.records)
        .collect();
    records.sort_by_key(|record| record.lsn);
    if let Some(twice) = records.windows(2).find(|pair| pair[0].lsn == pair[1].lsn) {
        return Err(RecoverError::Order(twice[0].lsn));
    }
    // Its slot is that of the half not needed most recently; with both needed, nothing is
    // overwritten before the next root is committed.
    let next_half = last_half.saturating_add(1);
    Ok(Recovered { records, findings: reader.findings, next_half })
}

struct Chain {
    batches: Vec<Batch>,
}

/// The columns of a half, and the areas that say in their opening batch which one they are.
struct HalfColumns {
    of: Columns,
    areas: Vec<Option<LogAreaId>>,
}

struct Batch {
    head: BatchHead,
    records: Vec<RecoveredRecord>,
}

/// A batch, and the blocks that it takes up.
struct Found {
    batch: Batch,
    blocks: u64,
}

/// Requests of one read: first block, blocks, and what came if all of it did.
type Parts = Vec<(u64, u64, Option<Vec<Block>>)>;

struct Reader {
    store: Arc<dyn LogStore>,
    log: LogId,
    areas: Vec<LogAreaId>,
    half_blocks: u64,
    findings: Vec<LogFinding>,
    ahead: Ahead,
}

/// Blocks of one chain that were fetched and may be asked for next.
#[derive(Default)]
struct Ahead {
    /// The copies that they are from in turn, and the half.
    of: Option<(Vec<LogAreaId>, u64)>,
    at: u64,
    blocks: VecDeque<Block>,
    fetch: u64,
}

impl Ahead {
    /// Whether the block at `at` is the next one to fetch, or one that is there.
    fn goes_on(&self, from: &[LogAreaId], half: u64, at: u64) -> bool {
        let end = self.at + self.blocks.len() as u64;
        self.of.as_ref().is_some_and(|(of, no)| of == from && *no == half)
            && (self.at..=end).contains(&at)
    }
}

/// Where a batch begins, or its payload.
#[derive(Clone, Copy)]
struct Place {
    half: u64,
    batch: u32,
    at: u64,
}

/// What is read of copies that are read in turn: (copy, first block, how many), in order.
fn turns(from: &[LogAreaId], at: u64, count: u64) -> Vec<(LogAreaId, u64, u64)> {
    let (mut at, end) = (at, at.saturating_add(count));
    let mut out = Vec::new();
    while at < end
        && let Some(area) = turn(from, at)
    {
        let alone = from.len() == 1;
        let piece_end = if alone { end } else { (at / PIECE_BLOCKS + 1) * PIECE_BLOCKS };
        let blocks = piece_end.min(end) - at;
        out.push((area, at, blocks));
        at += blocks;
    }
    out
}

/// The copy that a block is read from.
fn turn(from: &[LogAreaId], at: u64) -> Option<LogAreaId> {
    let nth = (at / PIECE_BLOCKS).checked_rem(from.len() as u64)?;
    from.get(usize::try_from(nth).ok()?).copied()
}

/// What the openings of a half say of its columns.
fn columns_of(openings: &[(LogAreaId, Decoded)]) -> Option<HalfColumns> {
    let of = openings.iter().find_map(|(_, opening)| opening.head.spread)?;
    let mut areas = vec![None; of.count()];
    for (area, opening) in openings {
        let column = opening.head.column.filter(|_| opening.head.spread == Some(of));
        if let Some(place) = column.and_then(|column| areas.get_mut(usize::from(column))) {
            *place = Some(*area);
        }
    }
    Some(HalfColumns { of, areas })
}

impl Reader {
    fn found(&mut self, finding: LogFinding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    fn missing(&self, half: u64) -> RecoverError {
        RecoverError::HalfMissing { half, areas: self.areas.len() }
    }

    /// Reads runs of blocks (area, first block, how many) in requests that are all under way together.
    async fn read_runs(&mut self, half: u64, runs: &[(LogAreaId, u64, u64)]) -> Vec<Parts> {
        let base = slot_of(half) * self.half_blocks;
        let mut places = Vec::new();
        for (run, (_, at, count)) in runs.iter().enumerate() {
            let (mut from, end) = (*at, at.saturating_add(*count).min(self.half_blocks));
            while from < end {
                let part = READ_BLOCKS.min(end - from);
                places.push((run, from, part));
                from += part;
            }
        }
        let reads = places.iter().map(|(run, from, part)| {
            self.store.read(runs[*run].0, base + from, usize::try_from(*part).unwrap_or(0))
        });
        let results = JoinAll::new(reads.collect()).await;
        let mut out: Vec<Parts> = runs.iter().map(|_| Parts::new()).collect();
        for ((run, from, part), result) in places.into_iter().zip(results) {
            let blocks = match result {
                Ok(blocks) => (blocks.len() as u64 == part).then_some(blocks),
                Err(error) => {
                    let finding = LogFinding::Unreadable(error);
                    if !self.findings.contains(&finding) {
                        self.found(finding);
                    }
                    None
                }
            };
            out[run].push((from, part, blocks));
        }
        out
    }

    /// Reads blocks of copies that are read in turn; `None` if not all of them came.
    async fn read(
        &mut self,
        from: &[LogAreaId],
        half: u64,
        at: u64,
        count: u64,
    ) -> Option<Vec<Block>> {
        if at.checked_add(count)? > self.half_blocks {
            return None;
        }
        let mut out = Vec::with_capacity(usize::try_from(count).ok()?);
        let runs = turns(from, at, count);
        for (_, _, part) in self.read_runs(half, &runs).await.into_iter().flatten() {
            out.append(&mut part?);
        }
        Some(out)
    }

    /// Whether any area has the chain of a half.
    async fn has_begun(&mut self, half: u64) -> bool {
        let openings = self.holders(Place { half, batch: 0, at: 0 }, &self.areas.clone()).await;
        openings.iter().any(|(_, opening)| opening.head.opens_copy())
    }

    /// Reads the whole chain of a half; empty when no area has its first batch. It is read from its
    /// copies in turn as long as that gives whole batches; where it does not, and at the end, each copy is
    /// looked at by itself.
    async fn chain(&mut self, half: u64) -> Result<Chain, RecoverError> {
        let mut batches: Vec<Batch> = Vec::new();
        let (mut at, mut number) = (0u64, 0u32);
        // Areas that had a batch of this half; the others are not asked again.
        let mut copies = self.areas.clone();
        // Those of them that had the last batch that was looked for in each.
        let mut from: Vec<LogAreaId> = Vec::new();
        let mut columns = None;
        let torn = loop {
            let place = Place { half, batch: number, at };
            let mut found = self.batch_in_turn(&from, place, columns.as_ref()).await;
            let mut begun = false;
            if found.is_none() {
                let mut holders = self.holders(place, &copies).await;
                if number == 0 {
                    columns = columns_of(&holders);
                    holders.retain(|(_, opening)| opening.head.opens_copy());
                }
                begun = !holders.is_empty();
                found = self.batch(place, &holders, columns.as_ref()).await;
                if let Some(found) = &found {
                    from = holders.iter().map(|(holder, _)| *holder).collect();
                    if number == 0 {
                        copies.clone_from(&from);
                        copies.extend(self.late_copies(half, at + found.blocks, &copies).await);
                    } else {
                        self.note_damaged(half, found, &holders, &copies);
                    }
                }
            }
            let Some(Found { batch, blocks }) = found else {
                break begun;
            };
            batches.push(batch);
            at += blocks;
            number = number.saturating_add(1);
        };
        if self.later_batch(half, at, number, &copies).await {
            return Err(RecoverError::Damaged { half, batch: number });
        }
        if torn {
            self.found(LogFinding::TornTail { half, batch: number });
        }
        if let Some(last) = batches.last() {
            let (written, found) =
                (last.head.copies, u32::try_from(copies.len()).unwrap_or(u32::MAX));
            if found < written {
                self.found(LogFinding::CopyMissing { half, written, found });
            }
        }
        let spread = batches.iter().skip(1).any(|batch| batch.head.spread.is_some());
        if let Some(columns) = columns.filter(|_| spread) {
            let (written, found) = (columns.of.count(), columns.areas.iter().flatten().count());
            if found < written {
                self.found(LogFinding::ColumnsMissing { half, written, found });
            }
        }
        Ok(Chain { batches })
    }

    /// Areas whose first batch is damaged but which have the second one: copies as well.
    async fn late_copies(
        &mut self,
        half: u64,
        second_at: u64,
        known: &[LogAreaId],
    ) -> Vec<LogAreaId> {
        let second = Place { half, batch: 1, at: second_at };
        let others: Vec<LogAreaId> =
            self.areas.iter().filter(|area| !known.contains(area)).copied().collect();
        let late = self.holders(second, &others).await;
        for (area, _) in &late {
            self.found(LogFinding::Mended { half, batch: 0, area: *area });
        }
        late.into_iter().map(|(area, _)| area).collect()
    }

    /// The areas that have the header of a batch; all are asked at once.
    async fn holders(&mut self, place: Place, areas: &[LogAreaId]) -> Vec<(LogAreaId, Decoded)> {
        let runs: Vec<_> = areas.iter().map(|area| (*area, place.at, 1)).collect();
        let read = self.read_runs(place.half, &runs).await;
        let of_area = |(area, parts): (&LogAreaId, Parts)| {
            let (_, _, blocks) = parts.into_iter().next()?;
            Some((*area, self.header(place, blocks?.first()?)?))
        };
        areas.iter().zip(read).filter_map(of_area).collect()
    }

    /// A block as the header of a batch, if it is that.
    fn header(&self, place: Place, block: &Block) -> Option<Decoded> {
        let decoded = decode_header(self.log, block)?;
        let head = &decoded.head;
        let right =
            head.half == place.half && head.batch == place.batch && u64::from(head.at) == place.at;
        right.then_some(decoded)
    }

    /// A batch from copies that are read in turn, if it is whole there.
    async fn batch_in_turn(
        &mut self,
        from: &[LogAreaId],
        place: Place,
        columns: Option<&HalfColumns>,
    ) -> Option<Found> {
        let first = self.read_ahead(from, place.half, place.at, 1).await?;
        let decoded = self.header(place, first.first()?)?;
        let blocks = decoded.blocks as u64;
        let content = self.read_ahead(from, place.half, place.at, blocks).await?;
        let descriptors = decode_descriptors(&decoded, &content)?;
        // What lies behind the descriptors differs from column to column.
        let whose = match turns(from, place.at, blocks)[..] {
            [(area, ..)] => Some(area),
            _ => None,
        };
        self.with_payload(place, &decoded, descriptors, &[], (whose, content), columns).await
    }

    /// Reads one batch, block by block from whichever of its holders is whole.
    async fn batch(
        &mut self,
        place: Place,
        holders: &[(LogAreaId, Decoded)],
        columns: Option<&HalfColumns>,
    ) -> Option<Found> {
        let Place { half, at, .. } = place;
        for (area, decoded) in holders {
            let blocks = decoded.blocks as u64;
            let content = match self.read_ahead(&[*area], half, at, blocks).await {
                Some(content) => content,
                None => self.read_whole(half, &[(*area, at, blocks)]).await.concat(),
            };
            let Some(descriptors) = decode_descriptors(decoded, &content) else { continue };
            let own = (Some(*area), content);
            return self.with_payload(place, decoded, descriptors, holders, own, columns).await;
        }
        None
    }

    /// Puts a batch together from its descriptors and its blocks, all of which are from one copy where
    /// that is named; what is damaged comes from `holders` and from the columns.
    async fn with_payload(
        &mut self,
        place: Place,
        decoded: &Decoded,
        descriptors: Vec<Descriptor>,
        holders: &[(LogAreaId, Decoded)],
        (whose, mut content): (Option<LogAreaId>, Vec<Block>),
        columns: Option<&HalfColumns>,
    ) -> Option<Found> {
        let own = content.split_off(decoded.descriptor_blocks);
        let crcs: Vec<Crc> = descriptors.iter().flat_map(|d| &d.payload).copied().collect();
        let cells = Place { at: place.at + decoded.descriptor_blocks as u64, ..place };
        let payload = match decoded.head.spread {
            // In an opening batch it says what the half has.
            Some(spread) if place.batch > 0 => {
                let columns = columns.filter(|columns| columns.of == spread)?;
                let own = whose.map(|area| (area, &own[..]));
                self.gather(cells, columns, &crcs, own).await?
            }
            _ => self.copied(cells, holders, &crcs, (whose, own)).await?,
        };
        let mut payload = payload.into_iter();
        let records = descriptors
            .into_iter()
            .map(|descriptor| {
                let own = payload.by_ref().take(descriptor.payload.len()).collect();
                descriptor.with_payload(own)
            })
            .collect();
        let batch = Batch { head: decoded.head, records };
        Some(Found { batch, blocks: decoded.blocks as u64 })
    }

    /// Payload that lies behind the descriptors of every copy: that of one of them, and what is damaged
    /// there from the others.
    async fn copied(
        &mut self,
        cells: Place,
        holders: &[(LogAreaId, Decoded)],
        crcs: &[Crc],
        (whose, own): (Option<LogAreaId>, Vec<Block>),
    ) -> Option<Vec<Block>> {
        if own.len() != crcs.len() {
            return None;
        }
        let mut whole = Vec::with_capacity(own.len());
        for ((block, crc), place) in own.into_iter().zip(crcs).zip(cells.at..) {
            if crc32fast::hash(&block[..]) == crc.get() {
                whole.push(block);
            } else {
                whole.push(self.other_copy(cells.half, place, crc.get(), holders).await?);
                let (half, batch) = (cells.half, cells.batch);
                if let Some(area) = whose {
                    self.found(LogFinding::Mended { half, batch, area });
                }
            }
        }
        Some(whole)
    }

    /// Payload that is spread over columns; what is damaged or not there is found from parity.
    async fn gather(
        &mut self,
        cells: Place,
        columns: &HalfColumns,
        crcs: &[Crc],
        own: Option<(LogAreaId, &[Block])>,
    ) -> Option<Vec<Block>> {
        let (data, rows) = (usize::from(columns.of.data), columns.of.rows(crcs.len()));
        if cells.at + rows as u64 > self.half_blocks {
            return None;
        }
        let runs: Vec<Range<usize>> = (0..data).map(|c| columns.of.run(c, crcs.len())).collect();
        let wanted: Vec<(Option<LogAreaId>, usize)> =
            columns.areas.iter().copied().zip(runs.iter().map(Range::len)).collect();
        let mut whole: Vec<Option<Block>> = Vec::with_capacity(crcs.len());
        let mut damaged = BTreeSet::new();
        let read = self.read_columns(cells, &wanted, own).await;
        for ((column, (area, _)), run) in read.into_iter().zip(&wanted).zip(&runs) {
            let mut column = column.into_iter();
            for crc in &crcs[run.clone()] {
                let right = |block: &Block| crc32fast::hash(&block[..]) == crc.get();
                let block = column.next().filter(right);
                if let (None, Some(area)) = (&block, area) {
                    damaged.insert(*area);
                }
                whole.push(block);
            }
        }
        if whole.iter().any(Option::is_none) {
            let parity: Vec<(Option<LogAreaId>, usize)> =
                columns.areas.iter().skip(data).map(|area| (*area, rows)).collect();
            let parity = self.read_columns(cells, &parity, None).await;
            for row in 0..rows {
                let at = |run: &Range<usize>| Some(run.start + row).filter(|at| run.contains(at));
                let places: Vec<Option<usize>> = runs.iter().map(at).collect();
                if places.iter().flatten().all(|at| whole[*at].is_some()) {
                    continue;
                }
                let parity: Vec<Option<Block>> =
                    parity.iter().map(|c| c.get(row).cloned()).collect();
                for (at, block) in self.restored(&places, &whole, &parity, crcs)? {
                    whole[at] = Some(block);
                }
            }
        }
        for area in damaged {
            self.found(LogFinding::Mended { half: cells.half, batch: cells.batch, area });
        }
        whole.into_iter().collect()
    }

    /// The blocks that are missing of one row, by their place in the payload. Parity may be damaged too:
    /// if what comes of all of it is not right, each column is left out in turn.
    fn restored(
        &self,
        places: &[Option<usize>],
        whole: &[Option<Block>],
        parity: &[Option<Block>],
        crcs: &[Crc],
    ) -> Option<Vec<(usize, Block)>> {
        // Where the payload has ended a row has zeros.
        let known =
            |at: &Option<usize>| at.map_or_else(|| Some(Block::zero()), |at| whole[at].clone());
        let data: Vec<Option<Block>> = places.iter().map(known).collect();
        (0..=parity.len()).find_map(|without| {
            let mut row = data.clone();
            let left = |n: usize| if n + 1 == without { None } else { parity[n].clone() };
            row.extend((0..parity.len()).map(left));
            if !self.store.spread_restore(&mut row, parity.len()) {
                return None;
            }
            let missing = places.iter().flatten().filter(|at| whole[**at].is_none());
            let found = missing.map(|at| {
                let column = places.iter().position(|place| *place == Some(*at))?;
                let block = row[column].take()?;
                let right = crc32fast::hash(&block[..]) == crcs[*at].get();
                (right || mutant("log-spread-believed")).then_some((*at, block))
            });
            found.collect()
        })
    }

    /// As many blocks of each column, all of them read together; none of one that is not there, zeros for
    /// what is unreadable. One of them is at hand.
    async fn read_columns(
        &mut self,
        cells: Place,
        columns: &[(Option<LogAreaId>, usize)],
        own: Option<(LogAreaId, &[Block])>,
    ) -> Vec<Vec<Block>> {
        let mut out = vec![Vec::new(); columns.len()];
        let (mut runs, mut read_of) = (Vec::new(), Vec::new());
        for (column, (area, blocks)) in columns.iter().enumerate() {
            let Some(area) = *area else { continue };
            match own.filter(|(at_hand, _)| *at_hand == area) {
                Some((_, own)) => out[column].extend(own.iter().take(*blocks).cloned()),
                None => {
                    runs.push((area, cells.at, *blocks as u64));
                    read_of.push(column);
                }
            }
        }
        for (blocks, column) in self.read_whole(cells.half, &runs).await.into_iter().zip(read_of) {
            out[column] = blocks;
        }
        out
    }

    /// Fewer holders than a batch was written to: the rest is damaged (or gone), not dropped.
    fn note_damaged(
        &mut self,
        half: u64,
        found: &Found,
        holders: &[(LogAreaId, Decoded)],
        copies: &[LogAreaId],
    ) {
        let head = &found.batch.head;
        if holders.len() >= usize::try_from(head.copies).unwrap_or(0) {
            return;
        }
        for area in copies {
            if !holders.iter().any(|(holder, _)| holder == area) {
                self.found(LogFinding::Mended { half, batch: head.batch, area: *area });
            }
        }
    }

    /// Reads from a chain that is read in order: more is fetched than was asked for, at first a
    /// little, then as many pieces of each copy as there is room for.
    async fn read_ahead(
        &mut self,
        from: &[LogAreaId],
        half: u64,
        at: u64,
        count: u64,
    ) -> Option<Vec<Block>> {
        let want = usize::try_from(count).ok()?;
        let mut ahead = core::mem::take(&mut self.ahead);
        if !ahead.goes_on(from, half, at) {
            ahead = Ahead {
                of: Some((from.to_vec(), half)),
                at,
                blocks: VecDeque::new(),
                fetch: AHEAD_BLOCKS_MIN,
            };
        }
        let passed = usize::try_from(at - ahead.at).ok()?.min(ahead.blocks.len());
        ahead.blocks.drain(..passed);
        ahead.at = at;
        if ahead.blocks.len() < want {
            let end = at + ahead.blocks.len() as u64;
            let missing = count - ahead.blocks.len() as u64;
            let fetch = missing.max(ahead.fetch).min(self.half_blocks.saturating_sub(end));
            let mut more = self.read(from, half, end, fetch).await;
            if more.is_none() && missing < fetch {
                more = self.read(from, half, end, missing).await;
            }
            ahead.blocks.extend(more?);
            let round = PIECE_BLOCKS * from.len() as u64;
            let most = AHEAD_BLOCKS_MAX - AHEAD_BLOCKS_MAX.checked_rem(round).unwrap_or(0);
            ahead.fetch = (ahead.fetch * 2).min(most);
        }
        let enough = ahead.blocks.len() >= want;
        let blocks = enough.then(|| ahead.blocks.range(..want).cloned().collect());
        self.ahead = ahead;
        blocks
    }

    /// Reads runs of blocks together, and block by block what cannot be read at once; zeros stand for what is
    /// unreadable.
    async fn read_whole(&mut self, half: u64, runs: &[(LogAreaId, u64, u64)]) -> Vec<Vec<Block>> {
        let mut out = Vec::with_capacity(runs.len());
        for (parts, (area, ..)) in self.read_runs(half, runs).await.into_iter().zip(runs) {
            let mut whole = Vec::new();
            for (from, blocks, part) in parts {
                if let Some(mut part) = part {
                    whole.append(&mut part);
                    continue;
                }
                for block in from..from + blocks {
                    let read = self.read(&[*area], half, block, 1).await;
                    whole.push(read.and_then(|b| b.into_iter().next()).unwrap_or_else(Block::zero));
                }
            }
            out.push(whole);
        }
        out
    }

    /// A payload block with checksum `crc` at `place` of any holder.
    async fn other_copy(
        &mut self,
        half: u64,
        place: u64,
        crc: u32,
        holders: &[(LogAreaId, Decoded)],
    ) -> Option<Block> {
        for (area, _) in holders {
            let Some(blocks) = self.read(&[*area], half, place, 1).await else { continue };
            let block = blocks.into_iter().next()?;
            if crc32fast::hash(&block[..]) == crc {
                return Some(block);
            }
        }
        None
    }

    /// Whether any of `areas` has a batch of `half` with a number above `batch` near `at`. If
    /// `batch` was stable and the log went on, the next one begins at the latest behind the
    /// largest batch there can be at `at`; what lies further off need not be read.
    async fn later_batch(&mut self, half: u64, at: u64, batch: u32, areas: &[LogAreaId]) -> bool {
        let end = self.half_blocks.min(at.saturating_add(1 + SEARCH_BLOCKS));
        let end = end - u64::from(mutant("log-search-one-short") && end > 0);
        let from = at.saturating_add(1);
        let run = |area: &LogAreaId| (*area, from, end.saturating_sub(from));
        let runs: Vec<_> = areas.iter().map(run).collect();
        for blocks in self.read_whole(half, &runs).await {
            let later = blocks.iter().zip(from..).any(|(block, place)| {
                decode_header(self.log, block).is_some_and(|found| {
                    found.head.half == half
                        && found.head.batch > batch
                        && u64::from(found.head.at) == place
                })
            });
            if later {
                return true;
            }
        }
        false
    }

    /// Checks the chains against each other, and drops the last round when it is not whole.
    fn drop_torn_round(&mut self, chains: &mut BTreeMap<u64, Chain>) -> Result<(), RecoverError> {
        let length = |chains: &BTreeMap<u64, Chain>, half: u64| {
            chains.get(&half).map(|c| u32::try_from(c.batches.len()).unwrap_or(u32::MAX))
        };
        let last_round = chains.values().flat_map(|c| &c.batches).map(|b| b.head.round).max();
        let mut torn = Vec::new();
        for (half, chain) in chains.iter() {
            for batch in &chain.batches {
                let Some(other) = batch.head.other else { continue };
                let Some(there) = length(chains, other.half) else { continue };
                if there < other.batches {
                    return Err(RecoverError::Damaged { half: other.half, batch: there });
                }
                if other.peer && there == other.batches && !mutant("torn-round-kept") {
                    if Some(batch.head.round) != last_round {
                        return Err(RecoverError::Damaged { half: other.half, batch: there });
                    }
                    torn.push((*half, batch.head.batch));
                }
            }
        }
        for (half, batch) in torn {
            self.found(LogFinding::TornTail { half, batch });
            if let Some(chain) = chains.get_mut(&half) {
                chain.batches.retain(|b| b.head.batch != batch);
            }
        }
        Ok(())
    }
}

const _: () = assert!(AHEAD_BLOCKS_MIN <= AHEAD_BLOCKS_MAX);
const _: () = assert!(PIECE_BLOCKS * COPIES_MAX as u64 <= AHEAD_BLOCKS_MAX);
