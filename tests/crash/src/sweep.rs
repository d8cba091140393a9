//! All workloads, all states, on some threads; what was found.
//!
//! Layer: top of the checker. Work is cut into workloads; which states of a workload are checked
//! depends on nothing but the arguments. Workloads of one act come first, then all of two, then as
//! many of three, in an order of the seed's, as it takes to reach the number of states asked for.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};
use cairn_sim::Rng;

use crate::acts::{Act, acts};
use crate::check::{Scope, check, check_without};
use crate::image::mix;
use crate::record::{Recording, record, record_recovery};
use crate::rig::{Bench, Shape};
use crate::states::{Effort, Keep, Spec, State, build, list};
use crate::tape::Event;

/// Violations after which a sweep ends.
const VIOLATIONS_MAX: usize = 20;
/// Workloads of three acts between two looks at the number of states.
const ROUND_WORKLOADS: usize = 600;
/// Outcomes that are built for each state that is to be checked: many of them are equal.
const CANDIDATES_PER_STATE: usize = 8;
/// Starts of the node before a state of a workload, and of a recovery, is checked.
const STARTS_BEFORE: u8 = 3;

/// Makes the choice of dead disks another one than that of second cuts.
const WITHOUT: u64 = 0x9E37_79B9;

/// Runs `work`; a broken invariant in it is an error like any other.
///
/// # Errors
/// Those of `work`, and its panics.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(anyhow!("panic: {}", text.unwrap_or_else(|| "without a text".to_owned())))
        }
    }
}

/// How far a sweep goes.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Outcomes of one moment.
    pub effort: Effort,
    /// States that are checked of a workload of one, two and three acts.
    pub states: [usize; 3],
    /// Of so many states one is checked again with disks dead.
    pub without_one_in: u64,
    /// Of so many states one is recovered on recorded disks, to cut the power again.
    pub again_one_in: u64,
    /// States that are checked of such a recovery.
    pub again_states: usize,
}

impl Depth {
    /// The depth that suits a number of states.
    pub fn for_states(states: u64) -> Self {
        if states < 1_000_000 {
            let effort = Effort { exhaustive: 3, random: 2 };
            Self {
                effort,
                states: [40, 4, 6],
                without_one_in: 8,
                again_one_in: 16,
                again_states: 4,
            }
        } else {
            let effort = Effort { exhaustive: 6, random: 16 };
            Self {
                effort,
                states: [10_000, 400, 40],
                without_one_in: 8,
                again_one_in: 16,
                again_states: 8,
            }
        }
    }
}

/// What a sweep did.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Workloads that were run.
    pub workloads: u64,
    /// Outcomes that were listed; those that are equal are among them.
    pub listed: u64,
    /// States that were opened and checked.
    pub explored: u64,
    /// Of these, different contents of the disks.
    pub distinct: u64,
    /// Of these, cut during or after the recovery from another cut.
    pub again: u64,
    /// Checks of states with as many disks dead as parity covers; not counted as explored.
    pub without: u64,
    /// What was wrong, as text with the way to replay it.
    pub violations: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.workloads += other.workloads;
        self.listed += other.listed;
        self.explored += other.explored;
        self.distinct += other.distinct;
        self.again += other.again;
        self.without += other.without;
        self.violations.extend(other.violations);
    }
}

/// One state by name.
#[derive(Clone, Debug)]
pub struct Case {
    /// The aggregate.
    pub shape: Shape,
    /// The workload.
    pub acts: Vec<Act>,
    /// Everything that varies.
    pub seed: u64,
    /// The state of the workload; without one the workload itself is the case.
    pub spec: Option<Spec>,
    /// Disks that die with the power: the first of them, and how many.
    pub without: Option<(usize, usize)>,
    /// The second cut.
    pub again: Option<(Act, Option<Spec>)>,
}

impl Case {
    fn words(&self) -> String {
        self.acts.iter().map(|a| a.name).collect::<Vec<_>>().join(",")
    }

