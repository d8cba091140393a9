//! Scrub: every stamp and the parity of every stripe, verified and mended; before them what
//! `scrub_meta.rs` looks at.
//!
//! Layer: over stripes. One task, region by region with the stripes locked, throttled. A block
//! that does not match its stamp is found from parity. A stripe whose stamps all match and whose
//! parity does not is a lost write of a block together with its stamp: it is mended only when
//! exactly one column explains it.

use core::time::Duration;
use std::sync::Arc;

use cairn_raid_api::{SCRUB_FINDINGS_MAX, ScrubFault, ScrubFinding, ScrubStatus};
use cairn_sys::Block;
use cairn_units::{Blocks, Dbn, GroupNo};

use crate::core::{Core, Purpose, Writes, count};
use crate::ondisk::{REGION_STRIPES, crc_of};
use crate::stamps::StampKind;
use crate::stripe::{Cell, Solved, StampSet, StripeCells, parity_agrees, solve};
use crate::view::GroupView;

/// Blocks in memory for one step.
const STEP_BLOCKS_MAX: usize = 2048;
/// Pause after each step, within these: half as long as the step took.
const PAUSE_MIN: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// What one stripe had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    pub damaged: u64,
    pub repaired: u64,
    pub mismatches: u64,
}

impl Core {
    /// Keeps a finding, if there are not too many.
    pub(crate) fn found(&self, finding: ScrubFinding) {
        let mut all = self.scrub_findings.lock();
        if all.len() < SCRUB_FINDINGS_MAX {
            all.push(finding);
        }
    }

    /// Keeps a finding about the block that stands in a slot of a stripe.
    fn found_block(
        &self,
        group: &GroupView,
        stripe: u64,
        slot: usize,
        what: ScrubFault,
        repaired: bool,
    ) {
        let Some(member) = group.slots[slot].readable(stripe) else { return };
        let (disk, dbn) = (Some(member.uuid), member.layout.stripe_dbn(stripe));
        self.found(ScrubFinding { what, disk, dbn, stripe: Some((group.group, stripe)), repaired });
    }

    /// Starts a scrub unless one runs.
    pub(crate) fn begin_scrub(self: &Arc<Self>) {
        {
            let mut status = self.scrub.lock();
            if status.running || self.is_stopped() {
                return;
            }
            let stripes = self.view().groups.values().map(|g| g.stripes).sum();
            *status = ScrubStatus {
                running: true,
                stripes_total: Blocks::new(stripes),
                finished: status.finished,
                ..ScrubStatus::default()
            };
            self.scrub_findings.lock().clear();
        }
        let core = self.clone();
        self.world.spawn.spawn(
            "scrub",
            Box::pin(async move {
                let meta = core.scrub_meta().await;
                core.settle_soon();
                {
                    let mut status = core.scrub.lock();
                    status.damaged += meta.damaged;
                    status.repaired += meta.repaired;
                }
                let groups: Vec<GroupNo> = core.view().groups.keys().copied().collect();
                for group in groups {
                    core.scrub_group(group).await;
                }
                let mut status = core.scrub.lock();
                status.running = false;
                if !core.is_stopped() {
                    status.finished = Some(core.world.clock.monotonic());
                }
            }),
        );
    }

    async fn scrub_group(self: &Arc<Self>, group: GroupNo) {
        let mut at = 0;
        while !self.is_stopped() {
            let begun = self.world.clock.monotonic();
            let Some((next, worked)) = self.scrub_step(group, at).await else { return };
            {
                let mut status = self.scrub.lock();
                status.stripes_done = Blocks::new(status.stripes_done.get() + (next - at));
            }
            at = next;
            if worked {
                let took = self.world.clock.monotonic().since(begun).unwrap_or(0);
                let pause = Duration::from_nanos(took / 2).clamp(PAUSE_MIN, PAUSE_MAX);
                self.world.clock.sleep(pause).await;
            }
        }
    }

