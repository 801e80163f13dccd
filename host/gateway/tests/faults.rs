//! Faults on the wire between the gateway and a real server, while many clients call: nobody gets a
//! wrong answer or another's, nobody is stuck, and nothing that may not be repeated is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout)]

mod support;

use std::io::{BufRead as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backstop::budget::BudgetPolicy;
use backstop::detect::jsonrpc::REMEDY;
use backstop::registry::TargetSpec;
use backstop::strategy::{Action, Decision, Entry, Situation, Strategy, StrategyInfo};
use backstop::{Engine, Kind, Settings};
use backstop_gateway::Gateway;
use backstop_gateway::upstream::{ServiceSpec, TransportSpec};
use serde_json::{Value, json};
use support::{Seen, Wire, child, http, http_server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const CLIENTS: u32 = 50;
/// Calls of each client.
const CALLS: u32 = 3;
/// How long one attempt may be silent: nothing else notices a stall.
const SILENCE: Duration = Duration::from_secs(2);

/// What goes wrong with the answer to a call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wrong {
    /// The connection is reset in the middle.
    Reset,
    /// Nothing more comes, and the connection stays.
    Stall,
    /// The connection is closed in the middle.
    Truncation,
    /// The server's half of the connection is closed in the middle, the other stays open.
    HalfClosed,
    /// It says that it is a page.
    ContentType,
    /// It is another: the server knows no such session.
    NoSession,
}

/// A way to a server on which the answer to every second call comes to grief.
async fn faulty(server: &str, wrong: Wrong) -> (String, Arc<AtomicU32>) {
    let address = server.strip_prefix("http://").unwrap();
    let (address, path) = address.split_once('/').unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/{path}", listener.local_addr().unwrap());
    let calls = Arc::new(AtomicU32::new(0));
    let (address, counted) = (address.to_owned(), calls.clone());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&address).await.unwrap();
            tokio::spawn(carry(client, server, wrong, counted.clone()));
        }
    });
    (url, calls)
}

async fn carry(mut client: TcpStream, mut server: TcpStream, wrong: Wrong, calls: Arc<AtomicU32>) {
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut is_call = false;
    loop {
        let read = tokio::select! {
            Ok(read @ 1..) = client.read(&mut asked) => {
                is_call |= String::from_utf8_lossy(&asked[..read]).contains("tools/call");
                if server.write_all(&asked[..read]).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(read @ 1..) = server.read(&mut answered) => read,
            else => return,
        };
        let bytes = &answered[..read];
        let call = match std::mem::take(&mut is_call) {
            true => calls.fetch_add(1, Ordering::SeqCst),
            false => 1,
        };
        if !call.is_multiple_of(2) {
            if client.write_all(bytes).await.is_err() {
                return;
            }
            continue;
        }
        // Well in the middle, or just before the end.
        let middle = if call % 4 == 0 { read / 2 } else { read - 3 };
        match wrong {
            Wrong::ContentType => {
                let text = String::from_utf8_lossy(bytes);
                let page = text.replacen("application/json", "text/html", 1).replacen(
                    "text/event-stream",
                    "text/html",
                    1,
                );
                if client.write_all(page.as_bytes()).await.is_err() {
                    return;
                }
                continue;
            }
            Wrong::NoSession => {
                let refusal =
                    "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = client.write_all(refusal.as_bytes()).await;
                return;
            }
            _ => {}
        }
        let _ = client.write_all(&bytes[..middle]).await;
        match wrong {
            Wrong::Reset => client.set_zero_linger().unwrap(),
            Wrong::HalfClosed => client.shutdown().await.unwrap(),
            _ => {}
        }
        if matches!(wrong, Wrong::HalfClosed | Wrong::Stall) {
            // Until the other side gives up on it.
            while let Ok(1..) = client.read(&mut asked).await {}
        }
        return;
    }
}

/// Asks the same server once more for what it has certainly not done, else goes to the next.
struct Recover;

impl Strategy for Recover {
    fn info(&self) -> StrategyInfo {
        StrategyInfo::new("recover", "service")
    }
    fn condition(&self, situation: &Situation) -> bool {
        situation.failure.retryable
    }
    fn action(&self, situation: &Situation) -> Decision {
        let failure = &situation.failure;
        let agreed_anew = failure.detail(REMEDY) == Some("renegotiate");
        if agreed_anew || failure.kind == Kind::SESSION_EXPIRED {
            let delay = Some(Duration::ZERO);
            return Action::Retry { delay }.into();
        }
        let (target, target_kind) = (None, None);
        Action::SwitchTarget {
            target,
            target_kind,
        }
        .into()
    }
}

/// A gateway over these services, the first preferred, which notices silence soon and may repeat as
/// often as it takes.
fn gateway(services: Vec<ServiceSpec>) -> Gateway {
    let mut settings = Settings::default();
    settings.deadlines.attempt = SILENCE;
    let budget = BudgetPolicy::Ratio {
        ttl: Duration::from_secs(10),
        reserve_per_second: 1000,
        ratio: 1.0,
    };
    let engine = Engine::builder()
        .settings(settings)
        .budget(budget)
        .build()
        .unwrap();
    for (place, service) in (0..).zip(&services) {
        let spec = TargetSpec::service(service.name.clone(), service.group.clone());
        engine.registry().register(spec.priority(-place)).unwrap();
    }
    let recover = Entry::native(Recover).unwrap();
    engine.strategies().add(recover).unwrap();
    Gateway::new(engine, Default::default(), services).unwrap()
}

/// A client that has introduced itself. One that offers something has connections of its own.
async fn client(gateway: &Gateway, capabilities: Value) -> Wire {
    let mut wire = Wire::to(gateway);
    let hello = json!({ "jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": capabilities,
        "clientInfo": { "name": "c", "version": "1" } } });
    answer(&mut wire, &hello).await;
    wire
}

