//! The seam between the contract's bindings and this crate's types. Not for authors: [`export!`] uses
//! it.
//!
//! [`export!`]: crate::export

use std::cell::OnceCell;
use std::fmt::Write as _;
use std::marker::PhantomData;
use std::sync::Once;
use std::time::{Duration, SystemTime};

use bindings::backstop::strategy as wit;
use bindings::backstop::strategy::types;

use crate::log::LogLevel;
use crate::strategy::configured;
use crate::{
    Action, AnswerData, Attempt, Decision, Failure, FolderError, Host, Kind, KnownGood, Setup,
    StateError, Strategy, Target, TargetKind, Traits,
};

#[allow(missing_docs, unsafe_code, unreachable_pub, clippy::all)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "strategy",
        pub_export_macro: true,
        export_macro_name: "export_policy",
    });
}

/// What [`export!`](crate::export) tells of the exported strategy: its type and where it lives.
#[doc(hidden)]
pub trait Exported {
    type Strategy: Strategy;
    fn slot<R>(visit: impl FnOnce(&OnceCell<Self::Strategy>) -> R) -> R;
}

/// The component's exports.
#[doc(hidden)]
pub struct Policy<E>(PhantomData<E>);

impl<E: Exported> bindings::exports::backstop::strategy::policy::Guest for Policy<E> {
    fn metadata() -> types::Metadata {
        log_panics();
        let own = E::Strategy::metadata();
        types::Metadata {
            name: own.name,
            version: own.version,
            description: own.description,
            level: own.level.into(),
            default_priority: own.default_priority,
            kinds: own.kinds.into_iter().map(Into::into).collect(),
            operations: own.operations,
            capabilities: own.capabilities.into_iter().map(Into::into).collect(),
            config_schema: own.config_schema,
            extra: own.extra,
        }
    }

    fn configure(config: String) -> Result<(), String> {
        log_panics();
        let mut setup = Setup::default();
        let strategy = configured::<E::Strategy>(&config, &mut setup)?;
        for (source, fallback) in setup.routes() {
            wit::routes::declare(source, fallback);
        }
        E::slot(|slot| slot.set(strategy))
            .map_err(|_| "the instance is configured already".to_owned())
    }

    fn condition(failure: types::Failure) -> bool {
        log_panics();
        let failure = failure.into();
        // The host configures every instance first; one it did not configure applies to nothing.
        E::slot(|slot| {
            slot.get()
                .is_some_and(|strategy| strategy.condition(&failure, &Sandbox))
        })
    }

    fn action(failure: types::Failure) -> types::Decision {
        log_panics();
        let failure = failure.into();
        E::slot(|slot| {
            slot.get().map_or_else(Decision::decline, |strategy| {
                strategy.action(&failure, &Sandbox)
            })
        })
        .into()
    }
}

/// Hands a panic's message to the host's log before the instance traps.
fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            let mut line = String::from("panicked");
            if let Some(place) = panic.location() {
                let _ = write!(line, " at {}:{}", place.file(), place.line());
            }
            if let Some(message) = panic.payload_as_str() {
                let _ = write!(line, ": {message}");
            }
            wit::log::write(wit::log::Level::Error, &line);
        }));
    });
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<types::Failure> for Failure {
    fn from(own: types::Failure) -> Self {
        let has = |flag| own.traits.contains(flag);
        Self {
            kind: own.kind.into(),
            http_status: own.http_status,
            rpc_code: own.rpc_code,
            traits: Traits {
                retryable: has(types::Traits::RETRYABLE),
                ambiguous: has(types::Traits::AMBIGUOUS),
                local: has(types::Traits::LOCAL),
                repeatable: has(types::Traits::REPEATABLE),
                silent: has(types::Traits::SILENT),
            },
            retry_after: own.retry_after.map(Duration::from_millis),
            attempts: own.attempts,
            retries: own.retries,
            fallbacks: own.fallbacks,
            time_left: Duration::from_millis(own.time_left),
            importance: own.importance,
        }
    }
}

impl From<Decision> for types::Decision {
    fn from(own: Decision) -> Self {
        let action = match own.action {
            Action::Retry { delay } => types::Action::Retry(types::Retry {
                delay: delay.map(millis),
            }),
            Action::SwitchTarget {
                target,
                target_kind,
            } => types::Action::SwitchTarget(types::SwitchTarget {
                target,
                target_kind: target_kind.map(Into::into),
            }),
            Action::CallOperation {
                operation,
                arguments,
                target,
            } => types::Action::CallOperation(types::CallOperation {
                operation,
                arguments,
                target,
            }),
            Action::Answer(AnswerData::LastKnownGood) => types::Action::Answer(types::Answer {
                source: types::AnswerSource::LastKnownGood,
                body: None,
            }),
            Action::Answer(AnswerData::Static(body)) => types::Action::Answer(types::Answer {
                source: types::AnswerSource::StaticDefault,
                body: Some(body),
            }),
            Action::Fail { message } => types::Action::Fail(types::Fail { message }),
            Action::Decline => types::Action::Decline,
            Action::Custom { name, payload } => {
                types::Action::Custom(types::Custom { name, payload })
            }
        };
        Self {
            action,
            reason: own.reason,
        }
    }
}

