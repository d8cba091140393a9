//! What every disk driver must pass, whatever is behind it.
//!
//! Layer: tests. Runtime-neutral: the caller drives the future on whatever the driver needs.

use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::Poll;
use std::sync::Arc;

use cairn_raid_disk::{Disk, DiskError, REQUEST_BLOCKS_MAX};
use cairn_sys::{Block, BlockMut};
use cairn_units::{BLOCK_BYTES, Blocks, Dbn};

use crate::rng::Rng;

/// Blocks that a disk under test must have at least.
pub const CONFORMANCE_BLOCKS_MIN: u64 = 4096;

/// A block whose contents follow from `seed`.
pub fn pattern(seed: u64) -> Block {
    let mut rng = Rng::new(seed);
    let mut block = BlockMut::dirty();
    for chunk in block.chunks_exact_mut(8) {
        chunk.copy_from_slice(&rng.next_u64().to_le_bytes());
    }
    block.freeze()
}

/// Reads `count` blocks.
///
/// # Panics
/// When the read fails or gives back another number of buffers.
pub async fn read_blocks(disk: &dyn Disk, at: u64, count: usize) -> Vec<BlockMut> {
    let bufs = (0..count).map(|_| BlockMut::dirty()).collect();
    let bufs = disk.read(Dbn::new(at), bufs).await.expect("read");
    assert_eq!(bufs.len(), count, "a read gives back the buffers it was given");
    bufs
}

async fn write_patterns(disk: &dyn Disk, at: u64, count: usize, seed: u64) {
    let blocks = (0..count as u64).map(|i| pattern(seed + i)).collect();
    disk.write(Dbn::new(at), blocks).await.expect("write");
}

async fn check_patterns(disk: &dyn Disk, at: u64, count: usize, seed: u64) {
    let bufs = read_blocks(disk, at, count).await;
    for (i, buf) in bufs.iter().enumerate() {
        let want = pattern(seed + i as u64);
        assert!(buf[..] == want[..], "block {} holds what was written", at + i as u64);
    }
}

