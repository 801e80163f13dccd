//! Scenarios against configurations, with the stock strategies in the real sandbox, in simulated time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use backstop::Kind;
use backstop::config::Config;
use backstop::config::scenario::Scenario;
use backstop::retry::RetryPolicies;
use backstop_gateway::simulate::builtin::{builtin, builtins};
use backstop_gateway::simulate::{CallsEnded, Game, Report, What, play};

/// Compiled strategies, kept for all tests of this file.
static CACHE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    (folder, path)
});

const PAIR: &str = "
[[service]]
name = 'eu'
group = 'search'
url = 'http://127.0.0.1:9/mcp'
priority = 1

[[service]]
name = 'us'
group = 'search'
url = 'http://127.0.0.1:9/mcp'
";

/// No circuit opens, and no budget ends, so every call meets the same.
const STEADY: &str = "
[circuit]
consecutive_failures = 10000
minimum_throughput = 10000
[budget]
reserve_per_second = 100000
[health]
enabled = false
";

fn play_seeded(config: &str, scenario: &str, seed: u64) -> Report {
    let file = Path::new("backstop.toml");
    let loaded = Config::parse(config, file, &|_| None);
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    let read = Scenario::parse(scenario, Path::new("scenario.toml"), &loaded.config);
    assert!(read.diagnostics.is_empty(), "{:?}", read.diagnostics);
    play(&Game {
        config: &loaded.config,
        file,
        scenario: &read.scenario,
        seed: Some(seed),
        cache: Some(CACHE.1.clone()),
    })
    .unwrap()
}

fn played(config: &str, scenario: &str) -> Report {
    play_seeded(config, scenario, 1)
}

fn requests(report: &Report, target: &str) -> u64 {
    report.summary.targets[target].requests
}

fn opened(report: &Report) -> bool {
    let opened = |what: &What| matches!(what, What::CircuitOpened { .. });
    report.timeline.iter().any(|entry| opened(&entry.what))
}

/// Every call meets the fault.
fn always(kind: &str) -> String {
    format!(
        "duration = '1m'\n[[calls]]\nper_second = 1\nuntil = '10s'\n[[fault]]\nkind = '{kind}'\n"
    )
}

#[test]
fn each_of_the_ten_kinds_comes_to_what_the_table_says_of_it() {
    let policies = RetryPolicies::default();
    let config = format!("{PAIR}{STEADY}");
    for one in builtins().iter().take(10) {
        let kind = Kind::new(&one.name);
        let report = played(&config, &always(&kind));
        let summary = &report.summary;
        let calls = summary.calls;
        assert!((8..=14).contains(&calls), "{kind}: {calls}");
        let retries = u64::from(policies.of(&kind).max_retries);
        if retries == 0 {
            assert_eq!((summary.failed, summary.saved), (calls, 0), "{kind}");
            assert_eq!(requests(&report, "us"), 0, "{kind}");
            let is_told = report.timeline.iter().any(|entry| {
                let What::Calls { ended, .. } = &entry.what else {
                    return false;
                };
                matches!(ended, CallsEnded::Failed { kind: told, .. } if *told == kind)
            });
            assert!(is_told, "{kind}");
        } else {
            assert_eq!((summary.saved, summary.failed), (calls, 0), "{kind}");
            assert_eq!(requests(&report, "us"), calls, "{kind}");
        }
        // One that stayed silent for its whole time is not asked again while another is left.
        let again = if kind == Kind::TIMEOUT_ERROR {
            0
        } else {
            retries
        };
        assert_eq!(requests(&report, "eu"), calls * (1 + again), "{kind}");
    }
}

#[test]
fn what_speaks_against_health_opens_the_circuit_and_the_rest_does_not() {
    for one in builtins().iter().take(10) {
        let kind = Kind::new(&one.name);
        let ill = backstop::Failure::new(kind.clone(), "").ill_health;
        let report = played(PAIR, &one.text);
        assert_eq!(opened(&report), ill, "{kind}");
        let normal = &report.summary.normal[0];
        assert!(normal.after.is_some(), "{kind}: {normal:?}");
    }
}

#[test]
fn an_operation_that_must_not_be_repeated_is_sent_once_whatever_becomes_of_it() {
    let scenario =
        "duration = '1m'\n[[calls]]\nrepeat = 'unsafe'\n[[fault]]\ntransport = 'reset'\n";
    let report = played(&format!("{PAIR}{STEADY}"), scenario);
    assert_eq!(requests(&report, "eu"), report.summary.calls);
    assert_eq!(requests(&report, "us"), 0);
    assert_eq!(
        report.summary.endings["outcome_unknown"],
        report.summary.calls
    );
}

