//! Random histories: clients append, the storage manager switches halves and commits roots, the
//! power goes off anywhere, copies are lost. What was acknowledged is recovered, and nothing
//! behind a gap.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cairn_sim::{Rng, SimWorld};
use cairn_units::{Dbn, Lsn};
use proptest::prelude::*;

use super::{AGGREGATE, Areas, area, record, recover_now, same};
use crate::{
    HalfToken, LogPosition, Nvlog, NvlogOptions, Record, Recovered, record_blocks, recover,
};

const VOLUMES: u64 = 3;
const AREA_BLOCKS: u64 = 160;

/// What a root record holds of the log, and the record that each volume is up to.
#[derive(Clone)]
struct Root {
    position: LogPosition,
    upto: BTreeMap<u64, Lsn>,
}

/// What must be true, beside the log.
struct World {
    root: Option<Root>,
    appended: BTreeMap<Lsn, (Record, HalfToken)>,
    acknowledged: BTreeMap<Lsn, ()>,
    last: BTreeMap<u64, Lsn>,
    half: BTreeMap<u64, HalfToken>,
    commits: u64,
}

type Shared = Arc<Mutex<World>>;

/// Clients and storage manager, until the power is cut.
async fn live(sim_world: cairn_sys::World, log: Arc<Nvlog>, world: Shared, seed: u64) {
    let first = log.begin().await.unwrap();
    for volume in 1..=VOLUMES {
        world.lock().unwrap().half.insert(volume, first);
    }
    for client in 0..5 {
        let task = client_task(sim_world.clone(), log.clone(), world.clone(), seed + client);
        sim_world.spawn.spawn("client", Box::pin(task));
    }
    storage_manager(&sim_world, &log, &world).await;
}

async fn client_task(seams: cairn_sys::World, log: Arc<Nvlog>, world: Shared, seed: u64) {
    let mut rng = Rng::new(seed);
    loop {
        let payload = if rng.one_in(3) { rng.index(9) } else { 0 };
        let body_max = if rng.one_in(10) { 9000 } else { 200 };
        let body = rng.index(body_max);
        let cost = record_blocks(body, payload);
        let Ok(mut reservation) = log.reserve_or_wait(cost).await else { return };
        if rng.one_in(4) {
            seams.clock.sleep(Duration::from_micros(rng.below(700))).await;
        }
        let volume = 1 + rng.below(VOLUMES);
        let record = record(volume, rng.next_u64(), body, payload);
        let lsn = {
            // The volume's lock: which half it is in and the append belong together.
            let mut world = world.lock().unwrap();
            let half = world.half[&volume];
            let lsn = log.append(half, &mut reservation, record.clone());
            assert_eq!(world.appended.insert(lsn, (record, half)).map(|_| ()), None);
            world.last.insert(volume, lsn);
            lsn
        };
        drop(reservation);
        if rng.one_in(8) {
            continue;
        }
        if log.durable(lsn).await.is_err() {
            return;
        }
        world.lock().unwrap().acknowledged.insert(lsn, ());
    }
}

async fn storage_manager(seams: &cairn_sys::World, log: &Nvlog, world: &Shared) {
    loop {
        if log.wants_switch().await.is_err() {
            return;
        }
        let old = log.current();
        let Ok(new) = log.switch_half() else { return };
        let mut upto = BTreeMap::new();
        for volume in 1..=VOLUMES {
            seams.clock.sleep(Duration::from_micros(seams.entropy.next_u64() % 900)).await;
            let mut world = world.lock().unwrap();
            world.half.insert(volume, new);
            upto.insert(volume, world.last[&volume]);
        }
        log.close_half(old);
        seams.clock.sleep(Duration::from_micros(seams.entropy.next_u64() % 3000)).await;
        let Ok(position) = log.settle(old).await else { return };
        {
            let mut world = world.lock().unwrap();
            world.root = Some(Root { position, upto });
            world.commits += 1;
        }
        log.release_half(old);
    }
}

/// What was recovered is a prefix of what was appended and holds all that was acknowledged.
fn judge(world: &World, recovered: &Recovered) {
    let root = world.root.as_ref().unwrap();
    let upto = |record: &Record| root.upto.get(&record.fsid.get()).copied().unwrap_or_default();
    let wanted: BTreeMap<Lsn, &Record> = recovered
        .records
        .iter()
        .filter(|r| r.lsn > upto(&r.record))
        .map(|r| (r.lsn, &r.record))
        .collect();
    for (lsn, record) in &wanted {
        let (appended, _) = &world.appended[lsn];
        assert!(same(record, appended), "{lsn:?} differs from what was appended");
    }
    let last = recovered.records.last().map_or(Lsn::new(0), |r| r.lsn);
    for (lsn, (record, _)) in &world.appended {
        let there = wanted.contains_key(lsn) || *lsn <= upto(record);
        assert!(there || !world.acknowledged.contains_key(lsn), "acknowledged {lsn:?} is lost");
        assert!(there || *lsn > last, "{lsn:?} is missing before {last:?}");
    }
    assert!(recovered.records.is_sorted_by(|a, b| a.lsn < b.lsn));
}

