//! The gateway over a real child process, and over real streamable HTTP, with a client on lines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rmcp::model::CallToolRequestParams;
use rmcp::service::ServiceExt;
use serde_json::json;
use support::{Fixture, Seen, Wire, child, gateway, http, http_server, until};

/// Not a test: the child process the tests start.
#[tokio::test]
#[ignore = "the server of other tests"]
async fn child_server() {
    if std::env::var_os("BACKSTOP_TEST_CHILD").is_some() {
        eprintln!("a line for the log");
        let running = Fixture::default()
            .serve(rmcp::transport::io::stdio())
            .await
            .unwrap();
        running.waiting().await.unwrap();
    }
}

fn call(id: &str, tool: &str, arguments: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}"#
    )
}

#[tokio::test]
async fn an_rmcp_client_lists_and_calls_through_the_gateway() {
    let gateway = gateway(vec![child("c")]);
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (input, output) = tokio::io::split(theirs);
    let front = gateway.clone();
    tokio::spawn(async move { front.serve_stream(input, output).await });
    let client = ().serve(ours).await.unwrap();
    let tools = client.list_all_tools().await.unwrap();
    assert!(tools.iter().any(|tool| tool.name == "echo"));
    let arguments = json!({ "text": "hi" }).as_object().cloned().unwrap();
    let answer = client
        .call_tool(CallToolRequestParams::new("echo").with_arguments(arguments))
        .await
        .unwrap();
    assert_eq!(answer.content[0].as_text().unwrap().text, "hi");
    gateway.shut_down().await;
}

