//! What is wrong in a configuration file, where, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// How bad a [`Diagnostic`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It is taken as written, and is probably not what was meant.
    Warning,
    /// It cannot be taken as written: the file must not replace a good configuration.
    Error,
}

/// One problem in a configuration file.
///
/// Its display form is one line:
/// `backstop.toml:12:1: service[1].prioriti: unknown key "prioriti": did you mean "priority"? …`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as it was named by whoever loaded it.
    pub file: PathBuf,
    /// The line, counted from 1; 0 where the file could not be read at all.
    pub line: usize,
    /// The column in characters, counted from 1; 0 where the file could not be read at all.
    pub column: usize,
    /// The key as a dotted path; entries of a list are counted from 0, as in `service[1].url`. Empty
    /// where the problem is the file's as a whole.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// Why it is wrong. Empty, like the remedy, where the message says all three.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

impl Diagnostic {
    /// An error about a part of a file as a whole. `message` says what is wrong, why, and what to do
    /// about it.
    pub fn error(file: &Path, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::whole(Severity::Error, file, field.into(), message.into())
    }

    /// The same for what is odd but can be used.
    pub fn warning(file: &Path, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::whole(Severity::Warning, file, field.into(), message.into())
    }

    fn whole(severity: Severity, file: &Path, field: String, message: String) -> Self {
        Self {
            severity,
            file: file.to_owned(),
            line: 0,
            column: 0,
            field,
            message,
            reason: String::new(),
            remedy: String::new(),
        }
    }

    /// Whether it is an error: such a file must not replace a good configuration.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if self.severity == Severity::Warning {
            f.write_str(" warning:")?;
        }
        if !self.field.is_empty() {
            write!(f, " {}:", self.field)?;
        }
        if self.reason.is_empty() && self.remedy.is_empty() {
            return write!(f, " {}", self.message);
        }
        // A reason may end in a question mark of its own.
        let stop = if self.reason.ends_with('?') { "" } else { "." };
        write!(
            f,
            " {}: {}{stop} {}",
            self.message, self.reason, self.remedy
        )
    }
}

/// An error and its causes on one line, each told once.
#[cfg(feature = "component")]
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = cause.source();
    }
    message
}

/// Turns byte offsets into lines and columns.
pub(super) struct Positions<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Positions<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let newlines = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'\n')
            .map(|(at, _)| at + 1);
        Self {
            text,
            starts: std::iter::once(0).chain(newlines).collect(),
        }
    }

    /// Line and column of a byte offset, both counted from 1.
    pub(super) fn of(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let before = self.text.get(start..offset).unwrap_or_default();
        (line, before.chars().count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_not_bytes() {
        let positions = Positions::new("ä = 1\r\nöü = 2\n");
        assert_eq!(positions.of(0), (1, 1));
        assert_eq!(positions.of("ä = ".len()), (1, 5));
        assert_eq!(positions.of("ä = 1\r\nöü".len()), (2, 3));
        assert_eq!(positions.of("ä = 1\r\nöü = 2\n".len()), (3, 1));
        assert_eq!(Positions::new("").of(0), (1, 1));
    }
}
