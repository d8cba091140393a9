//! The seeded executor: tasks, virtual time, the digest of what happened, and the power switch.
//!
//! Layer: simulator. One thread polls; the state sits behind mutexes only because the seams ask
//! for `Send`. Lock order: a medium, then the core, then the ready list; callbacks and polls run
//! with none of them held.
//!
//! Task: spawn → ready → (picked by the seed) polled → waits → woken → ready … → ends.

use core::future::Future;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use cairn_sys::lock::scope;
use cairn_sys::{BoxFuture, Clock, Entropy, Spawn, World};
use cairn_units::{MonoTime, WallTime};

use crate::disk::{CutPolicy, SimDisk, SimDiskConfig};
use crate::medium::Medium;
use crate::rng::{Rng, mix};

/// Polls without virtual time passing, after which the world says that it runs in circles.
const POLLS_WITHOUT_TIME_MAX: u64 = 20_000_000;
/// The future that `block_on` was given.
const MAIN: u64 = 0;
/// Where virtual time begins, so that "an hour ago" exists.
const START_NANOS: u64 = 3_600_000_000_000;
/// Wall clock at the start: 2026-01-01T00:00:00Z.
const START_WALL_NANOS: i64 = 1_767_225_600_000_000_000;

/// What happened, for the digest.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    Spawn = 1,
    Poll,
    Time,
    Entropy,
    DiskRead,
    DiskWrite,
    DiskWriteStable,
    DiskFlush,
    DiskDiscard,
    DiskDone,
    PowerCut,
    Kept,
}

enum Timer {
    Wake(Waker),
    Call(Box<dyn FnOnce() + Send>),
}

/// Where a task or a sleep belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The machine under test: gone with its power.
    Machine,
    /// The rest of the world: clients, cables, people.
    Outside,
}

struct Slot {
    name: &'static str,
    side: Side,
    future: Option<BoxFuture<()>>,
    waker: Arc<TaskWaker>,
}

struct Core {
    now: u64,
    wall_offset: i64,
    rng: Rng,
    next_task: u64,
    tasks: BTreeMap<u64, Slot>,
    timers: BTreeMap<(u64, u64), (Side, Timer)>,
    timer_seq: u64,
    digest: u64,
    events: u64,
    polls_without_time: u64,
    media: Vec<Arc<Medium>>,
    orders: u64,
    cut_at: Option<u64>,
    power_lost: bool,
    running: bool,
}

/// Tasks that can run. Sorted, so that the seed's choice does not depend on the order in which they
/// were woken: tokio's `watch` wakes its waiters in an order of its own making.
type ReadyList = Arc<Mutex<BTreeSet<u64>>>;

/// What tasks, clocks and disks share.
pub(crate) struct Inner {
    core: Mutex<Core>,
    ready: ReadyList,
}

struct TaskWaker {
    id: u64,
    queued: AtomicBool,
    ready: ReadyList,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            lock(&self.ready).insert(self.id);
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A failed assertion in a test must not hide behind a second panic about the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    fn event(&mut self, kind: Event, a: u64, b: u64) {
        self.events += 1;
        let word = mix(a ^ mix(b ^ ((kind as u64) << 56)));
        self.digest = mix(self.digest ^ word).wrapping_add(self.events);
    }
    fn add_timer(&mut self, at: u64, side: Side, timer: Timer) -> (u64, u64) {
        self.timer_seq += 1;
        let key = (at, self.timer_seq);
        self.timers.insert(key, (side, timer));
        key
    }
    /// Takes out every task and timer of the machine.
    fn take_machine(&mut self) -> (Vec<Slot>, Vec<Timer>) {
        let tasks = self.tasks.extract_if(.., |_, slot| slot.side == Side::Machine);
        let tasks = tasks.map(|(_, slot)| slot).collect();
        let timers = self.timers.extract_if(.., |_, (side, _)| *side == Side::Machine);
        (tasks, timers.map(|(_, (_, timer))| timer).collect())
    }
}

