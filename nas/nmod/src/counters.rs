//! Counters of the N-module: per operation, how many and how many failed.

use std::sync::atomic::{AtomicU64, Ordering};

use cairn_op::Op;

/// Names of the operations, by index.
pub const OP_NAMES: [&str; 23] = [
    "getattr",
    "setattr",
    "lookup",
    "access",
    "readlink",
    "read",
    "write",
    "create",
    "mkdir",
    "symlink",
    "mknod",
    "remove",
    "rmdir",
    "rename",
    "link",
    "readdir",
    "fsstat",
    "commit",
    "punch",
    "getxattr",
    "setxattr",
    "removexattr",
    "listxattr",
];

/// One operation's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpCount {
    /// Submitted.
    pub started: u64,
    /// Refused here: bad handle, no such volume, export policy, read-only.
    pub refused: u64,
}

#[derive(Default)]
struct Cell {
    started: AtomicU64,
    refused: AtomicU64,
}

/// The counters, shared by all connections.
#[derive(Default)]
pub(crate) struct Counters([Cell; OP_NAMES.len()]);

/// Index of an operation in [`OP_NAMES`].
pub(crate) const fn index<R>(op: &Op<R>) -> usize {
    match op {
        Op::GetAttr { .. } => 0,
        Op::SetAttr { .. } => 1,
        Op::Lookup { .. } => 2,
        Op::Access { .. } => 3,
        Op::ReadLink { .. } => 4,
        Op::Read { .. } => 5,
        Op::Write { .. } => 6,
        Op::Create { .. } => 7,
        Op::MakeDir { .. } => 8,
        Op::Symlink { .. } => 9,
        Op::MakeNode { .. } => 10,
        Op::Remove { .. } => 11,
        Op::RemoveDir { .. } => 12,
        Op::Rename { .. } => 13,
        Op::Link { .. } => 14,
        Op::ReadDir { .. } => 15,
        Op::FsStat { .. } => 16,
        Op::Commit { .. } => 17,
        Op::Punch { .. } => 18,
        Op::GetXattr { .. } => 19,
        Op::SetXattr { .. } => 20,
        Op::RemoveXattr { .. } => 21,
        Op::ListXattr { .. } => 22,
    }
}

impl Counters {
    pub(crate) fn started(&self, index: usize) {
        if let Some(cell) = self.0.get(index) {
            cell.started.fetch_add(1, Ordering::Relaxed);
        }
    }
    pub(crate) fn refused(&self, index: usize) {
        if let Some(cell) = self.0.get(index) {
            cell.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
    pub(crate) fn snapshot(&self) -> Vec<(&'static str, OpCount)> {
        let count = |cell: &Cell| OpCount {
            started: cell.started.load(Ordering::Relaxed),
            refused: cell.refused.load(Ordering::Relaxed),
        };
        OP_NAMES.iter().zip(&self.0).map(|(name, cell)| (*name, count(cell))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_op::AccessMask;

    #[test]
    fn index_and_name_agree() {
        let op: Op<u8> = Op::Access { obj: 1, want: AccessMask(0) };
        assert_eq!(OP_NAMES[index(&op)], op.name());
        let op: Op<u8> = Op::ListXattr { obj: 1 };
        assert_eq!(OP_NAMES[index(&op)], op.name());
    }
}
