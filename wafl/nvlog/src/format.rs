//! Batches on disk: header, packed record descriptors, payload blocks.
//!
//! Layer: inside `cairn-wafl-nvlog`; pure. Described byte by byte in `docs/formats-nvlog.md`.
//! Decoding checks every number against what was read and never panics.

use cairn_raid_api::{SPREAD_DATA_MAX, SPREAD_PARITY_MAX};
use cairn_sys::{Block, BlockMut, mutant};
use cairn_units::{AggregateUuid, BLOCK_BYTES, Crc, Fsid, Lsn};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{
    BATCH_BLOCKS_MAX, BATCH_RECORDS_MAX, LogBlock, RECORD_BODY_BYTES_MAX,
    RECORD_PAYLOAD_BLOCKS_MAX, Record, RecordKind, RecoveredRecord,
};

const MAGIC: [u8; 4] = *b"CNVL";
/// Version 2 knows payload that is spread.
const VERSION: U16 = U16::new(2);
/// Without it; what is reserved there is not looked at.
const VERSION_COPIES: U16 = U16::new(1);
/// The successor of this half is open.
const FLAG_SUCCESSOR: u16 = 1;
/// The other half has a batch in the same round.
const FLAG_PEER: u16 = 2;
const FLAGS: u16 = FLAG_SUCCESSOR | FLAG_PEER;
const CRC_BYTES: usize = 4;
const RECORD_ALIGN: usize = 8;

/// Start of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct BatchHeaderV1 {
    magic: [u8; 4],
    version: U16,
    flags: U16,
    aggregate: [u8; 16],
    epoch: U64,
    half: U64,
    round: U64,
    other_half: U64,
    batch: U32,
    other_batches: U32,
    at: U32,
    blocks: U32,
    records: U32,
    descriptor_bytes: U32,
    copies: U32,
    descriptor_crc: U32,
    spread_data: u8,
    spread_parity: u8,
    column: u8,
    reserved: u8,
    header_crc: U32,
}
const _: () = assert!(size_of::<BatchHeaderV1>() == HEADER_BYTES);
const HEADER_BYTES: usize = 96;

/// Start of a record's descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct RecordHeaderV1 {
    lsn: U64,
    fsid: U64,
    kind: U16,
    reserved: U16,
    body_bytes: U32,
    payload_blocks: U32,
    reserved_b: U32,
}
const _: () = assert!(size_of::<RecordHeaderV1>() == RECORD_HEADER_BYTES);
const RECORD_HEADER_BYTES: usize = 32;

const _: () = assert!(
    record_bytes(RECORD_BODY_BYTES_MAX, RECORD_PAYLOAD_BLOCKS_MAX).div_ceil(BLOCK_BYTES)
        + 1
        + RECORD_PAYLOAD_BLOCKS_MAX
        <= BATCH_BLOCKS_MAX
);

/// Bytes of a record's descriptor.
pub(crate) const fn record_bytes(body_bytes: usize, payload_blocks: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_blocks * CRC_BYTES + body_bytes).next_multiple_of(RECORD_ALIGN)
}

/// Blocks of a batch whose records have these descriptor bytes and payload blocks together.
pub(crate) const fn batch_blocks(descriptor_bytes: usize, payload_blocks: usize) -> u64 {
    ((HEADER_BYTES + descriptor_bytes).div_ceil(BLOCK_BYTES) + payload_blocks) as u64
}

/// Which log a batch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogId {
    pub(crate) aggregate: AggregateUuid,
    pub(crate) epoch: u64,
}

/// What a batch's header says, apart from sizes and checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHead {
    pub(crate) half: u64,
    /// Number in its half, from 0.
    pub(crate) batch: u32,
    /// First block, counted from the start of the half.
    pub(crate) at: u32,
    pub(crate) round: u64,
    /// The successor was opened.
    pub(crate) successor: bool,
    /// Copies that the batch is written to.
    pub(crate) copies: u32,
    /// The other half, if one is in use.
    pub(crate) other: Option<OtherHalf>,
    /// The columns that its payload is spread over; in an opening batch those of the half, each of which has one.
    pub(crate) spread: Option<Columns>,
    /// In an opening batch of a half with columns: which one this area is.
    pub(crate) column: Option<u8>,
}

impl BatchHead {
    /// Whether the area in which this opening batch lies has the chain: the first columns do.
    pub(crate) fn opens_copy(&self) -> bool {
        self.column.is_none_or(|column| u32::from(column) < self.copies)
            || mutant("log-columns-open-a-half")
    }
}

/// How payload is spread: row by row over the data columns' areas, each of which has one run of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    /// Data columns, at least 1.
    pub(crate) data: u8,
    /// Parity columns behind them.
    pub(crate) parity: u8,
}

