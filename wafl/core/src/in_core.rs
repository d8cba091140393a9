//! The in-core inodes of a volume, by number.
//!
//! Layer: volumes. An operation looks up several inodes, a listing hundreds, so finding one must be
//! cheap at millions: numbers are given out in order, lowest first, so chunks of neighbours stand in
//! groups, and groups in one array: two steps to a chunk, however many there are. (A search tree
//! above the chunks was a dozen comparisons and several cache misses at a million files.) Each inode
//! has memory of its own: one map of inodes by value moved kilobytes with each insertion.

use cairn_units::InodeNo;

use crate::volume::File;

/// Inode numbers of one chunk.
const CHUNK_INODES: usize = 64;
/// Chunks of one group.
const GROUP_CHUNKS: usize = 512;

type Slots = [Option<Box<File>>; CHUNK_INODES];

#[derive(Debug)]
struct Chunk {
    slots: Box<Slots>,
    used: usize,
}

#[derive(Debug)]
struct Group {
    chunks: [Option<Chunk>; GROUP_CHUNKS],
    used: usize,
}

#[derive(Debug, Default)]
pub(crate) struct InCore {
    /// As long as the largest number needs: eight bytes for each 32,768 inodes.
    groups: Vec<Option<Box<Group>>>,
}

/// Group, chunk, slot.
fn place(ino: InodeNo) -> (usize, usize, usize) {
    let ino = usize::try_from(ino.get()).unwrap_or(usize::MAX);
    let chunk = ino / CHUNK_INODES;
    (chunk / GROUP_CHUNKS, chunk % GROUP_CHUNKS, ino % CHUNK_INODES)
}

impl InCore {
    pub fn get(&self, ino: &InodeNo) -> Option<&File> {
        let (group, chunk, slot) = place(*ino);
        self.groups.get(group)?.as_ref()?.chunks[chunk].as_ref()?.slots[slot].as_deref()
    }

    pub fn get_mut(&mut self, ino: &InodeNo) -> Option<&mut File> {
        let (group, chunk, slot) = place(*ino);
        let group = self.groups.get_mut(group)?.as_mut()?;
        group.chunks[chunk].as_mut()?.slots[slot].as_deref_mut()
    }

    pub fn contains_key(&self, ino: &InodeNo) -> bool {
        self.get(ino).is_some()
    }

    /// Puts `file` in the place of what there is under this number.
    pub fn insert(&mut self, ino: InodeNo, file: File) {
        let (group, chunk, slot) = place(ino);
        if self.groups.len() <= group {
            self.groups.resize_with(group + 1, || None);
        }
        let group = self.groups[group].get_or_insert_with(|| {
            Box::new(Group { chunks: [const { None }; GROUP_CHUNKS], used: 0 })
        });
        let chunk = group.chunks[chunk].get_or_insert_with(|| {
            group.used += 1;
            Chunk { slots: Box::new([const { None }; CHUNK_INODES]), used: 0 }
        });
        match &mut chunk.slots[slot] {
            Some(old) => **old = file,
            free @ None => {
                *free = Some(Box::new(file));
                chunk.used += 1;
            }
        }
    }

    pub fn remove(&mut self, ino: &InodeNo) {
        let (at, in_group, slot) = place(*ino);
        let Some(Some(group)) = self.groups.get_mut(at) else { return };
        let Some(chunk) = &mut group.chunks[in_group] else { return };
        if chunk.slots[slot].take().is_none() {
            return;
        }
        chunk.used -= 1;
        if chunk.used == 0 {
            group.chunks[in_group] = None;
            group.used -= 1;
        }
        if group.used == 0 {
            self.groups[at] = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    use cairn_units::Generation;
    use cairn_wafl_format::Inode;
    use proptest::prelude::*;

    proptest! {
        /// Beside a plain map: what was put in is found, what was taken out is not.
        #[test]
        fn finds_what_a_map_finds(steps in prop::collection::vec((0u64..300, 0u32..4), 1..400)) {
            let (mut in_core, mut map) = (InCore::default(), BTreeMap::new());
            // Neighbours, and some in the next group.
            let spread = |n: u64| InodeNo::new(if n < 200 { n } else { n * 200 });
            for (n, what) in steps {
                let ino = spread(n);
                if what == 0 {
                    in_core.remove(&ino);
                    map.remove(&ino);
                } else {
                    let generation = Generation::new(what);
                    in_core.insert(ino, File::new(Inode::free(ino, generation)));
                    map.insert(ino, generation);
                }
                for ino in (0..310).map(spread) {
                    let found = in_core.get(&ino).map(|f| (f.inode.ino, f.inode.generation));
                    prop_assert_eq!(found, map.get(&ino).map(|g| (ino, *g)));
                    prop_assert_eq!(in_core.get_mut(&ino).is_some(), map.contains_key(&ino));
                }
            }
            let chunks: BTreeSet<_> = map.keys().map(|ino| (place(*ino).0, place(*ino).1)).collect();
            let groups: BTreeSet<_> = chunks.iter().map(|(group, _)| *group).collect();
            let kept = || in_core.groups.iter().flatten();
            prop_assert_eq!(kept().count(), groups.len(), "an empty group is given back");
            let used = kept().map(|g| g.chunks.iter().flatten().count()).sum::<usize>();
            prop_assert_eq!(used, chunks.len(), "an empty chunk is given back");
        }
    }
}
