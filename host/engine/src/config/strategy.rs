//! `[[strategy]]`: which plugins are used, in which order, and what each may do.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::reader::{Issue, Reader};
use super::units::{DurationText, SizeText};
use super::{text, value};

fn yes() -> bool {
    true
}

/// One `[[strategy]]`: a use of a plugin. One plugin may be used several times, under several names.
///
/// Plugins without an entry take part all the same, see
/// [`Config::strategies`](super::Config::strategies).
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Strategy {
    /// The plugin: the name of its file without `.wasm`, or that of a stock strategy.
    pub plugin: String,
    /// Its name in logs and metrics, unique; 1 to 64 letters, digits, `-`, `_`. Default: the plugin.
    #[serde(default)]
    pub name: String,
    /// Its place in the order, higher is asked first. Default: what the plugin says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// What the plugin is configured with; checked against its own schema when it is loaded.
    /// Default: an empty table.
    #[serde(default)]
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    pub config: serde_json::Value,
    /// Limits of its sandbox that differ from the host's.
    #[serde(default)]
    pub limits: Limits,
    /// Capabilities it gets. Default: none.
    #[serde(default)]
    pub grants: Grants,
    /// Who may have used an instance of it before a decision does. Default: `fresh`.
    #[serde(default)]
    pub isolation: Isolation,
    /// What its fault (a trap, a timeout, garbage) means for the call. Default: `skip`.
    #[serde(default)]
    pub on_fault: OnFault,
    /// Whether it is used at all. Default: true.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// Who may have used an instance of a strategy before a decision does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Nobody: nothing leaks from one call to another but through the state it is granted.
    #[default]
    Fresh,
    /// Earlier decisions, one after the other, up to the limit `uses`. A little faster; for a
    /// strategy that may remember what it has seen of every caller.
    Reuse,
}

/// What a strategy's fault means for the call it was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFault {
    /// The next strategy is asked.
    #[default]
    Skip,
    /// The call fails.
    Fail,
    /// The next strategy is asked as well, and the explanation says that this one declined.
    Decline,
}

/// Limits of one strategy's sandbox; what is not given is the host's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Limits {
    /// The longest one decision (condition and action) may take, 10 ms to 1 minute. Default: 50 ms.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub decision_deadline: Option<Duration>,
    /// The longest metadata and configuration may take, 10 ms to 1 minute. Default: 500 ms.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub configure_deadline: Option<Duration>,
    /// Instances kept ready, made ahead of need, 0 to 64. Default: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<u32>,
    /// Decisions one instance may make under `isolation = "reuse"`, 1 to 1 000 000. Default: 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// The most linear memory, in bytes, 64 KiB (one page) to 4 GiB. Default: 16 MiB.
    #[serde(with = "SizeText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SizeText")]
    pub memory: Option<u64>,
    /// The most elements of one table, 0 to 100 000. Default: 20 000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_elements: Option<u32>,
    /// The most core instances it may consist of, 1 to 128. Default: 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
    /// The most linear memories, 1 to 16. Default: 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memories: Option<u32>,
    /// The most key/value state it may keep, in bytes, 0 to 1 GiB. Default: 1 MiB.
    #[serde(with = "SizeText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SizeText")]
    pub state_quota: Option<u64>,
    /// The largest value of its state, in bytes, 0 to 64 MiB. Default: 64 KiB.
    #[serde(with = "SizeText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SizeText")]
    pub state_value: Option<u64>,
    /// How often it may read or write its state in one decision, 0 to 1 000 000. Default: 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_operations: Option<u32>,
    /// The most lines it may log in one decision, 0 to 100 000. Default: 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_lines: Option<u32>,
    /// The most it may log in one decision, in bytes, 0 to 16 MiB. Default: 8 KiB.
    #[serde(with = "SizeText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SizeText")]
    pub log_bytes: Option<u64>,
    /// The largest action it may return, in bytes, 1 KiB to 64 MiB. Default: 1 MiB.
    #[serde(with = "SizeText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SizeText")]
    pub result_size: Option<u64>,
    /// The largest file it may read from its folder, in bytes, 0 to 256 MiB. Default: 1 MiB.
    #[serde(with = "SizeText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SizeText")]
    pub folder_file: Option<u64>,
}

