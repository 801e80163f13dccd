//! The situation of a case, as it is written, and what the engine makes of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::call::{AttemptKind, AttemptRecord, CallFacts, Level};
use crate::config::parse_duration;
use crate::failure::{Failure, Origin};
use crate::kind::Kind;
use crate::strategy::component::Frozen;
use crate::strategy::{KnownGood, Situation, Surroundings, TargetView};

/// The context of one decision: the failure, the call, and everything a strategy may ask about.
///
/// Every field has a default, so a case writes down only what its strategy looks at. Durations are
/// text such as `"250ms"` or `"1m30s"`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Context {
    failure: FailureText,
    call: CallText,
    /// The present operation. Default: the one that was called.
    operation: Option<String>,
    /// The present arguments, any JSON.
    arguments: Option<Value>,
    /// The present target: the one that has just failed. Default: the last attempt's.
    target: Option<String>,
    /// The targets of the group, best priority first.
    targets: Vec<TargetText>,
    /// The failed attempts, the last one included, or only their number. Default: one.
    attempts: Attempts,
    /// Retries of the present operation on the present target so far.
    retries: u32,
    /// Fallbacks taken so far.
    fallbacks: u32,
    /// Time left until the call's deadline. Default: one minute.
    #[serde(deserialize_with = "duration")]
    time_left: Option<Duration>,
    /// Whether the host would let the operation be sent again now. Default: true.
    repeatable: Option<bool>,
    /// The delay the retry policy prescribes; left out, it allows no further retry.
    #[serde(deserialize_with = "duration")]
    next_delay: Option<Duration>,
    last_known_good: Option<KnownGoodText>,
    /// What the strategy's state holds: key and text. It needs the grant.
    state: BTreeMap<String, String>,
    /// The wall clock, in milliseconds since the Unix epoch. It stands still.
    now_ms: u64,
    /// The monotonic clock. It stands still.
    #[serde(deserialize_with = "duration")]
    monotonic: Option<Duration>,
    /// What the sources of chance begin with.
    seed: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FailureText {
    /// Default: `Unknown`. A well-known kind brings its own traits, which the fields below change.
    kind: Option<Kind>,
    message: String,
    http_status: Option<u16>,
    rpc_code: Option<i32>,
    retryable: Option<bool>,
    ambiguous: Option<bool>,
    silent: Option<bool>,
    local: Option<bool>,
    #[serde(deserialize_with = "duration")]
    retry_after: Option<Duration>,
    details: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CallText {
    group: Option<String>,
    operation: Option<String>,
    level: Level,
    caller: Option<String>,
    request_id: Option<String>,
    importance: Option<u8>,
    details: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetText {
    name: String,
    #[serde(default)]
    kind: TargetKind,
    #[serde(default)]
    priority: i32,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default = "yes")]
    healthy: bool,
    #[serde(default = "yes")]
    admitted: bool,
    /// Default: whether an attempt of the case asked it.
    tried: Option<bool>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TargetKind {
    #[default]
    Service,
    Model,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "a number of attempts, or a list of tables with target, operation, kind, delay, duration"
)]
enum Attempts {
    Number(u32),
    List(Vec<AttemptText>),
}

