//! The io_uring driver: one ring and one thread for a set of disks.
//!
//! Layer: drivers, back of [`crate::driver`]. Every request of the set goes through one submission
//! path: the thread drains the queue, turns what it found into submissions, enters the kernel once
//! for all of them, and sleeps there until something completes or something new arrives (an
//! eventfd that the ring itself reads).
//!
//! ```text
//! submit → incoming ─drain→ begin → in flight ─completion→ Head::finish → the waiting task
//!                                      └─ too long: Head::time_out; buffers stay in flight
//! ```
//! # Invariants
//! - Buffers of a submitted request stay in its slot until its completion came. If the thread
//!   dies, they are leaked: the device may still write to them.
//! - A run of memory inside one registered slab goes out as a fixed buffer; anything else as a
//!   vector. Slabs are registered as they appear; where the kernel refuses (locked-memory limit),
//!   the driver works on without.
//! - Requests in flight are bounded by the permits of their devices; the completion queue keeps
//!   what does not fit (`IORING_FEAT_NODROP`, required).
//!
//! One of the few modules with unsafe code: the kernel reads and writes memory by address.

#![expect(unsafe_code, reason = "io_uring takes memory by address")]

use core::time::Duration;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use cairn_sys::block::slabs;
use cairn_sys::lock::{Mutex, Rank};
use cairn_units::BLOCK_BYTES;
use io_uring::{IoUring, opcode, squeue, types};

use crate::device::{DISK_REQUESTS_MAX, Op, Request};
use crate::driver::Queue;
use crate::errno::{disk_error, flush_error};
use crate::vector::Vector;
use crate::{DiskError, DriverOptions};

/// Submissions that one call into the kernel carries.
const SUBMISSIONS_MAX: u32 = 512;
/// Completions that the kernel keeps in shared memory; more of them wait inside the kernel.
const COMPLETIONS: u32 = 4096;
/// Slabs that can be registered with one ring (the kernel's limit): 64 GiB.
const SLABS_MAX: usize = 16_384;
/// How often the kernel may say "again" to one request.
const RETRIES_MAX: u32 = 16;
/// How often requests under way are checked for the time limit, at the most.
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Marks the completion of the eventfd read.
const WAKE: u64 = u64::MAX;

const _: () = assert!(DISK_REQUESTS_MAX <= COMPLETIONS as usize);

#[derive(Default)]
struct Incoming {
    /// Bounded by the permits of the devices.
    requests: VecDeque<Request>,
    /// The thread waits in the kernel, or is about to: wake it.
    asleep: bool,
    /// No disk uses the ring any more.
    closed: bool,
    /// The thread has ended.
    dead: bool,
}

struct Shared {
    incoming: Mutex<Incoming>,
    wake: File,
}

impl Shared {
    fn wake(&self) {
        // The counter of an eventfd overflows after 2^64 - 2 wake-ups that nobody saw.
        if let Err(error) = (&self.wake).write_all(&1u64.to_ne_bytes()) {
            tracing::error!(%error, "waking the disk ring failed");
        }
    }
}

/// The front of the ring; dropping it ends the thread once nothing is in flight.
pub(crate) struct Ring {
    shared: Arc<Shared>,
}

impl Ring {
    /// Starts a ring and its thread.
    ///
    /// # Errors
    /// What the kernel says when it refuses io_uring or lacks a feature.
    pub(crate) fn start(options: DriverOptions) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            incoming: Mutex::new(Rank::DiskQueue, Incoming::default()),
            wake: eventfd()?,
        });
        let (ready, started) = mpsc::channel();
        let back_shared = shared.clone();
        let thread = std::thread::Builder::new().name("cairn-disks".to_owned());
        // The ring is made by the thread that uses it: the kernel then skips its locks.
        thread.spawn(move || match Back::new(back_shared.clone(), options) {
            Ok(mut back) => {
                let told = ready.send(Ok(()));
                if told.is_ok() {
                    back.run();
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        })?;
        started.recv().map_err(|_| io::Error::other("the ring thread died while starting"))??;
        Ok(Self { shared })
    }
}

