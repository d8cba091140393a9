//! Random operations on the model and on another D-module, compared after each step.
//!
//! Layer: tests of everything that implements [`DModule`]. A [`Step`] is a few raw numbers, so
//! that a seed or proptest makes them and proptest can shrink them; what a step means is decided
//! by [`steps`] when it runs, from the objects that are known then.
//!
//! # What is compared
//! Every status; kinds, modes, owners, link counts, sizes, data, targets, extended attributes;
//! listings as sets, page by page; which object a name leads to; modification times that were set
//! explicitly; whether a change counter moved. Not: inode numbers, cookies, the clock's times,
//! space used.
//!
//! # What a crash may do
//! After a crash ([`Runner::remounted`]) every operation that was answered is there, with one
//! exception: of bytes written `Unstable` and not committed, each may be there or not, and so may
//! what those writes did to size, time and set-id bits. The operation that the crash interrupted
//! is there completely or not at all; an interrupted write may be there in part.
//!
//! # Use
//! ```ignore
//! // Without crashes, or with the steps' own crashes through the hook:
//! run_sequence(world, node, fsid, &steps_from_seed(7, 500), async |event, old| remount(old)).await?;
//! // With power cuts in the middle of operations: keep the runner outside of what is cut.
//! let mut runner = Runner::new(world, node, fsid).await?;
//! for step in &steps {
//!     if sim.block_on_or_cut(runner.step(step)).is_none() {
//!         sim.block_on(runner.remounted(remount()))?;
//!     }
//! }
//! sim.block_on(runner.compare_all())?;
//! ```

mod compare;
mod explicit;
mod pending;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cairn_cf::{DModule, Manage, Managed};
use cairn_op::{CreateHow, ObjectRef, Op, OpCtx, OpResult, ReadOnly, Reply, SetAttrs, Stability};
use cairn_sys::World;
use cairn_units::Fsid;
use proptest::strategy::Strategy;

use crate::ModelNode;
use crate::conformance::context;
pub use explicit::{Twin, TwinOp};
use pending::Pending;
use steps::Meaning;

/// Operations kept for the report of a difference.
const HISTORY_MAX: usize = 60;
/// Objects that steps choose from.
const OBJECTS_MAX: usize = 40;
/// Size of the volume: larger than what a sequence can write.
const VOLUME_BYTES: u64 = 256 << 20;

/// A difference between the model and the other one, with the operations that led there.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}\nthe last operations:\n{}", history.join("\n"))]
pub struct Difference {
    what: String,
    history: Vec<String>,
}

impl core::fmt::Debug for Difference {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{self}")
    }
}

impl Difference {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), history: Vec::new() }
    }
}

pub(crate) type Checked<T> = Result<T, Difference>;

/// One step, as raw numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which operation.
    pub kind: u8,
    /// Who asks.
    pub who: u8,
    /// First object.
    pub first: u16,
    /// Second object.
    pub second: u16,
    /// First name.
    pub name: u8,
    /// Second name.
    pub other: u8,
    /// Everything else.
    pub value: u64,
}

/// What the hook of [`run_sequence`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Stop without warning and start again.
    Crash,
    /// Stop cleanly and start again.
    Restart,
}

/// `count` steps from a seed.
pub fn steps_from_seed(seed: u64, count: usize) -> Vec<Step> {
    let mut state = seed;
    let mut next = move || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let step = |_| {
        let [kind, who, name, other, f0, f1, s0, s1] = next().to_le_bytes();
        let (first, second) = (u16::from_le_bytes([f0, f1]), u16::from_le_bytes([s0, s1]));
        Step { kind, who, first, second, name, other, value: next() }
    };
    (0..count).map(step).collect()
}

/// Steps for proptest.
pub fn any_steps(count: core::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    use proptest::prelude::any;
    let raw = (any::<[u8; 4]>(), any::<[u16; 2]>(), any::<u64>());
    let step = raw.prop_map(|([kind, who, name, other], [first, second], value)| Step {
        kind,
        who,
        first,
        second,
        name,
        other,
        value,
    });
    proptest::collection::vec(step, count)
}

