//! Bytes that a crash may take: written, but not stably.
//!
//! Layer: below `sequence`. For each byte touched by an unstable write since the file was last
//! stable: every value it may have after a crash. A stable change of a byte leaves one value; an
//! unstable one adds a value. The same for the size.

use std::collections::{BTreeMap, BTreeSet};

use cairn_cf::DModule;
use cairn_op::{ObjectRef, Op, ReadOnly, Reply, SetAttrs, SetTime, Stability};
use cairn_sys::Payload;

use super::{Checked, Difference, Twins, size_of};
use crate::ModelNode;
use crate::conformance::context;
use crate::rules::{SET_GID, SET_UID};

/// What a crash may leave of one file.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    sizes: BTreeSet<u64>,
    bytes: BTreeMap<u64, Vec<u8>>,
}

fn byte_at(content: &[u8], base: u64, at: u64) -> u8 {
    let index = at.checked_sub(base).and_then(|i| usize::try_from(i).ok());
    index.and_then(|i| content.get(i)).copied().unwrap_or(0)
}

fn read_model(model: &ModelNode, obj: &ObjectRef, offset: u64, count: u64) -> Vec<u8> {
    let ctx = context(cairn_op::Credential::root(), ReadOnly::No);
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    match model.run(&ctx, Op::Read { obj: *obj, offset, count }) {
        Ok(Reply::Read { data, .. }) => data.to_vec(),
        _ => Vec::new(),
    }
}

impl Pending {
    /// All of the file is stable.
    pub(super) fn new(model: &ModelNode, obj: &ObjectRef) -> Self {
        let sizes = BTreeSet::from([size_of(model, obj)]);
        Self { sizes, bytes: BTreeMap::new() }
    }

    /// About to write.
    pub(super) fn write(
        &mut self,
        model: &ModelNode,
        obj: &ObjectRef,
        offset: u64,
        data: &[u8],
        reached: Stability,
    ) {
        let stable = reached != Stability::Unstable;
        let old = read_model(model, obj, offset, data.len() as u64);
        for (at, byte) in (offset..).zip(data) {
            if stable {
                self.bytes.insert(at, vec![*byte]);
            } else {
                let before = byte_at(&old, offset, at);
                let values = self.bytes.entry(at).or_insert_with(|| vec![before]);
                if !values.contains(byte) {
                    values.push(*byte);
                }
            }
        }
        let end = offset + data.len() as u64;
        let grown: BTreeSet<u64> = self.sizes.iter().map(|size| end.max(*size)).collect();
        if stable {
            self.sizes = grown;
        } else {
            self.sizes.extend(grown);
        }
    }

    /// About to set the size, stably.
    pub(super) fn set_size(&mut self, _model: &ModelNode, _obj: &ObjectRef, size: u64) {
        for (_, values) in self.bytes.range_mut(size..) {
            *values = vec![0];
        }
        self.sizes = BTreeSet::from([size]);
    }

    /// About to zero a range, stably.
    pub(super) fn zero(&mut self, _model: &ModelNode, _obj: &ObjectRef, offset: u64, end: u64) {
        if offset < end {
            for (_, values) in self.bytes.range_mut(offset..end) {
                *values = vec![0];
            }
        }
    }

    /// About to commit a range; whether all of the file is stable now.
    pub(super) fn commit(
        &mut self,
        model: &ModelNode,
        obj: &ObjectRef,
        offset: u64,
        count: u64,
    ) -> bool {
        let size = size_of(model, obj);
        let end = if count == 0 { u64::MAX } else { offset.saturating_add(count) };
        self.bytes.retain(|at, _| *at < offset || *at >= end);
        if self.bytes.is_empty() && offset == 0 && end >= size {
            return true;
        }
        if end >= size {
            self.sizes = BTreeSet::from([size]);
        }
        false
    }
}

