//! The state of a strategy: a key/value store of its own, shared by its instances.
//!
//! It is always served from memory, so that a strategy never waits for a disk. Where the operator
//! names a folder for it ([`StateStore`](super::StateStore)), what has changed is written there a
//! little later, and found again after a restart.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::state_store::StateStore;

/// Bytes an entry costs beyond its key and its value, so that a million empty entries are not free.
const ENTRY_BYTES: usize = 64;

/// Why the state did not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum StateError {
    /// The write would exceed this many bytes.
    #[error("it would exceed the quota of {0} bytes")]
    Quota(usize),
    /// The value is not a decimal number.
    #[error("a value is not a number")]
    NotANumber,
}

/// The store of one strategy.
#[derive(Debug)]
pub(super) struct State {
    quota: usize,
    value_limit: usize,
    entries: Shelf,
    journal: Option<Journal>,
}

/// Entries, as their strategy and whoever writes them down share them.
pub(super) type Shelf = Arc<Mutex<Entries>>;

pub(super) fn lock(entries: &Mutex<Entries>) -> MutexGuard<'_, Entries> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whoever writes a strategy's entries down.
#[derive(Debug)]
struct Journal {
    store: StateStore,
    strategy: Arc<str>,
}

#[derive(Debug, Default)]
pub(super) struct Entries {
    by_key: HashMap<String, Entry>,
    used: usize,
    /// Keys that are to be written down; empty where nobody does.
    changed: HashSet<String>,
    keeps_changes: bool,
}

/// An entry as it is written down: its value and the Unix time in milliseconds at which it ends.
/// `None`: it is gone.
pub(super) type Written = Option<(Option<u64>, Vec<u8>)>;
/// An entry that was written down before: its key, the end of its time, its value.
pub(super) type Found = (String, Option<u64>, Vec<u8>);

#[derive(Debug)]
struct Entry {
    value: Vec<u8>,
    expires: Option<Instant>,
}

