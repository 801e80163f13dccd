//! What happened lately: the calls that had trouble, and what changed about targets, strategies and the
//! configuration.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backstop::Engine;
use backstop::event::{Event, EventKind};
use tokio::sync::broadcast::error::RecvError;

/// Calls that are remembered; the oldest is forgotten first.
pub(super) const CALLS: usize = 1_000;
/// Changes that are remembered.
pub(super) const CHANGES: usize = 500;

/// The latest calls that had trouble, and the latest changes. A call answered at once leaves no trace.
#[derive(Default)]
pub(super) struct History(Mutex<Table>);

#[derive(Default)]
struct Table {
    calls: VecDeque<Arc<Event>>,
    changes: VecDeque<Arc<Event>>,
    /// Why each target failed last; only of targets that are registered.
    failures: HashMap<Arc<str>, Arc<Event>>,
    totals: Totals,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) saved: u64,
    pub(super) failed: u64,
    /// Events that came faster than they could be noted; the other counts lack them.
    pub(super) missed: u64,
}

/// Whether an event tells of a change of state, rather than of a step of a call.
fn is_change(what: &EventKind) -> bool {
    !matches!(
        what,
        EventKind::AttemptFailed { .. }
            | EventKind::RetryScheduled { .. }
            | EventKind::HedgeSent { .. }
            | EventKind::FallbackTaken { .. }
            | EventKind::ActionRefused { .. }
            | EventKind::StrategyFaulted { .. }
            | EventKind::CallSaved { .. }
            | EventKind::CallFailed { .. }
    )
}

fn push(into: &mut VecDeque<Arc<Event>>, most: usize, event: Arc<Event>) {
    if into.len() >= most {
        into.pop_front();
    }
    into.push_back(event);
}

impl History {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to an engine for as long as somebody holds the history.
    pub(super) fn listen(engine: &Engine) -> Arc<Self> {
        let history = Arc::new(Self::default());
        let listener = Arc::downgrade(&history);
        let mut events = engine.subscribe();
        let registry = engine.registry().clone();
        tokio::spawn(async move {
            loop {
                let event = events.recv().await;
                let Some(history) = listener.upgrade() else {
                    return;
                };
                match event {
                    Ok(event) => history.note(event, |target| registry.get(target).is_some()),
                    Err(RecvError::Lagged(missed)) => history.table().totals.missed += missed,
                    Err(RecvError::Closed) => return,
                }
            }
        });
        history
    }

    fn note(&self, event: Arc<Event>, is_registered: impl Fn(&str) -> bool) {
        let mut table = self.table();
        match &event.what {
            EventKind::CallSaved { .. } => {
                table.totals.saved += 1;
                push(&mut table.calls, CALLS, event);
            }
            EventKind::CallFailed { .. } => {
                table.totals.failed += 1;
                push(&mut table.calls, CALLS, event);
            }
            EventKind::AttemptFailed {
                target: Some(target),
                ..
            } if is_registered(target) => {
                table.failures.insert(target.clone(), event);
            }
            EventKind::TargetRemoved { target, .. } => {
                table.failures.remove(target);
                push(&mut table.changes, CHANGES, event);
            }
            what if is_change(what) => push(&mut table.changes, CHANGES, event),
            _ => {}
        }
    }

    /// The latest calls, the newest first, at most `limit`.
    pub(super) fn calls(&self, limit: usize) -> Vec<Arc<Event>> {
        self.table()
            .calls
            .iter()
            .rev()
            .take(limit)
            .cloned()
            .collect()
    }

    /// The latest changes, the newest first, at most `limit`.
    pub(super) fn changes(&self, limit: usize) -> Vec<Arc<Event>> {
        let table = self.table();
        table.changes.iter().rev().take(limit).cloned().collect()
    }

    /// The latest change that `wanted` says yes to.
    pub(super) fn last_change(&self, wanted: impl Fn(&EventKind) -> bool) -> Option<Arc<Event>> {
        let table = self.table();
        let mut latest = table.changes.iter().rev();
        latest.find(|event| wanted(&event.what)).cloned()
    }

    /// How one call ended, by its id as events write it.
    pub(super) fn find(&self, id: &str) -> Option<Arc<Event>> {
        let table = self.table();
        let is_it = |event: &&Arc<Event>| match &event.what {
            EventKind::CallSaved { call, .. } | EventKind::CallFailed { call, .. } => {
                call.to_string() == id
            }
            _ => false,
        };
        table.calls.iter().rev().find(is_it).cloned()
    }

    /// The attempt of a target that failed last.
    pub(super) fn last_failure(&self, target: &str) -> Option<Arc<Event>> {
        self.table().failures.get(target).cloned()
    }

    pub(super) fn totals(&self) -> Totals {
        self.table().totals
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use backstop::call::{CallId, Ending, Level, Trouble};
    use backstop::{Failure, Kind};

    use super::*;

    fn event(what: EventKind) -> Arc<Event> {
        Arc::new(Event {
            at: SystemTime::UNIX_EPOCH,
            what,
        })
    }

    fn failed(id: u64) -> Arc<Event> {
        event(EventKind::CallFailed {
            call: CallId(id),
            group: "g".into(),
            operation: "o".into(),
            level: Level::Tool,
            ending: Ending::Exhausted,
            kind: Kind::UNKNOWN,
            attempts: 1,
            duration: Duration::ZERO,
            trouble: Arc::new(Trouble::default()),
        })
    }

    fn attempt(target: &str) -> Arc<Event> {
        event(EventKind::AttemptFailed {
            call: CallId(1),
            group: "g".into(),
            operation: "o".into(),
            target: Some(target.into()),
            attempt: 1,
            attempt_type: backstop::call::AttemptKind::Original,
            failure: Arc::new(Failure::new(Kind::CONNECTION_ERROR, "refused")),
            duration: Duration::ZERO,
        })
    }

    #[test]
    fn beyond_its_bound_the_oldest_call_is_forgotten() {
        let history = History::default();
        for id in 0..=CALLS as u64 {
            history.note(failed(id), |_| true);
        }
        assert_eq!(history.calls(usize::MAX).len(), CALLS);
        assert!(history.find("c000000").is_none());
        assert!(history.find("c000001").is_some());
        assert_eq!(history.totals().failed, CALLS as u64 + 1);
    }

    #[test]
    fn beyond_their_bound_the_oldest_change_is_forgotten_and_steps_of_calls_are_none() {
        let history = History::default();
        for n in 0..=CHANGES {
            let target = format!("t{n}").into();
            history.note(event(EventKind::TargetUp { target }), |_| true);
            history.note(attempt("t"), |_| true);
        }
        let changes = history.changes(usize::MAX);
        assert_eq!(changes.len(), CHANGES);
        assert!(changes.iter().all(|event| event.what.name() == "target_up"));
    }

    #[test]
    fn why_a_target_failed_is_kept_for_as_long_as_it_is_registered() {
        let history = History::default();
        history.note(attempt("here"), |_| true);
        history.note(attempt("gone"), |target| target != "gone");
        assert!(history.last_failure("here").is_some());
        assert!(history.last_failure("gone").is_none());
        let (target, group) = ("here".into(), "g".into());
        history.note(event(EventKind::TargetRemoved { target, group }), |_| true);
        assert!(history.last_failure("here").is_none());
    }
}
