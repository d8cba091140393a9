//! The log as the storage manager holds it, and its writer task.
//!
//! Layer: inside `cairn-wafl-nvlog`, on top of the state machine. One lock guards the state; it
//! is never held while anything waits.
//!
//! # Who writes
//! Whoever waits for a record starts the next round itself, unless one is under way: all that was
//! appended before it goes along, and where the areas are memory the round is over at once, without
//! another thread. A round that is not over lies in a slot ([`Handed`]), and somebody looks after it:
//! whoever started it as long as nobody else waits for anything of the log (no other thread is woken
//! then), else the writer task, which goes on with what was appended meanwhile. The round stays in the
//! slot between two looks at it, so that the writer can take it at any moment: the future of a waiter
//! may be dropped, or not be polled until another one that waits for the same round is done. One round at
//! a time: [`State::next_round`] gives none while another is not completed.
//!
//! # Start
//! ```text
//! recover ──► replay ──► Nvlog::open ──► commit a root with position() ──► begin().await
//! ```
//! Nothing is written before `begin`, so what was recovered stays readable until the root that
//! contains its effects is committed. That root says "not opened yet"; a second commit after
//! `begin` (or the first ordinary one) makes the loss of all copies detectable.

use core::future::{Future, poll_fn, ready};
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use std::sync::{Arc, Weak};

use cairn_raid_api::{LogAreaError, LogStore};
use cairn_sys::lock::atomic::{AtomicUsize, Ordering};
use cairn_sys::lock::{Guard, Mutex, Poisoned, Rank};
use cairn_sys::{Block, BoxFuture, World, mutant};
use cairn_units::{AggregateUuid, Blocks, Lsn};
use tokio::sync::{Notify, watch};
use tracing::Instrument;
use tracing::instrument::Instrumented;

use crate::format::{BatchHead, Encoded, LogId, encode};
use crate::join::JoinAll;
use crate::recover::Recovered;
use crate::state::{CopyResults, LogStatus, Round, RoundBatch, State, SwitchReason};
use crate::{
    COPIES_MAX, HALF_BLOCKS_MIN, HalfToken, LogError, LogPosition, Record, ReserveError,
    SwitchError,
};

/// How to run the log.
#[derive(Clone, Copy, Debug)]
pub struct NvlogOptions {
    /// The aggregate that it belongs to.
    pub aggregate: AggregateUuid,
    /// Copies to keep, 1..=[`COPIES_MAX`]; fewer are kept when there are fewer healthy areas.
    pub copies: usize,
    /// The number of the next record: above all that were recovered or are in the root record.
    pub next_lsn: Lsn,
}

/// The NV log of one aggregate. Dropping it stops the writer after the round under way.
pub struct Nvlog {
    shared: Arc<Shared>,
    /// Closed when the writer has ended.
    writer: watch::Receiver<()>,
}

struct Shared {
    store: Arc<dyn LogStore>,
    log: LogId,
    /// Copies of the halves that are opened from now on.
    copies: AtomicUsize,
    state: Mutex<State>,
    handed: Mutex<Handed>,
    /// There may be something to write.
    work: Notify,
    /// Room or phase may have changed.
    changed: Notify,
    /// A switch has become due, or the log has failed. Not every change: the storage manager always
    /// waits for this, on another thread, and a wake-up costs as much as a record.
    due: Notify,
    progress: watch::Sender<Progress>,
}

/// Rounds that one who waits runs in one go, where they are over at once.
const ROUNDS_AT_ONCE_MAX: usize = 4;

/// A round whose writes are on their way.
struct Started {
    round: Round,
    writes: Instrumented<JoinAll<Result<(), LogAreaError>>>,
}

/// The round under way that its starter did not see the end of, and who waits.
#[derive(Default)]
struct Handed {
    /// None while somebody looks at it.
    round: Option<Started>,
    /// The only one who waits looks after the round; else the writer does.
    kept: bool,
    /// Those who wait for the log: for records, for room, for a half. Who waits for a switch to become
    /// due ([`Nvlog::wants_switch`]) always does, and does not count.
    waiting: usize,
}

/// One who waits for the log.
struct Waiting(Weak<Shared>);