/// Checks every pending file of `b` against what a crash may have left, and makes `model` the
/// same.
pub(super) async fn follow(
    model: &ModelNode,
    b: &dyn DModule,
    twins: &Twins,
    pending: &BTreeMap<ObjectRef, Pending>,
) -> Checked<()> {
    let ctx = context(cairn_op::Credential::root(), ReadOnly::No);
    for (obj_a, pending) in pending {
        let Ok(Reply::Attrs(was)) = model.run(&ctx, Op::GetAttr { obj: *obj_a }) else {
            continue; // removed since
        };
        let Some(obj_b) = twins.by_a.get(obj_a) else {
            return Err(Difference::new(format!("{obj_a:?} has no twin")));
        };
        let got = b.file(ctx.clone(), Op::GetAttr { obj: *obj_b }).wait().await;
        let Ok(Reply::Attrs(attrs)) = got else {
            return Err(Difference::new(format!("{obj_b:?} is gone: {got:?}")));
        };
        if !pending.sizes.contains(&attrs.size) {
            let what = format!("size {} is none of {:?}", attrs.size, pending.sizes);
            return Err(Difference::new(what));
        }
        let set = |set| Op::SetAttr { obj: *obj_a, set, guard: None };
        let size = SetAttrs { size: Some(attrs.size), ..SetAttrs::default() };
        drop(model.run(&ctx, set(size)));
        follow_bytes(model, b, (obj_a, obj_b), pending, attrs.size).await?;
        // An unstable write's effects on time and set-id bits may be lost with it.
        let set_id = SET_UID | SET_GID;
        let mode = (was.mode | set_id == attrs.mode | set_id).then_some(attrs.mode);
        let mtime = SetTime::To(attrs.mtime);
        drop(model.run(&ctx, set(SetAttrs { mode, mtime, ..SetAttrs::default() })));
    }
    Ok(())
}

async fn follow_bytes(
    model: &ModelNode,
    b: &dyn DModule,
    (obj_a, obj_b): (&ObjectRef, &ObjectRef),
    pending: &Pending,
    size: u64,
) -> Checked<()> {
    /// Bytes compared with one read.
    const WINDOW: u64 = 65_536;
    let ctx = context(cairn_op::Credential::root(), ReadOnly::No);
    let mut window: Option<(u64, Vec<u8>)> = None;
    for (at, values) in pending.bytes.range(..size) {
        let inside = window.as_ref().is_some_and(|(base, _)| at - base < WINDOW);
        if !inside {
            let op = Op::Read { obj: *obj_b, offset: *at, count: 65_536 };
            let got = b.file(ctx.clone(), op).wait().await;
            let Ok(Reply::Read { data, .. }) = got else {
                return Err(Difference::new(format!("{obj_b:?} cannot be read: {got:?}")));
            };
            // The model follows in one piece where the window was pending, byte by byte where
            // stable bytes lie between: they are compared later.
            window = Some((*at, data.to_vec()));
        }
        let Some((base, content)) = &window else { continue };
        let byte = byte_at(content, *base, *at);
        if !values.contains(&byte) {
            let what = format!("byte {at} of {obj_b:?} is {byte}, none of {values:?}");
            return Err(Difference::new(what));
        }
    }
    for (at, bytes) in runs(&pending.bytes, size) {
        let op = Op::Read { obj: *obj_b, offset: at, count: bytes };
        if let Ok(Reply::Read { data, .. }) = b.file(ctx.clone(), op).wait().await {
            let data = Payload::copy_from(at, &data.to_vec());
            let stability = Stability::FileSync;
            drop(model.run(&ctx, Op::Write { obj: *obj_a, offset: at, data, stability }));
        }
    }
    Ok(())
}

/// Pending bytes before `size` as runs without gaps.
fn runs(bytes: &BTreeMap<u64, Vec<u8>>, size: u64) -> Vec<(u64, u32)> {
    let mut out: Vec<(u64, u32)> = Vec::new();
    for at in bytes.range(..size).map(|(at, _)| *at) {
        match out.last_mut() {
            Some((from, len)) if *from + u64::from(*len) == at && *len < 1 << 20 => *len += 1,
            _ => out.push((at, 1)),
        }
    }
    out
}
