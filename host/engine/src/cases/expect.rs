//! What a case expects, and how what came differs from it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

use super::context::duration;
use crate::config::format_duration;
use crate::strategy::component::Rehearsal;
use crate::strategy::{Action, AnswerData};

/// What a case expects. What it does not mention may be anything, but one thing at least must be.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expectation {
    /// Whether the host asks the strategy at all: whether the kind and the operation are among those
    /// its metadata names. Default: true, unless `refused` is given.
    pub asked: Option<bool>,
    /// What `condition` says.
    pub condition: Option<bool>,
    /// What `action` proposes: the name of an action (`"retry"`, `"switch_target"`,
    /// `"call_operation"`, `"answer"`, `"fail"`, `"decline"`, `"custom"`), or a table with that one key
    /// and all of its fields.
    action: Option<ExpectedAction>,
    /// The reason given for it.
    pub reason: Option<String>,
    /// How the strategy fails to decide: `trap`, `timeout`, `memory`, `garbage`, `instantiate`.
    pub fault: Option<String>,
    /// A part of the sentence with which the strategy, or its schema, refuses the configuration, or
    /// with which the host refuses the strategy.
    pub refused: Option<String>,
    /// Parts of log lines, in order.
    pub log: Vec<String>,
    /// What the state holds afterwards: key and text; other keys may be there.
    pub state: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "the name of an action, or a table with that one key, such as { switch_target = { target = \"b\" } }"
)]
enum ExpectedAction {
    Name(ActionName),
    Whole(ActionText),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ActionName {
    Retry,
    SwitchTarget,
    CallOperation,
    Answer,
    Fail,
    Decline,
    Custom,
}

/// An action as it is written in a case, and shown. Mirrors [`Action`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum ActionText {
    Retry {
        #[serde(
            default,
            deserialize_with = "duration",
            serialize_with = "as_text",
            skip_serializing_if = "Option::is_none"
        )]
        delay: Option<Duration>,
    },
    SwitchTarget {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_kind: Option<String>,
    },
    CallOperation {
        operation: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arguments: Option<Value>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    Answer(AnswerText),
    Fail {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    Decline {},
    Custom {
        name: String,
        payload: Value,
    },
}

/// Data that answers a call, as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum AnswerText {
    LastKnownGood,
    /// A default, any JSON.
    Static(Value),
}

fn as_text<S: Serializer>(delay: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    delay.map(format_duration).serialize(to)
}

/// JSON text as JSON; what is no JSON stays text.
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

impl From<&Action> for ActionText {
    fn from(action: &Action) -> Self {
        match action {
            Action::Retry { delay } => Self::Retry { delay: *delay },
            Action::SwitchTarget {
                target,
                target_kind,
            } => Self::SwitchTarget {
                target: target.clone(),
                target_kind: target_kind.clone(),
            },
            Action::CallOperation {
                operation,
                arguments,
                target,
            } => Self::CallOperation {
                operation: operation.clone(),
                arguments: arguments.as_deref().map(parsed),
                target: target.clone(),
            },
            Action::Answer(AnswerData::LastKnownGood) => Self::Answer(AnswerText::LastKnownGood),
            Action::Answer(AnswerData::Static(body)) => {
                Self::Answer(AnswerText::Static(parsed(body)))
            }
            Action::Fail { message } => Self::Fail {
                message: message.clone(),
            },
            Action::Decline => Self::Decline {},
            Action::Custom { name, payload } => Self::Custom {
                name: name.clone(),
                payload: parsed(payload),
            },
        }
    }
}

impl ActionText {
    fn name(&self) -> ActionName {
        match self {
            Self::Retry { .. } => ActionName::Retry,
            Self::SwitchTarget { .. } => ActionName::SwitchTarget,
            Self::CallOperation { .. } => ActionName::CallOperation,
            Self::Answer(_) => ActionName::Answer,
            Self::Fail { .. } => ActionName::Fail,
            Self::Decline {} => ActionName::Decline,
            Self::Custom { .. } => ActionName::Custom,
        }
    }
}

/// One difference between what a case expects and what came.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// Where, such as `action.switch_target.target`.
    pub at: String,
    /// What was expected there, as JSON; `None` where nothing was.
    pub expected: Option<Value>,
    /// What came; `None` where nothing did.
    pub actual: Option<Value>,
}

