//! A model provider that fails in every way providers do, over real HTTP and real event streams.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The words of every answer: a client can tell whether it has all of them.
pub const WORDS: [&str; 8] = [
    "one ", "two ", "three ", "four ", "five ", "six ", "seven ", "eight",
];

pub fn whole_text() -> String {
    WORDS.concat()
}

/// What the provider does with a request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Gives the whole answer.
    Answer,
    /// Gives these bytes as JSON.
    Bytes(&'static str),
    /// Answers with a status, headers and a body.
    Status(u16, &'static [(&'static str, &'static str)], Value),
    /// Never answers.
    Hang,
    /// Breaks the connection after some words, or in the middle of a body.
    Cut(usize),
    /// Says nothing more after some words, and keeps the connection.
    Stall(usize),
    /// `[DONE]` after some words, without a finish.
    DoneEarly(usize),
    /// A piece that is no JSON after some words, then the rest.
    Malformed(usize),
    /// An error as an event after some words.
    ErrorEvent(usize, Value),
    /// All of the answer, no `[DONE]`.
    NoSentinel,
    /// Words without an end.
    Endless,
    /// A pause before each word.
    Slow(Duration),
}

/// One request, as the provider saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub at: Instant,
    pub path: String,
    pub headers: HeaderMap,
    pub raw: Bytes,
    pub body: Value,
}

#[derive(Default)]
struct Inner {
    name: String,
    anthropic: bool,
    acts: Mutex<(VecDeque<Act>, Option<Act>)>,
    seen: Mutex<Vec<Seen>>,
    /// Streams that somebody listens to.
    open: AtomicUsize,
    sent_bytes: AtomicUsize,
}

/// A provider; it ends with the test.
pub struct Provider {
    inner: Arc<Inner>,
    pub url: String,
    stop: CancellationToken,
}

impl Provider {
    pub async fn start(name: &str) -> Self {
        Self::make(name, false).await
    }

    /// One that speaks Anthropic's API.
    pub async fn anthropic(name: &str) -> Self {
        Self::make(name, true).await
    }

