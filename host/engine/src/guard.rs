//! The guard: what an action may do.
//!
//! A strategy proposes, the guard decides whether the proposal may be carried out. It keeps the rules
//! that no policy may break: the deadline, the caps, the retry budget, repeat safety, and that a
//! fallback path never asks the same target the same thing twice. A refusal is recorded, and the next
//! strategy is asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// Caps on one call, whatever its strategies propose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Attempts in one call at most, the first included. Default: 16.
    pub max_attempts: u32,
    /// Changes of target or operation in one call at most. Default: 8.
    pub max_fallbacks: u32,
}

impl Default for Caps {
    fn default() -> Self {
        // The longest row of the default retry table (429: five retries) on two targets, and a few
        // fallbacks more.
        Self {
            max_attempts: 16,
            max_fallbacks: 8,
        }
    }
}

/// Why the guard refused an action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The wait does not fit into the time left.
    #[error("a wait of {wait:?} does not fit into the {left:?} left")]
    Deadline {
        /// The wait.
        wait: Duration,
        /// The time left.
        left: Duration,
    },
    /// The call has made all the attempts it may.
    #[error("the call has made its {0} attempts")]
    AttemptCap(u32),
    /// The call has taken all the fallbacks it may.
    #[error("the call has taken its {0} fallbacks")]
    FallbackCap(u32),
    /// The group's retry budget is empty.
    #[error("the retry budget of group {0:?} is empty")]
    Budget(Arc<str>),
    /// The failure would only come again.
    #[error("the same request would only fail again")]
    NotRetryable,
    /// Sending again could carry the operation out twice.
    #[error("the operation may have been carried out and must not be repeated")]
    NotRepeatable,
    /// The retry policy allows no further retry.
    #[error("the retry policy allows no further retry after this failure")]
    RetriesUsedUp,
    /// The target was silent for a whole timeout, and another is left.
    #[error("the target stayed silent and another one is left")]
    Silent,
    /// The same target was asked the same thing on this path already.
    #[error("{target:?} was asked for {operation:?} with these arguments already")]
    Visited {
        /// The target.
        target: Arc<str>,
        /// The operation.
        operation: Arc<str>,
    },
    /// There is no such target in the group.
    #[error("there is no target named {0:?} in the group")]
    UnknownTarget(String),
    /// No target that could be asked is left.
    #[error("no other target that can be asked is left")]
    NoTarget,
    /// The target cannot serve this request at all.
    #[error("{0:?} cannot serve this request")]
    Unfit(Arc<str>),
    /// The target's circuit is open, or it is being drained.
    #[error("{0:?} takes no requests now: its circuit is open or it is drained")]
    NotAdmitted(Arc<str>),
    /// The call belongs to one target.
    #[error("the call is pinned to its target")]
    Pinned,
    /// There is no last known good answer.
    #[error(
        "there is no last known good answer for this operation, these arguments and this caller"
    )]
    NothingKnown,
    /// This kind of call cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// The host does not know the action.
    #[error("this host knows no action named {0:?}")]
    UnknownAction(String),
}

/// Everything a call has asked for so far, so that it asks nothing twice.
#[derive(Debug, Default)]
pub(crate) struct Visited(Vec<(Arc<str>, Arc<str>, Bytes)>);

impl Visited {
    /// Notes an attempt. `arguments` are canonical.
    pub(crate) fn insert(&mut self, target: &Arc<str>, operation: &Arc<str>, arguments: &Bytes) {
        if !self.contains(target, operation, arguments) {
            self.0
                .push((target.clone(), operation.clone(), arguments.clone()));
        }
    }

    pub(crate) fn contains(&self, target: &str, operation: &str, arguments: &[u8]) -> bool {
        self.0
            .iter()
            .any(|(t, o, a)| &**t == target && &**o == operation && a == arguments)
    }

    /// The targets that were asked for this.
    pub(crate) fn targets_of(&self, operation: &str, arguments: &[u8]) -> Vec<Arc<str>> {
        self.0
            .iter()
            .filter(|(_, o, a)| &**o == operation && a == arguments)
            .map(|(t, ..)| t.clone())
            .collect()
    }
}

/// What the guard counts in one call.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) caps: Caps,
    /// Attempts made, and rounds in which no target could be asked: both end a call in the end.
    pub(crate) attempts: u32,
    pub(crate) fallbacks: u32,
    /// Retries of the present operation on the present target.
    pub(crate) retries: u32,
    pub(crate) visited: Visited,
    /// Whether the server may have carried the operation out: once true, true for ever.
    pub(crate) maybe_done: bool,
}

impl Ledger {
    pub(crate) fn new(caps: Caps) -> Self {
        Self {
            caps,
            attempts: 0,
            fallbacks: 0,
            retries: 0,
            visited: Visited::default(),
            maybe_done: false,
        }
    }

    /// Whether another attempt of any sort may be made.
    pub(crate) fn check_attempt(&self) -> Result<(), Refusal> {
        if self.attempts >= self.caps.max_attempts {
            return Err(Refusal::AttemptCap(self.caps.max_attempts));
        }
        Ok(())
    }

    /// Whether another change of target or operation may be made.
    pub(crate) fn check_fallback(&self) -> Result<(), Refusal> {
        if self.fallbacks >= self.caps.max_fallbacks {
            return Err(Refusal::FallbackCap(self.caps.max_fallbacks));
        }
        self.check_attempt()
    }
}
