//! Every decoder of bytes that come from a wire or a disk, as a function that takes any bytes.
//!
//! Layer: tests. [`TARGETS`] is the one list: `tests/fuzz` has a cargo-fuzz target for each name
//! (checked here), and the tests of this crate run each on random and mutated bytes for a moment,
//! so that a decoder that panics is found by `make test` already. A target may assert what must
//! hold of a decoded value (that it encodes to the same again), and must never fail otherwise.

use core::ops::ControlFlow;
use std::sync::Arc;

use cairn_op::FileHandle;
use cairn_raid_disk::Disk;
use cairn_sim::{SimDiskConfig, SimWorld};
use cairn_sys::{Block, BlockMut};
use cairn_units::{BLOCK_BYTES, Blocks, Cookie, Dbn, Fbn, Generation, InodeNo};
use cairn_wafl_dir::{Dir, DirId, DirKeys, DirRead};
use cairn_wafl_format::{AggregateRoot, Inode, VolumeRecord, pointer_at, set_pointer_at};

/// Name and function of each decoder.
pub const TARGETS: [(&str, fn(&[u8])); 11] = [
    ("rpc_record", cairn_oncrpc::fuzzing::fuzz_record),
    ("xdr", cairn_oncrpc::fuzzing::fuzz_xdr),
    ("nfs_args", cairn_nfs::fuzzing::fuzz_args),
    ("cf_message", cairn_cf::codec::fuzz_decode),
    ("file_handle", file_handle),
    ("aggregate_root", aggregate_root),
    ("volume_record", volume_record),
    ("inode", inode),
    ("disk_label", disk_label),
    ("log_record", cairn_wafl_core::fuzz_log_record),
    ("directory", directory),
];

/// The function of this name.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, run)| *run)
}

/// A directory whose blocks are any bytes.
struct AnyBlocks<'b>(&'b [u8]);

impl DirRead for AnyBlocks<'_> {
    type Miss = Fbn;
    fn block(&self, at: Fbn) -> Result<Block, Fbn> {
        let from = usize::try_from(at.get()).unwrap_or(usize::MAX).saturating_mul(BLOCK_BYTES);
        let bytes = self.0.get(from..).unwrap_or_default();
        Ok(BlockMut::copy_of(&bytes[..bytes.len().min(BLOCK_BYTES)]).freeze())
    }
}

fn directory(bytes: &[u8]) {
    let id = DirId { inode: InodeNo::new(2), generation: Generation::new(1) };
    let keys = DirKeys::new([7; 16]);
    // A true header in front, so that the nodes behind it are looked at.
    let mut all = Dir::empty(id, &keys)[..].to_vec();
    let keep = all.len().min(64);
    all.truncate(keep);
    all.extend_from_slice(bytes);
    let view = AnyBlocks(&all);
    let dir = Dir::new(&view, id, keys);
    let mut seen = 0u32;
    drop(dir.list(Cookie::new(0), |_| {
        seen += 1;
        if seen < 10_000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }));
    drop(dir.lookup(b"name"));
    drop(dir.plan_remove(b"name"));
}

fn file_handle(bytes: &[u8]) {
    if let Some(handle) = FileHandle::from_bytes(bytes) {
        assert_eq!(handle.as_bytes(), bytes);
    }
}

fn aggregate_root(bytes: &[u8]) {
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

fn volume_record(bytes: &[u8]) {
    let block = block(bytes);
    for slot in 0..cairn_wafl_format::POINTERS_PER_BLOCK {
        let mut again = [0; BLOCK_BYTES];
        set_pointer_at(&mut again, slot, pointer_at(&block, slot));
        assert_eq!(pointer_at(&again, slot), pointer_at(&block, slot), "a pointer is kept");
    }
    if let Ok(record) = VolumeRecord::decode(&block) {
        let again = VolumeRecord::decode(&record.encode());
        assert_eq!(again.as_ref(), Ok(&record), "a decoded volume encodes to itself");
    }
}

fn inode(bytes: &[u8]) {
    if let Ok(inode) = Inode::decode(bytes) {
        let again = Inode::decode(&inode.encode());
        assert_eq!(again.as_ref(), Ok(&inode), "a decoded inode encodes to itself");
    }
}

/// A disk whose first and last blocks are these bytes is looked at.
fn disk_label(bytes: &[u8]) {
    /// Blocks of the disk; both copies of a label lie in what is written.
    const DISK_BLOCKS: u64 = 64;
    let sim = SimWorld::new(1);
    let disk = sim.disk(SimDiskConfig::new("fuzzed", Blocks::new(DISK_BLOCKS)));
    let blocks = |count: usize| -> Vec<_> {
        let piece = |at: usize| bytes.get(at * BLOCK_BYTES..).unwrap_or_default();
        (0..count).map(|at| BlockMut::copy_of(&block(piece(at))).freeze()).collect()
    };
    let found = sim.block_on(async {
        let written = disk.write(Dbn::new(0), blocks(4)).await;
        assert!(written.is_ok(), "a simulated disk takes the write");
        let end = disk.write(Dbn::new(DISK_BLOCKS - 4), blocks(4)).await;
        assert!(end.is_ok(), "a simulated disk takes the write");
        let disk: Arc<dyn Disk> = Arc::new(disk);
        cairn_raid_group::probe(&[disk]).await
    });
    assert_eq!(found.len(), 1, "a disk has one finding");
}
