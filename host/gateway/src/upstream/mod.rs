//! Servers behind the gateway: one shared connection per service, over which the requests of every
//! client travel under ids of the gateway's own.
//!
//! An upstream knows how to reach a server and how to speak its era of MCP. It never retries a
//! request: the engine has the only retry loop.
//!
//! The message layer is the gateway's own. rmcp's HTTP transports are bound to its typed messages
//! (`StreamableHttpClient` takes a `ClientJsonRpcMessage`, `TokioChildProcess` is a transport of
//! `RoleClient` only, and `JsonRpcMessage` is buffered while its shape is found out), so bytes
//! cannot pass through them unchanged.

mod error;
pub(crate) mod http;
mod link;
mod meta;
mod side;
pub(crate) mod sse;
mod stdio;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};

use crate::client::{Client, LogLevel};
use crate::envelope::{Json, Payload};
pub use error::{Fault, UpstreamError};
pub(crate) use link::Link;
pub(crate) use meta::{
    META_CAPABILITIES, META_SERVER, META_SUBSCRIPTION, META_VERSION, name_of, server_info,
};
pub(crate) use side::{Side, Unasked};
pub(crate) use watch::Watching;

/// The newest revision without sessions, and the newest with them.
pub(crate) const MODERN: &str = "2026-07-28";
pub(crate) const LEGACY: &str = "2025-11-25";

/// The largest message accepted from a server or a client.
pub(crate) const MAX_MESSAGE_BYTES: usize = 32 * 1024 * 1024;
/// How long a server may take to be connected to and to say who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Clients that may have a process of a server each; further ones share one, and cannot be asked
/// questions by it.
const PROCESSES: usize = 64;
/// How long a server may think about `server/discover` before it is taken for one that knows only
/// `initialize`.
const DISCOVER_TIMEOUT: Duration = Duration::from_secs(5);

/// One server the gateway may ask.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    /// Its name: the name of the engine's target.
    pub name: Arc<str>,
    /// The group it belongs to.
    pub group: Arc<str>,
    /// Whether its tool annotations are believed.
    pub trusted: bool,
    /// How it is reached.
    pub transport: TransportSpec,
}

/// How a server is reached.
#[derive(Debug, Clone)]
pub enum TransportSpec {
    /// A child process that speaks over its standard input and output.
    Stdio {
        /// The program.
        command: String,
        /// Its arguments.
        args: Vec<String>,
        /// Environment variables besides the gateway's own.
        env: BTreeMap<String, String>,
        /// Its working folder; the gateway's where `None`.
        cwd: Option<PathBuf>,
    },
    /// Streamable HTTP.
    Http {
        /// The endpoint.
        url: reqwest::Url,
        /// Header fields for every request.
        headers: HeaderMap,
    },
}

/// Which revision of MCP a server speaks, and what it can do.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) modern: bool,
    pub(crate) capabilities: Json,
    pub(crate) instructions: Option<String>,
}

/// What a request carries besides its method and parameters.
#[derive(Debug, Default, Clone)]
pub(crate) struct Wiring {
    /// The client's progress token.
    pub(crate) token: Option<Json>,
    /// Where notifications about the request go.
    pub(crate) out: Option<mpsc::Sender<Bytes>>,
    /// Header fields the client sent that a server may want (`Mcp-Param-*`).
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Who asks, where that is known.
    pub(crate) client: Option<Arc<Client>>,
}

/// One server and the connections to it.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) spec: ServiceSpec,
    maker: link::Maker,
    shared: Arc<Link>,
    /// What the clients that share a connection want logged.
    pub(crate) log_level: Arc<LogLevel>,
    processes: Arc<Semaphore>,
    /// Whether one client only is ever served, and which.
    single: AtomicBool,
    sole: OnceLock<Weak<Client>>,
}

impl Upstream {
    pub(crate) fn new(
        spec: ServiceSpec,
        unasked: mpsc::Sender<Unasked>,
    ) -> Result<Self, reqwest::Error> {
        let maker = link::Maker::new(&spec)?;
        let log_level = Arc::new(LogLevel::default());
        let side = Side::shared(unasked, log_level.clone());
        Ok(Self {
            shared: Arc::new(maker.make(&spec, side, None)),
            spec,
            maker,
            log_level,
            processes: Arc::new(Semaphore::new(PROCESSES)),
            single: AtomicBool::new(false),
            sole: OnceLock::new(),
        })
    }

    /// One client only will be served: no connection is made before it has said who it is.
    pub(crate) fn expect_one_client(&self) {
        self.single.store(true, Ordering::Relaxed);
    }

    /// The only client there will be; every connection is its own.
    pub(crate) fn belong_to(&self, client: &Arc<Client>) {
        let _ = self.sole.set(Arc::downgrade(client));
    }

