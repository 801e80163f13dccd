//! Fallback behind the `call_tool` of an rmcp client.
//!
//! A client of MCP that talks to servers with the official Rust library has one service for each
//! server, and an error for each that is down. A [`FallbackClient`] holds the connections to servers
//! that can stand in for one another, and its [`call_tool`](FallbackClient::call_tool) is the call the
//! client makes already, with the engine's retries and fallbacks behind it.
//!
//! ```no_run
//! use backstop::Engine;
//! use backstop::rmcp::FallbackClient;
//! use rmcp::ServiceExt;
//! use rmcp::model::CallToolRequestParams;
//! use rmcp::transport::StreamableHttpClientTransport;
//!
//! # async fn example(engine: Engine) -> Result<(), Box<dyn std::error::Error>> {
//! let primary = ().serve(StreamableHttpClientTransport::from_uri("http://localhost:8001/mcp")).await?;
//! let backup = ().serve(StreamableHttpClientTransport::from_uri("http://localhost:8002/mcp")).await?;
//!
//! let client = FallbackClient::builder(engine, "search")
//!     .server("primary", &primary)
//!     .server("backup", &backup)
//!     .build()?;
//! let result = client.call_tool(CallToolRequestParams::new("lookup")).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What it does to rmcp, and what it leaves
//!
//! - A tool is called by one request for each attempt, and rmcp is given no timeout: the engine has it.
//!   An attempt that is given up cancels its request at the server.
//! - The list of tools is never taken from rmcp's cache, which answers with an old list where the server
//!   is down.
//! - rmcp's HTTP transport answers a 404 for its session with a new session and sends the request once
//!   more, by itself. The request was not carried out the first time, so this repeats nothing, but it is
//!   one attempt here and two requests at the server. Where that matters, set
//!   `reinit_on_expired_session` of the transport's configuration to `false`.
//! - A connection that has ended stays ended: rmcp does not connect again.
//!   [`FallbackClient::reconnected`] puts a new one in its place.
//! - A progress notification goes to the client's handler and does not extend the attempt. A tool that
//!   works for longer than [`Deadlines::attempt`](crate::Deadlines::attempt) needs
//!   [`Call::attempt_timeout`].

mod error;
mod exchange;
mod hints;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use ::rmcp::model::{CallToolRequestParams, CallToolResponse, CallToolResult, MetaObject};
use ::rmcp::service::{Peer, RoleClient};
use arc_swap::ArcSwap;
use serde_json::{Value, json};

use crate::call::{Call, Ending, Failed, Level, Outcome};
use crate::engine::Engine;
use crate::operation::OperationRules;
use crate::registry::{RegistryError, TargetSpec};

pub use error::{CallToolError, RequestError};
use exchange::{McpExchange, Request};
use hints::Hints;

/// The key of `_meta` that says how an answer differs from one the server gave just now.
pub const DEGRADED_META: &str = "backstop/degraded";

/// The key of `_meta` that says who gave an answer that did not come at once.
pub const SERVED_META: &str = "backstop";

/// A connection to a server, and what the server says of its tools.
pub(crate) struct Server {
    peer: ArcSwap<Peer<RoleClient>>,
    hints: Hints,
}

/// Several MCP servers as one. Cloning shares it.
///
/// The servers are targets of the engine for as long as the last clone lives.
#[derive(Clone)]
pub struct FallbackClient {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    group: Arc<str>,
    exchange: McpExchange,
    /// The targets to take out of the registry in the end.
    registered: Vec<Arc<str>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        for name in &self.registered {
            // An error says that somebody else took it out.
            let _ = self.engine.registry().deregister(name);
        }
    }
}

impl FallbackClient {
    /// Starts a client whose servers form a group of the engine.
    pub fn builder(engine: Engine, group: impl Into<Arc<str>>) -> FallbackClientBuilder {
        FallbackClientBuilder {
            engine,
            group: group.into(),
            servers: Vec::new(),
            operations: OperationRules::default(),
        }
    }

    /// Calls a tool, as rmcp's method of this name does, with fallback.
    ///
    /// A tool's own error (`isError`) is an answer here as it is there, once no fallback did better. An
    /// answer that did not come at once from the first server says so in `_meta`, under
    /// [`SERVED_META`] and [`DEGRADED_META`].
    ///
    /// # Errors
    /// [`CallToolError`], with the last error of rmcp in it. A server that asks for input or makes a
    /// task of the call is told as `ServiceError::UnexpectedResponse`, as by rmcp's `Peer`: use
    /// [`outcome`](Self::outcome) for these.
    pub async fn call_tool(
        &self,
        params: CallToolRequestParams,
    ) -> Result<CallToolResult, CallToolError> {
        let call = Call::new(self.shared.group.clone(), params.name.as_ref());
        match self.outcome(call, params).await {
            Ok(outcome) => labelled(outcome),
            Err(failed) => match (failed.error.ending, failed.raw) {
                // A strategy that ends a call has the last word.
                (Ending::Exhausted, Some(Ok(CallToolResponse::Complete(mut result)))) => {
                    let attempts = &failed.error.trouble.attempts;
                    if attempts.len() > 1 {
                        // A silent attempt brings no answer: this one is of an attempt before it.
                        let answered = attempts.iter().rev().find(|made| !made.failure.silent);
                        label(
                            &mut result,
                            json!({
                                "served_by": answered.map(|made| &made.target),
                                "attempts": attempts.len(), "call": failed.error.id,
                            }),
                        );
                    }
                    Ok(result)
                }
                (_, raw) => Err(CallToolError::new(failed.error, raw)),
            },
        }
    }

