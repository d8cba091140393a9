//! Choice of instructions, and the kernels that the compiler vectorises for each level.
//!
//! Layer: above [`crate::x86`]. The bodies are written once, portably, and compiled again with
//! AVX2 and AVX-512 (`#[target_feature]`), because the default x86-64 target has only SSE2 and
//! loses a factor of three; only the fused p = 17 kernel is written by hand.
//! Bodies work in steps and pairs of sources: page-aligned blocks of more than 12 columns read in
//! lockstep would evict each other from a 12-way first-level cache.

use crate::Bytes;
use crate::ring::{Column, Ring, RingIndex};

/// Sources that are combined before the destination is touched.
const SOURCES_PER_PASS: usize = 4;

/// What the processor can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Whatever the target has.
    Portable,
    /// AVX2.
    Avx2,
    /// AVX-512 (F, BW, VL) and AVX2.
    Avx512,
}

/// The kernels of one level. Copy it around; [`Kernels::best`] is cheap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels {
    level: Level,
}

/// Calls the twin of a body that is compiled for the level.
macro_rules! dispatch {
    ($level:expr, $name:ident ( $($arg:expr),* )) => {
        match $level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => crate::x86::call_avx512::$name($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => crate::x86::call_avx2::$name($($arg),*),
            _ => body::$name($($arg),*),
        }
    };
}

