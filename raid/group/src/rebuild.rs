//! Rebuilding positions onto spares.
//!
//! Layer: over stripes. One task per group, all its rebuilding positions together, a region at a
//! time with the stripes locked. Life of a position: `Missing` → (`promote_spares`) `Rebuilding` →
//! (`rebuild_group`, progress durable every [`PERSIST_STRIPES`]) → `Online`. New writes go to the
//! spare from the first moment on; what it holds counts only below the progress mark. Invariant:
//! the durable progress mark never runs ahead of durable blocks and stamps. The same task copies
//! disks out (`copy_out.rs`).

use cairn_sys::lock::atomic::Ordering;
use core::time::Duration;
use std::sync::Arc;

use cairn_raid_api::{ColumnState, WriteError};
use cairn_raid_parity::is_zero;
use cairn_sys::mutant;
use cairn_units::GroupNo;

use crate::Event;
use crate::copy_out::copying;
use crate::core::{Core, Purpose, Writes, count};
use crate::ondisk::{REGION_STRIPES, STAMP_UNKNOWN, StampV1};
use crate::stripe::{StripeCells, solve};
use crate::view::GroupView;

/// Stripes after which progress is made durable.
const PERSIST_STRIPES: u64 = 126 * 128;
/// Blocks in memory for one step.
pub(crate) const STEP_BLOCKS_MAX: usize = 2048;
/// Pause after each step, at least; otherwise as long as the step took, so that clients get half
/// of the disks' time.
const PAUSE_MIN: Duration = Duration::from_micros(200);
const PAUSE_MAX: Duration = Duration::from_millis(50);

impl Core {
    /// Rebuilds what there is to rebuild in a group, then ends.
    pub(crate) async fn rebuild_group(self: Arc<Self>, group: GroupNo) {
        let result = self.clone().rebuild_all(group).await;
        self.rebuilding.lock().remove(&group);
        match result {
            // A position may have been given to a spare after the last look.
            Ok(()) => self.start_rebuilds(),
            Err(error) => tracing::error!(%group, %error, "rebuild stopped"),
        }
    }

    async fn rebuild_all(self: Arc<Self>, group: GroupNo) -> Result<(), WriteError> {
        let mut since_persist = 0;
        while !self.is_stopped() {
            let view = self.view();
            let Some(now) = view.groups.get(&group) else { return Ok(()) };
            self.check_group(now)?;
            let (at, copy) = match (next_stripe(now), copying(&view, group)) {
                (Some(at), _) => (at, false),
                (None, Some((_, _, twin))) => (twin.progress.load(Ordering::Acquire), true),
                (None, None) => return Ok(()),
            };
            if at >= now.stripes {
                if copy {
                    self.finish_copy(group).await?;
                } else {
                    self.finish_rebuild(group).await?;
                }
                continue;
            }
            let begun = self.world.clock.monotonic();
            let (done, worked) = if copy {
                self.copy_step(group, at).await?
            } else {
                self.rebuild_step(group, at).await?
            };
            since_persist += done;
            if since_persist >= PERSIST_STRIPES {
                self.persist_progress(group).await?;
                since_persist = 0;
            }
            if worked {
                let took = self.world.clock.monotonic().since(begun).unwrap_or(0);
                let pause = Duration::from_nanos(took).clamp(PAUSE_MIN, PAUSE_MAX);
                self.world.clock.sleep(pause).await;
            }
        }
        Ok(())
    }

    /// Rebuilds from stripe `at` to the end of its region at most. Returns the stripes done, and
    /// whether there was anything to do.
    async fn rebuild_step(
        self: &Arc<Self>,
        group: GroupNo,
        at: u64,
    ) -> Result<(u64, bool), WriteError> {
        let interval = self.interval.read().await;
        let region = at / REGION_STRIPES;
        let held = self.locks.acquire(group, core::iter::once(region)).await;
        let view = self.view();
        let Some(group) = view.groups.get(&group) else { return Ok((0, false)) };
        let step = (STEP_BLOCKS_MAX / group.slots.len().max(1)).max(1) as u64;
        let end = group.stripes.min((region + 1) * REGION_STRIPES).min(at + step);
        let written =
            group.slots.iter().any(|s| s.readable(at).is_some_and(|m| m.map.any_written(region)));
        if written {
            self.rebuild_stripes(group, at..end).await;
            self.settle().await?;
        }
        for slot in group.slots.iter().filter(|s| is_rebuilding(s)) {
            // Only the slots that this step served move on.
            if slot.progress.load(Ordering::Acquire) >= at {
                slot.progress.fetch_max(end, Ordering::AcqRel);
            }
        }
        drop(held);
        drop(interval);
        Ok((end - at, written))
    }