impl Waiting {
    fn new(shared: &Arc<Shared>) -> Self {
        let mut handed = shared.handed.lock();
        handed.waiting += 1;
        // Whoever keeps a round does not hold up others.
        let call = !mutant("kept-round-not-given-up") && core::mem::take(&mut handed.kept);
        drop(handed);
        if call {
            shared.work.notify_one();
        }
        Self(Arc::downgrade(shared))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(shared) = self.0.upgrade() else { return };
        let mut handed = shared.handed.lock();
        handed.waiting -= 1;
        // Nobody else waited, so it was this one that kept the round.
        let call = core::mem::take(&mut handed.kept);
        drop(handed);
        if call && !mutant("kept-round-forgotten") {
            shared.work.notify_one();
        }
    }
}

/// Fails the log when a round does not come to its end: nobody else would end it.
struct Unfinished<'s>(Option<&'s Shared>);

impl Unfinished<'_> {
    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            shared.lock().fail(LogError::Stopped);
            shared.publish();
            shared.work.notify_one();
        }
    }
}

#[derive(Clone, Debug)]
struct Progress {
    durable: Lsn,
    failed: Option<LogError>,
}

/// Room in the log that is set aside; what is not used goes back when it is dropped.
pub struct Reservation {
    shared: Arc<Shared>,
    blocks: Blocks,
}

impl Reservation {
    /// Worst-case blocks left.
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.blocks > Blocks::new(0) {
            self.shared.lock().unreserve(self.blocks);
            self.shared.changed.notify_waiters();
        }
    }
}

