//! Retry: whether, how often and after which wait the same request is sent to the same target again.
//!
//! There is one retry loop. The call loop asks [`RetryManager::next_delay`], and so do strategies
//! through the contract's `retry-policy`; layers below have their own retries switched off. A
//! policy belongs to a kind of failure, since a refused connection wants a quick second try and a
//! throttled request wants patience. Everything can be changed while running; reading takes no lock.
//!
//! The defaults: 3 retries, 0.1 s first delay, factor 2, at most 60 s, equal jitter; for the well-known
//! kinds the table below, and besides StreamInterrupted as ConnectionError, and one retry at once of
//! SessionExpired and ProtocolError.
//!
//! The jitter is equal jitter throughout: each delay lies between half of the figure and the figure.
//! It spreads clients almost as well as full jitter and never sends a retry at once.
#![doc = include_str!("kinds.md")]

mod run;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::backoff::Backoff;
use crate::call::RepeatSafety;
use crate::failure::Failure;
use crate::kind::Kind;

pub use run::{RetryEnding, RetryError, RetryRun};

/// A condition of one's own: whether to retry.
pub type RetryCondition = Arc<dyn Fn(&RetryContext<'_>) -> bool + Send + Sync>;

/// What a retry is decided by.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RetryContext<'a> {
    /// The failure.
    pub failure: &'a Failure,
    /// Retries of the present operation on the present target so far.
    pub retries: u32,
    /// Attempts of the call so far, on every target, the failed one included.
    pub attempts: u32,
    /// How much the caller cares, 0 to 100.
    pub importance: u8,
    /// The time until the call's deadline.
    pub time_left: Duration,
    /// Whether the operation may be repeated when it is not known if it was carried out.
    pub safety: RepeatSafety,
    /// Whether it may be sent again now: it is repeatable, or was not carried out for sure.
    pub repeatable: bool,
}

impl<'a> RetryContext<'a> {
    /// The context of an operation that may be repeated, on one target, of a caller who says nothing of
    /// its importance. What differs is set in the fields.
    pub fn new(failure: &'a Failure, retries: u32, time_left: Duration) -> Self {
        Self {
            failure,
            retries,
            attempts: retries.saturating_add(1),
            importance: 50,
            time_left,
            safety: RepeatSafety::Idempotent,
            repeatable: true,
        }
    }
}

/// How failures of one kind are retried.
#[derive(Clone)]
pub struct RetryPolicy {
    /// Retries at most, the first attempt not counted.
    pub max_retries: u32,
    /// The delays.
    pub backoff: Backoff,
    /// Replaces the question whether the failure is retryable. `max_retries`, the deadline and the
    /// guard's other rules hold all the same.
    pub condition: Option<RetryCondition>,
}

impl RetryPolicy {
    /// A policy without a condition.
    pub fn new(max_retries: u32, backoff: Backoff) -> Self {
        Self {
            max_retries,
            backoff,
            condition: None,
        }
    }

    /// Adds a condition.
    ///
    /// ```
    /// use std::time::Duration;
    /// use backstop::retry::RetryPolicy;
    ///
    /// // Patience for those who care, and while there is time.
    /// let policy = RetryPolicy::default().with_condition(|context| {
    ///     context.failure.retryable
    ///         && (context.retries == 0 || context.importance >= 50)
    ///         && context.time_left > Duration::from_secs(2)
    /// });
    /// ```
    #[must_use]
    pub fn with_condition(
        mut self,
        condition: impl Fn(&RetryContext<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.condition = Some(Arc::new(condition));
        self
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new(3, Backoff::standard())
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("max_retries", &self.max_retries)
            .field("backoff", &self.backoff)
            .field("condition", &self.condition.is_some())
            .finish()
    }
}

/// Every retry policy there is.
#[derive(Debug, Clone)]
pub struct RetryPolicies {
    /// For kinds without a policy of their own.
    pub default: RetryPolicy,
    /// By kind.
    pub by_kind: HashMap<Kind, RetryPolicy>,
}

impl RetryPolicies {
    /// One policy for every kind.
    pub fn uniform(default: RetryPolicy) -> Self {
        Self {
            default,
            by_kind: HashMap::new(),
        }
    }