#[test]
fn an_outage_is_told_from_its_beginning_to_the_return_to_normal() {
    let report = played(PAIR, &builtin("outage").unwrap().text);
    let summary = &report.summary;
    assert!(summary.saved > 0 && summary.failed == 0, "{summary:?}");
    assert_eq!(summary.calls, summary.at_once + summary.saved);
    let at = |wanted: &dyn Fn(&What) -> bool| {
        let found = report.timeline.iter().find(|entry| wanted(&entry.what));
        found.map(|entry| entry.at).unwrap()
    };
    let begins = at(&|what| matches!(what, What::FaultBegins { .. }));
    let opens = at(&|what| matches!(what, What::CircuitOpened { .. }));
    let ends = at(&|what| matches!(what, What::FaultEnds { .. }));
    let closes = at(&|what| matches!(what, What::CircuitClosed { .. }));
    let normal = at(&|what| matches!(what, What::Normal { .. }));
    assert_eq!(begins, Duration::from_secs(60));
    assert_eq!(ends, Duration::from_secs(180));
    assert!(begins < opens && opens < ends && ends < closes && closes <= normal);
    assert_eq!(summary.normal[0].after, Some(normal - ends));
    // While the circuit is open the other answers at once.
    let switched = report.timeline.iter().any(|entry| match &entry.what {
        What::Calls {
            ended: CallsEnded::AtOnce { by: Some(by) },
            ..
        } => &**by == "us" && entry.at > opens && entry.at < ends,
        _ => false,
    });
    assert!(switched);
    assert!(summary.targets["eu"].probes > 0);
}

#[test]
fn every_scenario_of_the_program_plays_without_a_fault_of_a_strategy() {
    for one in builtins() {
        let report = played(PAIR, &one.text);
        let is_fault = |what: &What| matches!(what, What::StrategyFaulted { .. });
        let fault = report.timeline.iter().find(|entry| is_fault(&entry.what));
        assert_eq!(fault, None, "{}", one.name);
        assert!(report.summary.calls > 100, "{}", one.name);
    }
}

#[test]
fn one_seed_gives_one_report_and_another_seed_another() {
    for name in ["flapping", "brownout", "rate-limit", "TooManyRequests"] {
        let scenario = builtin(name).unwrap().text;
        let first = play_seeded(PAIR, &scenario, 3);
        // Again while the machine is busy.
        let busy = std::sync::atomic::AtomicBool::new(true);
        let again = std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while busy.load(std::sync::atomic::Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let again = play_seeded(PAIR, &scenario, 3);
            busy.store(false, std::sync::atomic::Ordering::Relaxed);
            again
        });
        assert_eq!(first, again, "{name}");
        let text = |report: &Report| serde_json::to_string(report).unwrap();
        assert_eq!(text(&first), text(&again), "{name}");
        assert_ne!(first, play_seeded(PAIR, &scenario, 4), "{name}");
    }
}

#[test]
fn the_configurations_own_policies_are_played() {
    let scenario = always("ConnectionError");
    let config = format!("{PAIR}{STEADY}[retry.ConnectionError]\nmax_retries = 0\n");
    let report = played(&config, &scenario);
    assert_eq!(requests(&report, "eu"), report.summary.calls);
    // Without the strategy that switches nobody else is asked.
    let alone = format!(
        "{config}[[strategy]]\nplugin = 'service-failover'\nenabled = false\n[[strategy]]\nplugin = 'model-failover'\nenabled = false\n"
    );
    let report = played(&alone, &scenario);
    assert_eq!(report.summary.failed, report.summary.calls);
    // A pattern of the configuration says what a failure is.
    let pattern = "[[pattern]]\nname = 'maintenance'\nscope = 'http'\nmessage = 'maintenance'\nkind = 'Forbidden'\n";
    let fault = "duration = '20s'\n[[fault]]\nhttp = 503\nmessage = 'in maintenance'\n";
    let report = played(&format!("{config}{pattern}"), fault);
    assert_eq!(report.summary.failed, report.summary.calls);
    // The last known good answer, where it is kept.
    let kept = format!("{PAIR}{STEADY}[cache]\n");
    let fault =
        "duration = '1m'\n[[calls]]\n[[fault]]\ntarget = 'all'\nfrom = '30s'\ntransport = 'dns'\n";
    let report = played(&kept, fault);
    assert_eq!(report.summary.failed, 0);
    let is_stale = |what: &What| match what {
        What::Calls { ended, .. } => matches!(
            ended,
            CallsEnded::Saved {
                by: None,
                degraded: Some("stale"),
                ..
            }
        ),
        _ => false,
    };
    assert!(report.timeline.iter().any(|entry| is_stale(&entry.what)));
}

#[test]
fn models_are_called_as_models() {
    let models = "
[[model]]
name = 'large'
group = 'chat'
base_url = 'http://127.0.0.1:9/v1'
priority = 1
[[model]]
name = 'small'
group = 'chat'
base_url = 'http://127.0.0.1:9/v1'
[completion]
answer = '3s'
";
    let report = played(&format!("{models}{STEADY}"), &always("TimeoutError"));
    assert_eq!(report.summary.saved, report.summary.calls);
    // The time a model may be silent, and then a good answer.
    let p50 = report.summary.p50;
    assert!((3000..3200).contains(&p50.as_millis()), "{p50:?}");
}

#[test]
fn a_fault_that_does_not_end_has_no_return_to_normal() {
    let report = played(
        PAIR,
        "duration = '1m'\n[[fault]]\nfrom = '30s'\nsilent = true\n",
    );
    assert_eq!(report.summary.normal[0].after, None);
    let slow = played(PAIR, &builtin("slow").unwrap().text);
    assert!(slow.summary.p99 > Duration::from_secs(4));
    assert_eq!(slow.summary.at_once, slow.summary.calls);
}
