//! The single internal stream of file operations.
//!
//! Layer: between protocol front ends and the N-module ([`Files`]); the cluster fabric carries the
//! same operations on to the D-module with the objects named differently. An operation is generic
//! in `R`, the way it names a file: a [`FileHandle`] above the N-module, an [`ObjectRef`] below.
//! What must not be here: wire formats of any protocol, anything on disk.
//!
//! # Rules that every implementation keeps
//! - Names are bytes: 1 to 255 of them, no `/`, no NUL; `.` and `..` mean what they say in lookups
//!   and are refused where something would be made, removed or renamed.
//! - Permission is decided below, in one place, from the credential in the context.
//! - `before` and `after` in a reply were taken inside the operation: nothing came between.
//! - A reply is given only after the operation is as durable as it says.

mod status;
mod types;

use cairn_sys::{BoxFuture, Payload};
use cairn_units::{Cookie, Fsid, Generation, InodeNo, MonoTime, OpNo, SnapId, VserverId};

pub use status::Status;
pub use types::*;

/// A file handle as clients hold it: opaque to protocols, made and read by the N-module.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileHandle {
    len: u8,
    bytes: [u8; FileHandle::BYTES_MAX],
}

impl FileHandle {
    /// Longest handle (NFSv3's limit).
    pub const BYTES_MAX: usize = 64;
    /// Wraps bytes that came from a client; `None` when there are too many.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut out = Self { len: u8::try_from(bytes.len()).ok()?, bytes: [0; Self::BYTES_MAX] };
        out.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(out)
    }
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl core::fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("FileHandle(")?;
        for b in self.as_bytes() {
            write!(f, "{b:02x}")?;
        }
        f.write_str(")")
    }
}

/// A file as the D-module names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Volume.
    pub fsid: Fsid,
    /// Snapshot, 0 for the active file system.
    pub snap: SnapId,
    /// Inode number.
    pub ino: InodeNo,
    /// Its generation: another one means that the file is gone.
    pub generation: Generation,
}

/// What goes with an operation through all layers.
#[derive(Clone, Debug)]
pub struct OpCtx {
    /// Virtual server that the client came through.
    pub vserver: VserverId,
    /// Who asks, after squashing below the N-module, as the client claims it above.
    pub cred: Credential,
    /// Where the client is, for export rules and the logs.
    pub client: ClientAddr,
    /// One number through all layers.
    pub op_no: OpNo,
    /// No answer is wanted after this moment.
    pub deadline: Option<MonoTime>,
    /// Attributes of the export that admitted the client (set by the N-module).
    pub read_only: ReadOnly,
}

/// Whether changes are refused with [`Status::ReadOnlyFs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadOnly {
    /// Changes pass.
    #[default]
    No,
    /// Changes are refused.
    Yes,
}

