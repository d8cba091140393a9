//! Checksum blocks in memory: what each block on each disk should hold.
//!
//! Layer: over [`crate::member`]. A bounded cache; an entry that changed since the last flush is
//! never evicted. Invariant: the copy of a checksum block that was durable at the last flush is
//! not overwritten before the next flush, so that a power cut leaves the stamps of every
//! committed block readable. A stamp that was read while another copy of its checksum block was
//! lost stays doubtful, on the disk too, until it is set anew. Callers that change an entry hold
//! the stripe lock of its region.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cairn_raid_api::BlockTag;
use cairn_raid_disk::DiskError;
use cairn_sys::lock::{Mutex, Rank};
use cairn_sys::{Block, mutant};
use cairn_units::{CpCount, Crc, Dbn, DiskUuid, Fsid, Vvbn};

use crate::member::{Member, RegionKnown};
use crate::ondisk::{
    MAGIC_STAMPS, REGION_STAMPS, REGION_STRIPES, STAMP_DOUBTFUL, STAMP_PARITY, STAMP_REBUILT,
    STAMP_UNKNOWN, STAMP_WRITTEN, StampBlockV1, StampV1, blank, open, seal,
};

/// What a stamp says of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StampKind {
    /// Never written, or freed and filled: zeros. The device is not asked.
    Zero,
    /// Holds a block with this checksum.
    Written(Crc),
    /// Nobody knows; only parity can tell.
    Unknown,
}

/// Stamp of a written block.
pub(crate) fn stamp_written(crc: Crc, tag: BlockTag) -> StampV1 {
    StampV1 {
        crc: crc.get().into(),
        flags: STAMP_WRITTEN.into(),
        fsid: tag.fsid.get().into(),
        vvbn: tag.vvbn.get().into(),
        cp: tag.cp.get().into(),
    }
}
/// Stamp of a parity block.
pub(crate) fn stamp_parity(crc: Crc) -> StampV1 {
    let flags = STAMP_WRITTEN | STAMP_PARITY;
    StampV1 { crc: crc.get().into(), flags: flags.into(), ..StampV1::default() }
}
/// Stamp of a block that was rebuilt without its identity.
pub(crate) fn stamp_rebuilt(crc: Crc) -> StampV1 {
    let flags = STAMP_WRITTEN | STAMP_REBUILT;
    StampV1 { crc: crc.get().into(), flags: flags.into(), ..StampV1::default() }
}

impl StampV1 {
    pub(crate) fn kind(&self) -> StampKind {
        let flags = self.flags.get();
        if flags & STAMP_UNKNOWN != 0 {
            StampKind::Unknown
        } else if flags & STAMP_WRITTEN != 0 {
            StampKind::Written(Crc::new(self.crc.get()))
        } else {
            StampKind::Zero
        }
    }
    /// Whether a newer stamp of the block may have been lost.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.flags.get() & STAMP_DOUBTFUL != 0
    }
    /// Whether the block is known to be zeros.
    pub(crate) fn is_zero(&self) -> bool {
        self.kind() == StampKind::Zero && !self.is_doubtful()
    }
    /// The same without doubt: the block was found to be what the stamp says.
    pub(crate) fn certain(self) -> Self {
        Self { flags: (self.flags.get() & !STAMP_DOUBTFUL).into(), ..self }
    }
    /// The identity, when the stamp carries one.
    pub(crate) fn tag(&self) -> Option<BlockTag> {
        let flags = self.flags.get();
        (flags & STAMP_WRITTEN != 0 && flags & (STAMP_REBUILT | STAMP_PARITY) == 0).then(|| {
            BlockTag {
                fsid: Fsid::new(self.fsid.get()),
                vvbn: Vvbn::new(self.vvbn.get()),
                cp: CpCount::new(self.cp.get()),
            }
        })
    }
}

/// The stamps of one region of one disk.
pub(crate) struct RegionStamps {
    stamps: Vec<StampV1>,
    /// Of the copy last read or flushed.
    sequence: u64,
    durable: Option<u8>,
    /// Changed since the last flush.
    dirty: bool,
    /// No copy of it was ever durable: a log record must say so.
    fresh: bool,
    /// Copies that were not there when it was read, and were not written since.
    lost: [bool; 2],
    used: bool,
}

fn index(stripe: u64) -> usize {
    usize::try_from(stripe % REGION_STRIPES).unwrap_or(0)
}

