//! Every procedure's arguments and results, against the types of another implementation
//! (nfsserve) and against vectors made by hand from RFC 1813.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::io::Cursor;

use bytes::Bytes;
use cairn_nfs::procs::wire::{ArgsError, Nfsstat};
use cairn_nfs::procs::{Answer, Procedure};
use cairn_oncrpc::Body;
use cairn_op::{
    AccessMask, Attrs, Before, CreateHow, DeviceNo, Entry, Failure, FileHandle, FileKind, FsStat,
    LinkTarget, ListLimits, Name, NodeKind, Op, OpResult, Reply, SetAttrs, SetTime, Stability,
    Status, Verifier, WithFiles,
};
use cairn_sys::Payload;
use cairn_units::{Cookie, Fsid, Gid, InodeNo, ObjectId, Uid, WallTime};
use nfsserve::nfs::{
    diropargs3, fattr3, fsinfo3, nfs_fh3, nfsstring, nfstime3, post_op_attr, post_op_fh3,
    pre_op_attr, sattr3, set_atime, set_gid3, set_mode3, set_mtime, set_size3, set_uid3, specdata3,
    symlinkdata3, wcc_data,
};
use nfsserve::xdr::XDR;
use proptest::prelude::*;

/// Serializes values one after the other with the other implementation.
macro_rules! xdr {
    ($($value:expr),* $(,)?) => {{
        let mut out: Vec<u8> = Vec::new();
        $($value.serialize(&mut out).unwrap();)*
        out
    }};
}

/// Reads a result with the other implementation's types.
struct Wire(Cursor<Vec<u8>>);

impl Wire {
    fn get<T: XDR + Default>(&mut self) -> T {
        let mut out = T::default();
        out.deserialize(&mut self.0).unwrap();
        out
    }
    fn attrs(&mut self) -> Option<fattr3> {
        match self.get::<post_op_attr>() {
            post_op_attr::attributes(a) => Some(a),
            post_op_attr::Void => None,
        }
    }
    fn end(&self) {
        assert_eq!(self.0.position(), self.0.get_ref().len() as u64, "bytes are left");
    }
}

fn fh(byte: u8) -> nfs_fh3 {
    nfs_fh3 { data: vec![byte; 36] }
}
fn handle(byte: u8) -> FileHandle {
    FileHandle::from_bytes(&[byte; 36]).unwrap()
}
fn dirop(byte: u8, name: &[u8]) -> diropargs3 {
    diropargs3 { dir: fh(byte), name: nfsstring(name.to_vec()) }
}
fn name(bytes: &'static [u8]) -> Name {
    Name::new(Bytes::from_static(bytes)).unwrap()
}

fn sattr() -> (sattr3, SetAttrs) {
    let theirs = sattr3 {
        mode: set_mode3::mode(0o100_644),
        uid: set_uid3::uid(5),
        gid: set_gid3::gid(6),
        size: set_size3::size(1 << 40),
        atime: set_atime::SET_TO_SERVER_TIME,
        mtime: set_mtime::SET_TO_CLIENT_TIME(nfstime3 { seconds: 7, nseconds: 8 }),
    };
    let ours = SetAttrs {
        mode: Some(0o644),
        uid: Some(Uid::new(5)),
        gid: Some(Gid::new(6)),
        size: Some(1 << 40),
        atime: SetTime::Now,
        mtime: SetTime::To(WallTime::from_parts(7, 8)),
    };
    (theirs, ours)
}

fn attrs() -> Attrs {
    Attrs {
        kind: FileKind::CharDevice,
        mode: 0o4755,
        links: 3,
        uid: Uid::new(1000),
        gid: Gid::new(100),
        size: 0x1_0000_0001,
        used: 8192,
        device: DeviceNo { major: 4, minor: 64 },
        fsid: Fsid::new(0x1122_3344_5566_7788),
        ino: InodeNo::new(77),
        atime: WallTime::from_parts(10, 11),
        mtime: WallTime::from_parts(12, 13),
        ctime: WallTime::from_parts(14, 15),
        birth: WallTime::new(0),
        change: 9,
        object: ObjectId::new([0; 16]),
    }
}

