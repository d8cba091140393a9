//! Reads trees from disk, with bounded memory: in whole for pointers, at any block for contents.
//!
//! Layer: inside the check; reads through the RAID interface alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_raid_api::{Aggregate, ReadRequest};
use cairn_sys::Block;
use cairn_wafl_format::{
    BlockPtr, DIRECT_POINTERS, Inode, POINTERS_PER_BLOCK, POINTERS_SHIFT, pointer_at,
};

/// Blocks asked for at once.
pub(super) const BATCH_BLOCKS: usize = 64;
/// Blocks of one file that a [`FileReader`] keeps.
const KEPT_BLOCKS: usize = 1024;

/// A pointer with its place in its tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub level: u8,
    pub index: u64,
    pub ptr: BlockPtr,
}

/// Pointers of an inode that are no holes.
fn roots(inode: &Inode) -> Vec<At> {
    if inode.is_inline() {
        return Vec::new();
    }
    let all = (0u64..).zip(inode.pointers.iter());
    let level = inode.height;
    all.filter(|(_, ptr)| !ptr.is_hole()).map(|(index, ptr)| At { level, index, ptr }).collect()
}

/// Pointers of a node that are no holes.
pub(super) fn children(at: At, node: &Block) -> Vec<At> {
    let base = at.index << POINTERS_SHIFT;
    (0..POINTERS_PER_BLOCK)
        .map(|slot| (base + slot as u64, pointer_at(node, slot)))
        .filter(|(_, ptr)| !ptr.is_hole())
        .map(|(index, ptr)| At { level: at.level - 1, index, ptr })
        .collect()
}

/// Blocks at these places, in their order; an error as text.
pub(super) async fn read(
    aggr: &Arc<dyn Aggregate>,
    places: &[At],
) -> Vec<(At, Result<Block, String>)> {
    let request = |at: &At| ReadRequest { at: at.ptr.pvbn, expect: Some(at.ptr.crc) };
    let answers = aggr.read(places.iter().map(request).collect()).await;
    let texts = answers.into_iter().map(|a| a.map_err(|e| e.to_string()));
    places.iter().copied().zip(texts).collect()
}

/// Walks a tree from left to right, some pointers at a time.
pub(super) struct TreeWalk {
    todo: Vec<At>,
}

impl TreeWalk {
    pub fn new(inode: &Inode) -> Self {
        let mut todo = roots(inode);
        todo.reverse();
        Self { todo }
    }

    /// The next pointers, all of one level; nothing at the end.
    pub fn next(&mut self) -> Vec<At> {
        let mut out: Vec<At> = Vec::new();
        while out.len() < BATCH_BLOCKS
            && let Some(top) = self.todo.last()
            && out.first().is_none_or(|first| first.level == top.level)
        {
            out.extend(self.todo.pop());
        }
        out
    }

    /// Goes on below these pointers, which come next.
    pub fn below(&mut self, mut next: Vec<At>) {
        next.reverse();
        self.todo.append(&mut next);
    }
}

/// Reads data blocks of one file in any order.
pub(super) struct FileReader {
    inode: Inode,
    kept: BTreeMap<(u8, u64), Option<Block>>,
}

impl FileReader {
    pub fn new(inode: &Inode) -> Self {
        Self { inode: inode.clone(), kept: BTreeMap::new() }
    }

    /// Data block `index`, `None` for a hole.
    ///
    /// # Errors
    /// The block on the way that cannot be read, and why.
    pub async fn get(
        &mut self,
        aggr: &Arc<dyn Aggregate>,
        index: u64,
    ) -> Result<Option<Block>, (BlockPtr, String)> {
        let height = self.inode.height;
        let top = index.checked_shr(POINTERS_SHIFT * u32::from(height)).unwrap_or(0);
        let Some(slot) = usize::try_from(top).ok().filter(|s| *s < DIRECT_POINTERS) else {
            return Ok(None);
        };
        if self.inode.is_inline() {
            return Ok(None);
        }
        let mut ptr = self.inode.pointers.get(slot);
        for level in (0..=height).rev() {
            let at = index >> (POINTERS_SHIFT * u32::from(level));
            let block = match self.kept.get(&(level, at)) {
                Some(block) => block.clone(),
                None => {
                    let block = self.fetch(aggr, At { level, index: at, ptr }).await?;
                    if self.kept.len() >= KEPT_BLOCKS {
                        self.kept.clear();
                    }
                    self.kept.insert((level, at), block.clone());
                    block
                }
            };
            let Some(block) = block else { return Ok(None) };
            if level == 0 {
                return Ok(Some(block));
            }
            let child = index >> (POINTERS_SHIFT * u32::from(level - 1));
            let slot = usize::try_from(child % POINTERS_PER_BLOCK as u64).unwrap_or_default();
            ptr = pointer_at(&block, slot);
        }
        Ok(None)
    }

    async fn fetch(
        &self,
        aggr: &Arc<dyn Aggregate>,
        at: At,
    ) -> Result<Option<Block>, (BlockPtr, String)> {
        if at.ptr.is_hole() {
            return Ok(None);
        }
        match read(aggr, &[at]).await.pop() {
            Some((_, Ok(block))) => Ok(Some(block)),
            Some((_, Err(error))) => Err((at.ptr, error)),
            None => Err((at.ptr, "no answer".to_owned())),
        }
    }

    /// A data block that was read already.
    pub fn kept(&self, index: u64) -> Option<Option<Block>> {
        self.kept.get(&(0, index)).cloned()
    }
}
