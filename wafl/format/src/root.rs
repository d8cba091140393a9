//! Volume records (one block each in the volume table) and the aggregate's root record.

use cairn_units::{CpCount, Fsid, InodeNo, Lsn, WallTime};
use zerocopy::byteorder::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::inode::{INODE_BYTES, Inode};
use crate::{FORMAT_VERSION, FormatError};

/// Longest volume name in bytes.
pub const VOLUME_NAME_BYTES_MAX: usize = 64;
/// Slots of the volume table: volumes that an aggregate can hold at a time.
pub const VOLUMES_MAX: u64 = 65_536;
/// Bytes of a log position.
pub const LOG_POSITION_BYTES: usize = 24;
const VOLUME_MAGIC: [u8; 8] = *b"CairnVol";
const ROOT_MAGIC: [u8; 8] = *b"CairnAgg";

/// A volume record on disk: one block of the volume table.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawVolume {
    magic: [u8; 8],
    version: U16,
    state: U16,
    name_bytes: U16,
    fold_version: U16,
    fsid: U64,
    size_blocks: U64,
    vvbn_end: U64,
    used_blocks: U64,
    files: U64,
    lsn: U64,
    cp: U64,
    zombie_head: U64,
    object_next: U64,
    relocations: U64,
    hash_key: [u8; 16],
    inode_end: U64,
    vvbn_cursor: U64,
    snapshot_next: U32,
    reserved_a: U32,
    name: [u8; VOLUME_NAME_BYTES_MAX],
    sums: [I64; 7],
    reserved_b: [u8; 256],
    inode_file: [u8; INODE_BYTES],
    inode_map: [u8; INODE_BYTES],
    active_map: [u8; INODE_BYTES],
    container_map: [u8; INODE_BYTES],
    snapshot_table: [u8; INODE_BYTES],
    quota_table: [u8; INODE_BYTES],
    lock_table: [u8; INODE_BYTES],
}
const _: () = assert!(size_of::<RawVolume>() == cairn_units::BLOCK_BYTES);

/// Version of the volume record; 2 added the sums.
const VOLUME_VERSION: u16 = 2;

/// What the inodes and directories of a volume add up to. Each sum is kept where the thing itself
/// is written, so that what must be equal comes from different code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeSums {
    /// Directories.
    pub dirs: i64,
    /// Links of all directories.
    pub dir_links: i64,
    /// Files that have names and are no directories.
    pub files: i64,
    /// Links of all of them.
    pub file_links: i64,
    /// Entries of all directories, by their headers.
    pub names: i64,
    /// Blocks of all inodes, internal ones and zombies included.
    pub blocks: i64,
    /// Blocks that a cut gave to the wrong side and whose file is gone; 0 when no zombie is left.
    pub residue: i64,
}

impl VolumeSums {
    fn to_raw(self) -> [I64; 7] {
        let s = self;
        [s.dirs, s.dir_links, s.files, s.file_links, s.names, s.blocks, s.residue].map(I64::new)
    }
    fn from_raw(raw: [I64; 7]) -> Self {
        let [dirs, dir_links, files, file_links, names, blocks, residue] = raw.map(I64::get);
        Self { dirs, dir_links, files, file_links, names, blocks, residue }
    }
}

/// A volume record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Identity.
    pub fsid: Fsid,
    /// Whether the volume is being deleted.
    pub deleting: bool,
    /// Name.
    pub name: String,
    /// Blocks that it may use.
    pub size_blocks: u64,
    /// One past the highest VVBN that may be given out.
    pub vvbn_end: u64,
    /// VVBNs in use.
    pub used_blocks: u64,
    /// Inodes in use, without internal ones.
    pub files: u64,
    /// Newest log record whose effect is in this record.
    pub lsn: Lsn,
    /// Consistency point that wrote it.
    pub cp: CpCount,
    /// First inode of the list of zombies, 0 for none.
    pub zombie_head: InodeNo,
    /// Low half of the next global object id.
    pub object_next: u64,
    /// Blocks moved so far: 0 means that every pointer's hint is right.
    pub relocations: u64,
    /// Key of the directories' name hashes, and high half of the object ids.
    pub hash_key: [u8; 16],
    /// One past the highest inode number ever used.
    pub inode_end: u64,
    /// Where the search for free VVBNs goes on.
    pub vvbn_cursor: u64,
    /// What its inodes and directories add up to.
    pub sums: VolumeSums,
    /// The file of inodes.
    pub inode_file: Inode,
    /// Bitmap of inodes in use.
    pub inode_map: Inode,
    /// Bitmap of VVBNs in use.
    pub active_map: Inode,
    /// VVBN to PVBN; its blocks belong to the aggregate.
    pub container_map: Inode,
}

const FOLD_VERSION: u16 = 1;

