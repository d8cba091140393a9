//! The stripe log: what parity of a stripe in flux was, so that a power cut loses nothing.
//!
//! Layer: over members. Before any block of a stripe is overwritten, a record with the columns
//! modified since the last flush, and the parity of all the others, is stable on `parity + 1`
//! disks. Entries lie one behind the other from the start of the area; a flush of all disks makes
//! them dead, and the next epoch begins at the start again. The root says which epochs are dead,
//! or, when an interval ends without a root, an empty entry of the next epoch does.
//!
//! Invariants: the entries of one epoch are the same on every disk that holds the epoch; an epoch
//! begins only after everything it follows is durable; the log never wraps within an epoch.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_raid_api::WriteError;
use cairn_raid_disk::DiskError;
use cairn_sys::lock::{AsyncMutex, Mutex, Rank};
use cairn_sys::{Block, BoxFuture, mutant};
use cairn_units::{AggregateUuid, Dbn, DiskUuid, GroupNo};

use crate::core::{Core, count};
use crate::member::Member;
use crate::ondisk::{
    ENTRY_RECORDS_MAX, LogEntryV1, MAGIC_ENTRY, RECORD_PARTIAL, RECORD_REST_ZERO,
    RECORD_TWIN_FRESH, StripeRecordV1, blank, open, seal,
};
use crate::tools::join_all;
use crate::view::View;

/// Blocks that recovery reads from the log at once.
const SCAN_BLOCKS: u64 = 64;

/// What is logged of one stripe.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub group: GroupNo,
    pub stripe: u64,
    pub mask: [u64; 4],
    pub fresh: [u64; 5],
    pub twin: Option<TwinRecord>,
    pub rest: Rest,
}

/// A record without payload and without what names the stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BareRecord {
    mask: [u64; 4],
    fresh: [u64; 5],
    twin: Option<TwinRecord>,
}

/// The first eight bytes of a disk's uuid, which tell it from the others of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskMark(u64);

impl DiskMark {
    pub(crate) fn of(disk: DiskUuid) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = disk.bytes();
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// The disk that one column of the group was being copied to. What the record says of the column
/// is true of the disk that served, not of this one, wherever it is by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TwinRecord {
    pub disk: DiskMark,
    /// Its region had no durable stamps.
    pub fresh: bool,
}

impl Record {
    /// What it says, if that is all in the record itself.
    pub(crate) fn bare(&self) -> Option<BareRecord> {
        let bare = BareRecord { mask: self.mask, fresh: self.fresh, twin: self.twin };
        matches!(self.rest, Rest::None).then_some(bare)
    }
    /// Blocks that go with it.
    pub(crate) fn payload_blocks(&self) -> usize {
        match &self.rest {
            Rest::Partial(blocks) => blocks.len(),
            Rest::None | Rest::Zero => 0,
        }
    }
}

/// The unmodified columns of a logged stripe.
#[derive(Clone, Debug)]
pub(crate) enum Rest {
    /// There are none.
    None,
    /// They are all zeros.
    Zero,
    /// Their row parity, and diagonal parity where the group has it.
    Partial(Vec<Block>),
}

/// Whether bit `column` of a mask is set.
pub(crate) fn has_bit(mask: &[u64], column: u16) -> bool {
    mask.get(usize::from(column / 64)).is_some_and(|w| w & (1 << (column % 64)) != 0)
}
/// Sets bit `column`.
pub(crate) fn set_bit(mask: &mut [u64], column: u16) {
    if let Some(word) = mask.get_mut(usize::from(column / 64)) {
        *word |= 1 << (column % 64);
    }
}

/// Blocks that records take in the log.
pub(crate) fn log_blocks(records: usize, payload: usize) -> u64 {
    (records.div_ceil(ENTRY_RECORDS_MAX) + payload) as u64
}

struct LogState {
    epoch: u64,
    /// Entries written in this epoch.
    sequence: u64,
    /// Everything written in this epoch, to be copied when a log disk is replaced.
    image: Vec<Block>,
    /// Disks that hold `image`.
    disks: Vec<DiskUuid>,
}

/// See the module.
pub(crate) struct StripeLog {
    aggregate: AggregateUuid,
    /// Blocks in the area of each disk.
    size: u64,
    /// Blocks promised to writers that have not appended yet, plus those appended.
    promised: Mutex<u64>,
    /// Serialises appends; waiting writers go out together.
    state: AsyncMutex<LogState>,
    queue: Mutex<Vec<Waiting>>,
}

