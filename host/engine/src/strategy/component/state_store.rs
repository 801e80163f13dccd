//! Where the state of strategies survives a restart: one embedded database in a folder.
//!
//! A strategy works in memory; a thread of its own writes what has changed, all strategies in one
//! transaction, a tenth of a second after the first change. So a strategy never waits for the disk,
//! however many changes it makes, and what a crash can lose is that tenth of a second.
//!
//! The database is never repaired by guessing: what it holds is what some transaction left, whole. A
//! file that something else has damaged is refused by name, and stays as it is.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database, DatabaseError, ReadableDatabase, TableDefinition};

use super::LoadError;
use super::state::{Entries, Found, Shelf, State, lock};

/// Strategy and key.
type Place = (&'static str, &'static str);
/// The end of the entry's time, in Unix milliseconds, and its value.
type Value = (Option<u64>, &'static [u8]);
const TABLE: TableDefinition<'_, Place, Value> = TableDefinition::new("state-1");
/// The database's file.
const FILE: &str = "state.redb";
/// Bytes of the file the database keeps in memory; the entries in use are there anyway.
const CACHE_BYTES: usize = 4 << 20;
/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(100);
/// How long it is waited after a write that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// How long it is waited for another owner of the file to end, as one does that is being replaced.
const LEAVING: Duration = Duration::from_secs(2);

/// An embedded database of strategies' state; cheap to clone. What has changed is written when the
/// last one is dropped, too.
#[derive(Clone)]
pub struct StateStore(Arc<Inner>);

/// A store, if it is still open.
pub(super) type WeakStore = Weak<Inner>;

pub(super) struct Inner {
    kept: Arc<Kept>,
    shelves: Mutex<HashMap<String, Weak<Mutex<Entries>>>>,
    /// `None` when it is being dropped, which ends the writer.
    sender: Option<Sender<Order>>,
    writer: Option<JoinHandle<()>>,
}

enum Order {
    /// These entries of this strategy have changed.
    Write(Arc<str>, Shelf),
    /// Say so when all that has changed is written; nothing is said where it cannot be.
    Flush(Sender<()>),
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateStoreError {
    /// Another program, or another part of this one, uses the file.
    #[error("the state in {} is in use by another program: end that one, or name another folder", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened.
    #[error("the state in {} cannot be opened: check the folder and its permissions, or move the file away to begin anew", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The file cannot be read.
    #[error("the state in {} cannot be read: move the file away to begin anew", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl fmt::Debug for StateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateStore")
            .field("path", &self.0.kept.path)
            .finish_non_exhaustive()
    }
}

/// The same store, not one that holds the same.
impl PartialEq for StateStore {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for StateStore {}

impl StateStore {
    /// Opens the database of this folder, and makes it where it is missing. Blocks, up to 2 s where
    /// another program has it open and may be about to end.
    ///
    /// # Errors
    /// [`StateStoreError::InUse`] if another program has the database open,
    /// [`StateStoreError::Open`] if the folder cannot be written to or the file is damaged or none.
    pub fn open(folder: &Path) -> Result<Self, StateStoreError> {
        let path = folder.join(FILE);
        let file = path.clone();
        Self::of(Kept::open(
            path,
            Box::new(move |builder| builder.create(&file)),
        )?)
    }

    fn of(kept: Kept) -> Result<Self, StateStoreError> {
        let (sender, receiver) = channel();
        let kept = Arc::new(kept);
        let writer = std::thread::Builder::new()
            .name("backstop-state".into())
            .spawn({
                let kept = kept.clone();
                move || write_changes(&kept, &receiver)
            })
            .map_err(|error| StateStoreError::Open {
                path: kept.path.clone(),
                source: error.into(),
            })?;
        Ok(Self(Arc::new(Inner {
            kept,
            shelves: Mutex::default(),
            sender: Some(sender),
            writer: Some(writer),
        })))
    }

    pub(super) fn downgrade(&self) -> WeakStore {
        Arc::downgrade(&self.0)
    }

    pub(super) fn upgrade(weak: &WeakStore) -> Option<Self> {
        weak.upgrade().map(Self)
    }

    /// Waits until everything that has changed so far is on the disk. Says whether it is: not where
    /// the disk refuses it. Blocks.
    pub fn flush(&self) -> bool {
        let (done, is_done) = channel();
        self.tell(Order::Flush(done));
        is_done.recv().is_ok()
    }

    /// Has these entries written down before long.
    pub(super) fn write_down(&self, strategy: Arc<str>, shelf: Shelf) {
        self.tell(Order::Write(strategy, shelf));
    }

    fn tell(&self, order: Order) {
        // There is a sender until the store is dropped, and a writer as long as there is a sender.
        if let Some(sender) = &self.0.sender {
            let _ = sender.send(order);
        }
    }

    /// The state of a strategy, as it was left.
    pub(super) async fn state(
        self,
        plugin: &str,
        name: String,
        quota: usize,
        value_limit: usize,
    ) -> Result<State, LoadError> {
        let work = move || {
            let shelf = self.shelf(&name)?;
            Ok(State::kept(quota, value_limit, shelf, self, name.into()))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(state) => state.map_err(|source| LoadError::State {
                plugin: plugin.into(),
                source,
            }),
            Err(_) => Err(LoadError::Aborted {
                plugin: plugin.into(),
            }),
        }
    }

    /// The entries of a strategy: those in use, or those that were written down.
    fn shelf(&self, name: &str) -> Result<Shelf, StateStoreError> {
        let mut shelves = self
            .0
            .shelves
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(shelf) = shelves.get(name).and_then(Weak::upgrade) {
            return Ok(shelf);
        }
        let written = self.0.kept.with(|database| read(database, name));
        let written = written.map_err(|error| StateStoreError::Read {
            path: self.0.kept.path.clone(),
            source: error,
        })?;
        let shelf = Arc::new(Mutex::new(Entries::restored(written)));
        shelves.retain(|_, shelf| shelf.strong_count() > 0);
        shelves.insert(name.to_owned(), Arc::downgrade(&shelf));
        Ok(shelf)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(writer) = self.writer.take() {
            // It writes what is left first.
            let _ = writer.join();
        }
    }
}

type Opener = Box<dyn Fn(&mut redb::Builder) -> Result<Database, DatabaseError> + Send + Sync>;
type Cause = Box<dyn Error + Send + Sync>;

/// The database, opened again after each error: one that met an error of the disk answers no more.
struct Kept {
    path: PathBuf,
    opener: Opener,
    database: Mutex<Option<Database>>,
}

impl Kept {
    fn open(path: PathBuf, opener: Opener) -> Result<Self, StateStoreError> {
        let until = Instant::now() + LEAVING;
        let opened = loop {
            match open(&opener) {
                Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < until => {
                    std::thread::sleep(GATHER);
                }
                opened => break opened,
            }
        };
        match opened {
            Ok(database) => Ok(Self {
                path,
                opener,
                database: Mutex::new(Some(database)),
            }),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(StateStoreError::InUse { path }),
            Err(error) => Err(StateStoreError::Open {
                path,
                source: error.into(),
            }),
        }
    }

    fn database(&self) -> MutexGuard<'_, Option<Database>> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, Cause> {
        let mut place = self.database();
        let database = match place.take() {
            Some(database) => database,
            None => open(&self.opener)?,
        };
        let result = work(&database)?;
        *place = Some(database);
        Ok(result)
    }
}

fn open(opener: &Opener) -> Result<Database, DatabaseError> {
    let mut builder = Database::builder();
    // Without this check a damaged file is found out in the middle of the work, by a panic.
    builder
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true);
    opener(&mut builder)
}

