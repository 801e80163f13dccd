//! MCP behind the engine's seam: how a request is sent to a target, and what came of it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use backstop::call::{Attempt, Degraded, RepeatSafety};
use backstop::detect::{Detector, Signal, TransportFault};
use backstop::mcp::rpc;
use backstop::operation::OperationRules;
use backstop::{Exchange, Failure, Kind, Retained, Unsuited};
use bytes::Bytes;
use serde::Deserialize;

use crate::catalog::{Catalog, Route, Section};
use crate::envelope::{Json, Payload};
use crate::otlp;
use crate::rounds;
use crate::upstream::{Fault, Upstream, UpstreamError, Wiring, plain};

/// What `_meta` of an answer made of data says.
pub(crate) const DEGRADED: &str = "backstop/degraded";

/// A request on its way to a server.
#[derive(Debug, Clone)]
pub struct McpRequest {
    pub(crate) method: Arc<str>,
    pub(crate) params: Option<Json>,
    pub(crate) wiring: Wiring,
}

impl McpRequest {
    /// A request without anybody who follows its progress.
    pub fn new(method: impl Into<Arc<str>>, params: Option<Json>) -> Self {
        Self {
            method: method.into(),
            params,
            wiring: Wiring::default(),
        }
    }
}

/// What a server answered, or data did in its place.
#[derive(Debug, Clone)]
pub struct McpAnswer {
    /// The result or the error, as it came.
    pub payload: Payload,
    pub(crate) head: Head,
}

/// What the gateway reads of a result.
#[derive(Debug, Clone, Default)]
pub(crate) struct Head {
    pub(crate) is_error: bool,
    pub(crate) typed: bool,
    pub(crate) input_required: bool,
    pub(crate) task: bool,
    public: bool,
    ttl: Option<Duration>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ResultHead<'a> {
    is_error: bool,
    #[serde(borrow)]
    result_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    cache_scope: Option<Cow<'a, str>>,
    ttl_ms: Option<u64>,
    #[serde(borrow)]
    task: Option<&'a serde_json::value::RawValue>,
}

impl McpAnswer {
    pub(crate) fn new(payload: Payload) -> Self {
        let head = match &payload {
            Payload::Error(_) => Head::default(),
            Payload::Result(result) => {
                let head: ResultHead<'_> = result.read().unwrap_or_default();
                Head {
                    is_error: head.is_error,
                    typed: head.result_type.is_some(),
                    input_required: head.result_type.as_deref() == Some("input_required"),
                    task: head.task.is_some() || head.result_type.as_deref() == Some("task"),
                    public: head.cache_scope.as_deref() == Some("public"),
                    ttl: head
                        .ttl_ms
                        .filter(|ttl| *ttl > 0)
                        .map(Duration::from_millis),
                }
            }
        };
        Self { payload, head }
    }

    /// Whether the tool itself says that it failed.
    pub fn is_error(&self) -> bool {
        self.head.is_error
    }
}

/// Every server at one moment, by the name of the engine's target.
pub(crate) type Upstreams = HashMap<Arc<str>, Arc<Upstream>>;

/// Carries MCP requests for the engine.
#[derive(Debug, Clone)]
pub(crate) struct McpExchange {
    pub(crate) upstreams: Arc<ArcSwap<Upstreams>>,
    pub(crate) catalog: Arc<Catalog>,
    /// What the operator says of operations; it goes before what servers say.
    pub(crate) operations: Arc<ArcSwap<OperationRules>>,
}

impl McpExchange {
    /// What is offered to the client whose request it is.
    fn catalog_of<'a>(&'a self, request: &'a McpRequest) -> &'a Arc<Catalog> {
        let client = request.wiring.client.as_ref();
        client.map_or(&self.catalog, |client| client.catalog(&self.catalog))
    }

    /// The request with the header fields that the tool wants, where its client has not sent them and
    /// there are any.
    fn with_fields(&self, group: &str, request: &McpRequest) -> Option<McpRequest> {
        if &*request.method != "tools/call" || request.wiring.headers.is_some() {
            return None;
        }
        let params = request.params.as_ref()?;
        let headers = self.catalog_of(request).fields(group, params)?;
        let mut request = request.clone();
        request.wiring.headers = Some(headers);
        Some(request)
    }
}

#[derive(Deserialize)]
struct RpcError<'a> {
    code: i64,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
    #[serde(borrow, default)]
    data: Option<&'a serde_json::value::RawValue>,
}

impl Exchange for McpExchange {
    type Request = McpRequest;
    type Answer = McpAnswer;
    type Error = UpstreamError;

