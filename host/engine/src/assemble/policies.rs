//! Policies, targets and operations of a configuration, in the terms of the engine's parts.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Notes;
use crate::backoff::{Backoff, BackoffError, Jitter};
use crate::circuit::CircuitConfig;
use crate::config::{self, Config, Retries};
use crate::health::HealthConfig;
use crate::operation::{OperationRule, OperationRules};
use crate::registry::{BalanceConfig, Registry, RegistryConfig, TargetSpec};
use crate::retry::{RetryManager, RetryPolicies, RetryPolicy};

/// The default table, changed by what the configuration says.
pub(super) fn retry(retries: &Retries, notes: &mut Notes<'_>) -> RetryManager {
    let mut policies = RetryPolicies::default();
    match overlay(&retries.default, &policies.default) {
        Ok(policy) => policies.default = policy,
        Err(error) => notes.error("retry.default", &error),
    }
    for (kind, table) in &retries.kinds {
        match overlay(table, policies.of(kind)) {
            Ok(policy) => {
                policies.by_kind.insert(kind.clone(), policy);
            }
            Err(error) => notes.error(format!("retry.{kind}"), &error),
        }
    }
    RetryManager::new(policies)
}

/// A policy with what a table says; what it does not say stays.
fn overlay(table: &config::Retry, base: &RetryPolicy) -> Result<RetryPolicy, BackoffError> {
    let shaped =
        table.initial_delay.is_some() || table.factor.is_some() || table.max_delay.is_some();
    let mut max_retries = base.max_retries;
    let backoff = if let Some(delays) = &table.delays {
        max_retries = u32::try_from(delays.len()).unwrap_or(u32::MAX);
        Backoff::list(delays.as_slice())?
    } else if shaped {
        let standard = config::Retry::standard();
        // A table of the default starts from its own first delay.
        let first = Some(base.backoff.base(0)).filter(|first| !first.is_zero());
        let initial = table
            .initial_delay
            .or(first)
            .or(standard.initial_delay)
            .unwrap_or_default();
        let cap = table.max_delay.or(standard.max_delay).unwrap_or(initial);
        if initial.is_zero() {
            Backoff::fixed(Duration::ZERO)?
        } else {
            Backoff::exponential(
                initial.min(cap),
                table.factor.or(standard.factor).unwrap_or(2.0),
                cap,
            )?
        }
    } else {
        base.backoff.clone()
    };
    let jitter = table
        .jitter
        .map_or(base.backoff.jitter(), |jitter| match jitter {
            config::Jitter::None => Jitter::None,
            config::Jitter::Full => Jitter::Full,
            config::Jitter::Equal => Jitter::Equal,
            config::Jitter::Decorrelated => Jitter::Decorrelated,
        });
    Ok(RetryPolicy {
        max_retries: table.max_retries.unwrap_or(max_retries),
        backoff: backoff.with_jitter(jitter),
        condition: base.condition.clone(),
    })
}

pub(super) fn registry(config: &Config) -> RegistryConfig {
    let percent = |share: f64| (share * 100.0).round().clamp(0.0, 100.0) as u8;
    let (circuit, health) = (&config.circuit, &config.health);
    RegistryConfig {
        circuit: CircuitConfig {
            consecutive_failures: circuit.consecutive_failures,
            failure_rate_percent: percent(circuit.failure_rate).max(1),
            window: circuit.window,
            minimum_throughput: circuit.minimum_throughput,
            open_base: circuit.open_for,
            open_max: circuit.max_open,
            jitter_percent: percent(circuit.jitter),
            half_open_probes: circuit.half_open_probes,
            successes_to_close: circuit.half_open_successes,
            // A probe lasts no longer than an attempt may: after that its place is given to another.
            lease_timeout: config
                .deadline
                .attempt_max
                .max(CircuitConfig::default().lease_timeout),
            ..CircuitConfig::default()
        },
        health: HealthConfig {
            interval: health.interval,
            timeout: health.timeout,
            rise: health.rise,
            fall: health.fall,
            jitter_percent: percent(health.jitter).min(50),
            ..HealthConfig::default()
        },
        balance: BalanceConfig {
            slow_start: health.slow_start,
            ..BalanceConfig::default()
        },
    }
}

