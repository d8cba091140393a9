//! A fixed set of operations under way in one connection, each with a waker of its own.
//!
//! When operations become ready, only those are polled; the connection's task is woken once.
//! Slots and their wakers are made when first needed and used again.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use cairn_sys::lock::{Mutex, Rank};

use crate::config::CONNECTION_REQUESTS_MAX;

const WORDS: usize = CONNECTION_REQUESTS_MAX.div_ceil(64);

/// Wakes a connection's task, whichever waker it has at the moment.
#[derive(Debug)]
pub(crate) struct TaskWaker(Mutex<Option<Waker>>);

impl Default for TaskWaker {
    fn default() -> Self {
        Self(Mutex::new(Rank::CallWaker, None))
    }
}

impl TaskWaker {
    pub(crate) fn set(&self, waker: &Waker) {
        let mut held = self.0.lock();
        match &mut *held {
            Some(old) if old.will_wake(waker) => {}
            slot => *slot = Some(waker.clone()),
        }
    }
    pub(crate) fn wake(&self) {
        let waker = self.0.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[derive(Debug)]
struct Ready {
    bits: [AtomicU64; WORDS],
    task: Arc<TaskWaker>,
}

#[derive(Debug)]
struct SlotWaker {
    index: usize,
    ready: Arc<Ready>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        let bit = 1 << (self.index % 64);
        let before = self.ready.bits[self.index / 64].fetch_or(bit, Ordering::AcqRel);
        if before & bit == 0 {
            self.ready.task.wake();
        }
    }
}

struct Slot<T> {
    waker: Waker,
    item: Option<T>,
}

/// The set.
pub(crate) struct PendingSet<T> {
    ready: Arc<Ready>,
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
    len: usize,
}

impl<T: Future + Unpin> PendingSet<T> {
    pub(crate) fn new(task: Arc<TaskWaker>) -> Self {
        let bits = [const { AtomicU64::new(0) }; WORDS];
        Self { ready: Arc::new(Ready { bits, task }), slots: Vec::new(), free: Vec::new(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds an operation; it is polled for the first time by the next [`Self::poll`].
    ///
    /// # Panics
    /// When the set is full: the caller counts requests in flight.
    pub(crate) fn push(&mut self, item: T) {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = self.slots.len();
            assert!(index < CONNECTION_REQUESTS_MAX, "more operations than slots");
            let waker = Waker::from(Arc::new(SlotWaker { index, ready: self.ready.clone() }));
            self.slots.push(Slot { waker, item: None });
            index
        });
        self.slots[index].item = Some(item);
        self.len += 1;
        self.ready.bits[index / 64].fetch_or(1 << (index % 64), Ordering::AcqRel);
    }

    /// Polls what is ready and hands what is finished to `done`.
    pub(crate) fn poll(&mut self, mut done: impl FnMut(T, T::Output)) {
        if self.len == 0 {
            return;
        }
        for word in 0..WORDS {
            let mut bits = self.ready.bits[word].swap(0, Ordering::AcqRel);
            while bits != 0 {
                let index = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let Some(slot) = self.slots.get_mut(index) else { continue };
                let Some(item) = &mut slot.item else { continue };
                let poll = Pin::new(item).poll(&mut Context::from_waker(&slot.waker));
                if let Poll::Ready(output) = poll
                    && let Some(item) = slot.item.take()
                {
                    self.free.push(index);
                    self.len -= 1;
                    done(item, output);
                }
            }
        }
    }

    /// Takes out what is not finished.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        self.len = 0;
        self.slots.iter_mut().filter_map(|slot| slot.item.take()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn only_woken_operations_are_polled_and_slots_are_used_again() {
        let task = Arc::new(TaskWaker::default());
        task.set(Waker::noop());
        let mut set = PendingSet::new(task);
        for round in 0..3 {
            let (senders, receivers): (Vec<_>, Vec<_>) =
                (0..CONNECTION_REQUESTS_MAX).map(|_| oneshot::channel::<usize>()).unzip();
            receivers.into_iter().for_each(|r| set.push(r));
            let mut got = Vec::new();
            set.poll(|_, v| got.push(v.unwrap()));
            assert!(got.is_empty());
            let mut senders: Vec<_> = senders.into_iter().enumerate().collect();
            while let Some((i, sender)) = senders.pop() {
                sender.send(i + round).unwrap();
                set.poll(|_, v| got.push(v.unwrap()));
                assert_eq!(got.last(), Some(&(i + round)));
            }
            assert_eq!(set.len(), 0);
        }
        assert_eq!(set.slots.len(), CONNECTION_REQUESTS_MAX);
    }
}
