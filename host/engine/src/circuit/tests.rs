use super::*;

use proptest::prelude::*;

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// A circuit, its configuration, and a clock that stands still unless it is moved.
struct Bench {
    circuit: Circuit,
    config: CircuitConfig,
    now: Instant,
}

impl Bench {
    fn new(change: impl FnOnce(&mut CircuitConfig)) -> Self {
        let mut config = CircuitConfig {
            jitter_percent: 0,
            ..CircuitConfig::default()
        };
        change(&mut config);
        config.validate().unwrap();
        let now = Instant::now();
        Self {
            circuit: Circuit::new(now),
            config,
            now,
        }
    }

    fn admit(&self) -> Option<Ticket> {
        self.circuit
            .admit(&self.config, self.now)
            .map(|(ticket, _)| ticket)
    }

    fn settle(&self, ticket: Ticket, verdict: Option<Verdict>) -> Option<Transition> {
        self.circuit
            .settle(
                &ticket,
                verdict,
                &self.config,
                self.now,
                &|| 0,
                |_| Some(()),
            )
            .1
    }

    fn call(&self, verdict: Verdict) -> Option<Transition> {
        self.settle(self.admit().expect("the circuit admits"), Some(verdict))
    }

    /// Opens it, and says for how long.
    fn open(&self) -> Duration {
        for _ in 0..100 {
            if let Some(Transition::Opened { open_for, .. }) = self.call(Verdict::Ill) {
                return open_for;
            }
        }
        panic!("it never opened");
    }

    fn reopen_from_half_open(&mut self) -> Duration {
        self.now = self.circuit.open_until().expect("open");
        match self.call(Verdict::Ill) {
            Some(Transition::Opened { open_for, .. }) => open_for,
            other => panic!("{other:?}"),
        }
    }

    fn close(&mut self) {
        self.now = self.circuit.open_until().expect("open");
        for _ in 0..self.config.successes_to_close {
            self.call(Verdict::Well);
        }
        assert_eq!(self.circuit.state(), CircuitState::Closed);
    }
}

#[test]
fn failures_in_a_row_open_it_and_a_success_in_between_does_not_count_as_one() {
    let bench = Bench::new(|_| {});
    for _ in 0..4 {
        assert_eq!(bench.call(Verdict::Ill), None);
    }
    bench.call(Verdict::Well);
    for _ in 0..4 {
        assert_eq!(bench.call(Verdict::Ill), None);
    }
    let opened = Transition::Opened {
        open_for: secs(5.0),
        openings: 1,
        cause: OpenCause::ConsecutiveFailures,
    };
    assert_eq!(bench.call(Verdict::Ill), Some(opened));
    assert!(bench.admit().is_none());
}

#[test]
fn a_failure_rate_opens_it_only_with_enough_results() {
    let bench = Bench::new(|config| config.consecutive_failures = 1000);
    for _ in 0..9 {
        assert_eq!(bench.call(Verdict::Well), None);
        assert_eq!(bench.call(Verdict::Ill), None);
    }
    bench.call(Verdict::Well);
    let opened = bench.call(Verdict::Ill);
    assert!(matches!(
        opened,
        Some(Transition::Opened {
            cause: OpenCause::FailureRate,
            ..
        })
    ));
}

#[test]
fn failures_that_left_the_window_do_not_open_it() {
    let mut bench = Bench::new(|config| config.consecutive_failures = 1000);
    for _ in 0..19 {
        bench.call(Verdict::Ill);
    }
    bench.now += secs(11.0);
    assert_eq!(bench.call(Verdict::Ill), None);
}

#[test]
fn half_open_lets_one_request_through_at_a_time() {
    let mut bench = Bench::new(|_| {});
    bench.now += bench.open();
    let probe = bench.admit().expect("one request");
    assert_eq!(bench.circuit.state(), CircuitState::HalfOpen);
    assert_eq!(
        bench.circuit.outlook(&bench.config, bench.now).0,
        Gate::Shut
    );
    assert!(bench.admit().is_none());
    bench.settle(probe, Some(Verdict::Well));
    assert!(bench.admit().is_some());
}

#[test]
fn a_cancelled_probe_gives_its_place_back_and_says_nothing() {
    let mut bench = Bench::new(|_| {});
    bench.now += bench.open();
    for _ in 0..10 {
        let probe = bench.admit().expect("a place");
        assert_eq!(bench.settle(probe, None), None);
    }
    assert_eq!(bench.circuit.state(), CircuitState::HalfOpen);
}

#[test]
fn a_probe_that_hangs_loses_its_place_and_its_say() {
    let mut bench = Bench::new(|_| {});
    bench.now += bench.open();
    let hung = bench.admit().expect("a place");
    bench.now += bench.config.lease_timeout;
    let next = bench.admit().expect("the place of the one that hangs");
    assert_eq!(bench.settle(hung, Some(Verdict::Ill)), None);
    assert_eq!(bench.circuit.state(), CircuitState::HalfOpen);
    assert!(
        bench.admit().is_none(),
        "the late result must not free the place of another"
    );
    bench.settle(next, Some(Verdict::Well));
}

