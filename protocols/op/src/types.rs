//! Values inside operations.

use core::fmt;
use std::net::IpAddr;

use bytes::Bytes;
use cairn_units::{
    Fsid, Gid, InodeNo, LINK_TARGET_BYTES_MAX, NAME_BYTES_MAX, ObjectId, Uid, WallTime,
};

/// A file name: 1 to 255 bytes, no `/`, no NUL. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Bytes);

impl Name {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// `NameTooLong`; `Invalid` for an empty name or one with `/` or NUL.
    pub fn new(bytes: Bytes) -> Result<Self, crate::Status> {
        if bytes.len() > NAME_BYTES_MAX {
            return Err(crate::Status::NameTooLong);
        }
        // Without an early end, so that many bytes are compared at once.
        let forbidden = bytes.iter().fold(false, |bad, b| bad | matches!(b, b'/' | 0));
        if bytes.is_empty() || forbidden {
            return Err(crate::Status::Invalid);
        }
        Ok(Self(bytes))
    }
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    /// `.` or `..`.
    pub fn is_dot_or_dotdot(&self) -> bool {
        matches!(&self.0[..], b"." | b"..")
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// Target of a symbolic link: 1 to 4096 bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkTarget(Bytes);

impl LinkTarget {
    /// Checks and wraps a target.
    ///
    /// # Errors
    /// `Invalid` when empty or with NUL, `NameTooLong` over 4096 bytes.
    pub fn new(bytes: Bytes) -> Result<Self, crate::Status> {
        if bytes.len() > LINK_TARGET_BYTES_MAX {
            return Err(crate::Status::NameTooLong);
        }
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(crate::Status::Invalid);
        }
        Ok(Self(bytes))
    }
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Groups that go with a credential beside the primary one (AUTH_SYS has room for 16).
pub const GROUPS_MAX: usize = 16;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// User.
    pub uid: Uid,
    /// Primary group.
    pub gid: Gid,
    /// Further groups, at most [`GROUPS_MAX`].
    pub groups: Vec<Gid>,
}

impl Credential {
    /// The superuser.
    pub fn root() -> Self {
        Self { uid: Uid::new(0), gid: Gid::new(0), groups: Vec::new() }
    }
    /// Whether `gid` is one of the caller's groups.
    pub fn in_group(&self, gid: Gid) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// Address a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientAddr {
    /// Address.
    pub ip: IpAddr,
    /// Port; below 1024 is "privileged".
    pub port: u16,
}

/// Kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Block device.
    BlockDevice,
    /// Character device.
    CharDevice,
    /// FIFO.
    Fifo,
    /// Socket.
    Socket,
}

/// Device number of a special file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceNo {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
}

/// What `MakeNode` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Block device.
    BlockDevice(DeviceNo),
    /// Character device.
    CharDevice(DeviceNo),
    /// FIFO.
    Fifo,
    /// Socket.
    Socket,
}

/// Attributes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attrs {
    /// Kind.
    pub kind: FileKind,
    /// Permission bits with set-uid, set-gid and sticky (`0o7777`).
    pub mode: u32,
    /// Names.
    pub links: u32,
    /// Owner.
    pub uid: Uid,
    /// Group.
    pub gid: Gid,
    /// Size in bytes.
    pub size: u64,
    /// Bytes of space used.
    pub used: u64,
    /// Device number of a special file.
    pub device: DeviceNo,
    /// Volume.
    pub fsid: Fsid,
    /// Inode number.
    pub ino: InodeNo,
    /// Last read (relative: moved only when it lies before the last change, or a day ago).
    pub atime: WallTime,
    /// Last change of data.
    pub mtime: WallTime,
    /// Last change of anything.
    pub ctime: WallTime,
    /// Birth.
    pub birth: WallTime,
    /// Counts every change; never goes back, survives a restart.
    pub change: u64,
    /// Global object id.
    pub object: ObjectId,
}

/// Attributes before a change (what weak cache consistency needs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// Size in bytes.
    pub size: u64,
    /// Last change of data.
    pub mtime: WallTime,
    /// Last change of anything.
    pub ctime: WallTime,
    /// Change counter.
    pub change: u64,
}

impl Attrs {
    /// The part that is reported as "before".
    pub fn as_before(&self) -> Before {
        Before { size: self.size, mtime: self.mtime, ctime: self.ctime, change: self.change }
    }
}

/// How to set a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    #[default]
    Keep,
    /// The server's clock.
    Now,
    /// This time.
    To(WallTime),
}

/// Attributes to set; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttrs {
    /// Permission bits (`0o7777`).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<Uid>,
    /// Group.
    pub gid: Option<Gid>,
    /// Size: cuts off or extends with a hole.
    pub size: Option<u64>,
    /// Last read.
    pub atime: SetTime,
    /// Last change of data.
    pub mtime: SetTime,
}

/// How a regular file is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateHow {
    /// An existing regular file is opened, and truncated if `set.size` says so.
    Unchecked(SetAttrs),
    /// An existing name is an error.
    Guarded(SetAttrs),
    /// The same verifier again finds the file that the first try made.
    Exclusive(Verifier),
}

/// How an extended attribute is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrHow {
    /// Make or replace.
    Either,
    /// An existing one is an error.
    Create,
    /// A missing one is an error.
    Replace,
}

/// Opaque verifier (of a boot or of an exclusive create).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Verifier(pub [u8; 8]);

/// How durable a write is to be, or was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stability {
    /// In memory; a commit makes it stable.
    Unstable,
    /// Data and what is needed to read it are stable.
    DataSync,
    /// Everything is stable.
    FileSync,
}

/// Rights asked for or granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessMask(pub u32);

impl AccessMask {
    /// Read data or list.
    pub const READ: u32 = 0x01;
    /// Look names up.
    pub const LOOKUP: u32 = 0x02;
    /// Change existing data or entries.
    pub const MODIFY: u32 = 0x04;
    /// Add data or entries.
    pub const EXTEND: u32 = 0x08;
    /// Delete entries.
    pub const DELETE: u32 = 0x10;
    /// Execute.
    pub const EXECUTE: u32 = 0x20;
}

/// How much of a listing to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListLimits {
    /// Entries at the most.
    pub entries_max: u32,
    /// Bytes at the most: each entry counts `entry_bytes` plus its name rounded up to 4.
    pub bytes_max: u32,
    /// Fixed bytes an entry costs in the caller's protocol.
    pub entry_bytes: u32,
    /// Whether handles and attributes are wanted.
    pub with_files: WithFiles,
}

/// Whether a listing carries handles and attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithFiles {
    /// Names only.
    No,
    /// With handles and attributes.
    Yes,
}

/// Space and limits of a volume, in bytes and files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsStat {
    /// Size.
    pub total_bytes: u64,
    /// Free.
    pub free_bytes: u64,
    /// Free for this caller.
    pub available_bytes: u64,
    /// Files there may be.
    pub total_files: u64,
    /// Files that may still be made.
    pub free_files: u64,
}

/// One export, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportEntry {
    /// Path to mount.
    pub path: Vec<u8>,
    /// Clients admitted, as text (addresses and subnets).
    pub clients: Vec<String>,
}
