//! Disks that die, rot, lie and hang while the aggregate is in use.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::common::{Bench, Shape, crc, noise};
use cairn_raid_api::{
    Aggregate, AggregateAdmin, BlockTag, ColumnState, ReadRequest, ScrubFault, StripeWrite, Tetris,
    WriteBlock, WriteError,
};
use cairn_raid_disk::DiskError;
use cairn_raid_group::{Event, RaidKind};
use cairn_sim::{CutPolicy, SimDisk};
use cairn_sys::Block;
use cairn_units::{Dbn, DiskUuid, GroupNo, Pvbn};

/// The disk and DBN of a committed block.
fn place_of(bench: &Bench, at: u64) -> (SimDisk, Dbn) {
    let place = bench.agg().place(Pvbn::new(at)).expect("place");
    (bench.disks[bench.disk_of(place.data.column.get())].clone(), place.data.dbn)
}

fn picks(bench: &mut Bench, count: usize) -> Vec<u64> {
    let mut places: Vec<u64> = bench.committed.keys().copied().collect();
    bench.rng.shuffle(&mut places);
    // One in a stripe, so that RAID-4 can find it.
    let mut stripes = BTreeSet::new();
    let agg = bench.agg();
    places.retain(|at| stripes.insert(agg.place(Pvbn::new(*at)).map(|p| p.stripe)));
    places.truncate(count);
    places
}

fn filled(seed: u64, shape: Shape) -> Bench {
    let mut bench = Bench::new(seed, shape);
    bench.frees = false;
    for _ in 0..5 {
        assert!(bench.cp(70));
    }
    bench.frees = true;
    bench
}

#[test]
fn two_disks_lost_under_writes_reads_and_writes_go_on() {
    for seed in 0..12 {
        let mut bench = filled(seed, Shape::dp());
        for lost in 1..=2 {
            let n = bench.rng.index(7);
            bench.disks[n].die();
            assert!(bench.cp(50), "seed {seed}, {lost} lost");
            bench.verify();
        }
        for _ in 0..3 {
            assert!(bench.cp(30));
        }
        bench.verify();
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        bench.verify();
        bench.scrub_is_clean();
    }
}

#[test]
fn more_disks_lost_than_parity_covers_is_an_error_and_nothing_is_acknowledged() {
    let mut bench = filled(3, Shape { raid: RaidKind::Raid4, disks: 5, ..Shape::dp() });
    bench.disks[0].die();
    assert!(bench.cp(50));
    bench.disks[1].die();
    let result = bench.write(50).expect("no cut");
    assert!(
        matches!(result, Err(WriteError::GroupFailed { lost: 2, parity: 1, .. })),
        "{result:?}"
    );
    assert!(bench.commit().expect("no cut").is_err());
    let at = bench.agg().geometry().groups[0].data[0].pvbn_base.get();
    let column: Vec<u64> = bench.committed.keys().copied().filter(|p| *p < at + 300).collect();
    let requests = column.iter().map(|p| ReadRequest { at: Pvbn::new(*p), expect: None }).collect();
    let agg = bench.agg();
    let answers = bench.sim.block_on(async move { agg.read(requests).await });
    assert!(!answers.is_empty() && answers.iter().all(Result::is_err));
}

#[test]
fn spares_are_rebuilt_and_then_two_more_disks_may_die() {
    for seed in 20..26 {
        let mut bench = filled(seed, Shape { disks: 9, spares: 2, ..Shape::dp() });
        bench.disks[1].die();
        bench.disks[5].die();
        assert!(bench.cp(50));
        // Writes and reads go on while the spares are being rebuilt.
        assert!(bench.cp(20));
        bench.verify();
        bench.await_rebuild();
        bench.verify();
        bench.scrub_is_clean();
        let rebuilt = bench.agg().events();
        let finished =
            rebuilt.iter().filter(|e| matches!(e, Event::RebuildFinished { .. })).count();
        assert_eq!(finished, 2, "{rebuilt:?}");
        bench.disks[0].die();
        bench.disks[7].die();
        assert!(bench.cp(50));
        bench.verify();
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        bench.verify();
    }
}