/// One file operation. Units: offsets and counts in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op<R> {
    /// Attributes.
    GetAttr { obj: R },
    /// Changes attributes; with `guard`, only while the change time is that.
    SetAttr { obj: R, set: SetAttrs, guard: Option<cairn_units::WallTime> },
    /// Finds `name` (also `.` and `..`) in `dir`.
    Lookup { dir: R, name: Name },
    /// Which of the rights in `want` the caller has.
    Access { obj: R, want: AccessMask },
    /// Target of a symbolic link.
    ReadLink { obj: R },
    /// Up to `count` bytes from `offset`.
    Read { obj: R, offset: u64, count: u32 },
    /// Writes `data` at `offset`; `data.skip() == offset % 4096`.
    Write { obj: R, offset: u64, data: Payload, stability: Stability },
    /// Makes a regular file (or opens the one there is, see [`CreateHow`]).
    Create { dir: R, name: Name, how: CreateHow },
    /// Makes a directory.
    MakeDir { dir: R, name: Name, set: SetAttrs },
    /// Makes a symbolic link.
    Symlink { dir: R, name: Name, target: LinkTarget, set: SetAttrs },
    /// Makes a special file.
    MakeNode { dir: R, name: Name, kind: NodeKind, set: SetAttrs },
    /// Removes a name that is not a directory.
    Remove { dir: R, name: Name },
    /// Removes an empty directory.
    RemoveDir { dir: R, name: Name },
    /// Renames, over an existing name if the kinds allow it.
    Rename { from_dir: R, from_name: Name, to_dir: R, to_name: Name },
    /// Gives `obj` another name.
    Link { obj: R, dir: R, name: Name },
    /// Lists `dir` from behind `cookie` (0: from the start, with `.` and `..`).
    ReadDir { dir: R, cookie: Cookie, limits: ListLimits },
    /// Space and limits of the volume.
    FsStat { obj: R },
    /// Makes unstable writes of this range stable (count 0: to the end).
    Commit { obj: R, offset: u64, count: u64 },
    /// Frees whole blocks of the range and zeroes the rest of it; the size stays.
    Punch { obj: R, offset: u64, count: u64 },
    /// Value of an extended attribute.
    GetXattr { obj: R, name: Name },
    /// Sets an extended attribute.
    SetXattr { obj: R, name: Name, value: Vec<u8>, how: XattrHow },
    /// Removes an extended attribute.
    RemoveXattr { obj: R, name: Name },
    /// Names of the extended attributes.
    ListXattr { obj: R },
}

/// What an operation answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<R> {
    /// GetAttr.
    Attrs(Attrs),
    /// SetAttr, Punch, SetXattr, RemoveXattr.
    Changed { before: Before, after: Attrs },
    /// Lookup.
    Found { obj: R, attrs: Attrs, dir: Attrs },
    /// Access.
    Access { granted: AccessMask, attrs: Attrs },
    /// ReadLink.
    LinkTarget { target: LinkTarget, attrs: Attrs },
    /// Read. Holes are zeros.
    Read { data: Payload, eof: bool, attrs: Attrs },
    /// Write. `stability` is what was reached, never less than asked.
    Written { count: u32, stability: Stability, verifier: Verifier, before: Before, after: Attrs },
    /// Create, MakeDir, Symlink, MakeNode.
    Made { obj: R, attrs: Attrs, dir_before: Before, dir_after: Attrs },
    /// Remove, RemoveDir.
    Removed { dir_before: Before, dir_after: Attrs },
    /// Rename.
    Renamed { from_before: Before, from_after: Attrs, to_before: Before, to_after: Attrs },
    /// Link.
    Linked { attrs: Attrs, dir_before: Before, dir_after: Attrs },
    /// ReadDir.
    Listing { entries: Vec<Entry<R>>, eof: bool, dir: Attrs },
    /// FsStat.
    FsStat { stat: FsStat, attrs: Attrs },
    /// Commit.
    Committed { verifier: Verifier, before: Before, after: Attrs },
    /// GetXattr.
    Xattr { value: Vec<u8> },
    /// ListXattr.
    XattrNames { names: Vec<Name> },
}

/// One directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<R> {
    /// Inode number.
    pub ino: InodeNo,
    /// Continue behind this entry with this cookie.
    pub cookie: Cookie,
    /// The exact bytes.
    pub name: Name,
    /// The file and its attributes, when they were asked for and could be had.
    pub file: Option<(R, Attrs)>,
}

/// An operation that failed, with the attributes that protocols report all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub status: Status,
    /// Attributes of the (first) object or directory, if it could be reached.
    pub attrs: Option<Attrs>,
    /// Of the second directory of a rename or the directory of a link.
    pub second: Option<Attrs>,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self { status, attrs: None, second: None }
    }
}

/// What a submitted operation becomes.
pub type OpResult<R> = Result<Reply<R>, Failure>;

/// A submitted operation: done already (everything was in memory), or still to be waited for.
#[must_use]
pub enum Submitted<T> {
    /// The answer.
    Ready(T),
    /// It will come. Dropping the future abandons the answer, not the operation.
    Pending(BoxFuture<T>),
}

