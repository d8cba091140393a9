//! The kernels for AVX2 and AVX-512.
//!
//! Layer: below [`crate::Kernels`], which alone calls in, after the processor was asked. One of the
//! few modules with unsafe code: functions with `#[target_feature]` may only be called where the
//! feature is known, and the fused kernel reads through pointers. Every function has a portable
//! twin that tests compare it with.

#![expect(unsafe_code, reason = "functions compiled for processor features found at run time")]

use core::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_loadu_si512, _mm512_setzero_si512,
    _mm512_storeu_si512, _mm512_ternarylogic_epi64, _mm512_xor_si512,
};

use cairn_units::BLOCK_BYTES;

use crate::Bytes;
use crate::ring::{Column, Ring};

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
/// Bytes of a vector: a row is four of them, and each is one pass over the rows.
const LANE_BYTES: usize = 64;
/// Columns that go by together. Four of the current group, four of the next one that is being
/// fetched, both parities: 10 blocks, which a 12-way first-level cache holds although all of them
/// are page-aligned; and 16 diagonal accumulators with their operands fit the 32 registers.
const GROUP: usize = 4;

/// Stands in for a column that is not there.
static ABSENT: Page = Page([0; BLOCK_BYTES]);
#[repr(align(4096))]
struct Page(Bytes);

/// What the parity blocks hold before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Something to add to.
    Kept,
    /// Nothing that counts.
    Empty,
}

/// [`crate::Kernels::accumulate`] for p = 17; with [`Start::Empty`] the parities are overwritten.
pub(crate) fn accumulate_p17(
    columns: &[Column<'_>],
    start: Start,
    row: &mut Bytes,
    diagonal: &mut Bytes,
) {
    let mut slots: [Option<&Bytes>; 17] = [None; 17];
    let mut twice = false;
    for column in columns {
        let slot = &mut slots[column.index.at()];
        twice |= slot.is_some();
        *slot = Some(column.block);
    }
    assert!(!twice, "a column stands in a stripe once");
    let mut start = start;
    let groups: [&[Option<&Bytes>]; 4] = core::array::from_fn(|g| &slots[g * GROUP..][..GROUP]);
    for (g, group) in groups.iter().enumerate() {
        if group.iter().all(Option::is_none) {
            continue;
        }
        let mut present = groups[g + 1..].iter().filter(|n| n.iter().any(Option::is_some));
        let next = present.next().map_or([None; GROUP], |n| core::array::from_fn(|i| n[i]));
        let sources = core::array::from_fn(|i| group[i].unwrap_or(&ABSENT.0));
        // SAFETY: `Kernels` has this level only after the processor reported AVX-512F.
        unsafe {
            match (g, start) {
                (0, Start::Kept) => group_p17::<0, false>(sources, next, row, diagonal),
                (1, Start::Kept) => group_p17::<4, false>(sources, next, row, diagonal),
                (2, Start::Kept) => group_p17::<8, false>(sources, next, row, diagonal),
                (_, Start::Kept) => group_p17::<12, false>(sources, next, row, diagonal),
                (0, Start::Empty) => group_p17::<0, true>(sources, next, row, diagonal),
                (1, Start::Empty) => group_p17::<4, true>(sources, next, row, diagonal),
                (2, Start::Empty) => group_p17::<8, true>(sources, next, row, diagonal),
                (_, Start::Empty) => group_p17::<12, true>(sources, next, row, diagonal),
            }
        }
        start = Start::Kept;
    }
    if start == Start::Empty {
        row.fill(0);
        diagonal.fill(0);
    }
    if let Some(block) = slots[16] {
        let last = Column { index: Ring::P17.row_parity(), block };
        call_avx512::accumulate(Ring::P17, &[last], row, diagonal);
    }
}

/// Adds four neighbouring columns, the first at ring index `BASE`, to both parities. Each byte of
/// data is loaded once for both; the columns of the next group are fetched meanwhile, one line for
/// each that is used, which is what makes it fast when the data comes from memory.
#[target_feature(enable = "avx512f")]
fn group_p17<const BASE: usize, const EMPTY: bool>(
    sources: [&Bytes; GROUP],
    next: [Option<&Bytes>; GROUP],
    row: &mut Bytes,
    diagonal: &mut Bytes,
) {
    let next: [&Bytes; GROUP] = core::array::from_fn(|i| next[i].unwrap_or(sources[i]));
    for lane in (0..ROW_BYTES).step_by(LANE_BYTES) {
        // In order of address, so that the hardware sees a stream and runs ahead.
        let line = lane / LANE_BYTES * 16;
        // Index 16 is the diagonal that is not stored: the compiler drops it.
        let mut sums = [_mm512_setzero_si512(); 17];
        macro_rules! each_row {
            ($($r:literal)*) => {$(
                let [a, b, c, d] = [
                    load(sources[0], $r, lane),
                    load(sources[1], $r, lane),
                    load(sources[2], $r, lane),
                    load(sources[3], $r, lane),
                ];
                fetch(next[0], line + $r);
                fetch(next[1], line + $r);
                fetch(next[2], line + $r);
                fetch(next[3], line + $r);
                let mut sum = xor3(a, b, c);
                sum = match EMPTY {
                    true => _mm512_xor_si512(sum, d),
                    false => xor3(sum, d, load(row, $r, lane)),
                };
                store(row, $r, lane, sum);
                sums[($r + BASE) % 17] = _mm512_xor_si512(sums[($r + BASE) % 17], a);
                sums[($r + BASE + 1) % 17] = _mm512_xor_si512(sums[($r + BASE + 1) % 17], b);
                sums[($r + BASE + 2) % 17] = _mm512_xor_si512(sums[($r + BASE + 2) % 17], c);
                sums[($r + BASE + 3) % 17] = _mm512_xor_si512(sums[($r + BASE + 3) % 17], d);
            )*};
        }
        each_row!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        macro_rules! each_diagonal {
            ($($d:literal)*) => {$(
                let sum = match EMPTY {
                    true => sums[$d],
                    false => _mm512_xor_si512(sums[$d], load(diagonal, $d, lane)),
                };
                store(diagonal, $d, lane, sum);
            )*};
        }
        each_diagonal!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
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

#[target_feature(enable = "avx512f")]
#[inline]
fn fetch(block: &Bytes, line: usize) {
    _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(line * LANE_BYTES).cast());
}
