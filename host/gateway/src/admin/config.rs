//! The configuration in force: its versions, and what an operator may do with them.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::steer::{Nothing, read};
use super::{Admin, refusal, say};
use crate::exchange::chain;
use crate::live::{LiveConfig, LiveError, Version};

#[allow(clippy::result_large_err, reason = "it is answered at once")]
pub(super) fn live(admin: &Admin) -> Result<&LiveConfig, Response> {
    admin.config.as_ref().ok_or_else(|| {
        let reason = "the configuration of this program cannot be changed while it runs";
        refusal(StatusCode::NOT_FOUND, reason)
    })
}

/// The versions that were applied, the one in force first. Their texts may hold what only readers of the
/// file are to see, and are left out.
pub(super) async fn versions(State(admin): State<Admin>) -> Response {
    match live(&admin) {
        Ok(live) => {
            let mut versions = live.versions().await;
            versions.reverse();
            say(StatusCode::OK, &versions)
        }
        Err(refused) => refused,
    }
}

pub(super) fn told(outcome: Result<Arc<Version>, LiveError>) -> Response {
    match outcome {
        Ok(version) => say(StatusCode::OK, &version),
        Err(error @ LiveError::Write { .. }) => {
            let reason = format!("it is in force, and only there: {}", chain(&error));
            refusal(StatusCode::CONFLICT, &reason)
        }
        Err(error @ LiveError::UnknownVersion { .. }) => {
            refusal(StatusCode::NOT_FOUND, &error.to_string())
        }
        Err(error) => say(
            StatusCode::CONFLICT,
            &json!({ "error": format!("what was in force stays in force: {error}") }),
        ),
    }
}

pub(super) async fn reload(
    State(admin): State<Admin>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    if let Err(refused) = read::<Nothing>(&headers, body) {
        return refused;
    }
    match live(&admin) {
        Ok(live) => told(live.reload().await),
        Err(refused) => refused,
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Rollback {
    version: Option<u64>,
}

pub(super) async fn rollback(
    State(admin): State<Admin>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let wanted = match read::<Rollback>(&headers, body) {
        Ok(Rollback { version }) => version,
        Err(refused) => return refused,
    };
    let live = match live(&admin) {
        Ok(live) => live,
        Err(refused) => return refused,
    };
    let versions = live.versions().await;
    let before = || Some(versions.get(versions.len().checked_sub(2)?)?.number);
    match wanted.or_else(before) {
        Some(number) => told(live.rollback(number).await),
        None => refusal(StatusCode::CONFLICT, "there is no earlier version"),
    }
}

/// Writes a version that was just put in force to the file, if that is wanted.
pub(super) async fn kept(
    live: &LiveConfig,
    outcome: Result<Arc<Version>, LiveError>,
    save: bool,
) -> Result<Arc<Version>, LiveError> {
    let version = outcome?;
    if save {
        live.write_back().await?;
    }
    Ok(version)
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Apply {
    text: Option<String>,
    #[serde(default)]
    save: bool,
}

pub(super) async fn apply(
    State(admin): State<Admin>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    // A configuration names commands that are run: whoever may write one may do what this user may.
    if !admin.access.asks_for_a_token() {
        let reason = "a whole configuration is taken only where a token is asked for: set `[admin] token_env`";
        return refusal(StatusCode::FORBIDDEN, reason);
    }
    let Apply { text, save } = match read(&headers, body) {
        Ok(apply) => apply,
        Err(refused) => return refused,
    };
    let Some(text) = text else {
        let reason = "the body is not what this request takes: `text` is missing";
        return refusal(StatusCode::BAD_REQUEST, reason);
    };
    match live(&admin) {
        Ok(live) => told(kept(live, live.apply(&text).await, save).await),
        Err(refused) => refused,
    }
}

pub(super) async fn save(
    State(admin): State<Admin>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    if let Err(refused) = read::<Nothing>(&headers, body) {
        return refused;
    }
    let live = match live(&admin) {
        Ok(live) => live,
        Err(refused) => return refused,
    };
    match live.write_back().await {
        Ok(()) => {
            let versions = live.versions().await;
            match versions.last() {
                Some(version) => say(StatusCode::OK, version),
                None => refusal(StatusCode::CONFLICT, "there is no version in force"),
            }
        }
        Err(error) => refusal(StatusCode::CONFLICT, &chain(&error)),
    }
}
