//! What may break: the injector's account of what is broken, and what the design still survives.
//!
//! Layer: beside the driver. A group with parity for `p` disks survives the loss of `p` columns of
//! any stripe, whatever they are lost by. Disks that are lost, hang, lie or are being rebuilt
//! count for every stripe; damaged blocks for their region (126 stripes and their checksum
//! blocks). Damage outside of the stripes (labels, logs, roots, maps) counts as a whole disk until
//! the disk is replaced. The NV log has a copy more than there is parity; a half that has lost
//! copies has them back only when a consistency point lets it go, be the group whole again or
//! not. A fault that would go beyond that is not injected.

use std::collections::{BTreeMap, BTreeSet};

use cairn_raid_api::{ColumnState, DiskStatus};
use cairn_sim::Rng;
use cairn_units::{Dbn, DiskUuid};

/// Blocks of a region: two checksum blocks and 126 of stripes.
const REGION_BLOCKS: u64 = 128;

/// Why a disk counts as lost though it may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Suspicion {
    /// A scrub that comes to its end makes it good.
    UntilScrub,
    /// Only a new disk does.
    UntilReplaced,
}

/// The account.
#[derive(Default)]
pub(crate) struct Account {
    /// Disks that do not answer: dead ones, and hung ones.
    pub(crate) dead: BTreeSet<String>,
    pub(crate) hung: BTreeSet<String>,
    suspect: BTreeMap<String, Suspicion>,
    /// Region → disks with damage in it.
    damage: BTreeMap<u64, BTreeSet<String>>,
    /// Disks that hold each half of the NV log in use.
    pub(crate) log_copies: Vec<Vec<DiskUuid>>,
}

impl Account {
    /// Positions that are lost, or must be counted as lost.
    fn lost(&self, disks: &[DiskStatus]) -> BTreeSet<(u16, u16)> {
        disks
            .iter()
            .filter_map(|d| d.position.map(|p| (d, (p.0.get(), p.1.get()))))
            .filter(|(d, _)| d.state != ColumnState::Online || self.counts_as_lost(&d.location))
            .map(|(_, position)| position)
            .collect()
    }

    fn counts_as_lost(&self, location: &str) -> bool {
        self.dead.contains(location)
            || self.hung.contains(location)
            || self.suspect.contains_key(location)
    }

    /// Columns of the worst stripe that are lost.
    fn worst(&self, disks: &[DiskStatus], but: Option<u64>) -> usize {
        let lost = self.lost(disks).len();
        let member = |at: &&String| {
            let status = disks.iter().find(|d| d.location == **at);
            status.is_some_and(|d| d.position.is_some()) && !self.counts_as_lost(at)
        };
        let regions = self.damage.iter().filter(|(region, _)| but.is_none_or(|b| b == **region));
        lost + regions.map(|(_, at)| at.iter().filter(member).count()).max().unwrap_or(0)
    }

    /// Whether a whole disk may be lost, or lie.
    pub(crate) fn allows_disk(&self, disks: &[DiskStatus], location: &str, parity: u16) -> bool {
        let Some(status) = disks.iter().find(|d| d.location == location) else { return false };
        if status.position.is_none() {
            // A spare: nothing depends on it.
            return !self.counts_as_lost(location);
        }
        !self.counts_as_lost(location)
            && status.state == ColumnState::Online
            && self.worst(disks, None) < usize::from(parity)
            && self.log_survives(disks, location)
    }

    /// Whether each half of the NV log has a copy on a disk that is well but for this one.
    fn log_survives(&self, disks: &[DiskStatus], location: &str) -> bool {
        let is_well = |disk: &DiskUuid| {
            let status = disks.iter().find(|d| d.disk == *disk);
            status.is_some_and(|d| d.location != location && !self.counts_as_lost(&d.location))
        };
        self.log_copies.iter().all(|copies| copies.iter().any(is_well))
    }

    /// Whether a block of a region may be damaged on a disk.
    pub(crate) fn allows_damage(
        &self,
        disks: &[DiskStatus],
        location: &str,
        region: u64,
        parity: u16,
    ) -> bool {
        let Some(status) = disks.iter().find(|d| d.location == location) else { return false };
        let known = self.damage.get(&region).is_some_and(|at| at.contains(location));
        status.state == ColumnState::Online
            && !self.counts_as_lost(location)
            && (known || self.worst(disks, Some(region)) < usize::from(parity))
    }

    pub(crate) fn damaged(&mut self, location: &str, region: u64) {
        self.damage.entry(region).or_default().insert(location.to_owned());
    }

    pub(crate) fn suspects(&mut self, location: &str, suspicion: Suspicion) {
        let slot = self.suspect.entry(location.to_owned()).or_insert(suspicion);
        *slot = (*slot).max(suspicion);
    }

    /// A scrub came to its end with every disk answering; `armed` disks may still lie later.
    pub(crate) fn scrubbed(&mut self, armed: impl Fn(&str) -> bool) {
        self.damage.clear();
        self.suspect.retain(|at, s| *s != Suspicion::UntilScrub || armed(at));
    }

    /// A disk is not used any more, or is used anew.
    pub(crate) fn forget(&mut self, location: &str) {
        self.suspect.remove(location);
        self.dead.remove(location);
        self.hung.remove(location);
        self.damage.retain(|_, at| {
            at.remove(location);
            !at.is_empty()
        });
    }

    /// Disks that must be replaced.
    pub(crate) fn to_replace(&self) -> Vec<String> {
        let all = self.suspect.iter().filter(|(_, s)| **s == Suspicion::UntilReplaced);
        all.map(|(at, _)| at.clone()).collect()
    }
}

/// Where the areas of a disk lie; the same arithmetic as `raid/group/src/layout.rs`, for disks of
/// the sizes used here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Areas {
    log_at: u64,
    log_blocks: u64,
    regions_at: u64,
    regions: u64,
}

impl Areas {
    pub(crate) fn of(disk_blocks: u64) -> Self {
        let log_at = 64 + 2;
        let log_blocks = (disk_blocks / 32).clamp(512, 65_536);
        let regions_at = log_at + log_blocks + (disk_blocks / 64).clamp(192, 4096);
        let regions = (disk_blocks - 1 - regions_at) / REGION_BLOCKS;
        Self { log_at, log_blocks, regions_at, regions }
    }

    /// A block of a region that is likely to be in use, and its region.
    pub(crate) fn block(&self, rng: &mut Rng) -> (Dbn, u64) {
        let span = if rng.one_in(2) { self.regions.min(6) } else { self.regions };
        let region = rng.below(span);
        let at = self.regions_at + region * REGION_BLOCKS + rng.below(REGION_BLOCKS);
        (Dbn::new(at), region)
    }

    /// A block of the NV log's area.
    pub(crate) fn log_block(&self, rng: &mut Rng) -> Dbn {
        Dbn::new(self.log_at + rng.below(self.log_blocks.min(64)))
    }

    /// Any block outside of the stripes but the first copy of the label.
    pub(crate) fn other_block(&self, rng: &mut Rng) -> Dbn {
        Dbn::new(match rng.below(4) {
            0 => 8 + rng.below(2),
            1 => 16 + rng.below(4),
            2 => 64 + rng.below(2),
            _ => self.log_at + rng.below(self.regions_at - self.log_at),
        })
    }
}
