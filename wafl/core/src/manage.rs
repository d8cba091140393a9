//! Volume, aggregate and disk operations of the CF interface.
//!
//! Layer: message handlers, on the manager. A volume operation is done when the consistency point
//! that holds it is committed; it is not logged. All of them are idempotent.

use cairn_sys::lock::atomic::Ordering;
use std::sync::Arc;

use cairn_cf::{
    AggregateStatus, CheckFinding, DiskPlace, DiskReport, ExplainedBlock, Explanation, GroupReport,
    Manage, ManageError, Managed, Metric, ScrubReport, VolumeStatus,
};
use cairn_op::ObjectRef;
use cairn_raid_api::{
    AdminError, AggregateAdmin, ColumnState, DiskRole, DiskStatus, PlaceOnDisk, RaidKind,
    ScrubFinding,
};
use cairn_units::{BLOCK_BYTES_U64, Blocks, Fbn, Fsid, Generation, GroupNo, InodeNo, Lsn};
use cairn_wafl_format::{
    BITS_PER_BLOCK, CONTAINER_ENTRIES_PER_BLOCK, Inode, VOLUME_NAME_BYTES_MAX, VOLUMES_MAX,
    VolumeRecord, VolumeSums,
};

use crate::check::Severity;
use crate::cp::container_entry;
use crate::manager::{Inner, Volume};
use crate::tree::Key;
use crate::volume::{FIRST_INO, FileId, Miss, ROOT_INO, Stop, VolState};

/// Smallest volume in blocks.
const VOLUME_BLOCKS_MIN: u64 = 256;

