use super::*;

mod balance;

use std::cell::Cell;
use std::num::NonZeroU32;

use crate::circuit::{CircuitConfig, CircuitState};
use crate::health::HealthStatus;
use crate::random::seeded;

/// A registry, a clock that stands still unless it is moved, and a seeded source of chance.
struct Bench {
    registry: Registry,
    now: Cell<Instant>,
    random: Random,
    changes: Arc<Mutex<Vec<(String, TargetChange)>>>,
}

impl Bench {
    fn new(specs: Vec<TargetSpec>) -> Self {
        Self::with_config(specs, |_| {})
    }

    fn with_config(specs: Vec<TargetSpec>, change: impl FnOnce(&mut RegistryConfig)) -> Self {
        let changes = Arc::new(Mutex::new(Vec::new()));
        let seen = changes.clone();
        let observer = move |target: &Target, change: &TargetChange| {
            seen.lock()
                .unwrap()
                .push((target.name.to_string(), change.clone()));
        };
        let circuit = CircuitConfig {
            jitter_percent: 0,
            ..CircuitConfig::default()
        };
        let mut config = RegistryConfig {
            circuit,
            ..RegistryConfig::default()
        };
        change(&mut config);
        let builder = Registry::builder()
            .config(config)
            .observer(Arc::new(observer))
            .random(seeded(1));
        let registry = builder.build().unwrap();
        for spec in specs {
            registry.register(spec).unwrap();
        }
        changes.lock().unwrap().clear();
        Self {
            registry,
            now: Cell::new(Instant::now()),
            random: seeded(2),
            changes,
        }
    }

    fn advance(&self, seconds: u64) {
        self.now.set(self.now.get() + Duration::from_secs(seconds));
    }

    fn pick_with(&self, request: &PickRequest<'_>) -> Option<Pick> {
        self.registry
            .pick("g", request, self.now.get(), &mut || (self.random)())
    }

    fn pick(&self) -> Option<Pick> {
        self.pick_with(&PickRequest::default())
    }

    fn picked(&self, request: &PickRequest<'_>) -> Option<String> {
        self.pick_with(request)
            .map(|pick| pick.target.name.to_string())
    }

    fn peek(&self, request: &PickRequest<'_>) -> Option<String> {
        self.registry
            .peek_best("g", request, self.now.get())
            .map(|target| target.name.to_string())
    }

    fn named(&self, name: &str) -> Option<Pick> {
        self.pick_with(&PickRequest {
            name: Some(name),
            ..PickRequest::default()
        })
    }

    fn target(&self, name: &str) -> Arc<Target> {
        self.registry.get(name).unwrap()
    }

    fn open(&self, name: &str) {
        for _ in 0..5 {
            self.named(name)
                .expect("its circuit is closed")
                .permit
                .failed(self.now.get(), true);
        }
        assert_eq!(self.target(name).circuit(), CircuitState::Open);
    }

    fn check(&self, name: &str, well: bool) {
        let target = self.target(name);
        for _ in 0..3 {
            target.probed(target.health_version(), well, self.now.get());
        }
    }

    /// How often each target is taken in 10 000 picks that all succeed, in percent.
    fn shares(&self, names: &[&str]) -> Vec<i64> {
        let mut counts = vec![0i64; names.len()];
        for _ in 0..10_000 {
            let pick = self.pick().unwrap();
            counts[names
                .iter()
                .position(|name| *name == &*pick.target.name)
                .unwrap()] += 1;
            pick.permit
                .succeeded(self.now.get(), Duration::from_millis(1));
        }
        counts.iter().map(|count| (count + 50) / 100).collect()
    }

    fn changes(&self) -> Vec<(String, TargetChange)> {
        std::mem::take(&mut *self.changes.lock().unwrap())
    }
}

fn service(name: &str, priority: i32) -> TargetSpec {
    TargetSpec::service(name, "g").priority(priority)
}

fn weighted(name: &str, weight: u32) -> TargetSpec {
    service(name, 0).weight(NonZeroU32::new(weight).unwrap())
}

