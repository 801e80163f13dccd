//! Events: what the host did, as it did it.
//!
//! One typed enum, names as in the telemetry convention of the project. A subscriber that falls
//! behind loses the oldest events and is told how many; the engine never waits for one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::broadcast;

use crate::call::{AttemptKind, CallId, Degraded, Ending, Level, Trouble};
use crate::circuit::OpenCause;
use crate::failure::Failure;
use crate::strategy::ActionKind;

/// Something the host did or saw.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// When, by the wall clock.
    #[serde(serialize_with = "as_unix_millis")]
    pub at: SystemTime,
    /// What.
    #[serde(flatten)]
    pub what: EventKind,
}

fn as_unix_millis<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    serializer.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What the host did or saw.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum EventKind {
    /// An attempt failed.
    AttemptFailed {
        call: CallId,
        group: Arc<str>,
        operation: Arc<str>,
        /// `None` where no target could be asked.
        target: Option<Arc<str>>,
        attempt: u32,
        attempt_type: AttemptKind,
        #[serde(flatten)]
        failure: Arc<Failure>,
        #[serde(rename = "duration_ms", serialize_with = "crate::call::as_millis")]
        duration: Duration,
    },
    /// The same target will be asked again.
    RetryScheduled {
        call: CallId,
        strategy: Arc<str>,
        target: Arc<str>,
        #[serde(rename = "delay_ms", serialize_with = "crate::call::as_millis")]
        delay: Duration,
        reason: String,
    },
    /// A second target is asked beside the first, which is slow to answer.
    HedgeSent {
        call: CallId,
        group: Arc<str>,
        operation: Arc<str>,
        from: Arc<str>,
        to: Arc<str>,
        #[serde(rename = "after_ms", serialize_with = "crate::call::as_millis")]
        after: Duration,
    },
    /// Another target, another operation or data takes the place of what was asked.
    FallbackTaken {
        call: CallId,
        strategy: Arc<str>,
        level: Arc<str>,
        action: ActionKind,
        kind: crate::Kind,
        from: Option<Arc<str>>,
        /// The target now asked; `None` where data answers.
        to: Option<Arc<str>>,
        /// The operation now asked for.
        operation: Arc<str>,
        reason: String,
    },
    /// The guard refused what a strategy proposed.
    ActionRefused {
        call: CallId,
        strategy: Arc<str>,
        action: ActionKind,
        reason: String,
        refusal: String,
    },
    /// A strategy failed to decide.
    StrategyFaulted {
        call: CallId,
        strategy: Arc<str>,
        fault: &'static str,
        message: String,
    },
    /// A strategy is left out for a while, after repeated faults.
    StrategyQuarantined { strategy: Arc<str>, faults: u32 },
    /// A strategy takes part from now on.
    StrategyLoaded {
        strategy: Arc<str>,
        version: String,
        source: String,
    },
    /// A newer version of a strategy takes part from now on.
    StrategyReloaded {
        strategy: Arc<str>,
        version: String,
        source: String,
    },
    /// A strategy takes part no more: its file is gone, or the configuration leaves it out.
    StrategyRemoved { strategy: Arc<str>, source: String },
    /// A file is not a strategy that can be used.
    StrategyRejected { source: String, reason: String },
    /// A call that had trouble was answered.
    CallSaved {
        call: CallId,
        group: Arc<str>,
        operation: Arc<str>,
        level: Level,
        served_by: Option<Arc<str>>,
        degraded: Option<Degraded>,
        attempts: u32,
        #[serde(rename = "duration_ms", serialize_with = "crate::call::as_millis")]
        duration: Duration,
        /// Every failed attempt, every strategy asked: the call's explanation.
        #[serde(rename = "explanation")]
        trouble: Arc<Trouble>,
    },
    /// A call ended without an answer.
    CallFailed {
        call: CallId,
        group: Arc<str>,
        operation: Arc<str>,
        level: Level,
        ending: Ending,
        kind: crate::Kind,
        attempts: u32,
        #[serde(rename = "duration_ms", serialize_with = "crate::call::as_millis")]
        duration: Duration,
        /// Every failed attempt, every strategy asked: the call's explanation.
        #[serde(rename = "explanation")]
        trouble: Arc<Trouble>,
    },
    /// A strategy is left out until an operator lets it back.
    StrategyDisabled { strategy: Arc<str> },
    /// A strategy that was left out by an operator takes part again.
    StrategyEnabled { strategy: Arc<str> },
    /// A target's circuit opened: live traffic leaves it alone.
    CircuitOpened {
        target: Arc<str>,
        cause: OpenCause,
        #[serde(rename = "open_for_ms", serialize_with = "crate::call::as_millis")]
        open_for: Duration,
    },
    /// A target's circuit lets probes through.
    CircuitHalfOpened { target: Arc<str> },
    /// A target's circuit lets everything through again.
    CircuitClosed { target: Arc<str> },
    /// The health checks call a target healthy.
    TargetUp { target: Arc<str> },
    /// The health checks call a target ill.
    TargetDown { target: Arc<str> },
    /// An operator holds a target: what is under way at it finishes, nothing new begins.
    TargetHeld { target: Arc<str> },
    /// A target that was held by an operator takes requests again.
    TargetReleased { target: Arc<str> },
    /// A target was registered.
    TargetAdded { target: Arc<str>, group: Arc<str> },
    /// A target was taken out: what is under way at it finishes, nothing new begins.
    TargetRemoved { target: Arc<str>, group: Arc<str> },
    /// A target keeps ending before it is of any use; it goes on being started, more slowly.
    TargetCrashing {
        target: Arc<str>,
        starts: u32,
        reason: String,
        /// The last lines it wrote to its standard error.
        stderr: Vec<String>,
        #[serde(rename = "again_after_ms", serialize_with = "crate::call::as_millis")]
        again_after: Duration,
    },
    /// Two targets of a group mean different things by one tool.
    ToolDiffers {
        group: Arc<str>,
        tool: String,
        /// The target whose tool clients are shown.
        shown: Arc<str>,
        /// The target whose tool is another.
        other: Arc<str>,
        /// The part of the tool that differs.
        part: &'static str,
    },
    /// A target serves live traffic again.
    Recovered {
        target: Arc<str>,
        #[serde(rename = "after_ms", serialize_with = "crate::call::as_millis")]
        after: Duration,
    },
    /// A configuration, or what a source of targets says, took effect.
    ConfigApplied {
        source: String,
        /// Of the configuration itself: which version it is now, and what it changed.
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        version: Option<Arc<ConfigVersion>>,
    },
    /// A configuration, or what a source of targets says, was refused; the old one stays.
    ConfigRejected { source: String, reason: String },
}

