//! Anthropic's messages API: requests and answers in its words, from and to those of OpenAI's.
//!
//! What has no counterpart is left out where that changes nothing in the answer (`seed`,
//! `frequency_penalty`, `store`), and is an error where it would. What only OpenAI's API can do (`n`,
//! `response_format`, `logprobs`) keeps a request away from these models from the start.

mod translator;

use std::time::SystemTime;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::envelope::Json;
pub(crate) use translator::Translator;

/// The longest answer where a client does not say: the API has no default.
const MAX_TOKENS: u64 = 4096;

/// A request in the words of the API. `begun` is an answer to go on with.
///
/// # Errors
/// One sentence that names what cannot be said.
pub(crate) fn request(body: &Json, model: &str, begun: Option<&str>) -> Result<Bytes, String> {
    let given: Map<String, Value> = body
        .read()
        .map_err(|error| format!("the body cannot be read: {error}"))?;
    let get = |name: &str| given.get(name).filter(|value| !value.is_null());
    let mut system = Vec::new();
    let mut messages = Messages::default();
    for message in get("messages")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        add(message, &mut system, &mut messages)?;
    }
    if let Some(text) = begun {
        messages.push("assistant", vec![text_block(text)]);
    }
    let mut out = json!({
        "model": model,
        "max_tokens": get("max_completion_tokens").or_else(|| get("max_tokens")).cloned().unwrap_or_else(|| MAX_TOKENS.into()),
        "messages": messages.0,
    });
    let mut set = |name: &str, value: Value| out[name] = value;
    if !system.is_empty() {
        set("system", system.into());
    }
    for name in ["stream", "top_p", "top_k"] {
        if let Some(value) = get(name) {
            set(name, value.clone());
        }
    }
    if let Some(temperature) = get("temperature").and_then(Value::as_f64) {
        // OpenAI's goes to 2, this one's to 1.
        set("temperature", temperature.min(1.0).into());
    }
    match get("stop") {
        Some(Value::String(one)) => set("stop_sequences", json!([one])),
        Some(several) => set("stop_sequences", several.clone()),
        None => {}
    }
    if let Some(user) = get("user") {
        set("metadata", json!({ "user_id": user }));
    }
    let tools = get("tools").and_then(Value::as_array);
    if let Some(tools) = tools.filter(|tools| !tools.is_empty()) {
        let tools: Result<Vec<Value>, String> = tools.iter().map(tool).collect();
        set("tools", tools?.into());
        if let Some(choice) = tool_choice(get("tool_choice"), get("parallel_tool_calls"))? {
            set("tool_choice", choice);
        }
    }
    Ok(out.to_string().into())
}

/// Messages in turns: what one side says in a row is one message.
#[derive(Default)]
struct Messages(Vec<Value>);

impl Messages {
    fn push(&mut self, role: &str, mut blocks: Vec<Value>) {
        if blocks.is_empty() {
            return;
        }
        if let Some(last) = self.0.last_mut().filter(|last| last["role"] == role)
            && let Some(content) = last["content"].as_array_mut()
        {
            content.append(&mut blocks);
            return;
        }
        self.0.push(json!({ "role": role, "content": blocks }));
    }
}

