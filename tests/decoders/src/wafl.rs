//! Structures of the storage manager on disk: roots, volumes, inodes, pointers, directories,
//! extended attributes.
//!
//! Layer: tests.

use core::ops::ControlFlow;
use std::collections::BTreeMap;

use cairn_sys::{Block, BlockMut};
use cairn_units::{BLOCK_BYTES, Blocks, Cookie, Crc, Fbn, Generation, InodeNo, Pvbn, Vvbn};
use cairn_wafl_dir::{
    Checker, Dir, DirId, DirKeys, DirRead, DirWrite, EntryKind, NewEntry, Progress,
};
use cairn_wafl_format::{
    AggregateRoot, BlockPtr, Inode, POINTERS_PER_BLOCK, VolumeRecord, pointer_at, set_pointer_at,
};

/// Entries and steps after which a walk must have come to an end.
const STEPS_MAX: u32 = 10_000;

/// The root of an aggregate.
pub fn aggregate_root(bytes: &[u8]) {
    if let Ok(root) = AggregateRoot::decode(bytes) {
        let again = AggregateRoot::decode(&root.encode());
        assert_eq!(again.as_ref(), Ok(&root), "a decoded root encodes to itself");
    }
}

/// The first block of `bytes`, filled up with zeros.
fn block(bytes: &[u8]) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let count = bytes.len().min(BLOCK_BYTES);
    block[..count].copy_from_slice(&bytes[..count]);
    block
}

/// A volume's record.
pub fn volume_record(bytes: &[u8]) {
    if let Ok(record) = VolumeRecord::decode(&block(bytes)) {
        let again = VolumeRecord::decode(&record.encode());
        assert_eq!(again.as_ref(), Ok(&record), "a decoded volume encodes to itself");
    }
}

/// An inode.
pub fn inode(bytes: &[u8]) {
    if let Ok(inode) = Inode::decode(bytes) {
        let again = Inode::decode(&inode.encode());
        assert_eq!(again.as_ref(), Ok(&inode), "a decoded inode encodes to itself");
    }
}

/// An indirect block.
pub fn block_pointers(bytes: &[u8]) {
    let block = block(bytes);
    for slot in 0..POINTERS_PER_BLOCK {
        let mut again = [0; BLOCK_BYTES];
        set_pointer_at(&mut again, slot, pointer_at(&block, slot));
        assert_eq!(pointer_at(&again, slot), pointer_at(&block, slot), "a pointer is kept");
    }
}

/// A few pointers, one of them the largest.
pub fn pointer_seeds() -> Vec<Vec<u8>> {
    let mut block = [0; BLOCK_BYTES];
    let end = cairn_wafl_format::BLOCK_NUMBER_END;
    for (slot, number) in [(0, 1), (1, 4096), (2, end - 1)] {
        let (vvbn, pvbn) = (Vvbn::new(number), Pvbn::new(end - number));
        set_pointer_at(&mut block, slot, BlockPtr { vvbn, pvbn, crc: Crc::new(7) });
    }
    vec![block[..64].to_vec()]
}

/// A directory in memory; blocks that are not there are zeros.
#[derive(Default)]
struct Blockfile(BTreeMap<u64, Block>);

impl DirRead for Blockfile {
    type Miss = Fbn;
    fn block(&self, at: Fbn) -> Result<Block, Fbn> {
        Ok(self.0.get(&at.get()).cloned().unwrap_or_else(Block::zero))
    }
}

impl DirWrite for Blockfile {
    fn put(&mut self, at: Fbn, block: Block) {
        self.0.insert(at.get(), block);
    }
}

fn id() -> DirId {
    DirId { inode: InodeNo::new(2), generation: Generation::new(1) }
}

fn keys() -> DirKeys {
    DirKeys::new([7; 16])
}

