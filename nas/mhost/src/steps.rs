//! The steps of the jobs. Each may run twice and then has the effect of once.

use core::time::Duration;
use std::sync::Arc;

use cairn_cf::{
    AggregateStatus, CheckReport, DiskReport, Manage, ManageError, Managed, ScrubReport,
};
use cairn_units::{DiskUuid, Fsid, GroupNo};

use crate::db::{Table, Tx, number_key};
use crate::error::ApiError;
use crate::jobs::{Job, JobKind, Progress};
use crate::mhost::MHost;
use crate::model::{VolumeEntry, VolumeState};

/// How often a step that watches something looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Looks without a rebuild before "no spare" is believed: the storage layer starts it by itself.
const LOOKS_BEFORE_NO_REBUILD: u32 = 8;

/// What else must follow when a failed job was undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undone {
    /// Nothing.
    Quietly,
    /// The routes have changed.
    Routes,
}

/// Takes back what a failed job announced.
pub(crate) fn undo(tx: &mut Tx, job: &Job) -> Result<Undone, ApiError> {
    match &job.what {
        JobKind::VolumeCreate { fsid, .. } if job.step == 0 => {
            tx.remove(Table::Volumes, &number_key(*fsid))?;
            tx.remove(Table::Policies, &number_key(*fsid))?;
            Ok(Undone::Routes)
        }
        JobKind::VolumeDelete { fsid, .. } if job.step <= 1 => {
            set_volume(tx, *fsid, |v| v.state = VolumeState::Online)?;
            Ok(Undone::Routes)
        }
        _ => Ok(Undone::Quietly),
    }
}

fn set_volume(tx: &mut Tx, fsid: u64, set: impl FnOnce(&mut VolumeEntry)) -> Result<(), ApiError> {
    let key = number_key(fsid);
    if let Some(mut volume) = tx.get::<VolumeEntry>(Table::Volumes, &key)? {
        set(&mut volume);
        tx.put(Table::Volumes, &key, &volume)?;
    }
    Ok(())
}

impl MHost {
    /// Runs the step that a job stands before; the text is a finding worth keeping.
    pub(crate) async fn run_step(self: &Arc<Self>, job: &Job) -> Result<String, ApiError> {
        match &job.what {
            JobKind::VolumeCreate { fsid, name, size_bytes } => match job.step {
                0 => self.create_volume_below(*fsid, name, *size_bytes).await,
                _ => self.set_state(*fsid, VolumeState::Online).await,
            },
            JobKind::VolumeDelete { fsid, .. } => match job.step {
                0 => self.set_state(*fsid, VolumeState::Deleting).await,
                1 => self.delete_volume_below(*fsid).await,
                _ => self.forget_volume(*fsid),
            },
            JobKind::VolumeResize { fsid, size_bytes, .. } => match job.step {
                0 => {
                    let (fsid, size_bytes) = (Fsid::new(*fsid), *size_bytes);
                    self.done(Manage::VolumeResize { fsid, size_bytes }).await
                }
                _ => self.record(*fsid, |v| v.size_bytes = *size_bytes),
            },
            JobKind::VolumeRename { fsid, to, .. } => match job.step {
                0 => {
                    self.done(Manage::VolumeRename { fsid: Fsid::new(*fsid), name: to.clone() })
                        .await
                }
                _ => self.record(*fsid, |v| v.name.clone_from(to)),
            },
            JobKind::DiskAdd { locations } => match job.step {
                0 => self.attach(locations).await,
                _ => self.remember(locations),
            },
            JobKind::DiskFail { disk } => match job.step {
                0 => self.take_out(disk).await,
                _ => self.watch_rebuild(job.id).await,
            },
            JobKind::DiskReplace { disk, with } => match job.step {
                0 => self.begin_copy(disk, with).await,
                _ => self.watch_copy(job.id, disk).await,
            },
            JobKind::GroupKind { group, raid } => match job.step {
                0 | 3 => self.done(Manage::ConsistencyPoint).await,
                1 => {
                    let (group, kind) = (GroupNo::new(*group), raid.clone());
                    self.done(Manage::GroupKind { group, kind }).await
                }
                _ => self.watch_rebuild(job.id).await,
            },
            JobKind::GroupGrow { group, data_disks } => self.grow(*group, *data_disks).await,
            JobKind::GroupAdd { disks, groups } => self.form_group(*disks, *groups).await,
            JobKind::Scrub => self.scrub(job.id).await,
            JobKind::Check { fsid, repair, data, .. } => {
                self.check(job.id, *fsid, (*repair, *data)).await
            }
            JobKind::Rebuild => self.watch_rebuild(job.id).await,
        }
    }

