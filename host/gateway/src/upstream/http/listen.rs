//! What a server says outside of any call: over the stream a `GET` opens in the era with sessions,
//! over `subscriptions/listen` in the newest. And the questions it asks.

use std::sync::{Arc, Weak};
use std::time::Duration;

use backstop::backoff::Backoff;
use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{RequestBuilder, Response};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::super::sse::Events;
use super::super::{Wiring, meta};
use super::{Http, SESSION_ID, Session, VERSION, lock};
use crate::envelope::{self, Envelope, Json};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The pauses between attempts to listen again, from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A stream that lasted this long was a sound one.
const SOUND: Duration = Duration::from_secs(10);

/// What came of listening.
enum Heard {
    /// The server has nothing to say this way.
    Refused,
    /// The stream ended, or there was none this time.
    Ended,
}

impl Http {
    /// Tells a new session what the clients have asked for already.
    pub(super) async fn resume(self: &Arc<Self>, session: &Arc<Session>) {
        if session.peer.modern {
            return;
        }
        let logs = session.peer.capabilities.member("logging").is_some();
        let level = self.side.log_level().filter(|_| logs);
        let level = level.map(|level| ("logging/setLevel", json!({ "level": level })));
        let watched = self.watches.all().into_iter();
        let watched = watched.map(|uri| ("resources/subscribe", json!({ "uri": uri })));
        for (method, params) in level.into_iter().chain(watched) {
            let (params, wiring) = (Json::of(&params), Wiring::default());
            let asked = self.exchange(Some(session), method, Some(&params), &wiring, &|| {});
            if let Err(error) = asked.await {
                tracing::warn!(%error, method, "asking again for what was asked for before");
            }
        }
    }

    /// Listens to the server until the session ends.
    pub(super) fn attend(self: &Arc<Self>, session: &Arc<Session>) {
        let (http, ended) = (Arc::downgrade(self), session.ended.clone());
        let modern = session.peer.modern;
        let session = Arc::downgrade(session);
        tokio::spawn(ended.run_until_cancelled_owned(attend(http, session, modern)));
    }

    /// The request that opens the stream; none where there is nothing to be told about.
    fn opening(&self, session: &Session, last: Option<Bytes>) -> Option<RequestBuilder> {
        if session.peer.modern {
            let method = "subscriptions/listen";
            let params = self.watches.listen_params(&session.peer)?;
            let params = meta::translate(Some(&params), true, None, None, self.side.sampling());
            let id = self
                .next_id
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let text = envelope::request_message(id, method, params.as_ref());
            let nothing = Json::of(&());
            return Some(self.request_of(Some(session), method, text, &nothing, &[]));
        }
        Some(self.listening(session, last))
    }

    /// Opens a stream of a session, or goes on with one behind an event.
    pub(super) fn listening(&self, session: &Session, last: Option<Bytes>) -> RequestBuilder {
        let mut request = self
            .clients
            .here()
            .get(self.url.clone())
            .headers(self.headers())
            .header(ACCEPT, "text/event-stream")
            .header(VERSION, session.version.clone());
        if let Some(id) = &session.id {
            request = request.header(SESSION_ID, id.clone());
        }
        if let Some(last) = last.and_then(|last| HeaderValue::from_maybe_shared(last).ok()) {
            request = request.header(LAST_EVENT_ID, last);
        }
        request
    }

    /// Deals with what the server says outside of any call.
    fn overheard(self: &Arc<Self>, session: &Arc<Session>, data: Bytes) {
        match Envelope::parse(data) {
            Ok(Envelope::Notification { method, params }) => match &*method {
                "notifications/cancelled" => self.take_back(params),
                "notifications/progress" => {}
                method => self.side.heard(&self.service, method, params, None),
            },
            Ok(Envelope::Request { id, method, params }) => {
                let key = id.bytes();
                let mut questions = lock(&self.questions);
                let question = tokio::spawn(self.question(session, id, method, params, None));
                questions.insert(key, question.abort_handle());
            }
            Ok(Envelope::Answer { .. }) => {}
            Err(error) => {
                tracing::warn!(service = %self.service, %error, "an event that is no message is skipped");
            }
        }
    }

