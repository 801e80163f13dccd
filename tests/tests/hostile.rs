//! Hostile plugins: a trap, an endless loop, a memory bomb and garbage, in `condition` and in
//! `action`, each cost one bounded decision; the next strategy saves the call.
//!
//! Decisions run in real time, so these tests measure it, with margins for a busy machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop::call::{Call, Ending, RepeatSafety};
use backstop::event::EventKind;
use backstop::{Engine, Kind};
use backstop_tests::engines::{services, start_in, steps, steps_of, taken};
use backstop_tests::plugins::fixture;
use backstop_tests::script::{Reply, Request, Script, bad, good};

/// The default limit of one decision is 50 ms. What is allowed on top covers the instance and a
/// machine busy with other tests.
const DECISION: Duration = Duration::from_millis(50);
const MARGIN: Duration = Duration::from_secs(3);

/// How it misbehaves, and what is said of it.
const WAYS: [(&str, &str); 7] = [
    ("trap", "trapped"),
    ("loop", "did not decide within 50ms"),
    ("hoard", "asked for more memory than its limit"),
    ("sleep", "did not decide within 50ms"),
    // Whichever stack is used up first, its own one or the host's.
    ("recurse", "trapped"),
    ("giant", "returned an invalid result"),
    ("garbage", "returned an invalid result"),
];

/// An engine in which `misbehave` is asked before everybody else.
async fn engine(when: &str, how: &str, more: &str) -> Engine {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("plugins")).unwrap();
    let file = home.path().join("plugins/misbehave.wasm");
    std::fs::write(file, fixture("misbehave")).unwrap();
    // On a busy machine its time may be over before its memory: give it less of that and more of this.
    let limits = if how == "hoard" {
        "limits = { memory = \"4MiB\", decision_deadline = \"1s\" }\n"
    } else {
        ""
    };
    let text = format!(
        "plugins = \"plugins\"\n{}[[strategy]]\nplugin = \"misbehave\"\nconfig = {{ when = {when:?}, how = {how:?} }}\n{limits}{more}",
        services(&["a", "b"])
    );
    let started = start_in(home.path(), &text).await;
    assert!(started.diagnostics.is_empty(), "{:#?}", started.diagnostics);
    assert_eq!(started.strategies()[0], "misbehave");
    started.engine
}

/// `a` cannot serve `bad`, `b` can. A custom kind neither opens circuits nor is retried, so
/// every call meets exactly one failure.
fn script() -> Script {
    Script::default()
        .on("a/bad", bad(Kind::new("Hostile")))
        .on("a/good", good("a's"))
        .on("b", good("b's"))
}

const SWITCH: &str =
    "[[strategy]]\nplugin = \"service-failover\"\nconfig = { kinds = [\"Hostile\"] }\n";

fn call(operation: &str) -> Call {
    Call::new("g", operation).repeat_safety(RepeatSafety::ReadOnly)
}

fn request(operation: &str) -> Request {
    Request::new(operation, "{}")
}

/// Garbage is a matter of what `action` returns; the rest may happen in both.
fn moments(how: &str) -> &'static [&'static str] {
    if ["garbage", "giant"].contains(&how) {
        &["action"]
    } else {
        &["condition", "action"]
    }
}

#[tokio::test]
async fn each_costs_one_bounded_decision_and_the_next_strategy_saves_the_call() {
    for (how, said) in WAYS {
        for when in moments(how) {
            let engine = engine(when, how, SWITCH).await;
            let script = script();
            let began = Instant::now();
            let outcome = engine
                .call(&script, call("bad"), &request("bad"))
                .await
                .unwrap();
            let took = began.elapsed();
            assert!(took < DECISION * 2 + MARGIN, "{how} in {when}: {took:?}");
            if how == "loop" {
                assert!(took >= DECISION, "it was stopped before its time: {took:?}");
            }
            assert_eq!(outcome.answer, "b's", "{how} in {when}");
            let steps = steps_of(&outcome);
            assert_eq!((&*steps[0].0, steps[0].1), ("misbehave", "faulted"));
            assert!(steps[0].2.contains(said), "{how} in {when}: {}", steps[0].2);
            assert_eq!(taken(&steps), ["service-failover"], "{how} in {when}");
        }
    }
}