fn excluding(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

fn about(shares: &[i64], expected: &[i64]) -> bool {
    shares
        .iter()
        .zip(expected)
        .all(|(share, expected)| (share - expected).abs() <= 2)
}

#[test]
fn a_name_is_registered_once() {
    let bench = Bench::new(vec![service("a", 0)]);
    assert_eq!(
        bench.registry.register(service("a", 1)).unwrap_err(),
        RegistryError::Duplicate("a".into())
    );
    assert_eq!(
        bench.registry.update(service("b", 1)).unwrap_err(),
        RegistryError::Unknown("b".into())
    );
    assert_eq!(
        bench.registry.deregister("b").unwrap_err(),
        RegistryError::Unknown("b".into())
    );
    assert_eq!(
        bench.registry.register(service("", 1)).unwrap_err(),
        RegistryError::NoName("g".into())
    );
}

#[test]
fn targets_are_listed_by_group_and_priority() {
    let other = TargetSpec::model("m", "models");
    let bench = Bench::new(vec![service("low", 0), service("high", 5), other]);
    let names = |targets: Vec<Arc<Target>>| -> Vec<String> {
        targets
            .iter()
            .map(|target| target.name.to_string())
            .collect()
    };
    assert_eq!(names(bench.registry.list_group("g")), ["high", "low"]);
    assert_eq!(names(bench.registry.list()), ["high", "low", "m"]);
    assert_eq!(bench.registry.groups(), excluding(&["g", "models"]));
    bench.check("high", false);
    assert_eq!(
        names(bench.registry.list_healthy("g", bench.now.get())),
        ["low"]
    );
    bench.open("low");
    assert!(bench.registry.list_healthy("g", bench.now.get()).is_empty());
}

#[test]
fn the_common_case_asks_for_no_random_number() {
    let bench = Bench::new(vec![service("primary", 1), service("backup", 0)]);
    let mut never = || -> u64 { panic!("there is nothing to choose") };
    let pick = bench
        .registry
        .pick("g", &PickRequest::default(), bench.now.get(), &mut never)
        .unwrap();
    assert_eq!(&*pick.target.name, "primary");
    assert_eq!(pick.target.in_flight(), 1);
    pick.permit
        .succeeded(bench.now.get(), Duration::from_millis(80));
    assert_eq!(pick.target.in_flight(), 0);
    assert_eq!(pick.target.latency(), Some(Duration::from_millis(80)));
}

#[test]
fn targets_of_one_level_share_by_weight() {
    let bench = Bench::new(vec![weighted("a", 1), weighted("b", 3)]);
    assert!(about(&bench.shares(&["a", "b"]), &[25, 75]));
}

#[test]
fn a_failed_over_call_gets_the_next_level_and_then_nothing() {
    let bench = Bench::new(vec![service("primary", 1), service("backup", 0)]);
    let tried = excluding(&["primary"]);
    assert_eq!(
        bench
            .picked(&PickRequest {
                exclude: &tried,
                ..Default::default()
            })
            .unwrap(),
        "backup"
    );
    let tried = excluding(&["primary", "backup"]);
    assert_eq!(
        bench.picked(&PickRequest {
            exclude: &tried,
            ..Default::default()
        }),
        None
    );
}

#[test]
fn a_request_may_ask_for_a_kind() {
    let bench = Bench::new(vec![service("a", 1), TargetSpec::model("m", "g")]);
    let models = PickRequest {
        kind: Some(TargetKind::Model),
        ..Default::default()
    };
    assert_eq!(bench.picked(&models).unwrap(), "m");
    assert_eq!(bench.peek(&models).unwrap(), "m");
}

#[test]
fn load_spills_over_when_part_of_a_level_is_unhealthy() {
    let specs = ["a1", "a2"]
        .map(|name| service(name, 1))
        .into_iter()
        .chain([service("b", 0)]);
    let bench = Bench::new(specs.collect());
    bench.check("a2", false);
    let shares = bench.shares(&["a1", "a2", "b"]);
    assert!(about(&shares, &[70, 0, 30]), "{shares:?}");
}

#[test]
fn an_unhealthy_target_is_used_when_no_healthy_one_is_left() {
    let bench = Bench::new(vec![service("primary", 1), service("backup", 0)]);
    bench.check("primary", false);
    assert_eq!(bench.picked(&PickRequest::default()).unwrap(), "backup");
    let tried = excluding(&["backup"]);
    assert_eq!(
        bench
            .picked(&PickRequest {
                exclude: &tried,
                ..Default::default()
            })
            .unwrap(),
        "primary"
    );
    bench.check("backup", false);
    assert_eq!(bench.picked(&PickRequest::default()).unwrap(), "primary");
}

#[test]
fn if_every_circuit_is_open_exactly_one_target_is_tried_at_a_time() {
    let bench = Bench::new(vec![service("primary", 1), service("backup", 0)]);
    bench.open("primary");
    bench.open("backup");
    assert_eq!(bench.peek(&PickRequest::default()).unwrap(), "primary");
    let only = bench.pick().expect("the best one");
    assert_eq!(&*only.target.name, "primary");
    assert!(bench.pick().is_none());
    only.permit.failed(bench.now.get(), true);
    assert_eq!(bench.picked(&PickRequest::default()).unwrap(), "primary");
}

#[test]
fn a_cooling_target_is_not_asked_because_another_one_has_failed() {
    let bench = Bench::new(vec![service("primary", 1), service("backup", 0)]);
    bench.open("backup");
    let tried = excluding(&["primary"]);
    let request = PickRequest {
        exclude: &tried,
        ..Default::default()
    };
    assert_eq!(bench.picked(&request), None);
    assert_eq!(bench.peek(&request), None);
    assert!(bench.named("backup").is_none());
}

#[test]
fn recovery_brings_the_load_back_to_the_primary() {
    let bench = Bench::new(vec![service("primary", 1), service("backup", 0)]);
    bench.open("primary");
    assert_eq!(bench.picked(&PickRequest::default()).unwrap(), "backup");
    bench.advance(5);
    let probe = bench.pick().unwrap();
    assert_eq!(&*probe.target.name, "primary");
    assert_eq!(
        bench.picked(&PickRequest::default()).unwrap(),
        "backup",
        "one request tries it"
    );
    probe
        .permit
        .succeeded(bench.now.get(), Duration::from_millis(1));
    bench
        .pick()
        .unwrap()
        .permit
        .succeeded(bench.now.get(), Duration::from_millis(1));
    // Not all at once: the one that has just recovered would bear more than its share of a herd.
    let ramp: Vec<i64> = [0, 10, 10, 3]
        .map(|seconds| {
            bench.advance(seconds);
            bench.shares(&["primary", "backup"])[0]
        })
        .to_vec();
    assert!(about(&ramp, &[14, 46, 93, 100]), "{ramp:?}");
    assert_eq!(bench.shares(&["primary", "backup"]), [100, 0]);

    let open = TargetChange::CircuitOpened {
        open_for: Duration::from_secs(5),
        openings: 1,
        cause: crate::circuit::OpenCause::ConsecutiveFailures,
    };
    let recovered = TargetChange::Recovered {
        after: Duration::from_secs(5),
    };
    let expected = [
        open,
        TargetChange::CircuitHalfOpened,
        TargetChange::CircuitClosed,
        recovered,
    ];
    assert_eq!(
        bench.changes(),
        expected.map(|change| ("primary".to_owned(), change))
    );
}

#[test]
fn a_good_health_check_does_not_close_a_circuit() {
    let bench = Bench::new(vec![service("primary", 1), service("backup", 0)]);
    bench.open("primary");
    bench.check("primary", true);
    assert_eq!(bench.target("primary").circuit(), CircuitState::Open);
    assert_eq!(bench.picked(&PickRequest::default()).unwrap(), "backup");
}

#[test]
fn throttling_and_tool_errors_are_not_ill_health() {
    let bench = Bench::new(vec![service("a", 0)]);
    for _ in 0..100 {
        bench.pick().unwrap().permit.failed(bench.now.get(), false);
    }
    assert_eq!(bench.target("a").circuit(), CircuitState::Closed);
}

#[test]
fn a_cancelled_probe_returns_its_place() {
    let bench = Bench::new(vec![service("primary", 1), service("backup", 0)]);
    bench.open("primary");
    bench.advance(5);
    for _ in 0..10 {
        let probe = bench.pick().unwrap();
        assert_eq!(&*probe.target.name, "primary");
        drop(probe);
    }
    assert_eq!(bench.target("primary").in_flight(), 0);
}

#[test]
fn a_recovered_target_comes_back_slowly() {
    let bench = Bench::new(vec![service("a", 0), service("b", 0)]);
    bench.open("a");
    bench.advance(5);
    for _ in 0..2 {
        bench
            .named("a")
            .unwrap()
            .permit
            .succeeded(bench.now.get(), Duration::from_millis(1));
    }
    let ramp: Vec<i64> = [0, 15, 15, 100]
        .map(|seconds| {
            bench.advance(seconds);
            bench.shares(&["a", "b"])[0]
        })
        .to_vec();
    assert!(about(&ramp, &[9, 33, 50, 50]), "{ramp:?}");
}

#[test]
fn a_target_that_health_checks_find_well_again_comes_back_slowly_too() {
    let bench = Bench::new(vec![service("a", 0), service("b", 0)]);
    bench.check("a", false);
    bench.advance(60);
    bench.check("a", true);
    assert!(about(&bench.shares(&["a", "b"]), &[9, 91]));
    let recovered = TargetChange::Recovered {
        after: Duration::from_secs(60),
    };
    let expected = [TargetChange::Down, TargetChange::Up, recovered];
    assert_eq!(
        bench.changes(),
        expected.map(|change| ("a".to_owned(), change))
    );
}

#[test]
fn an_update_keeps_the_state_and_takes_effect_at_once() {
    let bench = Bench::new(vec![service("a", 1), service("b", 0)]);
    bench.open("a");
    let under_way = bench.pick().unwrap();
    assert_eq!(&*under_way.target.name, "b");
    bench
        .registry
        .update(service("a", 7).attribute("region", "north"))
        .unwrap();
    bench.registry.update(service("b", 9)).unwrap();
    assert_eq!(bench.target("a").circuit(), CircuitState::Open);
    assert_eq!(bench.target("a").attribute("region").unwrap(), "north");
    assert_eq!(bench.target("b").in_flight(), 1);
    assert_eq!(&*bench.registry.list_group("g")[0].name, "b");
    drop(under_way);
    assert_eq!(bench.target("b").in_flight(), 0);
}

#[test]
fn health_is_forgotten_when_it_is_asked_for_elsewhere() {
    let bench = Bench::new(vec![service("a", 1).url("http://localhost:1")]);
    bench.check("a", false);
    let stale = bench.target("a").health_version();
    bench
        .registry
        .update(service("a", 2).url("http://localhost:1"))
        .unwrap();
    assert_eq!(bench.target("a").health(), HealthStatus::Unhealthy);
    bench
        .registry
        .update(service("a", 2).url("http://localhost:2"))
        .unwrap();
    assert_eq!(bench.target("a").health(), HealthStatus::Unknown);
    for _ in 0..5 {
        bench.target("a").probed(stale, false, bench.now.get());
    }
    assert_eq!(bench.target("a").health(), HealthStatus::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_deregistered_target_finishes_what_is_under_way() {
    let bench = Bench::new(vec![service("a", 0)]);
    let under_way = bench.pick().unwrap();
    let target = bench.registry.deregister("a").unwrap();
    assert!(bench.pick().is_none());
    let short = Duration::from_secs(1);
    assert!(tokio::time::timeout(short, target.drained()).await.is_err());
    let waiting = tokio::spawn(async move { target.drained().await });
    tokio::task::yield_now().await;
    under_way
        .permit
        .succeeded(bench.now.get(), Duration::from_millis(1));
    waiting.await.unwrap();
}

#[test]
fn the_whole_set_is_replaced_in_one_step_or_not_at_all() {
    let bench = Bench::new(vec![service("a", 1), service("b", 0)]);
    bench.open("a");
    let twice = vec![service("c", 0), service("c", 1)];
    assert_eq!(
        bench.registry.replace_all(twice).unwrap_err(),
        RegistryError::Duplicate("c".into())
    );
    assert_eq!(bench.registry.list().len(), 2);
    let b = bench.target("b");
    bench
        .registry
        .replace_all(vec![service("a", 1), service("c", 0)])
        .unwrap();
    assert_eq!(bench.target("a").circuit(), CircuitState::Open);
    assert!(b.is_draining());
    assert_eq!(bench.picked(&PickRequest::default()).unwrap(), "c");
}

#[test]
fn a_new_configuration_holds_from_the_next_request_on() {
    let bench = Bench::new(vec![service("a", 0)]);
    let mut config = (*bench.registry.config()).clone();
    config.circuit.consecutive_failures = 0;
    bench.registry.configure(config.clone()).unwrap_err();
    config.circuit.consecutive_failures = 1;
    bench.registry.configure(config).unwrap();
    bench.pick().unwrap().permit.failed(bench.now.get(), true);
    assert_eq!(bench.target("a").circuit(), CircuitState::Open);
}

/// Days of random failures, on a group of three: whatever happened, a group that is well again serves
/// from its best level again, and until then a lone caller is never left without a target to ask.
#[test]
fn nobody_is_ejected_for_good() {
    for seed in 0..30 {
        let random = seeded(seed);
        let bench = Bench::with_config(
            vec![service("a", 2), service("b", 1), service("c", 1)],
            |config| config.circuit.jitter_percent = 20,
        );
        let mut held: Vec<Permit> = Vec::new();
        for _ in 0..2_000 {
            bench.advance(random() % 90);
            let Some(pick) = bench.pick() else {
                assert!(
                    !held.is_empty(),
                    "nothing is under way, and yet nobody may be asked"
                );
                held.clear();
                continue;
            };
            match random() % 8 {
                0 => pick
                    .permit
                    .succeeded(bench.now.get(), Duration::from_millis(5)),
                1 => drop(pick),
                2 => held.push(pick.permit),
                _ => pick.permit.failed(bench.now.get(), true),
            }
            if random().is_multiple_of(50) {
                bench.check("a", random().is_multiple_of(2));
            }
        }
        for name in ["a", "b", "c"] {
            bench.check(name, true);
        }
        // Even those that never come back do not stand in the way.
        for _ in 0..3 {
            bench.advance(360);
            for _ in 0..3 {
                bench
                    .pick()
                    .unwrap()
                    .permit
                    .succeeded(bench.now.get(), Duration::from_millis(5));
            }
        }
        bench.advance(60);
        assert_eq!(bench.shares(&["a", "b", "c"]), [100, 0, 0], "seed {seed}");
    }
}

#[test]
fn targets_come_and_go_under_load() {
    let bench = Bench::new(vec![service("stays", 0)]);
    let (registry, random) = (&bench.registry, &bench.random);
    let now = bench.now.get();
    std::thread::scope(|scope| {
        for worker in 0..2 {
            scope.spawn(move || {
                for round in 0..200 {
                    let name = format!("w{worker}-{round}");
                    registry
                        .register(TargetSpec::service(name.as_str(), "g"))
                        .unwrap();
                    registry
                        .update(TargetSpec::service(name.as_str(), "g").priority(round))
                        .unwrap();
                    registry.deregister(&name).unwrap();
                }
            });
            scope.spawn(move || {
                for _ in 0..2_000 {
                    let pick = registry.pick("g", &PickRequest::default(), now, &mut || random());
                    // The only one seen may have left in between.
                    if let Some(pick) = pick {
                        pick.permit.failed(now, random() % 10 == 0);
                    }
                }
            });
        }
    });
    assert_eq!(registry.list().len(), 1);
    assert_eq!(bench.target("stays").in_flight(), 0);
    assert!(bench.pick().is_some());
}
