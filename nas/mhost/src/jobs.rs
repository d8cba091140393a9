//! Jobs: persistent sequences of idempotent steps.
//!
//! ```text
//! submit (one transaction: the job, and what it announces) → running step 0 → … → done
//!                                                             │ a step refuses: undo → failed
//! killed anywhere → start again → the step that was running runs again
//! ```
//! The position is kept before the next step begins, so a step may run twice and never too
//! seldom; every step is written so that twice is as good as once. Jobs run at the same time;
//! two jobs about the same thing are refused when the second is submitted.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::{DbError, Table, Tx, number_key};
use crate::error::ApiError;

/// Jobs that may be under way at once.
pub const JOBS_ACTIVE_MAX: usize = 32;
/// Jobs that are kept, the oldest finished ones are forgotten first.
pub const JOBS_KEPT_MAX: usize = 500;

/// What a job does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobKind {
    /// Makes a volume and shows it to the clients.
    VolumeCreate {
        /// Identity.
        fsid: u64,
        /// Name.
        name: String,
        /// Size in bytes.
        size_bytes: u64,
    },
    /// Takes a volume from the clients and deletes it.
    VolumeDelete {
        /// Identity.
        fsid: u64,
        /// Name.
        name: String,
    },
    /// Changes a volume's size.
    VolumeResize {
        /// Identity.
        fsid: u64,
        /// Name.
        name: String,
        /// Size in bytes.
        size_bytes: u64,
    },
    /// Renames a volume.
    VolumeRename {
        /// Identity.
        fsid: u64,
        /// Name before.
        from: String,
        /// Name afterwards.
        to: String,
    },
    /// Attaches disks as spares.
    DiskAdd {
        /// Where they are.
        locations: Vec<String>,
    },
    /// Takes a disk out and waits until a spare has replaced it.
    DiskFail {
        /// Identity of the disk.
        disk: String,
    },
    /// Copies a disk that still serves to a spare, which takes its place.
    DiskReplace {
        /// Identity of the disk.
        disk: String,
        /// Identity of the spare; empty: any that fits.
        with: String,
    },
    /// Adds diagonal parity to a RAID group, or drops it.
    GroupKind {
        /// Which.
        group: u16,
        /// "raid4" or "raid_dp".
        raid: String,
    },
    /// Widens a RAID group.
    GroupGrow {
        /// Which.
        group: u16,
        /// Data disks it is to have.
        data_disks: u16,
    },
    /// Forms a RAID group of spares.
    GroupAdd {
        /// Disks in it.
        disks: u16,
        /// Groups there are to be.
        groups: u16,
    },
    /// Verifies every block.
    Scrub,
    /// Compares the structures of one volume, or of everything, with each other.
    Check {
        /// Name of the volume, none for everything.
        volume: Option<String>,
        /// Its identity.
        fsid: Option<u64>,
        /// Put right what can be.
        repair: bool,
        /// Read the data of all files too.
        #[serde(default)]
        data: bool,
    },
    /// Watches a rebuild that began by itself.
    Rebuild,
}

