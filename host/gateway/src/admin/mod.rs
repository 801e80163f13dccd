//! The administration endpoint: how everything stands, what happened, and why; and what an operator may
//! do about it.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the live page, to anybody: it holds nothing and asks for what it shows |
//! | `GET /healthz` | `ok`, to anybody: the process is alive |
//! | `GET /metrics` | every metric, in Prometheus' text format |
//! | `GET /api/openapi.json` | this table for programs |
//! | `GET /api/status` | what is wrong, groups, targets, strategies, counts ([`Status`]) |
//! | `GET /api/events` | every event as it happens, as server-sent events (`?only=call_saved,call_failed`: only these) |
//! | `GET /api/changes` | the latest changes of targets, strategies and configuration, newest first (`?limit=`) |
//! | `GET /api/calls` | the latest calls that had trouble, newest first (`?limit=`, 100 without) |
//! | `GET /api/calls/{id}` | one of them: every attempt, every strategy asked, every action refused |
//! | `POST /api/targets/{name}/drain` | nothing new begins there until it is restored |
//! | `POST /api/targets/{name}/eject` | its circuit opens, for `{"for_ms": …}`, a minute without |
//! | `POST /api/targets/{name}/restore` | it is used again: held no more, circuit closed, health forgotten |
//! | `POST /api/strategies/{name}/disable` | it is not asked until it is enabled |
//! | `POST /api/strategies/{name}/enable` | it is asked again |
//! | `GET /api/config` | the versions of the configuration that were applied, the one in force first |
//! | `POST /api/config/reload` | the file is read again and put in force |
//! | `POST /api/config/rollback` | an earlier version is put in force, `{"version": …}`, the one before without |
//! | `POST /api/config/apply` | a text is put in force, `{"text": "…", "save": true}`; `save` writes it to the file too. Only where a token is asked for |
//! | `POST /api/config/save` | the version in force is written to the file |
//! | `GET /api/config/retry` | how each kind of failure is retried, and what of that the configuration says |
//! | `POST /api/config/retry` | one of them is changed, `{"kind": "…", "set": {"max_retries": 2}, "save": false}`; `null` takes a key out |
//!
//! A Grafana dashboard and alert rules for these metrics are in the crate's folder `observability`; the
//! names are documented at [`backstop::metrics`] and [`crate::telemetry`].
//!
//! What goes wrong is told as `{"error": "…"}`. Who may do what is said in [`access`].

pub mod access;
mod config;
mod history;
mod problems;
mod recorder;
mod retry;
pub mod status;
mod steer;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use axum::{Router, middleware};
use backstop::Engine;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::live::LiveConfig;
use access::{Access, OpenToNetwork, guard};
use history::History;
pub use recorder::{Metrics, MetricsError};
pub use status::Status;
use stream::Wanted;

/// How often what was recorded is folded into the buckets, which bounds the memory it takes.
const UPKEEP: Duration = Duration::from_secs(5);
/// The largest body of a request.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Listeners to events at the same time. Each costs a copy of every event.
const MAX_LISTENERS: usize = 64;

