//! The front over streamable HTTP. A request is answered with plain JSON; where something is to be
//! said before the answer, and the client can take it, with a stream of events.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use backstop::mcp::rpc;
use futures_util::stream::{self, Stream, StreamExt};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::app::App;
use super::tls::Tls;
use crate::catalog::sent_fields;
use crate::client::{Client, Running};
use crate::envelope::{self, Envelope, Json};
use crate::exchange::chain;
use crate::model::Models;
use crate::router::{Asker, Router, Said};
use crate::upstream::{MAX_MESSAGE_BYTES, META_CAPABILITIES, META_VERSION, MODERN, name_of};

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
/// Sessions that are remembered; beyond it the one unused for longest is forgotten, and its client
/// starts anew.
const MAX_SESSIONS: usize = 10_000;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_EVENT: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// Messages about one request, or about none, that may wait for a slow reader.
const NOTIFICATION_QUEUE: usize = 256;

/// What clients may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; a further client is sent away with 503. Default: 10 000.
    pub max_connections: usize,
    /// The largest head of a request, in bytes, at least 8 KiB. Default: 64 KiB.
    pub max_header_bytes: usize,
    /// How long a connection may be open without a request, and how long a client may take to send one.
    /// Default: 75 s. A client of HTTP/2 is asked for a sign of life instead.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_header_bytes: 64 * 1024,
            idle: Duration::from_secs(75),
        }
    }
}

/// How the HTTP front is served, and to whom.
#[derive(Clone)]
pub struct HttpOptions {
    /// The path of the endpoint. Default: `/mcp`.
    pub path: String,
    /// What clients must send as `Authorization: Bearer TOKEN`. Default: nothing is asked for.
    pub bearer_token: Option<String>,
    /// The largest request body, in bytes. Default: 32 MiB.
    pub max_body_bytes: usize,
    /// Host names (without port) a request may be addressed to. Loopback names always may; others
    /// are refused, or any web site could reach the gateway through a name of its own (DNS
    /// rebinding).
    pub allowed_hosts: Vec<String>,
    /// How long a session may be left unused before it is forgotten, with the connections that are its
    /// own. Default: 1 hour. One whose client listens is in use.
    pub session_idle: Duration,
    /// Values of `Origin` that may call. Loopback origins always may; requests without an `Origin`
    /// are not from a browser.
    pub allowed_origins: Vec<String>,
    /// What clients may take.
    pub limits: Limits,
    /// The certificate to show; without one no TLS is spoken. Default: none.
    pub tls: Option<Tls>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            path: "/mcp".into(),
            bearer_token: None,
            max_body_bytes: MAX_MESSAGE_BYTES,
            session_idle: Duration::from_secs(60 * 60),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            limits: Limits::default(),
            tls: None,
        }
    }
}

impl HttpOptions {
    /// What a configuration says; `env` is what the token's variable is looked up in.
    ///
    /// # Errors
    /// If the variable is not set: the front is never open because one was forgotten.
    pub fn from_config(
        gateway: &backstop::config::Gateway,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let bearer_token = match &gateway.bearer_token_env {
            None => None,
            Some(name) => match env(name) {
                Some(token) if !token.is_empty() => Some(token),
                _ => {
                    return Err(format!(
                        "`[gateway] bearer_token_env` names {name}, which is not set: set it to the token clients must send"
                    ));
                }
            },
        };
        Ok(Self {
            path: gateway.path.clone(),
            allowed_hosts: gateway.allowed_hosts.clone(),
            allowed_origins: gateway.allowed_origins.clone(),
            bearer_token,
            max_body_bytes: usize::try_from(gateway.max_body).unwrap_or(usize::MAX),
            limits: Limits {
                max_connections: usize::try_from(gateway.max_connections).unwrap_or(usize::MAX),
                max_header_bytes: usize::try_from(gateway.max_header).unwrap_or(usize::MAX),
                idle: gateway.idle,
            },
            tls: Tls::of(gateway).map_err(|error| chain(&error))?,
            ..Self::default()
        })
    }
}

// The token is a secret.
impl std::fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpOptions")
            .field("path", &self.path)
            .field("bearer_token", &self.bearer_token.as_ref().map(|_| "..."))
            .field("max_body_bytes", &self.max_body_bytes)
            .field("session_idle", &self.session_idle)
            .field("allowed_hosts", &self.allowed_hosts)
            .field("allowed_origins", &self.allowed_origins)
            .field("limits", &self.limits)
            .field("tls", &self.tls)
            .finish()
    }
}

