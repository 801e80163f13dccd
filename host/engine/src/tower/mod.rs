//! Fallback behind an HTTP client that is a tower service.
//!
//! A program that makes its requests through a stack of tower layers gains the engine's retries and
//! fallbacks by one more: a [`FallbackLayer`]. The request says what is wanted, by its path and query; the
//! group's targets say where it is to be had, each by its URL.
//!
//! ```
//! use backstop::Engine;
//! use backstop::registry::TargetSpec;
//! use backstop::tower::{FallbackLayer, Served};
//! use http::{Request, Response};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder().build()?;
//! engine.registry().register(TargetSpec::service("eu", "search").url("http://eu.example/v1"))?;
//!
//! // Any HTTP client: here one that answers by itself.
//! let client = service_fn(|request: Request<String>| async move {
//!     Ok::<_, std::io::Error>(Response::new(request.uri().to_string()))
//! });
//! let client = FallbackLayer::new(engine, "search").layer(client);
//!
//! let answer = client.oneshot(Request::get("/find?q=tea").body(String::new())?).await?;
//! assert_eq!(answer.body(), "http://eu.example/v1/find?q=tea");
//! assert_eq!(answer.extensions().get::<Served>().map(|s| s.attempts), Some(1));
//! # Ok(())
//! # }
//! ```
//!
//! # What it does
//!
//! - Each attempt is the request once more, so its body must be one that can be cloned, such as `Bytes`
//!   or `String`. Scheme, authority and the beginning of the path are those of the target; a `Host`
//!   field is left out, the client writes that of the target. A target without a URL gets the request
//!   as it is. All other fields go to every target, credentials included.
//! - `GET`, `HEAD`, `OPTIONS` and `TRACE` change nothing, `PUT` and `DELETE` may be repeated (RFC 9110,
//!   section 9.2). Any other request is sent again only where it was certainly not carried out. A
//!   [`Call`] among the request's extensions may say otherwise, and set a deadline and whatever else a
//!   call can be told; its group and its operation are set here.
//! - What a target says of the request itself is its answer: every status below 500 but 408, 425 and
//!   429. The others are failures, and so is an error of the client.
//! - An answer begins with its head: it counts from then on, and what breaks off behind it is the
//!   caller's. The timeout of an attempt ends there too.
//! - Where every fallback fails, the caller is given the last answer there was, as from its client. Only
//!   where there was none it is given an error.

mod exchange;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use ::http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use crate::call::{Call, CallError, CallId, Level, RepeatSafety};
use crate::engine::Engine;
use exchange::HttpExchange;

/// Any error of the client that is wrapped.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Puts fallback behind an HTTP client: see the [module](self).
#[derive(Clone)]
pub struct FallbackLayer {
    engine: Engine,
    group: Arc<str>,
}

impl FallbackLayer {
    /// A layer that asks the targets of a group.
    pub fn new(engine: Engine, group: impl Into<Arc<str>>) -> Self {
        Self {
            engine,
            group: group.into(),
        }
    }
}

impl fmt::Debug for FallbackLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackLayer")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for FallbackLayer {
    type Service = Fallback<S>;

    fn layer(&self, inner: S) -> Fallback<S> {
        Fallback {
            inner,
            engine: self.engine.clone(),
            group: self.group.clone(),
        }
    }
}

/// An HTTP client with fallback: what a [`FallbackLayer`] makes of one.
///
/// It is always ready: each attempt waits for a clone of the client to be.
#[derive(Clone)]
pub struct Fallback<S> {
    inner: S,
    engine: Engine,
    group: Arc<str>,
}

impl<S: fmt::Debug> fmt::Debug for Fallback<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("inner", &self.inner)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

/// Who gave an answer: among the extensions of each.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Served {
    /// The target; `None` where an answer is given although the call failed.
    pub by: Option<Arc<str>>,
    /// How many attempts were made.
    pub attempts: u32,
    /// The call's id.
    pub call: CallId,
}

/// Why there is no answer at all.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {}", .call.cause)]
#[non_exhaustive]
pub struct HttpCallError {
    /// Why, and all that was tried.
    pub call: Box<CallError>,
    /// The last error of the client.
    #[source]
    pub last: Option<BoxError>,
}

impl<S, B, R> Service<Request<B>> for Fallback<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Clone + Send + Sync + 'static,
    R: Send + 'static,
{
    type Response = Response<R>;
    type Error = HttpCallError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, HttpCallError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), HttpCallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let call = request.extensions_mut().remove::<Call>();
        let mut call = call.unwrap_or_default().level(Level::Other);
        call.facts.group = self.group.clone();
        call.facts.operation = format!("{} {}", request.method(), request.uri().path()).into();
        let safety = call.safety.unwrap_or_else(|| match request.method() {
            method if method.is_safe() => RepeatSafety::ReadOnly,
            method if method.is_idempotent() => RepeatSafety::Idempotent,
            _ => RepeatSafety::Unsafe,
        });
        let engine = self.engine.clone();
        let exchange = HttpExchange::new(Mutex::new(self.inner.clone()), safety);
        Box::pin(async move {
            match engine.call(&exchange, call, &request).await {
                Ok(outcome) => {
                    let served = Served {
                        attempts: outcome.attempts(),
                        by: outcome.served_by,
                        call: outcome.id,
                    };
                    Ok(marked(outcome.answer, served))
                }
                Err(failed) => match failed.raw {
                    Some(Ok(answer)) => {
                        let made = failed.error.trouble.attempts.len();
                        let served = Served {
                            by: None,
                            attempts: u32::try_from(made).unwrap_or(u32::MAX),
                            call: failed.error.id,
                        };
                        Ok(marked(answer, served))
                    }
                    raw => Err(HttpCallError {
                        call: Box::new(failed.error),
                        last: raw.and_then(Result::err),
                    }),
                },
            }
        })
    }
}

fn marked<R>(mut answer: Response<R>, served: Served) -> Response<R> {
    answer.extensions_mut().insert(served);
    answer
}

#[cfg(test)]
mod tests;
