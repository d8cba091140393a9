//! Rapid copy-out: a disk that begins to fail is copied to a spare while it still serves.
//!
//! Layer: over stripes; run by the group's rebuild task, after everything that is lost was rebuilt.
//! Life of a copy: spare → (`begin_copy`) twin of a slot, which takes every write of the slot from
//! then on → (`copy_step`, progress durable as that of a rebuild) → (`finish_copy`) the slot's disk;
//! the old one is out. If the old disk dies before, the twin takes its place at once and the rest
//! is rebuilt from parity (`take_out`); if the twin dies, nothing has changed.
//!
//! Invariants: below the progress mark the twin holds what the slot's disk holds, or what it
//! should hold: every block was verified by its stamp, or found from parity. Nothing is read from
//! a twin. One copy at a time in a group, so that a stripe log record needs to name only one.

use cairn_sys::lock::atomic::Ordering;
use std::sync::Arc;

use cairn_raid_api::{AdminError, ColumnState, WriteError};
use cairn_sys::Block;
use cairn_units::{DiskUuid, GroupNo};

use crate::Event;
use crate::config::TwinConfig;
use crate::core::{Core, Purpose, Writes, count};
use crate::failure::note_failed;
use crate::member::RegionKnown;
use crate::ondisk::{REGION_STRIPES, STAMP_UNKNOWN, StampV1};
use crate::rebuild::STEP_BLOCKS_MAX;
use crate::stamps::StampKind;
use crate::stripe::{StampSet, StripeCells, solve, stamp_for};
use crate::view::{GroupView, Twin, View};

fn refused(disk: DiskUuid, reason: impl ToString) -> AdminError {
    AdminError::Refused { location: disk.to_string(), reason: reason.to_string() }
}

impl Core {
    /// Begins to copy `disk` to a spare: to `with`, or to the first that is big enough. Gives the
    /// spare. An order that is being carried out already is no error.
    pub(crate) async fn begin_copy(
        self: &Arc<Self>,
        disk: DiskUuid,
        with: Option<DiskUuid>,
    ) -> Result<DiskUuid, AdminError> {
        let (twin, group, column) = {
            let _config = self.config.lock().await;
            self.settle_locked().await?;
            let view = self.view();
            let mut config = view.config.clone();
            let Some((no, column)) = config.position_of(disk) else {
                return Err(if config.counts_on(disk) {
                    refused(disk, "is in no RAID group; there is nothing to copy")
                } else {
                    AdminError::NoSuchDisk(disk.to_string())
                });
            };
            let spare = pick_spare(&view, no, disk, with);
            let Some(group) = config.groups.get_mut(&no) else {
                return Err(AdminError::NoSuchGroup(no));
            };
            let busy = group.positions.values().find_map(|p| Some((p.disk?, p.twin?.disk)));
            if let Some((from, to)) = busy {
                if from == disk && with.is_none_or(|w| w == to) {
                    return Ok(to);
                }
                return Err(refused(disk, format!("{from} is being copied to {to}; wait for it")));
            }
            let spare = spare?;
            let Some(position) = group.positions.get_mut(&column) else {
                return Err(AdminError::NoSuchDisk(disk.to_string()));
            };
            if position.state != ColumnState::Online {
                return Err(refused(disk, "is being rebuilt; wait for it"));
            }
            position.twin = Some(TwinConfig { disk: spare, progress: 0 });
            config.spares.retain(|d| *d != spare);
            self.adopt(config).await?;
            self.settle_locked().await?;
            (spare, no, column)
        };
        self.event(Event::CopyStarted { disk, to: twin, group, column });
        self.start_rebuilds();
        Ok(twin)
    }

    /// Begins to copy every disk that has used up half of its error budget, where a spare is
    /// there to take it.
    pub(crate) async fn copy_sick_disks(self: Arc<Self>) {
        let view = self.view();
        let sick = view.alive().into_iter().filter(|m| m.is_sick());
        for member in sick.filter(|m| view.config.position_of(m.uuid).is_some()) {
            let location = &member.info.location;
            match self.begin_copy(member.uuid, None).await {
                Ok(to) => {
                    tracing::warn!(disk = %member.uuid, %location, %to, "failing: copied out")
                }
                Err(error) => {
                    tracing::warn!(disk = %member.uuid, %location, %error, "failing, not copied");
                }
            }
        }
    }

