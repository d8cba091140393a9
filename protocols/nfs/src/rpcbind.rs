//! rpcbind (program 100000): a responder for versions 2, 3 and 4, and a client that registers
//! with a running one.
//!
//! The responder knows what this server serves and nothing else; SET and UNSET answer no.
//! Sources: RFC 1833.

use core::time::Duration;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cairn_oncrpc::message::{AUTH_NONE, CallHead, MARK_BYTES, Mark, Refusal, put_call};
use cairn_oncrpc::xdr::{DecodeError, Decoder, Put};
use cairn_oncrpc::{Body, Call, Cost, Outcome, Plan, Replay, Service};
use cairn_sys::Payload;

/// Program number of rpcbind.
pub(crate) const RPCBIND_PROGRAM: u32 = 100_000;
const TCP: u32 = 6;
const UDP: u32 = 17;
/// Longest string in a version 3 or 4 call.
const STRING_BYTES_MAX: u32 = 256;
/// Time for each exchange with a running rpcbind.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest reply of a running rpcbind that is looked at.
const REPLY_BYTES_MAX: usize = 1024;

/// A transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    const fn number(self) -> u32 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
    const fn netid(self, ip: IpAddr) -> &'static str {
        match (self, ip) {
            (Self::Tcp, IpAddr::V4(_)) => "tcp",
            (Self::Tcp, IpAddr::V6(_)) => "tcp6",
            (Self::Udp, IpAddr::V4(_)) => "udp",
            (Self::Udp, IpAddr::V6(_)) => "udp6",
        }
    }
}

/// One program, version and transport, and where it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Program number.
    pub program: u32,
    /// Program version.
    pub version: u32,
    /// Transport.
    pub transport: Transport,
    /// Address (perhaps unspecified) and port.
    pub addr: SocketAddr,
}

/// The responder.
#[derive(Debug)]
pub struct RpcbindService {
    entries: Vec<Registration>,
}

