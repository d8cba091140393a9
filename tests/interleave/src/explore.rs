//! Runs a test in many interleavings.
//!
//! Layer: interleaving harness. Half of the executions choose each step at random; the other half
//! run by priorities that change at a few random points (PCT), which finds what needs one task to
//! stand still for long.

use std::sync::{Arc, Mutex};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// Points where priorities change in one execution.
const PRIORITY_CHANGES: usize = 4;
/// The deepest call chain is a consistency point inside of an operation's task.
const STACK_BYTES: usize = 1 << 20;
/// Steps of one execution, after which it is taken for one that never ends.
const STEPS_MAX: usize = 20_000_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.silence_warnings = true;
    // A schedule is as long as the execution; the seed stands for it.
    config.failure_persistence = FailurePersistence::None;
    // What a failed execution leaves in the middle of something is not taken down in order.
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    config
}

/// Runs `test` in `executions` interleavings (or as many as the environment says).
///
/// # Panics
/// When one of them fails, or ends in a deadlock.
pub fn explore<F: Future<Output = ()>>(
    executions: usize,
    test: impl Fn() -> F + Send + Sync + 'static,
) {
    let wanted = number("CAIRN_INTERLEAVE_EXECUTIONS").and_then(|n| usize::try_from(n).ok());
    let executions = wanted.unwrap_or(executions);
    let seed = number("CAIRN_INTERLEAVE_SEED").unwrap_or(1);
    let test = Arc::new(test);
    let again = test.clone();
    let random = RandomScheduler::new_from_seed(seed, executions / 2);
    let pct = PctScheduler::new_from_seed(seed, PRIORITY_CHANGES, executions - executions / 2);
    Runner::new(random, config()).run(move || shuttle::future::block_on(test()));
    Runner::new(pct, config()).run(move || shuttle::future::block_on(again()));
}

/// Runs `work` in one interleaving, for what the executions of a test have in common.
///
/// # Panics
/// When it fails.
pub fn once<T: Send + 'static, F: Future<Output = T>>(
    work: impl Fn() -> F + Send + Sync + 'static,
) -> T {
    let answer = Arc::new(Mutex::new(None));
    let inside = answer.clone();
    Runner::new(RandomScheduler::new_from_seed(1, 1), config()).run(move || {
        let value = shuttle::future::block_on(work());
        *inside.lock().unwrap_or_else(|e| e.into_inner()) = Some(value);
    });
    let answer = answer.lock().unwrap_or_else(|e| e.into_inner()).take();
    match answer {
        Some(value) => value,
        None => panic!("the work did not end"),
    }
}
