//! Disks, aggregate and storage manager, as the node starts and stops them.

use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

use cairn_cf::DModule;
use cairn_raid_api::{Aggregate, AggregateAdmin};
use cairn_raid_disk::{
    Disk, Driver, DriverError, DriverOptions, NonVolatile, OpenDiskError, OpenedDisk, open_disks,
};
use cairn_raid_group::{
    CreateError, CreateOptions, OpenOptions, Opener, Probe, RaidAggregate, RaidKind, Role, probe,
};
use cairn_sys::World;
use cairn_units::Blocks;
use cairn_wafl_core::StorageManager;

use crate::config::{DriverChoice, RaidLayout, StorageConfig};

/// How often the storage manager is asked whether it still serves.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Whether a new aggregate may be formed on disks that hold none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Formation {
    /// The disks must hold one.
    Refused,
    /// One is formed when they hold none.
    Allowed,
}

/// Why the storage did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No driver.
    #[error("disks: {0}")]
    Driver(#[from] DriverError),
    /// A disk that is in use elsewhere, or that a new aggregate needs.
    #[error("{0}")]
    Disk(OpenDiskError),
    /// No disk could be opened.
    #[error("none of the disks can be opened: {0}")]
    NoDisk(String),
    /// The disks are blank.
    #[error(
        "no aggregate on these disks: {found}. If they are new, form one with `--initialize` \
         (everything on them is lost); else correct the list of disks"
    )]
    NoAggregate {
        /// What was found.
        found: String,
    },
    /// The new aggregate.
    #[error("a new aggregate cannot be formed: {0}")]
    Create(#[from] CreateError),
    /// The aggregate.
    #[error("the aggregate cannot be opened: {source}{absent}")]
    Open {
        /// Why.
        #[source]
        source: cairn_raid_group::OpenError,
        /// Disks that are not there or were left alone.
        absent: String,
    },
    /// The volumes.
    #[error("the volumes cannot be opened: {0}")]
    Manager(#[from] cairn_wafl_core::OpenError),
    /// It stopped by itself.
    #[error("the storage layer has stopped: {0}; start the node again, the log is replayed then")]
    Failed(String),
    /// The last consistency point.
    #[error("the last consistency point failed: {0}; the log is replayed at the next start")]
    Stop(String),
}

/// How long disks in use are waited for at a start.
const IN_USE_WAIT: Duration = Duration::from_secs(5);
/// Between two attempts.
const IN_USE_STEP: Duration = Duration::from_millis(20);

/// The storage of a node.
pub struct Storage {
    manager: Arc<StorageManager>,
    aggregate: Arc<RaidAggregate>,
}

struct Opened {
    disks: Vec<Arc<dyn Disk>>,
    /// Of those that could not be opened, why.
    absent: Vec<String>,
}

fn driver(choice: DriverChoice) -> DriverOptions {
    let driver = match choice {
        DriverChoice::Auto => Driver::Auto,
        DriverChoice::Uring => Driver::Uring,
        DriverChoice::Threads => Driver::Threads,
    };
    DriverOptions { driver, ..DriverOptions::default() }
}

/// Opens what can be opened. A disk in use elsewhere stops the start: going on without it would
/// make its contents stale while another node uses it.
fn open_all(opened: Vec<OpenedDisk>) -> Result<Opened, StorageError> {
    let mut out = Opened { disks: Vec::new(), absent: Vec::new() };
    for one in opened {
        match one.disk {
            Ok(disk) => out.disks.push(disk),
            Err(e @ (OpenDiskError::InUse { .. } | OpenDiskError::Driver { .. })) => {
                return Err(StorageError::Disk(e));
            }
            Err(e) => {
                tracing::warn!("{e}");
                out.absent.push(e.to_string());
            }
        }
    }
    match out.disks.is_empty() {
        true => Err(StorageError::NoDisk(out.absent.join("; "))),
        false => Ok(out),
    }
}

/// As [`open_all`], but waits a while for disks in use: the kernel still finishes the requests of
/// a node that was killed a moment ago, and keeps its files open and locked until then.
async fn open_when_free(
    world: &World,
    locations: &[PathBuf],
    options: DriverOptions,
) -> Result<Opened, StorageError> {
    let mut waited = Duration::ZERO;
    loop {
        match open_all(open_disks(locations, options)?) {
            Err(StorageError::Disk(OpenDiskError::InUse { .. })) if waited < IN_USE_WAIT => {
                world.clock.sleep(IN_USE_STEP).await;
                waited += IN_USE_STEP;
            }
            done => return done,
        }
    }
}

fn opener(options: DriverOptions) -> Opener {
    Arc::new(move |location: &str| {
        let opened = open_disks(&[PathBuf::from(location)], options).map_err(|e| e.to_string())?;
        match opened.into_iter().next() {
            Some(one) => one.disk.map_err(|e| e.to_string()),
            None => Err(format!("{location}: the driver gave no answer")),
        }
    })
}

fn locations(config: &StorageConfig, added: &[String]) -> Vec<PathBuf> {
    let mut out = config.disks.clone();
    for path in added.iter().map(PathBuf::from) {
        if !out.contains(&path) && !config.log_devices.contains(&path) {
            out.push(path);
        }
    }
    out
}

fn found(probes: &[(String, Probe)]) -> String {
    let words = |p: &Probe| match p {
        Probe::Blank => "no label".to_owned(),
        Probe::Labelled(id) => format!("disk of aggregate {}", id.aggregate),
        Probe::Version(v) => format!("a label of format {v}, written by another release"),
        Probe::Damaged => "a damaged label".to_owned(),
        Probe::Unreadable(e) => e.to_string(),
    };
    let each: Vec<String> = probes.iter().map(|(at, p)| format!("{at}: {}", words(p))).collect();
    each.join("; ")
}

/// Log devices are flushed no more. The label has the last word: names of devices change places,
/// and a disk with data in the place of a log device goes on being flushed.
fn declare_nonvolatile(
    config: &StorageConfig,
    probes: &[(String, Probe)],
    disks: &mut [Arc<dyn Disk>],
) {
    for disk in disks {
        let location = disk.info().location;
        if !config.log_devices.iter().any(|d| d.display().to_string() == location) {
            continue;
        }
        let found = probes.iter().find(|(at, _)| *at == location).map(|(_, probe)| probe);
        match found {
            Some(Probe::Blank) => {}
            Some(Probe::Labelled(id)) if id.role == Role::Log => {}
            _ => {
                tracing::warn!("{location} is named as a log device and is none; it is flushed");
                continue;
            }
        }
        *disk = Arc::new(NonVolatile::new(disk.clone()));
    }
}

pub(crate) async fn open_aggregate(
    world: &World,
    config: &StorageConfig,
    added: &[String],
    formation: Formation,
) -> Result<Arc<RaidAggregate>, StorageError> {
    let options = driver(config.driver);
    let mut all = locations(config, added);
    let members = all.len();
    all.extend(config.log_devices.iter().cloned());
    let Opened { mut disks, absent } = open_when_free(world, &all, options).await?;
    let probes = probe(&disks).await;
    if config.log_devices_nonvolatile {
        declare_nonvolatile(config, &probes, &mut disks);
    }
    let opener = Some(opener(options));
    if probes.iter().any(|(_, p)| matches!(p, Probe::Labelled(_))) {
        let to_open = OpenOptions { opener, ..OpenOptions::default() };
        let left_out = |absent: &[String]| match absent.is_empty() {
            true => String::new(),
            false => format!("; not there: {}", absent.join("; ")),
        };
        let aggregate = RaidAggregate::open(world.clone(), disks, to_open)
            .await
            .map_err(|source| StorageError::Open { source, absent: left_out(&absent) })?;
        for refused in aggregate.refused() {
            tracing::warn!("{}: {}; it is left alone", refused.location, refused.reason);
        }
        return Ok(aggregate);
    }
    if formation == Formation::Refused {
        return Err(StorageError::NoAggregate { found: found(&probes) });
    }
    if let Some(missing) = absent.into_iter().next() {
        return Err(StorageError::NoDisk(missing));
    }
    let kind = match config.raid {
        RaidLayout::Raid4 => RaidKind::Raid4,
        RaidLayout::RaidDp => RaidKind::RaidDp,
    };
    let log_disks = disks.split_off(members);
    let to_create = CreateOptions {
        log_disks,
        opener,
        log_blocks_per_disk: config.log_bytes.map(Blocks::for_bytes),
        ..CreateOptions::new(kind, config.spares)
    };
    tracing::info!(disks = disks.len(), raid = config.raid.name(), "forming a new aggregate");
    Ok(RaidAggregate::create(world.clone(), disks, to_create).await?)
}

impl Storage {
    /// Opens the disks (those of the configuration and those added later), the aggregate and its
    /// volumes; replays the log.
    ///
    /// # Errors
    /// See [`StorageError`].
    pub async fn open(
        world: &World,
        config: &StorageConfig,
        added: &[String],
        formation: Formation,
    ) -> Result<Self, StorageError> {
        let aggregate = open_aggregate(world, config, added, formation).await?;
        let settings = cairn_wafl_core::StorageConfig {
            cache_blocks: cairn_wafl_core::cache_blocks(config.cache_bytes),
            ..cairn_wafl_core::StorageConfig::default()
        };
        let below: Arc<dyn Aggregate> = aggregate.clone();
        let admin: Arc<dyn AggregateAdmin> = aggregate.clone();
        let manager = StorageManager::open(world.clone(), below, Some(admin), settings).await;
        match manager {
            Ok(manager) => Ok(Self { manager: Arc::new(manager), aggregate }),
            Err(e) => {
                aggregate.shutdown();
                Err(e.into())
            }
        }
    }

    /// The storage manager as the cluster fabric sees it.
    pub fn dmodule(&self) -> Arc<dyn DModule> {
        self.manager.clone()
    }

    /// Waits until the storage manager stops by itself (a failed log, a broken invariant), and says
    /// why. It serves no more then; only a new start with a replay of the log helps.
    pub async fn failed(&self, world: &World) -> String {
        loop {
            if let Some(reason) = self.manager.stopped() {
                return reason;
            }
            world.clock.sleep(LOOK_INTERVAL).await;
        }
    }

    /// Ends with a consistency point, so that the next start has nothing to replay.
    ///
    /// # Errors
    /// See [`StorageError::Stop`].
    pub async fn shutdown(self) -> Result<(), StorageError> {
        let stopped = self.manager.shutdown().await;
        self.aggregate.shutdown();
        stopped.map_err(|e| StorageError::Stop(e.to_string()))
    }
}
