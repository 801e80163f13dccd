//! The fallback strategy manager: which strategies there are, and who is asked first.
//!
//! Strategies are kept in the order they are asked in, highest priority first and, among equals, by
//! name. A change is a new list swapped in whole; a call that is under way keeps the list it began
//! with.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::{
    Action, Decision, InfoError, Interest, Situation, Strategy, StrategyFault, StrategyInfo,
};

#[cfg(feature = "component")]
use super::component::ComponentStrategy;

/// What a strategy's fault does to the call that asked it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OnFault {
    /// The next strategy is asked; the fault stands in the explanation.
    #[default]
    Skip,
    /// The call ends with its failure: for a strategy that stands for a decision nobody else may
    /// take.
    Fail,
    /// As if its condition had said no.
    Decline,
}

/// One strategy, as the manager keeps it.
pub struct Entry {
    name: Arc<str>,
    level: Arc<str>,
    priority: i32,
    on_fault: OnFault,
    info: StrategyInfo,
    interest: Interest,
    body: Body,
}

enum Body {
    Native(Arc<dyn Strategy>),
    #[cfg(feature = "component")]
    Component(Arc<ComponentStrategy>),
}

impl Entry {
    /// A native strategy, under its own name and priority.
    ///
    /// # Errors
    /// [`InfoError`] if what it says of itself is not acceptable.
    pub fn native(strategy: impl Strategy + 'static) -> Result<Self, InfoError> {
        let info = strategy.info();
        Self::new(info, Body::Native(Arc::new(strategy)))
    }

    /// A component, under its own name and priority.
    ///
    /// # Errors
    /// [`InfoError`] if what it says of itself is not acceptable.
    #[cfg(feature = "component")]
    pub fn component(strategy: Arc<ComponentStrategy>) -> Result<Self, InfoError> {
        Self::new(strategy.info().clone(), Body::Component(strategy))
    }

    fn new(info: StrategyInfo, body: Body) -> Result<Self, InfoError> {
        let interest = info.interest()?;
        Ok(Self {
            name: info.name.as_str().into(),
            level: info.level.as_str().into(),
            priority: info.default_priority,
            on_fault: OnFault::default(),
            info,
            interest,
            body,
        })
    }

    /// Gives it another name, so that one strategy can be used twice with two configurations.
    #[must_use]
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Gives it another priority.
    #[must_use]
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Says what its fault does to a call.
    #[must_use]
    pub fn with_on_fault(mut self, on_fault: OnFault) -> Self {
        self.on_fault = on_fault;
        self
    }

    /// Its name in this manager.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its level of fallback.
    pub fn level(&self) -> &Arc<str> {
        &self.level
    }

    /// Its priority: higher is asked first.
    pub fn priority(&self) -> i32 {
        self.priority
    }

    /// What its fault does to a call.
    pub fn on_fault(&self) -> OnFault {
        self.on_fault
    }

    /// What it does, in its own words.
    pub fn description(&self) -> &str {
        &self.info.description
    }

    /// What it says of itself.
    pub fn info(&self) -> &StrategyInfo {
        &self.info
    }

    /// The component behind it, unless it is native.
    #[cfg(feature = "component")]
    pub fn as_component(&self) -> Option<&Arc<ComponentStrategy>> {
        match &self.body {
            Body::Native(_) => None,
            Body::Component(component) => Some(component),
        }
    }

    /// The faults that led to its quarantine, once for each quarantine.
    pub(crate) fn take_quarantine(&self) -> Option<u32> {
        match &self.body {
            Body::Native(_) => None,
            #[cfg(feature = "component")]
            Body::Component(component) => component.take_quarantine(),
        }
    }

    /// Whether it wants to be asked about a failure of this kind in this operation.
    pub fn is_interested(&self, situation: &Situation) -> bool {
        self.interest
            .matches(&situation.failure.kind, &situation.operation)
    }

    /// Asks its condition and, if that says yes, its action. `None`: it does not apply.
    ///
    /// # Errors
    /// [`StrategyFault`] if it failed to decide.
    pub async fn decide(&self, situation: &Situation) -> Result<Option<Decision>, StrategyFault> {
        match &self.body {
            Body::Native(strategy) => {
                // A native strategy is trusted with the process, yet its panic must not cost a call.
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    strategy
                        .condition(situation)
                        .then(|| strategy.action(situation))
                }))
                .map_err(|panic| {
                    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
                    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                    StrategyFault::Trap(text.unwrap_or_else(|| "panicked".into()))
                })
            }
            #[cfg(feature = "component")]
            Body::Component(strategy) => strategy.decide(situation).await,
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("name", &self.name)
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}

/// A strategy that applies, and what it proposes.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// The strategy.
    pub strategy: Arc<Entry>,
    /// What it proposes.
    pub decision: Decision,
}

/// Why a strategy could not be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// There is one of that name.
    #[error(
        "there is a strategy named {0:?} already; remove it first or give this one another name"
    )]
    Duplicate(Arc<str>),
    /// There is none of that name.
    #[error("there is no strategy {0:?}")]
    Unknown(Arc<str>),
}

/// Holds the strategies in the order they are asked in.
#[derive(Debug, Default)]
pub struct StrategyManager {
    table: ArcSwap<Table>,
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Table {
    all: Arc<Vec<Arc<Entry>>>,
    /// Those that are asked.
    active: Arc<Vec<Arc<Entry>>>,
    /// Names of those that are not. A name stays here when what bears it is exchanged.
    disabled: HashSet<Arc<str>>,
}

impl Table {
    fn new(all: Arc<Vec<Arc<Entry>>>, disabled: HashSet<Arc<str>>) -> Self {
        let active = if disabled.is_empty() {
            all.clone()
        } else {
            let asked = all.iter().filter(|entry| !disabled.contains(&entry.name));
            Arc::new(asked.cloned().collect())
        };
        Self {
            all,
            active,
            disabled,
        }
    }
}

impl StrategyManager {
    /// A manager without strategies.
    pub fn new() -> Self {
        Self::default()
    }

