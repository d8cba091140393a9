//! The simulated disk: the `Disk` trait over a [`Medium`], and the handles that break it.
//!
//! Layer: simulator. A request begins when the method is called, not when its future is polled;
//! a dropped future abandons the answer only. Keeps the driver contract of `cairn-raid-disk`.

use core::ops::RangeInclusive;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cairn_raid_disk::{Disk, DiskCounters, DiskError, DiskInfo, REQUEST_BLOCKS_MAX};
use cairn_sys::{Block, BlockMut, BoxFuture};
use cairn_units::{BLOCK_BYTES, Blocks, Dbn};
use tokio::sync::oneshot;

use crate::exec::{Event, lock};
use crate::medium::{Medium, State, first_in};

/// A simulated disk's shape.
#[derive(Clone, Debug)]
pub struct SimDiskConfig {
    /// Name for people.
    pub location: String,
    /// Size.
    pub blocks: Blocks,
    /// Time of a read, chosen by the seed.
    pub read_latency: RangeInclusive<Duration>,
    /// Time until a write is accepted, chosen by the seed.
    pub write_latency: RangeInclusive<Duration>,
    /// Time of a flush, chosen by the seed.
    pub flush_latency: RangeInclusive<Duration>,
    /// When a hung disk's requests answer `TimedOut`.
    pub request_timeout: Duration,
}