impl Shared {
    fn lock(&self) -> Guard<'_, State> {
        match self.state.lock_sound() {
            Ok(state) => state,
            // A broken invariant panicked half-way through a change: nothing may be acknowledged.
            Err(Poisoned(mut state)) => {
                state.fail(LogError::Stopped);
                state
            }
        }
    }

    /// Tells everybody who waits how the state is now.
    fn publish(&self) {
        let (durable, failed) = {
            let state = self.lock();
            self.tell_due(&state);
            (state.durable(), state.failed().cloned())
        };
        // Who looked at the state before may come here later: what was told stays told.
        self.progress.send_if_modified(|told| {
            if mutant("older-progress-told-later") {
                *told = Progress { durable, failed };
                return true;
            }
            let news = durable > told.durable || (failed.is_some() && told.failed.is_none());
            told.durable = told.durable.max(durable);
            told.failed = told.failed.take().or(failed);
            news
        });
        self.changed.notify_waiters();
    }

    /// Tells who waits for [`Nvlog::wants_switch`] if one is due. Asked after every change that can make
    /// one due: room set aside or refused, a record, the end of a round, a half opened or closed, a failure.
    fn tell_due(&self, state: &State) {
        let due = state.wants_switch().is_some() || state.failed().is_some();
        if due && !mutant("due-switch-not-told") {
            self.due.notify_waiters();
        }
    }

    /// Starts the next round, unless there is nothing to write or one is under way.
    fn start(&self) -> Option<Started> {
        let round = self.lock().next_round()?;
        if mutant("log-acknowledged-before-stable") {
            self.progress.send_replace(Progress { durable: round.last(), failed: None });
        }
        let span = tracing::debug_span!(
            "log_round",
            last_lsn = round.last().get(),
            records = round.records()
        );
        let writes = self.writes_of(&round).instrument(span);
        Some(Started { round, writes })
    }

    /// Writes of all batches of a round to all their copies.
    fn writes_of(&self, round: &Round) -> JoinAll<Result<(), LogAreaError>> {
        let mut writes: Vec<BoxFuture<Result<(), LogAreaError>>> = Vec::new();
        for batch in &round.batches {
            for (area, (at, blocks)) in batch.areas.iter().zip(self.blocks_of(batch)) {
                // A column may have nothing of a batch.
                let nothing = blocks.is_empty();
                let write = || self.store.write_stable(*area, batch.area_block + at, blocks);
                writes.push(if nothing { Box::pin(ready(Ok(()))) } else { write() });
            }
        }
        JoinAll::new(writes)
    }

    /// What each area of a batch gets, and how far into the batch.
    fn blocks_of(&self, batch: &RoundBatch) -> Vec<(u64, Vec<Block>)> {
        let of = |head: &BatchHead| encode(self.log, head, &batch.records);
        let Some(columns) = batch.head.spread else {
            let Encoded { descriptors: mut blocks, mut payload } = of(&batch.head);
            blocks.append(&mut payload);
            return vec![(0, blocks); batch.areas.len()];
        };
        if batch.head.batch == 0 {
            // Says to each area which column it is.
            let opening = |column| of(&BatchHead { column: Some(column), ..batch.head });
            let columns = 0..columns.data + columns.parity;
            return columns.map(|column| (0, opening(column).descriptors)).collect();
        }
        let Encoded { descriptors, payload } = of(&batch.head);
        let runs = 0..usize::from(columns.data);
        let runs: Vec<&[Block]> = runs.map(|c| &payload[columns.run(c, payload.len())]).collect();
        let parity = self.store.spread_parity(&runs, usize::from(columns.parity));
        let runs = runs.into_iter().map(<[Block]>::to_vec).chain(parity);
        let copies = usize::try_from(batch.head.copies).unwrap_or(usize::MAX);
        let of_area = |(n, mut run): (usize, Vec<Block>)| {
            if n >= copies {
                return (descriptors.len() as u64, run);
            }
            let mut blocks = descriptors.clone();
            blocks.append(&mut run);
            (0, blocks)
        };
        runs.enumerate().map(of_area).collect()
    }

    /// Takes the results of a round's writes.
    fn end(&self, round: &Round, results: Vec<Result<(), LogAreaError>>) {
        let mut results = results.into_iter();
        let of_batch = |areas: usize| results.by_ref().take(areas).collect();
        let results: Vec<CopyResults> =
            round.batches.iter().map(|batch| batch.areas.len()).map(of_batch).collect();
        self.lock().complete(round, &results);
        self.publish();
    }

    /// Somebody waits: starts what there is to write, unless whoever is at it goes on with it. Whether the
    /// caller is to look after the round ([`Self::poll_kept`]).
    fn hurry(&self) -> bool {
        for _ in 0..ROUNDS_AT_ONCE_MAX {
            let unfinished = Unfinished(Some(self));
            let started = self.start();
            let Some(mut started) = started else {
                unfinished.finished();
                return false;
            };
            let mut nobody = Context::from_waker(Waker::noop());
            match Pin::new(&mut started.writes).poll(&mut nobody) {
                Poll::Ready(results) => self.end(&started.round, results),
                Poll::Pending => {
                    let mut handed = self.handed.lock();
                    assert!(handed.round.is_none() && !handed.kept, "one round at a time");
                    handed.round = Some(started);
                    handed.kept = handed.waiting == 1;
                    let kept = handed.kept;
                    drop(handed);
                    unfinished.finished();
                    if !kept {
                        self.call_writer();
                    }
                    return kept;
                }
            }
            unfinished.finished();
        }
        self.call_writer();
        false
    }

    /// There is something for the writer, who takes over a round that is kept.
    fn call_writer(&self) {
        self.handed.lock().kept = false;
        if !mutant("handed-round-not-told") {
            self.work.notify_one();
        }
    }

    /// Looks at the round that the caller keeps; `Ready` when it is not, or no longer, its to keep.
    fn poll_kept(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut handed = self.handed.lock();
        if !handed.kept {
            return Poll::Ready(());
        }
        let Some(mut started) = handed.round.take() else {
            unreachable!("nobody else looks at it")
        };
        drop(handed);
        let unfinished = Unfinished(Some(self));
        let looked = Pin::new(&mut started.writes).poll(cx);
        match looked {
            Poll::Ready(results) => {
                self.handed.lock().kept = false;
                self.end(&started.round, results);
                // What was appended meanwhile.
                if let Some(next) = self.start() {
                    self.handed.lock().round = Some(next);
                    self.call_writer();
                }
                unfinished.finished();
                Poll::Ready(())
            }
            Poll::Pending => {
                let mut handed = self.handed.lock();
                handed.round = Some(started);
                let kept = handed.kept;
                drop(handed);
                unfinished.finished();
                if kept {
                    return Poll::Pending;
                }
                // Somebody called the writer meanwhile, who found nothing.
                self.work.notify_one();
                Poll::Ready(())
            }
        }
    }

    /// Waits until `ready` gives something; it is asked after every change.
    async fn wait<T>(&self, ready: impl FnMut(&mut State) -> Option<T> + Send) -> T {
        self.wait_for(&self.changed, ready).await
    }

    /// Waits until `ready` gives something; it is asked whenever `changed` tells of something.
    async fn wait_for<T>(
        &self,
        changed: &Notify,
        mut ready: impl FnMut(&mut State) -> Option<T> + Send,
    ) -> T {
        loop {
            let early =
                mutant("log-looks-before-it-listens").then(|| ready(&mut self.lock())).flatten();
            let mut told = pin!(changed.notified());
            // Registered before the state is looked at, so that no change slips through between.
            let _already = told.as_mut().enable();
            let look = !mutant("log-looks-before-it-listens");
            if let Some(value) = early.or_else(|| look.then(|| ready(&mut self.lock())).flatten()) {
                return value;
            }
            told.await;
        }
    }
}

