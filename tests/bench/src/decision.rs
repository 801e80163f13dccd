//! A decision: condition and action for one realistic failure, in every engine a policy could be written
//! for.

use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use backstop::strategy::component::{
    ComponentStrategy, Isolation, Limits, Runtime as Sandbox, RuntimeOptions, StrategyOptions,
    stock,
};
use backstop::strategy::{
    Action, Decision, Entry, KnownGood, Situation, Strategy, StrategyInfo, Surroundings, TargetView,
};
use backstop::{Failure, Kind};
use bench_policy::{AVOID, Context, KINDS, Target};
use tokio::runtime::Runtime;

use crate::floor::Floor;
use crate::measure::{Contender, Sample, paired};

/// The failure: five strings, four targets, 1 KiB of arguments. The one to avoid comes after the one that is
/// chosen, or, `crowded`, before it.
fn targets(crowded: bool) -> Vec<TargetView> {
    let view = |name: &str, priority, present| TargetView {
        name: name.into(),
        kind: "service",
        priority,
        weight: 1,
        healthy: true,
        admitted: true,
        tried: present,
        present,
    };
    let mut targets = vec![
        view("search-eu", 10, true),
        view("search-us", 5, false),
        view("search-archive", if crowded { 6 } else { 4 }, false),
        view("search-asia", 0, false),
    ];
    targets.sort_by_key(|target| -target.priority);
    targets
}

struct Around(Vec<TargetView>);

impl Surroundings for Around {
    fn targets(&self) -> Vec<TargetView> {
        self.0.clone()
    }
    fn best_target(&self, _: Option<&str>) -> Option<Arc<str>> {
        let fits = |target: &&TargetView| target.admitted && !target.tried;
        self.0.iter().find(fits).map(|target| target.name.clone())
    }
    fn target_attribute(&self, _: &str, _: &str) -> Option<String> {
        None
    }
    fn last_known_good(&self) -> Option<KnownGood> {
        None
    }
    fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }
    fn random(&self) -> u64 {
        7
    }
}

pub fn situation() -> Situation {
    situation_among(targets(false))
}

fn situation_among(targets: Vec<TargetView>) -> Situation {
    let message = "search-eu: HTTP 503 Service Unavailable: upstream connect error or disconnect/reset before headers";
    let mut failure = Failure::new(Kind::SERVICE_UNAVAILABLE, message);
    failure.http_status = Some(503);
    let mut situation = Situation::of(failure);
    situation.operation = "search_documents".into();
    situation.target = Some("search-eu".into());
    situation.arguments = Some(arguments().into());
    situation.surroundings = Arc::new(Around(targets));
    situation
}

