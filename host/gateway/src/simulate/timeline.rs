//! What happened when: faults, circuits, health, strategies, and in between what became of the calls.
//!
//! Between two changes of state, calls that came to the same end in the same way are one entry.

use std::sync::Arc;
use std::time::Duration;

use backstop::Kind;
use backstop::call::{Degraded, Ending};
use backstop::circuit::OpenCause;
use backstop::event::EventKind;
use serde::Serialize;

use super::play::{Ended, Played, Record};
use super::summary::normals;
use super::{as_millis, as_millis_or_none};

/// One entry.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// When, from the start of the scenario.
    #[serde(rename = "at_ms", serialize_with = "as_millis")]
    pub at: Duration,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[non_exhaustive]
pub enum What {
    /// A fault begins.
    FaultBegins {
        /// What happens to requests.
        fault: String,
        /// At whom.
        targets: Vec<Arc<str>>,
        /// When it ends.
        #[serde(rename = "until_ms", serialize_with = "as_millis")]
        until: Duration,
    },
    /// A fault ends.
    FaultEnds {
        /// What happened to requests.
        fault: String,
        /// At whom.
        targets: Vec<Arc<str>>,
    },
    /// A circuit opens.
    CircuitOpened {
        /// Whose.
        target: Arc<str>,
        /// Why.
        cause: OpenCause,
        /// How long.
        #[serde(rename = "open_for_ms", serialize_with = "as_millis")]
        open_for: Duration,
    },
    /// A circuit lets probes through.
    CircuitHalfOpened {
        /// Whose.
        target: Arc<str>,
    },
    /// A circuit lets everything through.
    CircuitClosed {
        /// Whose.
        target: Arc<str>,
    },
    /// The health checks call a target ill.
    TargetDown {
        /// Which.
        target: Arc<str>,
    },
    /// The health checks call a target healthy.
    TargetUp {
        /// Which.
        target: Arc<str>,
    },
    /// A target serves again.
    Recovered {
        /// Which.
        target: Arc<str>,
        /// How long it did not.
        #[serde(rename = "after_ms", serialize_with = "as_millis")]
        after: Duration,
    },
    /// A strategy failed to decide.
    StrategyFaulted {
        /// Which.
        strategy: Arc<str>,
        /// How.
        fault: String,
        /// How often.
        count: u64,
    },
    /// A strategy is left out for a while.
    StrategyQuarantined {
        /// Which.
        strategy: Arc<str>,
        /// After how many faults.
        faults: u32,
    },
    /// The guard refused what a strategy proposed.
    ActionRefused {
        /// Which.
        strategy: Arc<str>,
        /// Why.
        refusal: String,
        /// How often.
        count: u64,
    },
    /// Calls that came to the same end in the same way.
    Calls {
        /// The group.
        group: Arc<str>,
        /// The operation.
        operation: Arc<str>,
        /// How they ended.
        #[serde(flatten)]
        ended: CallsEnded,
        /// The strategies whose proposals were carried out, in order.
        how: Vec<Arc<str>>,
        /// How many.
        count: u64,
        /// When the last of them ended; the entry's time is when the first did.
        #[serde(rename = "until_ms", serialize_with = "as_millis")]
        until: Duration,
    },
    /// A group is as it was before the faults.
    Normal {
        /// The group.
        group: Arc<str>,
        /// How long after its last fault; `None`: the scenario is over before.
        #[serde(rename = "after_ms", serialize_with = "as_millis_or_none")]
        after: Option<Duration>,
    },
}

/// How calls ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum CallsEnded {
    /// The first target asked answered well.
    AtOnce {
        /// Which.
        by: Option<Arc<str>>,
    },
    /// They were answered although something failed.
    Saved {
        /// By whom; `None`: by data.
        by: Option<Arc<str>>,
        /// How the answer differs from what was asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        degraded: Option<&'static str>,
    },
    /// They were not answered.
    Failed {
        /// Why they ended.
        ending: Ending,
        /// The kind of the first failure.
        kind: Kind,
    },
}

impl CallsEnded {
    fn of(ended: &Ended) -> Self {
        match ended {
            Ended::Answered {
                by, saved: false, ..
            } => Self::AtOnce { by: by.clone() },
            Ended::Answered { by, degraded, .. } => Self::Saved {
                by: by.clone(),
                degraded: degraded.as_ref().map(|degraded| match degraded {
                    Degraded::Operation { .. } => "operation",
                    Degraded::Stale { .. } => "stale",
                    _ => "default",
                }),
            },
            Ended::Failed { ending, kind } => Self::Failed {
                ending: *ending,
                kind: kind.clone(),
            },
        }
    }
}

