//! The contract between the storage manager and RAID.
//!
//! Layer: above it `wafl/*`, below it `raid/group` (and a fake for tests). It knows no file and no
//! volume: it gives an aggregate as one space of PVBNs, some log areas, and one root record.
//!
//! # Invariants
//! - A block that the committed root reaches is never overwritten through [`Aggregate::write`];
//!   RAID trusts the storage manager in that, and protects such blocks when it must touch the
//!   stripe they lie in (stripe log, no write hole).
//! - What [`Aggregate::read`] returns matched the expected checksum, or no checksum was expected
//!   and the block's own stamp vouched for it. It is never wrong bytes.
//! - After [`Aggregate::commit_root`] returned `Ok`, a crash at any later moment finds this root
//!   or a newer one, and every block written before the call.

use core::fmt;
use std::sync::Arc;

use cairn_sys::{Block, BoxFuture};
use cairn_units::{
    AggregateUuid, Blocks, ColumnNo, CpCount, Crc, Dbn, DiskUuid, Fsid, GroupNo, MonoTime, Pvbn,
    Vvbn,
};

/// Bytes of root record that the storage manager may use.
pub const ROOT_BYTES_MAX: usize = 3584;

/// Identity of a block, opaque to RAID, kept beside the block's checksum (24 bytes on disk).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockTag {
    /// Volume the block belongs to; 0 for the aggregate's own metadata.
    pub fsid: Fsid,
    /// Place in the volume; 0 for the aggregate's own metadata.
    pub vvbn: Vvbn,
    /// Consistency point that wrote it.
    pub cp: CpCount,
}

/// One block to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Which block.
    pub at: Pvbn,
    /// Checksum that the pointer to the block carries. A block that does not match is rebuilt
    /// from parity, and rewritten when the rebuilt one does. `None`: the stamp alone vouches.
    pub expect: Option<Crc>,
}

/// Why a block could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// More columns of the stripe are lost or damaged than parity covers.
    #[error("{at:?}: {lost} columns lost, parity covers {parity}")]
    TooManyLost {
        /// Which block.
        at: Pvbn,
        /// Columns lost or damaged.
        lost: u16,
        /// Columns that parity can replace.
        parity: u16,
    },
    /// What the stripe holds is consistent, and not the block that the pointer names.
    #[error("{at:?}: block does not match its pointer (expected {expected:?})")]
    WrongBlock {
        /// Which block.
        at: Pvbn,
        /// What the pointer says.
        expected: Crc,
    },
    /// Not a block of this aggregate.
    #[error("{at:?} is outside the aggregate")]
    OutOfRange {
        /// Which block.
        at: Pvbn,
    },
}

/// Why a write, flush or commit failed. The caller stops the node or refuses the consistency
/// point; it never retries into an acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A group has lost more disks than its parity covers.
    #[error("group {group:?}: {lost} disks lost, parity covers {parity}")]
    GroupFailed {
        /// Which group.
        group: GroupNo,
        /// Disks lost.
        lost: u16,
        /// Disks that parity can replace.
        parity: u16,
    },
    /// Another owner holds the disks.
    #[error("fenced off by a newer owner")]
    Fenced,
    /// No log area is left that can be written.
    #[error("no disk is left for the log")]
    NoLogDevice,
    /// The root record could be written to too few disks.
    #[error("root record written to {written} of {disks} disks")]
    RootNotWritten {
        /// Disks that took it.
        written: u16,
        /// Disks there are.
        disks: u16,
    },
    /// A block to write lies outside the aggregate, or twice in one tetris.
    #[error("{at:?} cannot be written in this tetris")]
    BadAddress {
        /// Which block.
        at: Pvbn,
    },
    /// A column that parity needs could not be read back whole.
    #[error("stripe could not be completed: {0}")]
    Stripe(#[from] ReadError),
}

/// State of one column (disk position) of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ColumnState {
    /// Present and whole.
    Online,
    /// A disk is being rebuilt into the position: reads come from parity, new writes go to it.
    Rebuilding,
    /// No disk: reads come from parity, nothing may be written to it.
    Missing,
}

/// How a group protects its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaidKind {
    /// One disk of row parity.
    Raid4,
    /// Row and diagonal parity: any two disks may be lost.
    RaidDp,
}

impl RaidKind {
    /// Disks that may be lost.
    pub fn parity(self) -> u16 {
        match self {
            Self::Raid4 => 1,
            Self::RaidDp => 2,
        }
    }
}