pub(super) fn targets(config: &Config, registry: &Registry, notes: &mut Notes<'_>) {
    let services = config.services.iter().map(|service| {
        let mut spec = TargetSpec::service(service.name.as_str(), service.group.as_str())
            .priority(service.priority)
            .weight(weight(service.weight));
        match &service.transport {
            config::Transport::Http { url, .. } => spec = spec.url(url.value()),
            config::Transport::Stdio { command, .. } => spec = spec.attribute("command", command),
        }
        if let Some(url) = &service.health_url {
            spec = spec.health_url(url.value());
        }
        if service.trusted {
            spec = spec.trusted();
        }
        limited(spec, &service.limits)
    });
    let models = config.models.iter().map(|model| {
        let mut spec = TargetSpec::model(model.name.as_str(), model.group.as_str())
            .url(model.base_url.value())
            .attribute("model", &model.model)
            .attribute("tools", model.tools.to_string())
            .attribute("vision", model.vision.to_string())
            .attribute("prefill", model.prefill.to_string())
            .priority(model.priority)
            .weight(weight(model.weight));
        if let Some(tokens) = model.context_length {
            spec = spec.attribute("context-length", tokens.to_string());
        }
        limited(spec, &model.limits)
    });
    for spec in services.chain(models) {
        let name = spec.name.clone();
        let spec = if config.health.enabled {
            spec
        } else {
            spec.unprobed()
        };
        if let Err(error) = registry.register(spec) {
            notes.error(format!("service {name:?}"), &error);
        }
    }
}

fn limited(mut spec: TargetSpec, limits: &config::TargetLimits) -> TargetSpec {
    if let Some(max) = limits.max_concurrent {
        spec = spec.concurrency(max, limits.max_queue.unwrap_or(0));
    }
    spec.rate_limit = limits.rate_limit;
    spec
}

fn weight(weight: u32) -> NonZeroU32 {
    NonZeroU32::new(weight).unwrap_or(NonZeroU32::MIN)
}

pub(super) fn operations(config: &Config, notes: &mut Notes<'_>) -> OperationRules {
    let rule = |operation: &config::Operation| {
        let mut rule = OperationRule::new(&operation.matches)?;
        rule.repeat = operation.repeat;
        rule.deadline = operation.deadline;
        rule.attempt_timeout = operation.attempt_timeout;
        rule.importance = operation.importance;
        rule.hedge = operation.hedge;
        Ok::<_, globset::Error>(rule)
    };
    let mut rules = Vec::new();
    for operation in &config.operations {
        match rule(operation) {
            Ok(rule) => rules.push(rule),
            Err(error) => notes.error(format!("operation {:?}", operation.matches), &error),
        }
    }
    rules.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Kind;

    fn policies(text: &str) -> RetryPolicies {
        let loaded = Config::parse(text, Path::new("t.toml"), &|_| None);
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        let mut notes = Notes {
            file: Path::new("t.toml"),
            list: Vec::new(),
        };
        let manager = retry(&loaded.config.retry, &mut notes);
        assert!(notes.list.is_empty(), "{:?}", notes.list);
        RetryPolicies::clone(&manager.policies())
    }

    #[test]
    fn the_defaults_of_the_file_are_the_defaults_of_the_engine() {
        let config = Config::default();
        let registry = registry(&config);
        assert_eq!(registry, RegistryConfig::default());
        let plain = policies("");
        for kind in Kind::WELL_KNOWN {
            let (ours, engines) = (
                plain.of(kind).clone(),
                RetryPolicies::default().of(kind).clone(),
            );
            assert_eq!(format!("{ours:?}"), format!("{engines:?}"), "{kind}");
        }
    }

    #[test]
    fn a_table_changes_what_it_says_and_leaves_the_rest() {
        let changed = policies(
            "[retry.TimeoutError]\nmax_retries = 1\n[retry.TooManyRequests]\ndelays = [1, 3]\n\
             [retry.ConnectionError]\ninitial_delay = '1s'\nfactor = 3\njitter = 'none'\n",
        );
        let timeout = changed.of(&Kind::TIMEOUT_ERROR);
        assert_eq!(
            (timeout.max_retries, timeout.backoff.base(1)),
            (1, Duration::from_secs(1))
        );
        let throttled = changed.of(&Kind::TOO_MANY_REQUESTS);
        assert_eq!(
            (throttled.max_retries, throttled.backoff.base(1)),
            (2, Duration::from_secs(3))
        );
        let refused = changed.of(&Kind::CONNECTION_ERROR);
        assert_eq!(
            (refused.max_retries, refused.backoff.base(1)),
            (3, Duration::from_secs(3))
        );
        assert_eq!(refused.backoff.jitter(), Jitter::None);
    }
}