    async fn done(&self, request: Manage) -> Result<String, ApiError> {
        self.manage(request).await?;
        Ok(String::new())
    }

    async fn create_volume_below(
        &self,
        fsid: u64,
        name: &str,
        size_bytes: u64,
    ) -> Result<String, ApiError> {
        let (fsid, name) = (Fsid::new(fsid), name.to_owned());
        self.done(Manage::VolumeCreate { fsid, name, size_bytes }).await
    }

    async fn delete_volume_below(&self, fsid: u64) -> Result<String, ApiError> {
        match self.manage(Manage::VolumeDelete { fsid: Fsid::new(fsid) }).await {
            // Deleted by the run of this step that was interrupted.
            Ok(_) | Err(ManageError::NoSuchVolume(_)) => Ok(String::new()),
            Err(e) => Err(e.into()),
        }
    }

    async fn set_state(&self, fsid: u64, state: VolumeState) -> Result<String, ApiError> {
        self.record(fsid, |v| v.state = state)?;
        self.publish_routes().await?;
        Ok(String::new())
    }

    fn record(&self, fsid: u64, set: impl FnOnce(&mut VolumeEntry)) -> Result<String, ApiError> {
        self.db.update(|tx| set_volume(tx, fsid, set))?;
        Ok(String::new())
    }

    fn forget_volume(&self, fsid: u64) -> Result<String, ApiError> {
        self.db.update(|tx| {
            tx.remove(Table::Volumes, &number_key(fsid))?;
            tx.remove(Table::Policies, &number_key(fsid))?;
            Ok::<_, ApiError>(String::new())
        })
    }

    /// All disks, as the storage layer has them.
    pub(crate) async fn disk_reports(&self) -> Result<Vec<DiskReport>, ApiError> {
        match self.manage(Manage::DiskList).await? {
            Managed::Disks(disks) => Ok(disks),
            _ => Err(ApiError::unexpected()),
        }
    }

    /// The aggregate, as the storage layer has it.
    pub(crate) async fn aggregate_status(&self) -> Result<AggregateStatus, ApiError> {
        match self.manage(Manage::AggregateStatus).await? {
            Managed::Aggregate(status) => Ok(status),
            _ => Err(ApiError::unexpected()),
        }
    }

    /// The scrub, as the storage layer has it.
    pub(crate) async fn scrub_report(&self) -> Result<ScrubReport, ApiError> {
        match self.manage(Manage::ScrubStatus).await? {
            Managed::Scrub(report) => Ok(report),
            _ => Err(ApiError::unexpected()),
        }
    }

    async fn attach(&self, locations: &[String]) -> Result<String, ApiError> {
        let there = self.disk_reports().await?;
        let missing: Vec<String> = locations
            .iter()
            .filter(|l| !there.iter().any(|d| d.location == **l))
            .cloned()
            .collect();
        if missing.is_empty() {
            return Ok("attached already".to_owned());
        }
        match self.manage(Manage::DiskAdd { locations: missing }).await? {
            Managed::DisksAdded(disks) => Ok(format!("{} disks attached as spares", disks.len())),
            _ => Err(ApiError::unexpected()),
        }
    }

