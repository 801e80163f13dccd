//! A request of a client, read no further than the gateway must.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::envelope::Json;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Embeddings,
}

impl Endpoint {
    /// The name of the operation, as strategies and events know it.
    pub(crate) fn operation(self) -> &'static str {
        match self {
            Self::Chat => "chat.completions",
            Self::Embeddings => "embeddings",
        }
    }

    /// Its path below the base URL of an OpenAI-compatible API.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "chat/completions",
            Self::Embeddings => "embeddings",
        }
    }
}

/// A request on its way to a model.
#[derive(Debug, Clone)]
pub(crate) struct ModelRequest {
    pub(crate) endpoint: Endpoint,
    /// The body, as the client sent it.
    pub(crate) body: Json,
    /// What the client named as the model.
    pub(crate) asked_for: String,
    pub(crate) stream: bool,
    /// Whether the stream is to end with what was used.
    pub(crate) include_usage: bool,
    pub(crate) needs: Needs,
    /// The only model that may be asked.
    pub(crate) pin: Option<Arc<str>>,
    /// What another model had said before its stream broke off.
    pub(crate) begun: Option<Begun>,
}

/// What a model must be able to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) tools: bool,
    pub(crate) images: bool,
    /// How many tokens request and answer may take, by estimate: a quarter of the text's bytes, and
    /// what is asked for as the longest answer.
    pub(crate) tokens: u64,
    /// How many answers are to be given.
    pub(crate) choices: u32,
    /// What only OpenAI's API can be asked for.
    pub(crate) only_openai: Option<&'static str>,
}

/// An answer that another model began.
#[derive(Debug, Clone)]
pub(crate) struct Begun {
    pub(crate) text: String,
    /// The models that have failed at it.
    pub(crate) without: Vec<Arc<str>>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    n: Option<u32>,
    #[serde(borrow, default)]
    messages: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(borrow, default)]
    response_format: Option<Typed<'a>>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(borrow, default)]
    functions: Option<&'a RawValue>,
    #[serde(borrow, default)]
    audio: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(borrow, rename = "type", default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
}

impl ModelRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// One sentence for the client.
    pub(crate) fn parse(endpoint: Endpoint, body: bytes::Bytes) -> Result<Self, String> {
        let body = Json::parse(body).map_err(|error| format!("the body is no JSON: {error}"))?;
        let head: Head<'_> = body
            .read()
            .map_err(|error| format!("the body cannot be read: {error}"))?;
        let stream = endpoint == Endpoint::Chat && head.stream == Some(true);
        let include_usage = head
            .stream_options
            .as_ref()
            .and_then(|options| options.include_usage)
            .unwrap_or(false);
        let (asked_for, needs) = (head.model.to_string(), head.needs());
        Ok(Self {
            endpoint,
            asked_for,
            stream,
            include_usage,
            needs,
            pin: None,
            begun: None,
            body,
        })
    }
}

impl Head<'_> {
    fn needs(&self) -> Needs {
        let is_there = |value: Option<&RawValue>| {
            value.is_some_and(|value| !matches!(value.get(), "null" | "[]"))
        };
        let format = self.response_format.as_ref();
        let only_openai = [
            (self.n.unwrap_or(1) > 1, "n"),
            (
                format.is_some_and(|format| format.kind != "text"),
                "response_format",
            ),
            (self.logprobs == Some(true), "logprobs"),
            (is_there(self.functions), "functions"),
            (is_there(self.audio), "audio"),
        ]
        .into_iter()
        .find_map(|(asked, name)| asked.then_some(name));
        let tools = self.tools.filter(|tools| is_there(Some(tools)));
        let mut text = tools.map_or(0, |tools| tools.get().len());
        let mut images = false;
        for content in contents(self.messages) {
            let content = content.get();
            match serde_json::from_str::<Vec<Typed<'_>>>(content) {
                Ok(parts) => {
                    for part in parts {
                        images |= matches!(&*part.kind, "image_url" | "input_image" | "image");
                        text += part.text.map_or(0, |text| text.len());
                    }
                }
                Err(_) => text += content.len(),
            }
        }
        let answer = self.max_completion_tokens.or(self.max_tokens).unwrap_or(0);
        Needs {
            tools: tools.is_some() || is_there(self.functions),
            images,
            tokens: (text as u64 / 4).saturating_add(answer),
            choices: self.n.unwrap_or(1).max(1),
            only_openai,
        }
    }
}

/// The content of each message. What cannot be read is the model's to judge.
fn contents(messages: Option<&RawValue>) -> Vec<&RawValue> {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow, default)]
        content: Option<&'a RawValue>,
    }
    let messages: Vec<Message<'_>> = messages
        .and_then(|messages| serde_json::from_str(messages.get()).ok())
        .unwrap_or_default();
    messages
        .into_iter()
        .filter_map(|message| message.content)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn needs(body: serde_json::Value) -> Needs {
        ModelRequest::parse(Endpoint::Chat, body.to_string().into())
            .unwrap()
            .needs
    }

    #[test]
    fn what_a_model_must_be_able_to_do_is_read_from_the_request() {
        let image = json!({ "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAAAAAAAAAAAAAAAAAAAAAA" } });
        let body = json!({
            "model": "m",
            "messages": [
                { "role": "system", "content": "12345678" },
                { "role": "user", "content": [{ "type": "text", "text": "1234" }, image] },
                { "role": "assistant", "tool_calls": [] },
            ],
            "tools": [],
            "max_completion_tokens": 100,
        });
        let needs = needs(body);
        assert!(needs.images && !needs.tools);
        // Of text there are the string with its quotes (10 bytes) and the part (4), a quarter of which
        // counts; the image's bytes are none.
        assert_eq!(needs.tokens, 3 + 100);
    }

    #[test]
    fn what_only_openais_api_knows_is_named() {
        let asking = |key: &str, value: serde_json::Value| {
            let mut body = json!({ "model": "m", "messages": [] });
            body[key] = value;
            needs(body).only_openai
        };
        assert_eq!(asking("n", json!(2)), Some("n"));
        let json_object = json!({ "type": "json_object" });
        assert_eq!(
            asking("response_format", json_object),
            Some("response_format")
        );
        assert_eq!(asking("response_format", json!({ "type": "text" })), None);
        assert_eq!(asking("n", json!(1)), None);
    }

    #[test]
    fn a_body_that_names_no_model_is_refused_in_a_sentence() {
        for body in [
            "{",
            "[]",
            "{}",
            r#"{"model":7}"#,
            r#"{"model":"m","stream":"yes"}"#,
        ] {
            let refused = ModelRequest::parse(Endpoint::Chat, body.into()).unwrap_err();
            assert!(refused.starts_with("the body "), "{refused}");
        }
    }
}
