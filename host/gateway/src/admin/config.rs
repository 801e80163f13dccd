//! The configuration in force: its versions, and what an operator may do with them.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::steer::{Nothing, read};
use super::{Admin, refusal, say};
use crate::live::{LiveConfig, LiveError, Version};

#[allow(clippy::result_large_err, reason = "it is answered at once")]
fn live(admin: &Admin) -> Result<&LiveConfig, Response> {
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

fn told(outcome: Result<std::sync::Arc<Version>, LiveError>) -> Response {
    match outcome {
        Ok(version) => say(StatusCode::OK, &version),
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
