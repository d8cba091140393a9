//! Random operations on the storage manager and on the reference model, with crashes, power cuts
//! in the middle of anything, and clean restarts between them: both must always agree.

use crate::common::Rig;
use cairn_model::sequence::{Event, Runner, steps_from_seed};
use cairn_units::Fsid;

/// Runs `count` steps; with `cuts`, the power also goes at a random device order within a step.
fn run(seed: u64, count: usize, cuts: bool) {
    let mut rig = Rig::small(seed);
    let fsid = Fsid::new(1);
    let made = Runner::new(rig.sim.world(), rig.dmodule(), fsid);
    let mut runner = rig.sim.block_on(made).unwrap_or_else(|d| panic!("seed {seed}: {d}"));
    let mut verifier = rig.dmodule().verifier();
    let mut restarted = |rig: &Rig| {
        // Clients learn from it that unstable writes may be gone.
        let before = core::mem::replace(&mut verifier, rig.dmodule().verifier());
        assert!(before != verifier, "seed {seed}: a restart keeps the verifier");
    };
    for step in steps_from_seed(seed, count) {
        if cuts && rig.sim.random().is_multiple_of(8) {
            rig.sim.cut_power_at(1 + rig.sim.random() % 40);
        }
        let done = rig.sim.block_on_or_cut(runner.step(&step));
        let event = match done {
            Some(Ok(event)) => event,
            Some(Err(difference)) => panic!("seed {seed}: {difference}"),
            None => {
                drop(runner.release());
                rig.after_cut();
                rig.restart();
                restarted(&rig);
                rig.check();
                let next = rig.sim.block_on(runner.remounted(rig.dmodule()));
                next.unwrap_or_else(|d| panic!("seed {seed}, power cut: {d}"));
                continue;
            }
        };
        rig.sim.cancel_cut();
        match event {
            None => continue,
            Some(Event::Crash) => {
                drop(runner.release());
                rig.power_cut();
                rig.restart();
            }
            Some(Event::Restart) => {
                drop(runner.release());
                rig.clean_restart();
            }
        }
        restarted(&rig);
        rig.check();
        let next = rig.sim.block_on(runner.remounted(rig.dmodule()));
        next.unwrap_or_else(|d| panic!("seed {seed}, {event:?}: {d}"));
    }
    let compared = rig.sim.block_on(runner.compare_all());
    compared.unwrap_or_else(|d| panic!("seed {seed}: {d}"));
}

/// Seeds from `first` on: a few by default, `CAIRN_SEEDS` many on request.
fn seeds(first: u64, few: u64) -> core::ops::Range<u64> {
    let asked = std::env::var("CAIRN_SEEDS").ok().and_then(|n| n.parse().ok());
    first..first + asked.unwrap_or(few)
}

#[test]
fn random_operations_with_crashes_and_restarts_agree_with_the_model() {
    for seed in seeds(0, 60) {
        run(seed, 150, false);
    }
}

#[test]
fn power_cuts_in_the_middle_of_operations_agree_with_the_model() {
    for seed in seeds(1_000_000, 100) {
        run(seed, 120, true);
    }
}
