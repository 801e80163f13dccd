//! Answers that are not streamed: what is passed on, who is asked, and how errors are told.

use std::time::Duration;

use backstop_gateway::HttpOptions;
use serde_json::{Value, json};

use crate::QUICK;
use crate::front::{Front, model, question};
use crate::provider::{Act, Provider, whole_text};

/// Two providers and a gateway that prefers the first.
async fn pair(more: &str) -> (Provider, Provider, Front) {
    let (primary, secondary) = (
        Provider::start("primary").await,
        Provider::start("secondary").await,
    );
    let config = [
        QUICK,
        more,
        &model("primary", &primary, 10, ""),
        &model("secondary", &secondary, 1, ""),
    ]
    .concat();
    let front = Front::start(&config).await;
    (primary, secondary, front)
}

#[tokio::test]
async fn bytes_pass_unchanged_but_for_the_model() {
    let (primary, _, front) = pair("").await;
    let odd = r#"{ "choices":[{"finish_reason":"stop", "message":{"content":"\u00e9"}}],"vendor":{"n":1.50},"model":"own","usage":{"total_tokens":7} }"#;
    primary.once(Act::Bytes(odd));
    let body =
        r#"{"messages":[ {"role":"user","content":"\u00e9"} ],"model":"chat","vendor":{"x":1.0}}"#;
    let request = front.client.post(format!("{}/chat/completions", front.url));
    let answer = front.answer(request.body(body)).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, odd));
    assert_eq!(answer.header("x-backstop-served-by"), "primary");
    assert_eq!(answer.header("x-backstop-attempts"), "1");
    assert_eq!(answer.header("x-request-id"), "req-1");
    let seen = &primary.seen()[0];
    assert_eq!(
        seen.raw,
        r#"{"messages":[ {"role":"user","content":"\u00e9"} ],"vendor":{"x":1.0},"model":"m-primary"}"#
    );
    assert_eq!(seen.path, "/v1/chat/completions");
    assert!(seen.headers.get("authorization").is_none());
}

fn unavailable(status: u16) -> Act {
    Act::Status(
        status,
        &[],
        json!({ "error": { "message": "not now", "type": "server_error" } }),
    )
}

