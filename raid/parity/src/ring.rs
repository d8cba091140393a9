//! The ring of p rows that diagonals are counted in.
//!
//! Layer: leaf.

use core::ops::Range;

use cairn_units::BLOCK_BYTES;

use crate::Bytes;

/// How a block is cut into rows; fixed for the life of a group by its maximum width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ring {
    /// p = 17: 16 rows of 256 bytes, up to 16 data columns.
    P17,
    /// p = 257: 256 rows of 16 bytes, up to 256 data columns.
    P257,
}

/// Place of a column in the ring: 0..=p−2 for data, p−1 for row parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingIndex(u16);

impl RingIndex {
    /// The raw index.
    pub const fn get(self) -> u16 {
        self.0
    }
    pub(crate) const fn at(self) -> usize {
        self.0 as usize
    }
}

impl Ring {
    /// The smallest ring for groups of up to `data_columns` data columns; `None` past 256.
    pub const fn for_width(data_columns: u16) -> Option<Self> {
        match data_columns {
            0..=16 => Some(Self::P17),
            17..=256 => Some(Self::P257),
            _ => None,
        }
    }
    /// The prime.
    pub const fn p(self) -> u16 {
        match self {
            Self::P17 => 17,
            Self::P257 => 257,
        }
    }
    /// Data columns at the most.
    pub const fn data_columns_max(self) -> u16 {
        self.p() - 1
    }
    /// Bytes of a row.
    pub const fn row_bytes(self) -> usize {
        BLOCK_BYTES / (self.p() as usize - 1)
    }
    /// Where the row parity column stands.
    pub const fn row_parity(self) -> RingIndex {
        RingIndex(self.p() - 1)
    }
    /// Where data column `index` stands; `None` when the ring has no such column.
    pub const fn data(self, index: u16) -> Option<RingIndex> {
        if index < self.p() - 1 { Some(RingIndex(index)) } else { None }
    }
    /// The bytes of row `row`.
    pub(crate) const fn row(self, row: usize) -> Range<usize> {
        row * self.row_bytes()..(row + 1) * self.row_bytes()
    }
    /// The two runs of bytes (diagonal block, column block) of a column's share in the diagonals:
    /// rows before the one on diagonal p−1 go up by `index`, those after it wrap around.
    pub(crate) const fn shares(self, index: RingIndex) -> [Share; 2] {
        let (bytes, c, p) = (self.row_bytes(), index.at(), self.p() as usize);
        let wrapped = c.saturating_sub(1) * bytes;
        [
            Share { diagonal: c * bytes, column: 0, bytes: (p - 1 - c) * bytes },
            Share { diagonal: 0, column: BLOCK_BYTES - wrapped, bytes: wrapped },
        ]
    }
}

/// A run of bytes of a column that falls on a run of the diagonal block.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    pub(crate) diagonal: usize,
    pub(crate) column: usize,
    pub(crate) bytes: usize,
}

/// One column's block of a stripe: data, or row parity.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    /// Where the column stands in the ring.
    pub index: RingIndex,
    /// Its block.
    pub block: &'a Bytes,
}

/// What the syndromes of a stripe say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspect {
    /// Both parities agree with the data.
    None,
    /// One column (data, or row parity at p−1) explains both: its true block is what it holds,
    /// XOR the row syndrome.
    Column(RingIndex),
    /// Rows agree and diagonals do not: the diagonal column, if one column alone is wrong.
    Diagonal,
    /// More than one column is wrong.
    Several,
}
