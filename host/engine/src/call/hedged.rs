//! The first attempt of a call that may be hedged.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, select};
use tokio::time::{Instant, timeout_at};

use super::recover::Made;
use super::types::Timing;
use super::{Attempt, AttemptKind, CallFacts, RepeatSafety, Tried};
use crate::budget::RetryBudget;
use crate::engine::Engine;
use crate::event::EventKind;
use crate::exchange::{Exchange, targets_of};
use crate::failure::Failure;
use crate::hedge::{Hedge, Schedule};
use crate::in_force::InForce;
use crate::kind::Kind;
use crate::registry::{Permit, Pick, PickRequest, Target};

/// What came of the first attempt, or of it and its hedge.
pub(super) enum First<A, E> {
    Answered {
        answer: A,
        by: Attempt,
        /// When it came.
        at: Instant,
        other: Option<Box<Other<A, E>>>,
    },
    Failed {
        /// `None` where nobody could be asked.
        made: Option<Made<A, E>>,
        failure: Failure,
        other: Option<Box<Other<A, E>>>,
    },
}

impl<A, E> First<A, E> {
    pub(super) fn nobody(failure: Failure) -> Self {
        Self::Failed {
            made: None,
            failure,
            other: None,
        }
    }

    pub(super) fn only(tried: Tried<A, E>, attempt: Attempt) -> Self {
        match tried {
            Tried::Good { answer, at } => Self::Answered {
                answer,
                by: attempt,
                at,
                other: None,
            },
            Tried::Bad { failure, raw, took } => Self::Failed {
                made: Some(Made::at_once(attempt, raw, took)),
                failure,
                other: None,
            },
        }
    }
}

/// The other of two attempts.
pub(super) struct Other<A, E> {
    pub(super) made: Made<A, E>,
    pub(super) failure: Failure,
    /// It did not come to its end: the race was over. Otherwise it had failed before.
    pub(super) given_up: bool,
}

/// What a race goes by.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) timing: &'a Timing,
    pub(super) in_force: &'a InForce,
    pub(super) budget: &'a RetryBudget,
}

impl Engine {
    /// When a call is to be hedged; `None` where it must not be. `safety` is what the call says itself.
    pub(super) fn hedging<X: Exchange>(
        &self,
        exchange: &X,
        (hedge, safety): (Hedge, Option<RepeatSafety>),
        facts: &CallFacts,
    ) -> Option<Schedule> {
        let safety = safety.unwrap_or_else(|| exchange.repeat_safety(&facts.operation));
        (safety == RepeatSafety::ReadOnly)
            .then(|| hedge.schedule(&self.shared.answer_times, &facts.group, &facts.operation))
    }

    /// Makes the first attempt, and a second one elsewhere where the first is slow.
    pub(super) async fn race<X: Exchange>(
        &self,
        exchange: &X,
        facts: &CallFacts,
        request: &X::Request,
        pick: Pick,
        schedule: Schedule,
        terms: Terms<'_>,
    ) -> First<X::Answer, X::Error> {
        let attempt = |kind, target, started| {
            let number = if kind == AttemptKind::Hedge { 2 } else { 1 };
            let operation = facts.operation.clone();
            Attempt::new(
                facts,
                target,
                operation,
                (number, kind),
                started,
                terms.timing,
            )
        };
        let began = Instant::now();
        let mut first = attempt(AttemptKind::Original, pick.target, began);
        let first_target = first.target.name.clone();
        let mut second: Option<Attempt> = None;
        let mut results = Results::default();
        {
            let mut original =
                pin!(self.attempt(exchange, terms.in_force, &mut first, request, pick.permit));
            let early = match schedule.after {
                Some(after) => timeout_at(
                    began + after.min(super::types::MAX_DEADLINE),
                    original.as_mut(),
                )
                .await
                .ok(),
                None => Some(original.as_mut().await),
            };
            match early {
                Some(tried) => results.original(tried),
                None => match self.hedge_target(
                    facts,
                    terms,
                    &first_target,
                    targets_of(exchange.unsuited(&facts.group, &facts.operation).as_ref()),
                ) {
                    None => results.original(original.await),
                    Some((target, permit)) => {
                        self.shared.emit(|| EventKind::HedgeSent {
                            call: facts.id,
                            group: facts.group.clone(),
                            operation: facts.operation.clone(),
                            from: first_target.clone(),
                            to: target.name.clone(),
                            after: began.elapsed(),
                        });
                        let second =
                            second.insert(attempt(AttemptKind::Hedge, target, Instant::now()));
                        let hedge = self.attempt(exchange, terms.in_force, second, request, permit);
                        results.both(original, hedge).await;
                    }
                },
            }
        }
        let outcome = results.into_first(first, second);
        if let First::Answered { .. } = &outcome {
            schedule.answered(began.elapsed());
        }
        outcome
    }