pub(super) struct Front {
    router: Arc<Router>,
    options: Arc<ArcSwap<HttpOptions>>,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
}

/// A client that has introduced itself.
struct Session {
    client: Arc<Client>,
    /// What belongs to no call, for the stream the client opens with `GET`.
    heard: tokio::sync::Mutex<mpsc::Receiver<Bytes>>,
    /// The stream that is open; a newer one takes its place.
    stream: Mutex<CancellationToken>,
    used: Mutex<Instant>,
}

impl Session {
    fn new(client: Arc<Client>, heard: mpsc::Receiver<Bytes>) -> Self {
        Self {
            client,
            heard: heard.into(),
            stream: Mutex::default(),
            used: Instant::now().into(),
        }
    }
}

// Whoever forgets it, its connections end with it.
impl Drop for Session {
    fn drop(&mut self) {
        self.client.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the endpoint until the gateway shuts down; requests under way are finished first.
pub(crate) async fn serve(
    router: Arc<Router>,
    models: Option<Arc<Models>>,
    listener: TcpListener,
    options: Arc<ArcSwap<HttpOptions>>,
) -> std::io::Result<()> {
    let started_with = options.load_full();
    let (path, shutdown) = (started_with.path.clone(), router.closing.clone());
    let limits = started_with.limits;
    let tls = started_with.tls.clone().map(|tls| tls.0);
    let workers = router.workers.clone();
    let front = Arc::new(Front {
        router,
        options,
        sessions: Mutex::default(),
    });
    let expiry = tokio::spawn(expire(Arc::downgrade(&front)));
    let _expiry = AbortOnDropHandle::new(expiry);
    let mut others = axum::Router::new();
    if let Some(models) = models {
        let (current, at_the_door) = (front.clone(), front.clone());
        let limit = Arc::new(move || current.body_limit());
        let guard = Arc::new(move |parts: &Parts| at_the_door.refusal(parts));
        others = crate::model::front::routes(models, guard, limit);
    }
    let app = App::new(front, &path, others);
    let workers = workers.get();
    super::serve::serve(listener, tls, limits, app, shutdown, workers).await
}

/// Forgets sessions whose clients have gone without a word.
async fn expire(front: Weak<Front>) {
    loop {
        let Some(idle) = front
            .upgrade()
            .map(|front| front.options.load().session_idle)
        else {
            return;
        };
        tokio::time::sleep(idle / 4).await;
        let Some(front) = front.upgrade() else { return };
        let left: Vec<_> = lock(&front.sessions)
            .extract_if(|_, session| lock(&session.used).elapsed() >= idle)
            .collect();
        // Outside of the lock: their connections end with them.
        drop(left);
    }
}

pub(super) async fn handle(front: Arc<Front>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    match front.refusal(&parts) {
        None => {}
        Some(refusal @ (StatusCode::UNAUTHORIZED, _)) => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            return (challenge, refusal).into_response();
        }
        Some(refusal) => return refusal.into_response(),
    }
    let limit = front.body_limit();
    match parts.method {
        Method::POST => {
            let body =
                tokio::time::timeout(front.options.load().limits.idle, to_bytes(body, limit));
            match body.await {
                Ok(Ok(body)) => post(front, parts.headers, body).await,
                Ok(Err(_)) => (
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("more than {limit} bytes"),
                )
                    .into_response(),
                Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
            }
        }
        Method::GET => listen(&front, &parts.headers),
        Method::DELETE => match front
            .session_id(&parts.headers)
            .and_then(|id| lock(&front.sessions).remove(&id))
        {
            Some(session) => {
                // Its stream holds it, and must not outlive it.
                lock(&session.stream).cancel();
                StatusCode::NO_CONTENT.into_response()
            }
            None => StatusCode::NOT_FOUND.into_response(),
        },
        _ => not_allowed(),
    }
}

fn not_allowed() -> Response {
    (
        StatusCode::METHOD_NOT_ALLOWED,
        [(header::ALLOW, "POST, GET, DELETE")],
    )
        .into_response()
}

impl Front {
    fn session_id(&self, headers: &HeaderMap) -> Option<String> {
        headers.get(SESSION_ID)?.to_str().ok().map(str::to_owned)
    }