/// One data column of a group: a run of PVBNs that lies on one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataColumn {
    /// Column in the group.
    pub column: ColumnNo,
    /// PVBN of its stripe 0. Stripe `s` of the column is `pvbn_base + s`.
    pub pvbn_base: Pvbn,
    /// Blocks are allocated on `Missing` ones only when there is too little room elsewhere.
    pub state: ColumnState,
}

/// One RAID group as allocation sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupGeometry {
    /// Which group.
    pub group: GroupNo,
    /// Stripes, numbered from 0; each data column has one block in each.
    pub stripes: Blocks,
    /// Data columns, by column number.
    pub data: Vec<DataColumn>,
    /// Disks that may be lost.
    pub parity: u16,
    /// Stripes `n * region_stripes ..` that RAID keeps account of together: writes of one region
    /// wait for each other, and each writes its account once. A [`Tetris`] that ends with a region is
    /// cheapest.
    pub region_stripes: u64,
}

/// The aggregate as allocation sees it. PVBNs run from 0; those of no column do not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Identity of the aggregate.
    pub aggregate: AggregateUuid,
    /// Changes with every change of the rest, so that a cached copy can be checked.
    pub version: u64,
    /// Groups, by number.
    pub groups: Vec<GroupGeometry>,
    /// One past the highest PVBN of any column.
    pub pvbn_end: Pvbn,
}

impl Geometry {
    /// Group index, data-column index (in `GroupGeometry::data`) and stripe of a PVBN.
    pub fn locate(&self, at: Pvbn) -> Option<(usize, usize, u64)> {
        self.groups.iter().enumerate().find_map(|(g, group)| {
            group.data.iter().enumerate().find_map(|(c, column)| {
                let stripe = at.since(column.pvbn_base)?;
                (stripe < group.stripes.get()).then_some((g, c, stripe))
            })
        })
    }
    /// Blocks that can hold data.
    pub fn data_blocks(&self) -> Blocks {
        Blocks::new(self.groups.iter().map(|g| g.stripes.get() * g.data.len() as u64).sum())
    }
}

/// One block to write.
#[derive(Clone, Debug)]
pub struct WriteBlock {
    /// Where. On a `Missing` column the block exists in parity alone until it is rebuilt.
    pub at: Pvbn,
    /// What.
    pub data: Block,
    /// CRC-32 of `data`, as the pointer to the block carries it.
    pub crc: Crc,
    /// Its identity.
    pub tag: BlockTag,
}

/// One stripe of a [`Tetris`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeWrite {
    /// Stripe number in the group.
    pub stripe: u64,
    /// No block of this stripe outside the tetris is reachable from the committed root or written
    /// in the running consistency point: RAID may fill the rest with zeros.
    pub rest_is_free: bool,
}

/// A batch of stripes of one group, handed to RAID at once.
#[derive(Clone, Debug)]
pub struct Tetris {
    /// Which group.
    pub group: GroupNo,
    /// Stripes in ascending order, each once; those in which `blocks` has any.
    pub stripes: Vec<StripeWrite>,
    /// What to write into them, each place once. In any order; column by column, and each of them by
    /// stripe, is quickest.
    pub blocks: Vec<WriteBlock>,
    /// Stripes in ascending order, some of this tetris and some that are likely to be written
    /// soon, of which the committed root reaches no block: RAID may log them together, so that
    /// the tetrises that fill them need not wait for the log. Whether they are written is open.
    pub ahead: Arc<[u64]>,
}

/// Stripes that a tetris may name in [`Tetris::ahead`]; RAID takes note of no more.
pub const AHEAD_STRIPES_MAX: usize = 512;

/// The aggregate's root record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootRecord {
    /// Consistency point that it belongs to; the newest wins.
    pub cp: CpCount,
    /// Up to [`ROOT_BYTES_MAX`] bytes of the storage manager's.
    pub bytes: Vec<u8>,
}

/// A log area: the same number of blocks reserved on each disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogAreaId(pub DiskUuid);

/// Why an access to a log area failed; the area is not to be used again until it is chosen anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogAreaError {
    /// The disk is gone or was taken out.
    #[error("log area {0:?} is gone")]
    Gone(LogAreaId),
    /// These blocks could not be read or written.
    #[error("log area {area:?}: medium error at block {at}")]
    Medium {
        /// Which area.
        area: LogAreaId,
        /// First block of the failed request.
        at: u64,
    },
    /// Another owner holds the disk.
    #[error("fenced off by a newer owner")]
    Fenced,
    /// The request reaches past the area.
    #[error("outside the log area")]
    OutOfRange,
}

