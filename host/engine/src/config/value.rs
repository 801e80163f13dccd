//! Reads single values: each function says what is wrong with a value that is not what it wants.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::reader::{Cx, Issue};
use super::units::{LONGEST, format_duration, format_size, parse_duration, parse_size};

pub(super) type Read<T> = Result<T, Issue>;

/// Durations that may be zero.
pub(super) const ANY_DURATION: RangeInclusive<Duration> = Duration::ZERO..=LONGEST;
/// Durations something must be able to happen in.
pub(super) const POSITIVE: RangeInclusive<Duration> = Duration::from_millis(1)..=LONGEST;

/// How a section is called in a sentence.
pub(super) fn described(path: &str) -> String {
    let name: String = path.split('[').next().unwrap_or_default().into();
    match (path.is_empty(), name.len() < path.len()) {
        (true, _) => "the file".into(),
        (_, true) => format!("[[{name}]]"),
        _ => format!("[{path}]"),
    }
}

/// The candidate that looks most like a word, if one does: what is proposed for a name nobody knows.
pub fn nearest<'w>(word: &str, candidates: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    const ALIKE: f64 = 0.6;
    let lower = word.to_ascii_lowercase();
    candidates
        .map(|candidate| {
            (
                strsim::normalized_damerau_levenshtein(&lower, &candidate.to_ascii_lowercase()),
                candidate,
            )
        })
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

pub(super) fn wrong_type(value: &DeValue<'_>, wanted: &str, remedy: &str) -> Issue {
    Issue::error(
        "wrong type",
        format!("this is {}, {wanted} is wanted", article(value)),
        remedy,
    )
}

fn out_of_range(shown: &str, low: &str, high: &str) -> Issue {
    Issue::error(
        "out of range",
        format!("{shown} is not from {low} to {high}"),
        format!("Write a value from {low} to {high}."),
    )
}

pub(super) fn text(value: &DeValue<'_>, _: &Cx<'_>) -> Read<String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        other => Err(wrong_type(other, "a string", "Put it in quotes: \"…\".")),
    }
}

pub(super) fn boolean(value: &DeValue<'_>, _: &Cx<'_>) -> Read<bool> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        other => Err(wrong_type(
            other,
            "a boolean",
            "Write true or false, without quotes.",
        )),
    }
}

pub(super) fn integer<T: TryFrom<i64>>(
    range: RangeInclusive<i64>,
) -> impl Fn(&DeValue<'_>, &Cx<'_>) -> Read<T> {
    move |value, _| match value {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                out_of_range(
                    &number.to_string(),
                    &range.start().to_string(),
                    &range.end().to_string(),
                )
            }),
        other => Err(wrong_type(
            other,
            "an integer",
            "Write a whole number, without quotes.",
        )),
    }
}

/// The number a value holds, whole or not.
fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .map(|n| n as f64),
        DeValue::Float(number) => number.as_str().parse().ok(),
        _ => None,
    }
}

pub(super) fn float(range: RangeInclusive<f64>) -> impl Fn(&DeValue<'_>, &Cx<'_>) -> Read<f64> {
    move |value, _| match value {
        DeValue::Integer(_) | DeValue::Float(_) => {
            number(value).filter(|n| range.contains(n)).ok_or_else(|| {
                out_of_range(
                    &shown_number(value),
                    &range.start().to_string(),
                    &range.end().to_string(),
                )
            })
        }
        other => Err(wrong_type(
            other,
            "a number",
            "Write a number, without quotes.",
        )),
    }
}

fn shown_number(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        other => other.type_str().to_owned(),
    }
}

pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(&DeValue<'_>, &Cx<'_>) -> Read<Duration> {
    const REMEDY: &str =
        "Write a duration such as \"250ms\", \"5s\", \"1m30s\", \"2h\", or a number of seconds.";
    move |value, _| {
        let range_issue = |shown: &str| {
            let (low, high) = (
                format_duration(*range.start()),
                format_duration(*range.end()),
            );
            out_of_range(shown, &low, &high)
        };
        let (shown, read) = match value {
            DeValue::String(text) => {
                let read = parse_duration(text);
                if read.is_none()
                    && text
                        .strip_prefix('-')
                        .is_none_or(|text| parse_duration(text).is_none())
                {
                    return Err(Issue::error(
                        "not a duration",
                        format!("{text:?} cannot be read as one"),
                        REMEDY,
                    ));
                }
                (text.to_string(), read)
            }
            DeValue::Integer(_) | DeValue::Float(_) => {
                let read =
                    number(value).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                (format!("{} s", shown_number(value)), read)
            }
            other => return Err(wrong_type(other, "a duration", REMEDY)),
        };
        read.filter(|read| range.contains(read))
            .ok_or_else(|| range_issue(&shown))
    }
}

pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>, &Cx<'_>) -> Read<u64> {
    const REMEDY: &str = "Write a size such as \"16MiB\" or \"1MB\", or a number of bytes.";
    move |value, _| {
        let (shown, read) = match value {
            DeValue::String(text) => {
                let read = parse_size(text);
                if read.is_none() {
                    return Err(Issue::error(
                        "not a size",
                        format!("{text:?} cannot be read as one"),
                        REMEDY,
                    ));
                }
                (text.to_string(), read)
            }
            DeValue::Integer(number) => (
                format!("{number} bytes"),
                u64::from_str_radix(number.as_str(), number.radix()).ok(),
            ),
            other => return Err(wrong_type(other, "a size", REMEDY)),
        };
        read.filter(|read| range.contains(read)).ok_or_else(|| {
            out_of_range(
                &shown,
                &format_size(*range.start()),
                &format_size(*range.end()),
            )
        })
    }
}

/// One word of a list.
pub(super) fn word<T: Copy>(
    words: &'static [(&'static str, T)],
) -> impl Fn(&DeValue<'_>, &Cx<'_>) -> Read<T> {
    move |value, cx| {
        let text = text(value, cx)?;
        if let Some((_, known)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(*known);
        }
        let all = words
            .iter()
            .map(|(word, _)| format!("{word:?}"))
            .collect::<Vec<_>>()
            .join(", ");
        let reason = match nearest(&text, words.iter().map(|(word, _)| *word)) {
            Some(near) => format!("did you mean {near:?}?"),
            None => "it is none of those known here".into(),
        };
        Err(Issue::error(
            format!("unknown word {text:?}"),
            reason,
            format!("Write one of {all}."),
        ))
    }
}

/// A table as JSON, for a strategy.
pub(super) fn json_object(value: &DeValue<'_>, _: &Cx<'_>) -> Read<serde_json::Value> {
    match value {
        DeValue::Table(_) => json(value),
        other => Err(wrong_type(
            other,
            "a table",
            "Write { key = value } or a table of its own: [strategy.config].",
        )),
    }
}

fn json(value: &DeValue<'_>) -> Read<serde_json::Value> {
    let not_json = |shown: &str| {
        let reason = format!("{shown} has no form in JSON, which strategies are configured with");
        Issue::error(
            "not a value for a strategy",
            reason,
            "Write a finite number of at most 64 bits, or a string.",
        )
    };
    Ok(match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Datetime(value) => value.to_string().into(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_err(|_| not_json(&number.to_string()))?
            .into(),
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .ok_or_else(|| not_json(number.as_str()))?
            .into(),
        DeValue::Array(elements) => elements
            .iter()
            .map(|element| json(element.get_ref()))
            .collect::<Read<_>>()?,
        DeValue::Table(table) => table
            .iter()
            .map(|(key, value)| Ok((key.get_ref().to_string(), json(value.get_ref())?)))
            .collect::<Read<serde_json::Map<_, _>>>()?
            .into(),
    })
}
