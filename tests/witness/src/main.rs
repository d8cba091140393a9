//! `cairn-witness`: remembers what a server acknowledged, and checks it after crashes and faults.
//!
//! Layer: system tests, outside of the server; speaks NFSv3 over TCP as any client does, shares no
//! code with the server.
//!
//! ```text
//! cairn-witness fill HOST:PORT:MOUNTPORT:EXPORT --dir D --prefix P --count N
//! cairn-witness serve [--workers N] [--seed N] [--stable-only]  commands on stdin, one answer line each:
//!     target HOST:PORT:MOUNTPORT:EXPORT    where the server is now          "ok"
//!     start                                 workers begin to change files   "ok"
//!     sever                                 the server's machine is off      "ok"
//!     stop                                  they end (or the server did)    "stopped ops=.. broken=.."
//!     stable                                it stopped cleanly: all is stable "ok"
//!     verify                                everything acknowledged is there "verified .." / "LOST .."
//!     names                                 the files there are, PATH:BLOCKS    "names .."
//!     quit
//! ```
//! Invariant: a worker has one request under way. So after a crash exactly one operation per
//! worker may be there or not, beside unstable writes that were not committed.

#![expect(clippy::disallowed_methods, reason = "a test program with threads of its own")]

mod fill;
mod worker;

use std::io::{BufRead, Write};
use std::net::{Shutdown, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cairn_rawclient::nfs::Target;
use cairn_rawclient::rpc::Error;
use worker::{Ended, Worker};

/// Workers unless asked otherwise.
const WORKERS: u64 = 4;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.split_first() {
        Some((&"fill", rest)) => fill::fill(rest),
        Some((&"serve", rest)) => serve(rest),
        _ => Err(Error::Usage("cairn-witness fill|serve, see the source".to_owned())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cairn-witness: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The value behind `name`.
fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == name)?;
    words.get(at + 1).copied()
}

fn number(words: &[&str], name: &str, default: u64) -> Result<u64, Error> {
    match option(words, name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| Error::Usage(format!("{name} wants a number"))),
    }
}

/// The workers and where the server is.
struct Witness {
    target: Option<Target>,
    workers: Vec<Worker>,
    running: Vec<std::thread::JoinHandle<(Worker, Ended)>>,
    halt: Arc<AtomicBool>,
    /// Connections of the workers, to be cut when nobody is left to do it at the other end.
    lines: Arc<Mutex<Vec<TcpStream>>>,
}

fn serve(words: &[&str]) -> Result<(), Error> {
    let count = number(words, "--workers", WORKERS)?;
    let seed = number(words, "--seed", 1)?;
    let mut workers: Vec<Worker> = (0..count).map(|id| Worker::new(id, seed)).collect();
    if words.contains(&"--stable-only") {
        workers.iter_mut().for_each(Worker::stable_only);
    }
    let halt = Arc::new(AtomicBool::new(false));
    let lines = Arc::default();
    let mut witness = Witness { target: None, workers, running: Vec::new(), halt, lines };
    let stdin = std::io::stdin();
    for line in stdin.lock().lines() {
        let line = line.map_err(Error::Broken)?;
        let (command, rest) = line.split_once(' ').unwrap_or((line.as_str(), ""));
        let answer = match command {
            "target" => witness.target(rest),
            "start" => witness.start(),
            "sever" => witness.sever(),
            "stop" => witness.stop(),
            "stable" => witness.stable(),
            "verify" => witness.verify(),
            "names" => Ok(witness.names()),
            "quit" => return Ok(()),
            _ => Err(Error::Usage(format!("no such command: {command}"))),
        };
        let text = match answer {
            Ok(text) => text,
            Err(Error::Lost(what)) => format!("LOST {what}"),
            Err(error) => format!("error {error}"),
        };
        println!("{text}");
        std::io::stdout().flush().map_err(Error::Broken)?;
    }
    Ok(())
}

impl Witness {
    fn target(&mut self, text: &str) -> Result<String, Error> {
        self.target = Some(Target::parse(text)?);
        Ok("ok".to_owned())
    }

    fn place(&self) -> Result<Target, Error> {
        self.target.clone().ok_or_else(|| Error::Usage("no target".to_owned()))
    }

    fn start(&mut self) -> Result<String, Error> {
        let target = self.place()?;
        self.halt.store(false, Ordering::SeqCst);
        for mut worker in self.workers.drain(..) {
            let (target, halt, lines) = (target.clone(), self.halt.clone(), self.lines.clone());
            self.running.push(std::thread::spawn(move || {
                let ended = worker.run(&target, &halt, &lines);
                (worker, ended)
            }));
        }
        Ok("ok".to_owned())
    }

    /// Ends the workers' connections: a machine without power does not.
    fn sever(&mut self) -> Result<String, Error> {
        self.halt.store(true, Ordering::SeqCst);
        for line in self.lines.lock().unwrap_or_else(|e| e.into_inner()).drain(..) {
            // One that has ended already needs no more.
            let _ended = line.shutdown(Shutdown::Both).is_err();
        }
        Ok("ok".to_owned())
    }

    /// Everything answered so far is stable, unstable writes too.
    fn stable(&mut self) -> Result<String, Error> {
        self.workers.iter_mut().for_each(Worker::stable);
        Ok("ok".to_owned())
    }

    fn stop(&mut self) -> Result<String, Error> {
        self.halt.store(true, Ordering::SeqCst);
        let (mut broken, mut wrong) = (0, None);
        for thread in self.running.drain(..) {
            let Ok((worker, ended)) = thread.join() else {
                return Err(Error::Lost("a worker panicked".to_owned()));
            };
            match ended {
                Ended::Halted => {}
                Ended::Broken => broken += 1,
                Ended::Wrong(error) => wrong = Some(error),
            }
            self.workers.push(worker);
        }
        self.lines.lock().unwrap_or_else(|e| e.into_inner()).clear();
        if let Some(error) = wrong {
            return Err(Error::Lost(error.to_string()));
        }
        let ops: u64 = self.workers.iter().map(Worker::operations).sum();
        Ok(format!("stopped ops={ops} broken={broken}"))
    }

    fn verify(&mut self) -> Result<String, Error> {
        let target = self.place()?;
        let (mut files, mut bytes) = (0, 0);
        for worker in &mut self.workers {
            let (more_files, more_bytes) = worker.verify(&target)?;
            files += more_files;
            bytes += more_bytes;
        }
        Ok(format!("verified files={files} bytes={bytes}"))
    }

    fn names(&self) -> String {
        let all: Vec<String> = self.workers.iter().flat_map(Worker::names).collect();
        format!("names {}", all.join(" "))
    }
}
