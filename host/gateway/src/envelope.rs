//! JSON-RPC messages, read no further than the gateway must.
//!
//! A gateway that decodes messages into typed structures loses every field its types do not know,
//! and pays for the decoding. An [`Envelope`] looks at the outermost object only; parameters,
//! results and errors stay the bytes they came as ([`Json`]), shared and not copied.

use std::borrow::Cow;
use std::fmt;

use backstop::mcp::rpc;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// One JSON value, as the bytes it came as.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Bytes);

impl Json {
    /// Checks that the bytes are one JSON value; white space around it is left out.
    ///
    /// # Errors
    /// What the JSON parser says.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, serde_json::Error> {
        let bytes = bytes.into();
        let value: &RawValue = serde_json::from_slice(&bytes)?;
        Ok(Self::slice(&bytes, value))
    }

    /// Makes text from a value.
    pub(crate) fn of<T: serde::Serialize + ?Sized>(value: &T) -> Self {
        // Only maps with keys that are no strings fail, and none is ever passed here.
        Self(serde_json::to_vec(value).map_or_else(|_| Bytes::from_static(b"null"), Bytes::from))
    }

    /// A part of `whole`, without a copy.
    fn slice(whole: &Bytes, part: &RawValue) -> Self {
        Self(whole.slice_ref(part.get().as_bytes()))
    }

    /// The same without what it was a part of.
    pub(crate) fn alone(&self) -> Json {
        Self(Bytes::copy_from_slice(&self.0))
    }

    /// The value's text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value's text, shared.
    pub fn bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// Reads the value as a type, borrowing from it.
    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.0)
    }

    /// One member of an object.
    pub(crate) fn member(&self, name: &str) -> Option<Json> {
        let mut deserializer = serde_json::Deserializer::from_slice(&self.0);
        let found = Member(name).deserialize(&mut deserializer).ok()??;
        Some(Json::slice(&self.0, found))
    }

    /// One member of an object, where it is a string.
    pub(crate) fn text_member(&self, name: &str) -> Option<String> {
        self.member(name)?.read().ok()
    }

    /// The elements of an array.
    pub(crate) fn elements(&self) -> Vec<Json> {
        let elements: Vec<&RawValue> = self.read().unwrap_or_default();
        elements
            .into_iter()
            .map(|element| Json::slice(&self.0, element))
            .collect()
    }

    /// The same object with members set (`Some`) or taken away (`None`); the others keep their
    /// bytes and their order. What is no object becomes one.
    pub(crate) fn with_members(&self, edits: &[(&str, Option<&Json>)]) -> Json {
        let members = Members::of(self).unwrap_or_default();
        let mut out = Vec::with_capacity(self.0.len() + 64);
        out.push(b'{');
        let mut push = |key: &str, value: &[u8]| {
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend_from_slice(Json::of(key).as_bytes());
            out.push(b':');
            out.extend_from_slice(value);
        };
        for (key, value) in &members.0 {
            if !edits.iter().any(|(edited, _)| edited == key) {
                push(key, value.get().as_bytes());
            }
        }
        for (key, value) in edits {
            if let Some(value) = value {
                push(key, value.as_bytes());
            }
        }
        out.push(b'}');
        Json(out.into())
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl serde::Serialize for Json {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_slice(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

/// Looks for one member of an object; the others are passed over.
struct Member<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_meant) = map.next_key_seed(Is(self.0))? {
            if is_meant && found.is_none() {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<de::IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Whether a key is this one.
struct Is<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// The members of an object, in order, each as it came.
#[derive(Default)]
pub(crate) struct Members<'a>(pub(crate) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// The members, if the value is an object.
    pub(crate) fn of(json: &'a Json) -> Option<Self> {
        json.read().ok()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        #[derive(Deserialize)]
        struct Key<'a>(#[serde(borrow)] Cow<'a, str>);
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Key(key), value)) = map.next_entry()? {
                    members.push((key, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// One JSON-RPC message.
#[derive(Debug, Clone)]
pub enum Envelope {
    /// A request.
    Request {
        /// Its id, a string or a number.
        id: Json,
        /// Its method.
        method: Box<str>,
        /// Its parameters.
        params: Option<Json>,
    },
    /// A notification.
    Notification {
        /// Its method.
        method: Box<str>,
        /// Its parameters.
        params: Option<Json>,
    },
    /// An answer.
    Answer {
        /// The id of the request; none where the other side could not read it.
        id: Option<Json>,
        /// What it says.
        answer: Payload,
    },
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// A result.
    Result(Json),
    /// A JSON-RPC error object.
    Error(Json),
}

impl Payload {
    /// The code of an error.
    pub(crate) fn error_code(&self) -> Option<i64> {
        match self {
            Self::Result(_) => None,
            Self::Error(error) => error.member("code")?.read().ok(),
        }
    }

    /// The result or the error object, as it came.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Result(json) | Self::Error(json) => json.as_bytes(),
        }
    }
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// They are no JSON: −32700.
    #[error("not JSON")]
    Parse(#[source] serde_json::Error),
    /// They are JSON, but no JSON-RPC message: −32600.
    #[error("not a JSON-RPC message: {reason}")]
    Invalid {
        /// What is wrong.
        reason: &'static str,
        /// The id, where it could be read.
        id: Option<Json>,
    },
}

impl EnvelopeError {
    /// The answer it deserves, with the id where it could be read (JSON-RPC 2.0, section 5.1).
    pub fn answer(&self) -> Bytes {
        let (code, id) = match self {
            Self::Parse(_) => (rpc::PARSE_ERROR, None),
            Self::Invalid { id, .. } => (rpc::INVALID_REQUEST, id.as_ref()),
        };
        error_message(id, code, &self.to_string(), None)
    }
}

#[derive(Deserialize)]
struct Outer<'a> {
    #[serde(borrow, default)]
    jsonrpc: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
}

/// Keeps a `null` that was written apart from a member that was not.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Envelope {
    /// Reads one message.
    ///
    /// # Errors
    /// [`EnvelopeError`], which knows the answer to give. A batch is refused: only the retired
    /// revision 2025-03-26 of MCP had them.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, EnvelopeError> {
        let bytes = bytes.into();
        let outer: Outer<'_> = match serde_json::from_slice(&bytes) {
            Ok(outer) => outer,
            Err(error) => return Err(Self::refuse(&bytes, error)),
        };
        let json = |raw: &RawValue| Json::slice(&bytes, raw);
        // An id is a string or a number (MCP, basic protocol); some servers answer what they could
        // not read with null.
        let id = outer.id.filter(|id| id.get() != "null");
        let invalid = |reason| EnvelopeError::Invalid {
            reason,
            id: id.map(json),
        };
        if id.is_some_and(|id| {
            !id.get()
                .starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit())
        }) {
            return Err(EnvelopeError::Invalid {
                reason: "the id is neither a string nor a number",
                id: None,
            });
        }
        if outer.jsonrpc.as_deref() != Some("2.0") {
            return Err(invalid("`jsonrpc` is not \"2.0\""));
        }
        let params = outer.params.filter(|params| params.get() != "null");
        if params.is_some_and(|params| !params.get().starts_with(['{', '['])) {
            return Err(invalid("`params` is neither an object nor an array"));
        }
        match (outer.method, outer.result, outer.error) {
            (Some(method), None, None) => {
                let (method, params) = (method.into(), params.map(json));
                match (outer.id, id) {
                    (_, Some(id)) => Ok(Self::Request {
                        id: json(id),
                        method,
                        params,
                    }),
                    (None, None) => Ok(Self::Notification { method, params }),
                    (Some(_), None) => Err(invalid("the id of a request is null")),
                }
            }
            (None, Some(result), None) if id.is_some() => Ok(Self::Answer {
                id: id.map(json),
                answer: Payload::Result(json(result)),
            }),
            (None, None, Some(error)) => Ok(Self::Answer {
                id: id.map(json),
                answer: Payload::Error(json(error)),
            }),
            _ => Err(invalid("it is no request, no notification and no answer")),
        }
    }

    /// Tells what is no JSON from what is JSON of another shape.
    fn refuse(bytes: &Bytes, error: serde_json::Error) -> EnvelopeError {
        if serde_json::from_slice::<de::IgnoredAny>(bytes).is_err() {
            return EnvelopeError::Parse(error);
        }
        let reason = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'[') => "batches are not supported, send one message at a time",
            Some(b'{') => "a member has the wrong type",
            _ => "it is no object",
        };
        EnvelopeError::Invalid { reason, id: None }
    }
}

