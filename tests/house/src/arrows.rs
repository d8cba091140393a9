//! Which crate may use which.
//!
//! Layer: house rules. Only what ships is bound: `[dev-dependencies]` are free.

use std::collections::BTreeMap;

use crate::{Tree, Violation};

/// What a crate in a folder may use of ours; the first line whose folder fits decides. `*` at the
/// end stands for anything.
const MAY_USE: [(&str, &[&str]); 14] = [
    ("nas/units/", &[]),
    ("nas/sys/", &["cairn-units"]),
    ("raid/api/", &["cairn-units", "cairn-sys"]),
    ("raid/disk/", &["cairn-units", "cairn-sys"]),
    ("raid/", &["cairn-units", "cairn-sys", "cairn-raid-*"]),
    ("protocols/op/", &["cairn-units", "cairn-sys"]),
    ("protocols/cf/", &["cairn-units", "cairn-sys", "cairn-op"]),
    ("protocols/oncrpc/", &["cairn-units", "cairn-sys"]),
    ("protocols/", &["cairn-units", "cairn-sys", "cairn-op", "cairn-oncrpc"]),
    ("wafl/format/", &["cairn-units", "cairn-sys"]),
    (
        "wafl/",
        &["cairn-units", "cairn-sys", "cairn-op", "cairn-cf", "cairn-raid-api", "cairn-wafl-*"],
    ),
    ("nas/nmod/", &["cairn-units", "cairn-sys", "cairn-op", "cairn-cf"]),
    ("nas/mhost/", &["cairn-units", "cairn-sys", "cairn-op", "cairn-cf"]),
    ("nas/", &["cairn-*"]),
];

/// Crates that nothing that ships may use.
const TESTS_ONLY: [&str; 4] = ["cairn-sim", "cairn-model", "cairn-house", "cairn-interleave"];

/// The part of a manifest that a line stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Ships,
    Development,
    Other,
}

fn section(header: &str) -> Section {
    let ships = header.ends_with("dependencies") || header.contains("dependencies.");
    if header.contains("dev-dependencies") {
        Section::Development
    } else if ships && header != "workspace.dependencies" {
        Section::Ships
    } else {
        Section::Other
    }
}

/// Dependencies of a manifest: line, name, the rest of the line, section.
fn dependencies(manifest: &str) -> Vec<(usize, String, String, Section)> {
    let (mut out, mut now) = (Vec::new(), Section::Other);
    for (line, text) in (1..).zip(manifest.lines()) {
        let text = text.trim();
        if let Some(header) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            now = section(header);
            let table = header.rsplit_once("dependencies.");
            if let (Some((_, name)), true) = (table, now != Section::Other) {
                out.push((line, name.to_owned(), "workspace = true".to_owned(), now));
                now = Section::Other;
            }
        } else if let (Some((name, rest)), true) = (text.split_once('='), now != Section::Other) {
            if text.starts_with('#') {
                continue;
            }
            let (name, dotted) = name.trim().split_once('.').unwrap_or((name.trim(), ""));
            out.push((line, name.to_owned(), format!("{dotted} = {}", rest.trim()), now));
        }
    }
    out
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// Manifests of crates (not the workspace's own).
fn crates(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    tree.files().filter(|(path, _)| path.ends_with("/Cargo.toml"))
}

/// Dependencies follow the arrows of the architecture: nothing calls up.
pub fn arrows(tree: &Tree) -> Vec<Violation> {
    let mut out = Vec::new();
    for (path, manifest) in crates(tree) {
        if path.starts_with("tests/") {
            continue;
        }
        let rule = MAY_USE.iter().find(|(folder, _)| path.starts_with(folder));
        for (line, name, _, section) in dependencies(manifest) {
            if section != Section::Ships || !name.starts_with("cairn-") {
                continue;
            }
            if TESTS_ONLY.contains(&name.as_str()) {
                out.push(Violation::new(path, line, format!("{name} is for tests only")));
                continue;
            }
            match rule {
                Some((_, may)) if may.iter().any(|pattern| fits(pattern, &name)) => {}
                Some((_, may)) => {
                    let what = format!("may not use {name}, only {may:?}");
                    out.push(Violation::new(path, line, what));
                }
                None => {
                    let what = "no rule says what this folder may use: add one";
                    out.push(Violation::new(path, line, what));
                }
            }
        }
    }
    out
}

/// Whether a manifest belongs to the workspace (a crate with its own `[workspace]` does not).
fn in_workspace(tree: &Tree, path: &str, manifest: &str) -> bool {
    let excluded = tree.get("Cargo.toml").is_some_and(|root| {
        let line = root.lines().find(|l| l.trim_start().starts_with("exclude"));
        let folder = path.trim_end_matches("/Cargo.toml");
        line.is_some_and(|l| l.contains(&format!("\"{folder}\"")))
    });
    !excluded && !manifest.lines().any(|line| line.trim() == "[workspace]")
}

/// Every crate takes the lints of the workspace.
pub fn lints_are_the_workspaces(tree: &Tree) -> Vec<Violation> {
    let lacks = |(path, manifest): &(&str, &str)| {
        let mut lines = manifest.lines().map(str::trim).skip_while(|l| *l != "[lints]");
        in_workspace(tree, path, manifest) && lines.nth(1) != Some("workspace = true")
    };
    let broken = crates(tree).filter(lacks);
    broken.map(|(path, _)| Violation::new(path, 0, "[lints] workspace = true is missing")).collect()
}

