//! Consistency points: everything that is dirty goes to free places, bottom up, and then the root.
//!
//! Layer: above volumes and space. One point at a time, run by one task; clients go on meanwhile.
//!
//! ```text
//! clean_ahead      large files' data blocks, in small bites between operations
//!   → freeze       per volume, under its lock: all that is left; its log half switches
//!   → volume_maps  frees, active map, container map, record (only this task touches these)
//!   → aggregate    frees, volume table, area counts, active map
//!   → write out    → commit_root (flush, root, flush) → release the log half
//! ```
//!
//! # Invariants
//! - A volume's freeze is one lock hold: an operation is wholly before or wholly after it, and so
//!   is its log record (`lsn` in the volume's record tells which).
//! - Bits of freed blocks are cleared after every allocation that could reuse them, or are kept
//!   from being reused until the commit ([`Space::free`], `freed_vvbns`).
//! - The maps are recounted before the root is written; a point that does not add up is refused
//!   and stops the node: the log has everything since the last root.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_raid_api::{BlockTag, ReadRequest, RootRecord, WriteError};
use cairn_sys::{Block, mutant};
use cairn_units::{Blocks, CpCount, Crc, Fsid, Generation, InodeNo, MonoTime, Pvbn, Vvbn};
use cairn_wafl_format::{
    AggregateRoot, BITS_PER_BLOCK, BlockPtr, CONTAINER_ENTRIES_PER_BLOCK, INODE_BYTES,
    INODES_PER_BLOCK, Inode, InodeKind, InodeShare, LOG_POSITION_BYTES, VolumeRecord,
};
use cairn_wafl_nvlog::HalfToken;

use crate::bits::bit_place;
use crate::cache::CacheEntry;
use crate::counters::CpPhase;
use crate::freed::Freed;
use crate::manager::{Inner, LoadError, Volume};
use crate::space::{NoBlock, Run as SpaceRun, Space, SpaceFile};
use crate::sums::{self, Balance, Mismatch};
use crate::tree::{Key, Tree, TreeMiss};
use crate::volume::{FileId, Miss, VolState, inode_offset};

mod vvbns;
mod writes;

use vvbns::{Vvbns, set_container_run};
pub(crate) use vvbns::{container_entry, flip, set_container};
use writes::{Pace, Writes};
pub(crate) use writes::{Placed, TetrisNo};

/// Data blocks placed in one lock hold before the freeze.
const BITE_BLOCKS: u64 = 256;
/// Runs of VVBNs that are freed in one lock hold.
const FREE_RUNS: usize = 256;
/// How often clients may dirty all that they may before a point that they keep going ends.
const AHEAD_PARTS: u64 = 2;
/// Dirty data blocks of a volume that the freeze may be left with.
const FREEZE_BLOCKS: u64 = 1024;
/// Spare VVBNs and PVBNs that a freeze has at hand beyond what it counted.
const SLACK_BLOCKS: u64 = 64;
/// Freezes that may fail because operations dirtied more than was prepared for.
const FREEZE_TRIES_MAX: u32 = 10_000;

/// Why a consistency point failed. The node stops; the last root and the log are whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CpError {
    #[error("consistency point: {0}")]
    Write(#[from] WriteError),
    #[error("consistency point: a map block cannot be read: {0}")]
    Load(#[from] LoadError),
    #[error("consistency point: no free block is left in the aggregate")]
    Full,
    #[error("consistency point: no free VVBN is left in volume {0}")]
    VolumeFull(Fsid),
    #[error("consistency point refused: {what} does not add up ({before} bits before, {now} now)")]
    Digest { what: String, before: u64, now: u64 },
    #[error("consistency point refused: volume {0} does not add up: {1}")]
    Sums(Fsid, Mismatch),
    #[error("consistency point: volume {0} does not come to rest")]
    NoRest(Fsid),
    #[error("consistency point: {0}")]
    Log(#[from] cairn_wafl_nvlog::LogError),
    #[error("consistency point: {0}")]
    Switch(#[from] cairn_wafl_nvlog::SwitchError),
}

/// What only the consistency point touches.
pub(crate) struct Engine {
    pub space: Space,
    pub cp: CpCount,
    /// Volume table: which slot holds which volume.
    pub slots: BTreeMap<u64, Fsid>,
    pub slots_end: u64,
    /// Volumes to delete with the next point.
    pub deletions: Vec<Arc<Volume>>,
    /// Position of the log in the last root.
    pub log_position: Option<[u8; LOG_POSITION_BYTES]>,
}

/// State of one point under way.
struct Run<'m> {
    inner: &'m Inner,
    cp: CpCount,
    writes: Writes,
    /// Room of the log when this part of the point began.
    log_room: Blocks,
    /// The cache knows that all tetrises before this one are on the disks.
    written: TetrisNo,
    /// PVBNs that nothing names any more: neighbours, the first of them and how many.
    freed: Vec<(Pvbn, u64)>,
    /// Blocks that may still be placed before the cut beside those that were dirty when their
    /// volume's turn came: a point ends though clients keep writing.
    ahead: u64,
    /// Blocks given places: data and indirect, metadata.
    placed_data: u64,
    placed_meta: u64,
    scratch: Scratch,
}

/// What placing a run of blocks needs, and keeps for the next one.
#[derive(Default)]
struct Scratch {
    /// With whether the cache's clock must be told of it.
    blocks: Vec<(Block, bool)>,
    ptrs: Vec<BlockPtr>,
}

/// Measures the phases of a point.
struct PhaseClock<'m> {
    inner: &'m Inner,
    since: MonoTime,
}

impl PhaseClock<'_> {
    fn end(&mut self, phase: CpPhase) {
        let now = self.inner.world.clock.monotonic();
        self.inner.counters.cp_phase(phase, now.since(self.since).unwrap_or_default());
        self.since = now;
    }
}