impl RegionStamps {
    fn new(stamps: Vec<StampV1>) -> Self {
        Self {
            stamps,
            sequence: 0,
            durable: None,
            dirty: false,
            fresh: false,
            lost: [false; 2],
            used: true,
        }
    }
    fn zeros() -> Self {
        Self { fresh: true, ..Self::new(vec![StampV1::default(); REGION_STAMPS]) }
    }
    fn unknown() -> Self {
        let stamp = StampV1 { flags: STAMP_UNKNOWN.into(), ..StampV1::default() };
        Self::new(vec![stamp; REGION_STAMPS])
    }
    /// A copy of it was lost that may have been newer.
    fn doubtful(mut self) -> Self {
        if mutant("lost-copy-not-doubted") {
            return self;
        }
        for stamp in &mut self.stamps {
            stamp.flags = (stamp.flags.get() | STAMP_DOUBTFUL).into();
        }
        self
    }
    pub(crate) fn get(&self, stripe: u64) -> StampV1 {
        self.stamps[index(stripe)]
    }
    pub(crate) fn set(&mut self, stripe: u64, stamp: StampV1) {
        self.stamps[index(stripe)] = stamp;
    }
    /// Whether no copy was durable at the last flush.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh
    }
    /// Whether it is what was flushed last.
    fn is_settled(&self) -> bool {
        !self.dirty && !self.fresh
    }
    /// Copies that were not there, and that the next write of the region makes again; none while
    /// that is under way.
    pub(crate) fn lost_copies(&self) -> impl Iterator<Item = u8> {
        let lost = if self.dirty { [false; 2] } else { self.lost };
        [0, 1].into_iter().zip(lost).filter_map(|(copy, lost)| lost.then_some(copy))
    }
    fn target(&self) -> u8 {
        match self.durable {
            Some(0) if !mutant("durable-stamps-overwritten") => 1,
            _ => 0,
        }
    }
    /// The blocks to write: the copy that may be overwritten, or both while there is none.
    fn stage(&mut self, member: &Member, region: u64) -> Vec<(Dbn, Block)> {
        self.dirty = true;
        let mut raw: StampBlockV1 = blank();
        raw.disk = member.uuid.bytes();
        raw.region = region.into();
        raw.sequence = (self.sequence + 1).into();
        for (to, from) in raw.stamps.iter_mut().zip(&self.stamps) {
            *to = *from;
        }
        let block = seal(&raw, MAGIC_STAMPS);
        let copies = if self.durable.is_none() { 0..=1 } else { self.target()..=self.target() };
        copies.map(|copy| (member.layout.stamps_dbn(region, copy), block.clone())).collect()
    }
}

type Key = (DiskUuid, u64);
/// One region's stamps, shared.
pub(crate) type StampsRef = Arc<Mutex<RegionStamps>>;

#[derive(Default)]
struct CacheState {
    entries: BTreeMap<Key, StampsRef>,
    dirty: BTreeSet<Key>,
    /// Where the eviction scan stands.
    hand: Option<Key>,
    /// Flush intervals ended so far.
    flushes: u64,
}

/// The cache of checksum blocks.
pub(crate) struct StampCache {
    state: Mutex<CacheState>,
    entries_max: usize,
    /// Regions that a live stripe log record calls never written before the crash.
    fresh: Mutex<BTreeSet<Key>>,
}

