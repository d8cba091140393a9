//! RAID-4 to RAID-DP and back, online.

use crate::common::{Bench, DISK_BLOCKS, Shape};
use cairn_raid_api::{AdminError, Aggregate, AggregateAdmin, ColumnState, DiskRole};
use cairn_raid_group::RaidKind;
use cairn_units::GroupNo;

const GROUP: GroupNo = GroupNo::new(0);

fn raid4(spares: u16) -> Shape {
    Shape { raid: RaidKind::Raid4, disks: 5 + usize::from(spares), spares, ..Shape::dp() }
}

/// Seeds from `first` on: `usual`, or as many as `CAIRN_SEEDS` says.
fn seeds(first: u64, usual: u64) -> core::ops::Range<u64> {
    let wanted = std::env::var("CAIRN_SEEDS").ok().and_then(|n| n.parse().ok());
    first..first + wanted.unwrap_or(usual)
}

fn filled(seed: u64, shape: Shape) -> Bench {
    let mut bench = Bench::new(seed, shape);
    bench.frees = false;
    for _ in 0..4 {
        assert!(bench.cp(60));
    }
    bench.frees = true;
    bench
}

fn change(bench: &mut Bench, kind: RaidKind) -> Result<(), AdminError> {
    let agg = bench.agg();
    bench.sim.block_on(agg.set_raid_kind(GROUP, kind))
}

fn parity(bench: &Bench) -> u16 {
    bench.agg().geometry().groups[0].parity
}

fn spares(bench: &Bench) -> usize {
    bench.agg().disks().iter().filter(|d| d.role == DiskRole::Spare).count()
}

/// `count` members die, chosen by the seed.
fn lose(bench: &mut Bench, count: usize) {
    let mut members: Vec<String> = bench
        .agg()
        .disks()
        .iter()
        .filter(|d| d.position.is_some() && d.state != ColumnState::Missing)
        .map(|d| d.location.clone())
        .collect();
    bench.rng.shuffle(&mut members);
    for location in members.iter().take(count) {
        let disk = bench.disks.iter().find(|d| d.driver().info().location == *location);
        disk.expect("disk").die();
    }
    bench.verify();
    assert!(bench.cp(40));
    bench.verify();
}

#[test]
fn a_raid4_group_becomes_raid_dp_under_writes_and_survives_two_failures_right_after() {
    for seed in seeds(0, 10) {
        let width = if seed % 2 == 0 { 16 } else { 200 };
        let mut bench = filled(seed, Shape { max_width: width, ..raid4(1) });
        bench.stripes = 1500;
        assert!(bench.cp(60));
        change(&mut bench, RaidKind::RaidDp).expect("begun");
        change(&mut bench, RaidKind::RaidDp).expect("the order may come twice");
        let disks = bench.agg().disks();
        let added = disks.iter().find(|d| d.role == DiskRole::DiagonalParity).expect("column");
        assert_eq!(added.state, ColumnState::Rebuilding);
        assert!(added.rebuild.is_some());
        for _ in 0..3 {
            assert!(bench.cp(30));
        }
        bench.verify();
        bench.await_rebuild();
        lose(&mut bench, 2);
        bench.sim.power_cut();
        bench.reattach();
        bench.open().expect("open with two disks dead");
        bench.adopt_root();
        assert_eq!(parity(&bench), 2);
        bench.verify();
        bench.scrub_is_clean();
    }
}

