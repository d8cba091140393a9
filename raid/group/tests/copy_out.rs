//! Rapid copy-out: a disk that still serves is copied to a spare, which then takes its place.

use crate::common::{Bench, DISK_BLOCKS, Shape, noise};
use cairn_raid_api::{
    AdminError, Aggregate, AggregateAdmin, ColumnState, DiskRole, DiskStatus, LogAreaId,
    ReadRequest,
};
use cairn_raid_disk::DiskError;
use cairn_raid_group::{Event, RaidKind};
use cairn_sim::SimDisk;
use cairn_units::{DiskUuid, Pvbn};

fn shape(seed: u64) -> Shape {
    match seed % 4 {
        0 => Shape { raid: RaidKind::Raid4, disks: 5, spares: 1, ..Shape::dp() },
        1 => Shape { disks: 8, spares: 1, max_width: 200, ..Shape::dp() },
        2 => Shape { disks: 9, spares: 2, ..Shape::dp() },
        _ => Shape { disks: 8, spares: 1, ..Shape::dp() },
    }
}

/// Seeds from `first` on: `usual`, or as many as `CAIRN_SEEDS` says.
fn seeds(first: u64, usual: u64) -> core::ops::Range<u64> {
    let wanted = std::env::var("CAIRN_SEEDS").ok().and_then(|n| n.parse().ok());
    first..first + wanted.unwrap_or(usual)
}

fn filled(seed: u64, shape: Shape) -> Bench {
    let mut bench = Bench::new(seed, shape);
    bench.frees = false;
    for _ in 0..4 {
        assert!(bench.cp(60));
    }
    bench.frees = true;
    bench
}

fn member(bench: &mut Bench) -> DiskStatus {
    let disks = bench.agg().disks();
    let members: Vec<DiskStatus> = disks.into_iter().filter(|d| d.position.is_some()).collect();
    members[bench.rng.index(members.len())].clone()
}

fn copy(bench: &Bench) -> Option<DiskStatus> {
    bench.agg().disks().into_iter().find(|d| d.role == DiskRole::Copy)
}

fn replace(bench: &mut Bench, disk: DiskUuid) -> DiskUuid {
    let agg = bench.agg();
    bench.sim.block_on(agg.replace_disk(disk, None)).expect("copy begins")
}

fn sim_disk(bench: &Bench, location: &str) -> SimDisk {
    let found = bench.disks.iter().find(|d| d.driver().info().location == location);
    found.expect("disk").clone()
}

/// As many disks as parity covers die, none of them `keep`: what it holds must be right.
fn lose_all_but(bench: &mut Bench, keep: DiskUuid) {
    let disks = bench.agg().disks();
    let mut others: Vec<String> = disks
        .iter()
        .filter(|d| d.position.is_some() && d.disk != keep)
        .map(|d| d.location.clone())
        .collect();
    bench.rng.shuffle(&mut others);
    for location in others.iter().take(usize::from(bench.shape.raid.parity())) {
        sim_disk(bench, location).die();
    }
    bench.verify();
    assert!(bench.cp(40));
    bench.verify();
}

#[test]
fn a_disk_replaced_by_order_serves_until_the_spare_takes_its_place() {
    for seed in seeds(0, 8) {
        let mut bench = filled(seed, shape(seed));
        let old = member(&mut bench);
        let spare = replace(&mut bench, old.disk);
        let twin = copy(&bench).expect("the copy is shown");
        assert_eq!((twin.disk, twin.position), (spare, old.position));
        assert!(twin.rebuild.is_some());
        assert_eq!(replace(&mut bench, old.disk), spare, "the order may come twice");
        let geometry = bench.agg().geometry();
        assert!(geometry.groups[0].data.iter().all(|c| c.state == ColumnState::Online));
        for _ in 0..3 {
            assert!(bench.cp(40));
        }
        bench.await_rebuild();
        let now = bench.agg().disks();
        let new = now.iter().find(|d| d.position == old.position).expect("position");
        assert_eq!((new.disk, new.role, new.state), (spare, old.role, ColumnState::Online));
        let out = now.iter().find(|d| d.disk == old.disk).expect("remembered");
        assert_eq!(out.role, DiskRole::Failed);
        assert!(bench.agg().events().iter().any(|e| matches!(e, Event::CopyFinished { .. })));
        bench.verify();
        bench.scrub_is_clean();
        assert!(bench.cp(40));
        bench.sim.power_cut();
        bench.reattach();
        bench.open().expect("open without the old disk");
        bench.adopt_root();
        bench.verify();
        bench.scrub_is_clean();
        if bench.shape.disks == 9 {
            continue;
        }
        lose_all_but(&mut bench, spare);
    }
}