/// Runs `steps` on a new volume `fsid` of `b` and on a model, and compares; `hook` stops `b` as
/// the event says and gives the next incarnation.
///
/// # Errors
/// The first difference.
pub async fn run_sequence(
    world: World,
    b: Arc<dyn DModule>,
    fsid: Fsid,
    steps: &[Step],
    mut hook: impl AsyncFnMut(Event, Arc<dyn DModule>) -> Arc<dyn DModule>,
) -> Checked<()> {
    let mut runner = Runner::new(world, b, fsid).await?;
    for step in steps {
        match runner.step(step).await? {
            None => {}
            Some(Event::Crash) => {
                let next = hook(Event::Crash, runner.release()).await;
                runner.remounted(next).await?;
            }
            Some(Event::Restart) => {
                runner.pending.clear();
                let next = hook(Event::Restart, runner.release()).await;
                runner.remounted(next).await?;
            }
        }
    }
    runner.compare_all().await
}

/// The same object on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    a: ObjectRef,
    b: ObjectRef,
}

/// The operation under way.
#[derive(Clone)]
struct InFlight {
    ctx: OpCtx,
    op: Op<ObjectRef>,
}

/// Which object of the model is which of the other one.
#[derive(Clone, Default)]
struct Twins {
    by_a: BTreeMap<ObjectRef, ObjectRef>,
    by_b: BTreeMap<ObjectRef, ObjectRef>,
}

impl Twins {
    fn meet(&mut self, a: ObjectRef, b: ObjectRef) -> Checked<()> {
        let (old_b, old_a) = (self.by_a.insert(a, b), self.by_b.insert(b, a));
        if old_b.is_some_and(|old| old != b) || old_a.is_some_and(|old| old != a) {
            let what = format!("{a:?} was {old_b:?} and is now {b:?}, which was {old_a:?}");
            return Err(Difference::new(what));
        }
        Ok(())
    }
}

/// A model and another D-module that go through the same steps.
pub struct Runner {
    a: ModelNode,
    b: Option<Arc<dyn DModule>>,
    root: Pair,
    objects: Vec<Pair>,
    twins: Twins,
    pending: BTreeMap<ObjectRef, Pending>,
    in_flight: Option<InFlight>,
    /// An interrupted stable write is there wholly or not at all.
    whole_writes: bool,
    history: Vec<String>,
}

async fn root_of(node: &dyn DModule, fsid: Fsid) -> Checked<ObjectRef> {
    let (name, size_bytes) = (format!("seq{fsid}"), VOLUME_BYTES);
    match node.manage(Manage::VolumeCreate { fsid, name, size_bytes }).await {
        Ok(Managed::Done) => {}
        other => return Err(Difference::new(format!("a volume was made: {other:?}"))),
    }
    match node.manage(Manage::VolumeRoot { fsid }).await {
        Ok(Managed::Root(root)) => Ok(root),
        other => Err(Difference::new(format!("the root of a volume is {other:?}"))),
    }
}

impl Runner {
    /// Makes volume `fsid` on `b` and on a model.
    ///
    /// # Errors
    /// When the volume cannot be made.
    pub async fn new(world: World, b: Arc<dyn DModule>, fsid: Fsid) -> Checked<Self> {
        let a = ModelNode::new(world);
        let root = Pair { a: root_of(&a, fsid).await?, b: root_of(b.as_ref(), fsid).await? };
        let mut twins = Twins::default();
        twins.meet(root.a, root.b)?;
        Ok(Self {
            a,
            b: Some(b),
            root,
            objects: vec![root],
            twins,
            pending: BTreeMap::new(),
            in_flight: None,
            whole_writes: false,
            history: Vec::new(),
        })
    }

    /// Gives the D-module up, so that the caller can stop it; [`Self::remounted`] takes the next.
    ///
    /// # Panics
    /// When it was given up before.
    pub fn release(&mut self) -> Arc<dyn DModule> {
        match self.b.take() {
            Some(b) => b,
            None => panic!("the D-module was given up before"),
        }
    }

    fn b(&self) -> Arc<dyn DModule> {
        match &self.b {
            Some(b) => b.clone(),
            None => panic!("the D-module was given up and none took its place"),
        }
    }

    fn blame(&self, difference: Difference) -> Difference {
        let what = difference.what;
        Difference { what, history: self.history.clone() }
    }