    fn open_session(&self) -> (String, Arc<Session>) {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let (out, heard) = mpsc::channel(NOTIFICATION_QUEUE);
        let client = Client::new(format!("session {id}").into(), out);
        let session = Arc::new(Session::new(client, heard));
        let mut sessions = lock(&self.sessions);
        let forgotten = (sessions.len() >= MAX_SESSIONS)
            .then(|| {
                let oldest = sessions
                    .iter()
                    .min_by_key(|(_, session)| *lock(&session.used))
                    .map(|(id, _)| id.clone());
                oldest.and_then(|oldest| sessions.remove(&oldest))
            })
            .flatten();
        sessions.insert(id.clone(), session.clone());
        drop(sessions);
        // Outside of the lock: its connections end with it.
        drop(forgotten);
        (id, session)
    }

    fn session(&self, id: &str) -> Option<Arc<Session>> {
        let session = lock(&self.sessions).get(id)?.clone();
        *lock(&session.used) = Instant::now();
        Some(session)
    }

    fn body_limit(&self) -> usize {
        self.options.load().max_body_bytes.min(MAX_MESSAGE_BYTES)
    }

    /// Why a request is not let in; `None` where it is.
    fn refusal(&self, parts: &Parts) -> Option<(StatusCode, &'static str)> {
        // HTTP/2 names the host in the address of the request.
        let host = parts.uri.authority().map(|authority| authority.as_str());
        match self.admit(&parts.headers, host) {
            Err(reason) => Some((StatusCode::FORBIDDEN, reason)),
            Ok(()) => (!self.knows(&parts.headers))
                .then_some((StatusCode::UNAUTHORIZED, "a bearer token is needed")),
        }
    }

    /// Whether the request carries the token, where one is asked for. Compared by digest, so that the
    /// time it takes says nothing of the token.
    fn knows(&self, headers: &HeaderMap) -> bool {
        let options = self.options.load();
        let Some(token) = &options.bearer_token else {
            return true;
        };
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.split_once(' '));
        let given = given
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        given.is_some_and(|given| Sha256::digest(given) == Sha256::digest(token))
    }

    /// Who calls, where that is known: a session, or everyone who holds the token. Others are
    /// strangers to each other, and no private answer is kept for them.
    fn caller(&self, session: Option<&Arc<Session>>) -> Option<Arc<str>> {
        match session {
            Some(session) => Some(session.client.id.clone()),
            None => {
                let is_known = self.options.load().bearer_token.is_some();
                is_known.then(|| "token".into())
            }
        }
    }

    /// Refuses requests a web page elsewhere could have made a browser send.
    fn admit(&self, headers: &HeaderMap, authority: Option<&str>) -> Result<(), &'static str> {
        let options = self.options.load();
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let named = [text(header::HOST), authority];
        if named.iter().all(Option::is_none) {
            return Err("the request names no host");
        }
        for host in named.into_iter().flatten() {
            let name = host_name(host);
            if !is_loopback(name)
                && !options
                    .allowed_hosts
                    .iter()
                    .any(|host| host.eq_ignore_ascii_case(name))
            {
                return Err("this host name is not allowed");
            }
        }
        if let Some(origin) = text(header::ORIGIN) {
            let name = origin
                .split_once("://")
                .map_or("", |(_, rest)| host_name(rest));
            if !is_loopback(name)
                && !options
                    .allowed_origins
                    .iter()
                    .any(|allowed| allowed == origin)
            {
                return Err("this origin is not allowed");
            }
        }
        Ok(())
    }
}

/// A host without its port.
pub(crate) fn host_name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

pub(crate) fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

