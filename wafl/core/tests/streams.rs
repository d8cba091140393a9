//! Large unstable writes: they begin a consistency point before anybody asks for one, and a COMMIT
//! that finds that point open waits for no other.

use core::time::Duration;

use crate::common::Rig;
use crate::space::{call, check_read, counter, create, name, volume, write};
use cairn_op::{ObjectRef, Op, Reply};
use cairn_raid_group::RaidKind;
use cairn_sim::CutPolicy;

const PIECE: usize = 64 << 10;
const BLOCKS_PER_PIECE: u64 = 16;
/// What begins a point: 16 MiB.
const STREAM_BLOCKS: u64 = 4096;

/// A volume of which no map is in memory, so that a point waits for disks before its cut.
fn rig(seed: u64) -> (Rig, ObjectRef) {
    let mut rig = Rig::new(seed, RaidKind::RaidDp, 6, 16_384);
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
