//! The storage manager: volumes on one aggregate, the log, the cache and the consistency points,
//! behind the CF interface.
//!
//! Layer: top of the storage manager. An operation runs in its caller's task: plan and apply
//! under the volume's lock; for a miss the lock is released, the blocks are loaded, and it runs
//! again. A logged operation then waits for its record, without any lock.
//!
//! Lock order: volume, then log or cache. Nothing awaits while holding one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use cairn_op::Verifier;
use cairn_raid_api::{Aggregate, AggregateAdmin, ReadError, ReadRequest};
use cairn_sys::lock::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use cairn_sys::lock::{AsyncMutex, Guard, Mutex, Poisoned, Rank, RwLock};
use cairn_sys::{BoxFuture, World, mutant};
use cairn_units::{CpCount, Fsid, InodeNo, Pvbn};
use cairn_wafl_nvlog::{HalfToken, LogError, LogPosition, Nvlog, SwitchError};
use tokio::sync::{Notify, watch};
use tracing::Instrument;

use crate::cache::{BLOCKS_WITH_INODE_MAX, Cache, CacheEntry, Outcome};
use crate::check::live::Check;
use crate::counters::Counters;
use crate::cp::{CpError, Engine, Placed, TetrisNo};
use crate::space::TETRIS_STRIPES_MAX;
use crate::tree::Evicted;
use crate::volume::{FileId, Miss, Stop, VolState};

/// Longest time between two consistency points of a dirty aggregate.
pub(crate) const CP_INTERVAL: Duration = Duration::from_secs(10);
/// Entries offered for removal in one go.
const EVICT_BATCH: usize = 64;
/// Rounds of eviction for what one caller brought, so that nobody cleans up for all.
const EVICT_ROUNDS: usize = 8;
/// See [`Inner::stream_max`]: 16 MiB, a few times what a point costs beside its data.
const STREAM_BLOCKS: u64 = 4096;
/// Steps of freeing removed files in one go.
const REAP_STEPS: usize = 32;

/// How to run the storage manager.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    /// Memory for clean and dirty blocks, in blocks; in-core inodes may take a seventh of that beside
    /// it ([`crate::cache_blocks`] divides what there is).
    pub cache_blocks: usize,
    /// Copies of the log; the default is one more than the disks that a group may lose.
    pub log_copies: Option<usize>,
    /// Stripes that are put together at once at the most (tests take few).
    pub tetris_stripes: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self { cache_blocks: 65_536, log_copies: None, tetris_stripes: TETRIS_STRIPES_MAX }
    }
}

/// Why a block could not be loaded.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("RAID gave no answer for {0:?}")]
    NoAnswer(Pvbn),
}

/// One volume and its lock.
pub(crate) struct Volume {
    pub fsid: Fsid,
    /// Its place in the volume table.
    pub slot: u64,
    /// Its record must be written though nothing in it is dirty.
    record_dirty: AtomicBool,
    /// It is being deleted.
    pub gone: AtomicBool,
    /// Changes must wait: a repair is not committed yet.
    pub quiet: AtomicBool,
    state: Mutex<VolState>,
}

impl Volume {
    pub fn new(slot: u64, state: VolState, is_new: bool) -> Self {
        Self {
            fsid: state.fsid,
            slot,
            record_dirty: AtomicBool::new(is_new),
            gone: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            state: Mutex::new(Rank::Volume, state),
        }
    }
    pub fn lock(&self) -> Guard<'_, VolState> {
        match self.state.lock_sound() {
            Ok(state) => state,
            // A panic in the middle of a change: the state is not to be trusted any more.
            Err(Poisoned(_)) => panic!("volume {} was left half changed by a panic", self.fsid),
        }
    }
    pub fn is_new(&self) -> bool {
        self.record_dirty.load(Ordering::Acquire)
    }
    pub fn mark_record(&self) {
        self.record_dirty.store(true, Ordering::Release);
    }
    pub fn set_half(&self, st: &mut VolState, half: Option<HalfToken>) {
        if half.is_some() {
            st.half = half;
        }
        self.record_dirty.store(false, Ordering::Release);
    }
}

/// Keys of blocks that are being loaded.
type Loading = BTreeSet<(Fsid, FileId, crate::tree::Key)>;

