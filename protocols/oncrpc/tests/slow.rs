//! Clients that hold memory and connections of the server without using them: how soon they go,
//! and how soon those who wait get on. Time is virtual.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::io::Write;
use std::time::Duration;

use crate::common::{
    Client, FETCH, Fixture, HOLD, NULL, PATIENCE, STORE, record, store_args, stored, word,
};
use cairn_oncrpc::{Limits, SCARCE_WAIT_MAX};

const STEP: Duration = Duration::from_millis(250);

/// Virtual time until the server closes `client`'s connection.
fn time_until_closed(f: &Fixture, client: &mut Client) -> Duration {
    let mut passed = Duration::ZERO;
    while passed < Duration::from_secs(600) {
        f.clock.advance(STEP);
        passed += STEP;
        if client.is_closed_within(Duration::from_millis(3)) {
            return passed;
        }
    }
    panic!("the connection stays open");
}

/// A call that stores `bytes` bytes, as a record.
fn store(xid: u32, bytes: usize) -> Vec<u8> {
    record(xid, STORE, &store_args(0, &vec![7; bytes]))
}

/// Sends half of a large WRITE and waits until the server has charged it.
fn half_sent(f: &Fixture) -> Client {
    let before = f.server().metrics().bytes_in_flight;
    let mut c = f.connect();
    let call = store(1, 1 << 20);
    c.send(&call[..call.len() / 2]);
    f.until("charged", |f| f.server().metrics().bytes_in_flight > before + (1 << 20));
    c
}

#[test]
fn half_a_payload_holds_its_memory_for_seconds_not_for_a_minute() {
    let f = Fixture::new(Limits::default());
    let mut c = half_sent(&f);
    let passed = time_until_closed(&f, &mut c);
    let limit = Limits::default().receive.interval;
    assert!(passed >= limit, "{passed:?}");
    assert!(passed <= limit + Duration::from_secs(2), "{passed:?}");
    f.until("given back", |f| f.server().metrics().bytes_in_flight == 0);
}

#[test]
fn a_payload_that_trickles_is_cut_off_and_one_at_the_least_rate_is_taken() {
    let f = Fixture::new(Limits::default());
    let rate = usize::try_from(Limits::default().receive.bytes_per_second).unwrap();
    let call = store(1, 1 << 20);
    let all = stored(0, &vec![7; 1 << 20]);
    for (per_second, taken) in [(rate / 2, false), (rate + rate / 4, true)] {
        let mut c = f.connect();
        let mut closed = false;
        for part in call.chunks(per_second) {
            let before = f.server().metrics().bytes_received;
            closed = c.0.write_all(part).is_err() || c.is_closed_soon();
            if closed {
                break;
            }
            f.until("received", |f| {
                f.server().metrics().bytes_received >= before + part.len() as u64
            });
            f.clock.advance(Duration::from_secs(1));
        }
        assert_eq!(closed, !taken, "{per_second} bytes a second");
        if taken {
            assert_eq!(c.result(1), all);
        }
    }
}

#[test]
fn replies_taken_byte_by_byte_do_not_keep_their_memory_for_ever() {
    let limits = Limits::default();
    let f = Fixture::new(limits);
    let (mut c, mut other) = (f.connect(), f.connect());
    for xid in 0..20 {
        c.send(&record(xid, FETCH, &word(1 << 20)));
    }
    f.until("full", |f| f.server().metrics().bytes_in_flight > 8 << 20);
    let mut passed = Duration::ZERO;
    while f.server().metrics().timeouts == 0 {
        assert!(passed < Duration::from_secs(200), "still there after {passed:?}");
        // One byte a second; what the sockets' buffers hold beyond it stays there.
        c.take_one_byte();
        f.clock.advance(Duration::from_secs(1));
        passed += Duration::from_secs(1);
        // Gives the server's threads time to look at the clock.
        for xid in 0..20 {
            assert!(other.call(xid, NULL, &[]).is_empty());
        }
    }
    assert!(passed >= limits.send.interval, "{passed:?}");
    assert!(passed <= limits.send.interval + Duration::from_secs(30), "{passed:?}");
    f.until("given back", |f| f.server().metrics().bytes_in_flight == 0);
}

/// The budget is spent by `holders`; an honest call must be answered soon all the same.
fn is_served_soon(f: &Fixture, mut holders: Vec<Client>) {
    let mut honest = f.connect();
    let waits = f.server().metrics().budget_waits;
    honest.send(&store(9, 1 << 20));
    f.until("it waits", |f| f.server().metrics().budget_waits > waits);
    let mut passed = Duration::ZERO;
    honest.0.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut first = [0; 4];
    while honest.0.peek(&mut first).is_err() {
        assert!(passed < SCARCE_WAIT_MAX, "not served after {passed:?}");
        f.clock.advance(STEP);
        passed += STEP;
    }
    honest.0.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(honest.result(9), stored(0, &vec![7; 1 << 20]));
    // Its memory is given back first, then it is counted.
    f.until("one gave way", |f| f.server().metrics().gave_way > 0);
    // Only as many went as were needed.
    let open = holders.iter_mut().filter_map(|c| {
        let closed = c.is_closed_within(Duration::from_millis(20));
        (!closed).then_some(())
    });
    assert!(open.count() > 0, "all were cut off for one");
    assert!(honest.call(10, NULL, &[]).is_empty(), "the honest one stays");
}

#[test]
fn half_sent_payloads_give_way_when_others_wait() {
    let f = Fixture::new(Limits { total_bytes_max: 6 << 20, ..Limits::default() });
    let holders: Vec<Client> = (0..5).map(|_| half_sent(&f)).collect();
    is_served_soon(&f, holders);
}

