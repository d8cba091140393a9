//! The freeze of a consistency point: clients change volumes while it begins; every change is in
//! exactly one point, and the log has the rest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cairn_interleave::{Image, Keep, explore};
use cairn_op::Stability;
use shuttle::future::spawn;
use shuttle::rand::{Rng, thread_rng};

use crate::common::{Node, content, prepared, version_of};

const CLIENTS: u64 = 3;
const CHANGES: u64 = 3;

const _: () = assert!(CLIENTS == 3);

/// What clients were told, and what they asked for.
#[derive(Default)]
struct Told {
    /// By client: version of its block that was acknowledged as stable, and asked for.
    stable: [AtomicU64; 3],
    asked: [AtomicU64; 3],
    /// By client: files made.
    made: [AtomicU64; 3],
}

struct Cut {
    image: Image,
    stable: Vec<u64>,
    asked: Vec<u64>,
    made: Vec<u64>,
}

impl Told {
    fn cut(&self, image: Image) -> Cut {
        let get = |all: &[AtomicU64]| all.iter().map(|n| n.load(Ordering::SeqCst)).collect();
        Cut { image, stable: get(&self.stable), asked: get(&self.asked), made: get(&self.made) }
    }
}

async fn client(node: Arc<Node>, told: Arc<Told>, n: u64) {
    let root = node.root(1 + n % 2).await;
    let file = node.lookup(root, &format!("f{n}")).await.expect("prepared");
    let at = usize::try_from(n).expect("small");
    for round in 1..=CHANGES {
        told.asked[at].store(round, Ordering::SeqCst);
        let written = node.write(file, 0, &content(n, 0, round), Stability::FileSync).await;
        written.expect("written");
        told.stable[at].store(round, Ordering::SeqCst);
        node.create(root, &format!("c{n}-{round}")).await;
        told.made[at].store(round, Ordering::SeqCst);
    }
}

/// A second node on what the cut left: everything acknowledged is there, once, and adds up.
async fn examine(cut: Cut) {
    let node = Node::open(&cut.image, 2048).await;
    for n in 0..CLIENTS {
        let at = usize::try_from(n).expect("small");
        let root = node.root(1 + n % 2).await;
        let file = node.lookup(root, &format!("f{n}")).await.expect("prepared");
        let bytes = node.read(file, 0).await;
        let version = version_of(&bytes, n, 0).expect("a whole version");
        let (stable, asked) = (cut.stable[at], cut.asked[at]);
        assert!((stable..=asked).contains(&version), "client {n}: {version}, {stable}..={asked}");
        for round in 1..=cut.made[at] {
            let there = node.lookup(root, &format!("c{n}-{round}")).await;
            assert!(there.is_some(), "client {n}: file {round} is gone");
        }
    }
    node.point().await;
    node.sound().await;
    node.stop().await;
}

#[test]
fn every_change_is_in_exactly_one_point_or_in_the_log() {
    let image = prepared(2, CLIENTS, 1);
    explore(1000, move || {
        let image = image.clone();
        async move {
            let node = Arc::new(Node::open(&image, 2048).await);
            let told = Arc::new(Told::default());
            let cuts = Arc::new(Mutex::new(Vec::new()));
            let clients: Vec<_> =
                (0..CLIENTS).map(|n| spawn(client(node.clone(), told.clone(), n))).collect();
            let points = {
                let (node, told, cuts) = (node.clone(), told.clone(), cuts.clone());
                spawn(async move {
                    for _ in 0..2 {
                        node.point().await;
                        let keep =
                            if thread_rng().gen_bool(0.5) { Keep::All } else { Keep::Durable };
                        let cut = told.cut(node.shelf.cut(keep));
                        cuts.lock().unwrap().push(cut);
                    }
                })
            };
            let cutter = {
                let (node, told, cuts) = (node.clone(), told.clone(), cuts.clone());
                spawn(async move {
                    for _ in 0..thread_rng().gen_range(0..200) {
                        shuttle::future::yield_now().await;
                    }
                    // Acknowledged first, then the disks: what comes between may be there too.
                    let cut = told.cut(node.shelf.cut(Keep::Durable));
                    cuts.lock().unwrap().push(cut);
                })
            };
            for task in clients.into_iter().chain([points, cutter]) {
                task.await.expect("the task ends");
            }
            node.point().await;
            node.sound().await;
            let last = told.cut(node.shelf.cut(Keep::Durable));
            node.stop().await;
            let one = thread_rng().gen_range(0..3);
            let cut = cuts.lock().unwrap().swap_remove(one);
            examine(cut).await;
            examine(last).await;
        }
    });
}
