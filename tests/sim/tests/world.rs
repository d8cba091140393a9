//! The simulator's own claims: determinism, virtual time, and what a power cut may leave.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_raid_disk::{Disk, DiskError};
use cairn_sim::conformance::{disk_conformance, join_all, pattern, read_blocks};
use cairn_sim::{CutPolicy, SimDisk, SimDiskConfig, SimWorld};
use cairn_sys::{Block, BlockMut};
use cairn_units::{Blocks, Dbn};

fn disk_of(sim: &SimWorld) -> SimDisk {
    sim.disk(SimDiskConfig::new("d0", Blocks::new(8192)))
}

async fn put(disk: &SimDisk, at: u64, seed: u64) {
    disk.write(Dbn::new(at), vec![pattern(seed)]).await.unwrap();
}

async fn get(disk: &SimDisk, at: u64) -> Vec<u8> {
    read_blocks(disk, at, 1).await[0].to_vec()
}

/// Tasks that race for one list, sleep, and write to two disks; the order they got to it.
fn run_story(seed: u64) -> (u64, Vec<u64>, Duration) {
    let sim = SimWorld::new(seed);
    let disks = [disk_of(&sim), disk_of(&sim)];
    let order = Arc::new(Mutex::new(Vec::new()));
    let world = sim.world();
    let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
    for i in 0..20u64 {
        let (order, clock, disk) =
            (order.clone(), world.clock.clone(), disks[usize::from(i % 2 == 1)].clone());
        let (sender, inner) = (sender.clone(), world.clone());
        let task = Box::pin(async move {
            order.lock().unwrap().push(i);
            clock.sleep(Duration::from_micros(inner.entropy.next_u64() % 500)).await;
            disk.write(Dbn::new(i), vec![pattern(i)]).await.unwrap();
            order.lock().unwrap().push(100 + i);
            sender.send(i).await.unwrap();
        });
        world.spawn.spawn("racer", task);
    }
    drop(sender);
    sim.block_on(async {
        while let Some(i) = receiver.recv().await {
            order.lock().unwrap().push(200 + i);
        }
    });
    sim.power_cut();
    let order = order.lock().unwrap().clone();
    (sim.digest(), order, sim.elapsed())
}

#[test]
fn same_seed_gives_the_same_digest_and_order() {
    for seed in 0..20 {
        assert_eq!(run_story(seed), run_story(seed), "seed {seed}");
    }
}

#[test]
fn another_seed_gives_another_order() {
    let stories: BTreeSet<Vec<u64>> = (0..20).map(|seed| run_story(seed).1).collect();
    assert!(stories.len() > 15, "{} different orders", stories.len());
}

#[test]
fn time_jumps_to_the_next_timer_and_sleeps_end_in_order() {
    let sim = SimWorld::new(1);
    let clock = sim.world().clock;
    let start = clock.monotonic();
    let order = Mutex::new(Vec::new());
    let order = &order;
    let sleeps = [3u64, 1, 2].map(|hours| {
        let sleep = clock.sleep(Duration::from_secs(hours * 3600));
        Box::pin(async move {
            sleep.await;
            order.lock().unwrap().push(hours);
        })
    });
    sim.block_on(join_all(sleeps.into_iter().collect()));
    assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
    assert_eq!(clock.monotonic().since(start), Some(3 * 3600 * 1_000_000_000));
    assert_eq!(sim.elapsed(), Duration::from_secs(3 * 3600));
}

