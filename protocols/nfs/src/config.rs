//! Limits and settings of the NFS front end.

use std::net::SocketAddr;

use cairn_oncrpc::Limits;
use cairn_units::VserverId;

/// Most bytes of one READ or WRITE.
pub const IO_BYTES_MAX: u32 = 1 << 20;
/// Most bytes of one listing.
pub(crate) const LISTING_BYTES_MAX: u32 = 256 << 10;
/// Bytes of a listing that clients are told to ask for.
pub(crate) const LISTING_BYTES_PREFERRED: u32 = 64 << 10;
const _: () = assert!(LISTING_BYTES_PREFERRED <= LISTING_BYTES_MAX);
const _: () = assert!(IO_BYTES_MAX as usize <= cairn_oncrpc::message::RECORD_BYTES_MAX);

/// How clients find the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rpcbind {
    /// They are told (mount options).
    #[default]
    Off,
    /// We answer as rpcbind ourselves, on this address and port (TCP and UDP).
    Serve(SocketAddr),
    /// We tell a running rpcbind, at this address (`127.0.0.1:111`, as a rule).
    Register(SocketAddr),
}

/// Settings of the NFS front end.
#[derive(Clone, Debug)]
pub struct NfsConfig {
    /// Address and port for NFS and MOUNT; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Worker threads.
    pub workers: usize,
    /// Bounds.
    pub limits: Limits,
    /// Virtual server that clients of this address come through.
    pub vserver: VserverId,
    /// How clients find the port.
    pub rpcbind: Rpcbind,
}
