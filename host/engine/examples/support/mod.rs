//! MCP servers on loopback for the examples and tests: real ones, made with rmcp, that can be made to
//! fail and that count what they do.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{CallToolResult, ContentBlock, ServerCapabilities, ServerConfig};
use rmcp::service::{RequestContext, RoleServer};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, ServerHandler, schemars, tool, tool_handler, tool_router};

/// A server on a runtime of its own, so that stopping it ends its connections as a crash does.
pub struct WeatherServer {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// What a server was asked, and how it is to fail.
#[derive(Default)]
pub struct Seen {
    name: String,
    /// Requests to call a tool that reached the HTTP server.
    pub calls: AtomicU32,
    /// Tickets really opened.
    pub tickets: AtomicU32,
    /// Calls the client took back.
    pub cancelled: AtomicU32,
    /// Tools act, and then do not answer.
    pub silent: AtomicBool,
    /// What the next tool call is answered with, in place of the tool: status and `Retry-After`.
    pub refuse_once: Mutex<Option<(u16, &'static str)>>,
}

impl WeatherServer {
    /// A "primary" and a "backup".
    pub fn pair() -> Result<(Self, Self), Box<dyn Error>> {
        Ok((Self::start("primary")?, Self::start("backup")?))
    }

    pub fn start(name: &str) -> Result<Self, Box<dyn Error>> {
        let seen = Seen::named(name);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let tools = Tools { seen: seen.clone() };
        let mcp = StreamableHttpService::new(
            move || Ok(tools.clone()),
            Arc::new(LocalSessionManager::default()),
            StreamableHttpServerConfig::default(),
        );
        let app = axum::Router::new()
            .nest_service("/mcp", mcp)
            .layer(from_fn_with_state(seen.clone(), count_and_refuse));
        runtime.spawn(async move {
            if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                let _ = axum::serve(listener, app).await;
            }
        });
        Ok(Self {
            address,
            seen,
            runtime: Some(runtime),
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Ends the server: from now on its port refuses.
    pub async fn stop(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        for _ in 0..400 {
            if tokio::net::TcpStream::connect(self.address).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for WeatherServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Seen {
    pub fn named(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            ..Self::default()
        })
    }

    pub fn count(&self, counter: impl Fn(&Self) -> &AtomicU32) -> u32 {
        counter(self).load(Ordering::SeqCst)
    }
}

async fn count_and_refuse(
    State(seen): State<Arc<Seen>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, 1 << 20).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    if body.windows(12).any(|window| window == b"\"tools/call\"") {
        seen.calls.fetch_add(1, Ordering::SeqCst);
        let refusal = seen
            .refuse_once
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((status, retry_after)) = refusal {
            let mut response = StatusCode::from_u16(status)
                .unwrap_or_default()
                .into_response();
            let value = HeaderValue::from_static(retry_after);
            response.headers_mut().insert(header::RETRY_AFTER, value);
            return response;
        }
    }
    next.run(Request::from_parts(parts, Body::from(body))).await
}

/// What the servers offer.
#[derive(Clone)]
pub struct Tools {
    pub seen: Arc<Seen>,
}

impl Tools {
    /// Answers, unless the server is to be silent.
    async fn answer(&self, text: String, context: RequestContext<RoleServer>) -> String {
        if self.seen.silent.load(Ordering::SeqCst) {
            context.ct.cancelled().await;
            self.seen.cancelled.fetch_add(1, Ordering::SeqCst);
        }
        format!("{text}, says {}", self.seen.name)
    }
}

#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
pub struct Place {
    /// A city.
    city: String,
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
        context: RequestContext<RoleServer>,
    ) -> Result<String, ErrorData> {
        if city.is_empty() {
            let data = serde_json::json!({ "field": "city" });
            return Err(ErrorData::invalid_params("the city is empty", Some(data)));
        }
        Ok(self.answer(format!("21 degrees in {city}"), context).await)
    }

    #[tool(description = "Open a ticket: doing it twice makes two tickets")]
    async fn create_ticket(&self, context: RequestContext<RoleServer>) -> String {
        let number = self.seen.tickets.fetch_add(1, Ordering::SeqCst) + 1;
        self.answer(format!("ticket {number}"), context).await
    }

    #[tool(description = "Always fails", annotations(read_only_hint = true))]
    async fn fail(&self) -> CallToolResult {
        CallToolResult::error(vec![ContentBlock::text("no such station")])
    }
}

#[tool_handler(router = Self::tool_router())]
impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }
}
