//! What people could use instead.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use backstop::strategy::{Situation, TargetView};
use bench_policy::KINDS;
use tokio::runtime::Runtime;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_resilience::bulkhead::{BulkheadLayer, BulkheadServiceError};
use tower_resilience::circuitbreaker::{CircuitBreakerError, CircuitBreakerLayer};
use tower_resilience::retry::RetryLayer;
use tower_resilience::timelimiter::TimeLimiterLayer;

use crate::decision::context;
use crate::happy::{self, AT_ONCE, SHARED, awaited};
use crate::measure::Contender;

// ---- a healthy call ------------------------------------------------------------------------------

/// The peer that comes nearest to what the engine does.
pub const STACK: &str = "tower-resilience";

type Refused = CircuitBreakerError<BulkheadServiceError<Infallible>>;

/// The peer's stack, in the order its composition guide gives.
fn stack() -> impl Service<(), Response = u64, Error: std::fmt::Debug, Future: Send> + Clone + Send
{
    ServiceBuilder::new()
        .layer(
            TimeLimiterLayer::builder()
                .timeout_duration(Duration::from_secs(10))
                .build(),
        )
        .layer(
            RetryLayer::<(), u64, Refused>::builder()
                .max_attempts(3)
                .exponential_backoff(Duration::from_millis(100))
                .build(),
        )
        .layer(
            CircuitBreakerLayer::builder()
                .failure_rate_threshold(0.5)
                .sliding_window_size(100)
                .build()
                .expect("a circuit breaker"),
        )
        .layer(
            BulkheadLayer::builder()
                .max_concurrent_calls(AT_ONCE as usize)
                .build()
                .expect("a bulkhead"),
        )
        .service(tower::service_fn(|()| {
            std::future::ready(Ok::<u64, Infallible>(1))
        }))
}

async fn call(mut stack: impl Service<(), Response = u64, Error: std::fmt::Debug>) -> u64 {
    let ready = stack.ready().await.expect("ready");
    ready.call(()).await.unwrap_or(0)
}

pub fn healthy(runtime: &Runtime) -> Vec<Contender<'_>> {
    let stack = stack();
    let backon = || {
        let operation = || std::future::ready(Ok::<u64, Infallible>(1));
        operation.retry(ExponentialBuilder::default())
    };
    vec![
        awaited(STACK, runtime, move || call(stack.clone())),
        awaited("backon", runtime, backon),
    ]
}

pub fn allocations(runtime: &Runtime) -> f64 {
    let stack = stack();
    happy::allocations_of(runtime, || call(stack.clone()))
}

pub fn on_two_threads() -> f64 {
    let stack = stack();
    happy::on_two_threads(|| {
        let stack = stack.clone();
        async move {
            for _ in 0..SHARED {
                std::hint::black_box(call(stack.clone()).await);
            }
        }
    })
}

// ---- a decision ----------------------------------------------------------------------------------

pub fn decisions<'a>(now: &'a Situation, guest: &Path) -> [Contender<'a>; 3] {
    [rhai(now), cel(now), extism(now, guest)]
}

const RHAI: &str = r#"
fn condition(f) {
    f.repeatable && f.kind in ["ConnectionError", "TimeoutError", "ServiceUnavailable",
        "InternalServerError", "BadGateway", "GatewayTimeout"] && f.fallbacks < 3
}
fn action(f) {
    for t in f.targets {
        if t.kind == "service" && t.admitted && !t.tried && !(t.name in ["search-archive"]) {
            return #{ target: t.name, reason: `${f.kind}: another service can be asked` };
        }
    }
    ()
}
"#;

fn rhai<'a>(now: &'a Situation) -> Contender<'a> {
    use rhai::{Array, Dynamic, Engine, Map, Scope};
    let engine = Engine::new();
    let script = engine.compile(RHAI).expect("a script");
    let target = |view: TargetView| {
        let mut map = Map::new();
        map.insert("name".into(), Dynamic::from(view.name.to_string()));
        map.insert("kind".into(), view.kind.into());
        map.insert("priority".into(), Dynamic::from_int(view.priority.into()));
        map.insert("weight".into(), Dynamic::from_int(view.weight.into()));
        map.insert("healthy".into(), view.healthy.into());
        map.insert("admitted".into(), view.admitted.into());
        map.insert("tried".into(), view.tried.into());
        map.insert("present".into(), view.present.into());
        Dynamic::from_map(map)
    };
    Contender::plain("rhai", move || {
        let mut f = Map::new();
        let text = |text: &str| Dynamic::from(text.to_owned());
        f.insert("kind".into(), text(now.failure.kind.as_str()));
        f.insert("message".into(), text(&now.failure.message));
        f.insert("operation".into(), text(&now.operation));
        f.insert("group".into(), text(&now.call.group));
        f.insert(
            "target".into(),
            text(now.target.as_deref().unwrap_or_default()),
        );
        f.insert("repeatable".into(), now.repeatable.into());
        f.insert("fallbacks".into(), Dynamic::from_int(now.fallbacks.into()));
        f.insert(
            "arguments".into(),
            text(&String::from_utf8_lossy(
                now.arguments.as_deref().unwrap_or_default(),
            )),
        );
        let targets: Array = now.surroundings.targets().into_iter().map(target).collect();
        f.insert("targets".into(), targets.into());
        let mut scope = Scope::new();
        let applies: bool = engine
            .call_fn(&mut scope, &script, "condition", (f.clone(),))
            .expect("a condition");
        assert!(applies);
        let decision: Map = engine
            .call_fn(&mut scope, &script, "action", (f,))
            .expect("an action");
        let target = decision["target"].clone().into_string().expect("a target");
        (
            target,
            decision["reason"].clone().into_string().expect("a reason"),
        )
    })
}

fn cel<'a>(now: &'a Situation) -> Contender<'a> {
    use ::cel::{Context as Scope, Program, Value};
    let kinds = serde_json::to_string(&KINDS).expect("JSON");
    let condition = format!("f.repeatable && f.kind in {kinds} && f.fallbacks < 3u");
    let condition = Program::compile(&condition).expect("a condition");
    let action = r#"f.targets.filter(t, t.kind == "service" && t.admitted && !t.tried && !(t.name in ["search-archive"])).map(t, {"target": t.name, "reason": f.kind + ": another service can be asked"})"#;
    let action = Program::compile(action).expect("an action");
    Contender::plain("cel", move || {
        let mut scope = Scope::default();
        scope.add_variable("f", context(now)).expect("a variable");
        let applies = condition.execute(&scope).expect("a condition");
        assert_eq!(applies, Value::Bool(true));
        action.execute(&scope).expect("an action")
    })
}

fn extism<'a>(now: &'a Situation, guest: &Path) -> Contender<'a> {
    use ::extism::{Manifest, Plugin, Wasm};
    // As data: the peer reads a file as text of its own format.
    let guest = std::fs::read(guest).expect("the peer's plugin");
    let manifest = Manifest::new([Wasm::data(guest)]);
    let mut plugin = Plugin::new(&manifest, [], false).expect("a plugin");
    Contender::plain("extism", move || {
        let input = serde_json::to_vec(&context(now)).expect("JSON");
        let output: Vec<u8> = plugin.call("decide", input).expect("a decision");
        let decision: Option<bench_policy::Decision> =
            serde_json::from_slice(&output).expect("JSON");
        assert!(decision.is_some());
        decision
    })
}
