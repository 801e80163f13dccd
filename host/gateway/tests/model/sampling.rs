//! What servers ask of clients that cannot sample, a group of models answers; servers of both eras.

use std::convert::Infallible;
use std::io::BufRead as _;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::post;
use backstop_gateway::HttpOptions;
use backstop_gateway::upstream::{ServiceSpec, TransportSpec};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::QUICK;
use crate::front::{Front, model};
use crate::provider::{Act, Provider, whole_text};
use crate::support::{Wire, child, http};

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

fn wanted(tokens: u64) -> Value {
    json!({ "maxTokens": tokens, "messages": [
        { "role": "user", "content": { "type": "text", "text": "Count." } },
    ] })
}

/// Not a test: a server of the era with sessions whose tool asks to sample, and says what it was told.
#[test]
#[ignore = "the server of other tests"]
fn child_server() {
    if std::env::var_os("BACKSTOP_TEST_CHILD").is_none() {
        return;
    }
    let (mut greeting, mut caller) = (Value::Null, Value::Null);
    for line in std::io::stdin().lock().lines() {
        let message: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let answer = |id: &Value, result: Value| {
            println!(
                "{}",
                json!({ "jsonrpc": "2.0", "id": id, "result": result })
            );
        };
        let id = &message["id"];
        match message["method"].as_str() {
            Some("initialize") => {
                greeting = message["params"]["capabilities"].clone();
                let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": { "tools": {} },
                    "serverInfo": { "name": "asker", "version": "1" } });
                answer(id, hello);
            }
            Some("tools/list") => answer(id, json!({ "tools": [] })),
            Some("tools/call") if message["params"]["name"] == "greeting" => {
                answer(id, text(&greeting));
            }
            Some("tools/call") => {
                caller = id.clone();
                let params = wanted(
                    message["params"]["arguments"]["tokens"]
                        .as_u64()
                        .unwrap_or(9),
                );
                println!(
                    "{}",
                    json!({ "jsonrpc": "2.0", "id": "q", "method": "sampling/createMessage", "params": params })
                );
            }
            None if id == "q" => answer(&caller, text(&message)),
            Some(_) if !id.is_null() => println!(
                "{}",
                json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32601, "message": "no" } })
            ),
            _ => {}
        }
    }
}

fn text(value: &Value) -> Value {
    json!({ "content": [{ "type": "text", "text": value.to_string() }] })
}

fn asker() -> ServiceSpec {
    let mut service = child("asker");
    if let TransportSpec::Stdio { args, .. } = &mut service.transport {
        args[2] = "sampling::child_server".into();
    }
    service
}

/// A server of the newest era whose tool asks to sample in its result, and says what it was told.
async fn modern() -> String {
    async fn answer(body: String) -> impl IntoResponse {
        let message: Value = serde_json::from_str(&body).unwrap();
        let params = &message["params"];
        let result = match message["method"].as_str().unwrap() {
            "server/discover" => json!({ "supportedVersions": ["2026-07-28"],
                "capabilities": { "tools": {} }, "serverInfo": { "name": "m", "version": "1" } }),
            "tools/list" => json!({ "tools": [], "ttlMs": 0, "cacheScope": "private" }),
            "tools/call" if params["inputResponses"].is_null() => {
                let question = json!({ "method": "sampling/createMessage", "params": wanted(9) });
                let mut asked = json!({ "one": question });
                if params["name"] == "two" {
                    asked["two"] = json!({ "method": "elicitation/create", "params": {} });
                }
                json!({ "resultType": "input_required", "inputRequests": asked,
                    "requestState": params["_meta"][CAPABILITIES].to_string() })
            }
            "tools/call" => text(
                &json!({ "told": params["inputResponses"], "declared": params["requestState"] }),
            ),
            other => panic!("{other}"),
        };
        let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
        ([(CONTENT_TYPE, "application/json")], answer.to_string())
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let app = axum::Router::new().route("/mcp", post(answer));
    tokio::spawn(async move {
        axum::serve(listener, app).await.unwrap();
        Ok::<_, Infallible>(())
    });
    url
}

struct Scene {
    primary: Provider,
    backup: Provider,
    front: Front,
}

async fn scene(services: Vec<ServiceSpec>, completion: &str) -> Scene {
    let primary = Provider::start("primary").await;
    let backup = Provider::start("backup").await;
    let config = format!(
        "{QUICK}{completion}\n{}{}",
        model("primary", &primary, 10, "tools = false"),
        model("backup", &backup, 0, "tools = false")
    );
    let options = HttpOptions::default();
    let front = Front::start_beside(&config, services, &|_| None, options).await;
    Scene {
        primary,
        backup,
        front,
    }
}

impl Scene {
    async fn client(&self, capabilities: Value) -> Wire {
        let mut wire = Wire::to(&self.front.gateway);
        let hello = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": capabilities,
            "clientInfo": { "name": "c", "version": "1" } } });
        let greeted = wire.ask(&hello.to_string()).await;
        assert!(greeted["result"].is_object(), "{greeted}");
        wire
    }
}

