//! How long MCP requests took, under the names of OpenTelemetry's semantic conventions for MCP.
//!
//! | name | kind | unit | labels |
//! |---|---|---|---|
//! | `mcp.server.operation.duration` | histogram | s | `mcp.method.name`, `error.type`: requests of clients, answered by the gateway |
//! | `mcp.client.operation.duration` | histogram | s | `mcp.method.name`, `error.type`, `backstop.target`, `network.transport` (`pipe`, `tcp`): requests to servers |
//!
//! `error.type` is the JSON-RPC code as text, `tool_error`, or, where a server did not answer, one of
//! `transport`, `http`, `session_expired`; it is empty where all went well. The name of the tool is not
//! a label: it would be one time series for each tool, target and outcome.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Histogram, SharedString, Unit, describe_histogram, histogram};

use crate::envelope::Payload;
use crate::upstream::UpstreamError;

/// How long a client waited for its answer.
pub const SERVER_DURATION: &str = "mcp.server.operation.duration";
/// How long a server took.
pub const CLIENT_DURATION: &str = "mcp.client.operation.duration";

/// The methods that are told apart; the last stands for every other one.
const METHODS: [&str; 15] = [
    "tools/call",
    "tools/list",
    "prompts/get",
    "prompts/list",
    "resources/read",
    "resources/list",
    "resources/templates/list",
    "resources/subscribe",
    "resources/unsubscribe",
    "completion/complete",
    "initialize",
    "server/discover",
    "ping",
    "logging/setLevel",
    "other",
];

/// Tells the recorder of the process what the names mean.
pub(crate) fn describe() {
    describe_histogram!(
        SERVER_DURATION,
        Unit::Seconds,
        "How long clients waited for answers"
    );
    describe_histogram!(CLIENT_DURATION, Unit::Seconds, "How long servers took");
}

/// What goes well, looked up once: a healthy request must not pay for it.
#[derive(Default)]
pub(crate) struct Good([OnceLock<Histogram>; METHODS.len()]);

impl std::fmt::Debug for Good {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Good")
    }
}

impl Good {
    fn record(
        &self,
        method: &str,
        error: Option<SharedString>,
        took: Duration,
        make: impl FnOnce(&'static str, SharedString) -> Histogram,
    ) {
        let known = METHODS.iter().position(|known| *known == method);
        let at = known.unwrap_or(METHODS.len() - 1);
        match error {
            None => self.0[at]
                .get_or_init(|| make(METHODS[at], SharedString::const_str("")))
                .record(took),
            Some(error) => make(METHODS[at], error).record(took),
        }
    }

    /// A client's request was answered.
    pub(crate) fn answered(&self, method: &str, error: Option<SharedString>, took: Duration) {
        self.record(method, error, took, |method, error| {
            histogram!(SERVER_DURATION, "mcp.method.name" => method, "error.type" => error)
        });
    }

    /// A server answered, or did not.
    pub(crate) fn asked(
        &self,
        target: &Arc<str>,
        transport: &'static str,
        method: &str,
        outcome: &Result<Payload, UpstreamError>,
        took: Duration,
    ) {
        let error = match outcome {
            Ok(payload) => error_type(payload, false),
            Err(
                UpstreamError::Http { .. }
                | UpstreamError::CredentialsRenewed { .. }
                | UpstreamError::SignIn { .. },
            ) => Some(SharedString::const_str("http")),
            Err(UpstreamError::SessionExpired { .. }) => {
                Some(SharedString::const_str("session_expired"))
            }
            Err(_) => Some(SharedString::const_str("transport")),
        };
        self.record(method, error, took, |method, error| {
            histogram!(CLIENT_DURATION, "mcp.method.name" => method, "error.type" => error,
                "backstop.target" => SharedString::from_shared(target.clone()),
                "network.transport" => transport)
        });
    }
}

/// What went wrong, by the answer. Codes that mean nothing by themselves, of which there is no end, count
/// as one.
pub(crate) fn error_type(payload: &Payload, is_tool_error: bool) -> Option<SharedString> {
    match payload.error_code() {
        Some(code @ (-32_700 | -32_603..=-32_600 | -32_099..=-32_000)) => {
            Some(code.to_string().into())
        }
        Some(_) => Some(SharedString::const_str("other")),
        None if matches!(payload, Payload::Error(_)) => Some(SharedString::const_str("other")),
        None => is_tool_error.then(|| SharedString::const_str("tool_error")),
    }
}
