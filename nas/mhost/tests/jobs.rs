//! Jobs are killed at every step and end as if nothing had happened.

#![expect(clippy::unwrap_used, reason = "test helpers outside test functions")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::common::{FakeNode, Kill, TempDir, start};
use cairn_mhost::api::{
    DiskAdd, DiskReplace, GroupAdd, RaidTypeChange, VolumeChange, VolumeCreate,
};
use cairn_mhost::db::Db;
use cairn_mhost::jobs::{Job, JobState};
use cairn_mhost::model::{ExportRule, RuleSquash};
use cairn_mhost::{ApiError, MHost};
use cairn_units::DiskUuid;

/// One run of the node: its own runtime, which takes all tasks with it when it dies.
fn run<T>(work: impl AsyncFnOnce(cairn_sys::World) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = cairn_sys::real::world(runtime.handle().clone()).unwrap();
    runtime.block_on(work(world))
}

fn volume(name: &str) -> VolumeCreate {
    VolumeCreate {
        name: name.to_owned(),
        size_bytes: 1 << 30,
        junction: None,
        rules: vec![ExportRule::everybody(RuleSquash::None)],
    }
}

/// A thing to order and how the world looks afterwards.
#[derive(Clone, Copy, Debug)]
enum Order {
    Create,
    Delete,
    Resize,
    Rename,
    AddDisk,
    FailDisk,
    ReplaceDisk,
    RaidType,
    Grow,
    AddGroup,
    Scrub,
}

async fn submit(mhost: &Arc<MHost>, order: Order) -> Result<Job, ApiError> {
    let change =
        |size_bytes, name: Option<&str>| VolumeChange { size_bytes, name: name.map(str::to_owned) };
    match order {
        Order::Create => mhost.create_volume(volume("new")),
        Order::Delete => mhost.delete_volume("old"),
        Order::Resize => mhost.change_volume("old", change(Some(5 << 30), None)),
        Order::Rename => mhost.change_volume("old", change(None, Some("other"))),
        Order::AddDisk => mhost.add_disks(DiskAdd { locations: vec!["/dev/fake9".to_owned()] }),
        Order::FailDisk => mhost.fail_disk(&DiskUuid::new([1; 16]).to_string()).await,
        Order::ReplaceDisk => {
            let with = Some(DiskUuid::new([4; 16]).to_string());
            mhost.replace_disk(&DiskUuid::new([1; 16]).to_string(), DiskReplace { with }).await
        }
        Order::RaidType => {
            mhost.set_raid_type(0, RaidTypeChange { raid: "raid_dp".to_owned() }).await
        }
        Order::Grow => mhost.grow_group(0).await,
        Order::AddGroup => mhost.add_group(GroupAdd { disks: 3 }).await,
        Order::Scrub => mhost.start_scrub(),
    }
}

/// Everything that an order could have changed, as text.
async fn picture(mhost: &MHost, node: &FakeNode, table: &crate::common::Published) -> String {
    let below = node.model_volumes().await;
    let disks: Vec<String> = {
        let all = node.disks.lock().unwrap();
        let lines = all.disks.iter().map(|d| format!("{} {} {:?}", d.location, d.role, d.rebuild));
        lines.chain([format!("groups {:?} {}", all.groups, all.kind)]).collect()
    };
    let shown: Vec<String> = table
        .lock()
        .unwrap()
        .iter()
        .map(|v| format!("{} {} {:?} {}", v.fsid, v.junction, v.root.is_some(), v.rules.len()))
        .collect();
    let names = ["old", "new", "other"].map(|n| format!("{:?}", mhost.volume(n).ok()));
    format!("{below:?}\n{disks:?}\n{shown:?}\n{names:?}")
}

