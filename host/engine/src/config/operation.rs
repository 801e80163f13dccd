//! `[[operation]]` and `[[pattern]]`: what is known of operations, and of messages of failures.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::limits;
use super::reader::{Issue, Reader};
use super::retry::warn_of_unknown_kind;
use super::text;
use super::units::DurationText;
use super::value::{self, POSITIVE};
use crate::call::RepeatSafety;
use crate::detect::Scope;
use crate::hedge::Hedge;
use crate::kind::Kind;

/// One `[[operation]]`: what holds for operations whose names match. The entries are tried in the
/// order of the file, and the first that matches counts.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Operation {
    /// The operations it is about, as a glob such as `search_*`.
    #[serde(rename = "match")]
    pub matches: String,
    /// Whether the operation may be sent again when it is not known if it was carried out. Default:
    /// what a trusted server's annotations say, otherwise `unsafe` (RULES: ambiguity).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<RepeatSafety>,
    /// The time a whole call may take. Default: `[deadline] call`.
    #[serde(
        default,
        with = "DurationText",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "DurationText")]
    pub deadline: Option<Duration>,
    /// The time one attempt may be silent. Default: `[deadline] attempt`.
    #[serde(
        default,
        with = "DurationText",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "DurationText")]
    pub attempt_timeout: Option<Duration>,
    /// How much callers care, 0 to 100. Default: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub importance: Option<u8>,
    /// After how long without an answer a second target of the group is asked as well, if the operation
    /// is read-only: a duration such as `300ms`, or a percentile of the operation's own answer times
    /// such as `p95` (which needs 20 answers first). Whichever answers first is heard, the other is
    /// cancelled, and each such request is taken out of the retry budget. Default: off.
    #[serde(
        default,
        serialize_with = "limits::hedge_text",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "limits::HedgeText")]
    pub hedge: Option<Hedge>,
}

impl Operation {
    pub(super) fn read(r: &mut Reader<'_, '_>) -> Option<Self> {
        let matches = r.require("match", "\"GLOB\"", text::glob);
        let repeat = r.read(
            "repeat",
            value::word(&[
                ("read-only", RepeatSafety::ReadOnly),
                ("idempotent", RepeatSafety::Idempotent),
                ("unsafe", RepeatSafety::Unsafe),
            ]),
        );
        let deadline = r.read("deadline", value::duration(POSITIVE));
        let attempt_timeout = r.read("attempt_timeout", value::duration(POSITIVE));
        let importance = r.read("importance", value::integer(0..=100));
        let hedge = r.read("hedge", limits::hedge);
        Some(Self {
            matches: matches?,
            repeat,
            deadline,
            attempt_timeout,
            importance,
            hedge,
        })
    }
}

/// One `[[pattern]]`: failures whose text looks like this are of that kind (RULES: classification).
/// The entries are tried in the order of the file; every expression given must match.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Pattern {
    /// Its name in logs, unique among patterns; 1 to 128 characters without blanks.
    pub name: String,
    /// A regular expression over the failure's class, such as the name of an exception. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// A regular expression over the failure's message. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Which failures it looks at: `open`, those whose kind nothing else tells (a program's own error,
    /// a JSON-RPC code without a meaning); or all of one sort, before their own meaning: `transport`,
    /// `http`, `json-rpc`, `tool-result` (a tool's answer with `isError`), `error`. Default: `open`.
    #[serde(default)]
    pub scope: Scope,
    /// The kind such a failure is of; custom kinds are welcome.
    pub kind: Kind,
    /// Whether the same request may succeed when it is sent again. Default: what the kind means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// Whether the server may have acted on the request. Default: what the signal and the kind say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ambiguous: Option<bool>,
    /// Whether it speaks against the target's health. Default: what the kind means, and for a tool's
    /// answer no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ill_health: Option<bool>,
}

impl Pattern {
    pub(super) fn read(r: &mut Reader<'_, '_>, taken: &mut super::targets::Taken) -> Option<Self> {
        let name = r.require("name", "\"NAME\"", text::name);
        let name = taken.name(r, "pattern", name);
        let class = r.read("class", text::regex);
        let message = r.read("message", text::regex);
        let kind = r.require("kind", "\"KIND\"", text::name);
        if let Some(issue) = kind.as_deref().and_then(warn_of_unknown_kind) {
            r.issue("kind", issue);
        }
        let scope = r.read(
            "scope",
            value::word(&[
                ("open", Scope::Open),
                ("transport", Scope::Transport),
                ("http", Scope::Http),
                ("json-rpc", Scope::JsonRpc),
                ("tool-result", Scope::ToolResult),
                ("error", Scope::Error),
            ]),
        );
        let retryable = r.read("retryable", value::boolean);
        let ambiguous = r.read("ambiguous", value::boolean);
        let ill_health = r.read("ill_health", value::boolean);
        if !r.has("class") && !r.has("message") {
            let reason = "without class and message it would match every failure";
            r.issue_here(Issue::error(
                "nothing to match",
                reason,
                "Add message = 'REGEX' or class = 'REGEX'.",
            ));
        }
        Some(Self {
            name: name?,
            class,
            message,
            scope: scope.unwrap_or_default(),
            kind: Kind::new(&kind?),
            retryable,
            ambiguous,
            ill_health,
        })
    }
}
