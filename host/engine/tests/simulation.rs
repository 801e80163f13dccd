//! Random faults, random strategies, hostile ones among them, and random settings against the real
//! engine, in simulated time. What must hold whatever happens is checked of every call.
//!
//! `BACKSTOP_SIM_CALLS` sets how many calls are made (default 100 000); `BACKSTOP_SIM_SEED` runs one
//! world only. A failure prints the command that repeats it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub
)]

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop::budget::BudgetPolicy;
use backstop::call::{Attempt, AttemptKind, CallId, Degraded, Ending, Failed, RepeatSafety};
use backstop::circuit::CircuitConfig;
use backstop::detect::Detector;
use backstop::registry::{BalanceConfig, RegistryConfig, TargetSpec};
use backstop::strategy::{
    Action, AnswerData, Decision, Entry, Situation, Strategy, StrategyInfo, Surroundings,
};
use backstop::{
    CacheLimits, Call, CallError, Caps, Deadlines, Engine, Exchange, Failure, Kind, Outcome,
    Retained, Settings,
};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

const CALLS_PER_WORLD: usize = 50;
const OPERATIONS: [&str; 3] = ["read", "write", "other"];

/// A source of chance of a world's own.
#[derive(Clone)]
struct Chance(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(backstop::random::seeded(seed))
    }
    fn below(&self, bound: u64) -> u64 {
        (self.0)() % bound
    }
    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
    fn millis(&self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }
}

/// One request, as it left the engine.
#[derive(Debug, Clone)]
struct Sent {
    target: String,
    operation: String,
    arguments: String,
    kind: AttemptKind,
    at: Instant,
    /// It may have been carried out, and no answer says so.
    ambiguous: bool,
}

/// Targets that fail at random.
struct World {
    chance: Chance,
    /// Of a hundred attempts, so many fail.
    failing: u64,
    sent: Mutex<HashMap<CallId, Vec<Sent>>>,
}

impl World {
    fn failure(&self) -> Option<Failure> {
        let kinds = Kind::WELL_KNOWN;
        let kind = kinds[self.chance.below(kinds.len() as u64) as usize].clone();
        let mut failure = Failure::new(kind, "simulated");
        if self.chance.one_in(4) {
            failure.retry_after = Some(self.chance.millis(20_000));
        }
        if self.chance.one_in(4) {
            failure.ambiguous = !failure.ambiguous;
        }
        (self.chance.below(100) < self.failing).then_some(failure)
    }
}

/// Notes what an attempt leaves open: everything, where it was given up before it ended.
struct Unanswered<'a> {
    world: &'a World,
    attempt: &'a Attempt,
    /// Whether the answer leaves open that the operation was carried out.
    answered: Option<bool>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let mut sent = self.world.sent.lock().unwrap();
        if let Some(last) = sent
            .get_mut(&self.attempt.call)
            .and_then(|sent| sent.last_mut())
        {
            last.ambiguous = self.answered.unwrap_or(true);
        }
    }
}

type Request = (String, String);

impl Exchange for World {
    type Request = Request;
    type Answer = String;
    type Error = Failure;

    async fn send(&self, attempt: &Attempt, request: &Request) -> Result<String, Failure> {
        let failure = self.failure();
        let silent = failure.is_some() && self.chance.one_in(5);
        let mut unanswered = Unanswered {
            world: self,
            attempt,
            answered: None,
        };
        self.sent
            .lock()
            .unwrap()
            .entry(attempt.call)
            .or_default()
            .push(Sent {
                target: attempt.target.name.to_string(),
                operation: request.0.clone(),
                arguments: request.1.clone(),
                kind: attempt.kind,
                at: Instant::now(),
                ambiguous: false,
            });
        if silent {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(self.chance.millis(300)).await;
        let doubtful = |f: &Failure| f.ambiguous || f.kind == Kind::TOOL_ERROR;
        unanswered.answered = Some(failure.as_ref().is_some_and(doubtful));
        failure.map_or_else(|| Ok("good".to_owned()), Err)
    }

    fn classify(&self, outcome: Result<&String, &Failure>, _: &Detector) -> Option<Failure> {
        outcome.err().cloned()
    }

    fn arguments(&self, request: &Request) -> Option<Bytes> {
        Some(request.1.clone().into())
    }

    fn repeat_safety(&self, operation: &str) -> RepeatSafety {
        if operation == "read" {
            RepeatSafety::ReadOnly
        } else {
            RepeatSafety::Unsafe
        }
    }

    fn redirect(
        &self,
        request: &Request,
        operation: &str,
        arguments: Option<&str>,
    ) -> Result<Request, String> {
        let arguments = arguments.map_or_else(|| request.1.clone(), str::to_owned);
        Ok((operation.to_owned(), arguments))
    }

    fn compose(&self, _: &Request, _: &[u8], _: &Degraded) -> Result<String, String> {
        if self.chance.one_in(3) {
            Err("not now".into())
        } else {
            Ok("data".into())
        }
    }

    fn retain(&self, _: &Request, answer: &String) -> Option<Retained> {
        let shared = self.chance.one_in(2);
        Some(Retained {
            body: answer.clone().into(),
            shared,
            ttl: None,
        })
    }
}

/// A strategy without sense: any action, any delay, any target.
struct Senseless {
    name: String,
    priority: i32,
    chance: Chance,
}

impl Strategy for Senseless {
    fn info(&self) -> StrategyInfo {
        StrategyInfo::new(self.name.clone(), "test").with_priority(self.priority)
    }

