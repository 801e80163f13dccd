//! What an operator may do: hold, eject and restore targets, leave strategies out and let them back.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use backstop::registry::RegistryError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{Admin, refusal, say};

/// How long a target is ejected for where nothing is said.
const EJECTED_FOR: Duration = Duration::from_secs(60);

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Eject {
    for_ms: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Reads a body. It must be called JSON: a browser sends that to another site only after asking it first,
/// and this one never says yes.
#[allow(clippy::result_large_err, reason = "it is answered at once")]
fn read<T: DeserializeOwned + Default>(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<T, Response> {
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|value| value.trim().eq_ignore_ascii_case("application/json"));
    if !is_json {
        let reason = "send `Content-Type: application/json`; the body may be empty";
        return Err(refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    let body = body.map_err(|error| refusal(error.status(), &error.body_text()))?;
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&body).map_err(|error| {
        let reason = format!("the body is not what this request takes: {error}");
        refusal(StatusCode::BAD_REQUEST, &reason)
    })
}

fn done(changed: bool) -> Response {
    say(StatusCode::OK, &json!({ "changed": changed }))
}

fn of_registry(result: Result<bool, RegistryError>) -> Response {
    match result {
        Ok(changed) => done(changed),
        Err(error @ RegistryError::Unknown(_)) => {
            refusal(StatusCode::NOT_FOUND, &error.to_string())
        }
        Err(error) => refusal(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

pub(super) async fn target(
    State(admin): State<Admin>,
    Path((name, action)): Path<(String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let registry = admin.engine.registry();
    let result = match &*action {
        "drain" => match read::<Nothing>(&headers, body) {
            Ok(_) => registry.hold(&name),
            Err(refused) => return refused,
        },
        "restore" => match read::<Nothing>(&headers, body) {
            Ok(_) => registry.restore(&name).map(|()| true),
            Err(refused) => return refused,
        },
        "eject" => match read::<Eject>(&headers, body) {
            Ok(eject) => {
                let open_for = eject.for_ms.map_or(EJECTED_FOR, Duration::from_millis);
                registry.eject(&name, open_for).map(|()| true)
            }
            Err(refused) => return refused,
        },
        _ => {
            let reason = format!("a target has no {action:?}: it takes drain, eject and restore");
            return refusal(StatusCode::NOT_FOUND, &reason);
        }
    };
    of_registry(result)
}

pub(super) async fn strategy(
    State(admin): State<Admin>,
    Path((name, action)): Path<(String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let enabled = match &*action {
        "enable" => true,
        "disable" => false,
        _ => {
            let reason = format!("a strategy has no {action:?}: it takes enable and disable");
            return refusal(StatusCode::NOT_FOUND, &reason);
        }
    };
    if let Err(refused) = read::<Nothing>(&headers, body) {
        return refused;
    }
    match admin.engine.set_strategy_enabled(&name, enabled) {
        Ok(changed) => done(changed),
        Err(error) => refusal(StatusCode::NOT_FOUND, &error.to_string()),
    }
}
