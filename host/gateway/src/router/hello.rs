//! Who the gateway is: the union of what the servers behind it can do.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::{Map, Value, json};

use super::Router;
use crate::client::Client;
use crate::envelope::Json;
use crate::upstream::{LEGACY, META_SERVER, MODERN, Peer, server_info};

/// Every revision spoken, newest first.
pub(super) const VERSIONS: [&str; 5] = [MODERN, LEGACY, "2025-06-18", "2025-03-26", "2024-11-05"];
/// How long a client waits to hear what servers can do; one not heard of by then is left out.
const PATIENCE: Duration = Duration::from_secs(5);

impl Router {
    /// Takes note of what a client says of itself, before anything is answered.
    pub(crate) fn meet(&self, method: &str, params: Option<&Json>, client: &Client) {
        if method == "initialize" {
            client.greeted(params, &version_for(params));
        }
    }

    /// The answer to `initialize`, in the version the client asks for where it is spoken.
    pub(super) async fn initialize(&self, params: Option<&Json>) -> Json {
        let version = version_for(params);
        let (capabilities, instructions) = self.union().await;
        let mut result = json!({
            "protocolVersion": version, "capabilities": capabilities, "serverInfo": server_info(),
        });
        if let Some(instructions) = instructions {
            result["instructions"] = instructions.into();
        }
        Json::of(&result)
    }

    /// The answer to `server/discover`.
    pub(super) async fn discover(&self) -> Json {
        let (capabilities, instructions) = self.union().await;
        let mut result = json!({
            "resultType": "complete", "supportedVersions": VERSIONS, "capabilities": capabilities,
            "ttlMs": 0, "cacheScope": "private", "_meta": { META_SERVER: server_info() },
        });
        if let Some(instructions) = instructions {
            result["instructions"] = instructions.into();
        }
        Json::of(&result)
    }

    /// What the groups can do together. One server speaks for its group.
    pub(super) async fn union(&self) -> (Map<String, Value>, Option<String>) {
        let known = self.catalog.groups();
        let upstreams = &self.upstreams();
        let groups = known.iter().map(|group| async move {
            let members = upstreams
                .values()
                .filter(|upstream| upstream.spec.group == *group);
            let mut asked: FuturesUnordered<_> =
                members.map(|upstream| upstream.peer(None)).collect();
            let first = async {
                while let Some(peer) = asked.next().await {
                    match peer {
                        Ok(peer) => return Some(peer),
                        Err(error) => tracing::warn!(%error, "cannot be reached"),
                    }
                }
                None
            };
            tokio::time::timeout(PATIENCE, first).await.ok().flatten()
        });
        let peers = futures_util::future::join_all(groups).await;
        let peers: Vec<&Peer> = peers.iter().flatten().map(|peer| &**peer).collect();
        let mut union = Map::new();
        for peer in &peers {
            if let Ok(Value::Object(declared)) = peer.capabilities.read() {
                unite(&mut union, declared);
            }
        }
        if peers.is_empty() {
            // Nobody could be asked yet. Tools are what the gateway is there for, and the list is
            // asked for anew each time.
            union.insert("tools".into(), json!({}));
        }
        // The lists are the gateway's own: they change when servers come and go.
        for list in ["tools", "prompts", "resources"] {
            if let Some(Value::Object(declared)) = union.get_mut(list) {
                declared.insert("listChanged".into(), true.into());
            }
        }
        let instructions: Vec<&str> = peers
            .iter()
            .filter_map(|peer| peer.instructions.as_deref())
            .collect();
        (
            union,
            (!instructions.is_empty()).then(|| instructions.join("\n\n")),
        )
    }
}

fn version_for(params: Option<&Json>) -> String {
    let asked = params.and_then(|params| params.text_member("protocolVersion"));
    asked
        .filter(|asked| VERSIONS[1..].contains(&asked.as_str()))
        .unwrap_or_else(|| LEGACY.into())
}

/// Adds what another can do: of what both say something about, what either can do.
fn unite(union: &mut Map<String, Value>, other: Map<String, Value>) {
    for (name, said) in other {
        match (union.get_mut(&name), said) {
            (Some(Value::Object(known)), Value::Object(said)) => unite(known, said),
            (Some(Value::Bool(known)), Value::Bool(said)) => *known |= said,
            (Some(_), _) => {}
            (None, said) => drop(union.insert(name, said)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_either_can_do_both_can_do_together_and_what_is_unknown_is_kept() {
        let mut union = Map::new();
        for declared in [
            json!({ "tools": { "listChanged": false }, "experimental": { "x": { "n": 1 } } }),
            json!({ "tools": { "listChanged": true }, "experimental": { "y": {} }, "tasks": {} }),
        ] {
            unite(&mut union, declared.as_object().cloned().unwrap());
        }
        assert_eq!(
            Value::Object(union),
            json!({ "tools": { "listChanged": true }, "experimental": { "x": { "n": 1 }, "y": {} }, "tasks": {} })
        );
    }
}