impl Nvlog {
    /// A log on the areas of `store`, numbered on from `recovered`. Writes nothing; see the module
    /// for what comes before [`Self::begin`].
    ///
    /// # Errors
    /// [`SwitchError::AreaTooSmall`].
    ///
    /// # Panics
    /// When `options.copies` is out of range or `options.next_lsn` is not above the recovered
    /// records: a fault of the caller.
    pub fn open(
        world: &World,
        store: Arc<dyn LogStore>,
        options: NvlogOptions,
        recovered: &Recovered,
    ) -> Result<Self, SwitchError> {
        assert!((1..=COPIES_MAX).contains(&options.copies), "1 to {COPIES_MAX} copies");
        assert!(options.next_lsn >= recovered.next_lsn(), "record numbers never come again");
        let area_blocks = store.area_blocks();
        if area_blocks.get() / 2 < HALF_BLOCKS_MIN {
            return Err(SwitchError::AreaTooSmall(area_blocks));
        }
        let epoch = world.entropy.next_u64();
        let state = State::new(epoch, area_blocks, recovered.next_half(), options.next_lsn);
        let progress = Progress { durable: state.durable(), failed: None };
        let shared = Arc::new(Shared {
            store,
            log: LogId { aggregate: options.aggregate, epoch },
            copies: AtomicUsize::new(options.copies),
            state: Mutex::new(Rank::Nvlog, state),
            handed: Mutex::new(Rank::NvlogHanded, Handed::default()),
            work: Notify::new(),
            changed: Notify::new(),
            due: Notify::new(),
            progress: watch::Sender::new(progress),
        });
        let (end, ended) = watch::channel(());
        let rounds = write_rounds(shared.clone());
        let task = async move {
            rounds.await;
            // Told when the writer has let go of the store.
            drop(end);
        };
        world.spawn.spawn_apart("nvlog writer", Box::pin(task));
        Ok(Self { shared, writer: ended })
    }

    /// What the next root record says about the log (see [`Self::settle`] for the ordinary case).
    pub fn position(&self) -> LogPosition {
        self.shared.lock().position()
    }

    /// Opens the first half; a root record with [`Self::position`] is committed. From here on
    /// there is room.
    ///
    /// # Errors
    /// No area can be written; the log failed.
    ///
    /// # Panics
    /// When it has begun already.
    pub async fn begin(&self) -> Result<HalfToken, SwitchError> {
        assert!(!self.shared.lock().has_begun(), "a log begins once");
        let half = self.open_next()?;
        let shared = &self.shared;
        let _waiting = Waiting::new(shared);
        shared
            .wait(|state| match state.failed() {
                Some(failed) => Some(Err(failed.clone().into())),
                None => state.is_announced().then_some(Ok(half)),
            })
            .await
    }

    fn open_next(&self) -> Result<HalfToken, SwitchError> {
        self.shared.lock().may_switch()?;
        // Not under the lock: the store has locks of its own.
        let wanted = self.shared.copies.load(Ordering::Acquire);
        let copies = self.shared.store.choose(wanted);
        // Fewer copies than wanted cover fewer losses than a spread would be made for.
        let spread = (copies.len() == wanted).then(|| self.shared.store.spread(wanted)).flatten();
        if copies.is_empty() {
            return Err(SwitchError::NoLogDevice);
        }
        let mut state = self.shared.lock();
        state.may_switch()?;
        let half = state.open_half(copies, spread);
        drop(state);
        self.shared.call_writer();
        self.shared.publish();
        Ok(half)
    }

