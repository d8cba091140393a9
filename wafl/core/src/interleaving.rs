//! What the interleaving tests (`tests/interleave`) see and do that no caller can; in no other build.

use cairn_units::{CpCount, Fsid};

use crate::StorageManager;
use crate::volume::ROOT_INO;

impl StorageManager {
    /// Blocks that a caller may still dirty, nothing kept back.
    pub fn promised(&self) -> u64 {
        self.inner.allowance(0)
    }

    /// The point that the aggregate's root is of.
    pub fn committed(&self) -> Option<CpCount> {
        self.inner.aggr.root().map(|root| root.cp)
    }

    /// Dirties the root directory's inode of a volume, whatever room there is.
    ///
    /// # Panics
    /// There is no such volume.
    #[expect(clippy::expect_used, reason = "for tests")]
    pub fn touch_root(&self, fsid: Fsid) {
        let volume = self.inner.volume(fsid).expect("the volume is there");
        let mut st = volume.lock();
        st.touch(ROOT_INO);
        self.inner.take_delta(&mut st);
    }
}