#[test]
fn raid4_spare_is_rebuilt_under_writes() {
    let shape = Shape { raid: RaidKind::Raid4, disks: 6, spares: 1, ..Shape::dp() };
    let mut bench = filled(30, shape);
    bench.disks[4].die();
    for _ in 0..4 {
        assert!(bench.cp(30));
        bench.verify();
    }
    bench.await_rebuild();
    bench.verify();
    bench.scrub_is_clean();
    bench.disks[2].die();
    assert!(bench.cp(30));
    bench.verify();
}

#[test]
fn rebuild_cut_by_power_resumes_from_its_mark() {
    let mut resumed = 0;
    for seed in 40..46 {
        let shape = Shape { disks: 6, spares: 1, blocks: 65_536, ..Shape::dp() };
        let mut bench = Bench::new(seed, shape);
        bench.stripes = 60_000;
        for _ in 0..25 {
            assert!(bench.cp(60));
        }
        bench.disks[2].die();
        assert!(bench.cp(60));
        let orders = 40 + bench.rng.below(500);
        bench.sim.cut_power_at(orders);
        let (agg, clock) = (bench.agg(), bench.sim.world().clock);
        let ended = bench.sim.block_on_or_cut(async move {
            while agg.disks().iter().any(|d| d.state == ColumnState::Rebuilding) {
                clock.sleep(core::time::Duration::from_millis(1)).await;
            }
        });
        bench.sim.cancel_cut();
        if ended.is_some() {
            bench.sim.power_cut();
        }
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        let first = bench.agg().disks().into_iter().find_map(|d| d.rebuild);
        resumed += usize::from(first.is_some_and(|(done, _)| done.get() > 0));
        bench.verify();
        assert!(bench.cp(50));
        bench.await_rebuild();
        bench.verify();
        bench.scrub_is_clean();
        let at = bench.disk_of(0);
        bench.disks[at].die();
        let at = bench.disk_of(1);
        bench.disks[at].die();
        assert!(bench.cp(50));
        bench.verify();
    }
    assert!(resumed > 0, "no seed resumed from a mark: the test proves nothing");
}

/// Cut when a configuration has just reached the disks, and the spare keeps nothing that it did
/// not flush: whatever mark is found, what lies below it is there.
#[test]
fn a_rebuild_never_marks_what_the_spare_could_still_lose() {
    let mut marked = 0;
    for stored in 1.. {
        let shape = Shape { disks: 6, spares: 1, blocks: 65_536, ..Shape::dp() };
        let mut bench = Bench::new(77, shape);
        bench.stripes = 60_000;
        for _ in 0..8 {
            assert!(bench.cp(60));
        }
        bench.disks[2].die();
        bench.write(60).expect("no cut").expect("write");
        let mut rebuilds = bench.agg().disks().into_iter();
        let spare = rebuilds.find(|d| d.rebuild.is_some()).expect("a spare is rebuilt").location;
        let configuration = |bench: &Bench| -> Vec<Block> {
            let image = bench.disks[0].image();
            (16..64).map(|at| image.visible(Dbn::new(at))).collect()
        };
        let (mut seen, mut now) = (0, configuration(&bench));
        while seen < stored && bench.agg().disks().iter().any(|d| d.rebuild.is_some()) {
            bench.sim.run_for(core::time::Duration::from_micros(20));
            let before = core::mem::replace(&mut now, configuration(&bench));
            seen += u32::from(before != now);
        }
        if seen < stored {
            break;
        }
        for disk in &bench.disks {
            let is_spare = disk.driver().info().location == spare;
            disk.power_cut(if is_spare { &CutPolicy::DropAll } else { &CutPolicy::KeepAll });
        }
        bench.sim.power_cut();
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        let found = bench.agg().disks().into_iter().find_map(|d| d.rebuild);
        marked += u32::from(found.is_none_or(|(done, _)| done.get() > 0));
        // Nobody has read it since: it must be whole enough to lose two others.
        bench.await_rebuild();
        for disk in bench.disks.iter().filter(|d| d.driver().info().location != spare).take(2) {
            disk.die();
        }
        bench.verify();
    }
    assert!(marked > 1, "{marked} marks were found");
}

