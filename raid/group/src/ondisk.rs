//! Every structure that RAID keeps on a disk, byte by byte.
//!
//! Layer: below everything else in this crate; pure, no I/O. May not touch a disk.
//!
//! Invariants: each block begins with [`BlockHeader`]; its CRC covers bytes 4..4096, so that a
//! torn block never parses. Little endian, no implicit padding, reserved bytes are zero. Parsing
//! never panics and allocates nothing that a number on the disk decides without a cap.
//! `docs/formats-raid.md` draws the same.

use cairn_sys::{Block, BlockMut};
use cairn_units::{BLOCK_BYTES, Crc};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of every structure in this module.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Stamps in one checksum block, hence data blocks in one stripe region.
pub(crate) const REGION_STRIPES: u64 = 126;
/// [`REGION_STRIPES`] as a length.
pub(crate) const REGION_STAMPS: usize = 126;
const _: () = assert!(REGION_STAMPS as u64 == REGION_STRIPES);
/// Blocks of one stripe region: two copies of the checksum block and the blocks themselves.
pub(crate) const REGION_BLOCKS: u64 = REGION_STRIPES + 2;
/// Regions that one region map block covers.
pub(crate) const MAP_REGIONS: u64 = 32_256;
/// Stripe records in one stripe log entry.
pub(crate) const ENTRY_RECORDS_MAX: usize = 42;
/// Blocks of one configuration copy, header included.
pub(crate) const CONFIG_BLOCKS: u64 = 16;
/// Groups and disks together that one configuration can name.
pub(crate) const CONFIG_RECORDS_MAX: usize = 15 * BLOCK_BYTES / 64;
const _: () = assert!(CONFIG_RECORDS_MAX as u64 * 64 == (CONFIG_BLOCKS - 1) * BLOCK_BYTES as u64);
/// "No group" and "no column".
pub(crate) const NONE_U16: u16 = u16::MAX;

/// What kind of block it is: four letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Magic(pub u32);

pub(crate) const MAGIC_LABEL: Magic = Magic(u32::from_le_bytes(*b"CRNl"));
pub(crate) const MAGIC_ROOT: Magic = Magic(u32::from_le_bytes(*b"CRNr"));
pub(crate) const MAGIC_CONFIG: Magic = Magic(u32::from_le_bytes(*b"CRNc"));
pub(crate) const MAGIC_STAMPS: Magic = Magic(u32::from_le_bytes(*b"CRNs"));
pub(crate) const MAGIC_MAP: Magic = Magic(u32::from_le_bytes(*b"CRNm"));
pub(crate) const MAGIC_ENTRY: Magic = Magic(u32::from_le_bytes(*b"CRNe"));

/// First 16 bytes of every block of ours.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct BlockHeader {
    /// CRC-32 of bytes 4..4096.
    pub crc: U32,
    /// Kind of block.
    pub magic: U32,
    /// Format version.
    pub version: U32,
    pub reserved: U32,
}

/// The label: who the disk is. Two copies, in the first and the last block.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct LabelV1 {
    pub header: BlockHeader,
    pub aggregate: [u8; 16],
    pub disk: [u8; 16],
    /// Who may write; zero until the disks are shared.
    pub owner: [u8; 16],
    /// Writes with an older one are refused by a disk that can.
    pub credential_epoch: U64,
    /// Blocks that the layout below uses.
    pub blocks: U64,
    /// Position for people; the configuration is the authority.
    pub group: U16,
    pub column: U16,
    pub role: u8,
    pub reserved_a: [u8; 3],
    pub config_at: U64,
    pub map_at: U64,
    pub map_blocks: U64,
    pub log_at: U64,
    pub log_blocks: U64,
    pub stripe_log_at: U64,
    pub stripe_log_blocks: U64,
    pub regions_at: U64,
    pub regions: U64,
    pub reserved_b: [u8; 3936],
}
const _: () = assert!(size_of::<LabelV1>() == BLOCK_BYTES);

/// The root record of the storage manager. Two slots on each member disk.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct RootSlotV1 {
    pub header: BlockHeader,
    pub aggregate: [u8; 16],
    /// Grows with each commit; the newest valid slot of all disks wins.
    pub sequence: U64,
    pub cp: U64,
    /// Stripe log entries of this epoch and older ones are dead.
    pub dead_epoch: U64,
    pub bytes: U32,
    pub reserved_a: U32,
    pub content: [u8; 3584],
    pub reserved_b: [u8; 448],
}
const _: () = assert!(size_of::<RootSlotV1>() == BLOCK_BYTES);

