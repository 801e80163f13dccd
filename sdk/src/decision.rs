//! What a strategy may propose.

use std::time::Duration;

use serde_json::Value;

use crate::TargetKind;

/// An action and the reason for it.
///
/// ```
/// # use std::time::Duration;
/// # use backstop_sdk::Decision;
/// Decision::retry_after(Duration::from_millis(200)).because("the second attempt usually works");
/// Decision::switch_to("backup").because("the primary is down");
/// Decision::decline();
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a decision does nothing unless it is returned"]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why, in one short sentence; may be empty. Every explanation of the call shows it.
    pub reason: String,
}

/// What to do about a failure. The host checks it before it is carried out; where it refuses, the
/// next strategy is asked.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Ask the present target for the present operation once more.
    Retry {
        /// How long to wait first; `None` leaves it to the host's retry policy. The host raises it
        /// to a longer server hint, and refuses one that does not fit into the time left.
        delay: Option<Duration>,
    },
    /// Ask another target for the present operation.
    SwitchTarget {
        /// Its name; `None` takes the best one the host has left.
        target: Option<String>,
        /// Where `target` is `None`: the kind of target to choose among; `None` means the kind of
        /// the present one.
        target_kind: Option<TargetKind>,
    },
    /// Ask for another operation in place of the present one.
    CallOperation {
        /// Its name.
        operation: String,
        /// Its arguments, a JSON object as text; `None` keeps the present ones.
        arguments: Option<String>,
        /// The target's name; `None` takes the best one.
        target: Option<String>,
    },
    /// Answer with data, without asking a server.
    Answer(AnswerData),
    /// End the call now with a clean error.
    Fail {
        /// What the caller is told, in one sentence; `None` keeps the failure's own message.
        message: Option<String>,
    },
    /// Propose nothing after all; the next strategy is asked.
    Decline,
    /// An action this version of the contract has no case for.
    Custom {
        /// Its name, in the form `vendor.action`.
        name: String,
        /// Its parameters, a JSON value as text.
        payload: String,
    },
}

/// Data that answers a call.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerData {
    /// The host's last known good answer. It is labelled stale and states its age.
    LastKnownGood,
    /// A default, JSON as text: for an MCP tool its `CallToolResult`, or any other JSON value, which
    /// the host wraps. It is labelled degraded.
    Static(String),
}

impl Decision {
    /// Ask the present target again, after the delay the host's retry policy prescribes.
    pub fn retry() -> Self {
        Action::Retry { delay: None }.into()
    }

    /// Ask the present target again, after this delay.
    pub fn retry_after(delay: Duration) -> Self {
        Action::Retry { delay: Some(delay) }.into()
    }

    /// Ask the best other target of the present one's kind.
    pub fn switch() -> Self {
        Action::SwitchTarget {
            target: None,
            target_kind: None,
        }
        .into()
    }

    /// Ask the best other target of this kind.
    pub fn switch_to_kind(kind: TargetKind) -> Self {
        Action::SwitchTarget {
            target: None,
            target_kind: Some(kind),
        }
        .into()
    }

    /// Ask this target.
    pub fn switch_to(target: impl Into<String>) -> Self {
        Action::SwitchTarget {
            target: Some(target.into()),
            target_kind: None,
        }
        .into()
    }

    /// Ask for another operation, with the present arguments.
    pub fn call(operation: impl Into<String>) -> Self {
        Action::CallOperation {
            operation: operation.into(),
            arguments: None,
            target: None,
        }
        .into()
    }

    /// Ask for another operation, with these arguments, a JSON object.
    pub fn call_with(operation: impl Into<String>, arguments: &Value) -> Self {
        let arguments = Some(arguments.to_string());
        Action::CallOperation {
            operation: operation.into(),
            arguments,
            target: None,
        }
        .into()
    }

    /// Answer with the host's last known good answer.
    pub fn last_known_good() -> Self {
        Action::Answer(AnswerData::LastKnownGood).into()
    }

    /// Answer with this default, JSON as text.
    pub fn answer(json: impl Into<String>) -> Self {
        Action::Answer(AnswerData::Static(json.into())).into()
    }

    /// End the call now, and tell the caller this.
    pub fn fail(message: impl Into<String>) -> Self {
        Action::Fail {
            message: Some(message.into()),
        }
        .into()
    }

    /// Propose nothing.
    pub fn decline() -> Self {
        Action::Decline.into()
    }

    /// Adds the reason, in one short sentence.
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
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
