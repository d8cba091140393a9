//! A node of the production code on the checker's disks, and the benches that workloads begin on.
//!
//! Layer: above `disk`. A [`Machine`] is one start of a node; a [`Bench`] is a shelf of disks with
//! a small name space on them, made once and shared by all workloads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use bytes::Bytes;
use cairn_cf::{DModule, Manage, Managed};
use cairn_model::sequence::{Runner, Twin, TwinOp};
use cairn_op::{CreateHow, Name, Op, SetAttrs, Stability, XattrHow};
use cairn_raid_api::{Aggregate, AggregateAdmin};
use cairn_raid_disk::Disk;
use cairn_raid_group::{CreateOptions, OpenOptions, RaidAggregate, RaidKind};
use cairn_sim::SimWorld;
use cairn_sys::Payload;
use cairn_units::{BLOCK_BYTES_U64, Blocks, Fsid};
use cairn_wafl_core::{StorageConfig, StorageManager, audit};

use crate::disk::{Manner, TapeDisk};
use crate::image::Image;

/// Small disks: a start reads the log's halves from end to end.
pub const DISK_BLOCKS: Blocks = Blocks::new(1536);
/// NV log area that leaves a group of few stripes: allocation meets what is in use already, stripes
/// are written in part, and freed blocks are near. The one for the degraded group leaves so few that
/// a consistency point goes over all of them, and meets what it has just freed.
const LOG_BLOCKS_LARGE: Blocks = Blocks::new(760);
const LOG_BLOCKS_DEGRADED: Blocks = Blocks::new(760);
/// NV log area whose halves fill within a workload.
const LOG_BLOCKS_SMALL: Blocks = Blocks::new(96);
/// Memory of a node.
const CACHE_BLOCKS: usize = 256;
/// The volume that workloads change.
pub const MAIN: Fsid = Fsid::new(1);
/// A volume that only volume operations touch.
pub const SECOND: Fsid = Fsid::new(2);
/// Time between two starts of a node.
const BETWEEN_STARTS_NS: i64 = 3_600_000_000_000;

/// Shape of the aggregate under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// Row parity, two data disks, a spare.
    Raid4,
    /// Row and diagonal parity, two data disks, a spare.
    RaidDp,
    /// Row and diagonal parity, two of three data disks gone, no spare.
    RaidDpDegraded,
    /// As `RaidDp`, with more stripes and a log that is soon full.
    RaidDpSmallLog,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Raid4, Self::RaidDp, Self::RaidDpDegraded, Self::RaidDpSmallLog];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raid4 => "raid4",
            Self::RaidDp => "raid-dp",
            Self::RaidDpDegraded => "raid-dp-degraded",
            Self::RaidDpSmallLog => "raid-dp-small-log",
        }
    }
    fn raid(self) -> RaidKind {
        match self {
            Self::Raid4 => RaidKind::Raid4,
            Self::RaidDp | Self::RaidDpDegraded | Self::RaidDpSmallLog => RaidKind::RaidDp,
        }
    }
    /// Group members and spares when the aggregate is made.
    fn disks(self) -> (usize, u16) {
        match self {
            Self::Raid4 => (3, 1),
            Self::RaidDp | Self::RaidDpSmallLog => (4, 1),
            Self::RaidDpDegraded => (5, 0),
        }
    }
    /// Members of the group, and disks of them that may die with the power.
    pub fn may_die(self) -> (usize, usize) {
        match self {
            Self::Raid4 => (3, 1),
            Self::RaidDp | Self::RaidDpSmallLog => (4, 2),
            Self::RaidDpDegraded => (3, 0),
        }
    }
    /// Disks that are pulled before workloads begin.
    fn pulled(self) -> usize {
        match self {
            Self::Raid4 | Self::RaidDp | Self::RaidDpSmallLog => 0,
            Self::RaidDpDegraded => 2,
        }
    }
    /// Blocks of the file that takes up places in the stripes, and of how many of them one is freed
    /// again.
    fn filler(self) -> (u64, u64) {
        match self {
            Self::Raid4 | Self::RaidDpSmallLog => (60, 2),
            Self::RaidDp | Self::RaidDpDegraded => (60, 6),
        }
    }
    /// Stripes of a tetris. Few: a consistency point chooses places again and again, and meets what
    /// it has just freed.
    pub fn tetris_stripes(self) -> u64 {
        match self {
            Self::RaidDp | Self::RaidDpDegraded => 2,
            Self::Raid4 | Self::RaidDpSmallLog => 128,
        }
    }
    fn log_blocks(self) -> Blocks {
        match self {
            Self::Raid4 | Self::RaidDp => LOG_BLOCKS_LARGE,
            Self::RaidDpDegraded => LOG_BLOCKS_DEGRADED,
            Self::RaidDpSmallLog => LOG_BLOCKS_SMALL,
        }
    }
}

