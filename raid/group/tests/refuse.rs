//! Disks that do not belong: refused with a reason, and not a byte of any disk changed.

use std::sync::Arc;

use crate::common::{Bench, Shape};
use cairn_raid_disk::Disk;
use cairn_raid_group::{
    CreateError, CreateOptions, OpenError, OpenOptions, Probe, RaidAggregate, RaidKind,
    RefuseReason, probe,
};
use cairn_sim::{DiskImage, SimDisk, SimDiskConfig};
use cairn_sys::Block;
use cairn_units::{Blocks, Dbn};

fn images(disks: &[SimDisk]) -> Vec<DiskImage> {
    disks.iter().map(SimDisk::image).collect()
}

fn same(before: &[DiskImage], disks: &[SimDisk]) {
    for (i, (before, disk)) in before.iter().zip(disks).enumerate() {
        let after = disk.image();
        let all = |image: &DiskImage| -> Vec<(Dbn, Block)> {
            image.durable_blocks().map(|(at, b)| (at, b.clone())).collect()
        };
        assert!(all(before) == all(&after), "disk {i} was written");
        assert!(disk.unflushed().is_empty(), "disk {i} was written");
    }
}

fn settled(seed: u64) -> Bench {
    let mut bench = Bench::new(seed, Shape::dp());
    for _ in 0..3 {
        assert!(bench.cp(50));
    }
    bench.sim.power_cut();
    bench.reattach();
    bench
}

fn open(bench: &Bench, disks: &[SimDisk]) -> Result<Arc<RaidAggregate>, OpenError> {
    let drivers: Vec<Arc<dyn Disk>> = disks.iter().map(SimDisk::driver).collect();
    bench.sim.block_on(RaidAggregate::open(bench.sim.world(), drivers, OpenOptions::default()))
}

#[test]
fn opening_after_a_clean_stop_changes_no_byte() {
    let mut bench = settled(1);
    let before = images(&bench.disks);
    bench.open().expect("open");
    bench.adopt_root();
    bench.verify();
    same(&before, &bench.disks);
}

#[test]
fn too_few_disks_are_refused_and_nothing_is_written() {
    let bench = settled(2);
    let before = images(&bench.disks);
    let few: Vec<SimDisk> = bench.disks[..4].to_vec();
    let refused = open(&bench, &few).err();
    assert!(
        matches!(refused, Some(OpenError::TooFewDisks { missing: 3, disks: 7, parity: 2, .. })),
        "{refused:?}"
    );
    assert!(matches!(open(&bench, &[]).err(), Some(OpenError::NoDisks { disks: 0 })));
    same(&before, &bench.disks);
}

#[test]
fn a_duplicated_disk_is_refused_and_nothing_is_written() {
    let mut bench = settled(3);
    let copy = bench.sim.disk(SimDiskConfig::new("copy", Blocks::new(bench.shape.blocks)));
    copy.restore(&bench.disks[2].image());
    bench.disks.push(copy.reattach());
    let before = images(&bench.disks);
    let refused = open(&bench, &bench.disks).err();
    assert!(matches!(refused, Some(OpenError::Duplicate { .. })), "{refused:?}");
    same(&before, &bench.disks);
}

#[test]
fn a_foreign_disk_is_named_and_never_written() {
    let mut bench = settled(4);
    let foreign: Vec<SimDisk> = (0..3)
        .map(|i| bench.sim.disk(SimDiskConfig::new(&format!("f{i}"), Blocks::new(16_384))))
        .collect();
    let drivers = foreign.iter().map(SimDisk::driver).collect();
    let options = CreateOptions::new(RaidKind::RaidDp, 0);
    drop(bench.sim.block_on(RaidAggregate::create(bench.sim.world(), drivers, options)));
    let own = bench.disks.clone();
    bench.disks.extend(foreign.iter().cloned());
    let before = images(&bench.disks);
    let refused = open(&bench, &bench.disks).err();
    assert!(matches!(refused, Some(OpenError::SeveralAggregates { .. })), "{refused:?}");
    same(&before, &bench.disks);

    // When it is said which aggregate is meant, the others are left alone.
    let found = bench.sim.block_on(probe(&[own[0].driver()]));
    let Probe::Labelled(identity) = &found[0].1 else { panic!("{found:?}") };
    let options = OpenOptions { aggregate: Some(identity.aggregate), opener: None };
    let drivers = bench.drivers();
    let agg =
        bench.sim.block_on(RaidAggregate::open(bench.sim.world(), drivers, options)).expect("open");
    assert_eq!(agg.refused().len(), 3);
    assert!(agg.refused().iter().all(|r| matches!(r.reason, RefuseReason::Foreign(_))));
    bench.agg = Some(agg);
    bench.cp = 3;
    assert!(bench.cp(50));
    same(&before[7..], &foreign);
}

