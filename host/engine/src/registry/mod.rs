//! Service discovery: which targets there are, in which groups, how they stand, and which one is asked
//! next.
//!
//! A target is a service or a model. Targets of one group stand in for one another. Reading takes no
//! lock: the set of targets and the configuration are snapshots that writers replace as a whole, and
//! what changes with each request (circuit, health, requests under way) are atomics of the target.
//!
//! ```
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use backstop::registry::{PickRequest, Registry, TargetSpec};
//! use tokio::time::Instant;
//!
//! let registry = Registry::builder().build()?;
//! registry.register(TargetSpec::service("primary", "search").url("http://localhost:8001/mcp").priority(1))?;
//! registry.register(TargetSpec::service("backup", "search").url("http://localhost:8002/mcp"))?;
//!
//! let pick = registry.pick("search", &PickRequest::default(), Instant::now(), &mut || 0);
//! let pick = pick.ok_or("no target")?;
//! assert_eq!(&*pick.target.name, "primary");
//! let begun = Instant::now();
//! // ... send the request to pick.target.spec.url ...
//! pick.permit.succeeded(Instant::now(), begun.elapsed());
//! # Ok(())
//! # }
//! ```

mod bulkhead;
mod config;
mod observer;
mod permit;
mod places;
mod roster;
mod select;
mod spec;
mod target;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

pub use bulkhead::{ConcurrencyLimit, RateLimit};
pub use config::{BalanceConfig, RegistryConfig, RegistryConfigError};
pub use observer::{Observer, TargetChange};
pub use permit::Permit;
pub use select::{Pick, PickRequest};
pub use spec::{TargetKind, TargetSpec};
pub use target::{Standing, Target};

use crate::circuit::CircuitConfigError;
use crate::random::Random;
use roster::Moment;
use select::Group;
use target::Shared;

/// No time of a target is longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Why the registry refuses a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// There is a target of this name already.
    #[error("target {0:?} is registered already")]
    Duplicate(Arc<str>),
    /// There is no target of this name.
    #[error("there is no target {0:?}")]
    Unknown(Arc<str>),
    /// A target must have a name.
    #[error("a target of group {0:?} has no name")]
    NoName(Arc<str>),
    /// A target must belong to a group.
    #[error("target {0:?} belongs to no group")]
    NoGroup(Arc<str>),
    /// A time is longer than a day, or zero where it must not be.
    #[error("target {target:?}: {key} must be more than zero, at most 24 h")]
    TimeOutOfRange {
        /// The target.
        target: Arc<str>,
        /// The setting.
        key: &'static str,
    },
    /// Its circuit's configuration is out of range.
    #[error("target {target:?}")]
    Circuit {
        /// The target.
        target: Arc<str>,
        /// What is wrong with it.
        #[source]
        error: CircuitConfigError,
    },
}

/// The targets at one moment.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    targets: BTreeMap<Arc<str>, Arc<Target>>,
    /// Looked up by every call. Only names of targets' groups come in, so that nobody can choose names that
    /// collide, and the hash need not be a slow one.
    groups: HashMap<Arc<str>, Group, foldhash::fast::RandomState>,
    /// The configuration in force, beside what it is read with: so that a pick reads one snapshot.
    config: Arc<RegistryConfig>,
}

impl Snapshot {
    /// The targets of a group, highest priority first.
    fn group(&self, name: &str) -> &[Arc<Target>] {
        self.groups.get(name).map_or(&[], |group| group.targets())
    }

    fn new(targets: BTreeMap<Arc<str>, Arc<Target>>, config: Arc<RegistryConfig>) -> Self {
        let mut groups: HashMap<Arc<str>, Vec<Arc<Target>>> = HashMap::new();
        for target in targets.values() {
            groups
                .entry(target.spec.group.clone())
                .or_default()
                .push(target.clone());
        }
        let groups = groups
            .into_iter()
            .map(|(name, targets)| (name, Group::new(targets)))
            .collect();
        Self {
            targets,
            groups,
            config,
        }
    }
}

