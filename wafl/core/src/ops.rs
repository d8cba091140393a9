//! File operations: the loop of plan, load, apply, log, answer.
//!
//! Layer: message handlers, on the manager. The two phases: everything that may wait or fail
//! (loading, log room, space) happens before the attempt that applies; between the first change
//! and the log record nothing waits.

use cairn_sys::lock::atomic::Ordering;
use std::sync::Arc;

use cairn_op::{
    Failure, ObjectRef, Op, OpCtx, OpResult, ReadOnly, Reply, Stability, Status, Submitted,
};
use cairn_sys::{Payload, mutant};
use cairn_units::{BLOCK_BYTES_U64, Blocks, CpCount, InodeNo, Lsn, MonoTime};
use cairn_wafl_nvlog::{
    LogBlock, RECORD_PAYLOAD_BLOCKS_MAX, Record, RecordKind, Reservation, ReserveError,
    record_blocks,
};
use tracing::Instrument;

use crate::apply::{CHANGE_METADATA_BLOCKS, pieces};
use crate::change::Change;
use crate::manager::{Inner, Volume};
use crate::plan::{Answer, Call, Planned};
use crate::tree::Key;
use crate::volume::{Stop, UNLOGGED_BLOCKS_FEW, UNLOGGED_BLOCKS_MAX, VolState};

/// A COMMIT of more than a few blocks takes at most such a part of a half of the log: half by half, each
/// needs a point.
const COMMIT_SHARE_OF_LOG: u64 = 8;
/// Times an operation waits for a consistency point to find space before it fails.
const SPACE_TRIES_MAX: u32 = 4;
/// Rounds of loading that an operation may take: its blocks may be driven out between them.
const LOAD_ROUNDS_MAX: u32 = 10_000;
/// Unstable writes of so many bytes count as parts of a stream ([`Inner::stream_max`]): what is
/// written in such pieces is seldom overwritten at once.
const STREAM_WRITE_BYTES: u64 = 64 << 10;
/// Bytes that one punch may cover; longer ranges are done in parts.
const PUNCH_BYTES_MAX: u64 = 64 << 20;

/// How one attempt ended.
enum Attempt {
    Done(OpResult<ObjectRef>),
    /// Applied; the answer is due when this record is stable and this point committed.
    Wait {
        lsn: Option<Lsn>,
        cp: CpCount,
        reply: Reply<ObjectRef>,
    },
    /// Applied; the answer is due after a point that starts now.
    WaitPoint(Reply<ObjectRef>),
    Stop(Stop),
    /// Wait for room in the log.
    LogRoom(Blocks),
    /// Wait for a consistency point: too little space, or too much is dirty.
    Space {
        no_space: bool,
    },
}

impl From<Stop> for Attempt {
    fn from(stop: Stop) -> Self {
        Attempt::Stop(stop)
    }
}

fn needs_space(change: &Change) -> bool {
    !matches!(change, Change::Remove { .. } | Change::Punch { .. })
        && !matches!(change, Change::Set { set, .. } if set.size.is_some())
}

impl Inner {
    /// Starts a file operation.
    pub(crate) fn submit(
        self: &Arc<Self>,
        ctx: OpCtx,
        op: Op<ObjectRef>,
    ) -> Submitted<OpResult<ObjectRef>> {
        let start = self.world.clock.monotonic();
        let span = tracing::debug_span!("dmodule", op_no = ctx.op_no.get(), op = op.name());
        let inside = span.enter();
        let submitted = self.submit_inside(start, ctx, op);
        drop(inside);
        match submitted {
            Submitted::Pending(future) if !span.is_disabled() => {
                Submitted::Pending(Box::pin(future.instrument(span)))
            }
            submitted => submitted,
        }
    }

