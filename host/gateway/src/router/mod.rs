//! From a client's request to an answer: which group it concerns, what the engine made of it, and
//! how that is told.
//!
//! Both eras of MCP meet here. What can be answered without a server (who the gateway is, `ping`) is
//! answered here; everything else is a call of the engine.

mod hello;
mod lists;
mod outcome;
mod survey;

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop::call::{Level, RepeatSafety};
use backstop::mcp::rpc;
use backstop::operation::OperationRules;
use backstop::{Call, Engine};
use bytes::Bytes;
use reqwest::header::{HeaderName, HeaderValue};
use serde_json::json;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;

use crate::catalog::{Catalog, Route, Section};
use crate::envelope::{self, Json, Payload};
use crate::exchange::{McpAnswer, McpExchange, McpRequest, Upstreams};
use crate::telemetry::{Good, error_type};
use crate::upstream::{META_VERSION, MODERN, Unasked, Upstream, Wiring};

/// Exchanges in several rounds whose server is remembered.
const ROUNDS_REMEMBERED: usize = 1024;
/// How often a call looks whether the group it needs is known by now.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Unasked messages that may wait for a slow front; it misses the oldest.
const NEWS_QUEUE: usize = 256;

/// Who asks, and what their front can do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asker {
    /// Answers kept as private are given back to the same caller only.
    pub(crate) caller: Option<Arc<str>>,
    /// Where notifications about the request go.
    pub(crate) out: Option<mpsc::Sender<Bytes>>,
    /// Header fields a server may want.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

/// What a server said without being asked.
#[derive(Debug, Clone)]
pub(crate) struct News {
    /// The resource it is about, for `notifications/resources/updated`: only its subscribers are told.
    pub(crate) uri: Option<String>,
    /// The message.
    pub(crate) text: Bytes,
}

/// Answers requests.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) engine: Engine,
    pub(crate) exchange: McpExchange,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) news: broadcast::Sender<News>,
    /// Which server asked back, by the state it wants to be given.
    rounds: Mutex<VecDeque<(String, Arc<str>)>>,
    loading: tokio::sync::Mutex<lists::Tried>,
    /// Servers that are being asked what they offer, for nobody in particular.
    surveyed: Mutex<HashSet<Arc<str>>>,
    /// Held while the set of servers is replaced.
    changing: Mutex<()>,
    good: Good,
}

/// A refusal of the gateway's own.
pub(crate) struct Refused {
    code: i64,
    pub(crate) message: String,
    data: Option<Json>,
}

impl Refused {
    fn params(message: impl Into<String>) -> Self {
        Self {
            code: rpc::INVALID_PARAMS,
            message: message.into(),
            data: None,
        }
    }
}

impl Router {
    pub(crate) fn new(engine: Engine, operations: OperationRules) -> Self {
        let catalog = Arc::new(Catalog::default());
        let exchange = McpExchange {
            upstreams: Arc::default(),
            catalog: catalog.clone(),
            operations: Arc::new(operations),
        };
        let news = broadcast::channel(NEWS_QUEUE).0;
        Self {
            engine,
            exchange,
            catalog,
            news,
            rounds: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            surveyed: Mutex::default(),
            changing: Mutex::default(),
            good: Good::default(),
        }
    }

    /// The servers there are.
    pub(crate) fn upstreams(&self) -> Arc<Upstreams> {
        self.exchange.upstreams.load_full()
    }

    pub(crate) fn upstream(&self, service: &str) -> Option<Arc<Upstream>> {
        self.exchange.upstreams.load().get(service).cloned()
    }

    /// Answers one request; dropping the future cancels it at the server that works on it.
    pub(crate) async fn answer(
        &self,
        id: &Json,
        method: &str,
        params: Option<Json>,
        asker: &Asker,
    ) -> Bytes {
        let began = Instant::now();
        let meta = params.as_ref().and_then(|params| params.member("_meta"));
        let version = meta
            .as_ref()
            .and_then(|meta| meta.text_member(META_VERSION));
        let modern = version.is_some();
        let answered = match version {
            Some(version) if version != MODERN => Err(Refused {
                code: rpc::UNSUPPORTED_PROTOCOL_VERSION,
                message: format!("version {version:?} is not spoken here"),
                data: Some(Json::of(
                    &json!({ "supported": hello::VERSIONS, "requested": version }),
                )),
            }),
            _ => self.dispatch(method, params, meta, asker).await,
        };
        let error = match &answered {
            Ok(answer) => error_type(&answer.payload, answer.is_error()),
            Err(refused) => Some(refused.code.to_string().into()),
        };
        self.good.answered(method, error, began.elapsed());
        match answered {
            Ok(answer) if modern => {
                envelope::answer_message(id, &outcome::typed(answer, method).payload)
            }
            Ok(answer) => envelope::answer_message(id, &answer.payload),
            Err(Refused {
                code,
                message,
                data,
            }) => envelope::error_message(Some(id), code, &message, data.as_ref()),
        }
    }

