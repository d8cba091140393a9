//! Deliberate faults, to see whether the tests notice them.
//!
//! Layer: beside the other seams. Production code asks [`mutant`] where a fault can be put in; the
//! answer is a constant `false`, and the compiler drops question and fault, unless the crate is
//! built with the feature `mutants`. That feature is for `tests/mutants/run` alone: the house
//! rules see to it that no manifest turns it on. The names, what each fault breaks and which test
//! must notice it stand in `tests/mutants/registry.toml`.

#[cfg(feature = "mutants")]
pub use active::{Restore, activate, mutant};

/// Whether the named fault is to be committed here: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn mutant(_name: &'static str) -> bool {
    false
}

#[cfg(feature = "mutants")]
mod active {
    use std::collections::BTreeSet;
    use std::sync::{LazyLock, Mutex, MutexGuard};

    /// Faults that are active, separated by commas.
    const VARIABLE: &str = "CAIRN_MUTANT";

    #[derive(Default)]
    struct State {
        active: BTreeSet<String>,
        /// Those that took effect at least once, so that one that was never reached is told apart.
        seen: BTreeSet<&'static str>,
    }

    static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
        let names = std::env::var(VARIABLE).unwrap_or_default();
        let active = names.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect();
        Mutex::new(State { active, ..State::default() })
    });

    fn state() -> MutexGuard<'static, State> {
        STATE.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether the named fault is to be committed here.
    pub fn mutant(name: &'static str) -> bool {
        let mut state = state();
        let active = state.active.contains(name);
        if active && state.seen.insert(name) {
            // Read by tests/mutants/run.
            eprintln!("mutant {name} took effect");
        }
        active
    }

    /// Puts things back when it is dropped.
    #[must_use]
    pub struct Restore(&'static str);

    impl Drop for Restore {
        fn drop(&mut self) {
            state().active.remove(self.0);
        }
    }

    /// Makes one more fault active for this process until the answer is dropped.
    pub fn activate(name: &'static str) -> Restore {
        state().active.insert(name.to_owned());
        Restore(name)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_fault_is_active_as_long_as_its_guard() {
            assert!(!mutant("none-of-ours"));
            let guard = activate("none-of-ours");
            assert!(mutant("none-of-ours"));
            drop(guard);
            assert!(!mutant("none-of-ours"));
        }
    }
}