/// Data columns of a [`Spread`] at the most.
pub const SPREAD_DATA_MAX: usize = 8;
/// Parity columns of a [`Spread`] at the most.
pub const SPREAD_PARITY_MAX: usize = 2;

/// Areas over which one large piece of the log may be spread instead of being copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Up to [`SPREAD_DATA_MAX`] data columns, then the parity columns, each on a disk of its own. The
    /// areas that [`LogStore::choose`] gives come first.
    pub areas: Vec<LogAreaId>,
    /// How many of them hold parity: as many may be lost.
    pub parity: usize,
    /// Blocks from which spreading costs less than copies.
    pub from_blocks: usize,
}

/// The reserved log areas on the disks (or on named log devices). Which of them hold the NV log,
/// and in how many copies, is the log's business.
pub trait LogStore: Send + Sync + 'static {
    /// Blocks in each area.
    fn area_blocks(&self) -> Blocks;
    /// Areas that can be read now (recovery looks at all of them).
    fn areas(&self) -> Vec<LogAreaId>;
    /// The best `copies` areas to write to from now on, on different disks; fewer if there are
    /// fewer healthy disks. Dedicated log devices come first.
    fn choose(&self, copies: usize) -> Vec<LogAreaId>;
    /// Areas to spread large pieces over while `copies` copies are kept of small ones: any
    /// `copies - 1` of them may be lost, or more where their group covers more. `None` where copies are better or there are too few disks.
    fn spread(&self, copies: usize) -> Option<Spread>;
    /// Parity of `data`, one run of blocks for each data column; what a shorter one lacks counts as
    /// zeros. Gives `parity` columns as long as the longest. Computes; touches no disk.
    ///
    /// # Panics
    /// When there are more columns than a spread may have, or none of parity.
    fn spread_parity(&self, data: &[&[Block]], parity: usize) -> Vec<Vec<Block>>;
    /// Fills in the blocks that are missing of one row: data columns, then `parity` others. Whether they
    /// could be found; nothing says that they are right.
    ///
    /// # Panics
    /// When there are more columns than a spread may have, or none of parity.
    fn spread_restore(&self, row: &mut [Option<Block>], parity: usize) -> bool;
    /// Completes with the number of areas taken away so far, once it is above `seen`. Who keeps
    /// something in areas then looks at [`Self::areas`]: a disk may be replaced and its group
    /// whole again long before anybody writes to the log.
    fn loss_after(&self, seen: u64) -> BoxFuture<u64>;
    /// Reads `count` blocks from block `at` of `area`.
    ///
    /// # Errors
    /// See [`LogAreaError`].
    fn read(
        &self,
        area: LogAreaId,
        at: u64,
        count: usize,
    ) -> BoxFuture<Result<Vec<Block>, LogAreaError>>;
    /// Writes `blocks` from block `at` of `area` on and makes them stable.
    ///
    /// # Errors
    /// See [`LogAreaError`]; any part may have been written.
    fn write_stable(
        &self,
        area: LogAreaId,
        at: u64,
        blocks: Vec<Block>,
    ) -> BoxFuture<Result<(), LogAreaError>>;
}

/// An aggregate: one space of PVBNs on RAID groups. Object-safe; implemented by `raid/group` and
/// by the fake of the tests, which pass one conformance suite.
pub trait Aggregate: Send + Sync + 'static {
    /// The present geometry.
    fn geometry(&self) -> Arc<Geometry>;

    /// Reads blocks; one answer per request, in the order of the requests. Damaged blocks are
    /// rebuilt from parity and rewritten on the way.
    fn read(&self, requests: Vec<ReadRequest>) -> BoxFuture<Vec<Result<Block, ReadError>>>;

    /// Writes whole and partial stripes with parity and stamps. `Ok` means accepted by enough
    /// disks, not stable: [`Self::commit_root`] makes it so.
    ///
    /// # Errors
    /// See [`WriteError`]. A disk that fails is taken out; that is no error while parity covers it.
    fn write(&self, tetris: Tetris) -> BoxFuture<Result<(), WriteError>>;

    /// Flush, write the root to the slots of all disks, flush.
    ///
    /// # Errors
    /// See [`WriteError`]; the committed root is then the old one or the new one.
    fn commit_root(&self, root: RootRecord) -> BoxFuture<Result<(), WriteError>>;

    /// The newest committed root, `None` on a new aggregate.
    fn root(&self) -> Option<RootRecord>;

    /// The log areas.
    fn log(&self) -> Arc<dyn LogStore>;

    /// Where a block lies, for `explain`.
    fn place(&self, at: Pvbn) -> Option<Place>;
}