    async fn dispatch(
        &self,
        method: &str,
        params: Option<Json>,
        meta: Option<Json>,
        asker: &Asker,
    ) -> Result<McpAnswer, Refused> {
        let own = |result: Json| Ok(McpAnswer::new(Payload::Result(result)));
        if let Some(section) = Section::of_method(method) {
            return self
                .list(section, asker)
                .await
                .map(|result| McpAnswer::new(Payload::Result(result)));
        }
        match method {
            "initialize" => return own(self.initialize(params.as_ref()).await),
            "server/discover" => return own(self.discover().await),
            "ping" => return own(Json::of(&json!({}))),
            "logging/setLevel" => return own(self.set_log_level(params.as_ref()).await),
            _ => {}
        }
        let params = params.unwrap_or_else(|| Json::of(&json!({})));
        let (call, params) = self.aim(method, params).await?;
        let call = self.exchange.operations.apply(call);
        let call = match &asker.caller {
            Some(caller) => call.caller(caller.clone()),
            None => call,
        };
        let call = self.same_round(call, &params);
        let token = meta.and_then(|meta| meta.member("progressToken"));
        let wiring = Wiring {
            token,
            out: asker.out.clone(),
            headers: asker.headers.clone(),
        };
        let request = McpRequest {
            method: method.into(),
            params: Some(params),
            wiring,
        };
        let outcome = self.engine.call(&self.exchange, call, &request).await;
        if let Ok(outcome) = &outcome {
            self.remember_round(outcome);
        }
        Ok(outcome::tell(outcome))
    }

    /// Which group a request concerns, and its parameters as that group knows them.
    async fn aim(&self, method: &str, params: Json) -> Result<(Call, Json), Refused> {
        let text = |name: &str| {
            let missing = || Refused::params(format!("{method:?} needs `{name}`, a string"));
            params.text_member(name).ok_or_else(missing)
        };
        match method {
            "tools/call" => {
                let name = text("name")?;
                let (group, own) = self.find(Section::Tools, &name).await?;
                let safety = self.tool_safety(&group, &own);
                let params = if own == name {
                    params
                } else {
                    params.with_members(&[("name", Some(&Json::of(&own)))])
                };
                Ok((
                    Call::new(group, own)
                        .level(Level::Tool)
                        .repeat_safety(safety),
                    params,
                ))
            }
            "prompts/get" => {
                let name = text("name")?;
                let (group, own) = self.find(Section::Prompts, &name).await?;
                let params = if own == name {
                    params
                } else {
                    params.with_members(&[("name", Some(&Json::of(&own)))])
                };
                Ok((
                    Call::new(group, own)
                        .level(Level::Prompt)
                        .repeat_safety(RepeatSafety::ReadOnly),
                    params,
                ))
            }
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => {
                let uri = text("uri")?;
                let group = self.find_uri(&uri).await?;
                let read = method == "resources/read";
                let safety = if read {
                    RepeatSafety::ReadOnly
                } else {
                    RepeatSafety::Idempotent
                };
                let operation = if read { uri } else { method.to_owned() };
                Ok((
                    Call::new(group, operation)
                        .level(Level::Resource)
                        .repeat_safety(safety),
                    params,
                ))
            }
            "completion/complete" => {
                let reference = params.member("ref").unwrap_or_else(|| Json::of(&json!({})));
                let (group, params) = if let Some(uri) = reference.text_member("uri") {
                    (self.find_uri(&uri).await?, params)
                } else if let Some(name) = reference.text_member("name") {
                    let (group, own) = self.find(Section::Prompts, &name).await?;
                    let reference = reference.with_members(&[("name", Some(&Json::of(&own)))]);
                    let same = own == name;
                    (
                        group,
                        if same {
                            params
                        } else {
                            params.with_members(&[("ref", Some(&reference))])
                        },
                    )
                } else {
                    return Err(Refused::params(
                        "`ref` names neither a prompt nor a resource",
                    ));
                };
                Ok((
                    Call::new(group, method)
                        .level(Level::Other)
                        .repeat_safety(RepeatSafety::ReadOnly),
                    params,
                ))
            }
            _ => {
                let message = format!("the gateway knows no method {method:?}");
                Err(Refused {
                    code: rpc::METHOD_NOT_FOUND,
                    message,
                    data: None,
                })
            }
        }
    }

