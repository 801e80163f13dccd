//! Decisions of fifty plugins, with reloads every second: no call is lost and memory stays flat.
//!
//! `BACKSTOP_SOAK_DECISIONS=1000000` runs the long form.

#[allow(dead_code, reason = "shared with tests that need the rest")]
mod corpus;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backstop::Kind;
use backstop::call::{Call, RepeatSafety};
use backstop::plugins::WatchOptions;
use backstop::strategy::Entry;
use backstop_tests::engines::{services, start_in, steps_of};
use backstop_tests::script::{Request, Script, bad, good};

const PLUGINS: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_and_memory_stays_flat_while_fifty_plugins_decide_and_are_reloaded() {
    let wanted: u64 =
        std::env::var("BACKSTOP_SOAK_DECISIONS").map_or(30_000, |text| text.parse().unwrap());
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("plugins");
    std::fs::create_dir(&folder).unwrap();
    let contents: Vec<_> = (0..4).map(corpus::harmless_variant).collect();
    let put = |plugin: usize, version: usize| {
        let unfinished = folder.join(".unfinished");
        std::fs::write(&unfinished, &contents[version % contents.len()]).unwrap();
        std::fs::rename(&unfinished, folder.join(format!("p-{plugin}.wasm"))).unwrap();
    };
    for plugin in 0..PLUGINS {
        put(plugin, plugin);
    }
    let text = format!(
        "plugins = \"plugins\"\n[circuit]\nconsecutive_failures = 10000\nminimum_throughput = 10000\n[budget]\nreserve_per_second = 100000\n{}[[strategy]]\nplugin = \"service-failover\"\npriority = -1\nconfig = {{ kinds = [\"Hostile\"] }}\n",
        services(&["a", "b"])
    );
    let started = start_in(home.path(), &text).await;
    assert_eq!(started.diagnostics, []);
    let mut last = started.engine.strategies().list();
    let _watch = started.set.watch(WatchOptions::default());

    let decisions = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (engine, decisions) = (started.engine.clone(), decisions.clone());
            tokio::spawn(async move {
                let mut calls = 0_u64;
                while decisions.load(Ordering::Relaxed) < wanted {
                    let script = Script::default()
                        .on("a", bad(Kind::new("Hostile")))
                        .on("b", good("b's"));
                    let call = Call::new("g", "search").repeat_safety(RepeatSafety::ReadOnly);
                    let request = Request::new("search", "{}");
                    let outcome = engine.call(&script, call, &request).await.unwrap();
                    assert_eq!(outcome.answer, "b's");
                    let steps = steps_of(&outcome);
                    // Whatever was being replaced, all fifty were asked, and none failed to decide.
                    let asked = steps.iter().filter(|(name, ..)| name.starts_with("p-"));
                    assert_eq!(asked.count(), PLUGINS, "{steps:?}");
                    if let Some(faulted) =
                        steps.iter().find(|(_, verdict, _)| *verdict == "faulted")
                    {
                        // A busy machine may take the time of a decision away.
                        assert!(faulted.2.contains("did not decide within"), "{faulted:?}");
                    }
                    decisions.fetch_add(steps.len() as u64, Ordering::Relaxed);
                    calls += 1;
                }
                calls
            })
        })
        .collect();

    let (began, mut version, mut reloaded, mut before) = (Instant::now(), 0, 0_usize, None);
    // The short form may be over before the first reload has been seen.
    while decisions.load(Ordering::Relaxed) < wanted || version < 3 {
        let failed = decisions.load(Ordering::Relaxed) < wanted
            && callers.iter().any(tokio::task::JoinHandle::is_finished);
        assert!(!failed, "a call was lost");
        version += 1;
        for plugin in (version % 5..PLUGINS).step_by(5) {
            put(plugin, plugin + version);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = started.engine.strategies().list();
        let is_new = |entry: &&Arc<Entry>| !last.iter().any(|old| Arc::ptr_eq(old, entry));
        reloaded += now.iter().filter(is_new).count();
        last = now;
        if version == 2 {
            before = Some(corpus::resident());
        }
    }
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    let grown = corpus::resident().saturating_sub(before.unwrap());
    println!(
        "{} decisions, {calls} calls, {reloaded} reloads in {:?}, {grown} bytes more",
        decisions.load(Ordering::Relaxed),
        began.elapsed()
    );
    assert!(reloaded >= 10, "{reloaded} reloads");
    assert!(grown < 32 << 20, "{grown} bytes more");
}
