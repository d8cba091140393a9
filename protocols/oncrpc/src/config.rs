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

/// Bounds of a server. All of them are hard.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones are closed as they come.
    pub connections_max: usize,
    /// Requests in flight in one connection, at most [`CONNECTION_REQUESTS_MAX`].
    pub connection_requests_max: usize,
    /// Bytes in flight in one connection: payloads received or expected, replies not yet sent.
    pub connection_bytes_max: u64,
    /// Bytes in flight in all connections.
    pub total_bytes_max: u64,
    /// Time for a record to arrive whole, from its first byte.
    pub record_timeout: Duration,
    /// Time without any progress in sending replies.
    pub send_timeout: Duration,
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
            send_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(360),
            drain_timeout: Duration::from_secs(5),
            replay_entries_max: 64 << 10,
            replay_bytes_max: 32 << 20,
            replay_expiry: Duration::from_secs(120),
        }
    }
}

impl Limits {
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
