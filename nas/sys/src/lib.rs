//! Seams to the world: clock, chance and spawning, and the block buffers that every layer shares.
//!
//! Layer: beside `cairn-units`, below everything else. The D-module, the RAID layer, the fabric
//! and the jobs take time, chance and tasks only from a [`World`]; in the product that is tokio
//! ([`real`]), in tests the seeded simulator. What must not be here: anything that knows a file,
//! a volume or a disk.

pub mod block;
pub mod event_loop;
pub mod lock;
pub mod mutants;
pub mod real;
mod slab;

use core::future::Future;
use core::pin::Pin;
use core::time::Duration;
use std::sync::Arc;

use cairn_units::{MonoTime, WallTime};

pub use block::{Block, BlockMut, Payload};
pub use mutants::mutant;

/// An owned future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Time.
pub trait Clock: Send + Sync + 'static {
    /// Never goes back.
    fn monotonic(&self) -> MonoTime;
    /// The administrator's time; may jump.
    fn wall(&self) -> WallTime;
    /// Completes once `duration` has passed on the monotonic clock.
    fn sleep(&self, duration: Duration) -> BoxFuture<()>;
}

/// Chance.
pub trait Entropy: Send + Sync + 'static {
    /// 64 random bits: unpredictable in the product, from the seed in the simulator.
    fn next_u64(&self) -> u64;
}

/// Tasks.
pub trait Spawn: Send + Sync + 'static {
    /// Runs `task` until it ends; `name` is for people.
    fn spawn(&self, name: &'static str, task: BoxFuture<()>);
    /// [`Self::spawn`] for one long task that is woken often and waits for disks: in the product it
    /// has a thread with an event loop ([`event_loop`]) to itself, so that no other thread comes
    /// between it and what it waits for.
    fn spawn_apart(&self, name: &'static str, task: BoxFuture<()>) {
        self.spawn(name, task);
    }
}

/// What the world gives to a component: pass it down, never reach for it.
#[derive(Clone)]
pub struct World {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// Tasks.
    pub spawn: Arc<dyn Spawn>,
}

impl World {
    /// 16 random bytes, for uuids and keys.
    pub fn random_16(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.entropy.next_u64().to_le_bytes());
        out[8..].copy_from_slice(&self.entropy.next_u64().to_le_bytes());
        out
    }
}
