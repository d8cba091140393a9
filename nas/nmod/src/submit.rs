//! One file operation on its way down and its answer on the way up.
//!
//! ```text
//! handle ─ open ─► object ─ routes ─► volume ─ policy ─► credential ─► DModule::file ─► reply
//!   └ BadHandle      └ Stale            └ AccessDenied, ReadOnlyFs            └ seal handles
//! ```

use std::sync::Arc;

use arc_swap::ArcSwap;
use cairn_cf::DModule;
use cairn_op::{
    AccessMask, ExportEntry, Failure, FileHandle, Files, ObjectRef, Op, OpCtx, OpResult, ReadOnly,
    Reply, Status, Submitted, Verifier,
};
use cairn_units::{Fsid, SnapId, VserverId};
use tracing::Instrument;

use crate::counters::{self, Counters, OpCount};
use crate::handle::HandleKey;
use crate::policy::{Access, Admission};
use crate::routes::{Routes, Volume};

/// Rights that no read-only export grants.
const WRITE_RIGHTS: u32 = AccessMask::MODIFY | AccessMask::EXTEND | AccessMask::DELETE;

/// The N-module of a node.
pub struct NModule {
    key: HandleKey,
    local: Arc<dyn DModule>,
    routes: ArcSwap<Routes>,
    counters: Counters,
}

/// Opens the handles of one operation and sees to it that all lie in one volume.
fn open_all(key: HandleKey, op: Op<FileHandle>) -> Result<(Op<ObjectRef>, ObjectRef), Status> {
    let mut first: Option<ObjectRef> = None;
    let op = op.try_map(|handle| {
        let obj = key.open(&handle).ok_or(Status::BadHandle)?;
        match first {
            None => first = Some(obj),
            Some(f) if (f.fsid, f.snap) != (obj.fsid, obj.snap) => return Err(Status::CrossVolume),
            Some(_) => {}
        }
        Ok(obj)
    })?;
    first.map(|obj| (op, obj)).ok_or(Status::ServerFault)
}

/// Applies the export policy: rewrites the context or refuses.
pub(crate) fn admit(volume: &Volume, ctx: &mut OpCtx) -> Result<(), Status> {
    if volume.vserver != ctx.vserver {
        return Err(Status::AccessDenied);
    }
    match volume.policy.admit(ctx.client) {
        Admission::Refused => Err(Status::AccessDenied),
        Admission::By(rule) => {
            rule.squash(&mut ctx.cred);
            if rule.access == Access::ReadOnly {
                ctx.read_only = ReadOnly::Yes;
            }
            Ok(())
        }
    }
}

fn finish(
    key: HandleKey,
    read_only: ReadOnly,
    result: OpResult<ObjectRef>,
) -> OpResult<FileHandle> {
    let reply = match result? {
        Reply::Access { granted, attrs } if read_only == ReadOnly::Yes => {
            Reply::Access { granted: AccessMask(granted.0 & !WRITE_RIGHTS), attrs }
        }
        reply => reply,
    };
    Ok(reply.map(|obj| key.seal(obj)))
}

impl NModule {
    /// An N-module without volumes; `local` is the node's own D-module (whose start gives the
    /// verifier).
    pub fn new(key: HandleKey, local: Arc<dyn DModule>) -> Self {
        let routes = ArcSwap::from_pointee(Routes::default());
        Self { key, local, routes, counters: Counters::default() }
    }

    /// Replaces the table of routes.
    pub fn push(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }

    /// The table of routes in force.
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.load_full()
    }

    /// Per operation: how many were submitted and refused here.
    pub fn counters(&self) -> Vec<(&'static str, OpCount)> {
        self.counters.snapshot()
    }

    /// Of the volume's root, for tests and the M-host.
    pub fn root_handle(&self, fsid: Fsid) -> Option<FileHandle> {
        self.routes.load().volume(fsid).map(|v| self.key.seal(v.root))
    }

    pub(crate) fn key(&self) -> HandleKey {
        self.key
    }

    fn start(
        &self,
        mut ctx: OpCtx,
        op: Op<FileHandle>,
    ) -> Result<Submitted<OpResult<FileHandle>>, Status> {
        let (op, obj) = open_all(self.key, op)?;
        let routes = self.routes.load();
        let volume = routes.volume(obj.fsid).ok_or_else(|| match routes.is_offline(obj.fsid) {
            true => Status::Delay,
            false => Status::Stale,
        })?;
        admit(volume, &mut ctx)?;
        if obj.snap != SnapId::new(0) {
            ctx.read_only = ReadOnly::Yes;
        }
        if ctx.read_only == ReadOnly::Yes && op.changes() {
            return Err(Status::ReadOnlyFs);
        }
        let (key, read_only) = (self.key, ctx.read_only);
        let span = tracing::debug_span!(
            "nmod", op_no = ctx.op_no.get(), op = op.name(), fsid = obj.fsid.get(),
            ino = obj.ino.get(), client = %ctx.client.ip
        );
        let entered = span.enter();
        let below = volume.dmodule.file(ctx, op);
        drop(entered);
        Ok(match below {
            Submitted::Pending(future) if !span.is_disabled() => {
                Submitted::Pending(Box::pin(future.instrument(span)))
            }
            below => below,
        }
        .map(move |result| finish(key, read_only, result)))
    }
}

impl Files for NModule {
    fn submit(&self, ctx: OpCtx, op: Op<FileHandle>) -> Submitted<OpResult<FileHandle>> {
        let index = counters::index(&op);
        self.counters.started(index);
        match self.start(ctx, op) {
            Ok(submitted) => submitted,
            Err(status) => {
                self.counters.refused(index);
                Submitted::Ready(Err(Failure::from(status)))
            }
        }
    }

    fn mount(&self, ctx: OpCtx, path: &[u8]) -> Submitted<Result<FileHandle, Status>> {
        self.mount_path(ctx, path)
    }

    fn exports(&self, vserver: VserverId) -> Vec<ExportEntry> {
        let routes = self.routes.load();
        routes
            .of_vserver(vserver)
            .map(|volume| ExportEntry {
                path: volume.junction.clone(),
                clients: volume
                    .policy
                    .rules()
                    .iter()
                    .filter(|r| r.access != Access::None)
                    .map(|r| r.clients.to_string())
                    .collect(),
            })
            .collect()
    }

    fn verifier(&self) -> Verifier {
        self.local.verifier()
    }
}