impl Columns {
    /// So many; `None` when a spread never has.
    pub(crate) fn new(data: u8, parity: u8) -> Option<Self> {
        let right = (1..=SPREAD_DATA_MAX).contains(&usize::from(data))
            && (1..=SPREAD_PARITY_MAX).contains(&usize::from(parity));
        right.then_some(Self { data, parity })
    }
    /// All of them.
    pub(crate) fn count(self) -> usize {
        usize::from(self.data) + usize::from(self.parity)
    }
    /// Blocks that each of them has of so much payload, the last ones less.
    pub(crate) fn rows(self, payload_blocks: usize) -> usize {
        payload_blocks.div_ceil(usize::from(self.data))
    }
    /// The run of data column `column` in so much payload.
    pub(crate) fn run(self, column: usize, payload_blocks: usize) -> core::ops::Range<usize> {
        let rows = self.rows(payload_blocks);
        let at = |column: usize| (column * rows).min(payload_blocks);
        at(column)..at(column + 1)
    }
}

/// What a batch says of the other half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OtherHalf {
    pub(crate) half: u64,
    /// Batches that were stable there when the round began.
    pub(crate) batches: u32,
    /// It has one in the same round.
    pub(crate) peer: bool,
}

/// The blocks of a batch.
pub(crate) struct Encoded {
    pub(crate) descriptors: Vec<Block>,
    /// By reference.
    pub(crate) payload: Vec<Block>,
}

/// The blocks of a batch.
pub(crate) fn encode(log: LogId, head: &BatchHead, records: &[(Lsn, Record)]) -> Encoded {
    let mut bytes = vec![0; HEADER_BYTES];
    let mut payload = Vec::new();
    for (lsn, record) in records {
        let start = bytes.len();
        let header = RecordHeaderV1 {
            lsn: lsn.get().into(),
            fsid: record.fsid.get().into(),
            kind: record.kind.get().into(),
            reserved: U16::ZERO,
            body_bytes: count(record.body.len()),
            payload_blocks: count(record.payload.len()),
            reserved_b: U32::ZERO,
        };
        bytes.extend_from_slice(header.as_bytes());
        for block in &record.payload {
            bytes.extend_from_slice(&block.crc.get().to_le_bytes());
            payload.push(block.data.clone());
        }
        bytes.extend_from_slice(&record.body);
        bytes.resize(start + record_bytes(record.body.len(), record.payload.len()), 0);
    }
    let descriptor_blocks = bytes.len().div_ceil(BLOCK_BYTES);
    let mut flags = if head.successor { FLAG_SUCCESSOR } else { 0 };
    if head.other.is_some_and(|other| other.peer) {
        flags |= FLAG_PEER;
    }
    let mut header = BatchHeaderV1 {
        magic: MAGIC,
        version: VERSION,
        flags: flags.into(),
        aggregate: log.aggregate.bytes(),
        epoch: log.epoch.into(),
        half: head.half.into(),
        round: head.round.into(),
        other_half: head.other.map_or(0, |other| other.half).into(),
        batch: head.batch.into(),
        other_batches: head.other.map_or(0, |other| other.batches).into(),
        at: head.at.into(),
        blocks: count(
            descriptor_blocks + head.spread.map_or(payload.len(), |s| s.rows(payload.len())),
        ),
        records: count(records.len()),
        descriptor_bytes: count(bytes.len()),
        copies: head.copies.into(),
        descriptor_crc: crc32fast::hash(&bytes[HEADER_BYTES..]).into(),
        spread_data: head.spread.map_or(0, |spread| spread.data),
        spread_parity: head.spread.map_or(0, |spread| spread.parity),
        column: head.column.map_or(0, |column| column + 1),
        reserved: 0,
        header_crc: U32::ZERO,
    };
    header.header_crc = crc32fast::hash(header.as_bytes()).into();
    bytes[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    let descriptors = bytes.chunks(BLOCK_BYTES).map(|chunk| BlockMut::copy_of(chunk).freeze());
    Encoded { descriptors: descriptors.collect(), payload }
}

/// A batch header that was checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoded {
    pub(crate) head: BatchHead,
    pub(crate) blocks: usize,
    pub(crate) descriptor_blocks: usize,
    records: usize,
    descriptor_bytes: usize,
    descriptor_crc: u32,
}

