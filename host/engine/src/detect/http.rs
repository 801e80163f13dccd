//! HTTP responses: what status, headers and body say about a failure.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::hints::{self, Pushback};
use super::jsonrpc;
use super::{cut, shorten};
use crate::failure::Failure;
use crate::kind::Kind;

/// A body larger than this is not read for its fields.
const MAX_BODY: usize = 64 * 1024;

/// What an HTTP response says, before patterns.
pub(super) struct Reading {
    pub(super) failure: Failure,
    /// The provider's word or the JSON-RPC code: what a pattern's `class` is matched with.
    pub(super) class: String,
    /// The kind is open: a JSON-RPC code without meaning in a status without much.
    pub(super) open: bool,
    pub(super) hint: Option<Duration>,
}

/// The status table. RFC 9110 section 15, RFC 6585, RFC 8470, and what providers and proxies use.
fn by_status(status: u16, session: bool) -> Failure {
    let new = |kind| Failure::new(kind, String::new());
    match status {
        401 | 407 => new(Kind::UNAUTHORIZED),
        // Credit that is spent is the throttle of a provider that wants money, not time.
        402 => Failure {
            retryable: false,
            ..new(Kind::TOO_MANY_REQUESTS)
        },
        403 | 451 => new(Kind::FORBIDDEN),
        404 if session => new(Kind::SESSION_EXPIRED),
        404 | 410 => new(Kind::NOT_FOUND),
        405 | 501 => new(Kind::METHOD_NOT_FOUND),
        // Written as "did not receive the request in time", used as "took too long": the cautious
        // reading counts.
        408 => new(Kind::TIMEOUT_ERROR),
        // A lock held by someone else, and Too Early: not now, but soon, and the server is well.
        409 | 425 => Failure {
            ill_health: false,
            ..new(Kind::SERVICE_UNAVAILABLE)
        },
        429 => new(Kind::TOO_MANY_REQUESTS),
        400..=499 => new(Kind::INVALID_PARAMETER),
        502 | 520 => new(Kind::BAD_GATEWAY),
        503 | 529 => new(Kind::SERVICE_UNAVAILABLE),
        504 | 524 => new(Kind::GATEWAY_TIMEOUT),
        505 => Failure {
            ambiguous: false,
            ..new(Kind::PROTOCOL_ERROR)
        },
        // A proxy that never reached the server behind it.
        521 | 523 | 525 | 526 => Failure {
            ambiguous: false,
            ..new(Kind::BAD_GATEWAY)
        },
        522 => Failure {
            ambiguous: false,
            ..new(Kind::GATEWAY_TIMEOUT)
        },
        500..=599 => new(Kind::INTERNAL_SERVER_ERROR),
        _ => new(Kind::PROTOCOL_ERROR),
    }
}

/// What a model provider's word for an error means, where it says more than a status does.
/// The word is in lower case.
fn by_provider_code(word: &str) -> Option<Failure> {
    let new = |kind| Failure::new(kind, String::new());
    Some(match word {
        "context_length_exceeded"
        | "context_window_exceeded"
        | "model_max_prompt_tokens_exceeded" => new(Kind::CONTEXT_LENGTH),
        "content_filter"
        | "content_policy_violation"
        | "responsibleaipolicyviolation"
        | "moderation_blocked" => new(Kind::CONTENT_FILTER),
        "overloaded_error" | "overloaded" | "server_overloaded" | "engine_overloaded"
        | "unavailable" => new(Kind::SERVICE_UNAVAILABLE),
        // Time does not mend these; another target may.
        "insufficient_quota"
        | "insufficient_credits"
        | "billing_hard_limit_reached"
        | "billing_not_active"
        | "billing_error" => Failure {
            retryable: false,
            ..new(Kind::TOO_MANY_REQUESTS)
        },
        "rate_limit_error"
        | "rate_limit_exceeded"
        | "too_many_requests"
        | "resource_exhausted"
        | "throttlingexception" => new(Kind::TOO_MANY_REQUESTS),
        _ => return None,
    })
}

