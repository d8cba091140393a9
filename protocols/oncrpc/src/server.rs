//! The TCP server: worker threads, accepting, deadlines, stopping.
//!
//! One thread accepts for all; a connection goes to the worker with the fewest and stays there,
//! so nothing on the hot path moves between threads. (One listening socket per worker with
//! SO_REUSEPORT was rejected: it spreads few connections unevenly, and lets a second server bind
//! a port that is taken.) This module and the connection are the socket front end: the only
//! place here where tokio's runtime is used directly.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use cairn_sys::lock::{Guard, Mutex, Rank, scope};
use cairn_sys::{BoxFuture, World, mutant};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use crate::budget::Budget;
use crate::config::{Limits, SWEEP_INTERVAL, ServerConfig, WORKERS_MAX};
use crate::conn::Connection;
use crate::control::{Close, Control, Request};
use crate::metrics::{Metrics, MetricsSnapshot, count};
use crate::replay::ReplayCache;
use crate::service::Service;
use crate::shortage;
use crate::stream::Stream;

/// Connections that the kernel may hold for us before we accept them.
const BACKLOG: i32 = 1024;
/// Connections that are asked for their places at a time, at least: one in so many of the most.
const ROOM_PART: usize = 64;
/// Least time between two looks for idle connections: a look takes time in proportion to their
/// number, and newcomers may come faster than that.
const ROOM_INTERVAL_NANOS: u64 = 10_000_000;
/// Pause after a failed accept (out of descriptors, most often).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Log lines about peers in one second.
const LOG_LINES_PER_SECOND: u64 = 10;
/// Time for killed connections to go away.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is taken.
    #[error(
        "{addr} is in use by another program; stop that one (`ss -ltnp sport = :{port}` names \
         it) or choose another port",
        port = addr.port()
    )]
    InUse {
        /// Address asked for.
        addr: SocketAddr,
    },
    /// The port needs a privilege.
    #[error(
        "{addr} needs the right to bind a port below 1024; run as root or choose a higher port"
    )]
    NotAllowed {
        /// Address asked for.
        addr: SocketAddr,
    },
    /// The address is not one of this machine's.
    #[error("{addr} is not an address of this machine; `ip address` lists those it has")]
    NoSuchAddress {
        /// Address asked for.
        addr: SocketAddr,
    },
    /// Something else about the socket.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Address asked for.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No thread or event loop could be made.
    #[error("cannot start a worker thread: {0}; raise the limit on threads and open files")]
    Worker(#[source] io::Error),
}

impl StartError {
    /// Sorts what the system said about a bind or listen.
    pub fn from_listen(addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { addr },
            io::ErrorKind::PermissionDenied => Self::NotAllowed { addr },
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress { addr },
            _ => Self::Listen { addr, source },
        }
    }
}

/// Keeps a hostile peer from filling the log.
#[derive(Debug, Default)]
struct LogLimiter {
    second: AtomicU64,
    lines: AtomicU64,
}

impl LogLimiter {
    fn allows(&self, second: u64) -> bool {
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.lines.store(0, Ordering::Relaxed);
        }
        self.lines.fetch_add(1, Ordering::Relaxed) < LOG_LINES_PER_SECOND
    }
}

struct Worker {
    /// Where its connections run; `None` when they run wherever they are polled.
    handle: Option<Handle>,
    connections: AtomicUsize,
}

/// What all connections of a server share.
pub(crate) struct Shared<S: Service> {
    pub(crate) service: Arc<S>,
    pub(crate) limits: Limits,
    pub(crate) world: World,
    pub(crate) budget: Budget,
    pub(crate) replay: Arc<ReplayCache>,
    pub(crate) metrics: Metrics,
    name: &'static str,
    registry: Mutex<BTreeMap<u64, Arc<Control>>>,
    closed: Notify,
    log: LogLimiter,
    room_made_at: AtomicU64,
    workers: Vec<Worker>,
}

