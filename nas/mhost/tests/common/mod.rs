//! A D-module for the M-host's tests: the reference model's volumes, and disks that only count.

#![expect(clippy::unwrap_used, reason = "test helpers outside test functions")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cairn_cf::*;
use cairn_mhost::db::Db;
use cairn_mhost::{MHost, Publish, PublishedVolume};
use cairn_model::ModelNode;
use cairn_op::{ObjectRef, Op, OpCtx, OpResult, Submitted, Verifier};
use cairn_sys::{BoxFuture, World};
use cairn_units::{DiskUuid, GroupNo};

/// A disk that only counts.
#[derive(Clone)]
pub struct FakeDisk {
    pub uuid: DiskUuid,
    pub location: String,
    pub role: &'static str,
    pub rebuild: Option<(u64, u64)>,
}

pub struct Disks {
    pub disks: Vec<FakeDisk>,
    pub groups: Vec<u16>,
    /// Layout of group 0.
    pub kind: String,
    /// The disk that is being copied, and its role.
    pub copied: Option<(DiskUuid, &'static str)>,
    pub scrub: Option<u64>,
    pub scrubs: u64,
}

/// Where a call hangs for ever, as if the node were killed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    Never,
    /// Before the n-th changing order takes effect.
    Before(u64),
    /// After it took effect, before the answer.
    After(u64),
}

pub struct FakeNode {
    pub model: Arc<ModelNode>,
    pub disks: Mutex<Disks>,
    pub kill: Mutex<Kill>,
    pub changes: AtomicU64,
    pub hung: tokio::sync::Notify,
}

const STRIPES: u64 = 4;

impl FakeNode {
    pub fn new(world: &World) -> Arc<Self> {
        let disk = |n: u8, role| FakeDisk {
            uuid: DiskUuid::new([n; 16]),
            location: format!("/dev/fake{n}"),
            role,
            rebuild: None,
        };
        let disks = vec![disk(1, "data"), disk(2, "data"), disk(3, "row parity"), disk(4, "spare")];
        Arc::new(Self {
            model: Arc::new(ModelNode::new(world.clone())),
            disks: Mutex::new(Disks {
                disks,
                groups: vec![2],
                kind: "raid4".to_owned(),
                copied: None,
                scrub: None,
                scrubs: 0,
            }),
            kill: Mutex::new(Kill::Never),
            changes: AtomicU64::new(0),
            hung: tokio::sync::Notify::new(),
        })
    }

    fn disk_list(&self) -> Vec<DiskReport> {
        let mut all = self.disks.lock().unwrap();
        let reports = all.disks.iter().map(|d| DiskReport {
            disk: d.uuid,
            location: d.location.clone(),
            class: "simulated".to_owned(),
            size_bytes: 1 << 30,
            role: d.role.to_owned(),
            position: None,
            state: if d.rebuild.is_some() { "rebuilding" } else { "online" }.to_owned(),
            rebuild: d.rebuild,
            counters: [0; 6],
        });
        let out = reports.collect();
        // Each look is a step of the rebuild.
        for disk in &mut all.disks {
            disk.rebuild = disk.rebuild.map(|(n, t)| (n + 1, t)).filter(|(n, t)| n < t);
        }
        let whole = all.disks.iter().any(|d| d.role == "copy" && d.rebuild.is_none());
        if let Some((old, role)) = all.copied.filter(|_| whole) {
            all.copied = None;
            for disk in &mut all.disks {
                if disk.role == "copy" {
                    disk.role = role;
                } else if disk.uuid == old {
                    disk.role = "failed";
                }
            }
        }
        out
    }

    fn aggregate(&self) -> AggregateStatus {
        let all = self.disks.lock().unwrap();
        let rebuilding = all.disks.iter().any(|d| d.rebuild.is_some());
        let groups = all.groups.iter().zip(0u16..).map(|(n, group)| GroupReport {
            group: GroupNo::new(group),
            kind: all.kind.clone(),
            data_disks: *n,
            state: if rebuilding { "rebuilding" } else { "normal" }.to_owned(),
            size_bytes: 2 << 30,
        });
        AggregateStatus {
            uuid: "aggregate".to_owned(),
            size_bytes: 2 << 30,
            used_bytes: 0,
            cp_count: 7,
            groups: groups.collect(),
            log_disks: Vec::new(),
            faults: Vec::new(),
        }
    }

    fn scrub(&self) -> ScrubReport {
        let mut all = self.disks.lock().unwrap();
        let done = all.scrub.unwrap_or(STRIPES);
        let running = all.scrub.is_some();
        all.scrub = all.scrub.map(|n| n + 1).filter(|n| *n < STRIPES);
        ScrubReport {
            running,
            finished: all.scrubs > 0,
            progress: (done, STRIPES),
            ..ScrubReport::default()
        }
    }

