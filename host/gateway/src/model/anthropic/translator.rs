//! A stream of the messages API, turned into chunks of OpenAI's as it comes.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::stream::{Broken, Piece, Progress};
use super::{Usage, created, finish_reason};

/// What is known of a stream so far.
#[derive(Debug)]
pub(crate) struct Translator {
    id: String,
    model: String,
    created: u64,
    usage: Usage,
    include_usage: bool,
    /// The content blocks that are tool calls, in order.
    calls: Vec<u64>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Start,
    },
    ContentBlockStart {
        index: u64,
        content_block: Value,
    },
    ContentBlockDelta {
        index: u64,
        delta: Delta,
    },
    MessageDelta {
        delta: Stop,
        #[serde(default)]
        usage: Usage,
    },
    MessageStop,
    Error,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Start {
    id: String,
    model: String,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Stop {
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    #[serde(other)]
    Other,
}

impl Translator {
    pub(crate) fn new(include_usage: bool) -> Self {
        Self {
            id: String::new(),
            model: String::new(),
            created: created(),
            usage: Usage::default(),
            include_usage,
            calls: Vec::new(),
        }
    }

    /// Reads one event of a stream.
    pub(crate) fn take(
        &mut self,
        data: &Bytes,
        ready: &mut VecDeque<Piece>,
        progress: &mut Progress,
    ) -> Result<(), Broken> {
        let event: Event = serde_json::from_slice(data).map_err(Broken::Unreadable)?;
        let mut say = |this: &Self, delta: Value, finish: Option<&str>, content: bool| {
            ready.push_back(Piece {
                data: this.chunk(
                    json!([{ "index": 0, "delta": delta, "finish_reason": finish }]),
                    None,
                ),
                content,
            });
        };
        match event {
            Event::MessageStart { message } => {
                (self.id, self.model) = (message.id, message.model);
                self.usage.update(message.usage);
                progress.saw(0, false);
                say(
                    self,
                    json!({ "role": "assistant", "content": "" }),
                    None,
                    false,
                );
            }
            Event::ContentBlockStart {
                index,
                content_block,
            } => match content_block["type"].as_str() {
                Some("tool_use") => {
                    progress.mixed = true;
                    let call = json!({
                        "index": self.calls.len(),
                        "id": content_block["id"],
                        "type": "function",
                        "function": { "name": content_block["name"], "arguments": "" },
                    });
                    self.calls.push(index);
                    say(self, json!({ "tool_calls": [call] }), None, true);
                }
                Some("text") => {
                    let text = content_block["text"].as_str().unwrap_or_default();
                    if !text.is_empty() {
                        progress.said(text);
                        say(self, json!({ "content": text }), None, true);
                    }
                }
                _ => {}
            },
            Event::ContentBlockDelta { index, delta } => match delta {
                Delta::Text { text } => {
                    progress.said(&text);
                    say(self, json!({ "content": text }), None, true);
                }
                Delta::InputJson { partial_json } => {
                    if let Some(at) = self.calls.iter().position(|block| *block == index) {
                        let call =
                            json!({ "index": at, "function": { "arguments": partial_json } });
                        say(self, json!({ "tool_calls": [call] }), None, true);
                    }
                }
                Delta::Thinking { thinking } => {
                    progress.mixed = true;
                    say(self, json!({ "reasoning_content": thinking }), None, true);
                }
                Delta::Other => {}
            },
            Event::MessageDelta { delta, usage } => {
                self.usage.update(usage);
                if let Some(reason) = delta.stop_reason {
                    progress.saw(0, true);
                    say(self, json!({}), Some(finish_reason(&reason)), true);
                }
            }
            Event::MessageStop => {
                progress.done = progress.is_whole();
                if !progress.done {
                    return Err(Broken::TooEarly);
                }
                if self.include_usage {
                    ready.push_back(Piece {
                        data: self.chunk(json!([]), Some(self.usage.openai())),
                        content: false,
                    });
                }
            }
            Event::Error => return Err(Broken::Error(data.clone())),
            Event::Other => {}
        }
        Ok(())
    }

    fn chunk(&self, choices: Value, usage: Option<Value>) -> Bytes {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(usage) = usage {
            chunk["usage"] = usage;
        }
        chunk.to_string().into()
    }
}
