//! backstop: a fallback engine for MCP clients in which every fallback strategy is a sandboxed
//! WebAssembly component.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(all(feature = "config", feature = "component"))]
mod assemble;
pub mod backoff;
pub mod budget;
mod cache;
pub mod call;
mod canonical;
pub mod circuit;
#[cfg(feature = "config")]
pub mod config;
pub mod detect;
mod engine;
pub mod event;
mod exchange;
mod failure;
mod guard;
pub mod health;
mod kind;
#[cfg(feature = "mcp")]
pub mod mcp;
pub mod operation;
pub mod random;
pub mod registry;
pub mod retry;
#[cfg(feature = "rmcp")]
pub mod rmcp;
pub mod strategy;

#[cfg(all(feature = "config", feature = "component"))]
pub use assemble::{Assembled, assemble, assemble_with};
pub use cache::CacheLimits;
pub use call::{Call, CallError, Outcome};
pub use engine::{BuildError, Deadlines, Engine, EngineBuilder, Settings};
pub use exchange::{Exchange, Retained};
pub use failure::{ErrorContext, Failure, Origin, RequestContext};
pub use guard::{Caps, Refusal};
pub use kind::Kind;
