//! The library behind the `backstop` program: an MCP server and an OpenAI-compatible API in front, MCP
//! servers and models behind, and the fallback engine between them.
//!
#![doc = include_str!("problems.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod admin;
mod catalog;
mod client;
pub mod envelope;
pub mod event_log;
mod exchange;
mod front;
mod gateway;
mod headers;
pub mod live;
pub mod model;
pub mod otlp;
mod probe;
mod rounds;
mod router;
pub mod simulate;
pub mod telemetry;
pub mod upstream;
mod workers;

pub use exchange::{McpAnswer, McpRequest};
pub use front::http::{HttpOptions, Limits};
pub use front::tls::{Tls, TlsError};
pub use gateway::{Gateway, GatewayError, ToolCallError};
pub use workers::Workers;