/// Every fault with which another attempt may help.
fn faults() -> Vec<Act> {
    let mut faults: Vec<Act> = [408, 409, 429, 500, 502, 503, 504, 529]
        .map(unavailable)
        .into();
    faults.extend([
        Act::Cut(3),
        Act::Malformed(0),
        Act::DoneEarly(0),
        Act::Bytes("<html>busy</html>"),
        Act::Bytes(""),
        Act::ErrorEvent(
            0,
            json!({ "message": "overloaded", "type": "overloaded_error" }),
        ),
        Act::Bytes(r#"{"choices":[{"message":{"content":"o"},"finish_reason":"error"}]}"#),
        Act::Hang,
    ]);
    faults
}

#[tokio::test]
async fn a_fault_that_lasts_is_answered_by_the_other_model() {
    for fault in faults() {
        let (primary, secondary, front) = pair("").await;
        primary.always(fault.clone());
        let answer = front.whole().await;
        assert_eq!(answer.status, 200, "{fault:?}: {}", answer.text);
        assert_eq!(answer.said(), whole_text(), "{fault:?}");
        assert_eq!(answer.body["model"], "m-secondary", "{fault:?}");
        assert_eq!(answer.header("x-backstop-served-by"), "secondary");
        assert_eq!(
            answer.header("x-backstop-attempts"),
            (primary.hits() + 1).to_string()
        );
        assert!(answer.header("x-backstop-failed").starts_with("primary="));
        assert_eq!(secondary.hits(), 1, "{fault:?}");
        assert!(primary.hits() <= 4, "{fault:?}: {}", primary.hits());
    }
}

#[tokio::test]
async fn a_fault_that_happens_once_costs_no_answer() {
    for fault in faults() {
        let (primary, secondary, front) = pair("").await;
        primary.once(fault.clone());
        let answer = front.whole().await;
        assert_eq!(
            (answer.status, answer.said()),
            (200, &*whole_text()),
            "{fault:?}"
        );
        assert_eq!(primary.hits() + secondary.hits(), 2, "{fault:?}");
    }
}

#[tokio::test]
async fn a_model_that_nobody_listens_for_is_left_for_the_other() {
    let (primary, _, front) = pair("").await;
    primary.go_down();
    let answer = front.whole().await;
    assert_eq!(answer.body["model"], "m-secondary", "{}", answer.text);
    assert!(
        answer
            .header("x-backstop-failed")
            .starts_with("primary=ConnectionError")
    );
}

#[tokio::test]
async fn a_silent_model_is_not_asked_twice_while_another_is_left() {
    let (primary, _, front) = pair("").await;
    primary.always(Act::Hang);
    assert_eq!(front.whole().await.body["model"], "m-secondary");
    assert_eq!(primary.hits(), 1);
}

#[tokio::test]
async fn a_throttle_is_waited_for_as_long_as_it_asks_and_not_hammered() {
    let (primary, secondary, front) = pair("").await;
    primary.once(Act::Status(429, &[("retry-after", "1")], json!({})));
    let answer = front.whole().await;
    assert_eq!(answer.body["model"], "m-primary", "{}", answer.text);
    let seen = primary.seen();
    assert_eq!((seen.len(), secondary.hits()), (2, 0));
    assert!(seen[1].at - seen[0].at >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_throttle_that_lasts_longer_sends_the_call_elsewhere_at_once() {
    let (primary, _, front) = pair("").await;
    primary.always(Act::Status(429, &[("retry-after", "30")], json!({})));
    let answer = front.whole().await;
    assert_eq!(
        (answer.body["model"].as_str(), primary.hits()),
        (Some("m-secondary"), 1)
    );
}

#[tokio::test]
async fn where_everyone_throttles_the_client_is_told_for_how_long() {
    let (primary, secondary, front) = pair("").await;
    for provider in [&primary, &secondary] {
        let body = json!({ "error": { "message": "slow down", "code": "rate_limit_exceeded" } });
        provider.always(Act::Status(429, &[("retry-after", "400")], body));
    }
    let answer = front.whole().await;
    assert_eq!(answer.status, 429, "{}", answer.text);
    assert_eq!(answer.header("retry-after"), "400");
    assert_eq!(answer.header("x-should-retry"), "false");
    assert_eq!(answer.error()["type"], "rate_limit_error");
    assert_eq!((primary.hits(), secondary.hits()), (1, 1));
}

fn too_long() -> Act {
    let error = json!({ "message": "This model's maximum context length is 10 tokens.", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded" });
    Act::Status(400, &[], json!({ "error": error }))
}

#[tokio::test]
async fn what_is_too_long_goes_to_a_larger_model_and_to_no_other() {
    let mut config = QUICK.to_owned();
    let mut providers = Vec::new();
    for (name, priority, length) in [
        ("medium", 9, 2000),
        ("small", 8, 1000),
        ("twin", 7, 2000),
        ("large", 1, 9000),
    ] {
        let provider = Provider::start(name).await;
        config += &model(
            name,
            &provider,
            priority,
            &format!("context_length = {length}"),
        );
        providers.push(provider);
    }
    providers[0].always(too_long());
    let front = Front::start(&config).await;
    let answer = front.whole().await;
    assert_eq!(answer.body["model"], "m-large", "{}", answer.text);
    let hits: Vec<usize> = providers.iter().map(Provider::hits).collect();
    assert_eq!(hits, [1, 0, 0, 1]);
}

#[tokio::test]
async fn a_request_that_is_long_by_estimate_goes_to_the_larger_model_at_once() {
    let (small, large) = (
        Provider::start("small").await,
        Provider::start("large").await,
    );
    let config = [
        QUICK,
        &model("small", &small, 9, "context_length = 100"),
        &model("large", &large, 1, "context_length = 10000"),
    ]
    .concat();
    let front = Front::start(&config).await;
    let long = |bytes: usize| json!({ "model": "chat", "messages": [{ "role": "user", "content": "x".repeat(bytes) }] });
    let answer = front
        .answer(front.post("chat/completions", &long(2000)))
        .await;
    assert_eq!(answer.body["model"], "m-large");
    // It is an estimate: what is too long for all of them is theirs to judge.
    let answer = front
        .answer(front.post("chat/completions", &long(200_000)))
        .await;
    assert_eq!(answer.body["model"], "m-small");
    assert_eq!(front.whole().await.body["model"], "m-small");
}

#[tokio::test]
async fn what_no_model_can_hold_is_the_providers_own_error() {
    let (primary, secondary, front) = pair("").await;
    primary.always(too_long());
    secondary.always(too_long());
    let answer = front.whole().await;
    assert_eq!(answer.status, 400);
    let error = answer.error();
    assert_eq!(error["code"], "context_length_exceeded");
    assert_eq!(error["param"], "messages");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .starts_with("This model's maximum"),
        "{error}"
    );
    assert_eq!(error["backstop"]["attempts"].as_array().unwrap().len(), 2);
    assert_eq!((primary.hits(), secondary.hits()), (1, 1));
}

#[tokio::test]
async fn a_content_filter_speaks_for_itself_and_is_not_asked_again() {
    let (primary, secondary, front) = pair("").await;
    let error = json!({ "message": "It was filtered: violence.", "type": "invalid_request_error", "code": "content_filter" });
    primary.always(Act::Status(400, &[], json!({ "error": error })));
    let answer = front.whole().await;
    assert_eq!(
        (answer.status, primary.hits(), secondary.hits()),
        (400, 1, 0)
    );
    assert_eq!(answer.error()["code"], "content_filter");
    assert_eq!(answer.error()["message"], "It was filtered: violence.");
}

#[tokio::test]
async fn credentials_a_model_refuses_are_not_the_clients() {
    let (primary, _, front) = pair("").await;
    primary.always(Act::Status(
        401,
        &[],
        json!({ "error": { "message": "bad key" } }),
    ));
    let answer = front.whole().await;
    assert_eq!((answer.status, primary.hits()), (502, 1));
    assert_eq!(answer.error()["code"], "unauthorized");
}

#[tokio::test]
async fn an_error_has_openais_shape_and_tells_the_first_cause_and_every_attempt() {
    let (primary, secondary, front) = pair("").await;
    primary.always(unavailable(503));
    secondary.always(Act::Cut(1));
    let answer = front.whole().await;
    assert_eq!(answer.status, 503, "{}", answer.text);
    let error = answer.error();
    assert_eq!(
        (&error["type"], &error["code"]),
        (&"server_error".into(), &"service_unavailable".into())
    );
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("HTTP 503: not now"),
        "{error}"
    );
    assert_eq!(error["backstop"]["cause"]["kind"], "ServiceUnavailable");
    let attempts = error["backstop"]["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), primary.hits() + secondary.hits());
    assert_eq!(
        answer.header("x-backstop-attempts"),
        attempts.len().to_string()
    );
    assert_eq!(attempts.last().unwrap()["target"], "secondary");
}

#[tokio::test]
async fn headers_change_how_one_request_is_carried_out() {
    let (primary, secondary, front) = pair("").await;
    primary.always(unavailable(503));

    let alone = front
        .ask("chat", false)
        .header("x-backstop-fallback", "off");
    assert_eq!(front.answer(alone).await.status, 503);
    assert_eq!((primary.hits(), secondary.hits()), (1, 0));

    let pinned = front
        .ask("chat", false)
        .header("x-backstop-pin", "secondary");
    assert_eq!(front.answer(pinned).await.body["model"], "m-secondary");
    assert_eq!(primary.hits(), 1);

    primary.always(Act::Hang);
    secondary.always(Act::Hang);
    let began = std::time::Instant::now();
    let hurried = front
        .ask("chat", false)
        .header("x-backstop-deadline", "0.2");
    let answer = front.answer(hurried).await;
    assert_eq!(answer.status, 504, "{}", answer.text);
    assert!(began.elapsed() < Duration::from_millis(650));

    for (name, value) in [
        ("x-backstop-fallback", "maybe"),
        ("x-backstop-pin", "nobody"),
        ("x-backstop-deadline", "soon"),
        ("x-backstop-deadline", "0"),
        ("x-backstop-importance", "101"),
    ] {
        let answer = front
            .answer(front.ask("chat", false).header(name, value))
            .await;
        assert_eq!(
            (answer.status, answer.error()["code"].as_str()),
            (400, Some("invalid_header"))
        );
        assert!(answer.error()["message"].as_str().unwrap().contains(name));
    }
}

#[tokio::test]
async fn a_group_falls_back_an_entry_does_not_and_anything_else_is_unknown() {
    let (primary, secondary, front) = pair("").await;
    primary.always(unavailable(500));
    assert_eq!(front.whole().await.body["model"], "m-secondary");
    let answer = front.answer(front.ask("primary", false)).await;
    assert_eq!(
        (answer.status, secondary.hits()),
        (502, 1),
        "{}",
        answer.text
    );
    let answer = front.answer(front.ask("m-primary", false)).await;
    assert_eq!(
        (answer.status, &answer.error()["code"]),
        (404, &"model_not_found".into())
    );

    let list = front
        .answer(front.client.get(format!("{}/models", front.url)))
        .await;
    let ids = list.body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["id"].as_str().unwrap());
    assert_eq!(ids.collect::<Vec<_>>(), ["chat", "primary", "secondary"]);
    for (id, status) in [("chat", 200), ("secondary", 200), ("other", 404)] {
        let answer = front
            .answer(front.client.get(format!("{}/models/{id}", front.url)))
            .await;
        assert_eq!(answer.status, status);
    }
    let answer = front.answer(front.post("completions", &json!({}))).await;
    assert_eq!(
        (answer.status, &answer.error()["code"]),
        (404, &"unknown_url".into())
    );
    let answer = front
        .answer(front.client.get(format!("{}/embeddings", front.url)))
        .await;
    assert_eq!(answer.status, 405);
}

#[tokio::test]
async fn a_request_goes_only_to_models_that_can_serve_it() {
    let (plain, able) = (
        Provider::start("plain").await,
        Provider::start("able").await,
    );
    let config = [
        QUICK,
        &model("plain", &plain, 9, "tools = false\nvision = false"),
        &model("able", &able, 1, ""),
    ]
    .concat();
    let front = Front::start(&config).await;
    let mut tools = question("chat", false);
    tools["tools"] = json!([{ "type": "function", "function": { "name": "look" } }]);
    let mut image = question("chat", false);
    image["messages"][0]["content"] =
        json!([{ "type": "image_url", "image_url": { "url": "data:," } }]);
    for body in [&tools, &image] {
        let answer = front.answer(front.post("chat/completions", body)).await;
        assert_eq!(answer.body["model"], "m-able", "{}", answer.text);
    }
    able.go_down();
    let answer = front.answer(front.post("chat/completions", &tools)).await;
    assert_eq!((answer.status, plain.hits()), (502, 0), "{}", answer.text);
    tools["model"] = "plain".into();
    let answer = front.answer(front.post("chat/completions", &tools)).await;
    assert_eq!(
        (answer.status, &answer.error()["code"]),
        (400, &"unsupported_request".into())
    );
    assert_eq!(plain.hits(), 0);
}

#[tokio::test]
async fn embeddings_come_from_one_model_wherever_it_is() {
    let (first, other, same) = (
        Provider::start("a").await,
        Provider::start("b").await,
        Provider::start("c").await,
    );
    let entry = |name: &str, provider: &Provider, model: &str, priority: i32| {
        format!(
            "[[model]]\nname = {name:?}\nbase_url = {:?}\nmodel = {model:?}\npriority = {priority}\n",
            provider.url
        )
    };
    let config = [
        QUICK.to_owned(),
        entry("a", &first, "embed-1", 9),
        entry("b", &other, "embed-2", 5),
        entry("c", &same, "embed-1", 1),
    ]
    .concat();
    let front = Front::start(&config).await;
    first.always(unavailable(503));
    let body = json!({ "model": "models", "input": "text" });
    let answer = front.answer(front.post("embeddings", &body)).await;
    assert_eq!(
        (answer.status, &answer.body["model"]),
        (200, &"embed-1".into()),
        "{}",
        answer.text
    );
    assert_eq!((other.hits(), same.hits()), (0, 1));
    assert_eq!(same.seen()[0].path, "/v1/embeddings");
}

#[tokio::test]
async fn the_front_asks_models_clients_for_its_token_in_openais_shape() {
    let provider = Provider::start("only").await;
    let options = HttpOptions {
        bearer_token: Some("front-token".into()),
        ..HttpOptions::default()
    };
    let config = [QUICK, &model("only", &provider, 1, "")].concat();
    let front = Front::start_with(&config, &|_| None, options).await;
    let answer = front.whole().await;
    assert_eq!(
        (answer.status, &answer.error()["code"]),
        (401, &"invalid_api_key".into())
    );
    let known = front.ask("chat", false).bearer_auth("front-token");
    assert_eq!(front.answer(known).await.status, 200);
    // The client's token is for the gateway, not for the provider.
    assert!(provider.seen()[0].headers.get("authorization").is_none());
}

const KEY: &str = "sk-very-secret-key";

#[tokio::test]
async fn a_key_is_sent_and_shown_nowhere() {
    let provider = Provider::start("only").await;
    let more = "api_key_env = 'KEY'\nheaders = { X-Other = '${KEY}' }";
    let config = [QUICK, &model("only", &provider, 1, more)].concat();
    let env = |name: &str| (name == "KEY").then(|| KEY.to_owned());
    let front = Front::start_with(&config, &env, HttpOptions::default()).await;
    let mut events = front.engine.subscribe();
    assert_eq!(front.whole().await.status, 200);
    assert_eq!(
        provider.seen()[0].headers["authorization"],
        format!("Bearer {KEY}")
    );

    let mut said = format!(
        "{:?}{:?}",
        front.gateway,
        front.engine.registry().list_group("chat")
    );
    let repeated = json!({ "error": { "message": format!("Incorrect key {KEY} for Bearer {KEY}"), "code": 503 } });
    for act in [
        Act::Status(400, &[], repeated.clone()),
        Act::Status(401, &[], repeated.clone()),
        Act::Status(503, &[], repeated.clone()),
        Act::ErrorEvent(2, repeated["error"].clone()),
        Act::Cut(2),
    ] {
        provider.always(act);
        for stream in [false, true] {
            let response = front.ask("chat", stream).send().await.unwrap();
            said += &format!("{:?}", response.headers());
            said += &response.text().await.unwrap();
        }
    }
    provider.go_down();
    said += &front.whole().await.text;
    while let Ok(event) = events.try_recv() {
        said += &serde_json::to_string(&*event).unwrap();
        said += &format!("{event:?}");
    }
    assert!(said.contains("Incorrect key ..."), "{said}");
    assert!(!said.contains(KEY), "{said}");
}

#[tokio::test]
async fn a_key_in_a_file_is_read_anew_and_its_loss_is_an_error() {
    let provider = Provider::start("only").await;
    let folder = std::env::temp_dir().join(format!("backstop-key-{}", std::process::id()));
    std::fs::write(&folder, "first\n").unwrap();
    let more = format!("api_key_file = {:?}", folder.display().to_string());
    let front = Front::start(&[QUICK, &model("only", &provider, 1, &more)].concat()).await;
    front.whole().await;
    std::fs::write(&folder, "second").unwrap();
    front.whole().await;
    let sent: Vec<String> = provider
        .seen()
        .iter()
        .map(|seen| seen.headers["authorization"].to_str().unwrap().to_owned())
        .collect();
    assert_eq!(sent, ["Bearer first", "Bearer second"]);
    std::fs::remove_file(&folder).unwrap();
    let answer = front.whole().await;
    assert_eq!((answer.status, provider.hits()), (502, 2));
    assert!(
        answer.text.contains("its API key cannot be read"),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_refused_before_any_model_is_asked() {
    let (primary, _, front) = pair("").await;
    for body in [
        Value::Null,
        json!({}),
        json!({ "model": "chat", "stream": "yes" }),
    ] {
        let answer = front.answer(front.post("chat/completions", &body)).await;
        assert_eq!(
            (answer.status, &answer.error()["type"]),
            (400, &"invalid_request_error".into())
        );
    }
    assert_eq!(primary.hits(), 0);
}
