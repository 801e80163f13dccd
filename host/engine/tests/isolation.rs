//! Who may have used an instance before a decision does: nobody, or earlier decisions one after the
//! other; never two at a time, and never after a fault.
#![cfg(feature = "component")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

mod component_guest;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use backstop::call::CallFacts;
use backstop::strategy::component::{
    ComponentStrategy, Grants, Isolation, Runtime, RuntimeOptions, StrategyOptions,
};
use backstop::strategy::{Situation, StrategyFault};
use backstop::{Failure, Kind};
use component_guest::Guest;
use serde_json::{Value, json};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new(RuntimeOptions::default()).unwrap());

fn situation() -> Situation {
    Situation::of(Failure::new(Kind::TIMEOUT_ERROR, "no answer"))
}

fn options(isolation: Isolation, limits: Value) -> StrategyOptions {
    StrategyOptions {
        isolation,
        limits: serde_json::from_value(limits).unwrap(),
        ..StrategyOptions::default()
    }
}

async fn load(guest: &Guest, options: StrategyOptions) -> Arc<ComponentStrategy> {
    let bytes = guest.build();
    ComponentStrategy::load(&RUNTIME, "guest", bytes, options)
        .await
        .unwrap()
}

/// Counts its decisions in its own memory and applies while `condition` holds of the count.
fn counting(condition: &str) -> Guest {
    Guest {
        condition: format!(
            "(global.set $count (i32.add (global.get $count) (i32.const 1))) {condition}"
        ),
        ..Guest::default()
    }
}

const FIRST: &str = "(i32.eq (global.get $count) (i32.const 1))";

async fn applies(strategy: &ComponentStrategy) -> bool {
    strategy.decide(&situation()).await.unwrap().is_some()
}

/// Waits until as many instances are ready: they are made beside the test.
async fn until_ready(strategy: &ComponentStrategy, instances: usize) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while strategy.ready() != instances {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "{} are ready", strategy.ready());
}

#[tokio::test]
async fn fresh_instances_are_made_ahead_of_need_and_each_decides_once() {
    let options = options(Isolation::Fresh, json!({ "ready": 3 }));
    let strategy = load(&counting(FIRST), options).await;
    for _ in 0..10 {
        until_ready(&strategy, 3).await;
        assert!(applies(&strategy).await, "an instance was used before");
        assert!(applies(&strategy).await, "an instance was used before");
    }
}

#[tokio::test]
async fn where_none_is_kept_ready_every_decision_makes_its_own() {
    let options = options(Isolation::Fresh, json!({ "ready": 0 }));
    let strategy = load(&counting(FIRST), options).await;
    for _ in 0..5 {
        assert!(applies(&strategy).await);
        assert_eq!(strategy.ready(), 0);
    }
}

#[tokio::test]
async fn what_is_ready_has_its_configuration_already() {
    // `configure` counts as well: one that ran twice, or not at all, does not apply.
    let guest = Guest {
        configure: format!(
            "(global.set $count (i32.add (global.get $count) (i32.const 1))) i32.const {}",
            component_guest::OK_AT
        ),
        condition: FIRST.into(),
        ..Guest::default()
    };
    let strategy = load(&guest, StrategyOptions::default()).await;
    until_ready(&strategy, 2).await;
    for _ in 0..6 {
        assert!(applies(&strategy).await);
    }
}

#[tokio::test]
async fn a_reused_instance_decides_as_often_as_its_limit_says_and_no_more() {
    let third = "(i32.eq (global.get $count) (i32.const 3))";
    let options = options(Isolation::Reuse, json!({ "ready": 1, "uses": 3 }));
    let strategy = load(&counting(third), options).await;
    for round in 0..4 {
        until_ready(&strategy, 1).await;
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(applies(&strategy).await);
        }
        assert_eq!(seen, [false, false, true], "round {round}");
    }
}

