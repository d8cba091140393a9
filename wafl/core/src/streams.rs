//! Which reads of a file go on where others were: those are worth loading ahead for.
//!
//! Layer: in-core inodes. Only reads that miss are noted, so one that finds everything costs nothing.
//! Reads of one stream come out of order when a client keeps several under way; several streams may
//! go through a file at once. A read at a random place is none of these, whatever is in memory
//! beside it: loading ahead for it would fill the cache with what nobody asked for.

/// Blocks that a read miss loads ahead of what was asked for.
pub(crate) const READ_AHEAD_BLOCKS: u64 = 64;
/// Streams of one file that are remembered.
const STREAMS: usize = 4;
/// Reads of its own length that one may be away from its stream: as many as a client has under way.
const READS_UNDER_WAY: u64 = 16;
/// Reads that go on where others were before anything is loaded ahead: in a small file a random one
/// is near another often.
const RUN_MIN: u8 = 2;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// First block behind what was loaded for it; 0 is none.
    end: u64,
    /// Reads that went on where it was.
    run: u8,
}

/// See the module. Nothing is allocated for a file whose reads find all in memory.
#[derive(Debug, Default)]
pub(crate) struct Streams(Option<Box<Known>>);

#[derive(Debug, Default)]
struct Known {
    streams: [Stream; STREAMS],
    /// Whose turn it is to be forgotten.
    oldest: u8,
}

impl Streams {
    /// Notes a read of blocks `begin..end`; whether to load ahead for it.
    pub fn goes_on(&mut self, begin: u64, end: u64) -> bool {
        let known = self.0.get_or_insert_default();
        let reach = READS_UNDER_WAY * end.saturating_sub(begin);
        let near = |s: &&mut Stream| s.end != 0 && s.end.abs_diff(begin) <= reach;
        let stream = match known.streams.iter_mut().find(near) {
            Some(stream) => {
                stream.run = stream.run.saturating_add(1);
                stream
            }
            None => {
                let at = usize::from(known.oldest) % STREAMS;
                known.oldest = known.oldest.wrapping_add(1);
                // Who begins with the file is taken for a stream at once.
                known.streams[at] = Stream { end: 0, run: if begin == 0 { RUN_MIN } else { 0 } };
                &mut known.streams[at]
            }
        };
        let ahead = stream.run >= RUN_MIN;
        let loaded = if ahead { end + READ_AHEAD_BLOCKS } else { end };
        stream.end = stream.end.max(loaded);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_goes_on_though_its_reads_are_out_of_order() {
        let mut streams = Streams::default();
        assert!(streams.goes_on(0, 8), "the beginning of a file");
        for begin in [80, 72, 160, 152, 232] {
            assert!(streams.goes_on(begin, begin + 8), "{begin}");
        }
        let other = [10_000, 10_016, 10_008].map(|at| streams.goes_on(at, at + 8));
        assert_eq!(other, [false, false, true], "another stream");
        assert!(streams.goes_on(10_088, 10_096) && streams.goes_on(304, 312), "both go on");
    }

    #[test]
    fn reads_at_random_places_are_no_stream() {
        for (blocks, most) in [(524_288, 1), (4000, 20)] {
            let mut rng = cairn_sim::Rng::new(1);
            let mut streams = Streams::default();
            let found = (0..1000).filter(|_| {
                let at = 1 + rng.below(blocks);
                streams.goes_on(at, at + 1)
            });
            let found = found.count();
            assert!(found <= most, "{found} of 1000 random reads of {blocks} blocks are a stream");
        }
    }
}
