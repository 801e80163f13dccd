//! Random faults, random strategies, hostile ones among them, and random settings against the real
//! engine, in simulated time. What must hold whatever happens is checked of every call.
//!
//! `BACKSTOP_SIM_CALLS` sets how many calls are made (default 100 000; ten million take some minutes in
//! the release profile); `BACKSTOP_SIM_SEED` runs one world only. A failure prints the command that
//! repeats it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub
)]

mod check;
mod hostile;
mod settings;
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop::Call;
use backstop::call::{Failed, RepeatSafety};
use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use check::Told;
use settings::Limits;
use world::{Request, World};

const CALLS_PER_WORLD: usize = 50;
const CALLS_AT_ONCE: usize = 5;

/// A source of chance of a world's own.
#[derive(Clone)]
struct Chance(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(backstop::random::seeded(seed))
    }
    /// A source that follows from this one, and leaves it alone from then on.
    fn fork(&self) -> Self {
        Self::new((self.0)())
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
    fn one_of<'a, T>(&self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// What a call was made with.
#[derive(Debug, Clone)]
struct Made {
    group: &'static str,
    operation: &'static str,
    safety: Option<RepeatSafety>,
    deadline: Duration,
    hedged: bool,
    pin: Option<String>,
    alone: bool,
}

impl Made {
    fn random(chance: &Chance, limits: &Limits) -> (Self, Call, Request) {
        let operation = *chance.one_of(&world::OPERATIONS);
        let made = Self {
            group: if chance.one_in(4) { "h" } else { "g" },
            operation,
            safety: match chance.below(8) {
                0 => Some(RepeatSafety::Unsafe),
                1 => Some(RepeatSafety::Idempotent),
                2 => Some(RepeatSafety::ReadOnly),
                _ => None,
            },
            deadline: if chance.one_in(3) {
                chance.millis(5000)
            } else {
                limits.deadline
            },
            hedged: chance.one_in(2),
            pin: chance.one_in(12).then(|| format!("t{}", chance.below(4))),
            alone: chance.one_in(16),
        };
        let mut call = Call::new(made.group, operation)
            .deadline(made.deadline)
            .caller(*chance.one_of(&["alice", "bob"]))
            .importance(chance.below(120) as u8);
        if let Some(safety) = made.safety {
            call = call.repeat_safety(safety);
        }
        if made.hedged {
            call = call.hedge(settings::hedge(chance));
        }
        if let Some(pin) = &made.pin {
            call = call.pin(pin.as_str());
        }
        if made.alone {
            call = call.without_fallback();
        }
        let request = Request {
            operation: operation.to_owned(),
            arguments: (*chance.one_of(&world::ARGUMENTS)).to_owned(),
            redirected: false,
        };
        (made, call, request)
    }
}

/// Runs one world and says what does not hold.
async fn run(seed: u64) -> Result<(), String> {
    let chance = Chance::new(seed);
    let limits = Limits::random(&chance);
    let world = World::new(&chance);
    let engine = settings::engine(&chance, &limits, &world);
    let mut told = Told::new(engine.subscribe());
    let began = Instant::now();
    for _ in 0..CALLS_PER_WORLD / CALLS_AT_ONCE {
        told.look(&engine);
        let calls = (0..CALLS_AT_ONCE).map(|_| {
            let (made, call, request) = Made::random(&chance, &limits);
            let patience = chance.one_in(8).then(|| chance.millis(2000));
            let (engine, world, limits) = (&engine, &world, &limits);
            async move {
                let began = Instant::now();
                let call = engine.call(world, call, &request);
                let result = match patience {
                    // The caller gives up: the future is dropped.
                    Some(patience) => match timeout(patience, call).await {
                        Ok(result) => result,
                        Err(_) => return Ok(None),
                    },
                    None => call.await,
                };
                let id = match &result {
                    Ok(outcome) => outcome.id,
                    Err(Failed { error, .. }) => error.id,
                };
                let sent = world.sent_by(id);
                check::ended(&made, &result, &sent, world, began.elapsed(), limits)
                    .map_err(|broken| format!("sent: {sent:#?}\n{made:?}\n{broken}"))?;
                Ok::<_, String>(Some((id, result.is_ok())))
            }
        });
        for ended in join_all(calls).await {
            if let Some((id, saved)) = ended? {
                told.ended(id, saved);
            }
        }
        told.listen()?;
        // No call is under way: neither is any attempt, whoever gave up on what.
        check::quiet(&engine, &world)?;
        settings::change(&chance, &engine, &world);
        tokio::time::sleep(chance.millis(2000)).await;
    }
    world.verdict()?;
    for (id, sent) in world.all_sent() {
        check::path(&sent, &limits).map_err(|broken| format!("sent: {sent:#?}\n{id}: {broken}"))?;
    }
    check::rates(&world)?;
    told.within_budget(&limits, began)?;
    check::recovers(&engine, &world).await
}

fn simulate(seed: u64) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    // A panic of the engine is a broken promise as well, and has to be repeated like one.
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(seed))));
    let broken = match ended {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(broken)) => broken,
        Err(_) => "the engine or the simulator panicked; it is told above".to_owned(),
    };
    Err(format!(
        "{broken}\nto repeat: BACKSTOP_SIM_SEED={seed} cargo test --workspace --all-features --test simulation"
    ))
}

#[test]
fn whatever_fails_and_whatever_strategies_propose_the_rules_hold() {
    // A strategy's panic is part of the simulation, and would fill the log.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info
            .payload_as_str()
            .is_some_and(|text| text.contains(hostile::BUG))
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
        return simulate(seed).unwrap_or_else(|broken| panic!("{broken}"));
    }
    let calls = read("BACKSTOP_SIM_CALLS").unwrap_or(100_000);
    let worlds = calls.div_ceil(CALLS_PER_WORLD as u64);
    let (next, broken) = (AtomicU64::new(0), Mutex::new(None));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= worlds || broken.lock().unwrap().is_some() {
                        break;
                    }
                    if let Err(what) = simulate(seed) {
                        broken.lock().unwrap().get_or_insert(what);
                    }
                }
            });
        }
    });
    if let Some(broken) = broken.into_inner().unwrap() {
        panic!("{broken}");
    }
}
