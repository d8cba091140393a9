//! Large payload lies spread over the areas, with parity instead of copies.

use core::pin::pin;
use core::task::{Context, Waker};
use core::time::Duration;
use std::collections::BTreeSet;
use std::sync::Arc;

use cairn_raid_disk::Disk;
use cairn_sim::SimWorld;
use cairn_sys::Block;
use cairn_units::{Blocks, Dbn, Lsn};

use super::{Areas, append, area, begun_with, record, recover_now, same};
use crate::{
    LogError, LogFinding, LogPosition, Nvlog, RECORDS_BLOCKS_MIN, RecoverError, Recovered,
    SwitchReason,
};

const AREA_BLOCKS: u64 = 512;
/// First block of the first half's slot.
const HALF_AT: u64 = AREA_BLOCKS / 2;
/// Payload of each record: the odd ones are spread.
const PAYLOADS: [usize; 6] = [1, 11, 0, 64, 3, 9];
const SPREAD_FROM: usize = 4;

/// A log with a record of each of the payloads, each in its own batch.
fn six(sim: &SimWorld, count: u8, copies: usize) -> (Arc<Areas>, LogPosition) {
    let areas = Areas::spreading(sim, count, AREA_BLOCKS, SPREAD_FROM);
    let position = sim.block_on(async {
        let log = begun_with(sim, &areas, copies).await;
        for (payload, n) in PAYLOADS.iter().zip(1..) {
            let lsn = append(&log, record(1, n, 30, *payload)).unwrap();
            log.durable(lsn).await.unwrap();
        }
        log.position()
    });
    (areas, position)
}

fn assert_all(recovered: &Recovered) {
    assert_eq!(recovered.records.len(), PAYLOADS.len());
    for (found, (payload, n)) in recovered.records.iter().zip(PAYLOADS.iter().zip(1..)) {
        assert!(same(&found.record, &record(1, n, 30, *payload)), "record {n}");
    }
}

/// First block of a batch's payload in each area, and how many each has: `data` columns.
fn cells(data: usize, batch: usize) -> (u64, u64) {
    let rows = |payload: usize| {
        let spread = payload >= SPREAD_FROM;
        (if spread { payload.div_ceil(data) } else { payload }) as u64
    };
    let before: u64 = PAYLOADS[..batch - 1].iter().map(|payload| 1 + rows(*payload)).sum();
    (HALF_AT + 1 + before + 1, rows(PAYLOADS[batch - 1]))
}

fn rot(areas: &Areas, of: u8, at: u64) {
    let mut block = areas.look(area(of), at);
    block.make_mut()[40] ^= 0x10;
    areas.disks[&area(of)].scribble(Dbn::new(at), &block);
}

#[test]
fn a_large_record_is_written_once_and_parity_beside_it() {
    let sim = SimWorld::new(1);
    let areas = Areas::spreading(&sim, 8, AREA_BLOCKS, 48);
    sim.block_on(async {
        let log = begun_with(&sim, &areas, 3).await;
        let written =
            || areas.disks.values().map(|disk| disk.counters().blocks_written).sum::<u64>();
        let durable = async |payload| {
            let before = written();
            let lsn = append(&log, record(1, 1, 30, payload)).unwrap();
            log.durable(lsn).await.unwrap();
            written() - before
        };
        // Three copies of the descriptors; six columns of data and two of parity.
        assert_eq!(durable(48).await, 3 + 48 + 2 * 8);
        assert_eq!(durable(47).await, 3 * 48);
        let counters = log.status().counters;
        assert_eq!(counters.area_blocks, written());
        assert_eq!((counters.spread_batches, counters.blocks), (1, 1 + 49 + 48));
        // As much of the half is gone as lies in each area.
        assert_eq!(log.status().halves[0].written, Blocks::new(1 + 1 + 8 + 48));
    });
}

#[test]
fn as_many_areas_as_parity_covers_may_be_lost() {
    for (count, copies) in [(3, 2), (5, 2), (8, 3), (10, 3)] {
        for a in 1..=count {
            for b in 1..=count {
                let sim = SimWorld::new(1);
                let (areas, position) = six(&sim, count, copies);
                let lost = BTreeSet::from(if copies == 2 { [a, a] } else { [a, b] });
                lost.iter().for_each(|n| areas.take_out(area(*n)));
                let recovered = recover_now(&sim, &areas, position).unwrap();
                assert_all(&recovered);
                let missing = LogFinding::ColumnsMissing {
                    half: 1,
                    written: count.into(),
                    found: usize::from(count) - lost.len(),
                };
                assert!(recovered.findings.contains(&missing), "{:?}", recovered.findings);
                let written = u32::try_from(copies).unwrap();
                let gone = lost.iter().filter(|n| u32::from(**n) <= written).count();
                let found = written - u32::try_from(gone).unwrap();
                let missing = LogFinding::CopyMissing { half: 1, written, found };
                assert_eq!(recovered.findings.contains(&missing), gone > 0);
            }
        }
    }
}

