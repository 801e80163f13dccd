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
    /// What its fault (a trap, a timeout, garbage) means for the call. Default: `skip`.
    #[serde(default)]
    pub on_fault: OnFault,
    /// Whether it is used at all. Default: true.
    #[serde(default = "yes")]
    pub enabled: bool,
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
    /// The longest one decision (condition and action) may take, 10 ms to 1 minute.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub decision_deadline: Option<Duration>,
    /// The longest metadata and configuration may take, 10 ms to 1 minute.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub configure_deadline: Option<Duration>,
    /// The most linear memory, in bytes, 64 KiB (one page) to 4 GiB.
    #[serde(with = "SizeText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SizeText")]
    pub memory: Option<u64>,
    /// The most key/value state it may keep, in bytes, 0 to 1 GiB.
    #[serde(with = "SizeText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SizeText")]
    pub state_quota: Option<u64>,
    /// The most it may log in one decision, in bytes, 0 to 16 MiB.
    #[serde(with = "SizeText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SizeText")]
    pub log_bytes: Option<u64>,
    /// The largest action it may return, in bytes, 1 KiB to 64 MiB.
    #[serde(with = "SizeText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SizeText")]
    pub result_size: Option<u64>,
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
            memory: r.read("memory", value::size(64 << 10..=4 << 30)),
            state_quota: r.read("state_quota", value::size(0..=1 << 30)),
            log_bytes: r.read("log_bytes", value::size(0..=16 << 20)),
            result_size: r.read("result_size", value::size(1 << 10..=64 << 20)),
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
