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
