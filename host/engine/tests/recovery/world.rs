//! Servers that fail by a plan, callers that ask them, and the real registry and health checker between
//! them, all in simulated time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop::circuit::CircuitState;
use backstop::health::{HealthChecker, Prober};
use backstop::random::{Random, seeded};
use backstop::registry::{
    Permit, PickRequest, Registry, RegistryConfig, Target, TargetChange, TargetSpec,
};
use backstop::{Failure, Kind};
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

/// How a server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Well,
    /// Refuses everything, probes as well.
    Down,
    /// Takes everything and answers nothing.
    Hangs,
    /// Answers well after so many milliseconds.
    Slow(u64),
    /// Of a hundred calls so many fail; probes pass.
    Errors(u64),
    /// Probes fail, calls do not.
    OnlyProbesFail,
    /// Answers 429 to everything.
    Throttles,
    /// Callers give up before the answer.
    CallersCancel,
    /// Callers never come back: nobody ever says what became of their calls.
    CallersVanish,
}

/// How a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Well,
    Ill,
    /// Failed, and it says nothing about health.
    NotIll,
    Cancelled,
    Never,
}

/// A source of chance.
#[derive(Clone)]
pub struct Chance(pub Random);

impl Chance {
    pub fn below(&self, bound: u64) -> u64 {
        (self.0)() % bound
    }
    pub fn from(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }
    pub fn millis(&self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.from(low, high))
    }
}

/// Everything a server is.
#[derive(Default)]
struct Servers(Mutex<BTreeMap<String, Condition>>);

impl Servers {
    fn condition(&self, name: &str) -> Condition {
        let conditions = self.0.lock().unwrap();
        conditions.get(name).copied().unwrap_or(Condition::Well)
    }
}

impl Prober for Servers {
    fn probe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            match self.condition(&target.name) {
                Condition::Down | Condition::OnlyProbesFail => {
                    Err(Failure::new(Kind::CONNECTION_ERROR, "refused"))
                }
                Condition::Hangs => std::future::pending().await,
                Condition::Slow(millis) => {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    Ok(())
                }
                _ => Ok(()),
            }
        })
    }
}

struct UnderWay {
    began: Instant,
    ends: Option<Instant>,
    end: End,
    permit: Permit,
    tried: Vec<Arc<str>>,
    /// It was let through by a circuit that is not closed.
    is_probe: bool,
}

pub struct World {
    pub registry: Arc<Registry>,
    pub chance: Chance,
    /// How long a call may be silent.
    pub attempt_timeout: Duration,
    /// The time from one call to the next, from and to, in milliseconds.
    pub gap: (u64, u64),
    pub lease_timeout: Duration,
    /// The most half-open calls under way at one target at a time.
    pub most_probes: usize,
    /// Calls answered well, by target.
    pub served: BTreeMap<String, u32>,
    /// Calls that were sent to a target, by target.
    pub sent: BTreeMap<String, u32>,
    /// Calls that nobody answered, although one after the other was asked.
    pub lost: u32,
    plan: Vec<(Instant, String, Condition)>,
    next_call: Instant,
    servers: Arc<Servers>,
    under_way: Vec<UnderWay>,
    changes: Arc<Mutex<Vec<(String, TargetChange)>>>,
    _checker: HealthChecker,
}

impl World {
    pub fn new(seed: u64, config: RegistryConfig, specs: Vec<TargetSpec>) -> Self {
        let changes = Arc::new(Mutex::new(Vec::new()));
        let seen = changes.clone();
        let observer = move |target: &Target, change: &TargetChange| {
            let mut seen = seen.lock().unwrap();
            seen.push((target.name.to_string(), change.clone()));
        };
        let lease_timeout = config.circuit.lease_timeout;
        let registry = Registry::builder()
            .config(config)
            .observer(Arc::new(observer))
            .random(seeded(seed ^ 1))
            .build()
            .unwrap();
        registry.replace_all(specs).unwrap();
        changes.lock().unwrap().clear();
        let registry = Arc::new(registry);
        let servers = Arc::new(Servers::default());
        let checker = HealthChecker::spawn(registry.clone(), servers.clone(), seeded(seed ^ 2));
        Self {
            registry,
            chance: Chance(seeded(seed ^ 3)),
            attempt_timeout: Duration::from_secs(2),
            gap: (500, 500),
            lease_timeout,
            most_probes: 0,
            served: BTreeMap::new(),
            sent: BTreeMap::new(),
            lost: 0,
            plan: Vec::new(),
            next_call: Instant::now(),
            servers,
            under_way: Vec::new(),
            changes,
            _checker: checker,
        }
    }

    /// Changes how a server behaves, from now on.
    pub fn set(&self, name: &str, condition: Condition) {
        let mut conditions = self.servers.0.lock().unwrap();
        conditions.insert(name.to_owned(), condition);
    }

    /// Plans such a change for later.
    pub fn plan(&mut self, at: Instant, name: &str, condition: Condition) {
        self.plan.push((at, name.to_owned(), condition));
        self.plan.sort_by_key(|(at, ..)| *at);
    }

    /// What has changed about a target since this was last asked, in words.
    pub fn changes_of(&self, name: &str) -> Vec<String> {
        let mut changes = self.changes.lock().unwrap();
        let (of, others) = changes.drain(..).partition(|(target, _)| target == name);
        *changes = others;
        let of: Vec<(String, TargetChange)> = of;
        of.iter().map(|(_, change)| in_words(change)).collect()
    }

