//! Who may do what: the one place where the storage manager decides permission.
//!
//! Layer: message handlers. Pure: decides from mode bits, owner and credential alone.
//! Source: POSIX.1-2024; RFC 1813 section 4.4 for what an NFS server must let an owner do.

use cairn_op::{AccessMask, Credential, FileKind, SetAttrs, SetTime, Status};
use cairn_units::{Gid, Uid};

const SET_UID: u32 = 0o4000;
pub(crate) const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
pub(crate) const MODE_MASK: u32 = 0o7777;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Read = 4,
    Write = 2,
    Execute = 1,
}

/// An object as seen by a caller.
#[derive(Clone, Copy)]
pub(crate) struct Judge<'a> {
    pub cred: &'a Credential,
    pub kind: FileKind,
    pub mode: u32,
    pub uid: Uid,
    pub gid: Gid,
}

impl Judge<'_> {
    fn superuser(&self) -> bool {
        self.cred.uid.get() == 0
    }
    pub fn owns(&self) -> bool {
        self.superuser() || self.cred.uid == self.uid
    }
    pub fn may(&self, right: Right) -> bool {
        if self.superuser() {
            return right != Right::Execute
                || self.kind == FileKind::Directory
                || self.mode & 0o111 != 0;
        }
        let class = if self.cred.uid == self.uid {
            6
        } else if self.cred.in_group(self.gid) {
            3
        } else {
            0
        };
        (self.mode >> class) & right as u32 != 0
    }
    pub fn need(&self, right: Right) -> Result<(), Status> {
        if self.may(right) { Ok(()) } else { Err(Status::AccessDenied) }
    }
    /// READ: an open descriptor outlives a chmod, so the owner passes; a program that may be
    /// executed must be readable for the client that runs it.
    pub fn need_read_data(&self) -> Result<(), Status> {
        if self.owns() || self.may(Right::Execute) { Ok(()) } else { self.need(Right::Read) }
    }
    /// WRITE: an open descriptor outlives a chmod, so the owner passes (mode 0444 included).
    pub fn need_write_data(&self) -> Result<(), Status> {
        if self.owns() { Ok(()) } else { self.need(Right::Write) }
    }
    /// Taking an entry out of this directory.
    pub fn need_take(&self, entry_owner: Uid) -> Result<(), Status> {
        self.need(Right::Write)?;
        let free = self.mode & STICKY == 0 || self.owns() || self.cred.uid == entry_owner;
        if free { Ok(()) } else { Err(Status::NotOwner) }
    }
    pub fn access(&self, want: AccessMask) -> AccessMask {
        let dir = self.kind == FileKind::Directory;
        let mut mask = 0;
        if self.may(Right::Read) {
            mask |= AccessMask::READ;
        }
        if self.may(Right::Write) {
            mask |= AccessMask::MODIFY | AccessMask::EXTEND;
            mask |= if dir { AccessMask::DELETE } else { 0 };
        }
        if self.may(Right::Execute) {
            mask |= if dir { AccessMask::LOOKUP } else { AccessMask::EXECUTE };
        }
        AccessMask(mask & want.0)
    }
    pub fn need_set(&self, set: &SetAttrs) -> Result<(), Status> {
        let owner_only = set.mode.is_some()
            || set.uid.is_some()
            || matches!(set.atime, SetTime::To(_))
            || matches!(set.mtime, SetTime::To(_));
        if owner_only && !self.owns() {
            return Err(Status::NotOwner);
        }
        if !self.superuser() && set.uid.is_some_and(|uid| uid != self.uid) {
            return Err(Status::NotOwner);
        }
        if let Some(gid) = set.gid
            && !self.superuser()
            && !(self.owns() && (gid == self.gid || self.cred.in_group(gid)))
        {
            return Err(Status::NotOwner);
        }
        let now = set.atime == SetTime::Now || set.mtime == SetTime::Now;
        if now && !self.owns() {
            self.need(Right::Write)?;
        }
        if set.size.is_some() {
            self.need_write_data()?;
        }
        Ok(())
    }
    /// The mode that a chmod to `mode` gives an object of group `gid`.
    pub fn chmod(&self, mode: u32, gid: Gid) -> u32 {
        let mode = mode & MODE_MASK;
        if self.superuser() || self.cred.in_group(gid) { mode } else { mode & !SET_GID }
    }
}

/// The mode after owner or group were set.
pub(crate) fn mode_after_chown(kind: FileKind, mode: u32) -> u32 {
    if kind == FileKind::Directory { mode } else { without_set_id(mode) }
}

/// The mode after a caller changed data.
pub(crate) fn mode_after_write(cred: &Credential, mode: u32) -> u32 {
    if cred.uid.get() == 0 { mode } else { without_set_id(mode) }
}

fn without_set_id(mode: u32) -> u32 {
    let mode = mode & !SET_UID;
    // Set-gid without group execute means mandatory locking, and stays.
    if mode & 0o010 == 0 { mode } else { mode & !SET_GID }
}