impl RpcbindService {
    /// Answers for these, and for itself at `own`.
    pub fn new(mut entries: Vec<Registration>, own: SocketAddr) -> Self {
        for version in [4, 3, 2] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let program = RPCBIND_PROGRAM;
                entries.push(Registration { program, version, transport, addr: own });
            }
        }
        Self { entries }
    }

    /// The exact version if it is there, else any version unless `exact`.
    fn find(
        &self,
        (program, version): (u32, u32),
        exact: Exact,
        matches: impl Fn(&Registration) -> bool,
    ) -> Option<&Registration> {
        let mut found = self.entries.iter().filter(|e| e.program == program && matches(e));
        let mut first = None;
        let same = found.find(|e| {
            first = first.or(Some(*e));
            e.version == version
        });
        match exact {
            Exact::Yes => same,
            Exact::No => same.or(first),
        }
    }

    fn version_2(&self, call: &Call<'_>, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let mut d = Decoder::new(call.args);
        match call.procedure {
            0 => {}
            // SET, UNSET.
            1 | 2 => out.put_bool(false),
            // GETPORT.
            3 => {
                let (program, version, protocol) =
                    mapping(&mut d).map_err(|_| Refusal::GarbageArgs)?;
                let found = self.find((program, version), Exact::No, |e| {
                    e.transport.number() == protocol && e.addr.ip().to_canonical_is_v4()
                });
                out.put_u32(found.map_or(0, |e| u32::from(e.addr.port())));
            }
            // DUMP.
            4 => {
                for e in &self.entries {
                    for word in
                        [1, e.program, e.version, e.transport.number(), u32::from(e.addr.port())]
                    {
                        out.put_u32(word);
                    }
                }
                out.put_u32(0);
            }
            _ => return Err(Refusal::ProcedureUnavailable),
        }
        Ok(())
    }

    fn version_3_4(&self, call: &Call<'_>, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let mut d = Decoder::new(call.args);
        match (call.procedure, call.version) {
            (0, _) => {}
            (1 | 2, _) => out.put_bool(false),
            // GETADDR, GETVERSADDR.
            (3, _) | (9, 4) => {
                let exact = if call.procedure == 9 { Exact::Yes } else { Exact::No };
                let wanted = rpcb(&mut d).map_err(|_| Refusal::GarbageArgs)?;
                let found = self.find((wanted.program, wanted.version), exact, |e| {
                    e.transport.netid(call.local.ip()).as_bytes() == wanted.netid
                });
                let addr = found.map(|e| universal(e.addr, call.local.ip()));
                out.put_opaque(addr.unwrap_or_default().as_bytes());
            }
            // DUMP.
            (4, _) => {
                for e in &self.entries {
                    out.put_u32(1);
                    out.put_u32(e.program);
                    out.put_u32(e.version);
                    out.put_opaque(e.transport.netid(e.addr.ip()).as_bytes());
                    out.put_opaque(universal(e.addr, e.addr.ip()).as_bytes());
                    out.put_opaque(b"superuser");
                }
                out.put_u32(0);
            }
            _ => return Err(Refusal::ProcedureUnavailable),
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exact {
    Yes,
    No,
}

/// Whether a service on this address can be reached by IPv4 (all that version 2 knows).
trait ReachableByV4 {
    fn to_canonical_is_v4(&self) -> bool;
}

impl ReachableByV4 for IpAddr {
    fn to_canonical_is_v4(&self) -> bool {
        self.to_canonical().is_ipv4() || self.is_unspecified()
    }
}

fn mapping(d: &mut Decoder<'_>) -> Result<(u32, u32, u32), DecodeError> {
    let (program, version, protocol) = (d.u32()?, d.u32()?, d.u32()?);
    let _port = d.u32()?;
    Ok((program, version, protocol))
}

struct Rpcb<'a> {
    program: u32,
    version: u32,
    netid: &'a [u8],
}

fn rpcb<'a>(d: &mut Decoder<'a>) -> Result<Rpcb<'a>, DecodeError> {
    let (program, version) = (d.u32()?, d.u32()?);
    let netid = d.opaque(STRING_BYTES_MAX)?;
    let (_addr, _owner) = (d.opaque(STRING_BYTES_MAX)?, d.opaque(STRING_BYTES_MAX)?);
    Ok(Rpcb { program, version, netid })
}

/// A universal address: the address, then the two bytes of the port, with dots. An unspecified
/// address becomes the one that the client reached us at.
fn universal(addr: SocketAddr, reached: IpAddr) -> String {
    let ip = if addr.ip().is_unspecified() { reached } else { addr.ip() };
    let [hi, lo] = addr.port().to_be_bytes();
    format!("{}.{hi}.{lo}", ip.to_canonical())
}

impl Service for RpcbindService {
    const METRICS: &'static [&'static str] = &["rpcbind"];

    fn plan(&self, _call: &Call<'_>) -> Plan {
        let cost = Cost { reply_bytes: 4096, replay: Replay::Idempotent, metric: 0 };
        Plan { cost, payload: None }
    }

    fn call(&self, call: &Call<'_>, _payload: Option<Payload>, body: &mut Body) -> Outcome {
        if call.program != RPCBIND_PROGRAM {
            return Outcome::Refused(Refusal::ProgramUnavailable);
        }
        let done = match call.version {
            2 => self.version_2(call, &mut body.bytes),
            3 | 4 => self.version_3_4(call, &mut body.bytes),
            _ => Err(Refusal::ProgramMismatch { low: 2, high: 4 }),
        };
        match done {
            Ok(()) => Outcome::Done,
            Err(why) => Outcome::Refused(why),
        }
    }
}

/// Why registering with a running rpcbind failed.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// It does not answer.
    #[error(
        "no rpcbind answers at {at}: {source}; start it (`systemctl start rpcbind`), or let this \
         server answer itself (rpcbind = serve), or turn it off and mount with port= and mountport="
    )]
    Unreachable {
        /// Where.
        at: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It says no.
    #[error(
        "rpcbind at {at} refuses program {program} version {version}: another server is registered \
         (`rpcinfo -p` lists it), or this one does not run as root"
    )]
    Refused {
        /// Where.
        at: SocketAddr,
        /// Program number.
        program: u32,
        /// Program version.
        version: u32,
    },
}

