//! What every D-module must answer, one claim at a time.
//!
//! Layer: tests of everything that implements [`DModule`]. The cases know no executor and no
//! implementation: they speak only through the trait. Each gets a fresh volume.
//!
//! Use: `cairn_model::conformance::run_all(&node).await` from a test of the implementation, with
//! a node that has [`VOLUME_BYTES`] of space to spare; or one [`Case`] after the other from
//! [`cases`]. A failed claim panics with the name of the case and what was answered.

mod access;
mod data;
mod listing;
mod names;
mod times;

use std::sync::Arc;

use bytes::Bytes;
use cairn_cf::{DModule, Manage, Managed};
use cairn_op::{
    Attrs, ClientAddr, CreateHow, Credential, Name, ObjectRef, Op, OpCtx, OpResult, ReadOnly,
    Reply, SetAttrs, Stability, Status,
};
use cairn_sys::{BoxFuture, Payload};
use cairn_units::{Fsid, Gid, OpNo, Uid, VserverId};

/// Size of the volume that each case gets.
pub const VOLUME_BYTES: u64 = 64 << 20;

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// The claim.
    pub name: &'static str,
    run: fn(Bench) -> BoxFuture<()>,
}

/// Lists functions as cases under their own names.
macro_rules! case_list {
    ($($name:ident),* $(,)?) => {
        pub(super) fn cases() -> Vec<$crate::conformance::Case> {
            vec![$($crate::conformance::Case {
                name: stringify!($name),
                run: |bench| Box::pin($name(bench)),
            }),*]
        }
    };
}
use case_list;

/// All cases.
pub fn cases() -> Vec<Case> {
    let parts = [data::cases(), names::cases(), listing::cases(), access::cases(), times::cases()];
    parts.concat()
}

/// Runs every case on `node`, each on a volume of its own that is deleted afterwards; returns how
/// many there were.
///
/// # Panics
/// At the first claim that does not hold.
pub async fn run_all(node: &Arc<dyn DModule>) -> usize {
    let cases = cases();
    for (at, case) in (0u64..).zip(&cases) {
        run_case(node, case, Fsid::new(0x1000 + at)).await;
    }
    cases.len()
}

/// Runs one case on a new volume `fsid`.
///
/// # Panics
/// At the first claim that does not hold.
pub async fn run_case(node: &Arc<dyn DModule>, case: &Case, fsid: Fsid) {
    let bench = Bench::new(case.name, node.clone(), fsid).await;
    (case.run)(bench).await;
    let deleted = node.manage(Manage::VolumeDelete { fsid }).await;
    assert_eq!(deleted, Ok(Managed::Done), "{}: the volume is deleted", case.name);
}

/// A user of the tests.
pub(crate) const ALICE: u32 = 1001;
/// Another one.
pub(crate) const BOB: u32 = 1002;
/// A group.
pub(crate) const STAFF: u32 = 500;

/// A fresh volume and short words for everything one asks of it.
#[derive(Clone)]
pub(crate) struct Bench {
    case: &'static str,
    pub(crate) node: Arc<dyn DModule>,
    pub(crate) fsid: Fsid,
    pub(crate) root: ObjectRef,
}

/// A name.
pub(crate) fn name(bytes: impl AsRef<[u8]>) -> Name {
    match Name::new(Bytes::copy_from_slice(bytes.as_ref())) {
        Ok(name) => name,
        Err(status) => panic!("a name of the tests: {status}"),
    }
}

/// A user and further groups.
pub(crate) fn user(uid: u32, gid: u32, groups: &[u32]) -> Credential {
    let groups = groups.iter().map(|gid| Gid::new(*gid)).collect();
    Credential { uid: Uid::new(uid), gid: Gid::new(gid), groups }
}

pub(crate) fn root() -> Credential {
    Credential::root()
}
pub(crate) fn alice() -> Credential {
    user(ALICE, 100, &[])
}
pub(crate) fn bob() -> Credential {
    user(BOB, 200, &[])
}

