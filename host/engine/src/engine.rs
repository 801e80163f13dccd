//! The engine: the parts of the host, joined.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::budget::{BudgetError, BudgetPolicy, RetryBudget};
use crate::cache::{CacheLimits, LastKnownGood};
use crate::call::CallId;
use crate::detect::{Detector, Pattern, PatternError, Patterns};
use crate::event::{Event, EventKind, Events};
use crate::failure::Failure;
use crate::guard::Caps;
use crate::hedge::AnswerTimes;
use crate::in_force::{Budgets, Current, InForce, Policies, PolicyPlan};
use crate::kind::Kind;
use crate::metrics::{self, Meter};
use crate::random::{self, Random};
use crate::registry::{Registry, RegistryConfig, RegistryConfigError, Target, TargetChange};
use crate::retry::{RetryManager, RetryPolicies};
use crate::strategy::{ManagerError, Strategies, StrategyManager};

/// How long things may take where a call does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// A whole call: attempts, waits, fallbacks and decisions together. Default: 60 s, which is the
    /// request timeout of the official MCP client libraries.
    pub call: Duration,
    /// How long one attempt may be silent. Default: 20 s, so that a call survives two silent targets.
    pub attempt: Duration,
    /// How long one attempt may take however much progress it shows. Default: 60 s.
    pub attempt_max: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(60),
            attempt: Duration::from_secs(20),
            attempt_max: Duration::from_secs(60),
        }
    }
}

/// What can be changed while the engine runs and is read as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Settings {
    /// How long things may take where a call does not say.
    pub deadlines: Deadlines,
    /// Caps on one call.
    pub caps: Caps,
}

impl Settings {
    pub(crate) fn validate(&self) -> Result<(), BuildError> {
        if self.caps.max_attempts == 0 {
            return Err(BuildError::NoAttempts);
        }
        if self.deadlines.call.is_zero()
            || self.deadlines.attempt.is_zero()
            || self.deadlines.attempt_max.is_zero()
        {
            return Err(BuildError::ZeroDeadline);
        }
        Ok(())
    }
}

/// The engine. Cloning shares it.
#[derive(Clone)]
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    pub(crate) current: Arc<Current>,
    pub(crate) strategies: StrategyManager,
    pub(crate) random: Random,
    pub(crate) ids: Ids,
    pub(crate) answer_times: AnswerTimes,
    pub(crate) meter: Meter,
    events: Arc<Events>,
    wall_clock: WallClock,
}

/// Numbers of calls. Written by every call, so apart from what every call reads: a line of the cache that one
/// core writes is lost to the others.
#[repr(align(128))]
pub(crate) struct Ids(AtomicU64);

