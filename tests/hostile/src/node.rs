//! The node under attack: a child process, and what the system and its own counters say of it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use cairn_rawclient::nfs::Target;

use crate::clock;

const START_TIME: Duration = Duration::from_secs(60);
const STOP_TIME: Duration = Duration::from_secs(60);
/// Buffer cache of the node.
const CACHE: &str = "64MiB";
/// Connections that a node takes (`connections_max` of the RPC server).
const CONNECTIONS_MAX: u64 = 4096;
/// Descriptors that it keeps for everything else (`nas/node/src/descriptors.rs`).
const KEPT_DESCRIPTORS: u64 = 512;

/// Where the node answers.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) target: Target,
    pub(crate) nfs: SocketAddr,
    pub(crate) rest: SocketAddr,
    pub(crate) token: String,
}

/// The running node; killed when it is dropped.
pub(crate) struct Node {
    cairn: PathBuf,
    dir: PathBuf,
    log: PathBuf,
    child: Child,
    pub(crate) address: Address,
    /// Connections of NFS that it takes.
    pub(crate) connections_max: u64,
}

/// What it costs at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) rss: u64,
    pub(crate) fds: u64,
}

/// Its own counters at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: u64,
    pub(crate) in_flight: u64,
    pub(crate) buffers: u64,
    pub(crate) gave_way: u64,
    pub(crate) made_room: u64,
    pub(crate) refused_connections: u64,
}

impl Address {
    /// One GET, on a connection of its own: status and body.
    pub(crate) fn get(&self, path: &str, time: Duration) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.rest, time)?;
        stream.set_read_timeout(Some(time))?;
        stream.set_write_timeout(Some(time))?;
        let token = &self.token;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        let status = head.split(' ').nth(1).context("no status")?;
        Ok((status.parse()?, body.to_owned()))
    }

    /// The counters of the NFS server and the buffers.
    pub(crate) fn counters(&self) -> Result<Counters> {
        let mut page = None;
        // At its limit REST turns newcomers away for a moment.
        clock::until(Duration::from_secs(5), || {
            page = self.get("/metrics", Duration::from_secs(5)).ok().filter(|p| p.0 == 200);
            page.is_some()
        });
        let (_, page) = page.context("/metrics is not answered")?;
        let value = |name: &str| -> Result<u64> {
            let nfs = format!("cairn_{name}{{server=\"nfs\"}} ");
            let plain = format!("cairn_{name} ");
            let line = page.lines().find_map(|l| {
                l.strip_prefix(nfs.as_str()).or_else(|| l.strip_prefix(plain.as_str()))
            });
            Ok(line.with_context(|| format!("no counter {name}"))?.parse()?)
        };
        Ok(Counters {
            connections: value("rpc_connections")?,
            in_flight: value("rpc_bytes_in_flight")?,
            buffers: value("buffer_bytes_allocated")?,
            gave_way: value("rpc_gave_way_total")?,
            made_room: value("rpc_made_room_total")?,
            refused_connections: value("rpc_refused_connections_total")?,
        })
    }
}

impl Node {
    /// Starts a new node called `name` below `work`, with so many descriptors.
    pub(crate) fn start(cairn: &Path, work: &Path, name: &str, descriptors: u64) -> Result<Self> {
        let (dir, log) = (work.join(name), work.join(format!("{name}.log")));
        // The shell sets the limit; there is no other safe way to do it between fork and exec.
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &descriptors.to_string()])
            .arg(cairn)
            .args(["demo", "--fresh", "--disks", "5", "--disk-size", "512MiB", "--cache", CACHE])
            .args(["--nfs-port", "0", "--rest-port", "0", "--dir"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("{}", cairn.display()))?;
        let out = child.stdout.take().context("no standard output")?;
        let (sender, ready) = mpsc::channel();
        let reader = std::thread::Builder::new().name("node-output".to_owned());
        reader.spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix("READY ") {
                    // Nobody waits any more when the start took too long.
                    drop(sender.send(line.to_owned()));
                }
            }
        })?;
        let line = match ready.recv_timeout(START_TIME) {
            Ok(line) => line,
            Err(e) => {
                child.kill()?;
                bail!("the node is not ready: {e}: {}", fs::read_to_string(&log)?);
            }
        };
        let ready: serde_json::Value = serde_json::from_str(&line)?;
        let text = |key: &str| ready[key].as_str().map(str::to_owned).context("READY line");
        let (port, export) = (ready["nfs_port"].as_u64().context("port")?, text("export")?);
        let target = Target::parse(&format!("127.0.0.1:{port}:{port}:{export}"))
            .map_err(|e| anyhow!("{e}"))?;
        let rest = text("rest")?;
        let rest = rest.strip_prefix("http://").context("REST is not on TCP")?.parse()?;
        let token = fs::read_to_string(text("token_file")?)?.trim().to_owned();
        let address = Address { nfs: target.nfs(), target, rest, token };
        let left = descriptors.saturating_sub(KEPT_DESCRIPTORS).max(descriptors / 2);
        let connections_max = left.min(CONNECTIONS_MAX);
        Ok(Self { cairn: cairn.to_owned(), dir, log, child, address, connections_max })
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }

    fn status(&self, key: &str) -> Result<u64> {
        let text = fs::read_to_string(self.proc("status")).context("the node is dead")?;
        let line = text.lines().find_map(|l| l.strip_prefix(key)).context("the node is dead")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib << 10)
    }

    /// Memory and descriptors now.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let fds = fs::read_dir(self.proc("fd"))?.count() as u64;
        Ok(Usage { rss: self.status("VmRSS:")?, fds })
    }

    /// The most memory since [`Self::forget_peak`].
    pub(crate) fn peak_rss(&self) -> Result<u64> {
        self.status("VmHWM:")
    }

    pub(crate) fn forget_peak(&self) -> Result<()> {
        Ok(fs::write(self.proc("clear_refs"), "5")?)
    }

    /// Fails when it has ended, or panicked in a thread.
    pub(crate) fn is_well(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the node ended with {status}: {}", self.last_words()?);
        }
        let log = fs::read_to_string(&self.log)?;
        if let Some(line) = log.lines().find(|l| l.contains("panicked")) {
            bail!("in the node's log: {line}");
        }
        Ok(())
    }

    fn last_words(&self) -> Result<String> {
        let log = fs::read_to_string(&self.log)?;
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        Ok(lines.join(" | "))
    }

    fn cairn(&self, words: &[&str]) -> Result<String> {
        let done = Command::new(&self.cairn).arg("--dir").arg(&self.dir).args(words).output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "cairn {}: {said}", words.join(" "));
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// The node's own check of all structures.
    pub(crate) fn check(&self) -> Result<()> {
        self.cairn(&["check"])?;
        let view: serde_json::Value =
            serde_json::from_str(&self.cairn(&["--json", "check", "--status"])?)?;
        let nothing = view["found"] == 0 && view["left"] == 0 && view["failed"].is_null();
        ensure!(nothing && view["blocks_total"] != 0, "the check found something: {view}");
        Ok(())
    }

    /// Stops it as an administrator does.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        let pid = rustix::process::Pid::from_raw(pid).context("no process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let child = &mut self.child;
        let ended = clock::until(STOP_TIME, || child.try_wait().is_ok_and(|s| s.is_some()));
        ensure!(ended, "the node does not stop");
        let status = self.child.wait()?;
        ensure!(status.success(), "the node stopped with {status}: {}", self.last_words()?);
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
