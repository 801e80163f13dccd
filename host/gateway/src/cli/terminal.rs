//! Standard output and error. A reader that has gone away is no reason to fail.

use std::io::{IsTerminal as _, Write as _};

use backstop_gateway::otlp::Otlp;
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// One line to standard output.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Text to standard output, at once. Says whether there is still somebody to read it.
pub(crate) fn draw(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_ok()
}

/// One line to standard error.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Sends the log to standard error: `RUST_LOG` says how much, warnings where it says nothing (of
/// rmcp, which only the demo's servers are made with, errors).
pub(crate) fn log() {
    log_beside(None);
}

/// The same, with spans sent to a collector where there is one.
pub(crate) fn log_beside(otlp: Option<&Otlp>) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,rmcp=error"));
    let colour = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt::layer()
        .with_ansi(colour)
        .with_writer(std::io::stderr)
        .with_filter(filter);
    let spans = otlp.and_then(Otlp::layer);
    // It fails only where a log is there already, which then serves as well.
    let _ = tracing_subscriber::registry()
        .with(log)
        .with(spans)
        .try_init();
}

/// A number with its noun.
pub(crate) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
