//! Deliberate faults stay where they belong.
//!
//! Layer: house rules. The feature is named by the crate that has it and by nobody else; what
//! production code asks for, what the registry lists and what `docs/testing.md` shows are the
//! same names.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Tree, Violation};

const FEATURE: &str = "mutants";
const OWNER: &str = "nas/sys/Cargo.toml";
const MODULE: &str = "nas/sys/src/mutants.rs";
const REGISTRY: &str = "tests/mutants/registry.toml";
const DOCS: &str = "docs/testing.md";

/// No manifest turns the faults on, and none has them among its default features.
pub fn mutants_are_never_built_in(tree: &Tree) -> Vec<Violation> {
    let mut out = Vec::new();
    for (path, manifest) in tree.files().filter(|(path, _)| path.ends_with("Cargo.toml")) {
        let mut features = false;
        for (line, text) in (1..).zip(manifest.lines()) {
            let text = text.split('#').next().unwrap_or_default().trim();
            if text.starts_with('[') {
                features = text == "[features]";
            }
            let declared = path == OWNER && features && text.replace(' ', "") == "mutants=[]";
            let quoted = text.contains(&format!("\"{FEATURE}\""));
            let passed_on = text.contains(&format!("/{FEATURE}\""));
            let named = features && text.starts_with(FEATURE) && !declared;
            if quoted || passed_on || named {
                let what = format!("the feature `{FEATURE}` is for tests/mutants/run alone");
                out.push(Violation::new(path, line, what));
            }
        }
    }
    out
}

/// The quoted text behind `before`, for every line that has it.
fn quoted<'t>(text: &'t str, before: &str) -> Vec<(usize, &'t str)> {
    let mut out = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let mut rest = content;
        while let Some((_, behind)) = rest.split_once(before) {
            let Some((name, after)) = behind.split_once('"') else { break };
            out.push((line, name));
            rest = after;
        }
    }
    out
}

/// Code, registry and documentation name the same faults.
pub fn mutants_are_registered(tree: &Tree) -> Vec<Violation> {
    let mut out = Vec::new();
    let mut asked: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    for (path, text) in tree.ending("rs").filter(|(path, _)| *path != MODULE) {
        // The house rules plant such calls in their own tests.
        if path.starts_with("tests/") {
            continue;
        }
        asked.extend(quoted(text, "mutant(\"").into_iter().map(|(l, name)| (name, (path, l))));
    }
    let Some(registry) = tree.get(REGISTRY) else {
        return asked
            .into_iter()
            .map(|(name, (path, line))| {
                Violation::new(path, line, format!("{name}: there is no registry"))
            })
            .collect();
    };
    let mut listed = BTreeSet::new();
    for (line, name) in quoted(registry, "name = \"") {
        if !listed.insert(name) {
            out.push(Violation::new(REGISTRY, line, format!("{name} is there twice")));
        }
        if !asked.contains_key(name) {
            out.push(Violation::new(REGISTRY, line, format!("no code asks for {name}")));
        }
        if !tree.get(DOCS).is_some_and(|docs| docs.contains(&format!("| `{name}` |"))) {
            out.push(Violation::new(DOCS, 0, format!("{name} is missing from the table")));
        }
    }
    for (name, (path, line)) in asked {
        if !listed.contains(name) {
            out.push(Violation::new(path, line, format!("{name} is not in the registry")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: fn(&Tree) -> Vec<Violation>, files: &[(&str, &str)]) -> Vec<String> {
        rule(&Tree::of(files)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_manifest_that_turns_faults_on_is_found() {
        for line in [
            "default = [\"mutants\"]",
            "fast = [\"cairn-sys/mutants\"]",
            "mutants = [\"cairn-sys/mutants\"]",
            "cairn-sys = { workspace = true, features = [\"mutants\"] }",
        ] {
            let text = format!("[features]\n{line}\n");
            let found = found(mutants_are_never_built_in, &[("wafl/core/Cargo.toml", &text)]);
            assert_eq!(found.len(), 1, "{line}");
        }
        let own = "[features]\nmutants = []\n";
        assert!(found(mutants_are_never_built_in, &[(OWNER, own)]).is_empty());
        let default = "[features]\ndefault = [\"mutants\"]\nmutants = []\n";
        assert_eq!(found(mutants_are_never_built_in, &[(OWNER, default)]).len(), 1);
    }

    #[test]
    fn code_registry_and_table_must_name_the_same_faults() {
        let code = "if mutant(\"a\") || cairn_sys::mutant(\"b\") {}";
        let registry = "name = \"a\"\nname = \"c\"\n";
        let files = [("raid/group/src/x.rs", code), (REGISTRY, registry), (DOCS, "| `a` |")];
        let found = found(mutants_are_registered, &files);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().any(|f| f.contains("b is not in the registry")));
        assert!(found.iter().any(|f| f.contains("no code asks for c")));
        assert!(found.iter().any(|f| f.contains("c is missing from the table")));
    }
}
