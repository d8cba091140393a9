//! The running digests of a volume: sums that two different pieces of code keep, compared before
//! each root is written.
//!
//! Layer: beside volumes and consistency points. [`VolumeSums`] says what is counted; the inodes'
//! shares are taken where a freeze writes inodes into the inode file, the names where a change
//! writes a directory, the blocks of the volume where its active map is changed.
//!
//! # Invariants (checked at each freeze and before each root, in release builds too)
//! - A file has as many links as there are entries for it, a directory one entry (the root none):
//!   `file_links + dirs - 1 == names`.
//! - A directory has two links and one more per subdirectory: `dir_links == 3 dirs - 1`.
//! - The count of files that clients see is `dirs + files`.
//! - Every VVBN in use is a block of an inode or of one of the volume's own files.

use cairn_wafl_format::{InodeShare, VolumeSums};

/// A sum that does not add up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {expected} expected, {found} found")]
pub(crate) struct Mismatch {
    pub what: &'static str,
    pub expected: i64,
    pub found: i64,
}

fn equal(what: &'static str, expected: i64, found: i64) -> Result<(), Mismatch> {
    if expected == found { Ok(()) } else { Err(Mismatch { what, expected, found }) }
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

/// Whether names, links and the count of files agree.
pub(crate) fn check_links(sums: &VolumeSums, files: u64) -> Result<(), Mismatch> {
    equal("entries of directories", sums.file_links + sums.dirs - 1, sums.names)?;
    equal("links of directories", 3 * sums.dirs - 1, sums.dir_links)?;
    equal("files", sums.dirs + sums.files, i64::try_from(files).unwrap_or(i64::MAX))
}

/// Whether the VVBNs in use are the blocks of the inodes and of the volume's own files (`own`).
pub(crate) fn check_blocks(sums: &VolumeSums, own: i64, used: u64) -> Result<(), Mismatch> {
    let named = sums.blocks + sums.residue + own;
    equal("blocks in use", named, i64::try_from(used).unwrap_or(i64::MAX))
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
        let none = InodeShare::default();
        replace(&mut sums, none, share(true, 2, 1));
        assert_eq!(check_links(&sums, 1), Ok(()));
        replace(&mut sums, none, share(false, 2, 10));
        sums.names += 2;
        assert_eq!(check_links(&sums, 2), Ok(()));
        assert_eq!(check_blocks(&sums, 5, 16), Ok(()));
        assert!(check_blocks(&sums, 5, 17).is_err());
        assert!(check_links(&sums, 3).is_err());
        let fewer = VolumeSums { names: 1, ..sums };
        assert!(check_links(&fewer, 2).is_err());
        replace(&mut sums, share(false, 2, 10), share(false, 1, 10));
        assert!(check_links(&sums, 2).is_err());
        replace(&mut sums, share(true, 2, 1), share(true, 3, 1));
        sums.names -= 1;
        assert!(check_links(&sums, 2).is_err());
    }
}
