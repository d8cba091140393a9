//! Blocks that nothing names any more.
//!
//! Layer: pure, leaf. A file that was written in order lies in runs, so that a large one that is removed
//! is a short list.

use cairn_units::{Pvbn, Vvbn};
use cairn_wafl_format::BlockPtr;

/// Neighbours, by both their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FreedRun {
    pub vvbn: Vvbn,
    pub pvbn: Pvbn,
    pub count: u64,
}

impl FreedRun {
    /// Without its first `count` blocks.
    pub fn behind(self, count: u64) -> Self {
        assert!(count <= self.count, "{count} of {self:?}");
        let (vvbn, pvbn) = (self.vvbn.plus(count), self.pvbn.plus(count));
        Self { vvbn, pvbn, count: self.count - count }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    runs: Vec<FreedRun>,
    blocks: u64,
}

impl Freed {
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
    /// Blocks in all.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }
    pub fn runs(&self) -> &[FreedRun] {
        &self.runs
    }

    pub fn push(&mut self, ptr: BlockPtr) {
        assert!(!ptr.is_hole(), "a hole is not freed");
        self.blocks += 1;
        if let Some(run) = self.runs.last_mut()
            && run.vvbn.plus(run.count) == ptr.vvbn
            && run.pvbn.plus(run.count) == ptr.pvbn
        {
            run.count += 1;
            return;
        }
        self.runs.push(FreedRun { vvbn: ptr.vvbn, pvbn: ptr.pvbn, count: 1 });
    }

    /// Adds all of `other`, which is empty then.
    pub fn append(&mut self, other: &mut Self) {
        self.blocks += core::mem::take(&mut other.blocks);
        self.runs.append(&mut other.runs);
    }
}

impl Extend<BlockPtr> for Freed {
    fn extend<T: IntoIterator<Item = BlockPtr>>(&mut self, ptrs: T) {
        ptrs.into_iter().for_each(|ptr| self.push(ptr));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_units::Crc;

    #[test]
    fn neighbours_by_both_numbers_are_one_run() {
        let blocks = [(10, 100), (11, 101), (12, 102), (13, 200), (14, 201), (20, 202), (21, 50)];
        let ptr = |(vvbn, pvbn): &(u64, u64)| BlockPtr {
            vvbn: Vvbn::new(*vvbn),
            pvbn: Pvbn::new(*pvbn),
            crc: Crc::new(7),
        };
        let (mut freed, mut all) = (Freed::default(), Freed::default());
        freed.extend(blocks.iter().map(ptr));
        all.append(&mut freed);
        freed.push(ptr(&(22, 1)));
        all.append(&mut freed);
        assert_eq!((all.blocks(), freed.blocks(), freed.is_empty()), (8, 0, true));
        let runs: Vec<_> =
            all.runs().iter().map(|r| (r.vvbn.get(), r.pvbn.get(), r.count)).collect();
        assert_eq!(runs, [(10, 100, 3), (13, 200, 2), (20, 202, 1), (21, 50, 1), (22, 1, 1)]);
        let rest = all.runs()[0].behind(2);
        assert_eq!((rest.vvbn.get(), rest.pvbn.get(), rest.count), (12, 102, 1));
    }
}
