//! Events as they happen, as server-sent events.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use backstop::config::nearest;
use backstop::event::{Event, EventKind};
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;

/// An empty comment is sent after so long a silence, so that nobody in between takes the stream for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events sent in one piece, at most.
const AT_ONCE: usize = 256;

/// Which events a listener wants.
#[derive(Debug)]
pub(super) struct Wanted(Option<HashSet<String>>);

impl Wanted {
    /// `only` names events, with commas between them. Default: all.
    ///
    /// # Errors
    /// A sentence about a name that no event has.
    pub(super) fn of(only: Option<&str>) -> Result<Self, String> {
        let known = EventKind::NAMES;
        let name = |name: &str| match known.contains(&name) {
            true => Ok(name.to_owned()),
            false => Err(match nearest(name, known.iter().copied()) {
                Some(near) => format!("there is no event {name:?}: did you mean {near:?}?"),
                None => format!("there is no event {name:?}; there are {}", known.join(", ")),
            }),
        };
        let names = |only: &str| only.split(',').map(|text| name(text.trim())).collect();
        only.map(names).transpose().map(Self)
    }

    fn has(&self, event: &Event) -> bool {
        self.0
            .as_ref()
            .is_none_or(|names| names.contains(event.what.name()))
    }
}

struct Listener {
    events: Receiver<Arc<Event>>,
    wanted: Wanted,
    shutdown: CancellationToken,
    /// Held as long as the stream.
    _place: OwnedSemaphorePermit,
}

fn push(text: &mut Vec<u8>, event: &impl serde::Serialize) {
    text.extend_from_slice(b"data: ");
    // To a vector nothing can fail but a map whose keys are no text, and events have none.
    let _ = serde_json::to_writer(&mut *text, event);
    text.extend_from_slice(b"\n\n");
}

fn missed(text: &mut Vec<u8>, count: u64) {
    push(
        text,
        &serde_json::json!({ "event": "events_missed", "count": count }),
    );
}

impl Listener {
    /// Waits for an event, and takes those along that are there already. `None`: there will be no more.
    async fn next(&mut self) -> Option<Bytes> {
        let mut text = Vec::new();
        while text.is_empty() {
            let next = tokio::time::timeout(KEEP_ALIVE, self.events.recv());
            match self.shutdown.run_until_cancelled(next).await? {
                Err(_) => text.extend_from_slice(b":\n\n"),
                Ok(Ok(event)) if self.wanted.has(&event) => push(&mut text, &*event),
                Ok(Ok(_)) => {}
                Ok(Err(RecvError::Lagged(count))) => missed(&mut text, count),
                Ok(Err(RecvError::Closed)) => return None,
            }
        }
        for _ in 1..AT_ONCE {
            match self.events.try_recv() {
                Ok(event) if self.wanted.has(&event) => push(&mut text, &*event),
                Ok(_) => {}
                Err(TryRecvError::Lagged(count)) => missed(&mut text, count),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        Some(text.into())
    }
}

/// A stream of events that ends with the program. It begins with a comment, so that the listener knows
/// that it misses nothing from here on.
pub(super) fn respond(
    events: Receiver<Arc<Event>>,
    wanted: Wanted,
    place: OwnedSemaphorePermit,
    shutdown: CancellationToken,
) -> Response {
    let listener = Listener {
        events,
        wanted,
        shutdown,
        _place: place,
    };
    let events = stream::unfold((listener, true), |(mut listener, first)| async move {
        let text = if first {
            Bytes::from_static(b": listening\n\n")
        } else {
            listener.next().await?
        };
        Some((Ok::<_, Infallible>(text), (listener, false)))
    });
    let head = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (head, Body::from_stream(events)).into_response()
}
