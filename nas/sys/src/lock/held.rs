//! Who holds which ranks: per thread for locks of threads, per scope for locks of tasks.
//!
//! Layer: inside [`crate::lock`]. Three versions of the same few items: one that checks, one
//! without any state for builds without debug assertions, and one that lets the shuttle scheduler
//! preempt where a lock is given up.

#[cfg(all(debug_assertions, not(feature = "shuttle")))]
use checking as version;
#[cfg(feature = "shuttle")]
use preempting as version;
#[cfg(not(any(debug_assertions, feature = "shuttle")))]
use trusting as version;

pub(super) use version::{Held, Key};
pub use version::{branch, scope};

#[cfg(not(any(debug_assertions, feature = "shuttle")))]
mod trusting {
    use crate::BoxFuture;
    use crate::lock::Rank;

    #[derive(Clone, Copy)]
    pub(in crate::lock) struct Key;

    impl Key {
        pub(in crate::lock) const fn new(_rank: Rank, _order: u32) -> Self {
            Self
        }
    }

    pub(in crate::lock) struct Held;

    impl Held {
        pub(in crate::lock) fn leaf(_key: Key) -> Self {
            Self
        }
        pub(in crate::lock) fn by_thread(_key: Key) -> Self {
            Self
        }
        pub(in crate::lock) fn ask(_key: Key) {}
        pub(in crate::lock) fn by_task(_key: Key) -> Self {
            Self
        }
    }

    /// A task: see [`crate::lock`].
    pub fn scope<F: Future>(future: F) -> F {
        future
    }

    /// A branch of a future that polls several: see [`crate::lock`].
    pub fn branch<T: 'static>(future: BoxFuture<T>) -> BoxFuture<T> {
        future
    }
}

#[cfg(feature = "shuttle")]
mod preempting {
    use shuttle::sync::atomic::{AtomicBool, Ordering};

    use crate::BoxFuture;
    use crate::lock::Rank;

    #[derive(Clone, Copy)]
    pub(in crate::lock) struct Key;

    impl Key {
        pub(in crate::lock) const fn new(_rank: Rank, _order: u32) -> Self {
            Self
        }
    }

    /// A lock that is held; whether another task may go on when it is given up.
    pub(in crate::lock) struct Held(bool);

    /// Another task may go on here. The scheduler does not preempt between an unlock and the next
    /// thing that it knows of; tokio's channels and notifications are nothing that it knows of.
    fn point() {
        if !std::thread::panicking() {
            let _seen = AtomicBool::new(false).load(Ordering::SeqCst);
        }
    }

    impl Held {
        pub(in crate::lock) fn leaf(_key: Key) -> Self {
            Self(false)
        }
        pub(in crate::lock) fn by_thread(_key: Key) -> Self {
            Self(true)
        }
        pub(in crate::lock) fn ask(_key: Key) {
            point();
        }
        pub(in crate::lock) fn by_task(_key: Key) -> Self {
            Self(true)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            if self.0 {
                point();
            }
        }
    }

    /// A task: see [`crate::lock`].
    pub fn scope<F: Future>(future: F) -> F {
        future
    }

    /// A branch of a future that polls several: see [`crate::lock`].
    pub fn branch<T: 'static>(future: BoxFuture<T>) -> BoxFuture<T> {
        future
    }
}

#[cfg(all(debug_assertions, not(feature = "shuttle")))]
mod checking {
    use core::cell::RefCell;
    use core::pin::Pin;
    use core::task::{Context, Poll};
    use std::sync::{Arc, Mutex, MutexGuard};

    use crate::BoxFuture;
    use crate::lock::Rank;

