//! HTTP behind the engine's seam: how a request is sent to a target, and what came of it.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use ::http::uri::{Parts, PathAndQuery, Uri};
use ::http::{Request, Response, header};
use tower_service::Service;

use super::BoxError;
use crate::call::{Attempt, RepeatSafety, chain};
use crate::detect::{Detector, Signal, TransportFault};
use crate::exchange::Exchange;
use crate::failure::Failure;

/// Carries one request for the engine.
pub(super) struct HttpExchange<S, B, R> {
    /// Cloned for each attempt; behind a lock, because not every client can be shared.
    client: Mutex<S>,
    safety: RepeatSafety,
    kinds: PhantomData<fn(B) -> R>,
}

impl<S, B, R> HttpExchange<S, B, R> {
    pub(super) fn new(client: Mutex<S>, safety: RepeatSafety) -> Self {
        Self {
            client,
            safety,
            kinds: PhantomData,
        }
    }
}

impl<S, B, R> Exchange for HttpExchange<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Clone + Send + Sync,
    R: Send,
{
    type Request = Request<B>;
    type Answer = Response<R>;
    type Error = BoxError;

    async fn send(&self, attempt: &Attempt, request: &Request<B>) -> Result<Response<R>, BoxError> {
        let mut request = request.clone();
        if let Some(url) = &attempt.target.spec.url {
            *request.uri_mut() = below(url, request.uri())?;
            request.headers_mut().remove(header::HOST);
        }
        let mut client = {
            let client = self.client.lock();
            S::clone(&client.unwrap_or_else(PoisonError::into_inner))
        };
        let sent = async move {
            poll_fn(|cx| client.poll_ready(cx)).await?;
            client.call(request).await
        };
        sent.await.map_err(Into::into)
    }

    fn classify(
        &self,
        outcome: Result<&Response<R>, &BoxError>,
        detector: &Detector,
    ) -> Option<Failure> {
        let response = match outcome {
            Ok(response) => response,
            Err(error) if error.is::<::http::Error>() => {
                return Some(detector.detect(Signal::Transport {
                    fault: TransportFault::NotSent,
                    message: &format!("the target's URL cannot be used: {error}"),
                }));
            }
            Err(error) => {
                return Some(detector.detect(Signal::Error {
                    class: std::any::type_name::<S::Error>(),
                    message: &chain(&**error),
                }));
            }
        };
        let status = response.status().as_u16();
        // Any other says something of the request, which no other target would take back.
        if status < 500 && !matches!(status, 408 | 425 | 429) {
            return None;
        }
        let header = |name: &str| {
            let values = response.headers().get_all(name).iter();
            let values: Vec<_> = values.filter_map(|value| value.to_str().ok()).collect();
            (!values.is_empty()).then(|| values.join(", "))
        };
        Some(detector.detect(Signal::Http {
            status,
            header: &header,
            body: b"",
            now: SystemTime::now(),
            session: false,
        }))
    }

    fn repeat_safety(&self, _: &str) -> RepeatSafety {
        self.safety
    }
}

/// What is asked for, below the URL of a target.
fn below(base: &str, asked: &Uri) -> Result<Uri, ::http::Error> {
    let mut parts: Parts = base.parse::<Uri>()?.into_parts();
    let above = parts.path_and_query.as_ref().map_or("", PathAndQuery::path);
    let asked = asked.path_and_query().map_or("/", PathAndQuery::as_str);
    let whole = format!("{}{asked}", above.trim_end_matches('/'));
    parts.path_and_query = Some(whole.parse()?);
    Ok(Uri::from_parts(parts)?)
}