fn call(params: Value) -> String {
    json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params }).to_string()
}

/// What the tool says it was told.
fn told(answer: &Value) -> Value {
    let text = answer["result"]["content"][0]["text"].as_str();
    serde_json::from_str(text.unwrap_or_else(|| panic!("{answer}"))).unwrap()
}

const ON: &str = "sampling = 'chat'";

#[tokio::test]
async fn a_server_of_the_older_era_is_answered_by_the_models_with_fallback() {
    let scene = scene(vec![asker()], ON).await;
    scene.primary.always(Act::Status(
        503,
        &[],
        json!({ "error": { "message": "down" } }),
    ));
    for capabilities in [json!({}), json!({ "roots": {} })] {
        let mut wire = scene.client(capabilities.clone()).await;
        let greeting = told(&wire.ask(&call(json!({ "name": "greeting" }))).await);
        assert_eq!(greeting["sampling"], json!({}), "{greeting}");
        assert_eq!(greeting["roots"], capabilities["roots"], "{greeting}");
        let answer = told(&wire.ask(&call(json!({ "name": "ask" }))).await);
        let result = &answer["result"];
        assert_eq!(result["content"]["text"], whole_text(), "{answer}");
        assert_eq!(result["model"], "m-backup");
        assert_eq!(result["stopReason"], "endTurn");
        assert_eq!(result["_meta"]["backstop"]["served_by"], "backup");
        assert!(result["_meta"]["backstop"]["attempts"].as_u64() >= Some(2));
    }
    let asked = &scene.backup.seen()[0].body;
    assert_eq!(asked["max_tokens"], 9);
    assert_eq!(asked["messages"][0]["content"], "Count.");
    scene.front.gateway.shut_down().await;
}

#[tokio::test]
async fn a_client_that_samples_is_asked_itself_and_none_is_answered_by_default() {
    let on = scene(vec![asker()], ON).await;
    let mut wire = on.client(json!({ "sampling": {} })).await;
    let question = wire.ask(&call(json!({ "name": "ask" }))).await;
    assert_eq!(question["method"], "sampling/createMessage", "{question}");
    let given = json!({ "jsonrpc": "2.0", "id": question["id"], "error": { "code": -1, "message": "User rejected" } });
    let answer = told(&wire.ask(&given.to_string()).await);
    assert_eq!(
        answer["error"]["code"], -1,
        "a person's no is no failure: {answer}"
    );
    let off = scene(vec![asker()], "").await;
    let mut wire = off.client(json!({})).await;
    let greeting = told(&wire.ask(&call(json!({ "name": "greeting" }))).await);
    assert_eq!(greeting, json!({}));
    let answer = told(&wire.ask(&call(json!({ "name": "ask" }))).await);
    assert_eq!(answer["error"]["code"], -32601, "{answer}");
    for scene in [on, off] {
        assert_eq!(scene.primary.hits() + scene.backup.hits(), 0);
        scene.front.gateway.shut_down().await;
    }
}

#[tokio::test]
async fn a_server_is_told_why_no_model_answers() {
    let scene = scene(vec![asker()], ON).await;
    for provider in [&scene.primary, &scene.backup] {
        provider.always(Act::Status(
            503,
            &[],
            json!({ "error": { "message": "down" } }),
        ));
    }
    let mut wire = scene.client(json!({})).await;
    let answer = told(&wire.ask(&call(json!({ "name": "ask" }))).await);
    let error = &answer["error"];
    assert!(
        error["message"].as_str().unwrap().contains("503"),
        "{answer}"
    );
    let attempts = error["data"]["backstop"]["attempts"].as_array().unwrap();
    assert!(attempts.len() >= 2, "{answer}");
    scene.front.gateway.shut_down().await;
}

#[tokio::test]
async fn a_server_of_the_newest_era_is_answered_whatever_the_era_of_the_client() {
    let scene = scene(vec![http("m", &modern().await)], ON).await;
    let meta = |capabilities: Value| json!({ VERSION: "2026-07-28", CAPABILITIES: capabilities });
    let mut older = scene.client(json!({})).await;
    let mut newest = Wire::to(&scene.front.gateway);
    for (wire, params) in [
        (&mut older, json!({ "name": "one" })),
        (
            &mut newest,
            json!({ "name": "one", "_meta": meta(json!({})) }),
        ),
    ] {
        let answer = told(&wire.ask(&call(params)).await);
        let result = &answer["told"]["one"];
        assert_eq!(result["content"]["text"], whole_text(), "{answer}");
        assert_eq!(answer["declared"], r#"{"sampling":{}}"#);
    }
    // One that samples itself, or is asked more than the models can answer, gets the questions.
    for (tool, capabilities) in [("one", json!({ "sampling": {} })), ("two", json!({}))] {
        let params = json!({ "name": tool, "_meta": meta(capabilities) });
        let answer = newest.ask(&call(params)).await;
        assert_eq!(answer["result"]["resultType"], "input_required", "{answer}");
    }
    assert_eq!(scene.primary.hits(), 2);
    scene.front.gateway.shut_down().await;
}
