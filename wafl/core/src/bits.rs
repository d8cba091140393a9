//! Bits of map blocks.
//!
//! Layer: pure, leaf. Bit `n` is bit `n % 8` of byte `n / 8`; set means used.

use cairn_wafl_format::BITS_PER_BLOCK;

/// Byte and mask of bit `bit` of a map block.
pub(crate) fn bit_place(bit: u64) -> (usize, u8) {
    debug_assert!(bit < BITS_PER_BLOCK);
    (usize::try_from(bit / 8).unwrap_or_default(), 1 << (bit % 8))
}

/// The 64 bits of word `word`; `None` behind the block.
fn word_at(block: &[u8; 4096], word: usize) -> Option<u64> {
    let mut value = [0; 8];
    value.copy_from_slice(block.get(word * 8..word * 8 + 8)?);
    Some(u64::from_le_bytes(value))
}

/// First bit at or behind `from` that is `set`.
fn first_bit(block: &[u8; 4096], from: u64, set: bool) -> Option<u64> {
    let mut word = usize::try_from(from / 64).ok()?;
    let mut mask = !0u64 << (from % 64);
    while let Some(value) = word_at(block, word) {
        let found = if set { value } else { !value } & mask;
        if found != 0 {
            return Some(word as u64 * 64 + u64::from(found.trailing_zeros()));
        }
        mask = !0;
        word += 1;
    }
    None
}

/// First clear bit at or behind `from`.
pub(crate) fn first_clear_bit(block: &[u8; 4096], from: u64) -> Option<u64> {
    first_bit(block, from, false)
}

/// Clear bits from `from` on, one behind the other, up to `most`.
pub(crate) fn clear_run(block: &[u8; 4096], from: u64, most: u64) -> u64 {
    let end = first_bit(block, from, true).unwrap_or(BITS_PER_BLOCK);
    (end - from).min(most)
}

/// Turns `count` bits from `from` on, all of which must be the other way round.
///
/// # Panics
/// When one of them is `set` already, or lies behind the block.
pub(crate) fn flip_run(block: &mut [u8; 4096], from: u64, count: u64, set: bool) {
    let end = from + count;
    assert!(end <= BITS_PER_BLOCK, "bits {from} to {end} of one block");
    let mut at = from;
    while at < end {
        let stop = end.min((at / 8 + 1) * 8);
        let (byte, _) = bit_place(at);
        let mask = u8::MAX << (at % 8) & u8::MAX >> ((8 - stop % 8) % 8);
        let wrong = if set { block[byte] & mask } else { !block[byte] & mask };
        assert!(wrong == 0, "bits {at} to {stop} are marked already: used {set}");
        block[byte] ^= mask;
        at = stop;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_clear_bit_finds_the_first_at_or_behind() {
        let mut block = [0xff; 4096];
        assert_eq!(first_clear_bit(&block, 0), None);
        block[100] = 0b1110_1111;
        assert_eq!(first_clear_bit(&block, 0), Some(804));
        assert_eq!(first_clear_bit(&block, 804), Some(804));
        assert_eq!(first_clear_bit(&block, 805), None);
        block[4095] = 0x7f;
        assert_eq!(first_clear_bit(&block, 805), Some(32767));
    }

    #[test]
    fn runs_are_the_bits_one_by_one() {
        let runs = [(0, 1), (3, 2), (5, 3), (8, 8), (16, 70), (100, 1), (32_700, 68), (90, 7)];
        let (mut block, mut set) = ([0; 4096], std::collections::BTreeSet::new());
        for (from, count) in runs {
            assert_eq!(clear_run(&block, from, count), count);
            flip_run(&mut block, from, count, true);
            set.extend(from..from + count);
            for bit in 0..BITS_PER_BLOCK {
                let (byte, mask) = bit_place(bit);
                assert_eq!(block[byte] & mask != 0, set.contains(&bit), "{bit}");
            }
        }
        let next = |from: u64| set.range(from..).next().copied().unwrap_or(BITS_PER_BLOCK);
        for from in (0..200).chain(32_600..BITS_PER_BLOCK) {
            assert_eq!(clear_run(&block, from, 50), (next(from) - from).min(50), "{from}");
            let clear = (from..BITS_PER_BLOCK).find(|bit| !set.contains(bit));
            assert_eq!(first_clear_bit(&block, from), clear, "{from}");
        }
        for (from, count) in runs {
            flip_run(&mut block, from, count, false);
        }
        assert_eq!(block, [0; 4096]);
    }

    #[test]
    #[should_panic(expected = "marked already")]
    fn no_bit_is_set_twice() {
        let mut block = [0; 4096];
        flip_run(&mut block, 20, 1, true);
        flip_run(&mut block, 10, 11, true);
    }

    #[test]
    #[should_panic(expected = "marked already")]
    fn no_bit_is_cleared_twice() {
        let mut block = [0; 4096];
        flip_run(&mut block, 10, 10, true);
        flip_run(&mut block, 10, 11, false);
    }
}
