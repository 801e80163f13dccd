//! The HTTP front and HTTP servers, down to the bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use backstop_gateway::HttpOptions;
use backstop_gateway::upstream::{Reread, TransportSpec};
use serde_json::{Value, json};
use support::{Seen, Wire, gateway, http, http_server, serve_http, serve_http_with, until};

/// An odd result: white space, an order, a number and fields no typed model would keep.
const ODD: &str = r#"{ "isError" : true , "vendor":{"n":1.50,"n2":[ ]},"content":[{"type":"text","text":"\u00e9","x":null}] }"#;

/// A server of the era with sessions that forgets its first session after one call.
#[derive(Clone, Default)]
struct Forgetful {
    sessions: Arc<AtomicU32>,
    calls: Arc<AtomicU32>,
}

async fn forgetful(State(state): State<Forgetful>, headers: HeaderMap, body: String) -> Response {
    let message: Value = serde_json::from_str(&body).unwrap();
    let Some(id) = message.get("id") else {
        return StatusCode::ACCEPTED.into_response();
    };
    let answer = |key: &str, value: &str| {
        (
            [("content-type", "application/json")],
            format!(r#"{{"jsonrpc":"2.0","id":{id},"{key}":{value}}}"#),
        )
            .into_response()
    };
    match message["method"].as_str().unwrap() {
        "initialize" => {
            let session = state.sessions.fetch_add(1, Ordering::SeqCst) + 1;
            let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": { "tools": {} },
                "serverInfo": { "name": "odd", "version": "1" } });
            let mut response = answer("result", &hello.to_string());
            response
                .headers_mut()
                .insert("mcp-session-id", session.to_string().parse().unwrap());
            response
        }
        "tools/list" => answer(
            "result",
            r#"{"tools":[{"name":"odd","inputSchema":{},"vendor" : 1.0},{"name":"cut","inputSchema":{}}]}"#,
        ),
        "tools/call" if message["params"]["name"] == "cut" => {
            let stream = "retry: 700\n\ndata: {\"jsonrpc\":\"2.0\",";
            ([("content-type", "text/event-stream")], stream).into_response()
        }
        "tools/call" => {
            let call = state.calls.fetch_add(1, Ordering::SeqCst) + 1;
            let session: u32 = headers["mcp-session-id"].to_str().unwrap().parse().unwrap();
            if call > 1 && session == 1 {
                return (StatusCode::NOT_FOUND, "who are you?").into_response();
            }
            answer(
                "result",
                if session == 1 {
                    ODD
                } else {
                    r#"{"content":[{"type":"text","text":"renewed"}]}"#
                },
            )
        }
        _ => answer("error", r#"{"code":-32601,"message":"no such method"}"#),
    }
}

async fn odd_server() -> (String, Forgetful) {
    let state = Forgetful::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let app = axum::Router::new()
        .route("/", axum::routing::post(forgetful))
        .with_state(state.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, state)
}

