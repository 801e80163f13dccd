//! What must hold, whatever fails and whatever strategies propose.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use backstop::budget::BudgetPolicy;
use backstop::call::{AttemptKind, CallId, Ending, Failed, RepeatSafety};
use backstop::event::{Event, EventKind};
use backstop::strategy::ActionKind;
use backstop::{Call, CallError, Engine, Exchange, Kind, Origin, Outcome};
use tokio::sync::broadcast::{Receiver, error::TryRecvError};
use tokio::time::Instant;

use super::settings::Limits;
use super::world::{self, Request, Sent, World};
use super::{CALLS_PER_WORLD, Made};

/// Timers have the resolution of a millisecond.
const TICK: Duration = Duration::from_millis(1);

fn holds(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// Whether a request must not be carried out twice: what the caller says counts for its own operation only.
fn is_unsafe(made: &Made, world: &World, sent: &Sent) -> bool {
    let said = made.safety.filter(|_| !sent.redirected);
    let safety = said.unwrap_or_else(|| world.repeat_safety(&sent.operation));
    safety == RepeatSafety::Unsafe
}

/// Of every call, also of one whose caller gave up.
pub fn path(sent: &[Sent], limits: &Limits) -> Result<(), String> {
    holds(
        sent.len() <= limits.caps.max_attempts as usize,
        "more attempts than the cap",
    )?;
    let of_kind = |kind| sent.iter().filter(|sent| sent.kind == kind).count();
    holds(
        of_kind(AttemptKind::Fallback) <= limits.caps.max_fallbacks as usize,
        "more fallbacks than the cap",
    )?;
    holds(of_kind(AttemptKind::Original) <= 1, "two first attempts")?;
    holds(of_kind(AttemptKind::Hedge) <= 1, "two hedges")?;
    let mut seen = HashSet::new();
    for (at, one) in sent.iter().enumerate() {
        let until = one.until.ok_or("an attempt outlives its call")?;
        let longest = limits.attempt_max.max(limits.attempt);
        holds(
            until <= one.at + longest + TICK,
            "an attempt took longer than the longest",
        )?;
        holds(
            until <= one.deadline + TICK,
            "an attempt outlives the deadline",
        )?;
        let new = seen.insert((&one.target, &one.operation, one.arguments.to_string()));
        holds(
            new || one.kind == AttemptKind::Retry,
            "a fallback path asked the same thing twice",
        )?;
        // Only a hedge and what it hedges are under way at once; the first may have waited in a queue.
        let alone = sent.iter().take(at).all(|earlier| {
            earlier.until.is_some_and(|until| until <= one.at)
                || one.kind == AttemptKind::Hedge
                || (earlier.kind == AttemptKind::Hedge && one.kind == AttemptKind::Original)
        });
        holds(alone, "two attempts at once, and none of them a hedge")?;
    }
    Ok(())
}

/// Of a call that came to its end.
pub fn ended(
    made: &Made,
    result: &Result<Outcome<String>, Failed<String, world::Error>>,
    sent: &[Sent],
    world: &World,
    took: Duration,
    limits: &Limits,
) -> Result<(), String> {
    holds(took <= made.deadline + TICK, "a call passed its deadline")?;
    path(sent, limits)?;
    holds(
        sent.iter().all(|sent| sent.until.is_some()),
        "an attempt is under way after the call's end",
    )?;
    let is_unsafe = |sent: &Sent| is_unsafe(made, world, sent);
    let doubtful = sent
        .iter()
        .position(|sent| sent.ambiguous && is_unsafe(sent));
    holds(
        doubtful.is_none_or(|at| at + 1 == sent.len()),
        "something was sent after an unsafe operation may have been carried out",
    )?;
    // What the world knows, and the engine does not.
    let acts = sent.iter().filter(|sent| sent.acted && is_unsafe(sent));
    holds(
        acts.count() <= 1,
        "an unsafe operation was carried out twice",
    )?;

    let hedges = sent.iter().filter(|sent| sent.kind == AttemptKind::Hedge);
    for hedge in hedges {
        let read_only = made
            .safety
            .unwrap_or_else(|| world.repeat_safety(made.operation));
        holds(
            made.hedged && read_only == RepeatSafety::ReadOnly && !made.alone && made.pin.is_none(),
            "a call was hedged that must not be",
        )?;
        let elsewhere = sent
            .iter()
            .all(|other| other.kind != AttemptKind::Original || other.target != hedge.target);
        holds(elsewhere, "a hedge went to the target it was to outrun")?;
    }
    if let Some(pin) = &made.pin {
        let there = sent.iter().all(|sent| sent.target == *pin);
        holds(there, "a pinned call went elsewhere")?;
    }
    holds(
        !made.alone || sent.len() <= 1,
        "a call without fallback went on",
    )?;

    let trouble = match result {
        Ok(outcome) => outcome.trouble.as_deref(),
        Err(failed) => Some(&failed.error.trouble),
    };
    // Every request is in the history; what is there beside them never left the host.
    let records = trouble.map_or(&[][..], |trouble| &trouble.attempts);
    let remote = records
        .iter()
        .filter(|record| record.failure.origin == Origin::Remote)
        .count();
    let answered = usize::from(matches!(result, Ok(outcome) if outcome.served_by.is_some()));
    holds(
        (remote + answered..=records.len() + answered).contains(&sent.len()),
        "an attempt is missing in the history",
    )?;
    match result {
        Ok(outcome) => {
            holds(
                outcome.served_by.is_some() != (outcome.answer == "data"),
                "data passed off as an answer",
            )?;
            holds(
                outcome.served_by.is_some() || outcome.degraded.is_some(),
                "data without a label",
            )?;
            let other = sent
                .last()
                .is_some_and(|last| last.operation != made.operation);
            holds(
                answered == 0 || outcome.degraded.is_some() == other,
                "another operation's answer without a label",
            )
        }
        Err(Failed { error, .. }) => of_error(error, sent, doubtful.is_some()),
    }
}

fn of_error(error: &CallError, sent: &[Sent], doubtful: bool) -> Result<(), String> {
    // Two that run side by side end in their own order.
    let first = sent
        .iter()
        .filter(|sent| sent.failed.is_some())
        .min_by_key(|sent| sent.until);
    let cause = &error.cause;
    let silence = cause.kind == Kind::TIMEOUT_ERROR;
    if let Some(message) = first.and_then(|first| first.failed.as_ref()) {
        let simultaneous = sent.iter().any(|other| {
            other.failed.as_ref().is_some_and(|m| *m == cause.message)
                && other.until == first.and_then(|f| f.until)
        });
        holds(
            cause.message == *message || cause.origin == Origin::Local || silence || simultaneous,
            &format!("the first cause is lost: {cause}, not {message}"),
        )?;
    }
    if error.ending == Ending::OutcomeUnknown && !doubtful {
        return Err("an outcome is called unknown that is known".into());
    }
    let unanswered = |sent: &Sent| sent.failed.is_none();
    if doubtful && sent.last().is_some_and(unanswered) && error.ending != Ending::OutcomeUnknown {
        return Err("an outcome is not called unknown that is".into());
    }
    Ok(())
}

/// What holds between two batches of calls.
pub fn quiet(engine: &Engine, world: &World) -> Result<(), String> {
    holds(
        world.in_flight() == 0,
        "an attempt is under way after the calls' ends",
    )?;
    for target in engine.registry().list() {
        holds(target.in_flight() == 0, "a permit was not given back")?;
        holds(
            target.waiting() == 0,
            "a place in a queue was not given back",
        )?;
    }
    Ok(())
}

/// No target was sent more than was agreed, in any stretch of time.
pub fn rates(world: &World) -> Result<(), String> {
    for (target, rate, times) in world.rates() {
        let burst = rate.requests.get() as usize;
        let interval = rate.per / rate.requests.get();
        for (from, began) in times.iter().enumerate() {
            for (extra, at) in times.iter().skip(from + burst).enumerate() {
                let due = interval * (u32::try_from(extra).unwrap_or(u32::MAX) + 1);
                // The interval is cut to whole nanoseconds.
                if *at - *began + Duration::from_nanos(1000) < due {
                    return Err(format!("{target} was sent more than {rate:?}"));
                }
            }
        }
    }
    Ok(())
}

/// What the events tell.
pub struct Told {
    events: Receiver<Arc<Event>>,
    /// Calls that came to their end, and how.
    ended: HashMap<CallId, bool>,
    /// Events that tell of it.
    endings: HashMap<CallId, Vec<bool>>,
    /// Calls that had trouble.
    troubled: HashSet<CallId>,
    /// Attempts taken out of a budget.
    extra: usize,
    /// A group was called that had no target: all such groups share one budget more.
    nowhere: bool,
}

impl Told {
    pub fn new(events: Receiver<Arc<Event>>) -> Self {
        Self {
            events,
            ended: HashMap::new(),
            endings: HashMap::new(),
            troubled: HashSet::new(),
            extra: 0,
            nowhere: false,
        }
    }

    /// Looks at the groups that are called next.
    pub fn look(&mut self, engine: &Engine) {
        let is_empty = |group: &&str| engine.registry().list_group(group).is_empty();
        self.nowhere |= ["g", "h"].iter().any(is_empty);
    }

    pub fn ended(&mut self, id: CallId, saved: bool) {
        self.ended.insert(id, saved);
    }

    /// Takes in what was told, and holds it against what happened.
    pub fn listen(&mut self) -> Result<(), String> {
        loop {
            let event = match self.events.try_recv() {
                Ok(event) => event,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                Err(TryRecvError::Lagged(lost)) => return Err(format!("{lost} events were lost")),
            };
            match &event.what {
                EventKind::AttemptFailed { call, .. } => drop(self.troubled.insert(*call)),
                EventKind::RetryScheduled { .. } | EventKind::HedgeSent { .. } => self.extra += 1,
                EventKind::FallbackTaken { action, .. } => {
                    self.extra += usize::from(*action != ActionKind::Answer);
                }
                EventKind::CallSaved { call, .. } => self.tell(*call, true),
                EventKind::CallFailed { call, .. } => self.tell(*call, false),
                _ => {}
            }
        }
        for (id, endings) in self.endings.drain() {
            if endings.len() != 1 || self.ended.get(&id) != endings.first() {
                return Err(format!(
                    "{id} ended {:?}, and was told to: {endings:?}",
                    self.ended.get(&id)
                ));
            }
            self.troubled.remove(&id);
        }
        let silent = self.troubled.drain().find(|id| self.ended.contains_key(id));
        silent.map_or(Ok(()), |id| {
            Err(format!("nobody was told of the end of {id}"))
        })
    }

    fn tell(&mut self, id: CallId, saved: bool) {
        self.endings.entry(id).or_default().push(saved);
    }

    /// Extra attempts stay within the share of the calls and the reserve.
    pub fn within_budget(&self, limits: &Limits, began: Instant) -> Result<(), String> {
        let calls = CALLS_PER_WORLD as f64;
        // Two groups are called.
        let budgets = if self.nowhere { 3.0 } else { 2.0 };
        let allowed = match limits.budget {
            BudgetPolicy::Ratio {
                ttl,
                reserve_per_second,
                ratio,
            } => {
                let windows = (began.elapsed().as_secs_f64() / ttl.as_secs_f64()).ceil() + 1.0;
                calls * ratio
                    + budgets * windows * f64::from(reserve_per_second) * ttl.as_secs_f64()
            }
            BudgetPolicy::Tokens {
                max_tokens,
                token_ratio,
            } => calls * token_ratio + budgets * f64::from(max_tokens) / 2.0,
            _ => return Err("an unknown budget".into()),
        };
        if self.extra as f64 > allowed {
            return Err(format!(
                "{} extra attempts where {:?} allows {allowed}",
                self.extra, limits.budget
            ));
        }
        Ok(())
    }
}

/// However it was maltreated, a group serves again when its targets are well: nothing is given up for good.
pub async fn recovers(engine: &Engine, world: &World) -> Result<(), String> {
    world.mend();
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    for group in ["g", "h"] {
        if engine.registry().list_group(group).is_empty() {
            continue;
        }
        let request = Request {
            operation: "read".into(),
            arguments: "{}".into(),
            redirected: false,
        };
        let call = Call::new(group, "read")
            .deadline(Duration::from_secs(10))
            .attempt_timeout(Duration::from_secs(5));
        if let Err(failed) = engine.call(world, call, &request).await {
            return Err(format!(
                "{group} does not serve again: {}: {}",
                failed.error, failed.error.cause
            ));
        }
    }
    Ok(())
}