impl Entry {
    fn is_past(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

fn cost(key: &str, value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_BYTES
}

impl Entries {
    /// Entries that were written down before, without those whose time has passed since.
    pub(super) fn restored(written: impl IntoIterator<Item = Found>) -> Self {
        let (now, today) = (Instant::now(), unix_millis());
        let mut entries = Self {
            keeps_changes: true,
            ..Self::default()
        };
        for (key, until, value) in written {
            if until.is_some_and(|until| until <= today) {
                entries.changed.insert(key);
                continue;
            }
            let expires = until.and_then(|until| {
                now.checked_add(Duration::from_millis(until.saturating_sub(today)))
            });
            entries.used += cost(&key, &value);
            entries.by_key.insert(key, Entry { value, expires });
        }
        entries
    }

    /// What has changed since this was last asked, as it is now.
    pub(super) fn take_changes(&mut self) -> Vec<(String, Written)> {
        let (now, today) = (Instant::now(), unix_millis());
        let changed = std::mem::take(&mut self.changed);
        let written = |key: &str| {
            let entry = self.by_key.get(key).filter(|entry| !entry.is_past(now))?;
            let until = entry.expires.map(|expires| {
                let left = expires.saturating_duration_since(now).as_millis();
                today.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
            });
            Some((until, entry.value.clone()))
        };
        changed
            .into_iter()
            .map(|key| {
                let written = written(&key);
                (key, written)
            })
            .collect()
    }

    /// Says that these were not written down after all.
    pub(super) fn keep_changes(&mut self, keys: impl IntoIterator<Item = String>) {
        self.changed.extend(keys);
    }

    fn note(&mut self, key: &str) {
        if self.keeps_changes && !self.changed.contains(key) {
            self.changed.insert(key.to_owned());
        }
    }

    fn remove(&mut self, key: &str) -> Option<Entry> {
        let entry = self.by_key.remove(key)?;
        self.used -= cost(key, &entry.value);
        self.note(key);
        Some(entry)
    }

    fn live(&mut self, key: &str, now: Instant) -> Option<&mut Entry> {
        if self.by_key.get(key).is_some_and(|entry| entry.is_past(now)) {
            self.remove(key);
        }
        self.by_key.get_mut(key)
    }

    fn put(
        &mut self,
        quota: usize,
        key: &str,
        entry: Entry,
        now: Instant,
    ) -> Result<(), StateError> {
        let freed = self.by_key.get(key).map_or(0, |old| cost(key, &old.value));
        let added = cost(key, &entry.value);
        if self.used - freed + added > quota {
            self.sweep(key, now);
            if self.used - freed + added > quota {
                return Err(StateError::Quota(quota));
            }
        }
        self.used = self.used - freed + added;
        self.by_key.insert(key.to_owned(), entry);
        self.note(key);
        Ok(())
    }

    /// Drops what is past its time, but for the entry under `keep`, which is about to be replaced.
    fn sweep(&mut self, keep: &str, now: Instant) {
        let past = |(key, entry): (&String, &Entry)| {
            (key != keep && entry.is_past(now)).then(|| key.clone())
        };
        let past: Vec<_> = self.by_key.iter().filter_map(past).collect();
        for key in past {
            self.remove(&key);
        }
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The moment a time to live ends; a time too long to be represented never does.
fn expiry(now: Instant, ttl: Option<u64>) -> Option<Instant> {
    ttl.and_then(|ttl| now.checked_add(Duration::from_millis(ttl)))
}

impl State {
    /// An empty one, in memory alone.
    pub(super) fn new(quota: usize, value_limit: usize) -> Self {
        Self {
            quota,
            value_limit,
            entries: Shelf::default(),
            journal: None,
        }
    }

    /// One whose changes a store writes down, under this name.
    pub(super) fn kept(
        quota: usize,
        value_limit: usize,
        entries: Shelf,
        store: StateStore,
        strategy: Arc<str>,
    ) -> Self {
        Self {
            quota,
            value_limit,
            entries,
            journal: Some(Journal { store, strategy }),
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        lock(&self.entries)
    }

    /// Changes the entries, and tells whoever writes them down if there was nothing to write before.
    fn change<R>(&self, change: impl FnOnce(&mut Entries) -> R) -> R {
        let mut entries = self.entries();
        let is_told = !entries.changed.is_empty();
        let result = change(&mut entries);
        let is_new = !is_told && !entries.changed.is_empty();
        drop(entries);
        if let (true, Some(journal)) = (is_new, &self.journal) {
            journal
                .store
                .write_down(journal.strategy.clone(), self.entries.clone());
        }
        result
    }

    /// Every live entry, by key.
    pub(super) fn list(&self) -> Vec<(String, Vec<u8>)> {
        let now = Instant::now();
        let entries = self.entries();
        let live = entries
            .by_key
            .iter()
            .filter(|(_, entry)| !entry.is_past(now));
        let mut list: Vec<_> = live
            .map(|(key, entry)| (key.clone(), entry.value.clone()))
            .collect();
        list.sort();
        list
    }

    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.change(|entries| {
            let entry = entries.live(key, Instant::now())?;
            Some(entry.value.clone())
        })
    }

    pub(super) fn set(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Option<u64>,
    ) -> Result<(), StateError> {
        if value.len() > self.value_limit {
            return Err(StateError::Quota(self.value_limit));
        }
        let now = Instant::now();
        let expires = expiry(now, ttl);
        self.change(|entries| entries.put(self.quota, key, Entry { value, expires }, now))
    }

    pub(super) fn delete(&self, key: &str) -> bool {
        self.change(|entries| {
            entries.live(key, Instant::now()).is_some() && entries.remove(key).is_some()
        })
    }

    pub(super) fn increment(
        &self,
        key: &str,
        by: i64,
        ttl: Option<u64>,
    ) -> Result<i64, StateError> {
        let now = Instant::now();
        self.change(|entries| {
            let (old, expires) = match entries.live(key, now) {
                None => (0, expiry(now, ttl)),
                Some(entry) => {
                    let text = std::str::from_utf8(&entry.value).ok();
                    let number = text.and_then(|text| text.parse::<i64>().ok());
                    (number.ok_or(StateError::NotANumber)?, entry.expires)
                }
            };
            let sum = old.saturating_add(by);
            let value = sum.to_string().into_bytes();
            entries.put(self.quota, key, Entry { value, expires }, now)?;
            Ok(sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_increment_starts_at_zero_saturates_and_keeps_its_first_time_to_live() {
        let state = State::new(1 << 10, 100);
        assert_eq!(state.increment("n", 2, Some(1_000)), Ok(2));
        tokio::time::advance(Duration::from_millis(900)).await;
        assert_eq!(state.increment("n", i64::MAX, Some(1_000)), Ok(i64::MAX));
        assert_eq!(state.get("n"), Some(i64::MAX.to_string().into_bytes()));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(state.get("n"), None);
        assert_eq!(state.increment("n", -1, None), Ok(-1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_quota_counts_keys_values_and_entries_and_what_is_past_its_time_makes_room() {
        let state = State::new(200, 100);
        assert_eq!(
            state.set("a", vec![0; 101], None),
            Err(StateError::Quota(100))
        );
        assert_eq!(state.set("a", vec![0; 50], Some(10)), Ok(()));
        assert_eq!(
            state.set("b", vec![0; 50], None),
            Err(StateError::Quota(200))
        );
        assert_eq!(
            state.set("a", vec![0; 100], Some(10)),
            Ok(()),
            "a replaced value frees its own"
        );
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(state.set("b", vec![0; 100], None), Ok(()));
        assert!(!state.delete("a"));
        assert!(state.delete("b"));
        assert_eq!(state.entries().used, 0);
    }

    #[test]
    fn text_that_is_no_number_is_not_incremented() {
        let state = State::new(1 << 10, 100);
        state.set("n", b"ten".to_vec(), None).unwrap();
        assert_eq!(state.increment("n", 1, None), Err(StateError::NotANumber));
        assert_eq!(state.get("n"), Some(b"ten".to_vec()));
    }
}