#[tokio::test]
async fn a_reused_instance_is_gone_after_a_fault_and_after_a_decision_that_was_dropped() {
    let trap = "(if (i32.eq (global.get $count) (i32.const 2)) (then unreachable)) (i32.eq (global.get $count) (i32.const 1))";
    let strategy = load(
        &counting(trap),
        options(Isolation::Reuse, json!({ "ready": 1 })),
    )
    .await;
    for _ in 0..2 {
        until_ready(&strategy, 1).await;
        assert!(applies(&strategy).await);
        let fault = strategy.decide(&situation()).await.unwrap_err();
        assert!(matches!(fault, StrategyFault::Trap(_)), "{fault:?}");
    }

    let endless = "(loop $again (br $again)) unreachable";
    let strategy = load(
        &counting(endless),
        options(
            Isolation::Reuse,
            json!({ "ready": 1, "decision-deadline-ms": 60_000 }),
        ),
    )
    .await;
    until_ready(&strategy, 1).await;
    let situation = situation();
    let dropped = tokio::time::timeout(Duration::from_millis(30), strategy.decide(&situation));
    assert!(dropped.await.is_err());
    assert_eq!(strategy.ready(), 0, "it was not given back");
    assert_eq!(
        strategy.standing().faults,
        0,
        "the call gave up, not the strategy"
    );
}

/// Writes what the caller is known by into its memory, waits in the host, and applies if it is still
/// there.
fn confused(folder: &std::path::Path) -> (Guest, Grants) {
    std::fs::write(folder.join("a"), "a").unwrap();
    let guest = Guest {
        capabilities: vec!["folder"],
        items: "(data (i32.const 600) \"a\")".into(),
        // Parameter 13 is the importance.
        condition: "(global.set $count (local.get 13))
            (call $read (i32.const 600) (i32.const 1) (i32.const 512))
            (i32.eq (global.get $count) (local.get 13))"
            .into(),
        ..Guest::default()
    };
    let grants = Grants {
        folder: Some(folder.to_owned()),
        ..Grants::default()
    };
    (guest, grants)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_decisions_at_once_never_share_an_instance() {
    let folder = tempfile::tempdir().unwrap();
    let (guest, grants) = confused(folder.path());
    for isolation in [Isolation::Fresh, Isolation::Reuse] {
        let options = StrategyOptions {
            grants: grants.clone(),
            ..options(
                isolation,
                json!({ "ready": 4, "decision-deadline-ms": 20_000 }),
            )
        };
        let strategy = load(&guest, options).await;
        let tasks: Vec<_> = (0..100)
            .map(|importance| {
                let strategy = strategy.clone();
                tokio::spawn(async move {
                    let mut situation = situation();
                    situation.call = Arc::new(CallFacts {
                        importance,
                        ..CallFacts::default()
                    });
                    strategy.decide(&situation).await
                })
            })
            .collect();
        for task in tasks {
            let decided = task.await.unwrap().unwrap();
            assert!(decided.is_some(), "{isolation:?}: another's data was seen");
        }
    }
}

#[tokio::test]
async fn a_flood_of_state_operations_is_a_fault_and_a_reused_instance_may_use_as_many_again() {
    let increments = |times: u32| {
        Guest {
        items: "(data (i32.const 600) \"k\")".into(),
        condition: format!(
            "(local $n i32) (loop $again
            (call $increment (i32.const 600) (i32.const 1) (i64.const 1) (i32.const 0) (i64.const 0) (i32.const 512))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $n) (i32.const {times})))) i32.const 1"
        ),
        ..Guest::default()
    }
    };
    let with = |isolation| StrategyOptions {
        grants: Grants {
            state: true,
            ..Grants::default()
        },
        ..options(isolation, json!({ "state-operations": 10, "ready": 1 }))
    };
    let flood = load(&increments(11), with(Isolation::Fresh)).await;
    let fault = flood.decide(&situation()).await.unwrap_err();
    assert_eq!(
        fault.to_string(),
        "was stopped: it used its state more than 10 times in one decision"
    );
    assert_eq!(fault.label(), "excess");
    let modest = load(&increments(10), with(Isolation::Reuse)).await;
    for _ in 0..3 {
        assert!(applies(&modest).await);
    }
}
