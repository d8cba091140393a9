//! What others see of a connection and do to it, and why a connection ends.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use cairn_units::MonoTime;

use crate::config::FRAGMENTS_MAX;
use crate::message::RECORD_BYTES_MAX;
use crate::pending::TaskWaker;

/// No deadline.
pub(crate) const NEVER: u64 = u64::MAX;

/// What a connection is told to do. A later one outranks an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Order {
    /// Go on.
    Run,
    /// Answer what is in flight, then end.
    Drain,
    /// End.
    Kill,
}

/// What a connection is asked for when something is short. It judges for itself whether it still
/// is in the state that it was asked for: it may just have got on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The memory it holds, if it makes no progress.
    Bytes,
    /// Its place, if it has no call in flight.
    Place,
}

/// The state of a connection as others see it. Times in nanoseconds, [`NEVER`] for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The connection is to be ended at this time.
    pub(crate) deadline: u64,
    /// The same, while others wait for memory.
    pub(crate) scarce_deadline: u64,
    /// It has had no call in flight since.
    pub(crate) idle_since: u64,
    /// Bytes of the common budget that it holds.
    pub(crate) held: u64,
    /// Whether it was ever answered anything.
    pub(crate) answered: bool,
}

/// What others may see of a connection, and do to it.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) id: u64,
    pub(crate) client: IpAddr,
    task: Arc<TaskWaker>,
    deadline: AtomicU64,
    scarce_deadline: AtomicU64,
    idle_since: AtomicU64,
    held: AtomicU64,
    answered: AtomicBool,
    order: AtomicU8,
    bytes_asked: AtomicBool,
    place_asked: AtomicBool,
}

impl Control {
    pub(crate) fn new(id: u64, client: IpAddr, now: MonoTime) -> Self {
        Self {
            id,
            client,
            task: Arc::new(TaskWaker::default()),
            deadline: AtomicU64::new(NEVER),
            scarce_deadline: AtomicU64::new(NEVER),
            idle_since: AtomicU64::new(now.get()),
            held: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            order: AtomicU8::new(Order::Run as u8),
            bytes_asked: AtomicBool::new(false),
            place_asked: AtomicBool::new(false),
        }
    }
    /// Wakes the connection.
    pub(crate) fn task(&self) -> &Arc<TaskWaker> {
        &self.task
    }
    /// What the connection is told to do.
    pub(crate) fn ordered(&self) -> Order {
        match self.order.load(Ordering::SeqCst) {
            n if n == Order::Run as u8 => Order::Run,
            n if n == Order::Drain as u8 => Order::Drain,
            _ => Order::Kill,
        }
    }
    /// Shows its state.
    pub(crate) fn show(&self, standing: Standing) {
        self.deadline.store(standing.deadline, Ordering::Relaxed);
        self.scarce_deadline.store(standing.scarce_deadline, Ordering::Relaxed);
        self.idle_since.store(standing.idle_since, Ordering::Relaxed);
        self.held.store(standing.held, Ordering::Relaxed);
        self.answered.store(standing.answered, Ordering::Relaxed);
    }
    /// Its state, as it was shown last.
    pub(crate) fn standing(&self) -> Standing {
        Standing {
            deadline: self.deadline.load(Ordering::Relaxed),
            scarce_deadline: self.scarce_deadline.load(Ordering::Relaxed),
            idle_since: self.idle_since.load(Ordering::Relaxed),
            held: self.held.load(Ordering::Relaxed),
            answered: self.answered.load(Ordering::Relaxed),
        }
    }
    fn order(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::SeqCst);
        self.task.wake();
    }
    /// No more requests; end when those in flight are answered.
    pub(crate) fn drain(&self) {
        self.order(Order::Drain);
    }
    /// End now.
    pub(crate) fn kill(&self) {
        self.order(Order::Kill);
    }
    fn flag(&self, request: Request) -> &AtomicBool {
        match request {
            Request::Bytes => &self.bytes_asked,
            Request::Place => &self.place_asked,
        }
    }
    /// Asks for something.
    pub(crate) fn ask(&self, request: Request) {
        self.flag(request).store(true, Ordering::SeqCst);
        self.task.wake();
    }
    /// Whether it was asked and has not answered yet.
    pub(crate) fn is_asked(&self, request: Request) -> bool {
        self.flag(request).load(Ordering::SeqCst)
    }
    /// Whether it was asked; the request is taken.
    pub(crate) fn take_request(&self, request: Request) -> bool {
        self.is_asked(request) && self.flag(request).swap(false, Ordering::SeqCst)
    }
    /// Has the connection look at its deadline if that has passed: what its peer sent may lie in
    /// the socket still, so it decides for itself.
    pub(crate) fn check_deadline(&self, now: MonoTime) {
        if self.deadline.load(Ordering::Relaxed) <= now.get() {
            self.task.wake();
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Close {
    #[error("closed by the client")]
    Done,
    #[error("the server stops")]
    Stopped,
    #[error("too slow: a record, a reply or the next request took too long")]
    TimedOut,
    #[error("no progress while others wait for memory")]
    GaveWay,
    #[error("idle while others want to connect")]
    MadeRoom,
    #[error("a record of {bytes} bytes is over the limit of {RECORD_BYTES_MAX}")]
    RecordTooLong { bytes: usize },
    #[error("a record of more than {FRAGMENTS_MAX} fragments")]
    TooManyFragments,
    #[error("a record that is not an RPC call")]
    NotACall,
    #[error("i/o error: {0}")]
    Io(#[from] std::io::Error),
}

impl Close {
    /// Whether the peer did something that is worth a line in the log.
    pub(crate) fn is_bad_record(&self) -> bool {
        matches!(self, Self::RecordTooLong { .. } | Self::TooManyFragments | Self::NotACall)
    }
}