/// Versions stand in the root manifest only.
pub fn versions_are_the_workspaces(tree: &Tree) -> Vec<Violation> {
    let mut out = Vec::new();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for (path, manifest) in crates(tree) {
        if !in_workspace(tree, path, manifest) {
            continue;
        }
        for (line, name, rest, _) in dependencies(manifest) {
            let workspaces = rest.replace(' ', "").contains("workspace=true");
            if !workspaces {
                let what = format!("{name} must be taken from the workspace");
                out.push(Violation::new(path, line, what));
            }
        }
        let name = manifest.lines().find_map(|l| l.trim().strip_prefix("name = "));
        if let Some(other) = name.and_then(|n| names.insert(n.to_owned(), path.to_owned())) {
            out.push(Violation::new(path, 0, format!("has the name of {other}")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: fn(&Tree) -> Vec<Violation>, path: &str, text: &str) -> Vec<String> {
        rule(&Tree::of(&[(path, text)])).into_iter().map(|v| v.to_string()).collect()
    }

    #[test]
    fn a_protocol_that_uses_the_storage_manager_is_found() {
        let text = "[dependencies]\ncairn-op.workspace = true\ncairn-wafl-core.workspace = true\n";
        let found = found(arrows, "protocols/nfs/Cargo.toml", text);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains(":3: may not use cairn-wafl-core"), "{found:?}");
    }

    #[test]
    fn a_protocol_that_uses_the_fabric_is_found() {
        let text = "[dependencies]\ncairn-cf = { workspace = true }\n";
        assert_eq!(found(arrows, "protocols/smb/Cargo.toml", text).len(), 1);
    }

    #[test]
    fn raid_that_calls_up_is_found() {
        for name in ["cairn-wafl-format", "cairn-op", "cairn-cf", "cairn-nmod", "cairn-nfs"] {
            let text = format!("[dependencies]\n{name}.workspace = true\n");
            assert_eq!(found(arrows, "raid/group/Cargo.toml", &text).len(), 1, "{name}");
        }
    }

    #[test]
    fn the_storage_manager_sees_only_the_raid_interface() {
        for name in ["cairn-raid-group", "cairn-raid-disk", "cairn-raid-parity", "cairn-nfs"] {
            let text = format!("[dependencies.{name}]\nworkspace = true\n");
            assert_eq!(found(arrows, "wafl/core/Cargo.toml", &text).len(), 1, "{name}");
        }
        let dev = "[dev-dependencies]\ncairn-raid-group.workspace = true\n";
        assert!(found(arrows, "wafl/core/Cargo.toml", dev).is_empty());
    }

    #[test]
    fn what_ships_never_uses_simulator_or_model() {
        for name in TESTS_ONLY {
            let text = format!("[target.'cfg(unix)'.dependencies]\n{name}.workspace = true\n");
            assert_eq!(found(arrows, "nas/node/Cargo.toml", &text).len(), 1, "{name}");
        }
    }

    #[test]
    fn the_front_of_the_node_is_free_of_storage() {
        for name in ["cairn-wafl-core", "cairn-raid-api"] {
            let text = format!("[dependencies]\n{name}.workspace = true\n");
            assert_eq!(found(arrows, "nas/nmod/Cargo.toml", &text).len(), 1, "{name}");
        }
    }

    #[test]
    fn a_crate_in_an_unknown_folder_is_found() {
        let text = "[dependencies]\ncairn-units.workspace = true\n";
        assert_eq!(found(arrows, "elsewhere/x/Cargo.toml", text).len(), 1);
    }

    #[test]
    fn a_crate_without_the_workspaces_lints_is_found() {
        let path = "nas/x/Cargo.toml";
        assert_eq!(found(lints_are_the_workspaces, path, "[package]\n").len(), 1);
        let good = "[lints]\nworkspace = true\n";
        assert!(found(lints_are_the_workspaces, path, good).is_empty());
        let own = "[workspace]\n";
        assert!(found(lints_are_the_workspaces, path, own).is_empty());
    }

    #[test]
    fn a_version_outside_of_the_root_is_found() {
        for line in ["serde = \"1\"", "serde = { version = \"1\" }", "x = { path = \"../x\" }"] {
            let text = format!("[dependencies]\n{line}\n");
            let found = found(versions_are_the_workspaces, "nas/x/Cargo.toml", &text);
            assert_eq!(found.len(), 1, "{line}");
        }
        let good = "[dependencies]\nserde.workspace = true\nx = { workspace = true }\n";
        assert!(found(versions_are_the_workspaces, "nas/x/Cargo.toml", good).is_empty());
    }

    #[test]
    fn two_crates_of_one_name_are_found() {
        let text = "[package]\nname = \"a\"\n";
        let tree = Tree::of(&[("nas/a/Cargo.toml", text), ("nas/b/Cargo.toml", text)]);
        assert_eq!(versions_are_the_workspaces(&tree).len(), 1);
    }
}
