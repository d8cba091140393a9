//! What an aggregate keeps about its disks: labels, configurations and roots are mended by scrub,
//! and a disk that is gone is still known.

use crate::common::{Bench, Shape, noise};
use cairn_raid_api::{AggregateAdmin, ColumnState, DiskRole, ScrubFault};
use cairn_units::{Blocks, Dbn};

/// First block of each thing that is on every disk besides stripes, as `docs/formats-raid.md` says.
const LABEL: u64 = 0;
const ROOTS: [u64; 2] = [8, 9];
const CONFIGS: [u64; 2] = [16, 32];

fn filled(seed: u64, shape: Shape) -> Bench {
    let mut bench = Bench::new(seed, shape);
    for _ in 0..4 {
        assert!(bench.cp(60));
    }
    bench
}

/// The area of a configuration is larger than the configuration: an error behind it is mended too,
/// and not found again and again.
#[test]
fn scrub_mends_the_unused_end_of_a_configuration_area() {
    for copy in CONFIGS {
        let mut bench = filled(40, Shape { disks: 6, ..Shape::dp() });
        bench.disks[2].break_block(Dbn::new(copy + 9));
        let status = bench.scrub();
        assert_eq!((status.damaged, status.repaired), (1, 1), "copy at {copy}");
        bench.scrub_is_clean();
        bench.verify();
    }
}

fn what_lies_at(dbn: u64) -> ScrubFault {
    match dbn {
        at if ROOTS.contains(&at) => ScrubFault::Root,
        at if CONFIGS.contains(&at) => ScrubFault::Configuration,
        _ => ScrubFault::Label,
    }
}

#[test]
fn scrub_mends_labels_configurations_and_roots_before_the_last_copy_is_lost() {
    for seed in 0..6 {
        let mut bench = filled(seed, Shape { disks: 8, spares: 1, ..Shape::dp() });
        let last = bench.shape.blocks - 1;
        let places = [LABEL, last, ROOTS[0], ROOTS[1], CONFIGS[0], CONFIGS[1]];
        // Every disk, each time something else, in every way that a copy can be bad.
        let mut done = 0;
        let mut harmed = Vec::new();
        for (i, disk) in bench.disks.clone().iter().enumerate() {
            let at = Dbn::new(places[(i + usize::try_from(seed).expect("small")) % places.len()]);
            let spare = i == 7 && ROOTS.contains(&at.get());
            let image = disk.image();
            let number = |at: u64| {
                let block = image.durable(Dbn::new(at));
                u64::from_le_bytes(block[32..40].try_into().expect("8 bytes"))
            };
            // What makes no sense in the copy that does not count may be what a power cut left:
            // it is mended without a word.
            let older =
                |pair: [u64; 2]| pair.iter().copied().min_by_key(|at| number(*at)).expect("two");
            let silent = [LABEL, last, older(ROOTS), older(CONFIGS)].contains(&at.get());
            if spare {
                continue;
            }
            match i % 3 {
                0 => disk.rot_block(at),
                1 => disk.break_block(at),
                _ => disk.scribble(at, &noise(i as u64)),
            }
            if !silent || i % 3 == 1 {
                done += 1;
                harmed.push((what_lies_at(at.get()), at));
            }
        }
        assert!(done >= 3, "{done}");
        let status = bench.scrub();
        assert_eq!((status.damaged, status.repaired), (done, done), "seed {seed}");
        // Each is told with what it is, the disk and the place.
        let findings = bench.agg().scrub_findings();
        let mut told: Vec<_> = findings.iter().map(|f| (f.what, f.dbn)).collect();
        told.sort_by_key(|(_, dbn)| *dbn);
        harmed.sort_by_key(|(_, dbn)| *dbn);
        assert_eq!(told, harmed, "seed {seed}");
        assert!(findings.iter().all(|f| f.repaired && f.disk.is_some() && f.stripe.is_none()));
        bench.scrub_is_clean();
        assert!(bench.agg().scrub_findings().is_empty(), "seed {seed}");
        // The label that is left is each time the one that was mended.
        for lost in [last, LABEL] {
            bench.sim.power_cut();
            for disk in &bench.disks {
                disk.rot_block(Dbn::new(lost));
            }
            bench.reattach();
            bench.open().expect("open");
            assert!(bench.agg().refused().is_empty(), "seed {seed}");
            bench.adopt_root();
            bench.verify();
            assert!(bench.cp(50));
            bench.scrub_is_clean();
        }
    }
}

#[test]
fn scrub_beside_commits_and_changes_of_the_configuration_finds_nothing_wrong() {
    let mut bench = filled(20, Shape { disks: 9, spares: 2, ..Shape::dp() });
    for round in 0..4 {
        let agg = bench.agg();
        agg.start_scrub();
        if round == 1 {
            let disk = agg.disks()[2].disk;
            bench.sim.block_on(agg.fail_disk(disk)).expect("failed");
        }
        for _ in 0..3 {
            assert!(bench.cp(40));
        }
        bench.await_rebuild();
        bench.scrub_is_clean();
        let status = agg.scrub();
        assert_eq!((status.damaged, status.parity_mismatches), (0, 0), "{status:?}");
        drop(agg);
        bench.sim.power_cut();
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        bench.scrub_is_clean();
        bench.verify();
    }
}

#[test]
fn a_disk_that_is_gone_is_still_known_by_size_and_place() {
    let mut bench = filled(40, Shape { disks: 8, spares: 1, ..Shape::dp() });
    let agg = bench.agg();
    let victim = agg.disks()[1].clone();
    bench.sim.block_on(agg.fail_disk(victim.disk)).expect("failed");
    drop(agg);
    bench.await_rebuild();
    let known = |bench: &Bench, disk| {
        let found = bench.agg().disks().into_iter().find(|d| d.disk == disk).expect("listed");
        assert_eq!((found.role, found.state), (DiskRole::Failed, ColumnState::Missing));
        (found.blocks, found.location)
    };
    let expected = (Blocks::new(bench.shape.blocks), format!("was {}", victim.location));
    assert_eq!(known(&bench, victim.disk), expected);
    // One that was never seen again after a start, and one that only the configuration knows.
    let other = bench.agg().disks()[3].clone();
    bench.sim.power_cut();
    bench.reattach();
    let gone = [victim.location.clone(), other.location.clone()];
    bench.disks.retain(|d| !gone.contains(&d.driver().info().location));
    bench.open().expect("open");
    assert_eq!(known(&bench, victim.disk), expected);
    assert_eq!(known(&bench, other.disk), (expected.0, format!("was {}", other.location)));
    bench.adopt_root();
    bench.verify();
}
