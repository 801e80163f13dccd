//! One call, from start to end.
//!
//! A healthy call is a straight line: pick a target, send, classify, done. It takes no lock, asks no
//! strategy and builds no history. Everything a failing call needs is the recovery, which is
//! entered after the first failure and lives on the heap, so that a waiting healthy call stays small.

mod decide;
mod execute;
mod hedged;
mod recover;
mod surroundings;
mod types;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

#[cfg(feature = "tower")]
pub(crate) use execute::chain;
pub(crate) use types::as_millis;
pub use types::{
    Attempt, AttemptKind, AttemptRecord, Call, CallError, CallFacts, CallId, Degraded, Ending,
    Failed, Level, Outcome, RepeatSafety, Step, Trouble, Verdict,
};
use types::{MAX_DEADLINE, Timing};

use crate::cache::CacheKey;
use crate::engine::Engine;
use crate::exchange::{Exchange, targets_of};
use crate::failure::{Failure, Origin};
use crate::in_force::InForce;
use crate::kind::Kind;
use crate::registry::{Permit, Pick, PickRequest};
use crate::trace;
use hedged::{First, Terms};
use recover::{Recovery, Setting};

/// What came of one attempt.
enum Tried<A, E> {
    Good {
        answer: A,
        /// When it came.
        at: Instant,
    },
    Bad {
        failure: Failure,
        raw: Option<Result<A, E>>,
        took: Duration,
    },
}

impl Engine {
    /// Makes a call: sends the request to the best target of the group and, where that fails, does
    /// what the strategies propose and the guard allows, until there is an answer or a clean error.
    ///
    /// Ends by the deadline. Dropping the future cancels the call.
    ///
    /// # Errors
    /// [`Failed`] with the first cause, every attempt and every strategy asked.
    pub async fn call<X: Exchange>(
        &self,
        exchange: &X,
        mut call: Call,
        request: &X::Request,
    ) -> Result<Outcome<X::Answer>, Failed<X::Answer, X::Error>> {
        call.facts.id = self.shared.ids.next();
        let span = trace::call(&call.facts);
        if span.is_disabled() {
            return self.carry_out(exchange, call, request).await;
        }
        let carried_out = self.carry_out(exchange, call, request);
        let result = carried_out.instrument(span.clone()).await;
        trace::called(&span, &result);
        result
    }

    async fn carry_out<X: Exchange>(
        &self,
        exchange: &X,
        call: Call,
        request: &X::Request,
    ) -> Result<Outcome<X::Answer>, Failed<X::Answer, X::Error>> {
        let shared = &self.shared;
        let started = Instant::now();
        // What it goes by to its end.
        let in_force = shared.current.keep();
        let deadlines = in_force.settings.deadlines;
        let timing = Timing {
            started,
            deadline: started + call.deadline.unwrap_or(deadlines.call).min(MAX_DEADLINE),
            attempt: call.attempt_timeout.unwrap_or(deadlines.attempt),
            attempt_max: deadlines.attempt_max,
        };
        let facts = call.facts;
        let hedge = call
            .hedge
            .filter(|_| call.pin.is_none() && !call.no_fallback)
            .map(|hedge| (hedge, call.safety));
        shared.call_began(&in_force, &facts.group, started);

        // A pinned exchange began at its target: nobody else can go on with it.
        let unsuited = match call.pin {
            Some(_) => None,
            None => exchange.unsuited(&facts.group, &facts.operation),
        };
        let unfit = exchange.unfit(request, &facts.group, &[]);
        let wanted = PickRequest {
            exclude: &unfit,
            unsuited: targets_of(unsuited.as_ref()),
            name: call.pin.as_deref(),
            ..PickRequest::default()
        };
        let pick = shared
            .registry
            .pick_permit(&facts.group, &wanted, started, &mut || (shared.random)());
        let first = match pick {
            _ if timing.deadline <= started => First::nobody(no_time()),
            None => First::nobody(shared.nobody_to_ask(&facts.group)),
            Some(permit) => match hedge.and_then(|hedge| self.hedging(exchange, hedge, &facts)) {
                None => {
                    let kind = (1, AttemptKind::Original);
                    let operation = facts.operation.clone();
                    let target = permit.target().clone();
                    let mut attempt =
                        Attempt::new(&facts, target, operation, kind, started, &timing);
                    let tried = self.attempt(exchange, &in_force, &mut attempt, request, permit);
                    First::only(tried.await, attempt)
                }
                Some(schedule) => {
                    let budget = shared.budget_of(&in_force, &facts.group);
                    let terms = Terms {
                        timing: &timing,
                        in_force: &in_force,
                        budget: &budget,
                    };
                    let target = permit.target().clone();
                    let pick = Pick { target, permit };
                    let race = self.race(exchange, &facts, request, pick, schedule, terms);
                    Box::pin(race).await
                }
            },
        };
        if let First::Answered { answer, by, .. } = &first {
            shared.call_succeeded(&in_force, &facts.group);
            if in_force.cache.is_some() {
                self.keep_good(exchange, &facts, &facts.group, by, request, answer);
            }
        }
        if let First::Answered {
            answer,
            by,
            at,
            other: None,
        } = first
        {
            let took = at.saturating_duration_since(started);
            shared.meter.call_answered(&by.target, facts.level, took);
            return Ok(Outcome {
                answer,
                id: facts.id,
                served_by: Some(by.target.name.clone()),
                degraded: None,
                trouble: None,
            });
        }
        let setting = Setting {
            safety: call
                .safety
                .unwrap_or_else(|| exchange.repeat_safety(&facts.operation)),
            budget: shared.budget_of(&in_force, &facts.group),
            facts,
            timing,
            in_force,
            pin: call.pin,
            no_fallback: call.no_fallback,
        };
        Box::pin(Recovery::new(self, exchange, request, setting).run(first)).await
    }

