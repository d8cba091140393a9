//! The buffer cache: readers, writers, consistency points and eviction meet on the same blocks,
//! with far less memory than there are blocks. A reader sees a whole version, not older than what
//! was acknowledged before it asked; nobody waits for ever; nothing that is dirty is driven out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_interleave::explore;
use cairn_op::Stability;
use shuttle::future::spawn;
use shuttle::rand::{Rng, thread_rng};

use crate::common::{Node, content, prepared, version_of};

const BLOCKS: u64 = 12;
/// Blocks of memory: less than one file.
const CACHE: usize = 6;

const _: () = assert!(BLOCKS == 12);

/// Versions of each block: acknowledged, and asked for.
#[derive(Default)]
struct Versions {
    told: [AtomicU64; 12],
    asked: [AtomicU64; 12],
}

impl Versions {
    fn told(&self, fbn: u64) -> u64 {
        self.told[usize::try_from(fbn).expect("small")].load(Ordering::SeqCst)
    }
    fn asked(&self, fbn: u64) -> u64 {
        self.asked[usize::try_from(fbn).expect("small")].load(Ordering::SeqCst)
    }
}

async fn reader(node: Arc<Node>, versions: Arc<Versions>, rounds: u64) {
    let root = node.root(1).await;
    let file = node.lookup(root, "f0").await.expect("prepared");
    for _ in 0..rounds {
        let fbn = thread_rng().gen_range(0..BLOCKS);
        let told = versions.told(fbn);
        let bytes = node.read(file, fbn).await;
        let version = version_of(&bytes, 0, fbn).expect("a whole version");
        let asked = versions.asked(fbn);
        assert!((told..=asked).contains(&version), "block {fbn}: {version}, {told}..={asked}");
    }
}

async fn writer(node: Arc<Node>, versions: Arc<Versions>, first: u64) {
    let root = node.root(1).await;
    let file = node.lookup(root, "f0").await.expect("prepared");
    for round in 1..=2 {
        for fbn in (first..BLOCKS).step_by(4) {
            let at = usize::try_from(fbn).expect("small");
            versions.asked[at].store(round, Ordering::SeqCst);
            let data = content(0, fbn, round);
            node.write(file, fbn, &data, Stability::Unstable).await.expect("written");
            versions.told[at].store(round, Ordering::SeqCst);
        }
    }
}

#[test]
fn readers_see_whole_versions_that_are_new_enough_whatever_is_driven_out() {
    let image = prepared(1, 1, BLOCKS);
    explore(1000, move || {
        let image = image.clone();
        async move {
            let node = Arc::new(Node::open(&image, CACHE).await);
            let versions = Arc::new(Versions::default());
            let points = spawn({
                let node = node.clone();
                async move {
                    node.point().await;
                    node.point().await;
                }
            });
            let tasks = [
                spawn(reader(node.clone(), versions.clone(), 6)),
                spawn(reader(node.clone(), versions.clone(), 6)),
                spawn(writer(node.clone(), versions.clone(), 0)),
                spawn(writer(node.clone(), versions.clone(), 1)),
                points,
            ];
            for task in tasks {
                task.await.expect("it ends");
            }
            node.point().await;
            node.sound().await;
            reader(node.clone(), versions, BLOCKS).await;
            node.stop().await;
        }
    });
}

#[test]
fn two_readers_of_one_block_that_is_not_in_memory_both_get_it() {
    let image = prepared(1, 1, BLOCKS);
    explore(3000, move || {
        let image = image.clone();
        async move {
            let node = Arc::new(Node::open(&image, CACHE).await);
            let root = node.root(1).await;
            let file = node.lookup(root, "f0").await.expect("prepared");
            let read = |node: Arc<Node>| async move {
                for fbn in 0..3 {
                    assert_eq!(version_of(&node.read(file, fbn).await, 0, fbn), Some(0));
                }
            };
            let readers = [spawn(read(node.clone())), spawn(read(node.clone()))];
            for reader in readers {
                reader.await.expect("it ends");
            }
            node.stop().await;
        }
    });
}