/// A server of the era without sessions that counts what it is asked, and refuses tools by their names.
async fn refusing_server() -> (String, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let answer = |State(asked): State<Arc<Mutex<Vec<String>>>>, body: String| async move {
        let message: Value = serde_json::from_str(&body).unwrap();
        let method = message["method"].as_str().unwrap().to_owned();
        asked.lock().unwrap().push(method.clone());
        let (key, value) = match (method.as_str(), message["params"]["name"].as_str()) {
            ("server/discover", _) => (
                "result",
                json!({ "supportedVersions": ["2026-07-28"], "capabilities": { "tools": {} } }),
            ),
            ("tools/list", _) => {
                let tools = ["-32601", "-32602", "-32020", "-32022"];
                let tools = tools.map(|name| json!({ "name": name, "inputSchema": {} }));
                ("result", json!({ "tools": tools }))
            }
            (_, code) => {
                let code: i64 = code.unwrap().parse().unwrap();
                ("error", json!({ "code": code, "message": "no" }))
            }
        };
        let answer = json!({ "jsonrpc": "2.0", "id": message["id"], key: value });
        ([("content-type", "application/json")], answer.to_string())
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let app = axum::Router::new()
        .route("/", axum::routing::post(answer))
        .with_state(asked.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, asked)
}

#[tokio::test]
async fn what_a_refusal_says_is_out_of_date_is_asked_for_again() {
    let (url, asked) = refusing_server().await;
    let gateway = gateway(vec![http("odd", &url)]);
    let mut wire = Wire::to(&gateway);
    let mut call = async |tool: &str| {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": tool } });
        let answer = wire.ask(&call.to_string()).await;
        assert_eq!(answer["error"]["code"].to_string(), tool, "{answer}");
        // A server that was greeted is also asked what it has, beside the calls.
        let mut seen = 0;
        while seen != asked.lock().unwrap().len() {
            seen = asked.lock().unwrap().len();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::mem::take(&mut *asked.lock().unwrap())
    };
    let greeted = call("-32602").await;
    assert_eq!(greeted[..2], ["server/discover", "tools/list"]);
    assert_eq!(call("-32602").await, ["tools/call"]);
    // The tool is not there, or not as it was described: the next call looks again.
    for code in ["-32601", "-32020"] {
        assert_eq!(call(code).await, ["tools/call"]);
        assert_eq!(call("-32602").await, ["tools/list", "tools/call"]);
    }
    // The version is not spoken any more: another one is agreed on.
    assert_eq!(call("-32022").await, ["tools/call"]);
    let mut greeted = call("-32602").await;
    greeted.retain(|method| method != "tools/list");
    assert_eq!(greeted, ["server/discover", "tools/call"]);
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_tools_own_error_arrives_byte_for_byte() {
    let (url, _) = odd_server().await;
    let gateway = gateway(vec![http("odd", &url)]);
    let mut wire = Wire::to(&gateway);
    wire.send(r#"{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{"name":"odd"}}"#)
        .await;
    assert_eq!(
        wire.line().await,
        format!(r#"{{"jsonrpc":"2.0","id":"x","result":{ODD}}}"#)
    );
    wire.send(r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#)
        .await;
    assert!(
        wire.line()
            .await
            .contains(r#"{"name":"odd","inputSchema":{},"vendor" : 1.0}"#)
    );
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_no_answer_and_its_server_is_left_alone_as_long_as_it_asked() {
    let (url, _) = odd_server().await;
    let gateway = gateway(vec![http("odd", &url)]);
    let mut wire = Wire::to(&gateway);
    let answer = wire
        .ask(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"cut"}}"#)
        .await;
    assert_eq!(answer["error"]["code"], -31002, "{answer}");
    let cause = &answer["error"]["data"]["cause"];
    assert_eq!(
        (&cause["kind"], &cause["ambiguous"], &cause["retry_after"]),
        (&json!("StreamInterrupted"), &json!(true), &json!(0.7))
    );
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_forgotten_session_is_made_anew_once_and_the_call_repeated_by_the_engine() {
    let (url, state) = odd_server().await;
    let gateway = gateway(vec![http("odd", &url)]);
    let mut wire = Wire::to(&gateway);
    let call = |id: u32| {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"odd"}}}}"#)
    };
    wire.ask(&call(0)).await;
    for id in 1..=8 {
        wire.send(&call(id)).await;
    }
    for _ in 1..=8 {
        let answer = wire.json().await;
        assert_eq!(
            answer["result"]["content"][0]["text"], "renewed",
            "{answer}"
        );
    }
    assert_eq!(state.sessions.load(Ordering::SeqCst), 2);
    gateway.shut_down().await;
}

/// A server of the era with sessions that lets its streams end early. `calls` counts what it was asked
/// to do, `events` has the ids it was asked to go on behind.
#[derive(Clone, Default)]
struct Polled {
    calls: Arc<AtomicU32>,
    events: Arc<Mutex<Vec<String>>>,
}

async fn polled(State(state): State<Polled>, body: String) -> Response {
    let message: Value = serde_json::from_str(&body).unwrap();
    let result = match message["method"].as_str().unwrap() {
        "initialize" => {
            json!({ "protocolVersion": "2025-11-25", "capabilities": { "tools": {} },
                "serverInfo": { "name": "polled", "version": "1" } })
        }
        "tools/list" => json!({ "tools": [{ "name": "poll", "inputSchema": {} }] }),
        "tools/call" => {
            state.calls.fetch_add(1, Ordering::SeqCst);
            let kind = message["params"]["arguments"]["kind"].as_str().unwrap();
            let beginning = format!("id: {kind}-{}\nretry: 30\ndata:\n\n", message["id"]);
            return ([("content-type", "text/event-stream")], beginning).into_response();
        }
        _ => return StatusCode::ACCEPTED.into_response(),
    };
    let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
    ([("content-type", "application/json")], answer.to_string()).into_response()
}

async fn taken_up(State(state): State<Polled>, headers: HeaderMap) -> Response {
    let Some(last) = headers.get("last-event-id") else {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    };
    let last = last.to_str().unwrap().to_owned();
    state.events.lock().unwrap().push(last.clone());
    let (kind, place) = last.split_once('-').unwrap();
    let events = match kind {
        "well" => format!("id: nearly-{place}\ndata: {{\"jsonrpc\": \"2.0\", cut o"),
        "nearly" => unreachable!("what is cut off does not count"),
        "again" => format!("id: soon-{place}\ndata:\n\n"),
        "soon" => format!(
            "data: {{\"jsonrpc\":\"2.0\",\"id\":{place},\"result\":{{\"content\":[]}}}}\n\n"
        ),
        "never" => ": still nothing\n\n".to_owned(),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    ([("content-type", "text/event-stream")], events).into_response()
}

#[tokio::test]
async fn a_stream_that_ends_early_is_taken_up_where_it_ended_and_nothing_asked_twice() {
    let state = Polled::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let app = axum::Router::new()
        .route("/", axum::routing::post(polled).get(taken_up))
        .with_state(state.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let gateway = gateway(vec![http("polled", &url)]);
    let mut wire = Wire::to(&gateway);
    let mut call = async |kind: &str| {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": { "name": "poll", "arguments": { "kind": kind } } });
        let began = std::time::Instant::now();
        let answer = wire.ask(&call.to_string()).await;
        let events = std::mem::take(&mut *state.events.lock().unwrap());
        assert_eq!(state.calls.swap(0, Ordering::SeqCst), 1, "{kind}");
        let kinds: Vec<_> = events
            .iter()
            .map(|id| id.split('-').next().unwrap().to_owned())
            .collect();
        // The server has said how long it wants to be left alone.
        assert!(began.elapsed() >= Duration::from_millis(30) * u32::try_from(kinds.len()).unwrap());
        (answer, kinds)
    };
    let (answer, events) = call("again").await;
    assert_eq!(answer["result"], json!({ "content": [] }), "{answer}");
    assert_eq!(events, ["again", "soon"]);

    // What may not be repeated has failed where the stream cannot be taken up, or brings nothing.
    for (kind, asked) in [("gone", 1), ("never", 4), ("well", 4)] {
        let (answer, events) = call(kind).await;
        assert_eq!(answer["error"]["code"], -31002, "{answer}");
        let cause = &answer["error"]["data"]["cause"];
        assert_eq!(cause["kind"], "StreamInterrupted", "{answer}");
        assert_eq!(events, vec![kind; asked], "{kind}");
    }
    gateway.shut_down().await;
}

async fn post(url: &str, headers: &[(&str, &str)], body: Value) -> reqwest::Response {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.post(url).header("content-type", "application/json");
    request = request.header("accept", "application/json, text/event-stream");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.to_string()).send().await.unwrap()
}

#[tokio::test]
async fn the_http_front_speaks_the_era_with_sessions() {
    let (url, _server) = http_server(Arc::default()).await;
    let gateway = gateway(vec![http("h", &url)]);
    let front = serve_http(&gateway).await;
    let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } } });
    let response = post(&front, &[], hello).await;
    let session = response.headers()["mcp-session-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let hello: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert_eq!(hello["result"]["protocolVersion"], "2025-11-25");
    assert!(
        hello["result"]["capabilities"]["tools"].is_object(),
        "{hello}"
    );

    let with = [("mcp-session-id", session.as_str())];
    let echo = json!({ "jsonrpc": "2.0", "id": "e", "method": "tools/call",
        "params": { "name": "echo", "arguments": { "text": "hi" } } });
    let response = post(&front, &with, echo.clone()).await;
    assert_eq!(response.headers()["content-type"], "application/json");
    assert!(response.text().await.unwrap().contains("hi"));

    let work = json!({ "jsonrpc": "2.0", "id": 3, "method": "tools/call",
        "params": { "name": "work", "_meta": { "progressToken": 9 } } });
    let response = post(&front, &with, work).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let events = response.text().await.unwrap();
    assert_eq!(events.matches("\"progressToken\":9").count(), 3, "{events}");
    assert!(
        events.trim_end().lines().last().unwrap().contains("worked"),
        "{events}"
    );

    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ended = client
        .delete(&front)
        .header("mcp-session-id", &session)
        .send()
        .await
        .unwrap();
    assert_eq!(ended.status(), 204);
    assert_eq!(post(&front, &with, echo).await.status(), 404);
    assert_eq!(client.get(&front).send().await.unwrap().status(), 405);
    gateway.shut_down().await;
}

#[tokio::test]
async fn the_http_front_speaks_the_era_without_sessions_and_checks_its_headers() {
    let (url, _server) = http_server(Arc::default()).await;
    let gateway = gateway(vec![http("h", &url)]);
    let front = serve_http(&gateway).await;
    let meta = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "t", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {} });
    let discover = json!({ "jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": { "_meta": meta } });
    let headers = [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "server/discover"),
    ];
    let answer: Value = serde_json::from_str(
        &post(&front, &headers, discover.clone())
            .await
            .text()
            .await
            .unwrap(),
    )
    .unwrap();
    assert_eq!(
        answer["result"]["supportedVersions"][0], "2026-07-28",
        "{answer}"
    );
    assert_eq!(answer["result"]["resultType"], "complete");

    let echo = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call",
        "params": { "name": "echo", "arguments": { "text": "hi" }, "_meta": meta } });
    let headers = [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "echo"),
    ];
    let answer: Value = serde_json::from_str(
        &post(&front, &headers, echo.clone())
            .await
            .text()
            .await
            .unwrap(),
    )
    .unwrap();
    assert_eq!(answer["result"]["content"][0]["text"], "hi", "{answer}");
    let lying = [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "other"),
    ];
    let response = post(&front, &lying, echo).await;
    assert_eq!(response.status(), 400);
    assert!(response.text().await.unwrap().contains("-32020"));
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_page_elsewhere_cannot_reach_the_gateway() {
    let gateway = gateway(vec![]);
    let front = serve_http(&gateway).await;
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    assert_eq!(
        post(&front, &[("origin", "https://evil.example")], ping.clone())
            .await
            .status(),
        403
    );
    assert_eq!(
        post(&front, &[("host", "evil.example")], ping.clone())
            .await
            .status(),
        403
    );
    assert_eq!(
        post(&front, &[("origin", "http://localhost:3000")], ping)
            .await
            .status(),
        200
    );
    gateway.shut_down().await;
}

