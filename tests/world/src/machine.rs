//! The machine under test: disks, RAID, storage manager, N-module and NFS, put together as the
//! node does it, with simulated disks below and simulated cables above.
//!
//! Layer: assembly. Everything here is production code but the disks and the cables.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_cf::{DModule, Manage, ManageError, Managed};
use cairn_nfs::NfsService;
use cairn_nmod::{
    Access, ExportPolicy, HandleKey, NModule, PortRule, Routes, Rule, Squash, Subnet, Volume,
};
use cairn_oncrpc::{Limits, StreamServer};
use cairn_raid_api::{Aggregate, AggregateAdmin};
use cairn_raid_disk::Disk;
use cairn_raid_group::{CreateOptions, OpenOptions, Opener, RaidAggregate, RaidKind};
use cairn_sim::{SimDisk, SimDiskConfig, SimWorld};
use cairn_sys::World;
use cairn_units::{BLOCK_BYTES_U64, Blocks, Fsid, Gid, Uid, VserverId};
use cairn_wafl_core::{StorageConfig, StorageManager, audit};

use crate::net::{End, Net, Port, lock};
use crate::plan::Shape;

/// The volume that clients use.
pub(crate) const VOLUME: Fsid = Fsid::new(1);
const VSERVER: VserverId = VserverId::new(1);

/// All disks by location, those in the machine and those on the shelf.
pub(crate) type Shelf = Arc<Mutex<BTreeMap<String, SimDisk>>>;

/// A running machine.
pub(crate) struct Machine {
    pub(crate) aggregate: Arc<RaidAggregate>,
    pub(crate) manager: Arc<StorageManager>,
}

/// Why a machine did not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// A layer refused.
    Refused(String),
    /// The committed state does not add up.
    Audit(Vec<String>),
}

/// Whether the committed state is walked before the log is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    Yes,
    No,
}

pub(crate) fn new_disk(sim: &SimWorld, location: &str, blocks: u64) -> SimDisk {
    let mut config = SimDiskConfig::new(location, Blocks::new(blocks));
    config.request_timeout = Duration::from_secs(5);
    sim.disk(config)
}

fn opener(shelf: &Shelf) -> Opener {
    let shelf = shelf.clone();
    Arc::new(move |at: &str| {
        let found = lock(&shelf).get(at).map(SimDisk::driver);
        found.ok_or_else(|| "no such device".to_owned())
    })
}

fn kind(shape: &Shape) -> RaidKind {
    if shape.parity == 1 { RaidKind::Raid4 } else { RaidKind::RaidDp }
}

/// Makes the aggregate on all disks of the shelf, and the volume; then stops in an orderly way.
pub(crate) async fn form(world: World, shelf: Shelf, shape: Shape) -> Result<(), StartError> {
    let refused = |e: &dyn core::fmt::Display| StartError::Refused(e.to_string());
    let drivers: Vec<Arc<dyn Disk>> = lock(&shelf).values().map(SimDisk::driver).collect();
    let mut options = CreateOptions::new(kind(&shape), shape.spares);
    options.opener = Some(opener(&shelf));
    let aggregate =
        RaidAggregate::create(world.clone(), drivers, options).await.map_err(|e| refused(&e))?;
    let manager = open_manager(&world, &aggregate, &shape).await?;
    let (name, size_bytes) = ("v1".to_owned(), shape.volume_blocks * BLOCK_BYTES_U64);
    let create = Manage::VolumeCreate { fsid: VOLUME, name, size_bytes };
    manager.manage(create).await.map_err(|e| refused(&e))?;
    manager.shutdown().await.map_err(|e| refused(&e))?;
    aggregate.shutdown();
    Ok(())
}

async fn open_manager(
    world: &World,
    aggregate: &Arc<RaidAggregate>,
    shape: &Shape,
) -> Result<Arc<StorageManager>, StartError> {
    let config = StorageConfig {
        cache_blocks: shape.cache_blocks,
        log_copies: None,
        tetris_stripes: shape.tetris_stripes,
    };
    let below: Arc<dyn Aggregate> = aggregate.clone();
    let admin: Arc<dyn AggregateAdmin> = aggregate.clone();
    match StorageManager::open(world.clone(), below, Some(admin), config).await {
        Ok(manager) => Ok(Arc::new(manager)),
        Err(e) => {
            aggregate.shutdown();
            Err(StartError::Refused(format!("storage manager: {e}")))
        }
    }
}

/// Who may use the volume: everybody, as whoever he is.
fn policy() -> ExportPolicy {
    ExportPolicy::new(vec![Rule {
        clients: Subnet::everybody(),
        access: Access::ReadWrite,
        squash: Squash::None,
        ports: PortRule::Any,
        anon_uid: Uid::new(65_534),
        anon_gid: Gid::new(65_534),
    }])
}

impl Machine {
    /// Starts on the disks given and listens.
    pub(crate) async fn start(
        world: World,
        net: Arc<Net>,
        (drivers, shelf): (Vec<Arc<dyn Disk>>, Shelf),
        shape: Shape,
        (incarnation, walk): (u64, Walk),
    ) -> Result<Self, StartError> {
        let options = OpenOptions { aggregate: None, opener: Some(opener(&shelf)) };
        let aggregate = RaidAggregate::open(world.clone(), drivers, options)
            .await
            .map_err(|e| StartError::Refused(format!("aggregate: {e}")))?;
        if walk == Walk::Yes {
            let below: Arc<dyn Aggregate> = aggregate.clone();
            let findings = audit(&below, true).await.findings;
            if !findings.is_empty() {
                let texts = findings.iter().map(ToString::to_string).collect();
                return Err(StartError::Audit(texts));
            }
        }
        let manager = open_manager(&world, &aggregate, &shape).await?;
        let dmodule: Arc<dyn DModule> = manager.clone();
        let nmod = Arc::new(NModule::new(HandleKey::new([7; 16]), dmodule.clone()));
        let root = match manager.manage(Manage::VolumeRoot { fsid: VOLUME }).await {
            Ok(Managed::Root(root)) => root,
            other => return Err(StartError::Refused(format!("the volume is gone: {other:?}"))),
        };
        let volume = Volume {
            fsid: VOLUME,
            vserver: VSERVER,
            junction: b"/v1".to_vec(),
            root,
            policy: policy(),
            dmodule,
        };
        let routes = Routes::new(vec![volume]);
        nmod.push(routes.map_err(|e| StartError::Refused(format!("routes: {e:?}")))?);
        let service = Arc::new(NfsService::new(nmod, VSERVER));
        // Memory is short here, too.
        let limits = Limits {
            connection_bytes_max: Limits::BYTES_MAX_FLOOR,
            total_bytes_max: Limits::BYTES_MAX_FLOOR,
            ..Limits::default()
        };
        let server = StreamServer::new("nfs", limits, service, world.clone());
        let watched = Arc::downgrade(&manager);
        net.listen(Port {
            incarnation,
            accept: Arc::new(move |end: End, client: SocketAddr| {
                if let Some(task) = server.serve(end, client) {
                    world.spawn.spawn("nfs connection", task);
                }
            }),
            stopped: Box::new(move || match watched.upgrade() {
                Some(manager) => manager.stopped(),
                None => Some("gone".to_owned()),
            }),
        });
        Ok(Self { aggregate, manager })
    }

    /// Runs a management operation.
    pub(crate) async fn manage(
        manager: Arc<StorageManager>,
        request: Manage,
    ) -> Result<Managed, ManageError> {
        manager.manage(request).await
    }
}
