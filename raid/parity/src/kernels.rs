//! Choice of instructions, and the kernels.
//!
//! Layer: above [`crate::x86`]. The bodies are written once and compiled again with AVX2 and
//! AVX-512 (`#[target_feature]`), because the default x86-64 target has only SSE2 and loses a
//! factor of three. What a body adds up it holds in registers, as a [`Sum`]: the parity of a
//! chunk is gathered from all columns and stored once.
//!
//! Blocks are page-aligned, so the chunks that are added up share their sets in the first-level
//! cache. That costs nothing where every line is used once: rows are gathered in order of address,
//! which the hardware's prefetching follows, and diagonals after them from the second level. One
//! pass for both, a row of every column at a time, is a little faster there but jumps about in
//! memory, and is two to three times slower from there.

use cairn_units::BLOCK_BYTES;

use crate::Bytes;
use crate::ring::{Column, Ring, RingIndex};

/// Columns that go by together. Page-aligned blocks share their sets in the first-level cache:
/// five of them and both parities fit one of eight ways.
const NEAR_GROUP: usize = 5;
/// Likewise, where they come from memory: the more at once the better, as long as the second-level
/// cache holds them.
const FAR_GROUP: usize = 16;

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
    ($level:expr, $name:ident $([$sum:ty])? ( $($arg:expr),* )) => {
        match $level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => crate::x86::call_avx512::$name($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => crate::x86::call_avx2::$name($($arg),*),
            _ => body::$name $(::<$sum>)? ($($arg),*),
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
        dispatch!(self.level, xor_bytes(dst, src));
    }

    /// `out` = XOR of all `blocks` (zeros when there is none): row parity of data blocks, or a
    /// lost block from the others of its row and row parity.
    pub fn xor_all(self, blocks: &[&Bytes], out: &mut Bytes) {
        dispatch!(self.level, xor_all[PortableSum](blocks, out));
    }

    /// XORs the share of `columns` in row parity into `row` and their share in the diagonals into
    /// `diagonal`. A column may be given twice: old and new contents, for what changes.
    pub fn accumulate(
        self,
        ring: Ring,
        columns: &[Column<'_>],
        row: &mut Bytes,
        diagonal: &mut Bytes,
    ) {
        dispatch!(self.level, gather[PortableSum](ring, columns, Gather::ADD, row, diagonal));
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
        dispatch!(self.level, gather[PortableSum](ring, columns, Gather::PARTIAL, row, diagonal));
    }

    /// Adds row parity's own share to diagonals that hold the shares of all data columns.
    /// [`Self::accumulate`] of all data columns and then this gives [`Self::encode`].
    pub fn finish(self, ring: Ring, row: &Bytes, diagonal: &mut Bytes) {
        dispatch!(self.level, add_rotated(ring, ring.row_parity(), row, diagonal));
    }

    /// Both parities of a stripe from all its data columns. A column may be given twice, as in
    /// [`Self::accumulate`].
    pub fn encode(self, ring: Ring, data: &[Column<'_>], row: &mut Bytes, diagonal: &mut Bytes) {
        self.encode_ahead(ring, data, &[], row, diagonal);
    }

    /// [`Self::encode`], while the blocks `next` are fetched from memory: those of the next stripe.
    pub fn encode_ahead(
        self,
        ring: Ring,
        data: &[Column<'_>],
        next: &[&Bytes],
        row: &mut Bytes,
        diagonal: &mut Bytes,
    ) {
        let whole = Gather { next, far: !next.is_empty(), ..Gather::WHOLE };
        dispatch!(self.level, gather[PortableSum](ring, data, whole, row, diagonal));
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
        dispatch!(self.level, xor_bytes(row, delta));
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
        let beside = Gather { beside: Some(diagonal), far: true, ..Gather::PARTIAL };
        dispatch!(
            self.level,
            gather[PortableSum](ring, columns, beside, row_syndrome, diagonal_syndrome)
        );
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
        let mut diagonals = [0; BLOCK_BYTES];
        // The row syndromes are gathered in place.
        self.syndromes(ring, present, diagonal, first, &mut diagonals);
        dispatch!(self.level, solve_pair[PortableSum](ring, lost, &diagonals, [first, second]));
    }
}

/// What is gathered beside the columns.
#[derive(Clone, Copy)]
pub(crate) struct Gather<'a> {
    /// Both parities are added to; else they are overwritten.
    add: bool,
    /// Row parity's own share goes into the diagonals.
    finish: bool,
    /// Diagonals to start with.
    beside: Option<&'a Bytes>,
    /// The columns are expected to come from memory.
    far: bool,
    /// Blocks to fetch meanwhile.
    next: &'a [&'a Bytes],
}

impl Gather<'_> {
    const PARTIAL: Self = Self { add: false, finish: false, beside: None, far: false, next: &[] };
    const ADD: Self = Self { add: true, ..Self::PARTIAL };
    const WHOLE: Self = Self { finish: true, ..Self::PARTIAL };
}

