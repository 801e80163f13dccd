//! Clients that call a tool over and over, and check each answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

/// How long each turn takes, and how many there are.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) turn: Duration,
    pub(crate) turns: usize,
}

/// Where clients send their calls.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) url: String,
    /// The tool, as it is called there.
    pub(crate) tool: String,
}

/// One client with a session of its own.
struct Session {
    client: Client,
    endpoint: Arc<Endpoint>,
    id: Option<String>,
}

impl Session {
    async fn open(client: &Client, endpoint: &Arc<Endpoint>) -> anyhow::Result<Self> {
        let mut session = Self {
            client: client.clone(),
            endpoint: endpoint.clone(),
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
            .post(&self.endpoint.url)
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
        let params = json!({ "name": self.endpoint.tool, "arguments": { "size": size } });
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

/// Waits until calls are answered there.
pub(crate) async fn until_ready(endpoint: &Arc<Endpoint>) -> anyhow::Result<()> {
    let client = client()?;
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let tried = async {
            let session = Session::open(&client, endpoint).await?;
            session.call(1, 100).await
        };
        match tokio::time::timeout(Duration::from_secs(5), tried).await {
            Ok(Ok(())) => return Ok(()),
            tried if Instant::now() > end => {
                return tried.context("no answer")?.context("no good answer");
            }
            _ => tokio::time::sleep(Duration::from_millis(200)).await,
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

/// Clients that have their sessions, ready to call.
pub(crate) struct Load {
    sessions: Vec<Arc<Session>>,
    size: usize,
}

impl Load {
    pub(crate) async fn open(
        endpoint: &Arc<Endpoint>,
        clients: usize,
        size: usize,
    ) -> anyhow::Result<Self> {
        let client = client()?;
        let mut sessions = Vec::new();
        for _ in 0..clients {
            sessions.push(Arc::new(Session::open(&client, endpoint).await?));
        }
        let load = Self { sessions, size };
        // Connections, caches and just-in-time compilers.
        load.turn(Duration::from_millis(300)).await?;
        Ok(load)
    }

    /// Every client calls, one call after another, for as long as this.
    pub(crate) async fn turn(&self, time: Duration) -> anyhow::Result<Turn> {
        let began = Instant::now();
        let clients: Vec<_> = self
            .sessions
            .iter()
            .map(|session| {
                let (session, size) = (session.clone(), self.size);
                tokio::spawn(async move {
                    let mut times = Vec::new();
                    while began.elapsed() < time {
                        let asked = Instant::now();
                        session.call(times.len() as u64 + 1, size).await?;
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
