//! Opening an aggregate: root, volumes, replay of the log, the first consistency point.
//!
//! Layer: top of the storage manager. Cost depends on the number of volumes and the length of the
//! log, never on the data.
//!
//! ```text
//! read root ─► free counts ─► volume records ─► recover log ─► replay ─► new log ─► CP ─► begin
//! ```

use cairn_sys::lock::atomic::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_raid_api::{Aggregate, AggregateAdmin, ReadRequest};
use cairn_sys::{Payload, World, mutant};
use cairn_units::{BLOCK_BYTES_U64, CpCount, Fsid, Lsn};
use cairn_wafl_format::{AggregateRoot, FormatError, VolumeRecord};
use cairn_wafl_nvlog::{
    LogPosition, Nvlog, NvlogOptions, RecoverError, RecoveredRecord, SwitchError, recover,
};

use crate::StorageManager;
use crate::change::Change;
use crate::cp::{CpError, Engine};
use crate::manager::{Inner, LoadError, Parts, StorageConfig, Volume, cp_task, reap_task};
use crate::space::{Space, SpaceFile, TETRIS_STRIPES_MAX};
use crate::sums::Balance;
use crate::tree::{Key, TreeMiss};
use crate::volume::{Stop, VolState};

/// Replayed dirty blocks after which a consistency point runs in the middle of the replay.
const REPLAY_CHECK_RECORDS: u64 = 64;

/// Why an aggregate could not be opened. Nothing was written, unless a replay had to be cut by a
/// consistency point (then it goes on from there).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The root record is not one of this program's.
    #[error("the aggregate's root record: {0}")]
    Root(FormatError),
    /// The root is from another consistency point than its slot says.
    #[error("the aggregate's root record is of consistency point {found}, its slot of {slot}")]
    RootPlace {
        /// In the record.
        found: u64,
        /// In the slot.
        slot: u64,
    },
    /// A metadata block cannot be read.
    #[error("metadata: {0}")]
    Read(String),
    /// A volume record is damaged.
    #[error("volume record {slot}: {source}")]
    Volume {
        /// Its place in the volume table.
        slot: u64,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
    /// The log cannot be read back whole.
    #[error(transparent)]
    Log(#[from] RecoverError),
    /// A log record cannot be applied to the state that the root describes.
    #[error("log record {lsn:?} of volume {fsid} cannot be replayed: {what}")]
    Replay {
        /// Which record.
        lsn: Lsn,
        /// Its volume.
        fsid: Fsid,
        /// Why.
        what: String,
    },
    /// The first consistency point failed.
    #[error("{0}")]
    Start(String),
}

impl From<LoadError> for OpenError {
    fn from(e: LoadError) -> Self {
        OpenError::Read(e.to_string())
    }
}

impl From<CpError> for OpenError {
    fn from(e: CpError) -> Self {
        OpenError::Start(e.to_string())
    }
}

impl From<SwitchError> for OpenError {
    fn from(e: SwitchError) -> Self {
        OpenError::Start(e.to_string())
    }
}

async fn read_at(
    aggr: &Arc<dyn Aggregate>,
    space: &mut Space,
    file: SpaceFile,
    at: TreeMiss,
) -> Result<(), OpenError> {
    let request = ReadRequest { at: at.ptr.pvbn, expect: Some(at.ptr.crc) };
    match aggr.read(vec![request]).await.pop() {
        Some(Ok(block)) => {
            space.file(file).insert_loaded(at.key, at.ptr, block);
            Ok(())
        }
        Some(Err(error)) => Err(OpenError::Read(error.to_string())),
        None => Err(OpenError::Read(format!("no answer for {:?}", at.ptr.pvbn))),
    }
}

/// What the root leads to.
struct Found {
    engine: Engine,
    volumes: BTreeMap<Fsid, Arc<Volume>>,
    newest_lsn: Lsn,
    /// What is wrong and does not keep the node from starting.
    faults: Vec<String>,
}

async fn read_root(aggr: &Arc<dyn Aggregate>) -> Result<Found, OpenError> {
    let geometry = aggr.geometry();
    let (mut newest_lsn, mut faults) = (Lsn::new(0), Vec::new());
    let Some(slot) = aggr.root() else {
        let mut engine = Engine {
            space: Space::new(geometry),
            cp: CpCount::new(0),
            slots: BTreeMap::new(),
            slots_end: 0,
            deletions: Vec::new(),
            log_position: None,
        };
        while let Err(at) = engine.space.read_counts() {
            read_at(aggr, &mut engine.space, SpaceFile::Counts, at).await?;
        }
        engine.space.reserve_zero();
        return Ok(Found { engine, volumes: BTreeMap::new(), newest_lsn, faults });
    };
    let root = AggregateRoot::decode(&slot.bytes).map_err(OpenError::Root)?;
    if root.cp != slot.cp {
        return Err(OpenError::RootPlace { found: root.cp.get(), slot: slot.cp.get() });
    }
    let mut space = Space::from_root(geometry, &root);
    while let Err(at) = space.read_counts() {
        read_at(aggr, &mut space, SpaceFile::Counts, at).await?;
    }
    let (mut volumes, mut slots) = (BTreeMap::new(), BTreeMap::new());
    for slot in 0..root.volume_slots {
        let block = loop {
            match space.volumes.get(Key::data(slot)) {
                Ok(block) => break block,
                Err(at) => read_at(aggr, &mut space, SpaceFile::Volumes, at).await?,
            }
        };
        let Some(block) = block.filter(|b| b.iter().any(|byte| *byte != 0)) else { continue };
        let record =
            VolumeRecord::decode(&block).map_err(|source| OpenError::Volume { slot, source })?;
        newest_lsn = newest_lsn.max(record.lsn);
        slots.insert(slot, record.fsid);
        let state = VolState::from_record(&record);
        if state.balance != Balance::default() {
            let (fsid, balance) = (record.fsid, state.balance);
            faults.push(format!("volume {fsid} does not add up ({balance:?}): check it"));
        }
        volumes.insert(record.fsid, Arc::new(Volume::new(slot, state, false)));
    }
    let engine = Engine {
        space,
        cp: root.cp,
        slots,
        slots_end: root.volume_slots,
        deletions: Vec::new(),
        log_position: root.log_position,
    };
    Ok(Found { engine, volumes, newest_lsn, faults })
}

impl StorageManager {
    /// Opens (or begins, when it has no root) the aggregate `aggr`; returns when every operation
    /// that was ever acknowledged as stable is back.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        world: World,
        aggr: Arc<dyn Aggregate>,
        admin: Option<Arc<dyn AggregateAdmin>>,
        config: StorageConfig,
    ) -> Result<Self, OpenError> {
        let mut found = read_root(&aggr).await?;
        found.engine.space.tetris_stripes = config.tetris_stripes.clamp(1, TETRIS_STRIPES_MAX);
        let uuid = aggr.geometry().aggregate;
        let position = match found.engine.log_position {
            None => None,
            Some(bytes) => match LogPosition::from_bytes(&bytes) {
                Some(position) => Some(position),
                None => {
                    let structure = "log position";
                    return Err(OpenError::Root(FormatError::NotThis { structure }));
                }
            },
        };
        let mut recovered = recover(aggr.log(), uuid, position).await?;
        for finding in &recovered.findings {
            tracing::warn!("log: {finding:?}");
        }
        let next_lsn = recovered.next_lsn().max(found.newest_lsn.plus(1));
        let parity = aggr.geometry().groups.iter().map(|g| g.parity).max().unwrap_or(0);
        let copies = config.log_copies.unwrap_or(usize::from(parity) + 1).clamp(1, 4);
        let options = NvlogOptions { aggregate: uuid, copies, next_lsn };
        let log = Nvlog::open(&world, aggr.log(), options, &recovered)?;
        let inner = Arc::new(Inner::new(Parts {
            world: world.clone(),
            aggr,
            admin,
            log_copies: config.log_copies,
            log,
            engine: found.engine,
            volumes: found.volumes,
            cache_blocks: config.cache_blocks.max(256),
        }));
        for fault in found.faults {
            inner.fault(fault);
        }
        let start = world.clock.monotonic();
        inner.replay(core::mem::take(&mut recovered.records)).await?;
        let took = world.clock.monotonic().since(start).unwrap_or_default();
        inner.counters.replay_nanos.store(took, Ordering::Relaxed);
        // This root contains everything replayed, and the position of the new log.
        {
            let mut engine = inner.engine.lock().await;
            engine.log_position = Some(inner.log.position().to_bytes());
        }
        inner.run_cp().await?;
        let half = inner.log.begin().await?;
        for volume in inner.volumes() {
            volume.lock().half = Some(half);
        }
        inner.log_begun.store(true, Ordering::Release);
        world.spawn.spawn("consistency points", Box::pin(cp_task(inner.clone())));
        world.spawn.spawn("reaper", Box::pin(reap_task(inner.clone())));
        Ok(Self { inner })
    }
}