fn check_name(name: &str) -> Result<(), ManageError> {
    let fits = (1..=VOLUME_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if fits { Ok(()) } else { Err(ManageError::BadName(name.to_owned())) }
}

/// VVBNs of a volume of `size` blocks: twice its size, so that free ones are always near.
fn vvbn_end_for(size: u64) -> u64 {
    let want = size.saturating_mul(2).saturating_add(8192);
    want.next_multiple_of(BITS_PER_BLOCK)
}

impl Inner {
    pub(crate) async fn manage(self: Arc<Self>, request: Manage) -> Result<Managed, ManageError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(ManageError::Stopped(self.stop_reason()));
        }
        match request {
            Manage::VolumeCreate { fsid, name, size_bytes } => {
                self.volume_create(fsid, name, size_bytes).await
            }
            Manage::VolumeDelete { fsid } => self.volume_delete(fsid).await,
            Manage::VolumeResize { fsid, size_bytes } => self.volume_resize(fsid, size_bytes).await,
            Manage::VolumeRename { fsid, name } => self.volume_rename(fsid, name).await,
            Manage::VolumeList => Ok(Managed::Volumes(self.volume_list())),
            Manage::VolumeRoot { fsid } => self.volume_root(fsid).await,
            Manage::ConsistencyPoint => self.point().await,
            Manage::AggregateStatus => Ok(Managed::Aggregate(self.aggregate_status())),
            Manage::DiskList => {
                let disks = self.admin()?.disks().into_iter().map(disk_report).collect();
                Ok(Managed::Disks(disks))
            }
            Manage::DiskAdd { locations } => {
                self.admin()?.add_spares(locations).await.map(Managed::DisksAdded).map_err(refused)
            }
            Manage::DiskFail { disk } => {
                self.admin()?.fail_disk(disk).await.map(|()| Managed::Done).map_err(refused)
            }
            Manage::DiskReplace { disk, with } => {
                let spare = self.admin()?.replace_disk(disk, with).await.map_err(refused)?;
                Ok(Managed::DisksAdded(vec![spare]))
            }
            Manage::GroupKind { group, kind } => self.group_kind(group, &kind).await,
            Manage::GroupGrow { group } => {
                let disk = self.admin()?.grow_group(group).await.map_err(refused)?;
                // The next point counts the new blocks.
                self.point().await?;
                Ok(Managed::DisksAdded(vec![disk]))
            }
            Manage::GroupAdd { disks } => {
                let group = self.admin()?.add_group(disks).await.map_err(refused)?;
                self.point().await?;
                Ok(Managed::GroupAdded(group))
            }
            Manage::ScrubStart => {
                self.admin()?.start_scrub();
                Ok(Managed::Done)
            }
            Manage::ScrubStatus => {
                let admin = self.admin()?;
                let s = admin.scrub();
                let finding = |f: ScrubFinding| CheckFinding {
                    severity: if f.repaired { Severity::Inconsistent } else { Severity::Damage }
                        .name()
                        .to_owned(),
                    volume: None,
                    text: f.to_string(),
                };
                Ok(Managed::Scrub(ScrubReport {
                    running: s.running,
                    finished: s.finished.is_some(),
                    progress: (s.stripes_done.get(), s.stripes_total.get()),
                    damaged: s.damaged,
                    repaired: s.repaired,
                    parity_mismatches: s.parity_mismatches,
                    findings: admin.scrub_findings().into_iter().map(finding).collect(),
                }))
            }
            Manage::CheckStart { only, repair, data } => {
                if let Some(fsid) = only {
                    self.find(fsid)?;
                }
                self.start_check(crate::check::Scope { only, data }, repair);
                Ok(Managed::Done)
            }
            Manage::CheckStatus => Ok(Managed::Check(self.check_report())),
            Manage::Explain { obj, fbn } => self.explain(obj, fbn).await,
            Manage::Counters => Ok(Managed::Counters(self.metrics())),
        }
    }

    fn admin(&self) -> Result<&Arc<dyn AggregateAdmin>, ManageError> {
        self.admin
            .as_ref()
            .ok_or_else(|| ManageError::Refused("this node has no disks to manage".to_owned()))
    }

    /// The log's copies follow the parity: a group that survives two failures would be of no use
    /// to records that do not.
    async fn group_kind(&self, group: GroupNo, kind: &str) -> Result<Managed, ManageError> {
        let kind = match kind {
            "raid4" => RaidKind::Raid4,
            "raid_dp" => RaidKind::RaidDp,
            other => return Err(ManageError::Refused(format!("no such RAID type: {other}"))),
        };
        self.admin()?.set_raid_kind(group, kind).await.map_err(refused)?;
        if self.log_copies.is_none() {
            let parity = self.aggr.geometry().groups.iter().map(|g| g.parity).max().unwrap_or(0);
            self.log.set_copies((usize::from(parity) + 1).clamp(1, 4));
        }
        // The log goes on in a half that has its copies on the disks as they are now.
        self.point().await
    }

    fn find(&self, fsid: Fsid) -> Result<Arc<Volume>, ManageError> {
        self.volume(fsid).ok_or(ManageError::NoSuchVolume(fsid))
    }

    async fn point(&self) -> Result<Managed, ManageError> {
        match self.cp_now().await {
            Ok(()) => Ok(Managed::Done),
            Err(_) => Err(ManageError::Stopped(self.stop_reason())),
        }
    }

    fn name_taken(&self, name: &str, except: Fsid) -> bool {
        self.volumes().iter().any(|v| v.fsid != except && v.lock().name == name)
    }

    async fn volume_create(
        &self,
        fsid: Fsid,
        name: String,
        size_bytes: u64,
    ) -> Result<Managed, ManageError> {
        check_name(&name)?;
        if fsid.get() == 0 {
            return Err(ManageError::Refused("volume id 0 is not a volume".to_owned()));
        }
        if let Some(there) = self.volume(fsid) {
            let same = there.lock().name == name;
            return if same { self.point().await } else { Err(ManageError::NameTaken(name)) };
        }
        let size_blocks = Blocks::for_bytes(size_bytes).get().max(VOLUME_BLOCKS_MIN);
        let free = self.allowance(self.reserve());
        if free < VOLUME_BLOCKS_MIN {
            return Err(ManageError::NoSpace {
                needed_bytes: VOLUME_BLOCKS_MIN * BLOCK_BYTES_U64,
                free_bytes: free * BLOCK_BYTES_U64,
            });
        }
        {
            // The engine's lock orders this with consistency points and other creations.
            let mut engine = self.engine.lock().await;
            if self.volume(fsid).is_some() || self.name_taken(&name, fsid) {
                return Err(ManageError::NameTaken(name));
            }
            let slot = (0..).find(|s| !engine.slots.contains_key(s)).unwrap_or(engine.slots_end);
            if slot >= VOLUMES_MAX {
                let why = format!("the aggregate holds {VOLUMES_MAX} volumes already");
                return Err(ManageError::Refused(why));
            }
            engine.slots.insert(slot, fsid);
            engine.slots_end = engine.slots_end.max(slot + 1);
            let none = Inode::free(InodeNo::new(0), Generation::new(0));
            let mut state = VolState::from_record(&VolumeRecord {
                fsid,
                deleting: false,
                name,
                size_blocks,
                vvbn_end: vvbn_end_for(size_blocks),
                used_blocks: 0,
                files: 0,
                lsn: Lsn::new(0),
                cp: engine.cp,
                zombie_head: InodeNo::new(0),
                object_next: 1,
                relocations: 0,
                hash_key: self.world.random_16(),
                inode_end: FIRST_INO,
                vvbn_cursor: 1,
                sums: VolumeSums::default(),
                inode_file: none.clone(),
                inode_map: none.clone(),
                active_map: none.clone(),
                container_map: none,
            });
            state.make_root(self.world.clock.wall());
            state.half = self.log_begun.load(Ordering::Acquire).then(|| self.log.current());
            self.take_delta(&mut state);
            let volume = Arc::new(Volume::new(slot, state, true));
            self.volumes.write().insert(fsid, volume);
        }
        self.point().await
    }

    async fn volume_delete(&self, fsid: Fsid) -> Result<Managed, ManageError> {
        {
            let mut engine = self.engine.lock().await;
            let removed = self.volumes.write().remove(&fsid);
            // Without one, another deletion may have taken it out a moment ago: its point is
            // waited for as well.
            if let Some(volume) = removed {
                volume.gone.store(true, Ordering::Release);
                let dirty = {
                    let mut st = volume.lock();
                    st.dirty_files.clear();
                    self.take_delta(&mut st);
                    core::mem::take(&mut st.dirtied).blocks
                };
                self.dirty.fetch_sub(i64::try_from(dirty).unwrap_or(0), Ordering::AcqRel);
                engine.deletions.push(volume);
            }
        }
        self.point().await
    }

    async fn volume_resize(&self, fsid: Fsid, size_bytes: u64) -> Result<Managed, ManageError> {
        let volume = self.find(fsid)?;
        {
            let mut st = volume.lock();
            let size = Blocks::for_bytes(size_bytes).get().max(VOLUME_BLOCKS_MIN);
            let used = st.used_blocks + st.dirtied.fresh;
            if size < used {
                return Err(ManageError::Refused(format!(
                    "the volume holds {} bytes; remove files first, or choose a larger size",
                    used * BLOCK_BYTES_U64
                )));
            }
            st.size_blocks = size;
            st.vvbn_end = st.vvbn_end.max(vvbn_end_for(size));
        }
        volume.mark_record();
        self.point().await
    }

    async fn volume_rename(&self, fsid: Fsid, name: String) -> Result<Managed, ManageError> {
        check_name(&name)?;
        let volume = self.find(fsid)?;
        if self.name_taken(&name, fsid) {
            return Err(ManageError::NameTaken(name));
        }
        volume.lock().name = name;
        volume.mark_record();
        self.point().await
    }

    fn volume_list(&self) -> Vec<VolumeStatus> {
        let status = |v: &Arc<Volume>| {
            let st = v.lock();
            VolumeStatus {
                fsid: v.fsid,
                name: st.name.clone(),
                size_bytes: st.size_blocks * BLOCK_BYTES_U64,
                used_bytes: (st.used_blocks + st.dirtied.fresh) * BLOCK_BYTES_U64,
                files: st.files,
                online: true,
            }
        };
        self.volumes().iter().map(status).collect()
    }

    async fn volume_root(&self, fsid: Fsid) -> Result<Managed, ManageError> {
        let volume = self.find(fsid)?;
        loop {
            let stop = {
                let mut st = volume.lock();
                match st.load_inode(ROOT_INO).map(|f| f.inode.generation) {
                    Ok(generation) => {
                        return Ok(Managed::Root(st.object_ref(ROOT_INO, generation)));
                    }
                    Err(stop) => stop,
                }
            };
            self.resolve(&volume, stop).await.map_err(|_| ManageError::NoSuchObject)?;
        }
    }

    fn aggregate_status(&self) -> AggregateStatus {
        let geometry = self.aggr.geometry();
        let total = geometry.data_blocks().get();
        let disks = self.admin.as_ref().map(|a| a.disks()).unwrap_or_default();
        let groups = geometry
            .groups
            .iter()
            .map(|g| {
                let here = || {
                    disks.iter().filter(|d| d.position.is_some_and(|(group, _)| group == g.group))
                };
                let copying = here().any(|d| d.role == DiskRole::Copy);
                let members = || here().filter(|d| d.role != DiskRole::Copy);
                let lost = members().filter(|d| d.state != ColumnState::Online).count();
                let states: Vec<ColumnState> =
                    members().map(|d| d.state).chain(g.data.iter().map(|c| c.state)).collect();
                let state = if lost > usize::from(g.parity) {
                    "failed"
                } else if states.contains(&ColumnState::Missing) {
                    "degraded"
                } else if states.contains(&ColumnState::Rebuilding) {
                    "rebuilding"
                } else if copying {
                    "copying"
                } else {
                    "normal"
                };
                GroupReport {
                    group: g.group,
                    kind: if g.parity == 1 { "raid4" } else { "raid_dp" }.to_owned(),
                    data_disks: u16::try_from(g.data.len()).unwrap_or(u16::MAX),
                    state: state.to_owned(),
                    size_bytes: g.stripes.get() * g.data.len() as u64 * BLOCK_BYTES_U64,
                }
            })
            .collect();
        let log_disks = self
            .log
            .status()
            .halves
            .last()
            .map(|h| h.copies.iter().map(|c| c.0.to_string()).collect())
            .unwrap_or_default();
        AggregateStatus {
            uuid: geometry.aggregate.to_string(),
            size_bytes: total * BLOCK_BYTES_U64,
            used_bytes: total.saturating_sub(self.free.load(Ordering::Acquire)) * BLOCK_BYTES_U64,
            cp_count: *self.committed_cp.borrow(),
            groups,
            log_disks,
            faults: self.faults.lock().clone(),
        }
    }

    // ---- explain ----

    async fn explain(&self, obj: ObjectRef, fbn: Fbn) -> Result<Managed, ManageError> {
        let volume = self.find(obj.fsid)?;
        loop {
            let stop = {
                let mut st = volume.lock();
                match explain_now(&mut st, obj, fbn) {
                    Ok(chain) => return Ok(Managed::Explained(self.finish_chain(chain))),
                    Err(stop) => stop,
                }
            };
            self.resolve(&volume, stop).await.map_err(|_| ManageError::NoSuchObject)?;
        }
    }

    fn finish_chain(&self, chain: Chain) -> Explanation {
        let Chain { ino, fbn, state, block } = chain;
        let block = block.and_then(|(ptr, pvbn)| {
            let place = self.aggr.place(pvbn)?;
            let parity = [place.row_parity, place.diagonal_parity];
            Some(ExplainedBlock {
                vvbn: ptr.vvbn,
                pvbn,
                hint: ptr.pvbn,
                crc: ptr.crc,
                group: place.group,
                stripe: place.stripe,
                data: disk_place(place.data),
                parity: parity.into_iter().flatten().map(disk_place).collect(),
            })
        });
        Explanation { ino, fbn, block, state: state.to_owned() }
    }

    // ---- counters ----

    fn metrics(&self) -> Vec<Metric> {
        let mut out = self.counters.metrics();
        let mut push = |name: &str, value: u64| {
            out.push(Metric { name: name.to_owned(), labels: Vec::new(), value });
        };
        let (blocks, inodes) = self.cache.resident();
        push("cache_blocks", blocks as u64);
        push("cache_blocks_max", self.cache.blocks_max() as u64);
        push("in_core_inodes", inodes as u64);
        push("in_core_inodes_max", self.cache.inodes_max() as u64);
        push("dirty_blocks", u64::try_from(self.dirty.load(Ordering::Acquire)).unwrap_or(0));
        push("free_blocks", self.free.load(Ordering::Acquire));
        let log = self.log.status();
        push("log_stable_records_total", log.counters.records);
        push("log_blocks_written_total", log.counters.blocks);
        push("log_batches_total", log.counters.batches);
        push("log_spread_batches_total", log.counters.spread_batches);
        push("log_area_blocks_written_total", log.counters.area_blocks);
        push("log_copies", log.halves.iter().map(|h| h.copies.len() as u64).min().unwrap_or(0));
        if let Some(admin) = &self.admin {
            let r = admin.counters();
            push("raid_full_stripes_total", r.full_stripes);
            push("raid_partial_stripes_total", r.partial_stripes);
            push("raid_data_blocks_written_total", r.data_blocks);
            push("raid_fill_blocks_written_total", r.fill_blocks);
            push("raid_parity_blocks_written_total", r.parity_blocks);
            push("raid_checksum_blocks_written_total", r.checksum_blocks);
            push("raid_stripe_log_blocks_written_total", r.stripe_log_blocks);
            push("raid_parity_blocks_read_total", r.parity_read_blocks);
            push("raid_reconstructed_blocks_total", r.reconstructed_blocks);
            push("raid_repaired_blocks_total", r.repaired_blocks);
            for d in admin.disks() {
                let labels = vec![
                    ("disk".to_owned(), d.disk.to_string()),
                    ("location".to_owned(), d.location.clone()),
                ];
                let values = [
                    ("disk_reads_total", d.reads),
                    ("disk_blocks_read_total", d.blocks_read),
                    ("disk_writes_total", d.writes),
                    ("disk_blocks_written_total", d.blocks_written),
                    ("disk_flushes_total", d.flushes),
                    ("disk_errors_total", d.errors),
                ];
                for (name, value) in values {
                    out.push(Metric { name: name.to_owned(), labels: labels.clone(), value });
                }
            }
        }
        out
    }
}