    /// How many copies to keep of the halves that are opened from now on.
    ///
    /// # Panics
    /// When `copies` is out of range: a fault of the caller.
    pub fn set_copies(&self, copies: usize) {
        assert!((1..=COPIES_MAX).contains(&copies), "1 to {COPIES_MAX} copies");
        self.shared.copies.store(copies, Ordering::Release);
    }

    /// The newest half.
    pub fn current(&self) -> HalfToken {
        self.shared.lock().current()
    }

    /// Largest reservation that a half can ever give; larger operations must be split.
    pub fn capacity(&self) -> Blocks {
        self.shared.lock().capacity()
    }

    /// Worst-case blocks that could be reserved now.
    pub fn room(&self) -> Blocks {
        self.shared.lock().room()
    }

    /// Sets room aside (see [`crate::record_blocks`]), `None` when there is too little now.
    ///
    /// # Errors
    /// More than a half holds; the log failed.
    pub fn reserve(&self, blocks: Blocks) -> Result<Option<Reservation>, ReserveError> {
        let mut state = self.shared.lock();
        let granted = state.reserve(blocks)?;
        self.shared.tell_due(&state);
        drop(state);
        Ok(granted.then(|| Reservation { shared: self.shared.clone(), blocks }))
    }

    /// Sets room aside, waits for it if need be.
    ///
    /// # Errors
    /// More than a half holds; the log failed.
    pub async fn reserve_or_wait(&self, blocks: Blocks) -> Result<Reservation, ReserveError> {
        if let Some(reservation) = self.reserve(blocks)? {
            return Ok(reservation);
        }
        let shared = &self.shared;
        let _waiting = Waiting::new(shared);
        shared
            .wait(|state| {
                let granted = state.reserve(blocks);
                shared.tell_due(state);
                match granted {
                    Ok(false) => None,
                    Ok(true) => Some(Ok(Reservation { shared: shared.clone(), blocks })),
                    Err(error) => Some(Err(error)),
                }
            })
            .await
    }

    /// Appends a record to `half`, with room from `reservation`. Does not wait and cannot fail;
    /// the record is stable when [`Self::durable`] says so. It is written when somebody waits for it or
    /// for a later one, with the next round, or when its half is closed.
    ///
    /// # Panics
    /// When the reservation is too small, the record too large, or the half not open: broken
    /// invariants of the caller.
    pub fn append(&self, half: HalfToken, reservation: &mut Reservation, record: Record) -> Lsn {
        assert!(Arc::ptr_eq(&self.shared, &reservation.shared), "a reservation in this log");
        let mut state = self.shared.lock();
        let lsn = state.append(half, &mut reservation.blocks, record);
        self.shared.tell_due(&state);
        lsn
    }