impl FakeNode {
    async fn model_volumes(&self) -> Vec<(u64, String, u64)> {
        use cairn_cf::{DModule, Manage, Managed};
        match self.model.manage(Manage::VolumeList).await {
            Ok(Managed::Volumes(v)) => {
                v.into_iter().map(|v| (v.fsid.get(), v.name, v.size_bytes)).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Runs `order` with the node killed at `kill` and started again; what the world looks like then.
fn outcome(order: Order, kill: Kill, name: &str) -> (String, bool) {
    let dir = TempDir::new(name);
    let node = run(async |world| FakeNode::new(&world));
    let mut was_killed = false;
    let id = run(async |world| {
        let (mhost, _) = start(&dir, &world, &node).await;
        let old = mhost.create_volume(volume("old")).unwrap();
        assert_eq!(mhost.wait_job(old.id).await.unwrap().state, JobState::Done);
        node.changes.store(0, Ordering::SeqCst);
        *node.kill.lock().unwrap() = kill;
        let job = submit(&mhost, order).await.unwrap();
        tokio::select! {
            ended = mhost.wait_job(job.id) => assert_eq!(ended.unwrap().state, JobState::Done),
            () = node.hung.notified() => was_killed = true,
        }
        job.id
    });
    *node.kill.lock().unwrap() = Kill::Never;
    let picture = run(async |world| {
        let (mhost, table) = start(&dir, &world, &node).await;
        let ended = mhost.wait_job(id).await.unwrap();
        assert_eq!(ended.state, JobState::Done, "{order:?} {kill:?}: {}", ended.message);
        picture(&mhost, &node, &table).await
    });
    (picture, was_killed)
}

#[test]
fn job_killed_at_any_order_to_the_storage_ends_as_if_nothing_had_happened() {
    for order in [
        Order::Create,
        Order::Delete,
        Order::Resize,
        Order::Rename,
        Order::AddDisk,
        Order::FailDisk,
        Order::ReplaceDisk,
        Order::RaidType,
        Order::Grow,
        Order::AddGroup,
        Order::Scrub,
    ] {
        let (expected, _) = outcome(order, Kill::Never, "jobs");
        let mut kills = 0;
        for number in 1.. {
            let runs =
                [Kill::Before(number), Kill::After(number)].map(|k| outcome(order, k, "jobs"));
            for (seen, was_killed) in &runs {
                assert_eq!(*seen, expected, "{order:?} at {number}");
                kills += u32::from(*was_killed);
            }
            if !runs[1].1 {
                break;
            }
        }
        assert!(kills >= 2, "{order:?} was never killed");
    }
}

#[test]
fn refused_job_leaves_nothing_behind_and_says_what_to_do() {
    let dir = TempDir::new("refused");
    run(async |world| {
        let node = FakeNode::new(&world);
        let (mhost, table) = start(&dir, &world, &node).await;
        let locations = vec!["/dev/bad".to_owned()];
        let job = mhost.add_disks(DiskAdd { locations }).unwrap();
        let ended = mhost.wait_job(job.id).await.unwrap();
        assert_eq!(ended.state, JobState::Failed);
        assert!(ended.message.contains("/dev/bad: no such device"), "{}", ended.message);
        assert!(!ended.what_to_do.is_empty());
        assert!(table.lock().unwrap().is_empty());
    });
    let db = cairn_mhost::db::Db::open(&dir.0.join("config.redb")).unwrap();
    assert_eq!(MHost::added_disks(&db).unwrap(), Vec::<String>::new());
}

#[test]
fn replace_orders_that_make_no_sense_are_refused_and_a_finished_one_names_the_disk() {
    let dir = TempDir::new("replace");
    run(async |world| {
        let node = FakeNode::new(&world);
        let (mhost, _) = start(&dir, &world, &node).await;
        let disk = |n: u8| DiskUuid::new([n; 16]).to_string();
        let with = |n: u8| DiskReplace { with: Some(disk(n)) };
        let status = |result: Result<Job, ApiError>| result.unwrap_err().status;
        assert_eq!(status(mhost.replace_disk("rubbish", DiskReplace::default()).await), 400);
        assert_eq!(status(mhost.replace_disk(&disk(9), DiskReplace::default()).await), 404);
        assert_eq!(status(mhost.replace_disk(&disk(1), with(9)).await), 404);
        let raid = |raid: &str| RaidTypeChange { raid: raid.to_owned() };
        assert_eq!(status(mhost.set_raid_type(0, raid("raid5")).await), 400);
        assert_eq!(status(mhost.set_raid_type(7, raid("raid4")).await), 404);
        let job = mhost.replace_disk(&disk(1), with(2)).await.unwrap();
        let ended = mhost.wait_job(job.id).await.unwrap();
        assert_eq!((ended.state, ended.message.as_str()), (JobState::Failed, "no spare"));
        let job = mhost.replace_disk(&disk(1), DiskReplace::default()).await.unwrap();
        let ended = mhost.wait_job(job.id).await.unwrap();
        assert_eq!(ended.state, JobState::Done);
        assert!(ended.message.contains("may be pulled"), "{}", ended.message);
        let roles = node.disks.lock().unwrap().disks.iter().map(|d| d.role).collect::<Vec<_>>();
        assert_eq!(roles, ["failed", "data", "row parity", "data"]);
    });
}

#[test]
fn second_job_about_the_same_volume_is_refused_while_the_first_runs() {
    let dir = TempDir::new("busy");
    run(async |world| {
        let node = FakeNode::new(&world);
        let (mhost, _) = start(&dir, &world, &node).await;
        let made = mhost.create_volume(volume("old")).unwrap();
        mhost.wait_job(made.id).await.unwrap();
        *node.kill.lock().unwrap() = Kill::Before(2);
        let first = submit(&mhost, Order::Resize).await.unwrap();
        node.hung.notified().await;
        let refused = submit(&mhost, Order::Delete).await.unwrap_err();
        assert_eq!(refused.status, 409);
        assert!(refused.what_to_do.contains(&first.id.to_string()), "{refused}");
    });
}

#[test]
fn fsids_are_never_given_out_twice() {
    let dir = TempDir::new("fsid");
    let node = run(async |world| FakeNode::new(&world));
    let mut last = 0;
    for _ in 0..3 {
        last = run(async |world| {
            let (mhost, _) = start(&dir, &world, &node).await;
            let made = mhost.create_volume(volume("v")).unwrap();
            mhost.wait_job(made.id).await.unwrap();
            let fsid = mhost.volume("v").unwrap().fsid;
            assert!(fsid > last, "fsid {fsid} came again");
            let gone = mhost.delete_volume("v").unwrap();
            assert_eq!(mhost.wait_job(gone.id).await.unwrap().state, JobState::Done);
            fsid
        });
    }
}

#[test]
fn the_database_is_free_when_a_stop_has_ended() {
    let dir = TempDir::new("free");
    let path = dir.0.join("config.redb");
    run(async |world| {
        let node = FakeNode::new(&world);
        // The watch alone; a job that has not begun; one taken up that is at its first step.
        for jobs in 0..3 {
            let (mhost, _) = start(&dir, &world, &node).await;
            match jobs {
                0 => {}
                1 => drop(submit(&mhost, Order::Scrub).await.unwrap()),
                _ => tokio::task::yield_now().await,
            }
            mhost.stop().await;
            drop(mhost);
            drop(Db::open(&path).expect("nobody holds it"));
        }
    });
}