/// A block's chain down to the aggregate.
struct Chain {
    ino: InodeNo,
    fbn: Fbn,
    state: &'static str,
    block: Option<(cairn_wafl_format::BlockPtr, cairn_units::Pvbn)>,
}

fn explain_now(st: &mut VolState, obj: ObjectRef, fbn: Fbn) -> Result<Chain, Stop> {
    let ino = st.object(obj)?;
    let file = st.file(ino);
    let done = |state, block| Ok(Chain { ino, fbn, state, block });
    if file.inode.is_inline() {
        return done("inline", None);
    }
    let key = Key::data(fbn.get());
    let at_file = |at: crate::tree::TreeMiss| {
        Stop::Miss(vec![Miss { file: FileId::Inode(ino), key: at.key, ptr: at.ptr }])
    };
    let ptr = file.tree.ptr(key).map_err(at_file)?;
    let dirty = file.tree.dirty_from(key) == Some(key);
    if ptr.is_hole() {
        return done(if dirty { "in memory, not yet written" } else { "hole" }, None);
    }
    let entry = Key::data(ptr.vvbn.get() / CONTAINER_ENTRIES_PER_BLOCK);
    let map = st.container_map.get(entry).map_err(|at| {
        Stop::Miss(vec![Miss { file: FileId::ContainerMap, key: at.key, ptr: at.ptr }])
    })?;
    let pvbn = map.map_or(ptr.pvbn, |block| container_entry(&block, ptr.vvbn.get()));
    done(if dirty { "on disk, changed in memory" } else { "on disk" }, Some((ptr, pvbn)))
}

