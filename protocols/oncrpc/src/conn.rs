//! One connection: receives calls, has them made, sends the replies.
//!
//! A state machine polled by one task that never leaves its worker thread:
//! ```text
//!            mark, head                    payload whole
//!   Head ────────────────▶ (dispatch) ◀──────────────── Payload
//!    │  step_head              ▲                           ▲
//!    │ many fragments          │ record whole              │ step_head: head of a call with
//!    └────────────▶ Assemble ──┘ step_assemble             │ payload, rest still to come
//! ```
//! A round of [`Connection::poll`] takes what finished operations left, parses and dispatches
//! every whole call there is, sends every reply there is in one vectored write, then reads.
//!
//! Invariants: nothing is allocated for a call before its charge is taken from the connection's
//! and the server's budget; the charge is held until the last byte of its reply is sent; when a
//! budget is spent, the socket is not read. A silent peer holds the receive window only. A peer
//! that holds a charge must make the progress that [`crate::Limits`] asks for; the connection
//! judges that itself, after it has taken what lies in the socket.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use cairn_sys::{BoxFuture, Payload, mutant};
use cairn_units::{MonoTime, OpNo};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::budget::Asker;
use crate::config::{FRAGMENTS_MAX, RECEIVE_BUFFER_BYTES, REQUEST_BYTES};
use crate::control::{Close, Control, NEVER, Order, Request, Standing};
use crate::input::{Filling, NARROW_WINDOW_BYTES, Window};
use crate::message::{
    AcceptedStart, Auth, AuthRefusal, CREDENTIAL_AT, CallHead, HeadError, MARK_BYTES, Mark,
    RECORD_BYTES_MAX, Refusal, parse_auth, parse_head, patch_mark, put_refusal,
};
use crate::metrics::{Finished, count};
use crate::output::Output;
use crate::pace::Watch;
use crate::pending::PendingSet;
use crate::replay::{Admission, CHECKSUM_BYTES, Key, Ticket};
use crate::server::Shared;
use crate::service::{Body, Call, Cost, Outcome, PayloadPlan, Replay, Service};
use crate::stream::Stream;
use crate::xdr::{Put, padding};

/// Bytes of a record that hold every header with arguments of a call with payload.
const HEAD_BYTES: usize = 1024;
/// A payload from this size on makes the window narrow for the next head.
const LARGE_PAYLOAD_BYTES: u32 = 32 << 10;
enum Receiving {
    Head,
    Payload(Box<PartialCall>),
    Assemble(Assembly),
}

/// A call whose payload is still coming.
struct PartialCall {
    head: CallHead,
    /// The record up to the payload.
    record: Vec<u8>,
    filling: Filling,
    pad: usize,
    meta: Meta,
    replay: Replay,
}

/// A record that comes in fragments, or that is too long for the window.
struct Assembly {
    record: Vec<u8>,
    fragment_left: usize,
    last: bool,
    fragments: u32,
    charge: u64,
}

/// What is known of a call until its reply is sent.
#[derive(Clone, Copy)]
struct Meta {
    xid: u32,
    charge: u64,
    metric: u16,
    bytes_in: u32,
    started: MonoTime,
}

/// A reply on its way.
struct Queued {
    end: u64,
    charge: u64,
    started: MonoTime,
    done: Finished,
}

enum Work {
    Call(BoxFuture<Body>),
    Parked(oneshot::Receiver<Bytes>),
}

enum Worked {
    Body(Body),
    /// A kept reply, mark excluded.
    Kept(Bytes),
    /// The first call had no result; the client will ask again.
    Nothing,
}

/// A call under way.
struct PendingCall {
    work: Work,
    meta: Meta,
    ticket: Option<Ticket>,
}

