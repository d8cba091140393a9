//! Disks in memory, and what a power cut leaves of them.
//!
//! Layer: interleaving harness. A request takes effect whole, some time after it was given; a
//! flush makes stable what was written before it, a stable write its own blocks.
//! [`Shelf::cut`] takes the state of all disks at one moment
//! while everything goes on: the test then starts a second node on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use cairn_raid_disk::{Disk, DiskClass, DiskCounters, DiskError, DiskInfo};
use cairn_sys::{Block, BlockMut, BoxFuture};
use cairn_units::{Blocks, Dbn};

#[derive(Clone, Default)]
struct Medium {
    blocks: BTreeMap<u64, Block>,
    /// What blocks were before, of which something else is not stable yet.
    before: BTreeMap<u64, Option<Block>>,
    counters: DiskCounters,
}

impl Medium {
    fn take(&mut self, at: Dbn, blocks: Vec<Block>) {
        self.counters.writes += 1;
        for (n, block) in (at.get()..).zip(blocks) {
            // A copy: what the host does to its buffer later is not on the disk.
            let block = BlockMut::copy_of(&block[..]).freeze();
            let old = self.blocks.insert(n, block);
            self.before.entry(n).or_insert(old);
        }
    }
}

/// One disk. Its lock is not one that the scheduler knows: requests take effect whole.
pub struct MemDisk {
    name: String,
    blocks: u64,
    medium: Arc<Mutex<Medium>>,
}

/// What a power cut leaves of writes that were not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Durable,
    /// Everything.
    All,
}

/// The contents of all disks at one moment.
#[derive(Clone, Default)]
pub struct Image(Vec<BTreeMap<u64, Block>>);

/// Some disks.
pub struct Shelf {
    disks: Vec<Arc<MemDisk>>,
}

fn lock(medium: &Mutex<Medium>) -> MutexGuard<'_, Medium> {
    medium.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shelf {
    /// Blank disks.
    pub fn blank(disks: usize, blocks: u64) -> Self {
        Self::of(&Image(vec![BTreeMap::new(); disks]), blocks)
    }
    /// Disks with these contents.
    pub fn of(image: &Image, blocks: u64) -> Self {
        let disk = |(n, contents): (usize, &BTreeMap<u64, Block>)| {
            let medium = Medium { blocks: contents.clone(), ..Medium::default() };
            let medium = Arc::new(Mutex::new(medium));
            Arc::new(MemDisk { name: format!("m{n}"), blocks, medium })
        };
        Self { disks: image.0.iter().enumerate().map(disk).collect() }
    }
    /// The disks as drivers.
    pub fn drivers(&self) -> Vec<Arc<dyn Disk>> {
        self.disks.iter().cloned().map(|disk| disk as Arc<dyn Disk>).collect()
    }
    /// What a power cut at this moment would leave.
    pub fn cut(&self, keep: Keep) -> Image {
        let left = |disk: &Arc<MemDisk>| {
            let medium = lock(&disk.medium).clone();
            let mut blocks = medium.blocks;
            if keep == Keep::Durable {
                for (at, old) in medium.before {
                    match old {
                        Some(old) => drop(blocks.insert(at, old)),
                        None => drop(blocks.remove(&at)),
                    }
                }
            }
            blocks
        };
        Image(self.disks.iter().map(left).collect())
    }
}

impl MemDisk {
    fn check(&self, at: Dbn, count: usize) -> Result<(), DiskError> {
        let end = at.get().checked_add(count as u64);
        let count = Blocks::new(count as u64);
        end.is_some_and(|end| end <= self.blocks)
            .then_some(())
            .ok_or(DiskError::OutOfRange { at, count })
    }
}

impl Disk for MemDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            location: self.name.clone(),
            class: DiskClass::Simulated,
            blocks: Blocks::new(self.blocks),
        }
    }
    fn read(
        &self,
        at: Dbn,
        mut bufs: Vec<BlockMut>,
    ) -> BoxFuture<Result<Vec<BlockMut>, DiskError>> {
        let (checked, medium) = (self.check(at, bufs.len()), self.medium.clone());
        Box::pin(async move {
            checked?;
            shuttle::future::yield_now().await;
            let mut medium = lock(&medium);
            medium.counters.reads += 1;
            for (n, buf) in (at.get()..).zip(&mut bufs) {
                match medium.blocks.get(&n) {
                    Some(block) => buf.copy_from_slice(&block[..]),
                    None => buf.fill(0),
                }
            }
            Ok(bufs)
        })
    }
    fn write(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>> {
        let (checked, medium) = (self.check(at, blocks.len()), self.medium.clone());
        Box::pin(async move {
            checked?;
            shuttle::future::yield_now().await;
            lock(&medium).take(at, blocks);
            Ok(())
        })
    }
    fn write_stable(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>> {
        let (checked, medium) = (self.check(at, blocks.len()), self.medium.clone());
        let covered = at.get()..at.get() + blocks.len() as u64;
        Box::pin(async move {
            checked?;
            shuttle::future::yield_now().await;
            lock(&medium).take(at, blocks);
            // Taken, and not yet stable.
            shuttle::future::yield_now().await;
            let mut medium = lock(&medium);
            medium.counters.flushes += 1;
            medium.before.retain(|at, _| !covered.contains(at));
            Ok(())
        })
    }
    fn flush(&self) -> BoxFuture<Result<(), DiskError>> {
        let medium = self.medium.clone();
        // Writes that complete while the flush is under way are not promised to be stable.
        let covered: BTreeSet<u64> = lock(&medium).before.keys().copied().collect();
        Box::pin(async move {
            shuttle::future::yield_now().await;
            let mut medium = lock(&medium);
            medium.counters.flushes += 1;
            medium.before.retain(|at, _| !covered.contains(at));
            Ok(())
        })
    }
    fn discard(&self, _at: Dbn, _count: Blocks) -> BoxFuture<Result<(), DiskError>> {
        Box::pin(async { Ok(()) })
    }
    fn counters(&self) -> DiskCounters {
        lock(&self.medium).counters
    }
}