    /// Whether the only client there will be has not been heard of yet.
    pub(crate) fn is_waiting(&self) -> bool {
        let spoken = self.sole.get().and_then(Weak::upgrade);
        let open = spoken.is_some_and(|client| client.lane(&self.spec.name, || None).is_some());
        self.single.load(Ordering::Relaxed) && !open
    }

    /// The connection a client's requests travel over.
    pub(crate) fn link(&self, client: Option<&Arc<Client>>) -> Arc<Link> {
        let sole = self.sole.get().and_then(Weak::upgrade);
        let own = client.filter(|client| client.can_be_asked());
        let Some(client) = sole.as_ref().or(own) else {
            return self.shared.clone();
        };
        let lane = client.lane(&self.spec.name, || {
            let permit = match (&self.spec.transport, &sole) {
                (TransportSpec::Stdio { .. }, None) => {
                    Some(self.processes.clone().try_acquire_owned().ok()?)
                }
                _ => None,
            };
            let side = self.shared.side().of(client);
            Some(self.maker.make(&self.spec, side, permit))
        });
        lane.unwrap_or_else(|| {
            tracing::warn!(service = %self.spec.name, "{PROCESSES} clients have a process of their own; this one shares");
            self.shared.clone()
        })
    }

    /// Sends one request and waits for its answer. `alive` is called for every sign of progress.
    ///
    /// Dropping the future cancels the request at the server.
    pub(crate) async fn request(
        &self,
        method: &str,
        params: Option<&Json>,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Result<Payload, UpstreamError> {
        let link = self.link(wiring.client.as_ref());
        match method {
            "resources/subscribe" => link.subscribe(&self.spec.name, params, wiring, alive).await,
            "resources/unsubscribe" => link.end_subscription(params, wiring, alive).await,
            _ => link.request(method, params, wiring, alive).await,
        }
    }

    /// Who the server is, to this client; connects to it where that has not been done.
    pub(crate) async fn peer(
        &self,
        client: Option<&Arc<Client>>,
    ) -> Result<Arc<Peer>, UpstreamError> {
        self.link(client).peer().await
    }

    /// Who the server is, if it is connected.
    pub(crate) fn known_peer(&self, client: Option<&Arc<Client>>) -> Option<Arc<Peer>> {
        self.link(client).known_peer()
    }

    /// Asks for a sign of life in the server's own era: `server/discover` or `ping`. A JSON-RPC
    /// error is one, too.
    pub(crate) async fn probe(&self) -> Result<(), UpstreamError> {
        let link = self.link(None);
        let method = if link.peer().await?.modern {
            "server/discover"
        } else {
            "ping"
        };
        link.request(method, None, &Wiring::default(), &|| {})
            .await
            .map(drop)
    }

    /// Ends the shared connection; a child process is killed. Connections of one client end with it.
    pub(crate) async fn close(&self) {
        let sole = self.sole.get().and_then(Weak::upgrade);
        for lane in sole.iter().flat_map(|client| client.lanes()) {
            lane.close().await;
        }
        self.shared.close().await;
    }
}

/// What both handshakes tell.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hello {
    #[serde(default)]
    supported_versions: Vec<String>,
    protocol_version: Option<String>,
    instructions: Option<String>,
}

/// Reads the answer to `server/discover`: `None` where the server does not speak the modern era.
fn discovered(answer: &Payload) -> Option<Peer> {
    let Payload::Result(result) = answer else {
        return None;
    };
    let hello: Hello = result.read().ok()?;
    hello
        .supported_versions
        .iter()
        .any(|version| version == MODERN)
        .then(|| Peer {
            modern: true,
            capabilities: result
                .member("capabilities")
                .unwrap_or_else(|| Json::of(&serde_json::json!({}))),
            instructions: hello.instructions,
        })
}

/// Reads the answer to `initialize`: the peer and the version it chose.
fn initialized(service: &Arc<str>, answer: &Payload) -> Result<(Peer, String), UpstreamError> {
    let garbage = |what: String| UpstreamError::fault(service, Fault::Garbage, what);
    let result = match answer {
        Payload::Result(result) => result,
        Payload::Error(error) => {
            return Err(garbage(format!("`initialize` was refused: {error:?}")));
        }
    };
    let hello: Hello = result
        .read()
        .map_err(|error| garbage(format!("`initialize`: {error}")))?;
    let version = hello
        .protocol_version
        .ok_or_else(|| garbage("`initialize` names no version".into()))?;
    let peer = Peer {
        modern: false,
        capabilities: result
            .member("capabilities")
            .unwrap_or_else(|| Json::of(&serde_json::json!({}))),
        instructions: hello.instructions,
    };
    Ok((peer, version))
}

/// The parameters of `initialize`, where no client has said them. A connection many share offers no
/// capability of a client: the questions of a server would have nobody to go to.
fn initialize_params() -> Json {
    Json::of(&serde_json::json!({
        "protocolVersion": LEGACY, "capabilities": {}, "clientInfo": server_info(),
    }))
}
