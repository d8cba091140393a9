//! Parity of one stripe: computing it, and finding lost columns from it.
//!
//! Layer: pure, over the kernels of `cairn-raid-parity`. Ring positions: data column `c` has ring position `c`, row parity has `p - 1`;
//! row `r` of ring position `c` lies on diagonal `(r + c) mod p`, diagonal `p - 1` is not stored.
//! A column that does not exist counts as zeros. Source: Corbett et al., "Row-Diagonal Parity for
//! Double Disk Failure Correction", FAST 2004.

use cairn_raid_parity::{Bytes, Column, Kernels, Ring, RingIndex};
use cairn_sys::{Block, BlockMut};

use cairn_raid_api::RaidKind;

/// The code of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    pub kind: RaidKind,
    /// The prime, as the configuration names it.
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

/// `a ^ b`.
fn sum_of(a: &Block, b: &Block) -> Block {
    let mut sum = BlockMut::dirty();
    Kernels::best().xor_all(&[a, b], &mut sum);
    sum.freeze()
}

impl Parity {
    /// What it becomes when columns change: `change` is parity of what goes and what comes.
    pub(crate) fn changed_by(&self, change: &Self) -> Self {
        let diagonals = self.diagonal.as_ref().zip(change.diagonal.as_ref());
        Self { row: sum_of(&self.row, &change.row), diagonal: diagonals.map(|(a, b)| sum_of(a, b)) }
    }
}

/// Blocks for the parity of stripes that are written together: those of one disk are neighbours in
/// memory, as they are on the disk, and go out in one piece.
#[derive(Default)]
pub(crate) struct Spare {
    rows: std::vec::IntoIter<BlockMut>,
    diagonals: std::vec::IntoIter<BlockMut>,
}

impl Spare {
    pub(crate) fn new(code: Code, stripes: usize) -> Self {
        let diagonals = if code.kind == RaidKind::Raid4 { 0 } else { stripes };
        Self {
            rows: BlockMut::take_many(stripes).into_iter(),
            diagonals: BlockMut::take_many(diagonals).into_iter(),
        }
    }
    /// The next one, or any when none is left.
    fn next(blocks: &mut std::vec::IntoIter<BlockMut>) -> BlockMut {
        blocks.next().unwrap_or_else(BlockMut::dirty)
    }
}

impl Code {
    fn ring(self) -> Ring {
        if self.p == Ring::P17.p() { Ring::P17 } else { Ring::P257 }
    }

    /// Ring position of a data or row parity column.
    fn index(self, column: u16) -> Option<RingIndex> {
        let ring = self.ring();
        if column == self.p - 1 { Some(ring.row_parity()) } else { ring.data(column) }
    }

    /// Parity of the data columns given; those left out count as zeros, and one that is given
    /// twice as what differs.
    pub(crate) fn encode<'a>(self, data: impl Iterator<Item = (u16, &'a Block)>) -> Parity {
        let columns: Vec<_> = data.filter_map(|(c, block)| self.column(c, block)).collect();
        self.encode_ahead(&columns, &[], &mut Spare::default())
    }

    /// A data or row parity column as the kernels know it; `None` if the code has no such column.
    pub(crate) fn column(self, column: u16, block: &Block) -> Option<Column<'_>> {
        Some(Column { index: self.index(column)?, block })
    }

    /// [`Self::encode`], while the blocks `next`, those of the next stripe, come from memory.
    pub(crate) fn encode_ahead(
        self,
        columns: &[Column<'_>],
        next: &[&Bytes],
        spare: &mut Spare,
    ) -> Parity {
        let (kernels, mut row) = (Kernels::best(), Spare::next(&mut spare.rows));
        if self.kind == RaidKind::Raid4 {
            let blocks: Vec<_> = columns.iter().map(|c| c.block).collect();
            kernels.xor_all(&blocks, &mut row);
            return Parity { row: row.freeze(), diagonal: None };
        }
        let mut diagonal = Spare::next(&mut spare.diagonals);
        kernels.encode_ahead(self.ring(), columns, next, &mut row, &mut diagonal);
        Parity { row: row.freeze(), diagonal: Some(diagonal.freeze()) }
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
            [one] => {
                let present: Vec<_> = columns
                    .iter()
                    .filter(|c| c.0 < self.p)
                    .filter_map(|c| c.1.as_deref())
                    .collect();
                let mut found = BlockMut::dirty();
                Kernels::best().xor_all(&present, &mut found);
                columns[one].1 = Some(found.freeze());
            }
            [a, b] => self.decode_two(columns, a, b),
            _ => {}
        }
        if let Some(diagonal) = columns.iter().position(|c| c.0 == self.p && c.1.is_none()) {
            let data = columns
                .iter()
                .filter(|c| c.0 < self.p - 1)
                .filter_map(|c| Some((c.0, c.1.as_ref()?)));
            columns[diagonal].1 = self.encode(data).diagonal;
        }
        Ok(())
    }

    /// Two ring columns from rows and diagonals in turn.
    fn decode_two(self, columns: &mut [(u16, Option<Block>)], a: usize, b: usize) {
        let diagonal = columns.iter().find(|c| c.0 == self.p).and_then(|c| c.1.clone());
        let lost = (self.index(columns[a].0), self.index(columns[b].0));
        let (Some(diagonal), (Some(lost_a), Some(lost_b))) = (diagonal, lost) else { return };
        let present: Vec<Column<'_>> = columns
            .iter()
            .filter(|c| c.0 < self.p)
            .filter_map(|c| self.column(c.0, c.1.as_ref()?))
            .collect();
        let (mut out_a, mut out_b) = (BlockMut::dirty(), BlockMut::dirty());
        let out = [&mut *out_a, &mut *out_b];
        Kernels::best().reconstruct_pair(self.ring(), &present, &diagonal, [lost_a, lost_b], out);
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
    fn parity_of_what_goes_and_comes_leads_from_old_parity_to_new() {
        for (kind, p) in [(RaidKind::RaidDp, 17), (RaidKind::RaidDp, 257), (RaidKind::Raid4, 17)] {
            let code = Code { kind, p };
            let old: Vec<(u16, Block)> = (0..9).map(|c| (c, noise(u64::from(c) + 1))).collect();
            let mut new = old.clone();
            let mut changes = Vec::new();
            for c in [1, 4, 8] {
                new[c].1 = noise(50 + c as u64);
                changes.extend([old[c].clone(), new[c].clone()]);
            }
            let parity = |of: &[(u16, Block)]| code.encode(of.iter().map(|(c, b)| (*c, b)));
            let want = parity(&new);
            assert!(parity(&old).changed_by(&parity(&changes)) == want, "{kind:?} {p}");
            let next = [&*old[0].1, &*old[1].1];
            let columns: Vec<_> = new.iter().filter_map(|(c, b)| code.column(*c, b)).collect();
            let mut spare = Spare::new(code, 3);
            for _ in 0..5 {
                let again = code.encode_ahead(&columns, &next, &mut spare);
                assert!(again == want);
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
