//! Threads that serve connections, each for itself.
//!
//! On a runtime whose threads share their tasks, a call wanders: from the task of its connection to that
//! of the request, to that of the connection behind, and back, and each of these steps may wake another
//! thread, which costs more than everything else that is done for a call. Here a connection stays on one
//! thread with all that is done for it, the connection behind included, and no thread waits for another.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Shorter than what calls set timers for. A timer that ends before all others makes the runtime interrupt
/// itself, with a system call; where one that is nearer still is always set, calls are spared that.
const BEAT: Duration = Duration::from_millis(500);

thread_local! {
    /// Which worker this thread is, counted from 1.
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// Threads with a runtime each. They end, with what still runs on them, when this is dropped.
#[derive(Debug)]
pub struct Workers {
    all: Vec<Worker>,
    /// Child processes that have been given to one of them.
    processes: AtomicUsize,
    _end: DropGuard,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    load: Arc<Load>,
}

/// The connections a worker serves.
#[derive(Debug, Default)]
struct Load {
    connections: AtomicUsize,
    /// Told of a connection where there was none.
    begun: Notify,
}

impl Workers {
    /// Starts as many threads as this. One for each core is the most that is of use.
    ///
    /// # Errors
    /// If the system has no room for a thread or for what it waits with.
    pub fn start(threads: NonZeroUsize) -> std::io::Result<Self> {
        let ending = CancellationToken::new();
        let end = ending.clone().drop_guard();
        let mut all = Vec::new();
        for number in 1..=threads.get() {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (handle, ending) = (runtime.handle().clone(), ending.clone());
            let load = Arc::<Load>::default();
            let beating = load.clone();
            std::thread::Builder::new()
                .name(format!("worker {number}"))
                .spawn(move || {
                    NUMBER.set(number);
                    runtime.block_on(ending.run_until_cancelled(beat(&beating)));
                })?;
            all.push(Worker {
                runtime: handle,
                load,
            });
        }
        Ok(Self {
            all,
            processes: AtomicUsize::new(0),
            _end: end,
        })
    }

    /// Runs a connection on the thread that has the fewest of them.
    pub(crate) fn run(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let least = |worker: &&Worker| worker.load.connections.load(Ordering::Relaxed);
        let Some(worker) = self.all.iter().min_by_key(least) else {
            return;
        };
        let place = Place::take(&worker.load);
        worker.runtime.spawn(async move {
            let _place = place;
            connection.await;
        });
    }

    /// The runtime on which a child process is to be attended to: this thread's where it is a worker, so
    /// that whoever asks first need not wait for another thread.
    pub(crate) fn for_process(&self) -> Option<Handle> {
        if number() > 0 {
            return Handle::try_current().ok();
        }
        let next = self.processes.fetch_add(1, Ordering::Relaxed);
        let worker = self.all.get(next.checked_rem(self.all.len())?)?;
        Some(worker.runtime.clone())
    }
}

async fn beat(load: &Load) {
    loop {
        if load.connections.load(Ordering::Relaxed) == 0 {
            load.begun.notified().await;
        }
        tokio::time::sleep(BEAT).await;
    }
}

/// A connection that is counted for as long as it is there.
struct Place(Arc<Load>);

impl Place {
    fn take(load: &Arc<Load>) -> Self {
        if load.connections.fetch_add(1, Ordering::Relaxed) == 0 {
            load.begun.notify_one();
        }
        Self(load.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which worker this thread is, counted from 1; 0 where it is none.
pub(crate) fn number() -> usize {
    NUMBER.get()
}