    async fn send(
        &self,
        attempt: &Attempt,
        request: &McpRequest,
    ) -> Result<McpAnswer, UpstreamError> {
        let name = &attempt.target.name;
        // Held until the answer is there: a server that is taken out meanwhile finishes its work.
        let upstream = self.upstreams.load().get(name).cloned();
        let Some(upstream) = upstream else {
            return Err(UpstreamError::fault(
                name,
                Fault::NotSent,
                "the gateway has no such service",
            ));
        };
        let alive = || attempt.progressed();
        let traced = otlp::handed_on(request.params.as_ref());
        let with_fields = self.with_fields(&attempt.target.spec.group, request);
        let request = with_fields.as_ref().unwrap_or(request);
        let payload = upstream
            .request(
                &request.method,
                traced.as_ref().or(request.params.as_ref()),
                &request.wiring,
                &alive,
            )
            .await?;
        // The tool is gone, or its description is another one: what is known of the tools is old.
        if &*request.method == "tools/call"
            && let Some(rpc::METHOD_NOT_FOUND | rpc::HEADER_MISMATCH) = payload.error_code()
        {
            self.catalog_of(request).doubt_tools(name);
        }
        let mut answer = McpAnswer::new(payload);
        if answer.head.input_required {
            let whole = rounds::complete(&upstream, request, answer, &alive);
            answer = Box::pin(whole).await?;
        }
        let client = request.wiring.client.as_ref();
        if let Payload::Result(result) = &answer.payload
            && client.is_some_and(|client| client.hello().is_some())
            && upstream.known_peer(client).is_some_and(|peer| peer.modern)
        {
            answer.payload = Payload::Result(plain(result.clone()));
        }
        Ok(answer)
    }

    fn classify(
        &self,
        outcome: Result<&McpAnswer, &UpstreamError>,
        detector: &Detector,
    ) -> Option<Failure> {
        let transport =
            |fault, message: &str| Some(detector.detect(Signal::Transport { fault, message }));
        match outcome {
            Ok(McpAnswer {
                payload: Payload::Result(result),
                head,
            }) => {
                let text = head.is_error.then(|| text_of(result))?;
                Some(detector.detect(Signal::ToolResult { text: &text }))
            }
            Ok(McpAnswer {
                payload: Payload::Error(error),
                ..
            }) => match error.read::<RpcError<'_>>() {
                Ok(RpcError {
                    code,
                    message,
                    data,
                }) => {
                    let data = data.map(serde_json::value::RawValue::get);
                    Some(detector.detect(Signal::JsonRpc {
                        code,
                        message: &message,
                        data,
                    }))
                }
                Err(_) => transport(
                    TransportFault::Garbage,
                    "the error it answered is no JSON-RPC error",
                ),
            },
            Err(error) => Some(classify_error(error, detector)),
        }
    }

    fn arguments(&self, request: &McpRequest) -> Option<Bytes> {
        let params = request.params.as_ref()?;
        let arguments = match &*request.method {
            "tools/call" | "prompts/get" => params.member("arguments")?,
            _ => params.with_members(&[("_meta", None)]),
        };
        Some(arguments.bytes())
    }

    fn repeat_safety(&self, operation: &str) -> RepeatSafety {
        if let Some(safety) = self.operations.load().repeat_safety(operation) {
            return safety;
        }
        match self.catalog.route(Section::Tools, operation) {
            Route::To(group, own) => self.catalog.repeat_safety(&group, &own),
            Route::Ambiguous(_) | Route::Unknown => RepeatSafety::Unsafe,
        }
    }

    fn unsuited(&self, group: &str, operation: &str) -> Option<Arc<Unsuited>> {
        self.catalog.unsuited(group, operation)
    }

    fn group_of(&self, operation: &str) -> Option<Arc<str>> {
        match self.catalog.route(Section::Tools, operation) {
            Route::To(group, _) => Some(group),
            Route::Ambiguous(_) | Route::Unknown => None,
        }
    }

    fn redirect(
        &self,
        request: &McpRequest,
        operation: &str,
        arguments: Option<&str>,
    ) -> Result<McpRequest, String> {
        if &*request.method != "tools/call" {
            return Err(format!(
                "{:?} cannot be answered by another operation",
                request.method
            ));
        }
        let arguments = arguments
            .map(|text| Json::parse(text.to_owned()))
            .transpose();
        let arguments = arguments.map_err(|error| format!("the arguments are no JSON: {error}"))?;
        let name = match self.catalog.route(Section::Tools, operation) {
            Route::To(_, own) => Json::of(&own),
            Route::Ambiguous(_) | Route::Unknown => Json::of(operation),
        };
        let mut edits = vec![("name", Some(&name))];
        if let Some(arguments) = &arguments {
            edits.push(("arguments", Some(arguments)));
        }
        let params = request
            .params
            .clone()
            .unwrap_or_else(|| Json::of(&serde_json::json!({})));
        let mut wiring = request.wiring.clone();
        // They belong to the tool that was asked for.
        wiring.headers = None;
        Ok(McpRequest {
            method: request.method.clone(),
            params: Some(params.with_members(&edits)),
            wiring,
        })
    }

    fn compose(
        &self,
        request: &McpRequest,
        body: &[u8],
        label: &Degraded,
    ) -> Result<McpAnswer, String> {
        let body =
            Json::parse(body.to_vec()).map_err(|error| format!("the data is no JSON: {error}"))?;
        let object = body.as_bytes().trim_ascii_start().starts_with(b"{");
        let result = if &*request.method != "tools/call" {
            if !object {
                return Err(format!(
                    "the answer to {:?} must be an object",
                    request.method
                ));
            }
            body
        } else if body
            .member("content")
            .is_some_and(|content| content.as_bytes().starts_with(b"["))
        {
            body
        } else {
            let text = String::from_utf8_lossy(body.as_bytes());
            let wrapped =
                Json::of(&serde_json::json!({ "content": [{ "type": "text", "text": text }] }));
            if object {
                wrapped.with_members(&[("structuredContent", Some(&body))])
            } else {
                wrapped
            }
        };
        let meta = result
            .member("_meta")
            .unwrap_or_else(|| Json::of(&serde_json::json!({})));
        let meta = meta.with_members(&[(DEGRADED, Some(&Json::of(label)))]);
        Ok(McpAnswer::new(Payload::Result(
            result.with_members(&[("_meta", Some(&meta))]),
        )))
    }

    fn retain(&self, _: &McpRequest, answer: &McpAnswer) -> Option<Retained> {
        match &answer.payload {
            Payload::Result(result)
                if !(answer.head.is_error || answer.head.input_required || answer.head.task) =>
            {
                // What does not say that it is public belongs to the caller it was given to.
                Some(Retained {
                    body: result.bytes(),
                    shared: answer.head.public,
                    ttl: answer.head.ttl,
                })
            }
            _ => None,
        }
    }
}

