//! The server over a pipe, without a proxy: what clients behind one have in common.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<String>>>>;

/// A process of the server, which all clients share.
pub(crate) struct Pipe {
    stdin: tokio::sync::Mutex<ChildStdin>,
    waiting: Waiting,
    next: AtomicU64,
    _child: Child,
}

impl Pipe {
    pub(crate) fn open(program: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .arg("stdio")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let waiting = Waiting::default();
        let heard = waiting.clone();
        tokio::spawn(async move {
            #[derive(Deserialize)]
            struct Answer {
                id: u64,
            }
            let mut lines = BufReader::with_capacity(64 * 1024, stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(Answer { id }) = serde_json::from_str(&line) else {
                    continue;
                };
                let mut waiting = heard.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(waits) = waiting.remove(&id) {
                    let _ = waits.send(line);
                }
            }
        });
        Ok(Self {
            stdin: stdin.into(),
            waiting,
            next: AtomicU64::new(1),
            _child: child,
        })
    }

    /// One call, its answer checked.
    pub(crate) async fn call(&self, size: usize) -> anyhow::Result<()> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let params = json!({ "name": "echo", "arguments": { "size": size } });
        let message =
            json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params });
        let (waits, answered) = oneshot::channel();
        let waiting = || self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting().insert(id, waits);
        let line = format!("{message}\n");
        self.stdin.lock().await.write_all(line.as_bytes()).await?;
        let answer = answered.await?;
        let counted = answer.bytes().filter(|byte| *byte == b'x').count();
        ensure!(counted >= size, "{}", &answer[..answer.len().min(300)]);
        Ok(())
    }
}
