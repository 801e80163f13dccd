//! `[service.health]` and `[service.circuit]`: what holds for one target instead of `[health]` and
//! `[circuit]`. The keys are the same; what is not said stays as it is for all.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::policy::{A_DAY, Circuit};
use super::reader::Reader;
use super::units::DurationText;
use super::value;

/// What one target has instead of the settings of all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct TargetPolicies {
    /// Its health checks. Default: as `[health]` says.
    #[serde(skip_serializing_if = "is_default")]
    pub health: HealthOverride,
    /// Its circuit. Default: as `[circuit]` says.
    #[serde(skip_serializing_if = "is_default")]
    pub circuit: CircuitOverride,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl TargetPolicies {
    /// `all` is what holds for every target.
    pub(super) fn read(r: &mut Reader<'_, '_>, all: &Circuit) -> Self {
        let circuit = |r: &mut Reader<'_, '_>| {
            let own = CircuitOverride::read_keys(r);
            own.over(all).checked(r);
            own
        };
        Self {
            health: r
                .section("health", HealthOverride::read_keys)
                .unwrap_or_default(),
            circuit: r.section("circuit", circuit).unwrap_or_default(),
        }
    }
}

/// The health checks of one target, where they differ from those of all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HealthOverride {
    /// Whether it is probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// The time between two probes, up to 24 h.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub interval: Option<Duration>,
    /// The time to the next probe while the answers are changing, up to 24 h.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub fast_interval: Option<Duration>,
    /// The time one probe may take, up to 24 h.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub timeout: Option<Duration>,
    /// Successes in a row that make it healthy again, 1 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub rise: Option<u32>,
    /// Failures in a row that make it unhealthy, 1 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub fall: Option<u32>,
    /// The time over which it gets back its weight after a recovery, up to 24 h; 0 switches it off.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub slow_start: Option<Duration>,
}

impl HealthOverride {
    /// Reads the keys that a target may have as well as all.
    pub(super) fn read_keys(r: &mut Reader<'_, '_>) -> Self {
        let up_to_a_day = || value::duration(Duration::ZERO..=*A_DAY.end());
        Self {
            enabled: r.read("enabled", value::boolean),
            interval: r.read("interval", value::duration(A_DAY)),
            fast_interval: r.read("fast_interval", value::duration(A_DAY)),
            timeout: r.read("timeout", value::duration(A_DAY)),
            rise: r.read("rise", value::integer(1..=100)),
            fall: r.read("fall", value::integer(1..=100)),
            slow_start: r.read("slow_start", up_to_a_day()),
        }
    }
}

/// The circuit of one target, where it differs from those of all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CircuitOverride {
    /// Failures in a row that open it, 1 to 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub consecutive_failures: Option<u32>,
    /// The share of failures in the window that opens it, above 0 and up to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 1))]
    pub failure_rate: Option<f64>,
    /// The time over which the rates are taken, 1 s to 1 h.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub window: Option<Duration>,
    /// Calls in the window below which the rates mean nothing, 1 to 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub minimum_throughput: Option<u32>,
    /// From how long on an answer counts as slow.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub slow_after: Option<Duration>,
    /// The share of slow answers in the window that opens it, above 0 and up to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 1))]
    pub slow_rate: Option<f64>,
    /// How long it stays open the first time, up to 24 h.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub open_for: Option<Duration>,
    /// The longest it stays open, up to 24 h.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub max_open: Option<Duration>,
    /// The time closed that takes one opening off the count by which `open_for` grows, up to 24 h.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub decay: Option<Duration>,
    /// The share by which the time open is spread, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub jitter: Option<f64>,
    /// Calls let through at a time while half open, 1 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub half_open_probes: Option<u32>,
    /// Successes while half open that close it, 1 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub half_open_successes: Option<u32>,
}

impl CircuitOverride {
    /// Reads the keys that a target may have as well as all.
    pub(super) fn read_keys(r: &mut Reader<'_, '_>) -> Self {
        let window = Duration::from_secs(1)..=Duration::from_secs(3600);
        Self {
            consecutive_failures: r.read("consecutive_failures", value::integer(1..=10_000)),
            failure_rate: r.read("failure_rate", value::float(0.001..=1.0)),
            window: r.read("window", value::duration(window)),
            minimum_throughput: r.read("minimum_throughput", value::integer(1..=10_000)),
            slow_after: r.read("slow_after", value::duration(A_DAY)),
            slow_rate: r.read("slow_rate", value::float(0.001..=1.0)),
            open_for: r.read("open_for", value::duration(A_DAY)),
            max_open: r.read("max_open", value::duration(A_DAY)),
            decay: r.read("decay", value::duration(A_DAY)),
            jitter: r.read("jitter", value::float(0.0..=1.0)),
            half_open_probes: r.read("half_open_probes", value::integer(1..=100)),
            half_open_successes: r.read("half_open_successes", value::integer(1..=100)),
        }
    }

    /// The circuit of all with what is said here.
    pub(crate) fn over(&self, all: &Circuit) -> Circuit {
        Circuit {
            consecutive_failures: self
                .consecutive_failures
                .unwrap_or(all.consecutive_failures),
            failure_rate: self.failure_rate.unwrap_or(all.failure_rate),
            window: self.window.unwrap_or(all.window),
            minimum_throughput: self.minimum_throughput.unwrap_or(all.minimum_throughput),
            slow_after: self.slow_after.or(all.slow_after),
            slow_rate: self.slow_rate.unwrap_or(all.slow_rate),
            open_for: self.open_for.unwrap_or(all.open_for),
            max_open: self.max_open.unwrap_or(all.max_open),
            decay: self.decay.unwrap_or(all.decay),
            max_ejected: all.max_ejected,
            jitter: self.jitter.unwrap_or(all.jitter),
            half_open_probes: self.half_open_probes.unwrap_or(all.half_open_probes),
            half_open_successes: self.half_open_successes.unwrap_or(all.half_open_successes),
        }
    }
}
