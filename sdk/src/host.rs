//! What a strategy may ask of its host.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::log::LogLevel;
use crate::{Kind, TargetKind};

pub(crate) mod sealed {
    pub trait Sealed {}
}

/// The host, as a strategy sees it: the call at hand, its surroundings, and the little that a
/// sandbox may do.
///
/// Each function costs one crossing of the sandbox's border, and what it returns is copied: ask for
/// what the decision needs. The trait cannot be implemented elsewhere, so that a later host can
/// offer more; a test uses the `testing` module's `FakeHost`.
pub trait Host: sealed::Sealed {
    /// Writes one log line. The macros of [`log`](crate::log) are shorter.
    fn log(&self, level: LogLevel, message: &str);

    /// Time since an arbitrary start, never decreasing.
    fn monotonic(&self) -> Duration;
    /// The wall clock, to the millisecond.
    fn wall_clock(&self) -> SystemTime;
    /// A number spread evenly over all of `u64`. Not for secrets.
    fn random(&self) -> u64;

    /// The call's id, as it stands in events and explanations.
    fn call_id(&self) -> String;
    /// The present operation: a tool's or prompt's name, a resource's URI, an endpoint's path.
    fn operation(&self) -> String;
    /// What is called: `tool`, `resource`, `prompt`, `model`, or another word of the embedder's.
    fn level(&self) -> String;
    /// The group of targets the call was made to.
    fn group(&self) -> String;
    /// The present target: the one that has just failed. Empty where none could be asked.
    fn target(&self) -> String;
    /// The failure's message. Untrusted.
    fn message(&self) -> String;
    /// The operation's present arguments, as JSON.
    fn arguments(&self) -> Option<String>;
    /// Anything else known by name: `error.data` (JSON), `error.provider-code`, `request.id`,
    /// `caller`, or the embedder's own.
    fn detail(&self, key: &str) -> Option<String>;

    /// Every target of the group, best priority first, at most 256.
    fn targets(&self) -> Vec<Target>;
    /// The best target the call has not asked yet with its present operation and that can be asked
    /// now; `kind` narrows the choice.
    fn best_target(&self, kind: Option<&TargetKind>) -> Option<String>;
    /// Anything else known of a target by name: `url`, `model`, `last-checked`, `latency`.
    fn target_attribute(&self, target: &str, key: &str) -> Option<String>;

    /// The call's attempts, oldest first, the one that has just failed last; at most the last 64.
    fn attempts(&self) -> Vec<Attempt>;

    /// The delay the host's retry policy prescribes before the next retry; `None` where it allows no
    /// further retry after this failure.
    fn next_delay(&self) -> Option<Duration>;

    /// The host's last known good answer for the present operation, arguments and caller.
    fn last_known_good(&self) -> Option<KnownGood>;
    /// Its body, as JSON.
    fn last_known_good_body(&self) -> Option<String>;

    /// The whole content of a file in the granted folder, by its relative path with `/`.
    ///
    /// # Errors
    /// [`FolderError`]; without a granted folder always [`FolderError::NotGranted`].
    fn read_file(&self, path: &str) -> Result<Vec<u8>, FolderError>;

    /// A value of the strategy's own store, unless it is absent or past its time.
    ///
    /// # Errors
    /// [`StateError::NotGranted`] without the capability.
    fn state_get(&self, key: &str) -> Result<Option<Vec<u8>>, StateError>;
    /// Sets a value, for `ttl` or, with none, for good.
    ///
    /// # Errors
    /// [`StateError::NotGranted`] without the capability, [`StateError::QuotaExceeded`].
    fn state_set(&self, key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), StateError>;
    /// Removes a value. Says whether there was one.
    ///
    /// # Errors
    /// [`StateError::NotGranted`] without the capability.
    fn state_delete(&self, key: &str) -> Result<bool, StateError>;
    /// Adds to a number in one step and returns the sum, which saturates. An absent value counts
    /// as 0. A time to live starts with the first increment.
    ///
    /// # Errors
    /// [`StateError::NotGranted`] without the capability, [`StateError::NotANumber`],
    /// [`StateError::QuotaExceeded`].
    fn state_increment(&self, key: &str, by: i64, ttl: Option<Duration>)
    -> Result<i64, StateError>;
}

