//! Watching the plugin folder: what is put there takes part within a second.
//!
//! The folder is looked at four times a second, which costs some 50 microseconds for ten plugins. The
//! operating system's notices of changes (inotify and its like) would not save the looks: a folder may
//! be replaced as a whole, be reached through a link that changes, or lie on a file system that gives
//! no notice, and a user has only so many of them. So there is one way, and it works everywhere.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::look::Look;
use super::set::{Changes, StrategySet};
use crate::config::Config;
use crate::event::EventKind;

/// How a folder is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WatchOptions {
    /// The time from one look to the next. Where a look takes long, the pause is at least nine times as
    /// long. Default: 250 ms.
    pub look: Duration,
    /// How long a file must be as it is before it is read. Default: 100 ms.
    pub settle: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            look: Duration::from_millis(250),
            settle: Duration::from_millis(100),
        }
    }
}

/// The longest time other changes wait for a file that does not settle.
const PATIENCE: Duration = Duration::from_millis(300);
/// What takes time to load is not tried again at every look.
const AGAIN: Duration = Duration::from_secs(5);

/// Watches until it is dropped.
#[derive(Debug)]
#[must_use = "the watch ends when it is dropped"]
pub struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StrategySet {
    /// Watches the plugin folder and its lock file: a plugin that is added, replaced, renamed or removed
    /// takes effect within a second. A file is read when it has come to rest; one that cannot be used
    /// keeps the old one running, and says why in an event
    /// ([`StrategyRejected`](EventKind::StrategyRejected)) and in the log. Needs an async runtime with
    /// time.
    pub fn watch(&self, options: WatchOptions) -> Watch {
        Watch(tokio::spawn(run(self.clone(), options)))
    }
}

async fn run(set: StrategySet, options: WatchOptions) {
    let mut tried = Instant::now();
    // There is more to come of a file that was being written.
    let mut is_unfinished = false;
    loop {
        let (config, seen, is_waiting) = set.state().await;
        let began = Instant::now();
        let look = Look::take(&config, Some(&seen)).await;
        let mut pause = options.look.max(began.elapsed() * 9);
        let is_due = is_waiting && tried.elapsed() >= AGAIN;
        if look != seen || is_unfinished || is_due {
            let settled = settle(&config, look, options.settle).await;
            let plan = set.plan_settled(&settled).await;
            is_unfinished = plan.is_unfinished();
            if is_unfinished {
                pause = options.settle;
            }
            tell(&plan.commit());
            tried = Instant::now();
        }
        sleep(pause).await;
    }
}

/// Looks until two looks find the same, or patience ends. What differs between the look returned and
/// the next one has not come to rest.
async fn settle(config: &Config, mut look: Look, pause: Duration) -> Look {
    let until = Instant::now() + PATIENCE;
    loop {
        sleep(pause).await;
        let next = Look::take(config, Some(&look)).await;
        if next == look || Instant::now() >= until {
            return look;
        }
        look = next;
    }
}

fn tell(changes: &Changes) {
    for event in &changes.events {
        match event {
            EventKind::StrategyLoaded {
                strategy,
                version,
                source,
            } => {
                tracing::info!(target: "backstop::strategy", "strategy {strategy} {version} loaded from {source}");
            }
            EventKind::StrategyReloaded {
                strategy,
                version,
                source,
            } => {
                tracing::info!(target: "backstop::strategy", "strategy {strategy} {version} reloaded from {source}");
            }
            EventKind::StrategyRemoved { strategy, source } => {
                tracing::info!(target: "backstop::strategy", "strategy {strategy} of {source} removed");
            }
            _ => {}
        }
    }
    for diagnostic in &changes.diagnostics {
        tracing::warn!(target: "backstop::strategy", "{diagnostic}");
    }
}
