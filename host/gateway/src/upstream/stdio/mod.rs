//! A server that is a child process: one JSON-RPC message per line over its standard streams.
//!
//! The process is started on demand, once for all who wait for it, and again whenever it has ended;
//! one that keeps ending is given longer and longer pauses, and is never given up.

mod connection;

use std::collections::VecDeque;
use std::fmt;
use std::process::Stdio as Pipe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use backstop::mcp::rpc;
use backstop::random::Random;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Crash, DISCOVER_TIMEOUT, Fault, HANDSHAKE_TIMEOUT, Peer, ServiceSpec, Side, TransportSpec,
    UpstreamError, Wiring, discovered, initialized, meta, watch::Watches,
};
use crate::envelope::{self, Json, Payload};
use crate::exchange::chain;
use crate::workers::Workers;
use connection::{Connection, lock, log_lines, read, write};

/// The pauses between starts of a process that keeps ending early: the first start after an end is
/// at once.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A process that lived this long is taken for a sound one, as is one that was of use: only a process
/// that keeps ending without having done anything is started more and more slowly.
const SOUND_LIFE: Duration = Duration::from_secs(10);
/// How many percent a pause is longer, by chance, at most.
const PAUSE_JITTER: u64 = 20;
/// A process that was started so often in a row, and ended, is reported.
const CRASH_LOOP: u32 = 3;
/// Lines of its standard error that are kept for such a report.
const LAST_WORDS: usize = 10;
/// Messages that may wait to be written; a process that does not read holds its callers back.
const WRITE_QUEUE: usize = 1024;

/// A child process and what is needed to start it again.
pub(super) struct Stdio {
    spec: ServiceSpec,
    side: Side,
    watches: Arc<Watches>,
    random: Random,
    workers: Arc<OnceLock<Workers>>,
    /// Where it is attended to, where there are workers.
    home: OnceLock<Option<Handle>>,
    last_words: LastWords,
    /// Starts it again whenever it has ended; there from the first start on.
    keeper: OnceLock<()>,
    /// Held while a process is being started.
    starting: tokio::sync::Mutex<Starts>,
    current: Mutex<Option<Arc<Connection>>>,
}

impl fmt::Debug for Stdio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stdio")
            .field("spec", &self.spec)
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

/// The last lines a process wrote to its standard error.
type LastWords = Arc<Mutex<VecDeque<String>>>;

#[derive(Debug, Default)]
struct Starts {
    in_a_row: u32,
    not_before: Option<Instant>,
    /// It cannot bear `server/discover`.
    initialize_only: bool,
    /// It cannot bear `initialize`.
    discover_only: bool,
    closed: bool,
}

impl Stdio {
    pub(super) fn new(
        spec: &ServiceSpec,
        side: Side,
        watches: Arc<Watches>,
        workers: Arc<OnceLock<Workers>>,
    ) -> Self {
        Self {
            spec: spec.clone(),
            side,
            watches,
            random: backstop::random::from_os(),
            workers,
            home: OnceLock::new(),
            last_words: LastWords::default(),
            keeper: OnceLock::new(),
            starting: tokio::sync::Mutex::default(),
            current: Mutex::default(),
        }
    }

    pub(super) async fn peer(self: &Arc<Self>) -> Result<Arc<Peer>, UpstreamError> {
        let connection = self.connection().await?;
        connection
            .peer
            .load_full()
            .ok_or_else(|| connection.exited())
    }

    pub(super) fn known_peer(&self) -> Option<Arc<Peer>> {
        self.alive()?.peer.load_full()
    }

