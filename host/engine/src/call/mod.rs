//! One call, from start to end.

mod types;

pub use types::{
    Attempt, AttemptKind, AttemptRecord, Call, CallError, CallFacts, CallId, Degraded, Ending, Failed, Level, Outcome,
    RepeatSafety, Step, Trouble, Verdict,
};
