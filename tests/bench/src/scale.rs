//! What grows with what: targets, calls under way, plugins.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop::call::RepeatSafety;
use backstop::registry::TargetSpec;
use backstop::strategy::component::{
    ComponentStrategy, Runtime as Sandbox, RuntimeOptions, StrategyOptions, stock,
};
use backstop::{Call, Engine};
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::decision::situation;
use crate::happy::awaited;
use crate::measure::{self, Sample, paired};

/// One curve: a value for each size.
#[derive(Serialize, Clone)]
pub struct Curve {
    pub name: &'static str,
    pub of: &'static str,
    pub unit: &'static str,
    pub points: Vec<(u64, f64)>,
}

/// A host with so many targets in one group, of which `bearing` have the best priority.
fn engine(targets: u64, bearing: u64) -> Engine {
    let engine = Engine::builder().metrics().build().expect("an engine");
    let specs = (0..targets).map(|n| {
        let priority = i32::from(n < bearing);
        TargetSpec::service(format!("target-{n}"), "search").priority(priority)
    });
    let registry = engine.registry();
    registry.replace_all(specs.collect()).expect("the targets");
    engine
}

/// Nanoseconds of a healthy call, by the number of targets in its group: where all of them bear the load,
/// so that a large group's are not in the cache when it is their turn, and where two do.
pub fn targets(runtime: &Runtime, rounds: usize, mut upkeep: impl FnMut()) -> [Curve; 2] {
    const SIZES: [u64; 4] = [10, 100, 1_000, 10_000];
    let mut curve = |name, bearing: fn(u64) -> u64| {
        let engines = SIZES.map(|size| engine(size, bearing(size)));
        let call = Call::new("search", "search_documents");
        let contenders = engines.iter().map(|engine| {
            awaited("", runtime, || async {
                let answer = engine.execute(call.clone(), |_| {
                    std::future::ready(Ok::<u64, Infallible>(1))
                });
                answer.await.map_or(0, |outcome| outcome.answer)
            })
        });
        let samples = paired(contenders.collect(), rounds, &mut upkeep);
        let medians = samples.iter().map(Sample::median);
        Curve {
            name,
            of: "targets of its group",
            unit: "ns",
            points: SIZES.into_iter().zip(medians).collect(),
        }
    };
    [
        curve("healthy call, load on all", |size| size),
        curve("healthy call, load on two", |_| 2),
    ]
}

