//! The aggregate's configuration: groups, positions, spares, who was taken out.
//!
//! Layer: pure. It is replicated on every disk in two copies used in turn; the newest valid
//! generation that any disk holds is the truth. A disk that the newest generation does not count
//! as present is stale and is never written.

use std::collections::BTreeMap;

use cairn_raid_api::{ColumnState, RaidKind};
use cairn_sys::Block;
use cairn_units::{AggregateUuid, BLOCK_BYTES, ColumnNo, DiskUuid, GroupNo, Pvbn};
use zerocopy::{FromBytes, IntoBytes};

use crate::ondisk::{
    CONFIG_BLOCKS, CONFIG_RECORDS_MAX, ConfigHeaderV1, DiskRecordV1, GroupRecordV1, MAGIC_CONFIG,
    NONE_U16, blank, open, seal,
};

/// One position of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub disk: Option<DiskUuid>,
    pub state: ColumnState,
    /// Stripes rebuilt, while `Rebuilding`.
    pub progress: u64,
    /// First PVBN of a data column.
    pub pvbn_base: Pvbn,
    /// The disk that is to replace `disk`, while that one still serves.
    pub twin: Option<TwinConfig>,
}

impl Position {
    /// A position with a whole disk.
    pub(crate) fn online(disk: DiskUuid, pvbn_base: Pvbn) -> Self {
        let (state, disk) = (ColumnState::Online, Some(disk));
        Self { disk, state, progress: 0, pvbn_base, twin: None }
    }
}

/// A disk that another one is being copied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TwinConfig {
    pub disk: DiskUuid,
    /// Stripes copied.
    pub progress: u64,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupConfig {
    pub kind: RaidKind,
    /// The prime: 17 or 257.
    pub p: u16,
    pub stripes: u64,
    /// Data columns `0..`, row parity `p - 1`, diagonal parity `p`.
    pub positions: BTreeMap<ColumnNo, Position>,
}

impl GroupConfig {
    pub(crate) fn row_column(&self) -> ColumnNo {
        ColumnNo::new(self.p - 1)
    }
    pub(crate) fn diagonal_column(&self) -> ColumnNo {
        ColumnNo::new(self.p)
    }
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub aggregate: AggregateUuid,
    pub generation: u64,
    pub pvbn_next: Pvbn,
    pub groups: BTreeMap<GroupNo, GroupConfig>,
    pub spares: Vec<DiskUuid>,
    pub log_disks: Vec<DiskUuid>,
    /// Taken out; their data is stale.
    pub failed: Vec<DiskUuid>,
    /// What was known of the disks when they were here last.
    pub known: BTreeMap<DiskUuid, Known>,
}

/// A disk that may be gone, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub blocks: u64,
    /// The end of its location, as much as a record holds.
    pub location: String,
}

impl Known {
    pub(crate) fn new(blocks: u64, location: &str) -> Self {
        let from = location.len().saturating_sub(LOCATION_BYTES);
        let from = (from..=location.len()).find(|i| location.is_char_boundary(*i));
        let tail = from.and_then(|i| location.get(i..)).unwrap_or_default();
        Self { blocks, location: tail.to_owned() }
    }

    fn store(&self, record: &mut DiskRecordV1) {
        record.blocks = self.blocks.into();
        for (to, from) in record.location.iter_mut().zip(self.location.bytes()) {
            *to = from;
        }
    }

    fn load(record: &DiskRecordV1) -> Option<Self> {
        let end = record.location.iter().position(|b| *b == 0).unwrap_or(LOCATION_BYTES);
        let location = String::from_utf8_lossy(&record.location[..end]).into_owned();
        let blocks = record.blocks.get();
        // What is no text becomes longer: it must fit again, or it would be another one when stored.
        (blocks != 0).then(|| Self::new(blocks, &location))
    }
}

