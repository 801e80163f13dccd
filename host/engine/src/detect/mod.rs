//! Error detection: what came back from an attempt, turned into a classified [`Failure`](crate::Failure).
// STUB: replaced by the detection helper.

/// Classifies failures.
#[derive(Debug, Default)]
pub struct Detector {}