macro_rules! names {
    ($($variant:ident = $name:literal,)*) => {
        impl EventKind {
            /// Every name there is.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// Its name, as the JSON form writes it.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $name,)*
                }
            }
        }
    };
}

names! {
    AttemptFailed = "attempt_failed",
    RetryScheduled = "retry_scheduled",
    HedgeSent = "hedge_sent",
    FallbackTaken = "fallback_taken",
    ActionRefused = "action_refused",
    StrategyFaulted = "strategy_faulted",
    StrategyQuarantined = "strategy_quarantined",
    StrategyLoaded = "strategy_loaded",
    StrategyReloaded = "strategy_reloaded",
    StrategyRemoved = "strategy_removed",
    StrategyRejected = "strategy_rejected",
    StrategyDisabled = "strategy_disabled",
    StrategyEnabled = "strategy_enabled",
    CallSaved = "call_saved",
    CallFailed = "call_failed",
    CircuitOpened = "circuit_opened",
    CircuitHalfOpened = "circuit_half_opened",
    CircuitClosed = "circuit_closed",
    TargetUp = "target_up",
    TargetDown = "target_down",
    TargetHeld = "target_held",
    TargetReleased = "target_released",
    TargetAdded = "target_added",
    TargetRemoved = "target_removed",
    TargetCrashing = "target_crashing",
    ToolDiffers = "tool_differs",
    Recovered = "recovered",
    ConfigApplied = "config_applied",
    ConfigRejected = "config_rejected",
}

/// A version of the configuration that took effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigVersion {
    /// Counts from 1, the version the program started with.
    pub version: u64,
    /// The SHA-256 of its text.
    pub digest: String,
    /// What differs from the version before, one change each, such as `service "search" added`.
    pub changes: Vec<String>,
    /// What differs and does not hold before the program is started again.
    pub needs_restart: Vec<String>,
}

/// Where events go out.
#[derive(Debug)]
pub struct Events(broadcast::Sender<Arc<Event>>);

impl Events {
    /// How many events a subscriber may fall behind before it loses the oldest.
    pub const CAPACITY: usize = 4096;

    /// A subscription to everything from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.subscribe()
    }

    /// Tells the subscribers. Without any, nothing is built.
    pub(crate) fn emit(&self, at: impl FnOnce() -> SystemTime, what: impl FnOnce() -> EventKind) {
        if self.0.receiver_count() > 0 {
            // It fails only if the last subscriber has just left.
            let _ = self.0.send(Arc::new(Event {
                at: at(),
                what: what(),
            }));
        }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(Self::CAPACITY))
    }
}
