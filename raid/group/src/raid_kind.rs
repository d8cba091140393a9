//! RAID-4 to RAID-DP and back, online: the disk of diagonal parity joins or leaves a group.
//!
//! Layer: over the configuration; the work is done by rebuild. A RAID-4 group is a RAID-DP group
//! without its last column, so a group that becomes RAID-DP is one whose diagonal parity is being
//! rebuilt: from the change of the configuration on each write brings its diagonal parity along,
//! what was written before is computed stripe by stripe behind the progress mark, and until that
//! is done the group counts one disk as lost, as RAID-4 protects it. Nothing else has to be known
//! about the change: a power cut, a failed disk and a lost spare are what they are for a rebuild.
//!
//! Invariant: the configuration changes while nobody writes and the stripe log holds no live
//! record, so that no record or write of one kind meets the other.

use std::sync::Arc;

use cairn_raid_api::{AdminError, ColumnState, RaidKind};
use cairn_units::{GroupNo, Pvbn};

use crate::Event;
use crate::admin::{refused, take_spares};
use crate::config::Position;
use crate::core::Core;
use crate::failure::note_failed;
use crate::member::Member;
use crate::view::GroupView;

impl Core {
    /// Adds diagonal parity to a RAID-4 group, on a spare.
    pub(crate) async fn add_diagonal(self: &Arc<Self>, no: GroupNo) -> Result<(), AdminError> {
        {
            let mut interval = self.interval.write().await;
            self.end_interval_marked(&mut interval).await?;
            let _config = self.config.lock().await;
            self.settle_locked().await?;
            let view = self.view();
            let now = view.groups.get(&no).ok_or(AdminError::NoSuchGroup(no))?;
            if now.code.kind == RaidKind::RaidDp {
                return Ok(());
            }
            if now.lost() > 0 {
                let reason = "has lost a disk; it must be whole first (`cairn disk list`)";
                return Err(refused(&format!("group {no}"), reason));
            }
            let mut config = view.config.clone();
            let Some(spare) = take_spares(&mut config, &view, 1, now.stripes).pop() else {
                let reason = "no spare is big enough for its diagonal parity; add one first: \
                              `cairn disk add`";
                return Err(refused(&format!("group {no}"), reason));
            };
            let group = config.groups.get_mut(&no).ok_or(AdminError::NoSuchGroup(no))?;
            let column = group.diagonal_column();
            let mut position = Position::online(spare.uuid, Pvbn::new(0));
            position.state = ColumnState::Rebuilding;
            group.kind = RaidKind::RaidDp;
            group.positions.insert(column, position);
            self.adopt(config).await?;
            self.settle_locked().await?;
            self.event(Event::RebuildStarted { disk: spare.uuid, group: no, column });
        }
        self.start_rebuilds();
        Ok(())
    }

    /// Drops the diagonal parity of a RAID-DP group; its disk becomes a spare.
    pub(crate) async fn drop_diagonal(self: &Arc<Self>, no: GroupNo) -> Result<(), AdminError> {
        {
            let mut interval = self.interval.write().await;
            self.end_interval_marked(&mut interval).await?;
            let _config = self.config.lock().await;
            self.settle_locked().await?;
            // The disk's part of the NV log goes as that of a disk that fails.
            let areas = self.log_areas.write().await;
            let view = self.view();
            let now = view.groups.get(&no).ok_or(AdminError::NoSuchGroup(no))?;
            if now.code.kind == RaidKind::Raid4 {
                return Ok(());
            }
            check_droppable(now)?;
            let mut config = view.config.clone();
            let group = config.groups.get_mut(&no).ok_or(AdminError::NoSuchGroup(no))?;
            group.kind = RaidKind::Raid4;
            let column = group.diagonal_column();
            let disk = group.positions.remove(&column).and_then(|p| p.disk);
            let member = disk.and_then(|d| view.members.get(&d)).filter(|m| !m.is_dead()).cloned();
            self.adopt(config).await?;
            if let Some(member) = &member {
                self.forget_member(member);
            }
            self.settle_locked().await?;
            drop(areas);
            drop(interval);
            if let Some(member) = member {
                self.reuse(&member).await?;
            }
        }
        // A position of another group may have waited for a spare.
        self.promote().await?;
        self.start_rebuilds();
        Ok(())
    }

    /// Makes a disk that left its group a spare, under a new identity: nothing that it holds is
    /// taken for anything again. A disk that does not take it is out.
    async fn reuse(&self, member: &Arc<Member>) -> Result<(), AdminError> {
        match self.enlist(member.disk.clone(), member.layout.clone()).await {
            Err(AdminError::Refused { location, reason }) => {
                tracing::warn!(%location, %reason, "dropped disk is no spare");
                let mut config = self.view().config.clone();
                note_failed(&mut config, member.uuid);
                self.adopt(config).await?;
                self.settle_locked().await?;
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }
}

/// Whether a group can do without diagonal parity: everything else is whole.
fn check_droppable(group: &GroupView) -> Result<(), AdminError> {
    let name = format!("group {}", group.group);
    let diagonal = |s: &crate::view::Slot| s.column.get() == group.code.p;
    for slot in &group.slots {
        let whole = slot.state == ColumnState::Online && slot.writable().is_some();
        if !diagonal(slot) && !whole {
            let reason = "has lost a disk; without diagonal parity nothing would protect it";
            return Err(refused(&name, reason));
        }
        if diagonal(slot) && slot.twin.is_some() {
            return Err(refused(&name, "has its diagonal parity being copied; wait for it"));
        }
    }
    Ok(())
}
