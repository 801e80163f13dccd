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
mod file_watch;
mod resolver;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::config::{self, Model, Service, Source};
use crate::engine::Engine;
use crate::event::EventKind;
use crate::random::Random;

pub use file_watch::{FileText, FileWatch};

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
#[must_use = "dropping it ends the search"]
pub struct Discovery {
    book: Arc<Book>,
    searches: Mutex<Searches>,
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discovery")
            .field("found", &self.book.pages().found)
            .finish_non_exhaustive()
    }
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
        let discovery = Self {
            book: Arc::new(Book {
                engine,
                pages: Mutex::new(Pages::new(fixed, sink)),
                heard: watch::Sender::new(()),
            }),
            searches: Mutex::new(Searches {
                random,
                tasks: JoinSet::new(),
                handles: HashMap::new(),
            }),
        };
        let mut pages = discovery.book.pages();
        pages.set_sources(sources);
        discovery.follow(&pages);
        drop(pages);
        discovery
    }

    /// Puts other sources, another sink and other targets besides in the place of those there are. A
    /// source that stays keeps what it has found; of one that is gone nothing stays.
    ///
    /// # Errors
    /// One sentence that says why: the sink's, or that two targets have one name. Then nothing changes.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub fn replace(
        &self,
        fixed: Targets,
        sources: &[config::Discovery],
        sink: Arc<dyn Sink>,
    ) -> Result<(), String> {
        let mut pages = self.book.pages();
        let mut next = Pages {
            fixed,
            sink,
            found: pages.found.clone(),
            last_id: pages.last_id,
        };
        next.set_sources(sources);
        next.check_names(None)?;
        next.sink.apply(&next.all())?;
        *pages = next;
        self.follow(&pages);
        self.book.heard.send_replace(());
        Ok(())
    }

    /// Starts the searches that are missing and ends those that are not wanted any more.
    fn follow(&self, pages: &Pages) {
        let mut searches = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
        let Searches {
            random,
            tasks,
            handles,
        } = &mut *searches;
        handles.retain(|id, search| {
            let is_wanted = pages.found.iter().any(|source| source.id == *id);
            if !is_wanted {
                search.abort();
            }
            is_wanted
        });
        while tasks.try_join_next().is_some() {}
        for source in &pages.found {
            handles.entry(source.id).or_insert_with(|| {
                let page = Page {
                    book: self.book.clone(),
                    id: source.id,
                    name: source.name.clone(),
                };
                match &source.source.source {
                    Source::Dns(dns) => {
                        let name = source.source.name.clone();
                        tasks.spawn(dns::follow(name, dns.clone(), page, random.clone()))
                    }
                    Source::File { file } => tasks.spawn(file::follow(file.clone(), page)),
                }
            });
        }
    }

    /// Waits until every source has been asked once, with or without success.
    pub async fn settled(&self) {
        let are_heard = |(): &()| self.book.pages().found.iter().all(|source| source.heard);
        // The sender lives in the book.
        let _ = self.book.heard.subscribe().wait_for(are_heard).await;
    }

    /// The targets there are now.
    pub fn targets(&self) -> Targets {
        self.book.pages().all()
    }
}

/// The tasks that ask the sources.
struct Searches {
    random: Random,
    tasks: JoinSet<()>,
    /// By the source's id.
    handles: HashMap<u64, AbortHandle>,
}

/// How a source is called in events and in the log.
fn describe(source: &config::Discovery) -> String {
    match &source.source {
        Source::Dns(dns) => format!("discovery {:?}: dns {}", source.name, dns.dns),
        Source::File { file } => format!("discovery {:?}: {}", source.name, file.display()),
    }
}

/// One source and what it found last.
#[derive(Debug, Clone)]
struct Found {
    /// What its search knows it by.
    id: u64,
    source: config::Discovery,
    name: String,
    targets: Targets,
    /// It has been asked.
    heard: bool,
}

/// What there is, by where it comes from.
struct Pages {
    /// What there is besides the sources.
    fixed: Targets,
    sink: Arc<dyn Sink>,
    found: Vec<Found>,
    last_id: u64,
}

impl Pages {
    fn new(fixed: Targets, sink: Arc<dyn Sink>) -> Self {
        Self {
            fixed,
            sink,
            found: Vec::new(),
            last_id: 0,
        }
    }

    /// Makes the sources these; one that is among them already keeps what it found.
    fn set_sources(&mut self, sources: &[config::Discovery]) {
        let mut old = std::mem::take(&mut self.found);
        for source in sources {
            let there = old.iter().position(|found| found.source == *source);
            let found = match there {
                Some(there) => old.swap_remove(there),
                None => {
                    self.last_id += 1;
                    Found {
                        id: self.last_id,
                        source: source.clone(),
                        name: describe(source),
                        targets: Targets::default(),
                        heard: false,
                    }
                }
            };
            self.found.push(found);
        }
    }

    fn all(&self) -> Targets {
        let mut all = self.fixed.clone();
        for found in &self.found {
            all.services.extend(found.targets.services.iter().cloned());
            all.models.extend(found.targets.models.iter().cloned());
        }
        all
    }

    /// Whether every name is there once. `newest` is what has just changed: a source, or else the
    /// configuration; the other is told to have the name.
    fn check_names(&self, newest: Option<u64>) -> Result<(), String> {
        let mut pages = vec![(None, "the configuration", &self.fixed)];
        let found = self.found.iter();
        pages.extend(found.map(|found| (Some(found.id), found.name.as_str(), &found.targets)));
        pages.sort_by_key(|(id, ..)| *id == newest);
        let mut owners = HashMap::new();
        for (_, page, targets) in pages {
            for name in targets.names() {
                if let Some(first) = owners.insert(name, page) {
                    return Err(format!("{first} has a target named {name:?} already"));
                }
            }
        }
        Ok(())
    }
}

/// What every source found last.
struct Book {
    engine: Engine,
    /// Held while the sink is told, so that it is told in order.
    pages: Mutex<Pages>,
    /// A source was asked for the first time.
    heard: watch::Sender<()>,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where one source writes what it finds.
struct Page {
    book: Arc<Book>,
    id: u64,
    name: String,
}

impl Page {
    /// What the source finds now. Where it cannot be used the old stays.
    fn write(&mut self, targets: Targets) {
        match self.try_write(targets) {
            Ok(true) => {
                tracing::info!(source = self.name, "targets changed");
                self.book.engine.announce(EventKind::ConfigApplied {
                    source: self.name.clone(),
                    version: None,
                });
            }
            Ok(false) => {}
            Err(reason) => return self.refuse(&reason),
        }
        self.done();
    }

    /// Says whether anything changed.
    fn try_write(&self, targets: Targets) -> Result<bool, String> {
        let mut pages = self.book.pages();
        // One that is not wanted any more is not heard.
        let Some(found) = pages.found.iter_mut().find(|found| found.id == self.id) else {
            return Ok(false);
        };
        if found.targets == targets {
            return Ok(false);
        }
        let before = std::mem::replace(&mut found.targets, targets);
        let taken = pages
            .check_names(Some(self.id))
            .and_then(|()| pages.sink.apply(&pages.all()));
        if taken.is_err()
            && let Some(found) = pages.found.iter_mut().find(|found| found.id == self.id)
        {
            found.targets = before;
        }
        taken.map(|()| true)
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
        let mut pages = self.book.pages();
        let found = pages.found.iter_mut().find(|found| found.id == self.id);
        if let Some(found) = found.filter(|found| !found.heard) {
            found.heard = true;
            drop(pages);
            self.book.heard.send_replace(());
        }
    }
}
