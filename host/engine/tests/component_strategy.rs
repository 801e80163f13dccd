//! Strategies that are components: good ones decide, bad ones are refused by name, hostile ones are
//! stopped, and none of them reaches beyond its own instance.
#![cfg(feature = "component")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod component_guest;

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backstop::strategy::component::{
    ComponentStrategy, Frozen, Grants, Limits, LoadError, Route, Runtime, RuntimeOptions,
    StrategyOptions,
};
use backstop::strategy::{Action, AnswerData, Decision, Situation, StrategyFault};
use backstop::{Failure, Kind};
use component_guest::{Guest, OK_AT, Proposes, REFUSAL_AT};
use serde_json::json;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new(RuntimeOptions::default()).unwrap());

const LOOP: &str = "(loop $again (br $again)) unreachable";
/// What every time limit is allowed on top, on a machine busy with other tests.
const MARGIN: Duration = Duration::from_secs(3);

fn situation() -> Situation {
    Situation::of(Failure::new(Kind::TIMEOUT_ERROR, "no answer"))
}

async fn load_with(
    guest: &Guest,
    options: StrategyOptions,
) -> Result<Arc<ComponentStrategy>, LoadError> {
    ComponentStrategy::load(&RUNTIME, guest.name, guest.build(), options).await
}

async fn load(guest: Guest) -> Arc<ComponentStrategy> {
    load_with(&guest, StrategyOptions::default()).await.unwrap()
}

async fn refusal(guest: Guest) -> LoadError {
    load_with(&guest, StrategyOptions::default())
        .await
        .unwrap_err()
}

async fn decide(guest: Guest) -> Result<Option<Decision>, StrategyFault> {
    load(guest).await.decide(&situation()).await
}

#[tokio::test]
async fn a_good_strategy_says_what_it_is_and_decides() {
    let strategy = load(Guest::default()).await;
    assert_eq!(strategy.info().name, "guest");
    assert_eq!(
        (
            strategy.info().version.as_str(),
            strategy.info().default_priority
        ),
        ("1.2.3", 5)
    );
    assert_eq!(strategy.inspection().contract, "0.1.0");
    assert!(
        strategy
            .inspection()
            .imports
            .contains(&"backstop:strategy/state@0.1.0".to_owned())
    );
    assert_eq!(strategy.inspection().sha256.len(), 64);
    let decision = strategy.decide(&situation()).await.unwrap().unwrap();
    assert_eq!(
        decision,
        Decision::new(
            Action::Retry {
                delay: Some(Duration::from_millis(7))
            },
            "because"
        )
    );
}

#[tokio::test]
async fn a_condition_that_says_no_decides_nothing_and_its_action_is_not_asked() {
    let guest = Guest {
        condition: "i32.const 0".into(),
        action: "unreachable".into(),
        ..Guest::default()
    };
    assert_eq!(decide(guest).await, Ok(None));
}

#[tokio::test]
async fn a_condition_sees_the_failure_field_by_field() {
    // Attempts (parameter 9) is 1, importance (13) is 50, retryable, ambiguous and repeatable (6).
    let condition = "(i32.and (i32.and (i32.eq (local.get 9) (i32.const 1)) (i32.eq (local.get 13) (i32.const 50)))
        (i32.eq (local.get 6) (i32.const 11)))";
    assert!(
        decide(Guest {
            condition: condition.into(),
            ..Guest::default()
        })
        .await
        .unwrap()
        .is_some()
    );
}

