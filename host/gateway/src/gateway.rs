//! The gateway as a whole: an engine, the servers it asks, and the fronts clients come in by.

use std::sync::{Arc, Weak};

use arc_swap::{ArcSwap, ArcSwapOption};
use backstop::call::{Failed, Level};
use backstop::config::Completion;
use backstop::event::{Event, EventKind};
use backstop::health::{HttpProberError, Prober};
use backstop::operation::OperationRules;
use backstop::registry::{RegistryError, TargetSpec};
use backstop::{Call, Engine, Outcome};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};

use crate::catalog::Section;
use crate::client::Client;
use crate::envelope::Json;
use crate::exchange::{McpAnswer, McpRequest};
use crate::front::http::{self, HttpOptions};
use crate::front::stdio;
use crate::model::{ModelSpec, Models};
use crate::probe::Probes;
use crate::router::{Asker, Router};
use crate::upstream::{Heard, ServiceSpec, UpstreamError};
use crate::workers::Workers;

/// Unasked messages of servers that may wait to be spread.
const HEARD_QUEUE: usize = 256;

/// Why a gateway cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// Two services, or two models, have one name.
    #[error("two are named {0:?}")]
    Twice(Arc<str>),
    /// There is no HTTP client to be had for a service or a model.
    #[error("no HTTP client for {service:?}")]
    Client {
        /// The service.
        service: Arc<str>,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The engine refuses the targets.
    #[error(transparent)]
    Targets(#[from] RegistryError),
}

/// An MCP server in front of MCP servers. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Gateway {
    router: Arc<Router>,
    models: Option<Arc<Models>>,
    heard: mpsc::Sender<Heard>,
    /// How the front over HTTP that was begun last is served.
    http: Arc<ArcSwapOption<ArcSwap<HttpOptions>>>,
}

