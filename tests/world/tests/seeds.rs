//! A modest number of worlds with every test run. Many more: `docs/testing.md`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cairn_world::{Plan, run, shrink};

/// What a plan comes to, a panic of the code under test included.
fn verdict(plan: &Plan) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(|| run(plan))) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(what)) => Err(what),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.or(panic.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default())
        }
    }
}

/// Runs a seed; a failing one is made short first.
fn check(seed: u64) {
    let plan = Plan::of_seed(seed);
    let Err(what) = verdict(&plan) else { return };
    let kept = shrink(&plan, &mut |part| verdict(part).is_err());
    let short = plan.keep(&kept.ops, &kept.faults);
    let now = verdict(&short).err().unwrap_or_default();
    panic!("{what}\n{}{now}\n{}", short.describe(), kept.command(seed));
}

/// Seeds of a test: a few, or as many as `CAIRN_SEEDS` says.
fn seeds(first: u64, few: u64) -> core::ops::Range<u64> {
    let asked = std::env::var("CAIRN_SEEDS").ok().and_then(|n| n.parse().ok());
    first..first + asked.unwrap_or(few)
}

#[test]
fn worlds_with_faults_lose_nothing_acknowledged_and_return_nothing_wrong() {
    for seed in seeds(0, 30) {
        check(seed);
    }
}

#[test]
fn more_worlds_with_faults_lose_nothing_acknowledged_and_return_nothing_wrong() {
    for seed in seeds(100_000, 30) {
        check(seed);
    }
}

/// Seeds that once failed, each with what was mended.
#[test]
fn seeds_that_failed_once() {
    // 41, 1009: the log's copies were lost one after the other while nobody wrote to it.
    // 837, 1080: both data disks of a small group were missing, and no block could be placed.
    // 500202: the copy of a region map block that was left was believed once it was written again.
    // 501371: three disks lost while a half of the log was short of a copy, which is too many.
    // 511028: what a COMMIT that was cut leaves of a file's size.
    // 511542: a disk that died while a configuration was stored was never taken out.
    for seed in [41, 837, 1009, 1080, 500_202, 501_371, 511_028, 511_542] {
        check(seed);
    }
}

#[test]
fn same_seed_gives_the_same_digest_twice() {
    for seed in 0..6 {
        let plan = Plan::of_seed(seed);
        let reports = [run(&plan), run(&plan)];
        let [Ok(one), Ok(two)] = reports else { panic!("seed {seed}: {reports:?}") };
        assert_eq!(one, two, "seed {seed}");
    }
}

#[test]
fn seeds_cover_every_kind_of_fault_and_operation() {
    let (mut faults, mut ops) = (std::collections::BTreeSet::new(), Vec::new());
    for seed in 0..40 {
        let plan = Plan::of_seed(seed);
        faults.extend(plan.faults.iter().map(|f| f.kind));
        ops.extend(plan.ops.iter().map(|(_, op)| op.name()));
    }
    ops.sort_unstable();
    ops.dedup();
    assert_eq!(faults.len(), cairn_world::FAULT_KINDS.len());
    assert_eq!(ops.len(), 20, "{ops:?}");
}