    /// One attempt, bounded by its timeout and the call's deadline.
    async fn attempt<X: Exchange>(
        &self,
        exchange: &X,
        in_force: &InForce,
        attempt: &mut Attempt,
        request: &X::Request,
        mut permit: Permit,
    ) -> Tried<X::Answer, X::Error> {
        if permit.target().is_limited() {
            let (entered, took) = match permit.try_enter(attempt.started) {
                Some(entered) => (entered, Duration::ZERO),
                None => {
                    let entered = permit.enter(attempt.queue_until()).await;
                    let now = Instant::now();
                    // A place that comes free at the last moment comes too late.
                    let in_time = || (now < attempt.deadline).then_some(()).ok_or_else(no_time);
                    (entered.and_then(|()| in_time()), attempt.begin(now))
                }
            };
            if let Err(failure) = entered {
                return Tried::Bad {
                    failure,
                    raw: None,
                    took,
                };
            }
        }
        let attempt = &*attempt;
        let span = trace::attempt(attempt);
        let send = pin!(exchange.send(attempt, request));
        let sent = wait(send, attempt);
        let result = if span.is_disabled() {
            sent.await
        } else {
            sent.instrument(span.clone()).await
        };
        let now = Instant::now();
        let took = now.saturating_duration_since(attempt.started);
        let (failure, raw) = match result {
            Some(raw) => match (exchange.classify(raw.as_ref(), &in_force.detector), raw) {
                (None, Ok(mut answer)) => {
                    permit.note_answer(now);
                    exchange.settle(&mut answer, permit, took);
                    self.shared.meter.attempt_answered(attempt);
                    return Tried::Good { answer, at: now };
                }
                (Some(mut failure), raw) => {
                    attempt.target.spec.correct(&mut failure);
                    (failure, Some(raw))
                }
                // An exchange that finds nothing wrong with an error: still not an answer.
                // What became of the request nobody knows.
                (None, raw) => {
                    let failure =
                        Failure::new(Kind::UNKNOWN, "the attempt failed without a reason");
                    (
                        Failure {
                            ambiguous: true,
                            ..failure
                        },
                        Some(raw),
                    )
                }
            },
            // It was not silent for a whole timeout: the call's deadline, or the longest time of an
            // attempt, came before. That says nothing about the target: no verdict.
            None if attempt.quiet_for(now) < attempt.timeout => {
                drop(permit);
                let failure = in_force.detector.timed_out(took);
                let failure = Failure {
                    silent: false,
                    ill_health: false,
                    ..failure
                };
                trace::attempt_failed(&span, &failure);
                return Tried::Bad {
                    failure,
                    raw: None,
                    took,
                };
            }
            None => (in_force.detector.timed_out(attempt.timeout), None),
        };
        trace::attempt_failed(&span, &failure);
        // What arose in the host says nothing about the target either.
        if failure.origin == Origin::Remote {
            permit.failed(now, failure.ill_health);
        }
        Tried::Bad { failure, raw, took }
    }

    /// Keeps a good answer as the last known one, where a cache is configured.
    fn keep_good<X: Exchange>(
        &self,
        exchange: &X,
        facts: &CallFacts,
        group: &Arc<str>,
        attempt: &Attempt,
        request: &X::Request,
        answer: &X::Answer,
    ) {
        if let Some(cache) = &self.shared.current.now().cache
            && let Some(retained) = exchange.retain(request, answer)
        {
            let arguments = exchange.arguments(request);
            let key = CacheKey::new(
                facts.level,
                group.clone(),
                attempt.operation.clone(),
                arguments.as_deref(),
            );
            cache.keep(
                key,
                facts.caller.clone(),
                attempt.target.name.clone(),
                retained,
                Instant::now(),
            );
        }
    }
}

fn no_time() -> Failure {
    Failure {
        ambiguous: false,
        ill_health: false,
        origin: Origin::Local,
        ..Failure::new(Kind::TIMEOUT_ERROR, "the call has no time")
    }
}

/// Waits for an attempt, for as long as it shows life within its timeout, never past the deadline. The
/// future is lent: taken, it would lie in this one twice.
async fn wait<T>(mut send: Pin<&mut impl Future<Output = T>>, attempt: &Attempt) -> Option<T> {
    // What is answered at once needs no timer.
    if let Poll::Ready(result) = poll_fn(|cx| Poll::Ready(send.as_mut().poll(cx))).await {
        return Some(result);
    }
    loop {
        let until = attempt.limit();
        match timeout_at(until, send.as_mut()).await {
            Ok(result) => return Some(result),
            // It has shown life meanwhile: the limit has moved.
            Err(_) if attempt.limit() > until => {}
            Err(_) => return None,
        }
    }
}