    /// Whether a tool may be called again: the operator's word, else the server's where it is trusted.
    pub(crate) fn tool_safety(&self, group: &Arc<str>, own: &str) -> RepeatSafety {
        let said = self.exchange.operations.repeat_safety(own);
        said.unwrap_or_else(|| self.catalog.repeat_safety(group, own))
    }

    async fn find(&self, section: Section, name: &str) -> Result<(Arc<str>, String), Refused> {
        // A group that is known must not wait for one that is ill.
        let mut loading = pin!(self.load(section));
        loop {
            // Where there is one group only it is known beforehand, and yet not what its tools are.
            if let Route::To(group, own) = self.catalog.route(section, name)
                && self.catalog.is_current(&group, section)
            {
                return Ok((group, own));
            }
            if tokio::time::timeout(LOOK_AGAIN, loading.as_mut())
                .await
                .is_ok()
            {
                break;
            }
        }
        match self.catalog.route(section, name) {
            Route::To(group, own) => Ok((group, own)),
            Route::Ambiguous(names) => Err(Refused::params(format!(
                "{name:?} is offered by several groups; say one of {names:?}"
            ))),
            Route::Unknown => Err(Refused::params(format!("no group offers {name:?}"))),
        }
    }

    /// Which group offers a tool, and what it is called there.
    pub(crate) async fn find_tool(&self, name: &str) -> Result<(Arc<str>, String), String> {
        self.find(Section::Tools, name)
            .await
            .map_err(|refused| refused.message)
    }

    async fn find_uri(&self, uri: &str) -> Result<Arc<str>, Refused> {
        if self.catalog.groups().len() > 1 {
            self.load(Section::Resources).await;
            self.load(Section::Templates).await;
        }
        self.catalog
            .route_uri(uri)
            .ok_or_else(|| Refused::params(format!("no group offers the resource {uri:?}")))
    }

    /// A server that asked back is the only one that can make sense of the answer.
    fn same_round(&self, call: Call, params: &Json) -> Call {
        let Some(state) = params.member("requestState") else {
            return call;
        };
        let state = String::from_utf8_lossy(state.as_bytes());
        let rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        match rounds.iter().rev().find(|(known, _)| *known == state) {
            Some((_, target)) => call.pin(target.clone()).without_fallback(),
            None => call.without_fallback(),
        }
    }

    fn remember_round(&self, outcome: &backstop::Outcome<McpAnswer>) {
        let (Payload::Result(result), Some(target)) = (&outcome.answer.payload, &outcome.served_by)
        else {
            return;
        };
        if !outcome.answer.head.input_required {
            return;
        }
        let Some(state) = result.member("requestState") else {
            return;
        };
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        if rounds.len() >= ROUNDS_REMEMBERED {
            rounds.pop_front();
        }
        rounds.push_back((
            String::from_utf8_lossy(state.as_bytes()).into_owned(),
            target.clone(),
        ));
    }

    /// Every server that logs is told; one that does not, or is ill, is no reason to refuse.
    async fn set_log_level(&self, params: Option<&Json>) -> Json {
        let upstreams = self.upstreams();
        let tell = upstreams.values().filter(|upstream| {
            let peer = upstream.known_peer();
            peer.is_some_and(|peer| !peer.modern && peer.capabilities.member("logging").is_some())
        });
        let wiring = Wiring::default();
        let told = tell.map(|upstream| {
            let set = upstream.request("logging/setLevel", params, &wiring, &|| {});
            tokio::time::timeout(lists::LIST_DEADLINE, set)
        });
        for outcome in futures_util::future::join_all(told.collect::<Vec<_>>()).await {
            if let Ok(Err(error)) = outcome {
                tracing::warn!(%error, "logging/setLevel");
            }
        }
        Json::of(&json!({}))
    }

    /// Tells the clients what a server said without being asked.
    pub(crate) fn spread(&self, unasked: &Unasked) {
        let method = &*unasked.method;
        if method.ends_with("/list_changed") {
            self.catalog.forget(&unasked.service);
        }
        let updated = method == "notifications/resources/updated";
        let uri = unasked
            .params
            .as_ref()
            .filter(|_| updated)
            .and_then(|params| params.text_member("uri"));
        if method.ends_with("/list_changed") || method == "notifications/message" || uri.is_some() {
            let text = envelope::notification_message(method, unasked.params.as_ref());
            // Nobody listens: nothing is lost that anybody waits for.
            let _ = self.news.send(News { uri, text });
        }
    }
}
