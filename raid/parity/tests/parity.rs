//! Row-diagonal parity against its definition, and the kernels against each other.
//!
//! The model knows nothing of walks and rotations: it writes down the row and diagonal equations
//! of the definition for the rows that are lost and solves them by elimination over GF(2).

#![expect(clippy::unwrap_used, reason = "tests")]

use cairn_raid_parity::{
    Bytes, Column, Kernels, Level, Ring, RingIndex, Suspect, is_zero, suspect,
};
use proptest::prelude::*;

const RINGS: [Ring; 2] = [Ring::P17, Ring::P257];

fn noise(seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    core::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
}

/// A stripe: data columns at ring indices, row parity, diagonal parity.
#[derive(Clone)]
struct Stripe {
    ring: Ring,
    data: Vec<(RingIndex, Bytes)>,
    row: Bytes,
    diagonal: Bytes,
}

impl Stripe {
    fn encoded(kernels: Kernels, ring: Ring, indices: &[u16], seed: u64) -> Self {
        let data: Vec<(RingIndex, Bytes)> = indices
            .iter()
            .map(|i| (ring.data(*i).unwrap(), noise(seed.wrapping_add(u64::from(*i)))))
            .collect();
        let mut stripe = Self { ring, data, row: [1; 4096], diagonal: [2; 4096] };
        let (mut row, mut diagonal) = ([1; 4096], [2; 4096]);
        kernels.encode(ring, &stripe.columns(&[]), &mut row, &mut diagonal);
        (stripe.row, stripe.diagonal) = (row, diagonal);
        stripe
    }
    /// Data columns but for the lost ones.
    fn columns(&self, lost: &[RingIndex]) -> Vec<Column<'_>> {
        let there = self.data.iter().filter(|(i, _)| !lost.contains(i));
        there.map(|(index, block)| Column { index: *index, block }).collect()
    }
    /// Data columns and row parity but for the lost ones.
    fn ring_columns(&self, lost: &[RingIndex]) -> Vec<Column<'_>> {
        let mut columns = self.columns(lost);
        let index = self.ring.row_parity();
        if !lost.contains(&index) {
            columns.push(Column { index, block: &self.row });
        }
        columns
    }
    fn block(&self, index: RingIndex) -> &Bytes {
        match self.data.iter().find(|(i, _)| *i == index) {
            Some((_, block)) => block,
            None => &self.row,
        }
    }
}

/// Parity straight from the definition, byte by byte.
fn defined_parity(stripe: &Stripe) -> (Bytes, Bytes) {
    let (p, bytes) = (usize::from(stripe.ring.p()), stripe.ring.row_bytes());
    let (mut row, mut diagonal) = ([0; 4096], [0; 4096]);
    for (_, block) in &stripe.data {
        for i in 0..4096 {
            row[i] ^= block[i];
        }
    }
    let parity = (stripe.ring.row_parity(), row);
    for (index, block) in stripe.data.iter().chain([&parity]) {
        for r in 0..p - 1 {
            let d = (r + usize::from(index.get())) % p;
            if d != p - 1 {
                for i in 0..bytes {
                    diagonal[d * bytes + i] ^= block[r * bytes + i];
                }
            }
        }
    }
    (row, diagonal)
}

/// One equation over GF(2): which unknown rows, and what they sum up to.
struct Equation {
    unknowns: Vec<u64>,
    sum: Vec<u8>,
}

