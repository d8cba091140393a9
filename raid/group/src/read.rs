//! Reading blocks: straight from the disk when the checksum is right, else from parity.
//!
//! Layer: over stripes. The fast path takes no lock and reads no checksum block when the pointer
//! carries the checksum. Invariant: what is returned matched the pointer's checksum, or its own
//! stamp, or was computed from blocks that all matched theirs.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_raid_api::{ReadError, ReadRequest};
use cairn_sys::{Block, BoxFuture, mutant};
use cairn_units::Crc;

use crate::core::{Core, Purpose, Want, Writes, count};
use crate::member::RegionKnown;
use crate::ondisk::{REGION_STRIPES, crc_of};
use crate::stamps::StampKind;
use crate::stripe::{Cell, Solved, StripeCells, parity_agrees, solve};
use crate::tools::join_all;
use crate::view::{GroupView, View};

/// Slow reads that one call runs at once.
const SLOW_READS_MAX: usize = 16;

impl Core {
    pub(crate) async fn read_blocks(
        self: &Arc<Self>,
        requests: Vec<ReadRequest>,
    ) -> Vec<Result<Block, ReadError>> {
        let view = self.view();
        let mut answers: Vec<Option<Result<Block, ReadError>>> = vec![None; requests.len()];
        let mut wants = Vec::new();
        let mut places: Vec<(usize, Crc)> = Vec::new();
        for (i, request) in requests.iter().enumerate() {
            let Some((group, slot, stripe)) = view.locate(request.at) else {
                answers[i] = Some(Err(ReadError::OutOfRange { at: request.at }));
                continue;
            };
            let Some(member) = group.slots[slot].readable(stripe) else { continue };
            let never = member.map.known(stripe / REGION_STRIPES) == RegionKnown::Never;
            let expect = match request.expect {
                Some(crc) if never => {
                    let zero = Block::zero();
                    if crc_of(&zero) == crc {
                        answers[i] = Some(Ok(zero));
                    }
                    continue;
                }
                Some(crc) => crc,
                None => match self.stamps.get(member, stripe / REGION_STRIPES).await {
                    Ok(entry) => {
                        let entry = entry.lock();
                        let stamp = entry.get(stripe);
                        match stamp.kind() {
                            _ if stamp.is_doubtful() => continue,
                            StampKind::Written(crc) => crc,
                            StampKind::Zero => {
                                answers[i] = Some(Ok(Block::zero()));
                                continue;
                            }
                            _ => continue,
                        }
                    }
                    Err(_) => continue,
                },
            };
            wants.push(Want { member: member.clone(), at: member.layout.stripe_dbn(stripe) });
            places.push((i, expect));
        }
        for ((i, expect), answer) in places.into_iter().zip(self.read_many(wants).await) {
            if let Ok(block) = answer
                && (crc_of(&block) == expect || mutant("checksum-not-compared"))
            {
                answers[i] = Some(Ok(block));
            }
        }
        self.settle_soon();
        self.slow_reads(&requests, &mut answers).await;
        answers.into_iter().flatten().collect()
    }

    /// Answers what the fast path could not, a bounded number at a time.
    async fn slow_reads(
        self: &Arc<Self>,
        requests: &[ReadRequest],
        answers: &mut [Option<Result<Block, ReadError>>],
    ) {
        let open: Vec<usize> = (0..requests.len()).filter(|i| answers[*i].is_none()).collect();
        for batch in open.chunks(SLOW_READS_MAX) {
            let reads: Vec<BoxFuture<Result<Block, ReadError>>> = batch
                .iter()
                .map(|i| {
                    let (core, request) = (self.clone(), requests[*i]);
                    let read: BoxFuture<_> = Box::pin(async move { core.read_slow(request).await });
                    read
                })
                .collect();
            for (i, answer) in batch.iter().zip(join_all(reads).await) {
                answers[*i] = Some(answer);
            }
        }
    }

