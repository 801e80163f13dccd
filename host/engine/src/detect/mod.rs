//! Error detection: what came back from an attempt, turned into a classified [`Failure`].
//!
//! A policy can only be as good as the word it is written in. The detector gives every failure its
//! kind, and says whether the request may succeed when sent again (retryable), whether the server may
//! have acted on it (ambiguous) and whether it speaks against the target (ill health). It believes, in
//! this order: the transport, the HTTP status, the JSON-RPC code, the tool's own `isError`, and last
//! the words of a message, by ordered [`Pattern`]s. A pattern whose scope names a signal goes
//! before that signal's own meaning, since somebody wrote it there on purpose.
//!
//! Rules can be changed while calls run; reading them takes no lock.
//!
//! ```
//! use backstop::Kind;
//! use backstop::detect::{Detector, Pattern, Signal};
//!
//! let detector = Detector::default();
//! detector.add_pattern(Pattern::message("quota", "quota of team .* is spent", "TeamQuota".into()))?;
//! let failure = detector.detect(Signal::JsonRpc {
//!     code: -32000,
//!     message: "the quota of team blue is spent",
//!     data: None,
//! });
//! assert_eq!(failure.kind, Kind::new("TeamQuota"));
//! # Ok::<(), backstop::detect::PatternError>(())
//! ```
//!
#![doc = include_str!("signals.md")]

pub mod hints;
mod http;
pub mod jsonrpc;
mod patterns;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use crate::failure::{ErrorContext, Failure, RequestContext};
use crate::kind::Kind;
use patterns::Compiled;

pub(crate) use patterns::Patterns;
pub use patterns::{Pattern, PatternError, Scope};

/// A message longer than this, in bytes, is cut.
pub const MAX_MESSAGE: usize = 2048;

/// An `error.data` longer than this, in bytes, is left out: half of a JSON text is of no use.
const MAX_DATA: usize = 16 * 1024;

/// What came back from an attempt that did not succeed, in order of trust.
#[non_exhaustive]
pub enum Signal<'a> {
    /// No whole answer came back.
    Transport {
        /// How.
        fault: TransportFault,
        /// What the transport says.
        message: &'a str,
    },
    /// An HTTP response that is no success, or an error in the body or the stream of one that is.
    Http {
        /// The status.
        status: u16,
        /// Looks a header up by its name in lower case. Several values are joined by commas.
        header: &'a dyn Fn(&str) -> Option<String>,
        /// The body, or its beginning.
        body: &'a [u8],
        /// The wall clock, for dates in headers.
        now: SystemTime,
        /// The request carried a session id.
        session: bool,
    },
    /// A JSON-RPC error response.
    JsonRpc {
        /// Its code.
        code: i64,
        /// Its message.
        message: &'a str,
        /// Its data, as JSON.
        data: Option<&'a str>,
    },
    /// A tool's answer with `isError: true`.
    ToolResult {
        /// Its text.
        text: &'a str,
    },
    /// Any other error of a program.
    Error {
        /// The name of its class or type, or its code.
        class: &'a str,
        /// Its message.
        message: &'a str,
    },
}

impl fmt::Debug for Signal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport { fault, message } => write!(f, "Transport({fault:?}, {message:?})"),
            Self::Http {
                status, session, ..
            } => write!(f, "Http({status}, session: {session})"),
            Self::JsonRpc { code, message, .. } => write!(f, "JsonRpc({code}, {message:?})"),
            Self::ToolResult { text } => write!(f, "ToolResult({text:?})"),
            Self::Error { class, message } => write!(f, "Error({class:?}, {message:?})"),
        }
    }
}

/// How a transport failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransportFault {
    /// The connection was refused. Not processed.
    Refused,
    /// The name did not resolve. Not processed.
    Dns,
    /// TLS could not be agreed on. Not processed.
    Tls,
    /// Any other failure before the request was sent. Not processed.
    NotSent,
    /// The connection was reset after the request was sent. Ambiguous.
    Reset,
    /// The connection or stream ended before or during the answer. Ambiguous.
    Eof,
    /// The server's process ended after the request was sent. Ambiguous.
    ProcessExit,
    /// What came back cannot be read. Ambiguous.
    Garbage,
}

