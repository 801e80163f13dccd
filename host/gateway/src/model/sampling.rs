//! MCP sampling, answered by a group of models: what a server asks of a client that cannot sample.
//!
//! `[completion] sampling` names the group. A client that samples itself is asked itself, since there a
//! person may look at what is sent; the models stand in for all the others. The request becomes one of
//! OpenAI's API and goes the way of every other: the same fallback, budget, deadline and events.
//! `modelPreferences` and `includeContext` are advice (MCP 2025-11-25, sampling) and are not
//! followed: the group decides which model answers.

use std::fmt;
use std::sync::{Arc, OnceLock};

use axum::http::HeaderMap;
use backstop::mcp::{code_of, rpc};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Models;
use super::error::ApiError;
use super::exchange::Body;
use super::front;
use super::request::Endpoint;
use crate::client::Client;
use crate::envelope::{Json, Payload, error_object};

/// The capability, and the member that declares it.
const CAPABILITY: &str = "sampling";
const METHOD: &str = "sampling/createMessage";

/// The models that stand in for clients that cannot sample, where the operator wants them to.
#[derive(Default)]
pub(crate) struct Sampling(OnceLock<Arc<Models>>);

impl fmt::Debug for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sampling")
            .field("on", &self.is_on())
            .finish_non_exhaustive()
    }
}

impl Sampling {
    /// These are the models; the first ones count.
    pub(crate) fn by(&self, models: Arc<Models>) {
        let _ = self.0.set(models);
    }

    fn group(&self) -> Option<(&Arc<Models>, Arc<str>)> {
        let models = self.0.get()?;
        let group = models.exchange.options.load().sampling.as_deref()?.into();
        Some((models, group))
    }

    /// Whether a question of a server is the models' to answer. `client` is the one it would go to.
    pub(crate) fn answers(&self, method: &str, client: Option<&Client>) -> bool {
        method == METHOD && client.is_none_or(|client| !client.declares(CAPABILITY)) && self.is_on()
    }

    /// Whether the operator wants the models to answer.
    pub(crate) fn is_on(&self) -> bool {
        self.group().is_some()
    }

    /// The capabilities of a client, with what the models add to them.
    pub(crate) fn added_to(&self, capabilities: Json) -> Json {
        let Some((models, group)) = self.group() else {
            return capabilities;
        };
        if capabilities.member(CAPABILITY).is_some() {
            return capabilities;
        }
        let known = models.exchange.known();
        let mut of_group = known.groups.get(&group).into_iter().flatten();
        let tools = of_group.any(|model| model.spec.tools);
        let added = if tools {
            json!({ "tools": {} })
        } else {
            json!({})
        };
        capabilities.with_members(&[(CAPABILITY, Some(&Json::of(&added)))])
    }

    /// The answer of the models.
    pub(crate) async fn answer(&self, params: Option<&Json>) -> Payload {
        let Some((models, group)) = self.group() else {
            return error(
                rpc::METHOD_NOT_FOUND,
                "sampling is not configured any more",
                None,
            );
        };
        let nothing = Json::of(&json!({}));
        let body = match request(&group, params.unwrap_or(&nothing)) {
            Ok(body) => body,
            Err(reason) => return error(rpc::INVALID_PARAMS, &reason, None),
        };
        let body = body.to_string().into();
        let asked = match front::read(models, Endpoint::Chat, &HeaderMap::new(), body) {
            Ok(asked) => asked,
            Err(refused) => return told(rpc::INVALID_PARAMS, &refused),
        };
        match models.ask(&asked).await {
            Ok(outcome) => {
                let label = json!({
                    "served_by": outcome.served_by, "attempts": outcome.attempts(), "call": outcome.id,
                });
                // It was not asked for as a stream.
                let Body::Whole(body) = &outcome.answer.body else {
                    let text = "the model streamed what was not asked for as a stream";
                    return error(rpc::INTERNAL_ERROR, text, None);
                };
                match result(body, label) {
                    Ok(result) => Payload::Result(Json::of(&result)),
                    Err(reason) => error(rpc::INTERNAL_ERROR, &reason, None),
                }
            }
            Err((failed, raw)) => {
                let refused = ApiError::of_call(&failed, raw.as_ref());
                told(code_of(failed.ending).into(), &refused)
            }
        }
    }
}

fn error(code: i64, message: &str, data: Option<&Json>) -> Payload {
    Payload::Error(error_object(code, message, data))
}

