//! A server behind streamable HTTP: each request is a POST, answered by JSON or by a stream of
//! events that ends with the answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, Url, dns, redirect};
use std::sync::atomic::{AtomicU64, Ordering};

use super::sse::Events;
use super::{
    Fault, HANDSHAKE_TIMEOUT, MAX_MESSAGE_BYTES, MODERN, Peer, UpstreamError, Wiring, discovered,
    initialize_params, initialized, meta,
};
use crate::envelope::{self, Envelope, Json, Payload};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of an error's body is kept.
const ERROR_BODY_BYTES: usize = 64 * 1024;
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
    headers: HeaderMap,
    client: Client,
    next_id: AtomicU64,
    /// Held while a session is being made.
    greeting: tokio::sync::Mutex<()>,
    session: Mutex<Option<Arc<Session>>>,
}

#[derive(Debug)]
struct Session {
    peer: Arc<Peer>,
    version: HeaderValue,
    id: Option<HeaderValue>,
}

/// The host's name could not be resolved: a type of our own, because the HTTP client does not say.
#[derive(Debug, thiserror::Error)]
#[error("the name cannot be resolved")]
struct NoSuchHost(#[source] std::io::Error);

struct Resolver;

impl dns::Resolve for Resolver {
    fn resolve(&self, name: dns::Name) -> dns::Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0))
                .await
                .map_err(NoSuchHost)?;
            Ok(Box::new(found.collect::<Vec<SocketAddr>>().into_iter()) as dns::Addrs)
        })
    }
}