fn read(database: &Database, name: &str) -> Result<Vec<Found>, redb::Error> {
    let table = match database.begin_read()?.open_table(TABLE) {
        Ok(table) => table,
        // Nothing was ever written.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut list = Vec::new();
    for entry in table.range((name, "")..)? {
        let (place, entry) = entry?;
        let ((strategy, key), (until, value)) = (place.value(), entry.value());
        if strategy != name {
            break;
        }
        list.push((key.to_owned(), until, value.to_vec()));
    }
    Ok(list)
}

/// What the writer has yet to do.
#[derive(Default)]
struct Work {
    shelves: Vec<(Arc<str>, Shelf)>,
    flushes: Vec<Sender<()>>,
}

impl Work {
    fn take(&mut self, order: Order) {
        match order {
            Order::Write(strategy, shelf) => {
                // After a write that failed it is here already.
                if !self.shelves.iter().any(|(_, it)| Arc::ptr_eq(it, &shelf)) {
                    self.shelves.push((strategy, shelf));
                }
            }
            Order::Flush(done) => self.flushes.push(done),
        }
    }

    /// Collects what is to be done until then. Says whether more may come.
    fn gather(&mut self, receiver: &Receiver<Order>, until: Instant) -> bool {
        // Whoever waits for a flush does not wait for more changes.
        while self.flushes.is_empty() {
            match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(order) => self.take(order),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }
}

fn write_changes(kept: &Kept, receiver: &Receiver<Order>) {
    let mut work = Work::default();
    let mut is_open = true;
    while is_open {
        if work.shelves.is_empty() {
            match receiver.recv() {
                Ok(order) => work.take(order),
                Err(_) => return,
            }
        }
        is_open = work.gather(receiver, Instant::now() + GATHER);
        match write(kept, &work.shelves) {
            Ok(()) => {
                // Only now may the entries go: what is not written down must be found in memory.
                work.shelves.clear();
                for done in work.flushes.drain(..) {
                    let _ = done.send(());
                }
            }
            Err(error) => {
                tracing::warn!(target: "backstop::strategy", path = %kept.path.display(), %error, "the state of strategies cannot be written; it is kept in memory, and tried again");
                work.flushes.clear();
                is_open = is_open && work.gather(receiver, Instant::now() + AGAIN);
            }
        }
    }
}

fn write(kept: &Kept, shelves: &[(Arc<str>, Shelf)]) -> Result<(), Cause> {
    let mut taken = Vec::new();
    for (strategy, shelf) in shelves {
        let changes = lock(shelf).take_changes();
        if !changes.is_empty() {
            taken.push((strategy, shelf, changes));
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    let written = kept.with(|database| {
        let change = database.begin_write()?;
        {
            let mut table = change.open_table(TABLE)?;
            for (strategy, _, changes) in &taken {
                for (key, entry) in changes {
                    let place = (&***strategy, key.as_str());
                    match entry {
                        Some((until, value)) => table.insert(place, (*until, value.as_slice()))?,
                        None => table.remove(place)?,
                    };
                }
            }
        }
        change.commit()?;
        Ok(())
    });
    if written.is_err() {
        for (_, shelf, changes) in taken {
            lock(shelf).keep_changes(changes.into_iter().map(|(key, _)| key));
        }
    }
    written
}

#[cfg(test)]
#[path = "state_store/tests.rs"]
mod tests;
