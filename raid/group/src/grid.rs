//! The new blocks of a tetris, by slot and stripe.
//!
//! Layer: pure, under write. Invariants: every block lies in the cell of its address; the rows are
//! the tetris's stripes, in their order.

use cairn_raid_api::{StripeWrite, WriteBlock, WriteError};
use cairn_units::Pvbn;

use crate::view::GroupView;

/// See the module.
pub(crate) struct Grid {
    rows: usize,
    /// First block of each data slot when this was made.
    bases: Vec<Pvbn>,
    /// Slot after slot, each with all rows: so the blocks come, and so they go to the disks.
    cells: Vec<Option<WriteBlock>>,
}

impl Grid {
    /// Puts blocks into their places; all of them lie in data columns of `group` and in `stripes`.
    ///
    /// # Errors
    /// When one does not, or two are the same, or the stripes are not in ascending order.
    pub(crate) fn new(
        group: Option<&GroupView>,
        stripes: &[StripeWrite],
        blocks: Vec<WriteBlock>,
    ) -> Result<Self, WriteError> {
        let width = group.map_or(0, GroupView::width);
        let bases = group.iter().flat_map(|g| &g.slots[..width]).map(|s| s.pvbn_base).collect();
        let rows = stripes.len();
        let mut grid = Self { rows, bases, cells: vec![None; width * rows] };
        let sorted = stripes.is_sorted_by(|a, b| a.stripe < b.stripe);
        let (mut slot, mut row) = (0, 0);
        for block in blocks {
            let at = block.at;
            let place = group.filter(|_| sorted).and_then(|g| g.data_place(at, slot));
            let cell = place.and_then(|(slot_of, stripe)| {
                slot = slot_of;
                row = row_of(stripes, stripe, row + 1)?;
                Some(&mut grid.cells[slot * rows + row])
            });
            match cell {
                Some(cell) if cell.is_none() => *cell = Some(block),
                _ => return Err(WriteError::BadAddress { at }),
            }
        }
        Ok(grid)
    }

    /// Whether the group's data slots are still those for which this was made; there may be more.
    pub(crate) fn fits(&self, group: &GroupView) -> bool {
        let bases = group.slots.iter().map(|s| s.pvbn_base);
        group.width() >= self.bases.len() && bases.zip(&self.bases).all(|(now, then)| now == *then)
    }

    fn place(&self, slot: usize, row: usize) -> usize {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        slot * self.rows + row
    }
    /// The block of a data slot in a row.
    pub(crate) fn get(&self, slot: usize, row: usize) -> Option<&WriteBlock> {
        self.cells.get(self.place(slot, row))?.as_ref()
    }
    /// The same, to keep.
    pub(crate) fn take(&mut self, slot: usize, row: usize) -> Option<WriteBlock> {
        let place = self.place(slot, row);
        self.cells.get_mut(place)?.take()
    }
    /// The blocks of one row, with their slots.
    pub(crate) fn row(&self, row: usize) -> impl Iterator<Item = (usize, &WriteBlock)> {
        (0..self.bases.len()).filter_map(move |slot| Some((slot, self.get(slot, row)?)))
    }
}

/// Where a stripe is among `stripes`; most likely `hint`.
fn row_of(stripes: &[StripeWrite], stripe: u64, hint: usize) -> Option<usize> {
    match stripes.get(hint) {
        Some(found) if found.stripe == stripe => Some(hint),
        _ => stripes.binary_search_by_key(&stripe, |s| s.stripe).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Code;
    use crate::view::Slot;
    use cairn_raid_api::{BlockTag, ColumnState, RaidKind};
    use cairn_sys::Block;
    use cairn_units::{ColumnNo, Crc, GroupNo};

    /// Three data columns, and both parities; stripe `s` of column `c` is block `1000 c + s`.
    fn group(stripes: u64) -> GroupView {
        let slot = |column: u16| Slot {
            column: ColumnNo::new(column),
            state: ColumnState::Online,
            member: None,
            pvbn_base: Pvbn::new(1000 * u64::from(column)),
            progress: Default::default(),
            twin: None,
        };
        let code = Code { kind: RaidKind::RaidDp, p: 17 };
        let slots = [0, 1, 2, 16, 17].map(slot).into();
        GroupView { group: GroupNo::new(0), code, stripes, slots }
    }

    fn grid(stripes: &[u64], blocks: &[u64]) -> Result<Grid, WriteError> {
        let row = |stripe: &u64| StripeWrite { stripe: *stripe, rest_is_free: true };
        let (data, crc) = (Block::zero(), Crc::new(0));
        let block = |at: &u64| WriteBlock {
            at: Pvbn::new(*at),
            data: data.clone(),
            crc,
            tag: BlockTag::default(),
        };
        let stripes: Vec<StripeWrite> = stripes.iter().map(row).collect();
        Grid::new(Some(&group(100)), &stripes, blocks.iter().map(block).collect())
    }

    #[test]
    fn blocks_lie_where_their_addresses_say_in_whatever_order_they_come() {
        let mut blocks = vec![3, 5, 8, 1004, 1005, 2003, 2008];
        let stripes = [3, 4, 5, 8];
        for _ in 0..blocks.len() {
            blocks.rotate_left(3);
            blocks.swap(0, 4);
            let mut grid = grid(&stripes, &blocks).expect("all of them belong there");
            for (row, stripe) in stripes.iter().enumerate() {
                let there: Vec<u64> = grid.row(row).map(|(_, b)| b.at.get()).collect();
                let mut want = blocks.clone();
                want.retain(|at| at % 1000 == *stripe);
                want.sort_unstable();
                assert_eq!(there, want, "stripe {stripe}");
            }
            assert_eq!(grid.take(2, 3).map(|b| b.at.get()), Some(2008));
            assert!(grid.take(2, 3).is_none() && grid.get(3, 0).is_none());
        }
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let refused = |stripes: &[u64], blocks: &[u64]| match grid(stripes, blocks) {
            Err(WriteError::BadAddress { at }) => Some(at.get()),
            Err(_) | Ok(_) => None,
        };
        assert_eq!(refused(&[3, 4], &[3, 4, 1003, 4]), Some(4), "twice");
        assert_eq!(refused(&[3, 4], &[3, 1005]), Some(1005), "in another stripe");
        assert_eq!(refused(&[3, 200], &[3, 200]), Some(200), "behind the group's end");
        assert_eq!(refused(&[3], &[16_003]), Some(16_003), "of parity");
        assert_eq!(refused(&[4, 3], &[3, 4]), Some(3), "stripes out of order");
        assert_eq!(refused(&[3, 3], &[3, 1003]), Some(3), "a stripe twice");
    }

    #[test]
    fn a_grid_fits_the_group_it_was_made_for_and_one_that_has_grown() {
        let grid = grid(&[3], &[3, 1003, 2003]).expect("all of them belong there");
        let mut now = group(100);
        assert!(grid.fits(&now));
        let mut more = now.slots[2].clone();
        (more.column, more.pvbn_base) = (ColumnNo::new(3), Pvbn::new(9000));
        now.slots.insert(3, more);
        assert!(grid.fits(&now));
        now.slots.remove(0);
        assert!(!grid.fits(&now));
        now.slots.drain(..2);
        assert!(!grid.fits(&now));
    }
}
