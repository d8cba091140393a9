//! `cairn-hostile`: clients that mean no good, against a whole node over real sockets.
//!
//! Layer: system tests, outside of the server; it starts a node (`cairn demo`) as a child and
//! shares no code with it.
//!
//! ```text
//! cairn-hostile --cairn PROGRAM --work DIR [--seconds N] [--seed N] [--long] [--only ATTACK|few]...
//! ```
//! Beside each attack an honest client works, which must never wait longer than a bound, lose its
//! connection or read a wrong byte. The node's memory and descriptors stay under what its limits
//! allow, and come back when the attackers are gone. At the end the node's own check must find
//! nothing. The last line is `N passed, N failed`. The bounds and why they hold: docs/testing.md.

mod attacks;
mod clock;
mod foe;
mod honest;
mod node;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};

use attacks::{ALL, Attack, Ground};
use clock::Bell;
use honest::LATENCY_MAX;
use node::{Counters, Node, Usage};

/// Descriptors of the node that has few, and its attack.
const FEW: (u64, &str) = (640, "thousands");
/// Connections of the largest attack, where the machine allows as many.
const CROWD: u64 = 5000;
/// Descriptors of this program beside its attacks.
const OWN_DESCRIPTORS: u64 = 100;
/// Memory that a connection that says little may cost: receive window, state, task.
const CONNECTION_BYTES: u64 = 16 << 10;
/// Memory that may come and go for other reasons: buffer cache, log, consistency points, work of
/// the honest client.
const SLACK_BYTES: u64 = 96 << 20;
/// What may stay behind an attack beside the pools of buffers: memory that the allocator keeps.
const LEFT_BYTES: u64 = 64 << 20;
/// Descriptors that may come and go for other reasons.
const SLACK_DESCRIPTORS: u64 = 24;
/// Time for everything to be as before when the attackers are gone.
const CALM_TIME: Duration = Duration::from_secs(8);

struct Options {
    cairn: PathBuf,
    work: PathBuf,
    seconds: f64,
    seed: u64,
    long: bool,
    only: Vec<String>,
}

fn options() -> Result<Options> {
    let mut words = std::env::args().skip(1);
    let (mut cairn, mut work, mut only) = (None, None, Vec::new());
    let (mut seconds, mut seed, mut long) = (0.5, 1, false);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "--cairn" => cairn = Some(PathBuf::from(value()?)),
            "--work" => work = Some(PathBuf::from(value()?)),
            "--seconds" => seconds = value()?.parse()?,
            "--seed" => seed = value()?.parse()?,
            "--only" => only.push(value()?),
            "--long" => long = true,
            other => bail!("{other:?} is no option, see the source"),
        }
    }
    let unknown =
        only.iter().find(|name| *name != "few" && ALL.iter().all(|a| a.name != name.as_str()));
    ensure!(unknown.is_none(), "no attack {unknown:?}");
    let (cairn, work) = (cairn.context("--cairn is missing")?, work.context("--work is missing")?);
    Ok(Options { cairn, work, seconds, seed, long, only })
}

/// Raises this program's limit on descriptors; the connections that fit into the largest attack.
fn crowd() -> Result<(usize, u64)> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let there = limit.current.unwrap_or(u64::MAX);
    let crowd = CROWD.min(there.saturating_sub(OWN_DESCRIPTORS));
    if crowd < CROWD {
        println!(
            "NOTE the limit on open files is {there}: the largest attack has {crowd} connections, \
             not {CROWD}"
        );
    }
    Ok((usize::try_from(crowd)?, there))
}

/// What an attack came to.
struct Seen {
    /// What the attack says itself: the node's answers, or what was wrong with them.
    note: Result<String>,
    honest: honest::Report,
    peak: Usage,
}

/// Runs one attack beside the honest client and the watch.
fn run(node: &Node, attack: &Attack, ground: &Ground<'_>) -> Result<Seen> {
    let (over, trouble) = (Bell::default(), ground.bell);
    let name = format!("honest-{}", attack.name);
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| {
            let done = honest::work(&node.address, &name, &over);
            if done.is_err() {
                trouble.ring();
            }
            done
        });
        let watch = scope.spawn(|| -> Result<u64> {
            let mut fds = 0;
            while !over.rests(Duration::from_millis(20)) {
                fds = fds.max(node.usage().inspect_err(|_| trouble.ring())?.fds);
            }
            Ok(fds)
        });
        let note = (attack.run)(ground);
        over.ring();
        let honest = honest.join().map_err(|_| anyhow!("the honest client panicked"))?;
        let fds = watch.join().map_err(|_| anyhow!("the watch panicked"))?;
        // The honest client's complaint comes first: it is what matters.
        let honest = honest?;
        let peak = Usage { fds: fds?, rss: node.peak_rss()? };
        Ok(Seen { note, honest, peak })
    })
}

