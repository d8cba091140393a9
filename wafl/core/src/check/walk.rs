//! The walk over the aggregate: its own files, each volume, and the map of blocks in use.
//!
//! Layer: inside the check.

use std::sync::Arc;

use cairn_raid_api::Aggregate;
use cairn_sys::Block;
use cairn_sys::lock::atomic::{AtomicBool, AtomicU64, Ordering};
use cairn_units::{Fbn, Fsid, InodeNo};
use cairn_wafl_format::{
    AREA_COUNTS_PER_BLOCK, AggregateRoot, BITS_PER_BLOCK, Inode, VolumeRecord,
};

use super::bits::Bits;
use super::reader::{At, FileReader, TreeWalk, children, read};
use super::volume::Names;
use super::{Audit, Finding, Owner};
use crate::bits::bit_place;
use crate::space::count_at;

/// How far a walk is, for those who watch it and may stop it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Blocks named so far.
    pub done: AtomicU64,
    /// Blocks in use by the root.
    pub total: AtomicU64,
    /// Stop as soon as possible.
    pub stop: AtomicBool,
}

/// A block could not be read; the finding says which.
pub(super) struct Unread;

pub(crate) struct Walk<'a> {
    pub(super) aggr: &'a Arc<dyn Aggregate>,
    pub out: Audit,
    pub(super) progress: &'a Progress,
    /// PVBNs that something names.
    named: Bits,
    /// Everything that leads to other blocks could be read.
    pub whole: bool,
    /// The data of files is read too.
    data: bool,
}

impl<'a> Walk<'a> {
    pub fn new(aggr: &'a Arc<dyn Aggregate>, data: bool, progress: &'a Progress) -> Self {
        let (out, named) = (Audit::default(), Bits::default());
        Self { aggr, out, progress, named, whole: true, data }
    }

    pub fn stopped(&self) -> bool {
        self.progress.stop.load(Ordering::Relaxed)
    }

    pub async fn root(&mut self, root: &AggregateRoot, only: Option<Fsid>) {
        self.progress.total.store(root.used_blocks, Ordering::Relaxed);
        for (owner, inode) in [
            (Owner::VolumeTable, &root.volume_table),
            (Owner::AggregateMap, &root.active_map),
            (Owner::AreaCounts, &root.area_counts),
        ] {
            self.tree(None, owner, inode, &mut Names::none()).await;
        }
        let mut table = FileReader::new(&root.volume_table);
        for slot in 0..root.volume_slots {
            let block = self.content(None, Owner::VolumeTable, &mut table, slot).await;
            let Ok(Some(block)) = block else { continue };
            if block.iter().all(|x| *x == 0) {
                continue;
            }
            match VolumeRecord::decode(&block) {
                Ok(record) if only.is_none_or(|fsid| fsid == record.fsid) => {
                    self.volume(&record).await;
                }
                Ok(_) => {}
                Err(error) => {
                    self.whole = false;
                    let what = format!("volume record {slot}: {error}");
                    self.out.add(Finding::Structure { fsid: None, what });
                }
            }
        }
        if only.is_none() {
            self.space(root).await;
        }
    }

    /// Names every block of a tree and answers how many there are.
    pub(super) async fn tree(
        &mut self,
        fsid: Option<Fsid>,
        owner: Owner,
        inode: &Inode,
        names: &mut Names,
    ) -> u64 {
        let mut walk = TreeWalk::new(inode);
        let mut count = 0;
        loop {
            let batch = walk.next();
            let Some(first) = batch.first() else { return count };
            count += batch.len() as u64;
            self.name(fsid, owner, &batch, names).await;
            if first.level == 0 {
                if let (true, Some(fsid), Owner::File(ino)) = (self.data, fsid, owner) {
                    self.data(fsid, ino, &batch).await;
                }
                if self.stopped() {
                    return count;
                }
                continue;
            }
            let mut next = Vec::new();
            for (at, node) in read(self.aggr, &batch).await {
                match node {
                    Ok(node) => next.extend(children(at, &node)),
                    Err(error) => self.unreadable(fsid, owner, at.ptr.pvbn, error),
                }
            }
            walk.below(next);
            if self.stopped() {
                return count;
            }
        }
    }

    /// Reads data, which the RAID layer compares with the checksums of its pointers.
    async fn data(&mut self, fsid: Fsid, ino: InodeNo, batch: &[At]) {
        for (at, block) in read(self.aggr, batch).await {
            if let Err(error) = block {
                let (fbn, pvbn) = (Fbn::new(at.index), at.ptr.pvbn);
                self.out.add(Finding::Data { fsid, ino, fbn, pvbn, error });
            }
        }
    }

