//! Fault scenarios: what goes wrong with the targets of a configuration, and who calls meanwhile.
//!
//! `backstop simulate` plays one against a configuration, in simulated time.
//!
#![doc = include_str!("scenario.md")]

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::reader::{Cx, Issue, Reader};
use super::retry::warn_of_unknown_kind;
use super::value::{self, ANY_DURATION, Read, nearest};
use super::{Config, Diagnostic, limits, note_syntax, text};
use crate::call::RepeatSafety;
use crate::detect::TransportFault;
use crate::failure::Failure;
use crate::kind::Kind;
use crate::registry::RateLimit;

/// The longest a scenario may be.
const A_DAY: Duration = Duration::from_secs(24 * 3600);
/// The most calls a scenario may make: more would be a load test.
const MOST_CALLS: f64 = 200_000.0;
/// The most times a fault may come back.
const MOST_TIMES: u128 = 10_000;
/// The operation that is called where nothing is said.
const OPERATION: &str = "call";

/// A fault scenario, checked against the configuration it is to be played against.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Scenario {
    /// What it is about, in a sentence.
    pub description: String,
    /// How long calls are made.
    pub duration: Duration,
    /// What chance begins with.
    pub seed: u64,
    /// How long a target takes that is well, on average.
    pub latency: Duration,
    /// Who calls what.
    pub calls: Vec<Calls>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// One `[[calls]]`: a stream of calls.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Calls {
    /// The group that is called; `None`: each group of the configuration.
    pub group: Option<String>,
    /// The operation.
    pub operation: String,
    /// How many a second, on average.
    pub per_second: f64,
    /// When they begin.
    pub from: Duration,
    /// When they end; `None`: with the scenario.
    pub until: Option<Duration>,
    /// Whether the operation may be repeated; `None`: what the configuration says, else it is read-only.
    pub repeat: Option<RepeatSafety>,
    /// The arguments, an object.
    pub arguments: Value,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            group: None,
            operation: OPERATION.into(),
            per_second: 2.0,
            from: Duration::ZERO,
            until: None,
            repeat: None,
            arguments: Value::Object(serde_json::Map::new()),
        }
    }
}

/// One `[[fault]]`: what goes wrong, where and when.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Fault {
    /// Which targets.
    pub target: Selection,
    /// Only those of this group.
    pub group: Option<String>,
    /// Only operations that match this glob.
    pub operation: Option<String>,
    /// What happens to a request.
    pub how: How,
    /// When it begins.
    pub from: Duration,
    /// When it ends; `None`: with the scenario.
    pub until: Option<Duration>,
    /// It comes and goes: how often it comes, and how long it stays each time.
    pub cycle: Option<(Duration, Duration)>,
    /// The share of the requests it hits, above 0 and up to 1.
    pub share: f64,
    /// It hits only what is more than this.
    pub beyond: Option<RateLimit>,
    /// How long a request takes that it hits.
    pub latency: Duration,
    /// What the failure says; `None`: something of ours.
    pub message: Option<String>,
    /// How long the server asks to be left alone.
    pub retry_after: Option<Duration>,
    /// Whether it hits health probes.
    pub probes: bool,
}

/// Which targets a fault hits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// One, by its name.
    Named(String),
    /// The first of each group: the one with the highest priority and, among equals, the first by name.
    First,
    /// Each but the first of its group.
    Others,
    /// Every one.
    All,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum How {
    /// It fails in the way that usually has this kind.
    Kind(Kind),
    /// It is answered with this HTTP status.
    Http(u16),
    /// It is answered with an error of this JSON-RPC code.
    JsonRpc(i64),
    /// The transport fails.
    Transport(TransportFault),
    /// The tool answers with `isError` and these words.
    ToolError(String),
    /// Nothing comes back.
    Silent,
    /// It is answered well, only late.
    Slow,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "{kind}"),
            Self::Http(status) => write!(f, "HTTP {status}"),
            Self::JsonRpc(code) => write!(f, "JSON-RPC error {code}"),
            Self::Transport(fault) => write!(f, "transport {}", fault.as_str()),
            Self::ToolError(words) => write!(f, "tool error {words:?}"),
            Self::Silent => f.write_str("silence"),
            Self::Slow => f.write_str("slow answers"),
        }
    }
}

