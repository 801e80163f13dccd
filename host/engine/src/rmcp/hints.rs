//! What a trusted server says of its tools: whether they may be called again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::rmcp::model::{ClientRequest, ListToolsRequest, PaginatedRequestParams, ServerResult, Tool};
use ::rmcp::service::{Peer, PeerRequestOptions, RoleClient, ServiceError};
use tokio::time::Instant;

use crate::call::RepeatSafety;
use crate::mcp::ToolAnnotations;

/// How old a list may be before it is asked for again.
const FRESH: Duration = Duration::from_secs(60);
/// The time between two attempts to get a list.
const PAUSE: Duration = Duration::from_secs(5);
/// The time a server has for one page of its list.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that has more pages than this has a loop in them.
const MAX_PAGES: usize = 100;

/// The annotations of one server's tools, asked for when they are needed and again when they are old.
/// A list that cannot be had leaves the last one in force: a server that is down cannot tell, and it is
/// then that its word is needed.
pub(super) struct Hints {
    trusted: bool,
    state: Mutex<State>,
    /// Held while a list is asked for, so that it is asked for once.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    tools: HashMap<String, RepeatSafety>,
    listed: Option<Instant>,
    tried: Option<Instant>,
}

impl Hints {
    pub(super) fn new(trusted: bool) -> Self {
        Self {
            trusted,
            state: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the server says of a tool; `None` where it says nothing that counts.
    pub(super) fn of(&self, tool: &str) -> Option<RepeatSafety> {
        self.state().tools.get(tool).copied()
    }

    /// The list no longer holds, as far as is known.
    pub(super) fn outdated(&self) {
        let mut state = self.state();
        (state.listed, state.tried) = (None, None);
    }

    /// Whether the list should be asked for now.
    pub(super) fn is_due(&self) -> bool {
        let state = self.state();
        let older = |at: Option<Instant>, than| at.is_none_or(|at| at.elapsed() >= than);
        self.trusted && older(state.listed, FRESH) && older(state.tried, PAUSE)
    }

    /// Asks for the list, unless another has just done so.
    pub(super) async fn refresh(&self, peer: &Peer<RoleClient>) {
        let _asking = self.asking.lock().await;
        if !self.is_due() {
            return;
        }
        self.state().tried = Some(Instant::now());
        match list(peer).await {
            Ok(tools) => {
                let tools = tools.into_iter().map(|tool| {
                    let hints = tool.annotations.as_ref().map(|said| ToolAnnotations {
                        read_only_hint: said.read_only_hint,
                        destructive_hint: said.destructive_hint,
                        idempotent_hint: said.idempotent_hint,
                        open_world_hint: said.open_world_hint,
                    });
                    let safety = hints.unwrap_or_default().repeat_safety(self.trusted);
                    (tool.name.into_owned(), safety)
                });
                let tools = tools.collect();
                let mut state = self.state();
                state.tools = tools;
                state.listed = Some(Instant::now());
            }
            Err(error) => {
                tracing::debug!(%error, "no tool list: annotations stay as they were known");
            }
        }
    }
}

/// The tools of a server, from the server: rmcp's own methods may answer from an old list.
async fn list(peer: &Peer<RoleClient>) -> Result<Vec<Tool>, ServiceError> {
    let mut tools = Vec::new();
    let mut cursor = None;
    for _ in 0..MAX_PAGES {
        let request = ListToolsRequest {
            method: Default::default(),
            params: Some(PaginatedRequestParams::default().with_cursor(cursor)),
            extensions: Default::default(),
        };
        let handle = peer
            .send_cancellable_request(
                ClientRequest::ListToolsRequest(request),
                PeerRequestOptions::with_timeout(PAGE_TIMEOUT),
            )
            .await?;
        let ServerResult::ListToolsResult(page) = handle.await_response().await? else {
            return Err(ServiceError::UnexpectedResponse);
        };
        tools.extend(page.tools);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    Ok(tools)
}
