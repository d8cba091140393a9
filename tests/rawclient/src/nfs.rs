//! The procedures of NFSv3 that raw clients use (RFC 1813).
//!
//! Layer: above `rpc`. Times and wcc data are passed over: the conformance suite checks them.

use std::net::{SocketAddr, TcpStream};

use crate::rpc::{Connection, Error, In, Out};

/// Program and version of NFS.
pub const NFS: (u32, u32) = (100_003, 3);
/// Program and version of MOUNT.
pub const MOUNT: (u32, u32) = (100_005, 3);
const FATTR_BYTES: usize = 84;

/// NFS3ERR_NOENT.
pub const NOT_FOUND: u32 = 2;
/// UNSTABLE of a WRITE.
pub const UNSTABLE: u32 = 0;
/// DATA_SYNC of a WRITE.
pub const DATA_SYNC: u32 = 1;
/// FILE_SYNC of a WRITE.
pub const FILE_SYNC: u32 = 2;

/// A file handle.
pub type Handle = Vec<u8>;

/// Where a server is.
#[derive(Clone, Debug)]
pub struct Target {
    nfs: SocketAddr,
    mount: SocketAddr,
    export: String,
}

impl Target {
    /// `HOST:PORT:MOUNTPORT:EXPORT`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.trim().splitn(4, ':').collect();
        let bad = || Error::Usage(format!("{text:?} is not HOST:PORT:MOUNTPORT:EXPORT"));
        let [host, port, mount, export] = parts.as_slice() else { return Err(bad()) };
        let address = |port: &str| format!("{host}:{port}").parse().map_err(|_| bad());
        Ok(Self { nfs: address(port)?, mount: address(mount)?, export: (*export).to_owned() })
    }
}

impl Target {
    /// Address of NFS.
    pub fn nfs(&self) -> SocketAddr {
        self.nfs
    }
}

/// A connection to an export.
pub struct Client {
    connection: Connection,
}

/// What a WRITE answered.
pub struct Written {
    pub stability: u32,
    pub verifier: u64,
}

fn status(reply: &mut In<'_>) -> Result<(), Error> {
    match reply.u32()? {
        0 => Ok(()),
        status => Err(Error::Status(status)),
    }
}

fn post_op(reply: &mut In<'_>) -> Result<(), Error> {
    if reply.u32()? == 1 { reply.skip(FATTR_BYTES) } else { Ok(()) }
}

fn wcc(reply: &mut In<'_>) -> Result<(), Error> {
    if reply.u32()? == 1 {
        reply.skip(24)?;
    }
    post_op(reply)
}

/// `sattr3` with a mode and a size.
fn sattr(out: &mut Out, mode: Option<u32>, size: Option<u64>) {
    match mode {
        Some(mode) => out.u32(1).u32(mode),
        None => out.u32(0),
    };
    out.u32(0).u32(0);
    match size {
        Some(size) => out.u32(1).u64(size),
        None => out.u32(0),
    };
    out.u32(0).u32(0);
}

/// Arguments of a guarded CREATE.
pub fn create_arguments(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut out = Out::default();
    out.opaque(dir).opaque(name).u32(1);
    sattr(&mut out, Some(0o644), None);
    out.0
}

impl Client {
    /// Connects.
    pub fn open(target: &Target) -> Result<Self, Error> {
        Ok(Self { connection: Connection::open(target.nfs)? })
    }

    /// The connection, to be ended by somebody else.
    pub fn line(&self) -> Result<TcpStream, Error> {
        self.connection.line()
    }

    /// The root of the export.
    pub fn mount(target: &Target) -> Result<Handle, Error> {
        let mut out = Out::default();
        out.opaque(target.export.as_bytes());
        let reply = Connection::open(target.mount)?.call(MOUNT, 1, &out.0)?;
        let mut reply = In(&reply);
        status(&mut reply)?;
        Ok(reply.opaque()?.to_vec())
    }

    fn call(&mut self, procedure: u32, out: &Out) -> Result<Vec<u8>, Error> {
        self.connection.call(NFS, procedure, &out.0)
    }

    /// Sends a CREATE without waiting.
    pub fn send_create(&mut self, dir: &[u8], name: &[u8]) -> Result<(), Error> {
        self.connection.send(NFS, 8, &create_arguments(dir, name)).map(drop)
    }

    /// Waits for the status of whatever comes next.
    pub fn receive_status(&mut self) -> Result<u32, Error> {
        let (_, results) = self.connection.receive()?;
        In(&results).u32()
    }

    /// Size of a file.
    pub fn size(&mut self, file: &[u8]) -> Result<u64, Error> {
        let mut out = Out::default();
        out.opaque(file);
        let reply = self.call(1, &out)?;
        let mut reply = In(&reply);
        status(&mut reply)?;
        reply.skip(20)?; // kind, mode, links, owner, group
        reply.u64()
    }

