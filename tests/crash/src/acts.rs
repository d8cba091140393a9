//! The operations that workloads are made of.
//!
//! Layer: above `rig`. Each has a name, so that a workload is a list of words that replays. Objects
//! are named by handle and so keep their meaning whatever came before; names are taken from a small
//! set, so that operations meet.

use std::time::Duration;

use bytes::Bytes;
use cairn_cf::Manage;
use cairn_model::sequence::{Twin, TwinOp};
use cairn_op::{CreateHow, LinkTarget, Op, SetAttrs, SetTime, Stability, Verifier, XattrHow};
use cairn_units::{Fsid, Gid, Uid, WallTime};

use crate::rig::{MAIN, Objects, SECOND, bytes, name};

/// What an operation does.
#[derive(Clone, Copy, Debug)]
pub enum Does {
    /// A file operation.
    Op(fn(&Objects) -> TwinOp),
    /// A management request that is answered when a consistency point holds it.
    Manage(fn() -> Manage),
    /// Takes the first data disk out.
    FailDisk,
    /// Attaches the blank disk.
    AddDisk,
    /// Starts a scrub.
    Scrub,
    /// Lets time pass: background work goes on.
    Wait(Duration),
}

/// An operation with its name.
#[derive(Clone, Copy, Debug)]
pub struct Act {
    /// The word for it.
    pub name: &'static str,
    /// What it does.
    pub does: Does,
}

impl Act {
    /// Whether parity may be spoken for already.
    pub fn touches_disks(&self) -> bool {
        matches!(self.does, Does::FailDisk | Does::AddDisk)
    }
}

fn one(twin: Twin, op: impl Fn(cairn_op::ObjectRef) -> Op<cairn_op::ObjectRef>) -> TwinOp {
    TwinOp::one(twin, op)
}

fn write(file: Twin, offset: u64, count: usize, stability: Stability) -> TwinOp {
    let data = bytes(offset ^ ((count as u64) << 20) ^ ((stability as u64) << 50), offset, count);
    one(file, move |obj| Op::Write { obj, offset, data: data.clone(), stability })
}

fn set(twin: Twin, set: SetAttrs) -> TwinOp {
    one(twin, move |obj| Op::SetAttr { obj, set, guard: None })
}

fn size(twin: Twin, bytes: u64) -> TwinOp {
    set(twin, SetAttrs { size: Some(bytes), ..SetAttrs::default() })
}

fn create(dir: Twin, text: &str, how: CreateHow) -> TwinOp {
    one(dir, |dir| Op::Create { dir, name: name(text), how })
}

fn rename(from: Twin, from_name: &str, to: Twin, to_name: &str) -> TwinOp {
    TwinOp::two(from, to, |from_dir, to_dir| Op::Rename {
        from_dir,
        from_name: name(from_name),
        to_dir,
        to_name: name(to_name),
    })
}

fn link(file: Twin, dir: Twin, text: &str) -> TwinOp {
    TwinOp::two(file, dir, |obj, dir| Op::Link { obj, dir, name: name(text) })
}

fn remove(dir: Twin, text: &str) -> TwinOp {
    one(dir, |dir| Op::Remove { dir, name: name(text) })
}

fn symlink(dir: Twin, text: &str, target: &[u8]) -> TwinOp {
    let set = SetAttrs::default();
    one(dir, |dir| match LinkTarget::new(Bytes::copy_from_slice(target)) {
        Ok(target) => Op::Symlink { dir, name: name(text), target, set },
        Err(status) => panic!("a link target: {status}"),
    })
}

fn mode(bits: u32) -> SetAttrs {
    SetAttrs { mode: Some(bits), ..SetAttrs::default() }
}

fn set_xattr(file: Twin, text: &str, count: usize) -> TwinOp {
    let value = bytes(77, 0, count).to_vec();
    let how = XattrHow::Either;
    one(file, |obj| Op::SetXattr { obj, name: name(text), value: value.clone(), how })
}

fn punch(file: Twin, offset: u64, count: u64) -> TwinOp {
    one(file, |obj| Op::Punch { obj, offset, count })
}

fn commit(file: Twin, offset: u64, count: u64) -> TwinOp {
    one(file, |obj| Op::Commit { obj, offset, count })
}

const SYNC: Stability = Stability::FileSync;
const UNSTABLE: Stability = Stability::Unstable;

