//! The server with well-behaved clients: order, batching, fragments, payloads, duplicates, end.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::common::{
    COUNT, Client, ECHO, FETCH, Fixture, HOLD, NULL, PATIENCE, STORE, TestService, head, record,
    store_args, stored, word,
};
use cairn_oncrpc::message::{CallHead, put_call};
use cairn_oncrpc::{Limits, ServerConfig, StartError, start};
use proptest::prelude::*;

fn fixture() -> Fixture {
    Fixture::new(Limits::default())
}

#[test]
fn a_thousand_calls_in_one_write_are_answered_in_order() {
    let f = fixture();
    let mut c = f.connect();
    let calls: Vec<u8> = (0..1000).flat_map(|xid| record(xid, NULL, &[])).collect();
    let mut sender = Client(c.0.try_clone().unwrap());
    let sending = std::thread::Builder::new().spawn(move || sender.send(&calls)).unwrap();
    for xid in 0..1000 {
        assert!(c.result(xid).is_empty());
    }
    sending.join().unwrap();
    f.until("all counted", |f| f.server().metrics().procedures[0].count == 1000);
    assert_eq!(f.server().metrics().bytes_in_flight, 0);
}

#[test]
fn a_slow_call_does_not_hold_up_those_behind_it() {
    let f = fixture();
    let mut c = f.connect();
    c.send(
        &[record(1, HOLD, &word(11)), record(2, HOLD, &word(22)), record(3, NULL, &[])].concat(),
    );
    assert!(c.result(3).is_empty());
    f.service().release(22);
    assert_eq!(c.result(2), word(22));
    assert_eq!(c.call(4, ECHO, &[0, 0, 0, 1, b'x', 0, 0, 0]), [0, 0, 0, 1, b'x', 0, 0, 0]);
    f.service().release(11);
    assert_eq!(c.result(1), word(11));
}

#[test]
fn more_held_calls_than_slots_wait_and_none_is_lost() {
    let limits = Limits { connection_requests_max: 4, ..Limits::default() };
    let f = Fixture::new(limits);
    let mut c = f.connect();
    let calls: Vec<u8> = (0..20).flat_map(|key| record(key, HOLD, &word(key))).collect();
    c.send(&calls);
    for key in 0..20 {
        assert!(f.service().held() <= 4);
        f.service().release(key);
        assert_eq!(c.result(key), word(key));
    }
}

#[test]
fn payloads_of_every_size_arrive_at_their_place_in_the_block() {
    let f = fixture();
    let mut c = f.connect();
    let mut xid = 0;
    for len in [0usize, 1, 3, 4095, 4096, 4097, 20_000, 33_000, 100_001, 1 << 20] {
        for offset in [0u64, 1, 4095, 4096 * 7 + 100] {
            xid += 1;
            let data: Vec<u8> = (0..=255u8).cycle().skip(len % 7).take(len).collect();
            assert_eq!(c.call(xid, STORE, &store_args(offset, &data)), stored(offset, &data));
        }
    }
}

#[test]
fn large_replies_come_whole() {
    let f = fixture();
    let mut c = f.connect();
    c.send(&(1..=8).flat_map(|n| record(n, FETCH, &word((1 << 20) - n))).collect::<Vec<u8>>());
    for n in 1..=8u32 {
        let result = c.result(n);
        let len = (1 << 20) - n;
        assert_eq!(&result[..4], word(len));
        assert!(result[4..4 + len as usize].iter().all(|b| *b == 0x5a));
        assert_eq!(result.len() % 4, 0);
        assert!(result[4 + len as usize..].iter().all(|b| *b == 0));
    }
}

#[test]
fn a_call_that_must_be_done_once_is_done_once() {
    let f = fixture();
    let (mut a, mut b) = (f.connect(), f.connect());
    a.send(&record(9, COUNT, &word(1)));
    f.until("held", |f| f.service().held() == 1);
    // A duplicate over another connection while the first is under way: parked.
    b.send(&record(9, COUNT, &word(1)));
    f.until("parked", |f| f.server().metrics().parked == 1);
    f.service().release(1);
    assert_eq!(a.result(9), word(1));
    assert_eq!(b.result(9), word(1));
    // And afterwards: the kept reply.
    assert_eq!(b.call(9, COUNT, &word(1)), word(1));
    assert_eq!(f.server().metrics().replayed, 1);
    assert_eq!(f.service().counted.load(Ordering::SeqCst), 1);
    // The same transaction id with other arguments is another call.
    a.send(&record(9, COUNT, &word(2)));
    f.service().release(2);
    assert_eq!(a.result(9), word(2));
}

