//! The front: OpenAI's API below one path, for any client that speaks it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body as HttpBody, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use backstop::config::parse_duration;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::Models;
use super::error::ApiError;
use super::exchange::Body;
use super::relay::{Answered, Relay};
use super::request::{Endpoint, ModelRequest};
use crate::otlp;

const DEADLINE: &str = "x-backstop-deadline";
const FALLBACK: &str = "x-backstop-fallback";
const PIN: &str = "x-backstop-pin";
const IMPORTANCE: &str = "x-backstop-importance";
const SERVED_BY: HeaderName = HeaderName::from_static("x-backstop-served-by");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-backstop-attempts");
const FAILED: HeaderName = HeaderName::from_static("x-backstop-failed");

/// Says why a request is not let in; `None` lets it in.
pub(crate) type Guard = Arc<dyn Fn(&Parts) -> Option<(StatusCode, &'static str)> + Send + Sync>;

/// The largest body of a request, in bytes, at this moment.
pub(crate) type MaxBody = Arc<dyn Fn() -> usize + Send + Sync>;

#[derive(Clone)]
struct Front {
    models: Arc<Models>,
    guard: Guard,
    max_body: MaxBody,
}

/// One request of a client, and what it says about how it is to be carried out.
pub(crate) struct Asked {
    pub(crate) request: ModelRequest,
    pub(crate) group: Arc<str>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) no_fallback: bool,
    pub(crate) importance: Option<u8>,
}

impl Asked {
    pub(crate) fn operation(&self) -> Arc<str> {
        self.request.endpoint.operation().into()
    }

    /// Whether another model may go on with the answer of one that broke off.
    pub(crate) fn may_be_continued(&self) -> bool {
        !self.no_fallback && self.request.pin.is_none()
    }
}

/// The routes, below the configured path.
pub(crate) fn routes(models: Arc<Models>, guard: Guard, max_body: MaxBody) -> Router {
    let path = format!("/{}", models.exchange.options.load().path.trim_matches('/'));
    let path = path.trim_end_matches('/');
    let front = Front {
        models,
        guard,
        max_body,
    };
    Router::new()
        .route(&format!("{path}/chat/completions"), post(chat))
        .route(&format!("{path}/embeddings"), post(embeddings))
        .route(&format!("{path}/models"), get(list))
        .route(&format!("{path}/models/{{*id}}"), get(one))
        .route(&format!("{path}/{{*rest}}"), axum::routing::any(unknown))
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(front.clone(), admit))
        .with_state(front)
}

async fn admit(State(front): State<Front>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match (front.guard)(&parts) {
        None => next.run(Request::from_parts(parts, body)).await,
        Some((status, reason)) => {
            let code = match status {
                StatusCode::UNAUTHORIZED => "invalid_api_key",
                _ => "not_allowed",
            };
            ApiError::refused(status, code, reason).into_response()
        }
    }
}

async fn unknown(request: Request) -> ApiError {
    let message = format!("there is no {} here", request.uri().path());
    ApiError::refused(StatusCode::NOT_FOUND, "unknown_url", message)
}

async fn not_allowed() -> ApiError {
    let message = "this path takes another method";
    ApiError::refused(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    )
}

async fn chat(State(front): State<Front>, request: Request) -> Response {
    answer(front, Endpoint::Chat, request).await
}

async fn embeddings(State(front): State<Front>, request: Request) -> Response {
    answer(front, Endpoint::Embeddings, request).await
}

async fn answer(front: Front, endpoint: Endpoint, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let max_body = (front.max_body)();
    let Ok(body) = to_bytes(body, max_body).await else {
        let message = format!("the body is larger than {max_body} bytes");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        return ApiError::refused(status, "request_too_large", message).into_response();
    };
    let began = Instant::now();
    let asked = match read(&front.models, endpoint, &parts.headers, body) {
        Ok(asked) => asked,
        Err(refused) => return refused.into_response(),
    };
    let operation = asked.request.endpoint.operation();
    let span = otlp::completion(operation, &asked.request.asked_for, &parts.headers);
    let answered = front.models.ask(&asked).instrument(span.clone()).await;
    match answered {
        Ok(outcome) => {
            let (answered, answer) = Answered::of(outcome);
            let mut headers = answer.headers;
            headers.extend(told(&answered));
            let (media, body) = match answer.body {
                Body::Whole(bytes) => ("application/json", HttpBody::from(bytes)),
                Body::Stream(stream) => {
                    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                    let relay = Relay::new(front.models, asked, *stream, answered, began);
                    ("text/event-stream", streamed(relay))
                }
            };
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
            (headers, body).into_response()
        }
        Err((error, raw)) => {
            otlp::requested(&span, Some(error.kind().as_str()));
            let attempts = error.trouble.attempts.len();
            let names = error.trouble.attempts.iter();
            let failed = names.map(|record| (&*record.target, &*record.failure.kind));
            let headers = attempt_headers(attempts, failed);
            (headers, ApiError::of_call(&error, raw.as_ref())).into_response()
        }
    }
}

fn streamed(relay: Relay) -> HttpBody {
    HttpBody::from_stream(stream::unfold(relay, |mut relay| async move {
        let event = relay.next().await?;
        Some((Ok::<_, Infallible>(event), relay))
    }))
}

