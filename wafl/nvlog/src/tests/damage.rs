//! Damage to one copy is mended, damage to all is an error, a torn tail is neither.

use core::ops::RangeInclusive;

use cairn_raid_disk::Disk;
use cairn_sim::{CutPolicy, SimWorld};
use cairn_sys::Block;
use cairn_units::{Blocks, Dbn};
use std::sync::Arc;

use super::{Areas, append, area, begun, begun_with, record, recover_now, same};
use crate::{LogFinding, LogPosition, Nvlog, RecoverError};

/// Ten batches of one record with two payload blocks each, behind the opening batch.
fn ten(sim: &SimWorld) -> (Arc<Areas>, LogPosition) {
    ten_in(sim, 256)
}

/// Records with so much payload, each in a batch of its own.
async fn write(log: &Nvlog, numbers: RangeInclusive<u64>, payload: usize) {
    for n in numbers {
        let lsn = append(log, record(1, n, 30, payload)).expect("there is room");
        log.durable(lsn).await.expect("a copy is left");
    }
}

fn ten_in(sim: &SimWorld, area_blocks: u64) -> (Arc<Areas>, LogPosition) {
    let areas = Areas::new(sim, 3, area_blocks);
    let position = sim.block_on(async {
        let log = begun(sim, &areas).await;
        write(&log, 1..=10, 2).await;
        log.position()
    });
    (areas, position)
}

/// Block of the n-th batch in an area: half 1 lies in slot 1, behind the opening batch.
fn place(batch: u64) -> u64 {
    128 + 1 + (batch - 1) * 3
}

fn rot(areas: &Areas, copy: u8, at: u64) {
    let mut block = areas.look(area(copy), at);
    let bytes = block.make_mut();
    bytes[40] ^= 0x10;
    areas.disks[&area(copy)].scribble(Dbn::new(at), &block);
}

fn assert_all_ten(recovered: &crate::Recovered) {
    assert_eq!(recovered.records.len(), 10);
    for (found, n) in recovered.records.iter().zip(1..) {
        assert_eq!(found.lsn.get(), n);
        assert!(same(&found.record, &record(1, n, 30, 2)));
    }
}

#[test]
fn damage_to_one_copy_is_mended_from_the_other() {
    for batch in 1..=10 {
        for block in 0..3 {
            let sim = SimWorld::new(batch);
            let (areas, position) = ten(&sim);
            rot(&areas, 1, place(batch) + block);
            let recovered = recover_now(&sim, &areas, position).unwrap();
            assert_all_ten(&recovered);
            let mended =
                LogFinding::Mended { half: 1, batch: u32::try_from(batch).unwrap(), area: area(1) };
            assert!(recovered.findings.contains(&mended), "{:?}", recovered.findings);
        }
    }
}

#[test]
fn different_blocks_of_one_batch_are_mended_from_each_other() {
    let sim = SimWorld::new(1);
    let (areas, position) = ten(&sim);
    rot(&areas, 1, place(5) + 1);
    rot(&areas, 2, place(5) + 2);
    areas.disks[&area(1)].break_block(Dbn::new(place(7) + 2));
    rot(&areas, 2, place(7) + 1);
    assert_all_ten(&recover_now(&sim, &areas, position).unwrap());
}

#[test]
fn a_damaged_opening_batch_does_not_hide_a_copy() {
    let sim = SimWorld::new(1);
    let (areas, position) = ten(&sim);
    rot(&areas, 1, 128);
    rot(&areas, 2, place(4));
    assert_all_ten(&recover_now(&sim, &areas, position).unwrap());
    rot(&areas, 2, 128);
    let lost = recover_now(&sim, &areas, position).unwrap_err();
    assert_eq!(lost, RecoverError::Damaged { half: 1, batch: 0 });
}

