//! Volume operations that are asked for twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::Rig;
use cairn_cf::{DModule, Manage, Managed};
use cairn_sim::CutPolicy;
use cairn_units::Fsid;

fn volumes(rig: &Rig) -> usize {
    let listed = rig.sim.block_on(rig.node().manage(Manage::VolumeList));
    match listed {
        Ok(Managed::Volumes(all)) => all.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_retried_volume_delete_is_not_answered_before_the_first_is_stable() {
    for seed in 0..40 {
        let mut rig = Rig::small(seed);
        for fsid in [1, 2].map(Fsid::new) {
            let name = format!("v{fsid}");
            let create = Manage::VolumeCreate { fsid, name, size_bytes: 8 << 20 };
            rig.sim.block_on(rig.node().manage(create)).expect("a volume is made");
        }
        let world = rig.sim.world();
        let answered = Arc::new(AtomicBool::new(false));
        let node = rig.node();
        // Both deletions queue behind a point that is under way.
        let point = node.manage(Manage::ConsistencyPoint);
        world.spawn.spawn("point", Box::pin(async move { drop(point.await) }));
        rig.sim.run_for(Duration::from_micros(50));
        for name in ["first delete", "second delete"] {
            let delete = node.manage(Manage::VolumeDelete { fsid: Fsid::new(2) });
            let answered = answered.clone();
            let task = async move {
                delete.await.expect("deleting twice is fine");
                answered.store(true, Ordering::SeqCst);
            };
            world.spawn.spawn(name, Box::pin(task));
        }
        while !answered.load(Ordering::SeqCst) {
            rig.sim.run_for(Duration::from_micros(1));
        }
        drop(node);
        rig.sim.power_cut_with(&CutPolicy::DropAll);
        rig.after_cut();
        rig.restart();
        assert_eq!(volumes(&rig), 1, "seed {seed}: an answered deletion came back");
    }
}
