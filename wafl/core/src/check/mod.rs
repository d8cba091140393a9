//! The check: an independent walk over what lies on disk, whether the committed state adds up.
//!
//! Layer: beside the storage manager; shares with it only the formats and the directory code.
//! Reads through the RAID interface alone, from one committed root down, and compares the maps
//! with what is reachable: every block named once, every named block marked used, and nothing
//! else; container map, inode map, links, parents, directories, counts and sums likewise.
//!
//! On a stopped node it walks the newest root ([`audit`]). On a live node the storage manager
//! takes a consistency point, holds back the blocks that are freed from then on, and lets it walk
//! that point while clients go on ([`live`]).
//!
//! Memory: a bit per named block, 24 bytes per inode of a pass ([`INODES_PER_PASS`]), a few
//! thousand blocks; it does not grow with the size of files or directories.

mod bits;
mod findings;
pub(crate) mod live;
mod mend;
mod reader;
mod repair;
mod volume;
mod walk;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use cairn_raid_api::Aggregate;
use cairn_units::Fsid;
use cairn_wafl_format::AggregateRoot;

pub use findings::{FINDINGS_MAX, Finding, Owner, Severity, VolumeCount};
pub(crate) use walk::{Progress, Walk};

/// Inodes whose names are counted in one pass over the directories.
#[cfg(not(test))]
pub(crate) const INODES_PER_PASS: u64 = 4 << 20;
/// So few that the tests here take several passes.
#[cfg(test)]
pub(crate) const INODES_PER_PASS: u64 = 64;

/// What a walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Volumes walked.
    pub volumes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Blocks named by something.
    pub blocks: u64,
    /// Findings in all.
    pub count: u64,
    /// The first [`FINDINGS_MAX`] of them; empty when all adds up.
    pub findings: Vec<Finding>,
}

impl Audit {
    pub(crate) fn add(&mut self, finding: Finding) {
        self.count += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

/// What a walk covers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scope {
    /// One volume, and not the aggregate's own maps; none for everything.
    pub only: Option<Fsid>,
    /// The data of files is read and compared with its checksums.
    pub data: bool,
}

/// Walks the committed state of an aggregate of a stopped or quiet node; with `data`, reads the
/// data of all files too.
pub async fn audit(aggr: &Arc<dyn Aggregate>, data: bool) -> Audit {
    let Some(slot) = aggr.root() else { return Audit::default() };
    check_root(aggr, &slot.bytes, Scope { only: None, data }, &Progress::default()).await.0
}

/// Walks the state that the root in `bytes` leads to, as far as `scope` goes. Answers also whether
/// everything that leads to blocks was read.
pub(crate) async fn check_root(
    aggr: &Arc<dyn Aggregate>,
    bytes: &[u8],
    scope: Scope,
    progress: &Progress,
) -> (Audit, bool) {
    let mut walk = Walk::new(aggr, scope.data, progress);
    match AggregateRoot::decode(bytes) {
        Ok(root) => walk.root(&root, scope.only).await,
        Err(error) => {
            walk.whole = false;
            walk.out.add(Finding::Root { error: error.to_string() });
        }
    }
    (walk.out, walk.whole)
}
