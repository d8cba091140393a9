//! What arrives by RPC: single records and their parts, and whole streams of calls against the
//! services themselves.
//!
//! Layer: tests. A stream is served as a connection does it, without the sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use cairn_cf::codec::{Xid, encode_reply, encode_request};
use cairn_cf::{CfReply, CfRequest, Manage, Managed};
use cairn_model::DirectFiles;
use cairn_nfs::{MOUNT_PROGRAM, NFS_PROGRAM, NfsService, Registration, RpcbindService, Transport};
use cairn_oncrpc::message::{
    AUTH_NONE, AUTH_SYS, CREDENTIAL_AT, CallHead, HeadError, MARK_BYTES, Mark, parse_auth,
    parse_head, put_call,
};
use cairn_oncrpc::xdr::{Put, padding};
use cairn_oncrpc::{Body, Call, Outcome, PayloadPlan, REQUEST_BYTES, Service};
use cairn_op::{
    ClientAddr, Credential, FileHandle, ObjectRef, Op, OpCtx, ReadOnly, Reply, Stability,
};
use cairn_sim::SimWorld;
use cairn_sys::Payload;
use cairn_units::{Fsid, Generation, InodeNo, MonoTime, OpNo, SnapId, VserverId};

/// Calls of one stream at the most.
const CALLS_MAX: usize = 64;
/// Program number of rpcbind.
const RPCBIND_PROGRAM: u32 = 100_000;

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 2049))
}

/// Serves the records of `stream` one after the other, as a connection would.
fn serve<S: Service>(sim: &SimWorld, service: &S, stream: &[u8]) {
    let mut rest = stream;
    for number in 0..CALLS_MAX as u64 {
        let Some((mark, after)) = rest.split_first_chunk::<MARK_BYTES>() else { return };
        let (record, after) = after.split_at(after.len().min(Mark::from_be(*mark).len));
        rest = after;
        let head = match parse_head(record) {
            Ok(head) => head,
            Err(HeadError::Refused { .. }) => continue,
            Err(HeadError::Incomplete | HeadError::NotACall) => return,
        };
        let credential = &record[CREDENTIAL_AT..CREDENTIAL_AT + head.credential_len];
        let Ok(auth) = parse_auth(head.flavor, credential) else { continue };
        let mut call = Call {
            program: head.program,
            version: head.version,
            procedure: head.procedure,
            auth: &auth,
            client: address(),
            local: address(),
            op_no: OpNo::new(number),
            args: &record[head.args_at..],
        };
        let plan = service.plan(&call);
        let args = call.args;
        let ends = |p: &PayloadPlan| {
            let data = p.bytes as usize;
            p.at <= args.len() && p.at + data + padding(data) == args.len()
        };
        let payload = plan.payload.filter(ends).map(|p| {
            call.args = &args[..p.at];
            Payload::copy_from(p.file_offset, &args[p.at..p.at + p.bytes as usize])
        });
        let mut body = Body::default();
        match service.call(&call, payload, &mut body) {
            Outcome::Done => {}
            Outcome::Refused(_) => continue,
            Outcome::Pending(future) => body = sim.block_on(future),
        }
        let bytes = body.bytes.len() + body.payload.map_or(0, |p| p.len() as usize);
        let charged = plan.cost.reply_bytes + REQUEST_BYTES;
        assert!(bytes <= charged as usize, "a reply of {bytes} bytes, charged {charged}");
    }
}

/// Calls of NFS and MOUNT against the model.
pub fn nfs_mount_calls(bytes: &[u8]) {
    let sim = SimWorld::new(1);
    let made = sim.block_on(DirectFiles::on_model(sim.world(), 1 << 30));
    let Ok((_node, files)) = made else { unreachable!("the model makes a volume") };
    serve(&sim, &NfsService::new(Arc::new(files), VserverId::new(1)), bytes);
}

/// Calls of rpcbind.
pub fn rpcbind_calls(bytes: &[u8]) {
    let entry = |program, version| Registration {
        program,
        version,
        transport: Transport::Tcp,
        addr: SocketAddr::from(([0, 0, 0, 0], 2049)),
    };
    let entries = vec![entry(NFS_PROGRAM, 3), entry(MOUNT_PROGRAM, 3), entry(MOUNT_PROGRAM, 1)];
    let own = SocketAddr::from(([0, 0, 0, 0], 111));
    serve(&SimWorld::new(1), &RpcbindService::new(entries, own), bytes);
}