/// The targets there are, and how they stand.
pub struct Registry {
    shared: Arc<Shared>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    /// Held by writers only.
    writer: Mutex<()>,
    /// Counts changes to the targets and the configuration.
    changes: watch::Sender<u64>,
}

/// Makes a [`Registry`].
#[derive(Default)]
#[must_use = "a builder does nothing until it builds"]
pub struct RegistryBuilder {
    config: RegistryConfig,
    observer: Option<Arc<dyn Observer>>,
    random: Option<Random>,
}

impl RegistryBuilder {
    /// Sets the configuration.
    pub fn config(mut self, config: RegistryConfig) -> Self {
        self.config = config;
        self
    }

    /// Sets who is told of changes. Default: nobody.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Sets where jitter comes from. Default: a generator seeded by the operating system.
    pub fn random(mut self, random: Random) -> Self {
        self.random = Some(random);
        self
    }

    /// Makes the registry, with no target in it.
    ///
    /// # Errors
    /// Names the first setting that is out of range.
    pub fn build(self) -> Result<Registry, RegistryConfigError> {
        self.config.validate()?;
        let config = Arc::new(self.config);
        let empty = Snapshot::new(BTreeMap::new(), config.clone());
        let snapshot = Arc::new(ArcSwap::from_pointee(empty));
        Ok(Registry {
            shared: Arc::new(Shared {
                snapshot: Arc::downgrade(&snapshot),
                ejecting: Mutex::new(()),
                standings: AtomicU64::new(0),
                epoch: Instant::now(),
                epoch_wall: SystemTime::now(),
                config: ArcSwap::new(config),
                observer: self.observer,
                random: self.random.unwrap_or_else(crate::random::from_os),
            }),
            snapshot,
            writer: Mutex::new(()),
            changes: watch::Sender::new(0),
        })
    }
}

impl Registry {
    /// Begins a registry.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// Adds a target.
    ///
    /// # Errors
    /// If a target of its name is there already, or the target is invalid.
    pub fn register(&self, spec: TargetSpec) -> Result<Arc<Target>, RegistryError> {
        check(&spec)?;
        let target = self.write(|targets| {
            if targets.contains_key(&spec.name) {
                return Err(RegistryError::Duplicate(spec.name));
            }
            let target = Arc::new(Target::new(spec, self.shared.clone()));
            targets.insert(target.name.clone(), target.clone());
            Ok(target)
        })?;
        target.tell(&TargetChange::Registered);
        Ok(target)
    }

    /// Takes a target out. No new request goes to it; those under way finish, see [`Target::drained`].
    ///
    /// # Errors
    /// If there is no such target.
    pub fn deregister(&self, name: &str) -> Result<Arc<Target>, RegistryError> {
        let target = self.write(|targets| {
            targets
                .remove(name)
                .ok_or_else(|| RegistryError::Unknown(name.into()))
        })?;
        target.drain();
        target.tell(&TargetChange::Deregistered);
        Ok(target)
    }

    /// Replaces what is known of a target. Its circuit, its requests under way and its latency stay; what
    /// health checks said of it stays unless they look elsewhere now.
    ///
    /// # Errors
    /// If there is no target of this name, or the new one is invalid.
    pub fn update(&self, spec: TargetSpec) -> Result<Arc<Target>, RegistryError> {
        check(&spec)?;
        let (old, new) = self.write(|targets| {
            let Some(slot) = targets.get_mut(&spec.name) else {
                return Err(RegistryError::Unknown(spec.name));
            };
            let new = Arc::new(slot.with_spec(spec));
            Ok((std::mem::replace(slot, new.clone()), new))
        })?;
        after_update(&old, &new);
        Ok(new)
    }

