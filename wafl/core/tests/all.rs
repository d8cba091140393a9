//! All tests of the crate from outside, in one program: it is linked once. But
//! `spans.rs`: what it watches is the same for all threads of a process.

mod common;
mod conform;
mod explain;
mod gated;
mod log_disks;
mod manage;
mod pace;
mod sequences;
mod space;
mod streams;
