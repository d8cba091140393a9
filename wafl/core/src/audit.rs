//! An independent walk over what lies on disk: whether the committed state adds up.
//!
//! Layer: beside the storage manager; shares with it only the formats and the directory code.
//! Reads through the RAID interface alone, from the committed root down, and compares the maps
//! with what is reachable: every block named once, every named block marked used, and nothing
//! else; counts, link counts and inode map likewise. Read-only; for a stopped or quiet node.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_raid_api::{Aggregate, ReadRequest};
use cairn_sys::Block;
use cairn_units::{Cookie, Fbn, Fsid, InodeNo, Pvbn};
use cairn_wafl_dir::{Dir, DirFault, DirId, DirKeys, DirRead};
use cairn_wafl_format::{
    AREA_COUNTS_PER_BLOCK, AggregateRoot, BITS_PER_BLOCK, BlockPtr, CONTAINER_ENTRIES_PER_BLOCK,
    INODE_BYTES, INODES_PER_BLOCK, Inode, InodeKind, InodeShare, POINTERS_PER_BLOCK,
    POINTERS_SHIFT, VolumeRecord, VolumeSums, pointer_at,
};

use crate::cp::container_entry;
use crate::sums;
use crate::volume::{FIRST_INO, ROOT_INO, bit_place};

/// Findings after which the walk stops collecting.
const FINDINGS_MAX: usize = 200;

/// What a walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Volumes walked.
    pub volumes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Blocks named by something.
    pub blocks: u64,
    /// What does not add up; empty when all does.
    pub findings: Vec<String>,
}

/// Blocks of one tree that were read, by level and index.
type Blocks = BTreeMap<(u8, u64), Block>;

struct Walk<'a> {
    aggr: &'a Arc<dyn Aggregate>,
    out: Audit,
    /// Who names each PVBN.
    named: BTreeMap<Pvbn, &'static str>,
}

/// VVBNs of one volume that are named, with the PVBN that the pointer says.
type Named = BTreeMap<u64, Pvbn>;

/// Walks the committed state of an aggregate.
pub async fn audit(aggr: &Arc<dyn Aggregate>) -> Audit {
    let mut walk = Walk { aggr, out: Audit::default(), named: BTreeMap::new() };
    let Some(slot) = aggr.root() else { return walk.out };
    match AggregateRoot::decode(&slot.bytes) {
        Ok(root) => walk.root(&root).await,
        Err(error) => walk.find(format!("root: {error}")),
    }
    walk.out
}

