//! `backstop plugin bench`: what a decision costs on this machine.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use backstop::cases::{self, Context};
use backstop::strategy::component::{
    ComponentStrategy, Isolation, Runtime, RuntimeOptions, StrategyOptions,
};
use serde::Serialize;
use serde_json::json;

use super::{Component, Loaded, shown_size};
use crate::cli::{USAGE, terminal};

/// Decisions made before any is measured.
const WARM_UP: u32 = 5;
/// How long it is waited for an instance, beyond the time one may take to become ready.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize)]
struct Cost {
    what: &'static str,
    #[serde(rename = "median_us", serialize_with = "micros")]
    median: Duration,
    #[serde(rename = "p99_us", serialize_with = "micros")]
    p99: Duration,
}

fn micros<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64((time.as_secs_f64() * 1e7).round() / 10.0)
}

pub(super) async fn run(
    component: &Component,
    context: &str,
    decisions: u32,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let loaded = component.read()?;
    let options = component.options()?;
    let context = super::context(context)?;
    let (cold, cached, runtime) = loads(&loaded, &options).await?;

    let strategy = load(&runtime, &loaded, options.clone()).await?;
    if cases::ask(&strategy, &context, None).await.is_none() {
        terminal::complain(
            "backstop: the strategy would not be asked about this context: name one of its kinds and \
             operations with --context",
        );
        return Ok(ExitCode::from(USAGE));
    }
    let mut costs = Vec::new();
    let ways = [
        ("fresh instance, made on demand", Isolation::Fresh, 0),
        ("fresh instance, kept ready", Isolation::Fresh, 1),
        ("reused instance", Isolation::Reuse, 1),
    ];
    for (what, isolation, ready) in ways {
        let mut options = options.clone();
        options.isolation = isolation;
        options.limits.ready = ready;
        let strategy = load(&runtime, &loaded, options).await?;
        let (median, p99) = measure(&strategy, &context, decisions, ready > 0).await?;
        costs.push(Cost { what, median, p99 });
    }
    if as_json {
        let document = json!({
            "component": loaded.path,
            "size": loaded.bytes.len(),
            "load_cold_ms": cold.as_secs_f64() * 1e3,
            "load_cached_ms": cached.as_secs_f64() * 1e3,
            "decisions": decisions,
            "decision": costs,
        });
        terminal::say(&serde_json::to_string_pretty(&document)?);
        return Ok(ExitCode::SUCCESS);
    }
    terminal::say(&format!(
        "{}, {}",
        loaded.path.display(),
        shown_size(loaded.bytes.len())
    ));
    terminal::say(&format!(
        "load, compiled now     {:>10.1} ms",
        cold.as_secs_f64() * 1e3
    ));
    terminal::say(&format!(
        "load, from the cache   {:>10.1} ms",
        cached.as_secs_f64() * 1e3
    ));
    terminal::say(&format!(
        "{decisions} decisions:                       median         p99"
    ));
    for cost in costs {
        let shown = |time: Duration| format!("{:.1} us", time.as_secs_f64() * 1e6);
        terminal::say(&format!(
            "  {:<32}{:>12}{:>12}",
            cost.what,
            shown(cost.median),
            shown(cost.p99)
        ));
    }
    if cfg!(debug_assertions) {
        terminal::complain(
            "backstop: this program was built without optimisation: the figures are too high",
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn load(
    runtime: &Runtime,
    loaded: &Loaded,
    options: StrategyOptions,
) -> anyhow::Result<std::sync::Arc<ComponentStrategy>> {
    Ok(ComponentStrategy::load(runtime, &loaded.plugin, loaded.bytes.clone(), options).await?)
}

/// How long it takes to load the component, without and with a cache that has it; and a runtime that
/// has it.
async fn loads(
    loaded: &Loaded,
    options: &StrategyOptions,
) -> anyhow::Result<(Duration, Duration, Runtime)> {
    // Of its own, so that the first time is really the first.
    let folder = tempfile::tempdir().context("cannot make a folder for the cache")?;
    let timed = async || {
        let options_of_runtime = RuntimeOptions::default().with_cache(folder.path());
        let runtime =
            Runtime::new(options_of_runtime).context("the WebAssembly runtime cannot start")?;
        let began = Instant::now();
        let strategy = load(&runtime, loaded, options.clone()).await?;
        let took = began.elapsed();
        drop(strategy);
        anyhow::Ok((took, runtime))
    };
    let (cold, first) = timed().await?;
    drop(first);
    let (cached, runtime) = timed().await?;
    Ok((cold, cached, runtime))
}

/// Instances are made ahead of need: between two failures there is time for it.
async fn until_ready(strategy: &ComponentStrategy) -> anyhow::Result<()> {
    let limit = strategy.limits().configure_deadline() + PATIENCE;
    let is_ready = async {
        while strategy.ready() == 0 {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    };
    tokio::time::timeout(limit, is_ready).await.with_context(|| {
        format!(
            "no instance was ready within {limit:?}: its start or `configure` fails or takes too long \
             when it is repeated; RUST_LOG=debug says why"
        )
    })
}

async fn measure(
    strategy: &ComponentStrategy,
    context: &Context,
    decisions: u32,
    wait: bool,
) -> anyhow::Result<(Duration, Duration)> {
    let mut times = Vec::with_capacity(decisions as usize);
    for number in 0..WARM_UP + decisions {
        // A deadline of its own for every decision.
        let (situation, _) = context.situation();
        if wait {
            until_ready(strategy).await?;
        }
        let began = Instant::now();
        let decided = strategy.decide(&situation).await;
        let took = began.elapsed();
        decided.with_context(|| format!("decision {number}: the strategy"))?;
        if number >= WARM_UP {
            times.push(took);
        }
    }
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    Ok((at(50), at(99)))
}
