//! Unit types. Every number that crosses a function boundary in Cairn has one of these types.
//!
//! Layer: below everything; depends on nothing but `zerocopy`. A type here converts into another
//! one only through a named function, so that a block number of one space is never used in
//! another by accident.

use core::fmt;

/// Bytes in a block, everywhere: on disk, in memory, in the log.
pub const BLOCK_BYTES: usize = 4096;
/// [`BLOCK_BYTES`] for arithmetic on 64-bit offsets.
pub const BLOCK_BYTES_U64: u64 = 4096;
/// log2 of [`BLOCK_BYTES`].
pub const BLOCK_SHIFT: u32 = 12;
/// Largest file offset plus one: files have up to 2^63 - 1 bytes.
pub const FILE_BYTES_MAX: u64 = (1 << 63) - 1;
/// Longest file name in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symbolic link target in bytes.
pub const LINK_TARGET_BYTES_MAX: usize = 4096;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident, $repr:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($repr);

        impl $name {
            /// Wraps a raw number. The only way in.
            #[inline]
            pub const fn new(raw: $repr) -> Self {
                Self(raw)
            }
            /// The raw number. The only way out.
            #[inline]
            pub const fn get(self) -> $repr {
                self.0
            }
            /// `self + count`, or `None` past the end of the number space.
            #[inline]
            pub const fn checked_add(self, count: $repr) -> Option<Self> {
                match self.0.checked_add(count) {
                    Some(v) => Some(Self(v)),
                    None => None,
                }
            }
            /// `self + count` for numbers this program made itself.
            ///
            /// # Panics
            /// When the sum leaves the number space: a broken invariant.
            #[inline]
            #[must_use]
            pub const fn plus(self, count: $repr) -> Self {
                match self.0.checked_add(count) {
                    Some(v) => Self(v),
                    None => panic!(concat!(stringify!($name), " overflow")),
                }
            }
            /// How far `self` lies behind `base`, or `None` when it lies before it.
            #[inline]
            pub const fn since(self, base: Self) -> Option<$repr> {
                self.0.checked_sub(base.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

unit!(/// Block number on one disk.
    Dbn, u64);
unit!(/// Block number in an aggregate ("physical"). 0 is never a data block.
    Pvbn, u64);
unit!(/// Block number in a volume ("virtual"). 0 is never a data block.
    Vvbn, u64);
unit!(/// Block number in a file.
    Fbn, u64);
unit!(/// A count of blocks.
    Blocks, u64);
unit!(/// File system (volume) id, unique in a cluster, never reused.
    Fsid, u64);
unit!(/// Inode number in a volume. 0 is no inode.
    InodeNo, u64);
unit!(/// Generation of an inode number: a handle with an older one is stale.
    Generation, u32);
unit!(/// Snapshot of a volume. 0 is the active file system.
    SnapId, u32);
unit!(/// Number of a consistency point of an aggregate, counted from 1.
    CpCount, u64);
unit!(/// Log sequence number: place of an operation in the NV log's order.
    Lsn, u64);
unit!(/// Operation number that goes with one request through all layers (tracing).
    OpNo, u64);
unit!(/// Virtual server.
    VserverId, u32);
unit!(/// Position of a RAID group in its aggregate.
    GroupNo, u16);
unit!(/// Column of a RAID group: data columns first, then row parity, then diagonal parity.
    ColumnNo, u16);
unit!(/// CRC-32 (IEEE) of a block or record.
    Crc, u32);
unit!(/// Place of an entry in a directory listing; stable for the life of the entry.
    Cookie, u64);
unit!(/// POSIX user id.
    Uid, u32);
unit!(/// POSIX group id.
    Gid, u32);
unit!(/// Nanoseconds since 1970-01-01T00:00:00Z; may be negative.
    WallTime, i64);
unit!(/// Nanoseconds of a clock that never goes back; its zero means nothing.
    MonoTime, u64);

impl Fbn {
    /// The block that holds the byte at `offset` of a file.
    #[inline]
    pub const fn of_offset(offset: u64) -> Self {
        Self(offset >> BLOCK_SHIFT)
    }
    /// The offset of the block's first byte, or `None` beyond 2^64.
    #[inline]
    pub const fn offset(self) -> Option<u64> {
        self.0.checked_mul(BLOCK_BYTES_U64)
    }
}

impl Blocks {
    /// Blocks needed for `bytes` bytes.
    #[inline]
    pub const fn for_bytes(bytes: u64) -> Self {
        Self(bytes.div_ceil(BLOCK_BYTES_U64))
    }
    /// Size in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(BLOCK_BYTES_U64)
    }
}

impl WallTime {
    /// Seconds and nanoseconds since 1970 (nanoseconds in 0..1e9, seconds rounded down).
    #[inline]
    pub const fn split(self) -> (i64, u32) {
        let nanos = self.0.rem_euclid(1_000_000_000);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rem_euclid gives 0..1e9"
        )]
        let nanos = nanos as u32;
        (self.0.div_euclid(1_000_000_000), nanos)
    }
    /// From seconds and nanoseconds; saturates at the ends of the range (years 1677 and 2262).
    #[inline]
    pub const fn from_parts(seconds: i64, nanos: u32) -> Self {
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos as i64))
    }
}

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name([u8; 16]);
        impl $name {
            /// From 16 random bytes.
            pub const fn new(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }
            /// The 16 bytes.
            pub const fn bytes(self) -> [u8; 16] {
                self.0
            }
            /// Reads the form that `Display` writes (dashes optional).
            pub fn parse(text: &str) -> Option<Self> {
                let mut out = [0u8; 16];
                let mut nibbles = text.bytes().filter(|b| *b != b'-');
                for byte in &mut out {
                    let hi = char::from(nibbles.next()?).to_digit(16)?;
                    let lo = char::from(nibbles.next()?).to_digit(16)?;
                    *byte = u8::try_from(hi * 16 + lo).ok()?;
                }
                if nibbles.next().is_some() { None } else { Some(Self(out)) }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (i, b) in self.0.iter().enumerate() {
                    if matches!(i, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{b:02x}")?;
                }
                Ok(())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}
uuid_type!(/// Identity of one disk, written in its label.
    DiskUuid);
uuid_type!(/// Identity of an aggregate.
    AggregateUuid);
uuid_type!(/// Global object id of a file: permanent, never reused.
    ObjectId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walltime_split_rounds_down_before_1970() {
        assert_eq!(WallTime::new(-1).split(), (-1, 999_999_999));
        assert_eq!(WallTime::from_parts(-1, 999_999_999), WallTime::new(-1));
    }

    #[test]
    fn uuid_text_form_round_trips() {
        let id = DiskUuid::new(*b"0123456789abcdef");
        assert_eq!(DiskUuid::parse(&id.to_string()), Some(id));
        assert_eq!(DiskUuid::parse("zz"), None);
    }

    #[test]
    fn since_refuses_to_go_backwards() {
        assert_eq!(Pvbn::new(5).since(Pvbn::new(3)), Some(2));
        assert_eq!(Pvbn::new(3).since(Pvbn::new(5)), None);
    }
}
