//! Replies of one connection on their way out: one arena for headers and small results, and
//! references to blocks for file data. Everything ready goes out in one vectored write.

use std::collections::VecDeque;
use std::io::IoSlice;

use cairn_sys::{Block, Payload};
use cairn_units::BLOCK_BYTES;

use crate::xdr::padding;

const BLOCK_BYTES_U32: u32 = 4096;
const _: () = assert!(BLOCK_BYTES_U32 as usize == BLOCK_BYTES);
/// Slices of one vectored write (the kernel's limit).
const SLICES_MAX: usize = 1024;
/// Sent bytes at the arena's front before it is moved together.
const COMPACT_BYTES: usize = 64 << 10;
/// Room that an empty arena keeps: part of what a silent peer holds.
const ARENA_KEEP_BYTES: usize = 16 << 10;

#[derive(Debug)]
enum Segment {
    /// Bytes of the arena, by their number since the connection began.
    Arena { from: u64, to: u64 },
    /// Bytes of a block.
    Block { block: Block, from: u32, to: u32 },
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Self::Arena { from, to } => usize::try_from(to - from).unwrap_or(usize::MAX),
            Self::Block { from, to, .. } => (to - from) as usize,
        }
    }
}

/// Output of a connection.
#[derive(Debug, Default)]
pub(crate) struct Output {
    arena: Vec<u8>,
    /// Number of the arena's first byte.
    base: u64,
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are sent.
    front_sent: usize,
    queued: u64,
    sent: u64,
}

impl Output {
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Bytes handed in since the beginning.
    pub(crate) fn queued(&self) -> u64 {
        self.queued
    }

    /// Bytes sent since the beginning.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Lends the arena, to append one reply to it; comes back by [`Self::commit`].
    pub(crate) fn lend(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.arena)
    }

    /// Takes the arena back, with a reply from index `at` on, and the payload that follows it.
    pub(crate) fn commit(&mut self, arena: Vec<u8>, at: usize, payload: Option<Payload>) {
        self.arena = arena;
        self.reference(at);
        let Some(payload) = payload else { return };
        let pad = padding(payload.len() as usize);
        self.push_payload(payload);
        if pad > 0 {
            let at = self.arena.len();
            self.arena.extend_from_slice(&[0; 3][..pad]);
            self.reference(at);
        }
    }

    /// Queues the arena from index `at` to its end.
    fn reference(&mut self, at: usize) {
        let (from, to) = (self.base + at as u64, self.base + self.arena.len() as u64);
        if from == to {
            return;
        }
        self.queued += to - from;
        match self.segments.back_mut() {
            Some(Segment::Arena { to: end, .. }) if *end == from => *end = to,
            _ => self.segments.push_back(Segment::Arena { from, to }),
        }
    }

    fn push_payload(&mut self, payload: Payload) {
        self.queued += u64::from(payload.len());
        let (mut from, mut left) = (payload.skip(), payload.len());
        for block in payload.into_blocks() {
            let to = from.saturating_add(left).min(BLOCK_BYTES_U32);
            left -= to - from;
            self.segments.push_back(Segment::Block { block, from, to });
            from = 0;
        }
    }

    /// What is to be sent next.
    pub(crate) fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut skip = self.front_sent;
        let mut out = Vec::with_capacity(self.segments.len().min(SLICES_MAX));
        for segment in self.segments.iter().take(SLICES_MAX) {
            let bytes = self.bytes_of(segment);
            out.push(IoSlice::new(&bytes[skip..]));
            skip = 0;
        }
        out
    }

    /// The first slice of what is to be sent next, and whether there are more.
    pub(crate) fn first(&self) -> Option<(&[u8], bool)> {
        let bytes = self.bytes_of(self.segments.front()?);
        Some((&bytes[self.front_sent..], self.segments.len() > 1))
    }

    fn bytes_of<'a>(&'a self, segment: &'a Segment) -> &'a [u8] {
        match segment {
            Segment::Arena { from, to } => {
                let at = |n: &u64| usize::try_from(n - self.base).unwrap_or(usize::MAX);
                &self.arena[at(from)..at(to)]
            }
            Segment::Block { block, from, to } => &block[*from as usize..*to as usize],
        }
    }

    /// Notes that `bytes` more were sent.
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        let mut left = self.front_sent + bytes;
        while let Some(front) = self.segments.front() {
            let len = front.len();
            if left < len {
                break;
            }
            left -= len;
            self.segments.pop_front();
        }
        self.front_sent = left;
        self.compact();
    }

    fn compact(&mut self) {
        let arena_from = self.segments.iter().find_map(|s| match s {
            Segment::Arena { from, .. } => Some(*from),
            Segment::Block { .. } => None,
        });
        match arena_from {
            None => {
                self.base += self.arena.len() as u64;
                self.arena.clear();
                self.arena.shrink_to(ARENA_KEEP_BYTES);
            }
            Some(from) => {
                let sent = usize::try_from(from - self.base).unwrap_or(usize::MAX);
                if sent >= COMPACT_BYTES && sent >= self.arena.len() / 2 {
                    self.arena.drain(..sent);
                    self.base = from;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is queued comes out once, in order, in pieces of any size.
        #[test]
        fn bytes_leave_in_order(
            replies in prop::collection::vec((0usize..200_000, prop::option::of((0u64..4096, 0usize..20_000))), 1..12),
            steps in prop::collection::vec(1usize..90_000, 1..20),
        ) {
            let mut out = Output::default();
            let (mut expected, mut got) = (Vec::new(), Vec::new());
            let mut steps = steps.into_iter().cycle();
            let mut byte = 0u8;
            for (len, data) in replies {
                let mut arena = out.lend();
                let at = arena.len();
                for _ in 0..len {
                    byte = byte.wrapping_add(1);
                    arena.push(byte);
                    expected.push(byte);
                }
                let payload = data.map(|(offset, len)| {
                    let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
                    expected.extend_from_slice(&bytes);
                    expected.resize(expected.len() + padding(len), 0);
                    Payload::copy_from(offset, &bytes)
                });
                out.commit(arena, at, payload);
                prop_assert_eq!(out.queued(), expected.len() as u64);
                take(&mut out, &mut got, steps.next().unwrap());
            }
            while !out.is_empty() {
                take(&mut out, &mut got, steps.next().unwrap());
            }
            prop_assert_eq!(out.sent(), got.len() as u64);
            prop_assert_eq!(got, expected);
            prop_assert!(out.arena.is_empty());
        }
    }

    fn take(out: &mut Output, got: &mut Vec<u8>, bytes: usize) {
        let all: Vec<u8> = out.slices().iter().flat_map(|s| s.to_vec()).collect();
        let n = bytes.min(all.len());
        got.extend_from_slice(&all[..n]);
        out.advance(n);
    }
}
