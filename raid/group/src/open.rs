//! Opening an aggregate: which disks are its own, which are not, what has to be recovered.
//!
//! Layer: over labels and configuration. Two halves: looking, which writes nothing and may refuse;
//! then bringing up, which first makes the loss of missing disks stable, then recovers the stripe
//! log, then writes the newest root to all disks.

use cairn_sys::lock::atomic::{AtomicBool, AtomicU64};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cairn_raid_api::{ColumnState, ScrubStatus, WriteError};
use cairn_raid_disk::{Disk, DiskError};
use cairn_raid_parity::is_zero;
use cairn_sys::lock::{AsyncMutex, AsyncRwLock, Mutex, Rank, RwLock};
use cairn_sys::{Block, BoxFuture, World};
use cairn_units::{AggregateUuid, DiskUuid, GroupNo};

use crate::commit::RootSlot;
use crate::config::Config;
use crate::core::{Core, Counters, Interval, RootState};
use crate::failure::{promote_spares, take_out};
use crate::label::{Identity, Probe, read_label};
use crate::layout::Layout;
use crate::member::{Member, RegionMap};
use crate::ondisk::CONFIG_BLOCKS;
use crate::stamps::StampCache;
use crate::stripe_log::{StripeLog, scan};
use crate::tools::{StripeLocks, join_all};
use crate::view::View;

/// Opens the device at a location that the administrator names; the text says why not.
pub type Opener = Arc<dyn Fn(&str) -> Result<Arc<dyn Disk>, String> + Send + Sync>;

/// How to open an aggregate.
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// Which one; `None`: the one that the disks hold, if it is only one.
    pub aggregate: Option<AggregateUuid>,
    /// Opens devices that are added later.
    pub opener: Option<Opener>,
}

/// Why an aggregate was not opened. Nothing was written, except for `Write`.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No disk carries a label of the aggregate.
    #[error("none of the {disks} disks belongs to the aggregate")]
    NoDisks {
        /// Disks looked at.
        disks: usize,
    },
    /// The disks belong to different aggregates.
    #[error("disks of different aggregates: {first} at {first_at}, {second} at {second_at}")]
    SeveralAggregates {
        /// One.
        first: AggregateUuid,
        /// Where.
        first_at: String,
        /// Another.
        second: AggregateUuid,
        /// Where.
        second_at: String,
    },
    /// Two devices claim to be the same disk: one is a copy, and nobody can tell which.
    #[error("{a} and {b} carry the same disk label {disk}; detach the copy")]
    Duplicate {
        /// The identity.
        disk: DiskUuid,
        /// One place.
        a: String,
        /// The other place.
        b: String,
    },
    /// Written by a program of another version.
    #[error("{location}: format version {version} is not known to this program")]
    Version {
        /// Which disk.
        location: String,
        /// Its version.
        version: u32,
    },
    /// No configuration could be read.
    #[error("no disk holds a whole configuration")]
    NoConfig,
    /// More disks of a group are missing than parity covers.
    #[error("group {group}: {missing} of {disks} disks are missing, parity covers {parity}")]
    TooFewDisks {
        /// Which group.
        group: GroupNo,
        /// Disks missing.
        missing: u16,
        /// Disks of the group.
        disks: u16,
        /// Disks that parity covers.
        parity: u16,
    },
    /// Recovery or the first writes failed.
    #[error("bringing the aggregate up: {0}")]
    Write(#[from] WriteError),
}

/// Why a disk was left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefuseReason {
    /// No label.
    #[error("has no label")]
    Blank,
    /// Belongs to another aggregate.
    #[error("belongs to aggregate {0}")]
    Foreign(AggregateUuid),
    /// Its label is damaged in both copies.
    #[error("has a damaged label")]
    Damaged,
    /// It was taken out while the aggregate went on without it.
    #[error("is stale: the aggregate went on without it; add it as a spare to use it again")]
    Stale,
    /// It does not answer.
    #[error("does not answer: {0}")]
    Unreadable(DiskError),
}

/// A disk that was left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where it is attached.
    pub location: String,
    /// Why.
    pub reason: RefuseReason,
}

