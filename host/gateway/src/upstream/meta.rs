//! `_meta`: where the two eras of MCP differ inside a request, and what results of the newest have more.
//!
//! From 2026-07-28 every request says who asks and in which version; before, the handshake did. And
//! a progress token must be the gateway's own, because clients share the connection and each
//! chooses its tokens freely.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::MODERN;
use crate::client::Client;
use crate::envelope::{Json, Members};
use crate::model::Sampling;

pub(crate) const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const META_CLIENT: &str = "io.modelcontextprotocol/clientInfo";
pub(crate) const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
pub(crate) const META_SERVER: &str = "io.modelcontextprotocol/serverInfo";
pub(crate) const META_SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
const META_LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";

/// Who the gateway is, to servers and to clients.
pub(crate) fn server_info() -> serde_json::Value {
    json!({ "name": "backstop", "version": env!("CARGO_PKG_VERSION") })
}

/// The parameters as the server's era wants them, with the gateway's progress token where the
/// client gave one. What a client of the older era said once is said with each request to a server of
/// the newest. Parameters that need no change keep their bytes.
pub(super) fn translate(
    params: Option<&Json>,
    modern: bool,
    token: Option<u64>,
    asker: Option<&Client>,
    sampling: &Sampling,
) -> Option<Json> {
    let old = params.and_then(|params| params.member("_meta"));
    if old.is_none() && !modern && token.is_none() {
        return params.cloned();
    }
    let empty = Json::of(&json!({}));
    let present = old.clone().unwrap_or_else(|| empty.clone());
    let keys: Vec<String> = Members::of(&present)
        .map(|m| m.0.into_iter().map(|(key, _)| key.into_owned()).collect())
        .unwrap_or_default();
    let has = |name: &str| keys.iter().any(|key| key == name);

    let version = Json::of(MODERN);
    let hello = asker.and_then(Client::hello).filter(|_| modern);
    let said_before = |name: &str| hello.and_then(|hello| hello.member(name));
    let client = (modern && !has(META_CLIENT))
        .then(|| said_before("clientInfo").unwrap_or_else(|| Json::of(&server_info())));
    // What the client has said itself changes only where something is added to it.
    let capabilities = (modern && (!has(META_CAPABILITIES) || sampling.is_on())).then(|| {
        let said = present.member(META_CAPABILITIES);
        let said = said.or_else(|| said_before("capabilities"));
        sampling.added_to(said.unwrap_or_else(|| empty.clone()))
    });
    let level = asker.and_then(|asker| asker.log_level.name()).map(Json::of);
    let token = token.map(|token| Json::of(&token));
    let mut edits: Vec<(&str, Option<&Json>)> = Vec::new();
    if modern {
        edits.push((META_VERSION, Some(&version)));
        edits.extend(client.as_ref().map(|client| (META_CLIENT, Some(client))));
        edits.extend(
            capabilities
                .as_ref()
                .map(|capabilities| (META_CAPABILITIES, Some(capabilities))),
        );
        if level.is_some() && !has(META_LOG_LEVEL) {
            edits.push((META_LOG_LEVEL, level.as_ref()));
        }
    } else {
        let modern_only = [META_VERSION, META_CLIENT, META_CAPABILITIES, META_LOG_LEVEL];
        edits.extend(
            modern_only
                .into_iter()
                .filter(|name| has(name))
                .map(|name| (name, None)),
        );
    }
    if token.is_some() || has("progressToken") {
        edits.push(("progressToken", token.as_ref()));
    }
    if edits.is_empty() {
        return params.cloned();
    }
    let meta = present.with_members(&edits);
    let nothing = Members::of(&meta).is_none_or(|members| members.0.is_empty());
    if nothing && params.is_none() {
        return None;
    }
    Some(
        params
            .unwrap_or(&empty)
            .with_members(&[("_meta", (!nothing).then_some(&meta))]),
    )
}

/// A result of a server of the newest era as its own words to a client of the older would be: without
/// what it adds to results of every kind. What has another meaning there than a plain answer stays as it
/// is.
pub(crate) fn plain(result: Json) -> Json {
    if result.text_member("resultType").as_deref() != Some("complete") {
        return result;
    }
    let meta = result.member("_meta");
    let left = meta.map(|meta| meta.with_members(&[(META_SERVER, None)]));
    let left = left.filter(|left| Members::of(left).is_some_and(|members| !members.0.is_empty()));
    result.with_members(&[
        ("resultType", None),
        ("ttlMs", None),
        ("cacheScope", None),
        ("_meta", left.as_ref()),
    ])
}

/// `Mcp-Name` (SEP-2243): the thing a request is about, so that a middle box need not read it.
pub(crate) fn name_of(method: &str, params: &Json) -> Option<String> {
    let key = match method {
        "tools/call" | "prompts/get" => "name",
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => "uri",
        "tasks/get" | "tasks/update" | "tasks/cancel" => "taskId",
        _ => return None,
    };
    params.text_member(key).map(field_value)
}

/// A text as a header field may hold it (MCP 2026-07-28, streamable HTTP, value encoding).
pub(crate) fn field_value(name: String) -> String {
    let edged = name.starts_with([' ', '\t']) || name.ends_with([' ', '\t']);
    let sentinel = name.starts_with("=?base64?") && name.ends_with("?=");
    let printable = name.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    let plain = printable && !edged && !sentinel;
    if plain {
        name
    } else {
        format!("=?base64?{}?=", BASE64.encode(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_need_no_change_keep_their_bytes() {
        let params = Json::parse(r#"{ "name" : "x", "arguments":{} }"#).unwrap();
        assert_eq!(
            translate(Some(&params), false, None, None, &Sampling::default()).unwrap(),
            params
        );
        let vendor = Json::parse(r#"{ "_meta" : {"vendor":1} }"#).unwrap();
        assert_eq!(
            translate(Some(&vendor), false, None, None, &Sampling::default()).unwrap(),
            vendor
        );
    }

    #[test]
    fn a_plain_result_of_the_newest_era_is_told_to_the_older_without_what_it_does_not_know() {
        let told = |result: &'static str| {
            let told = plain(Json::parse(result).unwrap());
            String::from_utf8(told.as_bytes().to_vec()).unwrap()
        };
        let list = r#"{"resultType":"complete","tools":[ ],"ttlMs":5,"cacheScope":"public","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s"}}}"#;
        assert_eq!(told(list), r#"{"tools":[ ]}"#);
        let call = r#"{"content":[],"vendor" : 1.0,"resultType":"complete","_meta":{"io.modelcontextprotocol/serverInfo":{},"v":1}}"#;
        let call = told(call);
        assert!(
            call.contains(r#""vendor":1.0"#) && call.contains(r#""_meta":{"v":1}"#),
            "{call}"
        );
        for kept in [
            r#"{"ttlMs":5, "tools":[]}"#,
            r#"{"resultType":"task","ttlMs":5}"#,
        ] {
            assert_eq!(told(kept), kept);
        }
    }

    #[test]
    fn each_era_gets_the_meta_it_knows() {
        let params = Json::parse(r#"{"name":"x"}"#).unwrap();
        let modern = translate(Some(&params), true, Some(7), None, &Sampling::default()).unwrap();
        let meta = modern.member("_meta").unwrap();
        assert_eq!(meta.text_member(META_VERSION).unwrap(), MODERN);
        assert_eq!(meta.member("progressToken").unwrap().as_bytes(), b"7");
        let legacy = translate(Some(&modern), false, None, None, &Sampling::default()).unwrap();
        assert_eq!(legacy, params);
    }
}
