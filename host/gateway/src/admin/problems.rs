//! What is wrong, since when, and what is done about it: the answer an operator looks for first.

use backstop::event::EventKind;

use super::history::History;
use super::status::{Group, Problem, Severity, Strategy, Target, when};

/// Everything that is not as it should be, the worst first.
pub(super) fn of(groups: &[Group], strategies: &[Strategy], history: &History) -> Vec<Problem> {
    let mut list: Vec<Problem> = groups.iter().flat_map(of_group).collect();
    list.extend(
        strategies
            .iter()
            .filter_map(|strategy| of_strategy(strategy, history)),
    );
    list.extend(of_config(history));
    list.sort_by_key(|problem| problem.severity);
    list
}

fn problem(
    severity: Severity,
    subject: String,
    what: impl Into<String>,
    since: Option<u64>,
    doing: impl Into<String>,
) -> Problem {
    Problem {
        severity,
        subject,
        what: what.into(),
        since,
        doing: doing.into(),
    }
}

fn of_group(group: &Group) -> Vec<Problem> {
    let mut list = Vec::new();
    let is_well = |target: &&Target| target.admitted && target.down_since.is_none();
    let well: Vec<&Target> = group.targets.iter().filter(is_well).collect();
    if !group.targets.is_empty() && !group.targets.iter().any(|target| target.admitted) {
        let all_held = group.targets.iter().all(|target| target.held);
        let doing = if all_held {
            "calls are refused at once until one is restored"
        } else {
            "one call at a time is tried at the best of them; the others fail at once, or data answers"
        };
        let since = group.targets.iter().filter_map(|target| target.down_since);
        list.push(problem(
            Severity::Failing,
            format!("group {:?}", group.name),
            "none of its targets takes requests",
            since.max(),
            doing,
        ));
    }
    if group.budget_left == 0 {
        list.push(problem(
            Severity::Degraded,
            format!("group {:?}", group.name),
            "its retry budget is used up",
            None,
            "calls are neither repeated nor moved until it fills again, which takes seconds",
        ));
    }
    list.extend(
        group
            .targets
            .iter()
            .filter_map(|target| of_target(target, &well)),
    );
    list
}

fn of_target(target: &Target, well: &[&Target]) -> Option<Problem> {
    let subject = format!("target {:?}", target.name);
    if target.held {
        let (what, doing) = (
            "an operator holds it",
            "what is under way there finishes; nothing new begins until it is restored",
        );
        return Some(problem(
            Severity::Notice,
            subject,
            what,
            target.down_since,
            doing,
        ));
    }
    let others = match well {
        [] => "no other target of its group is well".to_owned(),
        [only] => format!("calls go to {:?}", only.name),
        several => format!("calls go to the {} others that are well", several.len()),
    };
    let because = target
        .last_failure
        .as_ref()
        .map_or(String::new(), |failure| {
            format!(", last {}: {}", failure.kind, failure.message)
        });
    let (what, doing) = match (&*target.circuit, &*target.health) {
        ("open", _) => {
            let left = target.open_for_ms.unwrap_or(0).div_ceil(1000);
            (
                format!("its circuit is open{because}"),
                format!("{others}; it is tried again in {left} s"),
            )
        }
        ("half_open", _) => (
            format!("its circuit is half open{because}"),
            format!("a few requests find out whether it is well; {others}"),
        ),
        (_, "unhealthy") => (
            format!("its health checks fail{because}"),
            format!("{others}; it is probed on"),
        ),
        _ => return None,
    };
    Some(problem(
        Severity::Degraded,
        subject,
        what,
        target.down_since,
        doing,
    ))
}