#[test]
fn another_format_version_is_refused_and_nothing_is_written() {
    let bench = settled(5);
    for at in [Dbn::new(0), Dbn::new(bench.shape.blocks - 1)] {
        let mut label = bench.disks[1].image().durable(at);
        let bytes = label.make_mut();
        bytes[8] = 2;
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bench.disks[1].scribble(at, &label);
    }
    let before = images(&bench.disks);
    let refused = open(&bench, &bench.disks).err();
    assert!(matches!(refused, Some(OpenError::Version { version: 2, .. })), "{refused:?}");
    same(&before, &bench.disks);
}

#[test]
fn one_damaged_label_copy_is_survived_and_two_make_the_disk_a_stranger() {
    let mut bench = settled(6);
    bench.disks[0].rot_block(Dbn::new(0));
    bench.open().expect("open");
    assert!(bench.agg().refused().is_empty());
    bench.sim.power_cut();
    bench.reattach();
    bench.disks[0].rot_block(Dbn::new(bench.shape.blocks - 1));
    let before = images(&bench.disks[..1]);
    bench.open().expect("open with six disks");
    assert_eq!(bench.agg().refused()[0].reason, RefuseReason::Damaged);
    bench.adopt_root();
    bench.verify();
    same(&before, &bench.disks[..1]);
}

#[test]
fn a_stale_disk_is_refused_and_can_come_back_as_a_spare() {
    let mut bench = settled(7);
    let stale = bench.disks.remove(3);
    bench.open().expect("open");
    bench.adopt_root();
    assert!(bench.cp(50));
    bench.sim.power_cut();
    bench.reattach();
    let stale = stale.reattach();
    bench.disks.push(stale.clone());
    let before = images(std::slice::from_ref(&stale));
    bench.open().expect("open");
    bench.adopt_root();
    assert_eq!(bench.agg().refused()[0].reason, RefuseReason::Stale);
    bench.verify();
    same(&before, std::slice::from_ref(&stale));

    bench.attic.lock().expect("attic").insert("again".into(), stale);
    let agg = bench.agg();
    let added = {
        use cairn_raid_api::AggregateAdmin;
        bench.sim.block_on(agg.add_spares(vec!["again".into()]))
    };
    assert_eq!(added.expect("added").len(), 1);
    bench.await_rebuild();
    bench.verify();
    bench.scrub_is_clean();
}

#[test]
fn create_refuses_disks_with_a_label_and_writes_nothing() {
    let bench = settled(8);
    let mut disks = bench.disks.clone();
    disks.insert(0, bench.sim.disk(SimDiskConfig::new("new", Blocks::new(16_384))));
    let before = images(&disks);
    let drivers: Vec<Arc<dyn Disk>> = disks.iter().map(SimDisk::driver).collect();
    let options = CreateOptions::new(RaidKind::RaidDp, 0);
    let refused = bench
        .sim
        .block_on(RaidAggregate::create(bench.sim.world(), drivers.clone(), options.clone()))
        .err();
    assert!(matches!(refused, Some(CreateError::InUse { .. })), "{refused:?}");
    same(&before, &disks);
    let few = bench
        .sim
        .block_on(RaidAggregate::create(bench.sim.world(), drivers[..1].to_vec(), options.clone()))
        .err();
    assert!(matches!(few, Some(CreateError::TooFewDisks { .. })), "{few:?}");
    same(&before, &disks);
    let forced = CreateOptions { overwrite: true, ..options };
    assert!(bench.sim.block_on(RaidAggregate::create(bench.sim.world(), drivers, forced)).is_ok());
}

#[test]
fn the_root_is_found_when_two_thirds_of_the_slots_are_unreadable() {
    let mut bench = settled(9);
    for disk in &bench.disks[..5] {
        for slot in [8, 9] {
            disk.break_block(Dbn::new(slot));
        }
    }
    bench.open().expect("open");
    bench.adopt_root();
    assert_eq!(bench.cp, 3);
    bench.verify();
}

#[test]
fn a_disk_that_died_under_writes_and_came_back_is_stale() {
    for seed in 10..16 {
        let mut bench = Bench::new(seed, Shape::dp());
        assert!(bench.cp(50));
        let victim = bench.rng.index(7);
        bench.disks[victim].die();
        assert!(bench.cp(50));
        bench.sim.power_cut();
        bench.disks[victim].revive();
        bench.reattach();
        bench.open().expect("open");
        let refused = bench.agg().refused().to_vec();
        assert_eq!(refused.len(), 1, "seed {seed}: {refused:?}");
        assert_eq!(refused[0].reason, RefuseReason::Stale);
        bench.adopt_root();
        bench.verify();
        bench.scrub_is_clean();
    }
}