/// The lost columns by elimination.
fn solved(stripe: &Stripe, lost: &[RingIndex]) -> Vec<Bytes> {
    let (p, bytes) = (usize::from(stripe.ring.p()), stripe.ring.row_bytes());
    let rows = p - 1;
    let words = (lost.len() * rows).div_ceil(64);
    let present = stripe.ring_columns(lost);
    let mut equations = Vec::new();
    for line in 0..2 * rows {
        let (diagonal, n) = (line >= rows, line % rows);
        let row_of = |c: RingIndex| match diagonal {
            false => Some(n),
            true => Some((n + p - usize::from(c.get())) % p).filter(|r| *r < rows),
        };
        let mut sum = match diagonal {
            false => vec![0; bytes],
            true => stripe.diagonal[n * bytes..][..bytes].to_vec(),
        };
        for column in &present {
            if let Some(r) = row_of(column.index) {
                let part = &column.block[r * bytes..][..bytes];
                sum.iter_mut().zip(part).for_each(|(s, b)| *s ^= b);
            }
        }
        let mut unknowns = vec![0u64; words];
        for (k, index) in lost.iter().enumerate() {
            if let Some(r) = row_of(*index) {
                let bit = k * rows + r;
                unknowns[bit / 64] ^= 1 << (bit % 64);
            }
        }
        equations.push(Equation { unknowns, sum });
    }
    for bit in 0..lost.len() * rows {
        let has = |e: &Equation| e.unknowns[bit / 64] >> (bit % 64) & 1 == 1;
        let pivot = (bit..equations.len()).find(|i| has(&equations[*i])).expect("solvable");
        equations.swap(bit, pivot);
        let (unknowns, sum) = (equations[bit].unknowns.clone(), equations[bit].sum.clone());
        for (i, e) in equations.iter_mut().enumerate() {
            if i != bit && has(e) {
                e.unknowns.iter_mut().zip(&unknowns).for_each(|(a, b)| *a ^= b);
                e.sum.iter_mut().zip(&sum).for_each(|(a, b)| *a ^= b);
            }
        }
    }
    let mut out = vec![[0; 4096]; lost.len()];
    for bit in 0..lost.len() * rows {
        let at = bit % rows * bytes;
        out[bit / rows][at..at + bytes].copy_from_slice(&equations[bit].sum);
    }
    out
}

fn rebuilt_pair(kernels: Kernels, stripe: &Stripe, lost: [RingIndex; 2]) -> [Bytes; 2] {
    let (mut a, mut b) = ([3; 4096], [4; 4096]);
    let present = stripe.ring_columns(&lost);
    kernels.reconstruct_pair(stripe.ring, &present, &stripe.diagonal, lost, [&mut a, &mut b]);
    [a, b]
}

/// Ring indices of a group: the ends of the ring, and some in between.
fn indices(ring: Ring) -> Vec<u16> {
    match ring {
        Ring::P17 => (0..16).collect(),
        Ring::P257 => vec![0, 1, 2, 3, 15, 16, 17, 31, 64, 100, 127, 128, 129, 200, 254, 255],
    }
}

#[test]
fn parity_is_what_the_definition_says() {
    for kernels in Kernels::all() {
        for ring in RINGS {
            for width in 0..=indices(ring).len() {
                let stripe = Stripe::encoded(kernels, ring, &indices(ring)[..width], 1);
                let want = defined_parity(&stripe);
                assert!(stripe.row == want.0, "{kernels:?} {ring:?} {width}: row");
                assert!(stripe.diagonal == want.1, "{kernels:?} {ring:?} {width}: diagonal");
            }
        }
    }
}

#[test]
fn parity_is_the_same_with_blocks_fetched_ahead() {
    for kernels in Kernels::all() {
        for ring in RINGS {
            for width in 0..=indices(ring).len() {
                let stripe = Stripe::encoded(kernels, ring, &indices(ring)[..width], 8);
                let columns = stripe.columns(&[]);
                // As many blocks ahead as there are columns, none, fewer, more.
                for ahead in [width, 0, width / 2, 20] {
                    let next = vec![&stripe.row; ahead];
                    let (mut row, mut diagonal) = ([5; 4096], [6; 4096]);
                    kernels.encode_ahead(ring, &columns, &next, &mut row, &mut diagonal);
                    let same = row == stripe.row && diagonal == stripe.diagonal;
                    assert!(same, "{kernels:?} {ring:?} {width}, {ahead} ahead");
                }
            }
        }
    }
}

