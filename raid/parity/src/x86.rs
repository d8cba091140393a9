//! The kernels for AVX2 and AVX-512.
//!
//! Layer: below [`crate::Kernels`], which alone calls in, after the processor was asked. One of the
//! few modules with unsafe code: functions with `#[target_feature]` may only be called where the
//! feature is known, and the fused kernel reads through pointers. Every function has a portable
//! twin that tests compare it with.

#![expect(unsafe_code, reason = "functions compiled for processor features found at run time")]

use core::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_xor_si512};

use crate::Bytes;
use crate::ring::Column;

/// The portable bodies, compiled again for a processor feature.
macro_rules! twins {
    ($module:ident, $feature:literal) => {
        pub(crate) mod $module {
            use crate::Bytes;
            use crate::kernels::body;
            use crate::ring::{Column, Ring, RingIndex};

            twins!(@one $feature, xor_into(dst: &mut [u8], src: &[u8]));
            twins!(@one $feature, xor_all(blocks: &[&Bytes], out: &mut Bytes));
            twins!(@one $feature,
                add_rotated(ring: Ring, index: RingIndex, block: &Bytes, diagonal: &mut Bytes));
            twins!(@one $feature,
                accumulate(ring: Ring, columns: &[Column<'_>], row: &mut Bytes, diagonal: &mut Bytes));
            twins!(@one $feature,
                solve_pair(ring: Ring, lost: [RingIndex; 2], rows: &mut Bytes, diagonals: &mut Bytes));
        }
    };
    (@one $feature:literal, $name:ident ( $($arg:ident : $type:ty),* )) => {
        pub(crate) fn $name($($arg: $type),*) {
            #[target_feature(enable = $feature)]
            fn compiled($($arg: $type),*) {
                body::$name($($arg),*);
            }
            // SAFETY: `Kernels` has this level only after the processor reported the feature.
            unsafe { compiled($($arg),*) }
        }
    };
}
twins!(call_avx2, "avx2");
twins!(call_avx512, "avx512f,avx512bw,avx512vl,avx2");

/// Bytes of a row at p = 17.
const ROW_BYTES: usize = 256;
/// Bytes of a vector: a row is four of them, and each is one pass over the columns.
const LANE_BYTES: usize = 64;

/// [`crate::Kernels::accumulate`] for p = 17.
pub(crate) fn accumulate_p17(columns: &[Column<'_>], row: &mut Bytes, diagonal: &mut Bytes) {
    // A column of a ring of another size, or twice the same: the general way.
    let mut slots: [Option<&Bytes>; 17] = [None; 17];
    for column in columns {
        match slots.get_mut(column.index.at()) {
            Some(slot) if slot.is_none() => *slot = Some(column.block),
            _ => return call_avx512::accumulate(crate::Ring::P17, columns, row, diagonal),
        }
    }
    // SAFETY: `Kernels` has this level only after the processor reported AVX-512F.
    unsafe { fused_p17(&slots, row, diagonal) }
}

/// All 16 row and 16 diagonal accumulators stay in the 32 vector registers while the columns go
/// by, so that each byte of data is loaded once for both parities.
#[target_feature(enable = "avx512f")]
fn fused_p17(slots: &[Option<&Bytes>; 17], row: &mut Bytes, diagonal: &mut Bytes) {
    for lane in (0..ROW_BYTES).step_by(LANE_BYTES) {
        let mut rows: [__m512i; 16] = load_rows(row, lane);
        let stored: [__m512i; 16] = load_rows(diagonal, lane);
        let mut diagonals = [stored[0]; 17];
        diagonals[..16].copy_from_slice(&stored);
        macro_rules! step {
            ($source:ident, $c:literal, $($r:literal)*) => {$(
                let v = load($source, $r, lane);
                rows[$r] = _mm512_xor_si512(rows[$r], v);
                // Index 16 is the diagonal that is not stored: the compiler drops it.
                diagonals[($r + $c) % 17] = _mm512_xor_si512(diagonals[($r + $c) % 17], v);
            )*};
        }
        macro_rules! column {
            ($($c:literal)*) => {$(
                if let Some(source) = slots[$c] {
                    step!(source, $c, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
                }
            )*};
        }
        column!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
        for (r, v) in rows.iter().enumerate() {
            store(row, r, lane, *v);
        }
        for (d, v) in diagonals[..16].iter().enumerate() {
            store(diagonal, d, lane, *v);
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_rows(block: &Bytes, lane: usize) -> [__m512i; 16] {
    core::array::from_fn(
        #[inline(always)]
        |r| load(block, r, lane),
    )
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(block: &Bytes, row: usize, lane: usize) -> __m512i {
    debug_assert!(row < 16 && lane + LANE_BYTES <= ROW_BYTES);
    // SAFETY: row * 256 + lane + 64 <= 4096 for the rows 0..16 and lanes 0..=192 that callers
    // name; unaligned loads are allowed.
    unsafe { _mm512_loadu_si512(block.as_ptr().add(row * ROW_BYTES + lane).cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(block: &mut Bytes, row: usize, lane: usize, value: __m512i) {
    debug_assert!(row < 16 && lane + LANE_BYTES <= ROW_BYTES);
    // SAFETY: as in `load`; the block is borrowed for writing.
    unsafe { _mm512_storeu_si512(block.as_mut_ptr().add(row * ROW_BYTES + lane).cast(), value) }
}