/// Blocks that have places and no content yet.
type Located = BTreeMap<Key, (BlockPtr, TetrisNo)>;

/// A volume between its freeze and the root.
struct Frozen {
    volume: Arc<Volume>,
    vvbns: Vvbns,
    freed: Freed,
    record: VolumeRecord,
}

fn tree_inode(tree: &Tree) -> Inode {
    let mut inode = Inode::free(InodeNo::new(0), Generation::new(0));
    inode.kind = InodeKind::Internal;
    inode.height = tree.height();
    inode.pointers = tree.roots().clone();
    inode.blocks = tree.blocks();
    inode
}

impl Inner {
    /// Runs one consistency point.
    pub(crate) async fn consistency_point(&self, engine: &mut Engine) -> Result<(), CpError> {
        let geometry = self.aggr.geometry();
        loop {
            match engine.space.set_geometry(geometry.clone()) {
                Ok(()) => break,
                Err(at) => self.load_space(&mut engine.space, SpaceFile::Counts, at).await?,
            }
        }
        engine.space.drop_stopped_hold();
        let mut clock = PhaseClock { inner: self, since: self.world.clock.monotonic() };
        let mut run = Run {
            inner: self,
            cp: engine.cp.plus(1),
            writes: Writes::new(),
            log_room: self.log.room(),
            written: TetrisNo::NONE,
            freed: Vec::new(),
            ahead: AHEAD_PARTS * u64::try_from(self.dirty_max()).unwrap_or(0),
            placed_data: 0,
            placed_meta: 0,
            scratch: Scratch::default(),
        };
        let volumes = self.volumes();
        let mut pools: BTreeMap<Fsid, Vvbns> = BTreeMap::new();
        for volume in &volumes {
            let pool = pools.entry(volume.fsid).or_default();
            run.clean_ahead(&mut engine.space, volume, pool).await?;
        }
        // Who finds the point open finds its own change in it: the cut comes behind this.
        self.close_cp();
        let volumes = self.with_new_volumes(volumes);
        clock.end(CpPhase::CleanAhead);
        let halves = self.switch_log()?;
        run.log_room = self.log.capacity();
        let mut frozen = Vec::new();
        for volume in &volumes {
            let pool = pools.remove(&volume.fsid).unwrap_or_default();
            let new_half = halves.map(|(_, new)| new);
            if let Some(f) = run.freeze(&mut engine.space, volume, pool, new_half).await? {
                frozen.push(f);
            }
        }
        clock.end(CpPhase::Freeze);
        let mut position = engine.log_position;
        if let Some((old, _)) = halves {
            self.log_close(old);
            position = Some(self.log_settle(old).await?.to_bytes());
        }
        clock.end(CpPhase::SettleLog);
        run.flow(&mut engine.space).await?;
        for f in frozen {
            run.volume_maps(engine, f).await?;
        }
        for volume in core::mem::take(&mut engine.deletions) {
            run.delete_volume(engine, &volume).await?;
        }
        clock.end(CpPhase::VolumeMaps);
        let root = run.aggregate(engine, position).await?;
        engine.space.close();
        run.flow(&mut engine.space).await?;
        clock.end(CpPhase::AggregateMaps);
        run.write_out().await?;
        clock.end(CpPhase::WriteOut);
        self.aggr.commit_root(RootRecord { cp: run.cp, bytes: root.encode() }).await?;
        clock.end(CpPhase::CommitRoot);
        engine.cp = run.cp;
        engine.log_position = position;
        engine.space.committed();
        self.committed(engine, &volumes, run.placed_data, run.placed_meta);
        if let Some((old, _)) = halves {
            self.log_release(old);
        }
        self.trim_cache();
        Ok(())
    }

