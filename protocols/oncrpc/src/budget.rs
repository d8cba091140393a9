//! The bytes that all connections of a server may have in flight together.
//!
//! A connection that cannot get its charge stops reading its socket and stands in line. Nothing is
//! allocated for a request before its charge is taken.
//!
//! The line: bytes that come free go to those who wait, never past them to a newcomer. Addresses
//! of clients take turns, so that one with a thousand connections waits no shorter than one with
//! a single one; connections of one address are served in order of arrival. Whose turn it is tries
//! for itself when it is woken; having got its charge, it wakes the next. (Handing out bytes to
//! connections that may be gone was rejected: somebody would have to collect them again.)

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use cairn_sys::lock::{Guard, Mutex, Rank};
use cairn_sys::mutant;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    /// Number of the connection.
    pub(crate) conn: u64,
    /// Its client.
    pub(crate) client: IpAddr,
}

#[derive(Debug)]
struct Waiter {
    conn: u64,
    bytes: u64,
    waker: Waker,
}

/// Those who wait. An address has a turn as long as one of its connections waits.
#[derive(Debug, Default)]
struct Line {
    turns: VecDeque<IpAddr>,
    waiters: BTreeMap<IpAddr, VecDeque<Waiter>>,
}

impl Line {
    fn first(&self) -> Option<&Waiter> {
        self.waiters.get(self.turns.front()?)?.front()
    }

    fn bytes(&self) -> u64 {
        self.waiters.values().flatten().map(|w| w.bytes).sum()
    }

    /// Enters a connection, or what it waits for now.
    fn enter(&mut self, asker: Asker, bytes: u64, waker: &Waker) {
        let of_client = self.waiters.entry(asker.client).or_insert_with(|| {
            self.turns.push_back(asker.client);
            VecDeque::new()
        });
        let waker = waker.clone();
        match of_client.iter_mut().find(|w| w.conn == asker.conn) {
            Some(waiter) => (waiter.bytes, waiter.waker) = (bytes, waker),
            None => of_client.push_back(Waiter { conn: asker.conn, bytes, waker }),
        }
    }

    /// Takes a connection out; when it was first, the next address has its turn.
    fn leave(&mut self, asker: Asker) {
        let Some(of_client) = self.waiters.get_mut(&asker.client) else { return };
        let Some(at) = of_client.iter().position(|w| w.conn == asker.conn) else { return };
        of_client.remove(at);
        let more = !of_client.is_empty();
        if !more {
            self.waiters.remove(&asker.client);
        }
        if at == 0 && self.turns.front() == Some(&asker.client) {
            self.turns.pop_front();
            if more {
                self.turns.push_back(asker.client);
            }
        } else if !more {
            self.turns.retain(|client| *client != asker.client);
        }
    }
}

/// Shared budget in bytes.
#[derive(Debug)]
pub(crate) struct Budget {
    max: u64,
    used: AtomicU64,
    /// Bytes that are waited for.
    wanted: AtomicU64,
    line: Mutex<Line>,
}

