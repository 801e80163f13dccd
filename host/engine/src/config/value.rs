//! Reads single values: each function says what is wrong with a value that is not what it wants.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::reader::{Cx, Issue};
use super::units::{Expanded, LONGEST, format_duration, format_size, parse_duration, parse_size};

type Read<T> = Result<T, Issue>;

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

/// The candidate that looks most like a word, if one does.
pub(super) fn nearest<'w>(
    word: &str,
    candidates: impl Iterator<Item = &'w str>,
) -> Option<&'w str> {
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
                    && !text
                        .strip_prefix('-')
                        .is_some_and(|text| parse_duration(text).is_some())
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

/// A name of a target or a group: what shows up in logs, metrics and URLs.
pub(super) fn name(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<String> {
    let text = text(value, cx)?;
    let good = !text.is_empty()
        && text.chars().count() <= 128
        && !text.chars().any(|c| c.is_whitespace() || c.is_control());
    let issue = || {
        let reason = format!(
            "{text:?} is empty, longer than 128 characters, or has a blank or control character"
        );
        Issue::error(
            "not a name",
            reason,
            "Write 1 to 128 characters without blanks.",
        )
    };
    if good { Ok(text) } else { Err(issue()) }
}

/// A name of a strategy: the rule of the contract's metadata.
pub(super) fn identifier(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<String> {
    let text = text(value, cx)?;
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !text.is_empty() && text.len() <= 64 && text.chars().all(good) {
        return Ok(text);
    }
    let reason = format!("{text:?} is not 1 to 64 letters, digits, `-` or `_`");
    Err(Issue::error(
        "not a strategy's name",
        reason,
        "Write the name without folder and without \".wasm\".",
    ))
}

pub(super) fn expanded(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<Expanded> {
    let text = text(value, cx)?;
    Expanded::new(&text, cx.env).map_err(|error| {
        let remedy = match &error {
            super::ExpandError::Unset(name) => {
                format!("Set {name} before the start, or write the value itself.")
            }
            super::ExpandError::Malformed => "Write ${NAME}; for a literal ${ write $${.".into(),
        };
        Issue::error("cannot be expanded", error.to_string(), remedy)
    })
}

/// An `http` or `https` URL.
pub(super) fn url(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<Expanded> {
    const REMEDY: &str = "Write a URL such as \"https://example.com/mcp\".";
    let expanded = expanded(value, cx)?;
    // The text as written: the value may hold a secret.
    let shown = expanded.written();
    match url::Url::parse(expanded.value()) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(expanded),
        Ok(_) => Err(Issue::error(
            "not an HTTP URL",
            format!("{shown:?} does not begin with http:// or https://"),
            REMEDY,
        )),
        Err(error) => Err(Issue::error(
            "not a URL",
            format!("{shown:?}: {error}"),
            REMEDY,
        )),
    }
}

pub(super) fn listen(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<SocketAddr> {
    let text = text(value, cx)?;
    text.parse().map_err(|_| {
        let reason = format!("{text:?} is not an IP address and a port");
        Issue::error(
            "not a listen address",
            reason,
            "Write an address such as \"127.0.0.1:8808\" or \"[::1]:8808\".",
        )
    })
}

/// A folder that is there, relative to the file.
pub(super) fn folder(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<PathBuf> {
    let path = cx.folder.join(text(value, cx)?);
    if path.is_dir() {
        return Ok(path);
    }
    let shown = path.display();
    let reason = if path.exists() {
        format!("{shown} is not a folder")
    } else {
        format!("{shown} does not exist")
    };
    Err(Issue::error(
        "no such folder",
        reason,
        "Create it, or correct the path (it is relative to this file).",
    ))
}

/// A pattern over names, with `*` and `?`.
pub(super) fn glob(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<String> {
    let text = text(value, cx)?;
    match globset::Glob::new(&text) {
        Ok(_) => Ok(text),
        Err(error) => {
            let reason = format!("{text:?}: {}", error.kind());
            Err(Issue::error(
                "not a glob",
                reason,
                "Write a pattern such as \"search_*\"; escape [ and { with a backslash.",
            ))
        }
    }
}

/// A regular expression; the position of a mistake is counted in characters of the pattern.
pub(super) fn regex(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<String> {
    const REMEDY: &str =
        "Correct the expression (the syntax is that of the Rust crate `regex`; no look-around).";
    let text = text(value, cx)?;
    let at = |offset: usize| text.get(..offset).unwrap_or_default().chars().count() + 1;
    let reason = match regex_syntax::Parser::new().parse(&text) {
        Err(regex_syntax::Error::Parse(error)) => {
            format!(
                "at character {}: {}",
                at(error.span().start.offset),
                error.kind()
            )
        }
        Err(regex_syntax::Error::Translate(error)) => {
            format!(
                "at character {}: {}",
                at(error.span().start.offset),
                error.kind()
            )
        }
        Err(error) => error.to_string(),
        // What is well formed may still be too large to compile.
        Ok(_) => match regex::Regex::new(&text) {
            Ok(_) => return Ok(text),
            Err(error) => error.to_string(),
        },
    };
    Err(Issue::error("not a regular expression", reason, REMEDY))
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
