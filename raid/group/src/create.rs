//! Making a new aggregate on disks.
//!
//! Layer: over labels, layout, configuration. Nothing is written before every disk was found fit;
//! the labels are written last, so that a crash leaves disks that belong to nothing, or disks
//! that open.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_raid_api::RaidKind;
use cairn_raid_disk::{Disk, DiskError};
use cairn_sys::{Block, BoxFuture, World};
use cairn_units::{AggregateUuid, Blocks, ColumnNo, DiskUuid, GroupNo, Pvbn};

use crate::config::{Config, GroupConfig, Known, Position};
use crate::failure::identity_of;
use crate::label::{Probe, label_block, read_label};
use crate::layout::{LABEL_AT, Layout, default_log_blocks, default_stripe_log_blocks};
use crate::member::{Member, RegionMap, map_extent};
use crate::ondisk::CONFIG_RECORDS_MAX;
use crate::open::{OpenError, OpenOptions, Opener};
use crate::tools::join_all;

/// PVBN of the first data column; 0 is never a data block.
pub(crate) const PVBN_FIRST: u64 = 64;
/// Bases of data columns are multiples of this.
pub(crate) const PVBN_ALIGN: u64 = 64;

/// How to make an aggregate.
#[derive(Clone)]
pub struct CreateOptions {
    /// Parity of its groups.
    pub raid: RaidKind,
    /// Disks of one group, parity included; `None`: one group of all that are not spares.
    pub group_width: Option<u16>,
    /// How many of the disks stay spares.
    pub spares: u16,
    /// Blocks of NV log area on each disk; `None`: by the size of the disks.
    pub log_blocks_per_disk: Option<Blocks>,
    /// Data columns that a group can ever have: up to 16, or up to 256.
    pub max_width: u16,
    /// Disks for nothing but the log.
    pub log_disks: Vec<Arc<dyn Disk>>,
    /// Take disks that carry a label: what is on them is lost.
    pub overwrite: bool,
    /// Opens devices that are added later.
    pub opener: Option<Opener>,
}

impl CreateOptions {
    /// One group of all disks but `spares`, up to 16 data columns.
    pub fn new(raid: RaidKind, spares: u16) -> Self {
        Self {
            raid,
            group_width: None,
            spares,
            log_blocks_per_disk: None,
            max_width: 16,
            log_disks: Vec::new(),
            overwrite: false,
            opener: None,
        }
    }
}

/// Why no aggregate was made; nothing was written unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Not enough disks for the groups asked for.
    #[error("{disks} disks are too few: {raid:?} needs at least {need} and the spares")]
    TooFewDisks {
        /// Disks given.
        disks: usize,
        /// Disks needed without spares.
        need: usize,
        /// Kind of group.
        raid: RaidKind,
    },
    /// A group would have more data columns than its code allows.
    #[error("{columns} data columns, at most {most} are possible; choose a smaller group width")]
    TooWide {
        /// Columns asked for.
        columns: usize,
        /// Columns possible.
        most: usize,
    },
    /// The disk belongs to something.
    #[error("{location}: carries a label ({found:?}); say so explicitly to overwrite it")]
    InUse {
        /// Which disk.
        location: String,
        /// What was found.
        found: Box<Probe>,
    },
    /// The disk is too small for its areas.
    #[error("{location}: {blocks} blocks are too few for the log areas and one stripe region")]
    TooSmall {
        /// Which disk.
        location: String,
        /// Its size.
        blocks: Blocks,
    },
    /// The disk did not take what was written; the disks hold nothing that opens.
    #[error("{location}: {source}")]
    Disk {
        /// Which disk.
        location: String,
        /// What it said.
        source: DiskError,
    },
    /// The new aggregate did not open.
    #[error("the new aggregate does not open: {0}")]
    Open(#[from] OpenError),
}

/// A disk with its place in the plan.
struct Planned {
    uuid: DiskUuid,
    disk: Arc<dyn Disk>,
    layout: Layout,
}