/// Registers TCP services with the rpcbind at `at` (version 2 calls). Blocks, at most
/// [`EXCHANGE_TIMEOUT`] for each call.
///
/// # Errors
/// See [`RegisterError`]; what was registered before is taken back.
pub(crate) fn register(at: SocketAddr, entries: &[Registration]) -> Result<(), RegisterError> {
    for (n, e) in entries.iter().enumerate() {
        let done = exchange(at, 1, e)
            .map_err(|source| RegisterError::Unreachable { at, source })
            .and_then(|yes| match yes {
                true => Ok(()),
                false => Err(RegisterError::Refused { at, program: e.program, version: e.version }),
            });
        if let Err(error) = done {
            unregister(at, &entries[..n]);
            return Err(error);
        }
    }
    Ok(())
}

/// Takes registrations back; what fails is logged, since nothing else can be done about it.
pub(crate) fn unregister(at: SocketAddr, entries: &[Registration]) {
    for e in entries {
        match exchange(at, 2, e) {
            Ok(true) => {}
            Ok(false) => tracing::warn!(%at, program = e.program, "rpcbind did not unregister"),
            Err(error) => {
                tracing::warn!(%at, program = e.program, "rpcbind did not unregister: {error}");
            }
        }
    }
}

/// One SET or UNSET; whether it was done.
fn exchange(at: SocketAddr, procedure: u32, e: &Registration) -> io::Result<bool> {
    let mut stream = connect(at)?;
    stream.set_read_timeout(Some(EXCHANGE_TIMEOUT))?;
    stream.set_write_timeout(Some(EXCHANGE_TIMEOUT))?;
    let mut args = Vec::new();
    for word in [e.program, e.version, e.transport.number(), u32::from(e.addr.port())] {
        args.put_u32(word);
    }
    let xid = e.program ^ e.version << 8 ^ procedure;
    let head = CallHead {
        xid,
        program: RPCBIND_PROGRAM,
        version: 2,
        procedure,
        flavor: AUTH_NONE,
        credential_len: 0,
        args_at: 0,
    };
    let mut call = Vec::new();
    put_call(&mut call, &head, &[], &args);
    stream.write_all(&call)?;
    let mut mark = [0; MARK_BYTES];
    stream.read_exact(&mut mark)?;
    let mark = Mark::from_be(mark);
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if !mark.last || mark.len > REPLY_BYTES_MAX {
        return Err(bad("the reply is not one of rpcbind"));
    }
    let mut reply = vec![0; mark.len];
    stream.read_exact(&mut reply)?;
    parse_bool_reply(xid, &reply).map_err(|_| bad("the reply is not one of rpcbind"))
}

pub(crate) fn parse_bool_reply(xid: u32, reply: &[u8]) -> Result<bool, DecodeError> {
    let mut d = Decoder::new(reply);
    for expected in [xid, 1, 0] {
        let value = d.u32()?;
        if value != expected {
            return Err(DecodeError::BadValue { value });
        }
    }
    let _flavor = d.u32()?;
    let _verifier = d.opaque(400)?;
    match d.u32()? {
        0 => d.bool(),
        value => Err(DecodeError::BadValue { value }),
    }
}

/// Connects from a port below 1024 if that is allowed: rpcbind trusts no other.
fn connect(at: SocketAddr) -> io::Result<std::net::TcpStream> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    let local: IpAddr = match at.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    for port in (600..1024).rev() {
        match socket.bind(&SocketAddr::new(local, port).into()) {
            Ok(()) => break,
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => break,
            Err(e) => return Err(e),
        }
    }
    socket.connect_timeout(&at.into(), EXCHANGE_TIMEOUT)?;
    Ok(socket.into())
}
