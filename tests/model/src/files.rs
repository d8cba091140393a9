//! Any D-module as `Files`, without a node around it.
//!
//! Layer: tests of protocol front ends. A handle is the packed [`ObjectRef`]; every volume is
//! exported as `/NAME` to everybody, read-write, without squashing.

use std::sync::Arc;

use bytes::Bytes;
use cairn_cf::{DModule, Manage, ManageError, Managed};
use cairn_op::{
    ExportEntry, Failure, FileHandle, FileKind, Files, Name, ObjectRef, Op, OpCtx, OpResult, Reply,
    Status, Submitted, Verifier,
};
use cairn_sys::World;
use cairn_units::{Fsid, Generation, InodeNo, SnapId, VserverId};

use crate::ModelNode;

const HANDLE_BYTES: usize = 24;

/// `Files` straight on top of a D-module.
pub struct DirectFiles {
    node: Arc<dyn DModule>,
    volumes: Vec<(String, Fsid)>,
}

impl DirectFiles {
    /// Exports the named volumes of `node`.
    pub fn new(node: Arc<dyn DModule>, volumes: Vec<(String, Fsid)>) -> Self {
        Self { node, volumes }
    }

    /// A fresh model with one volume `vol0` of `size_bytes`, and `Files` on top of it.
    ///
    /// # Errors
    /// What the model answered.
    pub async fn on_model(
        world: World,
        size_bytes: u64,
    ) -> Result<(Arc<ModelNode>, Self), ManageError> {
        let node = Arc::new(ModelNode::new(world));
        let (fsid, name) = (Fsid::new(1), "vol0".to_owned());
        node.manage(Manage::VolumeCreate { fsid, name: name.clone(), size_bytes }).await?;
        let files = Self::new(node.clone(), vec![(name, fsid)]);
        Ok((node, files))
    }

    /// The handle of an object.
    pub fn pack(obj: &ObjectRef) -> FileHandle {
        let mut bytes = [0; HANDLE_BYTES];
        bytes[..8].copy_from_slice(&obj.fsid.get().to_le_bytes());
        bytes[8..16].copy_from_slice(&obj.ino.get().to_le_bytes());
        bytes[16..20].copy_from_slice(&obj.snap.get().to_le_bytes());
        bytes[20..].copy_from_slice(&obj.generation.get().to_le_bytes());
        match FileHandle::from_bytes(&bytes) {
            Some(handle) => handle,
            None => unreachable!("24 bytes fit a handle"),
        }
    }

    /// The object of a handle.
    ///
    /// # Errors
    /// `BadHandle` for a handle of another length.
    pub fn unpack(handle: &FileHandle) -> Result<ObjectRef, Status> {
        let bytes: &[u8; HANDLE_BYTES] =
            handle.as_bytes().try_into().map_err(|_| Status::BadHandle)?;
        let word = |at: usize| {
            let mut out = [0; 8];
            out.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(out)
        };
        let half = |at: usize| {
            let mut out = [0; 4];
            out.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(out)
        };
        Ok(ObjectRef {
            fsid: Fsid::new(word(0)),
            ino: InodeNo::new(word(8)),
            snap: SnapId::new(half(16)),
            generation: Generation::new(half(20)),
        })
    }
}

/// Walks from the root of the volume that `path` names.
async fn walk(
    node: Arc<dyn DModule>,
    ctx: OpCtx,
    fsid: Fsid,
    below: Vec<Name>,
) -> Result<FileHandle, Status> {
    let root = node.manage(Manage::VolumeRoot { fsid }).await;
    let Ok(Managed::Root(mut obj)) = root else { return Err(Status::NotFound) };
    for name in below {
        let found = node.file(ctx.clone(), Op::Lookup { dir: obj, name }).wait().await;
        match found.map_err(|failure| failure.status)? {
            Reply::Found { obj: next, attrs, .. } if attrs.kind == FileKind::Directory => {
                obj = next;
            }
            _ => return Err(Status::NotDirectory),
        }
    }
    Ok(DirectFiles::pack(&obj))
}

impl Files for DirectFiles {
    fn submit(&self, ctx: OpCtx, op: Op<FileHandle>) -> Submitted<OpResult<FileHandle>> {
        match op.try_map(|handle| Self::unpack(&handle)) {
            Ok(op) => {
                self.node.file(ctx, op).map(|done| done.map(|reply| reply.map(|o| Self::pack(&o))))
            }
            Err(status) => Submitted::Ready(Err(Failure::from(status))),
        }
    }

    fn mount(&self, ctx: OpCtx, path: &[u8]) -> Submitted<Result<FileHandle, Status>> {
        let mut parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty());
        let volume = parts.next().unwrap_or_default();
        let fsid = self.volumes.iter().find(|(name, _)| name.as_bytes() == volume).map(|v| v.1);
        let below: Result<Vec<Name>, Status> =
            parts.map(|part| Name::new(Bytes::copy_from_slice(part))).collect();
        match (fsid, below) {
            (Some(fsid), Ok(below)) => {
                Submitted::Pending(Box::pin(walk(self.node.clone(), ctx, fsid, below)))
            }
            (None, _) => Submitted::Ready(Err(Status::NotFound)),
            (_, Err(status)) => Submitted::Ready(Err(status)),
        }
    }

    fn exports(&self, _vserver: VserverId) -> Vec<ExportEntry> {
        let entry = |(name, _): &(String, Fsid)| ExportEntry {
            path: format!("/{name}").into_bytes(),
            clients: Vec::new(),
        };
        self.volumes.iter().map(entry).collect()
    }

    fn verifier(&self) -> Verifier {
        self.node.verifier()
    }
}