    /// Whether live traffic or health checks have ever found something wrong with a target.
    pub fn was_ejected(&self, name: &str) -> bool {
        self.changes.lock().unwrap().iter().any(|(target, change)| {
            let against = matches!(
                change,
                TargetChange::CircuitOpened { .. } | TargetChange::Down
            );
            against && target == name
        })
    }

    /// Lets callers call for so long.
    pub async fn run(&mut self, time: Duration) {
        self.run_until(Instant::now() + time).await;
    }

    pub async fn run_until(&mut self, end: Instant) {
        loop {
            let ends = self.under_way.iter().filter_map(|call| call.ends);
            let planned = self.plan.first().map(|(at, ..)| *at);
            let next = ends.chain(planned).min();
            let next = next.map_or(self.next_call, |next| next.min(self.next_call));
            if next > end {
                sleep_until(end).await;
                return;
            }
            sleep_until(next).await;
            let now = Instant::now();
            while self.plan.first().is_some_and(|(at, ..)| *at <= now) {
                let (_, name, condition) = self.plan.remove(0);
                self.set(&name, condition);
            }
            self.settle(now);
            if self.next_call <= now {
                self.send(Vec::new(), now);
                self.next_call = now + self.chance.millis(self.gap.0, self.gap.1);
            }
        }
    }

    /// Ends the calls whose time has come; one that failed asks another target.
    fn settle(&mut self, now: Instant) {
        let due = |call: &UnderWay| call.ends.is_some_and(|ends| ends <= now);
        while let Some(at) = self.under_way.iter().position(due) {
            let call = self.under_way.swap_remove(at);
            let target = call.permit.target().name.clone();
            match call.end {
                End::Well => {
                    call.permit.succeeded(now, now - call.began);
                    *self.served.entry(target.to_string()).or_default() += 1;
                }
                End::Ill | End::NotIll => {
                    call.permit.failed(now, call.end == End::Ill);
                    let mut tried = call.tried;
                    tried.push(target);
                    self.send(tried, now);
                }
                End::Cancelled | End::Never => drop(call.permit),
            }
        }
    }

    fn send(&mut self, tried: Vec<Arc<str>>, now: Instant) {
        let request = PickRequest {
            exclude: &tried,
            ..PickRequest::default()
        };
        let chance = &self.chance;
        let picked = self.registry.pick("g", &request, now, &mut || (chance.0)());
        let Some(pick) = picked else {
            self.lost += 1;
            return;
        };
        let name = pick.target.name.to_string();
        let (took, end) = self.answer(&name);
        *self.sent.entry(name).or_default() += 1;
        self.under_way.push(UnderWay {
            began: now,
            ends: (end != End::Never).then(|| now + took),
            end,
            is_probe: pick.target.circuit() != CircuitState::Closed,
            permit: pick.permit,
            tried,
        });
        self.count_probes(&pick.target, now);
    }

    fn answer(&self, name: &str) -> (Duration, End) {
        let soon = self.chance.millis(1, 40);
        match self.servers.condition(name) {
            Condition::Well | Condition::OnlyProbesFail => (soon, End::Well),
            Condition::Down => (Duration::from_millis(1), End::Ill),
            Condition::Hangs => (self.attempt_timeout, End::Ill),
            Condition::Slow(millis) if Duration::from_millis(millis) >= self.attempt_timeout => {
                (self.attempt_timeout, End::Ill)
            }
            Condition::Slow(millis) => (Duration::from_millis(millis), End::Well),
            Condition::Errors(percent) if self.chance.below(100) < percent => (soon, End::Ill),
            Condition::Errors(_) => (soon, End::Well),
            Condition::Throttles => (soon, End::NotIll),
            Condition::CallersCancel => (soon, End::Cancelled),
            Condition::CallersVanish => (soon, End::Never),
        }
    }

    fn count_probes(&mut self, target: &Arc<Target>, now: Instant) {
        let probes = self.under_way.iter().filter(|call| {
            call.is_probe
                && call.permit.target().name == target.name
                && now - call.began < self.lease_timeout
        });
        self.most_probes = self.most_probes.max(probes.count());
    }

    /// The targets of so many calls from now on that are all answered at once, one after the other.
    pub fn who_is_asked(&mut self, calls: u32) -> BTreeMap<String, u32> {
        let mut asked = BTreeMap::new();
        for _ in 0..calls {
            let name = self.ask_one(&[]).unwrap_or_else(|| "nobody".to_owned());
            *asked.entry(name).or_default() += 1;
        }
        asked
    }

    /// One call that is answered well at once, by a target other than these.
    pub fn ask_one(&self, but: &[Arc<str>]) -> Option<String> {
        let request = PickRequest {
            exclude: but,
            ..PickRequest::default()
        };
        let now = Instant::now();
        let pick = self
            .registry
            .pick("g", &request, now, &mut || (self.chance.0)())?;
        pick.permit.succeeded(now, Duration::from_millis(1));
        Some(pick.target.name.to_string())
    }

    pub fn circuit(&self, name: &str) -> CircuitState {
        self.registry.get(name).unwrap().circuit()
    }
}

fn in_words(change: &TargetChange) -> String {
    match change {
        TargetChange::CircuitOpened {
            open_for, cause, ..
        } => format!("open {}s {cause:?}", open_for.as_secs()),
        TargetChange::CircuitHalfOpened => "half-open".into(),
        TargetChange::CircuitClosed => "closed".into(),
        TargetChange::Up => "up".into(),
        TargetChange::Down => "down".into(),
        TargetChange::Recovered { .. } => "recovered".into(),
        other => format!("{other:?}"),
    }
}
