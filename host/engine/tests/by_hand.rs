//! What an operator does by hand: hold, eject and restore a target, leave out a strategy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use backstop::circuit::CircuitState;
use backstop::event::EventKind;
use backstop::registry::{Pick, PickRequest, Registry, RegistryError, TargetSpec};
use backstop::strategy::ManagerError;
use backstop::{Engine, Kind};
use tokio::time::Instant;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn registry(names: &[&str]) -> Registry {
    let registry = Registry::builder().build().unwrap();
    for name in names {
        registry.register(TargetSpec::service(*name, "g")).unwrap();
    }
    registry
}

fn pick(registry: &Registry, request: &PickRequest<'_>) -> Option<Pick> {
    registry.pick("g", request, Instant::now(), &mut || 0)
}

fn named(name: &str) -> PickRequest<'_> {
    PickRequest {
        name: Some(name),
        ..PickRequest::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_target_finishes_what_is_under_way_and_begins_nothing() {
    let registry = registry(&["a", "b"]);
    let under_way = pick(&registry, &named("a")).unwrap();
    assert!(registry.hold("a").unwrap());
    assert!(!registry.hold("a").unwrap(), "it is held already");
    assert_eq!(under_way.target.in_flight(), 1);
    under_way
        .permit
        .succeeded(Instant::now(), Duration::from_millis(1));
    assert!(pick(&registry, &named("a")).is_none());
    for _ in 0..50 {
        let taken = pick(&registry, &PickRequest::default()).unwrap();
        assert_eq!(&*taken.target.name, "b");
    }
    registry.restore("a").unwrap();
    assert!(pick(&registry, &named("a")).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_held_target_is_no_last_resort() {
    let registry = registry(&["a", "b", "c"]);
    registry.hold("a").unwrap();
    registry.eject("b", DAY).unwrap();
    let unsuited = ["c".into()];
    let suited = PickRequest {
        unsuited: &unsuited,
        ..PickRequest::default()
    };
    // Of those that could serve it one is held and one is open: the open one is tried.
    assert_eq!(&*pick(&registry, &suited).unwrap().target.name, "b");
    registry.hold("b").unwrap();
    assert!(pick(&registry, &suited).is_none());
    registry.hold("c").unwrap();
    assert!(pick(&registry, &PickRequest::default()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_held_target_stays_held_when_what_is_known_of_it_changes() {
    let registry = registry(&["a"]);
    registry.hold("a").unwrap();
    registry
        .update(TargetSpec::service("a", "g").priority(7))
        .unwrap();
    assert!(registry.get("a").unwrap().is_held());
    assert!(pick(&registry, &PickRequest::default()).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_ejected_target_is_tried_again_when_its_time_is_over() {
    let registry = registry(&["a", "b"]);
    registry.eject("a", Duration::from_secs(30)).unwrap();
    let target = registry.get("a").unwrap();
    assert_eq!(target.circuit(), CircuitState::Open);
    assert!(target.down_since().is_some());
    tokio::time::advance(Duration::from_secs(29)).await;
    assert!(pick(&registry, &named("a")).is_none());
    tokio::time::advance(Duration::from_secs(1)).await;
    let trial = pick(&registry, &named("a")).unwrap();
    assert_eq!(target.circuit(), CircuitState::HalfOpen);
    trial.permit.failed(Instant::now(), true);
    assert_eq!(target.circuit(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn what_began_before_a_target_was_restored_says_nothing_about_it() {
    let registry = registry(&["a", "b"]);
    let late: Vec<Pick> = (0..50)
        .map(|_| pick(&registry, &named("a")).unwrap())
        .collect();
    registry.eject("a", DAY).unwrap();
    registry.restore("a").unwrap();
    for one in late {
        one.permit.failed(Instant::now(), true);
    }
    let target = registry.get("a").unwrap();
    assert_eq!(target.circuit(), CircuitState::Closed);
    assert!(target.down_since().is_none());
    assert_eq!((target.requests(), target.failures()), (50, 50));
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    let registry = registry(&["a"]);
    for open_for in [Duration::ZERO, DAY + Duration::from_nanos(1), Duration::MAX] {
        let refused = registry.eject("a", open_for).unwrap_err();
        assert!(matches!(refused, RegistryError::TimeOutOfRange { .. }));
    }
    for refused in [
        registry.hold("b").unwrap_err(),
        registry.eject("b", DAY).unwrap_err(),
        registry.restore("b").unwrap_err(),
    ] {
        assert_eq!(refused.to_string(), "there is no target \"b\"");
    }
    let engine = Engine::builder().build().unwrap();
    let refused = engine.set_strategy_enabled("mine", false).unwrap_err();
    assert_eq!(refused, ManagerError::Unknown("mine".into()));
}

#[tokio::test(start_paused = true)]
async fn every_step_is_told() {
    let engine = Engine::builder().build().unwrap();
    let registry = engine.registry();
    registry.register(TargetSpec::service("a", "g")).unwrap();
    let mut events = engine.subscribe();
    registry.hold("a").unwrap();
    registry.eject("a", DAY).unwrap();
    registry.restore("a").unwrap();
    registry.restore("a").unwrap();
    let mut names = Vec::new();
    while let Ok(event) = events.try_recv() {
        // The name is what the JSON form says.
        let json = serde_json::to_value(&*event).unwrap();
        assert_eq!(json["event"], event.what.name());
        names.push(event.what.name());
    }
    let expected = [
        "target_held",
        "circuit_opened",
        "target_released",
        "circuit_closed",
        "recovered",
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_names_of_the_convention_are_those_of_the_json_form() {
    let (target, strategy, source) = ("t".into(), "s".into(), "f".to_owned());
    let kinds = [
        EventKind::StrategyLoaded {
            strategy,
            version: "1".into(),
            source: source.clone(),
        },
        EventKind::StrategyQuarantined {
            strategy: "s".into(),
            faults: 3,
        },
        EventKind::StrategyRejected {
            source: source.clone(),
            reason: "r".into(),
        },
        EventKind::CircuitHalfOpened { target },
        EventKind::TargetDown { target: "t".into() },
        EventKind::TargetUp { target: "t".into() },
        EventKind::Recovered {
            target: "t".into(),
            after: DAY,
        },
        EventKind::ConfigApplied {
            source: source.clone(),
        },
        EventKind::ConfigRejected {
            source,
            reason: Kind::UNKNOWN.to_string(),
        },
    ];
    for kind in kinds {
        assert_eq!(serde_json::to_value(&kind).unwrap()["event"], kind.name());
    }
}