    fn condition(&self, _: &Situation) -> bool {
        !self.chance.one_in(4)
    }

    fn action(&self, situation: &Situation) -> Decision {
        let chance = &self.chance;
        let around: &Arc<dyn Surroundings> = &situation.surroundings;
        let any_target = || match chance.below(4) {
            0 => None,
            1 => Some("nowhere".to_owned()),
            2 => situation.target.as_deref().map(str::to_owned),
            _ => {
                let targets = around.targets();
                let at = chance.below(targets.len().max(1) as u64) as usize;
                targets.get(at).map(|target| target.name.to_string())
            }
        };
        let action = match chance.below(10) {
            0..=2 => Action::Retry {
                delay: [
                    None,
                    Some(Duration::ZERO),
                    Some(chance.millis(5000)),
                    Some(Duration::MAX),
                ][chance.below(4) as usize],
            },
            3..=5 => Action::SwitchTarget {
                target: any_target(),
                target_kind: None,
            },
            6 => Action::CallOperation {
                operation: OPERATIONS[chance.below(3) as usize].into(),
                arguments: chance.one_in(2).then(|| r#"{"q":2}"#.to_owned()),
                target: any_target(),
            },
            7 => Action::Answer(if chance.one_in(2) {
                AnswerData::LastKnownGood
            } else {
                AnswerData::Static("[]".into())
            }),
            8 if chance.one_in(4) => Action::Fail { message: None },
            8 => Action::Custom {
                name: "x.y".into(),
                payload: "{}".into(),
            },
            _ => Action::Decline,
        };
        assert!(!chance.one_in(50), "a bug in a strategy");
        action.into()
    }
}

struct Limits {
    caps: Caps,
    deadline: Duration,
    reserve: u32,
}

fn engine(chance: &Chance, limits: &Limits) -> Engine {
    let circuit = CircuitConfig {
        consecutive_failures: 1 + chance.below(8) as u32,
        open_base: Duration::from_millis(1 + chance.below(10_000)),
        half_open_probes: 1 + chance.below(3) as u32,
        ..CircuitConfig::default()
    };
    let balance = BalanceConfig {
        slow_start: chance.millis(10_000),
        ..BalanceConfig::default()
    };
    let engine = Engine::builder()
        .random(backstop::random::seeded(chance.below(u64::MAX)))
        .registry(RegistryConfig {
            circuit,
            balance,
            ..RegistryConfig::default()
        })
        .budget(BudgetPolicy::Ratio {
            ttl: Duration::from_secs(10),
            reserve_per_second: limits.reserve,
            ratio: 0.2,
        })
        .settings(Settings {
            deadlines: Deadlines {
                call: limits.deadline,
                attempt: Duration::from_millis(1 + chance.below(3000)),
                ..Deadlines::default()
            },
            caps: limits.caps,
        })
        .cache(CacheLimits::default())
        .build()
        .unwrap();
    for at in 0..1 + chance.below(5) {
        let spec = TargetSpec::service(format!("t{at}"), "g")
            .priority(chance.below(3) as i32)
            .weight(NonZeroU32::new(1 + chance.below(5) as u32).unwrap());
        engine.registry().register(spec).unwrap();
    }
    for at in 0..chance.below(5) {
        let priority = chance.below(100) as i32;
        let chance = Chance::new(chance.below(u64::MAX));
        let strategy = Senseless {
            name: format!("s{at}"),
            priority,
            chance,
        };
        engine
            .strategies()
            .add(Entry::native(strategy).unwrap())
            .unwrap();
    }
    engine
}

/// Runs one world and says what does not hold.
async fn run(seed: u64) -> Result<(), String> {
    let chance = Chance::new(seed);
    let limits = Limits {
        caps: Caps {
            max_attempts: 1 + chance.below(12) as u32,
            max_fallbacks: chance.below(6) as u32,
        },
        deadline: Duration::from_millis(1 + chance.below(20_000)),
        reserve: chance.below(5) as u32,
    };
    let engine = engine(&chance, &limits);
    let world = World {
        chance: chance.clone(),
        failing: chance.below(101),
        sent: Mutex::default(),
    };
    let began = Instant::now();
    for batch in 0..CALLS_PER_WORLD / 5 {
        let calls = (0..5).map(|_| {
            let operation = OPERATIONS[chance.below(3) as usize];
            let arguments = [r#"{"q":1}"#, r#"{"q":2}"#][chance.below(2) as usize];
            let request = (operation.to_owned(), arguments.to_owned());
            let (engine, world, limits) = (&engine, &world, &limits);
            async move {
                let began = Instant::now();
                let call =
                    Call::new("g", operation).caller(if batch % 2 == 0 { "alice" } else { "bob" });
                let result = engine.call(world, call, &request).await;
                let id = match &result {
                    Ok(outcome) => outcome.id,
                    Err(failed) => failed.error.id,
                };
                let sent = world
                    .sent
                    .lock()
                    .unwrap()
                    .get(&id)
                    .cloned()
                    .unwrap_or_default();
                check(&result, &sent, began.elapsed(), limits)
                    .map_err(|broken| format!("{broken}; sent: {sent:#?}"))
            }
        });
        for checked in join_all(calls).await {
            checked?;
        }
        tokio::time::sleep(chance.millis(2000)).await;
    }
    within_budget(&world, &limits, began)
}

/// What must hold of every call.
fn check(
    result: &Result<Outcome<String>, Failed<String, Failure>>,
    sent: &[Sent],
    took: Duration,
    limits: &Limits,
) -> Result<(), String> {
    let holds = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    // Timers have the resolution of a millisecond.
    holds(
        took <= limits.deadline + Duration::from_millis(1),
        "a call passed its deadline",
    )?;
    holds(
        sent.len() <= limits.caps.max_attempts as usize,
        "more attempts than the cap",
    )?;
    let fallbacks = sent
        .iter()
        .filter(|sent| sent.kind == AttemptKind::Fallback)
        .count();
    holds(
        fallbacks <= limits.caps.max_fallbacks as usize,
        "more fallbacks than the cap",
    )?;
    holds(
        sent.first()
            .is_none_or(|sent| sent.kind != AttemptKind::Fallback)
            || fallbacks > 0,
        "the first attempt is a fallback that nobody counted",
    )?;

    let doubtful = sent
        .iter()
        .position(|sent| sent.ambiguous && sent.operation != "read");
    holds(
        doubtful.is_none_or(|at| at + 1 == sent.len()),
        "something was sent after an unsafe operation may have been carried out",
    )?;
    let mut seen = HashSet::new();
    for sent in sent {
        let new = seen.insert((&sent.target, &sent.operation, &sent.arguments));
        holds(
            new || sent.kind == AttemptKind::Retry,
            "a fallback path asked the same thing twice",
        )?;
    }
    match result {
        Ok(outcome) => {
            let trouble = outcome.trouble.as_ref();
            let failed = trouble.map_or(0, |trouble| trouble.attempts.len());
            let answered = usize::from(outcome.served_by.is_some());
            holds(
                failed + answered == sent.len(),
                "an attempt is missing in the outcome",
            )?;
            holds(
                outcome.served_by.is_some() != (outcome.answer == "data"),
                "data passed off as an answer",
            )?;
            holds(
                outcome.served_by.is_some() || outcome.degraded.is_some(),
                "data without a label",
            )
        }
        Err(Failed { error, .. }) => check_error(error, sent, doubtful.is_some()),
    }
}

fn check_error(error: &CallError, sent: &[Sent], doubtful: bool) -> Result<(), String> {
    let attempts = &error.trouble.attempts;
    if attempts.len() != sent.len() {
        return Err("an attempt is missing in the error".into());
    }
    let first = attempts.first();
    if first
        .is_some_and(|first| error.cause != first.failure && error.cause.kind != Kind::OVERLOADED)
    {
        return Err(format!("the first cause is lost: {}", error.cause));
    }
    if error.ending == Ending::OutcomeUnknown && !doubtful {
        return Err("an outcome is called unknown that is known".into());
    }
    Ok(())
}

/// Extra attempts, over any stretch of time, stay within the share of the calls and the reserve.
fn within_budget(world: &World, limits: &Limits, began: Instant) -> Result<(), String> {
    let sent = world.sent.lock().unwrap();
    let extra = sent
        .values()
        .flatten()
        .filter(|sent| sent.kind != AttemptKind::Original)
        .count();
    let last = sent
        .values()
        .flatten()
        .map(|sent| sent.at)
        .max()
        .unwrap_or(began);
    let windows = last.duration_since(began).as_secs() / 10 + 2;
    let reserve = u64::from(limits.reserve) * 10 * windows;
    let allowed = CALLS_PER_WORLD as u64 / 5 + reserve;
    if extra as u64 > allowed {
        return Err(format!(
            "{extra} extra attempts where the budget allows {allowed}"
        ));
    }
    Ok(())
}

fn simulate(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    if let Err(broken) = runtime.block_on(run(seed)) {
        panic!(
            "{broken}\nto repeat: BACKSTOP_SIM_SEED={seed} cargo test --workspace --all-features --test simulation"
        );
    }
}

#[test]
fn whatever_fails_and_whatever_strategies_propose_the_rules_hold() {
    // A strategy's panic is part of the simulation, and would fill the log.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info
            .payload_as_str()
            .is_some_and(|text| text.contains("a bug in a strategy"))
        {
            hook(info);
        }
    }));
    let read = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    if let Some(seed) = read("BACKSTOP_SIM_SEED") {
        return simulate(seed);
    }
    let calls = read("BACKSTOP_SIM_CALLS").unwrap_or(100_000);
    for seed in 0..calls.div_ceil(CALLS_PER_WORLD as u64) {
        simulate(seed);
    }
}