pub(super) fn read(
    status: u16,
    header: &dyn Fn(&str) -> Option<String>,
    body: &[u8],
    now: SystemTime,
    session: bool,
    ambiguous: &BTreeMap<u16, bool>,
) -> Reading {
    let json = parse(body);
    let fields = json.as_ref().map(Fields::of).unwrap_or_default();
    let mut failure = by_status(status, session);
    let mut open = false;
    let mut status_decides = true;

    // MCP sends these statuses with a JSON-RPC error that says more than they do.
    if let (Some(code), 400 | 404) = (fields.rpc_code, status)
        && failure.kind != Kind::SESSION_EXPIRED
    {
        match jsonrpc::meaning(code, "") {
            Some(meaning) => failure = meaning,
            None => open = true,
        }
    }
    // An intermediary's own answer (502, 504, 52x) is believed as it stands, and so is 401.
    if let (Some(refined), 400 | 402..=499 | 500 | 503 | 529) = (fields.meaning(status), status)
        && failure.kind != Kind::SESSION_EXPIRED
    {
        status_decides = refined.kind == failure.kind;
        failure = refined;
        open = false;
    }
    if status_decides && let Some(ambiguous) = ambiguous.get(&status) {
        failure.ambiguous = *ambiguous;
    }

    failure.http_status = Some(status);
    failure.rpc_code = fields.rpc_code.and_then(|code| i32::try_from(code).ok());
    failure.message = match fields
        .message
        .as_deref()
        .map(str::trim)
        .filter(|text| !text.is_empty())
    {
        Some(text) => format!("HTTP {status}: {}", cut(text)),
        None => plain(status, body, json.is_some()),
    };
    if let Some(data) = &fields.data {
        failure.details.push(("error.data".into(), data.clone()));
    }
    let mut class = fields
        .rpc_code
        .map(|code| code.to_string())
        .unwrap_or_default();
    if let Some(word) = fields.words.first() {
        failure
            .details
            .push(("error.provider-code".into(), shorten(word, 128)));
        class = word.clone();
    }

    let throttled = failure.kind == Kind::TOO_MANY_REQUESTS;
    let mut hint = hints::of_response(header, json.as_ref(), throttled, now);
    match header("grpc-retry-pushback-ms").map(|value| hints::pushback(&value)) {
        Some(Pushback::Never) => failure.retryable = false,
        Some(Pushback::After(delay)) => hint = Some(delay),
        None => {}
    }
    Reading {
        failure,
        class,
        open,
        hint,
    }
}

fn parse(body: &[u8]) -> Option<Value> {
    let first = body.iter().find(|b| !b.is_ascii_whitespace())?;
    if body.len() > MAX_BODY || !matches!(first, b'{' | b'[') {
        return None;
    }
    let value: Value = serde_json::from_slice(body).ok()?;
    match value {
        // Google wraps a streamed error in an array.
        Value::Array(items) => items.into_iter().next(),
        value => Some(value),
    }
}

fn plain(status: u16, body: &[u8], json: bool) -> String {
    let head = body.get(..body.len().min(256)).unwrap_or_default();
    let text = String::from_utf8_lossy(head);
    let text = text.trim();
    if json || text.is_empty() || text.starts_with('<') {
        format!("HTTP {status}")
    } else {
        format!("HTTP {status}: {text}")
    }
}

/// The fields of an error body that matter, wherever a provider puts them.
#[derive(Default)]
struct Fields {
    rpc_code: Option<i64>,
    /// The provider's words, the most exact first.
    words: Vec<String>,
    message: Option<String>,
    data: Option<String>,
}

impl Fields {
    fn of(body: &Value) -> Self {
        let error = match body.get("error") {
            Some(error @ Value::Object(_)) => error,
            _ => body,
        };
        let is_rpc = body.get("jsonrpc").is_some();
        let rpc_code = if is_rpc {
            error.get("code").and_then(Value::as_i64)
        } else {
            None
        };
        let inner = error.get("innererror").or_else(|| error.get("inner_error"));
        let words = [
            inner.and_then(|inner| inner.get("code")),
            error.get("code"),
            error.get("type"),
            error.get("status"),
        ];
        let words = words
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .filter(|word| !word.is_empty());
        let message = error
            .get("message")
            .or_else(|| error.get("detail"))
            .or_else(|| error.get("title"));
        let message = message
            .or_else(|| body.get("error"))
            .and_then(Value::as_str);
        let data = if is_rpc {
            error
                .get("data")
                .map(Value::to_string)
                .and_then(super::data)
        } else {
            None
        };
        Self {
            rpc_code,
            words: words.map(str::to_owned).collect(),
            message: message.map(str::to_owned),
            data,
        }
    }

    fn meaning(&self, status: u16) -> Option<Failure> {
        self.words
            .iter()
            .find_map(|word| by_provider_code(&word.to_ascii_lowercase()))
            .or_else(|| by_message(status, self.message.as_deref()?))
    }
}

/// Providers without a word for it say in a sentence that a request is too long, or unpaid.
fn by_message(status: u16, message: &str) -> Option<Failure> {
    const TOO_LONG: [&str; 5] = [
        "maximum context length",
        "prompt is too long",
        "exceed context limit",
        "exceeds the maximum number of tokens",
        "context window",
    ];
    if !matches!(status, 400 | 413 | 422) {
        return None;
    }
    let message = message.to_ascii_lowercase();
    if TOO_LONG.iter().any(|phrase| message.contains(phrase)) {
        return Some(Failure::new(Kind::CONTEXT_LENGTH, String::new()));
    }
    if message.contains("credit balance is too low") {
        return Some(Failure {
            retryable: false,
            ..Failure::new(Kind::TOO_MANY_REQUESTS, String::new())
        });
    }
    None
}