/// Where a block lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its group.
    pub group: GroupNo,
    /// Its stripe.
    pub stripe: u64,
    /// The block itself.
    pub data: PlaceOnDisk,
    /// Row parity of the stripe.
    pub row_parity: Option<PlaceOnDisk>,
    /// Diagonal parity of the stripe.
    pub diagonal_parity: Option<PlaceOnDisk>,
}

/// One block on one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceOnDisk {
    /// Column in the group.
    pub column: ColumnNo,
    /// Which disk; `None` when the position is empty.
    pub disk: Option<DiskUuid>,
    /// Where the disk is attached.
    pub location: Option<String>,
    /// Block on the disk.
    pub dbn: Dbn,
}

/// Role of a disk, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskRole {
    /// Holds data.
    Data,
    /// Holds row parity.
    RowParity,
    /// Holds diagonal parity.
    DiagonalParity,
    /// Waits to replace a failed disk.
    Spare,
    /// Was taken out.
    Failed,
    /// Holds nothing but the log.
    Log,
    /// Another disk is being copied to it, whose place it takes then.
    Copy,
}

/// One disk, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// Identity, from the label.
    pub disk: DiskUuid,
    /// Where it is attached; `was` and the end of where it was when it is gone.
    pub location: String,
    /// Kind of medium, in words.
    pub class: String,
    /// Size, also of one that is gone; 0: not known.
    pub blocks: Blocks,
    /// What it does.
    pub role: DiskRole,
    /// Where in its group, unless it is in none.
    pub position: Option<(GroupNo, ColumnNo)>,
    /// State of that position.
    pub state: ColumnState,
    /// Rebuild or copy progress in stripes done of all, while `Rebuilding`.
    pub rebuild: Option<(Blocks, Blocks)>,
    /// Requests, and errors that count against its budget.
    pub reads: u64,
    /// Blocks read.
    pub blocks_read: u64,
    /// Write requests.
    pub writes: u64,
    /// Blocks written.
    pub blocks_written: u64,
    /// Flushes.
    pub flushes: u64,
    /// Failed requests and checksum failures.
    pub errors: u64,
}

/// Counters of the RAID layer; block counts are device blocks by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaidCounters {
    /// Stripes written with every data column.
    pub full_stripes: u64,
    /// Stripes written in part, parity from what else is in the stripe.
    pub partial_stripes: u64,
    /// Data blocks written.
    pub data_blocks: u64,
    /// Zero blocks written to complete free stripes.
    pub fill_blocks: u64,
    /// Parity blocks written.
    pub parity_blocks: u64,
    /// Checksum blocks written.
    pub checksum_blocks: u64,
    /// Stripe log blocks written.
    pub stripe_log_blocks: u64,
    /// Blocks read to compute parity.
    pub parity_read_blocks: u64,
    /// Blocks rebuilt from parity to answer a read.
    pub reconstructed_blocks: u64,
    /// Blocks found damaged and rewritten.
    pub repaired_blocks: u64,
}

/// Progress and findings of a scrub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Whether one is running.
    pub running: bool,
    /// When the last one ended.
    pub finished: Option<MonoTime>,
    /// Stripes checked.
    pub stripes_done: Blocks,
    /// Stripes to check.
    pub stripes_total: Blocks,
    /// Blocks or stamps that were wrong.
    pub damaged: u64,
    /// Of these, mended.
    pub repaired: u64,
    /// Stripes whose parity did not match their data.
    pub parity_mismatches: u64,
}

/// Findings of one scrub that are kept; all are counted.
pub const SCRUB_FINDINGS_MAX: usize = 1000;

