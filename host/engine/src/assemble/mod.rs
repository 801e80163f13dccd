//! From a configuration to a running engine.
//!
//! Everything that can be used is used; everything that cannot is a [`Diagnostic`] that says what,
//! where, why and how to mend it. Whether a program goes on with the rest is its own affair.

mod policies;

use crate::budget::BudgetPolicy;
use crate::cache::CacheLimits;
use crate::config::{Config, Diagnostic, chain};
use crate::detect::{Detector, Pattern};
use crate::engine::{BuildError, Deadlines, Engine, EngineBuilder, Settings};
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
    let mut notes = Notes {
        file,
        list: Vec::new(),
    };
    let detector = Detector::default();
    for pattern in &config.patterns {
        let added = detector.add_pattern(Pattern {
            name: pattern.name.clone(),
            class: pattern.class.clone(),
            message: pattern.message.clone(),
            scope: pattern.scope,
            kind: pattern.kind.clone(),
            retryable: pattern.retryable,
            ambiguous: pattern.ambiguous,
            ill_health: pattern.ill_health,
        });
        if let Err(error) = added {
            notes.error(format!("pattern {}", pattern.name), &error);
        }
    }
    let mut builder = builder
        .settings(Settings {
            deadlines: Deadlines {
                call: config.deadline.call,
                attempt: config.deadline.attempt,
                attempt_max: config.deadline.attempt_max,
            },
            ..Settings::default()
        })
        .detector(detector)
        .retry(policies::retry(config, &mut notes))
        .registry(policies::registry(config))
        .budget(BudgetPolicy::Ratio {
            ttl: config.budget.ttl,
            reserve_per_second: config.budget.reserve_per_second,
            ratio: config.budget.ratio,
        });
    if let Some(cache) = &config.cache {
        builder = builder.cache(CacheLimits {
            max_entries: usize::try_from(cache.max_entries).unwrap_or(usize::MAX),
            max_bytes: cache.max_bytes,
            max_age: cache.max_age,
            ..CacheLimits::default()
        });
    }
    let engine = builder.build()?;
    policies::targets(config, engine.registry(), &mut notes);
    let strategies = StrategySet::new(engine.clone(), runtime.clone());
    let plan = strategies.plan(Arc::new(config.clone()), file).await;
    notes.list.extend(plan.diagnostics());
    plan.commit();
    let operations = policies::operations(config, &mut notes);
    Ok(Assembled {
        engine,
        strategies,
        operations,
        diagnostics: notes.list,
    })
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
