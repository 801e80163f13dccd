//! What a strategy's imports do: the contract's interfaces over a [`Situation`].

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;
use wasmtime::ResourceLimiter;
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::Route;
use super::bindings::backstop::strategy::{
    call, clock, folder, history, last_known_good, log, random, retry_policy, routes, state, types,
};
use super::bindings::targets;
use super::capabilities::{Folder, FolderError};
use super::frozen::{LogLevel, Standstill};
use super::limits::Limits;
use super::simulated::Simulated;
use super::state::{State, StateError};
use crate::strategy::{KnownGood, Situation};

/// Targets one snapshot lists.
const MAX_TARGETS: usize = 256;
/// Attempts one history lists.
const MAX_ATTEMPTS: usize = 64;
/// Routes one strategy may declare.
pub(super) const MAX_ROUTES: usize = 1024;
/// Bytes of an operation's name in a declared route.
pub(super) const MAX_ROUTE_NAME: usize = 1024;
/// Handles to streams, clocks and the like one instance may hold.
const MAX_HANDLES: usize = 256;

/// What all instances of a strategy share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) limits: Limits,
    pub(super) state: Option<State>,
    pub(super) folder: Option<Folder>,
    pub(super) clock_start: Instant,
    /// Time and chance, where they are a simulation's.
    pub(super) simulated: Option<Simulated>,
}

/// A strategy used more of something than one decision may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Excess {
    #[error("it used its state more than {0} times in one decision")]
    StateOperations(usize),
}

/// Where an instance is in its life.
pub(super) enum Phase {
    /// `metadata`, or the instance's own start.
    Start,
    /// `configure`, at load: routes are collected.
    Load(Vec<Route>),
    /// `configure` before a decision.
    Configure,
    /// `condition` and `action`.
    Decide,
}

/// One instance's side of the host.
pub(super) struct Cell {
    pub(super) shared: Arc<Shared>,
    pub(super) phase: Phase,
    pub(super) meter: Meter,
    /// Ticks the instance may still run.
    pub(super) ticks_left: u64,
    /// It ran out of them.
    pub(super) out_of_time: bool,
    situation: Option<Situation>,
    known_good: Option<Option<KnownGood>>,
    left: Left,
    frozen: Option<Box<Standstill>>,
    wasi: Option<Box<(WasiCtx, ResourceTable)>>,
}

/// What a decision may still use.
struct Left {
    log_lines: usize,
    log_bytes: usize,
    state_operations: usize,
}

impl Left {
    fn of(limits: &Limits) -> Self {
        Self {
            log_lines: limits.log_lines,
            log_bytes: limits.log_bytes,
            state_operations: limits.state_operations,
        }
    }
}

/// What a strategy has written to its log.
type Lines = Vec<(LogLevel, String)>;
/// What its state holds, by key.
type Values = Vec<(String, Vec<u8>)>;

