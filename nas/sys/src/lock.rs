//! Locks with a rank, and atomics: what every other crate takes instead of those of `std` and tokio.
//!
//! Layer: beside the other seams. A thread or task that holds locks takes only locks of a higher
//! rank; so no two can wait for each other in a ring. In builds with debug assertions each lock
//! checks that when it is taken, whether or not it would have to wait, and a wrong order panics
//! with both names; in other builds the rank is not even stored. The names, from the outermost to
//! the innermost, are those of [`Rank`]; `docs/architecture.md` shows them with their places.
//!
//! Two kinds: [`Mutex`] and [`RwLock`] are held for a few steps by a thread and never while
//! anything waits; [`AsyncMutex`] and [`AsyncRwLock`] are held by a task over its awaits. What a
//! task holds is kept per [`scope`]: each task is one, and so is each [`branch`] of a future that
//! polls several others, since branches of one task wait for each other as tasks do. A scope also
//! sees to it that no poll ends with a [`Mutex`] held.
//!
//! With the feature `shuttle` (for `tests/interleave` alone) locks and atomics are those of the
//! shuttle scheduler, which may preempt at each of them; ranks are not checked then.

mod held;
mod wait;

use core::fmt;
use core::ops::{Deref, DerefMut};

#[cfg(feature = "shuttle")]
use shuttle::sync as imp;
#[cfg(not(feature = "shuttle"))]
use std::sync as imp;

use held::{Held, Key};
pub use held::{branch, scope};
pub use wait::{AsyncGuard, AsyncMutex, AsyncReadGuard, AsyncRwLock, AsyncWriteGuard};

/// Atomics that the interleaving tests can preempt at.
pub mod atomic {
    #[cfg(feature = "shuttle")]
    pub use shuttle::sync::atomic::{
        AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
    };
    #[cfg(not(feature = "shuttle"))]
    pub use std::sync::atomic::{
        AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
    };
}

/// Every lock of the program, outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    // Held over awaits.
    /// M-host: one publication of the routes at a time.
    Publishing,
    /// Storage manager: space, volume table and consistency point.
    Engine,
    /// RAID: the flush interval; shared by writers of stripes, exclusive for a flush.
    FlushInterval,
    /// RAID: a region of stripes; several are taken in the order of the table.
    Stripes,
    /// RAID: a change of the configuration.
    Configuration,
    /// RAID: the NV log areas; shared by writes to them, exclusive while one is copied.
    LogAreas,
    /// RAID: logging stripes that are to be written soon.
    StripesAhead,
    /// RAID: appending to the stripe log.
    StripeLog,
    /// RAID: writing blocks of a disk's region map.
    RegionMapWrite,

    // Never held while anything waits.
    /// M-host: addresses of the front ends.
    Endpoints,
    /// M-host: sources of metrics.
    MetricSources,
    /// M-host: progress of running jobs.
    JobProgress,
    /// REST: connections of the listener.
    RestConnections,
    /// REST: who reads a connection.
    RestReader,
    /// NFS: who has mounted what.
    MountList,
    /// RPC: a shard of the reply cache.
    ReplyCache,
    /// RPC: connections of the server.
    Connections,
    /// RPC: who waits for memory.
    BudgetWaiters,
    /// Storage manager: which volumes there are.
    VolumeTable,
    /// Storage manager: the state of one volume.
    Volume,
    /// Storage manager: what the check found.
    CheckStatus,
    /// Storage manager: how far the check is.
    CheckProgress,
    /// Storage manager: blocks that are being loaded.
    Loading,
    /// Storage manager: when tetrises of a consistency point were sent and written, the first failure.
    PointWrites,
    /// Storage manager: tetrises that are on the disks before earlier ones.
    TetrisesWritten,
    /// Storage manager: why it stopped.
    StopReason,
    /// Storage manager: faults for the administrator.
    Faults,
    /// Storage manager: counters of operations.
    OpCounters,
    /// Storage manager: the clock of the buffer cache.
    CacheClock,
    /// NV log: its state.
    Nvlog,
    /// NV log: a round for the writer to see through.
    NvlogHanded,
    /// RAID: columns modified in the flush interval.
    StripeMasks,
    /// RAID: the root as it stands.
    Root,
    /// RAID: disks whose place another one took.
    Replaced,
    /// RAID: state of the scrub.
    Scrub,
    /// RAID: what the scrub found.
    ScrubFindings,
    /// RAID: groups with a rebuild.
    Rebuilding,
    /// RAID: events for the administrator.
    RaidEvents,
    /// RAID: the aggregate at this moment.
    View,
    /// RAID: the cache of checksum blocks.
    StampCache,
    /// RAID: the stamps of one region.
    RegionStamps,
    /// RAID: regions without durable stamps before a crash.
    FreshStamps,
    /// RAID: the map of written regions of one disk.
    RegionMap,
    /// RAID: room promised in the stripe log.
    StripeLogRoom,
    /// RAID: writers that wait for the stripe log.
    StripeLogQueue,
    /// Disk driver: requests on their way to the thread that submits them.
    DiskQueue,
    /// RPC: the waker of a call on its connection; whoever holds whatever may wake it.
    CallWaker,
    /// World: the source of chance.
    Entropy,
    /// Block buffers: the common pool.
    BlockPool,
}

