//! Tests of directories: beside a model, at size, and on damaged blocks.

mod damage;
mod model;
mod scale;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use cairn_sys::Block;
use cairn_units::{Blocks, Cookie, Fbn, Generation, InodeNo};

use crate::keys::Keying;
use crate::tree::empty;
use crate::{
    Checker, Dir, DirError, DirFault, DirId, DirKeys, DirRead, DirWrite, EntryKind, Finding,
    NewEntry, Plan,
};

pub(crate) const ID: DirId = DirId { inode: InodeNo::new(77), generation: Generation::new(3) };

/// A directory file in memory. With `cold` it misses each block once before it gives it.
pub(crate) struct MemDir {
    pub(crate) blocks: BTreeMap<Fbn, Block>,
    pub(crate) keys: DirKeys,
    pub(crate) cold: bool,
    loaded: RefCell<BTreeSet<Fbn>>,
    pub(crate) reads: Cell<u64>,
    pub(crate) writes: u64,
}

impl DirRead for MemDir {
    type Miss = Fbn;
    fn block(&self, at: Fbn) -> Result<Block, Fbn> {
        if self.cold && !self.loaded.borrow().contains(&at) {
            return Err(at);
        }
        self.reads.set(self.reads.get() + 1);
        Ok(self.blocks.get(&at).cloned().unwrap_or_else(Block::zero))
    }
}

impl DirWrite for MemDir {
    fn put(&mut self, at: Fbn, block: Block) {
        self.writes += 1;
        self.blocks.insert(at, block);
    }
}

impl MemDir {
    pub(crate) fn new(keys: DirKeys) -> Self {
        Self::keyed(keys, Keying::Grouped)
    }

    pub(crate) fn keyed(keys: DirKeys, keying: Keying) -> Self {
        let mut dir = Self {
            blocks: BTreeMap::new(),
            keys,
            cold: false,
            loaded: RefCell::default(),
            reads: Cell::new(0),
            writes: 0,
        };
        dir.put(Fbn::new(0), empty(ID, &keys, keying));
        dir
    }

    pub(crate) fn dir(&self) -> Dir<'_, Self> {
        Dir::new(self, ID, self.keys)
    }

    /// Runs `op`, loading what it misses.
    pub(crate) fn hot<T>(
        &self,
        mut op: impl FnMut(&Dir<'_, Self>) -> Result<T, DirFault<Fbn>>,
    ) -> Result<T, DirError> {
        self.loaded.borrow_mut().clear();
        loop {
            match DirFault::split(op(&self.dir())) {
                Ok(result) => return result,
                Err(miss) => assert!(self.loaded.borrow_mut().insert(miss), "missed twice"),
            }
        }
    }

    pub(crate) fn apply(&mut self, plan: Plan) {
        let height = self.hot(|dir| dir.size()).unwrap().1;
        assert!(plan.blocks() <= crate::change_blocks_max(height));
        let (end, shrinks) = (Fbn::new(plan.file_blocks().get()), plan.shrinks());
        plan.apply(self);
        if shrinks {
            self.blocks.retain(|at, _| *at < end);
        }
        assert!(self.blocks.keys().all(|at| *at < end));
    }

    pub(crate) fn insert(&mut self, name: &[u8], new: NewEntry) -> Result<Cookie, DirError> {
        let plan = self.hot(|dir| dir.plan_insert(name, new))?;
        let cookie = plan.cookie();
        self.apply(plan);
        Ok(cookie)
    }

    pub(crate) fn remove(&mut self, name: &[u8]) -> Result<(), DirError> {
        let plan = self.hot(|dir| dir.plan_remove(name))?;
        self.apply(plan);
        Ok(())
    }

    /// All entries behind `after`, at most `count`.
    pub(crate) fn list(&self, after: Cookie, count: usize) -> Vec<(Cookie, Vec<u8>, InodeNo)> {
        let out = RefCell::new(Vec::new());
        self.hot(|dir| {
            let from = out.borrow().last().map_or(after, |(cookie, _, _)| *cookie);
            dir.list(from, |entry| {
                out.borrow_mut().push((entry.found.cookie, entry.name.to_vec(), entry.found.inode));
                if out.borrow().len() < count {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
        })
        .unwrap();
        out.into_inner()
    }

    pub(crate) fn check(&self) -> Vec<Finding> {
        let blocks = self.blocks.keys().next_back().map_or(0, |at| at.get() + 1);
        let mut checker = Checker::new(ID, self.keys, Blocks::new(blocks));
        self.loaded.borrow_mut().clear();
        loop {
            match checker.run(self) {
                Ok(findings) => return findings.to_vec(),
                Err(miss) => assert!(self.loaded.borrow_mut().insert(miss), "missed twice"),
            }
        }
    }
}

pub(crate) fn file(number: u64) -> NewEntry {
    NewEntry {
        inode: InodeNo::new(number),
        generation: Generation::new(u32::try_from(number % 1000).unwrap()),
        kind: EntryKind::new(u8::try_from(number % 7).unwrap()),
    }
}

/// A generator good enough to drive tests.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