/// A record with a credential of a user.
fn record(program: u32, version: u32, procedure: u32, args: &[u8]) -> Vec<u8> {
    let mut credential = Vec::new();
    credential.put_u32(1);
    credential.put_opaque(b"client");
    for word in [0, 0, 2, 4, 24] {
        credential.put_u32(word);
    }
    let head = CallHead {
        xid: procedure,
        program,
        version,
        procedure,
        flavor: AUTH_SYS,
        credential_len: credential.len(),
        args_at: 0,
    };
    let mut out = Vec::new();
    put_call(&mut out, &head, &credential, args);
    out
}

/// The root of the model's volume.
fn root() -> ObjectRef {
    ObjectRef {
        fsid: Fsid::new(1),
        snap: SnapId::new(0),
        ino: InodeNo::new(cairn_model::ROOT_INO),
        generation: Generation::new(1),
    }
}

fn root_handle() -> FileHandle {
    DirectFiles::pack(&root())
}

fn words(out: &mut Vec<u8>, words: &[u32]) {
    for word in words {
        out.put_u32(*word);
    }
}

/// Number and arguments of each procedure of NFS, on the root and a file named `f`.
fn nfs_calls() -> Vec<(u32, Vec<u8>)> {
    let file = {
        let obj = ObjectRef { ino: InodeNo::new(cairn_model::ROOT_INO + 1), ..root() };
        DirectFiles::pack(&obj)
    };
    let with = |handle: &FileHandle, rest: &[u32]| {
        let mut out = Vec::new();
        out.put_opaque(handle.as_bytes());
        words(&mut out, rest);
        out
    };
    let named = |name: &[u8], rest: &[u32]| {
        let mut out = with(&root_handle(), &[]);
        out.put_opaque(name);
        words(&mut out, rest);
        out
    };
    let mut write = with(&file, &[0, 100, 5, 2]);
    write.put_opaque(b"bytes");
    let mut symlink = named(b"s", &[0, 0, 0, 0, 0, 0]);
    symlink.put_opaque(b"f");
    let mut rename = named(b"f", &[]);
    rename.extend(named(b"g", &[]));
    let mut link = with(&file, &[]);
    link.extend(named(b"l", &[]));
    vec![
        (8, named(b"f", &[0, 1, 0o644, 0, 0, 0, 0, 0])),
        (8, named(b"x", &[2, 7, 7])),
        (1, with(&root_handle(), &[])),
        (2, with(&file, &[1, 0o600, 0, 0, 1, 0, 3, 1, 2, 5, 6, 0])),
        (3, named(b"f", &[])),
        (4, with(&root_handle(), &[0x3f])),
        (5, with(&file, &[])),
        (7, write),
        (6, with(&file, &[0, 0, 4096])),
        (9, named(b"d", &[1, 0o755, 0, 0, 0, 0, 0])),
        (10, symlink),
        (11, named(b"n", &[4, 0, 0, 0, 0, 0, 0, 1, 2])),
        (16, with(&root_handle(), &[0, 0, 0, 0, 4096])),
        (17, with(&root_handle(), &[0, 0, 0, 0, 512, 4096])),
        (15, link),
        (14, rename),
        (18, with(&root_handle(), &[])),
        (19, with(&root_handle(), &[])),
        (20, with(&root_handle(), &[])),
        (21, with(&file, &[0, 0, 0])),
        (13, named(b"d", &[])),
        (12, named(b"g", &[])),
    ]
}

/// Arguments of every procedure, behind its number.
pub fn nfs_args_seeds() -> Vec<Vec<u8>> {
    let seed = |(number, args): (u32, Vec<u8>)| {
        let mut out = vec![number.to_le_bytes()[0]];
        out.extend(args);
        out
    };
    nfs_calls().into_iter().map(seed).collect()
}

