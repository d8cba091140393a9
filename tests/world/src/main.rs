//! Runs worlds: one seed, a range of seeds, or as many as a time allows.
//!
//! Each seed runs in a process of its own, so that a panic (which ends a release build) is a
//! finding like any other. A failing seed is made short and printed with the command that runs
//! it again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cairn_world::{Kept, Plan, Report, places_of, places_text, run, shrink};

const USAGE: &str = "cairn-world --seed N [--ops PLACES] [--faults PLACES] | --seeds A..B | \
                     --for SECONDSs [--seeds A..]   [--list] [--no-shrink]";
/// Failing seeds that are made short; the rest is only named.
const SHORTENED_MAX: usize = 3;

#[derive(Default)]
struct Options {
    seed: Option<u64>,
    ops: Option<BTreeSet<usize>>,
    faults: Option<BTreeSet<usize>>,
    seeds: Option<(u64, Option<u64>)>,
    time: Option<Duration>,
    list: bool,
    child: bool,
    no_shrink: bool,
}

fn parse(args: impl Iterator<Item = String>) -> Option<Options> {
    let mut out = Options::default();
    let mut args = args;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seed" => out.seed = Some(args.next()?.parse().ok()?),
            "--ops" => out.ops = Some(places_of(&args.next()?)?),
            "--faults" => out.faults = Some(places_of(&args.next()?)?),
            "--seeds" => {
                let text = args.next()?;
                let (a, b) = text.split_once("..")?;
                let end = if b.is_empty() { None } else { Some(b.parse().ok()?) };
                out.seeds = Some((a.parse().ok()?, end));
            }
            "--for" => {
                let text = args.next()?;
                let seconds = text.strip_suffix('s').unwrap_or(&text).parse().ok()?;
                out.time = Some(Duration::from_secs(seconds));
            }
            "--list" => out.list = true,
            "--child" => out.child = true,
            "--no-shrink" => out.no_shrink = true,
            _ => return None,
        }
    }
    (out.seed.is_some() || out.seeds.is_some() || out.time.is_some()).then_some(out)
}

/// One line of `key=value` that a child process prints for its parent.
fn line_of(report: &Report) -> String {
    let mut out = format!(
        "report digest={:016x} calls={} resent={} crashes={} nanos={}",
        report.digest,
        report.calls,
        report.resent,
        report.crashes,
        report.elapsed.as_nanos()
    );
    for (what, n) in &report.ops {
        out += &format!(" op:{}={n}", what.replace(' ', "_"));
    }
    for (what, n) in &report.faults {
        out += &format!(" fault:{what}={n}");
    }
    out
}

/// Sums over all seeds.
#[derive(Default)]
struct Totals {
    seeds: u64,
    failed: Vec<u64>,
    sums: BTreeMap<String, u128>,
}

impl Totals {
    fn add(&mut self, line: &str) {
        for word in line.split_whitespace().skip(1) {
            if let Some((key, value)) = word.split_once('=')
                && let Ok(value) = value.parse::<u128>()
                && key != "digest"
            {
                *self.sums.entry(key.to_owned()).or_insert(0) += value;
            }
        }
    }
    fn sum(&self, key: &str) -> u128 {
        self.sums.get(key).copied().unwrap_or(0)
    }
    fn print(&self) {
        let of = |prefix: &str| -> (u128, String) {
            let all = self.sums.iter().filter_map(|(k, n)| Some((k.strip_prefix(prefix)?, *n)));
            let text: Vec<String> = all.clone().map(|(k, n)| format!("{k} {n}")).collect();
            (all.map(|(_, n)| n).sum(), text.join(", "))
        };
        let ((ops, by_op), (faults, by_fault)) = (of("op:"), of("fault:"));
        let hours = self.sum("nanos") / 1_000_000_000 / 36;
        println!("operations: {by_op}");
        println!("faults: {by_fault}");
        println!(
            "{} seeds, {ops} operations, {} calls ({} sent again), {} crashes, {faults} faults, \
             {}.{:02} virtual hours, {} failed",
            self.seeds,
            self.sum("calls"),
            self.sum("resent"),
            self.sum("crashes"),
            hours / 100,
            hours % 100,
            self.failed.len()
        );
    }
}

