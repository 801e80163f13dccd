//! What the demo breaks, and what it expects to see.

use serde_json::{Map, Value};

use super::server::{Broken, Fault};

/// What is done to the two servers before a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Damage {
    None,
    /// The first server does this.
    Primary(Broken),
    /// Both do.
    Both(Broken),
    /// The first refuses connections.
    PrimaryDown,
    /// Both do.
    AllDown,
}

/// How a call must end, or the demo fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// Answered at once, by the first server.
    Healthy,
    /// Saved, by this server.
    By(&'static str),
    /// Saved by another operation.
    OtherOperation,
    /// Saved by the last known good answer.
    Stale,
    /// A clean error, with this kind of first cause.
    Fails(&'static str),
    /// A clean error that says that the outcome is unknown.
    Unknown,
}

/// One call of the demo.
pub(super) struct Scene {
    pub(super) name: &'static str,
    pub(super) says: &'static str,
    pub(super) damage: Damage,
    pub(super) tool: &'static str,
    pub(super) arguments: Map<String, Value>,
    pub(super) expected: Expected,
}

pub(super) fn scenes() -> Vec<Scene> {
    let always = |fault| Broken {
        fault,
        tool: None,
        once: false,
    };
    let once = |fault| Broken {
        fault,
        tool: None,
        once: true,
    };
    let one = |name: &str, value: &str| Map::from_iter([(name.to_owned(), Value::from(value))]);
    let scene = |name, says, damage, expected| Scene {
        name,
        says,
        damage,
        tool: "weather",
        arguments: one("city", "Oslo"),
        expected,
    };
    vec![
        scene(
            "healthy",
            "both servers are well",
            Damage::None,
            Expected::Healthy,
        ),
        scene(
            "refused",
            "the primary refuses connections",
            Damage::PrimaryDown,
            Expected::By("secondary"),
        ),
        scene(
            "silent",
            "the primary takes the call and stays silent",
            Damage::Primary(always(Fault::Silent)),
            Expected::By("secondary"),
        ),
        scene(
            "503",
            "the primary answers 503",
            Damage::Primary(always(Fault::Status(503, None))),
            Expected::By("secondary"),
        ),
        scene(
            "429",
            "the primary throttles once: Retry-After: 1",
            Damage::Primary(once(Fault::Status(429, Some(1)))),
            Expected::By("primary"),
        ),
        scene(
            "500-once",
            "the primary answers 500 once",
            Damage::Primary(once(Fault::Status(500, None))),
            Expected::By("primary"),
        ),
        scene(
            "stream-cut",
            "the primary drops the connection in the middle of an answer",
            Damage::Primary(once(Fault::Cut)),
            Expected::By("primary"),
        ),
        Scene {
            arguments: Map::new(),
            ..scene(
                "invalid-parameter",
                "the caller forgets an argument",
                Damage::None,
                Expected::Fails("InvalidParameter"),
            )
        },
        Scene {
            tool: "create_ticket",
            arguments: one("title", "printer on fire"),
            ..scene(
                "unsafe-timeout",
                "an unsafe tool acts and never answers",
                Damage::Primary(always(Fault::ActsThenSilent)),
                Expected::Unknown,
            )
        },
        Scene {
            tool: "search",
            arguments: one("query", "fallback"),
            ..scene(
                "other-operation",
                "`search` answers 500 on both servers",
                Damage::Both(Broken {
                    fault: Fault::Status(500, None),
                    tool: Some("search"),
                    once: false,
                }),
                Expected::OtherOperation,
            )
        },
        scene(
            "all-down-known",
            "both servers are down; the question was asked before",
            Damage::AllDown,
            Expected::Stale,
        ),
        Scene {
            arguments: one("city", "Lima"),
            ..scene(
                "all-down",
                "both servers are down; the question is new",
                Damage::AllDown,
                Expected::Fails("ConnectionError"),
            )
        },
        scene(
            "recovered",
            "both servers are back",
            Damage::None,
            Expected::Healthy,
        ),
    ]
}

/// The configuration of the demo: the program's own format, with delays that suit a spectator.
pub(super) fn configuration(primary: &str, secondary: &str) -> String {
    format!(
        r#"
[[service]]
name = "primary"
group = "demo"
url = "{primary}"
priority = 10
trusted = true

[[service]]
name = "secondary"
group = "demo"
url = "{secondary}"
trusted = true

# `search` may be answered by `search_archive`.
[[strategy]]
plugin = "operation-fallback"
config = {{ routes = [{{ from = "search", to = "search_archive" }}] }}

# Keep last known good answers.
[cache]
max_age = "1h"

[deadline]
call = "4s"
attempt = "400ms"

[circuit]
open_for = "300ms"
max_open = "500ms"
jitter = 0
half_open_successes = 1

[health]
interval = "300ms"
timeout = "250ms"
fall = 2
rise = 1
slow_start = 0
"#
    )
}
