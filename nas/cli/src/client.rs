//! A small HTTP/1.1 client: one request, one answer, over TCP or a Unix socket. Enough for our own
//! REST server, which answers with a length or ends the connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn_mhost::ApiError;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::Target;

/// Longest answer (all counters of a big node).
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Longest line of the head.
const LINE_BYTES_MAX: u64 = 16 << 10;
/// Lines of the head.
const HEADERS_MAX: usize = 100;
/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Where an installed node listens.
const SOCKET_DEFAULT: &str = "/var/lib/cairn/rest.sock";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It is not known where the node is.
    #[error(
        "no node is named; say --dir DIR for a demo, or --server URL and --token-file FILE \
         (or set CAIRN_DIR, or CAIRN_SERVER and CAIRN_TOKEN_FILE)"
    )]
    NoServer,
    /// A file that says where it is.
    #[error("{path}: {source}; is the demo running, and may this user read its directory?")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An address of another kind.
    #[error("{0:?} is no address of a node; write http://ADDRESS:PORT or unix:/PATH")]
    Address(String),
    /// Nobody answers.
    #[error("{server}: {source}; is the node running?")]
    Connect {
        /// Where.
        server: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The answer is not HTTP, or not the JSON that was expected.
    #[error("{server}: the answer makes no sense ({what}); are `cairn` and the node one release?")]
    Answer {
        /// Where.
        server: String,
        /// What is wrong.
        what: String,
    },
    /// The node refused.
    #[error("{0}")]
    Refused(ApiError),
    /// Standard output is gone.
    #[error("output: {0}")]
    Output(#[from] io::Error),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A job has failed.
    #[error("job {id} ({title}) failed: {message}; {what_to_do}")]
    JobFailed {
        /// Number.
        id: u64,
        /// In words.
        title: String,
        /// Why.
        message: String,
        /// What to do.
        what_to_do: String,
    },
    /// A check without a node.
    #[error(transparent)]
    Offline(#[from] cairn_node::offline::OfflineError),
    /// The daemon.
    #[error(transparent)]
    Node(#[from] cairn_node::daemon::NodeError),
    /// The demo.
    #[error(transparent)]
    Demo(#[from] cairn_node::demo::DemoError),
}

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Tcp(String),
    Unix(PathBuf),
}

/// A node to talk to.
#[derive(Clone, Debug)]
pub struct Client {
    server: String,
    address: Address,
    token: String,
}

fn read_file(path: &Path) -> Result<String, ClientError> {
    std::fs::read_to_string(path)
        .map_err(|source| ClientError::File { path: path.to_owned(), source })
}

fn parse_address(server: &str) -> Result<Address, ClientError> {
    if let Some(path) = server.strip_prefix("unix:") {
        return Ok(Address::Unix(PathBuf::from(path)));
    }
    match server.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')) {
        Some(rest) if !rest.is_empty() && !rest.contains('/') => Ok(Address::Tcp(rest.to_owned())),
        _ => Err(ClientError::Address(server.to_owned())),
    }
}

/// One answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    body: Vec<u8>,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(bad("a line of the head has no end"));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| bad("the head is not text"))
}

fn read_chunks(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(from)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let bytes = u64::from_str_radix(digits, 16).map_err(|_| bad("bad chunk"))?;
        if bytes == 0 {
            return Ok(body);
        }
        let have = body.len() as u64;
        if have.saturating_add(bytes) > ANSWER_BYTES_MAX {
            return Err(bad("the answer is too long"));
        }
        if from.by_ref().take(bytes).read_to_end(&mut body)? as u64 != bytes {
            return Err(bad("the answer was cut off"));
        }
        if !read_line(from)?.is_empty() {
            return Err(bad("bad chunk"));
        }
    }
}

fn read_answer(from: &mut impl BufRead) -> io::Result<Answer> {
    let first = read_line(from)?;
    let mut words = first.split(' ');
    let http = words.next().is_some_and(|w| w.starts_with("HTTP/1."));
    let status = words.next().and_then(|w| w.parse().ok());
    let (true, Some(status)) = (http, status) else { return Err(bad("not HTTP")) };
    let (mut length, mut chunked) = (None, false);
    for count in 0.. {
        let line = read_line(from)?;
        if line.is_empty() {
            break;
        }
        if count >= HEADERS_MAX {
            return Err(bad("the head is too long"));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("bad header"))?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                length = Some(value.trim().parse::<u64>().map_err(|_| bad("bad length"))?);
            }
            "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
            _ => {}
        }
    }
    if chunked {
        return Ok(Answer { status, body: read_chunks(from)? });
    }
    let mut body = Vec::new();
    match length {
        Some(bytes) if bytes > ANSWER_BYTES_MAX => return Err(bad("the answer is too long")),
        Some(bytes) => {
            if from.take(bytes).read_to_end(&mut body)? as u64 != bytes {
                return Err(bad("the answer was cut off"));
            }
        }
        None => {
            from.take(ANSWER_BYTES_MAX).read_to_end(&mut body)?;
        }
    }
    Ok(Answer { status, body })
}