#[test]
fn a_result_from_before_a_change_of_state_changes_nothing() {
    let mut bench = Bench::new(|config| config.successes_to_close = 1);
    let late_failures: Vec<_> = (0..20).map(|_| bench.admit().unwrap()).collect();
    let late_success = bench.admit().unwrap();
    bench.open();
    assert_eq!(bench.settle(late_success, Some(Verdict::Well)), None);
    assert_eq!(bench.circuit.state(), CircuitState::Open);
    bench.close();
    for late in late_failures {
        assert_eq!(bench.settle(late, Some(Verdict::Ill)), None);
    }
    assert_eq!(bench.circuit.state(), CircuitState::Closed);
    // Nor have they been counted.
    assert_eq!(bench.call(Verdict::Ill), None);
}

#[test]
fn a_late_result_of_an_earlier_trial_says_nothing_about_the_present_one() {
    for late_result in [Verdict::Well, Verdict::Ill] {
        let mut bench = Bench::new(|config| {
            config.half_open_probes = 2;
            config.successes_to_close = 1;
        });
        bench.now += bench.open();
        let late = bench.admit().expect("a trial");
        bench.call(Verdict::Ill);
        bench.now = bench.circuit.open_until().expect("open again");
        let present = bench.admit().expect("another trial");
        assert_eq!(bench.settle(late, Some(late_result)), None);
        assert_eq!(bench.circuit.state(), CircuitState::HalfOpen);
        assert_eq!(
            bench.settle(present, Some(Verdict::Well)),
            Some(Transition::Closed)
        );
    }
}

#[test]
fn it_closes_after_enough_good_results_and_opens_again_at_the_first_bad_one() {
    let mut bench = Bench::new(|_| {});
    bench.now += bench.open();
    assert_eq!(bench.call(Verdict::Well), None);
    let reopened = Transition::Opened {
        open_for: secs(10.0),
        openings: 2,
        cause: OpenCause::ProbeFailed,
    };
    assert_eq!(bench.call(Verdict::Ill), Some(reopened));
    bench.now += secs(10.0);
    assert_eq!(bench.call(Verdict::Well), None);
    assert_eq!(bench.call(Verdict::Well), Some(Transition::Closed));
}

#[test]
fn each_opening_lasts_longer_up_to_the_cap() {
    let mut bench = Bench::new(|config| config.open_max = secs(17.0));
    assert_eq!(bench.open(), secs(5.0));
    assert_eq!(bench.reopen_from_half_open(), secs(10.0));
    assert_eq!(bench.reopen_from_half_open(), secs(15.0));
    for _ in 0..10_000 {
        assert_eq!(bench.reopen_from_half_open(), secs(17.0));
    }
}

#[test]
fn jitter_comes_on_top_of_the_cap() {
    let bench = Bench::new(|config| {
        config.jitter_percent = 20;
        config.open_base = secs(300.0);
    });
    let ticket = |_| bench.admit().unwrap();
    let tickets: Vec<_> = (0..5).map(ticket).collect();
    let opened = tickets.iter().find_map(|ticket| {
        bench
            .circuit
            .settle(
                ticket,
                Some(Verdict::Ill),
                &bench.config,
                bench.now,
                &|| u64::MAX / 2,
                |_| Some(()),
            )
            .1
    });
    let Some(Transition::Opened { open_for, .. }) = opened else {
        panic!("{opened:?}")
    };
    assert!(
        (open_for.as_secs_f64() - 330.0).abs() < 0.001,
        "{open_for:?}"
    );
}

#[test]
fn the_count_of_openings_decays_with_time_and_not_with_a_success() {
    let mut bench = Bench::new(|_| {});
    bench.open();
    bench.reopen_from_half_open();
    bench.close();
    assert_eq!(bench.open(), secs(15.0));
    bench.close();
    bench.now += secs(60.0);
    assert_eq!(bench.open(), secs(10.0));
    bench.close();
    bench.now += secs(3600.0);
    assert_eq!(bench.open(), secs(5.0));
}

#[test]
fn a_forced_request_is_single_and_its_failure_does_not_prolong_the_opening() {
    let bench = Bench::new(|config| config.half_open_probes = 3);
    bench.open();
    let until = bench.circuit.open_until();
    let (forced, transition) = bench
        .circuit
        .force(&bench.config, bench.now)
        .expect("one request");
    assert_eq!(transition, None);
    assert!(bench.circuit.force(&bench.config, bench.now).is_none());
    assert_eq!(bench.settle(forced, Some(Verdict::Ill)), None);
    assert_eq!(bench.circuit.open_until(), until);
}

#[test]
fn a_forced_request_that_succeeds_begins_the_recovery() {
    let bench = Bench::new(|_| {});
    bench.open();
    let (forced, _) = bench.circuit.force(&bench.config, bench.now).unwrap();
    assert_eq!(
        bench.settle(forced, Some(Verdict::Well)),
        Some(Transition::HalfOpened)
    );
    assert_eq!(bench.call(Verdict::Well), Some(Transition::Closed));
}