    async fn change(&self, request: Manage) -> Result<Managed, ManageError> {
        let refused = |text: &str| Err(ManageError::Refused(text.to_owned()));
        let mut all = self.disks.lock().unwrap();
        match request {
            Manage::DiskAdd { locations } => {
                if let Some(l) = locations.iter().find(|l| l.contains("bad")) {
                    return refused(&format!("{l}: no such device"));
                }
                let mut uuids = Vec::new();
                for location in locations {
                    if all.disks.iter().any(|d| d.location == location) {
                        return refused("attached twice");
                    }
                    let n = u8::try_from(all.disks.len() + 1).unwrap();
                    let uuid = DiskUuid::new([n; 16]);
                    all.disks.push(FakeDisk { uuid, location, role: "spare", rebuild: None });
                    uuids.push(uuid);
                }
                Ok(Managed::DisksAdded(uuids))
            }
            Manage::DiskFail { disk } => {
                let Some(d) = all.disks.iter_mut().find(|d| d.uuid == disk) else {
                    return refused("no such disk");
                };
                if d.role == "failed" {
                    return refused("failed twice");
                }
                let role = std::mem::replace(&mut d.role, "failed");
                if let Some(spare) = all.disks.iter_mut().find(|d| d.role == "spare") {
                    (spare.role, spare.rebuild) = (role, Some((0, STRIPES)));
                }
                Ok(Managed::Done)
            }
            Manage::DiskReplace { disk, with } => {
                let Some(role) = all.disks.iter().find(|d| d.uuid == disk).map(|d| d.role) else {
                    return refused("no such disk");
                };
                if role == "failed" {
                    return refused("copied twice");
                }
                if let Some(copy) = all.disks.iter().find(|d| d.role == "copy") {
                    return Ok(Managed::DisksAdded(vec![copy.uuid]));
                }
                let fits = |d: &&mut FakeDisk| with.is_none_or(|w| w == d.uuid);
                let spare = all.disks.iter_mut().filter(|d| d.role == "spare").find(fits);
                let Some(spare) = spare else { return refused("no spare") };
                (spare.role, spare.rebuild) = ("copy", Some((0, STRIPES)));
                let uuid = spare.uuid;
                all.copied = Some((disk, role));
                Ok(Managed::DisksAdded(vec![uuid]))
            }
            Manage::GroupKind { group, kind } => {
                if all.kind == kind {
                    return Ok(Managed::Done);
                }
                assert_eq!(group.get(), 0);
                if kind == "raid_dp" {
                    let spare = all.disks.iter_mut().find(|d| d.role == "spare");
                    let Some(spare) = spare else { return refused("no spare") };
                    (spare.role, spare.rebuild) = ("diagonal parity", Some((0, STRIPES)));
                }
                all.kind = kind;
                Ok(Managed::Done)
            }
            Manage::GroupGrow { group } => {
                all.groups[usize::from(group.get())] += 1;
                Ok(Managed::Done)
            }
            Manage::GroupAdd { disks } => {
                all.groups.push(disks - 1);
                Ok(Managed::GroupAdded(GroupNo::new(u16::try_from(all.groups.len() - 1).unwrap())))
            }
            Manage::ScrubStart => {
                all.scrub = Some(0);
                all.scrubs += 1;
                Ok(Managed::Done)
            }
            other => {
                drop(all);
                self.model.manage(other).await
            }
        }
    }
}

fn changes(request: &Manage) -> bool {
    !matches!(
        request,
        Manage::VolumeList
            | Manage::VolumeRoot { .. }
            | Manage::AggregateStatus
            | Manage::DiskList
            | Manage::ScrubStatus
            | Manage::CheckStatus
            | Manage::Explain { .. }
            | Manage::Counters
    )
}

/// The fake behind an `Arc`, so that its futures may hold it.
pub struct Shared(pub Arc<FakeNode>);

impl DModule for Shared {
    fn file(&self, ctx: OpCtx, op: Op<ObjectRef>) -> Submitted<OpResult<ObjectRef>> {
        self.0.model.file(ctx, op)
    }
    fn manage(&self, request: Manage) -> BoxFuture<Result<Managed, ManageError>> {
        let node = self.0.clone();
        Box::pin(async move {
            match request {
                Manage::DiskList => return Ok(Managed::Disks(node.disk_list())),
                Manage::AggregateStatus => return Ok(Managed::Aggregate(node.aggregate())),
                Manage::ScrubStatus => return Ok(Managed::Scrub(node.scrub())),
                _ => {}
            }
            if !changes(&request) {
                return node.model.manage(request).await;
            }
            let number = node.changes.fetch_add(1, Ordering::SeqCst) + 1;
            let kill = *node.kill.lock().unwrap();
            if kill == Kill::Before(number) {
                node.hung.notify_one();
                std::future::pending::<()>().await;
            }
            let answer = node.change(request).await;
            if kill == Kill::After(number) {
                node.hung.notify_one();
                std::future::pending::<()>().await;
            }
            answer
        })
    }
    fn verifier(&self) -> Verifier {
        self.0.model.verifier()
    }
}

/// A directory that goes away.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cairn-mhost-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// What was published last.
pub type Published = Arc<Mutex<Vec<PublishedVolume>>>;

pub fn publisher() -> (Publish, Published) {
    let table: Published = Arc::default();
    let sink = table.clone();
    let publish: Publish = Arc::new(move |volumes| {
        *sink.lock().unwrap() = volumes;
        Ok(())
    });
    (publish, table)
}

pub async fn start(dir: &TempDir, world: &World, node: &Arc<FakeNode>) -> (Arc<MHost>, Published) {
    let db = Arc::new(Db::open(&dir.0.join("config.redb")).unwrap());
    let (publish, table) = publisher();
    let dmodule = Arc::new(Shared(node.clone()));
    let mhost = MHost::start(db, world.clone(), dmodule, publish).await.unwrap();
    (mhost, table)
}
