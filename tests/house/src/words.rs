//! Sizes, module docs and words.
//!
//! Layer: house rules.

use crate::{Tree, Violation};

/// Lines of a source file; one that passes this is a design question.
const LINES_MAX: usize = 1000;
/// Dependencies that may share one reason.
const SHARED_REASON_MAX: usize = 3;

/// Files stay readable in one sitting.
pub fn file_sizes(tree: &Tree) -> Vec<Violation> {
    let lines = |(path, text): (&str, &str)| {
        let lines = text.lines().count();
        let what = format!("{lines} lines, at most {LINES_MAX}");
        (lines > LINES_MAX).then(|| Violation::new(path, lines, what))
    };
    tree.ending("rs").filter_map(lines).collect()
}

/// Every module says what it is.
pub fn module_docs(tree: &Tree) -> Vec<Violation> {
    let lacks = |(path, text): &(&str, &str)| {
        !path.contains("/fixtures/") && !text.trim_start().starts_with("//!")
    };
    let broken = tree.ending("rs").filter(lacks);
    broken.map(|(path, _)| Violation::new(path, 1, "does not open with `//!`")).collect()
}

/// Finds words in lines.
fn find(
    path: &str,
    text: &str,
    words: &[String],
    out: &mut Vec<Violation>,
    why: impl Fn(&str) -> String,
) {
    for (line, content) in (1..).zip(text.lines()) {
        for word in words.iter().filter(|word| content.contains(word.as_str())) {
            out.push(Violation::new(path, line, why(word)));
        }
    }
}

/// No unfinished code, no debugging left behind, no tests that sleep or are passed over.
pub fn banned_words(tree: &Tree) -> Vec<Violation> {
    let words = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("dbg", "!("),
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
        concat!("XX", "X"),
        concat!("#[ig", "nore"),
        concat!("#[al", "low("),
        concat!("#![al", "low("),
        concat!("thread::", "sleep"),
    ]
    .map(str::to_owned);
    let mut out = Vec::new();
    for (path, text) in tree.ending("rs") {
        // A module that several test binaries include is used by each in part.
        let shared = path.contains("/tests/common/");
        // Load generators wait by the clock: that is what they are for.
        let load = path.starts_with("tests/perf/");
        let applies = |word: &&String| match word.as_str() {
            concat!("#[al", "low(") | concat!("#![al", "low(") => !shared,
            concat!("thread::", "sleep") => !load,
            _ => true,
        };
        let words: Vec<String> = words.iter().filter(applies).cloned().collect();
        find(path, text, &words, &mut out, |word| format!("`{word}` is banned"));
    }
    out
}

/// No path of one machine.
pub fn machine_paths(tree: &Tree) -> Vec<Violation> {
    let words = [
        concat!("/wo", "rk/"),
        concat!("../sha", "red"),
        concat!("/ro", "ot/"),
        concat!("/tmp/br", "ief"),
        concat!("/ho", "me/"),
    ]
    .map(str::to_owned);
    let mut out = Vec::new();
    for (path, text) in tree.files() {
        find(path, text, &words, &mut out, |word| format!("`{word}` is a path of one machine"));
    }
    out
}

/// No marks of other vendors.
pub fn vendor_marks(tree: &Tree) -> Vec<Violation> {
    let words = [
        concat!("Net", "App"),
        concat!("ON", "TAP"),
        concat!("Flex", "Vol"),
        concat!("Snap", "Mirror"),
        concat!("Flex", "Clone"),
        concat!("Flex", "Group"),
    ]
    .map(str::to_owned);
    let mut out = Vec::new();
    for (path, text) in tree.files() {
        find(path, text, &words, &mut out, |word| format!("`{word}` is another vendor's mark"));
    }
    out
}

