//! The configuration file: one TOML file that says what the targets, the strategies and the host's
//! policies are.
//!
//! A file is read as far as it can be, and everything wrong in it is reported at once, each problem
//! with its place, its reason and a remedy. So a program can start with what is right, a check can
//! show the whole list, and a reload can refuse a file with any [`Severity::Error`] in it while the
//! old configuration stays. Only a file that is no TOML loads nothing.
//!
//! What is here is plain data; the parts it configures take it from here.
//!
//! ```
//! use std::path::Path;
//!
//! use backstop::config::Config;
//!
//! let text = "[[service]]\nname = 'search'\nurl = 'https://example.com/mcp'\nwieght = 2\n";
//! let loaded = Config::parse(text, Path::new("backstop.toml"), &|_| None);
//! assert_eq!(loaded.config.services[0].name, "search");
//! assert_eq!(
//!     loaded.diagnostics[0].to_string(),
//!     "backstop.toml:4:1: service[0].wieght: unknown key \"wieght\": did you mean \"weight\"? \
//!      Write \"weight\", or remove it.",
//! );
//! ```

mod completion;
pub mod cycle;
mod diagnostic;
mod discovery;
mod events;
mod json;
mod limits;
mod listen;
mod oauth;
mod operation;
mod overrides;
mod policy;
mod reader;
mod retry;
pub mod scenario;
mod strategy;
mod targets;
mod telemetry;
mod text;
mod units;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;
use toml::de::DeTable;

pub use completion::Completion;
#[cfg(feature = "component")]
pub(crate) use diagnostic::chain;
pub use diagnostic::{Diagnostic, Severity};
pub use discovery::{Discovery, Dns, Record, Scheme, Source};
pub use events::EventLog;
pub use limits::TargetLimits;
pub use listen::{Admin, Gateway};
pub use oauth::{Grant, OAuth};
pub use operation::{Operation, Pattern};
pub use overrides::{CircuitOverride, HealthOverride, TargetPolicies};
pub use policy::{Budget, Cache, Circuit, Deadline, Health};
pub use retry::{Jitter, Retries, Retry};
pub use strategy::{Grants, Isolation, Limits, OnFault, Strategy};
pub use targets::{Model, ModelApi, Service, Transport};
pub use telemetry::Telemetry;
pub use units::{
    ExpandError, Expanded, LONGEST, format_duration, format_size, parse_duration, parse_size,
};

pub use value::nearest;

use reader::{Cx, Issue, Reader};
use targets::Taken;

/// A whole configuration file. Its serialised form never holds what environment variables hold.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "backstop configuration")]
#[non_exhaustive]
pub struct Config {
    /// The folder strategies are loaded from and watched in, relative to the file. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugins: Option<PathBuf>,
    /// The lock file of that folder, relative to the file: only plugins it names, each with the
    /// SHA-256 it says, take part. Default: none, every plugin does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugins_lock: Option<PathBuf>,
    /// The folder in which the state of strategies survives a restart, relative to the file; for those
    /// that are granted state. No two programs can use one. Default: none, state ends with the
    /// strategy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<PathBuf>,
    /// Whether the stock strategies inside the program take part. Default: true.
    pub stock: bool,
    /// The MCP servers.
    #[serde(rename = "service")]
    pub services: Vec<Service>,
    /// The models.
    #[serde(rename = "model")]
    pub models: Vec<Model>,
    /// Sources of further services and models, which are followed while the host runs.
    #[serde(rename = "discovery", skip_serializing_if = "Vec::is_empty")]
    pub discoveries: Vec<Discovery>,
    /// What is changed about strategies. Every plugin of the folder and every stock strategy takes
    /// part without an entry, with its own defaults; an entry configures one, uses it once more
    /// under another name, or leaves it out (`enabled = false`).
    #[serde(rename = "strategy")]
    pub strategies: Vec<Strategy>,
    /// How failures are retried, by kind.
    pub retry: Retries,
    /// Active health probes.
    pub health: Health,
    /// Circuit breaking.
    pub circuit: Circuit,
    /// Retry budgets.
    pub budget: Budget,
    /// Deadlines.
    pub deadline: Deadline,
    /// What is known of operations.
    #[serde(rename = "operation")]
    pub operations: Vec<Operation>,
    /// What failures are recognised by.
    #[serde(rename = "pattern")]
    pub patterns: Vec<Pattern>,
    /// Last known good answers; kept only where the section is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// Calls of models.
    pub completion: Completion,
    /// The MCP server in front.
    pub gateway: Gateway,
    /// The administration endpoint; there only where the section is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
    /// Events, line by line; written only where the section is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<EventLog>,
    /// Spans and metrics for OpenTelemetry; sent only where the section is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<Telemetry>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            plugins: None,
            plugins_lock: None,
            state: None,
            stock: true,
            services: Vec::new(),
            models: Vec::new(),
            discoveries: Vec::new(),
            strategies: Vec::new(),
            retry: Retries::default(),
            health: Health::default(),
            circuit: Circuit::default(),
            budget: Budget::default(),
            deadline: Deadline::default(),
            operations: Vec::new(),
            patterns: Vec::new(),
            cache: None,
            completion: Completion::default(),
            gateway: Gateway::default(),
            admin: None,
            events: None,
            telemetry: None,
        }
    }
}