impl Kernels {
    /// The fastest kernels that this processor has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2");
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") {
                return Self { level: Level::Avx512 };
            }
            if avx2 {
                return Self { level: Level::Avx2 };
            }
        }
        Self { level: Level::Portable }
    }

    /// All kernels that this processor has, the portable ones first.
    pub fn all() -> Vec<Self> {
        let best = Self::best().level;
        let levels = [Level::Portable, Level::Avx2, Level::Avx512];
        levels.into_iter().filter(|l| *l <= best).map(|level| Self { level }).collect()
    }

    /// The level of these kernels.
    pub fn level(self) -> Level {
        self.level
    }

    /// `dst ^= src`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn xor_into(self, dst: &mut [u8], src: &[u8]) {
        assert_eq!(dst.len(), src.len(), "blocks of one size");
        dispatch!(self.level, xor_into(dst, src));
    }

    /// `out` = XOR of all `blocks` (zeros when there is none): row parity of data blocks, or a
    /// lost block from the others of its row and row parity.
    pub fn xor_all(self, blocks: &[&Bytes], out: &mut Bytes) {
        out.fill(0);
        dispatch!(self.level, xor_all(blocks, out));
    }

    /// XORs the share of `columns` in row parity into `row` and their share in the diagonals into
    /// `diagonal`.
    pub fn accumulate(
        self,
        ring: Ring,
        columns: &[Column<'_>],
        row: &mut Bytes,
        diagonal: &mut Bytes,
    ) {
        #[cfg(target_arch = "x86_64")]
        if ring == Ring::P17 && self.level == Level::Avx512 && columns.len() > 1 {
            return crate::x86::accumulate_p17(columns, crate::x86::Start::Kept, row, diagonal);
        }
        dispatch!(self.level, accumulate(ring, columns, row, diagonal));
    }

    /// The partial parities of `columns` alone, completed later by [`Self::accumulate`] of the
    /// others and [`Self::finish`].
    pub fn partial(
        self,
        ring: Ring,
        columns: &[Column<'_>],
        row: &mut Bytes,
        diagonal: &mut Bytes,
    ) {
        #[cfg(target_arch = "x86_64")]
        if ring == Ring::P17 && self.level == Level::Avx512 {
            return crate::x86::accumulate_p17(columns, crate::x86::Start::Empty, row, diagonal);
        }
        row.fill(0);
        diagonal.fill(0);
        self.accumulate(ring, columns, row, diagonal);
    }

    /// Adds row parity's own share to diagonals that hold the shares of all data columns.
    /// [`Self::accumulate`] of all data columns and then this gives [`Self::encode`].
    pub fn finish(self, ring: Ring, row: &Bytes, diagonal: &mut Bytes) {
        dispatch!(self.level, add_rotated(ring, ring.row_parity(), row, diagonal));
    }

    /// Both parities of a stripe from all its data columns, in one pass over the data.
    pub fn encode(self, ring: Ring, data: &[Column<'_>], row: &mut Bytes, diagonal: &mut Bytes) {
        self.partial(ring, data, row, diagonal);
        self.finish(ring, row, diagonal);
    }

    /// Both parities after the block of data column `index` changed by `delta` (old XOR new).
    pub fn update(
        self,
        ring: Ring,
        index: RingIndex,
        delta: &Bytes,
        row: &mut Bytes,
        diagonal: &mut Bytes,
    ) {
        dispatch!(self.level, xor_into(row, delta));
        self.update_diagonal(ring, index, delta, diagonal);
    }

    /// [`Self::update`] of the diagonal block alone.
    pub fn update_diagonal(
        self,
        ring: Ring,
        index: RingIndex,
        delta: &Bytes,
        diagonal: &mut Bytes,
    ) {
        dispatch!(self.level, add_rotated(ring, index, delta, diagonal));
        dispatch!(self.level, add_rotated(ring, ring.row_parity(), delta, diagonal));
    }

    /// What is left of both parities when every given column is subtracted: zeros when `columns`
    /// (all data columns and row parity) and `diagonal` agree. See [`crate::suspect`].
    pub fn syndromes(
        self,
        ring: Ring,
        columns: &[Column<'_>],
        diagonal: &Bytes,
        row_syndrome: &mut Bytes,
        diagonal_syndrome: &mut Bytes,
    ) {
        row_syndrome.fill(0);
        diagonal_syndrome.copy_from_slice(diagonal);
        self.accumulate(ring, columns, row_syndrome, diagonal_syndrome);
    }

    /// The blocks of two lost columns (each data, or row parity), from the `present` ones (all
    /// other data columns, and row parity unless it is lost) and the diagonal.
    /// `out[i]` becomes the block of `lost[i]`.
    ///
    /// # Panics
    /// When both lost columns are the same, or one of them is among those present.
    pub fn reconstruct_pair(
        self,
        ring: Ring,
        present: &[Column<'_>],
        diagonal: &Bytes,
        lost: [RingIndex; 2],
        out: [&mut Bytes; 2],
    ) {
        assert!(lost[0] != lost[1], "two different columns are lost");
        assert!(present.iter().all(|c| !lost.contains(&c.index)), "a lost column is not present");
        let [first, second] = out;
        // The syndromes are gathered in place: rows in `first`, diagonals in `second`.
        self.syndromes(ring, present, diagonal, first, second);
        dispatch!(self.level, solve_pair(ring, lost, first, second));
    }
}

/// The portable twins.
pub(crate) mod body {
    use super::SOURCES_PER_PASS;
    use crate::Bytes;
    use crate::ring::{Column, Ring, RingIndex};

    #[inline(always)]
    pub(crate) fn xor_into(dst: &mut [u8], src: &[u8]) {
        for (d, s) in dst.iter_mut().zip(src) {
            *d ^= *s;
        }
    }

    #[inline(always)]
    fn xor_four(dst: &mut [u8], [a, b, c, d]: [&[u8]; 4]) {
        let sources = a.iter().zip(b).zip(c.iter().zip(d));
        for (out, ((a, b), (c, d))) in dst.iter_mut().zip(sources) {
            *out ^= (*a ^ *b) ^ (*c ^ *d);
        }
    }

    #[inline(always)]
    pub(crate) fn xor_all(blocks: &[&Bytes], out: &mut Bytes) {
        let mut passes = blocks.chunks_exact(SOURCES_PER_PASS);
        for four in &mut passes {
            xor_four(out, [four[0], four[1], four[2], four[3]]);
        }
        for block in passes.remainder() {
            xor_into(out, *block);
        }
    }

    #[inline(always)]
    pub(crate) fn add_rotated(ring: Ring, index: RingIndex, block: &Bytes, diagonal: &mut Bytes) {
        for share in ring.shares(index) {
            let to = &mut diagonal[share.diagonal..share.diagonal + share.bytes];
            xor_into(to, &block[share.column..share.column + share.bytes]);
        }
    }

    #[inline(always)]
    pub(crate) fn accumulate(
        ring: Ring,
        columns: &[Column<'_>],
        row: &mut Bytes,
        diagonal: &mut Bytes,
    ) {
        let mut passes = columns.chunks_exact(SOURCES_PER_PASS);
        for four in &mut passes {
            xor_four(row, [four[0].block, four[1].block, four[2].block, four[3].block]);
            // The four blocks are in the first-level cache now.
            for column in four {
                add_rotated(ring, column.index, column.block, diagonal);
            }
        }
        for column in passes.remainder() {
            xor_into(row, column.block);
            add_rotated(ring, column.index, column.block, diagonal);
        }
    }

    #[inline(always)]
    pub(crate) fn solve_pair(
        ring: Ring,
        lost: [RingIndex; 2],
        rows: &mut Bytes,
        diagonals: &mut Bytes,
    ) {
        crate::solve::solve_pair(ring, lost, rows, diagonals);
    }
}
