//! RPC messages (RFC 5531): record marks, call headers, credentials, reply headers.
//!
//! Layer: above XDR, below the connection. Everything is parsed in place; the only allocation is
//! the group list of an AUTH_SYS credential, capped at 16.

use cairn_units::{Gid, Uid};
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::xdr::{DecodeError, Decoder, Put};

/// Bytes of a record mark.
pub const MARK_BYTES: usize = 4;
/// Longest record (all fragments): 1 MiB of data and 64 KiB for everything around it.
pub const RECORD_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// Longest body of a credential or verifier (RFC 5531).
pub const AUTH_BYTES_MAX: u32 = 400;
/// Longest machine name in an AUTH_SYS credential.
const MACHINE_NAME_BYTES_MAX: u32 = 255;
/// Most groups in an AUTH_SYS credential.
pub const GROUPS_MAX: u32 = 16;
/// The one version of RPC.
const RPC_VERSION: u32 = 2;
/// Flavour of no authentication.
pub const AUTH_NONE: u32 = 0;
/// Flavour of Unix credentials.
pub const AUTH_SYS: u32 = 1;

/// The mark in front of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Bytes of the fragment.
    pub len: usize,
    /// Whether the record ends with it.
    pub last: bool,
}

impl Mark {
    /// From the wire.
    #[inline]
    pub const fn from_be(bytes: [u8; MARK_BYTES]) -> Self {
        let raw = u32::from_be_bytes(bytes);
        Self { len: (raw & 0x7fff_ffff) as usize, last: raw >> 31 == 1 }
    }
}

/// What every call begins with, up to the length of the credential.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct CallStart {
    xid: U32,
    message_type: U32,
    rpc_version: U32,
    program: U32,
    version: U32,
    procedure: U32,
    flavor: U32,
    credential_len: U32,
}
const _: () = assert!(size_of::<CallStart>() == 32);

/// What every accepted reply begins with, up to its status.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct AcceptedStart {
    mark: U32,
    xid: U32,
    message_type: U32,
    reply_status: U32,
    verifier_flavor: U32,
    verifier_len: U32,
    accept_status: U32,
}
const _: () = assert!(size_of::<AcceptedStart>() == 28);

impl AcceptedStart {
    /// A success; the mark is filled in when the length is known.
    #[inline]
    pub const fn success(xid: u32) -> Self {
        Self {
            mark: U32::ZERO,
            xid: U32::new(xid),
            message_type: U32::new(1),
            reply_status: U32::ZERO,
            verifier_flavor: U32::ZERO,
            verifier_len: U32::ZERO,
            accept_status: U32::ZERO,
        }
    }
}

/// Who a call says it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Nobody.
    #[default]
    None,
    /// A Unix user, as the client claims.
    Sys {
        /// User.
        uid: Uid,
        /// Primary group.
        gid: Gid,
        /// Further groups, at most [`GROUPS_MAX`].
        groups: Vec<Gid>,
    },
}

/// Why a credential is refused (auth_stat).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthRefusal {
    /// The credential is malformed.
    BadCredential,
    /// A flavour that is not served.
    Rejected,
    /// The flavour is too weak for this.
    TooWeak,
}

impl AuthRefusal {
    const fn wire(self) -> u32 {
        match self {
            Self::BadCredential => 1,
            Self::Rejected => 2,
            Self::TooWeak => 5,
        }
    }
}

/// Why a call gets no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another version of RPC.
    RpcMismatch,
    /// Credential refused.
    Auth(AuthRefusal),
    /// Program not served here.
    ProgramUnavailable,
    /// Version of the program not served here.
    ProgramMismatch {
        /// Lowest version served.
        low: u32,
        /// Highest version served.
        high: u32,
    },
    /// No such procedure.
    ProcedureUnavailable,
    /// The arguments cannot be decoded.
    GarbageArgs,
    /// The server cannot.
    SystemError,
}

/// A call's header, with the places of what follows in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallHead {
    /// Transaction id.
    pub xid: u32,
    /// Program number.
    pub program: u32,
    /// Program version.
    pub version: u32,
    /// Procedure.
    pub procedure: u32,
    /// Flavour of the credential.
    pub flavor: u32,
    /// Bytes of the credential; they begin at [`CREDENTIAL_AT`].
    pub credential_len: usize,
    /// Where the arguments begin.
    pub args_at: usize,
}

/// Where a call's credential begins in its record.
pub const CREDENTIAL_AT: usize = size_of::<CallStart>();

