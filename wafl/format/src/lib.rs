//! On-disk structures of the storage manager: block pointers, inodes, volume records, the root.
//!
//! Layer: below everything in `wafl`; knows only units. Nothing here does I/O or keeps state.
//! Every structure is little endian, without padding, with its version; blocks themselves carry
//! checksum and identity in the RAID layer's stamps, and the checksum again in their pointer.
//! `docs/formats.md` draws each of them byte by byte.

mod inode;
mod root;

use cairn_units::{Crc, Pvbn, Vvbn};
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use inode::{
    DIRECT_POINTERS, INLINE_BYTES_MAX, INODE_BYTES, INODES_PER_BLOCK, Inode, InodeKind, InodeShare,
    Pointers, RawInode, inode_flags,
};
pub use root::{
    AggregateRoot, LOG_POSITION_BYTES, RawAggregateRoot, RawVolume, VOLUME_NAME_BYTES_MAX,
    VOLUMES_MAX, VolumeRecord, VolumeSums,
};

/// Version of all structures of this crate.
pub const FORMAT_VERSION: u16 = 1;
/// Pointers in an indirect block.
pub const POINTERS_PER_BLOCK: usize = 256;
/// log2 of [`POINTERS_PER_BLOCK`].
pub const POINTERS_SHIFT: u32 = 8;
/// Bits in a block of an active map or inode map.
pub const BITS_PER_BLOCK: u64 = 32_768;
/// Container map entries in a block.
pub const CONTAINER_ENTRIES_PER_BLOCK: u64 = 512;
/// Free-count entries in a block of the allocation-area file.
pub const AREA_COUNTS_PER_BLOCK: u64 = 1024;
/// Highest block number that a pointer can hold, plus one (2^48 blocks are 1 EiB).
pub const BLOCK_NUMBER_END: u64 = 1 << 48;

/// A structure on disk that cannot be what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Too short, or the magic number is another.
    #[error("{structure}: not such a structure")]
    NotThis {
        /// What was expected.
        structure: &'static str,
    },
    /// A version this program does not know.
    #[error("{structure}: version {found}, this program knows {known}")]
    Version {
        /// What it is.
        structure: &'static str,
        /// Version found.
        found: u16,
        /// Version known.
        known: u16,
    },
    /// A field holds what it cannot.
    #[error("{structure}: field {field} is out of range")]
    Field {
        /// What it is.
        structure: &'static str,
        /// Which field.
        field: &'static str,
    },
}

/// A block pointer on disk: 16 bytes, all zero for a hole.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawPtr {
    vvbn: [u8; 6],
    pvbn: [u8; 6],
    crc: U32,
}
const _: () = assert!(size_of::<RawPtr>() == 16);
const _: () = assert!(size_of::<RawPtr>() * POINTERS_PER_BLOCK == cairn_units::BLOCK_BYTES);

/// A block pointer.
///
/// `vvbn` is the block's place in its volume (0 for the aggregate's own files), `pvbn` the place
/// in the aggregate: the authority where there is no `vvbn`, else a hint whose authority is the
/// container map; `crc` is the checksum of the block it points to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockPtr {
    /// Place in the volume.
    pub vvbn: Vvbn,
    /// Place in the aggregate.
    pub pvbn: Pvbn,
    /// Checksum of the block.
    pub crc: Crc,
}

impl BlockPtr {
    /// No block: reads as zeros.
    pub const HOLE: Self = Self { vvbn: Vvbn::new(0), pvbn: Pvbn::new(0), crc: Crc::new(0) };

    /// Whether there is no block. PVBN 0 is never given out.
    #[inline]
    pub fn is_hole(&self) -> bool {
        self.pvbn.get() == 0
    }
}

fn u48(bytes: [u8; 6]) -> u64 {
    let mut wide = [0; 8];
    wide[..6].copy_from_slice(&bytes);
    u64::from_le_bytes(wide)
}

fn to_u48(value: u64) -> [u8; 6] {
    assert!(value < BLOCK_NUMBER_END, "block number {value} does not fit a pointer");
    let mut out = [0; 6];
    out.copy_from_slice(&value.to_le_bytes()[..6]);
    out
}

impl From<RawPtr> for BlockPtr {
    fn from(raw: RawPtr) -> Self {
        Self {
            vvbn: Vvbn::new(u48(raw.vvbn)),
            pvbn: Pvbn::new(u48(raw.pvbn)),
            crc: Crc::new(raw.crc.get()),
        }
    }
}

impl From<BlockPtr> for RawPtr {
    fn from(p: BlockPtr) -> Self {
        Self { vvbn: to_u48(p.vvbn.get()), pvbn: to_u48(p.pvbn.get()), crc: p.crc.get().into() }
    }
}

/// Pointer `slot` (0..256) of an indirect block.
#[inline]
pub fn pointer_at(block: &[u8; 4096], slot: usize) -> BlockPtr {
    match RawPtr::ref_from_bytes(&block[slot * 16..slot * 16 + 16]) {
        Ok(raw) => (*raw).into(),
        Err(_) => unreachable!("16 bytes are a pointer"),
    }
}

/// Sets pointer `slot` (0..256) of an indirect block.
#[inline]
pub fn set_pointer_at(block: &mut [u8; 4096], slot: usize, ptr: BlockPtr) {
    block[slot * 16..slot * 16 + 16].copy_from_slice(RawPtr::from(ptr).as_bytes());
}

/// Checksum of a block, as pointers and stamps carry it.
#[inline]
pub fn block_crc(block: &[u8; 4096]) -> Crc {
    Crc::new(crc32fast::hash(block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_round_trip_at_their_largest() {
        let p = BlockPtr {
            vvbn: Vvbn::new(BLOCK_NUMBER_END - 1),
            pvbn: Pvbn::new(BLOCK_NUMBER_END - 2),
            crc: Crc::new(u32::MAX),
        };
        let mut block = [0; 4096];
        set_pointer_at(&mut block, 255, p);
        assert_eq!(pointer_at(&block, 255), p);
        assert!(pointer_at(&block, 254).is_hole());
    }
}
