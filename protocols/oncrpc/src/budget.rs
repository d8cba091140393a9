//! The bytes that all connections of a server may have in flight together.
//!
//! A connection that cannot get its charge stops reading its socket and is woken when somebody
//! gives bytes back. Nothing is allocated for a request before its charge is taken.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use cairn_sys::lock::{Mutex, Rank};

/// Shared budget in bytes.
#[derive(Debug)]
pub(crate) struct Budget {
    max: u64,
    used: AtomicU64,
    waiting: AtomicU64,
    /// By connection number, so that one connection waits once.
    wakers: Mutex<BTreeMap<u64, Waker>>,
}

impl Budget {
    pub(crate) fn new(max: u64) -> Self {
        Self {
            max,
            used: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            wakers: Mutex::new(Rank::BudgetWaiters, BTreeMap::new()),
        }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes` if they are there.
    pub(crate) fn try_take(&self, bytes: u64) -> bool {
        // Compare and swap, not add and take back: a failed try must not make another one fail.
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok()
    }

    /// Takes `bytes`, or has `waker` woken when some are given back.
    pub(crate) fn take_or_wait(&self, bytes: u64, conn: u64, waker: &Waker) -> bool {
        if self.try_take(bytes) {
            return true;
        }
        let mut wakers = self.wakers.lock();
        wakers.insert(conn, waker.clone());
        self.waiting.store(wakers.len() as u64, Ordering::SeqCst);
        drop(wakers);
        // Between the first try and the registration everything may have been given back.
        self.try_take(bytes)
    }

    /// Gives `bytes` back and wakes who waits.
    pub(crate) fn give_back(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let before = self.used.fetch_sub(bytes, Ordering::SeqCst);
        assert!(before >= bytes, "more given back than taken");
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let woken = {
                let mut wakers = self.wakers.lock();
                self.waiting.store(0, Ordering::SeqCst);
                core::mem::take(&mut *wakers)
            };
            woken.into_values().for_each(Waker::wake);
        }
    }

    /// Forgets a connection that ends while it waits.
    pub(crate) fn forget(&self, conn: u64) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let mut wakers = self.wakers.lock();
            wakers.remove(&conn);
            self.waiting.store(wakers.len() as u64, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_never_exceeded_and_returns_to_zero() {
        let budget = Budget::new(100);
        assert!(budget.try_take(60));
        assert!(!budget.try_take(41));
        assert!(budget.try_take(40));
        assert!(!budget.take_or_wait(1, 1, Waker::noop()));
        budget.give_back(100);
        assert_eq!(budget.used(), 0);
    }
}
