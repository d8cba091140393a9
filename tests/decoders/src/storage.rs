//! The storage manager on an aggregate whose root is not what it should be, although its checksum
//! says so; and the seeds that a real one gives.
//!
//! Layer: tests. [`Forged`] stands between the storage manager and RAID and gives out a changed
//! root: what a fault of our own could have written, or what an attacker on the disks could.
//! Volumes are opened, listed and read; nothing may panic. Blocks below the root are not forged:
//! maps that do not add up are a broken invariant, at which the node stops by an assertion.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use cairn_cf::{DModule, Manage, Managed};
use cairn_op::{
    ClientAddr, CreateHow, Credential, LinkTarget, ListLimits, Name, ObjectRef, Op, OpCtx,
    OpResult, ReadOnly, Reply, SetAttrs, Stability, WithFiles, XattrHow,
};
use cairn_raid_api::{
    Aggregate, Geometry, LogStore, Place, ReadError, ReadRequest, RootRecord, Tetris, WriteError,
};
use cairn_raid_disk::Disk;
use cairn_raid_group::{CreateOptions, OpenOptions, RaidAggregate, RaidKind};
use cairn_sim::{CutPolicy, DiskImage, SimDisk, SimDiskConfig, SimWorld};
use cairn_sys::{Block, BoxFuture, Payload};
use cairn_units::{Blocks, Cookie, Fsid, OpNo, Pvbn, VserverId};
use cairn_wafl_core::{StorageConfig, StorageManager};
use cairn_wafl_format::{AggregateRoot, INODE_BYTES, VolumeRecord};
use cairn_wafl_nvlog::{LogPosition, RecoveredRecord, recover};

use crate::patch::{Patch, describe, patches};

const DISKS: usize = 4;
const DISK_BLOCKS: u64 = 8192;
const FSID: Fsid = Fsid::new(1);
const CONFIG: StorageConfig =
    StorageConfig { cache_blocks: 1024, log_copies: None, tetris_stripes: 128 };

/// An aggregate that gives out another root than it holds, and notes what is read.
struct Forged {
    real: Arc<RaidAggregate>,
    root: Option<RootRecord>,
    /// Blocks that were asked for.
    asked: Mutex<BTreeSet<u64>>,
}

impl Aggregate for Forged {
    fn geometry(&self) -> Arc<Geometry> {
        self.real.geometry()
    }
    fn read(&self, requests: Vec<ReadRequest>) -> BoxFuture<Vec<Result<Block, ReadError>>> {
        let mut asked = self.asked.lock().unwrap_or_else(|e| e.into_inner());
        asked.extend(requests.iter().map(|r| r.at.get()));
        self.real.read(requests)
    }
    fn write(&self, tetris: Tetris) -> BoxFuture<Result<(), WriteError>> {
        self.real.write(tetris)
    }
    fn commit_root(&self, root: RootRecord) -> BoxFuture<Result<(), WriteError>> {
        self.real.commit_root(root)
    }
    fn root(&self) -> Option<RootRecord> {
        self.root.clone().or_else(|| self.real.root())
    }
    fn log(&self) -> Arc<dyn LogStore> {
        self.real.log()
    }
    fn place(&self, at: Pvbn) -> Option<Place> {
        self.real.place(at)
    }
}

fn disks(sim: &SimWorld) -> Vec<SimDisk> {
    let disk = |n| sim.disk(SimDiskConfig::new(&format!("d{n}"), Blocks::new(DISK_BLOCKS)));
    (0..DISKS).map(disk).collect()
}

/// Disks that hold these images.
fn restored(sim: &SimWorld, images: &[DiskImage]) -> Vec<SimDisk> {
    let restore = |(disk, image): (SimDisk, &DiskImage)| {
        disk.restore(image);
        disk.reattach()
    };
    disks(sim).into_iter().zip(images).map(restore).collect()
}

fn drivers(disks: &[SimDisk]) -> Vec<Arc<dyn Disk>> {
    disks.iter().map(SimDisk::driver).collect()
}

fn ctx() -> OpCtx {
    OpCtx {
        vserver: VserverId::new(1),
        cred: Credential::root(),
        client: ClientAddr { ip: [127, 0, 0, 1].into(), port: 1 },
        op_no: OpNo::new(1),
        deadline: None,
        read_only: ReadOnly::No,
    }
}

fn name(text: &str) -> Name {
    Name::new(Bytes::copy_from_slice(text.as_bytes())).expect("a good name")
}

async fn call(node: &Arc<StorageManager>, op: Op<ObjectRef>) -> OpResult<ObjectRef> {
    node.file(ctx(), op).wait().await
}

async fn create(node: &Arc<StorageManager>, dir: ObjectRef, text: &str) -> Option<ObjectRef> {
    let how = CreateHow::Guarded(SetAttrs { mode: Some(0o644), ..SetAttrs::default() });
    match call(node, Op::Create { dir, name: name(text), how }).await {
        Ok(Reply::Made { obj, .. }) => Some(obj),
        _ => None,
    }
}

