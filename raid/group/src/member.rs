//! One disk of the aggregate at run time: its driver, its faults, its map of written regions.
//!
//! Layer: over the disk driver. Invariants: a dead member is never read or written again; a
//! region whose bit is clear was never written and reads as zeros, unless the map block says that
//! a copy of it was lost; the durable copy of a map block is never the one that is written next.

use cairn_sys::lock::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use cairn_raid_disk::{Disk, DiskError, DiskInfo};
use cairn_sys::lock::{AsyncMutex, Mutex, Rank};
use cairn_sys::{Block, BlockMut};
use cairn_units::{Blocks, Dbn, DiskUuid};

use crate::layout::Layout;
use crate::ondisk::{
    MAGIC_MAP, MAP_DOUBTFUL, MAP_LOST, MAP_REGIONS, MapBlockV1, blank, open, seal,
};

/// Medium errors after which a disk is taken out, when its group can spare it.
pub(crate) const MEDIUM_ERRORS_MAX: u32 = 64;
/// Timeouts after which a disk is taken out, when its group can spare it: each of them has held
/// up somebody for as long as the driver waits.
pub(crate) const TIMEOUTS_MAX: u32 = 1;
/// Blocks that did not match their stamps after which a disk is taken out, when its group can
/// spare it.
pub(crate) const CHECKSUM_ERRORS_MAX: u64 = 8192;
/// Blocks of the region map read at once.
const MAP_READ_BLOCKS: u64 = 256;

/// A disk at run time.
pub(crate) struct Member {
    pub uuid: DiskUuid,
    pub disk: Arc<dyn Disk>,
    pub info: DiskInfo,
    pub layout: Layout,
    pub map: RegionMap,
    dead: AtomicBool,
    /// Written since its last flush.
    dirty: AtomicBool,
    medium_errors: AtomicU32,
    timeouts: AtomicU32,
    pub checksum_errors: AtomicU64,
}

impl Member {
    pub(crate) fn new(
        uuid: DiskUuid,
        disk: Arc<dyn Disk>,
        layout: Layout,
        map: RegionMap,
    ) -> Arc<Self> {
        Arc::new(Self {
            uuid,
            info: disk.info(),
            disk,
            layout,
            map,
            dead: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            medium_errors: AtomicU32::new(0),
            timeouts: AtomicU32::new(0),
            checksum_errors: AtomicU64::new(0),
        })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }
    /// Whether this call was the one that declared it dead.
    pub(crate) fn declare_dead(&self) -> bool {
        !self.dead.swap(true, Ordering::AcqRel)
    }
    pub(crate) fn mark_dirty(&self) {
        self.dirty.store(true, Ordering::Release);
    }
    /// Whether there was something to flush; cleared, since the caller flushes now.
    pub(crate) fn take_dirty(&self) -> bool {
        self.dirty.swap(false, Ordering::AcqRel)
    }

    /// Counts an error against the budget; `true` when the budget is spent.
    pub(crate) fn spend(&self, error: &DiskError) -> bool {
        match error {
            DiskError::Medium { .. } => {
                self.medium_errors.fetch_add(1, Ordering::Relaxed) + 1 > MEDIUM_ERRORS_MAX
            }
            DiskError::TimedOut { .. } => {
                self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 > TIMEOUTS_MAX
            }
            DiskError::Gone { .. } | DiskError::Fenced | DiskError::OutOfRange { .. } => true,
        }
    }

    /// Whether half of its budget of bad blocks is spent: time to copy it to a spare while it
    /// still serves. Timeouts do not count: one of them is half of theirs.
    pub(crate) fn is_sick(&self) -> bool {
        self.medium_errors.load(Ordering::Relaxed) > MEDIUM_ERRORS_MAX / 2
            || self.checksum_errors.load(Ordering::Relaxed) > CHECKSUM_ERRORS_MAX / 2
    }

    /// Reads `count` blocks.
    pub(crate) async fn read(&self, at: Dbn, count: usize) -> Result<Vec<Block>, DiskError> {
        tracing::trace!(disk = %self.uuid, dbn = at.get(), blocks = count, "disk read");
        let bufs = BlockMut::take_many(count);
        let bufs = self.disk.read(at, bufs).await?;
        Ok(bufs.into_iter().map(BlockMut::freeze).collect())
    }

    /// Makes a write stable by itself, apart from the flush intervals (labels, configuration, logs,
    /// roots).
    pub(crate) async fn write_stable(&self, at: Dbn, blocks: Vec<Block>) -> Result<(), DiskError> {
        self.disk.write_stable(at, blocks).await
    }
}

/// What is known of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegionKnown {
    /// Never written: zeros, not read.
    Never,
    /// Written: its stamps say what it holds.
    Written,
    /// A newer map copy was lost: written when its stamps are there, else in doubt.
    Perhaps,
}

struct MapBlock {
    bits: Vec<u64>,
    sequence: u64,
    /// Copy that must not be overwritten.
    durable: Option<u8>,
    /// Changed since the last flush, into the other copy.
    dirty: bool,
    /// A copy that should be there was not: clear bits prove nothing until each of them is set.
    doubtful: bool,
    /// No copy could be read, now or then: as `doubtful`, and nothing is known of clear bits.
    lost: bool,
}

