//! MOUNT: from a path to the handle that a client starts with.
//!
//! The longest junction that is a prefix of the path names the volume; what is left is looked up
//! name by name with the server's own rights, as every server does it: a client that may use the
//! volume may start anywhere in it, and what it may do there is decided with each operation.
//! Symbolic links are not followed (they are the client's business), and `..` at the root of the
//! volume stays there.

use std::sync::Arc;

use bytes::Bytes;
use cairn_op::{
    Credential, FileHandle, FileKind, Name, ObjectRef, Op, OpCtx, Reply, Status, Submitted,
};

use crate::routes::Volume;
use crate::submit::{NModule, admit};

/// Longest path that MOUNT carries (RFC 1813).
const PATH_BYTES_MAX: usize = 1024;

async fn walk(
    volume: Arc<Volume>,
    mut ctx: OpCtx,
    names: Vec<Vec<u8>>,
) -> Result<ObjectRef, Status> {
    ctx.cred = Credential::root();
    let mut at = volume.root;
    for name in names {
        if name == b".." && at == volume.root {
            continue;
        }
        let name = Name::new(Bytes::from(name))?;
        let lookup = Op::Lookup { dir: at, name };
        match volume.dmodule.file(ctx.clone(), lookup).wait().await {
            Ok(Reply::Found { obj, attrs, .. }) if attrs.kind == FileKind::Directory => at = obj,
            Ok(Reply::Found { .. }) => return Err(Status::NotDirectory),
            Ok(_) => return Err(Status::ServerFault),
            Err(failure) => return Err(failure.status),
        }
    }
    Ok(at)
}

impl NModule {
    pub(crate) fn mount_path(
        &self,
        mut ctx: OpCtx,
        path: &[u8],
    ) -> Submitted<Result<FileHandle, Status>> {
        if path.len() > PATH_BYTES_MAX {
            return Submitted::Ready(Err(Status::NameTooLong));
        }
        if path.first() != Some(&b'/') || path.contains(&0) {
            return Submitted::Ready(Err(Status::NotFound));
        }
        let Some((volume, rest)) = self.routes().longest_prefix(ctx.vserver, path) else {
            return Submitted::Ready(Err(Status::NotFound));
        };
        if let Err(status) = admit(&volume, &mut ctx) {
            return Submitted::Ready(Err(status));
        }
        let key = self.key();
        if rest.is_empty() {
            return Submitted::Ready(Ok(key.seal(volume.root)));
        }
        Submitted::Pending(Box::pin(async move {
            walk(volume, ctx, rest).await.map(|obj| key.seal(obj))
        }))
    }
}
