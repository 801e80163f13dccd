//! Compiled components, shared by every strategy that is made of the same bytes.
//!
//! One plugin may be used under several names, and a folder may hold copies: each content is compiled
//! once, however many ask for it at the same time. What nobody uses any more is let go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::contract::Pre;
use super::digest::Digest;

/// One content: compiled, or being compiled by whoever holds the lock.
type Slot = Arc<Mutex<Weak<Pre>>>;

#[derive(Default)]
pub(super) struct Programs(Mutex<HashMap<Digest, Slot>>);

impl Programs {
    /// The program of these bytes; made with `compile` unless there is one. Blocks while another
    /// thread compiles the same bytes. A failure is not kept: whoever comes next tries again, and
    /// gets an error with its own name in it.
    pub(super) fn get<E>(
        &self,
        digest: Digest,
        compile: impl FnOnce() -> Result<Pre, E>,
    ) -> Result<Arc<Pre>, E> {
        let slot = self.slot(digest);
        let mut program = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = program.upgrade() {
            return Ok(program);
        }
        let made = Arc::new(compile()?);
        *program = Arc::downgrade(&made);
        Ok(made)
    }

    fn slot(&self, digest: Digest) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&digest) {
            return slot.clone();
        }
        slots.retain(|_, slot| {
            // A slot that somebody else holds is in use.
            Arc::strong_count(slot) > 1 || is_used(slot)
        });
        slots.entry(digest).or_default().clone()
    }

    /// How many contents are compiled and in use.
    pub(super) fn len(&self) -> usize {
        let slots: Vec<Slot> = {
            let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            slots.values().cloned().collect()
        };
        slots.iter().filter(|slot| is_used(slot)).count()
    }
}

fn is_used(slot: &Slot) -> bool {
    let program = slot.lock().unwrap_or_else(PoisonError::into_inner);
    program.strong_count() > 0
}
