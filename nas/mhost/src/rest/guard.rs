//! Bounds of REST's connections: how many there are, and how long one may wait for its peer.
//!
//! Layer: between the listening socket and the HTTP library, which has no such bounds. It knows
//! nothing of HTTP: the middleware [`whole_request`] says when a request is whole and when it is
//! answered. Rules: a connection that owes us bytes (the rest of a request, or the next one) has
//! [`REQUEST_TIME`]; one that does not take its answer has [`SEND_TIME`] from its last byte. There
//! are at most [`CONNECTIONS_MAX`]; when few places are left, those that have waited longest go.
//! A request at work is never cut off. Time comes from the clock seam.

use core::time::Duration;
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use axum::body::{Body, to_bytes};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::{IncomingStream, Listener};
use cairn_sys::lock::{Mutex, Rank};
use cairn_sys::{BoxFuture, Clock, mutant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::BODY_BYTES_MAX;
use crate::error::ApiError;

/// Time for a request to arrive whole, and for the next one to begin.
pub const REQUEST_TIME: Duration = Duration::from_secs(20);
/// Time without progress in sending an answer.
pub const SEND_TIME: Duration = Duration::from_secs(20);
/// Connections at a time.
pub const CONNECTIONS_MAX: usize = 128;
/// Free places below which room is made.
const ROOM: usize = 8;
const _: () = assert!(ROOM < CONNECTIONS_MAX);
/// A connection that has waited for less time keeps its place.
const WAIT_MIN_NANOS: u64 = 250_000_000;
/// Least time between two log lines about refused connections.
const WARN_INTERVAL_NANOS: u64 = 1_000_000_000;
/// No time.
const NEVER: u64 = u64::MAX;

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

type Places = Arc<Mutex<BTreeMap<u64, Arc<Place>>>>;

/// One connection, as the listener and its requests see it.
pub(super) struct Place {
    clock: Arc<dyn Clock>,
    /// It has owed us bytes since; [`NEVER`] while a request is at work.
    waits_since: AtomicU64,
    evicted: AtomicBool,
    reader: Mutex<Option<Waker>>,
}

impl Place {
    fn waits(&self) {
        self.waits_since.store(self.clock.monotonic().get(), Ordering::Relaxed);
    }
    fn works(&self) {
        self.waits_since.store(NEVER, Ordering::Relaxed);
    }
    fn since(&self) -> u64 {
        self.waits_since.load(Ordering::Relaxed)
    }
    fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::SeqCst)
    }
    fn evict(&self) {
        self.evicted.store(true, Ordering::SeqCst);
        let reader = self.reader.lock().take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }
    fn is_read_by(&self, cx: &Context<'_>) {
        *self.reader.lock() = Some(cx.waker().clone());
    }
}

/// A deadline that moves.
#[derive(Default)]
struct Alarm(Option<(u64, BoxFuture<()>)>);

impl Alarm {
    /// An error when `deadline` has passed; else the task is woken then.
    fn check(&mut self, clock: &dyn Clock, deadline: u64, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            let now = clock.monotonic().get();
            if now >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match &mut self.0 {
                Some((at, sleep)) if *at == deadline => {
                    if sleep.as_mut().poll(cx).is_pending() {
                        return Ok(());
                    }
                    self.0 = None;
                }
                other => {
                    let left = Duration::from_nanos(deadline - now);
                    *other = Some((deadline, clock.sleep(left)));
                }
            }
        }
    }
}

/// A stream whose peer must not keep us waiting.
pub(super) struct Guarded<T> {
    inner: T,
    number: u64,
    place: Arc<Place>,
    places: Places,
    reading: Alarm,
    writing: Alarm,
    write_stuck_since: Option<u64>,
}

impl<T> Guarded<T> {
    fn check_read(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.place.is_read_by(cx);
        if self.place.is_evicted() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match self.place.since() {
            NEVER => Ok(()),
            _ if mutant("rest-waits-for-ever") => Ok(()),
            since => {
                let deadline = since.saturating_add(nanos(REQUEST_TIME));
                self.reading.check(&*self.place.clock, deadline, cx)
            }
        }
    }

