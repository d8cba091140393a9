//! What others see of a connection and do to it, and why a connection ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

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
    /// End: the deadline has passed.
    TimedOut,
    /// End.
    Kill,
}

/// What others may see of a connection, and do to it.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) id: u64,
    task: Arc<TaskWaker>,
    deadline: AtomicU64,
    order: AtomicU8,
}

impl Control {
    pub(crate) fn new(id: u64) -> Self {
        Self {
            id,
            task: Arc::new(TaskWaker::default()),
            deadline: AtomicU64::new(NEVER),
            order: AtomicU8::new(Order::Run as u8),
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
            n if n == Order::TimedOut as u8 => Order::TimedOut,
            _ => Order::Kill,
        }
    }
    /// The connection is to be ended at this time ([`NEVER`] for no time).
    pub(crate) fn set_deadline(&self, nanos: u64) {
        self.deadline.store(nanos, Ordering::Relaxed);
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
    /// End now if the deadline has passed.
    pub(crate) fn check_deadline(&self, now: MonoTime) {
        if self.deadline.load(Ordering::Relaxed) <= now.get() {
            self.order(Order::TimedOut);
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
