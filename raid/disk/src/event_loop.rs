//! Stable writes of threads that run an event loop, on a ring of the thread's own.
//!
//! Layer: drivers, beside [`crate::uring`], which takes everything else. A stable write is short, and
//! somebody waits for it. To hand it to the driver's thread wakes that thread, and the answer wakes
//! this one: on a virtual machine these wake-ups took as long as the write. A thread whose own
//! event loop ([`cairn_sys::event_loop`]) waits for the ring beside its sockets needs neither.
//!
//! ```text
//! take → queued ─Reaper::poll (soon, same thread)→ in flight ─eventfd, epoll→ Reaper::poll → Head::finish
//! ```
//! # Invariants
//! - A request that was taken is submitted by the next poll of the [`Reaper`], which is woken for
//!   it, or by [`Own::drain`] when the loop ends; that goes on until everybody who waits has an
//!   answer.
//! - Only its own thread touches a ring.

#![expect(unsafe_code, reason = "the event loop takes a descriptor by number")]

use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use cairn_sys::mutant;
use io_uring::{IoUring, opcode, types};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

use crate::device::{Op, Request};
use crate::flights::{CHECK_INTERVAL_MAX, Flights};
use crate::uring::{check_features, eventfd, is_transient};

/// Submissions of one turn of the loop; more make a turn of their own.
const SUBMISSIONS: u32 = 64;
/// Completions that the kernel keeps in shared memory; more of them wait inside the kernel.
const COMPLETIONS: u32 = 1024;
/// Marks the completion of the timer.
const TIMER: u64 = u64::MAX;

thread_local! {
    static THIS: RefCell<State> = const { RefCell::new(State::Unknown) };
}

enum State {
    Unknown,
    /// The thread has none: it runs no event loop, the kernel refused, or the loop has ended.
    None,
    Ring(Box<Own>),
}

/// Takes a request that this thread's own ring can carry; gives it back otherwise.
pub(crate) fn take(request: Request, timeout: Duration) -> Result<(), Request> {
    if !matches!(request.op, Op::WriteStable(_)) || !cairn_sys::event_loop::is_marked() {
        return Err(request);
    }
    let mut request = Some(request);
    let take = |state: &RefCell<State>| {
        let Ok(mut state) = state.try_borrow_mut() else { return };
        if matches!(*state, State::Unknown) {
            *state = Own::start();
        }
        if let State::Ring(own) = &mut *state
            && let Some(request) = request.take()
            && let Err(error) = own.begin(request, timeout)
        {
            state.fail(&error);
        }
    };
    match THIS.try_with(take) {
        // The thread is ending.
        Err(_) | Ok(()) => request.map_or(Ok(()), Err),
    }
}

impl State {
    /// The kernel does not take the ring any more: who waits is told.
    fn fail(&mut self, error: &io::Error) {
        tracing::error!(%error, "the disk ring of an event loop failed");
        *self = State::None;
    }
}

/// The ring of one thread.
struct Own {
    flights: Flights,
    /// The shortest time limit of a request so far.
    timeout: Duration,
    timer: Box<types::Timespec>,
    timer_armed: bool,
    /// Polls the [`Reaper`]; none while it is woken already.
    waker: Option<Waker>,
}

impl Own {
    /// A ring for this thread, and the task that serves it.
    fn start() -> State {
        // None between the end of the loop and the end of the thread.
        let Ok(runtime) = Handle::try_current() else { return State::Unknown };
        let made = build().and_then(|(ring, fd)| Ok((ring, watch(fd)?)));
        match made {
            Ok((ring, fd)) => {
                runtime.spawn(Reaper { fd });
                State::Ring(Box::new(Own {
                    flights: Flights::new(ring, false),
                    timeout: CHECK_INTERVAL_MAX * 8,
                    timer: Box::new(types::Timespec::new()),
                    timer_armed: false,
                    waker: None,
                }))
            }
            Err(error) => {
                tracing::warn!(%error, "an event loop has no disk ring of its own");
                State::None
            }
        }
    }

