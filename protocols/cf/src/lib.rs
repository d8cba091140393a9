//! The cluster fabric (CF): the one definition of everything that is asked of a D-module.
//!
//! Layer: between the N-module or the M-host (callers) and the storage manager (answers). A caller
//! on the same node uses [`DModule`] as it is: a plain function call in the caller's task, no
//! channel, no copy, no encoding (LPC). Between nodes the same message is framed by [`codec`]
//! (RPC). Any protocol front end works unchanged on a node that owns no disk.
//! What must not be here: how volumes or disks work inside.

pub mod codec;

use cairn_op::{ObjectRef, Op, OpCtx, OpResult, Submitted, Verifier};
use cairn_sys::BoxFuture;
use cairn_units::{Blocks, Crc, DiskUuid, Fbn, Fsid, GroupNo, InodeNo, Pvbn, Vvbn};

/// Version of the message set; a peer with another major number is refused.
pub const CF_VERSION_MAJOR: u16 = 1;
/// Minor version: fields and messages may have been added behind the known ones.
pub const CF_VERSION_MINOR: u16 = 0;

/// One message.
#[derive(Clone, Debug)]
pub enum CfRequest {
    /// A file operation.
    File(OpCtx, Op<ObjectRef>),
    /// A volume, aggregate or disk operation.
    Manage(Manage),
}

/// The answer to one message.
#[derive(Clone, Debug)]
pub enum CfReply {
    /// To a file operation.
    File(OpResult<ObjectRef>),
    /// To a management operation.
    Manage(Result<Managed, ManageError>),
}

/// Volume, aggregate and disk operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manage {
    /// Makes a volume; idempotent for the same fsid, name and size.
    VolumeCreate { fsid: Fsid, name: String, size_bytes: u64 },
    /// Deletes a volume and frees its blocks in the background; idempotent.
    VolumeDelete { fsid: Fsid },
    /// Changes a volume's size.
    VolumeResize { fsid: Fsid, size_bytes: u64 },
    /// Renames a volume.
    VolumeRename { fsid: Fsid, name: String },
    /// All volumes.
    VolumeList,
    /// The root directory of a volume.
    VolumeRoot { fsid: Fsid },
    /// Runs a consistency point now and waits for it.
    ConsistencyPoint,
    /// State of the aggregate, its groups and consistency points.
    AggregateStatus,
    /// All disks.
    DiskList,
    /// Attaches devices as spares.
    DiskAdd { locations: Vec<String> },
    /// Takes a disk out.
    DiskFail { disk: DiskUuid },
    /// Begins to copy a disk that still serves to a spare, which then takes its place.
    DiskReplace { disk: DiskUuid, with: Option<DiskUuid> },
    /// Makes a group "raid4" or "raid_dp".
    GroupKind { group: GroupNo, kind: String },
    /// Widens a group by one data disk.
    GroupGrow { group: GroupNo },
    /// Forms a new group of spares.
    GroupAdd { disks: u16 },
    /// Starts a scrub of everything.
    ScrubStart,
    /// How the scrub stands.
    ScrubStatus,
    /// Starts a check of one volume, or of everything; one that runs goes on.
    CheckStart {
        /// Volume, none for everything.
        only: Option<Fsid>,
        /// Put right what can be.
        repair: bool,
        /// Read the data of all files too, and compare it with its checksums.
        data: bool,
    },
    /// How the check stands.
    CheckStatus,
    /// Where a block of a file lies, all the way down.
    Explain { obj: ObjectRef, fbn: Fbn },
    /// All counters of the node's storage layers.
    Counters,
}

/// Answers to [`Manage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Managed {
    /// It is done.
    Done,
    /// VolumeList.
    Volumes(Vec<VolumeStatus>),
    /// VolumeRoot.
    Root(ObjectRef),
    /// AggregateStatus.
    Aggregate(AggregateStatus),
    /// DiskList.
    Disks(Vec<DiskReport>),
    /// DiskAdd, DiskReplace, GroupGrow: the disks concerned.
    DisksAdded(Vec<DiskUuid>),
    /// GroupAdd.
    GroupAdded(GroupNo),
    /// ScrubStatus.
    Scrub(ScrubReport),
    /// CheckStatus.
    Check(CheckReport),
    /// Explain.
    Explained(Explanation),
    /// Counters.
    Counters(Vec<Metric>),
}

/// One volume, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Identity.
    pub fsid: Fsid,
    /// Name.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes used.
    pub used_bytes: u64,
    /// Files there are.
    pub files: u64,
    /// Whether it takes requests.
    pub online: bool,
}

/// The aggregate, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AggregateStatus {
    /// Identity, as text.
    pub uuid: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes used.
    pub used_bytes: u64,
    /// Committed consistency points.
    pub cp_count: u64,
    /// Groups.
    pub groups: Vec<GroupReport>,
    /// Disks that hold the current log half, as text.
    pub log_disks: Vec<String>,
    /// Faults the administrator should know of, newest last.
    pub faults: Vec<String>,
}

