//! Whoever waits for a record starts the round that carries it.

use core::pin::pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Wake;

use cairn_raid_api::{LogAreaError, LogAreaId, LogStore, Spread};
use cairn_sim::SimWorld;
use cairn_sys::{Block, BoxFuture};
use cairn_units::{Blocks, Lsn};
use tokio::sync::Semaphore;

use super::{AGGREGATE, append, area, record};
use crate::{Nvlog, NvlogOptions, SwitchReason, record_blocks, recover};

/// Areas in memory: a write is over when it is asked for, as long as there is leave for it.
struct Memory {
    blocks: Mutex<BTreeMap<(LogAreaId, u64), Block>>,
    leave: Arc<Semaphore>,
    begun: AtomicUsize,
}

impl LogStore for Memory {
    fn area_blocks(&self) -> Blocks {
        Blocks::new(1024)
    }
    fn areas(&self) -> Vec<LogAreaId> {
        vec![area(1), area(2)]
    }
    fn choose(&self, copies: usize) -> Vec<LogAreaId> {
        self.areas().into_iter().take(copies).collect()
    }
    fn spread(&self, _copies: usize) -> Option<Spread> {
        None
    }
    fn spread_parity(&self, _data: &[&[Block]], _parity: usize) -> Vec<Vec<Block>> {
        unreachable!("nothing is spread")
    }
    fn spread_restore(&self, _row: &mut [Option<Block>], _parity: usize) -> bool {
        unreachable!("nothing is spread")
    }
    fn loss_after(&self, _seen: u64) -> BoxFuture<u64> {
        Box::pin(core::future::pending())
    }
    fn read(
        &self,
        area: LogAreaId,
        at: u64,
        count: usize,
    ) -> BoxFuture<Result<Vec<Block>, LogAreaError>> {
        let blocks = self.blocks.lock().unwrap();
        let block = |n| blocks.get(&(area, n)).cloned().unwrap_or_else(Block::zero);
        Box::pin(core::future::ready(Ok((at..at + count as u64).map(block).collect())))
    }
    fn write_stable(
        &self,
        area: LogAreaId,
        at: u64,
        blocks: Vec<Block>,
    ) -> BoxFuture<Result<(), LogAreaError>> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let mut all = self.blocks.lock().unwrap();
        all.extend((at..).zip(blocks).map(|(n, block)| ((area, n), block)));
        let leave = self.leave.clone();
        Box::pin(async move {
            leave.acquire().await.unwrap().forget();
            Ok(())
        })
    }
}

/// A log on two areas in memory that has begun, with leave for so many writes more.
async fn begun(sim: &SimWorld, writes: usize) -> (Nvlog, Arc<Memory>) {
    let memory = Arc::new(Memory {
        blocks: Mutex::default(),
        leave: Arc::new(Semaphore::new(100)),
        begun: AtomicUsize::new(0),
    });
    let nothing = recover(memory.clone(), AGGREGATE, None).await.unwrap();
    let options = NvlogOptions { aggregate: AGGREGATE, copies: 2, next_lsn: Lsn::new(1) };
    let log = Nvlog::open(&sim.world(), memory.clone(), options, &nothing).unwrap();
    log.begin().await.unwrap();
    memory.leave.forget_permits(100);
    memory.leave.add_permits(writes);
    (log, memory)
}

/// The answer that there is without waiting.
fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

#[test]
fn a_record_is_stable_at_once_where_the_areas_are_memory() {
    let sim = SimWorld::new(1);
    sim.block_on(async {
        let (log, memory) = begun(&sim, 100).await;
        let before = memory.begun.load(Ordering::Relaxed);
        let lsns: Vec<Lsn> = (0..10).filter_map(|n| append(&log, record(1, n, 40, 1))).collect();
        assert_eq!(memory.begun.load(Ordering::Relaxed), before, "nobody waits yet");
        assert_eq!(at_once(log.durable(lsns[3])), Some(Ok(())), "without the writer");
        assert_eq!(log.status().durable, lsns[9], "those that were there went along");
        assert_eq!(memory.begun.load(Ordering::Relaxed) - before, 2, "one round, two copies");
    });
}

#[test]
fn a_round_ends_though_whoever_started_it_goes_away() {
    for others in [0, 1] {
        let sim = SimWorld::new(2);
        sim.block_on(async {
            let (log, memory) = begun(&sim, 1).await;
            let lsn = append(&log, record(1, 1, 40, 1)).unwrap();
            let waiting: Vec<_> = (0..others).map(|_| log.durable(lsn)).collect();
            assert_eq!(at_once(log.durable(lsn)), None, "one copy is on its way");
            memory.leave.add_permits(1);
            log.durable(lsn).await.unwrap();
            assert!(waiting.into_iter().all(|one| at_once(one) == Some(Ok(()))));
        });
    }
}

/// Nobody else waits: no other task takes part.
#[test]
fn a_lone_waiter_sees_its_round_through_without_the_writer() {
    let sim = SimWorld::new(6);
    sim.block_on(async {
        let (log, memory) = begun(&sim, 1).await;
        let lsn = append(&log, record(1, 1, 40, 1)).unwrap();
        let mut waiting = pin!(log.durable(lsn));
        assert_eq!(at_once(waiting.as_mut()), None, "one copy is on its way");
        let later = append(&log, record(1, 2, 40, 1)).unwrap();
        memory.leave.add_permits(1);
        assert_eq!(at_once(waiting), Some(Ok(())), "the writer had no turn");
        assert!(log.status().durable < later, "the next round is the writer's");
        memory.leave.add_permits(2);
        log.durable(later).await.unwrap();
    });
}