    pub(super) fn unreadable(
        &mut self,
        fsid: Option<Fsid>,
        what: Owner,
        pvbn: cairn_units::Pvbn,
        error: String,
    ) {
        self.whole = false;
        self.out.add(Finding::Unreadable { fsid, what, pvbn, error });
    }

    async fn name(&mut self, fsid: Option<Fsid>, what: Owner, batch: &[At], names: &mut Names) {
        self.out.blocks += batch.len() as u64;
        self.progress.done.fetch_add(batch.len() as u64, Ordering::Relaxed);
        for At { ptr, .. } in batch {
            if !self.named.add(ptr.pvbn.get()) {
                self.out.add(Finding::NamedTwice { fsid, what, pvbn: ptr.pvbn });
            }
            if let Some(fsid) = fsid
                && ptr.vvbn.get() != 0
            {
                self.name_vvbn(fsid, what, *ptr, names).await;
            }
        }
    }

    /// Content of a block, `None` for a hole.
    ///
    /// # Errors
    /// It cannot be read, which is noted.
    pub(super) async fn content(
        &mut self,
        fsid: Option<Fsid>,
        owner: Owner,
        reader: &mut FileReader,
        index: u64,
    ) -> Result<Option<Block>, Unread> {
        reader.get(self.aggr, index).await.map_err(|(ptr, error)| {
            self.unreadable(fsid, owner, ptr.pvbn, error);
            Unread
        })
    }

    /// Compares the aggregate's map and counts with what is named.
    async fn space(&mut self, root: &AggregateRoot) {
        let aggr = self.aggr;
        let geometry = aggr.geometry();
        let mut map = FileReader::new(&root.active_map);
        let mut counts = FileReader::new(&root.area_counts);
        let area_stripes = u64::from(root.area_stripes);
        if geometry.locate(cairn_units::Pvbn::new(0)).is_some() {
            self.named.add(0);
        }
        let (mut slot, mut used) = (0u64, 0u64);
        for group in &geometry.groups {
            for area in 0..group.stripes.get().div_ceil(area_stripes) {
                let first = area * area_stripes;
                let end = (first + area_stripes).min(group.stripes.get());
                let mut free = 0u64;
                for column in group.data.iter().filter(|c| c.pvbn_base.get() < root.pvbn_end) {
                    let from = column.pvbn_base.get() + first;
                    let Ok(marked) = self.marked(&mut map, from, end - first).await else { return };
                    used += marked;
                    free += end - first - marked;
                }
                let index = slot / AREA_COUNTS_PER_BLOCK;
                let block = self.content(None, Owner::AreaCounts, &mut counts, index).await;
                let Ok(block) = block else { return };
                let said = block.map_or(0, |b| count_at(&b, slot % AREA_COUNTS_PER_BLOCK));
                let counted = u32::try_from(free).unwrap_or(u32::MAX);
                if said != counted {
                    self.out.add(Finding::Area { area: slot, said, counted });
                }
                slot += 1;
            }
        }
        if used != root.used_blocks {
            self.out.add(Finding::Used { said: root.used_blocks, counted: used });
        }
        for index in 0..root.pvbn_end.div_ceil(BITS_PER_BLOCK) {
            let block = self.content(None, Owner::AggregateMap, &mut map, index).await;
            let Ok(block) = block else { return };
            for (n, marked) in self.named.differences(index, block.as_ref()) {
                self.out.add(Finding::Mark { pvbn: cairn_units::Pvbn::new(n), marked });
            }
        }
    }

    /// Bits set in `count` bits of the map from `first` on.
    async fn marked(
        &mut self,
        map: &mut FileReader,
        first: u64,
        count: u64,
    ) -> Result<u64, Unread> {
        let (mut at, end, mut marked) = (first, first + count, 0);
        while at < end {
            let index = at / BITS_PER_BLOCK;
            let stop = end.min((index + 1) * BITS_PER_BLOCK);
            if let Some(block) = self.content(None, Owner::AggregateMap, map, index).await? {
                marked += (at..stop).filter(|n| bit(&block, n % BITS_PER_BLOCK)).count() as u64;
            }
            at = stop;
        }
        Ok(marked)
    }
}

pub(super) fn bit(block: &Block, n: u64) -> bool {
    let (byte, mask) = bit_place(n);
    block[byte] & mask != 0
}
