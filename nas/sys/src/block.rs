//! Block buffers: 4 KiB, aligned to 4 KiB, reference-counted, recycled through a pool.
//!
//! A payload is received from a socket straight into [`BlockMut`]s, frozen into [`Block`]s, kept
//! in the buffer cache, handed to the consistency point and to the disk driver, and referenced by
//! replies: the same memory all the way. A frozen block never changes under a holder: whoever
//! wants to change a block that others hold gets a copy ([`Block::make_mut`]). That is how a
//! buffer caught in a consistency point is copied on the next write and never waited for.
//!
//! A block knows its CRC-32 once somebody asked ([`Block::crc`]); who receives data asks while it
//! is warm ([`BlockMut::warm_crc`]), so that pointer, stamp and log need not read it again.
//!
//! Pages come from slabs that live as long as the process, so that a driver can register them
//! with the kernel once ([`slabs`]). A slab is cut into runs of [`RUN_PAGES`]: who takes many pages at
//! once ([`BlockMut::take_many`]) gets neighbours, so that the blocks of one transfer are few pieces of
//! memory on their way to a disk. The pool never shrinks, and makes a slab when no page is
//! free, or ahead of that ([`reserve`]: a node takes the memory of its cache when it starts); who
//! allocates in bulk (the buffer cache, the connection budgets) is bounded by configuration.
//!
//! Life cycle: pool → `BlockMut::{zeroed,dirty}` → `freeze` → `Block` (clones) → last drop → pool.
//!
//! # Invariants
//! - A header with `refs > 0` is not in the pool; its page is written only through the one holder
//!   of a count of 1.
//! - A free page is in exactly one magazine or marked in its run's `free`.
//! - `crc` is that of the page, or says that it is not known; whoever may write the page clears it.
//!
//! One of the few modules with unsafe code: counts beside the pages instead of a heap allocation for each
//! (`alloc::sync::Arc` cost more than looking at the block).

#![expect(unsafe_code, reason = "reference counts that lie beside the pages of a slab")]

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use std::cell::RefCell;
use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use cairn_units::BLOCK_BYTES;

use crate::lock::{Leaf, LeafGuard, Rank};
use crate::slab;

/// Pages in one slab: 4 MiB, what a driver registers as one buffer.
pub const SLAB_PAGES: usize = 1024;
/// Pages in one run: one bit each in a word.
pub const RUN_PAGES: usize = 64;
/// Pages that a thread keeps for itself before it returns half to the common pool.
const MAGAZINE_PAGES_MAX: usize = 128;
/// Pages that a thread fetches from the common pool, if it has them.
const REFILL_PAGES: usize = MAGAZINE_PAGES_MAX / 2;
/// In `Header::crc`: the low half is the checksum.
const CRC_KNOWN: u64 = 1 << 32;

const _: () = assert!(SLAB_PAGES.is_multiple_of(RUN_PAGES) && RUN_PAGES == u64::BITS as usize);

type PageBytes = [u8; BLOCK_BYTES];

/// What is known of one page; lives as long as the process, like the page.
struct Header {
    refs: AtomicU32,
    /// Place in the run.
    place: u32,
    crc: AtomicU64,
    page: NonNull<PageBytes>,
    run: &'static Run,
}

// SAFETY: the page is memory of its own, reached only under the rules of `refs` above.
unsafe impl Sync for Header {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Header {}

type HeaderRef = &'static Header;

/// Neighbouring pages. What changes here is changed with the pool locked.
struct Run {
    /// Where its headers are, in order of the pages.
    headers: LazyHeaders,
    /// Pages in the pool.
    free: AtomicU64,
    /// Its place in `Common::partial`.
    listed: AtomicUsize,
}

type LazyHeaders = std::sync::OnceLock<&'static [Header]>;

struct Common {
    /// Runs of which every page is free.
    whole: Vec<&'static Run>,
    /// Runs of which some pages are free.
    partial: Vec<&'static Run>,
    slabs: Vec<(usize, usize)>,
}

static COMMON: Leaf<Common> = Leaf::new(
    Rank::BlockPool,
    Common { whole: Vec::new(), partial: Vec::new(), slabs: Vec::new() },
);
static IN_USE: AtomicU64 = AtomicU64::new(0);

fn common() -> LeafGuard<'static, Common> {
    // A panic while the lists are held leaves them whole: pushes and pops are single steps.
    COMMON.lock()
}

