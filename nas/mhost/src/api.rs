//! Bodies of the REST interface: what goes in, what comes out. Used by the server and by the CLI.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::jobs::{JobKind, JobState, Progress};
use crate::model::{ExportRule, ScrubSchedule, VolumeState, Vserver};

/// The node at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    /// Release.
    pub version: String,
    /// Identity of the node.
    pub node: String,
    /// Virtual servers.
    pub vservers: Vec<Vserver>,
    /// Address of the NFS server.
    pub nfs: String,
    /// Address of REST.
    pub rest: String,
    /// State directory.
    pub state_dir: String,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// `ok`, `degraded` or `failed`.
    pub health: String,
    /// Faults the administrator should know of, oldest first.
    pub faults: Vec<String>,
    /// Volumes in use.
    pub volumes_online: u64,
    /// Jobs under way.
    pub jobs_running: u64,
    /// Size of the aggregate in bytes.
    pub size_bytes: u64,
    /// Of these, used.
    pub used_bytes: u64,
    /// Committed consistency points.
    pub cp_count: u64,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskView {
    /// Identity.
    pub disk: String,
    /// Where it is attached.
    pub location: String,
    /// Kind of medium.
    pub class: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// What it does: data, row parity, diagonal parity, spare, failed, log.
    pub role: String,
    /// RAID group, unless it is in none.
    pub group: Option<u16>,
    /// Column in the group.
    pub column: Option<u16>,
    /// online, rebuilding, missing.
    pub state: String,
    /// Stripes rebuilt.
    pub rebuild_done: Option<u64>,
    /// Stripes to rebuild.
    pub rebuild_total: Option<u64>,
    /// Read requests.
    pub reads: u64,
    /// Blocks read.
    pub blocks_read: u64,
    /// Write requests.
    pub writes: u64,
    /// Blocks written.
    pub blocks_written: u64,
    /// Flushes.
    pub flushes: u64,
    /// Failed requests and bad checksums.
    pub errors: u64,
}

/// A RAID group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// Number.
    pub group: u16,
    /// raid4 or raid_dp.
    pub kind: String,
    /// Data disks.
    pub data_disks: u16,
    /// normal, degraded, rebuilding, failed.
    pub state: String,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// An aggregate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AggregateView {
    /// Identity.
    pub uuid: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Of these, used.
    pub used_bytes: u64,
    /// Committed consistency points.
    pub cp_count: u64,
    /// RAID groups.
    pub groups: Vec<GroupView>,
    /// Disks that hold the log now.
    pub log_disks: Vec<String>,
    /// Faults, oldest first.
    pub faults: Vec<String>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// Name.
    pub name: String,
    /// Identity.
    pub fsid: u64,
    /// Virtual server.
    pub vserver: String,
    /// Path at which clients find it.
    pub junction: String,
    /// Where it stands in its life.
    pub state: VolumeState,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Of these, used.
    pub used_bytes: u64,
    /// Files.
    pub files: u64,
}

/// A new volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// Name.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Path; `/NAME` when it is left out.
    #[serde(default)]
    pub junction: Option<String>,
    /// Export policy; nobody is admitted when it is left out.
    #[serde(default)]
    pub rules: Vec<ExportRule>,
}

/// Changes of a volume; exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeChange {
    /// New size in bytes.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// New name.
    #[serde(default)]
    pub name: Option<String>,
}

/// An export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExportView {
    /// Volume.
    pub volume: String,
    /// Path to mount.
    pub path: String,
    /// Rules, the first that matches decides.
    pub rules: Vec<ExportRule>,
}

/// A new export policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportChange {
    /// Rules, the first that matches decides.
    pub rules: Vec<ExportRule>,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// Number.
    pub id: u64,
    /// In words.
    pub title: String,
    /// What it does.
    pub what: JobKind,
    /// Where it stands.
    pub state: JobState,
    /// Steps that are done.
    pub steps_done: u64,
    /// Steps there are.
    pub steps_total: u64,
    /// Name of the step under way.
    pub step: String,
    /// Progress of that step.
    pub progress: Option<Progress>,
    /// Findings, or why it failed.
    pub message: String,
    /// What to do when it failed.
    pub what_to_do: String,
    /// Nanoseconds since 1970.
    pub created_ns: i64,
    /// Nanoseconds since 1970.
    pub ended_ns: Option<i64>,
}

