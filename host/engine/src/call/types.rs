//! What goes into a call and what comes out of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::hedge::Hedge;
use crate::kind::Kind;
use crate::registry::Target;
use crate::strategy::ActionKind;

/// What kind of thing is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Level {
    #[default]
    Tool,
    Resource,
    Prompt,
    Model,
    /// Anything else an embedder calls.
    Other,
}

impl Level {
    /// The level's name, as strategies see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tool => "tool",
            Self::Resource => "resource",
            Self::Prompt => "prompt",
            Self::Model => "model",
            Self::Other => "other",
        }
    }
}

/// Whether an operation may be sent again when it is not known if it was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, serde::Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RepeatSafety {
    /// It changes nothing (`readOnlyHint` of a trusted server).
    ReadOnly,
    /// Doing it twice is the same as doing it once (`idempotentHint` of a trusted server).
    Idempotent,
    /// It must not be done twice, or nothing is known.
    #[default]
    Unsafe,
}

impl RepeatSafety {
    /// Whether it may be sent again after an ambiguous failure.
    pub fn is_repeatable(self) -> bool {
        self != Self::Unsafe
    }
}

/// What the caller says about a call.
#[derive(Debug, Clone, Default)]
#[must_use = "a call does nothing until it is executed"]
pub struct Call {
    pub(crate) facts: CallFacts,
    pub(crate) deadline: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) safety: Option<RepeatSafety>,
    pub(crate) hedge: Option<Hedge>,
    pub(crate) pin: Option<Arc<str>>,
    pub(crate) no_fallback: bool,
}

impl Call {
    /// A call of an operation of a group.
    pub fn new(group: impl Into<Arc<str>>, operation: impl Into<Arc<str>>) -> Self {
        Self {
            facts: CallFacts {
                group: group.into(),
                operation: operation.into(),
                ..CallFacts::default()
            },
            ..Self::default()
        }
    }

    /// What kind of thing is called. Default: a tool.
    pub fn level(mut self, level: Level) -> Self {
        self.facts.level = level;
        self
    }

    /// The time the whole call may take: attempts, waits, fallbacks and decisions together. Default:
    /// the engine's.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The time one attempt may be silent. Default: the engine's.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// Whether the operation may be repeated. Default: what the exchange knows of it.
    pub fn repeat_safety(mut self, safety: RepeatSafety) -> Self {
        self.safety = Some(safety);
        self
    }

    /// Asks a second target where the first is slow to answer, if the operation is read-only. Default:
    /// off. See [`crate::hedge`].
    pub fn hedge(mut self, hedge: Hedge) -> Self {
        self.hedge = Some(hedge);
        self
    }

    /// How much the caller cares, 0 to 100; a larger number counts as 100. Default: 50.
    pub fn importance(mut self, importance: u8) -> Self {
        self.facts.importance = importance.min(100);
        self
    }

    /// Who calls. An answer that is not marked as shared is kept as last known good only for a caller
    /// that is known, and given back to no other.
    pub fn caller(mut self, caller: impl Into<Arc<str>>) -> Self {
        self.facts.caller = Some(caller.into());
        self
    }

    /// The caller's id of the request.
    pub fn request_id(mut self, id: impl Into<Arc<str>>) -> Self {
        self.facts.request_id = Some(id.into());
        self
    }

    /// Anything a strategy may want to know, by name.
    pub fn detail(mut self, key: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.facts.details.push((key.into(), value.into()));
        self
    }

    /// Asks this target and no other: a stateful exchange belongs to its server.
    pub fn pin(mut self, target: impl Into<Arc<str>>) -> Self {
        self.pin = Some(target.into());
        self
    }

    /// One attempt and no fallback.
    pub fn without_fallback(mut self) -> Self {
        self.no_fallback = true;
        self
    }
}

/// What is known of a call from its start.
#[derive(Debug, Clone)]
pub struct CallFacts {
    /// The call's id, unique in the process.
    pub id: CallId,
    /// The operation the caller asked for.
    pub operation: Arc<str>,
    /// What kind of thing it is.
    pub level: Level,
    /// The group of targets.
    pub group: Arc<str>,
    /// Who calls.
    pub caller: Option<Arc<str>>,
    /// The caller's id of the request.
    pub request_id: Option<Arc<str>>,
    /// How much the caller cares, 0 to 100.
    pub importance: u8,
    /// Anything else, by name.
    pub details: Vec<(Arc<str>, Arc<str>)>,
}

impl Default for CallFacts {
    fn default() -> Self {
        // Shared, so that a call that is given every text of its own makes no empty ones first.
        static EMPTY: std::sync::LazyLock<Arc<str>> = std::sync::LazyLock::new(|| "".into());
        Self {
            id: CallId(0),
            operation: EMPTY.clone(),
            level: Level::default(),
            group: EMPTY.clone(),
            caller: None,
            request_id: None,
            importance: 50,
            details: Vec::new(),
        }
    }
}

