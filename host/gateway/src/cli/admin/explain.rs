//! `backstop explain`: what became of one call, and why.

use std::process::ExitCode;

use serde_json::Value;

use super::events::clock;
use super::{Endpoint, plain, span};
use crate::cli::terminal;

pub(super) async fn run(endpoint: &Endpoint, id: &str, as_json: bool) -> anyhow::Result<ExitCode> {
    let call: Value = endpoint.read(&["api", "calls", id]).await?;
    if as_json {
        terminal::say(&serde_json::to_string_pretty(&call)?);
    } else {
        terminal::say(text(&call).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

fn word(value: &Value) -> String {
    value.as_str().map(plain).unwrap_or_default()
}

fn time(value: &Value) -> String {
    span(value.as_u64().unwrap_or(0))
}

/// The call, attempt by attempt, with what each strategy said to it.
fn text(call: &Value) -> String {
    let mut out = String::new();
    let mut line = |text: String| out.push_str(&(text + "\n"));
    let how = if call["event"] == "call_saved" {
        let by = match call["served_by"].as_str() {
            Some(target) => format!("answered by {}", plain(target)),
            None => "answered with data".into(),
        };
        match call["degraded"]["degraded"].as_str() {
            Some("stale") => format!("{by}: {} old", time(&call["degraded"]["age_ms"])),
            Some("operation") => format!("{by}: by {}", word(&call["degraded"]["operation"])),
            Some(other) => format!("{by}: {}", plain(other)),
            None => by,
        }
    } else {
        let ending = word(&call["ending"]).replace('_', " ");
        format!("failed: {ending}, {}", word(&call["kind"]))
    };
    let at = call["at"].as_u64().map_or(String::new(), clock);
    line(format!(
        "call {} at {at}: {} {} of group {}",
        word(&call["call"]),
        word(&call["level"]),
        word(&call["operation"]),
        word(&call["group"]),
    ));
    line(format!("{how}, after {}", time(&call["duration_ms"])));
    let empty = Vec::new();
    let list = |key: &str| call["explanation"][key].as_array().unwrap_or(&empty);
    let steps_after = |number: usize| {
        let steps = list("steps").iter();
        steps.filter(move |step| step["after_attempt"].as_u64() == Some(number as u64))
    };
    let tell = |step: &Value| format!("     {}: {}", word(&step["strategy"]), verdict(step));
    let attempts = list("attempts");
    for (number, attempt) in (1..).zip(attempts) {
        let waited = match attempt["delay_ms"].as_u64() {
            None | Some(0) => String::new(),
            Some(ms) => format!(" after a wait of {}", span(ms)),
        };
        line(format!(
            "  {number}. {} of {} at {}{waited}: {}: {} ({})",
            word(&attempt["attempt"]),
            word(&attempt["operation"]),
            word(&attempt["target"]),
            word(&attempt["kind"]),
            word(&attempt["message"]),
            time(&attempt["duration_ms"]),
        ));
        steps_after(number).for_each(|step| line(tell(step)));
    }
    // A round in which nobody could be asked is no attempt, and yet strategies are asked after it.
    let others = list("steps").iter().filter(|step| {
        let after = step["after_attempt"].as_u64().unwrap_or(0);
        after == 0 || after > attempts.len() as u64
    });
    let others: Vec<&Value> = others.collect();
    if !others.is_empty() {
        line("  where no target could be asked:".into());
        others.into_iter().for_each(|step| line(tell(step)));
    }
    out
}

fn verdict(step: &Value) -> String {
    let (action, reason) = (
        word(&step["action"]).replace('_', " "),
        word(&step["reason"]),
    );
    match step["verdict"].as_str() {
        Some("taken") => format!("{action}: {reason}"),
        Some("refused") => format!(
            "proposed {action} ({reason}); refused: {}",
            word(&step["refusal"])
        ),
        Some("faulted") => format!("failed to decide: {}", word(&step["fault"])),
        _ => "does not apply".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_attempt_and_every_word_about_it_is_told_in_order() {
        let call = json!({
            "at": 0, "event": "call_saved", "call": "c000007", "group": "g", "operation": "search",
            "level": "tool", "served_by": "b", "degraded": null, "attempts": 3, "duration_ms": 130,
            "explanation": {
                "attempts": [
                    { "target": "a", "operation": "search", "attempt": "original", "delay_ms": 0,
                      "kind": "ConnectionError", "message": "refused", "duration_ms": 1 },
                    { "target": "a", "operation": "search", "attempt": "retry", "delay_ms": 100,
                      "kind": "ConnectionError", "message": "refused", "duration_ms": 2 },
                ],
                "steps": [
                    { "after_attempt": 1, "strategy": "retry", "verdict": "taken", "action": "retry", "reason": "1 of 3" },
                    { "after_attempt": 2, "strategy": "mine", "verdict": "declined" },
                    { "after_attempt": 2, "strategy": "retry", "verdict": "refused", "action": "retry",
                      "reason": "2 of 3", "refusal": "the circuit is open" },
                    { "after_attempt": 2, "strategy": "broken", "verdict": "faulted", "fault": "trapped" },
                    { "after_attempt": 2, "strategy": "service", "verdict": "taken", "action": "switch_target", "reason": "next" },
                ],
            },
        });
        assert_eq!(
            text(&call),
            "call c000007 at 00:00:00.000Z: tool search of group g\n\
             answered by b, after 130 ms\n  \
             1. original of search at a: ConnectionError: refused (1 ms)\n     \
             retry: retry: 1 of 3\n  \
             2. retry of search at a after a wait of 100 ms: ConnectionError: refused (2 ms)\n     \
             mine: does not apply\n     \
             retry: proposed retry (2 of 3); refused: the circuit is open\n     \
             broken: failed to decide: trapped\n     \
             service: switch target: next\n"
        );
    }

    #[test]
    fn a_call_nobody_could_be_asked_for_is_explained_as_well() {
        let call = json!({
            "at": 0, "event": "call_failed", "call": "c1", "group": "g", "operation": "o", "level": "tool",
            "ending": "no_target", "kind": "Overloaded", "attempts": 0, "duration_ms": 0,
            "explanation": { "attempts": [], "steps": [
                { "after_attempt": 1, "strategy": "data", "verdict": "declined" } ] },
        });
        let text = text(&call);
        assert!(text.contains("failed: no target, Overloaded"), "{text}");
        assert!(
            text.contains("where no target could be asked:\n     data: does not apply"),
            "{text}"
        );
    }
}
