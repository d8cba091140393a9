//! The clients' side of ONC RPC: calls as bytes, retransmission, duplicates, reconnects.
//!
//! Layer: above [`crate::net`]. A call is repeated with the same number until it is answered.
//! Checked here: every reply is well formed; replies to one call by one machine are equal, byte
//! for byte, when the call is one that must be done once.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use cairn_sim::Rng;
use cairn_sys::World;

use crate::net::{End, Net};
use crate::xdr::{In, Out};

/// Answered calls that duplicates are compared with.
const REMEMBERED_MAX: usize = 64;
/// Age of a call after which the server's reply cache may have forgotten it.
pub(crate) const CACHE_NANOS: u64 = 100_000_000_000;
/// Time for calls to be taken by the connection; a machine without power takes none.
const SEND_PATIENCE: Duration = Duration::from_secs(20);
const LAST_FRAGMENT: u32 = 0x8000_0000;

/// What must never happen, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) String);

/// Whether a call may be done again without a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Times {
    Any,
    Once,
}

/// A call to make.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) program: (u32, u32),
    pub(crate) procedure: u32,
    pub(crate) args: Vec<u8>,
    pub(crate) times: Times,
}

/// Its answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// The results.
    pub(crate) body: Vec<u8>,
    /// Machine that answered.
    pub(crate) incarnation: u64,
    /// The call may have been done before, by a machine that does not remember it.
    pub(crate) repeated: bool,
}

/// Counters of all clients.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RpcCounters {
    pub(crate) calls: u64,
    pub(crate) resent: u64,
    pub(crate) duplicates: u64,
    pub(crate) connects: u64,
}

struct Waiting {
    call: Call,
    first_sent: u64,
    first_incarnation: u64,
    reply: Option<Reply>,
}

struct Remembered {
    xid: u32,
    incarnation: u64,
    at: u64,
    times: Times,
    body: Vec<u8>,
}

struct Connected {
    end: End,
    incarnation: u64,
    buffer: Vec<u8>,
}

/// One client's RPC layer.
pub(crate) struct RpcClient {
    net: Arc<Net>,
    world: World,
    rng: Rng,
    address: SocketAddr,
    connected: Option<Connected>,
    xid: u32,
    remembered: Vec<Remembered>,
    pub(crate) counters: RpcCounters,
    /// One call in so many is sent twice on purpose; 0 for none.
    duplicate_one_in: u64,
}

/// `future`, or `None` when `time` is over first.
pub(crate) async fn within<T>(
    world: &World,
    time: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut late = world.clock.sleep(time);
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        late.as_mut().poll(cx).map(|()| None)
    })
    .await
}

fn record(xid: u32, call: &Call) -> Vec<u8> {
    let mut credential = Out::default();
    credential.u32(0).opaque(b"sim").u32(0).u32(0).u32(0);
    let mut out = Out::default();
    out.u32(0).u32(xid).u32(0).u32(2).u32(call.program.0).u32(call.program.1);
    out.u32(call.procedure).u32(1).opaque(&credential.0).u32(0).u32(0);
    out.0.extend_from_slice(&call.args);
    let len = u32::try_from(out.0.len() - 4).unwrap_or(u32::MAX);
    out.0[..4].copy_from_slice(&(len | LAST_FRAGMENT).to_be_bytes());
    out.0
}

/// Takes one whole record off the front of `buffer`.
fn take_record(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (mark, rest) = buffer.split_first_chunk::<4>()?;
    let mark = u32::from_be_bytes(*mark);
    let len = usize::try_from(mark & !LAST_FRAGMENT).unwrap_or(usize::MAX);
    let record = rest.get(..len)?.to_vec();
    buffer.drain(..4 + len);
    Some(record)
}

/// Number and results of a reply.
fn parse(record: &[u8]) -> Result<(u32, Vec<u8>), Violation> {
    let mut reply = In(record);
    let mut head = || -> Option<(u32, u32)> {
        let (xid, kind, accepted) = (reply.u32()?, reply.u32()?, reply.u32()?);
        if (kind, accepted) != (1, 0) {
            return None;
        }
        reply.u32()?;
        reply.opaque()?;
        Some((xid, reply.u32()?))
    };
    match head() {
        Some((xid, 0)) => Ok((xid, reply.0.to_vec())),
        other => Err(Violation(format!("a reply that is refused or malformed: {other:?}"))),
    }
}

impl RpcClient {
    pub(crate) fn new(net: Arc<Net>, world: World, number: u8, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let duplicate_one_in = [0, 0, 4, 16][rng.index(4)];
        Self {
            net,
            world,
            address: address(number),
            connected: None,
            xid: 1 + (u32::from(number) << 24),
            remembered: Vec::new(),
            counters: RpcCounters::default(),
            duplicate_one_in,
            rng,
        }
    }

