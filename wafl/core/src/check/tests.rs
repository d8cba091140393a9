//! Damage put into every structure of a volume and of the aggregate: the check finds it, and the
//! repair puts it right where the information exists.

use std::sync::Arc;

use bytes::Bytes;
use cairn_cf::{CheckReport, DModule, Manage, Managed};
use cairn_op::{
    ClientAddr, CreateHow, Credential, Name, ObjectRef, Op, OpCtx, ReadOnly, Reply, SetAttrs,
    Stability, Status,
};
use cairn_raid_api::Aggregate;
use cairn_raid_disk::Disk;
use cairn_raid_group::{CreateOptions, RaidAggregate, RaidKind};
use cairn_sim::{SimDiskConfig, SimWorld};
use cairn_sys::{Block, Payload};
use cairn_units::{Blocks, Fsid, Generation, InodeNo, OpNo, Pvbn, VserverId, Vvbn};
use cairn_wafl_format::{Inode, InodeKind};

use super::{Finding, Severity, VolumeCount, audit};
use crate::cp::{flip, set_container};
use crate::manager::{Inner, Volume};
use crate::tree::Key;
use crate::volume::{File, ROOT_INO, VolState};
use crate::{StorageConfig, StorageManager};

const FSID: Fsid = Fsid::new(7);

struct Rig {
    sim: SimWorld,
    aggr: Arc<dyn Aggregate>,
    node: Arc<StorageManager>,
    root: ObjectRef,
}

impl Rig {
    /// A volume with a large directory, a file, a second directory with a file in it.
    fn new(seed: u64) -> Self {
        Self::on_disks_of(seed, 8192)
    }

    fn on_disks_of(seed: u64, blocks: u64) -> Self {
        let sim = SimWorld::new(seed);
        let disk = |i: usize| sim.disk(SimDiskConfig::new(&format!("d{i}"), Blocks::new(blocks)));
        let disks: Vec<Arc<dyn Disk>> = (0..5).map(|i| disk(i).driver()).collect();
        let options = CreateOptions::new(RaidKind::RaidDp, 0);
        let made = RaidAggregate::create(sim.world(), disks, options);
        let aggr = sim.block_on(made).expect("an aggregate is made");
        let config = StorageConfig { cache_blocks: 2048, ..StorageConfig::default() };
        let opened = StorageManager::open(sim.world(), aggr.clone(), None, config);
        let node = Arc::new(sim.block_on(opened).expect("the volumes open"));
        let create = Manage::VolumeCreate { fsid: FSID, name: "v".to_owned(), size_bytes: 8 << 20 };
        sim.block_on(node.manage(create)).expect("a volume is made");
        let root = match sim.block_on(node.manage(Manage::VolumeRoot { fsid: FSID })) {
            Ok(Managed::Root(root)) => root,
            other => panic!("{other:?}"),
        };
        let rig = Self { sim, aggr, node, root };
        let big = rig.mkdir(root, "big");
        for i in 0..300 {
            rig.create(big, &format!("a name that is rather long, number {i}"));
        }
        let sub = rig.mkdir(root, "sub");
        let file = rig.create(sub, "file");
        rig.write(file, 0, &[5; 90_000]);
        rig.point();
        assert_eq!(rig.audit(), Vec::new(), "sound before any damage");
        rig
    }

    fn call(&self, op: Op<ObjectRef>) -> Result<Reply<ObjectRef>, Status> {
        let ctx = OpCtx {
            vserver: VserverId::new(1),
            cred: Credential::root(),
            client: ClientAddr { ip: [127, 0, 0, 1].into(), port: 1 },
            op_no: OpNo::new(1),
            deadline: None,
            read_only: ReadOnly::No,
        };
        let node = self.node.clone();
        let done = self.sim.block_on(async move { node.file(ctx, op).wait().await });
        done.map_err(|f| f.status)
    }

    fn name(text: &str) -> Name {
        Name::new(Bytes::copy_from_slice(text.as_bytes())).expect("a name")
    }