/// Sends a request and waits for its answer, which must be the next there is.
async fn answer(wire: &mut Wire, request: &Value) -> Value {
    wire.send(&request.to_string()).await;
    loop {
        // It panics where nothing comes.
        let message = wire.json().await;
        if message.get("id").is_some() {
            assert_eq!(message["id"], request["id"], "another's answer: {message}");
            return message;
        }
    }
}

fn call(id: &str, tool: &str, arguments: Value) -> Value {
    let meta = json!({ "progressToken": id });
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call",
        "params": { "name": tool, "arguments": arguments, "_meta": meta } })
}

/// What came of one client's calls.
#[derive(Debug, Default)]
struct Tally {
    right: u32,
    failed: u32,
}

/// Many clients call `echo` at the same time. An answer is the right one, or an error of the gateway's
/// own that says what was tried.
async fn echoes(gateway: &Gateway, capabilities: fn(u32) -> Value) -> Tally {
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let gateway = gateway.clone();
        clients.spawn(async move {
            let mut wire = client(&gateway, capabilities(number)).await;
            let mut tally = Tally::default();
            for turn in 0..CALLS {
                let text = format!("call {turn} of client {number}");
                let echo = call(&text, "echo", json!({ "text": text }));
                let answer = answer(&mut wire, &echo).await;
                if let Some(error) = answer.get("error") {
                    assert!(error["data"]["attempts"].is_array(), "{answer}");
                    tally.failed += 1;
                } else {
                    assert_eq!(answer["result"]["content"][0]["text"], *text, "{answer}");
                    tally.right += 1;
                }
            }
            tally
        });
    }
    let mut all = Tally::default();
    while let Some(tally) = clients.join_next().await {
        let tally = tally.unwrap();
        all.right += tally.right;
        all.failed += tally.failed;
    }
    assert_eq!(all.right + all.failed, CLIENTS * CALLS);
    all
}

/// Half of the clients share the connections, half have their own.
fn every_second(number: u32) -> Value {
    match number % 2 {
        0 => json!({}),
        _ => json!({ "roots": {} }),
    }
}

fn each(_: u32) -> Value {
    json!({ "roots": {} })
}

#[tokio::test]
async fn whatever_happens_to_an_answer_on_its_way_another_server_gives_the_right_one() {
    let seen = Arc::new(Seen::default());
    let (server, _guard) = http_server(seen).await;
    for wrong in [
        Wrong::Reset,
        Wrong::Stall,
        Wrong::Truncation,
        Wrong::HalfClosed,
        Wrong::ContentType,
        Wrong::NoSession,
    ] {
        let (url, calls) = faulty(&server, wrong).await;
        let gateway = gateway(vec![http("faulty", &url), http("sound", &server)]);
        // Sessions are what only clients of the older era have.
        let capabilities = match wrong {
            Wrong::NoSession => each,
            _ => every_second,
        };
        let tally = echoes(&gateway, capabilities).await;
        let calls = calls.load(Ordering::SeqCst);
        assert!(calls >= CLIENTS / 4, "{wrong:?}: only {calls} calls");
        assert_eq!(tally.failed, 0, "{wrong:?}: {tally:?}");
        gateway.shut_down().await;
    }
}

#[tokio::test]
async fn without_another_server_a_call_is_answered_or_its_failure_told() {
    let seen = Arc::new(Seen::default());
    let (server, _guard) = http_server(seen).await;
    for wrong in [Wrong::Reset, Wrong::Truncation, Wrong::ContentType] {
        let (url, calls) = faulty(&server, wrong).await;
        let gateway = gateway(vec![http("faulty", &url)]);
        let tally = echoes(&gateway, every_second).await;
        assert!(calls.load(Ordering::SeqCst) > 0);
        assert!(tally.right > 0 && tally.failed > 0, "{wrong:?}: {tally:?}");
        gateway.shut_down().await;
    }
}

