//! What the log promises while it runs.

use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cairn_sim::SimWorld;
use cairn_units::{Blocks, Lsn};

use super::{AGGREGATE, Areas, append, area, begun, record, recover_now};
use crate::{
    LogError, Nvlog, NvlogOptions, ReserveError, SwitchError, SwitchReason, record_blocks, recover,
};

#[test]
fn one_write_carries_every_waiting_client() {
    let sim = SimWorld::new(1);
    let areas = Areas::new(&sim, 2, 1024);
    sim.block_on(async {
        let log = begun(&sim, &areas).await;
        let before = areas.writes.load(Ordering::Relaxed);
        let lsns: Vec<Lsn> = (0..300).filter_map(|n| append(&log, record(1, n, 100, 0))).collect();
        assert_eq!(lsns.len(), 300);
        for lsn in &lsns {
            log.durable(*lsn).await.unwrap();
        }
        // One batch on two copies: all were appended before the writer ran.
        assert_eq!(areas.writes.load(Ordering::Relaxed) - before, 2);
        assert_eq!(log.status().counters.records, 300);
        // 300 records of 132 bytes are ten blocks, not 300.
        let written = log.status().halves[0].written;
        assert!(written <= Blocks::new(12), "{written}");
    });
}

#[test]
fn while_a_round_is_under_way_the_next_gathers() {
    let sim = SimWorld::new(2);
    let areas = Areas::new(&sim, 2, 1024);
    sim.block_on(async {
        let log = Arc::new(begun(&sim, &areas).await);
        let before = log.status().counters.rounds;
        let clients = 50u64;
        let done = Arc::new(tokio::sync::Semaphore::new(0));
        for client in 0..clients {
            let (log, done) = (log.clone(), done.clone());
            let task = async move {
                for n in 0..20 {
                    let lsn = append(&log, record(client, n, 40, 0)).unwrap();
                    log.durable(lsn).await.unwrap();
                }
                done.add_permits(1);
            };
            sim.world().spawn.spawn("client", Box::pin(task));
        }
        let all = u32::try_from(clients).unwrap();
        done.acquire_many(all).await.unwrap().forget();
        let rounds = log.status().counters.rounds - before;
        assert!((20..=45).contains(&rounds), "1000 operations took {rounds} rounds");
    });
}

#[test]
fn nothing_is_acknowledged_after_all_copies_failed() {
    let sim = SimWorld::new(3);
    let areas = Areas::new(&sim, 3, 256);
    sim.block_on(async {
        let log = begun(&sim, &areas).await;
        let first = append(&log, record(1, 1, 10, 0)).unwrap();
        log.durable(first).await.unwrap();
        areas.disks[&area(1)].die();
        let second = append(&log, record(1, 2, 10, 0)).unwrap();
        log.durable(second).await.unwrap();
        assert_eq!(log.wants_switch().await, Ok(SwitchReason::CopyLost));
        assert_eq!(log.status().halves[0].copies, [area(2)]);

        areas.disks[&area(2)].die();
        let third = append(&log, record(1, 3, 10, 0)).unwrap();
        let error = log.durable(third).await.unwrap_err();
        assert!(matches!(error, LogError::CopiesLost { half: 1, .. }));
        // The disks come back; the log does not.
        areas.disks[&area(2)].revive();
        assert_eq!(log.durable(third).await, Err(error.clone()));
        assert!(matches!(log.reserve(Blocks::new(1)), Err(ReserveError::Failed(_))));
        assert_eq!(log.switch_half(), Err(SwitchError::Failed(error)));
        log.durable(second).await.unwrap();
    });
}

#[test]
fn a_fenced_copy_stops_the_log_even_when_another_one_works() {
    let sim = SimWorld::new(4);
    let areas = Areas::new(&sim, 2, 256);
    sim.block_on(async {
        let log = begun(&sim, &areas).await;
        areas.disks[&area(2)].fence(true);
        let lsn = append(&log, record(1, 1, 10, 0)).unwrap();
        assert_eq!(log.durable(lsn).await, Err(LogError::Fenced { area: area(2) }));
    });
}

