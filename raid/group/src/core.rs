//! What all parts of an aggregate share, and disk I/O for many blocks at once.
//!
//! Layer: over members and stamps; below write, read, rebuild, scrub. Lock order: flush interval,
//! stripe locks, configuration, region map. Invariants: no member is used once it is dead; a
//! death is stable in the configuration of the others before any later write is acknowledged
//! ([`Core::settle`], in `failure.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cairn_raid_api::{RaidCounters, RootRecord, ScrubFinding, ScrubStatus};
use cairn_raid_disk::{DiskError, REQUEST_BLOCKS_MAX};
use cairn_sys::lock::atomic::{AtomicBool, AtomicU64, Ordering};
use cairn_sys::lock::{AsyncMutex, AsyncRwLock, Mutex, Rank, RwLock};
use cairn_sys::{Block, BoxFuture, World, mutant};
use cairn_units::{Dbn, DiskUuid, GroupNo};

use crate::commit::RootSlot;
use crate::marks::Marks;
use crate::member::Member;
use crate::ondisk::StampV1;
use crate::open::Opener;
use crate::stamps::StampCache;
use crate::stripe_log::StripeLog;
use crate::tools::{StripeLocks, join_all};
use crate::view::View;

/// Blocks in one disk request at the most.
const RUN_BLOCKS_MAX: usize = 256;
const _: () = assert!(RUN_BLOCKS_MAX <= REQUEST_BLOCKS_MAX);

