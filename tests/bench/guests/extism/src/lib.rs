//! The policy as a plugin of the peer: JSON in, JSON out, as its documentation shows it.

use bench_policy::{Context, Decision};
use extism_pdk::*;

#[plugin_fn]
pub fn decide(Json(now): Json<Context>) -> FnResult<Json<Option<Decision>>> {
    Ok(Json(bench_policy::decide(&now)))
}
