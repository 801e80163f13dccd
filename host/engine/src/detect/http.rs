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
        // An error in the body, or in the stream, of a success: its words must decide.
        200..=299 => jsonrpc::unknown(""),
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

/// What a model provider's word for an error means, where it says more than a status does: the word in
/// lower case, the kind, and whether it is retryable where that differs from the kind. The words are those
/// of OpenAI, Azure, Anthropic, Google and Bedrock, and of what imitates them.
pub(super) const PROVIDER_WORDS: &[(&str, Kind, Option<bool>)] = &[
    ("context_length_exceeded", Kind::CONTEXT_LENGTH, None),
    ("context_window_exceeded", Kind::CONTEXT_LENGTH, None),
    (
        "model_max_prompt_tokens_exceeded",
        Kind::CONTEXT_LENGTH,
        None,
    ),
    ("string_above_max_length", Kind::CONTEXT_LENGTH, None),
    ("request_too_large", Kind::CONTEXT_LENGTH, None),
    ("content_filter", Kind::CONTENT_FILTER, None),
    ("content_policy_violation", Kind::CONTENT_FILTER, None),
    ("responsibleaipolicyviolation", Kind::CONTENT_FILTER, None),
    ("moderation_blocked", Kind::CONTENT_FILTER, None),
    ("overloaded_error", Kind::SERVICE_UNAVAILABLE, None),
    ("overloaded", Kind::SERVICE_UNAVAILABLE, None),
    ("server_overloaded", Kind::SERVICE_UNAVAILABLE, None),
    ("engine_overloaded", Kind::SERVICE_UNAVAILABLE, None),
    ("unavailable", Kind::SERVICE_UNAVAILABLE, None),
    // Time does not mend these; another target may.
    ("insufficient_quota", Kind::TOO_MANY_REQUESTS, Some(false)),
    ("insufficient_credits", Kind::TOO_MANY_REQUESTS, Some(false)),
    (
        "billing_hard_limit_reached",
        Kind::TOO_MANY_REQUESTS,
        Some(false),
    ),
    ("billing_not_active", Kind::TOO_MANY_REQUESTS, Some(false)),
    ("billing_error", Kind::TOO_MANY_REQUESTS, Some(false)),
    ("rate_limit_error", Kind::TOO_MANY_REQUESTS, None),
    ("rate_limit_exceeded", Kind::TOO_MANY_REQUESTS, None),
    ("too_many_requests", Kind::TOO_MANY_REQUESTS, None),
    ("resource_exhausted", Kind::TOO_MANY_REQUESTS, None),
    ("throttlingexception", Kind::TOO_MANY_REQUESTS, None),
    ("slow_down", Kind::TOO_MANY_REQUESTS, None),
];

fn by_provider_code(word: &str) -> Option<Failure> {
    let (_, kind, retryable) = PROVIDER_WORDS.iter().find(|(known, ..)| *known == word)?;
    let failure = Failure::new(kind.clone(), String::new());
    Some(Failure {
        retryable: retryable.unwrap_or(failure.retryable),
        ..failure
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
    let began = (200..300).contains(&status);
    let mut open = began;
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
    if let (Some(refined), 200..=299 | 400 | 402..=499 | 500 | 503 | 529) =
        (fields.meaning(status), status)
        && failure.kind != Kind::SESSION_EXPIRED
    {
        status_decides = refined.kind == failure.kind;
        failure = refined;
        open = false;
        // Whoever has begun an answer has begun the work, unless all it says is "not now".
        failure.ambiguous |= began && failure.kind == Kind::SERVICE_UNAVAILABLE;
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

/// Providers without a word for it say in a sentence that a request is too long, refused, or unpaid.
fn by_message(status: u16, message: &str) -> Option<Failure> {
    const TOO_LONG: &[&str] = &[
        "maximum context length",
        "prompt is too long",
        "exceed context limit",
        "exceeds the maximum number of tokens",
        "context window",
    ];
    const REFUSED: &[&str] = &[
        "content filtering policy",
        "content management policy",
        "safety system",
    ];
    if !matches!(status, 200..=299 | 400 | 413 | 422) {
        return None;
    }
    let message = message.to_ascii_lowercase();
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| message.contains(phrase));
    let failure = |kind| Some(Failure::new(kind, String::new()));
    if says(TOO_LONG) {
        failure(Kind::CONTEXT_LENGTH)
    } else if says(REFUSED) {
        failure(Kind::CONTENT_FILTER)
    } else if says(&["credit balance is too low"]) {
        by_provider_code("billing_error")
    } else {
        None
    }
}