#[test]
fn until_the_diagonal_is_whole_one_disk_may_fail_and_not_two() {
    for seed in seeds(100, 6) {
        let mut bench = filled(seed, raid4(1));
        bench.stripes = 3000;
        for _ in 0..4 {
            assert!(bench.cp(60));
        }
        change(&mut bench, RaidKind::RaidDp).expect("begun");
        let (a, b) = (bench.disk_of(0), bench.disk_of(1));
        bench.disks[a].die();
        bench.verify();
        assert!(bench.cp(40));
        let agg = bench.agg();
        let second = agg.disks().into_iter().find(|d| d.position.is_some_and(|p| p.1.get() == 1));
        let second = second.expect("column").disk;
        let state = agg.disks().into_iter().find(|d| d.role == DiskRole::DiagonalParity);
        if state.expect("diagonal").state == ColumnState::Rebuilding {
            let refused = bench.sim.block_on(agg.fail_disk(second));
            assert!(matches!(refused, Err(AdminError::WouldLoseData(_))), "{refused:?}");
        }
        drop(agg);
        // With the first one dead the diagonal is still finished, and then the second may go.
        let (agg, clock) = (bench.agg(), bench.sim.world().clock);
        bench.sim.block_on(async move {
            while agg.disks().iter().any(|d| d.state == ColumnState::Rebuilding) {
                clock.sleep(core::time::Duration::from_millis(20)).await;
            }
        });
        bench.disks[b].die();
        bench.verify();
        assert!(bench.cp(40));
        bench.verify();
        bench.scrub_is_clean();
    }
}

#[test]
fn a_raid_dp_group_gives_its_diagonal_disk_back_as_a_spare_that_can_be_used() {
    for seed in seeds(200, 8) {
        let mut bench = filled(seed, Shape { disks: 6, ..Shape::dp() });
        change(&mut bench, RaidKind::Raid4).expect("dropped");
        change(&mut bench, RaidKind::Raid4).expect("the order may come twice");
        assert_eq!((parity(&bench), spares(&bench)), (1, 1));
        assert!(!bench.agg().disks().iter().any(|d| d.role == DiskRole::DiagonalParity));
        assert!(bench.cp(40));
        bench.verify();
        bench.scrub_is_clean();
        bench.sim.power_cut();
        bench.reattach();
        bench.open().expect("open");
        assert!(bench.agg().refused().is_empty());
        bench.adopt_root();
        bench.verify();
        lose(&mut bench, 1);
        bench.await_rebuild();
        bench.verify();
        bench.scrub_is_clean();
        lose(&mut bench, 1);
    }
}

#[test]
fn a_group_goes_up_and_down_again_and_again() {
    let mut bench = filled(300, raid4(1));
    for round in 0..4 {
        change(&mut bench, RaidKind::RaidDp).expect("up");
        assert!(bench.cp(40));
        if round % 2 == 0 {
            bench.await_rebuild();
            bench.scrub_is_clean();
        }
        // Also half-way.
        change(&mut bench, RaidKind::Raid4).expect("down");
        assert_eq!(spares(&bench), 1);
        assert!(bench.cp(40));
        bench.verify();
        bench.scrub_is_clean();
    }
    lose(&mut bench, 1);
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let mut bench = filled(400, raid4(0));
    let refused = change(&mut bench, RaidKind::RaidDp);
    assert!(matches!(refused, Err(AdminError::Refused { .. })), "no spare: {refused:?}");
    let agg = bench.agg();
    let refused = bench.sim.block_on(agg.set_raid_kind(GroupNo::new(9), RaidKind::RaidDp));
    assert_eq!(refused, Err(AdminError::NoSuchGroup(GroupNo::new(9))));
    drop(agg);
    assert_eq!(parity(&bench), 1);
    let mut bench = filled(401, Shape::dp());
    bench.disks[1].die();
    assert!(bench.cp(40));
    let refused = change(&mut bench, RaidKind::Raid4);
    assert!(matches!(refused, Err(AdminError::Refused { .. })), "one lost: {refused:?}");
    assert_eq!(parity(&bench), 2);
    bench.verify();
}

#[test]
fn a_spare_lost_while_it_becomes_the_diagonal_leaves_a_group_that_goes_on() {
    let mut bench = filled(500, raid4(1));
    bench.stripes = 2000;
    assert!(bench.cp(60));
    change(&mut bench, RaidKind::RaidDp).expect("begun");
    let last = bench.disks.len() - 1;
    bench.disks[last].die();
    assert!(bench.cp(40));
    assert_eq!(parity(&bench), 2);
    bench.verify();
    change(&mut bench, RaidKind::Raid4).expect("back");
    assert_eq!((parity(&bench), spares(&bench)), (1, 0));
    assert!(bench.cp(40));
    bench.scrub_is_clean();
    lose(&mut bench, 1);
}