/// Waits for all of `futures`, polling them together.
pub async fn join_all<T>(futures: Vec<impl Future<Output = T> + Unpin>) -> Vec<T> {
    let mut waiting: Vec<Option<_>> = futures.into_iter().map(Some).collect();
    let mut done: Vec<Option<T>> = waiting.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (slot, result) in waiting.iter_mut().zip(&mut done) {
            if let Some(future) = slot
                && let Poll::Ready(value) = Pin::new(future).poll(cx)
            {
                *result = Some(value);
                *slot = None;
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Runs the whole suite. `make_disk` gives a fresh disk of zeros of at least
/// [`CONFORMANCE_BLOCKS_MIN`] blocks each time.
///
/// # Panics
/// When the driver breaks its contract.
pub async fn disk_conformance(mut make_disk: impl FnMut() -> Arc<dyn Disk>) {
    fresh_disk_reads_zeros(&*make_disk()).await;
    written_blocks_read_back(&*make_disk()).await;
    scattered_buffers_keep_their_order(&*make_disk()).await;
    addresses_outside_are_refused(&*make_disk()).await;
    many_requests_at_once(&*make_disk()).await;
    dropped_futures_harm_nothing(&*make_disk()).await;
    counters_are_exact(&*make_disk()).await;
    discard_leaves_the_rest(&*make_disk()).await;
    random_writes_match_a_map(&*make_disk()).await;
}

async fn fresh_disk_reads_zeros(disk: &dyn Disk) {
    let blocks = disk.info().blocks.get();
    assert!(blocks >= CONFORMANCE_BLOCKS_MIN, "a disk big enough for the suite");
    for at in [0, blocks / 2, blocks - 1] {
        let bufs = read_blocks(disk, at, 1).await;
        assert!(bufs[0].iter().all(|b| *b == 0), "a fresh disk reads zeros");
    }
}

async fn written_blocks_read_back(disk: &dyn Disk) {
    let last = disk.info().blocks.get() - 1;
    for (at, count) in [(0, 1), (1, 1), (7, 9), (100, REQUEST_BLOCKS_MAX), (last, 1)] {
        write_patterns(disk, at, count, at * 7919 + 1).await;
        check_patterns(disk, at, count, at * 7919 + 1).await;
    }
    disk.flush().await.expect("flush");
    check_patterns(disk, 7, 9, 7 * 7919 + 1).await;
    // Neighbours are untouched.
    assert!(read_blocks(disk, 16, 1).await[0].iter().all(|b| *b == 0));
    // The same buffer may be written in many places at once.
    let same = pattern(5);
    disk.write(Dbn::new(2000), vec![same.clone(); 64]).await.expect("write");
    let bufs = read_blocks(disk, 2000, 64).await;
    assert!(bufs.iter().all(|b| b[..] == same[..]));
}

async fn scattered_buffers_keep_their_order(disk: &dyn Disk) {
    // Buffers whose addresses run down, and with holes: no run of memory to take a short cut on.
    let mut pool: Vec<BlockMut> = (0..200).map(|_| BlockMut::dirty()).collect();
    pool.reverse();
    let mut keep = false;
    pool.retain(|_| {
        keep = !keep;
        keep
    });
    for (i, buf) in (0u64..).zip(&mut pool) {
        buf.copy_from_slice(&pattern(9000 + i)[..]);
    }
    let count = pool.len();
    let blocks = pool.into_iter().map(BlockMut::freeze).collect();
    disk.write(Dbn::new(50), blocks).await.expect("write");
    check_patterns(disk, 50, count, 9000).await;
    let mut bufs: Vec<BlockMut> = (0..count).map(|_| BlockMut::dirty()).collect();
    bufs.reverse();
    let addresses: Vec<usize> = bufs.iter().map(|b| b.as_ptr().addr()).collect();
    let bufs = disk.read(Dbn::new(50), bufs).await.expect("read");
    for (i, buf) in bufs.iter().enumerate() {
        assert!(buf[..] == pattern(9000 + i as u64)[..], "buffer {i} holds its block");
        assert_eq!(buf.as_ptr().addr(), addresses[i], "the caller's memory, in order");
    }
}

async fn addresses_outside_are_refused(disk: &dyn Disk) {
    let blocks = disk.info().blocks.get();
    let outside = |r: Result<(), DiskError>| matches!(r, Err(DiskError::OutOfRange { .. }));
    for at in [blocks, blocks - 1, u64::MAX, u64::MAX / 4096, u64::MAX / 4096 + 1] {
        let bufs = vec![BlockMut::dirty(), BlockMut::dirty()];
        assert!(outside(disk.read(Dbn::new(at), bufs).await.map(drop)), "read at {at}");
        let two = vec![Block::zero(), Block::zero()];
        assert!(outside(disk.write(Dbn::new(at), two.clone()).await), "write at {at}");
        assert!(outside(disk.write_stable(Dbn::new(at), two).await), "stable write at {at}");
        assert!(outside(disk.discard(Dbn::new(at), Blocks::new(2)).await), "discard at {at}");
    }
    let long = vec![Block::zero(); REQUEST_BLOCKS_MAX + 1];
    assert!(outside(disk.write(Dbn::new(0), long.clone()).await), "a request over the limit");
    assert!(outside(disk.write_stable(Dbn::new(0), long).await), "a request over the limit");
    // An empty request is not an error, and does nothing.
    assert!(disk.read(Dbn::new(3), Vec::new()).await.is_ok_and(|b| b.is_empty()));
    assert!(disk.write(Dbn::new(3), Vec::new()).await.is_ok());
    assert!(disk.write_stable(Dbn::new(3), Vec::new()).await.is_ok());
    assert!(disk.discard(Dbn::new(3), Blocks::new(0)).await.is_ok());
    assert!(read_blocks(disk, blocks - 1, 1).await[0].iter().all(|b| *b == 0));
}

async fn many_requests_at_once(disk: &dyn Disk) {
    let writes = (0..400u64).map(|i| {
        let (at, blocks) = (Dbn::new(i * 3), vec![pattern(i), pattern(i + 1)]);
        if i % 3 == 0 { disk.write_stable(at, blocks) } else { disk.write(at, blocks) }
    });
    for done in join_all(writes.collect()).await {
        done.expect("write");
    }
    let flushes = (0..8).map(|_| disk.flush());
    for done in join_all(flushes.collect()).await {
        done.expect("flush");
    }
    let reads =
        (0..400u64).map(|i| disk.read(Dbn::new(i * 3), vec![BlockMut::dirty(), BlockMut::dirty()]));
    for (i, done) in (0u64..).zip(join_all(reads.collect()).await) {
        let bufs = done.expect("read");
        assert!(bufs[0][..] == pattern(i)[..] && bufs[1][..] == pattern(i + 1)[..]);
    }
}

async fn dropped_futures_harm_nothing(disk: &dyn Disk) {
    write_patterns(disk, 0, 64, 300).await;
    for i in 0..32 {
        drop(disk.read(Dbn::new(i), Vec::new()));
        drop(disk.read(Dbn::new(i), (0..16).map(|_| BlockMut::dirty()).collect()));
        let mut polled = disk.read(Dbn::new(i), (0..16).map(|_| BlockMut::dirty()).collect());
        poll_fn(|cx| {
            let _first = polled.as_mut().poll(cx).is_ready();
            Poll::Ready(())
        })
        .await;
        drop(polled);
        // Memory that the device still writes to must not be handed out again.
        let fresh: Vec<BlockMut> = (0..32).map(|_| BlockMut::zeroed()).collect();
        check_patterns(disk, 0, 64, 300).await;
        assert!(fresh.iter().all(|b| b.iter().all(|v| *v == 0)), "foreign bytes in a new buffer");
    }
    for i in 0..32u64 {
        let mut write = disk.write(Dbn::new(1000 + i), vec![pattern(i)]);
        poll_fn(|cx| {
            let _first = write.as_mut().poll(cx).is_ready();
            Poll::Ready(())
        })
        .await;
        drop(write);
    }
    disk.flush().await.expect("flush");
    for i in 0..32 {
        let got = &read_blocks(disk, 1000 + i, 1).await[0];
        let old = got.iter().all(|b| *b == 0);
        assert!(old || got[..] == pattern(i)[..], "an abandoned write is whole or has not begun");
    }
}

async fn counters_are_exact(disk: &dyn Disk) {
    assert_eq!(disk.counters(), Default::default());
    write_patterns(disk, 10, 5, 1).await;
    write_patterns(disk, 20, 1, 2).await;
    disk.flush().await.expect("flush");
    read_blocks(disk, 10, 3).await;
    let refused = disk.write(Dbn::new(u64::MAX), vec![Block::zero()]).await;
    assert!(refused.is_err());
    let c = disk.counters();
    assert_eq!((c.writes, c.blocks_written), (2, 6));
    assert_eq!((c.reads, c.blocks_read), (1, 3));
    assert_eq!((c.flushes, c.errors), (1, 1));
}

async fn discard_leaves_the_rest(disk: &dyn Disk) {
    write_patterns(disk, 0, 32, 70).await;
    disk.flush().await.expect("flush");
    disk.discard(Dbn::new(8), Blocks::new(8)).await.expect("discard");
    disk.flush().await.expect("flush");
    check_patterns(disk, 0, 8, 70).await;
    check_patterns(disk, 16, 16, 86).await;
    write_patterns(disk, 8, 8, 500).await;
    check_patterns(disk, 8, 8, 500).await;
    let all = disk.info().blocks;
    disk.discard(Dbn::new(0), all).await.expect("discard of the whole disk");
    assert_eq!(disk.info().blocks, all, "a discard does not change the size");
}

async fn random_writes_match_a_map(disk: &dyn Disk) {
    let mut rng = Rng::new(0x5EED);
    let mut model = vec![0u64; 512];
    for step in 1..300u64 {
        let at = rng.index(500);
        let count = 1 + rng.index(12.min(512 - at));
        if rng.one_in(2) {
            write_patterns(disk, at as u64, count, step * 1000).await;
            for i in 0..count {
                model[at + i] = step * 1000 + i as u64;
            }
        } else {
            let bufs = read_blocks(disk, at as u64, count).await;
            for (buf, seed) in bufs.iter().zip(&model[at..]) {
                let want = if *seed == 0 { Block::zero() } else { pattern(*seed) };
                assert!(buf[..] == want[..BLOCK_BYTES], "step {step}: as the model says");
            }
        }
        if rng.one_in(20) {
            disk.flush().await.expect("flush");
        }
    }
}
