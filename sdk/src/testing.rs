//! Running a strategy natively, without a sandbox: what unit tests are written with.
//!
//! [`Tester`] does what the host does around a strategy: it checks the configuration against the
//! schema, configures, asks the condition, then the action, and heeds the declared interest in kinds.
//! [`FakeHost`] is the host it talks to. A test that runs the built component belongs beside these.
//!
//! ```
//! use backstop_sdk::prelude::*;
//! use backstop_sdk::testing::FakeHost;
//!
//! let host = FakeHost::new()
//!     .operation("search_web")
//!     .target(Target { present: true, tried: true, ..Target::service("a") })
//!     .target(Target::service("b"));
//! assert_eq!(host.best_target(None).as_deref(), Some("b"));
//! ```

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::log::LogLevel;
use crate::strategy::configured;
use crate::{
    Attempt, Decision, Failure, FolderError, Host, KnownGood, Metadata, Setup, StateError,
    Strategy, Target, TargetKind,
};

/// A strategy, configured, with what it said of itself.
#[derive(Debug)]
pub struct Tester<S> {
    /// The strategy.
    pub strategy: S,
    /// What it says of itself.
    pub metadata: Metadata,
    /// What it declared while it was configured.
    pub setup: Setup,
}

impl<S: Strategy> Tester<S> {
    /// Checks this configuration (JSON) against the strategy's schema, and configures the strategy.
    ///
    /// # Errors
    /// What an operator would be told: the schema is no schema, the configuration does not fit it,
    /// or the strategy refuses it.
    pub fn new(config: &str) -> Result<Self, String> {
        let metadata = S::metadata();
        if !metadata.config_schema.is_empty() {
            let instance: Value =
                serde_json::from_str(config).map_err(|error| error.to_string())?;
            let schema: Value = serde_json::from_str(&metadata.config_schema)
                .map_err(|error| format!("the schema is no JSON: {error}"))?;
            let validator = jsonschema::validator_for(&schema)
                .map_err(|error| format!("the schema is no JSON Schema: {error}"))?;
            validator
                .validate(&instance)
                .map_err(|error| format!("{}: {error}", error.instance_path()))?;
        }
        let mut setup = Setup::default();
        let strategy = configured(config, &mut setup)?;
        Ok(Self {
            strategy,
            metadata,
            setup,
        })
    }

    /// What the strategy decides about a failure; `None` where the failure's kind is none of its
    /// declared kinds or its condition says no. Operation patterns are the host's to match.
    pub fn decide(&self, failure: &Failure, host: &FakeHost) -> Option<Decision> {
        let interested =
            self.metadata.kinds.is_empty() || self.metadata.kinds.contains(&failure.kind);
        (interested && self.strategy.condition(failure, host))
            .then(|| self.strategy.action(failure, host))
    }
}

/// A host of which every answer is set beforehand, and which notes what it is told.
#[derive(Debug, Default)]
pub struct FakeHost {
    operation: String,
    level: String,
    group: String,
    message: String,
    arguments: Option<String>,
    details: HashMap<String, String>,
    targets: Vec<Target>,
    attributes: HashMap<(String, String), String>,
    attempts: Vec<Attempt>,
    next_delay: Option<Duration>,
    known_good: Option<(KnownGood, String)>,
    files: Option<HashMap<String, Vec<u8>>>,
    state: Option<RefCell<HashMap<String, Entry>>>,
    now: Cell<Duration>,
    random: Cell<u64>,
    logs: RefCell<Vec<(LogLevel, String)>>,
}

#[derive(Debug)]
struct Entry {
    value: Vec<u8>,
    expires: Option<Duration>,
}

impl FakeHost {
    /// A host with a call of tool `operation` in group `default`, no targets, nothing granted, and
    /// the clocks at 0.
    pub fn new() -> Self {
        Self {
            operation: "operation".into(),
            level: "tool".into(),
            group: "default".into(),
            ..Self::default()
        }
    }

