//! The contract, as generated from its WIT files. Only an import that can wait is async; every
//! export is, so that a strategy can be interrupted.

#![allow(missing_docs, unreachable_pub)]

wasmtime::component::bindgen!({
    path: "../../wit/0.1.0",
    world: "strategy",
    imports: {
        "backstop:strategy/folder.read": async,
    },
    exports: { default: async },
});

/// The contract this host offers.
pub(super) const PACKAGE: &str = "backstop:strategy";
/// Its version.
pub(super) const VERSION: &str = "0.1.0";
/// The interface every strategy exports.
pub(super) const POLICY: &str = "backstop:strategy/policy";
