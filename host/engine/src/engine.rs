//! The engine: the parts of the host, joined.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::budget::{BudgetError, BudgetPolicy, RetryBudget};
use crate::cache::{CacheLimits, LastKnownGood};
use crate::detect::Detector;
use crate::event::{Event, EventKind, Events};
use crate::failure::Failure;
use crate::guard::Caps;
use crate::hedge::AnswerTimes;
use crate::kind::Kind;
use crate::metrics::{self, Meter};
use crate::random::{self, Random};
use crate::registry::{Registry, RegistryConfig, RegistryConfigError, Target, TargetChange};
use crate::retry::RetryManager;
use crate::strategy::{ManagerError, StrategyManager};

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

/// The engine. Cloning shares it.
#[derive(Clone)]
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    pub(crate) strategies: StrategyManager,
    pub(crate) detector: Detector,
    pub(crate) retry: RetryManager,
    pub(crate) settings: ArcSwap<Settings>,
    pub(crate) cache: ArcSwapOption<LastKnownGood>,
    pub(crate) random: Random,
    pub(crate) ids: AtomicU64,
    pub(crate) answer_times: AnswerTimes,
    pub(crate) meter: Meter,
    events: Arc<Events>,
    budgets: Budgets,
    wall_clock: WallClock,
}

type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

impl Shared {
    /// The retry budget of a group; made when the group is first called.
    pub(crate) fn budget_of(&self, group: &Arc<str>) -> Arc<RetryBudget> {
        self.budgets
            .of(group, || self.registry.list_group(group).is_empty())
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

/// One budget per group. Groups come and go with the configuration, so the table is small and read far
/// more often than written.
struct Budgets {
    /// What groups without targets share, and what the budget of a new group is made after.
    nowhere: Arc<RetryBudget>,
    table: ArcSwap<HashMap<Arc<str>, Arc<RetryBudget>>>,
    writing: Mutex<()>,
}

impl Budgets {
    /// A group without targets gets no budget of its own, since names may come from outside, and yet is
    /// held to one: its calls may fall back to another group's operation.
    fn of(&self, group: &Arc<str>, is_unknown: impl FnOnce() -> bool) -> Arc<RetryBudget> {
        if let Some(budget) = self.table.load().get(group) {
            return budget.clone();
        }
        if is_unknown() {
            return self.nowhere.clone();
        }
        let _guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = HashMap::clone(&self.table.load());
        let budget = table
            .entry(group.clone())
            .or_insert_with(|| Arc::new(self.nowhere.renewed(Instant::now())))
            .clone();
        self.table.store(Arc::new(table));
        budget
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

    /// The error detector: patterns and the retryable set.
    pub fn detector(&self) -> &Detector {
        &self.shared.detector
    }

    /// The retry policies.
    pub fn retry(&self) -> &RetryManager {
        &self.shared.retry
    }

    /// Deadlines and caps in force.
    pub fn settings(&self) -> Settings {
        **self.shared.settings.load()
    }

    /// Changes deadlines and caps; calls that are under way keep theirs.
    pub fn set_settings(&self, settings: Settings) {
        self.shared.settings.store(Arc::new(settings));
    }

    /// What is left of a group's retry budget, in attempts.
    pub fn budget_left(&self, group: &str) -> u64 {
        self.shared
            .budget_of(&group.into())
            .remaining(Instant::now())
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
    retry: RetryManager,
    budget: BudgetPolicy,
    cache: Option<CacheLimits>,
    random: Option<Random>,
    wall_clock: Option<WallClock>,
    registry: RegistryConfig,
    meter: Meter,
}

impl EngineBuilder {
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
        if self.settings.caps.max_attempts == 0 {
            return Err(BuildError::NoAttempts);
        }
        if self.settings.deadlines.call.is_zero()
            || self.settings.deadlines.attempt.is_zero()
            || self.settings.deadlines.attempt_max.is_zero()
        {
            return Err(BuildError::ZeroDeadline);
        }
        let nowhere = Arc::new(RetryBudget::new(self.budget, Instant::now())?);
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
                strategies: StrategyManager::new(),
                detector: self.detector,
                retry: self.retry,
                settings: ArcSwap::from_pointee(self.settings),
                cache: ArcSwapOption::from(
                    self.cache
                        .map(|limits| Arc::new(LastKnownGood::new(limits))),
                ),
                random,
                ids: AtomicU64::new(1),
                answer_times: AnswerTimes::default(),
                meter: self.meter,
                budgets: Budgets {
                    nowhere,
                    table: ArcSwap::default(),
                    writing: Mutex::new(()),
                },
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
    /// The retry budget.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// A deadline is zero.
    #[error("a deadline is zero: calls and attempts need time")]
    ZeroDeadline,
}