    pub(super) async fn request(
        self: &Arc<Self>,
        method: &str,
        params: Option<&Json>,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Result<Payload, UpstreamError> {
        let connection = self.connection().await?;
        let peer = connection.peer.load_full();
        let answer = connection.request(method, params, wiring, alive).await?;
        // It speaks another version now: whoever is asked next has agreed on one anew.
        if answer.error_code() == Some(rpc::UNSUPPORTED_PROTOCOL_VERSION) {
            self.renegotiate(&connection, peer).await;
        }
        // What the gateway asks by itself when a server comes up is no use to anybody yet.
        let own = matches!(method, "ping" | "server/discover") || method.ends_with("/list");
        if !own {
            connection.of_use.store(true, Ordering::Relaxed);
        }
        Ok(answer)
    }

    /// Says something that needs no answer, if the process is there to hear it.
    pub(super) fn notify(&self, method: &str, params: Option<&Json>) {
        if let Some(connection) = self.alive() {
            let modern = connection.modern.load(Ordering::Relaxed);
            let params = meta::translate(params, modern, None, None, self.side.sampling());
            let text = envelope::notification_message(method, params.as_ref());
            let _ = connection.writer.try_send(text);
        }
    }

    /// Ends the process with which this peer was spoken to.
    pub(super) fn end_if(&self, peer: &Arc<Peer>) {
        let current = lock(&self.current).clone();
        if let Some(connection) = current
            && connection
                .peer
                .load_full()
                .is_some_and(|there| Arc::ptr_eq(&there, peer))
        {
            connection.ended.cancel();
        }
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
        self.keeper.get_or_init(|| {
            tokio::spawn(keep(Arc::downgrade(self)));
        });
        // On a task of its own: a caller that gives up must not undo what others wait for.
        let this = self.clone();
        let name = &self.spec.name;
        let home = || self.workers.get().and_then(Workers::for_process);
        let started = async move { this.start().await };
        let task = match self.home.get_or_init(home) {
            Some(home) => home.spawn(started),
            None => tokio::spawn(started),
        };
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
        let last = lock(&self.current).take();
        let sound = |last: &Arc<Connection>| {
            last.of_use.load(Ordering::Relaxed) || now.duration_since(last.born) > SOUND_LIFE
        };
        match last.as_ref().map(sound) {
            Some(true) => {
                *starts = Starts {
                    initialize_only: starts.initialize_only,
                    discover_only: starts.discover_only,
                    ..Starts::default()
                };
            }
            Some(false) => self.report(&starts, "it ended soon after its start"),
            None => {}
        }
        if starts.not_before.is_some_and(|then| now < then) {
            let said = lock(&self.last_words).back().cloned();
            let said = said.map_or(String::new(), |line| format!("; it last said: {line}"));
            let text = format!(
                "it ended {} times in a row and is not started again yet{said}",
                starts.in_a_row
            );
            return Err(UpstreamError::fault(name, Fault::NotSent, text));
        }
        let pause = FIRST_PAUSE
            .saturating_mul(1 << starts.in_a_row.min(10))
            .min(LONGEST_PAUSE);
        let percent = 100 + (self.random)() % (PAUSE_JITTER + 1);
        let pause = pause.mul_f64(percent as f64 / 100.0);
        starts.in_a_row = starts.in_a_row.saturating_add(1);
        starts.not_before = (starts.in_a_row > 1).then(|| now + pause);
        lock(&self.last_words).clear();
        let started =
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(&mut starts)).await {
                Ok(started) => started,
                Err(_) => {
                    let text = format!("it did not say who it is within {HANDSHAKE_TIMEOUT:?}");
                    Err(UpstreamError::fault(name, Fault::NotSent, text))
                }
            };
        match started {
            Ok(started) => {
                *lock(&self.current) = Some(started.clone());
                self.side.greeted(name);
                Ok(started)
            }
            Err(error) => {
                self.report(&starts, &chain(&error));
                Err(error.before_asking(name))
            }
        }
    }

    /// Reports a process that keeps ending.
    fn report(&self, starts: &Starts, reason: &str) {
        if starts.in_a_row < CRASH_LOOP {
            return;
        }
        let again = starts.not_before.unwrap_or_else(Instant::now);
        self.side.crashing(Crash {
            service: self.spec.name.clone(),
            starts: starts.in_a_row,
            reason: reason.to_owned(),
            stderr: lock(&self.last_words).iter().cloned().collect(),
            again_after: again.saturating_duration_since(Instant::now()),
        });
    }

    /// Starts the process and asks who it is: in the client's words where there are any, else in the
    /// new way first.
    async fn handshake(&self, starts: &mut Starts) -> Result<Arc<Connection>, UpstreamError> {
        let hello = self.side.hello();
        if let Some(hello) = hello.as_ref().filter(|_| !starts.discover_only) {
            let connection = self.spawn()?;
            let guard = connection.ended.clone().drop_guard();
            match self.initialize(&connection, hello).await {
                Ok(()) => {
                    guard.disarm();
                    return Ok(connection);
                }
                // A server of the newest era alone knows no such method.
                Err(UpstreamError::Transport {
                    fault: Fault::Garbage,
                    ..
                }) => starts.discover_only = true,
                Err(error) => return Err(error),
            }
        }
        let hello = hello.unwrap_or_else(|| self.side.own_hello());
        if !starts.initialize_only {
            let connection = self.spawn()?;
            // Until it is handed out, nobody but this function may keep the process alive.
            let guard = connection.ended.clone().drop_guard();
            match self.agree(&connection, &hello).await {
                Ok(()) => {
                    guard.disarm();
                    return Ok(connection);
                }
                Err(error) => tracing::debug!(%error, "bears no server/discover"),
            }
            starts.initialize_only = true;
        }
        let connection = self.spawn()?;
        let guard = connection.ended.clone().drop_guard();
        self.initialize(&connection, &hello).await?;
        guard.disarm();
        Ok(connection)
    }

