use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::HealthConfig;
use crate::failure::Failure;
use crate::random::{Random, below};
use crate::registry::{Registry, Target};

/// Asks a target how it is.
pub trait Prober: Send + Sync + 'static {
    /// Whether this prober can ask this target. A target it does not cover stays of unknown health.
    fn covers(&self, target: &Target) -> bool {
        let _ = target;
        true
    }

    /// Asks, once. The checker drops the future when the probe's time is up.
    fn probe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), Failure>>;
}

/// Probes the targets of a registry for as long as it lives.
///
/// Follows every change to the registry. When it is dropped, probes under way are cancelled and what
/// health checks said is forgotten: nobody would ever correct it.
#[derive(Debug)]
#[must_use = "dropping the checker ends the checks"]
pub struct HealthChecker {
    task: JoinHandle<()>,
}

impl HealthChecker {
    /// Starts probing, on the current Tokio runtime.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub fn spawn(registry: Arc<Registry>, prober: Arc<dyn Prober>, random: Random) -> Self {
        let rounds = Rounds {
            registry,
            prober,
            random,
            schedule: HashMap::new(),
            queue: BinaryHeap::new(),
            running: JoinSet::new(),
            by_task: HashMap::new(),
        };
        Self {
            task: tokio::spawn(rounds.run()),
        }
    }
}

impl Drop for HealthChecker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// When one target is probed next.
struct Entry {
    target: Arc<Target>,
    /// `None` while a probe is under way.
    due: Option<Instant>,
}

struct Rounds {
    registry: Arc<Registry>,
    prober: Arc<dyn Prober>,
    random: Random,
    schedule: HashMap<Arc<str>, Entry>,
    /// Who is due when, the next one on top. What the schedule does not confirm is out of date and skipped.
    queue: BinaryHeap<Reverse<(Instant, Arc<str>)>>,
    running: JoinSet<()>,
    by_task: HashMap<Id, Arc<Target>>,
}

impl Rounds {
    async fn run(mut self) {
        let mut changes = self.registry.subscribe();
        self.follow();
        loop {
            self.start_due();
            let next = self.next_due();
            let wait = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender lives in the registry, which this task holds.
                _ = changes.changed() => self.follow(),
                Some(ended) = self.running.join_next_with_id() => {
                    // A prober that panicked said nothing about its target.
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    self.reschedule(id);
                }
                () = wait => {}
            }
        }
    }

    /// Takes over what changed in the registry.
    fn follow(&mut self) {
        let targets = self.registry.list();
        let mut old = std::mem::take(&mut self.schedule);
        for target in targets {
            let covered = target.spec.probed && self.prober.covers(&target);
            let known = old
                .remove(&target.name)
                .filter(|entry| entry.target.is_same(&target));
            if !covered {
                if known.is_some() {
                    target.forget_health(Instant::now());
                }
                continue;
            }
            let due = match known {
                // A probe under way is about what was known of the target before; its result is
                // ignored where that matters, and the next one comes in its turn.
                Some(entry) => entry
                    .due
                    .map(|due| due.min(Instant::now() + self.interval(&target))),
                None => Some(self.first_due()),
            };
            self.schedule
                .insert(target.name.clone(), Entry { target, due });
        }
        let due = self.schedule.iter();
        let due = due.filter_map(|(name, entry)| Some(Reverse((entry.due?, name.clone()))));
        self.queue = due.collect();
    }

    /// Soon, but not all targets of a host at the same moment.
    fn first_due(&self) -> Instant {
        let spread = self
            .registry
            .config()
            .health
            .interval
            .min(Duration::from_secs(1));
        Instant::now() + fraction(spread, (self.random)())
    }

    fn interval(&self, target: &Target) -> Duration {
        let checks = target.health_checks();
        let base = if target.is_turning() {
            checks.fast_interval.min(checks.interval)
        } else {
            checks.interval
        };
        jittered(base, &checks, (self.random)())
    }

    /// When the next target is due; `None` while no more probes may be under way.
    fn next_due(&mut self) -> Option<Instant> {
        if self.is_full() {
            return None;
        }
        // Those on top that are out of date would wake the task for nothing.
        while let Some(Reverse((due, name))) = self.queue.peek() {
            if self.is_due_then(name, *due) {
                return Some(*due);
            }
            self.queue.pop();
        }
        None
    }

    fn is_due_then(&self, name: &str, due: Instant) -> bool {
        self.schedule
            .get(name)
            .is_some_and(|entry| entry.due == Some(due))
    }

    fn is_full(&self) -> bool {
        self.running.len() >= usize::from(self.registry.config().health.concurrency)
    }

    /// Starts every probe that is due, the longest overdue first, so that a full house starves nobody.
    fn start_due(&mut self) {
        let now = Instant::now();
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse((_, name))) = self.queue.pop() else {
                return;
            };
            if let Some(entry) = self.schedule.get_mut(&name) {
                entry.due = None;
                let target = entry.target.clone();
                self.start(target);
            }
        }
    }

    fn start(&mut self, target: Arc<Target>) {
        let limit = target.health_checks().timeout;
        let probed = target.clone();
        let prober = self.prober.clone();
        let version = target.health_version();
        let task = self.running.spawn(async move {
            let result = timeout(limit, prober.probe(&target)).await;
            match &result {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => {
                    tracing::debug!(target = %target.name, %failure, "health probe failed")
                }
                Err(_) => {
                    tracing::debug!(target = %target.name, ?limit, "health probe timed out")
                }
            }
            target.probed(version, matches!(result, Ok(Ok(()))), Instant::now());
        });
        self.by_task.insert(task.id(), probed);
    }

    fn reschedule(&mut self, ended: Id) {
        let Some(probed) = self.by_task.remove(&ended) else {
            return;
        };
        // Another target may have the name by now, or the same one another interval.
        let entry = self.schedule.get(&probed.name);
        let Some(target) = entry
            .filter(|entry| entry.target.is_same(&probed))
            .map(|entry| entry.target.clone())
        else {
            return;
        };
        let due = Instant::now() + self.interval(&target);
        let name = target.name.clone();
        self.queue.push(Reverse((due, name.clone())));
        let due = Some(due);
        self.schedule.insert(name, Entry { target, due });
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        let now = Instant::now();
        for entry in self.schedule.values() {
            entry.target.forget_health(now);
        }
    }
}

fn fraction(of: Duration, random: u64) -> Duration {
    Duration::from_nanos(below(
        random,
        u64::try_from(of.as_nanos()).unwrap_or(u64::MAX),
    ))
}

/// The interval, up to `jitter_percent` shorter or longer.
fn jittered(base: Duration, config: &HealthConfig, random: u64) -> Duration {
    let spread = base * u32::from(config.jitter_percent) / 100;
    base - spread + fraction(spread * 2, random)
}

#[cfg(test)]
mod tests;