/// One start of a node.
pub struct Machine {
    /// Its world.
    pub sim: SimWorld,
    /// Its disks.
    pub disks: Vec<Arc<TapeDisk>>,
    /// The aggregate.
    pub aggr: Arc<RaidAggregate>,
    /// The storage manager.
    pub node: Arc<StorageManager>,
}

/// What a machine is started with.
pub struct Start<'a> {
    /// Contents of each disk.
    pub images: &'a [Image],
    /// Everything that varies.
    pub seed: u64,
    /// How many starts came before: the clock goes on.
    pub starts: u8,
    /// How the disks answer.
    pub manner: Manner,
    /// Stripes of a tetris, at the most.
    pub tetris_stripes: u64,
    /// Whether the committed state is walked before the log is replayed.
    pub walks: bool,
}

impl Start<'_> {
    fn world(&self) -> (SimWorld, Vec<Arc<TapeDisk>>) {
        let sim = SimWorld::new(self.seed);
        sim.jump_wall_clock(BETWEEN_STARTS_NS * i64::from(self.starts));
        let world = sim.world();
        let disk = |(number, image): (usize, &Image)| {
            Arc::new(TapeDisk::new(&world, number, DISK_BLOCKS, image.clone(), &self.manner))
        };
        let disks = self.images.iter().enumerate().map(disk).collect();
        (sim, disks)
    }
}

fn drivers(disks: &[Arc<TapeDisk>]) -> Vec<Arc<dyn Disk>> {
    disks.iter().map(|d| d.clone() as Arc<dyn Disk>).collect()
}

fn opener(disks: &[Arc<TapeDisk>]) -> cairn_raid_group::Opener {
    let disks: Vec<Arc<dyn Disk>> = drivers(disks);
    Arc::new(move |at: &str| {
        let found = disks.iter().find(|d| d.info().location == at).cloned();
        found.ok_or_else(|| "no such device".to_owned())
    })
}

impl Machine {
    /// Starts a node on disks that hold an aggregate.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn start(start: &Start<'_>) -> Result<Self> {
        let (sim, disks) = start.world();
        let options = OpenOptions { aggregate: None, opener: Some(opener(&disks)) };
        let opened = RaidAggregate::open(sim.world(), drivers(&disks), options);
        let aggr = sim.block_on(opened).map_err(|e| anyhow!("the aggregate: {e}"))?;
        if start.walks {
            // What was committed is whole by itself, whatever the log holds.
            let below: Arc<dyn Aggregate> = aggr.clone();
            let committed = sim.block_on(audit(&below, true)).findings;
            if !committed.is_empty() {
                bail!("the committed state, before replay: {committed:#?}");
            }
        }
        Self::mount(sim, disks, aggr, start.tetris_stripes)
    }

    fn mount(
        sim: SimWorld,
        disks: Vec<Arc<TapeDisk>>,
        aggr: Arc<RaidAggregate>,
        tetris_stripes: u64,
    ) -> Result<Self> {
        let config = StorageConfig { cache_blocks: CACHE_BLOCKS, log_copies: None, tetris_stripes };
        let opened = StorageManager::open(sim.world(), aggr.clone(), Some(aggr.clone()), config);
        let node = sim.block_on(opened).map_err(|e| anyhow!("the volumes: {e}"))?;
        Ok(Self { sim, disks, aggr, node: Arc::new(node) })
    }

    /// The node behind its interface.
    pub fn dmodule(&self) -> Arc<dyn DModule> {
        self.node.clone()
    }

    /// Runs a management request.
    ///
    /// # Errors
    /// The node's refusal.
    pub fn manage(&self, request: Manage) -> Result<Managed> {
        Ok(self.sim.block_on(self.node.manage(request))?)
    }

    /// Contents of all disks now.
    pub fn images(&self) -> Vec<Image> {
        self.disks.iter().map(|d| d.image().frozen()).collect()
    }

    /// Stops cleanly; the contents of the disks.
    ///
    /// # Errors
    /// The last consistency point failed.
    pub fn stop(self) -> Result<Vec<Image>> {
        self.sim.block_on(self.node.shutdown())?;
        self.aggr.shutdown();
        Ok(self.images())
    }

    /// Scrubs everything.
    ///
    /// # Errors
    /// What the scrub found.
    pub fn scrub(&self) -> Result<()> {
        const STEP: Duration = Duration::from_millis(5);
        const STEPS_MAX: usize = 10_000;
        self.aggr.start_scrub();
        for _ in 0..STEPS_MAX {
            let status = self.aggr.scrub();
            if !status.running {
                if status.damaged != 0 || status.parity_mismatches != 0 {
                    bail!("scrub: {status:?}");
                }
                return Ok(());
            }
            self.sim.run_for(STEP);
        }
        bail!("the scrub does not end");
    }
}