    fn written<R>(
        &mut self,
        done: Poll<io::Result<R>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<R>> {
        if done.is_ready() {
            self.write_stuck_since = None;
            return done;
        }
        if self.place.is_evicted() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let clock = &*self.place.clock;
        let since = *self.write_stuck_since.get_or_insert_with(|| clock.monotonic().get());
        match self.writing.check(clock, since.saturating_add(nanos(SEND_TIME)), cx) {
            Ok(()) => Poll::Pending,
            Err(late) => Poll::Ready(Err(late)),
        }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        self.places.lock().remove(&self.number);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Pending => match self.check_read(cx) {
                Ok(()) => Poll::Pending,
                Err(late) => Poll::Ready(Err(late)),
            },
            ready => ready,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.written(done, cx)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.written(done, cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// A listener whose connections are bounded.
pub(super) struct Guarding<L> {
    inner: L,
    clock: Arc<dyn Clock>,
    places: Places,
    next: u64,
    refused: u64,
    warned_at: u64,
}

impl<L: Listener> Guarding<L> {
    pub(super) fn new(inner: L, clock: Arc<dyn Clock>) -> Self {
        let places = Arc::new(Mutex::new(Rank::RestConnections, BTreeMap::new()));
        Self { inner, clock, places, next: 0, refused: 0, warned_at: 0 }
    }

    /// `None` when there are too many.
    fn admit(&mut self, inner: L::Io) -> Option<Guarded<L::Io>> {
        let now = self.clock.monotonic().get();
        let mut places = self.places.lock();
        if places.len() >= CONNECTIONS_MAX - ROOM {
            let there = places.values().filter(|p| !p.is_evicted());
            let longest = there.min_by_key(|p| p.since());
            if let Some(longest) = longest
                && longest.since().saturating_add(WAIT_MIN_NANOS) <= now
            {
                longest.evict();
            }
        }
        if places.len() >= CONNECTIONS_MAX && !mutant("rest-connections-not-counted") {
            drop(places);
            self.refused += 1;
            // A flood must not fill the log.
            if now >= self.warned_at.saturating_add(WARN_INTERVAL_NANOS) {
                self.warned_at = now;
                tracing::warn!(
                    "REST: connection refused: there are {CONNECTIONS_MAX} already ({} refused so \
                     far)",
                    self.refused
                );
            }
            return None;
        }
        let place = Arc::new(Place {
            clock: self.clock.clone(),
            waits_since: AtomicU64::new(now),
            evicted: AtomicBool::new(false),
            reader: Mutex::new(Rank::RestReader, None),
        });
        let number = self.next;
        self.next += 1;
        places.insert(number, place.clone());
        drop(places);
        let (reading, writing) = (Alarm::default(), Alarm::default());
        let places = self.places.clone();
        Some(Guarded { inner, number, place, places, reading, writing, write_stuck_since: None })
    }
}

impl<L: Listener> Listener for Guarding<L> {
    type Io = Guarded<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (inner, addr) = self.inner.accept().await;
            if let Some(stream) = self.admit(inner) {
                return (stream, addr);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

/// The connection of a request.
#[derive(Clone)]
pub(super) struct Of(Arc<Place>);

impl<L: Listener> Connected<IncomingStream<'_, Guarding<L>>> for Of {
    fn connect_info(stream: IncomingStream<'_, Guarding<L>>) -> Self {
        Self(stream.io().place.clone())
    }
}

/// Receives the body within the time of the request, then lets the work take as long as it takes.
pub(super) async fn whole_request(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = match to_bytes(body, BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(e) => {
            let what = format!("the body could not be read: {e}");
            return ApiError::bad(what, "send a smaller body").into_response();
        }
    };
    let place = parts.extensions.get::<ConnectInfo<Of>>().cloned();
    if let Some(ConnectInfo(Of(place))) = &place {
        place.works();
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    if let Some(ConnectInfo(Of(place))) = &place {
        place.waits();
    }
    response
}
