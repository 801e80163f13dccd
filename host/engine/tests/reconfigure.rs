//! Policies that change while calls are under way: a call keeps those it began with, the next one has
//! the new ones, and what is refused changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::time::Duration;

use backstop::backoff::Backoff;
use backstop::budget::BudgetPolicy;
use backstop::call::{Degraded, Ending, RepeatSafety};
use backstop::detect::Pattern;
use backstop::retry::RetryPolicy;
use backstop::strategy::{Action, AnswerData};
use backstop::{BuildError, CacheLimits, Call, CallError, Engine, Kind};
use common::{Reply, Script, build, engine, refused, request, retry_always, rule, switch_always};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

fn quota() -> Pattern {
    Pattern::message("quota", "quota of team", "TeamQuota".into()).retryable(true)
}

/// Calls what is told to fail, `after` a while each time.
async fn fail(engine: &Engine, message: &'static str, after: Duration) -> CallError {
    let call = Call::new("g", "op").repeat_safety(RepeatSafety::ReadOnly);
    let failing = |_| async move {
        sleep(after).await;
        Err::<(), _>(std::io::Error::other(message))
    };
    engine.execute(call, failing).await.unwrap_err().error
}

fn seen(error: &CallError) -> (Kind, usize) {
    (error.cause.kind.clone(), error.trouble.attempts.len())
}

#[tokio::test(start_paused = true)]
async fn a_call_under_way_keeps_its_policies_and_the_next_one_has_the_new_ones() {
    let engine = engine(&["a"], vec![retry_always(1, None)]);
    let text = "the quota of team blue is spent";
    let under_way = fail(&engine, text, SECOND);
    let change = async {
        sleep(SECOND / 2).await;
        let mut policies = engine.policies();
        policies.patterns = vec![quota()];
        let twice = RetryPolicy::new(2, Backoff::fixed(SECOND).unwrap());
        policies.retry.by_kind.insert("TeamQuota".into(), twice);
        policies.settings.deadlines.attempt = Duration::from_secs(3);
        engine.reconfigure(policies).unwrap();
    };
    let (old, ()) = tokio::join!(under_way, change);
    assert_eq!(seen(&old), (Kind::UNKNOWN, 1));

    let new = fail(&engine, text, SECOND).await;
    assert_eq!(seen(&new), (Kind::new("TeamQuota"), 3));
    let slow = fail(&engine, text, Duration::from_secs(10)).await;
    assert_eq!(
        slow.cause.kind,
        Kind::TIMEOUT_ERROR,
        "the attempt's new limit"
    );
}