#[test]
fn a_rate_of_slow_answers_opens_it_where_slow_is_defined() {
    let of = |slow_after| {
        let bench = Bench::new(|config| config.slow_after = slow_after);
        (0..20).find_map(|n| {
            bench.call(if n % 2 == 0 {
                Verdict::Well
            } else {
                Verdict::Slow
            })
        })
    };
    assert_eq!(of(None), None);
    let opened = of(Some(secs(1.0)));
    let cause = OpenCause::SlowRate;
    assert!(
        matches!(opened, Some(Transition::Opened { cause: found, .. }) if found == cause),
        "{opened:?}"
    );
}

#[test]
fn a_slow_answer_does_not_close_it() {
    let mut bench = Bench::new(|config| config.slow_after = Some(secs(1.0)));
    bench.open();
    bench.now = bench.circuit.open_until().unwrap();
    let reopened = bench.call(Verdict::Slow);
    assert!(
        matches!(reopened, Some(Transition::Opened { .. })),
        "{reopened:?}"
    );
}

#[test]
fn without_leave_it_stays_closed_and_asks_again_after_as_many_failures() {
    let bench = Bench::new(|_| {});
    let asked = std::cell::Cell::new(0);
    for _ in 0..14 {
        let ticket = bench.admit().expect("closed");
        let refuse = |_| {
            asked.set(asked.get() + 1);
            None::<()>
        };
        let settled = bench.circuit.settle(
            &ticket,
            Some(Verdict::Ill),
            &bench.config,
            bench.now,
            &|| 0,
            refuse,
        );
        assert_eq!(settled, (true, None));
    }
    assert_eq!(asked.get(), 2);
    assert!(matches!(
        bench.call(Verdict::Ill),
        Some(Transition::Opened { .. })
    ));
}

#[test]
fn it_says_when_time_alone_changes_what_it_lets_through() {
    let mut bench = Bench::new(|_| {});
    let outlook = |bench: &Bench| bench.circuit.outlook(&bench.config, bench.now);
    assert_eq!(outlook(&bench), (Gate::Free, None));
    let until = bench.now + bench.open();
    assert_eq!(outlook(&bench), (Gate::Shut, Some(until)));
    bench.now = until;
    assert_eq!(outlook(&bench), (Gate::Probe, None));
    let _hung = bench.admit().expect("a place");
    let expires = until + bench.config.lease_timeout;
    assert_eq!(outlook(&bench), (Gate::Shut, Some(expires)));
}

#[test]
fn the_configuration_is_checked_by_name() {
    CircuitConfig::default().validate().unwrap();
    let broken = CircuitConfig {
        failure_rate_percent: 0,
        ..CircuitConfig::default()
    };
    assert_eq!(
        broken.validate().unwrap_err().to_string(),
        "circuit: failure_rate_percent must be 1 to 100"
    );
}

proptest! {
    /// Whatever happens to a target, and however its requests end: no more half-open requests are under
    /// way than allowed, and once the target is well, its circuit closes.
    #[test]
    fn it_bounds_its_probes_and_never_gives_up(
        steps in prop::collection::vec((0u8..10, 0u64..30_000, any::<u64>()), 1..400),
        probes in 1u32..4,
        successes in 1u32..4,
    ) {
        let mut bench = Bench::new(|config| {
            config.half_open_probes = probes;
            config.successes_to_close = successes;
            config.jitter_percent = 20;
        });
        let mut under_way: Vec<(Ticket, Instant)> = Vec::new();
        for (action, millis, random) in steps {
            bench.now += Duration::from_millis(millis);
            match action {
                0..=3 => under_way.extend(bench.admit().map(|ticket| (ticket, bench.now))),
                4 => {
                    let forced = bench.circuit.force(&bench.config, bench.now);
                    under_way.extend(forced.map(|(ticket, _)| (ticket, bench.now)));
                }
                5 => bench.now += secs(200.0),
                _ if under_way.is_empty() => {}
                _ => {
                    let index = random as usize % under_way.len();
                    let (ticket, _) = under_way.swap_remove(index);
                    let verdict = match action {
                        6 => None,
                        7 => Some(Verdict::Well),
                        _ => Some(Verdict::Ill),
                    };
                    bench.circuit.settle(&ticket, verdict, &bench.config, bench.now, &|| random, |_| Some(()));
                }
            }
            let leased = under_way.iter().filter(|(ticket, since)| {
                ticket.lease.is_some() && bench.now - *since < bench.config.lease_timeout
            });
            prop_assert!(leased.count() <= probes as usize);
        }
        // Those under way never come back; the target is well from now on.
        let longest = bench.config.open_max.mul_f64(1.2) + bench.config.lease_timeout;
        let deadline = bench.now + longest;
        while bench.circuit.state() != CircuitState::Closed {
            prop_assert!(bench.now <= deadline);
            bench.now += secs(1.0);
            if let Some(ticket) = bench.admit() {
                bench.settle(ticket, Some(Verdict::Well));
            }
        }
    }
}