    fn remember(&self, locations: &[String]) -> Result<String, ApiError> {
        self.db.update(|tx| {
            for location in locations {
                tx.put(Table::Disks, location, &location)?;
            }
            Ok::<_, ApiError>(String::new())
        })
    }

    async fn take_out(&self, disk: &str) -> Result<String, ApiError> {
        let uuid = parse_disk(disk)?;
        let there = self.disk_reports().await?;
        let gone = there.iter().find(|d| d.disk == uuid).is_none_or(|d| d.role == "failed");
        if gone {
            return Ok("out already".to_owned());
        }
        self.done(Manage::DiskFail { disk: uuid }).await
    }

    async fn begin_copy(&self, disk: &str, with: &str) -> Result<String, ApiError> {
        let uuid = parse_disk(disk)?;
        let with = if with.is_empty() { None } else { Some(parse_disk(with)?) };
        let there = self.disk_reports().await?;
        if there.iter().any(|d| d.disk == uuid && d.role == "failed") {
            return Ok("out already".to_owned());
        }
        match self.manage(Manage::DiskReplace { disk: uuid, with }).await? {
            Managed::DisksAdded(spares) => {
                let spares: Vec<String> = spares.iter().map(DiskUuid::to_string).collect();
                Ok(format!("copied to {}", spares.join(", ")))
            }
            _ => Err(ApiError::unexpected()),
        }
    }

    /// Waits until the disk is out: its copy is whole, or is being rebuilt from where it stood.
    async fn watch_copy(&self, job: u64, disk: &str) -> Result<String, ApiError> {
        let uuid = parse_disk(disk)?;
        loop {
            let disks = self.disk_reports().await?;
            let old = disks.iter().find(|d| d.disk == uuid).filter(|d| d.role != "failed");
            let Some(old) = old else {
                let rebuilding = disks.iter().any(|d| d.state == "rebuilding");
                return match rebuilding {
                    true => self.watch_rebuild(job).await,
                    false => Ok(format!("{disk} is out and may be pulled")),
                };
            };
            let copy = disks.iter().find(|d| d.role == "copy" && d.position == old.position);
            let Some((done, total)) = copy.and_then(|d| d.rebuild) else {
                return Err(ApiError::conflict(
                    format!("the spare failed; {disk} is where it was and still serves"),
                    "add a disk (`cairn disk add`) and give the order again",
                ));
            };
            self.set_progress(job, Progress { done, total, unit: "stripes".to_owned() });
            self.world.clock.sleep(WATCH_INTERVAL).await;
        }
    }

    async fn watch_rebuild(&self, job: u64) -> Result<String, ApiError> {
        let mut seen = None;
        let mut looks = 0;
        loop {
            let disks = self.disk_reports().await?;
            let (mut done, mut total) = (0u64, 0u64);
            for (d, t) in disks.iter().filter_map(|d| d.rebuild) {
                (done, total) = (done.saturating_add(d), total.saturating_add(t));
            }
            let rebuilding = disks.iter().any(|d| d.rebuild.is_some() || d.state == "rebuilding");
            if rebuilding {
                seen = Some(total);
                self.set_progress(job, Progress { done, total, unit: "stripes".to_owned() });
            } else {
                let groups = self.aggregate_status().await?.groups;
                let degraded = groups.iter().any(|g| g.state != "normal");
                looks += 1;
                match (seen, degraded) {
                    (_, false) => return Ok("every group is whole".to_owned()),
                    (_, true) if looks < LOOKS_BEFORE_NO_REBUILD => {}
                    (Some(_), true) => return Ok("rebuilt; a group is still degraded".to_owned()),
                    (None, true) => {
                        return Ok("no spare: a group is degraded; add a disk with \
                                   `cairn disk add`"
                            .to_owned());
                    }
                }
            }
            self.world.clock.sleep(WATCH_INTERVAL).await;
        }
    }

