//! A bench for aggregates: simulated disks, a twin that knows what must be there, and a storage
//! manager's manners (no committed block is overwritten, freed ones only after the commit).

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of the bench")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use cairn_raid_api::{
    Aggregate, AggregateAdmin, BlockTag, ReadRequest, RootRecord, ScrubStatus, StripeWrite, Tetris,
    WriteBlock, WriteError,
};
use cairn_raid_disk::Disk;
use cairn_raid_group::{CreateOptions, OpenError, OpenOptions, Opener, RaidAggregate, RaidKind};
use cairn_sim::{Rng, SimDisk, SimDiskConfig, SimWorld};
use cairn_sys::{Block, BlockMut};
use cairn_units::{Blocks, CpCount, Crc, Fsid, GroupNo, Pvbn, Vvbn};

/// 64 MiB.
pub const DISK_BLOCKS: u64 = 16_384;

pub fn noise(seed: u64) -> Block {
    let mut rng = Rng::new(seed);
    let mut block = BlockMut::dirty();
    for chunk in block.chunks_exact_mut(8) {
        chunk.copy_from_slice(&rng.next_u64().to_le_bytes());
    }
    block.freeze()
}

pub fn crc(block: &Block) -> Crc {
    Crc::new(crc32fast::hash(&block[..]))
}

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub raid: RaidKind,
    pub disks: usize,
    pub spares: u16,
    pub max_width: u16,
    pub blocks: u64,
}

impl Shape {
    pub fn dp() -> Self {
        Self { raid: RaidKind::RaidDp, disks: 7, spares: 0, max_width: 16, blocks: DISK_BLOCKS }
    }
}

pub struct Bench {
    pub sim: SimWorld,
    pub rng: Rng,
    pub shape: Shape,
    pub disks: Vec<SimDisk>,
    pub attic: Arc<Mutex<BTreeMap<String, SimDisk>>>,
    pub agg: Option<Arc<RaidAggregate>>,
    /// Reachable from the committed root, by place: seed of the contents.
    pub committed: BTreeMap<u64, u64>,
    /// As `committed`, once the running CP is.
    pub pending: BTreeMap<u64, u64>,
    pub cp: u64,
    next: u64,
    /// Stripes that writes are chosen from.
    pub stripes: u64,
    /// First of them.
    pub offset: u64,
    pub frees: bool,
}

impl Bench {
    pub fn new(seed: u64, shape: Shape) -> Self {
        let sim = SimWorld::new(seed);
        let disks: Vec<SimDisk> = (0..shape.disks)
            .map(|i| sim.disk(SimDiskConfig::new(&format!("d{i}"), Blocks::new(shape.blocks))))
            .collect();
        let mut bench = Self {
            sim,
            rng: Rng::new(seed ^ 0x5151),
            shape,
            disks,
            attic: Arc::default(),
            agg: None,
            committed: BTreeMap::new(),
            pending: BTreeMap::new(),
            cp: 0,
            next: seed << 32,
            stripes: 300,
            offset: 0,
            frees: true,
        };
        let mut options = CreateOptions::new(shape.raid, shape.spares);
        options.max_width = shape.max_width;
        options.opener = Some(bench.opener());
        let made = RaidAggregate::create(bench.sim.world(), bench.drivers(), options);
        bench.agg = Some(bench.sim.block_on(made).expect("create"));
        bench
    }

    pub fn opener(&self) -> Opener {
        let attic = self.attic.clone();
        Arc::new(move |at: &str| {
            let found = attic.lock().expect("attic").get(at).map(SimDisk::driver);
            found.ok_or_else(|| String::from("no such device"))
        })
    }

    /// A new disk that `add_spares` can open by its name.
    pub fn shelve(&mut self, name: &str) -> SimDisk {
        let disk = self.sim.disk(SimDiskConfig::new(name, Blocks::new(self.shape.blocks)));
        self.attic.lock().expect("attic").insert(name.to_owned(), disk.clone());
        disk
    }

    pub fn drivers(&self) -> Vec<Arc<dyn Disk>> {
        self.disks.iter().map(SimDisk::driver).collect()
    }

