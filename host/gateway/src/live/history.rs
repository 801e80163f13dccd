//! The versions that were applied.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

/// Versions remembered, the one in force included.
const REMEMBERED: usize = 50;
/// Bytes of their texts together; the one in force is remembered whatever it has.
const REMEMBERED_BYTES: usize = 8 << 20;

/// Where a version comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Origin {
    /// The file.
    File,
    /// An operator's hand, while the program runs.
    Operator,
    /// An earlier version.
    Rollback(u64),
}

/// A version of the configuration that was applied.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Version {
    /// Counts from 1, the version the program started with.
    pub number: u64,
    /// The SHA-256 of its text, in hexadecimal.
    pub digest: String,
    /// When, by the wall clock.
    #[serde(serialize_with = "as_unix_millis")]
    pub applied_at: SystemTime,
    /// Where it comes from.
    pub origin: Origin,
    /// What it changed of the version before, one line each.
    pub changes: Vec<String>,
    /// What of it holds only when the program is started again.
    pub needs_restart: Vec<String>,
    /// Its text. It is left out where a version is serialised: it may hold what only its readers are to
    /// see.
    #[serde(skip)]
    pub text: Arc<str>,
}

fn as_unix_millis<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    serializer.serialize_u64(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// The versions that are remembered, the one in force last; there is always that one.
#[derive(Debug)]
pub(super) struct History {
    earlier: VecDeque<Arc<Version>>,
    newest: Arc<Version>,
}

impl History {
    pub(super) fn new(first: Version) -> Self {
        Self {
            earlier: VecDeque::new(),
            newest: Arc::new(first),
        }
    }

    pub(super) fn newest(&self) -> &Arc<Version> {
        &self.newest
    }

    pub(super) fn add(&mut self, version: Version) -> Arc<Version> {
        let before = std::mem::replace(&mut self.newest, Arc::new(version));
        self.earlier.push_back(before);
        let bytes = |history: &Self| -> usize {
            let all = history.earlier.iter().chain([&history.newest]);
            all.map(|version| version.text.len()).sum()
        };
        while self.earlier.len() >= REMEMBERED
            || !self.earlier.is_empty() && bytes(self) > REMEMBERED_BYTES
        {
            self.earlier.pop_front();
        }
        self.newest.clone()
    }

    pub(super) fn get(&self, number: u64) -> Option<&Arc<Version>> {
        let mut all = self.earlier.iter().chain([&self.newest]);
        all.find(|version| version.number == number)
    }

    /// The numbers of the first and the last that are remembered.
    pub(super) fn range(&self) -> (u64, u64) {
        let oldest = self.earlier.front().unwrap_or(&self.newest);
        (oldest.number, self.newest.number)
    }

    pub(super) fn all(&self) -> Vec<Arc<Version>> {
        let all = self.earlier.iter().chain([&self.newest]);
        all.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: u64, bytes: usize) -> Version {
        Version {
            number,
            digest: String::new(),
            applied_at: SystemTime::now(),
            origin: Origin::File,
            changes: Vec::new(),
            needs_restart: Vec::new(),
            text: "x".repeat(bytes).into(),
        }
    }

    #[test]
    fn the_newest_are_remembered_by_number_and_by_size() {
        let mut history = History::new(version(1, 1));
        for number in 2..=120 {
            history.add(version(number, 1));
        }
        assert_eq!((history.all().len(), history.range()), (50, (71, 120)));
        assert!(history.get(70).is_none() && history.get(71).is_some());
        history.add(version(121, REMEMBERED_BYTES + 1));
        assert_eq!(history.range(), (121, 121), "the one in force always is");
    }
}
