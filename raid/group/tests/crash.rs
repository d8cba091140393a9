//! Power cuts at random points, with disks missing: every committed block is there.

use crate::common::{Bench, Shape};
use cairn_raid_group::RaidKind;
use cairn_sim::CutPolicy;

fn shape(seed: u64) -> Shape {
    match seed % 5 {
        0 => Shape { raid: RaidKind::Raid4, disks: 5, ..Shape::dp() },
        1 => Shape { max_width: 200, ..Shape::dp() },
        2 => Shape { disks: 4, ..Shape::dp() },
        // A spare takes the place of what is lost, and is cut off in its rebuild.
        3 => Shape { disks: 8, spares: 1, ..Shape::dp() },
        _ => Shape::dp(),
    }
}

/// Consistency points, then a cut somewhere; disks vanish with it; open (with a cut in recovery
/// now and then); everything committed must be there, and the stripes whole.
fn crash_story(seed: u64, lost: usize) {
    let mut bench = Bench::new(seed, shape(seed));
    let lost = lost.min(usize::from(bench.shape.raid.parity()));
    for _ in 0..1 + seed % 3 {
        assert!(bench.cp(40));
    }
    bench.verify();
    let mut lost_so_far = 0;
    for round in 0..3 {
        let n = 1 + bench.rng.below(160);
        bench.sim.cut_power_at(n);
        let mut rounds = 0;
        while bench.cp(40) && rounds < 20 {
            rounds += 1;
        }
        if rounds == 20 {
            bench.sim.cancel_cut();
            bench.sim.power_cut();
        }
        bench.reattach();
        if lost_so_far < lost && bench.rng.one_in(2) {
            bench.remove_random(1);
            lost_so_far += 1;
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
        bench.verify();
        if lost_so_far == 0 || round % 2 == 0 {
            bench.scrub_is_clean();
        }
    }
    assert!(bench.cp(50));
    bench.verify();
}

/// Seeds from `first` on: 60, or as many as `CAIRN_SEEDS` says.
fn seeds(first: u64) -> core::ops::Range<u64> {
    let wanted = std::env::var("CAIRN_SEEDS").ok().and_then(|n| n.parse().ok());
    first..first + wanted.unwrap_or(60)
}

#[test]
fn power_cut_anywhere_loses_no_committed_block() {
    for seed in seeds(0) {
        crash_story(seed, 0);
    }
}

#[test]
fn power_cut_anywhere_with_one_disk_missing_loses_no_committed_block() {
    for seed in seeds(1_000_000) {
        crash_story(seed, 1);
    }
}

#[test]
fn power_cut_anywhere_with_two_disks_missing_loses_no_committed_block() {
    for seed in seeds(2_000_000) {
        crash_story(seed, 2);
    }
}

/// An answered commit is stable: disks that keep nothing of what was not flushed have its root.
#[test]
fn the_root_of_an_answered_commit_is_there_when_nothing_unflushed_is() {
    for seed in 0..10 {
        let mut bench = Bench::new(seed, shape(seed));
        for _ in 0..1 + seed % 3 {
            assert!(bench.cp(40));
        }
        bench.sim.power_cut_with(&CutPolicy::DropAll);
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        bench.verify();
    }
}

/// The same consistency point, cut after each single write or flush that it makes.
#[test]
fn power_cut_after_each_write_of_a_degraded_consistency_point() {
    let mut n = 1;
    let mut cuts = 0;
    loop {
        let mut bench = Bench::new(977, Shape::dp());
        bench.stripes = 40;
        for _ in 0..3 {
            assert!(bench.cp(30));
        }
        bench.disks[1].die();
        bench.disks[6].die();
        assert!(bench.cp(30));
        bench.sim.cut_power_at(n);
        let through = bench.cp(30);
        bench.sim.cancel_cut();
        if through {
            break;
        }
        cuts += 1;
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        bench.verify();
        bench.scrub_is_clean();
        n += 1;
    }
    assert!(cuts > 40, "only {cuts} points were cut");
}