impl Http {
    pub(super) fn new(
        service: Arc<str>,
        url: Url,
        headers: HeaderMap,
    ) -> Result<Self, reqwest::Error> {
        // There is one retry loop, and credentials never follow a redirect to another host.
        let same_origin = redirect::Policy::custom(|attempt| {
            let from = attempt.previous().last().map(Url::origin);
            if attempt.previous().len() < 5 && from == Some(attempt.url().origin()) {
                attempt.follow()
            } else {
                attempt.stop()
            }
        });
        let mut client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(same_origin)
            .retry(reqwest::retry::never())
            .tcp_nodelay(true)
            .dns_resolver(Arc::new(Resolver));
        if url
            .host_str()
            .is_some_and(|host| matches!(host, "localhost" | "127.0.0.1" | "[::1]"))
        {
            client = client.no_proxy();
        }
        Ok(Self {
            service,
            url,
            headers,
            client: client.build()?,
            next_id: AtomicU64::new(1),
            greeting: tokio::sync::Mutex::default(),
            session: Mutex::default(),
        })
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
            outcome => outcome,
        }
    }

    pub(super) async fn close(&self) {
        let session = self
            .session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(id) = session.and_then(|session| session.id.clone()) {
            let request = self
                .client
                .delete(self.url.clone())
                .headers(self.headers.clone())
                .header(SESSION_ID, id);
            let _ = request.timeout(Duration::from_secs(2)).send().await;
        }
    }

    /// Forgets this session, not the one somebody else may have made meanwhile.
    fn forget(&self, session: &Arc<Session>) {
        let mut current = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        current.take_if(|current| Arc::ptr_eq(current, session));
    }

    fn current(&self) -> Option<Arc<Session>> {
        self.session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
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
            let session = match tokio::time::timeout(HANDSHAKE_TIMEOUT, this.greet()).await {
                Ok(session) => Arc::new(session?),
                Err(_) => {
                    let text = format!("it did not say who it is within {HANDSHAKE_TIMEOUT:?}");
                    return Err(UpstreamError::fault(&this.service, Fault::NotSent, text));
                }
            };
            *this.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
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

    /// Asks who the server is, in the new way first.
    async fn greet(self: &Arc<Self>) -> Result<Session, UpstreamError> {
        match self
            .exchange(None, "server/discover", None, &Wiring::default(), &|| {})
            .await
        {
            Ok(answer) => {
                if let Some(peer) = discovered(&answer) {
                    return Ok(Session {
                        peer: Arc::new(peer),
                        version: HeaderValue::from_static(MODERN),
                        id: None,
                    });
                }
            }
            // A server of the old era may refuse it by any status of the client's fault; whatever
            // else goes wrong would go wrong again.
            Err(
                UpstreamError::Http {
                    status: 400..=499, ..
                }
                | UpstreamError::Transport {
                    fault: Fault::Garbage,
                    ..
                },
            ) => {}
            Err(error) => return Err(Self::unsent(error)),
        }
        let params = initialize_params();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let response = self.post(
            None,
            "initialize",
            envelope::request_message(id, "initialize", Some(&params)),
            &params,
            &[],
        );
        let response = response.await.map_err(Self::unsent)?;
        let session_id = response.headers().get(SESSION_ID).cloned();
        let answer = self
            .answer(response, id, &Wiring::default(), &|| {})
            .await
            .map_err(Self::unsent)?;
        let (peer, version) = initialized(&self.service, &answer)?;
        let version = HeaderValue::from_str(&version).map_err(|error| {
            UpstreamError::caused(
                &self.service,
                Fault::Garbage,
                "`initialize` chose an impossible version",
                error,
            )
        })?;
        let session = Session {
            peer: Arc::new(peer),
            version,
            id: session_id,
        };
        let initialized = envelope::notification_message("notifications/initialized", None);
        self.post(
            Some(&session),
            "notifications/initialized",
            initialized,
            &params,
            &[],
        )
        .await
        .map_err(Self::unsent)?;
        Ok(session)
    }

    /// A broken handshake leaves nothing undone: the request itself was not sent.
    fn unsent(error: UpstreamError) -> UpstreamError {
        match error {
            UpstreamError::Transport {
                service,
                fault: Fault::Reset | Fault::Eof,
                message,
                source,
            } => UpstreamError::Transport {
                service,
                fault: Fault::NotSent,
                message,
                source,
            },
            error => error,
        }
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
        let translated = meta::translate(params, modern, token);
        let text = envelope::request_message(id, method, translated.as_ref());
        let mut guard = InFlight {
            http: self,
            session: session.filter(|_| !modern),
            id,
        };
        let nothing = Json::of(&());
        let name_source = params.unwrap_or(&nothing);
        let response = self
            .post(
                session.map(|session| &**session),
                method,
                text,
                name_source,
                &wiring.headers,
            )
            .await;
        let outcome = match response {
            Ok(response) => self.answer(response, id, wiring, alive).await,
            Err(error) => Err(error),
        };
        guard.session = None;
        outcome
    }

    async fn post(
        &self,
        session: Option<&Session>,
        method: &str,
        text: Bytes,
        params: &Json,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Response, UpstreamError> {
        let mut request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
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
        request
            .body(text)
            .send()
            .await
            .map_err(|error| self.fault(error))
    }

    async fn answer(
        &self,
        mut response: Response,
        id: u64,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Result<Payload, UpstreamError> {
        let status = response.status();
        let media = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let media = media
            .and_then(|value| value.split(';').next())
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        if !status.is_success() {
            let headers = Box::new(response.headers().clone());
            // The status is the news; a body that breaks off takes nothing from it.
            let body = self
                .body(&mut response, ERROR_BODY_BYTES)
                .await
                .unwrap_or_default();
            // The newest revision sends JSON-RPC errors with 400 and 404.
            if matches!(status.as_u16(), 400 | 404) {
                if let Ok(Envelope::Answer {
                    id: Some(_),
                    answer,
                }) = Envelope::parse(body.clone())
                {
                    return Ok(answer);
                }
            }
            return Err(UpstreamError::Http {
                service: self.service.clone(),
                status: status.as_u16(),
                headers,
                body,
            });
        }
        if media == "text/event-stream" {
            let mut events = Events::default();
            loop {
                while let Some(event) = events.next() {
                    if let Some(answer) = self.event(event, id, wiring, alive) {
                        return Ok(answer);
                    }
                }
                match response.chunk().await.map_err(|error| self.fault(error))? {
                    Some(chunk) => events.feed(&chunk).map_err(|error| {
                        UpstreamError::caused(&self.service, Fault::Garbage, "too much", error)
                    })?,
                    None => {
                        let text = "the stream ended before the answer";
                        return Err(UpstreamError::fault(&self.service, Fault::Eof, text));
                    }
                }
            }
        }
        let body = self.body(&mut response, MAX_MESSAGE_BYTES).await?;
        match Envelope::parse(body) {
            Ok(Envelope::Answer { answer, .. }) => Ok(answer),
            Ok(_) => Err(UpstreamError::fault(
                &self.service,
                Fault::Garbage,
                "what came back is no answer",
            )),
            Err(error) => Err(UpstreamError::caused(
                &self.service,
                Fault::Garbage,
                "what came back is no message",
                error,
            )),
        }
    }

    /// Deals with one event; the answer to our request ends the stream.
    fn event(
        &self,
        data: Bytes,
        id: u64,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Option<Payload> {
        match Envelope::parse(data) {
            Ok(Envelope::Answer {
                id: Some(given),
                answer,
            }) if given.read::<u64>().ok() == Some(id) => Some(answer),
            Ok(Envelope::Notification { method, params }) => {
                alive();
                let out = wiring.out.as_ref()?;
                let params = match (params, &wiring.token) {
                    (Some(params), Some(token)) if &*method == "notifications/progress" => {
                        Some(params.with_members(&[("progressToken", Some(token))]))
                    }
                    (params, _) => params,
                };
                let _ = out.try_send(envelope::notification_message(&method, params.as_ref()));
                None
            }
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(service = %self.service, %error, "an event that is no message is skipped");
                None
            }
        }
    }

    async fn body(&self, response: &mut Response, limit: usize) -> Result<Bytes, UpstreamError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.fault(error))? {
            if body.len() + chunk.len() > limit {
                return Err(UpstreamError::fault(
                    &self.service,
                    Fault::Garbage,
                    format!("more than {limit} bytes"),
                ));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// What a failed exchange says about the connection.
    fn fault(&self, error: reqwest::Error) -> UpstreamError {
        let mut kind = None;
        let mut dns = false;
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            dns |= inner.is::<NoSuchHost>();
            if let Some(io) = inner.downcast_ref::<std::io::Error>() {
                kind = Some(io.kind());
            }
            cause = inner.source();
        }
        use std::io::ErrorKind;
        let (fault, text) = match kind {
            _ if error.is_builder() => (Fault::NotSent, "the request cannot be made"),
            _ if dns => (Fault::Dns, "the host's name cannot be resolved"),
            Some(ErrorKind::InvalidData) if error.is_connect() => {
                (Fault::Tls, "TLS could not be agreed")
            }
            _ if error.is_connect() => (Fault::Refused, "no connection"),
            Some(ErrorKind::UnexpectedEof) => (
                Fault::Eof,
                "the connection ended before the answer was whole",
            ),
            _ if error.is_decode() => (Fault::Eof, "the answer broke off"),
            _ => (Fault::Reset, "the connection broke"),
        };
        UpstreamError::caused(&self.service, fault, text, error.without_url())
    }
}

/// `Mcp-Name` (SEP-2243): the thing a request is about, so that a middle box need not read it.
pub(crate) fn name_of(method: &str, params: &Json) -> Option<String> {
    let key = match method {
        "tools/call" | "prompts/get" => "name",
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => "uri",
        "tasks/get" | "tasks/update" | "tasks/cancel" => "taskId",
        _ => return None,
    };
    let name = params.text_member(key)?;
    let plain = !name.starts_with([' ', '\t'])
        && !name.ends_with([' ', '\t'])
        && name.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
        && !(name.starts_with("=?base64?") && name.ends_with("?="));
    Some(if plain {
        name
    } else {
        format!("=?base64?{}?=", BASE64.encode(name))
    })
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
            Ok(Envelope::Answer { id: None, answer: Payload::Error(error) })
                if error.member("code").and_then(|code| code.read().ok()) == Some(TRANSPORT_REFUSAL)
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

        let text = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}"#;
        assert!(!refuses(400, text));
        let text = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32000,"message":"of the tool"}}"#;
        assert!(!refuses(400, text));
        assert!(!refuses(400, "Bad Request"));
        assert!(!refuses(503, ""));
    }
}
