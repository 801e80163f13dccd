//! A failure, as small as a condition usually needs it.

use std::time::Duration;

use crate::Kind;

/// One failure of one call. What else is known of the call is asked of the [`Host`](crate::Host).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure it is.
    pub kind: Kind,
    /// The HTTP status, where the failure is an HTTP response: 100 to 599.
    pub http_status: Option<u16>,
    /// The JSON-RPC error code, where the failure is a JSON-RPC error response.
    pub rpc_code: Option<i32>,
    /// What it means for what may be done next.
    pub traits: Traits,
    /// How long the server asked to be left alone.
    pub retry_after: Option<Duration>,
    /// Attempts made in this call so far, on every target, this failed one included. At least 1.
    pub attempts: u32,
    /// Of these, the declared retries of the present operation on the present target.
    pub retries: u32,
    /// Fallbacks taken in this call so far: every change of target or operation.
    pub fallbacks: u32,
    /// Time left until the call's deadline.
    pub time_left: Duration,
    /// How much the caller cares: 0 (least) to 100 (most); 50 where the caller said nothing.
    pub importance: u8,
}

/// What a failure means for what may be done next. The host decided each of them, and acts on its
/// own decision whatever a strategy makes of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traits {
    /// The same request may succeed when it is sent again.
    pub retryable: bool,
    /// The server may have acted on the request although no answer arrived.
    pub ambiguous: bool,
    /// It arose in the host, not at the target: a full queue, an open circuit.
    pub local: bool,
    /// The host would let the operation be sent again now.
    pub repeatable: bool,
    /// The target stayed silent for a whole attempt timeout.
    pub silent: bool,
}

impl Failure {
    /// The first failure of a call that may be repeated, with a minute left: where a test starts.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            http_status: None,
            rpc_code: None,
            traits: Traits {
                retryable: true,
                repeatable: true,
                ..Traits::default()
            },
            retry_after: None,
            attempts: 1,
            retries: 0,
            fallbacks: 0,
            time_left: Duration::from_secs(60),
            importance: 50,
        }
    }
}