/// Address and length in bytes of every slab made so far, in order of creation; slabs are never
/// freed or moved, so a driver may register them with the kernel.
pub fn slabs() -> Vec<(usize, usize)> {
    common().slabs.clone()
}

/// Pages handed out and not yet returned, in this process.
pub fn pages_in_use() -> u64 {
    IN_USE.load(Ordering::Relaxed)
}

impl Run {
    fn headers(&self) -> &'static [Header] {
        match self.headers.get() {
            Some(headers) => headers,
            None => unreachable!("a run gets its headers when it is made"),
        }
    }
    /// Takes every free page out, in order.
    fn drain(&self, into: &mut Vec<HeaderRef>) {
        let free = self.free.swap(0, Ordering::Relaxed);
        into.extend(self.headers().iter().filter(|h| free & (1 << h.place) != 0));
    }
}

/// Pages that no pool has yet.
struct Slab {
    base: usize,
    /// In order of their addresses.
    runs: Vec<&'static Run>,
}

impl Slab {
    /// Takes a millisecond or more: not with the pool locked.
    fn make() -> Self {
        let base = slab::map(SLAB_PAGES * BLOCK_BYTES);
        let run = |first: usize| -> &'static Run {
            let run: &'static Run = Box::leak(Box::new(Run {
                headers: LazyHeaders::new(),
                free: AtomicU64::new(u64::MAX),
                listed: AtomicUsize::new(0),
            }));
            let header = |place: u32| {
                // SAFETY: the page lies inside the slab.
                let page = unsafe { base.cast::<PageBytes>().add(first + place as usize) };
                Header { refs: AtomicU32::new(0), place, crc: AtomicU64::new(0), page, run }
            };
            let headers: Vec<Header> = (0..u64::BITS).map(header).collect();
            let fresh = run.headers.set(Vec::leak(headers)).is_ok();
            assert!(fresh, "a run gets its headers once");
            run
        };
        let runs = (0..SLAB_PAGES).step_by(RUN_PAGES).map(run).collect();
        Self { base: base.as_ptr().expose_provenance(), runs }
    }
}

/// Makes slabs until the pool has `pages` in all, used or not: who knows how many will be needed
/// spares those who take them the making. Takes about a millisecond for each slab.
pub fn reserve(pages: usize) {
    while common().slabs.len() * SLAB_PAGES < pages {
        let slab = Slab::make();
        common().add(slab);
    }
}

impl Common {
    fn add(&mut self, slab: Slab) {
        self.slabs.push((slab.base, SLAB_PAGES * BLOCK_BYTES));
        // Reversed, so that runs are handed out in address order.
        self.whole.extend(slab.runs.into_iter().rev());
    }

    /// Some free pages, from runs that are broken into already if there are any.
    fn refill(&mut self, into: &mut Vec<HeaderRef>) {
        while into.len() < REFILL_PAGES {
            let Some(run) = self.partial.pop().or_else(|| self.whole.pop()) else { return };
            run.drain(into);
        }
    }

