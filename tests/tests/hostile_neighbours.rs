//! Calls beside hostile plugins: a hundred good ones at a time keep their latency, and memory goes back
//! to where it was. Alone in its program, since both are measured.

#[allow(dead_code, reason = "shared with tests that need the rest")]
mod corpus;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use backstop::Engine;
use backstop::strategy::Entry;
use backstop::strategy::component::{ComponentStrategy, StrategyOptions};
use backstop_tests::engines::RUNTIME;
use corpus::{Hostile, call, faulting, resident, script, start};

/// The time that 99 of 100 good calls take at most, a hundred at a time. Each waits once for its
/// target, for 1 ms.
async fn p99(engine: &Engine, rounds: usize) -> Duration {
    let script = Arc::new(script());
    let mut times = Vec::new();
    for _ in 0..rounds {
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let (engine, script) = (engine.clone(), script.clone());
                // The wait for a thread is part of it.
                let began = Instant::now();
                tokio::spawn(async move {
                    let (call, request) = call("good");
                    let outcome = engine.call(&*script, call, &request).await.unwrap();
                    assert_eq!(outcome.answer, "a's");
                    began.elapsed()
                })
            })
            .collect();
        for call in calls {
            times.push(call.await.unwrap());
        }
    }
    times.sort();
    times[times.len() * 99 / 100]
}

/// One call that meets every hostile plugin, with an engine of its own: another has them in
/// quarantine. Gives the strategies, which should be gone soon.
async fn suffer(corpus: &[Hostile]) -> Vec<Weak<Entry>> {
    let started = start(corpus).await;
    let (call, request) = call("bad");
    let outcome = started.engine.call(&script(), call, &request).await;
    assert_eq!(outcome.unwrap().answer, "b's");
    let strategies = started.engine.strategies().list();
    strategies.iter().map(Arc::downgrade).collect()
}

/// Waits until no strategy is left: instances are taken apart beside the calls.
async fn until_gone(strategies: Vec<Weak<Entry>>) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let left = strategies.iter().filter(|it| it.strong_count() > 0).count();
        if left == 0 {
            return;
        }
        assert!(Instant::now() < end, "{left} strategies are left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An engine with every hostile plugin, none of which is ever quarantined: each call meets them all.
async fn haunted(corpus: &[Hostile]) -> Engine {
    let engine = start(&[]).await.engine;
    for hostile in corpus {
        let mut options = StrategyOptions {
            quarantine: serde_json::from_str(r#"{ "faults": 4000000000 }"#).unwrap(),
            ..StrategyOptions::default()
        };
        // On a busy machine its time may be over before its memory.
        if hostile.name == "memory-bomb" {
            options.limits.decision_deadline_ms = 2_000;
        }
        let bytes = hostile.bytes.clone();
        let loaded = ComponentStrategy::load(&RUNTIME, hostile.name, bytes, options).await;
        let entry = Entry::component(loaded.unwrap()).unwrap();
        let entry = entry.named(hostile.name).with_priority(9999);
        engine.strategies().add(entry).unwrap();
    }
    engine
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_good_calls_at_a_time_keep_their_latency_and_memory_comes_back() {
    let corpus = faulting();
    let engine = start(&[]).await.engine;
    let haunted = haunted(&corpus).await;
    // The pool of instances keeps a little of each slot it has once used: these are used first.
    for _ in 0..8 {
        until_gone(suffer(&corpus).await).await;
    }
    let mut measured = Vec::new();
    for _ in 0..6 {
        let before = resident();
        let quiet = p99(&engine, 30).await;
        let (stop, calls) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let hostile = {
            let (haunted, stop, calls) = (haunted.clone(), stop.clone(), calls.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let (call, request) = call("bad");
                    let outcome = haunted.call(&script(), call, &request).await;
                    assert_eq!(outcome.unwrap().answer, "b's");
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        // The median of many: the machine has other things to do at times.
        let mut beside = Vec::new();
        while beside.len() < 5 || calls.load(Ordering::Relaxed) < 2 {
            beside.push(p99(&engine, 20).await);
            assert!(
                !hostile.is_finished(),
                "a call that should be saved was not"
            );
        }
        beside.sort();
        let typical = beside[beside.len() / 2];
        stop.store(true, Ordering::Relaxed);
        hostile.await.unwrap();
        until_gone(suffer(&corpus).await).await;
        let grown = resident().saturating_sub(before);
        measured.push(format!(
            "p99 {quiet:?} quiet, {typical:?} ({} times) beside {} decisions of hostile plugins; {grown} bytes more",
            beside.len(),
            calls.load(Ordering::Relaxed) as usize * corpus.len(),
        ));
        if typical <= quiet * 2 && grown < 8 << 20 {
            println!("{}", measured.join("\n"));
            return;
        }
    }
    panic!("{}", measured.join("\n"));
}