impl<T: Send + 'static> Submitted<T> {
    /// The answer, waited for.
    pub async fn wait(self) -> T {
        match self {
            Submitted::Ready(done) => done,
            Submitted::Pending(future) => future.await,
        }
    }
    /// Applies `f` to the answer when it is there.
    pub fn map<U: Send + 'static>(self, f: impl FnOnce(T) -> U + Send + 'static) -> Submitted<U> {
        match self {
            Submitted::Ready(done) => Submitted::Ready(f(done)),
            Submitted::Pending(future) => {
                Submitted::Pending(Box::pin(async move { f(future.await) }))
            }
        }
    }
}

/// Protocols to N-module: the one interface that every protocol front end speaks.
pub trait Files: Send + Sync + 'static {
    /// Starts an operation. Runs to the end in the caller's task when nothing must be waited for.
    fn submit(&self, ctx: OpCtx, op: Op<FileHandle>) -> Submitted<OpResult<FileHandle>>;

    /// Opens the export at `path` (a volume's junction path, or a directory below one) for this
    /// client.
    fn mount(&self, ctx: OpCtx, path: &[u8]) -> Submitted<Result<FileHandle, Status>>;

    /// The exports this vserver has, with the clients each admits, for people.
    fn exports(&self, vserver: VserverId) -> Vec<ExportEntry>;

    /// Identity of this run of the server: changes whenever unstable writes may have been lost.
    fn verifier(&self) -> Verifier;
}

impl<R> Op<R> {
    /// A short fixed name for counters and traces.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::GetAttr { .. } => "getattr",
            Op::SetAttr { .. } => "setattr",
            Op::Lookup { .. } => "lookup",
            Op::Access { .. } => "access",
            Op::ReadLink { .. } => "readlink",
            Op::Read { .. } => "read",
            Op::Write { .. } => "write",
            Op::Create { .. } => "create",
            Op::MakeDir { .. } => "mkdir",
            Op::Symlink { .. } => "symlink",
            Op::MakeNode { .. } => "mknod",
            Op::Remove { .. } => "remove",
            Op::RemoveDir { .. } => "rmdir",
            Op::Rename { .. } => "rename",
            Op::Link { .. } => "link",
            Op::ReadDir { .. } => "readdir",
            Op::FsStat { .. } => "fsstat",
            Op::Commit { .. } => "commit",
            Op::Punch { .. } => "punch",
            Op::GetXattr { .. } => "getxattr",
            Op::SetXattr { .. } => "setxattr",
            Op::RemoveXattr { .. } => "removexattr",
            Op::ListXattr { .. } => "listxattr",
        }
    }
    /// Whether the operation changes anything (refused on a read-only export).
    pub const fn changes(&self) -> bool {
        !matches!(
            self,
            Op::GetAttr { .. }
                | Op::Lookup { .. }
                | Op::Access { .. }
                | Op::ReadLink { .. }
                | Op::Read { .. }
                | Op::ReadDir { .. }
                | Op::FsStat { .. }
                | Op::Commit { .. }
                | Op::GetXattr { .. }
                | Op::ListXattr { .. }
        )
    }
    /// Names the objects another way: `f` for each, the first error ends it.
    ///
    /// # Errors
    /// What `f` returned.
    #[rustfmt::skip]
    pub fn try_map<S, E>(self, mut f: impl FnMut(R) -> Result<S, E>) -> Result<Op<S>, E> {
        Ok(match self {
            Op::GetAttr { obj } => Op::GetAttr { obj: f(obj)? },
            Op::SetAttr { obj, set, guard } => Op::SetAttr { obj: f(obj)?, set, guard },
            Op::Lookup { dir, name } => Op::Lookup { dir: f(dir)?, name },
            Op::Access { obj, want } => Op::Access { obj: f(obj)?, want },
            Op::ReadLink { obj } => Op::ReadLink { obj: f(obj)? },
            Op::Read { obj, offset, count } => Op::Read { obj: f(obj)?, offset, count },
            Op::Write { obj, offset, data, stability } =>
                Op::Write { obj: f(obj)?, offset, data, stability },
            Op::Create { dir, name, how } => Op::Create { dir: f(dir)?, name, how },
            Op::MakeDir { dir, name, set } => Op::MakeDir { dir: f(dir)?, name, set },
            Op::Symlink { dir, name, target, set } =>
                Op::Symlink { dir: f(dir)?, name, target, set },
            Op::MakeNode { dir, name, kind, set } => Op::MakeNode { dir: f(dir)?, name, kind, set },
            Op::Remove { dir, name } => Op::Remove { dir: f(dir)?, name },
            Op::RemoveDir { dir, name } => Op::RemoveDir { dir: f(dir)?, name },
            Op::Rename { from_dir, from_name, to_dir, to_name } =>
                Op::Rename { from_dir: f(from_dir)?, from_name, to_dir: f(to_dir)?, to_name },
            Op::Link { obj, dir, name } => Op::Link { obj: f(obj)?, dir: f(dir)?, name },
            Op::ReadDir { dir, cookie, limits } => Op::ReadDir { dir: f(dir)?, cookie, limits },
            Op::FsStat { obj } => Op::FsStat { obj: f(obj)? },
            Op::Commit { obj, offset, count } => Op::Commit { obj: f(obj)?, offset, count },
            Op::Punch { obj, offset, count } => Op::Punch { obj: f(obj)?, offset, count },
            Op::GetXattr { obj, name } => Op::GetXattr { obj: f(obj)?, name },
            Op::SetXattr { obj, name, value, how } =>
                Op::SetXattr { obj: f(obj)?, name, value, how },
            Op::RemoveXattr { obj, name } => Op::RemoveXattr { obj: f(obj)?, name },
            Op::ListXattr { obj } => Op::ListXattr { obj: f(obj)? },
        })
    }
}

