//! A directory and a sorted map are given the same operations and must agree.

use std::collections::{BTreeMap, BTreeSet};

use cairn_units::{Cookie, Fbn, InodeNo};
use proptest::prelude::*;

use super::{ID, MemDir, Rng, file};
use crate::keys::{Folded, Keying};
use crate::{Dir, DirError, DirKeys, DirWrite, Overlay};

/// Does `steps` random operations on `names` names with `hash_bits` bits of hash.
fn run(seed: u64, steps: u64, names: u64, hash_bits: u32, long: bool, cold: bool) {
    let mut rng = Rng(seed);
    // One in four in a directory that an older build made.
    let keying = if seed % 4 == 1 { Keying::Whole } else { Keying::Grouped };
    let mut dir = MemDir::keyed(DirKeys::colliding([9; 16], hash_bits), keying);
    dir.cold = cold;
    let mut model: BTreeMap<Vec<u8>, (InodeNo, Cookie)> = BTreeMap::new();
    let mut listing = Listing::default();
    for step in 0..steps {
        // Phases that grow and phases that shrink, so that nodes split and merge.
        let grow = if (step / 400) % 2 == 0 { 70 } else { 25 };
        let name = name(&mut rng, names, long);
        match rng.below(100) {
            n if n < grow => match dir.insert(&name, file(step + 1)) {
                Ok(cookie) => {
                    assert!(cookie.get() >= 3 && cookie.get() < 1 << 63);
                    let old = model.insert(name.clone(), (InodeNo::new(step + 1), cookie));
                    assert_eq!(old, None);
                    listing.came(cookie);
                }
                Err(DirError::Exists(found)) => {
                    assert_eq!(model.get(&name).copied(), Some((found.inode, found.cookie)));
                }
                Err(e) => panic!("{e}"),
            },
            n if n < 90 => match dir.remove(&name) {
                Ok(()) => {
                    let gone = model.remove(&name).expect("the model has what was removed");
                    listing.went(gone.1);
                }
                Err(DirError::NotFound) => assert!(!model.contains_key(&name)),
                Err(e) => panic!("{e}"),
            },
            n if n < 95 => {
                let plan = dir.hot(|dir| dir.plan_replace(&name, file(step + 1)));
                match (plan, model.get_mut(&name)) {
                    (Ok(plan), Some(entry)) => {
                        assert_eq!(plan.blocks(), 1);
                        assert_eq!(plan.previous().map(|f| f.inode), Some(entry.0));
                        assert_eq!(plan.cookie(), entry.1);
                        dir.apply(plan);
                        entry.0 = InodeNo::new(step + 1);
                    }
                    (Err(DirError::NotFound), None) => {}
                    (plan, entry) => panic!("{plan:?} {entry:?}"),
                }
            }
            _ => listing.page(&dir, &model),
        }
        if step % 64 == 0 {
            compare(&dir, &model, &name);
        }
    }
    for name in model.keys().cloned().collect::<Vec<_>>() {
        assert_eq!(dir.remove(&name), Ok(()));
    }
    assert_eq!(dir.blocks.len(), 1, "an empty directory is one block");
    assert_eq!(dir.check(), []);
}

fn name(rng: &mut Rng, names: u64, long: bool) -> Vec<u8> {
    let number = rng.below(names);
    let mut name = match number % 4 {
        // Some with a counter, whose neighbours share a group.
        0 => format!("n{number:05}"),
        1 => format!("N{:05}", number - 1),
        2 => format!("Ünï{number}"),
        _ => format!("ünÏ{}", number - 1),
    }
    .into_bytes();
    if number.is_multiple_of(5) {
        name.push(0xfe);
    }
    if long {
        // Long, and of lengths that differ.
        name.resize(60 + usize::try_from(number * 37 % 196).unwrap(), b'x');
    }
    name
}

fn compare(dir: &MemDir, model: &BTreeMap<Vec<u8>, (InodeNo, Cookie)>, probe: &[u8]) {
    assert_eq!(dir.check(), []);
    let size = dir.hot(|dir| dir.size()).unwrap().0;
    assert_eq!(size, model.len() as u64);
    let mut expected: Vec<_> =
        model.iter().map(|(name, (inode, cookie))| (*cookie, name.clone(), *inode)).collect();
    expected.sort();
    assert_eq!(dir.list(Cookie::new(0), usize::MAX), expected);
    for name in model.keys().take(20).map(Vec::as_slice).chain([probe]) {
        let found = dir.hot(|dir| dir.lookup(name)).unwrap();
        assert_eq!(found.map(|f| (f.inode, f.cookie)), model.get(name).copied());
        let folded = dir.hot(|dir| dir.lookup_folded(name)).unwrap();
        let alike = |other: &[u8]| Folded::of(other).bytes() == Folded::of(name).bytes();
        match folded {
            Some(f) => {
                assert_eq!(model.get(&f.name), Some(&(f.found.inode, f.found.cookie)));
                assert!(alike(&f.name));
                assert!(f.name == name || !model.contains_key(name), "the exact name first");
            }
            None => assert!(!model.keys().any(|other| alike(other))),
        }
    }
}