    /// Copies from stripe `at` to the end of its region at most. Returns the stripes done, and
    /// whether there was anything to do.
    pub(crate) async fn copy_step(
        self: &Arc<Self>,
        no: GroupNo,
        at: u64,
    ) -> Result<(u64, bool), WriteError> {
        let interval = self.interval.read().await;
        let region = at / REGION_STRIPES;
        let held = self.locks.acquire(no, core::iter::once(region)).await;
        let view = self.view();
        let Some((group, slot, twin)) = copying(&view, no) else { return Ok((0, false)) };
        let Some(disk) = group.slots[slot].writable() else {
            self.settle().await?;
            return Ok((0, false));
        };
        let end = group.stripes.min((region + 1) * REGION_STRIPES).min(at + STEP_BLOCKS_MAX as u64);
        let known = [disk, &twin.member].map(|m| m.map.known(region));
        let written = known != [RegionKnown::Never; 2];
        if written {
            self.copy_stripes(group, slot, &twin, at..end).await;
            self.settle().await?;
        }
        if !twin.member.is_dead() && twin.progress.load(Ordering::Acquire) >= at {
            twin.progress.fetch_max(end, Ordering::AcqRel);
        }
        drop(held);
        drop(interval);
        Ok((end - at, written))
    }

    async fn copy_stripes(
        self: &Arc<Self>,
        group: &GroupView,
        slot: usize,
        twin: &Twin,
        stripes: core::ops::Range<u64>,
    ) {
        let region = stripes.start / REGION_STRIPES;
        let stamps = self.load_stamps(group, &[region]).await;
        if stamps.of(slot, stripes.start, twin.member.uuid).is_none() {
            self.kill(&twin.member);
            return;
        }
        let mut cells: Vec<StripeCells> =
            stripes.map(|s| StripeCells::new(s, group.slots.len())).collect();
        self.read_cells(group, &stamps, &mut cells, |_, s| s == slot).await;
        let bad: Vec<bool> = cells.iter().map(|c| c.cells[slot].good().is_none()).collect();
        self.read_cells(group, &stamps, &mut cells, |i, _| bad[i]).await;
        let mut writes = Writes::default();
        for cells in &cells {
            self.copy_stripe(group, &stamps, slot, cells, &mut writes);
        }
        self.seal_stamps(&stamps, &mut writes);
        self.write_many(writes, Purpose::Mending).await;
    }

    fn copy_stripe(
        &self,
        group: &GroupView,
        stamps: &StampSet,
        slot: usize,
        cells: &StripeCells,
        writes: &mut Writes,
    ) {
        let stripe = cells.stripe;
        let old = stamps.get(slot, stripe).unwrap_or_default();
        if let Some(block) = cells.cells[slot].good() {
            put_copy(stamps, slot, stripe, block, old, writes);
            return;
        }
        match solve(group, cells) {
            Ok(solved) => {
                let mended = self.stage_repairs(group, stamps, cells, &solved, writes);
                count(&self.counters.repaired_blocks, mended);
                if !writes.has(slot, stripe) {
                    let block = &solved.blocks[slot];
                    let data = group.is_data(group.slots[slot].column);
                    put_copy(stamps, slot, stripe, block, stamp_for(old, block, data), writes);
                }
            }
            Err(lost) => {
                tracing::error!(stripe, lost = lost.0, "block can neither be copied nor rebuilt");
                self.event(Event::StripeLost { group: group.group, stripe });
                let unknown = StampV1 { flags: STAMP_UNKNOWN.into(), ..StampV1::default() };
                writes.put_twin(slot, stripe, None, unknown);
            }
        }
    }

