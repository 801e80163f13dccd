//! What one client says, hears and is asked is nobody else's, and nothing of it is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout)]

mod support;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::BufRead as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use backstop::registry::TargetSpec;
use backstop_gateway::upstream::TransportSpec;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use support::{Wire, child, gateway, http, serve_http};
use tokio::sync::{broadcast, oneshot};

const URI: &str = "note:1";

fn hello() -> Value {
    json!({ "protocolVersion": "2025-11-25", "serverInfo": { "name": "talker", "version": "1" },
        "capabilities": { "tools": { "listChanged": true }, "resources": { "subscribe": true }, "logging": {} } })
}

fn question(id: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": "elicitation/create",
        "params": { "message": "who?", "vendor": 1.5, "_meta": { "progressToken": "the server's" } } })
}

fn text(text: impl ToString) -> Value {
    json!({ "content": [{ "type": "text", "text": text.to_string() }] })
}

/// Not a test: a server of the era with sessions that has much to say.
#[test]
#[ignore = "the server of other tests"]
fn child_server() {
    if std::env::var_os("BACKSTOP_TEST_CHILD").is_none() {
        return;
    }
    let (mut subscribed, mut unsubscribed, mut roots, mut greeting) = (0, 0, 0, Value::Null);
    let mut lines = std::io::stdin().lock().lines();
    let mut next = move || -> Option<Value> {
        let line = lines.next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap())
    };
    let tell = |method: &str, params: Value| {
        println!(
            "{}",
            json!({ "jsonrpc": "2.0", "method": method, "params": params })
        );
    };
    while let Some(message) = next() {
        let id = message["id"].clone();
        let result = match message["method"].as_str().unwrap_or_default() {
            "initialize" => {
                greeting = message["params"].clone();
                hello()
            }
            "notifications/roots/list_changed" => {
                roots += 1;
                continue;
            }
            "tools/list" => json!({ "tools": [] }),
            "resources/subscribe" => {
                subscribed += 1;
                json!({})
            }
            "resources/unsubscribe" => {
                unsubscribed += 1;
                json!({})
            }
            "logging/setLevel" => json!({}),
            "tools/call" => match message["params"]["name"].as_str().unwrap() {
                "ask" => {
                    println!("{}", question("q"));
                    let answer = loop {
                        let Some(said) = next() else { return };
                        if said["method"] == "notifications/cancelled" {
                            break None;
                        }
                        if said["id"] == "q" {
                            break Some(said);
                        }
                    };
                    match answer {
                        Some(answer) => text(answer),
                        None => continue,
                    }
                }
                "log" => {
                    for level in ["debug", "error"] {
                        tell(
                            "notifications/message",
                            json!({ "level": level, "data": "a secret" }),
                        );
                    }
                    text("logged")
                }
                "touch" => {
                    tell("notifications/resources/updated", json!({ "uri": URI }));
                    tell("notifications/tools/list_changed", json!({ "vendor": 1 }));
                    text("touched")
                }
                "counts" => text(format!("{subscribed} {unsubscribed} {roots}")),
                "greeting" => text(&greeting),
                other => panic!("{other}"),
            },
            _ if id.is_null() => continue,
            _ => {
                println!(
                    "{}",
                    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32601, "message": "no" } })
                );
                continue;
            }
        };
        println!(
            "{}",
            json!({ "jsonrpc": "2.0", "id": id, "result": result })
        );
    }
}

/// A client that has introduced itself.
async fn client(gateway: &backstop_gateway::Gateway, capabilities: Value) -> Wire {
    let mut wire = Wire::to(gateway);
    let greeted = wire
        .ask(&request(
            "hi",
            "initialize",
            json!({ "protocolVersion": "2025-11-25",
                "capabilities": capabilities, "clientInfo": { "name": "c", "version": "7" } }),
        ))
        .await;
    assert_eq!(greeted["id"], "hi", "{greeted}");
    wire
}

fn request(id: &str, method: &str, params: Value) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string()
}

fn call(id: &str, tool: &str) -> String {
    request(id, "tools/call", json!({ "name": tool }))
}

fn said(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
}

/// The next thing a client hears is the answer to a question of its own: nothing else came.
async fn heard_nothing(wire: &mut Wire) {
    let next = wire.ask(&request("nothing", "ping", json!({}))).await;
    assert_eq!(next["id"], "nothing", "{next}");
}

async fn counts(wire: &mut Wire) -> String {
    said(&wire.ask(&call("n", "counts")).await).to_owned()
}