/// Bytes of a location that a record holds.
const LOCATION_BYTES: usize = 16;
const ROLE_DATA: u8 = 1;
const ROLE_ROW: u8 = 2;
const ROLE_DIAGONAL: u8 = 3;
const ROLE_SPARE: u8 = 4;
const ROLE_FAILED: u8 = 5;
const ROLE_LOG: u8 = 6;
const ROLE_TWIN: u8 = 7;

fn state_code(state: ColumnState) -> u8 {
    match state {
        ColumnState::Online => 1,
        ColumnState::Rebuilding => 2,
        ColumnState::Missing => 3,
    }
}

fn state_of(code: u8) -> Option<ColumnState> {
    Some(match code {
        1 => ColumnState::Online,
        2 => ColumnState::Rebuilding,
        3 => ColumnState::Missing,
        _ => return None,
    })
}

impl Config {
    /// Whether the configuration counts on this disk.
    pub(crate) fn counts_on(&self, disk: DiskUuid) -> bool {
        self.spares.contains(&disk)
            || self.log_disks.contains(&disk)
            || self.position_of(disk).is_some()
    }

    /// Where a disk sits, or is about to.
    pub(crate) fn position_of(&self, disk: DiskUuid) -> Option<(GroupNo, ColumnNo)> {
        self.groups.iter().find_map(|(group, config)| {
            config
                .positions
                .iter()
                .find(|(_, p)| p.disk == Some(disk) || p.twin.is_some_and(|t| t.disk == disk))
                .map(|(column, _)| (*group, *column))
        })
    }
    /// Whether another disk is being copied to this one.
    pub(crate) fn is_twin(&self, disk: DiskUuid) -> bool {
        let mut positions = self.groups.values().flat_map(|g| g.positions.values());
        positions.any(|p| p.twin.is_some_and(|t| t.disk == disk))
    }

    /// Records that this configuration takes.
    pub(crate) fn records(&self) -> usize {
        let twins = |g: &GroupConfig| g.positions.values().filter(|p| p.twin.is_some()).count();
        let positions: usize = self.groups.values().map(|g| g.positions.len() + twins(g)).sum();
        self.groups.len() + positions + self.spares.len() + self.log_disks.len() + self.failed.len()
    }

    /// The blocks of one copy, header first; short by the blocks that hold nothing.
    pub(crate) fn encode(&self) -> Vec<Block> {
        let mut content = Vec::with_capacity(self.records() * 64);
        for (group, config) in &self.groups {
            content.extend_from_slice(group_record(*group, config).as_bytes());
        }
        let mut disks = 0u16;
        let mut add = |mut record: DiskRecordV1| {
            if let Some(known) = self.known.get(&DiskUuid::new(record.disk)) {
                known.store(&mut record);
            }
            content.extend_from_slice(record.as_bytes());
            disks += 1;
        };
        for (group, config) in &self.groups {
            for (column, position) in &config.positions {
                add(position_record(*group, *column, config, position));
                if let Some(twin) = position.twin {
                    add(twin_record(*group, *column, twin));
                }
            }
        }
        let lists =
            [(&self.spares, ROLE_SPARE), (&self.log_disks, ROLE_LOG), (&self.failed, ROLE_FAILED)];
        for (list, role) in lists {
            for disk in list {
                let mut record: DiskRecordV1 = blank();
                record.disk = disk.bytes();
                record.group = NONE_U16.into();
                record.column = NONE_U16.into();
                record.role = role;
                add(record);
            }
        }
        let mut header: ConfigHeaderV1 = blank();
        header.aggregate = self.aggregate.bytes();
        header.generation = self.generation.into();
        header.pvbn_next = self.pvbn_next.get().into();
        header.groups = u16::try_from(self.groups.len()).unwrap_or(u16::MAX).into();
        header.disks = disks.into();
        header.content_crc = crc32fast::hash(&content).into();
        let mut blocks = vec![seal(&header, MAGIC_CONFIG)];
        for chunk in content.chunks(BLOCK_BYTES) {
            blocks.push(cairn_sys::BlockMut::copy_of(chunk).freeze());
        }
        assert!(blocks.len() as u64 <= CONFIG_BLOCKS, "configuration fits its area");
        blocks
    }

