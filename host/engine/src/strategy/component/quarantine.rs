//! Quarantine: a strategy that keeps failing is left alone for a while, and tried again later.
//!
//! Each fault costs the call up to a whole decision deadline, so a broken strategy must not be asked
//! on every failure; and it must not be given up for good, because what broke it may pass.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// When a strategy is quarantined, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct QuarantinePolicy {
    /// Faults in a row that lead to quarantine; 0 counts as 1. Default: 3.
    pub faults: u32,
    /// Milliseconds of the first quarantine; each further one lasts twice as long. Default: 1000.
    pub first_ms: u64,
    /// Milliseconds of the longest quarantine. Default: 300 000 (5 minutes).
    pub longest_ms: u64,
}

impl Default for QuarantinePolicy {
    fn default() -> Self {
        Self {
            faults: 3,
            first_ms: 1_000,
            longest_ms: 300_000,
        }
    }
}

/// How a strategy stands, for a status page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Standing {
    /// Faults since the last decision that went well.
    pub faults: u32,
    /// Milliseconds until it is asked again; `None` where it is not quarantined.
    pub quarantined_for_ms: Option<u64>,
}

/// The count of one strategy.
#[derive(Debug)]
pub(super) struct Quarantine {
    policy: QuarantinePolicy,
    count: Mutex<Count>,
}

#[derive(Debug, Default)]
struct Count {
    faults: u32,
    spells: u32,
    until: Option<Instant>,
}

impl Quarantine {
    pub(super) fn new(policy: QuarantinePolicy) -> Self {
        Self {
            policy,
            count: Mutex::default(),
        }
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The faults that keep the strategy in quarantine now; `None` where it may be asked.
    pub(super) fn held(&self) -> Option<u32> {
        let count = self.count();
        count
            .until
            .is_some_and(|until| Instant::now() < until)
            .then_some(count.faults)
    }

    pub(super) fn standing(&self) -> Standing {
        let count = self.count();
        let left = count
            .until
            .map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.filter(|left| !left.is_zero());
        Standing {
            faults: count.faults,
            quarantined_for_ms: left
                .map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)),
        }
    }

    pub(super) fn succeeded(&self) {
        *self.count() = Count::default();
    }

    /// Counts a fault. Says for how long the strategy is now quarantined, where this fault led to it.
    pub(super) fn faulted(&self) -> Option<Duration> {
        let mut count = self.count();
        count.faults = count.faults.saturating_add(1);
        let now = Instant::now();
        // Decisions that were under way when the quarantine began do not prolong it.
        if count.until.is_some_and(|until| now < until) || count.faults < self.policy.faults {
            return None;
        }
        let factor = 1_u64.checked_shl(count.spells).unwrap_or(u64::MAX);
        let spell = Duration::from_millis(
            self.policy
                .first_ms
                .saturating_mul(factor)
                .min(self.policy.longest_ms),
        );
        count.spells = count.spells.saturating_add(1);
        count.until = now.checked_add(spell);
        Some(spell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn three_faults_in_a_row_quarantine_and_each_further_spell_is_twice_as_long_up_to_the_cap()
     {
        let quarantine = Quarantine::new(QuarantinePolicy::default());
        assert_eq!((quarantine.faulted(), quarantine.faulted()), (None, None));
        let mut spell = Duration::from_secs(1);
        for _ in 0..100 {
            assert_eq!(quarantine.faulted(), Some(spell));
            assert!(quarantine.held().is_some());
            assert_eq!(
                quarantine.faulted(),
                None,
                "a late fault does not prolong it"
            );
            tokio::time::advance(spell).await;
            assert_eq!(quarantine.held(), None, "it is released by itself");
            spell = (spell * 2).min(Duration::from_secs(300));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_success_starts_the_count_again() {
        let quarantine = Quarantine::new(QuarantinePolicy::default());
        quarantine.faulted();
        quarantine.faulted();
        quarantine.succeeded();
        assert_eq!((quarantine.faulted(), quarantine.faulted()), (None, None));
        assert_eq!(
            quarantine.standing(),
            Standing {
                faults: 2,
                quarantined_for_ms: None
            }
        );
        assert!(quarantine.faulted().is_some());
    }
}
