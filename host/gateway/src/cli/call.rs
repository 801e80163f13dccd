//! `backstop call`: one tool call, with fallback.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use backstop_gateway::ToolCallError;
use serde_json::{Value, json};

use super::host::Host;
use super::{USAGE, terminal};

pub(super) async fn run(
    path: &Path,
    tool: &str,
    arguments: Option<&str>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    terminal::log();
    let arguments = match arguments.map(serde_json::from_str::<Value>) {
        None => serde_json::Map::new(),
        Some(Ok(Value::Object(members))) => members,
        Some(given) => {
            let reason = given
                .err()
                .map_or("it is not an object".to_owned(), |error| error.to_string());
            terminal::complain(&format!(
                "backstop: --arguments takes a JSON object, such as '{{\"city\":\"Oslo\"}}': {reason}"
            ));
            return Ok(ExitCode::from(USAGE));
        }
    };
    let host = Host::load(path).await?;
    for diagnostic in &host.diagnostics {
        terminal::complain(&diagnostic.to_string());
    }
    let discovery = host.discover().await;
    let called = host.gateway.call_tool(tool, &arguments).await;
    drop(discovery);
    host.gateway.shut_down().await;
    host.keep_state().await;
    let (document, text, code) = match called {
        Ok(outcome) => {
            let result: Value = serde_json::from_slice(outcome.answer.payload.as_bytes())
                .context("the answer is no JSON")?;
            let text = text_of(&result);
            let document = json!({
                "outcome": if outcome.trouble.is_some() { "saved" } else { "ok" },
                "served_by": outcome.served_by.as_deref(),
                "degraded": outcome.degraded,
                "attempts": outcome.attempts(),
                "trouble": outcome.trouble,
                "result": result,
            });
            (document, text, ExitCode::SUCCESS)
        }
        Err(error) => {
            let trouble = match &error {
                ToolCallError::Failed(failed) => json!(failed.error),
                _ => Value::Null,
            };
            let message = format!("{:#}", anyhow::Error::new(error));
            let document = json!({ "outcome": "failed", "message": message, "error": trouble });
            if !as_json {
                terminal::complain(&format!("backstop: {message}"));
            }
            (document, String::new(), ExitCode::FAILURE)
        }
    };
    if as_json {
        terminal::say(&serde_json::to_string_pretty(&document)?);
    } else if !text.is_empty() {
        terminal::say(&text);
    }
    Ok(code)
}

/// The text of a tool's answer; the answer itself where it has none.
fn text_of(result: &Value) -> String {
    let parts = result["content"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|part| part["text"].as_str());
    let text = parts.collect::<Vec<_>>().join("\n");
    if text.is_empty() {
        result.to_string()
    } else {
        text
    }
}
