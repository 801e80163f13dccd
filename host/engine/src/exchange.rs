//! The seam between the engine and what carries a request.
//!
//! The engine decides *who* is asked, *when* and *whether again*; an [`Exchange`] knows *how*. The
//! engine moves a request and an answer it need not understand.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::call::{Attempt, AttemptRecord, Degraded, RepeatSafety};
use crate::detect::Detector;
use crate::failure::Failure;
use crate::registry::Permit;

/// How a request is sent, and what its answer means.
pub trait Exchange: Send + Sync {
    /// What is sent.
    type Request: Send + Sync;
    /// What comes back when a target answers, well or badly.
    type Answer: Send;
    /// What comes back when none does.
    type Error: Send;

    /// Sends the request to the attempt's target, once.
    ///
    /// The future is dropped when the attempt's time is up or the caller gives up; it must then
    /// cancel what it can. It must not retry by itself: there is one retry loop.
    fn send(
        &self,
        attempt: &Attempt,
        request: &Self::Request,
    ) -> impl Future<Output = Result<Self::Answer, Self::Error>> + Send;

    /// Says whether the outcome of an attempt is a failure, and which.
    fn classify(
        &self,
        outcome: Result<&Self::Answer, &Self::Error>,
        detector: &Detector,
    ) -> Option<Failure>;

    /// The targets of a group that cannot serve the request, such as models whose context is too small
    /// for it; `failed` is what the call has met so far. They are not asked. Default: none.
    fn unfit(
        &self,
        request: &Self::Request,
        group: &str,
        failed: &[AttemptRecord],
    ) -> Vec<Arc<str>> {
        let _ = (request, group, failed);
        Vec::new()
    }

    /// Gives back the leave to ask the target, after a good answer that took `took`. An answer that is
    /// still under way when it is handed on, such as a stream, takes the leave along and gives it
    /// back at its end. Default: the target answered well.
    fn settle(&self, answer: &mut Self::Answer, permit: Permit, took: Duration) {
        let _ = answer;
        permit.answered(took);
    }

    /// The request's arguments as JSON, for strategies that look at them and for the visited set.
    fn arguments(&self, request: &Self::Request) -> Option<Bytes> {
        let _ = request;
        None
    }

    /// Whether an operation may be repeated. Asked again when a fallback changes the operation; for
    /// the call's own operation, what the [`Call`](crate::Call) says goes first.
    fn repeat_safety(&self, operation: &str) -> RepeatSafety {
        let _ = operation;
        RepeatSafety::Unsafe
    }

    /// The group whose targets offer an operation; `None` means the call's own group.
    fn group_of(&self, operation: &str) -> Option<Arc<str>> {
        let _ = operation;
        None
    }

    /// The targets of a group that must not be asked for an operation, whatever their health: they do
    /// not have it, or mean something else by it. Asked for every call; `None` where every target of
    /// the group will do.
    fn unsuited(&self, group: &str, operation: &str) -> Option<Arc<Unsuited>> {
        let _ = (group, operation);
        None
    }

    /// The same request for another operation.
    ///
    /// # Errors
    /// One sentence that says why it cannot be made; the action is then refused with it.
    fn redirect(
        &self,
        request: &Self::Request,
        operation: &str,
        arguments: Option<&str>,
    ) -> Result<Self::Request, String> {
        let _ = (request, operation, arguments);
        Err("this kind of call cannot change its operation".into())
    }

    /// An answer made of data, marked as what it is.
    ///
    /// # Errors
    /// One sentence that says why it cannot be made; the action is then refused with it.
    fn compose(
        &self,
        request: &Self::Request,
        body: &[u8],
        label: &Degraded,
    ) -> Result<Self::Answer, String> {
        let _ = (request, body, label);
        Err("this kind of call cannot be answered with data".into())
    }

    /// What to keep of a good answer as the last known good one; `None` keeps nothing. Asked only
    /// where a cache is configured.
    fn retain(&self, request: &Self::Request, answer: &Self::Answer) -> Option<Retained> {
        let _ = (request, answer);
        None
    }
}

/// What is kept of a good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retained {
    /// The answer, as JSON.
    pub body: Bytes,
    /// Whether other callers may be given it.
    pub shared: bool,
    /// How long it may be kept, where the server said so.
    pub ttl: Option<Duration>,
}

/// Targets that must not be asked for an operation, each with the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unsuited {
    targets: Vec<Arc<str>>,
    reasons: Vec<String>,
}

impl Unsuited {
    /// Adds a target; the reason is one clause about it, such as `it has no such tool`.
    pub fn add(&mut self, target: Arc<str>, reason: impl Into<String>) {
        self.targets.push(target);
        self.reasons.push(reason.into());
    }

    /// Whether it names no target.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// The targets.
    pub fn targets(&self) -> &[Arc<str>] {
        &self.targets
    }

    /// Why a target must not be asked; `None` where it may be.
    pub fn reason(&self, target: &str) -> Option<&str> {
        let mut pairs = self.targets.iter().zip(&self.reasons);
        pairs.find_map(|(name, reason)| (**name == *target).then_some(reason.as_str()))
    }
}

/// The targets a pick must leave alone.
pub(crate) fn targets_of(unsuited: Option<&Arc<Unsuited>>) -> &[Arc<str>] {
    unsuited.map_or(&[], |unsuited| unsuited.targets())
}
