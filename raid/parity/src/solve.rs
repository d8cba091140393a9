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
use crate::ring::{Ring, RingIndex, Suspect};

/// Turns (row syndromes, diagonal syndromes) into (block of `lost[0]`, block of `lost[1]`).
#[inline(always)]
pub(crate) fn solve_pair(
    ring: Ring,
    lost: [RingIndex; 2],
    rows: &mut Bytes,
    diagonals: &mut Bytes,
) {
    let mut first = [0u8; BLOCK_BYTES];
    let mut second = [0u8; BLOCK_BYTES];
    match ring {
        Ring::P17 => {
            walk::<256>(lost[0], lost[1], rows, diagonals, &mut first, &mut second);
            walk::<256>(lost[1], lost[0], rows, diagonals, &mut second, &mut first);
        }
        Ring::P257 => {
            walk::<16>(lost[0], lost[1], rows, diagonals, &mut first, &mut second);
            walk::<16>(lost[1], lost[0], rows, diagonals, &mut second, &mut first);
        }
    }
    *rows = first;
    *diagonals = second;
}

/// Walks from the diagonal on which `b` has its zero row; `R` is the size of a row.
#[inline(always)]
fn walk<const R: usize>(
    a: RingIndex,
    b: RingIndex,
    rows: &Bytes,
    diagonals: &Bytes,
    block_a: &mut Bytes,
    block_b: &mut Bytes,
) {
    let p = BLOCK_BYTES / R + 1;
    let (a, b) = (a.at(), b.at());
    // What the other column has on the diagonal; at first its zero row.
    let mut other = [0u8; R];
    let mut diagonal = (b + p - 1) % p;
    while diagonal != p - 1 {
        let row = (diagonal + p - a) % p;
        if row == p - 1 {
            break;
        }
        let (at, q) = (row * R, diagonal * R);
        for i in 0..R {
            let value = diagonals[q + i] ^ other[i];
            block_a[at + i] = value;
            other[i] = rows[at + i] ^ value;
            block_b[at + i] = other[i];
        }
        diagonal = (row + b) % p;
    }
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
