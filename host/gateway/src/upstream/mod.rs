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
mod meta;
pub(crate) mod sse;
mod stdio;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::envelope::{Json, Payload};
use crate::telemetry::Good;
pub use error::{Fault, UpstreamError};
pub(crate) use meta::{META_SERVER, META_VERSION, name_of, server_info};

/// The newest revision without sessions, and the newest with them.
pub(crate) const MODERN: &str = "2026-07-28";
pub(crate) const LEGACY: &str = "2025-11-25";

/// The largest message accepted from a server or a client.
pub(crate) const MAX_MESSAGE_BYTES: usize = 32 * 1024 * 1024;
/// How long a server may take to be connected to and to say who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
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
}

/// What a server says without being asked.
#[derive(Debug, Clone)]
pub(crate) struct Unasked {
    pub(crate) service: Arc<str>,
    pub(crate) method: Box<str>,
    pub(crate) params: Option<Json>,
}

/// What is heard of servers besides answers.
#[derive(Debug, Clone)]
pub(crate) enum Heard {
    /// One said something without being asked.
    Unasked(Unasked),
    /// One has said who it is: it is new, or it was away.
    Greeted(Arc<str>),
    /// One keeps ending before it is of any use.
    Crashing(Crash),
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

/// One server and the connection to it, which ends when nobody holds it any more.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) spec: ServiceSpec,
    link: Link,
    good: Good,
}

#[derive(Debug, Clone)]
enum Link {
    Stdio(Arc<stdio::Stdio>),
    Http(Arc<http::Http>),
}

impl Upstream {
    pub(crate) fn new(
        spec: ServiceSpec,
        heard: mpsc::Sender<Heard>,
    ) -> Result<Self, reqwest::Error> {
        let link = match &spec.transport {
            TransportSpec::Stdio { .. } => Link::Stdio(Arc::new(stdio::Stdio::new(&spec, heard))),
            TransportSpec::Http { url, headers } => Link::Http(Arc::new(http::Http::new(
                spec.name.clone(),
                url.clone(),
                headers.clone(),
                heard,
            )?)),
        };
        Ok(Self {
            spec,
            link,
            good: Good::default(),
        })
    }

    /// The same server under a new description; the connection stays where it is reached as before.
    pub(crate) fn with_spec(&self, spec: ServiceSpec) -> Option<Self> {
        let same = self.spec.name == spec.name && self.spec.transport == spec.transport;
        same.then(|| Self {
            link: self.link.clone(),
            good: Good::default(),
            spec,
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
        let (outcome, transport) = match &self.link {
            Link::Stdio(stdio) => {
                let outcome = stdio.request(method, params, wiring, alive).await;
                (outcome, "pipe")
            }
            Link::Http(http) => {
                let outcome = http.request(method, params, wiring, alive).await;
                (outcome, "tcp")
            }
        };
        self.good.asked(
            &self.spec.name,
            transport,
            method,
            &outcome,
            began.elapsed(),
        );
        outcome
    }

    /// Who the server is; connects to it where that has not been done.
    pub(crate) async fn peer(&self) -> Result<Arc<Peer>, UpstreamError> {
        match &self.link {
            Link::Stdio(stdio) => stdio.peer().await,
            Link::Http(http) => http.peer().await,
        }
    }

    /// Who the server is, if it is connected.
    pub(crate) fn known_peer(&self) -> Option<Arc<Peer>> {
        match &self.link {
            Link::Stdio(stdio) => stdio.known_peer(),
            Link::Http(http) => http.known_peer(),
        }
    }

    /// Asks for a sign of life in the server's own era: `server/discover` or `ping`. An answer to `ping`
    /// is one even where it is an error. A server that no longer answers in its era was exchanged for
    /// another one: it is greeted anew.
    pub(crate) async fn probe(&self) -> Result<(), UpstreamError> {
        let Some(peer) = self.known_peer() else {
            // To say who it is, is a sign of life.
            return self.peer().await.map(drop);
        };
        let method = if peer.modern {
            "server/discover"
        } else {
            "ping"
        };
        let is_answer = |answer: &Payload| !peer.modern || discovered(answer).is_some();
        match self.request(method, None, &Wiring::default(), &|| {}).await {
            Ok(answer) if is_answer(&answer) => Ok(()),
            // It has been greeted anew over this.
            Err(UpstreamError::SessionExpired { .. }) => Ok(()),
            // 400: the version; 404 and 405: the endpoint. Another era speaks there now, or nobody does.
            Ok(_)
            | Err(UpstreamError::Http {
                status: 400 | 404 | 405,
                ..
            }) if peer.modern => {
                self.greet_anew(&peer);
                self.peer().await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Forgets who the server is, unless it has been greeted since.
    fn greet_anew(&self, peer: &Arc<Peer>) {
        match &self.link {
            Link::Stdio(stdio) => stdio.end_if(peer),
            Link::Http(http) => http.forget_if(peer),
        }
    }

    /// Ends the connection; a child process is killed.
    pub(crate) async fn close(&self) {
        match &self.link {
            Link::Stdio(stdio) => stdio.close().await,
            Link::Http(http) => http.close().await,
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

/// The parameters of `initialize`. The gateway offers no capability of a client: requests a server
/// makes of its client have nobody to go to on a shared connection.
fn initialize_params() -> Json {
    Json::of(&serde_json::json!({
        "protocolVersion": LEGACY, "capabilities": {}, "clientInfo": server_info(),
    }))
}