    /// The first `count` pages of a run that is whole; the others stay in the pool.
    fn take_run(&mut self, count: usize) -> Option<&'static [Header]> {
        let run = self.whole.pop()?;
        let left = u64::MAX.checked_shl(u32::try_from(count).unwrap_or(u32::MAX)).unwrap_or(0);
        run.free.store(left, Ordering::Relaxed);
        if left != 0 {
            run.listed.store(self.partial.len(), Ordering::Relaxed);
            self.partial.push(run);
        }
        Some(&run.headers()[..count])
    }

    fn give_back(&mut self, page: HeaderRef) {
        let run = page.run;
        let (bit, before) = (1 << page.place, run.free.load(Ordering::Relaxed));
        assert!(before & bit == 0, "a page is given back once");
        let free = before | bit;
        run.free.store(free, Ordering::Relaxed);
        if before == 0 {
            run.listed.store(self.partial.len(), Ordering::Relaxed);
            self.partial.push(run);
        }
        if free == u64::MAX {
            let at = run.listed.load(Ordering::Relaxed);
            self.partial.swap_remove(at);
            if let Some(moved) = self.partial.get(at) {
                moved.listed.store(at, Ordering::Relaxed);
            }
            self.whole.push(run);
        }
    }
}

struct Magazine(Vec<HeaderRef>);

impl Drop for Magazine {
    fn drop(&mut self) {
        let mut common = common();
        self.0.drain(..).for_each(|page| common.give_back(page));
    }
}

thread_local! {
    static MAGAZINE: RefCell<Magazine> = const { RefCell::new(Magazine(Vec::new())) };
}

#[cfg(not(feature = "mutants"))]
fn count_pages(pages: u64) {
    IN_USE.fetch_add(pages, Ordering::Relaxed);
}

/// As above, or with a data race, to see that ThreadSanitizer reports it (`tests/tsan/run`).
#[cfg(feature = "mutants")]
fn count_pages(pages: u64) {
    if crate::mutant("pages-counted-in-a-race") {
        let count = IN_USE.as_ptr();
        // SAFETY: none, when another thread counts as well: that is the fault.
        let seen = unsafe { *count };
        std::thread::yield_now();
        // SAFETY: as above.
        unsafe { *count = seen + pages }
    } else {
        IN_USE.fetch_add(pages, Ordering::Relaxed);
    }
}

/// Makes a page that was in the pool the caller's.
fn claim(page: HeaderRef) -> HeaderRef {
    page.crc.store(0, Ordering::Relaxed);
    page.refs.store(1, Ordering::Relaxed);
    page
}

fn take_page() -> HeaderRef {
    count_pages(1);
    let cached = MAGAZINE.try_with(|m| m.borrow_mut().0.pop()).ok().flatten();
    if let Some(page) = cached {
        return claim(page);
    }
    let mut batch = Vec::with_capacity(MAGAZINE_PAGES_MAX);
    common().refill(&mut batch);
    while batch.is_empty() {
        let slab = Slab::make();
        let mut common = common();
        common.add(slab);
        common.refill(&mut batch);
    }
    // Pages are popped from the end: so in the order of their addresses.
    batch.reverse();
    let Some(page) = batch.pop() else { unreachable!("a slab was added if there was nothing") };
    keep(batch);
    claim(page)
}

/// Puts free pages into the thread's magazine.
fn keep(pages: Vec<HeaderRef>) {
    let mut pages = Some(pages);
    let kept = MAGAZINE.try_with(|m| m.borrow_mut().0.extend(pages.take().unwrap_or_default()));
    if kept.is_err() {
        let mut common = common();
        pages.take().unwrap_or_default().into_iter().for_each(|page| common.give_back(page));
    }
}

fn return_page(page: HeaderRef) {
    IN_USE.fetch_sub(1, Ordering::Relaxed);
    let kept = MAGAZINE.try_with(|m| {
        let pages = &mut m.borrow_mut().0;
        pages.push(page);
        if pages.len() > MAGAZINE_PAGES_MAX {
            // Those that came first: what was freed last is still warm.
            let mut common = common();
            pages.drain(..MAGAZINE_PAGES_MAX / 2).for_each(|page| common.give_back(page));
        }
    });
    if kept.is_err() {
        common().give_back(page);
    }
}

/// A block that only its owner sees, and may write.
pub struct BlockMut(Block);

