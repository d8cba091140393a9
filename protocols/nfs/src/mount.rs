//! MOUNT versions 1 and 3 (RFC 1813, appendix I): paths to handles, and the list of mounts.
//!
//! The list is for people only (`showmount -a`); it is in memory and bounded. A version 1 handle
//! is 32 bytes on the wire, so version 1 gives out only handles of that length.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use cairn_oncrpc::message::{AUTH_SYS, Refusal};
use cairn_oncrpc::xdr::{Decoder, Put};
use cairn_oncrpc::{Body, Call, Outcome};
use cairn_op::{FileHandle, Files, OpCtx, Status, Submitted};
use cairn_sys::lock::{Guard, Mutex, Rank};

/// Longest path.
const PATH_BYTES_MAX: u32 = 1024;
/// Longest name of a client or group in a reply.
const NAME_BYTES_MAX: usize = 255;
/// Mounts that are remembered.
const MOUNTS_MAX: usize = 4096;
/// Most bytes of a DUMP or EXPORT reply.
const LIST_BYTES_MAX: usize = 512 << 10;
/// Handle of version 1.
const V1_HANDLE_BYTES: usize = 32;

/// A procedure of MOUNT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MountProcedure {
    /// Does nothing.
    Null,
    /// Opens an export.
    Mnt,
    /// Lists mounts.
    Dump,
    /// Forgets a mount.
    Umnt,
    /// Forgets all mounts of a client.
    UmntAll,
    /// Lists exports.
    Export,
}

impl MountProcedure {
    /// By number.
    pub(crate) const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Null,
            1 => Self::Mnt,
            2 => Self::Dump,
            3 => Self::Umnt,
            4 => Self::UmntAll,
            5 => Self::Export,
            _ => return None,
        })
    }
    /// Its number.
    pub(crate) const fn index(self) -> u16 {
        self as u16
    }
    /// Largest reply.
    pub(crate) const fn reply_bytes_max(self) -> u32 {
        match self {
            Self::Dump | Self::Export => 512 << 10,
            _ => 256,
        }
    }
}

/// Who has mounted what.
#[derive(Debug)]
pub(crate) struct MountList(Mutex<BTreeSet<(IpAddr, Vec<u8>)>>);

impl Default for MountList {
    fn default() -> Self {
        Self(Mutex::new(Rank::MountList, BTreeSet::new()))
    }
}

impl MountList {
    fn lock(&self) -> Guard<'_, BTreeSet<(IpAddr, Vec<u8>)>> {
        self.0.lock()
    }
    fn add(&self, client: IpAddr, path: Vec<u8>) {
        let mut list = self.lock();
        if list.len() < MOUNTS_MAX {
            list.insert((client, path));
        }
    }
}

/// Number of a status in a MOUNT reply (`mountstat3`).
fn mountstat(status: Status) -> u32 {
    match status {
        Status::NotOwner => 1,
        Status::NotFound | Status::Stale | Status::BadHandle => 2,
        Status::AccessDenied | Status::ReadOnlyFs => 13,
        Status::NotDirectory => 20,
        Status::Invalid => 22,
        Status::NameTooLong => 63,
        Status::NotSupported => 10_004,
        Status::ServerFault => 10_006,
        _ => 5,
    }
}

/// Makes a call.
pub(crate) fn call(
    procedure: MountProcedure,
    call: &Call<'_>,
    ctx: OpCtx,
    (files, mounts): (&Arc<dyn Files>, &Arc<MountList>),
    body: &mut Body,
) -> Outcome {
    let mut d = Decoder::new(call.args);
    match procedure {
        MountProcedure::Null => Outcome::Done,
        MountProcedure::Mnt => match d.opaque(PATH_BYTES_MAX) {
            Ok(path) => mnt(call, ctx, path, (files, mounts), body),
            Err(_) => Outcome::Refused(Refusal::GarbageArgs),
        },
        MountProcedure::Umnt => match d.opaque(PATH_BYTES_MAX) {
            Ok(path) => {
                mounts.lock().remove(&(call.client.ip(), path.to_vec()));
                Outcome::Done
            }
            Err(_) => Outcome::Refused(Refusal::GarbageArgs),
        },
        MountProcedure::UmntAll => {
            mounts.lock().retain(|(client, _)| *client != call.client.ip());
            Outcome::Done
        }
        MountProcedure::Dump => {
            put_list(&mut body.bytes, mounts.lock().iter(), |out, (client, path)| {
                out.put_opaque(client.to_string().as_bytes());
                out.put_opaque(path);
            });
            Outcome::Done
        }
        MountProcedure::Export => {
            put_list(&mut body.bytes, files.exports(ctx.vserver).iter(), |out, export| {
                out.put_opaque(&export.path);
                for client in &export.clients {
                    out.put_u32(1);
                    let name = client.as_bytes();
                    out.put_opaque(&name[..name.len().min(NAME_BYTES_MAX)]);
                }
                out.put_u32(0);
            });
            Outcome::Done
        }
    }
}

/// A list as XDR does it: 1 before each item, 0 behind the last. Items that would make the reply
/// too long are left out.
fn put_list<T>(
    out: &mut Vec<u8>,
    items: impl Iterator<Item = T>,
    mut put: impl FnMut(&mut Vec<u8>, T),
) {
    let end = out.len() + LIST_BYTES_MAX - 4;
    for item in items {
        let at = out.len();
        out.put_u32(1);
        put(out, item);
        if out.len() > end {
            out.truncate(at);
            break;
        }
    }
    out.put_u32(0);
}

fn mnt(
    call: &Call<'_>,
    ctx: OpCtx,
    path: &[u8],
    (files, mounts): (&Arc<dyn Files>, &Arc<MountList>),
    body: &mut Body,
) -> Outcome {
    let answer = MntAnswer {
        version: call.version,
        client: call.client.ip(),
        path: path.to_vec(),
        mounts: mounts.clone(),
    };
    match files.mount(ctx, path) {
        Submitted::Ready(result) => {
            answer.encode(result, body);
            Outcome::Done
        }
        Submitted::Pending(future) => Outcome::Pending(Box::pin(async move {
            let mut body = Body::default();
            answer.encode(future.await, &mut body);
            body
        })),
    }
}

struct MntAnswer {
    version: u32,
    client: IpAddr,
    path: Vec<u8>,
    mounts: Arc<MountList>,
}

impl MntAnswer {
    fn encode(self, result: Result<FileHandle, Status>, body: &mut Body) {
        let path = String::from_utf8_lossy(&self.path);
        let handle = match result {
            Ok(handle) if self.version == 1 && handle.as_bytes().len() != V1_HANDLE_BYTES => {
                tracing::info!(client = %self.client, %path, "mount refused: NFSv2 is not served");
                Err(Status::NotSupported)
            }
            other => other,
        };
        match handle {
            Err(status) => {
                tracing::info!(client = %self.client, %path, "mount refused: {status}");
                body.failed = true;
                body.bytes.put_u32(mountstat(status));
            }
            Ok(handle) => {
                body.bytes.put_u32(0);
                if self.version == 1 {
                    body.bytes.put_opaque_fixed(handle.as_bytes());
                } else {
                    body.bytes.put_opaque(handle.as_bytes());
                    body.bytes.put_u32(1);
                    body.bytes.put_u32(AUTH_SYS);
                }
                tracing::info!(client = %self.client, %path, "mounted");
                self.mounts.add(self.client, self.path);
            }
        }
    }
}
