//! Repairs of what a check found, in memory; the next consistency point commits them.
//!
//! Layer: inside the check, on volumes and space. Runs under the engine's lock, so that no point
//! is under way; see the rules in [`super::live`].

use cairn_sys::lock::atomic::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use cairn_raid_api::ReadRequest;
use cairn_units::{Crc, Generation, InodeNo, Pvbn, Vvbn, WallTime};
use cairn_wafl_format::{BITS_PER_BLOCK, CONTAINER_ENTRIES_PER_BLOCK, InodeKind, VolumeSums};

use super::findings::Dangling;
use super::{Audit, Finding, VolumeCount};
use crate::bits::bit_place;
use crate::cp::{Engine, container_entry, flip, set_container};
use crate::manager::{Inner, Volume};
use crate::space::SpaceFile;
use crate::tree::Key;
use crate::volume::{FileId, Stop, VolState, miss};

/// A step of a repair under a volume's lock: whether it changed anything.
type Step = Result<bool, Stop>;

impl Inner {
    /// Repairs what can be repaired and answers how much that was.
    pub(super) async fn repair(&self, engine: &mut Engine, audit: &Audit, whole: bool) -> u64 {
        let mut mended = 0;
        let mut rebuilt = BTreeSet::new();
        // What one layer of structures says decides what the next one means: names follow from
        // directories, maps and counts from what is named. Each waits for the one before.
        for layer in [Layer::Structure, Layer::Names, Layer::Maps] {
            if mended > 0 || (layer != Layer::Structure && !whole) {
                break;
            }
            for finding in audit.findings.iter().filter(|f| layer_of(f) == layer) {
                if let Finding::Directory { fsid, dir, .. } = finding
                    && !rebuilt.insert((*fsid, *dir))
                {
                    continue;
                }
                mended += u64::from(self.repair_one(engine, finding).await);
            }
        }
        mended
    }

    async fn repair_one(&self, engine: &mut Engine, finding: &Finding) -> bool {
        let done = match finding {
            Finding::Mark { pvbn, marked } => self.repair_mark(engine, *pvbn, *marked).await,
            Finding::Area { area, said, counted } => {
                engine.space.correct_area(*area, i64::from(*counted) - i64::from(*said))
            }
            Finding::Used { said, counted } => {
                engine.space.correct_used(difference(*said, *counted));
                true
            }
            _ => self.repair_in_volume(finding).await,
        };
        if done {
            tracing::warn!("repaired: {finding}");
        }
        done
    }

    async fn repair_mark(&self, engine: &mut Engine, at: Pvbn, marked: bool) -> bool {
        loop {
            match engine.space.free_ready(at) {
                Ok(()) => return engine.space.correct_mark(at, marked),
                Err(miss) => {
                    if self.load_space(&mut engine.space, SpaceFile::Map, miss).await.is_err() {
                        return false;
                    }
                }
            }
        }
    }

    async fn repair_in_volume(&self, finding: &Finding) -> bool {
        let Some(volume) = finding.volume().and_then(|fsid| self.volume(fsid)) else {
            return false;
        };
        if let Finding::Container { vvbn, pvbn, said, crc, .. } = finding
            && !self.is_at(*pvbn, *crc).await
        {
            tracing::error!("VVBN {vvbn} is neither at {pvbn} nor known to be at {said}");
            return false;
        }
        if let Finding::Orphan { ino, generation, .. } = finding {
            return self.adopt(&volume, *ino, *generation).await;
        }
        if let Finding::Directory { fsid, dir, generation, .. } = finding {
            if !self.has_room_for(&volume, *dir).await {
                tracing::error!(%fsid, %dir, "no space to make the directory anew");
                return false;
            }
            self.load_directory(&volume, *dir, *generation).await;
        }
        let time = self.world.clock.wall();
        self.in_volume(&volume, |st| repair_now(st, finding, time)).await
    }

