//! What the administrator can order: checks, and the jobs that carry it out.

use std::sync::Arc;

use cairn_cf::Manage;
use cairn_units::GroupNo;

use crate::api::{
    CheckStart, DiskAdd, DiskReplace, ExportChange, GroupAdd, RaidTypeChange, VolumeChange,
    VolumeCreate,
};
use crate::db::{Table, Tx, number_key};
use crate::error::ApiError;
use crate::jobs::{Job, JobKind};
use crate::mhost::MHost;
use crate::model::{
    DEFAULT_VSERVER, ExportRule, VolumeEntry, VolumeState, check_junction, check_rules,
    check_volume_name,
};
use crate::steps::{no_such_group, parse_disk};

/// Disks in one order at the most.
const DISKS_MAX: usize = 256;
/// Smallest and largest volume in bytes.
const VOLUME_BYTES_MIN: u64 = 1 << 20;
const VOLUME_BYTES_MAX: u64 = 1 << 60;

fn check_size(size_bytes: u64) -> Result<(), ApiError> {
    if (VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&size_bytes) {
        return Ok(());
    }
    Err(ApiError::bad(
        format!("a volume of {size_bytes} bytes cannot be made"),
        "choose a size between 1 MiB and 1 EiB",
    ))
}

fn no_such_volume(name: &str) -> ApiError {
    ApiError::missing(format!("no such volume: {name}"), "`cairn volume list` shows the volumes")
}

fn online(tx: &Tx, name: &str) -> Result<VolumeEntry, ApiError> {
    let all = tx.list::<VolumeEntry>(Table::Volumes)?;
    let (_, volume) =
        all.into_iter().find(|(_, v)| v.name == name).ok_or_else(|| no_such_volume(name))?;
    match volume.state {
        VolumeState::Online => Ok(volume),
        VolumeState::Creating | VolumeState::Deleting => Err(ApiError::conflict(
            format!("volume {name} is being made or deleted"),
            "wait for its job; `cairn job list` shows it",
        )),
    }
}

fn name_is_free(tx: &Tx, name: &str) -> Result<(), ApiError> {
    let all = tx.list::<VolumeEntry>(Table::Volumes)?;
    if all.iter().any(|(_, v)| v.name == name) {
        return Err(ApiError::conflict(
            format!("there is a volume {name} already"),
            "choose another name",
        ));
    }
    Ok(())
}

impl MHost {
    /// Makes a volume.
    ///
    /// # Errors
    /// 400 for a name, size, path or rule that makes no sense, 409 when one is taken.
    pub fn create_volume(self: &Arc<Self>, request: VolumeCreate) -> Result<Job, ApiError> {
        let VolumeCreate { name, size_bytes, junction, rules } = request;
        check_volume_name(&name)?;
        check_size(size_bytes)?;
        check_rules(&rules)?;
        let junction = junction.unwrap_or_else(|| format!("/{name}"));
        check_junction(&junction)?;
        self.submit(|tx| {
            name_is_free(tx, &name)?;
            let all = tx.list::<VolumeEntry>(Table::Volumes)?;
            if let Some((_, other)) = all.iter().find(|(_, v)| v.junction == junction) {
                return Err(ApiError::conflict(
                    format!("volume {} is at {junction} already", other.name),
                    "choose another path",
                ));
            }
            let fsid = tx.next_number("fsid")?;
            let entry = VolumeEntry {
                fsid,
                name: name.clone(),
                vserver: DEFAULT_VSERVER,
                junction,
                size_bytes,
                state: VolumeState::Creating,
            };
            tx.put(Table::Volumes, &number_key(fsid), &entry)?;
            tx.put(Table::Policies, &number_key(fsid), &rules)?;
            Ok(JobKind::VolumeCreate { fsid, name, size_bytes })
        })
    }

    /// Bytes of the largest volume that makes sense: what the aggregate has.
    ///
    /// # Errors
    /// 503 when the storage layer has stopped.
    pub async fn largest_volume(&self) -> Result<u64, ApiError> {
        let status = self.aggregate_status().await?;
        Ok(status.size_bytes.saturating_sub(status.used_bytes).min(VOLUME_BYTES_MAX))
    }

