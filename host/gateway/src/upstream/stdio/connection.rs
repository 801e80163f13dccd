//! One run of a child process: who waits for which answer, and the tasks that read and write.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use backstop::mcp::rpc;
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::{Fault, Heard, MAX_MESSAGE_BYTES, Peer, Unasked, UpstreamError, Wiring, meta};
use super::{LAST_WORDS, LastWords};
use crate::envelope::{self, Envelope, Json, Payload};

/// Notifications about one request that may wait; more are dropped, for they only tell progress.
const PROGRESS_QUEUE: usize = 64;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) service: Arc<str>,
    pub(super) writer: mpsc::Sender<Bytes>,
    pub(super) pending: Mutex<HashMap<u64, Waiter>>,
    pub(super) next_id: AtomicU64,
    /// Whether it is spoken to in the era without sessions.
    pub(super) modern: AtomicBool,
    pub(super) peer: OnceLock<Arc<Peer>>,
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
        let text =
            envelope::request_message(id, method, meta::translate(params, modern, token).as_ref());
        let (answer, mut answered) = oneshot::channel();
        let (progress, mut progressed) = mpsc::channel(PROGRESS_QUEUE);
        let progress = wiring.token.is_some().then_some(progress);
        lock(&self.pending).insert(id, Waiter { answer, progress });
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
            }
        }
    }

    /// Gives a message to whom it concerns.
    fn dispatch(&self, line: Bytes, heard: &mpsc::Sender<Heard>) {
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
            Envelope::Notification { method, params } => {
                let _ = heard.try_send(Heard::Unasked(Unasked {
                    service: self.service.clone(),
                    method,
                    params,
                }));
            }
            Envelope::Request { id, method, .. } => {
                let answer = if &*method == "ping" {
                    envelope::answer_message(
                        &id,
                        &Payload::Result(Json::of(&serde_json::json!({}))),
                    )
                } else {
                    let text = format!("the gateway does not forward {method:?}");
                    envelope::error_message(Some(&id), rpc::METHOD_NOT_FOUND, &text, None)
                };
                // A child that floods us with requests and reads no answer loses answers, not us.
                let _ = self.writer.try_send(answer);
            }
        }
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
        let unanswered = lock(&self.connection.pending).remove(&self.id).is_some();
        if unanswered && self.sent {
            let params = Json::of(
                &serde_json::json!({ "requestId": self.id, "reason": "nobody waits for it any more" }),
            );
            let text = envelope::notification_message("notifications/cancelled", Some(&params));
            let _ = self.connection.writer.try_send(text);
        }
    }
}

pub(super) async fn write(
    mut outgoing: mpsc::Receiver<Bytes>,
    mut stdin: ChildStdin,
    ended: CancellationToken,
) {
    while let Some(Some(message)) = ended.run_until_cancelled(outgoing.recv()).await {
        // A message must be one line; inside JSON text a line feed can only be white space.
        let mut line: Vec<u8> = message
            .into_iter()
            .map(|byte| if byte == b'\n' { b' ' } else { byte })
            .collect();
        line.push(b'\n');
        let written = async {
            stdin.write_all(&line).await?;
            stdin.flush().await
        };
        if !matches!(ended.run_until_cancelled(written).await, Some(Ok(()))) {
            break;
        }
    }
    // The reader sees the end of the process and tells everybody.
}

pub(super) async fn read(
    connection: Arc<Connection>,
    mut child: Child,
    stdout: impl AsyncRead + Unpin,
    heard: mpsc::Sender<Heard>,
) {
    let mut stdout = BufReader::with_capacity(64 * 1024, stdout);
    let lines = async {
        while let Some(line) = next_line(&mut stdout).await? {
            if !line.iter().all(u8::is_ascii_whitespace) {
                connection.dispatch(line.into(), &heard);
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