/// How a write of log blocks to one disk ended.
type LogWrite = Result<(), (Arc<Member>, DiskError)>;

struct Waiting {
    records: Vec<Record>,
    done: tokio::sync::oneshot::Sender<Result<(), WriteError>>,
}

impl StripeLog {
    pub(crate) fn new(aggregate: AggregateUuid, size: u64, epoch: u64) -> Self {
        let state = LogState { epoch, sequence: 0, image: Vec::new(), disks: Vec::new() };
        Self {
            aggregate,
            size,
            promised: Mutex::new(Rank::StripeLogRoom, 0),
            state: AsyncMutex::new(Rank::StripeLog, state),
            queue: Mutex::new(Rank::StripeLogQueue, Vec::new()),
        }
    }

    /// Sets room aside; `false` when the interval must be flushed first.
    pub(crate) fn reserve(&self, blocks: u64) -> bool {
        let mut promised = self.promised.lock();
        if *promised + blocks > self.size {
            return false;
        }
        *promised += blocks;
        true
    }
    /// Gives back what a writer did not use.
    pub(crate) fn give_back(&self, blocks: u64) {
        let mut promised = self.promised.lock();
        *promised = promised.saturating_sub(blocks);
    }

    /// All disks were flushed: every entry is dead. Returns the epoch that died, and whether it
    /// had entries.
    pub(crate) async fn restart(&self) -> (u64, bool) {
        let mut state = self.state.lock().await;
        let dead = (state.epoch, !state.image.is_empty());
        state.epoch += 1;
        state.sequence = 0;
        state.image.clear();
        *self.promised.lock() = 0;
        dead
    }
}

/// Blocks of the entries for `records`, numbered from `sequence` on.
fn encode(
    aggregate: AggregateUuid,
    epoch: u64,
    sequence: &mut u64,
    records: &[Record],
) -> Vec<Block> {
    let mut out = Vec::new();
    let (marker, chunks) = ([records], records.chunks(ENTRY_RECORDS_MAX));
    // Without records: one empty entry, which says that the epochs before it are dead.
    let marker = marker.into_iter().filter(|r| r.is_empty());
    for chunk in chunks.chain(marker) {
        let mut raw: LogEntryV1 = blank();
        raw.aggregate = aggregate.bytes();
        raw.epoch = epoch.into();
        raw.sequence = (*sequence).into();
        *sequence += 1;
        let mut payload: Vec<Block> = Vec::new();
        for (to, record) in raw.stripes.iter_mut().zip(chunk) {
            let mut stripe: StripeRecordV1 = blank();
            stripe.group = record.group.get().into();
            stripe.stripe = record.stripe.into();
            stripe.mask = record.mask.map(Into::into);
            stripe.fresh = record.fresh.map(Into::into);
            let mut flags = 0;
            if let Some(twin) = record.twin {
                stripe.twin = twin.disk.0.into();
                flags |= if twin.fresh { RECORD_TWIN_FRESH } else { 0 };
            }
            match &record.rest {
                Rest::None => {}
                Rest::Zero => flags |= RECORD_REST_ZERO,
                Rest::Partial(blocks) => {
                    flags |= RECORD_PARTIAL;
                    stripe.payload = u32::try_from(payload.len()).unwrap_or(u32::MAX).into();
                    payload.extend(blocks.iter().cloned());
                }
            }
            stripe.flags = flags.into();
            *to = stripe;
        }
        raw.records = u16::try_from(chunk.len()).unwrap_or(u16::MAX).into();
        raw.payload_blocks = u16::try_from(payload.len()).unwrap_or(u16::MAX).into();
        let mut hasher = crc32fast::Hasher::new();
        for block in &payload {
            hasher.update(&block[..]);
        }
        raw.payload_crc = hasher.finalize().into();
        out.push(seal(&raw, MAGIC_ENTRY));
        out.append(&mut payload);
    }
    out
}

