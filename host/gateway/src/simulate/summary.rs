//! What came of a simulation, in figures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backstop::event::EventKind;
use serde::Serialize;

use super::play::{Ended, Group, Played, Record};
use super::{as_millis, as_millis_or_none};

/// The figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Calls made.
    pub calls: u64,
    /// Answered well by the first target asked.
    pub at_once: u64,
    /// Answered although something failed.
    pub saved: u64,
    /// Not answered, with a clean error.
    pub failed: u64,
    /// These by the reason for which they ended.
    pub endings: BTreeMap<String, u64>,
    /// Requests that targets got, for each call.
    pub attempts_per_call: f64,
    /// How long a call took in the middle.
    #[serde(rename = "p50_ms", serialize_with = "as_millis")]
    pub p50: Duration,
    /// How long 99 of a hundred took at most.
    #[serde(rename = "p99_ms", serialize_with = "as_millis")]
    pub p99: Duration,
    /// What each target got, by name.
    pub targets: BTreeMap<Arc<str>, Traffic>,
    /// How long each group that had a fault needed after it.
    pub normal: Vec<Normal>,
}

/// What a target got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Traffic {
    /// Requests.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Health probes.
    pub probes: u64,
}

/// The way of a group back to normal: every call is answered at once by a target that is asked while all is
/// well, no circuit is open and no target ill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Normal {
    /// The group.
    pub group: Arc<str>,
    /// When; `None`: the scenario is over before.
    #[serde(rename = "at_ms", serialize_with = "as_millis_or_none")]
    pub at: Option<Duration>,
    /// How long after its last fault.
    #[serde(rename = "after_ms", serialize_with = "as_millis_or_none")]
    pub after: Option<Duration>,
}

pub(super) fn of(record: &Record) -> Summary {
    let mut summary = Summary {
        calls: record.calls.len() as u64,
        at_once: 0,
        saved: 0,
        failed: 0,
        endings: BTreeMap::new(),
        attempts_per_call: 0.0,
        p50: Duration::ZERO,
        p99: Duration::ZERO,
        targets: targets(record),
        normal: normals(record),
    };
    for call in &record.calls {
        match &call.result {
            Ended::Answered { saved: false, .. } => summary.at_once += 1,
            Ended::Answered { .. } => summary.saved += 1,
            Ended::Failed { ending, .. } => {
                summary.failed += 1;
                let ending = serde_json::to_value(ending).ok();
                let ending = ending.and_then(|word| word.as_str().map(str::to_owned));
                *summary
                    .endings
                    .entry(ending.unwrap_or_default())
                    .or_default() += 1;
            }
        }
    }
    let requests: u64 = summary.targets.values().map(|got| got.requests).sum();
    if summary.calls > 0 {
        // Two decimals say enough.
        let per_call = requests as f64 / summary.calls as f64;
        summary.attempts_per_call = (per_call * 100.0).round() / 100.0;
    }
    let took = |call: &Played| call.ended.saturating_sub(call.began);
    let mut times: Vec<Duration> = record.calls.iter().map(took).collect();
    times.sort_unstable();
    summary.p50 = percentile(&times, 50);
    summary.p99 = percentile(&times, 99);
    summary
}

/// The smallest that so many of a hundred do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    let at = rank.saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

fn targets(record: &Record) -> BTreeMap<Arc<str>, Traffic> {
    let all = record.groups.iter().flat_map(|group| &group.targets);
    let mut targets: BTreeMap<Arc<str>, Traffic> = all
        .map(|name| {
            let got = record.got.get(name).copied().unwrap_or_default();
            let traffic = Traffic {
                requests: got.requests,
                probes: got.probes,
                failed: 0,
            };
            (name.clone(), traffic)
        })
        .collect();
    for (_, event) in &record.events {
        if let EventKind::AttemptFailed {
            target: Some(target),
            ..
        } = &event.what
            && let Some(traffic) = targets.get_mut(target)
        {
            traffic.failed += 1;
        }
    }
    targets
}

/// The way back of each group that had a fault which ended.
pub(super) fn normals(record: &Record) -> Vec<Normal> {
    let of = |group: &Group| {
        let meant = record.faults().iter();
        let meant = meant.filter(|a| group.targets.iter().any(|t| a.targets.contains(t)));
        let ends = meant.filter_map(|active| Some(active.times(record.duration).last()?.1));
        let end = ends.max()?;
        Some(back(record, group, end))
    };
    record.groups.iter().filter_map(of).collect()
}

/// The way back of a group from the end of its last fault on.
fn back(record: &Record, group: &Group, end: Duration) -> Normal {
    let is_normal = |call: &Played| match &call.result {
        Ended::Answered {
            saved: false,
            by: Some(by),
            ..
        } => group.top.contains(by),
        _ => false,
    };
    let own = || record.calls.iter().filter(|call| call.group == group.name);
    let amiss = own().filter(|call| !is_normal(call)).map(|call| call.ended);
    let changes = record.events.iter().filter_map(|(at, event)| {
        let target = match &event.what {
            EventKind::CircuitOpened { target, .. }
            | EventKind::CircuitHalfOpened { target }
            | EventKind::CircuitClosed { target }
            | EventKind::TargetDown { target }
            | EventKind::TargetUp { target } => target,
            _ => return None,
        };
        group.targets.contains(target).then_some(*at)
    });
    // What was last amiss, and the first good call after it: both must be there.
    let last = amiss.chain(changes).max().unwrap_or_default().max(end);
    let well = own().any(|call| is_normal(call) && call.ended > last);
    let at = (end < record.duration && well).then_some(last);
    Normal {
        group: group.name.clone(),
        at,
        after: at.map(|at| at - end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(100));
        assert_eq!(percentile(&times, 99), Duration::from_millis(198));
        assert_eq!(percentile(&times[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