/// Formats the disks. The aggregate is then opened like any other.
pub(crate) async fn format(
    world: &World,
    disks: &[Arc<dyn Disk>],
    options: &CreateOptions,
) -> Result<OpenOptions, CreateError> {
    let all: Vec<Arc<dyn Disk>> = disks.iter().chain(&options.log_disks).cloned().collect();
    for disk in &all {
        check_free(disk, options.overwrite).await?;
    }
    let smallest = all.iter().map(|d| d.info().blocks).min().unwrap_or(Blocks::new(0));
    let log = options.log_blocks_per_disk.unwrap_or_else(|| default_log_blocks(smallest));
    let stripe_log = default_stripe_log_blocks(smallest);
    let mut planned = Vec::new();
    for disk in all {
        let blocks = disk.info().blocks;
        let Some(layout) = Layout::plan(blocks, log, stripe_log) else {
            return Err(CreateError::TooSmall { location: disk.info().location, blocks });
        };
        planned.push(Planned { uuid: DiskUuid::new(world.random_16()), disk, layout });
    }
    let aggregate = AggregateUuid::new(world.random_16());
    let config = plan(aggregate, &planned, disks.len(), options)?;
    for label in [false, true] {
        let writes: Vec<BoxFuture<Result<(), CreateError>>> = planned
            .iter()
            .map(|p| {
                let (disk, config) = (p.disk.clone(), config.clone());
                let (uuid, layout) = (p.uuid, p.layout.clone());
                let write: BoxFuture<_> = Box::pin(async move {
                    let result = if label {
                        write_labels(&disk, uuid, &layout, &config).await
                    } else {
                        format_areas(&disk, uuid, &layout, &config).await
                    };
                    let location = disk.info().location;
                    result.map_err(|source| CreateError::Disk { location, source })
                });
                write
            })
            .collect();
        join_all(writes).await.into_iter().collect::<Result<(), _>>()?;
    }
    Ok(OpenOptions { aggregate: Some(aggregate), opener: options.opener.clone() })
}

async fn check_free(disk: &Arc<dyn Disk>, overwrite: bool) -> Result<(), CreateError> {
    let location = disk.info().location;
    match read_label(disk).await.0 {
        Probe::Blank => Ok(()),
        Probe::Unreadable(source) => Err(CreateError::Disk { location, source }),
        _ if overwrite => Ok(()),
        found => Err(CreateError::InUse { location, found: Box::new(found) }),
    }
}

/// Distributes the disks over groups, spares and log disks.
fn plan(
    aggregate: AggregateUuid,
    planned: &[Planned],
    disks: usize,
    options: &CreateOptions,
) -> Result<Config, CreateError> {
    let parity = usize::from(options.raid.parity());
    let raid = options.raid;
    let members = disks.saturating_sub(usize::from(options.spares));
    // RAID-DP on one data disk would be two copies, which is allowed and useful for tests.
    let need = parity + 1;
    let width = options.group_width.map_or(members, usize::from).max(1);
    if members < need || width < need {
        return Err(CreateError::TooFewDisks { disks, need, raid });
    }
    let p: u16 = if options.max_width <= 16 { 17 } else { 257 };
    let most = usize::from(p) - 1;
    let mut config = Config {
        aggregate,
        generation: 1,
        pvbn_next: Pvbn::new(PVBN_FIRST),
        groups: BTreeMap::new(),
        spares: Vec::new(),
        log_disks: planned[disks..].iter().map(|p| p.uuid).collect(),
        failed: Vec::new(),
        known: planned.iter().map(|p| (p.uuid, known(&p.disk))).collect(),
    };
    let mut rest = &planned[..disks];
    let mut left = members;
    while left > 0 {
        let take = if left >= width + need { width } else { left };
        if take - parity > most {
            return Err(CreateError::TooWide { columns: take - parity, most });
        }
        let (group, behind) = rest.split_at(take);
        let ids: Vec<(DiskUuid, u64)> =
            group.iter().map(|p| (p.uuid, p.layout.stripes())).collect();
        add_group(&mut config, raid, p, &ids);
        rest = behind;
        left -= take;
    }
    config.spares = rest.iter().map(|p| p.uuid).collect();
    if config.records() > CONFIG_RECORDS_MAX {
        return Err(CreateError::TooWide { columns: disks, most: CONFIG_RECORDS_MAX });
    }
    Ok(config)
}

