//! The set of strategies a configuration and its plugin folder ask for, and the engine that has them.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};

use super::look::Look;
use super::prepare::{Outcome, Prepared, Preparing};
use super::wanted::{Wanted, wanted};
use crate::config::cycle::find_cycle;
use crate::config::{self, Config, Diagnostic, chain};
use crate::engine::Engine;
use crate::event::EventKind;
use crate::strategy::Entry;
use crate::strategy::component::{
    ComponentStrategy, Digest, Route, Runtime, Stamp, StateStore, StrategyOptions,
};

/// Plugins read and compiled at the same time. A compilation itself uses every core.
const AT_ONCE: usize = 4;

/// Keeps the strategies of an engine as a configuration and its plugin folder ask for. Cloning shares
/// it.
///
/// It works in two steps, so that a bad configuration can be refused as a whole: [`plan`](Self::plan)
/// reads, compiles and configures what is new and says what is wrong, and changes nothing;
/// [`Plan::commit`] puts it in place in one step. [`refresh`](Self::refresh) is both for the
/// configuration there is, when the folder may have changed; [`watch`](Self::watch) does it by itself.
///
/// Strategies that were put into the engine by other means are left alone.
#[derive(Clone)]
pub struct StrategySet {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    runtime: Runtime,
    current: Arc<Mutex<Current>>,
}

impl fmt::Debug for StrategySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StrategySet").finish_non_exhaustive()
    }
}

/// What is in place.
#[derive(Debug, Default)]
pub(super) struct Current {
    pub(super) config: Arc<Config>,
    /// The configuration's file, which diagnostics name.
    file: PathBuf,
    pub(super) look: Look,
    /// What the plugins' files were known by when they were last read.
    pub(super) known: BTreeMap<String, (Stamp, Digest)>,
    /// By the name of the strategy, as the next two.
    pub(super) strategies: BTreeMap<String, Running>,
    pub(super) rejected: BTreeMap<String, Rejected>,
    problems: Vec<Problem>,
}

/// Where a component's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Stock,
    File(Digest),
}

/// A strategy that takes part.
#[derive(Debug, Clone)]
pub(super) struct Running {
    entry: Arc<Entry>,
    component: Arc<ComponentStrategy>,
    origin: Origin,
    source: String,
    options: StrategyOptions,
}

impl Running {
    pub(super) fn is(&self, origin: Origin, options: &StrategyOptions) -> bool {
        self.origin == origin && self.options == *options
    }
}

/// A content that was refused, so that it is not tried again.
#[derive(Debug)]
pub(super) struct Rejected {
    pub(super) options: StrategyOptions,
    pub(super) problem: Problem,
    /// Where nothing is wrong with it but what the others are: itself, and its source.
    pub(super) ready: Option<(Arc<ComponentStrategy>, String)>,
}

/// Something that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) field: String,
    /// The file at fault; `None` where it is the configuration.
    pub(super) source: Option<String>,
    pub(super) message: String,
    pub(super) origin: Option<Origin>,
    /// It may pass without a change to the file.
    pub(super) is_passing: bool,
}

impl Problem {
    pub(super) fn new(field: impl Into<String>, source: Option<String>, message: String) -> Self {
        Self {
            field: field.into(),
            source,
            message,
            origin: None,
            is_passing: false,
        }
    }

    pub(super) fn of(
        field: impl Into<String>,
        source: Option<String>,
        error: &(dyn Error + 'static),
    ) -> Self {
        Self::new(field, source, chain(error))
    }
}

impl StrategySet {
    /// A set for an engine, empty until something is planned.
    pub fn new(engine: Engine, runtime: Runtime) -> Self {
        Self {
            shared: Arc::new(Shared {
                engine,
                runtime,
                current: Arc::default(),
            }),
        }
    }

    /// Prepares the strategies this configuration and its folder ask for: reads, compiles and
    /// configures what is not running yet. Nothing changes until [`Plan::commit`]; until then, or until
    /// the plan is dropped, no other plan is made. `file` is what the diagnostics name.
    ///
    /// One plugin that cannot be used keeps no other out. Where a strategy of its name is running, that
    /// one goes on.
    pub async fn plan(&self, config: Arc<Config>, file: &Path) -> Plan {
        let current = self.shared.current.clone().lock_owned().await;
        let before = (current.config.plugins == config.plugins).then_some(&current.look);
        let look = Look::take(&config, before).await;
        self.plan_for(current, config, file.to_owned(), look, None)
            .await
    }