#[test]
fn parity_of_wide_groups_is_what_the_definition_says() {
    let ring = Ring::P257;
    // Neighbours, and columns far from each other, in more than one go, from either end.
    let groups: [Vec<u16>; 5] = [
        (0..17).collect(),
        (0..41).collect(),
        (200..256).collect(),
        (0..256).step_by(7).collect(),
        (0..256).rev().step_by(5).collect(),
    ];
    for kernels in Kernels::all() {
        for group in &groups {
            let stripe = Stripe::encoded(kernels, ring, group, 9);
            let want = defined_parity(&stripe);
            assert!((stripe.row, stripe.diagonal) == want, "{kernels:?} {group:?}");
            let next = vec![&stripe.row; group.len()];
            let (mut row, mut diagonal) = ([5; 4096], [6; 4096]);
            kernels.encode_ahead(ring, &stripe.columns(&[]), &next, &mut row, &mut diagonal);
            assert!((row, diagonal) == want, "{kernels:?} {group:?} ahead");
        }
    }
}

#[test]
fn every_pair_of_lost_columns_is_rebuilt_at_every_width() {
    for kernels in Kernels::all() {
        for ring in RINGS {
            for width in 1..=indices(ring).len() {
                let stripe = Stripe::encoded(kernels, ring, &indices(ring)[..width], 10);
                let mut all: Vec<RingIndex> = stripe.data.iter().map(|(i, _)| *i).collect();
                all.push(ring.row_parity());
                for (n, a) in all.iter().enumerate() {
                    for b in &all[n + 1..] {
                        let got = rebuilt_pair(kernels, &stripe, [*a, *b]);
                        let same = got[0] == *stripe.block(*a) && got[1] == *stripe.block(*b);
                        assert!(same, "{kernels:?} {ring:?} {width}: {a:?} {b:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_column_given_twice_counts_as_its_change() {
    for kernels in Kernels::all() {
        for ring in RINGS {
            for changed in 1..=7 {
                let old = Stripe::encoded(kernels, ring, &indices(ring), 11);
                let mut new = old.clone();
                let mut both = Vec::new();
                for i in 0..changed {
                    let at = i * 2 + 1;
                    new.data[at].1 = noise(100 + i as u64);
                    let index = old.data[at].0;
                    both.push(Column { index, block: &old.data[at].1 });
                }
                for (index, block) in new.data.iter().skip(1).step_by(2).take(changed) {
                    both.push(Column { index: *index, block });
                }
                let (mut row, mut diagonal) = ([1; 4096], [1; 4096]);
                kernels.encode(ring, &both, &mut row, &mut diagonal);
                kernels.xor_into(&mut row, &old.row);
                kernels.xor_into(&mut diagonal, &old.diagonal);
                assert!((row, diagonal) == defined_parity(&new), "{kernels:?} {ring:?} {changed}");
            }
        }
    }
}

#[test]
fn any_number_of_blocks_adds_up() {
    let blocks: Vec<Bytes> = (0..40).map(noise).collect();
    let mut want = [0; 4096];
    for count in 0..=blocks.len() {
        let these: Vec<&Bytes> = blocks[..count].iter().collect();
        for kernels in Kernels::all() {
            let mut got = [7; 4096];
            kernels.xor_all(&these, &mut got);
            assert!(got == want, "{kernels:?} {count}");
        }
        if let Some(block) = blocks.get(count) {
            want.iter_mut().zip(block).for_each(|(w, b)| *w ^= b);
        }
    }
}

#[test]
fn every_double_failure_is_rebuilt_as_elimination_says() {
    for ring in RINGS {
        let stripe = Stripe::encoded(Kernels::best(), ring, &indices(ring), 2);
        let mut all: Vec<RingIndex> = stripe.data.iter().map(|(i, _)| *i).collect();
        all.push(ring.row_parity());
        for (n, a) in all.iter().enumerate() {
            for b in &all[n + 1..] {
                let want = solved(&stripe, &[*a, *b]);
                assert!(want[0] == *stripe.block(*a) && want[1] == *stripe.block(*b), "model");
                for kernels in Kernels::all() {
                    let got = rebuilt_pair(kernels, &stripe, [*a, *b]);
                    assert!(got[..] == want[..], "{kernels:?} {ring:?} {a:?} {b:?}");
                    let [second, first] = rebuilt_pair(kernels, &stripe, [*b, *a]);
                    assert!([first, second] == got, "in the other order");
                }
            }
        }
    }
}

#[test]
fn every_pair_of_the_widest_group_is_rebuilt() {
    let ring = Ring::P257;
    let kernels = Kernels::best();
    let all: Vec<u16> = (0..256).collect();
    let stripe = Stripe::encoded(kernels, ring, &all, 3);
    // Parity of a subset is what the others leave over: each pair's syndromes from the two.
    let lost: Vec<RingIndex> = all.iter().map(|i| ring.data(*i).unwrap()).collect();
    let lost: Vec<RingIndex> = lost.into_iter().chain([ring.row_parity()]).collect();
    for (n, a) in lost.iter().enumerate() {
        for b in &lost[n + 1..] {
            // The other columns at zero: same walk, 128 times less to add up.
            let pair: Vec<(RingIndex, Bytes)> = [a, b]
                .into_iter()
                .filter(|i| **i != ring.row_parity())
                .map(|i| (*i, *stripe.block(*i)))
                .collect();
            let mut small = Stripe { ring, data: pair, row: [0; 4096], diagonal: [0; 4096] };
            let (mut row, mut diagonal) = ([0; 4096], [0; 4096]);
            kernels.encode(ring, &small.columns(&[]), &mut row, &mut diagonal);
            (small.row, small.diagonal) = (row, diagonal);
            let got = rebuilt_pair(kernels, &small, [*a, *b]);
            assert!(got[0] == *small.block(*a) && got[1] == *small.block(*b), "{a:?} {b:?}");
        }
    }
    for pair in [[0, 255], [0, 256], [255, 256], [1, 128], [127, 129]] {
        let pair = pair.map(|i| lost[i]);
        let got = rebuilt_pair(kernels, &stripe, pair);
        assert!(got[0] == *stripe.block(pair[0]) && got[1] == *stripe.block(pair[1]));
    }
}

#[test]
fn losses_with_the_diagonal_come_back_from_rows() {
    for kernels in Kernels::all() {
        for ring in RINGS {
            let stripe = Stripe::encoded(kernels, ring, &indices(ring), 4);
            for (index, block) in &stripe.data {
                let present = stripe.ring_columns(&[*index]);
                let blocks: Vec<&Bytes> = present.iter().map(|c| c.block).collect();
                let mut got = [9; 4096];
                kernels.xor_all(&blocks, &mut got);
                assert!(got == *block, "{index:?} from its row");
            }
        }
    }
}

#[test]
fn partial_parities_and_updates_add_up_to_a_full_encode() {
    for kernels in Kernels::all() {
        for ring in RINGS {
            let old = Stripe::encoded(kernels, ring, &indices(ring), 5);
            let new = Stripe::encoded(kernels, ring, &indices(ring), 6);
            // Half of the columns change: partial parity of the others, then the new ones.
            let (kept, changed) = old.data.split_at(7);
            let (mut row, mut diagonal) = ([0; 4096], [0; 4096]);
            let column = |(index, block): &(RingIndex, Bytes)| (*index, *block);
            let mut mixed = Stripe { data: kept.iter().map(column).collect(), ..old.clone() };
            kernels.accumulate(ring, &mixed.columns(&[]), &mut row, &mut diagonal);
            let rest = Stripe { data: new.data[7..].to_vec(), ..new.clone() };
            kernels.accumulate(ring, &rest.columns(&[]), &mut row, &mut diagonal);
            kernels.finish(ring, &row, &mut diagonal);
            mixed.data.extend(rest.data);
            assert!((row, diagonal) == defined_parity(&mixed), "{kernels:?} {ring:?}");
            // The same by updating one column after the other.
            let (mut row, mut diagonal) = (old.row, old.diagonal);
            for (index, before) in changed {
                let mut delta = *before;
                kernels.xor_into(&mut delta, mixed.block(*index));
                kernels.update(ring, *index, &delta, &mut row, &mut diagonal);
            }
            assert!((row, diagonal) == defined_parity(&mixed), "{kernels:?} {ring:?} update");
        }
    }
}

#[test]
fn one_wrong_column_is_named_and_two_are_not() {
    let kernels = Kernels::best();
    for ring in RINGS {
        let good = Stripe::encoded(kernels, ring, &indices(ring), 7);
        let verdict = |stripe: &Stripe| {
            let (mut s, mut q) = ([1; 4096], [1; 4096]);
            kernels.syndromes(ring, &stripe.ring_columns(&[]), &stripe.diagonal, &mut s, &mut q);
            (suspect(ring, &s, &q), s)
        };
        assert_eq!(verdict(&good).0, Suspect::None);
        for (n, (index, block)) in good.data.iter().enumerate() {
            // Single bits in every row, among them the row on the diagonal that is not stored.
            for byte in (0..4096).step_by(ring.row_bytes()) {
                let mut bad = good.clone();
                bad.data[n].1[byte + 3] ^= 0x40;
                let (found, mut syndrome) = verdict(&bad);
                assert_eq!(found, Suspect::Column(*index), "{ring:?} byte {byte}");
                kernels.xor_into(&mut syndrome, &bad.data[n].1);
                assert!(syndrome == *block, "the syndrome repairs it");
            }
            let mut bad = good.clone();
            bad.data[n].1 = noise(99);
            assert_eq!(verdict(&bad).0, Suspect::Column(*index));
            bad.data[(n + 1) % good.data.len()].1 = noise(98);
            assert_eq!(verdict(&bad).0, Suspect::Several);
        }
        let mut bad = good.clone();
        bad.row[17] ^= 1;
        assert_eq!(verdict(&bad).0, Suspect::Column(ring.row_parity()));
        let mut bad = good.clone();
        bad.diagonal[4000] ^= 1;
        assert_eq!(verdict(&bad).0, Suspect::Diagonal);
    }
}

#[test]
fn minimal_width_rings_and_indices() {
    assert_eq!(Ring::for_width(16), Some(Ring::P17));
    assert_eq!(Ring::for_width(17), Some(Ring::P257));
    assert_eq!(Ring::for_width(257), None);
    assert_eq!(Ring::P17.data(16), None);
    assert_eq!(Ring::P17.row_parity().get(), 16);
    assert!(is_zero(&[0; 4096]));
    assert!(!is_zero(&core::array::from_fn(|i| u8::from(i == 4095))));
    assert_eq!(Kernels::all()[0].level(), Level::Portable);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_group_survives_any_two_losses(
        wide in any::<bool>(),
        seed in any::<u64>(),
        picks in proptest::collection::btree_set(0u16..256, 2..20),
        lost in any::<(u16, u16)>(),
    ) {
        let ring = if wide { Ring::P257 } else { Ring::P17 };
        let top = ring.data_columns_max();
        let picks: std::collections::BTreeSet<u16> = picks.iter().map(|i| i % top).collect();
        let picks: Vec<u16> = picks.into_iter().collect();
        let stripe = Stripe::encoded(Kernels::best(), ring, &picks, seed);
        prop_assert!((stripe.row, stripe.diagonal) == defined_parity(&stripe));
        let mut all: Vec<RingIndex> = stripe.data.iter().map(|(i, _)| *i).collect();
        all.push(ring.row_parity());
        let a = all[usize::from(lost.0) % all.len()];
        let b = all[usize::from(lost.1) % all.len()];
        if a != b {
            for kernels in Kernels::all() {
                let got = rebuilt_pair(kernels, &stripe, [a, b]);
                prop_assert!(got[0] == *stripe.block(a) && got[1] == *stripe.block(b));
            }
            let model = solved(&stripe, &[a, b]);
            prop_assert!(model[0] == *stripe.block(a) && model[1] == *stripe.block(b));
        }
    }
}