impl<S: Service> Shared<S> {
    fn new(
        name: &'static str,
        limits: Limits,
        service: Arc<S>,
        world: World,
        workers: Vec<Worker>,
    ) -> Arc<Self> {
        let limits = limits.normalized();
        Arc::new(Self {
            service,
            limits,
            world,
            budget: Budget::new(limits.total_bytes_max),
            replay: ReplayCache::new(&limits),
            metrics: Metrics::new(S::METRICS, workers.len()),
            name,
            registry: Mutex::new(Rank::Connections, BTreeMap::new()),
            closed: Notify::new(),
            log: LogLimiter::default(),
            room_made_at: AtomicU64::new(0),
            workers,
        })
    }

    fn registry(&self) -> Guard<'_, BTreeMap<u64, Arc<Control>>> {
        self.registry.lock()
    }

    fn may_log(&self) -> bool {
        self.log.allows(self.world.clock.monotonic().get() / 1_000_000_000)
    }

    fn all(&self) -> Vec<Arc<Control>> {
        self.registry().values().cloned().collect()
    }

    /// Asks idle connections for their places.
    fn make_room(&self) {
        let now = self.world.clock.monotonic();
        let before = self.room_made_at.load(Ordering::Relaxed);
        if now.get() < before.saturating_add(ROOM_INTERVAL_NANOS) {
            return;
        }
        self.room_made_at.store(now.get(), Ordering::Relaxed);
        let all = self.all();
        let over = (all.len() + 1).saturating_sub(self.limits.crowded());
        let count = over.max(self.limits.connections_max / ROOM_PART).max(1);
        let asked = shortage::for_places(&all, now, count);
        asked.iter().for_each(|control| control.ask(Request::Place));
    }

    fn report(&self, client: SocketAddr, close: &Close) {
        let events = &self.metrics.events;
        if close.is_bad_record() {
            count(&events.bad_records);
            if self.may_log() {
                tracing::warn!(server = self.name, %client, "connection closed: {close}");
            }
        } else {
            match close {
                Close::TimedOut => count(&events.timeouts),
                Close::GaveWay => count(&events.gave_way),
                Close::MadeRoom => count(&events.made_room),
                _ => {}
            }
            tracing::debug!(server = self.name, %client, "connection ended: {close}");
        }
    }
}

/// A registered connection; leaves the registry when it is dropped, however it ends.
struct Registered<S: Service> {
    shared: Arc<Shared<S>>,
    id: u64,
    worker: usize,
}

impl<S: Service> Drop for Registered<S> {
    fn drop(&mut self) {
        self.shared.registry().remove(&self.id);
        self.shared.workers[self.worker].connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.events.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.closed.notify_waiters();
    }
}

/// A server that runs. Dropped, it ends at once.
pub struct RunningServer<S: Service> {
    shared: Arc<Shared<S>>,
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: tokio::task::AbortHandle,
    sweeping: tokio::task::AbortHandle,
    threads: Vec<JoinHandle<()>>,
}

/// Starts a server.
///
/// # Errors
/// What to do about an address or thread that cannot be had.
pub fn start<S: Service>(
    config: &ServerConfig,
    service: Arc<S>,
    world: World,
) -> Result<RunningServer<S>, StartError> {
    let listener = listen(config.listen)?;
    let at = |source| StartError::Listen { addr: config.listen, source };
    let addr = listener.local_addr().map_err(at)?;
    let (stop, stopped) = watch::channel(false);
    let mut threads = Vec::new();
    let mut workers = Vec::new();
    let mut first = None;
    for n in 0..config.workers.clamp(1, WORKERS_MAX) {
        let (thread, handle) = start_worker(config.name, n, stopped.clone())?;
        threads.push(thread);
        first.get_or_insert_with(|| handle.clone());
        workers.push(Worker { handle: Some(handle), connections: AtomicUsize::new(0) });
    }
    let Some(first) = first else { unreachable!("there is at least one worker") };
    let shared = Shared::new(config.name, config.limits, service, world, workers);
    let listener = {
        let _guard = first.enter();
        TcpListener::from_std(listener).map_err(at)?
    };
    let accepting = first.spawn(accept_loop(shared.clone(), listener)).abort_handle();
    let sweeping = first.spawn(sweep_loop(shared.clone())).abort_handle();
    Ok(RunningServer { shared, addr, stop, accepting, sweeping, threads })
}