impl Inner {
    async fn replay(&self, records: Vec<RecoveredRecord>) -> Result<(), OpenError> {
        for (count, record) in (1u64..).zip(records) {
            let RecoveredRecord { lsn, record } = record;
            let Some(volume) = self.volume(record.fsid) else { continue };
            if lsn <= volume.lock().lsn && !mutant("replayed-twice") {
                continue;
            }
            let failed = |what: String| OpenError::Replay { lsn, fsid: record.fsid, what };
            let Some((change, time)) = Change::decode(record.kind.get(), &record.body) else {
                return Err(failed("its body cannot be read".to_owned()));
            };
            let blocks = record.payload.iter().map(|b| b.data.clone()).collect();
            let payload = payload_of(&change, blocks)
                .ok_or_else(|| failed("its payload has another length".to_owned()))?;
            loop {
                let stop = {
                    let mut st = volume.lock();
                    match st.ready(&change) {
                        Ok(ready) => {
                            st.apply(&change, &payload, ready, time);
                            st.lsn = lsn;
                            self.take_delta(&mut st);
                            break;
                        }
                        Err(stop) => stop,
                    }
                };
                if let Err(Stop::Fail(f)) = self.resolve(&volume, stop).await {
                    return Err(failed(f.status.to_string()));
                }
            }
            self.counters.replayed_records.fetch_add(1, Ordering::Relaxed);
            if count % REPLAY_CHECK_RECORDS == 0 && self.must_drain() {
                self.run_cp().await?;
            }
        }
        Ok(())
    }
}

fn payload_of(change: &Change, blocks: Vec<cairn_sys::Block>) -> Option<Payload> {
    let (offset, bytes) = match change {
        Change::Write { offset, bytes, .. } => (*offset, *bytes),
        Change::Xattrs { bytes, .. } => (0, *bytes),
        _ => return blocks.is_empty().then(Payload::default),
    };
    let skip = u32::try_from(offset % BLOCK_BYTES_U64).ok()?;
    let need =
        if bytes == 0 { 0 } else { (u64::from(skip) + u64::from(bytes)).div_ceil(BLOCK_BYTES_U64) };
    (blocks.len() as u64 == need).then(|| Payload::new(skip, bytes, blocks))
}
