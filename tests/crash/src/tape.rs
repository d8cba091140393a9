//! What was asked of all disks and answered by the node, in order.
//!
//! Layer: above `image`, below the disks that write it and the states that are built from it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::image::Content;

/// How a promise differs from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// More may be there: an act was begun.
    Allows,
    /// More must be there: an act was answered.
    Asks,
}

/// Something that happened while a workload ran.
#[derive(Clone)]
pub enum Event {
    /// A write was handed to a disk: from now on a power cut may leave any part of it.
    Write {
        /// Which disk.
        disk: usize,
        /// First block.
        at: u64,
        /// Contents.
        blocks: Vec<Content>,
    },
    /// The disk said that it took the write that this event (by its place on the tape) began.
    WriteDone(usize),
    /// The disk said that it took this write and made it durable.
    WriteStableDone(usize),
    /// A flush was handed to a disk.
    Flush {
        /// Which disk.
        disk: usize,
    },
    /// The flush that this event began was answered: what had been taken before it is durable.
    FlushDone(usize),
    /// From now on the promise of this number holds.
    Promise {
        /// Which.
        number: usize,
        /// What it asks for beside the one before.
        change: Change,
    },
}

/// The tape of one run. Clones are the same tape.
#[derive(Clone, Default)]
pub struct Tape(Arc<Mutex<Vec<Event>>>);

impl Tape {
    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Notes an event; its place.
    pub fn push(&self, event: Event) -> usize {
        let mut events = self.lock();
        events.push(event);
        events.len() - 1
    }
    /// All events so far; the tape is empty afterwards.
    pub fn take(&self) -> Vec<Event> {
        core::mem::take(&mut *self.lock())
    }
}
