//! The house rules, as functions from the tree of sources to a list of violations.
//!
//! Layer: tests only; uses nothing but the standard library, so that it is built in a second.
//! Invariants: a rule sees text, not the file system, so each is tested with a planted violation;
//! words that the rules ban are put together from halves here, because the rules read this file
//! as well.
//! Source: `docs/architecture.md` (arrows), `CONTRIBUTING` part of the README (sizes, words).

mod arrows;
mod locks;
mod mutants;
mod tree;
mod words;

pub use arrows::{arrows, lints_are_the_workspaces, versions_are_the_workspaces};
pub use locks::{locks_have_ranks, the_lock_order_is_documented, the_scheduler_is_never_built_in};
pub use mutants::{mutants_are_never_built_in, mutants_are_registered, mutants_have_tests};
pub use tree::{ReadError, Tree};
pub use words::{
    banned_words, dependencies_have_reasons, file_sizes, machine_paths, module_docs, vendor_marks,
};

/// One rule: its name and its check.
pub type Rule = (&'static str, fn(&Tree) -> Vec<Violation>);

/// Every rule.
pub const RULES: [Rule; 15] = [
    ("arrows", arrows),
    ("lints_are_the_workspaces", lints_are_the_workspaces),
    ("versions_are_the_workspaces", versions_are_the_workspaces),
    ("file_sizes", file_sizes),
    ("module_docs", module_docs),
    ("banned_words", banned_words),
    ("machine_paths", machine_paths),
    ("vendor_marks", vendor_marks),
    ("dependencies_have_reasons", dependencies_have_reasons),
    ("mutants_are_never_built_in", mutants_are_never_built_in),
    ("mutants_are_registered", mutants_are_registered),
    ("mutants_have_tests", mutants_have_tests),
    ("locks_have_ranks", locks_have_ranks),
    ("the_lock_order_is_documented", the_lock_order_is_documented),
    ("the_scheduler_is_never_built_in", the_scheduler_is_never_built_in),
];

/// A place where a rule is broken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// File, relative to the root of the repository.
    pub path: String,
    /// Line, counted from 1; 0 for the whole file.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl Violation {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

impl core::fmt::Display for Violation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}