/// A call's id, unique in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{:06}", self.0)
    }
}

impl Serialize for CallId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// No deadline beyond a year: adding it to any instant cannot overflow.
pub(super) const MAX_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);

/// One attempt, as the exchange that carries it out sees it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// The call's id.
    pub call: CallId,
    /// Whom to ask.
    pub target: Arc<Target>,
    /// For what: the caller's operation, or the one a fallback put in its place.
    pub operation: Arc<str>,
    /// Which attempt of the call this is, from 1.
    pub number: u32,
    /// Why it is made.
    pub kind: AttemptKind,
    /// How long it may be silent.
    pub timeout: Duration,
    /// The call's deadline.
    pub deadline: Instant,
    pub(crate) started: Instant,
    /// How long it may take however much progress it shows.
    longest: Duration,
    progress: AtomicU64,
}

/// How long a call and its attempts may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    pub(crate) attempt: Duration,
    pub(crate) attempt_max: Duration,
}

impl Attempt {
    pub(crate) fn new(
        facts: &CallFacts,
        target: Arc<Target>,
        operation: Arc<str>,
        (number, kind): (u32, AttemptKind),
        started: Instant,
        timing: &Timing,
    ) -> Self {
        let timeout = timing.attempt.min(MAX_DEADLINE);
        let longest = timing.attempt_max.min(MAX_DEADLINE).max(timeout);
        Self {
            call: facts.id,
            target,
            operation,
            number,
            kind,
            timeout,
            deadline: timing.deadline,
            started,
            longest,
            progress: AtomicU64::new(0),
        }
    }

    /// Says that the target has shown life: the attempt's timeout starts again. The longest
    /// time an attempt may take and the call's deadline hold all the same.
    pub fn progressed(&self) {
        let millis = Instant::now()
            .saturating_duration_since(self.started)
            .as_millis();
        self.progress
            .store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Until when it may wait for a place at its target. A hedge does not wait: it is there to save time.
    pub(crate) fn queue_until(&self) -> Instant {
        match self.kind {
            AttemptKind::Hedge => self.started,
            _ => self.deadline.min(self.started + self.timeout),
        }
    }

    /// Begins anew after a wait for a place, which is not the target's silence. Says how long it was.
    pub(crate) fn begin(&mut self, now: Instant) -> Duration {
        let waited = now.saturating_duration_since(self.started);
        self.started = now;
        waited
    }

    /// How long the target has shown no life.
    pub(crate) fn quiet_for(&self, now: Instant) -> Duration {
        let last_life = Duration::from_millis(self.progress.load(Ordering::Relaxed));
        now.saturating_duration_since(self.started + last_life.min(MAX_DEADLINE))
    }

    /// When it ends unless the target shows life before.
    pub(crate) fn limit(&self) -> Instant {
        let last_life = Duration::from_millis(self.progress.load(Ordering::Relaxed));
        (self.started + last_life.min(MAX_DEADLINE) + self.timeout)
            .min(self.started + self.longest)
            .min(self.deadline)
    }
}

/// Why an attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AttemptKind {
    /// The call's first.
    Original,
    /// The same target and operation again.
    Retry,
    /// Another target or operation.
    Fallback,
    /// Another target beside one that is slow to answer. See [`crate::hedge`].
    Hedge,
}

impl AttemptKind {
    /// Its name, as events and metrics write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Retry => "retry",
            Self::Fallback => "fallback",
            Self::Hedge => "hedge",
        }
    }
}

/// One failed attempt, as it stands in histories, errors and events.
#[derive(Debug, Clone, Serialize)]
pub struct AttemptRecord {
    /// The target asked.
    pub target: Arc<str>,
    /// The operation asked for.
    pub operation: Arc<str>,
    /// Why it was made.
    pub attempt: AttemptKind,
    /// How it failed.
    #[serde(flatten)]
    pub failure: Arc<Failure>,
    /// How long it was waited before it.
    #[serde(rename = "delay_ms", serialize_with = "as_millis")]
    pub delay: Duration,
    /// How long it took.
    #[serde(rename = "duration_ms", serialize_with = "as_millis")]
    pub duration: Duration,
}

pub(crate) fn as_millis<S: serde::Serializer>(
    value: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
}

/// How an answer differs from one the asked target gave just now to the asked operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "degraded", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Degraded {
    /// Another operation answered.
    Operation {
        /// The operation that did.
        operation: Arc<str>,
    },
    /// An earlier answer was given again.
    Stale {
        /// How long ago it was given.
        #[serde(rename = "age_ms", serialize_with = "as_millis")]
        age: Duration,
        /// The target that gave it.
        target: Arc<str>,
    },
    /// A default was given.
    Default,
}

