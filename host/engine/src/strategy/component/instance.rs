//! One instance of a strategy: made, asked, thrown away; never longer than its deadline.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Store, Trap, UpdateDeadline};

use super::Runtime;
use super::bindings::backstop::strategy::types;
use super::bindings::{Strategy, StrategyPre};
use super::host_impl::{Cell, Shared};
use super::limits::TICK;
use crate::strategy::{Situation, StrategyFault};

/// Bytes of the text of a fault.
const MAX_FAULT_BYTES: usize = 500;

/// One instance, with the clock that stops it.
pub(super) struct Instance<'a> {
    store: Store<Cell>,
    pre: &'a StrategyPre<Cell>,
    exports: Option<Strategy>,
    deadline: Duration,
}

impl<'a> Instance<'a> {
    /// Prepares an instance. `deadline` is the time it may run, all its functions together.
    pub(super) fn new(
        runtime: &Runtime,
        pre: &'a StrategyPre<Cell>,
        shared: &Arc<Shared>,
        situation: Option<Situation>,
        deadline: Duration,
    ) -> Self {
        // The tick under way may end at once, so it does not count.
        let ticks =
            u64::try_from(deadline.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX);
        let mut store = Store::new(
            runtime.engine(),
            Cell::new(shared.clone(), situation, ticks),
        );
        store.limiter(|cell| &mut cell.meter);
        store.set_hostcall_fuel(shared.limits.result_bytes);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|mut store| {
            let cell = store.data_mut();
            if cell.ticks_left == 0 {
                cell.out_of_time = true;
                return Ok(UpdateDeadline::Interrupt);
            }
            cell.ticks_left -= 1;
            // Between two ticks the thread is given to other tasks.
            Ok(UpdateDeadline::YieldCustom(
                1,
                Box::pin(tokio::task::yield_now()),
            ))
        });
        Self {
            store,
            pre,
            exports: None,
            deadline,
        }
    }

    pub(super) fn cell(&mut self) -> &mut Cell {
        self.store.data_mut()
    }

    /// Instantiates the component.
    pub(super) async fn start(&mut self) -> Result<(), StrategyFault> {
        match self.pre.instantiate_async(&mut self.store).await {
            Ok(exports) => {
                self.exports = Some(exports);
                Ok(())
            }
            Err(error) => Err(match self.fault(error) {
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
        let result = exports
            .backstop_strategy_policy()
            .call_metadata(&mut self.store)
            .await;
        result.map_err(|error| self.fault(error))
    }

    pub(super) async fn configure(
        &mut self,
        config: &str,
    ) -> Result<Result<(), String>, StrategyFault> {
        let Some(exports) = &self.exports else {
            return Err(unstarted());
        };
        let result = exports
            .backstop_strategy_policy()
            .call_configure(&mut self.store, config)
            .await;
        result.map_err(|error| self.fault(error))
    }

    pub(super) async fn condition(
        &mut self,
        failure: &types::Failure,
    ) -> Result<bool, StrategyFault> {
        let Some(exports) = &self.exports else {
            return Err(unstarted());
        };
        let result = exports
            .backstop_strategy_policy()
            .call_condition(&mut self.store, failure)
            .await;
        result.map_err(|error| self.fault(error))
    }

    pub(super) async fn action(
        &mut self,
        failure: &types::Failure,
    ) -> Result<types::Decision, StrategyFault> {
        let Some(exports) = &self.exports else {
            return Err(unstarted());
        };
        let result = exports
            .backstop_strategy_policy()
            .call_action(&mut self.store, failure)
            .await;
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
/// Ticks stop an instance that runs. They do not wake one that waits in the host, so there is a
/// second limit in waiting time, twice as long, so that a busy machine is not taken for a slow
/// strategy.
pub(super) async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, StrategyFault>>,
) -> Result<T, StrategyFault> {
    match tokio::time::timeout(deadline.saturating_mul(2), work).await {
        Ok(result) => result,
        Err(_) => Err(StrategyFault::Timeout(deadline)),
    }
}
