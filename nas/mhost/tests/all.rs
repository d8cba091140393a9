//! All tests of the crate from outside, in one program: it is linked once.

mod common;
mod jobs;
mod rest;
mod rest_slow;
