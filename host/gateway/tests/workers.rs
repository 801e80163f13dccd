//! A gateway whose connections are served on threads of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use backstop_gateway::{Gateway, Workers};
use rmcp::ServiceExt;
use serde_json::{Value, json};
use support::{Fixture, Seen, child, gateway, http, http_server, serve_http, until};

fn on_two_threads(gateway: Gateway) -> Gateway {
    let threads = NonZeroUsize::new(2).unwrap();
    gateway.use_workers(Workers::start(threads).unwrap());
    gateway
}

fn call(id: u64, tool: &str, arguments: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call",
        "params": { "name": tool, "arguments": arguments } })
}

async fn post(url: &str, message: &Value) -> Value {
    let request = reqwest::Client::new()
        .post(url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(message.to_string());
    let text = request.send().await.unwrap().text().await.unwrap();
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
}

/// Not a test: the server the tests start as a child process.
#[tokio::test]
#[ignore = "a server for the tests, started by them"]
async fn child_server() {
    if std::env::var_os("BACKSTOP_TEST_CHILD").is_some() {
        let running = Fixture::default()
            .serve(rmcp::transport::io::stdio())
            .await
            .unwrap();
        running.waiting().await.unwrap();
    }
}

/// Sends calls of several clients at once, each of them more than one, and checks who gets what.
async fn each_client_gets_its_own_answers(gateway: Gateway) {
    let front = serve_http(&gateway).await;
    let clients = (0..16_u64).map(|client| {
        let front = front.clone();
        tokio::spawn(async move {
            for turn in 0..4 {
                let id = client * 10 + turn;
                let text = format!("of {id}");
                let answer = post(&front, &call(id, "echo", json!({ "text": text }))).await;
                assert_eq!(answer["id"], id, "{answer}");
                assert_eq!(answer["result"]["content"][0]["text"], text, "{answer}");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    gateway.shut_down().await;
}

#[tokio::test]
async fn clients_on_several_threads_get_their_own_answers_of_a_server_over_http() {
    let (url, _server) = http_server(Arc::new(Seen::default())).await;
    let gateway = on_two_threads(gateway(vec![http("h", &url)]));
    each_client_gets_its_own_answers(gateway).await;
}

#[tokio::test]
async fn clients_on_several_threads_get_their_own_answers_of_a_child_process() {
    each_client_gets_its_own_answers(on_two_threads(gateway(vec![child("c")]))).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_takes_its_call_with_it_from_thread_to_thread() {
    let seen = Arc::new(Seen::default());
    let (url, _server) = http_server(seen.clone()).await;
    let gateway = on_two_threads(gateway(vec![http("h", &url)]));
    let front = serve_http(&gateway).await;
    let hang = call(1, "hang", json!({}));
    let waiting = tokio::spawn(async move { post(&front, &hang).await });
    until(|| seen.started.load(Ordering::SeqCst) == 1).await;
    waiting.abort();
    until(|| seen.cancelled.load(Ordering::SeqCst) == 1).await;
    gateway.shut_down().await;
}

#[tokio::test]
async fn the_front_waits_for_its_connections_on_all_threads_when_it_ends() {
    let (url, _server) = http_server(Arc::new(Seen::default())).await;
    let gateway = on_two_threads(gateway(vec![http("h", &url)]));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = format!("http://{}/mcp", listener.local_addr().unwrap());
    let serving = gateway.clone();
    let options = backstop_gateway::HttpOptions::default();
    let served = tokio::spawn(async move { serving.serve_http(listener, options).await });
    // Both connections are kept open by their clients.
    let clients = [reqwest::Client::new(), reqwest::Client::new()];
    for client in &clients {
        let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
        let asked = client.post(&front).body(ping.to_string()).send().await;
        assert!(asked.unwrap().text().await.unwrap().contains("result"));
    }
    gateway.shut_down().await;
    served.await.unwrap().unwrap();
    assert!(clients[0].get(&front).send().await.is_err());
}
