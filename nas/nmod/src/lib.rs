//! The N-module: what stands between the protocols and the volumes.
//!
//! Layer: above it the protocol front ends through [`cairn_op::Files`], below it D-modules through
//! [`cairn_cf::DModule`]. It keeps no state of any file: only a table of routes (which volume is
//! where, who may use it, under which path) that the M-host's side pushes as a whole, and the key
//! of the file handles. What must not be here: the storage manager, disks, any wire format but
//! that of the file handle.
//!
//! # Invariants
//! - A handle that this cluster did not make never reaches a D-module ([`HandleKey`]).
//! - No operation reaches a volume for a client whom the volume's export policy does not admit;
//!   the credential that goes down is the squashed one.
//! - A request takes no lock and allocates nothing here while it is answered from memory: the
//!   table is read by one atomic load, policies are compiled when they are pushed.

mod counters;
mod handle;
mod mount;
mod policy;
mod routes;
mod submit;

pub use counters::{OP_NAMES, OpCount};
pub use handle::{HANDLE_BYTES, HandleKey, fuzz_handle};
pub use policy::{Access, Admission, ExportPolicy, PortRule, Rule, Squash, Subnet};
pub use routes::{JunctionError, Routes, Volume};
pub use submit::NModule;