impl BlockMut {
    /// A block with unspecified (old) contents: for whoever overwrites all of it.
    pub fn dirty() -> Self {
        Self(Block(take_page()))
    }
    /// `count` blocks with unspecified contents, neighbours in memory as far as the pool has them.
    pub fn take_many(count: usize) -> Vec<Self> {
        let mut out = Vec::with_capacity(count);
        while count - out.len() >= RUN_PAGES / 2 {
            let wanted = RUN_PAGES.min(count - out.len());
            let Some(pages) = common().take_run(wanted) else { break };
            count_pages(wanted as u64);
            out.extend(pages.iter().map(|page| Self(Block(claim(page)))));
        }
        while out.len() < count {
            out.push(Self::dirty());
        }
        out
    }
    /// A block of zeros.
    pub fn zeroed() -> Self {
        let mut block = Self::dirty();
        block.fill(0);
        block
    }
    /// A block with a copy of `bytes`, zeros behind them.
    ///
    /// # Panics
    /// When `bytes` is longer than a block.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut block = Self::dirty();
        block[..bytes.len()].copy_from_slice(bytes);
        block[bytes.len()..].fill(0);
        block
    }
    /// Gives up the right to write; the block may be shared from now on. Copies nothing.
    pub fn freeze(self) -> Block {
        self.0
    }
    /// Works out the checksum now, while the bytes are warm; kept unless they are written again.
    pub fn warm_crc(&self) {
        self.0.crc();
    }
}

impl Deref for BlockMut {
    type Target = PageBytes;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for BlockMut {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self.0.unshared() {
            Some(bytes) => bytes,
            None => unreachable!("a BlockMut is never shared"),
        }
    }
}

impl fmt::Debug for BlockMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockMut")
    }
}

/// A shared block whose bytes do not change while anybody else holds it.
pub struct Block(HeaderRef);

static ZERO: LazyLock<Block> = LazyLock::new(|| BlockMut::zeroed().freeze());

impl Block {
    /// The block of zeros, shared by everybody.
    pub fn zero() -> Self {
        ZERO.clone()
    }
    /// The bytes, when this is the only holder.
    fn unshared(&mut self) -> Option<&mut PageBytes> {
        // Pairs with the decrement in `drop`: who held it before is done with it.
        if self.0.refs.load(Ordering::Acquire) != 1 {
            return None;
        }
        self.0.crc.store(0, Ordering::Relaxed);
        // SAFETY: the only count is ours, and nobody can clone it while we are borrowed.
        Some(unsafe { &mut *self.0.page.as_ptr() })
    }
    /// The bytes for writing: in place when this is the only holder, else in a copy that takes
    /// this holder's place.
    pub fn make_mut(&mut self) -> &mut PageBytes {
        if self.is_shared() {
            let mut copy = BlockMut::dirty();
            copy.copy_from_slice(&self[..]);
            *self = copy.0;
        }
        match self.unshared() {
            Some(bytes) => bytes,
            None => unreachable!("a fresh copy has one holder"),
        }
    }
    /// CRC-32 (IEEE) of the bytes; worked out once as long as nobody writes them.
    pub fn crc(&self) -> u32 {
        let known = self.0.crc.load(Ordering::Relaxed);
        if known & CRC_KNOWN == 0 {
            let crc = crc32fast::hash(&self[..]);
            self.0.crc.store(CRC_KNOWN | u64::from(crc), Ordering::Relaxed);
            return crc;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the low half")]
        let crc = known as u32;
        crc
    }
    /// Whether another holder exists, so that [`Self::make_mut`] would copy.
    pub fn is_shared(&self) -> bool {
        self.0.refs.load(Ordering::Acquire) > 1
    }
    /// Whether both are the same memory.
    pub fn same_memory(&self, other: &Self) -> bool {
        self.0.page == other.0.page
    }
}

impl Clone for Block {
    #[inline]
    fn clone(&self) -> Self {
        let before = self.0.refs.fetch_add(1, Ordering::Relaxed);
        assert!(before < u32::MAX / 2, "a block has too many holders");
        Self(self.0)
    }
}

impl Drop for Block {
    #[inline]
    fn drop(&mut self) {
        // Released by everyone who goes, acquired by the last: what they read happened before.
        if self.0.refs.fetch_sub(1, Ordering::AcqRel) == 1 {
            return_page(self.0);
        }
    }
}

impl Deref for Block {
    type Target = PageBytes;
    #[inline]
    fn deref(&self) -> &Self::Target {
        // SAFETY: the page is not written while somebody beside its only holder has a count, and
        // its holder writes through an exclusive borrow.
        unsafe { self.0.page.as_ref() }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Block")
    }
}

impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        self.same_memory(other) || self[..] == other[..]
    }
}
impl Eq for Block {}

