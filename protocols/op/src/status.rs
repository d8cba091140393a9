//! Why an operation failed, in the product's own words; each protocol has one table to its wire.

/// Status of a failed operation. The comment names the POSIX error where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Status {
    /// EPERM: not the owner.
    #[error("not the owner")]
    NotOwner,
    /// ENOENT: no such name.
    #[error("no such file or directory")]
    NotFound,
    /// EIO: the data could not be read or written; nothing wrong was returned.
    #[error("input/output error")]
    Io,
    /// EACCES: permission denied.
    #[error("permission denied")]
    AccessDenied,
    /// EEXIST: the name is taken.
    #[error("name exists")]
    Exists,
    /// EXDEV: the two names are in different volumes.
    #[error("crosses volumes")]
    CrossVolume,
    /// ENOTDIR: not a directory.
    #[error("not a directory")]
    NotDirectory,
    /// EISDIR: a directory.
    #[error("is a directory")]
    IsDirectory,
    /// EINVAL: the arguments make no sense for this object.
    #[error("invalid argument")]
    Invalid,
    /// EFBIG: beyond the largest file.
    #[error("file too large")]
    FileTooBig,
    /// ENOSPC: no space left in the volume or the aggregate.
    #[error("no space left")]
    NoSpace,
    /// EROFS: the export or snapshot is read-only.
    #[error("read-only")]
    ReadOnlyFs,
    /// EMLINK: no more links to this file.
    #[error("too many links")]
    TooManyLinks,
    /// ENAMETOOLONG: the name has more than 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// ENOTEMPTY: the directory holds something.
    #[error("directory not empty")]
    NotEmpty,
    /// EDQUOT: quota exhausted.
    #[error("quota exceeded")]
    OverQuota,
    /// ESTALE: the file behind the handle is gone.
    #[error("stale file handle")]
    Stale,
    /// The handle is not one of ours, or was tampered with.
    #[error("bad file handle")]
    BadHandle,
    /// The guard of a SetAttr did not match.
    #[error("guard did not match")]
    NotSync,
    /// The cookie of a listing cannot be resumed.
    #[error("bad cookie")]
    BadCookie,
    /// Not supported by this object or server.
    #[error("not supported")]
    NotSupported,
    /// Try again later: a takeover, a move or a full log is under way.
    #[error("try again later")]
    Delay,
    /// The volume is owned by another node: look it up again.
    #[error("moved")]
    Moved,
    /// ENODATA: no such extended attribute.
    #[error("no such attribute")]
    NoXattr,
    /// E2BIG/ERANGE: extended attribute too large.
    #[error("attribute too large")]
    XattrTooBig,
    /// The node met a broken invariant or a failed log and serves no more.
    #[error("server fault")]
    ServerFault,
}