    /// Everything is copied: the twin takes the place of the disk, which is out.
    pub(crate) async fn finish_copy(self: &Arc<Self>, no: GroupNo) -> Result<(), WriteError> {
        // A disk that died just now is out first.
        self.settle().await?;
        if !self.copy_log(no).await? {
            return Ok(());
        }
        let (disk, twin, column) = {
            // Nobody writes while the disks change places, and nothing that the stripe log says
            // of the old one is alive.
            let mut interval = self.interval.write().await;
            self.end_interval_marked(&mut interval).await?;
            let _config = self.config.lock().await;
            self.settle_locked().await?;
            // A write to the NV log reaches both disks, or the new one.
            let _areas = self.log_areas.write().await;
            let view = self.view();
            let Some((group, slot, twin)) = copying(&view, no) else { return Ok(()) };
            let column = group.slots[slot].column;
            let whole = twin.progress.load(Ordering::Acquire) >= group.stripes;
            let Some(disk) = group.slots[slot].writable().filter(|_| whole).cloned() else {
                return Ok(());
            };
            let mut config = view.config.clone();
            let group = config.groups.get_mut(&no);
            let Some(position) = group.and_then(|g| g.positions.get_mut(&column)) else {
                return Ok(());
            };
            position.disk = Some(twin.member.uuid);
            position.twin = None;
            note_failed(&mut config, disk.uuid);
            self.adopt(config).await?;
            self.replaced.lock().insert(disk.uuid, twin.member.uuid);
            self.forget_member(&disk);
            self.settle_locked().await?;
            (disk, twin.member, column)
        };
        if let Err(error) = self.store_label(&twin).await {
            // The label's position is for people only; the disk itself may be in trouble.
            self.fault(&twin, &error);
        }
        self.event(Event::CopyFinished { disk: disk.uuid, to: twin.uuid, group: no, column });
        // Another disk of the group may have waited for this one.
        self.sick.store(true, Ordering::Release);
        Ok(())
    }

    /// Copies the disk's part of the NV log; whether it is there.
    async fn copy_log(self: &Arc<Self>, no: GroupNo) -> Result<bool, WriteError> {
        let view = self.view();
        let Some((group, slot, twin)) = copying(&view, no) else { return Ok(false) };
        let Some(disk) = group.slots[slot].writable() else { return Ok(false) };
        if let Err(error) = self.copy_log_area(disk, &twin.member).await {
            self.fault(&twin.member, &error);
            self.kill(&twin.member);
            self.settle().await?;
            return Ok(false);
        }
        Ok(!self.is_stopped())
    }

    /// Drops a disk that the configuration no longer counts on. The caller holds the
    /// configuration, and the interval, so that nobody writes to it.
    pub(crate) fn forget_member(&self, member: &Arc<crate::member::Member>) {
        let view = self.view();
        let mut members = view.members.clone();
        members.remove(&member.uuid);
        self.publish(View::new(view.config.clone(), members, Some(&view)));
        self.stamps.forget(member.uuid);
        // Readers with an older view find the block from parity, or ask again.
        let _first = member.declare_dead();
    }
}

/// Puts a block of the slot's disk on its twin, unless both are zeros.
fn put_copy(
    stamps: &StampSet,
    slot: usize,
    stripe: u64,
    block: &Block,
    stamp: StampV1,
    writes: &mut Writes,
) {
    let zero = stamp.kind() == StampKind::Zero;
    let twin = stamps.twin(slot, stripe);
    let there = twin.is_some_and(|entry| entry.lock().get(stripe).is_zero());
    if !(zero && there) {
        writes.put_twin(slot, stripe, (!zero).then(|| block.clone()), stamp);
    }
}

/// The copy that is under way in a group: its slot and the twin.
pub(crate) fn copying(view: &View, group: GroupNo) -> Option<(&GroupView, usize, Twin)> {
    let group = view.groups.get(&group)?;
    let mut slots = group.slots.iter().enumerate();
    let (slot, twin) = slots.find_map(|(i, s)| Some((i, s.twin()?)))?;
    Some((group, slot, twin.clone()))
}

/// The spare to copy to.
fn pick_spare(
    view: &View,
    group: GroupNo,
    disk: DiskUuid,
    with: Option<DiskUuid>,
) -> Result<DiskUuid, AdminError> {
    let stripes = view.groups.get(&group).map_or(0, |g| g.stripes);
    let fits = |spare: &&DiskUuid| {
        let member = view.members.get(spare);
        member.is_some_and(|m| !m.is_dead() && m.layout.stripes() >= stripes)
    };
    let mut spares = view.config.spares.iter();
    match with {
        None => spares.find(fits).copied().ok_or_else(|| {
            refused(disk, "no spare is big enough; add one first: `cairn disk add`")
        }),
        Some(with) => match spares.find(|s| **s == with) {
            None => Err(refused(with, "is not a spare; `cairn disk list` shows them")),
            Some(spare) => Some(spare)
                .filter(fits)
                .copied()
                .ok_or_else(|| refused(with, "is smaller than the disk it would replace")),
        },
    }
}