    /// A rank, and the place among locks of one rank.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(in crate::lock) struct Key {
        rank: Rank,
        order: u32,
    }

    impl Key {
        pub(in crate::lock) const fn new(rank: Rank, order: u32) -> Self {
            Self { rank, order }
        }
    }

    #[derive(Default)]
    struct Inside {
        /// The scope that polls this one.
        outer: Option<Arc<Scope>>,
        held: Vec<Key>,
    }

    #[derive(Default)]
    struct Scope(Mutex<Inside>);

    impl Scope {
        fn inside(&self) -> MutexGuard<'_, Inside> {
            self.0.lock().unwrap_or_else(|e| e.into_inner())
        }
    }

    thread_local! {
        /// Locks of threads that this thread holds.
        static THREAD: RefCell<Vec<Key>> = const { RefCell::new(Vec::new()) };
        /// The scope that this thread is polling.
        static SCOPE: RefCell<Option<Arc<Scope>>> = const { RefCell::new(None) };
    }

    fn current() -> Option<Arc<Scope>> {
        SCOPE.try_with(|scope| scope.borrow().clone()).ok().flatten()
    }

    fn check(key: Key) {
        // A destructor that locks while its thread unwinds must not hide the first panic.
        if std::thread::panicking() {
            return;
        }
        let mut highest =
            THREAD.try_with(|held| held.borrow().iter().max().copied()).ok().flatten();
        let mut scope = current();
        while let Some(there) = scope {
            let inside = there.inside();
            highest = highest.max(inside.held.iter().max().copied());
            let outer = inside.outer.clone();
            drop(inside);
            scope = outer;
        }
        if let Some(held) = highest {
            assert!(key > held, "lock order: {key:?} is taken while {held:?} is held");
        }
    }

    fn remove(from: &mut Vec<Key>, key: Key) {
        if let Some(at) = from.iter().rposition(|held| *held == key) {
            from.remove(at);
        }
    }

    /// A lock that is held, or about to be.
    pub(in crate::lock) struct Held {
        key: Key,
        /// The scope that took it; none for a lock of a thread.
        scope: Option<Arc<Scope>>,
    }

    impl Held {
        /// A lock of the whole process is taken.
        pub(in crate::lock) fn leaf(key: Key) -> Self {
            Self::by_thread(key)
        }
        /// A lock of a thread is taken.
        pub(in crate::lock) fn by_thread(key: Key) -> Self {
            check(key);
            let _thread_ends = THREAD.try_with(|held| held.borrow_mut().push(key)).is_err();
            Self { key, scope: None }
        }
        /// A lock of a task is asked for.
        pub(in crate::lock) fn ask(key: Key) {
            check(key);
            no_lock_of_a_thread(key);
        }
        /// A lock of a task was taken.
        pub(in crate::lock) fn by_task(key: Key) -> Self {
            let scope = current();
            if let Some(scope) = &scope {
                scope.inside().held.push(key);
            }
            Self { key, scope }
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            match &self.scope {
                // By whatever thread or task: a guard may have moved.
                Some(scope) => remove(&mut scope.inside().held, self.key),
                None => {
                    let key = self.key;
                    let gone = THREAD.try_with(|held| remove(&mut held.borrow_mut(), key));
                    let _thread_ends = gone.is_err();
                }
            }
        }
    }

    fn no_lock_of_a_thread(key: Key) {
        let held = THREAD.try_with(|held| held.borrow().last().copied()).ok().flatten();
        if let Some(held) = held.filter(|_| !std::thread::panicking()) {
            panic!("{key:?} may have to wait, and {held:?} is held");
        }
    }

    /// A task: see [`crate::lock`].
    pub fn scope<F: Future>(future: F) -> impl Future<Output = F::Output> {
        Scoped { scope: Arc::default(), future: Box::pin(future) }
    }

    /// A branch of a future that polls several: see [`crate::lock`].
    pub fn branch<T: 'static>(future: BoxFuture<T>) -> BoxFuture<T> {
        Box::pin(scope(future))
    }

    struct Scoped<F> {
        scope: Arc<Scope>,
        future: Pin<Box<F>>,
    }

    /// Puts the scope outside back, however a poll ends.
    struct Back(Option<Arc<Scope>>);

    impl Drop for Back {
        fn drop(&mut self) {
            let outer = self.0.take();
            let _thread_ends = SCOPE.try_with(|scope| *scope.borrow_mut() = outer).is_err();
        }
    }

    impl<F: Future> Future for Scoped<F> {
        type Output = F::Output;
        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
            let outer = SCOPE.with(|scope| scope.borrow_mut().replace(self.scope.clone()));
            self.scope.inside().outer = outer.clone();
            let back = Back(outer);
            let before = THREAD.with(|held| held.borrow().len());
            let polled = self.future.as_mut().poll(cx);
            let after = THREAD.with(|held| held.borrow().clone());
            assert!(after.len() == before, "a poll ends while {after:?} are held");
            drop(back);
            self.scope.inside().outer = None;
            polled
        }
    }
}
