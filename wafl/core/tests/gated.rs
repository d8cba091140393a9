//! Points that stand still on the way to the disks: what lies there already may leave memory, and
//! nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cairn_cf::Manage;
use cairn_raid_api::{
    Aggregate, Geometry, LogStore, Place, ReadError, ReadRequest, RootRecord, Tetris, WriteError,
};
use cairn_raid_group::{RaidAggregate, RaidKind};
use cairn_sys::{Block, BoxFuture};
use cairn_units::Pvbn;
use cairn_wafl_core::StorageManager;
use tokio::sync::Notify;

use crate::common::Rig;
use crate::space::{check_read, counter, create, manage, volume, write};

/// What may be shut.
#[derive(Default)]
struct Gate {
    shut: AtomicBool,
    opened: Notify,
}

impl Gate {
    fn shut(&self) {
        self.shut.store(true, Ordering::Release);
    }
    fn open(&self) {
        self.shut.store(false, Ordering::Release);
        self.opened.notify_waiters();
    }
    async fn pass(&self) {
        loop {
            let opened = self.opened.notified();
            if !self.shut.load(Ordering::Acquire) {
                return;
            }
            opened.await;
        }
    }
}

/// An aggregate with a gate before its writes and one before its roots.
struct Gated {
    inner: Arc<RaidAggregate>,
    writes: Arc<Gate>,
    roots: Arc<Gate>,
}

impl Aggregate for Gated {
    fn geometry(&self) -> Arc<Geometry> {
        self.inner.geometry()
    }
    fn read(&self, requests: Vec<ReadRequest>) -> BoxFuture<Vec<Result<Block, ReadError>>> {
        self.inner.read(requests)
    }
    fn write(&self, tetris: Tetris) -> BoxFuture<Result<(), WriteError>> {
        let (gate, inner) = (self.writes.clone(), self.inner.clone());
        Box::pin(async move {
            gate.pass().await;
            inner.write(tetris).await
        })
    }
    fn commit_root(&self, root: RootRecord) -> BoxFuture<Result<(), WriteError>> {
        let (gate, inner) = (self.roots.clone(), self.inner.clone());
        Box::pin(async move {
            gate.pass().await;
            inner.commit_root(root).await
        })
    }
    fn root(&self) -> Option<RootRecord> {
        self.inner.root()
    }
    fn log(&self) -> Arc<dyn LogStore> {
        self.inner.log()
    }
    fn place(&self, at: Pvbn) -> Option<Place> {
        self.inner.place(at)
    }
}

const CACHE_BLOCKS: usize = 1024;

/// A node with gates, both open.
fn gated(seed: u64) -> (Rig, Arc<Gate>, Arc<Gate>) {
    let mut rig = Rig::new(seed, RaidKind::RaidDp, 6, 16_384);
    rig.sim.block_on(rig.node().shutdown()).expect("a clean stop");
    rig.config.cache_blocks = CACHE_BLOCKS;
    let inner = rig.aggr.clone().expect("open");
    let (writes, roots) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let aggr = Gated { inner: inner.clone(), writes: writes.clone(), roots: roots.clone() };
    let opened =
        StorageManager::open(rig.sim.world(), Arc::new(aggr), Some(inner), rig.config.clone());
    rig.node = Some(Arc::new(rig.sim.block_on(opened).expect("the volumes open")));
    (rig, writes, roots)
}

#[test]
fn what_lies_on_the_disks_makes_room_while_the_root_of_its_point_waits() {
    let (rig, _, roots) = gated(31);
    let root = volume(&rig, 1, 256 << 20);
    let file = create(&rig, root, "stream").unwrap();
    manage(&rig, Manage::ConsistencyPoint);
    let points = counter(&rig, "cp_total");
    roots.shut();
    // Nearly all that may be dirty: a point begins, and takes it all.
    let piece = 500;
    let mut most = 0;
    for at in [0, piece, 2 * piece] {
        let blocks = if at == 2 * piece { 1 } else { piece };
        write(&rig, file, at, at * 4096, 4096 * usize::try_from(blocks).unwrap()).unwrap();
        rig.sim.run_for(core::time::Duration::from_secs(1));
        most = most.max(counter(&rig, "cache_blocks") + counter(&rig, "dirty_blocks"));
    }
    for at in (0..2 * piece).step_by(50) {
        check_read(&rig, file, at / piece * piece, at * 4096, 50 * 4096);
    }
    assert_eq!(counter(&rig, "cp_total"), points, "no point was committed");
    assert!(most <= CACHE_BLOCKS as u64 + 256, "{most} blocks in a cache of {CACHE_BLOCKS}");
    roots.open();
    manage(&rig, Manage::ConsistencyPoint);
    rig.check();
}

#[test]
fn what_is_on_its_way_to_the_disks_stays_in_memory() {
    let (rig, writes, _) = gated(32);
    let root = volume(&rig, 1, 256 << 20);
    let other = create(&rig, root, "other").unwrap();
    let others = 2 * CACHE_BLOCKS as u64;
    for at in (0..others).step_by(50) {
        write(&rig, other, at, at * 4096, 50 * 4096).unwrap();
    }
    manage(&rig, Manage::ConsistencyPoint);
    let file = create(&rig, root, "file").unwrap();
    writes.shut();
    let blocks = 500;
    write(&rig, file, 0, 0, 500 * 4096).unwrap();
    rig.sim.run_for(core::time::Duration::from_secs(1));
    assert!(counter(&rig, "dirty_blocks") < 20, "they are on their way");
    // Twice round: what may go goes.
    for _ in 0..2 {
        for at in (0..others).step_by(50) {
            check_read(&rig, other, at, at * 4096, 50 * 4096);
        }
    }
    let misses = counter(&rig, "cache_misses_total");
    for at in (0..blocks).step_by(50) {
        check_read(&rig, file, 0, at * 4096, 50 * 4096);
    }
    assert_eq!(counter(&rig, "cache_misses_total"), misses, "a block that is nowhere was read");
    writes.open();
    manage(&rig, Manage::ConsistencyPoint);
    rig.check();
}
