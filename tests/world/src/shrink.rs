//! A failing plan is made short: clients, operations and faults are left out as long as it fails.
//!
//! Layer: pure, over a judge that says whether a plan fails. Source: Zeller and Hildebrandt,
//! "Simplifying and isolating failure-inducing input" (delta debugging), in its plain form.

use std::collections::BTreeSet;

use crate::plan::{Plan, places_text};

/// Plans tried at most.
const TRIES_MAX: usize = 300;

/// What is left of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Places of operations in the whole plan.
    pub ops: BTreeSet<usize>,
    /// Places of faults.
    pub faults: BTreeSet<usize>,
}

impl Kept {
    /// All of a plan.
    pub fn all(plan: &Plan) -> Self {
        Self { ops: (0..plan.ops.len()).collect(), faults: (0..plan.faults.len()).collect() }
    }

    /// The command that runs it again.
    pub fn command(&self, seed: u64) -> String {
        format!(
            "cargo run -p cairn-world --release -- --seed {seed} --ops {} --faults {}",
            places_text(&self.ops),
            places_text(&self.faults)
        )
    }
}

struct Shrinker<'a> {
    plan: &'a Plan,
    fails: &'a mut dyn FnMut(&Plan) -> bool,
    tries: usize,
}

impl Shrinker<'_> {
    fn fails(&mut self, kept: &Kept) -> bool {
        if self.tries >= TRIES_MAX {
            return false;
        }
        self.tries += 1;
        (self.fails)(&self.plan.keep(&kept.ops, &kept.faults))
    }

    /// Leaves out the operations of whole clients.
    fn clients(&mut self, kept: &mut Kept) {
        for client in 0..self.plan.shape.clients {
            let mut fewer = kept.clone();
            fewer.ops.retain(|i| self.plan.ops.get(*i).is_some_and(|(c, _)| *c != client));
            if fewer.ops.len() < kept.ops.len() && self.fails(&fewer) {
                *kept = fewer;
            }
        }
    }

    /// Leaves out pieces of one list, halves first, then ever smaller ones.
    fn pieces(&mut self, kept: &mut Kept, of: fn(&mut Kept) -> &mut BTreeSet<usize>) {
        let mut size = of(kept).len().div_ceil(2);
        while size > 0 {
            let all: Vec<usize> = of(kept).iter().copied().collect();
            let mut shorter = false;
            for piece in all.chunks(size) {
                let mut fewer = kept.clone();
                of(&mut fewer).retain(|i| !piece.contains(i));
                if self.fails(&fewer) {
                    *kept = fewer;
                    shorter = true;
                }
            }
            if !shorter || size == 1 {
                size /= 2;
            } else {
                size = size.min(of(kept).len().div_ceil(2));
            }
        }
    }
}

/// The shortest plan found that still fails.
pub fn shrink(plan: &Plan, fails: &mut dyn FnMut(&Plan) -> bool) -> Kept {
    let mut kept = Kept::all(plan);
    let mut shrinker = Shrinker { plan, fails, tries: 0 };
    loop {
        let before = kept.clone();
        shrinker.clients(&mut kept);
        shrinker.pieces(&mut kept, |k| &mut k.faults);
        shrinker.pieces(&mut kept, |k| &mut k.ops);
        if kept == before {
            return kept;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_operations_and_a_fault_that_fail_together_are_found() {
        let plan = (0..).map(Plan::of_seed).find(|p| p.faults.len() > 5).unwrap();
        let culprits = [plan.ops[3], plan.ops[plan.ops.len() / 2]];
        let fault = plan.faults[2];
        let mut fails =
            |p: &Plan| p.faults.contains(&fault) && culprits.iter().all(|op| p.ops.contains(op));
        let kept = shrink(&plan, &mut fails);
        assert!(kept.ops.len() <= 2 && kept.faults.len() == 1, "{kept:?}");
        assert!(kept.command(9).ends_with("--faults 2"));
    }
}