async fn post(front: Arc<Front>, headers: HeaderMap, body: Bytes) -> Response {
    let envelope = match Envelope::parse(body) {
        Ok(envelope) => envelope,
        Err(error) => return (StatusCode::BAD_REQUEST, json(error.answer())).into_response(),
    };
    let session_id = front.session_id(&headers);
    let known = match session_id.clone() {
        Some(id) => match front.session(&id) {
            Some(session) => Some(session),
            // The client is to start a new session (MCP 2025-11-25, session management).
            None => return (StatusCode::NOT_FOUND, "no such session").into_response(),
        },
        None => None,
    };
    let (id, method, params) = match envelope {
        Envelope::Request { id, method, params } => (id, method, params),
        other => {
            if let Some(session) = known {
                session.client.heed(other);
            }
            return StatusCode::ACCEPTED.into_response();
        }
    };
    if let Err((code, reason)) = is_whole(&headers, &method, params.as_ref()) {
        let text = envelope::error_message(Some(&id), code, &reason, None);
        return (StatusCode::BAD_REQUEST, json(text)).into_response();
    }
    let (new_id, session) = match known {
        Some(session) => (None, Some(session)),
        None if &*method == "initialize" => {
            let (id, session) = front.open_session();
            (Some(id), Some(session))
        }
        // Requests of the era without sessions, and of clients that make none.
        None => (None, None),
    };
    if let Some(session) = &session {
        front.router.meet(&method, params.as_ref(), &session.client);
    }
    let accepts_events = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let accepts_events = accepts_events
        .into_iter()
        .any(|value| value.contains("text/event-stream"));
    let (out, notifications) = mpsc::channel(NOTIFICATION_QUEUE);
    let asker = Asker {
        caller: front.caller(session.as_ref()),
        out: accepts_events.then_some(out),
        headers: sent_fields(&headers),
        client: session.as_ref().map(|session| session.client.clone()),
    };
    let running = session.as_ref().map(|session| session.client.begin(&id));
    let router = front.router.clone();
    // On a task of its own: a client that reads slowly holds back neither the call nor its timers.
    let answer = AbortOnDropHandle::new(tokio::spawn(async move {
        let said = router.answer(&id, &method, params, &asker).await;
        // Ends the stream of notifications.
        drop(asker);
        said
    }));
    let mut response = respond(answer, notifications, running).await;
    if let Some(value) = new_id.and_then(|id| HeaderValue::from_str(&id).ok()) {
        response.headers_mut().insert(SESSION_ID, value);
    }
    response
}

/// A request's answer, on its way. Dropping it takes the request back.
struct Answering {
    answer: AbortOnDropHandle<Said>,
    notifications: mpsc::Receiver<Bytes>,
    cancelled: CancellationToken,
    _running: Option<Running>,
}

enum Next {
    Notification(Bytes),
    Answer(Said),
    /// The client waits for nothing any more.
    Cancelled,
    Silence,
}

impl Answering {
    async fn next(&mut self) -> Next {
        tokio::select! {
            biased;
            Some(next) = self.notifications.recv() => Next::Notification(next),
            answer = &mut self.answer => match answer {
                Ok(said) => Next::Answer(said),
                // It ends early only with the program.
                Err(_) => Next::Cancelled,
            },
            () = self.cancelled.cancelled() => Next::Cancelled,
            () = tokio::time::sleep(KEEP_ALIVE) => Next::Silence,
        }
    }
}

/// Dropping what comes out of this, as the server does when the client goes away, drops the call.
async fn respond(
    answer: AbortOnDropHandle<Said>,
    notifications: mpsc::Receiver<Bytes>,
    running: Option<Running>,
) -> Response {
    let mut answering = Answering {
        answer,
        notifications,
        cancelled: running
            .as_ref()
            .map(|running| running.cancelled.clone())
            .unwrap_or_default(),
        _running: running,
    };
    let first = loop {
        match answering.next().await {
            Next::Notification(first) => break event(first),
            Next::Answer(said) => return (status_of(said.code), json(said.text)).into_response(),
            // The transport still wants a response.
            Next::Cancelled => return StatusCode::ACCEPTED.into_response(),
            Next::Silence => {}
        }
    };
    let events = stream::unfold(Some(answering), |answering| async move {
        let mut answering = answering?;
        match answering.next().await {
            Next::Notification(next) => Some((event(next), Some(answering))),
            Next::Answer(said) => Some((event(said.text), None)),
            Next::Cancelled => None,
            Next::Silence => Some((KEEP_ALIVE_EVENT, Some(answering))),
        }
    });
    event_stream(stream::iter([first]).chain(events))
}

