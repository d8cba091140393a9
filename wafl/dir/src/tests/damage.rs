//! Damaged blocks are reported and never panic.

use cairn_units::{Cookie, Fbn};
use proptest::prelude::*;

use super::{MemDir, Rng, file};
use crate::{Damage, DirError, DirKeys, Finding};

fn sample() -> MemDir {
    let mut dir = MemDir::new(DirKeys::colliding([2; 16], 9));
    for n in 0..2500u64 {
        dir.insert(format!("Name {n}").as_bytes(), file(n + 1)).unwrap();
    }
    for n in 0..1900u64 {
        dir.remove(format!("Name {n}").as_bytes()).unwrap();
    }
    assert_eq!(dir.check(), []);
    dir
}

/// Does everything once; only panics count.
fn exercise(dir: &mut MemDir, rng: &mut Rng) {
    let mut errors = 0;
    for _ in 0..40 {
        let name = format!("Name {}", rng.below(3000)).into_bytes();
        errors += usize::from(dir.hot(|dir| dir.lookup(&name)).is_err());
        errors += usize::from(dir.hot(|dir| dir.lookup_folded(&name)).is_err());
        let mut plans = vec![
            dir.hot(|dir| dir.plan_remove(&name)),
            dir.hot(|dir| dir.plan_replace(&name, file(5))),
            dir.hot(|dir| dir.plan_insert(&name, file(5))),
        ];
        let pick = usize::try_from(rng.below(3)).unwrap();
        if let Ok(plan) = plans.swap_remove(pick) {
            plan.apply(dir);
        }
    }
    let mut at = Cookie::new(rng.next() >> 1);
    let listed = dir.hot(|dir| {
        dir.list(at, |entry| {
            assert!(entry.found.cookie > at, "a listing never goes back");
            at = entry.found.cookie;
            std::ops::ControlFlow::Continue(())
        })
    });
    errors += usize::from(listed.is_err());
    assert!(errors <= 121);
    assert!(dir.check().len() <= crate::FINDINGS_MAX);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn damaged_blocks_never_panic(seed: u64, flips in 1usize..40, headers: bool) {
        let mut rng = Rng(seed);
        let mut dir = sample();
        let places: Vec<Fbn> = dir.blocks.keys().copied().collect();
        for _ in 0..flips {
            // Half the time block 0, which every operation reads.
            let pick = usize::try_from(rng.below(2 * places.len() as u64)).unwrap();
            let at = places.get(pick).copied().unwrap_or(Fbn::new(0));
            let range = if headers { 140 } else { 4096 };
            let byte = usize::try_from(rng.below(range)).unwrap();
            let value = rng.next().to_le_bytes()[0];
            dir.blocks.get_mut(&at).unwrap().make_mut()[byte] = value;
        }
        exercise(&mut dir, &mut rng);
    }
}

#[test]
fn blocks_swapped_or_zeroed_are_found_out() {
    for (case, what) in
        [(0, Damage::WrongPlace), (1, Damage::NodeMagic), (2, Damage::WrongDirectory)]
    {
        let mut dir = sample();
        let at = Fbn::new(3);
        match case {
            0 => {
                let other = dir.blocks[&Fbn::new(4)].clone();
                dir.blocks.insert(at, other);
            }
            1 => {
                dir.blocks.insert(at, cairn_sys::Block::zero());
            }
            _ => dir.blocks.get_mut(&at).unwrap().make_mut()[16] ^= 1,
        }
        assert_eq!(dir.check(), [Finding::Node { fbn: at, what }], "case {case}");
    }
}

#[test]
fn another_hash_key_or_directory_is_refused() {
    let mut dir = sample();
    dir.keys = DirKeys::new([3; 16]);
    let damaged = |what| Err(DirError::Damaged { fbn: Fbn::new(0), what });
    assert_eq!(dir.hot(|dir| dir.lookup(b"x")), damaged(Damage::WrongHashKey));
    dir.blocks.get_mut(&Fbn::new(0)).unwrap().make_mut()[8] ^= 1;
    assert_eq!(dir.hot(|dir| dir.lookup(b"x")), damaged(Damage::WrongDirectory));
    dir.blocks.insert(Fbn::new(0), cairn_sys::Block::zero());
    assert_eq!(dir.hot(|dir| dir.lookup(b"x")), damaged(Damage::HeaderMagic));
}

#[test]
fn check_finds_wrong_counts_lost_nodes_and_misplaced_names() {
    let mut dir = sample();
    dir.blocks.get_mut(&Fbn::new(0)).unwrap().make_mut()[32] ^= 1;
    assert!(matches!(
        dir.check()[..],
        [Finding::EntryCount { header, counted }] if header == counted ^ 1
    ));

    let mut dir = sample();
    let root = dir.blocks.get_mut(&Fbn::new(0)).unwrap().make_mut();
    assert_ne!(root[24..28], [0; 4], "the free list is not empty");
    let free = u32::from_le_bytes(root[24..28].try_into().unwrap());
    root[24..32].fill(0);
    let findings = dir.check();
    assert!(findings.contains(&Finding::Lost { fbn: Fbn::new(u64::from(free)) }));

    let mut dir = sample();
    let block = dir.blocks.get_mut(&Fbn::new(2)).unwrap().make_mut();
    let at = block.windows(5).rposition(|w| w == b"Name ").unwrap();
    block[at] = b'Q';
    assert!(matches!(dir.check()[..], [Finding::Misplaced { fbn, .. }] if fbn == Fbn::new(2)));
}