pub(crate) struct Inner {
    pub world: World,
    pub aggr: Arc<dyn Aggregate>,
    pub admin: Option<Arc<dyn AggregateAdmin>>,
    /// Copies of the log, when somebody chose; otherwise they follow the parity.
    pub log_copies: Option<usize>,
    pub log: Nvlog,
    pub log_begun: AtomicBool,
    pub volumes: RwLock<BTreeMap<Fsid, Arc<Volume>>>,
    pub engine: AsyncMutex<Engine>,
    pub cache: Cache,
    pub counters: Counters,
    pub verifier: Verifier,
    /// Dirty blocks of all volumes: each needs a free block at the next point.
    pub dirty: AtomicI64,
    /// Blocks placed by the point under way, not yet taken off `free`.
    pub placing: AtomicI64,
    /// Which of the blocks placed by the point under way must stay in memory.
    pub placed: Arc<Placed>,
    /// In-core inodes that are dirty or have dirty blocks, of all volumes.
    dirty_inodes: AtomicI64,
    /// Free blocks of the aggregate after the last point.
    pub free: AtomicU64,
    /// Blocks of the aggregate.
    pub total: AtomicU64,
    pub committed_cp: watch::Sender<u64>,
    /// Points asked for: the number of the first that starts after the request.
    pub cp_wanted: Notify,
    cp_started: AtomicU64,
    /// The point under way while all that is dirty belongs to it; 0 from its cut on.
    cp_open: AtomicU64,
    /// The latest point that somebody waits for, and the latest that was hinted at.
    cp_awaited: AtomicU64,
    cp_hinted: AtomicU64,
    pub stopped: AtomicBool,
    stop_reason: Mutex<Option<String>>,
    loading: Mutex<Loading>,
    loaded: Notify,
    pub reap: Notify,
    pub faults: Mutex<Vec<String>>,
    pub check: Check,
}

/// What [`Inner::new`] needs that is not a default.
pub(crate) struct Parts {
    pub world: World,
    pub aggr: Arc<dyn Aggregate>,
    pub admin: Option<Arc<dyn AggregateAdmin>>,
    pub log_copies: Option<usize>,
    pub log: Nvlog,
    pub engine: Engine,
    pub volumes: BTreeMap<Fsid, Arc<Volume>>,
    pub cache_blocks: usize,
}

impl Inner {
    pub fn new(parts: Parts) -> Self {
        let chance = parts.world.entropy.next_u64();
        let chance = if mutant("verifier-constant") { 1 } else { chance };
        let verifier = Verifier(chance.to_le_bytes());
        let cp = parts.engine.cp.get();
        let (free, total) =
            (parts.engine.space.free_blocks(), parts.aggr.geometry().data_blocks().get());
        Self {
            world: parts.world,
            aggr: parts.aggr,
            admin: parts.admin,
            log_copies: parts.log_copies,
            log: parts.log,
            log_begun: AtomicBool::new(false),
            volumes: RwLock::new(Rank::VolumeTable, parts.volumes),
            engine: AsyncMutex::new(Rank::Engine, parts.engine),
            cache: Cache::new(parts.cache_blocks),
            counters: Counters::default(),
            verifier,
            dirty: AtomicI64::new(0),
            placing: AtomicI64::new(0),
            placed: Arc::new(Placed::new()),
            dirty_inodes: AtomicI64::new(0),
            free: AtomicU64::new(free),
            total: AtomicU64::new(total),
            committed_cp: watch::Sender::new(cp),
            cp_wanted: Notify::new(),
            cp_started: AtomicU64::new(cp),
            cp_open: AtomicU64::new(0),
            cp_awaited: AtomicU64::new(0),
            cp_hinted: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            stop_reason: Mutex::new(Rank::StopReason, None),
            loading: Mutex::new(Rank::Loading, BTreeSet::new()),
            loaded: Notify::new(),
            reap: Notify::new(),
            faults: Mutex::new(Rank::Faults, Vec::new()),
            check: Check::default(),
        }
    }

    pub fn volumes(&self) -> Vec<Arc<Volume>> {
        self.volumes.read().values().cloned().collect()
    }

    pub fn volume(&self, fsid: Fsid) -> Option<Arc<Volume>> {
        self.volumes.read().get(&fsid).cloned()
    }

    /// Dirty blocks that clients may have before they must wait for a consistency point.
    pub fn dirty_max(&self) -> i64 {
        i64::try_from(self.cache.blocks_max() / 2).unwrap_or(i64::MAX).max(512)
    }

