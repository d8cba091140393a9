//! A copy of a checksum block or of a region map block is lost: what the copy that is left says
//! may be old, and is not taken for true when the block is written again later.

use crate::common::{Bench, Shape, noise};
use cairn_raid_api::{Aggregate, AggregateAdmin, DiskStatus, ScrubFault, ScrubFinding};
use cairn_sim::SimDisk;
use cairn_units::{Dbn, Pvbn};

/// First copy of the first block of the region map.
const MAP_AT: u64 = 64;

/// Which copy of two was written last.
fn newest(disk: &SimDisk, first: u64) -> u64 {
    // Checksum blocks and map blocks have their sequence at the same place.
    let sequence = |copy: u64| {
        let block = disk.image().durable(Dbn::new(first + copy));
        u64::from_le_bytes(block[40..48].try_into().expect("8 bytes"))
    };
    u64::from(sequence(1) > sequence(0))
}

fn rot_newest(disk: &SimDisk, first: u64) {
    disk.rot_block(Dbn::new(first + newest(disk, first)));
}

/// A power cut, something done to the disks, a start.
fn restart_after(bench: &mut Bench, harm: impl FnOnce(&Bench)) {
    bench.sim.power_cut();
    harm(bench);
    bench.reattach();
    bench.open().expect("open");
    bench.adopt_root();
}

/// Two other disks of a group of seven are lost one after the other, and rebuilt without anybody
/// who knows what the blocks should be.
fn rebuild_others(bench: &mut Bench, column: u16) {
    for other in [1, 16, 3].into_iter().filter(|c| *c != column).take(2) {
        let n = bench.disk_of(other);
        bench.disks[n].die();
        assert!(bench.cp(30));
        bench.await_rebuild();
    }
    bench.scrub_is_clean();
    bench.verify();
}

fn shape() -> Shape {
    Shape { disks: 9, spares: 2, ..Shape::dp() }
}

/// A region that only the lost copy called written stays in doubt when the map is written again.
#[test]
fn a_rotten_newest_map_copy_does_not_hide_a_region_once_the_map_is_written_again() {
    for column in [0, 2, 16, 17] {
        for regions in 1..4 {
            let mut bench = Bench::new(200 + u64::from(column) + regions, shape());
            bench.frees = false;
            bench.stripes = 40;
            for region in 0..regions {
                bench.offset = 126 * region;
                for _ in 0..3 {
                    assert!(bench.cp(50));
                }
            }
            restart_after(&mut bench, |bench| {
                let disk = bench.disks[bench.disk_of(column)].clone();
                rot_newest(&disk, MAP_AT);
            });
            // New regions are written, and with them the map.
            bench.offset = 126 * regions;
            assert!(bench.cp(100));
            restart_after(&mut bench, |_| ());
            rebuild_others(&mut bench, column);
        }
    }
}

/// The other copy of a map block whose copies were both lost does not call everything else empty.
#[test]
fn a_map_block_lost_whole_does_not_hide_its_regions_once_it_is_written_again() {
    for column in [0, 16] {
        let mut bench = Bench::new(230 + u64::from(column), shape());
        bench.stripes = 40;
        for region in 0..3 {
            bench.offset = 126 * region;
            assert!(bench.cp(50));
        }
        restart_after(&mut bench, |bench| {
            let disk = bench.disks[bench.disk_of(column)].clone();
            disk.rot_block(Dbn::new(MAP_AT));
            disk.rot_block(Dbn::new(MAP_AT + 1));
        });
        for region in 3..5 {
            bench.offset = 126 * region;
            assert!(bench.cp(100));
        }
        restart_after(&mut bench, |_| ());
        rebuild_others(&mut bench, column);
    }
}

