//! Discovery: targets that come and go while the host runs.
//!
//! The targets of a host are those its configuration names and those its sources find: names in DNS,
//! asked again when an answer gets old, and watched files. A [`Sink`] is given all of them together,
//! whenever they change.
//!
//! A source never takes targets away because it cannot see: a name server that is silent or knows
//! nothing, and a file that is gone, half written or wrong, are reported
//! ([`ConfigRejected`](EventKind::ConfigRejected)), and what the source said before stays. Whether the
//! targets are well is what health checks find out. Only what a source says clearly counts: other
//! records, a record that says there is no service (RFC 2782: a target of `.`), a file without the
//! entry.

mod dns;
mod file;
mod resolver;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{self, Model, Service, Source};
use crate::engine::Engine;
use crate::event::EventKind;
use crate::random::Random;

/// Services and models.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Targets {
    /// The services.
    pub services: Vec<Service>,
    /// The models.
    pub models: Vec<Model>,
}

impl Targets {
    fn names(&self) -> impl Iterator<Item = &str> {
        let services = self.services.iter().map(|service| service.name.as_str());
        services.chain(self.models.iter().map(|model| model.name.as_str()))
    }
}

/// What is told of the targets.
pub trait Sink: Send + Sync + 'static {
    /// Makes the targets exactly these. One that is gone must be drained, not cut off.
    ///
    /// # Errors
    /// One sentence that says why they cannot be used; then the old ones stay, and the version of the
    /// source that changed them is refused with it.
    fn apply(&self, targets: &Targets) -> Result<(), String>;
}

impl<F: Fn(&Targets) -> Result<(), String> + Send + Sync + 'static> Sink for F {
    fn apply(&self, targets: &Targets) -> Result<(), String> {
        self(targets)
    }
}

/// Follows sources for as long as it lives.
#[derive(Debug)]
#[must_use = "dropping it ends the search"]
pub struct Discovery {
    book: Arc<Book>,
    heard: watch::Receiver<usize>,
    searches: JoinSet<()>,
}

impl Discovery {
    /// Starts following the sources, on the current Tokio runtime. `fixed` is what there is besides.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub fn spawn(
        engine: Engine,
        fixed: Targets,
        sources: &[config::Discovery],
        sink: Arc<dyn Sink>,
        random: Random,
    ) -> Self {
        let mut found = vec![("the configuration".to_owned(), fixed)];
        found.extend(
            sources
                .iter()
                .map(|source| (describe(source), Targets::default())),
        );
        let book = Arc::new(Book {
            engine,
            sink,
            found: Mutex::new(found),
            heard: watch::Sender::new(0),
        });
        let mut searches = JoinSet::new();
        for (index, source) in sources.iter().enumerate() {
            let page = Page {
                book: book.clone(),
                index: index + 1,
                name: describe(source),
                heard: false,
            };
            match &source.source {
                Source::Dns(dns) => {
                    let search =
                        dns::follow(source.name.clone(), dns.clone(), page, random.clone());
                    searches.spawn(search);
                }
                Source::File { file } => {
                    searches.spawn(file::follow(file.clone(), page));
                }
            }
        }
        Self {
            heard: book.heard.subscribe(),
            book,
            searches,
        }
    }

    /// Waits until every source has been asked once, with or without success.
    pub async fn settled(&self) {
        let sources = self.searches.len();
        // The sender lives in the book.
        let _ = self.heard.clone().wait_for(|heard| *heard >= sources).await;
    }

    /// The targets there are now.
    pub fn targets(&self) -> Targets {
        self.book.all(&self.book.found())
    }
}

/// How a source is called in events and in the log.
fn describe(source: &config::Discovery) -> String {
    match &source.source {
        Source::Dns(dns) => format!("discovery {:?}: dns {}", source.name, dns.dns),
        Source::File { file } => format!("discovery {:?}: {}", source.name, file.display()),
    }
}

type Found = Vec<(String, Targets)>;

/// What every source found last.
struct Book {
    engine: Engine,
    sink: Arc<dyn Sink>,
    found: Mutex<Found>,
    /// How many sources have been asked.
    heard: watch::Sender<usize>,
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Book")
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

impl Book {
    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self, found: &Found) -> Targets {
        let mut all = Targets::default();
        for (_, targets) in found {
            all.services.extend(targets.services.iter().cloned());
            all.models.extend(targets.models.iter().cloned());
        }
        all
    }
}

/// Where one source writes what it finds.
struct Page {
    book: Arc<Book>,
    index: usize,
    name: String,
    heard: bool,
}

impl Page {
    /// What the source finds now. Where it cannot be used the old stays.
    fn write(&mut self, targets: Targets) {
        match self.try_write(targets) {
            Ok(true) => {
                tracing::info!(source = self.name, "targets changed");
                self.book.engine.announce(EventKind::ConfigApplied {
                    source: self.name.clone(),
                });
            }
            Ok(false) => {}
            Err(reason) => return self.refuse(&reason),
        }
        self.done();
    }

    /// Says whether anything changed.
    fn try_write(&self, targets: Targets) -> Result<bool, String> {
        // Held while the sink is told, so that it is told in order.
        let mut found = self.book.found();
        if found
            .get(self.index)
            .is_some_and(|(_, old)| *old == targets)
        {
            return Ok(false);
        }
        let others = found
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != self.index);
        for (_, (other, theirs)) in others {
            let theirs: HashSet<&str> = theirs.names().collect();
            if let Some(twice) = targets.names().find(|name| theirs.contains(name)) {
                return Err(format!("{other} has a target named {twice:?} already"));
            }
        }
        let mut next = found.clone();
        if let Some((_, old)) = next.get_mut(self.index) {
            *old = targets;
        }
        self.book.sink.apply(&self.book.all(&next))?;
        *found = next;
        Ok(true)
    }

    /// The source cannot be asked, or says what cannot be used: the old stays.
    fn refuse(&mut self, reason: &str) {
        tracing::warn!(source = self.name, reason, "what it said before stays");
        self.book.engine.announce(EventKind::ConfigRejected {
            source: self.name.clone(),
            reason: reason.to_owned(),
        });
        self.done();
    }

    fn done(&mut self) {
        if !std::mem::replace(&mut self.heard, true) {
            self.book.heard.send_modify(|heard| *heard += 1);
        }
    }
}
