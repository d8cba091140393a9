//! The crash-point checker: small workloads, cut at every device order, with every outcome.
//!
//! Layer: tests only, above everything. The production storage stack runs on disks that write down
//! what they were asked ([`tape`]); afterwards every moment of the tape is a power cut, and every
//! subset of what was not flushed is a state of the disks ([`states`]). Each state is opened,
//! replayed, walked, scrubbed and compared with the reference model ([`check`]).
//!
//! # Invariants
//! - A workload runs once; its states are built from its tape.
//! - A state is checked once: what equals a state that was checked under the same promise is not
//!   opened again.
//! - The same arguments give the same states, whatever the number of threads.

pub mod acts;
pub mod check;
pub mod disk;
pub mod image;
pub mod record;
pub mod rig;
pub mod states;
pub mod sweep;
pub mod tape;
