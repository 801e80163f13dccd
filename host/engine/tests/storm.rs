//! An outage with full traffic: fallback must not make it worse.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use backstop::budget::BudgetPolicy;
use backstop::{Call, Engine, Failure, Kind};
use common::{Reply, Script, build, request, rule};
use tokio::task::JoinSet;

const SECONDS: u64 = 60;
const CALLS_PER_SECOND: u64 = 1000;

/// Every target throttles (which opens no circuit, so only the budget holds), every call wants three
/// retries: how many attempts reach the target for each call.
async fn attempts_per_call(budget: BudgetPolicy) -> f64 {
    let throttled = Failure::new(Kind::TOO_MANY_REQUESTS, "no");
    let script = Arc::new(Script::default().on("a", [Reply::Bad(throttled)]));
    let three_retries = rule("retry", 1, |situation| {
        let delay = Some(Duration::from_millis(100));
        (situation.retries < 3).then_some(backstop::strategy::Action::Retry { delay })
    });
    let engine = build(
        Engine::builder().budget(budget),
        &["a"],
        vec![three_retries],
    );
    let mut calls = JoinSet::new();
    for _ in 0..SECONDS * CALLS_PER_SECOND {
        let (engine, script) = (engine.clone(), script.clone());
        calls.spawn(async move {
            let failed = engine
                .call(&*script, Call::new("g", "op"), &request("op"))
                .await;
            assert_eq!(
                failed.unwrap_err().error.cause.kind,
                Kind::TOO_MANY_REQUESTS
            );
        });
        tokio::time::sleep(Duration::from_millis(1000 / CALLS_PER_SECOND)).await;
    }
    let made = calls.join_all().await.len();
    assert_eq!(made as u64, SECONDS * CALLS_PER_SECOND);
    script.targets_sent().len() as f64 / made as f64
}

#[tokio::test(start_paused = true)]
async fn a_storm_is_not_multiplied() {
    let with_budget = attempts_per_call(BudgetPolicy::default()).await;
    // 20 % of the calls, and the reserve of 10 a second beside 1000 calls a second.
    assert!(
        (1.0..=1.2 + 0.013).contains(&with_budget),
        "{with_budget} attempts a call"
    );

    let generous = BudgetPolicy::Ratio {
        ttl: Duration::from_secs(10),
        reserve_per_second: 100_000,
        ratio: 10.0,
    };
    let without = attempts_per_call(generous).await;
    assert!(without > 3.99, "the plain loop makes four: {without}");
}