/// A client that lists the directory page by page while it changes, over and over.
#[derive(Default)]
struct Listing {
    at: Cookie,
    must: BTreeSet<Cookie>,
    may: BTreeSet<Cookie>,
    got: BTreeSet<Cookie>,
}

impl Listing {
    fn came(&mut self, cookie: Cookie) {
        self.may.insert(cookie);
    }
    fn went(&mut self, cookie: Cookie) {
        self.must.remove(&cookie);
    }
    fn page(&mut self, dir: &MemDir, model: &BTreeMap<Vec<u8>, (InodeNo, Cookie)>) {
        if self.at == Cookie::new(0) {
            self.must = model.values().map(|(_, cookie)| *cookie).collect();
            self.may = self.must.clone();
            self.got.clear();
        }
        let page = dir.list(self.at, 17);
        for (cookie, _, _) in &page {
            assert!(self.may.contains(cookie), "listed what was never there");
            assert!(self.got.insert(*cookie), "listed twice");
            self.at = *cookie;
        }
        if page.len() < 17 {
            assert!(self.must.is_subset(&self.got), "an entry that stayed was not listed");
            self.at = Cookie::new(0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn directory_agrees_with_a_map(
        seed: u64,
        names in 1u64..900,
        bits in prop_oneof![Just(0u32), 1..8u32, Just(47)],
        long: bool,
        cold: bool,
    ) {
        run(seed, 1600, names, bits, long, cold);
    }

    #[test]
    fn cold_cache_only_delays(seed: u64, names in 1u64..2000) {
        run(seed, 800, names, 47, true, true);
    }
}

#[test]
fn rename_within_a_directory_is_planned_on_an_overlay() {
    let mut dir = MemDir::new(DirKeys::new([1; 16]));
    for n in 0..500 {
        dir.insert(format!("file {n}").as_bytes(), file(n + 1)).unwrap();
    }
    let mut overlay = Overlay::new(&dir);
    let from = b"file 77";
    let removed = Dir::new(&overlay, ID, dir.keys).plan_remove(from).unwrap();
    let old = removed.previous().unwrap();
    removed.apply(&mut overlay);
    let to = crate::NewEntry { inode: old.inode, generation: old.generation, kind: old.kind };
    Dir::new(&overlay, ID, dir.keys).plan_insert(b"moved", to).unwrap().apply(&mut overlay);
    for (at, block) in overlay.into_writes() {
        dir.put(at, block);
    }
    assert_eq!(dir.hot(|dir| dir.lookup(from)), Ok(None));
    assert_eq!(dir.hot(|dir| dir.lookup(b"moved")).unwrap().unwrap().inode, InodeNo::new(78));
    assert_eq!(dir.check(), []);
}

#[test]
fn names_that_cannot_be_stored_are_refused() {
    let mut dir = MemDir::new(DirKeys::new([1; 16]));
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        let refused = dir.insert(name, file(1));
        assert_eq!(refused, Err(DirError::BadName { bytes: name.len() }));
        assert_eq!(dir.hot(|dir| dir.lookup(name)), Ok(None));
        assert_eq!(dir.remove(name), Err(DirError::NotFound));
    }
    dir.insert(&[b'x'; 255], file(1)).unwrap();
    dir.insert(b"...", file(2)).unwrap();
    assert_eq!(dir.blocks.len(), 1);
}

#[test]
fn names_that_differ_only_in_case_are_limited() {
    let mut dir = MemDir::new(DirKeys::colliding([1; 16], 0));
    for n in 0..crate::HASH_RUN_MAX {
        dir.insert(format!("{n}").as_bytes(), file(1)).unwrap();
    }
    let run = crate::HASH_RUN_MAX;
    assert_eq!(dir.insert(b"one more", file(1)), Err(DirError::RunFull { run }));
    dir.remove(b"1000").unwrap();
    let cookie = dir.insert(b"one more", file(1)).unwrap();
    assert_eq!(cookie.get(), (1 << 16) + 1000, "the gap is used again");
    assert!(dir.hot(|dir| dir.lookup(b"4095")).unwrap().is_some());
    assert_eq!(dir.check(), []);
    assert!(dir.blocks.contains_key(&Fbn::new(2)));
}

#[test]
fn a_directory_of_an_older_build_is_kept_as_it_is_until_it_is_empty() {
    let keys = DirKeys::new([4; 16]);
    let mut dir = MemDir::keyed(keys, Keying::Whole);
    let name = |n: u64| format!("photo {n:05}").into_bytes();
    let place = |n: u64, keying| keys.run_of(&name(n), keying).cookie();
    for n in 0..300 {
        assert_eq!(dir.insert(&name(n), file(n + 1)), Ok(place(n, Keying::Whole)));
    }
    assert_eq!(dir.check(), []);
    for n in 0..300 {
        assert_eq!(dir.blocks[&Fbn::new(0)][4], 1, "the version of its header");
        dir.remove(&name(n)).unwrap();
    }
    assert_eq!(dir.insert(&name(7), file(1)), Ok(place(7, Keying::Grouped)));
    assert_eq!(dir.blocks[&Fbn::new(0)][4], 2);
    assert_eq!(dir.check(), []);
}