/// Disks to attach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskAdd {
    /// Paths of block devices or files.
    pub locations: Vec<String>,
}

/// A disk to replace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskReplace {
    /// Identity of the spare; any that fits when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<String>,
}

/// What a RAID group is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RaidTypeChange {
    /// `raid4` or `raid_dp`.
    pub raid: String,
}

/// A RAID group to form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupAdd {
    /// Disks in it, parity included.
    pub disks: u16,
}

/// The scrub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubView {
    /// Whether one is running.
    pub running: bool,
    /// Whether one has ended since the start.
    pub finished: bool,
    /// Stripes checked.
    pub stripes_done: u64,
    /// Stripes to check.
    pub stripes_total: u64,
    /// Damaged blocks found.
    pub damaged: u64,
    /// Of these, mended.
    pub repaired: u64,
    /// Stripes whose parity did not match.
    pub parity_mismatches: u64,
    /// The first thousand findings.
    pub findings: Vec<CheckFindingView>,
    /// When it runs by itself.
    pub schedule: ScrubSchedule,
}

/// What to check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckStart {
    /// Volume, none for the whole aggregate.
    #[serde(default)]
    pub volume: Option<String>,
    /// Put right what can be.
    #[serde(default)]
    pub repair: bool,
    /// Read the data of all files too.
    #[serde(default)]
    pub data: bool,
}

/// The check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckView {
    /// Whether one is running.
    pub running: bool,
    /// Whether it repairs.
    pub repair: bool,
    /// Blocks looked at in this round.
    pub blocks_done: u64,
    /// Blocks to look at.
    pub blocks_total: u64,
    /// Volumes looked at.
    pub volumes: u64,
    /// Inodes looked at.
    pub inodes: u64,
    /// Findings before any repair.
    pub found: u64,
    /// Repairs made.
    pub repaired: u64,
    /// Findings that are left.
    pub left: u64,
    /// The first of them.
    pub findings: Vec<CheckFindingView>,
    /// Why it ended without a result.
    pub failed: Option<String>,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckFindingView {
    /// `leak` (space or a count), `inconsistent` (can be put right) or `damage` (data is lost).
    pub severity: String,
    /// What and where.
    pub text: String,
}

/// One block on one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlaceView {
    /// Column in the group.
    pub column: u16,
    /// Identity of the disk; empty when there is none.
    pub disk: String,
    /// Where it is attached.
    pub location: String,
    /// Block on the disk.
    pub dbn: u64,
}

/// Where a block of a file lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainView {
    /// Path that was asked for.
    pub path: String,
    /// Volume.
    pub volume: String,
    /// Its identity.
    pub fsid: u64,
    /// Inode.
    pub ino: u64,
    /// Size of the file in bytes.
    pub size_bytes: u64,
    /// Block of the file.
    pub fbn: u64,
    /// hole, inline, in memory, on disk.
    pub state: String,
    /// The chain below, when the block is on disk.
    pub block: Option<ExplainBlock>,
}

/// The chain below a file block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainBlock {
    /// Block in the volume.
    pub vvbn: u64,
    /// Block in the aggregate, by the container map.
    pub pvbn: u64,
    /// Block in the aggregate, by the pointer's hint.
    pub pvbn_hint: u64,
    /// CRC-32 of the block.
    pub crc: u32,
    /// RAID group.
    pub group: u16,
    /// Stripe in the group.
    pub stripe: u64,
    /// The block itself.
    pub data: PlaceView,
    /// Parity blocks of its stripe: row, then diagonal.
    pub parity: Vec<PlaceView>,
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CounterView {
    /// Name.
    pub name: String,
    /// Labels, as `name="value"` joined by commas.
    pub labels: String,
    /// Value.
    pub value: u64,
}
