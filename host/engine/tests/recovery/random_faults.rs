//! Random faults against random settings.
//!
//! `BACKSTOP_RECOVERY_SCHEDULES` sets how many schedules are run (default 10 000); `BACKSTOP_RECOVERY_SEED`
//! runs one only. A failure prints the command that repeats it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backstop::circuit::{CircuitConfig, CircuitState};
use backstop::health::HealthConfig;
use backstop::registry::{BalanceConfig, RegistryConfig, TargetSpec};
use tokio::time::Instant;

use crate::world::{Chance, Condition, World};

const NAMES: [&str; 4] = ["primary", "second", "third", "never-ill"];

fn config(chance: &Chance) -> RegistryConfig {
    let circuit = CircuitConfig {
        consecutive_failures: chance.from(1, 8) as u32,
        failure_rate_percent: chance.from(20, 100) as u8,
        minimum_throughput: chance.from(2, 20) as u32,
        slow_after: (chance.below(2) == 0).then(|| chance.millis(100, 1500)),
        open_base: chance.millis(500, 8000),
        open_max: chance.millis(8000, 40_000),
        jitter_percent: chance.from(0, 50) as u8,
        decay: chance.millis(1000, 60_000),
        half_open_probes: chance.from(1, 3) as u32,
        successes_to_close: chance.from(1, 3) as u32,
        lease_timeout: chance.millis(3000, 20_000),
        ..CircuitConfig::default()
    };
    let health = HealthConfig {
        interval: chance.millis(5000, 30_000),
        fast_interval: chance.millis(1000, 5000),
        timeout: chance.millis(1000, 5000),
        rise: chance.from(1, 3) as u32,
        fall: chance.from(1, 3) as u32,
        ..HealthConfig::default()
    };
    let balance = BalanceConfig {
        slow_start: chance.millis(0, 20_000),
        max_ejected_percent: chance.from(1, 100) as u8,
        ..BalanceConfig::default()
    };
    RegistryConfig {
        circuit,
        health,
        balance,
    }
}

fn condition(chance: &Chance) -> Condition {
    match chance.below(8) {
        0 => Condition::Down,
        1 => Condition::Hangs,
        2 => Condition::Slow(chance.from(50, 4000)),
        3 => Condition::Errors(chance.from(10, 100)),
        4 => Condition::OnlyProbesFail,
        5 => Condition::Throttles,
        6 => Condition::CallersCancel,
        _ => Condition::CallersVanish,
    }
}

/// The time after the last fault within which all is as it was: what was under way is over, the longest
/// opening and the longest lease have passed, probes have agreed, calls have closed the circuit, and the ramp
/// is at its end.
fn bound(config: &RegistryConfig, attempt_timeout: Duration, gap: Duration) -> Duration {
    let RegistryConfig {
        circuit,
        health,
        balance,
    } = config;
    let longest_open = circuit.open_max * (100 + u32::from(circuit.jitter_percent)) / 100;
    let live = attempt_timeout + longest_open + circuit.lease_timeout;
    let probes = health.interval.mul_f64(1.11)
        + health.timeout
        + health.fast_interval.mul_f64(1.11) * health.rise;
    live.max(probes) + gap * (circuit.successes_to_close + 2) + balance.slow_start + gap
}

async fn run(seed: u64) -> Result<(), String> {
    let chance = Chance(backstop::random::seeded(seed));
    let config = config(&chance);
    let limit = config.circuit.half_open_probes as usize;
    let specs = NAMES.map(|name| {
        let priority = if name == "primary" {
            5
        } else {
            chance.below(3) as i32
        };
        TargetSpec::service(name, "g")
            .priority(priority)
            .weight(NonZeroU32::new(chance.from(1, 5) as u32).unwrap())
    });
    let mut world = World::new(seed, config.clone(), specs.to_vec());
    world.attempt_timeout = chance.millis(500, 3000);
    world.gap = (100, chance.from(200, 1500));
    let began = Instant::now();
    let mut last = began;
    let mut lowest = began;
    for _ in 0..chance.from(1, 6) {
        let victim = NAMES[chance.below(3) as usize];
        let from = lowest + chance.millis(0, 10_000);
        let until = from + chance.millis(100, 30_000);
        world.plan(from, victim, condition(&chance));
        world.plan(until, victim, Condition::Well);
        last = last.max(until);
        if chance.below(3) > 0 {
            lowest = until;
        }
    }
    // Some machines sleep.
    if chance.below(5) == 0 {
        world.run(chance.millis(1000, 20_000)).await;
        tokio::time::advance(chance.millis(1, 10_000_000)).await;
    }
    let last = last.max(Instant::now());
    world.run_until(last).await;
    let gap = Duration::from_millis(world.gap.1);
    let bound = bound(&config, world.attempt_timeout, gap);
    world.run(bound).await;

    let holds = |holds: bool, what: &str| {
        let said = || format!("{what}; {config:?}");
        if holds { Ok(()) } else { Err(said()) }
    };
    holds(
        world.most_probes <= limit,
        "more half-open calls at a time than allowed",
    )?;
    holds(
        !world.was_ejected("never-ill"),
        "a target was ejected for the faults of another",
    )?;
    holds(
        world.lost == 0,
        "a call was lost although one target was well",
    )?;
    let asked = world.who_is_asked(30);
    if asked.get("primary") != Some(&30) {
        return Err(format!(
            "{bound:?} after the last fault the primary is not back: {asked:?}, {:?}; {config:?}",
            world.registry.get("primary")
        ));
    }
    // Those that stand behind another one come back when they are needed.
    for name in NAMES {
        let others: Vec<Arc<str>> = NAMES
            .iter()
            .filter(|other| **other != name)
            .map(|other| Arc::from(*other))
            .collect();
        for _ in 0..config.circuit.successes_to_close {
            let asked = world.ask_one(&others);
            holds(
                asked.as_deref() == Some(name),
                &format!("{name} is ejected for good"),
            )?;
        }
        holds(
            world.circuit(name) == CircuitState::Closed,
            &format!("the circuit of {name} does not close"),
        )?;
    }
    Ok(())
}

fn simulate(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    if let Err(broken) = runtime.block_on(run(seed)) {
        panic!(
            "{broken}\nto repeat: BACKSTOP_RECOVERY_SEED={seed} cargo test --workspace --all-features --test recovery random_faults"
        );
    }
}

#[test]
fn whatever_fails_everything_returns_to_normal_and_the_well_are_left_alone() {
    let read = |name: &str| {
        let text = std::env::var(name).ok();
        text.map(|text| text.parse::<u64>().unwrap())
    };
    if let Some(seed) = read("BACKSTOP_RECOVERY_SEED") {
        return simulate(seed);
    }
    let schedules = read("BACKSTOP_RECOVERY_SCHEDULES").unwrap_or(10_000);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= schedules {
                        return;
                    }
                    simulate(seed);
                }
            });
        }
    });
}
