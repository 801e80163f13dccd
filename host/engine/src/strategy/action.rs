//! What a strategy may propose. Mirrors the contract's `action` variant.

use std::time::Duration;

use serde::Serialize;

/// An action, with the reason for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why, in one short sentence; may be empty.
    pub reason: String,
}

impl Decision {
    /// A decision with its reason.
    pub fn new(action: Action, reason: impl Into<String>) -> Self {
        Self {
            action,
            reason: reason.into(),
        }
    }
}

impl From<Action> for Decision {
    fn from(action: Action) -> Self {
        Self {
            action,
            reason: String::new(),
        }
    }
}

/// What to do about a failure. The guard checks it before it is carried out.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Ask the present target for the present operation once more.
    Retry {
        /// How long to wait first; `None` leaves it to the retry policy of the kind.
        delay: Option<Duration>,
    },
    /// Ask another target for the present operation.
    SwitchTarget {
        /// Its name; `None` takes the best one left.
        target: Option<String>,
        /// Where `target` is `None`: the kind of target to choose among; `None` means the kind of
        /// the present one.
        target_kind: Option<String>,
    },
    /// Ask for another operation.
    CallOperation {
        /// Its name.
        operation: String,
        /// Its arguments, a JSON object; `None` keeps the present ones.
        arguments: Option<String>,
        /// The target's name; `None` takes the best one.
        target: Option<String>,
    },
    /// Answer with data, without asking a server.
    Answer(AnswerData),
    /// End the call with a clean error.
    Fail {
        /// What the caller is told; `None` keeps the failure's message.
        message: Option<String>,
    },
    /// Propose nothing; the next strategy is asked.
    Decline,
    /// An action this host has no case for; always refused.
    Custom {
        /// The action's name.
        name: String,
        /// Its parameters, as JSON.
        payload: String,
    },
}

/// Data that answers a call.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerData {
    /// The last known good answer.
    LastKnownGood,
    /// A default, as JSON.
    Static(String),
}

/// An action's name, as it stands in events, metrics and explanations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ActionKind {
    Retry,
    SwitchTarget,
    CallOperation,
    Answer,
    Fail,
    Decline,
    Custom,
}

impl ActionKind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::SwitchTarget => "switch_target",
            Self::CallOperation => "call_operation",
            Self::Answer => "answer",
            Self::Fail => "fail",
            Self::Decline => "decline",
            Self::Custom => "custom",
        }
    }
}

impl Action {
    /// The action's name.
    pub fn kind(&self) -> ActionKind {
        match self {
            Self::Retry { .. } => ActionKind::Retry,
            Self::SwitchTarget { .. } => ActionKind::SwitchTarget,
            Self::CallOperation { .. } => ActionKind::CallOperation,
            Self::Answer(_) => ActionKind::Answer,
            Self::Fail { .. } => ActionKind::Fail,
            Self::Decline => ActionKind::Decline,
            Self::Custom { .. } => ActionKind::Custom,
        }
    }
}
