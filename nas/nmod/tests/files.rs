//! The N-module over a D-module that records what reaches it.

#![expect(clippy::unwrap_used, reason = "test helpers outside test functions")]

use std::sync::{Arc, Mutex};

use cairn_cf::{DModule, Manage, ManageError, Managed};
use cairn_nmod::{
    Access, ExportPolicy, HandleKey, NModule, PortRule, Routes, Rule, Squash, Subnet, Volume,
};
use cairn_op::*;
use cairn_sys::{BoxFuture, Payload};
use cairn_units::*;

#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<(OpCtx, Op<ObjectRef>)>>,
}

fn attrs(kind: FileKind, ino: u64) -> Attrs {
    let t = WallTime::new(0);
    Attrs {
        kind,
        mode: 0o755,
        links: 1,
        uid: Uid::new(0),
        gid: Gid::new(0),
        size: 0,
        used: 0,
        device: DeviceNo::default(),
        fsid: Fsid::new(1),
        ino: InodeNo::new(ino),
        atime: t,
        mtime: t,
        ctime: t,
        birth: t,
        change: 0,
        object: ObjectId::default(),
    }
}

impl DModule for Recorder {
    fn file(&self, ctx: OpCtx, op: Op<ObjectRef>) -> Submitted<OpResult<ObjectRef>> {
        self.seen.lock().unwrap().push((ctx, op.clone()));
        let reply = match op {
            Op::Lookup { dir, name } => {
                // "d<n>" is directory n, "l" a symbolic link, anything else is not there.
                let text = String::from_utf8_lossy(name.as_bytes()).into_owned();
                match (text.as_str(), text.strip_prefix('d').and_then(|n| n.parse().ok())) {
                    (_, Some(ino)) => Ok(Reply::Found {
                        obj: ObjectRef { ino: InodeNo::new(ino), ..dir },
                        attrs: attrs(FileKind::Directory, ino),
                        dir: attrs(FileKind::Directory, dir.ino.get()),
                    }),
                    ("l", _) => Ok(Reply::Found {
                        obj: ObjectRef { ino: InodeNo::new(99), ..dir },
                        attrs: attrs(FileKind::Symlink, 99),
                        dir: attrs(FileKind::Directory, dir.ino.get()),
                    }),
                    _ => Err(Failure::from(Status::NotFound)),
                }
            }
            Op::Access { want, .. } => {
                Ok(Reply::Access { granted: want, attrs: attrs(FileKind::Regular, 3) })
            }
            _ => Ok(Reply::Attrs(attrs(FileKind::Directory, 2))),
        };
        Submitted::Ready(reply)
    }
    fn manage(&self, _: Manage) -> BoxFuture<Result<Managed, ManageError>> {
        Box::pin(async { Ok(Managed::Done) })
    }
    fn verifier(&self) -> Verifier {
        Verifier(*b"boot0001")
    }
}

fn object(fsid: u64, ino: u64) -> ObjectRef {
    ObjectRef {
        fsid: Fsid::new(fsid),
        snap: SnapId::new(0),
        ino: InodeNo::new(ino),
        generation: Generation::new(1),
    }
}

fn rule(access: Access, squash: Squash) -> Rule {
    Rule {
        clients: Subnet::new("10.0.0.0".parse().unwrap(), 8).unwrap(),
        access,
        squash,
        ports: PortRule::Any,
        anon_uid: Uid::new(65534),
        anon_gid: Gid::new(65534),
    }
}

const KEY: HandleKey = HandleKey::new([7; 16]);

fn node(volumes: &[(u64, &str, Rule)]) -> (NModule, Arc<Recorder>) {
    let d = Arc::new(Recorder::default());
    let nmod = NModule::new(KEY, d.clone());
    let volumes = volumes.iter().map(|(fsid, junction, rule)| Volume {
        fsid: Fsid::new(*fsid),
        vserver: VserverId::new(1),
        junction: junction.as_bytes().to_vec(),
        root: object(*fsid, 2),
        policy: ExportPolicy::new(vec![*rule]),
        dmodule: d.clone(),
    });
    nmod.push(Routes::new(volumes.collect()).unwrap());
    (nmod, d)
}

fn ctx(ip: &str, uid: u32) -> OpCtx {
    OpCtx {
        vserver: VserverId::new(1),
        cred: Credential { uid: Uid::new(uid), gid: Gid::new(uid), groups: vec![Gid::new(5)] },
        client: ClientAddr { ip: ip.parse().unwrap(), port: 700 },
        op_no: OpNo::new(1),
        deadline: None,
        read_only: ReadOnly::No,
    }
}

fn ready<T>(submitted: Submitted<T>) -> T {
    match submitted {
        Submitted::Ready(done) => done,
        Submitted::Pending(_) => panic!("was to be answered at once"),
    }
}

fn wait<T: Send + 'static>(submitted: Submitted<T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(submitted.wait())
}