impl Core {
    /// Makes records stable. Writers that come while a log write is under way go out together in
    /// the next one. The room was reserved.
    ///
    /// # Errors
    /// When no disk is left that takes the log.
    pub(crate) async fn log_append(&self, records: Vec<Record>) -> Result<(), WriteError> {
        if mutant("stripe-log-skipped") {
            return Ok(());
        }
        let (done, answer) = tokio::sync::oneshot::channel();
        self.log.queue.lock().push(Waiting { records, done });
        {
            let mut state = self.log.state.lock().await;
            let batch = std::mem::take(&mut *self.log.queue.lock());
            if !batch.is_empty() {
                let records: Vec<Record> =
                    batch.iter().flat_map(|w| w.records.iter().cloned()).collect();
                let result = self.log_write(&mut state, &records).await;
                for waiting in batch {
                    // A writer that went away does not need the answer.
                    let _gone = waiting.done.send(result.clone()).is_err();
                }
            }
        }
        answer.await.unwrap_or(Err(WriteError::NoLogDevice))
    }

    /// Makes it stable that the epochs before this one are dead, when no root will say so. The
    /// caller holds the interval.
    pub(crate) async fn log_marker(&self) -> Result<(), WriteError> {
        let mut state = self.log.state.lock().await;
        if !self.log.reserve(log_blocks(1, 0)) {
            return Err(WriteError::NoLogDevice);
        }
        self.log_write(&mut state, &[]).await
    }

    async fn log_write(&self, state: &mut LogState, records: &[Record]) -> Result<(), WriteError> {
        let at = state.image.len();
        let new = encode(self.log.aggregate, state.epoch, &mut state.sequence, records);
        count(&self.counters.stripe_log_blocks, new.len());
        state.image.extend(new);
        assert!(state.image.len() as u64 <= self.log.size, "stripe log room was reserved");
        loop {
            let view = self.view();
            let chosen = log_disks(&view);
            if chosen.is_empty() {
                return Err(WriteError::NoLogDevice);
            }
            let mut writes: Vec<BoxFuture<LogWrite>> = Vec::new();
            for member in &chosen {
                // A disk that is new to this epoch gets all of it.
                let from = if state.disks.contains(&member.uuid) { at } else { 0 };
                let blocks = state.image[from..].to_vec();
                let member = member.clone();
                writes.push(Box::pin(async move {
                    let at = member.layout.stripe_log_at + from as u64;
                    let result = write_log_blocks(&member, Dbn::new(at), blocks).await;
                    result.map_err(|error| (member, error))
                }));
            }
            let mut failed = false;
            for result in join_all(writes).await {
                if let Err((member, error)) = result {
                    self.fault(&member, &error);
                    self.kill(&member);
                    failed = true;
                }
            }
            state.disks = chosen.iter().filter(|m| !m.is_dead()).map(|m| m.uuid).collect();
            if !failed {
                return Ok(());
            }
            if self.fenced.load(cairn_sys::lock::atomic::Ordering::Acquire) {
                return Err(WriteError::Fenced);
            }
        }
    }
}

async fn write_log_blocks(member: &Member, at: Dbn, blocks: Vec<Block>) -> Result<(), DiskError> {
    if blocks.len() <= cairn_raid_disk::REQUEST_BLOCKS_MAX && !mutant("stripe-log-not-flushed") {
        return member.write_stable(at, blocks).await;
    }
    for (i, chunk) in blocks.chunks(cairn_raid_disk::REQUEST_BLOCKS_MAX).enumerate() {
        let offset = (i * cairn_raid_disk::REQUEST_BLOCKS_MAX) as u64;
        member.disk.write(at.plus(offset), chunk.to_vec()).await?;
    }
    if mutant("stripe-log-not-flushed") {
        return Ok(());
    }
    member.disk.flush().await
}

/// The disks that carry the log: `parity + 1` of the first group, parity disks first, since data
/// disks also serve reads. All in one group, so that whoever loses all of them has lost the group.
fn log_disks(view: &View) -> Vec<Arc<Member>> {
    let Some(group) = view.groups.values().next() else { return Vec::new() };
    let copies = usize::from(group.parity()) + 1;
    let alive = group.slots.iter().rev().filter_map(|s| s.writable().cloned());
    alive.take(copies).collect()
}

/// What recovery found in the log.
pub(crate) struct Found {
    pub epoch: u64,
    /// The last record of each stripe.
    pub records: BTreeMap<(GroupNo, u64), Record>,
}

