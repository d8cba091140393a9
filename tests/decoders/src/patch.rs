//! Inputs that change a good image in a few places: a selector, an offset, and the new bytes.
//!
//! Layer: tests. A fuzzer that had to make up a whole aggregate would never get past its label.

use cairn_sys::Block;
use cairn_units::BLOCK_BYTES;

/// Changes of one input at the most.
const PATCHES_MAX: usize = 64;

/// One change: `data` goes to `offset` of what `place` selects.
#[derive(Clone, Copy, Debug)]
pub struct Patch<'b> {
    /// Which block; to be taken modulo what there is.
    pub place: usize,
    /// Byte in the block.
    pub offset: usize,
    /// The new bytes, which end inside the block.
    pub data: &'b [u8],
}

impl Patch<'_> {
    /// Makes the change.
    pub fn apply(&self, block: &mut Block) {
        block.make_mut()[self.offset..self.offset + self.data.len()].copy_from_slice(self.data);
    }
}

/// The changes that `bytes` describe: u16 place, u16 offset, u8 length, data.
pub fn patches(bytes: &[u8]) -> Vec<Patch<'_>> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while out.len() < PATCHES_MAX
        && let Some(([p0, p1, o0, o1, len], after)) = rest.split_first_chunk::<5>()
    {
        let offset = usize::from(u16::from_le_bytes([*o0, *o1])) % BLOCK_BYTES;
        let len = usize::from(*len).min(after.len()).min(BLOCK_BYTES - offset);
        let (data, after) = after.split_at(len);
        out.push(Patch { place: usize::from(u16::from_le_bytes([*p0, *p1])), offset, data });
        rest = after;
    }
    out
}

/// An input that makes this change.
pub fn describe(place: u16, offset: u16, data: &[u8]) -> Vec<u8> {
    let mut out = [place.to_le_bytes(), offset.to_le_bytes()].concat();
    out.push(u8::try_from(data.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(data);
    out
}
