//! Spans: one for each call, attempt and decision, as spans of the [`tracing`] crate.
//!
//! An embedder exports them with whatever subscriber it has; without one that wants them, they cost a
//! comparison each. All have the target [`TARGET`] and the level `INFO`, and fields by the names of
//! OpenTelemetry, those that begin with `otel.` for the `tracing-opentelemetry` crate.
//!
//! | span | fields |
//! |---|---|
//! | `call` | `otel.name` (the operation), `backstop.call`, `backstop.group`, `backstop.operation`, `backstop.level`; at its end `backstop.outcome` (ok, saved, degraded, failed), `backstop.attempts`, `backstop.served_by`, `error.type` (the kind of the first failure of one that failed) |
//! | `attempt` | `otel.name` (the operation and the target), `backstop.target`, `backstop.operation`, `backstop.attempt` (counts from 1), `attempt_type` (original, retry, fallback, hedge); at its end `error.type` (the kind of its failure) |
//! | `decision` | `otel.name` (the strategy), `strategy`; at its end `backstop.verdict` (declined, faulted, proposed), `backstop.action` |
//!
//! Attempts and decisions are children of their call; a call is the child of the span it is made in. None of
//! these names is part of a convention, but `error.type`.

use tracing::Span;
use tracing::field::{Empty, display};
use tracing::level_filters::LevelFilter;

use crate::call::{Attempt, CallFacts, Failed, Outcome};
use crate::failure::Failure;
use crate::strategy::{Decision, Entry, StrategyFault};

/// The target of every span.
pub const TARGET: &str = "backstop::trace";

/// OpenTelemetry's status of a span that ended badly.
const ERROR: &str = "ERROR";

/// Whether anybody could want a span. Asked first, since a build in which the `log` feature of `tracing` is
/// on makes the values of a span before it looks for somebody to tell.
fn is_wanted() -> bool {
    LevelFilter::current() >= LevelFilter::INFO
}

pub(crate) fn call(facts: &CallFacts) -> Span {
    if !is_wanted() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET,
        "call",
        otel.name = &*facts.operation,
        otel.status_code = Empty,
        backstop.call = display(facts.id),
        backstop.group = &*facts.group,
        backstop.operation = &*facts.operation,
        backstop.level = facts.level.as_str(),
        backstop.outcome = Empty,
        backstop.attempts = Empty,
        backstop.served_by = Empty,
        "error.type" = Empty,
    )
}

/// Says how a call ended.
pub(crate) fn called<A, E>(span: &Span, result: &Result<Outcome<A>, Failed<A, E>>) {
    let attempts = match result {
        Ok(outcome) => {
            let told = match (&outcome.degraded, &outcome.trouble) {
                (Some(_), _) => "degraded",
                (None, Some(_)) => "saved",
                (None, None) => "ok",
            };
            span.record("backstop.outcome", told);
            if let Some(by) = &outcome.served_by {
                span.record("backstop.served_by", &**by);
            }
            outcome.attempts() as usize
        }
        Err(failed) => {
            span.record("backstop.outcome", "failed");
            span.record("error.type", failed.error.cause.kind.as_str());
            span.record("otel.status_code", ERROR);
            failed.error.trouble.attempts.len()
        }
    };
    span.record("backstop.attempts", attempts);
}

pub(crate) fn attempt(attempt: &Attempt) -> Span {
    if !is_wanted() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET,
        "attempt",
        otel.name = display(format_args!("{} {}", attempt.operation, attempt.target.name)),
        otel.kind = "client",
        otel.status_code = Empty,
        backstop.target = &*attempt.target.name,
        backstop.operation = &*attempt.operation,
        backstop.attempt = attempt.number,
        attempt_type = attempt.kind.as_str(),
        "error.type" = Empty,
    )
}

/// Says that an attempt failed.
pub(crate) fn attempt_failed(span: &Span, failure: &Failure) {
    span.record("error.type", failure.kind.as_str());
    span.record("otel.status_code", ERROR);
}

pub(crate) fn decision(strategy: &Entry) -> Span {
    tracing::info_span!(
        target: TARGET,
        "decision",
        otel.name = &**strategy.name(),
        otel.status_code = Empty,
        otel.status_description = Empty,
        strategy = &**strategy.name(),
        backstop.verdict = Empty,
        backstop.action = Empty,
    )
}

/// Says what a strategy decided.
pub(crate) fn decided(span: &Span, decided: &Result<Option<Decision>, StrategyFault>) {
    match decided {
        Ok(Some(decision)) => {
            span.record("backstop.verdict", "proposed");
            span.record("backstop.action", decision.action.kind().as_str());
        }
        Ok(None) => {
            span.record("backstop.verdict", "declined");
        }
        Err(fault) => {
            span.record("backstop.verdict", "faulted");
            span.record("otel.status_code", ERROR);
            span.record("otel.status_description", display(fault));
        }
    }
}
