//! The WebAssembly runtime all strategies of a process share: one compiler, one pool of instances,
//! one clock that interrupts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::bindings;
use super::cache::Cache;
use super::compile::{Compilations, Compiler};
use super::host_impl::Cell;
use super::limits::{MAX_TABLE_ELEMENTS, TICK};
use super::simulated::Simulated;
use super::state_store::{StateStore, StateStoreError, WeakStore};

/// Instances that may be made on demand at the same time; further decisions wait. A decision takes
/// well under a millisecond, so this bounds memory, not throughput.
const ON_DEMAND: usize = 64;
/// Instances that may be kept ready, all strategies together.
const READY: usize = 128;

/// Leave for one instance to exist; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Leave {
    _permit: OwnedSemaphorePermit,
    /// Whether the instance may wait in a pool for its decision.
    pub(super) to_wait: bool,
}

/// How a runtime is made.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RuntimeOptions {
    /// The folder compiled components are kept in, so that a large one starts at once the next time.
    /// An absolute path; the folder is made where it is missing. What lies in it runs only if this
    /// user's own program wrote it for the same component and the same compiler, and it has not
    /// changed since; anything else is compiled again. Default: none, nothing is kept.
    pub cache: Option<PathBuf>,
    /// Time and chance of a simulation: see [`simulated`](Self::simulated). Default: none, they are real.
    pub simulation: Option<Simulation>,
}

/// What the strategies of a simulation take for time and chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Simulation {
    /// What every source of chance begins with.
    pub seed: u64,
    /// The wall clock at the start.
    pub began: SystemTime,
}

impl RuntimeOptions {
    /// For a simulation on Tokio's paused clock: the clocks of strategies are the simulation's, their
    /// chance repeats, and a decision keeps its thread until it is made, so that it takes no simulated
    /// time and nothing else happens meanwhile. Its code runs in real time all the same, and one that
    /// runs on and on is stopped after the real time its limit allows.
    pub fn simulated(mut self, seed: u64, began: SystemTime) -> Self {
        self.simulation = Some(Simulation { seed, began });
        self
    }

    /// Keeps compiled components in this folder.
    pub fn with_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }
}

/// The WebAssembly runtime. One for each process; cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Shared>);

struct Shared {
    engine: Engine,
    compiler: Compiler,
    linker: Linker<Cell>,
    on_demand: Arc<Semaphore>,
    ready: Arc<Semaphore>,
    pooled: bool,
    started: Instant,
    simulated: Option<Simulated>,
    stores: Mutex<HashMap<PathBuf, WeakStore>>,
    // Dropped with the last runtime, which ends the ticker's thread.
    _ticker: Sender<()>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("pooled", &self.0.pooled)
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// Makes the runtime and starts the thread that interrupts strategies.
    ///
    /// # Errors
    /// [`RuntimeError::Cache`] if the cache folder cannot be used, or others may write to it;
    /// [`RuntimeError::Engine`] if this machine cannot run WebAssembly; [`RuntimeError::Thread`] if
    /// no thread can be started.
    pub fn new(options: RuntimeOptions) -> Result<Self, RuntimeError> {
        // The pool reserves terabytes of addresses, which containers and older machines may not
        // grant; on demand, everything works the same but a little slower.
        let (engine, pooled) = match Engine::new(&config(true)) {
            Ok(engine) => (engine, true),
            Err(error) => {
                tracing::debug!(error = %format_args!("{error:#}"), "no instance pool, instances are made on demand");
                let engine = Engine::new(&config(false)).map_err(RuntimeError::engine)?;
                (engine, false)
            }
        };
        let cache = match options.cache {
            None => None,
            Some(folder) => match Cache::open(&folder, &engine) {
                Ok(cache) => Some(cache),
                Err(source) => return Err(RuntimeError::Cache { folder, source }),
            },
        };
        let linker = linker(&engine).map_err(RuntimeError::engine)?;
        let ticker = ticker(&engine)?;
        Ok(Self(Arc::new(Shared {
            compiler: Compiler::new(engine.clone(), cache),
            engine,
            linker,
            on_demand: Arc::new(Semaphore::new(ON_DEMAND)),
            ready: Arc::new(Semaphore::new(READY)),
            pooled,
            started: Instant::now(),
            simulated: options.simulation.map(Simulated::new),
            stores: Mutex::default(),
            _ticker: ticker,
        })))
    }

    /// Whether instances come from a pool.
    pub fn is_pooled(&self) -> bool {
        self.0.pooled
    }

    /// The store of a folder, for the state of strategies: opened once, however often it is asked
    /// for. Blocks, as [`StateStore::open`] does.
    ///
    /// # Errors
    /// As [`StateStore::open`].
    pub fn state_store(&self, folder: &Path) -> Result<StateStore, StateStoreError> {
        // One folder, however it is written. Where there is none, opening it will say so.
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let mut stores = self.0.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores.get(&folder).and_then(StateStore::upgrade) {
            return Ok(store);
        }
        stores.retain(|_, store| store.strong_count() > 0);
        let store = StateStore::open(&folder)?;
        stores.insert(folder, store.downgrade());
        Ok(store)
    }

    /// How components became machine code so far.
    pub fn compilations(&self) -> Compilations {
        self.0.compiler.compilations()
    }

