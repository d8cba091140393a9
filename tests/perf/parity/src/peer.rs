//! ISA-L, for comparison, where its development files are installed.
//!
//! Layer: benchmarks.

use std::hint::black_box;

use crate::Stripe;

/// The checksums of both parity blocks, as a write computes them.
pub(crate) fn checksum(stripe: &Stripe) {
    for parity in &stripe.parity {
        black_box(crc32fast::hash(&parity.0));
    }
}

/// What ISA-L does for a task.
#[cfg(isal)]
pub(crate) enum Peer {
    Encode,
    EncodeCrc,
    Decode(Vec<u8>),
}

/// Not installed.
#[cfg(not(isal))]
pub(crate) enum Peer {}

#[cfg(not(isal))]
impl Peer {
    pub(crate) fn encode() -> Option<Self> {
        None
    }
    pub(crate) fn encode_crc() -> Option<Self> {
        None
    }
    pub(crate) fn decode() -> Option<Self> {
        None
    }
    pub(crate) fn run(&mut self, _stripe: &mut Stripe) {
        match *self {}
    }
}

#[cfg(isal)]
mod linked {
    use core::ffi::{c_int, c_uchar, c_void};

    use super::{Peer, checksum};
    use crate::{DATA_COLUMNS, LOST, Page, Stripe};

    /// Sources, and then all blocks, as ISA-L counts them.
    const K: c_int = 14;
    const M: c_int = 16;
    const _: () = assert!(K as usize == DATA_COLUMNS && M == K + 2);
    /// Bytes of a block.
    const LEN: c_int = 4096;
    /// Bytes of table for each coefficient.
    const TABLE_BYTES: usize = 32;

    unsafe extern "C" {
        fn pq_gen(vects: c_int, len: c_int, array: *mut *mut c_void) -> c_int;
        fn gf_gen_cauchy1_matrix(a: *mut c_uchar, m: c_int, k: c_int);
        fn ec_init_tables(k: c_int, rows: c_int, a: *mut c_uchar, tables: *mut c_uchar);
        fn ec_encode_data(
            len: c_int,
            k: c_int,
            rows: c_int,
            tables: *mut c_uchar,
            data: *mut *mut c_uchar,
            coding: *mut *mut c_uchar,
        );
    }

    impl Peer {
        pub(crate) fn encode() -> Option<Self> {
            Some(Self::Encode)
        }
        pub(crate) fn encode_crc() -> Option<Self> {
            Some(Self::EncodeCrc)
        }
        /// Two lost blocks from fourteen that are left: which coefficients does not matter.
        pub(crate) fn decode() -> Option<Self> {
            let mut matrix = [0; (DATA_COLUMNS + 2) * DATA_COLUMNS];
            let mut tables = vec![0; TABLE_BYTES * 2 * DATA_COLUMNS];
            // SAFETY: the matrix is M x K bytes.
            unsafe { gf_gen_cauchy1_matrix(matrix.as_mut_ptr(), M, K) };
            let coefficients = &mut matrix[DATA_COLUMNS * DATA_COLUMNS..];
            // SAFETY: 2 x K coefficients, and 32 bytes of table for each.
            unsafe { ec_init_tables(K, 2, coefficients.as_mut_ptr(), tables.as_mut_ptr()) };
            Some(Self::Decode(tables))
        }

        pub(crate) fn run(&mut self, stripe: &mut Stripe) {
            match self {
                Self::Encode => encode(stripe),
                Self::EncodeCrc => {
                    encode(stripe);
                    checksum(stripe);
                }
                Self::Decode(tables) => decode(tables, stripe),
            }
        }
    }

    fn encode(stripe: &mut Stripe) {
        let Stripe { data, parity, .. } = stripe;
        let mut blocks = data.iter_mut().chain(parity);
        let mut array: [*mut c_void; DATA_COLUMNS + 2] = core::array::from_fn(|_| {
            blocks.next().map_or(core::ptr::null_mut(), |page| page.0.as_mut_ptr().cast())
        });
        // SAFETY: 16 pointers to 4096 aligned bytes that are borrowed for writing.
        let result = unsafe { pq_gen(M, LEN, array.as_mut_ptr()) };
        assert!(result == 0, "pq_gen");
    }

    fn decode(tables: &mut [u8], stripe: &mut Stripe) {
        let Stripe { data, parity, copy } = stripe;
        let kept = data.iter_mut().enumerate().filter(|(i, _)| !LOST.contains(i));
        let mut kept = kept.map(|(_, page)| page).chain(parity);
        let bytes = |page: &mut &'static mut Page| page.0.as_mut_ptr();
        let mut sources: [*mut c_uchar; DATA_COLUMNS] =
            core::array::from_fn(|_| kept.next().map_or(core::ptr::null_mut(), bytes));
        let [first, second, ..] = copy;
        let mut out = [bytes(first), bytes(second)];
        let (from, to) = (sources.as_mut_ptr(), out.as_mut_ptr());
        // SAFETY: 14 pointers to 4096 bytes to read, two to write, tables of 14 x 2 coefficients.
        unsafe { ec_encode_data(LEN, K, 2, tables.as_mut_ptr(), from, to) };
    }
}
