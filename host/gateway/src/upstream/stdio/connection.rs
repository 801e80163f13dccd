//! One run of a child process: who waits for which answer, and the tasks that read and write.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::watch::Watches;
use super::super::{Fault, MAX_MESSAGE_BYTES, Peer, Side, UpstreamError, Wiring, meta};
use super::{LAST_WORDS, LastWords};
use crate::envelope::{self, Envelope, Json, Payload};

/// Notifications about one request that may wait; more are dropped, for they only tell progress.
const PROGRESS_QUEUE: usize = 64;
/// Messages that wait are written together, up to so many bytes: what a pipe takes at once.
const WRITTEN_AT_ONCE: usize = 64 * 1024;
/// How often a call that waits for its client is said to be alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) service: Arc<str>,
    pub(super) writer: mpsc::Sender<Bytes>,
    pub(super) side: Side,
    pub(super) pending: Mutex<HashMap<u64, Waiter>>,
    /// Questions of the server that are being answered, by its ids.
    pub(super) questions: Mutex<HashMap<Bytes, Question>>,
    pub(super) next_id: AtomicU64,
    /// Whether it is spoken to in the era without sessions.
    pub(super) modern: AtomicBool,
    /// Who it is, once it has said so.
    pub(super) peer: ArcSwapOption<Peer>,
    pub(super) born: Instant,
    /// Whether it has answered a request of a client.
    pub(super) of_use: AtomicBool,
    /// Set when the process has ended or must end.
    pub(super) ended: CancellationToken,
}

#[derive(Debug)]
pub(super) struct Waiter {
    answer: oneshot::Sender<Payload>,
    progress: Option<mpsc::Sender<Json>>,
    wiring: Wiring,
}

#[derive(Debug)]
pub(super) struct Question {
    task: AbortHandle,
    /// Whether it was asked while a call was under way, and ends with it.
    in_call: bool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    pub(super) fn exited(&self) -> UpstreamError {
        UpstreamError::fault(
            &self.service,
            Fault::ProcessExit,
            "the process ended before it answered",
        )
    }

    pub(super) async fn request(
        self: &Arc<Self>,
        method: &str,
        params: Option<&Json>,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Result<Payload, UpstreamError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let token = wiring.token.is_some().then_some(id);
        let modern = self.modern.load(Ordering::Relaxed);
        let text = envelope::request_message(
            id,
            method,
            meta::translate(
                params,
                modern,
                token,
                wiring.client.as_deref(),
                self.side.sampling(),
            )
            .as_ref(),
        );
        let (answer, mut answered) = oneshot::channel();
        let (progress, mut progressed) = mpsc::channel(PROGRESS_QUEUE);
        let progress = wiring.token.is_some().then_some(progress);
        let waiter = Waiter {
            answer,
            progress,
            wiring: wiring.clone(),
        };
        lock(&self.pending).insert(id, waiter);
        let mut guard = InFlight {
            connection: self,
            id,
            sent: false,
        };
        if self.ended.is_cancelled() || self.writer.send(text).await.is_err() {
            return Err(UpstreamError::fault(
                &self.service,
                Fault::NotSent,
                "the process has ended",
            ));
        }
        guard.sent = method != "initialize";
        loop {
            tokio::select! {
                biased;
                Some(params) = progressed.recv() => {
                    alive();
                    if let (Some(token), Some(out)) = (&wiring.token, &wiring.out) {
                        let params = params.with_members(&[("progressToken", Some(token))]);
                        let _ = out.try_send(envelope::notification_message("notifications/progress", Some(&params)));
                    }
                }
                answer = &mut answered => return answer.map_err(|_| self.exited()),
                // The server waits for the client, not we for the server.
                () = tokio::time::sleep(SIGN_OF_LIFE) => {
                    if !lock(&self.questions).is_empty() {
                        alive();
                    }
                }
            }
        }
    }