#[test]
fn one_area_more_than_parity_covers_is_an_error() {
    for (count, lost) in [(5, [2u8, 5].as_slice()), (8, &[2, 5, 8]), (8, &[4, 5, 6])] {
        let sim = SimWorld::new(1);
        let (areas, position) = six(&sim, count, lost.len());
        lost.iter().for_each(|n| areas.take_out(area(*n)));
        let error = recover_now(&sim, &areas, position).unwrap_err();
        assert_eq!(error, RecoverError::Damaged { half: 1, batch: 2 });
    }
}

#[test]
fn damage_in_each_row_is_mended_from_the_others() {
    let (data, sim) = (6, SimWorld::new(1));
    let (areas, position) = six(&sim, 8, 3);
    let (at, rows) = cells(data, 4);
    assert_eq!(rows, 11);
    // Two columns of each row, other ones each time, parity among them.
    for row in 0..rows {
        for n in [row, row * 3 + 1] {
            rot(&areas, u8::try_from(1 + n % 8).unwrap(), at + row);
        }
    }
    areas.disks[&area(4)].break_block(Dbn::new(cells(data, 2).0));
    let recovered = recover_now(&sim, &areas, position).unwrap();
    assert_all(&recovered);
    let mended = LogFinding::Mended { half: 1, batch: 4, area: area(2) };
    assert!(recovered.findings.contains(&mended), "{:?}", recovered.findings);
}

/// One data block and one of parity: the other parity has to do, and what comes of the damaged one is
/// not believed.
#[test]
fn a_spread_batch_that_two_copies_give_in_turn_is_not_mixed_up() {
    let sim = SimWorld::new(1);
    let areas = Areas::spreading(&sim, 5, 1 << 14, SPREAD_FROM);
    let records = || (1..=32).map(|n| record(1, n, 30, if n % 4 == 0 { 61 } else { 500 }));
    let position = sim.block_on(async {
        let log = begun_with(&sim, &areas, 3).await;
        for record in records() {
            let lsn = append(&log, record).unwrap();
            log.durable(lsn).await.unwrap();
        }
        // Three data columns: batches lie across the ends of pieces.
        assert!(log.status().halves[0].written > Blocks::new(4 * 1024));
        log.position()
    });
    let recovered = recover_now(&sim, &areas, position).unwrap();
    assert_eq!(recovered.findings, []);
    assert_eq!(recovered.records.len(), records().count());
    for (found, record) in recovered.records.iter().zip(records()) {
        assert!(same(&found.record, &record), "{:?}", found.lsn);
    }
}

#[test]
fn damaged_parity_is_not_believed() {
    for parity in [7, 8] {
        let sim = SimWorld::new(1);
        let (areas, position) = six(&sim, 8, 3);
        let (at, _) = cells(6, 6);
        rot(&areas, 3, at);
        rot(&areas, parity, at);
        assert_all(&recover_now(&sim, &areas, position).unwrap());
    }
    // With row parity alone there is no other, and this was not the last batch.
    let sim = SimWorld::new(1);
    let (areas, position) = six(&sim, 6, 2);
    let (at, _) = cells(5, 4);
    rot(&areas, 3, at);
    rot(&areas, 6, at);
    let error = recover_now(&sim, &areas, position).unwrap_err();
    assert_eq!(error, RecoverError::Damaged { half: 1, batch: 4 });
}

#[test]
fn a_torn_tail_is_left_out_whole() {
    let sim = SimWorld::new(1);
    let (areas, position) = six(&sim, 8, 3);
    let (at, rows) = cells(6, 6);
    assert_eq!(rows, 2);
    for torn in [1, 4, 5] {
        areas.disks[&area(torn)].scribble(Dbn::new(at), &Block::zero());
    }
    let recovered = recover_now(&sim, &areas, position).unwrap();
    assert_eq!(recovered.records.len(), PAYLOADS.len() - 1);
    assert!(recovered.findings.contains(&LogFinding::TornTail { half: 1, batch: 6 }));
}

/// Who has an opening batch and no chain is no copy; who has none is a lost column.
#[test]
fn openings_tell_copies_from_columns() {
    let sim = SimWorld::new(1);
    let (areas, position) = six(&sim, 8, 3);
    rot(&areas, 5, HALF_AT);
    rot(&areas, 2, HALF_AT);
    assert_all(&recover_now(&sim, &areas, position).unwrap());
    // An opening of the next half that reached only columns opens nothing.
    let areas = Areas::spreading(&sim, 8, AREA_BLOCKS, SPREAD_FROM);
    let position = sim.block_on(async {
        let log = begun_with(&sim, &areas, 3).await;
        let position = log.position();
        log.durable(append(&log, record(1, 1, 30, 8)).unwrap()).await.unwrap();
        let _new = log.switch_half().unwrap();
        log.durable(append(&log, record(1, 2, 30, 8)).unwrap()).await.unwrap();
        position
    });
    assert_eq!(recover_now(&sim, &areas, position).unwrap().records.len(), 2);
    // The switch was not told of, and only columns have its opening.
    for copy in 1..=3 {
        areas.disks[&area(copy)].scribble(Dbn::new(0), &Block::zero());
        areas.disks[&area(copy)].scribble(Dbn::new(HALF_AT + 1 + 3), &Block::zero());
    }
    let recovered = recover_now(&sim, &areas, position).unwrap();
    assert_eq!((recovered.records.len(), recovered.findings), (1, Vec::new()));
}

