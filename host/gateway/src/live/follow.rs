//! Following the file of the configuration.

use backstop::discovery::FileWatch;
use tokio::task::JoinHandle;

use super::LiveConfig;

/// Follows the file until it is dropped.
#[derive(Debug)]
#[must_use = "the file is followed no more when it is dropped"]
pub struct Follow(JoinHandle<()>);

impl Drop for Follow {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl LiveConfig {
    /// Puts every new version of the file in force when it has come to rest, and reads the file at once
    /// when the program gets a SIGHUP. What is refused is told in an event and in the log.
    ///
    /// # Errors
    /// If the signal cannot be listened to.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub async fn follow(&self) -> std::io::Result<Follow> {
        let live = self.clone();
        let text = {
            let state = live.shared.state.lock().await;
            state.history.newest().text.to_string()
        };
        let mut watch = FileWatch::after(live.shared.file.clone(), text);
        let mut hang_up = hang_up()?;
        Ok(Follow(tokio::spawn(async move {
            loop {
                let found = tokio::select! {
                    found = watch.next() => found,
                    () = hang_up.heard() => watch.now().await,
                };
                // Whoever is concerned has been told.
                let _ = live.offer(found).await;
            }
        })))
    }
}

#[cfg(unix)]
struct HangUp(tokio::signal::unix::Signal);

#[cfg(unix)]
fn hang_up() -> std::io::Result<HangUp> {
    use tokio::signal::unix::{SignalKind, signal};
    Ok(HangUp(signal(SignalKind::hangup())?))
}

#[cfg(unix)]
impl HangUp {
    async fn heard(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

/// There is no such signal here.
#[cfg(not(unix))]
struct HangUp;

#[cfg(not(unix))]
fn hang_up() -> std::io::Result<HangUp> {
    Ok(HangUp)
}

#[cfg(not(unix))]
impl HangUp {
    async fn heard(&mut self) {
        std::future::pending().await
    }
}
