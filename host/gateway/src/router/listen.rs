//! `subscriptions/listen` (2026-07-28): what a client wants to be told, from every server behind.
//!
//! The gateway acknowledges itself, because it hears the servers over subscriptions of its own: a
//! client's stream goes on while a server is away.

use std::sync::Arc;

use backstop::Call;
use backstop::call::{Level, RepeatSafety};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::{broadcast, mpsc};

use super::{Asker, News, Refused, Router};
use crate::client::Client;
use crate::envelope::{self, Json, Payload};
use crate::exchange::{McpAnswer, McpRequest};
use crate::upstream::META_SUBSCRIPTION;

/// What a client wants to be told.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    tools_list_changed: bool,
    prompts_list_changed: bool,
    resources_list_changed: bool,
    resource_subscriptions: Vec<String>,
}

impl Filter {
    fn wants(&self, news: &News) -> bool {
        match &*news.method {
            "notifications/tools/list_changed" => self.tools_list_changed,
            "notifications/prompts/list_changed" => self.prompts_list_changed,
            "notifications/resources/list_changed" => self.resources_list_changed,
            _ => {
                let uri = news.uri.as_ref();
                uri.is_some_and(|uri| self.resource_subscriptions.contains(uri))
            }
        }
    }

    /// Leaves what somebody behind can tell.
    fn keep(&mut self, can: &Map<String, Value>) {
        let has = |list: &str, flag: &str| can.get(list).is_some_and(|list| list[flag] == true);
        self.tools_list_changed &= has("tools", "listChanged");
        self.prompts_list_changed &= has("prompts", "listChanged");
        self.resources_list_changed &= has("resources", "listChanged");
        if !has("resources", "subscribe") {
            self.resource_subscriptions.clear();
        }
    }

    fn told(&self) -> Json {
        let mut told = Map::new();
        for (name, wanted) in [
            ("toolsListChanged", self.tools_list_changed),
            ("promptsListChanged", self.prompts_list_changed),
            ("resourcesListChanged", self.resources_list_changed),
        ] {
            if wanted {
                told.insert(name.into(), true.into());
            }
        }
        if !self.resource_subscriptions.is_empty() {
            let uris = self.resource_subscriptions.clone();
            told.insert("resourceSubscriptions".into(), uris.into());
        }
        Json::of(&told)
    }
}

impl Router {
    /// Tells until the client takes the request back or the gateway shuts down.
    pub(super) async fn listen(
        &self,
        id: &Json,
        params: Option<Json>,
        asker: &Asker,
    ) -> Result<McpAnswer, Refused> {
        let Some(out) = &asker.out else {
            return Err(Refused::params(
                "what is listened to comes as events: accept text/event-stream",
            ));
        };
        let filter = params.and_then(|params| params.member("notifications"));
        let filter = filter.map(|filter| filter.read::<Filter>()).transpose();
        let filter =
            filter.map_err(|error| Refused::params(format!("`notifications`: {error}")))?;
        let mut filter = filter.unwrap_or_default();
        filter.keep(&self.union().await.0);

        let mut news = self.news.subscribe();
        // Holds what is watched for this request, and lets go of it with it.
        let (nowhere, _) = mpsc::channel(1);
        let listener = Client::new(format!("listener {id:?}").into(), nowhere);
        let mut watched = Vec::new();
        for uri in std::mem::take(&mut filter.resource_subscriptions) {
            match self.watch(&uri, asker, &listener).await {
                Ok(()) => watched.push(uri),
                Err(refused) => tracing::info!(uri, reason = refused.message, "not watched"),
            }
        }
        filter.resource_subscriptions = watched;

        let subscription = |params: Option<Json>| {
            let params = params.unwrap_or_else(|| Json::of(&json!({})));
            let meta = params.member("_meta");
            let meta = meta.unwrap_or_else(|| Json::of(&json!({})));
            let meta = meta.with_members(&[(META_SUBSCRIPTION, Some(id))]);
            params.with_members(&[("_meta", Some(&meta))])
        };
        let told = Json::of(&json!({})).with_members(&[("notifications", Some(&filter.told()))]);
        let mut message = envelope::notification_message(
            "notifications/subscriptions/acknowledged",
            Some(&subscription(Some(told))),
        );
        loop {
            if out.send(message).await.is_err() {
                break;
            }
            let next = async {
                loop {
                    match news.recv().await {
                        Ok(news) if filter.wants(&news) => return Some(news),
                        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return None,
                    }
                }
            };
            let Some(Some(news)) = self.closing.run_until_cancelled(next).await else {
                break;
            };
            let params = subscription(news.params);
            message = envelope::notification_message(&news.method, Some(&params));
        }
        Ok(McpAnswer::new(Payload::Result(subscription(None))))
    }

    /// Has a resource watched by the server the engine finds for it.
    async fn watch(&self, uri: &str, asker: &Asker, listener: &Arc<Client>) -> Result<(), Refused> {
        let group = self
            .find_uri(&self.catalog_of(asker.client.as_ref()), uri, asker)
            .await?;
        let method = "resources/subscribe";
        let call = Call::new(group, method)
            .level(Level::Resource)
            .repeat_safety(RepeatSafety::Idempotent);
        let mut request = McpRequest::new(method, Some(Json::of(&json!({ "uri": uri }))));
        request.wiring.client = Some(listener.clone());
        let outcome = self.engine.call(&self.exchange, call, &request).await;
        match outcome.map(|outcome| outcome.answer.payload) {
            Ok(Payload::Result(_)) => Ok(()),
            Ok(Payload::Error(error)) => Err(Refused::params(format!("{error:?}"))),
            Err(failed) => Err(Refused::params(failed.to_string())),
        }
    }
}