    /// Gives a message to whom it concerns.
    fn dispatch(self: &Arc<Self>, line: Bytes) {
        let envelope = match Envelope::parse(line) {
            Ok(envelope) => envelope,
            Err(error) => {
                tracing::warn!(service = %self.service, %error, "a line that is no message is skipped");
                return;
            }
        };
        match envelope {
            Envelope::Answer { id, answer } => {
                let waiter = id
                    .and_then(|id| id.read::<u64>().ok())
                    .and_then(|id| lock(&self.pending).remove(&id));
                match waiter {
                    Some(waiter) => drop(waiter.answer.send(answer)),
                    None => {
                        tracing::debug!(service = %self.service, "an answer nobody waits for is dropped")
                    }
                }
            }
            Envelope::Notification { method, params } if &*method == "notifications/progress" => {
                let Some(params) = params else { return };
                let token = params
                    .member("progressToken")
                    .and_then(|token| token.read::<u64>().ok());
                let pending = lock(&self.pending);
                let waiter = token
                    .and_then(|token| pending.get(&token))
                    .and_then(|waiter| waiter.progress.as_ref());
                if let Some(progress) = waiter {
                    let _ = progress.try_send(params);
                }
            }
            Envelope::Notification { method, params } if &*method == "notifications/cancelled" => {
                let question = params.and_then(|params| params.member("requestId"));
                let question = question.and_then(|id| lock(&self.questions).remove(&id.bytes()));
                if let Some(question) = question {
                    question.task.abort();
                }
            }
            Envelope::Notification { method, params } => {
                let call = self.call_meant();
                self.side
                    .heard(&self.service, &method, params, call.as_ref());
            }
            Envelope::Request { id, method, params } => self.answer(id, method, params),
        }
    }

    /// The call a message without a reference to one belongs to. Where many share the connection and
    /// more than one call is under way, it is nobody's.
    fn call_meant(&self) -> Option<Wiring> {
        let pending = lock(&self.pending);
        let calls = pending
            .iter()
            .filter(|(_, waiter)| waiter.wiring.out.is_some());
        let newest = calls.clone().max_by_key(|(id, _)| **id);
        let clear = self.side.is_owned() || calls.count() == 1;
        newest
            .filter(|_| clear)
            .map(|(_, waiter)| waiter.wiring.clone())
    }

    /// Gets a question of the server answered, and brings it the answer.
    fn answer(self: &Arc<Self>, id: Json, method: Box<str>, params: Option<Json>) {
        let call = self.call_meant();
        let (key, in_call) = (id.bytes(), call.is_some());
        let connection = self.clone();
        let answered = async move {
            let writer = connection.writer.clone();
            let progress = Box::new(move |params: Json| {
                let method = "notifications/progress";
                let _ = writer.try_send(envelope::notification_message(method, Some(&params)));
            });
            let out = call.and_then(|call| call.out);
            let answer = connection.side.answer(&method, params, out, progress).await;
            lock(&connection.questions).remove(&id.bytes());
            let _ = connection
                .writer
                .send(envelope::answer_message(&id, &answer))
                .await;
        };
        let ended = self.ended.clone();
        let mut questions = lock(&self.questions);
        let task = tokio::spawn(ended.run_until_cancelled_owned(answered)).abort_handle();
        questions.insert(key, Question { task, in_call });
    }

    /// Asks a server of the newest era to be told what changes, and again when something else is to
    /// be told.
    pub(super) async fn listen(self: Arc<Self>, watches: Arc<Watches>) {
        let mut changes = watches.changes();
        loop {
            let method = "subscriptions/listen";
            // It may have gone over to the other era.
            let peer = self.peer.load_full().filter(|peer| peer.modern);
            let Some(peer) = peer else { return };
            let asked = watches.listen_params(&peer).map(|params| {
                let id = self.next_id.fetch_add(1, Ordering::Relaxed);
                let params = meta::translate(Some(&params), true, None, None, self.side.sampling());
                let text = envelope::request_message(id, method, params.as_ref());
                (id, text)
            });
            let mut id = None;
            if let Some((number, text)) = asked {
                if self.writer.send(text).await.is_err() {
                    return;
                }
                id = Some(number);
            }
            if changes.changed().await.is_err() {
                return;
            }
            if let Some(id) = id {
                self.cancel(id, "another filter takes its place");
            }
        }
    }

