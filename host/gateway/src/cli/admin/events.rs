//! `backstop events`.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use serde_json::Value;

use super::{Endpoint, plain, span};
use crate::cli::terminal;

/// The longest event that is read.
const MAX_EVENT_BYTES: usize = 4 << 20;

pub(super) async fn run(
    endpoint: &Endpoint,
    only: Option<&str>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let query: Vec<_> = only.into_iter().map(|only| ("only", only)).collect();
    let answer = endpoint.get(&["api", "events"], &query).await?;
    if !answer.status().is_success() {
        let status = answer.status();
        let reason = super::reason(&answer.bytes().await?);
        bail!("{}", reason.unwrap_or_else(|| status.to_string()));
    }
    let mut pieces = answer.bytes_stream();
    let mut rest = Vec::new();
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        let Some(piece) = piece else {
            terminal::complain("backstop: the program has ended");
            return Ok(ExitCode::FAILURE);
        };
        rest.extend_from_slice(&piece.context("the stream of events broke off")?);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let Some(event) = line.strip_prefix(b"data: ") else {
                continue;
            };
            let event: Value = serde_json::from_slice(event).context("an event is no JSON")?;
            let shown = if as_json {
                event.to_string()
            } else {
                text(&event)
            };
            if !terminal::draw(&format!("{shown}\n")) {
                return Ok(ExitCode::SUCCESS);
            }
        }
        if rest.len() > MAX_EVENT_BYTES {
            bail!("an event is longer than {MAX_EVENT_BYTES} bytes");
        }
    }
}

/// One line: when, what, and everything about it that is short.
fn text(event: &Value) -> String {
    let at = event["at"].as_u64().map_or(String::new(), clock);
    let name = event["event"].as_str().unwrap_or("?");
    let mut line = format!("{at} {name}");
    for (key, value) in event.as_object().into_iter().flatten() {
        let value = match value {
            Value::String(text) => plain(text),
            Value::Number(ms) if key.ends_with("_ms") => span(ms.as_u64().unwrap_or(0)),
            Value::Number(number) if key != "at" => number.to_string(),
            _ => continue,
        };
        if key != "event" {
            let key = key.strip_suffix("_ms").unwrap_or(key);
            line.push_str(&format!(" {key}={value}"));
        }
    }
    line
}

/// The time of day, in UTC.
pub(super) fn clock(ms: u64) -> String {
    let seconds = ms / 1000 % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!(
        "{hours:02}:{minutes:02}:{:02}.{:03}Z",
        seconds % 60,
        ms % 1000
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_a_server_said() {
        let event = json!({ "at": 3_723_004u64, "event": "attempt_failed", "target": "a",
            "message": "line\nbreak", "duration_ms": 2_500, "explanation": { "attempts": [] } });
        assert_eq!(
            text(&event),
            "01:02:03.004Z attempt_failed duration=2 s message=line break target=a"
        );
    }
}
