//! Changes to the text of a configuration, which leave its comments and its order alone.

use std::ops::Range;

use backstop::Kind;
use backstop::config::nearest;
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Why a change cannot be made, whatever the configuration says.
pub(super) type Impossible = String;

/// The longest name of a kind.
const LONGEST_KIND: usize = 128;

/// The text with other values in `[retry.KIND]`. `null` takes a key out; a table that is left without any is
/// taken out as well.
pub(super) fn with_retry(
    text: &str,
    kind: &str,
    set: &Map<String, Value>,
) -> Result<String, Impossible> {
    let root = DeTable::parse(text).map_err(|error| error.to_string())?;
    let retry = match root.get_ref().get("retry").map(Spanned::get_ref) {
        None => None,
        Some(DeValue::Table(retry)) => Some(retry),
        Some(_) => return Err("`retry` is no table".into()),
    };
    let found = retry.and_then(|retry| retry.get_key_value(kind));
    let mut values = Vec::new();
    for (key, value) in set {
        values.push((key.as_str(), as_toml(key, value)?));
    }
    let Some((name, table)) = found else {
        check_kind(kind)?;
        if is_inline(text, root.get_ref().get("retry")) {
            return Err(
                "`retry` is written in one line: give each kind a table of its own, [retry.KIND]"
                    .into(),
            );
        }
        return Ok(appended(text, kind, values));
    };
    let DeValue::Table(entries) = table.get_ref() else {
        return Err(format!("`retry.{kind}` is no table"));
    };
    let header = line(text, name.span().start);
    let mut edits = Edits::default();
    if is_inline(text, Some(table)) {
        let mut members: Vec<(&str, &str)> = Vec::new();
        for (key, value) in entries {
            members.push((key.get_ref(), &text[value.span()]));
        }
        for (key, value) in &values {
            members.retain(|(other, _)| other != key);
            members.extend(value.as_deref().map(|value| (*key, value)));
        }
        let members = members
            .iter()
            .map(|(key, value)| format!("{} = {value}", as_key(key)));
        let members: Vec<String> = members.collect();
        edits.put(table.span(), format!("{{ {} }}", members.join(", ")));
        return Ok(edits.of(text));
    }
    let has_header = text[header.clone()].trim_start().starts_with('[');
    let last = entries.iter().map(|(_, value)| value.span().end).max();
    let end = last.map_or(header.end, |at| line(text, at).end);
    let mut left = entries.len();
    let mut added = String::new();
    for (key, value) in values {
        match (entries.get_key_value(key), value) {
            (Some((_, old)), Some(new)) => edits.put(old.span(), new),
            (Some((name, old)), None) => {
                left -= 1;
                let lines = line(text, name.span().start).start..line(text, old.span().end).end;
                edits.put(with_its_end(text, lines), String::new());
            }
            (None, Some(new)) => added.push_str(&format!("\n{} = {new}", as_key(key))),
            (None, None) => {}
        }
    }
    if !added.is_empty() && !has_header {
        return Err(format!(
            "`retry.{kind}` has no table of its own in the file: write its keys below [retry.{kind}]"
        ));
    }
    if left == 0 && added.is_empty() && has_header {
        edits.put(with_its_end(text, header), String::new());
    }
    edits.put(end..end, added);
    Ok(edits.of(text))
}

/// Places of a text, and what stands there instead.
#[derive(Default)]
struct Edits(Vec<(Range<usize>, String)>);

impl Edits {
    fn put(&mut self, at: Range<usize>, new: String) {
        self.0.push((at, new));
    }

    /// The text with all of them, from the last to the first, so that no place moves before its turn.
    fn of(mut self, text: &str) -> String {
        self.0.sort_by_key(|(at, _)| (at.start, at.end));
        let mut text = text.to_owned();
        for (at, new) in self.0.iter().rev() {
            text.replace_range(at.clone(), new);
        }
        text
    }
}

/// The line a place is in, without its end.
fn line(text: &str, at: usize) -> Range<usize> {
    let start = text[..at].rfind('\n').map_or(0, |before| before + 1);
    let end = text[at..].find('\n').map_or(text.len(), |after| at + after);
    start..end
}

fn with_its_end(text: &str, line: Range<usize>) -> Range<usize> {
    line.start..(line.end + 1).min(text.len())
}

/// Whether a value is written between braces.
fn is_inline(text: &str, value: Option<&Spanned<DeValue<'_>>>) -> bool {
    value.is_some_and(|value| text[value.span()].starts_with('{'))
}

/// The text with a new table at its end.
fn appended(text: &str, kind: &str, values: Vec<(&str, Option<String>)>) -> String {
    let given = values.iter();
    let given = given.filter_map(|(key, value)| Some((as_key(key), value.as_ref()?)));
    let lines: Vec<String> = given
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect();
    if lines.is_empty() {
        return text.to_owned();
    }
    let gap = match text.ends_with('\n') || text.is_empty() {
        true => "\n",
        false => "\n\n",
    };
    format!("{text}{gap}[retry.{}]\n{}", as_key(kind), lines.concat())
}

/// A kind of one's own is welcome; one that looks almost like a well-known one is a slip.
fn check_kind(kind: &str) -> Result<(), Impossible> {
    let is_good = |c: char| !c.is_whitespace() && !c.is_control();
    if kind.is_empty() || kind.chars().count() > LONGEST_KIND || !kind.chars().all(is_good) {
        return Err(format!(
            "{kind:?} is no kind: write 1 to {LONGEST_KIND} characters without blanks"
        ));
    }
    let known = || Kind::WELL_KNOWN.iter().map(Kind::as_str).chain(["default"]);
    if known().any(|known| known == kind) {
        return Ok(());
    }
    match nearest(kind, known()) {
        Some(near) => Err(format!("there is no kind {kind:?}: did you mean {near:?}?")),
        None => Ok(()),
    }
}