/// Waits until the node is as before.
fn calm(node: &Node, before: (Usage, Counters)) -> Result<(Usage, Counters)> {
    let mut last = Err(anyhow!("not looked"));
    let (usage, counters) = before;
    let calm = clock::until(CALM_TIME, || {
        last = node.usage().and_then(|u| Ok((u, node.address.counters()?)));
        last.as_ref().is_ok_and(|(u, c)| {
            c.connections <= counters.connections
                && c.in_flight == 0
                && u.fds <= usage.fds + SLACK_DESCRIPTORS
                && u.rss <= usage.rss + (c.buffers - counters.buffers) + LEFT_BYTES
        })
    });
    let now = last?;
    ensure!(
        calm,
        "{CALM_TIME:?} after the attack there are {} connections, {} bytes in flight, {} \
         descriptors (before: {}), {} MiB of memory (before: {}, pools have grown by {})",
        now.1.connections,
        now.1.in_flight,
        now.0.fds,
        usage.fds,
        now.0.rss >> 20,
        usage.rss >> 20,
        (now.1.buffers - counters.buffers) >> 20
    );
    Ok(now)
}

fn one(node: &mut Node, attack: &Attack, ground: &Ground<'_>) -> Result<()> {
    let before = (node.usage()?, node.address.counters()?);
    node.forget_peak()?;
    let began = clock::now();
    let seen = run(node, attack, ground);
    node.is_well()?;
    let seen = seen?;
    let connections = (attack.connections)(ground) as u64;
    let taken = connections.min(node.connections_max);
    let bound = Usage {
        rss: before.0.rss + attack.payload + taken * CONNECTION_BYTES + SLACK_BYTES,
        fds: before.0.fds + taken + SLACK_DESCRIPTORS,
    };
    let Seen { note, honest, peak } = seen;
    ensure!(peak.rss <= bound.rss, "{} MiB of memory, at most {}", peak.rss >> 20, bound.rss >> 20);
    ensure!(peak.fds <= bound.fds, "{} descriptors, at most {}", peak.fds, bound.fds);
    let note = note?;
    ensure!(honest.rounds > 0, "the honest client never got round");
    let after = calm(node, before)?;
    node.is_well()?;
    println!(
        "PASS {:<13} {:>4.1} s: {note}\n     honest: {} rounds, worst {} ms ({}, at most {}); memory \
         {} -> {} -> {} MiB (at most {}); descriptors {} -> {} -> {} (at most {})",
        attack.name,
        began.elapsed().as_secs_f64(),
        honest.rounds,
        honest.worst.as_millis(),
        honest.worst_in,
        LATENCY_MAX.as_millis(),
        before.0.rss >> 20,
        peak.rss >> 20,
        after.0.rss >> 20,
        bound.rss >> 20,
        before.0.fds,
        peak.fds,
        after.0.fds,
        bound.fds
    );
    Ok(())
}

/// Attacks a new node, then has it checked and stopped.
fn siege(
    options: &Options,
    (name, descriptors): (&str, u64),
    crowd: usize,
    attacks: &[&Attack],
    tell: &mut impl FnMut(&str, Result<()>),
) -> Result<()> {
    let mut node = Node::start(&options.cairn, &options.work, name, descriptors)?;
    let (dir, file) = attacks::prepare(&node.address)?;
    for attack in attacks {
        let (address, bell) = (node.address.clone(), Bell::default());
        let ground = Ground {
            address: &address,
            bell: &bell,
            time: Duration::from_secs_f64(options.seconds),
            seed: options.seed,
            crowd,
            connections_max: node.connections_max,
            dir: dir.clone(),
            file: file.clone(),
        };
        tell(attack.name, one(&mut node, attack, &ground));
    }
    tell("check", node.check().inspect(|()| println!("PASS the node's own check finds nothing")));
    tell("stop", node.stop().inspect(|()| println!("PASS the node stops cleanly")));
    Ok(())
}

/// All attacks. Returns how many passed and failed.
fn all(options: &Options) -> Result<(u32, u32)> {
    let (crowd, descriptors) = crowd()?;
    let (mut passed, mut failed) = (0, 0);
    let mut tell = |name: &str, done: Result<()>| match done {
        Ok(()) => passed += 1,
        Err(e) => {
            let causes: Vec<String> = e.chain().map(ToString::to_string).collect();
            println!("FAILED: {name}: {}", causes.join(": "));
            failed += 1;
        }
    };
    let named = |name: &str| options.only.iter().any(|only| only == name);
    let chosen = |a: &&Attack| match options.only.is_empty() {
        true => options.long || !a.long,
        false => named(a.name),
    };
    let attacks: Vec<&Attack> = ALL.iter().filter(chosen).collect();
    if !attacks.is_empty() {
        siege(options, ("node", descriptors), crowd, &attacks, &mut tell)?;
    }
    if options.only.is_empty() || named("few") {
        println!("a node with {} descriptors:", FEW.0);
        let attacks: Vec<&Attack> = ALL.iter().filter(|a| a.name == FEW.1).collect();
        siege(options, ("few", FEW.0), 1000, &attacks, &mut tell)?;
    }
    Ok((passed, failed))
}

fn main() -> ExitCode {
    let done = options().and_then(|options| all(&options));
    match done {
        Ok((passed, failed)) => {
            println!("{passed} passed, {failed} failed");
            if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            println!("FAILED: {e:#}\n0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}
