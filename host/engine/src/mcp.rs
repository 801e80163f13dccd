//! The parts of MCP the engine must know: tool annotations, JSON-RPC codes, and the codes of errors
//! that are the host's own.
//!
//! The engine moves requests it need not understand; these few facts decide whether a request may be
//! sent twice, and how a caller can tell the host's word from a server's.

use serde::{Deserialize, Deserializer, Serialize};

use crate::call::{Ending, RepeatSafety};

pub use crate::detect::jsonrpc::code as rpc;

/// Codes of the errors that the host itself answers a JSON-RPC request with.
///
/// They lie outside −32768…−32000, which JSON-RPC 2.0 (section 5.1) and MCP reserve, so that none can
/// be mistaken for a server's.
pub mod code {
    /// Every fallback was tried, or refused by the guard.
    pub const EXHAUSTED: i32 = -31001;
    /// It is not known whether the operation was carried out; it must not be repeated blindly.
    pub const OUTCOME_UNKNOWN: i32 = -31002;
    /// The call's deadline passed.
    pub const DEADLINE_EXCEEDED: i32 = -31003;
    /// A strategy ended the call.
    pub const FAILED_FAST: i32 = -31004;
    /// There was no target to ask.
    pub const NO_TARGET: i32 = -31005;

    /// All of them, for documents and checks.
    pub const ALL: [i32; 5] = [
        EXHAUSTED,
        OUTCOME_UNKNOWN,
        DEADLINE_EXCEEDED,
        FAILED_FAST,
        NO_TARGET,
    ];
}

/// The code of the JSON-RPC error that tells a caller how its call ended.
pub fn code_of(ending: Ending) -> i32 {
    match ending {
        Ending::Exhausted => code::EXHAUSTED,
        Ending::OutcomeUnknown => code::OUTCOME_UNKNOWN,
        Ending::DeadlineExceeded => code::DEADLINE_EXCEEDED,
        Ending::FailedFast => code::FAILED_FAST,
        Ending::NoTarget => code::NO_TARGET,
    }
}

/// What a server says of a tool (MCP, `ToolAnnotations`). Hints, not facts: see
/// [`ToolAnnotations::repeat_safety`].
///
/// Reading is lenient: a hint that is no boolean counts as absent, since one odd tool must not spoil
/// a list of tools, and absence is the safe side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ToolAnnotations {
    /// The tool changes nothing. Absent: false.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub read_only_hint: Option<bool>,
    /// The tool may destroy something. Absent: true.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub destructive_hint: Option<bool>,
    /// Calling it twice is the same as calling it once. Absent: false.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub idempotent_hint: Option<bool>,
    /// It deals with an open world. Absent: true.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub open_world_hint: Option<bool>,
}

fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    Ok(serde_json::Value::deserialize(deserializer)?.as_bool())
}

impl ToolAnnotations {
    /// Whether the tool may be called again when it is not known if a call was carried out. The hints
    /// of a server that is not `trusted` count for nothing. That a tool is not destructive does not
    /// make it repeatable: adding twice destroys nothing.
    pub fn repeat_safety(&self, trusted: bool) -> RepeatSafety {
        if !trusted {
            RepeatSafety::Unsafe
        } else if self.read_only_hint.unwrap_or(false) {
            RepeatSafety::ReadOnly
        } else if self.idempotent_hint.unwrap_or(false) {
            RepeatSafety::Idempotent
        } else {
            RepeatSafety::Unsafe
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safety(json: &str, trusted: bool) -> RepeatSafety {
        serde_json::from_str::<ToolAnnotations>(json)
            .unwrap()
            .repeat_safety(trusted)
    }

    #[test]
    fn a_tool_without_annotations_is_unsafe_to_repeat() {
        assert_eq!(safety("{}", true), RepeatSafety::Unsafe);
    }

    #[test]
    fn hints_count_only_when_the_server_is_trusted() {
        assert_eq!(
            safety(r#"{"readOnlyHint":true}"#, true),
            RepeatSafety::ReadOnly
        );
        assert_eq!(
            safety(r#"{"readOnlyHint":true}"#, false),
            RepeatSafety::Unsafe
        );
        assert_eq!(
            safety(r#"{"idempotentHint":true}"#, true),
            RepeatSafety::Idempotent
        );
        assert_eq!(
            safety(r#"{"idempotentHint":true}"#, false),
            RepeatSafety::Unsafe
        );
    }

    #[test]
    fn not_destructive_is_not_repeatable() {
        assert_eq!(
            safety(r#"{"destructiveHint":false}"#, true),
            RepeatSafety::Unsafe
        );
        assert_eq!(
            safety(r#"{"readOnlyHint":false,"openWorldHint":false}"#, true),
            RepeatSafety::Unsafe
        );
    }

    #[test]
    fn a_hint_that_is_no_boolean_counts_as_absent() {
        assert_eq!(
            safety(
                r#"{"readOnlyHint":"yes","idempotentHint":1,"title":"x"}"#,
                true
            ),
            RepeatSafety::Unsafe
        );
    }

    #[test]
    fn our_codes_lie_outside_the_reserved_range_and_differ() {
        let mut all = code::ALL.to_vec();
        assert!(all.iter().all(|code| !(-32768..=-32000).contains(code)));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), code::ALL.len());
        assert_eq!(code_of(Ending::OutcomeUnknown), code::OUTCOME_UNKNOWN);
    }
}