fn listen(addr: SocketAddr) -> Result<std::net::TcpListener, StartError> {
    use socket2::{Domain, Protocol, Socket, Type};
    let make = || -> io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        // Lets a restarted server have its port while old connections linger in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    make().map_err(|source| StartError::from_listen(addr, source))
}

pub(crate) fn start_worker(
    name: &'static str,
    n: usize,
    mut stopped: watch::Receiver<bool>,
) -> Result<(JoinHandle<()>, Handle), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(StartError::Worker)?;
    let handle = runtime.handle().clone();
    // A thread of its own: the event loop blocks it, and connections are pinned to it.
    let thread = std::thread::Builder::new()
        .name(if n == usize::MAX { format!("{name}-udp") } else { format!("{name}-{n}") })
        .spawn(move || {
            cairn_sys::event_loop::mark();
            // An error says that the server was dropped: that ends the worker as well.
            drop(runtime.block_on(stopped.wait_for(|stop| *stop)));
        })
        .map_err(StartError::Worker)?;
    Ok((thread, handle))
}

async fn accept_loop<S: Service>(shared: Arc<Shared<S>>, listener: TcpListener) {
    let mut next_id = 1u64;
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                // An IPv4 client of an IPv6 socket is known by its IPv4 address.
                let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                admit(&shared, stream, client, next_id);
                next_id += 1;
            }
            Err(e) => {
                count(&shared.metrics.events.accept_errors);
                shared.make_room();
                if shared.may_log() {
                    tracing::error!(
                        server = shared.name,
                        "cannot accept a connection: {e}; if descriptors are spent, raise the \
                         limit on open files"
                    );
                }
                shared.world.clock.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Enters a connection into the registry, on the worker with the fewest; `None`: too many.
fn register<S: Service>(
    shared: &Arc<Shared<S>>,
    client: SocketAddr,
    id: u64,
) -> Option<(Registered<S>, Arc<Control>)> {
    let events = &shared.metrics.events;
    let control = Arc::new(Control::new(id, client.ip(), shared.world.clock.monotonic()));
    let there = shared.registry().len();
    if there >= shared.limits.crowded() {
        shared.make_room();
    }
    {
        let mut registry = shared.registry();
        if registry.len() >= shared.limits.connections_max && !mutant("connections-not-counted") {
            drop(registry);
            count(&events.refused_connections);
            if shared.may_log() {
                tracing::warn!(
                    server = shared.name,
                    %client,
                    "connection refused: there are {} already",
                    shared.limits.connections_max
                );
            }
            return None;
        }
        registry.insert(id, control.clone());
    }
    count(&events.accepted);
    count(&events.connections);
    let least = shared.workers.iter().enumerate().min_by_key(|(_, w)| load(w));
    let worker = least.map_or(0, |(n, _)| n);
    shared.workers[worker].connections.fetch_add(1, Ordering::Relaxed);
    Some((Registered { shared: shared.clone(), id, worker }, control))
}

/// Serves a connection until it ends.
async fn run<S: Service, T: Stream>(
    registered: Registered<S>,
    control: Arc<Control>,
    stream: io::Result<T>,
    client: SocketAddr,
) {
    let shared = &registered.shared;
    let worker = registered.worker;
    let made = stream.and_then(|s| Connection::new(shared.clone(), control, worker, s, client));
    match made {
        Ok(mut connection) => {
            let close = poll_fn(|cx| connection.poll(cx)).await;
            shared.report(client, &close);
        }
        Err(e) => shared.report(client, &Close::Io(e)),
    }
}

fn admit<S: Service>(shared: &Arc<Shared<S>>, stream: TcpStream, client: SocketAddr, id: u64) {
    let Some((registered, control)) = register(shared, client, id) else { return };
    let worker = registered.worker;
    let stream = if worker == 0 {
        Ok(Accepted::Here(stream))
    } else {
        stream.into_std().map(Accepted::Moved)
    };
    let task = async move {
        let stream = match stream {
            Ok(Accepted::Here(stream)) => Ok(stream),
            Ok(Accepted::Moved(stream)) => TcpStream::from_std(stream),
            Err(e) => Err(e),
        };
        run(registered, control, stream, client).await;
    };
    if let Some(handle) = &shared.workers[worker].handle {
        drop(handle.spawn(scope(task)));
    }
}

/// A server without a socket: connections are handed to it. Everything above the transport is
/// that of [`start`]: limits, deadlines, reply cache.
pub struct StreamServer<S: Service> {
    shared: Arc<Shared<S>>,
    next_id: AtomicU64,
}

impl<S: Service> StreamServer<S> {
    /// Starts the task that looks at deadlines; it ends with the world.
    pub fn new(name: &'static str, limits: Limits, service: Arc<S>, world: World) -> Self {
        let spawn = world.spawn.clone();
        let workers = vec![Worker { handle: None, connections: AtomicUsize::new(0) }];
        let shared = Shared::new(name, limits, service, world, workers);
        spawn.spawn("rpc-deadlines", Box::pin(sweep_loop(shared.clone())));
        Self { shared, next_id: AtomicU64::new(1) }
    }

    /// Serves one connection; the future ends with it, and `None` when there are too many.
    pub fn serve<T: Stream>(&self, stream: T, client: SocketAddr) -> Option<BoxFuture<()>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (registered, control) = register(&self.shared, client, id)?;
        Some(Box::pin(run(registered, control, Ok(stream), client)))
    }

    /// What it has done so far.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.shared.metrics.snapshot(self.shared.budget.used())
    }
}

