//! The halves of the NV log: clients append while the storage manager switches, closes, settles
//! and releases halves; whatever was acknowledged at the moment of a power cut is recovered, each
//! record once and nothing behind a gap. Nobody waits for ever.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard};

use cairn_interleave::{Ground, explore};
use cairn_raid_api::{LogAreaError, LogAreaId, LogStore, Spread};
use cairn_sys::lock::{Mutex, Rank};
use cairn_sys::{Block, BlockMut, BoxFuture};
use cairn_units::{AggregateUuid, Blocks, DiskUuid, Fsid, Lsn};
use cairn_wafl_nvlog::{
    HalfToken, LogBlock, LogPosition, Nvlog, NvlogOptions, Record, RecordKind, Recovered,
    record_blocks, recover,
};
use shuttle::future::{spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};

const AGGREGATE: AggregateUuid = AggregateUuid::new([0xa6; 16]);
/// Two halves that hold a handful of records each.
const AREA_BLOCKS: u64 = 44;
const CLIENTS: u64 = 3;
const RECORDS: u64 = 7;
const VOLUMES: usize = 2;

type Contents = BTreeMap<(LogAreaId, u64), Block>;

/// Two log areas in memory; each write takes effect whole, at once or at its own time.
#[derive(Clone, Default)]
struct Areas {
    contents: Arc<StdMutex<Contents>>,
    /// How likely a write is done at its own time: one to a memory device is done at once, in the
    /// thread of who asks.
    late: f64,
}

fn lock<T>(mutex: &StdMutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl LogStore for Areas {
    fn area_blocks(&self) -> Blocks {
        Blocks::new(AREA_BLOCKS)
    }
    fn areas(&self) -> Vec<LogAreaId> {
        [1, 2].map(|n| LogAreaId(DiskUuid::new([n; 16]))).to_vec()
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
        let contents = self.contents.clone();
        Box::pin(async move {
            let contents = lock(&contents);
            let block = |n| contents.get(&(area, n)).cloned().unwrap_or_else(Block::zero);
            Ok((at..at + count as u64).map(block).collect())
        })
    }
    fn write_stable(
        &self,
        area: LogAreaId,
        at: u64,
        blocks: Vec<Block>,
    ) -> BoxFuture<Result<(), LogAreaError>> {
        let contents = self.contents.clone();
        let late = self.late;
        Box::pin(async move {
            if thread_rng().gen_bool(late) {
                yield_now().await;
            }
            let copies = blocks.iter().map(|b| BlockMut::copy_of(&b[..]).freeze());
            let written = (at..).zip(copies).map(|(n, b)| ((area, n), b));
            lock(&contents).extend(written);
            Ok(())
        })
    }
}

/// What stands in the root, and what was answered.
#[derive(Clone)]
struct Truth {
    position: LogPosition,
    /// Records that the root contains, by volume.
    upto: [Lsn; VOLUMES],
    /// Volume of every record.
    appended: BTreeMap<Lsn, usize>,
    acknowledged: BTreeMap<Lsn, (usize, Record)>,
}

struct VolumeState {
    half: HalfToken,
    last: Lsn,
}

struct Rig {
    ground: Ground,
    log: Nvlog,
    areas: Areas,
    volumes: Vec<Mutex<VolumeState>>,
    truth: StdMutex<Truth>,
}

fn record(volume: usize, seed: u64) -> Record {
    let payload = LogBlock::new(BlockMut::copy_of(&seed.to_le_bytes()).freeze());
    Record {
        fsid: Fsid::new(volume as u64),
        kind: RecordKind::new(7),
        body: seed.to_be_bytes().to_vec(),
        payload: vec![payload; 1 + usize::from(seed.is_multiple_of(3))],
    }
}

fn same(a: &Record, b: &Record) -> bool {
    let payload = a.payload.iter().zip(&b.payload).all(|(a, b)| a.data == b.data);
    (a.fsid, &a.body, a.payload.len()) == (b.fsid, &b.body, b.payload.len()) && payload
}

impl Rig {
    async fn new() -> Arc<Self> {
        let late = [1.0, 0.5, 0.1][thread_rng().gen_range(0..3)];
        let (ground, areas) = (Ground::default(), Areas { late, ..Areas::default() });
        let store: Arc<dyn LogStore> = Arc::new(areas.clone());
        let nothing = recover(store.clone(), AGGREGATE, None).await.expect("an empty log");
        let options = NvlogOptions { aggregate: AGGREGATE, copies: 2, next_lsn: Lsn::new(1) };
        let log = Nvlog::open(&ground.world(), store, options, &nothing).expect("it opens");
        let mut truth = Truth {
            position: log.position(),
            upto: [Lsn::new(0); VOLUMES],
            appended: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
        };
        let half = log.begin().await.expect("it begins");
        truth.position = log.position();
        let volume = || Mutex::new(Rank::Volume, VolumeState { half, last: Lsn::new(0) });
        let volumes = (0..VOLUMES).map(|_| volume()).collect();
        Arc::new(Self { ground, log, areas, volumes, truth: StdMutex::new(truth) })
    }

    async fn client(self: Arc<Self>, n: u64) {
        for round in 0..RECORDS {
            let volume = usize::try_from((n + round) % VOLUMES as u64).expect("small");
            let record = record(volume, n * 1000 + round);
            let cost = record_blocks(record.body.len(), record.payload.len());
            let mut room = self.log.reserve_or_wait(cost).await.expect("the log works");
            let lsn = {
                let mut st = self.volumes[volume].lock();
                let lsn = self.log.append(st.half, &mut room, record.clone());
                assert!(lsn > st.last, "numbers grow in a volume");
                st.last = lsn;
                lock(&self.truth).appended.insert(lsn, volume);
                lsn
            };
            drop(room);
            let mut first = pin!(self.log.durable(lsn));
            // Some waiters go away or are not looked at for a while, others wait in their place.
            let manner = thread_rng().gen_range(0..4);
            if manner < 2 {
                let looked = poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx))).await;
                if manner == 0 && looked.is_pending() {
                    first.set(self.log.durable(lsn));
                }
                if looked.is_pending() {
                    self.log.durable(lsn).await.expect("the log works");
                    first.await.expect("the log works");
                }
            } else {
                first.await.expect("the log works");
            }
            lock(&self.truth).acknowledged.insert(lsn, (volume, record));
        }
    }

    /// The consistency points, as far as the log sees them.
    async fn points(self: Arc<Self>) {
        while self.log.wants_switch().await.is_ok() {
            let old = self.log.current();
            // The end of the test stops the log.
            let Ok(new) = self.log.switch_half() else { return };
            let mut upto = [Lsn::new(0); VOLUMES];
            for (volume, upto) in self.volumes.iter().zip(&mut upto) {
                let mut st = volume.lock();
                st.half = new;
                *upto = st.last;
            }
            self.log.close_half(old);
            let Ok(position) = self.log.settle(old).await else { return };
            yield_now().await;
            {
                let mut truth = lock(&self.truth);
                truth.position = position;
                truth.upto = upto;
            }
            yield_now().await;
            self.log.release_half(old);
        }
    }

    fn cut(&self) -> (Contents, Truth) {
        (lock(&self.areas.contents).clone(), lock(&self.truth).clone())
    }
}

