//! Space that is promised to callers while a point places blocks.

use std::sync::Arc;

use cairn_interleave::explore;
use cairn_units::Fsid;
use cairn_wafl_core::StorageManager;
use shuttle::future::{spawn, yield_now};

use crate::common::Node;

const VOLUMES: u64 = 2;

/// Watches the promise until the point under way is committed.
async fn watch(manager: Arc<StorageManager>, most: u64) {
    let before = manager.committed();
    loop {
        let allowed = manager.promised();
        // With the root, freed blocks come back.
        if manager.committed() != before {
            return;
        }
        yield_now().await;
        assert!(allowed <= most, "{allowed} blocks are promised, {most} are left");
    }
}

#[test]
fn blocks_on_their_way_from_dirty_to_placed_are_promised_to_nobody() {
    explore(1000, || async {
        let node = Node::make(VOLUMES).await;
        node.point().await;
        for n in 1..=VOLUMES {
            node.manager.touch_root(Fsid::new(n));
        }
        let watcher = spawn(watch(node.manager.clone(), node.manager.promised()));
        node.point().await;
        watcher.await.expect("the task ends");
        node.stop().await;
    });
}
