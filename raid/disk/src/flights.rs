//! Requests that a ring has under way: what is submitted for them, and what the answers mean.
//!
//! Layer: drivers, under [`crate::uring`] and [`crate::event_loop`], which say when the kernel is
//! entered.
//!
//! # Invariants
//! - Buffers of a submitted request stay in its slot until its completion came. If the ring ends
//!   before, they are leaked: the device may still write to them.
//! - A run of memory inside one registered slab goes out as a fixed buffer; anything else as a
//!   vector. Slabs are registered as they appear; where the kernel refuses (locked-memory limit),
//!   the driver works on without.
//!
//! One of the few modules with unsafe code: the kernel reads and writes memory by address.

#![expect(unsafe_code, reason = "io_uring takes memory by address")]

use core::time::Duration;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::Instant;

use cairn_sys::block::slabs;
use cairn_units::BLOCK_BYTES;
use io_uring::{IoUring, opcode, squeue, types};

use crate::DiskError;
use crate::device::{Op, Request};
use crate::errno::{disk_error, flush_error};
use crate::uring::is_transient;
use crate::vector::Vector;

/// Slabs that can be registered with one ring (the kernel's limit): 64 GiB.
const SLABS_MAX: usize = 16_384;
/// How often the kernel may say "again" to one request.
const RETRIES_MAX: u32 = 16;
/// How often requests under way are checked for the time limit, at the most.
pub(crate) const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// Requests under way on one ring.
pub(crate) struct Flights {
    pub ring: IoUring,
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
    registered: Registered,
    next_check: Instant,
    pub completions: Vec<(u64, i32)>,
}

impl Flights {
    /// `registered` says whether buffers are registered with the kernel.
    pub fn new(ring: IoUring, registered: bool) -> Self {
        let registered = if registered { Registered::new(&ring) } else { Registered::none() };
        let (slots, free, completions) = (Vec::new(), Vec::new(), Vec::new());
        Self { ring, slots, free, registered, next_check: now(), completions }
    }

    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether somebody still waits for an answer.
    pub fn is_awaited(&self) -> bool {
        self.in_flight() > 0 && self.slots.iter().flatten().any(|f| f.request.head.is_unanswered())
    }

    /// Puts a request into a slot, and what is to be submitted for it into the queue.
    pub fn begin(&mut self, mut request: Request, timeout: Duration) -> io::Result<()> {
        if matches!(request.op, Op::Discard(_))
            && request.head.device.no_discard.load(Ordering::Relaxed)
        {
            request.head.finish(request.op, Ok(()));
            return Ok(());
        }
        let vector = match &mut request.op {
            Op::Read(bufs) => Vector::of_bufs(bufs),
            Op::Write(blocks) => Vector::of_blocks(blocks),
            Op::WriteStable(blocks) => Vector::of_blocks(blocks),
            Op::Flush | Op::Discard(_) => Vector::of_blocks(&[]),
        };
        let deadline = now() + timeout;
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

    /// Queues what is left of the request in a slot.
    fn submit_slot(&mut self, slot: usize) -> io::Result<()> {
        let Some(flight) = &self.slots[slot] else { return Ok(()) };
        let fixed = match flight.vector.single() {
            Some((page, bytes)) => self.registered.index_of(&self.ring, page.addr(), bytes),
            None => None,
        };
        let entry = entry_for(flight, fixed).user_data(slot as u64);
        self.push(&entry)
    }

    pub fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the memory that the entry names is owned by a slot, or by the ring's owner (where
            // a wake-up is counted, a timer's interval), and stays there until its completion; if the
            // ring ends first, it is leaked.
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

    /// When the deadlines are to be looked at next, from now.
    pub fn time_to_check(&self) -> Duration {
        self.next_check.saturating_duration_since(now())
    }

    pub fn check_deadlines(&mut self, timeout: Duration) {
        let now = now();
        if now < self.next_check {
            return;
        }
        self.next_check = now + (timeout / 8).min(CHECK_INTERVAL_MAX);
        for flight in self.slots.iter_mut().flatten() {
            if flight.deadline <= now {
                flight.request.head.time_out();
            }
        }
    }

    pub fn collect(&mut self) {
        let completion = self.ring.completion();
        self.completions.extend(completion.map(|c| (c.user_data(), c.result())));
    }

    /// Takes the kernel's answer to what was submitted for a slot.
    pub fn complete(&mut self, slot: usize, result: i32) -> io::Result<()> {
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

impl Drop for Flights {
    fn drop(&mut self) {
        for mut flight in self.slots.drain(..).flatten() {
            flight.request.head.abandon("the disk driver has stopped");
            // The device may still read or write this memory.
            core::mem::forget(flight);
        }
    }
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

    fn none() -> Self {
        Self { slabs: Vec::new(), seen: 0, enabled: false }
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

#[expect(clippy::disallowed_methods, reason = "a device's time limit is real time")]
fn now() -> Instant {
    Instant::now()
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

#[cfg(test)]
mod tests {
    use cairn_sys::Block;
    use std::fs::File;
    use std::sync::Arc;

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
