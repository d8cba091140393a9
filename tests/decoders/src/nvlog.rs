//! Recovery of the NV log from areas that hold anything.
//!
//! Layer: tests. The input changes a real log (two halves, several rounds, two copies, large payload
//! spread over five areas) in a few
//! places, or is the areas themselves; the checksums of what looks like a batch may be made right
//! again. Recovery ends with an error or with records; what was only damaged, not forged, gives a
//! prefix of what was appended, and all of it while only one area was.

use std::sync::{Arc, LazyLock, Mutex};

use cairn_raid_api::{LogAreaError, LogAreaId, LogStore, Spread};
use cairn_raid_group::log_spread;
use cairn_sim::SimWorld;
use cairn_sys::{Block, BlockMut, BoxFuture};
use cairn_units::{AggregateUuid, BLOCK_BYTES, Blocks, DiskUuid, Fsid, Lsn};
use cairn_wafl_nvlog::{
    LogBlock, LogPosition, Nvlog, NvlogOptions, Record, RecordKind, record_blocks, recover,
};

use crate::patch::{describe, patches};

const AGGREGATE: AggregateUuid = AggregateUuid::new([0xa6; 16]);
/// Blocks of one area: two halves.
const AREA_BLOCKS: usize = 64;
const COPIES: usize = 2;
/// Areas, all of them columns of what is spread.
const AREAS: usize = 5;
/// Blocks of payload from which it is.
const SPREAD_FROM_BLOCKS: usize = 2;
/// The areas are the input itself.
const RAW: u8 = 1;
/// Batches get their checksums and their names.
const SEALED: u8 = 2;
/// The position comes from the input.
const POSITION: u8 = 4;

/// Log areas in memory.
struct Areas(Mutex<Vec<Vec<Block>>>);

fn area(n: usize) -> LogAreaId {
    LogAreaId(DiskUuid::new([u8::try_from(n).unwrap_or(0); 16]))
}

impl Areas {
    fn new(areas: Vec<Vec<Block>>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(areas)))
    }
    fn with<T>(
        &self,
        area: LogAreaId,
        work: impl FnOnce(&mut Vec<Block>) -> T,
    ) -> Result<T, LogAreaError> {
        let mut areas = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let at = usize::from(area.0.bytes()[0]);
        areas.get_mut(at).map(work).ok_or(LogAreaError::Gone(area))
    }
}

impl LogStore for Areas {
    fn area_blocks(&self) -> Blocks {
        Blocks::new(AREA_BLOCKS as u64)
    }
    fn areas(&self) -> Vec<LogAreaId> {
        (0..AREAS).map(area).collect()
    }
    fn choose(&self, copies: usize) -> Vec<LogAreaId> {
        self.areas().into_iter().take(copies).collect()
    }
    fn spread(&self, copies: usize) -> Option<Spread> {
        let parity = copies.checked_sub(1)?;
        Some(Spread { areas: self.areas(), parity, from_blocks: SPREAD_FROM_BLOCKS })
    }
    fn spread_parity(&self, data: &[&[Block]], parity: usize) -> Vec<Vec<Block>> {
        log_spread::parity(data, parity)
    }
    fn spread_restore(&self, row: &mut [Option<Block>], parity: usize) -> bool {
        log_spread::restore(row, parity)
    }
    fn loss_after(&self, _seen: u64) -> BoxFuture<u64> {
        // No area is ever taken away.
        Box::pin(core::future::pending())
    }
    fn read(
        &self,
        area: LogAreaId,
        at: u64,
        count: usize,
    ) -> BoxFuture<Result<Vec<Block>, LogAreaError>> {
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        assert!(count <= AREA_BLOCKS, "no more is asked for than the area holds");
        let found = self.with(area, |blocks| {
            blocks.get(from..from.saturating_add(count)).map(<[Block]>::to_vec)
        });
        let found = found.and_then(|f| f.ok_or(LogAreaError::OutOfRange));
        Box::pin(async move { found })
    }
    fn write_stable(
        &self,
        area: LogAreaId,
        at: u64,
        blocks: Vec<Block>,
    ) -> BoxFuture<Result<(), LogAreaError>> {
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let done = self.with(area, |to| {
            let to = to.get_mut(from..from + blocks.len());
            to.map(|to| to.clone_from_slice(&blocks)).ok_or(LogAreaError::OutOfRange)
        });
        let done = done.and_then(|d| d);
        Box::pin(async move { done })
    }
}

