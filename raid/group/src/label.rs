//! Labels: who a disk is, and what was found on one.
//!
//! Layer: over the on-disk structs and the disk trait. Reading a label never writes. A disk
//! without a readable label of this aggregate is never written except by the explicit order to
//! create on it or to add it.

use std::sync::Arc;

use cairn_raid_disk::{Disk, DiskError};
use cairn_sys::{Block, BlockMut};
use cairn_units::{AggregateUuid, ColumnNo, Dbn, DiskUuid, GroupNo};

use crate::layout::{LABEL_AT, Layout};
use crate::ondisk::{BlockFault, LabelV1, MAGIC_LABEL, NONE_U16, blank, open, seal};

/// What a disk does, in its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds data.
    Data,
    /// Holds row parity.
    RowParity,
    /// Holds diagonal parity.
    DiagonalParity,
    /// Waits.
    Spare,
    /// Holds nothing but the log.
    Log,
}

/// Who a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Aggregate it belongs to.
    pub aggregate: AggregateUuid,
    /// The disk itself.
    pub disk: DiskUuid,
    /// Where it sat when the label was written; the configuration is the authority.
    pub position: Option<(GroupNo, ColumnNo)>,
    /// What it did when the label was written.
    pub role: Role,
}

/// What [`crate::probe`] finds on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// No label: nothing of ours.
    Blank,
    /// A whole label.
    Labelled(Identity),
    /// A label of a format that this program does not know.
    Version(u32),
    /// A label was there and is damaged in both copies, or makes no sense.
    Damaged,
    /// The disk does not answer.
    Unreadable(DiskError),
}

pub(crate) fn label_block(identity: &Identity, layout: &Layout) -> Block {
    let mut raw: LabelV1 = blank();
    raw.aggregate = identity.aggregate.bytes();
    raw.disk = identity.disk.bytes();
    let (group, column) =
        identity.position.map_or((NONE_U16, NONE_U16), |(g, c)| (g.get(), c.get()));
    raw.group = group.into();
    raw.column = column.into();
    raw.role = match identity.role {
        Role::Data => 1,
        Role::RowParity => 2,
        Role::DiagonalParity => 3,
        Role::Spare => 4,
        Role::Log => 6,
    };
    layout.store(&mut raw);
    seal(&raw, MAGIC_LABEL)
}

fn identity(raw: &LabelV1) -> Option<Identity> {
    let role = match raw.role {
        1 => Role::Data,
        2 => Role::RowParity,
        3 => Role::DiagonalParity,
        4 => Role::Spare,
        6 => Role::Log,
        _ => return None,
    };
    let position = (raw.group.get() != NONE_U16)
        .then(|| (GroupNo::new(raw.group.get()), ColumnNo::new(raw.column.get())));
    Some(Identity {
        aggregate: AggregateUuid::new(raw.aggregate),
        disk: DiskUuid::new(raw.disk),
        position,
        role,
    })
}

/// Whether the block is a whole label of this disk.
pub(crate) fn is_of(block: &Block, disk: DiskUuid) -> bool {
    open::<LabelV1>(block, MAGIC_LABEL).is_ok_and(|raw| raw.disk == disk.bytes())
}

/// Reads both copies and says what the disk is.
pub(crate) async fn read_label(disk: &Arc<dyn Disk>) -> (Probe, Option<Layout>) {
    let blocks = disk.info().blocks;
    if blocks.get() == 0 {
        return (Probe::Blank, None);
    }
    let mut worst = Probe::Blank;
    for at in [LABEL_AT, Dbn::new(blocks.get() - 1)] {
        let block = match disk.read(at, vec![BlockMut::dirty()]).await {
            Ok(mut bufs) => bufs.pop().map(BlockMut::freeze),
            Err(error) => {
                if !matches!(worst, Probe::Version(_)) {
                    worst = Probe::Unreadable(error);
                }
                continue;
            }
        };
        let Some(block) = block else { continue };
        match open::<LabelV1>(&block, MAGIC_LABEL) {
            Ok(raw) => {
                let layout = Layout::of_label(raw, blocks);
                if let (Some(identity), Some(layout)) = (identity(raw), layout) {
                    return (Probe::Labelled(identity), Some(layout));
                }
                worst = Probe::Damaged;
            }
            Err(BlockFault::Version(version)) => worst = Probe::Version(version),
            Err(BlockFault::Damaged) if worst == Probe::Blank => worst = Probe::Damaged,
            Err(_) => {}
        }
    }
    (worst, None)
}
