//! Cost per operation does not grow with the directory, beyond its height.

use std::cell::RefCell;
use std::collections::BTreeSet;

use cairn_sys::Block;
use cairn_units::{Cookie, Fbn};

use super::{ID, MemDir, Rng, file};
use crate::{Dir, DirKeys, DirRead};

/// A directory whose blocks are counted, each once.
struct Counted<'d>(&'d MemDir, RefCell<BTreeSet<Fbn>>);

impl DirRead for Counted<'_> {
    type Miss = Fbn;
    fn block(&self, at: Fbn) -> Result<Block, Fbn> {
        self.1.borrow_mut().insert(at);
        self.0.block(at)
    }
}

fn name(n: u64) -> Vec<u8> {
    format!("IMG_{n:08}.jpeg").into_bytes()
}

#[test]
fn blocks_touched_stay_flat_over_300_000_entries() {
    const COUNT: u64 = 300_000;
    let mut dir = MemDir::new(DirKeys::new([5; 16]));
    let mut worst_writes = 0;
    for n in 0..COUNT {
        let (reads, writes) = (dir.reads.get(), dir.writes);
        let plan = dir.dir().plan_insert(&name(n), file(n + 1)).unwrap();
        worst_writes = worst_writes.max(plan.blocks());
        plan.apply(&mut dir);
        assert!(dir.reads.get() - reads <= 6, "insert {n} read too much");
        assert!(dir.writes - writes <= 7, "insert {n} wrote too much");
    }
    let (entries, height) = dir.hot(|dir| dir.size()).unwrap();
    assert_eq!((entries, height), (COUNT, 3));
    assert!(worst_writes >= 4, "splits were seen");
    // 48 bytes an entry: half-full leaves would need twice the blocks.
    assert!(dir.blocks.len() < 5_600, "{} blocks", dir.blocks.len());
    let per_write = dir.writes as f64 / COUNT as f64;
    assert!(per_write < 2.1, "{per_write} blocks written per insert");

    let reads = dir.reads.get();
    let mut listed = 0;
    let mut at = Cookie::new(0);
    loop {
        let page = dir.list(at, 1000);
        listed += page.len() as u64;
        match page.last() {
            Some(last) => at = last.0,
            None => break,
        }
    }
    assert_eq!(listed, COUNT);
    let per_page = (dir.reads.get() - reads) / (COUNT / 1000);
    assert!(per_page < 40, "{per_page} blocks read for a page of 1000");
    assert_eq!(dir.check(), []);

    let mut order: Vec<u64> = (0..COUNT).collect();
    let mut rng = Rng(1);
    for i in (1..order.len()).rev() {
        order.swap(i, usize::try_from(rng.below(i as u64 + 1)).unwrap());
    }
    let writes = dir.writes;
    for n in order {
        let plan = dir.dir().plan_remove(&name(n)).unwrap();
        assert!(plan.blocks() <= 7);
        plan.apply(&mut dir);
    }
    let per_remove = (dir.writes - writes) as f64 / COUNT as f64;
    assert!(per_remove < 2.2, "{per_remove} blocks written per remove");
    assert_eq!(dir.hot(|dir| dir.size()).unwrap(), (0, 1));
}

#[test]
fn names_of_a_counter_lie_together() {
    const COUNT: u64 = 60_000;
    let mut dir = MemDir::new(DirKeys::new([6; 16]));
    let mut leaves = 0;
    for first in (0..COUNT).step_by(100) {
        let mut written = BTreeSet::new();
        for n in first..first + 100 {
            let plan = dir.dir().plan_insert(&name(n), file(n + 1)).unwrap();
            written.extend(plan.places());
            plan.apply(&mut dir);
        }
        leaves += written.len();
    }
    // The root, one or two inner nodes, and the leaves of 100 entries with 48 bytes each, two or
    // three of which were there before; the tree of whole hashes has a leaf for each entry.
    let each = leaves as f64 / (COUNT / 100) as f64;
    assert!(each < 7.0, "{each} blocks written for 100 names");
    for first in (0..COUNT).step_by(100) {
        let counted = Counted(&dir, RefCell::default());
        for n in first..first + 100 {
            let found = Dir::new(&counted, ID, dir.keys).lookup(&name(n)).unwrap();
            assert_eq!(found.map(|f| f.inode.get()), Some(n + 1));
        }
        let read = counted.1.borrow().len();
        assert!(read <= 8, "{read} blocks read for 100 names");
    }
}