impl Inner {
    pub(crate) fn event(&self, kind: Event, a: u64, b: u64) {
        lock(&self.core).event(kind, a, b);
    }
    pub(crate) fn now(&self) -> u64 {
        lock(&self.core).now
    }
    pub(crate) fn with_rng<T>(&self, f: impl FnOnce(&mut Rng) -> T) -> T {
        f(&mut lock(&self.core).rng)
    }
    /// Runs `call` after `delay` nanoseconds, outside any task.
    pub(crate) fn call_after(&self, delay: u64, call: impl FnOnce() + Send + 'static) {
        let mut core = lock(&self.core);
        let at = core.now.saturating_add(delay);
        core.add_timer(at, Side::Machine, Timer::Call(Box::new(call)));
    }
    /// Counts a write, discard or flush towards [`SimWorld::cut_power_at`].
    pub(crate) fn count_order(&self) {
        let mut core = lock(&self.core);
        core.orders += 1;
        if core.cut_at.is_some_and(|at| core.orders >= at) {
            core.cut_at = None;
            core.power_lost = true;
        }
    }
    /// Whether the power went off and the executor has not swept up yet.
    pub(crate) fn power_lost(&self) -> bool {
        lock(&self.core).power_lost
    }
}

/// One simulated world. Dropping it drops every task in it.
pub struct SimWorld {
    inner: Arc<Inner>,
    seed: u64,
}

impl SimWorld {
    /// A world whose every chance follows from `seed`.
    pub fn new(seed: u64) -> Self {
        let core = Core {
            now: START_NANOS,
            wall_offset: START_WALL_NANOS,
            rng: Rng::new(mix(seed ^ 0xC0FF_EE00_D15C_0000)),
            next_task: MAIN + 1,
            tasks: BTreeMap::new(),
            timers: BTreeMap::new(),
            timer_seq: 0,
            digest: mix(seed),
            events: 0,
            polls_without_time: 0,
            media: Vec::new(),
            orders: 0,
            cut_at: None,
            power_lost: false,
            running: false,
        };
        let inner = Inner { core: Mutex::new(core), ready: ReadyList::default() };
        Self { inner: Arc::new(inner), seed }
    }

    /// The seed, for messages.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The seams of this world, for the components under test.
    pub fn world(&self) -> World {
        self.seams(Side::Machine)
    }

    /// The seams for what is not the machine under test, and outlives its power: clients, cables.
    pub fn outside(&self) -> World {
        self.seams(Side::Outside)
    }

    fn seams(&self, side: Side) -> World {
        let seams = Arc::new(Seams { inner: self.inner.clone(), side });
        World { clock: seams.clone(), entropy: seams.clone(), spawn: seams }
    }

    /// A new disk of zeros on this world's power supply.
    pub fn disk(&self, config: SimDiskConfig) -> SimDisk {
        let medium = Arc::new(Medium::new(config, self.inner.clone()));
        lock(&self.inner.core).media.push(medium.clone());
        SimDisk::attach(medium)
    }

