//! The procedures of NFSv3: arguments to operations, results to bytes.
//!
//! Layer: between the RPC server and `cairn_op::Files`. Pure: bytes in, [`Op`] out; [`OpResult`]
//! in, bytes out. Source: RFC 1813.

mod create;
mod fsstat;
mod getattr;
mod lookup;
mod read;
mod readdir;
mod remove;
mod setattr;
pub mod wire;
mod write;

use cairn_oncrpc::xdr::{Decoder, Put};
use cairn_oncrpc::{Body, Cost, PayloadPlan, Replay};
use cairn_op::{FileHandle, Op, OpResult, Reply, WithFiles};
use cairn_sys::Payload;

use crate::config::{IO_BYTES_MAX, LISTING_BYTES_MAX};
use readdir::Allowed;
use wire::{ArgsError, Nfsstat, WireFailure, put_post_op, put_wcc_failed};

/// A procedure of NFSv3 that asks for something (all but NULL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names of RFC 1813")]
pub enum Procedure {
    GetAttr = 1,
    SetAttr,
    Lookup,
    Access,
    ReadLink,
    Read,
    Write,
    Create,
    MkDir,
    Symlink,
    MkNod,
    Remove,
    RmDir,
    Rename,
    Link,
    ReadDir,
    ReadDirPlus,
    FsStat,
    FsInfo,
    PathConf,
    Commit,
}

impl Procedure {
    /// All of them, in order of their numbers.
    #[rustfmt::skip]
    pub const ALL: [Self; 21] = [
        Self::GetAttr, Self::SetAttr, Self::Lookup, Self::Access, Self::ReadLink, Self::Read,
        Self::Write, Self::Create, Self::MkDir, Self::Symlink, Self::MkNod, Self::Remove,
        Self::RmDir, Self::Rename, Self::Link, Self::ReadDir, Self::ReadDirPlus, Self::FsStat,
        Self::FsInfo, Self::PathConf, Self::Commit,
    ];

    /// By number; `None` for NULL and for numbers that are none.
    #[inline]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number.checked_sub(1)?).ok()?).copied()
    }

    /// What a call may cost.
    #[inline]
    pub fn cost(self, args: &[u8]) -> Cost {
        let reply_bytes = match self {
            Self::Read => match read::decode(&mut Decoder::new(args)) {
                Ok(Op::Read { count, .. }) => count,
                _ => IO_BYTES_MAX,
            },
            Self::ReadLink => 8192,
            Self::ReadDir | Self::ReadDirPlus => LISTING_BYTES_MAX,
            _ => 512,
        };
        let replay = match self {
            Self::SetAttr
            | Self::Write
            | Self::Create
            | Self::MkDir
            | Self::Symlink
            | Self::MkNod
            | Self::Remove
            | Self::RmDir
            | Self::Rename
            | Self::Link => Replay::Once,
            _ => Replay::Idempotent,
        };
        Cost { reply_bytes, replay, metric: self as u16 }
    }

    /// Where a call's payload is, if it has one.
    #[inline]
    pub fn payload(self, args: &[u8]) -> Option<PayloadPlan> {
        if self == Self::Write { write::payload(args) } else { None }
    }

    /// The operation that a call asks for.
    ///
    /// # Errors
    /// See [`ArgsError`].
    #[inline]
    pub fn decode(
        self,
        args: &[u8],
        payload: Option<Payload>,
    ) -> Result<(Op<FileHandle>, Answer), ArgsError> {
        let mut decoder = Decoder::new(args);
        let d = &mut decoder;
        let mut allowed = None;
        let op = match self {
            Self::GetAttr | Self::FsInfo | Self::PathConf => getattr::decode(d)?,
            Self::SetAttr => setattr::decode(d)?,
            Self::Lookup => lookup::decode(d)?,
            Self::Access => getattr::decode_access(d)?,
            Self::ReadLink => getattr::decode_readlink(d)?,
            Self::Read => read::decode(d)?,
            Self::Write => write::decode(d, payload)?,
            Self::Create => create::decode(d)?,
            Self::MkDir => create::decode_mkdir(d)?,
            Self::Symlink => create::decode_symlink(d)?,
            Self::MkNod => create::decode_mknod(d)?,
            Self::Remove => remove::decode(d)?,
            Self::RmDir => remove::decode_rmdir(d)?,
            Self::Rename => remove::decode_rename(d)?,
            Self::Link => remove::decode_link(d)?,
            Self::ReadDir | Self::ReadDirPlus => {
                let files = if self == Self::ReadDir { WithFiles::No } else { WithFiles::Yes };
                let (op, what) = readdir::decode(d, files)?;
                allowed = Some(what);
                op
            }
            Self::FsStat => fsstat::decode(d)?,
            Self::Commit => write::decode_commit(d)?,
        };
        decoder.finish()?;
        Ok((op, Answer { procedure: self, allowed }))
    }

    /// Writes the result of a call that failed.
    pub fn encode_failure(self, failure: &WireFailure, body: &mut Body) {
        body.failed = true;
        let out = &mut body.bytes;
        out.put_u32(failure.stat.0);
        let (first, second) = (failure.attrs.as_ref(), failure.second.as_ref());
        match self {
            Self::GetAttr => {}
            Self::Lookup
            | Self::Access
            | Self::ReadLink
            | Self::Read
            | Self::ReadDir
            | Self::ReadDirPlus
            | Self::FsStat
            | Self::FsInfo
            | Self::PathConf => put_post_op(out, first),
            Self::SetAttr
            | Self::Write
            | Self::Create
            | Self::MkDir
            | Self::Symlink
            | Self::MkNod
            | Self::Remove
            | Self::RmDir
            | Self::Commit => put_wcc_failed(out, first),
            Self::Rename => {
                put_wcc_failed(out, first);
                put_wcc_failed(out, second);
            }
            Self::Link => {
                put_post_op(out, first);
                put_wcc_failed(out, second);
            }
        }
    }
}