/// A fresh connection, still with the accepting worker or on its way to another.
enum Accepted {
    Here(TcpStream),
    Moved(std::net::TcpStream),
}

fn load(worker: &Worker) -> usize {
    worker.connections.load(Ordering::Relaxed)
}

async fn sweep_loop<S: Service>(shared: Arc<Shared<S>>) {
    loop {
        shared.world.clock.sleep(SWEEP_INTERVAL).await;
        let now = shared.world.clock.monotonic();
        let all = shared.all();
        all.iter().for_each(|control| control.check_deadline(now));
        let wanted = shared.budget.wanted();
        if wanted > 0 && !mutant("nobody-gives-way") {
            let asked = shortage::for_bytes(&all, now, wanted);
            asked.iter().for_each(|control| control.ask(Request::Bytes));
        }
    }
}

impl<S: Service> RunningServer<S> {
    /// The address and port that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The service.
    pub fn service(&self) -> &Arc<S> {
        &self.shared.service
    }

    /// What it has done so far.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.shared.metrics.snapshot(self.shared.budget.used())
    }

    /// Takes no more connections and requests, answers those in flight (for a bounded time), and
    /// ends.
    pub async fn shutdown(mut self) {
        self.accepting.abort();
        self.shared.all().iter().for_each(|control| control.drain());
        if !self.wait_empty(self.shared.limits.drain_timeout).await {
            let rest = self.shared.all();
            tracing::warn!(
                server = self.shared.name,
                "{} connections did not end in time and are cut",
                rest.len()
            );
            rest.iter().for_each(|control| control.kill());
            self.wait_empty(KILL_TIMEOUT).await;
        }
        self.end();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(server = self.shared.name, "a worker thread had panicked");
            }
        }
    }

    /// Whether all connections ended within `time`.
    async fn wait_empty(&self, time: Duration) -> bool {
        let mut late = self.shared.world.clock.sleep(time);
        loop {
            let mut closed = pin!(self.shared.closed.notified());
            closed.as_mut().enable();
            if self.shared.registry().is_empty() {
                return true;
            }
            let one_closed = poll_fn(|cx| {
                if closed.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                late.as_mut().poll(cx).map(|()| false)
            });
            if !one_closed.await {
                return self.shared.registry().is_empty();
            }
        }
    }

    fn end(&self) {
        self.accepting.abort();
        self.sweeping.abort();
        // Nobody listens when every worker has ended already.
        self.stop.send_replace(true);
    }
}

impl<S: Service> Drop for RunningServer<S> {
    fn drop(&mut self) {
        self.end();
    }
}
