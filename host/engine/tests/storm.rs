//! An outage with full traffic: fallback must not make it worse.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use backstop::budget::BudgetPolicy;
use backstop::{Call, Engine, Failure, Kind};
use common::{Reply, Script, build, request, rule, switch_always};
use tokio::task::JoinSet;

const SECONDS: u64 = 60;
const CALLS_PER_SECOND: u64 = 1000;

/// Every target throttles (which opens no circuit, so only the budget holds), every call wants three
/// retries of each target: how many attempts reach the targets for each call.
async fn attempts_per_call(budget: BudgetPolicy, targets: &[&str]) -> f64 {
    let throttled = Failure::new(Kind::TOO_MANY_REQUESTS, "no");
    let all_throttle = |script: Script, target: &&str| {
        let reply = Reply::Bad(throttled.clone());
        script.on(target, [reply])
    };
    let script = Arc::new(targets.iter().fold(Script::default(), all_throttle));
    let three_retries = rule("retry", 2, |situation| {
        let delay = Some(Duration::from_millis(100));
        (situation.retries < 3).then_some(backstop::strategy::Action::Retry { delay })
    });
    let engine = build(
        Engine::builder().budget(budget),
        targets,
        vec![three_retries, switch_always(1)],
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
    let with_budget = attempts_per_call(BudgetPolicy::default(), &["a"]).await;
    // 20 % of the calls, and the reserve of 10 a second beside 1000 calls a second.
    assert!(
        (1.0..=1.2 + 0.013).contains(&with_budget),
        "{with_budget} attempts a call"
    );
    let three_targets = attempts_per_call(BudgetPolicy::default(), &["a", "b", "c"]).await;
    assert!(
        (1.0..=1.2 + 0.013).contains(&three_targets),
        "{three_targets} attempts a call, retries and switches together"
    );

    let generous = BudgetPolicy::Ratio {
        ttl: Duration::from_secs(10),
        reserve_per_second: 100_000,
        ratio: 10.0,
    };
    let without = attempts_per_call(generous, &["a"]).await;
    assert!(without > 3.99, "the plain loop makes four: {without}");
}
