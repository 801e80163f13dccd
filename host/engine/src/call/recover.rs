//! What happens after a first failure: ask the strategies, let the guard judge, carry out, repeat.
//!
//! Every round either answers the call, ends it, or makes one more attempt (or finds that the target
//! can no longer be asked, which counts as one); the attempt cap and the deadline bound the rounds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::hedged::{First, Other};
use super::types::Timing;
use super::{
    Attempt, AttemptKind, AttemptRecord, CallError, CallFacts, Degraded, Ending, Failed, Outcome,
    RepeatSafety, Tried, Trouble,
};
use crate::budget::RetryBudget;
use crate::canonical::canonical;
use crate::engine::Engine;
use crate::event::EventKind;
use crate::exchange::{Exchange, targets_of};
use crate::failure::Failure;
use crate::guard::Ledger;
use crate::in_force::InForce;
use crate::registry::{PickRequest, Target};

/// What a call brings into its recovery.
pub(super) struct Setting {
    pub(super) facts: CallFacts,
    pub(super) safety: RepeatSafety,
    pub(super) timing: Timing,
    pub(super) in_force: Arc<InForce>,
    pub(super) budget: Arc<RetryBudget>,
    pub(super) pin: Option<Arc<str>>,
    pub(super) no_fallback: bool,
}

/// An attempt that was made and failed.
pub(super) struct Made<A, E> {
    pub(super) attempt: Attempt,
    pub(super) raw: Option<Result<A, E>>,
    pub(super) took: Duration,
    pub(super) delay: Duration,
}

impl<A, E> Made<A, E> {
    /// An attempt that nothing was waited for.
    pub(super) fn at_once(attempt: Attempt, raw: Option<Result<A, E>>, took: Duration) -> Self {
        Self {
            attempt,
            raw,
            took,
            delay: Duration::ZERO,
        }
    }
}

/// What is done next.
pub(super) enum Plan<A> {
    Attempt(Next),
    Answer {
        answer: A,
        degraded: Degraded,
    },
    End {
        ending: Ending,
        message: Option<String>,
    },
}

/// The next attempt.
pub(super) struct Next {
    pub(super) kind: AttemptKind,
    /// `None`: whichever target of the group is best when the wait is over.
    pub(super) target: Option<Arc<str>>,
    pub(super) delay: Duration,
}

pub(super) struct Recovery<'a, X: Exchange> {
    pub(super) engine: &'a Engine,
    pub(super) exchange: &'a X,
    pub(super) original: &'a X::Request,
    /// The request of the operation that took the original's place.
    pub(super) redirected: Option<X::Request>,
    pub(super) facts: Arc<CallFacts>,
    pub(super) timing: Timing,
    /// What the call began with.
    pub(super) in_force: Arc<InForce>,
    pub(super) budget: Arc<RetryBudget>,
    pub(super) pin: Option<Arc<str>>,
    /// The present operation, its group, its arguments (as sent, and canonical), its safety.
    pub(super) operation: Arc<str>,
    pub(super) group: Arc<str>,
    pub(super) arguments: Option<Bytes>,
    pub(super) canonical: Bytes,
    pub(super) safety: RepeatSafety,
    /// The target that failed last.
    pub(super) present: Option<Arc<Target>>,
    pub(super) ledger: Ledger,
    pub(super) trouble: Trouble,
    /// Targets that cannot serve the present request.
    pub(super) unfit: Vec<Arc<str>>,
    /// The delay before the last retry, which decorrelated jitter builds on.
    pub(super) previous_delay: Option<Duration>,
    cause: Option<Arc<Failure>>,
    raw: Option<Result<X::Answer, X::Error>>,
    no_fallback: bool,
    /// An attempt of an operation that must not be done twice ended without an answer.
    unknown: bool,
}

type Ended<X> = Result<
    Outcome<<X as Exchange>::Answer>,
    Failed<<X as Exchange>::Answer, <X as Exchange>::Error>,
>;

impl<'a, X: Exchange> Recovery<'a, X> {
    pub(super) fn new(
        engine: &'a Engine,
        exchange: &'a X,
        request: &'a X::Request,
        setting: Setting,
    ) -> Self {
        let Setting {
            facts,
            safety,
            timing,
            in_force,
            budget,
            pin,
            no_fallback,
        } = setting;
        let arguments = exchange.arguments(request);
        let ledger = Ledger::new(in_force.settings.caps);
        Self {
            engine,
            exchange,
            original: request,
            redirected: None,
            operation: facts.operation.clone(),
            group: facts.group.clone(),
            facts: Arc::new(facts),
            timing,
            in_force,
            budget,
            pin,
            canonical: arguments.as_deref().map(canonical).unwrap_or_default(),
            arguments,
            safety,
            present: None,
            ledger,
            trouble: Trouble::default(),
            unfit: Vec::new(),
            previous_delay: None,
            cause: None,
            raw: None,
            no_fallback,
            unknown: false,
        }
    }