impl Client {
    /// The node that the command line names.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn new(target: &Target) -> Result<Self, ClientError> {
        let (server, token_file) = match (&target.server, &target.dir) {
            (Some(server), _) => (server.clone(), target.token_file.clone()),
            (None, Some(dir)) => {
                let path = dir.join("endpoint.json");
                let text = read_file(&path)?;
                let ready: cairn_node::demo::ReadyLine =
                    serde_json::from_str(&text).map_err(|e| ClientError::Answer {
                        server: path.display().to_string(),
                        what: e.to_string(),
                    })?;
                (ready.rest, Some(ready.token_file))
            }
            (None, None) if Path::new(SOCKET_DEFAULT).exists() => {
                (format!("unix:{SOCKET_DEFAULT}"), target.token_file.clone())
            }
            (None, None) => return Err(ClientError::NoServer),
        };
        let address = parse_address(&server)?;
        let beside = match &address {
            Address::Unix(path) => path.parent().map(|p| p.join("rest-token")),
            Address::Tcp(_) => None,
        };
        let token_file = token_file.or(beside).ok_or(ClientError::NoServer)?;
        let token = read_file(&token_file)?.trim().to_owned();
        Ok(Self { server, address, token })
    }

    fn exchange<S: Read + Write>(
        &self,
        mut stream: S,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        let host = match &self.address {
            Address::Tcp(host) => host.as_str(),
            Address::Unix(_) => "localhost",
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.token,
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        stream.flush()?;
        read_answer(&mut BufReader::new(stream))
    }

    fn send(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        match &self.address {
            Address::Tcp(addr) => {
                let stream = TcpStream::connect(addr)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                self.exchange(stream, method, path, body)
            }
            Address::Unix(at) => {
                let stream = UnixStream::connect(at)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                self.exchange(stream, method, path, body)
            }
        }
    }

    /// One request; the body of a good answer.
    ///
    /// # Errors
    /// The node cannot be reached, or refuses.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, ClientError> {
        let answer = self.send(method, path, body).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => {
                ClientError::Answer { server: self.server.clone(), what: source.to_string() }
            }
            _ => ClientError::Connect { server: self.server.clone(), source },
        })?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        match serde_json::from_slice::<ApiError>(&answer.body) {
            Ok(refused) => Err(ClientError::Refused(ApiError { status: answer.status, ..refused })),
            Err(_) => Err(ClientError::Answer {
                server: self.server.clone(),
                what: format!("HTTP status {}", answer.status),
            }),
        }
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body)
            .map_err(|e| ClientError::Answer { server: self.server.clone(), what: e.to_string() })
    }

    /// Reads a resource.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.request("GET", &format!("/api/v1/{path}"), b"")?;
        self.decode(&body)
    }

    /// Sends `body` to a resource.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn send_json<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| ClientError::Usage(e.to_string()))?;
        let answer = self.request(method, &format!("/api/v1/{path}"), &body)?;
        self.decode(&answer)
    }

    /// An order without a body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn order<T: DeserializeOwned>(&self, method: &str, path: &str) -> Result<T, ClientError> {
        let answer = self.request(method, &format!("/api/v1/{path}"), b"")?;
        self.decode(&answer)
    }
}

/// A text as part of a path or query.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(text: &str) -> io::Result<Answer> {
        read_answer(&mut text.as_bytes())
    }

    #[test]
    fn answers_with_length_chunks_and_end_of_connection_are_read() {
        let body = |text: &str| answer(text).unwrap().body;
        assert_eq!(body("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhixx"), b"hi");
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n";
        assert_eq!(body(chunked), b"hi!");
        assert_eq!(body("HTTP/1.0 404 No\r\n\r\nall of it"), b"all of it");
    }

    #[test]
    fn cut_off_and_foreign_answers_are_errors() {
        for text in [
            "",
            "SSH-2.0\r\n",
            "HTTP/1.1 200 OK",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffff\r\n",
        ] {
            assert!(answer(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_are_http_or_unix() {
        assert_eq!(parse_address("http://1.2.3.4:5/").unwrap(), Address::Tcp("1.2.3.4:5".into()));
        assert_eq!(parse_address("unix:/x").unwrap(), Address::Unix("/x".into()));
        for bad in ["https://x", "x", "http://", "http://a/b"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quoting_leaves_nothing_that_means_something() {
        assert_eq!(quoted("/a b&c?ü"), "%2Fa%20b%26c%3F%C3%BC");
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(read_answer(&mut &bytes[..]));
            let mut headed = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            headed.extend(bytes);
            drop(read_answer(&mut &headed[..]));
        }
    }
}
