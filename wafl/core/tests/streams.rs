//! Large unstable writes: they begin a consistency point before anybody asks for one, and a COMMIT
//! that finds that point open waits for no other.

use core::time::Duration;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use crate::common::Rig;
use crate::space::{call, check_read, counter, create, ctx, name, volume, write};
use cairn_cf::DModule;
use cairn_op::{ObjectRef, Op, Reply, Submitted};
use cairn_raid_group::{CreateOptions, RaidKind};
use cairn_sim::CutPolicy;
use cairn_units::Blocks;

const PIECE: usize = 64 << 10;
const BLOCKS_PER_PIECE: u64 = 16;
/// What begins a point: 16 MiB.
const STREAM_BLOCKS: u64 = 4096;
/// A log a half of which takes eight COMMITs of 1,024 blocks.
const LARGE_LOG_BLOCKS: u64 = 17_000;

/// A volume of which no map is in memory, so that a point waits for disks before its cut.
fn rig(seed: u64) -> (Rig, ObjectRef) {
    rig_with_log(seed, 512, 16_384)
}

fn rig_with_log(seed: u64, log_blocks: u64, disk_blocks: u64) -> (Rig, ObjectRef) {
    let mut options = CreateOptions::new(RaidKind::RaidDp, 0);
    options.log_blocks_per_disk = Some(Blocks::new(log_blocks));
    let mut rig = Rig::with_log(seed, options, 6, disk_blocks);
    let root = volume(&rig, 1, 256 << 20);
    let file = create(&rig, root, "before").expect("a file");
    stream(&rig, file, 9, BLOCKS_PER_PIECE, PIECE);
    rig.config.cache_blocks = 65_536;
    rig.clean_restart();
    (rig, root)
}

/// Writes `blocks` blocks in pieces of `len` bytes.
fn stream(rig: &Rig, obj: ObjectRef, seed: u64, blocks: u64, len: usize) {
    for at in (0..blocks * 4096).step_by(len) {
        write(rig, obj, seed, at, len).expect("a write");
    }
}

fn commit(rig: &Rig, obj: ObjectRef) {
    call(rig, Op::Commit { obj, offset: 0, count: 0 }).expect("a commit");
}

#[test]
fn large_unstable_writes_begin_a_point_and_small_ones_wait_for_the_next() {
    for (len, begins) in [(PIECE, true), (4096, false)] {
        let (rig, root) = rig(60);
        let file = create(&rig, root, "f").unwrap();
        let before = counter(&rig, "cp_total");
        stream(&rig, file, 1, STREAM_BLOCKS - BLOCKS_PER_PIECE, len);
        rig.sim.run_for(Duration::from_secs(1));
        assert_eq!(counter(&rig, "cp_total"), before, "not yet, {len} bytes at a time");
        stream(&rig, file, 1, 4 * BLOCKS_PER_PIECE, len);
        rig.sim.run_for(Duration::from_secs(1));
        let points = counter(&rig, "cp_total") - before;
        assert_eq!(points, u64::from(begins), "{len} bytes at a time");
    }
}

#[test]
fn a_commit_that_finds_the_point_open_waits_for_no_other() {
    let (rig, root) = rig(61);
    let file = create(&rig, root, "f").unwrap();
    let before = counter(&rig, "cp_total");
    stream(&rig, file, 2, STREAM_BLOCKS + 8 * BLOCKS_PER_PIECE, PIECE);
    assert_eq!(counter(&rig, "cp_total"), before, "the point is under way");
    commit(&rig, file);
    assert_eq!(counter(&rig, "cp_total"), before + 1);
    rig.sim.run_for(Duration::from_secs(1));
    assert_eq!(counter(&rig, "cp_total"), before + 1);
}

/// At any moment of a point: what a COMMIT answers for is there after a power cut that keeps nothing
/// unflushed.
#[test]
fn a_commit_beside_a_point_answers_for_what_that_point_holds_and_no_more() {
    let (mut joined, mut next) = (0, 0);
    for moment in 0..48 {
        let (mut rig, root) = rig(100 + moment);
        let [large, other] = ["large", "other"].map(|n| create(&rig, root, n).unwrap());
        let before = counter(&rig, "cp_total");
        stream(&rig, large, 3, STREAM_BLOCKS + BLOCKS_PER_PIECE, PIECE);
        rig.sim.run_for(Duration::from_micros(100 * moment));
        let len = 300 * 4096;
        write(&rig, other, moment, 0, len).unwrap();
        commit(&rig, other);
        match counter(&rig, "cp_total") - before {
            1 => joined += 1,
            _ => next += 1,
        }
        rig.sim.power_cut_with(&CutPolicy::DropAll);
        rig.after_cut();
        rig.restart();
        rig.check();
        let found = call(&rig, Op::Lookup { dir: root, name: name("other") }).unwrap();
        let Reply::Found { obj, attrs, .. } = found else { panic!("{found:?}") };
        assert_eq!(attrs.size, len as u64, "moment {moment}");
        check_read(&rig, obj, moment, 0, len);
    }
    assert!(joined > 3 && next > 3, "{joined} joined the point, {next} waited for the next");
}

/// Cuts the power without keeping anything unflushed, and expects the file as it was written.
fn cut_and_find(rig: &mut Rig, root: ObjectRef, text: &str, seed: u64, size: usize, at: u64) {
    rig.sim.power_cut_with(&CutPolicy::DropAll);
    rig.after_cut();
    rig.restart();
    rig.check();
    let found = call(rig, Op::Lookup { dir: root, name: name(text) }).expect("it is found");
    let Reply::Found { obj, attrs, .. } = found else { panic!("{found:?}") };
    assert_eq!(attrs.size, size as u64);
    check_read(rig, obj, seed, at, size - usize::try_from(at).expect("a short file"));
}