/// Bytes that are added up in registers: a row at p = 17.
pub(crate) const CHUNK_BYTES: usize = 256;

/// Chunks of a block.
const CHUNKS: usize = BLOCK_BYTES / CHUNK_BYTES;

/// A sum of runs of `N` bytes, in registers.
pub(crate) trait Sum<const N: usize = CHUNK_BYTES>: Copy {
    /// The sum of none.
    fn zero() -> Self;
    /// Adds one.
    fn add(&mut self, bytes: &[u8; N]);
    /// Writes the sum down.
    fn store(self, to: &mut [u8; N]);
}

/// The sum where the processor has nothing better.
#[derive(Clone, Copy)]
pub(crate) struct PortableSum([u8; CHUNK_BYTES]);

impl Sum for PortableSum {
    #[inline(always)]
    fn zero() -> Self {
        Self([0; CHUNK_BYTES])
    }
    #[inline(always)]
    fn add(&mut self, bytes: &[u8; CHUNK_BYTES]) {
        body::xor_bytes(&mut self.0, bytes);
    }
    #[inline(always)]
    fn store(self, to: &mut [u8; CHUNK_BYTES]) {
        *to = self.0;
    }
}

/// A sum of rows at p = 257.
#[derive(Clone, Copy)]
pub(crate) struct RowSum(u128);

impl Sum<16> for RowSum {
    #[inline(always)]
    fn zero() -> Self {
        Self(0)
    }
    #[inline(always)]
    fn add(&mut self, bytes: &[u8; 16]) {
        self.0 ^= u128::from_ne_bytes(*bytes);
    }
    #[inline(always)]
    fn store(self, to: &mut [u8; 16]) {
        *to = self.0.to_ne_bytes();
    }
}

/// The bodies, each for any kind of sum.
pub(crate) mod body {
    use cairn_units::BLOCK_BYTES;

    use super::{CHUNK_BYTES, CHUNKS, FAR_GROUP, Gather, NEAR_GROUP, Sum};
    use crate::Bytes;
    use crate::ring::{Column, Ring, RingIndex};

    #[inline(always)]
    pub(crate) fn xor_bytes(dst: &mut [u8], src: &[u8]) {
        for (d, s) in dst.iter_mut().zip(src) {
            *d ^= *s;
        }
    }

    #[inline(always)]
    pub(crate) fn chunk<const N: usize>(block: &Bytes, at: usize) -> &[u8; N] {
        match block[at..].first_chunk() {
            Some(chunk) => chunk,
            None => unreachable!("a chunk lies within its block"),
        }
    }

    #[inline(always)]
    pub(crate) fn chunk_mut<const N: usize>(block: &mut Bytes, at: usize) -> &mut [u8; N] {
        match block[at..].first_chunk_mut() {
            Some(chunk) => chunk,
            None => unreachable!("a chunk lies within its block"),
        }
    }

    #[inline(always)]
    pub(crate) fn xor_all<S: Sum>(blocks: &[&Bytes], out: &mut Bytes) {
        for at in (0..BLOCK_BYTES).step_by(CHUNK_BYTES) {
            let mut sum = S::zero();
            for block in blocks {
                sum.add(chunk(block, at));
            }
            sum.store(chunk_mut(out, at));
        }
    }

