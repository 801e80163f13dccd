//! How everything stands: what the page, `backstop status` and scripts are told.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backstop::Engine;
use backstop::circuit::CircuitState;
use backstop::event::{Event, EventKind};
use backstop::health::HealthStatus;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::history::History;
use super::problems;

/// How everything stands. Times are milliseconds, points in time milliseconds since the Unix epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// The clock of the host.
    pub now: u64,
    /// How long the endpoint has been there.
    pub uptime_ms: u64,
    /// What is wrong, since when, and what is done about it; the worst first.
    pub problems: Vec<Problem>,
    /// The groups, by name.
    pub groups: Vec<Group>,
    /// The strategies, in the order they are asked in.
    pub strategies: Vec<Strategy>,
    /// Calls that had trouble.
    pub calls: Calls,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, such as `target "primary"`.
    pub subject: String,
    /// What is wrong.
    pub what: String,
    /// Since when, where that is known.
    pub since: Option<u64>,
    /// What is done about it.
    pub doing: String,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Calls fail.
    Failing,
    /// Something is out; calls go another way.
    Degraded,
    /// Somebody wanted it so.
    Notice,
}

/// Calls that had trouble, since the start.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Calls {
    /// Those that were answered all the same.
    pub saved: u64,
    /// Those that ended without an answer.
    pub failed: u64,
    /// Events that came faster than they could be noted; the other counts lack them.
    pub missed_events: u64,
}

/// Targets that stand in for one another.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Attempts its retry budget has left.
    pub budget_left: u64,
    /// Its targets, highest priority first.
    pub targets: Vec<Target>,
}

/// One target.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `service` or `model`.
    pub kind: String,
    /// Higher is asked first.
    pub priority: i32,
    /// Its share among those of its priority.
    pub weight: u32,
    /// What health checks say: `healthy`, `unhealthy` or `unknown`.
    pub health: String,
    /// `closed`, `open` or `half_open`.
    pub circuit: String,
    /// Until the open circuit is tried again.
    pub open_for_ms: Option<u64>,
    /// Whether a request would be let through now.
    pub admitted: bool,
    /// Whether an operator holds it.
    pub held: bool,
    /// Since when it is unhealthy or its circuit not closed.
    pub down_since: Option<u64>,
    /// Requests under way.
    pub in_flight: u32,
    /// Requests that wait for a place.
    pub waiting: u32,
    /// Requests let through since it was registered.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// A moving mean of how long good answers took.
    pub latency_ms: Option<f64>,
    /// When a health check last came to a result.
    pub last_checked: Option<u64>,
    /// Why it failed last.
    pub last_failure: Option<LastFailure>,
}

/// The attempt that failed last.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LastFailure {
    /// When.
    pub at: u64,
    /// The kind of the failure.
    pub kind: String,
    /// What happened.
    pub message: String,
}

/// One strategy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Strategy {
    /// Its name.
    pub name: String,
    /// Its level of fallback.
    pub level: String,
    /// Higher is asked first.
    pub priority: i32,
    /// Its version.
    pub version: String,
    /// What it does, in its own words.
    pub description: String,
    /// Whether it is asked; an operator may leave it out.
    pub enabled: bool,
    /// Only of a plugin; `None` for one linked into the program.
    pub plugin: Option<Plugin>,
}

/// What a plugin may do and how it does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Plugin {
    /// Its file stem.
    pub name: String,
    /// Faults since the last decision that went well.
    pub faults: u32,
    /// Until it is asked again; `None` where it is not quarantined.
    pub quarantined_for_ms: Option<u64>,
    /// Since when it is quarantined, where that is remembered.
    pub quarantined_since: Option<u64>,
    /// Its limits, as `backstop plugin inspect` prints them.
    pub limits: serde_json::Value,
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn unix(time: SystemTime) -> Option<u64> {
    time.duration_since(SystemTime::UNIX_EPOCH).ok().map(millis)
}

pub(super) fn when(event: &Event) -> Option<u64> {
    unix(event.at)
}

impl Status {
    pub(super) fn of(engine: &Engine, history: &History, started: Instant) -> Self {
        let now = Instant::now();
        let registry = engine.registry();
        let groups = registry.groups().into_iter().map(|group| {
            let targets = registry.list_group(&group);
            let targets = targets.iter().map(|target| of_target(target, history, now));
            Group {
                budget_left: engine.budget_left(&group),
                targets: targets.collect(),
                name: group.to_string(),
            }
        });
        let groups: Vec<Group> = groups.collect();
        let strategies = engine.strategies().list();
        let strategies: Vec<Strategy> = strategies
            .iter()
            .map(|entry| of_strategy(entry, engine, history))
            .collect();
        let totals = history.totals();
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            now: unix(SystemTime::now()).unwrap_or(0),
            uptime_ms: millis(started.elapsed()),
            problems: problems::of(&groups, &strategies, history),
            groups,
            strategies,
            calls: Calls {
                saved: totals.saved,
                failed: totals.failed,
                missed_events: totals.missed,
            },
        }
    }
}

fn of_target(target: &backstop::registry::Target, history: &History, now: Instant) -> Target {
    let circuit = match target.circuit() {
        CircuitState::Closed => "closed",
        CircuitState::Open => "open",
        CircuitState::HalfOpen => "half_open",
    };
    let health = match target.health() {
        HealthStatus::Unknown => "unknown",
        HealthStatus::Healthy => "healthy",
        HealthStatus::Unhealthy => "unhealthy",
    };
    let left = |until: Instant| millis(until.saturating_duration_since(now));
    Target {
        name: target.name.to_string(),
        kind: target.spec.kind.as_str().into(),
        priority: target.spec.priority,
        weight: target.spec.weight.get(),
        health: health.into(),
        circuit: circuit.into(),
        open_for_ms: target.open_until().map(left),
        admitted: target.standing(now).admitted,
        held: target.is_held(),
        down_since: target.down_since().and_then(unix),
        in_flight: target.in_flight(),
        waiting: target.waiting(),
        requests: target.requests(),
        failures: target.failures(),
        latency_ms: target.latency().map(|mean| mean.as_secs_f64() * 1e3),
        last_checked: target.last_checked().and_then(unix),
        last_failure: history
            .last_failure(&target.name)
            .and_then(|event| last_failure(&event)),
    }
}

fn last_failure(event: &Event) -> Option<LastFailure> {
    let EventKind::AttemptFailed { failure, .. } = &event.what else {
        return None;
    };
    Some(LastFailure {
        at: when(event)?,
        kind: failure.kind.as_str().to_owned(),
        message: failure.message.clone(),
    })
}

fn of_strategy(
    entry: &Arc<backstop::strategy::Entry>,
    engine: &Engine,
    history: &History,
) -> Strategy {
    let plugin = entry.as_component().map(|component| {
        let standing = component.standing();
        let is_quarantine = |what: &EventKind| matches!(what, EventKind::StrategyQuarantined { strategy, .. } if strategy == entry.name());
        Plugin {
            name: component.plugin().to_owned(),
            faults: standing.faults,
            quarantined_for_ms: standing.quarantined_for_ms,
            quarantined_since: standing
                .quarantined_for_ms
                .and_then(|_| history.last_change(is_quarantine))
                .and_then(|event| when(&event)),
            limits: serde_json::to_value(component.limits()).unwrap_or_default(),
        }
    });
    Strategy {
        name: entry.name().to_string(),
        level: entry.level().to_string(),
        priority: entry.priority(),
        version: entry.info().version.clone(),
        description: entry.description().to_owned(),
        enabled: engine.strategies().is_enabled(entry.name()),
        plugin,
    }
}