    /// Nanoseconds of virtual time since the world began.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.inner.now() - START_NANOS)
    }

    /// Digest of everything that happened so far, in order.
    pub fn digest(&self) -> u64 {
        lock(&self.inner.core).digest
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        lock(&self.inner.core).tasks.len()
    }

    /// Moves the wall clock (not the monotonic one).
    pub fn jump_wall_clock(&self, nanos: i64) {
        let mut core = lock(&self.inner.core);
        core.wall_offset = core.wall_offset.saturating_add(nanos);
    }

    /// Numbers for the test itself, from the same seed.
    pub fn random(&self) -> u64 {
        self.inner.with_rng(Rng::next_u64)
    }

    /// Writes, discards and flushes that all disks were given so far.
    pub fn orders(&self) -> u64 {
        lock(&self.inner.core).orders
    }

    /// Cuts the power when the `n`-th write, discard or flush from now on (1 is the next) has
    /// been handed to its disk: that one, like every other unflushed one, may or may not take
    /// effect. Use [`Self::block_on_or_cut`].
    pub fn cut_power_at(&self, n: u64) {
        let mut core = lock(&self.inner.core);
        core.cut_at = Some(core.orders + n.max(1));
    }

    /// Takes back [`Self::cut_power_at`].
    pub fn cancel_cut(&self) {
        lock(&self.inner.core).cut_at = None;
    }

    /// Cuts the power now: every task and every request under way is gone, every disk keeps of
    /// its unflushed writes what the seed says. Disk handles from before answer `Gone`;
    /// see [`SimDisk::reattach`].
    pub fn power_cut(&self) {
        self.power_cut_with(&CutPolicy::Seeded);
    }

    /// [`Self::power_cut`] with the same stated fate for the unflushed writes of every disk.
    pub fn power_cut_with(&self, policy: &CutPolicy) {
        self.stop_machine(|medium| medium.power_cut(policy));
    }

    /// The program dies and the machine stays: every task is gone; what the disks were given
    /// takes effect or not, as the seed says, and stays unflushed in their caches.
    pub fn process_death(&self) {
        self.stop_machine(|medium| medium.process_death());
    }

    fn stop_machine(&self, disks: impl Fn(&Medium)) {
        let (machine, media) = {
            let mut core = lock(&self.inner.core);
            let now = core.now;
            core.event(Event::PowerCut, now, 0);
            core.cut_at = None;
            core.power_lost = true;
            (core.take_machine(), core.media.clone())
        };
        // Destructors may spawn, sleep or write; with the power off none of it takes effect.
        drop(machine);
        for medium in media {
            disks(&medium);
        }
        let leftover = {
            let mut core = lock(&self.inner.core);
            core.power_lost = false;
            let leftover = core.take_machine();
            let tasks = &core.tasks;
            lock(&self.inner.ready).retain(|id| tasks.contains_key(id));
            leftover
        };
        drop(leftover);
    }

    /// Runs the world until `future` ends.
    ///
    /// # Panics
    /// When nothing can happen any more (a deadlock), when tasks run for ever without time
    /// passing, or when the power was cut by [`Self::cut_power_at`].
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self.block_on_or_cut(future) {
            Some(value) => value,
            None => panic!("seed {}: the power was cut in block_on", self.seed),
        }
    }

    /// Runs the world until `future` ends, or until [`Self::cut_power_at`] strikes (`None`).
    ///
    /// # Panics
    /// As [`Self::block_on`], but for the power cut.
    pub fn block_on_or_cut<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(scope(future));
        let waker = self.task_waker(MAIN);
        waker.wake_by_ref();
        let _running = self.enter();
        loop {
            if self.inner.power_lost() {
                self.power_cut();
                return None;
            }
            match self.pick() {
                Some(MAIN) => {
                    waker.queued.store(false, Ordering::SeqCst);
                    let task = Waker::from(waker.clone());
                    if let Poll::Ready(v) = future.as_mut().poll(&mut Context::from_waker(&task)) {
                        if self.inner.power_lost() {
                            continue;
                        }
                        // A wake-up of this call must not reach the next call's future.
                        waker.queued.store(true, Ordering::SeqCst);
                        lock(&self.inner.ready).retain(|id| *id != MAIN);
                        return Some(v);
                    }
                }
                Some(id) => self.poll_task(id),
                None => assert!(self.advance(u64::MAX), "{}", self.deadlock()),
            }
        }
    }

    /// Runs every task that can run now; virtual time stands still.
    pub fn run_until_stalled(&self) {
        let _running = self.enter();
        while let Some(id) = self.pick_unless_cut() {
            self.poll_task(id);
        }
    }

    /// Runs the world for `duration` of virtual time.
    pub fn run_for(&self, duration: Duration) {
        let _running = self.enter();
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let until = self.inner.now().saturating_add(nanos);
        loop {
            match self.pick_unless_cut() {
                Some(id) => self.poll_task(id),
                None if self.inner.power_lost() => break,
                None if self.advance(until) => {}
                None => break,
            }
        }
        let mut core = lock(&self.inner.core);
        core.now = core.now.max(until);
    }

    fn pick_unless_cut(&self) -> Option<u64> {
        if self.inner.power_lost() { None } else { self.pick() }
    }

    fn task_waker(&self, id: u64) -> Arc<TaskWaker> {
        let ready = self.inner.ready.clone();
        Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready })
    }

    fn enter(&self) -> Running<'_> {
        let mut core = lock(&self.inner.core);
        assert!(!core.running, "the world is running already");
        core.running = true;
        Running(&self.inner)
    }

    /// Takes one ready task, chosen by the seed.
    fn pick(&self) -> Option<u64> {
        let mut core = lock(&self.inner.core);
        let mut ready = lock(&self.inner.ready);
        if ready.is_empty() {
            return None;
        }
        let at = core.rng.index(ready.len());
        let id = ready.iter().nth(at).copied()?;
        ready.remove(&id);
        drop(ready);
        core.event(Event::Poll, id, 0);
        core.polls_without_time += 1;
        assert!(
            core.polls_without_time < POLLS_WITHOUT_TIME_MAX,
            "seed {}: tasks run in circles while no time passes",
            self.seed
        );
        Some(id)
    }

    fn poll_task(&self, id: u64) {
        let (mut future, waker) = {
            let mut core = lock(&self.inner.core);
            let Some(slot) = core.tasks.get_mut(&id) else { return };
            slot.waker.queued.store(false, Ordering::SeqCst);
            let Some(future) = slot.future.take() else { return };
            (future, Waker::from(slot.waker.clone()))
        };
        let end = future.as_mut().poll(&mut Context::from_waker(&waker));
        let mut core = lock(&self.inner.core);
        if end.is_ready() {
            core.tasks.remove(&id);
        } else if let Some(slot) = core.tasks.get_mut(&id) {
            slot.future = Some(future);
            return;
        }
        drop(core);
        drop(future);
    }

    /// Jumps to the next timer, if it is not after `until`, and fires it.
    fn advance(&self, until: u64) -> bool {
        let timer = {
            let mut core = lock(&self.inner.core);
            let Some(entry) = core.timers.first_entry() else { return false };
            let (at, _) = *entry.key();
            if at > until {
                return false;
            }
            let (_, timer) = entry.remove();
            if at > core.now {
                core.now = at;
                core.polls_without_time = 0;
                core.event(Event::Time, at, 0);
            }
            timer
        };
        match timer {
            Timer::Wake(waker) => waker.wake(),
            Timer::Call(call) => call(),
        }
        true
    }

    fn deadlock(&self) -> String {
        let core = lock(&self.inner.core);
        let names: Vec<&str> = core.tasks.values().map(|t| t.name).take(20).collect();
        format!("seed {}: nothing can happen any more; tasks waiting: {names:?}", self.seed)
    }
}

