//! How failures are retried, told and changed by hand.

use std::collections::BTreeSet;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use backstop::Kind;
use backstop::config::{Diagnostic, Retry};
use backstop::retry::RetryPolicy;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::{kept, live, told};
use super::steer::read;
use super::{Admin, refusal, say};
use crate::live::LiveError;

/// Delays that are told of one policy.
const DELAYS: u32 = 10;

/// Every kind that has a policy or may well get one, with what is in force and what of it the configuration
/// says; `default` stands for every other kind.
pub(super) async fn policies(State(admin): State<Admin>) -> Response {
    let config = match live(&admin) {
        Ok(live) => live.config().await,
        Err(refused) => return refused,
    };
    let in_force = admin.engine.policies().retry;
    let row = |kind: &str, set: &Retry, policy: &RetryPolicy| json!({ "kind": kind, "set": set, "in_force": as_json(policy) });
    let kinds: BTreeSet<&Kind> = in_force
        .by_kind
        .keys()
        .chain(config.retry.kinds.keys())
        .collect();
    let none = Retry::default();
    let mut rows: Vec<Value> = kinds
        .into_iter()
        .map(|kind| {
            let set = config.retry.kinds.get(kind).unwrap_or(&none);
            row(kind, set, in_force.of(kind))
        })
        .collect();
    rows.push(row("default", &config.retry.default, &in_force.default));
    say(StatusCode::OK, &rows)
}

fn as_json(policy: &RetryPolicy) -> Value {
    let backoff = &policy.backoff;
    let delays = (0..policy.max_retries.min(DELAYS)).map(|retry| backoff.base(retry).as_millis());
    json!({
        "max_retries": policy.max_retries,
        "delays_ms": delays.map(|delay| u64::try_from(delay).unwrap_or(u64::MAX)).collect::<Vec<_>>(),
        "jitter": backoff.jitter(),
    })
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Change {
    kind: Option<String>,
    #[serde(default)]
    set: Map<String, Value>,
    #[serde(default)]
    save: bool,
}

pub(super) async fn change(
    State(admin): State<Admin>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let Change { kind, set, save } = match read(&headers, body) {
        Ok(change) => change,
        Err(refused) => return refused,
    };
    let Some(kind) = kind else {
        let reason = "the body is not what this request takes: `kind` is missing";
        return refusal(StatusCode::BAD_REQUEST, reason);
    };
    let live = match live(&admin) {
        Ok(live) => live,
        Err(refused) => return refused,
    };
    let changed = live.change_retry(&kind, &set).await;
    match kept(live, changed, save).await {
        Err(LiveError::Impossible(reason)) => refusal(StatusCode::BAD_REQUEST, &reason),
        Err(LiveError::Refused(found)) => {
            let reason = format!(
                "what was in force stays in force: {}",
                LiveError::Refused(found.clone())
            );
            let fields: Vec<Value> = found.iter().filter_map(|it| of_field(&kind, it)).collect();
            say(
                StatusCode::CONFLICT,
                &json!({ "error": reason, "fields": fields }),
            )
        }
        outcome => told(outcome),
    }
}

/// What is wrong with one of the values that were sent.
fn of_field(kind: &str, found: &Diagnostic) -> Option<Value> {
    let rest = found.field.strip_prefix("retry.")?;
    let rest = rest.strip_prefix(kind).or_else(|| {
        // A kind with other characters is quoted.
        rest.strip_prefix(&*format!("{kind:?}"))
    })?;
    let field = rest.strip_prefix('.')?;
    // One of a list is the list's.
    let field = field.split('[').next().unwrap_or(field);
    let Diagnostic {
        message,
        reason,
        remedy,
        ..
    } = found;
    let text = format!("{message}: {reason}. {remedy}");
    found
        .is_error()
        .then(|| json!({ "field": field, "message": text }))
}
