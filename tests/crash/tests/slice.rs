//! A slice of the sweep, small enough for every run of the unit tests, and tests of the checker
//! itself: what it must find, it finds.

use cairn_crash::acts::{Act, act};
use cairn_crash::check::{Scope, check};
use cairn_crash::record::{record, record_recovery};
use cairn_crash::rig::{Bench, Shape};
use cairn_crash::states::{Effort, Keep, Spec, State, build, list};
use cairn_crash::sweep::{Depth, Sweep, Tally};

const EFFORT: Effort = Effort { exhaustive: 3, random: 2 };

fn named(names: &[&str]) -> Vec<Act> {
    names.iter().map(|n| act(n).expect("an act of this name")).collect()
}

fn sweep(threads: usize) -> Tally {
    let depth = Depth {
        effort: EFFORT,
        states: [1, 0, 0],
        without_one_in: 8,
        again_one_in: 8,
        again_states: 1,
    };
    let sweep = Sweep::new(&Shape::ALL, 3, depth, threads).expect("benches");
    let mut tally = Tally::default();
    sweep.round(&sweep.ones(), &mut tally);
    tally
}

#[test]
fn workloads_of_one_act_survive_power_cuts() {
    let tally = sweep(2);
    assert!(tally.violations.is_empty(), "{}", tally.violations.join("\n"));
    assert!(tally.distinct > 60, "{} states", tally.distinct);
    let again = sweep(1);
    assert_eq!(
        (tally.listed, tally.explored, tally.distinct, tally.again),
        (again.listed, again.explored, again.distinct, again.again),
        "the number of threads makes no difference"
    );
}

/// Every state of a workload.
fn states(bench: &Bench, names: &[&str], mut each: impl FnMut(&State, usize)) {
    let recording = record(bench, &named(names), 7).expect("the workload runs");
    let last = recording.promises.len() - 1;
    build(&recording, list(&recording, EFFORT, 1), |state| each(&state, last));
}

#[test]
fn an_answered_operation_that_is_lost_is_found() {
    let bench = Bench::make(Shape::RaidDp).expect("a bench");
    for name in ["create", "rename-over", "unlink-g", "write-head", "xattr-set", "volume-delete"] {
        let recording = record(&bench, &named(&[name]), 7).expect("the workload runs");
        let answered = recording.promises.last().expect("a promise");
        let (mut kept, mut lost) = (0, 0);
        let mut seen = std::collections::BTreeSet::new();
        build(&recording, list(&recording, EFFORT, 1), |state| {
            if !seen.insert((state.digest, state.promise)) {
                return;
            }
            // What was promised at that moment is there; what is promised at the end may not be.
            let promised = &recording.promises[state.promise];
            assert!(
                check(&state.images, promised, Scope::All, (3, 1)).is_ok(),
                "{name} {}",
                state.spec
            );
            match check(&state.images, answered, Scope::Promise, (3, 1)) {
                Ok(()) => kept += 1,
                Err(_) => lost += 1,
            }
        });
        assert!(kept > 0 && lost > 0, "{name}: {kept} states with it, {lost} without");
    }
}

#[test]
fn a_damaged_parity_block_is_found() {
    let bench = Bench::make(Shape::Raid4).expect("a bench");
    let recording = record(&bench, &named(&["write-block"]), 7).expect("the workload runs");
    let promise = recording.promises.last().expect("a promise");
    let end = Spec { point: recording.events.len() - 1, keep: Keep::All };
    build(&recording, vec![end], |state| {
        assert!(check(&state.images, promise, Scope::All, (3, 1)).is_ok());
        let mut found = 0;
        for at in (1010..1530).filter(|at| at % 4 == 0) {
            // The third disk holds row parity; its stripes lie at its end.
            let mut images = state.images.clone();
            let Some(block) = images[2].get(at) else { continue };
            let mut rotten = block.clone();
            rotten.make_mut()[99] ^= 1;
            images[2].put(at, cairn_crash::image::Content::new(rotten));
            found += usize::from(check(&images, promise, Scope::All, (3, 1)).is_err());
        }
        assert!(found > 3, "{found} blocks of parity or stamps were missed");
    });
}

#[test]
fn what_was_seen_after_a_recovery_must_stay() {
    let bench = Bench::make(Shape::RaidDp).expect("a bench");
    let recording = record(&bench, &named(&["create"]), 7).expect("the workload runs");
    let mut specs = list(&recording, EFFORT, 1);
    specs.retain(|s| matches!(s.keep, Keep::None | Keep::All | Keep::Mask(0)));
    let scrub = act("scrub").expect("an act");
    build(&recording, specs, |state| {
        let promise = &recording.promises[state.promise];
        let second = record_recovery(&state.images, promise, &bench, &scrub, 9);
        let second = second.expect("the recovery runs");
        build(&second, list(&second, EFFORT, 1).into_iter().step_by(23).collect(), |state| {
            let checked = check(&state.images, &second.promises[state.promise], Scope::All, (4, 1));
            assert!(checked.is_ok(), "{}: {checked:?}", state.spec);
        });
    });
}

#[test]
fn states_of_a_workload_differ_and_replay_by_name() {
    let bench = Bench::make(Shape::RaidDp).expect("a bench");
    let (mut all, mut different) = (0, std::collections::BTreeSet::new());
    let mut once = Vec::new();
    states(&bench, &["write-block", "point"], |state, _| {
        all += 1;
        different.insert(state.digest);
        once.push((state.spec.to_string(), state.digest));
    });
    assert!(different.len() > 40, "{} of {all}", different.len());
    let recording = record(&bench, &named(&["write-block", "point"]), 7).expect("it runs again");
    for (spec, digest) in once {
        let parsed: Spec = spec.parse().expect("what is printed can be read");
        assert_eq!(parsed.to_string(), spec);
        build(&recording, vec![parsed], |state| assert_eq!(state.digest, digest, "{spec}"));
    }
}
