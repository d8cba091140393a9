//! Contents of a disk, shared between states: a frozen base and what was written over it.
//!
//! Layer: bottom of the checker. Blocks are shared, never copied; each carries the digest of its
//! content, so that the digest of a whole disk follows every change at once. A block of zeros and a
//! block never written are the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_sys::Block;
use cairn_units::BLOCK_BYTES;

/// Unit in which a write may be torn.
pub const SECTOR_BYTES: usize = 512;
/// Sectors of a block.
pub const BLOCK_SECTORS: usize = BLOCK_BYTES / SECTOR_BYTES;

/// A block with the digest of its content.
#[derive(Clone)]
pub struct Content {
    /// The bytes.
    pub block: Block,
    digest: u64,
}

/// Spreads every bit over the result.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Content {
    /// Digests a block.
    pub fn new(block: Block) -> Self {
        let mut lanes = [0x9E37_79B9_7F4A_7C15u64, 1, 2, 3];
        let mut any = 0;
        for chunk in block.chunks_exact(32) {
            for (lane, bytes) in lanes.iter_mut().zip(chunk.chunks_exact(8)) {
                let mut word = [0; 8];
                word.copy_from_slice(bytes);
                let word = u64::from_le_bytes(word);
                any |= word;
                *lane = (*lane ^ word).wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(29);
            }
        }
        let digest = lanes.iter().fold(0, |sum, lane| mix(sum ^ mix(*lane)));
        Self { block, digest: if any == 0 { 0 } else { digest | 1 } }
    }
}

#[derive(Default)]
struct Base {
    blocks: BTreeMap<u64, Content>,
    digest: u64,
}

/// Contents of one disk. Clones share the base.
#[derive(Clone, Default)]
pub struct Image {
    base: Arc<Base>,
    over: BTreeMap<u64, Content>,
    digest: u64,
}

fn place_digest(at: u64, content: &Content) -> u64 {
    if content.digest == 0 { 0 } else { mix(content.digest ^ mix(at)) }
}

impl Image {
    /// The block at `at`; `None` when it was never written.
    pub fn get(&self, at: u64) -> Option<&Block> {
        self.content(at).map(|c| &c.block)
    }

    fn content(&self, at: u64) -> Option<&Content> {
        self.over.get(&at).or_else(|| self.base.blocks.get(&at))
    }

    /// Replaces a block.
    pub fn put(&mut self, at: u64, content: Content) {
        self.digest ^= place_digest(at, &content);
        if let Some(old) = self.content(at) {
            self.digest ^= place_digest(at, old);
        }
        self.over.insert(at, content);
    }

    /// Replaces the sectors of a block that `kept` names.
    pub fn tear(&mut self, at: u64, new: &Content, kept: impl Fn(usize) -> bool) {
        let mut torn = self.get(at).cloned().unwrap_or_else(Block::zero);
        let bytes = torn.make_mut();
        for sector in (0..BLOCK_SECTORS).filter(|s| kept(*s)) {
            let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
            bytes[range.clone()].copy_from_slice(&new.block[range]);
        }
        self.put(at, Content::new(torn));
    }

    /// The same contents with an empty overlay, for many clones.
    #[must_use]
    pub fn frozen(self) -> Self {
        let mut blocks = self.base.blocks.clone();
        blocks.extend(self.over);
        let digest = self.digest ^ self.base.digest;
        Self { base: Arc::new(Base { blocks, digest }), over: BTreeMap::new(), digest: 0 }
    }

    /// Digest of the whole contents: the same for the same contents.
    pub fn digest(&self) -> u64 {
        self.base.digest ^ self.digest
    }

    /// Blocks that were ever written.
    pub fn blocks(&self) -> usize {
        self.base.blocks.len()
            + self.over.keys().filter(|k| !self.base.blocks.contains_key(k)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_sys::BlockMut;

    fn content(text: &str) -> Content {
        Content::new(BlockMut::copy_of(text.as_bytes()).freeze())
    }

    #[test]
    fn the_digest_depends_on_contents_and_not_on_the_way_there() {
        let (mut a, mut b) = (Image::default(), Image::default());
        a.put(1, content("one"));
        a.put(2, content("two"));
        b.put(2, content("else"));
        b = b.frozen();
        b.put(2, content("two"));
        b.put(7, Content::new(Block::zero()));
        b.put(1, content("one"));
        assert_eq!(a.digest(), b.digest());
        assert_eq!(a.clone().frozen().digest(), b.frozen().digest());
        a.put(1, content("two"));
        a.put(2, content("one"));
        assert_ne!(a.digest(), Image::default().digest());
        let swapped = a.digest();
        a.put(1, content("one"));
        a.put(2, content("two"));
        assert_ne!(a.digest(), swapped);
    }

    #[test]
    fn a_torn_block_has_sectors_of_both() {
        let mut image = Image::default();
        image.put(3, Content::new(BlockMut::copy_of(&[1; BLOCK_BYTES]).freeze()));
        let new = Content::new(BlockMut::copy_of(&[2; BLOCK_BYTES]).freeze());
        image.tear(3, &new, |sector| sector < 2);
        let block = image.get(3).cloned().unwrap_or_else(Block::zero);
        assert_eq!((block[0], block[1023], block[1024], block[4095]), (2, 2, 1, 1));
    }
}
