//! From a configuration to a running engine.
//!
//! Everything that can be used is used; everything that cannot is a [`Diagnostic`] that says what,
//! where, why and how to mend it. Whether a program goes on with the rest is its own affair.

mod policies;

use crate::config::{Config, Diagnostic, chain};
use crate::engine::{BuildError, Engine, EngineBuilder};
use crate::in_force::Policies;
use crate::operation::OperationRules;
use crate::plugins::StrategySet;
use crate::strategy::component::Runtime;
use std::path::Path;
use std::sync::Arc;

/// An engine made from a configuration.
#[derive(Debug)]
#[non_exhaustive]
pub struct Assembled {
    /// The engine, with targets and strategies.
    pub engine: Engine,
    /// Keeps the strategies as the configuration and its plugin folder ask for, while the engine runs.
    pub strategies: StrategySet,
    /// What the configuration says of operations.
    pub operations: OperationRules,
    /// What could not be used.
    pub diagnostics: Vec<Diagnostic>,
}

/// Builds an engine from a configuration: targets, policies, and the strategies of the plugin folder
/// and of the stock. `file` is what the diagnostics name.
///
/// # Errors
/// [`BuildError`] if a policy is out of a range that the configuration itself does not check.
pub async fn assemble(
    config: &Config,
    file: &Path,
    runtime: &Runtime,
) -> Result<Assembled, BuildError> {
    assemble_with(Engine::builder(), config, file, runtime).await
}

/// The same, on a builder that has a random source or a clock already.
///
/// # Errors
/// As [`assemble`].
pub async fn assemble_with(
    builder: EngineBuilder,
    config: &Config,
    file: &Path,
    runtime: &Runtime,
) -> Result<Assembled, BuildError> {
    let terms = Terms::of(config, file);
    let engine = builder.policies(terms.policies).build()?;
    let mut notes = Notes {
        file,
        list: terms.diagnostics,
    };
    policies::targets(config, engine.registry(), &mut notes);
    let strategies = StrategySet::new(engine.clone(), runtime.clone());
    let plan = strategies.plan(Arc::new(config.clone()), file).await;
    notes.list.extend(plan.diagnostics());
    plan.commit();
    Ok(Assembled {
        engine,
        strategies,
        operations: terms.operations,
        diagnostics: notes.list,
    })
}

/// What a configuration says of calls, in the terms of the engine.
#[derive(Debug)]
#[non_exhaustive]
pub struct Terms {
    /// The host's policies: for [`Engine::reconfigure`], or for a new engine.
    pub policies: Policies,
    /// What is said of operations.
    pub operations: OperationRules,
    /// What could not be used.
    pub diagnostics: Vec<Diagnostic>,
}

impl Terms {
    /// What this configuration says; `file` is what the diagnostics name.
    pub fn of(config: &Config, file: &Path) -> Self {
        let mut notes = Notes {
            file,
            list: Vec::new(),
        };
        Self {
            policies: policies::policies(config, &mut notes),
            operations: policies::operations(config, &mut notes),
            diagnostics: notes.list,
        }
    }
}

/// What could not be used, as it is found.
struct Notes<'a> {
    file: &'a Path,
    list: Vec<Diagnostic>,
}

impl Notes<'_> {
    /// Notes an error about a field, with its chain of causes.
    fn error(&mut self, field: impl Into<String>, error: &(dyn std::error::Error + 'static)) {
        self.say(field, chain(error));
    }

    fn say(&mut self, field: impl Into<String>, message: String) {
        self.list.push(Diagnostic::error(self.file, field, message));
    }
}