fn disk_place(p: PlaceOnDisk) -> DiskPlace {
    DiskPlace {
        column: p.column.get(),
        disk: p.disk.map(|d| d.to_string()).unwrap_or_default(),
        location: p.location.unwrap_or_default(),
        dbn: p.dbn.get(),
    }
}

fn disk_report(d: DiskStatus) -> DiskReport {
    let role = match d.role {
        DiskRole::Data => "data",
        DiskRole::RowParity => "row parity",
        DiskRole::DiagonalParity => "diagonal parity",
        DiskRole::Spare => "spare",
        DiskRole::Failed => "failed",
        DiskRole::Log => "log",
        DiskRole::Copy => "copy",
    };
    let state = match d.state {
        ColumnState::Online => "online",
        ColumnState::Rebuilding if d.role == DiskRole::Copy => "copying",
        ColumnState::Rebuilding => "rebuilding",
        ColumnState::Missing => "missing",
    };
    DiskReport {
        disk: d.disk,
        location: d.location,
        class: d.class,
        size_bytes: d.blocks.bytes(),
        role: role.to_owned(),
        position: d.position.map(|(g, c)| (g, c.get())),
        state: state.to_owned(),
        rebuild: d.rebuild.map(|(done, all)| (done.get(), all.get())),
        counters: [d.reads, d.blocks_read, d.writes, d.blocks_written, d.flushes, d.errors],
    }
}

fn refused(error: AdminError) -> ManageError {
    ManageError::Refused(error.to_string())
}
