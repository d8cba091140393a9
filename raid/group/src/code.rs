//! Parity of one stripe: computing it, and finding lost columns from it.
//!
//! Layer: pure. Ring positions: data column `c` has ring position `c`, row parity has `p - 1`;
//! row `r` of ring position `c` lies on diagonal `(r + c) mod p`, diagonal `p - 1` is not stored.
//! A column that does not exist counts as zeros. Source: Corbett et al., "Row-Diagonal Parity for
//! Double Disk Failure Correction", FAST 2004.

use cairn_sys::{Block, BlockMut};
use cairn_units::BLOCK_BYTES;

use crate::config::RaidKind;

/// The code of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    pub kind: RaidKind,
    pub p: u16,
}

/// Row parity, and diagonal parity where the group has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parity {
    pub row: Block,
    pub diagonal: Option<Block>,
}

/// More columns are lost than the code can find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany(pub u16);

fn xor(into: &mut [u8; BLOCK_BYTES], from: &[u8; BLOCK_BYTES]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a ^= b;
    }
}

fn xor_slice(into: &mut [u8], from: &[u8]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a ^= b;
    }
}

/// `a ^= b`, sharing nothing.
pub(crate) fn xor_block(into: &mut Block, from: &Block) {
    xor(into.make_mut(), from);
}

impl Code {
    fn p(self) -> usize {
        usize::from(self.p)
    }
    fn row_bytes(self) -> usize {
        BLOCK_BYTES / (self.p() - 1)
    }

    /// Folds ring column `ring` into a diagonal block.
    fn fold_diagonal(self, into: &mut [u8; BLOCK_BYTES], ring: usize, block: &[u8; BLOCK_BYTES]) {
        let (p, w) = (self.p(), self.row_bytes());
        for row in 0..p - 1 {
            let diagonal = (row + ring) % p;
            if diagonal != p - 1 {
                xor_slice(
                    &mut into[diagonal * w..(diagonal + 1) * w],
                    &block[row * w..(row + 1) * w],
                );
            }
        }
    }