/// Bytes a waiting call holds, beside those of a bare task that waits; and what a call beside them costs.
pub fn in_flight(runtime: &Runtime, rounds: usize) -> [Curve; 3] {
    const SIZES: [u64; 3] = [10, 1_000, 10_000];
    let engine = engine(2, 2);
    let call = Call::new("search", "search_documents").deadline(Duration::from_secs(600));
    let (mut ours, mut bare, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    for size in SIZES {
        let gate = Arc::new(Notify::new());
        let waiting = |with_engine: bool| {
            runtime.block_on(async {
                let mut tasks = Vec::with_capacity(size as usize);
                let before = measure::bytes();
                for _ in 0..size {
                    let (engine, call, gate) = (engine.clone(), call.clone(), gate.clone());
                    tasks.push(if with_engine {
                        tokio::spawn(async move {
                            let wait = |_| async {
                                gate.notified().await;
                                Ok::<u64, Infallible>(1)
                            };
                            engine
                                .execute(call, wait)
                                .await
                                .map_or(0, |outcome| outcome.answer)
                        })
                    } else {
                        tokio::spawn(async move {
                            gate.notified().await;
                            1
                        })
                    });
                }
                // All of them are polled once.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let bytes = (measure::bytes() - before) as f64 / size as f64;
                let mut samples = Vec::new();
                if with_engine {
                    for _ in 0..rounds {
                        let began = Instant::now();
                        for _ in 0..100 {
                            let answer = engine.execute(call.clone(), |_| {
                                std::future::ready(Ok::<u64, Infallible>(1))
                            });
                            std::hint::black_box(answer.await.map_or(0, |outcome| outcome.answer));
                        }
                        samples.push(began.elapsed().as_nanos() as f64 / 100.0);
                    }
                }
                gate.notify_waiters();
                for task in tasks {
                    task.await.expect("it ends");
                }
                (bytes, Sample::new("", samples).median())
            })
        };
        let (bytes, further) = waiting(true);
        ours.push((size, bytes));
        beside.push((size, further));
        bare.push((size, waiting(false).0));
    }
    let curve = |name, unit, points| Curve {
        name,
        of: "calls under way",
        unit,
        points,
    };
    [
        curve("waiting call", "bytes", ours),
        curve("bare waiting task", "bytes", bare),
        curve("healthy call beside them", "ns", beside),
    ]
}

/// Megabytes the host keeps of calls that failed, while a subscriber to its events never reads one.
pub fn events(runtime: &Runtime, mut upkeep: impl FnMut()) -> Curve {
    const SIZES: [u64; 3] = [1_000, 10_000, 100_000];
    let engine = engine(2, 2);
    let call = Call::new("search", "search_documents").repeat_safety(RepeatSafety::ReadOnly);
    let _never_reads = engine.subscribe();
    let (before, mut made) = (measure::bytes(), 0);
    let kept_after = |size: u64| {
        runtime.block_on(async {
            while made < size {
                let refuses = |_| {
                    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
                    std::future::ready(Err::<u64, _>(refused))
                };
                let outcome = engine.execute(call.clone(), refuses).await;
                assert!(outcome.is_err(), "nobody answers");
                made += 1;
                if made % 1_000 == 0 {
                    upkeep();
                }
            }
        });
        (measure::bytes() - before) as f64 / 1e6
    };
    Curve {
        name: "kept of failed calls, events unread",
        of: "calls",
        unit: "MB",
        points: SIZES.into_iter().zip(SIZES.map(kept_after)).collect(),
    }
}

/// A component of other content and the same behaviour: a custom section makes it one.
fn distinct(bytes: &[u8], n: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let payload = n.to_le_bytes();
    bytes.extend([0, 1 + 1 + payload.len() as u8, 1, b'n']);
    bytes.extend(payload);
    bytes
}

async fn load_all(sandbox: &Sandbox, many: u64) -> Vec<Arc<ComponentStrategy>> {
    let (_, bytes) = stock()
        .iter()
        .find(|(name, _)| *name == "service-failover")
        .expect("a stock strategy");
    let mut loads = JoinSet::new();
    for n in 0..many {
        let (sandbox, bytes) = (sandbox.clone(), distinct(bytes, n));
        loads.spawn(async move {
            let name = format!("plugin-{n}");
            let options = StrategyOptions::default();
            ComponentStrategy::load(&sandbox, &name, bytes, options)
                .await
                .expect("it loads")
        });
    }
    loads.join_all().await
}

/// Milliseconds to load so many different plugins, cold and from the cache; megabytes of each; and
/// microseconds of a decision by one of them.
pub fn plugins(sizes: &[u64]) -> [Curve; 4] {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime");
    let [mut cold, mut cached, mut memory, mut decision] = [const { Vec::new() }; 4];
    for &size in sizes {
        let folder = tempfile::tempdir().expect("a folder");
        let sandbox = || {
            let cache = folder.path().join("cache");
            Sandbox::new(RuntimeOptions::default().with_cache(cache)).expect("a sandbox")
        };
        let began = Instant::now();
        drop(runtime.block_on(load_all(&sandbox(), size)));
        cold.push((size, began.elapsed().as_secs_f64() * 1e3));

        let (sandbox, before, began) = (sandbox(), measure::resident(), Instant::now());
        let strategies = runtime.block_on(load_all(&sandbox, size));
        cached.push((size, began.elapsed().as_secs_f64() * 1e3));
        std::thread::sleep(Duration::from_millis(300));
        let added = measure::resident().saturating_sub(before) as f64;
        memory.push((size, added / size as f64 / 1e6));

        let (one, now) = (&strategies[0], situation());
        let times: Vec<_> = (0..300)
            .map(|_| {
                runtime.block_on(async {
                    let began = Instant::now();
                    std::hint::black_box(one.decide(&now).await.expect("a decision"));
                    let took = began.elapsed().as_nanos() as f64 / 1e3;
                    // Another instance is made meanwhile.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    took
                })
            })
            .collect();
        decision.push((size, Sample::new("", times).median()));
    }
    let curve = |name, unit, points| Curve {
        name,
        of: "plugins",
        unit,
        points,
    };
    [
        curve("start, cold", "ms", cold),
        curve("start, cached", "ms", cached),
        curve("memory of a plugin", "MB", memory),
        curve("fresh decision", "µs", decision),
    ]
}
