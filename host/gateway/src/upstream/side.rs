//! Our side of a connection: for whom it is held, and where what the server says goes.

use std::sync::{Arc, Weak};

use backstop::mcp::rpc;
use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::{Crash, LEGACY, META_SUBSCRIPTION, Wiring, server_info};
use crate::client::{Client, LogLevel, ProgressBack};
use crate::envelope::{self, Json, Members, Payload};
use crate::model::Sampling;

/// What a server says without being asked.
#[derive(Debug, Clone)]
pub(crate) struct Unasked {
    pub(crate) service: Arc<str>,
    pub(crate) method: Box<str>,
    pub(crate) params: Option<Json>,
    /// The client whose connection it came over, where it has one of its own.
    pub(crate) owner: Option<Weak<Client>>,
}

/// What is heard of servers besides answers.
#[derive(Debug, Clone)]
pub(crate) enum Heard {
    /// One said something without being asked.
    Unasked(Unasked),
    /// One has said who it is: it is new, or it was away.
    Greeted {
        service: Arc<str>,
        /// The client whose connection it is, where it has one of its own.
        owner: Option<Weak<Client>>,
    },
    /// One keeps ending before it is of any use.
    Crashing(Crash),
}

/// For whom a connection is held.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    owner: Option<Weak<Client>>,
    host: mpsc::Sender<Heard>,
    level: Arc<LogLevel>,
    /// What answers for clients that cannot sample.
    sampling: Arc<Sampling>,
}

impl Side {
    /// For every client that has no connection of its own. `level` is what they want logged together.
    pub(crate) fn shared(
        host: mpsc::Sender<Heard>,
        level: Arc<LogLevel>,
        sampling: Arc<Sampling>,
    ) -> Self {
        Self {
            owner: None,
            host,
            level,
            sampling,
        }
    }

    /// For one client.
    pub(super) fn of(&self, client: &Arc<Client>) -> Self {
        Self {
            owner: Some(Arc::downgrade(client)),
            ..self.clone()
        }
    }

    /// Whether it is held for one client.
    pub(super) fn is_owned(&self) -> bool {
        self.owner.is_some()
    }

    /// The client it is held for, where that is one.
    pub(super) fn owner(&self) -> Option<Arc<Client>> {
        self.owner.as_ref()?.upgrade()
    }

    /// The words to greet the server with, where the client has said them.
    pub(super) fn hello(&self) -> Option<Json> {
        let hello = self.owner()?.hello()?.clone();
        let declared = hello.member("capabilities");
        let declared = self
            .sampling
            .added_to(declared.unwrap_or_else(|| Json::of(&json!({}))));
        Some(hello.with_members(&[("capabilities", Some(&declared))]))
    }

    /// The words to greet the server with, where no client has said them. A connection many share offers
    /// no capability of a client: the questions of a server would have nobody to go to.
    pub(super) fn own_hello(&self) -> Json {
        let capabilities = self.sampling.added_to(Json::of(&json!({})));
        let capabilities = ("capabilities", Some(&capabilities));
        Json::of(&json!({ "protocolVersion": LEGACY, "clientInfo": server_info() }))
            .with_members(&[capabilities])
    }

    /// What answers for clients that cannot sample.
    pub(crate) fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// What is to be asked for with `logging/setLevel`.
    pub(super) fn log_level(&self) -> Option<&'static str> {
        match self.owner() {
            Some(owner) => owner.log_level.name(),
            None => self.level.name(),
        }
    }

    /// Tells the gateway, as long as there is one.
    fn report(&self, service: &Arc<str>, heard: Heard) {
        if let Err(TrySendError::Full(_)) = self.host.try_send(heard) {
            tracing::warn!(%service, "too much news at once; some is dropped");
        }
    }

    /// The server has said who it is.
    pub(super) fn greeted(&self, service: &Arc<str>) {
        let (service, owner) = (service.clone(), self.owner.clone());
        self.report(&service.clone(), Heard::Greeted { service, owner });
    }

    /// The server keeps ending.
    pub(super) fn crashing(&self, crash: Crash) {
        self.report(&crash.service.clone(), Heard::Crashing(crash));
    }

    /// Gives a notification to whom it concerns. `call` is the request it came with; what comes with
    /// none over a connection many share, and is not for all, is for nobody.
    pub(super) fn heard(
        &self,
        service: &Arc<str>,
        method: &str,
        params: Option<Json>,
        call: Option<&Wiring>,
    ) {
        let of_all = method.ends_with("/list_changed");
        if of_all || method == "notifications/resources/updated" {
            let unasked = Unasked {
                service: service.clone(),
                method: method.into(),
                params: params.map(without_subscription),
                owner: self.owner.clone(),
            };
            self.report(service, Heard::Unasked(unasked));
            return;
        }
        if method == "notifications/subscriptions/acknowledged" {
            return;
        }
        let out = call.and_then(|call| call.out.as_ref());
        let client = self
            .owner()
            .or_else(|| call.and_then(|call| call.client.clone()));
        if method == "notifications/message"
            && client
                .as_ref()
                .is_some_and(|client| !client.wants_log(params.as_ref()))
        {
            return;
        }
        let text = envelope::notification_message(method, params.as_ref());
        match (client.filter(|_| self.owner.is_some()), out) {
            (Some(owner), out) => owner.tell(text, out),
            (None, Some(out)) => drop(out.try_send(text)),
            (None, None) => {
                tracing::debug!(%service, method, "it is not known whom this concerns");
            }
        }
    }

    /// The answer to a question of the server.
    pub(super) async fn answer(
        &self,
        method: &str,
        params: Option<Json>,
        call: Option<mpsc::Sender<Bytes>>,
        progress: ProgressBack,
    ) -> Payload {
        if method == "ping" {
            return Payload::Result(Json::of(&json!({})));
        }
        let owner = self.owner();
        if self.sampling.answers(method, owner.as_deref()) {
            return self.sampling.answer(params.as_ref()).await;
        }
        match owner {
            Some(owner) => owner.ask(method, params, call, progress).await,
            None => {
                let text = format!("no client here has offered to answer {method:?}");
                Payload::Error(envelope::error_object(rpc::METHOD_NOT_FOUND, &text, None))
            }
        }
    }
}

/// Parameters without the gateway's own subscription in them.
fn without_subscription(params: Json) -> Json {
    let Some(meta) = params.member("_meta") else {
        return params;
    };
    let meta = meta.with_members(&[(META_SUBSCRIPTION, None)]);
    let nothing = Members::of(&meta).is_none_or(|members| members.0.is_empty());
    params.with_members(&[("_meta", (!nothing).then_some(&meta))])
}
