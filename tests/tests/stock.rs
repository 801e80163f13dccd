//! The stock strategies in the engine: the default table of each kind from the failure to the answer,
//! with the components inside the library and with those built from their source.

use std::time::Duration;

use backstop::call::{Call, Degraded, Ending, RepeatSafety};
use backstop::{CallError, Engine, Kind, Outcome};
use backstop_tests::engines::{Stock, model, services, start, steps, steps_of, taken, taken_in};
use backstop_tests::script::{Reply, Request, Script, bad, bad_for, good};
use tokio::time::Instant;

/// Runs every case with both sources of the stock strategies.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod prebuilt {
            $(#[tokio::test] async fn $name() { super::$name(super::Stock::Prebuilt).await; })*
        }
        mod rebuilt {
            $(#[tokio::test] async fn $name() { super::$name(super::Stock::Rebuilt).await; })*
        }
    };
}

cases! {
    a_refused_connection_is_retried_three_times_and_then_asked_elsewhere,
    the_other_rows_of_the_table_hold_as_well,
    a_silent_target_is_left_at_once_and_retried_only_where_it_is_alone,
    a_model_is_preferred_after_a_timeout_and_only_then,
    a_throttle_is_waited_out_as_long_as_the_server_asks_up_to_five_times,
    a_throttle_with_a_long_hint_is_left_for_another_target,
    what_is_the_callers_fault_is_asked_once_and_told,
    an_operation_gives_way_to_another_with_its_arguments_mapped,
    an_outage_is_answered_with_the_last_known_good_answer_and_its_age,
    an_outage_is_answered_with_a_default_of_the_granted_folder,
    data_never_hides_what_is_the_callers_fault,
    fail_fast_ends_a_call_in_the_operators_words_before_anybody_else_is_asked,
    a_call_nobody_cares_for_is_retried_less_and_an_important_one_more,
    no_wait_is_begun_that_the_deadline_would_cut,
}

const SEARCH: &str = r#"{"query":"x","locale":"de"}"#;

/// Starts with this configuration; from now on time passes only where everybody waits.
async fn begin(stock: Stock, text: &str) -> Engine {
    let engine = start(stock, text).await;
    tokio::time::pause();
    engine
}

async fn call_with(
    engine: &Engine,
    script: &Script,
    call: Call,
) -> Result<Outcome<String>, CallError> {
    let request = Request::new("search", SEARCH);
    let call = call.repeat_safety(RepeatSafety::ReadOnly);
    let result = engine.call(script, call, &request).await;
    result.map_err(backstop::call::Failed::into_error)
}

async fn call(engine: &Engine, script: &Script) -> Result<Outcome<String>, CallError> {
    call_with(engine, script, Call::new("g", "search")).await
}

/// Asserts that the gaps lie within equal jitter of these delays, in milliseconds: between half of
/// each and the whole of it.
fn assert_gaps(script: &Script, delays: &[u64], what: &str) {
    let gaps = script.gaps();
    assert_eq!(gaps.len(), delays.len(), "{what}: {gaps:?}");
    for (gap, delay) in gaps.iter().zip(delays) {
        let full = Duration::from_millis(*delay);
        // tokio's clock has ticks of one millisecond.
        let late = Duration::from_millis(2);
        assert!(
            *gap >= full / 2 && *gap <= full + late,
            "{what}: {gap:?} is not within equal jitter of {full:?}: {gaps:?}"
        );
    }
}

async fn a_refused_connection_is_retried_three_times_and_then_asked_elsewhere(stock: Stock) {
    let engine = begin(stock, &services(&["a", "b"])).await;
    let script = Script::default()
        .on("a", bad(Kind::CONNECTION_ERROR))
        .on("b", good("b's"));
    let outcome = call(&engine, &script).await.unwrap();
    assert_eq!(outcome.answer, "b's");
    assert_eq!(outcome.served_by.as_deref(), Some("b"));
    assert_eq!(outcome.degraded, None);
    assert_eq!(script.targets(), "a a a a b");
    assert_gaps(&script, &[100, 200, 400, 0], "ConnectionError");
    assert_eq!(
        taken(&steps_of(&outcome)),
        ["retry", "retry", "retry", "service-failover"]
    );
}

async fn the_other_rows_of_the_table_hold_as_well(stock: Stock) {
    for (kind, delays) in [
        (Kind::SERVICE_UNAVAILABLE, &[100, 0][..]),
        (Kind::BAD_GATEWAY, &[100, 0]),
        (Kind::INTERNAL_SERVER_ERROR, &[200, 400, 0]),
        (Kind::GATEWAY_TIMEOUT, &[500, 1000, 0]),
        (Kind::STREAM_INTERRUPTED, &[100, 200, 400, 0]),
        (
            Kind::TOO_MANY_REQUESTS,
            &[1000, 2000, 4000, 8000, 16_000, 0],
        ),
    ] {
        let engine = begin(stock, &services(&["a", "b"])).await;
        let script = Script::default()
            .on("a", bad(kind.clone()))
            .on("b", good("b's"));
        let outcome = call(&engine, &script).await.unwrap();
        assert_eq!(outcome.served_by.as_deref(), Some("b"), "{kind}");
        assert_gaps(&script, delays, &kind);
        tokio::time::resume();
    }
}

