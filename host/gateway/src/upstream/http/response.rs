//! What comes back over HTTP: an answer, a stream that ends with it, or a fault.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Response, dns};
use tokio::task::JoinSet;

use super::super::sse::Events;
use super::super::{Fault, MAX_MESSAGE_BYTES, UpstreamError, Wiring};
use super::listen::is_stream;
use super::{Http, Session, lock};
use crate::envelope::{self, Envelope, Payload};

/// How often a call that waits for its client is said to be alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// A stream that is not to be taken up for longer than this has failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often in a row a stream may be taken up again and bring nothing.
const FRUITLESS: u32 = 3;
/// How much of an error's body is kept.
pub(crate) const ERROR_BODY_BYTES: usize = 64 * 1024;

/// The host's name could not be resolved: a type of our own, because the HTTP client does not say.
#[derive(Debug, thiserror::Error)]
#[error("the name cannot be resolved")]
struct NoSuchHost(#[source] std::io::Error);

pub(super) struct Resolver;

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
    pub(super) async fn answer(
        self: &Arc<Self>,
        mut response: Response,
        id: u64,
        session: Option<&Arc<Session>>,
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
            let body = body(&self.service, &mut response, ERROR_BODY_BYTES)
                .await
                .unwrap_or_default();
            // The newest revision sends JSON-RPC errors with 400 and 404.
            if matches!(status.as_u16(), 400 | 404)
                && let Ok(Envelope::Answer {
                    id: Some(given),
                    answer,
                }) = Envelope::parse(body.clone())
                && given.read::<u64>().ok() == Some(id)
            {
                return Ok(answer);
            }
            return Err(UpstreamError::Http {
                service: self.service.clone(),
                status: status.as_u16(),
                headers,
                body,
            });
        }
        if media == "text/event-stream" {
            return self.stream(response, id, session, wiring, alive).await;
        }
        let body = body(&self.service, &mut response, MAX_MESSAGE_BYTES).await?;
        match Envelope::parse(body) {
            Ok(Envelope::Answer {
                id: Some(given),
                answer,
            }) if given.read::<u64>().ok() == Some(id) => Ok(answer),
            // A server that could not read the id says so without one (JSON-RPC 2.0, section 5).
            Ok(Envelope::Answer {
                id: None,
                answer: answer @ Payload::Error(_),
            }) => Ok(answer),
            Ok(_) => Err(UpstreamError::fault(
                &self.service,
                Fault::Garbage,
                "what came back is no answer to this request",
            )),
            Err(error) => Err(UpstreamError::caused(
                &self.service,
                Fault::Garbage,
                "what came back is no message",
                error,
            )),
        }
    }

    /// Reads a stream until it brings the answer. One that breaks off in a session is taken up where it
    /// ended, if the server has said how (MCP 2025-11-25, transports, resumability and redelivery):
    /// nothing is asked twice by this.
    async fn stream(
        self: &Arc<Self>,
        mut response: Response,
        id: u64,
        session: Option<&Arc<Session>>,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Result<Payload, UpstreamError> {
        let mut events = Events::default();
        // Taken back with the call.
        let mut questions = JoinSet::new();
        let mut fruitless = 0;
        loop {
            let before = events.last_id();
            let error = loop {
                while let Some(event) = events.next() {
                    if let Some(answer) =
                        self.event(event, id, session, wiring, alive, &mut questions)
                    {
                        return Ok(answer);
                    }
                }
                let chunk = tokio::select! {
                    chunk = response.chunk() => chunk,
                    Some(_) = questions.join_next() => continue,
                    // The server waits for the client, not we for the server.
                    () = tokio::time::sleep(SIGN_OF_LIFE), if !questions.is_empty() => {
                        alive();
                        continue;
                    }
                };
                match chunk {
                    Ok(Some(chunk)) => events.feed(&chunk).map_err(|error| {
                        UpstreamError::caused(&self.service, Fault::Garbage, "too much", error)
                    })?,
                    Ok(None) => {
                        let text = "the stream ended before the answer";
                        break UpstreamError::fault(&self.service, Fault::Eof, text);
                    }
                    Err(error) => break fault(&self.service, error),
                }
            };
            let error = error.come_back_after(events.retry());
            let last = events.last_id();
            fruitless = if last == before { fruitless + 1 } else { 0 };
            let pause = events.retry().unwrap_or_default();
            if pause > LONGEST_PAUSE || fruitless > FRUITLESS {
                return Err(error);
            }
            let (Some(session), Some(last)) = (session.filter(|s| !s.peer.modern), last) else {
                return Err(error);
            };
            tokio::time::sleep(pause).await;
            match self.listening(session, Some(last)).send().await {
                Ok(again) if again.status().is_success() && is_stream(&again) => response = again,
                Ok(_) | Err(_) => return Err(error),
            }
            events = events.reopened();
        }
    }

    /// Deals with one event; the answer to our request ends the stream.
    fn event(
        self: &Arc<Self>,
        data: Bytes,
        id: u64,
        session: Option<&Arc<Session>>,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
        questions: &mut JoinSet<()>,
    ) -> Option<Payload> {
        match Envelope::parse(data) {
            Ok(Envelope::Answer {
                id: Some(given),
                answer,
            }) if given.read::<u64>().ok() == Some(id) => return Some(answer),
            Ok(Envelope::Notification { method, params }) => {
                alive();
                match (&*method, params, &wiring.token, &wiring.out) {
                    ("notifications/progress", Some(params), Some(token), Some(out)) => {
                        let params = params.with_members(&[("progressToken", Some(token))]);
                        let _ =
                            out.try_send(envelope::notification_message(&method, Some(&params)));
                    }
                    ("notifications/progress", ..) => {}
                    ("notifications/cancelled", params, ..) => self.take_back(params),
                    (method, params, ..) => {
                        self.side.heard(&self.service, method, params, Some(wiring));
                    }
                }
            }
            Ok(Envelope::Request { id, method, params }) => {
                alive();
                if let Some(session) = session {
                    let key = id.bytes();
                    let question = self.question(session, id, method, params, wiring.out.clone());
                    let mut known = lock(&self.questions);
                    known.insert(key, questions.spawn(question));
                }
            }
            Ok(Envelope::Answer { .. }) => {}
            Err(error) => {
                tracing::warn!(service = %self.service, %error, "an event that is no message is skipped");
            }
        }
        None
    }
}

/// A whole body, of at most `limit` bytes.
pub(crate) async fn body(
    service: &Arc<str>,
    response: &mut Response,
    limit: usize,
) -> Result<Bytes, UpstreamError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| fault(service, error))?
    {
        if body.len() + chunk.len() > limit {
            return Err(UpstreamError::fault(
                service,
                Fault::Garbage,
                format!("more than {limit} bytes"),
            ));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// What a failed exchange says about the connection.
pub(crate) fn fault(service: &Arc<str>, error: reqwest::Error) -> UpstreamError {
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
    UpstreamError::caused(service, fault, text, error.without_url())
}