/// Only a mode.
pub(crate) fn mode(mode: u32) -> SetAttrs {
    SetAttrs { mode: Some(mode), ..SetAttrs::default() }
}
/// Only a size.
pub(crate) fn size(size: u64) -> SetAttrs {
    SetAttrs { size: Some(size), ..SetAttrs::default() }
}
/// Only an owner.
pub(crate) fn owner(uid: u32) -> SetAttrs {
    SetAttrs { uid: Some(Uid::new(uid)), ..SetAttrs::default() }
}
/// Only a group.
pub(crate) fn group(gid: u32) -> SetAttrs {
    SetAttrs { gid: Some(Gid::new(gid)), ..SetAttrs::default() }
}

/// The context of a request.
pub(crate) fn context(cred: Credential, read_only: ReadOnly) -> OpCtx {
    OpCtx {
        vserver: VserverId::new(1),
        cred,
        client: ClientAddr { ip: std::net::Ipv4Addr::LOCALHOST.into(), port: 700 },
        op_no: OpNo::new(0),
        deadline: None,
        read_only,
    }
}

impl Bench {
    async fn new(case: &'static str, node: Arc<dyn DModule>, fsid: Fsid) -> Self {
        let create =
            Manage::VolumeCreate { fsid, name: format!("v{fsid}"), size_bytes: VOLUME_BYTES };
        let made = node.manage(create).await;
        assert_eq!(made, Ok(Managed::Done), "{case}: a volume is made");
        let Ok(Managed::Root(root)) = node.manage(Manage::VolumeRoot { fsid }).await else {
            panic!("{case}: the volume has a root");
        };
        Self { case, node, fsid, root }
    }

    /// Asks.
    pub(crate) async fn ask(&self, who: &Credential, op: Op<ObjectRef>) -> OpResult<ObjectRef> {
        self.node.file(context(who.clone(), ReadOnly::No), op).wait().await
    }

    /// Asks, and wants to be answered.
    pub(crate) async fn done(&self, who: &Credential, op: Op<ObjectRef>) -> Reply<ObjectRef> {
        let text = format!("{op:?}");
        match self.ask(who, op).await {
            Ok(reply) => reply,
            Err(failure) => panic!("{}: {text} by {who:?}: {}", self.case, failure.status),
        }
    }

    /// Asks, and wants to be refused with `status`.
    pub(crate) async fn refused(&self, who: &Credential, op: Op<ObjectRef>, status: Status) {
        let text = format!("{op:?}");
        match self.ask(who, op).await {
            Ok(reply) => panic!("{}: {text} by {who:?} answered {reply:?}", self.case),
            Err(failure) => {
                assert_eq!(failure.status, status, "{}: {text} by {who:?}", self.case);
            }
        }
    }

    /// An assertion with the name of the case.
    pub(crate) fn claim(&self, holds: bool, what: impl core::fmt::Display) {
        assert!(holds, "{}: {what}", self.case);
    }

    /// An equality with the name of the case.
    pub(crate) fn same<T: PartialEq + core::fmt::Debug>(
        &self,
        got: T,
        want: T,
        what: impl core::fmt::Display,
    ) {
        assert!(got == want, "{}: {what}: got {got:?}, want {want:?}", self.case);
    }

    /// Attributes.
    pub(crate) async fn attrs(&self, obj: ObjectRef) -> Attrs {
        match self.done(&root(), Op::GetAttr { obj }).await {
            Reply::Attrs(attrs) => attrs,
            other => panic!("{}: getattr answered {other:?}", self.case),
        }
    }

    /// What a reply made.
    pub(crate) fn made(&self, reply: Reply<ObjectRef>) -> (ObjectRef, Attrs) {
        match reply {
            Reply::Made { obj, attrs, .. } => (obj, attrs),
            other => panic!("{}: a create answered {other:?}", self.case),
        }
    }

    /// Makes a file of this mode.
    pub(crate) async fn file(
        &self,
        who: &Credential,
        dir: ObjectRef,
        n: &str,
        bits: u32,
    ) -> ObjectRef {
        let how = CreateHow::Guarded(mode(bits));
        self.made(self.done(who, Op::Create { dir, name: name(n), how }).await).0
    }

