//! How fast a consistency point goes: gently for itself, at full speed when somebody waits.

use core::time::Duration;

use cairn_cf::Manage;
use cairn_op::ObjectRef;
use cairn_raid_group::RaidKind;

use crate::common::Rig;
use crate::space::{counter, create, manage, volume, write};

/// Fewer than those that ask for a point.
const BLOCKS: u64 = 1800;

/// A node with a file, all of it on the disks.
fn with_file(seed: u64) -> (Rig, ObjectRef) {
    let mut rig = Rig::new(seed, RaidKind::RaidDp, 6, 16_384);
    rig.sim.block_on(rig.node().shutdown()).expect("a clean stop");
    rig.config.cache_blocks = 16_384;
    rig.mount();
    let root = volume(&rig, 1, 256 << 20);
    let file = create(&rig, root, "file").expect("a file is made");
    dirty(&rig, file);
    manage(&rig, Manage::ConsistencyPoint);
    (rig, file)
}

/// Blocks that nobody waits for, in pieces that are no stream.
fn dirty(rig: &Rig, file: ObjectRef) {
    for at in (0..BLOCKS).step_by(4) {
        write(rig, file, at, at * 4096, 4 * 4096).expect("there is room");
    }
}

/// Nanoseconds that points took while `work` was done, and how many there were.
fn points(rig: &Rig, work: impl FnOnce()) -> (u64, u64) {
    let now = || (counter(rig, "cp_nanoseconds_total"), counter(rig, "cp_total"));
    let before = now();
    work();
    let after = now();
    (after.0 - before.0, after.1 - before.1)
}

/// Goes on until the point of the clock has written `blocks` of its data.
fn under_way(rig: &Rig, blocks: u64) {
    let written = counter(rig, "raid_data_blocks_written_total");
    for _ in 0..200_000 {
        if counter(rig, "raid_data_blocks_written_total") >= written + blocks {
            return;
        }
        rig.sim.run_for(Duration::from_micros(100));
    }
    panic!("no point of the clock");
}

#[test]
fn a_point_rests_between_its_tetrises_until_somebody_waits_for_it() {
    let (rig, file) = with_file(51);
    dirty(&rig, file);
    let (asked, one) = points(&rig, || drop(manage(&rig, Manage::ConsistencyPoint)));
    dirty(&rig, file);
    let (gentle, other) = points(&rig, || rig.sim.run_for(Duration::from_secs(12)));
    assert_eq!((one, other), (1, 1), "one point each");
    assert!(gentle > 2 * asked, "{gentle} ns by itself, {asked} ns when asked for");
    dirty(&rig, file);
    let (hurried, two) = points(&rig, || {
        under_way(&rig, BLOCKS / 10);
        manage(&rig, Manage::ConsistencyPoint);
    });
    assert_eq!(two, 2, "the point under way, and the one that was asked for");
    assert!(hurried < gentle * 3 / 4, "{hurried} ns when waited for, {gentle} ns by itself");
    rig.check();
}