fn status(result: OpResult<FileHandle>) -> Status {
    result.unwrap_err().status
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec().into()).unwrap()
}

#[test]
fn tampered_handle_reaches_no_volume() {
    let (nmod, d) = node(&[(1, "/vol0", rule(Access::ReadWrite, Squash::None))]);
    let mut bytes = KEY.seal(object(1, 3)).as_bytes().to_vec();
    bytes[16] ^= 1;
    let obj = FileHandle::from_bytes(&bytes).unwrap();
    let result = ready(nmod.submit(ctx("10.0.0.1", 0), Op::GetAttr { obj }));
    assert_eq!(status(result), Status::BadHandle);
    assert!(d.seen.lock().unwrap().is_empty());
}

#[test]
fn handle_of_a_deleted_volume_is_stale() {
    let (nmod, _d) = node(&[(1, "/vol0", rule(Access::ReadWrite, Squash::None))]);
    let result =
        ready(nmod.submit(ctx("10.0.0.1", 0), Op::GetAttr { obj: KEY.seal(object(9, 3)) }));
    assert_eq!(status(result), Status::Stale);
}

#[test]
fn handle_of_an_offline_volume_is_to_be_tried_again() {
    let (nmod, _d) = node(&[]);
    nmod.push(Routes::default().with_offline(vec![Fsid::new(9)]));
    let result =
        ready(nmod.submit(ctx("10.0.0.1", 0), Op::GetAttr { obj: KEY.seal(object(9, 3)) }));
    assert_eq!(status(result), Status::Delay);
}

#[test]
fn client_outside_the_policy_is_refused_and_nothing_goes_down() {
    let (nmod, d) = node(&[(1, "/vol0", rule(Access::ReadWrite, Squash::None))]);
    let obj = nmod.root_handle(Fsid::new(1)).unwrap();
    let result = ready(nmod.submit(ctx("11.0.0.1", 0), Op::GetAttr { obj }));
    assert_eq!(status(result), Status::AccessDenied);
    assert_eq!(ready(nmod.mount(ctx("11.0.0.1", 0), b"/vol0")), Err(Status::AccessDenied));
    assert!(d.seen.lock().unwrap().is_empty());
    assert_eq!(nmod.counters()[0].1.refused, 1);
}

#[test]
fn new_policy_holds_from_the_next_request_on() {
    let (nmod, _d) = node(&[(1, "/vol0", rule(Access::ReadWrite, Squash::None))]);
    let obj = nmod.root_handle(Fsid::new(1)).unwrap();
    assert!(ready(nmod.submit(ctx("10.0.0.1", 0), Op::GetAttr { obj })).is_ok());
    nmod.push(Routes::default());
    assert_eq!(status(ready(nmod.submit(ctx("10.0.0.1", 0), Op::GetAttr { obj }))), Status::Stale);
}

#[test]
fn read_only_export_refuses_changes_and_masks_rights() {
    let (nmod, d) = node(&[(1, "/vol0", rule(Access::ReadOnly, Squash::None))]);
    let obj = nmod.root_handle(Fsid::new(1)).unwrap();
    let data = Payload::copy_from(0, b"x");
    let write = Op::Write { obj, offset: 0, data, stability: Stability::FileSync };
    assert_eq!(status(ready(nmod.submit(ctx("10.0.0.1", 0), write))), Status::ReadOnlyFs);
    assert!(d.seen.lock().unwrap().is_empty());
    let want = AccessMask(0x3f);
    let granted = ready(nmod.submit(ctx("10.0.0.1", 0), Op::Access { obj, want })).unwrap();
    match granted {
        Reply::Access { granted, .. } => assert_eq!(granted, AccessMask(0x23)),
        other => panic!("{other:?}"),
    }
    assert_eq!(d.seen.lock().unwrap()[0].0.read_only, ReadOnly::Yes);
}

#[test]
fn handle_in_a_snapshot_cannot_change_anything() {
    let (nmod, _d) = node(&[(1, "/vol0", rule(Access::ReadWrite, Squash::None))]);
    let dir = KEY.seal(ObjectRef { snap: SnapId::new(4), ..object(1, 2) });
    let result = ready(nmod.submit(ctx("10.0.0.1", 0), Op::Remove { dir, name: name("a") }));
    assert_eq!(status(result), Status::ReadOnlyFs);
}

#[test]
fn credential_that_goes_down_is_the_squashed_one() {
    let (nmod, d) = node(&[(1, "/vol0", rule(Access::ReadWrite, Squash::Root))]);
    let obj = nmod.root_handle(Fsid::new(1)).unwrap();
    drop(ready(nmod.submit(ctx("10.0.0.1", 0), Op::GetAttr { obj })));
    drop(ready(nmod.submit(ctx("10.0.0.1", 7), Op::GetAttr { obj })));
    let seen = d.seen.lock().unwrap();
    let nobody = Credential { uid: Uid::new(65534), gid: Gid::new(65534), groups: vec![] };
    assert_eq!(seen[0].0.cred, nobody);
    assert_eq!(seen[1].0.cred, ctx("10.0.0.1", 7).cred);
}

