//! Servers behind the gateway, and a gateway over them.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backstop::registry::TargetSpec;
use backstop::strategy::{Action, Decision, Entry, Situation, Strategy, StrategyInfo};
use backstop::{Engine, Kind};
use backstop_gateway::upstream::{ServiceSpec, TransportSpec};
use backstop_gateway::{Gateway, HttpOptions};
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{CallToolResult, ContentBlock, ProgressNotificationParam, RequestMetaObject};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{Peer, RoleServer, schemars, tool, tool_router};
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the tests can see of a fixture.
#[derive(Default)]
pub struct Seen {
    pub started: AtomicU32,
    pub cancelled: AtomicU32,
    pub worked: AtomicU32,
}

#[derive(Clone, Default)]
pub struct Fixture {
    pub seen: Arc<Seen>,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
pub struct Text {
    text: String,
}

#[tool_router(server_handler)]
impl Fixture {
    #[tool(annotations(read_only_hint = true))]
    async fn echo(&self, Parameters(Text { text }): Parameters<Text>) -> String {
        text
    }

    #[tool]
    async fn fail(&self) -> CallToolResult {
        CallToolResult::error(vec![ContentBlock::text("the file is empty")])
    }

    #[tool]
    async fn refuse(&self) -> Result<String, rmcp::ErrorData> {
        Err(rmcp::ErrorData::new(
            rmcp::model::ErrorCode(7),
            "not today",
            Some(json!({ "vendor": [1, 2] })),
        ))
    }

    #[tool]
    async fn work(&self, meta: RequestMetaObject, client: Peer<RoleServer>) -> String {
        let token = meta.get_progress_token().expect("a progress token");
        for step in 1..=3 {
            let progress =
                ProgressNotificationParam::new(token.clone(), f64::from(step)).with_total(3.0);
            client.notify_progress(progress).await.unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        self.seen.worked.fetch_add(1, Ordering::SeqCst);
        "worked".into()
    }

    #[tool]
    async fn hang(&self, cancelled: CancellationToken) -> String {
        self.seen.started.fetch_add(1, Ordering::SeqCst);
        cancelled.cancelled().await;
        self.seen.cancelled.fetch_add(1, Ordering::SeqCst);
        "cancelled".into()
    }

    #[tool]
    async fn babble(&self) -> String {
        println!("not a message {{");
        "babbled".into()
    }

    #[tool]
    async fn pid(&self) -> String {
        std::process::id().to_string()
    }

    #[tool]
    async fn exit(&self) -> String {
        std::process::exit(3)
    }
}

/// A streamable HTTP server of rmcp on loopback; it ends with the guard.
pub async fn http_server(seen: Arc<Seen>) -> (String, tokio_util::sync::DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let service = StreamableHttpService::new(
        move || Ok(Fixture { seen: seen.clone() }),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default().with_cancellation_token(stop.child_token()),
    );
    let app = axum::Router::new().nest_service("/mcp", service);
    tokio::spawn(
        stop.clone()
            .run_until_cancelled_owned(async move { axum::serve(listener, app).await }),
    );
    (url, stop.drop_guard())
}

pub fn http(name: &str, url: &str) -> ServiceSpec {
    let transport = TransportSpec::Http {
        reread: None,
        oauth: None,
        url: url.parse().unwrap(),
        headers: Default::default(),
    };
    ServiceSpec {
        name: name.into(),
        group: "g".into(),
        trusted: true,
        transport,
    }
}

/// This test program as a child that is an MCP server: see `child_server`. The test harness writes
/// lines that are no messages before it, which the gateway must pass over.
pub fn child(name: &str) -> ServiceSpec {
    let args = ["--ignored", "--exact", "child_server", "--nocapture"];
    let transport = TransportSpec::Stdio {
        command: std::env::current_exe().unwrap().to_str().unwrap().into(),
        args: args.map(String::from).to_vec(),
        env: BTreeMap::from([("BACKSTOP_TEST_CHILD".into(), "1".into())]),
        cwd: None,
    };
    ServiceSpec {
        name: name.into(),
        group: "g".into(),
        trusted: true,
        transport,
    }
}

/// Retries an expired session, otherwise goes to the next server.
struct Recover;

impl Strategy for Recover {
    fn info(&self) -> StrategyInfo {
        StrategyInfo::new("recover", "service")
    }
    fn condition(&self, situation: &Situation) -> bool {
        situation.failure.retryable
    }
    fn action(&self, situation: &Situation) -> Decision {
        if situation.failure.kind == Kind::SESSION_EXPIRED {
            Action::Retry {
                delay: Some(Duration::ZERO),
            }
            .into()
        } else {
            Action::SwitchTarget {
                target: None,
                target_kind: None,
            }
            .into()
        }
    }
}

/// A gateway over these services, the first preferred.
pub fn gateway(services: Vec<ServiceSpec>) -> Gateway {
    let engine = Engine::builder().build().unwrap();
    for (place, service) in (0..).zip(&services) {
        let spec =
            TargetSpec::service(service.name.clone(), service.group.clone()).priority(-place);
        engine.registry().register(spec).unwrap();
    }
    engine
        .strategies()
        .add(Entry::native(Recover).unwrap())
        .unwrap();
    Gateway::new(engine, Default::default(), services).unwrap()
}

/// A client that reads and writes lines.
pub struct Wire {
    lines: Lines<BufReader<ReadHalf<DuplexStream>>>,
    write: WriteHalf<DuplexStream>,
}

impl Wire {
    pub fn to(gateway: &Gateway) -> Self {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (input, output) = tokio::io::split(theirs);
        let gateway = gateway.clone();
        tokio::spawn(async move { gateway.serve_stream(input, output).await });
        let (read, write) = tokio::io::split(ours);
        Self {
            lines: BufReader::new(read).lines(),
            write,
        }
    }

    pub async fn send(&mut self, line: &str) {
        self.write
            .write_all(format!("{line}\n").as_bytes())
            .await
            .unwrap();
    }

    pub async fn line(&mut self) -> String {
        tokio::time::timeout(Duration::from_secs(30), self.lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    pub async fn json(&mut self) -> Value {
        serde_json::from_str(&self.line().await).unwrap()
    }

    pub async fn ask(&mut self, line: &str) -> Value {
        self.send(line).await;
        self.json().await
    }
}

/// Serves a gateway over HTTP; ends with the gateway.
pub async fn serve_http(gateway: &Gateway) -> String {
    serve_http_with(gateway, HttpOptions::default()).await
}

pub async fn serve_http_with(gateway: &Gateway, options: HttpOptions) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let gateway = gateway.clone();
    tokio::spawn(async move { gateway.serve_http(listener, options).await });
    url
}

/// Waits until something is so.
pub async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .expect("it never came to be");
}