impl SimDiskConfig {
    /// A disk of `blocks` blocks with the times of a middling flash device.
    pub fn new(location: &str, blocks: Blocks) -> Self {
        let us = Duration::from_micros;
        Self {
            location: location.to_owned(),
            blocks,
            read_latency: us(50)..=us(500),
            write_latency: us(20)..=us(300),
            flush_latency: us(100)..=us(1000),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// What a power cut leaves of the unflushed writes of a disk.
#[derive(Clone, Debug)]
pub enum CutPolicy {
    /// Each kept, dropped, torn or reordered as the seed says.
    Seeded,
    /// None of them.
    DropAll,
    /// All of them.
    KeepAll,
    /// Those with these places in [`SimDisk::unflushed`], whole and in order.
    Keep(BTreeSet<usize>),
}

/// Contents of a medium at one moment, cheap to take.
#[derive(Clone, Debug)]
pub struct DiskImage {
    pub(crate) current: BTreeMap<u64, Block>,
    pub(crate) durable: BTreeMap<u64, Block>,
}

impl DiskImage {
    /// A block as a read would have seen it.
    pub fn visible(&self, at: Dbn) -> Block {
        self.current.get(&at.get()).cloned().unwrap_or_else(Block::zero)
    }
    /// A block as it is when everything unflushed is lost.
    pub fn durable(&self, at: Dbn) -> Block {
        self.durable.get(&at.get()).cloned().unwrap_or_else(Block::zero)
    }
    /// Blocks that were ever written, as far as durable.
    pub fn durable_blocks(&self) -> impl Iterator<Item = (Dbn, &Block)> {
        self.durable.iter().map(|(at, block)| (Dbn::new(*at), block))
    }
}

/// A handle on a simulated disk. Clones are the same handle. After a power cut every handle
/// answers `Gone`, and [`Self::reattach`] gives one that works.
#[derive(Clone)]
pub struct SimDisk {
    medium: Arc<Medium>,
    generation: u64,
}

enum Order {
    Read(Vec<BlockMut>),
    Write(Vec<Block>),
    WriteStable(Vec<Block>),
    Discard(u64),
    Flush,
}

impl Order {
    fn blocks(&self) -> u64 {
        match self {
            Self::Read(bufs) => bufs.len() as u64,
            Self::Write(blocks) | Self::WriteStable(blocks) => blocks.len() as u64,
            Self::Discard(count) => *count,
            Self::Flush => 0,
        }
    }
}

type Answer = Result<Vec<BlockMut>, DiskError>;

impl SimDisk {
    pub(crate) fn attach(medium: Arc<Medium>) -> Self {
        let generation = lock(&medium.state).generation;
        Self { medium, generation }
    }

    /// A working handle on the same medium: the disk after power, cable or slot came back.
    #[must_use]
    pub fn reattach(&self) -> Self {
        Self::attach(self.medium.clone())
    }

    /// The driver that the code under test gets.
    pub fn driver(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut lock(&self.medium.state))
    }

    /// Latent sector error: reads of the block fail until it is written again.
    pub fn break_block(&self, at: Dbn) {
        self.with(|s| s.faults.bad_reads.insert(at.get()));
    }
    /// The block can neither be read nor written any more.
    pub fn break_block_for_good(&self, at: Dbn) {
        self.with(|s| s.faults.bad_reads.insert(at.get()));
        self.with(|s| s.faults.bad_writes.insert(at.get()));
    }
    /// Flips one bit (chosen by the seed) of what the block holds, silently.
    pub fn rot_block(&self, at: Dbn) {
        let bit = self.medium.world.with_rng(|rng| rng.below(BLOCK_BYTES as u64 * 8));
        self.with(|s| s.rot(at.get(), bit));
    }
    /// Replaces the contents of the block, durably and silently.
    pub fn scribble(&self, at: Dbn, block: &Block) {
        self.with(|s| {
            let request = s.start_request();
            s.start_write(request, at.get(), vec![block.clone()]);
            s.finish_write(request);
            let flush = s.start_request();
            s.start_flush(flush);
            s.finish_flush(flush);
        });
    }
    /// The next write that covers the block is acknowledged and never happens.
    pub fn lose_next_write(&self, at: Dbn) {
        self.with(|s| s.faults.lost_writes.insert(at.get()));
    }
    /// The next write that covers `asked` lands (its first block) at `landed` instead.
    pub fn misdirect_next_write(&self, asked: Dbn, landed: Dbn) {
        self.with(|s| s.faults.misdirected.insert(asked.get(), landed.get()));
    }
    /// The `n`-th request from now on (1 is the next) answers `error`.
    pub fn fail_request(&self, n: u64, error: DiskError) {
        self.with(|s| s.faults.fail_at.insert(s.requests + n.max(1), error));
    }
    /// Whether a fault waits for a request to come: a lost, misdirected or failed one.
    pub fn is_armed(&self) -> bool {
        self.with(|s| {
            let f = &s.faults;
            !(f.lost_writes.is_empty() && f.misdirected.is_empty() && f.fail_at.is_empty())
        })
    }
    /// Takes back the faults that wait for a request.
    pub fn disarm(&self) {
        self.with(|s| {
            s.faults.lost_writes.clear();
            s.faults.misdirected.clear();
            s.faults.fail_at.clear();
        });
    }
    /// Multiplies the time of every request; 1 is the usual speed.
    pub fn slow_down(&self, factor: u64) {
        self.with(|s| s.faults.slow_factor = factor);
    }
    /// Requests answer `TimedOut`; writes may still happen much later. Ends with `false`.
    pub fn hang(&self, hung: bool) {
        self.with(|s| s.faults.hung = hung);
    }
    /// The device disappears: every request from now on, and those under way, answer `Gone`.
    pub fn die(&self) {
        self.with(|s| s.faults.dead = true);
    }
    /// A dead disk is back, with what a loss of power would have left on it. Needs
    /// [`Self::reattach`].
    pub fn revive(&self) {
        self.with(|s| s.faults.dead = false);
        self.medium.power_cut(&CutPolicy::Seeded);
    }
    /// A newer owner takes the disk (or gives it back): writes answer `Fenced`.
    pub fn fence(&self, fenced: bool) {
        self.with(|s| s.faults.fenced = fenced);
    }
    /// The file system below this disk's file has room for `blocks` blocks in all.
    pub fn limit_host_space(&self, blocks: Option<Blocks>) {
        self.with(|s| s.faults.host_full_at = blocks.map(Blocks::get));
    }

    /// Cuts the power of this disk alone. See [`crate::SimWorld::power_cut`].
    pub fn power_cut(&self, policy: &CutPolicy) {
        self.medium.power_cut(policy);
    }
    /// Writes that a power cut now could take away, in order of completion, those still under
    /// way last.
    pub fn unflushed(&self) -> Vec<(Dbn, Blocks)> {
        self.medium.unflushed()
    }
    /// The contents now.
    pub fn image(&self) -> DiskImage {
        self.medium.image()
    }
    /// Sets the contents to the durable part of `image`; old handles answer `Gone`.
    pub fn restore(&self, image: &DiskImage) {
        self.medium.restore(image);
    }

    /// What the request meets before it reaches the medium.
    fn refusal(&self, state: &mut State, at: u64, order: &Order) -> Option<DiskError> {
        let count = order.blocks();
        let end = at.checked_add(count);
        let outside = end.is_none_or(|end| end > self.medium.config.blocks.get());
        let too_long = !matches!(order, Order::Discard(_)) && count > REQUEST_BLOCKS_MAX as u64;
        if outside || too_long {
            return Some(DiskError::OutOfRange { at: Dbn::new(at), count: Blocks::new(count) });
        }
        state.requests += 1;
        let number = state.requests;
        if state.generation != self.generation {
            return Some(DiskError::Gone { reason: "handle from before a power cut".to_owned() });
        }
        if state.faults.dead {
            return Some(DiskError::Gone { reason: "no such device".to_owned() });
        }
        if let Some(error) = state.faults.fail_at.remove(&number) {
            return Some(error);
        }
        let faults = &state.faults;
        let writes = !matches!(order, Order::Read(_));
        if writes && faults.fenced {
            return Some(DiskError::Fenced);
        }
        let range = at..at + count;
        let bad = match order {
            Order::Read(_) => first_in(&faults.bad_reads, &range),
            Order::Write(_) | Order::WriteStable(_) => first_in(&faults.bad_writes, &range),
            Order::Discard(_) | Order::Flush => None,
        };
        if let Some(bad) = bad {
            return Some(DiskError::Medium { at: Dbn::new(bad), count: Blocks::new(1) });
        }
        let fills = matches!(order, Order::Write(_) | Order::WriteStable(_));
        let full = faults.host_full_at.filter(|_| fills)?;
        if state.allocated() + state.would_allocate(at, count) > full {
            return Some(DiskError::Gone { reason: "the host file system is full".to_owned() });
        }
        None
    }

    fn latency(&self, state: &State, order: &Order) -> u64 {
        let config = &self.medium.config;
        let nanos = |d: &Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let choose = |range: &RangeInclusive<Duration>| {
            let (from, to) = (nanos(range.start()), nanos(range.end()));
            let spread = to.saturating_sub(from).saturating_add(1);
            from + self.medium.world.with_rng(|rng| rng.below(spread))
        };
        let chosen = match order {
            Order::Read(_) => choose(&config.read_latency),
            Order::Write(_) | Order::Discard(_) => choose(&config.write_latency),
            Order::WriteStable(_) => choose(&config.write_latency) + choose(&config.flush_latency),
            Order::Flush => choose(&config.flush_latency),
        };
        chosen.saturating_mul(state.faults.slow_factor.max(1))
    }

    fn start(&self, at: Dbn, order: Order) -> BoxFuture<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.enqueue(at.get(), order, sender);
        Box::pin(async move {
            match receiver.await {
                Ok(answer) => answer,
                // The power is off: nobody is left to see an answer.
                Err(_) => core::future::pending().await,
            }
        })
    }

    fn enqueue(&self, at: u64, order: Order, sender: oneshot::Sender<Answer>) {
        let world = self.medium.world.clone();
        if world.power_lost() {
            return;
        }
        let mut state = lock(&self.medium.state);
        let kind = match &order {
            Order::Read(_) => Event::DiskRead,
            Order::Write(_) => Event::DiskWrite,
            Order::WriteStable(_) => Event::DiskWriteStable,
            Order::Discard(_) => Event::DiskDiscard,
            Order::Flush => Event::DiskFlush,
        };
        let content = match &order {
            Order::Write(blocks) | Order::WriteStable(blocks) => {
                blocks.iter().fold(0, |crc, block| {
                    let mut hasher = crc32fast::Hasher::new_with_initial(crc);
                    hasher.update(&block[..]);
                    hasher.finalize()
                })
            }
            _ => 0,
        };
        world.event(kind, at, (u64::from(content) << 32) | order.blocks());
        let mut refused = self.refusal(&mut state, at, &order);
        let mut delay = self.latency(&state, &order);
        let request = state.start_request();
        let mut late = false;
        if refused.is_none() {
            match &order {
                Order::Read(_) => {}
                Order::Write(blocks) | Order::WriteStable(blocks) => {
                    state.start_write(request, at, blocks.clone());
                }
                Order::Discard(count) => self.start_discard(&mut state, request, at, *count),
                Order::Flush => state.start_flush(request),
            }
            if !matches!(order, Order::Read(_)) {
                world.count_order();
            }
            if state.faults.hung {
                late = world.with_rng(|rng| rng.one_in(2));
                let timeout = self.medium.config.request_timeout.as_nanos();
                delay = u64::try_from(timeout).unwrap_or(u64::MAX);
                refused = Some(DiskError::TimedOut { at: Dbn::new(at) });
            }
        }
        drop(state);
        let disk = self.clone();
        world.call_after(delay, move || disk.complete(request, at, order, refused, sender));
        if late {
            // A request that timed out takes effect long after its answer, or never.
            let disk = self.clone();
            world.call_after(delay.saturating_mul(2), move || {
                disk.with(|s| {
                    if s.generation == disk.generation {
                        s.finish_write(request)
                    }
                });
            });
        }
    }

    /// A discard turns blocks to zeros or leaves them, one by one, as the seed says.
    fn start_discard(&self, state: &mut State, request: u64, at: u64, count: u64) {
        let held = state.held(at, count);
        let zeroed = held.into_iter().filter(|_| self.medium.world.with_rng(|r| r.one_in(2)));
        for (n, at) in zeroed.collect::<Vec<u64>>().into_iter().enumerate() {
            // The first one goes with the request itself, so that its completion is in order.
            let id = if n == 0 { request } else { state.start_request() };
            state.start_write(id, at, vec![Block::zero()]);
            if n != 0 {
                state.finish_write(id);
            }
        }
    }

    fn complete(
        &self,
        request: u64,
        at: u64,
        order: Order,
        refused: Option<DiskError>,
        sender: oneshot::Sender<Answer>,
    ) {
        let mut state = lock(&self.medium.state);
        if state.generation != self.generation && refused.is_none() {
            let reason = "handle from before a power cut".to_owned();
            drop(state);
            drop(sender.send(Err(DiskError::Gone { reason })));
            return;
        }
        let refused = refused.or_else(|| {
            let reason = "no such device".to_owned();
            state.faults.dead.then_some(DiskError::Gone { reason })
        });
        let count = order.blocks();
        let answer = match (refused, order) {
            (Some(error), _) => {
                state.counters.errors += 1;
                Err(error)
            }
            (None, Order::Read(mut bufs)) => {
                state.read_into(at, &mut bufs);
                state.counters.reads += 1;
                state.counters.blocks_read += count;
                Ok(bufs)
            }
            (None, Order::Write(_)) => {
                state.finish_write(request);
                state.counters.writes += 1;
                state.counters.blocks_written += count;
                Ok(Vec::new())
            }
            (None, Order::WriteStable(_)) => {
                state.finish_stable(request);
                state.counters.writes += 1;
                state.counters.blocks_written += count;
                state.counters.flushes += 1;
                Ok(Vec::new())
            }
            (None, Order::Discard(_)) => {
                state.finish_write(request);
                Ok(Vec::new())
            }
            (None, Order::Flush) => {
                state.finish_flush(request);
                state.counters.flushes += 1;
                Ok(Vec::new())
            }
        };
        drop(state);
        self.medium.world.event(Event::DiskDone, request, u64::from(answer.is_ok()));
        drop(sender.send(answer));
    }
}

impl Disk for SimDisk {
    fn info(&self) -> DiskInfo {
        self.medium.info()
    }
    fn read(&self, at: Dbn, bufs: Vec<BlockMut>) -> BoxFuture<Result<Vec<BlockMut>, DiskError>> {
        self.start(at, Order::Read(bufs))
    }
    fn write(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>> {
        let answer = self.start(at, Order::Write(blocks));
        Box::pin(async move { answer.await.map(drop) })
    }
    fn write_stable(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>> {
        let answer = self.start(at, Order::WriteStable(blocks));
        Box::pin(async move { answer.await.map(drop) })
    }
    fn flush(&self) -> BoxFuture<Result<(), DiskError>> {
        let answer = self.start(Dbn::new(0), Order::Flush);
        Box::pin(async move { answer.await.map(drop) })
    }
    fn discard(&self, at: Dbn, count: Blocks) -> BoxFuture<Result<(), DiskError>> {
        let answer = self.start(at, Order::Discard(count.get()));
        Box::pin(async move { answer.await.map(drop) })
    }
    fn counters(&self) -> DiskCounters {
        self.with(|s| s.counters)
    }
}
