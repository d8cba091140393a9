//! The node: every layer, put together.
//!
//! Layer: the top. It reads the configuration, opens the disks, starts the layers from the bottom
//! up and stops them from the top down; it decides nothing that a layer could decide. `cairnd`
//! and `cairn demo` are thin callers of this library.
//!
//! ```text
//! start: state directory locked → disks → aggregate → storage manager (log replayed)
//!        → configuration database → routes → NFS → REST
//! stop:  REST → NFS (requests in flight end) → jobs → storage manager (consistency point)
//!        → aggregate → lock
//! ```

pub mod config;
pub mod daemon;
pub mod demo;
mod descriptors;
mod front;
mod memory;
mod metrics;
mod nfs;
pub mod offline;
mod size;
mod statedir;
mod storage;

pub use front::{Front, FrontError};
pub use size::{parse_size, show_size};
pub use statedir::{StateDir, StateDirError};
pub use storage::{Formation, Storage, StorageError};
