//! Arguments that a tool's schema wants in header fields as well (MCP 2026-07-28, streamable HTTP, custom
//! headers from tool parameters). A client of the newest revision over HTTP sends them itself; what
//! another client has no way to say, the gateway does.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use crate::envelope::Json;
use crate::upstream::{MODERN, field_value};

const PREFIX: &str = "mcp-param-";
const ANNOTATION: &str = "x-mcp-header";
/// Schemas that nest deeper are not looked into.
const DEEPEST: usize = 16;

/// A header field, and the argument that goes into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirrored {
    header: HeaderName,
    path: Vec<String>,
}

impl Mirrored {
    /// What a tool's schema says of this; nothing where it says what is not allowed, so that it is left
    /// to the server.
    pub(super) fn of(tool: &Json) -> Vec<Self> {
        let Some(schema) = tool.member("inputSchema") else {
            return Vec::new();
        };
        let is_there = schema
            .as_bytes()
            .windows(ANNOTATION.len())
            .any(|window| window == ANNOTATION.as_bytes());
        let mut found = Vec::new();
        if is_there
            && let Ok(schema) = schema.read::<Value>()
            && collect(&schema, &mut Vec::new(), &mut found).is_none()
        {
            found.clear();
        }
        found
    }

    /// The field for these arguments; none where the argument is null or not there.
    fn field(&self, arguments: &Value) -> Option<(HeaderName, HeaderValue)> {
        let mut value = arguments;
        for key in &self.path {
            value = value.get(key)?;
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            _ => return None,
        };
        let value = HeaderValue::try_from(field_value(text)).ok()?;
        Some((self.header.clone(), value))
    }
}

/// The properties that are named, along `properties` only. `None` where one may not be.
fn collect(schema: &Value, path: &mut Vec<String>, found: &mut Vec<Mirrored>) -> Option<()> {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (key, property) in properties.into_iter().flatten() {
        path.push(key.clone());
        if let Some(name) = property.get(ANNOTATION) {
            let kind = property.get("type").and_then(Value::as_str);
            let is_plain = matches!(kind, Some("string" | "integer" | "boolean"));
            let name = name.as_str().filter(|name| is_plain && !name.is_empty())?;
            let header = HeaderName::try_from(format!("{PREFIX}{name}")).ok()?;
            if found.iter().any(|other| other.header == header) {
                return None;
            }
            let path = path.clone();
            found.push(Mirrored { header, path });
        } else if path.len() < DEEPEST {
            collect(property, path, found)?;
        }
        path.pop();
    }
    Some(())
}

/// The fields for a call with these arguments.
pub(super) fn fields(
    mirrored: &[Mirrored],
    arguments: Option<&Json>,
) -> Vec<(HeaderName, HeaderValue)> {
    let arguments = arguments.and_then(|arguments| arguments.read::<Value>().ok());
    let arguments = arguments.unwrap_or_default();
    let fields = mirrored.iter().map(|mirrored| mirrored.field(&arguments));
    fields.flatten().collect()
}

/// The fields a client has sent, where it is one of those that must.
pub(crate) fn sent(headers: &HeaderMap) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let version = headers.get("mcp-protocol-version")?;
    let is_field = |(name, _): &(&HeaderName, &HeaderValue)| name.as_str().starts_with(PREFIX);
    let fields = headers.iter().filter(is_field);
    (version == MODERN).then(|| {
        fields
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(schema: Value, arguments: Value) -> Vec<String> {
        let mirrored = Mirrored::of(&Json::of(&json!({ "name": "t", "inputSchema": schema })));
        let fields = fields(&mirrored, Some(&Json::of(&arguments)));
        let told = fields.into_iter().map(|(name, value)| {
            let value = value.to_str().unwrap().to_owned();
            format!("{name}: {value}")
        });
        told.collect()
    }

    #[test]
    fn named_arguments_become_fields_wherever_they_stand() {
        let schema = json!({ "type": "object", "properties": {
            "region": { "type": "string", "x-mcp-header": "Region" },
            "far": { "type": "string", "x-mcp-header": "Far" },
            "count": { "type": "integer", "x-mcp-header": "Count" },
            "none": { "type": "boolean", "x-mcp-header": "None" },
            "absent": { "type": "boolean", "x-mcp-header": "Absent" },
            "plain": { "type": "string" },
            "inner": { "type": "object", "properties": {
                "flag": { "type": "boolean", "x-mcp-header": "Flag" } } },
        } });
        let arguments = json!({ "region": "us-west1", "far": "日本 ", "count": 42, "none": null,
            "plain": "x", "inner": { "flag": true } });
        let mut told = told(schema, arguments);
        told.sort();
        assert_eq!(
            told,
            [
                "mcp-param-count: 42",
                "mcp-param-far: =?base64?5pel5pysIA==?=",
                "mcp-param-flag: true",
                "mcp-param-region: us-west1",
            ]
        );
    }

    #[test]
    fn a_schema_that_names_what_it_may_not_is_left_to_the_server() {
        let good = json!({ "type": "string", "x-mcp-header": "Good" });
        for bad in [
            json!({ "type": "string", "x-mcp-header": "" }),
            json!({ "type": "string", "x-mcp-header": "My Region" }),
            json!({ "type": "string", "x-mcp-header": "good" }),
            json!({ "type": "number", "x-mcp-header": "N" }),
            json!({ "type": "object", "x-mcp-header": "O" }),
        ] {
            let schema = json!({ "properties": { "a": good, "b": bad } });
            assert_eq!(
                told(schema, json!({ "a": "x", "b": "y" })),
                [""; 0],
                "{bad}"
            );
        }
    }

    #[test]
    fn only_a_client_of_the_newest_revision_sends_them_itself() {
        let mut headers = HeaderMap::new();
        headers.insert("mcp-param-a", HeaderValue::from_static("1"));
        headers.insert("accept", HeaderValue::from_static("*/*"));
        assert_eq!(sent(&headers), None);
        headers.insert(
            "mcp-protocol-version",
            HeaderValue::from_static("2025-11-25"),
        );
        assert_eq!(sent(&headers), None);
        headers.insert("mcp-protocol-version", HeaderValue::from_static(MODERN));
        assert_eq!(sent(&headers).unwrap().len(), 1);
    }
}