impl Queue for Ring {
    fn submit(&self, request: Request) {
        let mut incoming = self.shared.incoming.lock();
        if incoming.dead {
            return;
        }
        incoming.requests.push_back(request);
        let asleep = core::mem::take(&mut incoming.asleep);
        drop(incoming);
        if asleep {
            self.shared.wake();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.shared.incoming.lock().closed = true;
        self.shared.wake();
    }
}

fn eventfd() -> io::Result<File> {
    // SAFETY: no memory is involved; the result is checked.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn build_ring() -> io::Result<IoUring> {
    let mut best = IoUring::builder();
    best.setup_cqsize(COMPLETIONS).setup_single_issuer().setup_defer_taskrun();
    let plain = || IoUring::builder().setup_cqsize(COMPLETIONS).build(SUBMISSIONS_MAX);
    let mut ring = match best.build(SUBMISSIONS_MAX) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => plain()?,
        other => other?,
    };
    let params = ring.params();
    if !params.is_feature_nodrop() || !params.is_feature_ext_arg() {
        let reason = "this kernel's io_uring is too old (needs 5.11)";
        return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
    }
    // Some sandboxes allow the set-up and refuse the use: ask once.
    let nop = opcode::Nop::new().build();
    // SAFETY: a no-op has no memory.
    unsafe { ring.submission().push(&nop) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    ring.completion().for_each(drop);
    Ok(ring)
}

struct InFlight {
    request: Request,
    vector: Vector,
    /// Bytes that are done.
    done: u64,
    retries: u32,
    deadline: Instant,
    /// What the kernel said of a stable write that failed. Whether the write or its flush did, it
    /// does not say: the blocks are written once more without a flush, to find out.
    stable_failed: Option<i32>,
}

/// Slabs of the block pool that the kernel knows, by address.
struct Registered {
    slabs: Vec<RegisteredSlab>,
    /// Slabs of the pool that were looked at.
    seen: usize,
    enabled: bool,
}

#[derive(Clone, Copy)]
struct RegisteredSlab {
    base: usize,
    bytes: usize,
    index: u16,
}

impl Registered {
    fn new(ring: &IoUring) -> Self {
        let slots = u32::try_from(SLABS_MAX).unwrap_or(u32::MAX);
        let enabled = match ring.submitter().register_buffers_sparse(slots) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "disk buffers are not registered with the kernel");
                false
            }
        };
        Self { slabs: Vec::new(), seen: 0, enabled }
    }

    fn find(&self, base: usize, bytes: usize) -> Option<u16> {
        let after = self.slabs.partition_point(|s| s.base <= base);
        let slab = self.slabs.get(after.checked_sub(1)?)?;
        (base + bytes <= slab.base + slab.bytes).then_some(slab.index)
    }

    /// The index of the registered buffer that holds all of the memory.
    fn index_of(&mut self, ring: &IoUring, base: usize, bytes: usize) -> Option<u16> {
        let found = self.find(base, bytes);
        if found.is_some() || !self.enabled {
            return found;
        }
        let all = slabs();
        for (n, (slab, len)) in all.iter().enumerate().skip(self.seen) {
            let (Ok(index), true) = (u16::try_from(n), n < SLABS_MAX) else {
                self.enabled = false;
                break;
            };
            let piece = libc::iovec {
                iov_base: core::ptr::with_exposed_provenance_mut(*slab),
                iov_len: *len,
            };
            // SAFETY: slabs live as long as the process and never move (`cairn_sys::block`).
            let done = unsafe {
                ring.submitter().register_buffers_update(u32::from(index), &[piece], None)
            };
            if let Err(error) = done {
                tracing::warn!(%error, registered = n, "no more disk buffers are registered");
                self.enabled = false;
                break;
            }
            self.slabs.push(RegisteredSlab { base: *slab, bytes: *len, index });
            self.seen = n + 1;
        }
        self.slabs.sort_unstable_by_key(|s| s.base);
        self.find(base, bytes)
    }
}

struct Back {
    ring: IoUring,
    shared: Arc<Shared>,
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
    registered: Registered,
    timeout: Duration,
    next_check: Instant,
    wake_armed: bool,
    /// Where the ring reads the eventfd's counter to; lives as long as the ring.
    wake_count: Box<[u8; 8]>,
    completions: Vec<(u64, i32)>,
}

#[expect(clippy::disallowed_methods, reason = "a device's time limit is real time")]
fn now() -> Instant {
    Instant::now()
}

impl Back {
    fn new(shared: Arc<Shared>, options: DriverOptions) -> io::Result<Self> {
        let ring = build_ring()?;
        let registered = Registered::new(&ring);
        Ok(Self {
            ring,
            shared,
            slots: Vec::new(),
            free: Vec::new(),
            registered,
            timeout: options.request_timeout,
            next_check: now(),
            wake_armed: false,
            wake_count: Box::new([0; 8]),
            completions: Vec::new(),
        })
    }