    /// Blocks of large unstable writes that are worth a consistency point before anybody asks for
    /// one: they lie on the disks, or nearly, when the COMMIT comes.
    pub fn stream_max(&self) -> u64 {
        STREAM_BLOCKS.min(u64::try_from(self.dirty_max()).unwrap_or(0) / 4)
    }

    /// How much of what only a consistency point turns into memory that can be used again there
    /// is, in parts of what there may be, one hundred at the most: dirty blocks; those together with
    /// the ones that are on their way to the disks; dirty in-core inodes.
    fn strain(&self) -> i64 {
        let dirty = self.dirty.load(Ordering::Acquire);
        let pinned = self.placed.pinned();
        let inodes = self.dirty_inodes.load(Ordering::Acquire);
        let inodes_max = i64::try_from(2 * self.cache.inodes_max()).unwrap_or(i64::MAX);
        let parts = |value: i64, max: i64| value.saturating_mul(100) / max;
        let held = parts(dirty + pinned, self.dirty_max() / 2 * 3);
        parts(dirty, self.dirty_max()).max(held).max(parts(inodes, inodes_max))
    }

    /// Whether clients must wait for a consistency point before they make more dirty.
    pub fn must_drain(&self) -> bool {
        self.strain() > 100
    }

    /// Whether it is time for a consistency point, so that nobody need wait for one.
    pub fn should_drain(&self) -> bool {
        self.strain() > 50
    }

    /// Takes a volume's change of dirty blocks over into the aggregate's count.
    pub fn take_delta(&self, st: &mut VolState) {
        let delta = core::mem::take(&mut st.dirty_delta);
        // Counted twice for a moment rather than not at all: other volumes' operations look at
        // both without a lock ([`Self::allowance`]).
        if delta < 0 && !mutant("placing-counted-late") {
            self.placing.fetch_sub(delta, Ordering::AcqRel);
        }
        if delta != 0 {
            self.dirty.fetch_add(delta, Ordering::AcqRel);
        }
        if delta < 0 && mutant("placing-counted-late") {
            self.placing.fetch_sub(delta, Ordering::AcqRel);
        }
        let dirty_files = st.dirty_files.len();
        let told = core::mem::replace(&mut st.dirty_files_told, dirty_files);
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        if dirty_files != told {
            self.dirty_inodes.fetch_add(signed(dirty_files) - signed(told), Ordering::AcqRel);
        }
        for ino in core::mem::take(&mut st.arrived) {
            self.cache.push(CacheEntry::Inode { fsid: st.fsid, ino });
        }
    }

    /// Blocks that a caller may still dirty. `reserve` stays untouched for deleting and the CP.
    pub fn allowance(&self, reserve: u64) -> u64 {
        // In this order: what moves from `dirty` to `placing` meanwhile is seen in one of them, and
        // `free` is not older than a `placing` that a committed point has set to nothing.
        let dirty = self.dirty.load(Ordering::Acquire);
        let placing = self.placing.load(Ordering::Acquire);
        let spoken_for = u64::try_from(dirty + placing).unwrap_or(0);
        let free = self.free.load(Ordering::Acquire);
        // Every 256 blocks placed need an indirect block, and maps; one in 32 is ample.
        free.saturating_sub(spoken_for + spoken_for / 32 + reserve)
    }

    /// Blocks kept back from ordinary operations.
    pub fn reserve(&self) -> u64 {
        (self.total.load(Ordering::Acquire) / 100).clamp(384, 65_536)
    }

    // ---- loading ----