    /// Looks at the folder again, with the configuration there is, and puts in place what has changed.
    /// Files that are being written at this moment are refused; [`watch`](Self::watch) waits for them.
    pub async fn refresh(&self) -> Changes {
        let (config, file) = {
            let current = self.shared.current.lock().await;
            (current.config.clone(), current.file.clone())
        };
        self.plan(config, &file).await.commit()
    }

    /// Waits until the state that strategies keep is on the disk: what a program does before it ends.
    /// Says whether it is: not where the disk refuses it. Without any it is at once.
    pub async fn keep_state(&self) -> bool {
        let store = {
            let current = self.shared.current.lock().await;
            let mut options = current.strategies.values().map(|running| &running.options);
            options.find_map(|options| options.state.clone())
        };
        match store {
            None => true,
            Some((store, _)) => tokio::task::spawn_blocking(move || store.flush())
                .await
                .unwrap_or(false),
        }
    }

    /// What could not be used, as of now.
    pub async fn diagnostics(&self) -> Vec<Diagnostic> {
        let current = self.shared.current.lock().await;
        diagnostics(&current.file, &current.problems)
    }

    /// Plans for the folder as it is, leaving out what is not as it was found before.
    pub(super) async fn plan_settled(&self, settled: &Look) -> Plan {
        let current = self.shared.current.clone().lock_owned().await;
        let (config, file) = (current.config.clone(), current.file.clone());
        let look = Look::take(&config, Some(&current.look)).await;
        self.plan_for(current, config, file, look, Some(settled))
            .await
    }

    /// The configuration in place, what was found by the last look, and whether anything is wrong that
    /// may pass by itself.
    pub(super) async fn state(&self) -> (Arc<Config>, Look, bool) {
        let current = self.shared.current.lock().await;
        let is_waiting = current.problems.iter().any(|problem| problem.is_passing);
        (current.config.clone(), current.look.clone(), is_waiting)
    }

    /// Where the state of strategies is kept, if any is to be. What cannot be kept lasts as long as its
    /// strategy, and that is said.
    async fn state_store(
        &self,
        config: &Config,
        problems: &mut Vec<Problem>,
    ) -> Option<StateStore> {
        let folder = config.state.clone()?;
        let has_state = |entry: &config::Strategy| entry.enabled && entry.grants.state;
        if !config.strategies.iter().any(has_state) {
            return None;
        }
        let runtime = self.shared.runtime.clone();
        let opened = tokio::task::spawn_blocking(move || runtime.state_store(&folder)).await;
        match opened.ok()? {
            Ok(store) => Some(store),
            Err(error) => {
                problems.push(Problem {
                    is_passing: true,
                    ..Problem::of("state", None, &error)
                });
                None
            }
        }
    }

    async fn plan_for(
        &self,
        current: OwnedMutexGuard<Current>,
        config: Arc<Config>,
        file: PathBuf,
        look: Look,
        settled: Option<&Look>,
    ) -> Plan {
        let mut problems = look.problems.clone();
        let state = self.state_store(&config, &mut problems).await;
        let plugins = wanted(&config, &look, state.as_ref(), &mut problems);
        let preparing = Preparing {
            runtime: &self.shared.runtime,
            config: &config,
            current: &current,
            look: &look,
            settled,
        };
        let turns = Semaphore::new(AT_ONCE);
        let prepared: Vec<Prepared> = join_all(plugins.into_iter().map(|plugin| async {
            // The semaphore is never closed.
            let _turn = turns.acquire().await;
            preparing.prepare(plugin).await
        }))
        .await;
        let mut draft = Draft::new(&self.shared.engine, &current, problems);
        draft.declare_kept(&prepared);
        for plugin in prepared {
            draft.take(plugin);
        }
        let Draft {
            next,
            mut events,
            is_unfinished,
            ..
        } = draft;
        let next = Current {
            config,
            file,
            look,
            ..next
        };
        let kept = |name: &String| next.strategies.contains_key(name);
        events.extend(
            current
                .strategies
                .iter()
                .filter(|(name, _)| !kept(name))
                .map(|(_, gone)| EventKind::StrategyRemoved {
                    strategy: gone.entry.name().clone(),
                    source: gone.source.clone(),
                }),
        );
        let new: Vec<Problem> = next
            .problems
            .iter()
            .filter(|problem| !current.problems.contains(problem))
            .cloned()
            .collect();
        events.extend(new.iter().filter_map(|problem| {
            Some(EventKind::StrategyRejected {
                source: problem.source.clone()?,
                reason: problem.message.clone(),
            })
        }));
        Plan {
            set: self.clone(),
            current,
            next,
            changes: Changes {
                events,
                diagnostics: Vec::new(),
            },
            new,
            is_unfinished,
        }
    }
}

fn diagnostics(file: &Path, problems: &[Problem]) -> Vec<Diagnostic> {
    let diagnostic =
        |problem: &Problem| Diagnostic::error(file, &*problem.field, &*problem.message);
    problems.iter().map(diagnostic).collect()
}

/// A plan in the making: what is wanted is taken in order, each beside those before it.
struct Draft<'a> {
    engine: &'a Engine,
    current: &'a Current,
    next: Current,
    events: Vec<EventKind>,
    /// The declared routes of every strategy that has some, those that run first. They close no cycle.
    routes: Vec<(String, Vec<Route>)>,
    is_unfinished: bool,
}

