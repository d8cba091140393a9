//! Entry points for fuzzers: any bytes may be given, nothing may panic.
//!
//! Layer: over the on-disk structs. The checksums are made right before the structures are read,
//! or a fuzzer would never get behind them.

use cairn_sys::{Block, BlockMut};
use cairn_units::{AggregateUuid, BLOCK_BYTES, DiskUuid};

use crate::commit::RootSlot;
use crate::config::Config;
use crate::ondisk::{CONFIG_BLOCKS, ConfigHeaderV1, FORMAT_VERSION, Magic};
use crate::ondisk::{MAGIC_CONFIG, MAGIC_MAP, MAGIC_ROOT, MAGIC_STAMPS};
use crate::{member, stamps};

/// Whose aggregate and which disk the structures belong to.
const SELF: [u8; 16] = [0x5e; 16];
/// Where kind and version begin, and where the header ends.
const MAGIC_AT: usize = 4;
const HEADER_BYTES: usize = 16;

/// One block with a good header of this kind; what follows the header is `bytes`.
fn sealed(bytes: &[u8], magic: Magic) -> Block {
    let mut block = BlockMut::copy_of(&[]);
    let n = bytes.len().min(BLOCK_BYTES - HEADER_BYTES);
    block[HEADER_BYTES..HEADER_BYTES + n].copy_from_slice(&bytes[..n]);
    block[MAGIC_AT..8].copy_from_slice(&magic.0.to_le_bytes());
    block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let crc = crc32fast::hash(&block[MAGIC_AT..]);
    block[..MAGIC_AT].copy_from_slice(&crc.to_le_bytes());
    block.freeze()
}

/// A root slot, from the byte behind its header on.
pub fn fuzz_root_slot(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    own(&mut bytes);
    if let Some(slot) = RootSlot::decode(AggregateUuid::new(SELF), 0, &sealed(&bytes, MAGIC_ROOT)) {
        let again =
            RootSlot::decode(AggregateUuid::new(SELF), 0, &slot.encode(AggregateUuid::new(SELF)));
        assert_eq!(again, Some(slot), "a decoded root slot encodes to itself");
    }
}

/// Puts the identity that is looked for in front.
fn own(bytes: &mut [u8]) {
    if let Some(identity) = bytes.get_mut(..SELF.len()) {
        identity.copy_from_slice(&SELF);
    }
}

/// A configuration copy: what follows the header of its first block, then the records.
pub fn fuzz_config(bytes: &[u8]) {
    const FIRST: usize = BLOCK_BYTES - HEADER_BYTES;
    let blocks_max = usize::try_from(CONFIG_BLOCKS).unwrap_or(0);
    let (mut head, content) = match bytes.split_at_checked(FIRST) {
        Some((head, content)) => (head.to_vec(), content),
        None => (bytes.to_vec(), &[][..]),
    };
    head.resize(FIRST, 0);
    let word = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let at = core::mem::offset_of!(ConfigHeaderV1, groups) - HEADER_BYTES;
    let records = word(at) + word(at + 2);
    let mut content: Vec<Block> =
        content.chunks(BLOCK_BYTES).map(|chunk| BlockMut::copy_of(chunk).freeze()).collect();
    content.resize(blocks_max - 1, Block::zero());
    let mut all: Vec<u8> = content.iter().flat_map(|b| b[..].iter().copied()).collect();
    all.truncate(records * 64);
    let crc_at = core::mem::offset_of!(ConfigHeaderV1, content_crc) - HEADER_BYTES;
    head[crc_at..crc_at + 4].copy_from_slice(&crc32fast::hash(&all).to_le_bytes());
    let mut blocks = vec![sealed(&head, MAGIC_CONFIG)];
    blocks.append(&mut content);
    if let Some(config) = Config::decode(&blocks) {
        let encoded = config.encode();
        assert_eq!(Config::decode(&encoded), Some(config), "a configuration encodes to itself");
    }
}

/// A checksum block and a region map block, from the byte behind their headers on.
pub fn fuzz_stamps(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    own(&mut bytes);
    stamps::fuzz_parse(DiskUuid::new(SELF), &sealed(&bytes, MAGIC_STAMPS));
    member::fuzz_decode(DiskUuid::new(SELF), &sealed(&bytes, MAGIC_MAP));
}
