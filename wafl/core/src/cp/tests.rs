//! What must hold inside a consistency point and cannot be seen from outside: the running digest,
//! the order of freeing and giving out, and who says where a block lies.

use std::collections::BTreeSet;

use cairn_cf::Manage;
use cairn_raid_api::{Aggregate, DataColumn};
use cairn_raid_disk::Disk;
use cairn_raid_group::{CreateOptions, RaidAggregate, RaidKind};
use cairn_sim::{SimDiskConfig, SimWorld};
use cairn_units::{Blocks, Crc};

use super::*;
use crate::{StorageConfig, StorageManager};

/// A storage manager with one volume on RAID-DP on simulated disks.
fn with_volume(seed: u64) -> (SimWorld, Arc<RaidAggregate>, StorageManager) {
    let sim = SimWorld::new(seed);
    let disk = |i: usize| sim.disk(SimDiskConfig::new(&format!("d{i}"), Blocks::new(4096)));
    let disks: Vec<Arc<dyn Disk>> = (0..5).map(|i| disk(i).driver()).collect();
    let options = CreateOptions::new(RaidKind::RaidDp, 0);
    let made = RaidAggregate::create(sim.world(), disks, options);
    let aggr = sim.block_on(made).expect("an aggregate is made");
    let config = StorageConfig { cache_blocks: 2048, ..StorageConfig::default() };
    let opened = StorageManager::open(sim.world(), aggr.clone(), None, config);
    let node = sim.block_on(opened).expect("the volumes open");
    let volume = Manage::VolumeCreate { fsid: FSID, name: "v".to_owned(), size_bytes: 1 << 20 };
    sim.block_on(node.inner.clone().manage(volume)).expect("a volume is made");
    (sim, aggr, node)
}

const FSID: Fsid = Fsid::new(7);

#[test]
fn a_point_over_a_rotten_map_is_refused() {
    let (sim, aggr, node) = with_volume(1);
    let before = aggr.root().map(|r| r.cp);
    let refused = sim.block_on(async {
        let mut engine = node.inner.engine.lock().await;
        engine.space.rot();
        node.inner.consistency_point(&mut engine).await
    });
    assert!(matches!(refused, Err(CpError::Digest { .. })), "{refused:?}");
    assert_eq!(aggr.root().map(|r| r.cp), before, "the root is the one before");
}

#[test]
fn a_point_over_a_rotten_map_of_a_volume_is_refused() {
    let (_sim, _aggr, node) = with_volume(2);
    let volume = node.inner.volume(FSID).expect("it is there");
    let mut st = volume.lock();
    let mut pool = Vvbns::default();
    pool.fill(&mut st, 4, &mut 0).expect("its maps are in memory");
    assert_eq!(pool.check(&st), Ok(()));
    st.active_map.edit(0, |block| block[100] ^= 1);
    assert!(pool.check(&st).is_err());
}

/// Changes the volume behind the back of its own counts and takes a point.
fn point_after(seed: u64, harm: impl FnOnce(&mut VolState)) -> Result<(), CpError> {
    let (sim, aggr, node) = with_volume(seed);
    let before = aggr.root().map(|r| r.cp);
    let volume = node.inner.volume(FSID).expect("it is there");
    harm(&mut volume.lock());
    volume.mark_record();
    let done = sim.block_on(async {
        let mut engine = node.inner.engine.lock().await;
        node.inner.consistency_point(&mut engine).await
    });
    assert_eq!(aggr.root().map(|r| r.cp) == before, done.is_err(), "the root stays with an error");
    done
}

#[test]
fn a_point_that_loses_a_link_a_name_or_a_block_is_refused() {
    let root = crate::volume::ROOT_INO;
    assert!(point_after(10, |st| st.touch(root)).is_ok());
    let harms: [fn(&mut VolState); 5] = [
        |st| {
            st.file_mut(crate::volume::ROOT_INO).inode.links += 1;
            st.touch(crate::volume::ROOT_INO);
        },
        |st| st.sums.names += 1,
        |st| st.files += 1,
        |st| {
            st.file_mut(crate::volume::ROOT_INO).tree.correct_blocks(1);
            st.touch(crate::volume::ROOT_INO);
        },
        |st| st.used_blocks += 1,
    ];
    for (seed, harm) in (11..).zip(harms) {
        let refused = point_after(seed, harm);
        assert!(matches!(refused, Err(CpError::Sums(FSID, _))), "{seed}: {refused:?}");
    }
}

