//! Disks: the contract between RAID and a device, and the drivers that keep it.
//!
//! Layer: below RAID groups, above the kernel. Nothing above knows which driver it has.
//!
//! # What a driver must do
//! - Run any number of requests at once, in any order, and never panic for any address.
//! - After `flush` returned `Ok`, every write that had *completed* before `flush` was called is on
//!   stable storage, and after `write_stable` returned `Ok` the blocks of this one write are. Nothing
//!   else orders writes: an unflushed write may be lost, torn at 512-byte boundaries, or land after
//!   a later one. What is stable stays: no write that had completed before lands over it.
//! - Report a failure as the [`DiskError`] that says what can be done about it.
//! - Own the buffers of a request until the device is done with them, even when the future is
//!   dropped: a dropped future abandons the answer, not the request.
//!
//! # What it may rely on
//! - Nobody has two overlapping writes under way at once.

//!
//! # Drivers
//! [`open_disks`] opens block devices and plain files with the io_uring driver, or with threads
//! where the kernel refuses io_uring. A request begins when the method is called (when its future
//! is polled, if the disk's queue is full).

mod device;
mod driver;
mod errno;
mod event_loop;
mod flights;
mod nonvolatile;
mod open;
mod threads;
mod uring;
mod vector;

pub use nonvolatile::NonVolatile;
pub use open::{
    CreateDiskError, DISK_BLOCKS_MIN, Driver, DriverError, DriverOptions, OpenDiskError,
    OpenedDisk, create_file_disk, open_disks,
};

use std::sync::Arc;

use cairn_sys::{Block, BlockMut, BoxFuture};
use cairn_units::{Blocks, Dbn};

/// Blocks in one request at the most (4 MiB).
pub const REQUEST_BLOCKS_MAX: usize = 1024;

/// What kind of medium, shown to the administrator and used to form groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskClass {
    /// Rotating.
    Hdd,
    /// Flash behind SATA, SAS or NVMe.
    Ssd,
    /// A plain file on a host file system.
    File,
    /// A disk of the simulator.
    Simulated,
}

/// What a driver knows of its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Where it is attached (a path or a slot): for people, never an identity.
    pub location: String,
    /// Kind of medium.
    pub class: DiskClass,
    /// Size.
    pub blocks: Blocks,
}

/// Why a request failed, sorted by what can be done about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// These blocks cannot be read (or written) now; others can. Repair from parity and rewrite.
    #[error("medium error at {at:?} ({count} blocks)")]
    Medium {
        /// First block that is known bad.
        at: Dbn,
        /// Blocks from there on that may be bad.
        count: Blocks,
    },
    /// No answer in time. The request may still take effect later.
    #[error("timed out at {at:?}")]
    TimedOut {
        /// First block of the request.
        at: Dbn,
    },
    /// The device is gone for good: take it out.
    #[error("device gone: {reason}")]
    Gone {
        /// What the kernel said.
        reason: String,
    },
    /// A newer owner holds the device (credential epoch); this node must stop writing.
    #[error("fenced off by a newer owner")]
    Fenced,
    /// The address is not on the disk: a fault of the caller.
    #[error("blocks {at:?}+{count} are outside the disk")]
    OutOfRange {
        /// First block asked for.
        at: Dbn,
        /// Blocks asked for.
        count: Blocks,
    },
}

/// What one disk has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
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
    /// Requests that failed.
    pub errors: u64,
}

/// One device. See the module for the contract.
pub trait Disk: Send + Sync + 'static {
    /// What the driver knows of the device.
    fn info(&self) -> DiskInfo;

    /// Reads `bufs.len()` blocks from `at` on into `bufs` and gives them back.
    ///
    /// # Errors
    /// Any [`DiskError`]; the contents of the buffers are then lost.
    fn read(&self, at: Dbn, bufs: Vec<BlockMut>) -> BoxFuture<Result<Vec<BlockMut>, DiskError>>;

    /// Writes `blocks` from `at` on. `Ok` means accepted by the device, not stable.
    ///
    /// # Errors
    /// Any [`DiskError`]; any part of the blocks may have been written.
    fn write(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>>;

    /// [`Self::write`] for who needs the blocks again should it fail.
    ///
    /// # Errors
    /// Those of [`Self::write`].
    fn write_shared(&self, at: Dbn, blocks: Arc<Vec<Block>>) -> BoxFuture<Result<(), DiskError>> {
        self.write(at, Vec::clone(&blocks))
    }

    /// Makes every write that completed before this call stable.
    ///
    /// # Errors
    /// After an error it is unknown which writes are stable; the disk must be taken out.
    fn flush(&self) -> BoxFuture<Result<(), DiskError>>;

    /// Writes `blocks` from `at` on and makes them stable, in one request. Nothing else becomes
    /// stable by it: what other writes left in the device's cache may still be lost.
    ///
    /// # Errors
    /// Those of [`Self::write`]; a flush that failed is [`DiskError::Gone`].
    fn write_stable(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>>;

    /// Writes `blocks` from `at` on before it returns, where the device is memory and nobody need
    /// wait for it; `None` where it is not.
    ///
    /// # Errors
    /// Those of [`Self::write`].
    fn write_now(&self, _at: Dbn, _blocks: &[Block]) -> Option<Result<(), DiskError>> {
        None
    }

    /// Tells the device that `count` blocks from `at` on hold nothing; they read as anything.
    ///
    /// # Errors
    /// A driver that cannot discard answers `Ok`.
    fn discard(&self, at: Dbn, count: Blocks) -> BoxFuture<Result<(), DiskError>>;

    /// Requests so far.
    fn counters(&self) -> DiskCounters;
}
