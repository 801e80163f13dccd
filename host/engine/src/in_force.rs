//! What a call goes by, swapped as a whole.
//!
//! A call takes one [`InForce`] when it begins and keeps it to its end: a change while it runs reaches
//! the next call, and no call sees half of one. Taking it is one atomic count, without a lock and
//! without the heap.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use tokio::time::Instant;

use crate::budget::{BudgetPolicy, RetryBudget};
use crate::cache::{CacheLimits, LastKnownGood};
use crate::detect::{Detector, Pattern, Patterns};
use crate::engine::{BuildError, Engine, Settings};
use crate::registry::RegistryConfig;
use crate::retry::{RetryManager, RetryPolicies};
use crate::strategy::Strategies;

/// Every policy of the host that may be changed while it runs, to be changed as a whole with
/// [`Engine::reconfigure`].
///
/// ```
/// use std::time::Duration;
///
/// use backstop::detect::Pattern;
/// use backstop::{Engine, Policies};
///
/// # fn main() -> Result<(), backstop::BuildError> {
/// let engine = Engine::builder().build()?;
/// let mut policies = engine.policies();
/// policies.settings.deadlines.call = Duration::from_secs(10);
/// policies.patterns = vec![Pattern::message("quota", "quota .* is spent", "TeamQuota".into())];
/// engine.reconfigure(policies)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Policies {
    /// Deadlines and caps.
    pub settings: Settings,
    /// The operator's patterns, in the order they are tried: before those that code has
    /// [added](Detector::add_pattern), which a change here leaves as they are.
    pub patterns: Vec<Pattern>,
    /// How retries are spaced, by kind. What was set through [`Engine::retry`] is replaced.
    pub retry: RetryPolicies,
    /// How many retries and fallbacks a group may make. Where it stays as it is, what is spent stays
    /// spent; another policy begins anew.
    pub budget: BudgetPolicy,
    /// How many last known good answers are kept; `None`: none. What is kept stays, as far as the new
    /// limits hold it.
    pub cache: Option<CacheLimits>,
    /// Circuits, health checks and balance. They belong to the targets, not to calls: what is under way
    /// meets them as well.
    pub registry: RegistryConfig,
}

/// Policies that were found good, ready to be put in force. Dropping it changes nothing.
#[must_use = "nothing changes until it is committed"]
pub struct PolicyPlan {
    engine: Engine,
    settings: Settings,
    patterns: Patterns,
    retry: RetryPolicies,
    budgets: Budgets,
    cache: Option<CacheLimits>,
    registry: RegistryConfig,
}

impl PolicyPlan {
    /// Checks policies. Nothing changes until [`commit`](Self::commit).
    pub(crate) fn new(engine: &Engine, policies: Policies) -> Result<Self, BuildError> {
        policies.settings.validate()?;
        policies.registry.validate()?;
        Ok(Self {
            engine: engine.clone(),
            settings: policies.settings,
            patterns: Patterns::new(policies.patterns)?,
            retry: policies.retry,
            budgets: Budgets::new(policies.budget)?,
            cache: policies.cache,
            registry: policies.registry,
        })
    }

    /// Puts them in force: a call that begins from now on goes by them, one that is under way by those
    /// it began with.
    pub fn commit(self) {
        self.commit_with(|_| {});
    }

    /// The same, together with another change.
    pub(crate) fn commit_with<R>(self, change: impl FnOnce(&mut InForce) -> R) -> R {
        let Self {
            engine,
            settings,
            patterns,
            retry,
            budgets,
            cache,
            registry,
        } = self;
        // It was found good when it was planned.
        let _ = engine.registry().configure(registry);
        engine.shared.current.change(|now| {
            now.settings = settings;
            now.detector = now.detector.with_operators(patterns);
            now.retry = RetryManager::new(retry);
            if now.budgets.policy() != budgets.policy() {
                now.budgets = Arc::new(budgets);
            }
            now.cache = cache.map(|limits| match &now.cache {
                Some(there) if there.limits() == limits => there.clone(),
                Some(there) => Arc::new(there.within(limits)),
                None => Arc::new(LastKnownGood::new(limits)),
            });
            change(now)
        })
    }
}

impl fmt::Debug for PolicyPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyPlan").finish_non_exhaustive()
    }
}

/// Everything a call goes by. Aligned, as every call reads it, and writes the count of references beside it.
#[repr(align(128))]
#[derive(Debug, Clone, Default)]
pub(crate) struct InForce {
    pub(crate) settings: Settings,
    pub(crate) detector: Detector,
    pub(crate) retry: RetryManager,
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) cache: Option<Arc<LastKnownGood>>,
    pub(crate) strategies: Strategies,
}