async fn examine((contents, truth): (Contents, Truth)) {
    let areas = Arc::new(Areas { contents: Arc::new(StdMutex::new(contents)), late: 1.0 });
    let recovered = recover(areas, AGGREGATE, Some(truth.position)).await;
    let Recovered { records, .. } = recovered.expect("the log is whole");
    let mut found: BTreeMap<Lsn, &Record> = BTreeMap::new();
    for record in &records {
        assert!(found.last_key_value().is_none_or(|(last, _)| *last < record.lsn), "in order");
        found.insert(record.lsn, &record.record);
    }
    if let Some((last, _)) = found.last_key_value() {
        for (lsn, volume) in truth.appended.range(..last) {
            let there = found.contains_key(lsn) || *lsn <= truth.upto[*volume];
            assert!(there, "{last} was recovered from behind {lsn}, which was not");
        }
    }
    for (lsn, (volume, told)) in &truth.acknowledged {
        if *lsn > truth.upto[*volume] {
            let there = found.get(lsn).is_some_and(|there| same(there, told));
            assert!(there, "record {lsn} was acknowledged and is gone");
        }
    }
}

#[test]
fn what_was_acknowledged_is_recovered_across_switches_and_nobody_waits_for_ever() {
    explore(10_000, || async {
        let rig = Rig::new().await;
        let points = spawn(rig.clone().points());
        // With one client alone, nobody else's change wakes it.
        let count = thread_rng().gen_range(1..=CLIENTS);
        let clients: Vec<_> = (0..count).map(|n| spawn(rig.clone().client(n))).collect();
        let cutter = spawn({
            let rig = rig.clone();
            async move {
                for _ in 0..thread_rng().gen_range(0..150) {
                    yield_now().await;
                }
                rig.cut()
            }
        });
        for client in clients {
            client.await.expect("it ends");
        }
        examine(cutter.await.expect("it ends")).await;
        examine(rig.cut()).await;
        rig.log.stop();
        points.await.expect("it ends");
        rig.ground.settle().await;
        let truth = lock(&rig.truth);
        assert_eq!(truth.acknowledged.len() as u64, count * RECORDS);
    });
}
