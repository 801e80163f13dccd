//! What the status page, `backstop status` and scripts are told: how everything stands now.

use std::time::{Duration, SystemTime};

use backstop::Engine;
use backstop::circuit::CircuitState;
use backstop::health::HealthStatus;
use backstop::strategy::component::Standing;
use serde::Serialize;
use tokio::time::Instant;

/// How everything stands.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    version: &'static str,
    uptime_ms: u64,
    groups: Vec<Group>,
    strategies: Vec<Strategy>,
    calls: Totals,
}

/// Calls that had trouble, since the start.
#[derive(Debug, Serialize)]
struct Totals {
    saved: u64,
    failed: u64,
    /// Events that came faster than they could be noted; the other counts lack them.
    missed_events: u64,
}

#[derive(Debug, Serialize)]
struct Group {
    name: String,
    /// Attempts the retry budget has left.
    budget_left: u64,
    targets: Vec<Target>,
}

#[derive(Debug, Serialize)]
struct Target {
    name: String,
    kind: &'static str,
    priority: i32,
    weight: u32,
    health: HealthStatus,
    circuit: CircuitState,
    /// Until the open circuit is tried again.
    open_for_ms: Option<u64>,
    /// Whether a request would be let through now.
    admitted: bool,
    in_flight: u32,
    waiting: u32,
    /// A moving mean.
    latency_ms: Option<f64>,
    /// Milliseconds since the Unix epoch.
    last_checked: Option<u64>,
    draining: bool,
}

#[derive(Debug, Serialize)]
struct Strategy {
    name: String,
    level: String,
    priority: i32,
    version: String,
    description: String,
    /// The plugin's file stem; `None` for one linked into the program.
    plugin: Option<String>,
    /// Faults and quarantine; `None` for one linked into the program.
    standing: Option<Standing>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Status {
    pub(super) fn of(engine: &Engine, started: Instant, totals: (u64, u64, u64)) -> Self {
        let now = Instant::now();
        let registry = engine.registry();
        let groups = registry.groups().into_iter().map(|group| Group {
            budget_left: engine.budget_left(&group),
            targets: registry
                .list_group(&group)
                .iter()
                .map(|target| of_target(target, now))
                .collect(),
            name: group.to_string(),
        });
        let strategies = engine.strategies().list();
        let strategies = strategies.iter().map(|entry| Strategy {
            name: entry.name().to_string(),
            level: entry.level().to_string(),
            priority: entry.priority(),
            version: entry.info().version.clone(),
            description: entry.description().to_owned(),
            plugin: entry.as_component().map(|it| it.plugin().to_owned()),
            standing: entry.as_component().map(|it| it.standing()),
        });
        let (saved, failed, missed_events) = totals;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            uptime_ms: millis(started.elapsed()),
            groups: groups.collect(),
            strategies: strategies.collect(),
            calls: Totals {
                saved,
                failed,
                missed_events,
            },
        }
    }
}

fn of_target(target: &backstop::registry::Target, now: Instant) -> Target {
    let unix = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok().map(millis);
    Target {
        name: target.name.to_string(),
        kind: target.spec.kind.as_str(),
        priority: target.spec.priority,
        weight: target.spec.weight.get(),
        health: target.health(),
        circuit: target.circuit(),
        open_for_ms: target
            .open_until()
            .map(|until| millis(until.saturating_duration_since(now))),
        admitted: target.standing(now).admitted,
        in_flight: target.in_flight(),
        waiting: target.waiting(),
        latency_ms: target.latency().map(|mean| mean.as_secs_f64() * 1e3),
        last_checked: target.last_checked().and_then(unix),
        draining: target.is_draining(),
    }
}
