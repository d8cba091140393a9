//! Disks that hold the log are lost while nobody writes.

use core::time::Duration;

use crate::common::Rig;
use cairn_cf::{Manage, Managed};
use cairn_op::{
    ClientAddr, CreateHow, Credential, Name, ObjectRef, Op, OpCtx, ReadOnly, Reply, SetAttrs,
};
use cairn_raid_api::{AggregateAdmin, ColumnState};
use cairn_raid_group::{CreateOptions, RaidAggregate, RaidKind};
use cairn_units::{DiskUuid, Fsid, OpNo, VserverId};

fn ctx() -> OpCtx {
    OpCtx {
        vserver: VserverId::new(1),
        cred: Credential::root(),
        client: ClientAddr { ip: [127, 0, 0, 1].into(), port: 1 },
        op_no: OpNo::new(1),
        deadline: None,
        read_only: ReadOnly::No,
    }
}

fn name(n: u32) -> Name {
    Name::new(format!("f{n}").into_bytes().into()).expect("a name")
}

/// RAID-4 on three disks, with three spares.
fn rig(seed: u64) -> Rig {
    let mut rig = Rig::new(seed, RaidKind::Raid4, 6, 8192);
    let mut options = CreateOptions::new(RaidKind::Raid4, 3);
    options.overwrite = true;
    rig.node = None;
    rig.aggr = None;
    rig.power_cut();
    let made = RaidAggregate::create(rig.sim.world(), rig.drivers(), options);
    rig.aggr = Some(rig.sim.block_on(made).expect("an aggregate is made"));
    rig.mount();
    rig
}

fn root(rig: &Rig) -> ObjectRef {
    match rig.sim.block_on(rig.dmodule().manage(Manage::VolumeRoot { fsid: Fsid::new(1) })) {
        Ok(Managed::Root(root)) => root,
        other => panic!("{other:?}"),
    }
}

/// Takes out a disk on which the log lies, and waits until its group is whole again.
fn lose_a_log_disk(rig: &Rig) {
    let status = rig.sim.block_on(rig.dmodule().manage(Manage::AggregateStatus));
    let Ok(Managed::Aggregate(status)) = status else { panic!("{status:?}") };
    let disk = DiskUuid::parse(&status.log_disks[0]).expect("a disk");
    let (aggr, clock) = (rig.aggr.clone().expect("open"), rig.sim.world().clock);
    rig.sim.block_on(async move {
        aggr.fail_disk(disk).await.expect("taken out");
        loop {
            clock.sleep(Duration::from_millis(100)).await;
            let disks = aggr.disks();
            let mut members = disks.iter().filter(|d| d.position.is_some());
            if members.all(|d| d.state == ColumnState::Online) {
                return;
            }
        }
    });
}

/// The log of three disks in turn is lost, each disk rebuilt before the next one goes, and nobody
/// writes meanwhile: what was acknowledged before must be there after a power cut.
#[test]
fn log_disks_lost_one_after_the_other_keep_what_was_acknowledged() {
    for seed in 0..4 {
        let mut rig = rig(seed);
        let create =
            Manage::VolumeCreate { fsid: Fsid::new(1), name: "v".to_owned(), size_bytes: 16 << 20 };
        rig.sim.block_on(rig.dmodule().manage(create)).expect("a volume");
        let dir = root(&rig);
        for n in 0..10 {
            let how = CreateHow::Unchecked(SetAttrs::default());
            let op = Op::Create { dir, name: name(n), how };
            rig.sim.block_on(rig.dmodule().file(ctx(), op).wait()).expect("created");
        }
        for _ in 0..3 {
            lose_a_log_disk(&rig);
        }
        rig.power_cut();
        rig.restart();
        for n in 0..10 {
            let op = Op::Lookup { dir, name: name(n) };
            let found = rig.sim.block_on(rig.dmodule().file(ctx(), op).wait());
            assert!(matches!(found, Ok(Reply::Found { .. })), "seed {seed}, file {n}: {found:?}");
        }
        rig.check();
    }
}
