//! How much a target is given to do, and when a slow one is doubled: `max_concurrent`, `max_queue`,
//! `rate_limit` and `hedge`.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};
use toml::de::DeValue;

use super::reader::{Cx, Issue, Reader};
use super::units::{format_duration, parse_duration};
use super::value::{self, POSITIVE, Read};
use crate::hedge::Hedge;
use crate::registry::RateLimit;

/// The longest queue and the most requests at once that can be asked for.
const MOST: i64 = 1_000_000;

/// The longest stretch of time of a rate.
const LONGEST_RATE: Duration = Duration::from_secs(24 * 3600);

/// How many requests a target is sent at once, and in a stretch of time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct TargetLimits {
    /// How many requests it is sent at once, 1 to 1000000. Default: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MOST))]
    pub max_concurrent: Option<NonZeroU32>,
    /// How many more wait for their turn, 0 to 1000000; beyond that a call fails at once with
    /// `Overloaded`, and strategies may ask elsewhere. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MOST))]
    pub max_queue: Option<u32>,
    /// How many requests it is sent in a stretch of time of at most 24 h, such as `"100/1m"` or
    /// `"5/s"`, the same number at once after a pause; beyond that a call fails at once with
    /// `TooManyRequests` and the time until the next is allowed. Default: any number.
    #[serde(serialize_with = "rate_text", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RateText")]
    pub rate_limit: Option<RateLimit>,
}

impl TargetLimits {
    pub(super) fn read(r: &mut Reader<'_, '_>) -> Self {
        let max_concurrent = r.read("max_concurrent", value::integer(1..=MOST));
        let max_queue = r.read("max_queue", value::integer(0..=MOST));
        if r.has("max_queue") && !r.has("max_concurrent") {
            let reason = "requests wait only where their number at once is limited";
            r.issue(
                "max_queue",
                Issue::error(
                    "max_queue without max_concurrent",
                    reason,
                    "Add max_concurrent, or remove max_queue.",
                ),
            );
        }
        Self {
            max_concurrent: max_concurrent.and_then(NonZeroU32::new),
            max_queue,
            rate_limit: r.read("rate_limit", rate),
        }
    }
}

/// `5/s`, `100/1m`, `1/500ms`.
pub(super) fn rate(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<RateLimit> {
    let text = value::text(value, cx)?;
    let read = || {
        let (requests, per) = text.split_once('/')?;
        let requests = requests.trim().parse().ok().and_then(NonZeroU32::new)?;
        let per = per.trim();
        let per = parse_duration(per).or_else(|| parse_duration(&format!("1{per}")))?;
        (!per.is_zero() && per <= LONGEST_RATE).then_some(RateLimit { requests, per })
    };
    read().ok_or_else(|| {
        Issue::error(
            "not a rate",
            format!("{text:?} cannot be read as a number of requests in up to 24 h"),
            "Write one such as \"5/s\", \"100/1m\" or \"1000/1h\".",
        )
    })
}

/// How a rate is written in the file and in the JSON form of the configuration.
struct RateText;

fn rate_text<S: Serializer>(limit: &Option<RateLimit>, serializer: S) -> Result<S::Ok, S::Error> {
    limit
        .map(|limit| format!("{}/{}", limit.requests, format_duration(limit.per)))
        .serialize(serializer)
}

impl JsonSchema for RateText {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of requests in a stretch of time, such as \"5/s\" or \"100/1m\".",
            "type": "string",
            "pattern": r"^ *[0-9]+ */ *(([0-9]+(\.[0-9]+)?)?(h|m|s|ms|us|ns))+ *$",
        })
    }
}

/// `p95` or a duration.
pub(super) fn hedge(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<Hedge> {
    const REMEDY: &str = "Write a duration such as \"300ms\", or a percentile of the answer times from \"p1\" to \"p99\".";
    if let DeValue::String(text) = value
        && let Some(percent) = text.strip_prefix('p')
    {
        return percent
            .parse()
            .ok()
            .filter(|percent| (1..=99).contains(percent))
            .map(Hedge::Percentile)
            .ok_or_else(|| {
                Issue::error(
                    "not a percentile",
                    format!("{text:?} is none from p1 to p99"),
                    REMEDY,
                )
            });
    }
    value::duration(POSITIVE)(value, cx)
        .map(Hedge::After)
        .map_err(|issue| Issue {
            remedy: REMEDY.into(),
            ..issue
        })
}

/// How a hedge is written in the file and in the JSON form of the configuration.
pub(super) struct HedgeText;

pub(super) fn hedge_text<S: Serializer>(
    hedge: &Option<Hedge>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    hedge
        .map(|hedge| match hedge {
            Hedge::After(after) => format_duration(after),
            Hedge::Percentile(percent) => format!("p{percent}"),
        })
        .serialize(serializer)
}

impl JsonSchema for HedgeText {
    fn schema_name() -> Cow<'static, str> {
        "Hedge".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A duration such as \"300ms\" or a number of seconds, or a percentile of the answer times such as \"p95\".",
            "anyOf": [
                { "type": "string", "pattern": r"^(p[1-9][0-9]?|([0-9]+(\.[0-9]+)?(h|m|s|ms|us|ns))+)$" },
                { "type": "number", "minimum": 0 },
            ],
        })
    }
}
