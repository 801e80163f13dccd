//! Durations, sizes and environment references as they are written in the file.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

/// The longest duration a configuration may ask for: a year. Adding a longer one to a clock could
/// overflow it.
pub const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

const DURATION_UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads `250ms`, `5s`, `1.5s`, `1m30s`, `2h`. Units: h, m, s, ms, us, ns; each part may have a
/// fraction. `None` if it is anything else, or does not fit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut nanos: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = split_at_first(rest, |c| !(c.is_ascii_digit() || c == '.'));
        let (unit, after) = split_at_first(after, |c| !c.is_ascii_alphabetic());
        let scale = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?.1;
        nanos = nanos.checked_add(scaled(number, scale)?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(Duration::from_nanos(nanos))
}

fn split_at_first(text: &str, stop: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(stop).unwrap_or(text.len()))
}

/// `number` (digits with an optional fraction) times `scale`, without rounding through a float.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole = u128::from(whole.parse::<u64>().ok()?).checked_mul(scale.into())?;
    // Digits past the eighteenth are below any unit here, and would overflow.
    let digits = fraction.get(..18).unwrap_or(fraction);
    let part = digits.parse::<u128>().ok()? * u128::from(scale) / 10u128.pow(digits.len() as u32);
    let value = whole.checked_add(part)?;
    u64::try_from(value).ok()
}

/// Writes a duration as [`parse_duration`] reads it, such as `1m30s`.
pub fn format_duration(duration: Duration) -> String {
    let mut nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (unit, scale) in DURATION_UNITS {
        let count = nanos / u128::from(scale);
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
            nanos %= u128::from(scale);
        }
    }
    text
}

const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads `16MiB`, `1MB`, `512 KiB`, `100B`; the case of the unit does not matter. `None` if it is
/// anything else, or does not fit.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_at_first(text, |c| !(c.is_ascii_digit() || c == '.'));
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let scale = SIZE_UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?
        .1;
    scaled(number, scale)
}

/// Writes a size in the largest binary unit that divides it, such as `16MiB`.
pub fn format_size(bytes: u64) -> String {
    let binary = SIZE_UNITS
        .iter()
        .take(3)
        .find(|(_, scale)| bytes > 0 && bytes.is_multiple_of(*scale));
    let (unit, scale) = binary.copied().unwrap_or(("B", 1));
    format!("{}{unit}", bytes / scale)
}

/// How a duration is written in the file and in the JSON form of the configuration.
pub(super) struct DurationText;

/// How a size is written in the file and in the JSON form of the configuration.
pub(super) struct SizeText;

/// What [`DurationText`] and [`SizeText`] can write.
pub(super) trait Written {
    fn written(&self) -> Option<Vec<String>>;
    /// Whether it is written as a list.
    const LIST: bool = false;
}

impl Written for Duration {
    fn written(&self) -> Option<Vec<String>> {
        Some(vec![format_duration(*self)])
    }
}

impl Written for u64 {
    fn written(&self) -> Option<Vec<String>> {
        Some(vec![format_size(*self)])
    }
}

impl<T: Written> Written for Vec<T> {
    fn written(&self) -> Option<Vec<String>> {
        Some(self.iter().filter_map(Written::written).flatten().collect())
    }
    const LIST: bool = true;
}

impl<T: Written> Written for Option<T> {
    fn written(&self) -> Option<Vec<String>> {
        self.as_ref().and_then(Written::written)
    }
    const LIST: bool = T::LIST;
}

fn write<T: Written, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    match value.written() {
        Some(texts) if T::LIST => texts.serialize(serializer),
        Some(texts) => texts.concat().serialize(serializer),
        None => serializer.serialize_none(),
    }
}

impl DurationText {
    pub(super) fn serialize<T: Written, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        write(value, serializer)
    }
}

impl SizeText {
    pub(super) fn serialize<T: Written, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        write(value, serializer)
    }
}

/// Makes a choice of forms one of which a second excludes, such as `url` and `command`.
pub(super) fn exactly_one(schema: &mut Schema) {
    if let Some(forms) = schema.remove("anyOf") {
        schema.insert("oneOf".into(), forms);
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A duration such as \"250ms\", \"5s\", \"1m30s\" or \"2h\", or a number of seconds.",
            "anyOf": [
                { "type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(h|m|s|ms|us|ns))+$" },
                { "type": "number", "minimum": 0 },
            ],
        })
    }
}

impl JsonSchema for SizeText {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A size such as \"16MiB\" or \"1MB\", or a number of bytes.",
            "anyOf": [
                { "type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?([KkMmGg][Ii]?)?[Bb]$" },
                { "type": "integer", "minimum": 0 },
            ],
        })
    }
}

/// A text in which `${VAR}` stands for a variable of the environment, and `${file:PATH}` for what a
/// file holds, without the line feeds at its end.
///
/// Only [`Expanded::value`] tells what these hold: everything that is printed, logged or
/// serialised shows the text as it was written, so that a token does not leak.
#[derive(Clone, PartialEq, Eq)]
pub struct Expanded {
    written: String,
    value: String,
    is_of_file: bool,
}

/// Why a text with `${VAR}` cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpandError {
    /// The variable is not set.
    #[error("the environment variable {0} is not set")]
    Unset(String),
    /// The file cannot be read.
    #[error("{path}: {reason}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        reason: String,
    },
    /// `${` without an end, or with something that is no variable's name.
    #[error("after `${{` there must be a variable's name or `file:PATH`, and `}}`")]
    Malformed,
}

