//! Where things lie on a disk.
//!
//! Layer: pure arithmetic over [`crate::ondisk`]. Invariant: areas do not overlap and end before
//! the last block, which is the second copy of the label.

use cairn_raid_disk::DISK_BLOCKS_MIN;
use cairn_units::{Blocks, Dbn};

use crate::ondisk::{CONFIG_BLOCKS, LabelV1, MAP_REGIONS, REGION_BLOCKS, REGION_STRIPES};

/// Second block of the label pair is the last block; the first is block 0.
pub(crate) const LABEL_AT: Dbn = Dbn::new(0);
/// The two root slots.
pub(crate) const ROOT_AT: u64 = 8;
/// The two configuration copies.
const CONFIG_AT: u64 = 16;
/// The region map begins here.
const MAP_AT: u64 = 64;
/// NV log area: a 32nd of the disk, within these.
const LOG_BLOCKS_MIN: u64 = 512;
const LOG_BLOCKS_MAX: u64 = 65_536;
/// Stripe log area: a 64th of the disk, within these.
pub(crate) const STRIPE_LOG_BLOCKS_MIN: u64 = 192;
const STRIPE_LOG_BLOCKS_MAX: u64 = 4096;

const _: () = assert!(CONFIG_AT + 2 * CONFIG_BLOCKS <= MAP_AT);

/// The areas of one disk, as its label names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub blocks: u64,
    pub config_at: u64,
    pub map_at: u64,
    pub map_blocks: u64,
    pub log_at: u64,
    pub log_blocks: u64,
    pub stripe_log_at: u64,
    pub stripe_log_blocks: u64,
    pub regions_at: u64,
    pub regions: u64,
}

/// NV log blocks for a disk of this size, unless the administrator chose.
pub(crate) fn default_log_blocks(disk: Blocks) -> Blocks {
    Blocks::new((disk.get() / 32).clamp(LOG_BLOCKS_MIN, LOG_BLOCKS_MAX))
}

/// Stripe log blocks for a disk of this size.
pub(crate) fn default_stripe_log_blocks(disk: Blocks) -> Blocks {
    Blocks::new((disk.get() / 64).clamp(STRIPE_LOG_BLOCKS_MIN, STRIPE_LOG_BLOCKS_MAX))
}

impl Layout {
    /// Lays out a disk; `None` when it is too small to hold one region.
    pub(crate) fn plan(disk: Blocks, log: Blocks, stripe_log: Blocks) -> Option<Self> {
        let blocks = disk.get();
        if disk < DISK_BLOCKS_MIN {
            return None;
        }
        // The map is sized for the whole disk; a few bits too many do no harm.
        let map_blocks = 2 * (blocks / REGION_BLOCKS).div_ceil(MAP_REGIONS);
        let log_at = MAP_AT + map_blocks;
        let stripe_log_at = log_at.checked_add(log.get())?;
        let regions_at = stripe_log_at.checked_add(stripe_log.get())?;
        let regions = blocks.checked_sub(1)?.checked_sub(regions_at)? / REGION_BLOCKS;
        (regions > 0).then_some(Self {
            blocks,
            config_at: CONFIG_AT,
            map_at: MAP_AT,
            map_blocks,
            log_at,
            log_blocks: log.get(),
            stripe_log_at,
            stripe_log_blocks: stripe_log.get(),
            regions_at,
            regions,
        })
    }

    /// The layout that a label names, when it is one that fits on `disk`.
    pub(crate) fn of_label(label: &LabelV1, disk: Blocks) -> Option<Self> {
        let found = Self {
            blocks: label.blocks.get(),
            config_at: label.config_at.get(),
            map_at: label.map_at.get(),
            map_blocks: label.map_blocks.get(),
            log_at: label.log_at.get(),
            log_blocks: label.log_blocks.get(),
            stripe_log_at: label.stripe_log_at.get(),
            stripe_log_blocks: label.stripe_log_blocks.get(),
            regions_at: label.regions_at.get(),
            regions: label.regions.get(),
        };
        let planned = Self::plan(
            Blocks::new(found.blocks),
            Blocks::new(found.log_blocks),
            Blocks::new(found.stripe_log_blocks),
        )?;
        (planned == found && found.blocks <= disk.get()).then_some(found)
    }

    /// Fills the layout's fields of a label.
    pub(crate) fn store(&self, label: &mut LabelV1) {
        label.blocks = self.blocks.into();
        label.config_at = self.config_at.into();
        label.map_at = self.map_at.into();
        label.map_blocks = self.map_blocks.into();
        label.log_at = self.log_at.into();
        label.log_blocks = self.log_blocks.into();
        label.stripe_log_at = self.stripe_log_at.into();
        label.stripe_log_blocks = self.stripe_log_blocks.into();
        label.regions_at = self.regions_at.into();
        label.regions = self.regions.into();
    }

    /// Stripes that the disk has room for.
    pub(crate) fn stripes(&self) -> u64 {
        self.regions * REGION_STRIPES
    }
    /// Block of stripe `stripe`.
    pub(crate) fn stripe_dbn(&self, stripe: u64) -> Dbn {
        let region = stripe / REGION_STRIPES;
        Dbn::new(self.regions_at + region * REGION_BLOCKS + 2 + stripe % REGION_STRIPES)
    }
    /// Copy `copy` (0 or 1) of the checksum block of `region`.
    pub(crate) fn stamps_dbn(&self, region: u64, copy: u8) -> Dbn {
        Dbn::new(self.regions_at + region * REGION_BLOCKS + u64::from(copy))
    }
    /// Copy `copy` of block `index` of the region map.
    pub(crate) fn map_dbn(&self, index: u64, copy: u8) -> Dbn {
        Dbn::new(self.map_at + 2 * index + u64::from(copy))
    }
    /// Blocks of the region map, one copy of each counted.
    pub(crate) fn map_indexes(&self) -> u64 {
        self.map_blocks / 2
    }
    /// Root slot 0 or 1.
    pub(crate) fn root_dbn(&self, slot: u8) -> Dbn {
        Dbn::new(ROOT_AT + u64::from(slot))
    }
    /// First block of configuration copy 0 or 1.
    pub(crate) fn config_dbn(&self, copy: u8) -> Dbn {
        Dbn::new(self.config_at + u64::from(copy) * CONFIG_BLOCKS)
    }
    /// The second copy of the label.
    pub(crate) fn label_b(&self) -> Dbn {
        Dbn::new(self.blocks - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ondisk::blank;

    #[test]
    fn small_and_large_disks_lay_out_without_overlap() {
        for blocks in [4096u64, 16_384, 524_288, 1 << 32] {
            let disk = Blocks::new(blocks);
            let layout =
                Layout::plan(disk, default_log_blocks(disk), default_stripe_log_blocks(disk))
                    .unwrap();
            assert!(layout.map_at + layout.map_blocks <= layout.log_at);
            assert!(layout.log_at + layout.log_blocks <= layout.stripe_log_at);
            assert!(layout.stripe_log_at + layout.stripe_log_blocks <= layout.regions_at);
            let last = layout.stripe_dbn(layout.stripes() - 1);
            assert!(last < layout.label_b());
            assert!(layout.map_indexes() * MAP_REGIONS >= layout.regions);
            let mut label: LabelV1 = blank();
            layout.store(&mut label);
            assert_eq!(Layout::of_label(&label, disk), Some(layout.clone()));
            label.regions_at = (layout.regions_at - 1).into();
            assert_eq!(Layout::of_label(&label, disk), None);
        }
        assert!(Layout::plan(Blocks::new(600), Blocks::new(1), Blocks::new(1)).is_none());
    }
}
