//! Blocks on their way from the consistency point to who may have them: what a point frees is
//! given out again by the next one, unless a check still walks the state that reaches it.

mod common;

use std::sync::Arc;

use cairn_cf::{Manage, Managed};
use cairn_interleave::{Keep, explore};
use cairn_op::{Op, Stability};
use common::{Node, content, name, prepared, version_of};
use shuttle::future::{spawn, yield_now};

const FILES: u64 = 3;
const BLOCKS: u64 = 6;

/// Overwrites a file again and again, and makes and removes another.
async fn client(node: Arc<Node>, n: u64) {
    let root = node.root(1).await;
    let file = node.lookup(root, &format!("f{n}")).await.expect("prepared");
    for round in 1..=2 {
        for fbn in 0..BLOCKS {
            let data = content(n, fbn, round);
            node.write(file, fbn, &data, Stability::Unstable).await.expect("written");
        }
        let (text, short) = (format!("t{n}"), node.create(root, &format!("t{n}")).await);
        node.write(short, 0, &content(9, 0, round), Stability::FileSync).await.expect("written");
        let removed = node.call(Op::Remove { dir: root, name: name(&text) }).await;
        removed.expect("removed");
    }
}

async fn points(node: Arc<Node>) {
    for _ in 0..3 {
        node.point().await;
    }
}

/// A check of everything while all goes on.
async fn check(node: Arc<Node>) {
    node.manage(Manage::CheckStart { only: None, repair: false }).await;
    loop {
        match node.manage(Manage::CheckStatus).await {
            Managed::Check(report) if report.running => yield_now().await,
            Managed::Check(report) => {
                assert_eq!(report.failed, None);
                assert!(report.findings.is_empty(), "{:#?}", report.findings);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn freed_blocks_are_given_out_when_nothing_reaches_them_any_more() {
    let image = prepared(1, FILES, BLOCKS);
    explore(30, move || {
        let image = image.clone();
        async move {
            let node = Arc::new(Node::open(&image, 2048).await);
            let tasks = [
                spawn(client(node.clone(), 0)),
                spawn(client(node.clone(), 1)),
                spawn(points(node.clone())),
                spawn(check(node.clone())),
            ];
            for task in tasks {
                task.await.expect("it ends");
            }
            let again = Node::open(&node.shelf.cut(Keep::Durable), 2048).await;
            again.sound().await;
            again.stop().await;
            node.point().await;
            node.sound().await;
            let root = node.root(1).await;
            for (n, version) in [(0, 2), (1, 2), (2, 0)] {
                let file = node.lookup(root, &format!("f{n}")).await.expect("prepared");
                for fbn in 0..BLOCKS {
                    let bytes = node.read(file, fbn).await;
                    assert_eq!(version_of(&bytes, n, fbn), Some(version), "f{n} block {fbn}");
                }
            }
            node.stop().await;
        }
    });
}
