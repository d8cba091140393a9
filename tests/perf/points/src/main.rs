//! `cairn-points DIR [FILE_MIB] [DISK_MIB] [SECONDS] [CLIENTS] [raid_dp|raid4] [LOG_MIB]`: what writes cost the
//! disks, and how long a FILE_SYNC write waits while a consistency point runs, and else.
//!
//! Layer: benchmarks, beside the baseline. The storage manager on eight disk files in DIR, without
//! protocol or network. One file, which fills three fifths of the aggregate unless DISK_MIB says
//! otherwise, is written in order, aged by as many random overwrites as it has blocks, then
//! overwritten at random, UNSTABLE and FILE_SYNC, from CLIENTS tasks. Blocks are counted by the
//! layers that write them and by the disks: the counts do not depend on the machine. The size of a
//! disk decides the size of the NV log, and that how often points come under FILE_SYNC; with LOG_MIB
//! the log takes so much of each disk instead (256 MiB is what a disk of 8 GiB or more has).

mod latency;
mod traffic;

use core::sync::atomic::{AtomicU64, Ordering};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use cairn_cf::{DModule, Manage, Managed};
use cairn_node::config::{DriverChoice, RaidLayout, StorageConfig};
use cairn_node::{Formation, Storage};
use cairn_op::{
    ClientAddr, CreateHow, Credential, Name, ObjectRef, Op, OpCtx, ReadOnly, Reply, SetAttrs,
    Stability,
};
use cairn_raid_disk::create_file_disk;
use cairn_sys::{Block, BlockMut, Payload, World};
use cairn_units::{BLOCK_BYTES, BLOCK_BYTES_U64, Blocks, Fsid, OpNo, VserverId};
use tokio::sync::mpsc;

use crate::latency::{Points, Wait};
use crate::traffic::Traffic;

const DISKS: u16 = 8;
const FILE_MIB: u64 = 1024;
const DISK_MIB_MIN: u64 = 96;
const SECONDS: u64 = 20;
const CLIENTS: u64 = 32;
const CACHE_BYTES: u64 = 512 << 20;
const FSID: Fsid = Fsid::new(1);
/// Blocks of one WRITE of the file in order.
const LARGE_WRITE_BLOCKS: u64 = 256;

struct Options {
    dir: PathBuf,
    file_blocks: u64,
    disk_bytes: u64,
    time: Duration,
    clients: u64,
    raid: RaidLayout,
    /// Of the log on each disk, when it is not the disk's size that decides.
    log_bytes: Option<u64>,
}

impl Options {
    fn parse() -> anyhow::Result<Self> {
        let mut args = std::env::args().skip(1);
        let usage = "cairn-points DIR [FILE_MIB] [DISK_MIB] [SECONDS] [CLIENTS] [raid_dp|raid4] \
                     [LOG_MIB]";
        let dir = PathBuf::from(args.next().context(usage)?);
        let mut number = |default| args.next().map_or(Ok(default), |text| text.parse::<u64>());
        let mib = number(FILE_MIB)?;
        // The file is three fifths of five data disks.
        let disk_mib = number((mib / 3).max(DISK_MIB_MIN))?;
        let (seconds, clients) = (number(SECONDS)?, number(CLIENTS)?);
        let raid = match args.next().as_deref() {
            None | Some("raid_dp") => RaidLayout::RaidDp,
            Some("raid4") => RaidLayout::Raid4,
            Some(other) => bail!("no layout {other:?}: {usage}"),
        };
        let log_mib = args.next().map(|text| text.parse::<u64>()).transpose()?;
        ensure!(clients > 0 && mib > 0, usage);
        let file_blocks = (mib << 20) / BLOCK_BYTES_U64;
        let (disk_bytes, time) = (disk_mib << 20, Duration::from_secs(seconds));
        let log_bytes = log_mib.map(|mib| mib << 20);
        Ok(Self { dir, file_blocks, disk_bytes, time, clients, raid, log_bytes })
    }
}