impl Gateway {
    /// A gateway over these services. Each must be a target of the engine's registry under its name
    /// and in its group; the gateway only knows how to reach it. `operations` is what the operator says
    /// of operations. Connections are made when they are needed.
    ///
    /// # Errors
    /// [`GatewayError`] names the service.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub fn new(
        engine: Engine,
        operations: OperationRules,
        services: Vec<ServiceSpec>,
    ) -> Result<Self, GatewayError> {
        let (heard, mut hearing) = mpsc::channel(HEARD_QUEUE);
        let events = engine.subscribe();
        let router = Arc::new(Router::new(engine, operations));
        router.replace(services, None, &heard)?;
        let weak = Arc::downgrade(&router);
        tokio::spawn(async move {
            while let Some(heard) = hearing.recv().await {
                let Some(router) = weak.upgrade() else { return };
                match heard {
                    Heard::Unasked(unasked) => {
                        router.spread(&unasked);
                        if unasked.method.ends_with("/list_changed") {
                            survey(router, unasked.service, unasked.owner);
                        }
                    }
                    Heard::Greeted { service, owner } => survey(router, service, owner),
                    Heard::Crashing(crash) => router.report(crash),
                }
            }
        });
        let weak = Arc::downgrade(&router);
        tokio::spawn(
            router
                .closing
                .clone()
                .run_until_cancelled_owned(see_recoveries(weak, events)),
        );
        Ok(Self {
            router,
            models: None,
            heard,
            http: Arc::default(),
        })
    }

    /// Makes the engine's targets and the servers behind them exactly these, in one step, while it
    /// runs: new ones are used from the next call on, and clients are told where lists change. One that
    /// is not among them any more is drained: it gets no new call, those under way finish, and then its
    /// connection ends. A server whose transport stays keeps its connection.
    ///
    /// Each service and each model must be among the targets under its name and in its group. Models are
    /// used where the gateway has them at its front, see [`with_models`](Self::with_models).
    ///
    /// # Errors
    /// [`GatewayError`] names the service or the target; then nothing changes.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub fn replace(
        &self,
        targets: Vec<TargetSpec>,
        services: Vec<ServiceSpec>,
        models: Vec<ModelSpec>,
    ) -> Result<(), GatewayError> {
        let change = || self.router.replace(services, Some(targets), &self.heard);
        match &self.models {
            Some(front) => front.exchange.replace(models, change),
            None => change(),
        }
    }

    /// Whether a tool by which the members of a group mean different things (their schemas differ) may
    /// be called on any of them. Default: no, only on those that mean what clients are shown.
    pub fn set_mixed_schemas(&self, allowed: bool) {
        self.router
            .tell(self.router.catalog.set_mixed_schemas(allowed));
    }

    /// What the operator says of operations, from the next call on.
    pub fn set_operations(&self, operations: OperationRules) {
        let there = &self.router.exchange.operations;
        there.store(Arc::new(operations));
    }

    /// Whether there are models at its front, or may be: see [`with_models`](Self::with_models).
    pub fn has_models(&self) -> bool {
        self.models.is_some()
    }

    /// How models are called, from the next call on. The path of the front stays as it is.
    pub fn set_completion(&self, options: Completion) {
        if let Some(models) = &self.models {
            models.exchange.options.store(Arc::new(options));
        }
    }

    /// Who is let in at the front over HTTP and what they may send, from the next request on. The path
    /// stays as it is. Of several such fronts the one begun last is meant.
    pub fn set_http_options(&self, options: HttpOptions) {
        if let Some(front) = &*self.http.load() {
            front.store(Arc::new(options));
        }
    }

    /// Whether it is served over HTTP.
    pub fn is_served_over_http(&self) -> bool {
        self.http.load().is_some()
    }

    /// The same gateway with these models at its front over HTTP. Each must be a target of the
    /// engine's registry under its name and in its group. See [`crate::model`].
    ///
    /// # Errors
    /// [`GatewayError`] names the model.
    pub fn with_models(
        mut self,
        models: Vec<ModelSpec>,
        options: Completion,
    ) -> Result<Self, GatewayError> {
        let engine = self.router.engine.clone();
        let operations = self.router.exchange.operations.clone();
        let models = Models::new(engine, operations, models, options)?;
        let models = Arc::new(models);
        self.router.sampling.by(models.clone());
        self.models = Some(models);
        Ok(self)
    }

    /// Serves connections over HTTP, and servers that are child processes, on these threads from now on; the
    /// first that are given stay. Without any they are served on the runtime that serves the front.
    pub fn use_workers(&self, workers: Workers) {
        let _ = self.router.workers.set(workers);
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.router.engine
    }

    /// Lets the servers wait for the only client there will be, the one at standard input and output:
    /// the connections to them are then its own, made in its words.
    pub fn expect_one_client(&self) {
        self.router.sole.expect();
    }

    /// Serves the client at standard input and output until it closes its side or the gateway shuts
    /// down.
    ///
    /// # Errors
    /// If standard input cannot be read.
    pub async fn serve_stdio(&self) -> std::io::Result<()> {
        let (input, output) = (tokio::io::stdin(), tokio::io::stdout());
        stdio::serve(self.router.clone(), input, output, true).await
    }

    /// Serves one client over any pair of streams, one message per line.
    ///
    /// # Errors
    /// If the input cannot be read, or a line is longer than 32 MiB.
    pub async fn serve_stream(
        &self,
        input: impl AsyncRead + Unpin,
        output: impl AsyncWrite + Unpin + Send + 'static,
    ) -> std::io::Result<()> {
        stdio::serve(self.router.clone(), input, output, false).await
    }

    /// Serves streamable HTTP at `/mcp`, and models below `/v1` where there are any, until the gateway
    /// shuts down; requests under way are finished first.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve_http(
        &self,
        listener: TcpListener,
        options: HttpOptions,
    ) -> std::io::Result<()> {
        let options = Arc::new(ArcSwap::from_pointee(options));
        self.http.store(Some(options.clone()));
        let models = self.models.clone();
        http::serve(self.router.clone(), models, listener, options).await
    }

    /// Calls a tool, with fallback, as a client would.
    ///
    /// # Errors
    /// [`ToolCallError::Unroutable`] if no group, or more than one, offers the tool;
    /// [`ToolCallError::Failed`] with everything that was tried.
    pub async fn call_tool(
        &self,
        tool: &str,
        arguments: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Outcome<McpAnswer>, ToolCallError> {
        let (group, own) = self
            .router
            .find_tool(tool)
            .await
            .map_err(ToolCallError::Unroutable)?;
        let safety = self.router.tool_safety(&self.router.catalog, &group, &own);
        let arguments = Json::of(arguments);
        let params = Json::of(&serde_json::json!({ "name": own }))
            .with_members(&[("arguments", Some(&arguments))]);
        let call = Call::new(group, own)
            .level(Level::Tool)
            .repeat_safety(safety);
        let operations = self.router.exchange.operations.load_full();
        let call = operations.apply(call).caller("host");
        let request = McpRequest::new("tools/call", Some(params));
        self.engine()
            .call(&self.router.exchange, call, &request)
            .await
            .map_err(|failed| ToolCallError::Failed(failed.into()))
    }

    /// Every tool, as clients see it.
    ///
    /// # Errors
    /// One sentence, if no group's tools are known.
    pub async fn tools(&self) -> Result<Vec<Json>, String> {
        let asked = self.router.list(Section::Tools, &Asker::default()).await;
        asked.map_err(|refused| refused.message)?;
        Ok(self.router.catalog.merged(Section::Tools))
    }

    /// A prober for the engine's health checker. Each target is asked in the way that says most of it:
    /// at its health URL where it has one; a service over MCP, in the server's era (`server/discover` or
    /// `ping`); a model for its list of models; any other by a TCP connection to its URL. Every probe
    /// goes to the target, none is answered out of a store.
    ///
    /// # Errors
    /// If the system's TLS configuration cannot be read.
    pub fn prober(&self) -> Result<impl Prober + use<>, HttpProberError> {
        Probes::new(self.router.clone(), self.models.clone())
    }

    /// Ends every front and every connection; child processes are killed.
    pub async fn shut_down(&self) {
        self.router.closing.cancel();
        let upstreams = self.router.upstreams();
        futures_util::future::join_all(upstreams.values().map(|upstream| upstream.close())).await;
    }
}

/// Why a tool call has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolCallError {
    /// It is not clear whom to ask.
    #[error("{0}")]
    Unroutable(String),
    /// Everything that was tried failed.
    #[error(transparent)]
    Failed(Box<Failed<McpAnswer, UpstreamError>>),
}

/// Asks a server what it offers, on a task of its own.
/// `owner` is the client whose connection to it has brought it up, where that is one of its own.
fn survey(router: Arc<Router>, service: Arc<str>, owner: Option<Weak<Client>>) {
    tokio::spawn(async move {
        let client = owner.as_ref().map(Weak::upgrade);
        // Nobody is left to be told, where there is none any more.
        if client.as_ref().is_none_or(Option::is_some) {
            router.survey(&service, client.flatten().as_ref()).await;
        }
    });
}

/// A server that is well again may have been exchanged for another one.
async fn see_recoveries(router: Weak<Router>, mut events: broadcast::Receiver<Arc<Event>>) {
    loop {
        match events.recv().await {
            Ok(event) => {
                let EventKind::Recovered { target, .. } = &event.what else {
                    continue;
                };
                let Some(router) = router.upgrade() else {
                    return;
                };
                survey(router, target.clone(), None);
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