async fn a_silent_target_is_left_at_once_and_retried_only_where_it_is_alone(stock: Stock) {
    let engine = begin(stock, &services(&["a", "b"])).await;
    let script = Script::default()
        .on("a", [Reply::Silent])
        .on("b", good("b's"));
    let began = Instant::now();
    let outcome = call(&engine, &script).await.unwrap();
    assert_eq!(script.targets(), "a b");
    assert_eq!(taken(&steps_of(&outcome)), ["service-failover"]);
    let took = began.elapsed();
    assert!((20..21).contains(&took.as_secs()), "{took:?}");
    tokio::time::resume();

    let engine = begin(stock, &services(&["a"])).await;
    let script = Script::default().on("a", [Reply::Silent]);
    let short = Call::new("g", "search").attempt_timeout(Duration::from_secs(5));
    let error = call_with(&engine, &script, short).await.unwrap_err();
    assert_eq!(script.targets(), "a a a");
    assert_eq!(
        (error.ending, error.kind()),
        (Ending::Exhausted, &Kind::TIMEOUT_ERROR)
    );
    for (attempt, delay) in error.trouble.attempts[1..].iter().zip([500, 1000]) {
        let full = Duration::from_millis(delay);
        assert!(attempt.delay >= full / 2 && attempt.delay <= full);
    }
}

async fn a_model_is_preferred_after_a_timeout_and_only_then(stock: Stock) {
    for (reply, asked) in [
        ([Reply::Silent], "a m"),
        (bad(Kind::SERVICE_UNAVAILABLE), "a a b"),
    ] {
        let text = services(&["a", "b"]) + &model("m");
        let engine = begin(stock, &text).await;
        let script = Script::default()
            .on("a", reply)
            .on("b", good("b's"))
            .on("m", good("m's"));
        let outcome = call(&engine, &script).await.unwrap();
        assert_eq!(script.targets(), asked);
        assert!(asked.ends_with(outcome.served_by.as_deref().unwrap()));
        tokio::time::resume();
    }
}

