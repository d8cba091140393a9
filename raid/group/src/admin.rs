//! What the administrator may ask of the disks of an aggregate.
//!
//! Layer: over configuration, labels and rebuild. Each order is a change of the configuration,
//! stable before the order is answered.

use cairn_sys::lock::atomic::Ordering;
use std::sync::Arc;

use cairn_raid_api::{
    AdminError, AggregateAdmin, ColumnState, DiskRole, DiskStatus, RaidCounters, RaidKind,
    ScrubFinding, ScrubStatus,
};
use cairn_raid_disk::{Disk, DiskClass, DiskError};
use cairn_sys::BoxFuture;
use cairn_units::{Blocks, ColumnNo, DiskUuid, GroupNo};

use crate::aggregate::RaidAggregate;
use crate::config::{Config, Position};
use crate::core::Core;
use crate::create::{add_group, format_areas, fresh_member, take_pvbns, write_labels};
use crate::failure::identity_of;
use crate::label::{Probe, Role, read_label};
use crate::layout::Layout;
use crate::member::Member;
use crate::ondisk::CONFIG_RECORDS_MAX;
use crate::view::View;

pub(crate) fn refused(location: &str, reason: impl ToString) -> AdminError {
    AdminError::Refused { location: location.to_owned(), reason: reason.to_string() }
}

impl Core {
    async fn add_spare(&self, location: &str) -> Result<DiskUuid, AdminError> {
        let Some(opener) = &self.opener else {
            return Err(refused(location, "this aggregate was opened without a way to open disks"));
        };
        let disk: Arc<dyn Disk> = opener(location).map_err(|reason| refused(location, reason))?;
        let _config = self.config.lock().await;
        let view = self.view();
        match read_label(&disk).await.0 {
            Probe::Blank => {}
            Probe::Labelled(identity) if identity.aggregate == view.config.aggregate => {
                if view.config.counts_on(identity.disk) {
                    return Err(refused(location, "this disk is in use in this aggregate"));
                }
            }
            Probe::Labelled(identity) => {
                let reason = format!("belongs to aggregate {}", identity.aggregate);
                return Err(refused(location, reason));
            }
            Probe::Version(version) => {
                return Err(refused(location, format!("has a label of version {version}")));
            }
            Probe::Damaged => {
                return Err(refused(location, "has a damaged label; clear it first"));
            }
            Probe::Unreadable(error) => return Err(refused(location, error)),
        }
        let layout = spare_layout(&view, &disk, location)?;
        self.enlist(disk, layout).await
    }

    /// Formats a disk under a new identity and makes it a spare. The caller holds the
    /// configuration.
    pub(crate) async fn enlist(
        &self,
        disk: Arc<dyn Disk>,
        layout: Layout,
    ) -> Result<DiskUuid, AdminError> {
        let location = disk.info().location;
        let view = self.view();
        let uuid = DiskUuid::new(self.world.random_16());
        let mut config = view.config.clone();
        config.spares.push(uuid);
        if config.records() > CONFIG_RECORDS_MAX {
            return Err(refused(&location, "the aggregate has as many disks as it can have"));
        }
        let io = |error: DiskError| refused(&location, error);
        // The configuration in force, in which the disk does not count: the next one is written to
        // all disks alike, and by nobody else, so that no two contents bear one generation.
        format_areas(&disk, uuid, &layout, &view.config).await.map_err(io)?;
        write_labels(&disk, uuid, &layout, &config).await.map_err(io)?;
        let mut members = view.members.clone();
        members.insert(uuid, fresh_member(uuid, disk, layout));
        self.publish(View::new(view.config.clone(), members, Some(&view)));
        self.adopt(config).await?;
        self.settle_locked().await?;
        Ok(uuid)
    }

    async fn widen(&self, no: GroupNo) -> Result<DiskUuid, AdminError> {
        let (member, _) = {
            let _config = self.config.lock().await;
            let view = self.view();
            let mut config = view.config.clone();
            let group = config.groups.get(&no).ok_or(AdminError::NoSuchGroup(no))?;
            let (stripes, columns) = (group.stripes, group.p - 1);
            let mut free = (0..columns).map(ColumnNo::new);
            let Some(column) = free.find(|c| !group.positions.contains_key(c)) else {
                return Err(refused("group", format!("group {no} has all its {columns} columns")));
            };
            let taken = take_spares(&mut config, &view, 1, stripes);
            let Some(member) = taken.into_iter().next() else {
                return Err(refused("group", "no spare is big enough; add one first"));
            };
            let pvbn_base = take_pvbns(&mut config, stripes);
            let position = Position::online(member.uuid, pvbn_base);
            if let Some(group) = config.groups.get_mut(&no) {
                group.positions.insert(column, position);
            }
            self.adopt(config).await?;
            self.settle_locked().await?;
            (member, column)
        };
        self.relabel(&member).await?;
        Ok(member.uuid)
    }

