//! Stripes that are logged before they are written: fewer waits, nothing less safe.

use std::sync::Arc;

use crate::common::{Bench, Shape, crc, noise};
use cairn_raid_api::{
    Aggregate, AggregateAdmin, BlockTag, StripeWrite, Tetris, WriteBlock, WriteError,
};
use cairn_units::{CpCount, Fsid, Vvbn};

/// In the seeds of what [`whole`] writes.
const MINE: u64 = 1 << 63;

/// `count` whole stripes from `first` on, of which nothing was written yet.
fn whole(bench: &mut Bench, first: u64, count: u64, ahead: &[u64]) -> Tetris {
    let geometry = bench.agg().geometry();
    let group = &geometry.groups[0];
    let (mut stripes, mut blocks) = (Vec::new(), Vec::new());
    for stripe in first..first + count {
        for column in &group.data {
            let at = column.pvbn_base.plus(stripe);
            let seed = MINE | bench.cp << 40 | at.get();
            let data = noise(seed);
            let cp = CpCount::new(bench.cp + 1);
            let tag = BlockTag { fsid: Fsid::new(1), vvbn: Vvbn::new(at.get()), cp };
            blocks.push(WriteBlock { at, crc: crc(&data), data, tag });
            bench.pending.insert(at.get(), seed);
        }
        stripes.push(StripeWrite { stripe, rest_is_free: true });
    }
    Tetris { group: group.group, stripes, blocks, ahead: Arc::from(ahead) }
}

fn write(bench: &Bench, tetris: Tetris) {
    let agg = bench.agg();
    bench.sim.block_on(async move { agg.write(tetris).await }).expect("write");
}

#[test]
fn stripes_logged_ahead_cost_no_log_write_until_the_next_flush() {
    let mut bench = Bench::new(41, Shape::dp());
    bench.frees = false;
    let ahead: Vec<u64> = (0..200).collect();
    let logged = |bench: &Bench| bench.agg().counters().stripe_log_blocks;
    let first = whole(&mut bench, 0, 50, &ahead);
    write(&bench, first);
    let after_first = logged(&bench);
    // 200 records, 42 in a block.
    assert_eq!(after_first, 5);
    for from in [50, 100] {
        let tetris = whole(&mut bench, from, 50, &ahead);
        write(&bench, tetris);
    }
    assert_eq!(logged(&bench), after_first, "they were logged with the first");
    bench.commit().expect("no cut").expect("commit");
    let next = whole(&mut bench, 150, 50, &[]);
    write(&bench, next);
    assert_eq!(logged(&bench), after_first + 2, "the flush made all records dead");
    bench.commit().expect("no cut").expect("commit");
    bench.verify();
    bench.scrub_is_clean();
}

/// Several tetrises under way at once that one record covers, cut after each single disk request;
/// then every stripe is whole, those that were never written too.
#[test]
fn power_cut_anywhere_in_tetrises_that_share_a_log_write_leaves_whole_stripes() {
    for seed in [1000, 2000, 3000] {
        let cuts = cut_tetrises_that_share_a_log_write(seed);
        assert!(cuts > 30, "only {cuts} points were cut");
    }
}

/// The points that were cut.
fn cut_tetrises_that_share_a_log_write(seed: u64) -> u64 {
    let (mut n, mut cuts) = (1, 0);
    loop {
        let mut bench = Bench::new(seed + n, Shape::dp());
        bench.frees = false;
        bench.stripes = 40;
        bench.offset = 1000;
        assert!(bench.cp(30));
        // The stripes held something that is free now: what is on the disks has stamps.
        let ahead: Vec<u64> = (0..400).collect();
        // In regions of their own: two writers of one region wait for each other.
        let first = [0, 126, 252, 378];
        for first in first {
            let old = whole(&mut bench, first, 12, &[]);
            write(&bench, old);
        }
        bench.commit().expect("no cut").expect("commit");
        bench.pending.retain(|_, seed| *seed & MINE == 0);
        bench.commit().expect("no cut").expect("commit");
        let tetrises: Vec<Tetris> = first.map(|first| whole(&mut bench, first, 12, &ahead)).into();
        bench.sim.cut_power_at(n);
        let agg = bench.agg();
        let world = bench.sim.world();
        let done = bench.sim.block_on_or_cut(async move {
            let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
            let count = tetrises.len();
            for tetris in tetrises {
                let (write, sender) = (agg.write(tetris), sender.clone());
                let task = Box::pin(async move { drop(sender.send(write.await)) });
                world.spawn.spawn("tetris", task);
            }
            for _ in 0..count {
                let answer: Option<Result<(), WriteError>> = answers.recv().await;
                answer.expect("an answer").expect("write");
            }
        });
        let through = done.is_some() && bench.commit().is_some();
        bench.sim.cancel_cut();
        if through {
            return cuts;
        }
        cuts += 1;
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        bench.verify();
        bench.scrub_is_clean();
        n += 1;
    }
}
