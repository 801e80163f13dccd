//! Servers that come, go, differ and fall ill, behind a gateway that is in use.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use backstop::config::Config;
use backstop::event::{Event, EventKind};
use backstop::health::Prober;
use backstop::registry::TargetSpec;
use backstop::strategy::{Action, Decision, Entry, Situation, Strategy, StrategyInfo};
use backstop::{Engine, Failure};
use backstop_gateway::model::ModelSpec;
use backstop_gateway::upstream::{ServiceSpec, TransportSpec};
use backstop_gateway::{Gateway, ToolCallError};
use rmcp::service::ServiceExt;
use serde_json::{Value, json};
use support::{Fixture, Wire, gateway, http, until};
use tokio::net::TcpListener;
use tokio::sync::broadcast;

/// Not a test: the child process the tests start.
#[tokio::test]
#[ignore = "the server of other tests"]
async fn child_server() {
    if std::env::var_os("BACKSTOP_TEST_CHILD").is_some() {
        let transport = rmcp::transport::io::stdio();
        let running = Fixture::default().serve(transport).await.unwrap();
        running.waiting().await.unwrap();
    }
}

/// A server that does what the test says.
#[derive(Default)]
struct Server {
    name: &'static str,
    tools: Mutex<Vec<Value>>,
    /// Speaks the era of sessions.
    legacy: AtomicBool,
    /// The status of every answer; 0 for 200.
    status: AtomicU16,
    /// How long a call takes, in milliseconds.
    delay: AtomicU32,
    calls: AtomicU32,
    seen: Mutex<Vec<String>>,
}

impl Server {
    async fn start(name: &'static str, tools: &[Value]) -> (Arc<Self>, String) {
        let server = Arc::new(Self {
            name,
            tools: Mutex::new(tools.to_vec()),
            ..Self::default()
        });
        let app = axum::Router::new()
            .fallback(axum::routing::any(answer))
            .with_state(server.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (server, url)
    }

    fn saw(&self, what: &str) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| *seen == what)
            .count()
    }
}

async fn answer(
    State(server): State<Arc<Server>>,
    method: axum::http::Method,
    uri: axum::http::Uri,
    body: axum::body::Bytes,
) -> Response {
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let name = asked["method"].as_str().unwrap_or_default().to_owned();
    let seen = if name.is_empty() {
        format!("{method} {uri}")
    } else {
        name.clone()
    };
    server.seen.lock().unwrap().push(seen);
    let status = server.status.load(Ordering::SeqCst);
    if status != 0 {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    let legacy = server.legacy.load(Ordering::SeqCst);
    let capabilities = json!({ "tools": {} });
    let result = match name.as_str() {
        "server/discover" if !legacy => json!({
            "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": capabilities,
        }),
        "initialize" if legacy => json!({
            "protocolVersion": "2025-11-25", "capabilities": capabilities,
            "serverInfo": { "name": "s", "version": "1" },
        }),
        "ping" if legacy => json!({}),
        "tools/list" => json!({ "tools": *server.tools.lock().unwrap() }),
        "tools/call" => {
            server.calls.fetch_add(1, Ordering::SeqCst);
            let delay = server.delay.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(delay.into())).await;
            json!({ "content": [{ "type": "text", "text": server.name }] })
        }
        "notifications/initialized" => return StatusCode::ACCEPTED.into_response(),
        "" => return as_json(json!({ "data": [] })),
        _ => {
            let error = json!({ "code": -32601, "message": "no such method" });
            let text = json!({ "jsonrpc": "2.0", "id": asked["id"], "error": error });
            return as_json(text);
        }
    };
    let mut response = as_json(json!({ "jsonrpc": "2.0", "id": asked["id"], "result": result }));
    if name == "initialize" {
        let session = axum::http::HeaderValue::from_static("s");
        response.headers_mut().insert("mcp-session-id", session);
    }
    response
}

fn as_json(value: Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}