struct Candidate {
    disk: Arc<dyn Disk>,
    identity: Identity,
    layout: Layout,
}

/// What looking at the disks gave; nothing was written.
struct Found {
    config: Config,
    members: BTreeMap<DiskUuid, Arc<Member>>,
    refused: Vec<Refused>,
    /// Disks that the configuration counts on and that are not here.
    missing: Vec<DiskUuid>,
    /// Not every disk holds this configuration, or one holds a torn one.
    uneven: bool,
}

/// One configuration copy.
enum ConfigCopy {
    Absent,
    Torn,
    Whole(Config),
}

/// Opens. Returns the disks that were refused as well.
pub(crate) async fn open(
    world: World,
    disks: Vec<Arc<dyn Disk>>,
    options: OpenOptions,
) -> Result<(Arc<Core>, Vec<Refused>), OpenError> {
    let found = look(&disks, &options).await?;
    let refused = found.refused.clone();
    let core = bring_up(world, found, options).await?;
    Ok((core, refused))
}

async fn look(disks: &[Arc<dyn Disk>], options: &OpenOptions) -> Result<Found, OpenError> {
    let (candidates, mut refused) = own_disks(disks, options).await?;
    let Some(aggregate) = candidates.values().next().map(|c| c.identity.aggregate) else {
        return Err(OpenError::NoDisks { disks: disks.len() });
    };
    let mut newest: Option<Config> = None;
    let mut generations: BTreeMap<DiskUuid, u64> = BTreeMap::new();
    let mut torn: Vec<DiskUuid> = Vec::new();
    for (uuid, candidate) in &candidates {
        for copy in [0, 1] {
            match read_config(candidate, copy).await {
                ConfigCopy::Whole(config) if config.aggregate == aggregate => {
                    let best = generations.entry(*uuid).or_default();
                    *best = config.generation.max(*best);
                    if newest.as_ref().is_none_or(|n| config.generation > n.generation) {
                        newest = Some(config);
                    }
                }
                ConfigCopy::Absent => {}
                ConfigCopy::Whole(_) | ConfigCopy::Torn => torn.push(*uuid),
            }
        }
    }
    let config = newest.ok_or(OpenError::NoConfig)?;
    let mut members = BTreeMap::new();
    for (uuid, candidate) in candidates {
        let location = candidate.disk.info().location;
        if !config.counts_on(uuid) {
            refused.push(Refused { location, reason: RefuseReason::Stale });
            continue;
        }
        match RegionMap::load(uuid, &candidate.disk, &candidate.layout).await {
            Ok(map) => {
                members.insert(uuid, Member::new(uuid, candidate.disk, candidate.layout, map));
            }
            Err(error) => {
                refused.push(Refused { location, reason: RefuseReason::Unreadable(error) });
            }
        }
    }
    let mut missing = Vec::new();
    for (no, group) in &config.groups {
        let whole = |disk: Option<DiskUuid>| disk.is_some_and(|d| members.contains_key(&d));
        let lost = group
            .positions
            .values()
            .filter(|p| p.state != ColumnState::Online || !whole(p.disk))
            .count();
        let disks = u16::try_from(group.positions.len()).unwrap_or(u16::MAX);
        let lost = u16::try_from(lost).unwrap_or(u16::MAX);
        let parity = group.kind.parity();
        if lost > parity {
            return Err(OpenError::TooFewDisks { group: *no, missing: lost, disks, parity });
        }
        missing.extend(group.positions.values().filter_map(|p| p.disk));
        missing.extend(group.positions.values().filter_map(|p| Some(p.twin?.disk)));
    }
    missing.extend(config.spares.iter().chain(&config.log_disks));
    missing.retain(|disk| !members.contains_key(disk));
    let uneven =
        members.keys().any(|m| generations.get(m) != Some(&config.generation) || torn.contains(m));
    Ok(Found { config, members, refused, missing, uneven })
}