#[tokio::test]
async fn nothing_survives_from_one_decision_to_the_next() {
    let count = "(global.set $count (i32.add (global.get $count) (i32.const 1)))
        (i32.eq (global.get $count) (i32.const 1))";
    let strategy = load(Guest {
        condition: count.into(),
        ..Guest::default()
    })
    .await;
    for _ in 0..3 {
        assert!(strategy.decide(&situation()).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_trap_in_any_export_is_an_error_of_that_export_alone() {
    let metadata = refusal(Guest {
        metadata: "unreachable".into(),
        ..Guest::default()
    })
    .await;
    assert!(
        matches!(&metadata, LoadError::Metadata { plugin, source: StrategyFault::Trap(_) } if plugin == "guest")
    );
    let configure = refusal(Guest {
        configure: "unreachable".into(),
        ..Guest::default()
    })
    .await;
    assert!(
        matches!(&configure, LoadError::Configure { plugin, source: StrategyFault::Trap(_) } if plugin == "guest")
    );
    for guest in [
        Guest {
            condition: "unreachable".into(),
            ..Guest::default()
        },
        Guest {
            action: "unreachable".into(),
            ..Guest::default()
        },
    ] {
        let fault = decide(guest).await.unwrap_err();
        assert!(
            matches!(&fault, StrategyFault::Trap(why) if why.contains("unreachable")),
            "{fault:?}"
        );
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_endless_loop_in_any_export_is_stopped_while_other_tasks_run_on_the_same_thread() {
    static TURNS: AtomicU64 = AtomicU64::new(0);
    let other = tokio::spawn(async {
        loop {
            TURNS.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    // Long enough for many turns, even where this thread gets a small share of a busy machine.
    let limits: Limits = serde_json::from_value(json!({ "decision-deadline-ms": 500 })).unwrap();
    for (which, guest) in [
        (
            "metadata",
            Guest {
                metadata: LOOP.into(),
                ..Guest::default()
            },
        ),
        (
            "configure",
            Guest {
                configure: LOOP.into(),
                ..Guest::default()
            },
        ),
        (
            "condition",
            Guest {
                condition: LOOP.into(),
                ..Guest::default()
            },
        ),
        (
            "action",
            Guest {
                action: LOOP.into(),
                ..Guest::default()
            },
        ),
    ] {
        let bytes = guest.build();
        let options = StrategyOptions {
            limits: limits.clone(),
            ..StrategyOptions::default()
        };
        let loaded = ComponentStrategy::load(&RUNTIME, "guest", bytes, options).await;
        match loaded {
            Err(LoadError::Metadata {
                source: StrategyFault::Timeout(after),
                ..
            }) if which == "metadata" => {
                assert_eq!(after, limits.configure_deadline());
            }
            Err(LoadError::Configure {
                source: StrategyFault::Timeout(after),
                ..
            }) if which == "configure" => {
                assert_eq!(after, limits.configure_deadline());
            }
            Ok(strategy) => {
                let (started, turns) = (Instant::now(), TURNS.load(Ordering::Relaxed));
                let fault = strategy.decide(&situation()).await.unwrap_err();
                assert_eq!(
                    fault,
                    StrategyFault::Timeout(limits.decision_deadline()),
                    "{which}"
                );
                assert!(
                    started.elapsed() < limits.decision_deadline() * 2 + MARGIN,
                    "{which}"
                );
                assert!(
                    TURNS.load(Ordering::Relaxed) >= turns + 3,
                    "{which} held the thread"
                );
            }
            Err(error) => panic!("{which}: {error}"),
        }
    }
    other.abort();
}

#[tokio::test]
async fn a_memory_bomb_is_a_memory_fault_and_a_refused_growth_that_is_handled_is_none() {
    let grow = "(memory.grow (i32.const 1024))";
    let bomb = format!("(if (i32.eq {grow} (i32.const -1)) (then unreachable)) (i32.const 1)");
    let fault = decide(Guest {
        condition: bomb,
        ..Guest::default()
    })
    .await
    .unwrap_err();
    assert_eq!(fault, StrategyFault::Memory(16 << 20));
    let handled = format!("(i32.eq {grow} (i32.const -1))");
    assert!(
        decide(Guest {
            condition: handled,
            ..Guest::default()
        })
        .await
        .unwrap()
        .is_some()
    );
    let born = refusal(Guest {
        pages: 1024,
        ..Guest::default()
    })
    .await;
    assert!(
        matches!(
            born,
            LoadError::Metadata {
                source: StrategyFault::Memory(_),
                ..
            }
        ),
        "{born:?}"
    );
    let limits: Limits = serde_json::from_value(json!({ "memory-bytes": 128 << 20 })).unwrap();
    let options = StrategyOptions {
        limits,
        ..StrategyOptions::default()
    };
    load_with(
        &Guest {
            pages: 1024,
            ..Guest::default()
        },
        options,
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn endless_recursion_is_a_trap() {
    let items = "(func $deep (result i32) (i32.add (call $deep) (i32.const 1)))";
    let fault = decide(Guest {
        items: items.into(),
        condition: "(call $deep)".into(),
        ..Guest::default()
    })
    .await;
    assert!(
        matches!(&fault, Err(StrategyFault::Trap(why)) if why.contains("stack")),
        "{fault:?}"
    );
}

#[tokio::test]
async fn an_action_out_of_range_is_garbage_that_names_the_field() {
    let call = |arguments: &str| Proposes::CallOperation {
        operation: "op".into(),
        arguments: arguments.into(),
    };
    for (proposes, named) in [
        (Proposes::Retry(Some(u64::MAX)), "delay"),
        (call("[1]"), "`arguments` is not a JSON object"),
        (call("{"), "`arguments` is not JSON"),
        (
            Proposes::CallOperation {
                operation: String::new(),
                arguments: "{}".into(),
            },
            "`operation` is empty",
        ),
        (Proposes::Static(Some("no".into())), "`body` is not JSON"),
        (Proposes::Static(None), "without a `body`"),
        (
            Proposes::Fail("x".repeat(5_000)),
            "`message` has 5000 bytes",
        ),
    ] {
        let fault = decide(Guest {
            proposes,
            ..Guest::default()
        })
        .await
        .unwrap_err();
        assert!(
            matches!(&fault, StrategyFault::Garbage(why) if why.contains(named)),
            "{named}: {fault:?}"
        );
    }
    let good = decide(Guest {
        proposes: Proposes::Static(Some("{\"a\":1}".into())),
        ..Guest::default()
    })
    .await;
    assert_eq!(
        good.unwrap().unwrap().action,
        Action::Answer(AnswerData::Static("{\"a\":1}".into()))
    );
}

#[tokio::test]
async fn a_result_that_points_out_of_memory_or_is_larger_than_its_limit_is_garbage() {
    let outside = decide(Guest {
        action: "i32.const 131064".into(),
        ..Guest::default()
    })
    .await;
    assert!(
        matches!(outside, Err(StrategyFault::Garbage(_))),
        "{outside:?}"
    );
    let long = Guest {
        proposes: Proposes::Static(Some(format!("\"{}\"", "x".repeat(2_000)))),
        ..Guest::default()
    };
    let limits: Limits = serde_json::from_value(json!({ "result-bytes": 1024 })).unwrap();
    let options = StrategyOptions {
        limits,
        ..StrategyOptions::default()
    };
    let fault = load_with(&long, options)
        .await
        .unwrap()
        .decide(&situation())
        .await;
    assert!(matches!(fault, Err(StrategyFault::Garbage(_))), "{fault:?}");
}

#[tokio::test]
async fn what_is_no_strategy_is_refused_with_what_it_is_instead() {
    let load = async |bytes: Vec<u8>| {
        ComponentStrategy::load(&RUNTIME, "p", bytes, StrategyOptions::default())
            .await
            .unwrap_err()
    };
    assert!(matches!(
        load(b"not wasm at all".to_vec()).await,
        LoadError::NotWasm { .. }
    ));
    assert!(matches!(load(Vec::new()).await, LoadError::NotWasm { .. }));
    assert!(matches!(
        load(wat::parse_str("(module)").unwrap()).await,
        LoadError::CoreModule { .. }
    ));
    let other = load(wat::parse_str("(component)").unwrap()).await;
    assert!(matches!(other, LoadError::WrongWorld { .. }));
    let whole = Guest::default().build();
    for length in [9, whole.len() / 2, whole.len() - 1] {
        let error = load(whole[..length].to_vec()).await;
        assert!(
            matches!(error, LoadError::Damaged { .. }),
            "{length}: {error}"
        );
    }
    let other = refusal(Guest {
        interface: "vendor:thing/policy",
        ..Guest::default()
    })
    .await
    .to_string();
    assert!(
        other.contains("`backstop:strategy/policy@0.1.0`")
            && other.contains("`vendor:thing/policy@0.1.0`"),
        "{other}"
    );
}

#[tokio::test]
async fn another_contract_is_refused_with_both_versions_and_a_patch_of_it_is_served() {
    let error = refusal(Guest {
        version: "0.2.0",
        ..Guest::default()
    })
    .await;
    assert!(matches!(error, LoadError::Contract { .. }));
    let text = error.to_string();
    assert!(
        text.contains("`backstop:strategy/policy@0.2.0`")
            && text.contains("`backstop:strategy/policy@0.1.0`"),
        "{text}"
    );
    let patched = load(Guest {
        version: "0.1.9",
        ..Guest::default()
    })
    .await;
    assert!(patched.decide(&situation()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_strategy_that_wants_a_network_is_refused_by_the_import() {
    let imports = r#"(import "wasi:sockets/tcp@0.2.0" (instance))"#;
    let error = refusal(Guest {
        imports,
        ..Guest::default()
    })
    .await
    .to_string();
    assert!(
        error.contains("`wasi:sockets/tcp@0.2.0`") && error.contains("no network"),
        "{error}"
    );
}

#[tokio::test]
async fn a_configuration_is_checked_by_the_schema_and_then_by_the_strategy() {
    let schema =
        json!({ "type": "object", "properties": { "depth": { "type": "integer" } } }).to_string();
    let configured = async |configure: String, config| {
        let guest = Guest {
            schema: schema.clone(),
            configure,
            ..Guest::default()
        };
        load_with(
            &guest,
            StrategyOptions {
                config,
                ..StrategyOptions::default()
            },
        )
        .await
    };
    let ok = format!("i32.const {OK_AT}");
    assert!(configured(ok.clone(), json!({ "depth": 2 })).await.is_ok());
    let error = configured(ok, json!({ "depth": "two" })).await.unwrap_err();
    assert!(
        matches!(&error, LoadError::Config { field, .. } if field == "config.depth"),
        "{error}"
    );
    let error = configured(format!("i32.const {REFUSAL_AT}"), json!({ "depth": 3 }))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, LoadError::Refused { message, .. } if message.contains("`depth` is odd")),
        "{error}"
    );
}

#[tokio::test]
async fn a_name_that_is_none_is_refused() {
    assert!(matches!(
        refusal(Guest {
            name: "a b",
            ..Guest::default()
        })
        .await,
        LoadError::Info { .. }
    ));
}

#[tokio::test]
async fn a_capability_that_is_not_granted_is_refused_with_the_line_that_grants_it() {
    for (capability, line) in [
        ("state", "grants.state = true"),
        ("folder", "grants.folder = "),
    ] {
        let error = refusal(Guest {
            capabilities: vec![capability],
            ..Guest::default()
        })
        .await;
        assert!(error.to_string().contains(line), "{error}");
    }
    load(Guest {
        capabilities: vec!["telepathy"],
        ..Guest::default()
    })
    .await;
}

/// Reads the file the text names and says whether the first byte at 512 is `expected`.
fn reads(path: &str, expected: u8) -> Guest {
    let items = format!("(data (i32.const 600) \"{path}\")");
    let condition = format!(
        "(call $read (i32.const 600) (i32.const {}) (i32.const 512))
         (i32.eq (i32.load8_u (i32.const {})) (i32.const {expected}))",
        path.len(),
        if expected == 0 { 512 } else { 520 },
    );
    Guest {
        capabilities: vec!["folder"],
        items,
        condition,
        ..Guest::default()
    }
}

#[tokio::test]
async fn a_strategy_reads_its_folder_and_never_leaves_it() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("a.json"), "{}").unwrap();
    std::fs::write(outer.path().join("secret"), "s").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("../secret", inner.join("link")).unwrap();
    let grants = Grants {
        folder: Some(inner),
        state: false,
    };
    const NOT_FOUND: u8 = 1;
    const FORBIDDEN: u8 = 2;
    for (path, expected) in [
        ("a.json", 0),
        ("../secret", FORBIDDEN),
        ("/etc/hostname", FORBIDDEN),
        ("link", FORBIDDEN),
        ("b", NOT_FOUND),
    ] {
        let options = StrategyOptions {
            grants: grants.clone(),
            ..StrategyOptions::default()
        };
        let strategy = load_with(&reads(path, expected), options).await.unwrap();
        assert!(
            strategy.decide(&situation()).await.unwrap().is_some(),
            "{path}"
        );
    }
}

/// Increments `k` and applies while the sum is below 3.
fn counts() -> Guest {
    Guest {
        capabilities: vec!["state"],
        items: "(data (i32.const 600) \"k\")".into(),
        condition: "(call $increment (i32.const 600) (i32.const 1) (i64.const 1) (i32.const 0) (i64.const 0) (i32.const 512))
            (i32.and (i32.eqz (i32.load8_u (i32.const 512))) (i64.lt_s (i64.load (i32.const 520)) (i64.const 3)))"
            .into(),
        ..Guest::default()
    }
}

#[tokio::test]
async fn state_lasts_between_decisions_within_its_quota_and_belongs_to_one_strategy() {
    let options = |limits: serde_json::Value| StrategyOptions {
        grants: Grants {
            folder: None,
            state: true,
        },
        limits: serde_json::from_value(limits).unwrap(),
        ..StrategyOptions::default()
    };
    let first = load_with(&counts(), options(json!({}))).await.unwrap();
    let second = load_with(&counts(), options(json!({}))).await.unwrap();
    let applies =
        async |strategy: &ComponentStrategy| strategy.decide(&situation()).await.unwrap().is_some();
    assert!(applies(&first).await && applies(&first).await);
    assert!(!applies(&first).await, "the third increment gives 3");
    assert!(applies(&second).await, "another strategy counts for itself");
    let tight = load_with(&counts(), options(json!({ "state-bytes": 10 })))
        .await
        .unwrap();
    assert!(!applies(&tight).await, "the quota is exceeded");
}

#[tokio::test]
async fn a_rehearsal_repeats_with_given_time_chance_and_state_and_leaves_the_real_state_alone() {
    // condition: increments "k" and is true while the sum is below 3.
    let options = StrategyOptions {
        grants: Grants {
            folder: None,
            state: true,
        },
        ..StrategyOptions::default()
    };
    let strategy = load_with(&counts(), options).await.unwrap();
    let frozen = |start: &str| Frozen {
        state: vec![("k".to_owned(), start.as_bytes().to_vec())],
        ..Frozen::default()
    };
    for _ in 0..5 {
        let rehearsal = strategy.rehearse(&situation(), &frozen("1")).await;
        assert!(rehearsal.outcome.unwrap().is_some());
        assert_eq!(rehearsal.state, [("k".to_owned(), b"2".to_vec())]);
        let rehearsal = strategy.rehearse(&situation(), &frozen("2")).await;
        assert_eq!(rehearsal.outcome, Ok(None));
    }
    assert!(strategy.decide(&situation()).await.unwrap().is_some());
    assert!(strategy.decide(&situation()).await.unwrap().is_some());
    assert!(strategy.decide(&situation()).await.unwrap().is_none());
}

#[tokio::test]
async fn declared_routes_are_known_after_loading() {
    let configure = format!(
        "(call $declare (i32.const 600) (i32.const 1) (i32.const 601) (i32.const 2)) i32.const {OK_AT}"
    );
    let items = "(data (i32.const 600) \"abc\")".into();
    let strategy = load(Guest {
        configure,
        items,
        ..Guest::default()
    })
    .await;
    assert_eq!(
        strategy.routes(),
        [Route {
            source: "a".into(),
            fallback: "bc".into()
        }]
    );
    assert!(strategy.decide(&situation()).await.unwrap().is_some());
    let endless = format!(
        "(local $n i32) (loop $again
        (call $declare (i32.const 600) (i32.const 1) (i32.const 601) (i32.const 2))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $n) (i32.const 2000)))) i32.const {OK_AT}"
    );
    let error = refusal(Guest {
        configure: endless,
        ..Guest::default()
    })
    .await;
    assert!(
        matches!(
            error,
            LoadError::Configure {
                source: StrategyFault::Garbage(_),
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn three_faults_quarantine_a_strategy_and_it_is_released_by_itself() {
    let strategy = load(Guest {
        condition: "unreachable".into(),
        ..Guest::default()
    })
    .await;
    tokio::time::pause();
    for _ in 0..3 {
        assert!(matches!(
            strategy.decide(&situation()).await,
            Err(StrategyFault::Trap(_))
        ));
    }
    assert_eq!(
        strategy.decide(&situation()).await,
        Err(StrategyFault::Quarantined { faults: 3 })
    );
    assert!(strategy.standing().quarantined_for_ms.is_some());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(matches!(
        strategy.decide(&situation()).await,
        Err(StrategyFault::Trap(_))
    ));
    assert_eq!(
        strategy.decide(&situation()).await,
        Err(StrategyFault::Quarantined { faults: 4 })
    );
}

#[tokio::test]
async fn a_limit_out_of_range_and_a_file_too_large_are_refused_before_anything_runs() {
    let limits = |value| StrategyOptions {
        limits: serde_json::from_value(value).unwrap(),
        ..StrategyOptions::default()
    };
    let error = load_with(&Guest::default(), limits(json!({ "memory-bytes": 1 })))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, LoadError::Limit { .. }) && error.to_string().contains("memory-bytes"),
        "{error}"
    );
    let error = load_with(&Guest::default(), limits(json!({ "component-bytes": 100 })))
        .await
        .unwrap_err();
    assert!(
        matches!(error, LoadError::TooLarge { limit: 100, .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_decisions_than_there_are_instances_wait_for_each_other() {
    let strategy = load(Guest::default()).await;
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let strategy = strategy.clone();
            tokio::spawn(async move { strategy.decide(&situation()).await })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap().unwrap().is_some());
    }
}