#[tokio::test(start_paused = true)]
async fn deadline_caps_and_strategies_are_those_of_the_calls_beginning() {
    let engine = engine(&["a"], vec![retry_always(1, Some(SECOND))]);
    let mut policies = engine.policies();
    let circuit = &mut policies.registry.circuit;
    (circuit.consecutive_failures, circuit.minimum_throughput) = (10_000, 10_000);
    engine.reconfigure(policies).unwrap();
    let began = Instant::now();
    let under_way = fail(&engine, "connection refused", SECOND);
    let change = async {
        sleep(SECOND / 2).await;
        let mut policies = engine.policies();
        policies.settings.caps.max_attempts = 2;
        policies.settings.deadlines.call = Duration::from_secs(4);
        engine.reconfigure(policies).unwrap();
        engine.strategies().remove("retry").unwrap();
    };
    let (old, ()) = tokio::join!(under_way, change);
    assert_eq!(
        seen(&old),
        (Kind::CONNECTION_ERROR, 16),
        "the cap it began with"
    );
    assert_eq!(began.elapsed(), Duration::from_secs(31));

    let new = fail(&engine, "connection refused", SECOND).await;
    assert_eq!(seen(&new), (Kind::CONNECTION_ERROR, 1), "nobody is asked");
    engine
        .strategies()
        .add(retry_always(1, Some(SECOND)))
        .unwrap();
    let new = fail(&engine, "connection refused", SECOND).await;
    assert_eq!(
        seen(&new),
        (Kind::CONNECTION_ERROR, 2),
        "the cap of the new"
    );
    let late = fail(&engine, "connection refused", Duration::from_secs(9)).await;
    assert_eq!(late.ending, Ending::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn what_is_spent_of_a_budget_stays_spent_until_the_budget_is_another() {
    let script = Script::default()
        .on("a", [Reply::Bad(refused())])
        .on("b", [Reply::Bad(refused())]);
    let budget = |reserve_per_second| BudgetPolicy::Ratio {
        ttl: Duration::from_secs(1),
        reserve_per_second,
        ratio: 0.0,
    };
    let builder = Engine::builder().budget(budget(3));
    let engine = build(builder, &["a", "b"], vec![switch_always(1)]);
    let _ = engine
        .call(&script, Call::new("g", "op"), &request("op"))
        .await;
    assert_eq!(engine.budget_left("g"), 2);

    let mut policies = engine.policies();
    policies.settings.caps.max_fallbacks = 7;
    policies.patterns = vec![quota()];
    engine.reconfigure(policies.clone()).unwrap();
    assert_eq!(engine.budget_left("g"), 2, "the budget was not changed");

    policies.budget = budget(5);
    engine.reconfigure(policies).unwrap();
    assert_eq!(engine.budget_left("g"), 5);
    assert_eq!(engine.policies().budget, budget(5));
}

#[tokio::test(start_paused = true)]
async fn a_budget_drawn_upon_is_the_one_the_call_began_with() {
    let script = Script::default()
        .on("a", [Reply::Late(SECOND, Box::new(Reply::Bad(refused())))])
        .on("b", [Reply::Good("saved")]);
    let engine = engine(&["a", "b"], vec![switch_always(1)]);
    let asked = request("op");
    let under_way = engine.call(&script, Call::new("g", "op"), &asked);
    let change = async {
        sleep(SECOND / 2).await;
        let mut policies = engine.policies();
        policies.budget = BudgetPolicy::Ratio {
            ttl: SECOND,
            reserve_per_second: 0,
            ratio: 0.0,
        };
        engine.reconfigure(policies).unwrap();
    };
    let (old, ()) = tokio::join!(under_way, change);
    assert_eq!(old.unwrap().served_by.as_deref(), Some("b"));
    let new = engine.call(&script, Call::new("g", "op"), &asked).await;
    let error = new.unwrap_err().error;
    assert_eq!(error.trouble.attempts.len(), 1, "the new budget is empty");
}

#[tokio::test(start_paused = true)]
async fn known_answers_outlive_a_change_of_the_limits_as_far_as_these_hold_them() {
    let script = Script {
        keep: true,
        ..Script::default()
    }
    .on("a", [Reply::Good("kept"), Reply::Bad(refused())]);
    let stale = rule("stale", 1, |_| {
        Some(Action::Answer(AnswerData::LastKnownGood))
    });
    let builder = Engine::builder().cache(CacheLimits::default());
    let engine = build(builder, &["a"], vec![stale]);
    let ask = async || {
        let call = Call::new("g", "op").caller("me");
        let outcome = engine.call(&script, call, &request("op")).await.ok()?;
        Some((outcome.answer.text, outcome.degraded))
    };
    let change = |cache| {
        let mut policies = engine.policies();
        policies.cache = cache;
        engine.reconfigure(policies).unwrap();
    };
    let limits = |seconds| {
        Some(CacheLimits {
            max_age: Duration::from_secs(seconds),
            ..CacheLimits::default()
        })
    };
    assert_eq!(ask().await, Some(("kept".into(), None)));
    change(limits(60));
    sleep(Duration::from_secs(30)).await;
    let (answer, degraded) = ask().await.unwrap();
    assert_eq!(answer, "kept");
    assert!(
        matches!(degraded, Some(Degraded::Stale { age, .. }) if age == Duration::from_secs(30))
    );
    change(limits(20));
    assert_eq!(ask().await, None, "too old for the new limits");
    change(None);
    assert_eq!(engine.policies().cache, None);
    assert_eq!(ask().await, None, "none are kept any more");
}

#[tokio::test(start_paused = true)]
async fn patterns_of_code_stay_and_those_of_the_operator_go_first() {
    let engine = engine(&["a"], vec![]);
    let of_code = Pattern::message("ours", "quota", "OfCode".into());
    engine.detector().add_pattern(of_code).unwrap();
    let kind = async || {
        fail(&engine, "quota of team red", SECOND)
            .await
            .cause
            .kind
            .clone()
    };
    let change = |patterns: Vec<Pattern>| {
        let mut policies = engine.policies();
        policies.patterns = patterns;
        engine.reconfigure(policies).unwrap();
    };
    assert_eq!(kind().await, Kind::new("OfCode"));
    change(vec![quota()]);
    assert_eq!(kind().await, Kind::new("TeamQuota"));
    let handle = engine.detector();
    change(vec![]);
    assert_eq!(kind().await, Kind::new("OfCode"));
    handle.remove_pattern("ours");
    assert_eq!(
        kind().await,
        Kind::UNKNOWN,
        "a handle of before changes it still"
    );
}

#[tokio::test(start_paused = true)]
async fn policies_that_are_out_of_range_are_refused_by_name_and_change_nothing() {
    let engine = engine(&["a"], vec![]);
    let before = format!("{:?}", engine.policies());
    let refused = |spoil: &dyn Fn(&mut backstop::Policies)| {
        let mut policies = engine.policies();
        policies.patterns = vec![quota()];
        spoil(&mut policies);
        engine.reconfigure(policies).unwrap_err()
    };
    let error = refused(&|p| p.settings.deadlines.call = Duration::ZERO);
    assert_eq!(error, BuildError::ZeroDeadline);
    let error = refused(&|p| p.settings.caps.max_attempts = 0);
    assert_eq!(error, BuildError::NoAttempts);
    let error = refused(&|p| {
        p.patterns
            .push(Pattern::message("open", "(", Kind::UNKNOWN))
    });
    assert!(error.to_string().contains("\"open\" (number 2)"), "{error}");
    let error = refused(&|p| p.patterns.push(quota()));
    assert!(
        error.to_string().contains("the name of an earlier one"),
        "{error}"
    );
    let error = refused(&|p| p.registry.balance.max_ejected_percent = 0);
    assert!(error.to_string().contains("max_ejected_percent"), "{error}");
    let error = refused(&|p| {
        p.budget = BudgetPolicy::Ratio {
            ttl: SECOND,
            reserve_per_second: 1,
            ratio: 11.0,
        };
    });
    assert!(error.to_string().contains("ratio 11"), "{error}");
    assert_eq!(format!("{:?}", engine.policies()), before);
}