impl<R> Reply<R> {
    /// Names the objects another way.
    #[rustfmt::skip]
    pub fn map<S>(self, mut f: impl FnMut(R) -> S) -> Reply<S> {
        match self {
            Reply::Attrs(a) => Reply::Attrs(a),
            Reply::Changed { before, after } => Reply::Changed { before, after },
            Reply::Found { obj, attrs, dir } => Reply::Found { obj: f(obj), attrs, dir },
            Reply::Access { granted, attrs } => Reply::Access { granted, attrs },
            Reply::LinkTarget { target, attrs } => Reply::LinkTarget { target, attrs },
            Reply::Read { data, eof, attrs } => Reply::Read { data, eof, attrs },
            Reply::Written { count, stability, verifier, before, after } =>
                Reply::Written { count, stability, verifier, before, after },
            Reply::Made { obj, attrs, dir_before, dir_after } =>
                Reply::Made { obj: f(obj), attrs, dir_before, dir_after },
            Reply::Removed { dir_before, dir_after } => Reply::Removed { dir_before, dir_after },
            Reply::Renamed { from_before, from_after, to_before, to_after } =>
                Reply::Renamed { from_before, from_after, to_before, to_after },
            Reply::Linked { attrs, dir_before, dir_after } =>
                Reply::Linked { attrs, dir_before, dir_after },
            Reply::Listing { entries, eof, dir } => Reply::Listing {
                entries: entries.into_iter().map(|e| Entry {
                    ino: e.ino, cookie: e.cookie, name: e.name,
                    file: e.file.map(|(obj, attrs)| (f(obj), attrs)),
                }).collect(),
                eof, dir,
            },
            Reply::FsStat { stat, attrs } => Reply::FsStat { stat, attrs },
            Reply::Committed { verifier, before, after } =>
                Reply::Committed { verifier, before, after },
            Reply::Xattr { value } => Reply::Xattr { value },
            Reply::XattrNames { names } => Reply::XattrNames { names },
        }
    }
}