impl TransportFault {
    /// Every fault.
    pub const ALL: &'static [Self] = &[
        Self::Refused,
        Self::Dns,
        Self::Tls,
        Self::NotSent,
        Self::Reset,
        Self::Eof,
        Self::ProcessExit,
        Self::Garbage,
    ];

    /// The fault's word: what a pattern's `class` is matched with.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::NotSent => "not-sent",
            Self::Reset => "reset",
            Self::Eof => "eof",
            Self::ProcessExit => "process-exit",
            Self::Garbage => "garbage",
        }
    }

    fn failure(self, message: &str) -> Failure {
        let (kind, ambiguous) = match self {
            Self::Refused | Self::Dns | Self::Tls | Self::NotSent => {
                (Kind::CONNECTION_ERROR, false)
            }
            Self::Reset | Self::ProcessExit => (Kind::CONNECTION_ERROR, true),
            Self::Eof => (Kind::STREAM_INTERRUPTED, true),
            // As of a server behind a gateway, which would say 502.
            Self::Garbage => (Kind::BAD_GATEWAY, true),
        };
        Failure {
            ambiguous,
            ..Failure::new(kind, message)
        }
    }
}

/// What the detector goes by. Replaced as a whole at every change.
#[derive(Debug, Clone, Default)]
struct Rules {
    /// Custom patterns first, then the built-in ones.
    custom: Vec<Compiled>,
    built_in: Vec<Compiled>,
    retryable: HashMap<Kind, bool>,
    ambiguous_statuses: BTreeMap<u16, bool>,
}

/// The built-in patterns are compiled once in a process; a broken one would be missing, and a test
/// would say so.
static BUILT_IN: LazyLock<Vec<Compiled>> = LazyLock::new(|| {
    patterns::built_in()
        .into_iter()
        .enumerate()
        .filter_map(|(i, p)| Compiled::new(p, i + 1).ok())
        .collect()
});

/// Classifies failures. Cloning shares the rules, so that a change reaches every clone. Only the
/// operator's patterns are a clone's own: they change with [`Policies`](crate::Policies), as a whole
/// and from the next call on.
#[derive(Debug, Clone)]
pub struct Detector {
    operators: Patterns,
    rules: Arc<ArcSwap<Rules>>,
}

impl Default for Detector {
    fn default() -> Self {
        let rules = Rules {
            built_in: BUILT_IN.clone(),
            ..Rules::default()
        };
        Self {
            operators: Patterns::default(),
            rules: Arc::new(ArcSwap::from_pointee(rules)),
        }
    }
}

impl Detector {
    /// The same rules with other patterns of the operator.
    pub(crate) fn with_operators(&self, operators: Patterns) -> Self {
        Self {
            operators,
            rules: self.rules.clone(),
        }
    }

    /// The operator's patterns.
    pub(crate) fn operators(&self) -> Vec<Pattern> {
        let of = |compiled: &Compiled| compiled.pattern.clone();
        self.operators.list().iter().map(of).collect()
    }

