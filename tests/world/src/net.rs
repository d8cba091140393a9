//! The network: connections in memory that delay, cut up, stop and break.
//!
//! Layer: outside of the machine under test. The server's end is a [`Stream`] like a TCP socket;
//! the client's end is used by [`crate::rpc`]. Kept promises of TCP: bytes arrive in order or
//! not at all, and a client that connects anew from its address has reset its old connection
//! (clients keep their port for that).
//!
//! ```text
//! client end ─ write ─▶ sent ─(pump: latency, pieces, partitions)─▶ arrived ─ read ─▶ server end
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cairn_oncrpc::Stream;
use cairn_sys::World;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes under way in one direction after which a writer waits.
const WINDOW_BYTES: usize = 256 << 10;

/// Locks; a failed assertion elsewhere must not hide behind a second panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Pipe {
    sent: VecDeque<u8>,
    arrived: VecDeque<u8>,
    /// The writer has ended; what was sent still arrives.
    eof: bool,
    /// Broken: nothing arrives any more.
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    pump: Option<Waker>,
}

impl Pipe {
    fn wake_all(&mut self) {
        for waker in [&mut self.reader, &mut self.writer, &mut self.pump] {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }
    fn reset(&mut self) {
        self.reset = true;
        self.wake_all();
    }
}

type SharedPipe = Arc<Mutex<Pipe>>;

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// One end of a connection.
pub(crate) struct End {
    rx: SharedPipe,
    tx: SharedPipe,
    /// Whether the peer is told when this end goes away.
    net: Arc<Net>,
    server: bool,
}

impl End {
    fn poll_take(
        &self,
        cx: &mut Context<'_>,
        out: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        let mut pipe = lock(&self.rx);
        if pipe.reset {
            return Poll::Ready(Err(broken()));
        }
        if pipe.arrived.is_empty() {
            if pipe.eof && pipe.sent.is_empty() {
                return Poll::Ready(Ok(0));
            }
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = out(pipe.arrived.as_slices().0);
        pipe.arrived.drain(..n);
        if let Some(waker) = pipe.writer.take() {
            waker.wake();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_put(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = lock(&self.tx);
        if pipe.reset {
            return Poll::Ready(Err(broken()));
        }
        let room = WINDOW_BYTES.saturating_sub(pipe.sent.len() + pipe.arrived.len());
        if room == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = room.min(bytes.len());
        pipe.sent.extend(&bytes[..n]);
        if let Some(waker) = pipe.pump.take() {
            waker.wake();
        }
        Poll::Ready(Ok(n))
    }

    /// Some bytes, at least one; empty at the end.
    pub(crate) async fn read_some(&self) -> io::Result<Vec<u8>> {
        let mut got = Vec::new();
        poll_fn(|cx| {
            self.poll_take(cx, &mut |bytes| {
                got = bytes.to_vec();
                got.len()
            })
        })
        .await?;
        Ok(got)
    }

    /// All of `bytes`.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = poll_fn(|cx| self.poll_put(cx, bytes)).await?;
            bytes = &bytes[n..];
        }
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.server && lock(&self.net.state).silent {
            // The machine lost its power: nobody says good-bye.
            return;
        }
        lock(&self.rx).reset();
        let mut tx = lock(&self.tx);
        tx.eof = true;
        tx.wake_all();
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_take(cx, &mut |bytes| {
            let n = bytes.len().min(buf.remaining());
            buf.put_slice(&bytes[..n]);
            n
        })
        .map(|done| done.map(drop))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_put(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Stream for End {
    fn prepare(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([10, 0, 0, 1], 2049)))
    }
    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_take(cx, &mut |mut bytes| {
            let all = bytes.len();
            for slice in slices.iter_mut() {
                let n = bytes.len().min(slice.len());
                slice[..n].copy_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
            }
            all - bytes.len()
        })
    }
}

/// A machine that takes connections.
pub(crate) struct Port {
    /// How many machines there were before it.
    pub(crate) incarnation: u64,
    /// Serves the connection until it ends.
    pub(crate) accept: Arc<dyn Fn(End, SocketAddr) + Send + Sync>,
    /// Whether it has stopped by itself, and why.
    pub(crate) stopped: Box<dyn Fn() -> Option<String> + Send>,
}

#[derive(Default)]
struct State {
    port: Option<Port>,
    silent: bool,
    /// Nothing passes to and from a client until then (virtual nanoseconds).
    parted: BTreeMap<SocketAddr, u64>,
    live: BTreeMap<SocketAddr, (SharedPipe, SharedPipe)>,
}

/// All cables.
pub(crate) struct Net {
    world: World,
    state: Mutex<State>,
}

impl Net {
    pub(crate) fn new(world: World) -> Arc<Self> {
        Arc::new(Self { world, state: Mutex::default() })
    }