fn assert_attrs(a: &fattr3) {
    assert_eq!(a.ftype as u32, 4);
    assert_eq!((a.mode, a.nlink, a.uid, a.gid), (0o4755, 3, 1000, 100));
    assert_eq!(
        (a.size, a.used, a.fsid, a.fileid),
        (0x1_0000_0001, 8192, 0x1122_3344_5566_7788, 77)
    );
    assert_eq!((a.rdev.specdata1, a.rdev.specdata2), (4, 64));
    let times = [a.atime, a.mtime, a.ctime].map(|t| (t.seconds, t.nseconds));
    assert_eq!(times, [(10, 11), (12, 13), (14, 15)]);
}

fn before() -> Before {
    Before {
        size: 42,
        mtime: WallTime::from_parts(1, 2),
        ctime: WallTime::from_parts(3, 4),
        change: 1,
    }
}

fn assert_wcc(wcc: &wcc_data) {
    let pre_op_attr::attributes(b) = wcc.before else { panic!("no attributes before") };
    assert_eq!((b.size, b.mtime.seconds, b.ctime.nseconds), (42, 1, 4));
    let post_op_attr::attributes(a) = wcc.after else { panic!("no attributes after") };
    assert_attrs(&a);
}

fn decode(p: Procedure, args: &[u8]) -> Op<FileHandle> {
    decode_answer(p, args).0
}

fn decode_answer(p: Procedure, args: &[u8]) -> (Op<FileHandle>, Answer) {
    p.decode(args, None).unwrap()
}

/// Any arguments of the procedure that decode.
fn some_answer(p: Procedure) -> Answer {
    use Procedure as P;
    let sattr = sattr3::default();
    let args = match p {
        P::GetAttr | P::ReadLink | P::FsStat | P::FsInfo | P::PathConf => xdr!(fh(1)),
        P::SetAttr => xdr!(fh(1), sattr, 0u32),
        P::Access => xdr!(fh(1), 1u32),
        P::Read => xdr!(fh(1), 0u64, 1u32),
        P::Write => {
            let args = xdr!(fh(1), 0u64, 1u32, 0u32, 1u32);
            return p.decode(&args, Some(Payload::copy_from(0, b"x"))).unwrap().1;
        }
        P::Lookup | P::Remove | P::RmDir => xdr!(dirop(1, b"n")),
        P::Create => xdr!(dirop(1, b"n"), 0u32, sattr),
        P::MkDir => xdr!(dirop(1, b"n"), sattr),
        P::Symlink => xdr!(dirop(1, b"n"), sattr, nfsstring(b"t".to_vec())),
        P::MkNod => xdr!(dirop(1, b"n"), 7u32, sattr),
        P::Rename => xdr!(dirop(1, b"n"), dirop(1, b"m")),
        P::Link => xdr!(fh(1), dirop(1, b"n")),
        P::ReadDir => xdr!(fh(1), 0u64, 0u64, 1000u32),
        P::ReadDirPlus => xdr!(fh(1), 0u64, 0u64, 1000u32, 1000u32),
        P::Commit => xdr!(fh(1), 0u64, 0u32),
    };
    decode_answer(p, &args).1
}

fn encode(answer: Answer, result: OpResult<FileHandle>) -> (Wire, Option<Payload>) {
    let mut body = Body::default();
    answer.encode(result, &mut body);
    assert_eq!(body.bytes.len() % 4, 0);
    (Wire(Cursor::new(body.bytes)), body.payload)
}

/// Encodes a success; the status is read already.
fn ok(p: Procedure, reply: Reply<FileHandle>) -> Wire {
    let (mut wire, _) = encode(some_answer(p), Ok(reply));
    assert_eq!(wire.get::<u32>(), 0);
    wire
}