/// A half is settled though whoever keeps its last round is not looked at.
#[test]
fn a_half_is_settled_though_the_keeper_of_its_round_sleeps() {
    let sim = SimWorld::new(7);
    sim.block_on(async {
        let (log, memory) = begun(&sim, 1).await;
        let old = log.current();
        let lsn = append(&log, record(1, 1, 40, 1)).unwrap();
        let mut keeper = pin!(log.durable(lsn));
        assert_eq!(at_once(keeper.as_mut()), None, "one copy is on its way");
        memory.leave.add_permits(100);
        log.switch_half().unwrap();
        log.close_half(old);
        log.settle(old).await.unwrap();
        assert_eq!(at_once(keeper), Some(Ok(())));
    });
}

/// Whoever started a round may be looked at again only after somebody else is answered.
#[test]
fn a_waiter_that_nobody_looks_at_holds_nobody_up() {
    let sim = SimWorld::new(5);
    sim.block_on(async {
        let (log, memory) = begun(&sim, 1).await;
        let lsn = append(&log, record(1, 1, 40, 1)).unwrap();
        let mut first = pin!(log.durable(lsn));
        assert_eq!(at_once(first.as_mut()), None, "one copy is on its way");
        memory.leave.add_permits(10);
        let next = append(&log, record(1, 2, 40, 1)).unwrap();
        log.durable(next).await.unwrap();
        assert_eq!(at_once(first), Some(Ok(())));
    });
}

#[test]
fn no_round_begins_before_the_one_under_way_is_over() {
    let sim = SimWorld::new(3);
    sim.block_on(async {
        let (log, memory) = begun(&sim, 0).await;
        let first = append(&log, record(1, 1, 40, 1)).unwrap();
        assert_eq!(at_once(log.durable(first)), None);
        let begun = memory.begun.load(Ordering::Relaxed);
        let second = append(&log, record(1, 2, 40, 1)).unwrap();
        assert_eq!(at_once(log.durable(second)), None);
        assert_eq!(memory.begun.load(Ordering::Relaxed), begun, "a second round is under way");
        memory.leave.add_permits(4);
        log.durable(second).await.unwrap();
        assert_eq!(memory.begun.load(Ordering::Relaxed), begun + 2);
    });
}

#[test]
fn what_nobody_waits_for_is_stable_before_its_half_is_settled() {
    let sim = SimWorld::new(4);
    sim.block_on(async {
        let (log, _memory) = begun(&sim, 100).await;
        let old = log.current();
        log.switch_half().unwrap();
        let early = append(&log, record(1, 1, 40, 1)).unwrap();
        log.durable(early).await.unwrap();
        // The new half is announced; then the writer looks once more, and finds nothing to do.
        sim.world().clock.sleep(Duration::from_millis(1)).await;
        let late = record(2, 2, 40, 1);
        let mut room = log.reserve(record_blocks(40, 1)).unwrap().expect("there is room");
        let late = log.append(old, &mut room, late);
        log.close_half(old);
        log.settle(old).await.unwrap();
        assert_eq!(log.status().durable, late);
    });
}

/// Counts how often it is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The storage manager waits for a switch all the time: that must cost the records nothing.
#[test]
fn who_waits_for_a_switch_is_woken_when_one_is_due_and_not_for_each_record() {
    let sim = SimWorld::new(7);
    sim.block_on(async {
        let (log, _memory) = begun(&sim, 10_000).await;
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let mut due = pin!(log.wants_switch());
        assert!(due.as_mut().poll(&mut cx).is_pending());
        let mut records = 0;
        while wakes.0.load(Ordering::Relaxed) == 0 {
            let Some(lsn) = append(&log, record(1, records, 100, 0)) else {
                panic!("the half is full after {records} records, and nobody was told");
            };
            log.durable(lsn).await.unwrap();
            records += 1;
        }
        assert!(records > 100, "woken after {records} records");
        assert_eq!(due.as_mut().poll(&mut cx), Poll::Ready(Ok(SwitchReason::Filling)));
    });
}

/// Somebody was refused while the half was empty, which a switch could not help. The first record
/// makes one due, though nobody waits for that record.
#[test]
fn a_record_that_nobody_waits_for_makes_a_switch_due_for_who_was_refused() {
    let sim = SimWorld::new(8);
    sim.block_on(async {
        let (log, _memory) = begun(&sim, 100).await;
        let half = Blocks::new(log.capacity().get() / 2);
        let mut room = log.reserve(half).unwrap().unwrap();
        let mut unseen = Context::from_waker(Waker::noop());
        let mut refused = pin!(log.reserve_or_wait(log.capacity()));
        assert!(refused.as_mut().poll(&mut unseen).is_pending());

        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let mut due = pin!(log.wants_switch());
        assert!(due.as_mut().poll(&mut cx).is_pending(), "there is nothing in the half");
        let _lsn = log.append(log.current(), &mut room, record(1, 1, 100, 0));
        drop(room);
        assert!(refused.as_mut().poll(&mut unseen).is_pending());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(due.as_mut().poll(&mut cx), Poll::Ready(Ok(SwitchReason::Filling)));
    });
}
