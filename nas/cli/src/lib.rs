//! The `cairn` command: what people and scripts use.
//!
//! Layer: the edge. It talks REST to a node and shows what it says, as tables or as JSON; only
//! `cairn demo` runs a node itself. What must not be here: any decision about storage.

pub mod args;
pub mod client;
pub mod run;
pub mod table;
pub mod watch;
