//! One instance of a strategy: made, asked, thrown away; never running longer than its time.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use wasmtime::{Store, Trap, UpdateDeadline};

use super::bindings::backstop::strategy::types;
use super::contract::{Exports, Pre, StartError};
use super::host_impl::{Cell, Excess};
use super::limits::TICK;
use super::runtime::{Leave, Runtime};
use crate::strategy::{Situation, StrategyFault};

/// Bytes of the text of a fault.
const MAX_FAULT_BYTES: usize = 500;

/// One instance, with the clock that stops it.
pub(super) struct Instance {
    store: Store<Cell>,
    exports: Option<Exports>,
    deadline: Duration,
    uses: u32,
    turn: Turn,
    // After the store, because fields are dropped in their order.
    leave: Leave,
}

/// Whether an instance has given its thread away at a tick, ready to run on: as opposed to one that
/// waits for something.
#[derive(Debug, Clone, Default)]
pub(super) struct Turn(Arc<AtomicBool>);

impl Turn {
    fn give_way(&self) -> impl Future<Output = ()> + Send + use<> {
        let turn = self.0.clone();
        turn.store(true, Ordering::Relaxed);
        async move {
            tokio::task::yield_now().await;
            turn.store(false, Ordering::Relaxed);
        }
    }

    fn is_given(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Instance {
    /// Prepares an instance.
    pub(super) fn new(runtime: &Runtime, cell: Cell, leave: Leave) -> Self {
        let result_bytes = cell.shared.limits.result_bytes;
        let mut store = Store::new(runtime.engine(), cell);
        store.limiter(|cell| &mut cell.meter);
        store.set_hostcall_fuel(result_bytes);
        let turn = Turn::default();
        let given = turn.clone();
        let keeps_its_thread = store.data().shared.simulated.is_some();
        store.epoch_deadline_callback(move |mut store| {
            let cell = store.data_mut();
            if cell.ticks_left == 0 {
                cell.out_of_time = true;
                return Ok(UpdateDeadline::Interrupt);
            }
            cell.ticks_left -= 1;
            if keeps_its_thread {
                return Ok(UpdateDeadline::Continue(1));
            }
            // Between two ticks the thread is given to other tasks.
            Ok(UpdateDeadline::YieldCustom(1, Box::pin(given.give_way())))
        });
        Self {
            store,
            exports: None,
            deadline: Duration::ZERO,
            uses: 0,
            turn,
            leave,
        }
    }

    /// Gives it this much time for what it is asked next, all its functions together.
    pub(super) fn set_out(&mut self, deadline: Duration) {
        self.deadline = deadline;
        // The tick under way may end at once, so it does not count.
        let ticks = deadline.as_nanos().div_ceil(TICK.as_nanos());
        self.store.data_mut().ticks_left = u64::try_from(ticks).unwrap_or(u64::MAX);
        self.store.set_epoch_deadline(1);
    }

    pub(super) fn cell(&mut self) -> &mut Cell {
        self.store.data_mut()
    }

    /// Whether it is instantiated.
    pub(super) fn is_started(&self) -> bool {
        self.exports.is_some()
    }

    pub(super) fn turn(&self) -> Turn {
        self.turn.clone()
    }

    /// Decisions it has made.
    pub(super) fn uses(&self) -> u32 {
        self.uses
    }

    /// Whether it may wait in a pool.
    pub(super) fn may_wait(&self) -> bool {
        self.leave.to_wait
    }

    /// Lets it exist by another leave, if there is one.
    pub(super) fn set_leave(&mut self, leave: Option<Leave>) -> bool {
        leave.map(|leave| self.leave = leave).is_some()
    }

    /// Instantiates the component.
    pub(super) async fn start(&mut self, pre: &Pre) -> Result<(), StrategyFault> {
        match pre.instantiate(&mut self.store).await {
            Ok(exports) => {
                self.exports = Some(exports);
                Ok(())
            }
            Err(StartError::Shape(part)) => Err(StrategyFault::Shape(part)),
            Err(StartError::Other(error)) => Err(match self.fault(error) {
                // Not something it returned: it returned nothing yet.
                StrategyFault::Garbage(why) => StrategyFault::Instantiate(why),
                fault => fault,
            }),
        }
    }

    pub(super) async fn metadata(&mut self) -> Result<types::Metadata, StrategyFault> {
        let Some(exports) = &self.exports else {
            return Err(unstarted());
        };
        let result = exports.metadata(&mut self.store).await;
        result.map_err(|error| self.fault(error))
    }

    pub(super) async fn configure(
        &mut self,
        config: &str,
    ) -> Result<Result<(), String>, StrategyFault> {
        let Some(exports) = &self.exports else {
            return Err(unstarted());
        };
        let result = exports.configure(&mut self.store, config).await;
        result.map_err(|error| self.fault(error))
    }

    /// Asks `condition` and, if it says true, `action`.
    pub(super) async fn decide(
        &mut self,
        situation: &Situation,
        time_left: Duration,
    ) -> Result<Option<types::Decision>, StrategyFault> {
        let Some(exports) = &self.exports else {
            return Err(unstarted());
        };
        self.uses = self.uses.saturating_add(1);
        self.store.data_mut().meet(situation.clone());
        let result = exports.decide(&mut self.store, situation, time_left).await;
        result.map_err(|error| self.fault(error))
    }

    /// What an error of the runtime means. The flags go first: how a strategy ends after it was
    /// refused something is its own affair.
    fn fault(&self, error: wasmtime::Error) -> StrategyFault {
        let cell = self.store.data();
        if cell.out_of_time {
            return StrategyFault::Timeout(self.deadline);
        }
        if cell.meter.refused {
            return StrategyFault::Memory(cell.shared.limits.memory_bytes);
        }
        if let Some(excess) = error.downcast_ref::<Excess>() {
            return StrategyFault::Excess(excess.to_string());
        }
        if let Some(trap) = error.downcast_ref::<Trap>() {
            return StrategyFault::Trap(trap.to_string());
        }
        if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
            return StrategyFault::Trap(format!("it ended itself with status {}", exit.0));
        }
        let mut text = format!("{error:#}");
        text.truncate(text.floor_char_boundary(MAX_FAULT_BYTES));
        StrategyFault::Garbage(text)
    }
}

fn unstarted() -> StrategyFault {
    StrategyFault::Instantiate("it was not started".into())
}

/// Runs `work`, all that is asked of one instance, and stops it when its time is up.
///
/// Ticks stop an instance that runs, counted in turns, so that a busy machine is not taken for a slow
/// strategy. They do not wake one that waits in the host: it has until one tick after its deadline by
/// the clock. One that changes between running and waiting, or whose turns come late, has at most
/// twice its deadline.
pub(super) async fn within<T>(
    deadline: Duration,
    turn: &Turn,
    work: impl Future<Output = Result<T, StrategyFault>>,
) -> Result<T, StrategyFault> {
    within_since(Instant::now(), deadline, turn, work).await
}

/// The same of what begins at `began`, for whoever has looked at the clock.
pub(super) async fn within_since<T>(
    began: Instant,
    deadline: Duration,
    turn: &Turn,
    work: impl Future<Output = Result<T, StrategyFault>>,
) -> Result<T, StrategyFault> {
    let mut work = pin!(work);
    // Nearly every decision is made at once, and needs no timer.
    let first = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
    if let Poll::Ready(result) = first {
        return result;
    }
    let waiting = pin!(sleep_until(began + deadline + TICK));
    let at_all = pin!(sleep_until(began + deadline.saturating_mul(2) + TICK));
    let (mut waiting, mut at_all): (Pin<&mut _>, Pin<&mut _>) = (waiting, at_all);
    poll_fn(move |cx| {
        if let Poll::Ready(result) = work.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        let waited = waiting.as_mut().poll(cx).is_ready() && !turn.is_given();
        if waited || at_all.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(StrategyFault::Timeout(deadline)));
        }
        Poll::Pending
    })
    .await
}
