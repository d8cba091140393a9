//! The aggregate at one moment: configuration, disks, geometry. Immutable; a change makes a new
//! one.
//!
//! Layer: pure. Who works on stripes takes the view after it holds their lock.

use cairn_sys::lock::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_raid_api::{ColumnState, DataColumn, Geometry, GroupGeometry};
use cairn_units::{Blocks, ColumnNo, DiskUuid, GroupNo, Pvbn};

use crate::code::Code;
use crate::config::{Config, GroupConfig};
use crate::member::Member;
use crate::ondisk::REGION_STRIPES;

/// One position of a group at run time.
#[derive(Clone)]
pub(crate) struct Slot {
    pub column: ColumnNo,
    pub state: ColumnState,
    pub member: Option<Arc<Member>>,
    pub pvbn_base: Pvbn,
    /// Stripes rebuilt so far; shared between views.
    pub progress: Arc<AtomicU64>,
    /// The disk that is to replace `member`.
    pub twin: Option<Twin>,
}

/// A disk that takes every write that its slot takes, and is being filled with the rest. Nothing
/// is read from it: when the slot's disk dies before all is copied, it becomes the slot's disk, to
/// be rebuilt from where the copy stood.
#[derive(Clone)]
pub(crate) struct Twin {
    pub member: Arc<Member>,
    /// Stripes copied so far; shared between views.
    pub progress: Arc<AtomicU64>,
}

impl Slot {
    /// The twin, if it is there and takes writes.
    pub(crate) fn twin(&self) -> Option<&Twin> {
        self.twin.as_ref().filter(|t| !t.member.is_dead())
    }
    /// The disk, if what it holds of `stripe` counts.
    pub(crate) fn readable(&self, stripe: u64) -> Option<&Arc<Member>> {
        let member = self.member.as_ref().filter(|m| !m.is_dead())?;
        let whole = match self.state {
            ColumnState::Online => true,
            ColumnState::Rebuilding => stripe < self.progress.load(Ordering::Acquire),
            ColumnState::Missing => false,
        };
        whole.then_some(member)
    }
    /// The disk, if it takes writes.
    pub(crate) fn writable(&self) -> Option<&Arc<Member>> {
        let member = self.member.as_ref().filter(|m| !m.is_dead())?;
        (self.state != ColumnState::Missing).then_some(member)
    }
}

/// One group at run time. Slots by column number: data, row parity, diagonal parity.
#[derive(Clone)]
pub(crate) struct GroupView {
    pub group: GroupNo,
    pub code: Code,
    pub stripes: u64,
    pub slots: Vec<Slot>,
}

impl GroupView {
    /// Data columns; they are the first slots.
    pub(crate) fn width(&self) -> usize {
        self.slots.iter().filter(|s| self.is_data(s.column)).count()
    }
    pub(crate) fn is_data(&self, column: ColumnNo) -> bool {
        column.get() < self.code.p - 1
    }
    /// Data slot and stripe of a block; most likely the slot is `hint`.
    pub(crate) fn data_place(&self, at: Pvbn, hint: usize) -> Option<(usize, u64)> {
        let stripe_in = |slot: &Slot| {
            let stripe = at.since(slot.pvbn_base)?;
            (self.is_data(slot.column) && stripe < self.stripes).then_some(stripe)
        };
        if let Some(stripe) = self.slots.get(hint).and_then(stripe_in) {
            return Some((hint, stripe));
        }
        self.slots.iter().enumerate().find_map(|(slot, s)| Some((slot, stripe_in(s)?)))
    }
    /// Positions whose disk is gone or not rebuilt yet.
    pub(crate) fn lost(&self) -> u16 {
        let whole = |s: &&Slot| s.state == ColumnState::Online && s.writable().is_some();
        let lost = self.slots.len() - self.slots.iter().filter(whole).count();
        u16::try_from(lost).unwrap_or(u16::MAX)
    }
    pub(crate) fn parity(&self) -> u16 {
        self.code.kind.parity()
    }
    /// Whether more disks are lost than parity covers.
    pub(crate) fn failed(&self) -> bool {
        self.lost() > self.parity()
    }
}

/// See the module.
pub(crate) struct View {
    pub config: Config,
    /// Every disk that is there: members, spares, log disks.
    pub members: BTreeMap<DiskUuid, Arc<Member>>,
    pub groups: BTreeMap<GroupNo, GroupView>,
    pub geometry: Arc<Geometry>,
}