/// HTTP/2 has no other place for it.
#[tokio::test]
async fn a_host_named_in_the_address_of_a_request_counts_as_well() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let gateway = gateway(vec![]);
    let front = serve_http(&gateway).await;
    let address = front[7..].split('/').next().unwrap();
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    for (host, status) in [("evil.example", "403"), (address, "200")] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST http://{host}/mcp HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    gateway.shut_down().await;
}

/// A server that lets in who knows the token of the day.
#[derive(Clone, Default)]
struct Locked {
    token: Arc<Mutex<String>>,
    refused: Arc<AtomicU32>,
}

async fn locked(State(state): State<Locked>, headers: HeaderMap, body: String) -> Response {
    let message: Value = serde_json::from_str(&body).unwrap();
    let token = headers
        .get("authorization")
        .map(|token| token.to_str().unwrap());
    if token != Some(&state.token.lock().unwrap()) {
        // Time for others to be refused as well.
        tokio::time::sleep(Duration::from_millis(50)).await;
        state.refused.fetch_add(1, Ordering::SeqCst);
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let result = match message["method"].as_str().unwrap() {
        "server/discover" => {
            json!({ "supportedVersions": ["2026-07-28"], "capabilities": { "tools": {} } })
        }
        "tools/list" => json!({ "tools": [{ "name": "t", "inputSchema": {} }] }),
        _ => json!({ "content": [] }),
    };
    let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
    ([("content-type", "application/json")], answer.to_string()).into_response()
}

#[tokio::test]
async fn a_token_that_was_exchanged_is_read_again_once_for_all_who_are_refused() {
    let state = Locked::default();
    *state.token.lock().unwrap() = "first".into();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let app = axum::Router::new()
        .route("/", axum::routing::post(locked))
        .with_state(state.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });

    let (file, reads) = (Arc::new(Mutex::new("first")), Arc::new(AtomicU32::new(0)));
    let known =
        |token: &str| HeaderMap::from_iter([(header::AUTHORIZATION, token.parse().unwrap())]);
    let mut spec = http("s", &url);
    let (held, counted) = (file.clone(), reads.clone());
    spec.transport = TransportSpec::Http {
        url: url.parse().unwrap(),
        headers: known("first"),
        oauth: None,
        reread: Some(Reread::new("the file", move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let token = *held.lock().unwrap();
            match token {
                "" => Err("it is gone".to_owned()),
                token => Ok(known(token)),
            }
        })),
    };
    let gateway = gateway(vec![spec]);
    let call = async || {
        let mut wire = Wire::to(&gateway);
        let call =
            json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "t" } });
        wire.ask(&call.to_string()).await
    };
    assert_eq!(call().await["result"], json!({ "content": [] }));
    assert_eq!(reads.load(Ordering::SeqCst), 0);

    *state.token.lock().unwrap() = "second".into();
    *file.lock().unwrap() = "second";
    let answers = futures_util::future::join_all((0..20).map(|_| call())).await;
    for answer in answers {
        let result = &answer["result"];
        assert_eq!(result["content"], json!([]), "{answer}");
        // What was sent twice is told, and was paid for.
        assert_eq!(result["_meta"]["backstop"]["attempts"], 2, "{answer}");
    }
    assert_eq!(state.refused.load(Ordering::SeqCst), 20);
    assert_eq!(reads.load(Ordering::SeqCst), 1);

    // What is refused although it is the newest is refused, after one more look, and not tried again.
    for (token, refused) in [("second", 21), ("", 22)] {
        *state.token.lock().unwrap() = "third".into();
        *file.lock().unwrap() = token;
        let answer = call().await;
        assert_eq!(
            answer["error"]["data"]["attempts"][0]["kind"], "Unauthorized",
            "{answer}"
        );
        assert_eq!(state.refused.load(Ordering::SeqCst), refused);
    }
    assert_eq!(reads.load(Ordering::SeqCst), 3);
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_call_whose_server_cannot_be_greeted_was_not_carried_out_and_goes_to_the_next() {
    let (good, _server) = http_server(Arc::default()).await;
    for broken in [StatusCode::BAD_GATEWAY, StatusCode::OK] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let page = move || async move { (broken, [("content-type", "text/html")], "<html>") };
        let app = axum::Router::new().route("/", axum::routing::post(page));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let gateway = gateway(vec![http("broken", &url), http("good", &good)]);
        // Nobody says that it may be called twice.
        let outcome = gateway.call_tool("pid", &Default::default()).await.unwrap();
        assert_eq!(outcome.served_by.as_deref(), Some("good"), "{broken}");
        assert_eq!(outcome.attempts(), 2, "{broken}");
        gateway.shut_down().await;
    }
}