impl VolumeRecord {
    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(block: &[u8; 4096]) -> Result<Self, FormatError> {
        const S: &str = "volume record";
        let raw = RawVolume::ref_from_bytes(&block[..])
            .map_err(|_| FormatError::NotThis { structure: S })?;
        if raw.magic != VOLUME_MAGIC {
            return Err(FormatError::NotThis { structure: S });
        }
        if raw.version.get() != VOLUME_VERSION {
            return Err(FormatError::Version {
                structure: S,
                found: raw.version.get(),
                known: VOLUME_VERSION,
            });
        }
        let field = |field| FormatError::Field { structure: S, field };
        let name = raw.name.get(..usize::from(raw.name_bytes.get())).ok_or(field("name_bytes"))?;
        let name = core::str::from_utf8(name).map_err(|_| field("name"))?;
        if raw.vvbn_end.get() > crate::BLOCK_NUMBER_END {
            return Err(field("vvbn_end"));
        }
        Ok(Self {
            fsid: Fsid::new(raw.fsid.get()),
            deleting: raw.state.get() == 1,
            name: name.to_owned(),
            size_blocks: raw.size_blocks.get(),
            vvbn_end: raw.vvbn_end.get(),
            used_blocks: raw.used_blocks.get(),
            files: raw.files.get(),
            lsn: Lsn::new(raw.lsn.get()),
            cp: CpCount::new(raw.cp.get()),
            zombie_head: InodeNo::new(raw.zombie_head.get()),
            object_next: raw.object_next.get(),
            relocations: raw.relocations.get(),
            hash_key: raw.hash_key,
            inode_end: raw.inode_end.get(),
            vvbn_cursor: raw.vvbn_cursor.get(),
            sums: VolumeSums::from_raw(raw.sums),
            inode_file: Inode::decode(&raw.inode_file)?,
            inode_map: Inode::decode(&raw.inode_map)?,
            active_map: Inode::decode(&raw.active_map)?,
            container_map: Inode::decode(&raw.container_map)?,
        })
    }

    /// Writes the record.
    ///
    /// # Panics
    /// When the name is too long: a broken invariant.
    pub fn encode(&self) -> [u8; 4096] {
        let mut name = [0; VOLUME_NAME_BYTES_MAX];
        name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let Ok(name_bytes) = u16::try_from(self.name.len()) else {
            unreachable!("the slice above bounds the name")
        };
        let raw = RawVolume {
            magic: VOLUME_MAGIC,
            version: VOLUME_VERSION.into(),
            state: u16::from(self.deleting).into(),
            name_bytes: name_bytes.into(),
            fold_version: FOLD_VERSION.into(),
            fsid: self.fsid.get().into(),
            size_blocks: self.size_blocks.into(),
            vvbn_end: self.vvbn_end.into(),
            used_blocks: self.used_blocks.into(),
            files: self.files.into(),
            lsn: self.lsn.get().into(),
            cp: self.cp.get().into(),
            zombie_head: self.zombie_head.get().into(),
            object_next: self.object_next.into(),
            relocations: self.relocations.into(),
            hash_key: self.hash_key,
            inode_end: self.inode_end.into(),
            vvbn_cursor: self.vvbn_cursor.into(),
            snapshot_next: 1.into(),
            reserved_a: 0.into(),
            name,
            sums: self.sums.to_raw(),
            reserved_b: [0; 256],
            inode_file: self.inode_file.encode(),
            inode_map: self.inode_map.encode(),
            active_map: self.active_map.encode(),
            container_map: self.container_map.encode(),
            snapshot_table: [0; INODE_BYTES],
            quota_table: [0; INODE_BYTES],
            lock_table: [0; INODE_BYTES],
        };
        let mut out = [0; 4096];
        out.copy_from_slice(raw.as_bytes());
        out
    }
}

/// The aggregate's root record on disk (inside the RAID layer's root slot).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawAggregateRoot {
    magic: [u8; 8],
    version: U16,
    reserved_a: U16,
    area_stripes: U32,
    cp: U64,
    time: I64,
    used_blocks: U64,
    volume_slots: U64,
    pvbn_end: U64,
    log_position: [u8; LOG_POSITION_BYTES],
    has_log: U64,
    reserved_b: [u8; 168],
    volume_table: [u8; INODE_BYTES],
    active_map: [u8; INODE_BYTES],
    area_counts: [u8; INODE_BYTES],
}
const _: () = assert!(size_of::<RawAggregateRoot>() == 256 + 3 * INODE_BYTES);

