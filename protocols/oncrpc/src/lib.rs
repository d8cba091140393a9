//! ONC RPC over TCP: XDR, records, server loop, reply cache.
//!
//! Layer: below the protocol crates that speak RPC (NFS, MOUNT, rpcbind); above the sockets. It
//! knows no program: a [`Service`] decodes arguments and encodes results, this crate does
//! everything else: receives calls in place and payloads straight into blocks, bounds what is in
//! flight, answers duplicates, sends all ready replies in one vectored write.
//!
//! Sources: RFC 5531 (RPC), RFC 4506 (XDR). What must not be here: files, names, volumes.

mod budget;
mod config;
mod conn;
mod control;
pub mod fuzzing;
mod input;
pub mod message;
mod metrics;
mod output;
mod pace;
mod pending;
mod replay;
mod server;
mod service;
mod shortage;
mod stream;
mod udp;
pub mod xdr;

pub use config::{
    CONNECTION_REQUESTS_MAX, Limits, Progress, RECEIVE_BUFFER_BYTES, REQUEST_BYTES,
    SCARCE_WAIT_MAX, ServerConfig,
};
pub use metrics::{LATENCY_BUCKETS, MetricsSnapshot, ProcedureMetrics};
pub use server::{RunningServer, StartError, StreamServer, start};
pub use service::{Body, Call, Cost, Outcome, PayloadPlan, Plan, Replay, Service};
pub use stream::Stream;
pub use udp::{AMPLIFICATION_MAX, RunningUdp, answer_datagram, start_udp};
