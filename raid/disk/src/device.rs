//! An open device or file: what it is, who may use it, what it has done.
//!
//! Layer: drivers. Shared by the driver's front (any task) and its back (ring or worker threads).

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cairn_sys::{Block, BlockMut};
use cairn_units::{BLOCK_BYTES_U64, Blocks, Dbn};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::errno::Extent;
use crate::{DiskCounters, DiskError, DiskInfo, REQUEST_BLOCKS_MAX};

/// Requests of one disk that may be under way; more wait in their own futures. A request that
/// timed out keeps its place until the device gives its buffers back.
pub(crate) const DISK_REQUESTS_MAX: usize = 256;

/// What is behind the file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    File,
    Block,
}

/// An open device. The exclusive lock on it lasts as long as this.
pub(crate) struct Device {
    pub(crate) file: File,
    pub(crate) kind: DeviceKind,
    pub(crate) info: DiskInfo,
    /// What is written is copied to its place by the processor.
    pub(crate) is_memory: bool,
    pub(crate) permits: Arc<Semaphore>,
    /// Requests that timed out and never came back.
    stuck: AtomicU64,
    /// After a failed flush nobody knows what is stable: a later one must not say Ok.
    flush_failed: AtomicBool,
    /// The device has said that it cannot discard.
    pub(crate) no_discard: AtomicBool,
    reads: AtomicU64,
    blocks_read: AtomicU64,
    writes: AtomicU64,
    blocks_written: AtomicU64,
    flushes: AtomicU64,
    errors: AtomicU64,
}

