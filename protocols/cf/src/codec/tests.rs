//! Every message there and back, and anything else refused.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::wire::Gen;
use super::*;

const NOW: MonoTime = MonoTime::new(1_000);
/// The other node's clock.
const THERE: MonoTime = MonoTime::new(7_777);

/// What a receiver does: header, head, payload into blocks.
fn receive(bytes: &[u8]) -> Result<(FrameHeader, Vec<u8>, Payload), DecodeError> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().unwrap();
    let header = decode_header(header)?;
    let (head, data) = rest.split_at(rest.len().min(header.head_bytes as usize));
    let payload = Payload::copy_from(u64::from(header.payload_skip), data);
    Ok((header, head.to_vec(), payload))
}

fn bytes(encoded: &Encoded) -> Vec<u8> {
    [encoded.head.clone(), encoded.payload.to_vec()].concat()
}

fn shift(request: CfRequest) -> CfRequest {
    match request {
        CfRequest::File(mut ctx, op) => {
            ctx.deadline = ctx.deadline.map(|d| MonoTime::new(d.get() - NOW.get() + THERE.get()));
            CfRequest::File(ctx, op)
        }
        manage => manage,
    }
}

fn same_request(a: &CfRequest, b: &CfRequest) -> bool {
    match (a, b) {
        (CfRequest::File(ca, a), CfRequest::File(cb, b)) => {
            format!("{ca:?}") == format!("{cb:?}") && a == b
        }
        (CfRequest::Manage(a), CfRequest::Manage(b)) => a == b,
        _ => false,
    }
}

fn same_reply(a: &CfReply, b: &CfReply) -> bool {
    match (a, b) {
        (CfReply::File(a), CfReply::File(b)) => a == b,
        (CfReply::Manage(a), CfReply::Manage(b)) => a == b,
        _ => false,
    }
}