    pub fn agg(&self) -> Arc<RaidAggregate> {
        self.agg.clone().expect("open")
    }

    pub fn reattach(&mut self) {
        self.agg = None;
        self.disks = self.disks.iter().map(SimDisk::reattach).collect();
    }

    /// Opens on the disks that are there now, in an order of the seed's.
    pub fn open(&mut self) -> Result<(), OpenError> {
        let mut drivers = self.drivers();
        self.rng.shuffle(&mut drivers);
        let options = OpenOptions { aggregate: None, opener: Some(self.opener()) };
        let opened = RaidAggregate::open(self.sim.world(), drivers, options);
        self.agg = Some(self.sim.block_on(opened)?);
        Ok(())
    }

    /// [`Self::open`] with the power cut somewhere inside; `true` when it got through.
    pub fn open_or_cut(&mut self) -> bool {
        let mut drivers = self.drivers();
        self.rng.shuffle(&mut drivers);
        let options = OpenOptions { aggregate: None, opener: Some(self.opener()) };
        let opened = RaidAggregate::open(self.sim.world(), drivers, options);
        match self.sim.block_on_or_cut(opened) {
            Some(result) => {
                self.agg = Some(result.expect("open"));
                true
            }
            None => false,
        }
    }

    /// What the root says after a crash: the old state or the new one.
    pub fn adopt_root(&mut self) {
        let found = self.agg().root().map_or(0, |r| r.cp.get());
        if found == self.cp + 1 {
            self.committed = self.pending.clone();
            self.cp += 1;
        }
        assert_eq!(found, self.cp, "the root is the last committed one or the one under way");
        self.pending = self.committed.clone();
    }

    /// A tetris of random shape on places that hold nothing that must stay.
    pub fn tetris(&mut self, full_share: u64) -> Tetris {
        let geometry = self.agg().geometry();
        let group = &geometry.groups[self.rng.index(geometry.groups.len())];
        let count = 1 + self.rng.below(24);
        let window = self.stripes.min(group.stripes.get() - count - self.offset);
        let first = self.offset + self.rng.below(window);
        let (mut stripes, mut blocks) = (Vec::new(), Vec::new());
        for stripe in first..first + count {
            let whole = self.rng.below(100) < full_share;
            let before = blocks.len();
            let mut others = false;
            for column in &group.data {
                let at = column.pvbn_base.plus(stripe);
                let stays = self.committed.contains_key(&at.get());
                let wanted = whole || self.rng.one_in(3);
                if stays || !wanted {
                    others |= stays || self.pending.contains_key(&at.get());
                    continue;
                }
                self.next += 1;
                let data = noise(self.next);
                blocks.push(WriteBlock {
                    at,
                    crc: crc(&data),
                    data,
                    tag: BlockTag {
                        fsid: Fsid::new(1),
                        vvbn: Vvbn::new(self.next),
                        cp: CpCount::new(self.cp + 1),
                    },
                });
                self.pending.insert(at.get(), self.next);
            }
            if blocks.len() > before {
                stripes.push(StripeWrite { stripe, rest_is_free: !others });
            }
        }
        let reached = |stripe: u64| {
            group.data.iter().any(|c| self.committed.contains_key(&c.pvbn_base.plus(stripe).get()))
        };
        let end = (first + 3 * count).min(group.stripes.get());
        let ahead = (first..end).filter(|s| !reached(*s));
        let ahead = if self.next.is_multiple_of(3) { Arc::default() } else { ahead.collect() };
        // Half of them as the storage manager gives them.
        if self.next.is_multiple_of(2) {
            blocks.sort_by_key(|block| block.at);
        }
        Tetris { group: group.group, stripes, blocks, ahead }
    }

    pub fn write(&mut self, full_share: u64) -> Option<Result<(), WriteError>> {
        let tetris = self.tetris(full_share);
        let agg = self.agg();
        self.sim.block_on_or_cut(async move { agg.write(tetris).await })
    }

    pub fn root(&self) -> RootRecord {
        RootRecord { cp: CpCount::new(self.cp + 1), bytes: (self.cp + 1).to_le_bytes().to_vec() }
    }