    async fn rebuild_stripes(self: &Arc<Self>, group: &GroupView, stripes: core::ops::Range<u64>) {
        let region = stripes.start / REGION_STRIPES;
        let stamps = self.load_stamps(group, &[region]).await;
        let mut cells: Vec<StripeCells> =
            stripes.map(|s| StripeCells::new(s, group.slots.len())).collect();
        self.read_cells(group, &stamps, &mut cells, |_, _| true).await;
        let mut writes = Writes::default();
        for cells in &cells {
            let stripe = cells.stripe;
            let solved = solve(group, cells);
            for (i, slot) in group.slots.iter().enumerate() {
                let target = is_rebuilding(slot) && slot.readable(stripe).is_none();
                if !target {
                    continue;
                }
                let Some(entry) = stamps.entry(i, stripe) else { continue };
                let Ok(solved) = &solved else {
                    let unknown = StampV1 { flags: STAMP_UNKNOWN.into(), ..StampV1::default() };
                    entry.lock().set(stripe, unknown);
                    writes.touch(i, stripe);
                    continue;
                };
                let block = &solved.blocks[i];
                let zero = is_zero(block);
                if zero && entry.lock().get(stripe).is_zero() {
                    continue;
                }
                self.stage_block(group, &stamps, stripe, i, block, &mut writes);
            }
            match solved {
                Ok(solved) => {
                    if !solved.consistent {
                        // One column holds an old block with its old stamp, and what would tell
                        // which one is lost: readers still have their pointers' checksums.
                        tracing::error!(stripe, "diagonal parity does not agree with a rebuild");
                    }
                    let mended = self.stage_repairs(group, &stamps, cells, &solved, &mut writes);
                    count(&self.counters.repaired_blocks, mended);
                }
                Err(lost) => {
                    tracing::error!(stripe, lost = lost.0, "stripe cannot be rebuilt");
                    self.event(Event::StripeLost { group: group.group, stripe });
                }
            }
        }
        self.seal_stamps(&stamps, &mut writes);
        self.write_many(writes, Purpose::NewData).await;
    }

    /// Makes progress durable: blocks and stamps first, then the mark.
    async fn persist_progress(&self, group: GroupNo) -> Result<(), WriteError> {
        let marks: Vec<_> = {
            let view = self.view();
            let Some(group) = view.groups.get(&group) else { return Ok(()) };
            let rebuilt = group.slots.iter().filter(|s| is_rebuilding(s));
            let rebuilt = rebuilt.filter_map(|s| Some((s.member.as_ref()?.uuid, &s.progress)));
            let copied = group.slots.iter().filter_map(|s| s.twin());
            rebuilt
                .chain(copied.map(|t| (t.member.uuid, &t.progress)))
                .map(|(disk, progress)| (disk, progress.load(Ordering::Acquire)))
                .collect()
        };
        if !mutant("rebuild-mark-before-flush") {
            self.flush_interval().await?;
        }
        let _config = self.config.lock().await;
        let mut config = self.view().config.clone();
        let Some(group) = config.groups.get_mut(&group) else { return Ok(()) };
        for position in group.positions.values_mut() {
            let mark = marks.iter().find(|(disk, _)| position.disk == Some(*disk));
            if let (ColumnState::Rebuilding, Some((_, progress))) = (position.state, mark) {
                position.progress = *progress;
            }
            if let Some(twin) = &mut position.twin
                && let Some((_, progress)) = marks.iter().find(|(disk, _)| twin.disk == *disk)
            {
                twin.progress = *progress;
            }
        }
        self.adopt(config).await?;
        self.settle_locked().await
    }

    /// Positions that are whole become `Online`.
    async fn finish_rebuild(&self, no: GroupNo) -> Result<(), WriteError> {
        self.flush_interval().await?;
        let mut done = Vec::new();
        {
            let _config = self.config.lock().await;
            let view = self.view();
            let mut config = view.config.clone();
            let (Some(now), Some(group)) = (view.groups.get(&no), config.groups.get_mut(&no))
            else {
                return Ok(());
            };
            for slot in now.slots.iter().filter(|s| is_rebuilding(s)) {
                let whole = slot.progress.load(Ordering::Acquire) >= now.stripes;
                let Some(position) = group.positions.get_mut(&slot.column).filter(|_| whole) else {
                    continue;
                };
                position.state = ColumnState::Online;
                position.progress = 0;
                done.extend(slot.member.clone().map(|m| (m, slot.column)));
            }
            self.adopt(config).await?;
            self.settle_locked().await?;
        }
        for (member, column) in done {
            if let Err(error) = self.store_label(&member).await {
                // The label's position is for people only; the disk itself may be in trouble.
                self.fault(&member, &error);
            }
            self.event(Event::RebuildFinished { disk: member.uuid, group: no, column });
        }
        Ok(())
    }
}

fn is_rebuilding(slot: &crate::view::Slot) -> bool {
    slot.state == ColumnState::Rebuilding && slot.writable().is_some()
}

/// First stripe that a rebuilding position still needs.
fn next_stripe(group: &GroupView) -> Option<u64> {
    let rebuilding = group.slots.iter().filter(|s| is_rebuilding(s));
    rebuilding.map(|s| s.progress.load(Ordering::Acquire)).min()
}
