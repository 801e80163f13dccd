//! How load is spread, and how much of a group may be ejected.

use super::*;

use crate::circuit::CircuitConfig;

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n:05}")).collect()
}

#[test]
fn three_levels_with_25_25_and_20_percent_healthy_share_36_36_and_28() {
    let levels = [("a", 3, 25), ("b", 2, 25), ("c", 1, 20)];
    let specs = levels.iter().flat_map(|(prefix, priority, _)| {
        let names = names(prefix, 100).into_iter();
        names.map(|name| service(&name, *priority))
    });
    let bench = Bench::new(specs.collect());
    for (prefix, _, healthy) in levels {
        for name in names(prefix, 100).iter().skip(healthy) {
            bench.check(name, false);
        }
    }
    let mut counts = [0i64; 3];
    for _ in 0..20_000 {
        let pick = bench.pick().unwrap();
        let level = levels
            .iter()
            .position(|level| pick.target.name.starts_with(level.0));
        counts[level.unwrap()] += 1;
        assert!(!pick.target.health().is_unhealthy());
    }
    let shares = counts.map(|count| (count + 100) / 200);
    assert!(about(&shares, &[36, 36, 28]), "{shares:?}");
}

#[test]
fn of_two_drawn_the_one_with_less_to_do_for_its_weight_is_taken() {
    let bench = Bench::new(vec![weighted("a", 1), weighted("b", 3)]);
    let mut under_way = Vec::new();
    for _ in 0..400 {
        under_way.push(bench.pick().unwrap());
    }
    let load = |name: &str| i64::from(bench.target(name).in_flight());
    assert!(about(&[load("a"), load("b")], &[100, 300]));
    // One that answers no more gets no more, long before anybody calls it ill.
    under_way.retain(|pick| &*pick.target.name == "a");
    for _ in 0..200 {
        let pick = bench.pick().unwrap();
        assert_eq!(&*pick.target.name, "b");
        pick.permit
            .succeeded(bench.now.get(), Duration::from_millis(1));
    }
}

#[test]
fn failed_over_calls_are_spread_over_equal_targets() {
    let specs = ["a", "b", "c"].map(|name| service(name, 0));
    let bench = Bench::new(specs.into_iter().chain([service("primary", 1)]).collect());
    bench.open("primary");
    let mut under_way = Vec::new();
    for _ in 0..9 {
        let best = bench.peek(&PickRequest::default()).unwrap();
        under_way.push(bench.named(&best).unwrap());
    }
    let loads = ["a", "b", "c"].map(|name| bench.target(name).in_flight());
    assert_eq!(loads, [3, 3, 3]);
}

#[test]
fn a_target_excluded_twice_is_excluded_once() {
    let bench = Bench::new(vec![service("a", 0), service("b", 0)]);
    let a: Arc<str> = "a".into();
    let request = PickRequest {
        exclude: &[a.clone(), a.clone(), a],
        ..PickRequest::default()
    };
    assert_eq!(bench.peek(&request).as_deref(), Some("b"));
}

#[test]
fn a_pinned_request_goes_to_its_target_or_nowhere() {
    let bench = Bench::new(vec![service("primary", 1), service("backup", 0)]);
    for _ in 0..10 {
        assert_eq!(&*bench.named("backup").unwrap().target.name, "backup");
    }
    bench.open("backup");
    assert!(bench.named("backup").is_none());
    assert!(bench.named("elsewhere").is_none());
}

#[test]
fn only_a_share_of_a_group_is_ejected_and_at_least_one() {
    let ejected = |count: usize, percent: u8| {
        let names = names("t", count);
        let specs = names.iter().map(|name| service(name, 0)).collect();
        let bench = Bench::with_config(specs, |config| {
            config.balance.max_ejected_percent = percent;
        });
        for name in &names {
            for _ in 0..50 {
                if let Some(pick) = bench.named(name) {
                    pick.permit.failed(bench.now.get(), true);
                }
            }
        }
        let open = names
            .iter()
            .filter(|name| bench.target(name).circuit() == CircuitState::Open);
        open.count()
    };
    assert_eq!(ejected(10, 50), 5);
    assert_eq!(ejected(10, 1), 1);
    assert_eq!(ejected(1, 50), 1);
    assert_eq!(ejected(3, 100), 3);
}

#[test]
fn a_place_among_the_ejected_is_free_again_when_its_holder_is_well() {
    let bench = Bench::with_config(vec![service("a", 0), service("b", 0)], |config| {
        config.balance.max_ejected_percent = 50;
    });
    bench.open("a");
    let fail_b = || {
        for _ in 0..5 {
            bench
                .named("b")
                .unwrap()
                .permit
                .failed(bench.now.get(), true);
        }
        bench.target("b").circuit()
    };
    assert_eq!(fail_b(), CircuitState::Closed);
    bench.advance(5);
    for _ in 0..2 {
        let trial = bench.named("a").unwrap().permit;
        trial.succeeded(bench.now.get(), Duration::from_millis(1));
    }
    assert_eq!(fail_b(), CircuitState::Open);
}

#[test]
fn slowness_alone_never_ejects_the_last_of_a_group() {
    let bench = Bench::with_config(vec![service("a", 0), service("b", 0)], |config| {
        config.circuit.slow_after = Some(Duration::from_secs(1));
    });
    let answer_slowly = |name: &str| {
        for _ in 0..40 {
            if let Some(pick) = bench.named(name) {
                pick.permit
                    .succeeded(bench.now.get(), Duration::from_secs(2));
            }
        }
        bench.target(name).circuit()
    };
    assert_eq!(answer_slowly("a"), CircuitState::Open);
    assert_eq!(answer_slowly("b"), CircuitState::Closed);
}