#[tokio::test]
async fn errors_and_ids_of_every_shape_come_back_as_they_are() {
    let gateway = gateway(vec![child("c")]);
    let mut wire = Wire::to(&gateway);
    let refused = wire.ask(&call(r#""a\u0041\"""#, "refuse", "{}")).await;
    assert_eq!(refused["id"], "aA\"");
    assert_eq!(
        refused["error"],
        json!({ "code": 7, "message": "not today", "data": { "vendor": [1, 2] } })
    );
    let failed = wire.ask(&call("-5", "fail", "{}")).await;
    assert_eq!(failed["id"], -5);
    assert_eq!(failed["result"]["isError"], true);
    assert!(failed["result"]["_meta"]["backstop"].is_null());
    assert_eq!(
        wire.ask(r#"{"jsonrpc":"2.0","id":1,"method":"no/such"}"#)
            .await["error"]["code"],
        -32601
    );
    assert_eq!(wire.ask("{broken").await["error"]["code"], -32700);
    assert_eq!(wire.ask("[]").await["error"]["code"], -32600);
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_slow_call_holds_no_other_back_and_can_be_taken_back() {
    let seen = Arc::new(Seen::default());
    let (url, _server) = http_server(seen.clone()).await;
    let gateway = gateway(vec![http("h", &url)]);
    let mut wire = Wire::to(&gateway);
    wire.send(&call("\"slow\"", "hang", "{}")).await;
    until(|| seen.started.load(Ordering::SeqCst) == 1).await;
    for id in 0..20 {
        wire.send(&call(
            &id.to_string(),
            "echo",
            &json!({ "text": format!("t{id}") }).to_string(),
        ))
        .await;
    }
    for _ in 0..20 {
        let answer = wire.json().await;
        assert_eq!(
            answer["result"]["content"][0]["text"],
            format!("t{}", answer["id"])
        );
    }
    wire.send(
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"slow"}}"#,
    )
    .await;
    until(|| seen.cancelled.load(Ordering::SeqCst) == 1).await;
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_child_hears_of_a_call_taken_back_and_works_on() {
    let gateway = gateway(vec![child("c")]);
    let mut wire = Wire::to(&gateway);
    wire.ask(&call("1", "echo", r#"{"text":"x"}"#)).await;
    wire.send(&call("2", "hang", "{}")).await;
    wire.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}"#)
        .await;
    assert_eq!(
        wire.ask(&call("3", "echo", r#"{"text":"y"}"#)).await["result"]["content"][0]["text"],
        "y"
    );
    gateway.shut_down().await;
}

#[tokio::test]
async fn progress_comes_back_under_the_clients_own_token() {
    let (url, _server) = http_server(Arc::default()).await;
    for service in [child("s"), http("s", &url)] {
        let gateway = gateway(vec![service]);
        let mut wire = Wire::to(&gateway);
        for id in [1, 2] {
            wire.send(
                &json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call",
                    "params": { "name": "work", "_meta": { "progressToken": format!("token {id}") } } })
                .to_string(),
            )
            .await;
        }
        let (mut progress, mut answers) = (Vec::new(), 0);
        while answers < 2 {
            let message = wire.json().await;
            if message["method"] == "notifications/progress" {
                progress.push((
                    message["params"]["progressToken"].to_string(),
                    message["params"]["progress"].to_string(),
                ));
            } else {
                assert_eq!(
                    message["result"]["content"][0]["text"], "worked",
                    "{message}"
                );
                answers += 1;
            }
        }
        progress.sort();
        assert_eq!(progress.len(), 6, "{progress:?}");
        assert_eq!(progress[0].0, "\"token 1\"");
        assert_eq!(progress[5].0, "\"token 2\"");
        gateway.shut_down().await;
    }
}

#[tokio::test]
async fn a_child_that_dies_during_a_call_that_must_not_be_repeated_leaves_the_outcome_unknown_and_is_started_again()
 {
    let gateway = gateway(vec![child("c"), child("d")]);
    let mut wire = Wire::to(&gateway);
    let died = wire.ask(&call("1", "exit", "{}")).await;
    assert_eq!(died["error"]["code"], -31002, "{died}");
    assert_eq!(died["error"]["data"]["attempts"][0]["target"], "c");
    let again = wire.ask(&call("2", "echo", r#"{"text":"back"}"#)).await;
    assert_eq!(again["result"]["content"][0]["text"], "back", "{again}");
    gateway.shut_down().await;
}

#[tokio::test]
async fn another_server_answers_for_one_that_refuses_connections_and_the_answer_says_so() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", closed.local_addr().unwrap());
    drop(closed);
    let (good, _server) = http_server(Arc::default()).await;
    let gateway = gateway(vec![http("bad", &url), http("good", &good)]);
    let mut wire = Wire::to(&gateway);
    let answer = wire.ask(&call("1", "echo", r#"{"text":"x"}"#)).await;
    assert_eq!(answer["result"]["content"][0]["text"], "x", "{answer}");
    assert_eq!(answer["result"]["_meta"]["backstop"]["served_by"], "good");
    assert_eq!(answer["result"]["_meta"]["backstop"]["attempts"], 2);
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_line_that_is_no_message_is_passed_over() {
    let gateway = gateway(vec![child("c")]);
    let mut wire = Wire::to(&gateway);
    for id in 1..=2 {
        let answer = wire.ask(&call(&id.to_string(), "babble", "{}")).await;
        assert_eq!(
            answer["result"]["content"][0]["text"], "babbled",
            "{answer}"
        );
        assert!(answer["result"]["_meta"]["backstop"].is_null(), "{answer}");
    }
    gateway.shut_down().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_gateway_that_is_dropped_takes_its_child_along() {
    let gateway = gateway(vec![child("c")]);
    let mut wire = Wire::to(&gateway);
    let result = wire.ask(&call("1", "pid", "{}")).await["result"].take();
    let process = format!("/proc/{}", result["content"][0]["text"].as_str().unwrap());
    assert!(std::path::Path::new(&process).exists());
    // The front holds the gateway as long as its client is there.
    drop(wire);
    drop(gateway);
    until(|| !std::path::Path::new(&process).exists()).await;
}