#[test]
fn arguments_that_name_one_object() {
    let obj = handle(1);
    for p in [Procedure::GetAttr, Procedure::FsInfo, Procedure::PathConf] {
        assert_eq!(decode(p, &xdr!(fh(1))), Op::GetAttr { obj });
    }
    assert_eq!(decode(Procedure::ReadLink, &xdr!(fh(1))), Op::ReadLink { obj });
    assert_eq!(decode(Procedure::FsStat, &xdr!(fh(1))), Op::FsStat { obj });
    assert_eq!(
        decode(Procedure::Access, &xdr!(fh(1), 0x3fu32)),
        Op::Access { obj, want: AccessMask(0x3f) }
    );
    assert_eq!(
        decode(Procedure::Commit, &xdr!(fh(1), 1u64 << 50, 9u32)),
        Op::Commit { obj, offset: 1 << 50, count: 9 }
    );
    assert_eq!(
        decode(Procedure::Read, &xdr!(fh(1), 5u64, 4096u32)),
        Op::Read { obj, offset: 5, count: 4096 }
    );
    assert_eq!(
        decode(Procedure::Read, &xdr!(fh(1), 5u64, u32::MAX)),
        Op::Read { obj, offset: 5, count: 1 << 20 },
        "a read is at most 1 MiB"
    );
}

#[test]
fn arguments_of_setattr_with_and_without_guard() {
    let (theirs, set) = sattr();
    let obj = handle(1);
    assert_eq!(
        decode(Procedure::SetAttr, &xdr!(fh(1), theirs, 0u32)),
        Op::SetAttr { obj, set, guard: None }
    );
    let guard = nfstime3 { seconds: 100, nseconds: 200 };
    assert_eq!(
        decode(Procedure::SetAttr, &xdr!(fh(1), theirs, 1u32, guard)),
        Op::SetAttr { obj, set, guard: Some(WallTime::from_parts(100, 200)) }
    );
    let bad = nfstime3 { seconds: 100, nseconds: 1_000_000_000 };
    let args = xdr!(fh(1), theirs, 1u32, bad);
    assert_eq!(Procedure::SetAttr.decode(&args, None), Err(ArgsError::Refused(Nfsstat(22))));
}

#[test]
fn arguments_that_name_entries() {
    let (dir, n) = (handle(1), name(b"n\xff\x01"));
    let one = xdr!(dirop(1, b"n\xff\x01"));
    assert_eq!(decode(Procedure::Lookup, &one), Op::Lookup { dir, name: n.clone() });
    assert_eq!(decode(Procedure::Remove, &one), Op::Remove { dir, name: n.clone() });
    assert_eq!(decode(Procedure::RmDir, &one), Op::RemoveDir { dir, name: n.clone() });
    assert_eq!(
        decode(Procedure::Rename, &xdr!(dirop(1, b"n\xff\x01"), dirop(2, b"to"))),
        Op::Rename { from_dir: dir, from_name: n.clone(), to_dir: handle(2), to_name: name(b"to") }
    );
    assert_eq!(
        decode(Procedure::Link, &xdr!(fh(2), dirop(1, b"n\xff\x01"))),
        Op::Link { obj: handle(2), dir, name: n }
    );
}

#[test]
fn arguments_of_create_in_its_three_ways() {
    let (theirs, set) = sattr();
    let (dir, name) = (handle(1), name(b"n"));
    let at = dirop(1, b"n");
    let how = |args: &[u8]| decode(Procedure::Create, args);
    let made = |how| Op::Create { dir, name: name.clone(), how };
    assert_eq!(how(&xdr!(at, 0u32, theirs)), made(CreateHow::Unchecked(set)));
    assert_eq!(how(&xdr!(at, 1u32, theirs)), made(CreateHow::Guarded(set)));
    let verifier = Verifier(*b"12345678");
    assert_eq!(how(&xdr!(at, 2u32, *b"12345678")), made(CreateHow::Exclusive(verifier)));
    let args = xdr!(at, 3u32, theirs);
    assert!(matches!(Procedure::Create.decode(&args, None), Err(ArgsError::Garbage(_))));
}

