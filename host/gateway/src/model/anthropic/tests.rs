use std::collections::VecDeque;

use super::super::stream::{Broken, Piece, Progress};
use super::*;

fn translated(body: Value, begun: Option<&str>) -> Result<Value, String> {
    let body = Json::of(&body);
    request(&body, "claude", begun).map(|bytes| serde_json::from_slice(&bytes).unwrap())
}

#[test]
fn a_conversation_with_tools_and_images_is_translated_turn_by_turn() {
    let translated = translated(
        json!({
            "model": "ignored",
            "max_tokens": 50,
            "temperature": 1.7,
            "stop": "END",
            "stream": true,
            "user": "u1",
            "seed": 4,
            "parallel_tool_calls": false,
            "messages": [
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": [
                    { "type": "text", "text": "What is this?" },
                    { "type": "image_url", "image_url": { "url": "data:image/png;base64,QUJD" } },
                ]},
                { "role": "assistant", "content": null, "tool_calls": [
                    { "id": "c1", "type": "function", "function": { "name": "look", "arguments": "{\"x\":1}" } },
                    { "id": "c2", "type": "function", "function": { "name": "look", "arguments": "" } },
                ]},
                { "role": "tool", "tool_call_id": "c1", "content": "a cat" },
                { "role": "tool", "tool_call_id": "c2", "content": "a dog" },
            ],
            "tools": [{ "type": "function", "function": { "name": "look", "description": "Looks.", "parameters": { "type": "object" } } }],
            "tool_choice": { "type": "function", "function": { "name": "look" } },
        }),
        None,
    );
    assert_eq!(
        translated.unwrap(),
        json!({
            "model": "claude",
            "max_tokens": 50,
            "temperature": 1.0,
            "stop_sequences": ["END"],
            "stream": true,
            "metadata": { "user_id": "u1" },
            "system": [{ "type": "text", "text": "Be brief." }],
            "messages": [
                { "role": "user", "content": [
                    { "type": "text", "text": "What is this?" },
                    { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "QUJD" } },
                ]},
                { "role": "assistant", "content": [
                    { "type": "tool_use", "id": "c1", "name": "look", "input": { "x": 1 } },
                    { "type": "tool_use", "id": "c2", "name": "look", "input": {} },
                ]},
                { "role": "user", "content": [
                    { "type": "tool_result", "tool_use_id": "c1", "content": [{ "type": "text", "text": "a cat" }] },
                    { "type": "tool_result", "tool_use_id": "c2", "content": [{ "type": "text", "text": "a dog" }] },
                ]},
            ],
            "tools": [{ "name": "look", "description": "Looks.", "input_schema": { "type": "object" } }],
            "tool_choice": { "type": "tool", "name": "look", "disable_parallel_tool_use": true },
        })
    );
}

#[test]
fn what_has_no_counterpart_is_an_error_that_names_it() {
    for (body, named) in [
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "input_audio" }] }] }),
            "input_audio",
        ),
        (
            json!({ "messages": [{ "role": "narrator", "content": "x" }] }),
            "narrator",
        ),
        (
            json!({ "messages": [], "tools": [{ "type": "custom" }] }),
            "custom",
        ),
        (
            json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "function": { "arguments": "{" } }] }] }),
            "arguments of a tool call",
        ),
    ] {
        let error = translated(body, None).unwrap_err();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn an_answer_that_was_begun_is_the_last_message() {
    let body = json!({ "messages": [{ "role": "user", "content": "Tell." }] });
    let translated = translated(body, Some("Once upon")).unwrap();
    assert_eq!(
        translated["messages"][1],
        json!({ "role": "assistant", "content": [{ "type": "text", "text": "Once upon" }] })
    );
    assert_eq!(translated["max_tokens"], MAX_TOKENS);
}

#[test]
fn a_whole_answer_keeps_its_model_usage_and_tool_calls() {
    let body = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x",
        "content": [
            { "type": "thinking", "thinking": "hm" },
            { "type": "text", "text": "I look." },
            { "type": "tool_use", "id": "t1", "name": "look", "input": { "x": 1 } },
        ],
        "stop_reason": "tool_use",
        "usage": { "input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 3 },
    });
    let answer: Value =
        serde_json::from_slice(&answer(body.to_string().as_bytes()).unwrap()).unwrap();
    assert_eq!(answer["model"], "claude-x");
    assert_eq!(answer["usage"]["prompt_tokens"], 13);
    assert_eq!(answer["usage"]["total_tokens"], 18);
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "I look.");
    assert_eq!(
        choice["message"]["tool_calls"],
        json!([{ "id": "t1", "type": "function", "function": { "name": "look", "arguments": "{\"x\":1}" } }])
    );
    assert!(super::answer(b"{\"type\":\"message\"}").is_err());
}

fn stream(include_usage: bool, events: &[Value]) -> (Vec<Value>, Progress, Option<Broken>) {
    let mut translator = Translator::new(include_usage);
    let (mut ready, mut progress) = (VecDeque::new(), Progress::new(1, true));
    let broken = events.iter().find_map(|event| {
        let data = event.to_string().into();
        translator.take(&data, &mut ready, &mut progress).err()
    });
    let chunks = ready
        .iter()
        .map(|piece: &Piece| serde_json::from_slice(&piece.data).unwrap())
        .collect();
    (chunks, progress, broken)
}

fn start() -> Value {
    json!({ "type": "message_start", "message": { "id": "m1", "model": "claude-x", "usage": { "input_tokens": 7 } } })
}

#[test]
fn a_stream_with_text_and_a_tool_call_becomes_chunks() {
    let (chunks, progress, broken) = stream(
        true,
        &[
            start(),
            json!({ "type": "ping" }),
            json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "Hi" } }),
            json!({ "type": "content_block_stop", "index": 0 }),
            json!({ "type": "content_block_start", "index": 1, "content_block": { "type": "tool_use", "id": "t1", "name": "look", "input": {} } }),
            json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "input_json_delta", "partial_json": "{\"x\"" } }),
            json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "input_json_delta", "partial_json": ":1}" } }),
            json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use" }, "usage": { "output_tokens": 9 } }),
            json!({ "type": "message_stop" }),
        ],
    );
    assert!(broken.is_none() && progress.done && progress.mixed);
    let deltas: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
    assert_eq!(deltas[0]["role"], "assistant");
    assert_eq!(deltas[1]["content"], "Hi");
    assert_eq!(deltas[2]["tool_calls"][0]["function"]["name"], "look");
    assert_eq!(deltas[4]["tool_calls"][0]["function"]["arguments"], ":1}");
    assert_eq!(chunks[5]["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(chunks[6]["usage"]["total_tokens"], 16);
    assert!(
        chunks
            .iter()
            .all(|c| c["id"] == "m1" && c["model"] == "claude-x")
    );
}

#[test]
fn a_stream_that_stops_without_a_reason_or_with_an_error_is_broken() {
    let (_, _, broken) = stream(false, &[start(), json!({ "type": "message_stop" })]);
    assert!(matches!(broken, Some(Broken::TooEarly)));
    let error = json!({ "type": "error", "error": { "type": "overloaded_error", "message": "Overloaded" } });
    let (_, progress, broken) = stream(false, &[start(), error]);
    assert!(matches!(broken, Some(Broken::Error(_))) && !progress.is_whole());
}
