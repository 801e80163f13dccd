//! The gateway as a whole: an engine, the servers it asks, and the fronts clients come in by.

use std::sync::Arc;

use backstop::call::{Failed, Level};
use backstop::config::Completion;
use backstop::detect::Signal;
use backstop::health::Prober;
use backstop::operation::OperationRules;
use backstop::registry::Target;
use backstop::{Call, Engine, Exchange, Failure, Outcome};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::catalog::Section;
use crate::envelope::Json;
use crate::exchange::{McpAnswer, McpRequest};
use crate::front::http::{self, HttpOptions};
use crate::front::stdio;
use crate::model::{ModelSpec, Models};
use crate::router::{Asker, Router};
use crate::upstream::{ServiceSpec, Upstream, UpstreamError};

/// Unasked messages of servers that may wait to be spread.
const UNASKED_QUEUE: usize = 256;

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
}

/// An MCP server in front of MCP servers. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Gateway {
    router: Arc<Router>,
    models: Option<Arc<Models>>,
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
        let (unasked, mut heard) = mpsc::channel(UNASKED_QUEUE);
        let mut upstreams: Vec<Arc<Upstream>> = Vec::new();
        for spec in services {
            let name = spec.name.clone();
            if upstreams.iter().any(|upstream| upstream.spec.name == name) {
                return Err(GatewayError::Twice(name));
            }
            let upstream = Upstream::new(spec, unasked.clone());
            upstreams.push(Arc::new(upstream.map_err(|source| {
                GatewayError::Client {
                    service: name,
                    source,
                }
            })?));
        }
        let router = Arc::new(Router::new(engine, operations, upstreams));
        let weak = Arc::downgrade(&router);
        tokio::spawn(async move {
            while let Some(unasked) = heard.recv().await {
                let Some(router) = weak.upgrade() else { return };
                router.spread(&unasked);
            }
        });
        Ok(Self {
            router,
            models: None,
        })
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
        self.models = Some(Arc::new(models));
        Ok(self)
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.router.engine
    }

    /// Lets the servers wait for the only client there will be, the one at standard input and output:
    /// the connections to them are then its own, made in its words.
    pub fn expect_one_client(&self) {
        for upstream in self.router.upstreams().values() {
            upstream.expect_one_client();
        }
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

    /// Serves streamable HTTP at `/mcp`, and models below `/v1` where there are any, until the gateway shuts down; requests under way are
    /// finished first.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve_http(
        &self,
        listener: TcpListener,
        options: HttpOptions,
    ) -> std::io::Result<()> {
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
        let call = self.router.exchange.operations.apply(call).caller("host");
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

    /// A prober for the engine's health checker: `server/discover` or `ping`, in the server's era. A
    /// child process that has ended is started again by it, within its pauses.
    pub fn prober(&self) -> impl Prober + use<> {
        McpProber {
            router: self.router.clone(),
        }
    }

    /// Ends every front and every connection; child processes are killed.
    pub async fn shut_down(&self) {
        self.router.closing.cancel();
        let upstreams = self.router.upstreams().values();
        futures_util::future::join_all(upstreams.map(|upstream| upstream.close())).await;
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

struct McpProber {
    router: Arc<Router>,
}

impl Prober for McpProber {
    fn covers(&self, target: &Target) -> bool {
        self.router.upstreams().contains_key(&target.name)
    }

    fn probe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let Some(upstream) = self.router.upstreams().get(&target.name) else {
                return Ok(());
            };
            if upstream.is_waiting() {
                return Ok(());
            }
            let Err(error) = upstream.probe().await else {
                return Ok(());
            };
            let detector = self.router.engine.detector();
            let failure = self.router.exchange.classify(Err(&error), detector);
            Err(failure.unwrap_or_else(|| {
                let class = "ProbeError";
                detector.detect(Signal::Error {
                    class,
                    message: &error.to_string(),
                })
            }))
        })
    }
}