impl Ids {
    pub(crate) fn next(&self) -> CallId {
        CallId(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

impl Shared {
    /// The retry budget of a group, by the policies of a call.
    pub(crate) fn budget_of(&self, in_force: &InForce, group: &Arc<str>) -> Arc<RetryBudget> {
        let is_unknown = || !self.registry.has_group(group);
        in_force.budgets.of(group, is_unknown)
    }

    /// Counts a call that begins.
    pub(crate) fn call_began(&self, in_force: &InForce, group: &Arc<str>, now: Instant) {
        let is_unknown = || !self.registry.has_group(group);
        let count = |budget: &Arc<RetryBudget>| budget.call_began(now);
        in_force.budgets.with(group, is_unknown, count);
    }

    /// Counts a call that was answered.
    pub(crate) fn call_succeeded(&self, in_force: &InForce, group: &Arc<str>) {
        if in_force.budgets.counts_answers() {
            let is_unknown = || !self.registry.has_group(group);
            let count = |budget: &Arc<RetryBudget>| budget.call_succeeded();
            in_force.budgets.with(group, is_unknown, count);
        }
    }

    /// Counts what happened and tells the subscribers. Where neither is wanted, nothing is built.
    pub(crate) fn emit(&self, what: impl FnOnce() -> EventKind) {
        if !self.meter.on {
            return self.events.emit(|| self.wall_clock(), what);
        }
        let what = what();
        // Names of groups may come from outside, and every one that is counted is kept for good.
        self.meter
            .observe(&what, |name| self.registry.has_group(name));
        self.events.emit(|| self.wall_clock(), || what);
    }

    pub(crate) fn wall_clock(&self) -> SystemTime {
        (self.wall_clock)()
    }

    /// The failure of a call that finds no target.
    pub(crate) fn nobody_to_ask(&self, group: &str) -> Failure {
        let known = self.registry.list_group(group).len();
        let message = match known {
            0 => format!("group {group:?} has no targets"),
            1 => format!(
                "the only target of group {group:?} takes no requests now: its circuit is open or it is drained"
            ),
            _ => format!("none of the {known} targets of group {group:?} takes requests now"),
        };
        Failure::new(Kind::OVERLOADED, message)
    }
}

impl Engine {
    /// Starts an engine.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    /// The targets: register, deregister, update, look up.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.shared.registry
    }

    /// The strategies: add, replace, remove, list.
    pub fn strategies(&self) -> &StrategyManager {
        &self.shared.strategies
    }

    /// The error detector: patterns and the retryable set. What is changed in it holds at once, and stays
    /// when the engine is [reconfigured](Self::reconfigure).
    pub fn detector(&self) -> Detector {
        self.shared.current.now().detector.clone()
    }

    /// The retry policies in force. [`reconfigure`](Self::reconfigure) puts others in their place: then
    /// ask again.
    pub fn retry(&self) -> RetryManager {
        self.shared.current.now().retry.clone()
    }

    /// Deadlines and caps in force.
    pub fn settings(&self) -> Settings {
        self.shared.current.now().settings
    }

    /// Changes deadlines and caps; calls that are under way keep theirs.
    pub fn set_settings(&self, settings: Settings) {
        self.shared.current.change(|now| now.settings = settings);
    }

    /// Every policy in force.
    pub fn policies(&self) -> Policies {
        let now = self.shared.current.now();
        Policies {
            settings: now.settings,
            patterns: now.detector.operators(),
            retry: RetryPolicies::clone(&now.retry.policies()),
            budget: now.budgets.policy(),
            cache: now.cache.as_ref().map(|cache| cache.limits()),
            registry: RegistryConfig::clone(&self.shared.registry.config()),
        }
    }

    /// Changes every policy in one step. A call that is under way keeps those it began with, the next one
    /// goes by the new ones; no call sees some of each. Only what belongs to the targets (circuits,
    /// health checks, balance) holds for all at once.
    ///
    /// # Errors
    /// [`BuildError`] names what is out of range; then nothing changes.
    pub fn reconfigure(&self, policies: Policies) -> Result<(), BuildError> {
        self.plan(policies)?.commit();
        Ok(())
    }

    /// The first half of [`reconfigure`](Self::reconfigure): checks the policies and changes nothing, so
    /// that they can be put in force together with
    #[cfg_attr(
        all(feature = "config", feature = "component"),
        doc = "[strategies](crate::plugins::Plan::commit_with)."
    )]
    #[cfg_attr(
        not(all(feature = "config", feature = "component")),
        doc = "strategies."
    )]
    ///
    /// # Errors
    /// [`BuildError`] names what is out of range.
    pub fn plan(&self, policies: Policies) -> Result<PolicyPlan, BuildError> {
        PolicyPlan::new(self, policies)
    }

    /// What is left of a group's retry budget, in attempts.
    pub fn budget_left(&self, group: &str) -> u64 {
        let in_force = self.shared.current.keep();
        let budget = self.shared.budget_of(&in_force, &group.into());
        budget.remaining(Instant::now())
    }

    /// Everything the engine does and sees from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.shared.events.subscribe()
    }

    /// Sets the gauges of the targets and the budgets, for an exporter that is about to read them.
    /// Without [`EngineBuilder::metrics`] it does nothing.
    pub fn sample_metrics(&self) {
        if !self.shared.meter.on {
            return;
        }
        for target in self.shared.registry.list() {
            metrics::sample(&target);
        }
        for group in self.shared.registry.groups() {
            metrics::sample_budget(&group, self.budget_left(&group));
        }
    }

    /// Lets a strategy take part again, or leaves it out until it is let back, whatever becomes of its
    /// file meanwhile. Says whether that is a change.
    ///
    /// # Errors
    /// [`ManagerError::Unknown`] if there is no such strategy.
    pub fn set_strategy_enabled(&self, name: &str, enabled: bool) -> Result<bool, ManagerError> {
        let changed = self.shared.strategies.set_enabled(name, enabled)?;
        if changed {
            let strategy = name.into();
            self.announce(match enabled {
                true => EventKind::StrategyEnabled { strategy },
                false => EventKind::StrategyDisabled { strategy },
            });
        }
        Ok(changed)
    }

    /// Tells the subscribers of something that happened outside a call.
    pub fn announce(&self, what: EventKind) {
        self.shared.emit(|| what);
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("strategies", &self.shared.strategies)
            .field("settings", &self.settings())
            .finish_non_exhaustive()
    }
}