impl Default for Attempts {
    fn default() -> Self {
        Self::Number(1)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AttemptText {
    target: Option<String>,
    operation: Option<String>,
    kind: Option<Kind>,
    #[serde(deserialize_with = "duration")]
    delay: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    duration: Option<Duration>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownGoodText {
    #[serde(default, deserialize_with = "duration")]
    age: Option<Duration>,
    #[serde(default)]
    target: String,
    #[serde(default)]
    body: Value,
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

/// A duration as text; there is no unit to guess.
pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<Cow<'de, str>>::deserialize(from)? else {
        return Ok(None);
    };
    parse_duration(&text).map(Some).ok_or_else(|| {
        serde::de::Error::custom(format_args!(
            "{text:?} is not a duration: write a number with its unit, such as \"250ms\" or \"1m30s\""
        ))
    })
}

/// The most attempts a case may have: more than any call makes.
const MAX_ATTEMPTS: u32 = 10_000;

impl Context {
    /// What the strategy is asked, and what stands still meanwhile.
    pub fn situation(&self) -> (Situation, Frozen) {
        let failure = Arc::new(self.failure());
        let called: Arc<str> = self.call.operation.as_deref().unwrap_or_default().into();
        let operation: Arc<str> = match &self.operation {
            Some(operation) => operation.as_str().into(),
            None => called.clone(),
        };
        let target = self.present_target();
        let attempts = self.attempts(&failure, &operation, target.as_ref());
        let mut call = CallFacts {
            group: self.call.group.as_deref().unwrap_or_default().into(),
            operation: called,
            level: self.call.level,
            caller: self.call.caller.as_deref().map(Into::into),
            request_id: self.call.request_id.as_deref().map(Into::into),
            ..CallFacts::default()
        };
        if let Some(importance) = self.call.importance {
            call.importance = importance.min(100);
        }
        for (key, value) in &self.call.details {
            call.details
                .push((key.as_str().into(), value.as_str().into()));
        }
        let wall = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_millis(self.now_ms))
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let time_left = self.time_left.unwrap_or(Duration::from_secs(60));
        let mut situation = Situation::of((*failure).clone());
        situation.call = Arc::new(call);
        situation.surroundings =
            Arc::new(self.written(target.as_ref(), &operation, &attempts, wall));
        situation.operation = operation;
        situation.arguments = self.arguments.as_ref().map(|json| json.to_string().into());
        situation.target = target;
        situation.attempts = attempts.into();
        situation.retries = self.retries;
        situation.fallbacks = self.fallbacks;
        situation.repeatable = self.repeatable.unwrap_or(true);
        situation.next_delay = self.next_delay;
        let frozen = Frozen {
            wall,
            monotonic: self.monotonic.unwrap_or_default(),
            seed: self.seed,
            time_left,
            state: self
                .state
                .iter()
                .map(|(key, value)| (key.clone(), value.clone().into_bytes()))
                .collect(),
        };
        (situation, frozen)
    }

    fn failure(&self) -> Failure {
        let text = &self.failure;
        let mut failure = Failure::new(text.kind.clone().unwrap_or(Kind::UNKNOWN), &text.message);
        failure.http_status = text.http_status;
        failure.rpc_code = text.rpc_code;
        failure.retry_after = text.retry_after;
        failure.retryable = text.retryable.unwrap_or(failure.retryable);
        failure.ambiguous = text.ambiguous.unwrap_or(failure.ambiguous);
        failure.silent = text.silent.unwrap_or(failure.silent);
        match text.local {
            Some(true) => failure.origin = Origin::Local,
            Some(false) => failure.origin = Origin::Remote,
            None => {}
        }
        for (key, value) in &text.details {
            failure = failure.with_detail(key.clone(), value.clone());
        }
        failure
    }

    fn present_target(&self) -> Option<Arc<str>> {
        let last = match &self.attempts {
            Attempts::Number(_) => None,
            Attempts::List(list) => list.last().and_then(|attempt| attempt.target.as_deref()),
        };
        self.target.as_deref().or(last).map(Into::into)
    }

    fn attempts(
        &self,
        failure: &Arc<Failure>,
        operation: &Arc<str>,
        target: Option<&Arc<str>>,
    ) -> Vec<AttemptRecord> {
        let same = AttemptText::default();
        let list: Vec<&AttemptText> = match &self.attempts {
            Attempts::Number(number) => vec![&same; (*number).min(MAX_ATTEMPTS) as usize],
            Attempts::List(list) => list.iter().collect(),
        };
        list.into_iter()
            .enumerate()
            .map(|(at, text)| AttemptRecord {
                target: match &text.target {
                    Some(name) => name.as_str().into(),
                    None => target.cloned().unwrap_or_default(),
                },
                operation: match &text.operation {
                    Some(name) => name.as_str().into(),
                    None => operation.clone(),
                },
                attempt: if at == 0 {
                    AttemptKind::Original
                } else {
                    AttemptKind::Retry
                },
                failure: match &text.kind {
                    Some(kind) => Arc::new(Failure::new(kind.clone(), "")),
                    None => failure.clone(),
                },
                delay: text.delay.unwrap_or_default(),
                duration: text.duration.unwrap_or_default(),
            })
            .collect()
    }

    fn written(
        &self,
        present: Option<&Arc<str>>,
        operation: &str,
        attempts: &[AttemptRecord],
        wall: SystemTime,
    ) -> Written {
        let view = |text: &TargetText| {
            let present = present.is_some_and(|present| **present == *text.name);
            let asked = attempts
                .iter()
                .any(|attempt| *attempt.target == *text.name && &*attempt.operation == operation);
            TargetView {
                name: text.name.as_str().into(),
                kind: match text.kind {
                    TargetKind::Service => "service",
                    TargetKind::Model => "model",
                },
                priority: text.priority,
                weight: text.weight,
                healthy: text.healthy,
                admitted: text.admitted,
                tried: text.tried.unwrap_or(asked),
                present,
            }
        };
        Written {
            targets: self.targets.iter().map(view).collect(),
            attributes: self
                .targets
                .iter()
                .flat_map(|target| {
                    target
                        .attributes
                        .iter()
                        .map(|(key, value)| ((target.name.clone(), key.clone()), value.clone()))
                })
                .collect(),
            known_good: self.last_known_good.as_ref().map(|text| KnownGood {
                age: text.age.unwrap_or_default(),
                target: text.target.as_str().into(),
                body: Bytes::from(text.body.to_string()),
            }),
            wall,
            seed: self.seed,
        }
    }
}

/// Surroundings as a case writes them.
struct Written {
    targets: Vec<TargetView>,
    attributes: BTreeMap<(String, String), String>,
    known_good: Option<KnownGood>,
    wall: SystemTime,
    seed: u64,
}

impl Surroundings for Written {
    fn targets(&self) -> Vec<TargetView> {
        self.targets.clone()
    }

    fn best_target(&self, kind: Option<&str>) -> Option<Arc<str>> {
        let present = self.targets.iter().find(|target| target.present);
        let kind = kind.or(present.map(|target| target.kind));
        self.targets
            .iter()
            .filter(|target| target.admitted && !target.tried && !target.present)
            .filter(|target| kind.is_none_or(|kind| target.kind == kind))
            // The first of the best.
            .min_by_key(|target| std::cmp::Reverse((target.healthy, target.priority)))
            .map(|target| target.name.clone())
    }

    fn target_attribute(&self, target: &str, key: &str) -> Option<String> {
        self.attributes
            .get(&(target.to_owned(), key.to_owned()))
            .cloned()
    }

    fn last_known_good(&self) -> Option<KnownGood> {
        self.known_good.clone()
    }

    fn wall_clock(&self) -> SystemTime {
        self.wall
    }

    fn random(&self) -> u64 {
        self.seed
    }
}