/// What must be known of a call to encode its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    procedure: Procedure,
    allowed: Option<Allowed>,
}

impl Answer {
    /// Writes the result of the operation.
    #[inline]
    pub fn encode(self, result: OpResult<FileHandle>, body: &mut Body) {
        let stat = match result {
            Ok(reply) => match self.encode_ok(reply, body) {
                Ok(()) => return,
                Err(stat) => stat,
            },
            Err(failure) => return self.procedure.encode_failure(&failure.into(), body),
        };
        self.procedure.encode_failure(&stat.into(), body);
    }

    fn encode_ok(self, reply: Reply<FileHandle>, body: &mut Body) -> Result<(), Nfsstat> {
        use Procedure as P;
        match (self.procedure, reply) {
            (P::GetAttr, Reply::Attrs(attrs)) => getattr::encode(body, &attrs),
            (P::FsInfo, Reply::Attrs(attrs)) => fsstat::encode_fsinfo(body, &attrs),
            (P::PathConf, Reply::Attrs(attrs)) => fsstat::encode_pathconf(body, &attrs),
            (P::SetAttr, Reply::Changed { before, after }) => {
                setattr::encode(body, &before, &after);
            }
            (P::Lookup, Reply::Found { obj, attrs, dir }) => {
                lookup::encode(body, &obj, &attrs, &dir);
            }
            (P::Access, Reply::Access { granted, attrs }) => {
                getattr::encode_access(body, granted, &attrs);
            }
            (P::ReadLink, Reply::LinkTarget { target, attrs }) => {
                getattr::encode_readlink(body, &target, &attrs);
            }
            (P::Read, Reply::Read { data, eof, attrs }) => read::encode(body, data, eof, &attrs),
            (P::Write, Reply::Written { count, stability, verifier, before, after }) => {
                let (before, after) = (&before, &after);
                let written = write::Written { count, stability, verifier, before, after };
                write::encode(body, &written);
            }
            (
                P::Create | P::MkDir | P::Symlink | P::MkNod,
                Reply::Made { obj, attrs, dir_before, dir_after },
            ) => create::encode(body, &obj, &attrs, (&dir_before, &dir_after)),
            (P::Remove | P::RmDir, Reply::Removed { dir_before, dir_after }) => {
                remove::encode(body, &dir_before, &dir_after);
            }
            (P::Rename, Reply::Renamed { from_before, from_after, to_before, to_after }) => {
                let (from, to) = ((&from_before, &from_after), (&to_before, &to_after));
                remove::encode_rename(body, from, to);
            }
            (P::Link, Reply::Linked { attrs, dir_before, dir_after }) => {
                remove::encode_link(body, &attrs, (&dir_before, &dir_after));
            }
            (P::ReadDir | P::ReadDirPlus, Reply::Listing { entries, eof, dir }) => {
                let Some(allowed) = self.allowed else { return Err(Nfsstat::SERVER_FAULT) };
                return readdir::encode(body, &entries, eof, &dir, allowed);
            }
            (P::FsStat, Reply::FsStat { stat, attrs }) => fsstat::encode(body, &stat, &attrs),
            (P::Commit, Reply::Committed { verifier, before, after }) => {
                write::encode_commit(body, verifier, &before, &after);
            }
            (procedure, _) => {
                tracing::error!(?procedure, "the answer is not one to this procedure");
                return Err(Nfsstat::SERVER_FAULT);
            }
        }
        Ok(())
    }
}
