//! Words of open vocabularies: well-known values are constants, others are as good.
//!
//! Teams extend these vocabularies without a new release of anything, so none of them is an enum.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! word {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Cow<'static, str>);

        impl $name {
            $($(#[$value_doc])* pub const $value: Self = Self(Cow::Borrowed($text));)*

            /// The word with this text, well-known or not.
            pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
                Self(text.into())
            }

            /// The word's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&'static str> for $name {
            fn from(text: &'static str) -> Self {
                Self::new(text)
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(word: $name) -> Self {
                word.0.into_owned()
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.as_str() == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.as_str() == *other
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer).map(Self::from)
            }
        }
    };
}

word! {
    /// The kind of a failure, such as `ConnectionError`: the word policies are written in.
    Kind {
        /// No connection could be made, or it broke.
        CONNECTION_ERROR = "ConnectionError";
        /// No answer within the attempt's timeout.
        TIMEOUT_ERROR = "TimeoutError";
        /// The server says that it cannot serve now (HTTP 503).
        SERVICE_UNAVAILABLE = "ServiceUnavailable";
        /// The server throttles the caller (HTTP 429).
        TOO_MANY_REQUESTS = "TooManyRequests";
        /// The server failed (HTTP 500, JSON-RPC −32603).
        INTERNAL_SERVER_ERROR = "InternalServerError";
        /// An intermediary got no usable answer (HTTP 502).
        BAD_GATEWAY = "BadGateway";
        /// An intermediary got no answer in time (HTTP 504).
        GATEWAY_TIMEOUT = "GatewayTimeout";
        /// The request itself is wrong (HTTP 400, JSON-RPC −32602).
        INVALID_PARAMETER = "InvalidParameter";
        /// Credentials are missing or expired (HTTP 401).
        UNAUTHORIZED = "Unauthorized";
        /// The caller may not do this (HTTP 403).
        FORBIDDEN = "Forbidden";
        /// There is no such thing (HTTP 404).
        NOT_FOUND = "NotFound";
        /// The server does not know the method (JSON-RPC −32601).
        METHOD_NOT_FOUND = "MethodNotFound";
        /// A tool's own answer is an error (`isError`).
        TOOL_ERROR = "ToolError";
        /// An answer broke off after it had begun.
        STREAM_INTERRUPTED = "StreamInterrupted";
        /// What came back does not follow the protocol.
        PROTOCOL_ERROR = "ProtocolError";
        /// The server no longer knows the session.
        SESSION_EXPIRED = "SessionExpired";
        /// The host itself holds the request back.
        OVERLOADED = "Overloaded";
        /// A model's context is too small for the request.
        CONTEXT_LENGTH = "ContextLength";
        /// A model provider's content filter refused.
        CONTENT_FILTER = "ContentFilter";
        /// The caller gave up.
        CANCELLED = "Cancelled";
        /// Nothing more is known.
        UNKNOWN = "Unknown";
    }
}

impl Kind {
    /// The kinds that say that a target, or the way to it, is out of order just now, so that another
    /// target may well do: what a failover acts on where nothing else is configured.
    pub const OUTAGE: [Self; 10] = [
        Self::CONNECTION_ERROR,
        Self::TIMEOUT_ERROR,
        Self::SERVICE_UNAVAILABLE,
        Self::TOO_MANY_REQUESTS,
        Self::INTERNAL_SERVER_ERROR,
        Self::BAD_GATEWAY,
        Self::GATEWAY_TIMEOUT,
        Self::STREAM_INTERRUPTED,
        Self::SESSION_EXPIRED,
        Self::OVERLOADED,
    ];
}

word! {
    /// The level of fallback a strategy works on.
    Level {
        /// The same target again.
        RETRY = "retry";
        /// Another service.
        SERVICE = "service";
        /// Another model.
        MODEL = "model";
        /// Another operation.
        OPERATION = "operation";
        /// Data in place of an answer.
        DATA = "data";
        /// A clean error at once.
        FAIL_FAST = "fail-fast";
    }
}

word! {
    /// Something a strategy may do only if the operator's configuration grants it.
    Capability {
        /// Read files of one folder.
        FOLDER = "folder";
        /// Keep state across instances.
        STATE = "state";
    }
}

word! {
    /// What kind of thing a target is.
    TargetKind {
        /// An MCP server, or another service.
        SERVICE = "service";
        /// A model endpoint.
        MODEL = "model";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_custom_word_is_as_good_as_a_well_known_one() {
        let custom: Kind = serde_json::from_str("\"QuotaOfTeamSpent\"").unwrap();
        assert_eq!(custom, Kind::new("QuotaOfTeamSpent"));
        assert_eq!(Kind::new(String::from("TimeoutError")), Kind::TIMEOUT_ERROR);
        assert_eq!(
            serde_json::to_string(&custom).unwrap(),
            "\"QuotaOfTeamSpent\""
        );
    }
}