/// Stamps that may be old stay in doubt when others of their checksum block are set anew.
#[test]
fn a_rotten_newest_checksum_copy_leaves_its_stamps_in_doubt_once_it_is_written_again() {
    for column in [0, 2, 16, 17] {
        for points in 2..6 {
            let mut bench = Bench::new(260 + u64::from(column) + points, shape());
            bench.stripes = 60;
            bench.frees = points % 2 == 0;
            for _ in 0..points {
                assert!(bench.cp(40));
            }
            let stripe = bench.agg().place(Pvbn::new(64)).expect("place");
            let first = stripe.data.dbn.get() - 2;
            restart_after(&mut bench, |bench| {
                let disk = bench.disks[bench.disk_of(column)].clone();
                rot_newest(&disk, first);
            });
            // Other stripes of the region.
            bench.offset = 80;
            bench.stripes = 12;
            assert!(bench.cp(50));
            restart_after(&mut bench, |_| ());
            bench.offset = 0;
            bench.stripes = 60;
            rebuild_others(&mut bench, column);
        }
    }
}

/// Doubt ends: a scrub that finds everything as it should be leaves none.
#[test]
fn a_scrub_ends_the_doubt() {
    let mut bench = Bench::new(290, shape());
    bench.frees = false;
    bench.stripes = 60;
    for _ in 0..5 {
        assert!(bench.cp(40));
    }
    let first = bench.agg().place(Pvbn::new(64)).expect("place").data.dbn.get() - 2;
    restart_after(&mut bench, |bench| {
        // The older copies: what is left is right.
        for column in [0, 2, 4] {
            let disk = bench.disks[bench.disk_of(column)].clone();
            for at in [first, MAP_AT] {
                let older = 1 - newest(&disk, at);
                disk.rot_block(Dbn::new(at + older));
            }
        }
    });
    bench.scrub();
    bench.scrub_is_clean();
    assert!(bench.cp(40));
    restart_after(&mut bench, |_| ());
    let before = bench.agg().counters().reconstructed_blocks;
    bench.verify();
    assert_eq!(bench.agg().counters().reconstructed_blocks, before, "no doubt is left");
}

#[test]
fn a_lost_copy_of_a_checksum_or_map_block_is_found_with_its_place_and_made_again() {
    for seed in 0..12 {
        let mut bench = Bench::new(300 + seed, shape());
        bench.frees = false;
        bench.stripes = 60;
        for _ in 0..5 {
            assert!(bench.cp(40));
        }
        let first = bench.agg().place(Pvbn::new(64)).expect("place").data.dbn.get() - 2;
        let mut spoilt = Vec::new();
        for (n, column) in [0u64, 2, 16].into_iter().zip([0, 2, 16]) {
            let disk = bench.disks[bench.disk_of(column)].clone();
            for (place, what) in [(first, ScrubFault::Checksums), (MAP_AT, ScrubFault::RegionMap)] {
                let at = Dbn::new(place + (seed + n) % 2);
                match (seed + n) % 3 {
                    0 => disk.rot_block(at),
                    1 => disk.break_block(at),
                    _ => disk.scribble(at, &noise(seed)),
                }
                spoilt.push((disk.driver().info().location, at, what));
            }
        }
        bench.scrub();
        let disks = bench.agg().disks();
        let location = |f: &ScrubFinding| {
            let of = |d: &&DiskStatus| Some(d.disk) == f.disk;
            disks.iter().find(of).expect("a disk").location.clone()
        };
        let findings = bench.agg().scrub_findings();
        assert!(findings.iter().all(|f| f.repaired), "seed {seed}: {findings:?}");
        let mut told: Vec<_> = findings.iter().map(|f| (location(f), f.dbn, f.what)).collect();
        told.sort_by_key(|(at, dbn, _)| (at.clone(), *dbn));
        spoilt.sort_by_key(|(at, dbn, _)| (at.clone(), *dbn));
        assert_eq!(told, spoilt, "seed {seed}");
        bench.scrub_is_clean();
        assert!(bench.agg().scrub_findings().is_empty(), "seed {seed}");
        // The copy that was made again is enough.
        assert!(bench.cp(40));
        restart_after(&mut bench, |bench| {
            for (at, dbn, what) in &spoilt {
                let place = if *what == ScrubFault::RegionMap { MAP_AT } else { first };
                let other = place + 1 - (dbn.get() - place);
                let disk = bench.disks.iter().find(|d| d.driver().info().location == *at);
                disk.expect("a disk").rot_block(Dbn::new(other));
            }
        });
        bench.verify();
        bench.scrub();
        bench.scrub_is_clean();
    }
}
