//! Whether two servers mean the same by one tool.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::envelope::Json;

/// The parts of a tool that its callers rest on.
const PARTS: [&str; 2] = ["inputSchema", "outputSchema"];
/// Members of a schema that are there to be read, not to be kept.
const REMARKS: [&str; 5] = ["$schema", "$comment", "title", "description", "examples"];

/// What a tool takes and gives: its schemas, without remarks and in one order, so that two are equal
/// where a call that is good for one is good for the other. The comparison errs on the side of a
/// difference: schemas that say the same in other words are told apart. Only digests are kept, since
/// every client that can be asked questions has lists of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature([Option<[u8; 32]>; 2]);

impl Signature {
    pub(super) fn of(tool: &Json) -> Self {
        Self(PARTS.map(|part| {
            let mut schema: Value = tool.member(part)?.read().ok()?;
            reduce(&mut schema);
            let mut digest = Sha256::new();
            feed(&mut digest, &schema);
            Some(digest.finalize().into())
        }))
    }

    /// The first part in which the two differ.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let parts = self.0.iter().zip(&other.0).zip(PARTS);
        parts
            .into_iter()
            .find_map(|((ours, theirs), part)| (ours != theirs).then_some(part))
    }
}

/// The same bytes for the same value, in whatever order its members stand.
fn feed(digest: &mut Sha256, value: &Value) {
    match value {
        Value::Array(elements) => {
            digest.update(format!("[{}", elements.len()));
            elements.iter().for_each(|element| feed(digest, element));
        }
        Value::Object(members) => {
            digest.update(format!("{{{}", members.len()));
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| *key);
            for (key, value) in members {
                digest.update(format!("{}:{key}", key.len()));
                feed(digest, value);
            }
        }
        plain => {
            let text = plain.to_string();
            digest.update(format!("{}:{text}", text.len()));
        }
    }
}

fn reduce(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(reduce),
        Value::Object(members) => {
            for remark in REMARKS {
                members.remove(remark);
            }
            for (key, value) in members {
                match (key.as_str(), value) {
                    // Sets, in any order.
                    ("required" | "enum" | "type", Value::Array(set)) => {
                        set.sort_by_cached_key(Value::to_string);
                    }
                    // Their keys are names of the author's, and may be those of remarks.
                    (
                        "properties" | "patternProperties" | "$defs" | "definitions"
                        | "dependentSchemas",
                        Value::Object(named),
                    ) => named.values_mut().for_each(reduce),
                    ("const" | "default" | "enum" | "required" | "type", _) => {}
                    (_, value) => reduce(value),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(ours: &str, theirs: &str) -> Option<&'static str> {
        let of = |schema: &str| {
            let tool = format!(r#"{{"name":"t","inputSchema":{schema}}}"#);
            Signature::of(&Json::parse(tool).unwrap())
        };
        of(ours).difference(&of(theirs))
    }

    #[test]
    fn remarks_and_order_make_no_difference() {
        let ours = r#"{"type":"object","title":"A","required":["a","b"],
            "properties":{"a":{"type":["null","string"],"description":"first"},"b":{"enum":[1,2]}}}"#;
        let theirs = r#"{"$schema":"x","properties":{"b":{"enum":[2,1],"examples":[1]},
            "a":{"type":["string","null"]}},"required":["b","a"],"type":"object"}"#;
        assert_eq!(difference(ours, theirs), None);
    }

    #[test]
    fn a_parameter_may_be_called_like_a_remark() {
        let with = r#"{"properties":{"title":{"type":"string"}}}"#;
        assert_eq!(
            difference(with, r#"{"properties":{}}"#),
            Some("inputSchema")
        );
        let other = r#"{"properties":{"title":{"type":"number"}}}"#;
        assert_eq!(difference(with, other), Some("inputSchema"));
    }

    #[test]
    fn what_a_call_must_hold_makes_a_difference() {
        let plain = r#"{"type":"object","properties":{"a":{"type":"string"}}}"#;
        for other in [
            r#"{"type":"object","properties":{"a":{"type":"string"}},"required":["a"]}"#,
            r#"{"type":"object","properties":{"a":{"type":"string"}},"additionalProperties":false}"#,
            r#"{"type":"object","properties":{"a":{"type":"string","default":"x"}}}"#,
            r#"{"type":"object","properties":{"b":{"type":"string"}}}"#,
        ] {
            assert_eq!(difference(plain, other), Some("inputSchema"), "{other}");
        }
    }

    #[test]
    fn the_output_counts_as_well() {
        let of = |text: &str| Signature::of(&Json::parse(text.to_owned()).unwrap());
        let plain = of(r#"{"name":"t","inputSchema":{}}"#);
        let structured = of(r#"{"name":"t","inputSchema":{},"outputSchema":{"type":"object"}}"#);
        assert_eq!(plain.difference(&structured), Some("outputSchema"));
    }
}