fn of_strategy(strategy: &Strategy, history: &History) -> Option<Problem> {
    let subject = format!("strategy {:?}", strategy.name);
    if !strategy.enabled {
        let is_it = |what: &EventKind| matches!(what, EventKind::StrategyDisabled { strategy: name } if **name == *strategy.name);
        let since = history.last_change(is_it).and_then(|event| when(&event));
        let doing = "the others are asked; it is left out until it is enabled";
        return Some(problem(
            Severity::Notice,
            subject,
            "an operator has disabled it",
            since,
            doing,
        ));
    }
    let plugin = strategy.plugin.as_ref()?;
    let left = plugin.quarantined_for_ms?.div_ceil(1000);
    Some(problem(
        Severity::Degraded,
        subject,
        format!("it is quarantined after {} faults", plugin.faults),
        plugin.quarantined_since,
        format!("the others are asked; it is asked again in {left} s"),
    ))
}

/// The configuration that was refused last, unless one was applied since.
fn of_config(history: &History) -> Option<Problem> {
    let is_config = |what: &EventKind| {
        matches!(
            what,
            EventKind::ConfigApplied { .. } | EventKind::ConfigRejected { .. }
        )
    };
    let event = history.last_change(is_config)?;
    let EventKind::ConfigRejected { source, reason } = &event.what else {
        return None;
    };
    Some(problem(
        Severity::Degraded,
        format!("configuration {source}"),
        format!("it is refused: {reason}"),
        when(&event),
        "what was in force before stays in force",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn target(change: serde_json::Value) -> Target {
        let mut base = json!({
            "name": "a", "kind": "service", "priority": 0, "weight": 1, "health": "healthy",
            "circuit": "closed", "open_for_ms": null, "admitted": true, "held": false,
            "down_since": null, "in_flight": 0, "waiting": 0, "requests": 0, "failures": 0,
            "latency_ms": null, "last_checked": null, "last_failure": null,
        });
        for (key, value) in change.as_object().unwrap() {
            base[key] = value.clone();
        }
        serde_json::from_value(base).unwrap()
    }

    fn open(name: &str) -> Target {
        target(
            json!({ "name": name, "circuit": "open", "open_for_ms": 4500, "admitted": false,
            "down_since": 1000, "last_failure": { "at": 1000, "kind": "ConnectionError", "message": "refused" } }),
        )
    }

    fn group(targets: Vec<Target>) -> Group {
        Group {
            name: "g".into(),
            budget_left: 10,
            targets,
        }
    }

    fn told(groups: &[Group]) -> Vec<(Severity, String)> {
        of(groups, &[], &History::default())
            .into_iter()
            .map(|problem| {
                let Problem {
                    severity,
                    subject,
                    what,
                    since,
                    doing,
                } = problem;
                (
                    severity,
                    format!("{subject}: {what} (since {since:?}): {doing}"),
                )
            })
            .collect()
    }

    #[test]
    fn where_all_is_well_nothing_is_told() {
        assert_eq!(told(&[group(vec![target(json!({}))])]), []);
    }

    #[test]
    fn an_open_circuit_says_why_since_when_and_where_calls_go_instead() {
        let well = target(json!({ "name": "b" }));
        assert_eq!(
            told(&[group(vec![open("a"), well])]),
            [(
                Severity::Degraded,
                "target \"a\": its circuit is open, last ConnectionError: refused (since Some(1000)): \
                 calls go to \"b\"; it is tried again in 5 s"
                    .to_owned()
            )]
        );
    }

    #[test]
    fn a_group_without_anybody_left_comes_first() {
        let list = told(&[group(vec![open("a"), open("b")])]);
        assert_eq!(list.len(), 3);
        assert_eq!(list[0].0, Severity::Failing);
        assert!(
            list[0].1.contains("none of its targets takes requests"),
            "{}",
            list[0].1
        );
        assert!(list[1].1.contains("no other target of its group is well"));
    }

    #[test]
    fn what_an_operator_did_is_a_notice() {
        let held = target(json!({ "held": true, "admitted": false }));
        let list = told(&[group(vec![held, target(json!({ "name": "b" }))])]);
        assert_eq!(list[0].0, Severity::Notice);
        assert!(list[0].1.contains("until it is restored"), "{}", list[0].1);
    }

    #[test]
    fn a_budget_that_is_used_up_is_told() {
        let mut group = group(vec![target(json!({}))]);
        group.budget_left = 0;
        assert!(told(&[group])[0].1.contains("retry budget is used up"));
    }
}
