//! Patterns: ordered rules that recognise a failure by its words.

use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::kind::Kind;

/// The largest compiled form of one expression, in bytes: a pattern comes from a configuration.
const MAX_COMPILED: usize = 1 << 20;

/// Which signals a pattern looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Scope {
    /// Those that leave the kind open: a program's own error, a JSON-RPC code without meaning.
    #[default]
    Open,
    /// Every transport fault; the pattern goes before the fault's own meaning.
    Transport,
    /// Every HTTP response; the pattern goes before the status.
    Http,
    /// Every JSON-RPC error; the pattern goes before the code.
    JsonRpc,
    /// Every tool answer that says `isError`.
    ToolResult,
    /// Every error of a program.
    Error,
}

/// A rule: what matches is of this kind. An expression that is absent matches everything; where both
/// are there, both must match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Pattern {
    /// Its name, by which it is replaced, removed and shown in a failure's detail `error.pattern`.
    pub name: String,
    /// Matches the error's class name, the provider's or JSON-RPC's code, or the transport's fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Matches the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Which signals it looks at.
    #[serde(default)]
    pub scope: Scope,
    /// The kind of what matches, well-known or one's own.
    pub kind: Kind,
    /// Whether it is retryable; absent: as the kind is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// Whether the server may have acted; absent: as the signal and the kind say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ambiguous: Option<bool>,
    /// Whether it speaks against the target's health; absent: as the kind does, and for a tool's
    /// answer no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ill_health: Option<bool>,
}

impl Pattern {
    /// A pattern by message, in the open scope.
    pub fn message(name: impl Into<String>, expression: impl Into<String>, kind: Kind) -> Self {
        Self {
            message: Some(expression.into()),
            ..Self::empty(name.into(), kind)
        }
    }

    /// A pattern by class, in the open scope.
    pub fn class(name: impl Into<String>, expression: impl Into<String>, kind: Kind) -> Self {
        Self {
            class: Some(expression.into()),
            ..Self::empty(name.into(), kind)
        }
    }

    fn empty(name: String, kind: Kind) -> Self {
        let scope = Scope::default();
        Self {
            name,
            class: None,
            message: None,
            scope,
            kind,
            retryable: None,
            ambiguous: None,
            ill_health: None,
        }
    }

    /// The same pattern in another scope.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// The same pattern with a word on retryability.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.retryable = Some(retryable);
        self
    }
}

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// An expression is no regular expression, or too large a one.
    #[error("pattern {name:?} (number {position}): its {field} is not a valid regular expression")]
    Expression {
        /// The pattern.
        name: String,
        /// Its place in the order, from 1.
        position: usize,
        /// `class` or `message`.
        field: &'static str,
        /// What is wrong with it, and where.
        #[source]
        source: regex::Error,
    },
    /// It has neither a class nor a message, and would match everything.
    #[error("pattern {name:?} (number {position}) has neither a class nor a message")]
    Empty {
        /// The pattern.
        name: String,
        /// Its place in the order, from 1.
        position: usize,
    },
    /// Two patterns have one name.
    #[error("pattern {name:?} (number {position}) has the name of an earlier one")]
    Duplicate {
        /// The name.
        name: String,
        /// The second one's place in the order, from 1.
        position: usize,
    },
}

/// A pattern, ready to be matched.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    pub(super) pattern: Pattern,
    class: Option<Regex>,
    message: Option<Regex>,
}

impl Compiled {
    pub(super) fn new(pattern: Pattern, position: usize) -> Result<Self, PatternError> {
        if pattern.class.is_none() && pattern.message.is_none() {
            return Err(PatternError::Empty {
                name: pattern.name,
                position,
            });
        }
        let compile = |field, expression: &Option<String>| {
            let build = |text: &String| RegexBuilder::new(text).size_limit(MAX_COMPILED).build();
            expression
                .as_ref()
                .map(build)
                .transpose()
                .map_err(|source| PatternError::Expression {
                    name: pattern.name.clone(),
                    position,
                    field,
                    source,
                })
        };
        let class = compile("class", &pattern.class)?;
        let message = compile("message", &pattern.message)?;
        Ok(Self {
            pattern,
            class,
            message,
        })
    }

    pub(super) fn matches(&self, scope: Scope, open: bool, class: &str, message: &str) -> bool {
        (self.pattern.scope == scope || (open && self.pattern.scope == Scope::Open))
            && self
                .class
                .as_ref()
                .is_none_or(|class_re| class_re.is_match(class))
            && self
                .message
                .as_ref()
                .is_none_or(|message_re| message_re.is_match(message))
    }
}

/// Patterns in the order they are tried, ready to be matched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patterns(Arc<[Compiled]>);

impl Patterns {
    pub(crate) fn new(patterns: Vec<Pattern>) -> Result<Self, PatternError> {
        let mut compiled: Vec<Compiled> = Vec::with_capacity(patterns.len());
        for (pattern, position) in patterns.into_iter().zip(1..) {
            let has_its_name = |earlier: &Compiled| earlier.pattern.name == pattern.name;
            if compiled.iter().any(has_its_name) {
                return Err(PatternError::Duplicate {
                    name: pattern.name,
                    position,
                });
            }
            compiled.push(Compiled::new(pattern, position)?);
        }
        Ok(Self(compiled.into()))
    }

    pub(super) fn list(&self) -> &[Compiled] {
        &self.0
    }
}

