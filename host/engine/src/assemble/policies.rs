//! Policies, targets and operations of a configuration, in the terms of the engine's parts.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Notes;
use crate::backoff::{Backoff, BackoffError, Jitter};
use crate::budget::BudgetPolicy;
use crate::cache::CacheLimits;
use crate::circuit::CircuitConfig;
use crate::config::{self, Config};
use crate::detect::{Pattern, Patterns};
use crate::engine::{Deadlines, Settings};
use crate::failure::Failure;
use crate::health::HealthConfig;
use crate::in_force::Policies;
use crate::operation::{OperationRule, OperationRules};
use crate::registry::{BalanceConfig, Registry, RegistryConfig, TargetSpec};
use crate::retry::{RetryPolicies, RetryPolicy};

/// Every policy the configuration names.
pub(super) fn policies(config: &Config, notes: &mut Notes<'_>) -> Policies {
    let (deadline, budget) = (&config.deadline, &config.budget);
    Policies {
        settings: Settings {
            deadlines: Deadlines {
                call: deadline.call,
                attempt: deadline.attempt,
                attempt_max: deadline.attempt_max,
            },
            ..Settings::default()
        },
        patterns: patterns(config, notes),
        retry: retry(config, notes),
        budget: BudgetPolicy::Ratio {
            ttl: budget.ttl,
            reserve_per_second: budget.reserve_per_second,
            ratio: budget.ratio,
        },
        cache: config.cache.as_ref().map(|cache| CacheLimits {
            max_entries: usize::try_from(cache.max_entries).unwrap_or(usize::MAX),
            max_bytes: cache.max_bytes,
            max_age: cache.max_age,
            ..CacheLimits::default()
        }),
        registry: registry(config),
    }
}

/// The patterns that can be used.
fn patterns(config: &Config, notes: &mut Notes<'_>) -> Vec<Pattern> {
    let mut usable = Vec::new();
    for pattern in &config.patterns {
        let pattern = Pattern {
            name: pattern.name.clone(),
            class: pattern.class.clone(),
            message: pattern.message.clone(),
            scope: pattern.scope,
            kind: pattern.kind.clone(),
            retryable: pattern.retryable,
            ambiguous: pattern.ambiguous,
            ill_health: pattern.ill_health,
        };
        match Patterns::new(vec![pattern.clone()]) {
            Ok(_) => usable.push(pattern),
            Err(error) => notes.error(format!("pattern {}", pattern.name), &error),
        }
    }
    usable
}