/// Why a record is not a call that can be dispatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// More bytes are needed.
    Incomplete,
    /// Not a call at all: the peer does not speak RPC.
    NotACall,
    /// A call that is refused.
    Refused {
        /// Transaction id to answer.
        xid: u32,
        /// Why.
        why: Refusal,
    },
}

/// Parses the header of a call at the start of `record` (which may be cut off).
///
/// # Errors
/// See [`HeadError`].
#[inline]
pub fn parse_head(record: &[u8]) -> Result<CallHead, HeadError> {
    let mut d = Decoder::new(record);
    let Ok(start) = d.fixed::<CallStart>() else { return Err(HeadError::Incomplete) };
    let xid = start.xid.get();
    if start.message_type.get() != 0 {
        return Err(HeadError::NotACall);
    }
    if start.rpc_version.get() != RPC_VERSION {
        return Err(HeadError::Refused { xid, why: Refusal::RpcMismatch });
    }
    let bad = HeadError::Refused { xid, why: Refusal::Auth(AuthRefusal::BadCredential) };
    let credential_len = start.credential_len.get();
    if credential_len > AUTH_BYTES_MAX {
        return Err(bad);
    }
    let credential_len = credential_len as usize;
    if d.opaque_fixed(credential_len).is_err() || d.u32().is_err() {
        return Err(HeadError::Incomplete);
    }
    match d.opaque(AUTH_BYTES_MAX) {
        Ok(_verifier) => {}
        Err(DecodeError::TooLong { .. }) => return Err(bad),
        Err(_) => return Err(HeadError::Incomplete),
    }
    Ok(CallHead {
        xid,
        program: start.program.get(),
        version: start.version.get(),
        procedure: start.procedure.get(),
        flavor: start.flavor.get(),
        credential_len,
        args_at: record.len() - d.rest().len(),
    })
}

/// Parses a credential.
///
/// # Errors
/// Why it is refused.
pub fn parse_auth(flavor: u32, body: &[u8]) -> Result<Auth, AuthRefusal> {
    match flavor {
        AUTH_NONE => Ok(Auth::None),
        AUTH_SYS => parse_sys(body).map_err(|_| AuthRefusal::BadCredential),
        _ => Err(AuthRefusal::Rejected),
    }
}

fn parse_sys(body: &[u8]) -> Result<Auth, DecodeError> {
    let mut d = Decoder::new(body);
    let _stamp = d.u32()?;
    let _machine = d.opaque(MACHINE_NAME_BYTES_MAX)?;
    let uid = Uid::new(d.u32()?);
    let gid = Gid::new(d.u32()?);
    let count = d.u32()?;
    if count > GROUPS_MAX {
        return Err(DecodeError::TooLong { len: count, max: GROUPS_MAX });
    }
    let mut groups = Vec::with_capacity(count as usize);
    for _ in 0..count {
        groups.push(Gid::new(d.u32()?));
    }
    d.finish()?;
    Ok(Auth::Sys { uid, gid, groups })
}

/// Appends a whole reply, mark included, that carries no result.
pub fn put_refusal(out: &mut Vec<u8>, xid: u32, why: Refusal) {
    let at = out.len();
    out.put_u32(0);
    out.put_u32(xid);
    out.put_u32(1);
    let accepted = |out: &mut Vec<u8>, status: u32| {
        out.put_u32(0);
        out.put_u64(0);
        out.put_u32(status);
    };
    match why {
        Refusal::RpcMismatch => {
            for word in [1, 0, RPC_VERSION, RPC_VERSION] {
                out.put_u32(word);
            }
        }
        Refusal::Auth(auth) => {
            for word in [1, 1, auth.wire()] {
                out.put_u32(word);
            }
        }
        Refusal::ProgramUnavailable => accepted(out, 1),
        Refusal::ProgramMismatch { low, high } => {
            accepted(out, 2);
            out.put_u32(low);
            out.put_u32(high);
        }
        Refusal::ProcedureUnavailable => accepted(out, 3),
        Refusal::GarbageArgs => accepted(out, 4),
        Refusal::SystemError => accepted(out, 5),
    }
    let len = out.len() - at - MARK_BYTES;
    patch_mark(&mut out[at..], len);
}