/// Less than `SWITCH_PERCENT` is used, but who waits needs more than the rest.
#[test]
fn who_waits_for_more_than_is_left_makes_a_switch_due() {
    let sim = SimWorld::new(15);
    let areas = Areas::new(&sim, 2, 64);
    sim.block_on(async {
        let log = begun(&sim, &areas).await;
        let clock = sim.world().clock;
        for _ in 0..5 {
            let lsn = append(&log, record(1, 1, 10, 15)).unwrap();
            log.durable(lsn).await.unwrap();
            let due = first(log.wants_switch(), clock.sleep(Duration::from_secs(1)));
            assert_eq!(due.await, None, "nobody waits for the other half of it");
            let switch = async {
                let due = first(log.wants_switch(), clock.sleep(Duration::from_secs(1)));
                assert_eq!(due.await, Some(Ok(SwitchReason::Filling)));
                let old = log.current();
                log.switch_half().unwrap();
                log.close_half(old);
                log.settle(old).await.unwrap();
                log.release_half(old);
            };
            let (room, ()) = both(log.reserve_or_wait(Blocks::new(16)), switch).await;
            drop(room.unwrap());
        }
    });
}

#[test]
fn a_full_half_gives_no_room_until_it_is_switched() {
    let sim = SimWorld::new(5);
    let areas = Areas::new(&sim, 2, 64);
    sim.block_on(async {
        let log = begun(&sim, &areas).await;
        assert_eq!(log.capacity(), Blocks::new(30));
        let too_large = log.reserve(Blocks::new(31)).err();
        assert!(matches!(too_large, Some(ReserveError::TooLarge { .. })));
        let mut last = Lsn::new(0);
        while let Some(lsn) = append(&log, record(1, 1, 10, 4)) {
            last = lsn;
        }
        assert_eq!(last, Lsn::new(6), "six records of five blocks");
        assert_eq!(log.wants_switch().await, Ok(SwitchReason::Filling));
        log.durable(last).await.unwrap();
        // Batched, the six took less than their worst cases; the rest is room again.
        assert!(log.room() >= Blocks::new(5));

        let waiting = log.reserve_or_wait(Blocks::new(25));
        let old = log.current();
        let switch = async {
            sim.world().clock.sleep(Duration::from_millis(50)).await;
            let new = log.switch_half().unwrap();
            assert!(new > old);
            assert_eq!(log.switch_half(), Err(SwitchError::OtherHalfInUse(1)));
            log.close_half(old);
            let position = log.settle(old).await.unwrap();
            log.release_half(old);
            position
        };
        let (room, position) = both(waiting, switch).await;
        assert_eq!(room.unwrap().blocks(), Blocks::new(25));
        assert!(position.opened);
        assert_eq!(log.status().reserved, Blocks::new(0));
    });
}

