//! All interleaving tests are one program: each would build the storage manager into itself.

mod allocation;
mod buffer_cache;
mod common;
mod freeze;
mod log_halves;
mod promised;
