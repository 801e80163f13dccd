//! The run itself: callers, servers and the engine between them, until the scenario is over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop::call::{
    AttemptKind, Call, CallError, Degraded, Ending, Level, Outcome, RepeatSafety, Trouble, Verdict,
};
use backstop::config::Completion;
use backstop::config::scenario::{Calls, Scenario};
use backstop::event::{Event, EventKind};
use backstop::health::HealthChecker;
use backstop::operation::OperationRules;
use backstop::random::{Random, seeded};
use backstop::registry::TargetKind;
use backstop::strategy::component::{Runtime, RuntimeOptions};
use backstop::{Engine, Kind, assemble_with};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::world::{Active, Chance, Got, Request, World};
use super::{Game, SimulateError, dawn};

/// A group, as the scenario finds it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: Arc<str>,
    /// Its targets, the first one first.
    pub(super) targets: Vec<Arc<str>>,
    /// Those of them that are asked while all is well.
    pub(super) top: Vec<Arc<str>>,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ended {
    /// Answered, at once if no strategy and no attempt is told of.
    Answered {
        by: Option<Arc<str>>,
        degraded: Option<Degraded>,
        saved: bool,
    },
    Failed {
        ending: Ending,
        kind: Kind,
    },
}

/// A call.
#[derive(Debug, Clone)]
pub(super) struct Played {
    pub(super) group: Arc<str>,
    pub(super) operation: Arc<str>,
    pub(super) began: Duration,
    pub(super) ended: Duration,
    pub(super) result: Ended,
    /// The strategies whose proposals were carried out, in order.
    pub(super) how: Vec<Arc<str>>,
}

/// Everything that happened.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) duration: Duration,
    pub(super) groups: Vec<Group>,
    pub(super) world: Arc<World>,
    /// In the order in which they ended.
    pub(super) calls: Vec<Played>,
    pub(super) events: Vec<(Duration, Arc<Event>)>,
    pub(super) got: BTreeMap<Arc<str>, Got>,
}

impl Record {
    pub(super) fn faults(&self) -> &[Active] {
        &self.world.faults
    }
}

/// Each part has a source of its own, so that one does not depend on how much another draws.
fn source(seed: u64, part: u64) -> Random {
    seeded(seeded(seed.wrapping_add(part))())
}

pub(super) async fn run(game: &Game<'_>) -> Result<Record, SimulateError> {
    let (scenario, config) = (game.scenario, game.config);
    let seed = game.seed.unwrap_or(scenario.seed);
    let wasm = wasm(game, source(seed, 1)())?;
    let start = Instant::now();
    let builder = Engine::builder()
        .random(source(seed, 2))
        .wall_clock(move || dawn() + start.elapsed());
    let assembled = assemble_with(builder, config, game.file, &wasm).await?;
    if assembled.diagnostics.iter().any(|found| found.is_error()) {
        return Err(SimulateError::Refused(assembled.diagnostics));
    }
    let (engine, operations) = (assembled.engine, assembled.operations);
    let registry = engine.registry();
    // Loading takes no simulated time, unless a plugin waits for the clock meanwhile.
    let loaded = start.elapsed();

    let world = World::new(scenario, registry, operations.clone(), source(seed, 3));
    let world = Arc::new(world);
    let heard = Arc::new(Mutex::new(Heard::default()));
    let listening = tokio::spawn(listen(engine.subscribe(), heard.clone()));
    let checks = HealthChecker::spawn(registry.clone(), world.clone(), source(seed, 4));
    let began = Instant::now();
    let callers = Callers {
        engine: engine.clone(),
        world: world.clone(),
        operations,
        completion: config.completion.clone(),
        began,
    };
    let groups = groups(&engine);
    let mut under_way = JoinSet::new();
    for planned in plan(scenario, &groups, &Chance(source(seed, 5))) {
        sleep_until(began + planned.at).await;
        under_way.spawn(callers.clone().call(planned));
    }
    sleep_until(began + scenario.duration).await;
    let mut calls = under_way.join_all().await;
    calls.sort_by_key(|call| (call.ended, call.began));
    // Whoever is ready runs first: what was said last is heard.
    sleep(Duration::from_millis(1)).await;
    listening.abort();
    drop(checks);
    let heard = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
    if heard.missed > 0 {
        return Err(SimulateError::Missed(heard.missed));
    }
    let when = |event: &Event| {
        let since = event.at.duration_since(dawn()).unwrap_or_default();
        since.saturating_sub(loaded)
    };
    let events = heard.events.into_iter();
    Ok(Record {
        duration: scenario.duration,
        groups,
        got: world.got(),
        world,
        calls,
        events: events.map(|event| (when(&event), event)).collect(),
    })
}

/// The runtime of the strategies, on the simulated clock.
fn wasm(game: &Game<'_>, seed: u64) -> Result<Runtime, SimulateError> {
    let options = || RuntimeOptions::default().simulated(seed, dawn());
    if let Some(folder) = &game.cache {
        match Runtime::new(options().with_cache(folder)) {
            Ok(runtime) => return Ok(runtime),
            Err(error) => tracing::warn!(%error, "compiled plugins are not kept"),
        }
    }
    Ok(Runtime::new(options())?)
}