    /// Calls a tool, and tells everything: who answered, how, and what went wrong on the way. The call
    /// brings what rmcp has no word for, such as a deadline; its operation is the tool's name, and its
    /// group is this client's.
    ///
    /// A request that goes on after [`CallToolResponse::InputRequired`] must be pinned
    /// ([`Call::pin`]) to the server that asked, [`Outcome::served_by`]: its state means nothing to
    /// another. Unpinned it is refused.
    ///
    /// # Errors
    /// [`Failed`] with every attempt and every strategy asked, and rmcp's last word.
    pub async fn outcome(
        &self,
        call: Call,
        params: CallToolRequestParams,
    ) -> Result<Outcome<CallToolResponse>, Failed<CallToolResponse, RequestError>> {
        let Shared {
            engine,
            group,
            exchange,
            ..
        } = &*self.shared;
        exchange.refresh_hints();
        let mut call = exchange.operations.apply(call).level(Level::Tool);
        call.facts.group = group.clone();
        call.facts.operation = params.name.as_ref().into();
        let goes_on = params.request_state.is_some() || params.input_responses.is_some();
        let request = Request {
            misplaced: goes_on && call.pin.is_none(),
            params,
        };
        engine.call(exchange, call, &request).await
    }

    /// Puts a new connection to a server in the place of one that has ended.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] if this client has no such server.
    pub fn reconnected(&self, name: &str, peer: &Peer<RoleClient>) -> Result<(), RegistryError> {
        let server = self.shared.exchange.servers.get(name);
        let server = server.ok_or_else(|| RegistryError::Unknown(name.into()))?;
        server.peer.store(Arc::new(peer.clone()));
        server.hints.outdated();
        Ok(())
    }

    /// The engine behind it.
    pub fn engine(&self) -> &Engine {
        &self.shared.engine
    }
}

impl fmt::Debug for FallbackClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackClient")
            .field("group", &self.shared.group)
            .field("servers", &self.shared.exchange.servers.keys())
            .finish_non_exhaustive()
    }
}

/// The result of an outcome, with its history in `_meta` where it has one.
fn labelled(outcome: Outcome<CallToolResponse>) -> Result<CallToolResult, CallToolError> {
    let history = (outcome.trouble.is_some() || outcome.degraded.is_some()).then(|| {
        json!({
            "served_by": outcome.served_by, "degraded": outcome.degraded,
            "attempts": outcome.attempts(), "call": outcome.id,
        })
    });
    let CallToolResponse::Complete(mut result) = outcome.answer else {
        return Err(CallToolError::unexpected(outcome.id));
    };
    if let Some(history) = history {
        label(&mut result, history);
    }
    Ok(result)
}

fn label(result: &mut CallToolResult, history: Value) {
    let meta = result.meta.get_or_insert_with(MetaObject::new);
    meta.insert(SERVED_META.to_owned(), history);
}

/// What a [`FallbackClient`] is made of.
#[must_use = "a builder does nothing until it builds"]
pub struct FallbackClientBuilder {
    engine: Engine,
    group: Arc<str>,
    servers: Vec<(Place, Peer<RoleClient>)>,
    operations: OperationRules,
}

/// Which target a server is.
enum Place {
    New(Box<TargetSpec>),
    Known(Arc<str>),
}

impl FallbackClientBuilder {
    /// Adds a server. One added earlier is preferred; none is trusted.
    pub fn server(self, name: impl Into<Arc<str>>, peer: &Peer<RoleClient>) -> Self {
        let before = i32::try_from(self.servers.len()).unwrap_or(i32::MAX);
        let spec = TargetSpec::service(name, self.group.clone()).priority(-before);
        self.target(spec, peer)
    }

    /// Adds a server with a priority, a weight or trust of its own. It becomes a member of this
    /// client's group whatever group it names.
    pub fn target(mut self, mut spec: TargetSpec, peer: &Peer<RoleClient>) -> Self {
        spec.group = self.group.clone();
        self.servers
            .push((Place::New(Box::new(spec)), peer.clone()));
        self
    }

    /// Adds the connection to a server that is a target of the engine already, by its configuration.
    pub fn attach(mut self, name: impl Into<Arc<str>>, peer: &Peer<RoleClient>) -> Self {
        self.servers.push((Place::Known(name.into()), peer.clone()));
        self
    }

    /// What the operator says of tools; it goes before what servers say.
    pub fn operations(mut self, operations: OperationRules) -> Self {
        self.operations = operations;
        self
    }

    /// Registers the servers and makes the client.
    ///
    /// # Errors
    /// [`RegistryError`] if the engine has a target of one of the names already, or, for
    /// [`attach`](Self::attach), has none in this group. Then none is registered.
    pub fn build(self) -> Result<FallbackClient, RegistryError> {
        let registry = self.engine.registry().clone();
        let mut servers = HashMap::new();
        // Dropped on an error, it takes out what it has registered.
        let mut shared = Shared {
            engine: self.engine,
            group: self.group,
            exchange: McpExchange::default(),
            registered: Vec::new(),
        };
        for (place, peer) in self.servers {
            let target = match place {
                Place::New(spec) => {
                    let target = registry.register(*spec)?;
                    shared.registered.push(target.name.clone());
                    target
                }
                Place::Known(name) => registry
                    .get(&name)
                    .filter(|target| target.spec.group == shared.group)
                    .ok_or(RegistryError::Unknown(name))?,
            };
            let server = Server {
                peer: ArcSwap::from_pointee(peer),
                hints: Hints::new(target.spec.trusted),
            };
            servers.insert(target.name.clone(), Arc::new(server));
        }
        shared.exchange = McpExchange {
            servers,
            operations: self.operations,
        };
        Ok(FallbackClient {
            shared: Arc::new(shared),
        })
    }
}

impl fmt::Debug for FallbackClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackClientBuilder")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}
