//! The storage manager: write-anywhere volumes on one aggregate.
//!
//! Layer: above the RAID interface (`cairn-raid-api`), below the cluster fabric (`cairn-cf`),
//! which it implements. It must not know any protocol, nor how RAID works inside.
//!
//! | module | what |
//! |---|---|
//! | `tree` | block tree of one file and its buffers |
//! | `volume` | one volume: in-core inodes, maps, what is dirty |
//! | `change`, `apply` | a resolved change, its log record, and how it is applied |
//! | `plan`, `perm`, `xattr` | from an operation to a change or an answer |
//! | `block_set` | sets of block numbers |
//! | `space` | the aggregate's free space and the stripes being put together |
//! | `cp` | consistency points |
//! | `cache` | the clock over clean blocks |
//! | `manager`, `ops`, `manage`, `open` | the whole, behind `DModule` |
//!
//! # Invariants
//! - No block that the committed root reaches is overwritten: new blocks go only to PVBNs that
//!   were free in the committed map and stayed so.
//! - What was acknowledged as stable is in the log or under the committed root.
//! - Nothing waits between the first change of an operation and its log record.

mod apply;
mod bits;
mod block_set;
mod bufs;
mod cache;
mod change;
mod check;
mod counters;
mod cp;
mod freed;
mod in_core;
#[cfg(feature = "shuttle")]
mod interleaving;
mod manage;
mod manager;
mod open;
mod ops;
mod perm;
mod plan;
mod space;
mod streams;
mod sums;
mod tree;
mod volume;
mod xattr;

use cairn_sys::lock::atomic::Ordering;
use std::sync::Arc;

use cairn_cf::{DModule, Manage, ManageError, Managed};
use cairn_op::{ObjectRef, Op, OpCtx, OpResult, Submitted, Verifier};
use cairn_sys::BoxFuture;
use cairn_units::DiskUuid;

pub use cache::cache_blocks;
pub use check::{Audit, Finding, Severity, audit};
pub use manager::StorageConfig;
pub use open::OpenError;

/// Decoding the body of a log record from any bytes: the first two are the record's kind.
pub fn fuzz_log_record(bytes: &[u8]) {
    if let Some((kind, body)) = bytes.split_first_chunk::<2>() {
        let kind = u16::from_le_bytes(*kind);
        if let Some((change, time)) = change::Change::decode(kind, body) {
            assert_eq!(change.kind(), kind);
            assert_eq!(change.encode(time), body, "a decoded change encodes to itself");
        }
    }
}

/// Decoding the attribute store of a file from any bytes.
pub fn fuzz_xattrs(bytes: &[u8]) {
    if let Some(set) = xattr::decode(bytes)
        && !bytes.is_empty()
    {
        assert_eq!(xattr::encode(&set), bytes, "decoded attributes encode to themselves");
    }
}

/// The storage manager of one aggregate. Dropping it without [`StorageManager::shutdown`] is a
/// crash as far as the disks can tell.
pub struct StorageManager {
    inner: Arc<manager::Inner>,
}

impl StorageManager {
    /// Clean stop: a last consistency point, then nothing is served any more.
    ///
    /// # Errors
    /// The last point failed; what was acknowledged as stable is in the log.
    pub async fn shutdown(&self) -> Result<(), ManageError> {
        let done = self.inner.cp_now().await;
        self.inner.close("shut down".to_owned());
        self.inner.log.writer_ended().await;
        done.map_err(|_| ManageError::Stopped(self.inner.stop_reason()))
    }

    /// Whether the storage layer has stopped by itself, and why.
    pub fn stopped(&self) -> Option<String> {
        self.inner.stopped.load(Ordering::Acquire).then(|| self.inner.stop_reason())
    }
}

impl StorageManager {
    /// Disks that hold each half of the NV log in use, the older half first. A copy that was lost
    /// is not made again: the half is short of it until the consistency point that lets it go,
    /// which is started at once.
    pub fn log_copies(&self) -> Vec<Vec<DiskUuid>> {
        let halves = self.inner.log.status().halves;
        halves.iter().map(|half| half.copies.iter().map(|area| area.0).collect()).collect()
    }
}

impl Drop for StorageManager {
    fn drop(&mut self) {
        if !self.inner.stopped.load(Ordering::Acquire) {
            self.inner.close("dropped".to_owned());
        }
    }
}

impl DModule for StorageManager {
    fn file(&self, ctx: OpCtx, op: Op<ObjectRef>) -> Submitted<OpResult<ObjectRef>> {
        self.inner.submit(ctx, op)
    }
    fn manage(&self, request: Manage) -> BoxFuture<Result<Managed, ManageError>> {
        Box::pin(self.inner.clone().manage(request))
    }
    fn verifier(&self) -> Verifier {
        self.inner.verifier
    }
}