async fn durable(log: &Nvlog, n: u64, payload: usize) -> Result<Lsn, LogError> {
    let lsn = append(log, record(1, n, 30, payload)).unwrap();
    log.durable(lsn).await.map(|()| lsn)
}

fn is_due(log: &Nvlog) -> bool {
    pin!(log.wants_switch()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[test]
fn a_lost_column_ends_spreading_until_the_next_half() {
    let sim = SimWorld::new(1);
    let areas = Areas::spreading(&sim, 8, AREA_BLOCKS, SPREAD_FROM);
    let position = sim.block_on(async {
        let log = begun_with(&sim, &areas, 3).await;
        durable(&log, 1, 12).await.unwrap();
        assert_eq!(log.status().halves[0].written, Blocks::new(1 + 3));
        // It is written to, and dies of it: the record is stable without it.
        areas.disks[&area(6)].die();
        durable(&log, 2, 12).await.unwrap();
        assert_eq!(log.wants_switch().await, Ok(SwitchReason::CopyLost));
        // All copies are there; what follows lies in each of them.
        assert_eq!(log.status().halves[0].copies, [area(1), area(2), area(3)]);
        durable(&log, 3, 12).await.unwrap();
        assert_eq!(log.status().halves[0].written, Blocks::new(1 + 3 + 3 + 13));
        let (old, position) = (log.current(), log.position());
        let _new = log.switch_half().unwrap();
        log.close_half(old);
        durable(&log, 4, 12).await.unwrap();
        // Seven areas: five data columns.
        let halves = log.status().halves;
        assert_eq!(halves.last().unwrap().written, Blocks::new(1 + 1 + 3));
        assert_eq!(halves.last().unwrap().lost, []);
        position
    });
    areas.take_out(area(2));
    let recovered = recover_now(&sim, &areas, position).unwrap();
    assert_eq!(recovered.records.len(), 4);
    for (found, n) in recovered.records.iter().zip(1..) {
        assert!(same(&found.record, &record(1, n, 30, 12)));
    }
}

#[test]
fn columns_that_hold_nothing_may_go() {
    let sim = SimWorld::new(1);
    let areas = Areas::spreading(&sim, 8, AREA_BLOCKS, SPREAD_FROM);
    sim.block_on(async {
        let log = begun_with(&sim, &areas, 3).await;
        durable(&log, 1, 1).await.unwrap();
        (4..=8).for_each(|n| areas.take_out(area(n)));
        sim.world().clock.sleep(Duration::from_millis(1)).await;
        durable(&log, 2, 12).await.unwrap();
        let half = log.status().halves[0].clone();
        assert_eq!((half.lost.len(), half.written), (0, Blocks::new(1 + 2 + 13)));
        assert!(!is_due(&log), "nothing is lost");
    });
}

#[test]
fn the_log_ends_when_more_columns_are_lost_than_parity_covers() {
    for at_rest in [false, true] {
        let sim = SimWorld::new(1);
        let areas = Areas::spreading(&sim, 8, AREA_BLOCKS, SPREAD_FROM);
        sim.block_on(async {
            let log = begun_with(&sim, &areas, 3).await;
            durable(&log, 1, 12).await.unwrap();
            if at_rest {
                [4, 6, 8].into_iter().for_each(|n| areas.take_out(area(n)));
                let lost = log.wants_switch().await;
                let lost = if lost.is_ok() {
                    durable(&log, 2, 0).await
                } else {
                    lost.map(|_| Lsn::new(0))
                };
                assert!(matches!(lost, Err(LogError::CopiesLost { half: 1, .. })), "{lost:?}");
            } else {
                [4, 6, 8].into_iter().for_each(|n| areas.disks[&area(n)].die());
                let lost = durable(&log, 2, 12).await;
                assert!(matches!(lost, Err(LogError::CopiesLost { half: 1, .. })), "{lost:?}");
            }
        });
    }
}

/// Recovery keeps all records of a half in memory.
#[test]
fn a_small_half_does_not_hold_more_records_than_memory_is_meant_for() {
    let sim = SimWorld::new(1);
    let areas = Areas::spreading(&sim, 10, 8192, SPREAD_FROM);
    sim.block_on(async {
        let log = begun_with(&sim, &areas, 3).await;
        let mut blocks = 0;
        for n in 1.. {
            if is_due(&log) {
                break;
            }
            durable(&log, n, 512).await.unwrap();
            blocks += 512;
        }
        assert!(blocks > 4096, "spreading makes room: {blocks}");
        assert!(blocks * 10 <= RECORDS_BLOCKS_MIN * 6 + 5120 * 2, "{blocks}");
        // And no more than all of it, however late the switch.
        while append(&log, record(1, 1, 30, 512)).is_some() {
            blocks += 512;
        }
        assert!(blocks <= RECORDS_BLOCKS_MIN, "{blocks}");
    });
}
