//! What a strategy may use: every limit is on by default, and every one can be changed for one
//! strategy.
//!
//! A limit is a promise to everybody else in the process. None of them is a tuning knob a strategy
//! sees: passing one ends the decision, never the call.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The period of the clock that interrupts strategies. This long one may hold a thread of the host at most,
/// however many calls wait for it; the shorter it is, the more often a slow strategy waits for its turn.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// What one strategy may use. Every field has a default; sizes are in bytes, times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Limits {
    /// Milliseconds one decision may take: `condition` and `action` together, and where no instance
    /// is ready the making of one as well. Counted in ticks of 5 ms, so it ends at most two of them
    /// later. Range: 10 to 60 000. Default: 50.
    pub decision_deadline_ms: u64,
    /// Milliseconds `metadata` may take, and milliseconds an instance may take to become ready:
    /// its own start and `configure`. Range: 10 to 60 000. Default: 500.
    pub configure_deadline_ms: u64,
    /// Instances kept ready, made ahead of need. Each takes its memory while it waits; all
    /// strategies together keep at most 128. With none every decision makes its own. Range: 0 to 64.
    /// Default: 2.
    pub ready: u32,
    /// Decisions one instance may make under `isolation = "reuse"`. Range: 1 to 1 000 000.
    /// Default: 1000.
    pub uses: u32,
    /// Bytes of linear memory, all memories of an instance together. A strategy in JavaScript begins
    /// with 9 MiB, one in Python with 13 MiB. Range: 64 KiB to 4 GiB. Default: 16 MiB.
    pub memory_bytes: usize,
    /// Elements of one table. Range: 0 to 100 000. Default: 20 000.
    pub table_elements: usize,
    /// Core instances a component may consist of; one in Python consists of more than 32. Range: 1 to 128.
    /// Default: 64.
    pub instances: usize,
    /// Linear memories a component may have. Range: 1 to 16. Default: 4.
    pub memories: usize,
    /// Bytes of log messages in one decision; the rest is dropped. Default: 8 KiB.
    pub log_bytes: usize,
    /// Log lines in one decision; the rest is dropped. Default: 64.
    pub log_lines: usize,
    /// Bytes of state a strategy may keep: keys, values, and 64 bytes for each entry. Default: 1 MiB.
    pub state_bytes: usize,
    /// Bytes of one value in the state. Default: 64 KiB.
    pub state_value_bytes: usize,
    /// Reads and writes of the state in one decision; one more is a fault. Range: 0 to 1 000 000.
    /// Default: 1000.
    pub state_operations: usize,
    /// Bytes of what one function returns, and of what it passes to one host function. Range: 1 KiB
    /// to 64 MiB. Default: 1 MiB.
    pub result_bytes: usize,
    /// Bytes of one file read from the granted folder. Default: 1 MiB.
    pub folder_file_bytes: usize,
    /// Bytes of the component's file. Range: up to 256 MiB. Default: 32 MiB.
    pub component_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            decision_deadline_ms: 50,
            configure_deadline_ms: 500,
            ready: 2,
            uses: 1000,
            memory_bytes: 16 << 20,
            table_elements: 20_000,
            instances: 64,
            memories: 4,
            log_bytes: 8 << 10,
            log_lines: 64,
            state_bytes: 1 << 20,
            state_value_bytes: 64 << 10,
            state_operations: 1000,
            result_bytes: 1 << 20,
            folder_file_bytes: 1 << 20,
            component_bytes: 32 << 20,
        }
    }
}

