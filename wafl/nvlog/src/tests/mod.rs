//! Tests of the log on simulated disks that lose power, rot and die.

mod contract;
mod damage;
mod format;
mod history;
mod spread;
mod waiters;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cairn_raid_api::{LogAreaError, LogAreaId, LogStore, SPREAD_DATA_MAX, Spread};
use cairn_raid_disk::{Disk, DiskError};
use cairn_raid_group::log_spread;
use cairn_sim::{SimDisk, SimDiskConfig, SimWorld};
use cairn_sys::{Block, BlockMut, BoxFuture};
use cairn_units::{AggregateUuid, Blocks, Dbn, DiskUuid, Fsid, Lsn};
use tokio::sync::watch;

use crate::{
    LogBlock, LogPosition, Nvlog, NvlogOptions, Record, RecordKind, RecoverError, Recovered,
    record_blocks, recover,
};

pub(crate) const AGGREGATE: AggregateUuid = AggregateUuid::new([0xa6; 16]);

/// Log areas that are simulated disks of their own.
pub(crate) struct Areas {
    pub(crate) disks: BTreeMap<LogAreaId, SimDisk>,
    /// Areas that failed a request or were taken away.
    out: Arc<Mutex<Vec<LogAreaId>>>,
    losses: Arc<watch::Sender<u64>>,
    blocks: Blocks,
    /// Payload from so many blocks on is spread over all areas.
    spread_from: Option<usize>,
    pub(crate) writes: AtomicU64,
}

pub(crate) fn area(n: u8) -> LogAreaId {
    LogAreaId(DiskUuid::new([n; 16]))
}

impl Areas {
    pub(crate) fn new(sim: &SimWorld, count: u8, blocks: u64) -> Arc<Self> {
        let disk = |n: u8| {
            let config = SimDiskConfig::new(&format!("log{n}"), Blocks::new(blocks));
            (area(n), sim.disk(config))
        };
        Self::of((1..=count).map(disk).collect(), Blocks::new(blocks), None)
    }
    /// Areas over which payload is spread from `from` blocks on.
    pub(crate) fn spreading(sim: &SimWorld, count: u8, blocks: u64, from: usize) -> Arc<Self> {
        let areas = Self::new(sim, count, blocks);
        Self::of(areas.disks.clone(), areas.blocks, Some(from))
    }
    fn of(
        disks: BTreeMap<LogAreaId, SimDisk>,
        blocks: Blocks,
        spread_from: Option<usize>,
    ) -> Arc<Self> {
        let (out, losses) = (Arc::default(), Arc::new(watch::Sender::new(0)));
        Arc::new(Self { disks, out, losses, blocks, spread_from, writes: AtomicU64::new(0) })
    }
    /// The same disks after the power came back.
    pub(crate) fn reattached(&self) -> Arc<Self> {
        let disks = self.disks.iter().map(|(id, disk)| (*id, disk.reattach())).collect();
        Self::of(disks, self.blocks, self.spread_from)
    }
    /// Offers the area no more, though what lies in it stays.
    pub(crate) fn set_aside(&self, id: LogAreaId) {
        self.out.lock().unwrap().push(id);
    }
    pub(crate) fn take_out(&self, id: LogAreaId) {
        self.out.lock().unwrap().push(id);
        self.losses.send_modify(|n| *n += 1);
    }
    fn is_out(&self, id: LogAreaId) -> bool {
        self.out.lock().unwrap().contains(&id)
    }
    pub(crate) fn look(&self, id: LogAreaId, at: u64) -> Block {
        self.disks[&id].image().visible(Dbn::new(at))
    }
}

fn translate(area: LogAreaId, at: u64, error: &DiskError) -> LogAreaError {
    match error {
        DiskError::Medium { .. } | DiskError::TimedOut { .. } => LogAreaError::Medium { area, at },
        DiskError::Gone { .. } => LogAreaError::Gone(area),
        DiskError::Fenced => LogAreaError::Fenced,
        DiskError::OutOfRange { .. } => LogAreaError::OutOfRange,
    }
}

