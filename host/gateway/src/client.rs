//! One client: the requests it waits for, the questions servers ask it, and the connections that
//! are its own.
//!
//! Clients share the connections to the servers as long as nothing on them depends on who asks. A
//! client that declares capabilities (sampling, elicitation, roots) can be asked questions, and what a
//! server offers may depend on them: it gets a connection of its own to every server of the era with
//! sessions, greeted with the client's own words. What is said on it is for this client and no other.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use backstop::mcp::rpc;
use bytes::Bytes;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::envelope::{self, Envelope, Json, Members, Payload};
use crate::upstream::{Link, Watching};

/// What tells the server of a question how its answer is coming along.
pub(crate) type ProgressBack = Box<dyn Fn(Json) + Send + Sync>;

/// The levels of log messages, from the least grave (MCP 2025-11-25, logging).
const LOG_LEVELS: [&str; 8] = [
    "debug",
    "info",
    "notice",
    "warning",
    "error",
    "critical",
    "alert",
    "emergency",
];
const NO_LEVEL: u8 = u8::MAX;

/// A log level that may not have been set, shared with those who must know it.
#[derive(Debug)]
pub(crate) struct LogLevel(AtomicU8);

impl Default for LogLevel {
    fn default() -> Self {
        Self(AtomicU8::new(NO_LEVEL))
    }
}

impl LogLevel {
    /// Takes a level by its name; `false` where there is no such level.
    pub(crate) fn set(&self, name: &str) -> bool {
        let place = (0..).zip(LOG_LEVELS).find(|(_, level)| *level == name);
        if let Some((place, _)) = place {
            self.0.store(place, Ordering::Relaxed);
        }
        place.is_some()
    }