#[test]
fn replies_that_nobody_takes_give_way_when_others_wait() {
    let f = Fixture::new(Limits { total_bytes_max: 30 << 20, ..Limits::default() });
    let holders: Vec<Client> = (0..3)
        .map(|_| {
            let before = f.server().metrics().bytes_in_flight;
            let mut c = f.connect();
            for xid in 0..25 {
                c.send(&record(xid, FETCH, &word(1 << 20)));
            }
            f.until("held", |f| {
                let m = f.server().metrics();
                m.bytes_in_flight > before + (5 << 20) || m.budget_waits > 0
            });
            c
        })
        .collect();
    f.until("spent", |f| f.server().metrics().budget_waits > 0);
    is_served_soon(&f, holders);
}

#[test]
fn nobody_is_cut_off_early_while_nobody_waits() {
    let f = Fixture::new(Limits { total_bytes_max: 6 << 20, ..Limits::default() });
    let mut holders: Vec<Client> = (0..3).map(|_| half_sent(&f)).collect();
    for _ in 0..16 {
        f.clock.advance(Duration::from_millis(500));
        assert!(f.connect().call(1, NULL, &[]).is_empty());
    }
    for c in &mut holders {
        assert!(!c.is_closed_within(Duration::from_millis(20)), "after 8 seconds");
    }
    assert_eq!(f.server().metrics().gave_way, 0);
}

#[test]
fn at_the_limit_of_connections_the_longest_idle_gives_way_to_a_newcomer() {
    let f = Fixture::new(Limits { connections_max: 32, ..Limits::default() });
    let mut used = f.connect();
    assert!(used.call(1, NULL, &[]).is_empty());
    let mut busy = f.connect();
    busy.send(&record(1, HOLD, &word(1)));
    f.until("held", |f| f.service().held() == 1);
    let mut half = f.connect();
    half.send(&record(1, NULL, &[])[..10]);
    // The others never say anything.
    let mut idle: Vec<Client> = (3..32).map(|_| f.connect()).collect();
    f.until("full", |f| f.server().metrics().connections >= 30);
    let mut late = f.connect();
    assert!(late.is_closed_within(PATIENCE) || f.server().metrics().connections <= 32);
    f.clock.advance(Duration::from_secs(2));
    let mut newcomers = Vec::new();
    for n in 0..20 {
        // The first at the limit may be turned away while room is being made.
        f.clock.advance(Duration::from_millis(500));
        f.until("room", |f| n == 0 || f.server().metrics().connections < 32);
        let mut c = f.connect();
        let served =
            c.0.write_all(&record(n, NULL, &[])).is_ok() && c.0.peek(&mut [0]).ok() == Some(1);
        assert!(served || n == 0, "newcomer {n} is not served");
        assert!(f.server().metrics().connections <= 32);
        newcomers.push(c);
    }
    assert!(f.server().metrics().made_room >= 15);
    assert!(idle[0].is_closed_within(PATIENCE), "it never said anything");
    assert!(used.call(2, NULL, &[]).is_empty(), "one that has made calls goes last");
    f.service().release(1);
    assert_eq!(busy.result(1), word(1));
    drop(idle.pop());
}

#[test]
fn many_connections_of_one_address_do_not_push_out_those_of_another() {
    let f = Fixture::new(Limits { connections_max: 32, ..Limits::default() });
    let other = |n: u8| {
        let from: std::net::SocketAddr = ([127, 0, 0, n], 0).into();
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect(&f.server().addr().into()).unwrap();
        let stream: std::net::TcpStream = socket.into();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    };
    // It was there first, and is idle for the longest time.
    let mut quiet = other(2);
    f.until("there", |f| f.server().metrics().connections == 1);
    f.clock.advance(Duration::from_secs(10));
    let mut many: Vec<Client> = Vec::new();
    for _ in 0..100 {
        let mut c = f.connect();
        if c.0.write_all(&record(1, NULL, &[])).is_ok() && c.0.peek(&mut [0]).ok() == Some(1) {
            many.push(c);
        }
        f.clock.advance(Duration::from_millis(500));
        assert!(f.server().metrics().connections <= 32);
    }
    assert!(many.len() > 60, "{}", many.len());
    assert!(quiet.call(1, NULL, &[]).is_empty(), "the quiet one is still there");
}

#[test]
fn a_connection_whose_calls_are_answered_at_once_is_not_idle() {
    let f = Fixture::new(Limits { connections_max: 16, ..Limits::default() });
    let mut quick = f.connect();
    for xid in 0..20 {
        // Twenty times nearly the time after which idle connections are closed.
        f.clock.advance(Limits::default().idle_timeout - Duration::from_secs(2));
        std::thread::yield_now();
        assert!(quick.call(xid, NULL, &[]).is_empty());
        assert!(!quick.is_closed_soon(), "call {xid}");
    }
    // Nor is it the longest idle one: the others, which made a call each, go first.
    let mut others: Vec<Client> = (0..14).map(|_| f.connect()).collect();
    for c in &mut others {
        assert!(c.call(1, NULL, &[]).is_empty());
    }
    f.clock.advance(Duration::from_secs(5));
    assert!(quick.call(99, NULL, &[]).is_empty());
    f.clock.advance(Duration::from_secs(2));
    let _newcomer = f.connect();
    f.until("room", |f| f.server().metrics().made_room > 0);
    assert!(quick.call(100, NULL, &[]).is_empty(), "it made its last call after the others");
}
