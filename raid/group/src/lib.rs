//! RAID groups and aggregates on disks.
//!
//! Layer: below the storage manager (through `cairn-raid-api`), above the disk drivers. It knows
//! blocks, stripes and disks; it knows no file, no volume and no log record.
//!
//! # Invariants
//! - A block that a flush made durable is readable after a power cut at any moment, with as many
//!   disks missing as parity covers: what parity of a stripe in flux was is stable in the stripe
//!   log before any of its blocks is overwritten (`write.rs`, `stripe_log.rs`, `recover.rs`).
//! - Parity is never computed from a block that its stamp did not vouch for (`stripe.rs`).
//! - The durable copy of a checksum block, of a region map block, of a configuration and of a
//!   root slot is never overwritten; the other copy is (`stamps.rs`, `member.rs`, `commit.rs`).
//! - What the copy that is left of a checksum or map block says stays in doubt, on the disk too,
//!   until something else says it (`stamps.rs`, `member.rs`, `stripe.rs`).
//! - A disk that does not belong is never written; opening with too few disks writes nothing.
//! - No write is acknowledged between a disk's death and a configuration, stable on the others,
//!   that says so; a dead disk is forgotten only once it is taken out (`failure.rs`).
//!
//! # One write, top to bottom
//! `RaidAggregate::write` → `write.rs` (choose what to read, parity) → `stripe_log.rs` (record
//! stable) → `core.rs` (blocks, parity, checksum blocks to the disks) → `failure.rs` (deaths
//! stable) → answer. `commit.rs` makes it durable.

mod admin;
mod aggregate;
mod code;
mod commit;
mod config;
mod copy_out;
mod core;
mod create;
mod failure;
pub mod fuzzing;
mod grid;
mod label;
mod layout;
mod log_areas;
pub mod log_spread;
mod marks;
mod member;
mod ondisk;
mod open;
mod raid_kind;
mod read;
mod rebuild;
mod recover;
mod scrub;
mod scrub_meta;
mod stamps;
mod stripe;
mod stripe_log;
mod tools;
mod view;
mod write;

use cairn_units::{ColumnNo, DiskUuid, GroupNo};

pub use crate::aggregate::{RaidAggregate, probe};
pub use crate::create::{CreateError, CreateOptions};
pub use crate::label::{Identity, Probe, Role};
pub use crate::open::{OpenError, OpenOptions, Opener, RefuseReason, Refused};
pub use cairn_raid_api::RaidKind;

/// Events kept for who asks.
pub(crate) const EVENTS_MAX: usize = 256;
/// Disks remembered as taken out.
pub(crate) const FAILED_MAX: usize = 64;
/// Checksum blocks kept in memory (4 KiB each).
pub(crate) const STAMP_CACHE_MAX: usize = 16_384;
/// Changed checksum blocks after which the disks are flushed.
pub(crate) const DIRTY_REGIONS_MAX: usize = STAMP_CACHE_MAX / 2;

/// Something that happened to the disks, for logs and alerts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A disk died or was failed by the administrator.
    DiskTakenOut {
        /// Which.
        disk: DiskUuid,
    },
    /// A spare took a position.
    RebuildStarted {
        /// The spare.
        disk: DiskUuid,
        /// Its group.
        group: GroupNo,
        /// Its position.
        column: ColumnNo,
    },
    /// The position is whole again.
    RebuildFinished {
        /// The disk.
        disk: DiskUuid,
        /// Its group.
        group: GroupNo,
        /// Its position.
        column: ColumnNo,
    },
    /// A disk is being copied to a spare.
    CopyStarted {
        /// The disk.
        disk: DiskUuid,
        /// The spare.
        to: DiskUuid,
        /// Its group.
        group: GroupNo,
        /// Its position.
        column: ColumnNo,
    },
    /// The spare has taken the disk's place; the disk is out.
    CopyFinished {
        /// The disk.
        disk: DiskUuid,
        /// The spare.
        to: DiskUuid,
        /// Its group.
        group: GroupNo,
        /// Its position.
        column: ColumnNo,
    },
    /// Blocks of a stripe could not be rebuilt: too many columns are lost.
    StripeLost {
        /// Its group.
        group: GroupNo,
        /// Which stripe.
        stripe: u64,
    },
}
