//! `[events]`: where events are written, line by line.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use super::reader::Reader;
use super::units::SizeText;
use super::{text, value};

/// `[events]`: every event as one line of JSON. The section's presence switches it on.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct EventLog {
    /// The file they are added to, relative to this one. Default: standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// How large the file may grow, 1 KiB to 64 GiB; then it becomes FILE.1, and what was FILE.1 becomes
    /// FILE.2. Default: 64 MiB.
    #[serde(with = "SizeText")]
    #[schemars(with = "SizeText")]
    pub max_size: u64,
    /// How many such earlier files are kept, 0 to 1000. Default: 5.
    #[schemars(range(max = 1000))]
    pub keep: u32,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            file: None,
            max_size: 64 << 20,
            keep: 5,
        }
    }
}

impl EventLog {
    pub(super) fn read(r: &mut Reader<'_, '_>) -> Self {
        let base = Self::default();
        Self {
            file: r.read("file", text::path),
            max_size: r
                .read("max_size", value::size(1 << 10..=64 << 30))
                .unwrap_or(base.max_size),
            keep: r
                .read("keep", value::integer(0..=1000))
                .unwrap_or(base.keep),
        }
    }
}