#[test]
fn a_target_may_have_a_circuit_and_a_slow_start_of_its_own() {
    let own = CircuitConfig {
        consecutive_failures: 1,
        jitter_percent: 0,
        ..CircuitConfig::default()
    };
    let bench = Bench::new(vec![
        service("a", 0).circuit(own).slow_start(Duration::ZERO),
        service("b", 0),
    ]);
    for name in ["a", "b"] {
        bench
            .named(name)
            .unwrap()
            .permit
            .failed(bench.now.get(), true);
    }
    let circuits = ["a", "b"].map(|name| bench.target(name).circuit());
    assert_eq!(circuits, [CircuitState::Open, CircuitState::Closed]);
    bench.advance(5);
    for _ in 0..2 {
        let trial = bench.named("a").unwrap().permit;
        trial.succeeded(bench.now.get(), Duration::from_millis(1));
    }
    assert!(about(&bench.shares(&["a", "b"]), &[50, 50]));

    let nonsense = CircuitConfig {
        window: Duration::ZERO,
        ..CircuitConfig::default()
    };
    let error = bench
        .registry
        .update(service("a", 0).circuit(nonsense))
        .unwrap_err();
    assert!(matches!(error, RegistryError::Circuit { .. }), "{error:?}");
}

#[test]
fn a_group_of_services_and_models_is_balanced_within_each_kind() {
    let bench = Bench::new(vec![
        service("a", 0),
        service("b", 0),
        TargetSpec::model("m", "g").priority(1),
    ]);
    let of_kind = |kind| {
        let request = PickRequest {
            kind: Some(kind),
            ..Default::default()
        };
        (0..50)
            .filter_map(|_| bench.picked(&request))
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(
        of_kind(TargetKind::Service).into_iter().collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(
        of_kind(TargetKind::Model).into_iter().collect::<Vec<_>>(),
        ["m"]
    );
    bench.registry.deregister("m").unwrap();
    assert!(of_kind(TargetKind::Model).is_empty());
}

/// Clocks do not always run evenly: a machine sleeps, and two threads read the time in either order.
#[test]
fn a_jump_of_the_clock_ejects_nobody_and_keeps_nobody_out() {
    let bench = Bench::new(vec![service("primary", 1), service("backup", 0)]);
    let earlier = bench.now.get();
    for _ in 0..4 {
        bench.pick().unwrap().permit.failed(bench.now.get(), true);
    }
    bench.advance(100 * 24 * 3600);
    // An answer that was under way, timed by a clock that was read before the jump.
    bench.pick().unwrap().permit.failed(earlier, true);
    assert_eq!(bench.target("primary").circuit(), CircuitState::Open);
    // Opened at the old time: over by the new one.
    let trial = bench.pick().unwrap();
    assert_eq!(&*trial.target.name, "primary");
    trial
        .permit
        .succeeded(bench.now.get(), Duration::from_millis(1));
    bench.now.set(earlier);
    let trial = bench.pick().unwrap();
    assert_eq!(&*trial.target.name, "primary");
    trial
        .permit
        .succeeded(bench.now.get(), Duration::from_millis(1));
    assert_eq!(bench.target("primary").circuit(), CircuitState::Closed);
    bench.advance(30);
    assert_eq!(bench.shares(&["primary", "backup"]), [100, 0]);
}

/// What a pick costs in a group of this size, in nanoseconds: the best of several rounds, since others use
/// the machine as well.
fn cost_of_a_pick(members: usize, prepare: impl FnOnce(&Bench, &[String])) -> f64 {
    let names = names("t", members);
    let bench = Bench::new(Vec::new());
    let specs = names.iter().map(|name| service(name, 0)).collect();
    bench.registry.replace_all(specs).unwrap();
    prepare(&bench, &names);
    let round = |picks: u32| {
        let began = std::time::Instant::now();
        for _ in 0..picks {
            let pick = bench.pick().unwrap();
            pick.permit
                .succeeded(bench.now.get(), Duration::from_millis(1));
        }
        began.elapsed().as_nanos() as f64 / f64::from(picks)
    };
    round(100);
    (0..20).map(|_| round(500)).fold(f64::MAX, f64::min)
}

/// `BACKSTOP_PRINT_COSTS=1` prints the figures (with `--nocapture`).
#[test]
fn the_cost_of_a_pick_does_not_grow_with_the_group() {
    let print = std::env::var_os("BACKSTOP_PRINT_COSTS").is_some();
    let some_ill: fn(&Bench, &[String]) = |bench, names| {
        for name in names.iter().step_by(5) {
            bench.check(name, false);
        }
        bench.open(&names[1]);
    };
    for (what, prepare) in [
        ("all well", (|_, _| {}) as fn(&Bench, &[String])),
        ("a fifth ill", some_ill),
    ] {
        let costs = [10, 100, 1_000, 10_000].map(|members| cost_of_a_pick(members, prepare));
        if print {
            #[allow(clippy::print_stderr)]
            {
                eprintln!("{what}: {costs:.0?} ns at 10, 100, 1 000 and 10 000 members");
            }
        }
        // A thousand times as many members; a search by halves takes four times as many steps.
        assert!(costs[3] < costs[0] * 8.0, "{what}: {costs:?} ns");
    }
}
