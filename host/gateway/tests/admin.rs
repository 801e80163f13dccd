//! The administration endpoint, as browsers, scrapers, scripts and operators meet it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backstop::call::RepeatSafety;
use backstop::event::EventKind;
use backstop::registry::{RegistryConfig, TargetSpec};
use backstop::strategy::{Action, Decision, Entry, Situation, Strategy, StrategyInfo};
use backstop::{Call, Engine};
use backstop_gateway::admin::{Admin, Metrics};
use futures_util::StreamExt as _;
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The recorder of the process, which all tests of this file share.
fn metrics() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::install().unwrap()).clone()
}

struct Switch;

impl Strategy for Switch {
    fn info(&self) -> StrategyInfo {
        StrategyInfo::new("switch", "service")
    }
    fn condition(&self, _: &Situation) -> bool {
        true
    }
    fn action(&self, _: &Situation) -> Decision {
        let action = Action::SwitchTarget {
            target: None,
            target_kind: None,
        };
        Decision::new(action, "another may do better")
    }
}

/// It retries what must not be repeated: every one of its proposals is refused.
struct Stubborn;

impl Strategy for Stubborn {
    fn info(&self) -> StrategyInfo {
        let mut info = StrategyInfo::new("stubborn", "retry");
        info.default_priority = 1000;
        info
    }
    fn condition(&self, _: &Situation) -> bool {
        true
    }
    fn action(&self, _: &Situation) -> Decision {
        let target = Some("nowhere".into());
        let action = Action::SwitchTarget {
            target,
            target_kind: None,
        };
        Decision::new(action, "nowhere is best")
    }
}

struct World {
    engine: Engine,
    base: String,
    client: Client,
    token: Option<&'static str>,
    _stop: DropGuard,
}