    /// Completes when all records up to `lsn` are stable on all live copies.
    ///
    /// # Errors
    /// The log failed: this and everything not yet acknowledged never will be.
    pub fn durable(&self, lsn: Lsn) -> impl Future<Output = Result<(), LogError>> + Send + 'static {
        let mut progress = self.shared.progress.subscribe();
        let shared = Arc::downgrade(&self.shared);
        async move {
            let (mut waiting, mut keeps) = (None, false);
            if progress.borrow().durable < lsn
                && let Some(shared) = shared.upgrade()
            {
                waiting = Some(Waiting::new(&shared));
                keeps = shared.hurry();
            }
            // What this lends is given back before anything else is locked.
            let mut reached = pin!(async {
                match progress.wait_for(|p| p.durable >= lsn || p.failed.is_some()).await {
                    Ok(p) if p.durable >= lsn => Ok(()),
                    Ok(p) => Err(p.failed.clone().unwrap_or(LogError::Stopped)),
                    Err(_) => Err(LogError::Stopped),
                }
            });
            let reached = poll_fn(|cx| {
                let told = reached.as_mut().poll(cx);
                if told.is_pending() && keeps {
                    keeps = shared.upgrade().is_some_and(|s| s.poll_kept(cx).is_pending());
                    return if keeps { Poll::Pending } else { reached.as_mut().poll(cx) };
                }
                told
            });
            let answer = reached.await;
            drop(waiting);
            answer
        }
    }

    /// Opens the next half on fresh areas: the storage manager's freeze begins. Both halves are
    /// open until [`Self::close_half`].
    ///
    /// # Errors
    /// The other half is still in use; no area can be written; the log failed.
    pub fn switch_half(&self) -> Result<HalfToken, SwitchError> {
        self.open_next()
    }

    /// All volumes are frozen: nobody appends to `old` any more.
    ///
    /// # Panics
    /// When `old` is the newest half or not in use.
    pub fn close_half(&self, old: HalfToken) {
        self.shared.lock().close_half(old);
        self.shared.call_writer();
        self.shared.publish();
    }

    /// Waits until all records of the closed half `old` are stable and its successor can be found
    /// after a crash; gives the position for the root record that does not need `old` any more.
    ///
    /// # Errors
    /// The log failed.
    pub async fn settle(&self, old: HalfToken) -> Result<LogPosition, LogError> {
        let _waiting = Waiting::new(&self.shared);
        self.shared
            .wait(|state| match state.failed() {
                Some(failed) => Some(Err(failed.clone())),
                None => state.is_settled(old).then(|| Ok(state.position())),
            })
            .await
    }

    /// The root record with [`Self::settle`]'s position is committed: the slot of `old` is free.
    ///
    /// # Panics
    /// When `old` was not closed and settled.
    pub fn release_half(&self, old: HalfToken) {
        self.shared.lock().release_half(old);
        self.shared.publish();
    }

    /// Completes when a consistency point should be started to switch halves, at once if it is
    /// due already.
    ///
    /// # Errors
    /// The log failed.
    pub async fn wants_switch(&self) -> Result<SwitchReason, LogError> {
        self.shared
            .wait_for(&self.shared.due, |state| match state.failed() {
                Some(failed) => Some(Err(failed.clone())),
                None => state.wants_switch().map(Ok),
            })
            .await
    }

    /// How the log is.
    pub fn status(&self) -> LogStatus {
        self.shared.lock().status()
    }

    /// Stops: nothing is acknowledged from here on. The storage manager drains first.
    pub fn stop(&self) {
        self.shared.lock().fail(LogError::Stopped);
        self.shared.publish();
        self.shared.call_writer();
    }

    /// Completes when the writer has ended, after [`Self::stop`] or a failure: it uses the store no
    /// more, and no thread does on its behalf.
    pub async fn writer_ended(&self) {
        // Nothing is ever sent; an error says that the writer's end of it is gone.
        while self.writer.clone().changed().await.is_ok() {}
    }
}

impl Drop for Nvlog {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Wakes whoever waits when the writer ends in any way, a panic included.
struct WriterEnd(Arc<Shared>);

impl Drop for WriterEnd {
    fn drop(&mut self) {
        self.0.lock().fail(LogError::Stopped);
        self.0.publish();
    }
}

/// The writer task: one round at a time, until the log fails or is stopped.
async fn write_rounds(shared: Arc<Shared>) {
    let _end = WriterEnd(shared.clone());
    let mut losses = 0;
    loop {
        let handed = {
            let mut handed = shared.handed.lock();
            // Taken from whoever keeps it, or, if that one is looking at it now, to be given back.
            handed.kept = false;
            handed.round.take()
        };
        let Some(Started { round, writes }) = handed.or_else(|| shared.start()) else {
            let failed = shared.lock().failed().cloned();
            if let Some(failed) = failed {
                tracing::info!(%failed, "the log's writer ends");
                return;
            }
            if let Some(seen) = work_or_loss(&shared, losses).await {
                losses = seen;
                let areas = shared.store.areas();
                shared.lock().keep_areas(&areas);
                shared.publish();
            }
            continue;
        };
        let results = writes.await;
        shared.end(&round, results);
    }
}

/// Waits until there is work (`None`), or until more than `seen` areas are lost: a copy that
/// nobody writes to is missed all the same.
async fn work_or_loss(shared: &Shared, seen: u64) -> Option<u64> {
    let mut work = pin!(shared.work.notified());
    let mut loss = shared.store.loss_after(seen);
    poll_fn(|cx| {
        if work.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        loss.as_mut().poll(cx).map(Some)
    })
    .await
}
