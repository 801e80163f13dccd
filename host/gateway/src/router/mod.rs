//! From a client's request to an answer: which group it concerns, what the engine made of it, and
//! how that is told.
//!
//! Both eras of MCP meet here. What can be answered without a server (who the gateway is, `ping`) is
//! answered here; everything else is a call of the engine.

mod hello;
mod listen;
mod lists;
mod outcome;
mod survey;

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use backstop::call::{Level, RepeatSafety};
use backstop::mcp::rpc;
use backstop::operation::OperationRules;
use backstop::{Call, Engine};
use bytes::Bytes;
use reqwest::header::{HeaderName, HeaderValue};
use serde_json::json;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::catalog::{Catalog, Route, Section};
use crate::client::{Client, LogLevel};
use crate::envelope::{self, Json, Payload};
use crate::exchange::{McpAnswer, McpExchange, McpRequest, Upstreams};
use crate::model::Sampling;
use crate::otlp;
use crate::telemetry::{Good, error_type};
use crate::upstream::{META_VERSION, MODERN, Sole, Unasked, Upstream, Wiring};
use crate::workers::Workers;

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
    /// Header fields a server may want, where they can send any.
    pub(crate) headers: Option<Vec<(HeaderName, HeaderValue)>>,
    /// The client, where it is more than this request.
    pub(crate) client: Option<Arc<Client>>,
}

/// What is for more clients than one, and belongs to no call.
#[derive(Debug, Clone)]
pub(crate) struct News {
    pub(crate) method: Arc<str>,
    /// The resource it is about, for `notifications/resources/updated`: only its subscribers are told.
    pub(crate) uri: Option<String>,
    pub(crate) params: Option<Json>,
    /// The message.
    pub(crate) text: Bytes,
    /// Whether a server said it, over a connection that clients share.
    shared: bool,
}

impl News {
    fn new(method: Arc<str>, params: Option<Json>, shared: bool) -> Self {
        Self {
            text: envelope::notification_message(&method, params.as_ref()),
            uri: params.as_ref().and_then(|params| params.text_member("uri")),
            method,
            params,
            shared,
        }
    }

    /// Whether a client of the era with sessions is to be told. One with connections of its own hears
    /// over these what servers say.
    pub(crate) fn concerns(&self, client: &Client) -> bool {
        client.hello().is_some()
            && !(self.shared && client.can_be_asked())
            && self.uri.as_ref().is_none_or(|uri| client.watches(uri))
    }
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
    /// Servers that are being asked what they offer, and for which client.
    surveyed: Mutex<HashSet<survey::Surveyed>>,
    /// Held while the set of servers is replaced.
    changing: Mutex<()>,
    /// Which server a task runs on.
    tasks: Mutex<VecDeque<(String, Arc<str>)>>,
    /// Clients that share connections and asked for log messages.
    loggers: Mutex<Vec<Weak<Client>>>,
    pub(crate) sole: Arc<Sole>,
    /// The threads that serve connections and child processes, where there are any.
    pub(crate) workers: Arc<OnceLock<Workers>>,
    /// What answers for clients that cannot sample.
    pub(crate) sampling: Arc<Sampling>,
    /// Set when the gateway shuts down.
    pub(crate) closing: CancellationToken,
    good: Good,
}

/// An answer to a client.
pub(crate) struct Said {
    /// The message.
    pub(crate) text: Bytes,
    /// The code of the error it is, in the era where the transport tells it as well.
    pub(crate) code: Option<i64>,
}

