//! What a program (NFS, MOUNT, rpcbind) gives to the server: the [`Service`] trait.
//!
//! Life of a call: `plan` (how it is to be received, what it may cost) → the charge is taken →
//! payload received → duplicates sorted out → `call` → reply.

use std::net::SocketAddr;

use cairn_sys::{BoxFuture, Payload};
use cairn_units::OpNo;

use crate::message::{Auth, Refusal};

/// A call, parsed up to its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Program number.
    pub program: u32,
    /// Program version.
    pub version: u32,
    /// Procedure.
    pub procedure: u32,
    /// Who asks.
    pub auth: &'a Auth,
    /// Where the client is.
    pub client: SocketAddr,
    /// The address that the client reached us at.
    pub local: SocketAddr,
    /// Number for traces.
    pub op_no: OpNo,
    /// The arguments, without the payload if there is one. In [`Service::plan`] they may be cut
    /// off behind the first KiB.
    pub args: &'a [u8],
}

/// Whether the reply is kept and given again to duplicates of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Doing it twice is the same as doing it once.
    Idempotent,
    /// It is to be done once.
    Once,
}

/// What a call may cost and how it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Largest reply.
    pub reply_bytes: u32,
    /// Whether duplicates are caught.
    pub replay: Replay,
    /// Index into [`Service::METRICS`].
    pub metric: u16,
}

/// Opaque data at the end of a call's arguments that is to be received into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadPlan {
    /// Where the data begins in the arguments.
    pub at: usize,
    /// Where it belongs in its file: decides the place in the first block.
    pub file_offset: u64,
    /// Bytes of data.
    pub bytes: u32,
}

/// How a call is to be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it may cost.
    pub cost: Cost,
    /// Its payload, if there is one. One that does not end exactly where the record ends is
    /// ignored, and the call is made with all of its bytes in `args`.
    pub payload: Option<PayloadPlan>,
}

/// A result in XDR: bytes, then perhaps a payload (whose padding the server adds).
#[derive(Debug, Default)]
pub struct Body {
    /// The bytes. May hold other replies already: only ever append.
    pub bytes: Vec<u8>,
    /// What follows them.
    pub payload: Option<Payload>,
    /// Whether the result says no (for the counters).
    pub failed: bool,
}

/// What becomes of a call.
#[must_use]
pub enum Outcome {
    /// The result is in the body.
    Done,
    /// The result will come, in a body of its own; nothing was written.
    Pending(BoxFuture<Body>),
    /// There is no result; what was written is dropped.
    Refused(Refusal),
}

/// One or more RPC programs.
pub trait Service: Send + Sync + 'static {
    /// Names of the counters that [`Cost::metric`] points into.
    const METRICS: &'static [&'static str];

    /// How to receive this call. Cheap, and called again if the call must wait for budget.
    fn plan(&self, call: &Call<'_>) -> Plan;

    /// Makes the call.
    fn call(&self, call: &Call<'_>, payload: Option<Payload>, body: &mut Body) -> Outcome;
}