#[tokio::test]
async fn what_may_not_be_repeated_is_done_once_at_most_and_its_fate_is_told() {
    for wrong in [Wrong::Reset, Wrong::Truncation, Wrong::HalfClosed] {
        let seen = Arc::new(Seen::default());
        let (server, _guard) = http_server(seen.clone()).await;
        let (url, _) = faulty(&server, wrong).await;
        let gateway = gateway(vec![http("faulty", &url), http("sound", &server)]);
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let gateway = gateway.clone();
            clients.spawn(async move {
                let mut wire = client(&gateway, every_second(number)).await;
                let work = call(&format!("work {number}"), "work", json!({}));
                answer(&mut wire, &work).await
            });
        }
        let (mut done, mut unknown) = (0, 0);
        for answer in clients.join_all().await {
            if answer["result"]["content"][0]["text"] == "worked" {
                done += 1;
            } else {
                let text = answer["error"]["message"].as_str().unwrap_or_default();
                assert!(text.contains("outcome unknown"), "{wrong:?}: {answer}");
                unknown += 1;
            }
        }
        assert!(unknown > 0, "{wrong:?}: no call came to grief");
        assert_eq!(done + unknown, CLIENTS);
        let worked = seen.worked.load(Ordering::SeqCst);
        assert!(
            (done..=CLIENTS).contains(&worked),
            "{wrong:?}: {done} of {CLIENTS} were told of {worked}"
        );
        gateway.shut_down().await;
    }
}

/// Not a test: a server over standard input and output that does what `BACKSTOP_TEST_CHILD` says.
#[test]
#[ignore = "the server of other tests"]
fn child_server() {
    let Ok(mode) = std::env::var("BACKSTOP_TEST_CHILD") else {
        return;
    };
    let (mut calls, mut greetings, mut last) = (0, 0, String::new());
    for line in std::io::stdin().lock().lines() {
        let message: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let Some(id) = message.get("id") else {
            continue;
        };
        let params = &message["params"];
        let method = message["method"].as_str().unwrap();
        // A server that goes over to the older era while it runs.
        let changed = mode == "changeling" && calls >= 20;
        let is_modern = mode == "changeling" && !changed;
        let speaks_modern = params["_meta"]["io.modelcontextprotocol/protocolVersion"].is_string();
        let (key, value) = match method {
            "server/discover" if is_modern => (
                "result",
                json!({ "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": { "tools": {} } }),
            ),
            "initialize" if !is_modern => {
                greetings += 1;
                let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": { "tools": {} },
                    "serverInfo": { "name": "s", "version": "1" } });
                ("result", hello)
            }
            "tools/call" | "tools/list" if changed && speaks_modern => (
                "error",
                json!({ "code": -32022, "message": "no such version", "data": { "supported": ["2025-11-25"] } }),
            ),
            "tools/list" => {
                let tool = |name| json!({ "name": name, "inputSchema": { "type": "object" }, "annotations": { "readOnlyHint": true } });
                (
                    "result",
                    json!({ "tools": [tool("echo"), tool("greetings")] }),
                )
            }
            "tools/call" => {
                calls += 1;
                let text = match params["name"].as_str().unwrap() {
                    "echo" => params["arguments"]["text"].clone(),
                    _ => json!(format!("{greetings} in {}", std::process::id())),
                };
                (
                    "result",
                    json!({ "content": [{ "type": "text", "text": text }] }),
                )
            }
            _ => ("error", json!({ "code": -32601, "message": "no" })),
        };
        let answer = json!({ "jsonrpc": "2.0", "id": id, key: value }).to_string();
        if mode == "noisy" && method == "tools/call" {
            println!("{{\"jsonrpc\": oh no");
            println!("{last}");
            println!(
                "{}",
                json!({ "jsonrpc": "2.0", "id": 1_000_000, "result": {} })
            );
            if calls == 40 {
                print!("{}", &answer[..answer.len() / 2]);
                std::io::stdout().flush().unwrap();
                std::process::exit(1);
            }
        }
        println!("{answer}");
        last = answer;
    }
}

fn process(name: &str, mode: &str) -> ServiceSpec {
    let mut spec = child(name);
    if let TransportSpec::Stdio { env, .. } = &mut spec.transport {
        env.insert("BACKSTOP_TEST_CHILD".into(), mode.into());
    }
    spec
}

#[tokio::test]
async fn a_process_that_talks_nonsense_and_ends_in_the_middle_of_a_line_mixes_nothing_up() {
    let gateway = gateway(vec![process("noisy", "noisy"), process("quiet", "quiet")]);
    let tally = echoes(&gateway, |_| json!({})).await;
    assert_eq!(tally.failed, 0, "{tally:?}");
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_process_that_goes_over_to_another_version_is_agreed_with_anew_and_not_restarted() {
    let gateway = gateway(vec![process("one", "changeling")]);
    let mut wire = client(&gateway, json!({})).await;
    let ask = async |wire: &mut Wire| {
        let told = answer(wire, &call("g", "greetings", json!({}))).await;
        let told = told["result"]["content"][0]["text"].as_str().unwrap();
        let (greetings, process) = told.split_once(" in ").unwrap();
        (greetings.to_owned(), process.to_owned())
    };
    let (greetings, before) = ask(&mut wire).await;
    assert_eq!(greetings, "0", "it is of the newest era");
    let tally = echoes(&gateway, |_| json!({})).await;
    assert_eq!(tally.failed, 0, "{tally:?}");
    let (greetings, after) = ask(&mut wire).await;
    assert_eq!(greetings, "1", "all clients are served by one greeting");
    assert_eq!(before, after, "the process went on");
    gateway.shut_down().await;
}
