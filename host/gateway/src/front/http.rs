//! The front over streamable HTTP. A request is answered with plain JSON; where something is to be
//! said before the answer, and the client can take it, with a stream of events.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use backstop::mcp::rpc;
use futures_util::stream::{self, Stream, StreamExt};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Running, Session};
use crate::envelope::{self, Envelope, Json};
use crate::model::Models;
use crate::router::{Asker, Router};
use crate::upstream::{MAX_MESSAGE_BYTES, META_VERSION, name_of};

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
/// Sessions that are remembered; beyond it the one unused for longest is forgotten, and its client
/// starts anew.
const MAX_SESSIONS: usize = 10_000;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Notifications about one request that may wait for a slow reader.
const NOTIFICATION_QUEUE: usize = 64;

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
    /// Values of `Origin` that may call. Loopback origins always may; requests without an `Origin`
    /// are not from a browser.
    pub allowed_origins: Vec<String>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            path: "/mcp".into(),
            bearer_token: None,
            max_body_bytes: MAX_MESSAGE_BYTES,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
        }
    }
}

// The token is a secret.
impl std::fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpOptions")
            .field("path", &self.path)
            .field("bearer_token", &self.bearer_token.as_ref().map(|_| "..."))
            .field("max_body_bytes", &self.max_body_bytes)
            .field("allowed_hosts", &self.allowed_hosts)
            .field("allowed_origins", &self.allowed_origins)
            .finish()
    }
}

struct Front {
    router: Arc<Router>,
    options: HttpOptions,
    sessions: Mutex<HashMap<String, (Arc<Session>, Instant)>>,
    shutdown: CancellationToken,
}

/// Serves the endpoint until `shutdown` is set; requests under way are finished first.
pub(crate) async fn serve(
    router: Arc<Router>,
    models: Option<Arc<Models>>,
    listener: TcpListener,
    options: HttpOptions,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let path = options.path.clone();
    let front = Arc::new(Front {
        router,
        options,
        sessions: Mutex::default(),
        shutdown: shutdown.clone(),
    });
    let mut app = axum::Router::new()
        .route(&path, axum::routing::any(handle))
        .with_state(front.clone());
    if let Some(models) = models {
        let limit = front.body_limit();
        let guard = Arc::new(move |headers: &HeaderMap| front.refusal(headers));
        app = app.merge(crate::model::front::routes(models, guard, limit));
    }
    // Small answers must not wait for an acknowledgement (40 ms on some clients).
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
    });
    axum::serve(listener, app)
        .with_graceful_shutdown(async move { shutdown.cancelled().await })
        .await
}