    fn made(&self, op: Op<ObjectRef>) -> ObjectRef {
        match self.call(op) {
            Ok(Reply::Made { obj, .. }) => obj,
            other => panic!("{other:?}"),
        }
    }
    fn mkdir(&self, dir: ObjectRef, text: &str) -> ObjectRef {
        let set = SetAttrs { mode: Some(0o755), ..SetAttrs::default() };
        self.made(Op::MakeDir { dir, name: Self::name(text), set })
    }
    fn create(&self, dir: ObjectRef, text: &str) -> ObjectRef {
        let how = CreateHow::Guarded(SetAttrs::default());
        self.made(Op::Create { dir, name: Self::name(text), how })
    }
    fn write(&self, obj: ObjectRef, offset: u64, bytes: &[u8]) {
        let data = Payload::copy_from(offset, bytes);
        let op = Op::Write { obj, offset, data, stability: Stability::Unstable };
        self.call(op).expect("there is room");
    }
    fn lookup(&self, dir: ObjectRef, text: &str) -> Result<ObjectRef, Status> {
        match self.call(Op::Lookup { dir, name: Self::name(text) }) {
            Ok(Reply::Found { obj, .. }) => Ok(obj),
            Ok(other) => panic!("{other:?}"),
            Err(status) => Err(status),
        }
    }
    fn ino(&self, path: &[&str]) -> InodeNo {
        let walk = path.iter().try_fold(self.root, |dir, name| self.lookup(dir, name));
        walk.expect("it is there").ino
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.node.inner
    }
    fn volume(&self) -> Arc<Volume> {
        self.inner().volume(FSID).expect("the volume")
    }
    fn point(&self) {
        self.sim.block_on(self.node.manage(Manage::ConsistencyPoint)).expect("a point");
    }
    fn audit(&self) -> Vec<Finding> {
        self.sim.block_on(audit(&self.aggr, true)).findings
    }

    /// Damages the volume as a broken memory would, and commits it.
    fn damage(&self, harm: impl FnOnce(&mut VolState)) {
        let volume = self.volume();
        {
            let mut st = volume.lock();
            harm(&mut st);
            // The running digests would refuse it.
            st.rebalance = true;
            self.inner().take_delta(&mut st);
        }
        volume.mark_record();
        self.point();
    }

