//! `backstop status` and `backstop top`.

use std::process::ExitCode;
use std::time::Duration;

use backstop_gateway::admin::Status;
use backstop_gateway::admin::status::{Severity, Target};

use super::{Endpoint, plain, span};
use crate::cli::terminal;

pub(super) async fn run(endpoint: &Endpoint, as_json: bool) -> anyhow::Result<ExitCode> {
    if as_json {
        let status: serde_json::Value = endpoint.read(&["api", "status"]).await?;
        terminal::say(&serde_json::to_string_pretty(&status)?);
        return Ok(ExitCode::SUCCESS);
    }
    let status: Status = endpoint.read(&["api", "status"]).await?;
    terminal::say(text(&status, None).trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Home, and clear to the end: what was there is written over, so that nothing flickers.
const HOME: &str = "\u{1b}[H";
const CLEAR_LINE: &str = "\u{1b}[K";
const CLEAR_REST: &str = "\u{1b}[J";

pub(super) async fn top(endpoint: &Endpoint, every: u32) -> anyhow::Result<ExitCode> {
    let mut before: Option<Status> = None;
    let mut look = tokio::time::interval(Duration::from_secs(every.into()));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
        let status = endpoint.read::<Status>(&["api", "status"]).await;
        let shown = match &status {
            Ok(status) => text(status, before.as_ref()),
            Err(error) => format!("{error:#}\n"),
        };
        let lines = shown.replace('\n', &format!("{CLEAR_LINE}\n"));
        if !terminal::draw(&format!("{HOME}{lines}{CLEAR_REST}")) {
            return Ok(ExitCode::SUCCESS);
        }
        before = status.ok().or(before);
    }
}

/// How everything stands. With an earlier status: also how many requests a second.
fn text(status: &Status, before: Option<&Status>) -> String {
    let mut out = String::new();
    let mut line = |text: &str| out.push_str(&(plain(text) + "\n"));
    line(&format!(
        "backstop {}, up {}; calls saved {}, failed {}",
        status.version,
        span(status.uptime_ms),
        status.calls.saved,
        status.calls.failed
    ));
    line("");
    if status.problems.is_empty() {
        line("nothing is wrong");
    }
    for problem in &status.problems {
        let mark = match problem.severity {
            Severity::Failing => "!!",
            Severity::Degraded => "! ",
            Severity::Notice => "- ",
        };
        let since = problem.since.map_or(String::new(), |since| {
            format!(", for {}", span(status.now.saturating_sub(since)))
        });
        line(&format!(
            "{mark} {}: {}{since}: {}",
            problem.subject, problem.what, problem.doing
        ));
    }
    for group in &status.groups {
        line("");
        line(&format!(
            "group {}, {} attempts left in its retry budget",
            group.name, group.budget_left
        ));
        line(&format!(
            "  {:<24} {:<10} {:<10} {:>4} {:>7} {:>9} {:>10} {:>9} {:>9}",
            "target",
            "health",
            "circuit",
            "prio",
            "weight",
            "in flight",
            "latency",
            "requests",
            "failed"
        ));
        for target in &group.targets {
            line(&of_target(target, status, before));
        }
    }
    line("");
    line(&format!(
        "{:<26} {:<12} {:>5} {:<12} state",
        "strategy", "level", "prio", "version"
    ));
    for strategy in &status.strategies {
        let state = match &strategy.plugin {
            _ if !strategy.enabled => "disabled".to_owned(),
            Some(plugin) => match (plugin.quarantined_for_ms, plugin.faults) {
                (Some(left), _) => format!("quarantined for {}", span(left)),
                (None, 0) => "ready".into(),
                (None, faults) => format!("{faults} faults"),
            },
            None => "ready".into(),
        };
        line(&format!(
            "{:<26} {:<12} {:>5} {:<12} {state}",
            strategy.name, strategy.level, strategy.priority, strategy.version
        ));
    }
    out
}

fn of_target(target: &Target, status: &Status, before: Option<&Status>) -> String {
    let circuit = match (target.held, target.open_for_ms) {
        (true, _) => "held".to_owned(),
        (false, Some(left)) => format!("open {}", span(left)),
        (false, None) => target.circuit.replace('_', "-"),
    };
    let latency = target
        .latency_ms
        .map_or(String::new(), |ms| format!("{ms:.1} ms"));
    let requests = match before.and_then(|before| rate(target, status, before)) {
        Some(rate) => format!("{rate:.1}/s"),
        None => target.requests.to_string(),
    };
    format!(
        "  {:<24} {:<10} {:<10} {:>4} {:>7} {:>9} {:>10} {:>9} {:>9}",
        target.name,
        target.health,
        circuit,
        target.priority,
        target.weight,
        target.in_flight,
        latency,
        requests,
        target.failures
    )
}

#[allow(clippy::cast_precision_loss, reason = "it is shown with one digit")]
fn rate(target: &Target, status: &Status, before: &Status) -> Option<f64> {
    let mut earlier = before.groups.iter().flat_map(|group| &group.targets);
    let earlier = earlier.find(|earlier| earlier.name == target.name)?;
    let seconds = status.now.checked_sub(before.now)? as f64 / 1e3;
    let requests = target.requests.checked_sub(earlier.requests)? as f64;
    (seconds > 0.0).then(|| requests / seconds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(now: u64, requests: u64) -> Status {
        let target = json!({
            "name": "a", "kind": "service", "priority": 1, "weight": 1, "health": "healthy",
            "circuit": "open", "open_for_ms": 4000, "admitted": false, "held": false,
            "down_since": 1, "in_flight": 2, "waiting": 0, "requests": requests, "failures": 3,
            "latency_ms": 1.25, "last_checked": null, "last_failure": null,
        });
        serde_json::from_value(json!({
            "version": "1", "now": now, "uptime_ms": 125_000,
            "problems": [{ "severity": "degraded", "subject": "target \"a\"", "what": "its circuit is open",
                "since": now - 60_000, "doing": "it is tried again in 4 s" }],
            "groups": [{ "name": "g", "budget_left": 7, "targets": [target] }],
            "strategies": [],
            "calls": { "saved": 4, "failed": 5, "missed_events": 0 },
        }))
        .unwrap()
    }

    #[test]
    fn what_is_wrong_since_when_and_what_is_done_comes_first() {
        let text = text(&status(100_000, 10), None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "backstop 1, up 2 min; calls saved 4, failed 5");
        assert_eq!(
            lines[2],
            "!  target \"a\": its circuit is open, for 60 s: it is tried again in 4 s"
        );
        assert!(text.contains("open 4 s"), "{text}");
        assert!(text.contains("1.2 ms"), "{text}");
    }

    #[test]
    fn a_second_look_tells_the_rate() {
        let text = text(&status(102_000, 15), Some(&status(100_000, 10)));
        assert!(text.contains("2.5/s"), "{text}");
    }
}