/// The built-in patterns by words of a class or a message: name, expression, kind, and what differs
/// from the kind about ambiguity. The first match wins, so what is certain not to have been
/// processed stands before what is merely like it.
const WORDS: &[(&str, &str, Kind, Option<bool>)] = &[
    (
        "cancelled",
        r"(?i)\bcancell?ed|cancell?ation|aborterror",
        Kind::CANCELLED,
        None,
    ),
    (
        "connect-timeout",
        r"(?i)connect(ion)?[ _-]?time(d[ _-]?)?out",
        Kind::CONNECTION_ERROR,
        Some(false),
    ),
    (
        "not-connected",
        r"(?i)connection[ _]?refused|econnrefused|enotfound|eai_again|getaddrinfo|name or service not known|gaierror|ehostunreach|enetunreach|no route to host",
        Kind::CONNECTION_ERROR,
        Some(false),
    ),
    (
        "disconnected",
        r"(?i)connection[ _]?(was )?(reset|aborted|closed|lost)|econnreset|econnaborted|epipe|broken[ _]?pipe|socket hang up|unexpected[ _]?eof|remoteprotocolerror|serverdisconnected",
        Kind::CONNECTION_ERROR,
        Some(true),
    ),
    (
        "gateway-timeout",
        r"(?i)gateway[ _-]?time-?out",
        Kind::GATEWAY_TIMEOUT,
        None,
    ),
    (
        "timeout",
        r"(?i)time[ _-]?out|timed[ _-]?out|deadline[ _]?exceeded",
        Kind::TIMEOUT_ERROR,
        None,
    ),
    (
        "throttled",
        r"(?i)rate[ _-]?limit|too[ _-]?many[ _-]?requests|throttl|resource_?exhausted",
        Kind::TOO_MANY_REQUESTS,
        None,
    ),
    (
        "unavailable",
        r"(?i)service[ _-]?unavailable|temporarily unavailable|overloaded",
        Kind::SERVICE_UNAVAILABLE,
        None,
    ),
    (
        "bad-gateway",
        r"(?i)bad[ _-]?gateway",
        Kind::BAD_GATEWAY,
        None,
    ),
    (
        "session",
        r"(?i)session[ _-]?(id )?(was )?(not[ _-]?found|expired|unknown|invalid|terminated)|(unknown|invalid|expired|no valid) session",
        Kind::SESSION_EXPIRED,
        None,
    ),
    (
        "context-length",
        r"(?i)context[ _]?(length|window)|maximum context|prompt is too long",
        Kind::CONTEXT_LENGTH,
        None,
    ),
    (
        "content-filter",
        r"(?i)content[ _]?(filter|policy)",
        Kind::CONTENT_FILTER,
        None,
    ),
    (
        "unauthorized",
        r"(?i)unauthori[sz]ed|unauthenticated|invalid api key|authentication[ _]?error",
        Kind::UNAUTHORIZED,
        None,
    ),
    (
        "forbidden",
        r"(?i)forbidden|permission[ _]?(denied|error)|access denied",
        Kind::FORBIDDEN,
        None,
    ),
    (
        "not-found",
        r"(?i)not[ _]?found|no such|does not exist",
        Kind::NOT_FOUND,
        None,
    ),
    (
        "invalid",
        r"(?i)invalid[ _]?(param|argument|request|input)|validation[ _]?error|^valueerror$|^typeerror$",
        Kind::INVALID_PARAMETER,
        None,
    ),
    (
        "internal",
        r"(?i)internal[ _]?(server[ _]?)?error|^(api|server)_error$",
        Kind::INTERNAL_SERVER_ERROR,
        None,
    ),
    (
        "connection",
        r"(?i)connect(ion)?[ _]?error|network[ _]?error",
        Kind::CONNECTION_ERROR,
        Some(true),
    ),
];

/// A throttle or an outage in a tool's own words. Narrow: the text may be about anything.
const TOOL_WORDS: &[(&str, &str, Kind)] = &[
    (
        "tool-throttled",
        r"(?i)\b(http|status|status code|code|error)[ :=]{1,3}429\b|\b429 too many requests|\brate[ -]?limit(ed)?( has been| was)? (exceeded|reached|hit)|\btoo many requests\b",
        Kind::TOO_MANY_REQUESTS,
    ),
    (
        "tool-unavailable",
        r"(?i)\b(http|status|status code|code|error)[ :=]{1,3}503\b|\b503 service unavailable|\bservice (is )?(temporarily )?unavailable\b",
        Kind::SERVICE_UNAVAILABLE,
    ),
];

/// The built-in patterns, in order. Their names begin with `builtin.`.
pub(super) fn built_in() -> Vec<Pattern> {
    let words = |by_class: bool| {
        WORDS
            .iter()
            .map(move |(name, expression, kind, ambiguous)| {
                let part = if by_class { "class" } else { "message" };
                let name = format!("builtin.{name}.{part}");
                let pattern = if by_class {
                    Pattern::class(name, *expression, kind.clone())
                } else {
                    Pattern::message(name, *expression, kind.clone())
                };
                Pattern {
                    ambiguous: *ambiguous,
                    ..pattern
                }
            })
    };
    let tool = TOOL_WORDS.iter().map(|(name, expression, kind)| {
        Pattern::message(format!("builtin.{name}"), *expression, kind.clone())
            .scope(Scope::ToolResult)
    });
    // A class is chosen by a programmer, a message by chance.
    words(true).chain(words(false)).chain(tool).collect()
}