/// The text of a request.
pub(crate) fn request_message(id: u64, method: &str, params: Option<&Json>) -> Bytes {
    message(
        &[
            ("id", Json::of(&id).as_bytes()),
            ("method", Json::of(method).as_bytes()),
        ],
        params,
    )
}

/// The text of a notification.
pub(crate) fn notification_message(method: &str, params: Option<&Json>) -> Bytes {
    message(&[("method", Json::of(method).as_bytes())], params)
}

fn message(head: &[(&str, &[u8])], params: Option<&Json>) -> Bytes {
    let mut out = Vec::with_capacity(64 + params.map_or(0, |params| params.0.len()));
    out.extend_from_slice(b"{\"jsonrpc\":\"2.0\"");
    let params = params.map(|params| ("params", params.as_bytes()));
    for (key, value) in head.iter().copied().chain(params) {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"\":");
        out.extend_from_slice(value);
    }
    out.push(b'}');
    out.into()
}

/// The text of an answer.
pub(crate) fn answer_message(id: &Json, answer: &Payload) -> Bytes {
    let (key, value) = match answer {
        Payload::Result(result) => ("result", result),
        Payload::Error(error) => ("error", error),
    };
    message(&[("id", id.as_bytes()), (key, value.as_bytes())], None)
}

/// The text of an error of the gateway's own.
pub(crate) fn error_message(
    id: Option<&Json>,
    code: i64,
    message: &str,
    data: Option<&Json>,
) -> Bytes {
    let null = Json(Bytes::from_static(b"null"));
    answer_message(
        id.unwrap_or(&null),
        &Payload::Error(error_object(code, message, data)),
    )
}