    /// Makes a directory of this mode.
    pub(crate) async fn dir(
        &self,
        who: &Credential,
        dir: ObjectRef,
        n: &str,
        bits: u32,
    ) -> ObjectRef {
        let op = Op::MakeDir { dir, name: name(n), set: mode(bits) };
        self.made(self.done(who, op).await).0
    }

    /// A directory that everybody may write.
    pub(crate) async fn open_dir(&self, n: &str) -> ObjectRef {
        self.dir(&root(), self.root, n, 0o777).await
    }

    /// Sets attributes.
    pub(crate) async fn set(&self, who: &Credential, obj: ObjectRef, set: SetAttrs) -> Attrs {
        match self.done(who, Op::SetAttr { obj, set, guard: None }).await {
            Reply::Changed { after, .. } => after,
            other => panic!("{}: setattr answered {other:?}", self.case),
        }
    }

    /// Writes stably.
    pub(crate) async fn write(&self, who: &Credential, obj: ObjectRef, offset: u64, data: &[u8]) {
        let reply = self.done(who, write_op(obj, offset, data)).await;
        let all = matches!(&reply, Reply::Written { count, stability, .. }
            if *count as usize == data.len() && *stability == Stability::FileSync);
        self.claim(all, format_args!("a stable write of {} bytes: {reply:?}", data.len()));
    }

    /// Reads, with whether the end was reached.
    pub(crate) async fn read(&self, obj: ObjectRef, offset: u64, count: u32) -> (Vec<u8>, bool) {
        match self.done(&root(), Op::Read { obj, offset, count }).await {
            Reply::Read { data, eof, .. } => {
                let skip_fits = data.is_empty() || u64::from(data.skip()) == offset % 4096;
                self.claim(skip_fits, "a read's payload is placed as in the file");
                (data.to_vec(), eof)
            }
            other => panic!("{}: read answered {other:?}", self.case),
        }
    }

    /// Looks a name up.
    pub(crate) async fn find(&self, dir: ObjectRef, n: &str) -> Option<ObjectRef> {
        match self.ask(&root(), Op::Lookup { dir, name: name(n) }).await {
            Ok(Reply::Found { obj, .. }) => Some(obj),
            Err(failure) if failure.status == Status::NotFound => None,
            other => panic!("{}: lookup of {n} answered {other:?}", self.case),
        }
    }

    /// Removes a name.
    pub(crate) async fn remove(&self, who: &Credential, dir: ObjectRef, n: &str) {
        let reply = self.done(who, Op::Remove { dir, name: name(n) }).await;
        self.claim(matches!(reply, Reply::Removed { .. }), "remove answers Removed");
    }

    /// Renames.
    pub(crate) async fn rename(
        &self,
        who: &Credential,
        from: (ObjectRef, &str),
        to: (ObjectRef, &str),
    ) {
        let reply = self.done(who, rename_op(from, to)).await;
        self.claim(matches!(reply, Reply::Renamed { .. }), "rename answers Renamed");
    }

    /// Links.
    pub(crate) async fn link(&self, who: &Credential, obj: ObjectRef, dir: ObjectRef, n: &str) {
        let reply = self.done(who, Op::Link { obj, dir, name: name(n) }).await;
        self.claim(matches!(reply, Reply::Linked { .. }), "link answers Linked");
    }
}

/// A stable write.
pub(crate) fn write_op(obj: ObjectRef, offset: u64, data: &[u8]) -> Op<ObjectRef> {
    let data = Payload::copy_from(offset, data);
    Op::Write { obj, offset, data, stability: Stability::FileSync }
}

/// A rename.
pub(crate) fn rename_op(from: (ObjectRef, &str), to: (ObjectRef, &str)) -> Op<ObjectRef> {
    let (from_dir, from_name, to_dir, to_name) = (from.0, name(from.1), to.0, name(to.1));
    Op::Rename { from_dir, from_name, to_dir, to_name }
}