    /// Asks a running process who it is: in the new way first.
    async fn agree(&self, connection: &Arc<Connection>, hello: &Json) -> Result<(), UpstreamError> {
        connection.modern.store(true, Ordering::Relaxed);
        let wiring = Wiring::default();
        let ask = connection.request("server/discover", None, &wiring, &|| {});
        let Ok(answer) = tokio::time::timeout(DISCOVER_TIMEOUT, ask).await else {
            let text = "it was silent to `server/discover`";
            return Err(UpstreamError::fault(&self.spec.name, Fault::NotSent, text));
        };
        let Some(peer) = discovered(&answer?) else {
            // A server of the old era has only answered that it knows no such method.
            return self.initialize(connection, hello).await;
        };
        let before = connection.peer.swap(Some(Arc::new(peer)));
        // One that listens already goes on.
        if before.is_none_or(|before| !before.modern) {
            let listening = connection.clone().listen(self.watches.clone());
            let ended = connection.ended.clone();
            tokio::spawn(ended.run_until_cancelled_owned(listening));
        }
        Ok(())
    }

    /// Agrees on a version anew with a process that no longer speaks the one agreed on with `peer`, once
    /// for all who hear of it. What is under way in it goes on.
    async fn renegotiate(self: &Arc<Self>, connection: &Arc<Connection>, peer: Option<Arc<Peer>>) {
        let (this, connection) = (self.clone(), connection.clone());
        // On a task of its own: a caller that gives up must not undo what others wait for.
        let agreed = tokio::spawn(async move {
            let _one_at_a_time = this.starting.lock().await;
            let now = connection.peer.load_full();
            if peer.as_ref().map(Arc::as_ptr) != now.as_ref().map(Arc::as_ptr) {
                return;
            }
            let hello = this.side.hello().unwrap_or_else(|| this.side.own_hello());
            let agreed = this.agree(&connection, &hello);
            let service = &this.spec.name;
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, agreed).await {
                Ok(Ok(())) => this.side.greeted(service),
                Ok(Err(error)) => tracing::warn!(%error, "no version can be agreed on"),
                Err(_) => tracing::warn!(%service, "slow to agree on a version"),
            }
        });
        // Whatever came of it, the next request shows.
        let _ = agreed.await;
    }

    async fn initialize(
        &self,
        connection: &Arc<Connection>,
        params: &Json,
    ) -> Result<(), UpstreamError> {
        connection.modern.store(false, Ordering::Relaxed);
        let wiring = Wiring::default();
        let answer = connection
            .request("initialize", Some(params), &wiring, &|| {})
            .await?;
        let (peer, _) = initialized(&self.spec.name, &answer)?;
        let _ = connection
            .writer
            .send(envelope::notification_message(
                "notifications/initialized",
                None,
            ))
            .await;
        // What the clients have asked for already.
        let logs = peer.capabilities.member("logging").is_some();
        let level = self.side.log_level().filter(|_| logs);
        let level = level.map(|level| ("logging/setLevel", json!({ "level": level })));
        let watched = self.watches.all().into_iter();
        let watched = watched.map(|uri| ("resources/subscribe", json!({ "uri": uri })));
        for (method, params) in level.into_iter().chain(watched) {
            connection
                .request(method, Some(&Json::of(&params)), &wiring, &|| {})
                .await?;
        }
        connection.peer.store(Some(Arc::new(peer)));
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
            side: self.side.clone(),
            pending: Mutex::default(),
            questions: Mutex::default(),
            next_id: AtomicU64::new(1),
            modern: AtomicBool::new(true),
            peer: ArcSwapOption::empty(),
            born: Instant::now(),
            of_use: AtomicBool::new(false),
            ended: CancellationToken::new(),
        });
        tokio::spawn(log_lines(name.clone(), stderr, self.last_words.clone()));
        tokio::spawn(write(outgoing, stdin, connection.ended.clone()));
        tokio::spawn(read(connection.clone(), child, stdout));
        Ok(connection)
    }
}

/// Starts the process again whenever it has ended, for as long as anybody holds the server: the next
/// call, or the next probe, finds it running.
fn keep(stdio: Weak<Stdio>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        loop {
            let Some(this) = stdio.upgrade() else { return };
            if let Some(connection) = this.alive() {
                let ended = connection.ended.clone();
                drop((this, connection));
                ended.cancelled().await;
                continue;
            }
            // Waits for a start that is under way.
            let (closed, not_before) = {
                let starts = this.starting.lock().await;
                (starts.closed, starts.not_before)
            };
            if closed {
                return;
            }
            drop(this);
            if let Some(not_before) = not_before {
                tokio::time::sleep_until(not_before).await;
            }
            let Some(this) = stdio.upgrade() else { return };
            if let Err(error) = this.connection().await {
                tracing::warn!(%error, "cannot be started");
            }
        }
    })
}

impl Drop for Stdio {
    fn drop(&mut self) {
        // The tasks that read and write keep the process alive, and nobody else is left to end it.
        if let Some(connection) = lock(&self.current).take() {
            connection.ended.cancel();
        }
    }
}