    /// Classifies what came back.
    pub fn detect(&self, signal: Signal<'_>) -> Failure {
        let shared = self.rules.load();
        let rules = Applied {
            operators: self.operators.list(),
            rules: &shared,
        };
        match signal {
            Signal::Transport { fault, message } => {
                let failure = fault.failure(cut(message));
                rules.conclude(Scope::Transport, false, fault.as_str(), failure, None)
            }
            Signal::Http {
                status,
                header,
                body,
                now,
                session,
            } => {
                let http::Reading {
                    failure,
                    class,
                    open,
                    hint,
                } = http::read(
                    status,
                    header,
                    body,
                    now,
                    session,
                    &shared.ambiguous_statuses,
                );
                rules.conclude(Scope::Http, open, &class, failure, hint)
            }
            Signal::JsonRpc {
                code,
                message,
                data: json,
            } => {
                let message = cut(message);
                let known = jsonrpc::meaning(code, message);
                let open = known.is_none();
                let mut failure = known.unwrap_or_else(|| jsonrpc::unknown(message));
                failure.rpc_code = i32::try_from(code).ok();
                let json = json.map(str::to_owned).and_then(data);
                let hint = json
                    .as_deref()
                    .and_then(|text| serde_json::from_str(text).ok());
                let hint = hint.and_then(|value: serde_json::Value| hints::in_body(&value));
                if let Some(json) = json {
                    failure = failure.with_detail("error.data", json);
                }
                rules.conclude(Scope::JsonRpc, open, &code.to_string(), failure, hint)
            }
            Signal::ToolResult { text } => {
                let failure = Failure::new(Kind::TOOL_ERROR, cut(text));
                rules.conclude(Scope::ToolResult, false, "", failure, None)
            }
            Signal::Error { class, message } => {
                let failure = jsonrpc::unknown(if message.is_empty() {
                    cut(class)
                } else {
                    cut(message)
                });
                rules.conclude(Scope::Error, true, cut(class), failure, None)
            }
        }
    }

    /// The failure of an attempt that was silent for the whole of its timeout.
    pub fn timed_out(&self, after: Duration) -> Failure {
        let mut failure = Failure::timed_out(after);
        if let Some(retryable) = self.rules.load().retryable.get(&failure.kind) {
            failure.retryable = *retryable;
        }
        failure
    }

    /// A failure with the circumstances it arose in.
    pub fn context(
        &self,
        failure: Failure,
        request: RequestContext,
        request_id: Option<Arc<str>>,
        timestamp: SystemTime,
    ) -> ErrorContext {
        ErrorContext {
            failure,
            request,
            timestamp,
            request_id,
        }
    }

    /// Every pattern in the order it is tried: the operator's, the custom ones, then the built-in ones.
    pub fn patterns(&self) -> Vec<Pattern> {
        let rules = self.rules.load();
        self.operators
            .list()
            .iter()
            .chain(&rules.custom)
            .chain(&rules.built_in)
            .map(|compiled| compiled.pattern.clone())
            .collect()
    }

    /// Adds a pattern after the other custom ones; one of the same name is replaced in its place.
    ///
    /// # Errors
    /// [`PatternError`] if an expression is invalid, or there is none.
    pub fn add_pattern(&self, pattern: Pattern) -> Result<(), PatternError> {
        let place = |rules: &Rules| {
            rules
                .custom
                .iter()
                .position(|c| c.pattern.name == pattern.name)
        };
        let rules = self.rules.load();
        let position = place(&rules).unwrap_or(rules.custom.len()) + 1;
        let compiled = Compiled::new(pattern.clone(), position)?;
        self.change(
            |rules| match place(rules).and_then(|at| rules.custom.get_mut(at)) {
                Some(old) => *old = compiled.clone(),
                None => rules.custom.push(compiled.clone()),
            },
        );
        Ok(())
    }

    /// Replaces all custom patterns in one step, or, on an error, none.
    ///
    /// # Errors
    /// [`PatternError`] if an expression is invalid, a pattern has none, or two have one name.
    pub fn set_patterns(&self, patterns: Vec<Pattern>) -> Result<(), PatternError> {
        let patterns = Patterns::new(patterns)?;
        self.change(|rules| rules.custom = patterns.list().to_vec());
        Ok(())
    }

    /// Removes a pattern, custom or built-in. Says whether there was one.
    pub fn remove_pattern(&self, name: &str) -> bool {
        let there = {
            let rules = self.rules.load();
            let mut all = rules.custom.iter().chain(&rules.built_in);
            all.any(|compiled| compiled.pattern.name == name)
        };
        self.change(|rules| {
            rules
                .custom
                .retain(|compiled| compiled.pattern.name != name);
            rules
                .built_in
                .retain(|compiled| compiled.pattern.name != name);
        });
        there
    }

    /// Says whether failures of a kind are retryable. It goes before what the signal says; a
    /// pattern's own word goes before it.
    pub fn set_retryable(&self, kind: Kind, retryable: bool) {
        self.change(|rules| {
            rules.retryable.insert(kind.clone(), retryable);
        });
    }

