//! A server behind streamable HTTP: each request is a POST, answered by JSON or by a stream of
//! events that ends with the answer.

mod clients;
mod credentials;
mod listen;
mod oauth;
mod response;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop::mcp::rpc;
use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, Url};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::{
    DISCOVER_TIMEOUT, Fault, HANDSHAKE_TIMEOUT, MODERN, Peer, Side, UpstreamError, Wiring,
    discovered, initialized, meta, name_of, refuses_what_it_speaks, watch::Watches,
};
use crate::envelope::{self, Envelope, Json, Payload};
use clients::CONNECT_TIMEOUT;
pub(crate) use clients::Clients;
pub(in crate::upstream) use credentials::Credentials;
use credentials::Refusal;
pub use credentials::Reread;
pub use oauth::OAuthSpec;
pub(crate) use response::{ERROR_BODY_BYTES, body, fault};

/// The JSON-RPC code of what the transport of the TypeScript SDK and its examples refuse themselves.
const TRANSPORT_REFUSAL: i64 = -32000;

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// An endpoint and the session with it.
#[derive(Debug)]
pub(super) struct Http {
    service: Arc<str>,
    url: Url,
    credentials: Arc<Credentials>,
    clients: Clients,
    next_id: AtomicU64,
    /// Held while a session is being made.
    greeting: tokio::sync::Mutex<()>,
    session: Mutex<Option<Arc<Session>>>,
    side: Side,
    watches: Arc<Watches>,
    /// Questions of the server that are being answered, by its ids.
    questions: Mutex<HashMap<Bytes, AbortHandle>>,
}

#[derive(Debug)]
struct Session {
    peer: Arc<Peer>,
    version: HeaderValue,
    id: Option<HeaderValue>,
    /// Set when it is no longer used.
    ended: CancellationToken,
}

