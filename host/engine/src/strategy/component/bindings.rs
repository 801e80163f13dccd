//! The contract, as generated from its WIT files. Only an import that can wait is async; every
//! export is, so that a strategy can be interrupted.

#![allow(missing_docs, unreachable_pub)]

use wasmtime::Store;
use wasmtime::component::Instance;

pub mod targets;

wasmtime::component::bindgen!({
    path: "../../wit/0.1.0",
    world: "strategy",
    imports: {
        "backstop:strategy/folder.read": async,
        // Where a flood is stopped.
        "backstop:strategy/state": trappable,
    },
    with: { "backstop:strategy/targets": crate::strategy::component::bindings::targets },
    exports: { default: async },
});

/// The contract's package.
pub(super) const PACKAGE: &str = "backstop:strategy";
/// The version that is served for ever.
pub(super) const VERSION: &str = "0.1.0";
/// The interface every strategy exports.
pub(super) const POLICY: &str = "backstop:strategy/policy";

impl<T: Send + 'static> StrategyPre<T> {
    /// Compares the types of an instance's exports with the contract's.
    pub(super) fn exports(
        &self,
        store: &mut Store<T>,
        instance: &Instance,
    ) -> wasmtime::Result<Strategy> {
        self.indices.load(store, instance)
    }
}

/// The experimental version: it uses from 0.1 what it does not change.
#[cfg(feature = "experimental-contract")]
pub(super) mod next {
    use wasmtime::Store;
    use wasmtime::component::Instance;

    use super::backstop::strategy::types;
    use crate::strategy::Situation;

    wasmtime::component::bindgen!({
        path: ["../../wit/0.1.0", "../../wit/0.2.0-experimental"],
        world: "backstop:strategy/strategy@0.2.0-experimental",
        with: {
            "backstop:strategy/types@0.1.0": super::backstop::strategy::types,
            "backstop:strategy/log@0.1.0": super::backstop::strategy::log,
            "backstop:strategy/clock@0.1.0": super::backstop::strategy::clock,
            "backstop:strategy/random@0.1.0": super::backstop::strategy::random,
            "backstop:strategy/state@0.1.0": super::backstop::strategy::state,
            "backstop:strategy/call@0.1.0": super::backstop::strategy::call,
            "backstop:strategy/targets@0.1.0": crate::strategy::component::bindings::targets,
            "backstop:strategy/history@0.1.0": super::backstop::strategy::history,
            "backstop:strategy/retry-policy@0.1.0": super::backstop::strategy::retry_policy,
            "backstop:strategy/last-known-good@0.1.0": super::backstop::strategy::last_known_good,
            "backstop:strategy/folder@0.1.0": super::backstop::strategy::folder,
            "backstop:strategy/routes@0.1.0": super::backstop::strategy::routes,
        },
        exports: { default: async },
    });

    pub(in super::super) const VERSION: &str = "0.2.0-experimental";

    use self::backstop::strategy0_2_0_experimental::types::Failure;
    use self::exports::backstop::strategy0_2_0_experimental::policy::Guest;

    impl<T: Send + 'static> StrategyPre<T> {
        pub(in super::super) fn exports(
            &self,
            store: &mut Store<T>,
            instance: &Instance,
        ) -> wasmtime::Result<Strategy> {
            self.indices.load(store, instance)
        }
    }

    impl Strategy {
        /// The exported interface, by the name it has where there is only one version.
        pub(in super::super) fn backstop_strategy_policy(&self) -> &Guest {
            self.backstop_strategy0_2_0_experimental_policy()
        }
    }

    /// Version 0.1's failure with what this version has more.
    pub(in super::super) fn failure(old: types::Failure, now: &Situation) -> Failure {
        Failure {
            kind: old.kind,
            operation: now.operation.to_string(),
            target: now.target.as_deref().map(str::to_owned),
            http_status: old.http_status,
            rpc_code: old.rpc_code,
            traits: old.traits,
            retry_after: old.retry_after,
            attempts: old.attempts,
            retries: old.retries,
            fallbacks: old.fallbacks,
            time_left: old.time_left,
            importance: old.importance,
        }
    }
}
