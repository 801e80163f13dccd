//! From a component's bytes to machine code: once for each content, off the async threads, and from
//! the cache where that has it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::Serialize;
use tokio::sync::Semaphore;
use wasmtime::Engine;
use wasmtime::component::Component;

use super::cache::{Cache, Miss};
use super::digest::Digest;

/// What compiles for a runtime.
pub(super) struct Compiler {
    engine: Engine,
    cache: Option<Cache>,
    known: Mutex<HashMap<Digest, Arc<Place>>>,
    /// One for each core: the compiler uses several threads by itself.
    pub(super) at_once: Semaphore,
    compiled: AtomicU64,
    from_cache: AtomicU64,
    shared: AtomicU64,
    refused: AtomicU64,
}

/// Machine code in use. It is shared by all strategies made of one content, and goes with the last.
pub(super) struct Code(pub(super) Component);

/// Where code of one content is, locked while it is made.
type Place = Mutex<Weak<Code>>;

/// How components became machine code so far, for a status page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Compilations {
    /// Compiled.
    pub compiled: u64,
    /// Taken from the cache.
    pub from_cache: u64,
    /// In use already by another strategy of the same content.
    pub shared: u64,
    /// Entries of the cache that were not ours, or damaged; each was compiled instead.
    pub refused: u64,
    /// Different components that are in use now.
    pub in_use: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Compiler {
    pub(super) fn new(engine: Engine, cache: Option<Cache>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            engine,
            cache,
            known: Mutex::default(),
            at_once: Semaphore::new(cores),
            compiled: AtomicU64::new(0),
            from_cache: AtomicU64::new(0),
            shared: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub(super) fn compilations(&self) -> Compilations {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Compilations {
            compiled: count(&self.compiled),
            from_cache: count(&self.from_cache),
            shared: count(&self.shared),
            refused: count(&self.refused),
            in_use: self.in_use(),
        }
    }

    /// The code of a component. Blocks, for seconds where it must be compiled.
    pub(super) fn code(&self, fingerprint: &Digest, bytes: &[u8]) -> wasmtime::Result<Arc<Code>> {
        let place = self.place(fingerprint);
        let mut code = lock(&place);
        if let Some(code) = code.upgrade() {
            self.shared.fetch_add(1, Ordering::Relaxed);
            return Ok(code);
        }
        let made = Arc::new(Code(self.make(fingerprint, bytes)?));
        *code = Arc::downgrade(&made);
        Ok(made)
    }

    /// Waits for a component that is being compiled.
    fn in_use(&self) -> usize {
        let places: Vec<_> = lock(&self.known).values().cloned().collect();
        let is_used = |place: &&Arc<Place>| lock(place).strong_count() > 0;
        places.iter().filter(is_used).count()
    }

    fn place(&self, fingerprint: &Digest) -> Arc<Place> {
        let mut known = lock(&self.known);
        // Somebody else who holds a place is about to fill it.
        known.retain(|_, place| Arc::strong_count(place) > 1 || lock(place).strong_count() > 0);
        known.entry(*fingerprint).or_default().clone()
    }

    fn make(&self, fingerprint: &Digest, bytes: &[u8]) -> wasmtime::Result<Component> {
        if let Some(cache) = &self.cache {
            match cache.load(&self.engine, fingerprint) {
                Ok(component) => {
                    self.from_cache.fetch_add(1, Ordering::Relaxed);
                    return Ok(component);
                }
                Err(Miss::Absent) => {}
                Err(Miss::Foreign) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        let component = Component::from_binary(&self.engine, bytes)?;
        self.compiled.fetch_add(1, Ordering::Relaxed);
        if let Some(cache) = &self.cache {
            cache.store(fingerprint, &component);
        }
        Ok(component)
    }
}