    fn begin(&mut self, request: Request, timeout: Duration) -> io::Result<()> {
        self.timeout = self.timeout.min(timeout);
        self.flights.begin(request, timeout)?;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    /// Submits what is queued and answers what is done. Whether the kernel left something in the
    /// queue for now: another turn is needed soon.
    fn turn(&mut self) -> io::Result<bool> {
        loop {
            self.arm_timer()?;
            let mut queue = self.flights.ring.submission();
            queue.sync();
            let work = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
            drop(queue);
            if work {
                match self.flights.ring.submit() {
                    Err(error) if !is_transient(&error) => return Err(error),
                    _ => {}
                }
            }
            self.flights.check_deadlines(self.timeout);
            if !self.reap()? {
                return Ok(!self.flights.ring.submission().is_empty());
            }
        }
    }

    /// Answers what is done; whether anything was.
    fn reap(&mut self) -> io::Result<bool> {
        self.flights.collect();
        let any = !self.flights.completions.is_empty();
        while let Some((user_data, result)) = self.flights.completions.pop() {
            match usize::try_from(user_data) {
                Ok(slot) if user_data != TIMER => self.flights.complete(slot, result)?,
                _ => self.timer_armed = false,
            }
        }
        Ok(any)
    }

    /// Somebody's time may be up while nothing else happens.
    fn arm_timer(&mut self) -> io::Result<()> {
        if self.timer_armed || !self.flights.is_awaited() {
            return Ok(());
        }
        *self.timer = types::Timespec::from((self.timeout / 8).min(CHECK_INTERVAL_MAX));
        let timer = opcode::Timeout::new(&raw const *self.timer).build().user_data(TIMER);
        self.timer_armed = true;
        self.flights.push(&timer)
    }

    /// The loop has ended: waits until everybody has an answer.
    fn drain(&mut self) -> io::Result<()> {
        while self.flights.is_awaited() && !mutant("event-loop-leaves-its-writes") {
            self.turn()?;
            if self.flights.is_awaited() {
                match self.flights.ring.submit_and_wait(1) {
                    Err(error) if !is_transient(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = self.drain() {
            tracing::error!(%error, "the disk ring of an event loop failed");
        }
        // The kernel may not have read it yet.
        if self.timer_armed {
            core::mem::forget(core::mem::take(&mut self.timer));
        }
    }
}

/// The event loop of this thread is told when the kernel writes to `fd`.
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `fd` owns its descriptor, and closes it after it has been taken from the loop.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

fn build() -> io::Result<(IoUring, OwnedFd)> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETIONS).setup_single_issuer().setup_defer_taskrun();
    let ring = builder.setup_taskrun_flag().build(SUBMISSIONS)?;
    check_features(&ring)?;
    let fd = OwnedFd::from(eventfd()?);
    ring.submitter().register_eventfd(fd.as_raw_fd())?;
    Ok((ring, fd))
}

/// The task that serves the ring of its thread.
struct Reaper {
    /// Written by the kernel when something is done. Never read: each write is an event.
    fd: AsyncFd<OwnedFd>,
}

impl Future for Reaper {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Before the turn: what is done after it makes the descriptor ready again.
        loop {
            match self.fd.poll_read_ready(cx) {
                Poll::Ready(Ok(mut ready)) => ready.clear_ready(),
                // The runtime shuts down; the drop of this task sees to what is left.
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        THIS.with_borrow_mut(|state| {
            let State::Ring(own) = state else { return Poll::Ready(()) };
            own.waker = Some(cx.waker().clone());
            match own.turn() {
                Ok(left) => {
                    if left {
                        cx.waker().wake_by_ref();
                    }
                    Poll::Pending
                }
                Err(error) => {
                    state.fail(&error);
                    Poll::Ready(())
                }
            }
        })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // Where there is nothing the thread is ending, which drops the ring as well; and nobody else
        // looks at it but who is about to start this task, while the loop shuts down.
        let end = |state: &RefCell<State>| {
            let mut state = state.try_borrow_mut().ok()?;
            Some(core::mem::replace(&mut *state, State::None))
        };
        drop(THIS.try_with(end).ok());
    }
}