    /// Runs one step on both; an event is the caller's to bring about.
    ///
    /// # Errors
    /// A difference.
    pub async fn step(&mut self, step: &Step) -> Checked<Option<Event>> {
        match self.meaning(step) {
            Meaning::Event(event) => {
                self.note(format!("{event:?}"));
                Ok(Some(event))
            }
            Meaning::Checkpoint => {
                self.note("consistency point".to_owned());
                let done = self.b().manage(Manage::ConsistencyPoint).await;
                if done != Ok(Managed::Done) {
                    let what = format!("a consistency point: {done:?}");
                    return Err(self.blame(Difference::new(what)));
                }
                self.pending.clear();
                Ok(None)
            }
            Meaning::ListAll { dir, page } => {
                self.note(format!("list {dir:?} in pages of {page}"));
                let b = self.b();
                let listed = compare::listings(&self.a, b.as_ref(), dir, page).await;
                listed.map_err(|d| self.blame(d))?;
                Ok(None)
            }
            Meaning::Op { who, op } => {
                let (op_a, op_b) = op;
                let ctx = context(who, ReadOnly::No);
                self.note(format!("uid {} {op_a:?}", ctx.cred.uid));
                self.run(ctx, op_a, op_b).await.map_err(|d| self.blame(d))?;
                Ok(None)
            }
        }
    }

    fn note(&mut self, line: String) {
        if self.history.len() >= HISTORY_MAX {
            self.history.remove(0);
        }
        let mut line = line;
        if line.len() > 400 {
            line.truncate(line.floor_char_boundary(400));
            line.push_str("...");
        }
        self.history.push(line);
    }

    async fn run(&mut self, ctx: OpCtx, op_a: Op<ObjectRef>, op_b: Op<ObjectRef>) -> Checked<()> {
        let b = self.b();
        self.in_flight = Some(InFlight { ctx: ctx.clone(), op: op_a.clone() });
        let got_b = b.file(ctx.clone(), op_b).wait().await;
        self.in_flight = None;
        if let Ok(Reply::Written { verifier, .. } | Reply::Committed { verifier, .. }) = &got_b
            && *verifier != b.verifier()
        {
            return Err(Difference::new("a reply carries another verifier than the node's"));
        }
        let reached = match &got_b {
            Ok(Reply::Written { stability, .. }) => *stability,
            _ => Stability::FileSync,
        };
        note_pending(&mut self.pending, &self.a, &ctx, &op_a, reached);
        let got_a = self.a.run(&ctx, op_a);
        compare::results(&mut self.twins, &got_a, &got_b)?;
        self.remember(&got_a, &got_b);
        Ok(())
    }

    fn remember(&mut self, got_a: &OpResult<ObjectRef>, got_b: &OpResult<ObjectRef>) {
        let (Ok(reply_a), Ok(reply_b)) = (got_a, got_b) else { return };
        let pair = match (reply_a, reply_b) {
            (Reply::Made { obj: a, .. }, Reply::Made { obj: b, .. })
            | (Reply::Found { obj: a, .. }, Reply::Found { obj: b, .. }) => Pair { a: *a, b: *b },
            _ => return,
        };
        if self.objects.contains(&pair) {
            return;
        }
        if self.objects.len() >= OBJECTS_MAX {
            let gone = |pair: &Pair| !alive(&self.a, &pair.a);
            let victim = self.objects.iter().position(gone).unwrap_or(1);
            self.objects.remove(victim);
        }
        self.objects.push(pair);
    }

    /// Takes the next incarnation of the D-module after a crash or restart, checks what it holds
    /// and follows it where a crash leaves a choice.
    ///
    /// # Errors
    /// A difference.
    pub async fn remounted(&mut self, b: Arc<dyn DModule>) -> Checked<()> {
        self.note("remounted".to_owned());
        self.b = Some(b.clone());
        let in_flight = self.in_flight.take();
        let mut candidates = vec![(self.a.fork(), self.pending.clone())];
        let touched = in_flight.as_ref().and_then(|f| match &f.op {
            Op::Write { obj, .. } | Op::Punch { obj, .. } | Op::SetAttr { obj, .. } => Some(*obj),
            _ => None,
        });
        if let Some(InFlight { ctx, op }) = in_flight {
            let (model, mut pending) = (self.a.fork(), self.pending.clone());
            // An interrupted write is like an unstable one (each byte may be there or not), unless
            // more is expected.
            let reached = self.interrupted_reached(&op);
            note_pending(&mut pending, &model, &ctx, &op, reached);
            drop(model.run(&ctx, op));
            candidates.push((model, pending));
        }
        // Trees are compared where the model has data. A candidate that has none where the other
        // one has some must be held against both.
        let touched = touched.and_then(|a| Some(Pair { a, b: *self.twins.by_a.get(&a)? }));
        let places: BTreeSet<u64> = match touched {
            Some(pair) => candidates
                .iter()
                .flat_map(|(model, _)| model.allocated(&pair.a))
                .filter_map(|fbn| fbn.offset())
                .collect(),
            None => BTreeSet::new(),
        };
        let mut refusals = Vec::new();
        for (model, pending) in candidates {
            let mut twins = self.twins.clone();
            let followed = pending::follow(&model, b.as_ref(), &twins, &pending).await;
            let mut compared = match followed {
                Ok(()) => compare::trees(&model, b.as_ref(), self.root, &mut twins).await,
                Err(difference) => Err(difference),
            };
            if let (Ok(()), Some(pair)) = (&compared, touched) {
                compared = compare::blocks(&model, b.as_ref(), &mut twins, pair, &places).await;
            }
            match compared {
                Ok(()) => {
                    (self.a, self.twins) = (model, twins);
                    self.pending.clear();
                    return self.compare_known().await;
                }
                Err(difference) => refusals.push(difference.what),
            }
        }
        let what = format!("after a crash: {}", refusals.join("\nand with the last operation: "));
        Err(self.blame(Difference::new(what)))
    }

