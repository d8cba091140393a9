//! The running digests of a volume: sums that two different pieces of code keep, compared before
//! each root is written.
//!
//! Layer: beside volumes and consistency points. [`VolumeSums`] says what is counted; the inodes'
//! shares are taken where a freeze writes inodes into the inode file, the names where a change
//! writes a directory, the blocks of the volume where its active map is changed.
//!
//! # Invariants (in release builds too)
//! - A file has as many links as there are entries for it, a directory one entry (the root none):
//!   `file_links + dirs - 1 == names`.
//! - A directory has two links and one more per subdirectory: `dir_links == 3 dirs - 1`.
//! - The count of files that clients see is `dirs + files`.
//! - Every VVBN in use is a block of an inode or of one of the volume's own files.
//!
//! What a consistency point must not do is change how far a volume is from them ([`Balance`]): a
//! volume that was damaged once is served, reported and repaired, and not made worse.

use cairn_wafl_format::{InodeShare, VolumeRecord, VolumeSums};

/// How far sums are from what they must be; all zero in a sound volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    /// Links of files and directories that no entry accounts for.
    pub names: i64,
    /// Links of directories that no directory accounts for.
    pub dir_links: i64,
    /// Files that no inode accounts for.
    pub files: i64,
    /// Blocks in use that nothing names.
    pub blocks: i64,
}

/// A sum that changed its balance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} were out by {before}, now by {now}")]
pub(crate) struct Mismatch {
    pub what: &'static str,
    pub before: i64,
    pub now: i64,
}

fn equal(what: &'static str, before: i64, now: i64) -> Result<(), Mismatch> {
    if before == now { Ok(()) } else { Err(Mismatch { what, before, now }) }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Puts the share of an inode in the place of what the same inode was before.
pub(crate) fn replace(sums: &mut VolumeSums, old: InodeShare, new: InodeShare) {
    for (share, sign) in [(old, -1), (new, 1)] {
        sums.blocks += sign * share.blocks;
        match (share.live, share.directory) {
            (false, _) => {}
            (true, true) => {
                sums.dirs += sign;
                sums.dir_links += sign * share.links;
            }
            (true, false) => {
                sums.files += sign;
                sums.file_links += sign * share.links;
            }
        }
    }
}

impl Balance {
    /// Balance of a volume's record.
    pub fn of(record: &VolumeRecord) -> Self {
        let own = [&record.inode_file, &record.inode_map, &record.active_map];
        let own = own.into_iter().map(|i| i.blocks).sum();
        Self::new(&record.sums, record.files, own, record.used_blocks)
    }

    /// `own`: blocks of the inode file, the inode map and the active map; `used`: VVBNs in use.
    pub fn new(sums: &VolumeSums, files: u64, own: i64, used: u64) -> Self {
        Self {
            names: sums.file_links + sums.dirs - 1 - sums.names,
            dir_links: sums.dir_links - (3 * sums.dirs - 1),
            files: sums.dirs + sums.files - signed(files),
            blocks: signed(used) - (sums.blocks + sums.residue + own),
        }
    }

    /// Whether names, links and files are as far out as they were.
    pub fn check_links(&self, now: &Self) -> Result<(), Mismatch> {
        equal("links and entries", self.names, now.names)?;
        equal("links of directories", self.dir_links, now.dir_links)?;
        equal("files", self.files, now.files)
    }

    /// Whether blocks are as far out as they were.
    pub fn check_blocks(&self, now: &Self) -> Result<(), Mismatch> {
        equal("blocks in use", self.blocks, now.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(directory: bool, links: i64, blocks: i64) -> InodeShare {
        InodeShare { live: true, directory, links, blocks }
    }

    #[test]
    fn a_lost_link_a_lost_name_and_a_lost_block_do_not_add_up() {
        let mut sums = VolumeSums::default();
        let (none, sound) = (InodeShare::default(), Balance::default());
        replace(&mut sums, none, share(true, 2, 1));
        assert_eq!(Balance::new(&sums, 1, 0, 1), sound);
        replace(&mut sums, none, share(false, 2, 10));
        sums.names += 2;
        assert_eq!(Balance::new(&sums, 2, 5, 16), sound);
        assert!(sound.check_blocks(&Balance::new(&sums, 2, 5, 17)).is_err());
        assert!(sound.check_links(&Balance::new(&sums, 3, 5, 16)).is_err());
        let fewer = VolumeSums { names: 1, ..sums };
        assert!(sound.check_links(&Balance::new(&fewer, 2, 5, 16)).is_err());
        let damaged = Balance::new(&fewer, 2, 5, 16);
        assert!(damaged.check_links(&damaged).is_ok(), "old damage is no reason to stop");
        replace(&mut sums, share(false, 2, 10), share(false, 1, 10));
        assert!(sound.check_links(&Balance::new(&sums, 2, 5, 16)).is_err());
        replace(&mut sums, share(true, 2, 1), share(true, 3, 1));
        sums.names -= 1;
        assert!(sound.check_links(&Balance::new(&sums, 2, 5, 16)).is_err());
    }
}
