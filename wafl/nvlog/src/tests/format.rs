//! The stored form of batches and positions.

use cairn_sim::Rng;
use cairn_sys::{Block, BlockMut};
use cairn_units::Lsn;
use proptest::prelude::*;

use super::{AGGREGATE, record, same};
use crate::format::{
    BatchHead, Columns, LogId, OtherHalf, decode_descriptors, decode_header, encode,
};
use crate::{BATCH_BLOCKS_MAX, LogPosition, record_blocks};

const LOG: LogId = LogId { aggregate: AGGREGATE, epoch: 0x0123_4567_89ab_cdef };

fn head(successor: bool, peer: bool) -> BatchHead {
    let other = Some(OtherHalf { half: 6, batches: 12, peer });
    BatchHead {
        half: 5,
        batch: 3,
        at: 17,
        round: 40,
        successor,
        copies: 2,
        other,
        spread: None,
        column: None,
    }
}

proptest! {
    #[test]
    fn batches_read_back_as_written(
        shapes in prop::collection::vec((0usize..6000, 0usize..5), 0..20),
        successor: bool,
        peer: bool,
        flip: (u64, u64),
    ) {
        let records: Vec<_> = shapes
            .iter()
            .zip(1..)
            .map(|((body, payload), n)| (Lsn::new(n), record(n, n * 7, *body, *payload)))
            .collect();
        let encoded = encode(LOG, &head(successor, peer), &records);
        let mut blocks = [encoded.descriptors, encoded.payload].concat();
        let worst: u64 = shapes.iter().map(|(b, p)| record_blocks(*b, *p).get()).sum();
        prop_assert!(blocks.len() as u64 <= worst.max(1), "worst cases cover the batch");

        let decoded = decode_header(LOG, &blocks[0]).unwrap();
        prop_assert_eq!(decoded.head, head(successor, peer));
        prop_assert_eq!(decoded.blocks, blocks.len());
        let descriptors = decode_descriptors(&decoded, &blocks).unwrap();
        let mut payload = blocks[decoded.descriptor_blocks..].iter().cloned();
        for (descriptor, (lsn, record)) in descriptors.into_iter().zip(&records) {
            let count = descriptor.payload.len();
            let back = descriptor.with_payload(payload.by_ref().take(count).collect());
            prop_assert_eq!(back.lsn, *lsn);
            prop_assert!(same(&back.record, record));
        }
        prop_assert!(payload.next().is_none());

        let other = LogId { epoch: LOG.epoch ^ 1, ..LOG };
        prop_assert!(decode_header(other, &blocks[0]).is_none(), "another start");

        // One flipped bit in the descriptors is found.
        let bytes = 96 + shapes
            .iter()
            .map(|(body, payload)| crate::format::record_bytes(*body, *payload))
            .sum::<usize>();
        let at = usize::try_from(flip.0 % (bytes as u64)).unwrap();
        blocks[at / 4096].make_mut()[at % 4096] ^= 1 << (flip.1 % 8);
        let found = decode_header(LOG, &blocks[0])
            .and_then(|decoded| decode_descriptors(&decoded, &blocks));
        prop_assert!(found.is_none());
    }

    #[test]
    fn decoding_anything_never_panics(seed: u64, edits in 0usize..30) {
        let mut rng = Rng::new(seed);
        let records: Vec<_> = (1..6).map(|n| (Lsn::new(n), record(n, n, 50, 1))).collect();
        let encoded = encode(LOG, &head(false, true), &records);
        let mut blocks = [encoded.descriptors, encoded.payload].concat();
        let block = blocks[0].make_mut();
        for _ in 0..edits {
            block[rng.index(400)] = rng.next_u64().to_le_bytes()[0];
        }
        // With the checksums made right again, so that what lies behind them is reached.
        if rng.one_in(2) {
            let bytes = usize::try_from(u32::from_le_bytes(block[76..80].try_into().unwrap()));
            let bytes = bytes.unwrap().min(4096);
            if bytes >= 96 {
                let crc = crc32fast::hash(&block[96..bytes]);
                block[84..88].copy_from_slice(&crc.to_le_bytes());
            }
            block[92..96].fill(0);
            let crc = crc32fast::hash(&block[..96]);
            block[92..96].copy_from_slice(&crc.to_le_bytes());
        }
        if let Some(decoded) = decode_header(LOG, &blocks[0]) {
            prop_assert!(decoded.blocks <= BATCH_BLOCKS_MAX);
            let _ignored = decode_descriptors(&decoded, &blocks).map(|d| d.len());
            let _ignored = decode_descriptors(&decoded, &[]).map(|d| d.len());
        }
    }
}