impl World {
    /// Two targets, of which `bad` is asked first and always fails.
    async fn new(token: Option<&'static str>) -> Self {
        let metrics = metrics();
        let mut config = RegistryConfig::default();
        // A target that is restored has its whole share at once.
        config.balance.slow_start = Duration::ZERO;
        let builder = Engine::builder().registry(config);
        let engine = builder.metrics().build().unwrap();
        let registry = engine.registry();
        registry
            .register(TargetSpec::service("bad", "g").priority(1))
            .unwrap();
        registry.register(TargetSpec::service("good", "g")).unwrap();
        let strategies = engine.strategies();
        strategies.add(Entry::native(Switch).unwrap()).unwrap();
        strategies.add(Entry::native(Stubborn).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let admin = Admin::new(&engine, metrics, address, token).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(admin.serve(listener, stop.clone()));
        Self {
            engine,
            base: format!("http://{address}"),
            client: Client::new(),
            token,
            _stop: stop.drop_guard(),
        }
    }

    async fn call(&self, group: &str) -> Option<String> {
        let call = Call::new(group, "look").repeat_safety(RepeatSafety::ReadOnly);
        let outcome = self.engine.execute(call, |target| async move {
            match &*target.name {
                "bad" => Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
                name => Ok(name.to_owned()),
            }
        });
        outcome.await.ok().map(|outcome| outcome.answer)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = self.token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.send(Method::GET, path, &[], "").await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.unwrap()
    }

    async fn post(&self, path: &str, body: &str) -> (StatusCode, Value) {
        let json = [("content-type", "application/json")];
        let answer = self.send(Method::POST, path, &json, body).await;
        (answer.status(), answer.json().await.unwrap())
    }

    /// A target, by name, as the status tells of it.
    async fn target(&self, name: &str) -> Value {
        let status = self.get("/api/status").await;
        let mut targets = status["groups"][0]["targets"].as_array().unwrap().iter();
        targets.find(|it| it["name"] == name).unwrap().clone()
    }

    /// Asks until what is told holds: events are noted a moment after they happened.
    async fn until(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..500 {
            let told = self.get(path).await;
            if holds(&told) {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{path}: {}", self.get(path).await);
    }
}

fn document() -> Value {
    serde_json::from_str(include_str!("../src/admin/openapi.json")).unwrap()
}

/// Every request of the document, with its parameters filled in.
fn requests() -> Vec<(Method, String)> {
    let document = document();
    let mut list = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let actions = &methods["post"]["parameters"][1]["schema"]["enum"];
            let actions: Vec<&str> = match actions.as_array() {
                Some(actions) => actions.iter().map(|it| it.as_str().unwrap()).collect(),
                None => vec![""],
            };
            let name = if path.contains("strategies") {
                "switch"
            } else {
                "good"
            };
            for action in actions {
                let path = path.replace("{name}", name).replace("{action}", action);
                list.push((method.clone(), path.replace("{id}", "c000000")));
            }
        }
    }
    list
}

#[tokio::test]
async fn with_a_token_nothing_but_the_page_and_the_sign_of_life_is_told_without_it() {
    let mut world = World::new(Some("right")).await;
    let json = [("content-type", "application/json")];
    for token in [None, Some("wrong"), Some("")] {
        world.token = token;
        for (method, path) in requests() {
            let answer = world.send(method.clone(), &path, &json, "").await;
            let expected = match &*path {
                "/healthz" => StatusCode::OK,
                _ => StatusCode::UNAUTHORIZED,
            };
            assert_eq!(answer.status(), expected, "{method} {path} {token:?}");
        }
    }
    assert!(!world.engine.registry().get("good").unwrap().is_held());
    let page = world.send(Method::GET, "/", &[], "").await;
    assert_eq!(page.status(), StatusCode::OK);
    world.token = Some("right");
    world.get("/api/status").await;
}

#[tokio::test]
async fn every_request_of_the_document_is_answered_as_it_says() {
    let world = World::new(None).await;
    assert_eq!(world.call("g").await.as_deref(), Some("good"));
    world
        .until("/api/calls", |calls| calls[0].is_object())
        .await;
    let document = document();
    assert_eq!(world.get("/api/openapi.json").await, document);
    let mut checked = 0;
    for (method, path) in requests() {
        let path = path.replace("c000000", "c000001");
        let json = [("content-type", "application/json")];
        let answer = world.send(method.clone(), &path, &json, "").await;
        assert_eq!(answer.status(), StatusCode::OK, "{method} {path}");
        let content = answer.headers()["content-type"].to_str().unwrap();
        if content != "application/json" || path.ends_with("openapi.json") {
            continue;
        }
        let at = requests_path(&document, &path);
        let mut told = &document["paths"][at][method.as_str().to_lowercase()]["responses"]["200"];
        if let Some(reference) = told["$ref"].as_str() {
            told = document.pointer(reference.trim_start_matches('#')).unwrap();
        }
        let mut schema = told["content"]["application/json"]["schema"].clone();
        schema["components"] = document["components"].clone();
        let body: Value = answer.json().await.unwrap();
        let errors: Vec<String> = jsonschema::validator_for(&schema)
            .unwrap()
            .iter_errors(&body)
            .map(|error| format!("{} at {}", error, error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{path}: {errors:?}");
        checked += 1;
    }
    assert!(checked >= 8, "{checked}");
}

/// The path of the document that a path is an example of.
fn requests_path<'a>(document: &'a Value, path: &str) -> &'a str {
    let parts: Vec<&str> = path.split('/').collect();
    let paths = document["paths"].as_object().unwrap();
    let fits = |known: &&String| {
        let known: Vec<&str> = known.split('/').collect();
        let mut pairs = known.iter().zip(&parts);
        known.len() == parts.len() && pairs.all(|(a, b)| a == b || a.starts_with('{'))
    };
    paths.keys().find(fits).unwrap()
}

#[tokio::test]
async fn a_page_from_elsewhere_can_neither_look_nor_steer() {
    let world = World::new(None).await;
    let json = ("content-type", "application/json");
    let foreign: [&[(&str, &str)]; 4] = [
        &[json, ("origin", "https://evil.example")],
        &[json, ("origin", "null")],
        &[json, ("host", "evil.example")],
        &[json, ("sec-fetch-site", "cross-site")],
    ];
    for headers in foreign {
        for (method, path) in requests() {
            if path == "/healthz" {
                continue;
            }
            let answer = world.send(method.clone(), &path, headers, "").await;
            assert_eq!(
                answer.status(),
                StatusCode::FORBIDDEN,
                "{method} {path} {headers:?}"
            );
            assert!(!answer.headers().contains_key("access-control-allow-origin"));
        }
    }
    // What a form can send without being asked first.
    for content in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "",
    ] {
        let headers = [("content-type", content)];
        let path = "/api/targets/good/drain";
        let answer = world.send(Method::POST, path, &headers, "{}").await;
        assert_eq!(
            answer.status(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "{content}"
        );
    }
    // What a browser asks before it sends JSON.
    let asked = [
        ("origin", "https://evil.example"),
        ("access-control-request-method", "POST"),
    ];
    let answer = world
        .send(Method::OPTIONS, "/api/targets/good/drain", &asked, "")
        .await;
    assert!(!answer.status().is_success());
    assert!(!world.engine.registry().get("good").unwrap().is_held());
}

#[tokio::test]
async fn a_call_that_had_trouble_is_explained_by_its_id() {
    let world = World::new(None).await;
    assert_eq!(world.call("g").await.as_deref(), Some("good"));
    let calls = world
        .until("/api/calls", |calls| calls[0].is_object())
        .await;
    let id = calls[0]["call"].as_str().unwrap();
    let call = world.get(&format!("/api/calls/{id}")).await;
    assert_eq!(call, calls[0]);
    assert_eq!(call["event"], "call_saved");
    assert_eq!(call["served_by"], "good");
    let attempts = &call["explanation"]["attempts"];
    assert_eq!(attempts.as_array().unwrap().len(), 1);
    assert_eq!(attempts[0]["target"], "bad");
    assert_eq!(attempts[0]["kind"], "ConnectionError");
    let steps = &call["explanation"]["steps"];
    let asked = |at: usize| (steps[at]["strategy"].clone(), steps[at]["verdict"].clone());
    assert_eq!(asked(0), (json!("stubborn"), json!("refused")));
    assert!(
        steps[0]["refusal"].as_str().unwrap().contains("nowhere"),
        "{steps}"
    );
    assert_eq!(asked(1), (json!("switch"), json!("taken")));
    assert_eq!(steps[1]["reason"], "another may do better");

    let answer = world.send(Method::GET, "/api/calls/c999999", &[], "").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let told: Value = answer.json().await.unwrap();
    assert!(
        told["error"].as_str().unwrap().contains("no call c999999"),
        "{told}"
    );
}

/// Reads a stream of events up to the first of a name.
async fn read_until(answer: Response, name: &str) -> Vec<Value> {
    let mut pieces = answer.bytes_stream();
    let (mut text, mut events) = (String::new(), Vec::new());
    let reading = async {
        loop {
            let piece = pieces.next().await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(&piece).unwrap());
            while let Some((event, rest)) = text.split_once("\n\n") {
                if let Some(data) = event.strip_prefix("data: ") {
                    events.push(serde_json::from_str::<Value>(data).unwrap());
                    if events.last().unwrap()["event"] == name {
                        return events;
                    }
                }
                text = rest.to_owned();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .unwrap()
}

#[tokio::test]
async fn events_are_told_as_they_happen_and_only_those_that_are_wanted() {
    let world = World::new(None).await;
    let all = world.send(Method::GET, "/api/events", &[], "").await;
    let path = "/api/events?only=call_saved,circuit_opened";
    let some = world.send(Method::GET, path, &[], "").await;
    world.call("g").await;
    let names = |events: &[Value]| -> Vec<String> {
        let name = |event: &Value| event["event"].as_str().unwrap().to_owned();
        events.iter().map(name).collect()
    };
    let all = names(&read_until(all, "call_saved").await);
    assert_eq!(
        all,
        [
            "attempt_failed",
            "action_refused",
            "fallback_taken",
            "call_saved"
        ]
    );
    assert_eq!(names(&read_until(some, "call_saved").await), ["call_saved"]);
}

#[tokio::test]
async fn a_listener_that_falls_behind_is_told_how_much_it_missed() {
    let world = World::new(None).await;
    let answer = world.send(Method::GET, "/api/events", &[], "").await;
    // More than the sockets in between hold.
    let source = "x".repeat(2_000);
    for _ in 0..40_000 {
        world.engine.announce(EventKind::ConfigApplied {
            source: source.clone(),
        });
    }
    let events = read_until(answer, "events_missed").await;
    assert!(events.last().unwrap()["count"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn what_one_request_may_take_is_bounded() {
    let world = World::new(None).await;
    let long = format!("{{\"for_ms\": 1{}}}", " ".repeat(70_000));
    let (status, told) = world.post("/api/targets/good/eject", &long).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{told}");
    for (body, path) in [
        ("{\"for_ms\": 0}", "eject"),
        ("{\"for_ms\": 86400001}", "eject"),
        ("{\"for_ms\": -1}", "eject"),
        ("{\"for_ms\": 18446744073709551616}", "eject"),
        ("{\"for\": 1}", "eject"),
        ("{\"for_ms\": 1}", "drain"),
        ("[1]", "drain"),
        ("{", "restore"),
    ] {
        let (status, told) = world.post(&format!("/api/targets/good/{path}"), body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}");
        assert!(told["error"].is_string(), "{told}");
    }
    for path in [
        "/api/targets/nobody/drain",
        "/api/targets/good/explode",
        "/api/strategies/nobody/disable",
        "/api/strategies/switch/explode",
    ] {
        let (status, told) = world.post(path, "").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert!(told["error"].is_string(), "{told}");
    }
    for path in [
        "/api/calls?limit=x",
        "/api/calls?limit=-1",
        "/api/changes?most=1",
        "/api/events?x=1",
    ] {
        let answer = world.send(Method::GET, path, &[], "").await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(
        world.get("/api/calls?limit=18446744073709551615").await,
        json!([])
    );
    assert_eq!(world.target("good").await["circuit"], "closed");
}

#[tokio::test]
async fn listeners_are_bounded_and_one_that_leaves_makes_room() {
    let world = World::new(None).await;
    let mut listening = Vec::new();
    loop {
        let answer = world.send(Method::GET, "/api/events", &[], "").await;
        if answer.status() != StatusCode::OK {
            assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
            break;
        }
        listening.push(answer);
        assert!(listening.len() <= 64);
    }
    assert_eq!(listening.len(), 64);
    listening.clear();
    for _ in 0..500 {
        // A connection that is gone is noticed when something is to be sent.
        world
            .engine
            .announce(EventKind::ConfigApplied { source: "x".into() });
        let answer = world.send(Method::GET, "/api/events", &[], "").await;
        if answer.status() == StatusCode::OK {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody makes room");
}

#[tokio::test]
async fn a_target_that_is_drained_gets_no_request_until_it_is_restored() {
    let world = World::new(None).await;
    assert_eq!(
        world.post("/api/targets/bad/drain", "").await.1,
        json!({ "changed": true })
    );
    assert_eq!(
        world.post("/api/targets/bad/drain", "{}").await.1,
        json!({ "changed": false })
    );
    for _ in 0..20 {
        assert_eq!(world.call("g").await.as_deref(), Some("good"));
    }
    let bad = world.target("bad").await;
    assert_eq!((&bad["held"], &bad["requests"]), (&json!(true), &json!(0)));
    let status = world.get("/api/status").await;
    assert_eq!(status["problems"][0]["severity"], "notice");
    // Not even as the last resort.
    world.post("/api/targets/good/drain", "").await;
    assert_eq!(world.call("g").await, None);
    let status = world.get("/api/status").await;
    assert_eq!(status["problems"][0]["severity"], "failing", "{status}");

    world.post("/api/targets/bad/restore", "").await;
    world.post("/api/targets/good/restore", "").await;
    assert_eq!(world.call("g").await.as_deref(), Some("good"));
    let bad = world.target("bad").await;
    assert_eq!(
        (&bad["held"], &bad["requests"], &bad["failures"]),
        (&json!(false), &json!(1), &json!(1))
    );
    let changes = world
        .until("/api/changes", |it| it.as_array().unwrap().len() >= 4)
        .await;
    let names: BTreeSet<&str> = changes
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert!(
        names.is_superset(&BTreeSet::from(["target_held", "target_released"])),
        "{names:?}"
    );
}

#[tokio::test]
async fn a_target_that_is_ejected_is_left_alone_for_as_long_as_was_said() {
    let world = World::new(None).await;
    let (status, _) = world
        .post("/api/targets/bad/eject", "{\"for_ms\": 60000}")
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(world.call("g").await.as_deref(), Some("good"));
    let bad = world.target("bad").await;
    assert_eq!(
        (&bad["circuit"], &bad["requests"]),
        (&json!("open"), &json!(0))
    );
    assert!((50_000..=60_000).contains(&bad["open_for_ms"].as_u64().unwrap()));
    assert!(bad["down_since"].is_u64());
    let problem = &world.get("/api/status").await["problems"][0];
    assert_eq!(problem["subject"], "target \"bad\"");
    assert!(
        problem["doing"]
            .as_str()
            .unwrap()
            .contains("calls go to \"good\""),
        "{problem}"
    );

    world.post("/api/targets/bad/restore", "").await;
    let bad = world.target("bad").await;
    assert_eq!(
        (&bad["circuit"], &bad["down_since"]),
        (&json!("closed"), &Value::Null)
    );
    let changes = world
        .until("/api/changes", |it| it.as_array().unwrap().len() >= 3)
        .await;
    let opened = changes
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["event"] == "circuit_opened");
    assert_eq!(opened.unwrap()["cause"], "operator");
}

#[tokio::test]
async fn a_strategy_that_is_disabled_is_not_asked_even_where_it_is_exchanged() {
    let world = World::new(None).await;
    let (status, told) = world.post("/api/strategies/switch/disable", "").await;
    assert_eq!((status, told), (StatusCode::OK, json!({ "changed": true })));
    assert_eq!(world.call("g").await, None);
    world
        .engine
        .strategies()
        .replace(Entry::native(Switch).unwrap());
    assert_eq!(world.call("g").await, None);
    let status = world.get("/api/status").await;
    let strategies = status["strategies"].as_array().unwrap();
    let switch = strategies.iter().find(|it| it["name"] == "switch").unwrap();
    assert_eq!(switch["enabled"], false);
    let told = |problem: &&Value| problem["subject"] == "strategy \"switch\"";
    assert!(
        status["problems"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| told(&it))
    );

    world.post("/api/strategies/switch/enable", "").await;
    assert_eq!(world.call("g").await.as_deref(), Some("good"));
}

/// The name of a metric in Prometheus' text format, as far as it is the same for all its series.
fn in_prometheus(name: &str) -> String {
    name.replace('.', "_")
}

#[tokio::test]
async fn every_metric_that_is_documented_is_there_once_there_is_something_to_tell() {
    let world = World::new(None).await;
    // Not so often that the circuit opens.
    for _ in 0..3 {
        world.call("g").await;
    }
    world.call("a group nobody knows").await;
    world
        .engine
        .strategies()
        .add(Entry::native(Panics).unwrap())
        .unwrap();
    world.call("g").await;
    world.post("/api/targets/bad/drain", "").await;
    assert_eq!(world.call("g").await.as_deref(), Some("good"));
    let text = world
        .send(Method::GET, "/metrics", &[], "")
        .await
        .text()
        .await
        .unwrap();
    for name in backstop::metrics::NAMES {
        // Native strategies are not quarantined: what is counted then is seen where plugins are.
        if name == backstop::metrics::STRATEGY_QUARANTINES {
            continue;
        }
        let name = in_prometheus(name);
        assert!(text.contains(&format!("\n{name}")), "{name} in\n{text}");
    }
    for line in [
        "backstop_attempts_total{group=\"g\",target=\"bad\",attempt_type=\"original\",outcome=\"ConnectionError\"}",
        "backstop_attempts_total{group=\"g\",target=\"good\",attempt_type=\"fallback\",outcome=\"ok\"}",
        "backstop_fallbacks_total{level=\"service\",strategy=\"switch\",from=\"bad\",to=\"good\",kind=\"ConnectionError\"}",
        "backstop_actions_refused_total{strategy=\"stubborn\",action=\"switch_target\"}",
        "backstop_strategy_faults_total{strategy=\"panics\",fault=\"trap\"}",
        "backstop_call_duration_seconds_bucket{group=\"g\",level=\"tool\",outcome=\"saved\",le=\"0.01\"}",
        "backstop_call_duration_seconds_count{group=\"g\",level=\"tool\",outcome=\"ok\"}",
        "backstop_call_duration_seconds_count{group=\"\",level=\"tool\",outcome=\"failed\"}",
        "backstop_circuit_state{group=\"g\",target=\"good\"} 0",
        "backstop_target_healthy{group=\"g\",target=\"good\"} 1",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(
        !text.contains("nobody knows"),
        "a name from outside is no label:\n{text}"
    );
    assert!(!text.contains("\"look\""), "an operation is no label");
}

struct Panics;

impl Strategy for Panics {
    fn info(&self) -> StrategyInfo {
        let mut info = StrategyInfo::new("panics", "service");
        info.default_priority = 500;
        info
    }
    fn condition(&self, _: &Situation) -> bool {
        panic!("on purpose")
    }
    fn action(&self, _: &Situation) -> Decision {
        unreachable!("its condition never returns")
    }
}

/// Labels whose names begin like those of metrics.
const LABELS: [&str; 2] = ["backstop_target", "mcp_method_name"];

/// The metrics an expression of PromQL asks for.
fn asked_for(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| word.starts_with("backstop_") || word.starts_with("mcp_"))
        .filter(|word| !LABELS.contains(word))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_metrics_there_are() {
    let dashboard = include_str!("../observability/dashboard.json");
    let _: Value = serde_json::from_str(dashboard).unwrap();
    let alerts = include_str!("../observability/alerts.yaml");
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mcp = [
        backstop_gateway::telemetry::SERVER_DURATION,
        backstop_gateway::telemetry::CLIENT_DURATION,
    ];
    for name in backstop::metrics::NAMES.into_iter().chain(mcp) {
        let name = in_prometheus(name);
        if name.ends_with("duration") {
            known.extend(["bucket", "sum", "count"].map(|part| format!("{name}_seconds_{part}")));
        } else if backstop::metrics::GAUGES
            .iter()
            .any(|gauge| in_prometheus(gauge) == name)
        {
            known.insert(name);
        } else {
            known.insert(format!("{name}_total"));
        }
    }
    for (file, text) in [("dashboard", dashboard), ("alerts", alerts)] {
        let asked = asked_for(text);
        assert!(asked.len() >= 5, "{file}: {asked:?}");
        let unknown: Vec<_> = asked.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} asks for {unknown:?}");
    }
}

/// Metrics add less than a microsecond to a healthy call even in a build without optimisation. For the
/// cost of a release build run it with `--release` and `--nocapture`: it prints both.
#[tokio::test]
async fn a_healthy_call_costs_hardly_more_where_it_is_counted() {
    metrics();
    let engine = |metrics: bool| {
        let builder = Engine::builder();
        let builder = if metrics { builder.metrics() } else { builder };
        let engine = builder.build().unwrap();
        engine
            .registry()
            .register(TargetSpec::service("only", "cost"))
            .unwrap();
        engine
    };
    let (with, without) = (engine(true), engine(false));
    let call = Call::new("cost", "look");
    const BATCH: u32 = 20;
    let batch = async |engine: &Engine| {
        let began = std::time::Instant::now();
        for _ in 0..BATCH {
            let done = engine.execute(call.clone(), |_| async { Ok::<_, std::io::Error>(()) });
            std::hint::black_box(done.await.unwrap());
        }
        began.elapsed().as_nanos() as i64 / i64::from(BATCH)
    };
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for _ in 0..2_000 {
        on.push(batch(&with).await);
        off.push(batch(&without).await);
    }
    // So short that most batches are not interrupted, whatever else the machine does.
    let median = |mut times: Vec<i64>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let (on, off) = (median(on), median(off));
    let more = on - off;
    #[allow(clippy::print_stderr, reason = "what it is run for")]
    {
        eprintln!("a healthy call: {off} ns, counted {on} ns, {more} ns more");
    }
    assert!(more < 1_000, "{more} ns more");
}

#[tokio::test]
async fn an_address_others_can_reach_is_refused_without_a_token() {
    let engine = Arc::new(Engine::builder().build().unwrap());
    for (address, token, allowed) in [
        ("0.0.0.0:1", None, false),
        ("192.168.0.1:1", None, false),
        ("[::]:1", None, false),
        ("[::1]:1", None, true),
        ("0.0.0.0:1", Some("token"), true),
    ] {
        let made = Admin::new(&engine, metrics(), address.parse().unwrap(), token);
        assert_eq!(made.is_ok(), allowed, "{address}");
    }
}
