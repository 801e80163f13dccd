//! A reader over a parsed TOML table that remembers where everything stands.
//!
//! Each section asks for the keys it knows; whatever it never asked for is an unknown key. A problem
//! is noted and reading goes on, so that one run reports everything.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Positions, Severity};
use super::value;

/// What every reader of one file shares.
pub(super) struct Cx<'a> {
    pub(super) positions: Positions<'a>,
    pub(super) file: &'a Path,
    /// What relative paths are relative to.
    pub(super) folder: PathBuf,
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    pub(super) found: RefCell<Vec<(usize, Diagnostic)>>,
    /// The keys each section asked for, for the test that holds them against the schema.
    #[cfg(test)]
    pub(super) asked: RefCell<BTreeMap<String, std::collections::BTreeSet<&'static str>>>,
}

/// A problem with a value, before it is known where the value stands.
#[derive(Debug)]
pub(super) struct Issue {
    pub(super) severity: Severity,
    pub(super) message: String,
    pub(super) reason: String,
    pub(super) remedy: String,
}

impl Issue {
    pub(super) fn error(
        message: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    pub(super) fn warning(
        message: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(message, reason, remedy)
        }
    }
}

impl<'a> Cx<'a> {
    pub(super) fn new(
        text: &'a str,
        file: &'a Path,
        env: &'a dyn Fn(&str) -> Option<String>,
    ) -> Self {
        Self {
            positions: Positions::new(text),
            file,
            folder: file.parent().map(Path::to_path_buf).unwrap_or_default(),
            env,
            found: RefCell::default(),
            #[cfg(test)]
            asked: RefCell::default(),
        }
    }

    pub(super) fn note(&self, offset: usize, field: String, issue: Issue) {
        let (line, column) = self.positions.of(offset);
        let Issue {
            severity,
            message,
            reason,
            remedy,
        } = issue;
        let file = self.file.to_path_buf();
        let diagnostic = Diagnostic {
            severity,
            file,
            line,
            column,
            field,
            message,
            reason,
            remedy,
        };
        self.found.borrow_mut().push((offset, diagnostic));
    }

    /// Everything noted, in the order of the file.
    pub(super) fn into_diagnostics(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|(offset, _)| *offset);
        found
            .into_iter()
            .map(|(_, diagnostic)| diagnostic)
            .collect()
    }
}

/// Reads one table.
pub(super) struct Reader<'c, 'a> {
    pub(super) cx: &'c Cx<'a>,
    table: &'c DeTable<'c>,
    path: String,
    /// Where the table begins: what is missing from it is reported there.
    at: usize,
    known: Vec<&'static str>,
    /// Whether anything but an unknown key is wrong in it.
    broken: bool,
}

impl<'c, 'a> Reader<'c, 'a> {
    pub(super) fn new(cx: &'c Cx<'a>, table: &'c DeTable<'c>, path: String, at: usize) -> Self {
        Self {
            cx,
            table,
            path,
            at,
            known: Vec::new(),
            broken: false,
        }
    }

    /// The dotted path of a key of this table.
    fn field(&self, key: &str) -> String {
        let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let key = if !key.is_empty() && key.chars().all(bare) {
            key.to_owned()
        } else {
            format!("{key:?}")
        };
        if self.path.is_empty() {
            key
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn get(&mut self, key: &'static str) -> Option<&'c Spanned<DeValue<'c>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table.get(key)
    }

    /// Whether the key is there, whatever it holds.
    pub(super) fn has(&mut self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    fn fault(&mut self, offset: usize, field: String, issue: Issue) {
        self.broken |= issue.severity == Severity::Error;
        self.cx.note(offset, field, issue);
    }

    /// Notes a problem with a key's value, or with the table where the key is not there.
    pub(super) fn issue(&mut self, key: &'static str, issue: Issue) {
        let at = self.get(key).map_or(self.at, |value| value.span().start);
        let field = self.field(key);
        self.fault(at, field, issue);
    }

    /// Notes a problem with the table as a whole.
    pub(super) fn issue_here(&mut self, issue: Issue) {
        let (at, field) = (self.at, self.path.clone());
        self.fault(at, field, issue);
    }

    /// Reads an optional key.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&DeValue<'c>, &Cx<'a>) -> Result<T, Issue>,
    ) -> Option<T> {
        let value = self.get(key)?;
        match read(value.get_ref(), self.cx) {
            Ok(value) => Some(value),
            Err(issue) => {
                self.issue(key, issue);
                None
            }
        }
    }

    /// Reads a key that must be there.
    pub(super) fn require<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&DeValue<'c>, &Cx<'a>) -> Result<T, Issue>,
    ) -> Option<T> {
        if self.has(key) {
            return self.read(key, read);
        }
        let reason = format!("{} cannot be without it", value::described(&self.path));
        self.issue(
            key,
            Issue::error(
                format!("{key:?} is missing"),
                reason,
                format!("Add {key} = {example}."),
            ),
        );
        None
    }

