//! Delay hints: how long a server asks to be left alone.
//!
//! Every reader takes text from a server, so every reader is total: what it does not understand is
//! `None`, and no hint is longer than [`MAX_HINT`].

use std::time::{Duration, SystemTime};

use serde_json::Value;

/// The longest hint that is believed: no clock overflows with it, and no call waits as long.
pub const MAX_HINT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Names of the headers that tell when a rate limit's window ends.
const RESET_HEADERS: [&str; 6] = [
    "x-ratelimit-reset",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-ratelimit-reset-after",
    "x-rate-limit-reset",
    "ratelimit-reset",
];

/// `Retry-After` (RFC 9110, section 10.2.3): delay-seconds or an HTTP date. A date in the past is
/// zero; a fraction, a sign, a unit or nothing at all is invalid.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return value
            .parse()
            .ok()
            .map(|seconds| Duration::from_secs(seconds).min(MAX_HINT));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default().min(MAX_HINT))
}

/// `retry-after-ms`: milliseconds, as model providers send it.
pub fn retry_after_ms(value: &str) -> Option<Duration> {
    number(value.trim()).and_then(|millis| seconds(millis / 1000.0))
}

/// One value of an `x-ratelimit-reset*` header: `2m30s`, seconds such as `11.1`, or, where the number
/// is that large, seconds or milliseconds since the Unix epoch. Several values may be separated by
/// commas; the smallest wins.
pub fn rate_limit_reset(value: &str, now: SystemTime) -> Option<Duration> {
    value
        .split(',')
        .filter_map(|value| reset(value.trim(), now))
        .min()
}

fn reset(value: &str, now: SystemTime) -> Option<Duration> {
    let Some(figure) = number(value) else {
        return units(value);
    };
    let epoch = match figure {
        f if f >= 1e12 => f / 1000.0,
        f if f >= 1e9 => f,
        f => return seconds(f),
    };
    let end = SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(epoch).ok()?)?;
    Some(end.duration_since(now).unwrap_or_default().min(MAX_HINT))
}

