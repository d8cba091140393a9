//! All tests of the crate from outside, in one program: it is linked once.

mod admin;
mod ahead;
mod basic;
mod common;
mod copy_out;
mod crash;
mod doubt;
mod faults;
mod raid_kind;
mod refuse;
mod upkeep;