    /// The same, and the volumes that came since: an operation on one of them may count on the
    /// point under way as well.
    fn with_new_volumes(&self, mut volumes: Vec<Arc<Volume>>) -> Vec<Arc<Volume>> {
        let is_new = |v: &Arc<Volume>| volumes.iter().all(|known| !Arc::ptr_eq(known, v));
        let new: Vec<Arc<Volume>> = self.volumes().into_iter().filter(is_new).collect();
        volumes.extend(new);
        volumes
    }

    /// Loads a block of one of the aggregate's own files.
    pub(crate) async fn load_space(
        &self,
        space: &mut Space,
        file: SpaceFile,
        at: TreeMiss,
    ) -> Result<(), LoadError> {
        let block = self.read_block(at.ptr).await?;
        space.file(file).insert_loaded(at.key, at.ptr, block);
        Ok(())
    }

    pub(crate) async fn read_block(&self, ptr: BlockPtr) -> Result<Block, LoadError> {
        let request = ReadRequest { at: ptr.pvbn, expect: Some(ptr.crc) };
        match self.aggr.read(vec![request]).await.pop() {
            Some(Ok(block)) => Ok(block),
            Some(Err(error)) => Err(LoadError::Read(error)),
            None => Err(LoadError::NoAnswer(ptr.pvbn)),
        }
    }
}

