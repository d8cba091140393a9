//! A small RPC program, a clock that the test moves, and a blocking client.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_oncrpc::message::{AUTH_NONE, CallHead, Refusal, put_call};
use cairn_oncrpc::xdr::{Decoder, Put};
use cairn_oncrpc::{
    Body, Call, Cost, Limits, Outcome, PayloadPlan, Plan, Replay, RunningServer, ServerConfig,
    Service, start,
};
use cairn_sys::{Block, BlockMut, BoxFuture, Clock, Payload};
use cairn_units::{MonoTime, WallTime};
use tokio::sync::{oneshot, watch};

pub const PROGRAM: u32 = 0x2000_0007;
pub const NULL: u32 = 0;
pub const ECHO: u32 = 1;
pub const STORE: u32 = 2;
pub const HOLD: u32 = 3;
pub const FETCH: u32 = 4;
pub const COUNT: u32 = 5;
/// Longest that a client waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Time that passes when the test says so.
pub struct ManualClock(watch::Sender<u64>);

impl ManualClock {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(watch::channel(1_000_000_000).0))
    }
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap();
        self.0.send_modify(|now| *now += by);
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> MonoTime {
        MonoTime::new(*self.0.borrow())
    }
    fn wall(&self) -> WallTime {
        WallTime::new(0)
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let until = self.monotonic().get() + u64::try_from(duration.as_nanos()).unwrap();
        let mut now = self.0.subscribe();
        Box::pin(async move {
            if now.wait_for(|now| *now >= until).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

/// NULL; ECHO: an opaque; STORE: offset and data, answers skip, length, checksum; HOLD: answers
/// its key when released; FETCH: so many bytes; COUNT: to be done once, held under its key,
/// answers how often it was done.
#[derive(Default)]
pub struct TestService {
    held: Mutex<BTreeMap<u32, oneshot::Sender<()>>>,
    pub counted: Arc<AtomicU64>,
}

impl TestService {
    /// Lets the call that is held under `key` go on; waits until there is one.
    pub fn release(&self, key: u32) {
        loop {
            let found = self.held.lock().unwrap().remove(&key);
            if let Some(sender) = found {
                assert!(sender.send(()).is_ok(), "the held call is gone");
                return;
            }
            std::thread::yield_now();
        }
    }
    pub fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }
    fn hold(&self, key: u32) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.held.lock().unwrap().insert(key, sender);
        receiver
    }
}

impl Service for TestService {
    const METRICS: &'static [&'static str] = &["null", "echo", "store", "hold", "fetch", "count"];

    fn plan(&self, call: &Call<'_>) -> Plan {
        let mut d = Decoder::new(call.args);
        let replay = if call.procedure == COUNT { Replay::Once } else { Replay::Idempotent };
        let reply_bytes = match call.procedure {
            FETCH => d.clone().u32().unwrap_or(0),
            ECHO => u32::try_from(call.args.len()).unwrap(),
            _ => 64,
        };
        let payload = (call.procedure == STORE)
            .then(|| {
                let file_offset = d.u64().ok()?;
                let bytes = d.u32().ok()?;
                Some(PayloadPlan { at: 12, file_offset, bytes })
            })
            .flatten();
        let metric = u16::try_from(call.procedure).unwrap_or(u16::MAX);
        Plan { cost: Cost { reply_bytes, replay, metric }, payload }
    }

    fn call(&self, call: &Call<'_>, payload: Option<Payload>, body: &mut Body) -> Outcome {
        if call.program != PROGRAM {
            return Outcome::Refused(Refusal::ProgramUnavailable);
        }
        if call.version != 1 {
            return Outcome::Refused(Refusal::ProgramMismatch { low: 1, high: 1 });
        }
        let mut d = Decoder::new(call.args);
        match call.procedure {
            NULL => Outcome::Done,
            ECHO => match d.opaque(u32::MAX) {
                Ok(data) => {
                    body.bytes.put_opaque(data);
                    Outcome::Done
                }
                Err(_) => Outcome::Refused(Refusal::GarbageArgs),
            },
            STORE => {
                let Some(payload) = payload else {
                    return Outcome::Refused(Refusal::GarbageArgs);
                };
                body.bytes.put_u32(payload.skip());
                body.bytes.put_u32(payload.len());
                body.bytes.put_u32(crc32fast::hash(&payload.to_vec()));
                Outcome::Done
            }
            HOLD => {
                let key = d.u32().unwrap();
                let released = self.hold(key);
                Outcome::Pending(Box::pin(async move {
                    drop(released.await);
                    let mut body = Body::default();
                    body.bytes.put_u32(key);
                    body
                }))
            }
            FETCH => {
                let len = d.u32().unwrap();
                body.bytes.put_u32(len);
                body.payload = Some(pattern(len));
                Outcome::Done
            }
            COUNT => {
                let key = d.u32().unwrap();
                let counted = self.counted.clone();
                let released = self.hold(key);
                Outcome::Pending(Box::pin(async move {
                    drop(released.await);
                    let mut body = Body::default();
                    let n = counted.fetch_add(1, Ordering::SeqCst) + 1;
                    body.bytes.put_u32(u32::try_from(n).unwrap());
                    body
                }))
            }
            _ => Outcome::Refused(Refusal::ProcedureUnavailable),
        }
    }
}

