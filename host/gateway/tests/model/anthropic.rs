//! Models behind Anthropic's API stand in for those behind OpenAI's, and the other way round.

use serde_json::json;

use crate::QUICK;
use crate::front::{Front, model, question};
use crate::provider::{Act, Provider, WORDS, whole_text};

/// An OpenAI-compatible model first, Anthropic's second.
async fn pair(completion: &str) -> (Provider, Provider, Front) {
    let (openai, claude) = (
        Provider::start("openai").await,
        Provider::anthropic("claude").await,
    );
    let more = "api = 'anthropic'\napi_key_env = 'KEY'\nprefill = true";
    let config = [
        QUICK,
        completion,
        &model("openai", &openai, 10, ""),
        &model("claude", &claude, 1, more),
    ]
    .concat();
    let env = |name: &str| (name == "KEY").then(|| "k".to_owned());
    let front = Front::start_with(&config, &env, Default::default()).await;
    (openai, claude, front)
}

#[tokio::test]
async fn it_answers_in_the_place_of_another_whole_and_streamed() {
    let (openai, claude, front) = pair("").await;
    openai.always(Act::Status(503, &[], json!({})));
    let answer = front.whole().await;
    assert_eq!(answer.said(), whole_text(), "{}", answer.text);
    assert_eq!(answer.body["model"], "m-claude");
    assert_eq!(answer.body["usage"]["total_tokens"], 11);
    let heard = front.streamed().await;
    assert!(
        heard.is_whole() && heard.models == ["m-claude"],
        "{heard:?}"
    );
    let seen = &claude.seen()[0];
    assert_eq!(seen.path, "/v1/messages");
    assert_eq!(seen.headers["x-api-key"], "k");
    assert_eq!(seen.headers["anthropic-version"], "2023-06-01");
    assert!(seen.headers.get("authorization").is_none());
}

#[tokio::test]
async fn its_failures_are_known_by_its_own_words() {
    let error = json!({ "type": "overloaded_error", "message": "Overloaded" });
    let faults = [
        Act::Status(529, &[], json!({ "type": "error", "error": error })),
        Act::ErrorEvent(0, error),
        Act::Cut(0),
        Act::DoneEarly(0),
    ];
    for fault in faults {
        let (_, claude, front) = pair("").await;
        claude.always(fault.clone());
        let pinned = front.ask("claude", true);
        let heard = crate::front::Heard::of(pinned.send().await.unwrap()).await;
        assert_ne!(heard.status, 200, "{fault:?}: {heard:?}");
        let error = heard.error.unwrap();
        assert_eq!(error["type"], "server_error", "{fault:?}: {error}");
    }
}

#[tokio::test]
async fn it_goes_on_with_what_another_began_unless_that_ends_with_a_blank() {
    let (openai, claude, front) = pair("continuation = true\n").await;
    // "one two three " ends with a blank, which the API refuses behind a prefill.
    openai.once(Act::Cut(3));
    assert!(!front.streamed().await.is_whole());
    assert_eq!(claude.hits(), 0);
    assert_eq!(WORDS[2], "three ");
}

#[tokio::test]
async fn what_it_cannot_be_asked_for_goes_to_the_others() {
    let (openai, claude, front) = pair("").await;
    let mut body = question("chat", false);
    body["response_format"] = json!({ "type": "json_object" });
    openai.always(Act::Status(503, &[], json!({})));
    let answer = front.answer(front.post("chat/completions", &body)).await;
    assert_eq!((answer.status, claude.hits()), (503, 0), "{}", answer.text);
    body["model"] = "claude".into();
    let answer = front.answer(front.post("chat/completions", &body)).await;
    assert_eq!(answer.error()["code"], "unsupported_request");
    assert!(answer.text.contains("response_format"));
}

#[tokio::test]
async fn what_cannot_be_said_in_its_words_is_refused_and_does_not_count_against_it() {
    let (_, claude, front) = pair("").await;
    let mut body = question("claude", false);
    body["messages"][0]["role"] = "narrator".into();
    for _ in 0..6 {
        let answer = front.answer(front.post("chat/completions", &body)).await;
        assert_eq!(
            (answer.status, &answer.error()["code"]),
            (400, &"invalid_parameter".into())
        );
        assert!(answer.text.contains("narrator"), "{}", answer.text);
    }
    assert_eq!(claude.hits(), 0);
    let target = front.engine.registry().get("claude").unwrap();
    assert_eq!(target.circuit(), backstop::circuit::CircuitState::Closed);
}