/// A call that was answered.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome<A> {
    /// The answer.
    pub answer: A,
    /// The call's id.
    pub id: CallId,
    /// The target that gave the answer; `None` where data did.
    pub served_by: Option<Arc<str>>,
    /// How the answer differs from what was asked for; `None` where it does not.
    pub degraded: Option<Degraded>,
    /// What went wrong on the way; `None` for a call that went well at once.
    pub trouble: Option<Box<Trouble>>,
}

impl<A> Outcome<A> {
    /// Attempts made, the successful one included.
    pub fn attempts(&self) -> u32 {
        let failed = self
            .trouble
            .as_ref()
            .map_or(0, |trouble| trouble.attempts.len());
        u32::try_from(failed)
            .unwrap_or(u32::MAX)
            .saturating_add(u32::from(self.served_by.is_some()))
    }
}

/// What went wrong in a call: every failed attempt, and every strategy asked.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Trouble {
    /// The failed attempts, oldest first.
    pub attempts: Vec<AttemptRecord>,
    /// The strategies asked, in order.
    pub steps: Vec<Step>,
}

/// One strategy asked about one failure.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// The number of failed attempts when it was asked.
    pub after_attempt: u32,
    /// The strategy.
    pub strategy: Arc<str>,
    /// Its level of fallback.
    pub level: Arc<str>,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What came of asking a strategy.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// Its condition said no, or its action declined.
    Declined,
    /// It failed to decide.
    Faulted {
        /// How.
        fault: String,
    },
    /// The guard refused its action.
    Refused {
        /// The action.
        action: ActionKind,
        /// The strategy's reason for it.
        reason: String,
        /// The guard's reason against it.
        refusal: String,
    },
    /// Its action was carried out.
    Taken {
        /// The action.
        action: ActionKind,
        /// The strategy's reason for it.
        reason: String,
    },
}

/// Why a call ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ending {
    /// No strategy had anything left to propose that the guard allowed.
    Exhausted,
    /// It is not known whether the operation was carried out, and it must not be done twice.
    OutcomeUnknown,
    /// The call's deadline passed.
    DeadlineExceeded,
    /// A strategy ended it.
    FailedFast,
    /// There was no target to ask.
    NoTarget,
}

/// A call that ended without an answer: the first cause, and all that was tried.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CallError {
    /// The call's id.
    pub id: CallId,
    /// The operation the caller asked for.
    pub operation: Arc<str>,
    /// The group.
    pub group: Arc<str>,
    /// Why the call ended.
    pub ending: Ending,
    /// What the strategy that ended it wants to be told, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The first failure.
    pub cause: Arc<Failure>,
    /// Every failed attempt, every strategy asked.
    #[serde(flatten)]
    pub trouble: Trouble,
}

impl CallError {
    /// The last failure; the first where there was only one.
    pub fn last(&self) -> &Failure {
        self.trouble
            .attempts
            .last()
            .map_or(&self.cause, |attempt| &attempt.failure)
    }

    /// The last failure's kind.
    pub fn kind(&self) -> &Kind {
        &self.last().kind
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attempts = self.trouble.attempts.len();
        let (operation, group) = (&self.operation, &self.group);
        match self.ending {
            Ending::OutcomeUnknown => write!(
                f,
                "outcome unknown: {operation:?} may or may not have been carried out, and must not be repeated"
            )?,
            Ending::DeadlineExceeded => {
                write!(f, "{operation:?} of {group:?} passed its deadline")?
            }
            Ending::NoTarget => write!(
                f,
                "{operation:?}: group {group:?} has no target that can be asked"
            )?,
            Ending::FailedFast | Ending::Exhausted => {
                write!(f, "{operation:?} of {group:?} failed")?
            }
        }
        if let Some(message) = &self.message {
            write!(f, " ({message})")?;
        }
        if attempts > 1 {
            write!(f, " after {attempts} attempts, first")?;
        }
        Ok(())
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.cause)
    }
}

/// A call that failed, with the raw outcome of its last attempt: nothing is hidden from a caller who
/// can read it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failed<A, E> {
    /// Why, and all that was tried.
    pub error: CallError,
    /// What the last attempt that came back with anything brought.
    pub raw: Option<Result<A, E>>,
}

impl<A, E> Failed<A, E> {
    /// Only the error.
    pub fn into_error(self) -> CallError {
        self.error
    }
}

impl<A, E> fmt::Display for Failed<A, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<A: fmt::Debug, E: fmt::Debug> std::error::Error for Failed<A, E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}
