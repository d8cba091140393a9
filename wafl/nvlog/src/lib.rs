//! The NV log: what was acknowledged as stable and is not in a consistency point yet.
//!
//! Layer: above the log areas of RAID ([`cairn_raid_api::LogStore`]), below the storage manager's
//! core. It must not know what a record means. Records are opaque bytes and whole blocks; the log
//! gives them numbers ([`Lsn`]), mirrors them on several areas, and gives them back in order.
//!
//! # Life of a half
//! ```text
//! free ── switch_half ──► unopened ── opening batch stable ──► opened ── predecessor names it ──►
//!   announced (records are acknowledged) ── close_half ──► closed ── settle, CP commits,
//!   release_half ──► free
//! ```
//! Each area has two slots; half number `n` lies in slot `n % 2` of the areas chosen for it. Both
//! halves are open while the volumes freeze one by one: a volume appends to the old half before
//! and to the new half after it was frozen ([`HalfToken`]).
//!
//! # Group commit
//! One writer task writes one *round* at a time: the next records in order of their numbers, at
//! most one batch per half, every batch one vectored write on each copy. A round is acknowledged
//! when all its writes on all live copies are stable. While it runs, the next one gathers.
//!
//! # Room
//! [`Nvlog::reserve`] counts in worst-case blocks ([`record_blocks`]: the record alone in its
//! batch). A reservation holds in whichever half the record goes to. `append` takes from it,
//! never waits and never fails; appending more than was reserved is a broken invariant and
//! panics. A batch of several records is never larger than the sum of their worst cases, because
//! rounding up a sum is at most the sum of the rounded parts.
//!
//! # Why old content is never mistaken for new, and nothing is lost without notice
//! 1. A batch is named by (aggregate, epoch, half, batch number, place), checked by CRC. The epoch
//!    is 64 random bits per start, half numbers grow within it: no two batches ever written have
//!    one name, and file data that looks like a batch would have to guess the epoch.
//! 2. The root record names the first half that is needed ([`LogPosition`]). Recovery looks for
//!    exactly this half and its successor, never for "the newest".
//! 3. Batch `j + 1` is written after batch `j` was stable on all live copies. So a batch that is
//!    whole on no copy, with nothing valid behind it in any copy, was never acknowledged (torn
//!    tail); with something valid behind it, it was stable and is damaged ([`RecoverError`]).
//!    Behind it means: in the [`BATCH_BLOCKS_MAX`] blocks in one of which `j + 1` begins.
//! 4. A half's first record is acknowledged after its opening batch and then the predecessor's
//!    note of it were stable, or after a root that names it was committed. So a half that is
//!    named and cannot be found was lost, and one that is not named holds nothing acknowledged.
//! 5. Each batch says how many batches the other half had when its round began, and whether that
//!    half has one in the same round. So a half that lost its tail is found out by the other, and
//!    a round that is not whole (never acknowledged) is dropped whole: what is recovered is a
//!    prefix of what was appended.
//! 6. Two copies tolerate the loss of one. If the longer copy of a half is lost after the other
//!    one was dropped, the missing copy is reported ([`LogFinding::CopyMissing`]); the storage
//!    manager keeps that time short by starting a consistency point ([`Nvlog::wants_switch`]).
//!
//! # Large payload is spread
//! Copies cost three times the data with RAID-DP. Where the store says so ([`cairn_raid_api::LogStore::spread`]), a
//! batch with much payload has its descriptors in the copies and its payload in columns over all the
//! areas, with as much parity as areas may be lost: 1.33 times the data on eight disks. Its round is acknowledged
//! when all columns are stable. One that fails is dropped as a copy is; what is stable without it counts, the rest of
//! the half is written in copies, and a switch is due. Lost columns beyond parity stop the log, as the loss of
//! all copies does. A half holds more than its areas have room for in copies, up to
//! [`RECORDS_BLOCKS_MIN`]. The invariants above hold unchanged: whether a batch is whole is asked of its descriptors, in
//! the copies, and of the checksums of its payload. Why not the data to its place at once: `docs/decisions/0004-*`.
//!
//! Format: `docs/formats-nvlog.md`.

mod format;
mod join;
mod log;
mod recover;
mod state;

#[cfg(test)]
mod tests;

use cairn_raid_api::{LogAreaError, LogAreaId};
use cairn_sys::Block;
use cairn_units::{Blocks, Crc, Fsid, Lsn};

pub use log::{Nvlog, NvlogOptions, Reservation};
pub use recover::{LogFinding, RecoverError, Recovered, recover};
pub use state::{HalfStatus, LogCounters, LogStatus, SwitchReason};