/// Sorts the disks into those of the aggregate and those to leave alone.
async fn own_disks(
    disks: &[Arc<dyn Disk>],
    options: &OpenOptions,
) -> Result<(BTreeMap<DiskUuid, Candidate>, Vec<Refused>), OpenError> {
    let probes: Vec<BoxFuture<(Probe, Option<Layout>)>> = disks
        .iter()
        .map(|disk| {
            let disk = disk.clone();
            let probe: BoxFuture<_> = Box::pin(async move { read_label(&disk).await });
            probe
        })
        .collect();
    let mut own: BTreeMap<DiskUuid, Candidate> = BTreeMap::new();
    let mut refused = Vec::new();
    let mut aggregate = options.aggregate.map(|a| (a, String::from("the order to open it")));
    for (disk, (probe, layout)) in disks.iter().zip(join_all(probes).await) {
        let location = disk.info().location;
        let reason = match (probe, layout) {
            (Probe::Labelled(identity), Some(layout)) => {
                let (wanted, wanted_at) =
                    aggregate.get_or_insert_with(|| (identity.aggregate, location.clone())).clone();
                if identity.aggregate == wanted {
                    let uuid = identity.disk;
                    let new = Candidate { disk: disk.clone(), identity, layout };
                    if let Some(other) = own.insert(uuid, new) {
                        let a = other.disk.info().location;
                        return Err(OpenError::Duplicate { disk: uuid, a, b: location });
                    }
                    continue;
                }
                if options.aggregate.is_none() {
                    return Err(OpenError::SeveralAggregates {
                        first: wanted,
                        first_at: wanted_at,
                        second: identity.aggregate,
                        second_at: location,
                    });
                }
                RefuseReason::Foreign(identity.aggregate)
            }
            (Probe::Version(version), _) => return Err(OpenError::Version { location, version }),
            (Probe::Blank, _) => RefuseReason::Blank,
            (Probe::Unreadable(error), _) => RefuseReason::Unreadable(error),
            (Probe::Damaged | Probe::Labelled(_), _) => RefuseReason::Damaged,
        };
        refused.push(Refused { location, reason });
    }
    Ok((own, refused))
}

async fn read_config(candidate: &Candidate, copy: u8) -> ConfigCopy {
    let bufs = (0..CONFIG_BLOCKS).map(|_| cairn_sys::BlockMut::dirty()).collect();
    let Ok(bufs) = candidate.disk.read(candidate.layout.config_dbn(copy), bufs).await else {
        return ConfigCopy::Torn;
    };
    let blocks: Vec<Block> = bufs.into_iter().map(cairn_sys::BlockMut::freeze).collect();
    match Config::decode(&blocks) {
        Some(config) => ConfigCopy::Whole(config),
        None if blocks.first().is_some_and(|b| is_zero(b)) => ConfigCopy::Absent,
        None => ConfigCopy::Torn,
    }
}

