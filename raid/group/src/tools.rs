//! Small tools without a home elsewhere: waiting for many futures, the table of stripe locks.

use core::future::poll_fn;
use core::task::Poll;

use cairn_sys::BoxFuture;
use cairn_sys::lock::{AsyncGuard, AsyncMutex, Rank, branch};
use cairn_units::GroupNo;

/// Runs all of `futures` at once; answers in their order.
pub(crate) async fn join_all<T: 'static>(futures: Vec<BoxFuture<T>>) -> Vec<T> {
    // Branches of one task hold locks beside each other.
    let mut waiting: Vec<(Option<_>, Option<T>)> =
        futures.into_iter().map(|f| (Some(branch(f)), None)).collect();
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
const STRIPE_LOCKS: u32 = 1024;

/// Exclusion between writes, repairs, rebuild and scrub, per group and stripe region.
pub(crate) struct StripeLocks {
    locks: Vec<AsyncMutex<()>>,
}

/// The regions stay locked until this is dropped.
pub(crate) struct StripeGuard<'l> {
    _held: Vec<AsyncGuard<'l, ()>>,
}

impl StripeLocks {
    pub(crate) fn new() -> Self {
        let locks = (0..STRIPE_LOCKS).map(|place| AsyncMutex::in_table(Rank::Stripes, place, ()));
        Self { locks: locks.collect() }
    }

    /// Locks regions of a group. In table order, so that two callers never wait in a ring.
    pub(crate) async fn acquire(
        &self,
        group: GroupNo,
        regions: impl Iterator<Item = u64>,
    ) -> StripeGuard<'_> {
        let size = u64::from(STRIPE_LOCKS);
        let mut places: Vec<usize> = regions
            .map(|region| (u64::from(group.get()) * 389).wrapping_add(region) % size)
            .filter_map(|place| usize::try_from(place).ok())
            .collect();
        places.sort_unstable();
        places.dedup();
        let mut held = Vec::with_capacity(places.len());
        for place in places {
            held.push(self.locks[place].lock().await);
        }
        StripeGuard { _held: held }
    }
}