/// Bytes of body that a record may have.
pub const RECORD_BODY_BYTES_MAX: usize = 64 * 1024;
/// Blocks of payload that a record may have (2 MiB).
pub const RECORD_PAYLOAD_BLOCKS_MAX: usize = 512;
/// Blocks in one batch, descriptors included (4 MiB): one write per copy.
pub const BATCH_BLOCKS_MAX: usize = 1024;
/// Records in one batch.
pub const BATCH_RECORDS_MAX: usize = 8192;
/// Smallest half that is of use.
pub const HALF_BLOCKS_MIN: u64 = 16;
/// Part of a half that may be used or reserved before the log asks for a switch.
pub const SWITCH_PERCENT: u64 = 60;
/// Blocks of records that a half may hold at least where they are spread and take less room than that
/// (64 MiB): recovery has them in memory.
pub const RECORDS_BLOCKS_MIN: u64 = 16_384;
/// Copies that may be asked for.
pub const COPIES_MAX: usize = 4;

/// A whole block of payload, with the checksum that its pointer will carry.
#[derive(Clone, Debug)]
pub struct LogBlock {
    /// The block; written by reference.
    pub data: Block,
    /// CRC-32 of `data`.
    pub crc: Crc,
}

impl LogBlock {
    /// Computes the checksum.
    pub fn new(data: Block) -> Self {
        let crc = Crc::new(data.crc());
        Self { data, crc }
    }
}

/// An operation to log.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its volume.
    pub fsid: Fsid,
    /// What it is, for the storage manager.
    pub kind: RecordKind,
    /// The resolved operation, at most [`RECORD_BODY_BYTES_MAX`] bytes.
    pub body: Vec<u8>,
    /// Whole blocks of file data, at most [`RECORD_PAYLOAD_BLOCKS_MAX`].
    pub payload: Vec<LogBlock>,
}

/// Kind of record, opaque to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordKind(u16);

impl RecordKind {
    /// Wraps the storage manager's number.
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }
    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// A record that recovery found.
#[derive(Clone, Debug)]
pub struct RecoveredRecord {
    /// Its place in the log's order.
    pub lsn: Lsn,
    /// What was appended.
    pub record: Record,
}

/// Number of a half, from [`Nvlog::current`] or [`Nvlog::switch_half`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HalfToken(pub(crate) u64);

/// Where the log of what a root record does not contain begins; kept in the root record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    pub(crate) epoch: u64,
    pub(crate) half: u64,
    pub(crate) opened: bool,
}

impl LogPosition {
    /// Bytes of the stored form.
    pub const BYTES: usize = 24;

    /// The stored form: epoch, half, whether its opening batch was stable, 7 zero bytes.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..8].copy_from_slice(&self.epoch.to_le_bytes());
        out[8..16].copy_from_slice(&self.half.to_le_bytes());
        out[16] = u8::from(self.opened);
        out
    }

    /// Reads the stored form; `None` when it is none.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let (epoch, rest) = bytes.split_first_chunk::<8>()?;
        let (half, rest) = rest.split_first_chunk::<8>()?;
        let (opened, zeros) = rest.split_first()?;
        if *opened > 1 || zeros.iter().any(|b| *b != 0) {
            return None;
        }
        Some(Self {
            epoch: u64::from_le_bytes(*epoch),
            half: u64::from_le_bytes(*half),
            opened: *opened == 1,
        })
    }
}

/// Worst-case blocks of a record: what must be reserved for it.
///
/// # Panics
/// When the record is larger than the limits above.
pub fn record_blocks(body_bytes: usize, payload_blocks: usize) -> Blocks {
    assert!(body_bytes <= RECORD_BODY_BYTES_MAX, "record body of {body_bytes} bytes");
    assert!(payload_blocks <= RECORD_PAYLOAD_BLOCKS_MAX, "record of {payload_blocks} blocks");
    Blocks::new(format::batch_blocks(
        format::record_bytes(body_bytes, payload_blocks),
        payload_blocks,
    ))
}

/// Why the log acknowledges nothing any more; it never will again, only a restart helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The last copy of a half failed.
    #[error("NV log: no copy of half {half} is left (last: {last})")]
    CopiesLost {
        /// Which half.
        half: u64,
        /// What the last copy said.
        last: LogAreaError,
    },
    /// Another owner holds the disks.
    #[error("NV log: fenced off by a newer owner at {area:?}")]
    Fenced {
        /// The area that refused.
        area: LogAreaId,
    },
    /// The node is shutting down.
    #[error("NV log: stopped")]
    Stopped,
}

/// Why a half could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// The other half still waits for its consistency point.
    #[error("NV log: half {0} is not released yet")]
    OtherHalfInUse(u64),
    /// No log area can be written.
    #[error("NV log: no log area is left")]
    NoLogDevice,
    /// The areas are smaller than [`HALF_BLOCKS_MIN`] allows.
    #[error("NV log: areas of {0} blocks are too small")]
    AreaTooSmall(Blocks),
    /// The log failed.
    #[error(transparent)]
    Failed(#[from] LogError),
}

/// Why room could not be reserved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// No half can ever hold so much: split the operation.
    #[error("NV log: {blocks} blocks asked for, a half holds {capacity}")]
    TooLarge {
        /// Blocks asked for.
        blocks: Blocks,
        /// Blocks that can be reserved at most.
        capacity: Blocks,
    },
    /// The log failed.
    #[error(transparent)]
    Failed(#[from] LogError),
}
