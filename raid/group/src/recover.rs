//! Recovery: stripes that were in flux when the power went are made whole.
//!
//! Layer: over stripes and the stripe log. For each live record: columns that were not modified
//! are committed, and what is lost of them is found from their logged parity; columns that were
//! modified are not committed, and what is lost of them becomes zeros; then parity is computed
//! from what is there. Idempotent: the records stay live until the root is written again.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_raid_api::{RootRecord, WriteError};
use cairn_sys::{Block, mutant};
use cairn_units::GroupNo;

use crate::Event;
use crate::core::{Core, Purpose, Writes};
use crate::ondisk::REGION_STRIPES;
use crate::stripe::{Cell, StampSet, StripeCells, parity_slots};
use crate::stripe_log::{DiskMark, Record, Rest, has_bit};
use crate::view::GroupView;

/// Stripes recovered at once.
const BATCH_STRIPES: usize = 64;

impl Core {
    /// Makes the stripes of the live records whole.
    pub(crate) async fn recover(
        self: &Arc<Self>,
        records: BTreeMap<(GroupNo, u64), Record>,
    ) -> Result<(), WriteError> {
        if records.is_empty() {
            return Ok(());
        }
        tracing::info!(stripes = records.len(), "recovering stripes from the stripe log");
        let view = self.view();
        for record in records.values() {
            let Some(group) = view.groups.get(&record.group) else { continue };
            let region = record.stripe / REGION_STRIPES;
            for slot in &group.slots {
                if let Some(member) = slot.writable() {
                    // A disk that was a twin then may be its column's own by now.
                    let as_twin = record.twin.filter(|t| t.disk == DiskMark::of(member.uuid));
                    let fresh = as_twin.map_or_else(
                        || has_bit(&record.fresh, slot.column.get()),
                        |twin| twin.fresh,
                    );
                    if fresh {
                        self.stamps.note_fresh(member.uuid, region);
                    }
                }
                if let (Some(twin), Some(said)) = (slot.twin(), record.twin)
                    && said.fresh
                    && said.disk == DiskMark::of(twin.member.uuid)
                {
                    self.stamps.note_fresh(twin.member.uuid, region);
                }
            }
        }
        let known = |r: &Record| view.groups.get(&r.group).is_some_and(|g| r.stripe < g.stripes);
        let all: Vec<Record> = records.into_values().filter(known).collect();
        for batch in all.chunk_by(|a, b| a.group == b.group) {
            for batch in batch.chunks(BATCH_STRIPES) {
                self.recover_batch(batch).await?;
            }
        }
        Ok(())
    }

    async fn recover_batch(self: &Arc<Self>, records: &[Record]) -> Result<(), WriteError> {
        let interval = self.interval.read().await;
        let view = self.view();
        let Some(group) = records.first().and_then(|r| view.groups.get(&r.group)) else {
            return Ok(());
        };
        let mut regions: Vec<u64> = records.iter().map(|r| r.stripe / REGION_STRIPES).collect();
        regions.dedup();
        let _held = self.locks.acquire(group.group, regions.iter().copied()).await;
        let mut stamps = self.load_stamps(group, &regions).await;
        self.drop_mute_disks(group, &mut stamps, &regions);
        let mut cells: Vec<StripeCells> =
            records.iter().map(|r| StripeCells::new(r.stripe, group.slots.len())).collect();
        self.read_cells(group, &stamps, &mut cells, |_, _| true).await;
        let mut writes = Writes::default();
        for (record, cells) in records.iter().zip(&cells) {
            self.recover_stripe(group, &stamps, record, cells, &mut writes);
        }
        self.seal_stamps(&stamps, &mut writes);
        self.write_many(writes, Purpose::NewData).await;
        drop(interval);
        self.settle().await
    }

    fn recover_stripe(
        &self,
        group: &GroupView,
        stamps: &StampSet,
        record: &Record,
        cells: &StripeCells,
        writes: &mut Writes,
    ) {
        let width = group.width();
        let Some(data) = data_of(group, record, cells) else {
            // Left as it is: a read that names the checksum it expects will tell.
            tracing::error!(stripe = record.stripe, "stripe cannot be recovered");
            self.event(Event::StripeLost { group: record.group, stripe: record.stripe });
            return;
        };
        let columns = group.slots.iter().zip(&data).take(width);
        let parity = group.code.encode(columns.map(|(s, b)| (s.column.get(), b)));
        let mut whole: Vec<Option<Block>> = data.into_iter().map(Some).collect();
        for (_, diagonal) in parity_slots(group) {
            whole.push(if diagonal { parity.diagonal.clone() } else { Some(parity.row.clone()) });
        }
        for i in 0..group.slots.len() {
            // All checksum blocks that may have been under way are written again: a torn one
            // could be made whole by another tear later, and a map bit may have become durable
            // without its stamps.
            if stamps.entry(i, record.stripe).is_some() {
                writes.touch(i, record.stripe);
            }
        }
        for (i, block) in whole.iter().enumerate() {
            let Some(block) = block else { continue };
            // What a twin holds was not looked at.
            let twin = stamps.twin(i, record.stripe).is_some();
            let cell = &cells.cells[i];
            let as_it_was = !twin && cell.good() == Some(block);
            if !as_it_was && !mutant("recovery-leaves-parity") {
                self.stage_found(group, stamps, (record.stripe, i), cell, block, writes);
            }
        }
    }

    /// Recovery is durable: flush, then the root, which makes the log dead.
    pub(crate) async fn finish_recovery(&self, root: Option<RootRecord>) -> Result<(), WriteError> {
        match root {
            Some(record) => self.commit(record).await?,
            None => self.flush_recovered().await?,
        }
        self.stamps.forget_fresh();
        Ok(())
    }
}

/// Every data block of a recorded stripe: what is there, what the log gives back, zeros for what
/// was never committed. `None` when committed blocks are lost for good.
fn data_of(group: &GroupView, record: &Record, cells: &StripeCells) -> Option<Vec<Block>> {
    let width = group.width();
    let modified = |i: usize| has_bit(&record.mask, group.slots[i].column.get());
    let mut data: Vec<Option<Block>> = (0..width)
        .map(|i| match &cells.cells[i] {
            Cell::Good(block) => Some(block.clone()),
            _ if modified(i) => Some(Block::zero()),
            _ => None,
        })
        .collect();
    if data.iter().all(Option::is_some) {
        return data.into_iter().collect();
    }
    match &record.rest {
        Rest::None | Rest::Zero => {
            Some(data.into_iter().map(|b| b.unwrap_or_else(Block::zero)).collect())
        }
        Rest::Partial(partial) => {
            // The unmodified columns as a stripe of their own.
            let mut columns: Vec<(u16, Option<Block>)> = (0..width)
                .map(|i| {
                    let block = if modified(i) { Some(Block::zero()) } else { data[i].clone() };
                    (group.slots[i].column.get(), block)
                })
                .collect();
            for (slot, diagonal) in parity_slots(group) {
                let block = partial.get(usize::from(diagonal)).cloned();
                columns.push((group.slots[slot].column.get(), block));
            }
            if group.code.decode(&mut columns).is_err() {
                for (i, (_, block)) in columns.iter_mut().enumerate().take(width) {
                    if let Cell::Doubt(held) = &cells.cells[i] {
                        block.get_or_insert_with(|| held.clone());
                    }
                }
                group.code.decode(&mut columns).ok()?;
            }
            for (i, (_, block)) in columns.into_iter().enumerate().take(width) {
                if data[i].is_none() {
                    data[i] = block;
                }
            }
            data.into_iter().collect()
        }
    }
}