#[test]
fn writes_during_a_copy_reach_both_disks() {
    for seed in seeds(100, 12) {
        let mut bench = filled(seed, Shape { disks: 8, spares: 1, ..Shape::dp() });
        bench.stripes = 3000;
        for _ in 0..6 {
            assert!(bench.cp(60));
        }
        let old = member(&mut bench);
        let spare = replace(&mut bench, old.disk);
        let mut during = 0;
        while copy(&bench).is_some() {
            assert!(bench.cp(30));
            during += 1;
        }
        assert!(during > 2, "seed {seed}: {during} consistency points during the copy");
        bench.verify();
        bench.scrub_is_clean();
        lose_all_but(&mut bench, spare);
    }
}

#[test]
fn damaged_blocks_of_a_failing_disk_are_rebuilt_from_parity_on_the_way() {
    for seed in seeds(200, 6) {
        let mut bench = filled(seed, Shape { disks: 8, spares: 1, ..Shape::dp() });
        let old = member(&mut bench);
        let disk = sim_disk(&bench, &old.location);
        let first = bench.agg().place(Pvbn::new(64)).expect("place").data.dbn.get();
        for stripe in (0..300).step_by(7) {
            let at = cairn_units::Dbn::new(first + stripe / 126 * 128 + stripe % 126);
            if stripe % 2 == 0 {
                disk.rot_block(at);
            } else {
                disk.break_block(at);
            }
        }
        let spare = replace(&mut bench, old.disk);
        bench.await_rebuild();
        assert!(bench.agg().disks().iter().any(|d| d.disk == spare && d.position.is_some()));
        bench.scrub_is_clean();
        lose_all_but(&mut bench, spare);
    }
}

#[test]
fn a_disk_with_half_its_error_budget_spent_is_copied_out_by_itself() {
    let mut bench = filled(300, Shape { disks: 8, spares: 1, ..Shape::dp() });
    bench.stripes = 200;
    for _ in 0..10 {
        assert!(bench.cp(100));
    }
    let column = 2;
    let disk = bench.disks[bench.disk_of(column)].clone();
    let agg = bench.agg();
    let here: Vec<u64> = bench
        .committed
        .keys()
        .copied()
        .filter(|at| agg.place(Pvbn::new(*at)).is_some_and(|p| p.data.column.get() == column))
        .collect();
    assert!(here.len() > 40, "{}", here.len());
    for (i, at) in here.iter().take(33).enumerate() {
        disk.break_block(agg.place(Pvbn::new(*at)).expect("place").data.dbn);
        let request = ReadRequest { at: Pvbn::new(*at), expect: None };
        let agg = bench.agg();
        bench.sim.block_on(async move { agg.read(vec![request]).await })[0]
            .as_ref()
            .expect("found from parity");
        let begun = copy(&bench).is_some();
        assert!(!begun || i > 10, "copied out after {i} bad blocks");
    }
    drop(agg);
    assert!(bench.cp(50));
    // The order is given in the background.
    let clock = bench.sim.world().clock;
    bench.sim.block_on(async move { clock.sleep(core::time::Duration::from_secs(1)).await });
    bench.await_rebuild();
    let out = bench.agg().events();
    assert!(out.iter().any(|e| matches!(e, Event::CopyFinished { .. })), "{out:?}");
    assert!(!out.iter().any(|e| matches!(e, Event::DiskTakenOut { .. })), "{out:?}");
    bench.verify();
    bench.scrub_is_clean();
}

/// A copy large enough for a durable mark, stopped by `cut`, then continued.
fn large(seed: u64) -> Bench {
    let shape = Shape { disks: 7, spares: 1, blocks: 65_536, ..Shape::dp() };
    let mut bench = Bench::new(seed, shape);
    bench.stripes = 60_000;
    for _ in 0..25 {
        assert!(bench.cp(60));
    }
    bench
}