/// What it means that a server gave no answer.
pub(crate) fn classify_error(error: &UpstreamError, detector: &Detector) -> Failure {
    match error {
        UpstreamError::Transport {
            fault, retry_after, ..
        } => {
            let mut failure = detector.detect(Signal::Transport {
                fault: fault_of(*fault),
                message: &chain(error),
            });
            failure.retry_after = *retry_after;
            failure
        }
        UpstreamError::Http {
            status,
            headers,
            body,
            ..
        } => {
            let header = |name: &str| {
                let values: Vec<&str> = headers
                    .get_all(name)
                    .iter()
                    .filter_map(|value| value.to_str().ok())
                    .collect();
                (!values.is_empty()).then(|| values.join(", "))
            };
            detector.detect(Signal::Http {
                status: *status,
                header: &header,
                body,
                now: SystemTime::now(),
                session: false,
            })
        }
        // Nothing was done, whatever the server meant by it.
        UpstreamError::NotGreeted { cause, .. } => {
            let mut failure = classify_error(cause, detector);
            failure.ambiguous = false;
            failure
        }
        UpstreamError::SignIn { status, .. } => {
            let mut failure = Failure::new(Kind::UNAUTHORIZED, error.to_string());
            failure.http_status = Some(*status);
            failure
        }
        // What the server knew us by does not hold any more, as with a session.
        UpstreamError::CredentialsRenewed { status, .. } => {
            let mut failure = Failure::new(Kind::SESSION_EXPIRED, error.to_string());
            failure.http_status = Some(*status);
            failure
        }
        UpstreamError::SessionExpired { .. } => detector.detect(Signal::Http {
            status: 404,
            header: &|_| None,
            body: b"",
            now: SystemTime::now(),
            session: true,
        }),
    }
}

fn fault_of(fault: Fault) -> TransportFault {
    match fault {
        Fault::Refused => TransportFault::Refused,
        Fault::Dns => TransportFault::Dns,
        Fault::Tls => TransportFault::Tls,
        Fault::Reset => TransportFault::Reset,
        Fault::Eof => TransportFault::Eof,
        Fault::ProcessExit => TransportFault::ProcessExit,
        Fault::NotSent => TransportFault::NotSent,
        Fault::Garbage => TransportFault::Garbage,
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The text of a tool's result.
fn text_of(result: &Json) -> String {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow, default)]
        text: Option<Cow<'a, str>>,
    }
    let parts = result
        .member("content")
        .map(|content| content.elements())
        .unwrap_or_default();
    let texts = parts
        .iter()
        .filter_map(|part| part.read::<Content<'_>>().ok()?.text.map(Cow::into_owned));
    texts.collect::<Vec<_>>().join("\n")
}
