//! `[health]`, `[circuit]`, `[budget]`, `[deadline]` and `[cache]`: the host's own policies.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::overrides::{CircuitOverride, HealthOverride};
use super::reader::{Issue, Reader};
use super::units::{DurationText, SizeText};
use super::value::{self, POSITIVE};

/// More than nothing, at most a day: what the registry accepts.
pub(super) const A_DAY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(24 * 3600);

/// `[health]`: active probes, and the way back after recovery.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Health {
    /// Whether targets are probed. Default: true.
    pub enabled: bool,
    /// The time between two probes of a target. Default: 30 s (DESIGN: configuration).
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub interval: Duration,
    /// The time to the next probe while the answers are changing, cut to `interval`. Default: 5 s (HAProxy's
    /// `fastinter`).
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub fast_interval: Duration,
    /// The time one probe may take. Default: 5 s (DESIGN: configuration).
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub timeout: Duration,
    /// Successes in a row that make an unhealthy target healthy, 1 to 100. Default: 2 (as in HAProxy).
    #[schemars(range(min = 1, max = 100))]
    pub rise: u32,
    /// Failures in a row that make a healthy target unhealthy, 1 to 100. Default: 3 (as in HAProxy).
    #[schemars(range(min = 1, max = 100))]
    pub fall: u32,
    /// The share of the interval by which probes are spread, 0 to 0.5. Default: 0.1 (RULES: jittered
    /// intervals).
    #[schemars(range(min = 0, max = 0.5))]
    pub jitter: f64,
    /// Probes under way at a time, 1 to 4096. Default: 256.
    #[schemars(range(min = 1, max = 4096))]
    pub max_concurrent: u16,
    /// The time over which a recovered target gets back its weight, and its priority level its load, up to
    /// 24 h; 0 switches it off. Default: 30 s (RULES: slow start).
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub slow_start: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: Duration::from_secs(30),
            fast_interval: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            rise: 2,
            fall: 3,
            jitter: 0.1,
            max_concurrent: 256,
            slow_start: Duration::from_secs(30),
        }
    }
}

impl Health {
    pub(super) fn read(r: &mut Reader<'_, '_>) -> Self {
        let base = Self::default();
        let own = HealthOverride::read_keys(r);
        let health = Self {
            enabled: own.enabled.unwrap_or(base.enabled),
            interval: own.interval.unwrap_or(base.interval),
            fast_interval: own.fast_interval.unwrap_or(base.fast_interval),
            timeout: own.timeout.unwrap_or(base.timeout),
            rise: own.rise.unwrap_or(base.rise),
            fall: own.fall.unwrap_or(base.fall),
            jitter: r
                .read("jitter", value::float(0.0..=0.5))
                .unwrap_or(base.jitter),
            max_concurrent: r
                .read("max_concurrent", value::integer(1..=4096))
                .unwrap_or(base.max_concurrent),
            slow_start: own.slow_start.unwrap_or(base.slow_start),
        };
        if health.timeout > health.interval {
            let key = if r.has("timeout") {
                "timeout"
            } else {
                "interval"
            };
            let reason = "a probe may take longer than the time to the next one";
            r.issue(
                key,
                Issue::warning(
                    "timeout beyond interval",
                    reason,
                    "Make timeout shorter than interval.",
                ),
            );
        }
        health
    }
}

/// `[circuit]`: when a target is left alone, and how it is tried again.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Circuit {
    /// Failures in a row that open a circuit, 1 to 10000. Default: 5 (as in Envoy).
    #[schemars(range(min = 1, max = 10000))]
    pub consecutive_failures: u32,
    /// The share of failures in the window that opens a circuit, above 0 and up to 1. Default: 0.5.
    #[schemars(range(min = 0.001, max = 1))]
    pub failure_rate: f64,
    /// The time over which the failure rate is taken, 1 s to 1 h. Default: 10 s.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub window: Duration,
    /// Calls in the window below which the failure rate means nothing, 1 to 10000. Default: 20.
    #[schemars(range(min = 1, max = 10000))]
    pub minimum_throughput: u32,
    /// From how long on an answer counts as slow. Default: never; what is slow only the operator knows.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub slow_after: Option<Duration>,
    /// The share of slow answers in the window that opens a circuit, above 0 and up to 1; it never opens the
    /// last closed circuit of a group. Default: 0.5 (resilience4j's slow call rate).
    #[schemars(range(min = 0.001, max = 1))]
    pub slow_rate: f64,
    /// How long a circuit stays open the first time; it grows with each time. Default: 5 s: a
    /// target here is one of a few, where Envoy's 30 s are meant for one of hundreds.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub open_for: Duration,
    /// The longest a circuit stays open, up to 24 h. Default: 5 min (as in Envoy).
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub max_open: Duration,
    /// The time closed that takes one opening off the count by which `open_for` grows. Default: 30 s.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub decay: Duration,
    /// The share of a group whose circuits live traffic may open, 0.01 to 1; one may be open whatever the
    /// share. Default: 1. Lower it for a large group whose targets may all fail in part for a common reason
    /// (Envoy's `max_ejection_percent`).
    #[schemars(range(min = 0.01, max = 1))]
    pub max_ejected: f64,
    /// The share by which the time open is spread, 0 to 1. Default: 0.2.
    #[schemars(range(min = 0, max = 1))]
    pub jitter: f64,
    /// Calls let through at a time while half open, 1 to 100. Default: 1.
    #[schemars(range(min = 1, max = 100))]
    pub half_open_probes: u32,
    /// Successes while half open that close the circuit, 1 to 100. Default: 2.
    #[schemars(range(min = 1, max = 100))]
    pub half_open_successes: u32,
}