#[test]
fn damage_in_the_middle_of_all_copies_is_an_error() {
    for batch in 1..=9u32 {
        for block in 0..3 {
            let sim = SimWorld::new(u64::from(batch));
            let (areas, position) = ten(&sim);
            for copy in [1, 2] {
                rot(&areas, copy, place(u64::from(batch)) + block);
            }
            let error = recover_now(&sim, &areas, position).unwrap_err();
            assert_eq!(error, RecoverError::Damaged { half: 1, batch });
        }
    }
}

#[test]
fn damage_to_the_largest_batch_there_can_be_is_an_error() {
    let sim = SimWorld::new(1);
    let areas = Areas::new(&sim, 2, 8192);
    let position = sim.block_on(async {
        let log = begun(&sim, &areas).await;
        let _first = append(&log, record(1, 1, 30, 512)).unwrap();
        let both = append(&log, record(1, 2, 30, 510)).unwrap();
        log.durable(both).await.unwrap();
        let next = append(&log, record(1, 3, 30, 1)).unwrap();
        log.durable(next).await.unwrap();
        assert_eq!(log.status().halves[0].written, Blocks::new(1 + 1024 + 2));
        log.position()
    });
    for copy in [1, 2] {
        rot(&areas, copy, 4096 + 1);
    }
    let error = recover_now(&sim, &areas, position).unwrap_err();
    assert_eq!(error, RecoverError::Damaged { half: 1, batch: 1 });
}

#[test]
fn recovery_reads_as_much_of_a_large_log_as_of_a_small_one() {
    let read = |area_blocks| {
        let sim = SimWorld::new(1);
        let (areas, position) = ten_in(&sim, area_blocks);
        let count = || areas.disks.values().map(|d| d.counters().blocks_read).sum::<u64>();
        let before = count();
        assert_all_ten(&recover_now(&sim, &areas, position).unwrap());
        count() - before
    };
    let small = read(4096);
    assert_eq!(read(1 << 17), small);
    // Two copies are searched for one batch; the chain has 31 blocks.
    assert!(small <= 2 * 1024 + 100, "{small} blocks");
}

#[test]
fn a_chain_of_small_batches_is_read_in_few_requests() {
    let sim = SimWorld::new(1);
    let areas = Areas::new(&sim, 2, 8192);
    let position = sim.block_on(async {
        let log = begun(&sim, &areas).await;
        write(&log, 1..=600, 2).await;
        log.position()
    });
    // Neither copy is whole: the chain changes over, twice.
    rot(&areas, 1, 4096 + 1 + 3 * 200);
    rot(&areas, 2, 4096 + 1 + 3 * 400);
    let count = |of: fn(cairn_raid_disk::DiskCounters) -> u64| {
        areas.disks.values().map(|d| of(d.counters())).sum::<u64>()
    };
    let before = (count(|c| c.reads), count(|c| c.blocks_read));
    let recovered = recover_now(&sim, &areas, position).unwrap();
    assert_eq!(recovered.records.len(), 600);
    let (requests, blocks) = (count(|c| c.reads) - before.0, count(|c| c.blocks_read) - before.1);
    assert!(requests < 60, "{requests} requests");
    // The chain once, what was fetched in vain, and the search behind its end.
    assert!(blocks < 1801 + 2 * 1024 + 2 * 1024, "{blocks} blocks");
}

/// Records of a long log, each a batch of 252 blocks: the half goes round three copies twice.
const LONG: u64 = 28;
const LONG_HALF: u64 = 8192;

fn long(sim: &SimWorld) -> (Arc<Areas>, LogPosition) {
    let areas = Areas::new(sim, 3, 2 * LONG_HALF);
    let position = sim.block_on(async {
        let log = begun_with(sim, &areas, 3).await;
        write(&log, 1..=LONG, 251).await;
        log.position()
    });
    (areas, position)
}

fn assert_long(recovered: &crate::Recovered) {
    assert_eq!(recovered.records.len() as u64, LONG);
    for (found, n) in recovered.records.iter().zip(1..) {
        assert!(same(&found.record, &record(1, n, 30, 251)), "record {n}");
    }
}

