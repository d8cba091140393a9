//! The sequence runner accepts what a crash may do, and finds what it may not.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::sync::{Arc, Mutex};

use cairn_cf::{DModule, Manage, ManageError, Managed};
use cairn_model::ModelNode;
use cairn_model::sequence::{Difference, Event, Runner, any_steps, run_sequence, steps_from_seed};
use cairn_op::{ObjectRef, Op, OpCtx, OpResult, Reply, SetAttrs, Stability, Submitted, Verifier};
use cairn_sim::SimWorld;
use cairn_sys::{BoxFuture, Payload};
use cairn_units::Fsid;
use proptest::prelude::*;

/// What the double does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing: it loses only what it may.
    None,
    /// Stable writes are treated like unstable ones.
    StableWritesAreNot,
    /// A commit answers and does nothing.
    CommitLies,
    /// A crash takes back every rename since the last consistency point.
    RenamesAreLost,
    /// Every 16th write changes a byte.
    WrongByte,
    /// Removed names come back in listings after a crash.
    RemovesAreLost,
    /// Punch leaves one byte.
    PunchLeavesAByte,
    /// Everybody is root.
    NoPermissions,
    /// The verifier stays over a crash, and its replies carry another one.
    OddVerifier,
}

/// A model that keeps unstable writes apart, as a log does.
struct Lossy {
    live: ModelNode,
    stable: Mutex<ModelNode>,
    fault: Fault,
    writes: Mutex<u64>,
}

impl Lossy {
    fn new(sim: &SimWorld, fault: Fault) -> Self {
        let live = ModelNode::new(sim.world());
        let stable = Mutex::new(live.fork());
        Self { live, stable, fault, writes: Mutex::new(0) }
    }
    fn crashed(&self) -> Self {
        let stable = self.stable.lock().expect("nothing panics while it holds this");
        Self {
            live: stable.fork(),
            stable: Mutex::new(stable.fork()),
            fault: self.fault,
            writes: Mutex::new(0),
        }
    }
    fn settle(&self) {
        *self.stable.lock().expect("nothing panics while it holds this") = self.live.fork();
    }
    fn run(&self, mut ctx: OpCtx, mut op: Op<ObjectRef>) -> OpResult<ObjectRef> {
        if self.fault == Fault::NoPermissions {
            ctx.cred = cairn_op::Credential::root();
        }
        if let (Fault::WrongByte, Op::Write { offset, data, .. }) = (self.fault, &mut op) {
            let mut writes = self.writes.lock().expect("nothing panics while it holds this");
            *writes += 1;
            let mut bytes = data.to_vec();
            if writes.is_multiple_of(16) && !bytes.is_empty() {
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
                *data = Payload::copy_from(*offset, &bytes);
            }
        }
        if let (Fault::PunchLeavesAByte, Op::Punch { count, .. }) = (self.fault, &mut op) {
            *count = count.saturating_sub(1);
        }
        let volatile = match &op {
            Op::Write { stability, .. } => {
                *stability == Stability::Unstable || self.fault == Fault::StableWritesAreNot
            }
            Op::Rename { .. } => self.fault == Fault::RenamesAreLost,
            Op::Remove { .. } => self.fault == Fault::RemovesAreLost,
            _ => false,
        };
        let commits = matches!(op, Op::Commit { .. });
        let mut reply = self.live.run(&ctx, op.clone());
        if commits && self.fault != Fault::CommitLies {
            self.settle();
        } else if !volatile {
            drop(self.stable.lock().expect("nothing panics while it holds this").run(&ctx, op));
        }
        if let (Fault::OddVerifier, Ok(Reply::Written { verifier, .. })) = (self.fault, &mut reply)
        {
            *verifier = Verifier([9; 8]);
        }
        reply
    }
}

impl DModule for Lossy {
    fn file(&self, ctx: OpCtx, op: Op<ObjectRef>) -> Submitted<OpResult<ObjectRef>> {
        Submitted::Ready(self.run(ctx, op))
    }
    fn manage(&self, request: Manage) -> BoxFuture<Result<Managed, ManageError>> {
        drop(
            self.stable.lock().expect("nothing panics while it holds this").manage(request.clone()),
        );
        if request == Manage::ConsistencyPoint {
            self.settle();
        }
        self.live.manage(request)
    }
    fn verifier(&self) -> Verifier {
        self.live.verifier()
    }
}

fn run(seed: u64, count: usize, fault: Fault) -> Result<(), Difference> {
    run_steps(seed, &steps_from_seed(seed, count), fault)
}