impl Cell {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let limits = &shared.limits;
        Self {
            phase: Phase::Start,
            meter: Meter::new(limits),
            ticks_left: 0,
            out_of_time: false,
            situation: None,
            known_good: None,
            left: Left::of(limits),
            frozen: None,
            wasi: None,
            shared,
        }
    }

    /// One whose clocks stand still, whose chance repeats and whose state is its own.
    pub(super) fn frozen(shared: Arc<Shared>, standstill: Standstill) -> Self {
        let wasi = standstill.wasi();
        Self {
            frozen: Some(Box::new(standstill)),
            wasi: Some(Box::new(with_table(wasi))),
            ..Self::new(shared)
        }
    }

    /// What a frozen cell's log and state hold in the end.
    pub(super) fn thaw(&mut self) -> (Lines, Values) {
        let Some(frozen) = &mut self.frozen else {
            return Default::default();
        };
        let state = frozen.state.as_ref().map(State::list).unwrap_or_default();
        (std::mem::take(&mut frozen.log), state)
    }

    /// Begins a decision.
    pub(super) fn meet(&mut self, situation: Situation) {
        self.phase = Phase::Decide;
        self.situation = Some(situation);
    }

    /// Ends a decision: nothing of it is left on this side, and the next one may use as much.
    pub(super) fn forget(&mut self) {
        self.phase = Phase::Start;
        self.situation = None;
        self.known_good = None;
        self.meter.refused = false;
        self.left = Left::of(&self.shared.limits);
    }

    /// The call, where the strategy may ask about it.
    fn decided(&self) -> Option<&Situation> {
        match self.phase {
            Phase::Decide => self.situation.as_ref(),
            _ => None,
        }
    }

    fn known_good(&mut self) -> Option<&KnownGood> {
        if self.known_good.is_none() {
            let found = self.decided()?.surroundings.last_known_good();
            self.known_good = Some(found);
        }
        self.known_good.as_ref()?.as_ref()
    }

    /// The strategy's state, for one more operation on it. The outer error is a trap.
    fn state(&mut self) -> wasmtime::Result<Result<&State, state::Error>> {
        let Some(left) = self.left.state_operations.checked_sub(1) else {
            let limit = self.shared.limits.state_operations;
            return Err(Excess::StateOperations(limit).into());
        };
        self.left.state_operations = left;
        let state = match &self.frozen {
            Some(frozen) => frozen.state.as_ref(),
            None => self.shared.state.as_ref(),
        };
        Ok(state.ok_or(state::Error::NotGranted))
    }
}

fn with_table(wasi: WasiCtx) -> (WasiCtx, ResourceTable) {
    let mut table = ResourceTable::new();
    table.set_max_capacity(MAX_HANDLES);
    (wasi, table)
}

impl WasiView for Cell {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        // Made at the first use: most decisions never need it.
        let (ctx, table) = &mut **self.wasi.get_or_insert_with(|| {
            Box::new(with_table(match &self.shared.simulated {
                Some(simulated) => simulated.wasi(),
                None => wasi_builder().build(),
            }))
        });
        WasiCtxView { ctx, table }
    }
}

/// A context with nothing in it.
pub(super) fn wasi_builder() -> WasiCtxBuilder {
    let mut builder = WasiCtx::builder();
    builder.max_random_size(64 << 10);
    builder
}

/// Bounds what an instance may allocate, and remembers that it was refused.
pub(super) struct Meter {
    limit: usize,
    used: usize,
    last: usize,
    table_elements: usize,
    instances: usize,
    memories: usize,
    /// A memory was refused.
    pub(super) refused: bool,
}

impl Meter {
    fn new(limits: &Limits) -> Self {
        Self {
            limit: limits.memory_bytes,
            used: 0,
            last: 0,
            table_elements: limits.table_elements,
            instances: limits.instances,
            memories: limits.memories,
            refused: false,
        }
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let added = desired.saturating_sub(current);
        let granted = self
            .used
            .checked_add(added)
            .is_some_and(|total| total <= self.limit);
        if granted {
            self.used += added;
            self.last = added;
        } else {
            self.refused = true;
            self.last = 0;
        }
        Ok(granted)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.used -= std::mem::take(&mut self.last);
        Ok(())
    }

    fn table_growing(
        &mut self,
        _: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= self.table_elements)
    }

    fn instances(&self) -> usize {
        self.instances
    }

    fn tables(&self) -> usize {
        self.instances
    }

    fn memories(&self) -> usize {
        self.memories
    }
}