/// A real log.
struct Base {
    areas: Vec<Vec<Block>>,
    position: LogPosition,
    records: Vec<(Lsn, Record)>,
}

fn record(seed: u64, body_bytes: usize, payload: u64) -> Record {
    let block = |n| LogBlock::new(cairn_sim::conformance::pattern(seed + n));
    Record {
        fsid: Fsid::new(1 + seed % 2),
        kind: RecordKind::new(7),
        body: seed.to_le_bytes().into_iter().cycle().take(body_bytes).collect(),
        payload: (0..payload).map(block).collect(),
    }
}

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let sim = SimWorld::new(3);
    let areas = Areas::new(vec![vec![Block::zero(); AREA_BLOCKS]; AREAS]);
    let (position, records) = sim.block_on(async {
        let nothing = recover(areas.clone(), AGGREGATE, None).await;
        let nothing = nothing.expect("an empty log is recovered");
        let options = NvlogOptions { aggregate: AGGREGATE, copies: COPIES, next_lsn: Lsn::new(1) };
        let log = Nvlog::open(&sim.world(), areas.clone(), options, &nothing);
        let log = log.expect("the areas are large enough");
        let old = log.begin().await.expect("the log begins");
        let position = log.position();
        let mut records = Vec::new();
        let mut append = async |half, record: Record| {
            let blocks = record_blocks(record.body.len(), record.payload.len());
            let mut room = log.reserve_or_wait(blocks).await.expect("there is room");
            let lsn = log.append(half, &mut room, record.clone());
            log.durable(lsn).await.expect("the areas take it");
            records.push((lsn, record));
        };
        for n in 0..4u64 {
            append(old, record(10 + n, 40 + usize::try_from(n).unwrap_or(0) * 900, n % 3)).await;
        }
        let new = log.switch_half().expect("the other half is free");
        for (n, half) in [(0u64, old), (1, new), (2, old), (3, new), (4, new)] {
            append(half, record(20 + n, 100, (n % 2) * 6)).await;
        }
        (position, records)
    });
    let areas = areas.0.lock().unwrap_or_else(|e| e.into_inner()).clone();
    Base { areas, position, records }
});

/// See the module.
pub fn recover_damaged(bytes: &[u8]) {
    let Some((flags, rest)) = bytes.split_first() else { return };
    let base = &*BASE;
    let (mut position, mut rest) = (base.position, rest);
    if flags & POSITION != 0
        && let Some((head, after)) = rest.split_first_chunk::<{ LogPosition::BYTES }>()
        && let Some(found) = LogPosition::from_bytes(head)
    {
        assert_eq!(&found.to_bytes(), head, "a position is kept");
        (position, rest) = (found, after);
    }
    let mut areas = base.areas.clone();
    let mut touched = [false; AREAS];
    if flags & RAW != 0 {
        let blocks = areas.iter_mut().flatten();
        for (block, chunk) in blocks.zip(rest.chunks(BLOCK_BYTES)) {
            *block = BlockMut::copy_of(chunk).freeze();
        }
    } else {
        for patch in patches(rest) {
            let at = patch.place % (AREAS * AREA_BLOCKS);
            touched[at / AREA_BLOCKS] = true;
            patch.apply(&mut areas[at / AREA_BLOCKS][at % AREA_BLOCKS]);
        }
    }
    if flags & SEALED != 0 {
        areas.iter_mut().for_each(|blocks| seal(blocks, position));
    }
    let found = SimWorld::new(1).block_on(recover(Areas::new(areas), AGGREGATE, Some(position)));
    let one = touched.iter().filter(|t| **t).count() <= 1;
    let whole = flags & (RAW | SEALED | POSITION) == 0;
    let Ok(found) = found else {
        assert!(!whole || !one, "only one area was touched");
        return;
    };
    assert!(found.next_lsn() > Lsn::new(0));
    assert!(found.records.windows(2).all(|w| w[0].lsn < w[1].lsn), "records are in order");
    let bytes = |r: &Record| r.body.len() + r.payload.len() * BLOCK_BYTES;
    let kept: usize = found.records.iter().map(|r| bytes(&r.record)).sum();
    assert!(kept <= AREAS * AREA_BLOCKS * BLOCK_BYTES, "{kept} bytes of records");
    if whole {
        for ((lsn, expected), found) in base.records.iter().zip(&found.records) {
            let (a, b) = (expected, &found.record);
            assert_eq!((*lsn, a.fsid, &a.body), (found.lsn, b.fsid, &b.body), "a prefix");
            let blocks = |r: &Record| r.payload.iter().map(|p| p.data.clone()).collect::<Vec<_>>();
            assert!(blocks(a) == blocks(b), "a prefix");
        }
        assert!(found.records.len() <= base.records.len());
        let all = found.records.len() == base.records.len();
        assert!(all || !one, "only one area was touched, and records are missing");
    }
}