/// The default table, changed by what the configuration says.
fn retry(config: &Config, notes: &mut Notes<'_>) -> RetryPolicies {
    let retries = &config.retry;
    let mut policies = RetryPolicies::default();
    match overlay(&retries.default, &policies.default) {
        Ok(policy) => policies.default = policy,
        Err(error) => notes.error("retry.default", &error),
    }
    for (kind, table) in &retries.kinds {
        match overlay(table, policies.of(kind)) {
            Ok(mut policy) => {
                // A kind named by the operator is the operator's judgement: where the kind itself says
                // never, its table says when. What a pattern says goes before both.
                let refused = |pattern: &config::Pattern| {
                    pattern.kind == *kind && pattern.retryable == Some(false)
                };
                if !Failure::new(kind.clone(), "").retryable && !config.patterns.iter().any(refused)
                {
                    policy = policy.with_condition(|_| true);
                }
                policies.by_kind.insert(kind.clone(), policy);
            }
            Err(error) => notes.error(format!("retry.{kind}"), &error),
        }
    }
    policies
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

fn registry(config: &Config) -> RegistryConfig {
    let health = &config.health;
    RegistryConfig {
        circuit: circuit(config, &config.circuit),
        health: HealthConfig {
            interval: health.interval,
            fast_interval: health.fast_interval,
            timeout: health.timeout,
            rise: health.rise,
            fall: health.fall,
            jitter_percent: percent(health.jitter),
            concurrency: health.max_concurrent,
        },
        balance: BalanceConfig {
            slow_start: health.slow_start,
            max_ejected_percent: percent(config.circuit.max_ejected).max(1),
            ..BalanceConfig::default()
        },
    }
}

fn percent(share: f64) -> u8 {
    (share * 100.0).round().clamp(0.0, 100.0) as u8
}

fn circuit(config: &Config, circuit: &config::Circuit) -> CircuitConfig {
    CircuitConfig {
        consecutive_failures: circuit.consecutive_failures,
        failure_rate_percent: percent(circuit.failure_rate).max(1),
        window: circuit.window,
        minimum_throughput: circuit.minimum_throughput,
        slow_after: circuit.slow_after,
        slow_rate_percent: percent(circuit.slow_rate).max(1),
        open_base: circuit.open_for,
        open_max: circuit.max_open,
        jitter_percent: percent(circuit.jitter),
        decay: circuit.decay,
        half_open_probes: circuit.half_open_probes,
        successes_to_close: circuit.half_open_successes,
        // A probe lasts no longer than an attempt may: after that its place is given to another.
        lease_timeout: config
            .deadline
            .attempt_max
            .max(CircuitConfig::default().lease_timeout),
    }
}

pub(super) fn targets(config: &Config, registry: &Registry, notes: &mut Notes<'_>) {
    let services = config.services.iter().map(|service| service.target(config));
    let models = config.models.iter().map(|model| model.target(config));
    for spec in services.chain(models) {
        let name = spec.name.clone();
        if let Err(error) = registry.register(spec) {
            notes.error(format!("service {name:?}"), &error);
        }
    }
}

/// What a target has instead of the settings of all.
fn with_policies(
    mut spec: TargetSpec,
    own: &config::TargetPolicies,
    config: &Config,
) -> TargetSpec {
    let health = &own.health;
    spec.probed = health.enabled.unwrap_or(config.health.enabled);
    spec.health_interval = health.interval;
    spec.health_fast_interval = health.fast_interval;
    spec.health_timeout = health.timeout;
    spec.health_rise = health.rise.and_then(NonZeroU32::new);
    spec.health_fall = health.fall.and_then(NonZeroU32::new);
    spec.slow_start = health.slow_start;
    if own.circuit != config::CircuitOverride::default() {
        spec = spec.circuit(circuit(config, &own.circuit.over(&config.circuit)));
    }
    spec
}

impl config::Service {
    /// The target of the engine it is, where the rest of the configuration is this one.
    pub fn target(&self, config: &Config) -> TargetSpec {
        let mut spec = TargetSpec::service(self.name.as_str(), self.group.as_str())
            .priority(self.priority)
            .weight(weight(self.weight));
        match &self.transport {
            config::Transport::Http { url, .. } => spec = spec.url(url.value()),
            config::Transport::Stdio { command, .. } => spec = spec.attribute("command", command),
        }
        if let Some(url) = &self.health_url {
            spec = spec.health_url(url.value());
        }
        spec.trusted = self.trusted;
        for status in &self.ambiguous_statuses {
            spec = spec.ambiguous_status(*status, true);
        }
        let spec = limited(spec, &self.limits);
        with_policies(spec, &self.policies, config)
    }
}

impl config::Model {
    /// The target of the engine it is, where the rest of the configuration is this one.
    pub fn target(&self, config: &Config) -> TargetSpec {
        let mut spec = TargetSpec::model(self.name.as_str(), self.group.as_str())
            .url(self.base_url.value())
            .attribute("model", &self.model)
            .attribute("tools", self.tools.to_string())
            .attribute("vision", self.vision.to_string())
            .attribute("prefill", self.prefill.to_string())
            .priority(self.priority)
            .weight(weight(self.weight));
        if let Some(tokens) = self.context_length {
            spec = spec.attribute("context-length", tokens.to_string());
        }
        if let Some(url) = &self.health_url {
            spec = spec.health_url(url.value());
        }
        let spec = limited(spec, &self.limits);
        with_policies(spec, &self.policies, config)
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
    use crate::retry::{RetryContext, RetryManager};

    fn policies(text: &str) -> RetryPolicies {
        let loaded = Config::parse(text, Path::new("t.toml"), &|_| None);
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        let mut notes = Notes {
            file: Path::new("t.toml"),
            list: Vec::new(),
        };
        let policies = retry(&loaded.config, &mut notes);
        assert!(notes.list.is_empty(), "{:?}", notes.list);
        policies
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
    fn a_target_has_what_it_says_of_its_own_and_the_rest_from_all() {
        let text = "[health]\nenabled = false\nrise = 4\n[circuit]\nwindow = '20s'\n\
             [[service]]\nname = 'own'\nurl = 'http://a'\nhealth = { enabled = true, fall = 7 }\n\
             circuit = { consecutive_failures = 2 }\n\
             [[service]]\nname = 'plain'\nurl = 'http://b'\n";
        let loaded = Config::parse(text, Path::new("t.toml"), &|_| None);
        assert_eq!(loaded.diagnostics, []);
        let config = loaded.config;
        let builder = Registry::builder().config(registry(&config));
        let registry = builder.build().unwrap();
        let mut notes = Notes {
            file: Path::new("t.toml"),
            list: Vec::new(),
        };
        targets(&config, &registry, &mut notes);
        assert!(notes.list.is_empty(), "{:?}", notes.list);
        let own = &registry.get("own").unwrap().spec;
        let checks = own.health_checks(&registry.config().health);
        assert_eq!((own.probed, checks.rise, checks.fall), (true, 4, 7));
        let circuit = own.circuit.as_deref().unwrap();
        assert_eq!(
            (circuit.consecutive_failures, circuit.window),
            (2, Duration::from_secs(20))
        );
        let plain = &registry.get("plain").unwrap().spec;
        assert_eq!((plain.probed, plain.circuit.is_some()), (false, false));
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

    #[test]
    fn a_table_for_a_kind_that_is_never_retried_takes_effect_unless_a_pattern_forbids_it() {
        let wants = |text: &str, kind: &str| {
            let failure = Failure::new(Kind::new(kind), "");
            let context = RetryContext::new(&failure, 0, Duration::from_secs(60));
            let policies = policies(text);
            RetryManager::new(policies)
                .next_delay(&context, None, &mut || 0)
                .is_some()
        };
        for kind in ["ToolError", "NotFound", "TeamQuota", "InvalidParameter"] {
            assert!(!wants("", kind), "{kind}");
            let table = format!("[retry.{kind}]\nmax_retries = 1\n");
            assert!(wants(&table, kind), "{kind}");
            let pattern = format!(
                "{table}[[pattern]]\nname = 'p'\nmessage = 'x'\nkind = '{kind}'\nretryable = false\n"
            );
            assert!(!wants(&pattern, kind), "{kind}");
        }
    }
}
