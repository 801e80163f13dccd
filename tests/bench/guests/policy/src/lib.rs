//! The policy every contender of the decision benchmark carries out: that of the stock strategy
//! `service-failover` with a target to avoid, over everything that is known of the failure.
//!
//! Plain data, so that it can cross a border as JSON.

use serde::{Deserialize, Serialize};

/// The kinds the policy applies to.
pub const KINDS: [&str; 6] = [
    "ConnectionError",
    "TimeoutError",
    "ServiceUnavailable",
    "InternalServerError",
    "BadGateway",
    "GatewayTimeout",
];
/// The targets that are never switched to.
pub const AVOID: [&str; 1] = ["search-archive"];

/// What is known when a decision is needed.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Context {
    pub kind: String,
    pub message: String,
    pub operation: String,
    pub group: String,
    pub target: String,
    pub http_status: Option<u16>,
    pub repeatable: bool,
    pub attempts: u32,
    pub fallbacks: u32,
    pub time_left_ms: u64,
    pub arguments: String,
    pub targets: Vec<Target>,
}

/// One target of the group.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Target {
    pub name: String,
    pub kind: String,
    pub priority: i32,
    pub weight: u32,
    pub healthy: bool,
    pub admitted: bool,
    pub tried: bool,
    pub present: bool,
}

/// What is to be done.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub target: String,
    pub reason: String,
}

/// Whether the policy applies.
pub fn condition(kind: &str, repeatable: bool, fallbacks: u32) -> bool {
    repeatable && KINDS.contains(&kind) && fallbacks < 3
}

/// Whether a target can be switched to.
pub fn fits(name: &str, kind: &str, admitted: bool, tried: bool) -> bool {
    kind == "service" && admitted && !tried && !AVOID.contains(&name)
}

/// Why.
pub fn reason(kind: &str) -> String {
    format!("{kind}: another service can be asked")
}

/// Condition and action.
pub fn decide(now: &Context) -> Option<Decision> {
    if !condition(&now.kind, now.repeatable, now.fallbacks) {
        return None;
    }
    let target = now
        .targets
        .iter()
        .find(|target| fits(&target.name, &target.kind, target.admitted, target.tried))?;
    Some(Decision {
        target: target.name.clone(),
        reason: reason(&now.kind),
    })
}