fn write(obj: ObjectRef, offset: u64, bytes: usize, stability: Stability) -> Op<ObjectRef> {
    Op::Write { obj, offset, data: Payload::copy_from(offset, &vec![0x5a; bytes]), stability }
}

/// Makes a bit of everything; what comes behind the consistency point stays in the log.
async fn fill(node: &Arc<StorageManager>) {
    let request = Manage::VolumeCreate { fsid: FSID, name: "v".to_owned(), size_bytes: 8 << 20 };
    node.manage(request).await.expect("a volume is made");
    let root = root(node).await.expect("the volume has a root");
    let small = create(node, root, "small").await.expect("it is made");
    let large = create(node, root, "large").await.expect("it is made");
    for n in 0..40 {
        let text = format!("name{n}-{}", "x".repeat(100));
        create(node, root, &text).await.expect("it is made");
    }
    let ops = |round: u64| {
        let text = |base: &str| name(&format!("{base}{round}"));
        let target = LinkTarget::new(Bytes::from_static(b"target")).expect("a good target");
        let cut = SetAttrs { size: Some(70 * 4096 + round), ..SetAttrs::default() };
        vec![
            write(small, 10 + round, 100, Stability::FileSync),
            write(large, round * 4096 * 40, 4096 * 40, Stability::Unstable),
            write(large, 1 << 30, 4096, Stability::Unstable),
            Op::MakeDir { dir: root, name: text("dir"), set: SetAttrs::default() },
            Op::Symlink { dir: root, name: text("link"), target, set: SetAttrs::default() },
            Op::Link { obj: small, dir: root, name: text("second") },
            Op::SetXattr {
                obj: small,
                name: text("user.x"),
                value: vec![1; 300],
                how: XattrHow::Either,
            },
            Op::SetAttr { obj: large, set: cut, guard: None },
            Op::Punch { obj: large, offset: 4096, count: 8192 },
            Op::Rename {
                from_dir: root,
                from_name: text("second"),
                to_dir: root,
                to_name: text("third"),
            },
            Op::Remove { dir: root, name: text("link") },
            Op::Commit { obj: large, offset: 0, count: 0 },
        ]
    };
    for op in ops(0) {
        call(node, op).await.expect("every operation works");
    }
    node.manage(Manage::ConsistencyPoint).await.expect("a consistency point");
    for op in ops(1) {
        call(node, op).await.expect("every operation works");
    }
}

async fn root(node: &Arc<StorageManager>) -> Option<ObjectRef> {
    match node.manage(Manage::VolumeRoot { fsid: FSID }).await {
        Ok(Managed::Root(root)) => Some(root),
        _ => None,
    }
}

/// Looks at everything; what comes back is not judged.
async fn use_it(node: &Arc<StorageManager>) {
    drop(node.manage(Manage::VolumeList).await);
    drop(node.manage(Manage::AggregateStatus).await);
    let Some(root) = root(node).await else { return };
    let limits = ListLimits {
        entries_max: 100,
        bytes_max: 1 << 16,
        entry_bytes: 100,
        with_files: WithFiles::Yes,
    };
    let listed = call(node, Op::ReadDir { dir: root, cookie: Cookie::new(0), limits }).await;
    let mut found = Vec::new();
    if let Ok(Reply::Listing { entries, .. }) = listed {
        found.extend(entries.into_iter().filter_map(|e| e.file).map(|(obj, _)| obj));
    }
    for obj in found {
        drop(call(node, Op::Read { obj, offset: 0, count: 65_536 }).await);
        drop(call(node, Op::Read { obj, offset: 1 << 30, count: 4096 }).await);
        drop(call(node, Op::ReadLink { obj }).await);
        drop(call(node, Op::ListXattr { obj }).await);
    }
    drop(call(node, Op::FsStat { obj: root }).await);
}

/// A real aggregate with a volume, after a power cut.
struct Base {
    images: Vec<DiskImage>,
    root: RootRecord,
    log_records: Vec<Vec<u8>>,
    /// Blocks that opening and using it reads.
    blocks: BTreeMap<u64, Block>,
}

