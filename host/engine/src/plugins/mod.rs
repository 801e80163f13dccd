#![doc = include_str!("folder.md")]

mod lock;
mod look;
mod prepare;
mod set;
mod wanted;
mod watch;

pub use lock::{LockError, PluginLock};
pub use set::{Changes, Plan, StrategySet};
pub use watch::{Watch, WatchOptions};