/// A lock that a thread holds for a few steps.
pub struct Mutex<T> {
    key: Key,
    inner: imp::Mutex<T>,
}

/// The value of a [`Mutex`] while it is locked.
pub struct Guard<'l, T> {
    // Dropped in this order: the lock is free before its rank is.
    inner: imp::MutexGuard<'l, T>,
    held: Held,
}

/// A holder panicked; the guard is inside.
pub struct Poisoned<'l, T>(pub Guard<'l, T>);

impl<T> Mutex<T> {
    /// A lock of this rank.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { key: Key::new(rank, 0), inner: imp::Mutex::new(value) }
    }
    /// Locks, whether or not a holder panicked: for values that no panic leaves half changed.
    pub fn lock(&self) -> Guard<'_, T> {
        match self.lock_sound() {
            Ok(guard) | Err(Poisoned(guard)) => guard,
        }
    }
    /// Locks, and says whether a holder panicked.
    ///
    /// # Errors
    /// [`Poisoned`]; it is locked all the same.
    pub fn lock_sound(&self) -> Result<Guard<'_, T>, Poisoned<'_, T>> {
        let held = Held::by_thread(self.key);
        match self.inner.lock() {
            Ok(inner) => Ok(Guard { inner, held }),
            Err(poisoned) => Err(Poisoned(Guard { inner: poisoned.into_inner(), held })),
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}
impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// A lock for a thread that only looks, with others, or changes, alone.
pub struct RwLock<T> {
    key: Key,
    inner: imp::RwLock<T>,
}

/// The value of a [`RwLock`], shared.
pub struct ReadGuard<'l, T> {
    inner: imp::RwLockReadGuard<'l, T>,
    _held: Held,
}

/// The value of a [`RwLock`], alone.
pub struct WriteGuard<'l, T> {
    inner: imp::RwLockWriteGuard<'l, T>,
    _held: Held,
}

impl<T> RwLock<T> {
    /// A lock of this rank.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { key: Key::new(rank, 0), inner: imp::RwLock::new(value) }
    }
    /// Locks for looking, whether or not a holder panicked.
    pub fn read(&self) -> ReadGuard<'_, T> {
        let held = Held::by_thread(self.key);
        let inner = self.inner.read().unwrap_or_else(|e| e.into_inner());
        ReadGuard { inner, _held: held }
    }
    /// Locks for changing, whether or not a holder panicked.
    pub fn write(&self) -> WriteGuard<'_, T> {
        let held = Held::by_thread(self.key);
        let inner = self.inner.write().unwrap_or_else(|e| e.into_inner());
        WriteGuard { inner, _held: held }
    }
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}
impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}
impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// Waits for a change of what a [`Mutex`] guards. For threads of their own (disk drivers) only.
#[derive(Default)]
pub struct Condvar(imp::Condvar);

impl Condvar {
    /// Nobody waits yet.
    pub const fn new() -> Self {
        Self(imp::Condvar::new())
    }
    /// Gives the lock up until somebody notifies. The thread keeps the rank: it does nothing else.
    pub fn wait<'l, T>(&self, guard: Guard<'l, T>) -> Guard<'l, T> {
        let Guard { inner, held } = guard;
        Guard { inner: self.0.wait(inner).unwrap_or_else(|e| e.into_inner()), held }
    }
    /// As [`Self::wait`], for `limit` at the most.
    pub fn wait_timeout<'l, T>(
        &self,
        guard: Guard<'l, T>,
        limit: core::time::Duration,
    ) -> Guard<'l, T> {
        let Guard { inner, held } = guard;
        let waited = self.0.wait_timeout(inner, limit);
        Guard { inner: waited.unwrap_or_else(|e| e.into_inner()).0, held }
    }
    /// Wakes one.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }
    /// Wakes all.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A lock of a value for the whole process, under which nothing else happens: the interleaving
/// tests leave it alone, since it outlives their executions.
pub struct Leaf<T> {
    key: Key,
    inner: std::sync::Mutex<T>,
}

/// The value of a [`Leaf`].
pub struct LeafGuard<'l, T> {
    inner: std::sync::MutexGuard<'l, T>,
    _held: Held,
}

impl<T> Leaf<T> {
    /// A lock of this rank.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { key: Key::new(rank, 0), inner: std::sync::Mutex::new(value) }
    }
    /// Locks, whether or not a holder panicked.
    pub fn lock(&self) -> LeafGuard<'_, T> {
        let held = Held::leaf(self.key);
        LeafGuard { inner: self.inner.lock().unwrap_or_else(|e| e.into_inner()), _held: held }
    }
}

impl<T> Deref for LeafGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}
impl<T> DerefMut for LeafGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(all(test, debug_assertions, not(feature = "shuttle")))]
mod tests;
