//! The versions of the contract this host serves, and what is different about each.
//!
//! The engine speaks one language, that of [`Situation`] and of version 0.1's decision. A version is
//! an arm in each of the functions here: what it imports is linked, what it exports is called, and
//! what has another shape is translated. So a new version costs one module of bindings and one arm
//! for each function that changed, and the old ones stay as they are.

use std::fmt;
use std::time::Duration;

use wasmtime::Store;
use wasmtime::component::InstancePre;

use super::bindings::backstop::strategy::types;
#[cfg(feature = "experimental-contract")]
use super::bindings::next;
use super::bindings::{POLICY, Strategy, StrategyPre, VERSION};
use super::host_impl::Cell;
use super::verdict;
use crate::strategy::Situation;

/// A version of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contract {
    /// 0.1: for ever.
    V0_1,
    /// The next one, while it is being tried. It may change, and it will go.
    #[cfg(feature = "experimental-contract")]
    Next,
}

/// Every version that is served, newest first.
const SERVED: &[Contract] = &[
    #[cfg(feature = "experimental-contract")]
    Contract::Next,
    Contract::V0_1,
];

impl Contract {
    /// The version served for a component that was built for `version`.
    ///
    /// By Semantic Versioning a released version serves all that differ from it in the last number
    /// alone (below 1.0, the second one says whether shapes may have changed). An experimental one
    /// serves itself.
    pub(super) fn serving(version: &str) -> Option<Self> {
        SERVED
            .iter()
            .copied()
            .find(|contract| contract.serves(version))
    }

    fn serves(self, version: &str) -> bool {
        match self {
            Self::V0_1 => {
                let Some(patch) = version.strip_prefix("0.1.") else {
                    return false;
                };
                !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit())
            }
            #[cfg(feature = "experimental-contract")]
            Self::Next => version == next::VERSION,
        }
    }

    fn version(self) -> &'static str {
        match self {
            Self::V0_1 => VERSION,
            #[cfg(feature = "experimental-contract")]
            Self::Next => next::VERSION,
        }
    }

    /// What this host offers, as error messages name it: an interface of the contract in every
    /// version that is served.
    pub(super) fn offers(interface: &str) -> String {
        let list: Vec<_> = SERVED
            .iter()
            .rev()
            .map(|contract| format!("`{interface}@{}`", contract.version()))
            .collect();
        list.join(" and ")
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{POLICY}@{}", self.version())
    }
}

/// A linked component of one of the versions.
pub(super) enum Pre {
    V0_1(StrategyPre<Cell>),
    #[cfg(feature = "experimental-contract")]
    Next(next::StrategyPre<Cell>),
}

/// Why a component did not start.
pub(super) enum StartError {
    /// This function has another type than the contract says.
    Shape(String),
    Other(wasmtime::Error),
}

impl Pre {
    pub(super) fn new(contract: Contract, pre: InstancePre<Cell>) -> wasmtime::Result<Self> {
        Ok(match contract {
            Contract::V0_1 => Self::V0_1(StrategyPre::new(pre)?),
            #[cfg(feature = "experimental-contract")]
            Contract::Next => Self::Next(next::StrategyPre::new(pre)?),
        })
    }

    /// Makes an instance. In two steps, because the types of the exports are compared only in the
    /// second, and a difference there is a fault of the contract, not of the instance.
    pub(super) async fn instantiate(&self, store: &mut Store<Cell>) -> Result<Exports, StartError> {
        let shape = |error: wasmtime::Error| {
            let named = culprit(&error);
            tracing::debug!(error = %format_args!("{error:#}"), "an export has another type than the contract's");
            StartError::Shape(named)
        };
        match self {
            Self::V0_1(pre) => {
                let made = pre.instance_pre().instantiate_async(&mut *store).await;
                let instance = made.map_err(StartError::Other)?;
                pre.exports(store, &instance)
                    .map(Exports::V0_1)
                    .map_err(shape)
            }
            #[cfg(feature = "experimental-contract")]
            Self::Next(pre) => {
                let made = pre.instance_pre().instantiate_async(&mut *store).await;
                let instance = made.map_err(StartError::Other)?;
                pre.exports(store, &instance)
                    .map(Exports::Next)
                    .map_err(shape)
            }
        }
    }
}

/// The names an error of the runtime speaks of, without what it says of its own types.
pub(super) fn culprit(error: &wasmtime::Error) -> String {
    let text = format!("{error:#}");
    let mut names: Vec<_> = text.split('`').skip(1).step_by(2).collect();
    names.dedup();
    match names.is_empty() {
        true => "a function".into(),
        false => names
            .iter()
            .take(3)
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// What an instance exports.
pub(super) enum Exports {
    V0_1(Strategy),
    #[cfg(feature = "experimental-contract")]
    Next(next::Strategy),
}

impl Exports {
    pub(super) async fn metadata(
        &self,
        store: &mut Store<Cell>,
    ) -> wasmtime::Result<types::Metadata> {
        match self {
            Self::V0_1(it) => it.backstop_strategy_policy().call_metadata(store).await,
            #[cfg(feature = "experimental-contract")]
            Self::Next(it) => it.backstop_strategy_policy().call_metadata(store).await,
        }
    }

    pub(super) async fn configure(
        &self,
        store: &mut Store<Cell>,
        config: &str,
    ) -> wasmtime::Result<Result<(), String>> {
        match self {
            Self::V0_1(it) => {
                let policy = it.backstop_strategy_policy();
                policy.call_configure(store, config).await
            }
            #[cfg(feature = "experimental-contract")]
            Self::Next(it) => {
                let policy = it.backstop_strategy_policy();
                policy.call_configure(store, config).await
            }
        }
    }

    /// `condition` and, if it says true, `action`.
    pub(super) async fn decide(
        &self,
        store: &mut Store<Cell>,
        situation: &Situation,
        time_left: Duration,
    ) -> wasmtime::Result<Option<types::Decision>> {
        let failure = verdict::failure(situation, time_left);
        match self {
            Self::V0_1(it) => {
                let policy = it.backstop_strategy_policy();
                if !policy.call_condition(&mut *store, &failure).await? {
                    return Ok(None);
                }
                policy.call_action(store, &failure).await.map(Some)
            }
            #[cfg(feature = "experimental-contract")]
            Self::Next(it) => {
                let failure = next::failure(failure, situation);
                let policy = it.backstop_strategy_policy();
                if !policy.call_condition(&mut *store, &failure).await? {
                    return Ok(None);
                }
                policy.call_action(store, &failure).await.map(Some)
            }
        }
    }
}