/// Makes everything that begins like a batch one of this log, with good checksums
/// (docs/formats-nvlog.md).
fn seal(blocks: &mut [Block], position: LogPosition) {
    const HEADER_BYTES: usize = 96;
    const DESCRIPTOR_BYTES_AT: usize = 76;
    const DESCRIPTOR_CRC_AT: usize = 84;
    const HEADER_CRC_AT: usize = 92;
    for at in 0..blocks.len() {
        if blocks[at][..4] != *b"CNVL" {
            continue;
        }
        let mut head = blocks[at][..HEADER_BYTES].to_vec();
        let mut word = [0; 4];
        word.copy_from_slice(&head[DESCRIPTOR_BYTES_AT..DESCRIPTOR_BYTES_AT + 4]);
        let bytes = usize::try_from(u32::from_le_bytes(word)).unwrap_or(usize::MAX);
        let mut crc = crc32fast::Hasher::new();
        let mut left = bytes;
        for (n, block) in blocks[at..].iter().enumerate() {
            let here = &block[..left.min(BLOCK_BYTES)];
            crc.update(if n == 0 { here.get(HEADER_BYTES..).unwrap_or_default() } else { here });
            left -= here.len();
        }
        head[8..24].copy_from_slice(&AGGREGATE.bytes());
        head[24..32].copy_from_slice(&position.to_bytes()[..8]);
        head[DESCRIPTOR_CRC_AT..DESCRIPTOR_CRC_AT + 4]
            .copy_from_slice(&crc.finalize().to_le_bytes());
        head[HEADER_CRC_AT..].fill(0);
        let crc = crc32fast::hash(&head);
        head[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        blocks[at].make_mut()[..HEADER_BYTES].copy_from_slice(&head);
    }
}

/// Changes of headers with and without good checksums; one damaged copy; a position.
pub fn seeds() -> Vec<Vec<u8>> {
    let with = |flags: u8, rest: &[u8]| [&[flags], rest].concat();
    let position = BASE.position.to_bytes();
    let half = u16::try_from(AREA_BLOCKS / 2).unwrap_or(0);
    let copy = u16::try_from(AREA_BLOCKS).unwrap_or(0);
    let mut out = vec![
        with(0, &[]),
        with(0, &describe(half, 0, &[0; 8])),
        with(0, &[describe(half, 100, b"bad"), describe(half + copy, 100, b"bad")].concat()),
        with(POSITION, &position),
        with(RAW | SEALED, &BASE.areas[0][usize::from(half)][..512]),
    ];
    // Each number of a batch's header, forged.
    for offset in [6u16, 32, 40, 48, 56, 60, 64, 68, 72, 76, 80, 88, 90, 96, 104, 112, 116, 120] {
        for first in [0, half] {
            let forged = describe(first, offset, &[0xff, 0xff]);
            let both = [forged, describe(first + copy, offset, &[0xff, 0xff])].concat();
            out.push(with(SEALED, &both));
        }
    }
    out
}
