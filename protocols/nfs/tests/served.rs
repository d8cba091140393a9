//! NFS, MOUNT and rpcbind over loopback sockets, on the reference model.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use cairn_model::DirectFiles;
use cairn_nfs::{MOUNT_PROGRAM, NFS_PROGRAM, NfsConfig, NfsServer, Rpcbind, StartError};
use cairn_oncrpc::Limits;
use cairn_oncrpc::message::{AUTH_SYS, CallHead, MARK_BYTES, put_call};
use cairn_oncrpc::xdr::{Decoder, Put};
use cairn_units::VserverId;

const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    runtime: tokio::runtime::Runtime,
    server: NfsServer,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Rpcbind::Off).unwrap()
    }
    fn with(rpcbind: Rpcbind) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let world = cairn_sys::real::world(runtime.handle().clone()).unwrap();
        let model = DirectFiles::on_model(world.clone(), 1 << 30);
        let (_node, files) = runtime.block_on(model).unwrap();
        let config = NfsConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            workers: 2,
            limits: Limits::default(),
            vserver: VserverId::new(1),
            rpcbind,
        };
        let server = NfsServer::start(&config, Arc::new(files), &world)?;
        Ok(Self { runtime, server })
    }
    fn client(&self) -> Client {
        Client::connect(self.server.addr())
    }
}

struct Client {
    stream: TcpStream,
    xid: u32,
    uid: u32,
}

fn head(xid: u32, (program, version, procedure): (u32, u32, u32)) -> CallHead {
    let flavor = AUTH_SYS;
    CallHead { xid, program, version, procedure, flavor, credential_len: 0, args_at: 0 }
}

impl Client {
    fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, xid: 0, uid: 0 }
    }
    fn send(&mut self, what: (u32, u32, u32), args: &[u8]) {
        let mut credential = Vec::new();
        credential.put_u32(0);
        credential.put_opaque(b"tests");
        credential.put_u32(self.uid);
        credential.put_u32(self.uid);
        credential.put_u32(0);
        let mut out = Vec::new();
        put_call(&mut out, &head(self.xid, what), &credential, args);
        self.stream.write_all(&out).unwrap();
    }
    /// The reply behind its transaction id.
    fn receive(&mut self) -> Vec<u8> {
        let mut start = [0; MARK_BYTES + 4];
        self.stream.read_exact(&mut start).unwrap();
        let len = u32::from_be_bytes(start[..4].try_into().unwrap()) & 0x7fff_ffff;
        assert_eq!(start[4..], self.xid.to_be_bytes());
        let mut out = vec![0; len as usize - 4];
        self.stream.read_exact(&mut out).unwrap();
        out
    }
    fn call(&mut self, what: (u32, u32, u32), args: &[u8]) -> Vec<u8> {
        self.xid += 1;
        self.send(what, args);
        let reply = self.receive();
        assert_eq!(words(&reply[..20]), [1, 0, 0, 0, 0], "accepted with success");
        reply[20..].to_vec()
    }
    fn nfs(&mut self, procedure: u32, args: &[u8]) -> Vec<u8> {
        self.call((NFS_PROGRAM, 3, procedure), args)
    }
    /// A call that succeeds; the result behind its status.
    fn ok(&mut self, procedure: u32, args: &[u8]) -> Vec<u8> {
        let result = self.nfs(procedure, args);
        assert_eq!(status(&result), 0, "procedure {procedure}");
        result[4..].to_vec()
    }
    fn mount(&mut self, path: &str) -> Vec<u8> {
        let mut args = Vec::new();
        args.put_opaque(path.as_bytes());
        let result = self.call((MOUNT_PROGRAM, 3, 1), &args);
        let mut d = Decoder::new(&result);
        assert_eq!(d.u32(), Ok(0));
        let handle = d.opaque(64).unwrap().to_vec();
        assert_eq!((d.u32(), d.u32()), (Ok(1), Ok(AUTH_SYS)));
        handle
    }
    /// Makes a file; its handle.
    fn create(&mut self, dir: &[u8], name: &[u8]) -> Vec<u8> {
        let mut args = dirop(dir, name);
        args.put_u32(1);
        args.extend(sattr(0o644));
        made(&self.ok(8, &args))
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|c| u32::from_be_bytes(c.try_into().unwrap())).collect()
}
fn status(result: &[u8]) -> u32 {
    words(&result[..4])[0]
}
fn fh(handle: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_opaque(handle);
    out
}
fn dirop(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut out = fh(dir);
    out.put_opaque(name);
    out
}
fn sattr(mode: u32) -> Vec<u8> {
    let mut out = Vec::new();
    [1, mode, 0, 0, 0, 0, 0].iter().for_each(|w| out.put_u32(*w));
    out
}
/// The handle in the result of a call that made something.
fn made(result: &[u8]) -> Vec<u8> {
    let mut d = Decoder::new(result);
    assert_eq!(d.u32(), Ok(1));
    d.opaque(64).unwrap().to_vec()
}
fn write_args(file: &[u8], offset: u64, stable: u32, data: &[u8]) -> Vec<u8> {
    let mut args = fh(file);
    args.put_u64(offset);
    args.put_u32(u32::try_from(data.len()).unwrap());
    args.put_u32(stable);
    args.put_opaque(data);
    args
}
fn read_args(file: &[u8], offset: u64, count: u32) -> Vec<u8> {
    let mut args = fh(file);
    args.put_u64(offset);
    args.put_u32(count);
    args
}
/// Data and end mark of a READ.
fn data(result: &[u8]) -> (Vec<u8>, bool) {
    let mut d = Decoder::new(&result[88..]);
    let count = d.u32().unwrap();
    let eof = d.bool().unwrap();
    let data = d.opaque(1 << 20).unwrap().to_vec();
    assert_eq!(data.len(), count as usize);
    assert_eq!(d.finish(), Ok(()));
    (data, eof)
}

