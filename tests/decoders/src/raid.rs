//! What lies on the disks of an aggregate below its blocks: labels, configurations, roots,
//! checksum blocks, region maps, the stripe log.
//!
//! Layer: tests. [`open_damaged`] changes the disks of a real aggregate whose power went while it
//! wrote, and opens it: the structures are read by the code that reads them in the product.

use std::sync::{Arc, LazyLock};

use cairn_raid_api::{
    Aggregate, BlockTag, ReadRequest, RootRecord, StripeWrite, Tetris, WriteBlock,
};
use cairn_raid_disk::Disk;
use cairn_raid_group::{CreateOptions, OpenOptions, RaidAggregate, RaidKind, probe};
use cairn_sim::{CutPolicy, DiskImage, SimDisk, SimDiskConfig, SimWorld};
use cairn_sys::{Block, BlockMut};
use cairn_units::{BLOCK_BYTES, Blocks, CpCount, Crc, Dbn, Fsid, Pvbn, Vvbn};

use crate::patch::{describe, patches};

/// The smallest disk that an aggregate takes.
const DISK_BLOCKS: u64 = 4096;
const DISKS: usize = 5;
/// Disks that parity covers.
const COVERED: usize = 2;
/// The changed blocks get good checksums.
const SEALED: u8 = 1;
/// Bytes of a structure's header; those of its checksum come first.
const HEADER_BYTES: usize = 16;
/// Place of the second checksum of configurations and log entries, and of what it covers.
const CONTENT_CRC_AT: usize = 52;
const CONTENT_COUNT_AT: usize = 48;

/// A disk whose first and last blocks are these bytes is looked at.
pub fn disk_label(bytes: &[u8]) {
    /// Blocks that the input fills at each end; both copies of a label lie in them.
    const END_BLOCKS: usize = 4;
    let sim = SimWorld::new(1);
    let disk = sim.disk(SimDiskConfig::new("fuzzed", Blocks::new(DISK_BLOCKS)));
    let mut blocks: Vec<Block> = (0..END_BLOCKS)
        .map(|at| {
            let piece = bytes.get(at * BLOCK_BYTES..).unwrap_or_default();
            BlockMut::copy_of(&piece[..piece.len().min(BLOCK_BYTES)]).freeze()
        })
        .collect();
    // The second copy of the label is the last block.
    seal(&mut blocks, 0);
    seal(&mut blocks, END_BLOCKS - 1);
    let found = sim.block_on(async {
        for at in [0, DISK_BLOCKS - END_BLOCKS as u64] {
            let written = disk.write(Dbn::new(at), blocks.clone()).await;
            assert!(written.is_ok(), "a simulated disk takes the write");
        }
        let disk: Arc<dyn Disk> = Arc::new(disk);
        probe(&[disk]).await
    });
    assert_eq!(found.len(), 1, "a disk has one finding");
}

