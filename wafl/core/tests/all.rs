//! All tests of the crate from outside, in one program: it is linked once.

mod common;
mod conform;
mod explain;
mod log_disks;
mod manage;
mod sequences;
mod space;
mod spans;