impl Default for Circuit {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            failure_rate: 0.5,
            window: Duration::from_secs(10),
            minimum_throughput: 20,
            slow_after: None,
            slow_rate: 0.5,
            open_for: Duration::from_secs(5),
            max_open: Duration::from_secs(300),
            decay: Duration::from_secs(30),
            max_ejected: 1.0,
            jitter: 0.2,
            half_open_probes: 1,
            half_open_successes: 2,
        }
    }
}

impl Circuit {
    pub(super) fn read(r: &mut Reader<'_, '_>) -> Self {
        let own = CircuitOverride::read_keys(r);
        let circuit = Self {
            max_ejected: r
                .read("max_ejected", value::float(0.01..=1.0))
                .unwrap_or(Self::default().max_ejected),
            ..own.over(&Self::default())
        };
        circuit.checked(r)
    }

    /// Notes where two keys contradict one another, and puts that right.
    pub(super) fn checked(mut self, r: &mut Reader<'_, '_>) -> Self {
        if self.max_open < self.open_for {
            let key = if r.has("max_open") {
                "max_open"
            } else {
                "open_for"
            };
            let reason = "max_open is shorter than open_for, which it caps";
            r.issue(
                key,
                Issue::error(
                    "out of range",
                    reason,
                    "Make max_open at least as long as open_for.",
                ),
            );
            self.max_open = self.open_for;
        }
        self
    }
}

/// `[budget]`: how many retries and fallback attempts a group may make (RULES: budgets).
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Budget {
    /// Retries earned by each call, 0 to 10. Default: 0.2.
    #[schemars(range(min = 0, max = 10))]
    pub ratio: f64,
    /// Retries a second that are always allowed, 0 to 100000. Default: 10.
    #[schemars(range(min = 0, max = 100000))]
    pub reserve_per_second: u32,
    /// How long a call counts, 1 s to 1 minute. Default: 10 s.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub ttl: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            ratio: 0.2,
            reserve_per_second: 10,
            ttl: Duration::from_secs(10),
        }
    }
}

impl Budget {
    pub(super) fn read(r: &mut Reader<'_, '_>) -> Self {
        let base = Self::default();
        let ttl = Duration::from_secs(1)..=Duration::from_secs(60);
        Self {
            ratio: r
                .read("ratio", value::float(0.0..=10.0))
                .unwrap_or(base.ratio),
            reserve_per_second: r
                .read("reserve_per_second", value::integer(0..=100_000))
                .unwrap_or(base.reserve_per_second),
            ttl: r.read("ttl", value::duration(ttl)).unwrap_or(base.ttl),
        }
    }
}

/// `[deadline]`: how long things may take (RULES: budgets and deadlines).
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Deadline {
    /// The time a whole call may take: attempts, waits, fallbacks and decisions. Default: 60 s.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub call: Duration,
    /// The time one attempt may be silent. Default: 20 s.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub attempt: Duration,
    /// The longest one attempt may take however much progress it reports. Default: 60 s, or
    /// `attempt` where that is longer.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub attempt_max: Duration,
}

impl Default for Deadline {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(60),
            attempt: Duration::from_secs(20),
            attempt_max: Duration::from_secs(60),
        }
    }
}

impl Deadline {
    pub(super) fn read(r: &mut Reader<'_, '_>) -> Self {
        let base = Self::default();
        let call = r
            .read("call", value::duration(POSITIVE))
            .unwrap_or(base.call);
        let attempt = r
            .read("attempt", value::duration(POSITIVE))
            .unwrap_or(base.attempt);
        let mut attempt_max = r
            .read("attempt_max", value::duration(POSITIVE))
            .unwrap_or_else(|| base.attempt_max.max(attempt));
        if attempt_max < attempt {
            let reason = "attempt_max is shorter than attempt, which it caps";
            r.issue(
                "attempt_max",
                Issue::error(
                    "out of range",
                    reason,
                    "Make it at least as long as attempt.",
                ),
            );
            attempt_max = base.attempt_max.max(attempt);
        }
        if attempt > call {
            let key = if r.has("attempt") { "attempt" } else { "call" };
            let reason =
                "the call ends before its first attempt may time out, so no fallback is ever tried";
            r.issue(
                key,
                Issue::warning(
                    "attempt beyond call",
                    reason,
                    "Make attempt shorter than call.",
                ),
            );
        }
        Self {
            call,
            attempt,
            attempt_max,
        }
    }
}

/// `[cache]`: last known good answers. The section's presence switches them on (RULES: answering
/// from them is an explicit policy).
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Cache {
    /// The most answers kept, 1 to 10000000. Default: 1000.
    #[schemars(range(min = 1, max = 10000000))]
    pub max_entries: u64,
    /// The most bytes kept, 1 KiB to 64 GiB. Default: 64 MiB.
    #[serde(with = "SizeText")]
    #[schemars(with = "SizeText")]
    pub max_bytes: u64,
    /// The oldest an answer may be. Default: 1 h.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub max_age: Duration,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            max_entries: 1_000,
            max_bytes: 64 << 20,
            max_age: Duration::from_secs(3_600),
        }
    }
}

impl Cache {
    pub(super) fn read(r: &mut Reader<'_, '_>) -> Self {
        let base = Self::default();
        Self {
            max_entries: r
                .read("max_entries", value::integer(1..=10_000_000))
                .unwrap_or(base.max_entries),
            max_bytes: r
                .read("max_bytes", value::size(1 << 10..=64 << 30))
                .unwrap_or(base.max_bytes),
            max_age: r
                .read("max_age", value::duration(POSITIVE))
                .unwrap_or(base.max_age),
        }
    }
}