    /// Makes the targets exactly these, in one step: new ones are added, those of a known name are
    /// updated, the others are taken out.
    ///
    /// # Errors
    /// If two have the same name, or one is invalid; then nothing changes.
    pub fn replace_all(&self, specs: Vec<TargetSpec>) -> Result<(), RegistryError> {
        for spec in &specs {
            check(spec)?;
        }
        let (mut added, mut updated) = (Vec::new(), Vec::new());
        let removed = self.write(|targets| {
            let mut next = BTreeMap::new();
            for spec in specs {
                if next.contains_key(&spec.name) {
                    return Err(RegistryError::Duplicate(spec.name));
                }
                let target = match targets.get(&spec.name) {
                    Some(old) if old.spec == spec => old.clone(),
                    Some(old) => {
                        let new = Arc::new(old.with_spec(spec));
                        updated.push((old.clone(), new.clone()));
                        new
                    }
                    None => {
                        let new = Arc::new(Target::new(spec, self.shared.clone()));
                        added.push(new.clone());
                        new
                    }
                };
                next.insert(target.name.clone(), target);
            }
            let mut old = std::mem::replace(targets, next);
            old.retain(|name, _| !targets.contains_key(name));
            Ok(old)
        })?;
        for target in removed.values() {
            target.drain();
            target.tell(&TargetChange::Deregistered);
        }
        for (old, new) in &updated {
            after_update(old, new);
        }
        for target in &added {
            target.tell(&TargetChange::Registered);
        }
        Ok(())
    }

    /// Holds a target: what is under way at it finishes, and nothing new begins until it is
    /// [restored](Self::restore). It stays registered and is probed as ever. Says whether that is a change.
    ///
    /// # Errors
    /// If there is no such target.
    pub fn hold(&self, name: &str) -> Result<bool, RegistryError> {
        Ok(self.known(name)?.hold())
    }

    /// Opens a target's circuit, as if live traffic had found it ill: after `open_for` it is tried again.
    ///
    /// # Errors
    /// If there is no such target, or the time is zero or longer than a day.
    pub fn eject(&self, name: &str, open_for: Duration) -> Result<(), RegistryError> {
        let target = self.known(name)?;
        if open_for.is_zero() || open_for > LONGEST {
            return Err(RegistryError::TimeOutOfRange {
                target: target.name.clone(),
                key: "the time it is ejected for",
            });
        }
        target.eject(open_for, Instant::now());
        Ok(())
    }

    /// Takes a target back into use: it is held no more, its circuit closes, and what health checks said
    /// of it is forgotten. Its share of the load grows as after any recovery.
    ///
    /// # Errors
    /// If there is no such target.
    pub fn restore(&self, name: &str) -> Result<(), RegistryError> {
        self.known(name)?.restore(Instant::now());
        Ok(())
    }

    fn known(&self, name: &str) -> Result<Arc<Target>, RegistryError> {
        self.get(name)
            .ok_or_else(|| RegistryError::Unknown(name.into()))
    }