impl Future for PendingCall {
    type Output = Worked;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Worked> {
        match &mut self.work {
            Work::Call(future) => future.as_mut().poll(cx).map(Worked::Body),
            Work::Parked(receiver) => Pin::new(receiver).poll(cx).map(|reply| match reply {
                Ok(reply) => Worked::Kept(reply),
                Err(_) => Worked::Nothing,
            }),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Something was done: go on.
    Done,
    /// More bytes are needed.
    NeedInput,
    /// A budget is spent.
    Blocked,
}

/// What became of a record, or the first part of one.
enum Taken {
    /// All the given bytes are used; so many bytes of the record are still to be skipped.
    Used {
        skip: usize,
    },
    NeedInput,
    Blocked,
}

/// The last credential and what it means: a client sends the same one again and again.
#[derive(Default)]
struct AuthMemo {
    flavor: u32,
    raw: Vec<u8>,
    auth: Auth,
}

pub(crate) struct Connection<S: Service, T: Stream = TcpStream> {
    shared: Arc<Shared<S>>,
    control: Arc<Control>,
    worker: usize,
    stream: T,
    client: SocketAddr,
    local: SocketAddr,
    window: Window,
    window_bytes: usize,
    receiving: Receiving,
    skip: usize,
    auth: AuthMemo,
    pending: PendingSet<PendingCall>,
    output: Output,
    queued: std::collections::VecDeque<Queued>,
    requests: usize,
    bytes: u64,
    ops: u64,
    last_step: Step,
    eof: bool,
    draining: bool,
    received_at: MonoTime,
    received: u64,
    record_since: Option<MonoTime>,
    idle_since: Option<MonoTime>,
    answered: bool,
    receive_watch: Watch,
    send_watch: Watch,
}

impl<S: Service, T: Stream> Connection<S, T> {
    pub(crate) fn new(
        shared: Arc<Shared<S>>,
        control: Arc<Control>,
        worker: usize,
        stream: T,
        client: SocketAddr,
    ) -> std::io::Result<Self> {
        let local = stream.prepare()?;
        let received_at = shared.world.clock.monotonic();
        let pending = PendingSet::new(control.task().clone());
        Ok(Self {
            shared,
            control,
            worker,
            stream,
            client,
            local,
            window: Window::new(),
            window_bytes: RECEIVE_BUFFER_BYTES,
            receiving: Receiving::Head,
            skip: 0,
            auth: AuthMemo::default(),
            pending,
            output: Output::default(),
            queued: std::collections::VecDeque::new(),
            requests: 0,
            bytes: 0,
            ops: 0,
            last_step: Step::NeedInput,
            eof: false,
            draining: false,
            received_at,
            received: 0,
            record_since: None,
            idle_since: None,
            answered: false,
            receive_watch: Watch::default(),
            send_watch: Watch::default(),
        })
    }

    /// Goes on as far as possible; ready when the connection is over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Close> {
        self.control.task().set(cx.waker());
        loop {
            match self.control.ordered() {
                Order::Run => {}
                Order::Drain if self.draining => {}
                Order::Drain => {
                    self.draining = true;
                    // It will not try again, and must not stand in the way of those behind it.
                    self.shared.budget.forget(self.asker());
                }
                Order::Kill => return Poll::Ready(Close::Stopped),
            }
            match self.round(cx) {
                Ok(true) => {}
                Ok(false) => {
                    return match self.judge() {
                        Ok(()) => Poll::Pending,
                        Err(close) => Poll::Ready(close),
                    };
                }
                Err(close) => return Poll::Ready(close),
            }
        }
    }

    /// One round; whether anything was done.
    fn round(&mut self, cx: &mut Context<'_>) -> Result<bool, Close> {
        let mut progress = self.take_finished();
        if !self.draining {
            progress |= self.advance(cx.waker())?;
        }
        progress |= self.flush(cx)?;
        if !self.draining && !self.eof && self.last_step == Step::NeedInput {
            progress |= self.fill(cx)?;
        }
        let no_more = self.draining || self.eof && self.last_step == Step::NeedInput;
        if no_more && !progress && self.pending.len() == 0 && self.output.is_empty() {
            return Err(if self.draining { Close::Stopped } else { Close::Done });
        }
        Ok(progress)
    }

    /// Collects what operations under way have come to.
    fn take_finished(&mut self) -> bool {
        if self.pending.len() == 0 {
            return false;
        }
        let mut finished = Vec::new();
        self.pending.poll(|call, worked| finished.push((call, worked)));
        let any = !finished.is_empty();
        for (call, worked) in finished {
            match worked {
                Worked::Body(body) => self.finish_pending(call, body),
                Worked::Kept(reply) => self.queue_kept(&reply, call.meta),
                Worked::Nothing => self.release(call.meta.charge),
            }
        }
        any
    }

    fn finish_pending(&mut self, call: PendingCall, result: Body) {
        let mut bytes = self.output.lend();
        let at = bytes.len();
        bytes.put_fixed(&AcceptedStart::success(call.meta.xid));
        bytes.extend_from_slice(&result.bytes);
        let body = Body { bytes, payload: result.payload, failed: result.failed };
        self.queue_reply(at, body, call.meta, call.ticket);
    }

    /// Parses and dispatches as much as there is.
    fn advance(&mut self, waker: &Waker) -> Result<bool, Close> {
        let mut progress = false;
        loop {
            self.last_step = match self.receiving {
                Receiving::Payload(_) => self.step_payload(),
                Receiving::Head if self.requests >= self.shared.limits.connection_requests_max => {
                    Step::Blocked
                }
                Receiving::Head => self.step_head(waker)?,
                Receiving::Assemble(_) => self.step_assemble(waker)?,
            };
            if self.last_step != Step::Done {
                return Ok(progress);
            }
            progress = true;
        }
    }

    fn step_head(&mut self, waker: &Waker) -> Result<Step, Close> {
        if self.skip > 0 {
            let n = self.skip.min(self.window.len());
            self.window.consume(n);
            self.skip -= n;
        }
        let Some((mark, rest)) = self.window.filled().split_first_chunk::<MARK_BYTES>() else {
            return Ok(Step::NeedInput);
        };
        let mark = Mark::from_be(*mark);
        let have = rest.len().min(mark.len);
        if mark.len > RECORD_BYTES_MAX {
            return Err(Close::RecordTooLong { bytes: mark.len });
        }
        if !mark.last {
            return Ok(self.start_assembly(mark, waker));
        }
        if have < mark.len.min(HEAD_BYTES) {
            return Ok(Step::NeedInput);
        }
        let from = self.window.start() + MARK_BYTES;
        let buffer = self.window.lend();
        let taken = self.take_record(&buffer[from..from + have], mark.len, None, waker);
        self.window.give_back(buffer);
        Ok(match taken? {
            Taken::Used { skip } => {
                self.window.consume(MARK_BYTES + have);
                self.skip = skip;
                self.record_ends();
                Step::Done
            }
            Taken::NeedInput if MARK_BYTES + mark.len > RECEIVE_BUFFER_BYTES => {
                self.start_assembly(mark, waker)
            }
            Taken::NeedInput => Step::NeedInput,
            Taken::Blocked => Step::Blocked,
        })
    }

    /// The next record has all of its time.
    fn record_ends(&mut self) {
        self.record_since = None;
        self.receive_watch.rest();
    }

    fn start_assembly(&mut self, mark: Mark, waker: &Waker) -> Step {
        let bytes = if mark.last { mark.len } else { RECORD_BYTES_MAX };
        let charge = bytes as u64 + u64::from(REQUEST_BYTES) + RECORD_BYTES_MAX as u64;
        if !self.charge(charge, waker) {
            return Step::Blocked;
        }
        self.window.consume(MARK_BYTES);
        self.receiving = Receiving::Assemble(Assembly {
            record: Vec::new(),
            fragment_left: mark.len,
            last: mark.last,
            fragments: 1,
            charge,
        });
        Step::Done
    }

    fn step_assemble(&mut self, waker: &Waker) -> Result<Step, Close> {
        let Receiving::Assemble(a) = &mut self.receiving else { return Ok(Step::Done) };
        let n = a.fragment_left.min(self.window.len());
        a.record.extend_from_slice(&self.window.filled()[..n]);
        self.window.consume(n);
        a.fragment_left -= n;
        if a.fragment_left > 0 {
            return Ok(Step::NeedInput);
        }
        if !a.last {
            let Some((mark, _)) = self.window.filled().split_first_chunk::<MARK_BYTES>() else {
                return Ok(Step::NeedInput);
            };
            let mark = Mark::from_be(*mark);
            let bytes = a.record.len().saturating_add(mark.len);
            if bytes > RECORD_BYTES_MAX {
                return Err(Close::RecordTooLong { bytes });
            }
            if a.fragments >= FRAGMENTS_MAX {
                return Err(Close::TooManyFragments);
            }
            (a.fragment_left, a.last) = (mark.len, mark.last);
            a.fragments += 1;
            self.window.consume(MARK_BYTES);
            return Ok(Step::Done);
        }
        let (record, charge) = (core::mem::take(&mut a.record), a.charge);
        self.receiving = Receiving::Head;
        self.record_ends();
        match self.take_record(&record, record.len(), Some(charge), waker)? {
            Taken::Used { .. } => Ok(Step::Done),
            Taken::NeedInput | Taken::Blocked => {
                unreachable!("the record is whole and its charge is taken")
            }
        }
    }

    fn step_payload(&mut self) -> Step {
        let Receiving::Payload(partial) = &self.receiving else { return Step::Done };
        if partial.filling.missing() > 0 {
            return Step::NeedInput;
        }
        let Receiving::Payload(call) = core::mem::replace(&mut self.receiving, Receiving::Head)
        else {
            return Step::Done;
        };
        let call = *call;
        self.skip = call.pad;
        self.record_ends();
        let payload = Some(call.filling.finish());
        let args = &call.record[call.head.args_at..];
        self.dispatch(&call.head, args, payload, call.replay, call.meta);
        Step::Done
    }

    /// Handles a record of `len` bytes of which `record` is there. With `charged`, that much has
    /// been charged already.
    fn take_record(
        &mut self,
        record: &[u8],
        len: usize,
        charged: Option<u64>,
        waker: &Waker,
    ) -> Result<Taken, Close> {
        let complete = record.len() == len;
        let refusal = match parse_head(record) {
            Ok(head) => match self.authenticate(&head, record) {
                Ok(()) => return Ok(self.take_call(&head, record, len, charged, waker)),
                Err(why) => (head.xid, Refusal::Auth(why)),
            },
            Err(HeadError::Refused { xid, why }) => (xid, why),
            Err(HeadError::Incomplete | HeadError::NotACall) => return Err(Close::NotACall),
        };
        if !complete {
            return Ok(Taken::NeedInput);
        }
        let charge = match charged {
            Some(charge) => charge,
            None if self.charge(u64::from(REQUEST_BYTES), waker) => u64::from(REQUEST_BYTES),
            None => return Ok(Taken::Blocked),
        };
        let (xid, why) = refusal;
        self.queue_refusal(why, self.meta(xid, charge, u16::MAX, len));
        Ok(Taken::Used { skip: 0 })
    }

    fn take_call(
        &mut self,
        head: &CallHead,
        record: &[u8],
        len: usize,
        charged: Option<u64>,
        waker: &Waker,
    ) -> Taken {
        let args = &record[head.args_at..];
        let plan = self.shared.service.plan(&self.call(head, args));
        let ends = |p: &PayloadPlan| {
            let data = p.bytes as usize;
            p.at <= args.len() && p.at + data + padding(data) == len - head.args_at
        };
        let payload = plan.payload.filter(ends);
        if payload.is_none() && record.len() < len {
            return Taken::NeedInput;
        }
        let data_bytes = payload.map_or(0, |p| p.bytes);
        let charge = match charged {
            Some(charge) => charge,
            None => {
                let reply = plan.cost.reply_bytes;
                let charge = u64::from(REQUEST_BYTES) + u64::from(reply) + u64::from(data_bytes);
                if !self.charge(charge, waker) {
                    return Taken::Blocked;
                }
                charge
            }
        };
        let meta = self.meta(head.xid, charge, plan.cost.metric, len);
        let Cost { replay, .. } = plan.cost;
        let large = data_bytes >= LARGE_PAYLOAD_BYTES;
        self.window_bytes = if large { NARROW_WINDOW_BYTES } else { RECEIVE_BUFFER_BYTES };
        let Some(p) = payload else {
            self.dispatch(head, args, None, replay, meta);
            return Taken::Used { skip: 0 };
        };
        let mut filling = Filling::new(p.file_offset, p.bytes);
        filling.copy(&args[p.at..]);
        if filling.missing() == 0 {
            self.dispatch(head, &args[..p.at], Some(filling.finish()), replay, meta);
            return Taken::Used { skip: len - record.len() };
        }
        self.receiving = Receiving::Payload(Box::new(PartialCall {
            head: *head,
            record: record[..head.args_at + p.at].to_vec(),
            filling,
            pad: padding(p.bytes as usize),
            meta,
            replay,
        }));
        Taken::Used { skip: 0 }
    }

    fn call<'a>(&'a self, head: &CallHead, args: &'a [u8]) -> Call<'a> {
        Call {
            program: head.program,
            version: head.version,
            procedure: head.procedure,
            auth: &self.auth.auth,
            client: self.client,
            local: self.local,
            op_no: OpNo::new(self.control.id << 32 | self.ops & 0xffff_ffff),
            args,
        }
    }

    fn meta(&self, xid: u32, charge: u64, metric: u16, bytes_in: usize) -> Meta {
        let bytes_in = u32::try_from(bytes_in).unwrap_or(u32::MAX);
        Meta { xid, charge, metric, bytes_in, started: self.received_at }
    }

    /// Makes `self.auth` that of this call.
    fn authenticate(&mut self, head: &CallHead, record: &[u8]) -> Result<(), AuthRefusal> {
        let raw = &record[CREDENTIAL_AT..CREDENTIAL_AT + head.credential_len];
        if self.auth.flavor == head.flavor && self.auth.raw == raw {
            return Ok(());
        }
        let auth = parse_auth(head.flavor, raw)?;
        self.auth = AuthMemo { flavor: head.flavor, raw: raw.to_vec(), auth };
        Ok(())
    }

    /// Makes a call that is there whole and charged.
    fn dispatch(
        &mut self,
        head: &CallHead,
        args: &[u8],
        payload: Option<Payload>,
        replay: Replay,
        meta: Meta,
    ) {
        self.ops += 1;
        let ticket = match replay {
            Replay::Idempotent => None,
            Replay::Once => match self.admit(head, args, payload.as_ref(), meta) {
                Some(ticket) => Some(ticket),
                None => return,
            },
        };
        let mut body = Body { bytes: self.output.lend(), payload: None, failed: false };
        let at = body.bytes.len();
        body.bytes.put_fixed(&AcceptedStart::success(head.xid));
        match self.shared.service.call(&self.call(head, args), payload, &mut body) {
            Outcome::Done => self.queue_reply(at, body, meta, ticket),
            Outcome::Refused(why) => {
                body.bytes.truncate(at);
                self.output.commit(body.bytes, at, None);
                self.queue_refusal(why, meta);
            }
            Outcome::Pending(future) => {
                body.bytes.truncate(at);
                self.output.commit(body.bytes, at, None);
                self.pending.push(PendingCall { work: Work::Call(future), meta, ticket });
            }
        }
    }

    /// Sorts duplicates out; a ticket when the call is new.
    fn admit(
        &mut self,
        head: &CallHead,
        args: &[u8],
        payload: Option<&Payload>,
        meta: Meta,
    ) -> Option<Ticket> {
        let mut hasher = crc32fast::Hasher::new();
        let first = &args[..args.len().min(CHECKSUM_BYTES)];
        hasher.update(first);
        if let Some(data) = payload.and_then(|p| p.slices().next()) {
            hasher.update(&data[..data.len().min(CHECKSUM_BYTES - first.len())]);
        }
        let key = Key {
            xid: head.xid,
            checksum: hasher.finalize(),
            procedure: head.procedure,
            version: head.version,
            program: head.program,
            client: self.client.ip(),
        };
        let events = &self.shared.metrics.events;
        match self.shared.replay.admit(key, self.received_at) {
            Admission::New(ticket) => return Some(ticket),
            Admission::Replay(reply) => {
                count(&events.replayed);
                self.queue_kept(&reply, meta);
            }
            Admission::Parked(receiver) => {
                count(&events.parked);
                let work = Work::Parked(receiver);
                self.pending.push(PendingCall { work, meta, ticket: None });
            }
            Admission::Drop => {
                count(&events.dropped);
                self.release(meta.charge);
            }
        }
        None
    }

    /// Queues the reply that begins at `at` of the lent arena.
    fn queue_reply(&mut self, at: usize, mut body: Body, meta: Meta, ticket: Option<Ticket>) {
        let data = body.payload.as_ref().map_or(0, |p| p.len() as usize);
        let len = body.bytes.len() - at - MARK_BYTES + data + padding(data);
        patch_mark(&mut body.bytes[at..], len);
        if let Some(ticket) = ticket {
            assert!(data == 0, "a kept reply has no payload");
            ticket.complete(&body.bytes[at + MARK_BYTES..], self.received_at);
        }
        self.output.commit(body.bytes, at, body.payload);
        self.note_queued(meta, body.failed, len);
    }

    fn queue_kept(&mut self, reply: &[u8], meta: Meta) {
        let mut arena = self.output.lend();
        let at = arena.len();
        arena.put_u32(0);
        arena.extend_from_slice(reply);
        patch_mark(&mut arena[at..], reply.len());
        self.output.commit(arena, at, None);
        self.note_queued(meta, false, reply.len());
    }

    fn queue_refusal(&mut self, why: Refusal, meta: Meta) {
        count(&self.shared.metrics.events.refused_calls);
        let mut arena = self.output.lend();
        let at = arena.len();
        put_refusal(&mut arena, meta.xid, why);
        let len = arena.len() - at;
        self.output.commit(arena, at, None);
        self.note_queued(meta, true, len);
    }

    fn note_queued(&mut self, meta: Meta, failed: bool, bytes_out: usize) {
        let bytes_out = u32::try_from(bytes_out).unwrap_or(u32::MAX);
        self.queued.push_back(Queued {
            end: self.output.queued(),
            charge: meta.charge,
            started: meta.started,
            done: Finished { metric: meta.metric, failed, bytes_in: meta.bytes_in, bytes_out },
        });
    }

    fn asker(&self) -> Asker {
        Asker { conn: self.control.id, client: self.client.ip() }
    }

    /// Takes `bytes` from both budgets; or arranges to be woken.
    fn charge(&mut self, bytes: u64, waker: &Waker) -> bool {
        if self.bytes + bytes > self.shared.limits.connection_bytes_max {
            return false;
        }
        if !self.shared.budget.take_or_wait(bytes, self.asker(), waker) {
            count(&self.shared.metrics.events.budget_waits);
            return false;
        }
        self.bytes += bytes;
        self.requests += 1;
        true
    }

    fn release(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.requests -= 1;
        self.shared.budget.give_back(bytes);
    }

    /// Sends what there is; whether anything went out.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<bool, Close> {
        let mut progress = false;
        while let Some((first, more)) = self.output.first() {
            let stream = Pin::new(&mut self.stream);
            let sent = if more {
                stream.poll_write_vectored(cx, &self.output.slices())
            } else {
                stream.poll_write(cx, first)
            };
            match sent {
                Poll::Pending => break,
                Poll::Ready(n) => self.output.advance(n?),
            }
            progress = true;
        }
        if progress {
            self.settle();
        }
        Ok(progress)
    }

