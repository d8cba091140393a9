//! What a check can find, with its place and how bad it is.
//!
//! Layer: inside the check; text for people and the input of the repair.

use core::fmt;

use cairn_units::{Cookie, Crc, Fbn, Fsid, Generation, InodeNo, Pvbn, Vvbn};
use cairn_wafl_format::VolumeSums;

/// Findings after which a check stops collecting; it still counts them.
pub const FINDINGS_MAX: usize = 1000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Space or a count is wrong; no data is in danger.
    Leak,
    /// A structure contradicts another one; data is whole, and it can be put right.
    Inconsistent,
    /// Something cannot be read or is named by two: data is lost or would be.
    Damage,
}

impl Severity {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::Inconsistent => "inconsistent",
            Self::Damage => "damage",
        }
    }
}

/// Something that does not add up. `said` is what the structure says, `counted` what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The aggregate's root cannot be read.
    Root {
        /// Why.
        error: String,
    },
    /// A block of metadata cannot be read.
    Unreadable {
        /// Its volume, none for the aggregate's own files.
        fsid: Option<Fsid>,
        /// File it belongs to.
        what: Owner,
        /// Where it lies.
        pvbn: Pvbn,
        /// Why.
        error: String,
    },
    /// A block of a file's data cannot be read, or is not what was written.
    Data {
        /// Volume.
        fsid: Fsid,
        /// The file.
        ino: InodeNo,
        /// Block of the file.
        fbn: Fbn,
        /// Where it lies.
        pvbn: Pvbn,
        /// Why.
        error: String,
    },
    /// A structure that can be read holds what cannot be.
    Structure {
        /// Its volume, none for the aggregate's own.
        fsid: Option<Fsid>,
        /// Which.
        what: String,
    },
    /// Two pointers name one block.
    NamedTwice {
        /// Volume of the second one, none for the aggregate's own files.
        fsid: Option<Fsid>,
        /// File of the second one.
        what: Owner,
        /// The block.
        pvbn: Pvbn,
    },
    /// Two pointers of a volume name one VVBN.
    VvbnNamedTwice {
        /// Volume.
        fsid: Fsid,
        /// File of the second one.
        what: Owner,
        /// The block.
        vvbn: Vvbn,
    },
    /// A block of the aggregate is in use and not marked, or marked and not in use.
    Mark {
        /// The block.
        pvbn: Pvbn,
        /// What the map says.
        marked: bool,
    },
    /// The same for a block of a volume.
    VolumeMark {
        /// Volume.
        fsid: Fsid,
        /// The block.
        vvbn: Vvbn,
        /// What the map says.
        marked: bool,
    },
    /// The container map leads elsewhere than the pointer.
    Container {
        /// Volume.
        fsid: Fsid,
        /// The block.
        vvbn: Vvbn,
        /// Where the pointer says it is.
        pvbn: Pvbn,
        /// What the container map says.
        said: Pvbn,
        /// Checksum of the block.
        crc: Crc,
    },
    /// An inode is in use and not marked, or marked and not in use.
    InodeMark {
        /// Volume.
        fsid: Fsid,
        /// The inode.
        ino: InodeNo,
        /// What the map says.
        marked: bool,
    },
    /// An inode has another number of names than it says.
    Links {
        /// Volume.
        fsid: Fsid,
        /// The inode.
        ino: InodeNo,
        /// Its generation.
        generation: Generation,
        /// What it says.
        said: u32,
        /// What was counted.
        counted: u32,
    },
    /// A file that has no name.
    Orphan {
        /// Volume.
        fsid: Fsid,
        /// The inode.
        ino: InodeNo,
        /// Its generation.
        generation: Generation,
    },
    /// A name that leads to no file, or to one of another kind.
    Dangling(Dangling),
    /// A directory that says another parent than the one that names it.
    Parent {
        /// Volume.
        fsid: Fsid,
        /// The directory.
        ino: InodeNo,
        /// Its generation.
        generation: Generation,
        /// What it says.
        said: InodeNo,
        /// Who names it.
        counted: InodeNo,
    },
    /// A directory's own structure is damaged.
    Directory {
        /// Volume.
        fsid: Fsid,
        /// The directory.
        dir: InodeNo,
        /// Its generation.
        generation: Generation,
        /// What is wrong.
        what: cairn_wafl_dir::Finding,
    },
    /// An inode says another number of blocks than it names.
    Blocks {
        /// Volume.
        fsid: Fsid,
        /// The inode.
        ino: InodeNo,
        /// Its generation.
        generation: Generation,
        /// What it says.
        said: i64,
        /// What was counted.
        counted: i64,
    },
    /// A count in a volume's record is wrong.
    Count {
        /// Volume.
        fsid: Fsid,
        /// Which.
        what: VolumeCount,
        /// What it says.
        said: u64,
        /// What was counted.
        counted: u64,
    },
    /// The sums of a volume are wrong.
    Sums {
        /// Volume.
        fsid: Fsid,
        /// What the record says.
        said: VolumeSums,
        /// What was counted.
        counted: VolumeSums,
    },
    /// The free count of an allocation area is wrong.
    Area {
        /// Its number, groups one after another.
        area: u64,
        /// What it says.
        said: u32,
        /// What was counted.
        counted: u32,
    },
    /// The count of blocks in use is wrong.
    Used {
        /// What the root says.
        said: u64,
        /// What was counted.
        counted: u64,
    },
}

