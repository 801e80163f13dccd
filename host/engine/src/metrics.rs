//! Metrics: what is counted and timed, and under which names.
//!
//! The engine speaks to the facade of the [`metrics`] crate, so an embedder exports them as the rest
//! of its program's. They are off until [`EngineBuilder::metrics`](crate::EngineBuilder::metrics)
//! switches them on. The names are not part of any convention (there is none for fallback); label
//! values come from the configuration and from closed sets, never from a request: a call of a group that
//! has no target counts under the group `""`.
//!
//! | name | kind | unit | labels |
//! |---|---|---|---|
//! | `backstop.call.duration` | histogram | s | `group`, `level` (tool, resource, prompt, model, other), `outcome` (ok: at once; saved; degraded; failed) |
//! | `backstop.attempts` | counter | | `group`, `target`, `attempt_type` (original, retry, fallback, hedge), `outcome` (`ok` or the failure's kind); an attempt that was given up is none |
//! | `backstop.fallbacks` | counter | | `level`, `strategy`, `from`, `to`, `kind` |
//! | `backstop.actions.refused` | counter | | `strategy`, `action` |
//! | `backstop.strategy.duration` | histogram | s | `strategy`, `phase` (`condition` where that said no; else `decision`) |
//! | `backstop.strategy.faults` | counter | | `strategy`, `fault` |
//! | `backstop.strategy.quarantines` | counter | | `strategy` |
//! | `backstop.circuit.state` | gauge | | `group`, `target`: 0 closed, 1 half-open, 2 open |
//! | `backstop.target.healthy` | gauge | | `group`, `target`: 0 where health checks call it ill, else 1 |
//! | `backstop.target.in_flight` | gauge | | `group`, `target` |
//! | `backstop.budget.remaining` | gauge | | `group`: attempts the retry budget has left |
//!
//! Gauges are as old as the last [`Engine::sample_metrics`](crate::Engine::sample_metrics), which an
//! exporter calls before it reads.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::call::{Attempt, AttemptKind, Level};
use crate::circuit::CircuitState;
use crate::event::EventKind;
use crate::registry::Target;
use metrics::{Counter, Histogram, SharedString, Unit, counter, gauge, histogram};

/// How long calls took, from the caller's side.
pub const CALL_DURATION: &str = "backstop.call.duration";
/// Attempts made.
pub const ATTEMPTS: &str = "backstop.attempts";
/// Another target, operation or data took the place of what was asked.
pub const FALLBACKS: &str = "backstop.fallbacks";
/// Actions the guard refused.
pub const REFUSED: &str = "backstop.actions.refused";
/// How long a strategy took to decide, condition and action together.
pub const STRATEGY_DURATION: &str = "backstop.strategy.duration";
/// Strategies that failed to decide.
pub const STRATEGY_FAULTS: &str = "backstop.strategy.faults";
/// Strategies that were left out for a while.
pub const STRATEGY_QUARANTINES: &str = "backstop.strategy.quarantines";
/// The state of a target's circuit.
pub const CIRCUIT_STATE: &str = "backstop.circuit.state";
/// What health checks say of a target.
pub const TARGET_HEALTHY: &str = "backstop.target.healthy";
/// Requests under way.
pub const TARGET_IN_FLIGHT: &str = "backstop.target.in_flight";
/// What is left of a retry budget.
pub const BUDGET_REMAINING: &str = "backstop.budget.remaining";

/// Every name, in the order of the table above.
pub const NAMES: [&str; 11] = [
    CALL_DURATION,
    ATTEMPTS,
    FALLBACKS,
    REFUSED,
    STRATEGY_DURATION,
    STRATEGY_FAULTS,
    STRATEGY_QUARANTINES,
    CIRCUIT_STATE,
    TARGET_HEALTHY,
    TARGET_IN_FLIGHT,
    BUDGET_REMAINING,
];

/// Those of them that are gauges; the histograms' names end in `duration`, the others are counters.
pub const GAUGES: [&str; 4] = [
    CIRCUIT_STATE,
    TARGET_HEALTHY,
    TARGET_IN_FLIGHT,
    BUDGET_REMAINING,
];

/// Upper bounds of the histograms' buckets, in seconds (OpenTelemetry, MCP semantic conventions).
pub const DURATION_BUCKETS: [f64; 14] = [
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

/// Tells the recorder of the process what the names mean.
pub fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_histogram!(
        CALL_DURATION,
        Unit::Seconds,
        "How long calls took, attempts, waits and fallbacks together"
    );
    describe_counter!(ATTEMPTS, "Attempts made");
    describe_counter!(
        FALLBACKS,
        "Times another target, operation or data took the place of what was asked"
    );
    describe_counter!(REFUSED, "Actions strategies proposed and the guard refused");
    describe_histogram!(
        STRATEGY_DURATION,
        Unit::Seconds,
        "How long a strategy took to decide"
    );
    describe_counter!(STRATEGY_FAULTS, "Times a strategy failed to decide");
    describe_counter!(
        STRATEGY_QUARANTINES,
        "Times a strategy was left out for a while after repeated faults"
    );
    describe_gauge!(
        CIRCUIT_STATE,
        "A target's circuit: 0 closed, 1 half-open, 2 open"
    );
    describe_gauge!(
        TARGET_HEALTHY,
        "Whether health checks call a target healthy"
    );
    describe_gauge!(TARGET_IN_FLIGHT, "Requests under way at a target");
    describe_gauge!(BUDGET_REMAINING, "Attempts a group's retry budget has left");
}