    fn change<R>(&self, change: impl FnOnce(&mut Vec<Arc<Entry>>) -> R) -> R {
        let _guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table.load();
        let mut entries = Vec::clone(&table.all);
        let result = change(&mut entries);
        sort(&mut entries);
        let next = Table::new(Arc::new(entries), table.disabled.clone());
        self.table.store(Arc::new(next));
        result
    }

    /// Lets a strategy be asked, or not, until this is called again: also what takes its place under its
    /// name. Says whether that is a change.
    ///
    /// # Errors
    /// [`ManagerError::Unknown`] if there is no such strategy.
    pub(crate) fn set_enabled(&self, name: &str, enabled: bool) -> Result<bool, ManagerError> {
        let _guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table.load();
        if !table.all.iter().any(|entry| &*entry.name == name) {
            return Err(ManagerError::Unknown(name.into()));
        }
        let mut disabled = table.disabled.clone();
        let changed = match enabled {
            true => disabled.remove(name),
            false => disabled.insert(name.into()),
        };
        let next = Table::new(table.all.clone(), disabled);
        self.table.store(Arc::new(next));
        Ok(changed)
    }

    /// Whether a strategy of this name is asked.
    pub fn is_enabled(&self, name: &str) -> bool {
        !self.table.load().disabled.contains(name)
    }

    /// Adds a strategy.
    ///
    /// # Errors
    /// [`ManagerError::Duplicate`] if there is one of its name.
    pub fn add(&self, entry: Entry) -> Result<Arc<Entry>, ManagerError> {
        let entry = Arc::new(entry);
        self.change(|entries| {
            if entries.iter().any(|other| other.name == entry.name) {
                return Err(ManagerError::Duplicate(entry.name.clone()));
            }
            entries.push(entry.clone());
            Ok(entry)
        })
    }

    /// Adds a strategy, or puts it in the place of the one of its name, which is returned.
    pub fn replace(&self, entry: Entry) -> Option<Arc<Entry>> {
        let entry = Arc::new(entry);
        self.change(|entries| {
            let old = entries
                .iter()
                .position(|other| other.name == entry.name)
                .map(|at| entries.remove(at));
            entries.push(entry);
            old
        })
    }

    /// Takes the strategies `out` out and puts `into` in, in one step: no call sees half of it. One
    /// whose name another has stays out.
    #[cfg(all(feature = "component", feature = "config"))]
    pub(crate) fn exchange(&self, out: &[Arc<Entry>], into: Vec<Arc<Entry>>) {
        let out: HashSet<_> = out.iter().map(Arc::as_ptr).collect();
        self.change(|entries| {
            entries.retain(|entry| !out.contains(&Arc::as_ptr(entry)));
            let taken: HashSet<_> = entries.iter().map(|entry| entry.name.clone()).collect();
            let is_free = |entry: &Arc<Entry>| !taken.contains(&entry.name);
            entries.extend(into.into_iter().filter(is_free));
        });
    }

    /// Puts these strategies in the place of all others, in one step.
    ///
    /// # Errors
    /// [`ManagerError::Duplicate`] if two have one name; the old ones then stay.
    pub fn replace_all(&self, all: Vec<Entry>) -> Result<(), ManagerError> {
        let mut names = HashSet::new();
        if let Some(entry) = all.iter().find(|entry| !names.insert(entry.name.clone())) {
            return Err(ManagerError::Duplicate(entry.name.clone()));
        }
        self.change(|entries| *entries = all.into_iter().map(Arc::new).collect());
        Ok(())
    }

    /// Removes a strategy. A call that is asking it is not disturbed.
    pub fn remove(&self, name: &str) -> Option<Arc<Entry>> {
        self.change(|entries| {
            entries
                .iter()
                .position(|entry| &*entry.name == name)
                .map(|at| entries.remove(at))
        })
    }

    /// The strategy of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Entry>> {
        self.table
            .load()
            .all
            .iter()
            .find(|entry| &*entry.name == name)
            .cloned()
    }

    /// Every strategy, in the order they are asked in.
    pub fn list(&self) -> Arc<Vec<Arc<Entry>>> {
        self.table.load().all.clone()
    }

    /// The strategies that are asked, in order: all but those left out with
    /// [`Engine::set_strategy_enabled`](crate::Engine::set_strategy_enabled).
    pub fn active(&self) -> Arc<Vec<Arc<Entry>>> {
        self.table.load().active.clone()
    }

    /// The first strategy that applies, and what it proposes. A strategy that fails to decide, or
    /// declines after all, is passed over.
    pub async fn execute(&self, situation: &Situation) -> Option<Proposal> {
        for strategy in self
            .active()
            .iter()
            .filter(|entry| entry.is_interested(situation))
        {
            if let Ok(Some(decision)) = strategy.decide(situation).await
                && decision.action != Action::Decline
            {
                return Some(Proposal {
                    strategy: strategy.clone(),
                    decision,
                });
            }
        }
        None
    }

    /// The first strategy that applies.
    pub async fn select(&self, situation: &Situation) -> Option<Arc<Entry>> {
        self.execute(situation)
            .await
            .map(|proposal| proposal.strategy)
    }
}

fn sort(entries: &mut [Arc<Entry>]) {
    entries.sort_by(|a, b| {
        b.priority
            .cmp(&a.priority)
            .then_with(|| a.name.cmp(&b.name))
    });
}