    fn submit_inside(
        self: &Arc<Self>,
        start: MonoTime,
        ctx: OpCtx,
        op: Op<ObjectRef>,
    ) -> Submitted<OpResult<ObjectRef>> {
        let name = op.name();
        if self.stopped.load(Ordering::Acquire) {
            return Submitted::Ready(Err(Status::ServerFault.into()));
        }
        if op.changes() && ctx.read_only == ReadOnly::Yes {
            return Submitted::Ready(Err(self.failure(&op, Status::ReadOnlyFs.into())));
        }
        let (first, second) = objects(&op);
        if second.is_some_and(|s| s.fsid != first.fsid) {
            return Submitted::Ready(Err(self.failure(&op, Status::CrossVolume.into())));
        }
        let Some(volume) = self.volume(first.fsid) else {
            return Submitted::Ready(Err(Status::Stale.into()));
        };
        if let Op::Punch { obj, offset, count } = op
            && count > PUNCH_BYTES_MAX
        {
            let this = self.clone();
            return Submitted::Pending(Box::pin(async move {
                this.punch_in_parts(volume, ctx, obj, offset, count).await
            }));
        }
        match self.attempt(&volume, &ctx, &op, &mut None) {
            Attempt::Done(result) => {
                let result = result.map_err(|f| self.failure(&op, f));
                self.count(name, start, result.is_ok());
                Submitted::Ready(result)
            }
            first => {
                let this = self.clone();
                Submitted::Pending(Box::pin(async move {
                    let result = this.finish(volume, ctx, op, first).await;
                    this.count(name, start, result.is_ok());
                    result
                }))
            }
        }
    }

    fn count(&self, name: &'static str, start: cairn_units::MonoTime, ok: bool) {
        let nanos = self.world.clock.monotonic().since(start).unwrap_or_default();
        self.counters.op(name, nanos, ok);
    }

    /// Adds what attributes are known to a failure.
    fn failure(&self, op: &Op<ObjectRef>, mut failure: Failure) -> Failure {
        let (first, second) = objects(op);
        if let Some(volume) = self.volume(first.fsid) {
            let st = volume.lock();
            failure.attrs = st.attrs_if_known(first);
            failure.second =
                second.filter(|s| s.fsid == first.fsid).and_then(|s| st.attrs_if_known(s));
        }
        failure
    }

    /// Goes on with an operation whose first attempt could not answer.
    async fn finish(
        &self,
        volume: Arc<Volume>,
        ctx: OpCtx,
        op: Op<ObjectRef>,
        first: Attempt,
    ) -> OpResult<ObjectRef> {
        let mut attempt = first;
        let mut reservation: Option<Reservation> = None;
        let (mut space_tries, mut rounds) = (0, 0);
        loop {
            if self.stopped.load(Ordering::Acquire) {
                return Err(Status::ServerFault.into());
            }
            match attempt {
                Attempt::Done(result) => return result.map_err(|f| self.failure(&op, f)),
                Attempt::Wait { lsn, cp, reply } => {
                    return self.wait_stable(lsn, cp).await.map(|()| reply);
                }
                Attempt::WaitPoint(reply) => {
                    let done = self.cp_with_dirty().await;
                    return done.map(|()| reply).map_err(|_| Status::ServerFault.into());
                }
                Attempt::Stop(stop) => {
                    rounds += 1;
                    if rounds > LOAD_ROUNDS_MAX {
                        return Err(self.failure(&op, Status::Delay.into()));
                    }
                    if let Err(Stop::Fail(f)) = self.resolve(&volume, stop).await {
                        return Err(self.failure(&op, f));
                    }
                }
                Attempt::LogRoom(blocks) => {
                    self.counters.log_waits.fetch_add(1, Ordering::Relaxed);
                    // Room comes with the end of a point.
                    self.hurry_cp();
                    // What was set aside may be too little: give it back before asking for more.
                    drop(reservation.take());
                    match self.log.reserve_or_wait(blocks).await {
                        Ok(granted) => reservation = Some(granted),
                        Err(_) => return Err(Status::ServerFault.into()),
                    }
                }
                Attempt::Space { no_space } => {
                    self.counters.space_waits.fetch_add(1, Ordering::Relaxed);
                    space_tries += u32::from(no_space);
                    if space_tries > SPACE_TRIES_MAX {
                        return Err(self.failure(&op, Status::NoSpace.into()));
                    }
                    if !no_space {
                        self.wait_drained().await;
                        attempt = self.attempt(&volume, &ctx, &op, &mut reservation);
                        continue;
                    }
                    self.reap.notify_one();
                    // A check that holds blocks back comes after those who write.
                    self.check.yield_space();
                    if self.cp_now().await.is_err() {
                        return Err(Status::ServerFault.into());
                    }
                }
            }
            attempt = self.attempt(&volume, &ctx, &op, &mut reservation);
        }
    }