#[test]
fn a_reply_lost_with_its_connection_is_given_to_the_retry() {
    let f = fixture();
    let mut a = f.connect();
    a.send(&record(5, COUNT, &word(1)));
    f.until("held", |f| f.service().held() == 1);
    // Reset, not an orderly end: that one would wait for its reply.
    socket2::SockRef::from(&a.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(a);
    f.until("closed", |f| f.server().metrics().connections == 0);
    let mut b = f.connect();
    b.send(&record(5, COUNT, &word(1)));
    f.until("parked", |f| f.server().metrics().parked == 1);
    f.service().release(1);
    assert_eq!(b.result(5), word(1));
    assert_eq!(f.service().counted.load(Ordering::SeqCst), 1);
    f.until("given back", |f| f.server().metrics().bytes_in_flight == 0);
}

/// In whatever order they are taken up, the one in the middle has another one before it.
#[test]
fn calls_that_lost_their_connection_do_not_wait_for_each_other() {
    let f = fixture();
    let mut a = f.connect();
    for key in 1..=3 {
        a.send(&record(key, COUNT, &word(key)));
    }
    f.until("held", |f| f.service().held() == 3);
    socket2::SockRef::from(&a.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(a);
    f.until("closed", |f| f.server().metrics().connections == 0);
    f.service().release(2);
    f.until("done", |f| f.service().counted.load(Ordering::SeqCst) == 1);
    f.service().release(1);
    f.service().release(3);
    f.until("given back", |f| f.server().metrics().bytes_in_flight == 0);
    assert_eq!(f.service().counted.load(Ordering::SeqCst), 3);
}

#[test]
fn half_closed_clients_get_their_replies() {
    let f = fixture();
    let mut c = f.connect();
    c.send(&[record(1, HOLD, &word(1)), record(2, NULL, &[])].concat());
    c.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(c.result(2).is_empty());
    f.service().release(1);
    assert_eq!(c.result(1), word(1));
    assert!(c.is_closed_within(PATIENCE));
}

#[test]
fn shutdown_answers_what_is_in_flight_and_takes_nothing_new() {
    let mut f = fixture();
    let addr = f.server().addr();
    let mut c = f.connect();
    c.send(&record(1, HOLD, &word(1)));
    f.until("held", |f| f.service().held() == 1);
    let service = f.server().service().clone();
    let server = f.server.take().unwrap();
    let ending = f.runtime.spawn(server.shutdown());
    service.release(1);
    assert_eq!(c.result(1), word(1));
    assert!(c.is_closed_within(PATIENCE));
    f.runtime.block_on(ending).unwrap();
    assert!(std::net::TcpStream::connect(addr).is_err());
}

#[test]
fn shutdown_cuts_what_does_not_end() {
    let mut f = fixture();
    let mut c = f.connect();
    c.send(&record(1, HOLD, &word(1)));
    f.until("held", |f| f.service().held() == 1);
    let server = f.server.take().unwrap();
    let ending = f.runtime.spawn(server.shutdown());
    f.advance_until_closed(&mut c);
    while !ending.is_finished() {
        f.clock.advance(Duration::from_secs(1));
        std::thread::yield_now();
    }
    f.runtime.block_on(ending).unwrap();
}

#[test]
fn a_taken_port_is_refused_with_what_to_do() {
    let f = fixture();
    let addr = f.server().addr();
    let config =
        ServerConfig { name: "second", listen: addr, workers: 1, limits: Limits::default() };
    let world = cairn_sys::real::world(f.runtime.handle().clone()).unwrap();
    match start(&config, Arc::new(TestService::default()), world) {
        Err(e @ StartError::InUse { .. }) => {
            assert!(e.to_string().contains("choose another port"), "{e}");
        }
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("two servers on one port"),
    }
}

/// Splits a record (mark included) into fragments of the given sizes.
fn fragments(record: &[u8], sizes: &mut impl Iterator<Item = usize>) -> Vec<u8> {
    let mut rest = &record[4..];
    let mut out = Vec::new();
    loop {
        let n = sizes.next().unwrap_or(usize::MAX).min(rest.len());
        let last = n == rest.len();
        let mark = u32::try_from(n).unwrap() | if last { 1 << 31 } else { 0 };
        out.extend_from_slice(&mark.to_be_bytes());
        out.extend_from_slice(&rest[..n]);
        rest = &rest[n..];
        if last {
            return out;
        }
    }
}

fn sys_record(xid: u32, procedure: u32, args: &[u8], groups: u32) -> Vec<u8> {
    let mut credential = [word(1), word(0), word(5), word(6), word(groups)].concat();
    (0..groups).for_each(|g| credential.extend(word(g)));
    let mut out = Vec::new();
    put_call(&mut out, &CallHead { flavor: 1, ..head(xid, procedure) }, &credential, args);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// However a stream of calls is cut into fragments and writes, every call gets its reply.
    #[test]
    fn any_fragmentation_and_any_pieces_give_the_same_replies(
        calls in prop::collection::vec((0u8..4, 0usize..70_000, 0u64..10_000, 0u32..17), 1..12),
        fragment_sizes in prop::collection::vec(0usize..50_000, 0..8),
        pieces in prop::collection::vec(1usize..60_000, 1..10),
    ) {
        let f = fixture();
        let mut c = f.connect();
        let mut stream = Vec::new();
        let mut expected = std::collections::BTreeMap::new();
        let mut sizes = fragment_sizes.iter().copied();
        for (n, (kind, len, offset, groups)) in calls.iter().enumerate() {
            let xid = u32::try_from(n).unwrap();
            let data: Vec<u8> = (0..=255u8).cycle().skip(n).take(*len).collect();
            let (procedure, args, result) = match kind {
                0 => (NULL, Vec::new(), Vec::new()),
                1 => {
                    let args = store_args(0, &data)[8..].to_vec();
                    (ECHO, args.clone(), args)
                }
                _ => (STORE, store_args(*offset, &data), stored(*offset, &data)),
            };
            let record = sys_record(xid, procedure, &args, *groups);
            stream.extend(if kind % 2 == 0 { record } else { fragments(&record, &mut sizes) });
            expected.insert(xid, result);
        }
        let mut sender = Client(c.0.try_clone().unwrap());
        let sending = std::thread::Builder::new()
            .spawn(move || {
                let mut rest = &stream[..];
                for size in pieces.iter().cycle() {
                    let n = rest.len().min(*size);
                    sender.send(&rest[..n]);
                    rest = &rest[n..];
                    if rest.is_empty() {
                        return;
                    }
                }
            })
            .unwrap();
        for (xid, result) in expected {
            prop_assert_eq!(c.result(xid), result);
        }
        sending.join().unwrap();
        f.until("given back", |f| f.server().metrics().bytes_in_flight == 0);
    }
}