    pub(super) async fn run(mut self, first: First<X::Answer, X::Error>) -> Ended<X> {
        let mut failure = match first {
            First::Answered {
                answer, by, other, ..
            } => {
                if let Some(other) = other {
                    self.note_other(*other);
                }
                return Ok(self.answered(answer, Some(by.target.name.clone()), None));
            }
            First::Failed {
                made,
                failure,
                other,
            } => {
                // What failed before is the first cause; what was given up is none.
                let (before, given_up) = match other {
                    Some(other) if other.given_up => (None, Some(other)),
                    other => (other, None),
                };
                if let Some(other) = before {
                    self.note_other(*other);
                }
                let failure = self.note(made, failure);
                if let Some(other) = given_up {
                    self.note_other(*other);
                }
                failure
            }
        };
        loop {
            let plan = if self.no_fallback {
                Plan::End {
                    ending: self.exhausted(),
                    message: None,
                }
            } else {
                self.decide(&failure).await
            };
            let next = match plan {
                Plan::Attempt(next) => next,
                Plan::Answer { answer, degraded } => {
                    return Ok(self.answered(answer, None, Some(degraded)));
                }
                Plan::End { ending, message } => return Err(self.ended(ending, message, failure)),
            };
            if !next.delay.is_zero() {
                sleep(next.delay).await;
            }
            // A strategy that took its time, or a timer that fired late: nothing is sent any more.
            if Instant::now() >= self.timing.deadline {
                return Err(self.ended(Ending::DeadlineExceeded, None, failure));
            }
            let (made, latest) = match self.make(next).await {
                Ok(outcome) => return Ok(outcome),
                Err(bad) => bad,
            };
            failure = self.note(made, latest);
        }
    }

    /// Makes one more attempt.
    async fn make(
        &mut self,
        next: Next,
    ) -> Result<Outcome<X::Answer>, (Option<Made<X::Answer, X::Error>>, Failure)> {
        let shared = &self.engine.shared;
        let now = Instant::now();
        let name = next.target.as_deref().or(self.pin.as_deref());
        let unsuited = match name {
            Some(_) => None,
            None => self.exchange.unsuited(&self.group, &self.operation),
        };
        let wanted = PickRequest {
            exclude: &self.unfit,
            unsuited: targets_of(unsuited.as_ref()),
            name,
            ..PickRequest::default()
        };
        let Some(pick) = shared
            .registry
            .pick(&self.group, &wanted, now, &mut || (shared.random)())
        else {
            return Err((None, shared.nobody_to_ask(&self.group)));
        };
        let kind = (self.ledger.attempts.saturating_add(1), next.kind);
        let operation = self.operation.clone();
        let mut attempt =
            Attempt::new(&self.facts, pick.target, operation, kind, now, &self.timing);
        let request = self.redirected.as_ref().unwrap_or(self.original);
        match self
            .engine
            .attempt(
                self.exchange,
                &self.in_force,
                &mut attempt,
                request,
                pick.permit,
            )
            .await
        {
            Tried::Good { answer, .. } => {
                self.budget.call_succeeded();
                self.engine.keep_good(
                    self.exchange,
                    &self.facts,
                    &self.group,
                    &attempt,
                    request,
                    &answer,
                );
                let changed = self.operation != self.facts.operation;
                let degraded = changed.then(|| Degraded::Operation {
                    operation: self.operation.clone(),
                });
                Ok(self.answered(answer, Some(attempt.target.name.clone()), degraded))
            }
            Tried::Bad { failure, raw, took } => Err((
                Some(Made {
                    attempt,
                    raw,
                    took,
                    delay: next.delay,
                }),
                failure,
            )),
        }
    }

    /// Writes the other of two attempts into the books.
    fn note_other(&mut self, other: Other<X::Answer, X::Error>) {
        let Other {
            made,
            failure,
            given_up,
        } = other;
        if !given_up {
            self.note(Some(made), failure);
            return;
        }
        // It counts and is not made again, yet it has not failed.
        self.ledger.attempts = self.ledger.attempts.saturating_add(1);
        self.ledger
            .visited
            .insert(&made.attempt.target.name, &self.operation, &self.canonical);
        self.trouble.attempts.push(AttemptRecord {
            target: made.attempt.target.name.clone(),
            operation: self.operation.clone(),
            attempt: made.attempt.kind,
            failure: Arc::new(failure),
            delay: made.delay,
            duration: made.took,
        });
    }

