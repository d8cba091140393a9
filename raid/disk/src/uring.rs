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
//! What is under way is kept in [`crate::flights`]. Stable writes of threads that run an event loop
//! do not come here: [`crate::event_loop`].
//!
//! # Invariants
//! - Requests in flight are bounded by the permits of their devices; the completion queue keeps
//!   what does not fit (`IORING_FEAT_NODROP`, required).
//!
//! One of the few modules with unsafe code: the kernel reads and writes memory by address.

#![expect(unsafe_code, reason = "io_uring takes memory by address")]

use core::time::Duration;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, mpsc};

use cairn_sys::lock::{Mutex, Rank};
use io_uring::{IoUring, opcode, types};

use crate::device::{DISK_REQUESTS_MAX, Request};
use crate::driver::Queue;
use crate::flights::Flights;
use crate::{DriverOptions, event_loop};

/// Submissions that one call into the kernel carries.
const SUBMISSIONS_MAX: u32 = 512;
/// Completions that the kernel keeps in shared memory; more of them wait inside the kernel.
const COMPLETIONS: u32 = 4096;
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
    timeout: Duration,
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
        Ok(Self { shared, timeout: options.request_timeout })
    }
}

impl Queue for Ring {
    fn submit(&self, request: Request) {
        let Err(request) = event_loop::take(request, self.timeout) else { return };
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

pub(crate) fn eventfd() -> io::Result<File> {
    // SAFETY: no memory is involved; the result is checked.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

pub(crate) fn check_features(ring: &IoUring) -> io::Result<()> {
    let params = ring.params();
    if !params.is_feature_nodrop() || !params.is_feature_ext_arg() {
        let reason = "this kernel's io_uring is too old (needs 5.11)";
        return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
    }
    Ok(())
}

fn build_ring() -> io::Result<IoUring> {
    let mut best = IoUring::builder();
    best.setup_cqsize(COMPLETIONS).setup_single_issuer().setup_defer_taskrun();
    let plain = || IoUring::builder().setup_cqsize(COMPLETIONS).build(SUBMISSIONS_MAX);
    let mut ring = match best.build(SUBMISSIONS_MAX) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => plain()?,
        other => other?,
    };
    check_features(&ring)?;
    // Some sandboxes allow the set-up and refuse the use: ask once.
    let nop = opcode::Nop::new().build();
    // SAFETY: a no-op has no memory.
    unsafe { ring.submission().push(&nop) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    ring.completion().for_each(drop);
    Ok(ring)
}

struct Back {
    flights: Flights,
    shared: Arc<Shared>,
    timeout: Duration,
    wake_armed: bool,
    /// Where the ring reads the eventfd's counter to; lives as long as the ring.
    wake_count: Box<[u8; 8]>,
}

impl Back {
    fn new(shared: Arc<Shared>, options: DriverOptions) -> io::Result<Self> {
        Ok(Self {
            flights: Flights::new(build_ring()?, true),
            shared,
            timeout: options.request_timeout,
            wake_armed: false,
            wake_count: Box::new([0; 8]),
        })
    }

    fn run(&mut self) {
        loop {
            let (fresh, closed) = {
                let mut incoming = self.shared.incoming.lock();
                incoming.asleep = false;
                (core::mem::take(&mut incoming.requests), incoming.closed)
            };
            let round =
                fresh.into_iter().try_for_each(|request| self.flights.begin(request, self.timeout));
            if round.is_ok() && closed && self.flights.in_flight() == 0 {
                return;
            }
            if let Err(error) = round.and_then(|()| self.enter()) {
                tracing::error!(%error, "the disk ring failed");
                return;
            }
            self.flights.check_deadlines(self.timeout);
            if let Err(error) = self.reap() {
                tracing::error!(%error, "the disk ring failed");
                return;
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
            self.flights.push(&read.build().user_data(WAKE))?;
            self.wake_armed = true;
        }
        let idle = {
            let mut incoming = self.shared.incoming.lock();
            incoming.asleep = incoming.requests.is_empty();
            incoming.asleep && self.flights.completions.is_empty()
        };
        let want = usize::from(idle);
        let limit = self.time_to_check();
        let entered = match limit {
            Some(limit) => {
                let limit = types::Timespec::from(limit);
                let args = types::SubmitArgs::new().timespec(&limit);
                self.flights.ring.submitter().submit_with_args(want, &args)
            }
            None => self.flights.ring.submit_and_wait(want),
        };
        match entered {
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// How long the thread may sleep before somebody's time is up; `None` if nobody waits.
    fn time_to_check(&self) -> Option<Duration> {
        self.flights.is_awaited().then(|| self.flights.time_to_check())
    }

    fn reap(&mut self) -> io::Result<()> {
        self.flights.collect();
        while let Some((user_data, result)) = self.flights.completions.pop() {
            match usize::try_from(user_data) {
                Ok(slot) if user_data != WAKE => self.flights.complete(slot, result)?,
                _ => self.wake_armed = false,
            }
        }
        Ok(())
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
        if self.wake_armed {
            let unused = core::mem::replace(&mut self.wake_count, Box::new([0; 8]));
            core::mem::forget(unused);
        }
    }
}

pub(crate) fn is_transient(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(errno, Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN))
}
