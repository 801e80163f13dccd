//! rmcp's errors: what they mean for the engine, and how they come back to the caller.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use ::rmcp::model::{CallToolResponse, CallToolResult, ErrorCode, ErrorData};
use ::rmcp::service::ServiceError;
use ::rmcp::transport::DynamicTransportError;
use ::rmcp::transport::streamable_http_client::StreamableHttpError;

use crate::call::{CallError, CallId};
use crate::detect::{Detector, Signal, TransportFault};
use crate::failure::Failure;
use crate::kind::Kind;
use crate::mcp::code_of;

/// Why one request for a tool brought no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// What rmcp says.
    #[error(transparent)]
    Service(ServiceError),
    /// The connection had ended before the request: it was not sent.
    #[error("not sent: {0}")]
    Closed(#[source] ServiceError),
    /// The target is in the engine's group, but the client has no connection to it.
    #[error("the client has no connection to {0:?}")]
    NotConnected(Arc<str>),
    /// The request goes on with what a server has begun, and the call is not pinned to that server.
    #[error(
        "a request that goes on after input was required must be pinned to the server that asked"
    )]
    Misplaced,
}

impl RequestError {
    /// rmcp's error, where it is one.
    pub fn into_service(self) -> Option<ServiceError> {
        match self {
            Self::Service(error) | Self::Closed(error) => Some(error),
            Self::NotConnected(_) | Self::Misplaced => None,
        }
    }
}

/// What an error of rmcp means.
pub(super) fn classify(error: &RequestError, detector: &Detector) -> Failure {
    let transport = |fault| {
        let message = &chain(error);
        detector.detect(Signal::Transport { fault, message })
    };
    let error = match error {
        RequestError::Closed(_) | RequestError::NotConnected(_) => {
            return transport(TransportFault::NotSent);
        }
        RequestError::Misplaced => {
            return Failure::new(Kind::INVALID_PARAMETER, error.to_string());
        }
        RequestError::Service(error) => error,
    };
    match error {
        ServiceError::McpError(ErrorData {
            code,
            message,
            data,
        }) => {
            let data = data.as_ref().map(ToString::to_string);
            detector.detect(Signal::JsonRpc {
                code: code.0.into(),
                message,
                data: data.as_deref(),
            })
        }
        ServiceError::TransportSend(error) => sending(error, detector, transport),
        // It was open when the request was handed over.
        ServiceError::TransportClosed => transport(TransportFault::Eof),
        ServiceError::UnexpectedResponse => transport(TransportFault::Garbage),
        ServiceError::Timeout { timeout } => detector.timed_out(*timeout),
        ServiceError::Cancelled { .. } => Failure::new(Kind::CANCELLED, error.to_string()),
        other => detector.detect(Signal::Error {
            class: "ServiceError",
            message: &other.to_string(),
        }),
    }
}

/// The error a transport had with a request. Only rmcp's HTTP client tells more than that.
fn sending(
    error: &DynamicTransportError,
    detector: &Detector,
    transport: impl Fn(TransportFault) -> Failure,
) -> Failure {
    let status = |status, retry_after: Option<&str>, session| {
        let header = |name: &str| {
            retry_after
                .filter(|_| name == "retry-after")
                .map(str::to_owned)
        };
        detector.detect(Signal::Http {
            status,
            header: &header,
            body: b"",
            now: SystemTime::now(),
            session,
        })
    };
    let error = error.error.as_ref();
    let Some(http) = error.downcast_ref::<StreamableHttpError<reqwest::Error>>() else {
        // A pipe or a socket: how much of the request went through it is not known.
        return transport(TransportFault::Reset);
    };
    match http {
        StreamableHttpError::HttpStatus(error) => {
            status(error.status, error.retry_after.as_deref(), false)
        }
        StreamableHttpError::AuthRequired(_) => status(401, None, false),
        StreamableHttpError::InsufficientScope(_) => status(403, None, false),
        // The request met a session that was no more; that no new one could be had changes nothing.
        StreamableHttpError::SessionExpired | StreamableHttpError::ReinitializationFailed(_) => {
            status(404, None, true)
        }
        StreamableHttpError::ReservedHeaderConflict(_) => transport(TransportFault::NotSent),
        StreamableHttpError::Client(error) => match error.status() {
            Some(code) => status(code.as_u16(), None, false),
            None => transport(fault_of(error)),
        },
        StreamableHttpError::UnexpectedServerResponse(text) => match status_in(text) {
            Some(code) => status(code, None, false),
            None => transport(TransportFault::Garbage),
        },
        StreamableHttpError::ResponseBodyTooLarge { .. }
        | StreamableHttpError::UnexpectedContentType(_)
        | StreamableHttpError::Deserialize(_) => transport(TransportFault::Garbage),
        StreamableHttpError::Io(_) => transport(TransportFault::Reset),
        _ => transport(TransportFault::Eof),
    }
}