/// An error of OpenAI's API as one of JSON-RPC.
fn told(code: i64, refused: &ApiError) -> Payload {
    let message = refused.error["message"].as_str().unwrap_or_default();
    error(code, message, Some(&Json::of(&refused.error)))
}

/// The parameters of `sampling/createMessage`, as far as models understand them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wanted {
    messages: Vec<Message>,
    #[serde(default)]
    system_prompt: Option<String>,
    max_tokens: u64,
    #[serde(default)]
    temperature: Option<f64>,
    #[serde(default)]
    stop_sequences: Vec<String>,
    #[serde(default)]
    tools: Vec<Tool>,
    #[serde(default)]
    tool_choice: Option<ToolChoice>,
}

#[derive(Deserialize)]
struct Message {
    role: Role,
    content: Contents,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

/// One block or, from revision 2025-11-25, several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Contents {
    Several(Vec<Block>),
    One(Block),
}

#[derive(Deserialize)]
#[serde(
    tag = "type",
    rename_all = "snake_case",
    rename_all_fields = "camelCase"
)]
enum Block {
    Text {
        text: String,
    },
    Image {
        data: String,
        mime_type: String,
    },
    Audio {
        data: String,
        mime_type: String,
    },
    ToolUse {
        id: String,
        name: String,
        input: Value,
    },
    ToolResult {
        tool_use_id: String,
        #[serde(default)]
        content: Vec<Block>,
        #[serde(default)]
        structured_content: Option<Value>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tool {
    name: String,
    #[serde(default)]
    description: Option<String>,
    input_schema: Value,
}

#[derive(Deserialize)]
struct ToolChoice {
    #[serde(default)]
    mode: Mode,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Auto,
    Required,
    None,
}

/// The request to a group of models that a server's question is.
///
/// # Errors
/// One sentence for the server.
fn request(group: &str, params: &Json) -> Result<Value, String> {
    let wanted: Wanted = params
        .read()
        .map_err(|error| format!("the parameters of {METHOD} cannot be read: {error}"))?;
    let mut messages = Vec::new();
    if let Some(system) = &wanted.system_prompt {
        messages.push(json!({ "role": "system", "content": system }));
    }
    for message in wanted.messages {
        say(message, &mut messages)?;
    }
    if messages.is_empty() {
        return Err("there is no message to answer".into());
    }
    let mut request = json!({
        "model": group, "messages": messages, "max_tokens": wanted.max_tokens, "stream": false,
    });
    if let Some(temperature) = wanted.temperature {
        request["temperature"] = json!(temperature);
    }
    if !wanted.stop_sequences.is_empty() {
        request["stop"] = json!(wanted.stop_sequences);
    }
    if !wanted.tools.is_empty() {
        let tools = wanted.tools.into_iter().map(|tool| {
            let mut function = json!({ "name": tool.name, "parameters": tool.input_schema });
            if let Some(description) = tool.description {
                function["description"] = description.into();
            }
            json!({ "type": "function", "function": function })
        });
        request["tools"] = tools.collect();
        if let Some(choice) = wanted.tool_choice {
            request["tool_choice"] = match choice.mode {
                Mode::Auto => "auto",
                Mode::Required => "required",
                Mode::None => "none",
            }
            .into();
        }
    }
    Ok(request)
}

/// Adds what one message says. The results of tools are messages of their own in OpenAI's API.
fn say(message: Message, messages: &mut Vec<Value>) -> Result<(), String> {
    let blocks = match message.content {
        Contents::Several(blocks) => blocks,
        Contents::One(block) => vec![block],
    };
    let (mut parts, mut calls) = (Vec::new(), Vec::new());
    for block in blocks {
        match (block, message.role) {
            (Block::Text { text }, _) => parts.push(json!({ "type": "text", "text": text })),
            (Block::Image { data, mime_type }, Role::User) => {
                let url = format!("data:{mime_type};base64,{data}");
                parts.push(json!({ "type": "image_url", "image_url": { "url": url } }));
            }
            (Block::Audio { data, mime_type }, Role::User) => {
                let audio = json!({ "data": data, "format": audio_format(&mime_type)? });
                parts.push(json!({ "type": "input_audio", "input_audio": audio }));
            }
            (Block::ToolUse { id, name, input }, Role::Assistant) => {
                let function = json!({ "name": name, "arguments": input.to_string() });
                calls.push(json!({ "id": id, "type": "function", "function": function }));
            }
            (
                Block::ToolResult {
                    tool_use_id,
                    content,
                    structured_content,
                },
                Role::User,
            ) => {
                let text = text_of(content, structured_content)?;
                messages
                    .push(json!({ "role": "tool", "tool_call_id": tool_use_id, "content": text }));
            }
            (Block::Image { .. } | Block::Audio { .. }, Role::Assistant) => {
                return Err("a model takes images and sound from the user only".into());
            }
            (Block::ToolUse { .. }, Role::User) => {
                return Err("only the assistant uses tools".into());
            }
            (Block::ToolResult { .. }, Role::Assistant) => {
                return Err("only the user gives the results of tools".into());
            }
        }
    }
    if parts.is_empty() && calls.is_empty() {
        return Ok(());
    }
    let role = match message.role {
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let mut said = json!({ "role": role });
    said["content"] = match parts.as_slice() {
        [] => Value::Null,
        [only] if only["type"] == "text" => only["text"].clone(),
        _ => parts.into(),
    };
    if !calls.is_empty() {
        said["tool_calls"] = calls.into();
    }
    messages.push(said);
    Ok(())
}

/// The formats OpenAI's API takes.
fn audio_format(mime_type: &str) -> Result<&'static str, String> {
    match mime_type {
        "audio/wav" | "audio/x-wav" | "audio/wave" => Ok("wav"),
        "audio/mpeg" | "audio/mp3" => Ok("mp3"),
        other => Err(format!(
            "sound of type {other:?} cannot be given to a model; send audio/wav or audio/mpeg"
        )),
    }
}

fn text_of(content: Vec<Block>, structured: Option<Value>) -> Result<String, String> {
    let mut texts = Vec::new();
    for block in content {
        match block {
            Block::Text { text } => texts.push(text),
            _ => return Err("a model takes the results of tools as text only".into()),
        }
    }
    match structured {
        Some(value) if texts.is_empty() => Ok(value.to_string()),
        _ => Ok(texts.join("\n")),
    }
}

/// The result of `sampling/createMessage` that a model's whole answer is.
///
/// # Errors
/// One sentence, where it is none after all.
fn result(body: &[u8], label: Value) -> Result<Value, String> {
    #[derive(Deserialize)]
    struct Whole {
        #[serde(default)]
        model: String,
        choices: Vec<Choice>,
    }
    #[derive(Deserialize)]
    struct Choice {
        message: Said,
        #[serde(default)]
        finish_reason: Option<String>,
    }
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        content: Option<String>,
        #[serde(default)]
        refusal: Option<String>,
        #[serde(default)]
        tool_calls: Option<Vec<ToolCall>>,
    }
    #[derive(Deserialize)]
    struct ToolCall {
        id: String,
        function: Function,
    }
    #[derive(Deserialize)]
    struct Function {
        name: String,
        arguments: String,
    }
    let unreadable = |error| format!("the model's answer cannot be read: {error}");
    let whole: Whole = serde_json::from_slice(body).map_err(unreadable)?;
    let Some(choice) = whole.choices.into_iter().next() else {
        return Err("the model's answer is empty".into());
    };
    let Said {
        content,
        refusal,
        tool_calls,
    } = choice.message;
    let texts = [content, refusal].into_iter().flatten();
    let texts = texts.filter(|text| !text.is_empty());
    let mut blocks: Vec<Value> = texts
        .map(|text| json!({ "type": "text", "text": text }))
        .collect();
    for ToolCall { id, function } in tool_calls.unwrap_or_default() {
        let input: Value = serde_json::from_str(&function.arguments)
            .map_err(|error| format!("the model's arguments for a tool are no JSON: {error}"))?;
        blocks.push(json!({ "type": "tool_use", "id": id, "name": function.name, "input": input }));
    }
    let content = match blocks.len() {
        0 => json!({ "type": "text", "text": "" }),
        1 => blocks.remove(0),
        _ => blocks.into(),
    };
    let reason = match choice.finish_reason.as_deref() {
        Some("stop") | None => "endTurn",
        Some("length") => "maxTokens",
        Some("tool_calls" | "function_call") => "toolUse",
        Some(other) => other,
    };
    Ok(json!({
        "role": "assistant", "content": content, "model": whole.model, "stopReason": reason,
        "_meta": { "backstop": label },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(params: Value) -> Result<Value, String> {
        request("chat", &Json::of(&params))
    }

    #[test]
    fn a_question_with_everything_in_it_becomes_one_request() {
        let schema = json!({ "type": "object" });
        let request = asked(json!({
            "systemPrompt": "be brief",
            "messages": [
                { "role": "user", "content": { "type": "text", "text": "what is this?" } },
                { "role": "user", "content": [
                    { "type": "image", "data": "AAAA", "mimeType": "image/png" },
                    { "type": "audio", "data": "BBBB", "mimeType": "audio/wav" },
                ] },
                { "role": "assistant", "content": [
                    { "type": "text", "text": "let me see" },
                    { "type": "tool_use", "id": "1", "name": "look", "input": { "at": 1 } },
                ] },
                { "role": "user", "content": { "type": "tool_result", "toolUseId": "1",
                    "content": [{ "type": "text", "text": "a cat" }] } },
            ],
            "maxTokens": 50, "temperature": 0.5, "stopSequences": ["\n"],
            "tools": [{ "name": "look", "inputSchema": schema }], "toolChoice": { "mode": "required" },
            "modelPreferences": { "hints": [{ "name": "x" }] }, "includeContext": "none",
        }));
        let expected = json!({
            "model": "chat", "stream": false, "max_tokens": 50, "temperature": 0.5, "stop": ["\n"],
            "messages": [
                { "role": "system", "content": "be brief" },
                { "role": "user", "content": "what is this?" },
                { "role": "user", "content": [
                    { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA" } },
                    { "type": "input_audio", "input_audio": { "data": "BBBB", "format": "wav" } },
                ] },
                { "role": "assistant", "content": "let me see", "tool_calls": [
                    { "id": "1", "type": "function",
                      "function": { "name": "look", "arguments": "{\"at\":1}" } },
                ] },
                { "role": "tool", "tool_call_id": "1", "content": "a cat" },
            ],
            "tools": [{ "type": "function", "function": { "name": "look", "parameters": schema } }],
            "tool_choice": "required",
        });
        assert_eq!(request.unwrap(), expected);
    }

    #[test]
    fn what_no_model_can_be_asked_is_refused_in_a_sentence() {
        let message = |role: &str, content: Value| json!({ "maxTokens": 1, "messages": [{ "role": role, "content": content }] });
        let image = json!({ "type": "image", "data": "", "mimeType": "image/png" });
        let refused = [
            (json!({}), "missing field `messages`"),
            (json!({ "messages": [], "maxTokens": 1 }), "no message"),
            (
                message("system", json!({ "type": "text", "text": "" })),
                "unknown variant `system`",
            ),
            (message("assistant", image.clone()), "from the user only"),
            (
                message(
                    "user",
                    json!({ "type": "audio", "data": "", "mimeType": "audio/ogg" }),
                ),
                "audio/ogg",
            ),
            (
                message(
                    "user",
                    json!({ "type": "tool_use", "id": "1", "name": "x", "input": {} }),
                ),
                "only the assistant",
            ),
            (
                message(
                    "user",
                    json!([{ "type": "tool_result", "toolUseId": "1", "content": [image] }]),
                ),
                "as text only",
            ),
        ];
        for (params, reason) in refused {
            let said = asked(params).unwrap_err();
            assert!(said.contains(reason), "{said}");
        }
    }

    #[test]
    fn an_answer_keeps_its_model_and_says_why_it_ended() {
        let told = |message: Value, finish: &str| {
            let body = json!({ "model": "large-2", "choices": [{ "message": message, "finish_reason": finish }] });
            result(body.to_string().as_bytes(), json!({ "served_by": "b" }))
        };
        let plain = told(json!({ "role": "assistant", "content": "hi" }), "length").unwrap();
        assert_eq!(
            plain,
            json!({
                "role": "assistant", "content": { "type": "text", "text": "hi" }, "model": "large-2",
                "stopReason": "maxTokens", "_meta": { "backstop": { "served_by": "b" } },
            })
        );
        let call = |arguments: &str| json!({ "id": "7", "type": "function", "function": { "name": "look", "arguments": arguments } });
        let used = told(
            json!({ "content": "wait", "tool_calls": [call("{\"at\":2}")] }),
            "tool_calls",
        )
        .unwrap();
        assert_eq!(used["stopReason"], "toolUse");
        assert_eq!(
            used["content"][1],
            json!({ "type": "tool_use", "id": "7", "name": "look", "input": { "at": 2 } })
        );
        let broken = told(json!({ "tool_calls": [call("{\"at\":")] }), "tool_calls").unwrap_err();
        assert!(broken.contains("no JSON"), "{broken}");
        let refused = told(json!({ "content": null, "refusal": "no" }), "stop").unwrap();
        assert_eq!(refused["content"]["text"], "no");
    }
}
