//! The kind of a failure: the word policies are written in.
//!
//! A kind is an open string, so that a team can add its own without a new release; the well-known
//! ones are constants here. Comparing two kinds compares their text.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What kind of failure something is, such as `ConnectionError`.
///
/// Cloning never copies text: well-known kinds are static, custom ones are shared.
#[derive(Clone)]
pub struct Kind(Repr);

#[derive(Clone)]
enum Repr {
    Static(&'static str),
    Shared(Arc<str>),
}

macro_rules! well_known {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        impl Kind {
            $($(#[$doc])* pub const $name: Kind = Kind(Repr::Static($text));)*

            /// Every well-known kind, in the order of the documentation.
            pub const WELL_KNOWN: &'static [Kind] = &[$(Kind::$name),*];
        }
    };
}

well_known! {
    /// No connection could be made, or it broke: refused, DNS, TLS, reset.
    CONNECTION_ERROR = "ConnectionError";
    /// No answer within the attempt's timeout, or HTTP 408.
    TIMEOUT_ERROR = "TimeoutError";
    /// The server says that it cannot serve now: HTTP 503, 529.
    SERVICE_UNAVAILABLE = "ServiceUnavailable";
    /// The server throttles the caller: HTTP 429.
    TOO_MANY_REQUESTS = "TooManyRequests";
    /// The server failed: HTTP 500, JSON-RPC −32603.
    INTERNAL_SERVER_ERROR = "InternalServerError";
    /// An intermediary got no usable answer: HTTP 502.
    BAD_GATEWAY = "BadGateway";
    /// An intermediary got no answer in time: HTTP 504.
    GATEWAY_TIMEOUT = "GatewayTimeout";
    /// The request itself is wrong: HTTP 400, 422, JSON-RPC −32600, −32602, −32700.
    INVALID_PARAMETER = "InvalidParameter";
    /// Credentials are missing or expired: HTTP 401.
    UNAUTHORIZED = "Unauthorized";
    /// The caller may not do this: HTTP 403.
    FORBIDDEN = "Forbidden";
    /// There is no such thing: HTTP 404, 410.
    NOT_FOUND = "NotFound";
    /// The server does not know the method: JSON-RPC −32601, HTTP 405.
    METHOD_NOT_FOUND = "MethodNotFound";
    /// A tool's own answer is an error (`isError`): the server is well.
    TOOL_ERROR = "ToolError";
    /// An answer broke off after it had begun.
    STREAM_INTERRUPTED = "StreamInterrupted";
    /// What came back does not follow the protocol.
    PROTOCOL_ERROR = "ProtocolError";
    /// The server no longer knows the session.
    SESSION_EXPIRED = "SessionExpired";
    /// The host itself holds the request back: a full queue, no target that may be asked.
    OVERLOADED = "Overloaded";
    /// A model's context is too small for the request.
    CONTEXT_LENGTH = "ContextLength";
    /// A model provider's content filter refused.
    CONTENT_FILTER = "ContentFilter";
    /// The caller gave up, or another attempt of the call came to its end first.
    CANCELLED = "Cancelled";
    /// Nothing more is known.
    UNKNOWN = "Unknown";
}

impl Kind {
    /// The kind with this text: the well-known one where there is one, else a custom kind.
    pub fn new(text: &str) -> Self {
        match Self::WELL_KNOWN.iter().find(|kind| kind.as_str() == text) {
            Some(known) => known.clone(),
            None => Self(Repr::Shared(text.into())),
        }
    }

    /// The kind's text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Static(text) => text,
            Repr::Shared(text) => text,
        }
    }
}

impl Deref for Kind {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for Kind {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Kind {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl From<&str> for Kind {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Kind {}

impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kind {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl std::hash::Hash for Kind {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(&String::deserialize(deserializer)?))
    }
}

#[cfg(feature = "config")]
impl schemars::JsonSchema for Kind {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Kind".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "The kind of a failure, such as ConnectionError. Custom kinds are welcome.",
            "examples": Self::WELL_KNOWN.iter().map(Self::as_str).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_custom_kind_is_as_good_as_a_well_known_one() {
        let custom = Kind::new("QuotaOfTeamSpent");
        assert_eq!(custom, Kind::new("QuotaOfTeamSpent"));
        assert_ne!(custom, Kind::UNKNOWN);
        assert_eq!(Kind::new("TimeoutError"), Kind::TIMEOUT_ERROR);
        assert_eq!(
            serde_json::to_string(&custom).unwrap(),
            "\"QuotaOfTeamSpent\""
        );
    }
}
