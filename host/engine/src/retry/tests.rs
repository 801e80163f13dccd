use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::Instant;

use super::*;
use crate::backoff::Jitter;
use crate::call::RepeatSafety;
use crate::detect::{Detector, Signal};

const LONG: Duration = Duration::from_secs(3600);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The longest delays the policies give to a kind, until there is no further retry.
fn delays(manager: &RetryManager, kind: Kind) -> Vec<Duration> {
    let mut failure = Failure::new(kind, "x");
    failure.retryable = true;
    (0..100)
        .map_while(|n| {
            manager.next_delay(&RetryContext::new(&failure, n, LONG), None, &mut || {
                u64::MAX
            })
        })
        .collect()
}

#[test]
fn the_default_table_is_the_one_of_the_rules() {
    let manager = RetryManager::default();
    let table: [(&str, &[u64]); 13] = [
        ("ConnectionError", &[100, 200, 400]),
        ("TimeoutError", &[500, 1000]),
        ("ServiceUnavailable", &[100]),
        ("TooManyRequests", &[1000, 2000, 4000, 8000, 16_000]),
        ("InternalServerError", &[200, 400]),
        ("BadGateway", &[100]),
        ("GatewayTimeout", &[500, 1000]),
        ("SessionExpired", &[0]),
        ("InvalidParameter", &[]),
        ("Unauthorized", &[]),
        ("Forbidden", &[]),
        // No row of their own: 3 retries, 0.1 s, factor 2.
        ("Unknown", &[100, 200, 400]),
        ("AKindOfOurTeam", &[100, 200, 400]),
    ];
    for (kind, expected) in table {
        let expected: Vec<_> = expected.iter().copied().map(ms).collect();
        assert_eq!(delays(&manager, kind.into()), expected, "{kind}");
    }
}

#[test]
fn equal_jitter_keeps_half_of_each_delay() {
    let failure = Failure::new(Kind::CONNECTION_ERROR, "refused");
    let delay =
        RetryManager::default().next_delay(&RetryContext::new(&failure, 2, LONG), None, &mut || 0);
    assert_eq!(delay, Some(ms(200)));
}

#[test]
fn what_is_not_retryable_is_not_retried() {
    let manager = RetryManager::default();
    let failure = Failure::new(Kind::TOOL_ERROR, "no");
    assert_eq!(
        manager.next_delay(&RetryContext::new(&failure, 0, LONG), None, &mut || 0),
        None
    );
}

#[test]
fn a_delay_that_does_not_fit_in_the_time_left_is_none() {
    let manager = RetryManager::default();
    let failure = Failure::new(Kind::CONNECTION_ERROR, "refused");
    assert_eq!(
        manager.next_delay(&RetryContext::new(&failure, 0, ms(100)), None, &mut || {
            u64::MAX
        }),
        None
    );
    assert_eq!(
        manager.next_delay(&RetryContext::new(&failure, 0, ms(101)), None, &mut || {
            u64::MAX
        }),
        Some(ms(100))
    );
}

#[test]
fn a_server_hint_makes_the_delay_longer_and_never_shorter() {
    let manager = RetryManager::default();
    let mut failure = Failure::new(Kind::TOO_MANY_REQUESTS, "slow down");
    failure.retry_after = Some(ms(7000));
    assert_eq!(
        manager.next_delay(&RetryContext::new(&failure, 0, LONG), None, &mut || 0),
        Some(ms(7000))
    );
    failure.retry_after = Some(Duration::ZERO);
    assert_eq!(
        manager.next_delay(&RetryContext::new(&failure, 0, LONG), None, &mut || 0),
        Some(ms(500))
    );
    failure.retry_after = Some(ms(7000));
    assert_eq!(
        manager.next_delay(&RetryContext::new(&failure, 0, ms(6000)), None, &mut || 0),
        None,
        "longer than the time left"
    );
}

