//! A storage manager on RAID on disks in memory, and calls to it.

use std::sync::Arc;

use bytes::Bytes;
use cairn_cf::{DModule, Manage, Managed};
use cairn_interleave::{Ground, Image, Keep, Shelf, once};
use cairn_op::{
    ClientAddr, CreateHow, Credential, Name, ObjectRef, Op, OpCtx, OpResult, ReadOnly, Reply,
    SetAttrs, Stability, Status,
};
use cairn_raid_api::Aggregate;
use cairn_raid_group::{CreateOptions, OpenOptions, RaidAggregate, RaidKind};
use cairn_sys::Payload;
use cairn_units::{BLOCK_BYTES_U64, Fsid, OpNo, VserverId};
use cairn_wafl_core::{StorageConfig, StorageManager, audit};

/// Blocks of each disk.
pub const DISK_BLOCKS: u64 = 4096;
const DISKS: usize = 4;

/// A node under way.
pub struct Node {
    ground: Ground,
    pub shelf: Shelf,
    pub aggr: Arc<RaidAggregate>,
    pub manager: Arc<StorageManager>,
}

pub fn ctx() -> OpCtx {
    OpCtx {
        vserver: VserverId::new(1),
        cred: Credential::root(),
        client: ClientAddr { ip: [127, 0, 0, 1].into(), port: 1 },
        op_no: OpNo::new(1),
        deadline: None,
        read_only: ReadOnly::No,
    }
}

pub fn name(text: &str) -> Name {
    Name::new(Bytes::copy_from_slice(text.as_bytes())).expect("a good name")
}

/// The only contents of block `fbn` of `file` in `version`.
pub fn content(file: u64, fbn: u64, version: u64) -> Vec<u8> {
    let mut out = vec![0; 4096];
    for (n, word) in (0u64..).zip(out.chunks_exact_mut(8)) {
        let value = file << 48 | fbn << 32 | version << 16 | n;
        word.copy_from_slice(&value.to_le_bytes());
    }
    out
}

/// Which version of the block these bytes are, if they are one, whole.
pub fn version_of(bytes: &[u8], file: u64, fbn: u64) -> Option<u64> {
    let version = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?) >> 16 & 0xffff;
    (bytes == content(file, fbn, version)).then_some(version)
}

impl Node {
    pub async fn make(volumes: u64) -> Self {
        let (ground, shelf) = (Ground::default(), Shelf::blank(DISKS, DISK_BLOCKS));
        let options = CreateOptions::new(RaidKind::Raid4, 0);
        let made = RaidAggregate::create(ground.world(), shelf.drivers(), options).await;
        let node = Self::serve(ground, shelf, made.expect("an aggregate is made"), 2048).await;
        for n in 1..=volumes {
            let size_bytes = 16 << 20;
            let request =
                Manage::VolumeCreate { fsid: Fsid::new(n), name: format!("v{n}"), size_bytes };
            node.manage(request).await;
        }
        node
    }

    pub async fn open(image: &Image, cache_blocks: usize) -> Self {
        let (ground, shelf) = (Ground::default(), Shelf::of(image, DISK_BLOCKS));
        let options = OpenOptions { aggregate: None, opener: None };
        let opened = RaidAggregate::open(ground.world(), shelf.drivers(), options).await;
        Self::serve(ground, shelf, opened.expect("the aggregate opens"), cache_blocks).await
    }

    async fn serve(
        ground: Ground,
        shelf: Shelf,
        aggr: Arc<RaidAggregate>,
        cache_blocks: usize,
    ) -> Self {
        let config = StorageConfig { cache_blocks, ..StorageConfig::default() };
        let opened =
            StorageManager::open(ground.world(), aggr.clone(), Some(aggr.clone()), config).await;
        let manager = Arc::new(opened.expect("the volumes open"));
        Self { ground, shelf, aggr, manager }
    }