macro_rules! counters {
    ($($name:ident),*) => {
        /// The counters of [`RaidCounters`], to be added to from anywhere.
        #[derive(Default)]
        pub(crate) struct Counters { $(pub $name: AtomicU64),* }
        impl Counters {
            pub(crate) fn snapshot(&self) -> RaidCounters {
                RaidCounters { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }
    };
}
counters!(
    full_stripes,
    partial_stripes,
    data_blocks,
    fill_blocks,
    parity_blocks,
    checksum_blocks,
    stripe_log_blocks,
    parity_read_blocks,
    reconstructed_blocks,
    repaired_blocks
);

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// The root as it stands.
#[derive(Default)]
pub(crate) struct RootState {
    pub record: Option<RootRecord>,
    /// Sequence of the last slot written, committed or not.
    pub sequence: u64,
    /// The committed root, as it lies in its slot.
    pub committed: Option<RootSlot>,
}

/// State that belongs to the flush interval; held exclusively by a flush, shared by whoever
/// writes stripes.
pub(crate) struct Interval {
    pub marks: Mutex<Marks>,
    /// Held by who logs stripes ahead: the others then find them logged.
    pub ahead: AsyncMutex<()>,
}

impl Default for Interval {
    fn default() -> Self {
        Self {
            marks: Mutex::new(Rank::StripeMasks, Marks::default()),
            ahead: AsyncMutex::new(Rank::StripesAhead, ()),
        }
    }
}

/// See the module.
pub(crate) struct Core {
    pub world: World,
    pub view: RwLock<Arc<View>>,
    pub interval: AsyncRwLock<Interval>,
    pub locks: StripeLocks,
    pub stamps: StampCache,
    pub log: StripeLog,
    pub root: Mutex<RootState>,
    /// Held while the configuration changes.
    pub config: AsyncMutex<()>,
    /// Held shared by writes to the NV log areas, exclusively while a piece of one is copied.
    pub log_areas: AsyncRwLock<()>,
    /// Disks whose place, NV log area included, another one has taken.
    pub replaced: Mutex<BTreeMap<DiskUuid, DiskUuid>>,
    /// Deaths that are not stable in the configuration yet.
    pub unsettled: AtomicU64,
    /// Disks that died since the start.
    pub deaths: tokio::sync::watch::Sender<u64>,
    pub fenced: AtomicBool,
    pub stopped: AtomicBool,
    pub counters: Counters,
    pub scrub: Mutex<ScrubStatus>,
    /// What it found, as far as it is kept.
    pub scrub_findings: Mutex<Vec<ScrubFinding>>,
    /// Groups with a rebuild task.
    pub rebuilding: Mutex<BTreeSet<GroupNo>>,
    /// A disk has used up half of its error budget since somebody looked.
    pub sick: AtomicBool,
    pub opener: Option<Opener>,
    pub events: Mutex<Vec<crate::Event>>,
}

/// A disk that did not take what it was given.
type Failed = (Arc<Member>, DiskError);

/// Why blocks are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// They are new: without them the disk is stale.
    NewData,
    /// They replace damaged ones.
    Mending,
}

/// One block to read.
pub(crate) struct Want {
    pub member: Arc<Member>,
    pub at: Dbn,
}

/// Blocks to write to one disk, each address once, and what goes with them.
#[derive(Default)]
pub(crate) struct DiskWrites {
    pub blocks: Vec<(Dbn, Block)>,
    /// Regions written for the first time.
    pub regions: Vec<u64>,
}

/// One block of a stripe to write, on all disks of its slot.
#[derive(Default)]
pub(crate) struct Staged {
    /// `None`: only its stamp changed.
    pub block: Option<Block>,
    /// It goes to the slot's twin alone, with this stamp. Rare, and there are many of these.
    pub to_twin: Option<Box<StampV1>>,
}

/// What is to be written of one slot: stripes in their order.
#[derive(Default)]
pub(crate) struct SlotWrites {
    pub cells: Vec<(u64, Staged)>,
}

impl SlotWrites {
    /// What is staged for a block; most come in the order of their stripes.
    fn cell(&mut self, stripe: u64) -> &mut Staged {
        let cells = &mut self.cells;
        let at = match cells.last() {
            Some((last, _)) if *last >= stripe => cells.partition_point(|(s, _)| *s < stripe),
            _ => cells.len(),
        };
        if cells.get(at).is_none_or(|(s, _)| *s != stripe) {
            cells.insert(at, (stripe, Staged::default()));
        }
        &mut cells[at].1
    }
    /// The stamp of the slot's block of this stripe changed.
    pub(crate) fn touch(&mut self, stripe: u64) {
        self.cell(stripe).to_twin = None;
    }
    /// A new block, whose stamp is set already.
    pub(crate) fn put(&mut self, stripe: u64, block: Block) {
        *self.cell(stripe) = Staged { block: Some(block), to_twin: None };
    }
}

/// Blocks to write: first by slot and stripe, then, with their checksum blocks, by disk.
#[derive(Default)]
pub(crate) struct Writes {
    pub slots: Vec<SlotWrites>,
    pub disks: BTreeMap<DiskUuid, (Option<Arc<Member>>, DiskWrites)>,
}

impl Writes {
    pub(crate) fn of(&mut self, member: &Arc<Member>) -> &mut DiskWrites {
        let entry = self.disks.entry(member.uuid).or_default();
        entry.0.get_or_insert_with(|| member.clone());
        &mut entry.1
    }
    /// What is staged for a slot; `more` are to come.
    pub(crate) fn slot(&mut self, slot: usize, more: usize) -> &mut SlotWrites {
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, SlotWrites::default);
        }
        let slot = &mut self.slots[slot];
        slot.cells.reserve(more);
        slot
    }
    /// Whether anything is staged for a block.
    pub(crate) fn has(&self, slot: usize, stripe: u64) -> bool {
        let slot = self.slots.get(slot);
        slot.is_some_and(|s| s.cells.binary_search_by_key(&stripe, |(s, _)| *s).is_ok())
    }
    /// See [`SlotWrites::touch`].
    pub(crate) fn touch(&mut self, slot: usize, stripe: u64) {
        self.slot(slot, 1).touch(stripe);
    }
    /// See [`SlotWrites::put`].
    pub(crate) fn put(&mut self, slot: usize, stripe: u64, block: Block) {
        self.slot(slot, 1).put(stripe, block);
    }
    /// A block for the slot's twin alone.
    pub(crate) fn put_twin(
        &mut self,
        slot: usize,
        stripe: u64,
        block: Option<Block>,
        stamp: StampV1,
    ) {
        *self.slot(slot, 1).cell(stripe) = Staged { block, to_twin: Some(Box::new(stamp)) };
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.disks.is_empty() && self.slots.iter().all(|s| s.cells.is_empty())
    }
}

