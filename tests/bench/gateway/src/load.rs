//! Clients that call a tool over and over, and check each answer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::pipe::Pipe;

/// How long each turn takes, and how many there are.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) turn: Duration,
    pub(crate) turns: usize,
}

/// Where clients send their calls.
#[derive(Clone, Debug)]
pub(crate) enum Endpoint {
    Http {
        url: String,
        /// The tool, as it is called there.
        tool: String,
    },
    /// The program itself, over its standard input and output.
    Pipe(PathBuf),
}

/// One client.
enum Caller {
    /// With a session of its own.
    Http(Session),
    Pipe(Arc<Pipe>),
}

impl Caller {
    async fn call(&self, id: u64, size: usize) -> anyhow::Result<()> {
        match self {
            Self::Http(session) => session.call(id, size).await,
            Self::Pipe(pipe) => pipe.call(size).await,
        }
    }
}

struct Session {
    client: Client,
    url: String,
    tool: String,
    id: Option<String>,
}

impl Session {
    async fn open(client: &Client, url: &str, tool: &str) -> anyhow::Result<Self> {
        let mut session = Self {
            client: client.clone(),
            url: url.to_owned(),
            tool: tool.to_owned(),
            id: None,
        };
        let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": { "name": "bench", "version": "1" } });
        let response = session.post("initialize", hello, Some(0)).send().await?;
        let id = response.headers().get("mcp-session-id");
        session.id = id.and_then(|id| id.to_str().ok()).map(str::to_owned);
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "initialize: {status}: {text}");
        let greeted = session.post("notifications/initialized", json!({}), None);
        greeted.send().await?.bytes().await?;
        Ok(session)
    }

    fn post(&self, method: &str, params: Value, id: Option<u64>) -> RequestBuilder {
        let mut message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        if let Some(id) = id {
            message["id"] = id.into();
        }
        let mut request = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(message.to_string());
        if method != "initialize" {
            request = request.header("mcp-protocol-version", "2025-11-25");
        }
        if let Some(session) = &self.id {
            request = request.header("mcp-session-id", session);
        }
        request
    }

    /// One call, its answer checked.
    async fn call(&self, id: u64, size: usize) -> anyhow::Result<()> {
        let params = json!({ "name": self.tool, "arguments": { "size": size } });
        let response = self.post("tools/call", params, Some(id)).send().await?;
        let status = response.status();
        let body = response.bytes().await?;
        let counted = body.iter().filter(|byte| **byte == b'x').count();
        ensure!(
            status.is_success() && counted >= size,
            "{status}: {}",
            String::from_utf8_lossy(&body[..body.len().min(300)])
        );
        Ok(())
    }
}

/// What one turn came to.
pub(crate) struct Turn {
    /// Nanoseconds of each call.
    pub(crate) times: Vec<u64>,
    pub(crate) per_second: f64,
}

/// Waits until calls are answered there, and looks so often.
pub(crate) async fn until_ready(endpoint: &Endpoint, pause: Duration) -> anyhow::Result<()> {
    let client = client()?;
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let tried = async {
            let caller = match endpoint {
                Endpoint::Http { url, tool } => {
                    Caller::Http(Session::open(&client, url, tool).await?)
                }
                Endpoint::Pipe(program) => Caller::Pipe(Arc::new(Pipe::open(program)?)),
            };
            caller.call(1, 100).await
        };
        match tokio::time::timeout(Duration::from_secs(5), tried).await {
            Ok(Ok(())) => return Ok(()),
            tried if Instant::now() > end => {
                return tried.context("no answer")?.context("no good answer");
            }
            _ => tokio::time::sleep(pause).await,
        }
    }
}

fn client() -> anyhow::Result<Client> {
    // As a client of its own has: connections are kept.
    Ok(Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(1024)
        .tcp_nodelay(true)
        .build()?)
}

/// Clients that are ready to call.
pub(crate) struct Load {
    callers: Vec<Arc<Caller>>,
    size: usize,
}

impl Load {
    pub(crate) async fn open(
        endpoint: &Endpoint,
        clients: usize,
        size: usize,
    ) -> anyhow::Result<Self> {
        let mut callers = Vec::new();
        match endpoint {
            Endpoint::Http { url, tool } => {
                let client = client()?;
                for _ in 0..clients {
                    callers.push(Arc::new(Caller::Http(
                        Session::open(&client, url, tool).await?,
                    )));
                }
            }
            Endpoint::Pipe(program) => {
                let pipe = Arc::new(Pipe::open(program)?);
                callers.extend((0..clients).map(|_| Arc::new(Caller::Pipe(pipe.clone()))));
            }
        }
        let load = Self { callers, size };
        // Connections, caches and just-in-time compilers.
        load.turn(Duration::from_millis(300)).await?;
        Ok(load)
    }

    /// Every client calls, one call after another, for as long as this.
    pub(crate) async fn turn(&self, time: Duration) -> anyhow::Result<Turn> {
        let began = Instant::now();
        let clients: Vec<_> = self
            .callers
            .iter()
            .map(|caller| {
                let (caller, size) = (caller.clone(), self.size);
                tokio::spawn(async move {
                    let mut times = Vec::new();
                    while began.elapsed() < time {
                        let asked = Instant::now();
                        caller.call(times.len() as u64 + 1, size).await?;
                        times.push(u64::try_from(asked.elapsed().as_nanos())?);
                    }
                    anyhow::Ok(times)
                })
            })
            .collect();
        let mut times = Vec::new();
        for client in clients {
            times.extend(client.await??);
        }
        let per_second = times.len() as f64 / began.elapsed().as_secs_f64();
        Ok(Turn { times, per_second })
    }
}