    async fn form_group(&self, disks: u16) -> Result<GroupNo, AdminError> {
        let (members, group) = {
            let _config = self.config.lock().await;
            let view = self.view();
            let mut config = view.config.clone();
            let Some((kind, p)) = config.groups.values().next().map(|g| (g.kind, g.p)) else {
                return Err(AdminError::NoSuchGroup(GroupNo::new(0)));
            };
            let (least, most) = (kind.parity() + 1, p - 1 + kind.parity());
            if disks < least || disks > most {
                let reason = format!("a group has {least} to {most} disks");
                return Err(refused("group", reason));
            }
            let members = take_spares(&mut config, &view, usize::from(disks), 1);
            if members.len() < usize::from(disks) {
                let reason = format!("{} spares are there, {disks} needed", members.len());
                return Err(refused("group", reason));
            }
            let ids: Vec<(DiskUuid, u64)> =
                members.iter().map(|m| (m.uuid, m.layout.stripes())).collect();
            let group = add_group(&mut config, kind, p, &ids);
            if config.records() > CONFIG_RECORDS_MAX {
                return Err(refused("group", "the aggregate has as many disks as it can have"));
            }
            self.adopt(config).await?;
            self.settle_locked().await?;
            (members, group)
        };
        for member in &members {
            self.relabel(member).await?;
        }
        Ok(group)
    }

    async fn relabel(&self, member: &Arc<Member>) -> Result<(), AdminError> {
        let result = self.store_label(member).await;
        if let Err(error) = result {
            self.fault(member, &error);
            self.settle().await?;
        }
        Ok(())
    }

    async fn fail(self: &Arc<Self>, disk: DiskUuid) -> Result<(), AdminError> {
        let view = self.view();
        let Some(member) = view.members.get(&disk) else {
            return Err(AdminError::NoSuchDisk(disk.to_string()));
        };
        if !self.can_spare(disk) {
            return Err(AdminError::WouldLoseData(disk.to_string()));
        }
        self.kill(member);
        self.settle().await?;
        self.start_rebuilds();
        Ok(())
    }

    fn statuses(&self) -> Vec<DiskStatus> {
        let view = self.view();
        let mut out: Vec<DiskStatus> = Vec::new();
        for group in view.groups.values() {
            for slot in &group.slots {
                let mut status =
                    status_of(&view, slot.member.as_deref(), slot.member.as_ref().map(|m| m.uuid));
                status.position = Some((group.group, slot.column));
                status.role = match slot.column.get() {
                    c if c + 1 == group.code.p => DiskRole::RowParity,
                    c if c == group.code.p => DiskRole::DiagonalParity,
                    _ => DiskRole::Data,
                };
                status.state =
                    if slot.writable().is_none() { ColumnState::Missing } else { slot.state };
                status.rebuild = (status.state == ColumnState::Rebuilding).then(|| {
                    let done = slot.progress.load(Ordering::Acquire);
                    (Blocks::new(done), Blocks::new(group.stripes))
                });
                out.push(status);
                if let Some(twin) = slot.twin() {
                    let mut status = status_of(&view, Some(&twin.member), Some(twin.member.uuid));
                    status.position = Some((group.group, slot.column));
                    status.role = DiskRole::Copy;
                    status.state = ColumnState::Rebuilding;
                    let done = twin.progress.load(Ordering::Acquire);
                    status.rebuild = Some((Blocks::new(done), Blocks::new(group.stripes)));
                    out.push(status);
                }
            }
        }
        for disk in view.config.spares.iter().chain(&view.config.log_disks) {
            let mut status = status_of(&view, view.members.get(disk).map(|m| &**m), Some(*disk));
            if identity_of(&view.config, *disk).role == Role::Log {
                status.role = DiskRole::Log;
            }
            out.push(status);
        }
        for disk in &view.config.failed {
            let mut status = status_of(&view, None, Some(*disk));
            status.role = DiskRole::Failed;
            status.state = ColumnState::Missing;
            out.push(status);
        }
        out
    }
}

/// Takes up to `count` spares with room for `stripes` stripes out of the list.
pub(crate) fn take_spares(
    config: &mut Config,
    view: &View,
    count: usize,
    stripes: u64,
) -> Vec<Arc<Member>> {
    let mut taken = Vec::new();
    config.spares.retain(|disk| {
        let fits = view
            .members
            .get(disk)
            .filter(|m| !m.is_dead() && m.layout.stripes() >= stripes && taken.len() < count);
        taken.extend(fits.cloned());
        fits.is_none()
    });
    taken
}

