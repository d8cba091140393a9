//! Two lost columns from their syndromes, by walking the diagonals; and finding a wrong column.
//!
//! Layer: above [`crate::ring`]. Source: the paper named in the crate, section 3, generalised so
//! that row parity is a ring column like the others.
//!
//! With A and B lost at ring indices a and b, the syndromes are S[r] = A[r] ⊕ B[r] and
//! Q[d] = A[d − a] ⊕ B[d − b], where row p − 1 of every column is zero. On diagonal b − 1 B has
//! that zero row, so A's row there is known; S gives B's row beside it; that row's diagonal gives
//! A's next one, and so on until the diagonal p − 1, which is not stored. The walk from diagonal
//! a − 1 with A and B exchanged gives the remaining rows. Each row is met exactly once because p is
//! prime.

use cairn_units::BLOCK_BYTES;

use crate::Bytes;
use crate::kernels::body::{chunk, chunk_mut};
use crate::kernels::{RowSum, Sum};
use crate::ring::{Ring, RingIndex, Suspect};

/// Turns the row syndromes in `blocks[0]`, and the diagonal ones, into the two lost blocks.
#[inline(always)]
pub(crate) fn solve_pair<S: Sum>(
    ring: Ring,
    lost: [RingIndex; 2],
    diagonals: &Bytes,
    blocks: [&mut Bytes; 2],
) {
    match ring {
        Ring::P17 => walks::<S, 256>(lost, diagonals, blocks),
        Ring::P257 => walks::<RowSum, 16>(lost, diagonals, blocks),
    }
}

/// Both walks, with rows of `R` bytes. A row's syndrome is needed once, just before both blocks get
/// that row.
#[inline(always)]
fn walks<S: Sum<R>, const R: usize>(
    [a, b]: [RingIndex; 2],
    diagonals: &Bytes,
    [first, second]: [&mut Bytes; 2],
) {
    // What the other column has on the diagonal; at first its zero row.
    let mut other = S::zero();
    for (row, diagonal) in walk::<R>(a, b) {
        other.add(chunk(diagonals, diagonal));
        let value = other;
        other.add(chunk(first, row));
        value.store(chunk_mut(first, row));
        other.store(chunk_mut(second, row));
    }
    let mut other = S::zero();
    for (row, diagonal) in walk::<R>(b, a) {
        other.add(chunk(diagonals, diagonal));
        let value = other;
        other.add(chunk(first, row));
        value.store(chunk_mut(second, row));
        other.store(chunk_mut(first, row));
    }
}

/// Where the rows of `a` and the diagonals that they lie on begin, from the diagonal on which `b`
/// has its zero row; rows are of `R` bytes.
#[inline(always)]
fn walk<const R: usize>(a: RingIndex, b: RingIndex) -> impl Iterator<Item = (usize, usize)> {
    let p = BLOCK_BYTES / R + 1;
    let (a, b) = (a.at(), b.at());
    // Of a sum of two terms below p: cheaper than a division.
    let modulo = move |sum: usize| if sum >= p { sum - p } else { sum };
    let mut diagonal = modulo(b + p - 1);
    core::iter::from_fn(move || {
        let row = modulo(diagonal + p - a);
        if row == p - 1 || diagonal == p - 1 {
            return None;
        }
        let at = (row * R, diagonal * R);
        diagonal = modulo(row + b);
        Some(at)
    })
}

/// What the syndromes of [`crate::Kernels::syndromes`] say. If exactly one column is wrong, this
/// names it: for a row syndrome that is not zero at most one place in the ring fits.
pub fn suspect(ring: Ring, row_syndrome: &Bytes, diagonal_syndrome: &Bytes) -> Suspect {
    if crate::is_zero(row_syndrome) {
        let clean = crate::is_zero(diagonal_syndrome);
        return if clean { Suspect::None } else { Suspect::Diagonal };
    }
    let columns = (0..=ring.data_columns_max()).filter_map(|c| ring.data(c));
    let mut columns = columns.chain([ring.row_parity()]);
    match columns.find(|c| fits(ring, *c, row_syndrome, diagonal_syndrome)) {
        Some(index) => Suspect::Column(index),
        None => Suspect::Several,
    }
}

/// Whether an error of `row_syndrome` in column `index` alone explains the diagonals.
fn fits(ring: Ring, index: RingIndex, row_syndrome: &Bytes, diagonal_syndrome: &Bytes) -> bool {
    let shares = ring.shares(index);
    let covered = shares.iter().all(|s| {
        diagonal_syndrome[s.diagonal..s.diagonal + s.bytes]
            == row_syndrome[s.column..s.column + s.bytes]
    });
    // The one diagonal on which the column has its zero row must be undisturbed.
    let zero = match index.at().checked_sub(1) {
        Some(d) => diagonal_syndrome[ring.row(d)].iter().all(|b| *b == 0),
        None => true,
    };
    covered && zero
}