fn tool(name: &str, required: &str) -> Value {
    let schema = json!({ "type": "object", "required": [required] });
    json!({ "name": name, "inputSchema": schema, "annotations": { "readOnlyHint": true } })
}

fn targets(services: &[ServiceSpec]) -> Vec<TargetSpec> {
    (0..)
        .zip(services)
        .map(|(place, service)| {
            TargetSpec::service(service.name.clone(), service.group.clone()).priority(-place)
        })
        .collect()
}

async fn call(gateway: &Gateway, tool: &str) -> Result<String, ToolCallError> {
    let outcome = gateway.call_tool(tool, &serde_json::Map::new()).await?;
    let result: Value = serde_json::from_slice(outcome.answer.payload.as_bytes()).unwrap();
    Ok(result["content"][0]["text"].as_str().unwrap().to_owned())
}

/// Waits for the next event of a kind.
async fn event<T>(
    events: &mut broadcast::Receiver<Arc<Event>>,
    wanted: impl Fn(&EventKind) -> Option<T>,
) -> T {
    let waited = async {
        loop {
            if let Some(found) = wanted(&events.recv().await.unwrap().what) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited)
        .await
        .expect("the event")
}

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

/// A client that has introduced itself.
async fn client(gateway: &Gateway, capabilities: Value) -> Wire {
    let mut wire = Wire::to(gateway);
    let hello = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": capabilities,
        "clientInfo": { "name": "c", "version": "1" } } });
    let greeted = wire.ask(&hello.to_string()).await;
    let capabilities = &greeted["result"]["capabilities"];
    assert_eq!(capabilities["tools"]["listChanged"], true, "{greeted}");
    wire
}