    fn check(&self, repair: bool) -> CheckReport {
        let start = Manage::CheckStart { only: None, repair, data: true };
        self.sim.block_on(self.node.manage(start)).expect("a check starts");
        loop {
            self.sim.run_for(core::time::Duration::from_millis(50));
            match self.sim.block_on(self.node.manage(Manage::CheckStatus)) {
                Ok(Managed::Check(report)) if !report.running => return report,
                Ok(Managed::Check(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The damage is found, and nothing is left after a repair, on the disks too.
    fn mends(&self, expected: impl Fn(&Finding) -> bool) {
        let found = self.audit();
        assert!(found.iter().any(expected), "{found:#?}");
        let only_looked = self.check(false);
        assert_eq!((only_looked.repaired, only_looked.left), (0, found.len() as u64));
        assert_eq!(self.audit().len(), found.len(), "looking changes nothing");
        let report = self.check(true);
        assert_eq!(report.failed, None);
        assert_eq!(report.left, 0, "{:#?}", report.findings);
        assert!(report.repaired > 0 && report.found == found.len() as u64);
        assert_eq!(self.audit(), Vec::new());
        // And it can be used: changes do not wait any more.
        let dir = self.mkdir(self.root, "after");
        self.create(dir, "the repair");
        self.point();
        assert_eq!(self.audit(), Vec::new());
    }
}

#[test]
fn a_sound_volume_has_no_findings_while_clients_write() {
    let rig = Rig::new(1);
    let file = rig.lookup(rig.root, "sub").and_then(|d| rig.lookup(d, "file")).expect("there");
    let start = Manage::CheckStart { only: None, repair: true, data: true };
    rig.sim.block_on(rig.node.manage(start)).expect("a check starts");
    let mut points = 0;
    loop {
        // Every point frees what the one before wrote: without the hold the walk would meet it.
        rig.write(file, 4096 * (points % 20), &[6; 8192]);
        rig.create(rig.root, &format!("f{points}"));
        rig.point();
        points += 1;
        match rig.sim.block_on(rig.node.manage(Manage::CheckStatus)) {
            Ok(Managed::Check(report)) if !report.running => {
                assert_eq!((report.found, report.failed), (0, None), "{:#?}", report.findings);
                break;
            }
            _ => assert!(points < 10_000, "the check ends"),
        }
    }
    assert!(points > 1, "points were taken meanwhile");
    assert_eq!(rig.audit(), Vec::new());
}

#[test]
fn marks_of_vvbns_are_mended_both_ways() {
    let rig = Rig::new(2);
    rig.damage(|st| {
        let free = st.vvbn_end - 5;
        flip(st, free, true);
        st.used_blocks += 1;
    });
    rig.mends(|f| matches!(f, Finding::VolumeMark { marked: true, .. }));
    let rig = Rig::new(3);
    let ino = rig.ino(&["sub", "file"]);
    rig.damage(|st| {
        let vvbn = st.file(ino).tree.ptr(Key::data(3)).expect("in memory").vvbn;
        flip(st, vvbn.get(), false);
        st.used_blocks -= 1;
    });
    rig.mends(|f| matches!(f, Finding::VolumeMark { marked: false, .. }));
}

#[test]
fn a_wrong_entry_of_the_container_map_is_mended() {
    let rig = Rig::new(4);
    let ino = rig.ino(&["sub", "file"]);
    rig.damage(|st| {
        let vvbn: Vvbn = st.file(ino).tree.ptr(Key::data(3)).expect("in memory").vvbn;
        set_container(st, vvbn, Pvbn::new(77));
    });
    rig.mends(|f| matches!(f, Finding::Container { .. }));
}

#[test]
fn marks_of_inodes_are_mended_both_ways() {
    let rig = Rig::new(5);
    let ino = rig.ino(&["sub", "file"]);
    rig.damage(|st| st.set_inode_bit(ino, false));
    rig.mends(|f| matches!(f, Finding::InodeMark { marked: false, .. }));
    let rig = Rig::new(6);
    rig.damage(|st| {
        let free = InodeNo::new(st.inode_end);
        st.inode_end += 1;
        st.set_inode_bit(free, true);
    });
    rig.mends(|f| matches!(f, Finding::InodeMark { marked: true, .. }));
}

#[test]
fn wrong_links_of_a_file_and_of_a_directory_are_mended() {
    for (seed, path) in [(7, &["sub", "file"][..]), (8, &["sub"][..])] {
        let rig = Rig::new(seed);
        let ino = rig.ino(path);
        rig.damage(|st| {
            st.file_mut(ino).inode.links += 3;
            st.touch(ino);
        });
        rig.mends(|f| matches!(f, Finding::Links { .. }));
    }
}

#[test]
fn files_and_directories_without_a_name_come_into_lost_and_found() {
    for (seed, name) in [(9, "file"), (10, "sub")] {
        let rig = Rig::new(seed);
        let path: &[&str] = if name == "file" { &["sub", "file"] } else { &["sub"] };
        let (ino, dir) = (rig.ino(path), rig.ino(&path[..path.len() - 1]));
        let time = rig.inner().world.clock.wall();
        rig.damage(|st| {
            let removed = st.remove_entry(dir, name.as_bytes(), ino, time);
            assert!(matches!(removed, Ok(true)));
        });
        rig.mends(|f| matches!(f, Finding::Orphan { .. }));
        let found = rig.ino(&["lost+found", &format!("#{ino}")]);
        assert_eq!(found, ino);
        if name == "sub" {
            rig.ino(&["lost+found", &format!("#{ino}"), "file"]);
        }
    }
}

#[test]
fn a_name_that_leads_to_nothing_is_dropped() {
    let rig = Rig::new(11);
    let ino = rig.ino(&["sub", "file"]);
    rig.damage(|st| {
        // The inode is gone; its blocks leak.
        st.in_core.insert(ino, File::new(Inode::free(ino, Generation::new(1))));
        st.touch(ino);
    });
    rig.mends(|f| matches!(f, Finding::Dangling(_)));
    let sub = rig.lookup(rig.root, "sub").expect("it stays");
    assert_eq!(rig.lookup(sub, "file"), Err(Status::NotFound));
}

#[test]
fn a_wrong_parent_is_mended() {
    let rig = Rig::new(12);
    let ino = rig.ino(&["sub"]);
    rig.damage(|st| {
        st.file_mut(ino).inode.parent = InodeNo::new(999);
        st.touch(ino);
    });
    rig.mends(|f| matches!(f, Finding::Parent { .. }));
}

#[test]
fn a_directory_with_damaged_nodes_is_made_anew_of_what_can_be_read() {
    let rig = Rig::new(13);
    let big = rig.ino(&["big"]);
    let blocks = rig.volume().lock().file(big).inode.size / 4096;
    assert!(blocks > 6, "{blocks} blocks");
    rig.damage(|st| {
        // A leaf is lost, and the root with all that leads to the others.
        for index in [0, 3] {
            let dirtied = st.file_mut(big).tree.put(index, Block::zero());
            st.account(dirtied, Default::default());
        }
        st.touch(big);
    });
    rig.mends(|f| matches!(f, Finding::Directory { .. }));
    // All files are there: by name, or in lost+found.
    let dir = rig.lookup(rig.root, "big").expect("it stays");
    let lost = rig.lookup(rig.root, "lost+found").expect("a leaf was lost");
    let mut named = 0;
    for i in 0..300 {
        named += usize::from(
            rig.lookup(dir, &format!("a name that is rather long, number {i}")).is_ok(),
        );
    }
    let volume = rig.volume();
    let entries = volume.lock().dir(lost.ino, |d| d.size()).expect("in memory").expect("sound").0;
    assert_eq!(named as u64 + entries, 300);
    assert!(named > 100 && entries > 5, "{named} by name, {entries} adopted");
}

#[test]
fn wrong_counts_and_sums_of_a_volume_are_mended() {
    let rig = Rig::new(14);
    let ino = rig.ino(&["sub", "file"]);
    rig.damage(|st| {
        st.file_mut(ino).tree.correct_blocks(9);
        st.touch(ino);
        st.files += 4;
        st.used_blocks += 2;
        st.sums.names -= 7;
        st.sums.residue += 5;
    });
    rig.mends(|f| matches!(f, Finding::Count { what: VolumeCount::Files, .. }));
}

#[test]
fn marks_and_counts_of_the_aggregate_are_mended() {
    let rig = Rig::new(15);
    let ino = rig.ino(&["sub", "file"]);
    let pvbn = rig.volume().lock().file(ino).tree.ptr(Key::data(2)).expect("in memory").pvbn;
    let free = Pvbn::new(rig.aggr.geometry().pvbn_end.get() - 3);
    rig.sim.block_on(async {
        let mut engine = rig.inner().engine.lock().await;
        for at in [pvbn, free] {
            while let Err(at) = engine.space.free_ready(at) {
                let file = crate::space::SpaceFile::Map;
                rig.inner().load_space(&mut engine.space, file, at).await.expect("readable");
            }
        }
        assert!(engine.space.correct_mark(pvbn, true) && engine.space.correct_mark(free, false));
        assert!(engine.space.correct_area(0, -3));
        engine.space.correct_used(11);
    });
    rig.damage(|_| ());
    assert_eq!(rig.check(false).failed, None);
    rig.mends(|f| matches!(f, Finding::Mark { marked: false, .. }));
}

#[test]
fn what_two_files_name_is_reported_and_left_alone() {
    let rig = Rig::new(16);
    let ino = rig.ino(&["sub", "file"]);
    rig.damage(|st| {
        // Two pointers of one file lead to one block.
        let ptr = st.file(ino).tree.ptr(Key::data(3)).expect("in memory");
        let dirtied = st.file_mut(ino).tree.edit(4, |_| ());
        st.account(dirtied, Default::default());
        st.touch(ino);
        let crc = cairn_wafl_format::block_crc(&Block::zero());
        let twin = cairn_wafl_format::BlockPtr { crc, ..ptr };
        // Placed as a consistency point would, at a place that is taken.
        st.file_mut(ino).tree.place(Key::data(4), twin, crate::cp::TetrisNo::NONE);
    });
    let found = rig.audit();
    assert!(found.iter().any(|f| matches!(f, Finding::NamedTwice { .. })), "{found:#?}");
    let report = rig.check(true);
    assert!(report.left > 0);
    assert!(report.findings.iter().any(|f| f.severity == Severity::Damage.name()));
}

#[test]
fn data_that_is_not_what_was_written_is_found_when_it_is_read() {
    let rig = Rig::new(23);
    let ino = rig.ino(&["sub", "file"]);
    rig.damage(|st| {
        let ptr = st.file(ino).tree.ptr(Key::data(3)).expect("in memory");
        let dirtied = st.file_mut(ino).tree.edit(3, |_| ());
        st.account(dirtied, Default::default());
        st.touch(ino);
        // What lies there is another block than the one that the file names.
        let crc = cairn_wafl_format::block_crc(&Block::zero());
        let other = cairn_wafl_format::BlockPtr { crc, ..ptr };
        st.file_mut(ino).tree.place(Key::data(3), other, crate::cp::TetrisNo::NONE);
    });
    let fits = |f: &Finding| {
        matches!(f, Finding::Data { fsid: FSID, ino: found, fbn, .. }
            if *found == ino && fbn.get() == 3)
    };
    let found = rig.audit();
    assert!(matches!(&found[..], [one] if fits(one)), "{found:#?}");
    let structures = rig.sim.block_on(audit(&rig.aggr, false));
    assert_eq!(structures.findings, Vec::new(), "only who reads the data sees it");
    let report = rig.check(true);
    assert_eq!((report.found, report.repaired, report.left), (1, 0, 1));
    assert_eq!(report.findings[0].severity, Severity::Damage.name());
}

#[test]
fn a_check_gives_up_its_hold_before_clients_run_out_of_space() {
    // All their blocks are fewer than a hold may keep: it is space that runs short.
    let rig = Rig::on_disks_of(17, 4096);
    let walk = rig.inner().check.progress().clone();
    let file = rig.create(rig.root, "rewritten");
    rig.sim.block_on(async {
        rig.inner().engine.lock().await.space.hold(walk.clone());
    });
    // Each round frees what the round before wrote; all of it is held back.
    let mut rounds = 0;
    while !walk.stop.load(cairn_sys::lock::atomic::Ordering::Relaxed) {
        for at in 0..16 {
            rig.write(file, at << 16, &[rounds; 1 << 16]);
        }
        rig.point();
        rounds += 1;
        assert!(rounds < 250, "the hold ends");
    }
    assert!(rounds > 5, "{rounds} MiB fit beside the hold");
    rig.write(file, 0, &[9; 1 << 16]);
    rig.point();
    assert_eq!(rig.audit(), Vec::new());
}

#[test]
fn a_hold_does_not_take_more_memory_than_it_may() {
    let rig = Rig::new(19);
    let walk = rig.inner().check.progress().clone();
    let file = rig.create(rig.root, "rewritten");
    rig.sim.block_on(async {
        rig.inner().engine.lock().await.space.hold(walk.clone());
    });
    let stopped = || walk.stop.load(cairn_sys::lock::atomic::Ordering::Relaxed);
    let mut rounds = 0;
    while !stopped() {
        for at in 0..16 {
            rig.write(file, at << 16, &[rounds; 1 << 16]);
        }
        rig.point();
        rounds += 1;
        assert!(rounds < 250, "the hold ends");
    }
    let free = rig.sim.block_on(async { rig.inner().engine.lock().await.space.free_blocks() });
    assert!(free > 5_000, "it ended long before space ran short: {free} blocks are free");
}

#[test]
fn a_volume_out_of_balance_is_served_and_said_to_be() {
    let rig = Rig::new(18);
    rig.damage(|st| {
        st.file_mut(ROOT_INO).inode.links += 1;
        st.touch(ROOT_INO);
    });
    let kind = rig.volume().lock().file(ROOT_INO).inode.kind;
    assert_eq!(kind, InodeKind::Directory);
    // Changes go on, and points are not refused for what was wrong before.
    rig.mkdir(rig.root, "more");
    rig.point();
    assert_eq!(rig.node.stopped(), None);
    let links = |f: &&Finding| matches!(f, Finding::Links { ino: ROOT_INO, .. });
    assert_eq!(rig.audit().iter().filter(links).count(), 1);
}
