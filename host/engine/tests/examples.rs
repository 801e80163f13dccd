//! The examples run by themselves, and do what they say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::Command;

/// What an example prints. Cargo builds the examples with the tests, in a folder beside theirs.
fn run(name: &str) -> String {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples");
    path.push(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        path.exists(),
        "{name} is not built: cargo test without --test builds it, as does cargo build --examples"
    );
    let output = Command::new(&path).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{name}: {}\n{errors}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_rmcp_example_gets_its_answer_from_the_backup_once_the_primary_is_gone() {
    let printed = run("embed_rmcp");
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines.len(), 2, "{printed}");
    assert!(
        lines[0].contains("21 degrees in Oslo, says primary"),
        "{printed}"
    );
    assert!(
        lines[1].contains("21 degrees in Oslo, says backup"),
        "{printed}"
    );
    assert!(lines[1].contains("served_by"), "{printed}");
}

#[test]
fn the_rmcp_example_is_at_most_forty_lines_long() {
    let source = include_str!("../examples/embed_rmcp.rs");
    assert!(
        source.lines().count() <= 40,
        "{} lines",
        source.lines().count()
    );
}

#[test]
fn the_execute_example_gets_its_answer_from_the_service_that_is_up() {
    let printed = run("execute");
    assert!(printed.starts_with("42 from backup\nafter "), "{printed}");
    assert!(!printed.contains("after 0 refused"), "{printed}");
}

#[test]
fn the_tower_example_gets_its_answer_from_the_service_that_is_up() {
    let printed = run("http_tower");
    assert!(printed.starts_with("42 from backup after "), "{printed}");
    assert!(!printed.contains("after 1 attempts"), "{printed}");
}
