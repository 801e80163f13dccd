//! The administration endpoint: how everything stands, what happened, and why.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the status page, to anybody: it holds nothing and asks for what it shows |
//! | `GET /healthz` | `ok`, to anybody: the process is alive |
//! | `GET /metrics` | every metric, in Prometheus' text format |
//! | `GET /api/status` | groups, targets, strategies, counts, as JSON |
//! | `GET /api/events` | every event as it happens, as server-sent events |
//! | `GET /api/calls` | the latest calls that had trouble, newest first (`?limit=`, at most 1000, 100 without) |
//! | `GET /api/calls/{id}` | one of them: every attempt, every strategy asked, every action refused |

mod access;
mod calls;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use backstop::Engine;
use backstop::event::Event;
use backstop::metrics::{DURATION_BUCKETS, describe};
use futures_util::stream::{self, Stream};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use access::OpenToNetwork;
use access::{Access, guard};
use calls::Calls;
use status::Status;

/// How often what was recorded is folded into the buckets, which bounds the memory it takes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why there is no administration endpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// It would be open to the network.
    #[error(transparent)]
    Open(#[from] OpenToNetwork),
    /// The metrics cannot be recorded.
    #[error("metrics cannot be recorded")]
    Metrics(#[from] BuildError),
    /// The listener failed.
    #[error("the administration endpoint ended")]
    Listener(#[from] std::io::Error),
}

/// What records the metrics of this process.
///
/// Installed once, before the engine's first call; what is counted before is lost.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Installs the recorder of the process.
    ///
    /// # Errors
    /// [`AdminError::Metrics`] if the process has one already.
    pub fn install() -> Result<Self, AdminError> {
        let handle = PrometheusBuilder::new()
            .set_buckets(&DURATION_BUCKETS)?
            .set_enable_unit_suffix(true)
            .install_recorder()?;
        describe();
        Ok(Self(handle))
    }
}

/// The administration endpoint of one engine.
#[derive(Clone)]
pub struct Admin {
    engine: Engine,
    metrics: Metrics,
    calls: Arc<Calls>,
    access: Arc<Access>,
    started: Instant,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    /// An endpoint for an engine, which is listened to from now on. `listen` is where it will be
    /// served.
    ///
    /// # Errors
    /// [`AdminError::Open`] if there is no token and other machines can reach the address.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub fn new(
        engine: &Engine,
        metrics: Metrics,
        listen: SocketAddr,
        token: Option<&str>,
    ) -> Result<Self, AdminError> {
        Ok(Self {
            engine: engine.clone(),
            metrics,
            calls: Calls::listen(engine),
            access: Arc::new(Access::new(listen, token)?),
            started: Instant::now(),
        })
    }

    /// Serves it until `shutdown`.
    ///
    /// # Errors
    /// [`AdminError::Listener`] if the listener fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), AdminError> {
        let upkeep = self.metrics.clone();
        let until = shutdown.clone();
        tokio::spawn(until.run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                upkeep.0.run_upkeep();
            }
        }));
        let access = self.access.clone();
        let open_streams = shutdown.clone();
        let app = Router::new()
            .route("/metrics", get(metrics))
            .route("/api/status", get(status))
            .route(
                "/api/events",
                get(move |state| events(state, open_streams.clone())),
            )
            .route("/api/calls", get(latest))
            .route("/api/calls/{id}", get(explain))
            .route_layer(middleware::from_fn_with_state(access, guard))
            // The page holds nothing; what it shows it asks for, with the token its reader types.
            .route("/", get(page))
            .route("/healthz", get(|| async { "ok" }))
            .with_state(self);
        axum::serve(listener, app)
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await?;
        Ok(())
    }
}

async fn page() -> Response {
    let headers = [
        // Nothing is loaded from elsewhere, and the page is nobody's frame.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Html(include_str!("page.html"))).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    admin.engine.sample_metrics();
    let headers = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (headers, admin.metrics.0.render()).into_response()
}

async fn status(State(admin): State<Admin>) -> Json<Status> {
    Json(Status::of(
        &admin.engine,
        admin.started,
        admin.calls.totals(),
    ))
}

async fn events(
    State(admin): State<Admin>,
    shutdown: CancellationToken,
) -> Sse<impl Stream<Item = Result<sse::Event, axum::Error>>> {
    let events = stream::unfold(
        (admin.engine.subscribe(), shutdown),
        |(mut events, shutdown)| async move {
            let event = shutdown.run_until_cancelled(events.recv()).await?;
            let event = match event {
                Ok(event) => sse::Event::default().json_data(&*event),
                Err(RecvError::Lagged(missed)) => sse::Event::default()
                    .json_data(serde_json::json!({ "event": "events_missed", "count": missed })),
                Err(RecvError::Closed) => return None,
            };
            Some((event, (events, shutdown)))
        },
    );
    Sse::new(events).keep_alive(KeepAlive::default())
}

#[derive(Deserialize)]
struct Latest {
    limit: Option<usize>,
}

async fn latest(State(admin): State<Admin>, Query(query): Query<Latest>) -> Json<Vec<Arc<Event>>> {
    Json(admin.calls.latest(query.limit.unwrap_or(100)))
}

async fn explain(State(admin): State<Admin>, Path(id): Path<String>) -> Response {
    match admin.calls.find(&id) {
        Some(event) => Json(event).into_response(),
        None => {
            let reason = format!(
                "no call {id} is remembered: it was answered at once, is still under way, or is longer ago than the last 1000 calls that had trouble"
            );
            (
                StatusCode::NOT_FOUND,
                Json(serde_json::json!({ "error": reason })),
            )
                .into_response()
        }
    }
}
