//! Bytes of one connection on their way in: a small window for heads, and payloads that are
//! received straight into blocks.

use std::io::IoSliceMut;

use cairn_sys::block::RUN_PAGES;
use cairn_sys::{BlockMut, Payload};
use cairn_units::BLOCK_BYTES;

use crate::config::RECEIVE_BUFFER_BYTES;

/// Blocks that are made ready for one read of a payload.
const READ_BLOCKS_MAX: usize = RUN_PAGES;
/// Part of the window that is used while large payloads come one after the other: whatever of
/// the next payload lands in the window must be copied.
pub(crate) const NARROW_WINDOW_BYTES: usize = 1024;

/// The window of a connection that has said little so far: thousands of silent ones cost nearly
/// nothing.
const FIRST_WINDOW_BYTES: usize = 2048;

/// The window. It is small until a read has filled it.
#[derive(Debug)]
pub(crate) struct Window {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    grows: bool,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; FIRST_WINDOW_BYTES], start: 0, end: 0, grows: false }
    }
    pub(crate) fn filled(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }
    /// Forgets the first `bytes` bytes.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        assert!(self.start <= self.end, "consumed more than there is");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }
    /// Room behind what is there, at most `window` bytes in all if that leaves any; what is there
    /// is moved to the front when the room behind it is spent. Empty only when
    /// [`RECEIVE_BUFFER_BYTES`] are there.
    pub(crate) fn room(&mut self, window: usize) -> &mut [u8] {
        if self.grows {
            self.grows = false;
            self.buffer.resize(RECEIVE_BUFFER_BYTES, 0);
        }
        let mut window = window.min(self.buffer.len());
        if self.len() >= window {
            window = self.buffer.len();
        }
        if self.end >= window && self.start > 0 || self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..window.max(self.end)]
    }
    pub(crate) fn received(&mut self, bytes: usize) {
        self.end += bytes;
        assert!(self.end <= self.buffer.len(), "received more than there was room for");
        self.grows |= self.end == self.buffer.len() && self.end < RECEIVE_BUFFER_BYTES;
    }
    /// Lends the buffer, so that a record in it can be handled beside other state.
    pub(crate) fn lend(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.buffer)
    }
    pub(crate) fn give_back(&mut self, buffer: Vec<u8>) {
        self.buffer = buffer;
    }
    pub(crate) fn start(&self) -> usize {
        self.start
    }
}

/// A payload that is being received. Blocks are made only as bytes for them arrive.
#[derive(Debug)]
pub(crate) struct Filling {
    skip: usize,
    bytes: usize,
    filled: usize,
    blocks: Vec<BlockMut>,
}

