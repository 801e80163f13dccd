//! What a strategy is told about a failure, and what it may ask.
//!
//! Built once per failure, owned and cheap to share, so that a sandboxed instance can hold it. What
//! costs something to find out is asked for through methods, not collected in advance.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use crate::call::{AttemptRecord, CallFacts};
use crate::failure::Failure;

/// One failure of one call, as a strategy sees it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Situation {
    /// The failure.
    pub failure: Arc<Failure>,
    /// The call: id, group, caller, importance, details.
    pub call: Arc<CallFacts>,
    /// The present operation, which a fallback may have changed.
    pub operation: Arc<str>,
    /// The present operation's arguments, as JSON.
    pub arguments: Option<Bytes>,
    /// The present target: the one that failed. `None` where none could be asked.
    pub target: Option<Arc<str>>,
    /// The attempts so far, oldest first.
    pub attempts: Arc<[AttemptRecord]>,
    /// Retries of the present operation on the present target so far.
    pub retries: u32,
    /// Fallbacks taken so far.
    pub fallbacks: u32,
    /// The call's deadline.
    pub deadline: Instant,
    /// Whether the guard would let the operation be sent again now.
    pub repeatable: bool,
    /// The delay the retry policy prescribes before the next retry; `None` where it allows none.
    pub next_delay: Option<Duration>,
    /// What else may be asked.
    pub surroundings: Arc<dyn Surroundings>,
}

impl Situation {
    /// A situation with only a failure in it: the start of a test, or of a decision outside a call.
    pub fn of(failure: Failure) -> Self {
        Self {
            failure: Arc::new(failure),
            call: Arc::new(CallFacts::default()),
            operation: "".into(),
            arguments: None,
            target: None,
            attempts: Arc::from([]),
            retries: 0,
            fallbacks: 0,
            deadline: Instant::now() + Duration::from_secs(60),
            repeatable: true,
            next_delay: None,
            surroundings: Arc::new(Nowhere),
        }
    }

    /// Time left until the call's deadline.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

impl fmt::Debug for Situation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Situation")
            .field("failure", &self.failure)
            .field("call", &self.call)
            .field("operation", &self.operation)
            .field("target", &self.target)
            .field("attempts", &self.attempts.len())
            .field("retries", &self.retries)
            .field("fallbacks", &self.fallbacks)
            .finish_non_exhaustive()
    }
}

/// What surrounds a call: the targets of its group, the last known good answer, time and chance.
pub trait Surroundings: Send + Sync {
    /// The targets of the group, best priority first.
    fn targets(&self) -> Vec<TargetView>;
    /// The best target this call has not asked yet with its present operation; `kind` narrows it.
    fn best_target(&self, kind: Option<&str>) -> Option<Arc<str>>;
    /// Anything else known of a target.
    fn target_attribute(&self, target: &str, key: &str) -> Option<String>;
    /// The last known good answer to what the caller asked for.
    fn last_known_good(&self) -> Option<KnownGood>;
    /// The wall clock.
    fn wall_clock(&self) -> SystemTime;
    /// A number spread evenly over all of `u64`.
    fn random(&self) -> u64;
}

/// One target, as a strategy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TargetView {
    pub name: Arc<str>,
    /// `service` or `model`.
    pub kind: &'static str,
    pub priority: i32,
    pub weight: u32,
    pub healthy: bool,
    /// Its circuit lets a request through.
    pub admitted: bool,
    /// It was asked in this call already for the present operation with the present arguments.
    pub tried: bool,
    /// It is the present target.
    pub present: bool,
}

/// A last known good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownGood {
    /// How long ago it was given.
    pub age: Duration,
    /// The target that gave it.
    pub target: Arc<str>,
    /// The answer, as JSON.
    pub body: Bytes,
}

/// Surroundings in which there is nothing.
struct Nowhere;

impl Surroundings for Nowhere {
    fn targets(&self) -> Vec<TargetView> {
        Vec::new()
    }
    fn best_target(&self, _: Option<&str>) -> Option<Arc<str>> {
        None
    }
    fn target_attribute(&self, _: &str, _: &str) -> Option<String> {
        None
    }
    fn last_known_good(&self) -> Option<KnownGood> {
        None
    }
    fn wall_clock(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
    fn random(&self) -> u64 {
        0
    }
}
