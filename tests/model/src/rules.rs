//! Who may do what: the decisions, free of any state.
//!
//! Layer: bottom of the model. Source: POSIX.1-2024, RFC 1813 §4.4, and what the Linux server
//! does where these leave a choice.

use cairn_op::{AccessMask, Credential, FileKind, SetAttrs, SetTime, Status};
use cairn_units::Gid;

/// Set-user-id bit.
pub const SET_UID: u32 = 0o4000;
/// Set-group-id bit.
pub const SET_GID: u32 = 0o2000;
/// Sticky bit.
pub const STICKY: u32 = 0o1000;
/// All bits of a mode.
pub const MODE_MASK: u32 = 0o7777;

/// What is to be done with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Read data, list names.
    Read,
    /// Write data, change names.
    Write,
    /// Execute, look names up.
    Execute,
}

/// The part of an inode that decisions need.
#[derive(Clone, Copy, Debug)]
pub struct Guarded<'a> {
    /// Kind.
    pub kind: FileKind,
    /// Mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: cairn_units::Uid,
    /// Group.
    pub gid: Gid,
    /// Who asks.
    pub cred: &'a Credential,
}

impl Guarded<'_> {
    /// The superuser.
    pub fn is_root(&self) -> bool {
        self.cred.uid.get() == 0
    }
    /// Owner or superuser.
    pub fn is_owner(&self) -> bool {
        self.is_root() || self.cred.uid == self.uid
    }
    /// Whether the mode bits allow it: owner bits for the owner, else group bits for the group,
    /// else the rest. The superuser may all, but executes only what somebody may execute.
    pub fn allows(&self, want: Want) -> bool {
        let bit = match want {
            Want::Read => 4,
            Want::Write => 2,
            Want::Execute => 1,
        };
        if self.is_root() {
            let any_execute = self.mode & 0o111 != 0;
            return want != Want::Execute || self.kind == FileKind::Directory || any_execute;
        }
        let shift = if self.cred.uid == self.uid {
            6
        } else if self.cred.in_group(self.gid) {
            3
        } else {
            0
        };
        (self.mode >> shift) & bit != 0
    }
    /// `allows`, as a result.
    ///
    /// # Errors
    /// `AccessDenied`.
    pub fn check(&self, want: Want) -> Result<(), Status> {
        if self.allows(want) { Ok(()) } else { Err(Status::AccessDenied) }
    }
    /// READ: the owner may read through an open descriptor whatever the mode says now, and a
    /// client must read a program to execute it.
    ///
    /// # Errors
    /// `AccessDenied`.
    pub fn check_read_data(&self) -> Result<(), Status> {
        if self.is_owner() || self.allows(Want::Execute) {
            return Ok(());
        }
        self.check(Want::Read)
    }
    /// WRITE and truncation: the owner may write through an open descriptor whatever the mode
    /// says now.
    ///
    /// # Errors
    /// `AccessDenied`.
    pub fn check_write_data(&self) -> Result<(), Status> {
        if self.is_owner() { Ok(()) } else { self.check(Want::Write) }
    }
    /// In a sticky directory (`self`) only the owner of the entry or of the directory removes or
    /// renames it.
    ///
    /// # Errors
    /// `NotOwner`.
    pub fn check_sticky(&self, entry_owner: cairn_units::Uid) -> Result<(), Status> {
        if self.mode & STICKY == 0 || self.is_owner() || self.cred.uid == entry_owner {
            return Ok(());
        }
        Err(Status::NotOwner)
    }
    /// The rights of an ACCESS call. No owner override here: `access(2)` asks about the mode.
    pub fn granted(&self, want: AccessMask) -> AccessMask {
        let mut mask = 0;
        let mut grant = |want: Want, bits: u32| {
            if self.allows(want) {
                mask |= bits;
            }
        };
        grant(Want::Read, AccessMask::READ);
        if self.kind == FileKind::Directory {
            let changes = AccessMask::MODIFY | AccessMask::EXTEND | AccessMask::DELETE;
            grant(Want::Write, changes);
            grant(Want::Execute, AccessMask::LOOKUP);
        } else {
            grant(Want::Write, AccessMask::MODIFY | AccessMask::EXTEND);
            grant(Want::Execute, AccessMask::EXECUTE);
        }
        AccessMask(mask & want.0)
    }
    /// Whether `set` may be applied.
    ///
    /// # Errors
    /// `NotOwner` for mode, owner, group and explicit times; `AccessDenied` for size and "now".
    pub fn check_set(&self, set: &SetAttrs) -> Result<(), Status> {
        if set.mode.is_some() && !self.is_owner() {
            return Err(Status::NotOwner);
        }
        let gives_away = set.uid.is_some_and(|uid| uid != self.uid);
        if (gives_away && !self.is_root()) || (set.uid.is_some() && !self.is_owner()) {
            return Err(Status::NotOwner);
        }
        if let Some(gid) = set.gid {
            let member = gid == self.gid || self.cred.in_group(gid);
            if !(self.is_root() || self.is_owner() && member) {
                return Err(Status::NotOwner);
            }
        }
        let explicit = [set.atime, set.mtime].iter().any(|t| matches!(t, SetTime::To(_)));
        if explicit && !self.is_owner() {
            return Err(Status::NotOwner);
        }
        let now = [set.atime, set.mtime].contains(&SetTime::Now);
        if now && !self.is_owner() {
            self.check(Want::Write)?;
        }
        if set.size.is_some() {
            self.check_write_data()?;
        }
        Ok(())
    }
    /// The mode that a chmod to `mode` gives an object of group `gid`: who is not in the group
    /// cannot make the object run with its rights.
    pub fn chmod(&self, mode: u32, gid: Gid) -> u32 {
        let mode = mode & MODE_MASK;
        if self.is_root() || self.cred.in_group(gid) { mode } else { mode & !SET_GID }
    }
}

/// The mode after the owner or group was set: nothing but a directory keeps set-id bits. (Set-gid
/// without group execute means mandatory locking, and stays.)
pub fn mode_after_chown(kind: FileKind, mode: u32) -> u32 {
    if kind == FileKind::Directory { mode } else { without_set_id(mode) }
}

/// The mode after somebody wrote data: only the superuser's writes keep the set-id bits.
pub fn mode_after_write(cred: &Credential, mode: u32) -> u32 {
    if cred.uid.get() == 0 { mode } else { without_set_id(mode) }
}

fn without_set_id(mode: u32) -> u32 {
    let mode = mode & !SET_UID;
    if mode & 0o010 != 0 { mode & !SET_GID } else { mode }
}
