//! The calls that had trouble, the latest ones: what became of each, and why.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backstop::Engine;
use backstop::event::{Event, EventKind};
use tokio::sync::broadcast::error::RecvError;

/// Calls that are remembered; the oldest is forgotten first.
const REMEMBERED: usize = 1_000;

/// The latest calls that had trouble. Calls answered at once leave no trace.
#[derive(Default)]
pub(super) struct Calls(Mutex<Table>);

#[derive(Default)]
struct Table {
    ended: VecDeque<Arc<Event>>,
    saved: u64,
    failed: u64,
    missed: u64,
}

impl Calls {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to an engine for as long as somebody holds the calls.
    pub(super) fn listen(engine: &Engine) -> Arc<Self> {
        let calls = Arc::new(Self::default());
        let listener = Arc::downgrade(&calls);
        let mut events = engine.subscribe();
        tokio::spawn(async move {
            loop {
                let event = events.recv().await;
                let Some(calls) = listener.upgrade() else {
                    return;
                };
                match event {
                    Ok(event) => calls.note(event),
                    Err(RecvError::Lagged(missed)) => calls.table().missed += missed,
                    Err(RecvError::Closed) => return,
                }
            }
        });
        calls
    }

    fn note(&self, event: Arc<Event>) {
        let mut table = self.table();
        match event.what {
            EventKind::CallSaved { .. } => table.saved += 1,
            EventKind::CallFailed { .. } => table.failed += 1,
            _ => return,
        }
        if table.ended.len() == REMEMBERED {
            table.ended.pop_front();
        }
        table.ended.push_back(event);
    }

    /// The latest calls, the newest first, at most `limit`.
    pub(super) fn latest(&self, limit: usize) -> Vec<Arc<Event>> {
        let table = self.table();
        table.ended.iter().rev().take(limit).cloned().collect()
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
        table.ended.iter().rev().find(is_it).cloned()
    }

    /// How many calls were saved, how many failed, and how many events were missed, since the start.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        let table = self.table();
        (table.saved, table.failed, table.missed)
    }
}
