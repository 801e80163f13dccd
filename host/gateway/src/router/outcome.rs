//! How a call's outcome is told to a client of MCP.
//!
//! What one server answered at once goes on byte for byte, errors as well. What went another way
//! says so: in `_meta`, under `backstop`, where there is an answer; in the `data` of an error of
//! the gateway's own (codes in [`backstop::mcp::code`]) where there is none.

use backstop::Outcome;
use backstop::call::{Ending, Failed};
use backstop::mcp::code_of;
use serde_json::json;

use crate::envelope::{Json, Payload, error_object};
use crate::exchange::{McpAnswer, chain};
use crate::upstream::UpstreamError;

/// The answer to a request, from what became of its call.
pub(crate) fn tell(
    outcome: Result<Outcome<McpAnswer>, Failed<McpAnswer, UpstreamError>>,
) -> McpAnswer {
    match outcome {
        Ok(outcome) if outcome.trouble.is_none() && outcome.degraded.is_none() => outcome.answer,
        Ok(outcome) => labelled(outcome),
        Err(failed) => {
            let told_otherwise =
                failed.error.ending == Ending::FailedFast && failed.error.message.is_some();
            let only = failed.error.trouble.attempts.len() <= 1 && !told_otherwise;
            match failed.raw {
                Some(Ok(answer)) if only => answer,
                Some(Ok(McpAnswer {
                    payload: Payload::Error(error),
                    ..
                })) if failed.error.trouble.attempts.len() <= 1 => McpAnswer::new(Payload::Error(
                    in_other_words(error, failed.error.message.as_deref().unwrap_or_default()),
                )),
                // A tool's own answer stays one, however many were asked before it.
                Some(Ok(answer)) if answer.is_error() && !told_otherwise => {
                    let label =
                        Json::of(&json!({ "call": failed.error.id, "error": failed.error }));
                    with_label(answer, &label)
                }
                _ => {
                    let (code, data) = (code_of(failed.error.ending), Json::of(&failed.error));
                    McpAnswer::new(Payload::Error(error_object(
                        code.into(),
                        &chain(&failed.error),
                        Some(&data),
                    )))
                }
            }
        }
    }
}

/// The only server's error, as a strategy words it. Its code and its data are what programs go by, so
/// they stay; words that only repeat the server's take nothing's place.
fn in_other_words(error: Json, words: &str) -> Json {
    let own = error.text_member("message").unwrap_or_default();
    if words.contains(&own) {
        return error;
    }
    error.with_members(&[("message", Some(&Json::of(words)))])
}

fn labelled(outcome: Outcome<McpAnswer>) -> McpAnswer {
    let label = Json::of(&json!({
        "served_by": outcome.served_by, "degraded": outcome.degraded,
        "attempts": outcome.attempts(), "call": outcome.id,
    }));
    with_label(outcome.answer, &label)
}

/// Puts what the gateway has to say into a result's `_meta`.
fn with_label(answer: McpAnswer, label: &Json) -> McpAnswer {
    let Payload::Result(result) = &answer.payload else {
        return answer;
    };
    let meta = result
        .member("_meta")
        .unwrap_or_else(|| Json::of(&json!({})));
    let meta = meta.with_members(&[("backstop", Some(label))]);
    let payload = Payload::Result(result.with_members(&[("_meta", Some(&meta))]));
    McpAnswer {
        payload,
        head: answer.head,
    }
}

/// A result as the newest revision wants it, whatever the server made of it.
pub(super) fn typed(answer: McpAnswer, method: &str) -> McpAnswer {
    let Payload::Result(result) = &answer.payload else {
        return answer;
    };
    let (complete, zero, private) = (Json::of("complete"), Json::of(&0), Json::of("private"));
    let mut edits = Vec::new();
    if !answer.head.typed {
        edits.push(("resultType", Some(&complete)));
    }
    if method.ends_with("/list") || method == "resources/read" {
        let wanted = [("ttlMs", &zero), ("cacheScope", &private)];
        let missing = wanted
            .into_iter()
            .filter(|(name, _)| result.member(name).is_none());
        edits.extend(missing.map(|(name, value)| (name, Some(value))));
    }
    if edits.is_empty() {
        return answer;
    }
    McpAnswer {
        payload: Payload::Result(result.with_members(&edits)),
        head: answer.head,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_gets_what_the_newest_revision_asks_for_and_keeps_what_it_has() {
        let told = |result: &'static str, method: &str| {
            let result = Payload::Result(Json::parse(result).unwrap());
            let told = typed(McpAnswer::new(result), method).payload;
            serde_json::from_slice::<serde_json::Value>(told.as_bytes()).unwrap()
        };
        let of_old = told(r#"{"tools":[]}"#, "tools/list");
        let whole =
            json!({ "tools": [], "resultType": "complete", "ttlMs": 0, "cacheScope": "private" });
        assert_eq!(of_old, whole);
        let half = told(
            r#"{"resultType":"complete","ttlMs":5,"tools":[]}"#,
            "tools/list",
        );
        assert_eq!(half["ttlMs"], 5);
        assert_eq!(half["cacheScope"], "private");
        let call = told(r#"{"resultType":"vendor"}"#, "tools/call");
        assert_eq!(call, json!({ "resultType": "vendor" }));
    }

    #[test]
    fn a_servers_error_keeps_its_code_and_data_whatever_a_strategy_says() {
        let error =
            Json::parse(r#"{"code":-32602 ,"message":"no such","data":{"uri":"x"}}"#).unwrap();
        let repeated = in_other_words(error.clone(), "get failed, which is final: no such");
        assert_eq!(repeated, error);
        let reworded = in_other_words(error, "sign in again");
        assert_eq!(
            reworded.as_bytes(),
            br#"{"code":-32602,"data":{"uri":"x"},"message":"sign in again"}"#
        );
    }
}