#[test]
fn payload_is_written_by_reference() {
    let record = record(1, 1, 10, 3);
    let kept: Vec<Block> = record.payload.iter().map(|block| block.data.clone()).collect();
    let encoded = encode(LOG, &head(false, false), &[(Lsn::new(1), record)]);
    assert_eq!((encoded.descriptors.len(), encoded.payload.len()), (1, 3));
    assert!(encoded.payload.iter().zip(&kept).all(|(a, b)| a.same_memory(b)));
}

#[test]
fn positions_read_back_as_written() {
    for opened in [false, true] {
        let position = LogPosition { epoch: 7 << 40, half: 9, opened };
        assert_eq!(LogPosition::from_bytes(&position.to_bytes()), Some(position));
    }
    let mut bytes = LogPosition { epoch: 1, half: 2, opened: true }.to_bytes();
    bytes[20] = 1;
    assert_eq!(LogPosition::from_bytes(&bytes), None);
}

const GOLDEN_V1: [&str; 5] = [
    "434e564c01000300a6a6a6a6a6a6a6a6a6a6a6a6a6a6a6a6efcdab8967452301",
    "050000000000000028000000000000000600000000000000030000000c000000",
    "11000000020000000100000090000000020000005050f6400000000044c5a3bb",
    "05000000000000000200000000000000070000000b0000000100000000000000",
    "e9001e700300000000000000030000000000000000000000",
];

#[test]
fn first_batch_has_its_golden_bytes() {
    let records = [(Lsn::new(5), record(2, 3, 11, 1))];
    let spread = Columns::new(6, 2);
    let head = BatchHead { spread, column: Some(4), ..head(true, true) };
    let blocks = encode(LOG, &head, &records).descriptors;
    let text: String = blocks[0][..152].iter().map(|b| format!("{b:02x}")).collect();
    let mut golden = GOLDEN_V1;
    golden[0] = "434e564c02000300a6a6a6a6a6a6a6a6a6a6a6a6a6a6a6a6efcdab8967452301";
    golden[2] = "11000000020000000100000090000000020000005050f64006020500CRC";
    let crc = &text[184..192];
    assert_eq!(text, golden.concat().replace("CRC", crc));
    assert_eq!(decode_header(LOG, &blocks[0]).unwrap().head, head);
}

#[test]
fn batches_of_version_1_are_read() {
    let golden = GOLDEN_V1.concat();
    let bytes: Vec<u8> = (0..golden.len() / 2)
        .map(|n| u8::from_str_radix(&golden[2 * n..2 * n + 2], 16).unwrap())
        .collect();
    let mut block = BlockMut::copy_of(&bytes).freeze();
    let decoded = decode_header(LOG, &block).unwrap();
    assert_eq!(decoded.head, head(true, true));
    let records = decode_descriptors(&decoded, core::slice::from_ref(&block)).unwrap();
    assert_eq!(records.len(), 1);
    // What is reserved there says nothing.
    let reseal = |block: &mut Block| {
        let block = block.make_mut();
        block[92..96].fill(0);
        let crc = crc32fast::hash(&block[..96]);
        block[92..96].copy_from_slice(&crc.to_le_bytes());
    };
    block.make_mut()[88..91].fill(9);
    reseal(&mut block);
    assert_eq!(decode_header(LOG, &block).unwrap().head, head(true, true));
    // In version 2 it is more columns than there can be.
    block.make_mut()[4] = 2;
    reseal(&mut block);
    assert!(decode_header(LOG, &block).is_none());
}
