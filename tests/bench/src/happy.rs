//! The happy path: what stands between a caller and a target that answers at once.

use std::convert::Infallible;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use backstop::registry::TargetSpec;
use backstop::{Call, Engine};
use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use tokio::runtime::Runtime;

use crate::measure::{self, Contender, Sample, paired};
#[cfg(feature = "peers")]
use crate::peers;

/// Requests a target is sent at once, in both: never reached here.
pub const AT_ONCE: u32 = 10_000;

/// An engine with all of it: detection, deadline, budget, circuit, health, bulkhead, metrics; a primary and
/// a backup, as in the README.
pub fn engine() -> Engine {
    let at_once = NonZeroU32::new(AT_ONCE).unwrap_or(NonZeroU32::MIN);
    let engine = Engine::builder().metrics().build().expect("an engine");
    for (name, priority) in [("search-eu", 10), ("search-us", 0)] {
        let target = TargetSpec::service(name, "search")
            .priority(priority)
            .concurrency(at_once, 0);
        engine.registry().register(target).expect("a target");
    }
    engine
}

pub fn call() -> Call {
    Call::new("search", "search_documents").deadline(Duration::from_secs(10))
}

pub async fn execute(engine: &Engine, call: &Call) -> u64 {
    let outcome = engine.execute(call.clone(), |_| {
        std::future::ready(Ok::<u64, Infallible>(1))
    });
    outcome.await.map_or(0, |outcome| outcome.answer)
}

/// A loop of awaited operations on a runtime of its own thread.
pub fn awaited<'a, F>(
    name: &'static str,
    runtime: &'a Runtime,
    work: impl Fn() -> F + 'a,
) -> Contender<'a>
where
    F: Future<Output: Sized>,
{
    Contender::new(name, move |times| {
        runtime.block_on(async {
            let began = Instant::now();
            for _ in 0..times {
                std::hint::black_box(work().await);
            }
            began.elapsed()
        })
    })
}

/// Metrics that are added up and nothing else.
struct Plain;

#[derive(Default)]
struct Sum(AtomicU64);

impl HistogramFn for Sum {
    fn record(&self, value: f64) {
        self.0.fetch_add(value.to_bits(), Ordering::Relaxed);
    }
}

impl Recorder for Plain {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(AtomicU64::new(0)))
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Sum::default()))
    }
}

async fn bare() -> u64 {
    std::hint::black_box(1)
}

pub struct Happy {
    pub one: Vec<Sample>,
    /// Allocations of one call, by contender.
    pub allocations: Vec<(&'static str, f64)>,
    /// With two threads on one shared host.
    pub two: Vec<Sample>,
    /// The same of a target that works: the wall clock of a call on two threads, over that on one.
    pub labour: f64,
}

pub fn run(runtime: &Runtime, rounds: usize, mut upkeep: impl FnMut()) -> Happy {
    let engine = engine();
    let call = call();
    let mut contenders = vec![awaited("backstop", runtime, || execute(&engine, &call))];
    #[cfg(feature = "peers")]
    contenders.extend(peers::healthy(runtime));
    contenders.push(awaited("bare call", runtime, bare));
    let one = paired(contenders, rounds, &mut upkeep);

    let exported = allocations_of(runtime, || execute(&engine, &call));
    // What an exporter keeps is its own affair, so the host is counted with metrics that only add up.
    let ours = metrics::with_local_recorder(&Plain, || {
        let engine = self::engine();
        allocations_of(runtime, || execute(&engine, &call))
    });
    #[cfg_attr(not(feature = "peers"), allow(unused_mut))]
    let mut allocations = vec![("backstop", ours), ("backstop, with an exporter", exported)];
    #[cfg(feature = "peers")]
    allocations.push((peers::STACK, peers::allocations(runtime)));

    let calls_of = |engine: Engine| {
        // Of its own: a caller's texts are not what the host shares.
        let call = self::call();
        async move {
            for _ in 0..SHARED {
                std::hint::black_box(execute(&engine, &call).await);
            }
        }
    };
    let mut two = vec![
        ("backstop", Vec::new()),
        ("backstop, a host for each", Vec::new()),
    ];
    #[cfg(feature = "peers")]
    two.push((peers::STACK, Vec::new()));
    for _ in 0..rounds / 10 {
        two[0].1.push(on_two_threads(|| calls_of(engine.clone())));
        two[1].1.push(on_two_threads(|| calls_of(self::engine())));
        #[cfg(feature = "peers")]
        two[2].1.push(peers::on_two_threads());
        upkeep();
    }
    let labours = || {
        let (engine, call) = (engine.clone(), self::call());
        async move {
            for _ in 0..SHARED / 20 {
                let answer =
                    engine.execute(call.clone(), |_| async { Ok::<u64, Infallible>(labour()) });
                std::hint::black_box(answer.await.map_or(0, |outcome| outcome.answer));
            }
        }
    };
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..rounds / 10 {
        alone.push(on_threads(1, &labours));
        together.push(on_threads(2, &labours) / 2.0);
        upkeep();
    }
    let labour = Sample::new("", together).median() / Sample::new("", alone).median();
    let two = two
        .into_iter()
        .map(|(name, values)| Sample::new(name, values));
    Happy {
        one,
        allocations,
        two: two.collect(),
        labour,
    }
}

pub fn allocations_of<F: Future>(runtime: &Runtime, work: impl Fn() -> F) -> f64 {
    runtime.block_on(async {
        // What only the first calls make.
        for _ in 0..100 {
            std::hint::black_box(work().await);
        }
        let before = measure::allocations();
        for _ in 0..1000 {
            std::hint::black_box(work().await);
        }
        (measure::allocations() - before) as f64 / 1000.0
    })
}

/// Calls one of two threads makes in a round.
pub const SHARED: u64 = 5_000;

/// Nanoseconds of wall clock for each call when two threads make them at the same time: half of what one
/// thread takes, if nothing is in the other's way.
pub fn on_two_threads<F: Future<Output = ()> + Send>(work: impl Fn() -> F + Sync) -> f64 {
    on_threads(2, &work) / (2 * SHARED) as f64
}

/// Nanoseconds until all of so many threads have done the work.
fn on_threads<F: Future<Output = ()> + Send>(many: usize, work: &(impl Fn() -> F + Sync)) -> f64 {
    let barrier = Arc::new(Barrier::new(many));
    let took = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..many)
            .map(|_| {
                let barrier = barrier.clone();
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_time()
                        .build()
                        .expect("a runtime");
                    let work = work();
                    barrier.wait();
                    let began = Instant::now();
                    runtime.block_on(work);
                    began.elapsed()
                })
            })
            .collect();
        let times = threads.into_iter().filter_map(|thread| thread.join().ok());
        times.max().unwrap_or_default()
    });
    took.as_nanos() as f64
}

/// What a target does that takes its time: about 10 µs on one core.
fn labour() -> u64 {
    (0..10_000u64).fold(1, |sum, n| std::hint::black_box(sum ^ n.wrapping_mul(sum)))
}