#[test]
fn arguments_of_mkdir_symlink_and_mknod() {
    let (theirs, set) = sattr();
    let (dir, name) = (handle(1), name(b"n"));
    let at = dirop(1, b"n");
    assert_eq!(
        decode(Procedure::MkDir, &xdr!(at, theirs)),
        Op::MakeDir { dir, name: name.clone(), set }
    );
    let link =
        symlinkdata3 { symlink_attributes: theirs, symlink_data: nfsstring(b"a/b\xfe".to_vec()) };
    let target = LinkTarget::new(Bytes::from_static(b"a/b\xfe")).unwrap();
    assert_eq!(
        decode(Procedure::Symlink, &xdr!(at, link)),
        Op::Symlink { dir, name: name.clone(), target, set }
    );
    let device = specdata3 { specdata1: 8, specdata2: 1 };
    let no = DeviceNo { major: 8, minor: 1 };
    for (ftype, kind) in [(3u32, NodeKind::BlockDevice(no)), (4, NodeKind::CharDevice(no))] {
        assert_eq!(
            decode(Procedure::MkNod, &xdr!(at, ftype, theirs, device)),
            Op::MakeNode { dir, name: name.clone(), kind, set }
        );
    }
    for (ftype, kind) in [(6u32, NodeKind::Socket), (7, NodeKind::Fifo)] {
        assert_eq!(
            decode(Procedure::MkNod, &xdr!(at, ftype, theirs)),
            Op::MakeNode { dir, name: name.clone(), kind, set }
        );
    }
    for ftype in [0u32, 1, 2, 5, 8] {
        assert_eq!(
            Procedure::MkNod.decode(&xdr!(at, ftype, theirs), None),
            Err(ArgsError::Refused(Nfsstat::BAD_TYPE))
        );
    }
}

#[test]
fn arguments_of_write_with_its_payload_beside_them() {
    let head =
        |offset: u64, count: u32, stable: u32, len: u32| xdr!(fh(1), offset, count, stable, len);
    let data = Payload::copy_from(5000, b"hello");
    let args = head(5000, 5, 2, 5);
    let plan = Procedure::Write.payload(&args).unwrap();
    assert_eq!((plan.at, plan.file_offset, plan.bytes), (args.len(), 5000, 5));
    for (stable, stability) in
        [(0, Stability::Unstable), (1, Stability::DataSync), (2, Stability::FileSync)]
    {
        let (op, _) =
            Procedure::Write.decode(&head(5000, 5, stable, 5), Some(data.clone())).unwrap();
        assert_eq!(op, Op::Write { obj: handle(1), offset: 5000, data: data.clone(), stability });
    }
    // Less is to be written than was sent.
    let (op, _) = Procedure::Write.decode(&head(5000, 2, 2, 5), Some(data.clone())).unwrap();
    assert!(matches!(op, Op::Write { data, .. } if data.to_vec() == b"he"));
    // More is to be written than was sent; no such stability; no data.
    for args in [head(5000, 6, 2, 5), head(5000, 5, 3, 5)] {
        assert!(Procedure::Write.payload(&args).is_none());
        let decoded = Procedure::Write.decode(&args, Some(data.clone()));
        assert!(matches!(decoded, Err(ArgsError::Garbage(_))));
    }
    let decoded = Procedure::Write.decode(&head(5000, 5, 2, 5), None);
    assert!(matches!(decoded, Err(ArgsError::Garbage(_))));
}

#[test]
fn arguments_of_listings_become_limits() {
    let readdir = decode(Procedure::ReadDir, &xdr!(fh(1), 77u64, *b"verifier", 4096u32));
    let limits = |entries_max, bytes_max, entry_bytes, with_files| ListLimits {
        entries_max,
        bytes_max,
        entry_bytes,
        with_files,
    };
    assert_eq!(
        readdir,
        Op::ReadDir {
            dir: handle(1),
            cookie: Cookie::new(77),
            limits: limits(u32::MAX / 24, 4096 - 104, 24, WithFiles::No)
        }
    );
    let plus = decode(Procedure::ReadDirPlus, &xdr!(fh(1), 0u64, 0u64, 512u32, 8192u32));
    assert_eq!(
        plus,
        Op::ReadDir {
            dir: handle(1),
            cookie: Cookie::new(0),
            limits: limits(512 / 24, 8192 - 104, 24 + 88 + 8 + 36, WithFiles::Yes)
        }
    );
}