    async fn wait_stable(&self, lsn: Option<Lsn>, cp: CpCount) -> Result<(), Failure> {
        if let Some(lsn) = lsn
            && !mutant("reply-does-not-wait")
            && let Err(error) = self.log.durable(lsn).await
        {
            if !self.stopped.load(Ordering::Acquire) {
                self.stop(error.to_string());
            }
            return Err(Status::ServerFault.into());
        }
        match self.cp_wait(cp).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Status::ServerFault.into()),
        }
    }

    async fn punch_in_parts(
        &self,
        volume: Arc<Volume>,
        ctx: OpCtx,
        obj: ObjectRef,
        mut offset: u64,
        count: u64,
    ) -> OpResult<ObjectRef> {
        let mut end = offset.saturating_add(count);
        let mut first_before = None;
        loop {
            let part = end.saturating_sub(offset).min(PUNCH_BYTES_MAX);
            let op = Op::Punch { obj, offset, count: part };
            let first = self.attempt(&volume, &ctx, &op, &mut None);
            let done = self.finish(volume.clone(), ctx.clone(), op, first).await?;
            let Reply::Changed { before, after } = done else { return Ok(done) };
            let before = *first_before.get_or_insert(before);
            end = end.min(after.size);
            offset = offset.saturating_add(part);
            if offset >= end {
                return Ok(Reply::Changed { before, after });
            }
        }
    }

    /// One attempt, under the volume's lock.
    fn attempt(
        &self,
        volume: &Volume,
        ctx: &OpCtx,
        op: &Op<ObjectRef>,
        reservation: &mut Option<Reservation>,
    ) -> Attempt {
        let call = Call {
            ctx,
            now: self.world.clock.wall(),
            free_blocks: self.allowance(self.reserve()),
            verifier: self.verifier,
        };
        let mut st = volume.lock();
        if volume.gone.load(Ordering::Acquire) {
            return Attempt::Done(Err(Status::Stale.into()));
        }
        if op.changes() && volume.quiet.load(Ordering::Acquire) {
            return Attempt::Done(Err(Status::Delay.into()));
        }
        let attempt = match st.plan(&call, op) {
            // A change that finds itself made already (a retried create) must not be acknowledged
            // before the record that made it.
            Ok(Planned::Answer(reply)) if op.changes() => {
                Attempt::Wait { lsn: Some(st.lsn), cp: CpCount::new(0), reply: *reply }
            }
            Ok(Planned::Answer(reply)) => Attempt::Done(Ok(*reply)),
            Ok(Planned::Commit { ino, before }) => self.commit(&mut st, ino, before, reservation),
            Ok(Planned::Apply { change, payload, answer }) => {
                self.apply(&mut st, &call, (change, payload, answer), reservation)
            }
            Err(Stop::Fail(failure)) => Attempt::Done(Err(failure)),
            Err(stop) => stop.into(),
        };
        self.take_delta(&mut st);
        let zombies = st.has_zombies();
        let streams = st.streamed > self.stream_max();
        drop(st);
        if streams || self.should_drain() {
            self.cp_hint();
        }
        // Who must load first looks again at what is in memory now.
        if !matches!(attempt, Attempt::Stop(_)) {
            self.make_room(match op {
                Op::Write { data, .. } => data.blocks().len(),
                _ => 0,
            });
        }
        if zombies {
            self.reap.notify_one();
        }
        attempt
    }

    /// Whether there is space for a change; `None` when there is.
    fn lacks_space(&self, st: &VolState, change: &Change) -> Option<Attempt> {
        if self.must_drain() {
            return Some(Attempt::Space { no_space: false });
        }
        let (mut blocks, mut fresh) = (CHANGE_METADATA_BLOCKS, 2);
        let used = st.used_blocks + st.dirtied.fresh;
        if let Change::Write { ino, offset, bytes, .. } = change {
            let touched = pieces(*offset, u64::from(*bytes));
            let count = touched.count() as u64;
            blocks += count;
            fresh = count;
            // Which of them are there already matters only where not all of them would fit.
            if used + count > st.size_blocks {
                let tree = &st.file(*ino).tree;
                let is_fresh = |key: Key| {
                    !tree.is_resident(key) && matches!(tree.ptr(key), Ok(p) if p.is_hole())
                };
                let touched = pieces(*offset, u64::from(*bytes));
                fresh = touched.filter(|(at, ..)| is_fresh(Key::data(*at))).count() as u64;
            }
        }
        if let Change::Xattrs { bytes, .. } = change {
            blocks += u64::from(*bytes).div_ceil(BLOCK_BYTES_U64);
            fresh = blocks;
        }
        let growing = needs_space(change);
        let reserve = if growing { self.reserve() } else { self.reserve() / 3 };
        if self.allowance(reserve) < blocks {
            return Some(Attempt::Space { no_space: true });
        }
        let full = used + fresh > st.size_blocks;
        (growing && fresh > 0 && full).then_some(Attempt::Space { no_space: true })
    }

    /// Makes sure that `blocks` blocks of log are set aside.
    fn log_room(
        &self,
        reservation: &mut Option<Reservation>,
        blocks: Blocks,
    ) -> Result<(), Attempt> {
        if reservation.as_ref().is_some_and(|r| r.blocks() >= blocks) {
            return Ok(());
        }
        drop(reservation.take());
        match self.log.reserve(blocks) {
            Ok(Some(granted)) => {
                *reservation = Some(granted);
                Ok(())
            }
            Ok(None) => Err(Attempt::LogRoom(blocks)),
            Err(ReserveError::TooLarge { .. }) => Err(Attempt::Space { no_space: true }),
            Err(ReserveError::Failed(_)) => Err(Attempt::Done(Err(Status::ServerFault.into()))),
        }
    }

    fn apply(
        &self,
        st: &mut VolState,
        call: &Call<'_>,
        (change, payload, answer): (Change, Payload, Answer),
        reservation: &mut Option<Reservation>,
    ) -> Attempt {
        let ready = match st.ready(&change) {
            Ok(ready) => ready,
            Err(Stop::Fail(failure)) => return Attempt::Done(Err(failure)),
            Err(stop) => return stop.into(),
        };
        if let Some(wait) = self.lacks_space(st, &change) {
            return wait;
        }
        let unstable = matches!(answer, Answer::Written { stability: Stability::Unstable, .. })
            || (matches!(answer, Answer::Written { .. }) && mutant("stable-write-not-logged"))
            || (matches!(change, Change::Rename { .. }) && mutant("rename-not-logged"));
        let body = change.encode(call.now);
        // What no record or no half of the log could ever hold becomes stable with a
        // consistency point.
        let mut logged = !unstable && payload.blocks().len() <= RECORD_PAYLOAD_BLOCKS_MAX;
        if logged {
            let need = record_blocks(body.len(), payload.blocks().len());
            logged = need <= self.log.capacity();
            if logged && let Err(wait) = self.log_room(reservation, need) {
                return wait;
            }
        }
        st.apply(&change, &payload, ready, call.now);
        if unstable && let Change::Write { ino, offset, bytes, .. } = &change {
            note_unlogged(st, *ino, *offset, u64::from(*bytes));
        }
        let lsn = logged.then(|| {
            let record = Record {
                fsid: st.fsid,
                kind: RecordKind::new(change.kind()),
                body,
                payload: payload.into_blocks().into_iter().map(LogBlock::new).collect(),
            };
            self.append(st, reservation, record)
        });
        let reply = st.answer(answer, self.verifier);
        match (lsn, unstable) {
            (Some(lsn), _) => Attempt::Wait { lsn: Some(lsn), cp: CpCount::new(0), reply },
            (None, true) => Attempt::Done(Ok(reply)),
            (None, false) => Attempt::WaitPoint(reply),
        }
    }

    fn append(
        &self,
        st: &mut VolState,
        reservation: &mut Option<Reservation>,
        record: Record,
    ) -> Lsn {
        let (Some(room), Some(half)) = (reservation.as_mut(), st.half) else {
            panic!("log room is set aside before a change is applied")
        };
        let lsn = self.log.append(half, room, record);
        tracing::debug!(lsn = lsn.get(), "logged");
        assert!(lsn > st.lsn, "log numbers grow");
        st.lsn = lsn;
        self.counters.logged_records.fetch_add(1, Ordering::Relaxed);
        lsn
    }

    /// Makes the unstable writes of a file stable: a few blocks through the log, many with a
    /// consistency point, what is between the two with one that comes anyway, else through the log.
    fn commit(
        &self,
        st: &mut VolState,
        ino: InodeNo,
        before: cairn_op::Before,
        reservation: &mut Option<Reservation>,
    ) -> Attempt {
        let file = st.file(ino);
        let reply = |st: &VolState| Reply::Committed {
            verifier: self.verifier,
            before,
            after: st.attrs(ino),
        };
        let cp = file.frozen_cp;
        let many = file.unlogged.len() > UNLOGGED_BLOCKS_FEW;
        if file.unlogged_many || (many && self.is_cp_coming()) {
            return Attempt::WaitPoint(reply(st));
        }
        let mut runs: Vec<(u64, Vec<LogBlock>)> = Vec::new();
        for index in &file.unlogged {
            let block = match file.tree.get(Key::data(*index)) {
                Ok(Some(block)) => LogBlock::new(block),
                // Punched or cut off since: that was logged by itself.
                Ok(None) => continue,
                // Placed and driven out already: the point that placed it makes it stable.
                Err(_) => return Attempt::WaitPoint(reply(st)),
            };
            if index * BLOCK_BYTES_U64 >= file.inode.size {
                continue;
            }
            match runs.last_mut() {
                Some((first, blocks))
                    if *first + blocks.len() as u64 == *index
                        && blocks.len() < RECORD_PAYLOAD_BLOCKS_MAX =>
                {
                    blocks.push(block);
                }
                _ => runs.push((*index, vec![block])),
            }
        }
        let mut need = Blocks::new(0);
        let record = |(first, payload): (u64, Vec<LogBlock>)| {
            let offset = first * BLOCK_BYTES_U64;
            let whole = payload.len() as u64 * BLOCK_BYTES_U64;
            let bytes = u32::try_from(whole.min(file.inode.size - offset)).unwrap_or(u32::MAX);
            let change = Change::Write { ino, offset, bytes, mode: file.inode.mode };
            let body = change.encode(file.inode.mtime);
            need = need.plus(record_blocks(body.len(), payload.len()).get());
            Record { fsid: st.fsid, kind: RecordKind::new(change.kind()), body, payload }
        };
        let records: Vec<Record> = runs.into_iter().map(record).collect();
        if records.is_empty() {
            // Another COMMIT may have logged the blocks a moment ago: wait for its record as well.
            return Attempt::Wait { lsn: Some(st.lsn), cp, reply: reply(st) };
        }
        let share = if many { COMMIT_SHARE_OF_LOG } else { 1 };
        if need.get() > self.log.capacity().get() / share {
            return Attempt::WaitPoint(reply(st));
        }
        match self.log_room(reservation, need) {
            // Room comes with a point, which holds these blocks.
            Err(Attempt::LogRoom(_)) if many => return Attempt::WaitPoint(reply(st)),
            Err(wait) => return wait,
            Ok(()) => {}
        }
        let mut last = None;
        for record in records {
            last = Some(self.append(st, reservation, record));
        }
        st.file_mut(ino).unlogged.clear();
        if mutant("commit-does-not-wait") {
            return Attempt::Done(Ok(reply(st)));
        }
        Attempt::Wait { lsn: last, cp, reply: reply(st) }
    }
}