    /// A machine listens from now on.
    pub(crate) fn listen(&self, port: Port) {
        let mut state = lock(&self.state);
        state.silent = false;
        state.port = Some(port);
    }

    /// The machine is gone: silently (power) or so that its kernel says so (program).
    pub(crate) fn machine_goes(&self, silent: bool) {
        let port = {
            let mut state = lock(&self.state);
            state.silent = silent;
            state.port.take()
        };
        drop(port);
    }

    /// Whether the machine, should it lose its power, goes without a word.
    pub(crate) fn set_silent(&self, silent: bool) {
        lock(&self.state).silent = silent;
    }

    /// Why the machine that listens has stopped by itself, if it has.
    pub(crate) fn machine_stopped(&self) -> Option<String> {
        lock(&self.state).port.as_ref().and_then(|port| (port.stopped)())
    }

    /// Which machine listens.
    pub(crate) fn incarnation(&self) -> Option<u64> {
        lock(&self.state).port.as_ref().map(|port| port.incarnation)
    }

    /// Breaks the client's connection.
    pub(crate) fn break_connection(&self, client: SocketAddr) {
        let pipes = lock(&self.state).live.remove(&client);
        if let Some((one, other)) = pipes {
            lock(&one).reset();
            lock(&other).reset();
        }
    }

    /// Nothing passes to and from the client for a while.
    pub(crate) fn part(&self, client: SocketAddr, time: Duration) {
        let until = self.now() + u64::try_from(time.as_nanos()).unwrap_or(0);
        lock(&self.state).parted.insert(client, until);
    }

    /// Every partition ends.
    pub(crate) fn heal(&self) {
        lock(&self.state).parted.clear();
    }

    fn now(&self) -> u64 {
        self.world.clock.monotonic().get()
    }

    async fn wait_unparted(&self, client: SocketAddr) {
        loop {
            let until = lock(&self.state).parted.get(&client).copied().unwrap_or(0);
            if until <= self.now() {
                return;
            }
            self.world.clock.sleep(Duration::from_millis(100)).await;
        }
    }

    /// Connects; `None` when nobody listens. With the incarnation of who answered.
    pub(crate) async fn connect(self: &Arc<Self>, client: SocketAddr) -> Option<(End, u64)> {
        self.wait_unparted(client).await;
        self.break_connection(client);
        let latency = 50 + self.world.entropy.next_u64() % 500;
        self.world.clock.sleep(Duration::from_micros(latency)).await;
        let (up, down) = (SharedPipe::default(), SharedPipe::default());
        let end = |rx: &SharedPipe, tx: &SharedPipe, server| End {
            rx: rx.clone(),
            tx: tx.clone(),
            net: self.clone(),
            server,
        };
        let (accept, incarnation) = {
            let mut state = lock(&self.state);
            let port = state.port.as_ref()?;
            let answer = (port.accept.clone(), port.incarnation);
            state.live.insert(client, (up.clone(), down.clone()));
            answer
        };
        accept(end(&up, &down, true), client);
        for pipe in [&up, &down] {
            let task = pump(self.clone(), pipe.clone(), client);
            self.world.spawn.spawn("cable", Box::pin(task));
        }
        Some((end(&down, &up, false), incarnation))
    }
}

/// Carries bytes from one end to the other.
async fn pump(net: Arc<Net>, pipe: SharedPipe, client: SocketAddr) {
    loop {
        let more = poll_fn(|cx| {
            let mut pipe = lock(&pipe);
            if pipe.reset || (pipe.eof && pipe.sent.is_empty()) {
                return Poll::Ready(false);
            }
            if pipe.sent.is_empty() {
                pipe.pump = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(true)
        });
        if !more.await {
            return;
        }
        let chance = net.world.entropy.next_u64();
        net.world.clock.sleep(Duration::from_micros(20 + chance % 200)).await;
        net.wait_unparted(client).await;
        let mut pipe = lock(&pipe);
        let all = pipe.sent.len();
        // Whole most of the time; else a piece, so that every state of the parser is met.
        let take = match (chance >> 32) % 4 {
            0 => 1 + usize::try_from(chance >> 40).unwrap_or(0) % all.max(1),
            _ => all,
        };
        let take = take.min(all);
        let moved: Vec<u8> = pipe.sent.drain(..take).collect();
        pipe.arrived.extend(moved);
        if let Some(waker) = pipe.reader.take() {
            waker.wake();
        }
    }
}
