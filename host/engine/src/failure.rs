//! A failure: what the detector makes of an attempt that did not succeed.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::kind::Kind;

/// Where a failure arose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// At the target, or on the way to it.
    Remote,
    /// In the host: a full queue, an open circuit, a spent deadline.
    Local,
}

/// One failure, classified.
///
/// Built by the [`Detector`](crate::detect::Detector); an embedder's own classification starts from
/// [`Failure::new`], which knows what a well-known kind means, and changes what differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Failure {
    /// What kind of failure it is.
    pub kind: Kind,
    /// What happened, for a person.
    pub message: String,
    /// The HTTP status, where the failure is an HTTP response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// The JSON-RPC error code, where the failure is a JSON-RPC error response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpc_code: Option<i32>,
    /// Whether the same request may succeed when it is sent again.
    pub retryable: bool,
    /// Whether the server may have acted on the request although no answer arrived.
    pub ambiguous: bool,
    /// Whether the target stayed silent for a whole attempt timeout.
    pub silent: bool,
    /// Whether it speaks against the target's health. Throttling and tool errors do not.
    pub ill_health: bool,
    /// Where it arose.
    pub origin: Origin,
    /// How long the server asked to be left alone.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_secs")]
    pub retry_after: Option<Duration>,
    /// Anything else known by name, such as `error.data` or `error.provider-code`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<(Cow<'static, str>, String)>,
}

fn as_secs<S: serde::Serializer>(
    value: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.map(|d| d.as_secs_f64()).serialize(serializer)
}

impl Failure {
    /// A failure with what its kind usually means for retryability, ambiguity and health
    /// (RULES: classification, ambiguity). Custom kinds start as not retryable, not ambiguous and
    /// without effect on health.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        // (retryable, ambiguous, ill health)
        let (retryable, ambiguous, ill_health) = match kind.as_str() {
            // Refused, DNS, TLS: not processed for sure. A connection that broke after the request
            // was sent is made ambiguous by the detector, which alone knows.
            "ConnectionError" => (true, false, true),
            "TimeoutError" => (true, true, true),
            "ServiceUnavailable" => (true, false, true),
            "TooManyRequests" => (true, false, false),
            // The server answered, so it did act, and may have acted before it failed.
            "InternalServerError" => (true, true, true),
            "BadGateway" | "GatewayTimeout" => (true, true, true),
            "StreamInterrupted" => (true, true, true),
            "ProtocolError" => (false, true, true),
            "SessionExpired" => (true, false, false),
            "Overloaded" => (true, false, false),
            _ => (false, false, false),
        };
        let origin = if kind == Kind::OVERLOADED || kind == Kind::CANCELLED {
            Origin::Local
        } else {
            Origin::Remote
        };
        Self {
            kind,
            message: message.into(),
            http_status: None,
            rpc_code: None,
            retryable,
            ambiguous,
            silent: false,
            ill_health,
            origin,
            retry_after: None,
            details: Vec::new(),
        }
    }

    /// The target was silent for the whole of an attempt's timeout.
    pub fn timed_out(after: Duration) -> Self {
        Self {
            silent: true,
            ..Self::new(Kind::TIMEOUT_ERROR, format!("no answer within {after:?}"))
        }
    }

    /// A detail by name.
    pub fn detail(&self, key: &str) -> Option<&str> {
        self.details
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// Adds a detail.
    pub fn with_detail(
        mut self,
        key: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
    ) -> Self {
        self.details.push((key.into(), value.into()));
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Failure {}

/// A failure and the circumstances it arose in: what an error log, a condition or a person wants to
/// know together.
#[derive(Debug, Clone, Serialize)]
pub struct ErrorContext {
    /// The failure.
    #[serde(flatten)]
    pub failure: Failure,
    /// What was asked, and of whom.
    pub request: RequestContext,
    /// When it was seen.
    pub timestamp: SystemTime,
    /// The caller's id of the request, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Arc<str>>,
}

/// What was asked, and of whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RequestContext {
    /// The group of targets.
    pub group: Arc<str>,
    /// The operation.
    pub operation: Arc<str>,
    /// The target that failed, where one was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Arc<str>>,
}