impl Budget {
    pub(crate) fn new(max: u64) -> Self {
        let line = Mutex::new(Rank::BudgetWaiters, Line::default());
        Self { max, used: AtomicU64::new(0), wanted: AtomicU64::new(0), line }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that connections wait for; 0 when none does.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::SeqCst)
    }

    fn line(&self) -> Guard<'_, Line> {
        self.line.lock()
    }

    /// Takes `bytes` if they are there.
    fn try_take(&self, bytes: u64) -> bool {
        // Compare and swap, not add and take back: a failed try must not make another one fail.
        let max = if mutant("budget-without-end") { u64::MAX } else { self.max };
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= max);
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok()
    }

    /// Takes `bytes`, or enters the line: `waker` is woken when it is worth another try.
    pub(crate) fn take_or_wait(&self, bytes: u64, asker: Asker, waker: &Waker) -> bool {
        if (self.wanted() == 0 || mutant("newcomers-pass")) && self.try_take(bytes) {
            return true;
        }
        let mut line = self.line();
        line.enter(asker, bytes, waker);
        self.wanted.store(line.bytes().max(1), Ordering::SeqCst);
        // Tried after the entry is there: what is given back from now on wakes us.
        let first = line.first().is_some_and(|w| w.conn == asker.conn);
        let taken = first && self.try_take(bytes);
        if taken {
            line.leave(asker);
            self.next(line);
        }
        taken
    }

    /// Notes what is waited for, and wakes whose turn it is.
    fn next(&self, line: Guard<'_, Line>) {
        self.wanted.store(line.bytes(), Ordering::SeqCst);
        let waker = line.first().map(|w| w.waker.clone());
        drop(line);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Gives `bytes` back and wakes whose turn it is.
    pub(crate) fn give_back(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let before = self.used.fetch_sub(bytes, Ordering::SeqCst);
        assert!(before >= bytes, "more given back than taken");
        if self.wanted() > 0 {
            self.next(self.line());
        }
    }

    /// Forgets a connection that does not want anything any more.
    pub(crate) fn forget(&self, asker: Asker) {
        if self.wanted() > 0 {
            let mut line = self.line();
            line.leave(asker);
            self.next(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn asker(conn: u64, client: u8) -> Asker {
        Asker { conn, client: [10, 0, 0, client].into() }
    }

    fn take(budget: &Budget, bytes: u64, conn: u64, client: u8) -> bool {
        budget.take_or_wait(bytes, asker(conn, client), Waker::noop())
    }

    #[test]
    fn budget_is_never_exceeded_and_returns_to_zero() {
        let budget = Budget::new(100);
        assert!(take(&budget, 60, 1, 1));
        assert!(!take(&budget, 41, 2, 1));
        budget.forget(asker(2, 1));
        assert!(take(&budget, 40, 3, 1));
        assert!(!take(&budget, 1, 4, 1));
        budget.give_back(100);
        assert_eq!(budget.used(), 0);
        assert_eq!(budget.wanted(), 1);
    }

    #[test]
    fn newcomers_do_not_pass_those_who_wait() {
        let budget = Budget::new(100);
        assert!(take(&budget, 90, 1, 1));
        assert!(!take(&budget, 50, 2, 1), "waits for 50");
        assert!(!take(&budget, 5, 3, 1), "there are 10, but it stands behind");
        budget.give_back(90);
        assert!(!take(&budget, 5, 3, 1));
        assert!(take(&budget, 50, 2, 1));
        assert!(take(&budget, 5, 3, 1));
        assert_eq!(budget.wanted(), 0);
    }

    #[test]
    fn addresses_take_turns() {
        let budget = Budget::new(10);
        assert!(take(&budget, 10, 1, 1));
        for conn in 2..100 {
            assert!(!take(&budget, 10, conn, 1));
        }
        assert!(!take(&budget, 10, 200, 2), "the only one of another address");
        budget.give_back(10);
        assert!(take(&budget, 10, 2, 1), "the first of the line");
        budget.give_back(10);
        assert!(!take(&budget, 10, 3, 1), "its address has had a turn");
        assert!(take(&budget, 10, 200, 2));
        budget.give_back(10);
        assert!(take(&budget, 10, 3, 1));
    }

    #[test]
    fn whoever_leaves_the_line_wakes_the_next() {
        let budget = Budget::new(10);
        assert!(take(&budget, 10, 1, 1));
        let woken = Arc::new(Woken::default());
        assert!(!take(&budget, 10, 2, 1));
        assert!(!budget.take_or_wait(5, asker(3, 2), &Waker::from(woken.clone())));
        budget.give_back(10);
        assert_eq!(woken.0.load(Ordering::SeqCst), 0, "it is not its turn");
        budget.forget(asker(2, 1));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(take(&budget, 5, 3, 2));
    }
}
