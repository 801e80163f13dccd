use std::collections::HashMap;
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
        let config = self.registry.config();
        let base = target
            .spec
            .health_interval
            .unwrap_or(config.health.interval);
        jittered(base, &config.health, (self.random)())
    }

    fn next_due(&self) -> Option<Instant> {
        if self.is_full() {
            return None;
        }
        self.schedule.values().filter_map(|entry| entry.due).min()
    }

    fn is_full(&self) -> bool {
        self.running.len() >= usize::from(self.registry.config().health.concurrency)
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        let mut due: Vec<_> = self
            .schedule
            .values()
            .filter_map(|entry| {
                entry
                    .due
                    .filter(|due| *due <= now)
                    .map(|due| (due, entry.target.clone()))
            })
            .collect();
        // The longest overdue first, so that a full house starves nobody.
        due.sort_by_key(|(due, _)| *due);
        for (_, target) in due {
            if self.is_full() {
                return;
            }
            if let Some(entry) = self.schedule.get_mut(&target.name) {
                entry.due = None;
            }
            let limit = target
                .spec
                .health_timeout
                .unwrap_or(self.registry.config().health.timeout);
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
        let due = Some(Instant::now() + self.interval(&target));
        self.schedule
            .insert(target.name.clone(), Entry { target, due });
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