impl Device {
    pub(crate) fn new(file: File, kind: DeviceKind, info: DiskInfo, is_memory: bool) -> Self {
        Self {
            file,
            kind,
            info,
            is_memory,
            permits: Arc::new(Semaphore::new(DISK_REQUESTS_MAX)),
            stuck: AtomicU64::new(0),
            flush_failed: AtomicBool::new(false),
            no_discard: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            blocks_read: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            blocks_written: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    pub(crate) fn counters(&self) -> DiskCounters {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        DiskCounters {
            reads: get(&self.reads),
            blocks_read: get(&self.blocks_read),
            writes: get(&self.writes),
            blocks_written: get(&self.blocks_written),
            flushes: get(&self.flushes),
            errors: get(&self.errors),
        }
    }

    /// Refuses addresses outside the disk.
    pub(crate) fn check(&self, at: Dbn, op: &Op) -> Result<(), DiskError> {
        match op {
            Op::Discard(count) => self.check_inside(at, *count),
            _ => self.check_extent(at, op.blocks()),
        }
    }

    /// Refuses what is outside the disk, or more than one request carries.
    pub(crate) fn check_extent(&self, at: Dbn, count: u64) -> Result<(), DiskError> {
        if count > REQUEST_BLOCKS_MAX as u64 {
            return Err(DiskError::OutOfRange { at, count: Blocks::new(count) });
        }
        self.check_inside(at, Blocks::new(count))
    }

    fn check_inside(&self, at: Dbn, count: Blocks) -> Result<(), DiskError> {
        let end = at.checked_add(count.get());
        match end.is_some_and(|end| end.get() <= self.info.blocks.get()) {
            true => Ok(()),
            false => Err(DiskError::OutOfRange { at, count }),
        }
    }

    /// Counts an answer.
    pub(crate) fn count(&self, work: Work, failed: bool) {
        let (counter, blocks) = match work {
            _ if failed => (&self.errors, None),
            Work::Read(n) => (&self.reads, Some((&self.blocks_read, n))),
            Work::Write(n) => (&self.writes, Some((&self.blocks_written, n))),
            Work::WriteStable(n) => {
                self.flushes.fetch_add(1, Ordering::Relaxed);
                (&self.writes, Some((&self.blocks_written, n)))
            }
            Work::Flush => (&self.flushes, None),
            Work::Discard => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some((counter, n)) = blocks {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// A flush failed, or nobody knows how it ended.
    pub(crate) fn note_failed_flush(&self) {
        self.flush_failed.store(true, Ordering::Release);
    }
    pub(crate) fn flush_has_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    /// A request has timed out while the device still has its buffers. When every place in the
    /// queue is taken by such requests, the device is given up.
    pub(crate) fn request_stuck(&self) {
        let stuck = self.stuck.fetch_add(1, Ordering::AcqRel) + 1;
        if stuck >= DISK_REQUESTS_MAX as u64 {
            self.permits.close();
        }
    }
    /// A request that had timed out came back.
    pub(crate) fn request_unstuck(&self) {
        self.stuck.fetch_sub(1, Ordering::AcqRel);
    }
    /// What a device answers that was given up.
    pub(crate) fn given_up(&self) -> DiskError {
        let reason = format!("{DISK_REQUESTS_MAX} requests timed out and never came back");
        DiskError::Gone { reason }
    }
}

/// What a request wants, with the buffers that it owns.
pub(crate) enum Op {
    Read(Vec<BlockMut>),
    Write(Arc<Vec<Block>>),
    /// Write and make these blocks stable.
    WriteStable(Vec<Block>),
    Flush,
    Discard(Blocks),
}

/// [`Op`] without its buffers.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    Read(u64),
    Write(u64),
    WriteStable(u64),
    Flush,
    Discard,
}

impl Work {
    fn flushes(self) -> bool {
        matches!(self, Self::Flush | Self::WriteStable(_))
    }
}

impl Op {
    pub(crate) fn blocks(&self) -> u64 {
        match self {
            Self::Read(bufs) => bufs.len() as u64,
            Self::Write(blocks) => blocks.len() as u64,
            Self::WriteStable(blocks) => blocks.len() as u64,
            Self::Flush => 0,
            Self::Discard(count) => count.get(),
        }
    }
    pub(crate) fn work(&self) -> Work {
        match self {
            Self::Read(_) => Work::Read(self.blocks()),
            Self::Write(_) => Work::Write(self.blocks()),
            Self::WriteStable(_) => Work::WriteStable(self.blocks()),
            Self::Flush => Work::Flush,
            Self::Discard(_) => Work::Discard,
        }
    }
}

/// What the one who asked waits for.
pub(crate) type Answer = Result<Vec<BlockMut>, DiskError>;

/// A request on its way; owns its buffers, its place in the queue and the device.
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) op: Op,
}

/// A request without its buffers.
pub(crate) struct Head {
    pub(crate) device: Arc<Device>,
    pub(crate) at: Dbn,
    work: Work,
    answer: Option<oneshot::Sender<Answer>>,
    permit: OwnedSemaphorePermit,
}

impl Request {
    pub(crate) fn new(
        device: Arc<Device>,
        at: Dbn,
        op: Op,
        answer: oneshot::Sender<Answer>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let head = Head { device, at, work: op.work(), answer: Some(answer), permit };
        Self { head, op }
    }
    pub(crate) fn extent(&self) -> Extent {
        Extent { at: self.head.at, count: Blocks::new(self.op.blocks()) }
    }
    /// First byte on the device.
    pub(crate) fn offset(&self) -> u64 {
        self.head.at.get().saturating_mul(BLOCK_BYTES_U64)
    }
}

impl Head {
    /// Whether somebody still waits for the answer.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.answer.is_some()
    }

    /// Answers that time is up. The request stays where it is, with its buffers and its place in
    /// the queue.
    pub(crate) fn time_out(&mut self) {
        if let Some(sender) = self.answer.take() {
            self.note_failure();
            drop(sender.send(Err(DiskError::TimedOut { at: self.at })));
            self.device.request_stuck();
        }
    }

    /// Answers that the driver has died. The caller must not free the buffers.
    pub(crate) fn abandon(&mut self, reason: &str) {
        if let Some(sender) = self.answer.take() {
            self.note_failure();
            drop(sender.send(Err(DiskError::Gone { reason: reason.to_owned() })));
        }
    }

    fn note_failure(&self) {
        self.device.count(self.work, true);
        if self.work.flushes() {
            self.device.note_failed_flush();
        }
    }

    /// Ends the request: the device is done with the buffers in `op`.
    pub(crate) fn finish(self, op: Op, result: Result<(), DiskError>) {
        let Self { device, work, answer, permit, .. } = self;
        let Some(sender) = answer else {
            // Its answer was "timed out"; the buffers are free only now.
            device.request_unstuck();
            return;
        };
        if matches!(work, Work::Flush) && result.is_err() {
            device.note_failed_flush();
        }
        device.count(work, result.is_err());
        let answer = match (result, op) {
            (Err(error), _) => Err(error),
            (Ok(()), Op::Read(bufs)) => Ok(bufs),
            (Ok(()), _) => Ok(Vec::new()),
        };
        // When the answer is seen, the place in the queue is free and this hold on the device is
        // gone. Whether anybody still waits for the answer is the caller's choice.
        drop(permit);
        drop(device);
        drop(sender.send(answer));
    }
}
