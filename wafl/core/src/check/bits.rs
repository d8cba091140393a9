//! Large sets of block numbers, in memory only where something is set.
//!
//! Layer: inside the check.

use std::collections::BTreeMap;

use cairn_sys::Block;
use cairn_wafl_format::BITS_PER_BLOCK;

use crate::bits::bit_place;

/// A set of numbers, a map block's worth of bits at a time, laid out as map blocks are.
#[derive(Default)]
pub(super) struct Bits(BTreeMap<u64, Box<[u8; 4096]>>);

impl Bits {
    /// Adds `n`; `false` when it was there.
    pub fn add(&mut self, n: u64) -> bool {
        let chunk = self.0.entry(n / BITS_PER_BLOCK).or_insert_with(|| Box::new([0; 4096]));
        let (byte, mask) = bit_place(n % BITS_PER_BLOCK);
        let new = chunk[byte] & mask == 0;
        chunk[byte] |= mask;
        new
    }

    /// Numbers of map block `index` in which the map differs: (number, marked in the map).
    pub fn differences(&self, index: u64, map: Option<&Block>) -> Vec<(u64, bool)> {
        let mut out = Vec::new();
        let own = self.0.get(&index);
        if own.is_none() && map.is_none() {
            return out;
        }
        for byte in 0..4096 {
            let named = own.map_or(0, |c| c[byte]);
            let marked = map.map_or(0, |b| b[byte]);
            let differ = named ^ marked;
            for bit in (0..8u64).filter(|bit| differ & (1 << bit) != 0) {
                let n = index * BITS_PER_BLOCK + byte as u64 * 8 + bit;
                out.push((n, marked & (1 << bit) != 0));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_what_is_in_one_and_not_in_the_other() {
        let mut bits = Bits::default();
        assert!(bits.add(3) && bits.add(40_000) && !bits.add(3));
        let mut map = cairn_sys::BlockMut::zeroed();
        map[0] = 1 << 3 | 1 << 5;
        assert_eq!(bits.differences(0, Some(&map.freeze())), vec![(5, true)]);
        assert_eq!(bits.differences(1, None), vec![(40_000, false)]);
        assert_eq!(bits.differences(2, None), vec![]);
    }
}