/// Each dependency from outside has its reason in a comment above it, shared by few.
pub fn dependencies_have_reasons(tree: &Tree) -> Vec<Violation> {
    let mut out = Vec::new();
    let Some(manifest) = tree.get("Cargo.toml") else { return out };
    let (mut inside, mut reason, mut shared) = (false, false, 0);
    for (line, text) in (1..).zip(manifest.lines()) {
        let text = text.trim();
        if text.starts_with('[') {
            inside = text == "[workspace.dependencies]";
            reason = false;
        } else if !inside {
            continue;
        } else if text.starts_with('#') {
            (reason, shared) = (true, 0);
        } else if text.is_empty() {
            reason = false;
        } else if let Some((name, rest)) = text.split_once('=') {
            shared += 1;
            let ours = rest.contains("path =");
            if !ours && (!reason || shared > SHARED_REASON_MAX) {
                let what = format!("{}: no reason in a comment above it", name.trim());
                out.push(Violation::new("Cargo.toml", line, what));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: fn(&Tree) -> Vec<Violation>, path: &str, text: &str) -> usize {
        rule(&Tree::of(&[(path, text)])).len()
    }

    #[test]
    fn a_file_of_too_many_lines_is_found() {
        assert_eq!(found(file_sizes, "nas/x/src/lib.rs", &"//\n".repeat(1000)), 0);
        assert_eq!(found(file_sizes, "nas/x/src/lib.rs", &"//\n".repeat(1001)), 1);
        assert_eq!(found(file_sizes, "docs/long.md", &"x\n".repeat(5000)), 0);
    }

    #[test]
    fn a_module_without_docs_is_found() {
        assert_eq!(found(module_docs, "nas/x/src/a.rs", "use core::fmt;\n"), 1);
        assert_eq!(found(module_docs, "nas/x/src/a.rs", "// A comment.\n//! Docs.\n"), 1);
        assert_eq!(found(module_docs, "nas/x/src/a.rs", "\n//! Docs.\n"), 0);
    }

    #[test]
    fn each_banned_word_is_found() {
        for line in [
            concat!("to", "do!()"),
            concat!("unimple", "mented!()"),
            concat!("dbg", "!(x)"),
            concat!("// FIX", "ME later"),
            concat!("// TO", "DO later"),
            concat!("#[ig", "nore]"),
            concat!("#[ig", "nore = \"slow\"]"),
            concat!("#[al", "low(dead_code)]"),
            concat!("std::thread::", "sleep(d)"),
        ] {
            let text = format!("//! Docs.\nfn f() {{ {line} }}\n");
            assert_eq!(found(banned_words, "tests/x/tests/t.rs", &text), 1, "{line}");
        }
        assert_eq!(found(banned_words, "nas/x/src/a.rs", "//! A method to do it.\n"), 0);
    }

    #[test]
    fn a_path_of_one_machine_is_found_in_any_text() {
        for path in ["nas/x/src/a.rs", "docs/a.md", "Makefile", "tests/kernel/run.py"] {
            assert_eq!(found(machine_paths, path, concat!("cd /wo", "rk/main")), 1, "{path}");
            assert_eq!(found(machine_paths, path, concat!("see ../sha", "red/x")), 1, "{path}");
        }
    }

    #[test]
    fn another_vendors_mark_is_found() {
        assert_eq!(found(vendor_marks, "README.md", concat!("like Flex", "Vol volumes")), 1);
        assert_eq!(found(vendor_marks, "README.md", "volumes, aggregates, snapshots"), 0);
    }

    #[test]
    fn a_dependency_without_a_reason_is_found() {
        let head = "[workspace.dependencies]\n";
        let rule =
            |body: &str| found(dependencies_have_reasons, "Cargo.toml", &format!("{head}{body}"));
        assert_eq!(rule("a = \"1\"\n"), 1);
        assert_eq!(rule("# Reason.\na = \"1\"\n\nb = \"1\"\n"), 1);
        assert_eq!(rule("# Reason.\na = \"1\"\nb = \"1\"\nc = \"1\"\nd = \"1\"\n"), 1);
        assert_eq!(rule("# Reason.\na = \"1\"\n# Another.\nb = { version = \"1\" }\n"), 0);
        assert_eq!(rule("x = { path = \"nas/x\" }\n"), 0);
    }
}