/// The status of "HTTP 404 Not Found: ...", which is all that rmcp tells of statuses other than 429
/// and 5xx.
fn status_in(text: &str) -> Option<u16> {
    let code = text.strip_prefix("HTTP ")?.get(..3)?;
    code.parse().ok().filter(|code| (300..600).contains(code))
}

fn fault_of(error: &reqwest::Error) -> TransportFault {
    if error.is_builder() {
        return TransportFault::NotSent;
    }
    if !error.is_connect() {
        return if error.is_body() || error.is_decode() {
            TransportFault::Eof
        } else {
            TransportFault::Reset
        };
    }
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(io) = current.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return TransportFault::Refused;
        }
        source = current.source();
    }
    TransportFault::NotSent
}

/// An error and its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// A tool call that failed, fallbacks included.
#[derive(Debug)]
#[non_exhaustive]
pub struct CallToolError {
    /// Why, and all that was tried. `None` where a server answered, but with what is no result: it asks
    /// for input, or made a task of the call.
    pub call: Option<Box<CallError>>,
    /// The call's id.
    pub id: CallId,
    /// rmcp's last error: the source of this one.
    pub service: Option<Box<ServiceError>>,
    /// The tool's own last answer, an error as well, where a strategy ended the call in its stead.
    pub answer: Option<Box<CallToolResult>>,
}

impl CallToolError {
    pub(super) fn new(
        call: CallError,
        raw: Option<Result<CallToolResponse, RequestError>>,
    ) -> Self {
        let (service, answer) = match raw {
            Some(Ok(CallToolResponse::Complete(result))) => (None, Some(Box::new(result))),
            Some(Err(error)) => (error.into_service().map(Box::new), None),
            Some(Ok(_)) | None => (None, None),
        };
        Self {
            id: call.id,
            call: Some(Box::new(call)),
            service,
            answer,
        }
    }

    pub(super) fn unexpected(id: CallId) -> Self {
        Self {
            call: None,
            id,
            service: Some(Box::new(ServiceError::UnexpectedResponse)),
            answer: None,
        }
    }
}

impl fmt::Display for CallToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.call {
            Some(call) => write!(f, "{call}: {}", call.cause),
            None => f.write_str("the server asks for input or made a task of the call"),
        }
    }
}

impl Error for CallToolError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let service = self.service.as_deref()?;
        Some(service)
    }
}

/// For code that is written against rmcp: the error of a call that was attempted once is rmcp's own,
/// any other an error response with a code of [`mcp::code`](crate::mcp::code) and the history as data.
impl From<CallToolError> for ServiceError {
    fn from(error: CallToolError) -> Self {
        let text = error.to_string();
        let attempts = error.call.as_ref().map_or(0, |c| c.trouble.attempts.len());
        match (error.service, error.call) {
            (Some(service), _) if attempts <= 1 => *service,
            (_, None) => Self::UnexpectedResponse,
            (_, Some(call)) => Self::McpError(ErrorData::new(
                ErrorCode(code_of(call.ending)),
                text,
                serde_json::to_value(&call).ok(),
            )),
        }
    }
}
