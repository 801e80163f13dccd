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
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use backstop::mcp::rpc;
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::client::{Client, LogLevel};
use crate::envelope::{Json, Payload};
use crate::model::Sampling;
use crate::telemetry::Good;
use crate::workers::Workers;
pub use error::{Fault, UpstreamError};
pub use http::{OAuthSpec, Reread};
pub(crate) use link::Link;
pub(crate) use meta::{
    META_CAPABILITIES, META_SERVER, META_SUBSCRIPTION, META_VERSION, field_value, name_of, plain,
    server_info,
};
pub(crate) use side::{Heard, Side, Unasked};
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
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, PartialEq)]
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
        /// Where they come from, if they may be others by the time the server refuses them.
        reread: Option<Reread>,
        /// How to sign in where it asks for that.
        oauth: Option<Box<OAuthSpec>>,
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
    /// Header fields a server may want (`Mcp-Param-*`); `None` where the client has no way to send any.
    pub(crate) headers: Option<Vec<(HeaderName, HeaderValue)>>,
    /// Who asks, where that is known.
    pub(crate) client: Option<Arc<Client>>,
}

/// A child process that ended early, not for the first time in a row.
#[derive(Debug, Clone)]
pub(crate) struct Crash {
    pub(crate) service: Arc<str>,
    pub(crate) starts: u32,
    pub(crate) reason: String,
    pub(crate) stderr: Vec<String>,
    pub(crate) again_after: Duration,
}

/// The only client there will ever be, where a gateway serves one only.
#[derive(Debug, Default)]
pub(crate) struct Sole {
    expected: AtomicBool,
    client: OnceLock<Weak<Client>>,
}

impl Sole {
    /// One client only will be served: no connection is made before it has said who it is.
    pub(crate) fn expect(&self) {
        self.expected.store(true, Ordering::Relaxed);
    }

    /// This is the client; every connection is its own.
    pub(crate) fn is(&self, client: &Arc<Client>) {
        let _ = self.client.set(Arc::downgrade(client));
    }

    fn client(&self) -> Option<Arc<Client>> {
        self.client.get().and_then(Weak::upgrade)
    }
}

/// One server and the connections to it, which end when nobody holds it any more.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) spec: ServiceSpec,
    connections: Arc<Connections>,
    good: Good,
}

/// What stays when the same server gets a new description.
#[derive(Debug)]
struct Connections {
    maker: link::Maker,
    shared: Arc<Link>,
    /// Those of one client each.
    owned: Mutex<Vec<Weak<Link>>>,
    /// What the clients that share a connection want logged.
    log_level: Arc<LogLevel>,
    processes: Arc<Semaphore>,
    sole: Arc<Sole>,
}

impl Upstream {
    /// `before` is the server of that name that was reached in another way: what clients watch there and
    /// want logged stays.
    pub(crate) fn new(
        spec: ServiceSpec,
        heard: mpsc::Sender<Heard>,
        sole: Arc<Sole>,
        sampling: Arc<Sampling>,
        workers: Arc<OnceLock<Workers>>,
        before: Option<&Self>,
    ) -> Result<Self, reqwest::Error> {
        let maker = link::Maker::new(&spec, workers)?;
        let before = before.map(|before| &before.connections);
        let log_level = before
            .map(|before| before.log_level.clone())
            .unwrap_or_default();
        let side = Side::shared(heard, log_level.clone(), sampling);
        let shared = before.map(|before| &*before.shared);
        let connections = Connections {
            shared: maker.make(&spec, side, shared, None),
            maker,
            owned: Mutex::default(),
            log_level,
            processes: Arc::new(Semaphore::new(PROCESSES)),
            sole,
        };
        Ok(Self {
            spec,
            connections: Arc::new(connections),
            good: Good::default(),
        })
    }

    /// The same server under a new description; the connections stay where it is reached as before.
    pub(crate) fn with_spec(&self, spec: ServiceSpec) -> Option<Self> {
        let same = self.spec.name == spec.name && self.spec.transport == spec.transport;
        same.then(|| Self {
            connections: self.connections.clone(),
            good: Good::default(),
            spec,
        })
    }

    /// What answers for clients that cannot sample.
    pub(crate) fn sampling(&self) -> &Sampling {
        self.connections.shared.side().sampling()
    }

    /// What the clients that share a connection want logged.
    pub(crate) fn log_level(&self) -> &LogLevel {
        &self.connections.log_level
    }

    /// Whether the only client there will be has not been heard of yet.
    pub(crate) fn is_waiting(&self) -> bool {
        let sole = &self.connections.sole;
        let open = sole
            .client()
            .is_some_and(|client| client.has_lane(&self.spec.name));
        sole.expected.load(Ordering::Relaxed) && !open
    }

