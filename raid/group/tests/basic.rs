//! The plain life of an aggregate.

use std::collections::BTreeSet;

use crate::common::{Bench, DISK_BLOCKS, Shape, crc, noise};
use cairn_raid_api::{Aggregate, AggregateAdmin, ReadRequest, SPREAD_DATA_MAX};
use cairn_raid_group::{CreateOptions, RaidAggregate, RaidKind};
use cairn_sim::{SimDiskConfig, SimWorld};
use cairn_units::{Blocks, Pvbn};

#[test]
fn written_blocks_read_back_before_and_after_reopening() {
    for (seed, shape) in [
        (1, Shape::dp()),
        (2, Shape { raid: RaidKind::Raid4, disks: 4, ..Shape::dp() }),
        (3, Shape { max_width: 200, disks: 9, ..Shape::dp() }),
        (4, Shape { disks: 3, ..Shape::dp() }),
    ] {
        let mut bench = Bench::new(seed, shape);
        for _ in 0..6 {
            assert!(bench.cp(50));
        }
        bench.verify();
        bench.scrub_is_clean();
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        assert_eq!(bench.cp, 6);
        bench.verify();
        bench.scrub_is_clean();
        assert_eq!(bench.agg().counters().reconstructed_blocks, 0);
    }
}

#[test]
fn never_written_blocks_read_as_zeros_without_touching_a_disk() {
    let bench = Bench::new(5, Shape::dp());
    let before: u64 = bench.agg().disks().iter().map(|d| d.reads).sum();
    let agg = bench.agg();
    let at = agg.geometry().groups[0].data[2].pvbn_base.plus(77);
    let read = agg.read(vec![
        ReadRequest { at, expect: None },
        ReadRequest { at: Pvbn::new(0), expect: None },
    ]);
    let answers = bench.sim.block_on(read);
    assert!(answers[0].as_ref().is_ok_and(|b| b.iter().all(|v| *v == 0)));
    assert!(answers[1].is_err(), "block 0 is no data block");
    assert_eq!(before, agg.disks().iter().map(|d| d.reads).sum::<u64>());
}

#[test]
fn log_areas_keep_what_was_written_and_refuse_what_is_outside() {
    let mut bench = Bench::new(6, Shape::dp());
    let log = bench.agg().log();
    assert_eq!(log.areas().len(), 7);
    let chosen = log.choose(2);
    assert_eq!(chosen.len(), 2);
    let size = log.area_blocks().get();
    for area in &chosen {
        let write = log.write_stable(*area, size - 2, vec![noise(1), noise(2)]);
        bench.sim.block_on(write).expect("write");
        let outside = log.write_stable(*area, size - 1, vec![noise(1), noise(2)]);
        assert!(bench.sim.block_on(outside).is_err());
    }
    bench.sim.power_cut();
    bench.reattach();
    bench.open().expect("open");
    let log = bench.agg().log();
    for area in &chosen {
        let read = bench.sim.block_on(log.read(*area, size - 2, 2)).expect("read");
        assert!(read == [noise(1), noise(2)]);
    }
}

#[test]
fn the_log_is_spread_over_one_group_with_the_parity_it_needs() {
    let raid4 = Shape { raid: RaidKind::Raid4, disks: 4, ..Shape::dp() };
    for (shape, copies, expected) in [
        (Shape::dp(), 3, Some((7, 2))),
        // As the group covers two lost disks, the log does.
        (Shape::dp(), 2, Some((7, 2))),
        (Shape::dp(), 4, None),
        (Shape { disks: 12, ..Shape::dp() }, 3, Some((SPREAD_DATA_MAX + 2, 2))),
        (Shape { disks: 4, ..Shape::dp() }, 3, Some((4, 2))),
        // One data column and two of parity are three copies.
        (Shape { disks: 3, ..Shape::dp() }, 3, None),
        (raid4, 2, Some((4, 1))),
        (raid4, 3, Some((4, 2))),
    ] {
        let bench = Bench::new(8, shape);
        let log = bench.agg().log();
        let spread = log.spread(copies);
        let sizes = spread.as_ref().map(|spread| (spread.areas.len(), spread.parity));
        assert_eq!(sizes, expected, "{shape:?}, {copies} copies");
        let Some(spread) = spread else { continue };
        assert!(spread.areas.starts_with(&log.choose(copies)), "copies are its first columns");
        let disks: BTreeSet<_> = spread.areas.iter().map(|area| area.0).collect();
        assert_eq!(disks.len(), spread.areas.len(), "each on a disk of its own");
        // A sixty-fourth of a half.
        assert_eq!((log.area_blocks().get(), spread.from_blocks), (512, 4));
    }
}