    /// Parity of the data columns given; those left out count as zeros.
    pub(crate) fn encode<'a>(self, data: impl Iterator<Item = (u16, &'a Block)>) -> Parity {
        let mut row = BlockMut::zeroed();
        let mut diagonal = (self.kind == RaidKind::RaidDp).then(BlockMut::zeroed);
        for (ring, block) in data {
            xor(&mut row, block);
            if let Some(diagonal) = &mut diagonal {
                self.fold_diagonal(diagonal, usize::from(ring), block);
            }
        }
        if let Some(diagonal) = &mut diagonal {
            self.fold_diagonal(diagonal, self.p() - 1, &row);
        }
        Parity { row: row.freeze(), diagonal: diagonal.map(BlockMut::freeze) }
    }

    /// Fills in the lost columns. `columns` holds (column number, contents) of every column that
    /// exists: data, row parity `p - 1`, and diagonal parity `p` for RAID-DP.
    ///
    /// # Errors
    /// When more are lost than parity covers; nothing was changed then.
    pub(crate) fn decode(self, columns: &mut [(u16, Option<Block>)]) -> Result<(), TooMany> {
        let lost: Vec<usize> =
            columns.iter().enumerate().filter(|(_, c)| c.1.is_none()).map(|(i, _)| i).collect();
        if lost.len() > usize::from(self.kind.parity()) {
            return Err(TooMany(u16::try_from(lost.len()).unwrap_or(u16::MAX)));
        }
        let ring_lost: Vec<usize> =
            lost.iter().copied().filter(|i| columns[*i].0 < self.p).collect();
        match ring_lost[..] {
            [] => {}
            [one] => {
                let mut sum = BlockMut::zeroed();
                for (column, block) in columns.iter() {
                    if let (true, Some(block)) = (*column < self.p, block) {
                        xor(&mut sum, block);
                    }
                }
                columns[one].1 = Some(sum.freeze());
            }
            [a, b] => self.decode_two(columns, a, b),
            _ => return Err(TooMany(u16::try_from(lost.len()).unwrap_or(u16::MAX))),
        }
        if let Some(diagonal) = columns.iter().position(|c| c.0 == self.p && c.1.is_none()) {
            let mut sum = BlockMut::zeroed();
            for (column, block) in columns.iter() {
                if let (true, Some(block)) = (*column < self.p, block) {
                    self.fold_diagonal(&mut sum, usize::from(*column), block);
                }
            }
            columns[diagonal].1 = Some(sum.freeze());
        }
        Ok(())
    }

    /// Two ring columns from rows and diagonals in turn.
    fn decode_two(self, columns: &mut [(u16, Option<Block>)], a: usize, b: usize) {
        let (p, w) = (self.p(), self.row_bytes());
        let mut rows = BlockMut::zeroed();
        let mut diagonals = BlockMut::zeroed();
        for (column, block) in columns.iter() {
            let Some(block) = block else { continue };
            if *column == self.p {
                xor(&mut diagonals, block);
            } else {
                xor(&mut rows, block);
                self.fold_diagonal(&mut diagonals, usize::from(*column), block);
            }
        }
        let (ring_a, ring_b) = (usize::from(columns[a].0), usize::from(columns[b].0));
        let (mut out_a, mut out_b) = (BlockMut::zeroed(), BlockMut::zeroed());
        // A diagonal that passes one of the two in the imaginary row p - 1 gives the other; its
        // row then gives the first, whose diagonal gives the next, until diagonal p - 1.
        for first_is_a in [true, false] {
            let (known, other) = if first_is_a { (ring_a, ring_b) } else { (ring_b, ring_a) };
            let mut diagonal = (p - 1 + known) % p;
            while diagonal != p - 1 {
                let row = (diagonal + p - other) % p;
                let (from, to) =
                    if first_is_a { (&mut out_a, &mut out_b) } else { (&mut out_b, &mut out_a) };
                let at = row * w..(row + 1) * w;
                // What this diagonal still misses: the known column's part was folded back.
                to[at.clone()].copy_from_slice(&diagonals[diagonal * w..(diagonal + 1) * w]);
                let known_row = (diagonal + p - known) % p;
                if known_row != p - 1 {
                    let part: Vec<u8> = from[known_row * w..(known_row + 1) * w].to_vec();
                    xor_slice(&mut to[at.clone()], &part);
                }
                let mut value: Vec<u8> = to[at.clone()].to_vec();
                xor_slice(&mut value, &rows[at.clone()]);
                from[at].copy_from_slice(&value);
                diagonal = (row + known) % p;
            }
        }
        columns[a].1 = Some(out_a.freeze());
        columns[b].1 = Some(out_b.freeze());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64) -> Block {
        let mut block = BlockMut::dirty();
        let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for byte in block.iter_mut() {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            *byte = x.to_le_bytes()[3];
        }
        block.freeze()
    }

    #[test]
    fn every_pair_of_lost_columns_is_found_for_both_primes() {
        for (p, width) in [(17u16, 5u16), (17, 16), (257, 7)] {
            let code = Code { kind: RaidKind::RaidDp, p };
            let data: Vec<(u16, Block)> =
                (0..width).map(|c| (c, noise(u64::from(c) + 1))).collect();
            let parity = code.encode(data.iter().map(|(c, b)| (*c, b)));
            let mut whole: Vec<(u16, Option<Block>)> =
                data.into_iter().map(|(c, b)| (c, Some(b))).collect();
            whole.push((p - 1, Some(parity.row)));
            whole.push((p, parity.diagonal));
            for a in 0..whole.len() {
                for b in a..whole.len() {
                    let mut broken = whole.clone();
                    broken[a].1 = None;
                    broken[b].1 = None;
                    code.decode(&mut broken).unwrap();
                    assert!(broken == whole, "p {p}, columns {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn three_lost_columns_are_refused() {
        let code = Code { kind: RaidKind::RaidDp, p: 17 };
        let mut columns = vec![(0, None), (1, None), (2, None), (16, Some(Block::zero()))];
        assert_eq!(code.decode(&mut columns), Err(TooMany(3)));
    }
}