fn text_block(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

fn add(message: &Value, system: &mut Vec<Value>, messages: &mut Messages) -> Result<(), String> {
    let content = blocks(&message["content"]);
    match message["role"].as_str() {
        Some("system" | "developer") => system.append(&mut content?),
        Some("user") => messages.push("user", content?),
        Some("assistant") => {
            let mut content = content?;
            for call in message["tool_calls"].as_array().into_iter().flatten() {
                let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
                let input: Value = if arguments.trim().is_empty() {
                    json!({})
                } else {
                    serde_json::from_str(arguments)
                        .map_err(|error| format!("arguments of a tool call are no JSON: {error}"))?
                };
                content.push(json!({
                    "type": "tool_use",
                    "id": call["id"],
                    "name": call["function"]["name"],
                    "input": input,
                }));
            }
            messages.push("assistant", content);
        }
        Some("tool") => messages.push(
            "user",
            vec![json!({
                "type": "tool_result",
                "tool_use_id": message["tool_call_id"],
                "content": content?,
            })],
        ),
        role => return Err(format!("messages of the role {role:?}")),
    }
    Ok(())
}

/// The blocks of a message's content. The API refuses empty texts.
fn blocks(content: &Value) -> Result<Vec<Value>, String> {
    let parts = match content {
        Value::Null => return Ok(Vec::new()),
        Value::String(text) if text.is_empty() => return Ok(Vec::new()),
        Value::String(text) => return Ok(vec![text_block(text)]),
        Value::Array(parts) => parts,
        _ => return Err("a message's content is neither a text nor a list".into()),
    };
    parts
        .iter()
        .filter(|part| part["text"] != "")
        .map(|part| match part["type"].as_str() {
            Some("text") => Ok(text_block(part["text"].as_str().unwrap_or_default())),
            Some("refusal") => Ok(text_block(part["refusal"].as_str().unwrap_or_default())),
            Some("image_url") => Ok(image(part["image_url"]["url"].as_str().unwrap_or_default())),
            kind => Err(format!("a part of the type {kind:?}")),
        })
        .collect()
}

/// An image by its address, or, where that holds the image itself (RFC 2397), as data.
fn image(url: &str) -> Value {
    let inline = url
        .strip_prefix("data:")
        .and_then(|rest| rest.split_once(";base64,"));
    let source = match inline {
        Some((media_type, data)) => {
            json!({ "type": "base64", "media_type": media_type, "data": data })
        }
        None => json!({ "type": "url", "url": url }),
    };
    json!({ "type": "image", "source": source })
}

fn tool(tool: &Value) -> Result<Value, String> {
    if tool["type"] != "function" {
        return Err(format!("a tool of the type {}", tool["type"]));
    }
    let function = &tool["function"];
    let mut out = json!({ "name": function["name"] });
    if let Some(text) = function["description"].as_str() {
        out["description"] = text.into();
    }
    out["input_schema"] = match &function["parameters"] {
        Value::Null => json!({ "type": "object", "properties": {} }),
        schema => schema.clone(),
    };
    Ok(out)
}

fn tool_choice(choice: Option<&Value>, parallel: Option<&Value>) -> Result<Option<Value>, String> {
    let mut out = match choice {
        None => json!({ "type": "auto" }),
        Some(Value::String(word)) => match word.as_str() {
            "required" => json!({ "type": "any" }),
            "auto" | "none" => json!({ "type": word }),
            other => return Err(format!("the tool_choice {other:?}")),
        },
        Some(named) if named["type"] == "function" => {
            json!({ "type": "tool", "name": named["function"]["name"] })
        }
        Some(other) => return Err(format!("the tool_choice {other}")),
    };
    let one_at_a_time = parallel == Some(&Value::Bool(false));
    if one_at_a_time && out["type"] != "none" {
        out["disable_parallel_tool_use"] = true.into();
    }
    Ok((choice.is_some() || one_at_a_time).then_some(out))
}

/// A whole answer of the API.
#[derive(Deserialize)]
struct Message {
    id: String,
    model: String,
    content: Vec<Value>,
    stop_reason: Option<String>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct Usage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

impl Usage {
    /// What is said later counts.
    fn update(&mut self, newer: Self) {
        self.input_tokens = newer.input_tokens.or(self.input_tokens);
        self.output_tokens = newer.output_tokens.or(self.output_tokens);
        self.cache_read_input_tokens = newer
            .cache_read_input_tokens
            .or(self.cache_read_input_tokens);
        self.cache_creation_input_tokens = newer
            .cache_creation_input_tokens
            .or(self.cache_creation_input_tokens);
    }

    fn openai(self) -> Value {
        let cached = self.cache_read_input_tokens.unwrap_or(0);
        let prompt = [self.input_tokens, self.cache_creation_input_tokens]
            .into_iter()
            .flatten()
            .fold(cached, u64::saturating_add);
        let completion = self.output_tokens.unwrap_or(0);
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt.saturating_add(completion),
            "prompt_tokens_details": { "cached_tokens": cached },
        })
    }
}

fn finish_reason(stop_reason: &str) -> &'static str {
    match stop_reason {
        "max_tokens" | "model_context_window_exceeded" => "length",
        "tool_use" => "tool_calls",
        "refusal" => "content_filter",
        _ => "stop",
    }
}

/// Seconds since the Unix epoch, as OpenAI's API dates its answers.
fn created() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// A whole answer in the words of OpenAI's API.
///
/// # Errors
/// If it is none.
pub(crate) fn answer(body: &[u8]) -> Result<Bytes, serde_json::Error> {
    let message: Message = serde_json::from_slice(body)?;
    let mut text = String::new();
    let mut calls = Vec::new();
    for block in &message.content {
        match block["type"].as_str() {
            Some("text") => text.push_str(block["text"].as_str().unwrap_or_default()),
            Some("tool_use") => calls.push(json!({
                "id": block["id"],
                "type": "function",
                "function": { "name": block["name"], "arguments": block["input"].to_string() },
            })),
            _ => {}
        }
    }
    let content = if text.is_empty() && !calls.is_empty() {
        Value::Null
    } else {
        text.into()
    };
    let mut said = json!({ "role": "assistant", "content": content });
    if !calls.is_empty() {
        said["tool_calls"] = calls.into();
    }
    let reason = message.stop_reason.as_deref().unwrap_or_default();
    let answer = json!({
        "id": message.id,
        "object": "chat.completion",
        "created": created(),
        "model": message.model,
        "choices": [{ "index": 0, "message": said, "finish_reason": finish_reason(reason), "logprobs": null }],
        "usage": message.usage.openai(),
    });
    Ok(answer.to_string().into())
}

#[cfg(test)]
mod tests;