    /// Reads one copy; `None` when it is torn, damaged or makes no sense.
    pub(crate) fn decode(blocks: &[Block]) -> Option<Self> {
        let (first, rest) = blocks.split_first()?;
        let header: &ConfigHeaderV1 = open(first, MAGIC_CONFIG).ok()?;
        let (groups, disks) = (usize::from(header.groups.get()), usize::from(header.disks.get()));
        if groups + disks > CONFIG_RECORDS_MAX {
            return None;
        }
        let mut content = Vec::with_capacity(CONFIG_RECORDS_MAX * 64);
        for block in rest {
            content.extend_from_slice(&block[..]);
        }
        let content = content.get(..(groups + disks) * 64)?;
        if crc32fast::hash(content) != header.content_crc.get() {
            return None;
        }
        let mut config = Self {
            aggregate: AggregateUuid::new(header.aggregate),
            generation: header.generation.get(),
            pvbn_next: Pvbn::new(header.pvbn_next.get()),
            groups: BTreeMap::new(),
            spares: Vec::new(),
            log_disks: Vec::new(),
            failed: Vec::new(),
            known: BTreeMap::new(),
        };
        let (group_bytes, disk_bytes) = content.split_at(groups * 64);
        for bytes in group_bytes.chunks_exact(64) {
            config.take_group(GroupRecordV1::ref_from_bytes(bytes).ok()?)?;
        }
        for bytes in disk_bytes.chunks_exact(64) {
            config.take_disk(DiskRecordV1::ref_from_bytes(bytes).ok()?)?;
        }
        Some(config)
    }

    fn take_group(&mut self, record: &GroupRecordV1) -> Option<()> {
        let kind = match record.kind {
            1 => RaidKind::Raid4,
            2 => RaidKind::RaidDp,
            _ => return None,
        };
        let p = record.p.get();
        if !matches!(p, 17 | 257) {
            return None;
        }
        let group =
            GroupConfig { kind, p, stripes: record.stripes.get(), positions: BTreeMap::new() };
        self.groups.insert(GroupNo::new(record.group.get()), group).is_none().then_some(())
    }

    fn take_disk(&mut self, record: &DiskRecordV1) -> Option<()> {
        let disk = DiskUuid::new(record.disk);
        self.known.extend(Known::load(record).map(|known| (disk, known)));
        match record.role {
            ROLE_SPARE => self.spares.push(disk),
            ROLE_LOG => self.log_disks.push(disk),
            ROLE_FAILED => self.failed.push(disk),
            ROLE_DATA | ROLE_ROW | ROLE_DIAGONAL => {
                let group = self.groups.get_mut(&GroupNo::new(record.group.get()))?;
                let column = ColumnNo::new(record.column.get());
                if column > group.diagonal_column() {
                    return None;
                }
                let position = Position {
                    disk: (record.disk != [0; 16]).then_some(disk),
                    state: state_of(record.state)?,
                    progress: record.progress.get().min(group.stripes),
                    pvbn_base: Pvbn::new(record.pvbn_base.get()),
                    twin: None,
                };
                if group.positions.insert(column, position).is_some() {
                    return None;
                }
            }
            ROLE_TWIN => {
                let group = self.groups.get_mut(&GroupNo::new(record.group.get()))?;
                let progress = record.progress.get().min(group.stripes);
                let position = group.positions.get_mut(&ColumnNo::new(record.column.get()))?;
                if position.state != ColumnState::Online || position.twin.is_some() {
                    return None;
                }
                position.twin = Some(TwinConfig { disk, progress });
            }
            _ => return None,
        }
        Some(())
    }
}

fn group_record(group: GroupNo, config: &GroupConfig) -> GroupRecordV1 {
    let mut record: GroupRecordV1 = blank();
    record.group = group.get().into();
    record.kind = match config.kind {
        RaidKind::Raid4 => 1,
        RaidKind::RaidDp => 2,
    };
    record.p = config.p.into();
    record.stripes = config.stripes.into();
    record
}

