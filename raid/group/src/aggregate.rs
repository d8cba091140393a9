//! The aggregate as the storage manager and the administrator see it.
//!
//! Layer: the door of the crate; everything is done by [`Core`] and its parts.

use cairn_sys::lock::atomic::Ordering;
use std::sync::Arc;

use cairn_raid_api::{
    Aggregate, BlockTag, Geometry, LogStore, Place, PlaceOnDisk, ReadError, ReadRequest,
    RootRecord, Tetris, WriteError,
};
use cairn_raid_disk::Disk;
use cairn_sys::{Block, BoxFuture, World};
use cairn_units::Pvbn;
use tracing::Instrument;

use crate::Event;
use crate::core::Core;
use crate::create::{CreateError, CreateOptions, format};
use crate::label::{Probe, read_label};
use crate::log_areas::LogAreas;
use crate::ondisk::REGION_STRIPES;
use crate::open::{OpenError, OpenOptions, Refused, open};
use crate::stripe::parity_slots;
use crate::view::{GroupView, Slot};

/// An aggregate on RAID groups. Drop it after [`RaidAggregate::shutdown`].
pub struct RaidAggregate {
    pub(crate) core: Arc<Core>,
    log: Arc<LogAreas>,
    refused: Vec<Refused>,
}

/// What is on each of the disks: (location, finding). Writes nothing.
pub async fn probe(disks: &[Arc<dyn Disk>]) -> Vec<(String, Probe)> {
    let mut out = Vec::with_capacity(disks.len());
    for disk in disks {
        out.push((disk.info().location, read_label(disk).await.0));
    }
    out
}

impl RaidAggregate {
    /// Makes a new aggregate on `disks` and opens it. The first disks become group members in
    /// the order given (data, then parity), the last ones spares.
    ///
    /// # Errors
    /// See [`CreateError`]; a disk that carries a label is refused before anything is written.
    pub async fn create(
        world: World,
        disks: Vec<Arc<dyn Disk>>,
        options: CreateOptions,
    ) -> Result<Arc<Self>, CreateError> {
        let to_open = format(&world, &disks, &options).await?;
        let all = disks.into_iter().chain(options.log_disks).collect();
        Ok(Self::open(world, all, to_open).await?)
    }

    /// Opens the aggregate that lies on `disks`, in any order; disks that do not belong to it are
    /// left alone ([`RaidAggregate::refused`]). Recovers what a crash left.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        world: World,
        disks: Vec<Arc<dyn Disk>>,
        options: OpenOptions,
    ) -> Result<Arc<Self>, OpenError> {
        let (core, refused) = open(world, disks, options).await?;
        let log = Arc::new(LogAreas::new(core.clone()));
        Ok(Arc::new(Self { core, log, refused }))
    }

    /// Disks given to [`RaidAggregate::open`] that were left alone, and why.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// What happened since the last call, oldest first (the last 256 at most).
    pub fn events(&self) -> Vec<Event> {
        std::mem::take(&mut *self.core.events.lock())
    }

    /// Ends the background tasks (rebuild, scrub) after their present step. Rebuild goes on from
    /// its last durable mark when the aggregate is opened again.
    pub fn shutdown(&self) {
        self.core.stopped.store(true, Ordering::Release);
    }

    /// The identity that was written with a block, from its stamp; `None` for a block that was
    /// never written, was rebuilt without it, or whose disk is gone.
    pub fn identity(&self, at: Pvbn) -> BoxFuture<Option<BlockTag>> {
        let core = self.core.clone();
        Box::pin(async move {
            let view = core.view();
            let (group, slot, stripe) = view.locate(at)?;
            let member = group.slots[slot].readable(stripe)?;
            let entry = core.stamps.get(member, stripe / REGION_STRIPES).await.ok()?;
            let stamp = entry.lock().get(stripe);
            stamp.tag()
        })
    }

    /// Runs `work` in a task of its own, so that a caller who goes away cannot leave it half
    /// done.
    fn in_task<T: Send + 'static>(
        &self,
        name: &'static str,
        lost: T,
        work: impl Future<Output = T> + Send + 'static,
    ) -> BoxFuture<T> {
        let (done, answer) = tokio::sync::oneshot::channel();
        let spawn = self.core.world.spawn.clone();
        let span = tracing::debug_span!("raid", work = name);
        Box::pin(async move {
            let work = traced(span, work);
            spawn.spawn(
                name,
                Box::pin(async move {
                    // The caller may be gone; the work was done for the stripes' sake.
                    let _gone = done.send(work.await).is_err();
                }),
            );
            answer.await.unwrap_or(lost)
        })
    }
}

/// Runs `work` within `span`; at no cost when nobody listens.
fn traced<T>(span: tracing::Span, work: impl Future<Output = T> + Send + 'static) -> BoxFuture<T> {
    if span.is_disabled() { Box::pin(work) } else { Box::pin(work.instrument(span)) }
}

impl Drop for RaidAggregate {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Aggregate for RaidAggregate {
    fn geometry(&self) -> Arc<Geometry> {
        self.core.view().geometry.clone()
    }

    fn read(&self, requests: Vec<ReadRequest>) -> BoxFuture<Vec<Result<Block, ReadError>>> {
        let core = self.core.clone();
        let span = tracing::debug_span!("raid_read", blocks = requests.len());
        traced(span, async move { core.read_blocks(requests).await })
    }

    fn write(&self, tetris: Tetris) -> BoxFuture<Result<(), WriteError>> {
        let core = self.core.clone();
        // The task is not its caller: the span carries the caller's over.
        self.in_task("write tetris", Err(WriteError::NoLogDevice), async move {
            let result = core.write_tetris(tetris).await;
            core.start_rebuilds();
            result
        })
    }

    fn commit_root(&self, root: RootRecord) -> BoxFuture<Result<(), WriteError>> {
        let core = self.core.clone();
        let lost = WriteError::RootNotWritten { written: 0, disks: 0 };
        self.in_task("commit root", Err(lost), async move {
            let result = core.commit(root).await;
            core.start_rebuilds();
            result
        })
    }

    fn root(&self) -> Option<RootRecord> {
        self.core.root.lock().record.clone()
    }

    fn log(&self) -> Arc<dyn LogStore> {
        self.log.clone()
    }

    fn place(&self, at: Pvbn) -> Option<Place> {
        let view = self.core.view();
        let (group, slot, stripe) = view.locate(at)?;
        let mut place = Place {
            group: group.group,
            stripe,
            data: on_disk(group, &group.slots[slot], stripe),
            row_parity: None,
            diagonal_parity: None,
        };
        for (i, diagonal) in parity_slots(group) {
            let parity = Some(on_disk(group, &group.slots[i], stripe));
            if diagonal {
                place.diagonal_parity = parity;
            } else {
                place.row_parity = parity;
            }
        }
        Some(place)
    }
}

fn on_disk(group: &GroupView, slot: &Slot, stripe: u64) -> PlaceOnDisk {
    let layout = slot.member.as_ref().or_else(|| {
        // Every disk of a group has the same areas up to its regions; an empty position is shown
        // where its block would be.
        group.slots.iter().find_map(|s| s.member.as_ref())
    });
    PlaceOnDisk {
        column: slot.column,
        disk: slot.member.as_ref().map(|m| m.uuid),
        location: slot.member.as_ref().map(|m| m.info.location.clone()),
        dbn: layout.map_or_else(Default::default, |m| m.layout.stripe_dbn(stripe)),
    }
}
