//! A retry policy of the strategy's own: how often, and after which delay.

use backstop_sdk::Kind;
use serde::Deserialize;
use std::time::Duration;

/// One policy, as the operator writes it. Delays are milliseconds.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Policy {
    /// Retries on one target; without it 3, or as many as `delays_ms` has.
    max_retries: Option<u32>,
    intervals: Intervals,
    initial_ms: u64,
    max_ms: u64,
    factor: f64,
    jitter: Option<Jitter>,
    delays_ms: Vec<u64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_retries: None,
            intervals: Intervals::Exponential,
            initial_ms: 100,
            max_ms: 60_000,
            factor: 2.0,
            jitter: None,
            delays_ms: Vec::new(),
        }
    }
}

/// How the delay grows from retry to retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Intervals {
    /// `initial_ms` each time.
    Fixed,
    /// `initial_ms · factor^n`, at most `max_ms`.
    Exponential,
    /// Spread evenly between `initial_ms` and `max_ms`.
    Random,
}

/// How a computed delay is spread, so that clients which failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Jitter {
    None,
    /// Half of it for sure, the other half by chance.
    Equal,
    /// All of it by chance.
    Full,
}

impl Policy {
    /// Checks what a schema cannot. `name` is the policy's key.
    pub(crate) fn check(&self, name: &str) -> Result<(), String> {
        let wrong = |field: &str, what: &str| Err(format!("policies.{name}.{field}: {what}"));
        if !self.factor.is_finite() || self.factor < 1.0 {
            return wrong("factor", "must be a number of at least 1");
        }
        if self.initial_ms > self.max_ms {
            return wrong(
                "initial_ms",
                "is greater than max_ms; lower it or raise max_ms",
            );
        }
        Ok(())
    }

    /// Retries on one target.
    pub(crate) fn max_retries(&self) -> u32 {
        let listed = u32::try_from(self.delays_ms.len()).unwrap_or(u32::MAX);
        self.max_retries
            .unwrap_or(if listed > 0 { listed } else { 3 })
    }

    /// The delay before retry `retry`, counted from 0.
    ///
    /// The cap comes before the jitter, and any overflow is the cap. Throttling never gets bare full
    /// jitter, which can collapse to nothing and meet the throttle again at once.
    pub(crate) fn delay(&self, retry: u32, kind: &Kind, random: impl FnOnce() -> u64) -> Duration {
        let throttled = *kind == Kind::TOO_MANY_REQUESTS;
        let listed = usize::try_from(retry)
            .ok()
            .and_then(|n| self.delays_ms.get(n))
            .or(self.delays_ms.last());
        let (full, usual) = match (listed, self.intervals) {
            (Some(listed), _) => (*listed, Jitter::None),
            (None, Intervals::Fixed) => (self.initial_ms, Jitter::None),
            (None, Intervals::Exponential) => (self.exponential(retry), Jitter::Equal),
            (None, Intervals::Random) => {
                let low = if throttled {
                    self.initial_ms.max(self.max_ms / 2)
                } else {
                    self.initial_ms
                };
                return Duration::from_millis(between(low, self.max_ms, random));
            }
        };
        let full = full.min(self.max_ms);
        Duration::from_millis(match self.jitter.unwrap_or(usual) {
            Jitter::None => full,
            Jitter::Full if !throttled => between(0, full, random),
            Jitter::Full | Jitter::Equal => between(full / 2, full, random),
        })
    }

    fn exponential(&self, retry: u32) -> u64 {
        let exponent = i32::try_from(retry).unwrap_or(i32::MAX);
        let delay = self.initial_ms as f64 * self.factor.powi(exponent);
        // `0 · ∞` is no number; everything too large becomes the cap.
        if delay.is_nan() {
            0
        } else {
            delay.min(self.max_ms as f64) as u64
        }
    }
}

/// A number from `low` to `high`, both included.
fn between(low: u64, high: u64, random: impl FnOnce() -> u64) -> u64 {
    match high.saturating_sub(low).checked_add(1) {
        Some(span) => low + ((u128::from(random()) * u128::from(span)) >> 64) as u64,
        None => random(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(policy: &Policy, kind: &Kind, random: u64) -> Vec<u64> {
        (0..4)
            .map(|n| policy.delay(n, kind, || random).as_millis() as u64)
            .collect()
    }

    #[test]
    fn exponential_intervals_grow_by_the_factor_up_to_the_cap() {
        let policy = Policy {
            max_ms: 350,
            jitter: Some(Jitter::None),
            ..Policy::default()
        };
        assert_eq!(
            delays(&policy, &Kind::CONNECTION_ERROR, 0),
            [100, 200, 350, 350]
        );
        for retry in [10_000, u32::MAX] {
            assert_eq!(policy.delay(retry, &Kind::UNKNOWN, || 0).as_millis(), 350);
        }
        let zero = Policy {
            initial_ms: 0,
            ..policy
        };
        assert_eq!(zero.delay(u32::MAX, &Kind::UNKNOWN, || 0).as_millis(), 0);
    }

    #[test]
    fn fixed_and_listed_delays_are_taken_as_they_stand() {
        let fixed = Policy {
            intervals: Intervals::Fixed,
            ..Policy::default()
        };
        assert_eq!(delays(&fixed, &Kind::TIMEOUT_ERROR, 7), [100; 4]);
        let listed = Policy {
            delays_ms: vec![5, 9],
            ..Policy::default()
        };
        assert_eq!(delays(&listed, &Kind::TIMEOUT_ERROR, 7), [5, 9, 9, 9]);
        assert_eq!(listed.max_retries(), 2);
    }

    #[test]
    fn random_intervals_lie_between_the_two_ends() {
        let policy = Policy {
            intervals: Intervals::Random,
            initial_ms: 10,
            max_ms: 20,
            ..Policy::default()
        };
        let delay = |random| policy.delay(0, &Kind::UNKNOWN, || random).as_millis();
        assert_eq!((delay(0), delay(u64::MAX)), (10, 20));
        let widest = Policy {
            initial_ms: 0,
            max_ms: u64::MAX,
            ..policy
        };
        assert_eq!(widest.delay(0, &Kind::UNKNOWN, || 42).as_millis(), 42);
    }

    #[test]
    fn throttling_never_gets_bare_full_jitter() {
        let full = Policy {
            jitter: Some(Jitter::Full),
            ..Policy::default()
        };
        assert_eq!(full.delay(0, &Kind::CONNECTION_ERROR, || 0).as_millis(), 0);
        assert_eq!(
            full.delay(0, &Kind::TOO_MANY_REQUESTS, || 0).as_millis(),
            50
        );
        let random = Policy {
            intervals: Intervals::Random,
            initial_ms: 0,
            max_ms: 80,
            ..full
        };
        assert_eq!(
            random.delay(0, &Kind::TOO_MANY_REQUESTS, || 0).as_millis(),
            40
        );
    }

    #[test]
    fn a_policy_that_makes_no_sense_is_refused_by_field() {
        let shrinking = Policy {
            factor: 0.5,
            ..Policy::default()
        };
        assert!(
            shrinking
                .check("X")
                .unwrap_err()
                .starts_with("policies.X.factor")
        );
        let inverted = Policy {
            initial_ms: 2,
            max_ms: 1,
            ..Policy::default()
        };
        assert!(
            inverted
                .check("X")
                .unwrap_err()
                .starts_with("policies.X.initial_ms")
        );
    }
}