    /// Gets a question of the server answered, and brings it the answer.
    pub(super) fn question(
        self: &Arc<Self>,
        session: &Arc<Session>,
        id: Json,
        method: Box<str>,
        params: Option<Json>,
        call: Option<mpsc::Sender<Bytes>>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (http, session) = (self.clone(), session.clone());
        async move {
            let _asked = Asked {
                http: &http,
                id: id.bytes(),
            };
            let back = http.clone();
            let progress = Box::new(move |params: Json| {
                back.notify("notifications/progress", Some(&params));
            });
            let answer = http.side.answer(&method, params, call, progress).await;
            let text = envelope::answer_message(&id, &answer);
            let brought = http.post(Some(&session), &method, text, &id, &[]).await;
            if let Err(error) = brought {
                tracing::warn!(%error, %method, "the answer to its question cannot be brought");
            }
        }
    }

    /// The server no longer wants a question answered.
    pub(super) fn take_back(&self, params: Option<Json>) {
        let question = params.and_then(|params| params.member("requestId"));
        if let Some(question) = question.and_then(|id| lock(&self.questions).remove(&id.bytes())) {
            question.abort();
        }
    }
}

/// A question that is being answered.
struct Asked<'a> {
    http: &'a Http,
    id: Bytes,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        lock(&self.http.questions).remove(&self.id);
    }
}

/// Holds neither the connection nor the session while it waits: both end when nobody else does.
async fn attend(http: Weak<Http>, session: Weak<Session>, modern: bool) {
    let Ok(pauses) = Backoff::exponential(FIRST_PAUSE, 2.0, LONGEST_PAUSE) else {
        return;
    };
    let random = backstop::random::from_os();
    let mut failures = 0;
    let mut events = Events::default();
    loop {
        let (opening, mut changes) = match (http.upgrade(), session.upgrade()) {
            (Some(http), Some(session)) => {
                // Before it is read what there is to be watched.
                let changes = http.watches.changes();
                (http.opening(&session, events.last_id()), changes)
            }
            _ => return,
        };
        let began = Instant::now();
        let heard = match opening {
            None => changed(&mut changes).await,
            Some(request) => tokio::select! {
                heard = hear(request, &http, &session, &mut events) => Some(heard),
                changed = changed(&mut changes), if modern => changed,
            },
        };
        let (before, pause) = (events.last_id(), events.retry().unwrap_or_default());
        // What the newest era says is not said again.
        events = match heard {
            Some(Heard::Ended) if !modern => events.reopened(),
            _ => Events::default(),
        };
        match heard {
            None => continue,
            // It may only be that it cannot go on there.
            Some(Heard::Refused) if !modern && before.is_some() => continue,
            Some(Heard::Refused) if !modern => return,
            // Another filter may please it.
            Some(Heard::Refused) => {
                changed(&mut changes).await;
            }
            Some(Heard::Ended) => {
                if began.elapsed() >= SOUND {
                    failures = 0;
                }
                let pause = pause.max(pauses.delay(failures, None, &mut || random()));
                failures = failures.saturating_add(1);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn changed(changes: &mut watch::Receiver<u64>) -> Option<Heard> {
    match changes.changed().await {
        Ok(()) => None,
        // The connection is gone, and the session with it.
        Err(_) => std::future::pending().await,
    }
}

async fn hear(
    request: RequestBuilder,
    http: &Weak<Http>,
    session: &Weak<Session>,
    events: &mut Events,
) -> Heard {
    let mut response = match request.send().await {
        Ok(response) if response.status().is_success() && is_stream(&response) => response,
        Ok(response) if response.status().is_server_error() || response.status() == 429 => {
            return Heard::Ended;
        }
        Ok(_) => return Heard::Refused,
        Err(_) => return Heard::Ended,
    };
    while let Ok(Some(chunk)) = response.chunk().await {
        if events.feed(&chunk).is_err() {
            break;
        }
        let (Some(http), Some(session)) = (http.upgrade(), session.upgrade()) else {
            break;
        };
        while let Some(event) = events.next() {
            http.overheard(&session, event);
        }
    }
    Heard::Ended
}

/// Whether it is a stream of events.
pub(super) fn is_stream(response: &Response) -> bool {
    let media = response.headers().get(CONTENT_TYPE);
    media
        .and_then(|media| media.to_str().ok())
        .is_some_and(|media| media.starts_with("text/event-stream"))
}
