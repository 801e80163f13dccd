//! The library behind the `backstop` program: an MCP server in front, MCP clients behind, and the
//! fallback engine between them.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod envelope;
pub mod upstream;