#[test]
fn what_is_written_is_read_back_at_any_offset() {
    let f = Fixture::new();
    let mut c = f.client();
    let root = c.mount("/vol0");
    let file = c.create(&root, b"file");
    let bytes: Vec<u8> = (0..=250u8).cycle().take(1 << 20).collect();
    let mut model = Vec::new();
    for (offset, len) in [(0usize, 10), (5, 5000), (4096, 4096), (100_001, 77_777), (3, 1 << 20)] {
        let result = c.ok(7, &write_args(&file, offset as u64, 2, &bytes[..len]));
        let tail = words(&result[result.len() - 16..]);
        assert_eq!((tail[0] as usize, tail[1]), (len, 2), "all of it, stable");
        model.resize(model.len().max(offset + len), 0);
        model[offset..offset + len].copy_from_slice(&bytes[..len]);
    }
    for (offset, count) in [(0usize, 1 << 20), (7, 100), (4095, 2), (99_999, 200_000), (1 << 20, 9)]
    {
        let asked = u32::try_from(count).unwrap();
        let (got, eof) = data(&c.ok(6, &read_args(&file, offset as u64, asked)));
        let end = (offset + count).min(model.len());
        assert_eq!(got, model[offset..end], "at {offset}");
        assert_eq!(eof, end == model.len());
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a bound on how long a test may hang")]
fn every_procedure_is_served() {
    let f = Fixture::new();
    let mut c = f.client();
    let root = c.mount("/vol0");
    assert!(c.nfs(0, &[]).is_empty());
    let file = c.create(&root, b"a");
    assert_eq!(c.ok(1, &fh(&file)).len(), 84);
    c.ok(2, &[fh(&file), sattr(0o600), vec![0; 4]].concat());
    assert_eq!(made(&[&[0, 0, 0, 1][..], &c.ok(3, &dirop(&root, b"a"))].concat()), file);
    c.ok(4, &[fh(&file), vec![0, 0, 0, 0x3f]].concat());
    let dir = made(&c.ok(9, &[dirop(&root, b"dir"), sattr(0o755)].concat()));
    let mut args = [dirop(&dir, b"link"), sattr(0o777)].concat();
    args.put_opaque(b"../a");
    let link = made(&c.ok(10, &args));
    let target = c.ok(5, &fh(&link));
    assert_eq!(Decoder::new(&target[88..]).opaque(99), Ok(&b"../a"[..]));
    c.ok(11, &[dirop(&dir, b"pipe"), vec![0, 0, 0, 7], sattr(0o600)].concat());
    c.ok(14, &[dirop(&dir, b"pipe"), dirop(&root, b"fifo")].concat());
    c.ok(15, &[fh(&file), dirop(&dir, b"b")].concat());
    c.ok(12, &dirop(&dir, b"b"));
    assert_eq!(status(&c.nfs(13, &dirop(&root, b"dir"))), 66);
    assert_eq!(status(&c.nfs(13, &dirop(&root, b"a"))), 20, "RMDIR is not REMOVE");
    c.ok(12, &dirop(&dir, b"link"));
    c.ok(13, &dirop(&root, b"dir"));
    c.ok(16, &[fh(&root), vec![0; 16], vec![0, 0, 16, 0]].concat());
    c.ok(17, &[fh(&root), vec![0; 16], vec![0, 0, 16, 0], vec![0, 0, 64, 0]].concat());
    c.ok(18, &fh(&root));
    c.ok(19, &fh(&root));
    c.ok(20, &fh(&root));
    c.ok(21, &[fh(&file), vec![0; 12]].concat());
    c.ok(7, &write_args(&file, 0, 0, b"x"));
    c.ok(6, &read_args(&file, 0, 1));
    // A call is counted just behind the sending of its reply.
    let start = std::time::Instant::now();
    loop {
        let m = f.server.metrics();
        let missing = m.procedures[..22].iter().find(|p| p.count == 0);
        let Some(missing) = missing else { break };
        assert!(start.elapsed() < PATIENCE, "{} is not counted", missing.name);
        std::thread::yield_now();
    }
}

#[test]
fn a_directory_is_listed_whole_in_small_pages_while_names_come_and_go() {
    let f = Fixture::new();
    let mut c = f.client();
    let root = c.mount("/vol0");
    for n in 0..300 {
        c.create(&root, format!("file-{n:05}").as_bytes());
    }
    for plus in [false, true] {
        let mut seen = Vec::new();
        let (mut cookie, mut page) = (0u64, 0);
        loop {
            let mut args = fh(&root);
            args.put_u64(cookie);
            args.put_u64(0);
            args.put_u32(700);
            if plus {
                args.put_u32(2500);
            }
            let result = c.ok(if plus { 17 } else { 16 }, &args);
            let mut d = Decoder::new(&result[88 + 8..]);
            while d.bool().unwrap() {
                let _ino = d.u64().unwrap();
                seen.push(d.opaque(255).unwrap().to_vec());
                cookie = d.u64().unwrap();
                if plus {
                    assert!(d.bool().unwrap());
                    d.opaque_fixed(84).unwrap();
                    assert!(d.bool().unwrap());
                    d.opaque(64).unwrap();
                }
            }
            if d.bool().unwrap() {
                break;
            }
            page += 1;
            let passing = format!("passing-{page}");
            c.create(&root, passing.as_bytes());
            c.ok(12, &dirop(&root, passing.as_bytes()));
        }
        assert!(page > 10, "in many pages");
        seen.retain(|n| n.starts_with(b"file-"));
        seen.sort();
        let all: Vec<Vec<u8>> = (0..300).map(|n| format!("file-{n:05}").into_bytes()).collect();
        assert_eq!(seen, all, "plus: {plus}");
    }
}

#[test]
fn a_repeated_remove_gets_the_first_answer() {
    let f = Fixture::new();
    let mut c = f.client();
    let root = c.mount("/vol0");
    c.create(&root, b"once");
    assert_eq!(status(&c.nfs(12, &dirop(&root, b"once"))), 0);
    let xid = c.xid;
    // The same call over a new connection, as after a lost reply.
    let mut again = f.client();
    again.xid = xid - 1;
    assert_eq!(status(&again.nfs(12, &dirop(&root, b"once"))), 0);
    assert_eq!(f.server.metrics().replayed, 1);
    // A new call finds nothing.
    assert_eq!(status(&again.nfs(12, &dirop(&root, b"once"))), 2);
}

#[test]
fn credentials_reach_the_files() {
    let f = Fixture::new();
    let mut c = f.client();
    let root = c.mount("/vol0");
    let secret = made(&c.ok(8, &[dirop(&root, b"s"), vec![0, 0, 0, 1], sattr(0o600)].concat()));
    c.uid = 1234;
    assert_eq!(status(&c.nfs(6, &read_args(&secret, 0, 1))), 13);
}

#[test]
fn mounts_are_listed_and_forgotten_and_exports_shown() {
    let f = Fixture::new();
    let mut c = f.client();
    c.mount("/vol0");
    let dump = |c: &mut Client| c.call((MOUNT_PROGRAM, 3, 2), &[]);
    let list = dump(&mut c);
    let mut d = Decoder::new(&list);
    assert_eq!(d.bool(), Ok(true));
    assert_eq!(d.opaque(255), Ok(&b"127.0.0.1"[..]));
    assert_eq!(d.opaque(255), Ok(&b"/vol0"[..]));
    assert_eq!(d.bool(), Ok(false));
    let mut path = Vec::new();
    path.put_opaque(b"/vol0");
    assert!(c.call((MOUNT_PROGRAM, 3, 3), &path).is_empty(), "UMNT answers nothing");
    assert_eq!(dump(&mut c), [0; 4]);
    c.mount("/vol0");
    assert!(c.call((MOUNT_PROGRAM, 1, 4), &[]).is_empty(), "UMNTALL answers nothing");
    assert_eq!(dump(&mut c), [0; 4]);
    let exports = c.call((MOUNT_PROGRAM, 1, 5), &[]);
    let mut d = Decoder::new(&exports);
    assert_eq!((d.bool(), d.opaque(255)), (Ok(true), Ok(&b"/vol0"[..])));
    let mut path = Vec::new();
    path.put_opaque(b"/nothing");
    assert_eq!(c.call((MOUNT_PROGRAM, 3, 1), &path), [0, 0, 0, 2]);
}

#[test]
fn other_programs_and_versions_are_refused() {
    let f = Fixture::new();
    let mut c = f.client();
    let mut refusal = |what| {
        c.xid += 1;
        c.send(what, &[]);
        words(&c.receive())
    };
    assert_eq!(refusal((100_227, 3, 0)), [1, 0, 0, 0, 1], "NFSACL");
    assert_eq!(refusal((100_021, 4, 0)), [1, 0, 0, 0, 1], "NLM");
    assert_eq!(refusal((NFS_PROGRAM, 4, 0)), [1, 0, 0, 0, 2, 3, 3]);
    assert_eq!(refusal((MOUNT_PROGRAM, 2, 0)), [1, 0, 0, 0, 2, 1, 3]);
    assert_eq!(refusal((NFS_PROGRAM, 3, 22)), [1, 0, 0, 0, 3]);
    assert_eq!(refusal((NFS_PROGRAM, 3, 1)), [1, 0, 0, 0, 4]);
}

#[test]
fn our_rpcbind_names_the_port_over_tcp_and_udp() {
    let f = Fixture::with(Rpcbind::Serve("127.0.0.1:0".parse().unwrap())).unwrap();
    let at = f.server.rpcbind_addr().unwrap();
    let port = u32::from(f.server.addr().port());
    let mut c = Client::connect(at);
    let mapping = |program: u32, version: u32, protocol: u32| {
        let mut args = Vec::new();
        [program, version, protocol, 0].iter().for_each(|w| args.put_u32(*w));
        args
    };
    let getport = (100_000, 2, 3);
    assert_eq!(words(&c.call(getport, &mapping(NFS_PROGRAM, 3, 6))), [port]);
    assert_eq!(words(&c.call(getport, &mapping(MOUNT_PROGRAM, 1, 6))), [port]);
    assert_eq!(words(&c.call(getport, &mapping(NFS_PROGRAM, 3, 17))), [0], "no UDP");
    assert_eq!(words(&c.call(getport, &mapping(100_021, 4, 6))), [0], "no NLM");
    assert_eq!(words(&c.call((100_000, 2, 4), &[])).len(), 9 * 5 + 1, "DUMP");
    assert_eq!(words(&c.call((100_000, 2, 1), &mapping(1, 1, 6))), [0], "SET says no");
    let mut args = Vec::new();
    args.put_u32(NFS_PROGRAM);
    args.put_u32(3);
    [&b"tcp"[..], b"", b""].iter().for_each(|s| args.put_opaque(s));
    for version in [3, 4] {
        let result = c.call((100_000, version, 3), &args);
        let expected = format!("127.0.0.1.{}.{}", port >> 8, port & 255);
        assert_eq!(Decoder::new(&result).opaque(99), Ok(expected.as_bytes()));
    }
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut call = Vec::new();
    let null_flavor = CallHead { flavor: 0, ..head(99, getport) };
    put_call(&mut call, &null_flavor, &[], &mapping(NFS_PROGRAM, 3, 6));
    udp.send_to(b"noise", at).unwrap();
    udp.send_to(&call[MARK_BYTES..], at).unwrap();
    let mut reply = [0; 100];
    let (n, _) = udp.recv_from(&mut reply).unwrap();
    assert_eq!(words(&reply[..n]), [99, 1, 0, 0, 0, 0, port]);
    // A list to somebody whose address may be forged would be many times its call.
    call.clear();
    put_call(&mut call, &CallHead { flavor: 0, ..head(98, (100_000, 2, 4)) }, &[], &[]);
    udp.send_to(&call[MARK_BYTES..], at).unwrap();
    let (n, _) = udp.recv_from(&mut reply).unwrap();
    assert_eq!(words(&reply[..n]), [98, 1, 0, 0, 0, 5], "SYSTEM_ERR");
    f.runtime.block_on(f.server.shutdown());
}

#[test]
fn registering_tells_a_running_rpcbind_and_takes_it_back() {
    // A stand-in for rpcbind that says yes to SET and UNSET, and tells us what came.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let (sender, calls) = std::sync::mpsc::channel();
    let stand_in = std::thread::Builder::new()
        .spawn(move || {
            for stream in listener.incoming().take(9) {
                let mut stream = stream.unwrap();
                let mut call = [0; 60];
                stream.read_exact(&mut call).unwrap();
                let w = words(&call);
                sender.send((w[6], w[11], w[12], w[13], w[14])).unwrap();
                let reply = [1 << 31 | 28, w[1], 1, 0, 0, 0, 0, 1];
                let bytes: Vec<u8> = reply.iter().flat_map(|w| w.to_be_bytes()).collect();
                stream.write_all(&bytes).unwrap();
            }
        })
        .unwrap();
    let f = Fixture::with(Rpcbind::Register(at)).unwrap();
    let port = u32::from(f.server.addr().port());
    f.runtime.block_on(f.server.shutdown());
    stand_in.join().unwrap();
    let programs = [(NFS_PROGRAM, 3), (MOUNT_PROGRAM, 3), (MOUNT_PROGRAM, 1)];
    let expected: Vec<_> = [2, 1, 2]
        .iter()
        .flat_map(|procedure| programs.map(|(p, v)| (*procedure, p, v, 6, port)))
        .collect();
    assert_eq!(calls.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_missing_rpcbind_is_an_error_that_says_what_to_do() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let Err(error) = Fixture::with(Rpcbind::Register(nobody)) else { panic!("it answered") };
    assert!(error.to_string().contains("systemctl start rpcbind"), "{error}");
}