fn known(disk: &Arc<dyn Disk>) -> Known {
    let info = disk.info();
    Known::new(info.blocks.get(), &info.location)
}

/// Adds a group on the disks given: data columns first, parity on the last ones.
pub(crate) fn add_group(
    config: &mut Config,
    kind: RaidKind,
    p: u16,
    disks: &[(DiskUuid, u64)],
) -> GroupNo {
    let stripes = disks.iter().map(|(_, stripes)| *stripes).min().unwrap_or(0);
    let parity = usize::from(kind.parity());
    let mut positions = BTreeMap::new();
    for (i, (disk, _)) in disks.iter().enumerate() {
        let data = i + parity < disks.len();
        let (column, pvbn_base) = if data {
            (u16::try_from(i).unwrap_or(u16::MAX), take_pvbns(config, stripes))
        } else {
            let behind = u16::try_from(i + parity - disks.len()).unwrap_or(0);
            (p - 1 + behind, Pvbn::new(0))
        };
        let position = Position::online(*disk, pvbn_base);
        positions.insert(ColumnNo::new(column), position);
    }
    let next = config.groups.keys().next_back().map_or(0, |g| g.get() + 1);
    config.groups.insert(GroupNo::new(next), GroupConfig { kind, p, stripes, positions });
    GroupNo::new(next)
}

/// The next free run of PVBNs.
pub(crate) fn take_pvbns(config: &mut Config, stripes: u64) -> Pvbn {
    let base = config.pvbn_next;
    config.pvbn_next = Pvbn::new((base.get() + stripes).next_multiple_of(PVBN_ALIGN));
    base
}

/// Everything but the labels.
pub(crate) async fn format_areas(
    disk: &Arc<dyn Disk>,
    uuid: DiskUuid,
    layout: &Layout,
    config: &Config,
) -> Result<(), DiskError> {
    // An old label must not outlive what it names.
    for at in [LABEL_AT, layout.label_b()] {
        disk.write(at, vec![Block::zero()]).await?;
    }
    disk.write(layout.root_dbn(0), vec![Block::zero(); 2]).await?;
    let current = u8::from(config.generation % 2 == 1);
    disk.write(layout.config_dbn(current), config.encode()).await?;
    disk.write(layout.config_dbn(1 - current), vec![Block::zero()]).await?;
    let map = RegionMap::empty(layout);
    let (mut at, _) = map_extent(layout);
    for chunk in map.format(uuid).chunks(cairn_raid_disk::REQUEST_BLOCKS_MAX) {
        disk.write(at, chunk.to_vec()).await?;
        at = at.plus(chunk.len() as u64);
    }
    for area in [layout.log_at, layout.stripe_log_at] {
        disk.write(cairn_units::Dbn::new(area), vec![Block::zero()]).await?;
    }
    disk.flush().await
}

/// Both labels.
pub(crate) async fn write_labels(
    disk: &Arc<dyn Disk>,
    uuid: DiskUuid,
    layout: &Layout,
    config: &Config,
) -> Result<(), DiskError> {
    let block = label_block(&identity_of(config, uuid), layout);
    for at in [layout.label_b(), LABEL_AT] {
        disk.write(at, vec![block.clone()]).await?;
    }
    disk.flush().await
}

/// A freshly formatted disk at run time.
pub(crate) fn fresh_member(uuid: DiskUuid, disk: Arc<dyn Disk>, layout: Layout) -> Arc<Member> {
    let map = RegionMap::empty(&layout);
    Member::new(uuid, disk, layout, map)
}