impl Difference {
    fn new(at: &str, expected: impl Into<Value>, actual: Option<Value>) -> Self {
        Self {
            at: at.to_owned(),
            expected: Some(expected.into()),
            actual,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<Value>| {
            value
                .as_ref()
                .map_or_else(|| "nothing".to_owned(), Value::to_string)
        };
        write!(
            f,
            "{}: expected {}, got {}",
            self.at,
            shown(&self.expected),
            shown(&self.actual)
        )
    }
}

/// What became of a case, before it is compared.
pub(super) enum Came<'a> {
    /// The strategy could not be loaded.
    Refused(&'a str),
    /// The host would not ask it about this failure.
    NotAsked,
    /// It was asked.
    Asked(&'a Rehearsal),
}

impl Expectation {
    /// Whether it expects anything at all.
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_none()
            && self.condition.is_none()
            && self.action.is_none()
            && self.reason.is_none()
            && self.fault.is_none()
            && self.refused.is_none()
            && self.log.is_empty()
            && self.state.is_empty()
    }

    pub(super) fn compare(&self, came: &Came<'_>) -> Vec<Difference> {
        match came {
            Came::Refused(why) => match &self.refused {
                Some(part) if why.contains(part.as_str()) => Vec::new(),
                Some(part) => vec![Difference::new("refused", part.as_str(), Some(json!(why)))],
                None => vec![Difference {
                    at: "refused".into(),
                    expected: None,
                    actual: Some(json!(why)),
                }],
            },
            _ if self.refused.is_some() => {
                vec![Difference::new("refused", self.refused.clone(), None)]
            }
            Came::NotAsked if self.asked == Some(false) => Vec::new(),
            Came::NotAsked => vec![Difference::new("asked", true, Some(json!(false)))],
            Came::Asked(_) if self.asked == Some(false) => {
                vec![Difference::new("asked", false, Some(json!(true)))]
            }
            Came::Asked(rehearsal) => self.compare_decision(rehearsal),
        }
    }

    fn compare_decision(&self, came: &Rehearsal) -> Vec<Difference> {
        let mut found = Vec::new();
        match (&came.outcome, &self.fault) {
            (Err(fault), Some(label)) if fault.label() == label => {}
            (Err(fault), expected) => {
                let actual = Some(json!(format!("{}: {fault}", fault.label())));
                found.push(Difference {
                    at: "fault".into(),
                    expected: expected.as_deref().map(Into::into),
                    actual,
                });
                return found;
            }
            (Ok(_), Some(label)) => found.push(Difference::new("fault", label.as_str(), None)),
            (Ok(_), None) => {}
        }
        if let Ok(decision) = &came.outcome {
            if let Some(condition) = self.condition
                && condition != decision.is_some()
            {
                found.push(Difference::new(
                    "condition",
                    condition,
                    Some(json!(decision.is_some())),
                ));
            }
            let action = decision.as_ref().map(|it| ActionText::from(&it.action));
            self.compare_action(action.as_ref(), &mut found);
            if let Some(reason) = &self.reason {
                let said = decision.as_ref().map(|it| it.reason.as_str());
                if said != Some(reason) {
                    found.push(Difference::new(
                        "reason",
                        reason.as_str(),
                        said.map(Into::into),
                    ));
                }
            }
        }
        self.compare_rest(came, &mut found);
        found
    }

    fn compare_action(&self, came: Option<&ActionText>, found: &mut Vec<Difference>) {
        let value = |action: &ActionText| serde_json::to_value(action).unwrap_or_default();
        match (&self.action, came) {
            (None, _) => {}
            (Some(ExpectedAction::Name(name)), Some(came)) if *name == came.name() => {}
            (Some(ExpectedAction::Name(name)), came) => {
                found.push(Difference::new("action", snake(*name), came.map(value)))
            }
            (Some(ExpectedAction::Whole(whole)), None) => {
                found.push(Difference::new("action", value(whole), None));
            }
            (Some(ExpectedAction::Whole(whole)), Some(came)) => {
                differences("action", &value(whole), &value(came), found);
            }
        }
    }

    fn compare_rest(&self, came: &Rehearsal, found: &mut Vec<Difference>) {
        let mut lines = came.log.iter();
        for part in &self.log {
            if !lines.any(|(_, line)| line.contains(part.as_str())) {
                let all: Vec<&str> = came.log.iter().map(|(_, line)| line.as_str()).collect();
                found.push(Difference::new("log", part.as_str(), Some(json!(all))));
            }
        }
        for (key, expected) in &self.state {
            let held = came.state.iter().find(|(name, _)| name == key);
            let held = held.map(|(_, value)| String::from_utf8_lossy(value).into_owned());
            if held.as_ref() != Some(expected) {
                found.push(Difference::new(
                    &format!("state.{key}"),
                    expected.as_str(),
                    held.map(Into::into),
                ));
            }
        }
    }
}

fn snake(name: ActionName) -> &'static str {
    match name {
        ActionName::Retry => "retry",
        ActionName::SwitchTarget => "switch_target",
        ActionName::CallOperation => "call_operation",
        ActionName::Answer => "answer",
        ActionName::Fail => "fail",
        ActionName::Decline => "decline",
        ActionName::Custom => "custom",
    }
}

/// Every leaf in which two documents differ.
fn differences(at: &str, expected: &Value, actual: &Value, found: &mut Vec<Difference>) {
    match (expected, actual) {
        (Value::Object(wanted), Value::Object(got)) if shares_a_key(wanted, got) => {
            for (key, expected) in wanted {
                let at = format!("{at}.{key}");
                match got.get(key) {
                    Some(actual) => differences(&at, expected, actual, found),
                    None => found.push(Difference::new(&at, expected.clone(), None)),
                }
            }
            for (key, actual) in got.iter().filter(|(key, _)| !wanted.contains_key(*key)) {
                found.push(Difference {
                    at: format!("{at}.{key}"),
                    expected: None,
                    actual: Some(actual.clone()),
                });
            }
        }
        _ if expected == actual => {}
        _ => found.push(Difference::new(at, expected.clone(), Some(actual.clone()))),
    }
}

/// Documents without a common key are shown whole: they are not two versions of one thing.
fn shares_a_key(a: &serde_json::Map<String, Value>, b: &serde_json::Map<String, Value>) -> bool {
    a.is_empty() || b.is_empty() || a.keys().any(|key| b.contains_key(key))
}
