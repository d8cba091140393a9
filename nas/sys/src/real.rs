//! The product's world: tokio's timer and tasks, the kernel's clocks and random numbers.
//!
//! The only module (with the disk drivers and socket front ends) that may reach for these.

#![expect(clippy::disallowed_methods, reason = "this is the seam itself")]

use core::time::Duration;
use std::io::Read;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cairn_units::{MonoTime, WallTime};

use crate::lock::{Leaf, Rank, scope};
use crate::{BoxFuture, Clock, Entropy, Spawn, World};

/// A world on the tokio runtime of the caller; tasks are spawned on `handle`.
pub fn world(handle: tokio::runtime::Handle) -> std::io::Result<World> {
    let spawn = Arc::new(RealSpawn { handle: handle.clone() });
    let source = std::fs::File::open("/dev/urandom")?;
    Ok(World {
        clock: Arc::new(RealClock { start: Instant::now(), handle }),
        entropy: Arc::new(RealEntropy { source: Leaf::new(Rank::Entropy, source) }),
        spawn,
    })
}

struct RealClock {
    start: Instant,
    handle: tokio::runtime::Handle,
}

impl Clock for RealClock {
    fn monotonic(&self) -> MonoTime {
        // Starts at one second, so that "one interval ago" never underflows.
        let nanos = self.start.elapsed().as_nanos() + 1_000_000_000;
        MonoTime::new(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
    fn wall(&self) -> WallTime {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(d) => WallTime::new(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)),
            Err(e) => WallTime::new(-i64::try_from(e.duration().as_nanos()).unwrap_or(i64::MAX)),
        }
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let _guard = self.handle.enter();
        Box::pin(tokio::time::sleep(duration))
    }
}

struct RealEntropy {
    source: Leaf<std::fs::File>,
}

impl Entropy for RealEntropy {
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        let mut source = self.source.lock();
        match source.read_exact(&mut bytes) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(e) => panic!("the kernel's random source failed: {e}"),
        }
    }
}

struct RealSpawn {
    handle: tokio::runtime::Handle,
}

impl Spawn for RealSpawn {
    fn spawn(&self, name: &'static str, task: BoxFuture<()>) {
        let _named = name;
        drop(self.handle.spawn(scope(task)));
    }

    fn spawn_apart(&self, name: &'static str, task: BoxFuture<()>) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return self.spawn(name, task);
        };
        // The thread takes the task from here, so that it is not lost where there is no thread.
        let (give, taken) = std::sync::mpsc::channel();
        let run = move || {
            crate::event_loop::mark();
            if let Ok(task) = taken.recv() {
                runtime.block_on(scope(task));
            }
        };
        match std::thread::Builder::new().name(name.to_owned()).spawn(run) {
            Ok(_thread) => drop(give.send(task)),
            Err(_) => self.spawn(name, task),
        }
    }
}

/// Runs `work`, which ends by itself, on a thread of its own and of the lowest priority: for what
/// can wait and would keep a task's thread from others.
///
/// # Errors
/// What the kernel says when there is no thread.
pub fn background(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let quietly = || {
        crate::slab::lowest_priority();
        work();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(quietly).map(drop)
}
