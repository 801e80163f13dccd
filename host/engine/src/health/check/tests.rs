use super::*;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;

use crate::health::HealthStatus;
use crate::kind::Kind;
use crate::random::seeded;
use crate::registry::{RegistryConfig, TargetSpec};

/// Answers as it is told, and keeps count.
#[derive(Default)]
struct Scripted {
    /// Targets that refuse.
    down: Mutex<HashSet<String>>,
    /// How long each probe takes.
    takes: Mutex<Duration>,
    asked: Mutex<Vec<(String, Instant)>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

impl Scripted {
    fn set_down(&self, name: &str, down: bool) {
        let mut names = self.down.lock().unwrap();
        if down {
            names.insert(name.to_owned());
        } else {
            names.remove(name);
        }
    }

    fn times_asked(&self, name: &str) -> Vec<Instant> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|(asked, _)| asked == name)
            .map(|(_, at)| *at)
            .collect()
    }
}

struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Prober for Scripted {
    fn covers(&self, target: &Target) -> bool {
        target.spec.url.is_some()
    }

    fn probe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            self.asked
                .lock()
                .unwrap()
                .push((target.name.to_string(), Instant::now()));
            let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            let _guard = UnderWay(&self.under_way);
            self.most_under_way.fetch_max(under_way, Ordering::SeqCst);
            let takes = *self.takes.lock().unwrap();
            tokio::time::sleep(takes).await;
            assert!(target.attribute("panics").is_none(), "a prober that panics");
            if self.down.lock().unwrap().contains(&*target.name) {
                return Err(Failure::new(Kind::CONNECTION_ERROR, "refused"));
            }
            Ok(())
        }
        .boxed()
    }
}

struct Bench {
    registry: Arc<Registry>,
    prober: Arc<Scripted>,
    checker: HealthChecker,
}

fn start(specs: Vec<TargetSpec>) -> Bench {
    let registry = Arc::new(Registry::builder().random(seeded(1)).build().unwrap());
    for spec in specs {
        registry.register(spec).unwrap();
    }
    let prober = Arc::new(Scripted::default());
    let checker = HealthChecker::spawn(registry.clone(), prober.clone(), seeded(3));
    Bench {
        registry,
        prober,
        checker,
    }
}

fn service(name: &str) -> TargetSpec {
    TargetSpec::service(name, "g").url("http://localhost:1")
}

async fn minutes(count: u64) {
    tokio::time::sleep(Duration::from_secs(60 * count)).await;
}

impl Bench {
    fn health(&self, name: &str) -> HealthStatus {
        self.registry.get(name).unwrap().health()
    }
}

#[tokio::test(start_paused = true)]
async fn targets_go_down_and_come_back_as_probes_say() {
    let bench = start(vec![service("a"), service("b")]);
    minutes(1).await;
    assert_eq!(
        (bench.health("a"), bench.health("b")),
        (HealthStatus::Healthy, HealthStatus::Healthy)
    );
    assert!(bench.registry.get("a").unwrap().last_checked().is_some());
    bench.prober.set_down("a", true);
    minutes(3).await;
    assert_eq!(
        (bench.health("a"), bench.health("b")),
        (HealthStatus::Unhealthy, HealthStatus::Healthy)
    );
    minutes(60 * 24).await;
    bench.prober.set_down("a", false);
    minutes(2).await;
    assert_eq!(bench.health("a"), HealthStatus::Healthy);
}