/// What `a` gives, if it does before `limit` ends.
async fn first<A>(a: impl Future<Output = A>, limit: impl Future<Output = ()>) -> Option<A> {
    let (mut a, mut limit) = (Box::pin(a), Box::pin(limit));
    core::future::poll_fn(move |cx| match a.as_mut().poll(cx) {
        core::task::Poll::Ready(value) => core::task::Poll::Ready(Some(value)),
        core::task::Poll::Pending => limit.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Runs two futures at once.
async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (Box::pin(a), Box::pin(b));
    let (mut left, mut right) = (None, None);
    core::future::poll_fn(move |cx| {
        if left.is_none()
            && let core::task::Poll::Ready(value) = a.as_mut().poll(cx)
        {
            left = Some(value);
        }
        if right.is_none()
            && let core::task::Poll::Ready(value) = b.as_mut().poll(cx)
        {
            right = Some(value);
        }
        if left.is_some() && right.is_some() {
            core::task::Poll::Ready((left.take().unwrap(), right.take().unwrap()))
        } else {
            core::task::Poll::Pending
        }
    })
    .await
}

#[test]
#[should_panic(expected = "needs more than")]
fn appending_more_than_was_reserved_is_a_broken_invariant() {
    let sim = SimWorld::new(6);
    let areas = Areas::new(&sim, 2, 256);
    sim.block_on(async {
        let log = begun(&sim, &areas).await;
        let mut reservation = log.reserve(record_blocks(10, 0)).unwrap().unwrap();
        let _lsn = log.append(log.current(), &mut reservation, record(1, 1, 10, 1));
    });
}

#[test]
#[should_panic(expected = "is closed")]
fn appending_to_a_closed_half_is_a_broken_invariant() {
    let sim = SimWorld::new(7);
    let areas = Areas::new(&sim, 2, 256);
    sim.block_on(async {
        let log = begun(&sim, &areas).await;
        let old = log.current();
        let _new = log.switch_half().unwrap();
        log.close_half(old);
        let mut reservation = log.reserve(record_blocks(10, 0)).unwrap().unwrap();
        let _lsn = log.append(old, &mut reservation, record(1, 1, 10, 0));
    });
}

#[test]
fn both_halves_take_records_during_a_freeze_in_one_order() {
    let sim = SimWorld::new(8);
    let areas = Areas::new(&sim, 3, 256);
    let position = sim.block_on(async {
        let log = begun(&sim, &areas).await;
        let position = log.position();
        let old = log.current();
        let new = log.switch_half().unwrap();
        let mut last = Lsn::new(0);
        for n in 0..40 {
            let mut room = log.reserve(record_blocks(20, 0)).unwrap().unwrap();
            let half = if n % 2 == 0 { old } else { new };
            last = log.append(half, &mut room, record(n % 2, n, 20, 0));
            if n % 5 == 0 {
                log.durable(last).await.unwrap();
            }
        }
        log.durable(last).await.unwrap();
        position
    });
    let recovered = recover_now(&sim, &areas, position).unwrap();
    let order: Vec<u64> = recovered.records.iter().map(|r| r.lsn.get()).collect();
    assert_eq!(order, (1..=40).collect::<Vec<_>>());
    assert!(recovered.records.iter().zip(0..).all(|(r, n)| r.record.fsid.get() == n % 2));
    assert_eq!(recovered.findings, []);
}

#[test]
fn nothing_is_written_before_the_log_begins() {
    let sim = SimWorld::new(9);
    let areas = Areas::new(&sim, 2, 256);
    sim.block_on(async {
        let nothing = recover(areas.clone(), AGGREGATE, None).await.unwrap();
        let options = NvlogOptions { aggregate: AGGREGATE, copies: 2, next_lsn: Lsn::new(1) };
        let log = Nvlog::open(&sim.world(), areas.clone(), options, &nothing).unwrap();
        assert!(log.reserve(Blocks::new(1)).unwrap().is_none());
        sim.world().clock.sleep(Duration::from_secs(1)).await;
        assert_eq!(areas.writes.load(Ordering::Relaxed), 0);
        assert!(!log.position().opened);
        let found = recover(areas.clone(), AGGREGATE, Some(log.position())).await.unwrap();
        assert!(found.records.is_empty() && found.findings.is_empty());
    });
}

#[test]
fn dropping_the_log_ends_its_writer_and_its_waiters() {
    let sim = SimWorld::new(10);
    let areas = Areas::new(&sim, 2, 256);
    sim.block_on(async {
        let log = begun(&sim, &areas).await;
        let later = log.durable(Lsn::new(1000));
        drop(log);
        assert_eq!(later.await, Err(LogError::Stopped));
    });
    sim.run_until_stalled();
    assert_eq!(sim.tasks(), 0);
}

#[test]
fn a_writer_that_ends_early_leaves_nobody_waiting() {
    let sim = SimWorld::new(11);
    let areas = Areas::new(&sim, 2, 256);
    let log = sim.block_on(begun(&sim, &areas));
    let later = log.durable(Lsn::new(1000));
    // Every task is dropped, as when a runtime shuts down or a task panics.
    sim.power_cut();
    assert_eq!(sim.block_on(later), Err(LogError::Stopped));
    assert!(log.reserve(Blocks::new(1)).is_err());
}

#[test]
fn copy_lost_while_nobody_writes_asks_for_a_switch() {
    let sim = SimWorld::new(12);
    let areas = Areas::new(&sim, 3, 256);
    sim.block_on(async {
        let log = begun(&sim, &areas).await;
        let lsn = append(&log, record(1, 1, 10, 0)).unwrap();
        log.durable(lsn).await.unwrap();
        areas.take_out(area(1));
        assert_eq!(log.wants_switch().await, Ok(SwitchReason::CopyLost));
        let _new = log.switch_half().unwrap();
        log.durable(append(&log, record(1, 2, 10, 0)).unwrap()).await.unwrap();
        let halves = log.status().halves;
        assert_eq!(halves.last().unwrap().copies, [area(2), area(3)]);
        // Of the first half, whose records are in no root yet, this is the last copy.
        areas.take_out(area(2));
        let lost = log.durable(Lsn::new(1000)).await;
        assert!(matches!(lost, Err(LogError::CopiesLost { half: 1, .. })), "{lost:?}");
    });
}