/// All procedures in one stream, a few alone, and MOUNT.
pub fn call_seeds() -> Vec<Vec<u8>> {
    let call = |(number, args): &(u32, Vec<u8>)| record(NFS_PROGRAM, 3, *number, args);
    let calls = nfs_calls();
    let mut path = Vec::new();
    path.put_opaque(b"/vol0");
    let mount: Vec<u8> = [(1u32, 0u32), (3, 1), (1, 1), (3, 2), (3, 3), (3, 4), (3, 5)]
        .into_iter()
        .flat_map(|(version, procedure)| record(MOUNT_PROGRAM, version, procedure, &path))
        .collect();
    vec![calls.iter().flat_map(call).collect(), call(&calls[7]), call(&calls[13]), mount]
}

/// GETPORT, DUMP and GETADDR of all versions.
pub fn rpcbind_seeds() -> Vec<Vec<u8>> {
    let mut mapping = Vec::new();
    words(&mut mapping, &[NFS_PROGRAM, 3, 6, 0]);
    let mut rpcb = Vec::new();
    words(&mut rpcb, &[NFS_PROGRAM, 3]);
    for text in [&b"tcp"[..], b"127.0.0.1.8.1", b"superuser"] {
        rpcb.put_opaque(text);
    }
    let all = |version, args: &[u8]| -> Vec<u8> {
        (0..=12).flat_map(|procedure| record(RPCBIND_PROGRAM, version, procedure, args)).collect()
    };
    vec![all(2, &mapping), all(3, &rpcb), all(4, &rpcb)]
}

/// Yes, no, and a refusal.
pub fn reply_seeds() -> Vec<Vec<u8>> {
    let reply = |rest: &[u32]| {
        let mut out = Vec::new();
        words(&mut out, &[7, 7, 1, 0, 0, 0]);
        words(&mut out, rest);
        out
    };
    vec![reply(&[0, 1]), reply(&[0, 0]), reply(&[1])]
}

/// Records without their marks.
pub fn record_seeds() -> Vec<Vec<u8>> {
    let mut none = Vec::new();
    let head = CallHead {
        xid: 1,
        program: NFS_PROGRAM,
        version: 3,
        procedure: 0,
        flavor: AUTH_NONE,
        credential_len: 0,
        args_at: 0,
    };
    put_call(&mut none, &head, &[], &[]);
    let sys = record(NFS_PROGRAM, 3, 1, &[0; 8]);
    vec![none.split_off(MARK_BYTES), sys[MARK_BYTES..].to_vec()]
}

/// Steps, then what they read.
pub fn xdr_seeds() -> Vec<Vec<u8>> {
    let mut out = vec![0, 1, 3, 2, 6, 3, 0, 1];
    words(&mut out, &[1, 2, 3, 1]);
    out.put_opaque(b"opaque");
    out.put_opaque(b"");
    words(&mut out, &[0, 5, 6, 7]);
    vec![out]
}

/// Requests and replies of the fabric, with and without payload.
pub fn cf_seeds() -> Vec<Vec<u8>> {
    let now = MonoTime::new(1);
    let ctx = || OpCtx {
        vserver: VserverId::new(1),
        cred: Credential::root(),
        client: ClientAddr { ip: [127, 0, 0, 1].into(), port: 700 },
        op_no: OpNo::new(5),
        deadline: None,
        read_only: ReadOnly::No,
    };
    let write = Op::Write {
        obj: root(),
        offset: 7,
        data: Payload::copy_from(7, b"payload"),
        stability: Stability::FileSync,
    };
    let requests = [
        CfRequest::File(ctx(), write),
        CfRequest::File(ctx(), Op::GetAttr { obj: root() }),
        CfRequest::Manage(Manage::VolumeCreate {
            fsid: Fsid::new(2),
            name: "v".to_owned(),
            size_bytes: 1 << 30,
        }),
        CfRequest::Manage(Manage::DiskAdd { locations: vec!["/dev/sdc".to_owned()] }),
    ];
    let replies = [
        CfReply::File(Ok(Reply::Xattr { value: b"value".to_vec() })),
        CfReply::Manage(Ok(Managed::Root(root()))),
    ];
    let requests = requests.iter().map(|r| encode_request(Xid(1), r, now));
    let encoded = requests.chain(replies.iter().map(|r| encode_reply(Xid(1), r, now)));
    encoded.flatten().map(|e| [e.head.clone(), e.payload.to_vec()].concat()).collect()
}