/// Whole milliseconds, never fewer than the duration has: a wait of 0.4 ms is not a wait of none.
pub(super) fn millis_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Whole milliseconds that have passed.
pub(super) fn millis_down(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn text(bytes: &Bytes) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

impl types::Host for Cell {}

impl log::Host for Cell {
    fn write(&mut self, level: log::Level, mut message: String) {
        let left = &mut self.left;
        if left.log_lines == 0 || left.log_bytes == 0 {
            return;
        }
        left.log_lines -= 1;
        message.truncate(message.floor_char_boundary(left.log_bytes));
        left.log_bytes -= message.len();
        let plugin = &*self.shared.name;
        macro_rules! event {
            ($level:ident) => {
                tracing::event!(target: "backstop::strategy", tracing::Level::$level, plugin, "{message}")
            };
        }
        match level {
            log::Level::Trace => event!(TRACE),
            log::Level::Debug => event!(DEBUG),
            log::Level::Info => event!(INFO),
            log::Level::Warn => event!(WARN),
            log::Level::Error => event!(ERROR),
        }
        if let Some(frozen) = &mut self.frozen {
            frozen.log.push((level.into(), message));
        }
    }
}

impl clock::Host for Cell {
    fn monotonic(&mut self) -> u64 {
        let since = match &self.frozen {
            Some(frozen) => frozen.monotonic,
            None => Instant::now().saturating_duration_since(self.shared.clock_start),
        };
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn wall(&mut self) -> u64 {
        let now = match (&self.frozen, &self.situation) {
            (Some(frozen), _) => frozen.wall,
            (None, Some(situation)) => situation.surroundings.wall_clock(),
            (None, None) => match &self.shared.simulated {
                Some(simulated) => simulated.wall(),
                None => SystemTime::now(),
            },
        };
        millis_down(
            now.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
        )
    }
}

impl random::Host for Cell {
    fn next(&mut self) -> u64 {
        match (&self.frozen, &self.situation) {
            (Some(frozen), _) => frozen.chance.next(),
            (None, Some(situation)) => situation.surroundings.random(),
            (None, None) => match &self.shared.simulated {
                Some(simulated) => simulated.next(),
                // Outside a call there is no source to borrow; a fresh hash seed is random enough.
                None => RandomState::new().hash_one(0),
            },
        }
    }
}

impl From<StateError> for state::Error {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Quota(limit) => Self::QuotaExceeded(limit as u64),
            StateError::NotANumber => Self::NotANumber,
        }
    }
}

impl state::Host for Cell {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<Vec<u8>>, state::Error>> {
        Ok(self.state()?.map(|state| state.get(&key)))
    }

    fn set(
        &mut self,
        key: String,
        value: Vec<u8>,
        ttl: Option<u64>,
    ) -> wasmtime::Result<Result<(), state::Error>> {
        Ok(self
            .state()?
            .and_then(|state| Ok(state.set(&key, value, ttl)?)))
    }

    fn delete(&mut self, key: String) -> wasmtime::Result<Result<bool, state::Error>> {
        Ok(self.state()?.map(|state| state.delete(&key)))
    }

    fn increment(
        &mut self,
        key: String,
        by: i64,
        ttl: Option<u64>,
    ) -> wasmtime::Result<Result<i64, state::Error>> {
        Ok(self
            .state()?
            .and_then(|state| Ok(state.increment(&key, by, ttl)?)))
    }
}

impl call::Host for Cell {
    fn id(&mut self) -> String {
        self.decided()
            .map(|now| now.call.id.to_string())
            .unwrap_or_default()
    }

    fn operation(&mut self) -> String {
        self.decided()
            .map(|now| now.operation.to_string())
            .unwrap_or_default()
    }

    fn level(&mut self) -> String {
        self.decided()
            .map(|now| now.call.level.as_str().to_owned())
            .unwrap_or_default()
    }

    fn group(&mut self) -> String {
        self.decided()
            .map(|now| now.call.group.to_string())
            .unwrap_or_default()
    }

    fn target(&mut self) -> String {
        self.decided()
            .and_then(|now| now.target.as_deref())
            .unwrap_or_default()
            .to_owned()
    }

    fn message(&mut self) -> String {
        self.decided()
            .map(|now| now.failure.message.clone())
            .unwrap_or_default()
    }

    fn arguments(&mut self) -> Option<String> {
        self.decided()?.arguments.as_ref().and_then(text)
    }

