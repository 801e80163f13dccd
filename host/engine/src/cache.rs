//! Last known good answers.
//!
//! Results of MCP tools have no time to live, so answering from an earlier one is an explicit
//! policy: nothing is kept unless a cache is configured, nothing is given back unless a strategy
//! proposes it, and it is always labelled stale, with its age. An answer that is not marked as
//! shared goes back only to the caller it was given to, and is not kept for a caller who is not known.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::call::Level;
use crate::canonical::canonical;
use crate::exchange::Retained;
use crate::strategy::KnownGood;

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Answers at most. Default: 10 000.
    pub max_entries: usize,
    /// Bytes of all keys and answers together at most. Default: 64 MiB.
    pub max_bytes: u64,
    /// Bytes of one answer at most; a larger one is not kept. Default: 1 MiB.
    pub max_answer_bytes: usize,
    /// The age past which an answer is not given back. Default: 24 hours.
    pub max_age: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            max_entries: 10_000,
            max_bytes: 64 << 20,
            max_answer_bytes: 1 << 20,
            max_age: Duration::from_secs(24 * 3600),
        }
    }
}

/// What an answer was the answer to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey {
    level: Level,
    group: Arc<str>,
    operation: Arc<str>,
    arguments: Bytes,
}

impl CacheKey {
    /// The key of an operation with these arguments, in whatever order they are written.
    pub(crate) fn new(
        level: Level,
        group: Arc<str>,
        operation: Arc<str>,
        arguments: Option<&[u8]>,
    ) -> Self {
        Self {
            level,
            group,
            operation,
            arguments: arguments.map(canonical).unwrap_or_default(),
        }
    }
}

/// No age beyond ten years: adding it to any instant cannot overflow.
const MAX_AGE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

type ScopedKey = (CacheKey, Option<Arc<str>>);

#[derive(Debug, Clone)]
struct Kept {
    at: Instant,
    until: Instant,
    target: Arc<str>,
    body: Bytes,
}

#[derive(Debug, Clone)]
struct BySize;

impl Weighter<ScopedKey, Kept> for BySize {
    fn weight(&self, key: &ScopedKey, kept: &Kept) -> u64 {
        let (key, caller) = key;
        let caller = caller.as_ref().map_or(0, |caller| caller.len());
        (key.group.len() + key.operation.len() + key.arguments.len() + caller + kept.body.len())
            as u64
    }
}

/// The store of last known good answers. Bounded in entries and bytes; the least used go first.
#[derive(Debug)]
pub(crate) struct LastKnownGood {
    limits: CacheLimits,
    kept: Cache<ScopedKey, Kept, BySize>,
}

impl LastKnownGood {
    /// An empty store.
    pub(crate) fn new(limits: CacheLimits) -> Self {
        Self {
            kept: Cache::with_weighter(limits.max_entries, limits.max_bytes, BySize),
            limits,
        }
    }

    pub(crate) fn limits(&self) -> CacheLimits {
        self.limits
    }

    /// A store with other limits, that has what this one keeps as far as they hold it.
    pub(crate) fn within(&self, limits: CacheLimits) -> Self {
        let other = Self::new(limits);
        for (key, mut kept) in self.kept.iter() {
            if kept.body.len() <= limits.max_answer_bytes {
                kept.until = kept.until.min(kept.at + limits.max_age.min(MAX_AGE));
                other.kept.insert(key, kept);
            }
        }
        other
    }

    /// Keeps an answer.
    pub(crate) fn keep(
        &self,
        key: CacheKey,
        caller: Option<Arc<str>>,
        target: Arc<str>,
        retained: Retained,
        now: Instant,
    ) {
        if retained.body.len() > self.limits.max_answer_bytes {
            return;
        }
        let ttl = retained
            .ttl
            .unwrap_or(self.limits.max_age)
            .min(self.limits.max_age)
            .min(MAX_AGE);
        let scope = match (retained.shared, caller) {
            (true, _) => None,
            (false, Some(caller)) => Some(caller),
            // Nobody it could be given back to.
            (false, None) => return,
        };
        self.kept.insert(
            (key, scope),
            Kept {
                at: now,
                until: now + ttl,
                target,
                body: retained.body,
            },
        );
    }

