//! The same services over UDP, for small answers that are there at once (rpcbind).
//!
//! The sender of a datagram may be forged, so that answers hit somebody else: none is longer than
//! [`AMPLIFICATION_MAX`] times its call (the factor of RFC 9000, section 8); longer ones are to be
//! had over TCP.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;

use cairn_sys::mutant;
use cairn_units::OpNo;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::message::{
    AcceptedStart, Auth, CREDENTIAL_AT, HeadError, MARK_BYTES, Refusal, parse_auth, parse_head,
    put_refusal,
};
use crate::server::{StartError, start_worker};
use crate::service::{Body, Call, Outcome, Service};
use crate::xdr::Put;

/// Longest call that is looked at.
const CALL_BYTES_MAX: usize = 4096;
/// Longest reply, as a multiple of its call.
pub const AMPLIFICATION_MAX: usize = 3;

/// A UDP responder that runs. Dropped, it ends.
pub struct RunningUdp {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// Starts a responder. Calls that would have to wait are answered SYSTEM_ERR.
///
/// # Errors
/// What to do about an address or thread that cannot be had.
pub fn start_udp<S: Service>(
    name: &'static str,
    addr: SocketAddr,
    service: Arc<S>,
) -> Result<RunningUdp, StartError> {
    let bind = || {
        let socket = std::net::UdpSocket::bind(addr)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let socket = bind().map_err(|source| StartError::from_listen(addr, source))?;
    let (stop, stopped) = watch::channel(false);
    let (thread, handle) = start_worker(name, usize::MAX, stopped)?;
    let at = |source| StartError::Listen { addr, source };
    let local = socket.local_addr().map_err(at)?;
    let socket = {
        let _guard = handle.enter();
        UdpSocket::from_std(socket).map_err(at)?
    };
    drop(handle.spawn(answer_loop(socket, service, local)));
    Ok(RunningUdp { addr: local, stop, thread: Some(thread) })
}

impl RunningUdp {
    /// The address and port that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it and waits for that.
    pub fn shutdown(mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the UDP responder had panicked");
        }
    }
}

impl Drop for RunningUdp {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

async fn answer_loop<S: Service>(socket: UdpSocket, service: Arc<S>, local: SocketAddr) {
    let mut buffer = vec![0; CALL_BYTES_MAX];
    loop {
        let received = poll_fn(|cx| {
            let mut room = ReadBuf::new(&mut buffer);
            match socket.poll_recv_from(cx, &mut room) {
                Poll::Ready(Ok(from)) => Poll::Ready(Ok((room.filled().len(), from))),
                Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
                Poll::Pending => Poll::Pending,
            }
        });
        let (len, client) = match received.await {
            Ok(received) => received,
            Err(error) => {
                // An earlier answer was refused by its receiver: nothing to do about it.
                tracing::debug!("udp: {error}");
                continue;
            }
        };
        let reply = answer_datagram(&*service, &buffer[..len], client, local);
        if let Some(reply) = reply
            && let Err(error) = socket.send_to(&reply, client).await
        {
            tracing::debug!(%client, "udp: {error}");
        }
    }
}

/// Whether a reply is not much longer than its call.
fn is_short(body: &Body, call: &[u8]) -> bool {
    body.bytes.len() - MARK_BYTES <= AMPLIFICATION_MAX * call.len()
        || mutant("udp-answers-any-length")
}

/// The reply to a datagram, if it deserves one.
pub fn answer_datagram<S: Service>(
    service: &S,
    datagram: &[u8],
    client: SocketAddr,
    local: SocketAddr,
) -> Option<Vec<u8>> {
    let refused = |xid, why| {
        let mut out = Vec::new();
        put_refusal(&mut out, xid, why);
        Some(out.split_off(MARK_BYTES))
    };
    let head = match parse_head(datagram) {
        Ok(head) => head,
        Err(HeadError::Refused { xid, why }) => return refused(xid, why),
        Err(HeadError::Incomplete | HeadError::NotACall) => return None,
    };
    let credential = &datagram[CREDENTIAL_AT..CREDENTIAL_AT + head.credential_len];
    let auth: Auth = match parse_auth(head.flavor, credential) {
        Ok(auth) => auth,
        Err(why) => return refused(head.xid, Refusal::Auth(why)),
    };
    let call = Call {
        program: head.program,
        version: head.version,
        procedure: head.procedure,
        auth: &auth,
        client,
        local,
        op_no: OpNo::new(0),
        args: &datagram[head.args_at..],
    };
    let mut body = Body::default();
    body.bytes.put_fixed(&AcceptedStart::success(head.xid));
    match service.call(&call, None, &mut body) {
        Outcome::Done if body.payload.is_none() && is_short(&body, datagram) => {
            Some(body.bytes.split_off(MARK_BYTES))
        }
        Outcome::Refused(why) => refused(head.xid, why),
        Outcome::Done | Outcome::Pending(_) => refused(head.xid, Refusal::SystemError),
    }
}
