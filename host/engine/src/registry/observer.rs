use std::time::Duration;

use super::Target;
use crate::circuit::OpenCause;

/// Something that changed about a target.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetChange {
    /// It was registered.
    Registered,
    /// What is known of it was replaced.
    Updated,
    /// It was taken out; requests under way finish.
    Deregistered,
    /// An operator holds it: nothing new begins.
    Held,
    /// An operator lets it take requests again.
    Released,
    /// Health checks found it healthy again.
    Up,
    /// Health checks found it unhealthy.
    Down,
    /// Live traffic found it ill.
    CircuitOpened {
        /// Until it is tried again.
        open_for: Duration,
        /// How often it opened of late.
        openings: u32,
        /// What opened it.
        cause: OpenCause,
    },
    /// It is being tried again.
    CircuitHalfOpened,
    /// It passed.
    CircuitClosed,
    /// Health and circuit are both well again.
    Recovered {
        /// How long they were not.
        after: Duration,
    },
}

/// Is told what changes about targets.
///
/// Called on the task that caused the change, with no lock held: it must return promptly. Changes
/// caused by different tasks at the same moment may arrive in either order.
pub trait Observer: Send + Sync {
    /// Something changed.
    fn changed(&self, target: &Target, change: &TargetChange);
}

impl<F: Fn(&Target, &TargetChange) + Send + Sync> Observer for F {
    fn changed(&self, target: &Target, change: &TargetChange) {
        self(target, change);
    }
}