/// Runs a seed in a process of its own: its report, or what it said.
fn in_child(seed: u64, kept: Option<&Kept>) -> Result<String, String> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(me);
    command.args(["--child", "--seed", &seed.to_string()]);
    if let Some(kept) = kept {
        command.args(["--ops", &places_text(&kept.ops), "--faults", &places_text(&kept.faults)]);
    }
    let out = command.stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&out.stdout);
    let report = said.lines().find(|line| line.starts_with("report "));
    match report {
        Some(line) if out.status.success() => Ok(line.to_owned()),
        _ => Err(format!("{said}{}", String::from_utf8_lossy(&out.stderr))),
    }
}

fn shorten(seed: u64) {
    let plan = Plan::of_seed(seed);
    let mut fails = |part: &Plan| {
        // Places of the part in the whole: parts are made by leaving out, in order.
        in_child(seed, Some(&kept_of(&plan, part))).is_err()
    };
    let kept = shrink(&plan, &mut fails);
    print!("{}", plan.keep(&kept.ops, &kept.faults).describe());
    match in_child(seed, Some(&kept)) {
        Err(said) => println!("{}", said.trim()),
        Ok(_) => println!("(the short plan does not fail every time: a bug of the simulator)"),
    }
    println!("{}", kept.command(seed));
}

/// Where the items of `part` are in `whole`.
fn kept_of(whole: &Plan, part: &Plan) -> Kept {
    fn places<T: PartialEq>(whole: &[T], part: &[T]) -> BTreeSet<usize> {
        let mut out = BTreeSet::new();
        let mut rest = whole.iter().enumerate();
        for item in part {
            out.extend(rest.find(|(_, w)| *w == item).map(|(i, _)| i));
        }
        out
    }
    Kept { ops: places(&whole.ops, &part.ops), faults: places(&whole.faults, &part.faults) }
}

fn one(options: &Options, seed: u64) -> ExitCode {
    let mut plan = Plan::of_seed(seed);
    let all = Kept::all(&plan);
    let ops = options.ops.clone().unwrap_or(all.ops);
    plan = plan.keep(&ops, &options.faults.clone().unwrap_or(all.faults));
    if options.list {
        print!("{}", plan.describe());
    }
    match run(&plan) {
        Ok(report) => {
            println!("{}", line_of(&report));
            ExitCode::SUCCESS
        }
        Err(what) => {
            println!("seed {seed}: {what}");
            ExitCode::FAILURE
        }
    }
}

/// The real time: only how many worlds are run depends on it, never what happens in one.
#[expect(clippy::disallowed_methods, reason = "outside of every world")]
fn now() -> Instant {
    Instant::now()
}

fn many(options: &Options) -> ExitCode {
    let begun = now();
    let (first, end) = options.seeds.unwrap_or((0, None));
    let mut totals = Totals::default();
    for seed in first.. {
        let late = options.time.is_some_and(|time| now().duration_since(begun) > time);
        if late || end.is_some_and(|end| seed >= end) {
            break;
        }
        totals.seeds += 1;
        match in_child(seed, None) {
            Ok(line) => totals.add(&line),
            Err(said) => {
                totals.failed.push(seed);
                println!("seed {seed} failed: {}", said.trim());
                if !options.no_shrink && totals.failed.len() <= SHORTENED_MAX {
                    shorten(seed);
                }
            }
        }
        if totals.seeds.is_multiple_of(100) {
            println!("{} seeds, {} failed", totals.seeds, totals.failed.len());
        }
        // A closed pipe is no reason to stop.
        let _ok = std::io::stdout().flush().is_ok();
    }
    totals.print();
    if totals.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    let Some(options) = parse(std::env::args().skip(1)) else {
        eprintln!("usage: {USAGE}");
        return ExitCode::FAILURE;
    };
    match options.seed {
        Some(seed) if options.child || options.ops.is_some() || options.faults.is_some() => {
            one(&options, seed)
        }
        Some(seed) => {
            if options.list {
                print!("{}", Plan::of_seed(seed).describe());
            }
            many(&Options { seeds: Some((seed, Some(seed + 1))), ..options })
        }
        None => many(&options),
    }
}
