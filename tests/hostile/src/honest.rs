//! The honest client: it works all the time, compares every byte, and notes how long it waits.
//!
//! Invariant: its connection is never cut off; a new connection, or a REST request, may be turned
//! away for a moment when the node is at its limit, and is tried again: its time runs on.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use cairn_rawclient::nfs::{Client, FILE_SYNC, Handle};

use crate::clock::{self, Bell};
use crate::node::Address;

/// Longest that anything may take. Waiting for memory that others hold takes 3 s at most
/// (`SCARCE_WAIT_MAX` of the RPC server); the rest is for a machine that others use as well.
pub(crate) const LATENCY_MAX: Duration = Duration::from_secs(5);
const SMALL: usize = 20_000;
const LARGE: usize = 1 << 20;
const FILES: u64 = 16;
/// Pause between two rounds: the node is to be attacked, not the disk below it.
const PAUSE: Duration = Duration::from_millis(10);

/// How it went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) rounds: u64,
    pub(crate) worst: Duration,
    pub(crate) worst_in: &'static str,
}

struct Honest<'a> {
    address: &'a Address,
    client: Client,
    dir: Handle,
    report: Report,
}

fn told<T>(result: Result<T, cairn_rawclient::rpc::Error>) -> Result<T> {
    result.map_err(|e| anyhow!("{e}"))
}

/// Bytes that are told apart from those of other rounds and places.
fn pattern(round: u64, len: usize) -> Vec<u8> {
    let words = (0..len as u64 / 8 + 1).map(|i| round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i);
    let mut bytes: Vec<u8> = words.flat_map(u64::to_be_bytes).collect();
    bytes.truncate(len);
    bytes
}

impl Honest<'_> {
    fn timed<T>(
        &mut self,
        what: &'static str,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let began = clock::now();
        let done = work(self).with_context(|| format!("honest client: {what}"));
        let took = began.elapsed();
        if took > self.report.worst {
            (self.report.worst, self.report.worst_in) = (took, what);
        }
        if took <= LATENCY_MAX {
            return done;
        }
        let why = done.err().map_or(String::new(), |e| format!(" ({})", e.root_cause()));
        bail!("honest client: {what} took {took:?}, not at most {LATENCY_MAX:?}{why}")
    }

    fn round(&mut self, round: u64) -> Result<()> {
        let name = format!("h{}", round % FILES);
        let name = name.as_bytes();
        let dir = self.dir.clone();
        if round >= FILES {
            self.timed("remove", |h| told(h.client.remove(&dir, name)))?;
        }
        let file = self.timed("create", |h| told(h.client.create(&dir, name)))?;
        let data = pattern(round, if round.is_multiple_of(4) { LARGE } else { SMALL });
        self.timed("write", |h| told(h.client.write(&file, 0, &data, FILE_SYNC)).map(drop))?;
        let count = u32::try_from(data.len())?;
        let back = self.timed("read", |h| told(h.client.read(&file, 0, count)))?;
        ensure!(back == data, "honest client: other bytes than were written in round {round}");
        let names = self.timed("readdir", |h| told(h.client.list(&dir)))?;
        let there = u64::try_from(names.len())? == (round + 1).min(FILES);
        ensure!(there && names.iter().any(|n| n == name), "honest client: names are missing");
        if round.is_multiple_of(3) {
            self.timed("new connection", |h| {
                let (target, mut size) = (h.address.target.clone(), 0);
                let served = clock::until(LATENCY_MAX, || {
                    let asked = Client::open(&target).and_then(|mut c| c.size(&file));
                    asked.map(|s| size = s).is_ok()
                });
                ensure!(served && size == u64::from(count), "not served, or a wrong size {size}");
                Ok(())
            })?;
            self.timed("REST", |h| {
                let served = clock::until(LATENCY_MAX, || {
                    h.address.get("/api/v1/status", LATENCY_MAX).is_ok_and(|a| a.0 == 200)
                });
                ensure!(served, "not served");
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Works until the bell rings, in a directory of its own.
pub(crate) fn work(address: &Address, name: &str, bell: &Bell) -> Result<Report> {
    let root = told(Client::mount(&address.target))?;
    let mut client = told(Client::open(&address.target))?;
    let dir = told(client.make_dir(&root, name.as_bytes()))?;
    let mut honest = Honest { address, client, dir, report: Report::default() };
    while !bell.rests(PAUSE) {
        honest.round(honest.report.rounds)?;
        honest.report.rounds += 1;
    }
    Ok(honest.report)
}
