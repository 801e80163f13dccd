//! The file's contract: what is read, what is refused, and what is said about it.

mod entries;
mod scenario;
mod sections;
mod shapes;
mod whole;

use super::*;

fn env(name: &str) -> Option<String> {
    (name == "TOKEN").then(|| "s3cret".to_owned())
}

fn parse(text: &str) -> Loaded {
    Config::parse(text, Path::new("backstop.toml"), &env)
}

/// The one diagnostic of a text, as (line, column, field), message and reason, remedy.
#[track_caller]
fn only(text: &str) -> ((usize, usize, String), String, String, Severity) {
    let found = parse(text).diagnostics;
    assert_eq!(found.len(), 1, "{found:#?}");
    let d = found.into_iter().next().unwrap();
    (
        (d.line, d.column, d.field),
        format!("{}: {}", d.message, d.reason),
        d.remedy,
        d.severity,
    )
}

/// A good service before the text under test, so that nothing else is amiss: three lines.
const SERVICE: &str = "[[service]]\nname = 'ok'\nurl = 'http://localhost/mcp'\n";

#[track_caller]
fn error(text: &str, place: (usize, usize, &str), said: &str, remedy: &str) {
    let (at, message, advice, severity) = only(&format!("{SERVICE}{text}"));
    assert_eq!((at.0, at.1, at.2.as_str()), place);
    assert!(message.contains(said), "{message:?} lacks {said:?}");
    assert!(advice.contains(remedy), "{advice:?} lacks {remedy:?}");
    assert_eq!(severity, Severity::Error);
}

#[track_caller]
fn warning(text: &str, place: (usize, usize, &str), said: &str, remedy: &str) {
    let (at, message, advice, severity) = only(&format!("{SERVICE}{text}"));
    assert_eq!((at.0, at.1, at.2.as_str()), place);
    assert!(message.contains(said), "{message:?} lacks {said:?}");
    assert!(advice.contains(remedy), "{advice:?} lacks {remedy:?}");
    assert_eq!(severity, Severity::Warning);
}
