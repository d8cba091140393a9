//! The storage manager: buffers, volumes, messages, consistency points.
mod apply;
mod change;
mod perm;
mod plan;
mod tree;
mod volume;
mod xattr;
