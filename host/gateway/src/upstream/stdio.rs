//! A server that is a child process: one JSON-RPC message per line over its standard streams.
//!
//! The process is started on demand, once for all who wait for it, and again after it has ended;
//! one that keeps ending is given longer and longer pauses.

use std::collections::HashMap;
use std::process::Stdio as Pipe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use backstop::mcp::rpc;
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    DISCOVER_TIMEOUT, Fault, HANDSHAKE_TIMEOUT, MAX_MESSAGE_BYTES, Peer, ServiceSpec,
    TransportSpec, Unasked, UpstreamError, Wiring, discovered, initialize_params, initialized,
    meta,
};
use crate::envelope::{self, Envelope, Json, Payload};

/// The pauses between starts of a process that keeps ending early: the first start after an end is
/// at once.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A process that lived this long is taken for a sound one.
const SOUND_LIFE: Duration = Duration::from_secs(10);
/// Messages that may wait to be written; a process that does not read holds its callers back.
const WRITE_QUEUE: usize = 64;
/// Notifications about one request that may wait; more are dropped, for they only tell progress.
const PROGRESS_QUEUE: usize = 64;

/// A child process and what is needed to start it again.
#[derive(Debug)]
pub(super) struct Stdio {
    spec: ServiceSpec,
    unasked: mpsc::Sender<Unasked>,
    /// Held while a process is being started.
    starting: tokio::sync::Mutex<Starts>,
    current: Mutex<Option<Arc<Connection>>>,
}

#[derive(Debug, Default)]
struct Starts {
    in_a_row: u32,
    not_before: Option<Instant>,
    /// It cannot bear `server/discover`.
    initialize_only: bool,
    closed: bool,
}

#[derive(Debug)]
struct Connection {
    service: Arc<str>,
    writer: mpsc::Sender<Bytes>,
    pending: Mutex<HashMap<u64, Waiter>>,
    next_id: AtomicU64,
    /// Whether it is spoken to in the era without sessions.
    modern: AtomicBool,
    peer: OnceLock<Arc<Peer>>,
    born: Instant,
    /// Set when the process has ended or must end.
    ended: CancellationToken,
}