    pub(super) fn compiler(&self) -> &Compiler {
        &self.0.compiler
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(super) fn linker(&self) -> &Linker<Cell> {
        &self.0.linker
    }

    /// The moment the strategies' monotonic clock counts from.
    pub(super) fn started(&self) -> Instant {
        self.0.started
    }

    /// Time and chance, where they are a simulation's.
    pub(super) fn simulated(&self) -> Option<&Simulated> {
        self.0.simulated.as_ref()
    }

    /// Waits for leave to make an instance. `None` never comes: the semaphore is never closed.
    pub(super) async fn leave(&self) -> Option<Leave> {
        let permit = self.0.on_demand.clone().acquire_owned().await.ok()?;
        Some(Leave {
            _permit: permit,
            to_wait: false,
        })
    }

    /// Leave to make an instance that waits in a pool, if there is any left.
    pub(super) fn leave_to_wait(&self) -> Option<Leave> {
        let permit = self.0.ready.clone().try_acquire_owned().ok()?;
        Some(Leave {
            _permit: permit,
            to_wait: true,
        })
    }
}

fn config(pooled: bool) -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true).parallel_compilation(true);
    if pooled {
        let count = u32::try_from(ON_DEMAND + READY).unwrap_or(u32::MAX);
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(count * 4)
            .total_core_instances(count * 32)
            .total_memories(count * 4)
            .total_tables(count * 16)
            .total_stacks(count * 2)
            .max_tables_per_module(8)
            .max_memories_per_module(4)
            .table_elements(MAX_TABLE_ELEMENTS)
            // Small memories are cleared by hand, which is cheaper than giving pages back.
            .linear_memory_keep_resident(256 << 10)
            .table_keep_resident(16 << 10)
            .async_stack_keep_resident(16 << 10);
        // By default a stack keeps what was once used of it: half a megabyte after a recursion, and a
        // recursion on each stack of the pool would keep them all.
        config.async_stack_zeroing(true);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    } else {
        // By default each memory reserves 4 GiB of addresses, which are scarce here. A memory that
        // grows beyond this is moved.
        config.memory_reservation(32 << 20);
    }
    config
}

/// Everything a strategy may import: the contract, and of WASI what a language's own runtime cannot
/// start without, over an empty context. No sockets, and a file system without a single file.
fn linker(engine: &Engine) -> wasmtime::Result<Linker<Cell>> {
    use wasmtime_wasi::WasiView;
    use wasmtime_wasi::cli::{WasiCli, WasiCliView};
    use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
    use wasmtime_wasi::p2::bindings::{cli, filesystem, random};
    use wasmtime_wasi::random::WasiRandom;

    let mut linker = Linker::<Cell>::new(engine);
    let l = &mut linker;
    bindings::Strategy::add_to_linker::<_, HasSelf<Cell>>(l, |cell| cell)?;
    // wasi:io, wasi:clocks, wasi:random/random, and the three standard streams.
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_async(l)?;
    random::insecure::add_to_linker::<Cell, WasiRandom>(l, |cell| cell.ctx().ctx.random())?;
    random::insecure_seed::add_to_linker::<Cell, WasiRandom>(l, |cell| cell.ctx().ctx.random())?;
    cli::environment::add_to_linker::<Cell, WasiCli>(l, Cell::cli)?;
    cli::exit::add_to_linker::<Cell, WasiCli>(l, Cell::cli)?;
    cli::terminal_input::add_to_linker::<Cell, WasiCli>(l, Cell::cli)?;
    cli::terminal_output::add_to_linker::<Cell, WasiCli>(l, Cell::cli)?;
    cli::terminal_stdin::add_to_linker::<Cell, WasiCli>(l, Cell::cli)?;
    cli::terminal_stdout::add_to_linker::<Cell, WasiCli>(l, Cell::cli)?;
    cli::terminal_stderr::add_to_linker::<Cell, WasiCli>(l, Cell::cli)?;
    filesystem::preopens::add_to_linker::<Cell, WasiFilesystem>(l, Cell::filesystem)?;
    filesystem::types::add_to_linker::<Cell, WasiFilesystem>(l, Cell::filesystem)?;
    Ok(linker)
}

/// Starts the clock. A thread of its own, because a task of the async runtime could be starved by
/// the very strategy it must stop.
fn ticker(engine: &Engine) -> Result<Sender<()>, RuntimeError> {
    let (sender, receiver) = channel::<()>();
    let engine = engine.weak();
    std::thread::Builder::new()
        .name("backstop-ticker".into())
        .spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = receiver.recv_timeout(TICK) {
                let Some(engine) = engine.upgrade() else {
                    break;
                };
                engine.increment_epoch();
            }
        })
        .map_err(RuntimeError::Thread)?;
    Ok(sender)
}

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The cache folder cannot be used.
    #[error("the compile cache {} cannot be used: name a folder that is yours alone by its absolute path, or none", folder.display())]
    Cache {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// WebAssembly cannot run here.
    #[error("this machine cannot run WebAssembly")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No thread can be started.
    #[error("the thread that interrupts strategies cannot be started")]
    Thread(#[source] std::io::Error),
}

impl RuntimeError {
    fn engine(error: wasmtime::Error) -> Self {
        Self::Engine(error.into_boxed_dyn_error())
    }
}