/// All operations.
#[rustfmt::skip]
pub fn acts() -> Vec<Act> {
    let mut all = Vec::new();
    let mut op = |name, does| all.push(Act { name, does: Does::Op(does) });
    op("create", |o| create(o.root, "n", CreateHow::Guarded(mode(0o644))));
    op("create-exclusive", |o| create(o.a, "n", CreateHow::Exclusive(Verifier([7; 8]))));
    op("create-over", |o| {
        let set = SetAttrs { size: Some(0), ..mode(0o600) };
        create(o.root, "f", CreateHow::Unchecked(set))
    });
    op("mkdir", |o| one(o.root, |dir| Op::MakeDir { dir, name: name("d"), set: mode(0o700) }));
    op("mkdir-in-a", |o| one(o.a, |dir| Op::MakeDir { dir, name: name("n"), set: mode(0o755) }));
    op("rmdir", |o| one(o.root, |dir| Op::RemoveDir { dir, name: name("B") }));
    op("symlink", |o| symlink(o.root, "n", b"A/h"));
    op("symlink-long", |o| symlink(o.b, "s", &[b't'; 700]));
    op("link", |o| link(o.f, o.a, "n"));
    op("link-in-root", |o| link(o.h, o.root, "n"));
    op("unlink-f", |o| remove(o.root, "f"));
    op("unlink-g", |o| remove(o.root, "g"));
    op("unlink-n", |o| remove(o.root, "n"));
    op("unlink-h", |o| remove(o.a, "h"));
    op("rename-new", |o| rename(o.root, "f", o.root, "n"));
    op("rename-over", |o| rename(o.root, "f", o.root, "g"));
    op("rename-into-a", |o| rename(o.root, "g", o.a, "n"));
    op("rename-over-h", |o| rename(o.root, "g", o.a, "h"));
    op("rename-h-over", |o| rename(o.a, "h", o.root, "f"));
    op("rename-n", |o| rename(o.root, "n", o.root, "f"));
    op("rename-dir", |o| rename(o.root, "A", o.b, "A"));
    op("rename-dir-over", |o| rename(o.root, "A", o.root, "B"));
    op("write-block", |o| write(o.f, 0, 4096, SYNC));
    op("write-head", |o| write(o.f, 100, 1000, SYNC));
    op("write-across", |o| write(o.f, 4000, 300, SYNC));
    op("write-tail", |o| write(o.f, 9900, 300, SYNC));
    op("write-hole", |o| write(o.f, 40_000, 5000, SYNC));
    op("write-g", |o| write(o.g, 0, 4096, Stability::DataSync));
    op("write-h", |o| write(o.h, 16 * 4096 + 7, 9000, SYNC));
    op("write-large", |o| write(o.f, 4096, 40 * 4096, SYNC));
    op("unstable-block", |o| write(o.f, 4096, 4096, UNSTABLE));
    op("unstable-head", |o| write(o.f, 50, 500, UNSTABLE));
    op("unstable-across", |o| write(o.f, 8000, 400, UNSTABLE));
    op("unstable-tail", |o| write(o.f, 9000, 3000, UNSTABLE));
    op("unstable-hole", |o| write(o.f, 50_000, 5000, UNSTABLE));
    op("unstable-h", |o| write(o.h, 15 * 4096 + 1000, 2 * 4096, UNSTABLE));
    op("truncate-0", |o| size(o.f, 0));
    op("truncate-down", |o| size(o.f, 5000));
    op("truncate-up", |o| size(o.f, 30_000));
    op("truncate-h", |o| size(o.h, 3 * 4096));
    op("punch-block", |o| punch(o.f, 0, 4096));
    op("punch-part", |o| punch(o.f, 100, 9000));
    op("punch-h", |o| punch(o.h, 2 * 4096, 15 * 4096));
    op("chmod", |o| set(o.f, mode(0o4711)));
    op("chown", |o| {
        let owner = SetAttrs { uid: Some(Uid::new(1001)), gid: Some(Gid::new(100)), ..SetAttrs::default() };
        set(o.f, owner)
    });
    op("utimes", |o| {
        set(o.g, SetAttrs { mtime: SetTime::To(WallTime::new(12_345)), ..SetAttrs::default() })
    });
    op("xattr-set", |o| set_xattr(o.f, "user.y", 40));
    op("xattr-replace", |o| set_xattr(o.g, "user.x", 6000));
    op("xattr-remove", |o| one(o.g, |obj| Op::RemoveXattr { obj, name: name("user.x") }));
    op("commit", |o| commit(o.f, 0, 0));
    op("commit-part", |o| commit(o.f, 4096, 4096));
    op("commit-h", |o| commit(o.h, 0, 0));
    let mut manage = |name, does| all.push(Act { name, does: Does::Manage(does) });
    manage("point", || Manage::ConsistencyPoint);
    manage("volume-create", || Manage::VolumeCreate {
        fsid: Fsid::new(3),
        name: "third".to_owned(),
        size_bytes: 8 << 20,
    });
    manage("volume-resize", || Manage::VolumeResize { fsid: MAIN, size_bytes: 300 << 20 });
    manage("volume-rename", || Manage::VolumeRename { fsid: SECOND, name: "other".to_owned() });
    manage("volume-delete", || Manage::VolumeDelete { fsid: SECOND });
    all.push(Act { name: "disk-fail", does: Does::FailDisk });
    all.push(Act { name: "disk-add", does: Does::AddDisk });
    all.push(Act { name: "scrub", does: Does::Scrub });
    all.push(Act { name: "wait-2ms", does: Does::Wait(Duration::from_millis(2)) });
    all.push(Act { name: "wait-12s", does: Does::Wait(Duration::from_secs(12)) });
    all
}

/// The operation of this name.
pub fn act(name: &str) -> Option<Act> {
    acts().into_iter().find(|act| act.name == name)
}