#[test]
fn run_for_runs_background_tasks_for_exactly_that_long() {
    let sim = SimWorld::new(2);
    let world = sim.world();
    let ticks = Arc::new(AtomicU64::new(0));
    let (count, clock) = (ticks.clone(), world.clock.clone());
    let forever = Box::pin(async move {
        loop {
            clock.sleep(Duration::from_secs(1)).await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    world.spawn.spawn("ticker", forever);
    sim.run_for(Duration::from_millis(10_500));
    assert_eq!(ticks.load(Ordering::Relaxed), 10);
    assert_eq!(sim.elapsed(), Duration::from_millis(10_500));
    sim.power_cut();
    assert_eq!(sim.tasks(), 0);
    sim.run_for(Duration::from_secs(10));
    assert_eq!(ticks.load(Ordering::Relaxed), 10, "no task outlives the power");
}

#[test]
#[should_panic(expected = "nothing can happen any more")]
fn deadlock_is_told_and_not_waited_for() {
    SimWorld::new(3).block_on(core::future::pending::<()>());
}

#[test]
fn simulated_disk_conforms() {
    for seed in 0..5 {
        let sim = SimWorld::new(seed);
        sim.block_on(disk_conformance(|| disk_of(&sim).driver()));
    }
}

#[test]
fn flushed_writes_survive_every_power_cut() {
    for seed in 0..200 {
        let sim = SimWorld::new(seed);
        let disk = disk_of(&sim);
        sim.block_on(async {
            for i in 0..8 {
                put(&disk, i, i).await;
            }
            disk.flush().await.unwrap();
            for i in 8..16 {
                put(&disk, i, i).await;
            }
        });
        sim.power_cut();
        let disk = disk.reattach();
        sim.block_on(async {
            for i in 0..8 {
                assert_eq!(get(&disk, i).await, pattern(i)[..], "seed {seed} block {i}");
            }
        });
    }
}

/// A stable write makes nothing durable but itself, and what it overwrites never comes back.
#[test]
fn stable_writes_survive_every_power_cut_and_take_no_other_with_them() {
    let mut lost = 0;
    for seed in 0..200 {
        let sim = SimWorld::new(seed);
        let disk = disk_of(&sim);
        sim.block_on(async {
            put(&disk, 1, 1).await;
            put(&disk, 5, 5).await;
            let blocks = vec![pattern(10), pattern(11), pattern(12)];
            disk.driver().write_stable(Dbn::new(0), blocks).await.unwrap();
        });
        sim.power_cut();
        let disk = disk.reattach();
        sim.block_on(async {
            for i in 0..3 {
                assert_eq!(get(&disk, i).await, pattern(10 + i)[..], "seed {seed} block {i}");
            }
            lost += usize::from(get(&disk, 5).await[..] != pattern(5)[..]);
        });
    }
    assert!((20..180).contains(&lost), "the other write is lost {lost} times of 200");
}

#[test]
fn unflushed_writes_are_kept_dropped_torn_and_reordered() {
    let (mut kept, mut dropped, mut torn, mut reordered) = (0, 0, 0, 0);
    for seed in 0..300 {
        let sim = SimWorld::new(seed);
        let disk = disk_of(&sim);
        sim.block_on(async {
            put(&disk, 1, 1).await;
            put(&disk, 1, 2).await;
            put(&disk, 2, 3).await;
        });
        sim.power_cut();
        let image = disk.image();
        let (one, two) = (image.durable(Dbn::new(1)), image.durable(Dbn::new(2)));
        match () {
            () if two == pattern(3) => kept += 1,
            () if two == Block::zero() => dropped += 1,
            () => {
                torn += 1;
                let want = pattern(3);
                for (got, want) in two.chunks(512).zip(want.chunks(512)) {
                    assert!(got == want || got.iter().all(|b| *b == 0), "torn at a sector");
                }
            }
        }
        // The later of two writes is lost and the earlier stays, or the later block alone is there.
        if one == pattern(1) || (one == Block::zero() && two == pattern(3)) {
            reordered += 1;
        }
    }
    let counts = [kept, dropped, torn, reordered];
    assert!(counts.iter().all(|n| *n > 15), "kept, dropped, torn, reordered: {counts:?}");
}

#[test]
fn keep_policy_reaches_every_subset_of_unflushed_writes() {
    let mut seen = BTreeSet::new();
    for mask in 0..8usize {
        let sim = SimWorld::new(9);
        let disk = disk_of(&sim);
        sim.block_on(async {
            for i in 0..3 {
                put(&disk, i, i + 1).await;
            }
        });
        assert_eq!(disk.unflushed().len(), 3);
        let kept = (0..3).filter(|i| mask & (1 << i) != 0).collect();
        sim.power_cut_with(&CutPolicy::Keep(kept));
        let image = disk.image();
        let there: Vec<bool> =
            (0..3).map(|i| image.durable(Dbn::new(i)) == pattern(i + 1)).collect();
        assert_eq!(there, (0..3).map(|i| mask & (1 << i) != 0).collect::<Vec<_>>());
        seen.insert(there);
    }
    assert_eq!(seen.len(), 8);
}

#[test]
fn cut_at_every_order_stops_there_and_old_handles_are_gone() {
    let story = async |disk: SimDisk| {
        for i in 0..5 {
            put(&disk, i, i).await;
            disk.flush().await.unwrap();
        }
    };
    let sim = SimWorld::new(4);
    sim.block_on(story(disk_of(&sim)));
    let orders = sim.orders();
    assert_eq!(orders, 10);
    for n in 1..=orders {
        let sim = SimWorld::new(4);
        let disk = disk_of(&sim);
        sim.cut_power_at(n);
        assert!(sim.block_on_or_cut(story(disk.clone())).is_none(), "cut at {n}");
        assert_eq!(sim.orders(), n, "nothing after the cut");
        let gone = sim.block_on(disk.read(Dbn::new(0), vec![BlockMut::dirty()]));
        assert!(matches!(gone, Err(DiskError::Gone { .. })));
        let disk = disk.reattach();
        sim.block_on(async {
            // Block i was flushed by the time that order 2i+2 had ended.
            for i in (0..5).filter(|i| 2 * i + 2 < n) {
                assert_eq!(get(&disk, i).await, pattern(i)[..], "cut at {n} block {i}");
            }
        });
    }
    sim.cut_power_at(1);
    sim.cancel_cut();
    sim.block_on(story(disk_of(&sim)));
}

#[test]
fn faults_do_what_they_say() {
    let sim = SimWorld::new(5);
    let disk = disk_of(&sim);
    sim.block_on(async {
        for i in 0..10 {
            put(&disk, i, i).await;
        }
        disk.break_block(Dbn::new(3));
        let bad = disk.read(Dbn::new(2), (0..4).map(|_| BlockMut::dirty()).collect()).await;
        let medium = DiskError::Medium { at: Dbn::new(3), count: Blocks::new(1) };
        assert_eq!(bad.unwrap_err(), medium);
        put(&disk, 3, 33).await;
        assert_eq!(get(&disk, 3).await, pattern(33)[..], "a write heals a latent sector error");

        disk.rot_block(Dbn::new(4));
        let got = get(&disk, 4).await;
        let bits: u32 = got.iter().zip(&pattern(4)[..]).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(bits, 1, "rot flips one bit");

        disk.lose_next_write(Dbn::new(5));
        put(&disk, 5, 55).await;
        assert_eq!(get(&disk, 5).await, pattern(5)[..], "a lost write leaves the old block");
        put(&disk, 5, 56).await;
        assert_eq!(get(&disk, 5).await, pattern(56)[..], "and only the next one is lost");

        disk.misdirect_next_write(Dbn::new(6), Dbn::new(60));
        put(&disk, 6, 66).await;
        assert_eq!(get(&disk, 6).await, pattern(6)[..]);
        assert_eq!(get(&disk, 60).await, pattern(66)[..]);

        disk.fail_request(2, DiskError::Medium { at: Dbn::new(7), count: Blocks::new(1) });
        put(&disk, 7, 7).await;
        assert!(disk.flush().await.is_err(), "the second request fails");
        disk.flush().await.unwrap();

        disk.fence(true);
        let fenced = disk.write(Dbn::new(1), vec![Block::zero()]).await;
        assert_eq!(fenced, Err(DiskError::Fenced));
        assert_eq!(get(&disk, 1).await, pattern(1)[..]);
        disk.fence(false);

        disk.limit_host_space(Some(Blocks::new(11)));
        put(&disk, 1, 1).await;
        let full = disk.write(Dbn::new(200), vec![Block::zero()]).await;
        assert!(matches!(full, Err(DiskError::Gone { reason }) if reason.contains("full")));
    });
}

#[test]
fn hung_disk_times_out_and_its_write_may_land_late() {
    let mut landed = BTreeMap::new();
    for seed in 0..40 {
        let sim = SimWorld::new(seed);
        let disk = disk_of(&sim);
        disk.hang(true);
        let answer = sim.block_on(disk.write(Dbn::new(1), vec![pattern(1)]));
        assert_eq!(answer, Err(DiskError::TimedOut { at: Dbn::new(1) }));
        assert_eq!(sim.elapsed(), Duration::from_secs(30));
        assert_eq!(disk.image().visible(Dbn::new(1)), Block::zero());
        sim.run_for(Duration::from_secs(60));
        *landed.entry(disk.image().visible(Dbn::new(1)) == pattern(1)).or_insert(0) += 1;
    }
    assert_eq!(landed.len(), 2, "some land, some do not: {landed:?}");
}

#[test]
fn dead_disk_answers_gone_and_returns_with_its_flushed_blocks() {
    let sim = SimWorld::new(6);
    let disk = disk_of(&sim);
    sim.block_on(async {
        put(&disk, 1, 1).await;
        disk.flush().await.unwrap();
        let under_way = disk.write(Dbn::new(2), vec![pattern(2)]);
        disk.die();
        assert!(matches!(under_way.await, Err(DiskError::Gone { .. })));
        assert!(matches!(disk.flush().await, Err(DiskError::Gone { .. })));
        disk.revive();
        assert!(matches!(disk.flush().await, Err(DiskError::Gone { .. })), "the old handle");
        let disk = disk.reattach();
        assert_eq!(get(&disk, 1).await, pattern(1)[..]);
    });
}

#[test]
fn slow_disk_is_slow_and_images_bring_back_the_past() {
    let sim = SimWorld::new(7);
    let disk = disk_of(&sim);
    disk.slow_down(1000);
    sim.block_on(put(&disk, 1, 1));
    assert!(sim.elapsed() >= Duration::from_millis(20));
    sim.block_on(disk.flush()).unwrap();
    let image = disk.image();
    sim.block_on(put(&disk, 1, 2));
    disk.restore(&image);
    let disk = disk.reattach();
    assert_eq!(sim.block_on(get(&disk, 1)), pattern(1)[..]);
}