/// First word of a debug text: the alternative.
fn word(text: String) -> String {
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

#[test]
fn every_message_comes_back_as_it_was_sent() {
    let mut seen = BTreeSet::new();
    for seed in 0..4000 {
        let mut g = Gen(seed);
        let request = CfRequest::sample(&mut g);
        let encoded = encode_request(Xid(seed), &request, NOW).unwrap();
        let (header, head, payload) = receive(&bytes(&encoded)).unwrap();
        assert_eq!((header.kind, header.xid), (FrameKind::Request, Xid(seed)));
        let back = decode_request(&header, &head, payload, THERE).unwrap();
        match &request {
            CfRequest::File(_, op) => seen.insert(word(format!("{op:?}"))),
            CfRequest::Manage(m) => seen.insert(word(format!("Manage{m:?}"))),
        };
        assert!(same_request(&shift(request), &back), "seed {seed}");

        let reply = CfReply::sample(&mut g);
        let encoded = encode_reply(Xid(seed), &reply, NOW).unwrap();
        let (header, head, payload) = receive(&bytes(&encoded)).unwrap();
        let back = decode_reply(&header, &head, payload, THERE).unwrap();
        match &reply {
            CfReply::File(Ok(r)) => seen.insert(word(format!("Reply{r:?}"))),
            CfReply::Manage(Ok(m)) => seen.insert(word(format!("Managed{m:?}"))),
            CfReply::File(Err(f)) => seen.insert(format!("Status{:?}", f.status)),
            CfReply::Manage(Err(e)) => seen.insert(word(format!("ManageError{e:?}"))),
        };
        assert!(same_reply(&reply, &back), "seed {seed}");
    }
    // 23 operations, 21 orders, 16 replies, 11 answers, 26 statuses, 7 refusals.
    assert_eq!(seen.len(), 23 + 21 + 16 + 11 + 26 + 7, "{seen:?}");
}

#[test]
fn payload_is_passed_by_reference() {
    let mut g = Gen(5);
    let data = Payload::copy_from(0, &[7; 8192]);
    let block = data.blocks()[0].clone();
    let op = cairn_op::Op::Write {
        obj: Wire::sample(&mut g),
        offset: 0,
        data,
        stability: cairn_op::Stability::FileSync,
    };
    let request = CfRequest::File(Wire::sample(&mut g), op);
    let encoded = encode_request(Xid(1), &request, NOW).unwrap();
    assert!(encoded.payload.blocks()[0].same_memory(&block));
    assert!(encoded.head.len() < 300, "the payload is not in the head");
}

#[test]
fn frame_bytes_never_change_between_releases() {
    let request =
        CfRequest::Manage(crate::Manage::VolumeDelete { fsid: cairn_units::Fsid::new(9) });
    let encoded = encode_request(Xid(0x0102), &request, NOW).unwrap();
    let head = [
        b'C', b'a', b'C', b'F', 1, 0, 0, 0, 1, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(&encoded.head[..36], &head);
    assert_eq!(&encoded.head[40..], &[2, 0, 2, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn any_flipped_bit_of_a_frame_is_noticed() {
    let mut g = Gen(77);
    let data = Payload::copy_from(5, b"some bytes");
    let op = cairn_op::Op::Write {
        obj: Wire::sample(&mut g),
        offset: 5,
        data,
        stability: cairn_op::Stability::Unstable,
    };
    let request = CfRequest::File(Wire::sample(&mut g), op);
    let good = bytes(&encode_request(Xid(3), &request, NOW).unwrap());
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let decoded = receive(&bad).and_then(|(h, head, p)| decode_request(&h, &head, p, NOW));
        assert!(decoded.is_err(), "bit {bit}");
    }
}

/// A header of the same message with another minor version and bytes behind the message.
fn newer(minor: u16) -> Result<CfRequest, DecodeError> {
    let mut writer = Writer::new(NOW);
    CfRequest::Manage(crate::Manage::DiskList).put(&mut writer);
    0xffff_ffffu32.put(&mut writer);
    let mut head = frame(FrameKind::Request, Xid(1), writer).unwrap().head;
    head[6..8].copy_from_slice(&minor.to_le_bytes());
    let sum = crc(&[&head[..SIGNED_BYTES], &head[HEADER_BYTES..]]);
    head[SIGNED_BYTES..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    let (header, head, payload) = receive(&head)?;
    decode_request(&header, &head, payload, NOW)
}

#[test]
fn fields_of_a_newer_minor_version_are_passed_over() {
    assert!(newer(CF_VERSION_MINOR + 1).is_ok());
    assert_eq!(newer(CF_VERSION_MINOR).unwrap_err(), DecodeError::Trailing { bytes: 4 });
}

#[test]
fn other_major_version_and_sizes_beyond_the_limit_are_refused() {
    let request = CfRequest::Manage(crate::Manage::DiskList);
    let good = encode_request(Xid(1), &request, NOW).unwrap().head;
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        receive(&bad).map(|_| ()).unwrap_err()
    };
    assert_eq!(with(4, &[2, 0]), DecodeError::Version { major: 2 });
    assert_eq!(with(0, b"GET "), DecodeError::Magic);
    assert_eq!(with(8, &[9, 0]), DecodeError::Kind { kind: 9 });
    assert_eq!(with(10, &[1, 0]), DecodeError::Reserved);
    assert!(matches!(with(20, &[255; 4]), DecodeError::TooLong { .. }));
    assert!(matches!(with(28, &[255; 4]), DecodeError::TooLong { .. }));
    assert_eq!(with(24, &[0, 16, 0, 0]), DecodeError::Payload);
}

#[test]
fn list_that_claims_more_than_there_is_makes_no_room_for_it() {
    let mut writer = Writer::new(NOW);
    2u16.put(&mut writer);
    true.put(&mut writer);
    10u16.put(&mut writer);
    ITEMS_MAX.put(&mut writer);
    let encoded = frame(FrameKind::Reply, Xid(1), writer).unwrap();
    let (header, head, payload) = receive(&bytes(&encoded)).unwrap();
    let refused = decode_reply(&header, &head, payload, NOW).unwrap_err();
    assert!(matches!(refused, DecodeError::CutOff { .. }), "{refused:?}");
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz_decode(&bytes);
    }

    #[test]
    fn damaged_messages_with_good_checksums_never_panic(
        seed: u64,
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8),
        cut in any::<usize>(),
    ) {
        let mut g = Gen(seed);
        for reply in [false, true] {
            let mut writer = Writer::new(NOW);
            match reply {
                true => CfReply::sample(&mut g).put(&mut writer),
                false => CfRequest::sample(&mut g).put(&mut writer),
            }
            let (mut body, payload) = writer.finish().unwrap();
            for (at, value) in &changes {
                let at = at % body.len();
                body[at] = *value;
            }
            body.truncate(1 + cut % body.len());
            drop(CfRequest::get(&mut Reader::new(&body, payload.clone(), NOW)));
            drop(CfReply::get(&mut Reader::new(&body, payload, NOW)));
        }
    }
}
