//! The crash-point checker as a program: a sweep, or one case again.
//!
//! Layer: command line. The last line of a sweep is `explored N distinct N violated N`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};
use cairn_crash::acts::{Act, act, acts};
use cairn_crash::rig::Shape;
use cairn_crash::states::Spec;
use cairn_crash::sweep::{Case, Depth, Sweep, guarded};
use clap::Parser;

/// Cuts the power at every device order of small workloads and checks every outcome.
#[derive(Parser)]
struct Args {
    /// Different states to check at least.
    #[arg(long, default_value_t = 50_000)]
    states: u64,
    /// Everything that varies.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Ends after so many seconds, whatever was reached.
    #[arg(long = "for")]
    seconds: Option<u64>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Only this aggregate: raid4, raid-dp, raid-dp-degraded, raid-dp-small-log.
    #[arg(long)]
    shape: Option<String>,
    /// Only workloads of these acts: words with commas between them.
    #[arg(long)]
    only: Option<String>,
    /// One workload: words with commas between them (see --list).
    #[arg(long)]
    workload: Option<String>,
    /// A state of the workload.
    #[arg(long)]
    state: Option<Spec>,
    /// Disks that die with the power: the first of them and how many, as `0:1`.
    #[arg(long)]
    without: Option<String>,
    /// The act that follows the recovery from the state.
    #[arg(long)]
    then: Option<String>,
    /// A state of that recovery.
    #[arg(long)]
    again: Option<Spec>,
    /// Lists the acts.
    #[arg(long)]
    list: bool,
}

fn act_named(word: &str) -> Result<Act> {
    act(word).ok_or_else(|| anyhow!("no act {word:?}; --list shows those there are"))
}

fn acts_named(words: &str) -> Result<Vec<Act>> {
    words.split(',').map(act_named).collect()
}

fn shapes(args: &Args) -> Result<Vec<Shape>> {
    let Some(word) = &args.shape else { return Ok(Shape::ALL.to_vec()) };
    let found = Shape::ALL.into_iter().find(|s| s.name() == word);
    Ok(vec![found.ok_or_else(|| anyhow!("no shape {word:?}"))?])
}

fn disks(text: &str) -> Result<(usize, usize)> {
    let (from, lost) = text.split_once(':').ok_or_else(|| anyhow!("--without wants FROM:COUNT"))?;
    Ok((from.parse()?, lost.parse()?))
}

/// The case that the arguments name, if they name one.
fn case(args: &Args, shapes: &[Shape]) -> Result<Option<Case>> {
    let Some(words) = &args.workload else { return Ok(None) };
    let acts = acts_named(words)?;
    let [shape] = shapes else { return Err(anyhow!("--workload needs --shape")) };
    let then = args.then.as_deref().map(act_named).transpose()?;
    let again = then.map(|act| (act, args.again));
    let without = args.without.as_deref().map(disks).transpose()?;
    Ok(Some(Case { shape: *shape, acts, seed: args.seed, spec: args.state, without, again }))
}

fn run(args: &Args) -> Result<bool> {
    if args.list {
        for act in acts() {
            println!("{}", act.name);
        }
        return Ok(true);
    }
    let shapes = shapes(args)?;
    let depth = Depth::for_states(args.states);
    let mut sweep = Sweep::new(&shapes, args.seed, depth, args.threads)?;
    if let Some(words) = &args.only {
        sweep.acts = acts_named(words)?;
    }
    if let Some(case) = case(args, &shapes)? {
        return Ok(match guarded(|| sweep.replay(&case, |line| println!("{line}"))) {
            Ok(()) => {
                println!("nothing is wrong with it");
                true
            }
            Err(error) => {
                println!("VIOLATION {error:#}");
                false
            }
        });
    }
    // What panics is a violation, and told as one.
    std::panic::set_hook(Box::new(|_| {}));
    let mut told = 0;
    let began = now();
    let over = || args.seconds.is_some_and(|most| began.elapsed().as_secs() >= most);
    let tally = sweep.run(args.states, over, |stage, tally| {
        for text in &tally.violations[told..] {
            println!("{text}");
        }
        told = tally.violations.len();
        println!(
            "{stage}, {} s: {} workloads, {} outcomes listed, {} explored ({} cut twice), {} distinct, {} with disks dead as well",
            began.elapsed().as_secs(),
            tally.workloads,
            tally.listed,
            tally.explored,
            tally.again,
            tally.distinct,
            tally.without
        );
    });
    println!(
        "explored {} distinct {} violated {}",
        tally.explored,
        tally.distinct,
        tally.violations.len()
    );
    Ok(tally.violations.is_empty() && (over() || tally.distinct >= args.states))
}

#[expect(clippy::disallowed_methods, reason = "how long a sweep takes, for people")]
fn now() -> Instant {
    Instant::now()
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