impl Drop for SimWorld {
    fn drop(&mut self) {
        // Tasks hold the world that holds them.
        let (tasks, timers) = {
            let mut core = lock(&self.inner.core);
            core.media.clear();
            core.power_lost = true;
            (core::mem::take(&mut core.tasks), core::mem::take(&mut core.timers))
        };
        drop(tasks);
        drop(timers);
    }
}

/// Marks the world as running, also when a test panics.
struct Running<'a>(&'a Inner);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        lock(&self.0.core).running = false;
    }
}

struct Seams {
    inner: Arc<Inner>,
    side: Side,
}

impl Clock for Seams {
    fn monotonic(&self) -> MonoTime {
        MonoTime::new(self.inner.now())
    }
    fn wall(&self) -> WallTime {
        let core = lock(&self.inner.core);
        let passed = i64::try_from(core.now - START_NANOS).unwrap_or(i64::MAX);
        WallTime::new(core.wall_offset.saturating_add(passed))
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let deadline = self.inner.now().saturating_add(nanos);
        Box::pin(Sleep { inner: self.inner.clone(), side: self.side, deadline, key: None })
    }
}

impl Entropy for Seams {
    fn next_u64(&self) -> u64 {
        let mut core = lock(&self.inner.core);
        let value = core.rng.next_u64();
        core.event(Event::Entropy, value, 0);
        value
    }
}

impl Spawn for Seams {
    fn spawn(&self, name: &'static str, task: BoxFuture<()>) {
        let mut core = lock(&self.inner.core);
        let id = core.next_task;
        core.next_task += 1;
        core.event(Event::Spawn, id, 0);
        let ready = self.inner.ready.clone();
        let waker = Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready });
        let slot = Slot {
            name,
            side: self.side,
            future: Some(Box::pin(scope(task))),
            waker: waker.clone(),
        };
        core.tasks.insert(id, slot);
        drop(core);
        waker.wake();
    }
}

struct Sleep {
    inner: Arc<Inner>,
    side: Side,
    deadline: u64,
    key: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let inner = self.inner.clone();
        let mut core = lock(&inner.core);
        if let Some(key) = self.key.take() {
            core.timers.remove(&key);
        }
        if core.now >= self.deadline {
            return Poll::Ready(());
        }
        let timer = Timer::Wake(cx.waker().clone());
        self.key = Some(core.add_timer(self.deadline, self.side, timer));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let timer = lock(&self.inner.core).timers.remove(&key);
            drop(timer);
        }
    }
}
