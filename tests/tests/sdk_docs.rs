//! What the SDK's documentation shows is so: its cases pass, its configuration loads, its commands
//! are there.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use backstop::cases::Suite;
use backstop::config::Config;
use backstop_tests::plugins::root;

/// The fenced blocks of one language in the crate's documentation.
fn blocks(language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("sdk/src/lib.rs")).unwrap();
    let docs: Vec<&str> = text
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .collect();
    let docs = docs.join("\n");
    docs.split(&format!("```{language}\n"))
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_cases_are_cases_and_the_configuration_is_one() {
    let blocks = blocks("toml");
    let cases = blocks
        .iter()
        .find(|block| block.contains("[[case]]"))
        .unwrap();
    assert_eq!(
        Suite::parse(cases, Path::new("cases.toml")).unwrap().len(),
        2
    );

    let config = blocks
        .iter()
        .find(|block| block.contains("[[strategy]]"))
        .unwrap();
    let loaded = Config::parse(config, Path::new("backstop.toml"), &|_| None);
    // The folder is not there; that is all.
    let errors: Vec<_> = loaded
        .diagnostics
        .iter()
        .filter(|found| found.is_error() && found.field != "plugins")
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(loaded.config.strategies.len(), 1);
}

#[test]
fn the_manifest_is_the_one_of_the_example() {
    let example = std::fs::read_to_string(root().join("plugins/examples/rust/Cargo.toml")).unwrap();
    let blocks = blocks("toml");
    let shown = blocks
        .iter()
        .find(|block| block.contains("crate-type"))
        .unwrap();
    for line in shown
        .lines()
        .map(str::trim)
        .filter(|line| !line.contains("backstop-sdk"))
    {
        assert!(example.contains(line), "{line}");
    }
}