    /// Sets the present operation.
    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.operation = operation.into();
        self
    }

    /// Sets what is called: `tool`, `resource`, `prompt`, `model`.
    pub fn level(mut self, level: impl Into<String>) -> Self {
        self.level = level.into();
        self
    }

    /// Sets the group.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = group.into();
        self
    }

    /// Sets the failure's message.
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// Sets the present arguments, JSON as text.
    pub fn arguments(mut self, json: impl Into<String>) -> Self {
        self.arguments = Some(json.into());
        self
    }

    /// Sets a detail of the call.
    pub fn detail(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.details.insert(key.into(), value.into());
        self
    }

    /// Adds a target.
    pub fn target(mut self, target: Target) -> Self {
        self.targets.push(target);
        // As the contract has it: best priority first.
        self.targets.sort_by_key(|target| Reverse(target.priority));
        self
    }

    /// Sets an attribute of a target.
    pub fn attribute(mut self, target: &str, key: &str, value: impl Into<String>) -> Self {
        self.attributes
            .insert((target.into(), key.into()), value.into());
        self
    }

    /// Adds an attempt, after the earlier ones.
    pub fn attempt(mut self, attempt: Attempt) -> Self {
        self.attempts.push(attempt);
        self
    }

    /// Sets what the retry policy prescribes.
    pub fn next_delay(mut self, delay: Duration) -> Self {
        self.next_delay = Some(delay);
        self
    }

    /// Sets the last known good answer: its age, the target that gave it, and its body as JSON.
    pub fn last_known_good(
        mut self,
        age: Duration,
        target: impl Into<String>,
        body: impl Into<String>,
    ) -> Self {
        let (target, body) = (target.into(), body.into());
        self.known_good = Some((
            KnownGood {
                age,
                size: body.len() as u64,
                target,
            },
            body,
        ));
        self
    }

    /// Grants a folder, with no file in it yet.
    pub fn folder(mut self) -> Self {
        self.files.get_or_insert_default();
        self
    }

    /// Grants a folder and puts a file into it.
    pub fn file(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.files
            .get_or_insert_default()
            .insert(path.into(), content.into());
        self
    }

    /// Grants the state, which starts empty.
    pub fn state(mut self) -> Self {
        self.state.get_or_insert_default();
        self
    }

    /// Sets both clocks: the time since the Unix epoch, and since the arbitrary start.
    pub fn at(self, time: Duration) -> Self {
        self.now.set(time);
        self
    }

    /// Sets the next random number. Each later one is drawn from it by SplitMix64.
    pub fn seeded(self, first: u64) -> Self {
        self.random.set(first);
        self
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.now.set(self.now.get() + time);
    }

    /// The log lines written so far.
    pub fn logs(&self) -> Vec<(LogLevel, String)> {
        self.logs.borrow().clone()
    }
}

impl crate::host::sealed::Sealed for FakeHost {}

impl Host for FakeHost {
    fn log(&self, level: LogLevel, message: &str) {
        self.logs.borrow_mut().push((level, message.to_owned()));
    }