/// Objects that workloads name.
#[derive(Clone, Copy, Debug)]
pub struct Objects {
    /// Root directory.
    pub root: Twin,
    /// Directory with `h` in it.
    pub a: Twin,
    /// Empty directory.
    pub b: Twin,
    /// A file of two and a half blocks, with two names' worth of space around it.
    pub f: Twin,
    /// A file of one block, with an extended attribute.
    pub g: Twin,
    /// A file with an indirect block, in `a`.
    pub h: Twin,
}

/// Volumes: name and size in bytes.
pub type Volumes = BTreeMap<Fsid, (String, u64)>;

/// Disks with a small name space on them.
pub struct Bench {
    /// Its aggregate.
    pub shape: Shape,
    /// Contents of the disks; the last one is blank.
    pub images: Vec<Image>,
    /// What the main volume holds.
    pub main: Runner,
    /// What the second volume holds.
    pub second: Runner,
    /// The volumes there are.
    pub volumes: Volumes,
    /// The objects.
    pub objects: Objects,
}

/// A name.
pub fn name(text: &str) -> Name {
    match Name::new(Bytes::copy_from_slice(text.as_bytes())) {
        Ok(name) => name,
        Err(status) => panic!("{text:?}: {status}"),
    }
}

/// Bytes that say where they belong: no two stretches of the tests are the same.
pub fn bytes(mark: u64, offset: u64, count: usize) -> Payload {
    let byte = |i: u64| {
        let word = crate::image::mix(mark.wrapping_mul(0x1_0001).wrapping_add((offset + i) / 8));
        word.to_le_bytes()[usize::try_from(i % 8).unwrap_or(0)]
    };
    let data: Vec<u8> = (0..count as u64).map(byte).collect();
    Payload::copy_from(offset, &data)
}

async fn make_file(
    main: &mut Runner,
    dir: Twin,
    text: &str,
    blocks: &[(u64, usize)],
) -> Result<Twin> {
    let set = SetAttrs { mode: Some(0o644), ..SetAttrs::default() };
    let how = CreateHow::Guarded(set);
    main.operate(TwinOp::one(dir, |dir| Op::Create { dir, name: name(text), how })).await?;
    let file = main.find(dir, &name(text)).await?;
    for (offset, count) in blocks {
        let data = bytes(u64::from(text.as_bytes()[0]), *offset, *count);
        let stability = Stability::FileSync;
        let write = |obj| Op::Write { obj, offset: *offset, data: data.clone(), stability };
        main.operate(TwinOp::one(file, write)).await?;
    }
    Ok(file)
}

async fn make_dir(main: &mut Runner, dir: Twin, text: &str) -> Result<Twin> {
    let set = SetAttrs { mode: Some(0o755), ..SetAttrs::default() };
    main.operate(TwinOp::one(dir, |dir| Op::MakeDir { dir, name: name(text), set })).await?;
    Ok(main.find(dir, &name(text)).await?)
}

async fn furnish(main: &mut Runner) -> Result<Objects> {
    let root = main.root();
    let a = make_dir(main, root, "A").await?;
    let b = make_dir(main, root, "B").await?;
    let f = make_file(main, root, "f", &[(0, 10_000)]).await?;
    let g = make_file(main, root, "g", &[(0, 4096)]).await?;
    let h = make_file(main, a, "h", &[(0, 18 * 4096), (25 * 4096, 4096)]).await?;
    let value = b"the value of an attribute".to_vec();
    let how = XattrHow::Either;
    let set = |obj| Op::SetXattr { obj, name: name("user.x"), value: value.clone(), how };
    main.operate(TwinOp::one(g, set)).await?;
    Ok(Objects { root, a, b, f, g, h })
}