#[test]
fn a_freed_block_is_given_out_after_the_point_that_freed_it() {
    let (_sim, aggr, _node) = with_volume(3);
    let mut space = Space::new(aggr.geometry());
    space.read_counts().expect("an empty file has no blocks to load");
    space.reserve_zero();
    let mut first = None;
    while let Ok((at, _)) = space.take() {
        space.put(at, Block::zero(), Crc::new(0), BlockTag::default());
        first.get_or_insert(at);
    }
    let freed = first.expect("there was a free block");
    space.free(freed);
    assert!(space.take().is_err(), "{freed:?} is part of the committed state");
    space.close();
    space.committed();
    assert_eq!(space.take().ok().map(|(at, _)| at), Some(freed));
}

#[test]
fn a_block_freed_under_a_hold_is_given_out_only_when_the_hold_is_given_up() {
    let (_sim, aggr, _node) = with_volume(5);
    let mut space = Space::new(aggr.geometry());
    space.read_counts().expect("an empty file has no blocks to load");
    space.reserve_zero();
    let mut last = None;
    while let Ok((at, _)) = space.take() {
        space.put(at, Block::zero(), Crc::new(0), BlockTag::default());
        last = Some(at);
    }
    let freed = last.expect("there was a free block");
    let walk = Arc::new(crate::check::Progress::default());
    space.hold(walk.clone());
    space.free(freed);
    space.close();
    space.committed();
    let stopped = || walk.stop.load(cairn_sys::lock::atomic::Ordering::Relaxed);
    assert_eq!((space.free_blocks(), stopped()), (0, false), "somebody may still read {freed:?}");
    let next = space.take().ok().map(|(at, _)| at);
    assert_eq!((next, stopped()), (Some(freed), true), "writers come first");
}

#[test]
fn every_free_block_is_given_out_once_whatever_lies_between_them() {
    let mut x = 0x9E37_79B9_7F4A_7C15_u64;
    let mut below = |end: u64| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x % end
    };
    for seed in 20..26 {
        let (_sim, aggr, _node) = with_volume(seed);
        let geometry = aggr.geometry();
        let mut space = Space::new(geometry.clone());
        space.read_counts().expect("an empty file has no blocks to load");
        space.reserve_zero();
        let mut free = BTreeSet::new();
        let content = || (Block::zero(), Crc::new(0), BlockTag::default());
        while let Ok(run) = space.take_run(1 + below(40)) {
            let (from, count) = (run.at().get(), run.count());
            space.put_run(run, (0..count).map(|_| content()));
            let fresh = (from..from + count).all(|at| free.insert(at));
            assert!(fresh, "{count} from {from}: each once");
        }
        let mut at = 1;
        while at < geometry.pvbn_end.get() {
            let stays = 1 + below(5);
            for used in at..at + stays {
                free.remove(&used);
            }
            at += stays + below(9);
        }
        for at in &free {
            space.free(Pvbn::new(*at));
        }
        space.close();
        drop(space.take_done());
        space.committed();
        space.tetris_stripes = 1 + below(7);
        space.expected = u64::MAX;
        let mut given = BTreeSet::new();
        while let Ok(run) = space.take_run(1 + below(40)) {
            let (from, count) = (run.at().get(), run.count());
            space.put_run(run, (0..count).map(|_| content()));
            let fresh = (from..from + count).all(|at| free.contains(&at) && given.insert(at));
            assert!(fresh, "{count} from {from}: free, and each once");
        }
        assert_eq!(given, free);
        space.close();
        for (_, tetris) in space.take_done() {
            let group =
                geometry.groups.iter().find(|g| g.group == tetris.group).expect("its group");
            let blocks: BTreeSet<Pvbn> = tetris.blocks.iter().map(|b| b.at).collect();
            for row in &tetris.stripes {
                let at = |column: &DataColumn| column.pvbn_base.plus(row.stripe);
                let mut places = group.data.iter().map(at);
                let whole = places.clone().all(|at| free.contains(&at.get()));
                assert_eq!(row.rest_is_free, whole, "stripe {}", row.stripe);
                assert!(places.any(|at| blocks.contains(&at)), "stripe {}", row.stripe);
            }
        }
    }
}

#[test]
fn the_container_map_decides_once_a_block_was_moved() {
    let (_sim, _aggr, node) = with_volume(4);
    let volume = node.inner.volume(FSID).expect("it is there");
    let mut st = volume.lock();
    let (vvbn, hint, moved) = (Vvbn::new(9), Pvbn::new(500), Pvbn::new(600));
    set_container(&mut st, vvbn, moved);
    assert_eq!(authority(&st, vvbn, hint).ok(), Some(hint));
    st.relocations = 1;
    assert_eq!(authority(&st, vvbn, hint).ok(), Some(moved));
}
