//! What it costs to keep an eye on many targets.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backstop::Failure;
use backstop::health::{HealthChecker, HealthStatus, Prober};
use backstop::random::seeded;
use backstop::registry::{Registry, Target, TargetSpec};
use futures_util::future::BoxFuture;

const TARGETS: usize = 10_000;

/// The time this thread has been computing.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanos = text.split(' ').next().unwrap().parse().unwrap();
    Duration::from_nanos(nanos)
}

fn registry(spec: impl Fn(TargetSpec) -> TargetSpec) -> Arc<Registry> {
    let registry = Registry::builder().random(seeded(1)).build().unwrap();
    let specs = (0..TARGETS).map(|n| spec(TargetSpec::service(format!("t{n}"), "g")));
    registry.replace_all(specs.collect()).unwrap();
    Arc::new(registry)
}

fn all_healthy(registry: &Registry) -> bool {
    let targets = registry.list();
    targets
        .iter()
        .all(|target| target.health() == HealthStatus::Healthy)
}

struct Counting(AtomicU64);

impl Prober for Counting {
    fn probe<'a>(&'a self, _: &'a Target) -> BoxFuture<'a, Result<(), Failure>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }
}

/// What the schedule itself costs, without any network: two minutes of simulated time.
#[tokio::test(start_paused = true)]
async fn ten_thousand_targets_are_scheduled_in_a_fraction_of_a_core() {
    let registry = registry(|spec| spec);
    let prober = Arc::new(Counting(AtomicU64::new(0)));
    let checker = HealthChecker::spawn(registry.clone(), prober.clone(), seeded(2));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(all_healthy(&registry));
    let (before, began) = (prober.0.load(Ordering::Relaxed), cpu_time());
    let simulated = Duration::from_secs(120);
    tokio::time::sleep(simulated).await;
    let used = cpu_time() - began;
    let probes = prober.0.load(Ordering::Relaxed) - before;
    // Four rounds, give or take the jitter.
    assert!((35_000..=45_000).contains(&probes), "{probes}");
    let share = used.as_secs_f64() / simulated.as_secs_f64();
    assert!(share < 0.10, "{:.1} % of a core", share * 100.0);
    drop(checker);
}

/// With real connections on loopback, for so many seconds as `BACKSTOP_PROBE_SECONDS` says. Prints the share
/// of a core that the schedule, the HTTP client and this side of the connections take (`--nocapture`).
#[cfg(feature = "http")]
#[test]
fn ten_thousand_targets_are_probed_over_http_in_less_than_a_tenth_of_a_core() {
    use std::io::{Read, Write};

    let Some(seconds) = std::env::var("BACKSTOP_PROBE_SECONDS").ok() else {
        return;
    };
    let time = Duration::from_secs(seconds.parse().unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answered = Arc::new(AtomicU64::new(0));
    let count = answered.clone();
    // On a thread of its own, so that its time is not counted. It ends with the process.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            if stream.read(&mut buffer).is_ok() {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer);
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (used, probes, healthy) = runtime.block_on(async {
        let registry = registry(|spec| spec.health_url(url.as_str()));
        let prober = Arc::new(backstop::health::HttpProber::new().unwrap());
        let _checker = HealthChecker::spawn(registry.clone(), prober, seeded(2));
        // The first round comes within a second, the second within one and a half intervals.
        tokio::time::sleep(Duration::from_secs(45)).await;
        let (before, began) = (answered.load(Ordering::Relaxed), cpu_time());
        tokio::time::sleep(time).await;
        let probes = answered.load(Ordering::Relaxed) - before;
        (cpu_time() - began, probes, all_healthy(&registry))
    });
    let share = used.as_secs_f64() / time.as_secs_f64();
    #[allow(clippy::print_stderr)]
    {
        eprintln!(
            "{:.1} % of a core, {:.0} probes a second",
            share * 100.0,
            probes as f64 / time.as_secs_f64()
        );
    }
    assert!(healthy);
    assert!(share < 0.10, "{:.1} % of a core", share * 100.0);
}
