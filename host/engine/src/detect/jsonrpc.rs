//! JSON-RPC error codes: what they say about a failure.

use crate::failure::Failure;
use crate::kind::Kind;

/// The codes of JSON-RPC 2.0 and of both eras of MCP.
pub mod code {
    /// The request is no JSON.
    pub const PARSE_ERROR: i64 = -32700;
    /// The request is no JSON-RPC request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// The method, or in MCP the tool, does not exist.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The parameters are wrong.
    pub const INVALID_PARAMS: i64 = -32602;
    /// The server failed.
    pub const INTERNAL_ERROR: i64 = -32603;
    /// The last of the codes, from −32000 down, that mean nothing by themselves: servers and SDKs
    /// use each for several things.
    pub const LAST_WITHOUT_MEANING: i64 = -32019;
    /// A header contradicts the body (MCP 2026-07-28): the tool list is out of date.
    pub const HEADER_MISMATCH: i64 = -32020;
    /// The server needs a capability the client did not declare (MCP 2026-07-28).
    pub const MISSING_CLIENT_CAPABILITY: i64 = -32021;
    /// The server does not speak this protocol version (MCP 2026-07-28).
    pub const UNSUPPORTED_PROTOCOL_VERSION: i64 = -32022;
    /// The user has to visit a URL first (MCP 2025-11-25).
    pub const URL_ELICITATION_REQUIRED: i64 = -32042;

    /// Those that mean something by themselves.
    pub const WITH_MEANING: [i64; 9] = [
        PARSE_ERROR,
        INVALID_REQUEST,
        METHOD_NOT_FOUND,
        INVALID_PARAMS,
        INTERNAL_ERROR,
        HEADER_MISMATCH,
        MISSING_CLIENT_CAPABILITY,
        UNSUPPORTED_PROTOCOL_VERSION,
        URL_ELICITATION_REQUIRED,
    ];
}

/// The detail that names what must be done before a retry makes sense.
pub const REMEDY: &str = "error.remedy";

/// What a code says. `None`: nothing, other signs must decide.
pub(super) fn meaning(code: i64, message: &str) -> Option<Failure> {
    let new = |kind| Failure::new(kind, message);
    // The server refused before it looked at the operation: it is well and has not acted.
    let refused = |retryable| Failure {
        retryable,
        ambiguous: false,
        ill_health: false,
        ..new(Kind::PROTOCOL_ERROR)
    };
    Some(match code {
        code::PARSE_ERROR | code::INVALID_REQUEST | code::INVALID_PARAMS => {
            new(Kind::INVALID_PARAMETER)
        }
        code::METHOD_NOT_FOUND => new(Kind::METHOD_NOT_FOUND).with_detail(REMEDY, "refresh-tools"),
        code::INTERNAL_ERROR => new(Kind::INTERNAL_SERVER_ERROR),
        code::HEADER_MISMATCH => refused(true).with_detail(REMEDY, "refresh-tools"),
        code::MISSING_CLIENT_CAPABILITY => refused(false),
        code::UNSUPPORTED_PROTOCOL_VERSION => refused(true).with_detail(REMEDY, "renegotiate"),
        code::URL_ELICITATION_REQUIRED => new(Kind::TOOL_ERROR),
        _ => return None,
    })
}

/// An error whose code says nothing: the server may have acted before it.
pub(super) fn unknown(message: &str) -> Failure {
    Failure {
        ambiguous: true,
        ..Failure::new(Kind::UNKNOWN, message)
    }
}
