//! The front of both drivers: checks a request, waits for a place in the queue, hands it over.
//!
//! Layer: drivers. The back is a [`Queue`]: the ring, or the threads.

use std::sync::Arc;

use cairn_sys::{Block, BlockMut, BoxFuture};
use cairn_units::{Blocks, Dbn};
use tokio::sync::oneshot;
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};

use crate::device::{Answer, Device, Op, Request, Work};
use crate::{Disk, DiskCounters, DiskError, DiskInfo, threads};

/// Where requests go. Never blocks; bounded by the permits that requests hold.
pub(crate) trait Queue: Send + Sync + 'static {
    /// Takes the request; answers it when it is done, or drops it when the driver has died.
    fn submit(&self, request: Request);
}

/// A disk behind a queue.
pub(crate) struct DriverDisk {
    device: Arc<Device>,
    queue: Arc<dyn Queue>,
}

impl DriverDisk {
    pub(crate) fn new(device: Arc<Device>, queue: Arc<dyn Queue>) -> Self {
        Self { device, queue }
    }

    fn start(&self, at: Dbn, op: Op) -> BoxFuture<Answer> {
        let device = self.device.clone();
        if let Some(answer) = at_once(&device, at, &op) {
            device.count(op.work(), answer.is_err());
            return Box::pin(core::future::ready(answer));
        }
        let queue = self.queue.clone();
        match device.permits.clone().try_acquire_owned() {
            Ok(permit) => Box::pin(hand_over(&*queue, device, at, op, permit)),
            Err(TryAcquireError::Closed) => {
                device.count(op.work(), true);
                Box::pin(core::future::ready(Err(device.given_up())))
            }
            Err(TryAcquireError::NoPermits) => Box::pin(async move {
                let Ok(permit) = device.permits.clone().acquire_owned().await else {
                    device.count(op.work(), true);
                    return Err(device.given_up());
                };
                hand_over(&*queue, device, at, op, permit).await
            }),
        }
    }
}

/// Answers that need no device.
fn at_once(device: &Device, at: Dbn, op: &Op) -> Option<Answer> {
    if let Err(error) = device.check(at, op) {
        return Some(Err(error));
    }
    match op {
        Op::Flush | Op::WriteStable(_) if device.flush_has_failed() => {
            let reason = "an earlier flush failed: what is stable is unknown".to_owned();
            Some(Err(DiskError::Gone { reason }))
        }
        Op::Flush => None,
        _ if op.blocks() == 0 => Some(Ok(Vec::new())),
        _ => None,
    }
}

fn hand_over(
    queue: &dyn Queue,
    device: Arc<Device>,
    at: Dbn,
    op: Op,
    permit: OwnedSemaphorePermit,
) -> impl Future<Output = Answer> + Send + use<> {
    let (sender, receiver) = oneshot::channel();
    queue.submit(Request::new(device, at, op, sender, permit));
    async move {
        receiver.await.unwrap_or_else(|_| {
            Err(DiskError::Gone { reason: "the disk driver has stopped".to_owned() })
        })
    }
}

impl Disk for DriverDisk {
    fn info(&self) -> DiskInfo {
        self.device.info.clone()
    }
    fn read(&self, at: Dbn, bufs: Vec<BlockMut>) -> BoxFuture<Result<Vec<BlockMut>, DiskError>> {
        self.start(at, Op::Read(bufs))
    }
    fn write(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>> {
        self.write_shared(at, Arc::new(blocks))
    }
    fn write_shared(&self, at: Dbn, blocks: Arc<Vec<Block>>) -> BoxFuture<Result<(), DiskError>> {
        let answer = self.start(at, Op::Write(blocks));
        Box::pin(async move { answer.await.map(drop) })
    }
    fn write_stable(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>> {
        let answer = self.start(at, Op::WriteStable(blocks));
        Box::pin(async move { answer.await.map(drop) })
    }
    fn write_now(&self, at: Dbn, blocks: &[Block]) -> Option<Result<(), DiskError>> {
        let device = &self.device;
        device.is_memory.then(|| {
            let done = match device.check_extent(at, blocks.len() as u64) {
                Ok(()) => threads::write_now(device, at, blocks),
                Err(error) => Err(error),
            };
            device.count(Work::Write(blocks.len() as u64), done.is_err());
            done
        })
    }
    fn flush(&self) -> BoxFuture<Result<(), DiskError>> {
        let answer = self.start(Dbn::new(0), Op::Flush);
        Box::pin(async move { answer.await.map(drop) })
    }
    fn discard(&self, at: Dbn, count: Blocks) -> BoxFuture<Result<(), DiskError>> {
        let answer = self.start(at, Op::Discard(count));
        Box::pin(async move { answer.await.map(drop) })
    }
    fn counters(&self) -> DiskCounters {
        self.device.counters()
    }
}
