//! The NFS front end as the node starts and stops it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use cairn_mhost::MetricSource;
use cairn_mhost::model::DEFAULT_VSERVER;
use cairn_nfs::{NfsConfig, NfsServer};
use cairn_nmod::NModule;
use cairn_oncrpc::Limits;
use cairn_sys::World;
use cairn_units::VserverId;

use crate::config::{FrontConfig, Rpcbind};
use crate::descriptors;
use crate::front::FrontError;
use crate::metrics;

/// The running front end.
pub(crate) struct Nfs {
    server: Arc<NfsServer>,
    addr: SocketAddr,
}

fn workers(config: &FrontConfig) -> usize {
    match config.workers {
        0 => std::thread::available_parallelism().map_or(1, core::num::NonZero::get),
        n => n,
    }
}

impl Nfs {
    pub(crate) fn start(
        world: &World,
        config: &FrontConfig,
        nmod: Arc<NModule>,
    ) -> Result<Self, FrontError> {
        let mut limits = Limits::default();
        limits.connections_max = descriptors::connections(limits.connections_max);
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let settings = NfsConfig {
            listen: config.nfs,
            workers: workers(config),
            limits,
            vserver: VserverId::new(DEFAULT_VSERVER),
            rpcbind: match config.rpcbind {
                Rpcbind::Off => cairn_nfs::Rpcbind::Off,
                Rpcbind::Serve => {
                    let at = SocketAddr::new(config.nfs.ip(), config.rpcbind_port);
                    cairn_nfs::Rpcbind::Serve(at)
                }
                Rpcbind::Register => {
                    let at = SocketAddr::new(loopback, config.rpcbind_port);
                    cairn_nfs::Rpcbind::Register(at)
                }
            },
        };
        let server = NfsServer::start(&settings, nmod, world)?;
        let addr = server.addr();
        Ok(Self { server: Arc::new(server), addr })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its counters; they end with the server.
    pub(crate) fn metrics(&self) -> MetricSource {
        let server = Arc::downgrade(&self.server);
        Arc::new(move || match server.upgrade() {
            Some(server) => metrics::of_rpc("nfs", &server.metrics()),
            None => Vec::new(),
        })
    }

    /// Takes no more requests and waits for those in flight.
    pub(crate) async fn stop(self) {
        match Arc::try_unwrap(self.server) {
            Ok(server) => server.shutdown().await,
            // Somebody reads its counters this moment: it ends when they let go.
            Err(shared) => drop(shared),
        }
    }
}
