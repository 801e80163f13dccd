//! The library behind the `backstop` program: an MCP server and an OpenAI-compatible API in front, MCP
//! servers and models behind, and the fallback engine between them.
//!
#![doc = include_str!("problems.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod catalog;
pub mod envelope;
mod exchange;
mod front;
mod gateway;
pub mod model;
mod probe;
mod router;
pub mod upstream;

pub use exchange::{McpAnswer, McpRequest};
pub use front::http::HttpOptions;
pub use gateway::{Gateway, GatewayError, ToolCallError};
