//! What a strategy says of itself, checked once at load.

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::kind::Kind;

/// What a strategy says of itself. Mirrors the contract's `metadata` record.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct StrategyInfo {
    /// Letters, digits, `-` and `_`, at most 64 characters.
    pub name: String,
    /// Its own version, as in Semantic Versioning.
    pub version: String,
    /// What it does, in one or two sentences.
    pub description: String,
    /// `retry`, `service`, `model`, `operation`, `data`, `fail-fast`, or a word of its own.
    pub level: String,
    /// Its place in the order where nothing else names one: higher is asked first.
    pub default_priority: i32,
    /// Kinds it wants to be asked about; empty means every kind.
    pub kinds: Vec<Kind>,
    /// Operations it wants to be asked about, as globs; empty means every operation.
    pub operations: Vec<String>,
    /// Capabilities it uses that must be granted: `folder`, `state`.
    pub capabilities: Vec<String>,
    /// The JSON Schema of its configuration, as text; empty accepts any object.
    pub config_schema: String,
    /// Anything else.
    pub extra: Vec<(String, String)>,
}

impl StrategyInfo {
    /// A strategy of this name and level, interested in everything.
    pub fn new(name: impl Into<String>, level: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: "0.0.0".into(),
            description: String::new(),
            level: level.into(),
            default_priority: 0,
            kinds: Vec::new(),
            operations: Vec::new(),
            capabilities: Vec::new(),
            config_schema: String::new(),
            extra: Vec::new(),
        }
    }

    /// Sets the default priority.
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.default_priority = priority;
        self
    }

    /// Narrows the interest to these kinds.
    pub fn with_kinds(mut self, kinds: impl IntoIterator<Item = Kind>) -> Self {
        self.kinds = kinds.into_iter().collect();
        self
    }

    /// Checks the name and compiles the interest.
    ///
    /// # Errors
    /// [`InfoError::Name`] if the name is empty, longer than 64 characters or has a character that is
    /// not a letter, a digit, `-` or `_`; [`InfoError::Glob`] if an operation pattern is no glob.
    pub fn interest(&self) -> Result<Interest, InfoError> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(good) {
            return Err(InfoError::Name(self.name.chars().take(80).collect()));
        }
        let operations = if self.operations.is_empty() {
            None
        } else {
            let mut set = GlobSetBuilder::new();
            for pattern in &self.operations {
                set.add(Glob::new(pattern).map_err(|source| InfoError::Glob {
                    pattern: pattern.clone(),
                    source,
                })?);
            }
            Some(set.build().map_err(|source| InfoError::Glob {
                pattern: self.operations.join(", "),
                source,
            })?)
        };
        Ok(Interest {
            kinds: self.kinds.clone(),
            operations,
        })
    }
}

/// What a strategy wants to be asked about, ready to be matched.
#[derive(Debug, Clone)]
pub struct Interest {
    kinds: Vec<Kind>,
    operations: Option<GlobSet>,
}

impl Interest {
    /// Whether a failure of this kind in this operation is of interest.
    pub fn matches(&self, kind: &Kind, operation: &str) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(kind))
            && self
                .operations
                .as_ref()
                .is_none_or(|set| set.is_match(operation))
    }
}

/// Why what a strategy says of itself is not acceptable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InfoError {
    /// The name.
    #[error("the strategy name {0:?} is not 1 to 64 letters, digits, `-` or `_`")]
    Name(String),
    /// An operation pattern.
    #[error("the operation pattern {pattern:?} is not a glob")]
    Glob {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        #[source]
        source: globset::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interest_is_by_kind_and_operation_and_empty_means_all() {
        let mut info = StrategyInfo::new("s", "retry");
        assert!(info.interest().unwrap().matches(&Kind::UNKNOWN, "anything"));
        info.kinds = vec![Kind::TIMEOUT_ERROR];
        info.operations = vec!["search_*".into()];
        let interest = info.interest().unwrap();
        assert!(interest.matches(&Kind::TIMEOUT_ERROR, "search_web"));
        assert!(!interest.matches(&Kind::TIMEOUT_ERROR, "delete"));
        assert!(!interest.matches(&Kind::UNKNOWN, "search_web"));
    }

    #[test]
    fn a_bad_name_or_pattern_is_refused_with_its_text() {
        assert!(
            StrategyInfo::new("a b", "x")
                .interest()
                .unwrap_err()
                .to_string()
                .contains("\"a b\"")
        );
        let mut info = StrategyInfo::new("s", "x");
        info.operations = vec!["[".into()];
        assert!(info.interest().unwrap_err().to_string().contains("\"[\""));
    }
}