/// An error object of the gateway's own.
pub(crate) fn error_object(code: i64, message: &str, data: Option<&Json>) -> Json {
    let object = Json::of(&serde_json::json!({ "code": code, "message": message }));
    match data {
        Some(data) => object.with_members(&[("data", Some(data))]),
        None => object,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(answer: &[u8]) -> i64 {
        serde_json::from_slice::<serde_json::Value>(answer).unwrap()["error"]["code"]
            .as_i64()
            .unwrap()
    }

    #[test]
    fn what_is_not_looked_at_keeps_its_bytes() {
        let text = r#"{"jsonrpc":"2.0","id":"a\u0041","method":"tools/call","params":{"b" : 1.50, "vendor":{ "x":[ ] }}}"#;
        let Envelope::Request { id, params, .. } = Envelope::parse(text).unwrap() else {
            panic!()
        };
        assert_eq!(id.as_bytes(), br#""a\u0041""#);
        assert_eq!(
            params.unwrap().as_bytes(),
            br#"{"b" : 1.50, "vendor":{ "x":[ ] }}"#
        );
    }

    #[test]
    fn what_is_no_message_gets_the_answer_json_rpc_prescribes() {
        let answer = |text: &'static str| Envelope::parse(text).unwrap_err().answer();
        assert_eq!(code_of(&answer("{nonsense")), -32700);
        assert_eq!(code_of(&answer("")), -32700);
        assert_eq!(
            code_of(&answer(
                "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\u{0}\"}"
            )),
            -32700
        );
        for invalid in [
            "1",
            r#"{"id":1,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":3}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":7}"#,
        ] {
            assert_eq!(code_of(&answer(invalid)), -32600, "{invalid}");
        }
        let batch = answer(r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#);
        assert!(String::from_utf8_lossy(&batch).contains("batches"));
    }

    #[test]
    fn white_space_around_a_value_is_no_part_of_it() {
        assert_eq!(Json::parse(" {} \n").unwrap(), Json::parse("{}").unwrap());
    }

    #[test]
    fn an_edit_leaves_the_other_members_as_they_were() {
        let json = Json::parse(r#"{ "a" : 1.0, "b":"é\n", "c": {"d":[1, 2]} }"#).unwrap();
        let edited = json.with_members(&[("a", None), ("e", Some(&Json::of("new")))]);
        assert_eq!(
            edited.as_bytes(),
            r#"{"b":"é\n","c":{"d":[1, 2]},"e":"new"}"#.as_bytes()
        );
    }
}
