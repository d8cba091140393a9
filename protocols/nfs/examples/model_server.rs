//! Serves the reference model over NFS: to try the front end by hand and under load, without any
//! storage behind it. `model_server [IP:PORT] [WORKERS] [RPCBIND_IP:PORT]`
//!
//! For developers only; data is in memory and gone at the end.

use std::net::SocketAddr;
use std::sync::Arc;

use cairn_model::DirectFiles;
use cairn_nfs::{NfsConfig, NfsServer, Rpcbind};
use cairn_oncrpc::Limits;
use cairn_units::VserverId;

const VOLUME_BYTES: u64 = 1 << 40;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let listen: SocketAddr = args.next().as_deref().unwrap_or("127.0.0.1:0").parse()?;
    let workers: usize = args.next().as_deref().unwrap_or("2").parse()?;
    let rpcbind = match args.next() {
        Some(at) => Rpcbind::Serve(at.parse()?),
        None => Rpcbind::Off,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let world = cairn_sys::real::world(runtime.handle().clone())?;
    let (_node, files) = runtime.block_on(DirectFiles::on_model(world.clone(), VOLUME_BYTES))?;
    let config = NfsConfig {
        listen,
        workers,
        limits: Limits::default(),
        vserver: VserverId::new(1),
        rpcbind,
    };
    let server = NfsServer::start(&config, Arc::new(files), &world)?;
    println!("READY {}", server.addr());
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line)? > 0 {
        for p in server.metrics().procedures.iter().filter(|p| p.count > 0) {
            let mean = p.latency_nanos / p.count / 1000;
            println!("{:12} {:9} errors {:5} mean {mean} us", p.name, p.count, p.errors);
        }
        line.clear();
    }
    runtime.block_on(server.shutdown());
    Ok(())
}