    fn cancel(&self, id: u64, reason: &str) {
        let params = Json::of(&serde_json::json!({ "requestId": id, "reason": reason }));
        let text = envelope::notification_message("notifications/cancelled", Some(&params));
        let _ = self.writer.try_send(text);
    }
}

/// A request in flight: cancelled at the server when nobody waits for it any more.
struct InFlight<'a> {
    connection: &'a Connection,
    id: u64,
    sent: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let (unanswered, others) = {
            let mut pending = lock(&self.connection.pending);
            (pending.remove(&self.id).is_some(), !pending.is_empty())
        };
        if unanswered && self.sent {
            self.connection
                .cancel(self.id, "nobody waits for it any more");
            if !others {
                lock(&self.connection.questions).retain(|_, question| {
                    if question.in_call {
                        question.task.abort();
                    }
                    !question.in_call
                });
            }
        }
    }
}

pub(super) async fn write(
    mut outgoing: mpsc::Receiver<Bytes>,
    mut stdin: ChildStdin,
    ended: CancellationToken,
) {
    let mut lines = Vec::new();
    while let Some(Some(message)) = ended.run_until_cancelled(outgoing.recv()).await {
        lines.clear();
        // One large message must not hold its memory for good.
        lines.shrink_to(2 * WRITTEN_AT_ONCE);
        append_line(&mut lines, &message);
        // What waits already goes with it.
        while lines.len() < WRITTEN_AT_ONCE
            && let Ok(message) = outgoing.try_recv()
        {
            append_line(&mut lines, &message);
        }
        let written = async {
            stdin.write_all(&lines).await?;
            stdin.flush().await
        };
        if !matches!(ended.run_until_cancelled(written).await, Some(Ok(()))) {
            break;
        }
    }
    // The reader sees the end of the process and tells everybody.
}

/// A message must be one line; inside JSON text a line feed can only be white space.
fn append_line(lines: &mut Vec<u8>, message: &[u8]) {
    let began = lines.len();
    lines.extend_from_slice(message);
    for byte in &mut lines[began..] {
        if *byte == b'\n' {
            *byte = b' ';
        }
    }
    lines.push(b'\n');
}

pub(super) async fn read(
    connection: Arc<Connection>,
    mut child: Child,
    stdout: impl AsyncRead + Unpin,
) {
    let mut stdout = BufReader::with_capacity(64 * 1024, stdout);
    let lines = async {
        while let Some(line) = next_line(&mut stdout).await? {
            if !line.iter().all(u8::is_ascii_whitespace) {
                connection.dispatch(line.into());
            }
        }
        std::io::Result::Ok(())
    };
    if let Some(Err(error)) = connection.ended.run_until_cancelled(lines).await {
        tracing::warn!(service = %connection.service, %error, "reading from it failed");
    }
    connection.ended.cancel();
    let _ = child.start_kill();
    let status = child.wait().await;
    tracing::info!(service = %connection.service, ?status, "ended");
    // Dropping the waiters tells everybody who waits.
    lock(&connection.pending).clear();
}

/// One line, without its end; `None` at the end of the stream.
async fn next_line(
    stream: &mut (impl AsyncBufReadExt + Unpin),
) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let limit = u64::try_from(MAX_MESSAGE_BYTES).unwrap_or(u64::MAX);
    stream.take(limit).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => {
            line.pop();
            Ok(Some(line))
        }
        Some(_) if line.len() < MAX_MESSAGE_BYTES => Ok(Some(line)),
        Some(_) => Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "a line is too long",
        )),
    }
}

pub(super) async fn log_lines(
    service: Arc<str>,
    stream: impl AsyncRead + Unpin,
    last_words: LastWords,
) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    // Cut long lines rather than hold them: this is a log.
    while let Ok(1..) = (&mut stream)
        .take(8 * 1024)
        .read_until(b'\n', &mut line)
        .await
    {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        tracing::info!(target: "backstop::stderr", service = %service, "{text}");
        let mut words = lock(&last_words);
        if words.len() == LAST_WORDS {
            words.pop_front();
        }
        words.push_back(text.to_owned());
        drop(words);
        line.clear();
    }
}
