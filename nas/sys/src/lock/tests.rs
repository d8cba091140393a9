//! The order is asserted: each way to break it panics.

use core::future::poll_fn;
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use super::{AsyncMutex, AsyncRwLock, Condvar, Leaf, Mutex, Rank, RwLock, scope};

/// Polls a future that never has to wait.
fn now<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

#[test]
fn locks_in_order_are_taken_and_given_up_in_any_order() {
    let volume = Mutex::new(Rank::Volume, 1);
    let cache = Mutex::new(Rank::CacheClock, 2);
    let view = RwLock::new(Rank::View, 3);
    let outer = volume.lock();
    let inner = cache.lock();
    let innermost = view.read();
    assert_eq!(*outer + *inner + *innermost, 6);
    drop(outer);
    let pool = Leaf::new(Rank::BlockPool, ());
    let last = pool.lock();
    drop((inner, innermost, last));
    *volume.lock() = 4;
    *view.write() = 5;
}

#[test]
#[should_panic(expected = "lock order")]
fn a_lock_of_a_lower_rank_is_refused() {
    let volume = Mutex::new(Rank::Volume, ());
    let cache = Mutex::new(Rank::CacheClock, ());
    let _inner = cache.lock();
    let _outer = volume.lock();
}

#[test]
#[should_panic(expected = "lock order")]
fn two_locks_of_one_rank_are_refused() {
    let (one, other) = (Mutex::new(Rank::Volume, ()), Mutex::new(Rank::Volume, ()));
    let _one = one.lock();
    let _other = other.lock();
}

#[test]
#[should_panic(expected = "lock order")]
fn sharing_a_lock_twice_is_refused() {
    let view = RwLock::new(Rank::View, ());
    let _one = view.read();
    let _other = view.read();
}

#[test]
#[should_panic(expected = "lock order")]
fn nothing_is_taken_under_the_block_pool() {
    let pool = Leaf::new(Rank::BlockPool, ());
    let cache = Mutex::new(Rank::CacheClock, ());
    let _pool = pool.lock();
    let _cache = cache.lock();
}

#[test]
fn a_thread_that_waited_has_its_lock_and_its_rank_again() {
    let queue = Mutex::new(Rank::DiskQueue, 0);
    let changed = Condvar::new();
    let held = changed.wait_timeout(queue.lock(), core::time::Duration::ZERO);
    assert_eq!(*held, 0);
    drop(held);
    drop(queue.lock());
}

#[test]
fn a_poisoned_lock_says_so_and_keeps_its_rank() {
    let volume = std::sync::Arc::new(Mutex::new(Rank::Volume, 7));
    let theirs = volume.clone();
    let holder = std::thread::Builder::new();
    let holder = holder.spawn(move || {
        let _held = theirs.lock();
        panic!("on purpose");
    });
    assert!(holder.expect("a thread").join().is_err());
    assert_eq!(*volume.lock(), 7);
    assert!(volume.lock_sound().is_err());
    drop(volume.lock());
}

#[test]
#[should_panic(expected = "lock order")]
fn a_task_that_holds_an_inner_lock_is_refused_an_outer_one() {
    let interval = AsyncRwLock::new(Rank::FlushInterval, ());
    let stripes = AsyncMutex::new(Rank::Stripes, ());
    now(scope(async {
        let _stripes = stripes.lock().await;
        let _interval = interval.read().await;
    }));
}

#[test]
#[should_panic(expected = "lock order")]
fn locks_of_a_table_are_taken_in_its_order() {
    let first = AsyncMutex::in_table(Rank::Stripes, 1, ());
    let second = AsyncMutex::in_table(Rank::Stripes, 2, ());
    now(scope(async {
        drop((first.lock().await, second.lock().await));
        let _second = second.lock().await;
        let _first = first.lock().await;
    }));
}

#[test]
#[should_panic(expected = "lock order")]
fn a_lock_of_a_thread_counts_with_those_of_its_task() {
    let engine = AsyncMutex::new(Rank::Engine, ());
    let publishing = Mutex::new(Rank::Publishing, ());
    now(scope(async {
        let _engine = engine.lock().await;
        let _wrong = publishing.lock();
    }));
}

#[test]
#[should_panic(expected = "may have to wait")]
fn a_lock_of_a_task_is_not_asked_for_under_one_of_a_thread() {
    let endpoints = Mutex::new(Rank::Publishing, ());
    let engine = AsyncMutex::new(Rank::Engine, ());
    // Seen even where nobody made a scope.
    now(async {
        let _endpoints = endpoints.lock();
        drop(engine.lock().await);
    });
}

#[test]
#[should_panic(expected = "a poll ends while")]
fn no_poll_ends_with_a_lock_of_a_thread_held() {
    let volume = Mutex::new(Rank::Volume, ());
    let mut first = true;
    let mut held = None;
    now(scope(poll_fn(|cx| {
        held = Some(volume.lock());
        cx.waker().wake_by_ref();
        if core::mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) }
    })));
}

#[test]
fn branches_of_a_task_hold_locks_beside_each_other() {
    let interval = AsyncRwLock::new(Rank::FlushInterval, ());
    let stripes = AsyncMutex::new(Rank::Stripes, ());
    now(scope(async {
        let mut one = pin!(scope(async {
            let _stripes = stripes.lock().await;
            core::future::pending::<()>().await;
        }));
        let mut other = pin!(scope(async { drop(interval.read().await) }));
        poll_fn(|cx| {
            assert!(one.as_mut().poll(cx).is_pending());
            other.as_mut().poll(cx)
        })
        .await;
    }));
}

#[test]
#[should_panic(expected = "lock order")]
fn what_a_task_holds_counts_in_its_branches() {
    let interval = AsyncRwLock::new(Rank::FlushInterval, ());
    let stripes = AsyncMutex::new(Rank::Stripes, ());
    now(scope(async {
        let _stripes = stripes.lock().await;
        scope(async { drop(interval.read().await) }).await;
    }));
}

#[test]
fn a_guard_that_was_given_away_is_forgotten_once_it_is_dropped() {
    let (engine, interval) =
        (AsyncMutex::new(Rank::Engine, ()), AsyncRwLock::new(Rank::FlushInterval, ()));
    let given = core::cell::RefCell::new(None);
    let mut task = pin!(scope(async {
        *given.borrow_mut() = Some(interval.read().await);
        let mut first = true;
        poll_fn(|_| if core::mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) })
            .await;
        drop(engine.lock().await);
    }));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(task.as_mut().poll(&mut cx).is_pending());
    drop(given.borrow_mut().take());
    assert!(task.as_mut().poll(&mut cx).is_ready());
}