    /// Runs a step under the volume's lock, with what it needs loaded; changes wait from then on.
    async fn in_volume(
        &self,
        volume: &Arc<Volume>,
        mut step: impl FnMut(&mut VolState) -> Step,
    ) -> bool {
        loop {
            let stop = {
                let mut st = volume.lock();
                volume.quiet.store(true, Ordering::Release);
                let done = step(&mut st);
                self.take_delta(&mut st);
                match done {
                    Ok(false) => return false,
                    Ok(true) => {
                        st.rebalance = true;
                        volume.mark_record();
                        return true;
                    }
                    Err(stop) => stop,
                }
            };
            if self.resolve(volume, stop).await.is_err() {
                return false;
            }
        }
    }

    /// Whether every block of a directory may become dirty: the point must not run out of space.
    async fn has_room_for(&self, volume: &Arc<Volume>, dir: InodeNo) -> bool {
        let mut blocks = 0;
        self.in_volume(volume, |st| {
            blocks = st.load_inode(dir)?.inode.size.div_ceil(cairn_units::BLOCK_BYTES_U64);
            Ok(false)
        })
        .await;
        blocks <= self.allowance(self.reserve())
    }

    /// Loads all blocks of a directory; those that cannot be read become zeros.
    async fn load_directory(&self, volume: &Arc<Volume>, dir: InodeNo, generation: Generation) {
        let mut missing = Vec::new();
        loop {
            let same = self.in_volume(volume, |st| {
                let same = same_file(st, dir, generation)?;
                missing = if same { st.missing_blocks(dir)? } else { Vec::new() };
                Ok(same)
            });
            if !same.await || missing.is_empty() {
                return;
            }
            for at in core::mem::take(&mut missing) {
                if self.load(volume, vec![at]).await.is_err() {
                    let given_up = self.in_volume(volume, |st| st.give_up_block(at)).await;
                    if !given_up {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the block with this checksum is there.
    async fn is_at(&self, at: Pvbn, crc: Crc) -> bool {
        let request = ReadRequest { at, expect: Some(crc) };
        matches!(self.aggr.read(vec![request]).await.pop(), Some(Ok(_)))
    }

    /// Gives a file without a name one in `lost+found` of its volume.
    async fn adopt(&self, volume: &Arc<Volume>, ino: InodeNo, generation: Generation) -> bool {
        let time = self.world.clock.wall();
        self.in_volume(volume, |st| {
            if st.load_inode(ino)?.inode.generation != generation {
                return Ok(false);
            }
            let kind = st.file(ino).inode.kind;
            let live = !st.file(ino).inode.is_zombie();
            if !live || matches!(kind, InodeKind::Free | InodeKind::Internal) {
                return Ok(false);
            }
            st.adopt(ino, time)
        })
        .await
    }
}

/// What is put right together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    /// What leads to other structures.
    Structure,
    /// Names, links and what inodes say of themselves.
    Names,
    /// Maps and counts.
    Maps,
}

fn layer_of(finding: &Finding) -> Layer {
    match finding {
        Finding::Directory { .. } | Finding::Container { .. } => Layer::Structure,
        Finding::Mark { .. }
        | Finding::VolumeMark { .. }
        | Finding::Area { .. }
        | Finding::Used { .. }
        | Finding::Count { .. }
        | Finding::Sums { .. } => Layer::Maps,
        _ => Layer::Names,
    }
}

fn difference(said: u64, counted: u64) -> i64 {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    signed(counted) - signed(said)
}

fn repair_now(st: &mut VolState, finding: &Finding, time: WallTime) -> Step {
    match finding {
        Finding::VolumeMark { vvbn, marked, .. } => repair_vvbn(st, *vvbn, *marked),
        Finding::Container { vvbn, pvbn, said, .. } => repair_container(st, *vvbn, *pvbn, *said),
        Finding::InodeMark { ino, marked, .. } => {
            st.inode_bit_ready(*ino)?;
            let free = st.load_inode(*ino)?.inode.kind == InodeKind::Free;
            if st.inode_bit(*ino) != *marked || free != *marked {
                return Ok(false);
            }
            st.set_inode_bit(*ino, !*marked);
            if *marked {
                st.inodes_freed.insert(*ino);
            }
            Ok(true)
        }
        Finding::Links { ino, generation, said, counted, .. } => {
            if !same_file(st, *ino, *generation)? {
                return Ok(false);
            }
            let inode = &mut st.file_mut(*ino).inode;
            let links = i64::from(inode.links) + i64::from(*counted) - i64::from(*said);
            inode.links = u32::try_from(links).unwrap_or(0);
            st.touch(*ino);
            Ok(true)
        }
        Finding::Parent { ino, generation, said, counted, .. } => {
            if !same_file(st, *ino, *generation)? || st.file(*ino).inode.parent != *said {
                return Ok(false);
            }
            st.file_mut(*ino).inode.parent = *counted;
            st.touch(*ino);
            Ok(true)
        }
        Finding::Dangling(found) => repair_dangling(st, found, time),
        Finding::Directory { dir, generation, .. } => {
            if !same_file(st, *dir, *generation)? {
                return Ok(false);
            }
            st.rebuild_directory(*dir, time)
        }
        Finding::Blocks { ino, generation, said, counted, .. } => {
            if !same_file(st, *ino, *generation)? {
                return Ok(false);
            }
            st.file_mut(*ino).tree.correct_blocks(counted - said);
            st.touch(*ino);
            Ok(true)
        }
        Finding::Count { what, said, counted, .. } => {
            let by = difference(*said, *counted);
            match what {
                VolumeCount::Files => st.files = st.files.saturating_add_signed(by),
                VolumeCount::UsedBlocks => {
                    st.used_blocks = st.used_blocks.saturating_add_signed(by);
                }
            }
            Ok(true)
        }
        Finding::Sums { said, counted, .. } => {
            let now = st.sums;
            st.sums = VolumeSums {
                dirs: now.dirs + counted.dirs - said.dirs,
                dir_links: now.dir_links + counted.dir_links - said.dir_links,
                files: now.files + counted.files - said.files,
                file_links: now.file_links + counted.file_links - said.file_links,
                names: now.names + counted.names - said.names,
                blocks: now.blocks + counted.blocks - said.blocks,
                residue: now.residue + counted.residue - said.residue,
            };
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Whether the inode is still the file that the finding is about, and may be changed.
fn same_file(st: &mut VolState, ino: InodeNo, generation: Generation) -> Step {
    let inode = &st.load_inode(ino)?.inode;
    let same = inode.kind != InodeKind::Free && inode.generation == generation;
    if same {
        st.inode_ready(ino)?;
    }
    Ok(same)
}

fn repair_vvbn(st: &mut VolState, vvbn: Vvbn, marked: bool) -> Step {
    let key = Key::data(vvbn.get() / BITS_PER_BLOCK);
    let at_map = |at| miss(FileId::ActiveMap, at);
    st.active_map.reachable(key).map_err(at_map)?;
    let (byte, mask) = bit_place(vvbn.get() % BITS_PER_BLOCK);
    let now = st.active_map.get(key).map_err(at_map)?.is_some_and(|b| b[byte] & mask != 0);
    if now != marked {
        return Ok(false);
    }
    flip(st, vvbn.get(), !marked);
    st.used_blocks = if marked { st.used_blocks.saturating_sub(1) } else { st.used_blocks + 1 };
    Ok(true)
}

fn repair_container(st: &mut VolState, vvbn: Vvbn, pvbn: Pvbn, said: Pvbn) -> Step {
    let key = Key::data(vvbn.get() / CONTAINER_ENTRIES_PER_BLOCK);
    let at_map = |at| miss(FileId::ContainerMap, at);
    st.container_map.reachable(key).map_err(at_map)?;
    let block = st.container_map.get(key).map_err(at_map)?;
    if block.map_or(Pvbn::new(0), |b| container_entry(&b, vvbn.get())) != said {
        return Ok(false);
    }
    set_container(st, vvbn, pvbn);
    Ok(true)
}

fn repair_dangling(st: &mut VolState, found: &Dangling, time: WallTime) -> Step {
    if !same_file(st, found.dir, found.generation)? {
        return Ok(false);
    }
    let child = found.child;
    let there = child.get() != 0 && child.get() < st.inode_end && {
        let inode = &st.load_inode(child)?.inode;
        let live = !matches!(inode.kind, InodeKind::Free | InodeKind::Internal);
        live && !inode.is_zombie()
            && inode.generation == found.child_generation
            && inode.kind as u8 == found.kind
    };
    if there {
        return Ok(false);
    }
    st.remove_entry(found.dir, &found.name, child, time)
}