/// What else happens to the log besides the power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    /// An area dies while the log runs.
    CopyDies,
    /// As many areas as may be are lost with the power.
    CopyLost,
    /// One block of one area is rotten after the power cut.
    Rot,
}

/// What the log lies on.
#[derive(Clone, Copy, Debug)]
struct Shape {
    areas: u8,
    copies: usize,
    /// Payload from so many blocks on is spread.
    spread_from: Option<usize>,
}

const COPIED: Shape = Shape { areas: 3, copies: 2, spread_from: None };
const SPREAD: [Shape; 3] = [
    Shape { areas: 3, copies: 2, spread_from: Some(2) },
    Shape { areas: 6, copies: 2, spread_from: Some(4) },
    Shape { areas: 7, copies: 3, spread_from: Some(3) },
];

/// Areas that something is written to.
fn used(shape: Shape) -> u64 {
    if shape.spread_from.is_some() { shape.areas.into() } else { shape.copies as u64 }
}

/// Runs `lives` lives of a log with a power cut at the end of each.
fn run(shape: Shape, seed: u64, lives: u64, trouble: Trouble) -> (u64, usize) {
    let sim = SimWorld::new(seed);
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut areas = match shape.spread_from {
        Some(from) => Areas::spreading(&sim, shape.areas, AREA_BLOCKS, from),
        None => Areas::new(&sim, shape.areas, AREA_BLOCKS),
    };
    let mut world = World {
        root: None,
        appended: BTreeMap::new(),
        acknowledged: BTreeMap::new(),
        last: BTreeMap::new(),
        half: BTreeMap::new(),
        commits: 0,
    };
    for life in 0..lives {
        let position = world.root.as_ref().map(|root| root.position);
        let recovered = sim.block_on(recover(areas.clone(), AGGREGATE, position)).unwrap();
        if position.is_some() {
            judge(&world, &recovered);
        }
        let next_lsn = world.appended.keys().next_back().map_or(Lsn::new(1), |l| l.plus(1));
        let options = NvlogOptions {
            aggregate: AGGREGATE,
            copies: shape.copies,
            next_lsn: next_lsn.max(recovered.next_lsn()),
        };
        let log = Nvlog::open(&sim.world(), areas.clone(), options, &recovered).unwrap();
        // Replayed: the root holds everything that was recovered; the rest never happened.
        let before = Lsn::new(next_lsn.get() - 1);
        world.last = (1..=VOLUMES).map(|volume| (volume, before)).collect();
        world.root = Some(Root { position: log.position(), upto: world.last.clone() });
        world.acknowledged.clear();
        let shared = Arc::new(Mutex::new(world));
        sim.cut_power_at(1 + rng.below(400));
        if trouble == Trouble::CopyDies {
            let disk =
                areas.disks[&area(1 + u8::try_from(rng.below(used(shape))).unwrap())].clone();
            let (delay, seams) = (rng.below(20_000), sim.world());
            let clock = seams.clock.clone();
            let trouble = async move {
                clock.sleep(Duration::from_micros(delay)).await;
                disk.die();
            };
            seams.spawn.spawn("trouble", Box::pin(trouble));
        }
        let log = Arc::new(log);
        let end = sim.block_on_or_cut(live(sim.world(), log, shared.clone(), seed + life * 100));
        assert_eq!(end, None, "only the power cut ends a life");
        world = Arc::into_inner(shared).unwrap().into_inner().unwrap();
        if trouble == Trouble::CopyDies {
            areas.disks.values().for_each(cairn_sim::SimDisk::revive);
        }
        areas = areas.reattached();
        let mut any = || area(1 + u8::try_from(rng.below(shape.areas.into())).unwrap());
        let one = any();
        match trouble {
            Trouble::None | Trouble::CopyDies => {}
            Trouble::CopyLost => {
                areas.take_out(one);
                (2..shape.copies).for_each(|_| areas.take_out(any()));
            }
            Trouble::Rot => areas.disks[&one].rot_block(Dbn::new(rng.below(AREA_BLOCKS))),
        }
    }
    let position = world.root.as_ref().map(|root| root.position).unwrap();
    let recovered = recover_now(&sim, &areas, position).unwrap();
    judge(&world, &recovered);
    (world.commits, world.appended.len())
}

#[test]
fn power_cuts_lose_nothing_that_was_acknowledged() {
    let (mut commits, mut records) = (0, 0);
    for seed in 0..40 {
        let (c, r) = run(COPIED, seed, 3, Trouble::None);
        (commits, records) = (commits + c, records + r);
    }
    assert!(commits > 100, "halves were switched ({commits} times)");
    assert!(records > 5000, "records were appended ({records})");
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn histories_survive(
        seed: u64,
        shape in prop_oneof![Just(COPIED), Just(SPREAD[0]), Just(SPREAD[1]), Just(SPREAD[2])],
        trouble in prop_oneof![
            Just(Trouble::None),
            Just(Trouble::CopyDies),
            Just(Trouble::CopyLost),
            Just(Trouble::Rot),
        ],
    ) {
        run(shape, seed, 3, trouble);
    }
}