    /// The caller's own last good answer, else the last shared one.
    pub(crate) fn find(
        &self,
        key: CacheKey,
        caller: Option<&Arc<str>>,
        now: Instant,
    ) -> Option<KnownGood> {
        let mut scoped = (key, caller.cloned());
        let mut kept = None;
        if scoped.1.is_some() {
            kept = self.kept.get(&scoped).filter(|kept| now < kept.until);
            scoped.1 = None;
        }
        let shared = self.kept.get(&scoped).filter(|kept| now < kept.until);
        if let Some(shared) = shared
            && kept.as_ref().is_none_or(|own| own.at < shared.at)
        {
            kept = Some(shared);
        }
        let kept = kept?;
        Some(KnownGood {
            age: now.saturating_duration_since(kept.at),
            target: kept.target,
            body: kept.body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(arguments: &str) -> CacheKey {
        CacheKey::new(
            Level::Tool,
            "g".into(),
            "op".into(),
            Some(arguments.as_bytes()),
        )
    }

    fn answer(body: &'static str, shared: bool) -> Retained {
        Retained {
            body: Bytes::from_static(body.as_bytes()),
            shared,
            ttl: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_private_answer_never_crosses_callers() {
        let store = LastKnownGood::new(CacheLimits::default());
        let (alice, bob): (Arc<str>, Arc<str>) = ("alice".into(), "bob".into());
        store.keep(
            key("{}"),
            Some(alice.clone()),
            "t".into(),
            answer("1", false),
            Instant::now(),
        );
        assert!(
            store
                .find(key("{}"), Some(&alice), Instant::now())
                .is_some()
        );
        assert!(store.find(key("{}"), Some(&bob), Instant::now()).is_none());
        assert!(store.find(key("{}"), None, Instant::now()).is_none());
        store.keep(
            key("{}"),
            Some(alice),
            "t".into(),
            answer("2", true),
            Instant::now(),
        );
        assert_eq!(
            store
                .find(key("{}"), Some(&bob), Instant::now())
                .unwrap()
                .body,
            "2"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_tool_and_a_prompt_of_one_name_are_two_things() {
        let store = LastKnownGood::new(CacheLimits::default());
        let now = Instant::now();
        store.keep(key("{}"), None, "t".into(), answer("1", true), now);
        let prompt = CacheKey::new(Level::Prompt, "g".into(), "op".into(), Some(b"{}"));
        assert!(store.find(prompt, None, now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_private_is_kept_for_a_caller_nobody_knows() {
        let store = LastKnownGood::new(CacheLimits::default());
        let (now, private) = (Instant::now(), answer("1", false));
        store.keep(key("{}"), None, "t".into(), private, now);
        assert!(store.find(key("{}"), None, now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_carries_its_age_and_ends() {
        let store = LastKnownGood::new(CacheLimits {
            max_age: Duration::from_secs(60),
            ..CacheLimits::default()
        });
        store.keep(
            key(r#"{"a":1,"b":2}"#),
            None,
            "t".into(),
            answer("1", true),
            Instant::now(),
        );
        tokio::time::advance(Duration::from_secs(59)).await;
        let known = store
            .find(key(r#"{"b":2, "a":1}"#), None, Instant::now())
            .unwrap();
        assert_eq!(known.age, Duration::from_secs(59));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(
            store
                .find(key(r#"{"a":1,"b":2}"#), None, Instant::now())
                .is_none()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_giant_answer_is_not_kept() {
        let store = LastKnownGood::new(CacheLimits {
            max_answer_bytes: 3,
            ..CacheLimits::default()
        });
        store.keep(
            key("{}"),
            None,
            "t".into(),
            answer("four", true),
            Instant::now(),
        );
        assert!(store.find(key("{}"), None, Instant::now()).is_none());
    }
}
