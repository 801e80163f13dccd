//! rmcp behind the engine's seam: how a tool is called, and what came of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, MetaObject,
};
use ::rmcp::service::ServiceError;
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::timeout;

use super::error::{self, RequestError};
use super::{DEGRADED_META, Server};
use crate::call::{Attempt, Degraded, RepeatSafety};
use crate::detect::{Detector, Signal, jsonrpc::code};
use crate::exchange::{Exchange, Retained};
use crate::failure::Failure;
use crate::operation::OperationRules;

/// How long a failed attempt waits for a list of tools that is on its way.
const HINTS_GRACE: Duration = Duration::from_secs(1);

/// A tool call on its way.
pub(super) struct Request {
    pub(super) params: CallToolRequestParams,
    /// It goes on with what a server has begun, and nobody said which server.
    pub(super) misplaced: bool,
}

/// Carries tool calls for the engine.
#[derive(Default)]
pub(super) struct McpExchange {
    pub(super) servers: HashMap<Arc<str>, Arc<Server>>,
    pub(super) operations: OperationRules,
}

impl McpExchange {
    fn due(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.servers.values().filter(|server| server.hints.is_due())
    }

    /// Asks trusted servers for their lists beside the call, so that they are known if it fails.
    pub(super) fn refresh_hints(&self) {
        for server in self.due() {
            let server = server.clone();
            tokio::spawn(async move { server.hints.refresh(&server.peer.load_full()).await });
        }
    }

    /// Waits for lists that are on their way, unless a tool is known already.
    async fn hints_settled(&self, tool: &str) {
        let told = |server: &Arc<Server>| server.hints.of(tool).is_some();
        if self.operations.repeat_safety(tool).is_some() || self.servers.values().any(told) {
            return;
        }
        let all = self.servers.values().map(|server| async {
            server.hints.refresh(&server.peer.load_full()).await;
        });
        // Without them, tools count as unsafe to repeat.
        let _ = timeout(HINTS_GRACE, join_all(all)).await;
    }
}

impl Exchange for McpExchange {
    type Request = Request;
    type Answer = CallToolResponse;
    type Error = RequestError;

    async fn send(
        &self,
        attempt: &Attempt,
        request: &Request,
    ) -> Result<CallToolResponse, RequestError> {
        if request.misplaced {
            return Err(RequestError::Misplaced);
        }
        let name = &attempt.target.name;
        let server = self
            .servers
            .get(name)
            .ok_or_else(|| RequestError::NotConnected(name.clone()))?;
        let peer = server.peer.load_full();
        if peer.is_transport_closed() {
            return Err(RequestError::Closed(ServiceError::TransportClosed));
        }
        let response = peer.call_tool_once(request.params.clone()).await;
        if let Err(ServiceError::McpError(error)) = &response
            && [code::METHOD_NOT_FOUND, code::HEADER_MISMATCH].contains(&error.code.0.into())
        {
            server.hints.outdated();
        }
        let good = matches!(&response, Ok(CallToolResponse::Complete(result)) if result.is_error != Some(true));
        if !good {
            self.hints_settled(&request.params.name).await;
        }
        response.map_err(RequestError::Service)
    }

    fn classify(
        &self,
        outcome: Result<&CallToolResponse, &RequestError>,
        detector: &Detector,
    ) -> Option<Failure> {
        match outcome {
            Ok(CallToolResponse::Complete(result)) if result.is_error == Some(true) => {
                Some(detector.detect(Signal::ToolResult {
                    text: &text_of(result),
                }))
            }
            Ok(_) => None,
            Err(error) => Some(error::classify(error, detector)),
        }
    }

    fn arguments(&self, request: &Request) -> Option<Bytes> {
        let arguments = request.params.arguments.as_ref()?;
        serde_json::to_vec(arguments).ok().map(Bytes::from)
    }

    /// What the operator says; else what trusted servers say, the most cautious of them counting.
    fn repeat_safety(&self, operation: &str) -> RepeatSafety {
        if let Some(safety) = self.operations.repeat_safety(operation) {
            return safety;
        }
        let said = self.servers.values();
        let said = said.filter_map(|server| server.hints.of(operation));
        let caution = |safety: &RepeatSafety| match safety {
            RepeatSafety::ReadOnly => 0,
            RepeatSafety::Idempotent => 1,
            RepeatSafety::Unsafe => 2,
        };
        said.max_by_key(caution).unwrap_or_default()
    }

    fn redirect(
        &self,
        request: &Request,
        operation: &str,
        arguments: Option<&str>,
    ) -> Result<Request, String> {
        let mut params = request.params.clone();
        params.name = operation.to_owned().into();
        if let Some(text) = arguments {
            let arguments = serde_json::from_str(text)
                .map_err(|error| format!("the arguments are no JSON object: {error}"))?;
            params.arguments = Some(arguments);
        }
        Ok(Request {
            params,
            misplaced: request.misplaced,
        })
    }

    fn compose(
        &self,
        _: &Request,
        body: &[u8],
        label: &Degraded,
    ) -> Result<CallToolResponse, String> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| format!("the data is no JSON: {error}"))?;
        let mut result = if body.get("content").is_some_and(Value::is_array) {
            serde_json::from_value(body)
                .map_err(|error| format!("the data is no tool result: {error}"))?
        } else {
            let mut result = CallToolResult::success(vec![ContentBlock::text(body.to_string())]);
            result.structured_content = body.is_object().then_some(body);
            result
        };
        let label = serde_json::to_value(label).map_err(|error| error.to_string())?;
        let meta = result.meta.get_or_insert_with(MetaObject::new);
        meta.insert(DEGRADED_META.to_owned(), label);
        Ok(CallToolResponse::Complete(result))
    }

    fn retain(&self, _: &Request, answer: &CallToolResponse) -> Option<Retained> {
        let CallToolResponse::Complete(result) = answer else {
            return None;
        };
        Some(Retained {
            body: serde_json::to_vec(result).ok()?.into(),
            shared: false,
            ttl: None,
        })
    }
}

/// The text of a tool's result.
fn text_of(result: &CallToolResult) -> String {
    let texts = result.content.iter().filter_map(ContentBlock::as_text);
    texts
        .map(|text| text.text.as_str())
        .collect::<Vec<_>>()
        .join("\n")
}