#[test]
fn throttling_never_gets_a_bare_full_jitter_whatever_the_policy() {
    let manager = RetryManager::default();
    let backoff = Backoff::fixed(ms(1000)).unwrap().with_jitter(Jitter::Full);
    manager.set_default(RetryPolicy::new(3, backoff));
    manager.remove_policy(&Kind::TOO_MANY_REQUESTS);
    let throttled = Failure::new(Kind::TOO_MANY_REQUESTS, "x");
    assert_eq!(
        manager.next_delay(&RetryContext::new(&throttled, 0, LONG), None, &mut || 0),
        Some(ms(500))
    );
    let mut custom = Failure::new("TeamQuota".into(), "x");
    (custom.retryable, custom.http_status) = (true, Some(429));
    assert_eq!(
        manager.next_delay(&RetryContext::new(&custom, 0, LONG), None, &mut || 0),
        Some(ms(500))
    );
    custom.http_status = None;
    assert_eq!(
        manager.next_delay(&RetryContext::new(&custom, 0, LONG), None, &mut || 0),
        Some(Duration::ZERO)
    );
}

#[test]
fn policies_change_while_running_and_clones_see_it() {
    let manager = RetryManager::default();
    let clone = manager.clone();
    let list = Backoff::list([ms(5), ms(6)]).unwrap();
    manager.set_policy("AKindOfOurTeam".into(), RetryPolicy::new(2, list));
    assert_eq!(delays(&clone, "AKindOfOurTeam".into()), [ms(5), ms(6)]);
    manager.remove_policy(&"AKindOfOurTeam".into());
    assert_eq!(delays(&clone, "AKindOfOurTeam".into()).len(), 3);
    manager.replace(RetryPolicies::uniform(RetryPolicy::new(
        1,
        Backoff::fixed(ms(9)).unwrap(),
    )));
    assert_eq!(delays(&clone, Kind::FORBIDDEN), [ms(9)]);
}

#[test]
fn a_condition_replaces_the_question_of_retryability_but_not_the_cap() {
    let policy = RetryPolicy::new(2, Backoff::fixed(ms(1)).unwrap())
        .with_condition(|context| context.failure.message.contains("again"));
    let manager = RetryManager::new(RetryPolicies::uniform(policy));
    let next = |message: &str, retries| {
        let failure = Failure::new(Kind::TOOL_ERROR, message);
        manager.next_delay(&RetryContext::new(&failure, retries, LONG), None, &mut || 0)
    };
    assert_eq!(next("try again", 0), Some(ms(1)));
    assert_eq!(next("try again", 2), None);
    assert_eq!(next("no", 0), None);
}

#[test]
fn a_condition_sees_the_call_and_not_only_the_failure() {
    let patient = |context: &RetryContext<'_>| {
        context.importance >= 50
            && context.attempts < 4
            && context.time_left > ms(1000)
            && context.repeatable
            && context.safety == RepeatSafety::ReadOnly
    };
    let manager = RetryManager::default();
    manager.set_policy(
        Kind::UNKNOWN,
        RetryPolicy::default().with_condition(patient),
    );
    let failure = Failure::new(Kind::UNKNOWN, "x");
    let good = RetryContext {
        safety: RepeatSafety::ReadOnly,
        ..RetryContext::new(&failure, 0, LONG)
    };
    let wanted = |context| manager.next_delay(&context, None, &mut || 0).is_some();
    assert!(wanted(good));
    let refused = [
        RetryContext {
            importance: 49,
            ..good
        },
        RetryContext {
            attempts: 4,
            ..good
        },
        RetryContext {
            time_left: ms(1000),
            ..good
        },
        RetryContext {
            repeatable: false,
            ..good
        },
        RetryContext {
            safety: RepeatSafety::Idempotent,
            ..good
        },
    ];
    for context in refused {
        assert!(!wanted(context), "{context:?}");
    }
}

fn classify(error: &&'static str, detector: &Detector) -> Failure {
    detector.detect(Signal::Error {
        class: error,
        message: "",
    })
}