fn run_steps(
    seed: u64,
    steps: &[cairn_model::sequence::Step],
    fault: Fault,
) -> Result<(), Difference> {
    let sim = SimWorld::new(seed);
    let node = Arc::new(Lossy::new(&sim, fault));
    let current = Mutex::new(node.clone());
    sim.block_on(run_sequence(sim.world(), node, Fsid::new(1), steps, async |event, old| {
        drop(old);
        let mut current = current.lock().expect("nothing panics while it holds this");
        if event == Event::Restart {
            current.settle();
        }
        *current = Arc::new(current.crashed());
        current.clone() as Arc<dyn DModule>
    }))
}

#[test]
fn what_a_crash_may_lose_is_accepted() {
    for seed in 0..40 {
        if let Err(difference) = run(seed, 400, Fault::None) {
            panic!("seed {seed}: {difference}");
        }
    }
}

#[test]
fn every_planted_fault_is_found() {
    for fault in [
        Fault::StableWritesAreNot,
        Fault::CommitLies,
        Fault::RenamesAreLost,
        Fault::WrongByte,
        Fault::RemovesAreLost,
        Fault::PunchLeavesAByte,
        Fault::NoPermissions,
        Fault::OddVerifier,
    ] {
        let found = (0..40).find(|seed| run(*seed, 400, fault).is_err());
        assert!(found.is_some(), "{fault:?} was not found in 40 sequences");
    }
}

#[test]
fn the_same_seed_gives_the_same_steps() {
    assert_eq!(steps_from_seed(5, 50), steps_from_seed(5, 50));
    assert_ne!(steps_from_seed(5, 50), steps_from_seed(6, 50));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_sequence_of_the_model_against_itself_agrees(steps in any_steps(1..200)) {
        if let Err(difference) = run_steps(3, &steps, Fault::None) {
            prop_assert!(false, "{difference}");
        }
    }
}

/// A model whose operations never answer from the `at`th change on, applied or not.
struct Hangs {
    inner: ModelNode,
    left: Mutex<u64>,
    applied: bool,
}

impl DModule for Hangs {
    fn file(&self, ctx: OpCtx, op: Op<ObjectRef>) -> Submitted<OpResult<ObjectRef>> {
        let mut left = self.left.lock().expect("nothing panics while it holds this");
        if op.changes() {
            *left = left.saturating_sub(1);
        }
        if *left > 0 {
            return Submitted::Ready(self.inner.run(&ctx, op));
        }
        if self.applied {
            drop(self.inner.run(&ctx, op));
        }
        Submitted::Pending(Box::pin(core::future::pending()))
    }
    fn manage(&self, request: Manage) -> BoxFuture<Result<Managed, ManageError>> {
        self.inner.manage(request)
    }
    fn verifier(&self) -> Verifier {
        self.inner.verifier()
    }
}

fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

/// Runs until an operation hangs, then remounts what `after` makes of the content.
fn interrupted(
    seed: u64,
    applied: bool,
    after: impl Fn(&ModelNode),
) -> Option<Result<(), Difference>> {
    let sim = SimWorld::new(seed);
    let left = Mutex::new(20 + seed % 60);
    let node = Arc::new(Hangs { inner: ModelNode::new(sim.world()), left, applied });
    let mut runner =
        sim.block_on(Runner::new(sim.world(), node.clone(), Fsid::new(1))).expect("a runner");
    for step in steps_from_seed(seed, 300) {
        if poll_once(runner.step(&step)).is_some() {
            continue;
        }
        after(&node.inner);
        let next = Arc::new(node.inner.fork());
        return Some(sim.block_on(runner.remounted(next)));
    }
    None
}

#[test]
fn an_interrupted_operation_may_be_there_or_not() {
    for seed in 0..60 {
        for applied in [false, true] {
            if let Some(Err(difference)) = interrupted(seed, applied, |_| {}) {
                panic!("seed {seed} applied {applied}: {difference}");
            }
        }
    }
}

#[test]
fn an_interrupted_operation_must_not_change_anything_else() {
    let harm = |node: &ModelNode| {
        let ctx = OpCtx {
            vserver: cairn_units::VserverId::new(1),
            cred: cairn_op::Credential::root(),
            client: cairn_op::ClientAddr { ip: std::net::Ipv4Addr::LOCALHOST.into(), port: 1 },
            op_no: cairn_units::OpNo::new(1),
            deadline: None,
            read_only: cairn_op::ReadOnly::No,
        };
        let volume = Manage::VolumeRoot { fsid: Fsid::new(1) };
        let Some(Ok(Managed::Root(obj))) = poll_once(node.manage(volume)) else {
            panic!("the volume has a root");
        };
        let set = SetAttrs { mode: Some(0o1234), ..SetAttrs::default() };
        drop(node.run(&ctx, Op::SetAttr { obj, set, guard: None }));
    };
    let mut ran = 0;
    for seed in 0..20 {
        if let Some(result) = interrupted(seed, true, harm) {
            assert!(result.is_err(), "seed {seed}: the harm was not seen");
            ran += 1;
        }
    }
    assert!(ran > 10, "{ran} runs");
}