    fn detail(&mut self, key: String) -> Option<String> {
        let now = self.decided()?;
        match &*key {
            "request.id" => now.call.request_id.as_deref().map(str::to_owned),
            "caller" => now.call.caller.as_deref().map(str::to_owned),
            _ => now.failure.detail(&key).map(str::to_owned).or_else(|| {
                let (_, value) = now.call.details.iter().find(|(name, _)| **name == *key)?;
                Some(value.to_string())
            }),
        }
    }
}

impl targets::Host for Cell {
    fn snapshot(&mut self) -> Vec<targets::Target> {
        let Some(now) = self.decided() else {
            return Vec::new();
        };
        let standing = |view: &crate::strategy::TargetView| {
            let mut flags = targets::Standing::empty();
            for (set, flag) in [
                (view.healthy, targets::Standing::HEALTHY),
                (view.admitted, targets::Standing::ADMITTED),
                (view.tried, targets::Standing::TRIED),
                (view.present, targets::Standing::PRESENT),
            ] {
                if set {
                    flags |= flag;
                }
            }
            flags
        };
        let views = now.surroundings.targets();
        views
            .into_iter()
            .take(MAX_TARGETS)
            .map(|view| targets::Target {
                standing: standing(&view),
                name: view.name,
                kind: view.kind,
                priority: view.priority,
                weight: view.weight,
            })
            .collect()
    }

    fn best(&mut self, kind: Option<String>) -> Option<Arc<str>> {
        self.decided()?.surroundings.best_target(kind.as_deref())
    }

    fn attribute(&mut self, target: String, key: String) -> Option<String> {
        self.decided()?.surroundings.target_attribute(&target, &key)
    }
}

impl history::Host for Cell {
    fn attempts(&mut self) -> Vec<history::Attempt> {
        let Some(now) = self.decided() else {
            return Vec::new();
        };
        let older = now.attempts.len().saturating_sub(MAX_ATTEMPTS);
        now.attempts[older..]
            .iter()
            .map(|attempt| history::Attempt {
                target: attempt.target.to_string(),
                operation: attempt.operation.to_string(),
                kind: attempt.failure.kind.to_string(),
                delay: millis_up(attempt.delay),
                duration: millis_down(attempt.duration),
            })
            .collect()
    }
}

impl retry_policy::Host for Cell {
    fn next_delay(&mut self) -> Option<u64> {
        self.decided()?.next_delay.map(millis_up)
    }
}

impl last_known_good::Host for Cell {
    fn find(&mut self) -> Option<last_known_good::Entry> {
        self.known_good().map(|known| last_known_good::Entry {
            age: millis_down(known.age),
            size: known.body.len() as u64,
            target: known.target.to_string(),
        })
    }

    fn body(&mut self) -> Option<String> {
        text(&self.known_good()?.body)
    }
}

impl folder::Host for Cell {
    async fn read(&mut self, path: String) -> Result<Vec<u8>, folder::Error> {
        let Some(granted) = self.shared.folder.clone() else {
            return Err(folder::Error::NotGranted);
        };
        // In a simulation nothing else may happen meanwhile.
        let read = match self.shared.simulated {
            Some(_) => granted.read_here(&path),
            None => granted.read(path).await,
        };
        read.map_err(|error| match error {
            FolderError::NotFound => folder::Error::NotFound,
            FolderError::Forbidden => folder::Error::Forbidden,
            FolderError::TooLarge(limit) => folder::Error::TooLarge(limit as u64),
            FolderError::Failed(why) => folder::Error::Failed(why),
        })
    }
}

impl routes::Host for Cell {
    fn declare(&mut self, source: String, fallback: String) {
        if let Phase::Load(routes) = &mut self.phase {
            // One more than allowed is kept, as the mark of a list that is too long.
            if routes.len() <= MAX_ROUTES {
                // What is too long is not kept: the host's memory is not the guest's. Its empty name
                // marks the list as bad.
                let fits = source.len().max(fallback.len()) <= MAX_ROUTE_NAME;
                let name = |name: String| if fits { name } else { String::new() };
                routes.push(Route {
                    source: name(source),
                    fallback: name(fallback),
                });
            }
        }
    }
}
