//! The state of a strategy: a key/value store of its own, in memory, shared by its instances.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

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
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<String, Entry>,
    used: usize,
}

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
    fn remove(&mut self, key: &str) -> Option<Entry> {
        let entry = self.by_key.remove(key)?;
        self.used -= cost(key, &entry.value);
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
        Ok(())
    }

    /// Drops what is past its time, but for the entry under `keep`, which is about to be replaced.
    fn sweep(&mut self, keep: &str, now: Instant) {
        let mut freed = 0;
        self.by_key.retain(|key, entry| {
            let stays = key == keep || !entry.is_past(now);
            if !stays {
                freed += cost(key, &entry.value);
            }
            stays
        });
        self.used -= freed;
    }
}

/// The moment a time to live ends; a time too long to be represented never does.
fn expiry(now: Instant, ttl: Option<u64>) -> Option<Instant> {
    ttl.and_then(|ttl| now.checked_add(Duration::from_millis(ttl)))
}

impl State {
    pub(super) fn new(quota: usize, value_limit: usize) -> Self {
        Self {
            quota,
            value_limit,
            entries: Mutex::default(),
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.entries()
            .live(key, Instant::now())
            .map(|entry| entry.value.clone())
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
        self.entries().put(
            self.quota,
            key,
            Entry {
                value,
                expires: expiry(now, ttl),
            },
            now,
        )
    }

    pub(super) fn delete(&self, key: &str) -> bool {
        let mut entries = self.entries();
        entries.live(key, Instant::now()).is_some() && entries.remove(key).is_some()
    }

    pub(super) fn increment(
        &self,
        key: &str,
        by: i64,
        ttl: Option<u64>,
    ) -> Result<i64, StateError> {
        let now = Instant::now();
        let mut entries = self.entries();
        let (old, expires) = match entries.live(key, now) {
            None => (0, expiry(now, ttl)),
            Some(entry) => {
                let text = std::str::from_utf8(&entry.value).map_err(|_| StateError::NotANumber)?;
                (
                    text.parse::<i64>().map_err(|_| StateError::NotANumber)?,
                    entry.expires,
                )
            }
        };
        let sum = old.saturating_add(by);
        let value = sum.to_string().into_bytes();
        entries.put(self.quota, key, Entry { value, expires }, now)?;
        Ok(sum)
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