impl How {
    /// Whether a server like that would fail its health probes as well, where nothing is said.
    fn fails_probes(&self) -> bool {
        match self {
            Self::Kind(kind) => Failure::new(kind.clone(), "").ill_health,
            Self::Http(status) => *status >= 500,
            Self::Transport(_) | Self::Silent => true,
            Self::JsonRpc(_) | Self::ToolError(_) | Self::Slow => false,
        }
    }

    /// Whether what comes back can say when to come again.
    fn has_hint(&self) -> bool {
        match self {
            Self::Kind(kind) => {
                *kind == Kind::TOO_MANY_REQUESTS || *kind == Kind::SERVICE_UNAVAILABLE
            }
            Self::Http(status) => matches!(status, 402 | 409 | 425 | 429 | 503 | 529),
            _ => false,
        }
    }
}

/// What came of reading a scenario.
#[derive(Debug, Clone)]
#[must_use = "the diagnostics say whether the scenario may be played"]
pub struct LoadedScenario {
    /// Everything in it that is right.
    pub scenario: Scenario,
    /// Everything that is not, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

impl LoadedScenario {
    /// Whether any diagnostic is an error: such a scenario must not be played.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

impl Scenario {
    /// Reads the text of a scenario that is to be played against a configuration, whose targets and
    /// groups it may name. `file` is what diagnostics name.
    pub fn parse(text: &str, file: &Path, config: &Config) -> LoadedScenario {
        let cx = Cx::new(text, file, &|_| None);
        let (root, errors) = DeTable::parse_recoverable(text);
        let scenario = if errors.is_empty() {
            let mut r = Reader::new(&cx, root.get_ref(), String::new(), 0);
            let scenario = Self::read(&mut r, &Known::of(config));
            r.finish();
            scenario
        } else {
            note_syntax(&cx, &errors);
            Self::of(Vec::new(), Vec::new())
        };
        LoadedScenario {
            scenario,
            diagnostics: cx.into_diagnostics(),
        }
    }

    fn of(calls: Vec<Calls>, faults: Vec<Fault>) -> Self {
        Self {
            description: String::new(),
            duration: Duration::from_secs(300),
            seed: 1,
            latency: Duration::from_millis(50),
            calls,
            faults,
        }
    }

    fn read(r: &mut Reader<'_, '_>, known: &Known<'_>) -> Self {
        let base = Self::of(Vec::new(), Vec::new());
        let second = Duration::from_secs(1);
        let duration = r.read("duration", value::duration(second..=A_DAY));
        let duration = duration.unwrap_or(base.duration);
        let mut calls = r.entries("calls", |r| Calls::read(r, known, duration));
        if !r.has("calls") {
            calls.push(Calls::default());
        }
        let scenario = Self {
            description: r
                .read("description", value::text)
                .unwrap_or(base.description),
            duration,
            seed: r
                .read("seed", value::integer(0..=i64::MAX))
                .unwrap_or(base.seed),
            latency: r
                .read("latency", value::duration(ANY_DURATION))
                .unwrap_or(base.latency),
            calls,
            faults: r.entries("fault", |r| Fault::read(r, known, duration)),
        };
        let groups = known.groups.len() as f64;
        let of = |calls: &Calls| {
            let until = calls.until.unwrap_or(duration).min(duration);
            let seconds = until.saturating_sub(calls.from).as_secs_f64();
            let times = if calls.group.is_none() { groups } else { 1.0 };
            calls.per_second * seconds * times
        };
        let count: f64 = scenario.calls.iter().map(of).sum();
        if count > MOST_CALLS {
            let reason = format!("it makes about {count:.0} calls, of at most {MOST_CALLS}");
            let remedy = "Make it shorter, or let fewer calls be made a second.";
            r.issue_here(Issue::error("too many calls", reason, remedy));
        }
        scenario
    }
}

/// The targets and groups a scenario may name.
struct Known<'c> {
    targets: Vec<&'c str>,
    groups: Vec<&'c str>,
}

impl<'c> Known<'c> {
    fn of(config: &'c Config) -> Self {
        let services = config.services.iter().map(|s| (&*s.name, &*s.group));
        let models = config.models.iter().map(|m| (&*m.name, &*m.group));
        let (targets, mut groups): (Vec<_>, Vec<_>) = services.chain(models).unzip();
        groups.sort_unstable();
        groups.dedup();
        Self { targets, groups }
    }