impl View {
    /// Puts configuration and disks together. Rebuild progress of positions that go on being
    /// rebuilt is taken over from `old`.
    pub(crate) fn new(
        config: Config,
        members: BTreeMap<DiskUuid, Arc<Member>>,
        old: Option<&View>,
    ) -> Self {
        let groups: BTreeMap<GroupNo, GroupView> = config
            .groups
            .iter()
            .map(|(no, group)| (*no, group_view(*no, group, &members, old)))
            .collect();
        let geometry = Arc::new(geometry(&config, &groups));
        Self { config, members, groups, geometry }
    }

    /// Disks of groups, alive, in order of group and column.
    pub(crate) fn group_members(&self) -> Vec<Arc<Member>> {
        self.groups
            .values()
            .flat_map(|g| g.slots.iter().filter_map(Slot::writable).cloned())
            .collect()
    }
    /// Disks that others are being copied to, alive.
    pub(crate) fn twins(&self) -> Vec<Arc<Member>> {
        let slots = self.groups.values().flat_map(|g| &g.slots);
        slots.filter_map(Slot::twin).map(|t| t.member.clone()).collect()
    }
    /// The disk that `disk` is being copied to.
    pub(crate) fn twin_of(&self, disk: DiskUuid) -> Option<Arc<Member>> {
        let mut slots = self.groups.values().flat_map(|g| &g.slots);
        let slot = slots.find(|s| s.member.as_ref().is_some_and(|m| m.uuid == disk))?;
        slot.twin().map(|t| t.member.clone())
    }
    /// Every disk that is alive.
    pub(crate) fn alive(&self) -> Vec<Arc<Member>> {
        self.members.values().filter(|m| !m.is_dead()).cloned().collect()
    }
    /// Group, slot index and stripe of a block.
    pub(crate) fn locate(&self, at: Pvbn) -> Option<(&GroupView, usize, u64)> {
        self.groups.values().find_map(|group| {
            group.slots.iter().take(group.width()).enumerate().find_map(|(i, slot)| {
                let stripe = at.since(slot.pvbn_base)?;
                (stripe < group.stripes).then_some((group, i, stripe))
            })
        })
    }
}

fn group_view(
    no: GroupNo,
    group: &GroupConfig,
    members: &BTreeMap<DiskUuid, Arc<Member>>,
    old: Option<&View>,
) -> GroupView {
    let slots = group
        .positions
        .iter()
        .map(|(column, position)| {
            let same = old
                .and_then(|o| o.groups.get(&no))
                .and_then(|g| g.slots.iter().find(|s| s.column == *column))
                .filter(|s| {
                    s.state == position.state && s.member.as_ref().map(|m| m.uuid) == position.disk
                });
            let before = old
                .and_then(|o| o.groups.get(&no))
                .and_then(|g| g.slots.iter().find(|s| s.column == *column))
                .and_then(|s| s.twin.as_ref());
            let twin = position.twin.and_then(|twin| {
                let member = members.get(&twin.disk)?.clone();
                let same = before.filter(|t| t.member.uuid == twin.disk);
                let progress = same.map_or_else(
                    || Arc::new(AtomicU64::new(twin.progress)),
                    |t| t.progress.clone(),
                );
                Some(Twin { member, progress })
            });
            Slot {
                twin,
                column: *column,
                state: position.state,
                member: position.disk.and_then(|d| members.get(&d).cloned()),
                pvbn_base: position.pvbn_base,
                progress: same.map_or_else(
                    || Arc::new(AtomicU64::new(position.progress)),
                    |s| s.progress.clone(),
                ),
            }
        })
        .collect();
    let code = Code { kind: group.kind, p: group.p };
    GroupView { group: no, code, stripes: group.stripes, slots }
}

fn geometry(config: &Config, groups: &BTreeMap<GroupNo, GroupView>) -> Geometry {
    let mut end = Pvbn::new(0);
    let groups = groups
        .values()
        .map(|group| GroupGeometry {
            group: group.group,
            stripes: Blocks::new(group.stripes),
            data: group
                .slots
                .iter()
                .take(group.width())
                .map(|slot| {
                    end = end.max(slot.pvbn_base.plus(group.stripes));
                    let state =
                        if slot.writable().is_none() { ColumnState::Missing } else { slot.state };
                    DataColumn { column: slot.column, pvbn_base: slot.pvbn_base, state }
                })
                .collect(),
            parity: group.parity(),
            region_stripes: REGION_STRIPES,
        })
        .collect();
    Geometry { aggregate: config.aggregate, version: config.generation, groups, pvbn_end: end }
}