async fn reopen(sim: &SimWorld, disks: &[SimDisk]) -> Arc<RaidAggregate> {
    let options = OpenOptions { aggregate: None, opener: None };
    let opened = RaidAggregate::open(sim.world(), drivers(disks), options).await;
    opened.expect("the disks are whole")
}

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let sim = SimWorld::new(5);
    let made = disks(&sim);
    sim.block_on(async {
        let options = CreateOptions::new(RaidKind::RaidDp, 0);
        let aggregate = RaidAggregate::create(sim.world(), drivers(&made), options).await;
        let aggregate = aggregate.expect("an aggregate is made");
        let node =
            StorageManager::open(sim.world(), aggregate.clone(), Some(aggregate), CONFIG).await;
        let node = Arc::new(node.expect("it opens"));
        fill(&node).await;
    });
    sim.power_cut_with(&CutPolicy::KeepAll);
    let images: Vec<DiskImage> = made.iter().map(SimDisk::image).collect();
    // The log of the crash gives the records; a clean stop then brings them into the root.
    let sim = SimWorld::new(6);
    let disks = restored(&sim, &images);
    let log_records = sim.block_on(async {
        let real = reopen(&sim, &disks).await;
        let root = real.root().expect("a root was committed");
        let decoded = AggregateRoot::decode(&root.bytes).expect("the root is good");
        let position = decoded.log_position.and_then(|p| LogPosition::from_bytes(&p));
        let found = recover(real.log(), real.geometry().aggregate, position).await;
        let found = found.expect("the log is whole");
        let node = StorageManager::open(sim.world(), real, None, CONFIG).await;
        node.expect("it opens").shutdown().await.expect("it stops");
        let bytes =
            |r: RecoveredRecord| [&r.record.kind.get().to_le_bytes()[..], &r.record.body].concat();
        found.records.into_iter().map(bytes).collect()
    });
    sim.power_cut_with(&CutPolicy::KeepAll);
    let images: Vec<DiskImage> = disks.iter().map(SimDisk::image).collect();
    let sim = SimWorld::new(7);
    let disks = restored(&sim, &images);
    let (root, forged) = sim.block_on(async {
        let real = reopen(&sim, &disks).await;
        let root = real.root().expect("a root was committed");
        let forged = Forged { real, root: None, asked: Mutex::default() };
        let forged = Arc::new(forged);
        let node = StorageManager::open(sim.world(), forged.clone(), None, CONFIG).await;
        use_it(&Arc::new(node.expect("it opens"))).await;
        (root, forged)
    });
    let places: Vec<u64> =
        forged.asked.lock().unwrap_or_else(|e| e.into_inner()).iter().copied().collect();
    // What they hold, as the committed root sees them.
    let sim = SimWorld::new(8);
    let disks = restored(&sim, &images);
    let blocks = sim.block_on(async {
        let real = reopen(&sim, &disks).await;
        let request = |at: &u64| ReadRequest { at: Pvbn::new(*at), expect: None };
        let answers = real.read(places.iter().map(request).collect()).await;
        places.iter().copied().zip(answers).filter_map(|(at, b)| Some((at, b.ok()?))).collect()
    });
    Base { images, root, log_records, blocks }
});

/// See the module.
pub fn open_damaged(bytes: &[u8]) {
    let base = &*BASE;
    let mut root = base.root.clone();
    patches(bytes).iter().for_each(|patch| forge(&mut root.bytes, patch));
    let sim = SimWorld::new(1);
    let disks = restored(&sim, &base.images);
    sim.block_on(async {
        let real = reopen(&sim, &disks).await;
        let forged = Forged { real, root: Some(root), asked: Mutex::default() };
        let node = StorageManager::open(sim.world(), Arc::new(forged), None, CONFIG).await;
        if let Ok(node) = node {
            use_it(&Arc::new(node)).await;
        }
    });
}

fn forge(bytes: &mut [u8], patch: &Patch<'_>) {
    let offset = patch.offset % bytes.len();
    let len = patch.data.len().min(bytes.len() - offset);
    bytes[offset..offset + len].copy_from_slice(&patch.data[..len]);
}

/// One of each kind of record, with their kinds in front.
pub fn log_record_seeds() -> Vec<Vec<u8>> {
    let by_kind = BASE.log_records.iter().map(|record| (record[0], record.clone()));
    by_kind.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// The real root.
pub fn root_seeds() -> Vec<Vec<u8>> {
    vec![BASE.root.bytes.clone()]
}

fn volume() -> (Vec<u8>, Option<VolumeRecord>) {
    let found = BASE.blocks.values().find(|b| b[..8] == *b"CairnVol");
    let bytes = found.map(|b| b[..].to_vec()).unwrap_or_default();
    let record = bytes.first_chunk().and_then(|b| VolumeRecord::decode(b).ok());
    (bytes, record)
}

/// The real volume.
pub fn volume_seeds() -> Vec<Vec<u8>> {
    vec![volume().0]
}

/// Real inodes: a map's, and those of a block of the inode file.
pub fn inode_seeds() -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = volume().1.iter().map(|v| v.inode_file.encode().to_vec()).collect();
    // Blocks of inodes begin with the version of one; so does nothing else here.
    let inodes = BASE.blocks.values().flat_map(|b| b.chunks_exact(INODE_BYTES));
    let real = |bytes: &&[u8]| {
        bytes[..2] == [1, 0] && cairn_wafl_format::Inode::decode(bytes).is_ok_and(|i| i.links > 0)
    };
    out.extend(inodes.filter(real).take(6).map(<[u8]>::to_vec));
    out
}

/// Numbers forged in the root.
pub fn open_seeds() -> Vec<Vec<u8>> {
    let mut out = vec![Vec::new()];
    for offset in [16u16, 40, 48, 56, 64, 88, 260, 300, 512, 800] {
        out.push(describe(0, offset, &[0xff; 6]));
    }
    out
}
