//! Sets of block numbers in which neighbours are likely: 64 of them share an entry.
//!
//! Layer: pure, leaf.

use std::collections::BTreeMap;

/// Block numbers that share an entry.
pub(crate) const WORD_BLOCKS: u64 = u64::BITS as u64;

/// Where a number lies: its entry and its bit there.
fn place(number: u64) -> (u64, u64) {
    (number / WORD_BLOCKS, 1 << (number % WORD_BLOCKS))
}

/// See the module. Scattered numbers take an entry of 16 bytes each.
#[derive(Debug, Default)]
pub(crate) struct BlockSet {
    words: BTreeMap<u64, u64>,
    len: u64,
}

impl BlockSet {
    /// Numbers in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Adds `count` numbers from `first` on.
    pub fn insert_run(&mut self, first: u64, count: u64) {
        let (mut at, mut left) = (first, count);
        while left > 0 {
            let (word, bit) = place(at);
            let here = left.min(WORD_BLOCKS - at % WORD_BLOCKS);
            let run = (u64::MAX >> (WORD_BLOCKS - here)) << bit.trailing_zeros();
            let bits = self.words.entry(word).or_default();
            self.len += u64::from((run & !*bits).count_ones());
            *bits |= run;
            (at, left) = (at + here, left - here);
        }
    }

    pub fn contains(&self, number: u64) -> bool {
        let (word, bit) = place(number);
        self.word(word) & bit != 0
    }

    /// Numbers from `from` on that are not in it, one behind the other, up to `most`.
    pub fn gap(&self, from: u64, most: u64) -> u64 {
        let (first, bit) = place(from);
        let (last, _) = place(from.saturating_add(most));
        for (word, bits) in self.words.range(first..=last) {
            let bits = if *word == first { bits & !(bit - 1) } else { *bits };
            if bits != 0 {
                let next = word * WORD_BLOCKS + u64::from(bits.trailing_zeros());
                return (next - from).min(most);
            }
        }
        most
    }

    /// Numbers from `word` times [`WORD_BLOCKS`] on, the lowest in the lowest bit.
    pub fn word(&self, word: u64) -> u64 {
        self.words.get(&word).copied().unwrap_or_default()
    }

    /// Adds all of `other`, which is empty then.
    pub fn append(&mut self, other: &mut Self) {
        other.len = 0;
        for (word, more) in core::mem::take(&mut other.words) {
            let bits = self.words.entry(word).or_default();
            self.len += u64::from((more & !*bits).count_ones());
            *bits |= more;
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_is_the_set_of_what_was_put_in() {
        let mut x = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = |below: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x % below
        };
        let (mut sets, mut known) = ([BlockSet::default(), BlockSet::default()], Vec::new());
        for set in &mut sets {
            let mut numbers = BTreeSet::new();
            for _ in 0..600 {
                let number = next(1000);
                set.insert_run(number, 1);
                numbers.insert(number);
                assert_eq!(set.len(), numbers.len() as u64);
            }
            for (first, count) in [(0, 1), (60, 4), (63, 2), (200, 130), (320, 64), (5, 0)] {
                set.insert_run(first, count);
                numbers.extend(first..first + count);
                assert_eq!(set.len(), numbers.len() as u64);
            }
            set.insert_run(u64::MAX - 1, 1);
            numbers.insert(u64::MAX - 1);
            known.push(numbers);
        }
        let [mut a, mut b] = sets;
        for number in (0..1100).chain([u64::MAX - 1]) {
            assert_eq!(a.contains(number), known[0].contains(&number), "{number}");
            let word = a.word(number / WORD_BLOCKS);
            assert_eq!(word >> (number % WORD_BLOCKS) & 1 == 1, a.contains(number));
        }
        a.append(&mut b);
        assert_eq!(a.len(), known[0].union(&known[1]).count() as u64);
        assert_eq!((b.len(), b.contains(u64::MAX - 1), a.contains(u64::MAX - 1)), (0, false, true));
        for number in 0..1100 {
            assert_eq!(a.contains(number), known.iter().any(|k| k.contains(&number)), "{number}");
        }
        for (from, most) in (0..1100).zip([0, 1, 2, 63, 64, 200].into_iter().cycle()) {
            let there = (from..from + most).take_while(|number| !a.contains(*number)).count();
            assert_eq!(a.gap(from, most), there as u64, "{most} from {from}");
        }
        a.clear();
        assert_eq!((a.len(), a.word(0)), (0, 0));
    }
}