    fn monotonic(&self) -> Duration {
        self.now.get()
    }
    fn wall_clock(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.now.get()
    }
    fn random(&self) -> u64 {
        let drawn = self.random.get();
        let mut next = drawn.wrapping_add(0x9e37_79b9_7f4a_7c15);
        next = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        next = (next ^ (next >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.random.set(next ^ (next >> 31));
        drawn
    }

    fn call_id(&self) -> String {
        "c000001".into()
    }
    fn operation(&self) -> String {
        self.operation.clone()
    }
    fn level(&self) -> String {
        self.level.clone()
    }
    fn group(&self) -> String {
        self.group.clone()
    }
    fn target(&self) -> String {
        self.targets
            .iter()
            .find(|target| target.present)
            .map(|target| target.name.clone())
            .unwrap_or_default()
    }
    fn message(&self) -> String {
        self.message.clone()
    }
    fn arguments(&self) -> Option<String> {
        self.arguments.clone()
    }
    fn detail(&self, key: &str) -> Option<String> {
        self.details.get(key).cloned()
    }

    fn targets(&self) -> Vec<Target> {
        self.targets.clone()
    }
    fn best_target(&self, kind: Option<&TargetKind>) -> Option<String> {
        let host: &dyn Host = self;
        let fits = |target: &Target| kind.is_none_or(|kind| target.kind == *kind);
        host.candidates()
            .into_iter()
            .find(fits)
            .map(|target| target.name)
    }
    fn target_attribute(&self, target: &str, key: &str) -> Option<String> {
        self.attributes
            .get(&(target.to_owned(), key.to_owned()))
            .cloned()
    }

    fn attempts(&self) -> Vec<Attempt> {
        self.attempts.clone()
    }

    fn next_delay(&self) -> Option<Duration> {
        self.next_delay
    }

    fn last_known_good(&self) -> Option<KnownGood> {
        self.known_good.as_ref().map(|(entry, _)| entry.clone())
    }
    fn last_known_good_body(&self) -> Option<String> {
        self.known_good.as_ref().map(|(_, body)| body.clone())
    }

    fn read_file(&self, path: &str) -> Result<Vec<u8>, FolderError> {
        let files = self.files.as_ref().ok_or(FolderError::NotGranted)?;
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(FolderError::Forbidden);
        }
        files.get(path).cloned().ok_or(FolderError::NotFound)
    }

    fn state_get(&self, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        let state = self.state.as_ref().ok_or(StateError::NotGranted)?.borrow();
        Ok(state
            .get(key)
            .filter(|entry| entry.lives(self.now.get()))
            .map(|entry| entry.value.clone()))
    }
    fn state_set(&self, key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), StateError> {
        let expires = ttl.map(|ttl| self.now.get() + ttl);
        let mut state = self
            .state
            .as_ref()
            .ok_or(StateError::NotGranted)?
            .borrow_mut();
        state.insert(
            key.to_owned(),
            Entry {
                value: value.to_vec(),
                expires,
            },
        );
        Ok(())
    }
    fn state_delete(&self, key: &str) -> Result<bool, StateError> {
        let now = self.now.get();
        let mut state = self
            .state
            .as_ref()
            .ok_or(StateError::NotGranted)?
            .borrow_mut();
        Ok(state.remove(key).is_some_and(|entry| entry.lives(now)))
    }
    fn state_increment(
        &self,
        key: &str,
        by: i64,
        ttl: Option<Duration>,
    ) -> Result<i64, StateError> {
        let now = self.now.get();
        let mut state = self
            .state
            .as_ref()
            .ok_or(StateError::NotGranted)?
            .borrow_mut();
        let (before, expires) = match state.get(key).filter(|entry| entry.lives(now)) {
            Some(entry) => {
                let text = std::str::from_utf8(&entry.value).map_err(|_| StateError::NotANumber)?;
                (
                    text.parse::<i64>().map_err(|_| StateError::NotANumber)?,
                    entry.expires,
                )
            }
            None => (0, ttl.map(|ttl| now + ttl)),
        };
        let sum = before.saturating_add(by);
        state.insert(
            key.to_owned(),
            Entry {
                value: sum.to_string().into_bytes(),
                expires,
            },
        );
        Ok(sum)
    }
}

impl Entry {
    fn lives(&self, now: Duration) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_granted_is_refused() {
        let host = FakeHost::new();
        assert_eq!(host.state_get("k"), Err(StateError::NotGranted));
        assert_eq!(host.read_file("f"), Err(FolderError::NotGranted));
        assert_eq!(host.folder().read_file("../f"), Err(FolderError::Forbidden));
    }

    #[test]
    fn a_time_to_live_starts_with_the_first_increment_and_is_not_prolonged() {
        let host = FakeHost::new().state();
        let ttl = Some(Duration::from_secs(10));
        assert_eq!(host.state_increment("k", 2, ttl), Ok(2));
        host.advance(Duration::from_secs(6));
        assert_eq!(host.state_increment("k", i64::MAX, ttl), Ok(i64::MAX));
        host.advance(Duration::from_secs(6));
        assert_eq!(host.state_get("k"), Ok(None));
        assert_eq!(host.state_set("k", b"x", None), Ok(()));
        assert_eq!(
            host.state_increment("k", 1, None),
            Err(StateError::NotANumber)
        );
    }

    #[test]
    fn healthy_targets_come_before_better_ones_that_are_not() {
        let host = FakeHost::new()
            .target(Target {
                priority: 9,
                healthy: false,
                ..Target::service("ill")
            })
            .target(Target {
                priority: 1,
                ..Target::model("well")
            })
            .target(Target {
                tried: true,
                ..Target::service("tried")
            });
        let except = |avoid: &[&str]| {
            let avoid: Vec<_> = avoid.iter().map(|name| (*name).to_owned()).collect();
            let host: &dyn Host = &host;
            host.best_target_except(&TargetKind::SERVICE, &avoid)
        };
        assert_eq!(except(&["well"]).as_deref(), Some("ill"));
        assert_eq!(except(&["ill"]), None);
        assert_eq!(host.best_target(None).as_deref(), Some("well"));
        assert_eq!(
            host.best_target(Some(&TargetKind::SERVICE)).as_deref(),
            Some("ill")
        );
    }
}
