//! The simulated world: one thread, one seed, virtual time, simulated disks.
//!
//! Layer: tests only; implements the seams of `cairn-sys` and the `Disk` trait. Production code
//! never depends on it.
//!
//! # Invariants
//! - Everything that varies comes from the seed: which ready task runs next, how long a request
//!   takes, what a power cut leaves. The same seed and the same program give the same
//!   [`SimWorld::digest`]; nothing reads a clock, an address or a thread id.
//! - Virtual time stands still while a task can run, and then jumps to the next timer.
//! - Only a flush orders writes: what was not flushed may be kept, lost, torn at 512 bytes or
//!   reordered by a power cut.
//!
//! # Use
//! ```
//! # use cairn_sim::{SimDiskConfig, SimWorld};
//! # use cairn_raid_disk::Disk;
//! # use cairn_sys::BlockMut;
//! # use cairn_units::{Blocks, Dbn};
//! let sim = SimWorld::new(7);
//! let disk = sim.disk(SimDiskConfig::new("d0", Blocks::new(1000)));
//! sim.cut_power_at(2); // the second write or flush from here on
//! let end = sim.block_on_or_cut(async {
//!     disk.write(Dbn::new(1), vec![BlockMut::copy_of(b"a").freeze()]).await?;
//!     disk.flush().await
//! });
//! assert!(end.is_none());
//! let disk = disk.reattach(); // the same medium after the power came back
//! # drop(disk);
//! ```

pub mod conformance;
mod disk;
mod exec;
mod medium;
mod rng;

pub use disk::{CutPolicy, DiskImage, SimDisk, SimDiskConfig};
pub use exec::SimWorld;
pub use rng::Rng;