/// Asks every server once, so that its tools are known.
async fn survey(gateway: &Gateway, names: &[&str]) {
    let prober = gateway.prober().unwrap();
    for name in names {
        let target = gateway.engine().registry().get(name).unwrap();
        prober.probe(&target).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_taken_out_finishes_its_work_and_gets_no_more() {
    let tools = [tool("t", "a")];
    let (old, old_url) = Server::start("old", &tools).await;
    let (new, new_url) = Server::start("new", &tools).await;
    let gateway = gateway(vec![http("old", &old_url)]);
    old.delay.store(400, Ordering::SeqCst);
    let slow = {
        let gateway = gateway.clone();
        tokio::spawn(async move { call(&gateway, "t").await })
    };
    until(|| old.calls.load(Ordering::SeqCst) == 1).await;
    let services = vec![http("new", &new_url)];
    gateway
        .replace(targets(&services), services, Vec::new())
        .unwrap();
    for _ in 0..5 {
        assert_eq!(call(&gateway, "t").await.unwrap(), "new");
    }
    assert_eq!(slow.await.unwrap().unwrap(), "old");
    assert_eq!(old.calls.load(Ordering::SeqCst), 1);
    assert_eq!(new.calls.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn servers_that_come_and_go_under_load_cost_no_call() {
    let tools = [tool("t", "a")];
    let (_one, one) = Server::start("one", &tools).await;
    let (_two, two) = Server::start("two", &tools).await;
    let gateway = gateway(vec![http("one", &one)]);
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let (gateway, stop) = (gateway.clone(), stop.clone());
            tokio::spawn(async move {
                let mut made = 0;
                while !stop.load(Ordering::SeqCst) {
                    let answer = call(&gateway, "t").await.expect("an answer");
                    assert!(["one", "two"].contains(&answer.as_str()));
                    made += 1;
                }
                made
            })
        })
        .collect();
    let sets = [
        vec![http("one", &one), http("two", &two)],
        vec![http("two", &two)],
        vec![http("two", &two), http("one", &one)],
        vec![http("one", &one)],
    ];
    for services in sets.iter().cycle().take(40) {
        gateway
            .replace(targets(services), services.clone(), Vec::new())
            .unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let mut made = 0;
    for caller in callers {
        made += caller.await.unwrap();
    }
    assert!(made > 40, "{made} calls");
}

#[tokio::test]
async fn a_tool_that_only_some_members_have_is_asked_of_them_alone() {
    let (one, one_url) = Server::start("one", &[tool("common", "a")]).await;
    let both = [tool("common", "a"), tool("extra", "a")];
    let (_two, two_url) = Server::start("two", &both).await;
    let gateway = gateway(vec![http("one", &one_url), http("two", &two_url)]);
    survey(&gateway, &["one", "two"]).await;
    until(|| one.saw("tools/list") > 0).await;
    // The second may be heard later than the first.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while gateway.tools().await.unwrap().len() < 2 {
        assert!(tokio::time::Instant::now() < deadline);
    }
    assert_eq!(call(&gateway, "extra").await.unwrap(), "two");
    assert_eq!(call(&gateway, "common").await.unwrap(), "one");
    assert_eq!(one.calls.load(Ordering::SeqCst), 1);
}

/// Proposes one target by name, whatever the host thinks of it.
struct Insist(&'static str);

impl Strategy for Insist {
    fn info(&self) -> StrategyInfo {
        StrategyInfo::new("insist", "service")
    }
    fn condition(&self, _: &Situation) -> bool {
        true
    }
    fn action(&self, _: &Situation) -> Decision {
        let target = Some(self.0.into());
        let target_kind = None;
        Action::SwitchTarget {
            target,
            target_kind,
        }
        .into()
    }
}

#[tokio::test]
async fn a_member_whose_tool_is_another_one_is_reported_and_not_switched_to() {
    let (one, one_url) = Server::start("one", &[tool("t", "a")]).await;
    let (two, two_url) = Server::start("two", &[tool("t", "b")]).await;
    let services = vec![http("one", &one_url), http("two", &two_url)];
    let engine = Engine::builder().build().unwrap();
    for target in targets(&services) {
        engine.registry().register(target).unwrap();
    }
    let insist = Entry::native(Insist("two")).unwrap();
    engine.strategies().add(insist).unwrap();
    let mut events = engine.subscribe();
    let gateway = Gateway::new(engine, Default::default(), services).unwrap();
    survey(&gateway, &["one", "two"]).await;
    let differs = event(&mut events, |what| match what {
        EventKind::ToolDiffers {
            tool,
            shown,
            other,
            part,
            ..
        } => Some((tool.clone(), shown.to_string(), other.to_string(), *part)),
        _ => None,
    });
    let expected = (
        "t".to_owned(),
        "one".to_owned(),
        "two".to_owned(),
        "inputSchema",
    );
    assert_eq!(differs.await, expected);

    one.status.store(503, Ordering::SeqCst);
    let Err(ToolCallError::Failed(failed)) = call(&gateway, "t").await else {
        panic!("nobody else could answer");
    };
    let trouble = serde_json::to_string(&failed.error).unwrap();
    let reason = "its inputSchema is not that of one, which callers know";
    assert!(trouble.contains(reason), "{trouble}");
    assert_eq!(two.calls.load(Ordering::SeqCst), 0);

    // The operator may know better.
    gateway.set_mixed_schemas(true);
    assert_eq!(call(&gateway, "t").await.unwrap(), "two");
}

#[tokio::test]
async fn clients_are_told_when_a_server_comes_back_with_other_tools() {
    let (one, url) = Server::start("one", &[tool("before", "a")]).await;
    let gateway = gateway(vec![http("one", &url)]);
    let mut wire = client(&gateway, json!({})).await;
    assert_eq!(wire.ask(LIST).await["result"]["tools"][0]["name"], "before");
    // It is exchanged for one of the other era.
    one.legacy.store(true, Ordering::SeqCst);
    *one.tools.lock().unwrap() = vec![tool("after", "a")];
    survey(&gateway, &["one"]).await;
    let told = wire.json().await;
    assert_eq!(told["method"], "notifications/tools/list_changed");
    assert_eq!(wire.ask(LIST).await["result"]["tools"][0]["name"], "after");
}

#[tokio::test]
async fn a_client_with_connections_of_its_own_follows_the_servers_that_come_and_go() {
    let (one, one_url) = Server::start("one", &[tool("a", "x")]).await;
    let (two, two_url) = Server::start("two", &[tool("b", "x")]).await;
    for server in [&one, &two] {
        server.legacy.store(true, Ordering::SeqCst);
    }
    let gateway = gateway(vec![http("one", &one_url)]);
    // What a client offers is what gives it connections of its own.
    let mut wire = client(&gateway, json!({ "roots": {} })).await;
    assert_eq!(wire.ask(LIST).await["result"]["tools"][0]["name"], "a");
    assert_eq!(one.saw("initialize"), 2, "the shared one and its own");

    let services = vec![http("two", &two_url)];
    gateway
        .replace(targets(&services), services, Vec::new())
        .unwrap();
    let told = wire.json().await;
    assert_eq!(told["method"], "notifications/tools/list_changed");
    assert_eq!(wire.ask(LIST).await["result"]["tools"][0]["name"], "b");
    let call = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"b"}}"#;
    let answer = wire.ask(call).await;
    assert_eq!(answer["result"]["content"][0]["text"], "two");
    assert_eq!(two.saw("initialize"), 1, "only its own is needed");
    // Both connections to the one that left end, although the client is still there.
    until(|| one.saw("DELETE /mcp") == 2).await;
    assert_eq!(two.saw("DELETE /mcp"), 0);
}

async fn probe(gateway: &Gateway, name: &str) -> Result<(), Failure> {
    let prober = gateway.prober().unwrap();
    let target = gateway.engine().registry().get(name).unwrap();
    assert!(prober.covers(&target));
    prober.probe(&target).await
}

#[tokio::test]
async fn each_era_is_probed_in_its_own_way_and_never_out_of_a_store() {
    let (server, url) = Server::start("s", &[]).await;
    let gateway = gateway(vec![http("s", &url)]);
    for _ in 0..3 {
        probe(&gateway, "s").await.unwrap();
    }
    assert_eq!(server.saw("server/discover"), 3);
    // The server is exchanged for an older one: it is greeted anew, and pinged from then on.
    server.legacy.store(true, Ordering::SeqCst);
    probe(&gateway, "s").await.unwrap();
    assert_eq!(server.saw("initialize"), 1);
    for _ in 0..3 {
        probe(&gateway, "s").await.unwrap();
    }
    assert_eq!(server.saw("ping"), 3);
    // A server that refuses is there, and one that is busy is not ill.
    for status in [401, 403, 429] {
        server.status.store(status, Ordering::SeqCst);
        probe(&gateway, "s").await.unwrap();
    }
    server.status.store(503, Ordering::SeqCst);
    let failure = probe(&gateway, "s").await.unwrap_err();
    assert_eq!(failure.http_status, Some(503));
}

#[tokio::test]
async fn other_targets_are_asked_in_the_way_that_says_most() {
    let (server, url) = Server::start("s", &[]).await;
    let base = url.trim_end_matches("/mcp").to_owned();
    let text = format!("[[model]]\nname = 'm'\nbase_url = '{base}/v1'\n");
    let config = Config::parse(&text, std::path::Path::new("t.toml"), &|_| None).config;
    let model = ModelSpec::from_config(&config.models[0], &|_| None).unwrap();
    let gateway = gateway(Vec::new());
    let gateway = gateway
        .with_models(vec![model], config.completion.clone())
        .unwrap();
    let registry = gateway.engine().registry();
    registry.register(config.models[0].target(&config)).unwrap();
    let given = TargetSpec::model("given", "models").url(format!("{base}/v1"));
    registry
        .register(given.health_url(format!("{base}/live")))
        .unwrap();
    let other = base.replace("http:", "tcp:");
    registry
        .register(TargetSpec::service("other", "o").url(other))
        .unwrap();

    probe(&gateway, "m").await.unwrap();
    assert_eq!(server.saw("GET /v1/models"), 1);
    probe(&gateway, "given").await.unwrap();
    assert_eq!(server.saw("GET /live"), 1);
    // No page says that the health URL is wrong, and nothing about a model.
    server.status.store(404, Ordering::SeqCst);
    probe(&gateway, "m").await.unwrap();
    probe(&gateway, "given").await.unwrap_err();
    server.status.store(500, Ordering::SeqCst);
    probe(&gateway, "m").await.unwrap_err();
    probe(&gateway, "other").await.unwrap();

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let gone = TargetSpec::service("gone", "o").url(format!("tcp://{address}"));
    registry.register(gone).unwrap();
    let failure = probe(&gateway, "gone").await.unwrap_err();
    assert!(
        failure.message.to_lowercase().contains("refused"),
        "{failure}"
    );
    let nowhere = registry
        .register(TargetSpec::service("nowhere", "o"))
        .unwrap();
    assert!(!gateway.prober().unwrap().covers(&nowhere));
}

/// Waits until probes find a server well.
async fn well(gateway: &Gateway, name: &str) {
    let waited = async {
        while probe(gateway, name).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited)
        .await
        .expect("a sign of life");
}

/// A child process that ends at once until the file is there.
fn unready(flag: &std::path::Path) -> ServiceSpec {
    let program = std::env::current_exe().unwrap();
    let script = format!(
        "test -e '{}' || {{ echo 'the licence is missing' >&2; exit 3; }}; \
         exec '{}' --ignored --exact child_server --nocapture",
        flag.display(),
        program.display()
    );
    let transport = TransportSpec::Stdio {
        command: "sh".into(),
        args: vec!["-c".into(), script],
        env: BTreeMap::from([("BACKSTOP_TEST_CHILD".into(), "1".into())]),
        cwd: None,
    };
    ServiceSpec {
        name: "child".into(),
        group: "g".into(),
        trusted: true,
        transport,
    }
}

#[tokio::test]
async fn a_process_that_keeps_ending_is_reported_and_never_given_up() {
    let flag = std::env::temp_dir().join(format!("backstop-flag-{}", std::process::id()));
    let _ = std::fs::remove_file(&flag);
    let gateway = gateway(vec![unready(&flag)]);
    let mut events = gateway.engine().subscribe();
    assert!(call(&gateway, "pid").await.is_err());
    let crash = |what: &EventKind| match what {
        EventKind::TargetCrashing {
            target,
            starts,
            stderr,
            again_after,
            ..
        } => Some((target.to_string(), *starts, stderr.clone(), *again_after)),
        _ => None,
    };
    // Nobody calls meanwhile.
    let (target, first, stderr, again) = event(&mut events, crash).await;
    assert_eq!((target.as_str(), first), ("child", 3));
    assert_eq!(stderr, ["the licence is missing"]);
    assert!(again <= Duration::from_secs(36), "{again:?}");
    let (_, second, ..) = event(&mut events, crash).await;
    assert!(second > first);
    std::fs::write(&flag, "").unwrap();
    well(&gateway, "child").await;
    let pid = call(&gateway, "pid").await.unwrap();
    // And a sound one that ends is started again before anybody asks.
    let status = std::process::Command::new("kill")
        .args(["-9", &pid])
        .status()
        .unwrap();
    assert!(status.success());
    until(|| !std::path::Path::new(&format!("/proc/{pid}")).exists()).await;
    well(&gateway, "child").await;
    let again = call(&gateway, "pid").await.unwrap();
    assert_ne!(pid, again);
    let _ = std::fs::remove_file(&flag);
    gateway.shut_down().await;
}
