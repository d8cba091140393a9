//! Blocks on their way from the consistency point to who may have them: what a point frees is
//! given out again by the next one, unless a check still walks the state that reaches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_cf::{Manage, Managed};
use cairn_interleave::{Keep, explore};
use cairn_op::{Op, Stability, Status};
use shuttle::future::{spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};

use crate::common::{Node, content, name, prepared_full, version_of};

const FILES: u64 = 3;
const BLOCKS: u64 = 10;
/// Filler files removed, so that there is room for some rounds without a point.
const REMOVED: u64 = 2;

/// Versions of each file's blocks that were acknowledged.
type Told = [[AtomicU64; 10]; 3];
const _: () = assert!(FILES == 3 && BLOCKS == 10);

fn place(n: u64) -> usize {
    usize::try_from(n).expect("small")
}

/// Overwrites a file again and again, and makes and removes another.
async fn client(node: Arc<Node>, told: Arc<Told>, n: u64) {
    let root = node.root(1).await;
    let file = node.lookup(root, &format!("f{n}")).await.expect("prepared");
    for round in 1..=3 {
        for fbn in 0..BLOCKS {
            let data = content(n, fbn, round);
            match node.write(file, fbn, &data, Stability::Unstable).await {
                Ok(()) => told[place(n)][place(fbn)].store(round, Ordering::SeqCst),
                Err(Status::NoSpace) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        let text = format!("t{n}");
        let short = node.create(root, &text).await;
        let written = node.write(short, 0, &content(9, 0, round), Stability::FileSync).await;
        assert!(matches!(written, Ok(()) | Err(Status::NoSpace)), "{written:?}");
        node.call(Op::Remove { dir: root, name: name(&text) }).await.expect("removed");
    }
}

async fn points(node: Arc<Node>) {
    for _ in 0..6 {
        node.point().await;
    }
}

/// A check of everything while all goes on. It may be given up for the writers' sake.
async fn check(node: Arc<Node>) {
    node.manage(Manage::CheckStart { only: None, repair: false, data: true }).await;
    loop {
        match node.manage(Manage::CheckStatus).await {
            Managed::Check(report) if report.running => yield_now().await,
            Managed::Check(report) => {
                let findings = report.findings;
                assert!(findings.is_empty() || report.failed.is_some(), "{findings:#?}");
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn freed_blocks_are_given_out_when_nothing_reaches_them_any_more() {
    let image = prepared_full(FILES, BLOCKS, REMOVED);
    explore(200, move || {
        let image = image.clone();
        async move {
            let node = Arc::new(Node::open(&image, 2048).await);
            let told = Arc::new(Told::default());
            let (one, other) =
                (client(node.clone(), told.clone(), 0), client(node.clone(), told.clone(), 1));
            let cutter = spawn({
                let node = node.clone();
                async move {
                    for _ in 0..thread_rng().gen_range(0..400) {
                        yield_now().await;
                    }
                    node.shelf.cut(Keep::Durable)
                }
            });
            let tasks =
                [spawn(one), spawn(other), spawn(points(node.clone())), spawn(check(node.clone()))];
            for task in tasks {
                task.await.expect("it ends");
            }
            // The root of any moment reaches nothing that was given out since.
            let cut = Node::open(&cutter.await.expect("it ends"), 2048).await;
            cut.sound().await;
            cut.stop().await;
            node.point().await;
            node.sound().await;
            let root = node.root(1).await;
            for n in 0..FILES {
                let file = node.lookup(root, &format!("f{n}")).await.expect("prepared");
                for fbn in 0..BLOCKS {
                    let told = told[place(n)][place(fbn)].load(Ordering::SeqCst);
                    let bytes = node.read(file, fbn).await;
                    assert_eq!(version_of(&bytes, n, fbn), Some(told), "f{n} block {fbn}");
                }
            }
            node.stop().await;
        }
    });
}