    /// The command that replays it.
    pub fn command(&self) -> String {
        let mut text = format!(
            "cargo run --profile crash -p cairn-crash -- --seed {} --shape {} --workload {}",
            self.seed,
            self.shape.name(),
            self.words()
        );
        if let Some(spec) = &self.spec {
            text.push_str(&format!(" --state {spec}"));
        }
        if let Some((from, lost)) = self.without {
            text.push_str(&format!(" --without {from}:{lost}"));
        }
        if let Some((act, spec)) = &self.again {
            text.push_str(&format!(" --then {}", act.name));
            if let Some(spec) = spec {
                text.push_str(&format!(" --again {spec}"));
            }
        }
        text
    }
}

fn violation(case: &Case, error: &anyhow::Error) -> String {
    let after = match (&case.spec, &case.again) {
        (None, _) => "while it ran".to_owned(),
        (Some(spec), None) => format!("cut at {spec}"),
        (Some(spec), Some((act, None))) => {
            format!("cut at {spec}, during the recovery and {}", act.name)
        }
        (Some(spec), Some((act, Some(again)))) => {
            format!("cut at {spec}, then, recovering and {}, at {again}", act.name)
        }
    };
    format!(
        "VIOLATION {}: {}; {after}\n  {error:#}\n  replay: {}",
        case.shape.name(),
        case.words(),
        case.command()
    )
}

/// A sweep.
pub struct Sweep {
    /// One bench of each shape.
    pub benches: Vec<Bench>,
    /// Everything that varies.
    pub seed: u64,
    /// How far it goes.
    pub depth: Depth,
    /// Threads.
    pub threads: usize,
    /// What workloads are made of.
    pub acts: Vec<Act>,
    /// Contents that were seen, and the starts of the node before.
    seen: Mutex<BTreeSet<(u64, u8)>>,
}

/// A bench, by number, and a workload on it.
pub type Job = (usize, Vec<Act>);

impl Sweep {
    /// A sweep of these shapes.
    ///
    /// # Errors
    /// A bench that cannot be made.
    pub fn new(shapes: &[Shape], seed: u64, depth: Depth, threads: usize) -> Result<Self> {
        let benches = shapes.iter().map(|s| Bench::make(*s)).collect::<Result<Vec<_>>>()?;
        Ok(Self { benches, seed, depth, threads, acts: acts(), seen: Mutex::default() })
    }

    /// Seed of every run on a bench: equal situations of different workloads are equal to the bit.
    fn run_seed(&self, bench: &Bench) -> u64 {
        mix(self.seed ^ mix(bench.shape as u64 + 1))
    }

    /// The workloads of one act, on every bench.
    pub fn ones(&self) -> Vec<Job> {
        let benches = 0..self.benches.len();
        benches.flat_map(|b| self.acts.iter().map(move |a| (b, vec![*a]))).collect()
    }

    /// Runs until at least `states` different states were checked, there are no more workloads, or
    /// `enough` says so between two rounds; `tell` is given what was done and the sum so far, after
    /// each round.
    pub fn run(
        &self,
        states: u64,
        enough: impl Fn() -> bool,
        mut tell: impl FnMut(&str, &Tally),
    ) -> Tally {
        let all = &self.acts;
        let mut tally = Tally::default();
        self.round(&self.ones(), &mut tally);
        tell("one act", &tally);
        let mut twos: Vec<Job> = Vec::new();
        for bench in 0..self.benches.len() {
            for first in all {
                twos.extend(all.iter().map(|second| (bench, vec![*first, *second])));
            }
        }
        let mut rng = Rng::new(mix(self.seed));
        rng.shuffle(&mut twos);
        for round in twos.chunks(ROUND_WORKLOADS * 4) {
            if enough() || tally.violations.len() >= VIOLATIONS_MAX {
                break;
            }
            self.round(round, &mut tally);
            tell("two acts", &tally);
        }
        let threes = self.benches.len() * all.len().pow(3);
        for _ in 0..threes.div_ceil(ROUND_WORKLOADS) {
            let ended = tally.distinct >= states || enough();
            if ended || tally.violations.len() >= VIOLATIONS_MAX {
                break;
            }
            let mut any = || all[rng.index(all.len())];
            let mut acts: Vec<Vec<Act>> = Vec::new();
            acts.extend((0..ROUND_WORKLOADS).map(|_| vec![any(), any(), any()]));
            let bench = |i: usize| i % self.benches.len();
            let jobs: Vec<Job> = acts.into_iter().enumerate().map(|(i, a)| (bench(i), a)).collect();
            self.round(&jobs, &mut tally);
            tell("three acts", &tally);
        }
        tally
    }