    fn group(&self) -> impl Fn(&DeValue<'_>, &Cx<'_>) -> Read<String> {
        |value, cx| {
            let name = value::text(value, cx)?;
            if self.groups.contains(&&*name) {
                return Ok(name);
            }
            Err(unknown("group", &name, &self.groups, &[]))
        }
    }

    fn target(&self) -> impl Fn(&DeValue<'_>, &Cx<'_>) -> Read<Selection> {
        |value, cx| {
            let name = value::text(value, cx)?;
            if self.targets.contains(&&*name) {
                return Ok(Selection::Named(name));
            }
            match &*name {
                "first" => Ok(Selection::First),
                "others" => Ok(Selection::Others),
                "all" => Ok(Selection::All),
                _ => {
                    let words = ["first", "others", "all"];
                    Err(unknown("target", &name, &self.targets, &words))
                }
            }
        }
    }
}

/// A name the configuration does not have.
fn unknown(what: &str, name: &str, names: &[&str], words: &[&str]) -> Issue {
    const SHOWN: usize = 10;
    let all = || words.iter().chain(names).copied();
    let reason = match nearest(name, all()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("the configuration has no such {what}"),
    };
    let shown: Vec<String> = all().take(SHOWN).map(|name| format!("{name:?}")).collect();
    let more = if all().count() > SHOWN { ", …" } else { "" };
    let remedy = format!("Write one of {}{more}.", shown.join(", "));
    Issue::error(format!("unknown {what} {name:?}"), reason, remedy)
}

/// Reads `from` and `until`.
fn span(r: &mut Reader<'_, '_>, duration: Duration) -> (Duration, Option<Duration>) {
    let from = r.read("from", value::duration(ANY_DURATION));
    let from = from.unwrap_or_default();
    let until = r.read("until", value::duration(ANY_DURATION));
    if until.is_some_and(|until| until <= from) {
        let remedy = "Make until later than from.";
        r.issue(
            "until",
            Issue::error("out of range", "it ends before it begins", remedy),
        );
    } else if from >= duration {
        let remedy = "Make the scenario longer, or let it begin sooner.";
        r.issue(
            "from",
            Issue::error("out of range", "the scenario is over by then", remedy),
        );
    }
    (from, until)
}

impl Calls {
    fn read(r: &mut Reader<'_, '_>, known: &Known<'_>, duration: Duration) -> Option<Self> {
        let base = Self::default();
        let (from, until) = span(r, duration);
        Some(Self {
            group: r.read("group", known.group()),
            operation: r.read("operation", text::name).unwrap_or(base.operation),
            per_second: r
                .read("per_second", value::float(0.001..=1000.0))
                .unwrap_or(base.per_second),
            from,
            until,
            repeat: r.read(
                "repeat",
                value::word(&[
                    ("read-only", RepeatSafety::ReadOnly),
                    ("idempotent", RepeatSafety::Idempotent),
                    ("unsafe", RepeatSafety::Unsafe),
                ]),
            ),
            arguments: r
                .read("arguments", value::json_object)
                .unwrap_or(base.arguments),
        })
    }
}

impl Fault {
    fn read(r: &mut Reader<'_, '_>, known: &Known<'_>, duration: Duration) -> Option<Self> {
        let (from, until) = span(r, duration);
        let latency = r.read("latency", value::duration(ANY_DURATION));
        let how = how(r, latency.is_some());
        let retry_after = r.read("retry_after", value::duration(ANY_DURATION));
        if let (Some(_), Some(how)) = (retry_after, &how)
            && !how.has_hint()
        {
            let reason = "what comes back has no place for it";
            let remedy = "Remove it, or let the fault be TooManyRequests or ServiceUnavailable.";
            r.issue("retry_after", Issue::error("no effect", reason, remedy));
        }
        let fault = Self {
            target: r.read("target", known.target()).unwrap_or(Selection::First),
            group: r.read("group", known.group()),
            operation: r.read("operation", text::glob),
            from,
            until,
            cycle: cycle(r, until.unwrap_or(duration).saturating_sub(from)),
            share: r.read("share", value::float(0.001..=1.0)).unwrap_or(1.0),
            beyond: r.read("beyond", limits::rate),
            // A refusal is soon there.
            latency: latency.unwrap_or(Duration::from_millis(5)),
            message: r.read("message", value::text),
            retry_after,
            probes: r
                .read("probes", value::boolean)
                .unwrap_or_else(|| how.as_ref().is_some_and(How::fails_probes)),
            how: how?,
        };
        Some(fault)
    }
}

/// Reads the one key that says what happens to a request.
fn how(r: &mut Reader<'_, '_>, is_slow: bool) -> Option<How> {
    const KEYS: [&str; 6] = [
        "kind",
        "http",
        "json_rpc",
        "transport",
        "tool_error",
        "silent",
    ];
    let given: Vec<&'static str> = KEYS.into_iter().filter(|key| r.has(key)).collect();
    if let [first, second, ..] = given[..] {
        let reason = format!("it says {first} and {second}, and a request fails in one way");
        let remedy = format!("Remove {second}, or write a [[fault]] of its own for it.");
        r.issue(second, Issue::error("two ways to fail", reason, remedy));
        return None;
    }
    match given.first().copied() {
        Some("kind") => {
            let kind = r.read("kind", text::name)?;
            if let Some(issue) = warn_of_unknown_kind(&kind) {
                r.issue("kind", issue);
            }
            Some(How::Kind(Kind::new(&kind)))
        }
        Some("http") => r.read("http", value::integer(300..=599)).map(How::Http),
        Some("json_rpc") => {
            let any = i64::from(i32::MIN)..=i64::from(i32::MAX);
            r.read("json_rpc", value::integer(any)).map(How::JsonRpc)
        }
        Some("transport") => r.read("transport", transport).map(How::Transport),
        Some("tool_error") => r.read("tool_error", value::text).map(How::ToolError),
        Some(_) => match r.read("silent", value::boolean)? {
            true => Some(How::Silent),
            false => {
                let reason = "a fault whose requests are not silent says what happens to them";
                let remedy = "Remove silent, and add kind = \"KIND\".";
                r.issue("silent", Issue::error("no fault", reason, remedy));
                None
            }
        },
        None if is_slow => Some(How::Slow),
        None => {
            let reason = "it does not say what happens to a request";
            let remedy = "Add kind = \"KIND\", http = 503, transport = \"reset\", silent = true or \
                          latency = \"5s\".";
            r.issue_here(Issue::error("no fault", reason, remedy));
            None
        }
    }
}

fn transport(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<TransportFault> {
    let word = value::text(value, cx)?;
    let all = TransportFault::ALL;
    let found = all.iter().find(|fault| fault.as_str() == word);
    found.copied().ok_or_else(|| {
        let words: Vec<&str> = all.iter().map(|fault| fault.as_str()).collect();
        unknown("transport fault", &word, &words, &[])
    })
}

/// Reads `every` and `lasts`.
fn cycle(r: &mut Reader<'_, '_>, span: Duration) -> Option<(Duration, Duration)> {
    let second = Duration::from_secs(1);
    let every = r.read("every", value::duration(second..=A_DAY));
    let lasts = r.read("lasts", value::duration(value::POSITIVE));
    let (has_every, has_lasts) = (r.has("every"), r.has("lasts"));
    if has_every != has_lasts {
        let (there, missing) = if has_every {
            ("every", "lasts")
        } else {
            ("lasts", "every")
        };
        let reason = format!("a fault that comes and goes needs {missing} as well");
        let remedy = format!("Add {missing} = \"10s\", or remove {there}.");
        r.issue(there, Issue::error("half a cycle", reason, remedy));
    }
    let (every, lasts) = (every?, lasts?);
    if lasts >= every {
        let reason = "it comes again before it has gone";
        let remedy = "Make lasts shorter than every.";
        r.issue("lasts", Issue::error("out of range", reason, remedy));
    } else if span.as_nanos() / every.as_nanos() > MOST_TIMES {
        let reason = format!("it comes more than {MOST_TIMES} times");
        let remedy = "Let it come less often, or end sooner.";
        r.issue("every", Issue::error("out of range", reason, remedy));
    }
    Some((every, lasts))
}
