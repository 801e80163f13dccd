//! Active health checks: asking a target how it is, while nobody needs it.
//!
//! They find out that an idle target is gone before a caller does, and that it is back. What live
//! traffic finds out is the business of the [circuit](crate::circuit), and each has its own say: a good
//! probe does not close a circuit that live traffic opened, because a server can answer `/health` and
//! nothing else.
//!
//! What is asked is a [`Prober`]'s business: [`UrlProber`] asks over HTTP or opens a TCP connection, by the
//! scheme of the health URL. When is the [`HealthChecker`]'s: it keeps one queue for all targets, ordered by
//! time, so that ten thousand idle targets cost next to nothing.

mod check;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "http")]
mod tcp;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub use check::{HealthChecker, Prober};
#[cfg(feature = "http")]
pub use http::{HttpProber, HttpProberError};
#[cfg(feature = "http")]
pub use tcp::{TcpProber, UrlProber};

/// How often targets are asked, and how many answers it takes to believe them.
///
/// A target may have an interval and a time-out of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// The time between two probes of a target. More than zero, at most 24 h. Default: 30 s.
    pub interval: Duration,
    /// The time to the next probe while the answers are changing: after a bad one of a healthy target, a
    /// good one of an unhealthy target, and until the first result. Never longer than the interval (HAProxy's
    /// `fastinter`). More than zero, at most 24 h. Default: 5 s.
    pub fast_interval: Duration,
    /// The time a probe may take. More than zero, at most 24 h. Default: 5 s.
    pub timeout: Duration,
    /// Good answers in a row that make an unhealthy target healthy. 1 or more. Default: 2. At the start one
    /// is enough.
    pub rise: u32,
    /// Bad answers in a row that make a target unhealthy. 1 or more. Default: 3.
    pub fall: u32,
    /// How much earlier or later than the interval says a probe starts, by chance, in percent, 0 to 50.
    /// Default: 10.
    pub jitter_percent: u8,
    /// Probes under way at a time. 1 to 4096. Default: 256, which is enough for 10 000 targets of which one
    /// in seven hangs.
    pub concurrency: u16,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            fast_interval: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            rise: 2,
            fall: 3,
            jitter_percent: 10,
            concurrency: 256,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("health: {key} must be {range}")]
pub struct HealthConfigError {
    /// The setting.
    pub key: &'static str,
    /// What it may be.
    pub range: &'static str,
}

impl HealthConfig {
    /// Checks every setting against its range.
    ///
    /// # Errors
    /// Names the first setting that is out of range.
    pub fn validate(&self) -> Result<(), HealthConfigError> {
        let positive = |time: Duration| !time.is_zero() && time <= Duration::from_secs(24 * 3600);
        for (good, key, range) in [
            (
                positive(self.interval),
                "interval",
                "more than zero, at most 24 h",
            ),
            (
                positive(self.fast_interval),
                "fast_interval",
                "more than zero, at most 24 h",
            ),
            (
                positive(self.timeout),
                "timeout",
                "more than zero, at most 24 h",
            ),
            (self.rise >= 1, "rise", "1 or more"),
            (self.fall >= 1, "fall", "1 or more"),
            (self.jitter_percent <= 50, "jitter_percent", "0 to 50"),
            (
                (1..=4096).contains(&self.concurrency),
                "concurrency",
                "1 to 4096",
            ),
        ] {
            if !good {
                return Err(HealthConfigError { key, range });
            }
        }
        Ok(())
    }
}

/// What health checks say of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Nothing yet. Counts as healthy.
    Unknown,
    /// Healthy.
    Healthy,
    /// Unhealthy.
    Unhealthy,
}

impl HealthStatus {
    /// Whether it speaks against the target.
    pub fn is_unhealthy(self) -> bool {
        self == Self::Unhealthy
    }
}

/// The health of one target. Read without a lock.
#[derive(Debug, Default)]
pub(crate) struct Health {
    status: AtomicU8,
    /// Grows when what is probed changes.
    version: AtomicU64,
    streak: Mutex<Streak>,
}

#[derive(Debug, Default)]
struct Streak {
    good: u32,
    bad: u32,
    checked: Option<Instant>,
}

impl Health {
    pub(crate) fn status(&self) -> HealthStatus {
        match self.status.load(Ordering::Acquire) {
            0 => HealthStatus::Unknown,
            1 => HealthStatus::Healthy,
            _ => HealthStatus::Unhealthy,
        }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn last_checked(&self) -> Option<Instant> {
        self.streak
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .checked
    }

    /// Whether the last answers do not agree with the status.
    pub(crate) fn is_turning(&self) -> bool {
        let streak = self.streak.lock().unwrap_or_else(PoisonError::into_inner);
        match self.status() {
            HealthStatus::Unknown => true,
            HealthStatus::Healthy => streak.bad > 0,
            HealthStatus::Unhealthy => streak.good > 0,
        }
    }

    /// Counts a result; says whether the target has become healthy (`true`) or unhealthy.
    pub(crate) fn record(
        &self,
        version: u64,
        well: bool,
        config: &HealthConfig,
        now: Instant,
    ) -> Option<bool> {
        let mut streak = self.streak.lock().unwrap_or_else(PoisonError::into_inner);
        if version != self.version() {
            return None;
        }
        streak.checked = Some(now);
        if well {
            streak.good = streak.good.saturating_add(1);
            streak.bad = 0;
        } else {
            streak.bad = streak.bad.saturating_add(1);
            streak.good = 0;
        }
        let status = self.status();
        if well
            && (status == HealthStatus::Unknown
                || status.is_unhealthy() && streak.good >= config.rise)
        {
            self.status.store(1, Ordering::Release);
            return status.is_unhealthy().then_some(true);
        }
        if !well && !status.is_unhealthy() && streak.bad >= config.fall {
            self.status.store(2, Ordering::Release);
            return Some(false);
        }
        None
    }

    /// Forgets everything but when it was checked; says whether it was unhealthy.
    pub(crate) fn reset(&self) -> bool {
        let mut streak = self.streak.lock().unwrap_or_else(PoisonError::into_inner);
        self.version.fetch_add(1, Ordering::Release);
        (streak.good, streak.bad) = (0, 0);
        let was_unhealthy = self.status().is_unhealthy();
        self.status.store(0, Ordering::Release);
        was_unhealthy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(health: &Health, well: bool) -> Option<bool> {
        health.record(
            health.version(),
            well,
            &HealthConfig::default(),
            Instant::now(),
        )
    }

    #[test]
    fn one_success_is_enough_at_the_start() {
        let health = Health::default();
        assert_eq!(health.status(), HealthStatus::Unknown);
        record(&health, false);
        record(&health, true);
        assert_eq!(health.status(), HealthStatus::Healthy);
    }

    #[test]
    fn it_falls_and_rises_by_thresholds_of_their_own() {
        let health = Health::default();
        let falling: Vec<_> = (0..4).map(|_| record(&health, false)).collect();
        assert_eq!(falling, [None, None, Some(false), None]);
        assert_eq!(record(&health, true), None);
        assert_eq!(record(&health, false), None);
        let rising: Vec<_> = (0..3).map(|_| record(&health, true)).collect();
        assert_eq!(rising, [None, Some(true), None]);
    }

    #[test]
    fn a_result_about_what_was_probed_before_is_ignored() {
        let health = Health::default();
        let version = health.version();
        health.reset();
        for _ in 0..5 {
            health.record(version, false, &HealthConfig::default(), Instant::now());
        }
        assert_eq!(health.status(), HealthStatus::Unknown);
    }
}