impl MapBlock {
    fn target(&self) -> u8 {
        match self.durable {
            Some(0) => 1,
            _ => 0,
        }
    }
}

/// The map of written regions of one disk.
pub(crate) struct RegionMap {
    blocks: Mutex<Vec<MapBlock>>,
    /// Held while map blocks are written: two writes of one block must not overtake each other.
    pub writing: AsyncMutex<()>,
}

impl RegionMap {
    fn of(blocks: Vec<MapBlock>) -> Self {
        Self {
            blocks: Mutex::new(Rank::RegionMap, blocks),
            writing: AsyncMutex::new(Rank::RegionMapWrite, ()),
        }
    }

    /// The map of a disk that holds nothing; [`Self::format`] gives its blocks.
    pub(crate) fn empty(layout: &Layout) -> Self {
        let blocks = (0..layout.map_indexes())
            .map(|_| MapBlock {
                bits: vec![0; 504],
                sequence: 1,
                durable: Some(0),
                dirty: false,
                doubtful: false,
                lost: false,
            })
            .collect();
        Self::of(blocks)
    }

    /// Both copies of every block, in disk order, for a disk that joins.
    pub(crate) fn format(&self, disk: DiskUuid) -> Vec<Block> {
        let blocks = self.blocks.lock();
        (0u64..)
            .zip(blocks.iter())
            .flat_map(|(index, b)| [0, 1].map(|_| encode(disk, index, b, b.sequence)))
            .collect()
    }

    /// Reads the map of a disk that joined earlier.
    ///
    /// # Errors
    /// When the device does not answer; unreadable blocks count as lost.
    pub(crate) async fn load(
        uuid: DiskUuid,
        disk: &Arc<dyn Disk>,
        layout: &Layout,
    ) -> Result<Self, DiskError> {
        let mut blocks = Vec::new();
        let mut raw: Vec<Option<BlockMut>> = Vec::new();
        while (raw.len() as u64) < layout.map_blocks {
            let at = Dbn::new(layout.map_at + raw.len() as u64);
            let left = layout.map_blocks - raw.len() as u64;
            raw.extend(read_map(disk, at, left.min(MAP_READ_BLOCKS)).await?);
        }
        let mut raw = raw.into_iter();
        for index in 0..layout.map_indexes() {
            let [a, b] = [0u8, 1].map(|copy| {
                let bytes = raw.next().flatten();
                bytes.and_then(|b| decode(uuid, index, copy, &b))
            });
            blocks.push(match (a, b) {
                (Some(a), Some(b)) => {
                    if b.sequence > a.sequence {
                        b
                    } else {
                        a
                    }
                }
                // The other one may have been newer.
                (Some(one), None) | (None, Some(one)) => MapBlock { doubtful: true, ..one },
                (None, None) => MapBlock {
                    bits: vec![0; 504],
                    sequence: 1,
                    durable: None,
                    dirty: false,
                    doubtful: true,
                    lost: true,
                },
            });
        }
        Ok(Self::of(blocks))
    }

    /// Copies on the disk that are not whole, with what belongs there; `None` while the block is
    /// about to be written anyway. The caller holds `writing`.
    ///
    /// # Errors
    /// When the device does not answer.
    pub(crate) async fn lost_copies(
        &self,
        uuid: DiskUuid,
        disk: &Arc<dyn Disk>,
        layout: &Layout,
    ) -> Result<Vec<(Dbn, Option<Block>)>, DiskError> {
        let mut lost = Vec::new();
        for index in 0..layout.map_indexes() {
            let raw = read_map(disk, layout.map_dbn(index, 0), 2).await?;
            for (copy, bytes) in [0u8, 1].into_iter().zip(raw) {
                if bytes.and_then(|b| decode(uuid, index, copy, &b)).is_none() {
                    let blocks = self.blocks.lock();
                    let here = usize::try_from(index).ok().and_then(|i| blocks.get(i));
                    let right = here.filter(|b| !b.dirty);
                    let right = right.map(|b| encode(uuid, index, b, b.sequence));
                    lost.push((layout.map_dbn(index, copy), right));
                }
            }
        }
        Ok(lost)
    }

    pub(crate) fn known(&self, region: u64) -> RegionKnown {
        let blocks = self.blocks.lock();
        let Some((block, word, bit)) = place(&blocks, region) else { return RegionKnown::Never };
        if block.lost || block.bits[word] & bit != 0 {
            RegionKnown::Written
        } else if block.doubtful {
            RegionKnown::Perhaps
        } else {
            RegionKnown::Never
        }
    }

    /// Whether the bit itself is set, so that no map block has to be written for the region.
    pub(crate) fn has(&self, region: u64) -> bool {
        let blocks = self.blocks.lock();
        place(&blocks, region).is_some_and(|(block, word, bit)| block.bits[word] & bit != 0)
    }