    /// Runs these workloads, on all threads.
    pub fn round(&self, jobs: &[Job], tally: &mut Tally) {
        let next = AtomicUsize::new(0);
        let bad = AtomicUsize::new(tally.violations.len());
        let worker = || {
            let mut own = Tally::default();
            while bad.load(Ordering::Relaxed) < VIOLATIONS_MAX {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some((bench, acts)) = jobs.get(at) else { break };
                let before = own.violations.len();
                self.workload(&self.benches[*bench], acts, &mut own);
                bad.fetch_add(own.violations.len() - before, Ordering::Relaxed);
            }
            own
        };
        let all: Vec<Tally> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads.max(1)).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().filter_map(|w| w.join().ok()).collect()
        });
        for one in all {
            tally.add(one);
        }
    }

    fn workload(&self, bench: &Bench, acts: &[Act], tally: &mut Tally) {
        let seed = self.run_seed(bench);
        let case = Case {
            shape: bench.shape,
            acts: acts.to_vec(),
            seed: self.seed,
            spec: None,
            without: None,
            again: None,
        };
        tally.workloads += 1;
        let recording = match guarded(|| record(bench, acts, seed)) {
            Ok(recording) => recording,
            Err(error) => {
                tally.violations.push(violation(&case, &error));
                return;
            }
        };
        let most = self.depth.states[acts.len().clamp(1, 3) - 1];
        for state in self.sample(&recording, most, tally) {
            let case = Case { spec: Some(state.spec), ..case.clone() };
            if !self.state(&state, &recording, &case, STARTS_BEFORE, tally) {
                continue;
            }
            if !acts.iter().any(Act::touches_disks) {
                self.without(&state, &recording, &case, tally);
            }
            if mix(state.digest ^ seed).is_multiple_of(self.depth.again_one_in) {
                self.again(bench, &state, &recording, &case, tally);
            }
        }
    }

    /// Different states of a run, at most `most`, chosen by their digests.
    fn sample(&self, recording: &Recording, most: usize, tally: &mut Tally) -> Vec<State> {
        let mut specs = list(recording, self.depth.effort, self.seed);
        tally.listed += specs.len() as u64;
        let candidates = most.saturating_mul(CANDIDATES_PER_STATE);
        if specs.len() > candidates {
            // Building one costs as much as a tenth of a check.
            let mut chosen: Vec<(bool, u64, Spec)> = (0u64..)
                .zip(specs)
                .map(|(i, s)| (!after_answer(recording, s), mix(i ^ mix(self.seed)), s))
                .collect();
            chosen.sort_unstable();
            chosen.truncate(candidates);
            specs = chosen.into_iter().map(|(_, _, spec)| spec).collect();
        }
        let mut seen = BTreeSet::new();
        let mut states = Vec::new();
        build(recording, specs, |state| {
            if seen.insert((state.digest, state.promise)) {
                states.push(state);
            }
        });
        if states.len() > most {
            // A cut right after an answer that leaves nothing but what is durable comes first.
            states.sort_by_key(|s| (!after_answer(recording, s.spec), mix(s.digest ^ self.seed)));
            states.truncate(most);
        }
        states
    }

    /// Notes that contents are checked after so many starts; whether they are new, and what is to be
    /// looked at.
    fn seen(&self, digest: u64, starts: u8) -> (bool, Scope) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let new = seen.range((digest, 0)..=(digest, u8::MAX)).next().is_none();
        let scope = if seen.insert((digest, starts)) { Scope::All } else { Scope::Promise };
        (new, scope)
    }

    /// Checks a state; whether it is sound.
    fn state(
        &self,
        state: &State,
        recording: &Recording,
        case: &Case,
        starts: u8,
        tally: &mut Tally,
    ) -> bool {
        tally.explored += 1;
        let (new, scope) = self.seen(state.digest, starts);
        tally.distinct += u64::from(new);
        let promise = &recording.promises[state.promise];
        match guarded(|| check(&state.images, promise, scope, (starts, state.digest))) {
            Ok(()) => true,
            Err(error) => {
                tally.violations.push(violation(case, &error));
                false
            }
        }
    }

    /// Checks a state once more, with as many disks dead as parity covers; which, the digest says.
    fn without(&self, state: &State, recording: &Recording, case: &Case, tally: &mut Tally) {
        let chosen = mix(state.digest ^ WITHOUT);
        let (members, lost) = case.shape.may_die();
        if lost == 0 || !chosen.is_multiple_of(self.depth.without_one_in) {
            return;
        }
        let from = usize::try_from(chosen >> 32).unwrap_or(0) % (members - lost + 1);
        let case = Case { without: Some((from, lost)), ..case.clone() };
        tally.without += 1;
        let promise = &recording.promises[state.promise];
        let seed = (STARTS_BEFORE, state.digest);
        let checked = guarded(|| check_without(&state.images, promise, (from, lost), seed));
        if let Err(error) = checked {
            tally.violations.push(violation(&case, &error));
        }
    }

    /// Recovers from a state on recorded disks, goes on, and checks states of that.
    fn again(
        &self,
        bench: &Bench,
        state: &State,
        recording: &Recording,
        case: &Case,
        tally: &mut Tally,
    ) {
        let all = acts();
        let act = all[Rng::new(mix(state.digest)).index(all.len())];
        let promise = &recording.promises[state.promise];
        let case = Case { again: Some((act, None)), ..case.clone() };
        let run = || record_recovery(&state.images, promise, bench, &act, state.digest);
        let second = match guarded(run) {
            Ok(second) => second,
            Err(error) => {
                tally.violations.push(violation(&case, &error));
                return;
            }
        };
        for state in self.sample(&second, self.depth.again_states, tally) {
            let case = Case { again: Some((act, Some(state.spec))), ..case.clone() };
            tally.again += 1;
            self.state(&state, &second, &case, STARTS_BEFORE + 1, tally);
        }
    }

    /// Runs one case; what it is about is told line by line.
    ///
    /// # Errors
    /// What is wrong with it, or with the case.
    pub fn replay(&self, case: &Case, mut tell: impl FnMut(&str)) -> Result<()> {
        let bench = self.benches.iter().find(|b| b.shape == case.shape);
        let bench = bench.ok_or_else(|| anyhow!("no bench of shape {}", case.shape.name()))?;
        let recording = record(bench, &case.acts, self.run_seed(bench))?;
        let Some(spec) = case.spec else {
            tell("the workload runs; --state names a state of it");
            return Ok(());
        };
        let state = one(&recording, spec)?;
        tell(&crate::states::describe(&recording, spec));
        let promise = &recording.promises[state.promise];
        if let Some(lost) = case.without {
            let seed = (STARTS_BEFORE, state.digest);
            return check_without(&state.images, promise, lost, seed);
        }
        let Some((act, again)) = case.again else {
            let seed = (STARTS_BEFORE, state.digest);
            return check(&state.images, promise, Scope::All, seed);
        };
        let second = record_recovery(&state.images, promise, bench, &act, state.digest)?;
        let Some(spec) = again else {
            tell("the recovery runs; --again names a state of it");
            return Ok(());
        };
        let state = one(&second, spec)?;
        tell(&crate::states::describe(&second, spec));
        let promise = &second.promises[state.promise];
        check(&state.images, promise, Scope::All, (STARTS_BEFORE + 1, state.digest))
    }
}

/// Whether a state is what is left of an answered act when all that can be lost is lost.
fn after_answer(recording: &Recording, spec: Spec) -> bool {
    matches!(recording.events.get(spec.point), Some(Event::Promise { .. }))
        && matches!(spec.keep, Keep::None | Keep::Mask(0))
}

fn one(recording: &Recording, spec: Spec) -> Result<State> {
    let mut found = None;
    build(recording, vec![spec], |state| found = Some(state));
    found
        .ok_or_else(|| anyhow!("the tape has {} events, no {}", recording.events.len(), spec.point))
}
