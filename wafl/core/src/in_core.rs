//! The in-core inodes of a volume, by number.
//!
//! Layer: volumes. An operation looks up several inodes, a listing hundreds, so finding one must be
//! cheap at a million: numbers are given out in order, so inodes lie in chunks of neighbours, and
//! the tree above the chunks stays small. Each inode has memory of its own: one map of inodes by
//! value moved kilobytes with each insertion.

use std::collections::BTreeMap;

use cairn_units::InodeNo;

use crate::volume::File;

/// Inode numbers of one chunk.
const CHUNK_INODES: usize = 64;

type Slots = [Option<Box<File>>; CHUNK_INODES];

#[derive(Debug)]
struct Chunk {
    slots: Box<Slots>,
    used: usize,
}

#[derive(Debug, Default)]
pub(crate) struct InCore {
    chunks: BTreeMap<u64, Chunk>,
}

fn place(ino: InodeNo) -> (u64, usize) {
    let each = CHUNK_INODES as u64;
    (ino.get() / each, usize::try_from(ino.get() % each).unwrap_or_default())
}

impl InCore {
    pub fn get(&self, ino: &InodeNo) -> Option<&File> {
        let (chunk, slot) = place(*ino);
        self.chunks.get(&chunk)?.slots[slot].as_deref()
    }

    pub fn get_mut(&mut self, ino: &InodeNo) -> Option<&mut File> {
        let (chunk, slot) = place(*ino);
        self.chunks.get_mut(&chunk)?.slots[slot].as_deref_mut()
    }

    pub fn contains_key(&self, ino: &InodeNo) -> bool {
        self.get(ino).is_some()
    }

    /// Puts `file` in the place of what there is under this number.
    pub fn insert(&mut self, ino: InodeNo, file: File) {
        let (chunk, slot) = place(ino);
        let empty = || Chunk { slots: Box::new([const { None }; CHUNK_INODES]), used: 0 };
        let chunk = self.chunks.entry(chunk).or_insert_with(empty);
        match &mut chunk.slots[slot] {
            Some(old) => **old = file,
            free @ None => {
                *free = Some(Box::new(file));
                chunk.used += 1;
            }
        }
    }

    pub fn remove(&mut self, ino: &InodeNo) {
        let (at, slot) = place(*ino);
        let Some(chunk) = self.chunks.get_mut(&at) else { return };
        if chunk.slots[slot].take().is_some() {
            chunk.used -= 1;
            if chunk.used == 0 {
                self.chunks.remove(&at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_units::Generation;
    use cairn_wafl_format::Inode;
    use proptest::prelude::*;

    proptest! {
        /// Beside a plain map: what was put in is found, what was taken out is not.
        #[test]
        fn finds_what_a_map_finds(steps in prop::collection::vec((0u64..300, 0u32..4), 1..400)) {
            let (mut in_core, mut map) = (InCore::default(), BTreeMap::new());
            for (ino, what) in steps {
                let ino = InodeNo::new(ino);
                if what == 0 {
                    in_core.remove(&ino);
                    map.remove(&ino);
                } else {
                    let generation = Generation::new(what);
                    in_core.insert(ino, File::new(Inode::free(ino, generation)));
                    map.insert(ino, generation);
                }
                for ino in (0..310).map(InodeNo::new) {
                    let found = in_core.get(&ino).map(|f| (f.inode.ino, f.inode.generation));
                    prop_assert_eq!(found, map.get(&ino).map(|g| (ino, *g)));
                    prop_assert_eq!(in_core.get_mut(&ino).is_some(), map.contains_key(&ino));
                }
            }
            let chunks: std::collections::BTreeSet<u64> =
                map.keys().map(|ino| place(*ino).0).collect();
            prop_assert_eq!(in_core.chunks.len(), chunks.len(), "an empty chunk is given back");
        }
    }
}