/// What the subscribers are told of a change to a target.
fn target_event(target: &Target, change: &TargetChange) -> Option<EventKind> {
    let group = target.spec.group.clone();
    let target = target.name.clone();
    Some(match change {
        TargetChange::Up => EventKind::TargetUp { target },
        TargetChange::Down => EventKind::TargetDown { target },
        TargetChange::CircuitOpened {
            open_for, cause, ..
        } => EventKind::CircuitOpened {
            target,
            open_for: *open_for,
            cause: *cause,
        },
        TargetChange::Held => EventKind::TargetHeld { target },
        TargetChange::Released => EventKind::TargetReleased { target },
        TargetChange::CircuitHalfOpened => EventKind::CircuitHalfOpened { target },
        TargetChange::CircuitClosed => EventKind::CircuitClosed { target },
        TargetChange::Recovered { after } => EventKind::Recovered {
            target,
            after: *after,
        },
        TargetChange::Registered => EventKind::TargetAdded { target, group },
        TargetChange::Deregistered => EventKind::TargetRemoved { target, group },
        _ => return None,
    })
}

/// What an engine is made of; every part has a default.
#[derive(Default)]
#[must_use]
pub struct EngineBuilder {
    settings: Settings,
    detector: Detector,
    patterns: Vec<Pattern>,
    retry: RetryManager,
    budget: BudgetPolicy,
    cache: Option<CacheLimits>,
    random: Option<Random>,
    wall_clock: Option<WallClock>,
    registry: RegistryConfig,
    meter: Meter,
}

impl EngineBuilder {
    /// Every policy at once; what is set after it goes before it.
    pub fn policies(mut self, policies: Policies) -> Self {
        self.settings = policies.settings;
        self.patterns = policies.patterns;
        self.retry = RetryManager::new(policies.retry);
        self.budget = policies.budget;
        self.cache = policies.cache;
        self.registry = policies.registry;
        self
    }

    /// Deadlines and caps.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// How failures are classified.
    pub fn detector(mut self, detector: Detector) -> Self {
        self.detector = detector;
        self
    }

    /// How retries are spaced.
    pub fn retry(mut self, retry: RetryManager) -> Self {
        self.retry = retry;
        self
    }

    /// How many retries and fallbacks a group may make. One budget per group.
    pub fn budget(mut self, budget: BudgetPolicy) -> Self {
        self.budget = budget;
        self
    }

    /// Keeps last known good answers. Default: none are kept.
    pub fn cache(mut self, limits: CacheLimits) -> Self {
        self.cache = Some(limits);
        self
    }

    /// Circuits, health checks and balance.
    pub fn registry(mut self, config: RegistryConfig) -> Self {
        self.registry = config;
        self
    }

    /// The source of chance. Default: differs from run to run.
    pub fn random(mut self, random: Random) -> Self {
        self.random = Some(random);
        self
    }

    /// The wall clock. Default: the system's.
    pub fn wall_clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.wall_clock = Some(Arc::new(clock));
        self
    }

    /// Counts and times calls, attempts, fallbacks and strategies, for the recorder of the
    /// `metrics` crate that is installed when the first call is made. Default: nothing is counted. See
    /// [`crate::metrics`].
    pub fn metrics(mut self) -> Self {
        self.meter.on = true;
        self
    }

    /// Builds the engine.
    ///
    /// # Errors
    /// [`BuildError`] names the part that is out of range.
    pub fn build(self) -> Result<Engine, BuildError> {
        self.settings.validate()?;
        let cache = self.cache.map(LastKnownGood::new);
        let current = Arc::new(Current::new(InForce {
            settings: self.settings,
            detector: self.detector.with_operators(Patterns::new(self.patterns)?),
            retry: self.retry,
            budgets: Arc::new(Budgets::new(self.budget)?),
            cache: cache.map(Arc::new),
            strategies: Strategies::default(),
        }));
        let events = Arc::new(Events::default());
        let wall_clock = self.wall_clock.unwrap_or_else(|| Arc::new(SystemTime::now));
        let random = self.random.unwrap_or_else(random::from_os);
        let observer = {
            let (events, wall_clock) = (events.clone(), wall_clock.clone());
            move |target: &Target, change: &TargetChange| {
                if let Some(what) = target_event(target, change) {
                    events.emit(|| wall_clock(), || what);
                }
            }
        };
        let registry = Registry::builder()
            .config(self.registry)
            .random(random.clone())
            .observer(Arc::new(observer))
            .build()?;
        Ok(Engine {
            shared: Arc::new(Shared {
                registry: Arc::new(registry),
                strategies: StrategyManager::of(current.clone()),
                current,
                random,
                ids: Ids(AtomicU64::new(1)),
                answer_times: AnswerTimes::default(),
                meter: self.meter,
                events,
                wall_clock,
            }),
        })
    }
}

/// Why an engine could not be built.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// `caps.max_attempts` is zero.
    #[error("caps.max_attempts is 0: a call needs at least one attempt")]
    NoAttempts,
    /// Circuits, health checks or balance.
    #[error(transparent)]
    Registry(#[from] RegistryConfigError),
    /// A pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The retry budget.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// A deadline is zero.
    #[error("a deadline is zero: calls and attempts need time")]
    ZeroDeadline,
}
