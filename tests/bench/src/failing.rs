//! Under failure: what a call costs while the primary is known to be dead, what the first one costs that
//! finds out, and what recovery does to the slowest calls.

use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backstop::budget::BudgetPolicy;
use backstop::call::RepeatSafety;
use backstop::circuit::{CircuitConfig, CircuitState};
use backstop::registry::TargetSpec;
use backstop::strategy::Entry;
use backstop::strategy::component::ComponentStrategy;
use backstop::{Call, Engine};
use tokio::runtime::Runtime;

use crate::measure::{Contender, Sample, paired};

const PRIMARY: &str = "search-eu";

pub struct Pair {
    engine: Engine,
    call: Call,
    dead: Arc<AtomicBool>,
}

impl Pair {
    /// A primary and a backup; the primary's circuit is as given.
    fn new(circuit: CircuitConfig) -> Self {
        let budget = BudgetPolicy::Ratio {
            ttl: Duration::from_secs(10),
            reserve_per_second: 1_000_000,
            ratio: 10.0,
        };
        let builder = Engine::builder().metrics().budget(budget);
        let engine = builder.build().expect("an engine");
        let at_once = NonZeroU32::new(10_000).unwrap_or(NonZeroU32::MIN);
        let of = |name, priority| {
            TargetSpec::service(name, "search")
                .priority(priority)
                .concurrency(at_once, 0)
                .slow_start(Duration::ZERO)
        };
        let registry = engine.registry();
        registry
            .register(of(PRIMARY, 10).circuit(circuit))
            .expect("a target");
        registry.register(of("search-us", 0)).expect("a target");
        Self {
            engine,
            call: Call::new("search", "search_documents")
                .deadline(Duration::from_secs(10))
                .repeat_safety(RepeatSafety::ReadOnly),
            dead: Arc::default(),
        }
    }

    fn dead(self) -> Self {
        self.dead.store(true, Ordering::Relaxed);
        self
    }

    pub async fn execute(&self) -> u64 {
        let outcome = self.engine.execute(self.call.clone(), |target| {
            let refuses = self.dead.load(Ordering::Relaxed) && &*target.name == PRIMARY;
            std::future::ready(match refuses {
                true => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                false => Ok(1),
            })
        });
        outcome.await.expect("an answer").answer
    }

    /// What has failed so far is forgotten, so that the primary's circuit stays closed.
    pub fn forget(&self) {
        let registry = self.engine.registry();
        registry.restore(PRIMARY).expect("the primary");
    }

    fn with(self, strategy: &Arc<ComponentStrategy>) -> Self {
        let entry = Entry::component(strategy.clone()).expect("an entry");
        self.engine.strategies().add(entry).expect("a strategy");
        self
    }
}

/// A primary that is dead, which every call finds out anew, since its circuit stays closed.
pub fn failing(strategy: &Arc<ComponentStrategy>) -> Pair {
    let never = CircuitConfig {
        consecutive_failures: u32::MAX,
        failure_rate_percent: 100,
        minimum_throughput: 10_000,
        ..CircuitConfig::default()
    };
    Pair::new(never).dead().with(strategy)
}

pub struct Failing {
    /// Healthy, with the circuit open, and the first failing call.
    pub all: Vec<Sample>,
    /// In the second after a recovery, and meanwhile at a target that was never ill; call by call.
    pub recovery: [Sample; 2],
}

pub fn run(runtime: &Runtime, rounds: usize, strategy: &Arc<ComponentStrategy>) -> Failing {
    let healthy = Pair::new(CircuitConfig::default());
    let open = Pair::new(CircuitConfig::default()).dead();
    let registry = open.engine.registry();
    registry
        .eject(PRIMARY, Duration::from_secs(3600))
        .expect("the primary");
    let failing = failing(strategy);
    let of = |name, pair: &Pair| {
        let pair: &'static Pair = Box::leak(Box::new(Pair {
            engine: pair.engine.clone(),
            call: pair.call.clone(),
            dead: pair.dead.clone(),
        }));
        Contender::new(name, move |times| {
            runtime.block_on(async {
                let began = Instant::now();
                for _ in 0..times {
                    std::hint::black_box(pair.execute().await);
                }
                began.elapsed()
            })
        })
    };
    let contenders = vec![
        of("healthy", &healthy),
        of("circuit open", &open),
        Contender::new("first failing call", |times| {
            runtime.block_on(async {
                let mut took = Duration::ZERO;
                for _ in 0..times {
                    while strategy.ready() == 0 {
                        tokio::task::yield_now().await;
                    }
                    let began = Instant::now();
                    std::hint::black_box(failing.execute().await);
                    took += began.elapsed();
                }
                took
            })
        })
        .one_by_one(),
    ];
    let all = paired(contenders, rounds, || failing.forget());
    Failing {
        all,
        recovery: runtime.block_on(recovery(&healthy, strategy)),
    }
}

async fn recovery(healthy: &Pair, strategy: &Arc<ComponentStrategy>) -> [Sample; 2] {
    let soon = CircuitConfig {
        open_base: Duration::from_millis(50),
        jitter_percent: 0,
        ..CircuitConfig::default()
    };
    let ill = Pair::new(soon).dead().with(strategy);
    let primary = ill.engine.registry().get(PRIMARY).expect("the primary");
    while primary.circuit() != CircuitState::Open {
        ill.execute().await;
    }
    ill.dead.store(false, Ordering::Relaxed);
    while primary.circuit() != CircuitState::Closed {
        ill.execute().await;
        tokio::task::yield_now().await;
    }
    let (mut after, mut never) = (Vec::new(), Vec::new());
    let second = Instant::now();
    while second.elapsed() < Duration::from_secs(1) {
        for (pair, times) in [(&ill, &mut after), (healthy, &mut never)] {
            let began = Instant::now();
            std::hint::black_box(pair.execute().await);
            times.push(began.elapsed().as_nanos() as f64);
        }
    }
    [
        Sample::new("after a recovery", after),
        Sample::new("never ill", never),
    ]
}