    /// Reads a list; each bad element is reported where it stands.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue<'c>, &Cx<'a>) -> Result<T, Issue>,
    ) -> Option<Vec<T>> {
        let value = self.get(key)?;
        let DeValue::Array(elements) = value.get_ref() else {
            self.issue(
                key,
                value::wrong_type(value.get_ref(), "a list", "Put it in brackets: [ … ]."),
            );
            return None;
        };
        let mut good = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            match read(element.get_ref(), self.cx) {
                Ok(value) => good.push(value),
                Err(issue) => {
                    let field = format!("{}[{index}]", self.field(key));
                    self.fault(element.span().start, field, issue);
                }
            }
        }
        (good.len() == elements.len()).then_some(good)
    }

    /// Reads a table whose keys are the user's own; each bad value is reported where it stands.
    pub(super) fn map<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str, &DeValue<'c>, &Cx<'a>) -> Result<T, Issue>,
    ) -> BTreeMap<String, T> {
        let Some((at, table)) = self.table(key) else {
            return BTreeMap::new();
        };
        let sub = Reader::new(self.cx, table, self.field(key), at);
        let mut good = BTreeMap::new();
        for (name, value) in table {
            match read(name.get_ref(), value.get_ref(), self.cx) {
                Ok(value) => {
                    good.insert(name.get_ref().to_string(), value);
                }
                Err(issue) => self.fault(value.span().start, sub.field(name.get_ref()), issue),
            }
        }
        good
    }

    fn table(&mut self, key: &'static str) -> Option<(usize, &'c DeTable<'c>)> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some((value.span().start, table)),
            other => {
                let remedy = format!("Write it as a table: [{}].", self.field(key));
                self.issue(key, value::wrong_type(other, "a table", &remedy));
                None
            }
        }
    }

    /// Reads a section. `None` where there is none, or where it is no table.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Reader<'c, 'a>) -> T,
    ) -> Option<T> {
        let (at, table) = self.table(key)?;
        let mut sub = Reader::new(self.cx, table, self.field(key), at);
        let value = read(&mut sub);
        sub.finish();
        self.broken |= sub.broken;
        Some(value)
    }

    /// Reads every table of a section whose keys are the user's own, such as `[retry.KIND]`.
    pub(super) fn sections<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&str, &mut Reader<'c, 'a>) -> T,
    ) -> Vec<(String, T)> {
        let Some((at, table)) = self.table(key) else {
            return Vec::new();
        };
        let outer = Reader::new(self.cx, table, self.field(key), at);
        let mut values = Vec::new();
        for (name, value) in table {
            let path = outer.field(name.get_ref());
            match value.get_ref() {
                DeValue::Table(table) => {
                    let mut sub = Reader::new(self.cx, table, path, name.span().start);
                    let value = read(name.get_ref(), &mut sub);
                    sub.finish();
                    self.broken |= sub.broken;
                    values.push((name.get_ref().to_string(), value));
                }
                other => {
                    let remedy = format!("Write it as a table: [{path}].");
                    let issue = value::wrong_type(other, "a table", &remedy);
                    self.fault(value.span().start, path, issue);
                }
            }
        }
        values
    }

    /// Reads every `[[key]]`. An entry in which anything but an unknown key is wrong is dropped: it
    /// is either what its author wrote, or not there.
    pub(super) fn entries<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Reader<'c, 'a>) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let remedy = format!("Write each one as a table of its own: [[{key}]].");
        let DeValue::Array(elements) = value.get_ref() else {
            self.issue(
                key,
                value::wrong_type(value.get_ref(), "a list of tables", &remedy),
            );
            return Vec::new();
        };
        let mut good = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            let path = format!("{}[{index}]", self.field(key));
            let DeValue::Table(table) = element.get_ref() else {
                let issue = value::wrong_type(element.get_ref(), "a table", &remedy);
                self.fault(element.span().start, path, issue);
                continue;
            };
            let mut sub = Reader::new(self.cx, table, path, element.span().start);
            let value = read(&mut sub);
            sub.finish();
            match value {
                Some(value) if !sub.broken => good.push(value),
                _ => self.broken = true,
            }
        }
        good
    }

    /// Notes every key nobody asked for.
    pub(super) fn finish(&self) {
        #[cfg(test)]
        self.cx
            .asked
            .borrow_mut()
            .entry(self.path.clone())
            .or_default()
            .extend(&self.known);
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let (reason, remedy) = match value::nearest(name, self.known.iter().copied()) {
                Some(near) => (
                    format!("did you mean {near:?}?"),
                    format!("Write {near:?}, or remove it."),
                ),
                None => (
                    format!("{} has no such key", value::described(&self.path)),
                    format!("Remove it; the keys are {}.", self.known.join(", ")),
                ),
            };
            let issue = Issue::error(format!("unknown key {name:?}"), reason, remedy);
            self.cx.note(key.span().start, self.field(name), issue);
        }
    }
}
