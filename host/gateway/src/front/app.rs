//! What is served over HTTP: the endpoint, and what lies beside it.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::Request;
use axum::response::Response;
use axum::{BoxError, Router};
use futures_util::future::BoxFuture;
use tower_service::Service;

use super::http::{Front, handle};

/// A request for the endpoint goes there without a detour; any other goes by its route.
#[derive(Clone)]
pub(super) struct App {
    front: Arc<Front>,
    path: Arc<str>,
    others: Router,
}

impl App {
    pub(super) fn new(front: Arc<Front>, path: &str, others: Router) -> Self {
        let path = path.into();
        Self {
            front,
            path,
            others,
        }
    }
}

impl<B> Service<Request<B>> for App
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let request = request.map(Body::new);
        if request.uri().path() == &*self.path {
            let front = self.front.clone();
            return Box::pin(async move { Ok(handle(front, request).await) });
        }
        Box::pin(self.others.call(request))
    }
}
