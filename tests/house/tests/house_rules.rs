//! The repository keeps the house rules.

use std::path::Path;

use cairn_house::{RULES, Tree};

fn check(name: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tree = Tree::read(&root).expect("the tree can be read");
    assert!(tree.files().count() > 20, "the tree was read");
    let (_, rule) = RULES.iter().find(|(rule, _)| *rule == name).expect("a rule");
    let violations: Vec<String> = rule(&tree).iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{}\n{}", violations.len(), violations.join("\n"));
}

macro_rules! rules {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn every_rule_is_checked() {
            let checked = [$(stringify!($name)),*];
            assert!(RULES.iter().all(|(name, _)| checked.contains(name)));
        }
    };
}

rules!(
    arrows,
    lints_are_the_workspaces,
    versions_are_the_workspaces,
    file_sizes,
    module_docs,
    banned_words,
    machine_paths,
    vendor_marks,
    dependencies_have_reasons,
    mutants_are_never_built_in,
    mutants_are_registered,
    mutants_have_tests,
    locks_have_ranks,
    the_lock_order_is_documented,
    the_scheduler_is_never_built_in,
);