#[test]
fn bad_names_and_targets_are_answered_and_bad_xdr_is_garbage() {
    let refused = |p: Procedure, args: &[u8]| match p.decode(args, None) {
        Err(ArgsError::Refused(stat)) => stat.0,
        other => panic!("{p:?}: {other:?}"),
    };
    for p in [Procedure::Lookup, Procedure::Remove, Procedure::RmDir] {
        assert_eq!(refused(p, &xdr!(dirop(1, &[b'x'; 256]))), 63);
        assert_eq!(refused(p, &xdr!(dirop(1, b""))), 22);
        assert_eq!(refused(p, &xdr!(dirop(1, b"a/b"))), 22);
        assert_eq!(refused(p, &xdr!(dirop(1, b"a\0b"))), 22);
    }
    let long = nfsstring(vec![b'x'; 4097]);
    assert_eq!(refused(Procedure::Symlink, &xdr!(dirop(1, b"n"), sattr3::default(), long)), 63);
    for p in Procedure::ALL {
        let garbage = |args: &[u8]| matches!(p.decode(args, None), Err(ArgsError::Garbage(_)));
        assert!(garbage(&[]), "{p:?}");
        assert!(garbage(&xdr!(nfs_fh3 { data: vec![0; 65] }, [0u8; 8])), "{p:?}: a long handle");
    }
    // Nothing may follow the arguments.
    let decoded = Procedure::GetAttr.decode(&xdr!(fh(1), 0u32), None);
    assert!(matches!(decoded, Err(ArgsError::Garbage(_))));
}

#[test]
fn attributes_are_84_bytes_laid_out_as_rfc_1813_says() {
    let mut body = Body::default();
    some_answer(Procedure::GetAttr).encode(Ok(Reply::Attrs(attrs())), &mut body);
    let words: Vec<u32> =
        body.bytes.chunks(4).map(|c| u32::from_be_bytes(c.try_into().unwrap())).collect();
    #[rustfmt::skip]
    assert_eq!(
        words,
        [0, 4, 0o4755, 3, 1000, 100, 1, 1, 0, 8192, 4, 64,
         0x1122_3344, 0x5566_7788, 0, 77, 10, 11, 12, 13, 14, 15]
    );
}

#[test]
fn times_out_of_range_go_to_the_nearest_end() {
    let time = |t: WallTime| {
        let a = Attrs { mtime: t, ..attrs() };
        let mut wire = ok(Procedure::GetAttr, Reply::Attrs(a));
        let a: fattr3 = wire.get();
        (a.mtime.seconds, a.mtime.nseconds)
    };
    assert_eq!(time(WallTime::new(-1)), (0, 0));
    assert_eq!(time(WallTime::from_parts(1 << 32, 0)), (u32::MAX, 999_999_999));
}

#[test]
fn results_about_one_object() {
    let mut w = ok(Procedure::GetAttr, Reply::Attrs(attrs()));
    assert_attrs(&w.get());
    w.end();
    let mut w = ok(Procedure::SetAttr, Reply::Changed { before: before(), after: attrs() });
    assert_wcc(&w.get());
    w.end();
    let reply = Reply::Access { granted: AccessMask(0x2d), attrs: attrs() };
    let mut w = ok(Procedure::Access, reply);
    assert_attrs(&w.attrs().unwrap());
    assert_eq!(w.get::<u32>(), 0x2d);
    w.end();
    let target = LinkTarget::new(Bytes::from_static(b"x\xff")).unwrap();
    let mut w = ok(Procedure::ReadLink, Reply::LinkTarget { target, attrs: attrs() });
    assert_attrs(&w.attrs().unwrap());
    assert_eq!(w.get::<nfsstring>().0, b"x\xff");
    w.end();
}