/// What came of reading a file.
#[derive(Debug, Clone)]
#[must_use = "the diagnostics say whether the configuration may be used"]
pub struct Loaded {
    /// Everything in the file that is right; defaults for the rest.
    pub config: Config,
    /// Everything that is not, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

impl Loaded {
    /// Whether any diagnostic is an error: such a file must not replace a good configuration.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

impl Config {
    /// Reads a file with the environment of the process. A file that cannot be read is a diagnostic
    /// without a line.
    pub fn load(path: &Path) -> Loaded {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path, &|name| std::env::var(name).ok()),
            Err(error) => {
                let diagnostic = Diagnostic {
                    severity: Severity::Error,
                    file: path.to_path_buf(),
                    line: 0,
                    column: 0,
                    field: String::new(),
                    message: "cannot be read".into(),
                    reason: error.to_string(),
                    remedy: "Check the path and the permissions; the file must be UTF-8 text."
                        .into(),
                };
                Loaded {
                    config: Self::default(),
                    diagnostics: vec![diagnostic],
                }
            }
        }
    }

    /// Reads the text of a file.
    ///
    /// `file` is what diagnostics name, and its folder is what relative paths are relative to.
    /// `env` is what `${VAR}` is looked up in. The folders the text names are looked for on disk.
    pub fn parse(text: &str, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Loaded {
        let cx = Cx::new(text, file, env);
        let config = Self::read(text, &cx);
        Loaded {
            config,
            diagnostics: cx.into_diagnostics(),
        }
    }

    /// Reads the text of a file that holds targets and nothing else: `[[service]]` and `[[model]]`, or the
    /// same in JSON where the file's name ends in `.json`. A file without either is refused, for it is
    /// more likely half written than meant; `service = []` says that there is none.
    pub fn parse_targets(text: &str, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Loaded {
        let cx = Cx::new(text, file, env);
        let json = file
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let read = if json {
            json::as_toml(text).map(|toml| Self::read_targets(&toml, &cx))
        } else {
            Ok(Self::read_targets(text, &cx))
        };
        let config = read.unwrap_or_else(|(at, issue)| {
            cx.note(at, String::new(), issue);
            Self::default()
        });
        Loaded {
            config,
            diagnostics: cx.into_diagnostics(),
        }
    }

    fn read_targets(text: &str, cx: &Cx<'_>) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            note_syntax(cx, &errors);
            return Self::default();
        }
        let mut r = Reader::new(cx, root.get_ref(), String::new(), 0);
        let (mut targets, all) = (Taken::default(), Circuit::default());
        let config = Self {
            services: r.entries("service", |r| Service::read(r, &mut targets, &all)),
            models: r.entries("model", |r| Model::read(r, &mut targets, &all)),
            ..Self::default()
        };
        if !r.has("service") && !r.has("model") {
            let reason = "the file has neither a service nor a model; it may be half written";
            let remedy = "Write service = [] to say that there is none.";
            r.issue_here(Issue::error("no target", reason, remedy));
        }
        r.finish();
        config
    }

    /// The JSON Schema of the file.
    pub fn json_schema() -> schemars::Schema {
        schemars::schema_for!(Config)
    }

    /// Whether the fronts for MCP and for models do not lie within one another.
    pub fn has_room_for_models(&self) -> bool {
        let models = self.completion.path.trim_end_matches('/');
        let below = self.gateway.path.strip_prefix(models);
        !below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn read(text: &str, cx: &Cx<'_>) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            note_syntax(cx, &errors);
            return Self::default();
        }
        let mut r = Reader::new(cx, root.get_ref(), String::new(), 0);
        let config = Self::read_root(&mut r);
        r.finish();
        config
    }

    fn read_root(r: &mut Reader<'_, '_>) -> Self {
        let mut targets = Taken::default();
        let mut strategies = BTreeSet::new();
        let (mut patterns, mut sources) = (Taken::default(), Taken::default());
        let gateway = r.section("gateway", Gateway::read).unwrap_or_default();
        let listen = gateway.listen;
        let circuit = r.section("circuit", Circuit::read).unwrap_or_default();
        let plugins = r.read("plugins", text::folder);
        let plugins_lock = r.read("plugins_lock", text::path);
        // A lock that cannot be read as one is not taken for none.
        let is_open = plugins_lock.is_some() || !r.has("plugins_lock");
        let services = r.entries("service", |r| Service::read(r, &mut targets, &circuit));
        let models = r.entries("model", |r| Model::read(r, &mut targets, &circuit));
        let config = Self {
            plugins: plugins.filter(|_| is_open),
            plugins_lock,
            state: r.read("state", text::folder),
            stock: r.read("stock", value::boolean).unwrap_or(true),
            services,
            discoveries: r.entries("discovery", |r| Discovery::read(r, &mut sources)),
            strategies: r.entries("strategy", |r| Strategy::read(r, &mut strategies)),
            retry: Retries::read(r),
            health: r.section("health", Health::read).unwrap_or_default(),
            circuit,
            budget: r.section("budget", Budget::read).unwrap_or_default(),
            deadline: r.section("deadline", Deadline::read).unwrap_or_default(),
            operations: r.entries("operation", Operation::read),
            patterns: r.entries("pattern", |r| Pattern::read(r, &mut patterns)),
            cache: r.section("cache", Cache::read),
            completion: r
                .section("completion", |r| Completion::read(r, &models))
                .unwrap_or_default(),
            models,
            admin: r.section("admin", |r| Admin::read(r, listen)),
            events: r.section("events", EventLog::read),
            telemetry: r.section("telemetry", Telemetry::read),
            gateway,
        };
        if !config.models.is_empty() && !config.has_room_for_models() {
            let reason = format!(
                "{:?} of [gateway] lies within {:?} of [completion]",
                config.gateway.path, config.completion.path
            );
            let remedy = "Give one of the two another path.";
            r.issue_here(Issue::error("one path for two", reason, remedy));
        }
        if !r.has("service") && !r.has("model") && !r.has("discovery") {
            let reason = "without a [[service]] or a [[model]] every call fails";
            r.issue_here(Issue::warning(
                "no target",
                reason,
                "Add a [[service]] with name and url.",
            ));
        }
        config
    }
}

/// Notes what the TOML parser found, one problem a line: after the first, a line's others are mostly
/// its echo.
fn note_syntax(cx: &Cx<'_>, errors: &[toml::de::Error]) {
    let mut lines = BTreeSet::new();
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        if lines.insert(cx.positions.of(at).0) {
            let remedy = "Correct the TOML; nothing of this file was loaded.";
            cx.note(
                at,
                String::new(),
                Issue::error("not TOML", error.message(), remedy),
            );
        }
    }
}