    fn write<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<Arc<str>, Arc<Target>>) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let result = {
            let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.snapshot.load();
            let mut targets = now.targets.clone();
            let result = change(&mut targets)?;
            let next = Snapshot::new(targets, now.config.clone());
            self.snapshot.store(Arc::new(next));
            result
        };
        self.changes.send_modify(|version| *version += 1);
        Ok(result)
    }

    /// Replaces the configuration; it holds from the next request on.
    ///
    /// # Errors
    /// Names the first setting that is out of range; then nothing changes.
    pub fn configure(&self, config: RegistryConfig) -> Result<(), RegistryConfigError> {
        config.validate()?;
        let config = Arc::new(config);
        {
            let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let targets = self.snapshot.load().targets.clone();
            self.shared.config.store(config.clone());
            self.snapshot
                .store(Arc::new(Snapshot::new(targets, config)));
        }
        self.shared.standing_changed();
        self.changes.send_modify(|version| *version += 1);
        Ok(())
    }

    /// The configuration.
    pub fn config(&self) -> Arc<RegistryConfig> {
        self.shared.config.load_full()
    }

    /// Is woken by every change to the targets and the configuration.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The target of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Target>> {
        self.snapshot.load().targets.get(name).cloned()
    }

    /// Every target, by name.
    pub fn list(&self) -> Vec<Arc<Target>> {
        self.snapshot.load().targets.values().cloned().collect()
    }

    /// The targets of a group, highest priority first.
    pub fn list_group(&self, group: &str) -> Vec<Arc<Target>> {
        self.snapshot.load().group(group).to_vec()
    }

    /// The targets of a group that are healthy and whose circuit lets requests through, highest priority
    /// first.
    pub fn list_healthy(&self, group: &str, now: Instant) -> Vec<Arc<Target>> {
        let mut targets = self.list_group(group);
        targets.retain(|target| {
            target.standing(now)
                == Standing {
                    healthy: true,
                    admitted: true,
                }
        });
        targets
    }

    /// Whether a group of this name has a target.
    pub fn has_group(&self, name: &str) -> bool {
        self.snapshot.load().groups.contains_key(name)
    }

    /// The names of the groups, sorted.
    pub fn groups(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.snapshot.load().groups.keys().cloned().collect();
        names.sort();
        names
    }

    /// Picks the target to ask next. `random` gives numbers spread evenly over all of `u64`; it is not
    /// asked where there is nothing to choose.
    ///
    /// `None` where the group has no target that fits, or none that may be asked now.
    pub fn pick(
        &self,
        group: &str,
        request: &PickRequest<'_>,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Pick> {
        let permit = self.pick_permit(group, request, now, random)?;
        Some(Pick {
            target: permit.target().clone(),
            permit,
        })
    }

    /// The same, without a second count of references to the target.
    pub(crate) fn pick_permit(
        &self,
        group: &str,
        request: &PickRequest<'_>,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Permit> {
        let snapshot = self.snapshot.load();
        let moment = self.moment(&snapshot.config, now);
        let group = snapshot.groups.get(group)?;
        group.pick(request, &moment, random)
    }

    fn moment<'a>(&self, config: &'a RegistryConfig, now: Instant) -> Moment<'a> {
        Moment {
            config,
            now,
            standings: self.shared.standings.load(Ordering::Acquire),
        }
    }

    /// The target that [`pick`](Self::pick) would most likely take, without taking it: of several that
    /// share the load, the one with the largest share, and of several with the same share the one with
    /// the least to do.
    pub fn peek_best(
        &self,
        group: &str,
        request: &PickRequest<'_>,
        now: Instant,
    ) -> Option<Arc<Target>> {
        let snapshot = self.snapshot.load();
        let moment = self.moment(&snapshot.config, now);
        let group = snapshot.groups.get(group)?;
        group.peek(request, &moment).cloned()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("targets", &self.snapshot.load().targets)
            .finish_non_exhaustive()
    }
}

fn after_update(old: &Target, new: &Target) {
    if !old.spec.same_health_source(&new.spec) {
        new.forget_health(Instant::now());
    }
    new.tell(&TargetChange::Updated);
}

fn check(spec: &TargetSpec) -> Result<(), RegistryError> {
    if spec.name.is_empty() {
        return Err(RegistryError::NoName(spec.group.clone()));
    }
    if spec.group.is_empty() {
        return Err(RegistryError::NoGroup(spec.name.clone()));
    }
    for (key, time) in [
        ("health_interval", spec.health_interval),
        ("health_timeout", spec.health_timeout),
        ("health_fast_interval", spec.health_fast_interval),
        ("rate_limit.per", spec.rate_limit.map(|limit| limit.per)),
    ] {
        if time.is_some_and(|time| time.is_zero() || time > LONGEST) {
            return Err(RegistryError::TimeOutOfRange {
                target: spec.name.clone(),
                key,
            });
        }
    }
    if spec
        .slow_start
        .is_some_and(|time| time > Duration::from_secs(24 * 3600))
    {
        return Err(RegistryError::TimeOutOfRange {
            target: spec.name.clone(),
            key: "slow_start",
        });
    }
    if let Some(Err(error)) = spec.circuit.as_ref().map(|circuit| circuit.validate()) {
        return Err(RegistryError::Circuit {
            target: spec.name.clone(),
            error,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