#[test]
fn each_copy_gives_its_part_of_a_long_log() {
    let sim = SimWorld::new(1);
    let (areas, position) = long(&sim);
    let read = || areas.disks.values().map(|d| d.counters().blocks_read).collect::<Vec<_>>();
    let before = read();
    let recovered = recover_now(&sim, &areas, position).unwrap();
    assert_long(&recovered);
    assert_eq!(recovered.findings, []);
    for (after, before) in read().into_iter().zip(before) {
        // Three pieces at the most, the first batch, and the search behind the end.
        let blocks = after - before;
        assert!(blocks <= 3 * 1024 + 16 + 1024 + 8, "{blocks} blocks");
        assert!(blocks >= 2 * 1024 + 1024, "{blocks} blocks");
    }
}

#[test]
fn damage_in_the_piece_of_any_copy_is_mended_from_the_others() {
    for copy in 1..=3 {
        for at in (0..7168).step_by(509) {
            let sim = SimWorld::new(1);
            let (areas, position) = long(&sim);
            rot(&areas, copy, LONG_HALF + at);
            if at % 2 == 0 {
                areas.disks[&area(copy % 3 + 1)].break_block(Dbn::new(LONG_HALF + at));
            }
            assert_long(&recover_now(&sim, &areas, position).unwrap());
        }
    }
}

#[test]
fn a_copy_that_ended_early_is_not_asked_again() {
    let sim = SimWorld::new(1);
    let areas = Areas::new(&sim, 3, 2 * LONG_HALF);
    let position = sim.block_on(async {
        let log = begun_with(&sim, &areas, 3).await;
        write(&log, 1..=5, 251).await;
        areas.disks[&area(2)].die();
        write(&log, 6..=LONG, 251).await;
        log.position()
    });
    areas.disks[&area(2)].revive();
    let areas = areas.reattached();
    let read = |copy| areas.disks[&area(copy)].counters().blocks_read;
    let before = read(2);
    assert_long(&recover_now(&sim, &areas, position).unwrap());
    // What was fetched of its piece, and the search.
    assert!(read(2) - before <= 2 * 1024 + 16, "{} blocks", read(2) - before);
}

#[test]
fn a_torn_tail_is_the_normal_end() {
    for block in 0..3 {
        let sim = SimWorld::new(1);
        let (areas, position) = ten(&sim);
        for copy in [1, 2] {
            areas.disks[&area(copy)].scribble(Dbn::new(place(10) + block), &Block::zero());
        }
        let recovered = recover_now(&sim, &areas, position).unwrap();
        assert_eq!(recovered.records.len(), 9);
        let torn = LogFinding::TornTail { half: 1, batch: 10 };
        assert_eq!(recovered.findings.contains(&torn), block > 0);
    }
}

#[test]
fn a_missing_copy_is_reported_and_two_are_an_error() {
    let sim = SimWorld::new(1);
    let (areas, position) = ten(&sim);
    areas.take_out(area(2));
    let recovered = recover_now(&sim, &areas, position).unwrap();
    assert_all_ten(&recovered);
    let missing = LogFinding::CopyMissing { half: 1, written: 2, found: 1 };
    assert_eq!(recovered.findings, [missing]);
    areas.take_out(area(1));
    let error = recover_now(&sim, &areas, position).unwrap_err();
    assert_eq!(error, RecoverError::HalfMissing { half: 1, areas: 1 });
}

#[test]
fn the_longer_of_two_copies_wins() {
    let sim = SimWorld::new(1);
    let areas = Areas::new(&sim, 2, 256);
    let position = sim.block_on(async {
        let log = begun(&sim, &areas).await;
        write(&log, 1..=5, 2).await;
        areas.disks[&area(1)].die();
        write(&log, 6..=10, 2).await;
        log.position()
    });
    areas.disks[&area(1)].revive();
    let recovered = recover_now(&sim, &areas.reattached(), position).unwrap();
    assert_all_ten(&recovered);
    // The batch that it failed on was meant for both; the later ones for one.
    let mended = LogFinding::Mended { half: 1, batch: 6, area: area(1) };
    assert_eq!(recovered.findings, [mended]);
}

