//! Strategies: who decides what to do about a failure.
//!
//! A strategy has a name, a priority, an interest (kinds and operations), a condition and an action.
//! It is either a Rust value that implements [`Strategy`], or a sandboxed WebAssembly component; the
//! [`StrategyManager`] holds both side by side and asks them alike.

mod action;
#[cfg(feature = "component")]
pub mod component;
mod info;
mod manager;
mod situation;

pub use action::{Action, ActionKind, AnswerData, Decision};
pub use info::{InfoError, Interest, StrategyInfo};
pub(crate) use manager::Strategies;
pub use manager::{Entry, ManagerError, OnFault, Proposal, StrategyManager};
pub use situation::{KnownGood, Situation, Surroundings, TargetView};

/// A strategy written in Rust and linked into the program.
///
/// Both functions must return promptly: they run on the call's own task.
pub trait Strategy: Send + Sync {
    /// What the strategy is and is interested in. The same answer every time.
    fn info(&self) -> StrategyInfo;

    /// Whether it applies to the failure.
    fn condition(&self, situation: &Situation) -> bool;

    /// What to do. Called only after `condition` said true of the same situation.
    fn action(&self, situation: &Situation) -> Decision;
}

/// Why a strategy did not decide.
///
/// A fault never ends a call by itself: the next strategy is asked (unless the entry's fault policy
/// says otherwise), and the fault stands in the explanation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StrategyFault {
    /// The component trapped.
    #[error("trapped: {0}")]
    Trap(String),
    /// The decision took longer than its deadline.
    #[error("did not decide within {0:?}")]
    Timeout(std::time::Duration),
    /// It asked for more memory than its limit.
    #[error("asked for more memory than its limit of {0} bytes")]
    Memory(usize),
    /// What it returned is out of range.
    #[error("returned an invalid result: {0}")]
    Garbage(String),
    /// It used more of something than one decision may.
    #[error("was stopped: {0}")]
    Excess(String),
    /// No instance could be made.
    #[error("could not be instantiated: {0}")]
    Instantiate(String),
    /// A function it exports has another type than its contract says.
    #[error("does not fit the contract it was built for: {0} has another type there")]
    Shape(String),
    /// It is quarantined after repeated faults.
    #[error("is quarantined after {faults} faults")]
    Quarantined {
        /// Faults in a row that led to it.
        faults: u32,
    },
}

impl StrategyFault {
    /// The fault's name, for metrics: a bounded set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Trap(_) => "trap",
            Self::Timeout(_) => "timeout",
            Self::Memory(_) => "memory",
            Self::Garbage(_) => "garbage",
            Self::Excess(_) => "excess",
            Self::Instantiate(_) => "instantiate",
            Self::Shape(_) => "shape",
            Self::Quarantined { .. } => "quarantined",
        }
    }
}
