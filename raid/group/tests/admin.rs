//! Disks added, groups widened and formed, disks failed by order, all online.

use crate::common::{Bench, Shape};
use cairn_raid_api::{AdminError, Aggregate, AggregateAdmin, ColumnState, DiskRole, ReadRequest};
use cairn_raid_group::RaidKind;
use cairn_units::{DiskUuid, GroupNo, Pvbn};

fn add(bench: &mut Bench, names: &[&str]) -> Vec<DiskUuid> {
    for name in names {
        let disk = bench.shelve(name);
        bench.disks.push(disk);
    }
    let locations = names.iter().map(|n| (*n).to_owned()).collect();
    let agg = bench.agg();
    bench.sim.block_on(agg.add_spares(locations)).expect("added")
}

#[test]
fn a_group_grows_by_a_column_and_a_second_group_is_formed_online() {
    for raid in [RaidKind::RaidDp, RaidKind::Raid4] {
        let mut bench = Bench::new(1, Shape { raid, disks: 5, ..Shape::dp() });
        assert!(bench.cp(50));
        add(&mut bench, &["n0", "n1", "n2", "n3", "n4"]);
        let before = bench.agg().geometry();
        let agg = bench.agg();
        bench.sim.block_on(agg.grow_group(GroupNo::new(0))).expect("grown");
        let after = bench.agg().geometry();
        assert_eq!(after.groups[0].data.len(), before.groups[0].data.len() + 1);
        assert!(after.version > before.version && after.pvbn_end > before.pvbn_end);
        bench.verify();
        for _ in 0..3 {
            assert!(bench.cp(60));
        }
        let agg = bench.agg();
        let group = bench.sim.block_on(agg.add_group(4)).expect("formed");
        assert_eq!(group, GroupNo::new(1));
        for _ in 0..4 {
            assert!(bench.cp(60));
        }
        bench.verify();
        bench.scrub_is_clean();
        drop(agg);
        bench.sim.power_cut();
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        assert_eq!(bench.agg().geometry().groups.len(), 2);
        bench.verify();
        // One disk of each group.
        for column in [0, 1] {
            if raid == RaidKind::RaidDp || column == 0 {
                let at = bench.disk_of(column);
                bench.disks[at].die();
            }
        }
        let last = bench.disks.len() - 1;
        bench.disks[last].die();
        assert!(bench.cp(50));
        bench.verify();
    }
}

#[test]
fn a_disk_failed_by_order_is_replaced_by_a_spare() {
    let mut bench = Bench::new(2, Shape { disks: 8, spares: 1, ..Shape::dp() });
    for _ in 0..3 {
        assert!(bench.cp(50));
    }
    let agg = bench.agg();
    let victim = agg.disks().into_iter().find(|d| d.role == DiskRole::RowParity).expect("row");
    bench.sim.block_on(agg.fail_disk(victim.disk)).expect("failed");
    let now = agg.disks();
    assert!(now.iter().any(|d| d.disk == victim.disk && d.role == DiskRole::Failed));
    bench.await_rebuild();
    bench.verify();
    bench.scrub_is_clean();
    let unknown = DiskUuid::new([7; 16]);
    let refused = bench.sim.block_on(agg.fail_disk(unknown));
    assert!(matches!(refused, Err(AdminError::NoSuchDisk(_))));
}

#[test]
fn an_order_that_would_lose_data_is_refused() {
    let mut bench = Bench::new(3, Shape { raid: RaidKind::Raid4, disks: 4, ..Shape::dp() });
    assert!(bench.cp(50));
    let agg = bench.agg();
    let disks = agg.disks();
    bench.sim.block_on(agg.fail_disk(disks[0].disk)).expect("the first may go");
    let refused = bench.sim.block_on(agg.fail_disk(disks[1].disk));
    assert!(matches!(refused, Err(AdminError::WouldLoseData(_))), "{refused:?}");
    assert_eq!(agg.geometry().groups[0].data[0].state, ColumnState::Missing);
    bench.verify();
}