impl Limits {
    /// Checks every range.
    ///
    /// # Errors
    /// [`LimitError`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), LimitError> {
        let in_range = |field, value: u64, low, high| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(LimitError {
                    field,
                    value,
                    low,
                    high,
                })
            }
        };
        in_range(
            "decision-deadline-ms",
            self.decision_deadline_ms,
            10,
            60_000,
        )?;
        in_range(
            "configure-deadline-ms",
            self.configure_deadline_ms,
            10,
            60_000,
        )?;
        in_range("ready", self.ready.into(), 0, 64)?;
        in_range("uses", self.uses.into(), 1, 1_000_000)?;
        in_range("memory-bytes", self.memory_bytes as u64, 64 << 10, 4 << 30)?;
        in_range(
            "table-elements",
            self.table_elements as u64,
            0,
            MAX_TABLE_ELEMENTS as u64,
        )?;
        in_range("instances", self.instances as u64, 1, 128)?;
        in_range("memories", self.memories as u64, 1, 16)?;
        in_range("log-bytes", self.log_bytes as u64, 0, 16 << 20)?;
        in_range("log-lines", self.log_lines as u64, 0, 100_000)?;
        in_range("state-bytes", self.state_bytes as u64, 0, 1 << 30)?;
        in_range(
            "state-value-bytes",
            self.state_value_bytes as u64,
            0,
            64 << 20,
        )?;
        in_range(
            "state-operations",
            self.state_operations as u64,
            0,
            1_000_000,
        )?;
        in_range("result-bytes", self.result_bytes as u64, 1 << 10, 64 << 20)?;
        in_range(
            "folder-file-bytes",
            self.folder_file_bytes as u64,
            0,
            256 << 20,
        )?;
        in_range("component-bytes", self.component_bytes as u64, 8, 256 << 20)
    }

    /// How long one decision may take.
    pub fn decision_deadline(&self) -> Duration {
        Duration::from_millis(self.decision_deadline_ms)
    }

    /// How long `metadata` may take, and an instance to become ready.
    pub fn configure_deadline(&self) -> Duration {
        Duration::from_millis(self.configure_deadline_ms)
    }
}

/// The table size the instance pool is made for.
pub(super) const MAX_TABLE_ELEMENTS: usize = 100_000;

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "decision deadline   {} ms", self.decision_deadline_ms)?;
        writeln!(f, "configure deadline  {} ms", self.configure_deadline_ms)?;
        writeln!(f, "instances ready     {}", self.ready)?;
        writeln!(f, "uses, under reuse   {}", self.uses)?;
        writeln!(f, "linear memory       {}", Size(self.memory_bytes))?;
        writeln!(f, "table elements      {}", self.table_elements)?;
        writeln!(f, "core instances      {}", self.instances)?;
        writeln!(f, "memories            {}", self.memories)?;
        writeln!(
            f,
            "log, per decision   {} in {} lines",
            Size(self.log_bytes),
            self.log_lines
        )?;
        writeln!(
            f,
            "state               {}, {} a value, {} operations a decision",
            Size(self.state_bytes),
            Size(self.state_value_bytes),
            self.state_operations
        )?;
        writeln!(f, "result              {}", Size(self.result_bytes))?;
        writeln!(f, "file of the folder  {}", Size(self.folder_file_bytes))?;
        write!(f, "component file      {}", Size(self.component_bytes))
    }
}

/// A size in the largest unit that divides it.
pub(super) struct Size(pub(super) usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n > 0 && n.is_multiple_of(1 << 30) => write!(f, "{} GiB", n >> 30),
            n if n > 0 && n.is_multiple_of(1 << 20) => write!(f, "{} MiB", n >> 20),
            n if n > 0 && n.is_multiple_of(1 << 10) => write!(f, "{} KiB", n >> 10),
            n => write!(f, "{n} bytes"),
        }
    }
}

/// A limit out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value} is out of range: use {low} to {high}")]
pub struct LimitError {
    /// The field, as it is written in a configuration.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// The least it may be.
    pub low: u64,
    /// The most it may be.
    pub high: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_one_override_keeps_the_others() {
        assert_eq!(Limits::default().validate(), Ok(()));
        let limits: Limits = serde_json::from_str(r#"{"memory-bytes": 134217728}"#).unwrap();
        assert_eq!(
            limits,
            Limits {
                memory_bytes: 128 << 20,
                ..Limits::default()
            }
        );
        assert!(limits.to_string().contains("linear memory       128 MiB"));
    }

    #[test]
    fn a_limit_out_of_range_or_unknown_is_refused_by_name() {
        let error = Limits {
            decision_deadline_ms: 0,
            ..Limits::default()
        }
        .validate()
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "decision-deadline-ms = 0 is out of range: use 10 to 60000"
        );
        assert!(
            serde_json::from_str::<Limits>(r#"{"memory": 1}"#)
                .unwrap_err()
                .to_string()
                .contains("`memory`")
        );
    }
}