#[test]
fn rename_and_link_across_volumes_are_refused() {
    let open = rule(Access::ReadWrite, Squash::None);
    let (nmod, d) = node(&[(1, "/a", open), (2, "/b", open)]);
    let a = nmod.root_handle(Fsid::new(1)).unwrap();
    let b = nmod.root_handle(Fsid::new(2)).unwrap();
    let rename = Op::Rename { from_dir: a, from_name: name("x"), to_dir: b, to_name: name("y") };
    assert_eq!(status(ready(nmod.submit(ctx("10.0.0.1", 0), rename))), Status::CrossVolume);
    let link = Op::Link { obj: KEY.seal(object(1, 9)), dir: b, name: name("y") };
    assert_eq!(status(ready(nmod.submit(ctx("10.0.0.1", 0), link))), Status::CrossVolume);
    assert!(d.seen.lock().unwrap().is_empty());
}

#[test]
fn volume_of_another_vserver_is_refused() {
    let (nmod, _d) = node(&[(1, "/vol0", rule(Access::ReadWrite, Squash::None))]);
    let obj = nmod.root_handle(Fsid::new(1)).unwrap();
    let other = OpCtx { vserver: VserverId::new(2), ..ctx("10.0.0.1", 0) };
    assert_eq!(
        status(ready(nmod.submit(other.clone(), Op::GetAttr { obj }))),
        Status::AccessDenied
    );
    assert_eq!(ready(nmod.mount(other, b"/vol0")), Err(Status::NotFound));
}

#[test]
fn mount_takes_the_longest_junction_and_looks_the_rest_up() {
    let open = rule(Access::ReadWrite, Squash::Root);
    let (nmod, d) = node(&[(1, "/vol", open), (2, "/vol/deep", open)]);
    let mount = |path: &str| wait(nmod.mount(ctx("10.0.0.1", 0), path.as_bytes()));
    let root = |fsid| nmod.root_handle(Fsid::new(fsid)).unwrap();
    assert_eq!(mount("/vol"), Ok(root(1)));
    assert_eq!(mount("//vol/./"), Ok(root(1)));
    assert_eq!(mount("/vol/deep/"), Ok(root(2)));
    assert_eq!(mount("/vol/.."), Ok(root(1)), "`..` at the root stays there");
    assert!(d.seen.lock().unwrap().is_empty());
    assert_eq!(mount("/vol/d7/d8"), Ok(KEY.seal(object(1, 8))));
    assert_eq!(d.seen.lock().unwrap()[0].0.cred, Credential::root());
    assert_eq!(mount("/vol/d7/l"), Err(Status::NotDirectory), "links are not followed");
    assert_eq!(mount("/vol/gone"), Err(Status::NotFound));
    assert_eq!(mount("/volx"), Err(Status::NotFound), "prefixes are whole names");
    assert_eq!(mount("/"), Err(Status::NotFound));
    assert_eq!(mount("vol"), Err(Status::NotFound));
    assert_eq!(mount(&format!("/vol/{}", "x".repeat(2000))), Err(Status::NameTooLong));
}

#[test]
fn exports_list_paths_and_admitted_clients() {
    let (nmod, _d) = node(&[(1, "/vol0", rule(Access::ReadWrite, Squash::None))]);
    let entry = ExportEntry { path: b"/vol0".to_vec(), clients: vec!["10.0.0.0/8".to_owned()] };
    assert_eq!(nmod.exports(VserverId::new(1)), vec![entry]);
    assert_eq!(nmod.exports(VserverId::new(2)), vec![]);
    assert_eq!(nmod.verifier(), Verifier(*b"boot0001"));
}

#[test]
fn routes_refuse_bad_and_double_junctions() {
    let d = Arc::new(Recorder::default());
    let volume = |fsid: u64, junction: &str| Volume {
        fsid: Fsid::new(fsid),
        vserver: VserverId::new(1),
        junction: junction.as_bytes().to_vec(),
        root: object(fsid, 2),
        policy: ExportPolicy::default(),
        dmodule: d.clone(),
    };
    for bad in ["", "/", "vol", "/vol/", "//vol", "/a/../b", "/a\0"] {
        assert!(Routes::new(vec![volume(1, bad)]).is_err(), "{bad:?}");
    }
    assert!(Routes::new(vec![volume(1, "/a"), volume(2, "/a")]).is_err());
    assert!(Routes::new(vec![volume(1, "/a"), volume(1, "/b")]).is_err());
    assert!(Routes::new(vec![volume(1, "/a"), volume(2, "/a/b")]).is_ok());
}