    async fn grow(&self, group: u16, data_disks: u16) -> Result<String, ApiError> {
        let number = GroupNo::new(group);
        let status = self.aggregate_status().await?;
        let Some(report) = status.groups.iter().find(|g| g.group == number) else {
            return Err(no_such_group(group));
        };
        if report.data_disks >= data_disks {
            return Ok(format!("group {group} has {} data disks", report.data_disks));
        }
        self.done(Manage::GroupGrow { group: number }).await?;
        Ok(format!("group {group} has {data_disks} data disks"))
    }

    async fn form_group(&self, disks: u16, groups: u16) -> Result<String, ApiError> {
        if self.aggregate_status().await?.groups.len() >= usize::from(groups) {
            return Ok("formed already".to_owned());
        }
        match self.manage(Manage::GroupAdd { disks }).await? {
            Managed::GroupAdded(group) => Ok(format!("group {group} formed")),
            _ => Err(ApiError::unexpected()),
        }
    }

    /// The check, as the storage layer has it.
    pub(crate) async fn check_report(&self) -> Result<CheckReport, ApiError> {
        match self.manage(Manage::CheckStatus).await? {
            Managed::Check(report) => Ok(report),
            _ => Err(ApiError::unexpected()),
        }
    }

    async fn check(
        &self,
        job: u64,
        fsid: Option<u64>,
        (repair, data): (bool, bool),
    ) -> Result<String, ApiError> {
        if !self.check_report().await?.running {
            let only = fsid.map(Fsid::new);
            self.manage(Manage::CheckStart { only, repair, data }).await?;
        }
        loop {
            let report = self.check_report().await?;
            if !report.running {
                return check_ended(&report);
            }
            let (done, total) = report.progress;
            self.set_progress(job, Progress { done, total, unit: "blocks".to_owned() });
            self.world.clock.sleep(WATCH_INTERVAL).await;
        }
    }

    async fn scrub(&self, job: u64) -> Result<String, ApiError> {
        if !self.scrub_report().await?.running {
            self.manage(Manage::ScrubStart).await?;
        }
        loop {
            let report = self.scrub_report().await?;
            if !report.running {
                let now = self.world.clock.wall().get();
                self.db.update(|tx| tx.put(Table::Settings, "scrub_ended_ns", &now))?;
                return Ok(format!(
                    "{} stripes checked, {} blocks damaged, {} repaired, {} parity mismatches",
                    report.progress.0, report.damaged, report.repaired, report.parity_mismatches
                ));
            }
            let (done, total) = report.progress;
            self.set_progress(job, Progress { done, total, unit: "stripes".to_owned() });
            self.world.clock.sleep(WATCH_INTERVAL).await;
        }
    }
}

/// The result of a check as that of its job: what is left unrepaired makes it fail.
fn check_ended(report: &CheckReport) -> Result<String, ApiError> {
    if let Some(reason) = &report.failed {
        return Err(ApiError::conflict(
            format!("the check has no result: {reason}"),
            "start it again when the cause is gone",
        ));
    }
    let [volumes, inodes, blocks] = report.seen;
    let seen = format!("{volumes} volumes, {inodes} inodes, {blocks} blocks checked");
    match (report.found, report.left) {
        (0, _) => Ok(format!("{seen}, all adds up")),
        (found, 0) => Ok(format!("{seen}, {found} findings, all repaired")),
        (found, left) => Err(ApiError::conflict(
            format!("{seen}, {found} findings, {left} of them are left"),
            match report.repair {
                true => "`cairn check status` lists what could not be repaired",
                false => "`cairn check status` lists them; `cairn check --repair` repairs",
            },
        )),
    }
}

/// Reads a disk's identity.
pub(crate) fn parse_disk(text: &str) -> Result<DiskUuid, ApiError> {
    DiskUuid::parse(text).ok_or_else(|| {
        ApiError::bad(
            format!("{text:?} is not the identity of a disk"),
            "`cairn disk list` shows the identities",
        )
    })
}

pub(crate) fn no_such_group(group: u16) -> ApiError {
    ApiError::missing(format!("no such group: {group}"), "`cairn aggregate show` shows the groups")
}