    /// Cuts off or extends.
    pub fn set_size(&mut self, file: &[u8], size: u64) -> Result<(), Error> {
        let mut out = Out::default();
        out.opaque(file);
        sattr(&mut out, None, Some(size));
        out.u32(0);
        status(&mut In(&self.call(2, &out)?))
    }

    /// Finds a name.
    pub fn lookup(&mut self, dir: &[u8], name: &[u8]) -> Result<Option<Handle>, Error> {
        let mut out = Out::default();
        out.opaque(dir).opaque(name);
        let reply = self.call(3, &out)?;
        let mut reply = In(&reply);
        match status(&mut reply) {
            Ok(()) => Ok(Some(reply.opaque()?.to_vec())),
            Err(Error::Status(NOT_FOUND)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads; fewer bytes at the end of the file.
    pub fn read(&mut self, file: &[u8], at: u64, count: u32) -> Result<Vec<u8>, Error> {
        let mut out = Out::default();
        out.opaque(file).u64(at).u32(count);
        let reply = self.call(6, &out)?;
        let mut reply = In(&reply);
        status(&mut reply)?;
        post_op(&mut reply)?;
        reply.skip(8)?; // count, eof
        Ok(reply.opaque()?.to_vec())
    }

    /// Writes all of `data`.
    pub fn write(
        &mut self,
        file: &[u8],
        at: u64,
        data: &[u8],
        stability: u32,
    ) -> Result<Written, Error> {
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let mut out = Out::default();
        out.opaque(file).u64(at).u32(count).u32(stability).opaque(data);
        let reply = self.call(7, &out)?;
        let mut reply = In(&reply);
        status(&mut reply)?;
        wcc(&mut reply)?;
        let written = reply.u32()?;
        let reached = reply.u32()?;
        if written != count || reached < stability {
            let what = format!("a write of {count} answered {written}, stability {reached}");
            return Err(Error::Lost(what));
        }
        Ok(Written { stability: reached, verifier: reply.u64()? })
    }

    /// Makes a file that must not exist.
    pub fn create(&mut self, dir: &[u8], name: &[u8]) -> Result<Handle, Error> {
        let reply = self.connection.call(NFS, 8, &create_arguments(dir, name))?;
        made(&reply)
    }

    /// Makes a directory.
    pub fn make_dir(&mut self, dir: &[u8], name: &[u8]) -> Result<Handle, Error> {
        let mut out = Out::default();
        out.opaque(dir).opaque(name);
        sattr(&mut out, Some(0o777), None);
        let reply = self.call(9, &out)?;
        made(&reply)
    }

    /// Removes a file.
    pub fn remove(&mut self, dir: &[u8], name: &[u8]) -> Result<(), Error> {
        let mut out = Out::default();
        out.opaque(dir).opaque(name);
        status(&mut In(&self.call(12, &out)?))
    }

    /// Renames in one directory.
    pub fn rename(&mut self, dir: &[u8], from: &[u8], to: &[u8]) -> Result<(), Error> {
        let mut out = Out::default();
        out.opaque(dir).opaque(from).opaque(dir).opaque(to);
        status(&mut In(&self.call(14, &out)?))
    }

    /// All names but the dots.
    pub fn list(&mut self, dir: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let (mut names, mut cookie, mut verifier) = (Vec::new(), 0, 0);
        loop {
            let mut out = Out::default();
            out.opaque(dir).u64(cookie).u64(verifier).u32(32_768);
            let reply = self.call(16, &out)?;
            let mut reply = In(&reply);
            status(&mut reply)?;
            post_op(&mut reply)?;
            verifier = reply.u64()?;
            while reply.u32()? == 1 {
                reply.u64()?;
                let name = reply.opaque()?.to_vec();
                cookie = reply.u64()?;
                if name != b"." && name != b".." {
                    names.push(name);
                }
            }
            if reply.u32()? == 1 {
                return Ok(names);
            }
        }
    }

    /// Makes unstable writes of a file stable; the verifier.
    pub fn commit(&mut self, file: &[u8]) -> Result<u64, Error> {
        let mut out = Out::default();
        out.opaque(file).u64(0).u32(0);
        let reply = self.call(21, &out)?;
        let mut reply = In(&reply);
        status(&mut reply)?;
        wcc(&mut reply)?;
        reply.u64()
    }
}

fn made(reply: &[u8]) -> Result<Handle, Error> {
    let mut reply = In(reply);
    status(&mut reply)?;
    match reply.u32()? {
        1 => Ok(reply.opaque()?.to_vec()),
        _ => Err(Error::Protocol("a create answered no handle".to_owned())),
    }
}
