//! Random settings, and random changes of them while the engine runs.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use backstop::backoff::{Backoff, Jitter};
use backstop::budget::BudgetPolicy;
use backstop::circuit::CircuitConfig;
use backstop::registry::{BalanceConfig, ConcurrencyLimit, RateLimit, RegistryConfig, TargetSpec};
use backstop::retry::{RetryManager, RetryPolicies, RetryPolicy};
use backstop::{CacheLimits, Caps, Deadlines, Engine, Hedge, Kind, Settings};

use super::world::{Agreed, World};
use super::{Chance, hostile};

/// What every call of a world is held to.
pub struct Limits {
    pub caps: Caps,
    pub deadline: Duration,
    pub attempt: Duration,
    pub attempt_max: Duration,
    pub budget: BudgetPolicy,
}

impl Limits {
    pub fn random(chance: &Chance) -> Self {
        Self {
            caps: Caps {
                max_attempts: 1 + chance.below(12) as u32,
                max_fallbacks: chance.below(6) as u32,
            },
            deadline: Duration::from_millis(1 + chance.below(20_000)),
            attempt: Duration::from_millis(1 + chance.below(3000)),
            attempt_max: Duration::from_millis(1 + chance.below(6000)),
            budget: if chance.one_in(4) {
                BudgetPolicy::Tokens {
                    max_tokens: 1 + chance.below(20) as u32,
                    token_ratio: 0.1 + chance.below(9) as f64 / 10.0,
                }
            } else {
                BudgetPolicy::Ratio {
                    ttl: Duration::from_secs(1 + chance.below(20)),
                    reserve_per_second: chance.below(4) as u32,
                    ratio: *chance.one_of(&[0.0, 0.1, 0.2, 0.2, 1.0]),
                }
            },
        }
    }
}

/// Any schedule, any jitter.
fn backoff(chance: &Chance) -> Backoff {
    let millis = || Duration::from_millis(1 + chance.below(3000));
    let backoff = match chance.below(3) {
        0 => Backoff::fixed(millis()),
        1 => Backoff::list([millis(), Duration::ZERO, millis()]),
        _ => {
            let initial = millis();
            let factor = 1.0 + chance.below(50) as f64 / 10.0;
            Backoff::exponential(initial, factor, initial + millis())
        }
    };
    let jitters = [
        Jitter::None,
        Jitter::Full,
        Jitter::Equal,
        Jitter::Decorrelated,
    ];
    backoff.unwrap().with_jitter(*chance.one_of(&jitters))
}

fn policy(chance: &Chance) -> RetryPolicy {
    let policy = RetryPolicy::new(chance.below(8) as u32, backoff(chance));
    match chance.below(4) {
        // A policy that wants everything sent again is as good as a hostile strategy.
        0 => policy.with_condition(|_| true),
        1 => policy.with_condition(|context| {
            context.repeatable && context.attempts < 4 && context.importance > 20
        }),
        _ => policy,
    }
}

fn policies(chance: &Chance) -> RetryPolicies {
    if chance.one_in(2) {
        return RetryPolicies::default();
    }
    let some = Kind::WELL_KNOWN.iter().filter(|_| chance.one_in(3));
    RetryPolicies {
        by_kind: some
            .map(|kind| (kind.clone(), policy(chance)))
            .collect::<HashMap<_, _>>(),
        ..RetryPolicies::uniform(policy(chance))
    }
}

pub fn hedge(chance: &Chance) -> Hedge {
    if chance.one_in(4) {
        Hedge::Percentile(1 + chance.below(99) as u8)
    } else {
        Hedge::After(chance.millis(500))
    }
}

fn registry(chance: &Chance) -> RegistryConfig {
    RegistryConfig {
        circuit: CircuitConfig {
            consecutive_failures: 1 + chance.below(8) as u32,
            open_base: Duration::from_millis(1 + chance.below(10_000)),
            half_open_probes: 1 + chance.below(3) as u32,
            ..CircuitConfig::default()
        },
        balance: BalanceConfig {
            slow_start: chance.millis(10_000),
            ..BalanceConfig::default()
        },
        ..RegistryConfig::default()
    }
}

fn place(chance: &Chance, spec: TargetSpec) -> TargetSpec {
    spec.priority(chance.below(3) as i32)
        .weight(NonZeroU32::new(1 + chance.below(5) as u32).unwrap())
}

fn target(chance: &Chance, name: String, world: &World) -> TargetSpec {
    let group = if chance.one_in(3) { "h" } else { "g" };
    let mut spec = if chance.one_in(4) {
        TargetSpec::model(name, group)
    } else {
        TargetSpec::service(name, group)
    };
    let small = || NonZeroU32::new(1 + chance.below(3) as u32).unwrap();
    let agreed = Agreed {
        concurrency: chance.one_in(3).then(|| ConcurrencyLimit {
            max: small(),
            queue: chance.below(3) as u32,
        }),
        rate: chance.one_in(4).then(|| RateLimit {
            requests: small(),
            per: Duration::from_millis(1 + chance.below(5000)),
        }),
    };
    spec.concurrency = agreed.concurrency;
    spec.rate_limit = agreed.rate;
    world.agree(&spec.name, agreed);
    place(chance, spec)
}

pub fn engine(chance: &Chance, limits: &Limits, world: &World) -> Engine {
    let engine = Engine::builder()
        .random(chance.fork().0)
        .registry(registry(chance))
        .retry(RetryManager::new(policies(chance)))
        .budget(limits.budget)
        .settings(Settings {
            deadlines: Deadlines {
                call: limits.deadline,
                attempt: limits.attempt,
                attempt_max: limits.attempt_max,
            },
            caps: limits.caps,
        })
        .cache(CacheLimits::default())
        .build()
        .unwrap();
    for at in 0..1 + chance.below(6) {
        let spec = target(chance, format!("t{at}"), world);
        engine.registry().register(spec).unwrap();
    }
    for at in 0..chance.below(6) {
        let strategy = hostile::strategy(chance, format!("s{at}"), world);
        engine.strategies().add(strategy).unwrap();
    }
    engine
}

/// What an operator may do to a running engine.
pub fn change(chance: &Chance, engine: &Engine, world: &World) {
    let registry = engine.registry();
    match chance.below(8) {
        0 => {
            if let Some(old) = registry.list().first() {
                registry.deregister(&old.name).unwrap();
                let spec = target(chance, old.name.to_string(), world);
                registry.register(spec).unwrap();
            }
        }
        1 => {
            if let Some(old) = registry.list().last() {
                // Limits that stay go on counting.
                registry.update(place(chance, old.spec.clone())).unwrap();
            }
        }
        2 => registry.configure(self::registry(chance)).unwrap(),
        3 => engine.retry().replace(policies(chance)),
        4 => {
            let name = format!("s{}", chance.below(8));
            engine.strategies().remove(&name);
            let strategy = hostile::strategy(chance, name, world);
            engine.strategies().add(strategy).unwrap();
        }
        _ => {}
    }
}