/// First block of a configuration copy; groups and disks follow in the blocks behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct ConfigHeaderV1 {
    pub header: BlockHeader,
    pub aggregate: [u8; 16],
    /// Grows with each change; the newest valid copy of all disks wins.
    pub generation: U64,
    /// PVBN that the next data column begins at.
    pub pvbn_next: U64,
    pub groups: U16,
    pub disks: U16,
    /// CRC-32 of the records.
    pub content_crc: U32,
    pub reserved: [u8; 4040],
}
const _: () = assert!(size_of::<ConfigHeaderV1>() == BLOCK_BYTES);

/// One RAID group in the configuration.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct GroupRecordV1 {
    pub group: U16,
    /// 1 RAID-4, 2 RAID-DP.
    pub kind: u8,
    pub reserved_a: u8,
    /// The prime of row-diagonal parity; the group has at most p - 1 data columns.
    pub p: U16,
    pub reserved_b: U16,
    pub stripes: U64,
    pub reserved_c: [u8; 48],
}
const _: () = assert!(size_of::<GroupRecordV1>() == 64);

/// One disk (or one empty position) in the configuration.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct DiskRecordV1 {
    /// Zero: an empty position.
    pub disk: [u8; 16],
    pub group: U16,
    pub column: U16,
    pub role: u8,
    pub state: u8,
    pub reserved_a: [u8; 2],
    /// PVBN of stripe 0 of a data column.
    pub pvbn_base: U64,
    /// Stripes rebuilt so far.
    pub progress: U64,
    /// Size of the disk; zero: not known.
    pub blocks: U64,
    /// The end of where it was attached last, zeros behind it.
    pub location: [u8; 16],
}
const _: () = assert!(size_of::<DiskRecordV1>() == 64);

/// Checksum and identity of one block.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
pub(crate) struct StampV1 {
    pub crc: U32,
    pub flags: U32,
    pub fsid: U64,
    pub vvbn: U64,
    pub cp: U64,
}
const _: () = assert!(size_of::<StampV1>() == 32);

/// The block was written and `crc` is its checksum. All-zero flags: never written, reads as zeros.
pub(crate) const STAMP_WRITTEN: u32 = 1;
/// What the block holds is unknown (both copies of its checksum block were lost).
pub(crate) const STAMP_UNKNOWN: u32 = 2;
/// Rebuilt from parity: the identity is not known, the checksum is.
pub(crate) const STAMP_REBUILT: u32 = 4;
/// A parity block.
pub(crate) const STAMP_PARITY: u32 = 8;
/// A newer copy of the checksum block was lost, and with it perhaps a newer stamp of this block.
pub(crate) const STAMP_DOUBTFUL: u32 = 16;

/// A checksum block: the stamps of one region of one disk. Two copies, used in turn; the first
/// write of a region writes both, so that one alone always says that the other was lost.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct StampBlockV1 {
    pub header: BlockHeader,
    pub disk: [u8; 16],
    pub region: U64,
    /// Grows by one with each flush interval that changed the region.
    pub sequence: U64,
    pub reserved: [u8; 16],
    pub stamps: [StampV1; REGION_STAMPS],
}
const _: () = assert!(size_of::<StampBlockV1>() == BLOCK_BYTES);

/// A newer copy of the map block was lost: a clear bit is no proof.
pub(crate) const MAP_DOUBTFUL: u32 = 1;
/// Both copies were lost: a clear bit says nothing.
pub(crate) const MAP_LOST: u32 = 2;

/// Which regions of the disk have ever been written: a region whose bit is clear is all zeros
/// and none of it is read. Two copies of each map block, used in turn, both written when the disk
/// joins.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct MapBlockV1 {
    pub header: BlockHeader,
    pub disk: [u8; 16],
    /// Which block of the map.
    pub index: U64,
    pub sequence: U64,
    /// `MAP_…`.
    pub flags: U32,
    pub reserved: [u8; 12],
    pub bits: [U64; 504],
}
const _: () = assert!(size_of::<MapBlockV1>() == BLOCK_BYTES);
const _: () = assert!(MAP_REGIONS == 504 * 64);

