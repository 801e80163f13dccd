//! JSON read as TOML: the same tables, at the same places, so that problems are reported where they
//! stand.

use super::reader::Issue;

const REMEDY: &str = "Correct the JSON; nothing of this file was loaded.";

/// The text as TOML in which every value begins where it does in the JSON text.
///
/// # Errors
/// What is wrong, and the offset at which it is.
pub(super) fn as_toml(text: &str) -> Result<String, (usize, Issue)> {
    let issue = |at: usize, reason: String| (at, Issue::error("not JSON", reason, REMEDY));
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
        let line = text.split_inclusive('\n').take(error.line() - 1);
        let at = line.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
        return Err(issue(at, error.to_string()));
    }
    let start = text.len() - text.trim_start().len();
    if !text[start..].starts_with('{') {
        return Err(issue(start, "an object is wanted".into()));
    }
    let mut toml = String::with_capacity(text.len());
    let (mut depth, mut rest) = (0_u32, text);
    while let Some(first) = rest.chars().next() {
        let at = text.len() - rest.len();
        if first == '"' {
            // It is JSON: the string has an end.
            let length = string_length(rest);
            let (written, after) = rest.split_at(length);
            let value: String =
                serde_json::from_str(written).map_err(|error| issue(at, error.to_string()))?;
            let begin = toml.len();
            push_string(&mut toml, &value);
            // TOML writes no character longer than JSON may, and what is shorter is filled up.
            toml.extend(std::iter::repeat_n(
                ' ',
                (begin + length).saturating_sub(toml.len()),
            ));
            rest = after;
            continue;
        }
        match first {
            // The members of the outermost object are the lines of the TOML file.
            '{' if depth == 0 => toml.push(' '),
            '}' if depth == 1 => toml.push(' '),
            ',' if depth == 1 => toml.push('\n'),
            ':' => toml.push('='),
            'n' if rest.starts_with("null") => {
                return Err(issue(at, "null is no value here; leave the key out".into()));
            }
            // Inside a value a line has no end.
            '\n' | '\r' => toml.push(' '),
            other => toml.push(other),
        }
        match first {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        rest = &rest[first.len_utf8()..];
    }
    Ok(toml)
}

/// The length of the string the text begins with, quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

fn push_string(toml: &mut String, value: &str) {
    toml.push('"');
    for character in value.chars() {
        match character {
            '"' => toml.push_str("\\\""),
            '\\' => toml.push_str("\\\\"),
            '\n' => toml.push_str("\\n"),
            '\r' => toml.push_str("\\r"),
            '\t' => toml.push_str("\\t"),
            '\u{8}' => toml.push_str("\\b"),
            '\u{c}' => toml.push_str("\\f"),
            control if control.is_control() => {
                toml.push_str(&format!("\\u{:04x}", u32::from(control)));
            }
            other => toml.push(other),
        }
    }
    toml.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_stays_where_it_is() {
        let json = "{\n \"service\": [\n  {\"name\": \"a\\/b\\ud83d\\ude00\", \"n\": [1, true]},\n  {}],\n \"x\": {\"y\": 2.5e1}}\n";
        let toml = as_toml(json).unwrap();
        assert_eq!(toml.len(), json.len());
        let read: toml::Table = toml.parse().unwrap();
        let back: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), back);
        assert_eq!(toml.find("[1, true]"), json.find("[1, true]"));
    }

    #[test]
    fn what_is_no_json_is_refused_where_it_is() {
        let at = |json: &str| {
            as_toml(json)
                .map_err(|(at, issue)| (at, issue.reason))
                .unwrap_err()
        };
        assert!((8..=11).contains(&at("{\n \"a\": tru}").0));
        assert_eq!(at("  [1]"), (2, "an object is wanted".into()));
        assert_eq!(at("{\"a\": null}").0, 6);
        assert!(at("").1.contains("EOF"));
    }
}
