//! Interleaving tests of what no caller sees from outside (`tests/interleave` has the others).

use std::sync::Arc;

use cairn_interleave::{Ground, Shelf, explore, spawn, yield_now};
use cairn_raid_group::{CreateOptions, RaidAggregate, RaidKind};
use cairn_units::Fsid;

use crate::manager::Inner;
use crate::volume::ROOT_INO;
use crate::{Manage, StorageConfig, StorageManager};

const FSIDS: [Fsid; 2] = [Fsid::new(1), Fsid::new(2)];

/// Watches the promise until the point under way is committed.
async fn watch(inner: Arc<Inner>, most: u64) {
    let before = inner.aggr.root().map(|root| root.cp);
    loop {
        let allowed = inner.allowance(0);
        // With the root, freed blocks come back.
        if inner.aggr.root().map(|root| root.cp) != before {
            return;
        }
        yield_now().await;
        assert!(allowed <= most, "{allowed} blocks are promised, {most} are left");
    }
}

#[test]
fn blocks_on_their_way_from_dirty_to_placed_are_promised_to_nobody() {
    explore(1000, || async {
        let (ground, shelf) = (Ground::default(), Shelf::blank(4, 4096));
        let options = CreateOptions::new(RaidKind::Raid4, 0);
        let made = RaidAggregate::create(ground.world(), shelf.drivers(), options).await;
        let aggr = made.expect("an aggregate is made");
        let config = StorageConfig { cache_blocks: 2048, ..StorageConfig::default() };
        let opened = StorageManager::open(ground.world(), aggr.clone(), None, config).await;
        let node = opened.expect("the volumes open");
        for fsid in FSIDS {
            let name = format!("v{fsid}");
            let request = Manage::VolumeCreate { fsid, name, size_bytes: 1 << 20 };
            node.inner.clone().manage(request).await.expect("a volume is made");
        }
        let inner = node.inner.clone();
        inner.cp_now().await.expect("a point");
        for fsid in FSIDS {
            let volume = inner.volume(fsid).expect("it is there");
            let mut st = volume.lock();
            st.touch(ROOT_INO);
            inner.take_delta(&mut st);
        }
        let watcher = spawn(watch(inner.clone(), inner.allowance(0)));
        inner.cp_now().await.expect("a point");
        watcher.await;
        node.shutdown().await.expect("a clean stop");
        aggr.shutdown();
        drop(inner);
        drop(node);
        ground.settle().await;
    });
}