/// An entry of a directory that leads to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dangling {
    /// Volume.
    pub fsid: Fsid,
    /// The directory.
    pub dir: InodeNo,
    /// Its generation.
    pub generation: Generation,
    /// The entry.
    pub cookie: Cookie,
    /// The name.
    pub name: Vec<u8>,
    /// What it leads to.
    pub child: InodeNo,
    /// The generation that it leads to.
    pub child_generation: Generation,
    /// The kind of file that it leads to.
    pub kind: u8,
}

/// A count of a volume's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeCount {
    /// Files.
    Files,
    /// VVBNs in use.
    UsedBlocks,
}

/// The file that a block belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The table of volumes.
    VolumeTable,
    /// The map of blocks in use.
    AggregateMap,
    /// The free counts.
    AreaCounts,
    /// A volume's inode file.
    InodeFile,
    /// A volume's map of inodes.
    InodeMap,
    /// A volume's map of VVBNs.
    ActiveMap,
    /// A volume's map from VVBN to PVBN.
    ContainerMap,
    /// A file or directory.
    File(InodeNo),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VolumeTable => f.write_str("the volume table"),
            Self::AggregateMap => f.write_str("the aggregate's map"),
            Self::AreaCounts => f.write_str("the free counts"),
            Self::InodeFile => f.write_str("the inode file"),
            Self::InodeMap => f.write_str("the inode map"),
            Self::ActiveMap => f.write_str("the active map"),
            Self::ContainerMap => f.write_str("the container map"),
            Self::File(ino) => write!(f, "inode {ino}"),
        }
    }
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Root { .. }
            | Self::Unreadable { .. }
            | Self::Data { .. }
            | Self::Structure { .. }
            | Self::NamedTwice { .. }
            | Self::VvbnNamedTwice { .. }
            | Self::Mark { marked: false, .. }
            | Self::VolumeMark { marked: false, .. } => Severity::Damage,
            Self::Mark { .. }
            | Self::VolumeMark { .. }
            | Self::InodeMark { marked: true, .. }
            | Self::Area { .. }
            | Self::Blocks { .. }
            | Self::Count { .. }
            | Self::Sums { .. }
            | Self::Used { .. } => Severity::Leak,
            _ => Severity::Inconsistent,
        }
    }

    /// Volume it concerns, none for the aggregate.
    pub fn volume(&self) -> Option<Fsid> {
        match self {
            Self::Unreadable { fsid, .. }
            | Self::Structure { fsid, .. }
            | Self::NamedTwice { fsid, .. } => *fsid,
            Self::VvbnNamedTwice { fsid, .. }
            | Self::Data { fsid, .. }
            | Self::VolumeMark { fsid, .. }
            | Self::Container { fsid, .. }
            | Self::InodeMark { fsid, .. }
            | Self::Links { fsid, .. }
            | Self::Orphan { fsid, .. }
            | Self::Dangling(Dangling { fsid, .. })
            | Self::Parent { fsid, .. }
            | Self::Directory { fsid, .. }
            | Self::Blocks { fsid, .. }
            | Self::Count { fsid, .. }
            | Self::Sums { fsid, .. } => Some(*fsid),
            Self::Root { .. } | Self::Mark { .. } | Self::Area { .. } | Self::Used { .. } => None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fsid) = self.volume() {
            write!(f, "volume {fsid}: ")?;
        }
        let mark = |marked: &bool| match marked {
            true => "is marked and nothing names it",
            false => "is named and not marked",
        };
        match self {
            Self::Root { error } => write!(f, "the root cannot be read: {error}"),
            Self::Unreadable { what, pvbn, error, .. } => {
                write!(f, "block {pvbn} of {what} cannot be read: {error}")
            }
            Self::Data { ino, fbn, pvbn, error, .. } => {
                write!(f, "block {fbn} of the data of inode {ino}, at {pvbn}: {error}")
            }
            Self::Structure { what, .. } => f.write_str(what),
            Self::NamedTwice { what, pvbn, .. } => {
                write!(f, "block {pvbn} is named by {what} and by something else")
            }
            Self::VvbnNamedTwice { what, vvbn, .. } => {
                write!(f, "VVBN {vvbn} is named by {what} and by something else")
            }
            Self::Mark { pvbn, marked } => write!(f, "block {pvbn} {}", mark(marked)),
            Self::VolumeMark { vvbn, marked, .. } => write!(f, "VVBN {vvbn} {}", mark(marked)),
            Self::Container { vvbn, pvbn, said, .. } => {
                write!(f, "VVBN {vvbn} lies at {pvbn}, the container map says {said}")
            }
            Self::InodeMark { ino, marked: true, .. } => {
                write!(f, "inode {ino} is marked and not in use")
            }
            Self::InodeMark { ino, .. } => write!(f, "inode {ino} is in use and not marked"),
            Self::Links { ino, said, counted, .. } => {
                write!(f, "inode {ino} has {counted} links and says {said}")
            }
            Self::Orphan { ino, .. } => write!(f, "inode {ino} has no name"),
            Self::Dangling(Dangling { dir, name, child, .. }) => {
                let name = String::from_utf8_lossy(name);
                write!(f, "directory {dir} names {name:?}, inode {child}, which is not there")
            }
            Self::Parent { ino, said, counted, .. } => {
                write!(f, "directory {ino} lies in {counted} and says {said}")
            }
            Self::Directory { dir, what, .. } => write!(f, "directory {dir}: {what:?}"),
            Self::Blocks { ino, said, counted, .. } => {
                write!(f, "inode {ino} has {counted} blocks and says {said}")
            }
            Self::Count { what: VolumeCount::Files, said, counted, .. } => {
                write!(f, "there are {counted} files, the record says {said}")
            }
            Self::Count { said, counted, .. } => {
                write!(f, "{counted} VVBNs are marked, the record says {said}")
            }
            Self::Sums { said, counted, .. } => write!(f, "adds up to {counted:?}, says {said:?}"),
            Self::Area { area, said, counted } => {
                write!(f, "area {area} has {counted} free blocks, the count says {said}")
            }
            Self::Used { said, counted } => {
                write!(f, "{counted} blocks are marked, the root says {said}")
            }
        }
    }
}
