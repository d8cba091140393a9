//! Stated operations instead of drawn ones, and copies of what is expected at one moment.
//!
//! Layer: beside `steps`, for checkers that enumerate workloads and crash points themselves: a
//! copy of the runner taken when an operation begins, and one when it was answered, say what a
//! crash between the two may leave.

use cairn_op::{Name, ObjectRef, Op, OpCtx, ReadOnly, Reply, Stability};

use super::{Checked, Difference, InFlight, Pair, Runner};
use crate::conformance::context;

/// An object on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Twin(Pair);

/// An operation as the model and as the other D-module name its objects.
#[derive(Clone, Debug)]
pub struct TwinOp {
    a: Op<ObjectRef>,
    b: Op<ObjectRef>,
}

impl TwinOp {
    /// An operation on one object.
    pub fn one(twin: Twin, op: impl Fn(ObjectRef) -> Op<ObjectRef>) -> Self {
        Self { a: op(twin.0.a), b: op(twin.0.b) }
    }
    /// An operation on two objects.
    pub fn two(
        first: Twin,
        second: Twin,
        op: impl Fn(ObjectRef, ObjectRef) -> Op<ObjectRef>,
    ) -> Self {
        Self { a: op(first.0.a, second.0.a), b: op(first.0.b, second.0.b) }
    }
}

fn superuser() -> OpCtx {
    context(cairn_op::Credential::root(), ReadOnly::No)
}

impl Runner {
    /// What is expected now, without a D-module: [`Runner::remounted`] gives it one.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            a: self.a.fork(),
            b: None,
            root: self.root,
            objects: self.objects.clone(),
            twins: self.twins.clone(),
            pending: self.pending.clone(),
            in_flight: self.in_flight.clone(),
            whole_writes: self.whole_writes,
            history: self.history.clone(),
        }
    }

    /// As [`Self::fork`], with `op` begun and not answered.
    #[must_use]
    pub fn fork_with(&self, op: &TwinOp) -> Self {
        let mut fork = self.fork();
        fork.in_flight = Some(InFlight { ctx: superuser(), op: op.a.clone() });
        fork
    }

    /// From now on an interrupted stable write must be there wholly or not at all, which is more
    /// than clients may rely on.
    pub fn expect_whole_writes(&mut self) {
        self.whole_writes = true;
    }

    /// Everything is stable: a consistency point was answered.
    pub fn settled(&mut self) {
        self.pending.clear();
    }

    /// The root directory.
    pub fn root(&self) -> Twin {
        Twin(self.root)
    }

    /// Continues on the next incarnation without a comparison (after a clean stop).
    pub fn attach(&mut self, b: std::sync::Arc<dyn cairn_cf::DModule>) {
        self.b = Some(b);
    }

    /// The object that `name` leads to on both sides.
    ///
    /// # Errors
    /// A difference, or no such name.
    pub async fn find(&mut self, dir: Twin, name: &Name) -> Checked<Twin> {
        let ctx = superuser();
        let lookup = |dir| Op::Lookup { dir, name: name.clone() };
        let got_a = self.a.run(&ctx, lookup(dir.0.a));
        let got_b = self.b().file(ctx, lookup(dir.0.b)).wait().await;
        match (&got_a, &got_b) {
            (Ok(Reply::Found { obj: a, .. }), Ok(Reply::Found { obj: b, .. })) => {
                self.remember(&got_a, &got_b);
                Ok(Twin(Pair { a: *a, b: *b }))
            }
            _ => Err(Difference::new(format!("{name:?}: model {got_a:?}, other {got_b:?}"))),
        }
    }

    /// Runs one operation of the superuser on both sides and compares the answers.
    ///
    /// # Errors
    /// A difference.
    pub async fn operate(&mut self, op: TwinOp) -> Checked<()> {
        self.note(format!("{:?}", op.a));
        self.run(superuser(), op.a, op.b).await.map_err(|d| self.blame(d))
    }

    /// How much of an interrupted write a crash may leave.
    pub(super) fn interrupted_reached(&self, op: &Op<ObjectRef>) -> Stability {
        match op {
            Op::Write { stability, .. } if self.whole_writes => *stability,
            _ => Stability::Unstable,
        }
    }
}
