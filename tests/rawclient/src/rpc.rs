//! ONC RPC over TCP with AUTH_SYS, and XDR, as a client needs them (RFC 5531, RFC 4506).
//!
//! Layer: bottom of this crate.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest reply taken.
const REPLY_BYTES_MAX: usize = 8 << 20;
/// A server that says nothing for so long is taken for broken.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// In a record mark: the fragment is the last one.
pub const LAST_FRAGMENT: u32 = 0x8000_0000;

/// What can go wrong.
#[derive(Debug)]
pub enum Error {
    /// The connection ended: the server is gone.
    Broken(io::Error),
    /// The server refused with this status.
    Status(u32),
    /// The server's answer makes no sense.
    Protocol(String),
    /// Something acknowledged is not there, or something else is.
    Lost(String),
    /// The command line.
    Usage(String),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Error::Broken(e) => write!(f, "connection: {e}"),
            Error::Status(status) => write!(f, "status {status}"),
            Error::Protocol(what) => write!(f, "protocol: {what}"),
            Error::Lost(what) => write!(f, "lost: {what}"),
            Error::Usage(what) => write!(f, "{what}"),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Broken(error)
    }
}

/// Writes XDR.
#[derive(Default)]
pub struct Out(pub Vec<u8>);

impl Out {
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }
    pub fn opaque(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// Reads XDR.
pub struct In<'a>(pub &'a [u8]);

impl<'a> In<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        match self.0.split_at_checked(count) {
            Some((head, tail)) => {
                self.0 = tail;
                Ok(head)
            }
            None => Err(Error::Protocol("the reply is too short".to_owned())),
        }
    }
    pub fn u32(&mut self) -> Result<u32, Error> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
    pub fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from(self.u32()?) << 32 | u64::from(self.u32()?))
    }
    pub fn skip(&mut self, count: usize) -> Result<(), Error> {
        self.take(count).map(drop)
    }
    pub fn opaque(&mut self) -> Result<&'a [u8], Error> {
        let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        let bytes = self.take(len)?;
        self.take(len.next_multiple_of(4) - len)?;
        Ok(bytes)
    }
}

/// A call of root with AUTH_SYS, as a record of one fragment.
pub fn record(xid: u32, program: (u32, u32), procedure: u32, arguments: &[u8]) -> Vec<u8> {
    let mut credential = Out::default();
    credential.u32(0).opaque(b"witness").u32(0).u32(0).u32(0);
    let mut call = Out::default();
    call.u32(0).u32(xid).u32(0).u32(2).u32(program.0).u32(program.1).u32(procedure);
    call.u32(1).opaque(&credential.0).u32(0).u32(0);
    call.0.extend_from_slice(arguments);
    let len = u32::try_from(call.0.len() - 4).unwrap_or(u32::MAX);
    call.0[..4].copy_from_slice(&(len | LAST_FRAGMENT).to_be_bytes());
    call.0
}

/// One connection; requests may be sent ahead of their replies.
pub struct Connection {
    stream: TcpStream,
    xid: u32,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Result<Self, Error> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        Ok(Self { stream, xid: std::process::id().rotate_left(16) })
    }

    /// Another holder of the same connection.
    pub fn line(&self) -> Result<TcpStream, Error> {
        Ok(self.stream.try_clone()?)
    }

    /// Sends a call of root; returns its number.
    pub fn send(
        &mut self,
        program: (u32, u32),
        procedure: u32,
        arguments: &[u8],
    ) -> Result<u32, Error> {
        self.xid = self.xid.wrapping_add(1);
        self.stream.write_all(&record(self.xid, program, procedure, arguments))?;
        Ok(self.xid)
    }

    /// The next reply: its number and its results.
    pub fn receive(&mut self) -> Result<(u32, Vec<u8>), Error> {
        let mut record = Vec::new();
        loop {
            let mut head = [0; 4];
            self.stream.read_exact(&mut head)?;
            let head = u32::from_be_bytes(head);
            let len = usize::try_from(head & !LAST_FRAGMENT).unwrap_or(usize::MAX);
            let at = record.len();
            if len > REPLY_BYTES_MAX - at.min(REPLY_BYTES_MAX) {
                return Err(Error::Protocol(format!("a reply of {len} bytes")));
            }
            record.resize(at + len, 0);
            self.stream.read_exact(&mut record[at..])?;
            if head & LAST_FRAGMENT != 0 {
                break;
            }
        }
        let mut reply = In(&record);
        let (xid, kind, accepted) = (reply.u32()?, reply.u32()?, reply.u32()?);
        if (kind, accepted) != (1, 0) {
            return Err(Error::Protocol(format!("reply kind {kind}, state {accepted}")));
        }
        reply.u32()?;
        reply.opaque()?;
        match reply.u32()? {
            0 => Ok((xid, reply.0.to_vec())),
            state => Err(Error::Protocol(format!("accept state {state}"))),
        }
    }

    /// A call and its reply.
    pub fn call(
        &mut self,
        program: (u32, u32),
        procedure: u32,
        arguments: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let sent = self.send(program, procedure, arguments)?;
        let (xid, results) = self.receive()?;
        if xid != sent {
            return Err(Error::Protocol(format!("reply {xid} to call {sent}")));
        }
        Ok(results)
    }
}