/// Two halves in use, both with acknowledged records; position of the root before the switch.
fn two_halves(sim: &SimWorld) -> (Arc<Areas>, LogPosition) {
    two_halves_with(sim, 7)
}

/// Three records in the first half, `second` in the second one.
fn two_halves_with(sim: &SimWorld, second: u64) -> (Arc<Areas>, LogPosition) {
    let areas = Areas::new(sim, 4, 256);
    let position = sim.block_on(async {
        let log = begun(sim, &areas).await;
        let position = log.position();
        for n in 1..=3 {
            let lsn = append(&log, record(1, n, 30, 2)).unwrap();
            log.durable(lsn).await.unwrap();
        }
        // The second half goes elsewhere.
        areas.set_aside(area(1));
        areas.set_aside(area(2));
        let old = log.current();
        let _new = log.switch_half().unwrap();
        log.close_half(old);
        for n in 4..4 + second {
            let lsn = append(&log, record(1, n, 30, 2)).unwrap();
            log.durable(lsn).await.unwrap();
        }
        position
    });
    // What is under way at the moment of the last acknowledgement does not count.
    sim.power_cut_with(&CutPolicy::DropAll);
    (areas.reattached(), position)
}

#[test]
fn a_half_that_was_named_and_is_lost_is_an_error() {
    let sim = SimWorld::new(1);
    let (areas, position) = two_halves(&sim);
    assert_all_ten(&recover_now(&sim, &areas, position).unwrap());
    areas.take_out(area(3));
    assert_all_ten(&recover_now(&sim, &areas, position).unwrap());
    areas.take_out(area(4));
    let error = recover_now(&sim, &areas, position).unwrap_err();
    assert_eq!(error, RecoverError::HalfMissing { half: 2, areas: 2 });
}

#[test]
fn the_first_record_of_a_half_is_acknowledged_only_after_the_old_half_names_it() {
    for seed in 0..20 {
        let sim = SimWorld::new(seed);
        let (areas, position) = two_halves_with(&sim, 1);
        areas.take_out(area(3));
        areas.take_out(area(4));
        let error = recover_now(&sim, &areas, position).unwrap_err();
        assert_eq!(error, RecoverError::HalfMissing { half: 2, areas: 2 });
    }
}

#[test]
fn a_lost_tail_of_the_old_half_is_found_out_by_the_new_one() {
    let sim = SimWorld::new(1);
    let (areas, position) = two_halves(&sim);
    // Batch 4 of half 1 is the note of half 2; batch 3 and it vanish without a trace.
    for copy in [1, 2] {
        for at in 0..4 {
            areas.disks[&area(copy)].scribble(Dbn::new(place(3) + at), &Block::zero());
        }
    }
    let error = recover_now(&sim, &areas, position).unwrap_err();
    assert_eq!(error, RecoverError::Damaged { half: 1, batch: 3 });

    let (areas, position) = two_halves(&sim);
    for copy in [1, 2] {
        areas.disks[&area(copy)].scribble(Dbn::new(place(3)), &Block::zero());
    }
    let error = recover_now(&sim, &areas, position).unwrap_err();
    assert_eq!(error, RecoverError::Damaged { half: 1, batch: 3 });
}

#[test]
fn data_that_looks_like_a_batch_is_not_one() {
    let sim = SimWorld::new(1);
    let (areas, position) = ten(&sim);
    // A client writes, as file data, what it may have seen of an older log.
    let forged = areas.look(area(1), place(9));
    let old_epoch = LogPosition { epoch: position.epoch ^ 1, ..position };
    let opened = LogPosition { opened: false, ..old_epoch };
    assert!(recover_now(&sim, &areas, opened).unwrap().records.is_empty());
    assert!(recover_now(&sim, &areas, old_epoch).is_err());
    // Even with the right epoch, a batch that is not at its own place is not followed.
    areas.disks[&area(1)].scribble(Dbn::new(place(10) + 3), &forged);
    assert_all_ten(&recover_now(&sim, &areas, position).unwrap());
}
