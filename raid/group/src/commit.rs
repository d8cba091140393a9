//! Flush intervals and root slots.
//!
//! Layer: over core. A flush interval ends when all disks were flushed while nobody wrote: from
//! then on what was written is durable, the stripe log is dead, and the other copies of the
//! checksum blocks are the ones to write. Invariant: a root slot is written only after everything
//! before it is durable, into the slot that does not hold the committed root.

use std::sync::Arc;

use cairn_raid_api::{ROOT_BYTES_MAX, RootRecord, WriteError};
use cairn_raid_disk::DiskError;
use cairn_sys::{Block, BoxFuture, mutant};
use cairn_units::{AggregateUuid, CpCount};

use crate::core::{Core, Interval};
use crate::member::Member;
use crate::ondisk::{MAGIC_ROOT, RootSlotV1, blank, open, seal};
use crate::tools::join_all;

/// A root slot as found on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootSlot {
    pub sequence: u64,
    pub dead_epoch: u64,
    pub slot: u8,
    pub record: RootRecord,
}

impl RootSlot {
    pub(crate) fn encode(&self, aggregate: AggregateUuid) -> Block {
        let mut raw: RootSlotV1 = blank();
        raw.aggregate = aggregate.bytes();
        raw.sequence = self.sequence.into();
        raw.cp = self.record.cp.get().into();
        raw.dead_epoch = self.dead_epoch.into();
        let bytes = &self.record.bytes;
        assert!(bytes.len() <= ROOT_BYTES_MAX, "root record fits its slot");
        raw.bytes = u32::try_from(bytes.len()).unwrap_or(0).into();
        raw.content[..bytes.len()].copy_from_slice(bytes);
        seal(&raw, MAGIC_ROOT)
    }

    pub(crate) fn decode(aggregate: AggregateUuid, slot: u8, block: &Block) -> Option<Self> {
        let raw: &RootSlotV1 = open(block, MAGIC_ROOT).ok()?;
        let bytes = raw.content.get(..usize::try_from(raw.bytes.get()).ok()?)?;
        (raw.aggregate == aggregate.bytes()).then(|| Self {
            sequence: raw.sequence.get(),
            dead_epoch: raw.dead_epoch.get(),
            slot,
            record: RootRecord { cp: CpCount::new(raw.cp.get()), bytes: bytes.to_vec() },
        })
    }
}

impl Core {
    /// Ends the flush interval without a root: makes room in the stripe log, or makes rebuild
    /// progress durable.
    pub(crate) async fn flush_interval(&self) -> Result<(), WriteError> {
        let mut interval = self.interval.write().await;
        self.end_interval_marked(&mut interval).await
    }

    /// [`Core::flush_interval`] for who holds the interval.
    pub(crate) async fn end_interval_marked(
        &self,
        interval: &mut Interval,
    ) -> Result<(), WriteError> {
        let (_, had_entries) = self.end_interval(interval).await?;
        if had_entries {
            self.log_marker().await?;
            self.settle().await?;
        }
        Ok(())
    }

    /// Ends the flush interval of a recovery that found no root.
    pub(crate) async fn flush_recovered(&self) -> Result<(), WriteError> {
        let mut interval = self.interval.write().await;
        let _dead = self.end_interval(&mut interval).await?;
        self.log_marker().await?;
        self.settle().await
    }

    /// Flushes all disks while nobody writes. Returns the log epoch that died, and whether it had
    /// entries.
    async fn end_interval(&self, interval: &mut Interval) -> Result<(u64, bool), WriteError> {
        let view = self.view();
        let dirty: Vec<Arc<Member>> = view.alive().into_iter().filter(|m| m.take_dirty()).collect();
        if !mutant("root-without-flush") {
            self.flush_members(&dirty).await;
        }
        self.settle().await?;
        for group in self.view().groups.values() {
            self.check_group(group)?;
        }
        self.stamps.flushed();
        for member in dirty.iter().filter(|m| !m.is_dead()) {
            member.map.flushed();
        }
        interval.marks.lock().clear();
        Ok(self.log.restart().await)
    }

    /// Flushes disks in parallel; one that fails is dead, since nobody knows what it lost.
    async fn flush_members(&self, members: &[Arc<Member>]) {
        let flushes: Vec<BoxFuture<Result<(), DiskError>>> =
            members.iter().map(|m| m.disk.flush()).collect();
        for (member, result) in members.iter().zip(join_all(flushes).await) {
            if let Err(error) = result {
                self.fault(member, &error);
                self.kill(member);
            }
        }
    }

    pub(crate) async fn commit(&self, record: RootRecord) -> Result<(), WriteError> {
        assert!(record.bytes.len() <= ROOT_BYTES_MAX, "root record fits its slot");
        let mut interval = self.interval.write().await;
        let (dead_epoch, _) = self.end_interval(&mut interval).await?;
        self.write_root(record, dead_epoch).await
    }

    /// Writes the root to all members and makes it stable. The caller holds the interval.
    pub(crate) async fn write_root(
        &self,
        record: RootRecord,
        dead_epoch: u64,
    ) -> Result<(), WriteError> {
        let next = {
            let mut root = self.root.lock();
            root.sequence += 1;
            let slot = match root.committed.as_ref().map(|r| r.slot) {
                Some(0) => 1,
                _ => 0,
            };
            RootSlot { sequence: root.sequence, dead_epoch, slot, record }
        };
        let block = next.encode(self.view().config.aggregate);
        let view = self.view();
        let members: Vec<Arc<Member>> =
            view.group_members().into_iter().chain(view.twins()).collect();
        let writes: Vec<BoxFuture<Result<(), DiskError>>> = members
            .iter()
            .map(|member| {
                let (member, block) = (member.clone(), block.clone());
                let write: BoxFuture<_> = Box::pin(async move {
                    let at = member.layout.root_dbn(next.slot);
                    if mutant("root-not-flushed") {
                        return member.disk.write(at, vec![block]).await;
                    }
                    member.write_stable(at, vec![block]).await
                });
                write
            })
            .collect();
        let mut written = 0u16;
        for (member, result) in members.iter().zip(join_all(writes).await) {
            match result {
                Ok(()) => written += 1,
                Err(error) => {
                    self.fault(member, &error);
                    self.kill(member);
                }
            }
        }
        self.settle().await?;
        for group in self.view().groups.values() {
            self.check_group(group)?;
        }
        let disks = u16::try_from(members.len()).unwrap_or(u16::MAX);
        if written == 0 {
            return Err(WriteError::RootNotWritten { written, disks });
        }
        let mut root = self.root.lock();
        root.record = Some(next.record.clone());
        root.committed = Some(next);
        Ok(())
    }
}