/// Waits until the copy has passed its first durable mark.
fn await_mark(bench: &mut Bench) {
    let (agg, clock) = (bench.agg(), bench.sim.world().clock);
    bench.sim.block_on(async move {
        loop {
            let twin = agg.disks().into_iter().find(|d| d.role == DiskRole::Copy).expect("copy");
            if twin.rebuild.is_some_and(|(done, _)| done.get() > 126 * 140) {
                return;
            }
            clock.sleep(core::time::Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_disk_that_dies_while_it_is_copied_leaves_a_rebuild_that_keeps_what_was_copied() {
    for (seed, cut) in [(400, false), (401, false), (402, true), (403, true)] {
        let mut bench = large(seed);
        let old = member(&mut bench);
        let spare = replace(&mut bench, old.disk);
        await_mark(&mut bench);
        assert!(bench.cp(50));
        let at = bench.disks.iter().position(|d| d.driver().info().location == old.location);
        if cut {
            bench.sim.power_cut();
            bench.reattach();
            bench.disks.remove(at.expect("old disk"));
            bench.open().expect("open");
            bench.adopt_root();
        } else {
            bench.disks[at.expect("old disk")].die();
            assert!(bench.cp(50));
        }
        let now = bench.agg().disks();
        let new = now.iter().find(|d| d.disk == spare).expect("spare");
        assert_eq!((new.position, new.state), (old.position, ColumnState::Rebuilding));
        assert!(new.rebuild.expect("progress").0.get() >= 126 * 128, "{:?}", new.rebuild);
        bench.verify();
        bench.await_rebuild();
        bench.verify();
        bench.scrub_is_clean();
        lose_all_but(&mut bench, spare);
    }
}

/// Writers that began when the disk was still there finish when it is not: the spare, which takes
/// its place with what was copied, must have their blocks.
#[test]
fn a_disk_that_dies_under_concurrent_writes_leaves_nothing_old_on_the_spare() {
    for seed in seeds(800, 24) {
        let shape = Shape { disks: 7, spares: 1, blocks: 24_576, ..Shape::dp() };
        let mut bench = filled(seed, shape);
        bench.frees = false;
        bench.stripes = 150;
        // What is rewritten below was there before the copy, so that old blocks would be seen.
        for _ in 0..4 {
            for i in 0..6 {
                bench.offset = 600 * i;
                bench.write(60).expect("no cut").expect("write");
            }
            assert!(bench.cp(60));
        }
        let old = member(&mut bench);
        let spare = replace(&mut bench, old.disk);
        await_mark(&mut bench);
        let disk = sim_disk(&bench, &old.location);
        let gone = DiskError::Gone { reason: "unplugged".into() };
        disk.fail_request(1 + bench.rng.below(30), gone);
        for _ in 0..3 {
            let mut tetrises = Vec::new();
            for i in 0..6 {
                bench.offset = 600 * i;
                tetrises.push(bench.tetris(20));
            }
            let (agg, spawn) = (bench.agg(), bench.sim.world().spawn);
            let writes: Vec<_> = tetrises
                .into_iter()
                .map(|tetris| {
                    let (agg, (done, answer)) = (agg.clone(), tokio::sync::oneshot::channel());
                    let delay = core::time::Duration::from_micros(bench.rng.below(3000));
                    let clock = bench.sim.world().clock;
                    let write = async move {
                        clock.sleep(delay).await;
                        drop(done.send(agg.write(tetris).await));
                    };
                    spawn.spawn("writer", Box::pin(write));
                    answer
                })
                .collect();
            drop(agg);
            bench.sim.block_on(async move {
                for write in writes {
                    write.await.expect("answered").expect("written");
                }
            });
        }
        bench.commit().expect("no cut").expect("commit");
        disk.die();
        bench.await_rebuild();
        // Before reads mend what they meet.
        bench.scrub_is_clean();
        bench.verify();
        assert!(bench.cp(40));
        lose_all_but(&mut bench, spare);
    }
}

#[test]
fn a_copy_resumes_from_its_mark_after_a_power_cut() {
    for seed in 410..413 {
        let mut bench = large(seed);
        let old = member(&mut bench);
        let spare = replace(&mut bench, old.disk);
        await_mark(&mut bench);
        assert!(bench.cp(50));
        bench.write(30).expect("no cut").expect("write");
        bench.sim.power_cut();
        bench.reattach();
        bench.open().expect("open");
        let twin = copy(&bench).expect("the copy goes on");
        assert!(twin.rebuild.expect("progress").0.get() >= 126 * 128);
        bench.adopt_root();
        bench.verify();
        assert!(bench.cp(50));
        bench.await_rebuild();
        assert!(bench.agg().disks().iter().any(|d| d.disk == spare && d.position == old.position));
        bench.scrub_is_clean();
        lose_all_but(&mut bench, spare);
    }
}

#[test]
fn the_log_area_of_a_copied_disk_moves_with_it() {
    for seed in seeds(700, 6) {
        let mut bench = filled(seed, Shape { disks: 8, spares: 1, ..Shape::dp() });
        bench.stripes = 2000;
        assert!(bench.cp(60));
        let old = member(&mut bench);
        let log = bench.agg().log();
        let area = LogAreaId(old.disk);
        let put = |bench: &mut Bench, at: u64| {
            let write = log.write_stable(area, at, vec![noise(at); 3]);
            bench.sim.block_on(write).expect("log write");
        };
        for at in [0, 90, 300] {
            put(&mut bench, at);
        }
        let spare = replace(&mut bench, old.disk);
        let mut written: Vec<u64> = vec![0, 90, 300];
        let (clock, step) = (bench.sim.world().clock, core::time::Duration::from_micros(300));
        while copy(&bench).is_some() {
            let at = 3 * (101 + written.len() as u64) % 500;
            if !written.iter().any(|w| w.abs_diff(at) < 3) {
                put(&mut bench, at);
                written.push(at);
            }
            let clock = clock.clone();
            bench.sim.block_on(async move { clock.sleep(step).await });
        }
        assert!(written.len() > 5, "{}", written.len());
        // The log goes on under the name that it knows.
        put(&mut bench, 505);
        written.push(505);
        drop(log);
        bench.sim.power_cut();
        bench.reattach();
        bench.open().expect("open");
        bench.adopt_root();
        let log = bench.agg().log();
        assert!(log.areas().contains(&LogAreaId(spare)) && !log.areas().contains(&area));
        for at in written {
            let read = bench.sim.block_on(log.read(LogAreaId(spare), at, 3)).expect("log read");
            assert!(read == vec![noise(at); 3], "seed {seed}: log block {at}");
        }
    }
}

#[test]
fn a_spare_that_dies_while_it_is_filled_changes_nothing() {
    for seed in seeds(500, 4) {
        let mut bench = filled(seed, Shape { disks: 9, spares: 2, ..Shape::dp() });
        bench.stripes = 2000;
        assert!(bench.cp(60));
        let old = member(&mut bench);
        let spare = replace(&mut bench, old.disk);
        let twin = copy(&bench).expect("copy");
        sim_disk(&bench, &twin.location).die();
        assert!(bench.cp(50));
        let now = bench.agg().disks();
        assert!(now.iter().any(|d| d.disk == old.disk && d.state == ColumnState::Online));
        assert!(now.iter().any(|d| d.disk == spare && d.role == DiskRole::Failed));
        let second = replace(&mut bench, old.disk);
        assert_ne!(second, spare);
        bench.await_rebuild();
        bench.scrub_is_clean();
        lose_all_but(&mut bench, second);
    }
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let mut bench = filled(600, Shape { disks: 9, spares: 2, ..Shape::dp() });
    let agg = bench.agg();
    let disks = agg.disks();
    let spares: Vec<DiskUuid> =
        disks.iter().filter(|d| d.role == DiskRole::Spare).map(|d| d.disk).collect();
    let (a, b) = (disks[0].disk, disks[1].disk);
    let unknown = DiskUuid::new([7; 16]);
    let refused = bench.sim.block_on(agg.replace_disk(unknown, None));
    assert!(matches!(refused, Err(AdminError::NoSuchDisk(_))), "{refused:?}");
    for (disk, with) in [(a, Some(b)), (a, Some(unknown)), (spares[0], None)] {
        let refused = bench.sim.block_on(agg.replace_disk(disk, with));
        assert!(matches!(refused, Err(AdminError::Refused { .. })), "{refused:?}");
    }
    bench.stripes = 3000;
    assert!(bench.cp(60));
    let chosen = bench.sim.block_on(agg.replace_disk(a, Some(spares[1])));
    assert_eq!(chosen, Ok(spares[1]));
    for (disk, with) in [(b, None), (a, Some(spares[0]))] {
        let refused = bench.sim.block_on(agg.replace_disk(disk, with));
        assert!(matches!(refused, Err(AdminError::Refused { .. })), "{refused:?}");
    }
    bench.await_rebuild();
    bench.scrub_is_clean();
}

/// A copy under consistency points, the power cut somewhere; disks vanish with it; open (with a
/// cut in recovery now and then); then everything committed is there, and the copy is finished.
fn crash_story(seed: u64) -> bool {
    // Large enough for a durable mark, which passes everything that is written.
    let blocks = if seed.is_multiple_of(3) { DISK_BLOCKS } else { 24_576 };
    let mut bench = filled(seed, Shape { blocks, ..shape(seed) });
    bench.stripes = 900;
    let old = member(&mut bench);
    let mut resumed = false;
    for round in 0..3 {
        bench.offset = 5000 * bench.rng.below(3);
        let most = if bench.rng.one_in(2) { 120 } else { 900 };
        let n = 1 + bench.rng.below(most);
        bench.sim.cut_power_at(n);
        let agg = bench.agg();
        let order = bench.sim.block_on_or_cut(agg.replace_disk(old.disk, None));
        drop(agg);
        let mut through = 0;
        if order.is_some() {
            while through < 12 && bench.cp(40) {
                through += 1;
            }
        }
        if through == 12 {
            bench.sim.cancel_cut();
            bench.sim.power_cut();
        }
        let twin = copy(&bench).map(|t| t.location);
        bench.reattach();
        if round == 1 {
            // The disk, the spare, or neither does not come back.
            let gone = [Some(old.location.clone()), twin, None][bench.rng.index(3)].clone();
            bench.disks.retain(|d| Some(d.driver().info().location) != gone);
        }
        if bench.rng.one_in(2) {
            let n = 1 + bench.rng.below(40);
            bench.sim.cut_power_at(n);
            if !bench.open_or_cut() {
                bench.reattach();
                bench.open().expect("open after a cut in recovery");
            }
            bench.sim.cancel_cut();
        } else {
            bench.open().expect("open");
        }
        bench.adopt_root();
        let progress = bench.agg().disks().into_iter().find_map(|d| d.rebuild);
        resumed |= progress.is_some_and(|(done, _)| done.get() > 16_000);
        // Before reads mend what they meet.
        if bench.rng.one_in(2) {
            bench.scrub_is_clean();
        }
        bench.verify();
    }
    assert!(bench.cp(50));
    let has_spare = bench.agg().disks().iter().any(|d| d.role == DiskRole::Spare);
    let missing =
        bench.agg().disks().iter().any(|d| d.state == ColumnState::Missing && d.position.is_some());
    if missing && !has_spare {
        bench.verify();
        return resumed;
    }
    bench.await_rebuild();
    bench.scrub_is_clean();
    bench.verify();
    if !has_spare {
        let column = bench.agg().disks().into_iter().find(|d| d.position == old.position);
        lose_all_but(&mut bench, column.expect("position").disk);
    }
    resumed
}

#[test]
fn power_cut_anywhere_in_a_copy_loses_no_committed_block() {
    let resumed = seeds(5_000_000, 60).filter(|seed| crash_story(*seed)).count();
    assert!(resumed > 3, "only {resumed} copies went on from a mark");
}

/// The same copy with the same consistency points, cut after each single write or flush.
#[test]
fn power_cut_after_each_write_of_a_copy() {
    for lose in [None, Some(true), Some(false)] {
        let mut n = 1;
        loop {
            let mut bench = Bench::new(978, Shape { disks: 6, spares: 1, ..Shape::dp() });
            bench.stripes = 40;
            for _ in 0..3 {
                assert!(bench.cp(30));
            }
            let old = bench.agg().disks()[1].clone();
            bench.sim.cut_power_at(n);
            let agg = bench.agg();
            let order = bench.sim.block_on_or_cut(agg.replace_disk(old.disk, None));
            drop(agg);
            let mut through = order.is_some();
            for _ in 0..2 {
                through = through && bench.cp(30);
            }
            while through && copy(&bench).is_some() {
                let clock = bench.sim.world().clock;
                let slept = bench.sim.block_on_or_cut(async move {
                    clock.sleep(core::time::Duration::from_millis(1)).await;
                });
                through = slept.is_some();
            }
            bench.sim.cancel_cut();
            if through {
                break;
            }
            let twin = copy(&bench).map(|t| t.location);
            bench.reattach();
            let gone = match lose {
                Some(true) => Some(old.location.clone()),
                Some(false) => twin,
                None => None,
            };
            bench.disks.retain(|d| Some(d.driver().info().location) != gone);
            bench.open().expect("open");
            bench.adopt_root();
            bench.verify();
            if gone.is_none() || lose == Some(true) {
                bench.await_rebuild();
                bench.verify();
            }
            bench.scrub_is_clean();
            n += 3;
        }
        assert!(n > 100, "only {n} orders were made");
    }
}