#[test]
fn spares_that_do_not_fit_are_refused_with_a_reason() {
    let mut bench = Bench::new(4, Shape::dp());
    let agg = bench.agg();
    let small = cairn_sim::SimDiskConfig::new("small", cairn_units::Blocks::new(8192));
    let small = bench.sim.disk(small);
    bench.attic.lock().expect("attic").insert("small".into(), small);
    let own = bench.disks[0].clone();
    bench.attic.lock().expect("attic").insert("own".into(), own);
    for name in ["small", "own", "nowhere"] {
        let refused = bench.sim.block_on(agg.add_spares(vec![name.into()]));
        assert!(matches!(refused, Err(AdminError::Refused { .. })), "{name}: {refused:?}");
    }
    let refused = bench.sim.block_on(agg.grow_group(GroupNo::new(0)));
    assert!(matches!(refused, Err(AdminError::Refused { .. })));
    let refused = bench.sim.block_on(agg.add_group(3));
    assert!(matches!(refused, Err(AdminError::Refused { .. })));
    assert!(bench.cp(50));
}

/// A configuration of one generation is the same on every disk: the new disk may not hold one of
/// its own, which only the rest of the change would have made that of the others.
#[test]
fn an_addition_cut_anywhere_leaves_one_configuration_of_a_generation() {
    let mut cuts = 0;
    for seed in 0..30 {
        for order in 1.. {
            let mut bench = Bench::new(seed, Shape { disks: 4, ..Shape::dp() });
            assert!(bench.cp(20));
            let disk = bench.shelve("n0");
            bench.disks.push(disk);
            let agg = bench.agg();
            bench.sim.cut_power_at(order);
            let through = bench.sim.block_on_or_cut(agg.add_spares(vec!["n0".to_owned()]));
            bench.sim.cancel_cut();
            if let Some(added) = through {
                added.expect("added");
                break;
            }
            cuts += 1;
            bench.reattach();
            bench.open().expect("open");
            bench.adopt_root();
            bench.verify();
            bench.scrub_is_clean();
        }
    }
    assert!(cuts > 300, "only {cuts} orders were cut");
}

/// The configuration that a change stores is one from before the death: the next one says it.
#[test]
fn a_disk_that_dies_while_the_configuration_changes_is_taken_out_and_replaced() {
    for seed in 0..40 {
        let mut bench = Bench::new(seed, Shape { disks: 8, spares: 1, ..Shape::dp() });
        bench.frees = false;
        assert!(bench.cp(60));
        let column = [0, 2, 16, 17][bench.rng.index(4)];
        let n = bench.disk_of(column);
        let disk = bench.disks[n].clone();
        let uuid = bench
            .agg()
            .disks()
            .iter()
            .find(|d| d.location == disk.driver().info().location)
            .unwrap()
            .disk;
        let added = bench.shelve("n0");
        let (agg, reader) = (bench.agg(), bench.agg());
        let at: Vec<ReadRequest> = bench
            .committed
            .keys()
            .map(|at| ReadRequest { at: Pvbn::new(*at), expect: None })
            .collect();
        disk.die();
        let world = bench.sim.world();
        let wait = core::time::Duration::from_micros(bench.rng.below(3000));
        let sleep = world.clock.sleep(wait);
        world.spawn.spawn(
            "reader",
            Box::pin(async move {
                sleep.await;
                for _ in 0..20 {
                    for answer in reader.read(at.clone()).await {
                        answer.expect("read");
                    }
                }
            }),
        );
        bench.sim.block_on(agg.add_spares(vec!["n0".to_owned()])).expect("added");
        bench.disks.push(added);
        // A write is answered when the death is stable.
        assert!(bench.cp(60), "seed {seed}");
        let now = agg.disks();
        let counted = now.iter().any(|d| d.disk == uuid && d.position.is_some());
        assert!(!counted, "seed {seed}: column {column}: {now:?}");
        bench.await_rebuild();
        drop(agg);
        // It is back, with what it held before.
        bench.sim.power_cut();
        bench.disks[n].revive();
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        bench.verify();
        bench.scrub_is_clean();
    }
}
