//! The native tests of the example in Rust, which is a workspace of its own.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../../plugins/examples/rust/src/lib.rs"]
mod example;
