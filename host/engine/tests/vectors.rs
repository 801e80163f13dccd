//! Vectors from specifications and from the tests of public implementations. Each file names its
//! source.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use backstop::Kind;
use backstop::budget::{BudgetPolicy, RetryBudget};
use backstop::detect::hints::{self, Pushback};
use backstop::detect::{Detector, Signal};
use serde_json::Value;
use tokio::time::Instant;

fn vectors(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn now_of(vectors: &Value) -> SystemTime {
    httpdate::parse_http_date(vectors["now"].as_str().unwrap()).unwrap()
}

/// The hint a detector finds in a 429 with these headers.
fn detected(name: &str, value: &str, now: SystemTime) -> Option<Duration> {
    let header = |asked: &str| (asked == name).then(|| value.to_owned());
    let signal = Signal::Http {
        status: 429,
        header: &header,
        body: b"",
        now,
        session: false,
    };
    let failure = Detector::default().detect(signal);
    assert_eq!(failure.kind, Kind::TOO_MANY_REQUESTS);
    failure.retry_after
}

#[test]
fn retry_after_is_read_as_rfc_9110_says() {
    let vectors = vectors(include_str!("vectors/retry-after.json"));
    let now = now_of(&vectors);
    let cases = vectors["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let header = case["header"].as_str().unwrap();
        let expected = case["seconds"].as_u64().map(Duration::from_secs);
        assert_eq!(hints::retry_after(header, now), expected, "{header:?}");
        assert_eq!(detected("retry-after", header, now), expected, "{header:?}");
    }
}

#[test]
fn of_several_rate_limit_resets_the_smallest_wins() {
    let vectors = vectors(include_str!("vectors/retry-after.json"));
    let now = now_of(&vectors);
    let cases = vectors["rate_limit_reset"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let joined = match case["values"].as_array() {
            Some(values) => values
                .iter()
                .map(|v| v.as_str().unwrap())
                .collect::<Vec<_>>()
                .join(", "),
            None => case["value"].as_str().unwrap().to_owned(),
        };
        let expected = case["seconds"].as_f64().map(Duration::from_secs_f64);
        assert_eq!(
            detected("x-ratelimit-reset", &joined, now),
            expected,
            "{joined:?}"
        );
    }
}

#[test]
fn a_pushback_is_a_delay_or_forbids_the_retry() {
    let vectors = vectors(include_str!("vectors/retry-throttle.json"));
    let cases = vectors["pushback_ms"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let value = match &case["value"] {
            Value::Array(values) => values
                .iter()
                .map(|v| v.as_str().unwrap())
                .collect::<Vec<_>>()
                .join(","),
            value => value.as_str().unwrap().to_owned(),
        };
        let expected = if case["retry"].as_bool().unwrap() {
            Pushback::After(Duration::from_millis(
                case["min_delay_ms"].as_u64().unwrap(),
            ))
        } else {
            Pushback::Never
        };
        assert_eq!(hints::pushback(&value), expected, "{value:?}");
    }
}

#[test]
fn the_token_budget_throttles_as_grpc_does() {
    let vectors = vectors(include_str!("vectors/retry-throttle.json"));
    let good: HashSet<u64> = vectors["server_ok_at_attempt_index"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap())
        .collect();
    let max_attempts = vectors["max_attempts"].as_u64().unwrap();
    let now = Instant::now();
    let policy = BudgetPolicy::Tokens {
        max_tokens: vectors["max_tokens"].as_u64().unwrap().try_into().unwrap(),
        token_ratio: vectors["token_ratio"].as_f64().unwrap(),
    };
    let budget = RetryBudget::new(policy, now).unwrap();
    let mut index = 0;
    for (number, expected) in vectors["expected_calls"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let mut attempts = 0;
        let ok = loop {
            let ok = good.contains(&index);
            attempts += 1;
            index += 1;
            if ok {
                budget.call_succeeded();
                break true;
            }
            if !budget.try_withdraw(now) || attempts == max_attempts {
                break false;
            }
        };
        let expected = (
            expected["ok"].as_bool().unwrap(),
            expected["last_index"].as_u64().unwrap(),
        );
        assert_eq!((ok, index - 1), expected, "call {number}");
    }
}