/// Capabilities a strategy gets beyond what every strategy has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Grants {
    /// A folder it may read, relative to the file. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// Whether it may keep key/value state. Default: false.
    pub state: bool,
}

impl Strategy {
    pub(super) fn read(r: &mut Reader<'_, '_>, taken: &mut BTreeSet<String>) -> Option<Self> {
        let plugin = r.require("plugin", "\"PLUGIN\"", text::identifier);
        let name = r.read("name", text::identifier);
        let priority = r.read(
            "priority",
            value::integer(i32::MIN.into()..=i32::MAX.into()),
        );
        let config = r.read("config", value::json_object);
        let limits = r.section("limits", Limits::read);
        let grants = r.section("grants", Grants::read);
        let isolation = r.read(
            "isolation",
            value::word(&[("fresh", Isolation::Fresh), ("reuse", Isolation::Reuse)]),
        );
        let on_fault = r.read(
            "on_fault",
            value::word(&[
                ("skip", OnFault::Skip),
                ("fail", OnFault::Fail),
                ("decline", OnFault::Decline),
            ]),
        );
        let enabled = r.read("enabled", value::boolean);
        let plugin = plugin?;
        let key = if r.has("name") { "name" } else { "plugin" };
        let name = if key == "name" { name? } else { plugin.clone() };
        if !taken.insert(name.clone()) {
            let reason = format!("an earlier [[strategy]] has the name {name:?}");
            r.issue(
                key,
                Issue::error(
                    "duplicate name",
                    reason,
                    "Give this strategy a name of its own: name = \"…\".",
                ),
            );
        }
        Some(Self {
            plugin,
            name,
            priority,
            config: config.unwrap_or_else(|| serde_json::Map::new().into()),
            limits: limits.unwrap_or_default(),
            grants: grants.unwrap_or_default(),
            isolation: isolation.unwrap_or_default(),
            on_fault: on_fault.unwrap_or_default(),
            enabled: enabled.unwrap_or(true),
        })
    }
}

impl Limits {
    fn read(r: &mut Reader<'_, '_>) -> Self {
        // The sandbox counts in ticks of this length.
        const SHORTEST: Duration = Duration::from_millis(10);
        const LONGEST: Duration = Duration::from_secs(60);
        Self {
            decision_deadline: r.read("decision_deadline", value::duration(SHORTEST..=LONGEST)),
            configure_deadline: r.read("configure_deadline", value::duration(SHORTEST..=LONGEST)),
            ready: r.read("ready", value::integer(0..=64)),
            uses: r.read("uses", value::integer(1..=1_000_000)),
            memory: r.read("memory", value::size(64 << 10..=4 << 30)),
            table_elements: r.read("table_elements", value::integer(0..=100_000)),
            instances: r.read("instances", value::integer(1..=128)),
            memories: r.read("memories", value::integer(1..=16)),
            state_quota: r.read("state_quota", value::size(0..=1 << 30)),
            state_value: r.read("state_value", value::size(0..=64 << 20)),
            state_operations: r.read("state_operations", value::integer(0..=1_000_000)),
            log_lines: r.read("log_lines", value::integer(0..=100_000)),
            log_bytes: r.read("log_bytes", value::size(0..=16 << 20)),
            result_size: r.read("result_size", value::size(1 << 10..=64 << 20)),
            folder_file: r.read("folder_file", value::size(0..=256 << 20)),
        }
    }
}

impl Grants {
    fn read(r: &mut Reader<'_, '_>) -> Self {
        Self {
            folder: r.read("folder", text::folder),
            state: r.read("state", value::boolean).unwrap_or(false),
        }
    }
}