/// The administration endpoint of one engine.
#[derive(Clone)]
pub struct Admin {
    engine: Engine,
    metrics: Metrics,
    history: Arc<History>,
    config: Option<LiveConfig>,
    access: Arc<Access>,
    listeners: Arc<Semaphore>,
    shutdown: CancellationToken,
    started: Instant,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    /// An endpoint for an engine, which is listened to from now on. `listen` is where it will be
    /// served, `token` what callers must send as `Authorization: Bearer TOKEN`.
    ///
    /// # Errors
    /// [`OpenToNetwork`] if there is no token and other machines can reach the address.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub fn new(
        engine: &Engine,
        metrics: Metrics,
        listen: SocketAddr,
        token: Option<&str>,
    ) -> Result<Self, OpenToNetwork> {
        Ok(Self {
            access: Arc::new(Access::new(listen, token)?),
            engine: engine.clone(),
            metrics,
            history: History::listen(engine),
            config: None,
            listeners: Arc::new(Semaphore::new(MAX_LISTENERS)),
            shutdown: CancellationToken::new(),
            started: Instant::now(),
        })
    }

    /// The same endpoint, which also tells and changes the configuration in force.
    #[must_use]
    pub fn with_config(mut self, config: LiveConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// Serves it until `shutdown`; streams of events end with it.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve(
        mut self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        self.shutdown = shutdown.clone();
        let metrics = self.metrics.clone();
        let upkeep = async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                metrics.fold();
            }
        };
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(upkeep));
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY");
            }
        });
        axum::serve(listener, self.routes())
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await
    }

    fn routes(self) -> Router {
        let access = self.access.clone();
        Router::new()
            .route("/metrics", get(metrics))
            .route("/api/openapi.json", get(openapi))
            .route("/api/status", get(status))
            .route("/api/events", get(events))
            .route("/api/changes", get(changes))
            .route("/api/calls", get(calls))
            .route("/api/calls/{id}", get(explain))
            .route("/api/config", get(config::versions))
            .route("/api/config/reload", post(config::reload))
            .route("/api/config/rollback", post(config::rollback))
            .route("/api/config/apply", post(config::apply))
            .route("/api/config/save", post(config::save))
            .route(
                "/api/config/retry",
                get(retry::policies).post(retry::change),
            )
            .route("/api/targets/{name}/{action}", post(steer::target))
            .route("/api/strategies/{name}/{action}", post(steer::strategy))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .route_layer(middleware::from_fn_with_state(access, guard))
            .route("/", get(page))
            .route("/healthz", get(|| async { "ok" }))
            .with_state(self)
    }
}

/// An answer in JSON.
fn say(status: StatusCode, what: &impl Serialize) -> Response {
    match serde_json::to_vec(what) {
        Ok(text) => {
            let headers = [
                (header::CONTENT_TYPE, "application/json"),
                (header::CACHE_CONTROL, "no-store"),
            ];
            (status, headers, text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// What went wrong, in JSON.
fn refusal(status: StatusCode, reason: &str) -> Response {
    say(status, &json!({ "error": reason }))
}

async fn page() -> Response {
    let headers = [
        // Nothing is loaded from elsewhere, and the page is nobody's frame.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, Html(include_str!("page.html"))).into_response()
}

async fn openapi() -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, include_str!("openapi.json")).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    admin.engine.sample_metrics();
    let headers = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (headers, admin.metrics.render()).into_response()
}

async fn status(State(admin): State<Admin>) -> Response {
    let status = Status::of(&admin.engine, &admin.history, admin.started);
    say(StatusCode::OK, &status)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Only {
    only: Option<String>,
}

async fn events(
    State(admin): State<Admin>,
    query: Result<Query<Only>, QueryRejection>,
) -> Response {
    let wanted = match query {
        Ok(Query(query)) => Wanted::of(query.only.as_deref()),
        Err(error) => return refusal(error.status(), &error.body_text()),
    };
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(reason) => return refusal(StatusCode::BAD_REQUEST, &reason),
    };
    let Ok(place) = admin.listeners.clone().try_acquire_owned() else {
        let reason = format!("{MAX_LISTENERS} listen already; end one of them");
        return refusal(StatusCode::TOO_MANY_REQUESTS, &reason);
    };
    stream::respond(admin.engine.subscribe(), wanted, place, admin.shutdown)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Latest {
    limit: Option<usize>,
}

fn limit(query: Result<Query<Latest>, QueryRejection>) -> Result<usize, QueryRejection> {
    query.map(|Query(query)| query.limit.unwrap_or(100))
}

async fn calls(
    State(admin): State<Admin>,
    query: Result<Query<Latest>, QueryRejection>,
) -> Response {
    match limit(query) {
        Ok(limit) => say(StatusCode::OK, &admin.history.calls(limit)),
        Err(error) => refusal(error.status(), &error.body_text()),
    }
}

async fn changes(
    State(admin): State<Admin>,
    query: Result<Query<Latest>, QueryRejection>,
) -> Response {
    match limit(query) {
        Ok(limit) => say(StatusCode::OK, &admin.history.changes(limit)),
        Err(error) => refusal(error.status(), &error.body_text()),
    }
}

async fn explain(State(admin): State<Admin>, Path(id): Path<String>) -> Response {
    match admin.history.find(&id) {
        Some(event) => say(StatusCode::OK, &event),
        None => {
            let reason = format!(
                "no call {id} is remembered: it was answered at once, is still under way, or is longer ago than the last {} calls that had trouble",
                history::CALLS
            );
            refusal(StatusCode::NOT_FOUND, &reason)
        }
    }
}
