//! A dry run: a fault scenario against a configuration, before an outage tries it.
//!
//! The engine is the real one, with the configuration's own policies and its real plugins in the real
//! sandbox; only the servers, the callers and the time are not. Time is Tokio's paused clock, which jumps
//! from one event to the next, so an hour takes seconds. Chance begins with a seed: the same scenario, the
//! same configuration and the same seed give the same [`Report`] every time.
//!
//! The code of a strategy runs in real time while the simulated clock stands still. A decision takes no
//! simulated time; a strategy that does not come to an end is stopped by the real time its limit allows, and
//! then counts as one that was too slow, as it would in earnest.
//!
//! What a scenario can say is told at [`backstop::config::scenario`]; [`builtin`] has those that come with
//! the program.
//!
//! Not played: what fronts and transports do by themselves (sessions, streams, credentials), targets that
//! come from DNS, and how large a request is.

pub mod builtin;
mod play;
mod summary;
mod timeline;
mod world;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use backstop::BuildError;
use backstop::config::scenario::Scenario;
use backstop::config::{Config, Diagnostic, Source};
use backstop::strategy::component::RuntimeError;
use serde::Serialize;

pub use summary::{Normal, Summary, Traffic};
pub use timeline::{CallsEnded, Entry, What};

/// What is played.
#[derive(Debug, Clone)]
pub struct Game<'a> {
    /// The configuration, with its [fixed targets](with_files).
    pub config: &'a Config,
    /// The file it was read from, which diagnostics name.
    pub file: &'a Path,
    /// The scenario, which was read for this configuration.
    pub scenario: &'a Scenario,
    /// What chance begins with. Default: what the scenario says.
    pub seed: Option<u64>,
    /// The folder in which compiled plugins are kept. Default: none.
    pub cache: Option<PathBuf>,
}

/// What happened, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// What happened when.
    pub timeline: Vec<Entry>,
    /// What came of it.
    pub summary: Summary,
}

/// Why nothing was played.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulateError {
    /// The configuration cannot be used as a whole.
    #[error("the configuration cannot be used: {}", lines(.0))]
    Refused(Vec<Diagnostic>),
    /// A policy is out of range.
    #[error("the policies of the configuration")]
    Policies(#[from] BuildError),
    /// Strategies cannot run here.
    #[error("the WebAssembly runtime cannot start")]
    WebAssembly(#[from] RuntimeError),
    /// There is no runtime for the simulation.
    #[error("the runtime of the simulation cannot start")]
    Runtime(#[source] std::io::Error),
    /// More happened at once than can be noted.
    #[error("{0} events were missed: let fewer calls be made a second")]
    Missed(u64),
}

fn lines(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|found| found.is_error());
    let lines: Vec<String> = errors.map(ToString::to_string).collect();
    lines.join("; ")
}

/// Plays a scenario. It blocks, on a runtime of its own: not for an asynchronous task.
///
/// # Errors
/// [`SimulateError`].
pub fn play(game: &Game<'_>) -> Result<Report, SimulateError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(SimulateError::Runtime)?;
    let played = runtime.block_on(play::run(game));
    // A strategy's last steps need no waiting for.
    runtime.shutdown_background();
    let record = played?;
    Ok(Report {
        timeline: timeline::of(&record),
        summary: summary::of(&record),
    })
}

/// The same configuration with the targets its `[[discovery]]` files hold now, and nothing that a running
/// program may be using. What cannot be had is among the diagnostics.
pub fn with_files(mut config: Config, file: &Path) -> (Config, Vec<Diagnostic>) {
    let mut found = Vec::new();
    config.state = None;
    for source in std::mem::take(&mut config.discoveries) {
        match &source.source {
            Source::File { file: from } => match std::fs::read_to_string(from) {
                Ok(text) => {
                    let env = |name: &str| std::env::var(name).ok();
                    let more = Config::parse_targets(&text, from, &env);
                    found.extend(more.diagnostics);
                    config.services.extend(more.config.services);
                    config.models.extend(more.config.models);
                }
                Err(error) => {
                    let reason = format!("no target comes from it: {error}");
                    found.push(Diagnostic::warning(from, "", reason));
                }
            },
            Source::Dns(_) => {
                let field = format!("discovery {:?}", source.name);
                let reason = "targets from DNS are not simulated";
                found.push(Diagnostic::warning(file, field, reason));
            }
        }
    }
    (config, found)
}

/// What the wall clock of every simulation begins with: the first second of 2026, UTC.
const DAWN: Duration = Duration::from_secs(1_767_225_600);

fn dawn() -> SystemTime {
    SystemTime::UNIX_EPOCH + DAWN
}

/// Milliseconds, as they stand in reports.
fn millis(duration: &Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn as_millis<S: serde::Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_u64(millis(duration))
}

fn as_millis_or_none<S: serde::Serializer>(
    duration: &Option<Duration>,
    s: S,
) -> Result<S::Ok, S::Error> {
    duration.as_ref().map(millis).serialize(s)
}
