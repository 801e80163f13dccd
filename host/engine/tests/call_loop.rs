//! One call, from start to end: what the loop and the guard promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use backstop::call::{AttemptKind, Degraded, Ending, RepeatSafety, Verdict};
use backstop::strategy::{Action, AnswerData, Situation, StrategyInfo};
use backstop::{CacheLimits, Call, Deadlines, Engine, Failure, Kind, Settings};
use common::{
    Reply, Script, build, engine, refused, request, reset, retry_always, rule, switch_always,
};
use tokio::time::Instant;

fn call() -> Call {
    Call::new("g", "op")
}

fn refusals(steps: &[backstop::call::Step]) -> Vec<String> {
    let refusal = |step: &backstop::call::Step| match &step.verdict {
        Verdict::Refused { refusal, .. } => Some(refusal.clone()),
        _ => None,
    };
    steps.iter().filter_map(refusal).collect()
}

#[tokio::test(start_paused = true)]
async fn a_healthy_call_is_answered_by_the_best_target_and_has_no_trouble() {
    let script = Script::default().on("a", [Reply::Good("hi")]);
    let outcome = engine(&["a", "b"], vec![switch_always(1)])
        .call(&script, call(), &request("op"))
        .await
        .unwrap();
    assert_eq!(outcome.answer.text, "hi");
    assert_eq!(outcome.served_by.as_deref(), Some("a"));
    assert_eq!(outcome.attempts(), 1);
    assert!(outcome.trouble.is_none() && outcome.degraded.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_switches_even_an_unsafe_operation() {
    let script = Script::default()
        .on("a", [Reply::Bad(refused())])
        .on("b", [Reply::Good("saved")]);
    let outcome = engine(&["a", "b"], vec![switch_always(1)])
        .call(&script, call(), &request("op"))
        .await
        .unwrap();
    assert_eq!(outcome.served_by.as_deref(), Some("b"));
    assert_eq!(outcome.attempts(), 2);
    let trouble = outcome.trouble.unwrap();
    assert_eq!(trouble.attempts[0].failure.kind, Kind::CONNECTION_ERROR);
    assert!(matches!(trouble.steps[0].verdict, Verdict::Taken { .. }));
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_operation_is_sent_once_after_an_ambiguous_failure_and_its_outcome_is_unknown() {
    for reply in [Reply::Bad(reset()), Reply::Silent] {
        let script = Script::default()
            .on("a", [reply])
            .on("b", [Reply::Good("twice!")]);
        let engine = engine(&["a", "b"], vec![switch_always(2), retry_always(1, None)]);
        let failed = engine
            .call(&script, call(), &request("op"))
            .await
            .unwrap_err();
        assert_eq!(script.targets_sent(), ["a"]);
        assert_eq!(failed.error.ending, Ending::OutcomeUnknown);
        assert!(
            failed.error.to_string().contains("outcome unknown"),
            "{}",
            failed.error
        );
        assert!(
            refusals(&failed.error.trouble.steps)
                .iter()
                .all(|text| text.contains("must not be repeated"))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_done_once_stays_so_after_a_clear_failure() {
    // Safe to send after the first failure, ambiguous in the second, clear again in the third.
    let script = Script::default().on(
        "a",
        [
            Reply::Bad(refused()),
            Reply::Bad(reset()),
            Reply::Bad(refused()),
        ],
    );
    let engine = engine(&["a"], vec![retry_always(1, Some(Duration::ZERO))]);
    let failed = engine
        .call(&script, call(), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(script.targets_sent().len(), 2);
    assert_eq!(failed.error.ending, Ending::OutcomeUnknown);
    assert_eq!(failed.error.cause.message, "connection refused");
}

#[tokio::test(start_paused = true)]
async fn a_repeatable_operation_is_switched_after_a_timeout() {
    for safety in [RepeatSafety::ReadOnly, RepeatSafety::Idempotent] {
        let script = Script::default()
            .on("a", [Reply::Silent])
            .on("b", [Reply::Good("saved")]);
        let engine = engine(&["a", "b"], vec![switch_always(1)]);
        let outcome = engine
            .call(&script, call().repeat_safety(safety), &request("op"))
            .await
            .unwrap();
        assert_eq!(outcome.served_by.as_deref(), Some("b"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_target_is_not_asked_again_while_another_is_left() {
    let script = Script {
        read_only: vec!["op"],
        ..Script::default()
    }
    .on("a", [Reply::Silent])
    .on("b", [Reply::Good("saved")]);
    let engine = engine(&["a", "b"], vec![retry_always(2, None), switch_always(1)]);
    let outcome = engine.call(&script, call(), &request("op")).await.unwrap();
    assert_eq!(script.targets_sent(), ["a", "b"]);
    assert!(refusals(&outcome.trouble.unwrap().steps)[0].contains("silent"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_target_that_is_alone_is_asked_again() {
    let script = Script {
        read_only: vec!["op"],
        ..Script::default()
    }
    .on("a", [Reply::Silent, Reply::Good("late")]);
    let outcome = engine(&["a"], vec![retry_always(2, None)])
        .call(&script, call(), &request("op"))
        .await
        .unwrap();
    assert_eq!(outcome.attempts(), 2);
    assert_eq!(
        outcome.trouble.unwrap().attempts[0].attempt,
        AttemptKind::Original
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_by_its_deadline_whatever_the_strategies_want() {
    let script = Script {
        read_only: vec!["op"],
        ..Script::default()
    }
    .on("a", [Reply::Silent]);
    let engine = engine(&["a"], vec![retry_always(1, Some(Duration::from_secs(3)))]);
    let started = Instant::now();
    let failed = engine
        .call(
            &script,
            call().deadline(Duration::from_secs(30)),
            &request("op"),
        )
        .await
        .unwrap_err();
    assert!(
        started.elapsed() <= Duration::from_secs(30),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(failed.error.ending, Ending::DeadlineExceeded);
    assert_eq!(failed.error.cause.kind, Kind::TIMEOUT_ERROR);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_does_not_fit_is_refused_at_once_and_the_hint_stays_in_the_error() {
    let mut throttled = Failure::new(Kind::TOO_MANY_REQUESTS, "slow down");
    throttled.retry_after = Some(Duration::from_secs(120));
    let script = Script::default().on("a", [Reply::Bad(throttled)]);
    let started = Instant::now();
    let engine = engine(
        &["a"],
        vec![retry_always(1, Some(Duration::from_millis(1)))],
    );
    let failed = engine
        .call(&script, call(), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(
        failed.error.last().retry_after,
        Some(Duration::from_secs(120))
    );
    assert!(refusals(&failed.error.trouble.steps)[0].contains("does not fit"));
}

#[tokio::test(start_paused = true)]
async fn a_server_hint_raises_the_wait() {
    let mut throttled = Failure::new(Kind::TOO_MANY_REQUESTS, "slow down");
    throttled.retry_after = Some(Duration::from_secs(2));
    let script = Script::default().on("a", [Reply::Bad(throttled), Reply::Good("ok")]);
    let engine = engine(
        &["a"],
        vec![retry_always(1, Some(Duration::from_millis(1)))],
    );
    engine.call(&script, call(), &request("op")).await.unwrap();
    assert!(script.gaps()[0] >= Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn no_strategy_can_make_a_call_attempt_for_ever() {
    let script = Script::default().on(
        "a",
        [Reply::Bad(Failure::new(Kind::TOO_MANY_REQUESTS, "no"))],
    );
    let engine = engine(&["a"], vec![retry_always(1, Some(Duration::ZERO))]);
    let failed = engine
        .call(&script, call(), &request("op"))
        .await
        .unwrap_err();
    assert!(script.targets_sent().len() <= Settings::default().caps.max_attempts as usize);
    assert_eq!(failed.error.ending, Ending::Exhausted);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_path_never_asks_the_same_target_the_same_thing_twice() {
    let script = Script::default()
        .on("a", [Reply::Bad(refused())])
        .on("b", [Reply::Bad(refused())]);
    let back_and_forth = rule("ping-pong", 1, |situation: &Situation| {
        let other = if situation.target.as_deref() == Some("a") {
            "b"
        } else {
            "a"
        };
        Some(Action::SwitchTarget {
            target: Some(other.into()),
            target_kind: None,
        })
    });
    let failed = engine(&["a", "b"], vec![back_and_forth])
        .call(&script, call(), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(script.targets_sent(), ["a", "b"]);
    assert!(refusals(&failed.error.trouble.steps)[0].contains("already"));
}

#[tokio::test(start_paused = true)]
async fn the_first_cause_and_every_attempt_stay_in_the_error() {
    let last = Failure::new(Kind::INTERNAL_SERVER_ERROR, "broken");
    let script = Script {
        read_only: vec!["op"],
        ..Script::default()
    }
    .on("a", [Reply::Bad(refused())])
    .on("b", [Reply::BadAnswer(last, "raw error")]);
    let failed = engine(&["a", "b"], vec![switch_always(1)])
        .call(&script, call(), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(failed.error.cause.message, "connection refused");
    assert_eq!(failed.error.last().message, "broken");
    let targets: Vec<_> = failed
        .error
        .trouble
        .attempts
        .iter()
        .map(|attempt| &*attempt.target)
        .collect();
    assert_eq!(targets, ["a", "b"]);
    assert_eq!(
        std::error::Error::source(&failed.error)
            .unwrap()
            .to_string(),
        "ConnectionError: connection refused"
    );
    assert_eq!(failed.raw.unwrap().unwrap().text, "raw error");
}

#[tokio::test(start_paused = true)]
async fn the_last_known_good_answer_is_given_with_its_age_and_only_to_its_caller() {
    let script = Script {
        keep: true,
        ..Script::default()
    }
    .on("a", [Reply::Good("fresh"), Reply::Bad(refused())]);
    let data = rule("data", 1, |_| {
        Some(Action::Answer(AnswerData::LastKnownGood))
    });
    let engine = build(
        Engine::builder().cache(CacheLimits::default()),
        &["a"],
        vec![data],
    );
    engine
        .call(&script, call().caller("alice"), &request("op"))
        .await
        .unwrap();
    tokio::time::advance(Duration::from_secs(90)).await;

    let outcome = engine
        .call(&script, call().caller("alice"), &request("op"))
        .await
        .unwrap();
    assert_eq!(outcome.answer.text, "fresh");
    assert_eq!(outcome.served_by, None);
    let Some(Degraded::Stale { age, target }) = outcome.degraded else {
        panic!("not labelled: {:?}", outcome.degraded)
    };
    assert_eq!((age.as_secs(), &*target), (90, "a"));

    let failed = engine
        .call(&script, call().caller("bob"), &request("op"))
        .await
        .unwrap_err();
    assert!(refusals(&failed.error.trouble.steps)[0].contains("no last known good answer"));
}

#[tokio::test(start_paused = true)]
async fn data_may_answer_where_the_outcome_is_unknown() {
    let script = Script::default().on("a", [Reply::Bad(reset())]);
    let data = rule("data", 1, |_| {
        Some(Action::Answer(AnswerData::Static("[]".into())))
    });
    let outcome = engine(&["a"], vec![data])
        .call(&script, call(), &request("op"))
        .await
        .unwrap();
    assert_eq!(outcome.degraded, Some(Degraded::Default));
    assert_eq!(script.targets_sent(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn another_operation_answers_and_the_answer_says_so() {
    let script = Script::default()
        .on(
            "a/op",
            [Reply::Bad(Failure::new(Kind::METHOD_NOT_FOUND, "gone"))],
        )
        .on("a/other", [Reply::Good("by other")]);
    let other = rule("operation", 1, |situation: &Situation| {
        (&*situation.operation == "op").then(|| Action::CallOperation {
            operation: "other".into(),
            arguments: Some(r#"{"mapped":true}"#.into()),
            target: None,
        })
    });
    let outcome = engine(&["a"], vec![other])
        .call(&script, call(), &request("op"))
        .await
        .unwrap();
    assert_eq!(outcome.answer.text, "by other");
    assert_eq!(
        outcome.degraded,
        Some(Degraded::Operation {
            operation: "other".into()
        })
    );
}

#[tokio::test(start_paused = true)]
async fn another_operation_is_not_sent_to_a_target_that_was_just_left_ill() {
    let script = Script::default().on("a", [Reply::Bad(refused())]);
    let other = rule("operation", 1, |_| {
        Some(Action::CallOperation {
            operation: "other".into(),
            arguments: None,
            target: None,
        })
    });
    let failed = engine(&["a"], vec![other])
        .call(&script, call(), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(script.targets_sent(), ["a"]);
    assert!(refusals(&failed.error.trouble.steps)[0].contains("no other target"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_or_unknown_action_costs_nothing_but_its_turn() {
    let script = Script::default()
        .on("a", [Reply::Bad(refused())])
        .on("b", [Reply::Good("saved")]);
    let odd = rule("odd", 9, |_| {
        Some(Action::Custom {
            name: "team.magic".into(),
            payload: "{}".into(),
        })
    });
    let nowhere = rule("nowhere", 8, |_| {
        Some(Action::SwitchTarget {
            target: Some("no-such-target".into()),
            target_kind: None,
        })
    });
    let impossible = rule("impossible", 7, |_| {
        Some(Action::CallOperation {
            operation: "impossible".into(),
            arguments: None,
            target: None,
        })
    });
    let panics = rule("panics", 6, |_| panic!("a bug"));
    let declines = rule("declines", 5, |_| Some(Action::Decline));
    let strategies = vec![odd, nowhere, impossible, panics, declines, switch_always(1)];
    let outcome = engine(&["a", "b"], strategies)
        .call(&script, call(), &request("op"))
        .await
        .unwrap();
    assert_eq!(outcome.served_by.as_deref(), Some("b"));
    let steps = outcome.trouble.unwrap().steps;
    let asked: Vec<_> = steps.iter().map(|step| &*step.strategy).collect();
    assert_eq!(
        asked,
        [
            "odd",
            "nowhere",
            "impossible",
            "panics",
            "declines",
            "switch"
        ]
    );
    assert!(matches!(&steps[3].verdict, Verdict::Faulted { fault } if fault.contains("a bug")));
    assert_eq!(steps[4].verdict, Verdict::Declined);
}

#[tokio::test(start_paused = true)]
async fn a_strategy_may_end_the_call_with_its_own_words_and_the_cause_stays() {
    let script = Script::default().on("a", [Reply::Bad(Failure::new(Kind::FORBIDDEN, "no"))]);
    let fail = rule("fail-fast", 1, |_| {
        Some(Action::Fail {
            message: Some("ask the owner".into()),
        })
    });
    let failed = engine(&["a"], vec![fail])
        .call(&script, call(), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(failed.error.ending, Ending::FailedFast);
    assert!(failed.error.to_string().contains("ask the owner"));
    assert_eq!(failed.error.cause.kind, Kind::FORBIDDEN);
}

#[tokio::test(start_paused = true)]
async fn a_pinned_call_stays_with_its_target() {
    let script = Script::default().on("b", [Reply::Bad(refused())]);
    let engine = engine(&["a", "b"], vec![switch_always(1)]);
    let failed = engine
        .call(&script, call().pin("b"), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(script.targets_sent(), ["b"]);
    assert!(refusals(&failed.error.trouble.steps)[0].contains("pinned"));
}

#[tokio::test(start_paused = true)]
async fn a_call_without_fallback_makes_one_attempt() {
    let script = Script::default().on("a", [Reply::Bad(refused())]);
    let engine = engine(&["a", "b"], vec![switch_always(1)]);
    let failed = engine
        .call(&script, call().without_fallback(), &request("op"))
        .await
        .unwrap_err();
    assert!(failed.error.trouble.steps.is_empty());
    assert_eq!(script.targets_sent(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_group_without_targets_is_a_clean_error_that_data_can_save() {
    let script = Script::default();
    let failed = engine(&[], vec![])
        .call(&script, call(), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(failed.error.ending, Ending::NoTarget);
    assert!(
        failed.error.cause.message.contains("\"g\" has no targets"),
        "{}",
        failed.error.cause
    );

    let data = rule("data", 1, |_| {
        Some(Action::Answer(AnswerData::Static("[]".into())))
    });
    let outcome = engine(&[], vec![data])
        .call(&script, call(), &request("op"))
        .await
        .unwrap();
    assert_eq!(outcome.degraded, Some(Degraded::Default));
}

#[tokio::test(start_paused = true)]
async fn with_every_target_down_the_budget_bounds_the_attempts() {
    let script = Script::default().on(
        "a",
        [Reply::Bad(Failure::new(Kind::TOO_MANY_REQUESTS, "no"))],
    );
    let engine = engine(&["a"], vec![retry_always(1, Some(Duration::ZERO))]);
    let calls = 1000;
    for _ in 0..calls {
        let _ = engine.call(&script, call(), &request("op")).await;
    }
    // 20 % of the calls, and the reserve of 10 a second for 10 seconds, all within one instant.
    let sent = script.targets_sent().len();
    assert!(sent > calls, "no retry at all");
    assert!(
        sent <= calls + calls / 5 + 100,
        "{sent} attempts for {calls} calls"
    );
}

#[tokio::test(start_paused = true)]
async fn progress_prolongs_an_attempt_but_not_the_call() {
    struct Lively;
    impl backstop::Exchange for Lively {
        type Request = ();
        type Answer = ();
        type Error = Failure;
        async fn send(&self, attempt: &backstop::call::Attempt, (): &()) -> Result<(), Failure> {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                attempt.progressed();
            }
            Ok(())
        }
        fn classify(
            &self,
            outcome: Result<&(), &Failure>,
            _: &backstop::detect::Detector,
        ) -> Option<Failure> {
            outcome.err().cloned()
        }
    }
    let settings = Settings {
        deadlines: Deadlines {
            call: Duration::from_secs(200),
            attempt: Duration::from_secs(2),
            attempt_max: Duration::from_secs(150),
        },
        ..Settings::default()
    };
    let engine = build(Engine::builder().settings(settings), &["a"], vec![]);
    engine.call(&Lively, call(), &()).await.unwrap();
    let started = Instant::now();
    let failed = engine
        .call(&Lively, call().deadline(Duration::from_secs(50)), &())
        .await
        .unwrap_err();
    assert_eq!(started.elapsed(), Duration::from_secs(50));
    assert_eq!(failed.error.cause.kind, Kind::TIMEOUT_ERROR);
    // It was lively to the end.
    assert!(!failed.error.cause.silent && !failed.error.cause.ill_health);
}

#[tokio::test(start_paused = true)]
async fn a_call_without_time_sends_nothing() {
    let script = Script::default().on("a", [Reply::Good("late")]);
    let engine = engine(&["a"], vec![retry_always(1, None)]);
    let call = call().deadline(Duration::ZERO);
    let failed = engine
        .call(&script, call, &request("op"))
        .await
        .unwrap_err();
    assert!(script.targets_sent().is_empty());
    assert_eq!(failed.error.ending, Ending::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn another_operation_is_not_sent_to_a_group_that_does_not_offer_it() {
    let script = Script::default().on(
        "a",
        [Reply::Bad(Failure::new(Kind::METHOD_NOT_FOUND, "gone"))],
    );
    let elsewhere = rule("operation", 1, |_| {
        Some(Action::CallOperation {
            operation: "other".into(),
            arguments: None,
            target: Some("billing".into()),
        })
    });
    let engine = engine(&["a"], vec![elsewhere]);
    let billing = backstop::registry::TargetSpec::service("billing", "money");
    engine.registry().register(billing).unwrap();
    let failed = engine
        .call(&script, call(), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(script.targets_sent(), ["a"]);
    assert!(refusals(&failed.error.trouble.steps)[0].contains("no target named \"billing\""));
}

#[tokio::test(start_paused = true)]
async fn an_error_nobody_can_classify_may_have_been_carried_out() {
    struct Shrug;
    impl backstop::Exchange for Shrug {
        type Request = ();
        type Answer = ();
        type Error = ();
        async fn send(&self, _: &backstop::call::Attempt, (): &()) -> Result<(), ()> {
            Err(())
        }
        fn classify(&self, _: Result<&(), &()>, _: &backstop::detect::Detector) -> Option<Failure> {
            None
        }
    }
    let engine = engine(&["a", "b"], vec![switch_always(1)]);
    let failed = engine.call(&Shrug, call(), &()).await.unwrap_err();
    assert_eq!(failed.error.ending, Ending::OutcomeUnknown);
    assert_eq!(failed.error.trouble.attempts.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn strategies_are_chosen_by_priority_and_condition_as_in_the_literature() {
    let named = |name: &str, priority, kind: Option<Kind>| {
        let info = StrategyInfo::new(name, "test")
            .with_priority(priority)
            .with_kinds(kind);
        backstop::strategy::Entry::native(common::Rule(info, |_: &Situation| {
            Some(Action::Fail { message: None })
        }))
        .unwrap()
    };
    let engine = engine(
        &[],
        vec![
            named("default", 5, None),
            named("service", 10, Some(Kind::CONNECTION_ERROR)),
            named("model", 20, Some(Kind::TIMEOUT_ERROR)),
        ],
    );
    let select = async |kind: Kind| {
        let situation = Situation::of(Failure::new(kind, "x"));
        engine
            .strategies()
            .select(&situation)
            .await
            .unwrap()
            .name()
            .clone()
    };
    assert_eq!(&*select(Kind::CONNECTION_ERROR).await, "service");
    assert_eq!(&*select(Kind::TIMEOUT_ERROR).await, "model");
    assert_eq!(&*select(Kind::FORBIDDEN).await, "default");
    assert_eq!(&*select(Kind::new("HouseRule")).await, "default");
}

#[tokio::test(start_paused = true)]
async fn events_tell_the_call_as_it_went() {
    let script = Script::default()
        .on("a", [Reply::Bad(refused())])
        .on("b", [Reply::Good("saved")]);
    let engine = engine(&["a", "b"], vec![switch_always(1)]);
    let mut events = engine.subscribe();
    engine.call(&script, call(), &request("op")).await.unwrap();
    let mut names = Vec::new();
    while let Ok(event) = events.try_recv() {
        let json = serde_json::to_value(&*event).unwrap();
        names.push(json["event"].as_str().unwrap().to_owned());
    }
    assert_eq!(names, ["attempt_failed", "fallback_taken", "call_saved"]);
}

#[tokio::test(start_paused = true)]
async fn any_async_operation_gains_fallback() {
    #[derive(Debug, thiserror::Error)]
    #[error("connection refused")]
    struct Refused;
    let engine = engine(&["a", "b"], vec![switch_always(1)]);
    let outcome = engine
        .execute(
            call(),
            |target: Arc<backstop::registry::Target>| async move {
                if &*target.name == "a" {
                    Err(Refused)
                } else {
                    Ok(42)
                }
            },
        )
        .await
        .unwrap();
    assert_eq!(
        (outcome.answer, outcome.served_by.as_deref()),
        (42, Some("b"))
    );
}
