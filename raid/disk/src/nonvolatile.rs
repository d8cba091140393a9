//! A device whose writes are stable as soon as they are done: memory with a battery, or flash
//! that its own capacitors save.
//!
//! Layer: over a driver. Nobody can find out whether a device is one, so somebody must say so:
//! where that is wrong, a power cut takes what was acknowledged.

use std::sync::Arc;

use cairn_sys::{Block, BlockMut, BoxFuture};
use cairn_units::{Blocks, Dbn};

use crate::{Disk, DiskCounters, DiskError, DiskInfo};

/// See the module.
pub struct NonVolatile(Arc<dyn Disk>);

impl NonVolatile {
    /// Declares `disk` not volatile.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self(disk)
    }
}

impl Disk for NonVolatile {
    fn info(&self) -> DiskInfo {
        self.0.info()
    }
    fn read(&self, at: Dbn, bufs: Vec<BlockMut>) -> BoxFuture<Result<Vec<BlockMut>, DiskError>> {
        self.0.read(at, bufs)
    }
    fn write(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>> {
        self.0.write(at, blocks)
    }
    fn write_shared(&self, at: Dbn, blocks: Arc<Vec<Block>>) -> BoxFuture<Result<(), DiskError>> {
        self.0.write_shared(at, blocks)
    }
    fn flush(&self) -> BoxFuture<Result<(), DiskError>> {
        Box::pin(core::future::ready(Ok(())))
    }
    fn write_stable(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>> {
        match self.0.write_now(at, &blocks) {
            Some(done) => Box::pin(core::future::ready(done)),
            None => self.0.write(at, blocks),
        }
    }
    fn write_now(&self, at: Dbn, blocks: &[Block]) -> Option<Result<(), DiskError>> {
        self.0.write_now(at, blocks)
    }
    fn discard(&self, at: Dbn, count: Blocks) -> BoxFuture<Result<(), DiskError>> {
        self.0.discard(at, count)
    }
    fn counters(&self) -> DiskCounters {
        self.0.counters()
    }
}