    /// Commits; `None` when the power was cut.
    pub fn commit(&mut self) -> Option<Result<(), WriteError>> {
        if self.frees {
            let doomed: Vec<u64> =
                self.pending.keys().copied().filter(|_| self.rng.one_in(5)).collect();
            // Freed in this CP: gone from the new root, and reusable after it.
            for at in doomed {
                self.pending.remove(&at);
            }
        }
        let (agg, root) = (self.agg(), self.root());
        let result = self.sim.block_on_or_cut(async move { agg.commit_root(root).await });
        if let Some(Ok(())) = result {
            self.cp += 1;
            self.committed = self.pending.clone();
        }
        result
    }

    /// One consistency point; `false` when the power was cut.
    pub fn cp(&mut self, full_share: u64) -> bool {
        for _ in 0..1 + self.rng.below(4) {
            match self.write(full_share) {
                Some(result) => result.expect("write"),
                None => return false,
            }
        }
        match self.commit() {
            Some(result) => {
                result.expect("commit");
                true
            }
            None => false,
        }
    }

    /// Every committed block reads back right, with and without its checksum known.
    pub fn verify(&mut self) {
        let (places, seeds): (Vec<u64>, Vec<u64>) =
            self.committed.iter().map(|(a, s)| (*a, *s)).unzip();
        for known in [true, false] {
            let requests: Vec<ReadRequest> = places
                .iter()
                .zip(&seeds)
                .map(|(at, seed)| ReadRequest {
                    at: Pvbn::new(*at),
                    expect: known.then(|| crc(&noise(*seed))),
                })
                .collect();
            let agg = self.agg();
            let answers = self.sim.block_on(async move { agg.read(requests).await });
            assert_eq!(answers.len(), places.len());
            for ((at, seed), answer) in places.iter().zip(&seeds).zip(answers) {
                match answer {
                    Ok(block) => assert!(
                        block == noise(*seed),
                        "seed {}: pvbn {at} reads wrong bytes (checksum known: {known})",
                        self.sim.seed()
                    ),
                    Err(e) => {
                        panic!("seed {}: pvbn {at} (checksum known: {known}): {e}", self.sim.seed())
                    }
                }
            }
        }
    }

    /// Scrubs everything and says what it found.
    pub fn scrub(&mut self) -> ScrubStatus {
        let agg = self.agg();
        let clock = self.sim.world().clock;
        self.sim.block_on(async move {
            agg.start_scrub();
            while agg.scrub().running {
                clock.sleep(core::time::Duration::from_millis(50)).await;
            }
            agg.scrub()
        })
    }

    pub fn scrub_is_clean(&mut self) {
        let status = self.scrub();
        assert!(
            status.damaged == 0 && status.parity_mismatches == 0,
            "seed {}: {status:?}",
            self.sim.seed()
        );
        assert_eq!(status.stripes_done, status.stripes_total);
    }

    /// Waits until every position is whole.
    pub fn await_rebuild(&mut self) {
        let agg = self.agg();
        let clock = self.sim.world().clock;
        self.sim.block_on(async move {
            for _ in 0..100_000 {
                let whole = agg.disks().iter().all(|d| {
                    d.position.is_none() || d.state == cairn_raid_api::ColumnState::Online
                });
                if whole {
                    return;
                }
                clock.sleep(core::time::Duration::from_millis(20)).await;
            }
            panic!("rebuild does not end: {:?}", agg.disks());
        });
    }

    /// Index in `disks` of the disk that holds column `column` of group 0.
    pub fn disk_of(&self, column: u16) -> usize {
        let status = self.agg().disks();
        let at = status
            .iter()
            .find(|d| d.position.is_some_and(|(g, c)| g == GroupNo::new(0) && c.get() == column))
            .expect("column")
            .location
            .clone();
        self.disks.iter().position(|d| d.driver().info().location == at).expect("disk")
    }

    pub fn remove_random(&mut self, count: usize) {
        let mut gone = BTreeSet::new();
        while gone.len() < count {
            gone.insert(self.rng.index(self.disks.len()));
        }
        for i in gone.into_iter().rev() {
            self.disks.remove(i);
        }
    }
}