impl JobKind {
    /// Names of the steps, in order.
    pub const fn steps(&self) -> &'static [&'static str] {
        match self {
            Self::VolumeCreate { .. } => &["create volume", "publish"],
            Self::VolumeDelete { .. } => &["withdraw", "delete volume", "forget"],
            Self::VolumeResize { .. } => &["resize volume", "record"],
            Self::VolumeRename { .. } => &["rename volume", "record"],
            Self::DiskAdd { .. } => &["attach", "remember"],
            Self::DiskFail { .. } => &["take out", "rebuild"],
            Self::DiskReplace { .. } => &["begin", "copy"],
            Self::GroupKind { .. } => {
                &["consistency point", "change group", "rebuild", "consistency point"]
            }
            Self::GroupGrow { .. } => &["grow group"],
            Self::GroupAdd { .. } => &["form group"],
            Self::Scrub => &["check blocks"],
            Self::Check { .. } => &["check"],
            Self::Rebuild => &["rebuild"],
        }
    }

    /// What the job is about, in words.
    pub fn title(&self) -> String {
        match self {
            Self::VolumeCreate { name, .. } => format!("create volume {name}"),
            Self::VolumeDelete { name, .. } => format!("delete volume {name}"),
            Self::VolumeResize { name, .. } => format!("resize volume {name}"),
            Self::VolumeRename { from, to, .. } => format!("rename volume {from} to {to}"),
            Self::DiskAdd { locations } => format!("add disks {}", locations.join(", ")),
            Self::DiskFail { disk } => format!("take disk {disk} out"),
            Self::DiskReplace { disk, .. } => format!("copy disk {disk} to a spare"),
            Self::GroupKind { group, raid } => format!("make RAID group {group} {raid}"),
            Self::GroupGrow { group, .. } => format!("grow RAID group {group}"),
            Self::GroupAdd { disks, .. } => format!("form a RAID group of {disks} disks"),
            Self::Scrub => "scrub".to_owned(),
            Self::Check { volume, repair, data, .. } => {
                let what =
                    volume.as_ref().map_or("the aggregate".to_owned(), |v| format!("volume {v}"));
                let data = if *data { " with all data" } else { "" };
                format!("check {what}{data}{}", if *repair { " and repair it" } else { "" })
            }
            Self::Rebuild => "rebuild".to_owned(),
        }
    }

    /// Two jobs with the same subject do not run at once.
    pub(crate) fn subject(&self) -> String {
        match self {
            Self::VolumeCreate { fsid, .. }
            | Self::VolumeDelete { fsid, .. }
            | Self::VolumeResize { fsid, .. }
            | Self::VolumeRename { fsid, .. } => format!("volume {fsid}"),
            Self::DiskFail { disk } | Self::DiskReplace { disk, .. } => format!("disk {disk}"),
            Self::DiskAdd { .. }
            | Self::GroupKind { .. }
            | Self::GroupGrow { .. }
            | Self::GroupAdd { .. } => "the aggregate".to_owned(),
            Self::Scrub => "the scrub".to_owned(),
            Self::Check { .. } => "the check".to_owned(),
            Self::Rebuild => "the rebuild".to_owned(),
        }
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Under way (or to be taken up again after a restart).
    Running,
    /// Every step is done.
    Done,
    /// A step was refused; what had been done for it is undone.
    Failed,
}

/// Progress of the present step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Done.
    pub done: u64,
    /// Of so many; 0: not known.
    pub total: u64,
    /// Of what.
    pub unit: String,
}

/// A job as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Number.
    pub id: u64,
    /// What it does.
    pub what: JobKind,
    /// Where it stands.
    pub state: JobState,
    /// Steps that are done.
    pub step: usize,
    /// Findings, or why it failed.
    pub message: String,
    /// What to do when it failed.
    pub what_to_do: String,
    /// Nanoseconds since 1970.
    pub created_ns: i64,
    /// Nanoseconds since 1970.
    pub ended_ns: Option<i64>,
}

/// Keeps a new job, in the transaction that announces what it does.
///
/// # Errors
/// 409 when a job about the same thing is under way, 503 when too many are.
pub(crate) fn submit(tx: &mut Tx, what: JobKind, now_ns: i64) -> Result<Job, ApiError> {
    let jobs: Vec<(String, Job)> = tx.list(Table::Jobs)?;
    let running = jobs.iter().filter(|(_, job)| job.state == JobState::Running);
    if running.clone().count() >= JOBS_ACTIVE_MAX {
        return Err(ApiError::new(
            503,
            format!("{JOBS_ACTIVE_MAX} jobs are under way"),
            "wait until some are done; `cairn job list` shows them",
        ));
    }
    for (_, job) in running {
        if job.what.subject() == what.subject() {
            return Err(ApiError::conflict(
                format!("job {} ({}) is under way", job.id, job.what.title()),
                format!("wait for it: `cairn job wait {}`", job.id),
            ));
        }
    }
    let surplus = (jobs.len() + 1).saturating_sub(JOBS_KEPT_MAX);
    let ended = jobs.iter().filter(|(_, job)| job.state != JobState::Running);
    for (key, _) in ended.take(surplus) {
        tx.remove(Table::Jobs, key)?;
    }
    let job = Job {
        id: tx.next_number("job")?,
        what,
        state: JobState::Running,
        step: 0,
        message: String::new(),
        what_to_do: String::new(),
        created_ns: now_ns,
        ended_ns: None,
    };
    keep(tx, &job)?;
    Ok(job)
}

/// Keeps a job's new state.
pub(crate) fn keep(tx: &mut Tx, job: &Job) -> Result<(), DbError> {
    tx.put(Table::Jobs, &number_key(job.id), job)
}