/// The node, and the file on it.
#[derive(Clone)]
struct Bench {
    world: World,
    node: Arc<dyn DModule>,
    file: ObjectRef,
    blocks: u64,
    parity_disks: u64,
    stamps: Arc<AtomicU64>,
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

async fn call(node: &Arc<dyn DModule>, op: Op<ObjectRef>) -> anyhow::Result<Reply<ObjectRef>> {
    node.file(ctx(), op).wait().await.map_err(|f| anyhow::anyhow!("{:?}", f.status))
}

/// A generator of places, one for each client (xorshift).
struct Places(u64);

impl Places {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Where a client writes, and how.
#[derive(Clone, Copy)]
struct Load {
    stability: Stability,
    /// Writes of all clients together, at most.
    writes_max: u64,
    time_max: Duration,
}

impl Bench {
    /// A block that was never written before.
    fn block(&self) -> Block {
        let stamp = self.stamps.fetch_add(1, Ordering::Relaxed);
        let mut bytes = [0; BLOCK_BYTES];
        bytes[..8].copy_from_slice(&stamp.to_le_bytes());
        BlockMut::copy_of(&bytes).freeze()
    }

    async fn write(&self, at: u64, count: u64, stability: Stability) -> anyhow::Result<()> {
        let blocks: Vec<Block> = (0..count).map(|_| self.block()).collect();
        let bytes = u32::try_from(count * BLOCK_BYTES_U64)?;
        let data = Payload::new(0, bytes, blocks);
        let offset = at * BLOCK_BYTES_U64;
        let done = call(&self.node, Op::Write { obj: self.file, offset, data, stability }).await?;
        let Reply::Written { count, .. } = done else { bail!("not an answer to a write") };
        ensure!(count == bytes, "{count} of {bytes} bytes were written");
        Ok(())
    }

    async fn point(&self) -> anyhow::Result<()> {
        self.node.manage(Manage::ConsistencyPoint).await?;
        Ok(())
    }

    async fn traffic(&self) -> anyhow::Result<Traffic> {
        let Managed::Counters(metrics) = self.node.manage(Manage::Counters).await? else {
            bail!("no counters");
        };
        Traffic::of(&metrics, self.parity_disks)
    }

    async fn in_order(&self) -> anyhow::Result<u64> {
        for at in (0..self.blocks).step_by(usize::try_from(LARGE_WRITE_BLOCKS)?) {
            let count = LARGE_WRITE_BLOCKS.min(self.blocks - at);
            self.write(at, count, Stability::Unstable).await?;
        }
        Ok(self.blocks)
    }

    /// Single blocks at random places, from all clients; what each of them waited.
    async fn scattered(&self, clients: u64, load: Load) -> anyhow::Result<Vec<Wait>> {
        let (ended, mut results) = mpsc::unbounded_channel();
        for client in 0..clients {
            let (bench, ended) = (self.clone(), ended.clone());
            let task = async move {
                let writes = load.writes_max / clients;
                let waits = bench.one_client(client, Load { writes_max: writes, ..load }).await;
                // The receiver is there until every client has ended.
                drop(ended.send(waits));
            };
            self.world.spawn.spawn("client", Box::pin(task));
        }
        drop(ended);
        let mut waits = Vec::new();
        while let Some(of_client) = results.recv().await {
            waits.extend(of_client?);
        }
        Ok(waits)
    }

