//! Limits of the server, with the defaults and the relations between them.

use core::time::Duration;
use std::net::SocketAddr;

use crate::message::RECORD_BYTES_MAX;

/// Bytes of a connection's receive buffer: all that a silent or half-spoken peer can hold.
pub const RECEIVE_BUFFER_BYTES: usize = 32 << 10;
/// Bytes that are charged for any request beside its payload and its expected reply.
pub const REQUEST_BYTES: u32 = 1024;
/// Most requests in flight of one connection (slots of its set of pending operations).
pub const CONNECTION_REQUESTS_MAX: usize = 256;
/// Fragments of one record.
pub(crate) const FRAGMENTS_MAX: u32 = 1024;
/// Most worker threads.
pub(crate) const WORKERS_MAX: usize = 64;

/// Time that connections without calls in flight stay open when places are short.
pub(crate) const IDLE_MIN: Duration = Duration::from_secs(1);
/// How often deadlines of connections are looked at.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// Longest that a call waits for memory that connections without progress hold, with the
/// default limits: their interval, and two looks at the deadlines.
pub const SCARCE_WAIT_MAX: Duration = Duration::from_secs(3);

/// Progress that a peer must make as long as it holds memory of the server: in every `interval`,
/// `bytes_per_second` on the average. What was sent ahead of an interval does not count for it, so
/// that a peer that stops is noticed within one interval, however much it has sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How long a peer may fall behind.
    pub interval: Duration,
    /// Least rate.
    pub bytes_per_second: u64,
}

/// Bounds of a server. All of them are hard.
///
/// Three rules say when a peer that holds memory and does not use it is cut off (as a rule the
/// limits of good HTTP servers against slow requests: a time of grace, then a least rate).
/// 1. A record that has begun makes the progress `receive`, and is whole within `record_timeout`.
/// 2. Replies that are ready are taken with the progress `send`.
/// 3. While a call waits for `total_bytes_max`, both must make the progress `scarce`; those that
///    do not are cut off, the longest without progress first, as many as it takes. So a call
///    waits for them [`SCARCE_WAIT_MAX`] at most. Memory that becomes free is given to those who
///    wait, in turn by client address, and in order of arrival for one address; newcomers queue.
///
/// Places are given out likewise. When fewer than one in 16 of `connections_max` is left,
/// connections without a call in flight for a second are closed: first those of the address that
/// has most, of these first those that were never answered anything, then the longest idle. Only
/// at `connections_max` itself a newcomer is turned away.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections_max: usize,
    /// Requests in flight in one connection, at most [`CONNECTION_REQUESTS_MAX`].
    pub connection_requests_max: usize,
    /// Bytes in flight in one connection: payloads received or expected, replies not yet sent.
    pub connection_bytes_max: u64,
    /// Bytes in flight in all connections.
    pub total_bytes_max: u64,
    /// Time for a record to arrive whole, from its first byte.
    pub record_timeout: Duration,
    /// Progress of a record that has begun.
    pub receive: Progress,
    /// Progress of replies that are ready.
    pub send: Progress,
    /// Progress of both while others wait for memory.
    pub scarce: Progress,
    /// Time without any request.
    pub idle_timeout: Duration,
    /// Time for requests in flight to end when the server stops.
    pub drain_timeout: Duration,
    /// Replies kept for duplicates.
    pub replay_entries_max: usize,
    /// Bytes of replies kept for duplicates.
    pub replay_bytes_max: usize,
    /// How long a reply is kept for duplicates.
    pub replay_expiry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connection_requests_max: CONNECTION_REQUESTS_MAX,
            connection_bytes_max: 32 << 20,
            total_bytes_max: 256 << 20,
            record_timeout: Duration::from_secs(60),
            receive: Progress { interval: Duration::from_secs(10), bytes_per_second: 32 << 10 },
            send: Progress { interval: Duration::from_secs(60), bytes_per_second: 16 << 10 },
            scarce: Progress { interval: Duration::from_secs(2), bytes_per_second: 128 << 10 },
            idle_timeout: Duration::from_secs(360),
            drain_timeout: Duration::from_secs(5),
            replay_entries_max: 64 << 10,
            replay_bytes_max: 32 << 20,
            replay_expiry: Duration::from_secs(120),
        }
    }
}

/// The largest record fits into its time at the least rate.
const _: () = assert!(RECORD_BYTES_MAX as u64 / (32 << 10) + 10 <= 60);

impl Limits {
    /// Connections from which on room is made for newcomers.
    pub(crate) const fn crowded(&self) -> usize {
        self.connections_max - self.connections_max / 16
    }

    /// Smallest budget in which every legal request can be served.
    pub const BYTES_MAX_FLOOR: u64 = 4 * RECORD_BYTES_MAX as u64;

    /// The limits with every relation between them restored: at least one request of the largest
    /// size fits, and no connection has more than the whole.
    #[must_use]
    pub fn normalized(mut self) -> Self {
        self.connections_max = self.connections_max.max(1);
        self.connection_requests_max =
            self.connection_requests_max.clamp(1, CONNECTION_REQUESTS_MAX);
        self.total_bytes_max = self.total_bytes_max.max(Self::BYTES_MAX_FLOOR);
        self.connection_bytes_max =
            self.connection_bytes_max.clamp(Self::BYTES_MAX_FLOOR, self.total_bytes_max);
        self
    }
}

/// What a server needs to start.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Name for threads and logs.
    pub name: &'static str,
    /// Address and port; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Worker threads, each with its own event loop; a connection stays on one.
    pub workers: usize,
    /// Bounds.
    pub limits: Limits,
}
