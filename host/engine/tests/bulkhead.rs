//! Limits on the requests to one target, as a call meets them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::num::NonZeroU32;
use std::time::Duration;

use backstop::call::{Ending, RepeatSafety};
use backstop::circuit::CircuitState;
use backstop::registry::TargetSpec;
use backstop::{Call, Engine, Failure, Kind, Origin};
use common::{Reply, Script, engine, request, switch_always};
use futures_util::future::join_all;
use tokio::time::Instant;

const TAKES: Duration = Duration::from_secs(1);

fn limited(max: u32, queue: u32) -> Engine {
    let engine = engine(&[], vec![switch_always(1)]);
    let max = NonZeroU32::new(max).unwrap();
    let spec = TargetSpec::service("a", "g")
        .priority(1)
        .concurrency(max, queue);
    engine.registry().register(spec).unwrap();
    engine
}

fn call() -> Call {
    Call::new("g", "op")
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_limit_are_at_a_target_at_once_and_the_rest_wait_or_fail_at_once() {
    let engine = limited(2, 3);
    let script = Script::default().on("a", [Reply::Slow(TAKES, "done")]);
    let began = Instant::now();
    let request = request("op");
    let calls = (0..10).map(|_| async {
        let result = engine.call(&script, call(), &request).await;
        (result, began.elapsed().as_secs())
    });
    let ended = join_all(calls).await;
    let answered: Vec<_> = ended
        .iter()
        .filter(|(result, _)| result.is_ok())
        .map(|(_, at)| *at)
        .collect();
    assert_eq!(
        answered,
        [1, 1, 2, 2, 3],
        "two at a time, in the order of arrival"
    );
    for (failed, at) in ended
        .iter()
        .filter_map(|(result, at)| Some((result.as_ref().err()?, at)))
    {
        assert_eq!(*at, 0);
        assert_eq!(failed.error.cause.kind, Kind::OVERLOADED);
        assert_eq!(failed.error.cause.origin, Origin::Local);
        assert!(!failed.error.cause.ambiguous);
    }
    assert_eq!(script.targets_sent().len(), 5);
    let target = engine.registry().get("a").unwrap();
    assert_eq!((target.in_flight(), target.waiting()), (0, 0));
    assert_eq!(
        target.circuit(),
        CircuitState::Closed,
        "the host's own limit is not ill health"
    );
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_target_is_left_for_another_even_by_an_unsafe_operation() {
    let engine = limited(1, 0);
    engine
        .registry()
        .register(TargetSpec::service("b", "g"))
        .unwrap();
    let script = Script::default()
        .on("a", [Reply::Slow(TAKES, "first")])
        .on("b", [Reply::Good("second")]);
    let request = request("op");
    let (first, second) = tokio::join!(
        engine.call(&script, call(), &request),
        engine.call(
            &script,
            call().repeat_safety(RepeatSafety::Unsafe),
            &request
        ),
    );
    assert_eq!(first.unwrap().served_by.as_deref(), Some("a"));
    let second = second.unwrap();
    assert_eq!(second.served_by.as_deref(), Some("b"));
    assert_eq!(
        second.trouble.unwrap().attempts[0].failure.kind,
        Kind::OVERLOADED
    );
}

#[tokio::test(start_paused = true)]
async fn among_equals_one_with_room_is_picked() {
    let engine = engine(&[], vec![]);
    let one = NonZeroU32::MIN;
    for name in ["a", "b", "c"] {
        let spec = TargetSpec::service(name, "g").concurrency(one, 9);
        engine.registry().register(spec).unwrap();
    }
    let script = Script::default()
        .on("a", [Reply::Slow(TAKES, "")])
        .on("b", [Reply::Slow(TAKES, "")])
        .on("c", [Reply::Slow(TAKES, "")]);
    let request = request("op");
    for _ in 0..20 {
        let before = script.targets_sent().len();
        let began = Instant::now();
        let three = (0..3).map(|_| engine.call(&script, call(), &request));
        assert!(join_all(three).await.iter().all(Result::is_ok));
        assert_eq!(began.elapsed(), TAKES, "nobody waited");
        let mut asked = script.targets_sent().split_off(before);
        asked.sort();
        assert_eq!(asked, ["a", "b", "c"]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_place_is_not_the_targets_silence() {
    let engine = limited(1, 9);
    // The attempt's timeout is over during the answer if the wait counts as part of it.
    let call = || call().attempt_timeout(Duration::from_millis(1500));
    let script = Script::default().on("a", [Reply::Slow(TAKES, "done")]);
    let request = request("op");
    let (one, two) = tokio::join!(
        engine.call(&script, call(), &request),
        engine.call(&script, call(), &request),
    );
    assert!(one.is_ok() && two.is_ok());

    let silent = Script::default().on("a", [Reply::Silent]);
    let (one, two) = tokio::join!(
        engine.call(&silent, call(), &request),
        engine.call(&silent, call(), &request),
    );
    assert!(one.unwrap_err().error.cause.silent);
    // It waited as long as it may be silent, and was never sent.
    let two = two.unwrap_err().error;
    assert_eq!(two.cause.kind, Kind::OVERLOADED);
    assert!(!two.cause.silent && !two.cause.ill_health);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_in_the_queue_and_a_caller_that_gives_up_leaves_it() {
    let engine = limited(1, 9);
    let script = Script::default().on("a", [Reply::Silent]);
    let request = request("op");
    let began = Instant::now();
    let (_, waiting, ()) = tokio::join!(
        engine.call(&script, call().deadline(Duration::from_secs(9)), &request),
        engine.call(&script, call().deadline(Duration::from_secs(2)), &request),
        async {
            let gone = engine.call(&script, call(), &request);
            let _ = tokio::time::timeout(Duration::from_secs(1), gone).await;
            assert_eq!(engine.registry().get("a").unwrap().waiting(), 1);
            tokio::time::sleep_until(began + Duration::from_millis(2001)).await;
            assert_eq!(engine.registry().get("a").unwrap().waiting(), 0);
        },
    );
    let error = waiting.unwrap_err().error;
    assert_eq!(error.ending, Ending::DeadlineExceeded);
    assert_eq!(script.targets_sent().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_is_used_up_is_told_with_the_time_until_the_next_request() {
    let engine = engine(&[], vec![]);
    let two = NonZeroU32::new(2).unwrap();
    let spec = TargetSpec::service("a", "g").rate_limit(two, Duration::from_secs(10));
    engine.registry().register(spec).unwrap();
    let script = Script::default().on("a", [Reply::Good("done")]);
    for _ in 0..2 {
        engine.call(&script, call(), &request("op")).await.unwrap();
    }
    let error = engine
        .call(&script, call(), &request("op"))
        .await
        .unwrap_err()
        .error;
    let Failure {
        kind,
        origin,
        retry_after,
        ..
    } = &*error.cause;
    assert_eq!((kind, *origin), (&Kind::TOO_MANY_REQUESTS, Origin::Local));
    assert_eq!(*retry_after, Some(Duration::from_secs(5)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    engine.call(&script, call(), &request("op")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_of_other_settings_keeps_the_count_and_a_change_of_the_limit_takes_effect() {
    let engine = limited(1, 0);
    let script = Script::default().on("a", [Reply::Slow(TAKES, "done")]);
    let request = request("op");
    let spec = |max| {
        let max = NonZeroU32::new(max).unwrap();
        TargetSpec::service("a", "g")
            .priority(7)
            .concurrency(max, 0)
    };
    let update = async {
        tokio::task::yield_now().await;
        engine.registry().update(spec(1)).unwrap();
        let still = engine.call(&script, call(), &request).await;
        assert_eq!(still.unwrap_err().error.cause.kind, Kind::OVERLOADED);
        engine.registry().update(spec(2)).unwrap();
        engine.call(&script, call(), &request).await.unwrap();
    };
    let (first, ()) = tokio::join!(engine.call(&script, call(), &request), update);
    first.unwrap();
    assert_eq!(engine.registry().get("a").unwrap().in_flight(), 0);
}
