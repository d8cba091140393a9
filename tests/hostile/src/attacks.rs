//! The attacks: what each does, and what it may cost.
//!
//! Layer: above `foe`. An attack runs for a while beside the honest client, checks what it is
//! answered itself, and drops its connections when it returns.

mod bulk;
mod http;
mod malformed;
mod order;
mod slow;

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use cairn_rawclient::nfs::{Client, FILE_SYNC, Handle};
use cairn_rawclient::rpc::Out;

use crate::clock::{self, Bell};
use crate::node::Address;

/// Bytes of the file that attacks read.
pub(crate) const FILE_BYTES: u32 = 4 << 20;

/// Connections that REST takes.
pub(crate) const REST_CONNECTIONS_MAX: usize = 128;

/// What attacks work on.
pub(crate) struct Ground<'a> {
    pub(crate) address: &'a Address,
    /// Rings when something else has failed.
    pub(crate) bell: &'a Bell,
    /// How long an attack goes on.
    pub(crate) time: Duration,
    pub(crate) seed: u64,
    /// Connections of the largest attack.
    pub(crate) crowd: usize,
    /// Connections that the node takes.
    pub(crate) connections_max: u64,
    /// Directory of the attacks.
    pub(crate) dir: Handle,
    /// A file in it, of [`FILE_BYTES`].
    pub(crate) file: Handle,
}

impl Ground<'_> {
    fn end(&self) -> Instant {
        clock::now() + self.time
    }

    /// Whether an attack that is to last until `end` is over; `pause` passes before that.
    fn over(&self, end: Instant, pause: Duration) -> bool {
        clock::now() >= end || self.bell.rests(pause)
    }

    fn client(&self) -> Result<Client> {
        Client::open(&self.address.target).map_err(|e| anyhow!("{e}"))
    }
}

/// An attack and its bounds.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Ground<'_>) -> Result<String>,
    /// Connections of it that the node may hold at a time; more than it takes mean its limit.
    pub(crate) connections: fn(&Ground<'_>) -> usize,
    /// Bytes of the node's budget for requests and replies that it may take.
    pub(crate) payload: u64,
    /// Whether it is left out of the short run.
    pub(crate) long: bool,
}

const fn small(name: &'static str, run: fn(&Ground<'_>) -> Result<String>) -> Attack {
    Attack { name, run, connections: |_| 64, payload: 32 << 20, long: false }
}

/// All of them.
pub(crate) const ALL: [Attack; 14] = [
    small("giant", malformed::giant),
    small("wrong-endian", malformed::wrong_endian),
    small("wrong-call", malformed::wrong_call),
    small("noise", malformed::noise),
    small("replayed", order::replayed),
    small("replay-flood", order::replay_flood),
    small("out-of-order", order::out_of_order),
    small("pipelined", order::pipelined),
    Attack { connections: |_| 480, payload: 256 << 20, ..small("half-writes", bulk::half_writes) },
    Attack { connections: |_| 96, payload: 256 << 20, ..small("deaf", bulk::deaf) },
    Attack { connections: |g| g.crowd, ..small("thousands", bulk::thousands) },
    Attack { connections: |_| 200, payload: 64 << 20, ..small("slow", slow::slow) },
    Attack { connections: |_| REST_CONNECTIONS_MAX, ..small("http", http::http) },
    Attack { connections: |_| 128, long: true, ..small("http-slow", http::slow) },
];

/// Makes the directory and the file of the attacks.
pub(crate) fn prepare(address: &Address) -> Result<(Handle, Handle)> {
    let told = |e| anyhow!("{e}");
    let root = Client::mount(&address.target).map_err(told)?;
    let mut client = Client::open(&address.target).map_err(told)?;
    let dir = client.make_dir(&root, b"foes").map_err(told)?;
    let file = client.create(&dir, b"file").map_err(told)?;
    for at in (0..FILE_BYTES).step_by(1 << 20) {
        client.write(&file, u64::from(at), &vec![0xa5; 1 << 20], FILE_SYNC).map_err(told)?;
    }
    for n in 0..500 {
        let name = format!("{n:0200}");
        client.create(&dir, name.as_bytes()).map_err(told)?;
    }
    Ok((dir, file))
}

/// Arguments that begin with a handle.
fn with_handle(handle: &[u8]) -> Out {
    let mut out = Out::default();
    out.opaque(handle);
    out
}

/// Arguments of a READ.
fn read_arguments(file: &[u8], at: u64, count: u32) -> Vec<u8> {
    let mut out = with_handle(file);
    out.u64(at).u32(count);
    out.0
}

/// Arguments of a WRITE.
fn write_arguments(file: &[u8], data: &[u8], stable: u32) -> Vec<u8> {
    let mut out = with_handle(file);
    let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
    out.u64(0).u32(count).u32(stable).opaque(data);
    out.0
}