async fn a_throttle_is_waited_out_as_long_as_the_server_asks_up_to_five_times(stock: Stock) {
    let engine = begin(stock, &services(&["a"])).await;
    let hint = Duration::from_secs(3);
    let script = Script::default().on("a", bad_for(Kind::TOO_MANY_REQUESTS, hint));
    let error = call(&engine, &script).await.unwrap_err();
    let gaps = script.gaps();
    assert_eq!(gaps.len(), 5, "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap >= hint), "{gaps:?}");
    // The first two waits of the table are shorter than the hint, which then holds alone.
    assert!(
        gaps[0] <= hint + Duration::from_millis(2) && gaps[1] <= hint + Duration::from_millis(2)
    );
    assert!(gaps[4] >= Duration::from_secs(8), "{gaps:?}");
    assert_eq!(error.cause.retry_after, Some(hint));
    tokio::time::resume();

    // A policy of the strategy's own may be more eager; the server's wish holds all the same.
    let eager = services(&["a"])
        + "[[strategy]]\nplugin = \"retry\"\nconfig.policies.TooManyRequests = { delays_ms = [5, 5] }\n";
    let engine = begin(stock, &eager).await;
    let script = Script::default().on("a", bad_for(Kind::TOO_MANY_REQUESTS, hint));
    call(&engine, &script).await.unwrap_err();
    let gaps = script.gaps();
    assert_eq!(gaps.len(), 2, "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap >= hint), "{gaps:?}");
}

async fn a_throttle_with_a_long_hint_is_left_for_another_target(stock: Stock) {
    let engine = begin(stock, &services(&["a", "b"])).await;
    let script = Script::default()
        .on(
            "a",
            bad_for(Kind::TOO_MANY_REQUESTS, Duration::from_secs(30)),
        )
        .on("b", good("b's"));
    let outcome = call(&engine, &script).await.unwrap();
    assert_eq!(script.targets(), "a b");
    assert_gaps(&script, &[0], "a long hint");
    assert_eq!(taken(&steps_of(&outcome)), ["service-failover"]);
}

async fn what_is_the_callers_fault_is_asked_once_and_told(stock: Stock) {
    for kind in [Kind::INVALID_PARAMETER, Kind::UNAUTHORIZED, Kind::FORBIDDEN] {
        let engine = begin(stock, &services(&["a", "b"])).await;
        let script = Script::default()
            .on("a", bad(kind.clone()))
            .on("b", good("b's"));
        let error = call(&engine, &script).await.unwrap_err();
        assert_eq!(script.targets(), "a", "{kind}");
        assert_eq!(error.kind(), &kind);
        assert_eq!(error.ending, Ending::FailedFast);
        let expected =
            format!("search failed with {kind}, which trying again cannot mend: scripted");
        assert_eq!(error.message.as_deref(), Some(expected.as_str()));
        assert_eq!(taken_in(&error), ["fail-fast"]);
        tokio::time::resume();
    }
}

async fn an_operation_gives_way_to_another_with_its_arguments_mapped(stock: Stock) {
    let text = services(&["a", "b"])
        + r#"
[[strategy]]
plugin = "operation-fallback"
[[strategy.config.routes]]
from = "search"
to = "lookup"
arguments = { map = { query = "q" }, set = { limit = 5 }, drop = ["locale"] }
"#;
    let engine = begin(stock, &text).await;
    let script = Script::default()
        .on("a/search", bad(Kind::METHOD_NOT_FOUND))
        .on("a/lookup", good("found"));
    let outcome = call(&engine, &script).await.unwrap();
    assert_eq!(outcome.answer, "found");
    let instead = Degraded::Operation {
        operation: "lookup".into(),
    };
    assert_eq!(outcome.degraded, Some(instead));
    let sent = script.sent();
    let asked: Vec<_> = sent.iter().map(|sent| &*sent.operation).collect();
    assert_eq!(asked, ["search", "lookup"]);
    let arguments: serde_json::Value = serde_json::from_str(&sent[1].arguments).unwrap();
    assert_eq!(arguments, serde_json::json!({ "q": "x", "limit": 5 }));
    tokio::time::resume();

    // In an outage every target comes first.
    let engine = begin(stock, &text).await;
    let script = Script::default()
        .on("a/search", bad(Kind::SERVICE_UNAVAILABLE))
        .on("b/search", bad(Kind::SERVICE_UNAVAILABLE))
        .on("a/lookup", good("found"));
    let outcome = call(&engine, &script).await.unwrap();
    assert_eq!(script.targets(), "a a b b a");
    assert_eq!(
        taken(&steps_of(&outcome)),
        ["retry", "service-failover", "retry", "operation-fallback"]
    );
}

async fn an_outage_is_answered_with_the_last_known_good_answer_and_its_age(stock: Stock) {
    let text = services(&["a"]) + "[cache]\nmax_age = \"1h\"\n";
    let engine = begin(stock, &text).await;
    let script = Script::default().on("a", good("\"yesterday's\""));
    let mine = || Call::new("g", "search").caller("me");
    call_with(&engine, &script, mine()).await.unwrap();
    tokio::time::advance(Duration::from_secs(90)).await;
    script.set("a", bad(Kind::CONNECTION_ERROR));
    let outcome = call_with(&engine, &script, mine()).await.unwrap();
    assert_eq!(outcome.answer, "\"yesterday's\"");
    assert_eq!(outcome.served_by, None);
    let Some(Degraded::Stale { age, target }) = outcome.degraded else {
        panic!("not labelled as stale: {:?}", outcome.degraded);
    };
    assert_eq!(&*target, "a");
    assert!((90..92).contains(&age.as_secs()), "{age:?}");

    // Nobody else is given it, and what was never asked is not known.
    let other = Call::new("g", "search").caller("you");
    let error = call_with(&engine, &script, other).await.unwrap_err();
    assert_eq!(error.ending, Ending::Exhausted);
    let other = Request::new("search", r#"{"query":"y"}"#);
    let unknown = engine.call(&script, mine(), &other).await.unwrap_err();
    assert_eq!(unknown.error.ending, Ending::Exhausted);
}

async fn an_outage_is_answered_with_a_default_of_the_granted_folder(stock: Stock) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("search.json"), r#"{"hits":[]}"#).unwrap();
    let text = services(&["a"])
        + &format!(
            "[[strategy]]\nplugin = \"data-fallback\"\ngrants.folder = {:?}\n",
            folder.path()
        );
    let engine = begin(stock, &text).await;
    let script = Script::default().on("a", bad(Kind::SERVICE_UNAVAILABLE));
    let outcome = call(&engine, &script).await.unwrap();
    assert_eq!(outcome.answer, r#"{"hits":[]}"#);
    assert_eq!(outcome.degraded, Some(Degraded::Default));
    assert_eq!(taken(&steps_of(&outcome)), ["retry", "data-fallback"]);

    std::fs::remove_file(folder.path().join("search.json")).unwrap();
    assert!(call(&engine, &script).await.is_err());
}

async fn data_never_hides_what_is_the_callers_fault(stock: Stock) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("search.json"), "{}").unwrap();
    let text = services(&["a"])
        + &format!(
            "[[strategy]]\nplugin = \"data-fallback\"\ngrants.folder = {:?}\n[cache]\n",
            folder.path()
        );
    let engine = begin(stock, &text).await;
    let script = Script::default().on("a", good("1"));
    let mine = || Call::new("g", "search").caller("me");
    call_with(&engine, &script, mine()).await.unwrap();
    script.set("a", bad(Kind::INVALID_PARAMETER));
    let error = call_with(&engine, &script, mine()).await.unwrap_err();
    assert_eq!(error.kind(), &Kind::INVALID_PARAMETER);
    assert_eq!(taken_in(&error), ["fail-fast"]);
}

async fn fail_fast_ends_a_call_in_the_operators_words_before_anybody_else_is_asked(stock: Stock) {
    let text = services(&["a", "b"])
        + r#"
[[strategy]]
plugin = "fail-fast"
priority = 200
config = { kinds = ["ConnectionError"], message = "{target} is down for {operation}: {kind}" }
"#;
    let engine = begin(stock, &text).await;
    let script = Script::default()
        .on("a", bad(Kind::CONNECTION_ERROR))
        .on("b", good("b's"));
    let error = call(&engine, &script).await.unwrap_err();
    assert_eq!(script.targets(), "a");
    assert_eq!(
        error.message.as_deref(),
        Some("a is down for search: ConnectionError")
    );
    let asked: Vec<_> = steps(&error.trouble)
        .into_iter()
        .map(|step| step.0)
        .collect();
    assert_eq!(asked, ["fail-fast"]);
}

async fn a_call_nobody_cares_for_is_retried_less_and_an_important_one_more(stock: Stock) {
    let text = services(&["a"])
        + r#"
[[strategy]]
plugin = "retry"
config.importance = { none_below = 10, one_below = 20, more_from = 80, extra_retries = 1 }
config.policies.ConnectionError = { max_retries = 2, intervals = "fixed", initial_ms = 40 }
"#;
    for (importance, retries) in [
        (9, 0),
        (10, 1),
        (19, 1),
        (20, 2),
        (79, 2),
        (80, 3),
        (100, 3),
    ] {
        let engine = begin(stock, &text).await;
        let script = Script::default().on("a", bad(Kind::CONNECTION_ERROR));
        let call = Call::new("g", "search").importance(importance);
        call_with(&engine, &script, call).await.unwrap_err();
        assert_eq!(script.gaps().len(), retries, "importance {importance}");
        for gap in script.gaps() {
            assert!((40..=42).contains(&gap.as_millis()), "{gap:?}");
        }
        tokio::time::resume();
    }
}

async fn no_wait_is_begun_that_the_deadline_would_cut(stock: Stock) {
    // The hint is longer than the time left: the error is given at once, with the hint in it.
    let engine = begin(stock, &services(&["a"])).await;
    let hint = Duration::from_secs(10);
    let script = Script::default().on("a", bad_for(Kind::SERVICE_UNAVAILABLE, hint));
    let began = Instant::now();
    let short = || Call::new("g", "search").deadline(Duration::from_secs(5));
    let error = call_with(&engine, &script, short()).await.unwrap_err();
    assert_eq!(script.targets(), "a");
    assert_eq!(error.cause.retry_after, Some(hint));
    assert!(began.elapsed() < Duration::from_millis(10));

    // The table asks for 1 2 4 8 16 s; those which end before the deadline are made.
    let script = Script::default().on("a", bad(Kind::TOO_MANY_REQUESTS));
    let began = Instant::now();
    call_with(&engine, &script, short()).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5));
    let made = script.gaps().len();
    assert!((2..=3).contains(&made), "{made} retries in 5 s");
}

/// The components inside the library are those of the source: told the same, they decide the same.
#[tokio::test]
async fn both_sources_decide_alike_down_to_the_delays() {
    let text = services(&["a", "b"]) + &model("m") + "[cache]\n";
    let kinds = Kind::WELL_KNOWN.iter().cloned();
    for kind in kinds.chain([Kind::new("QuotaOfTeamSpent")]) {
        let mut told = Vec::new();
        for stock in [Stock::Prebuilt, Stock::Rebuilt] {
            let engine = begin(stock, &text).await;
            let script = Script::default();
            for target in ["a", "b", "m"] {
                script.set(target, bad(kind.clone()));
            }
            let error = call(&engine, &script).await.unwrap_err();
            let attempts = error.trouble.attempts.iter();
            told.push((
                script.targets(),
                attempts.map(|attempt| attempt.delay).collect::<Vec<_>>(),
                error.ending,
                error.message.clone(),
                steps(&error.trouble),
            ));
            tokio::time::resume();
        }
        assert_eq!(told[0], told[1], "{kind}");
    }
}