    /// Makes all the calls, side by side, and waits for all answers.
    pub(crate) async fn exchange(&mut self, calls: Vec<Call>) -> Result<Vec<Reply>, Violation> {
        let mut waiting: BTreeMap<u32, Waiting> = BTreeMap::new();
        let mut order = Vec::new();
        for call in calls {
            self.xid = self.xid.wrapping_add(1);
            self.counters.calls += 1;
            order.push(self.xid);
            let first_incarnation = u64::MAX;
            waiting
                .insert(self.xid, Waiting { call, first_sent: 0, first_incarnation, reply: None });
        }
        let mut silences = 0;
        while waiting.values().any(|w| w.reply.is_none()) {
            if self.connected.is_none() {
                self.connect().await;
            }
            if self.send(&mut waiting).await.is_err() {
                self.connected = None;
                continue;
            }
            if self.receive_all(&mut waiting).await? {
                silences = 0;
            } else if self.connected.is_some() {
                // Silence: ask again, and believe in a broken connection in the end.
                silences += 1;
                if silences % 3 == 0 {
                    self.connected = None;
                }
            }
        }
        Ok(order.iter().filter_map(|x| waiting.remove(x)).filter_map(|w| w.reply).collect())
    }

    async fn connect(&mut self) {
        loop {
            self.counters.connects += 1;
            if let Some((end, incarnation)) = self.net.connect(self.address).await {
                self.connected = Some(Connected { end, incarnation, buffer: Vec::new() });
                return;
            }
            let pause = 50 + self.rng.below(400);
            self.world.clock.sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn send(&mut self, waiting: &mut BTreeMap<u32, Waiting>) -> std::io::Result<()> {
        let Some(connected) = &self.connected else { return Ok(()) };
        let now = self.world.clock.monotonic().get();
        let mut bytes = Vec::new();
        for (xid, w) in waiting.iter_mut().filter(|(_, w)| w.reply.is_none()) {
            if w.first_incarnation == u64::MAX {
                (w.first_incarnation, w.first_sent) = (connected.incarnation, now);
            } else {
                self.counters.resent += 1;
            }
            let record = record(*xid, &w.call);
            bytes.extend_from_slice(&record);
            if self.duplicate_one_in > 0 && self.rng.one_in(self.duplicate_one_in) {
                self.counters.duplicates += 1;
                bytes.extend_from_slice(&record);
            }
        }
        let sent = connected.end.write_all(&bytes);
        match within(&self.world, SEND_PATIENCE, sent).await {
            Some(sent) => sent,
            None => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// Receives until nothing is missing (`true`), or until silence or a break (`false`).
    async fn receive_all(
        &mut self,
        waiting: &mut BTreeMap<u32, Waiting>,
    ) -> Result<bool, Violation> {
        let patience = Duration::from_millis(1500 + self.rng.below(12_000));
        while waiting.values().any(|w| w.reply.is_none()) {
            let Some(connected) = &mut self.connected else { return Ok(false) };
            if let Some(record) = take_record(&mut connected.buffer) {
                let incarnation = connected.incarnation;
                let (xid, body) = parse(&record)?;
                if self.answered(xid, body, incarnation, waiting)? {
                    continue;
                }
                // The machine says that it has stopped: it will be started again.
                self.connected = None;
                self.world.clock.sleep(Duration::from_millis(300)).await;
                return Ok(false);
            }
            match within(&self.world, patience, connected.end.read_some()).await {
                Some(Ok(bytes)) if !bytes.is_empty() => connected.buffer.extend_from_slice(&bytes),
                Some(_) => {
                    self.connected = None;
                    return Ok(false);
                }
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Takes a reply; `false` when it only says that the machine has stopped.
    fn answered(
        &mut self,
        xid: u32,
        body: Vec<u8>,
        incarnation: u64,
        waiting: &mut BTreeMap<u32, Waiting>,
    ) -> Result<bool, Violation> {
        let status = In(&body).u32().unwrap_or(0);
        let down = matches!(status, 5 | 10_006)
            && (self.net.machine_stopped().is_some()
                || self.net.incarnation() != Some(incarnation));
        if down {
            return Ok(false);
        }
        let now = self.world.clock.monotonic().get();
        let before = self.remembered.iter().find(|r| r.xid == xid && r.incarnation == incarnation);
        if let Some(before) = before {
            let same = before.body == body;
            if before.times == Times::Once && now - before.at < CACHE_NANOS && !same {
                return Err(Violation(format!(
                    "call {xid:#x} was answered twice, differently: {:?} and {body:?}",
                    before.body
                )));
            }
        }
        let Some(w) = waiting.get_mut(&xid) else { return Ok(true) };
        if w.reply.is_some() {
            return Ok(true);
        }
        let repeated = w.first_incarnation != incarnation || now - w.first_sent > CACHE_NANOS;
        let at = w.first_sent;
        self.remembered.push(Remembered {
            xid,
            incarnation,
            at,
            times: w.call.times,
            body: body.clone(),
        });
        if self.remembered.len() > REMEMBERED_MAX {
            self.remembered.remove(0);
        }
        w.reply = Some(Reply { body, incarnation, repeated });
        Ok(true)
    }

    /// Drops the connection, as a client does that is restarted or moved.
    pub(crate) fn hang_up(&mut self) {
        self.connected = None;
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }
}

/// Address of client `number`.
pub(crate) fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 1, number], 700 + u16::from(number)))
}
