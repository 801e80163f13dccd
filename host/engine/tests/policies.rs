//! What an operator or an embedder may change about how failures are judged, and that the loop follows it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop::backoff::Backoff;
use backstop::budget::BudgetPolicy;
use backstop::call::{Ending, RepeatSafety, Verdict};
use backstop::detect::Pattern;
use backstop::registry::TargetSpec;
use backstop::retry::RetryPolicy;
use backstop::strategy::{Action, OnFault};
use backstop::{Call, CallError, Engine, Failure, Kind};
use common::{
    Answer, Elsewhere, Reply, Script, build, engine, refused, request, retry_always, rule,
    switch_always,
};

fn call() -> Call {
    Call::new("g", "op")
}

/// What an engine does with a failing strategy of this policy before one that switches.
async fn after_a_fault(on_fault: OnFault) -> Result<backstop::Outcome<Answer>, CallError> {
    let script = Script::default()
        .on("a", [Reply::Bad(refused())])
        .on("b", [Reply::Good("saved")]);
    let broken = rule("broken", 9, |_| panic!("a bug")).with_on_fault(on_fault);
    engine(&["a", "b"], vec![broken, switch_always(1)])
        .call(&script, call(), &request("op"))
        .await
        .map_err(backstop::call::Failed::into_error)
}

#[tokio::test(start_paused = true)]
async fn a_fault_is_told_or_passed_over_or_ends_the_call_as_its_entry_says() {
    let skipped = after_a_fault(OnFault::Skip).await.unwrap();
    let verdict = |outcome: &backstop::Outcome<Answer>| {
        outcome.trouble.as_ref().unwrap().steps[0].verdict.clone()
    };
    assert!(matches!(verdict(&skipped), Verdict::Faulted { .. }));

    let declined = after_a_fault(OnFault::Decline).await.unwrap();
    assert_eq!(declined.served_by.as_deref(), Some("b"));
    assert_eq!(verdict(&declined), Verdict::Declined);

    let failed = after_a_fault(OnFault::Fail).await.unwrap_err();
    assert_eq!(failed.ending, Ending::FailedFast);
    assert_eq!(failed.cause.kind, Kind::CONNECTION_ERROR);
    let message = failed.message.unwrap();
    assert!(
        message.contains("broken") && message.contains("a bug"),
        "{message}"
    );
}

#[tokio::test(start_paused = true)]
async fn kinds_and_patterns_change_while_the_engine_runs() {
    let engine = engine(&["a"], vec![retry_always(1, None)]);
    let attempts = async |engine: &Engine| {
        let call = Call::new("g", "op").repeat_safety(RepeatSafety::ReadOnly);
        let failed = engine
            .execute(call, |_| async {
                Err::<(), _>(std::io::Error::other("the quota of team blue is spent"))
            })
            .await
            .unwrap_err();
        let attempts = &failed.error.trouble.attempts;
        (attempts[0].failure.kind.clone(), attempts.len())
    };
    assert_eq!(attempts(&engine).await, (Kind::UNKNOWN, 1));
    let pattern = Pattern::message("quota", "quota of team", "TeamQuota".into());
    engine
        .detector()
        .add_pattern(pattern.retryable(true))
        .unwrap();
    assert_eq!(attempts(&engine).await, (Kind::new("TeamQuota"), 4));
    let twice = RetryPolicy::new(2, Backoff::fixed(Duration::from_millis(5)).unwrap());
    engine.retry().set_policy("TeamQuota".into(), twice);
    assert_eq!(attempts(&engine).await, (Kind::new("TeamQuota"), 3));
    engine.detector().remove_pattern("quota");
    assert_eq!(attempts(&engine).await, (Kind::UNKNOWN, 1));
}

#[tokio::test(start_paused = true)]
async fn a_policy_may_ask_who_calls_what_and_how_much_time_is_left() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let script = Script {
        read_only: vec!["read"],
        ..Script::default()
    }
    .on("a", [Reply::Bad(refused())])
    .on("b", [Reply::Bad(refused())]);
    let strategies = vec![
        rule("retry", 9, |situation| {
            let retry = Action::Retry { delay: None };
            situation.next_delay.map(|_| retry)
        }),
        switch_always(1),
    ];
    let engine = engine(&["a", "b"], strategies);
    let note = seen.clone();
    let policy = RetryPolicy::new(9, Backoff::fixed(Duration::from_secs(1)).unwrap());
    let once = policy.with_condition(move |context| {
        note.lock().unwrap().push((
            context.importance,
            context.attempts,
            context.retries,
            context.time_left,
            context.safety,
        ));
        context.retries < 1
    });
    engine.retry().set_policy(Kind::CONNECTION_ERROR, once);
    let call = Call::new("g", "read").importance(80);
    let _ = engine
        .call(
            &script,
            call.deadline(Duration::from_secs(9)),
            &request("read"),
        )
        .await;
    let seconds = Duration::from_secs;
    assert_eq!(
        *seen.lock().unwrap(),
        [(1, 0, 9), (2, 1, 8), (3, 0, 8), (4, 1, 7)].map(|(attempts, retries, left)| (
            80,
            attempts,
            retries,
            seconds(left),
            RepeatSafety::ReadOnly
        ))
    );
    assert_eq!(script.targets_sent(), ["a", "a", "b", "b"]);
}

#[tokio::test(start_paused = true)]
async fn whether_a_status_leaves_the_outcome_open_is_known_of_the_service() {
    let mut unavailable = Failure::new(Kind::SERVICE_UNAVAILABLE, "503");
    unavailable.http_status = Some(503);
    let script = Script::default()
        .on("a", [Reply::Bad(unavailable.clone())])
        .on("b", [Reply::Good("saved")]);
    let engine = engine(&["a", "b"], vec![switch_always(1)]);
    let outcome = engine.call(&script, call(), &request("op")).await.unwrap();
    assert_eq!(outcome.served_by.as_deref(), Some("b"));

    let halfway = TargetSpec::service("a", "g").ambiguous_status(503, true);
    engine.registry().update(halfway.priority(1)).unwrap();
    let failed = engine.call(&script, call(), &request("op")).await;
    assert_eq!(failed.unwrap_err().error.ending, Ending::OutcomeUnknown);
}

#[tokio::test(start_paused = true)]
async fn a_group_without_targets_is_held_to_a_budget_as_well() {
    let script = Script::default().on("b", [Reply::Bad(refused())]);
    let strategies = vec![rule("other", 1, |_| {
        Some(Action::CallOperation {
            operation: "op".into(),
            arguments: None,
            target: Some("b".into()),
        })
    })];
    let budget = BudgetPolicy::Ratio {
        ttl: Duration::from_secs(10),
        reserve_per_second: 0,
        ratio: 0.2,
    };
    let engine = build(Engine::builder().budget(budget), &[], strategies);
    let spec = TargetSpec::service("b", "elsewhere");
    engine.registry().register(spec).unwrap();
    let script = Elsewhere(script);
    for _ in 0..100 {
        let _ = engine
            .call(&script, Call::new("empty", "op"), &request("op"))
            .await;
    }
    let sent = script.0.targets_sent().len();
    assert!((1..=20).contains(&sent), "{sent} attempts for 100 calls");
}
