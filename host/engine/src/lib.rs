//! backstop: a fallback engine for MCP clients in which every fallback strategy is a sandboxed
//! WebAssembly component.
//!
//! Servers refuse connections, hang, throttle, or break off in the middle of an answer. What to do
//! then is a policy, and each team's policy differs. So the two are apart: the engine detects
//! failures, spaces retries, keeps budgets, deadlines, health and circuits, and says what may be done;
//! a *strategy* looks at a failure and proposes what to do about it. What a strategy proposes is
//! carried out only where it is safe: an operation that must not be done twice is never sent again
//! when it may have been carried out.
//!
//! # An engine
//!
//! An [`Engine`] without strategies classifies, counts and reports, but proposes nothing. With the
//! features `component`, `config` and `stock`, which are on by default, [`assemble`](fn@assemble) makes
//! one with targets and policies from a configuration, the strategies of a plugin folder, and those
//! that come with the library: retry, fail over to another service or model, call another operation,
//! answer with data, fail fast.
//!
#![cfg_attr(all(feature = "config", feature = "stock"), doc = "```")]
#![cfg_attr(not(all(feature = "config", feature = "stock")), doc = "```ignore")]
//! use std::path::Path;
//!
//! use backstop::Call;
//! use backstop::config::Config;
//! use backstop::strategy::component::{Runtime, RuntimeOptions};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let text = r#"
//! [[service]]
//! name = "primary"
//! group = "search"
//! url = "https://one.example.com/mcp"
//! priority = 1
//!
//! [[service]]
//! name = "backup"
//! group = "search"
//! url = "https://two.example.com/mcp"
//! "#;
//! let file = Path::new("backstop.toml");
//! let loaded = Config::parse(text, file, &|name| std::env::var(name).ok());
//! assert!(!loaded.has_errors());
//!
//! let runtime = Runtime::new(RuntimeOptions::default())?;
//! let engine = backstop::assemble(&loaded.config, file, &runtime).await?.engine;
//! assert_eq!(engine.strategies().list().len(), 6);
//! assert_eq!(engine.registry().list_group("search").len(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! # Four ways to use it
//!
//! **Any asynchronous operation**: [`Engine::execute`] runs a closure with the target to ask, and
//! classifies its errors by their type's name and their message. Unless the call says that the
//! operation may be repeated, an error whose words do not tell that nothing was done ends it.
//!
//! ```
//! use std::io::{Error, ErrorKind};
//!
//! use backstop::call::RepeatSafety;
//! use backstop::registry::TargetSpec;
//! use backstop::strategy::{Action, Decision, Entry, Situation, Strategy, StrategyInfo};
//! use backstop::{Call, Engine};
//!
//! /// A strategy linked into the program: it always asks the next target.
//! struct Next;
//!
//! impl Strategy for Next {
//!     fn info(&self) -> StrategyInfo {
//!         StrategyInfo::new("next", "service")
//!     }
//!     fn condition(&self, _: &Situation) -> bool {
//!         true
//!     }
//!     fn action(&self, _: &Situation) -> Decision {
//!         let action = Action::SwitchTarget { target: None, target_kind: None };
//!         Decision::new(action, "another may do better")
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder().build()?;
//! engine.strategies().add(Entry::native(Next)?)?;
//! engine.registry().register(TargetSpec::service("primary", "search").priority(1))?;
//! engine.registry().register(TargetSpec::service("backup", "search"))?;
//!
//! let call = Call::new("search", "lookup").repeat_safety(RepeatSafety::ReadOnly);
//! let outcome = engine
//!     .execute(call, |target| async move {
//!         match &*target.name {
//!             "primary" => Err(Error::from(ErrorKind::ConnectionReset)),
//!             name => Ok(format!("answered by {name}")),
//!         }
//!     })
//!     .await?;
//! assert_eq!(outcome.answer, "answered by backup");
//! assert_eq!(outcome.attempts(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! **A protocol of your own**: implement [`Exchange`], which knows how a request is sent, what its
//! answer means, and whether an operation may be repeated, and make calls with [`Engine::call`]. This
//! is what the gateway and the rmcp client are built on.
//!
//! **MCP with rmcp**: `rmcp::FallbackClient`, with the feature `rmcp`, puts fallback behind the
//! `call_tool` a client makes already. `examples/embed_rmcp.rs` is a whole client.
//!
//! **HTTP with tower**: `tower::FallbackLayer`, with the feature `tower`, is one more layer in the stack of
//! an HTTP client. `examples/http_tower.rs` is one around `reqwest`.
//!
//! # What comes back
//!
//! An [`Outcome`] has the answer, the target that gave it, and, where the call did not go well at once,
//! every attempt and every strategy asked. A failed call is a [`call::Failed`]: the first cause, the
//! same history, and the raw outcome of the last attempt. [`Engine::subscribe`] tells of everything as
//! it happens.
//!
//! # Features
//!
//! | feature | default | brings |
//! |---|---|---|
//! | `component` | yes | strategies as WebAssembly components: the sandbox, the plugin folder, limits |
//! | `config` | yes | the TOML configuration, and, with `component`, an engine made from it and a plugin folder that is watched |
//! | `http` | yes | health probes over HTTP |
//! | `mcp` | yes | what must be known of MCP: tool annotations, JSON-RPC codes |
//! | `stock` | yes | the six stock strategies, prebuilt; turns `component` on |
//! | `discovery` | yes | targets from DNS and from watched files; turns `config` on |
//! | `rmcp` | no | `rmcp::FallbackClient`; turns `http` and `mcp` on |
//! | `tower` | no | `tower::FallbackLayer` |
//! | `experimental-contract` | no | the next version of the strategy contract, while it is tried; turns `component` on |
// Once, in the compile cache, where the compiler asks us for what it cannot check.
#![deny(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(all(feature = "config", feature = "component"))]
mod assemble;
pub mod backoff;
pub mod budget;
mod cache;
pub mod call;
mod canonical;
#[cfg(all(feature = "component", feature = "config"))]
pub mod cases;
pub mod circuit;
#[cfg(feature = "config")]
pub mod config;
pub mod detect;
#[cfg(feature = "discovery")]
pub mod discovery;
mod engine;
pub mod event;
mod exchange;
mod failure;
mod guard;
pub mod health;
pub mod hedge;
pub(crate) mod in_force;
mod kind;
#[cfg(feature = "mcp")]
pub mod mcp;
pub mod metrics;
mod nanos;
pub mod operation;
#[cfg(all(feature = "config", feature = "component"))]
pub mod plugins;
pub mod random;
pub mod registry;
pub mod retry;
#[cfg(feature = "rmcp")]
pub mod rmcp;
pub mod strategy;
#[cfg(feature = "tower")]
pub mod tower;
pub mod trace;

#[cfg(all(feature = "config", feature = "component"))]
pub use assemble::{Assembled, Terms, assemble, assemble_with};
pub use cache::CacheLimits;
pub use call::{Call, CallError, Outcome};
pub use engine::{BuildError, Deadlines, Engine, EngineBuilder, Settings};
pub use exchange::{Exchange, Retained, Unsuited};
pub use failure::{ErrorContext, Failure, Origin, RequestContext};
pub use guard::{Caps, Refusal};
pub use hedge::Hedge;
pub use in_force::{Policies, PolicyPlan};
pub use kind::Kind;