#[tokio::test(start_paused = true)]
async fn probes_keep_to_their_interval_give_or_take_the_jitter() {
    let bench = start(vec![
        service("a"),
        service("fast").health_interval(Duration::from_secs(10)),
    ]);
    minutes(60).await;
    for (name, interval) in [("a", 30.0), ("fast", 10.0)] {
        let gaps: Vec<f64> = bench
            .prober
            .times_asked(name)
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect();
        assert!(gaps.len() > 60);
        assert!(
            gaps.iter()
                .all(|gap| (0.89 * interval..1.11 * interval).contains(gap)),
            "{name}: {gaps:?}"
        );
        let spread =
            gaps.iter().copied().fold(0.0, f64::max) - gaps.iter().copied().fold(1e9, f64::min);
        assert!(spread > 0.05 * interval, "{name} is not jittered");
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_is_a_bad_one_and_is_dropped() {
    let bench = start(vec![service("a")]);
    *bench.prober.takes.lock().unwrap() = Duration::MAX;
    minutes(3).await;
    assert_eq!(bench.health("a"), HealthStatus::Unhealthy);
    let asked = bench.prober.times_asked("a");
    assert!(asked.len() > 3, "{asked:?}");
    assert!(bench.prober.most_under_way.load(Ordering::SeqCst) == 1);
}

#[tokio::test(start_paused = true)]
async fn probes_under_way_are_bounded_and_everyone_gets_a_turn() {
    let names: Vec<String> = (0..40).map(|n| format!("t{n}")).collect();
    let bench = start(names.iter().map(|name| service(name)).collect());
    let mut config = RegistryConfig::default();
    config.health.concurrency = 3;
    bench.registry.configure(config).unwrap();
    *bench.prober.takes.lock().unwrap() = Duration::from_secs(4);
    minutes(5).await;
    assert_eq!(bench.prober.most_under_way.load(Ordering::SeqCst), 3);
    assert!(
        names
            .iter()
            .all(|name| bench.prober.times_asked(name).len() >= 3)
    );
}

#[tokio::test(start_paused = true)]
async fn the_checker_follows_the_registry() {
    let bench = start(vec![service("a")]);
    minutes(1).await;
    bench.registry.register(service("late")).unwrap();
    bench
        .registry
        .register(service("left alone").unprobed())
        .unwrap();
    bench
        .registry
        .register(TargetSpec::service("not covered", "g"))
        .unwrap();
    bench.registry.deregister("a").unwrap();
    let left = Instant::now();
    minutes(2).await;
    assert_eq!(bench.health("late"), HealthStatus::Healthy);
    assert_eq!(bench.health("left alone"), HealthStatus::Unknown);
    assert_eq!(bench.health("not covered"), HealthStatus::Unknown);
    assert!(bench.prober.times_asked("a").iter().all(|at| *at <= left));

    bench.prober.set_down("late", true);
    minutes(3).await;
    assert_eq!(bench.health("late"), HealthStatus::Unhealthy);
    bench.registry.update(service("late").unprobed()).unwrap();
    minutes(1).await;
    assert_eq!(
        bench.health("late"),
        HealthStatus::Unknown,
        "nobody would ever correct it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_shorter_interval_takes_effect_at_once() {
    let bench = start(vec![
        service("a").health_interval(Duration::from_secs(3600)),
    ]);
    minutes(1).await;
    bench
        .registry
        .update(service("a").health_interval(Duration::from_secs(5)))
        .unwrap();
    minutes(1).await;
    assert!(bench.prober.times_asked("a").len() > 8);
}

#[tokio::test(start_paused = true)]
async fn a_prober_that_panics_says_nothing_and_is_asked_again() {
    let bench = start(vec![service("a").attribute("panics", "yes"), service("b")]);
    minutes(10).await;
    assert_eq!(bench.health("a"), HealthStatus::Unknown);
    assert!(bench.prober.times_asked("a").len() > 10);
    assert_eq!(bench.health("b"), HealthStatus::Healthy);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_checker_ends_the_checks_and_what_they_said() {
    let bench = start(vec![service("a")]);
    bench.prober.set_down("a", true);
    minutes(3).await;
    assert_eq!(bench.health("a"), HealthStatus::Unhealthy);
    let Bench {
        registry,
        prober,
        checker,
    } = bench;
    drop(checker);
    minutes(1).await;
    assert_eq!(registry.get("a").unwrap().health(), HealthStatus::Unknown);
    let asked = prober.times_asked("a").len();
    minutes(60).await;
    assert_eq!(prober.times_asked("a").len(), asked);
    assert_eq!(Arc::strong_count(&prober), 1);
}
