//! The RPC programs on the NFS port: NFS version 3 and MOUNT versions 1 and 3.
//!
//! NFSACL (100227), which Linux clients probe, and everything else is answered PROG_UNAVAIL by
//! the same rule.

use std::sync::Arc;

use cairn_oncrpc::message::{Auth, Refusal};
use cairn_oncrpc::{Body, Call, Cost, Outcome, Plan, Replay, Service};
use cairn_op::{ClientAddr, Credential, Files, Op, OpCtx, ReadOnly, Submitted};
use cairn_sys::Payload;
use cairn_units::{Gid, Uid, VserverId};

use crate::mount::{self, MountList, MountProcedure};
use crate::procs::wire::{ArgsError, WireFailure};
use crate::procs::{Answer, Procedure};

/// Program number of NFS.
pub const NFS_PROGRAM: u32 = 100_003;
/// The version of NFS served.
pub const NFS_VERSION: u32 = 3;
/// Program number of MOUNT.
pub const MOUNT_PROGRAM: u32 = 100_005;
/// Who a call without credential comes from.
const NOBODY: u32 = 65_534;

/// Counters: the procedures of NFS, then those of MOUNT.
#[rustfmt::skip]
const METRICS: [&str; 28] = [
    "null", "getattr", "setattr", "lookup", "access", "readlink", "read", "write", "create",
    "mkdir", "symlink", "mknod", "remove", "rmdir", "rename", "link", "readdir", "readdirplus",
    "fsstat", "fsinfo", "pathconf", "commit",
    "mount_null", "mount_mnt", "mount_dump", "mount_umnt", "mount_umntall", "mount_export",
];
/// Where those of MOUNT begin.
const MOUNT_METRIC: u16 = 22;
/// No counter.
const NO_METRIC: u16 = u16::MAX;

/// NFS and MOUNT on top of [`Files`].
pub struct NfsService {
    files: Arc<dyn Files>,
    vserver: VserverId,
    mounts: Arc<MountList>,
}

impl NfsService {
    /// For clients of one virtual server.
    pub fn new(files: Arc<dyn Files>, vserver: VserverId) -> Self {
        Self { files, vserver, mounts: Arc::new(MountList::default()) }
    }

    fn ctx(&self, call: &Call<'_>) -> OpCtx {
        let cred = match call.auth {
            Auth::Sys { uid, gid, groups } => {
                Credential { uid: *uid, gid: *gid, groups: groups.clone() }
            }
            Auth::None => {
                Credential { uid: Uid::new(NOBODY), gid: Gid::new(NOBODY), groups: Vec::new() }
            }
        };
        OpCtx {
            vserver: self.vserver,
            cred,
            client: ClientAddr { ip: call.client.ip(), port: call.client.port() },
            op_no: call.op_no,
            deadline: None,
            read_only: ReadOnly::No,
        }
    }

    fn nfs(&self, call: &Call<'_>, payload: Option<Payload>, body: &mut Body) -> Outcome {
        if call.version != NFS_VERSION {
            return Outcome::Refused(Refusal::ProgramMismatch {
                low: NFS_VERSION,
                high: NFS_VERSION,
            });
        }
        if call.procedure == 0 {
            return Outcome::Done;
        }
        let Some(procedure) = Procedure::from_number(call.procedure) else {
            return Outcome::Refused(Refusal::ProcedureUnavailable);
        };
        match procedure.decode(call.args, payload) {
            Ok((op, answer)) => self.submit(call, op, answer, body),
            Err(ArgsError::Refused(stat)) => {
                procedure.encode_failure(&WireFailure::from(stat), body);
                Outcome::Done
            }
            Err(ArgsError::Garbage(error)) => {
                tracing::debug!(client = %call.client, ?procedure, "bad arguments: {error}");
                Outcome::Refused(Refusal::GarbageArgs)
            }
        }
    }

    #[inline]
    fn submit(
        &self,
        call: &Call<'_>,
        op: Op<cairn_op::FileHandle>,
        answer: Answer,
        body: &mut Body,
    ) -> Outcome {
        tracing::trace!(op = call.op_no.get(), name = op.name(), "nfs");
        match self.files.submit(self.ctx(call), op) {
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

    fn mount(&self, call: &Call<'_>, body: &mut Body) -> Outcome {
        if !matches!(call.version, 1 | 3) {
            return Outcome::Refused(Refusal::ProgramMismatch { low: 1, high: 3 });
        }
        match MountProcedure::from_number(call.procedure) {
            Some(procedure) => {
                let ctx = self.ctx(call);
                mount::call(procedure, call, ctx, (&self.files, &self.mounts), body)
            }
            None => Outcome::Refused(Refusal::ProcedureUnavailable),
        }
    }
}

impl Service for NfsService {
    const METRICS: &'static [&'static str] = &METRICS;

    #[inline]
    fn plan(&self, call: &Call<'_>) -> Plan {
        let cost = |reply_bytes, metric| Cost { reply_bytes, replay: Replay::Idempotent, metric };
        match call.program {
            NFS_PROGRAM if call.version == NFS_VERSION => {
                match Procedure::from_number(call.procedure) {
                    Some(procedure) => Plan {
                        cost: procedure.cost(call.args),
                        payload: procedure.payload(call.args),
                    },
                    None if call.procedure == 0 => Plan { cost: cost(64, 0), payload: None },
                    None => Plan { cost: cost(64, NO_METRIC), payload: None },
                }
            }
            MOUNT_PROGRAM => match MountProcedure::from_number(call.procedure) {
                Some(p) => Plan {
                    cost: cost(p.reply_bytes_max(), MOUNT_METRIC + p.index()),
                    payload: None,
                },
                None => Plan { cost: cost(64, NO_METRIC), payload: None },
            },
            _ => Plan { cost: cost(64, NO_METRIC), payload: None },
        }
    }

    #[inline]
    fn call(&self, call: &Call<'_>, payload: Option<Payload>, body: &mut Body) -> Outcome {
        match call.program {
            NFS_PROGRAM => self.nfs(call, payload, body),
            MOUNT_PROGRAM => self.mount(call, body),
            _ => Outcome::Refused(Refusal::ProgramUnavailable),
        }
    }
}