    /// Deletes a volume with everything in it.
    ///
    /// # Errors
    /// 404, or 409 when a job has it.
    pub fn delete_volume(self: &Arc<Self>, name: &str) -> Result<Job, ApiError> {
        self.submit(|tx| {
            let volume = online(tx, name)?;
            Ok(JobKind::VolumeDelete { fsid: volume.fsid, name: volume.name })
        })
    }

    /// Resizes or renames a volume.
    ///
    /// # Errors
    /// 400 unless exactly one change is asked for, 404, 409.
    pub fn change_volume(
        self: &Arc<Self>,
        name: &str,
        change: VolumeChange,
    ) -> Result<Job, ApiError> {
        match (change.size_bytes, change.name) {
            (Some(size_bytes), None) => {
                check_size(size_bytes)?;
                self.submit(|tx| {
                    let v = online(tx, name)?;
                    Ok(JobKind::VolumeResize { fsid: v.fsid, name: v.name, size_bytes })
                })
            }
            (None, Some(to)) => {
                check_volume_name(&to)?;
                self.submit(|tx| {
                    let v = online(tx, name)?;
                    name_is_free(tx, &to)?;
                    Ok(JobKind::VolumeRename { fsid: v.fsid, from: v.name, to })
                })
            }
            _ => Err(ApiError::bad(
                "exactly one change is made at a time",
                "give either size_bytes or name",
            )),
        }
    }

    /// The volume with this name.
    ///
    /// # Errors
    /// 404.
    pub fn volume(&self, name: &str) -> Result<VolumeEntry, ApiError> {
        let all = self.db.list::<VolumeEntry>(Table::Volumes)?;
        all.into_iter()
            .find_map(|(_, v)| (v.name == name).then_some(v))
            .ok_or_else(|| no_such_volume(name))
    }

    /// The export policy of a volume.
    ///
    /// # Errors
    /// 404.
    pub fn export(&self, name: &str) -> Result<Vec<ExportRule>, ApiError> {
        let volume = self.volume(name)?;
        Ok(self.db.get(Table::Policies, &number_key(volume.fsid))?.unwrap_or_default())
    }

    /// Replaces the export policy of a volume; it is in force when this returns.
    ///
    /// # Errors
    /// 400 for a rule that makes no sense, 404.
    pub async fn set_export(&self, name: &str, change: ExportChange) -> Result<(), ApiError> {
        check_rules(&change.rules)?;
        let volume = self.volume(name)?;
        self.db.update(|tx| tx.put(Table::Policies, &number_key(volume.fsid), &change.rules))?;
        self.publish_routes().await
    }

    /// Attaches disks as spares.
    ///
    /// # Errors
    /// 400 for an empty list, 409.
    pub fn add_disks(self: &Arc<Self>, request: DiskAdd) -> Result<Job, ApiError> {
        let locations = request.locations;
        if locations.is_empty() || locations.len() > DISKS_MAX {
            return Err(ApiError::bad(
                format!("{} disks to add", locations.len()),
                format!("name 1 to {DISKS_MAX} devices or files"),
            ));
        }
        if let Some(bad) = locations.iter().find(|l| !l.starts_with('/')) {
            return Err(ApiError::bad(
                format!("{bad:?} is not an absolute path"),
                "name devices and files by their whole path",
            ));
        }
        self.submit(|_| Ok(JobKind::DiskAdd { locations }))
    }

    /// Locations of disks that were added after the node was set up.
    ///
    /// # Errors
    /// The database.
    pub fn added_disks(db: &crate::db::Db) -> Result<Vec<String>, ApiError> {
        Ok(db.list::<String>(Table::Disks)?.into_iter().map(|(_, location)| location).collect())
    }