/// Alone, a COMMIT of a few MiB is as long as its records take, however many pieces they came in; the log
/// has a record for each run of blocks, at most 512 blocks long.
#[test]
fn a_commit_of_some_blocks_is_logged_in_runs_when_no_point_comes() {
    let runs: [(u64, usize, u64); 3] =
        [(0, 600 * 4096 - 100, 2), (4096 * 7, 512 * 4096, 1), (4096 * 7 + 11, 1000 * 4096, 2)];
    for (seed, (at, len, records)) in (70..).zip(runs) {
        let (mut rig, root) = rig_with_log(seed, LARGE_LOG_BLOCKS, 65_536);
        let file = create(&rig, root, "f").unwrap();
        let before = ["cp_total", "log_records_total"].map(|c| counter(&rig, c));
        let mut written = 0;
        while written < len {
            let piece = PIECE.min(len - written);
            write(&rig, file, seed, at + written as u64, piece).unwrap();
            written += piece;
        }
        commit(&rig, file);
        let after = ["cp_total", "log_records_total"].map(|c| counter(&rig, c));
        assert_eq!(
            (after[0] - before[0], after[1] - before[1]),
            (0, records),
            "{len} bytes at {at}"
        );
        cut_and_find(&mut rig, root, "f", seed, usize::try_from(at).unwrap() + len, at);
    }
}

#[test]
fn runs_of_a_commit_end_where_blocks_were_not_written() {
    let (mut rig, root) = rig_with_log(80, LARGE_LOG_BLOCKS, 65_536);
    let file = create(&rig, root, "f").unwrap();
    write(&rig, file, 5, 0, 32 * 4096).unwrap();
    commit(&rig, file);
    let before = counter(&rig, "log_records_total");
    for (first, blocks) in [(2, 3), (9, 1), (10, 1), (20, 2)] {
        write(&rig, file, 6, first * 4096, blocks * 4096).unwrap();
    }
    commit(&rig, file);
    assert_eq!(counter(&rig, "log_records_total") - before, 3);
    rig.sim.power_cut_with(&CutPolicy::DropAll);
    rig.after_cut();
    rig.restart();
    for (first, blocks, seed) in
        [(0, 2, 5), (2, 3, 6), (5, 4, 5), (9, 2, 6), (11, 9, 5), (20, 2, 6), (22, 10, 5)]
    {
        check_read(&rig, file, seed, first * 4096, blocks * 4096);
    }
}

/// When others wait for a point already, the same COMMIT joins it; a small one goes through the log.
#[test]
fn a_commit_of_some_blocks_joins_a_point_that_comes_anyway() {
    for (blocks, logged) in [(256, true), (257, false)] {
        let (mut rig, root) = rig_with_log(90 + blocks, LARGE_LOG_BLOCKS, 65_536);
        let [large, other] = ["large", "other"].map(|n| create(&rig, root, n).unwrap());
        stream(&rig, large, 3, 1040, PIECE);
        let len = usize::try_from(blocks).unwrap() * 4096;
        write(&rig, other, 4, 0, len).unwrap();
        let before = ["cp_total", "log_records_total"].map(|c| counter(&rig, c));
        let node = rig.node();
        let first = node.file(ctx(), Op::Commit { obj: large, offset: 0, count: 0 });
        assert!(matches!(first, Submitted::Pending(_)));
        let mut first = pin!(first.wait());
        let mut context = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut context).is_pending(), "it waits for a point");
        commit(&rig, other);
        let after = ["cp_total", "log_records_total"].map(|c| counter(&rig, c));
        assert_eq!(after[1] - before[1], u64::from(logged), "{blocks} blocks");
        assert_eq!(after[0] - before[0], u64::from(!logged), "{blocks} blocks");
        rig.sim.block_on(first).unwrap();
        cut_and_find(&mut rig, root, "other", 4, len, 0);
    }
}

/// A log that would need a point for every few of them is spared; so is one that has no room now.
#[test]
fn a_commit_of_some_blocks_that_the_log_is_small_for_waits_for_a_point() {
    for (log_blocks, blocks, points) in [(8192, 500, 0), (8192, 520, 1), (4096, 256, 0)] {
        let (mut rig, root) = rig_with_log(95, log_blocks, 65_536);
        let file = create(&rig, root, "f").unwrap();
        write(&rig, file, 5, 0, blocks * 4096).unwrap();
        let before = counter(&rig, "cp_total");
        commit(&rig, file);
        assert_eq!(counter(&rig, "cp_total") - before, points, "{blocks} in {log_blocks}");
        cut_and_find(&mut rig, root, "f", 5, blocks * 4096, 0);
    }
    let (mut rig, root) = rig_with_log(96, 8192, 65_536);
    let files: Vec<_> = (0..10).map(|n| create(&rig, root, &format!("f{n}")).unwrap()).collect();
    for (seed, file) in (0..).zip(&files) {
        stream(&rig, *file, seed, 500, 4096);
    }
    assert_eq!(counter(&rig, "cp_total"), 1, "small writes begin no point");
    // Nothing runs between these calls, so no half can have been given up.
    let node = rig.node();
    let commits = files.iter().map(|obj| Op::Commit { obj: *obj, offset: 0, count: 0 });
    let pending: Vec<_> = commits.map(|op| node.file(ctx(), op)).collect();
    assert!(counter(&rig, "log_records_total") > 8, "most are logged");
    for one in pending {
        rig.sim.block_on(one.wait()).unwrap();
    }
    assert_eq!(counter(&rig, "log_waits_total"), 0);
    drop(node);
    cut_and_find(&mut rig, root, "f9", 9, 500 * 4096, 0);
}