/// Digits with at most one point: no sign, no exponent, no infinity.
fn number(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && text.bytes().any(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

fn seconds(seconds: f64) -> Option<Duration> {
    if seconds >= MAX_HINT.as_secs_f64() {
        return Some(MAX_HINT);
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// A duration with units, such as `2m30s`, `6ms` or `34.07s`.
fn units(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (figure, tail) = rest.split_at(digits);
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let factor = match unit {
            "d" => 86_400.0,
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number(figure)? * factor;
        rest = tail;
    }
    if text.is_empty() {
        None
    } else {
        seconds(total)
    }
}

/// A hint in a JSON body: `retryDelay` (a duration with a unit), `retry_after` and `retryAfter`
/// (seconds), `retry_after_ms` and `retryAfterMs`; at the top, in `error`, in `data`, and in
/// `details`, where Google's `RetryInfo` is.
pub fn in_body(body: &Value) -> Option<Duration> {
    here(body).or_else(|| {
        let nested = ["error", "data"]
            .iter()
            .filter_map(|key| body.get(key))
            .find_map(|inner| {
                here(inner)
                    .or_else(|| inner.get("data").and_then(here))
                    .or_else(|| details(inner))
            });
        nested.or_else(|| details(body))
    })
}

fn details(value: &Value) -> Option<Duration> {
    value.get("details")?.as_array()?.iter().find_map(here)
}

fn here(value: &Value) -> Option<Duration> {
    let amount = |key: &str, scale: f64| match value.get(key)? {
        Value::Number(figure) => figure
            .as_f64()
            .filter(|f| *f >= 0.0)
            .and_then(|f| seconds(f * scale)),
        Value::String(text) => match number(text) {
            Some(figure) => seconds(figure * scale),
            None => units(text),
        },
        _ => None,
    };
    amount("retryDelay", 1.0)
        .or_else(|| amount("retry_after_ms", 1e-3))
        .or_else(|| amount("retryAfterMs", 1e-3))
        .or_else(|| amount("retry_after", 1.0))
        .or_else(|| amount("retryAfter", 1.0))
}

/// The hint of an HTTP response, the most exact first: `retry-after-ms`, `Retry-After`, the body, and
/// for a throttled request the smallest `x-ratelimit-reset*`.
pub(super) fn of_response(
    header: &dyn Fn(&str) -> Option<String>,
    body: Option<&Value>,
    throttled: bool,
    now: SystemTime,
) -> Option<Duration> {
    header("retry-after-ms")
        .and_then(|value| retry_after_ms(&value))
        .or_else(|| header("retry-after").and_then(|value| retry_after(&value, now)))
        .or_else(|| body.and_then(in_body))
        .or_else(|| {
            let resets = || RESET_HEADERS.iter().filter_map(|name| header(name));
            throttled
                .then(|| {
                    resets()
                        .filter_map(|value| rate_limit_reset(&value, now))
                        .min()
                })
                .flatten()
        })
}

/// What a server says with `grpc-retry-pushback-ms` (gRPC proposal A6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushback {
    /// Retry after this delay.
    After(Duration),
    /// Do not retry: the value is negative, or cannot be read.
    Never,
}

/// Reads `grpc-retry-pushback-ms`. Several values, joined by commas, cannot be read.
pub fn pushback(value: &str) -> Pushback {
    match value.trim().parse::<u32>() {
        Ok(millis) => Pushback::After(Duration::from_millis(millis.into())),
        Err(_) => Pushback::Never,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hint_in_a_body_is_found_where_providers_put_it() {
        for (body, millis) in [
            (
                json!({"error": {"details": [{"reason": "x"}, {"retryDelay": "34.5s"}]}}),
                34_500,
            ),
            (json!({"retry_after": 0.25, "global": false}), 250),
            (json!({"error": {"data": {"retryAfter": 3}}}), 3000),
            (json!({"retryAfterMs": 40}), 40),
            (json!({"data": {"retry_after_ms": "70"}}), 70),
        ] {
            assert_eq!(
                in_body(&body),
                Some(Duration::from_millis(millis)),
                "{body}"
            );
        }
        for body in [
            json!({}),
            json!([1]),
            json!({"retry_after": -1}),
            json!({"retryDelay": "soon"}),
        ] {
            assert_eq!(in_body(&body), None, "{body}");
        }
    }

    #[test]
    fn an_epoch_time_counts_from_now() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(
            rate_limit_reset("1700000030", now),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            rate_limit_reset("1700000030000", now),
            Some(Duration::from_secs(30))
        );
        assert_eq!(rate_limit_reset("1600000000", now), Some(Duration::ZERO));
        assert_eq!(rate_limit_reset("6ms", now), Some(Duration::from_millis(6)));
    }

    #[test]
    fn the_most_exact_hint_wins_and_resets_count_only_when_throttled() {
        let now = SystemTime::UNIX_EPOCH;
        let all = |name: &str| match name {
            "retry-after-ms" => Some("1500".to_owned()),
            "retry-after" => Some("2".to_owned()),
            _ => None,
        };
        assert_eq!(
            of_response(&all, None, true, now),
            Some(Duration::from_millis(1500))
        );
        let resets = |name: &str| match name {
            "retry-after" => Some("soon".to_owned()),
            "x-ratelimit-reset-requests" => Some("1m".to_owned()),
            "x-ratelimit-reset-tokens" => Some("20s".to_owned()),
            _ => None,
        };
        assert_eq!(
            of_response(&resets, None, true, now),
            Some(Duration::from_secs(20))
        );
        assert_eq!(of_response(&resets, None, false, now), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic_or_exceed_the_longest_hint(text in "\\PC*|[0-9.dhmsnuµ]{0,40}") {
            let now = SystemTime::UNIX_EPOCH;
            for hint in [retry_after(&text, now), retry_after_ms(&text), rate_limit_reset(&text, now)] {
                prop_assert!(hint.unwrap_or_default() <= MAX_HINT);
            }
            pushback(&text);
        }
    }
}
