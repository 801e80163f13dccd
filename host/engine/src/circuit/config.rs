use std::time::Duration;

/// When a circuit opens, for how long, and what closes it again.
///
/// The defaults follow Envoy's outlier detection (five consecutive failures; ejection for base × count,
/// 300 s at most) and the failure-rate breakers of resilience4j and Polly (half of the calls of ten
/// seconds). The base is 5 s rather than Envoy's 30 s: a target here is one of a few, not one of hundreds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitConfig {
    /// Failures in a row that open the circuit. 1 or more. Default: 5.
    pub consecutive_failures: u32,
    /// The share of failures in the window that opens it, in percent, 1 to 100. Default: 50.
    pub failure_rate_percent: u8,
    /// How far back the failure rate looks. 1 s to 1 h. Default: 10 s.
    pub window: Duration,
    /// Results the window must hold before the rate counts, 1 to 10 000. Default: 20.
    pub minimum_throughput: u32,
    /// From this latency on a good answer counts as slow; `None` for never. More than zero, at most 24 h.
    /// Default: `None`, since what is slow only the operator of a tool knows.
    pub slow_after: Option<Duration>,
    /// The share of slow answers in the window that opens it, in percent, 1 to 100 (as resilience4j's slow
    /// call rate). Slowness alone never opens the last closed circuit of a group: a slow answer is better than
    /// none. Default: 50.
    pub slow_rate_percent: u8,
    /// How long it stays open the first time. More than zero. Default: 5 s.
    pub open_base: Duration,
    /// The longest it stays open, before jitter. `open_base` to 24 h. Default: 300 s.
    pub open_max: Duration,
    /// How much longer than that it may stay open, by chance, in percent, 0 to 100. Default: 20.
    pub jitter_percent: u8,
    /// The time closed that takes one opening off the count. More than zero. Default: 30 s.
    pub decay: Duration,
    /// Requests let through at a time while half-open. 1 or more. Default: 1.
    pub half_open_probes: u32,
    /// Good results while half-open that close it. 1 or more. Default: 2.
    pub successes_to_close: u32,
    /// How long a half-open request may go without a result until its place is given to another. More
    /// than zero. Default: 120 s.
    pub lease_timeout: Duration,
}

impl Default for CircuitConfig {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            failure_rate_percent: 50,
            window: Duration::from_secs(10),
            minimum_throughput: 20,
            slow_after: None,
            slow_rate_percent: 50,
            open_base: Duration::from_secs(5),
            open_max: Duration::from_secs(300),
            jitter_percent: 20,
            decay: Duration::from_secs(30),
            half_open_probes: 1,
            successes_to_close: 2,
            lease_timeout: Duration::from_secs(120),
        }
    }
}

/// Why a circuit's configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("circuit: {key} must be {range}")]
pub struct CircuitConfigError {
    /// The setting.
    pub key: &'static str,
    /// What it may be.
    pub range: &'static str,
}

impl CircuitConfig {
    /// Checks every setting against its range.
    ///
    /// # Errors
    /// Names the first setting that is out of range.
    pub fn validate(&self) -> Result<(), CircuitConfigError> {
        let day = Duration::from_secs(24 * 3600);
        let positive = |duration: Duration| !duration.is_zero() && duration <= day;
        for (good, key, range) in [
            (
                self.consecutive_failures >= 1,
                "consecutive_failures",
                "1 or more",
            ),
            (
                (1..=100).contains(&self.failure_rate_percent),
                "failure_rate_percent",
                "1 to 100",
            ),
            (
                (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.window),
                "window",
                "1 s to 1 h",
            ),
            (
                (1..=10_000).contains(&self.minimum_throughput),
                "minimum_throughput",
                "1 to 10000",
            ),
            (
                self.slow_after.is_none_or(positive),
                "slow_after",
                "more than zero, at most 24 h",
            ),
            (
                (1..=100).contains(&self.slow_rate_percent),
                "slow_rate_percent",
                "1 to 100",
            ),
            (
                positive(self.open_base),
                "open_base",
                "more than zero, at most 24 h",
            ),
            (
                self.open_max >= self.open_base && self.open_max <= day,
                "open_max",
                "open_base or more, at most 24 h",
            ),
            (self.jitter_percent <= 100, "jitter_percent", "0 to 100"),
            (
                positive(self.decay),
                "decay",
                "more than zero, at most 24 h",
            ),
            (self.half_open_probes >= 1, "half_open_probes", "1 or more"),
            (
                self.successes_to_close >= 1,
                "successes_to_close",
                "1 or more",
            ),
            (
                positive(self.lease_timeout),
                "lease_timeout",
                "more than zero, at most 24 h",
            ),
        ] {
            if !good {
                return Err(CircuitConfigError { key, range });
            }
        }
        Ok(())
    }
}
