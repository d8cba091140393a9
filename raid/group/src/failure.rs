//! What happens when a disk dies: out of the configuration, a spare in, a rebuild.
//!
//! Layer: over core. `fault` (core) → budget spent or gone → `kill` → [`Core::settle`]: position
//! `Missing` in memory, configuration stable on the others, spare → `Rebuilding`, rebuild task →
//! `Online`. Invariants: no write is acknowledged between a death and the stable configuration; a
//! configuration that counts more disks out than parity covers is never written, so that an
//! aggregate whose shelf lost power opens again.

use cairn_sys::lock::atomic::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_raid_api::{ColumnState, WriteError};
use cairn_raid_disk::DiskError;
use cairn_sys::{Block, BoxFuture, mutant};
use cairn_units::{ColumnNo, DiskUuid, GroupNo};

use crate::Event;
use crate::config::{Config, Known};
use crate::core::Core;
use crate::label::{Identity, Role, label_block};
use crate::member::Member;
use crate::tools::join_all;
use crate::view::View;

impl Core {
    /// Makes every death so far stable before it returns.
    ///
    /// # Errors
    /// When a group has lost more than its parity covers, or the disks are fenced off.
    pub(crate) async fn settle(&self) -> Result<(), WriteError> {
        if self.is_settled() {
            return Ok(());
        }
        let _config = self.config.lock().await;
        self.settle_locked().await
    }

    /// Whether every death is stable. A disk is dead a moment before it is counted, and whoever
    /// writes past it in that moment must not be answered.
    fn is_settled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire) == 0
            && !self.view().members.values().any(|m| m.is_dead())
    }

    /// [`Core::settle`] for who holds the configuration.
    pub(crate) async fn settle_locked(&self) -> Result<(), WriteError> {
        loop {
            if self.fenced.load(Ordering::Acquire) {
                return Err(WriteError::Fenced);
            }
            if self.is_settled() {
                return Ok(());
            }
            let seen = self.unsettled.load(Ordering::Acquire);
            let view = self.view();
            if let Some(group) = view.groups.values().find(|g| g.failed()) {
                let (lost, parity) = (group.lost(), group.parity());
                return Err(WriteError::GroupFailed { group: group.group, lost, parity });
            }
            let mut config = view.config.clone();
            for member in view.members.values().filter(|m| m.is_dead()) {
                if let (Some(twin), Some((group, column))) =
                    (view.twin_of(member.uuid), config.position_of(member.uuid))
                {
                    self.event(Event::RebuildStarted { disk: twin.uuid, group, column });
                }
                take_out(&mut config, member.uuid);
                self.stamps.forget(member.uuid);
                self.event(Event::DiskTakenOut { disk: member.uuid });
            }
            let promoted = promote_spares(&mut config, &view);
            if let Err(error) = self.adopt(config).await {
                tracing::error!(%error, "configuration could not be written");
                return Err(error);
            }
            self.unsettled.fetch_sub(seen, Ordering::AcqRel);
            for (disk, group, column) in promoted {
                self.event(Event::RebuildStarted { disk, group, column });
            }
        }
    }

    /// Publishes a configuration and makes it stable on all disks that are alive. The caller
    /// holds the configuration lock.
    ///
    /// # Errors
    /// When no disk took it.
    pub(crate) async fn adopt(&self, mut config: Config) -> Result<(), WriteError> {
        let old = self.view();
        config.generation = old.config.generation + 1;
        for member in old.members.values() {
            let known = Known::new(member.info.blocks.get(), &member.info.location);
            config.known.insert(member.uuid, known);
        }
        let mut known = core::mem::take(&mut config.known);
        known.retain(|disk, _| config.counts_on(*disk) || config.failed.contains(disk));
        config.known = known;
        // Progress as far as it is durable is what the old configuration says; it only moves in
        // `rebuild.rs`.
        // One that died since this configuration was thought out stays until it is taken out: the
        // death is not stable yet.
        let members: BTreeMap<DiskUuid, Arc<Member>> = old
            .members
            .iter()
            .filter(|(u, m)| !m.is_dead() || config.counts_on(**u))
            .map(|(u, m)| (*u, m.clone()))
            .collect();
        self.publish(View::new(config.clone(), members, Some(&old)));
        if mutant("dead-disk-not-recorded") {
            return Ok(());
        }
        self.store_config(&config).await
    }

    /// Writes a configuration to every disk that is alive.
    pub(crate) async fn store_config(&self, config: &Config) -> Result<(), WriteError> {
        let blocks = config.encode();
        let view = self.view();
        let members = view.alive();
        let labels: Vec<BoxFuture<Result<(), DiskError>>> = members
            .iter()
            .map(|m| {
                let (member, blocks) = (m.clone(), blocks.clone());
                let copy = u8::from(config.generation % 2 == 1);
                let write: BoxFuture<_> = Box::pin(async move {
                    member.write_stable(member.layout.config_dbn(copy), blocks).await
                });
                write
            })
            .collect();
        let mut written = 0;
        for (member, result) in members.iter().zip(join_all(labels).await) {
            match result {
                Ok(()) => written += 1,
                Err(error) => {
                    self.fault(member, &error);
                    self.kill(member);
                }
            }
        }
        if written == 0 {
            let disks = u16::try_from(members.len()).unwrap_or(u16::MAX);
            return Err(WriteError::RootNotWritten { written, disks });
        }
        Ok(())
    }

    /// Rewrites the labels of a disk: what it is now.
    pub(crate) async fn store_label(&self, member: &Arc<Member>) -> Result<(), DiskError> {
        let view = self.view();
        let identity = identity_of(&view.config, member.uuid);
        let block = label_block(&identity, &member.layout);
        // One copy is whole at any moment.
        for at in [member.layout.label_b(), crate::layout::LABEL_AT] {
            let block: Block = block.clone();
            member.write_stable(at, vec![block]).await?;
        }
        Ok(())
    }

    /// Starts a rebuild task for each group that needs one and has none, and looks after disks
    /// that begin to fail.
    pub(crate) fn start_rebuilds(self: &Arc<Self>) {
        if self.is_stopped() {
            return;
        }
        if self.sick.swap(false, Ordering::AcqRel) {
            self.world.spawn.spawn("copy out", Box::pin(self.clone().copy_sick_disks()));
        }
        let view = self.view();
        for group in view.groups.values() {
            let needed = group.slots.iter().any(|s| {
                s.twin().is_some() || (s.state == ColumnState::Rebuilding && s.writable().is_some())
            });
            if needed && self.rebuilding.lock().insert(group.group) {
                let (core, group) = (self.clone(), group.group);
                self.world.spawn.spawn(
                    "rebuild",
                    Box::pin(async move {
                        core.rebuild_group(group).await;
                    }),
                );
            }
        }
    }

    /// After I/O outside a write: settles deaths and starts what they call for, in the
    /// background.
    pub(crate) fn settle_soon(self: &Arc<Self>) {
        if self.is_stopped() {
            return;
        }
        if self.is_settled() {
            if self.sick.load(Ordering::Acquire) {
                self.start_rebuilds();
            }
            return;
        }
        if self.view().groups.values().any(|g| g.failed()) {
            // Nothing can be settled any more; every write says so.
            return;
        }
        let core = self.clone();
        self.world.spawn.spawn(
            "settle",
            Box::pin(async move {
                if let Err(error) = core.settle().await {
                    tracing::error!(%error, "disks lost");
                }
                core.start_rebuilds();
            }),
        );
    }
}

