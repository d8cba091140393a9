//! An executable reference model of a node: files in memory, behind the same traits.
//!
//! Layer: tests only; beside the simulator. Production code never depends on it. It is the oracle
//! for every implementation of [`cairn_cf::DModule`]: [`ModelNode`] says what each operation must
//! answer, `conformance` asks for it one claim at a time, `sequence` runs random operations
//! with crashes inside on the model and on another implementation and compares all that a client
//! can see.
//!
//! What must not be here: anything clever. Maps, plain loops, one lock; the decisions are small
//! functions in [`rules`].
//!
//! # Order of checks (the same in every implementation, because clients see it)
//! 1. Two objects in different volumes: `CrossVolume`.
//! 2. An object unknown or of another generation: `Stale`.
//! 3. A change through a read-only export: `ReadOnlyFs`.
//! 4. The kind of the object: `NotDirectory`, `IsDirectory`, `Invalid`.
//! 5. `.` and `..`: `Exists` where something would be made, `Invalid` where it would be removed
//!    or renamed.
//! 6. Search permission of the directory: `AccessDenied`.
//! 7. Whether the name exists: `Exists`, `NotFound`.
//! 8. Write permission of the directory, then its sticky bit: `AccessDenied`, `NotOwner`.
//! 9. Everything else, as the functions of `names` write it down.

pub mod conformance;
mod data;
mod files;
mod inode;
mod names;
mod node;
pub mod rules;
pub mod sequence;

pub use files::DirectFiles;
pub use node::ModelNode;

/// Names a file may have.
pub const LINKS_MAX: u32 = 65_000;
/// Bytes in the value of an extended attribute.
pub const XATTR_VALUE_BYTES_MAX: usize = 65_536;
/// Inode number of a volume's root directory in the model; others may choose another one.
pub const ROOT_INO: u64 = 2;
