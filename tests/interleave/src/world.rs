//! The world of the interleaving tests: tasks are shuttle's, time only passes when it is asked for.
//!
//! Layer: interleaving harness. Sleeps end when the test does, but for the shortest: what must happen before does not
//! wait for a clock. A test stops its node and then waits for all tasks ([`Ground::settle`]), since
//! nothing may be in the middle of something when an execution ends.

use core::future::poll_fn;
use core::task::{Poll, Waker};
use core::time::Duration;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use cairn_sys::{BoxFuture, Clock, Entropy, Spawn, World};
use cairn_units::{MonoTime, WallTime};

/// Where both clocks begin.
const START_NANOS: u64 = 1_767_225_600_000_000_000;
/// Sleeps below this are pauses of somebody who is about to go on.
const SHORT_NANOS: u64 = 10_000_000;

#[derive(Default)]
struct State {
    tasks: u64,
    ended: bool,
    wakers: Vec<Waker>,
}

/// Not locks of the scheduler's: nothing is preempted here.
#[derive(Default)]
struct Seams {
    asked: AtomicU64,
    chance: AtomicU64,
    state: Arc<Mutex<State>>,
}

/// A world of one execution.
#[derive(Clone, Default)]
pub struct Ground {
    seams: Arc<Seams>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}

fn wake_all(state: &Mutex<State>) {
    let wakers = core::mem::take(&mut lock(state).wakers);
    wakers.into_iter().for_each(Waker::wake);
}

async fn until(state: Arc<Mutex<State>>, holds: impl Fn(&State) -> bool) {
    poll_fn(|cx| {
        let mut state = lock(&state);
        if holds(&state) {
            return Poll::Ready(());
        }
        state.wakers.push(cx.waker().clone());
        Poll::Pending
    })
    .await;
}

impl Ground {
    /// The seams, for the components under test.
    pub fn world(&self) -> World {
        World { clock: self.seams.clone(), entropy: self.seams.clone(), spawn: self.seams.clone() }
    }
    /// Ends all sleeps and waits for all tasks; what they serve was stopped before.
    pub async fn settle(&self) {
        lock(&self.seams.state).ended = true;
        wake_all(&self.seams.state);
        until(self.seams.state.clone(), |state| state.tasks == 0).await;
    }
}

impl Seams {
    fn now(&self) -> u64 {
        START_NANOS + 1000 * self.asked.fetch_add(1, Ordering::Relaxed)
    }
}

impl Clock for Seams {
    fn monotonic(&self) -> MonoTime {
        MonoTime::new(self.now())
    }
    fn wall(&self) -> WallTime {
        WallTime::new(i64::try_from(self.now()).unwrap_or(i64::MAX))
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if nanos < SHORT_NANOS {
            // As long as it takes somebody else to do something.
            self.asked.fetch_add(nanos.div_ceil(1000), Ordering::Relaxed);
            return Box::pin(shuttle::future::yield_now());
        }
        Box::pin(until(self.state.clone(), |state| state.ended))
    }
}

impl Entropy for Seams {
    fn next_u64(&self) -> u64 {
        let n = self.chance.fetch_add(1, Ordering::Relaxed);
        let mut x = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
}

impl Spawn for Seams {
    fn spawn(&self, _name: &'static str, task: BoxFuture<()>) {
        lock(&self.state).tasks += 1;
        let state = self.state.clone();
        drop(shuttle::future::spawn(async move {
            task.await;
            lock(&state).tasks -= 1;
            wake_all(&state);
        }));
    }
}