fn note_unlogged(st: &mut VolState, ino: InodeNo, offset: u64, bytes: u64) {
    if bytes >= STREAM_WRITE_BYTES {
        st.streamed += bytes / BLOCK_BYTES_U64;
    }
    let file = st.file_mut(ino);
    if file.unlogged_many {
        return;
    }
    file.unlogged.extend(pieces(offset, bytes).map(|(index, _, _)| index));
    if file.unlogged.len() > UNLOGGED_BLOCKS_MAX {
        file.unlogged.clear();
        file.unlogged_many = true;
    }
}

/// The objects that an operation names.
fn objects(op: &Op<ObjectRef>) -> (ObjectRef, Option<ObjectRef>) {
    match op {
        Op::GetAttr { obj }
        | Op::SetAttr { obj, .. }
        | Op::Access { obj, .. }
        | Op::ReadLink { obj }
        | Op::Read { obj, .. }
        | Op::Write { obj, .. }
        | Op::FsStat { obj }
        | Op::Commit { obj, .. }
        | Op::Punch { obj, .. }
        | Op::GetXattr { obj, .. }
        | Op::SetXattr { obj, .. }
        | Op::RemoveXattr { obj, .. }
        | Op::ListXattr { obj } => (*obj, None),
        Op::Lookup { dir, .. }
        | Op::Create { dir, .. }
        | Op::MakeDir { dir, .. }
        | Op::Symlink { dir, .. }
        | Op::MakeNode { dir, .. }
        | Op::Remove { dir, .. }
        | Op::RemoveDir { dir, .. }
        | Op::ReadDir { dir, .. } => (*dir, None),
        Op::Rename { from_dir, to_dir, .. } => (*from_dir, Some(*to_dir)),
        Op::Link { obj, dir, .. } => (*obj, Some(*dir)),
    }
}