#[test]
fn results_of_lookup_and_of_making_things() {
    let found = Reply::Found {
        obj: handle(7),
        attrs: attrs(),
        dir: Attrs { kind: FileKind::Directory, ..attrs() },
    };
    let mut w = ok(Procedure::Lookup, found);
    assert_eq!(w.get::<nfs_fh3>().data, [7; 36]);
    assert_attrs(&w.attrs().unwrap());
    assert_eq!(w.attrs().unwrap().ftype as u32, 2);
    w.end();
    for p in [Procedure::Create, Procedure::MkDir, Procedure::Symlink, Procedure::MkNod] {
        let (dir_before, dir_after) = (before(), attrs());
        let mut w = ok(p, Reply::Made { obj: handle(7), attrs: attrs(), dir_before, dir_after });
        let post_op_fh3::handle(h) = w.get() else { panic!("no handle") };
        assert_eq!(h.data, [7; 36]);
        assert_attrs(&w.attrs().unwrap());
        assert_wcc(&w.get());
        w.end();
    }
}

#[test]
fn results_of_removing_renaming_and_linking() {
    for p in [Procedure::Remove, Procedure::RmDir] {
        let mut w = ok(p, Reply::Removed { dir_before: before(), dir_after: attrs() });
        assert_wcc(&w.get());
        w.end();
    }
    let renamed = Reply::Renamed {
        from_before: before(),
        from_after: attrs(),
        to_before: before(),
        to_after: attrs(),
    };
    let mut w = ok(Procedure::Rename, renamed);
    assert_wcc(&w.get());
    assert_wcc(&w.get());
    w.end();
    let linked = Reply::Linked { attrs: attrs(), dir_before: before(), dir_after: attrs() };
    let mut w = ok(Procedure::Link, linked);
    assert_attrs(&w.attrs().unwrap());
    assert_wcc(&w.get());
    w.end();
}

#[test]
fn results_of_read_refer_to_the_data_and_do_not_copy_it() {
    let data = Payload::copy_from(100, b"some data");
    let reply = Reply::Read { data: data.clone(), eof: true, attrs: attrs() };
    let (mut w, payload) = encode(some_answer(Procedure::Read), Ok(reply));
    assert_eq!(w.get::<u32>(), 0);
    assert_attrs(&w.attrs().unwrap());
    assert_eq!((w.get::<u32>(), w.get::<u32>(), w.get::<u32>()), (9, 1, 9));
    w.end();
    assert!(payload.unwrap().blocks()[0].same_memory(&data.blocks()[0]));
}

#[test]
fn results_of_write_and_commit_say_what_was_reached() {
    for (stability, number) in
        [(Stability::Unstable, 0), (Stability::DataSync, 1), (Stability::FileSync, 2)]
    {
        let verifier = Verifier(*b"bootboot");
        let written =
            Reply::Written { count: 9, stability, verifier, before: before(), after: attrs() };
        let mut w = ok(Procedure::Write, written);
        assert_wcc(&w.get());
        assert_eq!((w.get::<u32>(), w.get::<u32>()), (9, number));
        assert_eq!(w.get::<[u8; 8]>(), *b"bootboot");
        w.end();
    }
    let verifier = Verifier(*b"bootboot");
    let committed = Reply::Committed { verifier, before: before(), after: attrs() };
    let mut w = ok(Procedure::Commit, committed);
    assert_wcc(&w.get());
    assert_eq!(w.get::<[u8; 8]>(), *b"bootboot");
    w.end();
}