/// One RAID group, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReport {
    /// Which.
    pub group: GroupNo,
    /// "raid4" or "raid_dp".
    pub kind: String,
    /// Data disks.
    pub data_disks: u16,
    /// "normal", "copying", "degraded", "rebuilding", "failed".
    pub state: String,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// One disk, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskReport {
    /// Identity.
    pub disk: DiskUuid,
    /// Where it is attached.
    pub location: String,
    /// Kind of medium.
    pub class: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// "data", "row parity", "diagonal parity", "spare", "failed", "log"; "copy": it is about to
    /// take the place of the disk at its position.
    pub role: String,
    /// Group and column, unless it is in none.
    pub position: Option<(GroupNo, u16)>,
    /// "online", "rebuilding", "copying", "missing".
    pub state: String,
    /// Rebuild or copy progress in stripes (done, all).
    pub rebuild: Option<(u64, u64)>,
    /// Read requests, blocks read, write requests, blocks written, flushes, errors.
    pub counters: [u64; 6],
}

/// Scrub, for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Whether one is running.
    pub running: bool,
    /// Whether one has ended since the start.
    pub finished: bool,
    /// Stripes checked and to check.
    pub progress: (u64, u64),
    /// Damaged blocks found.
    pub damaged: u64,
    /// Of these, mended.
    pub repaired: u64,
    /// Stripes whose parity did not match.
    pub parity_mismatches: u64,
    /// The first thousand findings: `inconsistent` when mended, else `damage`.
    pub findings: Vec<CheckFinding>,
}

/// Check, for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Whether one is running.
    pub running: bool,
    /// Volume that it is about, none for everything.
    pub only: Option<Fsid>,
    /// Whether it repairs.
    pub repair: bool,
    /// Blocks looked at in this round, of all.
    pub progress: (u64, u64),
    /// Volumes, inodes and blocks looked at in the last round.
    pub seen: [u64; 3],
    /// Findings of the first round.
    pub found: u64,
    /// Repairs made.
    pub repaired: u64,
    /// Findings of the last round.
    pub left: u64,
    /// The first of them.
    pub findings: Vec<CheckFinding>,
    /// Why it ended without a result.
    pub failed: Option<String>,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckFinding {
    /// `leak`, `inconsistent` or `damage`.
    pub severity: String,
    /// Volume, none for the aggregate.
    pub volume: Option<Fsid>,
    /// What and where, in words.
    pub text: String,
}

/// Where a block of a file lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Inode.
    pub ino: InodeNo,
    /// Block of the file.
    pub fbn: Fbn,
    /// `None`: the block is a hole, inline in the inode, or not yet written by a CP.
    pub block: Option<ExplainedBlock>,
    /// In words: "hole", "inline", "in memory, not yet written", "on disk".
    pub state: String,
}

/// The chain below a file block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedBlock {
    /// Block in the volume.
    pub vvbn: Vvbn,
    /// Block in the aggregate, by the container map.
    pub pvbn: Pvbn,
    /// Block in the aggregate, by the pointer's hint.
    pub hint: Pvbn,
    /// Checksum in the pointer.
    pub crc: Crc,
    /// RAID group.
    pub group: GroupNo,
    /// Stripe in the group.
    pub stripe: u64,
    /// The block itself.
    pub data: DiskPlace,
    /// Parity blocks of its stripe: row, then diagonal.
    pub parity: Vec<DiskPlace>,
}

/// One block on one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlace {
    /// Column in the group.
    pub column: u16,
    /// Identity of the disk, as text; empty when the position is empty.
    pub disk: String,
    /// Where it is attached.
    pub location: String,
    /// Block on the disk.
    pub dbn: u64,
}

/// One counter or histogram bucket, in Prometheus terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Name, without the product's prefix, in snake case with its unit last.
    pub name: String,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Value.
    pub value: u64,
}

/// Why a management operation was refused; the text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManageError {
    /// No such volume.
    #[error("no such volume: {0}")]
    NoSuchVolume(Fsid),
    /// The name or fsid is taken by another volume.
    #[error("the volume name {0:?} is taken")]
    NameTaken(String),
    /// The name cannot be used.
    #[error("{0:?} is not a volume name: 1 to 64 letters, digits, `_`, `-` or `.`")]
    BadName(String),
    /// Not enough space.
    #[error("not enough space: {needed_bytes} bytes needed, {free_bytes} free")]
    NoSpace {
        /// Needed.
        needed_bytes: u64,
        /// There.
        free_bytes: u64,
    },
    /// The order was refused by the layer below.
    #[error("{0}")]
    Refused(String),
    /// The object is gone.
    #[error("no such file")]
    NoSuchObject,
    /// The node serves no more.
    #[error("the storage layer has stopped: {0}")]
    Stopped(String),
}

impl VolumeStatus {
    /// Size in blocks.
    pub fn size(&self) -> Blocks {
        Blocks::for_bytes(self.size_bytes)
    }
}

/// N-module and M-host to D-module. Implemented by the storage manager (LPC), by the connection to
/// another node (RPC) and by the reference model of the tests; all pass one conformance suite.
pub trait DModule: Send + Sync + 'static {
    /// Starts a file operation; runs to its end in the caller's task when all it needs is in
    /// memory.
    fn file(&self, ctx: OpCtx, op: Op<ObjectRef>) -> Submitted<OpResult<ObjectRef>>;

    /// Runs a management operation.
    fn manage(&self, request: Manage) -> BoxFuture<Result<Managed, ManageError>>;

    /// Changes whenever unstable writes may have been lost: with each start of the D-module.
    fn verifier(&self) -> Verifier;
}
