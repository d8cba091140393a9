//! Counters of a server: per procedure count, errors, bytes and a latency histogram.
//!
//! Each worker counts in a shard of its own, so that counting never bounces a cache line between
//! cores; a snapshot adds the shards up. Latency runs from the arrival of a request's last byte
//! to the moment its reply is handed to the socket.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of a latency histogram. Bucket `i` counts latencies below `1024 << i` nanoseconds that
/// no earlier bucket counted; the last one counts everything longer.
pub const LATENCY_BUCKETS: usize = 26;

#[derive(Debug)]
struct Counters {
    buckets: [AtomicU64; LATENCY_BUCKETS],
    errors: AtomicU64,
    nanos: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl Counters {
    fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; LATENCY_BUCKETS],
            errors: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        }
    }
}

/// One finished request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub(crate) metric: u16,
    pub(crate) failed: bool,
    pub(crate) bytes_in: u32,
    pub(crate) bytes_out: u32,
}

/// Events of a server beside its procedures.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) connections: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) accept_errors: AtomicU64,
    pub(crate) refused_connections: AtomicU64,
    pub(crate) bad_records: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) refused_calls: AtomicU64,
    pub(crate) replayed: AtomicU64,
    pub(crate) parked: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) budget_waits: AtomicU64,
    pub(crate) gave_way: AtomicU64,
    pub(crate) made_room: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Bytes that a worker has received, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Received(AtomicU64);

#[derive(Debug)]
pub(crate) struct Metrics {
    names: &'static [&'static str],
    shards: Vec<Vec<Counters>>,
    received: Vec<Received>,
    pub(crate) events: Events,
}

impl Metrics {
    pub(crate) fn new(names: &'static [&'static str], workers: usize) -> Self {
        let shard = || names.iter().map(|_| Counters::new()).collect();
        let shards = (0..workers).map(|_| shard()).collect();
        let received = (0..workers).map(|_| Received::default()).collect();
        Self { names, shards, received, events: Events::default() }
    }

    pub(crate) fn received(&self, worker: usize, bytes: usize) {
        if let Some(Received(sum)) = self.received.get(worker) {
            sum.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    pub(crate) fn record(&self, worker: usize, done: Finished, nanos: u64) {
        let Some(c) = self.shards.get(worker).and_then(|s| s.get(usize::from(done.metric))) else {
            return;
        };
        c.buckets[bucket_of(nanos)].fetch_add(1, Ordering::Relaxed);
        c.nanos.fetch_add(nanos, Ordering::Relaxed);
        c.bytes_in.fetch_add(u64::from(done.bytes_in), Ordering::Relaxed);
        c.bytes_out.fetch_add(u64::from(done.bytes_out), Ordering::Relaxed);
        if done.failed {
            c.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn snapshot(&self, bytes_in_flight: u64) -> MetricsSnapshot {
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        let procedures = self
            .names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let mut p = ProcedureMetrics { name, ..ProcedureMetrics::default() };
                for c in self.shards.iter().filter_map(|s| s.get(i)) {
                    for (sum, bucket) in p.latency_buckets.iter_mut().zip(&c.buckets) {
                        *sum += get(bucket);
                    }
                    p.errors += get(&c.errors);
                    p.latency_nanos += get(&c.nanos);
                    p.bytes_in += get(&c.bytes_in);
                    p.bytes_out += get(&c.bytes_out);
                }
                p.count = p.latency_buckets.iter().sum();
                p
            })
            .collect();
        let e = &self.events;
        MetricsSnapshot {
            procedures,
            connections: get(&e.connections),
            bytes_in_flight,
            accepted: get(&e.accepted),
            accept_errors: get(&e.accept_errors),
            refused_connections: get(&e.refused_connections),
            bad_records: get(&e.bad_records),
            timeouts: get(&e.timeouts),
            refused_calls: get(&e.refused_calls),
            replayed: get(&e.replayed),
            parked: get(&e.parked),
            dropped: get(&e.dropped),
            budget_waits: get(&e.budget_waits),
            bytes_received: self.received.iter().map(|r| get(&r.0)).sum(),
            gave_way: get(&e.gave_way),
            made_room: get(&e.made_room),
        }
    }
}

fn bucket_of(nanos: u64) -> usize {
    let bits = (u64::BITS - (nanos >> 10).leading_zeros()) as usize;
    bits.min(LATENCY_BUCKETS - 1)
}

/// What one procedure has done since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcedureMetrics {
    /// Name of the procedure.
    pub name: &'static str,
    /// Requests answered.
    pub count: u64,
    /// Answers that said no.
    pub errors: u64,
    /// Bytes of arguments and payload.
    pub bytes_in: u64,
    /// Bytes of replies.
    pub bytes_out: u64,
    /// Sum of all latencies.
    pub latency_nanos: u64,
    /// See [`LATENCY_BUCKETS`].
    pub latency_buckets: [u64; LATENCY_BUCKETS],
}

/// What a server has done since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Per procedure.
    pub procedures: Vec<ProcedureMetrics>,
    /// Connections open now.
    pub connections: u64,
    /// Bytes in flight now.
    pub bytes_in_flight: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Failed accepts.
    pub accept_errors: u64,
    /// Connections closed at once because there were too many.
    pub refused_connections: u64,
    /// Connections closed because of what they sent.
    pub bad_records: u64,
    /// Connections closed because they were too slow.
    pub timeouts: u64,
    /// Calls refused at the RPC level.
    pub refused_calls: u64,
    /// Duplicates answered with the kept reply.
    pub replayed: u64,
    /// Duplicates that waited for the first one's reply.
    pub parked: u64,
    /// Duplicates that were dropped because too many of that call waited already.
    pub dropped: u64,
    /// Times that a connection stopped reading because the common budget was spent.
    pub budget_waits: u64,
    /// Bytes received, in whatever state they are.
    pub bytes_received: u64,
    /// Connections closed because they held memory without progress while others waited for it.
    pub gave_way: u64,
    /// Connections closed because they were idle while others wanted to connect.
    pub made_room: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_double_and_the_last_takes_the_rest() {
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(1023), 0);
        assert_eq!(bucket_of(1024), 1);
        assert_eq!(bucket_of(2047), 1);
        assert_eq!(bucket_of(2048), 2);
        assert_eq!(bucket_of(u64::MAX), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn a_snapshot_adds_up_the_workers() {
        let m = Metrics::new(&["a", "b"], 2);
        let done = Finished { metric: 1, failed: true, bytes_in: 10, bytes_out: 20 };
        m.record(0, done, 5);
        m.record(1, done, 5000);
        let s = m.snapshot(0);
        assert_eq!(s.procedures[0].count, 0);
        let b = &s.procedures[1];
        assert_eq!((b.count, b.errors, b.bytes_in, b.latency_nanos), (2, 2, 20, 5005));
    }
}