impl Core {
    /// The aggregate at this moment.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().clone()
    }
    pub(crate) fn publish(&self, view: View) {
        *self.view.write() = Arc::new(view);
    }
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Takes note of a failed request; whether the disk was declared dead is up to its budget and
    /// to what its group can spare.
    pub(crate) fn fault(&self, member: &Member, error: &DiskError) {
        let location = &member.info.location;
        tracing::warn!(disk = %member.uuid, %location, %error, "disk error");
        if *error == DiskError::Fenced {
            self.fenced.store(true, Ordering::Release);
        }
        let spent = member.spend(error);
        if member.is_sick() {
            self.sick.store(true, Ordering::Release);
        }
        let certain = matches!(error, DiskError::Gone { .. } | DiskError::Fenced);
        // Bad blocks of a disk that is on its way out are found from parity one by one.
        let leaving =
            matches!(error, DiskError::Medium { .. }) && self.view().twin_of(member.uuid).is_some();
        if certain || (spent && !leaving && self.can_spare(member.uuid)) {
            self.kill(member);
        }
    }

    /// Whether the disk's group could lose it.
    pub(crate) fn can_spare(&self, disk: DiskUuid) -> bool {
        let view = self.view();
        match view.config.position_of(disk) {
            Some(_) if view.config.is_twin(disk) => true,
            Some((group, _)) => view.groups.get(&group).is_some_and(|g| {
                let rebuilding = g.slots.iter().any(|s| {
                    s.member.as_ref().is_some_and(|m| m.uuid == disk)
                        && s.state != cairn_raid_api::ColumnState::Online
                });
                rebuilding || g.lost() < g.parity()
            }),
            None => true,
        }
    }

    /// Declares a disk dead; [`Core::settle`] makes that stable.
    pub(crate) fn kill(&self, member: &Member) {
        if member.declare_dead() {
            self.unsettled.fetch_add(1, Ordering::AcqRel);
            self.deaths.send_modify(|n| *n += 1);
            let location = &member.info.location;
            tracing::error!(disk = %member.uuid, %location, "disk taken out");
        }
    }

    /// Reads many blocks at once: neighbours in one request, disks in parallel. Faults are noted.
    pub(crate) async fn read_many(&self, wants: Vec<Want>) -> Vec<Result<Block, DiskError>> {
        let mut order: Vec<usize> = (0..wants.len()).collect();
        order.sort_by_key(|i| (wants[*i].member.uuid, wants[*i].at));
        let mut runs: Vec<Vec<usize>> = Vec::new();
        for i in order {
            let joins = runs.last().is_some_and(|run| {
                let last = &wants[run[run.len() - 1]];
                run.len() < RUN_BLOCKS_MAX
                    && last.member.uuid == wants[i].member.uuid
                    && last.at.plus(1) == wants[i].at
            });
            match runs.last_mut() {
                Some(run) if joins => run.push(i),
                _ => runs.push(vec![i]),
            }
        }
        let futures: Vec<BoxFuture<Vec<Result<Block, DiskError>>>> = runs
            .iter()
            .map(|run| {
                let (member, at, n) = (wants[run[0]].member.clone(), wants[run[0]].at, run.len());
                let read: BoxFuture<_> = Box::pin(read_run(member, at, n));
                read
            })
            .collect();
        let answers = join_all(futures).await;
        let mut out: Vec<Option<Result<Block, DiskError>>> = wants.iter().map(|_| None).collect();
        for (run, answers) in runs.iter().zip(answers) {
            let mut noted = false;
            for (i, answer) in run.iter().zip(answers) {
                if let Err(error) = &answer {
                    // One request that timed out is one fault, however long it was.
                    if !noted || matches!(error, DiskError::Medium { .. }) {
                        self.fault(&wants[*i].member, error);
                    }
                    noted = true;
                }
                out[*i] = Some(answer);
            }
        }
        let missing = || Err(DiskError::Gone { reason: "no answer".into() });
        out.into_iter().map(|o| o.unwrap_or_else(missing)).collect()
    }

    /// Writes many blocks at once. A disk that does not take its blocks missed a write and is dead
    /// afterwards; when it only missed being mended, it stays if its group cannot spare it.
    pub(crate) async fn write_many(&self, writes: Writes, purpose: Purpose) {
        assert!(writes.slots.is_empty(), "checksum blocks go with their blocks");
        let mut futures: Vec<BoxFuture<Option<Failed>>> = Vec::new();
        for (member, writes) in writes.disks.into_values() {
            let Some(member) = member.filter(|m| !m.is_dead()) else { continue };
            futures.push(Box::pin(async move {
                match write_disk(&member, writes).await {
                    Ok(()) => None,
                    Err(_) if mutant("write-error-lost") => None,
                    Err(error) => Some((member, error)),
                }
            }));
        }
        for (member, error) in join_all(futures).await.into_iter().flatten() {
            self.fault(&member, &error);
            if purpose == Purpose::NewData || self.can_spare(member.uuid) {
                self.kill(&member);
            }
        }
    }

    /// Adds an event for whoever asks ([`crate::RaidAggregate::events`]).
    pub(crate) fn event(&self, event: crate::Event) {
        let mut events = self.events.lock();
        if events.len() >= crate::EVENTS_MAX {
            events.remove(0);
        }
        events.push(event);
    }
}