/// Changes of kind under consistency points, the power cut somewhere; a disk vanishes with it now
/// and then; open (with a cut in recovery now and then); everything committed is there.
fn crash_story(seed: u64) {
    let blocks = if seed.is_multiple_of(3) { DISK_BLOCKS } else { 24_576 };
    let shape = if seed.is_multiple_of(2) {
        raid4(2)
    } else {
        Shape { disks: 7, spares: 1, ..Shape::dp() }
    };
    let mut bench = filled(seed, Shape { blocks, ..shape });
    bench.stripes = 900;
    let mut lost = false;
    for _ in 0..4 {
        bench.offset = 5000 * bench.rng.below(3);
        let n = 1 + bench.rng.below(200);
        bench.sim.cut_power_at(n);
        let mut through = 0;
        while through < 8 {
            let kind = if parity(&bench) == 1 { RaidKind::RaidDp } else { RaidKind::Raid4 };
            let agg = bench.agg();
            if bench.rng.one_in(2) {
                match bench.sim.block_on_or_cut(agg.set_raid_kind(GROUP, kind)) {
                    None => break,
                    Some(Ok(()) | Err(AdminError::Refused { .. })) => {}
                    Some(Err(error)) => panic!("seed {seed}: {error}"),
                }
            }
            drop(agg);
            if !bench.cp(40) {
                break;
            }
            through += 1;
        }
        if through == 8 {
            bench.sim.cancel_cut();
            bench.sim.power_cut();
        }
        bench.reattach();
        if !lost && bench.rng.one_in(3) {
            bench.remove_random(1);
            lost = true;
        }
        if bench.rng.one_in(2) {
            let n = 1 + bench.rng.below(40);
            bench.sim.cut_power_at(n);
            if !bench.open_or_cut() {
                bench.reattach();
                bench.open().expect("open after a cut in recovery");
            }
            bench.sim.cancel_cut();
        } else {
            bench.open().expect("open");
        }
        bench.adopt_root();
        // Before reads mend what they meet.
        if bench.rng.one_in(2) {
            bench.scrub_is_clean();
        }
        bench.verify();
    }
    assert!(bench.cp(50));
    let missing =
        |d: &cairn_raid_api::DiskStatus| d.position.is_some() && d.state == ColumnState::Missing;
    if !bench.agg().disks().iter().any(missing) {
        bench.await_rebuild();
        bench.scrub_is_clean();
        bench.verify();
        let most = usize::from(parity(&bench));
        lose(&mut bench, most);
    }
    bench.verify();
}

#[test]
fn power_cut_anywhere_in_a_change_of_kind_loses_no_committed_block() {
    for seed in seeds(6_000_000, 40) {
        crash_story(seed);
    }
}

/// The same change with the same consistency points, cut after every third write or flush.
#[test]
fn power_cut_after_each_write_of_a_change_of_kind() {
    for up in [true, false] {
        let mut n = 1;
        loop {
            let shape = if up { raid4(1) } else { Shape { disks: 6, ..Shape::dp() } };
            let mut bench = Bench::new(979, shape);
            bench.stripes = 40;
            for _ in 0..3 {
                assert!(bench.cp(30));
            }
            bench.write(30).expect("no cut").expect("write");
            bench.sim.cut_power_at(n);
            let agg = bench.agg();
            let kind = if up { RaidKind::RaidDp } else { RaidKind::Raid4 };
            let order = bench.sim.block_on_or_cut(agg.set_raid_kind(GROUP, kind));
            drop(agg);
            let through = order.is_some() && bench.cp(30) && bench.cp(30);
            bench.sim.cancel_cut();
            if through {
                break;
            }
            bench.reattach();
            bench.open().expect("open");
            bench.adopt_root();
            bench.verify();
            if parity(&bench) == 1 && !up {
                // Where the dropped disk was not made a spare yet, it is a stranger.
                assert!(spares(&bench) == 1 || bench.agg().refused().len() == 1);
            }
            bench.await_rebuild();
            bench.scrub_is_clean();
            let most = usize::from(parity(&bench));
            lose(&mut bench, most);
            n += 3;
        }
        assert!(n > 60, "only {n} orders were made");
    }
}