fn arguments() -> String {
    let query = "how a fallback layer stays out of the way ".repeat(26);
    format!(r#"{{"query":"{query}"}}"#)[..1021].to_owned() + "\"}"
}

/// The same as plain data, for those that take nothing else. Making it is part of what they cost.
pub fn context(now: &Situation) -> Context {
    let target = |view: TargetView| Target {
        name: view.name.to_string(),
        kind: view.kind.to_owned(),
        priority: view.priority,
        weight: view.weight,
        healthy: view.healthy,
        admitted: view.admitted,
        tried: view.tried,
        present: view.present,
    };
    Context {
        kind: now.failure.kind.to_string(),
        message: now.failure.message.clone(),
        operation: now.operation.to_string(),
        group: now.call.group.to_string(),
        target: now.target.as_deref().unwrap_or_default().to_owned(),
        http_status: now.failure.http_status,
        repeatable: now.repeatable,
        attempts: now.attempts.len() as u32,
        fallbacks: now.fallbacks,
        time_left_ms: now.time_left().as_millis() as u64,
        arguments: String::from_utf8_lossy(now.arguments.as_deref().unwrap_or_default())
            .into_owned(),
        targets: now.surroundings.targets().into_iter().map(target).collect(),
    }
}

struct Native;

impl Strategy for Native {
    fn info(&self) -> StrategyInfo {
        StrategyInfo::new("native", "service")
    }

    fn condition(&self, now: &Situation) -> bool {
        bench_policy::condition(now.failure.kind.as_str(), now.repeatable, now.fallbacks)
    }

    fn action(&self, now: &Situation) -> Decision {
        let mut targets = now.surroundings.targets().into_iter();
        let fits = |target: &TargetView| {
            bench_policy::fits(&target.name, target.kind, target.admitted, target.tried)
        };
        match targets.find(fits) {
            None => Action::Decline.into(),
            Some(target) => {
                let action = Action::SwitchTarget {
                    target: Some(target.name.to_string()),
                    target_kind: None,
                };
                Decision::new(action, bench_policy::reason(now.failure.kind.as_str()))
            }
        }
    }
}

// ---- ours ----------------------------------------------------------------------------------------

pub struct Ours {
    pub fresh: Arc<ComponentStrategy>,
    pub reused: Arc<ComponentStrategy>,
}

pub fn ours(runtime: &Runtime) -> Ours {
    let load = |isolation| {
        let config = serde_json::json!({ "avoid": AVOID, "max_switches": 3, "kinds": KINDS });
        let mut options = StrategyOptions {
            config,
            isolation,
            ..StrategyOptions::default()
        };
        let mut limits = Limits::default();
        limits.uses = 1_000_000;
        options.limits = limits;
        runtime.block_on(async {
            let sandbox = Sandbox::new(RuntimeOptions::default()).expect("a sandbox");
            let (_, bytes) = stock()
                .iter()
                .find(|(name, _)| *name == "service-failover")
                .expect("a stock strategy");
            ComponentStrategy::load(&sandbox, "service-failover", *bytes, options)
                .await
                .expect("it loads")
        })
    };
    Ours {
        fresh: load(Isolation::Fresh),
        reused: load(Isolation::Reuse),
    }
}

/// Waits until an instance is ready, which is made beside the call.
pub async fn ready(strategy: &ComponentStrategy) {
    while strategy.ready() == 0 {
        tokio::task::yield_now().await;
    }
}

fn component<'a>(
    name: &'static str,
    runtime: &'a Runtime,
    entry: &'a Entry,
    now: &'a Situation,
) -> Contender<'a> {
    let strategy = entry.as_component().expect("a component");
    Contender::new(name, move |times| {
        runtime.block_on(async {
            ready(strategy).await;
            let began = Instant::now();
            for _ in 0..times {
                std::hint::black_box(entry.decide(now).await.expect("a decision"));
            }
            began.elapsed()
        })
    })
}

pub fn run(runtime: &Runtime, rounds: usize, guest: &Path) -> Vec<Sample> {
    let now = situation();
    // Here the host's own choice is to be avoided, so that ours must read the list of all.
    let crowded = situation_among(targets(true));
    let ours = ours(runtime);
    let fresh = Entry::component(ours.fresh).expect("an entry");
    let reused = Entry::component(ours.reused).expect("an entry");
    let native = Entry::native(Native).expect("an entry");
    let unmatched = {
        let mut info = StrategyInfo::new("elsewhere", "service");
        info.kinds = vec![Kind::UNAUTHORIZED, Kind::new("QuotaOfTeamSpent")];
        info.operations = vec!["create_*".into()];
        info.interest().expect("an interest")
    };
    let expected = bench_policy::decide(&context(&now)).expect("a decision");
    let asked = [
        (&fresh, &now),
        (&reused, &now),
        (&reused, &crowded),
        (&native, &now),
    ];
    for (entry, now) in asked {
        let decision = runtime.block_on(async {
            entry
                .decide(now)
                .await
                .expect("a decision")
                .expect("it applies")
        });
        let Action::SwitchTarget { target, .. } = decision.action else {
            panic!("another decision: {decision:?}")
        };
        assert_eq!(target.as_deref(), Some(&*expected.target));
        assert_eq!(decision.reason, expected.reason);
    }
    #[cfg(not(feature = "peers"))]
    let _ = guest;
    let mut floor = Floor::new();
    let contenders = vec![
        component("backstop, reused", runtime, &reused, &now),
        component("backstop, fresh", runtime, &fresh, &now).one_by_one(),
        component(
            "backstop, reused, reads all targets",
            runtime,
            &reused,
            &crowded,
        ),
        Contender::new("native", |times| {
            runtime.block_on(async {
                let began = Instant::now();
                for _ in 0..times {
                    std::hint::black_box(native.decide(&now).await.expect("a decision"));
                }
                began.elapsed()
            })
        }),
        Contender::plain("no interest", || {
            unmatched.matches(&std::hint::black_box(&now).failure.kind, &now.operation)
        }),
        Contender::plain("empty component call", move || floor.call()),
    ];
    #[cfg(feature = "peers")]
    let contenders = {
        let mut contenders = contenders;
        contenders.extend(crate::peers::decisions(&now, guest));
        contenders
    };
    paired(contenders, rounds, || {})
}