#[test]
fn results_about_the_volume() {
    let stat = FsStat {
        total_bytes: 1 << 50,
        free_bytes: 2,
        available_bytes: 3,
        total_files: 4,
        free_files: 5,
    };
    let mut w = ok(Procedure::FsStat, Reply::FsStat { stat, attrs: attrs() });
    assert_attrs(&w.attrs().unwrap());
    let values: Vec<u64> = (0..6).map(|_| w.get()).collect();
    assert_eq!(values, [1 << 50, 2, 3, 4, 5, 5]);
    assert_eq!(w.get::<u32>(), 0);
    w.end();
    let mut w = ok(Procedure::FsInfo, Reply::Attrs(attrs()));
    let mut info = fsinfo3 {
        obj_attributes: post_op_attr::Void,
        rtmax: 0,
        rtpref: 0,
        rtmult: 0,
        wtmax: 0,
        wtpref: 0,
        wtmult: 0,
        dtpref: 0,
        maxfilesize: 0,
        time_delta: nfstime3::default(),
        properties: 0,
    };
    info.deserialize(&mut w.0).unwrap();
    w.end();
    assert_eq!(
        (info.rtmax, info.rtpref, info.wtmax, info.wtpref),
        (1 << 20, 1 << 20, 1 << 20, 1 << 20)
    );
    assert_eq!((info.maxfilesize, info.properties), ((1 << 63) - 1, 0x1b));
    assert_eq!((info.time_delta.seconds, info.time_delta.nseconds), (0, 1));
    let mut w = ok(Procedure::PathConf, Reply::Attrs(attrs()));
    assert_attrs(&w.attrs().unwrap());
    let values: Vec<u32> = (0..6).map(|_| w.get()).collect();
    assert_eq!(values, [65_000, 255, 1, 1, 0, 1]);
    w.end();
}

#[test]
fn failures_have_the_shape_of_their_procedure() {
    use Procedure as P;
    let failure = || Failure {
        status: Status::Stale,
        attrs: Some(attrs()),
        second: Some(Attrs { ino: InodeNo::new(88), ..attrs() }),
    };
    let after = |w: &mut Wire| {
        let wcc: wcc_data = w.get();
        assert!(matches!(wcc.before, pre_op_attr::Void));
        match wcc.after {
            post_op_attr::attributes(a) => a.fileid,
            post_op_attr::Void => panic!("no attributes"),
        }
    };
    for p in P::ALL {
        let (mut w, payload) = encode(some_answer(p), Err(failure()));
        assert!(payload.is_none());
        assert_eq!(w.get::<u32>(), 70, "{p:?}");
        match p {
            P::GetAttr => {}
            P::Rename => assert_eq!((after(&mut w), after(&mut w)), (77, 88)),
            P::Link => {
                assert_eq!(w.attrs().unwrap().fileid, 77);
                assert_eq!(after(&mut w), 88);
            }
            P::SetAttr
            | P::Write
            | P::Create
            | P::MkDir
            | P::Symlink
            | P::MkNod
            | P::Remove
            | P::RmDir
            | P::Commit => assert_eq!(after(&mut w), 77),
            _ => assert_eq!(w.attrs().unwrap().fileid, 77),
        }
        w.end();
    }
}

#[test]
fn every_status_has_its_number() {
    let table = [
        (Status::NotOwner, 1),
        (Status::NotFound, 2),
        (Status::Io, 5),
        (Status::AccessDenied, 13),
        (Status::Exists, 17),
        (Status::CrossVolume, 18),
        (Status::NotDirectory, 20),
        (Status::IsDirectory, 21),
        (Status::Invalid, 22),
        (Status::FileTooBig, 27),
        (Status::NoSpace, 28),
        (Status::ReadOnlyFs, 30),
        (Status::TooManyLinks, 31),
        (Status::NameTooLong, 63),
        (Status::NotEmpty, 66),
        (Status::OverQuota, 69),
        (Status::Stale, 70),
        (Status::BadHandle, 10_001),
        (Status::NotSync, 10_002),
        (Status::BadCookie, 10_003),
        (Status::NotSupported, 10_004),
        (Status::ServerFault, 10_006),
        (Status::Delay, 10_008),
        (Status::Moved, 10_008),
    ];
    for (status, number) in table {
        assert_eq!(Nfsstat::from(status), Nfsstat(number), "{status:?}");
    }
}

#[test]
fn an_answer_of_the_wrong_kind_is_a_server_fault() {
    let (mut w, _) = encode(some_answer(Procedure::Lookup), Ok(Reply::Attrs(attrs())));
    assert_eq!(w.get::<u32>(), 10_006);
}