/// Writes the mark of a one-fragment record of `len` bytes at the start of `out`.
///
/// # Panics
/// When `len` does not fit a mark, or `out` is shorter than a mark.
#[inline]
pub fn patch_mark(out: &mut [u8], len: usize) {
    match u32::try_from(len) {
        Ok(len) if len < 1 << 31 => {
            out[..MARK_BYTES].copy_from_slice(&(len | 1 << 31).to_be_bytes());
        }
        _ => panic!("a reply of {len} bytes does not fit a record"),
    }
}

/// Builds the record of a call, mark included, with an AUTH_NONE verifier: for clients of ours.
pub fn put_call(out: &mut Vec<u8>, head: &CallHead, credential: &[u8], args: &[u8]) {
    let at = out.len();
    for word in [0, head.xid, 0, RPC_VERSION, head.program, head.version, head.procedure] {
        out.put_u32(word);
    }
    out.put_u32(head.flavor);
    out.put_opaque(credential);
    out.put_u64(0);
    out.extend_from_slice(args);
    let len = out.len() - at - MARK_BYTES;
    patch_mark(&mut out[at..], len);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> CallHead {
        CallHead {
            xid: 7,
            program: 100_003,
            version: 3,
            procedure: 1,
            flavor: AUTH_SYS,
            credential_len: 0,
            args_at: 0,
        }
    }

    fn sys(groups: u32) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u32(1);
        body.put_opaque(b"client");
        body.put_u32(1000);
        body.put_u32(100);
        body.put_u32(groups);
        (0..groups).for_each(|g| body.put_u32(g));
        body
    }

    #[test]
    fn a_call_is_parsed_in_place() {
        let mut out = Vec::new();
        put_call(&mut out, &head(), &sys(2), b"argsargs");
        let record = &out[MARK_BYTES..];
        let parsed = parse_head(record).unwrap();
        assert_eq!((parsed.xid, parsed.program, parsed.procedure), (7, 100_003, 1));
        assert_eq!(&record[parsed.args_at..], b"argsargs");
        let body = &record[CREDENTIAL_AT..CREDENTIAL_AT + parsed.credential_len];
        assert_eq!(
            parse_auth(parsed.flavor, body),
            Ok(Auth::Sys {
                uid: Uid::new(1000),
                gid: Gid::new(100),
                groups: vec![Gid::new(0), Gid::new(1)]
            })
        );
        for cut in 0..parsed.args_at {
            assert_eq!(parse_head(&record[..cut]), Err(HeadError::Incomplete), "cut at {cut}");
        }
    }

    #[test]
    fn sixteen_groups_pass_and_seventeen_do_not() {
        assert!(parse_auth(AUTH_SYS, &sys(16)).is_ok());
        assert_eq!(parse_auth(AUTH_SYS, &sys(17)), Err(AuthRefusal::BadCredential));
        assert_eq!(parse_auth(6, &[]), Err(AuthRefusal::Rejected));
    }

    #[test]
    fn refusals_are_laid_out_as_rfc_5531_says() {
        let words = |why| {
            let mut out = Vec::new();
            put_refusal(&mut out, 9, why);
            out.chunks(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]])).collect::<Vec<_>>()
        };
        let mark = |n: u32| n | 1 << 31;
        assert_eq!(words(Refusal::RpcMismatch), [mark(24), 9, 1, 1, 0, 2, 2]);
        assert_eq!(words(Refusal::Auth(AuthRefusal::Rejected)), [mark(20), 9, 1, 1, 1, 2]);
        assert_eq!(words(Refusal::ProgramUnavailable), [mark(24), 9, 1, 0, 0, 0, 1]);
        assert_eq!(
            words(Refusal::ProgramMismatch { low: 1, high: 3 }),
            [mark(32), 9, 1, 0, 0, 0, 2, 1, 3]
        );
        assert_eq!(words(Refusal::ProcedureUnavailable), [mark(24), 9, 1, 0, 0, 0, 3]);
        assert_eq!(words(Refusal::GarbageArgs), [mark(24), 9, 1, 0, 0, 0, 4]);
    }

    #[test]
    fn another_rpc_version_is_refused_with_its_xid() {
        let mut out = Vec::new();
        put_call(&mut out, &head(), &[], &[]);
        out[MARK_BYTES + 11] = 3;
        assert_eq!(
            parse_head(&out[MARK_BYTES..]),
            Err(HeadError::Refused { xid: 7, why: Refusal::RpcMismatch })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes: Vec<u8>, flavor in 0u32..3) {
            if let Ok(head) = parse_head(&bytes) {
                prop_assert!(head.args_at <= bytes.len());
            }
            drop(parse_auth(flavor, &bytes));
        }
    }
}
