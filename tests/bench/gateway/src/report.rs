//! Every scene, every load, every proxy, in turns; one table, one file of figures.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;

use crate::load::{self, Load, Plan};
use crate::peers::{ALL, Behind, Places, Proxy, Running, server};
use crate::{failing, start};

/// A server behind the proxies, and what is asked of it.
struct Scene {
    name: &'static str,
    stdio: bool,
    sse: bool,
    size: usize,
    clients: &'static [usize],
}

/// How often a proxy that has been started is asked whether it is ready.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(200);

const SCENES: [Scene; 5] = [
    scene("HTTP, JSON, 100 B", false, false, 100, &[1, 8, 64, 256]),
    scene("HTTP, SSE, 100 B", false, true, 100, &[1, 64]),
    scene("HTTP, JSON, 100 KB", false, false, 100_000, &[1, 8]),
    scene("stdio, 100 B", true, false, 100, &[1, 8, 64, 256]),
    scene("stdio, 100 KB", true, false, 100_000, &[1, 8]),
];

const fn scene(
    name: &'static str,
    stdio: bool,
    sse: bool,
    size: usize,
    clients: &'static [usize],
) -> Scene {
    Scene {
        name,
        stdio,
        sse,
        size,
        clients,
    }
}

/// What a proxy came to under one load. Times in microseconds.
#[derive(Serialize)]
struct Figures {
    scene: &'static str,
    clients: usize,
    proxy: &'static str,
    calls: usize,
    median: f64,
    p99: f64,
    /// Of the turns, the one in the middle.
    per_second: f64,
    /// Beyond the direct way, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    added_median: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

pub(crate) async fn run(
    backstop: &Path,
    peers: &Path,
    out: &Path,
    plan: Plan,
) -> anyhow::Result<()> {
    let scratch = out.join("scratch");
    std::fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let places = Places {
        backstop,
        peers,
        scratch: &scratch,
    };
    let mut all = Vec::new();
    for scene in &SCENES {
        let (_server, behind) = if scene.stdio {
            (None, Behind::Stdio(std::env::current_exe()?))
        } else {
            let (child, url) = server(scene.sse)?;
            (Some(child), Behind::Http(url))
        };
        let mut running: Vec<(Proxy, Running)> = Vec::new();
        for proxy in ALL {
            if !proxy.suits(&behind) {
                continue;
            }
            let started = proxy.start(&behind, &places).await?;
            let ready = load::until_ready(&started.endpoint, LOOK_AGAIN).await;
            ready.with_context(|| format!("{}: {}", scene.name, proxy.name()))?;
            running.push((proxy, started));
        }
        for clients in scene.clients {
            let measured = measure(scene, *clients, &running, plan).await;
            print!("{}", table(&measured));
            all.extend(measured);
        }
    }
    let failing = failing::measure(&places, plan).await?;
    print!("{failing}");
    let start = start::measure(&places, plan.turns).await?;
    print!("{start}");
    let path = out.join("gateway.json");
    let whole = json!({ "loads": all, "failing": failing, "start": start });
    std::fs::write(&path, serde_json::to_vec_pretty(&whole)?)?;
    println!("figures in {}", path.display());
    Ok(())
}

async fn measure(
    scene: &Scene,
    clients: usize,
    running: &[(Proxy, Running)],
    plan: Plan,
) -> Vec<Figures> {
    struct Measured {
        load: Result<Load, String>,
        times: Vec<u64>,
        rates: Vec<f64>,
    }
    let mut measured = Vec::new();
    for (_, running) in running {
        let load = Load::open(&running.endpoint, clients, scene.size).await;
        measured.push(Measured {
            load: load.map_err(|error| format!("{error:#}")),
            times: Vec::new(),
            rates: Vec::new(),
        });
    }
    // In turns, so that what the machine does besides hits all alike.
    for _ in 0..plan.turns {
        for one in &mut measured {
            let Ok(load) = &one.load else { continue };
            let limit = plan.turn * 10 + Duration::from_secs(20);
            match tokio::time::timeout(limit, load.turn(plan.turn)).await {
                Ok(Ok(turn)) => {
                    one.times.extend(turn.times);
                    one.rates.push(turn.per_second);
                }
                Ok(Err(error)) => one.load = Err(format!("{error:#}")),
                Err(_) => one.load = Err(format!("no end within {limit:?}")),
            }
        }
    }
    let mut direct = None;
    let mut all = Vec::new();
    for ((proxy, _), mut one) in running.iter().zip(measured) {
        one.times.sort_unstable();
        one.rates.sort_by(f64::total_cmp);
        let median = at(&one.times, 0.5);
        if *proxy == Proxy::Direct {
            direct = Some(median);
        }
        all.push(Figures {
            scene: scene.name,
            clients,
            proxy: proxy.name(),
            calls: one.times.len(),
            median,
            p99: at(&one.times, 0.99),
            per_second: one.rates.get(one.rates.len() / 2).copied().unwrap_or(0.0),
            added_median: direct
                .filter(|_| *proxy != Proxy::Direct)
                .map(|direct| median - direct),
            failed: one.load.err(),
        });
    }
    all
}

/// Microseconds at this place among times in nanoseconds that are in order.
pub(crate) fn at(times: &[u64], share: f64) -> f64 {
    let last = times.len().saturating_sub(1);
    let place = (last as f64 * share).round() as usize;
    times.get(place).map_or(f64::NAN, |time| *time as f64 / 1e3)
}

fn table(figures: &[Figures]) -> String {
    let mut text = String::new();
    let Some(first) = figures.first() else {
        return text;
    };
    let _ = writeln!(
        text,
        "\n{}, {} client{}\n{:27} {:>10} {:>10} {:>7} {:>10} {:>11} {:>10}",
        first.scene,
        first.clients,
        if first.clients == 1 { "" } else { "s" },
        "",
        "median µs",
        "p99 µs",
        "p99/med",
        "added µs",
        "calls/s",
        "of ours"
    );
    let ours = figures
        .iter()
        .find(|one| one.proxy == Proxy::Backstop.name());
    for one in figures {
        if let Some(failed) = &one.failed {
            let _ = writeln!(text, "{:27} failed: {failed}", one.proxy);
            continue;
        }
        let added = one
            .added_median
            .map_or_else(|| "-".into(), |added| format!("{added:.0}"));
        let share = ours.map_or(f64::NAN, |ours| one.per_second / ours.per_second);
        let _ = writeln!(
            text,
            "{:27} {:>10.0} {:>10.0} {:>7.1} {added:>10} {:>11.0} {share:>9.2}x",
            one.proxy,
            one.median,
            one.p99,
            one.p99 / one.median,
            one.per_second
        );
    }
    text
}
