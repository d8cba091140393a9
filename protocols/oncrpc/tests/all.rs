//! All tests of the crate from outside, in one program: it is linked once.

mod common;
mod hostile;
mod server;
mod slow;