/// The areas of a disk that joins: the same sizes as on the others.
fn spare_layout(view: &View, disk: &Arc<dyn Disk>, location: &str) -> Result<Layout, AdminError> {
    let Some(like) = view.members.values().next().map(|m| &m.layout) else {
        return Err(refused(location, "the aggregate has no disk left"));
    };
    let blocks = disk.info().blocks;
    let log = Blocks::new(like.log_blocks);
    let layout = Layout::plan(blocks, log, Blocks::new(like.stripe_log_blocks));
    let need = view.groups.values().map(|g| g.stripes).min().unwrap_or(0);
    layout.filter(|l| l.stripes() >= need).ok_or_else(|| {
        refused(location, format!("{blocks} blocks are too few: no group could use the disk"))
    })
}

fn status_of(view: &View, member: Option<&Member>, disk: Option<DiskUuid>) -> DiskStatus {
    // What is gone is shown as it was when it was here last.
    let known = disk.and_then(|d| view.config.known.get(&d));
    let was = known.map(|k| format!("was {}", k.location)).unwrap_or_default();
    let size = known.map_or(0, |k| k.blocks);
    let counters = member.map(|m| m.disk.counters()).unwrap_or_default();
    let checksum_errors = member.map_or(0, |m| m.checksum_errors.load(Ordering::Relaxed));
    DiskStatus {
        disk: disk.unwrap_or_default(),
        location: member.map_or(was, |m| m.info.location.clone()),
        class: member.map_or_else(String::new, |m| class_name(m.info.class).to_owned()),
        blocks: member.map_or(Blocks::new(size), |m| m.info.blocks),
        role: DiskRole::Spare,
        position: None,
        state: if member.is_some_and(|m| !m.is_dead()) {
            ColumnState::Online
        } else {
            ColumnState::Missing
        },
        rebuild: None,
        reads: counters.reads,
        blocks_read: counters.blocks_read,
        writes: counters.writes,
        blocks_written: counters.blocks_written,
        flushes: counters.flushes,
        errors: counters.errors + checksum_errors,
    }
}

fn class_name(class: DiskClass) -> &'static str {
    match class {
        DiskClass::Hdd => "hdd",
        DiskClass::Ssd => "ssd",
        DiskClass::File => "file",
        DiskClass::Simulated => "simulated",
    }
}

impl AggregateAdmin for RaidAggregate {
    fn disks(&self) -> Vec<DiskStatus> {
        self.core.statuses()
    }

    fn counters(&self) -> RaidCounters {
        self.core.counters.snapshot()
    }

    fn add_spares(&self, locations: Vec<String>) -> BoxFuture<Result<Vec<DiskUuid>, AdminError>> {
        let core = self.core.clone();
        Box::pin(async move {
            let mut added = Vec::new();
            for location in &locations {
                added.push(core.add_spare(location).await?);
            }
            core.promote().await?;
            core.sick.store(true, Ordering::Release);
            core.start_rebuilds();
            Ok(added)
        })
    }

    fn grow_group(&self, group: GroupNo) -> BoxFuture<Result<DiskUuid, AdminError>> {
        let core = self.core.clone();
        Box::pin(async move { core.widen(group).await })
    }

    fn add_group(&self, disks: u16) -> BoxFuture<Result<GroupNo, AdminError>> {
        let core = self.core.clone();
        Box::pin(async move { core.form_group(disks).await })
    }

    fn fail_disk(&self, disk: DiskUuid) -> BoxFuture<Result<(), AdminError>> {
        let core = self.core.clone();
        Box::pin(async move { core.fail(disk).await })
    }

    fn replace_disk(
        &self,
        disk: DiskUuid,
        with: Option<DiskUuid>,
    ) -> BoxFuture<Result<DiskUuid, AdminError>> {
        let core = self.core.clone();
        Box::pin(async move { core.begin_copy(disk, with).await })
    }

    fn set_raid_kind(&self, group: GroupNo, kind: RaidKind) -> BoxFuture<Result<(), AdminError>> {
        let core = self.core.clone();
        Box::pin(async move {
            match kind {
                RaidKind::RaidDp => core.add_diagonal(group).await,
                RaidKind::Raid4 => core.drop_diagonal(group).await,
            }
        })
    }

    fn start_scrub(&self) {
        self.core.begin_scrub();
    }

    fn scrub(&self) -> ScrubStatus {
        *self.core.scrub.lock()
    }

    fn scrub_findings(&self) -> Vec<ScrubFinding> {
        self.core.scrub_findings.lock().clone()
    }
}