/// A file on stripes of its own, with some of its blocks freed again: holes everywhere.
async fn riddle(second: &mut Runner, (blocks, freed_one_in): (u64, u64)) -> Result<()> {
    const AT_ONCE: u64 = 30;
    let root = second.root();
    let file = make_file(second, root, "filler", &[]).await?;
    for block in (0..blocks).step_by(usize::try_from(AT_ONCE)?) {
        let offset = block * BLOCK_BYTES_U64;
        let data = bytes(9, offset, usize::try_from(AT_ONCE * BLOCK_BYTES_U64)?);
        let stability = Stability::FileSync;
        let write = |obj| Op::Write { obj, offset, data: data.clone(), stability };
        second.operate(TwinOp::one(file, write)).await?;
    }
    let attached = second.release();
    attached.manage(Manage::ConsistencyPoint).await?;
    second.attach(attached);
    // Not every second one: blocks go column by column, and holes would be whole stripes.
    for block in (0..blocks).filter(|b| crate::image::mix(*b).is_multiple_of(freed_one_in)) {
        let (offset, count) = (block * BLOCK_BYTES_U64, BLOCK_BYTES_U64);
        let punch = |obj| Op::Punch { obj, offset, count };
        second.operate(TwinOp::one(file, punch)).await?;
    }
    Ok(())
}

fn volumes_of(machine: &Machine) -> Result<Volumes> {
    match machine.manage(Manage::VolumeList)? {
        Managed::Volumes(all) => {
            Ok(all.into_iter().map(|v| (v.fsid, (v.name, v.size_bytes))).collect())
        }
        other => bail!("a list of volumes: {other:?}"),
    }
}

impl Machine {
    /// The volumes there are.
    ///
    /// # Errors
    /// The node's refusal.
    pub fn volumes(&self) -> Result<Volumes> {
        volumes_of(self)
    }
}

impl Bench {
    /// Makes the aggregate, the volumes and what is in them, and stops cleanly.
    ///
    /// # Errors
    /// What did not work.
    pub fn make(shape: Shape) -> Result<Self> {
        let (members, spares) = shape.disks();
        let blank = vec![Image::default(); members + usize::from(spares)];
        let seed = 0xBE9C_0000 + shape as u64;
        let started = |images, seed, starts| Start {
            images,
            seed,
            starts,
            manner: Manner::Instant,
            tetris_stripes: shape.tetris_stripes(),
            walks: true,
        };
        let start = started(&blank, seed, 0);
        let (sim, disks) = start.world();
        let mut options = CreateOptions::new(shape.raid(), spares);
        options.log_blocks_per_disk = Some(shape.log_blocks());
        let made = RaidAggregate::create(sim.world(), drivers(&disks), options);
        let aggr = sim.block_on(made)?;
        let machine = Machine::mount(sim, disks, aggr, shape.tetris_stripes())?;
        let (world, node) = (machine.sim.world(), machine.dmodule());
        let mut main = machine.sim.block_on(Runner::new(world.clone(), node.clone(), MAIN))?;
        let mut second = machine.sim.block_on(Runner::new(world, node, SECOND))?;
        main.expect_whole_writes();
        machine.sim.block_on(riddle(&mut second, shape.filler()))?;
        // A node that starts goes over the stripes from the first on: what is furnished now lies
        // between the blocks of the filler, and where consistency points of workloads end.
        for runner in [&mut main, &mut second] {
            drop(runner.release());
            runner.settled();
        }
        let images = machine.stop()?;
        let start = started(&images, seed + 1, 1);
        let machine = Machine::start(&start)?;
        main.attach(machine.dmodule());
        second.attach(machine.dmodule());
        let objects = machine.sim.block_on(furnish(&mut main))?;
        machine.sim.block_on(async {
            let root = second.root();
            make_file(&mut second, root, "kept", &[(0, 5000)]).await
        })?;
        machine.manage(Manage::ConsistencyPoint)?;
        for runner in [&mut main, &mut second] {
            drop(runner.release());
            runner.settled();
        }
        let mut images = machine.stop()?;
        images.drain(..shape.pulled());
        images.push(Image::default());
        // What was pulled is missed, and everything settles.
        let start = started(&images, seed + 2, 2);
        let machine = Machine::start(&start)?;
        let volumes = volumes_of(&machine)?;
        let images = machine.stop()?;
        Ok(Self { shape, images, main, second, volumes, objects })
    }
}
