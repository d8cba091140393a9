//! The checker's disk: contents shared with other states, orders noted on a tape or answered at
//! once.
//!
//! Layer: implements the `Disk` trait. Unlike the simulator's disk it does not decide what a power
//! cut leaves: the tape does, afterwards, for all outcomes. A write is visible from the moment it
//! was asked for; a request whose future is dropped is never noted as done.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_raid_disk::{Disk, DiskClass, DiskCounters, DiskError, DiskInfo, REQUEST_BLOCKS_MAX};
use cairn_sys::{Block, BlockMut, BoxFuture, World};
use cairn_units::{Blocks, Dbn};

use crate::image::{Content, Image};
use crate::tape::{Event, Tape};

/// Longest time of a request on a recorded disk, in microseconds.
const LATENCY_US_MAX: u64 = 200;

/// How requests are answered.
#[derive(Clone)]
pub enum Manner {
    /// After a time that the seed decides, and noted on the tape.
    Recorded(Tape),
    /// At once.
    Instant,
}

struct Recorder {
    world: World,
    tape: Tape,
}

struct State {
    image: Image,
    written: BTreeMap<u64, Block>,
    counters: DiskCounters,
}

/// One disk of one run.
pub struct TapeDisk {
    number: usize,
    location: String,
    blocks: u64,
    recorder: Option<Recorder>,
    state: Arc<Mutex<State>>,
}

impl TapeDisk {
    /// A disk with these contents.
    pub fn new(
        world: &World,
        number: usize,
        blocks: Blocks,
        image: Image,
        manner: &Manner,
    ) -> Self {
        let recorder = match manner {
            Manner::Recorded(tape) => Some(Recorder { world: world.clone(), tape: tape.clone() }),
            Manner::Instant => None,
        };
        let state = State { image, written: BTreeMap::new(), counters: DiskCounters::default() };
        Self {
            number,
            location: format!("d{number}"),
            blocks: blocks.get(),
            recorder,
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The contents now, as if all had been flushed.
    pub fn image(&self) -> Image {
        let state = self.lock();
        let mut image = state.image.clone();
        for (at, block) in &state.written {
            image.put(*at, Content::new(block.clone()));
        }
        image
    }

    fn check(&self, at: Dbn, count: usize) -> Result<(), DiskError> {
        let end = at.get().checked_add(count as u64);
        if end.is_some_and(|end| end <= self.blocks) && count <= REQUEST_BLOCKS_MAX {
            return Ok(());
        }
        Err(DiskError::OutOfRange { at, count: Blocks::new(count as u64) })
    }

    /// Begins a write whose end `done` tells.
    fn begin_write(
        &self,
        at: Dbn,
        blocks: Vec<Block>,
        done: fn(usize) -> Event,
    ) -> BoxFuture<Result<(), DiskError>> {
        if let Err(error) = self.check(at, blocks.len()) {
            return Box::pin(core::future::ready(Err(error)));
        }
        let done = self.recorder.as_ref().map(|r| {
            let blocks = blocks.iter().cloned().map(Content::new).collect();
            done(r.tape.push(Event::Write { disk: self.number, at: at.get(), blocks }))
        });
        {
            let mut state = self.lock();
            state.counters.writes += 1;
            state.counters.blocks_written += blocks.len() as u64;
            state.written.extend((at.get()..).zip(blocks));
        }
        self.answer((), done)
    }

    /// Answers `Ok(value)` after the disk's time and then notes `done`.
    fn answer<T: Send + 'static>(
        &self,
        value: T,
        done: Option<Event>,
    ) -> BoxFuture<Result<T, DiskError>> {
        let Some(recorder) = &self.recorder else {
            return Box::pin(core::future::ready(Ok(value)));
        };
        let micros = 1 + recorder.world.entropy.next_u64() % LATENCY_US_MAX;
        let sleep = recorder.world.clock.sleep(Duration::from_micros(micros));
        let tape = recorder.tape.clone();
        Box::pin(async move {
            sleep.await;
            if let Some(event) = done {
                tape.push(event);
            }
            Ok(value)
        })
    }
}

impl Disk for TapeDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            location: self.location.clone(),
            class: DiskClass::Simulated,
            blocks: Blocks::new(self.blocks),
        }
    }

    fn read(&self, at: Dbn, bufs: Vec<BlockMut>) -> BoxFuture<Result<Vec<BlockMut>, DiskError>> {
        if let Err(error) = self.check(at, bufs.len()) {
            return Box::pin(core::future::ready(Err(error)));
        }
        let mut bufs = bufs;
        {
            let mut state = self.lock();
            state.counters.reads += 1;
            state.counters.blocks_read += bufs.len() as u64;
            for (at, buf) in (at.get()..).zip(&mut bufs) {
                match state.written.get(&at).or_else(|| state.image.get(at)) {
                    Some(block) => buf.copy_from_slice(&block[..]),
                    None => buf.fill(0),
                }
            }
        }
        self.answer(bufs, None)
    }

    fn write(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>> {
        self.begin_write(at, blocks, Event::WriteDone)
    }

    fn write_stable(&self, at: Dbn, blocks: Vec<Block>) -> BoxFuture<Result<(), DiskError>> {
        let write = self.begin_write(at, blocks, Event::WriteStableDone);
        self.lock().counters.flushes += 1;
        write
    }

    fn flush(&self) -> BoxFuture<Result<(), DiskError>> {
        self.lock().counters.flushes += 1;
        let begun = Event::Flush { disk: self.number };
        let done = self.recorder.as_ref().map(|r| Event::FlushDone(r.tape.push(begun)));
        self.answer((), done)
    }

    fn discard(&self, at: Dbn, count: Blocks) -> BoxFuture<Result<(), DiskError>> {
        let count = usize::try_from(count.get()).unwrap_or(usize::MAX);
        let checked = self.check(at, count.min(REQUEST_BLOCKS_MAX));
        Box::pin(core::future::ready(checked))
    }

    fn counters(&self) -> DiskCounters {
        self.lock().counters
    }
}