impl Run<'_> {
    fn tag(&self, fsid: Fsid, vvbn: Vvbn) -> BlockTag {
        BlockTag { fsid, vvbn, cp: self.cp }
    }

    async fn space_ready(&self, space: &mut Space, blocks: u64) -> Result<(), CpError> {
        loop {
            match space.prepare(blocks) {
                Ok(()) => return Ok(()),
                Err(NoBlock::Miss(file, at)) => self.inner.load_space(space, file, at).await?,
                Err(NoBlock::Full) => return Err(CpError::Full),
            }
        }
    }

    async fn take(&self, space: &mut Space) -> Result<(Pvbn, TetrisNo), CpError> {
        loop {
            match space.take() {
                Ok(at) => return Ok(at),
                Err(NoBlock::Miss(file, at)) => self.inner.load_space(space, file, at).await?,
                Err(NoBlock::Full) => return Err(CpError::Full),
            }
        }
    }

    fn pace(&self) -> Pace {
        Pace { cp: self.cp, room: self.log_room }
    }

    /// Tetrises that are begun from now on are small unless somebody waits for the point.
    fn choose_depth(&self, space: &mut Space) {
        space.gentle = !self.inner.is_hurried(self.cp);
    }

    /// Takes over the tetrises that are full.
    fn collect(&mut self, space: &mut Space) {
        self.inner.placed.add(space.take_filled());
        self.writes.push(space.take_done());
    }

    /// The same, and sends off what it is time for.
    async fn flow(&mut self, space: &mut Space) -> Result<(), CpError> {
        self.collect(space);
        let pace = self.pace();
        self.writes.send_due(self.inner, pace).await?;
        self.tell_written();
        Ok(())
    }

    /// Tells the cache which tetrises are on the disks.
    fn tell_written(&mut self) {
        let end = self.inner.placed.end();
        if core::mem::replace(&mut self.written, end) != end {
            self.inner.cache.written(end);
        }
    }

    /// Waits until everything that was placed is on the disks.
    async fn write_out(&mut self) -> Result<(), CpError> {
        let pace = self.pace();
        while self.writes.is_any_waiting() {
            self.writes.send_next(self.inner, pace).await?;
            self.tell_written();
        }
        self.writes.drain().await?;
        self.tell_written();
        Ok(())
    }

    // ---- VVBNs ----

    /// Marks VVBNs used until `blocks` of them are at hand.
    async fn vvbns_ready(
        &self,
        volume: &Arc<Volume>,
        pool: &mut Vvbns,
        blocks: u64,
    ) -> Result<(), CpError> {
        let mut wraps = 0;
        while pool.ready() < blocks {
            let stop = {
                let mut st = volume.lock();
                pool.fill(&mut st, blocks, &mut wraps)
            };
            match stop {
                Ok(()) if wraps > 2 => return Err(CpError::VolumeFull(volume.fsid)),
                Ok(()) => {}
                Err(at) => self.inner.load(volume, vec![at]).await?,
            }
        }
        Ok(())
    }

    // ---- before the freeze ----

    /// Places data blocks of large dirty files while operations go on.
    async fn clean_ahead(
        &mut self,
        space: &mut Space,
        volume: &Arc<Volume>,
        pool: &mut Vvbns,
    ) -> Result<(), CpError> {
        let dirty = volume.lock().to_place();
        if dirty <= 2 * FREEZE_BLOCKS {
            return Ok(());
        }
        // Somebody who waits gets the point when twice the blocks are placed that there were then.
        let mut left = self.ahead.max(dirty);
        let mut awaited = false;
        let mut from = InodeNo::new(0);
        while left > 0 {
            self.choose_depth(space);
            if !awaited && self.inner.is_awaited(self.cp) {
                awaited = true;
                left = left.min(2 * volume.lock().to_place());
            }
            let ready = async {
                self.vvbns_ready(volume, pool, BITE_BLOCKS).await?;
                self.space_ready(space, BITE_BLOCKS).await
            };
            match ready.await {
                // Less than a whole bite may be left to place: the freeze asks for what it needs.
                Err(CpError::Full | CpError::VolumeFull(_)) => break,
                other => other?,
            }
            let placed = {
                let mut st = volume.lock();
                // Clients go on writing: what there is now decides how deep the next tetris is.
                space.expected = st.dirtied.blocks;
                self.bite(&mut st, space, pool, &mut from)
            };
            self.inner.placed.drained.notify_waiters();
            self.flow(space).await?;
            if placed == 0 {
                break;
            }
            left = left.saturating_sub(placed);
            self.ahead = self.ahead.saturating_sub(placed);
        }
        Ok(())
    }

    /// Places up to [`BITE_BLOCKS`] data blocks, files in order of their numbers.
    fn bite(
        &mut self,
        st: &mut VolState,
        space: &mut Space,
        pool: &mut Vvbns,
        from: &mut InodeNo,
    ) -> u64 {
        let mut placed = 0;
        while let Some(&ino) = st.dirty_files.range(*from..).next() {
            *from = ino;
            let next = st.in_core.get(&ino).filter(|file| !file.is_dir());
            match next.and_then(|file| file.tree.first_dirty_run()).filter(|(k, _)| k.level == 0) {
                Some((first, count)) => {
                    let count = count.min(BITE_BLOCKS - placed);
                    self.place(st, space, pool, FileId::Inode(ino), (first, count));
                    placed += count;
                    if placed >= BITE_BLOCKS {
                        break;
                    }
                }
                None => *from = InodeNo::new(ino.get() + 1),
            }
        }
        st.dirtied.blocks = st.dirtied.blocks.saturating_sub(placed);
        self.placed(st, placed);
        placed
    }

    /// Takes blocks that have their places off what is dirty.
    fn placed(&self, st: &mut VolState, blocks: u64) {
        st.dirty_delta -= i64::try_from(blocks).unwrap_or(i64::MAX);
        self.inner.take_delta(st);
    }

    /// Gives dirty blocks of a volume that lie side by side their places and hands their content to
    /// the tetris: the first of them, and how many.
    fn place(
        &mut self,
        st: &mut VolState,
        space: &mut Space,
        pool: &mut Vvbns,
        file: FileId,
        (first, count): (Key, u64),
    ) {
        let mut done = 0;
        while done < count {
            let at = Key { index: first.index + done, ..first };
            let at_hand = (count - done).min(pool.ready_run());
            assert!(at_hand > 0, "VVBNs are prepared before placing");
            let Ok(run) = space.take_run(at_hand) else {
                panic!("space is prepared before placing")
            };
            done += run.count();
            let Some(vvbn) = pool.take_run(run.count()) else {
                unreachable!("so many are at hand")
            };
            self.place_run(st, space, (vvbn, run), (file, at));
        }
        if first.level == 0 { self.placed_data += count } else { self.placed_meta += count }
    }

    /// Gives the block at `at` and those beside it the places of one run.
    fn place_run(
        &mut self,
        st: &mut VolState,
        space: &mut Space,
        (vvbn, run): (Vvbn, SpaceRun),
        (file, first): (FileId, Key),
    ) {
        let (fsid, count, tetris) = (st.fsid, run.count(), run.tetris());
        let Some(tree) = st.tree_mut(file) else { panic!("{file:?} is dirty, so in core") };
        let Scratch { blocks, ptrs } = &mut self.scratch;
        blocks.clear();
        ptrs.clear();
        tree.clean_run(first, count, tetris, blocks);
        let place = |((block, _), n): (&(Block, bool), u64)| BlockPtr {
            vvbn: vvbn.plus(n),
            pvbn: run.at().plus(n),
            crc: Crc::new(block.crc()),
        };
        ptrs.extend(blocks.iter().zip(0..).map(place));
        let mut old = core::mem::take(&mut st.freed);
        let Some(tree) = st.tree_mut(file) else { unreachable!("looked at above") };
        tree.set_run(first, ptrs, &mut old);
        st.freed = old;
        set_container_run(st, vvbn, run.at(), count);
        let told = blocks.iter().zip(first.behind()).filter(|((_, tell), _)| *tell);
        let told = told.map(|(_, key)| CacheEntry::Block { fsid, file, key });
        self.inner.cache.park_all(told, tetris);
        let cp = self.cp;
        let content = blocks
            .drain(..)
            .zip(&*ptrs)
            .map(|((block, _), ptr)| (block, ptr.crc, BlockTag { fsid, vvbn: ptr.vvbn, cp }));
        space.put_run(run, content);
    }

    // ---- the freeze ----

    async fn freeze(
        &mut self,
        space: &mut Space,
        volume: &Arc<Volume>,
        mut pool: Vvbns,
        half: Option<HalfToken>,
    ) -> Result<Option<Frozen>, CpError> {
        for _ in 0..FREEZE_TRIES_MAX {
            self.choose_depth(space);
            let want = {
                let mut st = volume.lock();
                if !st.is_dirty() && !volume.is_new() && pool.is_untouched() {
                    volume.set_half(&mut st, half);
                    return Ok(None);
                }
                st.to_place()
            };
            let least = want;
            let mut want = want + want / 4 + SLACK_BLOCKS;
            space.expected = want;
            match self.space_ready(space, want).await {
                // More than there was a moment ago may not be promised to anybody.
                Err(CpError::Full) => {
                    want = least;
                    self.space_ready(space, want).await?;
                }
                other => other?,
            }
            match self.vvbns_ready(volume, &mut pool, want).await {
                Err(CpError::VolumeFull(_)) => {
                    want = least;
                    self.vvbns_ready(volume, &mut pool, want).await?;
                }
                other => other?,
            }
            let cut = {
                let mut st = volume.lock();
                let fits = st.to_place() <= want;
                fits.then(|| {
                    let cut = self.freeze_now(&mut st, space, &mut pool);
                    if mutant("half-switched-behind-the-freeze") {
                        drop(st);
                        st = volume.lock();
                    }
                    volume.set_half(&mut st, half);
                    cut
                })
            };
            if let Some((freed, record)) = cut {
                let now = Balance::new(&record.sums, record.files, 0, 0);
                let same = {
                    let mut st = volume.lock();
                    if st.rebalance {
                        st.balance = now;
                    }
                    if mutant("links-not-checked") { Ok(()) } else { st.balance.check_links(&now) }
                };
                same.map_err(|wrong| CpError::Sums(volume.fsid, wrong))?;
                self.inner.placed.drained.notify_waiters();
                // Sent later: until the old half of the log is closed, its room is all that clients have.
                self.collect(space);
                return Ok(Some(Frozen { volume: volume.clone(), vvbns: pool, freed, record }));
            }
        }
        Err(CpError::NoRest(volume.fsid))
    }

    /// Places everything of a volume but its maps. One lock hold: the cut between two points.
    fn freeze_now(
        &mut self,
        st: &mut VolState,
        space: &mut Space,
        pool: &mut Vvbns,
    ) -> (Freed, VolumeRecord) {
        let before = st.dirtied.blocks;
        for ino in core::mem::take(&mut st.dirty_files) {
            while let Some(run) = st.in_core.get(&ino).and_then(|f| f.tree.first_dirty_run()) {
                self.place(st, space, pool, FileId::Inode(ino), run);
            }
            let Some(file) = st.in_core.get_mut(&ino) else { continue };
            if file.has_unlogged() {
                file.unlogged.clear();
                file.unlogged_many = false;
                file.frozen_cp = self.cp;
            }
            if !file.dirty {
                continue;
            }
            file.dirty = false;
            let bytes = file.to_disk().encode();
            let from = inode_offset(ino);
            let mut old = InodeShare::default();
            st.inode_file.edit(ino.get() / INODES_PER_BLOCK, |block| {
                let slot = &mut block[from..from + INODE_BYTES];
                old = InodeShare::of(slot);
                slot.copy_from_slice(&bytes);
            });
            sums::replace(&mut st.sums, old, InodeShare::of(&bytes));
        }
        for file in [FileId::InodeMap, FileId::InodeFile] {
            while let Some(run) = st.tree(file).and_then(Tree::first_dirty_run) {
                self.place(st, space, pool, file, run);
            }
        }
        st.inodes_freed_in_cp = core::mem::take(&mut st.inodes_freed);
        self.placed(st, before);
        st.dirtied = Default::default();
        st.streamed = 0;
        let record = VolumeRecord {
            fsid: st.fsid,
            deleting: false,
            name: st.name.clone(),
            size_blocks: st.size_blocks,
            vvbn_end: st.vvbn_end,
            used_blocks: 0,
            files: st.files,
            lsn: st.lsn,
            cp: self.cp,
            sums: st.sums,
            zombie_head: st.zombie_head,
            object_next: st.object_next,
            relocations: st.relocations,
            hash_key: st.hash_key,
            inode_end: st.inode_end,
            vvbn_cursor: 0,
            inode_file: tree_inode(&st.inode_file),
            inode_map: tree_inode(&st.inode_map),
            active_map: Inode::free(InodeNo::new(0), Generation::new(0)),
            container_map: Inode::free(InodeNo::new(0), Generation::new(0)),
        };
        (core::mem::take(&mut st.freed), record)
    }

    // ---- the maps of a volume ----

    async fn volume_maps(&mut self, engine: &mut Engine, mut f: Frozen) -> Result<(), CpError> {
        let volume = f.volume.clone();
        let freed = core::mem::take(&mut f.freed);
        self.free_vvbns(&volume, &mut f.vvbns, freed).await?;
        let located = self.locate_active_map(&mut engine.space, &volume, &mut f.vvbns).await?;
        {
            let mut st = volume.lock();
            f.vvbns.give_back(&mut st);
            self.place_active_map(&mut st, &mut engine.space, located);
            if let Err((before, now)) = f.vvbns.check(&st) {
                let what = format!("active map of volume {}", volume.fsid);
                return Err(CpError::Digest { what, before, now });
            }
            st.used_blocks = st.used_blocks + f.vvbns.taken - f.vvbns.released;
            let own =
                f.record.inode_file.blocks + f.record.inode_map.blocks + st.active_map.blocks();
            let now = Balance::new(&f.record.sums, f.record.files, own, st.used_blocks);
            if core::mem::take(&mut st.rebalance) {
                st.balance.blocks = now.blocks;
            }
            let same = st.balance.check_blocks(&now).or_else(|wrong| match wrong {
                _ if mutant("blocks-not-checked") => Ok(()),
                wrong => Err(wrong),
            });
            same.map_err(|wrong| CpError::Sums(volume.fsid, wrong))?;
        }
        self.flow(&mut engine.space).await?;
        loop {
            let Some(key) = volume.lock().container_map.first_dirty() else { break };
            let (pvbn, tetris) = self.take(&mut engine.space).await?;
            let mut st = volume.lock();
            let (block, old) = st.container_map.dirty_block(key);
            let crc = Crc::new(block.crc());
            let ptr = BlockPtr { vvbn: Vvbn::new(0), pvbn, crc };
            if st.container_map.place(key, ptr, tetris) {
                let file = FileId::ContainerMap;
                self.inner.cache.park(CacheEntry::Block { fsid: volume.fsid, file, key }, tetris);
            }
            drop(st);
            if !old.is_hole() {
                self.free_later(old.pvbn, 1);
            }
            engine.space.put(pvbn, block, crc, self.tag(volume.fsid, Vvbn::new(0)));
            self.placed_meta += 1;
        }
        let record = {
            let st = volume.lock();
            VolumeRecord {
                used_blocks: st.used_blocks,
                vvbn_cursor: st.vvbn_cursor,
                active_map: tree_inode(&st.active_map),
                container_map: tree_inode(&st.container_map),
                ..f.record
            }
        };
        self.put_record(engine, volume.slot, record.encode()).await
    }

    async fn put_record(
        &mut self,
        engine: &mut Engine,
        slot: u64,
        bytes: [u8; 4096],
    ) -> Result<(), CpError> {
        loop {
            match engine.space.volumes.reachable(Key::data(slot)) {
                Ok(()) => break,
                Err(at) => {
                    self.inner.load_space(&mut engine.space, SpaceFile::Volumes, at).await?;
                }
            }
        }
        engine.space.volumes.put(slot, cairn_sys::BlockMut::copy_of(&bytes).freeze());
        Ok(())
    }

    /// Clears the bits of VVBNs that nothing names any more, up to [`FREE_RUNS`] in one lock hold.
    async fn free_vvbns(
        &mut self,
        volume: &Arc<Volume>,
        vvbns: &mut Vvbns,
        freed: Freed,
    ) -> Result<(), CpError> {
        let mut runs = freed.runs().iter().copied();
        let mut run = runs.next();
        while run.is_some() {
            let freeing = {
                let mut st = volume.lock();
                let mut left = FREE_RUNS;
                loop {
                    let Some(at) = run.filter(|_| left > 0) else { break Ok(()) };
                    // Once a block was moved each must be looked up.
                    let most = if st.relocations == 0 { at.count } else { 1 };
                    let pvbn = match authority(&st, at.vvbn, at.pvbn) {
                        Ok(pvbn) => pvbn,
                        Err(miss) => break Err(miss),
                    };
                    let count = match vvbns.release(&mut st, at.vvbn, most) {
                        Ok(count) => count,
                        Err(miss) => break Err(miss),
                    };
                    self.free_later(pvbn, count);
                    left -= 1;
                    run = if count < at.count { Some(at.behind(count)) } else { runs.next() };
                }
            };
            if let Err(at) = freeing {
                self.inner.load(volume, vec![at]).await?;
            }
        }
        Ok(())
    }

    /// Nothing names `count` blocks from `at` on any more.
    fn free_later(&mut self, at: Pvbn, count: u64) {
        match self.freed.last_mut() {
            Some((first, before)) if first.plus(*before) == at => *before += count,
            _ => self.freed.push((at, count)),
        }
    }

    /// Gives every dirty block of the active map a place; giving one dirties more of the map, so
    /// this goes on until nothing new is dirty.
    async fn locate_active_map(
        &mut self,
        space: &mut Space,
        volume: &Arc<Volume>,
        vvbns: &mut Vvbns,
    ) -> Result<Located, CpError> {
        let mut located = Located::new();
        loop {
            let todo: Vec<(Key, BlockPtr)> = {
                let st = volume.lock();
                let map = &st.active_map;
                map.dirty_keys()
                    .filter(|k| !located.contains_key(k))
                    .map(|k| (k, map.dirty_block(k).1))
                    .collect()
            };
            if todo.is_empty() {
                return Ok(located);
            }
            for (key, old) in todo {
                self.vvbns_ready(volume, vvbns, 1).await?;
                let Some(vvbn) = vvbns.take_run(1) else {
                    return Err(CpError::VolumeFull(volume.fsid));
                };
                let (pvbn, tetris) = self.take(space).await?;
                set_container(&mut volume.lock(), vvbn, pvbn);
                let crc = Crc::new(0);
                located.insert(key, (BlockPtr { vvbn, pvbn, crc }, tetris));
                if !old.is_hole() {
                    let mut freed = Freed::default();
                    freed.push(old);
                    self.free_vvbns(volume, vvbns, freed).await?;
                }
            }
        }
    }

    fn place_active_map(&mut self, st: &mut VolState, space: &mut Space, located: Located) {
        for (key, (at, tetris)) in located {
            let (block, _) = st.active_map.dirty_block(key);
            let crc = Crc::new(block.crc());
            if st.active_map.place(key, BlockPtr { crc, ..at }, tetris) {
                let file = FileId::ActiveMap;
                self.inner.cache.park(CacheEntry::Block { fsid: st.fsid, file, key }, tetris);
            }
            space.put(at.pvbn, block, crc, self.tag(st.fsid, at.vvbn));
            self.placed_meta += 1;
        }
        assert!(st.active_map.is_clean(), "the active map is placed whole");
    }

    // ---- deleting a volume ----

    /// Frees every block of a volume and clears its record, all in this point.
    async fn delete_volume(
        &mut self,
        engine: &mut Engine,
        volume: &Arc<Volume>,
    ) -> Result<(), CpError> {
        let (end, fsid) = (volume.lock().vvbn_end, volume.fsid);
        for index in 0..end.div_ceil(BITS_PER_BLOCK) {
            let Some(bits) = self.load_tree_block(volume, FileId::ActiveMap, index).await? else {
                continue;
            };
            for bit in 0..BITS_PER_BLOCK {
                let (byte, mask) = bit_place(bit);
                if bits[byte] & mask == 0 {
                    continue;
                }
                let vvbn = index * BITS_PER_BLOCK + bit;
                let at = vvbn / CONTAINER_ENTRIES_PER_BLOCK;
                if let Some(map) = self.load_tree_block(volume, FileId::ContainerMap, at).await? {
                    let pvbn = container_entry(&map, vvbn);
                    if pvbn.get() != 0 {
                        self.free_later(pvbn, 1);
                    }
                }
            }
        }
        // The container map's own blocks belong to the aggregate.
        loop {
            let mut freed = Freed::default();
            let step = volume.lock().container_map.reap(&mut freed);
            freed.runs().iter().for_each(|run| self.free_later(run.pvbn, run.count));
            match step {
                Ok((crate::tree::Reaped::Empty, _, _)) => break,
                Ok((crate::tree::Reaped::More, _, _)) => {}
                Err(at) => {
                    let at = Miss { file: FileId::ContainerMap, key: at.key, ptr: at.ptr };
                    self.inner.load(volume, vec![at]).await?;
                }
            }
        }
        engine.slots.remove(&volume.slot);
        tracing::info!(fsid = fsid.get(), "volume deleted");
        self.put_record(engine, volume.slot, [0; 4096]).await
    }

    async fn load_tree_block(
        &self,
        volume: &Arc<Volume>,
        file: FileId,
        index: u64,
    ) -> Result<Option<Block>, CpError> {
        loop {
            let at = {
                let st = volume.lock();
                match st.tree(file).map(|t| t.get(Key::data(index))) {
                    Some(Ok(block)) => return Ok(block),
                    None => return Ok(None),
                    Some(Err(at)) => Miss { file, key: at.key, ptr: at.ptr },
                }
            };
            self.inner.load(volume, vec![at]).await?;
        }
    }

    // ---- the aggregate ----

    async fn free_pvbns(&self, space: &mut Space, at: Pvbn, count: u64) -> Result<(), CpError> {
        let mut done = 0;
        while done < count {
            let at = at.plus(done);
            match space.free_ready(at) {
                Ok(()) if mutant("map-bit-not-cleared") => done += 1,
                Ok(()) => done += space.free_run(at, count - done),
                Err(miss) => self.inner.load_space(space, SpaceFile::Map, miss).await?,
            }
        }
        Ok(())
    }

    async fn aggregate(
        &mut self,
        engine: &mut Engine,
        log_position: Option<[u8; LOG_POSITION_BYTES]>,
    ) -> Result<AggregateRoot, CpError> {
        let space = &mut engine.space;
        while let Some(key) = space.volumes.first_dirty() {
            let (pvbn, tetris) = self.take(space).await?;
            let (block, old) = space.volumes.dirty_block(key);
            let crc = Crc::new(block.crc());
            space.volumes.place(key, BlockPtr { vvbn: Vvbn::new(0), pvbn, crc }, tetris);
            if !old.is_hole() {
                self.free_later(old.pvbn, 1);
            }
            space.put(pvbn, block, crc, self.tag(Fsid::new(0), Vvbn::new(0)));
            self.placed_meta += 1;
        }
        let mut located: BTreeMap<(SpaceFile, Key), (Pvbn, TetrisNo)> = BTreeMap::new();
        loop {
            for (at, count) in core::mem::take(&mut self.freed) {
                self.free_pvbns(space, at, count).await?;
            }
            let mut todo = Vec::new();
            for file in [SpaceFile::Counts, SpaceFile::Map] {
                let tree = space.file(file);
                let keys = tree.dirty_keys().filter(|k| !located.contains_key(&(file, *k)));
                todo.extend(keys.map(|k| (file, k, tree.dirty_block(k).1)));
            }
            if todo.is_empty() {
                break;
            }
            for (file, key, old) in todo {
                let at = self.take(space).await?;
                located.insert((file, key), at);
                if !old.is_hole() {
                    self.free_later(old.pvbn, 1);
                }
            }
        }
        if let (Err((before, now)), false) = (space.check(), mutant("digest-not-checked")) {
            let what = "active map of the aggregate".to_owned();
            return Err(CpError::Digest { what, before, now });
        }
        for ((file, key), (pvbn, tetris)) in located {
            if file == SpaceFile::Counts && key.level == 0 {
                let content = space.counts_block(key.index);
                space.counts_file.put(key.index, content);
            }
            let tree = space.file(file);
            let (block, _) = tree.dirty_block(key);
            let crc = Crc::new(block.crc());
            tree.place(key, BlockPtr { vvbn: Vvbn::new(0), pvbn, crc }, tetris);
            space.put(pvbn, block, crc, self.tag(Fsid::new(0), Vvbn::new(0)));
            self.placed_meta += 1;
        }
        assert!(space.map.is_clean() && space.counts_file.is_clean(), "the maps are placed whole");
        Ok(AggregateRoot {
            cp: self.cp,
            time: self.inner.world.clock.wall(),
            area_stripes: u32::try_from(space.area_stripes()).unwrap_or(u32::MAX),
            used_blocks: space.used(),
            volume_slots: engine.slots_end,
            pvbn_end: space.pvbn_end(),
            log_position,
            volume_table: tree_inode(&space.volumes),
            active_map: tree_inode(&space.map),
            area_counts: tree_inode(&space.counts_file),
        })
    }
}

/// Where a block really lies: the hint, as long as no block of the volume was ever moved.
fn authority(st: &VolState, vvbn: Vvbn, hint: Pvbn) -> Result<Pvbn, Miss> {
    if st.relocations == 0 || mutant("hint-trusted") {
        return Ok(hint);
    }
    let key = Key::data(vvbn.get() / CONTAINER_ENTRIES_PER_BLOCK);
    match st.container_map.peek(key) {
        Ok(Some(block)) => Ok(container_entry(block, vvbn.get())),
        Ok(None) => Ok(hint),
        Err(at) => Err(Miss { file: FileId::ContainerMap, key: at.key, ptr: at.ptr }),
    }
}

#[cfg(test)]
mod tests;
