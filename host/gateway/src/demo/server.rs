//! A real MCP server on loopback, and a switch that breaks it in the ways servers break.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use futures_util::{StreamExt as _, stream};
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{CallToolResult, ContentBlock, ServerCapabilities, ServerConfig};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, ServerHandler, schemars, tool, tool_handler, tool_router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What a server does to a tool call instead of answering it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It answers with this HTTP status, and the seconds of a `Retry-After` where there are any.
    Status(u16, Option<u32>),
    /// It takes the call and never answers.
    Silent,
    /// It carries the call out and never answers.
    ActsThenSilent,
    /// It begins an answer and drops the connection.
    Cut,
}

/// A fault, and when it strikes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Broken {
    pub(crate) fault: Fault,
    /// It strikes calls of this tool only.
    pub(crate) tool: Option<&'static str>,
    /// It strikes once.
    pub(crate) once: bool,
}

/// A running server; it stops, with every connection, when this is dropped.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    state: Arc<Shared>,
    running: Option<CancellationToken>,
}

struct Shared {
    name: &'static str,
    broken: ArcSwapOption<Broken>,
    tickets: AtomicU32,
}

impl Server {
    /// Starts a server on a free port.
    pub(crate) async fn start(name: &'static str) -> anyhow::Result<Self> {
        let state = Arc::new(Shared {
            name,
            broken: ArcSwapOption::empty(),
            tickets: AtomicU32::new(0),
        });
        let mut server = Self {
            name,
            address: ([127, 0, 0, 1], 0).into(),
            state,
            running: None,
        };
        server.listen().await?;
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    pub(crate) fn set(&self, broken: Option<Broken>) {
        self.state.broken.store(broken.map(Arc::new));
    }

    /// How many tickets it has really opened.
    pub(crate) fn tickets(&self) -> u32 {
        self.state.tickets.load(Ordering::SeqCst)
    }

    /// Stops listening and drops every connection: from now on the port refuses.
    pub(crate) async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.cancel();
            // The port is free once the accept loop has seen it.
            for _ in 0..200 {
                if tokio::net::TcpStream::connect(self.address).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Listens again if it was stopped.
    pub(crate) async fn listen_again(&mut self) -> anyhow::Result<()> {
        if self.running.is_none() {
            self.listen().await
        } else {
            Ok(())
        }
    }

    async fn listen(&mut self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(self.address).await.with_context(|| {
            format!(
                "the demo server {} cannot listen on {}",
                self.name, self.address
            )
        })?;
        self.address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let state = self.state.clone();
        let mcp = StreamableHttpService::new(
            {
                let state = state.clone();
                move || {
                    Ok(Tools {
                        state: state.clone(),
                    })
                }
            },
            Arc::new(LocalSessionManager::default()),
            StreamableHttpServerConfig::default().with_cancellation_token(stop.child_token()),
        );
        let app = Router::new()
            .nest_service("/mcp", mcp)
            .layer(from_fn_with_state(state, break_calls))
            .route("/health", axum::routing::get(|| async { StatusCode::OK }));
        tokio::spawn(serve(listener, app, stop.clone()));
        self.running = Some(stop);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.cancel();
        }
    }
}

async fn serve(listener: TcpListener, app: Router, stop: CancellationToken) {
    // Not graceful: a server that dies takes its connections with it.
    let server = axum::serve(listener, app);
    tokio::select! {
        _ = server.into_future() => {}
        () = stop.cancelled() => {}
    }
}

/// Does to a tool call what the switch says; everything else passes, as it does with real throttles.
async fn break_calls(
    State(state): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 1 << 20).await else {
        return status(StatusCode::PAYLOAD_TOO_LARGE, None);
    };
    let has = |text: &str| {
        body.windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    let struck = state.broken.load_full().filter(|broken| {
        has("\"tools/call\"") && broken.tool.is_none_or(|tool| has(&format!("\"{tool}\"")))
    });
    let forward = |body: Bytes| next.run(Request::from_parts(parts, Body::from(body)));
    let Some(broken) = struck else {
        return forward(body).await;
    };
    if broken.once {
        state.broken.store(None);
    }
    match broken.fault {
        Fault::Status(code, retry_after) => {
            status(StatusCode::from_u16(code).unwrap_or_default(), retry_after)
        }
        Fault::Silent => std::future::pending().await,
        Fault::ActsThenSilent => {
            let answer = forward(body).await;
            let _ = axum::body::to_bytes(answer.into_body(), 1 << 20).await;
            std::future::pending().await
        }
        Fault::Cut => {
            let begun = stream::iter([Ok(Bytes::from_static(
                b"event: message\ndata: {\"jsonrpc\":\"2.0\",\"re",
            ))]);
            // Later, or nothing of the answer would leave before the connection breaks.
            let broken = stream::once(async {
                tokio::time::sleep(Duration::from_millis(30)).await;
                Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
            });
            let answer = Response::builder().header(header::CONTENT_TYPE, "text/event-stream");
            answer
                .body(Body::from_stream(begun.chain(broken)))
                .unwrap_or_else(|_| status(StatusCode::BAD_GATEWAY, None))
        }
    }
}

fn status(code: StatusCode, retry_after: Option<u32>) -> Response<Body> {
    let mut answer = Response::new(Body::from(code.canonical_reason().unwrap_or("error")));
    *answer.status_mut() = code;
    if let Some(seconds) = retry_after {
        answer
            .headers_mut()
            .insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

#[derive(Clone)]
struct Tools {
    state: Arc<Shared>,
}

#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
struct Place {
    /// A city.
    city: Option<String>,
}

#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
struct Query {
    /// What to look for.
    query: String,
}

#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
struct Ticket {
    /// What the ticket is about.
    title: String,
}

#[tool_router]
impl Tools {
    #[tool(
        description = "The weather in a city",
        annotations(read_only_hint = true)
    )]
    async fn weather(
        &self,
        Parameters(Place { city }): Parameters<Place>,
    ) -> Result<CallToolResult, ErrorData> {
        let city = city.ok_or_else(|| ErrorData::invalid_params("`city` is missing", None))?;
        let text = format!("{city}: 21 degrees, says {}", self.state.name);
        Ok(CallToolResult::success(vec![ContentBlock::text(text)]))
    }

    #[tool(
        description = "Search the live index",
        annotations(read_only_hint = true)
    )]
    async fn search(&self, Parameters(Query { query }): Parameters<Query>) -> String {
        format!("3 live results for {query}, says {}", self.state.name)
    }

    #[tool(
        description = "Search last night's copy of the index",
        annotations(read_only_hint = true)
    )]
    async fn search_archive(&self, Parameters(Query { query }): Parameters<Query>) -> String {
        format!("2 archived results for {query}, says {}", self.state.name)
    }

    #[tool(
        description = "Open a ticket: doing it twice makes two tickets",
        annotations(
            read_only_hint = false,
            destructive_hint = false,
            idempotent_hint = false
        )
    )]
    async fn create_ticket(&self, Parameters(Ticket { title }): Parameters<Ticket>) -> String {
        let number = self.state.tickets.fetch_add(1, Ordering::SeqCst) + 1;
        format!("ticket {number} opened: {title}")
    }
}

#[tool_handler(router = Self::tool_router())]
impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }
}