/// What is in force now.
#[derive(Debug, Default)]
pub(crate) struct Current {
    now: ArcSwap<InForce>,
    /// Held by writers only.
    writing: Mutex<()>,
}

impl Current {
    pub(crate) fn new(now: InForce) -> Self {
        Self {
            now: ArcSwap::from_pointee(now),
            writing: Mutex::new(()),
        }
    }

    /// For a look.
    pub(crate) fn now(&self) -> Guard<Arc<InForce>> {
        self.now.load()
    }

    /// For a call, to be kept.
    pub(crate) fn keep(&self) -> Arc<InForce> {
        self.now.load_full()
    }

    /// Changes it in one step.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut InForce) -> R) -> R {
        let _guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = InForce::clone(&self.now.load());
        let result = change(&mut next);
        self.now.store(Arc::new(next));
        result
    }
}

/// One budget per group. Groups come and go with the configuration, so the table is small and read far
/// more often than written.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    /// What groups without targets share, and what the budget of a new group is made after.
    nowhere: Arc<RetryBudget>,
    table: ArcSwap<Table>,
    writing: Mutex<()>,
}

/// The hash is a fast one: every call looks its group up, and only groups with targets come in.
type Table = HashMap<Arc<str>, Arc<RetryBudget>, foldhash::fast::RandomState>;

impl Budgets {
    pub(crate) fn new(policy: BudgetPolicy) -> Result<Self, BuildError> {
        Ok(Self {
            nowhere: Arc::new(RetryBudget::new(policy, Instant::now())?),
            ..Self::default()
        })
    }

    pub(crate) fn policy(&self) -> BudgetPolicy {
        self.nowhere.policy()
    }

    /// Whether answers add to what may be spent.
    pub(crate) fn counts_answers(&self) -> bool {
        self.nowhere.counts_answers()
    }

    /// The budget of a group; made when the group is first called. A group without targets gets no
    /// budget of its own, since names may come from outside, and yet is held to one: its calls may fall
    /// back to another group's operation.
    pub(crate) fn of(
        &self,
        group: &Arc<str>,
        is_unknown: impl FnOnce() -> bool,
    ) -> Arc<RetryBudget> {
        self.with(group, is_unknown, Arc::clone)
    }

    /// Looks at the budget of a group without a count of references, which all calls would share.
    pub(crate) fn with<R>(
        &self,
        group: &Arc<str>,
        is_unknown: impl FnOnce() -> bool,
        look: impl FnOnce(&Arc<RetryBudget>) -> R,
    ) -> R {
        if let Some(budget) = self.table.load().get(group) {
            return look(budget);
        }
        if is_unknown() {
            return look(&self.nowhere);
        }
        look(&self.make(group))
    }

    fn make(&self, group: &Arc<str>) -> Arc<RetryBudget> {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::strategy::{Decision, Entry, Situation, Strategy, StrategyInfo};

    struct Named(String);

    impl Strategy for Named {
        fn info(&self) -> StrategyInfo {
            StrategyInfo::new(self.0.as_str(), "test")
        }
        fn condition(&self, _: &Situation) -> bool {
            false
        }
        fn action(&self, _: &Situation) -> Decision {
            crate::strategy::Action::Decline.into()
        }
    }

    #[test]
    fn nobody_sees_policies_of_one_version_and_strategies_of_another() {
        let engine = Engine::builder().build().unwrap();
        let version = |number: u32| {
            let mut policies = engine.policies();
            policies.settings.caps.max_attempts = number;
            let entry = Entry::native(Named(format!("v{number}"))).unwrap();
            let plan = engine.plan(policies).unwrap();
            plan.commit_with(|now| {
                let out = Vec::clone(&now.strategies.active);
                now.strategies.exchange(&out, vec![Arc::new(entry)]);
            });
        };
        version(1);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let look = || {
                let mut seen = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let now = engine.shared.current.keep();
                    let number = now.settings.caps.max_attempts;
                    let names: Vec<_> = now
                        .strategies
                        .active
                        .iter()
                        .map(|e| e.name().clone())
                        .collect();
                    assert_eq!(names, [format!("v{number}").into()]);
                    seen = seen.max(number);
                }
                seen
            };
            let readers = [scope.spawn(look), scope.spawn(look)];
            for number in 2..2000 {
                version(number);
            }
            is_over.store(true, Ordering::Relaxed);
            assert!(readers.into_iter().any(|reader| reader.join().unwrap() > 1));
        });
    }
}
