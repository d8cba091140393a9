//! The thread driver: for kernels and containers that refuse io_uring.
//!
//! Layer: drivers, back of [`crate::driver`]. Each disk has its own few worker threads, so that a
//! hung disk holds up no other, and one that watches the time limit. A worker owns the buffers of
//! its request until the kernel gave them back.
//!
//! One of the few modules with unsafe code: vectored reads and writes, and discard.

#![expect(unsafe_code, reason = "preadv, pwritev and discard are not in the standard library")]

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use cairn_sys::Block;
use cairn_sys::lock::{Condvar, Guard, Mutex, Rank};
use cairn_units::{BLOCK_BYTES, BLOCK_BYTES_U64, Blocks, Dbn};

use crate::device::{Device, DeviceKind, Head, Op, Request};
use crate::driver::Queue;
use crate::errno::{Extent, disk_error, flush_error};
use crate::vector::Vector;
use crate::{DiskError, DriverOptions};

/// Requests that one disk works on at once.
const THREADS_PER_DISK: usize = 4;
/// `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// A request for a worker.
struct Job {
    id: u64,
    op: Op,
    extent: Extent,
    offset: u64,
    device: Arc<Device>,
}

#[derive(Default)]
struct Table {
    /// Bounded by the device's permits, like `heads`.
    jobs: VecDeque<Job>,
    /// Every request that is not done, in order of arrival.
    heads: BTreeMap<u64, (Instant, Head)>,
    next_id: u64,
    closed: bool,
}

struct Shared {
    table: Mutex<Table>,
    work: Condvar,
    watch: Condvar,
    timeout: Duration,
}

fn lock(shared: &Shared) -> Guard<'_, Table> {
    shared.table.lock()
}

/// The queue of one disk; dropping it ends the threads when they are idle.
pub(crate) struct Threads {
    shared: Arc<Shared>,
}

impl Threads {
    /// Starts the threads of one disk.
    ///
    /// # Errors
    /// When the kernel gives no more threads.
    pub(crate) fn start(options: DriverOptions) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            table: Mutex::new(Rank::DiskQueue, Table::default()),
            work: Condvar::new(),
            watch: Condvar::new(),
            timeout: options.request_timeout,
        });
        // Made first, so that threads that did start end again when another one does not.
        let threads = Self { shared: shared.clone() };
        for _ in 0..THREADS_PER_DISK {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name("cairn-disk".to_owned());
            builder.spawn(move || run_worker(&shared))?;
        }
        let builder = std::thread::Builder::new().name("cairn-disk-watch".to_owned());
        builder.spawn(move || run_watch(&shared))?;
        Ok(threads)
    }
}

#[expect(clippy::disallowed_methods, reason = "a device's time limit is real time")]
fn now() -> Instant {
    Instant::now()
}

