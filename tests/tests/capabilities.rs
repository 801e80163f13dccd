//! What a strategy gets and what it does not: chance that repeats with the engine's seed, and an error
//! it can handle for what the configuration does not grant.

#[path = "../../host/engine/tests/component_guest/mod.rs"]
#[allow(dead_code, reason = "shared with tests that need the rest")]
mod component_guest;

use backstop::call::{Call, RepeatSafety};
use backstop::strategy::Situation;
use backstop::strategy::component::{ComponentStrategy, StrategyOptions};
use backstop::{Failure, Kind};
use backstop_tests::engines::{RUNTIME, services, start_in, steps_of};
use backstop_tests::plugins::fixture;
use backstop_tests::script::{Request, Script, bad, good};
use component_guest::Guest;

/// The random numbers a strategy draws in three calls of a new engine, which all have one seed.
async fn drawn() -> Vec<String> {
    let home = tempfile::tempdir().unwrap();
    for folder in ["plugins", "granted"] {
        std::fs::create_dir(home.path().join(folder)).unwrap();
    }
    std::fs::write(home.path().join("plugins/witness.wasm"), fixture("witness")).unwrap();
    let text = format!(
        "plugins = \"plugins\"\nstock = false\n{}[[strategy]]\nplugin = \"witness\"\nconfig = {{ action = \"switch\" }}\ngrants = {{ state = true, folder = \"granted\" }}\n",
        services(&["a", "b"])
    );
    let started = start_in(home.path(), &text).await;
    assert_eq!(started.diagnostics, []);
    let mut drawn = Vec::new();
    for _ in 0..3 {
        let script = Script::default()
            .on("a", bad(Kind::TIMEOUT_ERROR))
            .on("b", good("b's"));
        let call = Call::new("g", "search").repeat_safety(RepeatSafety::ReadOnly);
        let outcome = started
            .engine
            .call(&script, call, &Request::new("search", "{}"))
            .await
            .unwrap();
        assert_eq!(outcome.answer, "b's");
        let steps = steps_of(&outcome);
        let line = steps[0].2.lines().find(|line| line.starts_with("random "));
        drawn.push(line.unwrap().to_owned());
    }
    drawn
}

#[tokio::test]
async fn chance_is_the_engines_own_and_repeats_with_its_seed() {
    let first = drawn().await;
    assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
    assert_eq!(drawn().await, first);
}

#[tokio::test]
async fn what_is_not_granted_is_an_error_the_strategy_can_handle_and_no_fault() {
    // It has declared nothing, so it is loaded; then it tries. `not-granted` is the first case of both
    // errors.
    let increments = "(call $increment (i32.const 600) (i32.const 1) (i64.const 1) (i32.const 0) (i64.const 0) (i32.const 512))
        (i32.and (i32.eq (i32.load8_u (i32.const 512)) (i32.const 1)) (i32.eqz (i32.load8_u (i32.const 520))))";
    let reads = "(call $read (i32.const 600) (i32.const 1) (i32.const 512))
        (i32.and (i32.eq (i32.load8_u (i32.const 512)) (i32.const 1)) (i32.eqz (i32.load8_u (i32.const 520))))";
    for (what, condition) in [("state", increments), ("folder", reads)] {
        let guest = Guest {
            // What the answer must change is not there before.
            items: "(data (i32.const 600) \"k\") (data (i32.const 520) \"\\ff\")".into(),
            condition: condition.into(),
            ..Guest::default()
        };
        let options = StrategyOptions::default();
        let strategy = ComponentStrategy::load(&RUNTIME, what, guest.build(), options)
            .await
            .unwrap();
        let situation = Situation::of(Failure::new(Kind::TIMEOUT_ERROR, "no answer"));
        let decision = strategy.decide(&situation).await.unwrap();
        assert!(decision.is_some(), "{what}: it was told something else");
        assert_eq!(strategy.standing().faults, 0);
    }
}