fn half(block: &Block, at: usize) -> usize {
    usize::from(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Makes the checksums of the structure at `at` right, if there is one of ours.
fn seal(blocks: &mut [Block], at: usize) {
    if blocks[at][4..7] != *b"CRN" {
        return;
    }
    let content = match blocks[at][7] {
        // Groups and disks, 64 bytes each; payload blocks of a log entry.
        b'c' => {
            (half(&blocks[at], CONTENT_COUNT_AT) + half(&blocks[at], CONTENT_COUNT_AT + 2)) * 64
        }
        b'e' => half(&blocks[at], CONTENT_COUNT_AT + 2) * BLOCK_BYTES,
        _ => 0,
    };
    if matches!(blocks[at][7], b'c' | b'e') {
        let mut crc = crc32fast::Hasher::new();
        let mut left = content;
        for block in &blocks[at + 1..] {
            let here = &block[..left.min(BLOCK_BYTES)];
            crc.update(here);
            left -= here.len();
        }
        let crc = crc.finalize().to_le_bytes();
        blocks[at].make_mut()[CONTENT_CRC_AT..CONTENT_CRC_AT + 4].copy_from_slice(&crc);
    }
    let block = blocks[at].make_mut();
    let crc = crc32fast::hash(&block[4..]);
    block[..4].copy_from_slice(&crc.to_le_bytes());
}

/// A real aggregate after a power cut.
struct Base {
    images: Vec<DiskImage>,
    /// Blocks that hold structures: disk and place.
    places: Vec<(usize, u64)>,
    /// Committed blocks and what they hold.
    committed: Vec<(Pvbn, Block)>,
}

fn disks(sim: &SimWorld) -> Vec<SimDisk> {
    let disk = |n| sim.disk(SimDiskConfig::new(&format!("d{n}"), Blocks::new(DISK_BLOCKS)));
    (0..DISKS).map(disk).collect()
}

/// Disks that hold these images.
fn restored(sim: &SimWorld, images: &[DiskImage]) -> Vec<SimDisk> {
    let restore = |(disk, image): (SimDisk, &DiskImage)| {
        disk.restore(image);
        disk.reattach()
    };
    disks(sim).into_iter().zip(images).map(restore).collect()
}

fn drivers(disks: &[SimDisk]) -> Vec<Arc<dyn Disk>> {
    disks.iter().map(SimDisk::driver).collect()
}

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let sim = SimWorld::new(11);
    let disks = disks(&sim);
    let committed = sim.block_on(async {
        let options = CreateOptions::new(RaidKind::RaidDp, 0);
        let made = RaidAggregate::create(sim.world(), drivers(&disks), options).await;
        let aggregate = made.expect("an aggregate is made");
        let group = aggregate.geometry().groups[0].clone();
        let mut committed = Vec::new();
        for cp in 1..=3u64 {
            let column = usize::try_from(cp).unwrap_or(0) % group.data.len();
            let write = |stripe: u64| {
                let at = group.data[column].pvbn_base.plus(stripe);
                let data = cairn_sim::conformance::pattern(cp * 100 + stripe);
                let crc = Crc::new(crc32fast::hash(&data[..]));
                let tag = BlockTag {
                    fsid: Fsid::new(1),
                    vvbn: Vvbn::new(cp * 100 + stripe),
                    cp: CpCount::new(cp),
                };
                WriteBlock { at, data, crc, tag }
            };
            let stripe = |stripe: u64| StripeWrite { stripe, rest_is_free: cp == 1 };
            let stripes: Vec<StripeWrite> = (1..4).map(stripe).collect();
            let new: Vec<WriteBlock> = (1..4).map(write).collect();
            let blocks: Vec<(Pvbn, Block)> = new.iter().map(|b| (b.at, b.data.clone())).collect();
            aggregate
                .write(Tetris { group: group.group, stripes, blocks: new, ahead: Arc::default() })
                .await
                .expect("it is written");
            if cp < 3 {
                let root = RootRecord { cp: CpCount::new(cp), bytes: vec![7; 100] };
                aggregate.commit_root(root).await.expect("it is committed");
                committed.extend(blocks);
            }
        }
        committed
    });
    // The stripe log of the last write is live.
    sim.power_cut_with(&CutPolicy::KeepAll);
    let images: Vec<DiskImage> = disks.iter().map(SimDisk::image).collect();
    let mut places = Vec::new();
    for (disk, image) in images.iter().enumerate() {
        let ours = image.durable_blocks().filter(|(_, block)| block[4..7] == *b"CRN");
        places.extend(ours.map(|(at, _)| (disk, at.get())));
        // What lies behind the first block of a configuration or of a log entry.
        let behind =
            image.durable_blocks().filter(|(_, b)| b[4..8] == *b"CRNc" || b[4..8] == *b"CRNe");
        places.extend(behind.map(|(at, _)| (disk, at.get() + 1)));
    }
    Base { images, places, committed }
});

