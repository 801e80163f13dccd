//! Who the gateway is: the union of what the servers behind it can do.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::{Map, Value, json};

use super::Router;
use crate::envelope::Json;
use crate::upstream::{LEGACY, META_SERVER, MODERN, Peer, server_info};

/// Every revision spoken, newest first.
pub(super) const VERSIONS: [&str; 4] = [MODERN, LEGACY, "2025-06-18", "2025-03-26"];
/// How long a client waits to hear what servers can do; one not heard of by then is left out.
const PATIENCE: Duration = Duration::from_secs(5);

impl Router {
    /// The answer to `initialize`, in the version the client asks for where it is spoken.
    pub(super) async fn initialize(&self, params: Option<&Json>) -> Json {
        let asked = params.and_then(|params| params.text_member("protocolVersion"));
        let version = asked
            .filter(|asked| VERSIONS[1..].contains(&asked.as_str()))
            .unwrap_or_else(|| LEGACY.into());
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
    async fn union(&self) -> (Map<String, Value>, Option<String>) {
        let known = self.catalog.groups();
        let upstreams = &self.upstreams();
        let groups = known.iter().map(|group| async move {
            let members = upstreams
                .values()
                .filter(|upstream| upstream.spec.group == *group);
            let mut asked: FuturesUnordered<_> = members.map(|upstream| upstream.peer()).collect();
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
        for name in ["tools", "prompts", "resources", "completions", "logging"] {
            let declared: Vec<Value> = peers
                .iter()
                .filter_map(|peer| peer.capabilities.member(name)?.read::<Value>().ok())
                .collect();
            if declared.is_empty() {
                continue;
            }
            let mut capability = Map::new();
            if declared.iter().any(|value| value["subscribe"] == true) {
                capability.insert("subscribe".into(), true.into());
            }
            // The lists are the gateway's own: they change when servers come and go.
            if matches!(name, "tools" | "prompts" | "resources") {
                capability.insert("listChanged".into(), true.into());
            }
            union.insert(name.into(), capability.into());
        }
        if peers.is_empty() {
            // Nobody could be asked yet. Tools are what the gateway is there for, and the list is
            // asked for anew each time.
            union.insert("tools".into(), json!({ "listChanged": true }));
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