/// File bytes passed by reference: `bytes` bytes that begin `skip` bytes into the first block.
///
/// For a WRITE at file offset `o`, `skip == o % 4096`, so every whole block of the payload is a
/// whole block of the file and can be kept as it is. For a READ reply the same holds.
/// Invariant: `skip < 4096` and `blocks` is exactly as long as `skip + bytes` needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    skip: u32,
    bytes: u32,
    blocks: Vec<Block>,
}

impl Payload {
    /// Wraps blocks.
    ///
    /// # Panics
    /// When the invariant of the type does not hold.
    pub fn new(skip: u32, bytes: u32, blocks: Vec<Block>) -> Self {
        assert!((skip as usize) < BLOCK_BYTES, "payload skip within the first block");
        let need =
            if bytes == 0 { 0 } else { (skip as usize + bytes as usize).div_ceil(BLOCK_BYTES) };
        assert!(blocks.len() == need, "payload has {} blocks, needs {need}", blocks.len());
        Self { skip, bytes, blocks }
    }
    /// Copies `data` into fresh blocks, placed as for file offset `offset`.
    pub fn copy_from(offset: u64, data: &[u8]) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "masked to 12 bits")]
        let skip = (offset & (BLOCK_BYTES as u64 - 1)) as u32;
        let mut blocks = Vec::with_capacity(data.len().div_ceil(BLOCK_BYTES) + 1);
        let (mut at, mut rest) = (skip as usize, data);
        while !rest.is_empty() {
            let n = rest.len().min(BLOCK_BYTES - at);
            let mut block = BlockMut::zeroed();
            block[at..at + n].copy_from_slice(&rest[..n]);
            blocks.push(block.freeze());
            (at, rest) = (0, &rest[n..]);
        }
        let Ok(bytes) = u32::try_from(data.len()) else { panic!("payload over 4 GiB") };
        Self::new(skip, bytes, blocks)
    }
    /// Bytes of payload before which the first block holds something else.
    pub fn skip(&self) -> u32 {
        self.skip
    }
    /// Bytes of payload.
    pub fn len(&self) -> u32 {
        self.bytes
    }
    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
    /// The blocks; bytes outside the payload are unspecified.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }
    /// The payload as slices, in order, one per block.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let (skip, end) = (self.skip as usize, self.skip as usize + self.bytes as usize);
        self.blocks.iter().enumerate().map(move |(i, block)| {
            let base = i * BLOCK_BYTES;
            let from = skip.saturating_sub(base).min(BLOCK_BYTES);
            let to = (end - base).min(BLOCK_BYTES);
            &block[from..to]
        })
    }
    /// A copy of the bytes in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes as usize);
        for slice in self.slices() {
            out.extend_from_slice(slice);
        }
        out
    }
    /// The blocks, for whoever keeps them.
    pub fn into_blocks(self) -> Vec<Block> {
        self.blocks
    }
    /// The first `bytes` bytes.
    #[must_use]
    pub fn truncated(mut self, bytes: u32) -> Self {
        if bytes < self.bytes {
            let need = if bytes == 0 {
                0
            } else {
                (self.skip as usize + bytes as usize).div_ceil(BLOCK_BYTES)
            };
            self.blocks.truncate(need);
            self.bytes = bytes;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn make_mut_copies_only_when_shared() {
        let mut a = BlockMut::copy_of(b"one").freeze();
        let address = a.as_ptr();
        a.make_mut()[0] = b'O';
        assert_eq!(a.as_ptr(), address);
        let caught = a.clone();
        a.make_mut()[0] = b'X';
        assert_eq!(&caught[..3], b"One");
        assert_eq!(&a[..3], b"Xne");
    }

    #[test]
    fn pages_are_aligned_and_inside_registered_slabs() {
        let blocks: Vec<BlockMut> = (0..3000).map(|_| BlockMut::dirty()).collect();
        let slabs = slabs();
        for block in &blocks {
            let address = block.as_ptr().addr();
            assert_eq!(address % BLOCK_BYTES, 0);
            assert!(slabs.iter().any(|(base, len)| address >= *base && address < base + len));
        }
    }

    #[test]
    fn a_checksum_follows_the_bytes() {
        let mut block = BlockMut::copy_of(b"one").freeze();
        let one = crc32fast::hash(&block[..]);
        assert_eq!(block.crc(), one);
        let caught = block.clone();
        block.make_mut()[0] = b'X';
        assert_eq!((caught.crc(), block.crc()), (one, crc32fast::hash(&block[..])));
        block.make_mut()[0] = b'Y';
        assert_eq!(block.crc(), crc32fast::hash(&block[..]));
        drop((caught, block));
        for fresh in (0..2 * MAGAZINE_PAGES_MAX).map(|_| BlockMut::zeroed()) {
            assert_eq!(fresh.freeze().crc(), Block::zero().crc());
        }
    }

    #[test]
    fn many_pages_are_neighbours_and_pages_in_the_pool_are_used_before_it_grows() {
        let runs = |blocks: &[BlockMut]| {
            let next = |w: &[BlockMut]| w[0].as_ptr().addr() + BLOCK_BYTES == w[1].as_ptr().addr();
            1 + blocks.windows(2).filter(|w| !next(w)).count()
        };
        let held: Vec<BlockMut> = (0..SLAB_PAGES).map(|_| BlockMut::dirty()).collect();
        drop(held);
        let first = BlockMut::take_many(256);
        assert!(runs(&first) <= 256 / RUN_PAGES, "{} pieces", runs(&first));
        let mut all: Vec<usize> = first.iter().map(|b| b.as_ptr().addr()).collect();
        drop(first);
        for round in 0..200 {
            let taken = BlockMut::take_many(1 + round * 37 % 300);
            all.extend(taken.iter().map(|b| b.as_ptr().addr()));
            let singles: Vec<BlockMut> = (0..round % 50).map(|_| BlockMut::dirty()).collect();
            let mut mine: Vec<usize> =
                taken.iter().chain(&singles).map(|b| b.as_ptr().addr()).collect();
            let count = mine.len();
            mine.sort_unstable();
            mine.dedup();
            assert_eq!(mine.len(), count, "no page has two owners");
        }
        all.sort_unstable();
        all.dedup();
        assert!(all.len() < 2 * SLAB_PAGES, "{} pages for 350 at once", all.len());
    }

    #[test]
    fn payload_slices_cover_exactly_the_bytes() {
        let data: Vec<u8> = (0..10_000u32).map(|i| i.to_le_bytes()[0]).collect();
        for offset in [0, 1, 4095, 4096, 5000] {
            for len in [0, 1, 4096, 4097, 10_000] {
                let p = Payload::copy_from(offset, &data[..len]);
                assert_eq!(p.to_vec(), &data[..len], "offset {offset} len {len}");
                assert_eq!(p.clone().truncated(1).to_vec(), &data[..len.min(1)]);
            }
        }
    }
}