impl Session {
    fn new(peer: Peer, version: HeaderValue, id: Option<HeaderValue>) -> Self {
        Self {
            peer: Arc::new(peer),
            version,
            id,
            ended: CancellationToken::new(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Http {
    pub(super) fn new(
        service: Arc<str>,
        url: Url,
        credentials: Arc<Credentials>,
        clients: Clients,
        side: Side,
        watches: Arc<Watches>,
    ) -> Self {
        Self {
            service,
            url,
            credentials,
            clients,
            next_id: AtomicU64::new(1),
            greeting: tokio::sync::Mutex::default(),
            session: Mutex::default(),
            side,
            watches,
            questions: Mutex::default(),
        }
    }

    pub(super) fn known_peer(&self) -> Option<Arc<Peer>> {
        Some(self.current()?.peer.clone())
    }

    pub(super) async fn peer(self: &Arc<Self>) -> Result<Arc<Peer>, UpstreamError> {
        Ok(self.session().await?.peer.clone())
    }

    pub(super) async fn request(
        self: &Arc<Self>,
        method: &str,
        params: Option<&Json>,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Result<Payload, UpstreamError> {
        let session = self.session().await?;
        let outcome = self
            .exchange(Some(&session), method, params, wiring, alive)
            .await;
        match outcome {
            Err(UpstreamError::Http {
                status, ref body, ..
            }) if session.id.is_some() && refuses_session(status, body) => {
                self.forget(&session);
                self.session().await?;
                Err(UpstreamError::SessionExpired {
                    service: self.service.clone(),
                })
            }
            // It speaks another version now: whoever is asked next agrees on one anew.
            Ok(answer) if answer.error_code() == Some(rpc::UNSUPPORTED_PROTOCOL_VERSION) => {
                self.forget(&session);
                Ok(answer)
            }
            outcome => outcome,
        }
    }

    /// Forgets who the server is, unless it has been greeted since.
    pub(super) fn forget_if(&self, peer: &Arc<Peer>) {
        let session = lock(&self.session).take_if(|current| Arc::ptr_eq(&current.peer, peer));
        if let Some(session) = session {
            session.ended.cancel();
        }
    }

    pub(super) async fn close(&self) {
        let session = lock(&self.session).take();
        if let Some(end) = session.and_then(|session| self.end_of(&session)) {
            let _ = end.send().await;
        }
    }

    /// What tells the server that a session is over.
    fn end_of(&self, session: &Session) -> Option<RequestBuilder> {
        session.ended.cancel();
        let request = self
            .clients
            .here()
            .delete(self.url.clone())
            .headers(self.headers())
            .header(VERSION, session.version.clone())
            .header(SESSION_ID, session.id.clone()?);
        Some(request.timeout(Duration::from_secs(2)))
    }

    /// Says something that needs no answer, if there is a session to say it in.
    pub(super) fn notify(self: &Arc<Self>, method: &str, params: Option<&Json>) {
        let (Some(session), Ok(runtime)) = (self.current(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (http, method) = (self.clone(), method.to_owned());
        let params = meta::translate(
            params,
            session.peer.modern,
            None,
            None,
            self.side.sampling(),
        );
        let text = envelope::notification_message(&method, params.as_ref());
        runtime.spawn(async move {
            let nothing = Json::of(&());
            let said = http.post(Some(&session), &method, text, &nothing, &[]);
            let _ = tokio::time::timeout(CONNECT_TIMEOUT, said).await;
        });
    }

    /// Forgets this session, not the one somebody else may have made meanwhile.
    fn forget(&self, session: &Arc<Session>) {
        lock(&self.session).take_if(|current| Arc::ptr_eq(current, session));
        session.ended.cancel();
    }

    fn current(&self) -> Option<Arc<Session>> {
        lock(&self.session).clone()
    }

    async fn session(self: &Arc<Self>) -> Result<Arc<Session>, UpstreamError> {
        if let Some(session) = self.current() {
            return Ok(session);
        }
        // On a task of its own: a caller that gives up must not undo what others wait for.
        let this = self.clone();
        let greeting = tokio::spawn(async move {
            let _one_at_a_time = this.greeting.lock().await;
            if let Some(session) = this.current() {
                return Ok(session);
            }
            let greeted = async {
                let session = Arc::new(this.greet().await?);
                this.resume(&session).await;
                Ok(session)
            };
            let session = match tokio::time::timeout(HANDSHAKE_TIMEOUT, greeted).await {
                Ok(session) => {
                    session.map_err(|error: UpstreamError| error.before_asking(&this.service))?
                }
                Err(_) => {
                    let text = format!("it did not say who it is within {HANDSHAKE_TIMEOUT:?}");
                    return Err(UpstreamError::fault(&this.service, Fault::NotSent, text));
                }
            };
            *lock(&this.session) = Some(session.clone());
            this.attend(&session);
            this.side.greeted(&this.service);
            Ok(session)
        });
        greeting.await.unwrap_or_else(|error| {
            Err(UpstreamError::caused(
                &self.service,
                Fault::NotSent,
                "greeting it failed",
                error,
            ))
        })
    }

    /// Asks who the server is: in the client's words where there are any, else in the new way first.
    async fn greet(self: &Arc<Self>) -> Result<Session, UpstreamError> {
        let hello = self.side.hello();
        if let Some(hello) = &hello {
            match self.initialize(hello).await {
                // A server of the newest era alone may say anything to a method it does not know.
                Err(
                    UpstreamError::Http {
                        status: 400 | 404 | 405 | 406,
                        ..
                    }
                    | UpstreamError::Transport {
                        fault: Fault::Garbage,
                        ..
                    },
                ) => {}
                greeted => return greeted,
            }
        }
        let wiring = Wiring::default();
        let ask = async {
            let first = self.exchange(None, "server/discover", None, &wiring, &|| {});
            match first.await {
                // It names the very version it refuses: asked again it may take it.
                Ok(answer) if refuses_what_it_speaks(&answer) => {
                    self.exchange(None, "server/discover", None, &wiring, &|| {})
                        .await
                }
                answer => answer,
            }
        };
        match tokio::time::timeout(DISCOVER_TIMEOUT, ask).await {
            Ok(Ok(answer)) => {
                if let Some(peer) = discovered(&answer) {
                    return Ok(Session::new(peer, HeaderValue::from_static(MODERN), None));
                }
            }
            // What speaks of the server's state, or of ours, would be said again.
            Ok(Err(
                error @ UpstreamError::Http {
                    status: 401 | 403 | 429 | 502..=504 | 529,
                    ..
                },
            )) => return Err(error),
            // A server of the old era may say anything to a method it does not know, or nothing.
            Ok(Err(
                UpstreamError::Http { .. }
                | UpstreamError::Transport {
                    fault: Fault::Garbage,
                    ..
                },
            ))
            | Err(_) => {}
            Ok(Err(error)) => return Err(error),
        }
        self.initialize(&hello.unwrap_or_else(|| self.side.own_hello()))
            .await
    }

    async fn initialize(self: &Arc<Self>, params: &Json) -> Result<Session, UpstreamError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let response = self.post(
            None,
            "initialize",
            envelope::request_message(id, "initialize", Some(params)),
            params,
            &[],
        );
        let response = response.await?;
        let session_id = response.headers().get(SESSION_ID).cloned();
        let answer = self
            .answer(response, id, None, &Wiring::default(), &|| {})
            .await?;
        let (peer, version) = initialized(&self.service, &answer)?;
        let version = HeaderValue::from_str(&version).map_err(|error| {
            UpstreamError::caused(
                &self.service,
                Fault::Garbage,
                "`initialize` chose an impossible version",
                error,
            )
        })?;
        let session = Session::new(peer, version, session_id);
        let initialized = envelope::notification_message("notifications/initialized", None);
        self.post(
            Some(&session),
            "notifications/initialized",
            initialized,
            params,
            &[],
        )
        .await?;
        Ok(session)
    }

    async fn exchange(
        self: &Arc<Self>,
        session: Option<&Arc<Session>>,
        method: &str,
        params: Option<&Json>,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Result<Payload, UpstreamError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let modern = session.is_none_or(|session| session.peer.modern);
        let token = wiring.token.is_some().then_some(id);
        let translated = meta::translate(
            params,
            modern,
            token,
            wiring.client.as_deref(),
            self.side.sampling(),
        );
        let text = envelope::request_message(id, method, translated.as_ref());
        let mut guard = InFlight {
            http: self,
            session: session.filter(|_| !modern),
            id,
        };
        let nothing = Json::of(&());
        let name_source = params.unwrap_or(&nothing);
        let known = self.credentials.headers();
        let headers = wiring.headers.as_deref().unwrap_or_default();
        let response = match session {
            Some(session) => self
                .request_of(Some(session), method, text, name_source, headers)
                .send()
                .await
                .map_err(|error| fault(&self.service, error)),
            None => self.post(None, method, text, name_source, headers).await,
        };
        let outcome = match response {
            // To send it again is the engine's business, which counts.
            Ok(response) if session.is_some() => match self.is_renewed(&response, &known).await {
                Ok(true) => Err(UpstreamError::CredentialsRenewed {
                    service: self.service.clone(),
                    status: response.status().as_u16(),
                }),
                Ok(false) => self.answer(response, id, session, wiring, alive).await,
                Err(error) => Err(error),
            },
            Ok(response) => self.answer(response, id, session, wiring, alive).await,
            Err(error) => Err(error),
        };
        guard.session = None;
        outcome
    }

    fn headers(&self) -> HeaderMap {
        HeaderMap::clone(&self.credentials.headers())
    }

    /// Whether a message was refused for credentials that are others by now: a server that knows nobody
    /// has done nothing.
    ///
    /// # Errors
    /// Where nobody but a person can mend it.
    async fn is_renewed(
        &self,
        response: &Response,
        known: &Arc<HeaderMap>,
    ) -> Result<bool, UpstreamError> {
        let status = response.status().as_u16();
        if !matches!(status, 401 | 403) {
            return Ok(false);
        }
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let mut challenges = challenges.filter_map(|challenge| challenge.to_str().ok());
        let bearer = challenges.find(|challenge| {
            let scheme = challenge.get(..6);
            scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"))
        });
        // Seldom, and far larger than all that is kept for other calls.
        let refused = self
            .credentials
            .refused(&self.service, known, status, bearer);
        match Box::pin(refused).await {
            Refusal::Renewed => Ok(true),
            Refusal::Final => Ok(false),
            Refusal::SignIn(address) => Err(UpstreamError::SignIn {
                service: self.service.clone(),
                status,
                address,
            }),
        }
    }

    /// Sends a message that is no call, and again with credentials that have been renewed.
    async fn post(
        &self,
        session: Option<&Session>,
        method: &str,
        text: Bytes,
        params: &Json,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Response, UpstreamError> {
        let fault = |error| fault(&self.service, error);
        let known = self.credentials.headers();
        let request = self.request_of(session, method, text.clone(), params, headers);
        let response = request.send().await.map_err(fault)?;
        if !self.is_renewed(&response, &known).await? {
            return Ok(response);
        }
        let request = self.request_of(session, method, text, params, headers);
        request.send().await.map_err(fault)
    }

    fn request_of(
        &self,
        session: Option<&Session>,
        method: &str,
        text: Bytes,
        params: &Json,
        headers: &[(HeaderName, HeaderValue)],
    ) -> RequestBuilder {
        let mut request = self
            .clients
            .here()
            .post(self.url.clone())
            .headers(self.headers())
            .header(ACCEPT, "application/json, text/event-stream")
            .header(CONTENT_TYPE, "application/json");
        let modern = session.map_or(method == "server/discover", |session| session.peer.modern);
        match session {
            Some(session) => {
                request = request.header(VERSION, session.version.clone());
                if let Some(id) = &session.id {
                    request = request.header(SESSION_ID, id.clone());
                }
            }
            None if modern => request = request.header(VERSION, MODERN),
            None => {}
        }
        if modern {
            request = request.header(METHOD, method);
            if let Some(name) = name_of(method, params) {
                request = request.header(NAME, name);
            }
            for (name, value) in headers {
                request = request.header(name.clone(), value.clone());
            }
        }
        request.body(text)
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        let session = lock(&self.session).take();
        let end = session.and_then(|session| self.end_of(&session));
        if let (Some(end), Ok(runtime)) = (end, tokio::runtime::Handle::try_current()) {
            runtime.spawn(end.send());
        }
    }
}

/// A request in flight in a session: cancelled at the server when nobody waits for it any more.
/// Without a session the closed connection says it.
struct InFlight<'a> {
    http: &'a Arc<Http>,
    session: Option<&'a Arc<Session>>,
    id: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let (Some(session), Ok(runtime)) = (self.session, tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (http, session, id) = (self.http.clone(), session.clone(), self.id);
        runtime.spawn(async move {
            let params = Json::of(
                &serde_json::json!({ "requestId": id, "reason": "nobody waits for it any more" }),
            );
            let text = envelope::notification_message("notifications/cancelled", Some(&params));
            let cancel = http.post(
                Some(&session),
                "notifications/cancelled",
                text,
                &params,
                &[],
            );
            let _ = tokio::time::timeout(CONNECT_TIMEOUT, cancel).await;
        });
    }
}

/// Whether an answer to a request with a session id says that the server does not know the session:
/// 404 (MCP 2025-11-25, transports, session management), or, from servers after the pattern of the
/// TypeScript SDK's examples, 400 with an error of the transport that belongs to no request.
fn refuses_session(status: u16, body: &Bytes) -> bool {
    match status {
        404 => true,
        400 => matches!(
            Envelope::parse(body.clone()),
            Ok(Envelope::Answer { id, answer: Payload::Error(error) })
                // An id that is a number is that of a request.
                if id.as_ref().is_none_or(|id| id.read::<u64>().is_err())
                    && error.member("code").and_then(|code| code.read().ok()) == Some(TRANSPORT_REFUSAL)
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_refused_with_404_or_as_the_typescript_sdk_does_it() {
        let refuses = |status, body: &'static str| refuses_session(status, &body.into());
        assert!(refuses(404, "who are you?"));
        let text = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"}}"#;
        assert!(refuses(400, text));
        let text = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Bad Request: Server not initialized"}}"#;
        assert!(refuses(400, text));

        let text = r#"{"jsonrpc":"2.0","id":"server-error","error":{"code":-32000,"message":"Bad Request"}}"#;
        assert!(refuses(400, text));

        let text = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}"#;
        assert!(!refuses(400, text));
        let text = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32000,"message":"of the tool"}}"#;
        assert!(!refuses(400, text));
        assert!(!refuses(400, "Bad Request"));
        assert!(!refuses(503, ""));
    }
}
