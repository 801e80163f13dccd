//! How targets are left alone and come back, in simulated time: what each kind of fault does, step by step,
//! and what must hold of any.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub
)]

mod random_faults;
mod world;

use std::time::Duration;

use backstop::circuit::{CircuitConfig, CircuitState};
use backstop::health::HealthStatus;
use backstop::registry::{RegistryConfig, TargetSpec};
use world::{Condition, World};

/// The defaults, without the chance that would blur the steps.
fn config() -> RegistryConfig {
    let mut config = RegistryConfig::default();
    config.circuit.jitter_percent = 0;
    config
}

fn service(name: &str, priority: i32) -> TargetSpec {
    TargetSpec::service(name, "g").priority(priority)
}

fn pair(change: impl FnOnce(&mut RegistryConfig)) -> World {
    let mut config = config();
    change(&mut config);
    let specs = vec![service("primary", 1), service("backup", 0)];
    World::new(7, config, specs)
}

/// Without active checks: what live traffic alone does.
fn unprobed_pair(change: impl FnOnce(&mut CircuitConfig)) -> World {
    let mut config = config();
    change(&mut config.circuit);
    let specs = vec![
        service("primary", 1).unprobed(),
        service("backup", 0).unprobed(),
    ];
    World::new(7, config, specs)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Calls that a target was sent while this time passed.
async fn sent(world: &mut World, name: &str, time: Duration) -> u32 {
    let before = world.sent.get(name).copied().unwrap_or(0);
    world.run(time).await;
    world.sent.get(name).copied().unwrap_or(0) - before
}

#[tokio::test(start_paused = true)]
async fn a_dead_primary_is_left_alone_tried_ever_less_often_and_used_again_with_a_ramp() {
    let mut world = unprobed_pair(|_| {});
    world.run(seconds(10)).await;
    world.set("primary", Condition::Down);
    // Five calls open it; after that each opening lets one call through.
    assert_eq!(sent(&mut world, "primary", seconds(60)).await, 5 + 4);
    assert_eq!(
        world.changes_of("primary"),
        [
            "open 5s ConsecutiveFailures",
            "half-open",
            "open 10s ProbeFailed",
            "half-open",
            "open 15s ProbeFailed",
            "half-open",
            "open 20s ProbeFailed",
            "half-open",
            "open 25s ProbeFailed",
        ]
    );
    world.set("primary", Condition::Well);
    let soon = sent(&mut world, "primary", seconds(20)).await;
    let later = sent(&mut world, "primary", seconds(20)).await;
    assert_eq!(
        world.changes_of("primary"),
        ["half-open", "closed", "recovered"]
    );
    assert!(0 < soon && soon < later && later < 40, "{soon} {later}");
    world.run(seconds(5)).await;
    assert_eq!(sent(&mut world, "primary", seconds(20)).await, 40);
    assert_eq!(world.lost, 0);
}

#[tokio::test(start_paused = true)]
async fn flapping_is_answered_with_longer_openings_not_with_as_many() {
    let mut world = unprobed_pair(|_| {});
    world.gap = (100, 100);
    for _ in 0..30 {
        world.set("primary", Condition::Down);
        world.run(seconds(10)).await;
        world.set("primary", Condition::Well);
        world.run(seconds(10)).await;
    }
    let changes = world.changes_of("primary");
    let openings: Vec<u64> = changes
        .iter()
        .filter_map(|change| {
            change
                .strip_prefix("open ")?
                .split('s')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    // Thirty flaps in ten minutes.
    assert!((5..=20).contains(&openings.len()), "{changes:?}");
    assert!(openings.iter().any(|open| *open >= 30), "{changes:?}");
    assert!(
        changes.iter().any(|change| change == "closed"),
        "{changes:?}"
    );
    assert_eq!(world.lost, 0);
    // And once it is over, it is over.
    world.run(seconds(300)).await;
    assert_eq!(world.circuit("primary"), CircuitState::Closed);
    assert_eq!(world.who_is_asked(20)["primary"], 20);
}

#[tokio::test(start_paused = true)]
async fn a_fifth_of_errors_ejects_nobody_and_is_retried_elsewhere() {
    let mut world = pair(|_| {});
    world.set("primary", Condition::Errors(20));
    world.run(seconds(600)).await;
    assert_eq!(world.circuit("primary"), CircuitState::Closed);
    assert_eq!(world.lost, 0);
    assert!(world.served["backup"] > 100, "{:?}", world.served);
    world.set("primary", Condition::Errors(60));
    world.run(seconds(30)).await;
    assert!(
        world.changes_of("primary")[0].starts_with("open"),
        "more than half is too much"
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_target_gets_less_to_do_and_is_ejected_where_slow_is_defined() {
    let three = || ["a", "b", "c"].map(|name| service(name, 0)).to_vec();
    let mut world = World::new(7, config(), three());
    world.gap = (20, 20);
    world.set("a", Condition::Slow(1500));
    world.run(seconds(60)).await;
    assert_eq!(world.changes_of("a"), Vec::<String>::new());
    let fair = world.sent.values().sum::<u32>() / 3;
    assert!(world.sent["a"] * 3 < fair * 2, "{:?}", world.sent);

    let mut limited = config();
    limited.circuit.slow_after = Some(seconds(1));
    // It gets less than a call a second, see above.
    limited.circuit.minimum_throughput = 5;
    let mut world = World::new(7, limited, three());
    world.gap = (20, 20);
    world.set("a", Condition::Slow(1500));
    world.run(seconds(20)).await;
    world.set("a", Condition::Well);
    world.run(seconds(20)).await;
    assert_eq!(
        world.changes_of("a"),
        [
            "open 5s SlowRate",
            "half-open",
            "open 10s ProbeFailed",
            "half-open",
            "closed",
            "recovered"
        ]
    );
    assert_eq!(world.lost, 0);
}

#[tokio::test(start_paused = true)]
async fn in_a_partial_outage_the_next_level_takes_what_the_rest_cannot_bear() {
    let specs = (0..10)
        .map(|n| service(&format!("top{n}"), 1))
        .chain([service("next", 0)]);
    let mut world = World::new(7, config(), specs.collect());
    world.gap = (10, 10);
    for n in 0..5 {
        world.set(&format!("top{n}"), Condition::Down);
    }
    world.run(seconds(120)).await;
    // 1.4 · 50 % is 70 %.
    let before = world.sent["next"];
    world.run(seconds(20)).await;
    let share = (world.sent["next"] - before) * 100 / 2000;
    assert!((25..=35).contains(&share), "{share} %");
    assert_eq!(world.lost, 0);
    for n in 0..5 {
        world.set(&format!("top{n}"), Condition::Well);
    }
    world.run(seconds(360)).await;
    let before = world.sent["next"];
    world.run(seconds(20)).await;
    assert_eq!(world.sent["next"], before);
}

#[tokio::test(start_paused = true)]
async fn probes_that_pass_do_not_bring_back_what_fails_its_callers() {
    let mut world = pair(|_| {});
    world.set("primary", Condition::Errors(100));
    world.run(seconds(30)).await;
    let health = world.registry.get("primary").unwrap().health();
    assert_eq!(health, HealthStatus::Healthy);
    assert_eq!(
        world.changes_of("primary"),
        [
            "open 5s ConsecutiveFailures",
            "half-open",
            "open 10s ProbeFailed",
            "half-open",
            "open 15s ProbeFailed",
        ]
    );
    world.set("primary", Condition::Well);
    world.run(seconds(45)).await;
    assert_eq!(
        world.changes_of("primary"),
        ["half-open", "closed", "recovered"]
    );
    assert_eq!(world.who_is_asked(20)["primary"], 20);
    assert_eq!(world.lost, 0);
}

#[tokio::test(start_paused = true)]
async fn probes_that_fail_move_the_traffic_but_cut_nobody_off() {
    let mut world = pair(|_| {});
    world.set("primary", Condition::OnlyProbesFail);
    world.run(seconds(60)).await;
    assert_eq!(world.changes_of("primary"), ["down"]);
    assert_eq!(world.who_is_asked(20)["backup"], 20);
    // With the other one gone as well, it is asked all the same.
    world.set("backup", Condition::OnlyProbesFail);
    world.run(seconds(60)).await;
    assert_eq!(world.who_is_asked(20)["primary"], 20);
    world.set("primary", Condition::Well);
    world.run(seconds(60)).await;
    assert_eq!(world.changes_of("primary"), ["up", "recovered"]);
    assert_eq!(world.lost, 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_probed_for_at_a_faster_pace() {
    let mut world = pair(|_| {});
    // A call an hour: only probes can find out.
    world.gap = (3_600_000, 3_600_000);
    world.run(seconds(60)).await;
    world.set("primary", Condition::Down);
    // One regular interval of at most 33 s, then two of at most 5.5 s.
    world.run(seconds(33 + 11)).await;
    assert_eq!(world.changes_of("primary"), ["down"]);
    world.set("primary", Condition::Well);
    world.run(seconds(33 + 6)).await;
    assert_eq!(world.changes_of("primary"), ["up", "recovered"]);
}

#[tokio::test(start_paused = true)]
async fn when_all_are_down_one_is_tried_and_whoever_is_back_first_serves() {
    let mut world = unprobed_pair(|_| {});
    for name in ["primary", "backup"] {
        world.set(name, Condition::Hangs);
    }
    world.gap = (50, 50);
    world.run(seconds(20)).await;
    for name in ["primary", "backup"] {
        assert_ne!(world.circuit(name), CircuitState::Closed);
    }
    assert_eq!(world.most_probes, 1);
    // One call at a time, each as long as it may be silent: at most one target's worth of calls.
    let before: u32 = world.sent.values().sum();
    world.run(seconds(60)).await;
    let tried = world.sent.values().sum::<u32>() - before;
    assert!((10..=62).contains(&tried), "{tried}");

    world.changes_of("backup");
    world.set("backup", Condition::Well);
    world.run(seconds(60)).await;
    let changes = world.changes_of("backup");
    assert_eq!(changes[changes.len() - 2..], ["closed", "recovered"]);
    assert_eq!(world.who_is_asked(20)["backup"], 20);
    let lost = world.lost;

    world.changes_of("primary");
    world.set("primary", Condition::Well);
    world.run(seconds(200)).await;
    assert_eq!(world.lost, lost, "one that serves is enough");
    assert_eq!(
        world.changes_of("primary"),
        ["half-open", "closed", "recovered"]
    );
    assert_eq!(world.who_is_asked(20)["primary"], 20);
}

#[tokio::test(start_paused = true)]
async fn callers_that_give_up_or_vanish_hold_no_place_for_good() {
    for (condition, patience) in [
        (Condition::CallersCancel, seconds(5)),
        // A place is given to another when its holder has had it for too long.
        (Condition::CallersVanish, seconds(130)),
    ] {
        let mut world = unprobed_pair(|_| {});
        world.set("primary", Condition::Down);
        world.run(seconds(4)).await;
        world.set("primary", condition);
        world.run(seconds(30)).await;
        assert_eq!(
            world.changes_of("primary"),
            ["open 5s ConsecutiveFailures", "half-open"],
            "{condition:?}: who gives up says nothing about the target"
        );
        assert_eq!(world.most_probes, 1, "{condition:?}");
        world.set("primary", Condition::Well);
        world.run(patience).await;
        assert_eq!(
            world.changes_of("primary"),
            ["closed", "recovered"],
            "{condition:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn throttling_ejects_nobody_and_neither_do_callers_that_give_up() {
    for condition in [Condition::Throttles, Condition::CallersCancel] {
        let mut world = pair(|_| {});
        world.set("primary", condition);
        world.run(seconds(300)).await;
        assert_eq!(world.changes_of("primary"), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn hung_probes_end_and_count_as_bad_ones() {
    let mut world = pair(|config| config.health.interval = seconds(10));
    world.gap = (3_600_000, 3_600_000);
    world.run(seconds(30)).await;
    world.set("primary", Condition::Hangs);
    world.run(seconds(60)).await;
    world.set("primary", Condition::Well);
    world.run(seconds(30)).await;
    assert_eq!(world.changes_of("primary"), ["down", "up", "recovered"]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_finds_everything_as_it_left_it() {
    let mut world = pair(|_| {});
    world.run(seconds(60)).await;
    for hours in [1, 9, 100] {
        tokio::time::advance(seconds(hours * 3600)).await;
        world.run(seconds(60)).await;
    }
    for name in ["primary", "backup"] {
        assert_eq!(world.changes_of(name), Vec::<String>::new());
        let target = world.registry.get(name).unwrap();
        assert_eq!(target.health(), HealthStatus::Healthy);
    }
    // Asleep in the middle of an outage: the primary is tried at once.
    world.set("primary", Condition::Errors(100));
    world.run(seconds(10)).await;
    world.set("primary", Condition::Well);
    tokio::time::advance(seconds(8 * 3600)).await;
    world.run(seconds(2)).await;
    assert_eq!(world.circuit("primary"), CircuitState::Closed);
}
