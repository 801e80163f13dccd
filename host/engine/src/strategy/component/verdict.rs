//! Between the engine's types and the contract's: a failure on its way in, a decision on its way
//! out, and whether it is one.

use std::time::Duration;

use super::bindings::backstop::strategy::types;
use super::host_impl::{millis_down, millis_up};
use super::limits::Limits;
use crate::failure::Origin;
use crate::strategy::{Action, AnswerData, Decision, Situation, StrategyFault};

/// Bytes of the name of a target, an operation or a custom action; a resource's URI is the longest.
const MAX_NAME_BYTES: usize = 4096;
/// Bytes of a reason, or of a message to the caller.
const MAX_SENTENCE_BYTES: usize = 4096;
/// The longest delay that can be meant: a day.
const MAX_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The failure, as small as a condition usually needs it.
pub(super) fn failure(now: &Situation, time_left: Duration) -> types::Failure {
    let failure = &*now.failure;
    let mut traits = types::Traits::empty();
    for (set, flag) in [
        (failure.retryable, types::Traits::RETRYABLE),
        (failure.ambiguous, types::Traits::AMBIGUOUS),
        (failure.origin == Origin::Local, types::Traits::LOCAL),
        (now.repeatable, types::Traits::REPEATABLE),
        (failure.silent, types::Traits::SILENT),
    ] {
        if set {
            traits |= flag;
        }
    }
    types::Failure {
        kind: failure.kind.to_string(),
        http_status: failure.http_status,
        rpc_code: failure.rpc_code,
        traits,
        retry_after: failure.retry_after.map(millis_up),
        attempts: u32::try_from(now.attempts.len()).unwrap_or(u32::MAX).max(1),
        retries: now.retries,
        fallbacks: now.fallbacks,
        time_left: millis_down(time_left),
        importance: now.call.importance,
    }
}

/// The decision, if it is in range.
pub(super) fn decision(raw: types::Decision, limits: &Limits) -> Result<Decision, StrategyFault> {
    let action = match raw.action {
        types::Action::Retry(retry) => {
            let delay = retry.delay.map(Duration::from_millis);
            if delay.is_some_and(|delay| delay > MAX_DELAY) {
                return garbage(format!("a delay of {} ms", retry.delay.unwrap_or_default()));
            }
            Action::Retry { delay }
        }
        types::Action::SwitchTarget(switch) => Action::SwitchTarget {
            target: optional_name("target", switch.target)?,
            target_kind: optional_name("target-kind", switch.target_kind)?,
        },
        types::Action::CallOperation(call) => {
            if let Some(arguments) = &call.arguments {
                json("arguments", arguments, limits)?;
                if !arguments.trim_ascii_start().starts_with('{') {
                    return garbage("`arguments` is not a JSON object".into());
                }
            }
            Action::CallOperation {
                operation: name("operation", call.operation)?,
                arguments: call.arguments,
                target: optional_name("target", call.target)?,
            }
        }
        types::Action::Answer(answer) => match answer.source {
            types::AnswerSource::LastKnownGood => Action::Answer(AnswerData::LastKnownGood),
            types::AnswerSource::StaticDefault => {
                let Some(body) = answer.body else {
                    return garbage("`static-default` without a `body`".into());
                };
                json("body", &body, limits)?;
                Action::Answer(AnswerData::Static(body))
            }
        },
        types::Action::Fail(fail) => Action::Fail {
            message: fail
                .message
                .map(|message| sentence("message", message))
                .transpose()?,
        },
        types::Action::Decline => Action::Decline,
        types::Action::Custom(custom) => {
            json("payload", &custom.payload, limits)?;
            Action::Custom {
                name: name("name", custom.name)?,
                payload: custom.payload,
            }
        }
    };
    Ok(Decision {
        action,
        reason: sentence("reason", raw.reason)?,
    })
}

fn garbage<T>(why: String) -> Result<T, StrategyFault> {
    Err(StrategyFault::Garbage(why))
}

fn name(field: &str, text: String) -> Result<String, StrategyFault> {
    match text.len() {
        0 => garbage(format!("`{field}` is empty")),
        1..=MAX_NAME_BYTES => Ok(text),
        n => garbage(format!(
            "`{field}` has {n} bytes, at most {MAX_NAME_BYTES} are allowed"
        )),
    }
}

fn optional_name(field: &str, text: Option<String>) -> Result<Option<String>, StrategyFault> {
    text.map(|text| name(field, text)).transpose()
}

fn sentence(field: &str, text: String) -> Result<String, StrategyFault> {
    match text.len() {
        0..=MAX_SENTENCE_BYTES => Ok(text),
        n => garbage(format!(
            "`{field}` has {n} bytes, at most {MAX_SENTENCE_BYTES} are allowed"
        )),
    }
}

/// Reads JSON without building it: what a strategy returns may be large.
fn json(field: &str, text: &str, limits: &Limits) -> Result<(), StrategyFault> {
    if text.len() > limits.result_bytes {
        return garbage(format!(
            "`{field}` has {} bytes, at most {} are allowed",
            text.len(),
            limits.result_bytes
        ));
    }
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => Ok(()),
        Err(error) => garbage(format!("`{field}` is not JSON: {error}")),
    }
}