#[derive(Debug)]
struct Waiter {
    answer: oneshot::Sender<Payload>,
    progress: Option<mpsc::Sender<Json>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stdio {
    pub(super) fn new(spec: &ServiceSpec, unasked: mpsc::Sender<Unasked>) -> Self {
        Self {
            spec: spec.clone(),
            unasked,
            starting: tokio::sync::Mutex::default(),
            current: Mutex::default(),
        }
    }

    pub(super) async fn peer(self: &Arc<Self>) -> Result<Arc<Peer>, UpstreamError> {
        let connection = self.connection().await?;
        connection
            .peer
            .get()
            .cloned()
            .ok_or_else(|| connection.exited())
    }

    pub(super) fn known_peer(&self) -> Option<Arc<Peer>> {
        self.alive()?.peer.get().cloned()
    }

    pub(super) async fn request(
        self: &Arc<Self>,
        method: &str,
        params: Option<&Json>,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Result<Payload, UpstreamError> {
        self.connection()
            .await?
            .request(method, params, wiring, alive)
            .await
    }

    pub(super) async fn close(&self) {
        self.starting.lock().await.closed = true;
        if let Some(connection) = lock(&self.current).take() {
            connection.ended.cancel();
        }
    }

    fn alive(&self) -> Option<Arc<Connection>> {
        lock(&self.current)
            .as_ref()
            .filter(|connection| !connection.ended.is_cancelled())
            .cloned()
    }

    async fn connection(self: &Arc<Self>) -> Result<Arc<Connection>, UpstreamError> {
        if let Some(connection) = self.alive() {
            return Ok(connection);
        }
        // On a task of its own: a caller that gives up must not undo what others wait for.
        let this = self.clone();
        let name = &self.spec.name;
        let task = tokio::spawn(async move { this.start().await });
        task.await.unwrap_or_else(|error| {
            Err(UpstreamError::caused(
                name,
                Fault::NotSent,
                "starting it failed",
                error,
            ))
        })
    }

    async fn start(&self) -> Result<Arc<Connection>, UpstreamError> {
        let name = &self.spec.name;
        let mut starts = self.starting.lock().await;
        if let Some(connection) = self.alive() {
            return Ok(connection);
        }
        if starts.closed {
            return Err(UpstreamError::fault(
                name,
                Fault::NotSent,
                "the gateway is shutting down",
            ));
        }
        let now = Instant::now();
        if let Some(last) = lock(&self.current).take() {
            if now.duration_since(last.born) > SOUND_LIFE {
                *starts = Starts {
                    initialize_only: starts.initialize_only,
                    ..Starts::default()
                };
            }
        }
        if starts.not_before.is_some_and(|then| now < then) {
            let text = format!(
                "it ended {} times in a row and is not started again yet",
                starts.in_a_row
            );
            return Err(UpstreamError::fault(name, Fault::NotSent, text));
        }
        let pause = FIRST_PAUSE
            .saturating_mul(1 << starts.in_a_row.min(10))
            .min(LONGEST_PAUSE);
        starts.in_a_row += 1;
        starts.not_before = (starts.in_a_row > 1).then(|| now + pause);
        let started =
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(&mut starts)).await {
                Ok(started) => started?,
                Err(_) => {
                    let text = format!("it did not say who it is within {HANDSHAKE_TIMEOUT:?}");
                    return Err(UpstreamError::fault(name, Fault::NotSent, text));
                }
            };
        *lock(&self.current) = Some(started.clone());
        Ok(started)
    }

    /// Starts the process and asks who it is, in the new way first.
    async fn handshake(&self, starts: &mut Starts) -> Result<Arc<Connection>, UpstreamError> {
        if !starts.initialize_only {
            let connection = self.spawn()?;
            // Until it is handed out, nobody but this function may keep the process alive.
            let guard = connection.ended.clone().drop_guard();
            let wiring = Wiring::default();
            let ask = connection.request("server/discover", None, &wiring, &|| {});
            match tokio::time::timeout(DISCOVER_TIMEOUT, ask).await {
                Ok(Ok(answer)) => {
                    if let Some(peer) = discovered(&answer) {
                        let _ = connection.peer.set(Arc::new(peer));
                        guard.disarm();
                        return Ok(connection);
                    }
                    // A server of the old era has only answered that it knows no such method.
                    if self.initialize(&connection).await.is_ok() {
                        guard.disarm();
                        return Ok(connection);
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "ended over server/discover"),
                Err(_) => tracing::debug!(service = %self.spec.name, "silent to server/discover"),
            }
            starts.initialize_only = true;
        }
        let connection = self.spawn()?;
        let guard = connection.ended.clone().drop_guard();
        self.initialize(&connection).await?;
        guard.disarm();
        Ok(connection)
    }

    async fn initialize(&self, connection: &Arc<Connection>) -> Result<(), UpstreamError> {
        connection.modern.store(false, Ordering::Relaxed);
        let params = initialize_params();
        let answer = connection
            .request("initialize", Some(&params), &Wiring::default(), &|| {})
            .await?;
        let (peer, _) = initialized(&self.spec.name, &answer)?;
        let _ = connection
            .writer
            .send(envelope::notification_message(
                "notifications/initialized",
                None,
            ))
            .await;
        let _ = connection.peer.set(Arc::new(peer));
        Ok(())
    }

    fn spawn(&self) -> Result<Arc<Connection>, UpstreamError> {
        let name = &self.spec.name;
        let TransportSpec::Stdio {
            command,
            args,
            env,
            cwd,
        } = &self.spec.transport
        else {
            return Err(UpstreamError::fault(
                name,
                Fault::NotSent,
                "it is no child process",
            ));
        };
        let mut process = Command::new(command);
        process
            .args(args)
            .envs(env)
            .stdin(Pipe::piped())
            .stdout(Pipe::piped())
            .stderr(Pipe::piped());
        process.kill_on_drop(true);
        if let Some(cwd) = cwd {
            process.current_dir(cwd);
        }
        // A group of its own: a Ctrl-C at the terminal is the gateway's to act on, not the child's.
        #[cfg(unix)]
        process.process_group(0);
        let refused = |error| {
            UpstreamError::caused(
                name,
                Fault::Refused,
                format!("{command:?} cannot be started"),
                error,
            )
        };
        let mut child = process.spawn().map_err(refused)?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(UpstreamError::fault(
                name,
                Fault::NotSent,
                "it has no standard streams",
            ));
        };
        tracing::info!(service = %name, pid = child.id(), "started");
        let (writer, outgoing) = mpsc::channel(WRITE_QUEUE);
        let connection = Arc::new(Connection {
            service: name.clone(),
            writer,
            pending: Mutex::default(),
            next_id: AtomicU64::new(1),
            modern: AtomicBool::new(true),
            peer: OnceLock::new(),
            born: Instant::now(),
            ended: CancellationToken::new(),
        });
        tokio::spawn(log_lines(name.clone(), stderr));
        tokio::spawn(write(outgoing, stdin, connection.ended.clone()));
        tokio::spawn(read(
            connection.clone(),
            child,
            stdout,
            self.unasked.clone(),
        ));
        Ok(connection)
    }
}

impl Connection {
    fn exited(&self) -> UpstreamError {
        UpstreamError::fault(
            &self.service,
            Fault::ProcessExit,
            "the process ended before it answered",
        )
    }

    async fn request(
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
    fn dispatch(&self, line: Bytes, unasked: &mpsc::Sender<Unasked>) {
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
                let _ = unasked.try_send(Unasked {
                    service: self.service.clone(),
                    method,
                    params,
                });
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

async fn write(
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

async fn read(
    connection: Arc<Connection>,
    mut child: Child,
    stdout: impl AsyncRead + Unpin,
    unasked: mpsc::Sender<Unasked>,
) {
    let mut stdout = BufReader::with_capacity(64 * 1024, stdout);
    let lines = async {
        while let Some(line) = next_line(&mut stdout).await? {
            if !line.iter().all(u8::is_ascii_whitespace) {
                connection.dispatch(line.into(), &unasked);
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

async fn log_lines(service: Arc<str>, stream: impl AsyncRead + Unpin) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    // Cut long lines rather than hold them: this is a log.
    while let Ok(1..) = (&mut stream)
        .take(8 * 1024)
        .read_until(b'\n', &mut line)
        .await
    {
        tracing::info!(target: "backstop::stderr", service = %service, "{}", String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}