/// Who answered, and what was tried before.
fn told(answered: &Answered) -> HeaderMap {
    let failed = answered.failed.iter();
    let failed = failed.map(|record| (&*record.target, &*record.failure.kind));
    let mut headers = attempt_headers(answered.attempts as usize, failed);
    if let Ok(name) = HeaderValue::from_bytes(answered.by.as_bytes()) {
        headers.insert(SERVED_BY, name);
    }
    headers
}

fn attempt_headers<'a>(
    attempts: usize,
    failed: impl Iterator<Item = (&'a str, &'a str)>,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ATTEMPTS, attempts.into());
    let failed: Vec<String> = failed
        .map(|(name, kind)| format!("{name}={kind}"))
        .collect();
    if !failed.is_empty()
        && let Ok(value) = HeaderValue::from_bytes(failed.join(", ").as_bytes())
    {
        headers.insert(FAILED, value);
    }
    headers
}

/// Reads a request and decides whom it goes to.
pub(super) fn read(
    models: &Models,
    endpoint: Endpoint,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Asked, ApiError> {
    let bad =
        |code: &str, message: String| ApiError::refused(StatusCode::BAD_REQUEST, code, message);
    let mut request =
        ModelRequest::parse(endpoint, body).map_err(|message| bad("invalid_request", message))?;
    let text = |name: &str| {
        let value = headers.get(name)?;
        Some(value.to_str().unwrap_or("?").trim())
    };
    let invalid =
        |name: &str, wanted: &str| bad("invalid_header", format!("`{name}` must be {wanted}"));
    let deadline = match text(DEADLINE) {
        None => None,
        Some(given) => {
            let seconds = || parse_duration(&format!("{given}s"));
            let deadline = parse_duration(given).or_else(seconds);
            let deadline = deadline.filter(|deadline| !deadline.is_zero());
            Some(
                deadline
                    .ok_or_else(|| invalid(DEADLINE, "seconds, or a duration such as 1m30s"))?,
            )
        }
    };
    let no_fallback = match text(FALLBACK) {
        None | Some("on") => false,
        Some("off") => true,
        Some(_) => return Err(invalid(FALLBACK, "on or off")),
    };
    let importance = match text(IMPORTANCE).map(str::parse::<u8>) {
        None => None,
        Some(Ok(number)) if number <= 100 => Some(number),
        Some(_) => return Err(invalid(IMPORTANCE, "a number from 0 to 100")),
    };

    let exchange = &models.exchange;
    let there = exchange.known();
    let (group, named) = match (
        there.groups.get_key_value(request.asked_for.as_str()),
        there.model(&request.asked_for),
    ) {
        (Some((group, _)), _) => (group.clone(), None),
        (None, Some(model)) => (model.spec.group.clone(), Some(model.spec.name.clone())),
        (None, None) => {
            let known: Vec<&str> = there.groups.keys().map(|name| &**name).collect();
            let message = format!(
                "there is no model {:?}; ask for one of {}",
                request.asked_for,
                known.join(", ")
            );
            return Err(ApiError::refused(
                StatusCode::NOT_FOUND,
                "model_not_found",
                message,
            ));
        }
    };
    request.pin = match text(PIN) {
        None => named,
        Some(given) => {
            let pinned = there.model(given).filter(|model| model.spec.group == group);
            let pinned = pinned.map(|model| model.spec.name.clone());
            let pinned = pinned.filter(|pin| named.as_ref().is_none_or(|named| named == pin));
            Some(
                pinned
                    .ok_or_else(|| invalid(PIN, &format!("a model of {:?}", request.asked_for)))?,
            )
        }
    };
    let candidates = there.groups.get(&group).into_iter().flatten();
    let refusals: Option<Vec<String>> = candidates
        .filter(|model| {
            request
                .pin
                .as_ref()
                .is_none_or(|pin| *pin == model.spec.name)
        })
        .map(|model| exchange.cannot(model, &request))
        .collect();
    if let Some(reasons) = refusals {
        let message = format!("no model can serve this request: {}", reasons.join("; "));
        return Err(bad("unsupported_request", message));
    }
    Ok(Asked {
        request,
        group,
        deadline,
        no_fallback,
        importance,
    })
}

/// Groups first: they are what a client should ask for.
async fn list(State(front): State<Front>) -> Response {
    let known = front.models.exchange.known();
    let groups = &known.groups;
    let models = groups.values().flatten().map(|model| &model.spec.name);
    let models = models.filter(|name| !groups.contains_key(*name));
    let data: Vec<Value> = groups
        .keys()
        .chain(models)
        .map(|name| entry(name))
        .collect();
    as_json(&json!({ "object": "list", "data": data }))
}

async fn one(State(front): State<Front>, Path(id): Path<String>) -> Response {
    let known = front.models.exchange.known();
    if known.groups.contains_key(id.as_str()) || known.model(&id).is_some() {
        return as_json(&entry(&id));
    }
    let message = format!("there is no model {id:?}");
    ApiError::refused(StatusCode::NOT_FOUND, "model_not_found", message).into_response()
}

fn entry(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": 0, "owned_by": "backstop" })
}

fn as_json(value: &Value) -> Response {
    let media = [(header::CONTENT_TYPE, "application/json")];
    (media, value.to_string()).into_response()
}