    async fn make(name: &str, anthropic: bool) -> Self {
        let inner = Arc::new(Inner {
            name: name.into(),
            anthropic,
            ..Inner::default()
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let app = axum::Router::new()
            .fallback(serve)
            .with_state(inner.clone());
        let serving = stop
            .clone()
            .run_until_cancelled_owned(async move { axum::serve(listener, app).await });
        tokio::spawn(serving);
        Self { inner, url, stop }
    }

    /// Nobody listens at its port any more. What is connected stays so.
    pub fn go_down(&self) {
        self.stop.cancel();
    }

    /// Does this from now on.
    pub fn always(&self, act: Act) {
        self.inner.acts.lock().unwrap().1 = Some(act);
    }

    /// Does this with the next request, before anything else.
    pub fn once(&self, act: Act) {
        self.inner.acts.lock().unwrap().0.push_back(act);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    pub fn hits(&self) -> usize {
        self.inner.seen.lock().unwrap().len()
    }

    pub fn open(&self) -> usize {
        self.inner.open.load(Ordering::SeqCst)
    }

    pub fn sent_bytes(&self) -> usize {
        self.inner.sent_bytes.load(Ordering::SeqCst)
    }
}

async fn serve(
    State(inner): State<Arc<Inner>>,
    uri: Uri,
    headers: HeaderMap,
    raw: Bytes,
) -> Response {
    let body: Value = serde_json::from_slice(&raw).unwrap_or_default();
    inner.seen.lock().unwrap().push(Seen {
        at: Instant::now(),
        path: uri.to_string(),
        headers,
        raw,
        body: body.clone(),
    });
    let act = {
        let mut acts = inner.acts.lock().unwrap();
        let next = acts.0.pop_front();
        next.or_else(|| acts.1.clone()).unwrap_or(Act::Answer)
    };
    match act {
        Act::Status(status, headers, body) => {
            let mut response =
                (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response();
            for (name, value) in headers {
                response.headers_mut().insert(*name, value.parse().unwrap());
            }
            response
        }
        Act::Hang => std::future::pending().await,
        Act::Bytes(bytes) => json_body(bytes.into()),
        act if body["stream"] == true => streamed(inner, act, &body),
        Act::Cut(_) => {
            let whole = answer(&inner, &body).to_string();
            let half = whole[..whole.len() / 2].to_owned();
            let pieces = [Ok(half), Err(std::io::Error::other("cut"))];
            let length = [("content-type", "application/json")];
            (length, Body::from_stream(stream::iter(pieces).then(pause))).into_response()
        }
        Act::Stall(_) => std::future::pending().await,
        Act::Malformed(_) => json_body(format!("{{\"choices\": [{}", "x".repeat(9))),
        Act::ErrorEvent(_, error) => json_body(json!({ "error": error }).to_string()),
        Act::DoneEarly(_) => json_body(json!({ "choices": [] }).to_string()),
        _ => json_body(answer(&inner, &body).to_string()),
    }
}

/// So that what is sent arrives before what comes next, a broken connection above all.
async fn pause<T>(item: T) -> T {
    tokio::time::sleep(Duration::from_millis(2)).await;
    item
}

fn json_body(body: String) -> Response {
    (
        [
            ("content-type", "application/json"),
            ("x-request-id", "req-1"),
        ],
        body,
    )
        .into_response()
}

/// The words that are left behind what the conversation ends with.
fn words(body: &Value) -> Vec<&'static str> {
    let last = body["messages"].as_array().and_then(|list| list.last());
    let begun = last
        .filter(|message| message["role"] == "assistant")
        .map(|message| match &message["content"] {
            Value::String(text) => text.clone(),
            parts => parts[0]["text"].as_str().unwrap_or_default().to_owned(),
        })
        .unwrap_or_default();
    let mut so_far = String::new();
    WORDS
        .into_iter()
        .filter(|word| {
            so_far.push_str(word);
            so_far.len() > begun.len()
        })
        .collect()
}

fn answer(inner: &Inner, body: &Value) -> Value {
    if body["input"] != Value::Null {
        return json!({ "object": "list", "model": body["model"], "data": [{ "embedding": [0.5] }] });
    }
    let text = words(body).concat();
    if inner.anthropic {
        return json!({
            "id": "msg", "type": "message", "role": "assistant", "model": body["model"],
            "content": [{ "type": "text", "text": text }], "stop_reason": "end_turn",
            "usage": { "input_tokens": 3, "output_tokens": 8 },
        });
    }
    json!({
        "id": "c", "object": "chat.completion", "model": body["model"], "system_fingerprint": inner.name,
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11 },
    })
}

/// One event of a stream, or its violent end.
enum Item {
    Event(String),
    Cut,
    Silence,
}

fn streamed(inner: Arc<Inner>, act: Act, body: &Value) -> Response {
    let model = body["model"].clone();
    let event = |value: Value| Item::Event(format!("data: {value}\n\n"));
    let chunk = |delta: Value, finish: Value| {
        event(json!({
            "id": "c", "object": "chat.completion.chunk", "model": model,
            "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }],
        }))
    };
    let word = |word: &str| {
        if inner.anthropic {
            event(
                json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": word } }),
            )
        } else {
            chunk(json!({ "content": word }), Value::Null)
        }
    };
    let mut items: Vec<Item> = if inner.anthropic {
        vec![
            event(
                json!({ "type": "message_start", "message": { "id": "msg", "model": model, "usage": { "input_tokens": 3 } } }),
            ),
            event(json!({ "type": "ping" })),
            event(
                json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
            ),
        ]
    } else {
        vec![
            Item::Event(": keep-alive\n\n".into()),
            chunk(json!({ "role": "assistant", "content": "" }), Value::Null),
        ]
    };
    let fault = match &act {
        Act::Cut(at) => Some((*at, Item::Cut)),
        Act::Stall(at) => Some((*at, Item::Silence)),
        Act::DoneEarly(at) => Some((*at, Item::Event("data: [DONE]\n\n".into()))),
        Act::Malformed(at) => Some((*at, Item::Event("data: {\"choices\":[{\n\n".into()))),
        Act::ErrorEvent(at, error) => {
            Some((*at, event(json!({ "type": "error", "error": error }))))
        }
        _ => None,
    };
    let words = words(body);
    let ends = matches!(
        act,
        Act::Cut(_) | Act::Stall(_) | Act::DoneEarly(_) | Act::ErrorEvent(..)
    );
    let mut broken = false;
    let mut fault = fault;
    for (at, text) in words.iter().enumerate() {
        if fault.as_ref().is_some_and(|(when, _)| *when <= at) {
            items.extend(fault.take().map(|(_, item)| item));
            broken = ends;
        }
        if broken {
            break;
        }
        items.push(word(text));
    }
    if !broken && inner.anthropic {
        items.push(event(json!({ "type": "content_block_stop", "index": 0 })));
        items.push(event(json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn" }, "usage": { "output_tokens": 8 } })));
        items.push(event(json!({ "type": "message_stop" })));
    } else if !broken {
        items.push(chunk(json!({}), "stop".into()));
        if !matches!(act, Act::NoSentinel) {
            items.push(Item::Event("data: [DONE]\n\n".into()));
        }
    }
    let endless = matches!(act, Act::Endless).then(|| match word(&"x".repeat(1024)) {
        Item::Event(text) => text,
        _ => unreachable!(),
    });
    let gap = match act {
        Act::Slow(gap) => gap,
        Act::Cut(_) => Duration::from_millis(2),
        _ => Duration::ZERO,
    };
    inner.open.fetch_add(1, Ordering::SeqCst);
    let state = (items.into_iter(), endless, Listener(inner));
    let events = stream::unfold(state, move |(mut items, endless, listener)| async move {
        if !gap.is_zero() {
            tokio::time::sleep(gap).await;
        }
        let text = match (&endless, items.next()) {
            (Some(more), _) => more.clone(),
            (None, Some(Item::Event(text))) => text,
            (None, Some(Item::Cut)) => {
                return Some((
                    Err(std::io::Error::other("cut")),
                    (items, endless, listener),
                ));
            }
            (None, Some(Item::Silence)) => std::future::pending().await,
            (None, None) => return None,
        };
        listener
            .0
            .sent_bytes
            .fetch_add(text.len(), Ordering::SeqCst);
        Some((Ok(Bytes::from(text)), (items, endless, listener)))
    });
    (
        [("content-type", "text/event-stream")],
        Body::from_stream(events),
    )
        .into_response()
}

struct Listener(Arc<Inner>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}