impl From<wit::state::Error> for StateError {
    fn from(own: wit::state::Error) -> Self {
        match own {
            wit::state::Error::NotGranted => Self::NotGranted,
            wit::state::Error::QuotaExceeded(quota) => Self::QuotaExceeded(quota),
            wit::state::Error::NotANumber => Self::NotANumber,
        }
    }
}

impl From<wit::folder::Error> for FolderError {
    fn from(own: wit::folder::Error) -> Self {
        match own {
            wit::folder::Error::NotGranted => Self::NotGranted,
            wit::folder::Error::NotFound => Self::NotFound,
            wit::folder::Error::Forbidden => Self::Forbidden,
            wit::folder::Error::TooLarge(limit) => Self::TooLarge(limit),
            wit::folder::Error::Failed(message) => Self::Failed(message),
        }
    }
}

/// The host behind the contract's imports.
struct Sandbox;

impl crate::host::sealed::Sealed for Sandbox {}

impl Host for Sandbox {
    fn log(&self, level: LogLevel, message: &str) {
        let level = match level {
            LogLevel::Trace => wit::log::Level::Trace,
            LogLevel::Debug => wit::log::Level::Debug,
            LogLevel::Info => wit::log::Level::Info,
            LogLevel::Warn => wit::log::Level::Warn,
            LogLevel::Error => wit::log::Level::Error,
        };
        wit::log::write(level, message);
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(wit::clock::monotonic())
    }
    fn wall_clock(&self) -> SystemTime {
        let since = Duration::from_millis(wit::clock::wall());
        SystemTime::UNIX_EPOCH
            .checked_add(since)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
    fn random(&self) -> u64 {
        wit::random::next()
    }

    fn call_id(&self) -> String {
        wit::call::id()
    }
    fn operation(&self) -> String {
        wit::call::operation()
    }
    fn level(&self) -> String {
        wit::call::level()
    }
    fn group(&self) -> String {
        wit::call::group()
    }
    fn target(&self) -> String {
        wit::call::target()
    }
    fn message(&self) -> String {
        wit::call::message()
    }
    fn arguments(&self) -> Option<String> {
        wit::call::arguments()
    }
    fn detail(&self, key: &str) -> Option<String> {
        wit::call::detail(key)
    }

    fn targets(&self) -> Vec<Target> {
        let own = |target: wit::targets::Target| {
            let has = |flag| target.standing.contains(flag);
            Target {
                healthy: has(wit::targets::Standing::HEALTHY),
                admitted: has(wit::targets::Standing::ADMITTED),
                tried: has(wit::targets::Standing::TRIED),
                present: has(wit::targets::Standing::PRESENT),
                kind: target.kind.into(),
                priority: target.priority,
                weight: target.weight,
                name: target.name,
            }
        };
        wit::targets::snapshot().into_iter().map(own).collect()
    }
    fn best_target(&self, kind: Option<&TargetKind>) -> Option<String> {
        wit::targets::best(kind.map(TargetKind::as_str))
    }
    fn target_attribute(&self, target: &str, key: &str) -> Option<String> {
        wit::targets::attribute(target, key)
    }

    fn attempts(&self) -> Vec<Attempt> {
        let own = |attempt: wit::history::Attempt| Attempt {
            target: attempt.target,
            operation: attempt.operation,
            kind: Kind::from(attempt.kind),
            delay: Duration::from_millis(attempt.delay),
            duration: Duration::from_millis(attempt.duration),
        };
        wit::history::attempts().into_iter().map(own).collect()
    }

    fn next_delay(&self) -> Option<Duration> {
        wit::retry_policy::next_delay().map(Duration::from_millis)
    }

    fn last_known_good(&self) -> Option<KnownGood> {
        let entry = wit::last_known_good::find()?;
        Some(KnownGood {
            age: Duration::from_millis(entry.age),
            size: entry.size,
            target: entry.target,
        })
    }
    fn last_known_good_body(&self) -> Option<String> {
        wit::last_known_good::body()
    }

    fn read_file(&self, path: &str) -> Result<Vec<u8>, FolderError> {
        Ok(wit::folder::read(path)?)
    }

    fn state_get(&self, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        Ok(wit::state::get(key)?)
    }
    fn state_set(&self, key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), StateError> {
        Ok(wit::state::set(key, value, ttl.map(millis))?)
    }
    fn state_delete(&self, key: &str) -> Result<bool, StateError> {
        Ok(wit::state::delete(key)?)
    }
    fn state_increment(
        &self,
        key: &str,
        by: i64,
        ttl: Option<Duration>,
    ) -> Result<i64, StateError> {
        Ok(wit::state::increment(key, by, ttl.map(millis))?)
    }
}