impl<'a> Draft<'a> {
    fn new(engine: &'a Engine, current: &'a Current, problems: Vec<Problem>) -> Self {
        Self {
            engine,
            current,
            routes: Vec::new(),
            next: Current {
                problems,
                ..Current::default()
            },
            events: Vec::new(),
            is_unfinished: false,
        }
    }

    /// The routes of what runs and is still wanted: what is new must fit beside them.
    fn declare_kept(&mut self, prepared: &[Prepared]) {
        let wanted = prepared.iter().flat_map(|plugin| &plugin.uses);
        let running = wanted.filter_map(|(wanted, ..)| {
            let runs = self.current.strategies.get(&wanted.name)?;
            let routes = runs.component.routes();
            (!routes.is_empty()).then(|| (wanted.name.clone(), routes.to_vec()))
        });
        self.routes = running.collect();
    }

    fn take(&mut self, plugin: Prepared) {
        if let Some(known) = plugin.known {
            self.next.known.insert(plugin.plugin.clone(), known);
        }
        for (wanted, outcome, problem) in plugin.uses {
            if let Some(problem) = problem {
                self.reject(&wanted, problem, None);
            }
            match outcome {
                Outcome::Ready {
                    component,
                    origin,
                    source,
                } => self.put(&wanted, component, origin, source),
                Outcome::Keep => {
                    if let Some(runs) = self.current.strategies.get(&wanted.name) {
                        let (component, source) = (runs.component.clone(), runs.source.clone());
                        self.put(&wanted, component, runs.origin, source);
                    }
                }
                Outcome::Failed => self.keep(&wanted.name),
                Outcome::Revoked => {}
                Outcome::Unfinished => {
                    self.is_unfinished = true;
                    self.keep(&wanted.name);
                    let known = self.current.known.get(&plugin.plugin);
                    if let Some(known) = known {
                        self.next.known.insert(plugin.plugin.clone(), *known);
                    }
                }
            }
        }
    }

    /// What runs under a name goes on as it is.
    fn keep(&mut self, name: &str) {
        if let Some(runs) = self.current.strategies.get(name) {
            self.next.strategies.insert(name.to_owned(), runs.clone());
        }
    }

    fn reject(
        &mut self,
        wanted: &Wanted,
        problem: Problem,
        ready: Option<(Arc<ComponentStrategy>, String)>,
    ) {
        self.next.problems.push(problem.clone());
        let rejected = Rejected {
            options: wanted.options.clone(),
            problem,
            ready,
        };
        self.next.rejected.insert(wanted.name.clone(), rejected);
    }

    /// A component takes part under a name, unless that name is another's or its routes lead in a
    /// circle.
    fn put(
        &mut self,
        wanted: &Wanted,
        component: Arc<ComponentStrategy>,
        origin: Origin,
        source: String,
    ) {
        let runs = self.current.strategies.get(&wanted.name);
        let entry = match self.entry(wanted, &component, runs) {
            Ok(entry) => entry,
            Err(message) => {
                let field = format!("strategy {:?}", wanted.name);
                let problem = Problem {
                    origin: Some(origin),
                    ..Problem::new(field, Some(source.clone()), message)
                };
                self.reject(wanted, problem, Some((component, source)));
                return self.keep(&wanted.name);
            }
        };
        let is_new = runs.is_none_or(|runs| !Arc::ptr_eq(&runs.entry, &entry));
        if is_new {
            let strategy = entry.name().clone();
            let (version, source) = (entry.info().version.clone(), source.clone());
            self.events.push(if runs.is_some() {
                EventKind::StrategyReloaded {
                    strategy,
                    version,
                    source,
                }
            } else {
                EventKind::StrategyLoaded {
                    strategy,
                    version,
                    source,
                }
            });
        }
        let running = Running {
            entry,
            component,
            origin,
            source,
            options: wanted.options.clone(),
        };
        self.next.strategies.insert(wanted.name.clone(), running);
    }