fn entries(names: &[Vec<u8>], files: WithFiles) -> Vec<Entry<FileHandle>> {
    let entry = |(i, n): (usize, &Vec<u8>)| Entry {
        ino: InodeNo::new(i as u64 + 1),
        cookie: Cookie::new(i as u64 + 3),
        name: Name::new(Bytes::from(n.clone())).unwrap(),
        file: (files == WithFiles::Yes && i % 5 != 4).then(|| (handle(3), attrs())),
    };
    names.iter().enumerate().map(entry).collect()
}

proptest! {
    /// A listing never exceeds what the client allowed, holds a prefix of the entries, says "end"
    /// only when nothing is left out, and gets on whenever one entry fits.
    #[test]
    fn listings_stay_inside_their_limits(
        lengths in prop::collection::vec(1usize..256, 0..60),
        count in 0u32..9000,
        dircount in 0u32..2000,
        plus: bool,
        last: bool,
    ) {
        let names: Vec<Vec<u8>> = lengths.iter().map(|n| vec![b'n'; *n]).collect();
        let (p, files, args) = if plus {
            let args = xdr!(fh(1), 0u64, 0u64, dircount, count);
            (Procedure::ReadDirPlus, WithFiles::Yes, args)
        } else {
            (Procedure::ReadDir, WithFiles::No, xdr!(fh(1), 0u64, 0u64, count))
        };
        let entries = entries(&names, files);
        let dir = attrs();
        let (_, answer) = decode_answer(p, &args);
        let reply = Reply::Listing { entries: entries.clone(), eof: last, dir };
        let (mut w, _) = encode(answer, Ok(reply));
        let bytes = w.0.get_ref().len();
        match w.get::<u32>() {
            0 => prop_assert!(bytes - 4 <= count as usize, "{bytes} over {count}"),
            10_005 => {
                // No entries and no end: the first one did not fit below already.
                let one = match names.first() {
                    Some(n) => 24 + n.len() + 3 + 88 + 44,
                    None if last => 0,
                    None => usize::MAX - 104,
                };
                prop_assert!((count as usize) < 104 + one, "one would have fitted");
                return Ok(());
            }
            other => panic!("status {other}"),
        }
        assert_attrs(&w.attrs().unwrap());
        prop_assert_eq!(w.get::<u64>(), 0);
        let (mut n, mut names_cost) = (0, 0);
        while w.get::<u32>() == 1 {
            let e = &entries[n];
            prop_assert_eq!(w.get::<u64>(), e.ino.get());
            let got = w.get::<nfsstring>().0;
            names_cost += 20 + got.len().next_multiple_of(4);
            prop_assert_eq!(&got[..], e.name.as_bytes());
            prop_assert_eq!(w.get::<u64>(), e.cookie.get());
            if plus {
                prop_assert_eq!(w.attrs().is_some(), e.file.is_some());
                let has = matches!(w.get::<post_op_fh3>(), post_op_fh3::handle(_));
                prop_assert_eq!(has, e.file.is_some());
            }
            n += 1;
        }
        let eof = w.get::<u32>() == 1;
        w.end();
        prop_assert_eq!(eof, last && n == entries.len());
        prop_assert!(n > 0 || eof || entries.is_empty());
        if plus && n > 1 {
            prop_assert!(names_cost <= dircount as usize);
        }
    }

    /// Arguments of any bytes never panic.
    #[test]
    fn any_arguments_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        cairn_nfs::fuzzing::fuzz_args(&bytes);
    }

    /// Good arguments with a few bytes changed never panic either.
    #[test]
    fn damaged_arguments_decode_or_fail(
        which in 0usize..21,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let (theirs, _) = sattr();
        let mut bytes = vec![u8::try_from(which + 1).unwrap()];
        bytes.extend(xdr!(dirop(1, b"name"), 1u32, theirs, 1u32, dirop(2, b"other")));
        for (at, value) in damage {
            let at = at.index(bytes.len() - 1) + 1;
            bytes[at] = value;
        }
        cairn_nfs::fuzzing::fuzz_args(&bytes);
    }
}