    /// Takes [`Detector::set_retryable`] back.
    pub fn reset_retryable(&self, kind: &Kind) {
        self.change(|rules| {
            rules.retryable.remove(kind);
        });
    }

    /// Says whether a server that answers with this HTTP status may have acted. Default: as in the
    /// table above, so not for 503.
    pub fn set_ambiguous_status(&self, status: u16, ambiguous: bool) {
        self.change(|rules| {
            rules.ambiguous_statuses.insert(status, ambiguous);
        });
    }

    fn change(&self, change: impl Fn(&mut Rules)) {
        self.rules.rcu(|rules| {
            let mut rules = Rules::clone(rules);
            change(&mut rules);
            rules
        });
    }
}

/// The rules of one detection.
struct Applied<'a> {
    operators: &'a [Compiled],
    rules: &'a Rules,
}

impl Applied<'_> {
    /// Applies patterns and overrides to what a signal says by itself.
    fn conclude(
        &self,
        scope: Scope,
        open: bool,
        class: &str,
        mut failure: Failure,
        hint: Option<Duration>,
    ) -> Failure {
        let matches = |pattern: &&Compiled| pattern.matches(scope, open, class, &failure.message);
        let own = self
            .operators
            .iter()
            .chain(&self.rules.custom)
            .find(matches);
        let custom = own.is_some();
        let pattern = own.or_else(|| self.rules.built_in.iter().find(matches));
        let pattern = pattern.map(|p| &p.pattern);
        if let Some(pattern) = pattern {
            let by_kind = Failure::new(pattern.kind.clone(), String::new());
            let ambiguous = match scope {
                // The tool has run: nobody knows how far.
                Scope::ToolResult => true,
                // The transport knows what it sent.
                Scope::Transport => failure.ambiguous,
                // The server has answered, so it had the request: words do not prove that it did
                // nothing, unless they say that it would not even begin.
                Scope::JsonRpc | Scope::Http if open => {
                    let refused_to_begin = by_kind.kind == Kind::TOO_MANY_REQUESTS
                        || by_kind.kind == Kind::SESSION_EXPIRED;
                    by_kind.ambiguous
                        || !refused_to_begin && (failure.ambiguous || by_kind.retryable)
                }
                // A call that was cancelled may have been under way.
                _ if open => by_kind.ambiguous || by_kind.kind == Kind::CANCELLED,
                _ => failure.ambiguous || by_kind.ambiguous,
            };
            // What the built-in words say of our transport they cannot say of a server's answer.
            let answered = matches!(scope, Scope::JsonRpc | Scope::Http);
            let said = pattern
                .ambiguous
                .filter(|said| *said || custom || !answered);
            failure.ambiguous = said.unwrap_or(ambiguous);
            failure.ill_health = pattern
                .ill_health
                .unwrap_or(by_kind.ill_health && scope != Scope::ToolResult);
            failure.retryable = by_kind.retryable;
            failure.origin = by_kind.origin;
            failure.kind = by_kind.kind;
            failure
                .details
                .push(("error.pattern".into(), pattern.name.clone()));
        }
        if let Some(retryable) = self.rules.retryable.get(&failure.kind) {
            failure.retryable = *retryable;
        }
        if let Some(retryable) = pattern.and_then(|pattern| pattern.retryable) {
            failure.retryable = retryable;
        }
        let asks_for_time =
            failure.kind == Kind::TOO_MANY_REQUESTS || failure.kind == Kind::SERVICE_UNAVAILABLE;
        if asks_for_time || pattern.is_some() {
            failure.retry_after = hint;
        }
        failure
    }
}

/// The message, cut at a character's boundary.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_MESSAGE))
        .unwrap_or(text)
}

fn shorten(text: &str, bytes: usize) -> String {
    text.get(..text.floor_char_boundary(bytes))
        .unwrap_or(text)
        .to_owned()
}

fn data(json: String) -> Option<String> {
    (json.len() <= MAX_DATA).then_some(json)
}

#[cfg(test)]
mod tests;