#[test]
fn the_log_is_not_spread_over_lost_disks_nor_beside_disks_of_its_own() {
    let bench = Bench::new(9, Shape::dp());
    let log = bench.agg().log();
    let before = log.spread(3).expect("seven disks").areas;
    let agg = bench.agg();
    let lost = before[4];
    bench.sim.block_on(async move { agg.fail_disk(lost.0).await }).expect("fail");
    let after = log.spread(3).expect("six disks").areas;
    assert_eq!(after.len(), 6);
    assert!(!after.contains(&lost) && after.starts_with(&log.choose(3)));

    let sim = SimWorld::new(10);
    let disk = |n: usize| {
        sim.disk(SimDiskConfig::new(&format!("d{n}"), Blocks::new(DISK_BLOCKS))).driver()
    };
    let mut options = CreateOptions::new(RaidKind::RaidDp, 0);
    options.log_disks = (7..10).map(disk).collect();
    let made = RaidAggregate::create(sim.world(), (0..7).map(disk).collect(), options);
    let log = sim.block_on(made).expect("create").log();
    assert_eq!(log.choose(3).len(), 3);
    assert_eq!(log.spread(3), None);
}

#[test]
fn full_stripes_read_nothing_and_cost_two_parity_blocks_each() {
    let mut bench = Bench::new(7, Shape::dp());
    for _ in 0..4 {
        let tetris = bench.tetris(100);
        let n = tetris.stripes.len() as u64;
        let before = bench.agg().counters();
        let agg = bench.agg();
        bench.sim.block_on(async move { agg.write(tetris).await }).expect("write");
        let after = bench.agg().counters();
        assert_eq!(after.parity_read_blocks, before.parity_read_blocks);
        assert_eq!(after.parity_blocks - before.parity_blocks, 2 * n);
        assert_eq!(after.full_stripes - before.full_stripes, n);
        bench.commit().expect("no cut").expect("commit");
    }
}

/// Several writers, a reader and commits at once; the disks answer in any order.
#[test]
fn concurrent_tetrises_and_reads_keep_every_block_and_parity() {
    for seed in 200..212 {
        let mut bench = Bench::new(seed, Shape::dp());
        bench.frees = false;
        for _ in 0..4 {
            // Different stripes, the same regions.
            bench.stripes = 30;
            let mut tetrises = Vec::new();
            for i in 0..8 {
                bench.offset = i * 54;
                tetrises.push(bench.tetris(40));
            }
            let old: Vec<(u64, u64)> = bench.committed.iter().map(|(a, s)| (*a, *s)).collect();
            let agg = bench.agg();
            let reads = old
                .iter()
                .map(|(at, seed)| ReadRequest {
                    at: Pvbn::new(*at),
                    expect: (seed % 2 == 0).then(|| crc(&noise(*seed))),
                })
                .collect();
            let answers = bench.sim.block_on(async move {
                let writes: Vec<_> = tetrises.into_iter().map(|t| agg.write(t)).collect();
                let read = agg.read(reads);
                let (written, answers) = tokio_free_join(writes, read).await;
                for result in written {
                    result.expect("write");
                }
                answers
            });
            for ((_, seed), answer) in old.iter().zip(answers) {
                assert!(answer.expect("read") == noise(*seed));
            }
            bench.commit().expect("no cut").expect("commit");
            bench.verify();
        }
        bench.scrub_is_clean();
    }
}

async fn tokio_free_join<A: Send + 'static, B: Send + 'static>(
    many: Vec<cairn_sys::BoxFuture<A>>,
    one: cairn_sys::BoxFuture<B>,
) -> (Vec<A>, B) {
    // Boxed into one shape, so that one poll loop drives all of them.
    enum Either<A, B> {
        Many(A),
        One(B),
    }
    let mut all: Vec<cairn_sys::BoxFuture<Either<A, B>>> = Vec::new();
    for future in many {
        all.push(Box::pin(async move { Either::Many(future.await) }));
    }
    all.push(Box::pin(async move { Either::One(one.await) }));
    let (mut out, mut last) = (Vec::new(), None);
    for done in cairn_sim::conformance::join_all(all).await {
        match done {
            Either::Many(a) => out.push(a),
            Either::One(b) => last = Some(b),
        }
    }
    (out, last.expect("polled to its end"))
}