impl Filling {
    /// For `bytes` bytes that belong at `file_offset`.
    pub(crate) fn new(file_offset: u64, bytes: u32) -> Self {
        let within = file_offset % BLOCK_BYTES as u64;
        let skip = usize::try_from(within).unwrap_or(0);
        Self { skip, bytes: bytes as usize, filled: 0, blocks: Vec::new() }
    }
    pub(crate) fn missing(&self) -> usize {
        self.bytes - self.filled
    }
    fn position(&self) -> usize {
        self.skip + self.filled
    }
    /// Makes the blocks for the next `bytes` bytes (or all that are missing).
    fn make_blocks(&mut self, bytes: usize) {
        if self.bytes == 0 {
            return;
        }
        let until = self.position() + bytes.min(self.missing());
        let blocks = until.div_ceil(BLOCK_BYTES);
        if self.blocks.len() < blocks {
            // In whole runs, so that neighbours in the file are neighbours in memory.
            let all = (self.skip + self.bytes).div_ceil(BLOCK_BYTES);
            let upto = blocks.next_multiple_of(RUN_PAGES).min(all);
            self.blocks.extend(BlockMut::take_many(upto - self.blocks.len()));
        }
    }
    /// Copies as much of `data` as is missing; returns how much that was.
    pub(crate) fn copy(&mut self, data: &[u8]) -> usize {
        let take = data.len().min(self.missing());
        self.make_blocks(take);
        let mut rest = &data[..take];
        while !rest.is_empty() {
            let (index, at) = (self.position() / BLOCK_BYTES, self.position() % BLOCK_BYTES);
            let n = rest.len().min(BLOCK_BYTES - at);
            self.blocks[index][at..at + n].copy_from_slice(&rest[..n]);
            self.received(n);
            rest = &rest[n..];
        }
        take
    }
    /// Slices for a vectored read: the missing part (bounded), then `tail` if all fits before it.
    pub(crate) fn slices<'a>(&'a mut self, tail: &'a mut [u8]) -> Vec<IoSliceMut<'a>> {
        // To the end of a run, so that no more than one is made ahead.
        let room = READ_BLOCKS_MAX * BLOCK_BYTES;
        let room = room - self.position() % room;
        self.make_blocks(room);
        let whole = self.missing() <= room;
        let (first, at) = (self.position() / BLOCK_BYTES, self.position() % BLOCK_BYTES);
        let mut left = self.missing();
        let mut from = at;
        let mut out = Vec::with_capacity(READ_BLOCKS_MAX + 2);
        for block in &mut self.blocks[first..] {
            let to = (from + left).min(BLOCK_BYTES);
            left -= to - from;
            out.push(IoSliceMut::new(&mut block[from..to]));
            from = 0;
        }
        if whole && !tail.is_empty() {
            out.push(IoSliceMut::new(tail));
        }
        out
    }
    /// Notes that a read gave `bytes` bytes; returns how many of them are behind the payload.
    pub(crate) fn received(&mut self, bytes: usize) -> usize {
        let mine = bytes.min(self.missing());
        let before = self.position() / BLOCK_BYTES;
        self.filled += mine;
        for block in &self.blocks[before..self.position() / BLOCK_BYTES] {
            // Whoever stores it needs the checksum; now the bytes are in the processor's cache.
            block.warm_crc();
        }
        bytes - mine
    }
    /// The payload, when nothing is missing. What its first and last blocks hold beside it is
    /// zeros: blocks come from requests of others, and whole blocks go into the log.
    pub(crate) fn finish(mut self) -> Payload {
        assert!(self.missing() == 0, "a payload is used only when it is whole");
        if let Some(first) = self.blocks.first_mut() {
            first[..self.skip].fill(0);
        }
        let end = (self.skip + self.bytes) % BLOCK_BYTES;
        if let (Some(last), true) = (self.blocks.last_mut(), end != 0) {
            last[end..].fill(0);
        }
        let blocks = self.blocks.into_iter().map(BlockMut::freeze).collect();
        let (Ok(skip), Ok(bytes)) = (u32::try_from(self.skip), u32::try_from(self.bytes)) else {
            unreachable!("both came from 32 bits")
        };
        Payload::new(skip, bytes, blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Any mixture of copied and received pieces gives the payload, and the bytes behind it
        /// are left for the window.
        #[test]
        fn a_payload_is_assembled_from_any_pieces(
            offset in 0u64..10_000,
            bytes in 0u32..400_000,
            pieces in prop::collection::vec((any::<bool>(), 1usize..100_000), 1..30),
        ) {
            let data: Vec<u8> = (0..bytes + 100).map(|i| (i % 253) as u8).collect();
            let mut f = Filling::new(offset, bytes);
            let mut at = 0;
            let mut tail_got = Vec::new();
            for (copied, n) in pieces.into_iter().cycle() {
                if f.missing() == 0 { break; }
                if copied {
                    at += f.copy(&data[at..(at + n).min(data.len())]);
                } else {
                    let mut tail = [0; 64];
                    let mut slices = f.slices(&mut tail);
                    let mut left = &data[at..(at + n).min(data.len())];
                    let mut total = 0;
                    for s in &mut slices {
                        let k = s.len().min(left.len());
                        s[..k].copy_from_slice(&left[..k]);
                        left = &left[k..];
                        total += k;
                    }
                    drop(slices);
                    let behind = f.received(total);
                    tail_got = tail[..behind].to_vec();
                    at += total;
                }
            }
            let n = bytes as usize;
            prop_assert_eq!(&tail_got[..], &data[n..n + tail_got.len()]);
            let payload = f.finish();
            prop_assert_eq!(u64::from(payload.skip()) % 4096, if bytes == 0 { u64::from(payload.skip()) } else { offset % 4096 });
            prop_assert_eq!(payload.to_vec(), &data[..n]);
        }
    }

    #[test]
    fn the_window_grows_once_it_was_full_and_keeps_what_is_there() {
        let mut w = Window::new();
        assert_eq!(w.room(RECEIVE_BUFFER_BYTES).len(), FIRST_WINDOW_BYTES);
        w.room(RECEIVE_BUFFER_BYTES)[..10].copy_from_slice(b"0123456789");
        w.received(10);
        w.consume(4);
        let room = w.room(RECEIVE_BUFFER_BYTES).len();
        assert_eq!(room, FIRST_WINDOW_BYTES - 10);
        w.room(RECEIVE_BUFFER_BYTES).fill(7);
        w.received(room);
        let room = w.room(RECEIVE_BUFFER_BYTES).len();
        assert_eq!(room, RECEIVE_BUFFER_BYTES - FIRST_WINDOW_BYTES);
        assert_eq!((&w.filled()[..6], w.len()), (&b"456789"[..], FIRST_WINDOW_BYTES - 4));
        w.received(room);
        assert_eq!(w.room(RECEIVE_BUFFER_BYTES).len(), 4, "moved to the front");
        w.received(4);
        assert!(w.room(RECEIVE_BUFFER_BYTES).is_empty());
    }

    #[test]
    fn blocks_of_a_payload_hold_nothing_of_earlier_requests() {
        for (offset, bytes) in [(100u64, 50u32), (4000, 200), (4096, 4096), (10, 9000), (0, 1)] {
            let used: Vec<BlockMut> = (0..4).map(|_| BlockMut::copy_of(&[0xaa; 4096])).collect();
            drop(used);
            let mut f = Filling::new(offset, bytes);
            f.copy(&vec![1; bytes as usize]);
            let payload = f.finish();
            let sum: u64 =
                payload.blocks().iter().flat_map(|b| b.iter()).map(|b| u64::from(*b)).sum();
            assert_eq!(sum, u64::from(bytes), "{bytes} bytes at {offset}");
        }
    }

    #[test]
    fn nothing_is_allocated_before_bytes_are_asked_for() {
        let f = Filling::new(0, 1 << 20);
        assert!(f.blocks.is_empty());
    }
}
