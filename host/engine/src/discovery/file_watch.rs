//! Following the text of a file.
//!
//! The operating system says that something happened in the file's folder, so that an editor's rename
//! and the swap of a link to a folder (as Kubernetes mounts a ConfigMap) are heard; whether the file is
//! another one is found by reading it. It is also read from time to time, since no such notice is
//! complete: the folder may be replaced as a whole, the file be a link to another folder, or lie on a
//! file system that tells nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// How long nothing must happen before the file is read.
const SETTLE: Duration = Duration::from_millis(100);
/// The longest wait for that.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the file is read where nothing is heard.
const LOOK: Duration = Duration::from_secs(5);
/// The same where nothing can be heard.
const POLL: Duration = Duration::from_millis(500);

/// The text of a file, or one sentence that says why it cannot be read.
pub type FileText = Result<String, String>;

/// Follows the text of a file.
#[derive(Debug)]
pub struct FileWatch {
    file: PathBuf,
    notice: Arc<Notify>,
    ears: Option<RecommendedWatcher>,
    last: Option<FileText>,
    /// Something happened that has not been looked at.
    is_due: bool,
}

impl FileWatch {
    /// A watch whose first version is what the file holds when it is first asked for.
    pub fn new(file: PathBuf) -> Self {
        Self {
            file,
            notice: Arc::default(),
            ears: None,
            last: None,
            is_due: true,
        }
    }

    /// A watch for versions other than this one.
    pub fn after(file: PathBuf, text: String) -> Self {
        Self {
            last: Some(Ok(text)),
            ..Self::new(file)
        }
    }

    /// Waits for a version that differs from the last one. A file is read when nothing has happened to
    /// it for a tenth of a second, and after a second in any case. Nothing is lost where the future is
    /// dropped.
    pub async fn next(&mut self) -> FileText {
        loop {
            // Before the file is read, so that nothing is missed in between.
            if self.ears.is_none() {
                self.ears = listen(&self.file, self.notice.clone());
            }
            if !self.is_due {
                let look = if self.ears.is_some() { LOOK } else { POLL };
                if timeout(look, self.notice.notified()).await.is_ok() {
                    self.is_due = true;
                }
            }
            if self.is_due && self.last.is_some() {
                settle(&self.notice).await;
            }
            // A folder that is not there cannot be watched, and one that is gone is not the one that is watched.
            if !self.file.parent().is_some_and(Path::is_dir) {
                self.ears = None;
            }
            let text = read(self.file.clone()).await;
            self.is_due = false;
            if self.last.as_ref() != Some(&text) {
                self.last = Some(text.clone());
                return text;
            }
        }
    }

    /// What the file holds at this moment, whether or not it differs.
    pub async fn now(&mut self) -> FileText {
        let text = read(self.file.clone()).await;
        self.last = Some(text.clone());
        text
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

async fn read(file: PathBuf) -> FileText {
    let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(file)).await;
    match read {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(format!("it cannot be read: {error}")),
        Err(error) => Err(format!("it cannot be read: {error}")),
    }
}

fn listen(file: &Path, notice: Arc<Notify>) -> Option<RecommendedWatcher> {
    let heard = move |event: notify::Result<notify::Event>| {
        // Reading is no change, and we do it ourselves.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            notice.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(heard).ok()?;
    let folder = file.parent().map(|folder| match folder {
        here if here.as_os_str().is_empty() => Path::new("."),
        folder => folder,
    });
    let folder = folder.filter(|folder| folder.is_dir())?;
    watcher.watch(folder, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}