/// See the module.
pub fn open_damaged(bytes: &[u8]) {
    let Some((flags, rest)) = bytes.split_first() else { return };
    let base = &*BASE;
    let sim = SimWorld::new(1);
    let disks = restored(&sim, &base.images);
    let mut touched = [false; DISKS];
    for patch in patches(rest) {
        let (disk, at) = base.places[patch.place % base.places.len()];
        touched[disk] = true;
        let image = disks[disk].image();
        // With the blocks behind it: those of a configuration or of a log entry's payload.
        let mut blocks: Vec<Block> =
            (at..(at + 16).min(DISK_BLOCKS)).map(|at| image.visible(Dbn::new(at))).collect();
        patch.apply(&mut blocks[0]);
        if flags & SEALED != 0 {
            seal(&mut blocks, 0);
        }
        disks[disk].scribble(Dbn::new(at), &blocks[0]);
    }
    let options = OpenOptions { aggregate: None, opener: None };
    let opened = sim.block_on(RaidAggregate::open(sim.world(), drivers(&disks), options));
    let damaged = flags & SEALED == 0 && touched.iter().filter(|t| **t).count() <= COVERED;
    let aggregate = match opened {
        Ok(aggregate) => aggregate,
        Err(error) => return assert!(!damaged, "parity covers two disks: {error}"),
    };
    let requests = base.committed.iter().map(|(at, block)| ReadRequest {
        at: *at,
        expect: Some(Crc::new(crc32fast::hash(&block[..]))),
    });
    let answers = sim.block_on(aggregate.read(requests.collect()));
    for ((at, expected), answer) in base.committed.iter().zip(answers) {
        match answer {
            // The checksum is known: another block is never given out for this one.
            Ok(block) => assert!(block == *expected, "{at:?} reads wrong bytes"),
            Err(error) => assert!(!damaged, "parity covers two disks: {at:?}: {error}"),
        }
    }
    aggregate.shutdown();
}

/// Every structure of the base whose letter is `kind`, from byte `from` on, cut behind `bytes`.
fn structures(kind: u8, from: usize, bytes: usize) -> Vec<Vec<u8>> {
    let image = &BASE.images[0];
    let ours = image.durable_blocks().filter(|(_, b)| b[4..8] == [b'C', b'R', b'N', kind]);
    ours.map(|(_, block)| block[from..bytes].to_vec()).take(2).collect()
}

/// A real label.
pub fn label_seeds() -> Vec<Vec<u8>> {
    structures(b'l', 0, 256)
}

/// A real configuration.
pub fn config_seeds() -> Vec<Vec<u8>> {
    let image = &BASE.images[0];
    let ours = image.durable_blocks().filter(|(_, b)| b[4..8] == *b"CRNc");
    let seed = |(at, head): (Dbn, &Block)| {
        let records = image.visible(at.plus(1));
        let mut out = head[HEADER_BYTES..].to_vec();
        out.extend_from_slice(&records[..64 * (DISKS + 1)]);
        out
    };
    ours.take(1).map(seed).collect()
}

/// Real root slots.
pub fn root_seeds() -> Vec<Vec<u8>> {
    structures(b'r', HEADER_BYTES, 256)
}

/// A real checksum block and a real region map.
pub fn stamp_seeds() -> Vec<Vec<u8>> {
    [structures(b's', HEADER_BYTES, 512), structures(b'm', HEADER_BYTES, 128)].concat()
}

/// A change in each kind of structure, with and without good checksums.
pub fn open_seeds() -> Vec<Vec<u8>> {
    let base = &*BASE;
    let mut out = vec![vec![0], vec![SEALED]];
    for kind in *b"lrcsme" {
        let found = base.places.iter().position(|(disk, at)| {
            base.images[*disk].durable(Dbn::new(*at))[4..8] == [b'C', b'R', b'N', kind]
        });
        let Some(place) = found.and_then(|p| u16::try_from(p).ok()) else { continue };
        for (flags, offset) in [(0, 100), (SEALED, 32), (SEALED, 48), (SEALED, 64)] {
            out.push([&[flags][..], &describe(place, offset, &[0xff; 4])].concat());
        }
    }
    out
}
