//! What a strategy says of itself.

use crate::{Capability, Kind, Level};

/// What a strategy says of itself, read once when the component is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metadata {
    /// Letters, digits, `-` and `_`, at most 64 characters.
    pub name: String,
    /// Its own version, as in Semantic Versioning.
    pub version: String,
    /// What it does, in one or two sentences.
    pub description: String,
    /// The level of fallback it works on.
    pub level: Level,
    /// Its place in the order where the configuration names none: higher is asked first.
    pub default_priority: i32,
    /// The kinds of failure it wants to be asked about; empty means every kind.
    pub kinds: Vec<Kind>,
    /// The operations it wants to be asked about, as globs; empty means every operation.
    pub operations: Vec<String>,
    /// What it uses that must be granted.
    pub capabilities: Vec<Capability>,
    /// The JSON Schema (2020-12) of its configuration; empty accepts any object.
    pub config_schema: String,
    /// Anything else: `homepage`, `license`, `authors`.
    pub extra: Vec<(String, String)>,
}

impl Metadata {
    /// A strategy of this name, interested in everything, of priority 0 and level `retry`.
    pub fn new(
        name: impl Into<String>,
        version: impl Into<String>,
        description: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            description: description.into(),
            level: Level::RETRY,
            default_priority: 0,
            kinds: Vec::new(),
            operations: Vec::new(),
            capabilities: Vec::new(),
            config_schema: String::new(),
            extra: Vec::new(),
        }
    }

    /// Sets the level of fallback.
    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// Sets the default priority: higher is asked first. The stock strategies lie between 0
    /// (`fail-fast`) and 100 (`retry`), 20 apart.
    pub fn priority(mut self, priority: i32) -> Self {
        self.default_priority = priority;
        self
    }

    /// Narrows the interest to these kinds: the host asks about no other.
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = Kind>) -> Self {
        self.kinds = kinds.into_iter().collect();
        self
    }

    /// Narrows the interest to operations that match one of these globs (`*`, `?`, `[a-z]`, `{a,b}`).
    pub fn operations<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.operations = patterns.into_iter().map(Into::into).collect();
        self
    }

    /// Names what it uses that must be granted.
    pub fn capabilities(mut self, capabilities: impl IntoIterator<Item = Capability>) -> Self {
        self.capabilities = capabilities.into_iter().collect();
        self
    }

    /// Sets the JSON Schema of the configuration. The host refuses a configuration that does not fit
    /// before it reaches `configure`.
    pub fn config_schema(mut self, schema: impl Into<String>) -> Self {
        self.config_schema = schema.into();
        self
    }

    /// Adds anything else by name.
    pub fn extra(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.extra.push((key.into(), value.into()));
        self
    }
}
