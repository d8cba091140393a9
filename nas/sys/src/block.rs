//! Block buffers: 4 KiB, aligned to 4 KiB, reference-counted, recycled through a pool.
//!
//! A payload is received from a socket straight into [`BlockMut`]s, frozen into [`Block`]s, kept
//! in the buffer cache, handed to the consistency point and to the disk driver, and referenced by
//! replies: the same memory all the way. A frozen block never changes under a holder: whoever
//! wants to change a block that others hold gets a copy ([`Block::make_mut`]). That is how a
//! buffer caught in a consistency point is copied on the next write and never waited for.
//!
//! Pages come from slabs that live as long as the process, so that a driver can register them
//! with the kernel once ([`slabs`]). The pool never shrinks; who allocates in bulk (the buffer
//! cache, the connection budgets) is bounded by configuration.
//!
//! Life cycle: pool → `BlockMut::{zeroed,dirty}` → `freeze` → `Block` (clones) → last drop → pool.

use core::ops::{Deref, DerefMut};
use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use cairn_units::BLOCK_BYTES;

use crate::lock::{Leaf, LeafGuard, Rank};

/// Pages in one slab: 4 MiB, what a driver registers as one buffer.
pub const SLAB_PAGES: usize = 1024;
/// Pages that a thread keeps for itself before it returns half to the common pool.
const MAGAZINE_PAGES_MAX: usize = 128;

/// One page of memory.
#[repr(C, align(4096))]
pub struct Page([u8; BLOCK_BYTES]);

type PageRef = &'static mut Page;

struct Common {
    free: Vec<PageRef>,
    slabs: Vec<(usize, usize)>,
}

static COMMON: Leaf<Common> =
    Leaf::new(Rank::BlockPool, Common { free: Vec::new(), slabs: Vec::new() });
static IN_USE: AtomicU64 = AtomicU64::new(0);

fn common() -> LeafGuard<'static, Common> {
    // A panic while the list is held leaves it whole: pushes and pops are single steps.
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

struct Magazine(Vec<PageRef>);

impl Drop for Magazine {
    fn drop(&mut self) {
        common().free.append(&mut self.0);
    }
}

thread_local! {
    static MAGAZINE: RefCell<Magazine> = const { RefCell::new(Magazine(Vec::new())) };
}

#[cfg(not(feature = "mutants"))]
fn count_page() {
    IN_USE.fetch_add(1, Ordering::Relaxed);
}

/// As above, or with a data race, to see that ThreadSanitizer reports it (`tests/tsan/run`).
#[cfg(feature = "mutants")]
#[expect(unsafe_code, reason = "a data race on purpose; not in what ships")]
fn count_page() {
    if crate::mutant("pages-counted-in-a-race") {
        let count = IN_USE.as_ptr();
        // SAFETY: none, when another thread counts as well: that is the fault.
        let seen = unsafe { *count };
        std::thread::yield_now();
        // SAFETY: as above.
        unsafe { *count = seen + 1 }
    } else {
        IN_USE.fetch_add(1, Ordering::Relaxed);
    }
}

fn take_page() -> PageRef {
    count_page();
    let cached = MAGAZINE.try_with(|m| m.borrow_mut().0.pop()).ok().flatten();
    if let Some(page) = cached {
        return page;
    }
    let mut common = common();
    if common.free.is_empty() {
        let slab: Vec<Page> = (0..SLAB_PAGES).map(|_| Page([0; BLOCK_BYTES])).collect();
        let slab: &'static mut [Page] = Vec::leak(slab);
        common.slabs.push((slab.as_ptr().addr(), SLAB_PAGES * BLOCK_BYTES));
        // Reversed, so that pages are handed out in address order.
        common.free.extend(slab.iter_mut().rev());
    }
    let Some(page) = common.free.pop() else { unreachable!("a slab was just added") };
    let refill = common.free.len().min(MAGAZINE_PAGES_MAX / 2);
    let at = common.free.len() - refill;
    let batch: Vec<PageRef> = common.free.drain(at..).collect();
    drop(common);
    let mut batch = Some(batch);
    let kept = MAGAZINE.try_with(|m| m.borrow_mut().0.extend(batch.take().unwrap_or_default()));
    if kept.is_err() {
        self::common().free.extend(batch.take().unwrap_or_default());
    }
    page
}

fn return_page(page: PageRef) {
    IN_USE.fetch_sub(1, Ordering::Relaxed);
    let mut page = Some(page);
    let kept = MAGAZINE.try_with(|m| {
        let mut m = m.borrow_mut();
        m.0.extend(page.take());
        if m.0.len() > MAGAZINE_PAGES_MAX {
            let at = m.0.len() - MAGAZINE_PAGES_MAX / 2;
            let back: Vec<PageRef> = m.0.drain(at..).collect();
            common().free.extend(back);
        }
    });
    if kept.is_err() {
        common().free.extend(page);
    }
}

struct Inner(Option<PageRef>);

impl Inner {
    fn bytes(&self) -> &[u8; BLOCK_BYTES] {
        match &self.0 {
            Some(page) => &page.0,
            None => unreachable!("a page leaves its buffer only in drop"),
        }
    }
    fn bytes_mut(&mut self) -> &mut [u8; BLOCK_BYTES] {
        match &mut self.0 {
            Some(page) => &mut page.0,
            None => unreachable!("a page leaves its buffer only in drop"),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(page) = self.0.take() {
            return_page(page);
        }
    }
}

/// A block that only its owner sees, and may write.
pub struct BlockMut(Arc<Inner>);

impl BlockMut {
    /// A block with unspecified (old) contents: for whoever overwrites all of it.
    pub fn dirty() -> Self {
        Self(Arc::new(Inner(Some(take_page()))))
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
        Block(self.0)
    }
}

impl Deref for BlockMut {
    type Target = [u8; BLOCK_BYTES];
    fn deref(&self) -> &Self::Target {
        self.0.bytes()
    }
}

impl DerefMut for BlockMut {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match Arc::get_mut(&mut self.0) {
            Some(inner) => inner.bytes_mut(),
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
#[derive(Clone)]
pub struct Block(Arc<Inner>);

static ZERO: LazyLock<Block> = LazyLock::new(|| BlockMut::zeroed().freeze());

impl Block {
    /// The block of zeros, shared by everybody.
    pub fn zero() -> Self {
        ZERO.clone()
    }
    /// The bytes for writing: in place when this is the only holder, else in a copy that takes
    /// this holder's place.
    pub fn make_mut(&mut self) -> &mut [u8; BLOCK_BYTES] {
        if Arc::get_mut(&mut self.0).is_none() {
            let mut copy = BlockMut::dirty();
            copy.copy_from_slice(&self[..]);
            self.0 = copy.0;
        }
        match Arc::get_mut(&mut self.0) {
            Some(inner) => inner.bytes_mut(),
            None => unreachable!("a fresh copy has one holder"),
        }
    }
    /// Whether another holder exists, so that [`Self::make_mut`] would copy.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
    /// Whether both are the same memory.
    pub fn same_memory(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Deref for Block {
    type Target = [u8; BLOCK_BYTES];
    fn deref(&self) -> &Self::Target {
        self.0.bytes()
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Block")
    }
}

impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
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