fn groups(engine: &Engine) -> Vec<Group> {
    let registry = engine.registry();
    let mut groups: Vec<Group> = registry
        .groups()
        .into_iter()
        .map(|name| {
            let targets = registry.list_group(&name);
            let most = targets.iter().map(|target| target.spec.priority).max();
            let of = |top: bool| {
                let is_meant = move |priority| !top || Some(priority) == most;
                let meant = targets.iter().filter(|t| is_meant(t.spec.priority));
                meant.map(|target| target.name.clone()).collect()
            };
            Group {
                targets: of(false),
                top: of(true),
                name,
            }
        })
        .collect();
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    groups
}

/// A call that is to be made.
struct Planned {
    at: Duration,
    group: Arc<str>,
    operation: Arc<str>,
    repeat: Option<RepeatSafety>,
    arguments: String,
}

/// Every call of the scenario, in order: at random moments, so many a second on average.
fn plan(scenario: &Scenario, groups: &[Group], chance: &Chance) -> Vec<Planned> {
    let mut all = Vec::new();
    for calls in &scenario.calls {
        let called = groups.iter().filter(|group| match &calls.group {
            Some(only) => **only == *group.name,
            None => true,
        });
        for group in called {
            for at in moments(calls, scenario.duration, chance) {
                all.push(Planned {
                    at,
                    group: group.name.clone(),
                    operation: calls.operation.as_str().into(),
                    repeat: calls.repeat,
                    arguments: calls.arguments.to_string(),
                });
            }
        }
    }
    all.sort_by_key(|planned| planned.at);
    all
}

fn moments(calls: &Calls, end: Duration, chance: &Chance) -> Vec<Duration> {
    let until = calls.until.unwrap_or(end).min(end);
    let gap = Duration::from_secs_f64(1.0 / calls.per_second);
    // The first one somewhere in the first gap.
    let first = calls.from + gap.mul_f64(chance.share());
    let next = |at: &Duration| Some(*at + gap.mul_f64(0.5 + chance.share()));
    let moments = std::iter::successors(Some(first), next);
    // The timer knows milliseconds.
    let moments = moments.map(|at| Duration::from_millis(super::millis(&at)));
    moments.take_while(|at| *at < until).collect()
}

/// Those who call.
#[derive(Clone)]
struct Callers {
    engine: Engine,
    world: Arc<World>,
    operations: OperationRules,
    completion: Completion,
    began: Instant,
}

impl Callers {
    async fn call(self, planned: Planned) -> Played {
        let Planned {
            group,
            operation,
            repeat,
            arguments,
            ..
        } = planned;
        let mut call = Call::new(group.clone(), operation.clone()).caller("simulation");
        if let Some(safety) = repeat {
            call = call.repeat_safety(safety);
        }
        call = self
            .operations
            .apply(self.leveled(call, &group, &operation));
        let request = Request {
            operation: operation.clone(),
            arguments,
        };
        let began = self.began.elapsed();
        let called = self.engine.call(&*self.world, call, &request).await;
        let (result, how) = match called {
            Ok(outcome) => answered(outcome),
            Err(failed) => failed_with(&failed.into_error()),
        };
        Played {
            group,
            operation,
            began,
            ended: self.began.elapsed(),
            result,
            how,
        }
    }

    /// Models are called as the front for models calls them.
    fn leveled(&self, call: Call, group: &str, operation: &str) -> Call {
        let targets = self.engine.registry().list_group(group);
        if targets
            .iter()
            .any(|target| target.spec.kind == TargetKind::Service)
        {
            return call.level(Level::Tool);
        }
        let rule = self.operations.of(operation);
        let deadline = rule.and_then(|rule| rule.deadline);
        let silence = rule.and_then(|rule| rule.attempt_timeout);
        call.level(Level::Model)
            .deadline(deadline.unwrap_or(self.completion.deadline))
            .attempt_timeout(silence.unwrap_or(self.completion.answer))
    }
}

fn answered<A>(outcome: Outcome<A>) -> (Ended, Vec<Arc<str>>) {
    let trouble = outcome.trouble.as_deref();
    let how = trouble.map(how).unwrap_or_default();
    let result = Ended::Answered {
        saved: trouble.is_some(),
        by: outcome.served_by,
        degraded: outcome.degraded,
    };
    (result, how)
}

fn failed_with(error: &CallError) -> (Ended, Vec<Arc<str>>) {
    let result = Ended::Failed {
        ending: error.ending,
        kind: error.cause.kind.clone(),
    };
    (result, how(&error.trouble))
}

/// What was done about it.
fn how(trouble: &Trouble) -> Vec<Arc<str>> {
    let taken = trouble.steps.iter();
    let taken = taken.filter(|step| matches!(step.verdict, Verdict::Taken { .. }));
    let mut how: Vec<Arc<str>> = taken.map(|step| step.strategy.clone()).collect();
    let mut attempts = trouble.attempts.iter();
    if how.is_empty() && attempts.any(|attempt| attempt.attempt == AttemptKind::Hedge) {
        how.push("hedge".into());
    }
    how
}

#[derive(Debug, Default)]
struct Heard {
    events: Vec<Arc<Event>>,
    missed: u64,
}

async fn listen(mut events: Receiver<Arc<Event>>, heard: Arc<Mutex<Heard>>) {
    loop {
        let event = events.recv().await;
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            // What becomes of calls their callers tell.
            Ok(event) => match &event.what {
                EventKind::CallSaved { .. } | EventKind::CallFailed { .. } => {}
                _ => heard.events.push(event),
            },
            Err(RecvError::Lagged(missed)) => heard.missed += missed,
            Err(RecvError::Closed) => return,
        }
    }
}