    pub async fn manage(&self, request: Manage) -> Managed {
        self.manager.manage(request).await.expect("management works")
    }
    pub async fn point(&self) {
        self.manage(Manage::ConsistencyPoint).await;
    }
    pub async fn call(&self, op: Op<ObjectRef>) -> OpResult<ObjectRef> {
        self.manager.file(ctx(), op).wait().await
    }
    pub async fn root(&self, volume: u64) -> ObjectRef {
        match self.manage(Manage::VolumeRoot { fsid: Fsid::new(volume) }).await {
            Managed::Root(root) => root,
            other => panic!("{other:?}"),
        }
    }
    pub async fn create(&self, dir: ObjectRef, text: &str) -> ObjectRef {
        let how = CreateHow::Guarded(SetAttrs { mode: Some(0o644), ..SetAttrs::default() });
        match self.call(Op::Create { dir, name: name(text), how }).await {
            Ok(Reply::Made { obj, .. }) => obj,
            other => panic!("create {text}: {other:?}"),
        }
    }
    pub async fn lookup(&self, dir: ObjectRef, text: &str) -> Option<ObjectRef> {
        match self.call(Op::Lookup { dir, name: name(text) }).await {
            Ok(Reply::Found { obj, .. }) => Some(obj),
            Err(f) if f.status == Status::NotFound => None,
            other => panic!("lookup {text}: {other:?}"),
        }
    }
    pub async fn write(
        &self,
        obj: ObjectRef,
        fbn: u64,
        data: &[u8],
        stability: Stability,
    ) -> Result<(), Status> {
        let offset = fbn * BLOCK_BYTES_U64;
        let data = Payload::copy_from(offset, data);
        let done = self.call(Op::Write { obj, offset, data, stability }).await;
        done.map(|_| ()).map_err(|f| f.status)
    }
    pub async fn read(&self, obj: ObjectRef, fbn: u64) -> Vec<u8> {
        let op = Op::Read { obj, offset: fbn * BLOCK_BYTES_U64, count: 4096 };
        match self.call(op).await {
            Ok(Reply::Read { data, .. }) => data.to_vec(),
            other => panic!("read: {other:?}"),
        }
    }

    /// The committed state adds up, and the node serves.
    pub async fn sound(&self) {
        assert_eq!(self.manager.stopped(), None, "the node serves");
        let aggr: Arc<dyn Aggregate> = self.aggr.clone();
        let report = audit(&aggr, true).await;
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
    }

    /// Clean stop, with all tasks ended.
    pub async fn stop(&self) -> Image {
        self.manager.shutdown().await.expect("a clean stop");
        self.aggr.shutdown();
        self.ground.settle().await;
        self.shelf.cut(Keep::Durable)
    }
}

/// A stopped node with `volumes` volumes; `/f0` ... of `blocks` blocks in each, in version 0.
pub fn prepared(volumes: u64, files: u64, blocks: u64) -> Image {
    once(move || async move {
        let node = Node::make(volumes).await;
        for volume in 1..=volumes {
            let root = node.root(volume).await;
            for file in 0..files {
                let obj = node.create(root, &format!("f{file}")).await;
                for fbn in 0..blocks {
                    let data = content(file, fbn, 0);
                    let written = node.write(obj, fbn, &data, Stability::Unstable).await;
                    written.expect("written");
                }
            }
        }
        node.stop().await
    })
}

/// Blocks of one filler file.
const FILLER_BLOCKS: u64 = 128;

/// As [`prepared`], with one volume on an aggregate that is full but for `fillers_removed` filler
/// files and what is kept back, and whose free blocks are scattered.
pub fn prepared_full(files: u64, blocks: u64, fillers_removed: u64) -> Image {
    once(move || async move {
        let node = Node::make(0).await;
        let request =
            Manage::VolumeCreate { fsid: Fsid::new(1), name: "v1".to_owned(), size_bytes: 1 << 30 };
        node.manage(request).await;
        let root = node.root(1).await;
        let mut all = Vec::new();
        for file in 0..files {
            all.push(node.create(root, &format!("f{file}")).await);
        }
        let mut fillers = 0;
        'full: loop {
            let filler = node.create(root, &format!("filler{fillers}")).await;
            fillers += 1;
            for fbn in (0..FILLER_BLOCKS).step_by(32) {
                let data: Vec<u8> = (fbn..fbn + 32).flat_map(|n| content(99, n, 0)).collect();
                match node.write(filler, fbn, &data, Stability::Unstable).await {
                    Ok(()) => {}
                    Err(Status::NoSpace) => break 'full,
                    Err(other) => panic!("{other:?}"),
                }
            }
            // The files lie between the fillers, so that what they free is everywhere.
            if fillers % 8 == 0 {
                node.rewrite(&all, blocks).await;
                node.point().await;
            }
        }
        for filler in 0..fillers_removed {
            let op = Op::Remove { dir: root, name: name(&format!("filler{filler}")) };
            node.call(op).await.expect("removed");
        }
        node.point().await;
        for _ in 0..12 {
            node.rewrite(&all, blocks).await;
            node.point().await;
        }
        node.stop().await
    })
}

impl Node {
    async fn rewrite(&self, files: &[ObjectRef], blocks: u64) {
        for (file, obj) in (0u64..).zip(files) {
            for fbn in 0..blocks {
                let data = content(file, fbn, 0);
                let written = self.write(*obj, fbn, &data, Stability::Unstable).await;
                written.expect("there is room for what was there");
            }
        }
    }
}