/// The timeline of a record.
pub(super) fn of(record: &Record) -> Vec<Entry> {
    let mut entries = faults(record);
    let events = record.events.iter();
    entries.extend(events.filter_map(|(at, event)| {
        Some(Entry {
            at: *at,
            what: change(&event.what)?,
        })
    }));
    let calls = record.calls.iter().map(|call| Entry {
        at: call.ended,
        what: of_call(call),
    });
    entries.extend(calls);
    entries.extend(normals(record).into_iter().map(|normal| Entry {
        at: normal.at.unwrap_or(record.duration),
        what: What::Normal {
            group: normal.group,
            after: normal.after,
        },
    }));
    // Equals stay in this order: what goes wrong, what is done, what comes of it.
    entries.sort_by_key(|entry| entry.at);
    merged(entries)
}

fn faults(record: &Record) -> Vec<Entry> {
    let mut entries = Vec::new();
    for active in record.faults() {
        let fault = described(&active.fault);
        let targets: Vec<Arc<str>> = active.targets.iter().cloned().collect();
        for (from, until) in active.times(record.duration) {
            let (fault, targets) = (fault.clone(), targets.clone());
            entries.push(Entry {
                at: from,
                what: What::FaultBegins {
                    fault: fault.clone(),
                    targets: targets.clone(),
                    until,
                },
            });
            if until < record.duration {
                entries.push(Entry {
                    at: until,
                    what: What::FaultEnds { fault, targets },
                });
            }
        }
    }
    entries
}

/// What happens to the requests a fault hits.
fn described(fault: &backstop::config::scenario::Fault) -> String {
    let mut text = fault.how.to_string();
    if let Some(limit) = &fault.beyond {
        let per = backstop::config::format_duration(limit.per);
        text.push_str(&format!(", beyond {} requests in {per}", limit.requests));
    }
    if fault.share < 1.0 {
        text.push_str(&format!(", of {:.0} %", fault.share * 100.0));
    }
    if let Some(operation) = &fault.operation {
        text.push_str(&format!(", of {operation}"));
    }
    text
}

fn change(what: &EventKind) -> Option<What> {
    Some(match what {
        EventKind::CircuitOpened {
            target,
            cause,
            open_for,
        } => What::CircuitOpened {
            target: target.clone(),
            cause: *cause,
            open_for: *open_for,
        },
        EventKind::CircuitHalfOpened { target } => What::CircuitHalfOpened {
            target: target.clone(),
        },
        EventKind::CircuitClosed { target } => What::CircuitClosed {
            target: target.clone(),
        },
        EventKind::TargetDown { target } => What::TargetDown {
            target: target.clone(),
        },
        EventKind::TargetUp { target } => What::TargetUp {
            target: target.clone(),
        },
        EventKind::Recovered { target, after } => What::Recovered {
            target: target.clone(),
            after: *after,
        },
        EventKind::StrategyFaulted {
            strategy, message, ..
        } => What::StrategyFaulted {
            strategy: strategy.clone(),
            fault: message.clone(),
            count: 1,
        },
        EventKind::StrategyQuarantined { strategy, faults } => What::StrategyQuarantined {
            strategy: strategy.clone(),
            faults: *faults,
        },
        EventKind::ActionRefused {
            strategy, refusal, ..
        } => What::ActionRefused {
            strategy: strategy.clone(),
            refusal: refusal.clone(),
            count: 1,
        },
        _ => return None,
    })
}

fn of_call(call: &Played) -> What {
    What::Calls {
        group: call.group.clone(),
        operation: call.operation.clone(),
        ended: CallsEnded::of(&call.result),
        how: call.how.clone(),
        count: 1,
        until: call.ended,
    }
}

impl What {
    /// Whether many of them, between two changes, are one.
    fn is_countable(&self) -> bool {
        matches!(
            self,
            Self::Calls { .. } | Self::StrategyFaulted { .. } | Self::ActionRefused { .. }
        )
    }

    /// Takes another one in, if it is the same but for time and number.
    fn take_in(&mut self, other: &Self) -> bool {
        let same = |one: &Self| {
            let mut one = one.clone();
            if let Self::Calls { count, until, .. } = &mut one {
                (*count, *until) = (0, Duration::ZERO);
            }
            if let Self::StrategyFaulted { count, .. } | Self::ActionRefused { count, .. } =
                &mut one
            {
                *count = 0;
            }
            one
        };
        if same(self) != same(other) {
            return false;
        }
        match (self, other) {
            (Self::Calls { count, until, .. }, Self::Calls { until: later, .. }) => {
                *count += 1;
                *until = *later;
            }
            (Self::StrategyFaulted { count, .. } | Self::ActionRefused { count, .. }, _) => {
                *count += 1;
            }
            _ => return false,
        }
        true
    }
}

/// Makes one of those that are the same, between two changes of state.
fn merged(entries: Vec<Entry>) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    let mut stretch = 0;
    for entry in entries {
        if !entry.what.is_countable() {
            all.push(entry);
            stretch = all.len();
            continue;
        }
        let mut open = all.iter_mut().skip(stretch);
        if !open.any(|earlier| earlier.what.take_in(&entry.what)) {
            all.push(entry);
        }
    }
    all
}