/// What the stripe log said of the spare before the rebuild must not be replayed over it.
#[test]
fn power_cut_after_a_rebuild_with_uncommitted_writes_keeps_what_was_rebuilt() {
    for seed in 150..165 {
        let mut bench = filled(seed, Shape { disks: 8, spares: 1, ..Shape::dp() });
        let victim = bench.rng.index(7);
        bench.disks[victim].die();
        for _ in 0..3 {
            bench.write(30).expect("no cut").expect("write");
        }
        bench.await_rebuild();
        bench.sim.power_cut();
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        bench.scrub_is_clean();
        bench.verify();
    }
}

#[test]
fn bit_rot_is_answered_right_mended_and_gone_for_the_scrub() {
    for (seed, shape) in [(60, Shape::dp()), (61, Shape { raid: RaidKind::Raid4, ..Shape::dp() })] {
        let mut bench = filled(seed, shape);
        for at in picks(&mut bench, 30) {
            let (disk, dbn) = place_of(&bench, at);
            disk.rot_block(dbn);
        }
        bench.verify();
        assert!(bench.agg().counters().repaired_blocks >= 20);
        bench.scrub_is_clean();
    }
}

#[test]
fn scrub_finds_and_mends_rot_lost_and_misdirected_writes_and_bad_sectors() {
    let mut bench = filled(70, Shape::dp());
    let mut done = 0;
    for (i, at) in picks(&mut bench, 12).into_iter().enumerate() {
        let (disk, dbn) = place_of(&bench, at);
        match i % 3 {
            0 => disk.rot_block(dbn),
            1 => disk.break_block(dbn),
            _ => disk.scribble(dbn, &noise(9)),
        }
        done += 1;
    }
    // Writes that get lost, and writes that land on a block that must stay.
    let geometry = bench.agg().geometry();
    for i in 0..6u16 {
        let column = &geometry.groups[0].data[usize::from(i % 5)];
        let stripe = 340 + u64::from(i) * 20;
        let place = bench.agg().place(column.pvbn_base.plus(stripe)).expect("place");
        let disk = bench.disks[bench.disk_of(column.column.get())].clone();
        if i % 2 == 0 {
            disk.lose_next_write(place.data.dbn);
        } else {
            let base = column.pvbn_base.get();
            let mut here = bench.committed.range(base..base + 300);
            let victim = here.nth(usize::from(i) * 7).map(|(at, _)| *at).expect("victim");
            disk.misdirect_next_write(place.data.dbn, place_of(&bench, victim).1);
            done += 1;
        }
        done += 1;
        let blocks = geometry.groups[0].data.iter().map(|c| {
            let at = c.pvbn_base.plus(stripe);
            let seed = 0xF00 + stripe * 100 + u64::from(c.column.get());
            bench.pending.insert(at.get(), seed);
            let data = noise(seed);
            WriteBlock { at, crc: crc(&data), data, tag: BlockTag::default() }
        });
        let stripes = vec![StripeWrite { stripe, rest_is_free: true }];
        let (group, blocks) = (GroupNo::new(0), blocks.collect());
        let tetris = Tetris { group, stripes, blocks, ahead: Arc::default() };
        let agg = bench.agg();
        bench.sim.block_on(async move { agg.write(tetris).await }).expect("write");
    }
    bench.frees = false;
    bench.commit().expect("no cut").expect("commit");
    let status = bench.scrub();
    assert!(status.damaged >= done, "{status:?}, {done} put there");
    assert_eq!(status.repaired, status.damaged, "{status:?}");
    let findings = bench.agg().scrub_findings();
    let blocks = findings.iter().filter(|f| f.what == ScrubFault::Block && f.stripe.is_some());
    assert_eq!(blocks.filter(|f| f.repaired).count() as u64, status.damaged, "{findings:?}");
    bench.scrub_is_clean();
    bench.verify();
}