    /// Loads blocks of a volume. Blocks that somebody else is loading are waited for.
    pub async fn load(&self, volume: &Volume, misses: Vec<Miss>) -> Result<(), LoadError> {
        let take = |misses: Vec<Miss>| -> Vec<Miss> {
            let mut loading = self.loading.lock();
            misses.into_iter().filter(|m| loading.insert((volume.fsid, m.file, m.key))).collect()
        };
        let (early, misses) = match mutant("load-looks-before-it-listens") {
            true => (take(misses), Vec::new()),
            false => (Vec::new(), misses),
        };
        let waiting = self.loaded.notified();
        tokio::pin!(waiting);
        waiting.as_mut().enable();
        let mut mine = take(misses);
        mine.extend(early);
        if mine.is_empty() {
            waiting.await;
            return Ok(());
        }
        let guard = LoadGuard { inner: self, fsid: volume.fsid, misses: mine };
        let requests = guard
            .misses
            .iter()
            .map(|m| ReadRequest { at: m.ptr.pvbn, expect: Some(m.ptr.crc) })
            .collect();
        self.counters.cache_misses.fetch_add(guard.misses.len() as u64, Ordering::Relaxed);
        let answers = self.aggr.read(requests).await;
        let mut failed = None;
        // Before they come in: nobody drives out what they themselves wait for.
        self.evict(0, guard.misses.len());
        let mut entries = Vec::with_capacity(guard.misses.len());
        {
            let mut st = volume.lock();
            for (m, answer) in guard.misses.iter().zip(answers) {
                match answer {
                    Ok(block) => {
                        let Some(tree) = st.tree_mut(m.file) else { continue };
                        if tree.insert_loaded(m.key, m.ptr, block) {
                            let (fsid, file, key) = (volume.fsid, m.file, m.key);
                            entries.push(CacheEntry::Block { fsid, file, key });
                        }
                    }
                    // A block read ahead may have been freed and overwritten meanwhile.
                    Err(error) => {
                        let current = st.tree(m.file).map(|t| t.ptr(m.key));
                        if current == Some(Ok(m.ptr)) {
                            failed.get_or_insert((m.ptr.pvbn, error));
                        }
                    }
                }
            }
            // Under the volume's lock: nobody drives out a block that has no entry yet.
            self.cache.push_all(entries);
        }
        drop(guard);
        match failed {
            None => Ok(()),
            Some((pvbn, error)) => {
                self.fault(format!("volume {}: {pvbn:?} cannot be read: {error}", volume.fsid));
                Err(error.into())
            }
        }
    }

    /// Loads what stopped an operation.
    pub async fn resolve(&self, volume: &Volume, stop: Stop) -> Result<(), Stop> {
        match stop {
            Stop::Miss(misses) => match self.load(volume, misses).await {
                Ok(()) => Ok(()),
                Err(_) => Err(cairn_op::Status::Io.into()),
            },
            failed @ Stop::Fail(_) => Err(failed),
        }
    }

    pub fn fault(&self, text: String) {
        tracing::error!("{text}");
        let mut faults = self.faults.lock();
        if faults.len() >= FAULTS_MAX {
            faults.remove(0);
        }
        faults.push(text);
    }

    // ---- the cache ----