/// The bytes that FETCH gives.
pub fn pattern(len: u32) -> Payload {
    let block = BlockMut::copy_of(&[0x5a; 4096]).freeze();
    let blocks: Vec<Block> = (0..len.div_ceil(4096)).map(|_| block.clone()).collect();
    Payload::new(0, len, blocks)
}

pub struct Fixture {
    pub server: Option<RunningServer<TestService>>,
    pub clock: Arc<ManualClock>,
    pub runtime: tokio::runtime::Runtime,
}

impl Fixture {
    pub fn new(limits: Limits) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let clock = ManualClock::new();
        let mut world = cairn_sys::real::world(runtime.handle().clone()).unwrap();
        world.clock = clock.clone();
        let config = ServerConfig {
            name: "test",
            listen: "127.0.0.1:0".parse().unwrap(),
            workers: 2,
            limits,
        };
        let server = start(&config, Arc::new(TestService::default()), world).unwrap();
        Self { server: Some(server), clock, runtime }
    }
    pub fn server(&self) -> &RunningServer<TestService> {
        self.server.as_ref().unwrap()
    }
    pub fn service(&self) -> &TestService {
        self.server().service()
    }
    pub fn connect(&self) -> Client {
        Client::connect(self.server().addr())
    }
    /// Lets time pass until the server closes `client`'s connection.
    pub fn advance_until_closed(&self, client: &mut Client) {
        for _ in 0..2000 {
            self.clock.advance(Duration::from_secs(1));
            if client.is_closed_within(Duration::from_millis(10)) {
                return;
            }
        }
        panic!("the connection stays open for ever");
    }
    /// Waits (busily, with a bound) until the condition holds.
    pub fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        #[expect(clippy::disallowed_methods, reason = "a bound on how long a test may hang")]
        let start = std::time::Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < PATIENCE, "never: {what}; {:?}", self.server().metrics());
            std::thread::yield_now();
        }
    }
}

pub fn head(xid: u32, procedure: u32) -> CallHead {
    CallHead {
        xid,
        program: PROGRAM,
        version: 1,
        procedure,
        flavor: AUTH_NONE,
        credential_len: 0,
        args_at: 0,
    }
}

/// A call as a record of one fragment.
pub fn record(xid: u32, procedure: u32, args: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_call(&mut out, &head(xid, procedure), &[], args);
    out
}

pub fn word(n: u32) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

pub fn store_args(offset: u64, data: &[u8]) -> Vec<u8> {
    let mut args = Vec::new();
    args.put_u64(offset);
    args.put_opaque(data);
    args
}

/// What STORE answers.
pub fn stored(offset: u64, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(u32::try_from(offset % 4096).unwrap());
    out.put_u32(u32::try_from(data.len()).unwrap());
    out.put_u32(crc32fast::hash(data));
    out
}

pub struct Client(pub TcpStream);

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }
    pub fn call(&mut self, xid: u32, procedure: u32, args: &[u8]) -> Vec<u8> {
        self.send(&record(xid, procedure, args));
        self.result(xid)
    }
    /// The next reply, mark excluded.
    pub fn reply(&mut self) -> Vec<u8> {
        let mut mark = [0; 4];
        self.0.read_exact(&mut mark).unwrap();
        let len = u32::from_be_bytes(mark) & 0x7fff_ffff;
        let mut out = vec![0; len as usize];
        self.0.read_exact(&mut out).unwrap();
        out
    }
    /// The result in the next reply, which must be a success for `xid`.
    pub fn result(&mut self, xid: u32) -> Vec<u8> {
        let reply = self.reply();
        let mut expected = word(xid);
        [1, 0, 0, 0, 0].iter().for_each(|w| expected.put_u32(*w));
        assert_eq!(&reply[..24], expected, "header of reply to {xid}");
        reply[24..].to_vec()
    }
    pub fn words(&mut self) -> Vec<u32> {
        let reply = self.reply();
        reply.chunks(4).map(|c| u32::from_be_bytes(c.try_into().unwrap())).collect()
    }
    /// Whether the server has ended the connection; nothing is read.
    pub fn is_closed_soon(&mut self) -> bool {
        self.0.set_read_timeout(Some(Duration::from_millis(3))).unwrap();
        let closed = match self.0.peek(&mut [0; 1]) {
            Ok(n) => n == 0,
            Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        closed
    }
    /// Takes one byte at most, if one is there soon.
    pub fn take_one_byte(&mut self) {
        self.0.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        drop(self.0.read(&mut [0; 1]));
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    /// Whether the server ends the connection within `time`; anything read is dropped.
    pub fn is_closed_within(&mut self, time: Duration) -> bool {
        self.0.set_read_timeout(Some(time)).unwrap();
        let mut buffer = [0; 4096];
        let closed = loop {
            match self.0.read(&mut buffer) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    break false;
                }
                Err(_) => break true,
            }
        };
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        closed
    }
}