#[test]
fn scrub_says_where_more_was_lost_than_parity_covers() {
    let mut bench = filled(71, Shape::dp());
    let geometry = bench.agg().geometry();
    let base = geometry.groups[0].data[0].pvbn_base.get();
    let first = bench.committed.range(base..base + 300).next().map(|(at, _)| *at);
    let stripe = first.expect("something was written") - base;
    let mut harmed = Vec::new();
    for column in geometry.groups[0].data.iter().take(3) {
        let place = bench.agg().place(column.pvbn_base.plus(stripe)).expect("place");
        bench.disks[bench.disk_of(column.column.get())].break_block(place.data.dbn);
        harmed.extend(place.data.disk);
    }
    let status = bench.scrub();
    assert_eq!((status.damaged, status.repaired), (3, 0), "{status:?}");
    let findings = bench.agg().scrub_findings();
    let lost = findings.iter().filter(|f| f.what == ScrubFault::Block);
    let mut told: Vec<DiskUuid> = lost.filter_map(|f| f.disk).collect();
    told.sort();
    harmed.sort();
    assert_eq!(told, harmed);
    let whole = Some((GroupNo::new(0), stripe));
    assert!(findings.iter().all(|f| f.stripe == whole && !f.repaired), "{findings:?}");
}

#[test]
fn a_lost_write_of_a_block_with_its_stamp_is_found_by_the_pointer_and_by_scrub() {
    let mut bench = filled(80, Shape::dp());
    // The disk as it was, put back after more was written: every write since is lost on it.
    let column = 1;
    let disk = bench.disks[bench.disk_of(column)].clone();
    let before = disk.image();
    let old = bench.committed.clone();
    bench.frees = false;
    assert!(bench.cp(60));
    let agg = bench.agg();
    let fresh: Vec<u64> = bench
        .committed
        .keys()
        .copied()
        .filter(|at| !old.contains_key(at))
        .filter(|at| agg.place(Pvbn::new(*at)).is_some_and(|p| p.data.column.get() == column))
        .collect();
    assert!(!fresh.is_empty());
    drop(agg);
    bench.sim.power_cut();
    disk.restore(&before);
    bench.reattach();
    bench.open().expect("open");
    bench.adopt_root();
    let status = bench.scrub();
    assert!(
        status.repaired >= fresh.len() as u64 && status.repaired == status.damaged,
        "{status:?}"
    );
    bench.verify();
    bench.scrub_is_clean();
}

#[test]
fn damaged_checksum_blocks_cost_nothing() {
    let mut bench = filled(90, Shape::dp());
    let at = picks(&mut bench, 1)[0];
    let place = bench.agg().place(Pvbn::new(at)).expect("place");
    let (disk, dbn) = place_of(&bench, at);
    let first = dbn.get() - 2 - place.stripe % 126;
    bench.sim.power_cut();
    disk.scribble(Dbn::new(first), &noise(1));
    disk.scribble(Dbn::new(first + 1), &noise(2));
    bench.reattach();
    bench.open().expect("open");
    bench.adopt_root();
    bench.verify();
    let status = bench.scrub();
    assert_eq!(status.damaged, status.repaired, "{status:?}");
    bench.scrub_is_clean();
    bench.verify();
}