    /// Reads one block with the stripe locked: verifies it, finds it from parity, mends it.
    async fn read_slow(self: Arc<Self>, request: ReadRequest) -> Result<Block, ReadError> {
        let interval = self.interval.read().await;
        let at = request.at;
        let (group, region) = {
            let view = self.view();
            let (group, _, stripe) = view.locate(at).ok_or(ReadError::OutOfRange { at })?;
            (group.group, stripe / REGION_STRIPES)
        };
        let held = self.locks.acquire(group, core::iter::once(region)).await;
        let view: Arc<View> = self.view();
        let (group, slot, stripe) = view.locate(at).ok_or(ReadError::OutOfRange { at })?;
        let stamps = self.load_stamps(group, &[region]).await;
        let mut cells = vec![StripeCells::new(stripe, group.slots.len())];
        self.read_cells(group, &stamps, &mut cells, |_, s| s == slot).await;
        if let Some(block) = cells[0].cells[slot].good()
            && request.expect.is_none_or(|crc| crc == crc_of(block))
        {
            return Ok(block.clone());
        }
        // The stamp may be older than the block: the pointer knows better.
        if let (Some(expect), Some(member)) = (request.expect, group.slots[slot].readable(stripe)) {
            let want = Want { member: member.clone(), at: member.layout.stripe_dbn(stripe) };
            if let Some(Ok(block)) = self.read_many(vec![want]).await.pop()
                && crc_of(&block) == expect
            {
                cells[0].cells[slot] = Cell::Lost;
                self.mend(group, &stamps, &cells[0], &BTreeMap::from([(slot, block.clone())]))
                    .await;
                return Ok(block);
            }
        }
        self.read_cells(group, &stamps, &mut cells, |_, _| true).await;
        let found = find(group, &mut cells[0], slot, &request);
        if let Ok(found) = &found {
            count(&self.counters.reconstructed_blocks, 1);
            self.mend(group, &stamps, &cells[0], &found.repairs).await;
        }
        drop(held);
        drop(interval);
        self.settle_soon();
        found.map(|found| found.block)
    }

    /// Rewrites the blocks given, where a disk is there to take them.
    async fn mend(
        &self,
        group: &GroupView,
        stamps: &crate::stripe::StampSet,
        cells: &StripeCells,
        blocks: &BTreeMap<usize, Block>,
    ) {
        let mut writes = Writes::default();
        let mut repaired = 0;
        for (slot, block) in blocks {
            let cell = &cells.cells[*slot];
            let here = group.slots[*slot].readable(cells.stripe).is_some();
            let at = (cells.stripe, *slot);
            if cell.good().is_none()
                && here
                && self.stage_found(group, stamps, at, cell, block, &mut writes)
            {
                repaired += 1;
            }
        }
        if !writes.is_empty() {
            count(&self.counters.repaired_blocks, repaired);
            self.seal_stamps(stamps, &mut writes);
            self.write_many(writes, Purpose::Mending).await;
        }
    }
}

/// Finds the block of `slot` from the rest of its stripe. Gives every block that is to be
/// rewritten, the one asked for among them.
fn find(
    group: &GroupView,
    cells: &mut StripeCells,
    slot: usize,
    request: &ReadRequest,
) -> Result<Found, ReadError> {
    let at = request.at;
    let matches = |block: &Block| request.expect.is_none_or(|crc| crc == crc_of(block));
    let had = cells.cells[slot].clone();
    cells.cells[slot] = Cell::Lost;
    let mut first = solve(group, cells);
    if let Ok(solved) = &first
        && matches(&solved.blocks[slot])
        && (request.expect.is_some() || solved.consistent)
    {
        return Ok(Found::of(cells, solved, slot));
    }
    // Another column may hold an older block with an older stamp: without it, does it fit?
    for other in 0..cells.cells.len() {
        let cell = match &cells.cells[other] {
            cell @ (Cell::Good(_) | Cell::Doubt(_)) => cell.clone(),
            Cell::Lost | Cell::Unread => continue,
        };
        cells.cells[other] = Cell::Lost;
        if let Ok(solved) = solve(group, cells)
            && request.expect.is_some()
            && matches(&solved.blocks[slot])
        {
            return Ok(Found::of(cells, &solved, slot));
        }
        cells.cells[other] = cell;
    }
    let old = had.good().is_some();
    if old || matches!(had, Cell::Doubt(_)) {
        cells.cells[slot] = had;
    }
    if first.is_err() && !old {
        // What its stamp says, in doubt as it is, is all there is.
        first = solve(group, cells);
    }
    match (first, request.expect) {
        // Nothing tells which one is right, and no pointer is there to ask.
        (Ok(solved), None) if solved.consistent || parity_agrees(group, &solved.blocks) => {
            Ok(Found::of(cells, &solved, slot))
        }
        (Ok(_), Some(expected)) => Err(ReadError::WrongBlock { at, expected }),
        (Ok(_), None) => {
            let lost = group.parity() + 1;
            Err(ReadError::TooManyLost { at, lost, parity: group.parity() })
        }
        (Err(lost), _) => Err(ReadError::TooManyLost { at, lost: lost.0, parity: group.parity() }),
    }
}

/// A block that was asked for, and every block of its stripe that is to be rewritten.
struct Found {
    block: Block,
    repairs: BTreeMap<usize, Block>,
}

impl Found {
    fn of(cells: &StripeCells, solved: &Solved, slot: usize) -> Self {
        let is_bad = |cell: &Cell| match cell {
            Cell::Doubt(_) => !solved.believed,
            cell => cell.good().is_none(),
        };
        let all = cells.cells.iter().zip(&solved.blocks).enumerate();
        let repairs = all.filter(|(_, (cell, _))| is_bad(cell));
        let repairs = repairs.map(|(i, (_, block))| (i, block.clone())).collect();
        Self { block: solved.blocks[slot].clone(), repairs }
    }
}