#[tokio::test]
async fn a_plausible_lie_is_refused_by_the_guard_and_the_next_strategy_saves_the_call() {
    let engine = engine("action", "lie", SWITCH).await;
    let script = script();
    let outcome = engine
        .call(&script, call("bad"), &request("bad"))
        .await
        .unwrap();
    assert_eq!(script.targets(), "a b");
    let steps = steps_of(&outcome);
    assert_eq!((&*steps[0].0, steps[0].1), ("misbehave", "refused"));
    assert!(
        steps[0].2.contains("there is no target named"),
        "{}",
        steps[0].2
    );
    assert_eq!(taken(&steps), ["service-failover"]);
}

#[tokio::test]
async fn after_repeated_faults_it_is_quarantined_and_calls_no_longer_pay_for_it() {
    for (how, _) in WAYS {
        let engine = engine("action", how, SWITCH).await;
        let mut events = engine.subscribe();
        let script = script();
        let mut last = Vec::new();
        // Only a clock that stands still keeps the quarantine of one second from ending meanwhile.
        tokio::time::pause();
        for _ in 0..20 {
            let outcome = engine
                .call(&script, call("bad"), &request("bad"))
                .await
                .unwrap();
            assert_eq!(outcome.answer, "b's");
            last = steps_of(&outcome);
        }
        assert!(last[0].2.contains("quarantined"), "{how}: {}", last[0].2);
        let mut entered = 0;
        let mut kept_out = 0;
        let mut told = Vec::new();
        while let Ok(event) = events.try_recv() {
            match &event.what {
                EventKind::StrategyFaulted {
                    fault: "quarantined",
                    ..
                } => kept_out += 1,
                EventKind::StrategyFaulted { strategy, .. } => {
                    assert_eq!(&**strategy, "misbehave");
                    entered += 1;
                }
                EventKind::StrategyQuarantined { faults, .. } => told.push(*faults),
                _ => {}
            }
        }
        assert_eq!((entered, kept_out), (3, 17), "{how}");
        assert_eq!(told, [3], "{how}: who watches is told, once");

        // It is not given up for good: when the quarantine is over it is asked again, once.
        tokio::time::advance(Duration::from_secs(1)).await;
        let asked = engine
            .call(&script, call("bad"), &request("bad"))
            .await
            .unwrap();
        assert!(!steps_of(&asked)[0].2.contains("quarantined"), "{how}");
        let kept_out = engine
            .call(&script, call("bad"), &request("bad"))
            .await
            .unwrap();
        assert!(steps_of(&kept_out)[0].2.contains("quarantined"), "{how}");
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_quarantined_loop_costs_no_time() {
    let engine = engine("condition", "loop", SWITCH).await;
    let script = script();
    let mut fast = Vec::new();
    for _ in 0..6 {
        let began = Instant::now();
        let outcome = engine
            .call(&script, call("bad"), &request("bad"))
            .await
            .unwrap();
        if steps_of(&outcome)[0].2.contains("quarantined") {
            fast.push(began.elapsed());
        }
    }
    // At least one came within the second of the first quarantine; the best of them shows the cost.
    let best = fast.iter().min().unwrap();
    assert!(*best < DECISION, "{fast:?}");
}

#[tokio::test]
async fn a_fault_of_a_strategy_nobody_may_replace_ends_the_call() {
    let policy = format!("on_fault = \"fail\"\n{SWITCH}");
    for (how, said) in WAYS {
        let engine = engine("action", how, &policy).await;
        let script = script();
        let failed = engine
            .call(&script, call("bad"), &request("bad"))
            .await
            .unwrap_err();
        assert_eq!(script.targets(), "a", "{how}");
        let error = failed.error;
        assert_eq!(error.ending, Ending::FailedFast, "{how}");
        assert_eq!(error.kind(), &Kind::new("Hostile"));
        let message = error.message.clone().unwrap_or_default();
        assert!(
            message.contains("misbehave") && message.contains(said),
            "{how}: {message}"
        );
        let steps = steps(&error.trouble);
        assert_eq!(steps.len(), 1, "{how}: {steps:?}");
    }
}

#[tokio::test]
async fn a_fault_that_counts_as_declining_is_explained_as_such_and_still_told_and_counted() {
    let policy = format!("on_fault = \"decline\"\n{SWITCH}");
    for (how, said) in WAYS {
        let engine = engine("action", how, &policy).await;
        let mut events = engine.subscribe();
        let script = script();
        for _ in 0..3 {
            let outcome = engine
                .call(&script, call("bad"), &request("bad"))
                .await
                .unwrap();
            assert_eq!(outcome.answer, "b's", "{how}");
            let steps = steps_of(&outcome);
            assert_eq!((&*steps[0].0, steps[0].1), ("misbehave", "declined"));
            assert_eq!(taken(&steps), ["service-failover"], "{how}");
        }
        let (mut faults, mut quarantined) = (Vec::new(), 0);
        while let Ok(event) = events.try_recv() {
            match &event.what {
                EventKind::StrategyFaulted { message, .. } => faults.push(message.clone()),
                EventKind::StrategyQuarantined { .. } => quarantined += 1,
                _ => {}
            }
        }
        assert_eq!((faults.len(), quarantined), (3, 1), "{how}: {faults:?}");
        assert!(
            faults.iter().all(|fault| fault.contains(said)),
            "{faults:?}"
        );
    }
}

/// The loop occupies worker threads again and again; whoever shares them must still get a turn.
async fn good_calls_beside_a_loop() {
    const LONG: Duration = Duration::from_secs(1);
    let more = format!(
        "limits = {{ decision_deadline = {} }}\n{SWITCH}",
        LONG.as_secs()
    );
    let engine = engine("condition", "loop", &more).await;
    let script = Arc::new(script());
    // Waiting for its answer, a good call gives its thread away, and must get it back.
    script.set("a/good", [Reply::Slow(Duration::from_millis(20), "a's")]);
    let spawn = |operation: &'static str| {
        let (engine, script) = (engine.clone(), script.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let outcome = engine
                .call(&*script, call(operation), &request(operation))
                .await
                .unwrap();
            (outcome.answer, began.elapsed())
        })
    };
    let looping: Vec<_> = (0..4).map(|_| spawn("bad")).collect();
    // Let them get into their loops.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let good: Vec<_> = (0..50).map(|_| spawn("good")).collect();
    assert!(looping.iter().all(|task| !task.is_finished()));
    for task in good {
        let (answer, took) = task.await.unwrap();
        assert_eq!(answer, "a's");
        // A turn of a loop is one tick of 10 ms, and four of them take turns. A loop that held its
        // thread would make this a matter of seconds.
        assert!(took < LONG, "a good call waited {took:?}");
    }
    for task in looping {
        let (answer, took) = task.await.unwrap();
        assert_eq!(answer, "b's");
        // Its time is counted in turns; twice as long in all is the end of it in any case.
        assert!(took >= LONG && took < LONG * 2 + MARGIN, "{took:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn fifty_good_calls_on_the_one_thread_of_a_looping_plugin_end_in_time() {
    good_calls_beside_a_loop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_good_calls_on_the_two_threads_of_looping_plugins_end_in_time() {
    good_calls_beside_a_loop().await;
}

/// What a strategy did, and the longest time a task on the same thread had to wait meanwhile.
async fn beside_a_heart(engine: &Engine) -> (Duration, Duration) {
    let script = script();
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    let began = Instant::now();
    let (call, request) = (call("bad"), request("bad"));
    let mut decided = std::pin::pin!(engine.call(&script, call, &request));
    let outcome = loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
            outcome = &mut decided => break outcome,
        }
        longest = longest.max(last.elapsed());
        last = Instant::now();
    };
    assert_eq!(outcome.unwrap().answer, "b's");
    (began.elapsed(), longest.max(last.elapsed()))
}

#[tokio::test]
async fn whatever_it_does_it_ends_in_its_time_and_never_holds_its_thread_longer_than_a_tick() {
    const TICK: Duration = Duration::from_millis(10);
    for how in ["loop", "sleep", "recurse", "flood", "hoard", "giant"] {
        let when = if how == "giant" {
            "action"
        } else {
            "condition"
        };
        // On a busy machine a turn may come late, and that is not the strategy's doing. So it is the
        // best of many that counts; one that could hold its thread would do so each time.
        let mut best = (Duration::MAX, Duration::MAX);
        for _ in 0..10 {
            // Each time another engine, since faults would quarantine it.
            let engine = engine(when, how, SWITCH).await;
            let (took, longest) = beside_a_heart(&engine).await;
            best = (best.0.min(took), best.1.min(longest));
            if best.0 <= DECISION + TICK * 2 && best.1 <= TICK * 2 {
                break;
            }
        }
        let (took, longest) = best;
        // The call itself takes a little, too.
        let little = Duration::from_millis(5);
        assert!(took <= DECISION + TICK * 2 + little, "{how}: {took:?}");
        // It gives way at the tick's end, and the heart beats once in a millisecond.
        assert!(longest <= TICK + TICK / 2 + little, "{how}: {longest:?}");
    }
}