#[tokio::test]
async fn a_session_left_unused_is_forgotten() {
    let gateway = gateway(vec![]);
    let options = HttpOptions {
        session_idle: std::time::Duration::from_millis(300),
        ..HttpOptions::default()
    };
    let front = serve_http_with(&gateway, options).await;
    let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {} });
    let session = post(&front, &[], hello).await.headers()["mcp-session-id"].clone();
    let session = [("mcp-session-id", session.to_str().unwrap())];
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    assert_eq!(post(&front, &session, ping.clone()).await.status(), 200);
    tokio::time::sleep(std::time::Duration::from_millis(900)).await;
    assert_eq!(post(&front, &session, ping).await.status(), 404);
    gateway.shut_down().await;
}

/// What nobody reads must not hold up what nobody waits for.
#[tokio::test]
async fn a_client_that_reads_nothing_does_not_hold_back_its_own_call() {
    let seen = Arc::new(Seen::default());
    let (url, _server) = http_server(seen.clone()).await;
    let gateway = gateway(vec![http("h", &url)]);
    let front = serve_http(&gateway).await;
    let work = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": { "name": "work", "_meta": { "progressToken": "t" } } });
    // The head has come, and the body is left where it is.
    let unread = post(&front, &[], work).await;
    until(|| seen.worked.load(Ordering::SeqCst) == 1).await;
    assert!(unread.text().await.unwrap().contains("worked"));
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_takes_its_call_with_it() {
    let seen = Arc::new(Seen::default());
    let (url, _server) = http_server(seen.clone()).await;
    let gateway = gateway(vec![http("h", &url)]);
    let front = serve_http(&gateway).await;
    let hang =
        json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "hang" } });
    let waiting = tokio::spawn(async move { post(&front, &[], hang).await });
    until(|| seen.started.load(Ordering::SeqCst) == 1).await;
    waiting.abort();
    until(|| seen.cancelled.load(Ordering::SeqCst) == 1).await;
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_group_that_never_answers_does_not_hold_up_another() {
    let (url, _server) = http_server(Arc::new(Seen::default())).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}/mcp", silent.local_addr().unwrap());
    let mut dead = http("dead", &silent_url);
    dead.group = "dead".into();
    let gateway = gateway(vec![http("good", &url), dead]);
    let began = std::time::Instant::now();
    let text = serde_json::Map::from_iter([("text".to_owned(), json!("hi"))]);
    for _ in 0..3 {
        gateway.call_tool("echo", &text).await.unwrap();
    }
    // The list of the dead group alone takes 10 s to be given up.
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}
