//! backstop: a fallback engine for MCP clients in which every fallback strategy is a sandboxed
//! WebAssembly component.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod call;
#[cfg(feature = "config")]
pub mod config;
pub mod detect;
mod exchange;
mod failure;
mod kind;
pub mod registry;
pub mod strategy;

pub use call::{Call, CallError, Outcome};
pub use exchange::{Exchange, Retained};
pub use failure::{ErrorContext, Failure, Origin, RequestContext};
pub use kind::Kind;
