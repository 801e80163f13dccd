//! A stream on its way to a client: what was held back, then each event as it comes, and an end that
//! hides nothing. Dropping it, as the server does when the client goes away, closes the connection
//! to the model.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use backstop::call::{AttemptKind, AttemptRecord, CallId, Ending, Level, Trouble};
use backstop::event::EventKind;
use backstop::registry::Permit;
use backstop::{CallError, Exchange, Failure, Kind, Origin, Outcome};
use bytes::Bytes;
use tokio::time::Instant;

use super::Models;
use super::error::{ApiError, ModelError};
use super::exchange::{Body, ModelAnswer, Stream};
use super::front::Asked;
use super::request::Begun;
use super::stream::Pieces;

const DONE: &[u8] = b"data: [DONE]\n\n";

/// A stream for one client.
pub(crate) struct Relay {
    models: Arc<Models>,
    asked: Asked,
    /// The call that began it; of the models asked, the one that speaks.
    call: CallId,
    target: Arc<str>,
    held: VecDeque<Bytes>,
    rest: Pieces,
    leave: Option<(Permit, Duration)>,
    began: Instant,
    failed: Vec<AttemptRecord>,
    attempts: u32,
    /// Why it first broke off.
    cause: Option<Arc<Failure>>,
    over: bool,
}

impl Relay {
    /// The stream that answered a call; `began` is when the call did.
    pub(crate) fn new(
        models: Arc<Models>,
        asked: Asked,
        stream: Stream,
        answered: Answered,
        began: Instant,
    ) -> Self {
        let Stream { held, rest, leave } = stream;
        Self {
            models,
            asked,
            call: answered.call,
            target: answered.by,
            held,
            rest,
            leave,
            began,
            failed: answered.failed,
            attempts: answered.attempts,
            cause: None,
            over: false,
        }
    }

    /// The next event; `None` once there is none left.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        loop {
            if let Some(data) = self.held.pop_front() {
                return Some(event(&data));
            }
            match self.rest.next().await {
                Ok(Some(piece)) => return Some(event(&piece.data)),
                Ok(None) => {
                    if let Some((permit, took)) = self.leave.take() {
                        permit.succeeded(Instant::now(), took);
                    }
                    self.over = true;
                    return Some(Bytes::from_static(DONE));
                }
                Err(error) => {
                    if let Some(last) = self.broke(error).await {
                        self.over = true;
                        return Some(last);
                    }
                }
            }
        }
    }

    /// The stream broke off: another model goes on with it where that is wanted and possible,
    /// otherwise this is the event that says so.
    async fn broke(&mut self, error: ModelError) -> Option<Bytes> {
        let models = self.models.clone();
        let engine = &models.engine;
        let failure = models
            .exchange
            .classify(Err(&error), engine.detector())
            .unwrap_or_else(|| Failure::new(Kind::STREAM_INTERRUPTED, error.to_string()));
        let failure = Arc::new(failure);
        if let Some((permit, _)) = self.leave.take()
            && failure.origin == Origin::Remote
        {
            permit.failed(Instant::now(), failure.ill_health);
        }
        let kind = if self.attempts == 1 {
            AttemptKind::Original
        } else {
            AttemptKind::Fallback
        };
        engine.announce(EventKind::AttemptFailed {
            call: self.call,
            group: self.asked.group.clone(),
            operation: self.asked.operation(),
            target: Some(self.target.clone()),
            attempt: self.attempts,
            attempt_type: kind,
            failure: failure.clone(),
            duration: self.began.elapsed(),
        });
        let cause = self.cause.get_or_insert_with(|| failure.clone()).clone();
        self.failed.push(AttemptRecord {
            target: self.target.clone(),
            operation: self.asked.operation(),
            attempt: kind,
            failure,
            delay: Duration::ZERO,
            duration: self.began.elapsed(),
        });
        if self.go_on().await {
            return None;
        }
        engine.announce(EventKind::CallFailed {
            call: self.call,
            group: self.asked.group.clone(),
            operation: self.asked.operation(),
            level: Level::Model,
            ending: Ending::Exhausted,
            kind: cause.kind.clone(),
            attempts: u32::try_from(self.failed.len()).unwrap_or(u32::MAX),
            duration: self.began.elapsed(),
            trouble: Arc::new(Trouble {
                attempts: self.failed.clone(),
                steps: Vec::new(),
            }),
        });
        Some(event(
            ApiError::of_stream(&cause, &self.failed).body().as_bytes(),
        ))
    }

    /// Has another model go on with the answer. Says whether one does.
    async fn go_on(&mut self) -> bool {
        let Some(text) = self.rest.text().filter(|_| self.asked.may_be_continued()) else {
            return false;
        };
        let begun = self.asked.request.begun.get_or_insert_with(|| Begun {
            text: String::new(),
            without: Vec::new(),
        });
        begun.text.push_str(text);
        begun.without.push(self.target.clone());
        let began = Instant::now();
        let models = self.models.clone();
        match models.ask(&self.asked).await {
            Ok(outcome) => {
                let (answered, answer) = Answered::of(outcome);
                let Body::Stream(stream) = answer.body else {
                    return false;
                };
                let Stream { held, rest, leave } = *stream;
                (self.held, self.rest, self.leave) = (held, rest, leave);
                (self.target, self.began) = (answered.by, began);
                self.attempts = self.attempts.saturating_add(answered.attempts);
                self.failed.extend(answered.failed);
                true
            }
            // Why nobody could go on stands behind the cause, never in its place.
            Err((CallError { trouble, .. }, _)) => {
                self.failed.extend(trouble.attempts);
                false
            }
        }
    }
}

/// Who answered a call, and what was tried before.
pub(crate) struct Answered {
    pub(crate) call: CallId,
    pub(crate) by: Arc<str>,
    pub(crate) attempts: u32,
    pub(crate) failed: Vec<AttemptRecord>,
}

impl Answered {
    pub(crate) fn of(outcome: Outcome<ModelAnswer>) -> (Self, ModelAnswer) {
        let answered = Self {
            call: outcome.id,
            attempts: outcome.attempts(),
            by: outcome.served_by.unwrap_or_default(),
            failed: outcome
                .trouble
                .map(|trouble| trouble.attempts)
                .unwrap_or_default(),
        };
        (answered, outcome.answer)
    }
}

fn event(data: &[u8]) -> Bytes {
    [b"data: ", data, b"\n\n"].concat().into()
}
