//! Interleavings: production code under a scheduler that preempts at every lock and atomic.
//!
//! Layer: test harness. The simulator (`tests/sim`) runs one task at a time and changes tasks only
//! where one awaits; what two threads can do to each other between an unlock and the next lock it
//! never sees. Here every [`World`](cairn_sys::World) task is a task of shuttle's, and every lock
//! and atomic of `cairn_sys::lock` a point where another one may go on. The code under test is the
//! production code; only the disks ([`MemDisk`]) and the world ([`Ground`]) are the harness's own.
//!
//! A failing execution prints its schedule; `CAIRN_INTERLEAVE_SEED` and
//! `CAIRN_INTERLEAVE_EXECUTIONS` choose others and more of them.
//!
//! Not seen: orderings weaker than sequential consistency (ThreadSanitizer looks for those), and
//! preemption inside of tokio's channels and inside of the block pool.

#[cfg(feature = "shuttle")]
mod disk;
#[cfg(feature = "shuttle")]
mod explore;
#[cfg(feature = "shuttle")]
mod world;

#[cfg(feature = "shuttle")]
pub use disk::{Image, Keep, MemDisk, Shelf};
#[cfg(feature = "shuttle")]
pub use explore::{explore, once};
#[cfg(feature = "shuttle")]
pub use world::Ground;
