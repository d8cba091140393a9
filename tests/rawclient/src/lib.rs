//! A raw NFSv3 client over TCP, for test programs outside of the server: it shares no code with
//! the server, and can send what no client of the kernel would.
//!
//! Layer: tests only; used by the witness and by the hostile clients.

pub mod nfs;
pub mod rpc;