    /// The connection a client's requests travel over.
    pub(crate) fn link(&self, client: Option<&Arc<Client>>) -> Arc<Link> {
        let connections = &self.connections;
        let sole = connections.sole.client();
        let own = client.filter(|client| client.can_be_asked());
        let Some(client) = sole.as_ref().or(own) else {
            return connections.shared.clone();
        };
        let lane = client.lane(&self.spec.name, &connections.shared, |before| {
            let permit = match (&self.spec.transport, &sole) {
                (TransportSpec::Stdio { .. }, None) => {
                    Some(connections.processes.clone().try_acquire_owned().ok()?)
                }
                _ => None,
            };
            let side = connections.shared.side().of(client);
            let lane = connections.maker.make(&self.spec, side, before, permit);
            let mut owned = connections.owned();
            owned.retain(|lane| lane.strong_count() > 0);
            owned.push(Arc::downgrade(&lane));
            Some(lane)
        });
        lane.unwrap_or_else(|| {
            tracing::warn!(service = %self.spec.name, "{PROCESSES} clients have a process of their own; this one shares");
            connections.shared.clone()
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
        let began = Instant::now();
        let link = self.link(wiring.client.as_ref());
        let name = &self.spec.name;
        let outcome = match method {
            "resources/subscribe" => link.subscribe(name, params, wiring, alive).await,
            "resources/unsubscribe" => link.end_subscription(params, wiring, alive).await,
            _ => link.request(method, params, wiring, alive).await,
        };
        let transport = match &self.spec.transport {
            TransportSpec::Stdio { .. } => "pipe",
            TransportSpec::Http { .. } => "tcp",
        };
        self.good
            .asked(name, transport, method, &outcome, began.elapsed());
        outcome
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

    /// Asks for a sign of life in the server's own era: `server/discover` or `ping`. An answer to `ping`
    /// is one even where it is an error. A server that no longer answers in its era was exchanged for
    /// another one: it is greeted anew.
    pub(crate) async fn probe(&self) -> Result<(), UpstreamError> {
        let link = self.link(None);
        let Some(peer) = link.known_peer() else {
            // To say who it is, is a sign of life.
            return link.peer().await.map(drop);
        };
        let method = if peer.modern {
            "server/discover"
        } else {
            "ping"
        };
        let is_answer = |answer: &Payload| !peer.modern || discovered(answer).is_some();
        match link.request(method, None, &Wiring::default(), &|| {}).await {
            Ok(answer) if is_answer(&answer) => Ok(()),
            // It has been greeted anew over this.
            Err(UpstreamError::SessionExpired { .. }) => Ok(()),
            // 400: the version; 404 and 405: the endpoint. Another era speaks there now, or nobody does.
            Ok(_)
            | Err(UpstreamError::Http {
                status: 400 | 404 | 405,
                ..
            }) if peer.modern => {
                link.forget(&peer);
                link.peer().await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Asks for what clients watch at a server that was reached in another way before.
    pub(crate) async fn take_over(&self, before: &Self) {
        let owners: Vec<_> = before
            .connections
            .owned()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let owners = owners.iter().filter_map(|lane| lane.side().owner());
        let mut links = vec![self.connections.shared.clone()];
        links.extend(owners.map(|owner| self.link(Some(&owner))));
        futures_util::future::join_all(links.iter().map(|link| link.resume())).await;
    }

    /// Ends the connections; child processes are killed.
    pub(crate) async fn close(&self) {
        let owned: Vec<_> = self.connections.owned().drain(..).collect();
        let owned = owned.iter().filter_map(Weak::upgrade);
        let all = owned.chain([self.connections.shared.clone()]);
        futures_util::future::join_all(all.map(|link| async move { link.close().await })).await;
    }
}

impl Connections {
    fn owned(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Link>>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        // Clients may hold theirs for long yet.
        let owned: Vec<_> = self.owned().drain(..).collect();
        for lane in owned.iter().filter_map(Weak::upgrade) {
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { lane.close().await });
            }
        }
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

/// Whether the newest version is refused, and named among those that are spoken.
fn refuses_what_it_speaks(answer: &Payload) -> bool {
    let Payload::Error(error) = answer else {
        return false;
    };
    let spoken = error
        .member("data")
        .and_then(|data| data.member("supported"));
    answer.error_code() == Some(rpc::UNSUPPORTED_PROTOCOL_VERSION)
        && spoken.is_some_and(|spoken| {
            spoken
                .elements()
                .iter()
                .any(|version| version.read::<String>().is_ok_and(|v| v == MODERN))
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