    /// Counts the replies that are out and gives their charges back.
    fn settle(&mut self) {
        let sent = self.output.sent();
        let now = self.shared.world.clock.monotonic();
        let mut freed = 0;
        while let Some(q) = self.queued.front() {
            if q.end > sent {
                break;
            }
            let nanos = now.since(q.started).unwrap_or(0);
            self.shared.metrics.record(self.worker, q.done, nanos);
            freed += q.charge;
            self.requests -= 1;
            self.queued.pop_front();
        }
        self.answered = true;
        // Calls that are made and answered in one poll are never seen in flight.
        self.idle_since = None;
        self.bytes -= freed;
        self.shared.budget.give_back(freed);
    }

    /// Reads once; whether anything came.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<bool, Close> {
        let received = match &mut self.receiving {
            Receiving::Payload(call) => {
                let filling = &mut call.filling;
                let tail = self.window.room(self.window_bytes);
                let stream = Pin::new(&mut self.stream);
                let n = match stream.poll_read_vectored(cx, &mut filling.slices(tail)) {
                    Poll::Pending => return Ok(false),
                    Poll::Ready(n) => n?,
                };
                self.window.received(filling.received(n));
                n
            }
            Receiving::Head | Receiving::Assemble(_) => {
                let mut room = ReadBuf::new(self.window.room(self.window_bytes));
                assert!(room.capacity() > 0, "a full window is parsed before more is read");
                match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
                    Poll::Pending => return Ok(false),
                    Poll::Ready(done) => done?,
                }
                let n = room.filled().len();
                self.window.received(n);
                n
            }
        };
        if received == 0 {
            self.eof = true;
            return Ok(true);
        }
        self.received += received as u64;
        self.shared.metrics.received(self.worker, received);
        self.received_at = self.shared.world.clock.monotonic();
        Ok(true)
    }

    /// Whether the peer may go on, and until when it must have done something. Called when all is
    /// done that can be done now.
    fn judge(&mut self) -> Result<(), Close> {
        let now = self.shared.world.clock.monotonic();
        let standing = self.standing(now);
        self.control.show(standing);
        let idle = standing.idle_since != NEVER;
        if standing.deadline <= now.get() {
            return Err(Close::TimedOut);
        }
        if self.control.take_request(Request::Bytes) && standing.scarce_deadline <= now.get() {
            return Err(Close::GaveWay);
        }
        if self.control.take_request(Request::Place) && idle && !mutant("idle-keeps-its-place") {
            return Err(Close::MadeRoom);
        }
        Ok(())
    }

    fn standing(&mut self, now: MonoTime) -> Standing {
        let limits = &self.shared.limits;
        let after = |since: MonoTime, d: core::time::Duration| {
            since.get().saturating_add(u64::try_from(d.as_nanos()).unwrap_or(NEVER))
        };
        let (mut deadline, mut scarce_deadline) = (NEVER, NEVER);
        if self.output.is_empty() {
            self.send_watch.rest();
        } else {
            let sent = self.output.sent();
            let due = self.send_watch.deadlines(now, sent, limits.send, limits.scarce);
            (deadline, scarce_deadline) = (due.always, due.scarce);
        }
        let charged = !matches!(self.receiving, Receiving::Head);
        let partial = self.window.len() > 0 || charged;
        if partial && self.last_step == Step::NeedInput && !mutant("record-takes-its-time") {
            let since = *self.record_since.get_or_insert(now);
            let received = self.received;
            let due = self.receive_watch.deadlines(now, received, limits.receive, limits.scarce);
            deadline = deadline.min(due.always).min(after(since, limits.record_timeout));
            if charged {
                scarce_deadline = scarce_deadline.min(due.scarce);
            }
        } else {
            self.record_since = None;
            self.receive_watch.rest();
        }
        let mut idle_since = NEVER;
        if self.requests > 0 {
            self.idle_since = None;
        } else if self.last_step == Step::NeedInput {
            let since = *self.idle_since.get_or_insert(now);
            idle_since = since.get();
            deadline = deadline.min(after(since, limits.idle_timeout));
        }
        let (held, answered) = (self.bytes, self.answered);
        Standing { deadline, scarce_deadline, idle_since, held, answered }
    }
}

impl<S: Service, T: Stream> Drop for Connection<S, T> {
    fn drop(&mut self) {
        self.shared.budget.forget(self.asker());
        // What must be done once goes on without us, so that the client's retry finds a reply.
        let mut orphans: Vec<PendingCall> = self.pending.drain();
        orphans.retain(|call| call.ticket.is_some());
        let kept: u64 = orphans.iter().map(|call| call.meta.charge).sum();
        self.shared.budget.give_back(self.bytes - kept);
        // Each by itself: one may wait for what only another one, when it is polled, brings to an end.
        for call in orphans {
            let shared = self.shared.clone();
            let task = async move {
                let PendingCall { work, meta, ticket } = call;
                if let (Work::Call(future), Some(ticket)) = (work, ticket) {
                    let body = future.await;
                    let mut reply = Vec::with_capacity(64 + body.bytes.len());
                    reply.put_fixed(&AcceptedStart::success(meta.xid));
                    reply.extend_from_slice(&body.bytes);
                    ticket.complete(&reply[MARK_BYTES..], shared.world.clock.monotonic());
                }
                shared.budget.give_back(meta.charge);
            };
            self.shared.world.spawn.spawn("rpc-orphan", Box::pin(task));
        }
    }
}