    /// Checks from stripe `at` to the end of its region at most; `None` at the end of the group.
    async fn scrub_step(self: &Arc<Self>, no: GroupNo, at: u64) -> Option<(u64, bool)> {
        let interval = self.interval.read().await;
        let region = at / REGION_STRIPES;
        let held = self.locks.acquire(no, core::iter::once(region)).await;
        let view = self.view();
        let group = view.groups.get(&no)?;
        if at >= group.stripes || group.failed() {
            return None;
        }
        let step = (STEP_BLOCKS_MAX / group.slots.len().max(1)).max(1) as u64;
        let end = group.stripes.min((region + 1) * REGION_STRIPES).min(at + step);
        let members: Vec<_> = group.slots.iter().filter_map(|s| s.readable(at)).collect();
        let written = members.iter().any(|m| m.map.any_written(region));
        if !written {
            return Some((end, false));
        }
        if at.is_multiple_of(REGION_STRIPES) {
            for member in members {
                if let Err(error) = self.stamps.look_again(member, region).await {
                    self.fault(member, &error);
                }
            }
        }
        let stamps = self.load_stamps(group, &[region]).await;
        let mut cells: Vec<StripeCells> =
            (at..end).map(|s| StripeCells::new(s, group.slots.len())).collect();
        self.read_cells(group, &stamps, &mut cells, |_, _| true).await;
        let mut writes = Writes::default();
        let mut sum = Findings::default();
        let lost_copies =
            if at.is_multiple_of(REGION_STRIPES) { stamps.lost_copies() } else { Vec::new() };
        for (slot, ..) in &lost_copies {
            writes.touch(*slot, at);
        }
        for cells in &mut cells {
            let one = self.scrub_stripe(group, &stamps, cells, &mut writes);
            sum.damaged += one.damaged;
            sum.repaired += one.repaired;
            sum.mismatches += one.mismatches;
        }
        if !writes.is_empty() {
            self.seal_stamps(&stamps, &mut writes);
            self.write_many(writes, Purpose::Mending).await;
        }
        for (_, region, member, copy) in lost_copies {
            let (what, dbn) = (ScrubFault::Checksums, member.layout.stamps_dbn(region, copy));
            let (disk, repaired) = (Some(member.uuid), !member.is_dead());
            self.found(ScrubFinding { what, disk, dbn, stripe: None, repaired });
        }
        drop(held);
        drop(interval);
        self.settle_soon();
        count(&self.counters.repaired_blocks, usize::try_from(sum.repaired).unwrap_or(0));
        let mut status = self.scrub.lock();
        status.damaged += sum.damaged;
        status.repaired += sum.repaired;
        status.parity_mismatches += sum.mismatches;
        Some((end, true))
    }

    fn scrub_stripe(
        &self,
        group: &GroupView,
        stamps: &StampSet,
        cells: &mut StripeCells,
        writes: &mut Writes,
    ) -> Findings {
        let stripe = cells.stripe;
        let here = |i: &usize| group.slots[*i].readable(stripe).is_some();
        let lost = (0..cells.cells.len()).filter(|i| cells.cells[*i] == Cell::Lost);
        let bad: Vec<usize> = lost.filter(here).collect();
        let mut found = Findings { damaged: bad.len() as u64, ..Findings::default() };
        let tell = |what: ScrubFault, slots: &[usize], repaired: bool| {
            slots.iter().for_each(|i| self.found_block(group, stripe, *i, what, repaired));
        };
        let first = solve(group, cells);
        let fits = |solved: &Solved, cells: &StripeCells| {
            solved.consistent && stamps_agree(stamps, cells, &solved.blocks)
        };
        if let Ok(solved) = &first
            && (fits(solved, cells) || (solved.consistent && found.damaged > 0))
        {
            let mended = self.stage_repairs(group, stamps, cells, solved, writes);
            found.repaired += if found.damaged > 0 { mended as u64 } else { 0 };
            tell(ScrubFault::Block, &bad, mended > 0);
            return found;
        }
        if matches!(&first, Ok(solved) if !solved.consistent) {
            found.mismatches = 1;
        }
        // One column more may be lost without its stamp saying so; which one explains it?
        let mut explained: Vec<(usize, Solved)> = Vec::new();
        for i in 0..cells.cells.len() {
            let cell = match &cells.cells[i] {
                cell @ (Cell::Good(_) | Cell::Doubt(_)) => cell.clone(),
                Cell::Lost | Cell::Unread => continue,
            };
            cells.cells[i] = Cell::Lost;
            if let Ok(solved) = solve(group, cells) {
                let spare = cells.cells.iter().filter(|c| c.good().is_none()).count()
                    < usize::from(group.parity());
                let known = found.damaged > 0 && stamps_agree_but(stamps, cells, &solved.blocks, i);
                let consistent = solved.consistent && parity_agrees(group, &solved.blocks);
                if consistent && (spare || known) {
                    explained.push((i, solved));
                }
            }
            cells.cells[i] = cell;
        }
        if let [(silent, solved)] = &explained[..] {
            cells.cells[*silent] = Cell::Lost;
            found.damaged += 1;
            let mended = self.stage_repairs(group, stamps, cells, solved, writes);
            found.repaired += mended as u64;
            tell(ScrubFault::Block, &bad, mended > 0);
            tell(ScrubFault::LostWrite, &[*silent], mended > 0);
        } else {
            tell(ScrubFault::Block, &bad, false);
            let (what, stripe_of) = (ScrubFault::Parity, Some((group.group, stripe)));
            let (disk, dbn) = (None, Dbn::new(0));
            self.found(ScrubFinding { what, disk, dbn, stripe: stripe_of, repaired: false });
            tracing::error!(stripe, group = %group.group, "parity does not match, cause unclear");
        }
        found
    }
}

/// Whether the blocks found are those that the stamps of the damaged ones name.
fn stamps_agree(stamps: &StampSet, cells: &StripeCells, blocks: &[Block]) -> bool {
    stamps_agree_but(stamps, cells, blocks, usize::MAX)
}

fn stamps_agree_but(stamps: &StampSet, cells: &StripeCells, blocks: &[Block], but: usize) -> bool {
    cells.cells.iter().zip(blocks).enumerate().all(|(i, (cell, block))| {
        i == but
            || *cell != Cell::Lost
            || match stamps.get(i, cells.stripe).map(|s| s.kind()) {
                Some(StampKind::Written(crc)) => crc == crc_of(block),
                _ => true,
            }
    })
}