    /// The policy of a kind.
    pub fn of(&self, kind: &Kind) -> &RetryPolicy {
        self.by_kind.get(kind).unwrap_or(&self.default)
    }
}

/// The default table as data: kind, and the delays in milliseconds, one for each retry.
const DEFAULT_TABLE: &[(Kind, &[u64])] = &[
    (Kind::CONNECTION_ERROR, &[100, 200, 400]),
    (Kind::STREAM_INTERRUPTED, &[100, 200, 400]),
    (Kind::TIMEOUT_ERROR, &[500, 1000]),
    (Kind::GATEWAY_TIMEOUT, &[500, 1000]),
    (Kind::SERVICE_UNAVAILABLE, &[100]),
    (Kind::BAD_GATEWAY, &[100]),
    (Kind::TOO_MANY_REQUESTS, &[1000, 2000, 4000, 8000, 16_000]),
    (Kind::INTERNAL_SERVER_ERROR, &[200, 400]),
    // Once, after the session or the tool list was made anew.
    (Kind::SESSION_EXPIRED, &[0]),
    (Kind::PROTOCOL_ERROR, &[0]),
    (Kind::INVALID_PARAMETER, &[]),
    (Kind::UNAUTHORIZED, &[]),
    (Kind::FORBIDDEN, &[]),
];

impl Default for RetryPolicies {
    fn default() -> Self {
        let row = |(kind, delays): &(Kind, &[u64])| {
            let backoff = match delays.split_first() {
                Some((first, rest)) => Backoff::of_millis(*first, rest),
                None => Backoff::standard(),
            };
            (
                kind.clone(),
                RetryPolicy::new(u32::try_from(delays.len()).unwrap_or(u32::MAX), backoff),
            )
        };
        Self {
            default: RetryPolicy::default(),
            by_kind: DEFAULT_TABLE.iter().map(row).collect(),
        }
    }
}

/// The retry policies in force. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct RetryManager {
    policies: Arc<ArcSwap<RetryPolicies>>,
}

impl RetryManager {
    /// A manager with these policies; [`RetryManager::default`] has the default table.
    pub fn new(policies: RetryPolicies) -> Self {
        Self {
            policies: Arc::new(ArcSwap::from_pointee(policies)),
        }
    }

    /// The policies in force.
    pub fn policies(&self) -> Arc<RetryPolicies> {
        self.policies.load_full()
    }

    /// Replaces all policies in one step.
    pub fn replace(&self, policies: RetryPolicies) {
        self.policies.store(Arc::new(policies));
    }

    /// Sets the policy of a kind.
    pub fn set_policy(&self, kind: Kind, policy: RetryPolicy) {
        self.change(|policies| {
            policies.by_kind.insert(kind.clone(), policy.clone());
        });
    }

    /// Removes the policy of a kind, which then follows the default.
    pub fn remove_policy(&self, kind: &Kind) {
        self.change(|policies| {
            policies.by_kind.remove(kind);
        });
    }

    /// Sets the policy of every kind without one of its own.
    pub fn set_default(&self, policy: RetryPolicy) {
        self.change(|policies| policies.default = policy.clone());
    }

    fn change(&self, change: impl Fn(&mut RetryPolicies)) {
        self.policies.rcu(|policies| {
            let mut policies = RetryPolicies::clone(policies);
            change(&mut policies);
            policies
        });
    }

    /// The delay before the next retry, or `None` where there is to be none: the failure is not
    /// retryable, the retries made so far are all the policy allows, or the wait would not end before
    /// the time left does.
    ///
    /// `previous` is the delay before the retry before it; `random` is spread evenly over all of
    /// `u64`. A server's own hint makes the delay longer, never shorter. Throttling never gets bare
    /// full jitter.
    pub fn next_delay(
        &self,
        context: &RetryContext<'_>,
        previous: Option<Duration>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Duration> {
        self.wanted_delay(context, previous, random)
            .filter(|delay| *delay < context.time_left)
    }

    /// The same, whether or not it fits into the time left.
    fn wanted_delay(
        &self,
        context: &RetryContext<'_>,
        previous: Option<Duration>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Duration> {
        let RetryContext {
            failure, retries, ..
        } = *context;
        let policies = self.policies.load();
        let policy = policies.of(&failure.kind);
        if retries >= policy.max_retries {
            return None;
        }
        let wanted = match &policy.condition {
            Some(condition) => condition(context),
            None => failure.retryable,
        };
        if !wanted {
            return None;
        }
        let throttled = failure.kind == Kind::TOO_MANY_REQUESTS || failure.http_status == Some(429);
        let delay = if throttled {
            policy.backoff.throttled_delay(retries, previous, random)
        } else {
            policy.backoff.delay(retries, previous, random)
        };
        Some(delay.max(failure.retry_after.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests;