    fn run(&mut self) {
        loop {
            let (fresh, closed) = {
                let mut incoming = self.shared.incoming.lock();
                incoming.asleep = false;
                (core::mem::take(&mut incoming.requests), incoming.closed)
            };
            let round = fresh.into_iter().try_for_each(|request| self.begin(request));
            if round.is_ok() && closed && self.in_flight() == 0 {
                return;
            }
            if let Err(error) = round.and_then(|()| self.enter()) {
                tracing::error!(%error, "the disk ring failed");
                return;
            }
            self.check_deadlines();
            if let Err(error) = self.reap() {
                tracing::error!(%error, "the disk ring failed");
                return;
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a request into a slot and submits it.
    fn begin(&mut self, mut request: Request) -> io::Result<()> {
        if matches!(request.op, Op::Discard(_))
            && request.head.device.no_discard.load(Ordering::Relaxed)
        {
            request.head.finish(request.op, Ok(()));
            return Ok(());
        }
        let vector = match &mut request.op {
            Op::Read(bufs) => Vector::of_bufs(bufs),
            Op::Write(blocks) | Op::WriteStable(blocks) => Vector::of_blocks(blocks),
            Op::Flush | Op::Discard(_) => Vector::of_blocks(&[]),
        };
        let deadline = now() + self.timeout;
        let (done, retries, stable_failed) = (0, 0, None);
        let flight = InFlight { request, vector, done, retries, deadline, stable_failed };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        self.slots[slot] = Some(flight);
        self.submit_slot(slot)
    }

    /// Submits what is left of the request in a slot.
    fn submit_slot(&mut self, slot: usize) -> io::Result<()> {
        let Some(flight) = &self.slots[slot] else { return Ok(()) };
        let fixed = match flight.vector.single() {
            Some((page, bytes)) => self.registered.index_of(&self.ring, page.addr(), bytes),
            None => None,
        };
        let entry = entry_for(flight, fixed).user_data(slot as u64);
        self.push(&entry)
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the memory that the entry names is owned by a slot (or is `wake_count`) and
            // stays there until its completion; if the thread ends first, it is leaked.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            match self.ring.submit() {
                Err(error) if !is_transient(&error) => return Err(error),
                // The completion queue must be emptied first.
                Err(_) => self.collect(),
                Ok(_) => {}
            }
        }
    }

    /// Submits everything and waits for a completion, unless there is work waiting already.
    fn enter(&mut self) -> io::Result<()> {
        if !self.wake_armed {
            let read = opcode::Read::new(
                types::Fd(self.shared.wake.as_raw_fd()),
                self.wake_count.as_mut_ptr(),
                8,
            );
            self.push(&read.build().user_data(WAKE))?;
            self.wake_armed = true;
        }
        let idle = {
            let mut incoming = self.shared.incoming.lock();
            incoming.asleep = incoming.requests.is_empty();
            incoming.asleep && self.completions.is_empty()
        };
        let want = usize::from(idle);
        let limit = self.time_to_check();
        let entered = match limit {
            Some(limit) => {
                let limit = types::Timespec::from(limit);
                let args = types::SubmitArgs::new().timespec(&limit);
                self.ring.submitter().submit_with_args(want, &args)
            }
            None => self.ring.submit_and_wait(want),
        };
        match entered {
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// How long the thread may sleep before somebody's time is up; `None` if nobody waits.
    fn time_to_check(&self) -> Option<Duration> {
        if self.in_flight() == 0 {
            return None;
        }
        let mut waiting = self.slots.iter().flatten();
        let any = waiting.any(|f| f.request.head.is_unanswered());
        any.then(|| self.next_check.saturating_duration_since(now()))
    }

    fn check_deadlines(&mut self) {
        let now = now();
        if now < self.next_check {
            return;
        }
        self.next_check = now + (self.timeout / 8).min(CHECK_INTERVAL_MAX);
        for flight in self.slots.iter_mut().flatten() {
            if flight.deadline <= now {
                flight.request.head.time_out();
            }
        }
    }

    fn collect(&mut self) {
        let completion = self.ring.completion();
        self.completions.extend(completion.map(|c| (c.user_data(), c.result())));
    }

    fn reap(&mut self) -> io::Result<()> {
        self.collect();
        while let Some((user_data, result)) = self.completions.pop() {
            match usize::try_from(user_data) {
                Ok(slot) if user_data != WAKE => self.complete(slot, result)?,
                _ => self.wake_armed = false,
            }
        }
        Ok(())
    }

    fn complete(&mut self, slot: usize, result: i32) -> io::Result<()> {
        let Some(mut flight) = self.slots.get_mut(slot).and_then(Option::take) else {
            return Ok(());
        };
        match flight.answered(result) {
            Progress::Again => {
                self.slots[slot] = Some(flight);
                self.submit_slot(slot)
            }
            Progress::Ended(answer) => {
                self.free.push(slot);
                flight.request.head.finish(flight.request.op, answer);
                Ok(())
            }
        }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        {
            let mut incoming = self.shared.incoming.lock();
            incoming.dead = true;
            // Their askers see that the driver has stopped.
            incoming.requests.clear();
        }
        for mut flight in self.slots.drain(..).flatten() {
            flight.request.head.abandon("the disk driver has stopped");
            // The device may still read or write this memory.
            core::mem::forget(flight);
        }
        if self.wake_armed {
            let unused = core::mem::replace(&mut self.wake_count, Box::new([0; 8]));
            core::mem::forget(unused);
        }
    }
}

enum Progress {
    Ended(Result<(), DiskError>),
    Again,
}

impl InFlight {
    /// Takes the kernel's answer.
    fn answered(&mut self, result: i32) -> Progress {
        match self.stable_failed {
            Some(errno) => self.progress_failed(result, errno),
            None if self.is_stable() => self.progress_stable(result),
            None => self.progress(result),
        }
    }

    /// Whether the kernel is to make the blocks stable before it says that they are written.
    fn is_stable(&self) -> bool {
        matches!(self.request.op, Op::WriteStable(_)) && self.stable_failed.is_none()
    }

    /// What the kernel's answer to a stable write means.
    fn progress_stable(&mut self, result: i32) -> Progress {
        let errno = result.saturating_neg();
        if errno <= 0 || self.is_to_retry(errno) {
            return self.progress(result);
        }
        self.stable_failed = Some(errno);
        Progress::Again
    }

    /// What it means that the blocks of a stable write that failed were, or were not, written
    /// without a flush.
    fn progress_failed(&mut self, result: i32, errno: i32) -> Progress {
        match self.progress(result) {
            // They can be written: the flush failed.
            Progress::Ended(Ok(())) => {
                Progress::Ended(Err(flush_error(&self.request.head.device, errno)))
            }
            other => other,
        }
    }

    fn is_to_retry(&self, errno: i32) -> bool {
        matches!(errno, libc::EAGAIN | libc::EINTR) && self.retries < RETRIES_MAX
    }

    /// What the kernel's answer means.
    fn progress(&mut self, result: i32) -> Progress {
        let extent = self.request.extent();
        let device = &self.request.head.device;
        let Ok(bytes) = usize::try_from(result) else {
            let errno = result.saturating_neg();
            if self.is_to_retry(errno) {
                self.retries += 1;
                return Progress::Again;
            }
            let cannot = matches!(errno, libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS);
            if cannot && matches!(self.request.op, Op::Discard(_)) {
                device.no_discard.store(true, Ordering::Relaxed);
                return Progress::Ended(Ok(()));
            }
            return Progress::Ended(Err(disk_error(errno, device.kind, extent)));
        };
        if matches!(self.request.op, Op::Flush | Op::Discard(_)) {
            return Progress::Ended(Ok(()));
        }
        if bytes >= self.vector.bytes() {
            return Progress::Ended(Ok(()));
        }
        // Short: go on after the last whole block.
        let whole = bytes / BLOCK_BYTES * BLOCK_BYTES;
        if whole == 0 {
            let done = self.done / BLOCK_BYTES as u64;
            let at = extent.at.plus(done);
            let count = cairn_units::Blocks::new(extent.count.get() - done);
            return Progress::Ended(Err(DiskError::Medium { at, count }));
        }
        self.vector.advance(whole);
        self.done += whole as u64;
        Progress::Again
    }
}

/// The submission for what is left of a request.
fn entry_for(flight: &InFlight, fixed: Option<u16>) -> squeue::Entry {
    let request = &flight.request;
    let raw: RawFd = request.head.device.file.as_raw_fd();
    let fd = types::Fd(raw);
    let offset = request.offset() + flight.done;
    // By a flush of the kernel's own, or in the same request where the device can.
    let flags = if flight.is_stable() { libc::RWF_DSYNC } else { 0 };
    let write = match &request.op {
        Op::Read(_) => false,
        Op::Write(_) | Op::WriteStable(_) => true,
        Op::Flush => {
            return opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
        }
        Op::Discard(count) => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            return opcode::Fallocate::new(fd, count.bytes()).offset(offset).mode(mode).build();
        }
    };
    let pieces = flight.vector.pieces();
    // At most REQUEST_BLOCKS_MAX pieces, and 4 MiB in one.
    let len = |n: usize| u32::try_from(n).unwrap_or(0);
    match (flight.vector.single(), fixed) {
        (Some((page, bytes)), Some(index)) if write => {
            let write = opcode::WriteFixed::new(fd, page, len(bytes), index);
            write.offset(offset).rw_flags(flags).build()
        }
        (Some((page, bytes)), Some(index)) => {
            opcode::ReadFixed::new(fd, page, len(bytes), index).offset(offset).build()
        }
        _ if write => {
            let write = opcode::Writev::new(fd, pieces.as_ptr(), len(pieces.len()));
            write.offset(offset).rw_flags(flags).build()
        }
        _ => opcode::Readv::new(fd, pieces.as_ptr(), len(pieces.len())).offset(offset).build(),
    }
}

fn is_transient(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(errno, Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use cairn_sys::Block;
    use cairn_units::{Blocks, Dbn};

    use super::*;
    use crate::device::{Device, DeviceKind};
    use crate::{DiskClass, DiskInfo};

    const BLOCK: i32 = 4096;

    /// A stable write of two blocks under way, and its device.
    fn stable_write() -> (InFlight, Arc<Device>) {
        let file = File::open("/dev/null").unwrap();
        let (location, class) = ("d".to_owned(), DiskClass::File);
        let info = DiskInfo { location, class, blocks: Blocks::new(100) };
        let device = Arc::new(Device::new(file, DeviceKind::File, info, false));
        let permit = device.permits.clone().try_acquire_owned().unwrap();
        let blocks = vec![Block::zero(); 2];
        let vector = Vector::of_blocks(&blocks);
        let (sender, _receiver) = tokio::sync::oneshot::channel();
        let op = Op::WriteStable(blocks);
        let request = Request::new(device.clone(), Dbn::new(7), op, sender, permit);
        let (done, retries, deadline, stable_failed) = (0, 0, now(), None);
        (InFlight { request, vector, done, retries, deadline, stable_failed }, device)
    }

    /// How the write ends with these answers of the kernel; none of them but the last ends it.
    fn end(flight: &mut InFlight, answers: &[i32]) -> Result<(), DiskError> {
        let (last, others) = answers.split_last().unwrap();
        for answer in others {
            assert!(matches!(flight.answered(*answer), Progress::Again), "{answer}");
        }
        match flight.answered(*last) {
            Progress::Ended(result) => result,
            Progress::Again => panic!("{last} is not the end"),
        }
    }

    #[test]
    fn a_stable_write_stays_stable_when_it_is_short_or_to_be_tried_again() {
        for answers in [&[2 * BLOCK][..], &[BLOCK, BLOCK], &[-libc::EAGAIN, 2 * BLOCK]] {
            let (mut flight, device) = stable_write();
            assert_eq!(end(&mut flight, answers), Ok(()));
            assert!(flight.is_stable() && !device.flush_has_failed(), "{answers:?}");
        }
    }

    #[test]
    fn blocks_that_can_be_written_and_not_made_stable_are_a_failed_flush() {
        for answers in [&[-libc::EIO, 2 * BLOCK][..], &[BLOCK, -libc::EIO, BLOCK]] {
            let (mut flight, device) = stable_write();
            let result = end(&mut flight, answers);
            assert!(matches!(result, Err(DiskError::Gone { .. })), "{answers:?}: {result:?}");
            assert!(!flight.is_stable() && device.flush_has_failed(), "{answers:?}");
        }
    }

    #[test]
    fn blocks_that_cannot_be_written_are_a_medium_error() {
        let (mut flight, device) = stable_write();
        let result = end(&mut flight, &[-libc::EIO, -libc::EIO]);
        assert!(matches!(result, Err(DiskError::Medium { .. })), "{result:?}");
        assert!(!device.flush_has_failed());
    }
}