    /// Sets bits and gives the map blocks to write. The caller holds `writing` until they are
    /// written.
    pub(crate) fn stage(
        &self,
        uuid: DiskUuid,
        layout: &Layout,
        regions: &[u64],
    ) -> Vec<(Dbn, Block)> {
        let mut blocks = self.blocks.lock();
        let mut touched: Vec<u64> = Vec::new();
        for region in regions {
            let index = region / MAP_REGIONS;
            let (word, bit) = word_bit(*region);
            let Some(block) = usize::try_from(index).ok().and_then(|i| blocks.get_mut(i)) else {
                continue;
            };
            if block.bits[word] & bit == 0 {
                block.bits[word] |= bit;
                touched.push(index);
            }
        }
        touched.dedup();
        let mut out = Vec::new();
        for index in touched {
            let Some(block) = usize::try_from(index).ok().and_then(|i| blocks.get_mut(i)) else {
                continue;
            };
            let regions = layout.regions.saturating_sub(index * MAP_REGIONS).min(MAP_REGIONS);
            let mut all = (0..regions).map(word_bit);
            if block.doubtful && all.all(|(word, bit)| block.bits[word] & bit != 0) {
                // No clear bit is left to doubt.
                (block.doubtful, block.lost) = (false, false);
            }
            block.dirty = true;
            let at = layout.map_dbn(index, block.target());
            out.push((at, encode(uuid, index, block, block.sequence + 1)));
        }
        out
    }

    /// Everything written so far is durable.
    pub(crate) fn flushed(&self) {
        for block in self.blocks.lock().iter_mut().filter(|b| b.dirty) {
            block.durable = Some(block.target());
            block.sequence += 1;
            block.dirty = false;
        }
    }

    /// Regions that may hold something, in order, of `0..regions`.
    pub(crate) fn any_written(&self, region: u64) -> bool {
        self.known(region) != RegionKnown::Never
    }
}

/// Reads blocks of the map; those that cannot be read are `None`.
async fn read_map(
    disk: &Arc<dyn Disk>,
    at: Dbn,
    count: u64,
) -> Result<Vec<Option<BlockMut>>, DiskError> {
    let bufs = (0..count).map(|_| BlockMut::dirty()).collect();
    match disk.read(at, bufs).await {
        Ok(bufs) => return Ok(bufs.into_iter().map(Some).collect()),
        Err(DiskError::Medium { .. }) => {}
        Err(error) => return Err(error),
    }
    let mut out = Vec::new();
    for i in 0..count {
        out.push(match disk.read(at.plus(i), vec![BlockMut::dirty()]).await {
            Ok(mut bufs) => bufs.pop(),
            Err(DiskError::Medium { .. }) => None,
            Err(error) => return Err(error),
        });
    }
    Ok(out)
}

fn word_bit(region: u64) -> (usize, u64) {
    let within = region % MAP_REGIONS;
    (usize::try_from(within / 64).unwrap_or(0), 1 << (within % 64))
}

fn place(blocks: &[MapBlock], region: u64) -> Option<(&MapBlock, usize, u64)> {
    let block = blocks.get(usize::try_from(region / MAP_REGIONS).ok()?)?;
    let (word, bit) = word_bit(region);
    Some((block, word, bit))
}

fn encode(disk: DiskUuid, index: u64, block: &MapBlock, sequence: u64) -> Block {
    let mut raw: MapBlockV1 = blank();
    raw.disk = disk.bytes();
    raw.index = index.into();
    raw.sequence = sequence.into();
    let doubtful = if block.doubtful { MAP_DOUBTFUL } else { 0 };
    raw.flags = (doubtful | if block.lost { MAP_LOST } else { 0 }).into();
    for (to, from) in raw.bits.iter_mut().zip(&block.bits) {
        *to = (*from).into();
    }
    seal(&raw, MAGIC_MAP)
}

fn decode(disk: DiskUuid, index: u64, copy: u8, block: &BlockMut) -> Option<MapBlock> {
    let raw: &MapBlockV1 = open(block, MAGIC_MAP).ok()?;
    if raw.disk != disk.bytes() || raw.index.get() != index {
        return None;
    }
    let flags = raw.flags.get();
    Some(MapBlock {
        bits: raw.bits.iter().map(|w| w.get()).collect(),
        sequence: raw.sequence.get(),
        durable: Some(copy),
        dirty: false,
        doubtful: flags & (MAP_DOUBTFUL | MAP_LOST) != 0,
        lost: flags & MAP_LOST != 0,
    })
}

/// For fuzzers: any block as a block of the region map.
pub(crate) fn fuzz_decode(disk: DiskUuid, block: &Block) {
    let mut copy = BlockMut::copy_of(&[]);
    copy.copy_from_slice(&block[..]);
    if let Some(found) = decode(disk, 0, 0, &copy) {
        let blocks = vec![found];
        assert_eq!(place(&blocks, 0).map(|(_, word, bit)| (word, bit)), Some((0, 1)));
        assert!(place(&blocks, MAP_REGIONS).is_none(), "the map ends");
    }
}

/// Blocks that the map of a disk takes.
pub(crate) fn map_extent(layout: &Layout) -> (Dbn, Blocks) {
    (Dbn::new(layout.map_at), Blocks::new(layout.map_blocks))
}
