//! Space: nothing leaks, full volumes can be emptied, large files and volumes are freed whole, and
//! a small cache serves data larger than itself.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::common::Rig;
use bytes::Bytes;
use cairn_cf::{DModule, Manage, Managed};
use cairn_op::{
    ClientAddr, CreateHow, Credential, ListLimits, Name, ObjectRef, Op, OpCtx, OpResult, ReadOnly,
    Reply, SetAttrs, Stability, Status, Submitted, Verifier, WithFiles,
};
use cairn_raid_api::{
    AHEAD_STRIPES_MAX, Aggregate, Geometry, LogStore, Place, ReadError, ReadRequest, RootRecord,
    Tetris, WriteError,
};
use cairn_raid_group::{RaidAggregate, RaidKind};
use cairn_sim::{CutPolicy, Rng};
use cairn_sys::{Block, BoxFuture, Payload};
use cairn_units::{Cookie, Fsid, OpNo, Pvbn, VserverId};
use cairn_wafl_core::StorageManager;

pub(crate) fn ctx() -> OpCtx {
    OpCtx {
        vserver: VserverId::new(1),
        cred: Credential::root(),
        client: ClientAddr { ip: [127, 0, 0, 1].into(), port: 1 },
        op_no: OpNo::new(1),
        deadline: None,
        read_only: ReadOnly::No,
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(Bytes::copy_from_slice(text.as_bytes())).expect("a good name")
}

pub(crate) fn call(rig: &Rig, op: Op<ObjectRef>) -> OpResult<ObjectRef> {
    let node = rig.node();
    rig.sim.block_on(async { node.file(ctx(), op).wait().await })
}

pub(crate) fn manage(rig: &Rig, request: Manage) -> Managed {
    let node = rig.node();
    rig.sim.block_on(node.manage(request)).expect("management works")
}

pub(crate) fn volume(rig: &Rig, fsid: u64, size_bytes: u64) -> ObjectRef {
    let fsid = Fsid::new(fsid);
    manage(rig, Manage::VolumeCreate { fsid, name: format!("v{fsid}"), size_bytes });
    match manage(rig, Manage::VolumeRoot { fsid }) {
        Managed::Root(root) => root,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn create(rig: &Rig, dir: ObjectRef, text: &str) -> Result<ObjectRef, Status> {
    let how = CreateHow::Guarded(SetAttrs { mode: Some(0o644), ..SetAttrs::default() });
    match call(rig, Op::Create { dir, name: name(text), how }) {
        Ok(Reply::Made { obj, .. }) => Ok(obj),
        Ok(other) => panic!("{other:?}"),
        Err(f) => Err(f.status),
    }
}

fn bytes_at(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let byte = |i: u64| ((offset + i).wrapping_mul(31).wrapping_add(seed) >> 3).to_le_bytes()[0];
    (0..len as u64).map(byte).collect()
}

pub(crate) fn write(
    rig: &Rig,
    obj: ObjectRef,
    seed: u64,
    offset: u64,
    len: usize,
) -> Result<(), Status> {
    let data = Payload::copy_from(offset, &bytes_at(seed, offset, len));
    match call(rig, Op::Write { obj, offset, data, stability: Stability::Unstable }) {
        Ok(_) => Ok(()),
        Err(f) => Err(f.status),
    }
}

pub(crate) fn check_read(rig: &Rig, obj: ObjectRef, seed: u64, offset: u64, len: usize) {
    let count = u32::try_from(len).expect("a short read");
    match call(rig, Op::Read { obj, offset, count }) {
        Ok(Reply::Read { data, .. }) => {
            assert!(data.to_vec() == bytes_at(seed, offset, len), "bytes at {offset}");
        }
        other => panic!("{other:?}"),
    }
}

fn remove(rig: &Rig, dir: ObjectRef, text: &str) {
    call(rig, Op::Remove { dir, name: name(text) }).expect("removing always works");
}

fn settle(rig: &Rig) {
    for _ in 0..6 {
        manage(rig, Manage::ConsistencyPoint);
        rig.sim.run_for(core::time::Duration::from_secs(11));
    }
}

fn used(rig: &Rig) -> u64 {
    match manage(rig, Manage::AggregateStatus) {
        Managed::Aggregate(a) => a.used_bytes / 4096,
        other => panic!("{other:?}"),
    }
}

#[test]
fn removed_files_of_all_sizes_give_every_block_back() {
    let rig = Rig::small(1);
    let root = volume(&rig, 1, 64 << 20);
    settle(&rig);
    let before = used(&rig);
    for (i, blocks) in [0u64, 1, 16, 17, 300, 5000].into_iter().enumerate() {
        let text = format!("f{i}");
        let obj = create(&rig, root, &text).unwrap();
        for at in (0..blocks).step_by(64) {
            let n = (blocks - at).min(64);
            write(&rig, obj, 7, at * 4096, n as usize * 4096).unwrap();
        }
        // One block far out makes the tree high, with holes between.
        write(&rig, obj, 7, 1 << 40, 4096).unwrap();
        manage(&rig, Manage::ConsistencyPoint);
        check_read(&rig, obj, 7, 1 << 40, 4096);
        let half = SetAttrs { size: Some(blocks * 2048 + 5), ..SetAttrs::default() };
        call(&rig, Op::SetAttr { obj, set: half, guard: None }).unwrap();
    }
    rig.check();
    for i in 0..6 {
        remove(&rig, root, &format!("f{i}"));
    }
    settle(&rig);
    rig.check();
    // The maps have grown a little: one block for 512 VVBNs that were ever used.
    let left = used(&rig).saturating_sub(before);
    assert!(left <= 40, "{left} blocks are still in use");
}

#[test]
fn a_full_volume_says_so_and_can_be_emptied_and_filled_again() {
    let rig = Rig::small(2);
    let root = volume(&rig, 1, 8 << 20);
    for round in 0..3 {
        let mut made = 0;
        let full = loop {
            let text = format!("f{made}");
            let status = match create(&rig, root, &text) {
                Ok(obj) => {
                    made += 1;
                    write(&rig, obj, round, 0, 1 << 20).err()
                }
                Err(status) => Some(status),
            };
            if status.is_some() {
                break status;
            }
        };
        assert_eq!(full, Some(Status::NoSpace));
        assert!(made >= 6, "{made} files of 1 MiB in 8 MiB");
        for i in 0..made {
            remove(&rig, root, &format!("f{i}"));
        }
        settle(&rig);
        rig.check();
    }
}

#[test]
fn a_full_aggregate_stays_consistent_and_deleting_works() {
    let rig = Rig::small(3);
    let root = volume(&rig, 1, 1 << 40);
    let mut made = 0u64;
    while let Ok(obj) = create(&rig, root, &format!("f{made}")) {
        made += 1;
        let mut at = 0;
        let end = loop {
            if at == 16 << 20 {
                break None;
            }
            if let Err(status) = write(&rig, obj, 5, at, 1 << 20) {
                break Some(status);
            }
            at += 1 << 20;
        };
        if let Some(status) = end {
            assert_eq!(status, Status::NoSpace);
            break;
        }
    }
    manage(&rig, Manage::ConsistencyPoint);
    rig.check();
    assert!(made > 4, "{made} files");
    for i in 0..made {
        remove(&rig, root, &format!("f{i}"));
    }
    settle(&rig);
    rig.check();
    let obj = create(&rig, root, "again").unwrap();
    write(&rig, obj, 9, 0, 1 << 20).unwrap();
    check_read(&rig, obj, 9, 0, 1 << 20);
}

#[test]
fn a_deleted_volume_gives_everything_back_and_the_others_stay() {
    let mut rig = Rig::small(4);
    let keep = volume(&rig, 1, 32 << 20);
    let kept = create(&rig, keep, "kept").unwrap();
    write(&rig, kept, 3, 0, 3 << 20).unwrap();
    settle(&rig);
    let before = used(&rig);
    let root = volume(&rig, 2, 32 << 20);
    let obj = create(&rig, root, "gone").unwrap();
    write(&rig, obj, 4, 0, 6 << 20).unwrap();
    manage(&rig, Manage::ConsistencyPoint);
    manage(&rig, Manage::VolumeDelete { fsid: Fsid::new(2) });
    assert_eq!(call(&rig, Op::GetAttr { obj }).unwrap_err().status, Status::Stale);
    settle(&rig);
    rig.check();
    assert!(used(&rig) <= before + 20, "{} blocks, {before} before", used(&rig));
    rig.power_cut();
    rig.restart();
    rig.check();
    check_read(&rig, kept, 3, 0, 3 << 20);
    assert_eq!(call(&rig, Op::GetAttr { obj }).unwrap_err().status, Status::Stale);
}

#[test]
fn a_cache_smaller_than_the_data_returns_the_right_bytes() {
    let mut rig = Rig::small(5);
    rig.config.cache_blocks = 512;
    let node = rig.node();
    rig.sim.block_on(node.shutdown()).unwrap();
    drop(node);
    rig.node = None;
    rig.mount();
    let root = volume(&rig, 1, 128 << 20);
    let obj = create(&rig, root, "large").unwrap();
    let chunk = 256 * 1024;
    for i in 0..160u64 {
        write(&rig, obj, 1, i * chunk as u64, chunk).unwrap();
    }
    call(&rig, Op::Commit { obj, offset: 0, count: 0 }).unwrap();
    for i in 0..160u64 {
        check_read(&rig, obj, 1, (i * 37 % 160) * chunk as u64, chunk);
    }
    rig.check();
    let Managed::Counters(all) = manage(&rig, Manage::Counters) else { panic!("counters") };
    let resident = all.iter().find(|m| m.name == "cache_blocks").map(|m| m.value);
    assert!(resident.is_some_and(|r| r <= 512 + 512), "{resident:?} blocks in a cache of 512");
}

/// What an operation has just loaded is not driven out for it: it would load that again for ever.
#[test]
fn a_read_of_more_blocks_than_the_cache_has_comes_to_an_end() {
    let mut rig = Rig::new(17, RaidKind::RaidDp, 6, 8192);
    let root = volume(&rig, 1, 256 << 20);
    let file = create(&rig, root, "large").unwrap();
    let (blocks, piece) = (3000, 384);
    for at in (0..blocks).step_by(100) {
        write(&rig, file, 5, at * 4096, 100 * 4096).unwrap();
    }
    rig.config.cache_blocks = 256;
    rig.clean_restart();
    let mut rng = Rng::new(6);
    for _ in 0..40 {
        let before = counter(&rig, "cache_misses_total");
        check_read(&rig, file, 5, rng.below(blocks - piece) * 4096, 384 * 4096);
        let loaded = counter(&rig, "cache_misses_total") - before;
        assert!(loaded <= 2 * piece, "{loaded} blocks for one read of {piece}");
    }
}

/// What is dirty takes memory as well: clean blocks make room for it before any point.
#[test]
fn dirty_blocks_are_part_of_the_cache() {
    let mut rig = Rig::new(12, RaidKind::RaidDp, 6, 8192);
    rig.sim.block_on(rig.node().shutdown()).expect("a clean stop");
    rig.config.cache_blocks = 4096;
    rig.mount();
    let root = volume(&rig, 1, 256 << 20);
    let write_blocks = |name: &str, blocks: u64| {
        let file = create(&rig, root, name).unwrap();
        for at in (0..blocks).step_by(10) {
            write(&rig, file, at, at * 4096, 10 * 4096).unwrap();
        }
    };
    for n in 0..5 {
        write_blocks(&format!("clean {n}"), 800);
        manage(&rig, Manage::ConsistencyPoint);
    }
    let points = counter(&rig, "cp_total");
    // Fewer than those that start a point.
    write_blocks("dirty", 900);
    assert_eq!(counter(&rig, "cp_total"), points, "a point came in between");
    let (clean, dirty) = (counter(&rig, "cache_blocks"), counter(&rig, "dirty_blocks"));
    assert!(dirty >= 900, "{dirty} blocks are dirty");
    assert!(clean > 2500, "only {clean} clean blocks are left");
    assert!(
        clean + dirty <= 4096 + 64,
        "{clean} clean and {dirty} dirty blocks in a cache of 4096"
    );
}

/// Random reads load what they ask for, although half of the file is in memory beside it; reads in
/// order load ahead.
#[test]
fn only_reads_that_go_on_load_ahead() {
    let mut rig = Rig::new(13, RaidKind::RaidDp, 6, 8192);
    rig.sim.block_on(rig.node().shutdown()).expect("a clean stop");
    rig.config.cache_blocks = 2048;
    rig.mount();
    let root = volume(&rig, 1, 256 << 20);
    let file = create(&rig, root, "large").unwrap();
    let blocks = 4000;
    for at in (0..blocks).step_by(10) {
        write(&rig, file, at, at * 4096, 10 * 4096).unwrap();
    }
    manage(&rig, Manage::ConsistencyPoint);
    let read = |rig: &Rig, at: u64| {
        let op = Op::Read { obj: file, offset: at * 4096, count: 4096 };
        assert!(matches!(call(rig, op), Ok(Reply::Read { .. })));
    };
    let before = counter(&rig, "cache_misses_total");
    let reads = 3000;
    let mut rng = Rng::new(1);
    for _ in 0..reads {
        read(&rig, rng.below(blocks));
    }
    let loaded = counter(&rig, "cache_misses_total") - before;
    assert!((reads / 4..=reads * 5 / 4).contains(&loaded), "{loaded} blocks for {reads} reads");
    rig.clean_restart();
    let before = counter(&rig, "cache_misses_total");
    (1100..1110).for_each(|at| read(&rig, at));
    let loaded = counter(&rig, "cache_misses_total") - before;
    assert!((64..100).contains(&loaded), "{loaded} blocks for 10 reads in order");
}

/// What a point under way has placed stays in memory until it lies on the disks: whoever writes
/// meanwhile waits rather than making the cache larger.
#[test]
fn a_point_under_way_does_not_make_the_cache_larger() {
    let mut rig = Rig::new(14, RaidKind::RaidDp, 6, 16_384);
    rig.sim.block_on(rig.node().shutdown()).expect("a clean stop");
    rig.config.cache_blocks = 4096;
    rig.mount();
    let root = volume(&rig, 1, 256 << 20);
    let file = create(&rig, root, "large").unwrap();
    let mut most = 0;
    for at in (0..12_000).step_by(50) {
        write(&rig, file, at, at * 4096, 50 * 4096).unwrap();
        most = most.max(counter(&rig, "cache_blocks") + counter(&rig, "dirty_blocks"));
    }
    assert!(counter(&rig, "cp_total") > 3, "points were under way");
    assert!(most > 3000, "only {most} blocks were in memory");
    assert!(most <= 4096 + 256, "{most} blocks in a cache of 4096");
}

/// Dirty in-core inodes are bounded like dirty blocks, however few blocks they dirty.
#[test]
fn many_creates_keep_no_more_inodes_in_core_than_two_points_may() {
    // Large disks have a large log: the bound, not the log, brings the points.
    let mut rig = Rig::new(15, RaidKind::RaidDp, 6, 262_144);
    rig.sim.block_on(rig.node().shutdown()).expect("a clean stop");
    rig.config.cache_blocks = 700;
    rig.mount();
    let root = volume(&rig, 1, 128 << 20);
    let most = (0..6000).map(|n| {
        create(&rig, root, &format!("file {n}")).unwrap();
        counter(&rig, "in_core_inodes")
    });
    let most = most.max().unwrap_or_default();
    let bound = counter(&rig, "in_core_inodes_max");
    assert_eq!(bound, 600);
    assert!((bound..=4 * bound + 64).contains(&most), "{most} in-core inodes, bound {bound}");
}

/// Who looks up files whose inodes lie in cached blocks loads nothing, and yet brings them in core.
#[test]
fn lookups_that_load_nothing_are_bounded_as_well() {
    let mut rig = Rig::new(16, RaidKind::RaidDp, 6, 32_768);
    rig.sim.block_on(rig.node().shutdown()).expect("a clean stop");
    rig.config.cache_blocks = 1792;
    rig.mount();
    let root = volume(&rig, 1, 128 << 20);
    for n in 0..3000 {
        create(&rig, root, &format!("file {n}")).unwrap();
    }
    settle(&rig);
    let before = counter(&rig, "cache_misses_total");
    for n in 0..3000 {
        call(&rig, Op::Lookup { dir: root, name: name(&format!("file {n}")) }).unwrap();
    }
    let loaded = counter(&rig, "cache_misses_total") - before;
    let (most, bound) = (counter(&rig, "in_core_inodes"), counter(&rig, "in_core_inodes_max"));
    assert!(most <= bound + 64, "{most} in-core inodes, bound {bound}, {loaded} blocks loaded");
    assert!(loaded < 500, "{loaded} blocks loaded: the test looks at something else");
}

pub(crate) fn counter(rig: &Rig, name: &str) -> u64 {
    let Managed::Counters(all) = manage(rig, Manage::Counters) else { panic!("counters") };
    all.iter().find(|m| m.name == name).map_or_else(|| panic!("no {name}"), |m| m.value)
}

#[test]
fn a_listing_shows_files_that_are_not_in_core_and_leaves_them_there() {
    let mut rig = Rig::small(9);
    let root = volume(&rig, 1, 128 << 20);
    for i in 0..100usize {
        let obj = create(&rig, root, &format!("file {i}")).unwrap();
        write(&rig, obj, 1, 0, i * 1000 + 1).unwrap();
        call(&rig, Op::Commit { obj, offset: 0, count: 0 }).unwrap();
    }
    rig.clean_restart();
    let limits = ListLimits {
        entries_max: 1000,
        bytes_max: 1 << 20,
        entry_bytes: 200,
        with_files: WithFiles::Yes,
    };
    let list = Op::ReadDir { dir: root, cookie: Cookie::new(2), limits };
    let Reply::Listing { entries, eof: true, .. } = call(&rig, list.clone()).unwrap() else {
        panic!("a listing")
    };
    assert_eq!(entries.len(), 100);
    let in_core = counter(&rig, "in_core_inodes");
    assert!(in_core < 10, "{in_core} inodes are in core after a listing of 100 files");
    for entry in &entries {
        let (obj, attrs) = entry.file.clone().expect("its attributes are listed");
        let name = entry.name.clone();
        let found = call(&rig, Op::Lookup { dir: root, name }).unwrap();
        let Reply::Found { obj: found, attrs: own, .. } = found else { panic!("{found:?}") };
        assert_eq!((obj, &attrs), (found, &own), "{:?}", entry.name);
        assert!(attrs.size > 0 && attrs.used >= attrs.size, "{attrs:?}");
    }
    assert!(counter(&rig, "in_core_inodes") > 100, "the look-ups made them in-core");
    let Reply::Listing { entries: again, .. } = call(&rig, list).unwrap() else {
        panic!("a listing")
    };
    assert_eq!(entries, again, "in-core or not, they are listed alike");
}

#[test]
fn many_small_files_are_found_again_after_a_crash() {
    let mut rig = Rig::small(6);
    let root = volume(&rig, 1, 128 << 20);
    for i in 0..700 {
        let obj = create(&rig, root, &format!("file {i}")).unwrap();
        let data = Payload::copy_from(0, &bytes_at(i, 0, 100));
        let write = Op::Write { obj, offset: 0, data, stability: Stability::FileSync };
        call(&rig, write).unwrap();
        if i % 3 == 0 {
            remove(&rig, root, &format!("file {i}"));
        }
    }
    rig.power_cut();
    rig.restart();
    rig.check();
    for i in 0..700 {
        let found = call(&rig, Op::Lookup { dir: root, name: name(&format!("file {i}")) });
        match found {
            Ok(Reply::Found { obj, .. }) if i % 3 != 0 => check_read(&rig, obj, i, 0, 100),
            Err(f) if i % 3 == 0 => assert_eq!(f.status, Status::NotFound),
            other => panic!("file {i}: {other:?}"),
        }
    }
}

#[test]
fn numbers_of_removed_files_come_back_after_a_point_and_creating_stays_cheap() {
    let rig = Rig::small(7);
    let root = volume(&rig, 1, 64 << 20);
    let mut highest = 0;
    for round in 0..6 {
        for i in 0..400 {
            let obj = create(&rig, root, &format!("f{i}")).unwrap();
            highest = highest.max(obj.ino.get());
        }
        for i in 0..400 {
            remove(&rig, root, &format!("f{i}"));
        }
        if round % 2 == 1 {
            manage(&rig, Manage::ConsistencyPoint);
        }
    }
    rig.check();
    // Two rounds lie between consistency points, so 800 numbers are in use or not yet free.
    assert!(highest < 2000, "inode {highest} for 400 files");
}

#[test]
fn a_reference_to_a_removed_file_is_stale_when_its_number_is_used_again() {
    let rig = Rig::small(9);
    let root = volume(&rig, 1, 64 << 20);
    let old = create(&rig, root, "old").unwrap();
    // Numbers are looked for below the highest once enough of them are free.
    for i in 0..600 {
        create(&rig, root, &format!("f{i}")).unwrap();
    }
    for i in 0..600 {
        remove(&rig, root, &format!("f{i}"));
    }
    remove(&rig, root, "old");
    manage(&rig, Manage::ConsistencyPoint);
    let mut made = (0..1000).map(|i| create(&rig, root, &format!("g{i}")).unwrap());
    let new = made.find(|obj| obj.ino == old.ino).expect("the number comes back");
    assert_ne!(new.generation, old.generation);
    write(&rig, new, 3, 0, 4096).unwrap();
    let data = Payload::copy_from(0, b"not here");
    for op in [
        Op::GetAttr { obj: old },
        Op::Read { obj: old, offset: 0, count: 1 },
        Op::Write { obj: old, offset: 0, data, stability: Stability::FileSync },
        Op::Commit { obj: old, offset: 0, count: 0 },
        Op::Link { obj: old, dir: root, name: name("link") },
        Op::SetAttr {
            obj: old,
            set: SetAttrs { size: Some(0), ..SetAttrs::default() },
            guard: None,
        },
    ] {
        let refused = call(&rig, op).map(drop).map_err(|f| f.status);
        assert_eq!(refused, Err(Status::Stale));
    }
    check_read(&rig, new, 3, 0, 4096);
}

/// A long replay commits on its way; the start after a cut behind that must not do again what the
/// root contains already.
#[test]
fn a_replay_cut_behind_its_own_point_does_nothing_twice() {
    let mut cuts = 0;
    for n in (1..).map(|i| i * 7) {
        let mut rig = Rig::new(10, RaidKind::RaidDp, 6, 131_072);
        rig.config.cache_blocks = 32_768;
        rig.clean_restart();
        let root = volume(&rig, 1, 256 << 20);
        manage(&rig, Manage::ConsistencyPoint);
        for i in 0..100 {
            let obj = create(&rig, root, &format!("f{i}")).unwrap();
            let data = Payload::copy_from(0, &bytes_at(i, 0, 8 * 4096));
            let stability = Stability::FileSync;
            call(&rig, Op::Write { obj, offset: 0, data, stability }).unwrap();
            if i % 3 == 0 {
                call(&rig, Op::Link { obj, dir: root, name: name(&format!("l{i}")) }).unwrap();
            }
        }
        rig.config.cache_blocks = 256;
        rig.power_cut();
        rig.sim.cut_power_at(n);
        let through = rig.open_or_cut();
        rig.sim.cancel_cut();
        if !through {
            cuts += 1;
            rig.after_cut();
            rig.restart();
        }
        rig.check();
        for i in 0..100 {
            let found = call(&rig, Op::Lookup { dir: root, name: name(&format!("f{i}")) }).unwrap();
            let Reply::Found { obj, attrs, .. } = found else { panic!("{found:?}") };
            assert_eq!(attrs.links, 1 + u32::from(i % 3 == 0), "f{i}");
            check_read(&rig, obj, i, 0, 8 * 4096);
        }
        if through {
            break;
        }
    }
    assert!(cuts > 10, "{cuts} cuts");
}

#[test]
fn nothing_is_acknowledged_by_the_record_of_another_that_is_not_stable_yet() {
    let rig = Rig::small(8);
    let root = volume(&rig, 1, 64 << 20);
    let node = rig.node();
    let exclusive =
        Op::Create { dir: root, name: name("once"), how: CreateHow::Exclusive(Verifier([9; 8])) };
    // Nothing runs between these calls, so no record can have become stable.
    let first = node.file(ctx(), exclusive.clone());
    let again = node.file(ctx(), exclusive);
    assert!(matches!(first, Submitted::Pending(_)));
    assert!(matches!(again, Submitted::Pending(_)), "a retried create waits for the first");
    let made = rig.sim.block_on(again.wait());
    let Ok(Reply::Made { obj, .. }) = made else { panic!("{made:?}") };
    rig.sim.block_on(first.wait()).unwrap();

    write(&rig, obj, 1, 0, 4096).unwrap();
    let commit = Op::Commit { obj, offset: 0, count: 0 };
    let first = node.file(ctx(), commit.clone());
    let second = node.file(ctx(), commit);
    assert!(matches!(first, Submitted::Pending(_)));
    assert!(matches!(second, Submitted::Pending(_)), "a second COMMIT waits for the first");
    rig.sim.block_on(second.wait()).unwrap();
    drop(first);
}

fn used_blocks(rig: &Rig, obj: ObjectRef) -> u64 {
    match call(rig, Op::GetAttr { obj }) {
        Ok(Reply::Attrs(attrs)) => attrs.used / 4096,
        other => panic!("{other:?}"),
    }
}

#[test]
fn used_of_a_file_with_holes_is_exact_after_a_cut_and_the_end_of_its_tail() {
    let rig = Rig::small(9);
    let root = volume(&rig, 1, 64 << 20);
    let obj = create(&rig, root, "holes").unwrap();
    // Every third block of 1200, and one far out.
    for at in (0..1200u64).step_by(3) {
        write(&rig, obj, 3, at * 4096, 4096).unwrap();
    }
    write(&rig, obj, 3, 100_000 * 4096, 4096).unwrap();
    settle(&rig);
    // Data, 5 nodes of level 1 and the far one, 2 of level 2.
    assert_eq!(used_blocks(&rig, obj), 401 + 6 + 2);
    for (keep, blocks) in [(901, 301 + 4 + 1), (300, 100 + 2 + 1), (2, 1 + 1 + 1), (0, 0)] {
        let set = SetAttrs { size: Some(keep * 4096), ..SetAttrs::default() };
        call(&rig, Op::SetAttr { obj, set, guard: None }).unwrap();
        settle(&rig);
        rig.check();
        assert_eq!(used_blocks(&rig, obj), blocks, "cut to {keep} blocks");
        check_read(&rig, obj, 3, 0, if keep == 0 { 0 } else { 4096 });
    }
    remove(&rig, root, "holes");
    settle(&rig);
    rig.check();
}

#[test]
fn a_file_removed_while_the_tail_of_its_cut_is_freed_leaves_no_count_behind() {
    let rig = Rig::small(10);
    let root = volume(&rig, 1, 64 << 20);
    for round in 0..3u64 {
        let obj = create(&rig, root, "holes").unwrap();
        for at in (0..3000u64).step_by(5) {
            write(&rig, obj, 3, at * 4096, 4096).unwrap();
        }
        if round != 1 {
            manage(&rig, Manage::ConsistencyPoint);
        }
        for keep in [2000u64, 1000] {
            let set = SetAttrs { size: Some(keep * 4096 + 9), ..SetAttrs::default() };
            call(&rig, Op::SetAttr { obj, set, guard: None }).unwrap();
        }
        remove(&rig, root, "holes");
        settle(&rig);
        rig.check();
    }
}

#[test]
fn an_answered_commit_survives_a_power_cut_that_keeps_nothing_unflushed() {
    for seed in 0..8 {
        let mut rig = Rig::small(20 + seed);
        let root = volume(&rig, 1, 64 << 20);
        let obj = create(&rig, root, "f").unwrap();
        let len = 4096 * (1 + usize::try_from(seed).unwrap()) - 100;
        write(&rig, obj, seed, 0, len).unwrap();
        call(&rig, Op::Commit { obj, offset: 0, count: 0 }).unwrap();
        rig.sim.power_cut_with(&CutPolicy::DropAll);
        rig.after_cut();
        rig.restart();
        rig.check();
        let found = call(&rig, Op::Lookup { dir: root, name: name("f") }).unwrap();
        let Reply::Found { obj, attrs, .. } = found else { panic!("{found:?}") };
        assert_eq!(attrs.size, len as u64, "seed {seed}");
        check_read(&rig, obj, seed, 0, len);
    }
}

/// An aggregate that is looked at on the way to RAID.
struct Watched {
    inner: Arc<RaidAggregate>,
    /// Blocks of a file that is never changed, written since the last root, and reached by it.
    kept: Mutex<(BTreeSet<Pvbn>, BTreeSet<Pvbn>)>,
    /// Stripes of tetrises that were told ahead.
    told: AtomicU64,
    /// Tetrises that came with stripes ahead of which some between were in use.
    gaps: AtomicU64,
}

impl Aggregate for Watched {
    fn geometry(&self) -> Arc<Geometry> {
        self.inner.geometry()
    }
    fn read(&self, requests: Vec<ReadRequest>) -> BoxFuture<Vec<Result<Block, ReadError>>> {
        self.inner.read(requests)
    }
    fn write(&self, tetris: Tetris) -> BoxFuture<Result<(), WriteError>> {
        let mut kept = self.kept.lock().expect("no test thread died");
        let geometry = self.inner.geometry();
        let in_reach = kept.1.iter().filter_map(|at| geometry.locate(*at));
        let in_reach: BTreeSet<u64> = in_reach.map(|(_, _, stripe)| stripe).collect();
        let wrong = tetris.ahead.iter().find(|s| in_reach.contains(s));
        assert!(wrong.is_none(), "stripe {wrong:?} is called free, and the root reaches it");
        assert!(tetris.ahead.is_sorted() && tetris.ahead.len() <= AHEAD_STRIPES_MAX);
        let gap = tetris.ahead.windows(2).any(|pair| pair[0] + 1 != pair[1]);
        self.gaps.fetch_add(u64::from(gap), Ordering::Relaxed);
        let group = geometry.groups.iter().find(|g| g.group == tetris.group).expect("its group");
        let region = |stripe: u64| stripe / group.region_stripes;
        let mut regions: Vec<u64> = tetris.stripes.iter().map(|s| region(s.stripe)).collect();
        regions.dedup();
        assert!(regions.len() == 1, "one tetris in regions {regions:?}");
        for stripe in &tetris.stripes {
            let told = tetris.ahead.binary_search(&stripe.stripe).is_ok();
            self.told.fetch_add(u64::from(told), Ordering::Relaxed);
        }
        let mine = tetris.blocks.iter().filter(|b| b.data.starts_with(KEPT));
        kept.0.extend(mine.map(|b| b.at));
        self.inner.write(tetris)
    }
    fn commit_root(&self, root: RootRecord) -> BoxFuture<Result<(), WriteError>> {
        let mut kept = self.kept.lock().expect("no test thread died");
        let mut new = std::mem::take(&mut kept.0);
        kept.1.append(&mut new);
        drop(kept);
        self.inner.commit_root(root)
    }
    fn root(&self) -> Option<RootRecord> {
        self.inner.root()
    }
    fn log(&self) -> Arc<dyn LogStore> {
        self.inner.log()
    }
    fn place(&self, at: Pvbn) -> Option<Place> {
        self.inner.place(at)
    }
}

const KEPT: &[u8] = b"never changed";
/// Rounds of writing in which the aggregate was gone round.
const GAPS_ROUNDS_MAX: u64 = 400;

/// Stripes are told to RAID before they are written, and never one that the root reaches.
#[test]
fn stripes_told_ahead_hold_nothing_that_the_root_reaches() {
    let mut rig = Rig::small(5);
    rig.sim.block_on(rig.node().shutdown()).expect("a clean stop");
    let inner = rig.aggr.clone().expect("open");
    let (kept, told, gaps) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
    let watched = Arc::new(Watched { inner: inner.clone(), kept, told, gaps });
    let opened =
        StorageManager::open(rig.sim.world(), watched.clone(), Some(inner), rig.config.clone());
    rig.node = Some(Arc::new(rig.sim.block_on(opened).expect("the volumes open")));
    let root = volume(&rig, 1, 64 << 20);
    let other = create(&rig, root, "other").unwrap();
    let page: Vec<u8> = KEPT.iter().copied().chain(std::iter::repeat(7)).take(4096).collect();
    for round in 0..30u64 {
        let file = create(&rig, root, &format!("kept{round}")).unwrap();
        let blocks = [3, 40, 200, 600][usize::try_from(round % 4).unwrap()];
        for i in 0..blocks {
            let data = Payload::copy_from(0, &page);
            let (offset, stability) = (i * 4096, Stability::Unstable);
            call(&rig, Op::Write { obj: file, offset, data, stability }).unwrap();
            // What is overwritten later leaves holes in the stripes between.
            write(&rig, other, round, (i % 256) * 4096, 4096).unwrap();
        }
        manage(&rig, Manage::ConsistencyPoint);
    }
    // Once round the aggregate: behind its end lies what was kept.
    for round in 30..GAPS_ROUNDS_MAX {
        if watched.gaps.load(Ordering::Relaxed) > 10 {
            break;
        }
        for i in 0..256 {
            write(&rig, other, round, i * 4096, 4096).unwrap();
        }
        manage(&rig, Manage::ConsistencyPoint);
    }
    let gaps = watched.gaps.load(Ordering::Relaxed);
    assert!(gaps > 10, "{gaps} tetrises had stripes in reach between those told ahead");
    let told = watched.told.load(Ordering::Relaxed);
    assert!(told > 500, "{told} stripes were told ahead");
    rig.check();
}

/// A point that has room for what is dirty goes through, though not for a quarter more.
#[test]
fn a_point_with_just_enough_space_goes_through() {
    let mut rig = Rig::new(9, RaidKind::RaidDp, 6, 8192);
    rig.sim.block_on(rig.node().shutdown()).expect("a clean stop");
    rig.config.cache_blocks = 16_384;
    rig.mount();
    let root = volume(&rig, 1, 256 << 20);
    let file = create(&rig, root, "overwritten").unwrap();
    let blocks = 2030u64;
    let overwrite = |seed: u64| {
        for at in (0..blocks).step_by(10) {
            write(&rig, file, seed, at * 4096, 10 * 4096).unwrap();
        }
    };
    overwrite(1);
    manage(&rig, Manage::ConsistencyPoint);
    let filler = create(&rig, root, "filler").unwrap();
    let mut at = 0;
    let free = |rig: &Rig| match manage(rig, Manage::AggregateStatus) {
        Managed::Aggregate(a) => (a.size_bytes - a.used_bytes) / 4096,
        other => panic!("{other:?}"),
    };
    // What is dirty, a 32nd more, and the reserve of 384 are less; with a quarter more they are not.
    while free(&rig) > 2590 {
        let step = if free(&rig) > 4000 { 200 } else { 5 };
        write(&rig, filler, 2, at * 4096, step * 4096).unwrap();
        at += step as u64;
        manage(&rig, Manage::ConsistencyPoint);
    }
    assert!(free(&rig) > 2540, "{} blocks are free", free(&rig));
    overwrite(3);
    manage(&rig, Manage::ConsistencyPoint);
    check_read(&rig, file, 3, 0, 4096);
    rig.check();
}