/// Checks whether `block` begins a batch of `log`; whether of the right half, the caller looks.
pub(crate) fn decode_header(log: LogId, block: &Block) -> Option<Decoded> {
    if block[..MAGIC.len()] != MAGIC {
        return None;
    }
    let (mut header, _) = BatchHeaderV1::read_from_prefix(&block[..]).ok()?;
    let crc = header.header_crc.get();
    header.header_crc = U32::ZERO;
    if crc32fast::hash(header.as_bytes()) != crc
        || ![VERSION, VERSION_COPIES].contains(&header.version)
        || header.aggregate != log.aggregate.bytes()
        || (header.epoch.get() != log.epoch && !mutant("log-epoch-ignored"))
        || header.flags.get() & !FLAGS != 0
    {
        return None;
    }
    let blocks = usize::try_from(header.blocks.get()).ok()?;
    let records = usize::try_from(header.records.get()).ok()?;
    let descriptor_bytes = usize::try_from(header.descriptor_bytes.get()).ok()?;
    let descriptor_blocks = descriptor_bytes.div_ceil(BLOCK_BYTES);
    if blocks > BATCH_BLOCKS_MAX
        || records > BATCH_RECORDS_MAX
        || descriptor_bytes < HEADER_BYTES
        || descriptor_blocks > blocks
    {
        return None;
    }
    let other = match header.other_half.get() {
        0 => None,
        half => Some(OtherHalf {
            half,
            batches: header.other_batches.get(),
            peer: header.flags.get() & FLAG_PEER != 0,
        }),
    };
    let (mut spread, mut column) = (None, None);
    if header.version == VERSION && header.spread_data > 0 {
        spread = Some(Columns::new(header.spread_data, header.spread_parity)?);
        column = header.column.checked_sub(1);
    }
    let head = BatchHead {
        half: header.half.get(),
        batch: header.batch.get(),
        at: header.at.get(),
        round: header.round.get(),
        successor: header.flags.get() & FLAG_SUCCESSOR != 0,
        copies: header.copies.get(),
        other,
        spread,
        column,
    };
    let descriptor_crc = header.descriptor_crc.get();
    Some(Decoded { head, blocks, descriptor_blocks, records, descriptor_bytes, descriptor_crc })
}

/// A record whose payload is not fetched yet.
#[derive(Clone, Debug)]
pub(crate) struct Descriptor {
    lsn: Lsn,
    fsid: Fsid,
    kind: RecordKind,
    body: Vec<u8>,
    pub(crate) payload: Vec<Crc>,
}

impl Descriptor {
    /// Puts record and payload together.
    pub(crate) fn with_payload(self, blocks: Vec<Block>) -> RecoveredRecord {
        let payload = blocks
            .into_iter()
            .zip(self.payload)
            .map(|(data, crc)| LogBlock { data, crc })
            .collect();
        let Self { lsn, fsid, kind, body, .. } = self;
        RecoveredRecord { lsn, record: Record { fsid, kind, body, payload } }
    }
}

/// Reads the descriptors of a batch from its descriptor blocks; `None` when they are damaged.
pub(crate) fn decode_descriptors(batch: &Decoded, blocks: &[Block]) -> Option<Vec<Descriptor>> {
    let mut bytes = Vec::with_capacity(blocks.len() * BLOCK_BYTES);
    for block in blocks.get(..batch.descriptor_blocks)? {
        bytes.extend_from_slice(&block[..]);
    }
    let mut rest = bytes.get(HEADER_BYTES..batch.descriptor_bytes)?;
    if crc32fast::hash(rest) != batch.descriptor_crc {
        return None;
    }
    let mut out = Vec::with_capacity(batch.records);
    let mut payload_blocks = 0;
    for _ in 0..batch.records {
        let (header, after) = RecordHeaderV1::ref_from_prefix(rest).ok()?;
        let body_bytes = usize::try_from(header.body_bytes.get()).ok()?;
        let payload = usize::try_from(header.payload_blocks.get()).ok()?;
        if body_bytes > RECORD_BODY_BYTES_MAX || payload > RECORD_PAYLOAD_BLOCKS_MAX {
            return None;
        }
        let (crcs, after) = after.split_at_checked(payload * CRC_BYTES)?;
        let body = after.get(..body_bytes)?.to_vec();
        let (crcs, _) = crcs.as_chunks::<CRC_BYTES>();
        out.push(Descriptor {
            lsn: Lsn::new(header.lsn.get()),
            fsid: Fsid::new(header.fsid.get()),
            kind: RecordKind::new(header.kind.get()),
            body,
            payload: crcs.iter().map(|crc| Crc::new(u32::from_le_bytes(*crc))).collect(),
        });
        payload_blocks += payload;
        rest = rest.get(record_bytes(body_bytes, payload)..)?;
    }
    let taken = batch.head.spread.map_or(payload_blocks, |spread| spread.rows(payload_blocks));
    (rest.is_empty() && taken == batch.blocks - batch.descriptor_blocks).then_some(out)
}

/// A count that the limits of a batch keep small.
fn count(number: usize) -> U32 {
    match u32::try_from(number) {
        Ok(number) => U32::new(number),
        Err(_) => unreachable!("a batch is bounded"),
    }
}
