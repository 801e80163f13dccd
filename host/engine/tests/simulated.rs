//! Strategies in a simulation: their code takes real time, their decisions take none of the simulated.
#![cfg(feature = "component")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

mod component_guest;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use backstop::strategy::component::{ComponentStrategy, Runtime, RuntimeOptions, StrategyOptions};
use backstop::strategy::{Situation, StrategyFault};
use backstop::{Failure, Kind};
use component_guest::Guest;
use serde_json::json;
use tokio::time::Instant;

/// A strategy whose condition is this, in a runtime of a simulation.
async fn load(condition: &str, deadline_ms: u64) -> Arc<ComponentStrategy> {
    let options = RuntimeOptions::default().simulated(1, SystemTime::UNIX_EPOCH);
    let runtime = Runtime::new(options).unwrap();
    let guest = Guest {
        condition: condition.into(),
        items: "(global $turns (mut i32) (i32.const 0))".into(),
        ..Guest::default()
    };
    let options = StrategyOptions {
        limits: serde_json::from_value(json!({ "decision-deadline-ms": deadline_ms })).unwrap(),
        ..StrategyOptions::default()
    };
    ComponentStrategy::load(&runtime, "guest", guest.build(), options)
        .await
        .unwrap()
}

fn situation() -> Situation {
    Situation::of(Failure::new(Kind::TIMEOUT_ERROR, "no answer"))
}

#[tokio::test(start_paused = true)]
async fn a_decision_of_many_ticks_takes_no_simulated_time_and_nothing_else_happens_meanwhile() {
    let turns = "(loop $again
        (global.set $turns (i32.add (global.get $turns) (i32.const 1)))
        (br_if $again (i32.lt_u (global.get $turns) (i32.const 100000000))))
        i32.const 1";
    let strategy = load(turns, 60_000).await;
    // What made instances ready has come to its end.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let other = Arc::new(AtomicBool::new(false));
    let happened = other.clone();
    let (began, really) = (Instant::now(), std::time::Instant::now());
    tokio::spawn(async move { happened.store(true, Ordering::Relaxed) });
    let decided = strategy.decide(&situation()).await;
    assert!(decided.unwrap().is_some());
    assert!(!other.load(Ordering::Relaxed), "something else happened");
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(really.elapsed() > Duration::from_millis(20), "no tick came");
    tokio::task::yield_now().await;
    assert!(other.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_end_is_stopped_by_real_time() {
    let strategy = load("(loop $again (br $again)) unreachable", 50).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let (began, really) = (Instant::now(), std::time::Instant::now());
    let decided = strategy.decide(&situation()).await;
    assert_eq!(
        decided,
        Err(StrategyFault::Timeout(Duration::from_millis(50)))
    );
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(really.elapsed() >= Duration::from_millis(40));
}
