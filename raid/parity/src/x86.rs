//! The kernels for AVX2 and AVX-512.
//!
//! Layer: below [`crate::Kernels`], which alone calls in, after the processor was asked. One of the
//! few modules with unsafe code: functions with `#[target_feature]` may only be called where the
//! feature is known, and so may what they are made of. Every function has a portable twin that
//! tests compare it with.

#![expect(unsafe_code, reason = "functions compiled for processor features found at run time")]

use core::arch::x86_64::{
    __m256i, __m512i, _MM_HINT_T1, _mm_prefetch, _mm256_loadu_si256, _mm256_setzero_si256,
    _mm256_storeu_si256, _mm256_xor_si256, _mm512_loadu_si512, _mm512_setzero_si512,
    _mm512_storeu_si512, _mm512_xor_si512,
};

use crate::Bytes;
use crate::kernels::{CHUNK_BYTES, Sum};

/// The bodies, compiled again for a processor feature.
macro_rules! twins {
    ($module:ident, $feature:literal, $sum:ty) => {
        pub(crate) mod $module {
            use crate::Bytes;
            use crate::kernels::{Gather, body};
            use crate::ring::{Column, Ring, RingIndex};

            twins!(@one $feature, xor_bytes, (dst: &mut [u8], src: &[u8]));
            twins!(@one $feature, xor_all::<$sum>, (blocks: &[&Bytes], out: &mut Bytes));
            twins!(@one $feature, add_rotated,
                (ring: Ring, index: RingIndex, block: &Bytes, diagonal: &mut Bytes));
            twins!(@one $feature, gather::<$sum>,
                (ring: Ring, columns: &[Column<'_>], how: Gather<'_>,
                    row: &mut Bytes, diagonal: &mut Bytes));
            twins!(@one $feature, solve_pair::<$sum>,
                (ring: Ring, lost: [RingIndex; 2], diagonals: &Bytes, blocks: [&mut Bytes; 2]));
        }
    };
    (@one $feature:literal, $name:ident $(::<$sum:ty>)?, ( $($arg:ident : $type:ty),* )) => {
        pub(crate) fn $name($($arg: $type),*) {
            #[target_feature(enable = $feature)]
            fn compiled($($arg: $type),*) {
                body::$name $(::<$sum>)? ($($arg),*);
            }
            // SAFETY: `Kernels` has this level only after the processor reported the feature.
            unsafe { compiled($($arg),*) }
        }
    };
}
twins!(call_avx2, "avx2", crate::x86::Sum256);
twins!(call_avx512, "avx512f,avx512bw,avx512vl,avx2", crate::x86::Sum512);

/// A sum in eight AVX2 registers. Made only in twins that are compiled for AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Sum256([__m256i; CHUNK_BYTES / 32]);

impl Sum for Sum256 {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: the processor has AVX2, see the type.
        Self(unsafe { [_mm256_setzero_si256(); CHUNK_BYTES / 32] })
    }
    #[inline(always)]
    fn add(&mut self, bytes: &[u8; CHUNK_BYTES]) {
        for (sum, part) in self.0.iter_mut().zip(bytes.as_chunks::<32>().0) {
            // SAFETY: the processor has AVX2, see the type; 32 bytes are read, aligned or not.
            *sum = unsafe { _mm256_xor_si256(*sum, _mm256_loadu_si256(part.as_ptr().cast())) };
        }
    }
    #[inline(always)]
    fn store(self, to: &mut [u8; CHUNK_BYTES]) {
        for (sum, part) in self.0.into_iter().zip(to.as_chunks_mut::<32>().0) {
            // SAFETY: the processor has AVX2, see the type; 32 bytes are written, aligned or not.
            unsafe { _mm256_storeu_si256(part.as_mut_ptr().cast(), sum) }
        }
    }
}

/// A sum in four AVX-512 registers. Made only in twins that are compiled for AVX-512F.
#[derive(Clone, Copy)]
pub(crate) struct Sum512([__m512i; CHUNK_BYTES / 64]);

impl Sum for Sum512 {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: the processor has AVX-512F, see the type.
        Self(unsafe { [_mm512_setzero_si512(); CHUNK_BYTES / 64] })
    }
    #[inline(always)]
    fn add(&mut self, bytes: &[u8; CHUNK_BYTES]) {
        for (sum, part) in self.0.iter_mut().zip(bytes.as_chunks::<64>().0) {
            // SAFETY: the processor has AVX-512F, see the type; 64 bytes are read, aligned or not.
            *sum = unsafe { _mm512_xor_si512(*sum, _mm512_loadu_si512(part.as_ptr().cast())) };
        }
    }
    #[inline(always)]
    fn store(self, to: &mut [u8; CHUNK_BYTES]) {
        for (sum, part) in self.0.into_iter().zip(to.as_chunks_mut::<64>().0) {
            // SAFETY: the processor has AVX-512F, see the type; 64 bytes are written, aligned or
            // not.
            unsafe { _mm512_storeu_si512(part.as_mut_ptr().cast(), sum) }
        }
    }
}

/// Asks for a line, in the second-level cache.
#[inline(always)]
pub(crate) fn fetch(block: &Bytes, at: usize) {
    // SAFETY: a prefetch reads nothing, and never faults; SSE is part of the target.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(block.as_ptr().wrapping_add(at).cast()) }
}