impl dyn Host + '_ {
    /// The operation's present arguments, parsed; `None` where there are none or they are no JSON.
    pub fn arguments_json(&self) -> Option<Value> {
        serde_json::from_str(&self.arguments()?).ok()
    }

    /// The best target of this kind that is none of `avoid`, that this call has not asked and that can be
    /// asked now. The list of all is read only where the host's own choice is to be avoided: a name
    /// crosses the border for a fifth of what a list of four targets costs.
    pub fn best_target_except(&self, kind: &TargetKind, avoid: &[String]) -> Option<String> {
        let best = self.best_target(Some(kind))?;
        if !avoid.contains(&best) {
            return Some(best);
        }
        let fits = |target: &Target| target.kind == *kind && !avoid.contains(&target.name);
        let mut others = self.candidates().into_iter();
        others.find(fits).map(|target| target.name)
    }

    /// The targets that this call has not asked and that can be asked now: the healthy ones before
    /// the others, each best priority first.
    pub fn candidates(&self) -> Vec<Target> {
        let mut targets = self.targets();
        targets.retain(Target::is_available);
        targets.sort_by_key(|target| (!target.healthy, std::cmp::Reverse(target.priority)));
        targets
    }
}

/// One target of the call's group, as it stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name, unique in the host.
    pub name: String,
    /// What kind of thing it is.
    pub kind: TargetKind,
    /// Higher is preferred.
    pub priority: i32,
    /// Its share among equals.
    pub weight: u32,
    /// The health checks call it healthy.
    pub healthy: bool,
    /// Its circuit lets a request through.
    pub admitted: bool,
    /// It was asked in this call already for the present operation with the present arguments.
    pub tried: bool,
    /// It is the present target.
    pub present: bool,
}

impl Target {
    /// A healthy service of priority 0 and weight 1, not yet asked: where a test starts.
    pub fn service(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: TargetKind::SERVICE,
            priority: 0,
            weight: 1,
            healthy: true,
            admitted: true,
            tried: false,
            present: false,
        }
    }

    /// The same, as a model.
    pub fn model(name: impl Into<String>) -> Self {
        Self {
            kind: TargetKind::MODEL,
            ..Self::service(name)
        }
    }

    /// Whether it can be asked now and was not asked in this call.
    pub fn is_available(&self) -> bool {
        self.admitted && !self.tried && !self.present
    }
}

/// One attempt of the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The target asked.
    pub target: String,
    /// The operation asked for.
    pub operation: String,
    /// How it failed.
    pub kind: Kind,
    /// How long it was waited before it.
    pub delay: Duration,
    /// How long it took.
    pub duration: Duration,
}

/// What is known of a last known good answer before its body is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownGood {
    /// How long ago it was given.
    pub age: Duration,
    /// Size of the body in bytes.
    pub size: u64,
    /// The target that gave it.
    pub target: String,
}

/// Why a request to the state was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// The configuration does not grant the state to this strategy.
    NotGranted,
    /// The write would exceed the quota, in bytes.
    QuotaExceeded(u64),
    /// The value is not a number and cannot be incremented.
    NotANumber,
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted => f.write_str("the configuration does not grant `state`"),
            Self::QuotaExceeded(quota) => {
                write!(f, "the state would exceed its quota of {quota} bytes")
            }
            Self::NotANumber => f.write_str("the value is not a number"),
        }
    }
}

impl std::error::Error for StateError {}

/// Why a file could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FolderError {
    /// The configuration grants no folder to this strategy.
    NotGranted,
    /// There is no such file.
    NotFound,
    /// The path leaves the folder, or is not a file.
    Forbidden,
    /// The file is larger than the limit, in bytes.
    TooLarge(u64),
    /// Anything else.
    Failed(String),
}

impl fmt::Display for FolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted => f.write_str("the configuration grants no folder"),
            Self::NotFound => f.write_str("there is no such file"),
            Self::Forbidden => f.write_str("the path leaves the folder or is not a file"),
            Self::TooLarge(limit) => write!(f, "the file is larger than {limit} bytes"),
            Self::Failed(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for FolderError {}
