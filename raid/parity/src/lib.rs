//! XOR kernels and row-diagonal parity (RAID-DP), one block deep.
//!
//! Layer: pure computation below RAID groups; no disk, no clock, no allocation. Source: Corbett et
//! al., "Row-Diagonal Parity for Double Disk Failure Correction" (FAST 2004).
//!
//! # Geometry
//! A [`Ring`] is a prime p. A block is p − 1 rows; a stripe is one block per column. Every column
//! but the diagonal one has a ring index c in 0..p: data columns 0..=p−2, row parity p−1.
//! Row r of column c lies on diagonal (r + c) mod p; diagonal p−1 is not stored. An absent column
//! counts as zeros, so the same functions serve every width of group, and a zeroed column joins
//! without touching parity.
//!
//! ```text
//! row parity   R[r] = ⊕ over data columns c          of B_c[r]
//! diagonal     D[d] = ⊕ over data columns c and R    of B_c[(d − c) mod p]      (row p−1 = 0)
//! ```
//!
//! # Use
//! | task | function |
//! |---|---|
//! | full stripe, both parities | [`Kernels::encode`] |
//! | RAID-4 parity, or a block lost with row parity left | [`Kernels::xor_all`] |
//! | one block changes | [`Kernels::update`] with old ⊕ new |
//! | parity of some columns, completed later | [`Kernels::partial`], [`Kernels::accumulate`], [`Kernels::finish`] |
//! | two columns lost (data, row parity) | [`Kernels::reconstruct_pair`] |
//! | data and diagonal lost | [`Kernels::xor_all`], then [`Kernels::encode`] |
//! | row and diagonal lost | [`Kernels::encode`] |
//! | whether a stripe adds up, and which column is wrong | [`Kernels::syndromes`], [`suspect`] |
//!
//! # Invariants
//! - Every [`Level`] of instructions gives the same bytes; tests compare each with the portable
//!   one, and that one with a solution of the equations by elimination.
//! - A [`Kernels`] of a level exists only on a processor that has it.

mod kernels;
mod ring;
mod solve;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use kernels::{Kernels, Level};
pub use ring::{Column, Ring, RingIndex, Suspect};
pub use solve::suspect;

/// One block.
pub type Bytes = [u8; cairn_units::BLOCK_BYTES];

/// Whether all bytes are zero.
pub fn is_zero(block: &Bytes) -> bool {
    block.iter().fold(0, |all, byte| all | byte) == 0
}
