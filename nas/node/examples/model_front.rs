//! Development only: the front (N-module, NFS, M-host, REST) on the in-memory reference model.
//! Everything is gone when it ends; the product never does this.
//!
//! `cargo run -p cairn-node --example model_front -- DIR NFS_PORT REST_PORT`

use std::path::PathBuf;
use std::sync::Arc;

use cairn_mhost::api::VolumeCreate;
use cairn_mhost::model::{ExportRule, RuleSquash};
use cairn_model::ModelNode;
use cairn_node::config::{FrontConfig, RestEndpoint, Rpcbind};
use cairn_node::{Front, StateDir};

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut args = std::env::args().skip(1);
        let dir = PathBuf::from(args.next().unwrap_or_else(|| "model-front".to_owned()));
        let mut port = || args.next().and_then(|p| p.parse::<u16>().ok()).unwrap_or(0);
        let world = cairn_sys::real::world(tokio::runtime::Handle::current()).expect("world");
        let state = StateDir::open(&dir).expect("state directory");
        let config = FrontConfig {
            state_dir: state.path().to_owned(),
            nfs: ([0, 0, 0, 0], port()).into(),
            workers: 0,
            rpcbind: Rpcbind::Off,
            rpcbind_port: 111,
            rest: RestEndpoint::Tcp(([127, 0, 0, 1], port()).into()),
            metrics_open: false,
        };
        let db = Front::database(&state).expect("database");
        let model = Arc::new(ModelNode::new(world.clone()));
        let front = Front::start(&world, &state, db, model, &config).await.expect("front");
        let request = VolumeCreate {
            name: "vol0".to_owned(),
            size_bytes: 1 << 34,
            junction: None,
            rules: vec![ExportRule::everybody(RuleSquash::None)],
        };
        let job = front.mhost().create_volume(request).expect("volume");
        println!("{:?}", front.mhost().wait_job(job.id).await);
        println!("READY nfs {} rest {}", front.nfs_addr(), front.rest());
        std::future::pending::<()>().await;
    });
}