impl Walk<'_> {
    fn find(&mut self, what: String) {
        if self.out.findings.len() < FINDINGS_MAX {
            self.out.findings.push(what);
        }
    }

    async fn root(&mut self, root: &AggregateRoot) {
        let none = &mut Named::new();
        let table = self.tree("volume table", &root.volume_table, true, none).await;
        let map = self.tree("aggregate map", &root.active_map, true, none).await;
        let counts = self.tree("area counts", &root.area_counts, true, none).await;
        for slot in 0..root.volume_slots {
            let Some(block) = table.get(&(0, slot)).filter(|b| b.iter().any(|x| *x != 0)) else {
                continue;
            };
            match VolumeRecord::decode(block) {
                Ok(record) => self.volume(&record).await,
                Err(error) => self.find(format!("volume record {slot}: {error}")),
            }
        }
        self.compare_space(root, &map, &counts);
    }

    /// Reads a tree: its indirect blocks, and its data blocks if asked for.
    async fn tree(
        &mut self,
        what: &'static str,
        inode: &Inode,
        data: bool,
        vvbns: &mut Named,
    ) -> Blocks {
        let mut out = Blocks::new();
        if inode.is_inline() {
            return out;
        }
        let mut level = inode.height;
        let mut todo: Vec<(u64, BlockPtr)> =
            (0u64..).zip(inode.pointers).filter(|(_, p)| !p.is_hole()).collect();
        let mut count = 0u64;
        loop {
            let mut next = Vec::new();
            for (index, ptr) in &todo {
                count += 1;
                self.name(what, *ptr, vvbns);
                if level == 0 && !data {
                    continue;
                }
                let Some(block) = self.read(what, *ptr).await else { continue };
                if level > 0 {
                    for slot in 0..POINTERS_PER_BLOCK {
                        let child = pointer_at(&block, slot);
                        if !child.is_hole() {
                            next.push(((index << POINTERS_SHIFT) + slot as u64, child));
                        }
                    }
                } else {
                    out.insert((level, *index), block);
                }
            }
            if level == 0 {
                break;
            }
            (level, todo) = (level - 1, next);
        }
        self.out.blocks += count;
        out
    }

    fn name(&mut self, what: &'static str, ptr: BlockPtr, vvbns: &mut Named) {
        if let Some(other) = self.named.insert(ptr.pvbn, what) {
            self.find(format!("{:?} is named by {what} and by {other}", ptr.pvbn));
        }
        if ptr.vvbn.get() != 0 && vvbns.insert(ptr.vvbn.get(), ptr.pvbn).is_some() {
            self.find(format!("{:?} is named twice in its volume", ptr.vvbn));
        }
    }

    async fn read(&mut self, what: &'static str, ptr: BlockPtr) -> Option<Block> {
        let request = ReadRequest { at: ptr.pvbn, expect: Some(ptr.crc) };
        match self.aggr.read(vec![request]).await.pop() {
            Some(Ok(block)) => Some(block),
            Some(Err(error)) => {
                self.find(format!("{what}: {error}"));
                None
            }
            None => None,
        }
    }

    async fn volume(&mut self, record: &VolumeRecord) {
        self.out.volumes += 1;
        let fsid = record.fsid;
        let mut vvbns = Named::new();
        let inodes = self.tree("inode file", &record.inode_file, true, &mut vvbns).await;
        let inode_map = self.tree("inode map", &record.inode_map, true, &mut vvbns).await;
        let active = self.tree("active map", &record.active_map, true, &mut vvbns).await;
        let container =
            self.tree("container map", &record.container_map, true, &mut Named::new()).await;
        let mut files: BTreeMap<InodeNo, Inode> = BTreeMap::new();
        for ((_, index), block) in &inodes {
            for slot in 0..INODES_PER_BLOCK {
                let at = usize::try_from(slot).unwrap_or_default() * INODE_BYTES;
                match Inode::decode(&block[at..at + INODE_BYTES]) {
                    Ok(inode) if inode.kind == InodeKind::Free => {}
                    Ok(inode) => {
                        let ino = InodeNo::new(index * INODES_PER_BLOCK + slot);
                        if inode.ino != ino {
                            self.find(format!("volume {fsid}: inode {ino} says {}", inode.ino));
                        }
                        files.insert(ino, inode);
                    }
                    Err(error) => self.find(format!("volume {fsid}: inode block {index}: {error}")),
                }
            }
        }
        self.out.inodes += files.len() as u64;
        let mut dirs = BTreeMap::new();
        let mut sums = VolumeSums::default();
        let cut = files.values().any(Inode::is_zombie);
        for (ino, inode) in &files {
            sums::replace(&mut sums, InodeShare::default(), InodeShare::of(&inode.encode()));
            let is_dir = inode.kind == InodeKind::Directory && !inode.is_zombie();
            let before = self.out.blocks;
            let blocks = self.tree("a file", inode, is_dir, &mut vvbns).await;
            let counted = self.out.blocks - before;
            // While a cut-off tail is being freed, the counts of its file are an estimate.
            if !cut && u64::try_from(inode.blocks) != Ok(counted) {
                self.find(format!(
                    "volume {fsid}: inode {ino} has {counted} blocks and says {}",
                    inode.blocks
                ));
            }
            if is_dir {
                dirs.insert(*ino, blocks);
            }
        }
        self.compare_inode_map(record, &files, &inode_map);
        sums.names = self.compare_names(record, &files, &dirs);
        sums.residue = if cut { record.sums.residue } else { 0 };
        if sums != record.sums {
            self.find(format!("volume {fsid} adds up to {sums:?} and says {:?}", record.sums));
        }
        self.compare_vvbns(record, &vvbns, &active, &container);
    }

    fn compare_inode_map(
        &mut self,
        record: &VolumeRecord,
        files: &BTreeMap<InodeNo, Inode>,
        map: &Blocks,
    ) {
        for n in 0..record.inode_end.max(FIRST_INO) {
            let marked = bit(map, n);
            let used = files.contains_key(&InodeNo::new(n)) || n < FIRST_INO;
            if marked != used {
                self.find(format!(
                    "volume {}: inode {n} is marked {marked}, in use {used}",
                    record.fsid
                ));
            }
        }
        let plain = files.values().filter(|i| i.kind != InodeKind::Internal && !i.is_zombie());
        if plain.count() as u64 != record.files {
            self.find(format!("volume {}: the count of files is wrong", record.fsid));
        }
    }

    fn compare_names(
        &mut self,
        record: &VolumeRecord,
        files: &BTreeMap<InodeNo, Inode>,
        dirs: &BTreeMap<InodeNo, Blocks>,
    ) -> i64 {
        let mut names = 0;
        let mut links: BTreeMap<InodeNo, u32> = BTreeMap::new();
        links.insert(ROOT_INO, 2);
        for (ino, blocks) in dirs {
            let Some(inode) = files.get(ino) else { continue };
            let view = View { blocks };
            let id = DirId { inode: *ino, generation: inode.generation };
            let dir = Dir::new(&view, id, DirKeys::new(record.hash_key));
            let mut named = Vec::new();
            let end = dir.list(Cookie::new(0), |entry| {
                named.push((entry.found.inode, entry.found.generation));
                core::ops::ControlFlow::Continue(())
            });
            if let Err(DirFault::Error(error)) = end {
                self.find(format!("volume {}: directory {ino}: {error}", record.fsid));
            }
            for (child, generation) in named {
                names += 1;
                match files.get(&child) {
                    Some(c) if c.generation == generation && !c.is_zombie() => {
                        if c.kind == InodeKind::Directory {
                            *links.entry(child).or_default() += 2;
                            *links.entry(*ino).or_default() += 1;
                            if c.parent != *ino {
                                self.find(format!("directory {child} has the wrong parent"));
                            }
                        } else {
                            *links.entry(child).or_default() += 1;
                        }
                    }
                    _ => self.find(format!(
                        "volume {}: directory {ino} names inode {child}, which is not there",
                        record.fsid
                    )),
                }
            }
        }
        for (ino, inode) in files {
            let counted = links.get(ino).copied().unwrap_or(0);
            let exempt = inode.kind == InodeKind::Internal || inode.is_zombie();
            if !exempt && counted != inode.links {
                self.find(format!(
                    "volume {}: inode {ino} has {counted} links and says {}",
                    record.fsid, inode.links
                ));
            }
        }
        names
    }

    fn compare_vvbns(
        &mut self,
        record: &VolumeRecord,
        vvbns: &Named,
        active: &Blocks,
        container: &Blocks,
    ) {
        let fsid: Fsid = record.fsid;
        let mut marked = 0u64;
        for ((_, index), block) in active {
            for n in 0..BITS_PER_BLOCK {
                let (byte, mask) = bit_place(n);
                if block[byte] & mask == 0 {
                    continue;
                }
                marked += 1;
                let vvbn = index * BITS_PER_BLOCK + n;
                if !vvbns.contains_key(&vvbn) {
                    self.find(format!("volume {fsid}: VVBN {vvbn} is marked and nothing names it"));
                }
            }
        }
        for (vvbn, pvbn) in vvbns {
            if !bit(active, *vvbn) {
                self.find(format!("volume {fsid}: VVBN {vvbn} is named and not marked"));
            }
            let entry = container
                .get(&(0, vvbn / CONTAINER_ENTRIES_PER_BLOCK))
                .map(|b| container_entry(b, *vvbn));
            if entry != Some(*pvbn) && record.relocations == 0 {
                self.find(format!(
                    "volume {fsid}: VVBN {vvbn} lies at {pvbn:?}, the container map says {entry:?}"
                ));
            }
        }
        if marked != record.used_blocks {
            self.find(format!(
                "volume {fsid}: {marked} VVBNs are marked, the record says {}",
                record.used_blocks
            ));
        }
    }

    fn compare_space(&mut self, root: &AggregateRoot, map: &Blocks, counts: &Blocks) {
        let geometry = self.aggr.geometry();
        let (mut slot, mut used) = (0u64, 0u64);
        let area_stripes = u64::from(root.area_stripes);
        for group in &geometry.groups {
            for area in 0..group.stripes.get().div_ceil(area_stripes) {
                let first = area * area_stripes;
                let end = (first + area_stripes).min(group.stripes.get());
                let mut free = 0u32;
                for column in &group.data {
                    for stripe in first..end {
                        let at = column.pvbn_base.plus(stripe);
                        let marked = bit(map, at.get());
                        let named = self.named.contains_key(&at) || at.get() == 0;
                        free += u32::from(!marked);
                        used += u64::from(marked);
                        if marked != named {
                            self.find(format!("{at:?} is marked {marked}, named {named}"));
                        }
                    }
                }
                let said = counts.get(&(0, slot / AREA_COUNTS_PER_BLOCK)).map_or(0, |b| {
                    let at = usize::try_from(slot % AREA_COUNTS_PER_BLOCK).unwrap_or_default() * 4;
                    let mut bytes = [0; 4];
                    bytes.copy_from_slice(&b[at..at + 4]);
                    u32::from_le_bytes(bytes)
                });
                if said != free {
                    self.find(format!("area {slot} has {free} free blocks, the count says {said}"));
                }
                slot += 1;
            }
        }
        if used != root.used_blocks {
            self.find(format!("{used} PVBNs are marked, the root says {}", root.used_blocks));
        }
    }
}

fn bit(map: &Blocks, n: u64) -> bool {
    let (byte, mask) = bit_place(n % BITS_PER_BLOCK);
    map.get(&(0, n / BITS_PER_BLOCK)).is_some_and(|b| b[byte] & mask != 0)
}

struct View<'b> {
    blocks: &'b Blocks,
}

impl DirRead for View<'_> {
    type Miss = Fbn;
    fn block(&self, at: Fbn) -> Result<Block, Fbn> {
        Ok(self.blocks.get(&(0, at.get())).cloned().unwrap_or_else(Block::zero))
    }
}