    /// Takes a disk out.
    ///
    /// # Errors
    /// 400, 404, 409.
    pub async fn fail_disk(self: &Arc<Self>, disk: &str) -> Result<Job, ApiError> {
        let uuid = parse_disk(disk)?;
        if !self.disk_reports().await?.iter().any(|d| d.disk == uuid) {
            return Err(ApiError::missing(
                format!("no such disk: {disk}"),
                "`cairn disk list` shows the disks",
            ));
        }
        self.submit(|_| Ok(JobKind::DiskFail { disk: uuid.to_string() }))
    }

    /// Copies a disk that still serves to a spare, which takes its place.
    ///
    /// # Errors
    /// 400, 404, 409.
    pub async fn replace_disk(
        self: &Arc<Self>,
        disk: &str,
        request: DiskReplace,
    ) -> Result<Job, ApiError> {
        let uuid = parse_disk(disk)?;
        let with = request.with.as_deref().map(parse_disk).transpose()?;
        let there = self.disk_reports().await?;
        let wanted = core::iter::once(uuid).chain(with);
        for wanted in wanted {
            if !there.iter().any(|d| d.disk == wanted) {
                return Err(ApiError::missing(
                    format!("no such disk: {wanted}"),
                    "`cairn disk list` shows the disks",
                ));
            }
        }
        let (disk, with) = (uuid.to_string(), with.map(|w| w.to_string()).unwrap_or_default());
        self.submit(|_| Ok(JobKind::DiskReplace { disk, with }))
    }

    /// Makes a group RAID-4 or RAID-DP.
    ///
    /// # Errors
    /// 400, 404, 409.
    pub async fn set_raid_type(
        self: &Arc<Self>,
        group: u16,
        request: RaidTypeChange,
    ) -> Result<Job, ApiError> {
        let status = self.aggregate_status().await?;
        if !status.groups.iter().any(|g| g.group == GroupNo::new(group)) {
            return Err(no_such_group(group));
        }
        if !matches!(request.raid.as_str(), "raid4" | "raid_dp") {
            return Err(ApiError::bad(
                format!("no such RAID type: {}", request.raid),
                "say raid4 or raid_dp",
            ));
        }
        self.submit(|_| Ok(JobKind::GroupKind { group, raid: request.raid }))
    }

    /// Widens a group by one data disk.
    ///
    /// # Errors
    /// 404, 409.
    pub async fn grow_group(self: &Arc<Self>, group: u16) -> Result<Job, ApiError> {
        let status = self.aggregate_status().await?;
        let number = GroupNo::new(group);
        let report = status.groups.iter().find(|g| g.group == number);
        let now = report.ok_or_else(|| no_such_group(group))?.data_disks;
        let data_disks = now.saturating_add(1);
        self.submit(|_| Ok(JobKind::GroupGrow { group, data_disks }))
    }

    /// Forms a group of spares.
    ///
    /// # Errors
    /// 400, 409.
    pub async fn add_group(self: &Arc<Self>, request: GroupAdd) -> Result<Job, ApiError> {
        let there = self.aggregate_status().await?.groups.len();
        let groups = u16::try_from(there).unwrap_or(u16::MAX).saturating_add(1);
        self.submit(|_| Ok(JobKind::GroupAdd { disks: request.disks, groups }))
    }

    /// Verifies every block.
    ///
    /// # Errors
    /// 409 when one is running.
    pub fn start_scrub(self: &Arc<Self>) -> Result<Job, ApiError> {
        self.submit(|_| Ok(JobKind::Scrub))
    }

    /// Compares the structures of a volume, or of everything, with each other.
    ///
    /// # Errors
    /// 404 for an unknown volume, 409 when one is running.
    pub fn start_check(self: &Arc<Self>, request: CheckStart) -> Result<Job, ApiError> {
        let CheckStart { volume, repair, data } = request;
        let fsid = match &volume {
            Some(name) => Some(self.volume(name)?.fsid),
            None => None,
        };
        self.submit(|_| Ok(JobKind::Check { volume, fsid, repair, data }))
    }

    /// Runs a consistency point and waits for it.
    ///
    /// # Errors
    /// 503 when the storage layer has stopped.
    pub async fn consistency_point(&self) -> Result<(), ApiError> {
        self.manage(Manage::ConsistencyPoint).await?;
        Ok(())
    }
}
