//! The whole stack in the simulated world: NFS clients above, simulated disks below, faults from
//! the seed, and an oracle that knows what must be there.
//!
//! Layer: tests only, on top of everything. One thread, one seed, virtual time; the code under
//! test is the production code from the bytes of an RPC record down to the disk driver's seam.
//!
//! | module | what |
//! |---|---|
//! | `plan` | what a seed means: machine, operations, faults, as lists |
//! | `net`, `rpc`, `nfs`, `xdr` | cables, and the clients' side of the protocol |
//! | `oracle`, `client` | what may be read, and who judges it |
//! | `machine` | disks to NFS, put together as the node does it |
//! | `faults`, `inject` | what the design promises to survive, and the faults |
//! | `run` | a world from beginning to end |
//! | `shrink` | a failing plan made short |
//!
//! # Invariants
//! - The same plan gives the same world: [`Report::digest`] says so.
//! - What is injected at a time stays within what the design promises to survive.
//!
//! How to use it: `docs/testing.md`.

mod client;
mod faults;
mod inject;
mod machine;
mod net;
mod nfs;
mod oracle;
mod plan;
mod rpc;
mod run;
mod shrink;
mod xdr;

pub use plan::{FAULT_KINDS, Fault, FaultKind, Op, Plan, Shape, places_of, places_text};
pub use run::{Report, run};
pub use shrink::{Kept, shrink};
