//! `backstop simulate`: a fault scenario against a configuration, before an outage tries it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use backstop::config::scenario::Scenario;
use backstop::config::{Config, Diagnostic};
use backstop_gateway::simulate::builtin::{builtin, builtins};
use backstop_gateway::simulate::{
    CallsEnded, Entry, Game, Report, SimulateError, Summary, What, play, with_files,
};
use serde_json::json;

use super::host::cache_folder;
use super::{USAGE, terminal};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE", default_value = "backstop.toml")]
    config: PathBuf,
    /// A scenario that comes with the program (see --list), or a file.
    #[arg(long, short, value_name = "SCENARIO", required_unless_present_any = ["list", "show"])]
    scenario: Option<String>,
    /// A second configuration that is played as well, and shown beside the first.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// What chance begins with, instead of what the scenario says.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// List the scenarios that come with the program.
    #[arg(long, exclusive = true)]
    list: bool,
    /// Print one of them, to begin a file of one's own with.
    #[arg(long, value_name = "SCENARIO", exclusive = true)]
    show: Option<String>,
}

/// What was played, and what of it.
struct Run {
    config: PathBuf,
    scenario: Scenario,
    report: Report,
}

/// A scenario before it is read for a configuration.
struct Text {
    /// What diagnostics name.
    file: PathBuf,
    text: String,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    terminal::log();
    if arguments.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = arguments.show.as_deref().or(arguments.scenario.as_deref());
    let wanted = wanted.unwrap_or_default();
    let Some(text) = find(wanted, arguments.show.is_none()) else {
        return Ok(ExitCode::from(USAGE));
    };
    if arguments.show.is_some() {
        terminal::say(text.text.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let mut runs = Vec::new();
    for config in [Some(&arguments.config), arguments.compare.as_ref()] {
        let Some(config) = config else { continue };
        let Some(prepared) = prepare(config, &text) else {
            return Ok(ExitCode::from(USAGE));
        };
        match prepared.play(arguments.seed).await? {
            Ok(run) => runs.push(run),
            Err(SimulateError::Refused(diagnostics)) => {
                complain(&diagnostics);
                return Ok(ExitCode::from(USAGE));
            }
            Err(error) => return Err(error).context("the simulation"),
        }
    }
    let seed = |run: &Run| arguments.seed.unwrap_or(run.scenario.seed);
    if arguments.json {
        let of = |run: &Run| json!({ "config": run.config, "timeline": run.report.timeline, "summary": run.report.summary });
        let document = json!({
            "scenario": wanted,
            "seed": runs.first().map(seed),
            "runs": runs.iter().map(of).collect::<Vec<_>>(),
        });
        terminal::say(&serde_json::to_string_pretty(&document)?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(first) = runs.first() {
        let about = &first.scenario;
        let description = match &*about.description {
            "" => String::new(),
            description => format!(": {description}"),
        };
        let (seed, length) = (seed(first), clock(about.duration));
        terminal::say(&format!(
            "{wanted}{description}\nseed {seed}, {length} of simulated time"
        ));
    }
    for run in &runs {
        terminal::say(&format!("\n{}", run.config.display()));
        for entry in &run.report.timeline {
            terminal::say(&line(entry));
        }
    }
    terminal::say(&format!("\n{}", table(&runs).trim_end()));
    Ok(ExitCode::SUCCESS)
}

fn list() {
    let none = Config::default();
    for one in builtins() {
        let scenario = Scenario::parse(&one.text, Path::new(&one.name), &none).scenario;
        terminal::say(&format!("{:<20} {}", one.name, scenario.description));
    }
}

/// The scenario of a name, or a file's. What is wrong is told.
fn find(wanted: &str, or_file: bool) -> Option<Text> {
    if let Some(found) = builtin(wanted) {
        return Some(Text {
            file: PathBuf::from(found.name),
            text: found.text,
        });
    }
    let names: Vec<String> = builtins().into_iter().map(|one| one.name).collect();
    let near = backstop::config::nearest(wanted, names.iter().map(String::as_str));
    let near = near.map_or_else(String::new, |near| format!(": did you mean {near:?}?"));
    let unknown = || {
        terminal::complain(&format!(
            "backstop: no scenario {wanted:?} comes with the program{near}; `backstop simulate --list` shows those that do"
        ));
    };
    if !or_file {
        unknown();
        return None;
    }
    match std::fs::read_to_string(wanted) {
        Ok(text) => Some(Text {
            file: PathBuf::from(wanted),
            text,
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            unknown();
            terminal::complain(&format!("backstop: and there is no file {wanted}"));
            None
        }
        Err(error) => {
            terminal::complain(&format!("{wanted}: cannot be read: {error}"));
            None
        }
    }
}

fn complain(diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        terminal::complain(&diagnostic.to_string());
    }
}

struct Prepared {
    file: PathBuf,
    config: Config,
    scenario: Scenario,
}

/// Reads a configuration, and the scenario for it. What is wrong is told; none where it cannot be played.
fn prepare(file: &Path, text: &Text) -> Option<Prepared> {
    let loaded = Config::load(file);
    let mut found = loaded.diagnostics;
    let (config, more) = with_files(loaded.config, file);
    found.extend(more);
    complain(&found);
    if found.iter().any(Diagnostic::is_error) {
        return None;
    }
    if config.services.is_empty() && config.models.is_empty() {
        terminal::complain(&format!(
            "backstop: {} has no service and no model: nothing to simulate",
            file.display()
        ));
        return None;
    }
    let read = Scenario::parse(&text.text, &text.file, &config);
    complain(&read.diagnostics);
    if read.has_errors() {
        terminal::complain(&format!(
            "backstop: the scenario cannot be played against {}",
            file.display()
        ));
        return None;
    }
    Some(Prepared {
        file: file.to_owned(),
        config,
        scenario: read.scenario,
    })
}

impl Prepared {
    async fn play(self, seed: Option<u64>) -> anyhow::Result<Result<Run, SimulateError>> {
        let playing = tokio::task::spawn_blocking(move || {
            let report = play(&Game {
                config: &self.config,
                file: &self.file,
                scenario: &self.scenario,
                seed,
                cache: cache_folder(),
            })?;
            Ok(Run {
                config: self.file,
                scenario: self.scenario,
                report,
            })
        });
        playing.await.context("the simulation")
    }
}

// ---- in words -----------------------------------------------------------------------------------

/// `m:ss.mmm`.
fn clock(at: Duration) -> String {
    let (minutes, seconds) = (at.as_secs() / 60, at.as_secs() % 60);
    format!("{minutes}:{seconds:02}.{:03}", at.subsec_millis())
}

fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return format!("{} ms", duration.as_millis());
    }
    format!("{:.1} s", duration.as_secs_f64())
}

fn line(entry: &Entry) -> String {
    let (subject, text) = told(&entry.what);
    format!("{:>10}  {subject:<9} {text}", clock(entry.at))
}

/// What it is about, and what happened.
fn told(what: &What) -> (&'static str, String) {
    match what {
        What::FaultBegins {
            fault,
            targets,
            until,
        } => {
            let until = clock(*until);
            (
                "fault",
                format!("{}: {fault}, until {until}", names(targets)),
            )
        }
        What::FaultEnds { fault, targets } => {
            ("fault", format!("{}: {fault} is over", names(targets)))
        }
        What::CircuitOpened {
            target,
            cause,
            open_for,
        } => {
            let cause = word(cause).replace('_', " ");
            let text = format!("{target} is left alone for {}: {cause}", seconds(*open_for));
            ("circuit", text)
        }
        What::CircuitHalfOpened { target } => ("circuit", format!("{target} is tried")),
        What::CircuitClosed { target } => ("circuit", format!("{target} is used again")),
        What::TargetDown { target } => ("health", format!("{target} is down")),
        What::TargetUp { target } => ("health", format!("{target} is up")),
        What::Recovered { target, after } => (
            "health",
            format!("{target} is back after {}", seconds(*after)),
        ),
        What::StrategyFaulted {
            strategy,
            fault,
            count,
        } => ("strategy", format!("{strategy} {fault}{}", times(*count))),
        What::StrategyQuarantined { strategy, faults } => {
            let text = format!("{strategy} is quarantined after {faults} faults");
            ("strategy", text)
        }
        What::ActionRefused {
            strategy,
            refusal,
            count,
        } => {
            let text = format!("{strategy} is refused: {refusal}{}", times(*count));
            ("guard", text)
        }
        What::Calls {
            group,
            operation,
            ended,
            how,
            count,
            until,
        } => {
            let until = if *count > 1 {
                format!(", the last at {}", clock(*until))
            } else {
                String::new()
            };
            let text = format!(
                "{group}, {operation}: {count} {}{}{until}",
                end(ended),
                in_turn(how)
            );
            ("calls", text)
        }
        What::Normal { group, after } => {
            let text = match after {
                Some(after) => {
                    let after = seconds(*after);
                    format!("{group}: as before the faults, {after} after the last of them")
                }
                None => format!("{group}: not as before the faults by the end"),
            };
            ("normal", text)
        }
        // The library may tell of more one day.
        _ => ("", String::new()),
    }
}

fn end(ended: &CallsEnded) -> String {
    let by = |by: &Option<_>| by.as_deref().unwrap_or("data").to_owned();
    match ended {
        CallsEnded::AtOnce { by: who } => format!("answered at once by {}", by(who)),
        CallsEnded::Saved {
            by: who,
            degraded: None,
        } => format!("saved by {}", by(who)),
        CallsEnded::Saved {
            by: who,
            degraded: Some(degraded),
        } => format!("saved by {} ({degraded})", by(who)),
        CallsEnded::Failed { ending, kind } => {
            format!("failed, {kind}: {}", word(ending).replace('_', " "))
        }
        _ => String::new(),
    }
}

/// How a value is written in JSON, without quotes.
fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

fn names(names: &[std::sync::Arc<str>]) -> String {
    match names {
        [] => "no target".to_owned(),
        names => names.join(", "),
    }
}

fn times(count: u64) -> String {
    match count {
        1 => String::new(),
        count => format!(" ({count} times)"),
    }
}

/// The strategies in turn: `retry twice` is written once.
fn in_turn(how: &[std::sync::Arc<str>]) -> String {
    let steps = how.chunk_by(|a, b| a == b).map(|same| match same {
        [one] => one.to_string(),
        same => format!("{} × {}", same.len(), same[0]),
    });
    let steps: Vec<String> = steps.collect();
    match &steps[..] {
        [] => String::new(),
        steps => format!(", by {}", steps.join(", then ")),
    }
}

// ---- figures ------------------------------------------------------------------------------------

/// The figures, one column for each configuration.
fn table(runs: &[Run]) -> String {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let mut row = |title: String, cell: &dyn Fn(&Summary) -> String| {
        let cells = runs.iter().map(|run| cell(&run.report.summary));
        rows.push((title, cells.collect()));
    };
    row("calls".into(), &|s| s.calls.to_string());
    row("answered at once".into(), &|s| s.at_once.to_string());
    row("saved".into(), &|s| s.saved.to_string());
    row("failed cleanly".into(), &|s| s.failed.to_string());
    let all = runs.iter().map(|run| &run.report.summary);
    let endings: BTreeSet<&String> = all.clone().flat_map(|s| s.endings.keys()).collect();
    for ending in endings {
        row(format!("  {}", ending.replace('_', " ")), &|s| {
            s.endings.get(ending).copied().unwrap_or(0).to_string()
        });
    }
    row("attempts per call".into(), &|s| {
        format!("{:.2}", s.attempts_per_call)
    });
    row("latency, p50".into(), &|s| seconds(s.p50));
    row("latency, p99".into(), &|s| seconds(s.p99));
    let groups: BTreeSet<_> = all
        .clone()
        .flat_map(|s| s.normal.iter().map(|normal| normal.group.clone()))
        .collect();
    for group in groups {
        row(format!("back to normal, {group}"), &|s| {
            let normal = s.normal.iter().find(|normal| normal.group == group);
            match normal.map(|normal| normal.after) {
                Some(Some(after)) => seconds(after),
                Some(None) => "not by the end".into(),
                None => "-".into(),
            }
        });
    }
    let targets: BTreeSet<_> = all.flat_map(|s| s.targets.keys().cloned()).collect();
    for target in targets {
        row(
            format!("requests to {target}"),
            &|s| match s.targets.get(&target) {
                Some(got) if got.failed > 0 => format!("{} ({} failed)", got.requests, got.failed),
                Some(got) => got.requests.to_string(),
                None => "-".into(),
            },
        );
    }
    if runs.len() > 1 {
        let titles = runs.iter().map(|run| run.config.display().to_string());
        rows.insert(0, (String::new(), titles.collect()));
    }
    in_columns(&rows)
}

fn in_columns(rows: &[(String, Vec<String>)]) -> String {
    let wide = |text: &str| text.chars().count();
    let first = rows.iter().map(|(title, _)| wide(title)).max().unwrap_or(0);
    let cells = rows.iter().flat_map(|(_, cells)| cells);
    let other = cells.map(|cell| wide(cell)).max().unwrap_or(0);
    let line = |(title, cells): &(String, Vec<String>)| {
        let cells = cells.iter().map(|cell| format!("  {cell:>other$}"));
        format!("{title:<first$}{}\n", cells.collect::<String>())
    };
    rows.iter().map(line).collect()
}