#[test]
fn parity_is_never_computed_from_a_rotten_block() {
    let mut met = 0;
    for seed in 97..103 {
        let mut bench = Bench::new(seed, Shape::dp());
        bench.frees = false;
        bench.stripes = 60;
        for _ in 0..3 {
            assert!(bench.cp(20));
        }
        for at in picks(&mut bench, 30) {
            let (disk, dbn) = place_of(&bench, at);
            disk.rot_block(dbn);
        }
        for _ in 0..3 {
            assert!(bench.cp(20));
        }
        met += bench.agg().counters().repaired_blocks;
        bench.verify();
        bench.scrub();
        bench.scrub_is_clean();
    }
    assert!(met > 0, "no write met a rotten block: the test proves nothing");
}

/// The older copy calls blocks "never written" that were written since.
#[test]
fn a_rotten_newest_checksum_copy_is_not_believed_to_say_zeros() {
    for lost_too in [false, true] {
        let mut bench = Bench::new(95, Shape::dp());
        bench.frees = false;
        bench.stripes = 30;
        for _ in 0..6 {
            assert!(bench.cp(20));
        }
        let (disk, dbn) = place_of(&bench, *bench.committed.keys().next().expect("a block"));
        bench.sim.power_cut();
        let at = bench.agg().place(Pvbn::new(64)).expect("place").data.dbn.get() - 2;
        assert!(dbn.get() >= at);
        let sequence = |copy: u64| {
            let block = disk.image().durable(Dbn::new(at + copy));
            u64::from_le_bytes(block[40..48].try_into().expect("8 bytes"))
        };
        let newest = u64::from(sequence(1) > sequence(0));
        disk.rot_block(Dbn::new(at + newest));
        bench.reattach();
        if lost_too {
            bench.disks.remove(3);
        }
        bench.open().expect("open");
        bench.adopt_root();
        bench.verify();
        let status = bench.scrub();
        assert_eq!(status.damaged, status.repaired, "{status:?}");
        bench.verify();
        bench.scrub_is_clean();
    }
}

#[test]
fn a_hung_disk_is_taken_out_and_the_rest_goes_on() {
    let mut bench = filled(100, Shape { disks: 8, spares: 1, ..Shape::dp() });
    bench.disks[3].hang(true);
    for _ in 0..3 {
        assert!(bench.cp(50));
    }
    bench.verify();
    let out = bench.agg().events();
    assert!(out.iter().any(|e| matches!(e, Event::DiskTakenOut { .. })), "{out:?}");
    bench.await_rebuild();
    bench.verify();
    bench.scrub_is_clean();
}

#[test]
fn a_fenced_disk_stops_every_write() {
    let mut bench = filled(110, Shape::dp());
    bench.disks[2].fence(true);
    let first = bench.write(100).expect("no cut");
    let second = bench.write(100).expect("no cut");
    assert_eq!(first, Err(WriteError::Fenced));
    assert_eq!(second, Err(WriteError::Fenced));
    assert_eq!(bench.commit().expect("no cut"), Err(WriteError::Fenced));
}

#[test]
fn write_errors_at_any_request_lose_nothing() {
    for seed in 120..150 {
        let mut bench = filled(seed, Shape::dp());
        for disk in [1, 4] {
            let n = 1 + bench.rng.below(12);
            let error = if seed % 2 == 0 {
                DiskError::Gone { reason: "unplugged".into() }
            } else {
                DiskError::Medium { at: Dbn::new(0), count: cairn_units::Blocks::new(1) }
            };
            bench.disks[disk].fail_request(n, error);
            assert!(bench.cp(40));
            assert!(bench.cp(40));
        }
        bench.verify();
        bench.sim.power_cut();
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        bench.verify();
        bench.scrub_is_clean();
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let mut bench = filled(seed, Shape { disks: 8, spares: 1, ..Shape::dp() });
        bench.disks[1].die();
        assert!(bench.cp(50));
        bench.await_rebuild();
        bench.scrub_is_clean();
        bench.sim.digest()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
