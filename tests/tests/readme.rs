//! The README says what is so: its code is the code of files that are built and run, its
//! configuration loads, its links lead somewhere.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::{Path, PathBuf};

use backstop::config::Config;
use backstop::config::scenario::Scenario;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// The fenced blocks that follow a comment, with the comment's text.
fn marked_blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    for part in text.split("<!-- ").skip(1) {
        let (mark, rest) = part.split_once(" -->\n").unwrap();
        let block = rest
            .strip_prefix("```")
            .unwrap_or_else(|| panic!("no block after {mark:?}"));
        let (_, block) = block.split_once('\n').unwrap();
        let (block, _) = block.split_once("\n```").unwrap();
        blocks.push((mark.to_owned(), block.to_owned()));
    }
    blocks
}

#[test]
fn code_in_the_readme_is_that_of_the_files_it_names() {
    let mut seen = 0;
    for (mark, block) in marked_blocks(&readme()) {
        let Some(file) = mark.strip_prefix("from ") else {
            continue;
        };
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        assert!(
            text.contains(&block),
            "the block is not in {file}:\n{block}"
        );
        seen += 1;
    }
    assert_eq!(seen, 2);
}

#[test]
fn the_configuration_in_the_readme_loads_without_a_complaint() {
    let blocks = marked_blocks(&readme());
    let (_, block) = blocks.iter().find(|(mark, _)| mark == "config").unwrap();
    let loaded = Config::parse(block, Path::new("README.md"), &|_| None);
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    assert_eq!(loaded.config.services.len(), 3);
}

#[test]
fn the_scenario_in_the_readme_can_be_played_against_its_configuration() {
    let blocks = marked_blocks(&readme());
    let of = |wanted: &str| {
        let (_, block) = blocks.iter().find(|(mark, _)| mark == wanted).unwrap();
        block.clone()
    };
    let config = Config::parse(&of("config"), Path::new("README.md"), &|_| None).config;
    let read = Scenario::parse(&of("scenario"), Path::new("README.md"), &config);
    assert!(read.diagnostics.is_empty(), "{:?}", read.diagnostics);
    assert_eq!(read.scenario.faults.len(), 2);
}

#[test]
fn links_in_the_readme_lead_to_files() {
    let text = readme();
    let links = text
        .split("](")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap());
    let mut seen = 0;
    for link in links.filter(|link| !link.starts_with("http")) {
        assert!(root().join(link).exists(), "{link} is not there");
        seen += 1;
    }
    assert!(seen >= 4);
}
