//! Instances kept ready, so that a call does not pay for making one.
//!
//! An instance has one owner at a time: the pool while it waits, a decision while it decides. So two
//! decisions can never meet in one, whatever the [`Isolation`]. Making an instance, configuring it
//! and taking it apart happen in a task beside the call, not on its path.
//!
//! What waits here takes memory for as long as it waits, so each strategy keeps only a few
//! ([`Limits::ready`](super::Limits::ready)), and all strategies together have a share of the
//! runtime that decisions made on demand cannot use up, nor be starved by.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::contract::Pre;
use super::host_impl::{Cell, Phase, Shared};
use super::instance::{Instance, within};
use super::runtime::{Leave, Runtime};
use crate::strategy::StrategyFault;

/// Who may have used an instance before a decision does.
///
/// `Reuse` saves part of what a decision costs, on a call that has already failed, and gives up the
/// promise that nothing leaks from one request to another. So `Fresh` is the default. Measured with
/// one strategy in four languages (`backstop plugin bench` repeats it), a decision in a fresh instance
/// kept ready costs 4 times one in a reused instance for Rust and C, 3 times for JavaScript, 12 times
/// for Python: its memory is touched for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Isolation {
    /// Nobody: each decision has an instance of its own, thrown away after it.
    #[default]
    Fresh,
    /// Earlier decisions of the same strategy, one after the other, up to
    /// [`Limits::uses`](super::Limits::uses) of them. What the strategy keeps in its memory, it
    /// keeps: only for a strategy that is trusted with every caller's data. An instance that faulted
    /// is never used again.
    Reuse,
}

/// The instances of one strategy.
pub(super) struct Pool {
    runtime: Runtime,
    pre: Pre,
    shared: Arc<Shared>,
    config: Arc<str>,
    isolation: Isolation,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Configured, and used by nobody now.
    ready: Vec<Instance>,
    /// To be taken apart.
    spent: Vec<Instance>,
    /// A task is at it.
    tending: bool,
}

impl Pool {
    pub(super) fn new(
        runtime: Runtime,
        pre: Pre,
        shared: Arc<Shared>,
        config: Arc<str>,
        isolation: Isolation,
    ) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            pre,
            shared,
            config,
            isolation,
            held: Mutex::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// An instance that is ready to decide, if one waits.
    pub(super) fn take(&self) -> Option<Instance> {
        self.held().ready.pop()
    }

    /// An instance that [`start`](Self::start) has yet to make ready.
    pub(super) fn instance(&self, leave: Leave) -> Instance {
        Instance::new(&self.runtime, Cell::new(self.shared.clone()), leave)
    }

    /// Instantiates and configures.
    pub(super) async fn start(&self, instance: &mut Instance) -> Result<(), StrategyFault> {
        instance.start(&self.pre).await?;
        instance.cell().phase = Phase::Configure;
        match instance.configure(&self.config).await? {
            Ok(()) => Ok(()),
            // It took the same configuration when it was loaded.
            Err(message) => Err(StrategyFault::Garbage(format!(
                "`configure` now says: {message}"
            ))),
        }
    }

    /// Takes an instance back after a decision that went well.
    pub(super) fn give_back(self: &Arc<Self>, mut instance: Instance) {
        let limits = &self.shared.limits;
        let keep = self.isolation == Isolation::Reuse && instance.uses() < limits.uses;
        if !keep || !instance.may_wait() && !instance.set_leave(self.runtime.leave_to_wait()) {
            return self.throw_away(instance);
        }
        instance.cell().forget();
        let mut held = self.held();
        if held.ready.len() < limits.ready as usize {
            held.ready.push(instance);
        } else {
            drop(held);
            self.throw_away(instance);
        }
    }

    /// Takes an instance apart, and makes another for the next decision: beside the call.
    pub(super) fn throw_away(self: &Arc<Self>, instance: Instance) {
        let mut held = self.held();
        held.spent.push(instance);
        self.tend(held);
    }

    /// Makes instances ready, beside whatever goes on.
    pub(super) fn fill(self: &Arc<Self>) {
        self.tend(self.held());
    }

    fn tend(self: &Arc<Self>, mut held: MutexGuard<'_, Held>) {
        if std::mem::replace(&mut held.tending, true) {
            return;
        }
        drop(held);
        // Outside the task, since the end of its runtime may drop the task before it has begun.
        let tending = Tending(self.clone());
        tokio::spawn(async move {
            while tending.0.tend_once().await {
                // Between two instances the thread is given to other tasks.
                tokio::task::yield_now().await;
            }
        });
    }

    /// Takes the spent instances apart and makes one ready. Says whether there is more to do.
    async fn tend_once(&self) -> bool {
        let (spent, full) = {
            let mut held = self.held();
            let full = held.ready.len() >= self.shared.limits.ready as usize;
            (std::mem::take(&mut held.spent), full)
        };
        let any = !spent.is_empty();
        drop(spent);
        if full {
            return any;
        }
        // Where the share is used up, decisions make their own.
        let Some(leave) = self.runtime.leave_to_wait() else {
            return any;
        };
        let mut instance = self.instance(leave);
        let deadline = self.shared.limits.configure_deadline();
        instance.set_out(deadline);
        let turn = instance.turn();
        // A fault is met again, and counted, by the next decision, which then makes its own instance.
        match within(deadline, &turn, self.start(&mut instance)).await {
            Ok(()) => self.held().ready.push(instance),
            Err(fault) => {
                let plugin = &*self.shared.name;
                tracing::debug!(target: "backstop::strategy", plugin, fault = fault.label(), "no instance of {plugin} could be prepared: it {fault}");
                return false;
            }
        }
        true
    }

    /// Instances that wait.
    pub(super) fn waiting(&self) -> usize {
        self.held().ready.len()
    }
}

/// Ends the tending when it is dropped. What was thrown away meanwhile is taken apart here.
struct Tending(Arc<Pool>);

impl Drop for Tending {
    fn drop(&mut self) {
        let spent = {
            let mut held = self.0.held();
            held.tending = false;
            std::mem::take(&mut held.spent)
        };
        drop(spent);
    }
}