/// What the newest revision no longer has.
const RETIRED: [&str; 5] = [
    "initialize",
    "ping",
    "logging/setLevel",
    "resources/subscribe",
    "resources/unsubscribe",
];

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
            operations: Arc::new(ArcSwap::from_pointee(operations)),
        };
        let news = broadcast::channel(NEWS_QUEUE).0;
        Self {
            engine,
            exchange,
            catalog,
            news,
            rounds: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
            loggers: Mutex::default(),
            surveyed: Mutex::default(),
            changing: Mutex::default(),
            sole: Arc::default(),
            workers: Arc::default(),
            sampling: Arc::default(),
            closing: CancellationToken::new(),
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
    ) -> Said {
        let began = Instant::now();
        let meta = params.as_ref().and_then(|params| params.member("_meta"));
        let version = meta
            .as_ref()
            .and_then(|meta| meta.text_member(META_VERSION));
        let modern = version.is_some();
        let span = otlp::request(method, params.as_ref(), meta.as_ref());
        let answered = match version {
            Some(version) if version != MODERN => Err(Refused {
                code: rpc::UNSUPPORTED_PROTOCOL_VERSION,
                message: format!("version {version:?} is not spoken here"),
                data: Some(Json::of(
                    &json!({ "supported": hello::VERSIONS, "requested": version }),
                )),
            }),
            Some(_) if RETIRED.contains(&method) => Err(Refused {
                code: rpc::METHOD_NOT_FOUND,
                message: format!("{MODERN} has no method {method:?}"),
                data: None,
            }),
            _ if method == "subscriptions/listen" => self.listen(id, params, asker).await,
            _ => {
                self.dispatch(method, params, meta, asker)
                    .instrument(span.clone())
                    .await
            }
        };
        let error = match &answered {
            Ok(answer) => error_type(&answer.payload, answer.is_error()),
            Err(refused) => Some(refused.code.to_string().into()),
        };
        otlp::requested(&span, error.as_deref());
        self.good.answered(method, error, began.elapsed());
        let payload = match answered {
            Ok(answer) if modern => outcome::typed(answer, method).payload,
            Ok(answer) => answer.payload,
            Err(Refused {
                code,
                message,
                data,
            }) => Payload::Error(envelope::error_object(code, &message, data.as_ref())),
        };
        let code = match &payload {
            Payload::Error(error) if modern => {
                error.member("code").and_then(|code| code.read().ok())
            }
            _ => None,
        };
        Said {
            text: envelope::answer_message(id, &payload),
            code,
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
            "logging/setLevel" => {
                return self
                    .set_log_level(params.as_ref(), asker)
                    .await
                    .and_then(own);
            }
            _ => {}
        }
        let params = params.unwrap_or_else(|| Json::of(&json!({})));
        let (call, params) = self.aim(method, params, asker).await?;
        let call = self.exchange.operations.load().apply(call);
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
            client: asker.client.clone(),
        };
        let request = McpRequest {
            method: method.into(),
            params: Some(params),
            wiring,
        };
        let outcome = self.engine.call(&self.exchange, call, &request).await;
        if let Ok(outcome) = &outcome {
            self.remember(outcome);
        }
        Ok(outcome::tell(outcome))
    }

    /// Which group a request concerns, and its parameters as that group knows them.
    async fn aim(
        &self,
        method: &str,
        params: Json,
        asker: &Asker,
    ) -> Result<(Call, Json), Refused> {
        let catalog = self.catalog_of(asker.client.as_ref());
        let text = |name: &str| {
            let missing = || Refused::params(format!("{method:?} needs `{name}`, a string"));
            params.text_member(name).ok_or_else(missing)
        };
        match method {
            "tools/call" => {
                let name = text("name")?;
                let (group, own) = self.find(&catalog, Section::Tools, &name, asker).await?;
                let safety = self.tool_safety(&catalog, &group, &own);
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
                let (group, own) = self.find(&catalog, Section::Prompts, &name, asker).await?;
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
                let group = self.find_uri(&catalog, &uri, asker).await?;
                let read = method == "resources/read";
                let safety = if read {
                    RepeatSafety::ReadOnly
                } else {
                    RepeatSafety::Idempotent
                };
                let watched_at = match (method, &asker.client) {
                    ("resources/unsubscribe", Some(client)) => client.watched_at(&uri),
                    _ => None,
                };
                let operation = if read { uri } else { method.to_owned() };
                let call = Call::new(group, operation)
                    .level(Level::Resource)
                    .repeat_safety(safety);
                let call = match watched_at {
                    Some(target) => call.pin(target).without_fallback(),
                    None => call,
                };
                Ok((call, params))
            }
            "completion/complete" => {
                let reference = params.member("ref").unwrap_or_else(|| Json::of(&json!({})));
                let (group, params) = if let Some(uri) = reference.text_member("uri") {
                    (self.find_uri(&catalog, &uri, asker).await?, params)
                } else if let Some(name) = reference.text_member("name") {
                    let (group, own) = self.find(&catalog, Section::Prompts, &name, asker).await?;
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
            _ => self.aim_elsewhere(method, params),
        }
    }

    /// Where a request goes that the gateway knows nothing of: a task's to the server that runs it,
    /// any other to the only group there is. Nobody knows whether it may be repeated.
    fn aim_elsewhere(&self, method: &str, params: Json) -> Result<(Call, Json), Refused> {
        let running = params.text_member("taskId").and_then(|task| {
            let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks
                .iter()
                .rev()
                .find(|(known, _)| *known == task)
                .map(|(_, target)| target.clone())
        });
        let at = running.as_ref().and_then(|target| self.upstream(target));
        let group = match (at, &self.catalog.groups()[..]) {
            (Some(upstream), _) => upstream.spec.group.clone(),
            (None, [only]) => only.clone(),
            (None, _) => {
                let message = format!("the gateway knows no method {method:?}");
                return Err(Refused {
                    code: rpc::METHOD_NOT_FOUND,
                    message,
                    data: None,
                });
            }
        };
        let safety = match method {
            "tasks/get" | "tasks/result" | "tasks/list" => RepeatSafety::ReadOnly,
            _ => RepeatSafety::Unsafe,
        };
        let call = Call::new(group, method)
            .level(Level::Other)
            .repeat_safety(safety);
        let call = match running {
            Some(target) => call.pin(target).without_fallback(),
            None => call,
        };
        Ok((call, params))
    }

    /// What is offered to this client.
    fn catalog_of(&self, client: Option<&Arc<Client>>) -> Arc<Catalog> {
        client
            .map_or(&self.catalog, |client| client.catalog(&self.catalog))
            .clone()
    }

    /// Whether a tool may be called again: the operator's word, else the server's where it is trusted.
    pub(crate) fn tool_safety(
        &self,
        catalog: &Catalog,
        group: &Arc<str>,
        own: &str,
    ) -> RepeatSafety {
        let said = self.exchange.operations.load().repeat_safety(own);
        said.unwrap_or_else(|| catalog.repeat_safety(group, own))
    }

    async fn find(
        &self,
        catalog: &Arc<Catalog>,
        section: Section,
        name: &str,
        asker: &Asker,
    ) -> Result<(Arc<str>, String), Refused> {
        // A group that is known must not wait for one that is ill.
        let mut loading = pin!(self.load(catalog, section, asker));
        loop {
            // Where there is one group only it is known beforehand, and yet not what its tools are.
            if let Route::To(group, own) = catalog.route(section, name)
                && catalog.is_current(&group, section)
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
        match catalog.route(section, name) {
            Route::To(group, own) => Ok((group, own)),
            Route::Ambiguous(names) => Err(Refused::params(format!(
                "{name:?} is offered by several groups; say one of {names:?}"
            ))),
            Route::Unknown => Err(Refused::params(format!("no group offers {name:?}"))),
        }
    }

    /// Which group offers a tool, and what it is called there.
    pub(crate) async fn find_tool(&self, name: &str) -> Result<(Arc<str>, String), String> {
        self.find(&self.catalog, Section::Tools, name, &Asker::default())
            .await
            .map_err(|refused| refused.message)
    }

    async fn find_uri(
        &self,
        catalog: &Arc<Catalog>,
        uri: &str,
        asker: &Asker,
    ) -> Result<Arc<str>, Refused> {
        if catalog.groups().len() > 1 {
            self.load(catalog, Section::Resources, asker).await;
            self.load(catalog, Section::Templates, asker).await;
        }
        catalog
            .route_uri(uri)
            .ok_or_else(|| Refused::params(format!("no group offers the resource {uri:?}")))
    }

    /// A server that asked back is the only one that can make sense of the answer.
    fn same_round(&self, call: Call, params: &Json) -> Call {
        let Some(state) = params.member("requestState") else {
            // Answers to a server's questions make sense to no other, whichever it was.
            return match params.member("inputResponses") {
                Some(_) => call.without_fallback(),
                None => call,
            };
        };
        let state = String::from_utf8_lossy(state.as_bytes());
        let rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        match rounds.iter().rev().find(|(known, _)| *known == state) {
            Some((_, target)) => call.pin(target.clone()).without_fallback(),
            None => call.without_fallback(),
        }
    }

    /// Remembers what only the server that answered can go on with.
    fn remember(&self, outcome: &backstop::Outcome<McpAnswer>) {
        let (Payload::Result(result), Some(target)) = (&outcome.answer.payload, &outcome.served_by)
        else {
            return;
        };
        let remember = |list: &Mutex<VecDeque<(String, Arc<str>)>>, key: String| {
            let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
            if list.len() >= ROUNDS_REMEMBERED {
                list.pop_front();
            }
            list.push_back((key, target.clone()));
        };
        if outcome.answer.head.input_required
            && let Some(state) = result.member("requestState")
        {
            let state = String::from_utf8_lossy(state.as_bytes()).into_owned();
            remember(&self.rounds, state);
        }
        if outcome.answer.head.task
            && let Some(task) = task_of(result)
        {
            remember(&self.tasks, task);
        }
    }

    /// What one client wants logged is asked for on its own connections; on shared ones, what all
    /// want together. A server that does not log, or is ill, is no reason to refuse.
    async fn set_log_level(&self, params: Option<&Json>, asker: &Asker) -> Result<Json, Refused> {
        let level = params.and_then(|params| params.text_member("level"));
        let level = level.unwrap_or_default();
        let wanted = LogLevel::default();
        if !wanted.set(&level) {
            return Err(Refused::params(format!("{level:?} is no log level")));
        }
        let done = Ok(Json::of(&json!({})));
        // Without a session there is nothing a level could be kept for.
        let Some(client) = &asker.client else {
            return done;
        };
        client.log_level.copy_from(&wanted);
        if !client.can_be_asked() {
            let mut loggers = self.loggers.lock().unwrap_or_else(PoisonError::into_inner);
            loggers.retain(|logger| {
                logger
                    .upgrade()
                    .filter(|logger| !Arc::ptr_eq(logger, client))
                    .is_some_and(|logger| {
                        wanted.lower_to(&logger.log_level);
                        true
                    })
            });
            loggers.push(Arc::downgrade(client));
        }
        let params = Json::of(&json!({ "level": wanted.name() }));
        let upstreams = self.upstreams();
        let links = upstreams.values().map(|upstream| {
            if !client.can_be_asked() {
                upstream.log_level().copy_from(&wanted);
            }
            upstream.link(Some(client))
        });
        let links = links.filter(|link| {
            let peer = link.known_peer();
            peer.is_some_and(|peer| !peer.modern && peer.capabilities.member("logging").is_some())
        });
        let told = links.map(|link| {
            let params = &params;
            async move {
                let wiring = Wiring::default();
                let set = link.request("logging/setLevel", Some(params), &wiring, &|| {});
                tokio::time::timeout(lists::LIST_DEADLINE, set).await
            }
        });
        for outcome in futures_util::future::join_all(told.collect::<Vec<_>>()).await {
            if let Ok(Err(error)) = outcome {
                tracing::warn!(%error, "logging/setLevel");
            }
        }
        done
    }

    /// Tells the clients what a server said without being asked.
    pub(crate) fn spread(&self, unasked: &Unasked) {
        let Unasked {
            service,
            method,
            params,
            owner,
        } = unasked;
        let owner = owner.as_ref().map(Weak::upgrade);
        // Its client is gone.
        if let Some(None) = owner {
            return;
        }
        let owner = owner.flatten();
        if method.ends_with("/list_changed") {
            self.catalog_of(owner.as_ref()).forget(service);
        }
        match owner.filter(|owner| owner.hello().is_some()) {
            Some(owner) => {
                owner.tell(
                    envelope::notification_message(method, params.as_ref()),
                    None,
                );
            }
            None => self.publish(News::new((**method).into(), params.clone(), true)),
        }
    }

    fn publish(&self, news: News) {
        // Nobody listens: nothing is lost that anybody waits for.
        let _ = self.news.send(news);
    }
}

/// The task a result speaks of: 2025-11-25 has it in a member, the extension of 2026-07-28 beside
/// `resultType`.
fn task_of(result: &Json) -> Option<String> {
    let task = result.member("task");
    task.as_ref().unwrap_or(result).text_member("taskId")
}
