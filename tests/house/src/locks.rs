//! Locks have ranks, and the scheduler of the interleaving tests stays out of what ships.
//!
//! Layer: house rules.

use crate::{Tree, Violation};

/// Where locks are made of those of `std` and tokio.
const OWNER: &str = "nas/sys/src/";
/// Crates whose atomics the interleaving tests preempt at.
const INTERLEAVED: [&str; 3] = ["wafl/core/src/", "wafl/nvlog/src/", "raid/group/src/"];
/// The feature, and the crate behind it.
const SCHEDULER: &str = "shuttle";

/// The part of a source file that ships, or nothing.
fn ships<'t>(path: &str, text: &'t str) -> &'t str {
    let production = ["nas/", "protocols/", "wafl/", "raid/"].iter().any(|p| path.starts_with(p));
    let tests = path.contains("/tests/") || path.ends_with("/tests.rs");
    if !production || !path.contains("/src/") || path.starts_with(OWNER) || tests {
        return "";
    }
    text.split("#[cfg(test)]\nmod ").next().unwrap_or_default()
}

/// Every lock is one of `cairn_sys::lock`, which knows its rank.
pub fn locks_have_ranks(tree: &Tree) -> Vec<Violation> {
    let mut out = Vec::new();
    for (path, text) in tree.ending("rs") {
        for (line, content) in (1..).zip(ships(path, text).lines()) {
            let content = content.split("//").next().unwrap_or_default();
            let from = |home: &str, names: &[&str]| {
                content.split_once(home).is_some_and(|(_, rest)| {
                    let words = rest.split(|c: char| !c.is_alphanumeric() && c != '_');
                    words.into_iter().any(|word| names.contains(&word))
                })
            };
            if from("std::sync::", &["Mutex", "RwLock", "Condvar"])
                || from("tokio::sync::", &["Mutex", "RwLock"])
                || content.contains("parking_lot")
            {
                out.push(Violation::new(path, line, "a lock without a rank: use cairn_sys::lock"));
            }
            let atomics = content.contains("std::sync::atomic");
            if atomics && INTERLEAVED.iter().any(|crates| path.starts_with(crates)) {
                let what = "an atomic that no test preempts at: use cairn_sys::lock::atomic";
                out.push(Violation::new(path, line, what));
            }
        }
    }
    out
}

/// No manifest turns the scheduler on, and what ships has it as an option at the most.
pub fn the_scheduler_is_never_built_in(tree: &Tree) -> Vec<Violation> {
    let mut out = Vec::new();
    for (path, manifest) in tree.files().filter(|(path, _)| path.ends_with("Cargo.toml")) {
        let mut header = "";
        for (line, text) in (1..).zip(manifest.lines()) {
            let text = text.split('#').next().unwrap_or_default().trim();
            if text.starts_with('[') {
                header = text;
            }
            let default = header == "[features]" && text.starts_with("default");
            let asked = text.contains("features = [") && text.contains(SCHEDULER);
            let required = text.starts_with("required-features");
            let needed = header == "[dependencies]"
                && text.starts_with(SCHEDULER)
                && !text.contains("optional = true");
            if (default && text.contains(SCHEDULER)) || (asked && !required) || needed {
                let what = format!("`{SCHEDULER}` is for the interleaving tests alone");
                out.push(Violation::new(path, line, what));
            }
        }
    }
    out
}

const RANKS: &str = "nas/sys/src/lock.rs";
const DOCS: &str = "docs/architecture.md";