    /// Writes a failed attempt, or a round without one, into the books.
    fn note(&mut self, made: Option<Made<X::Answer, X::Error>>, failure: Failure) -> Arc<Failure> {
        let failure = Arc::new(failure);
        self.ledger.attempts = self.ledger.attempts.saturating_add(1);
        self.cause.get_or_insert_with(|| failure.clone());
        let (target, kind, duration) = match made {
            None => (None, AttemptKind::Original, Duration::ZERO),
            Some(Made {
                attempt,
                raw,
                took,
                delay,
            }) => {
                let answered = matches!(raw, Some(Ok(_)));
                // A tool that says it failed has run; whether its work is half done nobody knows.
                if !self.safety.is_repeatable()
                    && (failure.ambiguous || failure.kind == crate::Kind::TOOL_ERROR)
                {
                    self.ledger.maybe_done = true;
                    self.unknown |= !answered;
                }
                self.ledger
                    .visited
                    .insert(&attempt.target.name, &self.operation, &self.canonical);
                self.trouble.attempts.push(AttemptRecord {
                    target: attempt.target.name.clone(),
                    operation: self.operation.clone(),
                    attempt: attempt.kind,
                    failure: failure.clone(),
                    delay,
                    duration: took,
                });
                if raw.is_some() {
                    self.raw = raw;
                }
                self.present = Some(attempt.target.clone());
                (Some(attempt.target.name.clone()), attempt.kind, took)
            }
        };
        self.engine.shared.emit(|| EventKind::AttemptFailed {
            call: self.facts.id,
            group: self.group.clone(),
            operation: self.operation.clone(),
            target,
            attempt: self.ledger.attempts,
            attempt_type: kind,
            failure: failure.clone(),
            duration,
        });
        failure
    }

    /// Whether the present operation may be sent again.
    pub(super) fn is_repeatable(&self) -> bool {
        !self.ledger.maybe_done
    }

    /// How a call ends that has nothing left to try.
    pub(super) fn exhausted(&self) -> Ending {
        if Instant::now() >= self.timing.deadline {
            Ending::DeadlineExceeded
        } else if self.trouble.attempts.is_empty() {
            Ending::NoTarget
        } else {
            Ending::Exhausted
        }
    }

    fn answered(
        &mut self,
        answer: X::Answer,
        served_by: Option<Arc<str>>,
        degraded: Option<Degraded>,
    ) -> Outcome<X::Answer> {
        let trouble = Some(Box::new(std::mem::take(&mut self.trouble)));
        let outcome = Outcome {
            answer,
            id: self.facts.id,
            served_by,
            degraded,
            trouble,
        };
        self.engine.shared.emit(|| EventKind::CallSaved {
            call: outcome.id,
            group: self.facts.group.clone(),
            operation: self.facts.operation.clone(),
            level: self.facts.level,
            served_by: outcome.served_by.clone(),
            degraded: outcome.degraded.clone(),
            attempts: outcome.attempts(),
            duration: self.timing.started.elapsed(),
            trouble: Arc::new(outcome.trouble.as_deref().cloned().unwrap_or_default()),
        });
        outcome
    }

    fn ended(
        &mut self,
        ending: Ending,
        message: Option<String>,
        failure: Arc<Failure>,
    ) -> Failed<X::Answer, X::Error> {
        // That something may have been done twice if repeated outweighs why nothing more was tried.
        let ending = if self.unknown {
            Ending::OutcomeUnknown
        } else {
            ending
        };
        let error = CallError {
            id: self.facts.id,
            operation: self.facts.operation.clone(),
            group: self.facts.group.clone(),
            ending,
            message,
            cause: self.cause.take().unwrap_or_else(|| failure.clone()),
            trouble: std::mem::take(&mut self.trouble),
        };
        self.engine.shared.emit(|| EventKind::CallFailed {
            call: error.id,
            group: error.group.clone(),
            operation: error.operation.clone(),
            level: self.facts.level,
            ending,
            kind: failure.kind.clone(),
            attempts: u32::try_from(error.trouble.attempts.len()).unwrap_or(u32::MAX),
            duration: self.timing.started.elapsed(),
            trouble: Arc::new(error.trouble.clone()),
        });
        Failed {
            error,
            raw: self.raw.take(),
        }
    }
}