    async fn one_client(&self, client: u64, load: Load) -> anyhow::Result<Vec<Wait>> {
        let mut places =
            Places(0x9e37_79b9_7f4a_7c15 ^ (client + 1).wrapping_mul(0xff51_afd7_ed55));
        let clock = &self.world.clock;
        let begin = clock.monotonic();
        let mut waits = Vec::new();
        for _ in 0..load.writes_max {
            let from = clock.monotonic();
            if u128::from(from.since(begin).unwrap_or(0)) >= load.time_max.as_nanos() {
                break;
            }
            self.write(places.next(self.blocks), 1, load.stability).await?;
            waits.push(Wait { from, to: clock.monotonic() });
        }
        Ok(waits)
    }
}

async fn run(bench: &Bench, options: &Options, points: &Points) -> anyhow::Result<()> {
    let whole = Duration::from_secs(u64::MAX >> 32);
    let random = |stability| Load { stability, writes_max: bench.blocks, time_max: whole };
    println!("{}", Traffic::HEAD);
    let mut before = bench.traffic().await?;
    let count = bench.in_order().await?;
    bench.point().await?;
    let after = bench.traffic().await?;
    println!("{}", after.since(&before).row("in order, UNSTABLE", count)?);
    for (name, stability) in [
        ("random while it ages", Stability::Unstable),
        ("random, aged, UNSTABLE", Stability::Unstable),
        ("random, aged, FILE_SYNC", Stability::FileSync),
    ] {
        before = bench.traffic().await?;
        let count = bench.scattered(options.clients, random(stability)).await?.len() as u64;
        bench.point().await?;
        let after = bench.traffic().await?;
        println!("{}", after.since(&before).row(name, count)?);
    }
    points.forget();
    let load =
        Load { stability: Stability::FileSync, writes_max: u64::MAX, time_max: options.time };
    let waits = bench.scattered(options.clients, load).await?;
    println!("\n{}", latency::report(&waits, &points.seen())?);
    Ok(())
}

async fn make(world: &World, storage: &Storage, options: &Options) -> anyhow::Result<Bench> {
    let node = storage.dmodule();
    let size_bytes = options.file_blocks * BLOCK_BYTES_U64 * 3 / 2;
    node.manage(Manage::VolumeCreate { fsid: FSID, name: "vol0".to_owned(), size_bytes }).await?;
    let Managed::Root(root) = node.manage(Manage::VolumeRoot { fsid: FSID }).await? else {
        bail!("the volume has no root");
    };
    let name = Name::new(Bytes::from_static(b"file")).map_err(|s| anyhow::anyhow!("{s:?}"))?;
    let how = CreateHow::Guarded(SetAttrs::default());
    let Reply::Made { obj, .. } = call(&node, Op::Create { dir: root, name, how }).await? else {
        bail!("no file");
    };
    Ok(Bench {
        world: world.clone(),
        node,
        file: obj,
        blocks: options.file_blocks,
        parity_disks: options.raid.parity_disks() as u64,
        stamps: Arc::new(AtomicU64::new(1)),
    })
}

async fn whole() -> anyhow::Result<()> {
    let options = Options::parse()?;
    std::fs::create_dir_all(&options.dir)?;
    let mut disks = Vec::new();
    for number in 0..DISKS {
        let path = options.dir.join(format!("disk-{number:02}.img"));
        create_file_disk(&path, Blocks::for_bytes(options.disk_bytes))?;
        disks.push(path);
    }
    let config = StorageConfig {
        disks,
        log_devices: Vec::new(),
        log_devices_nonvolatile: false,
        log_bytes: options.log_bytes,
        cache_bytes: CACHE_BYTES,
        driver: DriverChoice::Auto,
        raid: options.raid,
        spares: 1,
    };
    let world = cairn_sys::real::world(tokio::runtime::Handle::current())?;
    let points = Points::watched(&world)?;
    let storage = Storage::open(&world, &config, &[], Formation::Allowed).await?;
    println!(
        "{} disks of {} MiB, {}, one spare; a file of {} MiB; {} clients.\n",
        DISKS,
        options.disk_bytes >> 20,
        options.raid.name(),
        (options.file_blocks * BLOCK_BYTES_U64) >> 20,
        options.clients
    );
    let bench = make(&world, &storage, &options).await?;
    let done = run(&bench, &options, &points).await;
    drop(bench);
    storage.shutdown().await?;
    done
}

fn main() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(whole())
}
