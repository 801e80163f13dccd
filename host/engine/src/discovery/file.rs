//! Targets in a file that is watched.
//!
//! The operating system says that something happened in the file's folder; whether the file is another
//! one is found by reading it. It is also read from time to time, since no such notice is complete: the
//! folder may be replaced as a whole, or lie on a file system that tells nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::{Page, Targets};
use crate::config::Config;

/// How long nothing must happen before the file is read.
const SETTLE: Duration = Duration::from_millis(100);
/// The longest wait for that.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the file is read where nothing is heard.
const LOOK: Duration = Duration::from_secs(5);
/// The same where nothing can be heard.
const POLL: Duration = Duration::from_millis(500);

/// Reads the file again and again.
pub(super) async fn follow(file: PathBuf, mut page: Page) {
    let notice = Arc::new(Notify::new());
    let mut ears = None;
    let mut last = None;
    loop {
        if ears.is_none() {
            ears = listen(&file, notice.clone());
        }
        let text = read(file.clone()).await;
        if last.as_ref() != Some(&text) {
            take(&file, &text, &mut page);
            last = Some(text);
        }
        // A folder that is not there cannot be watched, and one that is gone is not the one that is watched.
        let gone = !file.parent().is_some_and(Path::is_dir);
        if gone {
            ears = None;
        }
        let look = if ears.is_some() { LOOK } else { POLL };
        if timeout(look, notice.notified()).await.is_ok() {
            settle(&notice).await;
        }
    }
}

/// Waits until a writer is done.
async fn settle(notice: &Notify) {
    let quiet = async { while timeout(SETTLE, notice.notified()).await.is_ok() {} };
    tokio::select! {
        () = quiet => {}
        () = sleep(PATIENCE) => {}
    }
}

async fn read(file: PathBuf) -> Result<String, String> {
    let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(file)).await;
    match read {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(format!("it cannot be read: {error}")),
        Err(error) => Err(format!("it cannot be read: {error}")),
    }
}

fn take(file: &Path, text: &Result<String, String>, page: &mut Page) {
    let text = match text {
        Ok(text) => text,
        Err(reason) => return page.refuse(reason),
    };
    let loaded = Config::parse_targets(text, file, &|name| std::env::var(name).ok());
    let (errors, warnings): (Vec<_>, Vec<_>) = loaded
        .diagnostics
        .iter()
        .partition(|diagnostic| diagnostic.is_error());
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if errors.is_empty() {
        page.write(Targets {
            services: loaded.config.services,
            models: loaded.config.models,
        });
        return;
    }
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    page.refuse(&errors.join("; "));
}

fn listen(file: &Path, notice: Arc<Notify>) -> Option<RecommendedWatcher> {
    let heard = move |event: notify::Result<notify::Event>| {
        // Reading is no change, and we do it ourselves.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            notice.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(heard).ok()?;
    let folder = file.parent().filter(|folder| folder.is_dir())?;
    watcher.watch(folder, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}