/// The aggregate's root record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AggregateRoot {
    /// Consistency point.
    pub cp: CpCount,
    /// When it was taken.
    pub time: WallTime,
    /// Stripes in an allocation area.
    pub area_stripes: u32,
    /// PVBNs in use.
    pub used_blocks: u64,
    /// Slots of the volume table in use or once used.
    pub volume_slots: u64,
    /// End of the PVBN space whose free blocks are counted; columns behind it are new.
    pub pvbn_end: u64,
    /// Where the log begins that this root does not contain (opaque here).
    pub log_position: Option<[u8; LOG_POSITION_BYTES]>,
    /// File of volume records, one block each.
    pub volume_table: Inode,
    /// Bitmap of PVBNs in use.
    pub active_map: Inode,
    /// Free blocks of each allocation area, 32 bits each, groups one after another.
    pub area_counts: Inode,
}

impl AggregateRoot {
    /// Reads a root.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const S: &str = "aggregate root";
        let (raw, _) = RawAggregateRoot::ref_from_prefix(bytes)
            .map_err(|_| FormatError::NotThis { structure: S })?;
        if raw.magic != ROOT_MAGIC {
            return Err(FormatError::NotThis { structure: S });
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(FormatError::Version {
                structure: S,
                found: raw.version.get(),
                known: FORMAT_VERSION,
            });
        }
        if raw.area_stripes.get() == 0 {
            return Err(FormatError::Field { structure: S, field: "area_stripes" });
        }
        if raw.volume_slots.get() > VOLUMES_MAX {
            return Err(FormatError::Field { structure: S, field: "volume_slots" });
        }
        Ok(Self {
            cp: CpCount::new(raw.cp.get()),
            time: WallTime::new(raw.time.get()),
            area_stripes: raw.area_stripes.get(),
            used_blocks: raw.used_blocks.get(),
            volume_slots: raw.volume_slots.get(),
            pvbn_end: raw.pvbn_end.get(),
            log_position: (raw.has_log.get() != 0).then_some(raw.log_position),
            volume_table: Inode::decode(&raw.volume_table)?,
            active_map: Inode::decode(&raw.active_map)?,
            area_counts: Inode::decode(&raw.area_counts)?,
        })
    }

    /// Writes the root.
    pub fn encode(&self) -> Vec<u8> {
        RawAggregateRoot {
            magic: ROOT_MAGIC,
            version: FORMAT_VERSION.into(),
            reserved_a: 0.into(),
            area_stripes: self.area_stripes.into(),
            cp: self.cp.get().into(),
            time: self.time.get().into(),
            used_blocks: self.used_blocks.into(),
            volume_slots: self.volume_slots.into(),
            pvbn_end: self.pvbn_end.into(),
            log_position: self.log_position.unwrap_or_default(),
            has_log: u64::from(self.log_position.is_some()).into(),
            reserved_b: [0; 168],
            volume_table: self.volume_table.encode(),
            active_map: self.active_map.encode(),
            area_counts: self.area_counts.encode(),
        }
        .as_bytes()
        .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_units::Generation;

    #[test]
    fn root_and_volume_records_round_trip() {
        let inode = Inode::free(InodeNo::new(5), Generation::new(1));
        let root = AggregateRoot {
            cp: CpCount::new(7),
            time: WallTime::new(-5),
            area_stripes: 1024,
            used_blocks: 3,
            volume_slots: 2,
            pvbn_end: 9,
            log_position: Some([3; LOG_POSITION_BYTES]),
            volume_table: inode.clone(),
            active_map: inode.clone(),
            area_counts: inode.clone(),
        };
        assert_eq!(AggregateRoot::decode(&root.encode()), Ok(root.clone()));
        // Found by the fuzzer: opening would look at every slot that the root claims.
        let claims = AggregateRoot { volume_slots: VOLUMES_MAX + 1, ..root };
        let refused = FormatError::Field { structure: "aggregate root", field: "volume_slots" };
        assert_eq!(AggregateRoot::decode(&claims.encode()), Err(refused));
        let volume = VolumeRecord {
            fsid: Fsid::new(4),
            deleting: true,
            name: "vol0".to_owned(),
            size_blocks: 1,
            vvbn_end: 2,
            used_blocks: 3,
            files: 4,
            lsn: Lsn::new(5),
            cp: CpCount::new(6),
            zombie_head: InodeNo::new(7),
            object_next: 8,
            relocations: 9,
            hash_key: [1; 16],
            inode_end: 10,
            vvbn_cursor: 11,
            sums: VolumeSums {
                dirs: 12,
                dir_links: 13,
                files: 14,
                file_links: 15,
                names: 16,
                blocks: 17,
                residue: -18,
            },
            inode_file: inode.clone(),
            inode_map: inode.clone(),
            active_map: inode.clone(),
            container_map: inode,
        };
        assert_eq!(VolumeRecord::decode(&volume.encode()), Ok(volume));
        assert!(VolumeRecord::decode(&[0; 4096]).is_err());
    }
}