fn position_record(
    group: GroupNo,
    column: ColumnNo,
    config: &GroupConfig,
    position: &Position,
) -> DiskRecordV1 {
    let mut record: DiskRecordV1 = blank();
    record.disk = position.disk.map_or([0; 16], DiskUuid::bytes);
    record.group = group.get().into();
    record.column = column.get().into();
    record.role = if column == config.row_column() {
        ROLE_ROW
    } else if column == config.diagonal_column() {
        ROLE_DIAGONAL
    } else {
        ROLE_DATA
    };
    record.state = state_code(position.state);
    record.pvbn_base = position.pvbn_base.get().into();
    record.progress = position.progress.into();
    record
}

fn twin_record(group: GroupNo, column: ColumnNo, twin: TwinConfig) -> DiskRecordV1 {
    let mut record: DiskRecordV1 = blank();
    record.disk = twin.disk.bytes();
    record.group = group.get().into();
    record.column = column.get().into();
    record.role = ROLE_TWIN;
    record.state = state_code(ColumnState::Rebuilding);
    record.progress = twin.progress.into();
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Config {
        let position = |n: u8, state| Position {
            disk: (state != ColumnState::Missing).then(|| DiskUuid::new([n; 16])),
            state,
            progress: 0,
            pvbn_base: Pvbn::new(64),
            twin: (n == 4).then_some(TwinConfig { disk: DiskUuid::new([6; 16]), progress: 252 }),
        };
        let positions = BTreeMap::from([
            (ColumnNo::new(0), position(1, ColumnState::Online)),
            (ColumnNo::new(1), position(2, ColumnState::Missing)),
            (ColumnNo::new(16), position(3, ColumnState::Rebuilding)),
            (ColumnNo::new(17), position(4, ColumnState::Online)),
        ]);
        let group = GroupConfig { kind: RaidKind::RaidDp, p: 17, stripes: 1000, positions };
        Config {
            aggregate: AggregateUuid::new([9; 16]),
            generation: 5,
            pvbn_next: Pvbn::new(2048),
            groups: BTreeMap::from([(GroupNo::new(0), group)]),
            spares: vec![DiskUuid::new([7; 16])],
            log_disks: vec![],
            failed: vec![DiskUuid::new([8; 16])],
            known: BTreeMap::from([
                (DiskUuid::new([8; 16]), Known::new(77, "/dev/disk/by-id/x-WD-1234567890a")),
                (DiskUuid::new([1; 16]), Known::new(5, "/dev/sdb")),
            ]),
        }
    }

    #[test]
    fn configuration_round_trips_and_a_torn_copy_is_refused() {
        let config = sample();
        let mut blocks = config.encode();
        assert_eq!(Config::decode(&blocks), Some(config));
        blocks[1].make_mut()[70] ^= 4;
        assert_eq!(Config::decode(&blocks), None);
    }

    #[test]
    fn the_end_of_a_location_is_kept_as_whole_letters() {
        assert_eq!(Known::new(1, "/dev/sdb").location, "/dev/sdb");
        assert_eq!(Known::new(1, "/tmp/cairn-demo/disk-03.img").location, "demo/disk-03.img");
        // The sixteenth byte from the end is the second half of a letter.
        assert_eq!(Known::new(1, "/a\u{e4}123456789012345").location, "123456789012345");
    }

    #[test]
    fn a_disk_that_was_taken_out_is_not_counted_on() {
        let config = sample();
        assert!(config.counts_on(DiskUuid::new([1; 16])));
        assert!(config.counts_on(DiskUuid::new([7; 16])));
        assert!(config.counts_on(DiskUuid::new([6; 16])));
        assert!(!config.counts_on(DiskUuid::new([8; 16])));
        assert!(!config.counts_on(DiskUuid::new([2; 16])));
    }
}
