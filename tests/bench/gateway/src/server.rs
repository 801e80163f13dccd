//! The server behind every proxy: as little work as an MCP server can do.

use std::io::{BufRead as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(default)]
    method: String,
    #[serde(default)]
    params: Value,
}

/// The answer to a message; none to a notification.
fn answer(message: &[u8]) -> Option<String> {
    let message: Message<'_> = serde_json::from_slice(message).ok()?;
    let id = message.id?.get();
    let result = match message.method.as_str() {
        "initialize" => json!({
            "protocolVersion": message.params["protocolVersion"], "capabilities": { "tools": {} },
            "serverInfo": { "name": "bench", "version": "1" },
        }),
        "ping" => json!({}),
        "tools/list" => json!({ "tools": [{
            "name": "echo", "description": "Answers with `size` bytes.",
            "inputSchema": { "type": "object", "properties": { "size": { "type": "integer" } } },
            "annotations": { "readOnlyHint": true },
        }] }),
        "tools/call" => {
            let size = message.params["arguments"]["size"].as_u64().unwrap_or(100);
            let text = "x".repeat(usize::try_from(size).unwrap_or(100));
            // By hand: a large answer should cost the server next to nothing.
            return Some(format!(
                r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"{text}"}}]}}}}"#
            ));
        }
        method => {
            let error = json!({ "code": -32601, "message": format!("no method {method}") });
            return Some(format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#));
        }
    };
    Some(format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#
    ))
}

pub(crate) async fn http(port: u16, sse: bool) -> anyhow::Result<()> {
    async fn serve(State(sse): State<Arc<bool>>, body: Bytes) -> Response {
        let Some(text) = answer(&body) else {
            return StatusCode::ACCEPTED.into_response();
        };
        let session = ("mcp-session-id", "bench");
        if *sse {
            let media = (header::CONTENT_TYPE.as_str(), "text/event-stream");
            let event = format!("event: message\ndata: {text}\n\n");
            return ([media, session], event).into_response();
        }
        let media = (header::CONTENT_TYPE.as_str(), "application/json");
        ([media, session], text).into_response()
    }
    let app = Router::new()
        .route("/mcp", post(serve))
        .with_state(Arc::new(sse));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    axum::serve(listener, app).await?;
    Ok(())
}

/// Without a runtime, which would read and write on threads of its own.
pub(crate) fn stdio() -> anyhow::Result<()> {
    // Not the buffer of `std::io::stdout`, which copies each line once more.
    let mut out = std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    for line in std::io::stdin().lock().lines() {
        if let Some(mut text) = answer(line?.as_bytes()) {
            text.push('\n');
            out.write_all(text.as_bytes())?;
        }
    }
    Ok(())
}