/// Where the engine counts; switched off, it does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Meter {
    pub(crate) on: bool,
}

/// A target's counters of what goes well: looked up once, since a healthy call must not pay for it.
#[derive(Default)]
pub(crate) struct TargetMeter {
    attempts: [OnceLock<Counter>; 4],
    calls: [OnceLock<Histogram>; 5],
}

fn text(value: &Arc<str>) -> SharedString {
    SharedString::from_shared(value.clone())
}

fn or_none(value: Option<&Arc<str>>) -> SharedString {
    value.map_or(SharedString::const_str(""), text)
}

impl Meter {
    /// An attempt was answered well.
    pub(crate) fn attempt_answered(self, attempt: &Attempt) {
        if !self.on {
            return;
        }
        let index = match attempt.kind {
            AttemptKind::Original => 0,
            AttemptKind::Retry => 1,
            AttemptKind::Fallback => 2,
            AttemptKind::Hedge => 3,
        };
        let target = &attempt.target;
        target.meter().attempts[index]
            .get_or_init(|| {
                counter!(ATTEMPTS, "group" => text(&target.spec.group), "target" => text(&target.name),
                    "attempt_type" => attempt.kind.as_str(), "outcome" => "ok")
            })
            .increment(1);
    }

    /// A call was answered by its first attempt.
    pub(crate) fn call_answered(self, target: &Target, level: Level, took: Duration) {
        if !self.on {
            return;
        }
        let index = match level {
            Level::Tool => 0,
            Level::Resource => 1,
            Level::Prompt => 2,
            Level::Model => 3,
            Level::Other => 4,
        };
        target.meter().calls[index]
            .get_or_init(|| {
                histogram!(CALL_DURATION, "group" => text(&target.spec.group),
                    "level" => level.as_str(), "outcome" => "ok")
            })
            .record(took);
    }

    /// A strategy has decided, or failed to.
    pub(crate) fn decided(self, strategy: &Arc<str>, phase: &'static str, took: Duration) {
        if self.on {
            histogram!(STRATEGY_DURATION, "strategy" => text(strategy), "phase" => phase)
                .record(took);
        }
    }

    /// Something happened that is told to subscribers. `is_group` says whether a name is one of a group
    /// that has targets.
    pub(crate) fn observe(self, what: &EventKind, is_group: impl Fn(&str) -> bool) {
        let text_of = |group: &Arc<str>| or_none(is_group(group).then_some(group));
        match what {
            EventKind::AttemptFailed {
                group,
                target,
                attempt_type,
                failure,
                ..
            } => {
                // Without a target nothing was attempted.
                let Some(target) = target else { return };
                counter!(ATTEMPTS, "group" => text(group), "target" => text(target),
                    "attempt_type" => attempt_type.as_str(), "outcome" => failure.kind.as_str().to_owned())
                .increment(1);
            }
            EventKind::FallbackTaken {
                strategy,
                level,
                kind,
                from,
                to,
                ..
            } => counter!(FALLBACKS, "level" => text(level), "strategy" => text(strategy),
                "from" => or_none(from.as_ref()), "to" => or_none(to.as_ref()),
                "kind" => kind.as_str().to_owned())
            .increment(1),
            EventKind::ActionRefused {
                strategy, action, ..
            } => counter!(REFUSED, "strategy" => text(strategy), "action" => action.as_str())
                .increment(1),
            EventKind::StrategyFaulted {
                strategy, fault, ..
            } => counter!(STRATEGY_FAULTS, "strategy" => text(strategy), "fault" => *fault)
                .increment(1),
            EventKind::StrategyQuarantined { strategy, .. } => {
                counter!(STRATEGY_QUARANTINES, "strategy" => text(strategy)).increment(1);
            }
            EventKind::CallSaved {
                group,
                level,
                degraded,
                duration,
                ..
            } => {
                let outcome = if degraded.is_some() {
                    "degraded"
                } else {
                    "saved"
                };
                call_ended(text_of(group), *level, outcome, *duration);
            }
            EventKind::CallFailed {
                group,
                level,
                duration,
                ..
            } => call_ended(text_of(group), *level, "failed", *duration),
            _ => {}
        }
    }
}

fn call_ended(group: SharedString, level: Level, outcome: &'static str, took: Duration) {
    histogram!(CALL_DURATION, "group" => group, "level" => level.as_str(), "outcome" => outcome)
        .record(took);
}

/// Sets the gauges of one target.
pub(crate) fn sample(target: &Target) {
    let labels = || {
        [
            ("group", text(&target.spec.group)),
            ("target", text(&target.name)),
        ]
    };
    let state = match target.circuit() {
        CircuitState::Closed => 0.0,
        CircuitState::HalfOpen => 1.0,
        CircuitState::Open => 2.0,
    };
    gauge!(CIRCUIT_STATE, &labels()).set(state);
    let healthy = !target.health().is_unhealthy();
    gauge!(TARGET_HEALTHY, &labels()).set(f64::from(u8::from(healthy)));
    gauge!(TARGET_IN_FLIGHT, &labels()).set(target.in_flight());
}

/// Sets the gauge of a group's budget.
pub(crate) fn sample_budget(group: &Arc<str>, left: u64) {
    // A budget beyond 2^53 attempts would be rounded.
    #[allow(clippy::cast_precision_loss)]
    gauge!(BUDGET_REMAINING, "group" => text(group)).set(left as f64);
}