#[tokio::test]
async fn a_question_reaches_the_client_whose_call_it_is_and_the_answer_comes_back() {
    let gateway = gateway(vec![child("c")]);
    let mut clients = Vec::new();
    for name in ["Ada", "Bob"] {
        let mut wire = client(&gateway, json!({ "elicitation": {} })).await;
        wire.send(&call("1", "ask")).await;
        clients.push((name, wire));
    }
    for (name, wire) in clients.iter_mut().rev() {
        let asked = wire.json().await;
        assert_eq!(asked["method"], "elicitation/create", "{asked}");
        assert_eq!(asked["params"]["vendor"], 1.5);
        let given = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": { "action": "accept", "content": { "n": name } } });
        let answer = wire.ask(&given.to_string()).await;
        assert!(said(&answer).contains(*name), "{answer}");
    }
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_server_is_greeted_in_the_words_of_the_client_that_can_be_asked() {
    let gateway = gateway(vec![child("c")]);
    let mut wire = client(&gateway, json!({ "sampling": { "vendor": true } })).await;
    let greeting = wire.ask(&call("1", "greeting")).await;
    let greeting: Value = serde_json::from_str(said(&greeting)).unwrap();
    assert_eq!(
        greeting["capabilities"],
        json!({ "sampling": { "vendor": true } })
    );
    assert_eq!(greeting["clientInfo"]["version"], "7");
    wire.send(r#"{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}"#)
        .await;
    assert_eq!(counts(&mut wire).await, "0 0 1");
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_client_that_has_offered_nothing_is_asked_nothing() {
    let gateway = gateway(vec![child("c")]);
    for capabilities in [json!({}), json!({ "roots": {} })] {
        let mut wire = client(&gateway, capabilities).await;
        let answer = wire.ask(&call("1", "ask")).await;
        assert!(said(&answer).contains("-32601"), "{answer}");
    }
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_question_is_taken_back_with_the_call_it_belongs_to() {
    let gateway = gateway(vec![child("c")]);
    let mut wire = client(&gateway, json!({ "elicitation": {} })).await;
    wire.send(&call("1", "ask")).await;
    let asked = wire.json().await;
    let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": "1" } });
    let taken_back = wire.ask(&cancel.to_string()).await;
    assert_eq!(
        taken_back["method"], "notifications/cancelled",
        "{taken_back}"
    );
    assert_eq!(taken_back["params"]["requestId"], asked["id"]);
    assert_eq!(
        counts(&mut wire).await,
        "0 0 0",
        "the server goes on with other calls"
    );
    gateway.shut_down().await;
}

#[tokio::test]
async fn what_is_logged_during_a_call_is_for_its_client_alone_and_as_much_as_it_wants() {
    let gateway = gateway(vec![child("c")]);
    let mut silent = client(&gateway, json!({})).await;
    let mut sparing = client(&gateway, json!({ "roots": {} })).await;
    let mut all = client(&gateway, json!({})).await;
    for (wire, level) in [(&mut sparing, "error"), (&mut all, "debug")] {
        let set = wire
            .ask(&request("l", "logging/setLevel", json!({ "level": level })))
            .await;
        assert_eq!(set["result"], json!({}), "{set}");
    }
    let set = silent
        .ask(&request(
            "l",
            "logging/setLevel",
            json!({ "level": "loud" }),
        ))
        .await;
    assert_eq!(set["error"]["code"], -32602, "{set}");
    for (wire, expected) in [
        (&mut all, &["debug", "error"][..]),
        (&mut sparing, &["error"]),
    ] {
        wire.send(&call("1", "log")).await;
        for level in expected {
            let message = wire.json().await;
            assert_eq!(message["method"], "notifications/message", "{message}");
            assert_eq!(message["params"]["level"], *level);
        }
        assert_eq!(wire.json().await["id"], "1");
    }
    for wire in [&mut silent, &mut sparing, &mut all] {
        heard_nothing(wire).await;
    }
    gateway.shut_down().await;
}

#[tokio::test]
async fn one_client_ends_its_watching_and_another_goes_on_being_told() {
    let gateway = gateway(vec![child("c")]);
    let mut first = client(&gateway, json!({})).await;
    let mut second = client(&gateway, json!({})).await;
    let mut third = client(&gateway, json!({})).await;
    for wire in [&mut first, &mut second] {
        let done = wire
            .ask(&request("s", "resources/subscribe", json!({ "uri": URI })))
            .await;
        assert_eq!(done["result"], json!({}), "{done}");
    }
    assert_eq!(counts(&mut third).await, "1 0 0");
    let end = request("u", "resources/unsubscribe", json!({ "uri": URI }));
    first.ask(&end).await;
    assert_eq!(counts(&mut third).await, "1 0 0");

    third.send(&call("t", "touch")).await;
    let told = second.json().await;
    assert_eq!(told["method"], "notifications/resources/updated", "{told}");
    for wire in [&mut first, &mut second] {
        let told = wire.json().await;
        assert_eq!(told["method"], "notifications/tools/list_changed", "{told}");
        assert_eq!(told["params"]["vendor"], 1);
        heard_nothing(wire).await;
    }
    // The last one leaves without a word.
    drop(second);
    let ended = async {
        loop {
            third.send(&call("n", "counts")).await;
            let answer = third.json().await;
            if answer["id"] == "n" && said(&answer) == "1 1 0" {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended)
        .await
        .expect("the server is not told that nobody watches any more");
    gateway.shut_down().await;
}

#[tokio::test]
async fn what_is_watched_stays_so_where_its_server_is_reached_in_another_way() {
    let gateway = gateway(vec![child("c")]);
    let mut sharing = client(&gateway, json!({})).await;
    let mut owning = client(&gateway, json!({ "roots": {} })).await;
    for wire in [&mut sharing, &mut owning] {
        let watch = request("s", "resources/subscribe", json!({ "uri": URI }));
        assert_eq!(wire.ask(&watch).await["result"], json!({}));
    }
    let mut elsewhere = child("c");
    if let TransportSpec::Stdio { env, .. } = &mut elsewhere.transport {
        env.insert("ANOTHER".into(), "process".into());
    }
    let target = TargetSpec::service("c", "g");
    gateway
        .replace(vec![target], vec![elsewhere], Vec::new())
        .unwrap();
    for wire in [&mut sharing, &mut owning] {
        let asked_anew = async {
            loop {
                // News of the lists may come between.
                let answer = wire.ask(&call("n", "counts")).await;
                if answer["id"] == "n" && said(&answer) == "1 0 0" {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), asked_anew)
            .await
            .expect("the new process is not asked");
        wire.send(&call("t", "touch")).await;
        let mut told = wire.json().await;
        while told["method"] != "notifications/resources/updated" {
            told = wire.json().await;
        }
        wire.ask(&request(
            "u",
            "resources/unsubscribe",
            json!({ "uri": URI }),
        ))
        .await;
        let ended = async {
            loop {
                wire.send(&call("n", "counts")).await;
                let answer = wire.json().await;
                if answer["id"] == "n" && said(&answer) == "1 1 0" {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended)
            .await
            .expect("the new process is not told that nobody watches any more");
    }
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_client_of_the_newest_era_listens_to_a_server_of_the_older() {
    let gateway = gateway(vec![child("c")]);
    let mut wire = Wire::to(&gateway);
    let mut worker = client(&gateway, json!({})).await;
    let listen = request(
        "sub",
        "subscriptions/listen",
        json!({ "_meta": { "io.modelcontextprotocol/protocolVersion": "2026-07-28" },
            "notifications": { "promptsListChanged": true, "resourceSubscriptions": [URI] } }),
    );
    let told = wire.ask(&listen).await;
    assert_eq!(
        told["method"], "notifications/subscriptions/acknowledged",
        "{told}"
    );
    // The server has no prompts, and nothing is said of tools that was not asked for.
    assert_eq!(
        told["params"]["notifications"],
        json!({ "resourceSubscriptions": [URI] })
    );
    worker.send(&call("t", "touch")).await;
    let told = wire.json().await;
    assert_eq!(told["method"], "notifications/resources/updated", "{told}");
    assert_eq!(
        told["params"],
        json!({ "uri": URI, "_meta": { "io.modelcontextprotocol/subscriptionId": "sub" } })
    );
    heard_nothing(&mut wire).await;
    gateway.shut_down().await;
}

/// A server over HTTP that asks over the stream of a call, and tells over the stream of a `GET`.
#[derive(Clone)]
struct Talker {
    news: broadcast::Sender<String>,
    waiting: Arc<Mutex<HashMap<String, oneshot::Sender<Value>>>>,
    sessions: Arc<Mutex<Vec<String>>>,
}

fn events(stream: impl futures_util::Stream<Item = String> + Send + 'static) -> Response {
    let body = stream.map(|text| Ok::<_, Infallible>(format!("data: {text}\n\n")));
    (
        [(header::CONTENT_TYPE, "text/event-stream")],
        Body::from_stream(body),
    )
        .into_response()
}

async fn talk(
    State(talker): State<Talker>,
    method: Method,
    headers: HeaderMap,
    body: String,
) -> Response {
    let session = headers
        .get("mcp-session-id")
        .map(|id| id.to_str().unwrap().to_owned());
    if method == Method::DELETE {
        return StatusCode::OK.into_response();
    }
    if method == Method::GET {
        let news = talker.news.subscribe();
        return events(futures_util::stream::unfold(news, |mut news| async {
            Some((news.recv().await.ok()?, news))
        }));
    }
    let message: Value = serde_json::from_str(&body).unwrap();
    let id = message["id"].clone();
    let answer =
        |result: Value| json!({ "jsonrpc": "2.0", "id": id, "result": result }).to_string();
    match message["method"].as_str() {
        None => {
            // An answer to a question: in the session it was asked in, or it is lost.
            let key = format!("{} {}", session.unwrap(), message["id"]);
            let waiting = talker.waiting.lock().unwrap().remove(&key);
            waiting.unwrap().send(message).unwrap();
            StatusCode::ACCEPTED.into_response()
        }
        Some("initialize") => {
            let mut sessions = talker.sessions.lock().unwrap();
            let session = format!("s{}", sessions.len());
            sessions.push(session.clone());
            let head = [
                ("mcp-session-id", session),
                ("content-type", "application/json".into()),
            ];
            (head, answer(hello())).into_response()
        }
        Some("tools/call") => {
            let (reply, replied) = oneshot::channel();
            let key = format!("{} \"q\"", session.unwrap());
            talker.waiting.lock().unwrap().insert(key, reply);
            let last = answer(json!({}));
            let rest = futures_util::stream::once(async move {
                let reply = replied.await.unwrap();
                let mut last: Value = serde_json::from_str(&last).unwrap();
                last["result"] = text(reply);
                last.to_string()
            });
            let first = futures_util::stream::iter([question("q").to_string()]);
            events(first.chain(rest))
        }
        Some(_) if id.is_null() => StatusCode::ACCEPTED.into_response(),
        Some(_) => (
            [("content-type", "application/json")],
            json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32601, "message": "no" } })
                .to_string(),
        )
            .into_response(),
    }
}

async fn talker() -> (String, Talker) {
    let talker = Talker {
        news: broadcast::channel(8).0,
        waiting: Arc::default(),
        sessions: Arc::default(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let app = axum::Router::new()
        .route("/", axum::routing::any(talk))
        .with_state(talker.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, talker)
}

#[tokio::test]
async fn questions_and_news_of_a_server_over_http_arrive() {
    let (url, talker) = talker().await;
    let gateway = gateway(vec![http("h", &url)]);
    let mut ada = client(&gateway, json!({ "elicitation": {} })).await;
    let mut bob = client(&gateway, json!({ "elicitation": {} })).await;
    for wire in [&mut ada, &mut bob] {
        wire.send(&call("1", "ask")).await;
    }
    for (name, wire) in [("Bob", &mut bob), ("Ada", &mut ada)] {
        let asked = wire.json().await;
        assert_eq!(asked["method"], "elicitation/create", "{asked}");
        assert_ne!(asked["params"]["_meta"]["progressToken"], "the server's");
        let given = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": { "name": name } });
        let answer = wire.ask(&given.to_string()).await;
        assert!(said(&answer).contains(name), "{answer}");
    }
    // One session for all who offer nothing, and one for each who can be asked.
    assert_eq!(talker.sessions.lock().unwrap().len(), 3);
    support::until(|| talker.news.receiver_count() == 3).await;
    let news = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
    talker.news.send(news.into()).unwrap();
    for wire in [&mut ada, &mut bob] {
        assert_eq!(
            wire.json().await["method"],
            "notifications/tools/list_changed"
        );
        heard_nothing(wire).await;
    }
    drop(ada);
    // Its session's stream ends with the client.
    support::until(|| talker.news.receiver_count() == 2).await;
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_client_over_http_is_asked_on_the_stream_of_its_call() {
    let (url, _talker) = talker().await;
    let gateway = gateway(vec![http("h", &url)]);
    let front = serve_http(&gateway).await;
    let web = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = |session: Option<String>, body: Value| {
        let mut request = web.post(&front).header("content-type", "application/json");
        request = request.header("accept", "application/json, text/event-stream");
        if let Some(session) = session {
            request = request.header("mcp-session-id", session);
        }
        request.body(body.to_string()).send()
    };
    let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": { "protocolVersion": "2025-11-25",
        "capabilities": { "elicitation": {} }, "clientInfo": { "name": "c", "version": "1" } } });
    let greeted = post(None, hello).await.unwrap();
    let session = greeted.headers()["mcp-session-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let ask =
        json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": { "name": "ask" } });
    let mut response = post(Some(session.clone()), ask).await.unwrap();
    let event = response.chunk().await.unwrap().unwrap();
    let event = String::from_utf8(event.to_vec()).unwrap();
    let asked: Value =
        serde_json::from_str(event.split_once("data: ").unwrap().1.trim_end()).unwrap();
    assert_eq!(asked["method"], "elicitation/create", "{asked}");
    let given = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": { "name": "Cleo" } });
    assert_eq!(post(Some(session), given).await.unwrap().status(), 202);
    let rest = response.text().await.unwrap();
    assert!(rest.contains("Cleo"), "{rest}");
    gateway.shut_down().await;
}