async fn read_run(member: Arc<Member>, at: Dbn, count: usize) -> Vec<Result<Block, DiskError>> {
    if member.is_dead() {
        let gone = || Err(DiskError::Gone { reason: "taken out".into() });
        return (0..count).map(|_| gone()).collect();
    }
    match member.read(at, count).await {
        Ok(blocks) => blocks.into_iter().map(Ok).collect(),
        Err(DiskError::Medium { .. }) if count > 1 => {
            let mut out = Vec::with_capacity(count);
            for i in 0..count as u64 {
                out.push(match member.read(at.plus(i), 1).await {
                    Ok(mut blocks) => {
                        blocks.pop().ok_or_else(|| DiskError::Gone { reason: "short read".into() })
                    }
                    Err(error) => Err(error),
                });
            }
            out
        }
        Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
    }
}

async fn write_disk(member: &Arc<Member>, writes: DiskWrites) -> Result<(), DiskError> {
    let mut blocks = writes.blocks;
    let new_regions: Vec<u64> =
        writes.regions.into_iter().filter(|r| !member.map.has(*r)).collect();
    let _map = if new_regions.is_empty() {
        None
    } else {
        let held = member.map.writing.lock().await;
        blocks.extend(member.map.stage(member.uuid, &member.layout, &new_regions));
        Some(held)
    };
    member.mark_dirty();
    blocks.sort_by_key(|(at, _)| *at);
    assert!(blocks.is_sorted_by(|a, b| a.0 < b.0), "a block is written once");
    let mut futures: Vec<BoxFuture<Result<(), DiskError>>> = Vec::new();
    let mut blocks = blocks.into_iter();
    while let Some(&(at, _)) = blocks.as_slice().first() {
        let pairs = blocks.as_slice().windows(2).take(RUN_BLOCKS_MAX - 1);
        let more = pairs.take_while(|pair| pair[0].0.plus(1) == pair[1].0).count();
        let run: Vec<Block> = blocks.by_ref().take(more + 1).map(|(_, block)| block).collect();
        let member = member.clone();
        futures.push(Box::pin(async move { write_run(&member, at, run).await }));
    }
    join_all(futures).await.into_iter().collect()
}

/// One request; after a medium error each block once more by itself, since drives remap a bad
/// sector when it is written.
async fn write_run(member: &Member, at: Dbn, run: Vec<Block>) -> Result<(), DiskError> {
    let count = run.len();
    tracing::trace!(disk = %member.uuid, dbn = at.get(), blocks = count, "disk write");
    let run = Arc::new(run);
    match member.disk.write_shared(at, run.clone()).await {
        Err(DiskError::Medium { .. }) => {
            for (i, block) in (0u64..).zip(&*run) {
                member.disk.write(at.plus(i), vec![block.clone()]).await?;
            }
            Ok(())
        }
        other => other,
    }
}