    #[inline(always)]
    pub(crate) fn add_rotated(ring: Ring, index: RingIndex, block: &Bytes, diagonal: &mut Bytes) {
        for share in ring.shares(index) {
            let to = &mut diagonal[share.diagonal..share.diagonal + share.bytes];
            xor_bytes(to, &block[share.column..share.column + share.bytes]);
        }
    }

    #[inline(always)]
    pub(crate) fn gather<S: Sum>(
        ring: Ring,
        columns: &[Column<'_>],
        how: Gather<'_>,
        row: &mut Bytes,
        diagonal: &mut Bytes,
    ) {
        match ring {
            Ring::P17 => gather_in::<S, 256>(columns, how, row, diagonal),
            Ring::P257 => gather_in::<S, 16>(columns, how, row, diagonal),
        }
    }

    /// [`gather`] with rows of `R` bytes.
    #[inline(always)]
    fn gather_in<S: Sum, const R: usize>(
        columns: &[Column<'_>],
        how: Gather<'_>,
        row: &mut Bytes,
        diagonal: &mut Bytes,
    ) {
        let most = if how.far { FAR_GROUP } else { NEAR_GROUP };
        let size = columns.len().div_ceil(columns.len().div_ceil(most).max(1));
        let mut how = how;
        let mut columns = columns;
        loop {
            let (group, rest) = columns.split_at(size.min(columns.len()));
            let (next, later) = how.next.split_at(size.min(how.next.len()));
            let now = Gather { next, finish: how.finish && rest.is_empty(), ..how };
            // Loops over a number of columns that the compiler knows are faster.
            match *group {
                _ if how.far => far_group::<S, R>(group, now, row, diagonal),
                [a, b, c, d, e] => near_group::<S, R>(&[a, b, c, d, e], now, row, diagonal),
                [a, b, c, d] => near_group::<S, R>(&[a, b, c, d], now, row, diagonal),
                [a, b, c] => near_group::<S, R>(&[a, b, c], now, row, diagonal),
                _ => near_group::<S, R>(group, now, row, diagonal),
            }
            if rest.is_empty() {
                return;
            }
            columns = rest;
            how = Gather { add: true, beside: None, next: later, ..how };
        }
    }

    /// Rows and diagonals in one loop: each chunk of diagonals soon after the chunks that lie on
    /// it, while these are in the first-level cache.
    #[inline(always)]
    fn near_group<S: Sum, const R: usize>(
        columns: &[Column<'_>],
        how: Gather<'_>,
        row: &mut Bytes,
        diagonal: &mut Bytes,
    ) {
        let base = columns.first().map_or(0, |c| c.index.at() * R / CHUNK_BYTES);
        for i in 0..CHUNKS {
            row_chunk::<S>(columns, i * CHUNK_BYTES, how, row);
            // Row parity's own share in a chunk of diagonals ends a row behind it.
            let at = match how.finish {
                true => i.checked_sub(1),
                false => Some((i + base) % CHUNKS),
            };
            if let Some(at) = at {
                diagonal_chunk::<S, R>(columns, at * CHUNK_BYTES, how, row, diagonal);
            }
        }
        if how.finish {
            diagonal_chunk::<S, R>(columns, BLOCK_BYTES - CHUNK_BYTES, how, row, diagonal);
        }
    }

    /// All rows in order of address, then the diagonals from the second-level cache.
    #[inline(always)]
    fn far_group<S: Sum, const R: usize>(
        columns: &[Column<'_>],
        how: Gather<'_>,
        row: &mut Bytes,
        diagonal: &mut Bytes,
    ) {
        for at in (0..BLOCK_BYTES).step_by(CHUNK_BYTES) {
            row_chunk::<S>(columns, at, how, row);
        }
        for at in (0..BLOCK_BYTES).step_by(CHUNK_BYTES) {
            diagonal_chunk::<S, R>(columns, at, how, row, diagonal);
        }
    }

    #[inline(always)]
    fn row_chunk<S: Sum>(columns: &[Column<'_>], at: usize, how: Gather<'_>, row: &mut Bytes) {
        let mut sum = S::zero();
        if how.add {
            sum.add(chunk(row, at));
        }
        for (i, column) in columns.iter().enumerate() {
            sum.add(chunk(column.block, at));
            fetch(how.next.get(i), at);
        }
        sum.store(chunk_mut(row, at));
    }

    #[inline(always)]
    fn diagonal_chunk<S: Sum, const R: usize>(
        columns: &[Column<'_>],
        at: usize,
        how: Gather<'_>,
        row: &Bytes,
        diagonal: &mut Bytes,
    ) {
        let mut sum = S::zero();
        let mut any_split = false;
        for (i, column) in columns.iter().enumerate() {
            match whole::<R>(at, column.index.at() * R) {
                Some(from) => sum.add(chunk(column.block, from)),
                // A chunk is a row at p = 17.
                None => any_split = R < CHUNK_BYTES,
            }
            fetch(how.next.get(i), at + CHUNK_BYTES / 2);
        }
        let own = how.finish.then_some((BLOCK_BYTES, row));
        if let Some((up, row)) = own {
            match whole::<R>(at, up) {
                Some(from) => sum.add(chunk(row, from)),
                None => any_split = R < CHUNK_BYTES,
            }
        }
        if any_split {
            let moved = columns.iter().map(|c| (c.index.at() * R, c.block)).chain(own);
            sum.add(&add_rows::<R>(moved.filter(|(up, _)| whole::<R>(at, *up).is_none()), at));
        }
        if how.add {
            sum.add(chunk(diagonal, at));
        }
        if let Some(beside) = how.beside {
            sum.add(chunk(beside, at));
        }
        sum.store(chunk_mut(diagonal, at));
    }

    /// Where a column whose rows are moved up by `up` bytes has the row that lies on the diagonal
    /// at `at`; `None` for the row that it does not have.
    #[inline(always)]
    fn source<const R: usize>(at: usize, up: usize) -> Option<usize> {
        if at >= up {
            Some(at - up)
        } else if at + R < up {
            Some(at + BLOCK_BYTES + R - up)
        } else {
            None
        }
    }

    /// Where the column has the rows of a whole chunk of diagonals, if they are in one piece.
    #[inline(always)]
    fn whole<const R: usize>(at: usize, up: usize) -> Option<usize> {
        let first = source::<R>(at, up)?;
        let last = source::<R>(at + CHUNK_BYTES - R, up)?;
        (first < last || R == CHUNK_BYTES).then_some(first)
    }

    /// The sum of columns in a chunk of diagonals in which none of them is in one piece.
    #[inline(always)]
    fn add_rows<'b, const R: usize>(
        columns: impl Iterator<Item = (usize, &'b Bytes)> + Clone,
        at: usize,
    ) -> [u8; CHUNK_BYTES] {
        let mut out = [0; CHUNK_BYTES];
        for to in (0..CHUNK_BYTES).step_by(R) {
            let mut sum = [0; R];
            for (up, block) in columns.clone() {
                if let Some(from) = source::<R>(at + to, up) {
                    xor_bytes(&mut sum, &block[from..from + R]);
                }
            }
            out[to..to + R].copy_from_slice(&sum);
        }
        out
    }

    /// Asks for half a chunk of a block that is needed soon, in the second-level cache.
    #[inline(always)]
    fn fetch(block: Option<&&Bytes>, at: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(block) = block {
            crate::x86::fetch(block, at);
            crate::x86::fetch(block, at + 64);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _unused = (block, at);
    }

    #[inline(always)]
    pub(crate) fn solve_pair<S: Sum>(
        ring: Ring,
        lost: [RingIndex; 2],
        diagonals: &Bytes,
        blocks: [&mut Bytes; 2],
    ) {
        crate::solve::solve_pair::<S>(ring, lost, diagonals, blocks);
    }
}
