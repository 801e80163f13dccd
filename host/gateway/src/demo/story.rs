//! The demo in words: every line from an event.

use std::sync::Arc;
use std::time::Duration;

use backstop::call::{Degraded, Verdict};
use backstop::event::{Event, EventKind};
use backstop_gateway::McpAnswer;

use super::scenes::Scene;
use super::{Called, terminal};

/// How long something took, and the events of that time.
pub(super) struct Told {
    pub(super) took: Duration,
    pub(super) events: Vec<Arc<Event>>,
}

/// The text of a tool's answer.
pub(super) fn text(answer: &McpAnswer) -> String {
    let Ok(result) = super::parse(answer.payload.as_bytes()) else {
        return String::new();
    };
    let parts = result["content"].as_array().into_iter().flatten();
    parts
        .filter_map(|part| part["text"].as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

pub(super) fn print(number: usize, scene: &Scene, called: &Called, back: Told, tickets: u32) {
    // What happened between two scenes: the way back to normal.
    for event in &back.events {
        if let Some(line) = health_line(&event.what) {
            terminal::say(&format!("      {line}"));
        }
    }
    if !back.events.is_empty() {
        terminal::say(&format!(
            "      the primary answers at once again after {}",
            millis(back.took)
        ));
    }
    terminal::say(&format!("\n{number:>2}. {}: `{}`", scene.says, scene.tool));
    for event in &called.told.events {
        if let Some(line) = line(&event.what) {
            terminal::say(&format!("      {line}"));
        }
    }
    let others = called
        .trouble
        .steps
        .iter()
        .filter_map(|step| match &step.verdict {
            Verdict::Declined => Some(&*step.strategy),
            _ => None,
        });
    let others: std::collections::BTreeSet<&str> = others.collect();
    if !others.is_empty() {
        let others: Vec<_> = others.into_iter().collect();
        terminal::say(&format!(
            "      asked, did not apply: {}",
            others.join(", ")
        ));
    }
    let took = millis(called.told.took);
    let verdict = match (&called.answer, &called.error) {
        (Some(answer), _) => {
            let by = called
                .served_by
                .as_deref()
                .map_or(String::new(), |by| format!(" by {by}"));
            let label = match &called.degraded {
                None => String::new(),
                Some(Degraded::Operation { operation }) => format!(", by `{operation}` instead"),
                Some(Degraded::Stale { age, target }) => {
                    format!(", stale: {target} said so {} ago", millis(*age))
                }
                Some(_) => ", a default".to_owned(),
            };
            format!("{}{by}{label} in {took}: {answer}", called.outcome())
        }
        (None, Some((_, error))) => {
            let cause = called
                .trouble
                .attempts
                .first()
                .map_or(String::new(), |first| format!(": {}", first.failure));
            format!("{} in {took}: {error}{cause}", called.outcome())
        }
        (None, None) => format!("LOST after {took}"),
    };
    terminal::say(&format!("   => {verdict}"));
    if scene.tool == "create_ticket" {
        terminal::say(&format!("      tickets the servers opened: {tickets}"));
    }
}

fn millis(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

fn line(what: &EventKind) -> Option<String> {
    Some(match what {
        EventKind::AttemptFailed {
            target,
            attempt,
            failure,
            duration,
            ..
        } => {
            let target = target.as_deref().unwrap_or("nobody");
            format!(
                "attempt {attempt}, {target}: {failure} ({})",
                millis(*duration)
            )
        }
        EventKind::RetryScheduled {
            strategy,
            target,
            delay,
            reason,
            ..
        } => {
            format!(
                "{strategy}: ask {target} again in {}{}",
                millis(*delay),
                because(reason)
            )
        }
        EventKind::FallbackTaken {
            strategy,
            from,
            to,
            operation,
            reason,
            ..
        } => {
            let from = from.as_deref().unwrap_or("nobody");
            match to.as_deref() {
                Some(to) if Some(to) != Some(from) => {
                    format!(
                        "{strategy}: from {from} to {to}, `{operation}`{}",
                        because(reason)
                    )
                }
                Some(to) => format!("{strategy}: `{operation}` of {to}{}", because(reason)),
                None => format!("{strategy}: answer with data{}", because(reason)),
            }
        }
        EventKind::ActionRefused {
            strategy,
            action,
            refusal,
            ..
        } => {
            format!("{strategy}: {action:?} refused by the guard: {refusal}")
        }
        EventKind::StrategyFaulted {
            strategy, message, ..
        } => format!("{strategy}: {message}"),
        other => return health_line(other),
    })
}

fn health_line(what: &EventKind) -> Option<String> {
    Some(match what {
        EventKind::CircuitOpened {
            target, open_for, ..
        } => {
            format!("circuit of {target}: open for {}", millis(*open_for))
        }
        EventKind::CircuitHalfOpened { target } => {
            format!("circuit of {target}: half open, one call may try")
        }
        EventKind::CircuitClosed { target } => format!("circuit of {target}: closed"),
        EventKind::TargetDown { target } => format!("health check: {target} is down"),
        EventKind::TargetUp { target } => format!("health check: {target} is up"),
        EventKind::Recovered { target, after } => {
            format!("{target} recovered after {}", millis(*after))
        }
        _ => return None,
    })
}

fn because(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(" ({reason})")
    }
}