impl StampCache {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self {
            state: Mutex::new(Rank::StampCache, CacheState::default()),
            entries_max,
            fresh: Mutex::new(Rank::FreshStamps, BTreeSet::new()),
        }
    }

    /// For recovery: this region had no durable stamps when the power went.
    pub(crate) fn note_fresh(&self, disk: DiskUuid, region: u64) {
        self.fresh.lock().insert((disk, region));
    }
    /// Recovery is over.
    pub(crate) fn forget_fresh(&self) {
        self.fresh.lock().clear();
    }

    /// The stamps of a region, read if need be.
    ///
    /// # Errors
    /// When the device does not answer. Damaged checksum blocks are no error: their stamps are
    /// unknown.
    pub(crate) async fn get(&self, member: &Member, region: u64) -> Result<StampsRef, DiskError> {
        let key = (member.uuid, region);
        if let Some(found) = self.state.lock().entries.get(&key) {
            found.lock().used = true;
            return Ok(found.clone());
        }
        let (loaded, mut state) = loop {
            let flushes = self.state.lock().flushes;
            let loaded = self.load(member, region).await?;
            let state = self.state.lock();
            if let Some(found) = state.entries.get(&key) {
                return Ok(found.clone());
            }
            // An entry that was changed, flushed and evicted while this one was being read would
            // be newer than what was read.
            if state.flushes == flushes {
                break (loaded, state);
            }
        };
        if state.entries.len() >= self.entries_max {
            evict(&mut state);
        }
        let entry = Arc::new(Mutex::new(Rank::RegionStamps, loaded));
        state.entries.insert(key, entry.clone());
        Ok(entry)
    }

    async fn load(&self, member: &Member, region: u64) -> Result<RegionStamps, DiskError> {
        let known = member.map.known(region);
        // What a crash left of stamps that were never durable is not believed: it may be older
        // than this interval, from one that was cut before it.
        let fresh = self.fresh.lock().contains(&(member.uuid, region));
        if fresh && known == RegionKnown::Perhaps {
            return Ok(RegionStamps::zeros().doubtful());
        }
        if fresh || known == RegionKnown::Never {
            return Ok(RegionStamps::zeros());
        }
        let at = member.layout.stamps_dbn(region, 0);
        let copies: Vec<Option<Block>> = match member.read(at, 2).await {
            Ok(blocks) => blocks.into_iter().map(Some).collect(),
            Err(DiskError::Medium { .. }) => {
                let mut copies = Vec::new();
                for copy in [0, 1] {
                    let one = member.read(member.layout.stamps_dbn(region, copy), 1).await;
                    copies.push(match one {
                        Ok(mut blocks) => blocks.pop(),
                        Err(DiskError::Medium { .. }) => None,
                        Err(e) => return Err(e),
                    });
                }
                copies
            }
            Err(e) => return Err(e),
        };
        let parsed = |copy: u8| {
            let block = copies.get(usize::from(copy))?.as_ref()?;
            parse(member.uuid, region, copy, block)
        };
        Ok(match (parsed(0), parsed(1)) {
            (Some(a), Some(b)) => {
                if b.sequence > a.sequence {
                    b
                } else {
                    a
                }
            }
            (Some(a), None) => RegionStamps { lost: [false, true], ..a.doubtful() },
            (None, Some(b)) => RegionStamps { lost: [true, false], ..b.doubtful() },
            (None, None) if known == RegionKnown::Perhaps => RegionStamps::zeros().doubtful(),
            (None, None) => RegionStamps { lost: [true; 2], ..RegionStamps::unknown() },
        })
    }

    /// The checksum block of a changed region, to be written with its blocks.
    pub(crate) fn stage(
        &self,
        member: &Member,
        region: u64,
        entry: &StampsRef,
    ) -> Vec<(Dbn, Block)> {
        self.state.lock().dirty.insert((member.uuid, region));
        entry.lock().stage(member, region)
    }

    /// Regions changed since the last flush.
    pub(crate) fn dirty_regions(&self) -> usize {
        self.state.lock().dirty.len()
    }

    /// Everything staged and written so far is durable.
    pub(crate) fn flushed(&self) {
        let mut state = self.state.lock();
        state.flushes += 1;
        let dirty = std::mem::take(&mut state.dirty);
        for key in dirty {
            if let Some(entry) = state.entries.get(&key) {
                let mut entry = entry.lock();
                let target = entry.target();
                if entry.durable.is_none() {
                    entry.lost = [false; 2];
                }
                entry.lost[usize::from(target)] = false;
                entry.durable = Some(target);
                entry.sequence += 1;
                entry.dirty = false;
                entry.fresh = false;
            }
        }
    }

    /// Forgets a disk that was taken out.
    pub(crate) fn forget(&self, disk: DiskUuid) {
        let mut state = self.state.lock();
        state.entries.retain(|key, _| key.0 != disk);
        state.dirty.retain(|key| key.0 != disk);
    }

    /// Reads the copies of a checksum block that is in memory unchanged: what is in memory is
    /// right, but a copy of it may be lost. The caller holds the stripe lock of the region.
    pub(crate) async fn look_again(&self, member: &Member, region: u64) -> Result<(), DiskError> {
        let found = self.state.lock().entries.get(&(member.uuid, region)).cloned();
        let Some(entry) = found.filter(|entry| entry.lock().is_settled()) else { return Ok(()) };
        let there = self.load(member, region).await?;
        let mut entry = entry.lock();
        if there.is_fresh() {
            return Ok(());
        }
        entry.lost = there.lost;
        if there.sequence < entry.sequence
            && let Some(older) = there.durable
        {
            // The newest was never written, whatever the disk said.
            entry.lost[usize::from(1 - older)] = true;
        }
        // What is whole is not overwritten before the other one is.
        entry.durable = there.durable;
        Ok(())
    }
}

/// Second chance: clean entries that nobody holds go; those used since the last round stay once.
fn evict(state: &mut CacheState) {
    let steps_max = 2 * state.entries.len();
    for _ in 0..steps_max {
        let next = match state.hand {
            Some(hand) => {
                let after = (core::ops::Bound::Excluded(hand), core::ops::Bound::Unbounded);
                state.entries.range(after).next()
            }
            None => state.entries.iter().next(),
        };
        let Some((key, entry)) = next else {
            state.hand = None;
            continue;
        };
        let key = *key;
        state.hand = Some(key);
        let idle = Arc::strong_count(entry) == 1 && {
            let mut entry = entry.lock();
            let was_used = core::mem::take(&mut entry.used);
            !entry.dirty && !was_used
        };
        if idle {
            state.entries.remove(&key);
            return;
        }
    }
}

fn parse(disk: DiskUuid, region: u64, copy: u8, block: &Block) -> Option<RegionStamps> {
    let raw: &StampBlockV1 = open(block, MAGIC_STAMPS).ok()?;
    if raw.disk != disk.bytes() || raw.region.get() != region {
        return None;
    }
    let mut found = RegionStamps::new(raw.stamps.to_vec());
    found.sequence = raw.sequence.get();
    found.durable = Some(copy);
    Some(found)
}

/// For fuzzers: the stamps of any block, whatever region it names.
pub(crate) fn fuzz_parse(disk: DiskUuid, block: &Block) {
    for region in [0, 1] {
        if let Some(found) = parse(disk, region, 0, block) {
            for stripe in 0..REGION_STRIPES {
                let stamp = found.get(stripe);
                assert!(stamp.tag().is_none() || stamp.kind() != StampKind::Zero);
            }
        }
    }
}