/// `GET`: what servers say without being asked, for a client with a session.
fn listen(front: &Arc<Front>, headers: &HeaderMap) -> Response {
    let Some(id) = front.session_id(headers) else {
        return not_allowed();
    };
    let Some(session) = front.session(&id) else {
        return (StatusCode::NOT_FOUND, "no such session").into_response();
    };
    let replaced = CancellationToken::new();
    std::mem::replace(&mut *lock(&session.stream), replaced.clone()).cancel();
    let news = front.router.news.subscribe();
    // The session may end while the stream is open: nothing here keeps it.
    let session = Arc::downgrade(&session);
    let events = stream::unfold((news, session), |(mut news, weak)| async move {
        let session = weak.upgrade()?;
        let mut heard = session.heard.lock().await;
        let text = loop {
            tokio::select! {
                heard = heard.recv() => break event(heard?),
                news = news.recv() => match news {
                    Ok(news) if news.concerns(&session.client) => break event(news.text),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                () = tokio::time::sleep(KEEP_ALIVE) => break KEEP_ALIVE_EVENT,
            }
        };
        // A client that reads is there.
        *lock(&session.used) = Instant::now();
        drop(heard);
        Some((text, (news, weak)))
    });
    let closing = front.router.closing.clone().cancelled_owned();
    let ended = async move {
        tokio::select! {
            () = closing => {}
            () = replaced.cancelled() => {}
        }
    };
    event_stream(events.take_until(Box::pin(ended)))
}

/// What the era without sessions requires: that the message says whose it is, and that header fields
/// say what the message says.
fn is_whole(headers: &HeaderMap, method: &str, params: Option<&Json>) -> Result<(), (i64, String)> {
    let meta = params.and_then(|params| params.member("_meta"));
    let version = meta
        .as_ref()
        .and_then(|meta| meta.text_member(META_VERSION));
    let Some(version) = version else {
        let modern = headers
            .get("mcp-protocol-version")
            .is_some_and(|value| value.as_bytes() == MODERN.as_bytes());
        return match modern {
            true => Err((
                rpc::INVALID_PARAMS,
                format!("`_meta` lacks {META_VERSION:?}"),
            )),
            false => Ok(()),
        };
    };
    headers_match(headers, method, params, &version)
        .map_err(|reason| (rpc::HEADER_MISMATCH, reason))?;
    match meta.and_then(|meta| meta.member(META_CAPABILITIES)) {
        Some(_) => Ok(()),
        None => Err((
            rpc::INVALID_PARAMS,
            format!("`_meta` lacks {META_CAPABILITIES:?}"),
        )),
    }
}

fn headers_match(
    headers: &HeaderMap,
    method: &str,
    params: Option<&Json>,
    version: &str,
) -> Result<(), String> {
    let differs = |name: &str, expected: &[u8]| {
        headers
            .get(name)
            .is_none_or(|value| value.as_bytes() != expected)
    };
    if differs("mcp-protocol-version", version.as_bytes()) {
        return Err(format!(
            "`MCP-Protocol-Version` is not {version:?}, as the message says"
        ));
    }
    if differs("mcp-method", method.as_bytes()) {
        return Err(format!(
            "`Mcp-Method` is not {method:?}, as the message says"
        ));
    }
    match params.and_then(|params| name_of(method, params)) {
        Some(name) if differs("mcp-name", name.as_bytes()) => {
            Err("`Mcp-Name` is not what the message says".into())
        }
        _ => Ok(()),
    }
}

/// The status the newest revision wants with an error (2026-07-28, transports).
fn status_of(code: Option<i64>) -> StatusCode {
    match code {
        Some(rpc::METHOD_NOT_FOUND) => StatusCode::NOT_FOUND,
        Some(
            rpc::HEADER_MISMATCH
            | rpc::MISSING_CLIENT_CAPABILITY
            | rpc::UNSUPPORTED_PROTOCOL_VERSION,
        ) => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    }
}

fn json(text: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// One event. A line feed would end its data; inside JSON text it can only be white space.
fn event(text: Bytes) -> Bytes {
    let mut event = Vec::with_capacity(text.len() + 24);
    event.extend_from_slice(b"event: message\ndata: ");
    event.extend(text.iter().map(|byte| {
        if matches!(byte, b'\n' | b'\r') {
            b' '
        } else {
            *byte
        }
    }));
    event.extend_from_slice(b"\n\n");
    event.into()
}

fn event_stream(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let head = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (head, Body::from_stream(events.map(Ok::<_, Infallible>))).into_response()
}