/// The blocks of a directory: bytes 0.. of the input behind a true header, or, when the first
/// byte is odd, the header as well.
fn any_directory(bytes: &[u8]) -> Option<(Blockfile, u64)> {
    /// Bytes of a directory's header.
    const HEADER_BYTES: usize = 64;
    let (mode, rest) = bytes.split_first()?;
    let mut all = Vec::new();
    if mode & 1 == 0 {
        all.extend_from_slice(&Dir::empty(id(), &keys())[..HEADER_BYTES]);
    }
    all.extend_from_slice(rest);
    let chunks = all.chunks(BLOCK_BYTES).map(|chunk| BlockMut::copy_of(chunk).freeze());
    let file = Blockfile((0..).zip(chunks).collect());
    let blocks = file.0.len() as u64;
    Some((file, blocks))
}

/// A directory of any blocks is listed, searched and changed.
pub fn directory(bytes: &[u8]) {
    let Some((mut file, _)) = any_directory(bytes) else { return };
    let dir = Dir::new(&file, id(), keys());
    let mut seen = 0u32;
    let listed = dir.list(Cookie::new(0), |_| {
        seen += 1;
        if seen < STEPS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let _whole = listed.is_ok() && dir.size().is_ok() && dir.file_blocks().is_ok();
    drop((dir.lookup(b"name1"), dir.lookup_folded(b"NAME2")));
    drop(dir.plan_replace(b"name3", new_entry(9)));
    let removed = dir.plan_remove(b"name1");
    let inserted = dir.plan_insert(b"another", new_entry(8));
    for plan in [removed.ok(), inserted.ok()].into_iter().flatten() {
        assert!(plan.blocks() <= 64, "a change is bounded");
        plan.apply(&mut file);
    }
}

/// The check of a directory of any blocks comes to an end.
pub fn directory_check(bytes: &[u8]) {
    let Some((file, blocks)) = any_directory(bytes) else { return };
    let mut checker = Checker::new(id(), keys(), Blocks::new(blocks));
    let mut steps = 0;
    while let Ok(Progress::More) = checker.step(&file) {
        steps += 1;
        assert!(steps < STEPS_MAX, "the check of {blocks} blocks comes to no end");
    }
    assert!(checker.findings().len() <= cairn_wafl_dir::FINDINGS_MAX);
}

fn new_entry(inode: u64) -> NewEntry {
    NewEntry { inode: InodeNo::new(inode), generation: Generation::new(1), kind: EntryKind::new(1) }
}

/// An empty directory, one of one block, one with inner and free nodes.
pub fn directory_seeds() -> Vec<Vec<u8>> {
    let seed = |names: u64, removed: u64| {
        let mut file = Blockfile::default();
        file.put(Fbn::new(0), Dir::empty(id(), &keys()));
        let name =
            |n: u64| format!("name{n}{}", "x".repeat(usize::try_from(n % 9 * 20).unwrap_or(0)));
        for n in 0..names {
            let plan =
                Dir::new(&file, id(), keys()).plan_insert(name(n).as_bytes(), new_entry(n + 3));
            if let Ok(plan) = plan {
                plan.apply(&mut file);
            }
        }
        for n in 0..removed {
            let plan = Dir::new(&file, id(), keys()).plan_remove(name(n).as_bytes());
            if let Ok(plan) = plan {
                plan.apply(&mut file);
            }
        }
        let mut out = vec![1];
        for block in file.0.values() {
            out.extend_from_slice(&block[..]);
        }
        // Zeros at the end are filled in anyway.
        while out.last() == Some(&0) {
            out.pop();
        }
        out
    };
    vec![seed(0, 0), seed(3, 0), seed(60, 40)]
}

/// None, one, two.
pub fn xattr_seeds() -> Vec<Vec<u8>> {
    let attribute = |name: &[u8], value: &[u8]| {
        let mut out = vec![u8::try_from(name.len()).unwrap_or(0)];
        out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(value);
        out
    };
    let (a, b) = (attribute(b"user.a", b""), attribute(b"user.b", &[7; 40]));
    vec![vec![1], [&[1][..], &a].concat(), [&[1][..], &a, &b].concat()]
}