    fn dirty_now(&self) -> usize {
        usize::try_from(self.dirty.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// Removes clean blocks while memory is short for those that were brought in, and for those that
    /// are arriving.
    fn evict(&self, brought: usize, arriving: usize) {
        if !self.cache.is_over(self.dirty_now() + arriving) {
            return;
        }
        let mut sweep = self.cache.sweep();
        // Those used lately are offered twice.
        for _ in 0..EVICT_ROUNDS + 2 * (brought + arriving) / EVICT_BATCH {
            let taken = self.dirty_now() + arriving;
            let entries = self.cache.over(taken, EVICT_BATCH, &mut sweep);
            if entries.is_empty() {
                return;
            }
            self.evict_batch(entries);
        }
    }

    /// Makes room for the blocks that an operation brought into memory, and its inodes: those of
    /// a reader come from blocks that are in memory as well.
    pub fn make_room(&self, blocks: usize) {
        self.evict(blocks, 0);
    }

    pub fn trim_cache(&self) {
        // Each entry may get one more round before it goes.
        for _ in 0..2 * self.cache.blocks_max() / EVICT_BATCH + EVICT_ROUNDS {
            let mut once = self.cache.sweep();
            let entries = self.cache.over(self.dirty_now(), EVICT_BATCH, &mut once);
            if entries.is_empty() {
                return;
            }
            self.evict_batch(entries);
        }
    }

    fn evict_batch(&self, entries: Vec<CacheEntry>) {
        let committed = CpCount::new(*self.committed_cp.borrow());
        let written = self.placed.end();
        let mut outcome = Outcome::default();
        for of_volume in entries.chunk_by(|a, b| a.fsid() == b.fsid()) {
            let volume = of_volume.first().and_then(|entry| self.volume(entry.fsid()));
            let mut st = volume.as_ref().map(|v| v.lock());
            for run in of_volume.chunk_by(CacheEntry::is_before) {
                match &mut st {
                    Some(st) => evict_run(st, run, committed, written, &mut outcome),
                    None => run.iter().for_each(|entry| outcome.add(*entry, Evicted::Gone)),
                }
            }
        }
        self.counters.cache_evictions.fetch_add(outcome.gone, Ordering::Relaxed);
        self.cache.settle(outcome);
    }

    // ---- consistency points ----

    /// Asks for a consistency point; one that is under way need not spare anybody any more.
    pub fn cp_hint(&self) {
        let started = self.cp_started.load(Ordering::Acquire);
        let wanted = started.max(*self.committed_cp.borrow() + 1);
        if self.cp_hinted.fetch_max(wanted, Ordering::AcqRel) < wanted && wanted > started {
            self.cp_wanted.notify_one();
        }
    }

    /// Whether the point under way was asked for or is waited for, or nobody works beside it.
    pub fn is_hurried(&self, cp: CpCount) -> bool {
        if mutant("point-never-hurries") {
            return false;
        }
        mutant("point-never-rests")
            || self.is_awaited(cp)
            || self.cp_hinted.load(Ordering::Acquire) >= cp.get()
            || !self.log_begun.load(Ordering::Acquire)
            || self.stopped.load(Ordering::Acquire)
    }

    /// Whether the next point was asked for. A wake-up says so too, but may have been meant for the
    /// one before.
    fn is_cp_wanted(&self) -> bool {
        let latest =
            self.cp_awaited.load(Ordering::Acquire).max(self.cp_hinted.load(Ordering::Acquire));
        latest > *self.committed_cp.borrow()
    }

    /// The point that would take in all that is dirty now: the one under way, unless it has made its
    /// cut, else the next.
    fn cp_of_dirty(&self) -> u64 {
        match self.cp_open.load(Ordering::Acquire) {
            0 => self.cp_started.load(Ordering::Acquire) + 1,
            open => open,
        }
    }

    /// Whether a point that takes in all that is dirty now was asked for already, or somebody waits for one
    /// that has made its cut and will most likely ask for the next.
    pub fn is_cp_coming(&self) -> bool {
        self.cp_awaited.load(Ordering::Acquire) > *self.committed_cp.borrow()
            || self.cp_hinted.load(Ordering::Acquire) >= self.cp_of_dirty()
    }

    /// Waits until fewer blocks are dirty than a client may have.
    pub async fn wait_drained(&self) {
        loop {
            let mut drained = std::pin::pin!(self.placed.drained.notified());
            drained.as_mut().enable();
            if !self.must_drain() || self.stopped.load(Ordering::Acquire) {
                return;
            }
            self.cp_hint();
            drained.await;
        }
    }

    /// Asks for a consistency point and waits until one that starts from now on is committed.
    pub async fn cp_now(&self) -> Result<(), LogError> {
        let target = self.cp_started.load(Ordering::Acquire) + 1;
        self.cp_wait(CpCount::new(target)).await
    }

    /// Asks for a consistency point and waits until one that takes in all that is dirty now is
    /// committed: the one under way, unless it has made its cut.
    pub async fn cp_with_dirty(&self) -> Result<(), LogError> {
        self.cp_wait(CpCount::new(self.cp_of_dirty())).await
    }

    /// Somebody waits for what the end of the point under way brings, if there is one.
    pub fn hurry_cp(&self) {
        let started = self.cp_started.load(Ordering::Acquire);
        self.cp_awaited.fetch_max(started, Ordering::AcqRel);
    }

    /// Whether somebody waits for the point under way.
    pub fn is_awaited(&self, cp: CpCount) -> bool {
        self.cp_awaited.load(Ordering::Acquire) >= cp.get()
    }

    /// What gets dirty from now on is not promised to the point under way any more.
    pub fn close_cp(&self) {
        if !mutant("point-open-behind-its-cut") {
            self.cp_open.store(0, Ordering::Release);
        }
    }

    /// Waits until point `cp` is committed; asks for it if it has not started.
    pub async fn cp_wait(&self, cp: CpCount) -> Result<(), LogError> {
        let mut committed = self.committed_cp.subscribe();
        if *committed.borrow() < cp.get() {
            self.cp_awaited.fetch_max(cp.get(), Ordering::AcqRel);
        }
        loop {
            if *committed.borrow_and_update() >= cp.get() {
                return Ok(());
            }
            if self.stopped.load(Ordering::Acquire) {
                return Err(LogError::Stopped);
            }
            self.cp_wanted.notify_one();
            if committed.changed().await.is_err() {
                return Err(LogError::Stopped);
            }
        }
    }

    /// Called by the consistency point when its root is committed.
    pub fn committed(&self, engine: &Engine, volumes: &[Arc<Volume>], data: u64, meta: u64) {
        for volume in volumes {
            let mut st = volume.lock();
            st.inodes_freed_in_cp.clear();
            st.inode_wrap = true;
        }
        self.free.store(engine.space.free_blocks(), Ordering::Release);
        self.total.store(self.aggr.geometry().data_blocks().get(), Ordering::Release);
        self.placing.store(0, Ordering::Release);
        self.counters.cps.fetch_add(1, Ordering::Relaxed);
        self.counters.cp_data_blocks.fetch_add(data, Ordering::Relaxed);
        self.counters.cp_meta_blocks.fetch_add(meta, Ordering::Relaxed);
        self.committed_cp.send_replace(engine.cp.get());
        self.cache.committed();
        self.placed.drained.notify_waiters();
    }

    pub async fn run_cp(&self) -> Result<(), CpError> {
        let mut engine = self.engine.lock().await;
        self.cp_started.store(engine.cp.get() + 1, Ordering::Release);
        self.cp_open.store(engine.cp.get() + 1, Ordering::Release);
        let start = self.world.clock.monotonic();
        let span = tracing::debug_span!("consistency_point", cp = engine.cp.get() + 1);
        let done = self.consistency_point(&mut engine).instrument(span).await;
        let took = self.world.clock.monotonic().since(start).unwrap_or_default();
        self.counters.cp_nanos.fetch_add(took, Ordering::Relaxed);
        if let Err(error) = &done {
            self.stop(error.to_string());
        }
        done
    }

    pub fn is_dirty(&self) -> bool {
        self.volumes().iter().any(|v| v.is_new() || v.lock().is_dirty())
    }

    /// Serves no more: the log or a consistency point failed.
    pub fn stop(&self, reason: String) {
        self.fault(format!("the storage layer stops: {reason}"));
        self.close(reason);
    }

    /// Serves no more, whatever the reason.
    pub fn close(&self, reason: String) {
        self.stop_reason.lock().get_or_insert(reason);
        self.stopped.store(true, Ordering::Release);
        self.log.stop();
        // Wakes everybody who waits for a point.
        self.committed_cp.send_modify(|_| ());
        self.cp_wanted.notify_waiters();
        self.cp_wanted.notify_one();
        self.reap.notify_one();
        self.loaded.notify_waiters();
        self.placed.drained.notify_waiters();
    }

    pub fn stop_reason(&self) -> String {
        let reason = self.stop_reason.lock();
        reason.clone().unwrap_or_else(|| "shut down".to_owned())
    }

    // ---- the log ----

    pub fn switch_log(&self) -> Result<Option<(HalfToken, HalfToken)>, SwitchError> {
        if !self.log_begun.load(Ordering::Acquire) {
            return Ok(None);
        }
        let old = self.log.current();
        Ok(Some((old, self.log.switch_half()?)))
    }
    pub fn log_close(&self, old: HalfToken) {
        self.log.close_half(old);
    }
    pub async fn log_settle(&self, old: HalfToken) -> Result<LogPosition, LogError> {
        self.log.settle(old).await
    }
    pub fn log_release(&self, old: HalfToken) {
        self.log.release_half(old);
    }
}

/// Faults kept for the administrator.
const FAULTS_MAX: usize = 100;

/// All points up to `committed` are, all tetrises before `written` are on the disks.
/// Removes what may go of entries that lie side by side ([`CacheEntry::is_before`]), at least one.
fn evict_run(
    st: &mut VolState,
    run: &[CacheEntry],
    committed: CpCount,
    written: TetrisNo,
    outcome: &mut Outcome,
) {
    let mut entries = run.iter();
    let mut became = |became: Evicted| {
        if let Some(entry) = entries.next() {
            outcome.add(*entry, became);
        }
    };
    match &run[0] {
        CacheEntry::Block { file, key, .. } => match st.tree_mut(*file) {
            Some(tree) => tree.evict_run(*key, run.len(), written, became),
            None => run.iter().for_each(|_| became(Evicted::Gone)),
        },
        CacheEntry::Inode { ino, .. } => became(evict_inode(st, *ino, committed, written)),
    }
}

fn evict_inode(st: &mut VolState, ino: InodeNo, committed: CpCount, written: TetrisNo) -> Evicted {
    let listed = st.dirty_files.contains(&ino);
    let Some(file) = st.in_core.get_mut(&ino) else { return Evicted::Gone };
    let pinned = file.dirty || listed || file.frozen_cp > committed || file.has_unlogged();
    if pinned {
        return Evicted::Busy;
    }
    if core::mem::take(&mut file.hot) {
        return Evicted::Used;
    }
    // Its blocks go with it, or keep it.
    let blocks = file.tree.evict_all(BLOCKS_WITH_INODE_MAX, written);
    if blocks == Evicted::Removed {
        st.in_core.remove(&ino);
    }
    blocks
}

/// Takes loads off the list, however the loader ends, and wakes who waits for them.
struct LoadGuard<'i> {
    inner: &'i Inner,
    fsid: Fsid,
    misses: Vec<Miss>,
}

impl Drop for LoadGuard<'_> {
    fn drop(&mut self) {
        let mut loading = self.inner.loading.lock();
        for m in &self.misses {
            loading.remove(&(self.fsid, m.file, m.key));
        }
        drop(loading);
        self.inner.loaded.notify_waiters();
    }
}