async fn handle(State(front): State<Arc<Front>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    match front.refusal(&parts.headers) {
        None => {}
        Some(refusal @ (StatusCode::UNAUTHORIZED, _)) => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            return (challenge, refusal).into_response();
        }
        Some(refusal) => return refusal.into_response(),
    }
    let limit = front.body_limit();
    match parts.method {
        Method::POST => match to_bytes(body, limit).await {
            Ok(body) => post(front, parts.headers, body).await,
            Err(_) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("more than {limit} bytes"),
            )
                .into_response(),
        },
        Method::GET => listen(&front, &parts.headers),
        Method::DELETE => match front
            .session_id(&parts.headers)
            .and_then(|id| front.sessions().remove(&id))
        {
            Some(_) => StatusCode::NO_CONTENT.into_response(),
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

type Sessions<'a> = std::sync::MutexGuard<'a, HashMap<String, (Arc<Session>, Instant)>>;

impl Front {
    fn sessions(&self) -> Sessions<'_> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session_id(&self, headers: &HeaderMap) -> Option<String> {
        headers.get(SESSION_ID)?.to_str().ok().map(str::to_owned)
    }

    fn open_session(&self) -> (String, Arc<Session>) {
        let (id, session) = (
            uuid::Uuid::new_v4().simple().to_string(),
            Arc::new(Session::default()),
        );
        let mut sessions = self.sessions();
        if sessions.len() >= MAX_SESSIONS {
            let oldest = sessions
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(id, _)| id.clone());
            oldest.and_then(|oldest| sessions.remove(&oldest));
        }
        sessions.insert(id.clone(), (session.clone(), Instant::now()));
        (id, session)
    }

    fn session(&self, id: &str) -> Option<Arc<Session>> {
        let mut sessions = self.sessions();
        let (session, used) = sessions.get_mut(id)?;
        *used = Instant::now();
        Some(session.clone())
    }

    fn body_limit(&self) -> usize {
        self.options.max_body_bytes.min(MAX_MESSAGE_BYTES)
    }

    /// Why a request is not let in; `None` where it is.
    fn refusal(&self, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
        match self.admit(headers) {
            Err(reason) => Some((StatusCode::FORBIDDEN, reason)),
            Ok(()) => (!self.knows(headers))
                .then_some((StatusCode::UNAUTHORIZED, "a bearer token is needed")),
        }
    }

    /// Whether the request carries the token, where one is asked for. Compared by digest, so that the
    /// time it takes says nothing of the token.
    fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.options.bearer_token else {
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
    fn caller(&self, session: Option<&str>) -> Option<Arc<str>> {
        match session {
            Some(id) => Some(format!("session {id}").into()),
            None => self.options.bearer_token.is_some().then(|| "token".into()),
        }
    }

    /// Refuses requests a web page elsewhere could have made a browser send.
    fn admit(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        if let Some(host) = text(header::HOST) {
            let name = host_name(host);
            if !is_loopback(name)
                && !self
                    .options
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
                && !self
                    .options
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
                session.heed(&other);
            }
            return StatusCode::ACCEPTED.into_response();
        }
    };
    if let Err(reason) = headers_match(&headers, &method, params.as_ref()) {
        let text = envelope::error_message(Some(&id), rpc::HEADER_MISMATCH, &reason, None);
        return (StatusCode::BAD_REQUEST, json(text)).into_response();
    }
    let (new_id, session) = match known {
        Some(session) => (None, session),
        None if &*method == "initialize" => {
            let (id, session) = front.open_session();
            (Some(id), session)
        }
        // Requests of the era without sessions, and of clients that make none.
        None => (None, Arc::default()),
    };
    session.watch(&method, params.as_ref());
    let accepts_events = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let accepts_events = accepts_events
        .into_iter()
        .any(|value| value.contains("text/event-stream"));
    let (out, notifications) = mpsc::channel(NOTIFICATION_QUEUE);
    let asker = Asker {
        caller: front.caller(session_id.as_deref()),
        out: accepts_events.then_some(out),
        headers: headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("mcp-param-"))
            .map(clone_pair)
            .collect(),
    };
    let running = session.begin(&id);
    let router = front.router.clone();
    let answer: Answer = Box::pin(async move {
        let text = router.answer(&id, &method, params, &asker).await;
        // Ends the stream of notifications.
        drop(asker);
        text
    });
    let mut response = respond(answer, notifications, running).await;
    if let Some(value) = new_id.and_then(|id| HeaderValue::from_str(&id).ok()) {
        response.headers_mut().insert(SESSION_ID, value);
    }
    response
}

fn clone_pair((name, value): (&HeaderName, &HeaderValue)) -> (HeaderName, HeaderValue) {
    (name.clone(), value.clone())
}

type Answer = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// Dropping what comes out of this, as the server does when the client goes away, drops the call.
async fn respond(
    mut answer: Answer,
    mut notifications: mpsc::Receiver<Bytes>,
    running: Running,
) -> Response {
    let cancelled = running.cancelled.clone();
    tokio::select! {
        biased;
        Some(first) = notifications.recv() => {
            let events = stream::unfold(Some((answer, notifications, running)), |state| async move {
                let (mut answer, mut notifications, running) = state?;
                let cancelled = running.cancelled.clone();
                tokio::select! {
                    biased;
                    Some(next) = notifications.recv() => Some((next, Some((answer, notifications, running)))),
                    text = &mut answer => Some((text, None)),
                    () = cancelled.cancelled() => None,
                }
            });
            event_stream(stream::iter([first]).chain(events).map(event))
        }
        text = &mut answer => json(text),
        // The client waits for nothing any more; the transport still wants a response.
        () = cancelled.cancelled() => StatusCode::ACCEPTED.into_response(),
    }
}

/// `GET`: what servers say without being asked, for a client with a session.
fn listen(front: &Arc<Front>, headers: &HeaderMap) -> Response {
    let Some(id) = front.session_id(headers) else {
        return not_allowed();
    };
    let Some(session) = front.session(&id) else {
        return (StatusCode::NOT_FOUND, "no such session").into_response();
    };
    let news = front.router.news.subscribe();
    let events = stream::unfold((news, session), |(mut news, session)| async move {
        loop {
            let text = match tokio::time::timeout(KEEP_ALIVE, news.recv()).await {
                Err(_) => Bytes::from_static(b": keep-alive\n\n"),
                Ok(Ok(news)) if session.wants(&news) => event(news.text),
                Ok(Ok(_) | Err(broadcast::error::RecvError::Lagged(_))) => continue,
                Ok(Err(broadcast::error::RecvError::Closed)) => return None,
            };
            return Some((text, (news, session)));
        }
    });
    event_stream(events.take_until(front.shutdown.clone().cancelled_owned()))
}

/// What the era without sessions requires of header fields: that they say what the message says.
fn headers_match(headers: &HeaderMap, method: &str, params: Option<&Json>) -> Result<(), String> {
    let meta = params.and_then(|params| params.member("_meta"));
    let Some(version) = meta.and_then(|meta| meta.text_member(META_VERSION)) else {
        return Ok(());
    };
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