/// A key as TOML writes it.
fn as_key(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match !key.is_empty() && key.chars().all(bare) {
        true => key.to_owned(),
        false => toml::Value::from(key).to_string(),
    }
}

/// A value as TOML writes it; none for `null`.
fn as_toml(key: &str, json: &Value) -> Result<Option<String>, Impossible> {
    if json.is_null() {
        return Ok(None);
    }
    let value = value_of(json).ok_or_else(|| format!("{key:?} has no such value: {json}"))?;
    Ok(Some(value.to_string()))
}

fn value_of(json: &Value) -> Option<toml::Value> {
    Some(match json {
        Value::Bool(it) => (*it).into(),
        Value::String(text) => text.as_str().into(),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64()?.into(),
        },
        Value::Array(list) => {
            let list: Option<Vec<toml::Value>> = list.iter().map(value_of).collect();
            list?.into()
        }
        Value::Null | Value::Object(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edited(text: &str, kind: &str, set: Value) -> Result<String, Impossible> {
        with_retry(text, kind, set.as_object().unwrap())
    }

    const TEXT: &str = "# mine\n[retry.TimeoutError] # slow ones\nmax_retries = 1 # enough\n\n[health]\nrise = 1\n";

    #[test]
    fn only_what_is_set_is_changed_and_comments_stay() {
        let set = json!({ "max_retries": 2, "delays": ["1s", 2.5] });
        let changed = edited(TEXT, "TimeoutError", set).unwrap();
        assert_eq!(
            changed,
            "# mine\n[retry.TimeoutError] # slow ones\nmax_retries = 2 # enough\ndelays = [\"1s\", 2.5]\n\n[health]\nrise = 1\n"
        );
        let set = json!({ "max_retries": null, "jitter": "full" });
        let changed = edited(TEXT, "TimeoutError", set).unwrap();
        assert_eq!(
            changed,
            "# mine\n[retry.TimeoutError] # slow ones\njitter = \"full\"\n\n[health]\nrise = 1\n"
        );
        // A list over several lines is one value.
        let many = "[retry.X]\ndelays = [\n  1, # a\n  2,\n]\njitter = \"full\"\n";
        let set = json!({ "delays": null, "max_retries": 1 });
        let changed = edited(many, "X", set).unwrap();
        assert_eq!(changed, "[retry.X]\njitter = \"full\"\nmax_retries = 1\n");
    }

    #[test]
    fn a_table_is_added_and_taken_out_where_nothing_is_left_of_it() {
        let added = edited(TEXT, "BadGateway", json!({ "jitter": "full" })).unwrap();
        assert_eq!(
            added,
            format!("{TEXT}\n[retry.BadGateway]\njitter = \"full\"\n")
        );
        let again = edited(&added, "BadGateway", json!({ "jitter": null })).unwrap();
        assert_eq!(again, format!("{TEXT}\n"));
        let emptied = edited("[retry.default]\n", "default", json!({ "factor": 3 })).unwrap();
        assert_eq!(emptied, "[retry.default]\nfactor = 3\n");
        let nothing = edited(TEXT, "BadGateway", json!({ "jitter": null })).unwrap();
        assert_eq!(nothing, TEXT);
        let quoted = edited("stock = true", "Team.Quota", json!({ "max_retries": 0 })).unwrap();
        assert_eq!(
            quoted,
            "stock = true\n\n[retry.\"Team.Quota\"]\nmax_retries = 0\n"
        );
    }

    #[test]
    fn a_kind_that_is_a_slip_is_refused_and_one_of_ones_own_is_not() {
        let slip = edited(TEXT, "TimeoutEror", json!({ "max_retries": 0 })).unwrap_err();
        assert!(slip.contains("did you mean \"TimeoutError\"?"), "{slip}");
        assert!(edited(TEXT, "", json!({ "max_retries": 0 })).is_err());
        assert!(edited(TEXT, "a b", json!({ "max_retries": 0 })).is_err());
        assert!(edited(TEXT, "TeamQuota", json!({ "max_retries": 0 })).is_ok());
        assert!(edited(TEXT, "default", json!({ "factor": {} })).is_err());
    }

    #[test]
    fn a_table_in_one_line_stays_in_one_line() {
        let text = "[retry]\nBadGateway = { max_retries = 1, jitter = 'full' } # here\n";
        let set = json!({ "max_retries": 4, "jitter": null });
        let changed = edited(text, "BadGateway", set).unwrap();
        assert_eq!(
            changed,
            "[retry]\nBadGateway = { max_retries = 4 } # here\n"
        );
        // Where a table cannot be added in such a place, that is said.
        let all = "retry = { BadGateway = { max_retries = 1 } }\n";
        assert!(edited(all, "BadGateway", json!({ "max_retries": 2 })).is_ok());
        assert!(edited(all, "TimeoutError", json!({ "max_retries": 2 })).is_err());
        let dotted = "retry.BadGateway.max_retries = 1\n";
        let changed = edited(dotted, "BadGateway", json!({ "max_retries": 2 })).unwrap();
        assert_eq!(changed, "retry.BadGateway.max_retries = 2\n");
        assert!(edited(dotted, "BadGateway", json!({ "jitter": "full" })).is_err());
        assert!(edited("retry = 3\n", "BadGateway", json!({ "max_retries": 4 })).is_err());
    }
}
