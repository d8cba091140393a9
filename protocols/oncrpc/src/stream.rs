//! What a connection needs of its transport: a byte stream that reads into several slices.
//!
//! Layer: seam below the connection. In the product it is a TCP socket; the simulated world hands
//! in streams of its own, so that everything above runs there unchanged.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connected stream.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes the stream ready for replies; the address that the client reached us at.
    ///
    /// # Errors
    /// The connection is gone already.
    fn prepare(&self) -> io::Result<SocketAddr>;

    /// Reads into the slices, in order; 0 is the end of the stream.
    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>>;
}

impl Stream for TcpStream {
    fn prepare(&self) -> io::Result<SocketAddr> {
        self.set_nodelay(true)?;
        self.local_addr()
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            match self.try_read_vectored(slices) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}
