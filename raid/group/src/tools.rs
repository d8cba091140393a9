//! Small tools without a home elsewhere: waiting for many futures, locks that survive a panic,
//! the table of stripe locks.

use core::future::poll_fn;
use core::task::Poll;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cairn_sys::BoxFuture;
use cairn_units::GroupNo;
use tokio::sync::OwnedMutexGuard;

/// Locks; a holder that panicked has already stopped the node.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
pub(crate) fn read_lock<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(|e| e.into_inner())
}
pub(crate) fn write_lock<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(|e| e.into_inner())
}

/// Runs all of `futures` at once; answers in their order.
pub(crate) async fn join_all<T>(futures: Vec<BoxFuture<T>>) -> Vec<T> {
    let mut waiting: Vec<(Option<BoxFuture<T>>, Option<T>)> =
        futures.into_iter().map(|f| (Some(f), None)).collect();
    poll_fn(|cx| {
        let mut pending = false;
        for (future, answer) in &mut waiting {
            if let Some(running) = future {
                match running.as_mut().poll(cx) {
                    Poll::Ready(value) => {
                        *answer = Some(value);
                        *future = None;
                    }
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    waiting.into_iter().filter_map(|(_, answer)| answer).collect()
}

/// Locks in the table of stripe locks; two regions that share one only wait for each other.
const STRIPE_LOCKS: usize = 1024;

/// Exclusion between writes, repairs, rebuild and scrub, per group and stripe region.
pub(crate) struct StripeLocks {
    locks: Vec<Arc<tokio::sync::Mutex<()>>>,
}

/// The regions stay locked until this is dropped.
pub(crate) struct StripeGuard {
    _held: Vec<OwnedMutexGuard<()>>,
}

impl StripeLocks {
    pub(crate) fn new() -> Self {
        Self { locks: (0..STRIPE_LOCKS).map(|_| Arc::default()).collect() }
    }

    /// Locks regions of a group. In table order, so that two callers never wait in a ring.
    pub(crate) async fn acquire(
        &self,
        group: GroupNo,
        regions: impl Iterator<Item = u64>,
    ) -> StripeGuard {
        let size = STRIPE_LOCKS as u64;
        let mut places: Vec<usize> = regions
            .map(|region| (u64::from(group.get()) * 389).wrapping_add(region) % size)
            .filter_map(|place| usize::try_from(place).ok())
            .collect();
        places.sort_unstable();
        places.dedup();
        let mut held = Vec::with_capacity(places.len());
        for place in places {
            held.push(self.locks[place].clone().lock_owned().await);
        }
        StripeGuard { _held: held }
    }
}