#[tokio::test(start_paused = true)]
async fn a_run_retries_until_success_and_waits_in_between() {
    let detector = Detector::default();
    let start = Instant::now();
    let run = RetryRun::within(LONG, &detector).random(|| u64::MAX);
    let operation = |attempt| async move {
        if attempt < 3 {
            Err("ECONNREFUSED")
        } else {
            Ok(attempt)
        }
    };
    let answer = RetryManager::default().run(run, operation, classify).await;
    assert_eq!(answer.unwrap(), 3);
    assert_eq!(start.elapsed().as_millis(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_run_ends_with_the_last_error_when_retries_are_used_up() {
    let detector = Detector::default();
    let run = RetryRun::within(LONG, &detector);
    let error = RetryManager::default()
        .run(run, |_| async { Err::<(), _>("ECONNREFUSED") }, classify)
        .await
        .unwrap_err();
    assert_eq!(
        (error.ending, error.attempts, error.error),
        (RetryEnding::Exhausted, 4, Some("ECONNREFUSED"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_never_outlives_its_deadline() {
    let detector = Detector::default();
    let start = Instant::now();
    let run = RetryRun::within(ms(250), &detector).random(|| u64::MAX);
    let manager = RetryManager::default();
    let error = manager
        .run(run, |_| async { Err::<(), _>("ECONNREFUSED") }, classify)
        .await
        .unwrap_err();
    assert_eq!(
        (error.ending, error.attempts),
        (RetryEnding::DeadlineExceeded, 2)
    );
    assert_eq!(
        start.elapsed().as_millis(),
        100,
        "a wait that does not fit is not begun"
    );

    let run = RetryRun::within(ms(250), &detector).repeat_safety(RepeatSafety::ReadOnly);
    let hangs = |_| std::future::pending::<Result<(), &'static str>>();
    let error = manager.run(run, hangs, classify).await.unwrap_err();
    assert_eq!(
        (error.ending, error.attempts),
        (RetryEnding::DeadlineExceeded, 1)
    );
    assert!(error.failure.silent && error.error.is_none());
    assert_eq!(start.elapsed().as_millis(), 350);
}

#[tokio::test(start_paused = true)]
async fn a_run_never_repeats_an_unsafe_operation_after_an_ambiguous_failure() {
    let detector = Detector::default();
    let sent = AtomicU32::new(0);
    let operation = |_| async {
        sent.fetch_add(1, Ordering::Relaxed);
        Err::<(), _>("ECONNRESET")
    };
    let manager = RetryManager::default();
    let error = manager
        .run(RetryRun::within(LONG, &detector), operation, classify)
        .await
        .unwrap_err();
    assert_eq!(
        (error.ending, sent.load(Ordering::Relaxed)),
        (RetryEnding::OutcomeUnknown, 1)
    );
    let run = RetryRun::within(LONG, &detector).repeat_safety(RepeatSafety::Idempotent);
    let error = manager.run(run, operation, classify).await.unwrap_err();
    assert_eq!(
        (error.ending, sent.load(Ordering::Relaxed)),
        (RetryEnding::Exhausted, 5)
    );
}

/// The documented table of the ten kinds, row by row.
#[test]
fn the_table_of_the_ten_kinds_says_what_the_code_does() {
    let manager = RetryManager::default();
    let rows = include_str!("kinds.md")
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| kind"));
    let mut seen = 0;
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, kind, retries, shown, ambiguous, ill_health, _, _] = cells[..] else {
            panic!("{row}");
        };
        let kind = Kind::WELL_KNOWN.iter().find(|known| known.as_str() == kind);
        let kind = kind.unwrap_or_else(|| panic!("{row}")).clone();
        let failure = Failure::new(kind.clone(), "x");
        let yes = |is: bool| if is { "yes" } else { "no" };
        assert_eq!(
            (ambiguous, ill_health),
            (yes(failure.ambiguous), yes(failure.ill_health)),
            "{row}"
        );
        let made = delays(&manager, kind);
        assert_eq!(retries, made.len().to_string(), "{row}");
        let told: Vec<String> = made.iter().map(|d| d.as_secs_f64().to_string()).collect();
        assert_eq!(shown, told.join(" "), "{row}");
        seen += 1;
    }
    assert_eq!(seen, 10);
}
