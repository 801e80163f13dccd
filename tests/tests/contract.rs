//! The contract in its versions: 0.1 is served for ever, to a component that was built when it was
//! released; an experimental version is served beside it; any other is refused by name.
//!
//! `compat/witness-0.1.0.wasm` is the fixture `witness` as version 0.1.0 of the contract was released
//! with. It is never built again: a host that cannot run it has broken the promise.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backstop::call::CallFacts;
use backstop::strategy::component::{
    ComponentStrategy, Frozen, Grants, LoadError, LogLevel, StrategyOptions,
};
use backstop::strategy::{
    Action, AnswerData, KnownGood, Situation, StrategyFault, Surroundings, TargetView,
};
use backstop::{Failure, Kind};
use backstop_tests::engines::RUNTIME;
use backstop_tests::plugins::{fixture, patched, root};
use serde_json::json;

/// What the strategy finds around the call.
struct Around;

impl Surroundings for Around {
    fn targets(&self) -> Vec<TargetView> {
        vec![TargetView {
            name: "b".into(),
            kind: "service",
            priority: -1,
            weight: 2,
            healthy: true,
            admitted: true,
            tried: false,
            present: false,
        }]
    }
    fn best_target(&self, _: Option<&str>) -> Option<Arc<str>> {
        Some("b".into())
    }
    fn target_attribute(&self, target: &str, key: &str) -> Option<String> {
        Some(format!("{key} of {target}"))
    }
    fn last_known_good(&self) -> Option<KnownGood> {
        Some(KnownGood {
            age: Duration::from_secs(5),
            target: "a".into(),
            body: "{}".into(),
        })
    }
    fn wall_clock(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
    fn random(&self) -> u64 {
        0
    }
}

fn situation() -> Situation {
    let mut failure = Failure::new(Kind::TIMEOUT_ERROR, "no answer");
    failure.http_status = Some(504);
    failure.rpc_code = Some(-32_000);
    failure.retry_after = Some(Duration::from_millis(1_500));
    let mut situation = Situation::of(failure);
    situation.call = Arc::new(CallFacts {
        group: "g".into(),
        caller: Some("somebody".into()),
        importance: 99,
        ..CallFacts::default()
    });
    situation.operation = "search".into();
    situation.arguments = Some("{\"q\":1}".into());
    situation.target = Some("a".into());
    (situation.retries, situation.fallbacks) = (2, 1);
    situation.next_delay = Some(Duration::from_millis(250));
    situation.surroundings = Arc::new(Around);
    situation
}

fn frozen() -> Frozen {
    Frozen {
        wall: SystemTime::UNIX_EPOCH + Duration::from_millis(1_234),
        monotonic: Duration::from_nanos(56),
        seed: 1_234_567,
        time_left: Duration::from_secs(7),
        state: vec![("n".to_owned(), b"1".to_vec())],
    }
}

async fn witness(
    bytes: &[u8],
    action: &str,
    folder: &std::path::Path,
) -> Result<Arc<ComponentStrategy>, LoadError> {
    std::fs::write(folder.join("a.txt"), "content").unwrap();
    let options = StrategyOptions {
        config: json!({ "action": action }),
        grants: Grants {
            folder: Some(folder.to_owned()),
            state: true,
        },
        ..StrategyOptions::default()
    };
    ComponentStrategy::load(&RUNTIME, "witness", bytes.to_vec(), options).await
}

/// What the witness says, by its first words.
fn testimony(reason: &str) -> BTreeMap<&str, &str> {
    const TOPICS: [&str; 21] = [
        "failure",
        "clock",
        "random",
        "call",
        "id",
        "message",
        "arguments",
        "detail",
        "targets",
        "best",
        "attribute",
        "attempts",
        "next delay",
        "known",
        "file",
        "no file",
        "set",
        "get",
        "delete",
        "increment",
        "not a number",
    ];
    assert_eq!(reason.lines().count(), TOPICS.len(), "{reason}");
    let said = reason.lines().zip(TOPICS).map(|(line, topic)| {
        let said = line.strip_prefix(topic);
        (
            topic,
            said.unwrap_or_else(|| panic!("{topic}: {line}"))
                .trim_start(),
        )
    });
    said.collect()
}

fn kept() -> Vec<u8> {
    std::fs::read(root().join("tests/compat/witness-0.1.0.wasm")).unwrap()
}

#[tokio::test]
async fn the_component_of_the_release_and_one_built_today_are_told_the_same_of_everything() {
    let folder = tempfile::tempdir().unwrap();
    for (which, bytes) in [("kept", kept()), ("built", fixture("witness"))] {
        let strategy = witness(&bytes, "retry", folder.path()).await.unwrap();
        let about = strategy.inspection();
        assert_eq!(about.contract, "0.1.0", "{which}");
        assert_eq!(
            (&*about.info.name, &*about.info.version, &*about.info.level),
            ("witness", "1.2.3", "data")
        );
        assert_eq!(about.info.default_priority, -7);
        assert_eq!(about.info.kinds, [Kind::TIMEOUT_ERROR]);
        assert_eq!(about.info.operations, ["search*"]);
        assert_eq!(about.info.capabilities, ["state", "folder"]);
        assert_eq!(
            about.info.extra,
            [("homepage".to_owned(), "https://example.com".to_owned())]
        );
        let routes = strategy.routes().iter();
        let routes: Vec<_> = routes
            .map(|route| (&*route.source, &*route.fallback))
            .collect();
        assert_eq!(routes, [("search", "lookup")], "{which}");

        let rehearsal = strategy.rehearse(&situation(), &frozen()).await;
        let asked = (LogLevel::Info, "asked about TimeoutError".to_owned());
        assert_eq!(rehearsal.log, [asked], "{which}");
        let decision = rehearsal.outcome.unwrap().unwrap();
        let delay = Some(Duration::from_millis(7));
        assert_eq!(decision.action, Action::Retry { delay });
        let said = testimony(&decision.reason);
        let failure = said["failure"];
        for part in [
            "TimeoutError",
            "http_status: Some(504)",
            "rpc_code: Some(-32000)",
            "retryable: true",
            "ambiguous: true",
            "local: false",
            "repeatable: true",
            "retry_after: Some(1.5s)",
            "attempts: 1,",
            "retries: 2,",
            "fallbacks: 1,",
            "time_left: 7s",
            "importance: 99",
        ] {
            assert!(failure.contains(part), "{which}: {part}: {failure}");
        }
        assert_eq!(said["clock"], "56ns 1.234s", "{which}");
        // The published test vector of SplitMix64 for this seed.
        assert_eq!(said["random"], "6457827717110365317", "{which}");
        assert_eq!(said["call"], r#""search" "tool" "g" "a""#, "{which}");
        assert_eq!(said["id"], "true");
        assert_eq!(said["message"], r#""no answer""#);
        assert_eq!(said["arguments"], r#"Some("{\"q\":1}")"#);
        assert_eq!(said["detail"], r#"Some("somebody") None"#);
        for part in [
            "name: \"b\"",
            "priority: -1",
            "weight: 2",
            "healthy: true",
            "tried: false",
        ] {
            assert!(
                said["targets"].contains(part),
                "{which}: {}",
                said["targets"]
            );
        }
        assert_eq!(said["best"], r#"Some("b")"#);
        assert_eq!(said["attribute"], r#"Some("url of b")"#);
        assert_eq!(said["attempts"], "[]");
        assert_eq!(said["next delay"], "Some(250ms)");
        assert!(said["known"].contains("age: 5s, size: 2, target: \"a\""));
        assert!(said["known"].ends_with(r#"Some("{}")"#));
        assert_eq!(said["file"], r#"Ok("content")"#);
        assert_eq!(said["no file"], "Err(Forbidden)");
        assert_eq!(said["set"], "Ok(())");
        assert_eq!(said["get"], r#"Ok(Some("v"))"#);
        assert_eq!(said["delete"], "Ok(true)");
        assert_eq!(said["increment"], "Ok(42)");
        assert_eq!(said["not a number"], "Err(NotANumber)");
    }
}

#[tokio::test]
async fn every_action_of_the_component_of_the_release_arrives_as_it_was_meant() {
    let folder = tempfile::tempdir().unwrap();
    let kept = kept();
    for (name, action) in [
        (
            "switch",
            Action::SwitchTarget {
                target: Some("b".into()),
                target_kind: None,
            },
        ),
        (
            "call",
            Action::CallOperation {
                operation: "lookup".into(),
                arguments: None,
                target: None,
            },
        ),
        ("known", Action::Answer(AnswerData::LastKnownGood)),
        (
            "answer",
            Action::Answer(AnswerData::Static("{\"text\":\"default\"}".into())),
        ),
        (
            "fail",
            Action::Fail {
                message: Some("no more".into()),
            },
        ),
        ("decline", Action::Decline),
        (
            "custom",
            Action::Custom {
                name: "vendor.action".into(),
                payload: "{}".into(),
            },
        ),
    ] {
        let strategy = witness(&kept, name, folder.path()).await.unwrap();
        let decision = strategy.decide(&situation()).await.unwrap().unwrap();
        assert_eq!(decision.action, action, "{name}");
    }
    let refused = witness(&kept, "refuse", folder.path()).await.unwrap_err();
    assert!(
        matches!(&refused, LoadError::Refused { message, .. } if message.contains("`action` is refused")),
        "{refused}"
    );
}

#[tokio::test]
async fn a_strategy_of_the_experimental_version_decides_beside_those_of_version_0_1() {
    let mut options = StrategyOptions::default();
    options.grants.state = true;
    let bytes = fixture("next-contract");
    let strategy = ComponentStrategy::load(&RUNTIME, "next", bytes, options)
        .await
        .unwrap();
    assert_eq!(strategy.inspection().contract, "0.2.0-experimental");
    let rehearsal = strategy.rehearse(&situation(), &frozen()).await;
    let decision = rehearsal.outcome.unwrap().unwrap();
    // The operation and the target are in its record of a failure; the state is an import of 0.1.
    let message = Some("search at Some(\"a\")".to_owned());
    assert_eq!(decision.action, Action::Fail { message });
    assert_eq!(decision.reason, "7000 left, asked Ok(1)");
    let mut other = situation();
    other.operation = "write".into();
    assert_eq!(strategy.decide(&other).await, Ok(None));
}

#[tokio::test]
async fn any_other_version_is_refused_with_what_it_wants_and_what_there_is() {
    for (bytes, old, new, wants) in [
        (
            kept(),
            "backstop:strategy/policy@0.1.0",
            "backstop:strategy/policy@0.3.0",
            "`backstop:strategy/policy@0.3.0`",
        ),
        (
            fixture("next-contract"),
            "policy@0.2.0-experimental",
            "policy@0.2.0-experimentax",
            "`backstop:strategy/policy@0.2.0-experimentax`",
        ),
    ] {
        let bytes = patched(&bytes, old, new);
        let loaded =
            ComponentStrategy::load(&RUNTIME, "p", bytes, StrategyOptions::default()).await;
        let error = loaded.unwrap_err();
        assert!(matches!(error, LoadError::Contract { .. }), "{error}");
        let text = error.to_string();
        for part in [
            wants,
            "`backstop:strategy/policy@0.1.0` and `backstop:strategy/policy@0.2.0-experimental`",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[tokio::test]
async fn a_component_that_names_a_version_it_does_not_fit_is_refused_without_a_word_of_the_runtimes()
 {
    // It says 0.1 and has the record of 0.2.
    let bytes = patched_version(&fixture("next-contract"));
    let mut options = StrategyOptions::default();
    options.grants.state = true;
    let error = ComponentStrategy::load(&RUNTIME, "p", bytes, options)
        .await
        .unwrap_err();
    assert!(matches!(error, LoadError::Shape { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("wants the contract `backstop:strategy/policy@0.1.")
            && text.contains("does not fit it"),
        "{text}"
    );
    for word in ["wasmtime", "expected", "record", "component type"] {
        assert!(!text.contains(word), "{text}");
    }
    let label = StrategyFault::Shape("`condition`".into());
    assert_eq!(label.label(), "shape");
}

/// The same component, that says it was built for a patch of version 0.1.
fn patched_version(bytes: &[u8]) -> Vec<u8> {
    patched(bytes, "@0.2.0-experimental", "@0.1.12345678901234")
}