/// Reads the log areas of all disks: the newest epoch, the longest run of entries.
pub(crate) async fn scan(
    aggregate: AggregateUuid,
    members: &[Arc<Member>],
    dead_epoch: u64,
) -> Found {
    let mut best: Option<(u64, Vec<Record>)> = None;
    for member in members {
        let Some((epoch, records)) = scan_disk(aggregate, member, dead_epoch).await else {
            continue;
        };
        let better = best
            .as_ref()
            .is_none_or(|(e, r)| epoch > *e || (epoch == *e && records.len() > r.len()));
        if better {
            best = Some((epoch, records));
        }
    }
    let (epoch, records) = best.unwrap_or((dead_epoch, Vec::new()));
    let mut found = Found { epoch: epoch.max(dead_epoch), records: BTreeMap::new() };
    for record in records {
        found.records.insert((record.group, record.stripe), record);
    }
    found
}

async fn scan_disk(
    aggregate: AggregateUuid,
    member: &Member,
    dead_epoch: u64,
) -> Option<(u64, Vec<Record>)> {
    let size = member.layout.stripe_log_blocks;
    let mut buffer: BTreeMap<u64, Block> = BTreeMap::new();
    let (mut at, mut sequence, mut epoch) = (0u64, 0u64, None);
    let mut out = Vec::new();
    while at < size {
        let Some(head) = fetch(member, &mut buffer, at, size).await else { break };
        let Ok(raw) = open::<LogEntryV1>(&head, MAGIC_ENTRY) else { break };
        let this = raw.epoch.get();
        let payload_blocks = u64::from(raw.payload_blocks.get());
        let fits =
            payload_blocks < size - at && usize::from(raw.records.get()) <= ENTRY_RECORDS_MAX;
        if raw.aggregate != aggregate.bytes()
            || this <= dead_epoch
            || epoch.is_some_and(|e| e != this)
            || raw.sequence.get() != sequence
            || !fits
        {
            break;
        }
        let mut payload = Vec::new();
        for i in 0..payload_blocks {
            payload.extend(fetch(member, &mut buffer, at + 1 + i, size).await);
        }
        let mut hasher = crc32fast::Hasher::new();
        for block in &payload {
            hasher.update(&block[..]);
        }
        if hasher.finalize() != raw.payload_crc.get() {
            break;
        }
        epoch = Some(this);
        let records = usize::from(raw.records.get());
        out.extend(raw.stripes.iter().take(records).map(|r| decode(r, &payload)));
        at += 1 + payload_blocks;
        sequence += 1;
        buffer = buffer.split_off(&at);
    }
    epoch.map(|e| (e, out))
}

fn decode(raw: &StripeRecordV1, payload: &[Block]) -> Record {
    let flags = raw.flags.get();
    let rest = if flags & RECORD_PARTIAL != 0 {
        let from = usize::try_from(raw.payload.get()).unwrap_or(usize::MAX);
        Rest::Partial(payload.iter().skip(from).take(2).cloned().collect())
    } else if flags & RECORD_REST_ZERO != 0 {
        Rest::Zero
    } else {
        Rest::None
    };
    Record {
        group: GroupNo::new(raw.group.get()),
        stripe: raw.stripe.get(),
        mask: raw.mask.map(|w| w.get()),
        fresh: raw.fresh.map(|w| w.get()),
        twin: (raw.twin.get() != 0).then(|| TwinRecord {
            disk: DiskMark(raw.twin.get()),
            fresh: flags & RECORD_TWIN_FRESH != 0,
        }),
        rest,
    }
}

async fn fetch(
    member: &Member,
    buffer: &mut BTreeMap<u64, Block>,
    at: u64,
    size: u64,
) -> Option<Block> {
    if let Some(block) = buffer.get(&at) {
        return Some(block.clone());
    }
    let n = SCAN_BLOCKS.min(size.checked_sub(at)?);
    let start = Dbn::new(member.layout.stripe_log_at + at);
    if let Ok(blocks) = member.read(start, usize::try_from(n).ok()?).await {
        buffer.extend((at..).zip(blocks));
    } else if let Ok(mut one) = member.read(start, 1).await {
        // A bad sector further on must not hide the entries before it.
        buffer.extend(one.pop().map(|b| (at, b)));
    }
    buffer.get(&at).cloned()
}
