//! Hedging: when a second target is asked beside a slow one, and what comes of the two.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::time::Duration;

use backstop::budget::BudgetPolicy;
use backstop::call::{AttemptKind, RepeatSafety};
use backstop::event::EventKind;
use backstop::{Call, Caps, Engine, Failure, Hedge, Kind, Settings};
use common::{Reply, Script, build, engine, refused, request, retry_always, switch_always};
use tokio::time::Instant;

const AFTER: Duration = Duration::from_millis(100);

fn read() -> Call {
    Call::new("g", "op")
        .repeat_safety(RepeatSafety::ReadOnly)
        .hedge(Hedge::After(AFTER))
}

fn slow(millis: u64, text: &'static str) -> Reply {
    Reply::Slow(Duration::from_millis(millis), text)
}

#[tokio::test(start_paused = true)]
async fn a_fast_answer_needs_no_hedge() {
    let script = Script::default().on("a", [slow(99, "fast")]);
    let outcome = engine(&["a", "b"], vec![])
        .call(&script, read(), &request("op"))
        .await
        .unwrap();
    assert_eq!(outcome.answer.text, "fast");
    assert!(outcome.trouble.is_none());
    assert_eq!(script.targets_sent(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_of_two_is_heard_and_the_other_attempt_is_cancelled() {
    let script = Script::default()
        .on("a", [Reply::Silent])
        .on("b", [slow(50, "hedge")]);
    let engine = engine(&["a", "b"], vec![]);
    let mut events = engine.subscribe();
    let began = Instant::now();
    let outcome = engine.call(&script, read(), &request("op")).await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_millis(150));
    assert_eq!(outcome.answer.text, "hedge");
    assert_eq!(outcome.served_by.as_deref(), Some("b"));
    assert_eq!(outcome.attempts(), 2);
    assert!(outcome.degraded.is_none());
    let trouble = outcome.trouble.unwrap();
    assert_eq!(trouble.attempts[0].target.as_ref(), "a");
    assert_eq!(trouble.attempts[0].failure.kind, Kind::CANCELLED);
    assert!(!trouble.attempts[0].failure.ill_health);
    // Cancelled means dropped: nothing of it is under way any more.
    assert_eq!(engine.registry().get("a").unwrap().in_flight(), 0);
    let EventKind::HedgeSent {
        from, to, after, ..
    } = &events.try_recv().unwrap().what
    else {
        panic!("the hedge is not told of");
    };
    assert_eq!((from.as_ref(), to.as_ref(), *after), ("a", "b", AFTER));
    assert!(matches!(
        events.try_recv().unwrap().what,
        EventKind::CallSaved { attempts: 2, .. }
    ));

    // The original may win all the same.
    let script = Script::default()
        .on("a", [slow(120, "original")])
        .on("b", [Reply::Silent]);
    let outcome = engine.call(&script, read(), &request("op")).await.unwrap();
    assert_eq!(outcome.answer.text, "original");
    let trouble = outcome.trouble.unwrap();
    assert_eq!(trouble.attempts[0].attempt, AttemptKind::Hedge);
    assert_eq!(engine.registry().get("b").unwrap().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn only_a_read_only_operation_is_hedged() {
    for safety in [RepeatSafety::Idempotent, RepeatSafety::Unsafe] {
        let script = Script::default()
            .on("a", [slow(500, "one")])
            .on("b", [Reply::Good("two")]);
        let call = read().repeat_safety(safety);
        let outcome = engine(&["a", "b"], vec![])
            .call(&script, call, &request("op"))
            .await
            .unwrap();
        assert_eq!(outcome.answer.text, "one");
        assert_eq!(script.targets_sent(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pinned_call_and_one_without_fallback_are_not_hedged() {
    for call in [read().pin("a"), read().without_fallback()] {
        let script = Script::default()
            .on("a", [slow(500, "one")])
            .on("b", [Reply::Good("two")]);
        engine(&["a", "b"], vec![])
            .call(&script, call, &request("op"))
            .await
            .unwrap();
        assert_eq!(script.targets_sent(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_one_is_not_the_end_while_the_other_may_answer() {
    let refused_late = |script: Script, at: &str, other: &str| {
        script
            .on(
                at,
                [Reply::Late(
                    Duration::from_millis(150),
                    Box::new(Reply::Bad(refused())),
                )],
            )
            .on(other, [slow(400, "saved")])
    };
    for (failing, saving) in [("a", "b"), ("b", "a")] {
        let script = refused_late(Script::default(), failing, saving);
        let engine = engine(&["a", "b"], vec![]);
        let outcome = engine.call(&script, read(), &request("op")).await.unwrap();
        assert_eq!(outcome.answer.text, "saved");
        assert_eq!(outcome.served_by.as_deref(), Some(saving));
        let trouble = outcome.trouble.unwrap();
        assert_eq!(trouble.attempts.len(), 1);
        assert_eq!(trouble.attempts[0].failure.kind, Kind::CONNECTION_ERROR);
    }
}

#[tokio::test(start_paused = true)]
async fn where_both_fail_the_first_failure_is_the_cause_and_fallback_goes_on_elsewhere() {
    let late = |millis, kind: Kind| {
        let failure = Failure::new(kind, "late");
        [Reply::Late(
            Duration::from_millis(millis),
            Box::new(Reply::Bad(failure)),
        )]
    };
    let script = || {
        Script::default()
            .on("a", late(300, Kind::SERVICE_UNAVAILABLE))
            .on("b", late(50, Kind::BAD_GATEWAY))
    };
    let failed = engine(&["a", "b"], vec![switch_always(1)])
        .call(&script(), read(), &request("op"))
        .await
        .unwrap_err();
    let kinds: Vec<_> = failed
        .error
        .trouble
        .attempts
        .iter()
        .map(|a| a.failure.kind.clone())
        .collect();
    assert_eq!(kinds, [Kind::BAD_GATEWAY, Kind::SERVICE_UNAVAILABLE]);
    assert_eq!(failed.error.cause.kind, Kind::BAD_GATEWAY);

    let script = script().on("c", [Reply::Good("third")]);
    let outcome = engine(&["a", "b", "c"], vec![switch_always(1)])
        .call(&script, read(), &request("op"))
        .await
        .unwrap();
    assert_eq!(script.targets_sent(), ["a", "b", "c"]);
    assert_eq!(outcome.attempts(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_failure_the_other_would_meet_as_well_ends_both() {
    let wrong = Failure::new(Kind::INVALID_PARAMETER, "no such column");
    let script = Script::default()
        .on("a", [Reply::Silent])
        .on("b", [Reply::Bad(wrong)]);
    let began = Instant::now();
    let failed = engine(&["a", "b"], vec![])
        .call(&script, read(), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(began.elapsed(), AFTER);
    assert_eq!(failed.error.cause.kind, Kind::INVALID_PARAMETER);
    // What was given up stands in the history, after the cause.
    let kinds: Vec<_> = failed
        .error
        .trouble
        .attempts
        .iter()
        .map(|a| a.failure.kind.clone())
        .collect();
    assert_eq!(kinds, [Kind::INVALID_PARAMETER, Kind::CANCELLED]);
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_is_not_asked_again() {
    let wrong = Failure::new(Kind::FORBIDDEN, "not you");
    let script = Script::default()
        .on("a", [Reply::Silent])
        .on("b", [Reply::Bad(wrong)]);
    let failed = engine(&["a", "b"], vec![switch_always(1)])
        .call(&script, read(), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(script.targets_sent(), ["a", "b"]);
    assert_eq!(failed.error.trouble.attempts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn hedges_are_paid_for_out_of_the_budget_and_stop_where_it_is_empty() {
    let budget = BudgetPolicy::Ratio {
        ttl: Duration::from_secs(10),
        reserve_per_second: 0,
        ratio: 0.2,
    };
    let engine = build(Engine::builder().budget(budget), &["a", "b"], vec![]);
    let script = Script::default()
        .on("a", [slow(105, "slow")])
        .on("b", [Reply::Good("fast")]);
    for _ in 0..50 {
        engine.call(&script, read(), &request("op")).await.unwrap();
    }
    let hedges = script
        .targets_sent()
        .iter()
        .filter(|target| *target == "b")
        .count();
    assert!((9..=10).contains(&hedges), "{hedges} hedges for 50 calls");
}

#[tokio::test(start_paused = true)]
async fn a_hedge_counts_as_an_attempt_and_leaves_the_rest_of_the_cap() {
    for (max_attempts, sent) in [
        (1, vec!["a"]),
        (2, vec!["a", "b"]),
        (3, vec!["a", "b", "b"]),
    ] {
        let caps = Caps {
            max_attempts,
            ..Caps::default()
        };
        let builder = Engine::builder().settings(Settings {
            caps,
            ..Settings::default()
        });
        let failing = |millis| {
            [Reply::Late(
                Duration::from_millis(millis),
                Box::new(Reply::Bad(refused())),
            )]
        };
        let script = Script::default()
            .on("a", failing(150))
            .on("b", failing(100));
        let engine = build(
            builder,
            &["a", "b"],
            vec![retry_always(1, Some(Duration::ZERO))],
        );
        let failed = engine
            .call(&script, read(), &request("op"))
            .await
            .unwrap_err();
        assert_eq!(script.targets_sent(), sent);
        assert_eq!(failed.error.trouble.attempts.len(), sent.len());
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_who_is_ill_busy_or_out_of_order_is_asked_as_a_hedge() {
    let one = std::num::NonZeroU32::MIN;
    let engine = engine(&["a"], vec![]);
    let busy = backstop::registry::TargetSpec::service("b", "g")
        .priority(-1)
        .concurrency(one, 5);
    engine.registry().register(busy).unwrap();
    let script = Script::default()
        .on("a", [slow(500, "one")])
        .on("b", [slow(1000, "busy"), Reply::Good("two")]);
    let request = request("op");
    let (_, outcome) = tokio::join!(
        engine.call(&script, Call::new("g", "op").pin("b"), &request),
        async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            engine.call(&script, read(), &request).await.unwrap()
        }
    );
    assert_eq!(outcome.answer.text, "one");
    assert_eq!(script.targets_sent(), ["b", "a"]);
}

#[tokio::test(start_paused = true)]
async fn a_percentile_is_learned_from_the_calls_themselves() {
    let engine = engine(&["a", "b"], vec![]);
    let call = || read().hedge(Hedge::Percentile(95));
    let usual = Script::default().on("a", [slow(40, "usual")]);
    for _ in 0..backstop::hedge::MIN_SAMPLES {
        engine.call(&usual, call(), &request("op")).await.unwrap();
    }
    assert!(usual.targets_sent().iter().all(|target| target == "a"));
    let script = Script::default()
        .on("a", [Reply::Silent])
        .on("b", [Reply::Good("hedge")]);
    let began = Instant::now();
    engine.call(&script, call(), &request("op")).await.unwrap();
    let after = began.elapsed().as_millis();
    assert!((40..=46).contains(&after), "hedged after {after} ms");
    // Another operation has times of its own.
    let other = Call::new("g", "other")
        .repeat_safety(RepeatSafety::ReadOnly)
        .hedge(Hedge::Percentile(95));
    let script = Script::default().on("a", [slow(60, "not known")]);
    engine
        .call(&script, other, &request("other"))
        .await
        .unwrap();
    assert_eq!(script.targets_sent(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn the_call_ends_by_its_deadline_with_both_silent() {
    let script = Script::default()
        .on("a", [Reply::Silent])
        .on("b", [Reply::Silent]);
    let began = Instant::now();
    let call = read().deadline(Duration::from_secs(1));
    let failed = engine(&["a", "b"], vec![switch_always(1)])
        .call(&script, call, &request("op"))
        .await
        .unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    assert_eq!(
        failed.error.ending,
        backstop::call::Ending::DeadlineExceeded
    );
}