impl LogStore for Areas {
    fn area_blocks(&self) -> Blocks {
        self.blocks
    }
    fn areas(&self) -> Vec<LogAreaId> {
        self.disks.keys().copied().filter(|id| !self.is_out(*id)).collect()
    }
    fn choose(&self, copies: usize) -> Vec<LogAreaId> {
        self.areas().into_iter().take(copies).collect()
    }
    fn spread(&self, copies: usize) -> Option<Spread> {
        let (from_blocks, parity) = (self.spread_from?, copies.checked_sub(1)?);
        let areas: Vec<LogAreaId> =
            self.areas().into_iter().take(SPREAD_DATA_MAX + parity).collect();
        (areas.len() >= 2 + parity).then_some(Spread { areas, parity, from_blocks })
    }
    fn spread_parity(&self, data: &[&[Block]], parity: usize) -> Vec<Vec<Block>> {
        log_spread::parity(data, parity)
    }
    fn spread_restore(&self, row: &mut [Option<Block>], parity: usize) -> bool {
        log_spread::restore(row, parity)
    }
    fn loss_after(&self, seen: u64) -> BoxFuture<u64> {
        let mut losses = self.losses.subscribe();
        Box::pin(async move {
            let reached = losses.wait_for(|n| *n > seen).await.map(|n| *n);
            match reached {
                Ok(n) => n,
                // The store is gone: nothing is lost any more.
                Err(_) => core::future::pending().await,
            }
        })
    }
    fn read(
        &self,
        area: LogAreaId,
        at: u64,
        count: usize,
    ) -> BoxFuture<Result<Vec<Block>, LogAreaError>> {
        let bufs = (0..count).map(|_| BlockMut::dirty()).collect();
        let read = self.disks[&area].read(Dbn::new(at), bufs);
        Box::pin(async move {
            let bufs = read.await.map_err(|e| translate(area, at, &e))?;
            Ok(bufs.into_iter().map(BlockMut::freeze).collect())
        })
    }
    fn write_stable(
        &self,
        area: LogAreaId,
        at: u64,
        blocks: Vec<Block>,
    ) -> BoxFuture<Result<(), LogAreaError>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let (disk, out) = (self.disks[&area].clone(), self.out.clone());
        let losses = self.losses.clone();
        Box::pin(async move {
            let written = match disk.write(Dbn::new(at), blocks).await {
                Ok(()) => disk.flush().await,
                Err(error) => Err(error),
            };
            if written.is_err() {
                out.lock().unwrap().push(area);
                losses.send_modify(|n| *n += 1);
            }
            written.map_err(|error| translate(area, at, &error))
        })
    }
}

/// A record whose contents follow from `seed`.
pub(crate) fn record(fsid: u64, seed: u64, body_bytes: usize, payload: usize) -> Record {
    let body = seed.to_le_bytes().into_iter().cycle().take(body_bytes).collect();
    let block = |n| LogBlock::new(cairn_sim::conformance::pattern(seed.wrapping_add(n)));
    Record {
        fsid: Fsid::new(fsid),
        kind: RecordKind::new(7),
        body,
        payload: (0..payload as u64).map(block).collect(),
    }
}

pub(crate) fn same(a: &Record, b: &Record) -> bool {
    let payload = a.payload.iter().zip(&b.payload).all(|(a, b)| a.data == b.data && a.crc == b.crc);
    (a.fsid, a.kind, &a.body, a.payload.len()) == (b.fsid, b.kind, &b.body, b.payload.len())
        && payload
}

/// A log that has begun on `areas`, with two copies.
pub(crate) async fn begun(sim: &SimWorld, areas: &Arc<Areas>) -> Nvlog {
    begun_with(sim, areas, 2).await
}

pub(crate) async fn begun_with(sim: &SimWorld, areas: &Arc<Areas>, copies: usize) -> Nvlog {
    let nothing = recover(areas.clone(), AGGREGATE, None).await.unwrap();
    let options = NvlogOptions { aggregate: AGGREGATE, copies, next_lsn: Lsn::new(1) };
    let log = Nvlog::open(&sim.world(), areas.clone(), options, &nothing).unwrap();
    log.begin().await.unwrap();
    log
}

/// Reserves for and appends one record to the newest half.
pub(crate) fn append(log: &Nvlog, record: Record) -> Option<Lsn> {
    let cost = record_blocks(record.body.len(), record.payload.len());
    let mut reservation = log.reserve(cost).unwrap()?;
    Some(log.append(log.current(), &mut reservation, record))
}

pub(crate) fn recover_now(
    sim: &SimWorld,
    areas: &Arc<Areas>,
    position: LogPosition,
) -> Result<Recovered, RecoverError> {
    sim.block_on(recover(areas.clone(), AGGREGATE, Some(position)))
}
