//! The trait a strategy implements.

use serde::de::DeserializeOwned;

use crate::{Decision, Failure, Host, Metadata};

/// A fallback strategy: when it applies to a failure, and what to do about it.
///
/// See the [crate's documentation](crate) for a whole one.
pub trait Strategy: Sized + 'static {
    /// The configuration the operator writes. Use `#[serde(default, deny_unknown_fields)]`: where
    /// the operator wrote none, it is read from `{}`. A strategy without configuration uses
    /// [`serde::de::IgnoredAny`].
    type Config: DeserializeOwned;

    /// Says what the strategy is and what it is interested in. The same answer every time.
    fn metadata() -> Metadata;

    /// Makes the strategy from its configuration.
    ///
    /// # Errors
    /// One sentence that names the field, what is wrong with it, and how to mend it. It rejects the
    /// strategy before it runs.
    fn configure(config: Self::Config, setup: &mut Setup) -> Result<Self, String>;

    /// Whether the strategy applies to the failure. It has no effect but on the strategy's own state.
    fn condition(&self, failure: &Failure, host: &dyn Host) -> bool {
        let _ = (failure, host);
        true
    }

    /// What to do. Called only after `condition` said true of the same failure.
    fn action(&self, failure: &Failure, host: &dyn Host) -> Decision;
}

/// What a strategy declares while it is configured.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Setup {
    routes: Vec<(String, String)>,
}

impl Setup {
    /// Declares that the strategy may answer a call of operation `source` by calling operation
    /// `fallback`. A strategy that proposes [`Action::CallOperation`](crate::Action::CallOperation)
    /// declares every pair it knows: the host checks all strategies together and rejects the one
    /// that would close a cycle.
    pub fn declare_route(&mut self, source: impl Into<String>, fallback: impl Into<String>) {
        self.routes.push((source.into(), fallback.into()));
    }

    /// The routes declared so far, as pairs of source and fallback.
    pub fn routes(&self) -> &[(String, String)] {
        &self.routes
    }
}

/// Reads a configuration, makes the strategy, and says what went wrong in a sentence.
#[cfg(any(target_family = "wasm", feature = "testing"))]
pub(crate) fn configured<S: Strategy>(config: &str, setup: &mut Setup) -> Result<S, String> {
    let config = serde_json::from_str(config)
        .map_err(|error| format!("the configuration cannot be read: {error}"))?;
    S::configure(config, setup)
}
