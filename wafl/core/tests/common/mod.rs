//! A storage manager on RAID on simulated disks.

#![allow(dead_code, reason = "each test binary uses its part of the rig")]

use std::sync::Arc;

use cairn_cf::DModule;
use cairn_raid_api::Aggregate;
use cairn_raid_disk::Disk;
use cairn_raid_group::{CreateOptions, OpenOptions, RaidAggregate, RaidKind};
use cairn_sim::{SimDisk, SimDiskConfig, SimWorld};
use cairn_units::Blocks;
use cairn_wafl_core::{StorageConfig, StorageManager, audit};

pub struct Rig {
    pub sim: SimWorld,
    pub disks: Vec<SimDisk>,
    pub config: StorageConfig,
    pub aggr: Option<Arc<RaidAggregate>>,
    pub node: Option<Arc<StorageManager>>,
}

impl Rig {
    pub fn new(seed: u64, raid: RaidKind, disks: usize, disk_blocks: u64) -> Self {
        Self::with_log(seed, CreateOptions::new(raid, 0), disks, disk_blocks)
    }

    pub fn with_log(seed: u64, options: CreateOptions, disks: usize, disk_blocks: u64) -> Self {
        let sim = SimWorld::new(seed);
        sim.jump_wall_clock(1_700_000_000_000_000_000);
        let disks: Vec<SimDisk> = (0..disks)
            .map(|i| sim.disk(SimDiskConfig::new(&format!("d{i}"), Blocks::new(disk_blocks))))
            .collect();
        let config = StorageConfig { cache_blocks: 2048, ..StorageConfig::default() };
        let mut rig = Self { sim, disks, config, aggr: None, node: None };
        let made = RaidAggregate::create(rig.sim.world(), rig.drivers(), options);
        rig.aggr = Some(rig.sim.block_on(made).expect("an aggregate is made"));
        rig.mount();
        rig
    }

    pub fn small(seed: u64) -> Self {
        Self::new(seed, RaidKind::RaidDp, 6, 16_384)
    }

    pub fn drivers(&self) -> Vec<Arc<dyn Disk>> {
        self.disks.iter().map(SimDisk::driver).collect()
    }

    pub fn node(&self) -> Arc<StorageManager> {
        self.node.clone().expect("mounted")
    }
    pub fn dmodule(&self) -> Arc<dyn DModule> {
        self.node()
    }

    /// Opens the storage manager on the open aggregate.
    pub fn mount(&mut self) {
        let aggr = self.aggr.clone().expect("open");
        let opened =
            StorageManager::open(self.sim.world(), aggr.clone(), Some(aggr), self.config.clone());
        self.node = Some(Arc::new(self.sim.block_on(opened).expect("the volumes open")));
    }

    /// Opens aggregate and volumes; `false` when the power was cut on the way.
    pub fn open_or_cut(&mut self) -> bool {
        let options = OpenOptions { aggregate: None, opener: None };
        let opened = RaidAggregate::open(self.sim.world(), self.drivers(), options);
        let Some(aggr) = self.sim.block_on_or_cut(opened) else { return false };
        let aggr = aggr.expect("the aggregate opens");
        self.aggr = Some(aggr.clone());
        let opened =
            StorageManager::open(self.sim.world(), aggr.clone(), Some(aggr), self.config.clone());
        let Some(node) = self.sim.block_on_or_cut(opened) else { return false };
        self.node = Some(Arc::new(node.expect("the volumes open")));
        true
    }

    /// The power goes: what was not flushed is kept, lost or torn as the seed says.
    pub fn power_cut(&mut self) {
        self.sim.power_cut();
        self.after_cut();
    }

    /// Forgets everything in memory after the power went.
    pub fn after_cut(&mut self) {
        self.node = None;
        self.aggr = None;
        self.disks = self.disks.iter().map(SimDisk::reattach).collect();
    }

    pub fn restart(&mut self) {
        while !self.open_or_cut() {
            self.after_cut();
        }
    }

    /// The committed state adds up.
    pub fn check(&self) {
        let aggr: Arc<dyn Aggregate> = self.aggr.clone().expect("open");
        let report = self.sim.block_on(audit(&aggr, true));
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
    }

    /// Clean stop and start.
    pub fn clean_restart(&mut self) {
        let node = self.node();
        self.sim.block_on(node.shutdown()).expect("a clean stop");
        self.aggr.as_ref().expect("open").shutdown();
        drop(node);
        self.power_cut();
        self.restart();
    }
}