impl Queue for Threads {
    fn submit(&self, request: Request) {
        let (extent, offset) = (request.extent(), request.offset());
        let Request { head, op } = request;
        let deadline = now() + self.shared.timeout;
        let mut table = lock(&self.shared);
        let id = table.next_id;
        table.next_id += 1;
        table.jobs.push_back(Job { id, op, extent, offset, device: head.device.clone() });
        let first = table.heads.is_empty();
        table.heads.insert(id, (deadline, head));
        drop(table);
        self.shared.work.notify_one();
        if first {
            self.shared.watch.notify_one();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        lock(&self.shared).closed = true;
        self.shared.work.notify_all();
        self.shared.watch.notify_all();
    }
}

fn run_worker(shared: &Shared) {
    let mut table = lock(shared);
    loop {
        let Some(mut job) = table.jobs.pop_front() else {
            if table.closed {
                return;
            }
            table = shared.work.wait(table);
            continue;
        };
        drop(table);
        let result = perform(&mut job);
        let head = lock(shared).heads.remove(&job.id);
        // The device must be free for others to open when the answer is seen.
        let Job { op, device, .. } = job;
        drop(device);
        if let Some((_, head)) = head {
            head.finish(op, result);
        }
        table = lock(shared);
    }
}

fn run_watch(shared: &Shared) {
    let mut table = lock(shared);
    loop {
        let time = now();
        let mut next = None;
        for (deadline, head) in table.heads.values_mut().filter(|(_, h)| h.is_unanswered()) {
            if *deadline > time {
                next = Some(*deadline - time);
                break;
            }
            head.time_out();
        }
        if table.closed && next.is_none() {
            return;
        }
        table = match next {
            Some(limit) => shared.watch.wait_timeout(table, limit),
            None => shared.watch.wait(table),
        };
    }
}

fn perform(job: &mut Job) -> Result<(), DiskError> {
    let (device, extent) = (&job.device, job.extent);
    let failed = |errno| disk_error(errno, device.kind, extent);
    match &mut job.op {
        Op::Read(bufs) => transfer(Way::Read, device, job.offset, extent, Vector::of_bufs(bufs)),
        Op::Write(blocks) => {
            transfer(Way::Write, device, job.offset, extent, Vector::of_blocks(blocks))
        }
        Op::WriteStable(blocks) => {
            transfer(Way::Write, device, job.offset, extent, Vector::of_blocks(blocks))?;
            let flushed = device.file.sync_data();
            flushed.map_err(|e| flush_error(device, e.raw_os_error().unwrap_or(libc::EIO)))
        }
        Op::Flush => {
            device.file.sync_data().map_err(|e| failed(e.raw_os_error().unwrap_or(libc::EIO)))
        }
        Op::Discard(count) => discard(device, job.offset, *count).map_err(failed),
    }
}

/// Writes on the thread of the caller; for devices that are memory.
pub(crate) fn write_now(device: &Device, at: Dbn, blocks: &[Block]) -> Result<(), DiskError> {
    let extent = Extent { at, count: Blocks::new(blocks.len() as u64) };
    let offset = at.get().saturating_mul(BLOCK_BYTES_U64);
    transfer(Way::Write, device, offset, extent, Vector::of_blocks(blocks))
}

#[derive(Clone, Copy)]
enum Way {
    Read,
    Write,
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn transfer(
    way: Way,
    device: &Device,
    offset: u64,
    extent: Extent,
    mut vector: Vector,
) -> Result<(), DiskError> {
    let fd = device.file.as_raw_fd();
    let total = vector.bytes();
    while vector.bytes() > 0 {
        let done = total - vector.bytes();
        // The range was checked against the size of the disk, and at most 1024 pieces go out.
        let at = i64::try_from(offset.saturating_add(done as u64)).unwrap_or(i64::MAX);
        let count = i32::try_from(vector.pieces().len()).unwrap_or(0);
        let pieces = vector.pieces().as_ptr();
        let moved = match way {
            // SAFETY: the pieces are memory of buffers that the job owns exclusively, and the job
            // outlives the call.
            Way::Read => unsafe { libc::preadv(fd, pieces, count, at) },
            // SAFETY: the pieces are memory of blocks that the job holds references to, and the
            // job outlives the call.
            Way::Write => unsafe { libc::pwritev(fd, pieces, count, at) },
        };
        let Ok(bytes) = usize::try_from(moved) else {
            match last_errno() {
                libc::EINTR | libc::EAGAIN => continue,
                errno => return Err(disk_error(errno, device.kind, extent)),
            }
        };
        // Short: go on after the last whole block.
        let last = bytes >= vector.bytes();
        let whole = if last { bytes } else { bytes / BLOCK_BYTES * BLOCK_BYTES };
        if whole == 0 {
            let skip = (done / BLOCK_BYTES) as u64;
            let count = Blocks::new(extent.count.get() - skip);
            return Err(DiskError::Medium { at: extent.at.plus(skip), count });
        }
        vector.advance(whole);
    }
    Ok(())
}

fn discard(device: &Device, offset: u64, count: Blocks) -> Result<(), i32> {
    if device.no_discard.load(Ordering::Relaxed) {
        return Ok(());
    }
    let fd = device.file.as_raw_fd();
    let result = match device.kind {
        DeviceKind::File => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let at = i64::try_from(offset).unwrap_or(i64::MAX);
            let len = i64::try_from(count.bytes()).unwrap_or(i64::MAX);
            // SAFETY: no memory is involved.
            unsafe { libc::fallocate(fd, mode, at, len) }
        }
        DeviceKind::Block => {
            let range = [offset, count.bytes()];
            // SAFETY: BLKDISCARD reads two u64, which `range` holds.
            unsafe { libc::ioctl(fd, BLKDISCARD, range.as_ptr()) }
        }
    };
    if result == 0 {
        return Ok(());
    }
    match last_errno() {
        libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS | libc::ENOTTY => {
            device.no_discard.store(true, Ordering::Relaxed);
            Ok(())
        }
        errno => Err(errno),
    }
}