    /// The entry of a component: the one that runs, if nothing about it has changed.
    fn entry(
        &mut self,
        wanted: &Wanted,
        component: &Arc<ComponentStrategy>,
        runs: Option<&Running>,
    ) -> Result<Arc<Entry>, String> {
        let name = &*wanted.name;
        let other = self.engine.strategies().get(name);
        let is_ours = |other: &Arc<Entry>| runs.is_some_and(|runs| Arc::ptr_eq(&runs.entry, other));
        if other.is_some_and(|other| !is_ours(&other)) {
            return Err(format!(
                "the program has a strategy named {name:?} of its own: give this one another name"
            ));
        }
        if runs.is_none_or(|runs| !Arc::ptr_eq(&runs.component, component)) {
            self.declare(name, component.routes())?;
        }
        let entry = Entry::component(component.clone()).map_err(|error| chain(&error))?;
        let priority = wanted.priority.unwrap_or(entry.priority());
        let entry = entry
            .named(name)
            .with_priority(priority)
            .with_on_fault(wanted.on_fault);
        match runs {
            Some(runs)
                if Arc::ptr_eq(&runs.component, component)
                    && runs.entry.priority() == priority
                    && runs.entry.on_fault() == wanted.on_fault =>
            {
                Ok(runs.entry.clone())
            }
            _ => Ok(Arc::new(entry)),
        }
    }

    /// Puts a strategy's routes in the place of those it had, unless that would close a cycle.
    fn declare(&mut self, name: &str, routes: &[Route]) -> Result<(), String> {
        let at = self.routes.iter().position(|(known, _)| known == name);
        let before = at.map(|at| self.routes.remove(at));
        if routes.is_empty() {
            return Ok(());
        }
        self.routes.push((name.to_owned(), routes.to_vec()));
        let all = self.routes.iter().flat_map(|(strategy, routes)| {
            let route = move |route: &'_ Route| {
                (
                    strategy.clone(),
                    route.source.clone(),
                    route.fallback.clone(),
                )
            };
            routes.iter().map(route)
        });
        let Some(cycle) = find_cycle(all) else {
            return Ok(());
        };
        self.routes.pop();
        self.routes.extend(before);
        Err(format!(
            "its fallback routes close a cycle: {cycle}: remove one of these routes; the strategy is left out"
        ))
    }
}

/// Strategies that are ready to be put in place. Dropping it changes nothing.
#[must_use = "nothing changes until it is committed"]
pub struct Plan {
    set: StrategySet,
    current: OwnedMutexGuard<Current>,
    next: Current,
    changes: Changes,
    new: Vec<Problem>,
    is_unfinished: bool,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("changes", &self.changes)
            .finish_non_exhaustive()
    }
}

/// What a plan has changed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Changes {
    /// Strategies loaded, reloaded, removed and rejected, as the engine's subscribers were told.
    pub events: Vec<EventKind>,
    /// What is wrong now and was not before.
    pub diagnostics: Vec<Diagnostic>,
}

impl Plan {
    /// Everything that cannot be used, new or not.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        diagnostics(&self.next.file, &self.next.problems)
    }

    /// A file is being written, or may be: there is more to come.
    pub(super) fn is_unfinished(&self) -> bool {
        self.is_unfinished
    }

    /// Puts everything in place in one step. A decision that is under way finishes on the strategy it
    /// began with; the next call meets the new ones.
    pub fn commit(mut self) -> Changes {
        let entries = |set: &Current| -> Vec<Arc<Entry>> {
            let entries = set.strategies.values();
            entries.map(|running| running.entry.clone()).collect()
        };
        let engine = &self.set.shared.engine;
        let manager = engine.strategies();
        let (old, new) = (entries(&self.current), entries(&self.next));
        let differs = |one: &[Arc<Entry>], other: &[Arc<Entry>]| {
            let other: BTreeSet<_> = other.iter().map(Arc::as_ptr).collect();
            let is_in = |entry: &&Arc<Entry>| !other.contains(&Arc::as_ptr(entry));
            one.iter().filter(is_in).cloned().collect::<Vec<_>>()
        };
        manager.exchange(&differs(&old, &new), differs(&new, &old));
        let mut changes = std::mem::take(&mut self.changes);
        changes.diagnostics = diagnostics(&self.next.file, &self.new);
        *self.current = self.next;
        for event in &changes.events {
            engine.announce(event.clone());
        }
        changes
    }
}
