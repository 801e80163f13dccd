//! Fronts: where clients come in. Each reads messages, has them answered side by side, and lets a
//! client that gives up take its request with it.

mod app;
pub(crate) mod http;
mod serve;
pub(crate) mod stdio;
pub(crate) mod tls;
