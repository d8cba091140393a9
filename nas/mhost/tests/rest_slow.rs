//! REST with peers that take their time, or too many places. Time is virtual.

#![expect(clippy::unwrap_used, reason = "test helpers outside test functions")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{FakeNode, TempDir, start};
use cairn_mhost::rest::{
    CONNECTIONS_MAX, MetricsAccess, REQUEST_TIME, RestListener, SEND_TIME, Token, router, serve,
};
use cairn_sys::{BoxFuture, Clock};
use cairn_units::{MonoTime, WallTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Time that passes when the test says so.
struct ManualClock(watch::Sender<u64>);

impl Clock for ManualClock {
    fn monotonic(&self) -> MonoTime {
        MonoTime::new(*self.0.borrow())
    }
    fn wall(&self) -> WallTime {
        WallTime::new(0)
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let until = self.monotonic().get() + u64::try_from(duration.as_nanos()).unwrap();
        let mut now = self.0.subscribe();
        Box::pin(async move {
            if now.wait_for(|now| *now >= until).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

impl ManualClock {
    fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap();
        self.0.send_modify(|now| *now += by);
    }
}

struct Server {
    addr: SocketAddr,
    token: String,
    clock: Arc<ManualClock>,
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }
    fn head(&self, method: &str, path: &str, length: usize) -> String {
        let token = &self.token;
        format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    }
    /// Whether it is answered on a connection of its own.
    async fn answers(&self) -> bool {
        let mut stream = self.connect().await;
        let sent = stream.write_all(self.head("GET", "/api/v1/status", 0).as_bytes()).await;
        let mut first = [0; 12];
        sent.is_ok() && stream.read_exact(&mut first).await.is_ok() && first.ends_with(b" 200")
    }
    /// Lets `time` pass in small steps and the server look at each; whether `stream` was closed.
    async fn closed_within(&self, stream: &TcpStream, time: Duration) -> bool {
        let step = Duration::from_millis(500);
        let mut passed = Duration::ZERO;
        while passed < time {
            self.clock.advance(step);
            passed += step;
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            // An answer on another connection: the server has had its turn.
            assert!(self.answers().await);
            match stream.try_read(&mut [0; 4096]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return true,
            }
        }
        false
    }
}

fn with_server(name: &str, work: impl AsyncFnOnce(Server)) {
    let dir = TempDir::new(name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = cairn_sys::real::world(runtime.handle().clone()).unwrap();
    let clock = Arc::new(ManualClock(watch::channel(1_000_000_000).0));
    runtime.block_on(async {
        let node = FakeNode::new(&world);
        let (mhost, _) = start(&dir, &world, &node).await;
        let token = Token::load_or_create(&dir.0.join("token"), &world).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, text) = (listener.local_addr().unwrap(), token.as_str().into());
        let server = Server { addr, token: text, clock: clock.clone() };
        let (stop, stopped) = watch::channel(false);
        let router = router(mhost.clone(), token, MetricsAccess::Token);
        let serving = serve(RestListener::Tcp(listener), router, clock.clone(), stopped);
        let client = async {
            work(server).await;
            stop.send_replace(true);
        };
        let (served, ()) = tokio::join!(serving, client);
        served.unwrap();
        mhost.stop().await;
    });
}

#[test]
fn half_a_request_for_ever_is_cut_off() {
    with_server("slow-half", async |server| {
        let head = server.head("POST", "/api/v1/volumes", 100);
        let with_body = format!("{head}{{\"na");
        for sent in ["", "G", &head[..40], &head, &with_body] {
            let mut stream = server.connect().await;
            stream.write_all(sent.as_bytes()).await.unwrap();
            let (short, rest) = (REQUEST_TIME - Duration::from_secs(2), Duration::from_secs(4));
            assert!(!server.closed_within(&stream, short).await, "{sent:?} has its time");
            assert!(server.closed_within(&stream, rest).await, "{sent:?} is cut off");
        }
    });
}

#[test]
fn one_byte_at_a_time_does_not_keep_a_request_alive() {
    with_server("slow-trickle", async |server| {
        let mut stream = server.connect().await;
        let request = server.head("GET", "/api/v1/status", 0);
        let mut seconds = 0;
        for byte in request.as_bytes() {
            if stream.write_all(&[*byte]).await.is_err()
                || server.closed_within(&stream, Duration::from_secs(1)).await
            {
                break;
            }
            seconds += 1;
        }
        assert!(seconds <= REQUEST_TIME.as_secs() + 1, "{seconds} s");
    });
}

#[test]
fn a_kept_connection_is_used_again_and_ends_when_it_is_not() {
    with_server("slow-kept", async |server| {
        let mut stream = server.connect().await;
        let mut buffer = vec![0; 65_536];
        for _ in 0..5 {
            server.clock.advance(REQUEST_TIME / 2);
            stream.write_all(server.head("GET", "/api/v1/jobs", 0).as_bytes()).await.unwrap();
            assert!(stream.read(&mut buffer).await.unwrap() > 0, "still there");
        }
        assert!(server.closed_within(&stream, REQUEST_TIME + Duration::from_secs(2)).await);
    });
}

#[test]
fn answers_that_nobody_takes_do_not_stay() {
    with_server("slow-reader", async |server| {
        let mut stream = server.connect().await;
        let request = server.head("GET", "/api/v1/openapi.json", 0);
        // Until neither side's buffers take any more.
        let mut refused = 0;
        while refused < 200 {
            match stream.try_write(request.as_bytes()) {
                Ok(_) => refused = 0,
                Err(e) if e.kind() == ErrorKind::WouldBlock => refused += 1,
                Err(e) => panic!("{e}"),
            }
            tokio::task::yield_now().await;
        }
        let mut passed = Duration::ZERO;
        let step = Duration::from_secs(1);
        // Its buffers are full, so the end shows when it writes again.
        let gone = async |stream: &mut TcpStream| {
            let _full = stream.try_write(b"G");
            stream.try_write(b"G").is_err_and(|e| e.kind() != ErrorKind::WouldBlock)
        };
        while !gone(&mut stream).await {
            assert!(passed <= SEND_TIME * 2, "still there");
            server.clock.advance(step);
            passed += step;
            assert!(server.answers().await);
        }
    });
}

#[test]
fn at_the_limit_the_longest_waiting_goes_and_a_newcomer_is_answered() {
    with_server("slow-many", async |server| {
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_MAX * 3 {
            idle.push(server.connect().await);
            tokio::task::yield_now().await;
        }
        for n in 0..50 {
            server.clock.advance(Duration::from_millis(300));
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            let served = server.answers().await;
            assert!(served || n < 10, "newcomer {n} is not answered");
        }
        let open = |s: &&TcpStream| {
            s.try_read(&mut [0; 1]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
        };
        let left = idle.iter().filter(open).count();
        assert!(left <= CONNECTIONS_MAX, "{left} connections");
    });
}