/// What a scrub can find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubFault {
    /// A copy of a disk's label.
    Label,
    /// A copy of the configuration.
    Configuration,
    /// A copy of the root.
    Root,
    /// A copy of a block of a disk's region map; rotten, or torn by a power cut. Not counted as
    /// damage.
    RegionMap,
    /// A copy of a checksum block; rotten, or torn by a power cut. Not counted as damage.
    Checksums,
    /// A block of data or parity that cannot be read, or does not match its checksum.
    Block,
    /// A block that matches its checksum and is not what was written: the write was lost.
    LostWrite,
    /// Parity does not match, and no single block explains it.
    Parity,
}

/// One finding of a scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubFinding {
    /// What.
    pub what: ScrubFault,
    /// The disk; `None` when it is not known which.
    pub disk: Option<DiskUuid>,
    /// First block on it.
    pub dbn: Dbn,
    /// Group and stripe; `None` outside of stripes.
    pub stripe: Option<(GroupNo, u64)>,
    /// Whether it was mended.
    pub repaired: bool,
}

impl fmt::Display for ScrubFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            ScrubFault::Label => "label is damaged",
            ScrubFault::Configuration => "configuration is damaged",
            ScrubFault::Root => "root is damaged",
            ScrubFault::RegionMap => "copy of the region map is damaged, or a power cut tore it",
            ScrubFault::Checksums => "copy of a checksum block is damaged, or a power cut tore it",
            ScrubFault::Block => "block cannot be read or does not match its checksum",
            ScrubFault::LostWrite => "block is not what was written last",
            ScrubFault::Parity => "parity does not match, and no single block explains it",
        };
        if let Some((group, stripe)) = self.stripe {
            write!(f, "group {group}, stripe {stripe}: ")?;
        }
        if let Some(disk) = self.disk {
            write!(f, "disk {disk}, block {}: ", self.dbn)?;
        }
        f.write_str(what)?;
        f.write_str(if self.repaired { "; mended" } else { "; not mended" })
    }
}

/// Why an administrator's order was refused; the text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// No disk with this identity or location.
    #[error("no such disk: {0}; `cairn disk list` shows those there are")]
    NoSuchDisk(String),
    /// The disk cannot be used; says why.
    #[error("{location}: {reason}")]
    Refused {
        /// Which disk.
        location: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Taking the disk out would lose data.
    #[error("taking out {0} would lose data: its group has no parity to spare")]
    WouldLoseData(String),
    /// The aggregate has no such group.
    #[error("no such group: {0:?}")]
    NoSuchGroup(GroupNo),
    /// The label or the configuration could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What the administrator may ask of an aggregate's disks.
pub trait AggregateAdmin: Send + Sync + 'static {
    /// All disks: members, spares, failed ones.
    fn disks(&self) -> Vec<DiskStatus>;
    /// Counters since the start.
    fn counters(&self) -> RaidCounters;
    /// Attaches the devices at `locations` as spares.
    fn add_spares(&self, locations: Vec<String>) -> BoxFuture<Result<Vec<DiskUuid>, AdminError>>;
    /// Widens `group` by one data column on a spare, online.
    fn grow_group(&self, group: GroupNo) -> BoxFuture<Result<DiskUuid, AdminError>>;
    /// Forms a new group of `disks` spares, online.
    fn add_group(&self, disks: u16) -> BoxFuture<Result<GroupNo, AdminError>>;
    /// Takes a disk out; a spare is rebuilt in its place if there is one.
    fn fail_disk(&self, disk: DiskUuid) -> BoxFuture<Result<(), AdminError>>;
    /// Begins to copy a disk that still serves to a spare (`with`, or one that fits), which takes
    /// its place when everything is copied. Gives the spare. `Ok` as well while it is under way.
    fn replace_disk(
        &self,
        disk: DiskUuid,
        with: Option<DiskUuid>,
    ) -> BoxFuture<Result<DiskUuid, AdminError>>;
    /// Adds the disk of diagonal parity to a RAID-4 group, from a spare, or drops it, online. An
    /// added one is filled like any rebuilt disk: the group survives two failures when it is
    /// `Online`. A dropped one becomes a spare. `Ok` when the group is of that kind already.
    fn set_raid_kind(&self, group: GroupNo, kind: RaidKind) -> BoxFuture<Result<(), AdminError>>;
    /// Starts a scrub of everything; one that runs goes on.
    fn start_scrub(&self);
    /// How the scrub stands.
    fn scrub(&self) -> ScrubStatus;
    /// The first [`SCRUB_FINDINGS_MAX`] findings of the scrub under way, or of the last one.
    fn scrub_findings(&self) -> Vec<ScrubFinding>;
}