/// What a disk is, according to a configuration.
pub(crate) fn identity_of(config: &Config, disk: DiskUuid) -> Identity {
    let position = config.position_of(disk);
    let role = match position {
        Some((group, column)) => {
            let p = config.groups.get(&group).map_or(0, |g| g.p);
            match column.get() {
                c if c + 1 == p => Role::RowParity,
                c if c == p => Role::DiagonalParity,
                _ => Role::Data,
            }
        }
        None if config.log_disks.contains(&disk) => Role::Log,
        None => Role::Spare,
    };
    Identity { aggregate: config.aggregate, disk, position, role }
}

/// Removes a disk from wherever the configuration counts on it.
pub(crate) fn take_out(config: &mut Config, disk: DiskUuid) {
    config.spares.retain(|d| *d != disk);
    config.log_disks.retain(|d| *d != disk);
    for group in config.groups.values_mut() {
        for position in group.positions.values_mut() {
            if position.twin.is_some_and(|t| t.disk == disk) {
                position.twin = None;
            }
            if position.disk != Some(disk) {
                continue;
            }
            // What was copied so far is kept; the rest is rebuilt from parity.
            let twin = position.twin.take();
            position.disk = twin.map(|t| t.disk);
            position.progress = twin.map_or(0, |t| t.progress);
            position.state =
                if twin.is_some() { ColumnState::Rebuilding } else { ColumnState::Missing };
        }
    }
    note_failed(config, disk);
}

/// Remembers a disk as taken out.
pub(crate) fn note_failed(config: &mut Config, disk: DiskUuid) {
    if !config.failed.contains(&disk) {
        config.failed.push(disk);
        if config.failed.len() > crate::FAILED_MAX {
            config.failed.remove(0);
        }
    }
}

/// Puts spares that are there and big enough into empty positions.
pub(crate) fn promote_spares(
    config: &mut Config,
    view: &View,
) -> Vec<(DiskUuid, GroupNo, ColumnNo)> {
    let mut promoted = Vec::new();
    for (no, group) in &mut config.groups {
        for (column, position) in &mut group.positions {
            if position.state != ColumnState::Missing {
                continue;
            }
            let fits = |disk: &DiskUuid| {
                view.members
                    .get(disk)
                    .is_some_and(|m| !m.is_dead() && m.layout.stripes() >= group.stripes)
            };
            let Some(at) = config.spares.iter().position(fits) else { continue };
            let disk = config.spares.remove(at);
            position.disk = Some(disk);
            position.state = ColumnState::Rebuilding;
            position.progress = 0;
            promoted.push((disk, *no, *column));
        }
    }
    promoted
}
