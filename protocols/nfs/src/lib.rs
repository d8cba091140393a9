//! NFS version 3, MOUNT, rpcbind.
//!
//! Layer: a protocol front end. Speaks `cairn_op::Files` and nothing below it; the RPC server
//! (`cairn-oncrpc`) owns the sockets. Invariants: names are bytes; attributes before and after
//! are those that the operation took; a reply promises no more than the operation did.
//!
//! Sources: RFC 1813 (NFS version 3, MOUNT), RFC 1833 (rpcbind).
//!
//! One WRITE: `cairn_oncrpc` connection → [`NfsService`]`::plan` → payload into blocks →
//! [`procs`] `write.rs` decode → `Files::submit` → encode → reply.

mod config;
pub mod fuzzing;
mod mount;
pub mod procs;
mod rpcbind;
mod server;
mod service;

pub use config::{IO_BYTES_MAX, NfsConfig, Rpcbind};
pub use rpcbind::{RegisterError, Registration, RpcbindService, Transport};
pub use server::{NfsServer, StartError};
pub use service::{MOUNT_PROGRAM, NFS_PROGRAM, NFS_VERSION, NfsService};
