//! Deliberate faults stay where they belong.
//!
//! Layer: house rules. The feature is named by the crate that has it and by nobody else; what
//! production code asks for, what the registry lists and what `docs/testing.md` shows are the
//! same names, and the tests that must notice them are there.

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

/// The tests that the registry names are there: nothing runs all of them before each change.
pub fn mutants_have_tests(tree: &Tree) -> Vec<Violation> {
    let registry = tree.get(REGISTRY).unwrap_or_default();
    let named = quoted(registry, "caught_by = \"");
    let missing = named.into_iter().filter(|(_, caught_by)| !has_test(tree, caught_by));
    let violation =
        |(line, caught_by)| Violation::new(REGISTRY, line, format!("there is no test {caught_by}"));
    missing.map(violation).collect()
}

/// Whether a test is there that is named as nextest does: `package::program module::test`, or
/// `package module::test` for one inside.
fn has_test(tree: &Tree, caught_by: &str) -> bool {
    let named = caught_by.strip_prefix("shuttle:").unwrap_or(caught_by);
    let Some((binary, test)) = named.split_once(' ') else { return false };
    let (package, program) = match binary.split_once("::") {
        Some((package, program)) => (package, Some(program)),
        None => (binary, None),
    };
    let name = |name: &str| format!("name = \"{name}\"");
    let is_its = |text: &str| text.lines().any(|line| line == name(package));
    let mut manifests = tree.files().filter(|(path, _)| path.ends_with("/Cargo.toml"));
    let Some((path, manifest)) = manifests.find(|(_, text)| is_its(text)) else { return false };
    let folder = path.trim_end_matches("Cargo.toml");
    let (modules, function) = test.rsplit_once("::").unwrap_or(("", test));
    let declared = format!("fn {function}(");
    let Some(program) = program else {
        let inside = format!("{folder}src/");
        let mut own = tree.files().filter(|(path, _)| path.starts_with(&inside));
        return own.any(|(_, text)| text.contains(&declared));
    };
    // Each file is a program of its own, unless the manifest names them.
    let all = !manifest.contains("autotests = false");
    if !all && !manifest.lines().any(|line| line == name(program)) {
        return false;
    }
    let below = format!("{folder}tests/");
    let places = if modules.is_empty() {
        [format!("{below}{program}.rs"), format!("{below}{program}/main.rs")]
    } else {
        let module = modules.replace("::", "/");
        [format!("{below}{module}.rs"), format!("{below}{program}/{module}.rs")]
    };
    places.iter().any(|path| tree.get(path).is_some_and(|text| text.contains(&declared)))
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

    #[test]
    fn a_test_that_is_not_there_is_found() {
        let files = [
            ("raid/group/Cargo.toml", "[package]\nname = \"cairn-raid-group\"\n"),
            ("raid/group/src/x.rs", "fn inside() {}"),
            ("raid/group/tests/all.rs", "mod crash;\nfn alone() {}"),
            ("raid/group/tests/crash.rs", "fn there() {}"),
            ("raid/group/tests/more/main.rs", "mod deep;"),
            ("raid/group/tests/more/deep.rs", "fn below() {}"),
            ("nas/x/Cargo.toml", "name = \"cairn-x\"\nautotests = false\nname = \"all\"\n"),
            ("nas/x/tests/all.rs", "mod slow;"),
            ("nas/x/tests/slow.rs", "fn waits() {}"),
        ];
        for (test, is_there) in [
            ("cairn-raid-group tests::inside", true),
            ("cairn-raid-group::all crash::there", true),
            ("cairn-raid-group::all alone", true),
            ("shuttle:cairn-raid-group::more deep::below", true),
            ("cairn-raid-group::crash there", true),
            ("cairn-raid-group tests::there", false),
            ("cairn-raid-group::all crash::the", false),
            ("cairn-raid-group::all there", false),
            ("cairn-x::all slow::waits", true),
            ("cairn-x::slow waits", false),
            ("cairn-raid tests::inside", false),
            ("inside", false),
        ] {
            let registry = format!("caught_by = \"{test}\"\n");
            let all: Vec<_> = files.into_iter().chain([(REGISTRY, registry.as_str())]).collect();
            assert_eq!(found(mutants_have_tests, &all).is_empty(), is_there, "{test}");
        }
    }
}
