//! A raw connection of somebody who means no good.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use cairn_rawclient::rpc::LAST_FRAGMENT;
use socket2::{Domain, SockRef, Socket, Type};

use crate::clock;

/// Longest that one write or read may block.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the server did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A record.
    Reply(Vec<u8>),
    /// It ended the connection.
    Closed,
    /// Nothing, for [`PATIENCE`].
    Silence,
}

impl Answer {
    /// The reply's words.
    pub(crate) fn words(&self) -> Vec<u32> {
        let Self::Reply(record) = self else { return Vec::new() };
        let words = record.chunks_exact(4);
        words.map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]])).collect()
    }
}

pub(crate) struct Foe(TcpStream);

impl Foe {
    /// Connects from address 127.0.0.`from`.
    pub(crate) fn connect(to: SocketAddr, from: u8) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0)).into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let stream: TcpStream = socket.into();
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Sends all of it, unless the server has enough; whether it took all.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// Sends what the socket takes at once.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.set_nonblocking(true)?;
        let mut sent = 0;
        while sent < bytes.len() {
            match self.0.write(&bytes[sent..]) {
                Ok(n) => sent += n,
                Err(_) => break,
            }
        }
        self.0.set_nonblocking(false)?;
        Ok(sent)
    }

    /// The next record, or what happens instead.
    pub(crate) fn answer(&mut self) -> Answer {
        let mut mark = [0; 4];
        let mut whole = || -> std::io::Result<Vec<u8>> {
            self.0.read_exact(&mut mark)?;
            let len = u32::from_be_bytes(mark) & !LAST_FRAGMENT;
            let mut record = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(2 << 20)];
            self.0.read_exact(&mut record)?;
            Ok(record)
        };
        match whole() {
            Ok(record) => Answer::Reply(record),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Answer::Silence
            }
            Err(_) => Answer::Closed,
        }
    }

    /// Whatever comes until the server ends the connection, or falls silent.
    pub(crate) fn all(&mut self, most: u64) -> (Vec<u8>, Answer) {
        let mut bytes = Vec::new();
        match (&mut self.0).take(most).read_to_end(&mut bytes) {
            Ok(_) => (bytes, Answer::Closed),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                (bytes, Answer::Silence)
            }
            Err(_) => (bytes, Answer::Closed),
        }
    }

    /// Whether the server has ended the connection; nothing is read.
    pub(crate) fn is_closed(&self) -> Result<bool> {
        self.0.set_nonblocking(true)?;
        let closed = match self.0.peek(&mut [0]) {
            Ok(n) => n == 0,
            Err(e) => e.kind() != ErrorKind::WouldBlock,
        };
        self.0.set_nonblocking(false)?;
        Ok(closed)
    }

    /// Whether the server has ended the connection, perhaps behind an answer, which is dropped.
    pub(crate) fn is_closed_behind_an_answer(&mut self) -> Result<bool> {
        self.0.set_nonblocking(true)?;
        let mut dropped = [0; 4096];
        let closed = loop {
            match self.0.read(&mut dropped) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(e) => break e.kind() != ErrorKind::WouldBlock,
            }
        };
        self.0.set_nonblocking(false)?;
        Ok(closed)
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) -> Result<()> {
        SockRef::from(&self.0).set_linger(Some(Duration::ZERO)).context("linger")
    }
}

/// Connects, trying again while the server is at its limit.
pub(crate) fn connected(to: SocketAddr, from: u8) -> Result<Foe> {
    let mut foe = None;
    clock::until(PATIENCE, || {
        foe = Foe::connect(to, from).ok();
        foe.is_some()
    });
    foe.context("the node takes no connection")
}

/// A small generator of chance (SplitMix64): the same seed, the same attack.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap_or(0)
    }
    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        let words = (0..n / 8 + 1).flat_map(|_| self.next().to_be_bytes());
        words.take(n).collect()
    }
}