/// The documentation shows the ranks in the order that is asserted.
pub fn the_lock_order_is_documented(tree: &Tree) -> Vec<Violation> {
    let (Some(ranks), Some(docs)) = (tree.get(RANKS), tree.get(DOCS)) else { return Vec::new() };
    let Some((_, body)) = ranks.split_once("pub enum Rank {") else {
        return vec![Violation::new(RANKS, 0, "there are no ranks")];
    };
    let body = body.split("\n}").next().unwrap_or_default();
    let names = body.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let names: Vec<&str> = names.filter_map(|line| line.strip_suffix(',')).collect();
    let rows = docs.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let shown: Vec<&str> = rows.filter(|name| names.contains(name)).collect();
    if names == shown {
        return Vec::new();
    }
    vec![Violation::new(DOCS, 0, format!("the ranks are {names:?}, the table shows {shown:?}"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: fn(&Tree) -> Vec<Violation>, path: &str, text: &str) -> usize {
        rule(&Tree::of(&[(path, text)])).len()
    }

    #[test]
    fn a_lock_without_a_rank_is_found() {
        for line in [
            "use std::sync::{Arc, Mutex};",
            "use std::sync::RwLock;",
            "a: std::sync::Condvar,",
            "lock: tokio::sync::Mutex<()>,",
            "use parking_lot::Mutex;",
            "use std::sync::atomic::AtomicU64;",
        ] {
            assert_eq!(found(locks_have_ranks, "wafl/core/src/a.rs", line), 1, "{line}");
            assert_eq!(found(locks_have_ranks, "nas/sys/src/lock.rs", line), 0, "{line}");
            assert_eq!(found(locks_have_ranks, "tests/sim/src/exec.rs", line), 0, "{line}");
            let test = format!("fn a() {{}}\n#[cfg(test)]\nmod tests {{\n{line}\n}}\n");
            assert_eq!(found(locks_have_ranks, "wafl/core/src/a.rs", &test), 0, "{line}");
        }
        for line in [
            "use std::sync::Arc;",
            "use cairn_sys::lock::{Mutex, RwLock};",
            "use tokio::sync::{Notify, watch};",
            "// a std::sync::Mutex would do",
            "use std::sync::MutexGuard;",
        ] {
            assert_eq!(found(locks_have_ranks, "raid/group/src/a.rs", line), 0, "{line}");
        }
        let atomic = "use std::sync::atomic::AtomicU64;";
        assert_eq!(found(locks_have_ranks, "protocols/nfs/src/a.rs", atomic), 0);
    }

    #[test]
    fn a_table_in_another_order_than_the_ranks_is_found() {
        let ranks = "pub enum Rank {\n    /// One.\n    One,\n    // All.\n    Two,\n}\n";
        let rule = |docs: &str| {
            the_lock_order_is_documented(&Tree::of(&[(RANKS, ranks), (DOCS, docs)])).len()
        };
        assert_eq!(rule("| `One` | a |\n\n| `Two` | b |\n"), 0);
        assert_eq!(rule("| `Two` | b |\n| `One` | a |\n"), 1);
        assert_eq!(rule("| `One` | a |\n"), 1);
    }

    #[test]
    fn a_manifest_that_builds_the_scheduler_in_is_found() {
        let rule = |text: &str| found(the_scheduler_is_never_built_in, "wafl/x/Cargo.toml", text);
        assert_eq!(rule("[features]\ndefault = [\"shuttle\"]\n"), 1);
        assert_eq!(rule("[features]\ndefault = [\"cairn-sys/shuttle\"]\n"), 1);
        assert_eq!(rule("[dependencies]\nshuttle.workspace = true\n"), 1);
        let asked = "cairn-sys = { workspace = true, features = [\"shuttle\"] }\n";
        assert_eq!(rule(&format!("[dependencies]\n{asked}")), 1);
        assert_eq!(rule(&format!("[dev-dependencies]\n{asked}")), 1);
        assert_eq!(rule("[features]\nshuttle = [\"cairn-sys/shuttle\"]\n"), 0);
        assert_eq!(rule("[dependencies]\nshuttle = { workspace = true, optional = true }\n"), 0);
        assert_eq!(rule("[[test]]\nrequired-features = [\"shuttle\"]\n"), 0);
    }
}