/// Runs two futures until the first of them ends.
pub(crate) async fn first_of(
    mut a: BoxFuture<()>,
    mut b: Pin<Box<dyn Future<Output = ()> + Send + '_>>,
) {
    poll_fn(move |cx| {
        if a.as_mut().poll(cx).is_ready() || b.as_mut().poll(cx).is_ready() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// The task that runs consistency points: when asked, when the log fills, or after a while.
pub(crate) async fn cp_task(inner: Arc<Inner>) {
    loop {
        let sleep = inner.world.clock.sleep(CP_INTERVAL);
        let timed_out = Arc::new(AtomicBool::new(false));
        let log_is_full = AtomicBool::new(false);
        {
            let timed_out = timed_out.clone();
            let timer: BoxFuture<()> = Box::pin(async move {
                sleep.await;
                timed_out.store(true, Ordering::Release);
            });
            let wanted = async {
                let log = async {
                    // A failed log ends the wait too; the point then fails and stops the node.
                    drop(inner.log.wants_switch().await);
                    log_is_full.store(true, Ordering::Release);
                };
                let asked = inner.cp_wanted.notified();
                let (mut log, mut asked) = (Box::pin(log), Box::pin(asked));
                poll_fn(|cx| {
                    if asked.as_mut().poll(cx).is_ready() || log.as_mut().poll(cx).is_ready() {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
                .await;
            };
            first_of(timer, Box::pin(wanted)).await;
        }
        if inner.stopped.load(Ordering::Acquire) {
            return;
        }
        let due = if timed_out.load(Ordering::Acquire) {
            inner.is_dirty()
        } else {
            log_is_full.load(Ordering::Acquire) || inner.is_cp_wanted()
        };
        if !due {
            continue;
        }
        if inner.run_cp().await.is_err() {
            return;
        }
    }
}

/// The task that frees the blocks of removed files, a few at a time.
pub(crate) async fn reap_task(inner: Arc<Inner>) {
    loop {
        let mut worked = false;
        for volume in inner.volumes() {
            if inner.stopped.load(Ordering::Acquire) {
                return;
            }
            match reap_some(&inner, &volume).await {
                Ok(more) => worked |= more,
                Err(_) => {
                    inner.fault(format!("volume {}: a removed file cannot be freed", volume.fsid))
                }
            }
        }
        if !worked {
            inner.reap.notified().await;
        }
        if inner.stopped.load(Ordering::Acquire) {
            return;
        }
        // Freed blocks count as dirty metadata: let a point run when there is much of it.
        if inner.must_drain() && inner.cp_now().await.is_err() {
            return;
        }
    }
}

async fn reap_some(inner: &Inner, volume: &Arc<Volume>) -> Result<bool, Stop> {
    for step in 0..REAP_STEPS {
        let stop = {
            let mut st = volume.lock();
            if volume.gone.load(Ordering::Acquire) {
                return Ok(false);
            }
            let done = st.reap_step();
            inner.take_delta(&mut st);
            match done {
                Ok(true) => continue,
                Ok(false) => return Ok(step > 0),
                Err(stop) => stop,
            }
        };
        inner.resolve(volume, stop).await?;
    }
    Ok(true)
}