    /// Compares everything: the trees below the root and all objects known from before.
    ///
    /// # Errors
    /// A difference.
    pub async fn compare_all(&mut self) -> Checked<()> {
        let b = self.b();
        let mut twins = self.twins.clone();
        let compared = compare::trees(&self.a, b.as_ref(), self.root, &mut twins).await;
        compared.map_err(|d| self.blame(d))?;
        self.twins = twins;
        self.compare_known().await
    }

    async fn compare_known(&mut self) -> Checked<()> {
        let b = self.b();
        let ctx = context(cairn_op::Credential::root(), ReadOnly::No);
        for Pair { a: obj_a, b: obj_b } in self.objects.clone() {
            let got_a = self.a.run(&ctx, Op::GetAttr { obj: obj_a });
            let got_b = b.file(ctx.clone(), Op::GetAttr { obj: obj_b }).wait().await;
            let compared = compare::results(&mut self.twins, &got_a, &got_b);
            compared.map_err(|d| self.blame(d))?;
        }
        Ok(())
    }
}

/// Whether the model has the object.
fn alive(model: &ModelNode, obj: &ObjectRef) -> bool {
    let ctx = context(cairn_op::Credential::root(), ReadOnly::No);
    model.run(&ctx, Op::GetAttr { obj: *obj }).is_ok()
}

/// Size of a file in the model.
fn size_of(model: &ModelNode, obj: &ObjectRef) -> u64 {
    let ctx = context(cairn_op::Credential::root(), ReadOnly::No);
    match model.run(&ctx, Op::GetAttr { obj: *obj }) {
        Ok(Reply::Attrs(attrs)) => attrs.size,
        _ => 0,
    }
}

/// Notes what `op`, about to be run on `model`, means for bytes that a crash may take.
fn note_pending(
    pending: &mut BTreeMap<ObjectRef, Pending>,
    model: &ModelNode,
    ctx: &OpCtx,
    op: &Op<ObjectRef>,
    reached: Stability,
) {
    let trial = || model.fork().run(ctx, op.clone()).is_ok();
    match op {
        Op::Write { obj, offset, data, .. } if !data.is_empty() => {
            let known = pending.contains_key(obj);
            if (reached == Stability::Unstable || known) && trial() {
                let entry = pending.entry(*obj).or_insert_with(|| Pending::new(model, obj));
                entry.write(model, obj, *offset, &data.to_vec(), reached);
            }
        }
        Op::SetAttr { obj, set: SetAttrs { size: Some(size), .. }, .. }
            if pending.contains_key(obj) && trial() =>
        {
            pending.entry(*obj).and_modify(|p| p.set_size(model, obj, *size));
        }
        Op::Create { dir, name, how: CreateHow::Unchecked(SetAttrs { size: Some(size), .. }) } => {
            let lookup = Op::Lookup { dir: *dir, name: name.clone() };
            let root = context(cairn_op::Credential::root(), ReadOnly::No);
            if let Ok(Reply::Found { obj, .. }) = model.run(&root, lookup)
                && pending.contains_key(&obj)
                && trial()
            {
                pending.entry(obj).and_modify(|p| p.set_size(model, &obj, *size));
            }
        }
        Op::Punch { obj, offset, count } if pending.contains_key(obj) && trial() => {
            let end = offset.saturating_add(*count).min(size_of(model, obj));
            pending.entry(*obj).and_modify(|p| p.zero(model, obj, *offset, end));
        }
        Op::Commit { obj, offset, count }
            if trial()
                && pending.get_mut(obj).is_some_and(|p| p.commit(model, obj, *offset, *count)) =>
        {
            pending.remove(obj);
        }
        _ => {}
    }
}