/// One stripe in the stripe log.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct StripeRecordV1 {
    pub group: U16,
    pub flags: U16,
    /// First of its payload blocks in this entry, when it has any.
    pub payload: U32,
    pub stripe: U64,
    /// Data columns modified since the last flush, this write included.
    pub mask: [U64; 4],
    /// Columns (data and parity, by number) whose region was not durably written before.
    pub fresh: [U64; 5],
    /// First bytes of the uuid of the disk that a column is being copied to; zero: none.
    pub twin: U64,
}
const _: () = assert!(size_of::<StripeRecordV1>() == 96);

/// Partial row parity (and partial diagonal parity) of the unmodified columns follows.
pub(crate) const RECORD_PARTIAL: u16 = 1;
/// The unmodified columns are all zeros.
pub(crate) const RECORD_REST_ZERO: u16 = 2;
/// The region of the disk that is being copied to had no durable stamps.
pub(crate) const RECORD_TWIN_FRESH: u16 = 4;

/// First block of a stripe log entry; its payload blocks follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct LogEntryV1 {
    pub header: BlockHeader,
    pub aggregate: [u8; 16],
    pub epoch: U64,
    /// Number of the entry in its epoch, from 0.
    pub sequence: U64,
    pub records: U16,
    pub payload_blocks: U16,
    pub payload_crc: U32,
    pub reserved: U64,
    pub stripes: [StripeRecordV1; ENTRY_RECORDS_MAX],
}
const _: () = assert!(size_of::<LogEntryV1>() == BLOCK_BYTES);

/// Why a block is not what was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlockFault {
    /// Another kind of block, or nothing.
    #[error("no such structure here")]
    Absent,
    /// The right kind, with a wrong checksum.
    #[error("checksum does not match")]
    Damaged,
    /// A version that this program does not know.
    #[error("format version {0} is not known")]
    Version(u32),
}

/// CRC-32 (IEEE) of a block.
pub(crate) fn crc_of(block: &Block) -> Crc {
    Crc::new(block.crc())
}

/// Puts header and checksum on a block-sized structure.
pub(crate) fn seal<T: IntoBytes + Immutable>(value: &T, magic: Magic) -> Block {
    let mut block = BlockMut::copy_of(value.as_bytes());
    block[4..8].copy_from_slice(&magic.0.to_le_bytes());
    block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let crc = crc32fast::hash(&block[4..]);
    block[..4].copy_from_slice(&crc.to_le_bytes());
    block.freeze()
}

/// Reads back what [`seal`] made.
///
/// # Errors
/// See [`BlockFault`]; the version is judged after the checksum, so that rot is not taken for it.
pub(crate) fn open<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    block: &[u8; BLOCK_BYTES],
    magic: Magic,
) -> Result<&T, BlockFault> {
    let (header, _rest) =
        BlockHeader::ref_from_prefix(block).map_err(|_size| BlockFault::Absent)?;
    if header.magic.get() != magic.0 {
        return Err(BlockFault::Absent);
    }
    if header.crc.get() != crc32fast::hash(&block[4..]) {
        return Err(BlockFault::Damaged);
    }
    if header.version.get() != FORMAT_VERSION {
        return Err(BlockFault::Version(header.version.get()));
    }
    T::ref_from_bytes(block).map_err(|_size| BlockFault::Absent)
}

/// A structure of zeros to fill in.
pub(crate) fn blank<T: FromBytes>() -> T {
    T::new_zeroed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_block_opens_and_any_flipped_byte_is_refused() {
        let mut root: RootSlotV1 = blank();
        root.sequence = U64::new(7);
        let block = seal(&root, MAGIC_ROOT);
        assert_eq!(open::<RootSlotV1>(&block, MAGIC_ROOT).map(|r| r.sequence.get()), Ok(7));
        assert!(matches!(open::<LabelV1>(&block, MAGIC_LABEL), Err(BlockFault::Absent)));
        for at in [0, 5, 9, 17, 40, 4095] {
            let mut bad = block.clone();
            bad.make_mut()[at] ^= 1;
            assert!(open::<RootSlotV1>(&bad, MAGIC_ROOT).is_err(), "byte {at}");
        }
    }

    #[test]
    fn another_version_is_named_not_guessed() {
        let label: LabelV1 = blank();
        let mut block = seal(&label, MAGIC_LABEL);
        let bytes = block.make_mut();
        bytes[8] = 9;
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(open::<LabelV1>(&block, MAGIC_LABEL).err(), Some(BlockFault::Version(9)));
    }
}
