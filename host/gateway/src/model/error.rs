//! Failures of models: why one gave no whole answer, and how a client is told, in the shape of
//! OpenAI's errors.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use backstop::call::{AttemptRecord, Ending};
use backstop::{CallError, Failure, Kind};
use serde_json::{Value, json};

use crate::exchange::chain;
use crate::upstream::UpstreamError;

/// Tells the official client libraries whether to ask again by themselves.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Why a model gave no whole answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("{model}: no further token for {after:?}")]
    Stalled { model: Arc<str>, after: Duration },
    #[error("{model}: the request cannot be translated for its API: {reason}")]
    Untranslatable { model: Arc<str>, reason: String },
    #[error("{model}: its API key cannot be read")]
    Key {
        model: Arc<str>,
        #[source]
        source: io::Error,
    },
}

/// An error as the client is told of it.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// The `error` member.
    pub(crate) error: Value,
    pub(crate) retry_after: Option<Duration>,
}

impl ApiError {
    /// The request itself is wrong; no model was asked.
    pub(crate) fn refused(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            _ => "invalid_request_error",
        };
        let error = json!({ "message": message.into(), "type": kind, "param": null, "code": code });
        Self {
            status,
            error,
            retry_after: None,
        }
    }

    /// A call that failed, with everything that was tried. Where the provider found the request
    /// itself wrong, its own words are passed on.
    pub(crate) fn of_call(error: &CallError, raw: Option<&ModelError>) -> Self {
        // The first cause is what a person must know, unless a content filter ended the call. The
        // words at hand are those of the last attempt.
        let last = error.last();
        let is_last = [&Kind::CONTENT_FILTER, &error.cause.kind].contains(&&last.kind);
        let failure = if is_last { last } else { &error.cause };
        let own = provider_error(raw).filter(|_| is_last);
        let mut told = Self::of_failure(failure, error.ending, own);
        if told.error["message"].is_null() {
            told.error["message"] = chain(error).into();
        }
        told.error["backstop"] = serde_json::to_value(error).unwrap_or_default();
        told
    }

    /// A stream that broke off after it had begun, with everything that was tried.
    pub(crate) fn of_stream(cause: &Failure, attempts: &[AttemptRecord]) -> Self {
        let mut told = Self::of_failure(cause, Ending::Exhausted, None);
        told.error["message"] = format!("the answer broke off: {cause}").into();
        told.error["backstop"] = json!({ "cause": cause, "attempts": attempts });
        told
    }

    fn of_failure(failure: &Failure, ending: Ending, own: Option<Value>) -> Self {
        let status = match own_words(&failure.kind) {
            _ if ending == Ending::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Some(status) => failure
                .http_status
                .filter(|status| (400..500).contains(status))
                .and_then(|status| StatusCode::from_u16(status).ok())
                .unwrap_or(status),
            None => match &failure.kind {
                kind if *kind == Kind::TOO_MANY_REQUESTS => StatusCode::TOO_MANY_REQUESTS,
                kind if *kind == Kind::SERVICE_UNAVAILABLE || *kind == Kind::OVERLOADED => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
                kind if *kind == Kind::TIMEOUT_ERROR || *kind == Kind::GATEWAY_TIMEOUT => {
                    StatusCode::GATEWAY_TIMEOUT
                }
                // Credentials a model refuses are the gateway's, not the client's.
                _ => StatusCode::BAD_GATEWAY,
            },
        };
        let own = own.filter(|_| own_words(&failure.kind).is_some());
        let member = |name: &str| own.as_ref().and_then(|own| own.get(name)).cloned();
        let (code, kind) = code_and_type(&failure.kind);
        let error = json!({
            "message": member("message"),
            "type": member("type").filter(Value::is_string).unwrap_or_else(|| kind.into()),
            "param": member("param"),
            "code": member("code").filter(|code| !code.is_null()).unwrap_or(code),
        });
        Self {
            status,
            error,
            retry_after: failure.retry_after,
        }
    }

    /// The error as the body of a response, or the data of an event.
    pub(crate) fn body(&self) -> String {
        json!({ "error": self.error }).to_string()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (
            self.status,
            [(header::CONTENT_TYPE, "application/json")],
            self.body(),
        )
            .into_response();
        let headers = response.headers_mut();
        // The one retry loop is the gateway's: it has done what could be done.
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// The status of a failure that the request itself is to blame for: the provider's words about it
/// are the client's to read.
fn own_words(kind: &Kind) -> Option<StatusCode> {
    [
        Kind::INVALID_PARAMETER,
        Kind::CONTEXT_LENGTH,
        Kind::CONTENT_FILTER,
        Kind::METHOD_NOT_FOUND,
        Kind::NOT_FOUND,
    ]
    .contains(kind)
    .then_some(if *kind == Kind::NOT_FOUND {
        StatusCode::NOT_FOUND
    } else {
        StatusCode::BAD_REQUEST
    })
}

/// The `error` member of what a provider sent; Anthropic's has the same place.
fn provider_error(raw: Option<&ModelError>) -> Option<Value> {
    let Some(ModelError::Upstream(UpstreamError::Http { body, .. })) = raw else {
        return None;
    };
    let body: Value = serde_json::from_slice(body).ok()?;
    body.get("error").filter(|error| error.is_object()).cloned()
}

fn code_and_type(kind: &Kind) -> (Value, &'static str) {
    let code = match kind.as_str() {
        "ContextLength" => "context_length_exceeded".into(),
        "ContentFilter" => "content_filter".into(),
        "TooManyRequests" => "rate_limit_exceeded".into(),
        other => snake(other),
    };
    let class = match kind.as_str() {
        "TooManyRequests" => "rate_limit_error",
        _ if own_words(kind).is_some() => "invalid_request_error",
        _ => "server_error",
    };
    (code.into(), class)
}

/// `ServiceUnavailable` as `service_unavailable`.
fn snake(kind: &str) -> String {
    let mut text = String::with_capacity(kind.len() + 4);
    for (at, letter) in kind.chars().enumerate() {
        if letter.is_uppercase() && at > 0 {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}
