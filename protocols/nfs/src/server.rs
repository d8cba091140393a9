//! The NFS front end as a whole: the server on the NFS port, and how clients find it.

use std::net::SocketAddr;
use std::sync::Arc;

use cairn_oncrpc::{
    Limits, MetricsSnapshot, RunningServer, RunningUdp, ServerConfig, start, start_udp,
};
use cairn_op::Files;
use cairn_sys::World;

use crate::config::{NfsConfig, Rpcbind};
use crate::rpcbind::{self, RegisterError, Registration, RpcbindService, Transport};
use crate::service::{MOUNT_PROGRAM, NFS_PROGRAM, NFS_VERSION, NfsService};

/// Why the front end did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The NFS port.
    #[error("NFS: {0}")]
    Nfs(#[source] cairn_oncrpc::StartError),
    /// The rpcbind port.
    #[error("rpcbind: {0}; if an rpcbind runs already, let it tell clients (rpcbind = register)")]
    Rpcbind(#[source] cairn_oncrpc::StartError),
    /// A running rpcbind.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// A running NFS front end. Dropped, it ends at once (and leaves what it registered).
pub struct NfsServer {
    nfs: RunningServer<NfsService>,
    found_by: FoundBy,
}

enum FoundBy {
    Nothing,
    Served { tcp: RunningServer<RpcbindService>, udp: RunningUdp },
    Registered { at: SocketAddr, entries: Vec<Registration> },
}

impl NfsServer {
    /// Starts. Blocks shortly when it registers with a running rpcbind.
    ///
    /// # Errors
    /// What to do about a port, a thread or rpcbind.
    pub fn start(
        config: &NfsConfig,
        files: Arc<dyn Files>,
        world: &World,
    ) -> Result<Self, StartError> {
        let service = Arc::new(NfsService::new(files, config.vserver));
        let server = ServerConfig {
            name: "nfs",
            listen: config.listen,
            workers: config.workers,
            limits: config.limits,
        };
        let nfs = start(&server, service, world.clone()).map_err(StartError::Nfs)?;
        let entries = registrations(nfs.addr());
        let found_by = match config.rpcbind {
            Rpcbind::Off => FoundBy::Nothing,
            Rpcbind::Serve(listen) => serve_rpcbind(listen, entries, world)?,
            Rpcbind::Register(at) => {
                // What a server that was killed left behind would be in the way.
                rpcbind::unregister(at, &entries);
                rpcbind::register(at, &entries)?;
                FoundBy::Registered { at, entries }
            }
        };
        tracing::info!(addr = %nfs.addr(), "NFS version 3 and MOUNT are served");
        Ok(Self { nfs, found_by })
    }

    /// Address and port of NFS and MOUNT.
    pub fn addr(&self) -> SocketAddr {
        self.nfs.addr()
    }

    /// Address and port of our own rpcbind responder, if there is one.
    pub fn rpcbind_addr(&self) -> Option<SocketAddr> {
        match &self.found_by {
            FoundBy::Served { tcp, .. } => Some(tcp.addr()),
            FoundBy::Nothing | FoundBy::Registered { .. } => None,
        }
    }

    /// What it has done so far, per procedure and in all.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.nfs.metrics()
    }

    /// Takes no more requests, answers those in flight, unregisters, ends.
    pub async fn shutdown(self) {
        match self.found_by {
            FoundBy::Nothing => {}
            FoundBy::Served { tcp, udp } => {
                udp.shutdown();
                tcp.shutdown().await;
            }
            FoundBy::Registered { at, entries } => rpcbind::unregister(at, &entries),
        }
        self.nfs.shutdown().await;
    }
}

/// What is served on the NFS port.
fn registrations(addr: SocketAddr) -> Vec<Registration> {
    [(NFS_PROGRAM, NFS_VERSION), (MOUNT_PROGRAM, 3), (MOUNT_PROGRAM, 1)]
        .map(|(program, version)| Registration {
            program,
            version,
            transport: Transport::Tcp,
            addr,
        })
        .to_vec()
}

fn serve_rpcbind(
    listen: SocketAddr,
    entries: Vec<Registration>,
    world: &World,
) -> Result<FoundBy, StartError> {
    let service = Arc::new(RpcbindService::new(entries, listen));
    let limits = Limits { connections_max: 64, ..Limits::default() };
    let server = ServerConfig { name: "rpcbind", listen, workers: 1, limits };
    let tcp = start(&server, service.clone(), world.clone()).map_err(StartError::Rpcbind)?;
    let udp = start_udp("rpcbind", tcp.addr(), service).map_err(StartError::Rpcbind)?;
    Ok(FoundBy::Served { tcp, udp })
}