impl Expanded {
    /// Replaces each `${VAR}` and each `${file:PATH}`, whose path is relative to `folder`; `$${` stands
    /// for a literal `${`.
    ///
    /// # Errors
    /// [`ExpandError::Unset`] if a variable is not set, [`ExpandError::File`] if a file cannot be read
    /// or is no text, [`ExpandError::Malformed`] if a `${` is followed by anything but a name (letters,
    /// digits, `_`) or `file:PATH`, and `}`.
    pub fn new(
        written: &str,
        folder: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ExpandError> {
        let mut is_of_file = false;
        let mut value = String::with_capacity(written.len());
        // The same with whole paths, which mean one file wherever they are read.
        let mut whole = String::with_capacity(written.len());
        let mut rest = written;
        while let Some((before, after)) = rest.split_once("${") {
            whole.push_str(before);
            if let Some(before) = before.strip_suffix('$') {
                value.push_str(before);
                value.push_str("${");
                whole.push_str("${");
                rest = after;
                continue;
            }
            value.push_str(before);
            let (name, after) = after.split_once('}').ok_or(ExpandError::Malformed)?;
            rest = after;
            if let Some(path) = name.strip_prefix("file:").filter(|path| !path.is_empty()) {
                is_of_file = true;
                let path = folder.join(path);
                value.push_str(&secret_of(&path)?);
                whole.push_str(&format!("${{file:{}}}", path.display()));
                continue;
            }
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err(ExpandError::Malformed);
            }
            value.push_str(&env(name).ok_or_else(|| ExpandError::Unset(name.to_owned()))?);
            whole.push_str(&format!("${{{name}}}"));
        }
        value.push_str(rest);
        whole.push_str(rest);
        Ok(Self {
            written: whole,
            value,
            is_of_file,
        })
    }

    /// The same text with what the variables and files hold now.
    ///
    /// # Errors
    /// As [`Expanded::new`].
    pub fn again(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ExpandError> {
        Self::new(&self.written, Path::new(""), env)
    }

    /// Whether it holds something of a file, which may be another by now.
    pub fn is_of_file(&self) -> bool {
        self.is_of_file
    }

    /// A text in which nothing stands for anything else.
    pub(crate) fn literal(text: String) -> Self {
        Self {
            written: text.replace("${", "$${"),
            value: text,
            is_of_file: false,
        }
    }

    /// The text as it was written, without what the variables and files hold; paths are whole.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// The text with the variables and files replaced. It may hold a secret.
    pub fn value(&self) -> &str {
        &self.value
    }
}

/// What a file that holds a secret says.
fn secret_of(path: &Path) -> Result<String, ExpandError> {
    let text = std::fs::read_to_string(path).map_err(|error| ExpandError::File {
        path: path.display().to_string(),
        reason: error.to_string(),
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

impl fmt::Debug for Expanded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.written, f)
    }
}

impl Serialize for Expanded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.written.serialize(serializer)
    }
}

impl JsonSchema for Expanded {
    fn schema_name() -> Cow<'static, str> {
        "Expanded".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "${VAR} stands for a variable of the environment, ${file:PATH} for what a file holds; $${ for a literal ${.",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_in_every_unit_and_sum() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("1.5s", 1_500),
            ("0s", 0),
            ("0.25m", 15_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for bad in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "5sec",
            "1..5s",
            ".5s",
            "5.s",
            "5s ",
            "99999999999999999999s",
            "9999999999h",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        for (text, bytes) in [
            ("16MiB", 16 << 20),
            ("1MB", 1_000_000),
            ("512 kib", 512 << 10),
            ("0.5GiB", 1 << 29),
            ("7B", 7),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for bad in ["", "16", "16M", "MiB", "-1MB", "1  MB", "99999999999999GiB"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_variable_is_replaced_and_never_shown() {
        let env = |name: &str| (name == "TOKEN").then(|| "s3cret".to_owned());
        let expand = |text| Expanded::new(text, Path::new(""), &env);
        let header = expand("Bearer ${TOKEN}, $${TOKEN} $5").unwrap();
        assert_eq!(header.value(), "Bearer s3cret, ${TOKEN} $5");
        assert!(
            !format!("{header:?}{}", serde_json::to_string(&header).unwrap()).contains("s3cret")
        );
        assert_eq!(expand("${GONE}"), Err(ExpandError::Unset("GONE".into())));
        for bad in [
            "${TOKEN",
            "${}",
            "${A B}",
            "${A${B}}",
            "${file:}",
            "${FILE:x}",
        ] {
            assert_eq!(expand(bad), Err(ExpandError::Malformed), "{bad}");
        }
    }

    #[test]
    fn what_a_file_holds_is_read_again_when_it_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let env = |_: &str| None;
        let write = |text: &str| std::fs::write(folder.path().join("token"), text).unwrap();
        write("first\r\n\n");
        let header = Expanded::new("Bearer ${file:token}.", folder.path(), &env).unwrap();
        assert_eq!(header.value(), "Bearer first.");
        assert!(header.is_of_file());
        let whole = folder.path().join("token");
        let written = format!("Bearer ${{file:{}}}.", whole.display());
        assert_eq!(header.written(), written);
        write("second");
        assert_eq!(header.value(), "Bearer first.");
        assert_eq!(header.again(&env).unwrap().value(), "Bearer second.");
        std::fs::remove_file(folder.path().join("token")).unwrap();
        let error = header.again(&env).unwrap_err();
        assert!(matches!(&error, ExpandError::File { path, .. } if path.ends_with("token")));
        assert!(
            !Expanded::new("plain $${file:token}", folder.path(), &env)
                .unwrap()
                .is_of_file()
        );
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos in any::<u64>(), bytes in any::<u64>()) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
            prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }

        #[test]
        fn no_text_makes_a_reader_panic(text in "[0-9.hmsunKMGiB $\\{\\}a]{0,12}") {
            let _ = (parse_duration(&text), parse_size(&text), Expanded::new(&text, Path::new(""), &|_| Some(String::new())));
        }
    }
}