    /// Another target that would take the request at once, paid for out of the budget.
    fn hedge_target(
        &self,
        facts: &CallFacts,
        terms: Terms<'_>,
        asked: &Arc<str>,
        unsuited: &[Arc<str>],
    ) -> Option<(Arc<Target>, Permit)> {
        let shared = &self.shared;
        let now = Instant::now();
        if terms.in_force.settings.caps.max_attempts < 2 {
            return None;
        }
        let others = PickRequest {
            exclude: std::slice::from_ref(asked),
            unsuited,
            ..PickRequest::default()
        };
        let target = shared.registry.peek_best(&facts.group, &others, now)?;
        let standing = target.standing(now);
        let ready = standing.healthy && standing.admitted && target.has_room(now);
        if !ready || !terms.budget.try_withdraw(now) {
            return None;
        }
        let named = PickRequest {
            name: Some(&target.name),
            ..PickRequest::default()
        };
        let pick = shared
            .registry
            .pick(&facts.group, &named, now, &mut || (shared.random)())?;
        Some((pick.target, pick.permit))
    }
}

/// What the attempts of a race have come to so far.
struct Results<A, E> {
    original: Option<Tried<A, E>>,
    hedge: Option<Tried<A, E>>,
    hedge_failed_first: bool,
}

impl<A, E> Default for Results<A, E> {
    fn default() -> Self {
        Self {
            original: None,
            hedge: None,
            hedge_failed_first: false,
        }
    }
}

impl<A, E> Results<A, E> {
    fn original(&mut self, tried: Tried<A, E>) {
        self.original = Some(tried);
    }

    /// Waits until one has answered, or one has failed in a way the other would as well, or both have
    /// failed. What is not awaited to its end is dropped by the caller, and so cancelled.
    async fn both(
        &mut self,
        original: impl Future<Output = Tried<A, E>> + Unpin,
        hedge: impl Future<Output = Tried<A, E>>,
    ) {
        match select(original, pin!(hedge)).await {
            Either::Left((tried, hedge)) => {
                let ends = tried.ends_race();
                self.original = Some(tried);
                if !ends {
                    self.hedge = Some(hedge.await);
                }
            }
            Either::Right((tried, original)) => {
                let ends = tried.ends_race();
                self.hedge_failed_first = true;
                self.hedge = Some(tried);
                if !ends {
                    self.original = Some(original.await);
                }
            }
        }
    }

    fn into_first(self, first: Attempt, second: Option<Attempt>) -> First<A, E> {
        let original = (first, self.original);
        let Some(second) = second else {
            return match original {
                (by, Some(Tried::Good { answer, at })) => First::Answered {
                    answer,
                    by,
                    at,
                    other: None,
                },
                (attempt, tried) => {
                    let (made, failure, _) = ended(attempt, tried);
                    First::Failed {
                        made: Some(made),
                        failure,
                        other: None,
                    }
                }
            };
        };
        // Who came to its end last decides; only an attempt that failed is followed by another's end.
        let (last, other) = match (original, (second, self.hedge)) {
            (original, hedge @ (_, None)) => (original, hedge),
            (original @ (_, None), hedge) => (hedge, original),
            (original, hedge) if self.hedge_failed_first => (original, hedge),
            (original, hedge) => (hedge, original),
        };
        let (made, failure, given_up) = ended(other.0, other.1);
        let other = Some(Box::new(Other {
            made,
            failure,
            given_up,
        }));
        match last {
            (by, Some(Tried::Good { answer, at })) => First::Answered {
                answer,
                by,
                at,
                other,
            },
            (attempt, tried) => {
                let (made, failure, _) = ended(attempt, tried);
                First::Failed {
                    made: Some(made),
                    failure,
                    other,
                }
            }
        }
    }
}

/// An attempt without an answer, why, and whether it was given up.
fn ended<A, E>(attempt: Attempt, tried: Option<Tried<A, E>>) -> (Made<A, E>, Failure, bool) {
    match tried {
        Some(Tried::Bad { failure, raw, took }) => {
            (Made::at_once(attempt, raw, took), failure, false)
        }
        // The other one has answered: this answer came too late to be heard.
        Some(Tried::Good { .. }) | None => {
            let took = attempt.started.elapsed();
            let why = "given up: the other attempt came to its end first";
            let failure = Failure::new(Kind::CANCELLED, why);
            (Made::at_once(attempt, None, took), failure, true)
        }
    }
}

impl<A, E> Tried<A, E> {
    /// An answer does; so does a failure that the same request would only meet again.
    fn ends_race(&self) -> bool {
        match self {
            Self::Good { .. } => true,
            Self::Bad { failure, .. } => !failure.retryable,
        }
    }
}