    /// Takes the more talkative of two.
    pub(crate) fn lower_to(&self, other: &Self) {
        self.0
            .fetch_min(other.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(crate) fn copy_from(&self, other: &Self) {
        self.0
            .store(other.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(crate) fn name(&self) -> Option<&'static str> {
        LOG_LEVELS
            .get(usize::from(self.0.load(Ordering::Relaxed)))
            .copied()
    }

    /// Whether a message of this level is wanted; everything is where nothing was asked for.
    fn admits(&self, params: &Json) -> bool {
        let asked = self.0.load(Ordering::Relaxed);
        let given = params.text_member("level");
        let given = given.and_then(|given| LOG_LEVELS.iter().position(|level| *level == given));
        asked == NO_LEVEL || given.is_none_or(|given| given >= usize::from(asked))
    }
}

/// A client.
pub(crate) struct Client {
    /// Tells it from every other.
    pub(crate) id: Arc<str>,
    /// What it asked to be told about with `logging/setLevel`.
    pub(crate) log_level: LogLevel,
    /// Whether there will never be another.
    sole: bool,
    /// The parameters of its `initialize`, with the version agreed on.
    hello: OnceLock<Json>,
    /// Whether that names a capability: looked at with every call.
    can_be_asked: AtomicBool,
    /// Where what belongs to no call goes.
    out: mpsc::Sender<Bytes>,
    requests: Mutex<HashMap<Bytes, CancellationToken>>,
    asked: Mutex<HashMap<u64, Asked>>,
    next_question: AtomicU64,
    watched: Mutex<HashMap<String, Watching>>,
    lanes: Mutex<HashMap<Arc<str>, Lane>>,
    catalog: OnceLock<Arc<Catalog>>,
}

/// A connection of the client's own.
struct Lane {
    /// The shared connection to the same server, which tells it from another of that name.
    beside: Weak<Link>,
    link: Arc<Link>,
}

/// A question the client has not answered yet.
struct Asked {
    answer: oneshot::Sender<Payload>,
    /// The server's progress token.
    token: Option<Json>,
    progress: ProgressBack,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// A client that hears what belongs to no call through `out`.
    pub(crate) fn new(id: Arc<str>, out: mpsc::Sender<Bytes>) -> Arc<Self> {
        Self::make(id, out, false)
    }

    /// The only client there will ever be.
    pub(crate) fn sole(id: Arc<str>, out: mpsc::Sender<Bytes>) -> Arc<Self> {
        Self::make(id, out, true)
    }

    fn make(id: Arc<str>, out: mpsc::Sender<Bytes>, sole: bool) -> Arc<Self> {
        Arc::new(Self {
            id,
            log_level: LogLevel::default(),
            sole,
            hello: OnceLock::new(),
            can_be_asked: AtomicBool::new(false),
            out,
            requests: Mutex::default(),
            asked: Mutex::default(),
            next_question: AtomicU64::new(1),
            watched: Mutex::default(),
            lanes: Mutex::default(),
            catalog: OnceLock::new(),
        })
    }

    /// Takes note of what it says of itself in `initialize`; the first time counts.
    pub(crate) fn greeted(&self, params: Option<&Json>, version: &str) {
        let empty = Json::of(&json!({}));
        let version = Json::of(version);
        let hello = params
            .unwrap_or(&empty)
            .with_members(&[("protocolVersion", Some(&version)), ("_meta", None)]);
        let declared = hello.member("capabilities");
        let any = |declared| Members::of(declared).is_some_and(|any| !any.0.is_empty());
        let can_be_asked = declared.as_ref().is_some_and(any);
        if self.hello.set(hello).is_ok() {
            self.can_be_asked.store(can_be_asked, Ordering::Release);
        }
    }

    /// The parameters of `initialize`, where it speaks the era with sessions.
    pub(crate) fn hello(&self) -> Option<&Json> {
        self.hello.get()
    }

    pub(crate) fn declares(&self, capability: &str) -> bool {
        let declared = self.hello().and_then(|hello| hello.member("capabilities"));
        declared.is_some_and(|declared| declared.member(capability).is_some())
    }

    /// Whether it can be asked questions, and so needs connections of its own.
    pub(crate) fn can_be_asked(&self) -> bool {
        self.can_be_asked.load(Ordering::Acquire)
    }

    /// Its own connection to a server, made by `make` where there is none yet; that is given the one whose
    /// place it takes. `beside` is the shared connection to that server.
    pub(crate) fn lane(
        &self,
        service: &Arc<str>,
        beside: &Arc<Link>,
        make: impl FnOnce(Option<&Link>) -> Option<Arc<Link>>,
    ) -> Option<Arc<Link>> {
        let mut lanes = lock(&self.lanes);
        if let Some(lane) = lanes.get(service)
            && std::ptr::eq(lane.beside.as_ptr(), Arc::as_ptr(beside))
        {
            return Some(lane.link.clone());
        }
        let link = make(lanes.get(service).map(|lane| &*lane.link))?;
        let lane = Lane {
            beside: Arc::downgrade(beside),
            link: link.clone(),
        };
        let before = lanes.insert(service.clone(), lane);
        drop(lanes);
        // Outside of the lock: the connection ends with it.
        drop(before);
        Some(link)
    }

    pub(crate) fn has_lane(&self, service: &str) -> bool {
        lock(&self.lanes).contains_key(service)
    }

    /// What is offered to this client: to one that can be asked questions, what its own connections
    /// show.
    pub(crate) fn catalog<'a>(&'a self, shared: &'a Arc<Catalog>) -> &'a Arc<Catalog> {
        if self.sole || !self.can_be_asked() {
            return shared;
        }
        let own = self.catalog.get_or_init(Arc::default);
        own.follow(shared);
        own
    }

    /// Registers a request for as long as the guard lives.
    pub(crate) fn begin(self: &Arc<Self>, id: &Json) -> Running {
        let cancelled = CancellationToken::new();
        lock(&self.requests).insert(id.bytes(), cancelled.clone());
        Running {
            client: self.clone(),
            id: id.bytes(),
            cancelled,
        }
    }

    /// Takes note of a message that is no request.
    pub(crate) fn heed(&self, envelope: Envelope) {
        match envelope {
            Envelope::Answer { id, answer } => {
                let asked = id
                    .and_then(|id| id.read::<u64>().ok())
                    .and_then(|id| lock(&self.asked).remove(&id));
                match asked {
                    Some(asked) => drop(asked.answer.send(answer)),
                    None => {
                        tracing::debug!(client = %self.id, "an answer nobody waits for is dropped")
                    }
                }
            }
            Envelope::Notification { method, params } => self.noted(&method, params),
            Envelope::Request { .. } => {}
        }
    }

    fn noted(&self, method: &str, params: Option<Json>) {
        match (method, params) {
            ("notifications/initialized", _) => {}
            ("notifications/cancelled", params) => {
                let request = params.and_then(|params| params.member("requestId"));
                let running = request.and_then(|id| lock(&self.requests).get(&id.bytes()).cloned());
                if let Some(running) = running {
                    running.cancel();
                }
            }
            ("notifications/progress", Some(params)) => {
                let question = params
                    .member("progressToken")
                    .and_then(|token| token.read::<u64>().ok());
                let asked = lock(&self.asked);
                if let Some(asked) = question.and_then(|question| asked.get(&question))
                    && let Some(token) = &asked.token
                {
                    (asked.progress)(params.with_members(&[("progressToken", Some(token))]));
                }
            }
            // The roots have changed, and whatever else a client may have to say.
            (method, params) => {
                let lanes = lock(&self.lanes);
                let links: Vec<_> = lanes.values().map(|lane| lane.link.clone()).collect();
                drop(lanes);
                for link in links {
                    link.notify(method, params.as_ref());
                }
            }
        }
    }

    /// Whether a log message is one it wants.
    pub(crate) fn wants_log(&self, params: Option<&Json>) -> bool {
        params.is_none_or(|params| self.log_level.admits(params))
    }

    /// Says something that needs no answer: with the call it belongs to where there is one. A client
    /// that does not read misses it.
    pub(crate) fn tell(&self, text: Bytes, call: Option<&mpsc::Sender<Bytes>>) {
        let said = match call {
            Some(call) if !call.is_closed() => call.try_send(text),
            _ => self.out.try_send(text),
        };
        if said.is_err() {
            tracing::debug!(client = %self.id, "it does not read, and misses a notification");
        }
    }

    /// Asks the client what a server wants to know. Dropping the future takes the question back.
    pub(crate) async fn ask(
        &self,
        method: &str,
        params: Option<Json>,
        call: Option<mpsc::Sender<Bytes>>,
        progress: ProgressBack,
    ) -> Payload {
        let needed = match method {
            "sampling/createMessage" => Some("sampling"),
            "elicitation/create" => Some("elicitation"),
            "roots/list" => Some("roots"),
            _ => None,
        };
        if needed.is_some_and(|needed| !self.declares(needed)) {
            let text = format!("the client does not support {method:?}");
            return Payload::Error(envelope::error_object(rpc::METHOD_NOT_FOUND, &text, None));
        }
        let id = self.next_question.fetch_add(1, Ordering::Relaxed);
        let meta = params.as_ref().and_then(|params| params.member("_meta"));
        let token = meta.as_ref().and_then(|meta| meta.member("progressToken"));
        let params = match (&params, &meta, &token) {
            // Servers choose their tokens freely; this client hears several of them.
            (Some(params), Some(meta), Some(_)) => {
                let meta = meta.with_members(&[("progressToken", Some(&Json::of(&id)))]);
                Some(params.with_members(&[("_meta", Some(&meta))]))
            }
            _ => params,
        };
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            answer,
            token,
            progress,
        };
        lock(&self.asked).insert(id, asked);
        let out = call
            .filter(|call| !call.is_closed())
            .unwrap_or_else(|| self.out.clone());
        let mut question = Question {
            client: self,
            id,
            out: &out,
            sent: false,
        };
        let gone = || {
            let text = "the client is gone";
            Payload::Error(envelope::error_object(rpc::INTERNAL_ERROR, text, None))
        };
        let text = envelope::request_message(id, method, params.as_ref());
        if out.send(text).await.is_err() {
            return gone();
        }
        question.sent = true;
        answered.await.unwrap_or_else(|_| gone())
    }

    /// Lets go of everything that is held for it: its connections end, its questions stay unanswered.
    pub(crate) fn close(&self) {
        lock(&self.asked).clear();
        let watched = std::mem::take(&mut *lock(&self.watched));
        let lanes = std::mem::take(&mut *lock(&self.lanes));
        // Outside of the locks: both tell servers.
        drop((watched, lanes));
    }

    /// Remembers a resource it watches.
    pub(crate) fn watch(&self, uri: String, watching: Watching) {
        let before = lock(&self.watched).insert(uri, watching);
        drop(before);
    }

    /// Where it watches a resource.
    pub(crate) fn watched_at(&self, uri: &str) -> Option<Arc<str>> {
        lock(&self.watched)
            .get(uri)
            .map(|watching| watching.service().clone())
    }

    /// Stops watching a resource; the server is told when nobody watches it any more.
    pub(crate) fn unwatch(&self, uri: &str) {
        let watching = lock(&self.watched).remove(uri);
        drop(watching);
    }

    /// Whether it is to be told about a resource.
    pub(crate) fn watches(&self, uri: &str) -> bool {
        lock(&self.watched).contains_key(uri)
    }
}

/// A question on its way: taken back where nobody waits for the answer any more.
struct Question<'a> {
    client: &'a Client,
    id: u64,
    out: &'a mpsc::Sender<Bytes>,
    sent: bool,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        let unanswered = lock(&self.client.asked).remove(&self.id).is_some();
        if unanswered && self.sent {
            let params =
                json!({ "requestId": self.id, "reason": "the server does not wait any more" });
            let text =
                envelope::notification_message("notifications/cancelled", Some(&Json::of(&params)));
            self.client.tell(text, Some(self.out));
        }
    }
}

/// A request somebody waits for.
pub(crate) struct Running {
    client: Arc<Client>,
    id: Bytes,
    /// Set when the client takes the request back.
    pub(crate) cancelled: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.client.requests).remove(&self.id);
    }
}