async fn bring_up(
    world: World,
    found: Found,
    options: OpenOptions,
) -> Result<Arc<Core>, OpenError> {
    let aggregate = found.config.aggregate;
    let must_store = found.uneven || !found.missing.is_empty();
    let members: Vec<Arc<Member>> = found.members.values().cloned().collect();
    let roots = read_roots(aggregate, &members).await;
    let newest = roots.iter().filter_map(|r| r.newest.as_ref()).max_by_key(|r| r.sequence);
    let newest = newest.cloned();
    let dead_epoch = newest.as_ref().map_or(0, |r| r.dead_epoch);
    let log = scan(aggregate, &members, dead_epoch).await;
    let mut config = found.config;
    if found.uneven {
        // Beyond what a torn copy may hold: a later tear could make it whole.
        config.generation += 2;
    }
    let view = View::new(config, found.members, None);
    let agree = view.group_members().iter().all(|m| {
        let at = members.iter().position(|o| o.uuid == m.uuid);
        at.is_some_and(|i| roots[i].newest == newest && !roots[i].torn)
    });
    let size = members.iter().map(|m| m.layout.stripe_log_blocks).min().unwrap_or(0);
    let root = RootState {
        record: newest.as_ref().map(|r| r.record.clone()),
        // Beyond what a torn slot may hold: a later tear could make it whole.
        sequence: newest.as_ref().map_or(0, |r| r.sequence) + if agree { 0 } else { 2 },
        committed: newest.clone(),
    };
    let core = Arc::new(Core {
        world,
        view: RwLock::new(Rank::View, Arc::new(view)),
        interval: AsyncRwLock::new(Rank::FlushInterval, Interval::default()),
        locks: StripeLocks::new(),
        stamps: StampCache::new(crate::STAMP_CACHE_MAX),
        log: StripeLog::new(aggregate, size, log.epoch + 1),
        root: Mutex::new(Rank::Root, root),
        config: AsyncMutex::new(Rank::Configuration, ()),
        log_areas: AsyncRwLock::new(Rank::LogAreas, ()),
        replaced: Mutex::new(Rank::Replaced, BTreeMap::new()),
        unsettled: AtomicU64::new(0),
        deaths: tokio::sync::watch::Sender::new(0),
        fenced: AtomicBool::new(false),
        stopped: AtomicBool::new(false),
        counters: Counters::default(),
        scrub: Mutex::new(Rank::Scrub, ScrubStatus::default()),
        scrub_findings: Mutex::new(Rank::ScrubFindings, Vec::new()),
        rebuilding: Mutex::new(Rank::Rebuilding, BTreeSet::new()),
        sick: AtomicBool::new(false),
        opener: options.opener,
        events: Mutex::new(Rank::RaidEvents, Vec::new()),
    });
    // What a killed program left in a disk's cache is made stable: from here on, what can be read
    // is durable.
    for member in &members {
        member.mark_dirty();
    }
    core.flush_interval().await?;
    if must_store {
        core.drop_missing(&found.missing).await?;
    }
    if !log.records.is_empty() || must_store || !agree {
        core.recover(log.records).await?;
        let record = newest.map(|r| r.record);
        core.finish_recovery(record).await?;
    }
    core.promote().await?;
    core.start_rebuilds();
    Ok(core)
}

/// What the root slots of one disk hold.
#[derive(Default)]
struct DiskRoots {
    newest: Option<RootSlot>,
    /// A slot holds something that is no root: a torn write.
    torn: bool,
}

/// The root slots of each disk.
async fn read_roots(aggregate: AggregateUuid, members: &[Arc<Member>]) -> Vec<DiskRoots> {
    let reads: Vec<BoxFuture<DiskRoots>> = members
        .iter()
        .map(|member| {
            let member = member.clone();
            let read: BoxFuture<_> = Box::pin(async move {
                let mut roots = DiskRoots::default();
                for slot in [0u8, 1] {
                    let Ok(blocks) = member.read(member.layout.root_dbn(slot), 1).await else {
                        continue;
                    };
                    let Some(block) = blocks.first() else { continue };
                    match RootSlot::decode(aggregate, slot, block) {
                        Some(found) => {
                            let newer =
                                roots.newest.as_ref().is_none_or(|n| found.sequence > n.sequence);
                            if newer {
                                roots.newest = Some(found);
                            }
                        }
                        None => roots.torn |= !is_zero(block),
                    }
                }
                roots
            });
            read
        })
        .collect();
    join_all(reads).await
}

impl Core {
    /// Makes it stable on all disks that some are not here, before anything else is written.
    async fn drop_missing(&self, missing: &[DiskUuid]) -> Result<(), WriteError> {
        let _config = self.config.lock().await;
        let mut config = self.view().config.clone();
        for disk in missing {
            take_out(&mut config, *disk);
        }
        self.adopt(config).await?;
        self.settle_locked().await
    }

    /// Gives empty positions to spares.
    pub(crate) async fn promote(&self) -> Result<(), WriteError> {
        let _config = self.config.lock().await;
        let view = self.view();
        let mut config = view.config.clone();
        let promoted = promote_spares(&mut config, &view);
        if promoted.is_empty() {
            return Ok(());
        }
        self.adopt(config).await?;
        self.settle_locked().await?;
        for (disk, group, column) in promoted {
            self.event(crate::Event::RebuildStarted { disk, group, column });
        }
        Ok(())
    }
}
